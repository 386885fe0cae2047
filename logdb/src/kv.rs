//! The key-value store behind the journal: a small trait, RocksDB, and a twin in memory.
//!
//! It holds the fold of the journal up to a settled sequence and never learns anything first. What was written since
//! the last flush may be gone after a crash, but never a part of one batch, and never a later batch without the
//! earlier ones, over both tables together.

use crate::OpenError;
use crate::codec::Rows;
use bytes::{Buf, BufMut, Bytes};
use longboat_raft::{GroupId, Index, Run};

mod mem;
#[cfg(feature = "rocksdb")]
mod rocks;
pub(crate) use mem::MemKv;
#[cfg(feature = "rocksdb")]
pub(crate) use rocks::RocksKv;

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// One row per group, and a few facts about the store.
    State = 0,
    /// Rows of committed entries, keyed by group and first index.
    Log = 1,
}

/// The names of the tables, in their order.
#[cfg(feature = "rocksdb")]
pub(crate) const TABLES: [&str; 2] = ["state", "log"];

/// The store failed. Final.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct KvError(pub(crate) String);

impl From<KvError> for OpenError {
    fn from(e: KvError) -> Self {
        Self::KeyValue(e.0)
    }
}

pub(crate) type KvResult<T> = Result<T, KvError>;

/// A key and its value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// Changes that are seen together or not at all.
#[derive(Debug, Default)]
pub(crate) struct KvBatch {
    /// A value to put, or none to delete the key.
    pub(crate) changes: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
    pub(crate) bytes: usize,
}

impl KvBatch {
    pub(crate) fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.changes.push((table, key, Some(value)));
    }

    pub(crate) fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.bytes += key.len();
        self.changes.push((table, key, None));
    }
}

/// A store of two tables of sorted keys.
pub(crate) trait Kv: Send + Sync + std::fmt::Debug {
    fn write(&self, batch: KvBatch) -> KvResult<()>;
    fn get(&self, table: Table, key: &[u8]) -> KvResult<Option<Vec<u8>>>;
    /// The row with the largest key at or before `key`.
    fn at_or_before(&self, table: Table, key: &[u8]) -> KvResult<Option<Row>>;
    /// Shows the rows from `from` on, in order, until `visit` says stop with `false`. It must not use the store.
    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> KvResult<()>;
    /// Makes all that was written durable. Blocks.
    fn flush(&self) -> KvResult<()>;
    /// About how many bytes of rows there are.
    fn bytes(&self) -> u64;
}

/// The store id, so that another host's key-value store is noticed.
pub(crate) const KEY_IDENTITY: &[u8] = b"\0identity";
/// Through where the journal is settled: a [`Settled`].
pub(crate) const KEY_SETTLED: &[u8] = b"\0settled";
/// How far the key-value store is the fold of the journal, and where the rest of the journal starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// The last record that is settled.
    pub(crate) seq: u64,
    /// The segment's use with the record after it. Sequences don't tell: a use that was prepared before a crash and
    /// never written to starts where the one starts that was written after it.
    pub(crate) next_use_id: u64,
}

impl Settled {
    pub(crate) fn encode(self) -> Vec<u8> {
        [self.seq.to_le_bytes(), self.next_use_id.to_le_bytes()].concat()
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        (bytes.len() == 16).then(|| Self { seq: bytes.get_u64_le(), next_use_id: bytes.get_u64_le() })
    }
}

/// Present while a pass has written rows but not yet what refers to them.
pub(crate) const KEY_SETTLING: &[u8] = b"\0settling";
/// What the keys of group rows begin with.
const GROUP_PREFIX: u8 = 1;
/// What the keys of archived segments' rows begin with.
const ARCHIVED_PREFIX: u8 = 2;
/// The number at the front of a log row that holds runs.
const LOG_ROW_RUNS: u32 = 1;
/// The number at the front of a log row that says which archived segment has the runs.
const LOG_ROW_REFERENCE: u32 = 2;
/// Bytes in front of a log row's runs: what it is, count of runs, last index.
const LOG_ROW_HEADER_BYTES: usize = 16;
/// Bytes of a reference.
const REFERENCE_BYTES: usize = 40;
/// The version at the front of an archived segment's row.
const ARCHIVED_ROW_VERSION: u32 = 1;
/// Bytes of an archived segment's row.
const ARCHIVED_ROW_BYTES: usize = 32;

pub(crate) fn group_key(group: GroupId) -> Vec<u8> {
    let mut key = vec![GROUP_PREFIX];
    key.put_u64(group.0);
    key
}

/// The group of a row of [`Table::State`]; `None` for other facts.
pub(crate) fn group_of_key(mut key: &[u8]) -> Option<GroupId> {
    (key.len() == 9 && key.get_u8() == GROUP_PREFIX).then(|| GroupId(key.get_u64()))
}

pub(crate) fn log_key(group: GroupId, first: Index) -> Vec<u8> {
    let mut key = Vec::with_capacity(16);
    key.put_u64(group.0);
    key.put_u64(first.0);
    key
}

