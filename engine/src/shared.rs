//! What threads share: the host, its groups, the inboxes of its workers.
//!
//! Raft state is in none of these: it belongs to one step worker outright.

use crate::client_queue::ClientQueue;
use crate::config::{EngineConfig, UNSYNCED_BYTES_MAX};
use crate::events::{EventQueue, HostEvent, ReplicaEvent};
use crate::give_back::ShedCall;
use crate::memory::LogMemory;
use crate::notify::Notifier;
use crate::openings::Openings;
use crate::queue::Inbox;
use crate::ready::ReadyFlags;
pub use crate::ready::SlotRef;
use crate::replica::Replica;
use crate::request::{Rare, Reply};
use crate::snapshot::PoolCalls;
use crate::snapshot::SnapshotCounters;
use crate::space::DiskSpace;
use crate::stalls::Stalls;
use crate::stores::PeerStores;
use crate::transfers::Transfers;
pub use crate::worker_inbox::WorkerInbox;
use ahash::AHashMap;
use bytes::Bytes;
use longboat_io::Clock;
use longboat_logdb::GroupState;
use longboat_raft::{GroupEpoch, GroupId, HostId, Index, Membership, Message, ReplicaId, Term, plant};
use longboat_rsm::snapshot::Compression;
use longboat_rsm::{AnyReads, DynMachine, Lookups, MachineKind, RequestError, WitnessMachine};
use longboat_transport::Lane;
use longboat_transport::wire::Starts;
use parking_lot::{Mutex, RwLock};
use std::any::TypeId;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Why a group is ready.
pub mod reason {
    /// Its clients left something in the queue.
    pub const QUEUE: u32 = 1;
    /// Enough was applied for a periodic snapshot.
    pub const SNAPSHOT_DUE: u32 = 2;
    /// The store wants its uncommitted tail written again.
    pub const RESEAL: u32 = 4;
    /// The state machine failed: the replica must stop.
    pub const MACHINE_FAILED: u32 = 8;
    /// Nobody holds log any more that was to go.
    pub const TRUNCATE: u32 = 16;
    /// The host has room for another transfer, and the group's followers are the next in line.
    pub const MAY_SEND: u32 = 32;
}

/// Something for a step worker to do that is rare. Those about a replica name that very replica, so that one that was
/// stopped and started again is not taken for its former life.
pub enum Command {
    /// A replica moves in.
    Start(Box<Replica>),
    /// The replica stops.
    Stop(Arc<GroupShared>),
    /// All that the store has of a group goes, once it is unloaded.
    RemoveData(GroupId, Reply<()>),
    /// A client's request of the kind that is rare.
    Request(Arc<GroupShared>, Rare),
    /// A snapshot of the group's own was saved, or was not.
    SnapshotSaved(Arc<GroupShared>, Box<crate::snapshot::SaveOutcome>),
    /// A transfer to a follower ended.
    SnapshotSent {
        /// The replica that sent.
        shared: Arc<GroupShared>,
        /// The follower.
        to: ReplicaId,
        /// Which of the transfers to it.
        number: u64,
        /// Whether all of it arrived.
        ok: bool,
    },
    /// A message that did not come in a frame: a snapshot whose files are durable here.
    Deliver {
        /// The replica that it is for.
        shared: Arc<GroupShared>,
        /// The host that it came from.
        from: HostId,
        /// The message.
        message: Box<Message>,
    },
    /// The state machine was to recover to this index.
    Recovered(Arc<GroupShared>, Index, crate::snapshot::Recovery),
    /// The storage of a stopped replica's state machine was let go of.
    MachineGone(Arc<GroupShared>),
    /// Something about another host.
    Peer(crate::liveness::PeerNews),
    /// A cold read is done.
    Fetched {
        /// The replica that asked.
        shared: Arc<GroupShared>,
        /// The core's ticket.
        ticket: u64,
        /// The entries.
        runs: Result<Vec<longboat_raft::Run>, longboat_logdb::ReadError>,
    },
}

/// A received frame and who sent it.
#[derive(Clone, Debug)]
pub struct InFrame {
    /// The host at the other end of the connection.
    pub from: HostId,
    /// The lane it came on.
    pub lane: Lane,
    /// The frame.
    pub frame: Bytes,
}

