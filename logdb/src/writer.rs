//! The writing side of the journal: gathers batches into records, one write and one sync at a time.
//!
//! Invariants: record n+1 is written only after n is durable; the header block of a new use is durable before the footer
//! that names it, and that footer before the first record of the new use; the index learns of a record when it is
//! durable; after the first error nothing is written any more.

use crate::buffer::WriteBuffer;
use crate::effect::{SPAN_BYTES, Tallies};
use crate::fold::is_overtaken;
use crate::format::{
    BLOCK, DIRECTORY_ITEM_BYTES, DirectoryItem, FOOTER_HEADER_BYTES, FOOTER_ITEM_BYTES, FooterHeader,
    RECORD_HEADER_BYTES, RecordHeader, SegmentHeader, body_seed, crc, padded,
};
use crate::frame;
use crate::identity::Ids;
use crate::index::{self, Append, Change, FooterBody, Group, LogIndex};
use crate::segment::{Sealed, Segment, SegmentFile};
use crate::shared::Shared;
use crate::{Record, Seq, Update};
use longboat_io::DiskFile;
use longboat_raft::{GroupId, Index, ReplicaId, Run, sometimes};
use parking_lot::RwLockUpgradableReadGuard;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Emptied batches that are kept for those who fill them, and the updates that one of them may have room for: a quarter of a
/// megabyte each.
const SPARES_MAX: usize = 4;
const SPARE_UPDATES_MAX: usize = 1500;

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

/// Where a journal goes on.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) active: Active,
    /// Drawn for this opening of the store.
    pub(crate) opening: u64,
    /// The last record that is durable.
    pub(crate) last_seq: u64,
    /// What the records of the segment that is being written come to.
    pub(crate) tallies: Tallies,
}

/// What the next record holds.
#[derive(Debug, Default)]
struct Gathered {
    batches: Vec<Vec<Update>>,
    /// Every update, in order: what the index is to be told when it is durable. Where in the segment it is, it says once it is
    /// encoded.
    frames: Vec<Append>,
    /// What the frames at these places do besides, ascending.
    changes: Vec<(u32, Change)>,
    /// Bytes of all frames.
    bytes: usize,
    /// Bytes that the frames add to the segment's footer at most.
    footer_bytes: usize,
    /// The last batch that is durable with this record.
    through: Seq,
    /// It holds nothing and only states what is durable.
    seal: bool,
}

/// What the writer knows of the group with a slot.
#[derive(Debug, Default)]
struct Seat {
    group: GroupId,
    tail: Tail,
    /// The slot of the update that came after this group's the last time. Hosts write their groups in much the same order
    /// again and again: so the next slot is where it was, and needs no look into a table that no cache holds.
    next: u32,
}

/// All groups by slot.
#[derive(Debug, Default)]
struct Seats {
    seats: Vec<Seat>,
    /// The slot of the last update.
    last: u32,
}

impl Seats {
    fn of(index: &LogIndex) -> Self {
        let tail = |g: &Group| Tail { start: g.start, last: g.last, removed: g.removed, replica: g.replica };
        let seat = |g: &Group| Seat { group: g.id, tail: tail(g), next: 0 };
        Self { seats: index.groups.iter().map(seat).collect(), last: 0 }
    }

    /// The slot of a group. One that is new is given one.
    fn slot(&mut self, index: &mut RwLockUpgradableReadGuard<'_, LogIndex>, group: GroupId) -> u32 {
        let guess = self.seats.get(self.last as usize).map_or(0, |seat| seat.next);
        if self.seats.get(guess as usize).is_some_and(|seat| seat.group == group) {
            self.last = guess;
            return guess;
        }
        let slot = index.slot(group).unwrap_or_else(|| index.with_upgraded(|index| index.slot_or_insert(group)));
        if slot as usize == self.seats.len() {
            self.seats.push(Seat { group, ..Seat::default() });
        }
        self.seats[self.last as usize].next = slot;
        self.last = slot;
        slot
    }
}

/// The log of a group once all that was submitted is durable: what the next update is checked against.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tail {
    pub(crate) start: Index,
    pub(crate) last: Index,
    pub(crate) removed: bool,
    pub(crate) replica: ReplicaId,
}