pub(crate) fn take_log_key(mut key: &[u8]) -> Option<(GroupId, Index)> {
    (key.len() == 16).then(|| (GroupId(key.get_u64()), Index(key.get_u64())))
}

/// The first key of archived segments' rows. Ascending by use number.
pub(crate) const ARCHIVED_KEYS: &[u8] = &[ARCHIVED_PREFIX];

pub(crate) fn archived_key(use_number: u64) -> Vec<u8> {
    let mut key = vec![ARCHIVED_PREFIX];
    key.put_u64(use_number);
    key
}

/// The use number of an archived segment's row; `None` for other keys.
pub(crate) fn use_of_archived_key(mut key: &[u8]) -> Option<u64> {
    (key.len() == 9 && key.get_u8() == ARCHIVED_PREFIX).then(|| key.get_u64())
}

/// An archived segment, as a row of [`Table::State`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ArchivedRow {
    /// The use that the segment's file must still have.
    pub(crate) use_id: u64,
    /// Where its footer is.
    pub(crate) footer_offset: u64,
    /// The bytes of all references to it together.
    pub(crate) live_bytes: u64,
}

impl ArchivedRow {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ARCHIVED_ROW_BYTES);
        out.put_u32_le(ARCHIVED_ROW_VERSION);
        out.put_u32_le(0);
        out.put_u64_le(self.use_id);
        out.put_u64_le(self.footer_offset);
        out.put_u64_le(self.live_bytes);
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() != ARCHIVED_ROW_BYTES || bytes.get_u32_le() != ARCHIVED_ROW_VERSION {
            return None;
        }
        bytes.advance(4);
        Some(Self { use_id: bytes.get_u64_le(), footer_offset: bytes.get_u64_le(), live_bytes: bytes.get_u64_le() })
    }
}

/// A row of [`Table::Log`] in place of the entries themselves: an archived segment has them. The first is in the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The segment's use.
    pub(crate) use_number: u64,
    /// The last entry.
    pub(crate) last: Index,
    /// The group's items in the list of frames of the segment's footer.
    pub(crate) at: u32,
    pub(crate) count: u32,
    /// About how many bytes of the segment they are; never zero.
    pub(crate) bytes: u64,
}

impl Reference {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REFERENCE_BYTES);
        out.put_u32_le(LOG_ROW_REFERENCE);
        out.put_u32_le(0);
        out.put_u64_le(self.last.0);
        out.put_u64_le(self.use_number);
        out.put_u32_le(self.at);
        out.put_u32_le(self.count);
        out.put_u64_le(self.bytes);
        out
    }

    /// The reference that this row is; `None` when it holds runs.
    pub(crate) fn decode(mut value: &[u8]) -> Option<Self> {
        if value.len() != REFERENCE_BYTES || value.get_u32_le() != LOG_ROW_REFERENCE {
            return None;
        }
        value.advance(4);
        Some(Self {
            last: Index(value.get_u64_le()),
            use_number: value.get_u64_le(),
            at: value.get_u32_le(),
            count: value.get_u32_le(),
            bytes: value.get_u64_le(),
        })
    }

    /// What is left of it from `first` on, for one that starts at `from`. Its bytes are taken to be spread evenly over its
    /// entries.
    ///
    /// That is an estimate, and may be one. When a file is free does not rest on it: a segment's bytes are the sum of its
    /// references' whatever they are, for each change of one is taken from the sum in the same batch, none is ever 0, and the sum is
    /// 0 when the last one goes. What rests on it is which segment is worth emptying, where a wrong guess costs a copy
    /// too early, or a file that stays until its last entry goes, as it does for every log that dies oldest first. To know
    /// the bytes, the footer's list would have to be read for each truncation that ends inside a segment.
    pub(crate) fn starting_at(self, from: Index, first: Index) -> Self {
        let (all, left) = (u128::from(self.last.0 - from.0 + 1), u128::from(self.last.0 - first.0 + 1));
        let bytes = (u128::from(self.bytes) * left / all) as u64;
        Self { bytes: bytes.max(1), ..self }
    }
}

/// Gathers runs into one row of [`Table::Log`].
#[derive(Debug, Default)]
pub(crate) struct LogRow {
    first: Option<Index>,
    last: Index,
    runs: u32,
    value: Vec<u8>,
}

impl LogRow {
    pub(crate) fn push(&mut self, run: &Run) {
        if self.first.is_none() {
            self.first = Some(run.first());
            self.value.resize(LOG_ROW_HEADER_BYTES, 0);
        }
        self.last = run.last();
        self.runs += 1;
        run.encode(&mut self.value);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.value.len()
    }

    /// Hands the row over, if there is one, and notes it in what the group's rows are.
    pub(crate) fn finish(&mut self, group: GroupId, rows: &mut Rows, batch: &mut KvBatch) {
        let LogRow { first: Some(first), last, runs, mut value } = std::mem::take(self) else { return };
        let mut header = &mut value[..LOG_ROW_HEADER_BYTES];
        header.put_u32_le(LOG_ROW_RUNS);
        header.put_u32_le(runs);
        header.put_u64_le(last.0);
        rows.extend(first, last);
        batch.put(Table::Log, log_key(group, first), value);
    }
}

