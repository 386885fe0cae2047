//! The life of a snapshot in the engine: requests, saves, recoveries, and what happens when their records are durable.
//!
//! A request enters the group's pending slot; the step worker ignores it when nothing new was applied, else queues a save
//! behind the applies; the apply worker hands the state machine to the pool; the record is made durable; only then the log
//! is truncated and older files go. Transfers to and from other hosts are in [`crate::stream`].
//!
//! Invariant: files that a durable record names are never removed before another record replaced it.

mod request;

pub use request::{
    NotSaved, SaveOutcome, SaveTask, SnapshotOptions, SnapshotOutcome, SnapshotRequest, SnapshotTimeout,
};

use crate::apply::MachineJob;
use crate::events::ReplicaEvent;
use crate::remove::Removal;
use crate::replica::Replica;
use crate::shared::{Command, GroupShared, HostShared, reason};
use crate::stream::{Receives, SendJob, Sends};
use ahash::AHashMap;
use longboat_io::{Job, JobState, Spawner};
use longboat_logdb::{GroupState, LogReader, Record, SnapshotRecord, Update};
use longboat_raft::{Fetch, GroupId, Index, LogPos, Output, Persist, ReplicaId, SnapshotMeta, sometimes};
use longboat_rsm::snapshot::{
    Prepared, RecoverJob, RecoverTask, SaveJob, SavedSnapshot, SnapshotError, SnapshotHeader, SnapshotStore,
};
use longboat_rsm::{RequestError, SnapshotRefusal};
use longboat_transport::Transport;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is done when a batch with a snapshot record is durable.
#[derive(Debug)]
pub enum AfterDurable {
    /// The group's own snapshot.
    Saved {
        /// What it stands for.
        meta: Box<SnapshotMeta>,
        /// Through where the log was truncated.
        compact_to: Option<LogPos>,
        /// Who asked.
        request: SnapshotRequest,
    },
    /// A leader's snapshot.
    Installed(Box<SnapshotMeta>),
    /// The replica has stopped; what the store holds of it now, for when it is started again.
    Stopped(Box<GroupState>),
    /// The tombstone of a group's replica: its files go.
    Buried(Removal, ReplicaId),
}

impl AfterDurable {
    /// The replica is gone, or the store failed.
    pub fn abandon(self) {
        if let Self::Saved { request, .. } = self {
            request.complete(Err(RequestError::Stopped));
        }
    }
}

/// What a replica has done about snapshots since it started.
#[derive(Debug, Default)]
pub struct SnapshotCounters {
    /// Snapshots saved.
    pub saved: AtomicU64,
    /// Snapshots installed from a leader.
    pub installed: AtomicU64,
    /// Entries truncated from the log.
    pub truncated: AtomicU64,
}

/// How a request ends whose save did. A replica that stops says so itself: what else stops a save is its user.
fn failure_of(error: SnapshotError) -> RequestError {
    match error {
        SnapshotError::Stopped => RequestError::SnapshotAborted,
        SnapshotError::ExportDirectory(dir) => RequestError::SnapshotRefused(SnapshotRefusal::ExportDirectory(dir)),
        other => RequestError::Snapshot(other.to_string()),
    }
}

/// The record of a snapshot that is durable here.
pub fn record_of(saved: &SavedSnapshot, resets_log: bool) -> SnapshotRecord {
    SnapshotRecord { meta: saved.meta.clone(), bytes: saved.bytes, resets_log }
}

/// What snapshots need of the host: files, the pool, the network.
pub struct SnapshotIo {
    pub(crate) host: Arc<HostShared>,
    pub(crate) store: SnapshotStore,
    pub(crate) spawner: Arc<dyn Spawner>,
    pub(crate) transport: Arc<dyn Transport>,
    reader: Arc<dyn LogReader>,
    pub(crate) sends: Sends,
    pub(crate) receives: Receives,
    /// Sizes of received files whose record is not made yet.
    pub(crate) received: Mutex<AHashMap<(GroupId, Index), u64>>,
}

impl SnapshotIo {
    /// Snapshots of one host.
    pub fn new(
        host: Arc<HostShared>,
        store: SnapshotStore,
        spawner: Arc<dyn Spawner>,
        transport: Arc<dyn Transport>,
        reader: Arc<dyn LogReader>,
    ) -> Arc<Self> {
        Arc::new(Self {
            host,
            store,
            spawner,
            transport,
            reader,
            sends: Sends::default(),
            receives: Receives::default(),
            received: Mutex::default(),
        })
    }

    /// The files.
    pub fn store(&self) -> &SnapshotStore {
        &self.store
    }

