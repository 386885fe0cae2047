//! Starting and stopping replicas. Never blocks on workers, and may be called from inside a state machine.

use crate::config::ReplicaConfig;
use crate::events::ReplicaEvent;
use crate::log_writer::{SealedBatch, WriterInbox};
use crate::open::{Beginning, Opened};
use crate::replica::Replica;
use crate::request::Reply;
use crate::shared::{Command, GroupParts, GroupShared, HostShared};
use crate::snapshot::{SnapshotIo, machine_failed};
use crate::stored::{QuarantinedReplica, is_blank};
use ahash::{AHashMap, AHashSet};
use longboat_logdb::{Bootstrap, GroupState, LogReader, ReadError, Record, SnapshotRecord, Update};
use longboat_raft::{
    Core, CoreConfig, GroupEpoch, GroupId, Guard, HardState, HostId, Index, LogPos, Membership, ReplicaId, ReplicaKind,
    Restored, Run, SnapshotMeta, Time, Violation, plant,
};
use longboat_rsm::snapshot::{SnapshotError, SnapshotStore};
use longboat_rsm::{DynMachine, Pending, RequestError, WitnessMachine};
use parking_lot::Mutex;
use std::any::TypeId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Election timeouts for which a write may be under way before a leader takes its disk to hang. One would do for a disk that is as
/// fast as the others'; where all are slow, a new leader would be no better.
const DISK_PATIENCE: u64 = 2;

/// How a replica comes to be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the group's first membership, the same on every host. Continues a replica that is here already.
    Bootstrap(Arc<Membership>),
    /// Joins a group that has added it: the leader will tell it everything.
    Join,
    /// Continues a replica that is here already.
    Restart,
    /// A group's history begins with this snapshot, whose file is durable here, on every host of its members.
    Snapshot(Box<SnapshotRecord>),
}

/// Why a replica was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It runs already.
    #[error("group {0} is already started on this host")]
    AlreadyStarted(GroupId),
    /// The data of a replica of it that was here is being removed; it can be started under another id once that is done.
    #[error("the data of group {0} is being removed from this host")]
    BeingRemoved(GroupId),
    /// There is nothing to restart.
    #[error("group {0} has no replica in this data directory")]
    NotFound(GroupId),
    /// The directory holds another replica of the group.
    #[error("group {group} is replica {found} in this data directory, not {asked}")]
    OtherReplica {
        /// The group.
        group: GroupId,
        /// The configured replica.
        asked: ReplicaId,
        /// The one that is here.
        found: ReplicaId,
    },
    /// It was removed from its group; its id is never used again.
    #[error("replica {replica} of group {group} was removed and can't come back")]
    Removed {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
    },
    /// It is a witness and was started with a state machine, or the other way round.
    #[error("replica {replica} of group {group} is of kind {kind:?} in its group's membership")]
    OtherKind {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
        /// What the group takes it for.
        kind: ReplicaKind,
    },
    /// The first membership does not name the replica on this host.
    #[error("group {group}: the first membership does not name replica {replica} on host {host}")]
    NotAMember {
        /// This host.
        host: HostId,
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
    },
    /// The storage of its state machine can't be opened. Started along with others, such a replica stops with an event, and
    /// the others start.
    #[error("state machine of group {group}: {reason}")]
    Machine {
        /// The group.
        group: GroupId,
        /// What the state machine said.
        reason: String,
    },
    /// It has a state machine, and none was given to start it with.
    #[error("group {0} has a state machine here, and none was given to start it with")]
    NoMachine(GroupId),
    /// The snapshot that it was to begin from is damaged, holds no state, or can't be copied.
    #[error("group {group} can't begin from the snapshot in {}: {source}", dir.display())]
    Snapshot {
        /// The group.
        group: GroupId,
        /// The snapshot's directory.
        dir: std::path::PathBuf,
        /// What went wrong.
        source: SnapshotError,
    },
    /// Its log can't be read.
    #[error("log of group {group} can't be read: {source}")]
    Log {
        /// The group.
        group: GroupId,
        /// What went wrong.
        source: ReadError,
    },
    /// Its stored state contradicts itself.
    #[error("stored state of group {group} is contradictory: {source}")]
    Contradiction {
        /// The group.
        group: GroupId,
        /// What contradicts what.
        source: Violation,
    },
    /// It was stopped because of a contradiction, which the log of the host tells.
    #[error(
        "group {0} was stopped because of a contradiction in its state; see the host's log, restart the host or replace the replica"
    )]
    Quarantined(GroupId),
    /// A part of what it had made durable was damaged on the disk: it may have voted and acknowledged what nobody remembers.
    #[error(
        "replica {replica} of group {group} is quarantined: record {record} of the journal is damaged; remove its data and put another in its place, under a new id"
    )]
    Rotten {
        /// The group.
        group: GroupId,
        /// The replica that was here.
        replica: ReplicaId,
        /// The record of the journal.
        record: u64,
    },
    /// As before, and the damage may have taken which replica it was: the group can't come back to this data directory.
    #[error(
        "group {group} is quarantined: record {record} of the journal is damaged, and which replica was here is not known; put another in its place, on another host"
    )]
    RottenUnknown {
        /// The group.
        group: GroupId,
        /// The record of the journal.
        record: u64,
    },
    /// Its configuration is out of limits.
    #[error("configuration: {0}")]
    Config(String),
    /// The host is closing, or its log store failed.
    #[error("the host takes no more replicas: {0}")]
    Closed(String),
}

