//! What frames do to their groups: one by one as they are carried out, and for each group of a sealed segment all of them
//! together, in the segment's footer.
//!
//! Settling needs to know of a segment's frames what they say of their groups and not the entries in them. So it reads
//! the footer, and nothing of the segment besides.
//!
//! Invariant: effects that were joined do to a group what they did one after the other.
//!
//! Layout of one in a footer, little-endian: flags (4: cut 1, compaction 2, the group's last one 4), count of spans (4), length of
//! the rare record (4), zero (4), term (8), vote (8), commit (8); then, where the flags say so, the cut (8) and the compaction
//! point (16); the rare record, padded to 8; then per span term (8), first and last index (8, 8).

use crate::attic::{Attic, Chain, Opened};
use crate::codec::{Malformed, put_record, take_record};
use crate::frame::Frame;
use crate::{Record, Update};
use bytes::Buf;
use longboat_raft::{HardState, Index, LogPos, ReplicaId, Run, Term, plant};
use smallvec::SmallVec;

/// Bytes of the fixed part, at most what a frame's is.
const FIXED_BYTES: usize = 40;
/// Bytes of a span.
pub(crate) const SPAN_BYTES: usize = 24;
const CUT: u32 = 1;
const COMPACT: u32 = 2;
const LAST: u32 = 4;

/// Entries of one term, next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TermSpan {
    pub(crate) term: Term,
    pub(crate) first: Index,
    pub(crate) last: Index,
}

/// What a frame or an update does, or several that were joined. The order inside of one is the contract of [`Update`]:
/// record, cut, entries, compaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) hard_state: HardState,
    pub(crate) cut_tail: Option<Index>,
    pub(crate) compact_to: Option<LogPos>,
    /// Few have one, and all are kept until their record is durable.
    pub(crate) record: Option<Box<Record>>,
    /// Next to each other, no two neighbours of one term.
    pub(crate) spans: SmallVec<[TermSpan; 1]>,
}

impl Effect {
    /// Whether what follows at once may be joined to this, by whether that has a record or a cut: what those meet would be no
    /// more what they met, and a frame with a record may mean nothing as a whole.
    ///
    /// Entries may move before a compaction: that goes no further than the entries that were there, and takes from the front
    /// what it took. Of several compactions the furthest has done what the others did.
    fn takes(&self, record: bool, cut: bool) -> bool {
        !(self.record.is_some() || record || cut) || plant::is("effects-joined-over-a-cut")
    }

    /// Joins one that it takes.
    fn join(&mut self, hard_state: HardState, spans: impl Iterator<Item = TermSpan>, compact_to: Option<LogPos>) {
        self.hard_state = hard_state;
        spans.for_each(|span| append(&mut self.spans, span));
        if let Some(to) = compact_to
            && self.compact_to.is_none_or(|before| before.index < to.index)
        {
            self.compact_to = Some(to);
        }
    }

    /// The part of its length in a footer that grows when another is joined to it.
    fn joinable_len(&self) -> usize {
        self.spans.len() * SPAN_BYTES + if self.compact_to.is_some() { 16 } else { 0 }
    }

    /// Bytes that it takes in a footer.
    pub(crate) fn encoded_len(&self) -> usize {
        let mut len = FIXED_BYTES + self.joinable_len();
        len += if self.cut_tail.is_some() { 8 } else { 0 };
        if let Some(record) = &self.record {
            let mut bytes = Vec::new();
            put_record(&mut bytes, record);
            len += bytes.len().next_multiple_of(8);
        }
        len
    }

