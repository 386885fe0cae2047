//! A host put together from its parts: the same for threads and for the simulator.

use crate::apply::{ApplyInbox, ApplyWorker};
use crate::config::EngineConfig;
use crate::events::EventQueue;
use crate::log_writer::{LogWriter, WriterInbox};
use crate::memory::LogMemory;
use crate::notify::Notifier;
use crate::openings::Openings;
use crate::poller::Poller;
use crate::shared::{HostCounters, HostShared, WorkerInbox};
use crate::snapshot::SnapshotIo;
use crate::space::DiskSpace;
use crate::stalls::Stalls;
use crate::start::Starter;
use crate::step::StepWorker;
use crate::stores::PeerStores;
use crate::transfers::Transfers;
use ahash::AHashMap;
use longboat_io::{Clock, Spawner};
use longboat_logdb::{LogDb, Opened};
use longboat_rsm::snapshot::SnapshotStore;
use longboat_transport::Transport;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What a host is made of.
pub struct HostParts<L: LogDb> {
    /// Settings.
    pub config: EngineConfig,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The log store, just opened.
    pub log: Opened<L>,
    /// The stores that other hosts were seen to have.
    pub stores: PeerStores,
    /// The openings of the own store.
    pub openings: Openings,
    /// The snapshots' files.
    pub snapshots: SnapshotStore,
    /// Runs snapshot work.
    pub spawner: Arc<dyn Spawner>,
    /// The transport.
    pub transport: Arc<dyn Transport>,
}

/// Who wakes whom: one notifier a thread, shared by the workers that it runs.
#[derive(Debug)]
pub struct Notifiers {
    /// Of each step worker's thread.
    pub step: Vec<Arc<Notifier>>,
    /// Of each apply worker's thread.
    pub apply: Vec<Arc<Notifier>>,
    /// Of the log writer's thread.
    pub writer: Arc<Notifier>,
}

impl Notifiers {
    /// A thread for each worker.
    pub fn separate(config: &EngineConfig) -> Self {
        Self {
            step: (0..config.step_workers).map(|_| Notifier::new()).collect(),
            apply: (0..config.apply_workers).map(|_| Notifier::new()).collect(),
            writer: Notifier::new(),
        }
    }

    /// One thread for all step and apply workers; the log writer has its own.
    pub fn compact(config: &EngineConfig) -> Self {
        let one = Notifier::new();
        Self {
            step: (0..config.step_workers).map(|_| Arc::clone(&one)).collect(),
            apply: (0..config.apply_workers).map(|_| Arc::clone(&one)).collect(),
            writer: Notifier::new(),
        }
    }
}

/// A host: what its threads share, and its workers, to be driven by threads or by a simulator.
#[derive(Debug)]
pub struct Host<L: LogDb> {
    /// What all share.
    pub shared: Arc<HostShared>,
    /// Starts and stops replicas.
    pub starter: Arc<Starter>,
    /// Snapshots.
    pub snapshots: Arc<SnapshotIo>,
    /// Step workers.
    pub steps: Vec<StepWorker>,
    /// Apply workers.
    pub applies: Vec<ApplyWorker>,
    /// The log writer.
    pub writer: LogWriter<L>,
    /// Where batches are left for it.
    pub writer_inbox: Arc<WriterInbox>,
    /// Reads the sockets.
    pub poller: Poller,
}

impl<L: LogDb> Host<L> {
    /// Puts a host together. Snapshot files that no record names are removed.
    pub fn new(parts: HostParts<L>, notifiers: &Notifiers) -> Self {
        let HostParts { config, clock, log, stores, openings, snapshots, spawner, transport } = parts;
        let config = EngineConfig { incarnation: openings.incarnation(), ..config };
        let workers = notifiers.step.iter().map(|n| WorkerInbox::new(Arc::clone(n))).collect();
        let apply = notifiers.apply.iter().map(|n| ApplyInbox::new(Arc::clone(n))).collect();
        let shared = Arc::new(HostShared {
            log_memory: LogMemory::new(config.log_memory_bytes_max),
            stores,
            openings,
            space: DiskSpace::new(config.disk_reserve_bytes),
            config,
            clock,
            workers,
            apply,
            groups: RwLock::new(AHashMap::new()),
            quarantined: Mutex::new(AHashMap::new()),
            stopped: Mutex::new(AHashMap::new()),
            pool: crate::pool::Pool::default(),
            burying: Mutex::new(AHashMap::new()),
            unsynced_bytes: AtomicU64::new(0),
            log_overfull: AtomicBool::new(false),
            failed: Mutex::new(None),
            has_failed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            counters: HostCounters::default(),
            peers: crate::liveness::peers::PeerTable::default(),
            events: EventQueue::default(),
            transfers: Transfers::default(),
            stalls: Stalls::default(),
            pool_calls: crate::snapshot::PoolCalls::default(),
            shed: Default::default(),
        });
        let reader = log.log.reader();
        let writer_inbox = WriterInbox::new(Arc::clone(&notifiers.writer));
        let io = SnapshotIo::new(
            Arc::clone(&shared),
            snapshots,
            Arc::clone(&spawner),
            Arc::clone(&transport),
            Arc::clone(&reader),
        );
        let starter = Starter::new(Arc::clone(&shared), Arc::clone(&writer_inbox), reader, Arc::clone(&io), log.groups);
        let step = |i| {
            let (transport, inbox) = (Arc::clone(&transport), Arc::clone(&writer_inbox));
            StepWorker::new(i, Arc::clone(&shared), transport, inbox, Arc::clone(&io))
        };
        let steps = (0..notifiers.step.len()).map(step).collect();
        let applies =
            (0..notifiers.apply.len()).map(|i| ApplyWorker::new(i, Arc::clone(&shared), Arc::clone(&io))).collect();
        let writer =
            LogWriter::new(log.log, Arc::clone(&shared), Arc::clone(&transport), Arc::clone(&writer_inbox), spawner);
        let poller = Poller::new(Arc::clone(&shared), transport, Arc::clone(&io));
        Self { shared, starter, snapshots: io, steps, applies, writer, writer_inbox, poller }
    }
}
