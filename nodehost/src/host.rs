//! `NodeHost`: one per process, owner of all groups on this host.

use crate::config::{ConfigError, GroupConfig, NodeHostConfig};
use crate::events::Listeners;
use crate::group::Group;
use crate::members::ReplicaStart;
use crate::replica::Replica;
use longboat_engine::log_writer::WriterInbox;
use longboat_engine::transfers::TransferInfo;
use longboat_engine::{
    CloseError, GroupShared, Host, HostParts, HostShared, Openings, PeerFile, PeerStores, QuarantinedReplica,
    ReplicaConfig, Start, StartError, StartSpec, Starter, ThreadLayout, Threads,
};
use longboat_io::{Clock, MonotonicClock, RayonSpawner, RealDisk};
use longboat_logdb::{LogStats, SharedLog, SnapshotRecord};
use longboat_raft::{GroupEpoch, GroupId, HostId, Membership, ReplicaId, StoreId};
use longboat_rsm::snapshot::{SnapshotHeader, SnapshotStore};
use longboat_rsm::{Machine, Pending, RequestError, WitnessMachine};
use longboat_transport::{StaticRegistry, TcpConfig, TcpTransport, Transport, TransportStats};
use parking_lot::Mutex;
use std::any::TypeId;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Why a host was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A field of the configuration is out of its limits.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The data directory can't be used.
    #[error(transparent)]
    Log(#[from] longboat_logdb::OpenError),
    /// The address can't be listened on.
    #[error(transparent)]
    Bind(#[from] longboat_transport::BindError),
    /// The operating system gave no threads.
    #[error("threads can't be started: {0}")]
    Threads(#[from] std::io::Error),
}

/// One replica to start: how, with what settings, and its empty state machine.
pub type ReplicaSpec<S> = (ReplicaStart, GroupConfig, S);

/// A state machine that is in a call for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StalledMachine {
    /// Its group.
    pub group: GroupId,
    /// Its replica on this host.
    pub replica: ReplicaId,
    /// How long the call has lasted.
    pub lasts: Duration,
    /// The groups that share its worker go on, on a spare thread. Else all spares are taken, and they wait.
    pub others_go_on: bool,
    /// It hangs in a save, a recovery, or while it is sent to a follower: `others_go_on` is then about what others save and recover.
    pub in_snapshot: bool,
}

/// Figures of a host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostInfo {
    /// The host.
    pub host: HostId,
    /// Its data directory's id.
    pub store: StoreId,
    /// Running replicas.
    pub groups: usize,
    /// Of these, leaders.
    pub leaders: usize,
    /// Of these, silent: they cost nothing until they are used.
    pub silent: u64,
    /// Other hosts of which nothing was heard for too long.
    pub suspected_hosts: Vec<HostId>,
    /// The log store's figures.
    pub log: LogStats,
    /// The transport's figures.
    pub transport: TransportStats,
    /// Messages for groups or replicas that are not here.
    pub dropped_unknown: u64,
    /// Messages of replicas whose hosts lost the stores that they spoke from.
    pub dropped_fenced: u64,
    /// Malformed frames.
    pub bad_frames: u64,
    /// Groups of which a part of what they had made durable here is damaged: they do not run, and are to be replaced under new ids.
    pub quarantined: Vec<QuarantinedReplica>,
    /// Replicas stopped because of a contradiction in what they were told.
    pub violations: u64,
    /// Replicas stopped because their state machine failed.
    pub machine_failures: u64,
    /// State machines that are in a call for longer than [`NodeHostConfig::apply_stall_ms`], then those that hang in a snapshot for
    /// longer than [`NodeHostConfig::snapshot_stall_ms`]; of each those that began first first.
    pub stalled: Vec<StalledMachine>,
    /// Bytes of log that its replicas hold in memory.
    pub log_memory_bytes: u64,
    /// How often threads that step, apply or write the log were woken, by others or by sockets.
    pub thread_wakes: u64,
    /// Events that a slow listener had no room for.
    pub events_dropped: u64,
    /// Why the host serves no more, if its log store failed.
    pub failed: Option<String>,
}

