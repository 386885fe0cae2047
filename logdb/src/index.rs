//! The index in memory: for every group, which segments hold which of its entries.
//!
//! One item per (group, segment) for sealed segments, whose footers know the rest; one per frame for the segment that
//! is being written. It follows what is durable, never what is only submitted, so that readers see nothing else.

use crate::codec::Rows;
use crate::effect::Tallies;
use crate::fold::is_overtaken;
use crate::format::{FOOTER_ITEM_BYTES, FooterGroup, FooterItem, FooterOpening, FrameAt};
use crate::frame::Frame;
use crate::segment::Segment;
use crate::{GroupState, ReadError, Record, Update};
use ahash::AHashMap;
use longboat_raft::{GroupId, Index, ReplicaId};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// Ends a chain of frames.
const NO_FRAME: u32 = u32::MAX;

/// The end of a span in the segment that is being written: it ends where the log does, which each record moves. So a record
/// needs no look at the span, which lies apart from the group when there are several.
const OPEN: Index = Index(u64::MAX);

/// Entries of one group in one segment, all of them live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The use number of the segment.
    pub(crate) segment: u64,
    pub(crate) lo: Index,
    /// [`OPEN`] until the segment is sealed.
    pub(crate) hi: Index,
    /// The group's items in the footer's list of frames, once sealed.
    pub(crate) at: u32,
    pub(crate) count: u32,
}

/// What the index knows of a group. What every record touches comes first, in the half of one line of a cache.
#[derive(Clone, Debug, Default)]
#[repr(C, align(32))]
pub(crate) struct Group {
    /// The largest commit index that a frame carried.
    pub(crate) commit: Index,
    pub(crate) last: Index,
    /// The use number of the segment that `newest` and `open` are about.
    touched: u64,
    newest: u32,
    /// The last span is of the segment that is being written.
    open: bool,
    /// Removed or quarantined: there is no replica here.
    pub(crate) removed: bool,
    /// It is in the index's list of groups with rows that are not needed any more.
    has_dead_rows: bool,
    pub(crate) id: GroupId,
    /// The entries through this one are gone.
    pub(crate) start: Index,
    /// The entries after `start` through this one are in the key-value store.
    pub(crate) settled: Index,
    /// The replica that is here, or was when the group was removed; zero when no bootstrap said so.
    pub(crate) replica: ReplicaId,
    /// Ascending, contiguous, from the first entry that is not settled to the last.
    pub(crate) spans: SmallVec<[Span; 1]>,
    /// Counts the times that entries were taken back, so that a reader notices.
    pub(crate) cuts: u32,
}

impl Group {
    /// The entries through this one need no segment.
    pub(crate) fn covered(&self) -> Index {
        self.start.max(self.settled)
    }

    /// Whether uncommitted entries lie in this segment.
    pub(crate) fn pins(&self, segment: u64) -> bool {
        self.span(segment).is_some_and(|s| s.hi.min(self.last) > self.commit)
    }

    /// The entries that are kept and lie in this segment. Spans ascend by segment as they do by entries.
    pub(crate) fn span(&self, segment: u64) -> Option<&Span> {
        let at = self.spans.partition_point(|s| s.segment < segment);
        self.spans.get(at).filter(|s| s.segment == segment)
    }
}

/// What a frame or an update does to the index.
#[derive(Debug, Default)]
pub(crate) struct Change {
    commit: Index,
    cut_tail: Option<Index>,
    /// The first entry, and how many.
    appended: Option<(Index, u32)>,
    compact_to: Option<Index>,
    /// Few have one, and all are kept until their record is durable.
    rare: Option<Box<Rare>>,
}

/// What nearly every frame does, and where the frame is: half of a line of a cache from its encoding until it is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Append {
    pub(crate) slot: u32,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    /// The number of entries; a frame that has none moves the commit index only.
    pub(crate) entries: u32,
    pub(crate) first: Index,
    pub(crate) commit: Index,
}

/// What a rare record does: everything is gone and the log starts after an index.
#[derive(Debug)]
struct Rare {
    fresh: Index,
    bootstrap: Option<ReplicaId>,
    removed: Option<ReplicaId>,
    quarantined: Option<ReplicaId>,
}

