//! What of a replica's state is durable, while writes are under way.
//!
//! The core seals what it accepted since the last time into a *batch*, numbered, and gives out a [`PersistToken`] for it.
//! Batches become durable in order. Stepping goes on meanwhile, so entries of a batch under way may be overwritten in
//! memory before they reach the disk, at the same indexes.
//!
//! Invariant: `durable` counts only entries that are both on the disk and still in the log. When batch n completes that
//! is min(last index of n, lowest tail cut of any later batch - 1): what a later batch cuts off may be on the disk now,
//! but is not this log's any more. Terms are never compared, so it does not matter how often an index was overwritten.
//! Must not know: messages, roles, votes' meaning.

use crate::ids::{Index, ReplicaId, Term, Time};
use crate::plant;
use crate::sometimes;
use smallvec::SmallVec;

/// Stands for one sealed batch, until it is durable. Given back to [`crate::Core::persisted`] in the order of sealing.
#[must_use = "a batch whose token is lost never counts as durable"]
#[derive(Debug, PartialEq, Eq)]
pub struct PersistToken {
    sequence: u64,
    last: Index,
}

impl PersistToken {
    /// The batch's number, counted from 1 in this core's life.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The last index of the log when the batch was sealed.
    pub fn last(&self) -> Index {
        self.last
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Batch {
    sequence: u64,
    sealed_at: Time,
    last: Index,
    cut: Option<Index>,
    ballot: Ballot,
}

/// A term, and who got this replica's vote in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ballot {
    pub(crate) term: Term,
    pub(crate) vote: ReplicaId,
}

/// What the core's owner is to write since the last batch was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsealed {
    pub(crate) cut_tail: Option<Index>,
    /// The first index that no batch holds yet.
    pub(crate) append_from: Index,
}

/// The batches under way, and what is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Durability {
    sequence: u64,
    flying: SmallVec<[Batch; 1]>,
    durable: Index,
    /// The last index that the disk holds once all sealed batches are durable.
    sealed_last: Index,
    sealed_ballot: Ballot,
    /// The lowest cut since the last batch was sealed.
    cut: Option<Index>,
    /// The log was reset to a snapshot since the last batch was sealed.
    reset: bool,
}

impl Durability {
    /// Everything restored is durable.
    pub(crate) fn restored(last: Index, ballot: Ballot) -> Self {
        Self {
            sequence: 0,
            flying: SmallVec::new(),
            durable: last,
            sealed_last: last,
            sealed_ballot: ballot,
            cut: None,
            reset: false,
        }
    }

    /// The last index of the log's durable prefix.
    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    /// A word of the oldest batch under way.
    pub(crate) fn warm(&self) -> u64 {
        self.flying.first().map_or(0, |batch| batch.sequence) ^ self.durable.0
    }

    /// Lets go of room for batches that are durable.
    pub(crate) fn shed(&mut self) {
        self.flying.shrink_to_fit();
    }

    /// Whether a batch is under way.
    pub(crate) fn in_flight(&self) -> bool {
        !self.flying.is_empty()
    }

    /// When the oldest batch under way was sealed.
    pub(crate) fn oldest_sealed(&self) -> Option<Time> {
        self.flying.first().map(|batch| batch.sealed_at)
    }

    /// The entries from `from` on were removed from the log.
    pub(crate) fn cut_tail(&mut self, from: Index) {
        self.durable = self.durable.min(from.prev());
        // Entries that no batch holds were never told to the disk: nothing to cut there.
        if from <= self.sealed_last {
            self.sealed_last = from.prev();
            self.cut = Some(self.cut.map_or(from, |cut| cut.min(from)));
        }
    }

    /// The log was replaced by a snapshot through `last`. Nothing counts as durable until that is.
    pub(crate) fn reset(&mut self, last: Index) {
        self.durable = Index::ZERO;
        self.sealed_last = last;
        self.cut = None;
        self.reset = true;
    }

    /// Whether there is anything to write: entries, a cut, a reset, or a new term or vote. A commit index is not.
    pub(crate) fn is_dirty(&self, last: Index, ballot: Ballot) -> bool {
        self.reset || self.cut.is_some() || last != self.sealed_last || ballot != self.sealed_ballot
    }

    /// Seals all that was accepted so far, which may be nothing, behind the batches under way.
    pub(crate) fn seal(&mut self, now: Time, last: Index, ballot: Ballot) -> (Unsealed, PersistToken) {
        assert!(last >= self.sealed_last, "log ends at {last}, before what was sealed, {}", self.sealed_last);
        let unsealed = Unsealed { cut_tail: self.cut, append_from: self.sealed_last.next() };
        self.sequence += 1;
        // A reset removes everything that was in the log before it.
        let cut = if self.reset { Some(Index(1)) } else { self.cut };
        self.flying.push(Batch { sequence: self.sequence, sealed_at: now, last, cut, ballot });
        self.sealed_last = last;
        self.sealed_ballot = ballot;
        self.cut = None;
        self.reset = false;
        (unsealed, PersistToken { sequence: self.sequence, last })
    }