struct Inner {
    shared: Arc<HostShared>,
    /// Gone when the host is closed: it holds on to the log store, and so to the directory's lock.
    starter: Mutex<Option<Arc<Starter>>>,
    writer: Arc<WriterInbox>,
    transport: Arc<TcpTransport>,
    registry: Arc<StaticRegistry>,
    store: StoreId,
    spawner: RayonSpawner,
    snapshots: SnapshotStore,
    threads: Mutex<Option<Threads>>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

/// A host: owns all replicas of this process, their log store, transport and threads. Cheap to clone.
///
/// Dropping the last clone closes it; [`NodeHost::close`] also tells whether it closed in order.
#[derive(Clone)]
pub struct NodeHost {
    inner: Arc<Inner>,
}

/// Threads that work on snapshots, unless configured: more than it takes to keep a processor busy, as they wait for disks and limits.
const SNAPSHOT_THREADS: usize = 4;
/// How long dropping the last handle waits for work under way.
const DROP_DEADLINE: Duration = Duration::from_secs(5);

impl NodeHost {
    /// Opens the data directory, or makes it, and starts the host's threads. Replicas are started one by one or with
    /// [`NodeHost::start_replicas`].
    ///
    /// # Errors
    /// A configuration out of its limits, a data directory that is another host's, in use, damaged or of another
    /// format, or an address that can't be bound.
    pub fn open(config: NodeHostConfig) -> Result<Self, OpenError> {
        Self::open_with(config, Listeners::default())
    }

