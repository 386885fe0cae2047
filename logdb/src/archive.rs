//! Archived segments: those that were settled while much of what they hold was still kept.
//!
//! Writing such entries again as rows would cost several times what the journal's own write did. So the file stays as it is,
//! read-only, and the key-value store has *references* in place of the rows: one per group, which says where the footer
//! lists the group's frames. A reference is made, moved and deleted like a row, so whatever is true of rows (who may see
//! them, what a removal or a compaction does to them, what a crash leaves) is true of references.
//!
//! Invariants:
//! - An archived segment has a row of its own from the batch that moves the settled sequence past it to the batch that
//!   deletes the last reference to it: at any crash its file is either the journal's, or archived, or free.
//! - `live_bytes` of that row is the sum of the references' bytes, kept in the same batches.
//! - The file is used again only when the batch without the segment's row was flushed.
//! - A segment is found here before anybody can see a reference to it, and until no reference is left.
//! - Of the archived files at most [`OPEN_FILES_MAX`] stay open, those that were used last; besides those, each read that is
//!   under way may have one open.

use crate::format::{FOOTER_HEADER_BYTES, FOOTER_ITEM_BYTES, FooterHeader, FooterOpening};
use crate::kv::{ARCHIVED_KEYS, ArchivedRow, Kv, KvBatch, KvResult, Table, archived_key, use_of_archived_key};
use crate::segment::{Sealed, Segment};
use crate::{OpenError, shared::Shared};
use longboat_raft::{plant, sometimes};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Files of archived segments that stay open. A process may have a thousand files open on many a machine, and this is one of
/// several users; a follower that reads on needs one at a time.
const OPEN_FILES_MAX: usize = 64;

/// The archived segments by use number.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    segments: RwLock<BTreeMap<u64, Archived>>,
    /// The use numbers of those whose files may stay open, the one that was used last at the end.
    open: Mutex<VecDeque<u64>>,
}

#[derive(Debug)]
struct Archived {
    segment: Arc<Segment>,
    live_bytes: u64,
    /// Something in it can't be read: it stays for what can, and moving its entries is not tried again.
    damaged: bool,
}

/// Figures of the archive.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ArchiveFigures {
    pub(crate) segments: u64,
    pub(crate) file_bytes: u64,
    pub(crate) live_bytes: u64,
}

impl Archive {
    pub(crate) fn segment(&self, use_number: u64) -> Option<Arc<Segment>> {
        let segment = self.segments.read().get(&use_number).map(|a| Arc::clone(&a.segment))?;
        self.used(&segment);
        Some(segment)
    }

    /// Keeps the file of this segment open, and lets go of the one that was not used for the longest time.
    pub(crate) fn used(&self, segment: &Segment) {
        let oldest = {
            let mut open = self.open.lock();
            if open.back() == Some(&segment.use_number) {
                return;
            }
            open.retain(|n| *n != segment.use_number);
            open.push_back(segment.use_number);
            segment.file.keep_open();
            if open.len() > OPEN_FILES_MAX { open.pop_front() } else { None }
        };
        if let Some(oldest) = oldest.filter(|_| !plant::is("archived-files-stay-open"))
            && let Some(archived) = self.segments.read().get(&oldest)
        {
            archived.segment.file.let_go();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.read().is_empty()
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>, live_bytes: u64) {
        let archived = Archived { segment: Arc::clone(&segment), live_bytes, damaged: false };
        self.segments.write().insert(segment.use_number, archived);
        self.used(&segment);
    }

    /// Takes out the segments that nothing refers to any more. The batch that said so must be durable.
    pub(crate) fn take_dead(&self) -> Vec<Arc<Segment>> {
        let mut dead = Vec::new();
        self.segments.write().retain(|_, a| {
            if a.live_bytes == 0 {
                dead.push(Arc::clone(&a.segment));
            }
            a.live_bytes > 0
        });
        self.open.lock().retain(|n| dead.iter().all(|s| s.use_number != *n));
        dead
    }

    pub(crate) fn has_dead(&self) -> bool {
        self.segments.read().values().any(|a| a.live_bytes == 0)
    }

    /// Whether anything refers to this segment.
    pub(crate) fn is_kept(&self, use_number: u64) -> bool {
        self.segments.read().get(&use_number).is_some_and(|a| a.live_bytes > 0)
    }

    pub(crate) fn set_damaged(&self, use_number: u64) {
        if let Some(archived) = self.segments.write().get_mut(&use_number) {
            archived.damaged = true;
        }
    }

    pub(crate) fn figures(&self) -> ArchiveFigures {
        let mut figures = ArchiveFigures::default();
        for archived in self.segments.read().values() {
            figures.segments += 1;
            figures.file_bytes += archived.segment.file.capacity;
            figures.live_bytes += archived.live_bytes;
        }
        figures
    }

    /// The segment whose remnants are worth moving, if any is.
    ///
    /// Less than a quarter of it is kept, so moving writes at most a quarter of what it frees, over a segment's life. And
    /// more than `dead_bytes_max` of the archive is dead: logs die oldest first, so most remnants go by themselves if they are
    /// given the time. Together: the archive's files are at most `dead_bytes_max` and four times what is kept in them, and those
    /// that can't be emptied: they don't count here, so that others are not emptied for them.
    pub(crate) fn with_remnants(&self, dead_bytes_max: u64) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let kept = || segments.values().filter(|a| a.live_bytes > 0 && !a.damaged);
        let dead_bytes: u64 = kept().map(|a| a.segment.file.capacity.saturating_sub(a.live_bytes)).sum();
        if dead_bytes <= dead_bytes_max {
            return None;
        }
        let candidates = kept().filter(|a| is_little(a.live_bytes, &a.segment));
        candidates.min_by_key(|a| (a.live_bytes, a.segment.use_number)).map(|a| Arc::clone(&a.segment))
    }
}

