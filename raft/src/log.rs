//! One replica's log: every term boundary of it, and its newest runs.
//!
//! The log is the entries in `(start, last]`. Of these a suffix is held in memory, as runs; older ones may have been
//! dropped once they are durable and applied, and then reading them needs a fetch. Terms are known for the whole log:
//! the first entry of each term is kept, a handful of places however long the log is, so that `term_at` never needs a disk.
//!
//! Invariants: `runs` are contiguous, and end at `last` unless there are none; `terms` ascend strictly in both term and
//! index, start at `start + 1` and describe every entry; terms never fall along the log.
//! Must not know: what is committed or durable (its callers pass the bounds), messages, roles.

use crate::error::Violation;
use crate::ids::{Index, LogPos, Term};
use crate::run::{EntryKind, Run};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// Runs that are looked at one by one, from the newest, before an index is searched for among all.
const NEAR_RUNS: usize = 4;

/// Entries read from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slice {
    /// Contiguous runs from the asked index on.
    Runs(SmallVec<[Run; 1]>),
    /// The entries through `hi` are not in memory.
    Cold { hi: Index },
    /// The entries were compacted.
    Compacted,
}

/// The log of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    start: LogPos,
    last: LogPos,
    terms: SmallVec<[LogPos; 2]>,
    runs: VecDeque<Run>,
    bytes: usize,
}

impl Log {
    /// The log that recovery found.
    pub(crate) fn restored(start: LogPos, last: LogPos, terms: &[LogPos], runs: Vec<Run>) -> Result<Self, Violation> {
        let bad = |what| Err(Violation::Restored(what));
        if last.index < start.index || last.term < start.term {
            return bad("the log ends before it starts");
        }
        let ascending = terms.windows(2).all(|w| w[0].term < w[1].term && w[0].index < w[1].index);
        if !ascending || terms.iter().any(|t| t.term < start.term || t.term.is_zero() || t.index > last.index) {
            return bad("term boundaries out of order");
        }
        if terms.first().map(|t| t.index) != (last.index > start.index).then(|| start.index.next()) {
            return bad("term boundaries do not begin at the log's first entry");
        }
        if terms.last().map_or(start.term, |t| t.term) != last.term {
            return bad("the last term boundary is not of the last entry's term");
        }
        let mut log = Self { start, last, terms: terms.into(), runs: VecDeque::new(), bytes: 0 };
        let contiguous = runs.windows(2).all(|w| w[0].last().next() == w[1].first());
        if !contiguous || runs.last().is_some_and(|r| r.last() != last.index) {
            return bad("runs are not a suffix of the log");
        }
        for run in runs {
            // A run may reach back over the log's start; what is below is not looked at.
            let first = run.first().max(start.index.next());
            if log.term_end(first).is_none_or(|(term, end)| term != run.term() || end < run.last()) {
                return bad("a run's term is not the term boundaries' term");
            }
            if !configs_decode(&run) {
                return Err(Violation::ConfigEntry { index: run.first() });
            }
            log.bytes += run.encoded_len();
            log.runs.push_back(run);
        }
        Ok(log)
    }

    /// The place just before the first entry.
    pub(crate) fn start(&self) -> LogPos {
        self.start
    }

    /// The place of the last entry.
    pub(crate) fn last(&self) -> LogPos {
        self.last
    }

    /// Bytes of the newest run in memory.
    pub(crate) fn newest_run_bytes(&self) -> usize {
        self.runs.back().map_or(0, Run::count)
    }

