//! Where snapshots live: `<root>/<group>/<replica>/snapshot-<index>/snapshot.bin`.
//!
//! Names are built from integers only. A group has no directory before its first snapshot.

use super::error::SnapshotError;
use super::format::SnapshotHeader;
use super::publish::{Place, TempDir};
use super::reader::SnapshotReader;
use super::writer::SnapshotWriter;
use longboat_io::disk::SharedDisk;
use longboat_io::{DiskFile, Throttle};
use longboat_raft::{GroupId, Index, ReplicaId, plant};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) const FILE_NAME: &str = "snapshot.bin";
const NAME_START: &str = "snapshot-";
const TEMP_END: &str = ".tmp";
const BROKEN_END: &str = ".broken";

/// The snapshots of a host. A cheap handle: clones are the same store.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    pub(crate) disk: SharedDisk,
    pub(crate) root: PathBuf,
    /// Numbers temporary directories, so that a job that is still stopping can't touch its successor's.
    attempts: Arc<AtomicU64>,
    /// Replicas whose directories were synced all the way up by this process.
    anchored: Arc<Mutex<BTreeSet<(GroupId, ReplicaId)>>>,
    /// The store's own name was synced by this process.
    pub(crate) rooted: Arc<AtomicBool>,
    /// How fast saves and exports may write.
    pub(crate) throttle: Option<Arc<Throttle>>,
}

impl SnapshotStore {
    /// The store under `root`. Makes no directory.
    pub fn new(disk: SharedDisk, root: PathBuf) -> Self {
        Self { disk, root, attempts: Arc::default(), anchored: Arc::default(), rooted: Arc::default(), throttle: None }
    }

    /// The same store, whose saves and exports together write so many bytes a second; 0 for no limit.
    #[must_use]
    pub fn with_write_limit(self, bytes_per_s: u64) -> Self {
        Self { throttle: (bytes_per_s > 0).then(|| Arc::new(Throttle::new(bytes_per_s))), ..self }
    }

    /// Begins a snapshot file. Once `stop` is set, its writes fail from the next block on.
    ///
    /// # Errors
    /// When the file can't be made, or the header is too large.
    pub fn begin(
        &self,
        header: SnapshotHeader,
        replica: ReplicaId,
        stop: Arc<AtomicBool>,
    ) -> Result<SnapshotWriter, SnapshotError> {
        let (place, temp, file) = self.begin_file(header.group, replica, header.meta.pos.index)?;
        SnapshotWriter::new(place, temp, file, header, stop)
    }

    /// Begins a snapshot file that is exported: it comes to be in a directory of its own in `dir`, with its metadata, and is
    /// none of this store's.
    ///
    /// # Errors
    /// As [`SnapshotStore::begin`], and when `dir` does not exist.
    pub fn begin_export(
        &self,
        dir: &Path,
        header: SnapshotHeader,
        replica: ReplicaId,
        stop: Arc<AtomicBool>,
    ) -> Result<SnapshotWriter, SnapshotError> {
        if !self.disk.exists(dir) && !plant::is("export-directory-made") {
            return Err(SnapshotError::ExportDirectory(dir.to_owned()));
        }
        let (group, index) = (header.group, header.meta.pos.index);
        let name = format!("{}-{}{TEMP_END}", super::export::dir_name(group, index), self.next_attempt());
        let (temp, file) = TempDir::make(Arc::clone(&self.disk), dir.join(name))?;
        let place = Place { store: self.clone(), group, replica, index, export: Some(dir.to_owned()), imported: false };
        SnapshotWriter::new(place, temp, file, header, stop)
    }

    fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A directory for the files of a snapshot that is being recovered. The caller removes it; the next start does.
    pub(crate) fn files_dir(&self, group: GroupId, replica: ReplicaId, index: Index) -> PathBuf {
        let name = format!("{NAME_START}{index}-{}.files{TEMP_END}", self.next_attempt());
        self.replica_dir(group, replica).join(name)
    }

    pub(crate) fn begin_file(
        &self,
        group: GroupId,
        replica: ReplicaId,
        index: Index,
    ) -> Result<(Place, TempDir, Box<dyn DiskFile>), SnapshotError> {
        let name = format!("{NAME_START}{index}-{}{TEMP_END}", self.next_attempt());
        let (temp, file) = TempDir::make(Arc::clone(&self.disk), self.replica_dir(group, replica).join(name))?;
        Ok((Place { store: self.clone(), group, replica, index, export: None, imported: false }, temp, file))
    }

    /// Opens a snapshot for reading and checks its header and footer.
    ///
    /// # Errors
    /// When it is not there, is damaged, or is of another group or index than its name says.
    pub fn open(&self, group: GroupId, replica: ReplicaId, index: Index) -> Result<SnapshotReader, SnapshotError> {
        let reader = SnapshotReader::new(self.open_file(group, replica, index)?)?;
        let header = reader.header();
        check_place(header, group, index)?;
        Ok(reader)
    }

    /// Reads a whole snapshot and checks every byte of it.
    ///
    /// # Errors
    /// As [`SnapshotStore::open`].
    pub fn verify(&self, group: GroupId, replica: ReplicaId, index: Index) -> Result<SnapshotHeader, SnapshotError> {
        let mut reader = self.open(group, replica, index)?;
        reader.drain()?;
        Ok(reader.header().clone())
    }