/// One replica to start.
pub struct StartSpec {
    /// How it comes to be.
    pub start: Start,
    /// Settings.
    pub config: ReplicaConfig,
    /// Its state machine, empty.
    pub machine: Box<dyn DynMachine>,
    /// The state machine's type.
    pub machine_type: TypeId,
}

/// Bytes of log that a starting replica reads at once.
const READ_BYTES: usize = 4 << 20;
/// Bytes of appends to one follower that may be on the way unacknowledged.
const INFLIGHT_BYTES_MAX: u64 = 64 << 20;
/// Appends to one follower that may be on the way unacknowledged.
const INFLIGHT_APPENDS_MAX: usize = 256;
/// The first epoch of a group's history; imports raise it.
const FIRST_EPOCH: GroupEpoch = GroupEpoch(1);

/// Starts and stops replicas of one host.
pub struct Starter {
    pub(crate) host: Arc<HostShared>,
    writer: Arc<WriterInbox>,
    pub(crate) reader: Arc<dyn LogReader>,
    /// One start at a time: what is stored of a group is looked up, and only later replaced.
    starting: Mutex<()>,
    /// Groups whose state machine is being opened: nobody else opens it meanwhile.
    opening: Mutex<AHashSet<GroupId>>,
    /// Lives of replicas that began here since the host started.
    lives: AtomicU64,
    snapshots: Arc<SnapshotIo>,
}

/// Groups that one call is about to start.
struct Claim<'a> {
    starter: &'a Starter,
    groups: Vec<GroupId>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut opening = self.starter.opening.lock();
        for group in &self.groups {
            opening.remove(group);
        }
    }
}

impl Starter {
    pub(crate) fn new(
        host: Arc<HostShared>,
        writer: Arc<WriterInbox>,
        reader: Arc<dyn LogReader>,
        snapshots: Arc<SnapshotIo>,
        groups: Vec<GroupState>,
    ) -> Arc<Self> {
        let states: AHashMap<_, _> = groups.into_iter().map(|s| (s.group, s)).collect();
        remove_orphans(&snapshots, &states);
        *host.stopped.lock() = states;
        Arc::new(Self {
            host,
            writer,
            reader,
            starting: Mutex::default(),
            opening: Mutex::default(),
            lives: AtomicU64::default(),
            snapshots,
        })
    }

    /// The groups that the store holds and that are not running, sorted.
    pub fn stopped(&self) -> Vec<GroupId> {
        let mut groups: Vec<_> = self.host.stopped.lock().values().filter(|s| !s.removed).map(|s| s.group).collect();
        groups.sort_unstable();
        groups
    }