    /// Bytes of runs in memory.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.bytes
    }

    /// The first index that is in memory; one after the last when none is.
    pub(crate) fn cached_from(&self) -> Index {
        self.runs.front().map_or(self.last.index.next(), Run::first)
    }

    /// The term of the entry at `index`; the start's place counts as one. `None` outside of the log.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        // The two places that nearly all questions are about.
        if index == self.last.index {
            return Some(self.last.term);
        }
        if index == self.start.index {
            return Some(self.start.term);
        }
        self.term_end(index).map(|(term, _)| term)
    }

    /// The term of the entry at `index`, and the last index of the log that has this term. `None` outside of the log.
    pub(crate) fn term_end(&self, index: Index) -> Option<(Term, Index)> {
        if index <= self.start.index || index > self.last.index {
            return None;
        }
        let after = self.terms.partition_point(|t| t.index <= index);
        let end = self.terms.get(after).map_or(self.last.index, |next| next.index.prev());
        Some((self.terms[after - 1].term, end))
    }

    /// The largest place at or before `index` whose term is at most `term`: the best guess of where two logs agree, when
    /// one has `term` at `index` (or ends there) and this one does not. Term zero when the place was compacted.
    pub(crate) fn find_conflict(&self, index: Index, term: Term) -> LogPos {
        let mut at = index.min(self.last.index);
        if at < self.start.index {
            return LogPos::new(Term::ZERO, at);
        }
        while at > self.start.index {
            let of = self.terms[self.terms.partition_point(|t| t.index <= at) - 1];
            if of.term <= term {
                return LogPos::new(of.term, at);
            }
            at = of.index.prev();
        }
        if self.start.term <= term {
            return self.start;
        }
        LogPos::new(Term::ZERO, at.prev())
    }

    /// Appends a run right after the last entry.
    pub(crate) fn append(&mut self, run: Run) {
        assert_eq!(run.first(), self.last.index.next(), "appending {run:?} to a log that ends at {:?}", self.last);
        assert!(run.term() >= self.last.term, "appending {run:?} to a log that ends at {:?}", self.last);
        if self.terms.last().is_none_or(|t| t.term < run.term()) {
            self.terms.push(LogPos::new(run.term(), run.first()));
        }
        self.last = LogPos::new(run.term(), run.last());
        self.bytes += run.encoded_len();
        if self.runs.capacity() == 0 {
            // Room for four would be five times what most silent groups wake for.
            self.runs.reserve_exact(1);
        }
        self.runs.push_back(run);
    }

    /// Removes the entries from `from` on.
    pub(crate) fn cut_tail(&mut self, from: Index) {
        assert!(from > self.start.index, "cutting at {from} a log that starts after {:?}", self.start);
        if from > self.last.index {
            return;
        }
        let term = self.term_at(from.prev()).expect("the place before an entry of the log is in the log or its start");
        self.last = LogPos::new(term, from.prev());
        while self.terms.last().is_some_and(|t| t.index >= from) {
            self.terms.pop();
        }
        while let Some(run) = self.runs.pop_back() {
            self.bytes -= run.encoded_len();
            if run.first() < from {
                let kept = if run.last() < from { run } else { run.slice(run.first()..=from.prev()) };
                self.bytes += kept.encoded_len();
                self.runs.push_back(kept);
                break;
            }
        }
    }

    /// Forgets everything: the log starts after `pos` and is empty.
    pub(crate) fn reset(&mut self, pos: LogPos) {
        *self = Self { start: pos, last: pos, terms: SmallVec::new(), runs: VecDeque::new(), bytes: 0 };
    }

    /// Forgets the entries through `to`.
    pub(crate) fn compact(&mut self, to: Index) {
        if to <= self.start.index {
            return;
        }
        (self.start, self.terms) = self.without(to);
        self.drop_front(|run| run.last() <= to);
    }

    /// Where the log starts without the entries through `to`, and the first entry of every term that it has then.
    pub(crate) fn without(&self, to: Index) -> (LogPos, SmallVec<[LogPos; 2]>) {
        if to <= self.start.index {
            return (self.start, self.terms.clone());
        }
        assert!(to <= self.last.index, "compacting to {to} a log that ends at {:?}", self.last);
        let term = self.term_at(to).expect("the entry is in the log");
        let kept = self.terms.partition_point(|t| t.index <= to);
        // The term that reaches over the new start begins right after it.
        let reaching = self.term_end(to.next()).map(|(term, _)| LogPos::new(term, to.next()));
        let mut terms: SmallVec<[LogPos; 2]> = reaching.into_iter().collect();
        terms.extend(self.terms[kept..].iter().copied().filter(|t| t.index > to.next()));
        (LogPos::new(term, to), terms)
    }

    /// Drops the oldest runs that end at or before `limit` while more than `bytes_max` are held.
    pub(crate) fn evict(&mut self, limit: Index, bytes_max: usize) {
        let mut held = self.bytes;
        self.drop_front(|run| {
            let drop = held > bytes_max && run.last() <= limit;
            held -= if drop { run.encoded_len() } else { 0 };
            drop
        });
    }

    /// Lets go of room for runs that are gone.
    pub(crate) fn shed(&mut self) {
        self.runs.shrink_to_fit();
        self.terms.shrink_to_fit();
    }

    fn drop_front(&mut self, mut drop: impl FnMut(&Run) -> bool) {
        while self.runs.front().is_some_and(&mut drop) {
            let run = self.runs.pop_front().expect("just looked at");
            self.bytes -= run.encoded_len();
        }
    }

    /// The runs in memory, for the model checker.
    #[cfg(feature = "model")]
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    /// Which of the runs in memory is the first that does not end before `lo`. Nearly always it is one of the newest.
    fn run_of(&self, lo: Index) -> usize {
        let oldest_near = self.runs.len().saturating_sub(NEAR_RUNS);
        if let Some(back) = self.runs.iter().skip(oldest_near).rev().position(|r| r.first() <= lo) {
            let at = self.runs.len() - 1 - back;
            return if self.runs[at].last() < lo { at + 1 } else { at };
        }
        self.runs.partition_point(|r| r.last() < lo)
    }

    /// Contiguous runs from `lo` through `hi` at most, of `bytes_max` bytes but at least one entry.
    pub(crate) fn entries(&self, lo: Index, hi: Index, bytes_max: usize) -> Slice {
        if lo <= self.start.index {
            return Slice::Compacted;
        }
        let cached_from = self.cached_from();
        if lo < cached_from {
            return Slice::Cold { hi: hi.min(cached_from.prev()) };
        }
        let mut runs = SmallVec::new();
        let (mut at, mut left) = (self.run_of(lo), bytes_max);
        let mut next = lo;
        while next <= hi && at < self.runs.len() {
            let Some(piece) = fitting(&self.runs[at], next, hi, left, runs.is_empty()) else {
                break;
            };
            left = left.saturating_sub(piece.encoded_len());
            next = piece.last().next();
            at += 1;
            let whole = next > self.runs[at - 1].last();
            runs.push(piece);
            if !whole {
                break;
            }
        }
        Slice::Runs(runs)
    }

    /// All runs from `lo` on, or `None` when some are not in memory.
    pub(crate) fn tail_from(&self, lo: Index) -> Option<SmallVec<[Run; 1]>> {
        match self.entries(lo, self.last.index, usize::MAX) {
            Slice::Runs(runs) => Some(runs),
            Slice::Cold { .. } | Slice::Compacted => None,
        }
    }

    /// Whether a config entry is among `lo..=hi`, or may be, where memory does not say.
    pub(crate) fn may_have_config(&self, lo: Index, hi: Index) -> bool {
        if lo > hi {
            return false;
        }
        if lo < self.cached_from() {
            return true;
        }
        let at = self.run_of(lo);
        self.runs
            .iter()
            .skip(at)
            .take_while(|r| r.first() <= hi)
            .filter(|r| r.has_config())
            .any(|r| r.entries().any(|e| e.kind == EntryKind::Config && e.index >= lo && e.index <= hi))
    }
}

