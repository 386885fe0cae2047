//! The writing side of the journal: gathers batches into records, one write and one sync at a time.
//!
//! Invariants: record n+1 is written only after n is durable; the header block of a new use is durable before the footer
//! that names it, and that footer before the first record of the new use; the index learns of a record when it is
//! durable; after the first error nothing is written any more.

use crate::format::{
    BLOCK, DIRECTORY_ITEM_BYTES, DirectoryItem, FOOTER_HEADER_BYTES, FOOTER_ITEM_BYTES, FooterHeader,
    RECORD_HEADER_BYTES, RecordHeader, SegmentHeader, crc, padded,
};
use crate::frame;
use crate::identity::Ids;
use crate::index::{Effect, FooterBody, LogIndex};
use crate::segment::{Sealed, Segment, SegmentFile};
use crate::shared::Shared;
use crate::{Record, Seq, Update};
use longboat_io::DiskFile;
use longboat_raft::{GroupId, Index};
use parking_lot::RwLockUpgradableReadGuard;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a record beyond which no more batches are gathered into it: past this a larger write is not cheaper per
/// byte, and those that wait for it wait longer.
const RECORD_BYTES_MAX: usize = 4 << 20;

/// The write that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Io {
    /// The header block of the next segment's use.
    Header,
    /// The footer of the segment that is full.
    Footer,
    /// A record.
    Record,
}

/// A submitted batch, or what is left of it.
#[derive(Debug)]
struct Batch {
    seq: Seq,
    updates: Vec<Update>,
}

/// A segment that is being written.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) segment: Arc<Segment>,
    pub(crate) header: SegmentHeader,
    pub(crate) position: u64,
}

/// What the next record holds.
#[derive(Debug, Default)]
struct Gathered {
    batches: Vec<Vec<Update>>,
    /// The slot, and once encoded the place, of every update in order.
    frames: Vec<FramePlace>,
    /// Bytes of all frames.
    bytes: usize,
    /// The last batch that is durable with this record.
    through: Seq,
    /// It holds nothing and only states what is durable.
    seal: bool,
}

#[derive(Clone, Copy, Debug)]
struct FramePlace {
    slot: u32,
    offset: u32,
    length: u32,
}

/// The log of a group once all that was submitted is durable: what the next update is checked against.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tail {
    pub(crate) start: Index,
    pub(crate) last: Index,
    pub(crate) removed: bool,
}

