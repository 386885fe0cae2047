//! Files of the user's that travel in a snapshot beside what the state machine writes.

use crate::machine::MachineError;
use std::path::{Path, PathBuf};

/// Most files of one snapshot.
pub const FILES_MAX: usize = 4096;
/// Most bytes that describe one file.
pub const FILE_METADATA_BYTES_MAX: usize = 64 << 10;

/// Gathers the files that belong to a snapshot.
#[derive(Debug, Default)]
pub struct SnapshotFiles {
    files: Vec<NamedFile>,
}

#[derive(Debug)]
pub(crate) struct NamedFile {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    pub(crate) metadata: Vec<u8>,
}

impl SnapshotFiles {
    /// Adds the file at `path`, which is read after this. It is found again by `id`, with the same `metadata`.
    ///
    /// # Errors
    /// When the id is taken, or there are more files or bytes of metadata than a snapshot may have.
    pub fn add(&mut self, id: u64, path: impl Into<PathBuf>, metadata: &[u8]) -> Result<(), MachineError> {
        if self.files.iter().any(|f| f.id == id) {
            return Err(MachineError::user(format!("two files of a snapshot have the id {id}")));
        }
        if self.files.len() == FILES_MAX {
            return Err(MachineError::user(format!("a snapshot has at most {FILES_MAX} files")));
        }
        if metadata.len() > FILE_METADATA_BYTES_MAX {
            let text = format!("metadata of {} bytes, the limit is {FILE_METADATA_BYTES_MAX}", metadata.len());
            return Err(MachineError::user(text));
        }
        self.files.push(NamedFile { id, path: path.into(), metadata: metadata.to_vec() });
        Ok(())
    }

    pub(crate) fn into_files(self) -> Vec<NamedFile> {
        self.files
    }
}

/// The files of a snapshot, each checked and written to a temporary directory.
#[derive(Debug, Default)]
pub struct RecoveredFiles {
    files: Vec<RecoveredFile>,
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredFile {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    pub(crate) metadata: Vec<u8>,
    pub(crate) bytes: u64,
}

impl RecoveredFile {
    /// The id with which it was added.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it is now. It may be renamed; it is not synced.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was said of it when it was added.
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl RecoveredFiles {
    pub(crate) fn new(files: Vec<RecoveredFile>) -> Self {
        Self { files }
    }

    /// The file that was added with this id.
    pub fn find(&self, id: u64) -> Option<&RecoveredFile> {
        self.files.iter().find(|f| f.id == id)
    }

    /// All files, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &RecoveredFile> {
        self.files.iter()
    }

    /// The number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether the snapshot has no files.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// For a state machine that has no files.
    ///
    /// # Errors
    /// When there are some all the same: another kind of state machine saved the snapshot.
    pub fn none_expected(&self) -> Result<(), MachineError> {
        match self.files.len() {
            0 => Ok(()),
            n => Err(MachineError::user(format!("the snapshot has {n} files, this state machine recovers none"))),
        }
    }
}