    /// What the log writer is given for what the core wants durable.
    pub fn update_of(&self, group: GroupId, persist: Persist) -> Update {
        let record = persist.install.map(|meta| {
            let bytes = self.received.lock().remove(&(group, meta.pos.index)).unwrap_or(0);
            Box::new(Record::Snapshot(SnapshotRecord { meta, bytes, resets_log: true }))
        });
        Update {
            group,
            hard_state: persist.hard_state,
            cut_tail: persist.cut_tail,
            runs: persist.runs,
            compact_to: None,
            record,
        }
    }

    /// Step 4: the pool saves the state machine as it was prepared at the task's index.
    pub fn save(self: &Arc<Self>, shared: &Arc<GroupShared>, task: SaveTask, prepared: Prepared) {
        let header = SnapshotHeader {
            group: shared.group,
            epoch: shared.epoch,
            meta: task.meta.clone(),
            kind: shared.kind,
            ..SnapshotHeader::default()
        };
        let job = if prepared.holds_machine() { MachineJob::Alone } else { MachineJob::SavedView };
        let (group_shared, io) = (Arc::clone(shared), Arc::clone(self));
        let (stop, export_to) = (Arc::clone(task.request.stop()), task.request.export_to().map(Path::to_owned));
        tracing::debug!(group = %shared.group, replica = %shared.replica, index = %task.meta.pos.index, export = export_to.is_some(), "snapshot save begins");
        let on_done = move |result: Result<SavedSnapshot, SnapshotError>| {
            let outcome = task.ended(result.map_err(|error| NotSaved::Failed(failure_of(error))));
            io.host.apply[group_shared.apply_worker].job_done(Arc::clone(&group_shared), job);
            io.host.workers[group_shared.worker()].command(Command::SnapshotSaved(group_shared, Box::new(outcome)));
        };
        self.spawner.spawn(Box::new(SaveJob::new(longboat_rsm::snapshot::SaveTask {
            prepared,
            header,
            replica: shared.replica,
            store: self.store.clone(),
            export_to,
            stop,
            on_done: Box::new(on_done),
        })));
    }

    /// A save did not begin: its request ends, and the last request's index is put back.
    pub fn not_saved(&self, shared: &Arc<GroupShared>, task: SaveTask, why: NotSaved) {
        let outcome = Box::new(task.ended(Err(why)));
        self.host.workers[shared.worker()].command(Command::SnapshotSaved(Arc::clone(shared), outcome));
    }

    /// The pool replaces the state machine's state by a snapshot's. A failure stops the replica.
    pub fn recover(self: &Arc<Self>, shared: &Arc<GroupShared>, meta: SnapshotMeta) {
        let (group_shared, io) = (Arc::clone(shared), Arc::clone(self));
        let index = meta.pos.index;
        let on_done = move |result: Result<SnapshotMeta, SnapshotError>| {
            let shared = group_shared;
            match result {
                Ok(_) => {
                    shared.published.applied.store(index.0, Ordering::Release);
                    let command = Command::Recovered(Arc::clone(&shared), index);
                    io.host.workers[shared.worker()].command(command);
                }
                Err(error) => {
                    tracing::error!(group = %shared.group, replica = %shared.replica, %index, %error, "recovery failed, the replica stops");
                    let reason = format!("recovery at {index}: {error}");
                    shared.tell(|| ReplicaEvent::MachineFailed { reason: reason.clone() });
                    shared.close(RequestError::MachineFailed { replica: shared.replica, reason });
                    shared.ready(reason::MACHINE_FAILED);
                }
            }
            io.host.apply[shared.apply_worker].job_done(shared, MachineJob::Alone);
        };
        self.spawner.spawn(Box::new(RecoverJob::new(RecoverTask {
            machine: Arc::clone(&shared.machine),
            group: shared.group,
            replica: shared.replica,
            index,
            older: Vec::new(),
            store: self.store.clone(),
            stop: Arc::clone(&shared.stop),
            on_done: Box::new(on_done),
        })));
    }

    /// A record is durable (step 5): the core lets go of the truncated log, older files go, the request completes.
    pub fn after_durable(&self, replica: &mut Replica, after: AfterDurable) {
        let (group, id) = (replica.config.group, replica.config.replica);
        let published = &replica.shared.published;
        match after {
            AfterDurable::Saved { meta, compact_to, request } => {
                let index = meta.pos.index;
                if let Some(to) = compact_to {
                    let before = replica.core.start().index;
                    replica.core.compact(to.index);
                    let after = replica.core.start().index;
                    published.counters.truncated.fetch_add(after.0.saturating_sub(before.0), Ordering::Relaxed);
                }
                published.counters.saved.fetch_add(1, Ordering::Relaxed);
                published.snapshot.fetch_max(index.0, Ordering::Relaxed);
                tracing::debug!(%group, replica = %id, %index, "snapshot saved");
                replica.shared.tell(|| ReplicaEvent::SnapshotSaved { index });
                replica.recorded = replica.recorded.max(index);
                replica.recovered = replica.recovered.max(index);
                self.remove_unneeded(replica);
                // Whoever hears of the snapshot sees a log that is shorter.
                replica.publish();
                request.complete(Ok(SnapshotOutcome::Saved { index }));
            }
            AfterDurable::Installed(meta) => {
                let index = meta.pos.index;
                published.counters.installed.fetch_add(1, Ordering::Relaxed);
                published.snapshot.fetch_max(index.0, Ordering::Relaxed);
                let shared = &replica.shared;
                if shared.snapshot_entries > 0 {
                    shared.snapshot_due.store(index.0 + shared.snapshot_entries, Ordering::Relaxed);
                }
                sometimes!("snapshot-installed");
                tracing::info!(%group, replica = %id, %index, "snapshot installed");
                shared.tell(|| ReplicaEvent::SnapshotInstalled { index });
                replica.recorded = replica.recorded.max(index);
                self.remove_unneeded(replica);
            }
            AfterDurable::Stopped(_) | AfterDurable::Buried(..) => unreachable!("these concern no running replica"),
        }
    }