    /// As [`NodeHost::open`], with listeners that are told what happens.
    ///
    /// # Errors
    /// As [`NodeHost::open`].
    pub fn open_with(config: NodeHostConfig, listeners: Listeners) -> Result<Self, OpenError> {
        config.validate()?;
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let disk = Arc::new(RealDisk);
        let log = SharedLog::open(disk.clone(), config.log())?;
        let store = log.store;
        let file = PeerFile::new(disk.clone(), &config.data_dir);
        let openings = Openings::begin(file.clone(), store, since_epoch.as_nanos() as u64, log.place)?;
        let incarnation = openings.incarnation();
        let registry = Arc::new(StaticRegistry::new(config.peers.clone()));
        let transport = TcpTransport::bind(
            TcpConfig {
                deployment_id: config.deployment_id,
                store_id: store,
                incarnation,
                seed: incarnation ^ config.host_id.0,
                ..TcpConfig::new(config.host_id, config.listen_address)
            },
            registry.clone(),
        )?;
        let engine = config.engine(incarnation ^ config.host_id.0.rotate_left(48), incarnation);
        let layout = layout(&config);
        let notifiers = layout.notifiers(&engine);
        let snapshot_threads = if config.snapshot_workers > 0 { config.snapshot_workers } else { SNAPSHOT_THREADS };
        let spawner = RayonSpawner::new(&format!("lb{}-snap", config.host_id), snapshot_threads)?;
        let snapshots = SnapshotStore::new(disk.clone(), config.data_dir.join("snapshots"))
            .with_write_limit(config.snapshot_save_bytes_per_s);
        let parts = HostParts {
            config: engine,
            clock,
            log,
            stores: PeerStores::open(file).map_err(longboat_logdb::OpenError::from)?,
            openings,
            snapshots: snapshots.clone(),
            spawner: Arc::new(spawner.clone()),
            transport: transport.clone(),
        };
        let host = Host::new(parts, &notifiers);
        let (shared, starter, writer) =
            (Arc::clone(&host.shared), Arc::clone(&host.starter), Arc::clone(&host.writer_inbox));
        let listener = Mutex::new(listeners.start(&shared)?);
        starter.tell_quarantined();
        let threads =
            Threads::start(host, &notifiers, layout, transport.clone()).inspect_err(|_| shared.events.close())?;
        for &peer in config.peers.keys().filter(|&&id| id != config.host_id) {
            transport.connect(peer);
        }
        tracing::info!(host = %config.host_id, address = %transport.local_address(), "host opened");
        let (threads, starter) = (Mutex::new(Some(threads)), Mutex::new(Some(starter)));
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                starter,
                writer,
                transport,
                registry,
                store,
                spawner,
                snapshots,
                threads,
                listener,
            }),
        })
    }

    /// Starts one replica.
    ///
    /// # Errors
    /// When its configuration is out of limits, it runs already, or what the data directory holds of it does not fit.
    pub fn start_replica<S: Machine>(
        &self,
        start: ReplicaStart,
        config: GroupConfig,
        machine: impl FnOnce() -> S,
    ) -> Result<Group<S>, StartError> {
        let mut started = self.start_replicas([(start, config, machine())])?;
        Ok(started.pop().expect("one was started"))
    }

    /// Starts many replicas with one journal batch. Either all start or none.
    ///
    /// # Errors
    /// Of the first replica that can't be started.
    pub fn start_replicas<S: Machine>(
        &self,
        replicas: impl IntoIterator<Item = ReplicaSpec<S>>,
    ) -> Result<Vec<Group<S>>, StartError> {
        let mut specs = Vec::new();
        for (start, config, machine) in replicas {
            let config = config.checked()?;
            specs.push(StartSpec {
                start: self.engine_start(start, &config)?,
                config,
                machine: machine.into_dyn(),
                machine_type: TypeId::of::<S>(),
            });
        }
        Ok(self.start(specs)?.into_iter().map(Group::new).collect())
    }

    /// Starts a witness: a voter without a state machine, that keeps no commands, never leads and sends no snapshots. It
    /// must be one in its group's membership.
    ///
    /// # Errors
    /// As [`NodeHost::start_replica`].
    pub fn start_witness(&self, start: ReplicaStart, config: GroupConfig) -> Result<Replica, StartError> {
        let config = ReplicaConfig { witness: true, ..config.checked()? };
        let spec = StartSpec {
            start: self.engine_start(start, &config)?,
            config,
            machine: Box::new(WitnessMachine),
            machine_type: TypeId::of::<WitnessMachine>(),
        };
        let mut started = self.start(vec![spec])?;
        Ok(Replica { shared: started.pop().expect("one was started") })
    }

    /// Each on its own: one that can't be started keeps no other from it.
    pub(crate) fn start_each<S: Machine>(
        &self,
        replicas: Vec<ReplicaSpec<S>>,
    ) -> Vec<(GroupId, Result<Group<S>, StartError>)> {
        let start =
            |(start, config, machine): ReplicaSpec<S>| (config.group, self.start_replica(start, config, || machine));
        replicas.into_iter().map(start).collect()
    }

    fn engine_start(&self, start: ReplicaStart, config: &ReplicaConfig) -> Result<Start, StartError> {
        let (group, replica) = (config.group, config.replica);
        Ok(match start {
            // Each once in memory, whoever starts thousands of them.
            ReplicaStart::Bootstrap(first) => {
                Start::Bootstrap(self.inner.shared.pool.membership(Arc::new(*first.membership)))
            }
            ReplicaStart::Join => Start::Join,
            ReplicaStart::Restart => Start::Restart,
            ReplicaStart::FromSnapshot { .. } if self.has_replica(group) => Start::Restart,
            ReplicaStart::FromSnapshot { dir, members } => {
                let starter = self.starter().ok_or_else(closed)?;
                let host = self.inner.shared.config.host;
                if starter.is_gone(group, replica) {
                    return Err(StartError::Removed { group, replica });
                }
                begin_from(&self.inner.snapshots, &dir, *members.membership, (group, replica, host))?
            }
        })
    }

    pub(crate) fn starter(&self) -> Option<Arc<Starter>> {
        self.inner.starter()
    }

    pub(crate) fn shared_groups(&self) -> Vec<Arc<GroupShared>> {
        self.inner.shared.groups.read().values().cloned().collect()
    }

    fn start(&self, specs: Vec<StartSpec>) -> Result<Vec<Arc<GroupShared>>, StartError> {
        let starter = self.inner.starter().ok_or_else(closed)?;
        starter.start(specs)
    }

    /// The group's replica on this host, whatever its state machine; a witness too.
    ///
    /// # Errors
    /// [`RequestError::NotHere`] when no replica of the group runs here.
    pub fn replica(&self, group: GroupId) -> Result<Replica, RequestError> {
        Ok(Replica { shared: self.shared(group)? })
    }

    /// The group's replica on this host.
    ///
    /// # Errors
    /// [`RequestError::NotHere`] when no replica of the group runs here, [`RequestError::OtherMachine`] when it was started
    /// with another state machine than `S`.
    pub fn group<S: Machine>(&self, group: GroupId) -> Result<Group<S>, RequestError> {
        let shared = self.shared(group)?;
        if shared.machine_type != TypeId::of::<S>() {
            return Err(RequestError::OtherMachine { group, asked: std::any::type_name::<S>() });
        }
        Ok(Group::new(shared))
    }

    fn shared(&self, group: GroupId) -> Result<Arc<GroupShared>, RequestError> {
        self.inner.shared.group(group).ok_or(RequestError::NotHere(group))
    }

    /// Stops the group's replica on this host; its data stays. Does not wait.
    ///
    /// # Errors
    /// [`RequestError::NotHere`] when it does not run here.
    pub fn stop_replica(&self, group: GroupId) -> Result<(), RequestError> {
        if self.inner.starter().is_some_and(|s| s.stop(group)) { Ok(()) } else { Err(RequestError::NotHere(group)) }
    }

    /// Removes all that the data directory has of the group's replica, which must have been stopped or removed: waits until
    /// it is unloaded, makes it durable that it is gone, deletes its files. Its replica id can't be used here again; the
    /// group may come back under another one.
    ///
    /// # Errors
    /// [`RequestError::StillRunning`] when it runs and was not asked to stop, [`RequestError::NotHere`] when there is nothing
    /// of it.
    pub fn remove_data(&self, group: GroupId) -> Result<Pending<()>, RequestError> {
        self.inner.starter().ok_or(RequestError::Stopped)?.remove_data(group)
    }

    /// Groups whose replica is in the data directory and not running.
    pub fn stopped_groups(&self) -> Vec<GroupId> {
        self.inner.starter().map_or_else(Vec::new, |s| s.stopped())
    }

    /// As [`NodeHost::stopped_groups`], with the replicas.
    pub fn stopped_replicas(&self) -> Vec<(GroupId, ReplicaId)> {
        self.inner.starter().map_or_else(Vec::new, |s| s.stopped_replicas())
    }

    /// A peer lives at another address from now on.
    pub fn set_peer_address(&self, host: HostId, address: SocketAddr) {
        self.inner.registry.set_peer_address(host, address);
        self.inner.transport.connect(host);
    }

    /// Where this host listens.
    pub fn local_address(&self) -> SocketAddr {
        self.inner.transport.local_address()
    }

    /// Snapshots that are on their way to or from other hosts, those that began first first.
    pub fn snapshot_transfers(&self) -> Vec<TransferInfo> {
        self.inner.shared.transfers.list()
    }

    /// Figures of this host, without asking any worker.
    pub fn info(&self) -> HostInfo {
        let shared = &self.inner.shared;
        let groups = self.shared_groups();
        let c = &shared.counters;
        HostInfo {
            host: shared.config.host,
            store: self.inner.store,
            groups: groups.len(),
            silent: shared.peers.silent.load(Ordering::Relaxed),
            suspected_hosts: shared.peers.suspected(),
            leaders: groups.iter().filter(|g| g.leader().is_some_and(|l| l.1 == g.replica)).count(),
            log: self.inner.writer.stats(),
            transport: self.inner.transport.stats(),
            dropped_unknown: c.dropped_unknown.load(Ordering::Relaxed),
            dropped_fenced: c.dropped_fenced.load(Ordering::Relaxed),
            bad_frames: c.bad_frames.load(Ordering::Relaxed),
            quarantined: self.inner.starter().map_or_else(Vec::new, |s| s.quarantined()),
            violations: c.violations.load(Ordering::Relaxed),
            machine_failures: c.machine_failures.load(Ordering::Relaxed),
            stalled: self.stalled(),
            log_memory_bytes: shared.log_memory.bytes(),
            thread_wakes: shared.thread_wakes() + self.inner.writer.notifier.wakes(),
            events_dropped: shared.events.dropped(),
            failed: shared.failed.lock().clone(),
        }
    }

    fn stalled(&self) -> Vec<StalledMachine> {
        let shared = &self.inner.shared;
        let now = shared.clock.now();
        let public = |s: longboat_engine::StalledMachine| StalledMachine {
            group: s.group,
            replica: s.replica,
            lasts: Duration::from_nanos(now.nanos_since(s.since)),
            others_go_on: s.others_go_on,
            in_snapshot: s.in_snapshot,
        };
        shared.stalls.list().into_iter().chain(shared.pool_calls.list()).map(public).collect()
    }

    /// Closes the host: refuses new requests, lets those under way end until `deadline`, ends the rest, seals the log,
    /// joins every thread.
    ///
    /// # Errors
    /// When the log could not be sealed or a thread did not end in time. The host is closed all the same.
    pub fn close(&self, deadline: Duration) -> Result<(), CloseError> {
        self.inner.close(deadline)
    }
}

