//! Saving as a job for the snapshot pool, and what saving and recovering have in common.
//!
//! The user's code runs inside: its panics and errors end the job and reach nothing else. A state machine with
//! exclusive access is written in one step, whatever the budget, under its lock; one that is saved off a view is written
//! part by part, while commands are applied to it.

use super::error::SnapshotError;
use super::format::{Content, SnapshotHeader};
use super::publish::Publication;
use super::store::SnapshotStore;
use super::writer::SnapshotWriter;
use crate::files::SnapshotFiles;
use crate::machine::{DynMachine, MachineError, SavePart, SaveView};
use longboat_io::{Job, JobState, Progress};
use longboat_raft::{Index, ReplicaId, SnapshotMeta, plant};
use parking_lot::Mutex;
use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A state machine that applies and snapshots take turns with.
pub type SharedMachine = Arc<Mutex<Box<dyn DynMachine>>>;

/// Hands a job's outcome over, once.
pub(crate) type Report<T> = Box<dyn FnOnce(Result<T, SnapshotError>) + Send>;

/// A snapshot that is durable under its final name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSnapshot {
    /// What it stands for.
    pub meta: SnapshotMeta,
    /// The size of its file.
    pub bytes: u64,
}

/// What is saved.
enum Source {
    /// The state machine itself, which stays where it is until the job is done.
    Locked(SharedMachine),
    /// The state at one place of the log.
    View(Box<dyn SaveView>),
    /// Nothing, once the state machine's own storage has been synced.
    Durable(SharedMachine),
    /// Nothing: the state machine's own storage is durable.
    Nothing,
}

/// A state machine at one place of the log, ready to be saved.
pub struct Prepared {
    source: Source,
    sessions: Vec<u8>,
    last_command: Index,
}

impl Prepared {
    /// Prepares `machine`, which is `shared` and locked by the caller, for a save of this content.
    ///
    /// # Errors
    /// The user's, or that its kind can't be saved like this.
    pub fn new(shared: &SharedMachine, machine: &mut dyn DynMachine, content: Content) -> Result<Self, MachineError> {
        let storage = machine.storage();
        let source = match content {
            Content::Full => match machine.prepare()? {
                Some(view) => Source::View(view),
                None => Source::Locked(Arc::clone(shared)),
            },
            Content::Metadata => match storage {
                Some(storage) if storage.durable >= storage.applied => Source::Nothing,
                Some(_) => Source::Durable(Arc::clone(shared)),
                None => return Err(MachineError::user("a state machine in memory is saved whole")),
            },
            Content::Witness => return Err(MachineError::user("a witness has no state to save")),
        };
        let last_command = storage.map_or(Index::ZERO, |s| s.last_command);
        Ok(Self { source, sessions: machine.sessions(), last_command })
    }

    /// Whether the state machine must stay where it is until the job is done.
    pub fn holds_machine(&self) -> bool {
        matches!(self.source, Source::Locked(_) | Source::Durable(_))
    }

    /// Completes a header with what was found.
    ///
    /// Storage that is ahead of the snapshot's index has later commands, which may not be durable: were the snapshot to ask
    /// for them, a power loss would leave a replica without what it begins from, though nothing that it stands for is lost.
    pub fn fill_in(&self, header: &mut SnapshotHeader) {
        header.session_bytes = self.sessions.len() as u64;
        let through =
            if plant::is("last-command-after-its-snapshot") { Index(u64::MAX) } else { header.meta.pos.index };
        header.last_command = self.last_command.min(through);
    }

    /// The view, for a transfer that makes its file as it sends it. `None` for a kind that has no views.
    pub fn into_view(self) -> Option<Box<dyn SaveView>> {
        match self.source {
            Source::View(view) => Some(view),
            Source::Locked(_) | Source::Durable(_) | Source::Nothing => None,
        }
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("holds_machine", &self.holds_machine()).finish_non_exhaustive()
    }
}

/// What a [`SaveJob`] is to do.
pub struct SaveTask {
    /// The state machine as it stands at `header.meta.pos`.
    pub prepared: Prepared,
    /// What the snapshot stands for. What [`Prepared::fill_in`] fills in is filled in.
    pub header: SnapshotHeader,
    /// The replica whose snapshot it is.
    pub replica: ReplicaId,
    /// Where it goes.
    pub store: SnapshotStore,
    /// The user's directory, when it is exported.
    pub export_to: Option<PathBuf>,
    /// Once set, the job ends at the next block with [`SnapshotError::Stopped`].
    pub stop: Arc<AtomicBool>,
    /// Called once, with the outcome, when all is durable or all is removed.
    pub on_done: Report<SavedSnapshot>,
}

#[derive(Debug)]
enum Stage {
    Begin,
    Write(Box<SnapshotWriter>),
    Publish(Box<Publication>),
}

/// Saves a state machine: write, sync, rename, sync of the directories.
pub struct SaveJob {
    prepared: Prepared,
    replica: ReplicaId,
    header: SnapshotHeader,
    store: SnapshotStore,
    export_to: Option<PathBuf>,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    stage: Stage,
    /// Last, so that a dropped job has removed its files when it says so.
    outcome: Outcome<SavedSnapshot>,
}