    fn encode(&self, is_last: bool, out: &mut Vec<u8>) {
        let flags = [(self.cut_tail.is_some(), CUT), (self.compact_to.is_some(), COMPACT), (is_last, LAST)];
        let flags = flags.iter().map(|(set, flag)| if *set { *flag } else { 0 }).sum::<u32>();
        let at = out.len();
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&(self.spans.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        let HardState { term, vote, commit } = self.hard_state;
        for word in [term.0, vote.0, commit.0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let compact = self.compact_to.map(|to| [to.term.0, to.index.0]);
        for word in self.cut_tail.map(|from| from.0).into_iter().chain(compact.into_iter().flatten()) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        if let Some(record) = &self.record {
            let from = out.len();
            put_record(out, record);
            let len = out.len() - from;
            out[at + 8..at + 12].copy_from_slice(&(len as u32).to_le_bytes());
            out.resize(from + len.next_multiple_of(8), 0);
        }
        for span in &self.spans {
            for word in [span.term.0, span.first.0, span.last.0] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Takes the next one off a footer whose checksum was right. Whether it is the last one of its group.
    ///
    /// # Errors
    /// When this build does not know what it says.
    pub(crate) fn take(input: &mut &[u8]) -> Result<(Self, bool), Malformed> {
        let (flags, spans) = (input.try_get_u32_le()?, input.try_get_u32_le()? as usize);
        let record_len = input.try_get_u64_le()? as u32 as usize;
        if flags & !(CUT | COMPACT | LAST) != 0 {
            return Err(Malformed("footer: unknown flags"));
        }
        let hard_state = HardState {
            term: Term(input.try_get_u64_le()?),
            vote: ReplicaId(input.try_get_u64_le()?),
            commit: Index(input.try_get_u64_le()?),
        };
        let cut_tail = if flags & CUT != 0 { Some(Index(input.try_get_u64_le()?)) } else { None };
        let compact_to = match flags & COMPACT {
            0 => None,
            _ => Some(LogPos::new(Term(input.try_get_u64_le()?), Index(input.try_get_u64_le()?))),
        };
        let padded = record_len.next_multiple_of(8);
        if input.len() < padded || spans > (input.len() - padded) / SPAN_BYTES {
            return Err(Malformed("footer: its lengths do not fit"));
        }
        let record = match record_len {
            0 => None,
            len => Some(Box::new(take_record(&mut &input[..len])?)),
        };
        input.advance(padded);
        let mut effect = Self { hard_state, cut_tail, compact_to, record, spans: SmallVec::with_capacity(spans) };
        for _ in 0..spans {
            let (term, first) = (Term(input.get_u64_le()), Index(input.get_u64_le()));
            effect.spans.push(TermSpan { term, first, last: Index(input.get_u64_le()) });
        }
        Ok((effect, flags & LAST != 0))
    }
}

fn span_of(run: &Run) -> TermSpan {
    TermSpan { term: run.term(), first: run.first(), last: run.last() }
}

/// Adds entries to those before them.
fn append(spans: &mut SmallVec<[TermSpan; 1]>, span: TermSpan) {
    match spans.last_mut() {
        Some(last) if last.term == span.term => last.last = span.last,
        _ => spans.push(span),
    }
}

fn joined(mut spans: impl Iterator<Item = TermSpan>) -> SmallVec<[TermSpan; 1]> {
    // One is the usual number.
    let Some(first) = spans.next() else { return SmallVec::new() };
    let mut all = SmallVec::from_buf([first]);
    spans.for_each(|span| append(&mut all, span));
    all
}

impl From<&Update> for Effect {
    fn from(u: &Update) -> Self {
        let spans = joined(u.runs.iter().map(span_of));
        let (hard_state, cut_tail, compact_to) = (u.hard_state, u.cut_tail, u.compact_to);
        Self { hard_state, cut_tail, compact_to, record: u.record.clone(), spans }
    }
}

impl From<&Frame> for Effect {
    fn from(f: &Frame) -> Self {
        let spans = joined(f.runs.iter().map(|r| TermSpan { term: r.term, first: r.first, last: r.last }));
        let (hard_state, cut_tail, compact_to) = (f.hard_state, f.cut_tail, f.compact_to);
        Self { hard_state, cut_tail, compact_to, record: f.record.clone(), spans }
    }
}

/// What one group's frames in a segment come to.
#[derive(Debug)]
struct Tally {
    /// What nothing more is joined to, oldest first, as a footer has it.
    closed: Chain,
    last: Effect,
}

impl Tally {
    fn new(first: Effect) -> Self {
        Self { closed: Chain::default(), last: first }
    }

    /// Adds what the group's next frame does. Returns how many more bytes a footer takes for that.
    fn add(&mut self, next: Effect, attic: &mut Attic) -> usize {
        if !self.last.takes(next.record.is_some(), next.cut_tail.is_some()) {
            let bytes = next.encoded_len();
            let closed = std::mem::replace(&mut self.last, next);
            attic.push(&mut self.closed, |out| closed.encode(false, out));
            return bytes;
        }
        let before = self.last.joinable_len();
        self.last.join(next.hard_state, next.spans.into_iter(), next.compact_to);
        self.last.joinable_len() - before
    }

    /// As [`Tally::add`], for one that is about to be written.
    fn add_update(&mut self, next: &Update, attic: &mut Attic) -> usize {
        if !self.last.takes(next.record.is_some(), next.cut_tail.is_some()) {
            return self.add(Effect::from(next), attic);
        }
        if let ([run], [.., last], None) = (&next.runs[..], &mut self.last.spans[..], next.compact_to)
            && run.term() == last.term
        {
            // What comes without end: an append in the same term.
            (self.last.hard_state, last.last) = (next.hard_state, run.last());
            return 0;
        }
        let before = self.last.joinable_len();
        self.last.join(next.hard_state, next.runs.iter().map(span_of), next.compact_to);
        self.last.joinable_len() - before
    }

    fn encode(&self, closed: &mut Opened, out: &mut Vec<u8>) {
        closed.copy(self.closed, out);
        self.last.encode(true, out);
    }
}

/// What the frames of the segment that is being written come to, by the slots of their groups in the index. A group without
/// a frame there takes four bytes.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    /// By slot the place in `all`, plus one; zero for none.
    places: Vec<u32>,
    all: Vec<Tally>,
    closed: Attic,
    bytes: usize,
}

impl Tallies {
    /// Another segment begins.
    pub(crate) fn clear(&mut self) {
        self.places.fill(0);
        self.all.clear();
        self.closed.clear();
        self.bytes = 0;
    }

    /// Bytes that all of them take in a footer.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn place(&mut self, slot: u32) -> &mut u32 {
        let slot = slot as usize;
        if slot >= self.places.len() {
            self.places.resize(slot + 1, 0);
        }
        &mut self.places[slot]
    }

    /// Adds what this group's next frame does.
    pub(crate) fn add(&mut self, slot: u32, next: Effect) {
        match *self.place(slot) {
            0 => self.begin(slot, next),
            place => self.bytes += self.all[place as usize - 1].add(next, &mut self.closed),
        }
    }

    /// As [`Tallies::add`], for one that is about to be written.
    pub(crate) fn add_update(&mut self, slot: u32, next: &Update) {
        match *self.place(slot) {
            0 => self.begin(slot, Effect::from(next)),
            place => self.bytes += self.all[place as usize - 1].add_update(next, &mut self.closed),
        }
    }

    fn begin(&mut self, slot: u32, first: Effect) {
        self.bytes += first.encoded_len();
        self.all.push(Tally::new(first));
        *self.place(slot) = self.all.len() as u32;
    }

    /// The tallies of these groups, back to back.
    pub(crate) fn encode(&self, slots: impl Iterator<Item = u32>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes);
        let mut closed = self.closed.open();
        for slot in slots {
            let place = self.places[slot as usize].checked_sub(1).expect("a listed group has a frame in the segment");
            self.all[place as usize].encode(&mut closed, &mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SnapshotRecord;
    use crate::fold::Folded;
    use longboat_raft::{GroupId, SnapshotMeta};

    fn pos(term: u64, index: u64) -> LogPos {
        LogPos::new(Term(term), Index(index))
    }

    fn appends(spans: &[(u64, u64, u64)]) -> Effect {
        let span = |&(term, first, last): &(u64, u64, u64)| TermSpan {
            term: Term(term),
            first: Index(first),
            last: Index(last),
        };
        let hard_state = HardState { commit: Index(spans.last().map_or(0, |s| s.1)), ..HardState::default() };
        Effect { hard_state, spans: joined(spans.iter().map(span)), ..Effect::default() }
    }

    fn taken(mut input: &[u8]) -> Vec<Effect> {
        let mut all = Vec::new();
        loop {
            let (effect, is_last) = Effect::take(&mut input).expect("what was written");
            all.push(effect);
            if is_last {
                assert!(input.is_empty(), "{} bytes left", input.len());
                return all;
            }
        }
    }

    /// A life of one group: appends over several terms, cuts, compactions, a leader's snapshot, a removal.
    fn life() -> Vec<Effect> {
        let meta = SnapshotMeta { pos: pos(4, 40), ..SnapshotMeta::default() };
        let snapshot = Record::Snapshot(SnapshotRecord { meta, bytes: 1, resets_log: true });
        vec![
            appends(&[(1, 1, 5)]),
            appends(&[(1, 6, 7), (2, 8, 9)]),
            Effect { compact_to: Some(pos(1, 4)), ..Effect::default() },
            Effect { compact_to: Some(pos(2, 9)), ..appends(&[]) },
            appends(&[(2, 10, 12)]),
            Effect { cut_tail: Some(Index(11)), ..appends(&[(3, 11, 11)]) },
            Effect { compact_to: Some(pos(2, 10)), ..appends(&[(3, 12, 13)]) },
            Effect { record: Some(Box::new(snapshot)), ..appends(&[(4, 41, 41)]) },
            appends(&[(4, 42, 50)]),
            Effect { record: Some(Box::new(Record::Removed { replica: ReplicaId(0) })), ..Effect::default() },
            appends(&[]),
        ]
    }

    #[test]
    fn joined_effects_come_to_the_same_as_one_by_one() {
        let life = life();
        // Whatever a segment begins and ends with.
        for from in 0..life.len() {
            for to in from + 1..=life.len() {
                let mut folded = Folded::new(GroupId(1));
                for effect in &life[..from] {
                    folded.apply(effect).expect("valid");
                }
                let mut joined = folded.clone();
                let mut tallies = Tallies::default();
                life[from..to].iter().for_each(|effect| tallies.add(7, effect.clone()));
                for effect in &life[from..to] {
                    folded.apply(effect).expect("valid");
                }
                let bytes = tallies.encode(std::iter::once(7));
                assert_eq!(bytes.len(), tallies.bytes(), "effects {from}..{to}");
                for effect in taken(&bytes) {
                    joined.apply(&effect).unwrap_or_else(|e| panic!("{from}..{to}: {e}"));
                }
                assert_eq!(joined, folded, "effects {from}..{to}");
            }
        }
    }

    #[test]
    fn effects_read_back_as_they_were_written_and_are_as_long_as_they_say() {
        for effect in life() {
            let mut bytes = Vec::new();
            Tally::new(effect.clone()).encode(&mut Attic::default().open(), &mut bytes);
            assert_eq!(bytes.len(), effect.encoded_len(), "{effect:?}");
            assert_eq!(taken(&bytes), [effect]);
        }
    }

    #[test]
    fn appends_and_compactions_without_end_take_one_place() {
        let mut attic = Attic::default();
        let mut tally = Tally::new(appends(&[(1, 1, 1)]));
        for n in 2..1000 {
            tally.add(Effect { compact_to: Some(pos(1, n - 1)), ..appends(&[(1, n, n)]) }, &mut attic);
        }
        let mut bytes = Vec::new();
        tally.encode(&mut attic.open(), &mut bytes);
        assert_eq!(bytes.len(), FIXED_BYTES + 16 + SPAN_BYTES);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut bytes = Vec::new();
        Tally::new(appends(&[(1, 1, 5)])).encode(&mut Attic::default().open(), &mut bytes);
        for len in 0..bytes.len() {
            assert!(Effect::take(&mut &bytes[..len]).is_err(), "{len} bytes");
        }
        for (at, what) in [(0, 8), (4, 2), (8, 1)] {
            let mut bad = bytes.clone();
            bad[at] = what;
            assert!(Effect::take(&mut &bad[..]).is_err(), "{what} at {at}");
        }
    }
}
