//! What the writer, the readers and the settling job of one store share.
//!
//! Lock order: the index before the free files. Neither is held during any I/O.

use crate::LogError;
use crate::archive::Archive;
use crate::index::LogIndex;
use crate::kv::Kv;
use crate::segment::SegmentFile;
use longboat_io::{DiskLock, SharedDisk};
use longboat_raft::GroupId;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Free files that are there ahead of their use, and that are kept though the journal is over its bound. The writer is to
/// find one whenever it needs it: making one takes longer than writing some megabytes. And while no more can be made, the
/// last ones are for votes, compaction and what else must go on.
const FREE_FILES_READY: usize = 2;
/// The pressure that is reported while files can't be made and the last ones are in use: far beyond where a host takes no
/// more proposals.
const STARVED_PERCENT: u32 = 1000;

/// Bytes of a usual record from which on files are used as they are: the commit of a write to reserved blocks takes as long as
/// a quarter of a megabyte of zeros.
const UNFILLED_RECORD_BYTES: u64 = 256 << 10;

/// Looks for housekeeping that pass after a file could not be made, until the next attempt: about a second of a busy
/// host's. A full disk stays full for longer than that.
const LOOKS_UNTIL_PREPARE: u32 = 100;

/// The store behind all its handles.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) index: RwLock<LogIndex>,
    pub(crate) kv: Box<dyn Kv>,
    pub(crate) disk: SharedDisk,
    pub(crate) data_dir: PathBuf,
    pub(crate) journal_dir: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) journal_bytes_max: u64,
    pub(crate) settle_segments: usize,
    pub(crate) archive_span_bytes_min: u64,
    pub(crate) record_bytes_max: usize,
    pub(crate) archive: Archive,
    pub(crate) files: Mutex<Files>,
    /// Every record up to this one is in the key-value store, durably.
    pub(crate) settled: AtomicU64,
    pub(crate) settled_entries: AtomicU64,
    /// Bytes of rows as of the last pass: figures are asked for often, and the store adds this up over all its files.
    pub(crate) row_bytes: AtomicU64,
    /// What a background job failed with.
    pub(crate) failure: Mutex<Option<LogError>>,
    pub(crate) job_running: AtomicBool,
    /// Looks to let pass before the next attempt to prepare a file, after one that failed.
    pub(crate) looks_until_prepare: Countdown,
    /// The last attempt failed.
    pub(crate) starved: AtomicBool,
    /// Looks to let pass before the next round of upkeep on its own.
    pub(crate) looks_until_upkeep: Countdown,
    /// A job makes files ahead.
    pub(crate) ahead_running: AtomicBool,
    /// Bytes of a record of late, about.
    pub(crate) record_bytes: AtomicU64,
    pub(crate) closed: AtomicBool,
    pub(crate) pins: Mutex<Pins>,
    /// Held until the last handle is gone: a job that still runs must not meet another host.
    pub(crate) _locks: Vec<Box<dyn DiskLock>>,
}

/// The files of the journal.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Not in use, oldest first.
    pub(crate) free: Vec<Arc<SegmentFile>>,
    /// Being filled, and in no list meanwhile.
    pub(crate) filling: usize,
    pub(crate) next_number: u64,
    /// The bytes of all, used and free, but not of those that are archived.
    pub(crate) bytes: u64,
}

/// Where in the list a file is that may be taken out and filled.
fn unfilled(files: &mut Files) -> Option<usize> {
    if files.free.len() < 2 {
        return None;
    }
    files.free.iter_mut().position(|f| !f.is_filled() && Arc::get_mut(f).is_some())
}

/// Counts down from look to look.
#[derive(Debug, Default)]
pub(crate) struct Countdown(AtomicU32);

impl Countdown {
    pub(crate) fn set(&self, looks: u32) {
        self.0.store(looks, Ordering::Relaxed);
    }

    /// Counts one look. Whether it had come to its end before.
    pub(crate) fn tick(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// The groups that keep the oldest segment from being settled.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    /// Not yet reported to the host.
    pub(crate) unreported: Vec<GroupId>,
    /// All of them, as of the last look, and the segment that they keep.
    pub(crate) groups: Vec<GroupId>,
    pub(crate) segment: u64,
    /// The last record when that look was taken.
    pub(crate) looked_at: u64,
}

impl Shared {
    /// A file for a new use: a free one, or else a new one, beyond the bound too: stopping would lose more.
    pub(crate) fn take_file(&self, capacity: u64) -> io::Result<Arc<SegmentFile>> {
        let mut files = self.files.lock();
        let usable = |f: &mut Arc<SegmentFile>| f.capacity >= capacity && Arc::get_mut(f).is_some();
        let filled = files.free.iter_mut().position(|f| f.is_filled() && usable(f));
        if let Some(at) = filled.or_else(|| files.free.iter_mut().position(usable)) {
            return Ok(files.free.remove(at));
        }
        let file = self.make_file(files, capacity.max(self.segment_bytes))?;
        Ok(Arc::new(file))
    }