/// The runs of a row of [`Table::Log`], their checksums checked.
pub(crate) fn take_log_row(value: Vec<u8>) -> Result<Vec<Run>, String> {
    let mut value = Bytes::from(value);
    if value.len() < LOG_ROW_HEADER_BYTES || value.get_u32_le() != LOG_ROW_RUNS {
        return Err("log row: its kind is not known".into());
    }
    let count = value.get_u32_le();
    value.advance(8);
    (0..count).map(|_| Run::decode(&mut value).map_err(|e| format!("log row: {e}"))).collect()
}

#[cfg(all(test, feature = "rocksdb"))]
mod tests {
    use super::*;
    use longboat_io::{RealDisk, SharedDisk};
    use std::path::Path;
    use std::sync::Arc;

    type Open = fn(&Path) -> Box<dyn Kv>;

    const STORES: [Open; 2] = [
        |dir| Box::new(RocksKv::open(dir, None).expect("opens")),
        |dir| {
            let disk: SharedDisk = Arc::new(RealDisk);
            Box::new(MemKv::open(disk, dir).expect("opens"))
        },
    ];

    fn keys(kv: &dyn Kv, table: Table, from: &[u8]) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        kv.scan(table, from, &mut |k, _| {
            keys.push(k.to_vec());
            true
        })
        .expect("scans");
        keys
    }

    #[test]
    fn rows_are_found_sorted_deleted_and_kept_over_a_flush() {
        for open in STORES {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let kv = open(dir.path());
            let mut batch = KvBatch::default();
            for (g, i) in [(2, 1), (1, 300), (1, 5)] {
                batch.put(Table::Log, log_key(GroupId(g), Index(i)), vec![g as u8, i as u8]);
            }
            batch.put(Table::State, KEY_SETTLED.to_vec(), vec![9]);
            kv.write(batch).expect("written");
            let mut batch = KvBatch::default();
            batch.delete(Table::Log, log_key(GroupId(2), Index(1)));
            kv.write(batch).expect("written");
            kv.flush().expect("flushed");
            drop(kv);
            let kv = open(dir.path());
            let five = log_key(GroupId(1), Index(5));
            assert_eq!(keys(&*kv, Table::Log, &[]), [five.clone(), log_key(GroupId(1), Index(300))]);
            assert_eq!(keys(&*kv, Table::Log, &log_key(GroupId(1), Index(6))).len(), 1);
            assert_eq!(kv.get(Table::State, KEY_SETTLED), Ok(Some(vec![9])));
            assert_eq!(kv.get(Table::Log, KEY_SETTLED), Ok(None));
            let before = |i| kv.at_or_before(Table::Log, &log_key(GroupId(1), Index(i))).expect("read");
            assert_eq!(before(299), Some((five.clone(), vec![1, 5])));
            assert_eq!(before(5), Some((five, vec![1, 5])));
            assert_eq!(before(4), None);
        }
    }

    #[test]
    fn references_and_rows_of_archived_segments_read_back_and_nothing_else_is_taken_for_one() {
        let reference = Reference { use_number: 7, last: Index(99), at: 3, count: 4, bytes: 1000 };
        let bytes = reference.encode();
        assert_eq!(Reference::decode(&bytes), Some(reference));
        assert!(take_log_row(bytes.clone()).is_err());
        assert_eq!(Reference::decode(&bytes[..39]), None);
        let left = reference.starting_at(Index(90), Index(95));
        assert_eq!((left.bytes, reference.starting_at(Index(90), Index(90))), (500, reference));
        let row = ArchivedRow { use_id: 1 << 60, footer_offset: 4096, live_bytes: 12 };
        assert_eq!(ArchivedRow::decode(&row.encode()), Some(row));
        assert_eq!(ArchivedRow::decode(&row.encode()[..31]), None);
        assert_eq!(use_of_archived_key(&archived_key(12)), Some(12));
        assert_eq!((use_of_archived_key(&group_key(GroupId(12))), group_of_key(&archived_key(12))), (None, None));
    }

    #[test]
    fn what_was_not_flushed_is_gone_when_the_store_is_dropped() {
        for open in STORES {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let kv = open(dir.path());
            for (value, flush) in [(1, true), (2, false)] {
                let mut batch = KvBatch::default();
                batch.put(Table::State, vec![1], vec![value]);
                batch.put(Table::Log, vec![1], vec![value]);
                kv.write(batch).expect("written");
                if flush {
                    kv.flush().expect("flushed");
                }
            }
            drop(kv);
            let kv = open(dir.path());
            assert_eq!(kv.get(Table::State, &[1]), Ok(Some(vec![1])));
            assert_eq!(kv.get(Table::Log, &[1]), Ok(Some(vec![1])));
        }
    }
}