fn closed() -> StartError {
    StartError::Closed("it is closed".to_owned())
}

/// Copies an export to where the snapshots of a new group's replica are, and says what the replica begins with.
fn begin_from(
    snapshots: &SnapshotStore,
    dir: &Path,
    members: Membership,
    (group, replica, host): (GroupId, ReplicaId, HostId),
) -> Result<Start, StartError> {
    if members.host_of(replica) != Some(host) {
        return Err(StartError::NotAMember { group, replica, host });
    }
    if !members.is_consistent() || members.hosts.values().any(|m| m.host.is_zero()) {
        return Err(StartError::Config("the members need a voter, and ids and hosts that are not zero".to_owned()));
    }
    let change = |header: &mut SnapshotHeader| {
        header.group = group;
        header.epoch = GroupEpoch(1);
        header.meta.membership = members;
    };
    let imported = snapshots.import(dir, replica, change);
    let saved = imported.map_err(|source| StartError::Snapshot { group, dir: dir.to_owned(), source })?;
    Ok(Start::Snapshot(Box::new(SnapshotRecord { meta: saved.meta, bytes: saved.bytes, resets_log: true })))
}

impl std::fmt::Debug for NodeHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeHost").field("host", &self.inner.shared.config.host).finish_non_exhaustive()
    }
}