    /// The replicas that the store holds and that are not running, sorted.
    pub fn stopped_replicas(&self) -> Vec<(GroupId, ReplicaId)> {
        let stopped = self.host.stopped.lock();
        let mut found: Vec<_> =
            stopped.values().filter(|s| !s.removed).map(|s| (s.group, s.bootstrap.replica)).collect();
        found.sort_unstable();
        found
    }

    /// Starts replicas: all that is new of them is one journal batch. Either all start or none.
    ///
    /// # Errors
    /// The first replica that can't be started, and why.
    pub fn start(&self, specs: Vec<StartSpec>) -> Result<Vec<Arc<GroupShared>>, StartError> {
        if self.host.closing.load(Ordering::SeqCst) {
            return Err(StartError::Closed("it is closing".to_owned()));
        }
        if let Some(reason) = self.host.failed.lock().clone() {
            return Err(StartError::Closed(reason));
        }
        let alone = specs.len() == 1;
        let (specs, _claim) = self.open_all(specs)?;
        if let [(spec, opened)] = &specs[..]
            && let Some(reason) = opened.failed.clone()
        {
            return Err(StartError::Machine { group: spec.config.group, reason });
        }
        let _one_at_a_time = self.starting.lock();
        let mut built = Vec::with_capacity(specs.len());
        let (mut continued, mut new) = (Vec::new(), Vec::new());
        for (spec, opened) in specs {
            let group = spec.config.group;
            if self.host.groups.read().contains_key(&group) {
                return Err(StartError::AlreadyStarted(group));
            }
            if self.host.quarantined.lock().contains_key(&group) {
                return Err(StartError::Quarantined(group));
            }
            if self.host.burying.lock().contains_key(&group) && !plant::is("started-before-a-tombstone") {
                return Err(StartError::BeingRemoved(group));
            }
            // Reading the log may take long: the table is not locked meanwhile.
            let state = self.host.stopped.lock().get(&group).cloned();
            let (replica, first) = self.build(spec, opened, state)?;
            if let Some(error) = replica.shared.refusal().filter(|_| alone) {
                return Err(StartError::Machine { group, reason: error.to_string() });
            }
            match first {
                Some(hard_state) => new.push((built.len(), hard_state)),
                None => continued.push(group),
            }
            built.push(replica);
        }
        let started: Vec<_> = built.iter().map(|r| Arc::clone(&r.shared)).collect();
        {
            let mut states = self.host.stopped.lock();
            // A worker may have begun, or begun and ended, to remove the data of one of these while its log was read.
            let burying = self.host.burying.lock();
            let is_gone = |group: &GroupId| states.get(group).is_none_or(|s| s.removed);
            let found = started
                .iter()
                .map(|s| &s.group)
                .find(|g| burying.contains_key(g) && !plant::is("started-before-a-tombstone"));
            let found = found.or_else(|| continued.iter().find(|g| is_gone(g)));
            if let Some(group) = found {
                return Err(StartError::BeingRemoved(*group));
            }
            drop(burying);
            let mut running = self.host.groups.write();
            // Opening and reading may have taken long. A host says that it closes before it lets go, with this locked, of what
            // runs: what comes after that nobody would stop.
            if self.host.closing.load(Ordering::SeqCst) && !plant::is("started-while-closing") {
                return Err(StartError::Closed("it is closing".to_owned()));
            }
            for shared in &started {
                states.remove(&shared.group);
                running.insert(shared.group, Arc::clone(shared));
            }
        }
        // Made when all replicas are: between them in memory they would leave holes, of which thousands are much.
        let first = |record: fn(&Replica) -> Option<Record>| {
            let records =
                new.iter().filter_map(|(at, hard_state)| Some((&built[*at], *hard_state, record(&built[*at])?)));
            records.map(|(replica, hard_state, record)| first_update(replica, hard_state, record)).collect::<Vec<_>>()
        };
        let updates = first(|replica| Some(Record::Bootstrap(replica.stored_state().bootstrap)));
        let snapshots = first(|replica| replica.snapshot.as_deref().cloned().map(Record::Snapshot));
        // Left before the replicas move in: whatever they persist comes after their bootstrap records.
        for updates in [updates, snapshots].into_iter().filter(|u| !u.is_empty()) {
            self.writer.push(SealedBatch { updates, ..SealedBatch::default() });
        }
        for replica in built {
            let worker = replica.shared.worker();
            self.host.workers[worker].command(Command::Start(replica));
        }
        Ok(started)
    }