    /// Whether the names of the replica's directories are known to be durable.
    pub(crate) fn is_anchored(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.anchored.lock().contains(&(group, replica))
    }

    pub(crate) fn anchored(&self, group: GroupId, replica: ReplicaId) {
        self.anchored.lock().insert((group, replica));
    }

    pub(crate) fn open_file(
        &self,
        group: GroupId,
        replica: ReplicaId,
        index: Index,
    ) -> Result<Box<dyn DiskFile>, SnapshotError> {
        self.disk.open(&self.snapshot_dir(group, replica, index).join(FILE_NAME)).map_err(SnapshotError::reading)
    }

    /// The indexes of the finished snapshots of a replica, ascending.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn list(&self, group: GroupId, replica: ReplicaId) -> Result<Vec<Index>, SnapshotError> {
        let names = self.names(&self.replica_dir(group, replica))?;
        let mut found: Vec<Index> = names.iter().filter_map(|name| finished_index(name)).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The replicas that have a directory here, in order.
    ///
    /// # Errors
    /// When a directory can't be read.
    pub fn replicas(&self) -> Result<Vec<(GroupId, ReplicaId)>, SnapshotError> {
        let mut found = Vec::new();
        for group in self.names(&self.root)?.iter().filter_map(|name| integer(name)).map(GroupId) {
            let replicas = self.names(&self.group_dir(group))?;
            found.extend(replicas.iter().filter_map(|name| integer(name)).map(|replica| (group, ReplicaId(replica))));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes one snapshot; no error when it is not there.
    ///
    /// # Errors
    /// When the files can't be removed.
    pub fn remove(&self, group: GroupId, replica: ReplicaId, index: Index) -> Result<(), SnapshotError> {
        Ok(self.disk.remove_dir_all(&self.snapshot_dir(group, replica, index))?)
    }

    /// Gives a damaged snapshot a name that nothing reads, for whoever wants to know how it was damaged. One is kept: an
    /// earlier one of the replica is removed.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn set_aside(&self, group: GroupId, replica: ReplicaId, index: Index) -> Result<(), SnapshotError> {
        let dir = self.replica_dir(group, replica);
        for name in self.names(&dir)?.iter().filter(|name| name.starts_with(NAME_START) && name.ends_with(BROKEN_END)) {
            self.disk.remove_dir_all(&dir.join(name))?;
        }
        let from = self.snapshot_dir(group, replica, index);
        if self.disk.exists(&from) {
            self.disk.rename(&from, &dir.join(format!("{NAME_START}{index}{BROKEN_END}")))?;
            self.disk.sync_dir(&dir)?;
        }
        Ok(())
    }

    /// Removes every snapshot of a replica whose index is not in `keep`, and every unfinished one. For the start of a
    /// replica, when nothing of it is being made. Returns how many were removed.
    ///
    /// # Errors
    /// When the directory can't be read or files can't be removed.
    pub fn remove_orphans(&self, group: GroupId, replica: ReplicaId, keep: &[Index]) -> Result<usize, SnapshotError> {
        let dir = self.replica_dir(group, replica);
        let mut removed = 0;
        for name in self.names(&dir)? {
            let orphan = match finished_index(&name) {
                Some(index) => !keep.contains(&index),
                None => is_temporary(&name),
            };
            if orphan {
                self.disk.remove_dir_all(&dir.join(&name))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes all that a replica has here. Nothing of its group may be made meanwhile.
    ///
    /// # Errors
    /// When the files can't be removed.
    pub fn remove_replica(&self, group: GroupId, replica: ReplicaId) -> Result<(), SnapshotError> {
        self.anchored.lock().remove(&(group, replica));
        self.disk.remove_dir_all(&self.replica_dir(group, replica))?;
        let dir = self.group_dir(group);
        if self.names(&dir)?.is_empty() {
            self.disk.remove_dir_all(&dir)?;
        }
        Ok(())
    }

    pub(crate) fn group_dir(&self, group: GroupId) -> PathBuf {
        self.root.join(group.0.to_string())
    }

    pub(crate) fn replica_dir(&self, group: GroupId, replica: ReplicaId) -> PathBuf {
        self.group_dir(group).join(replica.0.to_string())
    }

    pub(crate) fn snapshot_dir(&self, group: GroupId, replica: ReplicaId, index: Index) -> PathBuf {
        self.replica_dir(group, replica).join(format!("{NAME_START}{index}"))
    }

    /// The names in a directory; none when it is not there.
    fn names(&self, dir: &Path) -> Result<Vec<String>, SnapshotError> {
        let listed = match self.disk.list(dir) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        Ok(listed.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }
}

/// A file is only what its name says when its header agrees.
pub(crate) fn check_place(header: &SnapshotHeader, group: GroupId, index: Index) -> Result<(), SnapshotError> {
    if header.group == group && header.meta.pos.index == index {
        return Ok(());
    }
    Err(SnapshotError::Mismatch { group, index, found_group: header.group, found_index: header.meta.pos.index })
}

fn finished_index(name: &str) -> Option<Index> {
    integer(name.strip_prefix(NAME_START)?).map(Index)
}

fn is_temporary(name: &str) -> bool {
    name.starts_with(NAME_START) && name.ends_with(TEMP_END)
}

/// A number as this module writes it: no sign, no leading zeros.
fn integer(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}
