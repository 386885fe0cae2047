//! The shared store: opening it, and its face as a [`LogDb`].

use crate::archive::{self, Archive};
use crate::config::JOURNAL;
use crate::fold::Folded;
use crate::format::{BLOCK, SegmentHeader, crc};
use crate::identity::{self, Ids};
use crate::kv::{KEY_IDENTITY, KEY_SETTLED, KEY_SETTLING, Kv, KvBatch, MemKv, Settled, Table, group_of_key};
use crate::reader::SharedReader;
use crate::recover::{self, LastWritten, Owner, Replayed};
use crate::segment::SegmentFile;
use crate::shared::{Countdown, Files, Pins, Shared};
use crate::writer::{Active, Place, Writer, open_active};
use crate::{
    KeyValue, LogDb, LogError, LogReader, LogStats, OpenError, Opened, Progress, Seq, SharedLogConfig, Update, ahead,
    settle,
};
use longboat_io::{DiskFile, DiskLock, Job, SharedDisk};
use longboat_raft::{GroupId, StoreId, plant};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One log store for all groups of a host: a journal in front of a key-value store.
#[derive(Debug)]
pub struct SharedLog {
    writer: Writer,
    shared: Arc<Shared>,
    failed: Option<LogError>,
}

impl SharedLog {
    /// Opens a host's store, or makes it in an empty directory.
    ///
    /// # Errors
    /// [`OpenError`] says whether the directory is taken, foreign, damaged or can't be used. What it holds was not changed then.
    pub fn open(disk: SharedDisk, config: SharedLogConfig) -> Result<Opened<Self>, OpenError> {
        config.validate()?;
        let ids = config.seed.map_or(Ids::Random, Ids::Seeded);
        let dir = &config.data_dir;
        disk.create_dir_all(dir)?;
        let mut locks = Vec::from_iter(lock(&disk, dir)?);
        let (store, kv) = match identity::read(&disk, dir, config.host_id)? {
            Some(store) => {
                lock_journal(&disk, &config, &mut locks)?;
                (store, open_kv(&disk, &config)?)
            }
            None => make(&disk, &config, ids, &mut locks)?,
        };
        if kv.get(Table::State, KEY_IDENTITY)?.as_deref() != Some(&store.0.to_le_bytes()[..]) {
            return Err(OpenError::Corrupt(format!("the key-value store under {} is another store's", dir.display())));
        }
        recover_store(disk, &config, ids, store, kv, locks)
    }

    fn check(&mut self) -> Result<(), LogError> {
        if self.failed.is_none() {
            self.failed = self.shared.failure.lock().clone();
        }
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Latches the first error of the journal. It is final.
    fn latch(&mut self, result: io::Result<()>) -> Result<(), LogError> {
        result.map_err(|e| {
            tracing::error!(error = %e, "journal write failed, the store takes no more");
            self.failed.get_or_insert(LogError::Write(Arc::new(e))).clone()
        })
    }
}

impl LogDb for SharedLog {
    fn submit(&mut self, batch: Vec<Update>) -> Seq {
        self.writer.submit(batch)
    }

    fn spare(&mut self) -> Option<Vec<Update>> {
        self.writer.spares.pop()
    }

    fn poll(&mut self) -> Result<Progress, LogError> {
        self.check()?;
        let driven = self.writer.drive();
        self.latch(driven)?;
        let (durable_through, in_flight) = (self.writer.durable, self.writer.in_flight());
        Ok(Progress { durable_through, in_flight, place: self.writer.last_seq })
    }

    fn background_job(&mut self) -> Option<Box<dyn Job>> {
        if self.check().is_err() {
            return None;
        }
        let last_seq = self.writer.last_seq;
        if let Some(job) = settle::job(&self.shared, last_seq) {
            return Some(Box::new(job));
        }
        ahead::job(&self.shared).map(|job| Box::new(job) as Box<dyn Job>)
    }

    fn pinned(&mut self) -> Vec<GroupId> {
        std::mem::take(&mut self.shared.pins.lock().unreported)
    }

    fn idle(&mut self) -> Result<(), LogError> {
        self.check()?;
        self.writer.want_seal();
        let driven = self.writer.drive();
        self.latch(driven)
    }

    fn shed(&mut self) {
        self.writer.shed();
    }

