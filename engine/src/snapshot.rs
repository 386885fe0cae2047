//! The life of a snapshot in the engine: requests, saves, recoveries, and what happens when their records are durable.
//!
//! A request enters the group's pending slot; the step worker ignores it when nothing new was applied, else queues a save
//! behind the applies; the apply worker hands the state machine to the pool; the record is made durable; only then the log
//! is truncated and older files go. Transfers to and from other hosts are in [`crate::stream`].
//!
//! Invariant: files that a durable record names are never removed before another record replaced it.

mod admission;
mod calls;
mod recovery;
mod request;

pub use admission::Admission;
pub(crate) use calls::Place;
pub use calls::PoolCalls;
pub use recovery::Recovery;
pub use request::{
    NotSaved, SaveOutcome, SaveTask, SnapshotOptions, SnapshotOutcome, SnapshotRequest, SnapshotTimeout,
};

use crate::apply::{ApplyItem, MachineJob};
use crate::events::ReplicaEvent;
use crate::log_access::Compacted;
use crate::remove::Removal;
use crate::replica::Replica;
use crate::request::Reply;
use crate::send::{SendTicket, Sends};
use crate::shared::{Command, GroupShared, HostShared, reason};
use crate::stream::Receives;
use ahash::{AHashMap, AHashSet};
use longboat_io::{Job, JobState, Spawner};
use longboat_logdb::{GroupState, LogReader, Record, SnapshotRecord, Update};
use longboat_raft::{
    Fetch, GroupId, Guard, Index, LogPos, Output, Persist, Progress, ReplicaId, SnapshotMeta, plant, sometimes,
};
use longboat_rsm::snapshot::{Content, Prepared, SaveJob, SavedSnapshot, SnapshotError, SnapshotHeader, SnapshotStore};
use longboat_rsm::{MachineKind, RequestError, SnapshotRefusal};
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
    /// A truncation of its own.
    Truncated {
        /// Through where the log was truncated.
        compact_to: Option<LogPos>,
        /// Who asked.
        reply: Option<Reply<Compacted>>,
    },
    /// A leader's snapshot.
    Installed {
        /// What it stands for.
        meta: Box<SnapshotMeta>,
        /// The log was reset to it: the state machine is to recover from it now.
        resets_log: bool,
    },
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
    pub(crate) reader: Arc<dyn LogReader>,
    pub(crate) sends: Sends,
    /// How many saves there are.
    pub admission: Arc<Admission>,
    pub(crate) receives: Receives,
    /// Sizes of received files whose record is not made yet.
    pub(crate) received: Mutex<AHashMap<(GroupId, Index), u64>>,
    /// Snapshots that are being removed one by one: nothing may come to be under their names before they are gone.
    removing: Arc<Mutex<AHashSet<(GroupId, Index)>>>,
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
            store,
            spawner,
            transport,
            reader,
            admission: Admission::new(host.config.snapshot_saves_max),
            sends: Sends::new(host.config.snapshot_send_bytes_per_s),
            receives: Receives::new(host.config.snapshot_receive_bytes_per_s),
            host,
            received: Mutex::default(),
            removing: Arc::default(),
        })
    }

    /// The files.
    pub fn store(&self) -> &SnapshotStore {
        &self.store
    }

    /// What the log writer is given for what the core wants durable.
    pub fn update_of(&self, group: GroupId, persist: Persist) -> Update {
        let record = persist.install.map(|meta| {
            let record = self.received_record(group, &meta);
            Box::new(Record::Snapshot(SnapshotRecord { resets_log: true, ..record }))
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

    /// The record of a snapshot that was received.
    pub(crate) fn received_record(&self, group: GroupId, meta: &SnapshotMeta) -> SnapshotRecord {
        let bytes = self.received.lock().remove(&(group, meta.pos.index)).unwrap_or(0);
        SnapshotRecord { meta: meta.clone(), bytes, resets_log: false }
    }

    /// Step 4: the pool saves the state machine as it was prepared at the task's index.
    pub fn save(self: &Arc<Self>, shared: &Arc<GroupShared>, task: SaveTask, prepared: Prepared) {
        tracing::debug!(group = %shared.group, replica = %shared.replica, index = %task.meta.pos.index, export = task.request.export_to().is_some(), "snapshot save begins");
        let header = SnapshotHeader {
            group: shared.group,
            epoch: shared.epoch,
            meta: task.meta.clone(),
            kind: shared.kind,
            content: content_of(shared, &task),
            compression: shared.compression,
            ..SnapshotHeader::default()
        };
        let needs_sync = header.content == Content::Metadata;
        let job = if prepared.holds_machine() { MachineJob::Alone } else { MachineJob::SavedView };
        let (group_shared, io) = (Arc::clone(shared), Arc::clone(self));
        let (stop, export_to) = (Arc::clone(task.request.stop()), task.request.export_to().map(Path::to_owned));
        let index = task.meta.pos.index;
        let place = task.request.admitted.as_ref().map_or(Place::Nothing, |admitted| Place::Save(admitted.turn()));
        let on_done = move |result: Result<SavedSnapshot, SnapshotError>| {
            // Storage that can't be synced is not to be trusted with more.
            if let Err(error @ (SnapshotError::Machine(_) | SnapshotError::Panicked(_))) = &result
                && needs_sync
            {
                machine_failed(&group_shared, format!("sync at {index}: {error}"));
            }
            let outcome = task.ended(result.map_err(|error| NotSaved::Failed(failure_of(error))));
            io.host.apply[group_shared.apply_worker].job_done(Arc::clone(&group_shared), job);
            io.host.workers[group_shared.worker()].command(Command::SnapshotSaved(group_shared, Box::new(outcome)));
        };
        let job = SaveJob::new(longboat_rsm::snapshot::SaveTask {
            prepared,
            header,
            replica: shared.replica,
            store: self.store.clone(),
            export_to,
            stop,
            on_done: Box::new(on_done),
        });
        self.spawn_watched(shared, place, job);
    }

    /// A save did not begin: its request ends, and the last request's index is put back.
    pub fn not_saved(&self, shared: &Arc<GroupShared>, task: SaveTask, why: NotSaved) {
        let outcome = Box::new(task.ended(Err(why)));
        self.host.workers[shared.worker()].command(Command::SnapshotSaved(Arc::clone(shared), outcome));
    }

    /// A record is durable (step 5): the core lets go of the truncated log, older files go, the request completes.
    pub fn after_durable(&self, replica: &mut Replica, after: AfterDurable) {
        let (group, id) = (replica.config.group, replica.config.replica);
        match after {
            AfterDurable::Truncated { compact_to, reply } => {
                self.truncated(replica, compact_to, reply);
                replica.publish();
            }
            AfterDurable::Saved { meta, compact_to, request } => {
                let index = meta.pos.index;
                if let Some(to) = compact_to {
                    self.let_go(replica, to.index);
                }
                let published = &replica.shared.published;
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
            AfterDurable::Installed { meta, .. } => {
                let index = meta.pos.index;
                let published = &replica.shared.published;
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
                // The log no longer goes on from them.
                replica.forget_older(Index::ZERO);
                self.remove_unneeded(replica);
            }
            AfterDurable::Stopped(_) | AfterDurable::Buried(..) => unreachable!("these concern no running replica"),
        }
    }

    /// The core lets go of log whose truncation is durable.
    pub(crate) fn let_go(&self, replica: &mut Replica, to: Index) {
        let before = replica.core.start().index;
        replica.core.compact(to);
        let after = replica.core.start().index;
        let gone = after.0.saturating_sub(before.0);
        replica.shared.published.counters.truncated.fetch_add(gone, Ordering::Relaxed);
        tracing::debug!(group = %replica.config.group, replica = %replica.config.replica, index = %after, gone, "log truncated");
    }

    /// Removes the snapshots that a newer one has replaced: its record is durable, and the state machine needs no older one
    /// to recover from.
    pub fn remove_unneeded(&self, replica: &Replica) {
        let keep = replica.recorded.min(replica.recovered);
        let keep = replica.seldom.older.first().map_or(keep, |&oldest| keep.min(oldest));
        if keep.is_zero() {
            return;
        }
        self.spawner.spawn(Box::new(RemoveJob {
            store: self.store.clone(),
            group: replica.config.group,
            replica: replica.config.replica,
            below: keep,
            only: None,
            removing: Arc::clone(&self.removing),
        }));
    }

    fn remove_one(&self, group: GroupId, replica: ReplicaId, index: Index) {
        self.removing.lock().insert((group, index));
        let (store, removing) = (self.store.clone(), Arc::clone(&self.removing));
        let only = Some(index);
        self.spawner.spawn(Box::new(RemoveJob { store, group, replica, below: Index::ZERO, only, removing }));
    }

    /// Whether one at this index is still being removed.
    pub(crate) fn is_removing(&self, group: GroupId, index: Index) -> bool {
        self.removing.lock().contains(&(group, index)) && !plant::is("stream-beside-a-removal")
    }

    /// A snapshot was received for a replica that has stopped since: raft never hears of it, and its files go. Not so if what the
    /// replica left names them.
    pub(crate) fn stray(&self, shared: &GroupShared, index: Index) {
        let group = shared.group;
        let was_received = self.received.lock().remove(&(group, index)).is_some();
        let stopped = self.host.stopped.lock();
        let named = stopped.get(&group).and_then(|s| s.snapshot.as_ref()).is_some_and(|s| s.meta.pos.index == index);
        let starts = self.host.group(group).is_some_and(|now| !std::ptr::eq(&*now, shared));
        let recorded = index.0 <= shared.published.snapshot.load(Ordering::Relaxed);
        if was_received && !named && !recorded && !starts && !plant::is("stray-snapshot-kept") {
            tracing::debug!(%group, replica = %shared.replica, %index, "snapshot came for a replica that has stopped");
            self.remove_one(group, shared.replica, index);
        }
    }

    /// Whether the files of a snapshot that raft is told of were received.
    pub(crate) fn has_received(&self, group: GroupId, index: Index) -> bool {
        self.received.lock().contains_key(&(group, index))
    }

    /// A snapshot that raft was told of and did not install is named by no record: what was received of it goes.
    pub(crate) fn discard_received(&self, replica: &Replica, index: Index) {
        if self.received.lock().remove(&(replica.config.group, index)).is_some() {
            self.discard(replica, index);
        }
    }

    /// Removes one snapshot that no record names.
    pub fn discard(&self, replica: &Replica, index: Index) {
        // An own save at the same index may be under way: its files have the same name, and the same content. So may have one
        // that is recorded: until the record that takes its place is durable, it is what a crash would leave.
        let newest = replica.snapshot.as_ref().map(|s| s.meta.pos.index);
        let is_named = replica.recorded == index || replica.seldom.older.contains(&index);
        if replica.last_request == index
            || newest == Some(index)
            || (is_named && !plant::is("recorded-snapshot-discarded"))
        {
            return;
        }
        self.remove_one(replica.config.group, replica.config.replica, index);
    }

    /// Begins what the core asked for: transfers to followers, and cold reads. Returns whether a follower needs a snapshot
    /// and there is none to send: one must be saved first. What an on-disk state machine has goes behind `items`: it is sent as
    /// it will be then.
    pub fn serve(self: &Arc<Self>, replica: &mut Replica, out: &mut Output, items: &mut Vec<ApplyItem>) -> bool {
        let mut missing = false;
        let turn = replica.sending.take_turn();
        for to in out.snapshots_wanted.drain(..).chain(turn.iter().flatten().copied()) {
            // Who waited for a turn may be gone, or be heard no more.
            if !replica.core.progress(to).is_some_and(Progress::is_active) {
                replica.core.snapshot_finished(to, false);
            } else if replica.shared.kind == MachineKind::OnDisk {
                self.stream(replica, to, items);
            } else {
                missing |= !self.send_newest(replica, to);
            }
        }
        if turn.is_some() {
            self.sends.next_in_line(self.host.config.snapshot_sends_max);
        }
        for fetch in out.fetches.drain(..) {
            let job = FetchJob { reader: Arc::clone(&self.reader), shared: Arc::clone(&replica.shared), fetch };
            self.spawner.spawn(Box::new(job));
        }
        missing
    }

    /// A follower is to be sent the newest snapshot's file. Returns false when there is none that would be of use to it.
    fn send_newest(self: &Arc<Self>, replica: &mut Replica, to: ReplicaId) -> bool {
        // One from before it was a member, or from before what it still needs, would be of no use to it: a new one is saved.
        let floor = replica.core.snapshot_floor(to);
        let serves = |meta: &SnapshotMeta| meta.membership.contains(to) && meta.pos.index >= floor;
        let newest = replica.snapshot.as_ref().filter(|s| serves(&s.meta)).cloned();
        let has_one = newest.is_some();
        let (Some(newest), Some(host)) = (newest, replica.host_of(to)) else {
            // Asked for again with the follower's next answer to a heartbeat.
            replica.core.snapshot_finished(to, false);
            return has_one;
        };
        match SendTicket::take(self, replica, to, host, (newest.meta, Some(newest.bytes))) {
            Some(ticket) => {
                replica.core.snapshot_sending(to, ticket.meta.pos);
                replica.sending.begins(to, ticket.meta.pos.index, ticket.number);
                ticket.send_file();
            }
            None => self.wait_for_turn(replica, to),
        }
        true
    }

    /// The host sends as many snapshots as it may: the follower waits in line, and is sent nothing else meanwhile.
    fn wait_for_turn(&self, replica: &mut Replica, to: ReplicaId) {
        if replica.sending.wait(to) {
            self.sends.join_line(&replica.shared);
            // Room may have been made before it joined.
            self.sends.next_in_line(self.host.config.snapshot_sends_max);
        }
    }

    /// A follower is to be sent the state as it is when all that was handed out is applied, without a file on this host.
    fn stream(self: &Arc<Self>, replica: &mut Replica, to: ReplicaId, items: &mut Vec<ApplyItem>) {
        let index = replica.core.handed();
        let serves = replica.core.membership().contains(to) && index >= replica.core.snapshot_floor(to);
        let ready = serves && replica.seldom.installing.is_none() && replica.core.guard() == Guard::None;
        let place = replica.host_of(to).zip(replica.core.term_at(index)).filter(|_| ready && !index.is_zero());
        let Some((host, term)) = place else { return replica.core.snapshot_finished(to, false) };
        let meta = SnapshotMeta { pos: LogPos::new(term, index), membership: replica.core.membership().clone() };
        let Some(ticket) = SendTicket::take(self, replica, to, host, (meta, None)) else {
            return self.wait_for_turn(replica, to);
        };
        replica.core.snapshot_sending(to, ticket.meta.pos);
        replica.sending.begins(to, index, ticket.number);
        items.push(ApplyItem::Stream(Box::new(ticket)));
    }
}

/// What a snapshot holds. One that stays here has no state of an on-disk state machine: that is in its own storage.
pub(crate) fn content_of(shared: &GroupShared, task: &SaveTask) -> Content {
    let stays = task.request.export_to().is_none();
    if shared.kind == MachineKind::OnDisk && stays { Content::Metadata } else { Content::Full }
}

/// What the user's code did outside of an apply stops its replica, and nothing else.
pub(crate) fn machine_failed(shared: &GroupShared, reason: String) {
    tracing::error!(group = %shared.group, replica = %shared.replica, reason, "state machine failed, its replica stops");
    shared.host.counters.machine_failures.fetch_add(1, Ordering::Relaxed);
    shared.close(RequestError::MachineFailed { replica: shared.replica, reason: reason.clone() });
    shared.tell(|| ReplicaEvent::MachineFailed { reason });
    shared.ready(reason::MACHINE_FAILED);
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
    removing: Arc<Mutex<AHashSet<(GroupId, Index)>>>,
}

impl Drop for RemoveJob {
    /// Also of a job that a closing pool drops.
    fn drop(&mut self) {
        if let Some(index) = self.only {
            self.removing.lock().remove(&(self.group, index));
        }
    }
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
                tracing::debug!(group = %self.group, replica = %self.replica, %index, "snapshot removed");
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
