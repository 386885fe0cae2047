//! The step worker's part in a group's saves: which requests become saves, and what follows when one has ended (life of a
//! snapshot, steps 2, 4 and 5).
//!
//! Invariants:
//! - A save that fails or is aborted leaves the index of the last request as it was before, so that the next request is not
//!   ignored.
//! - An export leaves the group's record, its log and the index of the last request alone.
//! - The log goes only through places that a durable snapshot of the group's own, or a leader's, has reached.

use crate::apply::{ApplyItem, ApplyTask};
use crate::late::Late;
use crate::replica::Replica;
use crate::shared::SlotRef;
use crate::snapshot::record_of;
use crate::snapshot::{
    AfterDurable, NotSaved, SaveOutcome, SaveTask, SnapshotOptions, SnapshotOutcome, SnapshotRequest,
};
use crate::step::StepWorker;
use longboat_logdb::Record;
use longboat_raft::{Guard, Index, LogPos, SnapshotMeta, plant, sometimes};
use longboat_rsm::snapshot::{SavedSnapshot, export_path};
use longboat_rsm::{RequestError, SnapshotRefusal};
use std::path::Path;
use std::sync::Arc;

impl Replica {
    /// A request reaches the group: nothing new means ignored, else a save task goes behind the applies that precede it.
    fn request_snapshot(&mut self, request: SnapshotRequest, items: &mut Vec<ApplyItem>) {
        let (group, replica) = (self.config.group, self.config.replica);
        let index = self.core.handed();
        if request.is_aborted() {
            return request.complete(Err(RequestError::SnapshotAborted));
        }
        if let Some(refusal) = refusal(&request, index) {
            tracing::debug!(%group, %replica, %index, %refusal, "snapshot request refused");
            return request.complete(Err(RequestError::SnapshotRefused(refusal)));
        }
        let export = request.export_to().is_some();
        if (!export || plant::is("export-ignored")) && index <= self.last_request && !plant::is("unchanged-state-saved")
        {
            tracing::debug!(%group, %replica, %index, "snapshot request ignored");
            return request.complete(Ok(SnapshotOutcome::Ignored));
        }
        let term = self.core.term_at(index).expect("what was handed to apply is in the log or at its start");
        let meta = SnapshotMeta { pos: LogPos::new(term, index), membership: self.core.membership().clone() };
        let previous = self.last_request;
        if !export {
            self.last_request = index;
        }
        tracing::debug!(%group, %replica, %index, export, "snapshot save queued");
        self.waiting.snapshot_timeouts.extend(request.timeout());
        self.saves += 1;
        items.push(ApplyItem::Save(Box::new(SaveTask { meta, previous, request })));
    }

    /// The snapshot at `newest` becomes an older one: it is kept if so many are, and the log reaches back to the oldest.
    fn keep_older(&mut self, newest: Index) {
        let kept = self.config.snapshots_kept.max(1) as usize - 1;
        let hollow = std::mem::replace(&mut self.record_is_hollow, false);
        if kept > 0 && !hollow && newest >= self.core.start().index && !newest.is_zero() {
            self.seldom.older.push(newest);
        }
        if let Some(seldom) = self.seldom.get_mut() {
            let surplus = seldom.older.len().saturating_sub(kept);
            seldom.older.drain(..surplus);
        }
    }

    /// The snapshots after `through` can't take the newest one's place.
    pub(crate) fn forget_older(&mut self, through: Index) {
        if let Some(seldom) = self.seldom.get_mut() {
            seldom.older.retain(|&older| older <= through);
        }
    }

    /// The place through which the log goes behind a snapshot at `index`.
    fn compaction_point(&mut self, index: Index, options: &SnapshotOptions) -> Option<LogPos> {
        let overhead = options.compaction_overhead.unwrap_or(self.config.compaction_overhead);
        let wanted = match options.compaction_index {
            Some(asked) => asked.min(index),
            None if !self.config.auto_compaction && options.compaction_overhead.is_none() => return None,
            None if plant::is("overhead-wraps") && overhead >= index.0 => index,
            // A log that is no longer than what is kept stays whole.
            None => Index(index.0.checked_sub(overhead)?),
        };
        let to = self.unheld(wanted);
        if to <= self.core.start().index.max(self.truncating) {
            return None;
        }
        self.truncating = to;
        self.core.term_at(to).map(|term| LogPos::new(term, to))
    }
}

/// Why a request can't become a save at this place, if so.
fn refusal(request: &SnapshotRequest, index: Index) -> Option<SnapshotRefusal> {
    // There is no place in the log that the snapshot could stand for.
    if index.is_zero() && !plant::is("nothing-applied-saved") {
        return Some(SnapshotRefusal::NothingApplied);
    }
    let asked = request.options().compaction_index.filter(|&asked| asked > index)?;
    (!plant::is("compaction-index-not-checked")).then_some(SnapshotRefusal::CompactionIndex { asked, index })
}

