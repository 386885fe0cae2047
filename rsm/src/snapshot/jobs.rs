//! Saving and recovering as jobs for the snapshot pool.
//!
//! The user's code runs inside: its panics and errors end the job and reach nothing else. A state machine with
//! exclusive access is written or read in one step, whatever the budget, under its lock.

use super::error::SnapshotError;
use super::format::SnapshotHeader;
use super::publish::Publication;
use super::store::SnapshotStore;
use crate::machine::{DynMachine, MachineError};
use longboat_io::{Job, JobState};
use longboat_raft::{GroupId, Index, ReplicaId, SnapshotMeta};
use parking_lot::Mutex;
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A state machine that applies and snapshots take turns with.
pub type SharedMachine = Arc<Mutex<Box<dyn DynMachine>>>;

/// Hands a job's outcome over, once.
type Report<T> = Box<dyn FnOnce(Result<T, SnapshotError>) + Send>;

/// A snapshot that is durable under its final name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSnapshot {
    /// What it stands for.
    pub meta: SnapshotMeta,
    /// The size of its file.
    pub bytes: u64,
}

/// What a [`SaveJob`] is to do.
pub struct SaveTask {
    /// The state machine; it must stand at `header.meta.pos`, and stay there until its lock is released.
    pub machine: SharedMachine,
    /// What the snapshot stands for.
    pub header: SnapshotHeader,
    /// The replica whose snapshot it is.
    pub replica: ReplicaId,
    /// Where it goes.
    pub store: SnapshotStore,
    /// Once set, the job ends at the next block with [`SnapshotError::Stopped`].
    pub stop: Arc<AtomicBool>,
    /// Called once, with the outcome, when all is durable or all is removed.
    pub on_done: Report<SavedSnapshot>,
}

/// Saves a state machine: write, sync, rename, sync of the directories.
pub struct SaveJob {
    machine: SharedMachine,
    replica: ReplicaId,
    header: SnapshotHeader,
    store: SnapshotStore,
    stop: Arc<AtomicBool>,
    publication: Option<Publication>,
    /// Last, so that a dropped job has removed its files when it says so.
    outcome: Outcome<SavedSnapshot>,
}

impl SaveJob {
    /// A job that has done nothing yet.
    pub fn new(task: SaveTask) -> Self {
        let SaveTask { machine, header, replica, store, stop, on_done } = task;
        Self { machine, replica, header, store, stop, publication: None, outcome: Outcome(Some(on_done)) }
    }

    fn write(&self) -> Result<Publication, SnapshotError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(SnapshotError::Stopped);
        }
        let mut writer = self.store.begin(self.header.clone(), self.replica, Arc::clone(&self.stop))?;
        let saved = run_user_code(|| self.machine.lock().save(&mut writer));
        if self.stop.load(Ordering::Relaxed) {
            return Err(SnapshotError::Stopped);
        }
        if let Some(failure) = writer.take_failure() {
            return Err(failure);
        }
        saved?;
        writer.finish()
    }

    fn next(&mut self) -> Result<JobState, SnapshotError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(SnapshotError::Stopped);
        }
        match &mut self.publication {
            Some(publication) => publication.step(),
            None => {
                self.publication = Some(self.write()?);
                Ok(JobState::Again)
            }
        }
    }
}

impl Job for SaveJob {
    fn step(&mut self, _budget: usize) -> JobState {
        match self.next() {
            Ok(JobState::Done) => {
                let bytes =
                    self.publication.as_ref().expect("a snapshot is published only after it was written").bytes();
                self.outcome.report(Ok(SavedSnapshot { meta: self.header.meta.clone(), bytes }));
                JobState::Done
            }
            Ok(state) => state,
            Err(error) => {
                // Dropped first: whoever hears of the failure finds nothing left of it.
                self.publication = None;
                self.outcome.report(Err(error));
                JobState::Done
            }
        }
    }
}

impl fmt::Debug for SaveJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaveJob")
            .field("header", &self.header)
            .field("publication", &self.publication)
            .finish_non_exhaustive()
    }
}

/// What a [`RecoverJob`] is to do.
pub struct RecoverTask {
    /// The state machine whose state is replaced. After a failure its state is undefined: it must not be used.
    pub machine: SharedMachine,
    /// The group.
    pub group: GroupId,
    /// The replica whose snapshot it is.
    pub replica: ReplicaId,
    /// The snapshot's index.
    pub index: Index,
    /// Where it is.
    pub store: SnapshotStore,
    /// Once set, the job ends at the next block with [`SnapshotError::Stopped`].
    pub stop: Arc<AtomicBool>,
    /// Called once, with the outcome.
    pub on_done: Report<SnapshotMeta>,
}

/// Replaces a state machine's state by a snapshot's.
pub struct RecoverJob {
    outcome: Outcome<SnapshotMeta>,
    machine: SharedMachine,
    group: GroupId,
    replica: ReplicaId,
    index: Index,
    store: SnapshotStore,
    stop: Arc<AtomicBool>,
}

impl RecoverJob {
    /// A job that has done nothing yet.
    pub fn new(task: RecoverTask) -> Self {
        let RecoverTask { machine, group, replica, index, store, stop, on_done } = task;
        Self { outcome: Outcome(Some(on_done)), machine, group, replica, index, store, stop }
    }

    fn recover(&self) -> Result<SnapshotMeta, SnapshotError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(SnapshotError::Stopped);
        }
        let mut reader = self.store.open(self.group, self.replica, self.index)?;
        reader.stop_with(Arc::clone(&self.stop));
        let recovered = run_user_code(|| self.machine.lock().recover(&mut reader));
        if self.stop.load(Ordering::Relaxed) {
            return Err(SnapshotError::Stopped);
        }
        // Damage is named as such, though the state machine could only pass it on as an error of reading.
        if let Some(failure) = reader.take_failure() {
            return Err(failure);
        }
        recovered?;
        reader.drain()?;
        Ok(reader.header().meta.clone())
    }
}

impl Job for RecoverJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let recovered = self.recover();
        self.outcome.report(recovered);
        JobState::Done
    }
}

impl fmt::Debug for RecoverJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoverJob").field("group", &self.group).field("index", &self.index).finish_non_exhaustive()
    }
}

/// Sees to it that an outcome is reported exactly once, also for a job that a closing pool drops.
struct Outcome<T>(Option<Report<T>>);

impl<T> Outcome<T> {
    fn report(&mut self, outcome: Result<T, SnapshotError>) {
        if let Some(report) = self.0.take() {
            report(outcome);
        }
    }
}

impl<T> Drop for Outcome<T> {
    fn drop(&mut self) {
        self.report(Err(SnapshotError::Stopped));
    }
}

fn run_user_code(code: impl FnOnce() -> Result<(), MachineError>) -> Result<(), SnapshotError> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(SnapshotError::Machine(error.to_string())),
        Err(panic) => Err(SnapshotError::Panicked(panic_message(panic.as_ref()))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