/// Figures of a replica that clients read without asking a worker.
#[derive(Debug, Default)]
pub struct Published {
    /// The current term.
    pub term: AtomicU64,
    /// The leader's replica id; 0 when unknown.
    pub leader: AtomicU64,
    /// The commit index.
    pub commit: AtomicU64,
    /// The index just before the first kept entry.
    pub start: AtomicU64,
    /// The last index.
    pub last: AtomicU64,
    /// Through which index the state machine has applied.
    pub applied: AtomicU64,
    /// The index of the newest snapshot.
    pub snapshot: AtomicU64,
    /// Requests that have left the queue and are not resolved, as of the worker's last visit.
    pub under_way: AtomicU64,
    /// It can't go on but from a snapshot of the leader's.
    pub needs_snapshot: AtomicBool,
    /// Chunks of reads that the apply worker has answered.
    pub reads_done: AtomicU64,
    /// Snapshots saved, installed; entries truncated.
    pub counters: SnapshotCounters,
}

/// One replica of this host, as everybody but its worker sees it.
pub struct GroupShared {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// The incarnation of the group's history.
    pub epoch: GroupEpoch,
    /// Which apply worker has it.
    pub apply_worker: usize,
    /// Why it is to be visited, by which step worker, and where that has it.
    flags: ReadyFlags,
    /// What clients left; closed when the replica takes no more requests.
    pub inbox: ClientQueue<Inbox, RequestError>,
    /// Rare requests that wait for the worker.
    pub rare_waiting: AtomicU32,
    /// The next proposal's sequence number.
    pub sequence: AtomicU64,
    /// Figures.
    pub published: Published,
    /// The effective membership.
    pub membership: Mutex<Arc<Membership>>,
    /// The state machine's type: a typed handle of another type is refused.
    pub machine_type: TypeId,
    /// It is a witness: nothing is applied, saved or recovered.
    pub witness: bool,
    /// The kind of the state machine.
    pub kind: MachineKind,
    /// The state machine. The apply worker locks it once per batch; stale reads lock it where there is nothing in `lookups`.
    pub machine: Arc<Mutex<Box<dyn DynMachine>>>,
    /// Answers reads without the state machine, for the kinds that can.
    lookups: Option<Arc<dyn Lookups>>,
    /// Set when it was asked to stop, or was removed: it will not run for long.
    pub stopping: AtomicBool,
    /// Client sessions that the group keeps, as a registration that is made here says.
    pub sessions_max: u32,
    /// The state machine stands nowhere: no snapshot could be recovered, and a leader's has not come yet.
    pub machine_lost: AtomicBool,
    /// What most replicas have nothing of.
    seldom: Mutex<Option<Box<SeldomShared>>>,
    /// The state machine's storage was let go of: another life of the replica may open it.
    pub machine_gone: AtomicBool,
    /// How its snapshots are compressed.
    pub compression: Compression,
    /// How the commands that are proposed here are compressed.
    pub entry_compression: Compression,
    /// Applied entries between periodic snapshots; 0 for none.
    pub snapshot_entries: u64,
    /// The applied index at which the next periodic snapshot is due.
    pub snapshot_due: AtomicU64,
    /// The host.
    pub host: Arc<HostShared>,
}

/// Spreads groups over workers, whatever their ids have in common.
const fn spread(group: GroupId) -> usize {
    (group.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize
}

/// What of a replica only its snapshots need, in memory only while they do.
#[derive(Default)]
struct SeldomShared {
    /// Older snapshots from which the log can bring the state machine up to date, newest first: for its first recovery.
    fallbacks: Vec<Index>,
    /// What stops each of the saves and recoveries that are asked for or under way; of those that have ended nothing is left to
    /// stop.
    saves: Vec<Weak<AtomicBool>>,
    recoveries: Vec<Weak<AtomicBool>>,
}

fn new_stop(among: &mut Vec<Weak<AtomicBool>>) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    among.retain(|other| other.strong_count() > 0);
    among.push(Arc::downgrade(&stop));
    stop
}

/// What a replica is made of, for [`GroupShared::new`].
pub struct GroupParts {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// The incarnation of the group's history.
    pub epoch: GroupEpoch,
    /// The effective membership.
    pub membership: Arc<Membership>,
    /// The state machine.
    pub machine: Box<dyn DynMachine>,
    /// The type of the state machine.
    pub machine_type: TypeId,
    /// It is a witness.
    pub witness: bool,
    /// Client sessions that the group keeps.
    pub sessions_max: u32,
    /// How its snapshots are compressed.
    pub compression: Compression,
    /// How the commands that are proposed here are compressed.
    pub entry_compression: Compression,
    /// Applied entries between periodic snapshots; 0 for none.
    pub snapshot_entries: u64,
    /// The sequence number of the first proposal: random, so that an answer meant for a former life matches none of this one's.
    pub first_sequence: u64,
}

