//! Requests for snapshots: what they ask for, how they end, and what waits for that.
//!
//! Invariants: a request ends once, also when its replica or host is gone; whoever ends a request early sets its stop flag,
//! and what works on it looks at that flag at every block. Must not know: raft state, files.

use super::admission::Admitted;
use crate::shared::GroupShared;
use longboat_raft::{Index, SnapshotMeta, Time, plant};
use longboat_rsm::snapshot::SavedSnapshot;
use longboat_rsm::{AnyCompletion, Completion, RequestError, SnapshotRefusal, Stage};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How to take a snapshot, and what of the log goes behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// Export it: it comes to be in a directory of its own in this one, which must exist. Nothing of the replica's own
    /// changes: no snapshot of its own is made, and no log goes.
    pub export_to: Option<PathBuf>,
    /// Entries that are kept behind this snapshot, in place of the group's configured number.
    pub compaction_overhead: Option<u64>,
    /// The log goes through this index, which the snapshot must have reached, in place of what the configured number of
    /// entries gives.
    pub compaction_index: Option<Index>,
}

impl SnapshotOptions {
    /// An export into a directory of its own in `dir`, which must exist.
    pub fn export_to(dir: impl Into<PathBuf>) -> Self {
        Self { export_to: Some(dir.into()), ..Self::default() }
    }

    /// Keeps this many entries behind the snapshot, whatever is configured.
    #[must_use]
    pub fn with_compaction_overhead(self, entries: u64) -> Self {
        Self { compaction_overhead: Some(entries), ..self }
    }

    /// Lets the log go through this index, and no further.
    #[must_use]
    pub fn with_compaction_index(self, index: Index) -> Self {
        Self { compaction_index: Some(index), ..self }
    }

    /// Whether the options go together.
    pub(crate) fn check(&self) -> Result<(), SnapshotRefusal> {
        match (self.compaction_overhead.is_some(), self.compaction_index.is_some()) {
            (true, true) if !plant::is("two-overrides-taken") => Err(SnapshotRefusal::TwoOverrides),
            (false, false) => Ok(()),
            _ if self.export_to.is_some() => Err(SnapshotRefusal::ExportKeepsLog),
            _ => Ok(()),
        }
    }
}

/// What a snapshot request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotOutcome {
    /// A snapshot of the state at this index is durable.
    Saved {
        /// The index.
        index: Index,
    },
    /// Nothing was applied since the last request, or another save is under way: there is nothing new to save.
    Ignored,
    /// A snapshot of the state at this index was exported, and is durable.
    Exported {
        /// The index.
        index: Index,
        /// The directory that holds it.
        dir: PathBuf,
    },
}

/// A request for a snapshot, in the group's pending slot.
#[derive(Debug)]
pub struct SnapshotRequest {
    results: Option<Arc<Completion<SnapshotOutcome>>>,
    /// When its client gives up.
    pub deadline: Time,
    options: SnapshotOptions,
    /// Once set, what works on it ends at the next block.
    stop: Arc<AtomicBool>,
    /// It counts among the host's saves.
    pub(crate) admitted: Option<Admitted>,
}

impl SnapshotRequest {
    /// A user's request; its outcome goes to slot 0 of `results`.
    pub fn user(
        shared: &GroupShared,
        options: SnapshotOptions,
        results: Arc<Completion<SnapshotOutcome>>,
        deadline: Time,
    ) -> Self {
        Self { results: Some(results), deadline, options, stop: shared.new_save(), admitted: None }
    }

    /// The engine's own, every so many applied entries.
    pub fn periodic(shared: &GroupShared) -> Self {
        let (results, options) = (None, SnapshotOptions::default());
        Self { results, deadline: Time(u64::MAX), options, stop: shared.new_save(), admitted: None }
    }

    /// Where it is exported to, if it is an export.
    pub fn export_to(&self) -> Option<&Path> {
        self.options.export_to.as_deref()
    }

    /// What of the log goes behind it.
    pub fn options(&self) -> &SnapshotOptions {
        &self.options
    }

    /// Whether somebody waits for its outcome.
    pub fn is_users(&self) -> bool {
        self.results.is_some()
    }

    /// Set once it is aborted.
    pub fn stop(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// Whether it was aborted.
    pub fn is_aborted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What its deadline fails, if it has one. The first outcome wins.
    pub fn timeout(&self) -> Option<SnapshotTimeout> {
        let results = Arc::clone(self.results.as_ref()?);
        Some(SnapshotTimeout { results, deadline: self.deadline })
    }

    /// Tells the outcome.
    pub fn complete(mut self, outcome: Result<SnapshotOutcome, RequestError>) {
        if let Some(results) = self.results.take() {
            results.complete(0, std::iter::once(outcome));
        }
    }
}

impl Drop for SnapshotRequest {
    /// A request that nobody could answer, because its replica or host is gone, is resolved all the same.
    fn drop(&mut self) {
        if let Some(results) = self.results.take() {
            results.fail(0, 1, &RequestError::Stopped);
        }
    }
}

/// The deadline of a snapshot request that is under way.
#[derive(Debug)]
pub struct SnapshotTimeout {
    results: Arc<Completion<SnapshotOutcome>>,
    /// When its client gives up.
    pub deadline: Time,
}

impl SnapshotTimeout {
    /// The client waits no longer; the save goes on.
    pub fn expire(self) {
        self.fail(&RequestError::Timeout { stage: Stage::Apply, may_have_applied: false });
    }

    /// The request ends with this error, if it has not ended yet.
    pub fn fail(self, error: &RequestError) {
        self.results.fail(0, 1, error);
    }
}

/// A save that stands behind the applies that precede it.
#[derive(Debug)]
pub struct SaveTask {
    /// What the snapshot stands for: the state machine is there when the task's turn comes.
    pub meta: SnapshotMeta,
    /// The index of the request before, to be put back if this one fails.
    pub previous: Index,
    /// Who asked.
    pub request: SnapshotRequest,
}

impl SaveTask {
    /// It ended like this.
    pub fn ended(self, result: Result<SavedSnapshot, NotSaved>) -> SaveOutcome {
        SaveOutcome { result, index: self.meta.pos.index, previous: self.previous, request: self.request }
    }
}

/// Why there is no snapshot.
#[derive(Debug)]
pub enum NotSaved {
    /// Another save of the replica is under way.
    Overlaps,
    /// It failed, was refused or aborted.
    Failed(RequestError),
}

/// How a save ended.
#[derive(Debug)]
pub struct SaveOutcome {
    /// The files, durable, or why not.
    pub result: Result<SavedSnapshot, NotSaved>,
    /// What it stands, or would have stood, for.
    pub index: Index,
    /// The index of the request before.
    pub previous: Index,
    /// Who asked.
    pub request: SnapshotRequest,
}
