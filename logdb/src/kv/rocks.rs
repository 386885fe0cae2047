//! RocksDB, set up to be the fold of the journal: no log of its own, both column families flushed together.

use super::{Kv, KvBatch, KvError, KvResult, Row, TABLES, Table};
use crate::{OpenError, RocksEnv};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, Direction, FlushOptions, IteratorMode, Options,
    WriteBatch, WriteOptions,
};
use std::path::Path;
use std::sync::OnceLock;

/// Memory for blocks of both column families, in bytes. The log is read from memory or from the journal; rows are for
/// followers that are far behind, and three hosts may share a process.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// Memory for rows that are not yet flushed, in bytes, per column family. A pass ends with a flush of its own.
const WRITE_BUFFER_BYTES: [usize; 2] = [8 << 20, 32 << 20];
/// Open table files: a quarter of the descriptors that a process usually has.
const OPEN_FILES_MAX: i32 = 256;

/// RocksDB with two column families.
pub(crate) struct RocksKv {
    db: DB,
    no_wal: WriteOptions,
    failed: OnceLock<KvError>,
}

impl RocksKv {
    pub(crate) fn open(dir: &Path, env: Option<&RocksEnv>) -> Result<Self, OpenError> {
        let failed = |e: rocksdb::Error| OpenError::KeyValue(e.to_string());
        let mut options = Self::options().map_err(failed)?;
        if let Some(RocksEnv(env)) = env {
            options.set_env(env);
        }
        let families = TABLES.iter().zip(WRITE_BUFFER_BYTES).map(|(name, buffer)| {
            let mut family = Options::default();
            family.set_write_buffer_size(buffer);
            family.set_max_write_buffer_number(2);
            family.set_level_compaction_dynamic_level_bytes(true);
            let mut blocks = BlockBasedOptions::default();
            blocks.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES / TABLES.len()));
            blocks.set_block_size(16 << 10);
            family.set_block_based_table_factory(&blocks);
            ColumnFamilyDescriptor::new(*name, family)
        });
        let db = DB::open_cf_descriptors(&options, dir, families).map_err(failed)?;
        let mut no_wal = WriteOptions::default();
        no_wal.disable_wal(true);
        Ok(Self { db, no_wal, failed: OnceLock::new() })
    }

    fn options() -> Result<Options, rocksdb::Error> {
        // A failed write must stay failed: the journal's host stops on the first error, and a store that resumed by
        // itself would go on after losing rows. And what no pass flushed is written by none: closing is no exception.
        // The bindings have no calls for these two options.
        let mut options = Options::default()
            .get_options_from_string("max_bgerror_resume_count=0;avoid_flush_during_shutdown=true")?;
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // Rows and the settled sequence that vouches for them are in both families, and there is no log to repair one.
        options.set_atomic_flush(true);
        options.set_max_background_jobs(2);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_bytes_per_sync(1 << 20);
        options.set_stats_dump_period_sec(0);
        Ok(options)
    }

    fn family(&self, table: Table) -> &ColumnFamily {
        self.db.cf_handle(TABLES[table as usize]).expect("both families were opened")
    }

    /// Keeps the first error for ever.
    fn latch<T>(&self, result: Result<T, rocksdb::Error>) -> KvResult<T> {
        result.map_err(|e| self.failed.get_or_init(|| KvError(e.to_string())).clone())
    }

    fn working(&self) -> KvResult<()> {
        self.failed.get().cloned().map_or(Ok(()), Err)
    }
}

impl std::fmt::Debug for RocksKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksKv").field("path", &self.db.path()).field("failed", &self.failed.get()).finish()
    }
}

impl Kv for RocksKv {
    fn write(&self, batch: KvBatch) -> KvResult<()> {
        self.working()?;
        let mut out = WriteBatch::default();
        for (table, key, value) in &batch.changes {
            match value {
                Some(value) => out.put_cf(self.family(*table), key, value),
                None => out.delete_cf(self.family(*table), key),
            }
        }
        self.latch(self.db.write_opt(out, &self.no_wal))
    }

    fn get(&self, table: Table, key: &[u8]) -> KvResult<Option<Vec<u8>>> {
        self.db.get_cf(self.family(table), key).map_err(|e| KvError(e.to_string()))
    }

    fn at_or_before(&self, table: Table, key: &[u8]) -> KvResult<Option<Row>> {
        let mut rows = self.db.raw_iterator_cf(self.family(table));
        rows.seek_for_prev(key);
        rows.status().map_err(|e| KvError(e.to_string()))?;
        Ok(rows.item().map(|(k, v)| (k.to_vec(), v.to_vec())))
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> KvResult<()> {
        for row in self.db.iterator_cf(self.family(table), IteratorMode::From(from, Direction::Forward)) {
            let (key, value) = row.map_err(|e| KvError(e.to_string()))?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> KvResult<()> {
        self.working()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families = [self.family(Table::State), self.family(Table::Log)];
        self.latch(self.db.flush_cfs_opt(&families, &options))
    }

    fn bytes(&self) -> u64 {
        let of = |table| {
            let size = self.db.property_int_value_cf(self.family(table), "rocksdb.estimate-live-data-size");
            size.ok().flatten().unwrap_or(0)
        };
        of(Table::State) + of(Table::Log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The options that RocksDB says it runs with.
    fn options_in_effect(dir: &Path) -> String {
        let mut names: Vec<_> = fs::read_dir(dir)
            .expect("listed")
            .map(|e| e.expect("an entry").path())
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("OPTIONS-")))
            .collect();
        names.sort();
        fs::read_to_string(names.last().expect("written at open")).expect("read")
    }

    #[test]
    fn rocksdb_does_not_resume_after_errors_and_flushes_both_families_together() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let _kv = RocksKv::open(dir.path(), None).expect("opens");
        let options = options_in_effect(dir.path());
        for wanted in ["max_bgerror_resume_count=0", "atomic_flush=true"] {
            assert!(options.lines().any(|l| l.trim() == wanted), "{wanted} is not in effect:\n{options}");
        }
    }

    #[test]
    fn a_failed_flush_stays_failed_though_the_cause_is_gone() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let (dir, away) = (parent.path().join("kv"), parent.path().join("away"));
        let kv = RocksKv::open(&dir, None).expect("opens");
        let batch = |v: u8| {
            let mut batch = KvBatch::default();
            batch.put(Table::State, vec![1], vec![v]);
            batch
        };
        kv.write(batch(1)).expect("written to memory");
        fs::rename(&dir, &away).expect("moved away");
        let failed = kv.flush().expect_err("there is no directory to flush to");
        fs::rename(&away, &dir).expect("moved back");
        assert_eq!(kv.flush(), Err(failed.clone()));
        assert_eq!(kv.write(batch(2)), Err(failed));
        // And it is RocksDB itself that stays failed, not only this wrapper.
        assert!(kv.db.flush_cfs_opt(&[kv.family(Table::State)], &FlushOptions::default()).is_err());
        assert!(kv.db.put_cf_opt(kv.family(Table::State), [1], [3], &kv.no_wal).is_err());
    }
}