impl GroupShared {
    /// The step worker that a group of this id is given to.
    pub fn worker_for(host: &HostShared, group: GroupId) -> usize {
        spread(group) % host.workers.len()
    }

    /// A replica that is yet to move in with its worker.
    pub fn new(host: &Arc<HostShared>, parts: GroupParts) -> Arc<Self> {
        let spread = spread(parts.group);
        Arc::new(Self {
            group: parts.group,
            replica: parts.replica,
            epoch: parts.epoch,
            apply_worker: spread % host.apply.len(),
            flags: ReadyFlags::new(spread % host.workers.len()),
            inbox: ClientQueue::default(),
            rare_waiting: AtomicU32::new(0),
            sequence: AtomicU64::new(parts.first_sequence),
            machine_type: parts.machine_type,
            published: Published::default(),
            membership: Mutex::new(parts.membership),
            witness: parts.witness,
            kind: parts.machine.kind(),
            lookups: parts.machine.lookups(),
            machine: Arc::new(Mutex::new(parts.machine)),
            stopping: AtomicBool::new(false),
            sessions_max: parts.sessions_max,
            seldom: Mutex::new(None),
            machine_lost: AtomicBool::new(false),
            machine_gone: AtomicBool::new(false),
            compression: parts.compression,
            entry_compression: parts.entry_compression,
            snapshot_entries: parts.snapshot_entries,
            snapshot_due: AtomicU64::new(u64::MAX),
            host: Arc::clone(host),
        })
    }

    /// Answers reads: without the state machine where its kind can, else with the one given, else with it locked. A lookup
    /// that panics fails its reads and stops nothing.
    pub fn lookup(&self, machine: Option<&dyn DynMachine>, mut reads: Box<dyn AnyReads>) {
        if reads.answer_applied(Index(self.published.applied.load(Ordering::Acquire))) {
            return;
        }
        if self.machine_lost.load(Ordering::SeqCst) {
            return reads.fail(&RequestError::StateLost);
        }
        crate::apply::guarded(reads, |reads| match (&self.lookups, machine) {
            (Some(lookups), _) => lookups.lookup(reads),
            (None, Some(machine)) => machine.lookup(reads),
            (None, None) => self.machine.lock().lookup(reads),
        });
    }

    /// Sets a reason; on the first one the group goes on its worker's ready list and the worker is woken if it sleeps.
    pub fn ready(&self, reason: u32) {
        self.enlist(self.flags.set(reason));
    }

    fn enlist(&self, place: Option<(usize, SlotRef)>) {
        if let Some((worker, at)) = place {
            self.host.workers[worker].ready(at);
        }
    }

    /// Which step worker has it.
    pub fn worker(&self) -> usize {
        self.flags.worker()
    }

    /// Takes the reasons. The queues must be drained after this, not before.
    pub fn take_reasons(&self) -> u32 {
        self.flags.take()
    }

    /// The replica has moved into this slot of its worker.
    pub fn moved_in(&self, at: SlotRef) {
        self.enlist(self.flags.moved_in(at));
    }

    /// Takes no more requests from here on; they fail with `error`.
    pub fn close(&self, error: RequestError) {
        self.inbox.close(error);
        // A save that is asked for after this look is refused when its turn comes: the replica is closed by then.
        self.stop_saves();
        let recoveries = self.seldom.lock().as_mut().map(|s| std::mem::take(&mut s.recoveries)).unwrap_or_default();
        recoveries.iter().filter_map(Weak::upgrade).for_each(|stop| stop.store(true, Ordering::SeqCst));
    }

    /// What will stop the save that is about to be queued.
    pub(crate) fn new_save(&self) -> Arc<AtomicBool> {
        new_stop(&mut self.seldom.lock().get_or_insert_default().saves)
    }

    /// What will stop the recovery that is about to begin.
    pub(crate) fn new_recovery(&self) -> Arc<AtomicBool> {
        let stop = new_stop(&mut self.seldom.lock().get_or_insert_default().recoveries);
        // Noted before this look: whoever closes the replica after it finds it.
        if self.is_closed() {
            stop.store(true, Ordering::SeqCst);
        }
        stop
    }