/// Whether so little of a segment is kept that it is better written again.
pub(crate) fn is_little(live_bytes: u64, segment: &Segment) -> bool {
    live_bytes < segment.file.capacity / 4
}

/// Changes of rows, and what they take from archived segments.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) batch: KvBatch,
    released: BTreeMap<u64, u64>,
}

impl Changes {
    /// A reference to this segment is deleted, or made smaller, by so many bytes.
    pub(crate) fn release(&mut self, use_number: u64, bytes: u64) {
        *self.released.entry(use_number).or_default() += bytes;
    }

    /// Writes all of it in one batch, with the rows of the segments that it is about, and starts anew. Nobody else may
    /// write what is about archived segments meanwhile: there is one background job at a time.
    pub(crate) fn write(&mut self, shared: &Shared) -> KvResult<()> {
        let Changes { mut batch, released } = std::mem::take(self);
        let mut left = Vec::new();
        for (use_number, bytes) in released {
            let segments = shared.archive.segments.read();
            // A reference that an interrupted pass left is to a segment that was never archived.
            let Some(archived) = segments.get(&use_number) else { continue };
            // Never less than nothing; should it ever be, a segment that stays for good is better than one that goes early.
            let live_bytes = archived.live_bytes.checked_sub(bytes).unwrap_or_else(|| {
                tracing::error!(use_number, "references to an archived segment are larger than its row says");
                1
            });
            match live_bytes {
                0 => batch.delete(Table::State, archived_key(use_number)),
                _ => put_row(&archived.segment, live_bytes, &mut batch),
            }
            left.push((use_number, live_bytes));
        }
        shared.kv.write(batch)?;
        let mut segments = shared.archive.segments.write();
        for (use_number, live_bytes) in left {
            segments.get_mut(&use_number).expect("just seen, and only this job removes any").live_bytes = live_bytes;
        }
        Ok(())
    }
}

/// The row of an archived segment.
pub(crate) fn put_row(segment: &Segment, live_bytes: u64, batch: &mut KvBatch) {
    if plant::is("archived-segment-lost-from-list") {
        return;
    }
    let footer_offset = segment.sealed.get().expect("only sealed segments are archived").offset;
    let row = ArchivedRow { use_id: segment.use_id, footer_offset, live_bytes };
    batch.put(Table::State, archived_key(segment.use_number), row.encode());
}

/// Gives the files of segments that nothing refers to back to the journal.
pub(crate) fn free_dead(shared: &Shared) -> KvResult<()> {
    if !shared.archive.has_dead() {
        return Ok(());
    }
    if !plant::is("archive-recycled-before-flush") {
        // A crash now may come back to the batch before, and then the references are there again.
        shared.kv.flush()?;
    }
    let dead = shared.archive.take_dead();
    sometimes!("archived-segments-freed");
    tracing::debug!(segments = dead.len(), "archived segments are free");
    let files = dead.into_iter().map(|s| Arc::clone(&s.file)).collect();
    shared.recycle_archived(files);
    Ok(())
}

/// The rows of archived segments by use number.
pub(crate) fn load(kv: &dyn Kv) -> Result<Vec<(u64, ArchivedRow)>, OpenError> {
    let mut rows = Vec::new();
    let mut malformed = None;
    kv.scan(Table::State, ARCHIVED_KEYS, &mut |key, value| {
        let Some(use_number) = use_of_archived_key(key) else { return false };
        match ArchivedRow::decode(value) {
            Some(row) => rows.push((use_number, row)),
            None => malformed = Some(use_number),
        }
        malformed.is_none()
    })?;
    match malformed {
        Some(n) => Err(OpenError::Format(format!("the row of archived segment {n} is of an unknown version"))),
        None => Ok(rows),
    }
}

/// Finds an archived segment's footer again. Its list is not read: whatever it says is checked against the frames.
pub(crate) fn open(segment: Segment, row: &ArchivedRow) -> Result<Segment, OpenError> {
    let mut front = [0; FOOTER_HEADER_BYTES];
    let damaged = |why: &str| {
        let (path, use_number) = (segment.file.path.display(), segment.use_number);
        OpenError::Corrupt(format!("archived segment {use_number} in {path}: {why}"))
    };
    if row.footer_offset.saturating_add(FOOTER_HEADER_BYTES as u64) > segment.file.capacity {
        return Err(damaged("its file is too short"));
    }
    segment.file.read_into(&mut front, row.footer_offset)?;
    let footer = FooterHeader::decode(&front, segment.seed).ok_or_else(|| damaged("its footer is damaged"))?;
    if footer.length != footer.bytes() || row.footer_offset.saturating_add(footer.length) > segment.file.capacity {
        return Err(damaged("the length of its footer is not that of its list"));
    }
    let openings = footer.openings as usize * FOOTER_ITEM_BYTES;
    let bytes = segment.file.read(row.footer_offset + footer.length - openings as u64, openings)?;
    for item in bytes.chunks_exact(FOOTER_ITEM_BYTES).map(FooterOpening::decode) {
        segment.open_from(item.offset.into(), item.opening);
    }
    segment.sealed.set(Sealed { offset: row.footer_offset, footer }).expect("just made");
    Ok(segment)
}

impl FromIterator<(Segment, u64)> for Archive {
    fn from_iter<I: IntoIterator<Item = (Segment, u64)>>(segments: I) -> Self {
        let archive = Self::default();
        for (segment, live_bytes) in segments {
            archive.insert(Arc::new(segment), live_bytes);
        }
        archive
    }
}
