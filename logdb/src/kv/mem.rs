//! The twin of RocksDB in memory, for the simulator: rows live in maps, and a flush writes all of them to one file of
//! the host's disk. A crash of any kind takes it back to its last flush.
//!
//! File: magic (8), checksum of the rest (4), then per row table (1), key length (4), value length (4), key, value.

use super::{Kv, KvBatch, KvError, KvResult, Row, Table};
use crate::OpenError;
use bytes::{Buf, BufMut};
use longboat_io::SharedDisk;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"LONGBMEM";
const FILE: &str = "rows";
const FILE_NEXT: &str = "rows.next";

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Rows in maps, on a disk as of the last flush.
#[derive(Debug)]
pub(crate) struct MemKv {
    disk: SharedDisk,
    dir: PathBuf,
    rows: Mutex<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    tables: [Map; 2],
    bytes: u64,
    failed: Option<KvError>,
}

impl MemKv {
    pub(crate) fn open(disk: SharedDisk, dir: &Path) -> Result<Self, OpenError> {
        disk.create_dir_all(dir)?;
        // What is seen may be renamed and not yet durable, and what it lets go is overwritten before the next flush.
        disk.sync_dir(dir)?;
        let path = dir.join(FILE);
        let mut rows = Rows::default();
        if disk.exists(&path) {
            let file = disk.open(&path)?;
            let mut bytes = vec![0; file.len()? as usize];
            file.read_exact_at(&mut bytes, 0)?;
            rows.load(&bytes).ok_or_else(|| OpenError::Corrupt(format!("{} is damaged", path.display())))?;
        }
        Ok(Self { disk, dir: dir.to_path_buf(), rows: Mutex::new(rows) })
    }

    fn save(&self, bytes: &[u8]) -> std::io::Result<()> {
        let (next, path) = (self.dir.join(FILE_NEXT), self.dir.join(FILE));
        if self.disk.exists(&next) {
            self.disk.remove_file(&next)?;
        }
        let mut file = self.disk.create(&next)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        self.disk.rename(&next, &path)?;
        self.disk.sync_dir(&self.dir)
    }
}

impl Rows {
    fn load(&mut self, bytes: &[u8]) -> Option<()> {
        let mut b = bytes.strip_prefix(&MAGIC)?;
        let sum = b.try_get_u32_le().ok()?;
        if sum != crc32fast::hash(b) {
            return None;
        }
        while b.has_remaining() {
            let table = b.try_get_u8().ok()? as usize;
            let (key_len, value_len) = (b.try_get_u32_le().ok()? as usize, b.try_get_u32_le().ok()? as usize);
            let (key, rest) = b.split_at_checked(key_len)?;
            let (value, rest) = rest.split_at_checked(value_len)?;
            self.bytes += (key_len + value_len) as u64;
            self.tables.get_mut(table)?.insert(key.to_vec(), value.to_vec());
            b = rest;
        }
        Some(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.put_u32_le(0);
        for (table, map) in self.tables.iter().enumerate() {
            for (key, value) in map {
                out.put_u8(table as u8);
                out.put_u32_le(key.len() as u32);
                out.put_u32_le(value.len() as u32);
                out.put_slice(key);
                out.put_slice(value);
            }
        }
        let sum = crc32fast::hash(&out[12..]);
        out[8..12].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn working(&self) -> KvResult<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl Kv for MemKv {
    fn write(&self, batch: KvBatch) -> KvResult<()> {
        let mut rows = self.rows.lock();
        rows.working()?;
        for (table, key, value) in batch.changes {
            let key_len = key.len();
            let added = value.as_ref().map_or(0, |v| key_len + v.len());
            let map = &mut rows.tables[table as usize];
            let old = match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
            rows.bytes = rows.bytes + added as u64 - old.map_or(0, |v| key_len + v.len()) as u64;
        }
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8]) -> KvResult<Option<Vec<u8>>> {
        Ok(self.rows.lock().tables[table as usize].get(key).cloned())
    }

    fn at_or_before(&self, table: Table, key: &[u8]) -> KvResult<Option<Row>> {
        let rows = self.rows.lock();
        let mut range = rows.tables[table as usize].range::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        Ok(range.next_back().map(|(k, v)| (k.clone(), v.clone())))
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> KvResult<()> {
        let rows = self.rows.lock();
        let range = rows.tables[table as usize].range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
        for (key, value) in range {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> KvResult<()> {
        let mut rows = self.rows.lock();
        rows.working()?;
        let bytes = rows.encode();
        if let Err(e) = self.save(&bytes) {
            rows.failed = Some(KvError(format!("flushing rows: {e}")));
        }
        rows.working()
    }

    fn bytes(&self) -> u64 {
        self.rows.lock().bytes
    }
}
