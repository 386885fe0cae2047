//! What a host's journal must hold: the fold of the updates that its store took, and of those that it reported durable.
//!
//! It is computed from the updates alone, with code that shares nothing with the store, and compared with what the store
//! recovers after a crash and with every message that leaves the host.

use crate::hash::{chain, entry_hash};
use longboat_logdb::{GroupState, Record, Seq, Update};
use longboat_raft::{HardState, Index, LogPos, ReplicaId, Term};
use std::collections::VecDeque;

/// One entry of a shadowed log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its term.
    pub term: Term,
    /// The hash of the log through it.
    pub chain: u64,
}

/// The log and hard state of one replica as of some update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    /// Whether the replica exists: its bootstrap record is there.
    pub exists: bool,
    /// Which replica it is.
    pub replica: ReplicaId,
    /// Term, vote and commit.
    pub hard: HardState,
    /// The place before the first entry.
    pub start: LogPos,
    /// The hash of the log through `start`.
    pub start_chain: u64,
    entries: VecDeque<Mark>,
}

/// One update, without its payloads.
#[derive(Clone, Debug)]
pub struct Change {
    seq: Seq,
    hard: HardState,
    bootstrap: Option<ReplicaId>,
    removed: bool,
    reset: Option<LogPos>,
    cut: Option<Index>,
    first: Index,
    entries: Vec<(Term, u64)>,
    compact: Option<LogPos>,
}

impl Change {
    /// What `update` changes; `seq` is its batch.
    pub fn of(seq: Seq, update: &Update) -> Self {
        let (mut bootstrap, mut removed, mut reset) = (None, false, None);
        match update.record.as_deref() {
            Some(Record::Bootstrap(b)) => bootstrap = Some(b.replica),
            Some(Record::Removed { .. }) => removed = true,
            Some(Record::Snapshot(s)) if s.resets_log => reset = Some(s.meta.pos),
            _ => {}
        }
        let entries = update.runs.iter().flat_map(|run| {
            let origin = run.origin();
            run.entries().map(move |entry| (entry.term, entry_hash(&entry, origin)))
        });
        Self {
            seq,
            hard: update.hard_state,
            bootstrap,
            removed,
            reset,
            cut: update.cut_tail,
            first: update.runs.first().map_or(Index::ZERO, |r| r.first()),
            entries: entries.collect(),
            compact: update.compact_to,
        }
    }
}

impl Change {
    /// Whether it removes all that there is of the replica.
    pub fn removes(&self) -> bool {
        self.removed
    }
}

impl Fold {
    /// The last entry.
    pub fn last(&self) -> LogPos {
        match self.entries.back() {
            Some(mark) => LogPos::new(mark.term, Index(self.start.index.0 + self.entries.len() as u64)),
            None => self.start,
        }
    }

    /// The entry at `index`; `None` outside of the log.
    pub fn at(&self, index: Index) -> Option<Mark> {
        let offset = index.0.checked_sub(self.start.index.0)?;
        if offset == 0 {
            return Some(Mark { term: self.start.term, chain: self.start_chain });
        }
        self.entries.get(offset as usize - 1).copied()
    }

    /// Whether the log holds this entry, or has compacted it.
    pub fn holds(&self, pos: LogPos) -> bool {
        pos.index < self.start.index || self.at(pos.index).is_some_and(|m| m.term == pos.term)
    }

    /// Carries out one update. `committed` gives the hash of the committed log through an index. Returns the places
    /// that were written, with the hash of the log through each.
    ///
    /// # Errors
    /// What is contradictory about it.
    pub fn apply(
        &mut self,
        change: &Change,
        committed: impl Fn(LogPos) -> Option<u64>,
    ) -> Result<Vec<(Index, Mark)>, String> {
        if change.removed {
            *self = Self::default();
            return Ok(Vec::new());
        }
        if let Some(replica) = change.bootstrap {
            *self = Self { exists: true, replica, ..Self::default() };
        }
        if !self.exists {
            return Err("an update comes before the replica's bootstrap record".to_owned());
        }
        if let Some(pos) = change.reset {
            let known =
                committed(pos).ok_or_else(|| format!("installs a snapshot at {pos:?}, which is not committed"))?;
            (self.start, self.start_chain) = (pos, known);
            self.entries.clear();
        }
        self.hard = change.hard;
        if let Some(cut) = change.cut {
            let keep = cut.0.checked_sub(self.start.index.0 + 1);
            let keep = keep.ok_or_else(|| format!("cuts from {cut}, the log starts after {:?}", self.start))?;
            self.entries.truncate(keep as usize);
        }
        let mut written = Vec::with_capacity(change.entries.len());
        if !change.entries.is_empty() && change.first != self.last().index.next() {
            return Err(format!("appends {} after {:?}", change.first, self.last()));
        }
        for &(term, entry) in &change.entries {
            let before = self.entries.back().map_or(self.start_chain, |m| m.chain);
            let mark = Mark { term, chain: chain(before, term.0, entry) };
            self.entries.push_back(mark);
            written.push((self.last().index, mark));
        }
        if let Some(to) = change.compact {
            self.compact(to)?;
        }
        Ok(written)
    }

    fn compact(&mut self, to: LogPos) -> Result<(), String> {
        if to.index <= self.start.index {
            return Ok(());
        }
        let mark = self.at(to.index).filter(|m| m.term == to.term);
        let mark = mark.ok_or_else(|| format!("compacts to {to:?}, the log ends at {:?}", self.last()))?;
        self.entries.drain(..(to.index.0 - self.start.index.0) as usize);
        (self.start, self.start_chain) = (to, mark.chain);
        Ok(())
    }

