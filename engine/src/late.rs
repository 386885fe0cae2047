//! What a step worker does for a group after its visit in the round: records and requests that go behind all that the core has accepted.
//!
//! Invariant: when one of these runs, everything in the group's log is sealed, and everything that was handed out is on its way to
//! apply. So a commit index that is written here never points past what the journal holds before it, an entry is never
//! written by two hands, and a save task stands behind the recovery and the applies that precede it.

use crate::apply::{ApplyItem, ApplyTask};
use crate::events::{HostEvent, ReplicaEvent};
use crate::log_access::LogRequest;
use crate::remove::DeleteJob;
use crate::shared::{GroupShared, SlotRef};
use crate::snapshot::{AfterDurable, SaveOutcome, SnapshotRequest};
use crate::step::StepWorker;
use longboat_logdb::GroupState;
use longboat_raft::sometimes;
use longboat_rsm::MachineKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Something to do for a group after its visit.
pub(crate) enum Late {
    /// A snapshot request.
    Request(SnapshotRequest),
    /// A save has ended.
    Saved(Box<SaveOutcome>),
    /// The store wants to let go of the segment that holds this group's newest words.
    Reseal,
    /// Something was asked of the log.
    Log(Box<LogRequest>),
    /// Log that was held may go.
    Truncate,
}

impl StepWorker {
    /// Does what is due; a group that is still active waits for its next visit.
    pub(crate) fn do_late(&mut self) {
        for (at, late) in std::mem::take(&mut self.late) {
            // What a late task of a replica that has gone holds resolves by being dropped.
            if self.replica_at(at).is_none() {
                continue;
            }
            if self.is_active(at.slot) {
                self.late.push((at, late));
                continue;
            }
            self.guarded(at.slot, |w| match late {
                Late::Request(request) => w.queue_snapshot(at.slot, request),
                Late::Saved(outcome) => w.snapshot_saved(at, *outcome),
                Late::Reseal => w.reseal(at.slot),
                Late::Log(request) => w.log_request(at, *request),
                Late::Truncate => w.truncate_wanted(at),
            });
        }
    }

    fn reseal(&mut self, slot: u32) {
        sometimes!("newest-words-sealed-again");
        let replica = self.replica(slot);
        let mut update = replica.empty_update();
        // With nothing durable beyond the commit index, what is still in flight is in a younger segment anyway.
        let (first, last) = (replica.core.commit().next(), replica.core.durable());
        if first <= last
            && let Some(runs) = replica.core.tail_from(first)
        {
            update.cut_tail = Some(first);
            update.runs = runs.into_iter().collect();
        }
        self.push_update(update);
    }

    pub(crate) fn after_durable(&mut self, at: SlotRef, after: AfterDurable) {
        if let AfterDurable::Stopped(state) = after {
            // Its storage may still be in use: until it is not, nobody may open it again.
            match self.host.group(state.group) {
                Some(shared) if shared.kind == MachineKind::OnDisk && !shared.machine_gone.load(Ordering::SeqCst) => {
                    return self.closing.push((shared, state));
                }
                _ => return self.stopped(state),
            }
        }
        if let AfterDurable::Buried(removal, replica) = after {
            let (host, store) = (Arc::clone(&self.host), self.snapshots.store().clone());
            return self.snapshots.spawner.spawn(Box::new(DeleteJob { host, store, removal, replica }));
        }
        let snapshots = Arc::clone(&self.snapshots);
        let Some(replica) = self.replica_at(at) else {
            after.abandon();
            return;
        };
        if let AfterDurable::Installed { meta, resets_log: true } = &after
            && replica.seldom.installing == Some(meta.pos.index)
        {
            replica.seldom.installing = None;
            let (shared, items) = (Arc::clone(&replica.shared), vec![ApplyItem::Recover(meta.clone())]);
            self.apply[shared.apply_worker].push(ApplyTask { shared, items });
        }
        let Some(replica) = self.replica_at(at) else { return };
        snapshots.after_durable(replica, after);
        self.activate(at.slot);
    }
    /// A stopped replica may be started again.
    fn stopped(&mut self, state: Box<GroupState>) {
        let mut stopped = self.host.stopped.lock();
        self.host.groups.write().remove(&state.group);
        let (group, replica) = (state.group, state.bootstrap.replica);
        stopped.insert(group, *state);
        drop(stopped);
        self.host.events.tell(HostEvent::Replica { group, replica, what: ReplicaEvent::Stopped });
        self.unloaded(group);
    }

    /// The storage of a stopped replica's state machine is closed.
    pub(crate) fn machine_gone(&mut self, shared: &Arc<GroupShared>) {
        for (_, state) in self.closing.extract_if(.., |c| Arc::ptr_eq(&c.0, shared)).collect::<Vec<_>>() {
            self.stopped(state);
        }
    }
}