    /// Opens the storage of the state machines, with nothing locked: that is the users' code, and may take long. A replica that
    /// runs, or is being started by somebody else, may use its storage: then nothing is opened.
    fn open_all(&self, specs: Vec<StartSpec>) -> Result<(Vec<(StartSpec, Opened)>, Claim<'_>), StartError> {
        let mut claim = Claim { starter: self, groups: Vec::with_capacity(specs.len()) };
        {
            let mut opening = self.opening.lock();
            let running = self.host.groups.read();
            for group in specs.iter().map(|s| s.config.group) {
                // One that is quarantined is gone from the running ones at once, and was listed before: its jobs may still
                // be at work on the storage.
                let quarantined = !running.contains_key(&group) && self.host.quarantined.lock().contains_key(&group);
                if quarantined && !plant::is("storage-opened-while-in-use") {
                    drop((opening, running));
                    return Err(StartError::Quarantined(group));
                }
                if running.contains_key(&group) || !opening.insert(group) {
                    drop((opening, running));
                    return Err(StartError::AlreadyStarted(group));
                }
                claim.groups.push(group);
            }
        }
        let open = |mut spec: StartSpec| {
            let machine = std::mem::replace(&mut spec.machine, Box::new(WitnessMachine));
            (spec, Opened::open(machine))
        };
        Ok((specs.into_iter().map(open).collect(), claim))
    }