/// Figures of the writer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    pub(crate) syncs: u64,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    ids: Ids,
    active: Active,
    /// The segment that follows, from the moment that its header is written until the footer is durable.
    next: Option<Active>,
    /// The footer that is being written.
    footer: Option<(FooterBody, Sealed)>,
    io: Option<Io>,
    queue: VecDeque<Batch>,
    submitted: Seq,
    pub(crate) durable: Seq,
    /// The last record that is durable.
    pub(crate) last_seq: u64,
    use_number: u64,
    gathered: Gathered,
    tails: Vec<Tail>,
    buffer: Vec<u8>,
    /// A seal is wanted: nothing was submitted for a while.
    seal_wanted: bool,
    /// The last record is a seal.
    sealed: bool,
    pub(crate) written: Written,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, ids: Ids, active: Active, last_seq: u64, use_number: u64) -> Self {
        let tails = {
            let index = shared.index.read();
            index.groups.iter().map(|g| Tail { start: g.start, last: g.last, removed: g.removed }).collect()
        };
        Self {
            shared,
            ids,
            active,
            next: None,
            footer: None,
            io: None,
            queue: VecDeque::new(),
            submitted: Seq(0),
            durable: Seq(0),
            last_seq,
            use_number,
            gathered: Gathered::default(),
            tails,
            buffer: Vec::new(),
            seal_wanted: false,
            sealed: last_seq == 0,
            written: Written::default(),
        }
    }

    pub(crate) fn submit(&mut self, updates: Vec<Update>) -> Seq {
        self.submitted.0 += 1;
        self.queue.push_back(Batch { seq: self.submitted, updates });
        self.submitted
    }

    /// States what is durable, unless the last record does already.
    pub(crate) fn want_seal(&mut self) {
        self.seal_wanted = !self.sealed && self.queue.is_empty() && self.gathered.batches.is_empty();
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.io.is_some() || self.next.is_some() || self.seal_wanted || self.durable < self.submitted
    }

    /// Finishes what was under way, starts what comes next, and finishes that if it is done at once: at most one record.
    pub(crate) fn drive(&mut self) -> io::Result<()> {
        let mut started = false;
        loop {
            let Some(io) = self.io else {
                if !self.start()? {
                    return Ok(());
                }
                started = true;
                continue;
            };
            let file = if io == Io::Header { self.next.as_mut().expect("being written") } else { &mut self.active };
            match file.file.poll_write_sync() {
                None => return Ok(()),
                Some(result) => result?,
            }
            self.io = None;
            self.written.syncs += 1;
            match io {
                Io::Header => {}
                Io::Footer => self.footer_durable(),
                Io::Record => {
                    self.record_durable();
                    if started {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits for all that was submitted. For closing, when nothing else is left to do.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while self.in_flight() {
            self.drive()?;
            if self.io.is_some() {
                // A disk that completes later is made to complete now: a plain sync waits for what is under way.
                self.active.file.sync_data()?;
                if let Some(next) = &mut self.next {
                    next.file.sync_data()?;
                }
            }
        }
        Ok(())
    }

    fn start(&mut self) -> io::Result<bool> {
        if self.next.is_some() {
            self.start_footer();
            return Ok(true);
        }
        if self.gathered.frames.is_empty() && !self.gathered.seal && !self.gather() {
            return Ok(false);
        }
        let record = RECORD_HEADER_BYTES + self.gathered.frames.len() * DIRECTORY_ITEM_BYTES + self.gathered.bytes;
        let record = padded(record as u64);
        let items = self.shared.index.read().footer_items();
        let footer = |items: usize| padded((FOOTER_HEADER_BYTES + items * FOOTER_ITEM_BYTES) as u64);
        let frames = 2 * self.gathered.frames.len();
        if self.active.position + record + footer(items + frames) > self.active.segment.file.capacity {
            self.start_segment(BLOCK + record + footer(frames))?;
        } else {
            self.start_record(record);
        }
        Ok(true)
    }

    /// Takes the batches of the next record off the queue. Empty batches are durable with what comes before them.
    fn gather(&mut self) -> bool {
        let mut index = self.shared.index.upgradable_read();
        while let Some(batch) = self.queue.front_mut() {
            let g = &mut self.gathered;
            if g.bytes >= RECORD_BYTES_MAX {
                break;
            }
            let mut taken = 0;
            for update in &batch.updates {
                let bytes = frame::encoded_len(update) + DIRECTORY_ITEM_BYTES;
                if !g.frames.is_empty() && g.bytes + bytes > RECORD_BYTES_MAX {
                    break;
                }
                let slot = slot(&mut index, &mut self.tails, update.group);
                check_update(&mut self.tails[slot as usize], update);
                g.frames.push(FramePlace { slot, offset: 0, length: 0 });
                g.bytes += bytes - DIRECTORY_ITEM_BYTES;
                taken += 1;
            }
            if taken < batch.updates.len() {
                let rest = batch.updates.split_off(taken);
                g.batches.push(std::mem::replace(&mut batch.updates, rest));
                break;
            }
            let batch = self.queue.pop_front().expect("the front that was looked at");
            g.through = batch.seq;
            g.batches.push(batch.updates);
        }
        drop(index);
        if self.gathered.frames.is_empty() {
            self.durable = self.durable.max(self.gathered.through);
            self.gathered.batches.clear();
            self.gathered.seal = std::mem::take(&mut self.seal_wanted);
            return self.gathered.seal;
        }
        self.seal_wanted = false;
        true
    }

    fn start_record(&mut self, length_padded: u64) {
        let seed = self.active.segment.seed;
        let out = &mut self.buffer;
        let front = RECORD_HEADER_BYTES + self.gathered.frames.len() * DIRECTORY_ITEM_BYTES;
        out.clear();
        out.reserve(length_padded as usize);
        out.resize(front, 0);
        let updates = self.gathered.batches.iter().flatten();
        for (i, (update, place)) in updates.zip(&mut self.gathered.frames).enumerate() {
            let offset = out.len();
            frame::encode(update, seed, out);
            let length = (out.len() - offset) as u32;
            let item = DirectoryItem { group: update.group, offset: offset as u32, length };
            let at = RECORD_HEADER_BYTES + i * DIRECTORY_ITEM_BYTES;
            out[at..at + DIRECTORY_ITEM_BYTES].copy_from_slice(&item.encode());
            (place.offset, place.length) = (self.active.position as u32 + item.offset, length);
        }
        let header = RecordHeader {
            seq: self.last_seq + 1,
            length: out.len() as u64,
            durable_through: self.last_seq,
            oldest_needed: self.shared.settled.load(Ordering::Acquire) + 1,
            frames: self.gathered.frames.len() as u32,
            directory_crc: crc(seed, &out[RECORD_HEADER_BYTES..front]),
        };
        out[..RECORD_HEADER_BYTES].copy_from_slice(&header.encode(seed));
        out.resize(length_padded as usize, 0);
        self.active.file.submit_write_sync(self.active.position, &[&out[..]]);
        self.io = Some(Io::Record);
    }

    fn record_durable(&mut self) {
        let mut index = self.shared.index.write();
        let updates = self.gathered.batches.iter().flatten();
        for (update, place) in updates.zip(&self.gathered.frames) {
            index
                .apply(place.slot, &Effect::from(update), place.offset, place.length)
                .expect("updates were checked before they were written");
            self.written.entries += update.runs.iter().map(|r| r.count() as u64).sum::<u64>();
        }
        drop(index);
        self.last_seq += 1;
        self.active.position += self.buffer.len() as u64;
        self.written.bytes += self.buffer.len() as u64;
        self.sealed = self.gathered.seal;
        self.durable = self.durable.max(self.gathered.through);
        self.gathered.batches.clear();
        self.gathered.frames.clear();
        (self.gathered.bytes, self.gathered.seal) = (0, false);
        // A batch of nothing behind this record has nothing more to wait for.
        while self.queue.front().is_some_and(|b| b.updates.is_empty()) {
            self.durable = self.queue.pop_front().expect("there is a front").seq;
        }
    }

    /// Draws a new use and writes its header block.
    fn start_segment(&mut self, capacity: u64) -> io::Result<()> {
        let file = self.shared.take_file(capacity)?;
        self.use_number += 1;
        let header = SegmentHeader {
            use_number: self.use_number,
            use_id: self.ids.segment_use(self.use_number)?,
            first_seq: self.last_seq + 1,
            ..self.active.header
        };
        let mut next = open_active(&self.shared, file, header)?;
        let mut block = Vec::new();
        header.encode(&mut block);
        next.file.submit_write_sync(0, &[&block]);
        self.written.bytes += block.len() as u64;
        self.next = Some(next);
        self.io = Some(Io::Header);
        Ok(())
    }

    fn start_footer(&mut self) {
        let next = self.next.as_ref().expect("its header was just written");
        let seed = self.active.segment.seed;
        let body = self.shared.index.read().footer();
        let out = &mut self.buffer;
        out.clear();
        out.resize(FOOTER_HEADER_BYTES, 0);
        body.encode(out);
        let footer = FooterHeader {
            last_seq: self.last_seq,
            length: out.len() as u64,
            next_use_id: next.header.use_id,
            groups: body.groups.len() as u32,
            frames: body.frames.len() as u32,
            body_crc: crc(seed, &out[FOOTER_HEADER_BYTES..]),
        };
        out[..FOOTER_HEADER_BYTES].copy_from_slice(&footer.encode(seed));
        out.resize(padded(footer.length) as usize, 0);
        let end = self.active.position + out.len() as u64;
        assert!(end <= self.active.segment.file.capacity, "a footer of {} bytes does not fit", out.len());
        let sealed = Sealed { offset: self.active.position, footer };
        self.active.file.submit_write_sync(self.active.position, &[&out[..]]);
        self.written.bytes += out.len() as u64;
        self.footer = Some((body, sealed));
        self.io = Some(Io::Footer);
    }

    fn footer_durable(&mut self) {
        let (body, sealed) = self.footer.take().expect("it was just written");
        let next = self.next.take().expect("the footer names it");
        let mut index = self.shared.index.write();
        self.active.segment.sealed.set(sealed).expect("a segment is sealed once");
        index.sealed(&body);
        index.begin_segment(Arc::clone(&next.segment));
        drop(index);
        self.active = next;
    }
}

/// Opens a segment file for writing under a use.
pub(crate) fn open_active(shared: &Shared, file: Arc<SegmentFile>, header: SegmentHeader) -> io::Result<Active> {
    let writing = shared.disk.open(&file.path)?;
    Ok(Active { file: writing, segment: Arc::new(Segment::new(file, &header)), header, position: BLOCK })
}

fn slot(index: &mut RwLockUpgradableReadGuard<'_, LogIndex>, tails: &mut Vec<Tail>, group: GroupId) -> u32 {
    index.slot(group).unwrap_or_else(|| {
        let slot = index.with_upgraded(|index| index.slot_or_insert(group));
        tails.resize(tails.len().max(slot as usize + 1), Tail::default());
        slot
    })
}

/// Panics when an update contradicts what was submitted before it: the group's core or its worker is wrong, and
/// what it would write could never be read back.
fn check_update(tail: &mut Tail, update: &Update) {
    let group = update.group;
    match update.record.as_deref() {
        Some(Record::Bootstrap(_)) => *tail = Tail::default(),
        Some(Record::Snapshot(s)) if s.resets_log => (tail.start, tail.last) = (s.meta.pos.index, s.meta.pos.index),
        Some(Record::Removed { .. }) => *tail = Tail { removed: true, ..Tail::default() },
        Some(Record::Snapshot(_)) | None => {}
    }
    if tail.removed {
        return;
    }
    if let Some(from) = update.cut_tail {
        assert!(from > tail.start, "group {group}: cut from {from}, the log starts after {}", tail.start);
        tail.last = tail.last.min(from.prev());
    }
    for run in &update.runs {
        assert_eq!(run.first(), tail.last.next(), "group {group}: {run:?} does not follow the last entry");
        tail.last = run.last();
    }
    if let Some(to) = update.compact_to {
        assert!(to.index <= tail.last, "group {group}: compaction to {to:?}, the last entry is {}", tail.last);
        tail.start = tail.start.max(to.index);
    }
}
