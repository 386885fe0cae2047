//! Recovering as a job for the snapshot pool: from the newest snapshot that is whole.
//!
//! Invariants: a damaged snapshot is set aside and never used; what a state machine was given of one is replaced as a whole
//! by an older one's state, or the job fails.

use super::error::SnapshotError;
use super::format::Content;
use super::jobs::{Outcome, Report, SharedMachine, Watched, run_user_code};
use super::reader::SnapshotReader;
use super::store::SnapshotStore;
use crate::files::{RecoveredFile, RecoveredFiles};
use crate::machine::{DynMachine, MachineError};
use longboat_io::{Job, JobState, Progress};
use longboat_raft::{GroupId, Index, ReplicaId, SnapshotMeta, plant};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Older snapshots from which the log can still bring the state machine up to date, newest first: tried in turn when a
    /// newer one is damaged.
    pub older: Vec<Index>,
    /// Where they are.
    pub store: SnapshotStore,
    /// Once set, the job ends at the next block with [`SnapshotError::Stopped`].
    pub stop: Arc<AtomicBool>,
    /// Called once, with what the snapshot that was used stands for.
    pub on_done: Report<SnapshotMeta>,
}

/// Replaces a state machine's state by a snapshot's.
pub struct RecoverJob {
    outcome: Outcome<SnapshotMeta>,
    machine: SharedMachine,
    group: GroupId,
    replica: ReplicaId,
    index: Index,
    older: Vec<Index>,
    store: SnapshotStore,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
}

/// The files of a snapshot on their way to the state machine: removed when dropped.
struct FilesDir<'a> {
    store: &'a SnapshotStore,
    path: PathBuf,
    made: bool,
}

impl Drop for FilesDir<'_> {
    fn drop(&mut self) {
        if self.made
            && let Err(error) = self.store.disk.remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "recovered files stay until the replica starts again");
        }
    }
}

impl FilesDir<'_> {
    /// Writes all files that are left in `reader`, each byte checked before.
    fn extract(&mut self, reader: &mut SnapshotReader) -> Result<RecoveredFiles, SnapshotError> {
        let mut files = Vec::new();
        while let Some(entry) = reader.next_file()? {
            if !self.made {
                self.store.disk.create_dir_all(&self.path)?;
                self.made = true;
            }
            let path = self.path.join(format!("file-{}", entry.id));
            let mut file = self.store.disk.create(&path)?;
            let mut bytes = 0;
            while let Some(part) = reader.next_file_part()? {
                file.write_all_at(part, bytes)?;
                bytes += part.len() as u64;
            }
            if bytes != entry.bytes {
                return Err(SnapshotError::corrupt(format!("file {} has not its length", entry.id)));
            }
            files.push(RecoveredFile { id: entry.id, path, metadata: entry.metadata, bytes });
        }
        Ok(RecoveredFiles::new(files))
    }
}

impl RecoverJob {
    /// A job that has done nothing yet.
    pub fn new(task: RecoverTask) -> Self {
        let RecoverTask { machine, group, replica, index, older, store, stop, on_done } = task;
        let (outcome, progress) = (Outcome::new(on_done), Arc::default());
        Self { outcome, machine, group, replica, index, older, store, stop, progress }
    }

    /// Recovers from the newest snapshot that is whole.
    fn recover(&self) -> Result<SnapshotMeta, SnapshotError> {
        let mut older = self.older.iter().copied();
        let mut index = self.index;
        loop {
            let recovered = self.recover_from(index);
            let Err(error) = recovered else { return recovered };
            if !error.is_unusable() {
                return Err(error);
            }
            tracing::error!(group = %self.group, replica = %self.replica, %index, %error, "snapshot can't be used");
            // One that is whole, and only of no use to this storage, is no evidence of damage.
            if !matches!(error, SnapshotError::Behind(_)) && !plant::is("broken-not-set-aside") {
                self.store.set_aside(self.group, self.replica, index)?;
            }
            let Some(next) = older.next() else { return Err(error) };
            index = next;
        }
    }

    fn recover_from(&self, index: Index) -> Result<SnapshotMeta, SnapshotError> {
        self.check_stop()?;
        let mut reader = self.store.open(self.group, self.replica, index)?;
        reader.stop_with(Arc::clone(&self.stop));
        // Whoever holds it is in a call of the state machine, too.
        let waits = self.progress.inside();
        let mut machine = self.machine.lock();
        drop(waits);
        let last_command = reader.header().last_command;
        // Storage that has all of it already need not be replaced: what it has beyond is committed too. Not so after an import:
        // what was committed beyond the snapshot was so in a history that has ended.
        let imported = self.store.is_imported(self.group, self.replica, index);
        let has_it = machine.storage().is_some_and(|s| s.applied >= last_command && !last_command.is_zero());
        match reader.header().content {
            Content::Full if !has_it || imported => self.recover_full(&mut **machine, &mut reader, index)?,
            Content::Full | Content::Metadata => {
                reader.drain()?;
                let mut behind = None;
                run_user_code(&self.progress, || match machine.resume_at(index, last_command) {
                    Err(error @ MachineError::Behind { .. }) if !plant::is("behind-stops-the-replica") => {
                        behind = Some(error.to_string());
                        Ok(())
                    }
                    other => other,
                })?;
                behind.map_or(Ok(()), |text| Err(SnapshotError::Behind(text)))?;
            }
            Content::Witness => return Err(SnapshotError::corrupt("a witness's snapshot has no state")),
        }
        Ok(reader.header().meta.clone())
    }

    fn recover_full(
        &self,
        machine: &mut dyn DynMachine,
        reader: &mut SnapshotReader,
        index: Index,
    ) -> Result<(), SnapshotError> {
        let sessions = reader.sessions()?;
        let mut watched = Watched { inner: &mut *reader, progress: &self.progress };
        let recovered = run_user_code(&self.progress, || {
            machine.restore_sessions(&sessions)?;
            machine.recover(&mut watched)
        });
        self.check_stop()?;
        // Damage is named as such, though the state machine could only pass it on as an error of reading.
        if let Some(failure) = reader.take_failure() {
            return Err(failure);
        }
        recovered?;
        let path: &Path = &self.store.files_dir(self.group, self.replica, index);
        let mut dir = FilesDir { store: &self.store, path: path.to_owned(), made: false };
        let files = dir.extract(reader)?;
        reader.drain()?;
        let last_command = reader.header().last_command;
        run_user_code(&self.progress, || {
            machine.recover_files(&files)?;
            machine.recovered_at(index, last_command);
            Ok(())
        })?;
        if self.store.is_imported(self.group, self.replica, index) {
            run_user_code(&self.progress, || machine.sync())?;
            self.store.recovered_import(self.group, self.replica, index)?;
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<(), SnapshotError> {
        if self.stop.load(Ordering::Relaxed) { Err(SnapshotError::Stopped) } else { Ok(()) }
    }
}

impl Job for RecoverJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let recovered = self.recover();
        self.outcome.report(recovered);
        JobState::Done
    }

    fn progress(&self) -> Option<&Arc<Progress>> {
        Some(&self.progress)
    }
}

impl fmt::Debug for RecoverJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoverJob").field("group", &self.group).field("index", &self.index).finish_non_exhaustive()
    }
}