    /// The replica as it was left, or a new one, and of a new one what its records say of term, vote and commit.
    fn build(
        &self,
        spec: StartSpec,
        mut opened: Opened,
        state: Option<GroupState>,
    ) -> Result<(Box<Replica>, Option<HardState>), StartError> {
        let StartSpec { start, config, machine_type, .. } = spec;
        let (group, id) = (config.group, config.replica);
        if state.as_ref().is_some_and(|s| s.bootstrap.gone.contains(&id)) {
            return Err(StartError::Removed { group, replica: id });
        }
        if let Some(rotten) = state.as_ref().and_then(QuarantinedReplica::of)
            && !plant::is("quarantined-replica-started")
        {
            return Err(rotten.refusal());
        }
        let (state, new) = match state {
            // Of a start from a snapshot that a crash has cut short, nothing but its first record may be here.
            Some(state) if !(state.removed || matches!(start, Start::Snapshot(_)) && is_blank(&state)) => {
                (state, false)
            }
            former => {
                let mut first = first_state(start, group, id, self.host.config.host)?;
                // What was removed from here stays removed under whatever id the group comes back.
                first.bootstrap.gone = former.map(|s| s.bootstrap.gone).unwrap_or_default();
                (first, true)
            }
        };
        if state.bootstrap.replica != id {
            return Err(StartError::OtherReplica { group, asked: id, found: state.bootstrap.replica });
        }
        let snapshot = state.snapshot.as_ref().map(|s| s.meta.clone());
        let applied = snapshot.as_ref().map_or(Index::ZERO, |s| s.pos.index);
        let membership = snapshot.as_ref().map_or_else(|| state.bootstrap.membership.clone(), |s| s.membership.clone());
        check_kind(&config, &membership)?;
        let membership = self.host.pool.membership(Arc::new(membership));
        let epoch = state.bootstrap.epoch;
        let beginning = Beginning::find(&mut opened, self.snapshots.store(), (group, id), state.snapshot.as_ref());
        let restored = Restored {
            hard_state: state.hard_state,
            membership: Arc::clone(&membership),
            start: state.start,
            last: state.last,
            terms: state.terms.clone(),
            runs: self.read_log(group, applied.next(), state.last.index)?,
            applied,
            machine: beginning.machine,
            guard: beginning.guard,
        };
        let seed = mix(self.host.config.seed, group.0, id.0);
        let core_config = self.core_config(&config, seed);
        let mut core = Core::new(core_config, restored, self.host.clock.now())
            .map_err(|source| StartError::Contradiction { group, source })?;
        let shared_config = self.host.pool.config(core.shared_config());
        core.share(&membership, &shared_config);
        core.start_early(mix(0, group.0, 0));
        let snapshot_entries = config.snapshot_entries;
        let life = self.new_life(seed);
        let first_sequence = (life >> 16) + 1;
        let parts = GroupParts {
            group,
            replica: id,
            epoch,
            membership,
            machine: opened.machine,
            machine_type,
            witness: config.witness,
            sessions_max: config.sessions_max,
            compression: config.snapshot_compression,
            entry_compression: config.entry_compression,
            snapshot_entries,
            first_sequence,
        };
        let shared = GroupShared::new(&self.host, parts);
        shared.published.snapshot.store(applied.0, Ordering::Relaxed);
        if snapshot_entries > 0 {
            shared.snapshot_due.store(applied.0 + snapshot_entries, Ordering::Relaxed);
        }
        if beginning.stands {
            shared.published.applied.store(applied.0, Ordering::Release);
        }
        if beginning.guard != Guard::None {
            shared.tell(|| ReplicaEvent::SnapshotNeeded);
        }
        let older =
            self.older_snapshots(&shared, snapshot.as_ref().filter(|_| beginning.recover.is_some()), state.start);
        let mut replica = Replica::new(shared, core, &config, state.bootstrap, life);
        if let Some(meta) = beginning.recover {
            replica.seldom.recover_first = Some(Box::new(meta));
        }
        replica.recovered = if beginning.stands { applied } else { Index::ZERO };
        if let Some(reason) = opened.failed {
            machine_failed(&replica.shared, reason);
        }
        let surplus = older.len().saturating_sub(replica.config.snapshots_kept.max(1) as usize - 1);
        if surplus < older.len() {
            replica.seldom.older = older[surplus..].to_vec();
        }
        replica.last_request = applied;
        replica.recorded = applied;
        replica.snapshot = state.snapshot.map(Box::new);
        // Whoever looks at the replica before its worker does sees what it starts from.
        replica.publish();
        Ok((Box::new(replica), new.then_some(state.hard_state)))
    }

    /// The snapshots before the recorded one from which the log can bring the state machine up to date, ascending. Those are
    /// what its first recovery falls back to.
    fn older_snapshots(&self, shared: &GroupShared, newest: Option<&SnapshotMeta>, start: LogPos) -> Vec<Index> {
        let Some(newest) = newest.filter(|_| !shared.witness) else { return Vec::new() };
        let found = self.snapshots.store().list(shared.group, shared.replica).unwrap_or_default();
        let reached = |index: &Index| *index >= start.index && *index < newest.pos.index;
        let older: Vec<Index> = found.into_iter().filter(reached).collect();
        shared.set_fallbacks(older.iter().rev().copied().collect());
        older
    }

    /// The number that a life of a replica is known by in what it proposes.
    ///
    /// Invariant: no two lives of a replica have the same one. Its host's seed is another in each life of the host, and within
    /// one the lives are counted: a clock would not do, since two starts may fall into one moment of it. Two lives with one number
    /// would name two proposals alike, and the log's entry of the former would complete the latter, which may be lost.
    fn new_life(&self, seed: u64) -> u64 {
        let count = match plant::is("life-from-the-clock") {
            true => self.host.clock.now().0,
            false => self.lives.fetch_add(1, Ordering::Relaxed),
        };
        mix(seed, count, 1) | 1
    }