impl Rare {
    fn of(record: Option<&Record>) -> Option<Box<Self>> {
        let nothing = Self { fresh: Index::ZERO, bootstrap: None, removed: None, quarantined: None };
        Some(Box::new(match record? {
            Record::Bootstrap(b) => Self { bootstrap: Some(b.replica), ..nothing },
            Record::Removed { replica } => Self { removed: Some(*replica), ..nothing },
            Record::Quarantined { replica, .. } => Self { quarantined: Some(*replica), ..nothing },
            Record::Snapshot(s) if s.resets_log => Self { fresh: s.meta.pos.index, ..nothing },
            Record::Snapshot(_) => return None,
        }))
    }
}

impl Change {
    /// Whether it does no more than an [`Append`].
    pub(crate) fn is_plain(u: &Update) -> bool {
        u.cut_tail.is_none() && u.compact_to.is_none() && u.record.is_none()
    }

    /// What a record does by itself.
    pub(crate) fn of_record(record: Option<&Record>) -> Self {
        Self { rare: Rare::of(record), ..Self::default() }
    }
}

impl From<&Update> for Change {
    fn from(u: &Update) -> Self {
        let appended = u.runs.first().map(|first| (first.first(), entries(u)));
        let (commit, cut_tail) = (u.hard_state.commit, u.cut_tail);
        let compact_to = u.compact_to.map(|p| p.index);
        Self { commit, cut_tail, appended, compact_to, rare: Rare::of(u.record.as_deref()) }
    }
}

impl From<&Frame> for Change {
    fn from(f: &Frame) -> Self {
        let (commit, cut_tail) = (f.hard_state.commit, f.cut_tail);
        let compact_to = f.compact_to.map(|p| p.index);
        // The fold has found the runs contiguous, or the frame means nothing.
        let appended = f.appended().map(|(first, last)| (first, (last.0 - first.0 + 1) as u32));
        Self { commit, cut_tail, appended, compact_to, rare: Rare::of(f.record.as_deref()) }
    }
}

/// The number of entries that an update appends.
pub(crate) fn entries(u: &Update) -> u32 {
    u.runs.iter().map(|run| run.count() as u32).sum()
}

/// A frame of the segment that is being written, chained to the group's frame before it.
#[derive(Clone, Copy, Debug)]
struct ActiveFrame {
    at: FrameAt,
    slot: u32,
    previous: u32,
}

/// All groups, and the segments that hold them.
#[derive(Debug, Default)]
pub(crate) struct LogIndex {
    pub(crate) groups: Vec<Group>,
    by_id: AHashMap<GroupId, u32>,
    /// Oldest first; the last one is being written.
    pub(crate) segments: VecDeque<Arc<Segment>>,
    /// The number of its use.
    writing: u64,
    frames: Vec<ActiveFrame>,
    /// The groups with a frame in the segment that is being written.
    touched: Vec<u32>,
    /// The groups of whose rows in the key-value store some are not needed any more, each once.
    dead_rows: Vec<u32>,
}

/// What a footer's body was made of, and where each group's items are in it.
#[derive(Debug, Default)]
pub(crate) struct FooterBody {
    pub(crate) groups: Vec<(u32, FooterGroup)>,
    /// How many frames it lists.
    pub(crate) frames: usize,
    /// How many bytes say what each group's frames come to, in the order of the groups.
    pub(crate) tally_bytes: usize,
    /// Bytes of all of it.
    pub(crate) length: usize,
}

/// Where the first of some entries are.
#[derive(Debug)]
pub(crate) enum Place {
    /// In the key-value store, through this index.
    Settled(Index),
    /// In these frames of a segment, valid through `hi`, each until the next one's first.
    Frames { segment: Arc<Segment>, frames: Vec<FrameAt>, hi: Index },
    /// In frames that this segment's footer lists.
    Footer { segment: Arc<Segment>, span: Span },
}

