//! The index in memory: for every group, which segments hold which of its entries.
//!
//! One item per (group, segment) for sealed segments, whose footers know the rest; one per frame for the segment that
//! is being written. It follows what is durable, never what is only submitted, so that readers see nothing else.

use crate::codec::Rows;
use crate::effect::Tallies;
use crate::fold::is_overtaken;
use crate::format::{FOOTER_ITEM_BYTES, FooterGroup, FooterOpening, FrameAt};
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

/// Entries of one group in one segment, all of them live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The use number of the segment.
    pub(crate) segment: u64,
    pub(crate) lo: Index,
    pub(crate) hi: Index,
    /// The group's items in the footer's list of frames, once sealed.
    pub(crate) at: u32,
    pub(crate) count: u32,
}

/// What the index knows of a group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) id: GroupId,
    /// The entries through this one are gone.
    pub(crate) start: Index,
    pub(crate) last: Index,
    /// The largest commit index that a frame carried.
    pub(crate) commit: Index,
    /// The entries after `start` through this one are in the key-value store.
    pub(crate) settled: Index,
    pub(crate) removed: bool,
    /// The replica that is here, or was when the group was removed; zero when no bootstrap said so.
    pub(crate) replica: ReplicaId,
    /// Counts the times that entries were taken back, so that a reader notices.
    pub(crate) cuts: u32,
    /// It is in the index's list of groups with rows that are not needed any more.
    has_dead_rows: bool,
    /// Ascending, contiguous, from the first entry that is not settled to the last.
    pub(crate) spans: SmallVec<[Span; 1]>,
    /// The use number of the segment that `newest` is about.
    touched: u64,
    newest: u32,
}

impl Group {
    /// The entries through this one need no segment.
    pub(crate) fn covered(&self) -> Index {
        self.start.max(self.settled)
    }

    /// Whether uncommitted entries lie in this segment.
    pub(crate) fn pins(&self, segment: u64) -> bool {
        self.span(segment).is_some_and(|s| s.hi > self.commit)
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
    appended: Option<(Index, Index)>,
    compact_to: Option<Index>,
    /// Few have one, and all are kept until their record is durable.
    rare: Option<Box<Rare>>,
}

/// What a rare record does: everything is gone and the log starts after an index.
#[derive(Debug)]
struct Rare {
    fresh: Index,
    bootstrap: Option<ReplicaId>,
    removed: Option<ReplicaId>,
}

impl Rare {
    fn of(record: Option<&Record>) -> Option<Box<Self>> {
        let (fresh, bootstrap, removed) = match record? {
            Record::Bootstrap(b) => (Index::ZERO, Some(b.replica), None),
            Record::Removed { replica } => (Index::ZERO, None, Some(*replica)),
            Record::Snapshot(s) if s.resets_log => (s.meta.pos.index, None, None),
            Record::Snapshot(_) => return None,
        };
        Some(Box::new(Self { fresh, bootstrap, removed }))
    }
}

impl Change {
    /// The number of entries that it appends.
    pub(crate) fn entries(&self) -> u64 {
        self.appended.map_or(0, |(first, last)| last.0 + 1 - first.0)
    }
}

impl From<&Update> for Change {
    fn from(u: &Update) -> Self {
        let appended = match (u.runs.first(), u.runs.last()) {
            (Some(first), Some(last)) => Some((first.first(), last.last())),
            _ => None,
        };
        let (commit, cut_tail) = (u.hard_state.commit, u.cut_tail);
        let compact_to = u.compact_to.map(|p| p.index);
        Self { commit, cut_tail, appended, compact_to, rare: Rare::of(u.record.as_deref()) }
    }
}

impl From<&Frame> for Change {
    fn from(f: &Frame) -> Self {
        let (commit, cut_tail) = (f.hard_state.commit, f.cut_tail);
        let compact_to = f.compact_to.map(|p| p.index);
        Self { commit, cut_tail, appended: f.appended(), compact_to, rare: Rare::of(f.record.as_deref()) }
    }
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
    frames: Vec<ActiveFrame>,
    /// The groups with a frame in the segment that is being written.
    touched: Vec<u32>,
    /// The groups of whose rows in the key-value store some are not needed any more, each once.
    dead_rows: Vec<u32>,
}

/// The body of a footer, and where each group's items are in it.
#[derive(Debug, Default)]
pub(crate) struct FooterBody {
    pub(crate) groups: Vec<(u32, FooterGroup)>,
    pub(crate) frames: Vec<FrameAt>,
    /// What each group's frames come to, in the order of the groups.
    pub(crate) tallies: Vec<u8>,
}

impl FooterBody {
    pub(crate) fn encode(&self, openings: &[FooterOpening], out: &mut Vec<u8>) {
        for (_, group) in &self.groups {
            out.extend_from_slice(&group.encode());
        }
        for frame in &self.frames {
            out.extend_from_slice(&frame.encode());
        }
        out.extend_from_slice(&self.tallies);
        for opening in openings {
            out.extend_from_slice(&opening.encode());
        }
    }
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
        g.removed = state.removed;
        g.replica = state.bootstrap.replica;
    }