impl Inner {
    fn starter(&self) -> Option<Arc<Starter>> {
        self.starter.lock().clone()
    }

    fn close(&self, deadline: Duration) -> Result<(), CloseError> {
        let Some(threads) = self.threads.lock().take() else { return Ok(()) };
        let deadline = Instant::now() + deadline;
        self.shared.closing.store(true, Ordering::SeqCst);
        while !self.drained() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(starter) = self.starter.lock().take() {
            let groups: Vec<_> = self.shared.groups.read().keys().copied().collect();
            for group in groups {
                starter.stop(group);
            }
        }
        // Threads are given a moment of their own beyond the requests' deadline.
        let deadline = deadline.max(Instant::now()) + Duration::from_secs(1);
        let closed = threads.close(deadline);
        // Jobs hold the log store, and so the directory's lock. They end at their next step.
        while self.spawner.running() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let closed = closed.and_then(|()| self.jobs_ended());
        // Those that wait for a thread would hold the store for as long as one hangs there.
        self.spawner.drop_waiting();
        self.shared.let_go();
        self.shared.forget_commands();
        self.shared.events.close();
        if let Some(listener) = self.listener.lock().take() {
            join_listener(listener, deadline);
        }
        closed
    }

    /// A job that still runs, though it was told to stop, hangs in the state machine of whoever waits for it.
    fn jobs_ended(&self) -> Result<(), CloseError> {
        if self.spawner.running() == 0 {
            return Ok(());
        }
        let in_use = self.shared.apply.iter().find_map(|inbox| inbox.in_use().into_iter().next());
        in_use.map_or(Ok(()), |(group, replica)| Err(CloseError::Machine { group, replica }))
    }

    /// Nothing waits and nothing is under way.
    fn drained(&self) -> bool {
        self.shared.has_failed.load(Ordering::SeqCst)
            || self.shared.groups.read().values().all(|g| {
                let queued = g.inbox.lock().as_deref().is_some_and(|inbox| !inbox.is_empty());
                !queued && g.published.under_way.load(Ordering::Acquire) == 0
            })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close(DROP_DEADLINE) {
            tracing::error!(%error, "host did not close in order");
        }
    }
}

/// A listener that hangs, or that closes the host itself, is left behind.
fn join_listener(listener: JoinHandle<()>, deadline: Instant) {
    let own = listener.thread().id() == std::thread::current().id();
    while !own && !listener.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    if !own && listener.is_finished() && listener.join().is_err() {
        tracing::error!("the thread of event listeners panicked");
    }
}

/// On few cores, threads beyond the cores cost more than they hide.
fn layout(config: &NodeHostConfig) -> ThreadLayout {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match config.threads {
        crate::Threads::Compact => ThreadLayout::Compact,
        crate::Threads::Auto if cores < 4 => ThreadLayout::Compact,
        _ => ThreadLayout::Separate,
    }
}