    fn core_config(&self, config: &ReplicaConfig, seed: u64) -> CoreConfig {
        CoreConfig {
            replica: config.replica,
            seed,
            election_timeout_nanos: config.election_timeout_nanos,
            heartbeat_interval_nanos: config.heartbeat_interval_nanos,
            // A chunk is closed when it has passed its bound: it still goes out whole.
            append_bytes_max: 2 * crate::config::CHUNK_BYTES_MAX,
            inflight_appends_max: INFLIGHT_APPENDS_MAX,
            inflight_bytes_max: INFLIGHT_BYTES_MAX,
            log_cache_bytes_max: self.host.config.log_cache_bytes_max,
            unapplied_bytes_max: config.unapplied_bytes_max,
            pre_vote: config.pre_vote,
            check_quorum: config.check_quorum,
            preferred: config.preferred,
            witness: config.witness,
            quiesce_after_nanos: config.quiesce_after_nanos,
            disk_patience_nanos: DISK_PATIENCE * config.election_timeout_nanos,
            ..CoreConfig::default()
        }
    }

    fn read_log(&self, group: GroupId, mut lo: Index, hi: Index) -> Result<Vec<Run>, StartError> {
        let mut runs = Vec::new();
        while lo <= hi {
            let mut read =
                self.reader.entries(group, lo, hi, READ_BYTES).map_err(|source| StartError::Log { group, source })?;
            let last = read.last().expect("a read gives at least one entry").last();
            runs.append(&mut read);
            lo = last.next();
        }
        Ok(runs)
    }

    /// Removes all that the store has of a replica that is stopped, or is stopping.
    ///
    /// # Errors
    /// [`RequestError::StillRunning`] when it runs, [`RequestError::NotHere`] when there is nothing of it,
    /// [`RequestError::ReplicaNotKnown`] when it is quarantined and nobody knows under which id.
    pub fn remove_data(&self, group: GroupId) -> Result<Pending<()>, RequestError> {
        let running = self.host.group(group);
        if running.as_ref().is_some_and(|s| !s.stopping.load(Ordering::SeqCst)) {
            return Err(RequestError::StillRunning(group));
        }
        let (pending, reply) = Reply::new(Time(u64::MAX));
        let states = self.host.stopped.lock();
        // Whoever asks again is told when the first one is. Before that it would be untrue that there is nothing: if the host
        // dies before the tombstone is durable, the data is back.
        if let Some(waiting) = self.host.burying.lock().get_mut(&group) {
            waiting.push(reply);
            return Ok(pending);
        }
        // Between the two looks it may have stopped: what it is stopped as is found by the worker.
        if running.is_none() && states.get(&group).is_none_or(|s| s.removed) {
            return Err(RequestError::NotHere(group));
        }
        let rotten = states.get(&group).and_then(QuarantinedReplica::of);
        if rotten.is_some_and(|rotten| rotten.replica.is_none()) && !plant::is("unknown-replica-removed") {
            return Err(RequestError::ReplicaNotKnown(group));
        }
        drop(states);
        let worker = GroupShared::worker_for(&self.host, group);
        self.host.command(worker, Command::RemoveData(group, reply));
        Ok(pending)
    }

    /// Stops the group's replica. What the store holds of it stays; it can be started again once all that it had
    /// written is durable.
    ///
    /// Returns false when it does not run.
    pub fn stop(&self, group: GroupId) -> bool {
        let Some(shared) = self.host.group(group) else { return false };
        shared.stopping.store(true, Ordering::SeqCst);
        self.host.workers[shared.worker()].command(Command::Stop(shared));
        true
    }
}

impl std::fmt::Debug for Starter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Starter").field("stopped", &self.host.stopped.lock().len()).finish_non_exhaustive()
    }
}

/// The state of a replica that was never here.
/// What is written of a replica that is new here. Before its bootstrap record nothing is known of it.
fn first_update(replica: &Replica, hard_state: HardState, record: Record) -> Update {
    let hard_state = if matches!(record, Record::Bootstrap(_)) { HardState::default() } else { hard_state };
    Update { group: replica.config.group, hard_state, record: Some(Box::new(record)), ..Update::default() }
}