    /// The oldest batch is durable. Returns the term and vote that it made durable.
    pub(crate) fn complete(&mut self, token: &PersistToken) -> Ballot {
        assert!(!self.flying.is_empty(), "a token is given out only for a batch under way");
        let batch = self.flying.remove(0);
        assert_eq!(batch.sequence, token.sequence, "batches complete in the order of their sealing");
        let pending = if self.reset { Some(Index(1)) } else { self.cut };
        let lowest_cut = self.flying.iter().filter_map(|b| b.cut).chain(pending).min();
        sometimes!(lowest_cut.is_some_and(|cut| cut <= batch.last), "written-entries-overwritten-since");
        let durable = match lowest_cut {
            Some(cut) if !plant::is("aba-token") => batch.last.min(cut.prev()),
            _ => batch.last,
        };
        // A batch ends no lower than the one before it, or than its own cut, so completing one never takes back.
        assert!(durable >= self.durable, "durable index goes back from {} to {durable}", self.durable);
        self.durable = durable;
        batch.ballot
    }
}

/// For the model checker, which copies cores with batches under way.
#[cfg(feature = "model")]
impl Durability {
    /// Another token for the oldest batch under way.
    pub(crate) fn oldest_token(&self) -> Option<PersistToken> {
        self.flying.first().map(|b| PersistToken { sequence: b.sequence, last: b.last })
    }

    /// All of it but the numbers of batches, which only tell that they complete in order, and the times of their sealing: no
    /// model loses patience with a disk.
    pub(crate) fn hash_without_numbers<H: std::hash::Hasher>(&self, state: &mut H) {
        use std::hash::Hash as _;
        let Self { sequence: _, flying, durable, sealed_last, sealed_ballot, cut, reset } = self;
        state.write_usize(flying.len());
        for Batch { sequence: _, sealed_at: _, last, cut, ballot } in flying {
            (last, cut, ballot).hash(state);
        }
        (durable, sealed_last, sealed_ballot, cut, reset).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Durability {
        Durability::restored(Index(10), Ballot::default())
    }

    #[test]
    fn entries_are_durable_when_their_batch_is() {
        let mut d = start();
        assert!(!d.is_dirty(Index(10), Ballot::default()) && d.is_dirty(Index(12), Ballot::default()));
        let (what, token) = d.seal(Time::ZERO, Index(12), Ballot::default());
        assert_eq!(what, Unsealed { cut_tail: None, append_from: Index(11) });
        assert_eq!(d.durable(), Index(10));
        d.complete(&token);
        assert_eq!(d.durable(), Index(12));
    }

    #[test]
    fn batches_are_counted_from_1() {
        let mut d = start();
        let numbers = [12, 12, 14].map(|last| d.seal(Time::ZERO, Index(last), Ballot::default()).1.sequence());
        assert_eq!(numbers, [1, 2, 3]);
    }

    #[test]
    fn an_old_batch_does_not_make_overwritten_indexes_durable() {
        let mut d = start();
        let (_, first) = d.seal(Time::ZERO, Index(12), Ballot::default());
        d.cut_tail(Index(11));
        let (what, second) = d.seal(Time::ZERO, Index(12), Ballot::default());
        assert_eq!(what, Unsealed { cut_tail: Some(Index(11)), append_from: Index(11) });
        d.cut_tail(Index(12));
        let (_, third) = d.seal(Time::ZERO, Index(13), Ballot::default());
        d.complete(&first);
        assert_eq!(d.durable(), Index(10));
        d.complete(&second);
        assert_eq!(d.durable(), Index(11));
        d.complete(&third);
        assert_eq!(d.durable(), Index(13));
    }

    #[test]
    #[should_panic(expected = "batches complete in the order of their sealing")]
    fn a_batch_does_not_complete_before_an_earlier_one() {
        let mut d = start();
        let _first = d.seal(Time::ZERO, Index(12), Ballot::default());
        let (_, second) = d.seal(Time::ZERO, Index(13), Ballot::default());
        d.complete(&second);
    }

    #[test]
    fn a_cut_of_entries_that_no_batch_holds_is_not_written() {
        let mut d = start();
        d.cut_tail(Index(12));
        let (what, token) = d.seal(Time::ZERO, Index(11), Ballot::default());
        assert_eq!(what, Unsealed { cut_tail: None, append_from: Index(11) });
        d.complete(&token);
        assert_eq!(d.durable(), Index(11));
    }

    #[test]
    fn a_cut_not_yet_sealed_counts_too() {
        let mut d = start();
        let (_, first) = d.seal(Time::ZERO, Index(12), Ballot::default());
        d.cut_tail(Index(11));
        d.complete(&first);
        assert_eq!(d.durable(), Index(10));
    }

    #[test]
    fn a_reset_makes_nothing_durable_until_it_is() {
        let mut d = start();
        let (_, first) = d.seal(Time::ZERO, Index(12), Ballot::default());
        d.reset(Index(40));
        d.complete(&first);
        assert_eq!(d.durable(), Index::ZERO);
        let (what, second) = d.seal(Time::ZERO, Index(41), Ballot::default());
        assert_eq!(what, Unsealed { cut_tail: None, append_from: Index(41) });
        d.complete(&second);
        assert_eq!(d.durable(), Index(41));
    }
}