impl SaveJob {
    /// A job that has done nothing yet.
    pub fn new(task: SaveTask) -> Self {
        let SaveTask { prepared, mut header, replica, store, export_to, stop, on_done } = task;
        prepared.fill_in(&mut header);
        let outcome = Outcome::new(on_done);
        let progress = Arc::default();
        Self { prepared, replica, header, store, export_to, stop, progress, stage: Stage::Begin, outcome }
    }

    fn begin(&self) -> Result<SnapshotWriter, SnapshotError> {
        let (header, stop) = (self.header.clone(), Arc::clone(&self.stop));
        let mut writer = match &self.export_to {
            Some(dir) => self.store.begin_export(dir, header, self.replica, stop)?,
            None => self.store.begin(header, self.replica, stop)?,
        };
        writer.write_sessions(&self.prepared.sessions)?;
        Ok(writer)
    }

    /// Lets the state machine write its next part. Returns whether that was the last.
    fn write(&mut self, writer: &mut SnapshotWriter) -> Result<SavePart, SnapshotError> {
        let (mut part, mut files) = (SavePart::Done, SnapshotFiles::default());
        let index = self.header.meta.pos.index;
        let progress = &*self.progress;
        let mut watched = Watched { inner: &mut *writer, progress };
        let saved = run_user_code(progress, || match &mut self.prepared.source {
            Source::Locked(machine) => {
                let machine = machine.lock();
                machine.save(&mut watched)?;
                machine.save_files(&mut files)
            }
            Source::View(view) => {
                part = view.write_part(&mut watched)?;
                if part == SavePart::Done { view.files(&mut files) } else { Ok(()) }
            }
            Source::Durable(machine) => make_durable(&mut **machine.lock(), index),
            Source::Nothing => Ok(()),
        });
        self.check_stop()?;
        if let Some(failure) = writer.take_failure() {
            return Err(failure);
        }
        saved?;
        for file in files.into_files() {
            writer.write_file(&self.store.disk, &file)?;
        }
        Ok(part)
    }

    fn check_stop(&self) -> Result<(), SnapshotError> {
        if self.stop.load(Ordering::Relaxed) { Err(SnapshotError::Stopped) } else { Ok(()) }
    }

    fn next(&mut self) -> Result<JobState, SnapshotError> {
        self.check_stop()?;
        match std::mem::replace(&mut self.stage, Stage::Begin) {
            Stage::Begin => self.stage = Stage::Write(Box::new(self.begin()?)),
            Stage::Write(mut writer) => {
                self.stage = match self.write(&mut writer)? {
                    SavePart::More => Stage::Write(writer),
                    SavePart::Done => Stage::Publish(Box::new(writer.finish()?)),
                };
            }
            Stage::Publish(mut publication) => {
                let state = publication.step();
                self.stage = Stage::Publish(publication);
                return state;
            }
        }
        Ok(JobState::Again)
    }
}

/// Sees to it that the storage has all through `index` after a power loss.
fn make_durable(machine: &mut dyn DynMachine, index: Index) -> Result<(), MachineError> {
    if plant::is("storage-not-synced") {
        return Ok(());
    }
    if machine.storage().is_some_and(|s| s.durable < index) {
        machine.sync()?;
    }
    match machine.storage() {
        Some(storage) if storage.durable < index => {
            Err(MachineError::Behind { applied: storage.durable, needed: index })
        }
        _ => Ok(()),
    }
}

impl Job for SaveJob {
    fn step(&mut self, _budget: usize) -> JobState {
        match self.next() {
            Ok(JobState::Done) => {
                let Stage::Publish(publication) = &self.stage else {
                    unreachable!("a snapshot is published only after it was written");
                };
                let bytes = publication.bytes();
                self.outcome.report(Ok(SavedSnapshot { meta: self.header.meta.clone(), bytes }));
                JobState::Done
            }
            Ok(state) => state,
            Err(error) => {
                // Dropped first: whoever hears of the failure finds nothing left of it.
                self.stage = Stage::Begin;
                self.outcome.report(Err(error));
                JobState::Done
            }
        }
    }

    fn progress(&self) -> Option<&Arc<Progress>> {
        Some(&self.progress)
    }
}

impl fmt::Debug for SaveJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaveJob").field("header", &self.header).field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// Sees to it that an outcome is reported exactly once, also for a job that a closing pool drops.
pub(crate) struct Outcome<T>(Option<Report<T>>);

impl<T> Outcome<T> {
    pub(crate) fn new(report: Report<T>) -> Self {
        Self(Some(report))
    }

    pub(crate) fn report(&mut self, outcome: Result<T, SnapshotError>) {
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

/// What a state machine is given to write to or to read from: what it calls there is not its own doing, however long that takes (a
/// disk, a limit of bytes a second), and each of these calls shows that it moves on.
pub(crate) struct Watched<'a, T> {
    pub(crate) inner: &'a mut T,
    pub(crate) progress: &'a Progress,
}

impl<T: io::Write> io::Write for Watched<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _outside = self.progress.outside();
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: io::Read> io::Read for Watched<'_, T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let _outside = self.progress.outside();
        self.inner.read(out)
    }
}

/// Runs what is the user's: a panic is an error, and `progress` shows that this is where the thread is.
pub(crate) fn run_user_code(
    progress: &Progress,
    code: impl FnOnce() -> Result<(), MachineError>,
) -> Result<(), SnapshotError> {
    let _inside = progress.inside();
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