fn first_state(start: Start, group: GroupId, replica: ReplicaId, host: HostId) -> Result<GroupState, StartError> {
    let membership = match start {
        Start::Bootstrap(membership) => {
            let here = membership.host_of(replica) == Some(host);
            if !here || !(membership.voters.contains(&replica) || membership.learners.contains(&replica)) {
                return Err(StartError::NotAMember { group, replica, host });
            }
            if membership.hosts.iter().any(|(id, member)| id.is_zero() || member.host.is_zero()) {
                return Err(StartError::Config("a member's replica and host must not be zero".to_owned()));
            }
            (*membership).clone()
        }
        Start::Join => Membership::default(),
        Start::Snapshot(record) => return Ok(state_of(*record, group, replica)),
        Start::Restart => return Err(StartError::NotFound(group)),
    };
    let bootstrap = Bootstrap { replica, epoch: FIRST_EPOCH, membership, ..Bootstrap::default() };
    Ok(GroupState { group, bootstrap, ..GroupState::default() })
}

/// The state of a replica whose history begins with a snapshot. Its members are the snapshot's alone: were this cut short,
/// what is left would be a member that joins, and decides nothing.
fn state_of(record: SnapshotRecord, group: GroupId, replica: ReplicaId) -> GroupState {
    let pos = record.meta.pos;
    GroupState {
        group,
        bootstrap: Bootstrap { replica, epoch: FIRST_EPOCH, ..Bootstrap::default() },
        hard_state: HardState { term: pos.term, commit: pos.index, ..HardState::default() },
        snapshot: Some(record),
        start: pos,
        last: pos,
        ..GroupState::default()
    }
}

/// A witness is started as one, and nothing else is. A membership that does not name the replica says nothing: it joins.
fn check_kind(config: &ReplicaConfig, membership: &Membership) -> Result<(), StartError> {
    let (group, replica) = (config.group, config.replica);
    match membership.kind(replica) {
        Some(kind) if (kind == ReplicaKind::Witness) != config.witness => {
            Err(StartError::OtherKind { group, replica, kind })
        }
        _ => Ok(()),
    }
}

/// The snapshots that may be of use: the recorded one, and those before it from which the log goes on.
fn usable(
    store: &SnapshotStore,
    group: GroupId,
    replica: ReplicaId,
    state: &GroupState,
) -> Result<Vec<Index>, SnapshotError> {
    let Some(newest) = state.snapshot.as_ref().map(|s| s.meta.pos.index) else { return Ok(Vec::new()) };
    let older = store.list(group, replica)?.into_iter().filter(|&i| i >= state.start.index && i < newest);
    Ok(older.chain([newest]).collect())
}

/// Removes snapshot files that no record names: a crash left them, or a newer one has replaced them.
fn remove_orphans(snapshots: &SnapshotIo, states: &AHashMap<GroupId, GroupState>) {
    let store = snapshots.store();
    let found = match store.replicas() {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "snapshot directories can't be listed");
            return;
        }
    };
    if plant::is("orphans-kept") {
        return;
    }
    for (group, replica) in found {
        if states.get(&group).is_some_and(|s| s.quarantined.is_some()) {
            // They go when its data is removed: until then they may be all that somebody has.
            continue;
        }
        let state = states.get(&group).filter(|s| s.bootstrap.replica == replica && !s.removed);
        let keep = match state.map_or_else(|| Ok(Vec::new()), |state| usable(store, group, replica, state)) {
            Ok(keep) => keep,
            Err(error) => {
                tracing::warn!(%group, %replica, %error, "snapshots can't be listed");
                continue;
            }
        };
        if let Err(error) = store.remove_orphans(group, replica, &keep) {
            tracing::warn!(%group, %replica, %error, "orphaned snapshots were not removed");
        }
    }
}

/// Mixes numbers into a seed (splitmix64's finalizer).
fn mix(a: u64, b: u64, c: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ c.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