impl LogIndex {
    pub(crate) fn slot(&self, id: GroupId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn group(&self, id: GroupId) -> Option<&Group> {
        Some(&self.groups[self.slot(id)? as usize])
    }

    /// The slot of a group, made if it is new. Slots are given out in order and never taken back.
    pub(crate) fn slot_or_insert(&mut self, id: GroupId) -> u32 {
        let next = self.groups.len() as u32;
        let slot = *self.by_id.entry(id).or_insert(next);
        if slot == next {
            self.groups.push(Group { id, newest: NO_FRAME, ..Group::default() });
        }
        slot
    }

    /// Takes over what the key-value store knows of a group.
    pub(crate) fn load(&mut self, state: &GroupState, rows: Rows) {
        let slot = self.slot_or_insert(state.group);
        let g = &mut self.groups[slot as usize];
        g.start = state.start.index;
        g.last = state.last.index;
        g.commit = state.hard_state.commit;
        g.settled = rows.to;
        g.removed = state.is_void();
        g.replica = state.bootstrap.replica;
    }

    /// Goes on in another segment.
    pub(crate) fn begin_segment(&mut self, segment: Arc<Segment>) {
        self.writing = segment.use_number;
        self.segments.push_back(Arc::clone(&segment));
        // With the room that the segment before took: its list is moved only where there are more frames than ever.
        self.frames.clear();
        self.touched.clear();
    }

    /// Bytes of the lists that a footer would have now, at most.
    pub(crate) fn footer_bytes(&self) -> usize {
        (self.frames.len() + self.touched.len()) * FOOTER_ITEM_BYTES
    }

    /// The group with a frame in the segment that is being written.
    fn touch(&mut self, slot: u32) -> &mut Group {
        let g = &mut self.groups[slot as usize];
        if g.touched != self.writing {
            (g.touched, g.newest, g.open) = (self.writing, NO_FRAME, false);
            self.touched.push(slot);
        }
        g
    }

    /// Carries out one frame of the segment that is being written that does nothing else.
    ///
    /// # Errors
    /// See [`LogIndex::apply`].
    pub(crate) fn append(&mut self, frame: &Append) -> Result<(), String> {
        let g = self.touch(frame.slot);
        if g.removed {
            // Only a bootstrap brings a group back, no snapshot that was on its way.
            return Ok(());
        }
        g.commit = g.commit.max(frame.commit);
        if frame.entries == 0 { Ok(()) } else { self.add(frame) }
    }

    fn add(&mut self, frame: &Append) -> Result<(), String> {
        let &Append { slot, offset, length, entries, first, .. } = frame;
        let g = &mut self.groups[slot as usize];
        if first != g.last.next() {
            return Err(format!("group {}: entries from {first} do not follow {}", g.id, g.last));
        }
        g.last = Index(g.last.0.saturating_add(u64::from(entries)));
        if !std::mem::replace(&mut g.open, true) {
            g.spans.push(Span { segment: self.writing, lo: first, hi: OPEN, at: 0, count: 0 });
        }
        let at = FrameAt { first, offset, length };
        let previous = std::mem::replace(&mut g.newest, self.frames.len() as u32);
        self.frames.push(ActiveFrame { at, slot, previous });
        Ok(())
    }

    /// Carries out one frame of the segment that is being written.
    ///
    /// # Errors
    /// What the frame contradicts. A running store checks its updates before they are written, so it never sees one.
    pub(crate) fn apply(&mut self, slot: u32, effect: &Change, offset: u32, length: u32) -> Result<(), String> {
        self.touch(slot);
        let g = &mut self.groups[slot as usize];
        if let Some(rare) = &effect.rare
            && !begin_anew(&mut self.dead_rows, slot, g, rare)
        {
            return Ok(());
        }
        if let Some(from) = effect.cut_tail.filter(|_| !g.removed) {
            cut(g, from);
        }
        let (first, entries) = effect.appended.unwrap_or_default();
        self.append(&Append { slot, offset, length, entries, first, commit: effect.commit })?;
        let g = &mut self.groups[slot as usize];
        if let Some(to) = effect.compact_to.filter(|_| !g.removed) {
            if to > g.last {
                return Err(format!("group {}: compaction to {to} beyond {}", g.id, g.last));
            }
            if g.settled > g.start && to > g.start {
                note(&mut self.dead_rows, slot, g);
            }
            compact(g, to);
        }
        Ok(())
    }

    /// The group's frames in the segment that is being written that an entry at or after `lo` can be in, ascending.
    fn active_frames(&self, group: &Group, lo: Index) -> Vec<FrameAt> {
        let mut next = if group.touched == self.writing { group.newest } else { NO_FRAME };
        let mut frames: Vec<FrameAt> = Vec::new();
        while next != NO_FRAME {
            let frame = self.frames[next as usize];
            // A later frame that starts at or before this one has overwritten all of it.
            if frames.last().is_none_or(|later| frame.at.first < later.first) {
                frames.push(frame.at);
                if frame.at.first <= lo {
                    break;
                }
            }
            next = frame.previous;
        }
        frames.reverse();
        frames
    }

    /// Writes the body of the footer of the segment that is being written to bytes that have room for it: those of
    /// [`LogIndex::footer_bytes`], of the tallies, and of the openings.
    ///
    /// Goes once over the frames in their order, and lists them where they stay, so that a segment of very many small ones is
    /// soon done and needs no memory besides.
    pub(crate) fn footer(&self, tallies: &Tallies, openings: &[FooterOpening], out: &mut [u8]) -> FooterBody {
        let mut slots = self.touched.clone();
        slots.sort_unstable_by_key(|&s| self.groups[s as usize].id);
        // Per slot the number of its frames, then where the next one of them goes.
        let mut next = vec![0u32; self.groups.len()];
        for frame in &self.frames {
            next[frame.slot as usize] += 1;
        }
        let mut starts = Vec::with_capacity(slots.len());
        let mut end = 0;
        for &slot in &slots {
            starts.push(end);
            end += std::mem::replace(&mut next[slot as usize], end);
        }
        let items = out.as_chunks_mut::<FOOTER_ITEM_BYTES>().0;
        let (listed, placed) = items[..slots.len() + self.frames.len()].split_at_mut(slots.len());
        let first_of = |slot: u32| starts[slots.partition_point(|&s| self.groups[s as usize].id < self.id(slot))];
        let mut overwritten = false;
        for frame in &self.frames {
            let mut to = next[frame.slot as usize];
            let covers = |placed: &FooterItem| FrameAt::decode(placed).first >= frame.at.first;
            // It has overwritten all of the frames that start at or after its own first entry. Seldom: then the first place
            // of the group is looked for. What lies before a group's first frame is none of it, and maybe not written yet.
            if to > 0 && covers(&placed[to as usize - 1]) {
                let start = first_of(frame.slot);
                while to > start && covers(&placed[to as usize - 1]) {
                    to -= 1;
                    overwritten = true;
                }
            }
            placed[to as usize] = frame.at.encode();
            next[frame.slot as usize] = to + 1;
        }
        let mut groups = Vec::with_capacity(slots.len());
        let mut at = 0;
        for ((&slot, start), listed) in slots.iter().zip(starts).zip(listed) {
            let (from, to) = (start as usize, next[slot as usize] as usize);
            if overwritten {
                // What is listed moves up to where what is not would be.
                placed.copy_within(from..to, at as usize);
            }
            let footer = FooterGroup { group: self.id(slot), at, count: (to - from) as u32 };
            *listed = footer.encode();
            groups.push((slot, footer));
            at += footer.count;
        }
        let (frames, mut length) = (at as usize, (groups.len() + at as usize) * FOOTER_ITEM_BYTES);
        let mut put = |bytes: &[u8]| {
            out[length..length + bytes.len()].copy_from_slice(bytes);
            length += bytes.len();
        };
        let tallies = tallies.encode(slots.into_iter());
        put(&tallies);
        openings.iter().for_each(|opening| put(&opening.encode()));
        FooterBody { groups, frames, tally_bytes: tallies.len(), length }
    }

    fn id(&self, slot: u32) -> GroupId {
        self.groups[slot as usize].id
    }

    /// From here on the footer answers for the segment that was being written.
    pub(crate) fn sealed(&mut self, body: &FooterBody) {
        let segment = self.writing;
        for (slot, footer) in &body.groups {
            let g = &mut self.groups[*slot as usize];
            if let Some(s) = g.spans.last_mut().filter(|s| s.segment == segment) {
                (s.hi, s.at, s.count) = (g.last, footer.at, footer.count);
                if s.lo > s.hi {
                    // Compacted to its end.
                    g.spans.pop();
                }
            }
        }
    }

    /// Where the entries from `lo` on are.
    pub(crate) fn locate(&self, id: GroupId, lo: Index, hi: Index) -> Result<Place, ReadError> {
        let g = self.group(id).filter(|g| !g.removed).ok_or(ReadError::Unavailable)?;
        if lo <= g.start {
            return Err(ReadError::Compacted(g.start.next()));
        }
        if hi > g.last || lo > hi {
            return Err(ReadError::Unavailable);
        }
        if lo <= g.settled {
            return Ok(Place::Settled(hi.min(g.settled)));
        }
        let span = g.spans[g.spans.partition_point(|s| s.hi < lo)];
        assert!(span.lo <= lo, "group {id}: entry {lo} is in no segment: {:?}", g.spans);
        let segment = self.segment(span.segment).expect("a span's segment is live");
        let span = Span { hi: hi.min(span.hi), ..span };
        if segment.sealed.get().is_some() {
            return Ok(Place::Footer { segment, span });
        }
        Ok(Place::Frames { segment, frames: self.active_frames(g, lo), hi: span.hi })
    }

    pub(crate) fn segment(&self, use_number: u64) -> Option<Arc<Segment>> {
        let at = self.segments.partition_point(|s| s.use_number < use_number);
        self.segments.get(at).filter(|s| s.use_number == use_number).cloned()
    }

    /// Entries of these groups in segments up to this one are in the key-value store now.
    pub(crate) fn settle(&mut self, groups: &[GroupId], through: u64) {
        for id in groups {
            let Some(slot) = self.slot(*id) else { continue };
            let g = &mut self.groups[slot as usize];
            let count = g.spans.partition_point(|s| s.segment <= through);
            if let Some(last) = g.spans.drain(..count).next_back() {
                g.settled = last.hi;
            }
        }
    }

    /// Takes up to `max` groups out of the list of those with rows that are not needed any more.
    pub(crate) fn take_dead_rows(&mut self, max: usize) -> Vec<GroupId> {
        let from = self.dead_rows.len().saturating_sub(max);
        let mut taken: Vec<GroupId> = Vec::new();
        for slot in self.dead_rows.drain(from..) {
            let g = &mut self.groups[slot as usize];
            g.has_dead_rows = false;
            taken.push(g.id);
        }
        taken
    }

    /// Puts a group into that list.
    pub(crate) fn note_dead_rows(&mut self, id: GroupId) {
        if let Some(slot) = self.slot(id) {
            note(&mut self.dead_rows, slot, &mut self.groups[slot as usize]);
        }
    }

    pub(crate) fn has_dead_rows(&self) -> bool {
        !self.dead_rows.is_empty()
    }

    /// Whether every kept entry of every group has a place.
    pub(crate) fn check(&self) -> Result<(), String> {
        for g in self.groups.iter().filter(|g| !g.removed) {
            let mut next = g.covered().next();
            for s in &g.spans {
                if s.lo != next {
                    return Err(format!("group {}: entries from {next} to {} are missing", g.id, s.lo.prev()));
                }
                next = s.hi.min(g.last).next();
            }
            if next <= g.last {
                return Err(format!("group {}: entries from {next} to {} are missing", g.id, g.last));
            }
        }
        Ok(())
    }
}

fn note(list: &mut Vec<u32>, slot: u32, g: &mut Group) {
    if !std::mem::replace(&mut g.has_dead_rows, true) {
        list.push(slot);
    }
}

/// Carries out a rare record. Whether it means anything here.
fn begin_anew(dead_rows: &mut Vec<u32>, slot: u32, g: &mut Group, rare: &Rare) -> bool {
    let &Rare { fresh, bootstrap, removed, quarantined } = rare;
    if removed.is_some_and(|replica| is_overtaken(g.replica, replica)) {
        return false;
    }
    let gone = removed.or(quarantined);
    if g.removed && bootstrap.is_none() && gone.is_none() {
        return false;
    }
    let rows_died = g.settled > g.start;
    (g.start, g.last, g.settled, g.removed) = (fresh, fresh, Index::ZERO, gone.is_some());
    if let Some(replica) = bootstrap.or(gone) {
        (g.commit, g.replica) = (Index::ZERO, replica);
    }
    g.spans.clear();
    g.open = false;
    g.cuts = g.cuts.wrapping_add(1);
    if rows_died {
        note(dead_rows, slot, g);
    }
    true
}

fn cut(g: &mut Group, from: Index) {
    if from > g.last {
        return;
    }
    g.cuts = g.cuts.wrapping_add(1);
    g.last = g.last.min(from.prev()).max(g.start);
    g.settled = g.settled.min(g.last);
    while g.spans.last().is_some_and(|s| s.lo > g.last) {
        g.spans.pop();
        // The one that is open is the last one.
        g.open = false;
    }
    if let Some(s) = g.spans.last_mut().filter(|s| s.hi != OPEN) {
        s.hi = s.hi.min(g.last);
    }
}

fn compact(g: &mut Group, to: Index) {
    g.start = g.start.max(to);
    let gone = g.spans.partition_point(|s| s.hi <= g.start);
    g.spans.drain(..gone);
    if let Some(s) = g.spans.first_mut() {
        s.lo = s.lo.max(g.start.next());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SegmentHeader;
    use crate::segment::SegmentFile;
    use longboat_io::sim::{SimDisk, SimDiskConfig};
    use longboat_raft::{HostId, StoreId};
    use std::path::Path;

    /// An index whose segment with this number is being written.
    fn begin(index: &mut LogIndex, use_number: u64) {
        let disk = SimDisk::new(1, SimDiskConfig::default()).process();
        disk.create_dir_all(Path::new("j")).expect("made");
        let file = SegmentFile::create(&disk, Path::new("j"), use_number, 65536).expect("made");
        let (store, host) = (StoreId(1), HostId(1));
        let header = SegmentHeader { store, host, use_number, use_id: use_number, first_seq: 1 };
        index.begin_segment(Arc::new(Segment::new(Arc::new(file), &header)));
    }

    fn seal(index: &mut LogIndex, tallies: &Tallies) {
        let mut out = vec![0; index.footer_bytes() + tallies.bytes()];
        let body = index.footer(tallies, &[], &mut out);
        index.sealed(&body);
    }

    fn append(index: &mut LogIndex, tallies: &mut Tallies, first: u64, entries: u32) {
        let (first, commit) = (Index(first), Index(first - 1));
        tallies.add(0, crate::effect::Effect::default());
        index.append(&Append { slot: 0, offset: 4096, length: 64, entries, first, commit }).expect("it follows");
    }

    fn change(index: &mut LogIndex, change: Change) {
        index.apply(0, &change, 4096, 64).expect("valid");
    }

    fn spans(index: &LogIndex) -> Vec<(u64, u64, u64)> {
        index.groups[0].spans.iter().map(|s| (s.segment, s.lo.0, s.hi.0)).collect()
    }

    #[test]
    fn a_span_of_the_segment_that_is_written_ends_where_the_log_does() {
        let (mut index, mut tallies) = (LogIndex::default(), Tallies::default());
        index.slot_or_insert(GroupId(7));
        begin(&mut index, 1);
        append(&mut index, &mut tallies, 1, 10);
        append(&mut index, &mut tallies, 11, 5);
        let g = &index.groups[0];
        assert!(g.pins(1), "entries after {} are not committed", g.commit);
        change(&mut index, Change { commit: Index(15), ..Change::default() });
        assert!(!index.groups[0].pins(1));
        seal(&mut index, &tallies);
        assert_eq!(spans(&index), [(1, 1, 15)]);
        begin(&mut index, 2);
        append(&mut index, &mut tallies, 16, 5);
        // Into the segment before: what was open is gone, and what comes next begins another.
        change(&mut index, Change { cut_tail: Some(Index(14)), ..Change::default() });
        assert_eq!(spans(&index), [(1, 1, 13)]);
        append(&mut index, &mut tallies, 14, 7);
        change(&mut index, Change { cut_tail: Some(Index(18)), ..Change::default() });
        index.check().expect("every entry has a place");
        seal(&mut index, &tallies);
        assert_eq!(spans(&index), [(1, 1, 13), (2, 14, 17)]);
    }

    #[test]
    fn a_span_that_was_compacted_to_its_end_goes_when_its_segment_is_sealed() {
        let (mut index, mut tallies) = (LogIndex::default(), Tallies::default());
        index.slot_or_insert(GroupId(7));
        begin(&mut index, 1);
        append(&mut index, &mut tallies, 1, 10);
        change(&mut index, Change { commit: Index(10), compact_to: Some(Index(10)), ..Change::default() });
        index.check().expect("nothing is kept");
        assert!(!index.groups[0].pins(1));
        let mut other = index.groups[0].clone();
        append(&mut index, &mut tallies, 11, 2);
        index.check().expect("every entry has a place");
        seal(&mut index, &tallies);
        assert_eq!(spans(&index), [(1, 11, 12)]);
        std::mem::swap(&mut index.groups[0], &mut other);
        seal(&mut index, &tallies);
        assert_eq!(spans(&index), []);
    }
}
