//! From a temporary directory to a snapshot that counts: sync of the file, rename, sync of the directories, in steps.
//!
//! The footer is written by the same call that syncs the file, so a file without one was never published.

use super::error::SnapshotError;
use super::export;
use super::format::{FOOTER_BYTES, SnapshotHeader};
use super::import::IMPORTED_NAME;
use super::store::{FILE_NAME, SnapshotStore};
use longboat_io::disk::SharedDisk;
use longboat_io::{DiskFile, JobState};
use longboat_raft::{GroupId, Index, ReplicaId};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Where a snapshot will be.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) store: SnapshotStore,
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) index: Index,
    /// The user's directory for an export; the store's own otherwise.
    pub(crate) export: Option<PathBuf>,
    /// It comes from an export, and is marked.
    pub(crate) imported: bool,
}

impl Place {
    fn parent(&self) -> PathBuf {
        self.export.clone().unwrap_or_else(|| self.store.replica_dir(self.group, self.replica))
    }

    fn target(&self) -> PathBuf {
        match &self.export {
            Some(dir) => dir.join(export::dir_name(self.group, self.index)),
            None => self.store.snapshot_dir(self.group, self.replica, self.index),
        }
    }
}

/// A temporary directory: removed when dropped, unless it got its final name.
#[derive(Debug)]
pub(crate) struct TempDir {
    disk: SharedDisk,
    path: PathBuf,
    armed: bool,
}

impl TempDir {
    /// Makes the directory and an empty file in it.
    pub(crate) fn make(disk: SharedDisk, path: PathBuf) -> Result<(Self, Box<dyn DiskFile>), SnapshotError> {
        disk.remove_dir_all(&path)?;
        let temp = Self { disk, path, armed: true };
        temp.disk.create_dir_all(&temp.path)?;
        let file = temp.disk.create(&temp.path.join(FILE_NAME))?;
        Ok((temp, file))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = self.disk.remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "temporary snapshot stays until the replica starts again");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    WriteFooter,
    SyncFile,
    SyncTempDir,
    Rename,
    SyncDirs,
    Done,
    Failed,
}

/// A file on its way to its final name. Dropping it before it is done removes what was written.
#[derive(Debug)]
pub struct Publication {
    place: Place,
    temp: TempDir,
    file: Box<dyn DiskFile>,
    header: SnapshotHeader,
    footer: [u8; FOOTER_BYTES],
    footer_offset: u64,
    stage: Stage,
}

impl Publication {
    pub(crate) fn new(
        place: Place,
        temp: TempDir,
        file: Box<dyn DiskFile>,
        header: SnapshotHeader,
        footer_offset: u64,
        footer: [u8; FOOTER_BYTES],
    ) -> Self {
        Self { place, temp, file, header, footer, footer_offset, stage: Stage::WriteFooter }
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.footer_offset + FOOTER_BYTES as u64
    }

    /// What the file says about itself.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Takes the next step: `Blocked` while a sync is under way, `Done` when the snapshot is durable under its final name.
    ///
    /// # Errors
    /// The first failure is final; nothing counts then.
    pub fn step(&mut self) -> Result<JobState, SnapshotError> {
        match self.next() {
            Ok(state) => Ok(state),
            Err(error) => {
                self.fail();
                Err(error)
            }
        }
    }

    fn next(&mut self) -> Result<JobState, SnapshotError> {
        let disk = &self.place.store.disk;
        match self.stage {
            Stage::WriteFooter => {
                self.file.submit_write_sync(self.footer_offset, &[&self.footer]);
                self.stage = Stage::SyncFile;
            }
            Stage::SyncFile => match self.file.poll_write_sync() {
                None => return Ok(JobState::Blocked),
                Some(synced) => {
                    synced?;
                    self.stage = Stage::SyncTempDir;
                }
            },
            Stage::SyncTempDir => {
                if self.place.export.is_some() {
                    export::write_metadata(disk, &self.temp.path)?;
                }
                if self.place.imported {
                    disk.create(&self.temp.path.join(IMPORTED_NAME))?.sync_data()?;
                }
                disk.sync_dir(&self.temp.path)?;
                self.stage = Stage::Rename;
            }
            Stage::Rename => {
                self.rename()?;
                self.stage = Stage::SyncDirs;
            }
            Stage::SyncDirs => {
                self.sync_dirs()?;
                self.stage = Stage::Done;
            }
            Stage::Done => {}
            Stage::Failed => return Err(SnapshotError::Io(std::io::Error::other("publication failed before"))),
        }
        Ok(if self.stage == Stage::Done { JobState::Done } else { JobState::Again })
    }

    /// Gives the directory its name. A snapshot that is there already stays if it is whole and says the same: a record may name it.
    fn rename(&mut self) -> Result<(), SnapshotError> {
        let Place { store, group, replica, index, export, .. } = &self.place;
        let target = self.place.target();
        if store.disk.exists(&target) {
            if export.is_some() {
                // The user's directory: nothing in it is removed or replaced.
                let text = format!("{} is there already", target.display());
                return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, text).into());
            }
            if store.verify(*group, *replica, *index).is_ok_and(|found| found == self.header) {
                return Ok(());
            }
            store.disk.remove_dir_all(&target)?;
        }
        store.disk.rename(&self.temp.path, &target)?;
        self.temp.armed = false;
        Ok(())
    }

    /// Makes the name durable, and those of the directories above it unless this process has done that for an earlier
    /// snapshot. That one is there says nothing: its maker may have died between its name and the last sync.
    fn sync_dirs(&self) -> Result<(), SnapshotError> {
        let Place { store, group, replica, export, .. } = &self.place;
        store.disk.sync_dir(&self.place.parent())?;
        if export.is_none() && !store.is_anchored(*group, *replica) {
            let group_dir = store.group_dir(*group);
            store.disk.sync_dir(&group_dir)?;
            store.disk.sync_dir(&store.root)?;
            let above = store.root.parent().filter(|p| !p.as_os_str().is_empty());
            if let Some(parent) = above.filter(|_| !store.rooted.load(Ordering::Acquire)) {
                store.disk.sync_dir(parent)?;
                store.rooted.store(true, Ordering::Release);
            }
            store.anchored(*group, *replica);
        }
        Ok(())
    }

    /// Takes back a name that may not be durable. `temp` removes itself.
    fn fail(&mut self) {
        let renamed = self.stage == Stage::SyncDirs && !self.temp.armed;
        self.stage = Stage::Failed;
        let Place { store, group, index, .. } = &self.place;
        if renamed && let Err(error) = store.disk.remove_dir_all(&self.place.target()) {
            tracing::warn!(group = group.0, index = index.0, %error, "unpublished snapshot stays until the replica starts again");
        }
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if self.stage != Stage::Done {
            self.fail();
        }
    }
}