    /// Makes one more free file if one is wanted.
    pub(crate) fn prepare_file(&self) {
        let files = self.files.lock();
        if !self.looks_until_prepare.is_over() || !self.wants_one(&files) {
            return;
        }
        match self.make_file(files, self.segment_bytes) {
            Ok(file) => {
                self.files.lock().free.push(Arc::new(file));
                self.starved.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                self.looks_until_prepare.set(LOOKS_UNTIL_PREPARE);
                self.starved.store(true, Ordering::Relaxed);
                // Not needed yet: when it is, and there is still no room, the writer fails with the reason.
                tracing::warn!(%error, "no journal segment could be prepared");
            }
        }
    }

    /// Whether a look for housekeeping may come to a new file: not for a while after one could not be made.
    pub(crate) fn may_prepare(&self) -> bool {
        self.looks_until_prepare.tick()
    }

    pub(crate) fn wants_file(&self) -> bool {
        self.wants_one(&self.files.lock())
    }

    /// Beyond the bound too there is always one: the writer would make it itself otherwise.
    fn wants_one(&self, files: &Files) -> bool {
        let is_within = files.bytes + self.segment_bytes <= self.journal_bytes_max;
        let wanted = if is_within { FREE_FILES_READY } else { 1 };
        files.free.is_empty() || files.free.len() + files.filling < wanted
    }

    /// Counts a file and lets go of the list, then makes the file: nobody waits for the disk who only wants a free one.
    fn make_file(&self, mut files: MutexGuard<'_, Files>, capacity: u64) -> io::Result<SegmentFile> {
        let number = files.next_number;
        files.next_number += 1;
        files.bytes += capacity;
        drop(files);
        let made = SegmentFile::create(&self.disk, &self.journal_dir, number, capacity);
        if made.is_err() {
            self.forget(capacity);
        }
        made
    }

    /// One file of that length less.
    fn forget(&self, capacity: u64) {
        self.files.lock().bytes -= capacity;
    }

    /// Takes the length of one more record into account.
    pub(crate) fn note_record(&self, bytes: u64) {
        const OF_LATE: u64 = 16;
        let before = self.record_bytes.load(Ordering::Relaxed);
        // The writer is the only one that changes it.
        self.record_bytes.store((before * (OF_LATE - 1) + bytes) / OF_LATE, Ordering::Relaxed);
    }

    /// Whether a free file's blocks were never written, another one would stay in the list while they are, and that pays.
    pub(crate) fn has_unfilled(&self) -> bool {
        let pays = self.record_bytes.load(Ordering::Relaxed) < UNFILLED_RECORD_BYTES;
        pays && unfilled(&mut self.files.lock()).is_some()
    }

    /// A free file whose blocks were never written, out of the list; another one stays in it.
    pub(crate) fn take_unfilled(&self) -> Option<SegmentFile> {
        if !self.has_unfilled() {
            return None;
        }
        let mut files = self.files.lock();
        let at = unfilled(&mut files)?;
        let file = files.free.remove(at);
        files.filling += 1;
        Some(Arc::into_inner(file).expect("nobody else holds it, and the list is locked"))
    }

    /// Puts a file that was taken out back into the list.
    pub(crate) fn give_back(&self, file: SegmentFile) {
        let mut files = self.files.lock();
        files.filling -= 1;
        files.free.push(Arc::new(file));
    }

    /// Takes back files whose segments are settled; removes what is beyond the bound.
    pub(crate) fn recycle(&self, freed: Vec<Arc<SegmentFile>>) {
        for file in &freed {
            file.set_filled();
        }
        self.files.lock().free.extend(freed);
        while let Some(file) = self.take_surplus() {
            if let Err(error) = self.disk.remove_file(&file.path) {
                // Settling went well and the file is still good: one more look at the next pass.
                tracing::warn!(%error, path = %file.path.display(), "a journal file beyond the bound stays");
                self.files.lock().free.push(file);
                break;
            }
            self.forget(file.capacity);
        }
    }

    /// Files of these lengths are no longer the journal's: their segments are archived.
    pub(crate) fn leave(&self, capacities: impl Iterator<Item = u64>) {
        self.files.lock().bytes -= capacities.sum::<u64>();
    }

    /// Takes back files whose segments were archived.
    pub(crate) fn recycle_archived(&self, freed: Vec<Arc<SegmentFile>>) {
        freed.iter().for_each(|f| f.keep_open());
        self.files.lock().bytes += freed.iter().map(|f| f.capacity).sum::<u64>();
        self.recycle(freed);
    }

    /// A free file beyond the bound, out of the list.
    fn take_surplus(&self) -> Option<Arc<SegmentFile>> {
        let mut files = self.files.lock();
        let beyond = files.bytes > self.journal_bytes_max && files.free.len() > FREE_FILES_READY;
        if beyond { files.free.pop() } else { None }
    }

    /// Latches the first failure of a background job; the writer reports it.
    pub(crate) fn fail(&self, error: LogError) {
        tracing::error!(%error, "log store housekeeping failed");
        self.failure.lock().get_or_insert(error);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Bytes of the segments that are in use, but for archived ones.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.index.read().segments.iter().map(|s| s.file.capacity).sum()
    }

    /// How full the journal is, in percent of its bound.
    pub(crate) fn pressure_percent(&self) -> u32 {
        let percent = (self.live_bytes() * 100 / self.journal_bytes_max) as u32;
        let starved = self.starved.load(Ordering::Relaxed) && self.files.lock().free.len() < FREE_FILES_READY;
        if starved { percent.max(STARVED_PERCENT) } else { percent }
    }
}