    /// The snapshots to which the state machine's first recovery may fall back, newest first.
    pub(crate) fn set_fallbacks(&self, fallbacks: Vec<Index>) {
        if !fallbacks.is_empty() {
            self.seldom.lock().get_or_insert_default().fallbacks = fallbacks;
        }
    }

    /// Takes what [`GroupShared::set_fallbacks`] left.
    pub(crate) fn take_fallbacks(&self) -> Vec<Index> {
        self.seldom.lock().as_mut().map(|s| std::mem::take(&mut s.fallbacks)).unwrap_or_default()
    }

    /// Stops all saves at their next block. Returns whether there were any.
    pub(crate) fn stop_saves(&self) -> bool {
        let saves = self.seldom.lock().as_mut().map(|s| std::mem::take(&mut s.saves)).unwrap_or_default();
        let running = saves.iter().filter_map(Weak::upgrade).filter(|_| !plant::is("abort-not-seen"));
        running.map(|stop| stop.store(true, Ordering::SeqCst)).count() > 0
    }

    /// Whether requests are refused.
    pub fn is_closed(&self) -> bool {
        self.inbox.is_closed()
    }

    /// Why requests are refused, if they are.
    pub fn refusal(&self) -> Option<RequestError> {
        self.inbox.refusal()
    }

    /// Tells what happened to this replica, if anybody listens.
    pub fn tell(&self, what: impl FnOnce() -> ReplicaEvent) {
        if self.host.events.is_on() {
            let (group, replica) = (self.group, self.replica);
            self.host.events.tell(HostEvent::Replica { group, replica, what: what() });
        }
    }

    /// The leader's term and replica, if one is known.
    pub fn leader(&self) -> Option<(Term, ReplicaId)> {
        let leader = ReplicaId(self.published.leader.load(Ordering::Acquire));
        (!leader.is_zero()).then(|| (Term(self.published.term.load(Ordering::Acquire)), leader))
    }
}

impl std::fmt::Debug for GroupShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupShared")
            .field("group", &self.group)
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

/// Counters of a host.
#[derive(Debug, Default)]
pub struct HostCounters {
    /// Messages for groups or replicas that are not here, or from hosts that do not hold their sender.
    pub dropped_unknown: AtomicU64,
    /// Messages of another epoch of their group.
    pub dropped_epoch: AtomicU64,
    /// Messages of members whose hosts lost the stores that they spoke from.
    pub dropped_fenced: AtomicU64,
    /// Frames of hosts that have not shown yet that their store has all that it had.
    pub dropped_doubted: AtomicU64,
    /// Frames that were malformed.
    pub bad_frames: AtomicU64,
    /// Frames that were dropped because a worker had too much waiting.
    pub dropped_full: AtomicU64,
    /// Replicas stopped because of a contradiction in what they were told.
    pub violations: AtomicU64,
    /// Replicas stopped because their state machine failed.
    pub machine_failures: AtomicU64,
}

/// What all threads of a host share.
pub struct HostShared {
    /// Settings.
    pub config: EngineConfig,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Inboxes of the step workers.
    pub workers: Vec<WorkerInbox>,
    /// Inboxes of the apply workers.
    pub apply: Vec<crate::apply::ApplyInbox>,
    /// What replicas have in common.
    pub pool: crate::pool::Pool,
    /// The groups on this host.
    pub groups: RwLock<AHashMap<GroupId, Arc<GroupShared>>>,
    /// Groups that were stopped because of a contradiction: they stay so while the host runs.
    pub quarantined: Mutex<AHashMap<GroupId, (GroupEpoch, Arc<Membership>)>>,
    /// What the store holds of groups that are not running. Locked before `groups` where both are.
    pub stopped: Mutex<AHashMap<GroupId, GroupState>>,
    /// Groups whose tombstone is not durable yet, or whose files are still going: none of them starts. With whoever asked for
    /// that again. Added to with `stopped` locked.
    pub burying: Mutex<AHashMap<GroupId, Vec<Reply<()>>>>,
    /// Bytes that were sealed and are not durable yet.
    pub unsynced_bytes: AtomicU64,
    /// Bytes of log in memory.
    pub log_memory: LogMemory,
    /// The stores that other hosts have, and who is not to be believed.
    pub stores: PeerStores,
    /// The openings of the own store.
    pub openings: Openings,
    /// Room on the disk.
    pub space: DiskSpace,
    /// The journal is far beyond its bound.
    pub log_overfull: AtomicBool,
    /// Set when the log store failed: nothing is released any more.
    pub failed: Mutex<Option<String>>,
    /// Set together with `failed`; checked without a lock.
    pub has_failed: AtomicBool,
    /// Set when the host closes.
    pub closing: AtomicBool,
    /// Counters.
    pub counters: HostCounters,
    /// The other hosts, and what is silent between them and this one.
    pub peers: crate::liveness::peers::PeerTable,
    /// What happens, for a listener.
    pub events: EventQueue,
    /// Snapshots on their way between this host and others.
    pub transfers: Transfers,
    /// State machines that hang.
    pub stalls: Stalls,
    /// What the snapshot pool does with state machines.
    pub pool_calls: PoolCalls,
    /// Asks the workers to let go of buffers.
    pub shed: ShedCall,
}