    /// Goes on in another segment.
    pub(crate) fn begin_segment(&mut self, segment: Arc<Segment>) {
        self.segments.push_back(segment);
        self.frames.clear();
        self.touched.clear();
    }

    /// Bytes of the lists that a footer would have now.
    pub(crate) fn footer_bytes(&self) -> usize {
        (self.frames.len() + self.touched.len()) * FOOTER_ITEM_BYTES
    }

    /// Carries out one frame at `at` of the segment that is being written.
    ///
    /// # Errors
    /// What the frame contradicts. A running store checks its updates before they are written, so it never sees one.
    pub(crate) fn apply(&mut self, slot: u32, effect: &Change, offset: u32, length: u32) -> Result<(), String> {
        let segment = self.segments.back().expect("a segment is being written").use_number;
        let g = &mut self.groups[slot as usize];
        if g.touched != segment {
            (g.touched, g.newest) = (segment, NO_FRAME);
            self.touched.push(slot);
        }
        if let Some(rare) = &effect.rare
            && !begin_anew(&mut self.dead_rows, slot, g, rare)
        {
            return Ok(());
        }
        if g.removed {
            // Only a bootstrap brings a group back, no snapshot that was on its way.
            return Ok(());
        }
        g.commit = g.commit.max(effect.commit);
        if let Some(from) = effect.cut_tail {
            cut(g, from);
        }
        if let Some((first, last)) = effect.appended {
            if first != g.last.next() {
                return Err(format!("group {}: entries from {first} do not follow {}", g.id, g.last));
            }
            g.last = last;
            match g.spans.last_mut() {
                Some(s) if s.segment == segment => s.hi = last,
                _ => g.spans.push(Span { segment, lo: first, hi: last, at: 0, count: 0 }),
            }
            let at = FrameAt { first, offset, length };
            let previous = std::mem::replace(&mut g.newest, self.frames.len() as u32);
            self.frames.push(ActiveFrame { at, slot, previous });
        }
        if let Some(to) = effect.compact_to {
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
        let segment = self.segments.back().expect("a segment is being written").use_number;
        let mut next = if group.touched == segment { group.newest } else { NO_FRAME };
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

    /// The footer of the segment that is being written. Goes once over the frames in their order, so that a segment of
    /// very many small ones is soon done.
    pub(crate) fn footer(&self, tallies: &Tallies) -> FooterBody {
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
        let mut placed = vec![FrameAt { first: Index::ZERO, offset: 0, length: 0 }; self.frames.len()];
        let first_of = |slot: u32| starts[slots.partition_point(|&s| self.groups[s as usize].id < self.id(slot))];
        for frame in &self.frames {
            let mut to = next[frame.slot as usize];
            // It has overwritten all of the frames that start at or after its own first entry. Seldom: then the first place
            // of the group is looked for.
            if to > 0 && placed[to as usize - 1].first >= frame.at.first {
                let start = first_of(frame.slot);
                while to > start && placed[to as usize - 1].first >= frame.at.first {
                    to -= 1;
                }
            }
            placed[to as usize] = frame.at;
            next[frame.slot as usize] = to + 1;
        }
        let mut body = FooterBody { groups: Vec::with_capacity(slots.len()), ..FooterBody::default() };
        body.frames.reserve(placed.len());
        for (&slot, start) in slots.iter().zip(starts) {
            let (at, frames) = (body.frames.len() as u32, &placed[start as usize..next[slot as usize] as usize]);
            body.frames.extend_from_slice(frames);
            let (group, count) = (self.id(slot), frames.len() as u32);
            body.groups.push((slot, FooterGroup { group, at, count }));
        }
        body.tallies = tallies.encode(body.groups.iter().map(|(slot, _)| *slot));
        body
    }

    fn id(&self, slot: u32) -> GroupId {
        self.groups[slot as usize].id
    }

    /// From here on the footer answers for the segment that was being written.
    pub(crate) fn sealed(&mut self, body: &FooterBody) {
        let segment = self.segments.back().expect("a segment is being written").use_number;
        for (slot, footer) in &body.groups {
            let spans = &mut self.groups[*slot as usize].spans;
            if let Some(s) = spans.last_mut().filter(|s| s.segment == segment) {
                (s.at, s.count) = (footer.at, footer.count);
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
                next = s.hi.next();
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
    let &Rare { fresh, bootstrap, removed } = rare;
    if removed.is_some_and(|replica| is_overtaken(g.replica, replica)) {
        return false;
    }
    if g.removed && bootstrap.is_none() && removed.is_none() {
        return false;
    }
    let rows_died = g.settled > g.start;
    (g.start, g.last, g.settled, g.removed) = (fresh, fresh, Index::ZERO, removed.is_some());
    if let Some(replica) = bootstrap.or(removed) {
        (g.commit, g.replica) = (Index::ZERO, replica);
    }
    g.spans.clear();
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
    while let Some(s) = g.spans.last_mut().filter(|s| s.hi > g.last) {
        if s.lo > g.last {
            g.spans.pop();
        } else {
            s.hi = g.last;
        }
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
