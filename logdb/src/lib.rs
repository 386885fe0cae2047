//! The log store: what makes raft state durable, for all groups of a host at once.
//!
//! [`LogDb`] is submit and poll: batches are durable in the order in which they were submitted, many groups to a batch,
//! one sync to a batch. The default, the shared store, is a journal in front of one RocksDB; the journal is the
//! only truth and RocksDB is the fold of it.
//!
//! Must not know: workers, transport, state machines, what a vote or an append means.

mod ahead;
mod archive;
mod attic;
mod buffer;
mod codec;
mod config;
mod effect;
mod fold;
mod format;
mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzzing;
mod identity;
mod index;
mod kv;
mod reader;
mod recover;
mod rot;
mod segment;
mod settle;
mod shared;
mod store;
mod upkeep;
mod writer;

#[cfg(feature = "rocksdb")]
pub use config::RocksEnv;
pub use config::{
    JOURNAL_BYTES_MAX_DEFAULT, KeyValue, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SharedLogConfig,
};
pub use store::SharedLog;

use longboat_raft::{
    GroupEpoch, GroupId, HardState, HostId, Index, LogPos, Membership, ReplicaId, Run, SnapshotMeta, StoreId,
};
use smallvec::SmallVec;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The number of a submitted batch. The first is 1; durability is reached in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// What one group makes durable in one batch. Carried out in this order: `record`, `cut_tail`, `runs`, `compact_to`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The group.
    pub group: GroupId,
    /// Term, vote and commit after this update. Always given.
    pub hard_state: HardState,
    /// Removes the entries from this index on. Set whenever `runs` overwrites.
    pub cut_tail: Option<Index>,
    /// Contiguous runs to append right after the last entry.
    pub runs: SmallVec<[Run; 1]>,
    /// The entries through this one are not needed any more. The place itself stays known, as the log's start.
    pub compact_to: Option<LogPos>,
    /// What is rare.
    pub record: Option<Box<Record>>,
}

/// The rare records of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The replica exists on this host from here on.
    Bootstrap(Bootstrap),
    /// A snapshot is durable on this host.
    Snapshot(SnapshotRecord),
    /// The replica was removed from its group, or its data given up: all of it goes, this fact stays.
    Removed {
        /// The replica that is gone.
        replica: ReplicaId,
    },
    /// A part of what the group had made durable can't be read any more: all of it goes, this fact stays. Only the store itself
    /// makes one, while it opens.
    Quarantined {
        /// The replica that was here; [`REPLICA_NOT_KNOWN`] when what is damaged may have said which.
        replica: ReplicaId,
        /// The record of the journal with what is damaged.
        record: u64,
    },
}

/// Stands for the replica of a quarantined group when nobody knows any more which one it was. No removal names it, so such a
/// group stays quarantined for as long as the directory is there: whatever id it came back under might be the one that was lost.
pub const REPLICA_NOT_KNOWN: ReplicaId = ReplicaId(u64::MAX);

/// How a replica came to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bootstrap {
    /// This host's replica of the group.
    pub replica: ReplicaId,
    /// The incarnation of the group's history.
    pub epoch: GroupEpoch,
    /// The first membership; empty for a replica that joins.
    pub membership: Membership,
    /// Replicas of the group that were removed from this host: none of them comes back.
    pub gone: BTreeSet<ReplicaId>,
}

/// A snapshot that is durable on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// What the snapshot stands for.
    pub meta: SnapshotMeta,
    /// The size of its file, in bytes.
    pub bytes: u64,
    /// It came from a leader and replaces the log: all entries go and the log starts after it.
    pub resets_log: bool,
}

/// What a store knows of a group, after opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The group.
    pub group: GroupId,
    /// How the replica came to be.
    pub bootstrap: Bootstrap,
    /// The last durable term, vote and commit.
    pub hard_state: HardState,
    /// The newest snapshot, if one was recorded.
    pub snapshot: Option<SnapshotRecord>,
    /// The place just before the first entry that is kept; zero if the log was never compacted.
    pub start: LogPos,
    /// The last entry; equals `start` when the log is empty.
    pub last: LogPos,
    /// The first entry of every term that the kept log has, in order.
    pub terms: Vec<LogPos>,
    /// The replica was removed: nothing else is known.
    pub removed: bool,
    /// A frame of the group, in this record of the journal, was damaged after it had been durable. Nothing is known but which
    /// replica was here: it may have voted and acknowledged what nobody remembers, and must never run again.
    pub quarantined: Option<u64>,
}

impl GroupState {
    /// Whether there is no replica here: frames mean nothing until one is begun anew.
    pub(crate) fn is_void(&self) -> bool {
        self.removed || self.quarantined.is_some()
    }
}

/// What polling came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Every batch up to this one is durable.
    pub durable_through: Seq,
    /// Whether submitted batches are still under way.
    pub in_flight: bool,
    /// How much was ever made durable, over all openings of the store: it never falls while none of that is lost.
    pub place: u64,
}