impl StepWorker {
    /// A snapshot request has its turn. It waits for a save that is under way if it, or that one, is an export: what the one
    /// makes is not what the other asks for.
    pub(crate) fn queue_snapshot(&mut self, slot: u32, mut request: SnapshotRequest) {
        let (admission, is_stuck) = (Arc::clone(&self.snapshots.admission), self.snapshots.spawner.is_stuck());
        let at = self.slot_ref(slot);
        let replica = self.replica(slot);
        // The state machine does not stand at what was handed out: the request's turn comes when the install is durable.
        if replica.seldom.installing.is_some() {
            return self.late.push((at, Late::Request(request)));
        }
        if replica.core.guard() != Guard::None {
            return request.complete(Err(RequestError::StateLost));
        }
        let freed = replica.sending.log_bytes() - replica.log_bytes_saved;
        let stuck = is_stuck && !plant::is("save-queued-behind-those-that-hang");
        if stuck && request.is_users() {
            return request.complete(Err(RequestError::SnapshotRefused(SnapshotRefusal::PoolStalled)));
        }
        request.admitted = match request.is_users() {
            true => Some(admission.begin()),
            false => admission.ask(&replica.shared, freed, stuck),
        };
        if request.admitted.is_none() {
            tracing::debug!(group = %replica.config.group, replica = %replica.config.replica, freed, "snapshot waits for its turn");
            return;
        }
        if replica.saves > 0 && (replica.exporting || request.export_to().is_some()) {
            if replica.seldom.next_save.is_some() {
                return request.complete(Err(RequestError::Busy));
            }
            replica.waiting.snapshot_timeouts.extend(request.timeout());
            replica.seldom.next_save = Some(Box::new(request));
        } else {
            let mut items = Vec::new();
            replica.exporting = request.export_to().is_some();
            replica.request_snapshot(request, &mut items);
            if !items.is_empty() {
                let shared = Arc::clone(&replica.shared);
                self.apply[shared.apply_worker].push(ApplyTask { shared, items });
            }
        }
        // Its deadline is one of the replica's now.
        self.activate(slot);
    }

    /// A save has ended: its record is made durable, then the log is truncated.
    pub(crate) fn snapshot_saved(&mut self, at: SlotRef, outcome: SaveOutcome) {
        let replica = self.replica(at.slot);
        replica.saves -= 1;
        let seldom = if replica.saves == 0 { replica.seldom.get_mut() } else { None };
        let next = seldom.and_then(|s| s.next_save.take());
        let SaveOutcome { result, index, previous, request } = outcome;
        let export = request.export_to().map(Path::to_owned);
        match (result, export) {
            (Err(why), export) => self.not_saved(at.slot, export.is_some(), (previous, index), why, request),
            (Ok(_), Some(dir)) if !plant::is("export-recorded") => self.exported(at.slot, &dir, index, request),
            (Ok(saved), _) => self.record_snapshot(at, &saved, request),
        }
        if let Some(next) = next {
            self.late.push((at, Late::Request(*next)));
            self.activate(at.slot);
        }
    }

    fn not_saved(
        &mut self,
        slot: u32,
        export: bool,
        (previous, index): (Index, Index),
        why: NotSaved,
        request: SnapshotRequest,
    ) {
        let replica = self.replica(slot);
        let (group, id) = (replica.config.group, replica.config.replica);
        // A leader's snapshot that was installed meanwhile is newer than either.
        if !export && replica.last_request == index && !plant::is("failed-save-counts") {
            replica.last_request = previous;
        }
        // The request before this one may have failed, too, and have ended first: what it left is what was recorded.
        let settled = replica.saves == 0 && !plant::is("failed-save-counts");
        if settled && !plant::is("overlap-puts-back-a-failure") {
            let newest = replica.snapshot.as_ref().map_or(Index::ZERO, |s| s.meta.pos.index);
            replica.last_request = replica.last_request.min(newest);
        }
        let outcome = match why {
            NotSaved::Overlaps => {
                tracing::debug!(%group, replica = %id, %index, "snapshot request ignored, another save is under way");
                Ok(SnapshotOutcome::Ignored)
            }
            NotSaved::Failed(error @ RequestError::SnapshotAborted) => {
                tracing::debug!(%group, replica = %id, %index, "snapshot save aborted");
                Err(error)
            }
            NotSaved::Failed(error) => {
                tracing::warn!(%group, replica = %id, %index, %error, "snapshot save failed");
                Err(error)
            }
        };
        request.complete(outcome);
    }

    /// An export is the user's: nothing here follows from it.
    fn exported(&mut self, slot: u32, dir: &Path, index: Index, request: SnapshotRequest) {
        let shared = &self.replica(slot).shared;
        let dir = export_path(dir, shared.group, index);
        tracing::info!(group = %shared.group, replica = %shared.replica, %index, dir = %dir.display(), "snapshot exported");
        request.complete(Ok(SnapshotOutcome::Exported { index, dir }));
    }

    fn record_snapshot(&mut self, at: SlotRef, saved: &SavedSnapshot, request: SnapshotRequest) {
        let snapshots = Arc::clone(&self.snapshots);
        let replica = self.replica(at.slot);
        let (group, id, index) = (replica.config.group, replica.config.replica, saved.meta.pos.index);
        let newest = replica.snapshot.as_ref().map_or(Index::ZERO, |s| s.meta.pos.index);
        let overtaken = newest > index || (newest == index && !replica.record_is_hollow);
        if overtaken && !plant::is("overtaken-save-recorded") {
            // A leader's snapshot was installed meanwhile: this one is out of date, and its record would be too.
            sometimes!("save-overtaken-by-an-install");
            tracing::debug!(%group, replica = %id, %index, "snapshot overtaken by an install");
            snapshots.discard(replica, index);
            return request.complete(Err(RequestError::Snapshot("overtaken by an install".to_owned())));
        }
        let mut update = replica.empty_update();
        for to in replica.sending.settle(&replica.core) {
            snapshots.sends.abort(group, to);
        }
        replica.keep_older(newest);
        let compact_to = replica.compaction_point(index, request.options());
        update.compact_to = compact_to;
        let record = record_of(saved, false);
        update.record = Some(Box::new(Record::Snapshot(record.clone())));
        replica.snapshot = Some(Box::new(record));
        replica.log_bytes_saved = replica.sending.log_bytes();
        tracing::debug!(%group, replica = %id, %index, ?compact_to, "snapshot record on its way");
        let after = AfterDurable::Saved { meta: Box::new(saved.meta.clone()), compact_to, request };
        self.push_update(update);
        self.open.after.push((at, after));
    }
}