/// Figures of the writer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) syncs: u64,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Uses that began in files which were not filled.
    pub(crate) unfilled: u64,
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    ids: Ids,
    /// Drawn when the store was opened: what is written carries it.
    opening: u64,
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
    seats: Seats,
    /// What was written to the segment comes to, with the record under way.
    tallies: Tallies,
    buffer: WriteBuffer,
    /// Emptied batches.
    pub(crate) spares: Vec<Vec<Update>>,
    /// A seal is wanted: nothing was submitted for a while.
    seal_wanted: bool,
    /// The last record is a seal.
    sealed: bool,
    pub(crate) written: Figures,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, ids: Ids, place: Place, use_number: u64) -> Self {
        let Place { active, opening, last_seq, tallies } = place;
        let seats = Seats::of(&shared.index.read());
        Self {
            shared,
            ids,
            opening,
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
            seats,
            tallies,
            buffer: WriteBuffer::default(),
            spares: Vec::new(),
            seal_wanted: false,
            sealed: last_seq == 0,
            written: Figures::default(),
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
        // A host that rests needs no memory for it.
        self.spares.clear();
    }

    /// Lets go of buffers that were needed for large records, if no record is under way.
    pub(crate) fn shed(&mut self) {
        if self.in_flight() {
            return;
        }
        self.buffer = WriteBuffer::default();
        self.queue.shrink_to_fit();
        let g = &mut self.gathered;
        assert!(g.frames.is_empty() && g.batches.is_empty(), "nothing is under way");
        (g.frames, g.batches) = (Vec::new(), Vec::new());
        (g.changes, self.spares) = (Vec::new(), Vec::new());
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

    /// Makes durable what the store has to say itself, before anybody else submits anything: it has no place among the numbers of
    /// batches.
    pub(crate) fn write_first(&mut self, updates: Vec<Update>) -> io::Result<()> {
        assert_eq!(self.submitted, Seq(0), "nothing was submitted");
        self.queue.push_back(Batch { seq: Seq(0), updates });
        self.drain()
    }

    /// Waits for all that was submitted. For opening and closing, when nothing else is left to do.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while self.in_flight() || !self.queue.is_empty() || !self.gathered.frames.is_empty() {
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
        // The openings of before that have records here, and this one.
        let openings = (self.active.segment.openings().len() + 1) * FOOTER_ITEM_BYTES;
        let listed = self.shared.index.read().footer_bytes() + self.tallies.bytes() + openings;
        let footer = |bytes: usize| padded((FOOTER_HEADER_BYTES + bytes) as u64);
        let added = self.gathered.footer_bytes;
        if self.active.position + record + footer(listed + added) > self.active.segment.file.capacity {
            self.start_segment(BLOCK + record + footer(added + FOOTER_ITEM_BYTES))?;
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
            if g.bytes >= self.shared.record_bytes_max {
                break;
            }
            let mut taken = 0;
            for update in &batch.updates {
                let front = frame::front_len(update);
                let length = front + frame::runs_len(update);
                if !g.frames.is_empty() && g.bytes + length + DIRECTORY_ITEM_BYTES > self.shared.record_bytes_max {
                    break;
                }
                let slot = self.seats.slot(&mut index, update.group);
                check_update(&mut self.seats.seats[slot as usize].tail, update);
                if !Change::is_plain(update) {
                    g.changes.push((g.frames.len() as u32, Change::from(update)));
                }
                g.frames.push(Append {
                    slot,
                    offset: 0,
                    length: length as u32,
                    entries: index::entries(update),
                    first: update.runs.first().map_or(Index::ZERO, Run::first),
                    commit: update.hard_state.commit,
                });
                g.bytes += length;
                // A group, a frame, and what it does: no more than the frame says before its runs, and their terms.
                g.footer_bytes += 2 * FOOTER_ITEM_BYTES + front + update.runs.len() * SPAN_BYTES;
                taken += 1;
            }
            if taken < batch.updates.len() {
                sometimes!("batch-split-over-records");
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
        self.active.segment.open_from(self.active.position, self.opening);
        let header_seed = self.active.segment.seed;
        let seed = body_seed(header_seed, self.opening);
        let Gathered { batches, frames, .. } = &mut self.gathered;
        let front = RECORD_HEADER_BYTES + frames.len() * DIRECTORY_ITEM_BYTES;
        let out = self.buffer.start(length_padded as usize);
        let (header, mut rest) = out.split_at_mut(front);
        let directory = header[RECORD_HEADER_BYTES..].as_chunks_mut::<DIRECTORY_ITEM_BYTES>().0;
        let mut places = frames.iter_mut().zip(directory);
        let mut offset = front as u32;
        for update in batches.iter_mut().flatten() {
            let (frame, item) = places.next().expect("each update that was gathered has a place");
            let length = frame.length;
            let (bytes, after) = rest.split_at_mut(length as usize);
            frame::encode(update, seed, bytes);
            *item = DirectoryItem { group: update.group, offset, length }.encode();
            frame.offset = self.active.position as u32 + offset;
            self.tallies.add_update(frame.slot, update);
            (rest, offset) = (after, offset + length);
        }
        // Up to the next block: what was there is of an earlier write.
        rest.fill(0);
        // They need not outlive the sync, and nobody waits for what frees them after that.
        for mut batch in self.gathered.batches.drain(..) {
            if self.spares.len() < SPARES_MAX && batch.capacity() <= SPARE_UPDATES_MAX {
                batch.clear();
                self.spares.push(batch);
            }
        }
        let header = RecordHeader {
            seq: self.last_seq + 1,
            length: u64::from(offset),
            durable_through: self.last_seq,
            oldest_needed: self.shared.settled.load(Ordering::Acquire) + 1,
            frames: self.gathered.frames.len() as u32,
            directory_crc: crc(seed, &out[RECORD_HEADER_BYTES..front]),
            opening: self.opening,
        };
        out[..RECORD_HEADER_BYTES].copy_from_slice(&header.encode(header_seed));
        self.active.file.submit_write_sync(self.active.position, &[self.buffer.bytes()]);
        self.io = Some(Io::Record);
    }

    fn record_durable(&mut self) {
        let mut index = self.shared.index.write();
        let mut changes = self.gathered.changes.drain(..).peekable();
        for (n, frame) in self.gathered.frames.iter().enumerate() {
            let done = match changes.next_if(|(at, _)| *at == n as u32) {
                Some((_, change)) => index.apply(frame.slot, &change, frame.offset, frame.length),
                None => index.append(frame),
            };
            done.expect("updates were checked before they were written");
            self.written.entries += u64::from(frame.entries);
        }
        drop(changes);
        drop(index);
        self.gathered.frames.clear();
        let bytes = self.buffer.bytes().len() as u64;
        self.shared.note_record(bytes);
        self.last_seq += 1;
        self.active.position += bytes;
        self.written.bytes += bytes;
        self.sealed = self.gathered.seal;
        self.durable = self.durable.max(self.gathered.through);
        (self.gathered.bytes, self.gathered.footer_bytes, self.gathered.seal) = (0, 0, false);
        // A batch of nothing behind this record has nothing more to wait for.
        while self.queue.front().is_some_and(|b| b.updates.is_empty()) {
            self.durable = self.queue.pop_front().expect("there is a front").seq;
        }
    }

    /// Draws a new use and writes its header block.
    fn start_segment(&mut self, capacity: u64) -> io::Result<()> {
        let file = self.shared.take_file(capacity)?;
        self.written.unfilled += u64::from(!file.is_filled());
        self.use_number += 1;
        sometimes!(self.use_number > 8, "segment-file-recycled-often");
        let header = SegmentHeader {
            use_number: self.use_number,
            use_id: self.ids.segment_use(self.use_number)?,
            first_seq: self.last_seq + 1,
            ..self.active.header
        };
        let mut next = open_active(&self.shared, file, header)?;
        let mut block = Vec::with_capacity(BLOCK as usize);
        header.encode(&mut block);
        self.buffer.start(BLOCK as usize).copy_from_slice(&block);
        next.file.submit_write_sync(0, &[self.buffer.bytes()]);
        self.written.bytes += BLOCK;
        self.next = Some(next);
        self.io = Some(Io::Header);
        Ok(())
    }

    fn start_footer(&mut self) {
        let next = self.next.as_ref().expect("its header was just written");
        let header_seed = self.active.segment.seed;
        let openings = self.active.segment.openings();
        let index = self.shared.index.read();
        let room = index.footer_bytes() + self.tallies.bytes() + openings.len() * FOOTER_ITEM_BYTES;
        let out = self.buffer.start(padded((FOOTER_HEADER_BYTES + room) as u64) as usize);
        let body = index.footer(&self.tallies, &openings, &mut out[FOOTER_HEADER_BYTES..]);
        drop(index);
        let length = FOOTER_HEADER_BYTES + body.length;
        let length_padded = padded(length as u64);
        let end = self.active.position + length_padded;
        assert!(end <= self.active.segment.file.capacity, "a footer of {length} bytes does not fit");
        let footer = FooterHeader {
            last_seq: self.last_seq,
            length: length as u64,
            next_use_id: next.header.use_id,
            groups: body.groups.len() as u32,
            frames: body.frames as u32,
            body_crc: crc(body_seed(header_seed, self.opening), &out[FOOTER_HEADER_BYTES..length]),
            opening: self.opening,
            openings: openings.len() as u32,
            tally_bytes: body.tally_bytes as u32,
        };
        out[..FOOTER_HEADER_BYTES].copy_from_slice(&footer.encode(header_seed));
        out[length..length_padded as usize].fill(0);
        self.buffer.truncate(length_padded as usize);
        let sealed = Sealed { offset: self.active.position, footer };
        self.active.file.submit_write_sync(self.active.position, &[self.buffer.bytes()]);
        self.written.bytes += length_padded;
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
        self.tallies.clear();
        self.active = next;
    }
}

/// Opens a segment file for writing under a use.
pub(crate) fn open_active(shared: &Shared, file: Arc<SegmentFile>, header: SegmentHeader) -> io::Result<Active> {
    let writing = shared.disk.open(&file.path)?;
    Ok(Active { file: writing, segment: Arc::new(Segment::new(file, &header)), header, position: BLOCK })
}

/// Panics when an update contradicts what was submitted before it: the group's core or its worker is wrong, and
/// what it would write could never be read back.
fn check_update(tail: &mut Tail, update: &Update) {
    let group = update.group;
    match update.record.as_deref() {
        Some(Record::Bootstrap(b)) => *tail = Tail { replica: b.replica, ..Tail::default() },
        Some(Record::Snapshot(s)) if s.resets_log => (tail.start, tail.last) = (s.meta.pos.index, s.meta.pos.index),
        Some(Record::Removed { replica }) if is_overtaken(tail.replica, *replica) => return,
        Some(Record::Quarantined { replica, .. }) => {
            *tail = Tail { removed: true, replica: *replica, ..Tail::default() };
        }
        Some(Record::Removed { replica }) => *tail = Tail { removed: true, replica: *replica, ..Tail::default() },
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