    fn close(&mut self) -> Result<(), LogError> {
        if let Err(e) = self.check() {
            // Jobs that still run must end all the same.
            self.shared.closed.store(true, Ordering::Release);
            return Err(e);
        }
        let mut drained = self.writer.drain();
        if drained.is_ok() {
            self.writer.want_seal();
            drained = self.writer.drain();
        }
        self.shared.closed.store(true, Ordering::Release);
        self.latch(drained)
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(SharedReader { shared: Arc::clone(&self.shared) })
    }

    fn free_bytes(&self) -> Option<u64> {
        let free = |dir| self.shared.disk.free_bytes(dir).ok();
        Some(free(&self.shared.journal_dir)?.min(free(&self.shared.data_dir)?))
    }

    fn stats(&self) -> LogStats {
        let (live, segments) = (self.shared.live_bytes(), self.shared.index.read().segments.len() as u64);
        let (written, archive) = (self.writer.written, self.shared.archive.figures());
        let free_segments = self.shared.files.lock().free.len() as u64;
        LogStats {
            syncs: written.syncs,
            entries: written.entries,
            journal_bytes_written: written.bytes,
            segments,
            log_bytes: live + self.shared.row_bytes.load(Ordering::Relaxed) + archive.live_bytes,
            settled_entries: self.shared.settled_entries.load(Ordering::Relaxed),
            free_segments,
            unfilled_segments: written.unfilled,
            archived_segments: archive.segments,
            archived_file_bytes: archive.file_bytes,
            pressure_percent: self.shared.pressure_percent(),
        }
    }
}

fn lock(disk: &SharedDisk, dir: &Path) -> Result<Option<Box<dyn DiskLock>>, OpenError> {
    match disk.lock_dir(dir) {
        Ok(lock) => Ok(Some(lock)),
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(OpenError::Io(e)),
        Err(_) if plant::is("directory-taken-while-in-use") => Ok(None),
        Err(_) => Err(OpenError::Locked(dir.to_path_buf())),
    }
}

/// A journal's directory that is set apart is in nobody's data directory, so it needs a lock of its own.
fn lock_journal(
    disk: &SharedDisk,
    config: &SharedLogConfig,
    locks: &mut Vec<Box<dyn DiskLock>>,
) -> Result<(), OpenError> {
    let journal = config.journal_dir();
    if journal != config.data_dir.join(JOURNAL) {
        locks.extend(lock(disk, &journal)?);
    }
    Ok(())
}

fn open_kv(disk: &SharedDisk, config: &SharedLogConfig) -> Result<Box<dyn Kv>, OpenError> {
    let dir = config.data_dir.join("kv");
    Ok(match config.key_value {
        #[cfg(feature = "rocksdb")]
        KeyValue::RocksDb => Box::new(crate::kv::RocksKv::open(&dir, config.rocks_env.as_ref())?),
        KeyValue::Memory => Box::new(MemKv::open(Arc::clone(disk), &dir)?),
    })
}

/// Makes a store in a directory without one. The identity comes last: what is there without it is not yet a store.
fn make(
    disk: &SharedDisk,
    config: &SharedLogConfig,
    ids: Ids,
    locks: &mut Vec<Box<dyn DiskLock>>,
) -> Result<(StoreId, Box<dyn Kv>), OpenError> {
    let (dir, journal) = (&config.data_dir, config.journal_dir());
    for name in disk.list(dir)? {
        if !identity::LEFTOVERS.iter().any(|l| Path::new(l) == name) {
            return Err(OpenError::Format(format!("{} holds {} and no store", dir.display(), name.display())));
        }
    }
    disk.create_dir_all(&journal)?;
    lock_journal(disk, config, locks)?;
    if recover::holds_records(disk, &journal)? {
        return Err(OpenError::Corrupt(format!("{} holds a journal, but its identity is gone", dir.display())));
    }
    let kv = open_kv(disk, config)?;
    let mut rows = 0;
    kv.scan(Table::State, &[], &mut |key, _| {
        rows += usize::from(group_of_key(key).is_some());
        true
    })?;
    if rows > 0 {
        return Err(OpenError::Corrupt(format!("{} holds groups, but its identity is gone", dir.display())));
    }
    // An interrupted attempt has its identity there before it makes a segment: by it we know those that are its own.
    let begun = kv.get(Table::State, KEY_IDENTITY)?.and_then(|id| Some(u128::from_le_bytes(id.try_into().ok()?)));
    let store = begun.map_or_else(|| ids.store(), |id| Ok(StoreId(id)))?;
    let mut batch = KvBatch::default();
    batch.put(Table::State, KEY_IDENTITY.to_vec(), store.0.to_le_bytes().to_vec());
    let use_number = 1;
    let use_id = ids.segment_use(use_number)?;
    batch.put(Table::State, KEY_SETTLED.to_vec(), Settled { seq: 0, next_use_id: use_id }.encode());
    kv.write(batch)?;
    kv.flush()?;
    make_journal(disk, config, SegmentHeader { store, host: config.host_id, use_number, use_id, first_seq: 1 })?;
    sync_path(disk, &journal)?;
    sync_path(disk, dir)?;
    identity::write(disk, dir, config.host_id, store)?;
    tracing::info!(dir = %dir.display(), %store, "made a log store");
    Ok((store, kv))
}

/// Makes a directory's names durable, and those that lead to it: any of them may have been made by this opening or by one
/// that was interrupted. A directory that may not be read is not one that a name was made in.
fn sync_path(disk: &SharedDisk, dir: &Path) -> io::Result<()> {
    disk.sync_dir(dir)?;
    for above in dir.ancestors().skip(1) {
        // A relative path starts here, which a simulated disk has no name for.
        let here = Path::new(".");
        let above = if above.as_os_str().is_empty() && disk.exists(here) { here } else { above };
        match disk.sync_dir(above) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// Two segments, the first one in use, after whatever an interrupted attempt left was removed.
fn make_journal(disk: &SharedDisk, config: &SharedLogConfig, header: SegmentHeader) -> Result<(), OpenError> {
    let dir = config.journal_dir();
    recover::remove_leftovers(disk, &dir, Owner { store: header.store, host: header.host })?;
    let mut block = Vec::new();
    header.encode(&mut block);
    for number in 1..=2 {
        let mut file = SegmentFile::create(disk, &dir, number, config.segment_bytes)?;
        // A new store has the time: what is written to them later is written over.
        file.fill(u64::MAX)?;
        if number == 1 {
            let mut file = disk.open(&file.path)?;
            file.write_all_at(&block, 0)?;
            file.sync_data()?;
        }
    }
    Ok(())
}

/// Loads the key-value store, replays the journal, and makes sure that what was read is durable.
fn recover_store(
    disk: SharedDisk,
    config: &SharedLogConfig,
    ids: Ids,
    store: StoreId,
    kv: Box<dyn Kv>,
    locks: Vec<Box<dyn DiskLock>>,
) -> Result<Opened<SharedLog>, OpenError> {
    let journal = config.journal_dir();
    let owner = Owner { store, host: config.host_id };
    // Entries of the directory that are seen may not be durable yet.
    disk.sync_dir(&journal)?;
    let mut found = recover::find(&disk, &journal, owner)?;
    let archive = recover::take_archived(&mut found, archive::load(&*kv)?)?;
    let (rows, settled) = load_rows(&*kv)?;
    if kv.get(Table::State, KEY_SETTLING)?.is_some() {
        settle::sweep(&*kv, &rows)?;
    }
    let replayed = recover::replay(found, rows, settled, config.segment_bytes)?;
    let Replayed {
        index,
        groups,
        files,
        header,
        position,
        last_seq,
        use_number_max,
        last_written,
        tallies,
        torn_footer,
        prepared,
        surplus,
        marks,
    } = replayed;
    if !plant::is("reopen-without-rewrite") {
        write_again(&disk, &last_written)?;
    }
    tracing::info!(
        groups = groups.len(),
        settled = settled.seq,
        last_seq,
        segments = index.segments.len(),
        "opened a log store"
    );
    let segment = index.segments.back().map(Arc::clone).expect("a journal has a segment that is written");
    let shared = Arc::new(share(disk, config, kv, locks, Recovered { index, files, archive, settled: settled.seq }));
    let active = open_active(&shared, Arc::clone(&segment.file), header)?;
    for path in surplus {
        if let Err(error) = shared.disk.remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "a journal file without a use stays behind");
        }
    }
    let mut active = Active { segment, position, ..active };
    if torn_footer {
        // A later footer here has the same list, perhaps, but goes on elsewhere: the old header must not come back.
        erase(&mut *active.file, position)?;
    }
    for path in prepared {
        // Nothing was written under that use. The journal goes on without it, so nobody must ever go on in it.
        erase(&mut *shared.disk.open(&path)?, 0)?;
    }
    let opening = opening(ids, &active, last_seq)?;
    let place = Place { active, opening, last_seq, tallies };
    let mut writer = Writer::new(Arc::clone(&shared), ids, place, use_number_max);
    if !marks.is_empty() {
        // Before anybody can ask for anything: were a damaged segment settled first, nothing would tell of it any more.
        writer.write_first(marks)?;
    }
    let place = writer.last_seq;
    let log = SharedLog { writer, shared, failed: None };
    Ok(Opened { log, store, place, groups: recover::states(groups) })
}

/// Draws the id of this opening. A seeded one comes from all that earlier openings may have left where this one writes.
fn opening(ids: Ids, active: &Active, last_seq: u64) -> io::Result<u64> {
    let file = &active.segment.file;
    let rest = if ids.is_random() { 0 } else { file.capacity - active.position };
    ids.opening(last_seq, crc(0, &file.read(active.position, rest as usize)?))
}

struct Recovered {
    index: crate::index::LogIndex,
    files: Files,
    archive: Archive,
    settled: u64,
}

fn share(
    disk: SharedDisk,
    config: &SharedLogConfig,
    kv: Box<dyn Kv>,
    locks: Vec<Box<dyn DiskLock>>,
    recovered: Recovered,
) -> Shared {
    Shared {
        index: RwLock::new(recovered.index),
        disk,
        data_dir: config.data_dir.clone(),
        journal_dir: config.journal_dir(),
        segment_bytes: config.segment_bytes,
        journal_bytes_max: config.journal_bytes_max,
        settle_segments: config.settle_segments,
        archive_span_bytes_min: config.archive_span_bytes_min,
        record_bytes_max: config.record_bytes_max,
        archive: recovered.archive,
        files: Mutex::new(recovered.files),
        settled: AtomicU64::new(recovered.settled),
        settled_entries: AtomicU64::new(0),
        row_bytes: AtomicU64::new(kv.bytes()),
        kv,
        failure: Mutex::new(None),
        job_running: AtomicBool::new(false),
        looks_until_prepare: Countdown::default(),
        starved: AtomicBool::new(false),
        looks_until_upkeep: Countdown::default(),
        ahead_running: AtomicBool::new(false),
        record_bytes: AtomicU64::new(0),
        closed: AtomicBool::new(false),
        pins: Mutex::new(Pins::default()),
        _locks: locks,
    }
}

/// Every group's row, and the last record that they are the fold of.
fn load_rows(kv: &dyn Kv) -> Result<(BTreeMap<GroupId, Folded>, Settled), OpenError> {
    let mut groups = BTreeMap::new();
    let mut malformed = None;
    kv.scan(Table::State, &[], &mut |key, value| {
        let Some(group) = group_of_key(key) else { return true };
        match crate::codec::take_group_row(group, value) {
            Ok((state, rows)) => {
                groups.insert(group, recover::folded(state, rows));
                true
            }
            Err(e) => {
                malformed = Some(OpenError::Corrupt(format!("row of group {group}: {e}")));
                false
            }
        }
    })?;
    if let Some(e) = malformed {
        return Err(e);
    }
    let settled = kv.get(Table::State, KEY_SETTLED)?.and_then(|v| Settled::decode(&v));
    let settled = settled.ok_or_else(|| OpenError::Corrupt("the key-value store has no settled sequence".into()))?;
    Ok((groups, settled))
}

/// Makes a block durably say nothing.
fn erase(file: &mut dyn DiskFile, offset: u64) -> io::Result<()> {
    file.write_all_at(&[0; BLOCK as usize], offset)?;
    file.sync_data()
}

/// Writes blocks again with the bytes that they have, and syncs them: what was read may be in the page cache only, and
/// after a failed sync it looks clean there though the disk never took it.
fn write_again(disk: &SharedDisk, last_written: &[LastWritten]) -> Result<(), OpenError> {
    for LastWritten { file, offset, length } in last_written {
        let bytes = file.read(*offset, *length as usize)?;
        let mut file = disk.open(&file.path)?;
        file.write_all_at(&bytes, *offset)?;
        file.sync_data()?;
    }
    Ok(())
}
