//! How making, reading and moving snapshots fails.

use longboat_raft::{GroupId, Index, plant};
use std::io;
use std::path::PathBuf;

/// Why a snapshot was not made, read or taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Reading, writing or making files failed. What was unfinished is removed; a new snapshot can be tried.
    #[error("snapshot file: {0}")]
    Io(#[from] io::Error),
    /// The disk can't give the file back: to who needs it that is what damage is.
    #[error("the disk can't read the snapshot: {0}")]
    Unreadable(#[source] io::Error),
    /// The file is damaged, cut short, or not a snapshot.
    #[error("snapshot is corrupt: {0}")]
    Corrupt(String),
    /// The file was written in a version or with an option that this build can't read.
    #[error("snapshot has {what} {found}, this build reads up to {supported}")]
    Unsupported {
        /// What is too new.
        what: &'static str,
        /// The file's value.
        found: u64,
        /// The highest value that is known.
        supported: u64,
    },
    /// The directory for an export is not there. It is the user's to make: a mistyped path fills no disk.
    #[error("export directory {0} does not exist")]
    ExportDirectory(PathBuf),
    /// The file belongs to another group or another place in the log.
    #[error("snapshot is of group {found_group} at index {found_index}, not of group {group} at index {index}")]
    Mismatch {
        /// The group that was asked for.
        group: GroupId,
        /// The index that was asked for.
        index: Index,
        /// The group in the file.
        found_group: GroupId,
        /// The index in the file.
        found_index: Index,
    },
    /// A received chunk starts after the first missing byte. Nothing changed: send again from `expected`.
    #[error("snapshot chunk at {found} leaves a gap, the next byte is {expected}")]
    Gap {
        /// The first byte that is missing.
        expected: u64,
        /// Where the chunk starts.
        found: u64,
    },
    /// It holds no state, and the state machine's own storage lacks what it stands for.
    #[error("the snapshot holds no state: {0}")]
    Behind(String),
    /// The user's state machine returned an error.
    #[error("state machine failed: {0}")]
    Machine(String),
    /// The user's state machine panicked.
    #[error("state machine panicked: {0}")]
    Panicked(String),
    /// The state is in the storage of an on-disk state machine, or there is none: such a snapshot stays where it is.
    #[error("the snapshot holds no state: it is of an on-disk state machine, or of a witness")]
    Stateless,
    /// A stop was asked for.
    #[error("stopped before the snapshot was finished")]
    Stopped,
}

impl SnapshotError {
    /// Whether this snapshot is of no use and nothing else is at fault, so that another one may serve.
    pub fn is_unusable(&self) -> bool {
        match self {
            Self::Corrupt(_) | Self::Mismatch { .. } | Self::Behind(_) => true,
            Self::Unreadable(_) => !plant::is("unreadable-stops-the-replica"),
            Self::Io(error) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// An error of reading a snapshot's file: of the disk, or of the moment. One of the moment stops who reads, and leaves the file as it
    /// is.
    pub(crate) fn reading(error: io::Error) -> Self {
        let lost = longboat_io::is_lost_on_disk(&error);
        let lost = lost || (plant::is("passing-error-taken-for-damage") && error.kind() != io::ErrorKind::NotFound);
        if lost { Self::Unreadable(error) } else { Self::Io(error) }
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}