/// The store failed. Final: it takes no more batches, and of batches not yet reported durable nothing is known.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A write or a sync failed. Never retried.
    #[error("log store write failed, the host must be restarted: {0}")]
    Write(Arc<std::io::Error>),
    /// The key-value store behind the journal failed.
    #[error("key-value store failed, the host must be restarted: {0}")]
    KeyValue(String),
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A field of the configuration is out of its limits.
    #[error("log store configuration: {0}")]
    Config(String),
    /// Reading, writing or making files failed.
    #[error("data directory can't be used: {0}")]
    Io(#[from] std::io::Error),
    /// Another process has the directory.
    #[error("data directory {0} is in use by another host")]
    Locked(std::path::PathBuf),
    /// The directory belongs to another host.
    #[error("data directory belongs to host {found}, this is host {expected}")]
    OtherHost {
        /// The configured host.
        expected: HostId,
        /// The directory's owner.
        found: HostId,
    },
    /// The directory holds something else, or a version that this build can't read.
    #[error("data directory is not a log store of a supported version: {0}")]
    Format(String),
    /// Durable data was damaged.
    #[error("log store is corrupt: {0}")]
    Corrupt(String),
    /// Other hosts have seen more of this store than the directory holds: it is an older copy.
    #[error(
        "data directory {0} is an older copy of what this host had: remove it, and replace its replicas by new ones under new ids"
    )]
    RolledBack(std::path::PathBuf),
    /// The key-value store failed.
    #[error("key-value store failed: {0}")]
    KeyValue(String),
}

/// Why entries can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The range starts before what is kept.
    #[error("entries before {0} were compacted")]
    Compacted(Index),
    /// The range ends after what is durable, or the group is not known.
    #[error("entries are not here")]
    Unavailable,
    /// Reading failed or found damaged data.
    #[error("entries can't be read: {0}")]
    Failed(String),
}

/// Figures of a store, for metrics and benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Batches that were written and synced.
    pub syncs: u64,
    /// Entries that were appended.
    pub entries: u64,
    /// Bytes that were written to the journal, padding included.
    pub journal_bytes_written: u64,
    /// Journal segments in use.
    pub segments: u64,
    /// Bytes of log that are kept.
    pub log_bytes: u64,
    /// Entries that were settled into the key-value store.
    pub settled_entries: u64,
    /// Journal segments that wait to be used again.
    pub free_segments: u64,
    /// Segments that were begun before anybody had written their blocks once: syncs take several times as long there.
    pub unfilled_segments: u64,
    /// Segments that are settled and stay as they are, because much of what they hold is kept. Not in `segments`.
    pub archived_segments: u64,
    /// The bytes of their files.
    pub archived_file_bytes: u64,
    /// Bytes of segments in use, as a part of the journal's bound. Settling starts above 50; near 100 and beyond, it does
    /// not keep up, and a host should take no more proposals. 1,000 when there is no room for more segments.
    pub pressure_percent: u32,
}

/// A store of raft state. Owned by one log writer.
pub trait LogDb: Send + 'static {
    /// Takes a batch. Never blocks; the batch is under way or queued when this returns.
    ///
    /// The updates of one group must be submitted in the order in which its core made them. One that contradicts what
    /// was submitted before it (a gap, a cut of what was compacted, a compaction beyond the last entry) is a mistake of
    /// the caller and panics, here or when it is about to be written: it could never be read back. Updates of a removed
    /// group mean nothing until one that bootstraps it anew.
    fn submit(&mut self, batch: Vec<Update>) -> Seq;

    /// A batch of before, emptied, to be filled again. What thousands of groups make durable in one batch is large enough that
    /// giving it back to the allocator costs as much as filling it.
    fn spare(&mut self) -> Option<Vec<Update>> {
        None
    }

    /// Drives what was submitted. A real store blocks here, for at most one write and one sync.
    /// While `in_flight` is reported on a real disk there is more to write: poll again.
    ///
    /// # Errors
    /// The first failure, and the same one for ever after.
    fn poll(&mut self) -> Result<Progress, LogError>;

    /// Housekeeping that the host should run on its pool: settling segments, say, or making files ahead. There may be one
    /// of each kind at a time. `None` when there is nothing to do but what still runs. Failures come out of [`LogDb::poll`].
    fn background_job(&mut self) -> Option<Box<dyn longboat_io::Job>>;

    /// Groups whose uncommitted tail, or unwritten commit index, keeps the oldest segment from being recycled. The host
    /// submits their hard state again, with `cut_tail` at the first uncommitted entry and all entries from there on; that
    /// goes for groups without a running replica too. Each look at the segment reports a group once.
    fn pinned(&mut self) -> Vec<GroupId>;

    /// Tells that nothing was submitted for a while: states what is durable, so that a later reader can tell a torn tail from damage.
    fn idle(&mut self) -> Result<(), LogError>;

    /// Lets go of buffers that nothing uses: groups have fallen silent, and may stay so. Optional.
    fn shed(&mut self) {}

    /// Seals the log and stops. All submitted batches are durable after `Ok`.
    fn close(&mut self) -> Result<(), LogError>;

    /// Reads entries, from any thread.
    fn reader(&self) -> Arc<dyn LogReader>;

    /// Figures so far.
    fn stats(&self) -> LogStats;

    /// Bytes left on the disk that the store writes to; of several, the least. `None` where that has no meaning, or is not known.
    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

/// Reads durable entries. May block on the disk.
pub trait LogReader: Send + Sync + 'static {
    /// Contiguous runs that start exactly at `lo` and end at or before `hi`, of about `bytes_max` bytes but at least one entry.
    fn entries(&self, group: GroupId, lo: Index, hi: Index, bytes_max: usize) -> Result<Vec<Run>, ReadError>;

    /// Frees the space of what a durable truncation left of a group's log beyond the journal's segments, which go in turn.
    /// False when other housekeeping is in the way: ask again a little later.
    fn reclaim(&self, _group: GroupId) -> Result<bool, ReadError> {
        Ok(true)
    }
}

/// A store just opened: its identity and all that it knows.
pub struct Opened<L> {
    /// The store.
    pub log: L,
    /// The directory's random id.
    pub store: StoreId,
    /// [`Progress::place`] as of now.
    pub place: u64,
    /// Every group, sorted by id; removed ones too.
    pub groups: Vec<GroupState>,
}