impl HostShared {
    /// How often threads that step or apply were woken. One thread may run several workers.
    pub fn thread_wakes(&self) -> u64 {
        let all = self.workers.iter().map(|w| &w.notifier).chain(self.apply.iter().map(|a| &a.notifier));
        let mut distinct: Vec<&Arc<Notifier>> = Vec::new();
        for notifier in all {
            if !distinct.iter().any(|known| Arc::ptr_eq(known, notifier)) {
                distinct.push(notifier);
            }
        }
        distinct.iter().map(|notifier| notifier.wakes()).sum()
    }

    /// What this host has started so far. What is said of a replica that does not run here is said as of this, read before it was
    /// looked for: what moves in later counts itself later.
    pub(crate) fn starts(&self) -> Starts {
        Starts { incarnation: self.config.incarnation, count: self.peers.starts() }
    }

    /// Whether the group's replica does not run here, but once did.
    pub fn was_here(&self, group: GroupId) -> bool {
        (self.stopped.lock().contains_key(&group) || self.quarantined.lock().contains_key(&group))
            && !self.groups.read().contains_key(&group)
    }

    /// The group's replica on this host.
    pub fn group(&self, group: GroupId) -> Option<Arc<GroupShared>> {
        self.groups.read().get(&group).cloned()
    }

    /// Leaves a command with a worker, or, if the workers are gone, lets go of it: what waits for it is told so.
    pub fn command(&self, worker: usize, command: Command) {
        self.workers[worker].command(command);
    }

    /// The host's threads have ended, and so have the jobs of its pool: what is left of its replicas is let go of, their
    /// state machines with their storage above all, so that this process can open them again. Threads that end may leave
    /// things undone, and the replicas and the host hold each other.
    pub fn let_go(&self) {
        let groups: Vec<_> = self.groups.write().drain().map(|(_, shared)| shared).collect();
        for shared in groups {
            shared.close(RequestError::Stopped);
            if let Some(inbox) = shared.inbox.take() {
                inbox.fail(&RequestError::Stopped);
            }
            // One that is locked is in the hands of a thread that hangs, and goes with it.
            let machine = shared.machine.try_lock().map(|mut m| std::mem::replace(&mut *m, Box::new(WitnessMachine)));
            if std::panic::catch_unwind(AssertUnwindSafe(|| drop(machine))).is_err() {
                tracing::error!(group = %shared.group, "a state machine panicked as it was dropped");
            }
        }
        self.apply.iter().for_each(crate::apply::ApplyInbox::clear);
    }

    /// No worker runs a round any more.
    pub fn forget_commands(&self) {
        self.workers.iter().for_each(WorkerInbox::worker_is_gone);
    }

    /// Whether workers may take proposals: the disk keeps up.
    pub fn takes_proposals(&self) -> bool {
        self.unsynced_bytes.load(Ordering::Relaxed) < UNSYNCED_BYTES_MAX && !self.log_overfull.load(Ordering::Relaxed)
    }

    /// The log store failed: no message that depends on it leaves, requests end, nothing is retried.
    pub fn fail(&self, reason: &str) {
        {
            let mut failed = self.failed.lock();
            if failed.is_some() {
                return;
            }
            *failed = Some(reason.to_owned());
        }
        self.has_failed.store(true, Ordering::SeqCst);
        tracing::error!(reason, "log store failed, the host stops serving");
        self.events.tell(HostEvent::LogFailed(reason.to_owned()));
        for worker in &self.workers {
            worker.notifier.notify();
        }
    }
}

impl std::fmt::Debug for HostShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostShared").field("host", &self.config.host).finish_non_exhaustive()
    }
}