    /// Removes the snapshots that a newer one has replaced: its record is durable, and the state machine needs no older one
    /// to recover from.
    pub fn remove_unneeded(&self, replica: &Replica) {
        let keep = replica.recorded.min(replica.recovered);
        if keep.is_zero() {
            return;
        }
        self.spawner.spawn(Box::new(RemoveJob {
            store: self.store.clone(),
            group: replica.config.group,
            replica: replica.config.replica,
            below: keep,
            only: None,
        }));
    }

    /// Removes one snapshot that no record names.
    pub fn discard(&self, replica: &Replica, index: Index) {
        self.received.lock().remove(&(replica.config.group, index));
        // An own save at the same index may be under way: its files have the same name, and the same content.
        if replica.last_request == index || replica.snapshot.as_ref().is_some_and(|s| s.meta.pos.index == index) {
            return;
        }
        self.spawner.spawn(Box::new(RemoveJob {
            store: self.store.clone(),
            group: replica.config.group,
            replica: replica.config.replica,
            below: Index::ZERO,
            only: Some(index),
        }));
    }

    /// Begins what the core asked for: transfers to followers, and cold reads. Returns whether a follower needs a snapshot
    /// and there is none to send: one must be saved first.
    pub fn serve(self: &Arc<Self>, replica: &mut Replica, out: &mut Output) -> bool {
        let mut missing = false;
        for to in out.snapshots_wanted.drain(..) {
            // One from before it was a member, or from before what it still needs, would be of no use to it: a new one is saved.
            let floor = replica.core.snapshot_floor(to);
            let serves = |meta: &SnapshotMeta| meta.membership.contains(to) && meta.pos.index >= floor;
            let newest = replica.snapshot.as_ref().map(|s| &s.meta);
            let (meta, host) = (newest.filter(|meta| serves(meta)).cloned(), replica.host_of(to));
            missing |= meta.is_none();
            let (Some(meta), Some(host)) = (meta, host) else {
                // Asked for again with the follower's next answer to a heartbeat.
                replica.core.snapshot_finished(to, false);
                continue;
            };
            if SendJob::start(self, replica, to, host, &meta) {
                replica.core.snapshot_sending(to, meta.pos);
            } else {
                replica.core.snapshot_finished(to, false);
            }
        }
        for fetch in out.fetches.drain(..) {
            let job = FetchJob { reader: Arc::clone(&self.reader), shared: Arc::clone(&replica.shared), fetch };
            self.spawner.spawn(Box::new(job));
        }
        missing
    }
}

impl std::fmt::Debug for SnapshotIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotIo").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Removes snapshots: those below an index, or one.
struct RemoveJob {
    store: SnapshotStore,
    group: GroupId,
    replica: ReplicaId,
    below: Index,
    only: Option<Index>,
}

impl Job for RemoveJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let found = match self.only {
            Some(index) => Ok(vec![index]),
            None => self.store.list(self.group, self.replica),
        };
        let removed = found.and_then(|found| {
            for index in found.into_iter().filter(|&i| self.only.is_some() || i < self.below) {
                self.store.remove(self.group, self.replica, index)?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            // Left for the next start, which removes what no record names.
            tracing::warn!(group = %self.group, replica = %self.replica, %error, "older snapshots were not removed");
        }
        JobState::Done
    }
}

/// Reads entries for a follower that lags behind what is in memory: never on a step worker's time.
struct FetchJob {
    reader: Arc<dyn LogReader>,
    shared: Arc<GroupShared>,
    fetch: Fetch,
}

impl Job for FetchJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let Fetch { ticket, lo, hi, bytes_max, .. } = self.fetch;
        let runs = self.reader.entries(self.shared.group, lo, hi, bytes_max);
        let shared = Arc::clone(&self.shared);
        self.shared.host.workers[self.shared.worker()].command(Command::Fetched { shared, ticket, runs });
        JobState::Done
    }
}