/// Whether every config entry of the run can be read. Looks at entries only where there is one.
pub(crate) fn configs_decode(run: &Run) -> bool {
    !run.has_config()
        || run
            .entries()
            .filter(|e| e.kind == EntryKind::Config)
            .all(|e| crate::changer::ConfigChange::decode(e.payload).is_ok())
}

/// The part of `run` from `lo` through `hi` that fits into `bytes_max`; at least one entry if `force`.
fn fitting(run: &Run, lo: Index, hi: Index, bytes_max: usize, force: bool) -> Option<Run> {
    let end = run.last().min(hi);
    if run.encoded_len() <= bytes_max || (lo == end && force) {
        return Some(run.slice(lo..=end));
    }
    if !force {
        return None;
    }
    let mut left = bytes_max.saturating_sub(crate::run::RUN_HEADER_BYTES);
    let mut last = lo;
    for entry in run.entries().skip((lo.0 - run.first().0) as usize) {
        let len = entry.payload.len() + crate::run::DESCRIPTOR_BYTES;
        if entry.index > end || (len > left && entry.index > lo) {
            break;
        }
        left = left.saturating_sub(len);
        last = entry.index;
    }
    Some(run.slice(lo..=last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Origin, RunBuilder};

    fn run(term: u64, first: u64, count: u64) -> Run {
        let mut b = RunBuilder::new();
        for i in 0..count {
            b.push(EntryKind::Command, i, b"0123456789");
        }
        b.seal(Term(term), Index(first), Origin::default())
    }

    fn log(runs: &[(u64, u64)]) -> Log {
        let mut log = Log::restored(LogPos::ZERO, LogPos::ZERO, &[], Vec::new()).expect("empty");
        for (term, count) in runs {
            log.append(run(*term, log.last().index.0 + 1, *count));
        }
        log
    }

    fn terms(log: &Log) -> Vec<u64> {
        (log.start().index.0..=log.last().index.0).map(|i| log.term_at(Index(i)).expect("inside").0).collect()
    }

    fn spans(slice: &Slice) -> Vec<(u64, u64)> {
        match slice {
            Slice::Runs(runs) => runs.iter().map(|r| (r.first().0, r.last().0)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn terms_are_known_everywhere_after_appends_cuts_and_compaction() {
        let mut log = log(&[(1, 3), (1, 2), (4, 2), (6, 3)]);
        assert_eq!(terms(&log), [0, 1, 1, 1, 1, 1, 4, 4, 6, 6, 6]);
        log.compact(Index(4));
        assert_eq!(terms(&log), [1, 1, 4, 4, 6, 6, 6]);
        assert_eq!((log.term_at(Index(3)), log.term_at(Index(11))), (None, None));
        log.cut_tail(Index(7));
        assert_eq!((terms(&log), log.last()), (vec![1, 1, 4], LogPos::new(Term(4), Index(6))));
        log.append(run(9, 7, 1));
        assert_eq!(terms(&log), [1, 1, 4, 9]);
        log.compact(Index(7));
        assert_eq!((terms(&log), log.start()), (vec![9], LogPos::new(Term(9), Index(7))));
        log.append(run(9, 8, 1));
        assert_eq!(log.term_end(Index(8)), Some((Term(9), Index(8))));
    }

    #[test]
    fn every_index_is_found_in_its_run_near_the_end_and_far_from_it() {
        let log = log(&[(1, 3); 9]);
        for at in 1..=27 {
            assert_eq!(log.run_of(Index(at)) as u64, (at - 1) / 3, "index {at}");
        }
        assert_eq!(log.run_of(Index(28)), 9, "what is not there yet comes after all runs");
    }

    #[test]
    fn a_cut_inside_a_run_keeps_its_front() {
        let mut log = log(&[(1, 5)]);
        log.cut_tail(Index(4));
        assert_eq!(spans(&log.entries(Index(1), Index(9), usize::MAX)), [(1, 3)]);
        assert_eq!(log.cached_bytes(), run(1, 1, 3).encoded_len());
    }

    #[test]
    fn entries_come_whole_where_they_fit_and_cut_where_they_do_not() {
        let log = log(&[(1, 4), (1, 4), (2, 4)]);
        assert_eq!(spans(&log.entries(Index(1), Index(12), usize::MAX)), [(1, 4), (5, 8), (9, 12)]);
        assert_eq!(spans(&log.entries(Index(3), Index(6), usize::MAX)), [(3, 4), (5, 6)]);
        assert_eq!(spans(&log.entries(Index(1), Index(12), 1)), [(1, 1)]);
        assert_eq!(spans(&log.entries(Index(1), Index(12), 56 + 2 * 26)), [(1, 2)]);
        assert_eq!(spans(&log.entries(Index(1), Index(12), run(1, 1, 4).encoded_len() + 80)), [(1, 4)]);
    }

    #[test]
    fn evicted_entries_need_a_fetch_and_compacted_ones_are_gone() {
        let mut log = log(&[(1, 4), (1, 4), (2, 4)]);
        log.evict(Index(8), 0);
        assert_eq!(log.entries(Index(3), Index(12), usize::MAX), Slice::Cold { hi: Index(8) });
        assert_eq!(spans(&log.entries(Index(9), Index(12), usize::MAX)), [(9, 12)]);
        assert_eq!(log.tail_from(Index(8)), None);
        log.compact(Index(6));
        assert_eq!(log.entries(Index(6), Index(12), usize::MAX), Slice::Compacted);
        assert!(log.may_have_config(Index(7), Index(9)) && !log.may_have_config(Index(9), Index(12)));
    }

    #[test]
    fn no_more_is_evicted_than_the_bound_asks_for() {
        let mut log = log(&[(1, 4), (1, 4), (2, 4)]);
        let one = run(1, 1, 4).encoded_len();
        log.evict(Index(12), 2 * one);
        assert_eq!((log.cached_from(), log.cached_bytes()), (Index(5), 2 * one));
    }

    #[test]
    fn a_change_is_seen_where_it_is_in_a_run_and_not_beside_it() {
        let mut chunk = RunBuilder::new();
        for kind in [EntryKind::Command, EntryKind::Config, EntryKind::Command] {
            chunk.push(kind, 0, b"x");
        }
        let mut log = log(&[(1, 1)]);
        log.append(chunk.seal(Term(1), Index(2), Origin::default()));
        let seen = |lo, hi| log.may_have_config(Index(lo), Index(hi));
        assert!(seen(3, 3) && seen(2, 4) && seen(3, 9) && seen(1, 3));
        assert!(!seen(1, 2) && !seen(2, 2) && !seen(4, 4) && !seen(4, 9) && !seen(3, 2));
    }

    #[test]
    fn a_conflict_is_found_by_term() {
        let log = log(&[(1, 3), (4, 2), (5, 2), (6, 3)]);
        assert_eq!(log.find_conflict(Index(10), Term(6)), LogPos::new(Term(6), Index(10)));
        assert_eq!(log.find_conflict(Index(10), Term(5)), LogPos::new(Term(5), Index(7)));
        assert_eq!(log.find_conflict(Index(9), Term(3)), LogPos::new(Term(1), Index(3)));
        assert_eq!(log.find_conflict(Index(99), Term(9)), LogPos::new(Term(6), Index(10)));
        assert_eq!(log.find_conflict(Index(9), Term(0)), LogPos::ZERO);
    }

    #[test]
    fn restored_nonsense_is_refused() {
        let pos = |t, i| LogPos::new(Term(t), Index(i));
        assert!(Log::restored(pos(1, 5), pos(1, 4), &[], vec![]).is_err());
        assert!(Log::restored(pos(1, 5), pos(1, 6), &[], vec![]).is_err());
        assert!(Log::restored(pos(1, 5), pos(1, 7), &[pos(1, 7)], vec![]).is_err());
        assert!(Log::restored(pos(1, 5), pos(2, 7), &[pos(1, 6)], vec![]).is_err());
        assert!(Log::restored(pos(1, 5), pos(2, 7), &[pos(1, 6), pos(2, 7)], vec![run(2, 6, 2)]).is_err());
        assert!(Log::restored(pos(1, 5), pos(2, 7), &[pos(1, 6), pos(2, 7)], vec![run(1, 6, 1)]).is_err());
        assert!(Log::restored(pos(1, 5), pos(2, 7), &[pos(1, 6), pos(2, 7)], vec![run(2, 7, 1)]).is_ok());
        assert!(
            Log::restored(pos(1, 5), pos(2, 8), &[pos(1, 6), pos(2, 7)], vec![run(1, 6, 1), run(2, 8, 1)]).is_err()
        );
        assert!(Log::restored(pos(1, 5), pos(1, 7), &[pos(1, 6)], vec![run(1, 4, 4)]).is_ok(), "one that reaches back");
    }

    #[test]
    fn term_boundaries_that_can_not_be_are_refused() {
        let pos = |t, i| LogPos::new(Term(t), Index(i));
        let of = |start, last, terms: &[LogPos]| Log::restored(start, last, terms, vec![]);
        assert!(of(pos(1, 5), pos(3, 9), &[pos(1, 6), pos(2, 7), pos(3, 9)]).is_ok());
        assert!(of(pos(1, 5), pos(2, 9), &[pos(1, 6), pos(2, 7), pos(2, 8)]).is_err(), "a term that begins twice");
        assert!(of(pos(1, 5), pos(2, 9), &[pos(1, 6), pos(2, 6)]).is_err(), "two terms at one index");
        assert!(of(pos(2, 5), pos(2, 9), &[pos(1, 6), pos(2, 7)]).is_err(), "a term before the start's");
        assert!(of(pos(0, 0), pos(1, 2), &[pos(0, 1), pos(1, 2)]).is_err(), "an entry of no term");
        assert!(of(pos(1, 5), pos(2, 7), &[pos(1, 6), pos(2, 8)]).is_err(), "a term that begins behind the end");
        assert!(of(pos(2, 5), pos(1, 5), &[]).is_err(), "an end of an earlier term");
    }
}