    /// The first entry of every term.
    fn terms(&self) -> Vec<LogPos> {
        let mut terms: Vec<LogPos> = Vec::new();
        for (i, mark) in self.entries.iter().enumerate() {
            if terms.last().is_none_or(|t| t.term != mark.term) {
                terms.push(LogPos::new(mark.term, Index(self.start.index.0 + 1 + i as u64)));
            }
        }
        terms
    }

    /// Whether a store recovered exactly this.
    fn is(&self, state: Option<&GroupState>) -> bool {
        let Some(state) = state.filter(|s| !s.removed) else { return !self.exists };
        self.exists
            && self.hard == state.hard_state
            && self.start == state.start
            && self.last() == state.last
            && self.terms() == state.terms
    }
}

impl Fold {
    /// A replica that has nothing but a snapshot of this place.
    pub fn at_snapshot(replica: ReplicaId, hard: HardState, start: LogPos, start_chain: u64) -> Self {
        Self { exists: true, replica, hard, start, start_chain, entries: VecDeque::new() }
    }
}

/// One replica's shadow: what is durable, and what is on its way.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    /// The fold of what was reported durable.
    pub durable: Fold,
    pending: VecDeque<Change>,
}

impl Shadow {
    /// One whose store was written while its host did not run.
    pub fn of(durable: Fold) -> Self {
        Self { durable, pending: VecDeque::new() }
    }

    /// The store took an update.
    pub fn submitted(&mut self, change: Change) {
        self.pending.push_back(change);
    }

    /// The next update of a batch through `seq`, which is durable.
    pub fn next_durable(&mut self, seq: Seq) -> Option<Change> {
        if self.pending.front()?.seq <= seq { self.pending.pop_front() } else { None }
    }

    /// The host has reopened its store: what it found must be the durable fold, or that and some of what was on its way,
    /// in order. From here on that is what is durable.
    ///
    /// # Errors
    /// How it differs.
    pub fn recovered(
        &mut self,
        state: Option<&GroupState>,
        committed: impl Fn(LogPos) -> Option<u64>,
    ) -> Result<Vec<(Index, Mark)>, String> {
        let mut written = Vec::new();
        let mut fold = self.durable.clone();
        let pending = std::mem::take(&mut self.pending);
        let mut pending = pending.iter();
        while !fold.is(state) {
            let Some(change) = pending.next() else {
                let (hard, log) = (self.durable.hard, (self.durable.start, self.durable.last()));
                return Err(match state {
                    Some(s) => format!(
                        "recovered {:?} and log {:?} to {:?}; durable were {hard:?} and log {:?} to {:?}",
                        s.hard_state, s.start, s.last, log.0, log.1
                    ),
                    None => format!("recovered nothing; durable were {hard:?} and log {:?} to {:?}", log.0, log.1),
                });
            };
            written.extend(fold.apply(change, &committed)?);
        }
        self.durable = fold;
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_logdb::Bootstrap;
    use longboat_raft::{EntryKind, GroupId, Origin, RunBuilder};

    fn update(term: u64, first: u64, count: u64) -> Update {
        let mut builder = RunBuilder::new();
        (0..count).for_each(|i| builder.push(EntryKind::Command, i, &i.to_le_bytes()));
        let run = builder.seal(Term(term), Index(first), Origin::default());
        Update {
            group: GroupId(1),
            hard_state: HardState { term: Term(term), ..HardState::default() },
            runs: [run].into_iter().collect(),
            ..Update::default()
        }
    }

    fn shadow(updates: &[Update]) -> Shadow {
        let mut shadow = Shadow::default();
        let bootstrap = Some(Box::new(Record::Bootstrap(Bootstrap::default())));
        shadow.submitted(Change::of(Seq(1), &Update { record: bootstrap, ..Update::default() }));
        for (i, update) in updates.iter().enumerate() {
            shadow.submitted(Change::of(Seq(i as u64 + 2), update));
        }
        shadow
    }

    fn durable(shadow: &mut Shadow, seq: u64) {
        while let Some(change) = shadow.next_durable(Seq(seq)) {
            shadow.durable.apply(&change, |_| None).expect("fits");
        }
    }

    fn state(fold: &Fold) -> GroupState {
        let (start, last, terms) = (fold.start, fold.last(), fold.terms());
        GroupState { hard_state: fold.hard, start, last, terms, ..GroupState::default() }
    }

    #[test]
    fn a_store_may_recover_what_was_on_its_way_but_nothing_less_than_what_was_durable() {
        let mut s = shadow(&[update(1, 1, 3), update(1, 4, 2)]);
        durable(&mut s, 2);
        let earlier = state(&s.durable);
        let mut all = s.clone();
        durable(&mut all, 3);
        let later = state(&all.durable);
        assert!(all.recovered(Some(&earlier), |_| None).is_err());
        assert!(s.clone().recovered(None, |_| None).is_err());
        assert!(s.clone().recovered(Some(&earlier), |_| None).is_ok());
        assert!(s.recovered(Some(&later), |_| None).is_ok());
        assert_eq!(s.durable.last().index, Index(5));
    }

    #[test]
    fn logs_with_equal_places_and_other_contents_have_other_chains() {
        let mut a = shadow(&[update(1, 1, 3), update(2, 4, 1)]);
        let mut b = shadow(&[update(1, 1, 2), Update { cut_tail: Some(Index(2)), ..update(1, 2, 2) }, update(2, 4, 1)]);
        durable(&mut a, 9);
        durable(&mut b, 9);
        assert_eq!(a.durable.last(), b.durable.last());
        assert_ne!(a.durable.at(Index(4)), b.durable.at(Index(4)));
    }
}
