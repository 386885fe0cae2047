//! What a shared store is opened with.

use crate::OpenError;
use crate::format::BLOCK;
use longboat_raft::HostId;
use std::path::PathBuf;

/// Bytes of a segment unless configured: large enough that seals and settling are rare, small enough to recycle soon.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// Bytes of the whole journal unless configured.
pub const JOURNAL_BYTES_MAX_DEFAULT: u64 = 1 << 30;
/// The smallest segment, in bytes: header, a record and a footer, and a few groups to each.
pub const SEGMENT_BYTES_MIN: u64 = 8 * BLOCK;
/// The largest segment, in bytes: places in a segment are 32 bits wide.
pub const SEGMENT_BYTES_MAX: u64 = 2 << 30;
/// Sealed segments that one pass settles unless configured: rows get larger with more, and so does what is done twice
/// after a crash.
const SETTLE_SEGMENTS_DEFAULT: usize = 4;

/// Bytes per group that a segment must have on average to be archived, unless configured: a reference to them takes 60 bytes
/// as a row, so what is kept in RocksDB of archived segments stays below a sixteenth of the log.
const ARCHIVE_SPAN_BYTES_MIN_DEFAULT: u64 = 1 << 10;
const RECORD_BYTES_MAX_DEFAULT: usize = 4 << 20;

/// The journal's directory in the host's, unless it is set apart.
pub(crate) const JOURNAL: &str = "journal";

/// Where rows go that outlive the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyValue {
    /// RocksDB, on the machine's file system.
    #[cfg(feature = "rocksdb")]
    #[default]
    RocksDb,
    /// A twin in memory that writes itself to the store's disk when flushed. For the simulator and small tests.
    #[cfg_attr(not(feature = "rocksdb"), default)]
    Memory,
}

/// What RocksDB does its input and output through.
#[cfg(feature = "rocksdb")]
#[derive(Clone)]
pub struct RocksEnv(pub rocksdb::Env);

#[cfg(feature = "rocksdb")]
impl std::fmt::Debug for RocksEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RocksEnv")
    }
}

/// What a shared store is opened with.
#[derive(Clone, Debug)]
pub struct SharedLogConfig {
    /// The host's directory. Made if it does not exist.
    pub data_dir: PathBuf,
    /// The journal's directory; `journal` under `data_dir` if not given.
    pub journal_dir: Option<PathBuf>,
    /// The host. A directory of another host is refused.
    pub host_id: HostId,
    /// Bytes of a segment. A change holds for segments made later.
    pub segment_bytes: u64,
    /// Bytes of journal that the store tries to stay under: settling starts at half of it. Past it, the store goes on
    /// and reports the pressure.
    pub journal_bytes_max: u64,
    /// Sealed segments that one settling pass takes at most.
    pub settle_segments: usize,
    /// Bytes of entries per group that a segment must have on average to be kept as it is when it is settled, instead of
    /// being written again as rows. The largest number keeps none.
    pub archive_span_bytes_min: u64,
    /// Bytes of a record beyond which no more batches are gathered into it. Past the default a larger write is not cheaper per
    /// byte, and those that wait for it wait longer.
    pub record_bytes_max: usize,
    /// Where rows go.
    pub key_value: KeyValue,
    /// What RocksDB does its input and output through; the machine's file system if not given. Tests that take the power away
    /// have one of their own.
    #[cfg(feature = "rocksdb")]
    pub rocks_env: Option<RocksEnv>,
    /// Ids come from this seed instead of the machine's random numbers, so that runs repeat. A directory that is made
    /// anew must be given another seed than the one before it, or it would claim to be the same store.
    pub seed: Option<u64>,
}

impl SharedLogConfig {
    /// The default configuration for a directory and a host.
    pub fn new(data_dir: impl Into<PathBuf>, host_id: HostId) -> Self {
        Self {
            data_dir: data_dir.into(),
            journal_dir: None,
            host_id,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            journal_bytes_max: JOURNAL_BYTES_MAX_DEFAULT,
            settle_segments: SETTLE_SEGMENTS_DEFAULT,
            archive_span_bytes_min: ARCHIVE_SPAN_BYTES_MIN_DEFAULT,
            record_bytes_max: RECORD_BYTES_MAX_DEFAULT,
            key_value: KeyValue::default(),
            #[cfg(feature = "rocksdb")]
            rocks_env: None,
            seed: None,
        }
    }

    pub(crate) fn journal_dir(&self) -> PathBuf {
        self.journal_dir.clone().unwrap_or_else(|| self.data_dir.join(JOURNAL))
    }

    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        let refuse = |field: &str, value: u64, limit: String| {
            Err(OpenError::Config(format!("{field} is {value}, it must be {limit}")))
        };
        if self.host_id.is_zero() {
            return refuse("host_id", 0, "above 0".into());
        }
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            let limit = format!("from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}");
            return refuse("segment_bytes", self.segment_bytes, limit);
        }
        if !self.segment_bytes.is_multiple_of(BLOCK) {
            return refuse("segment_bytes", self.segment_bytes, format!("a multiple of {BLOCK}"));
        }
        if self.journal_bytes_max < 2 * self.segment_bytes {
            let limit = format!("at least two segments, {}", 2 * self.segment_bytes);
            return refuse("journal_bytes_max", self.journal_bytes_max, limit);
        }
        if self.settle_segments == 0 {
            return refuse("settle_segments", 0, "above 0".into());
        }
        Ok(())
    }
}
