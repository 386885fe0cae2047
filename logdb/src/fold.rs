//! The fold of frames into what is known of a group: used when the journal is replayed and when it is settled.
//!
//! The order inside of one frame is the contract of [`crate::Update`]: record, cut, runs, compaction.

use crate::codec::Rows;
use crate::effect::{Effect, TermSpan};
use crate::{Bootstrap, GroupState, Record};
use longboat_raft::{GroupId, HardState, Index, LogPos, Membership, ReplicaId};

/// A group's state as of some sequence, with the log rows that the key-value store has of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Folded {
    pub(crate) state: GroupState,
    pub(crate) rows: Rows,
    /// The log was replaced since the row was read: rows of before are of another history.
    pub(crate) reset: bool,
}

impl Folded {
    pub(crate) fn new(group: GroupId) -> Self {
        Self { state: GroupState { group, ..GroupState::default() }, rows: Rows::default(), reset: false }
    }

    /// Carries out what one frame does. The error says what that contradicts.
    pub(crate) fn apply(&mut self, effect: &Effect) -> Result<(), String> {
        if let Some(Record::Removed { replica }) = effect.record.as_deref()
            && is_overtaken(self.state.bootstrap.replica, *replica)
        {
            return Ok(());
        }
        if let Some(record) = &effect.record {
            self.apply_record(record);
        }
        let state = &mut self.state;
        if state.is_void() {
            return Ok(());
        }
        state.hard_state = effect.hard_state;
        if let Some(from) = effect.cut_tail {
            cut(state, from);
        }
        for span in &effect.spans {
            append(state, span)?;
        }
        if let Some(to) = effect.compact_to {
            compact(state, to)?;
        }
        Ok(())
    }

    fn apply_record(&mut self, record: &Record) {
        let state = &mut self.state;
        if state.is_void() && matches!(record, Record::Snapshot(_)) {
            // Frames of a group that has no replica here mean nothing until a bootstrap.
            return;
        }
        match record {
            Record::Bootstrap(b) => {
                *state = GroupState { group: state.group, bootstrap: b.clone(), ..GroupState::default() };
                self.reset = true;
            }
            Record::Snapshot(s) => {
                if s.resets_log {
                    state.start = s.meta.pos;
                    state.last = s.meta.pos;
                    state.terms.clear();
                    self.reset = true;
                }
                state.snapshot = Some(s.clone());
            }
            Record::Removed { replica } => {
                let group = state.group;
                // Every replica of the group that was ever removed from this host stays known.
                let mut gone = std::mem::take(&mut state.bootstrap.gone);
                gone.insert(*replica);
                *state = GroupState { group, removed: true, hard_state: HardState::default(), ..GroupState::default() };
                state.bootstrap.replica = *replica;
                state.bootstrap.gone = gone;
                self.reset = true;
            }
            Record::Quarantined { replica, record } => {
                let former = std::mem::take(&mut state.bootstrap);
                // What it came to before the damage is not kept: half of a log, or a term of before, is worse than none.
                *state = GroupState { group: state.group, quarantined: Some(*record), ..GroupState::default() };
                state.bootstrap = Bootstrap { replica: *replica, membership: Membership::default(), ..former };
                self.reset = true;
            }
        }
    }
}

/// Whether a removal of `removed` comes after its group was begun anew here as another replica. It would take from that one
/// its log and its vote, which others count on; so its frame means nothing. The writing side, the index and the fold agree on this.
pub(crate) fn is_overtaken(here: ReplicaId, removed: ReplicaId) -> bool {
    !here.is_zero() && here != removed
}

fn cut(state: &mut GroupState, from: Index) {
    if from > state.last.index {
        return;
    }
    while state.terms.last().is_some_and(|t| t.index >= from) {
        state.terms.pop();
    }
    state.last = match state.terms.last() {
        Some(t) => LogPos::new(t.term, from.prev()),
        None => state.start,
    };
}

fn append(state: &mut GroupState, run: &TermSpan) -> Result<(), String> {
    if run.first != state.last.index.next() {
        return Err(format!("group {}: entries from {} do not follow {:?}", state.group, run.first, state.last));
    }
    if state.terms.last().is_none_or(|t| t.term != run.term) {
        state.terms.push(LogPos::new(run.term, run.first));
    }
    state.last = LogPos::new(run.term, run.last);
    Ok(())
}

fn compact(state: &mut GroupState, to: LogPos) -> Result<(), String> {
    if to.index <= state.start.index {
        return Ok(());
    }
    if to.index > state.last.index {
        return Err(format!("group {}: compaction to {to:?} beyond the last entry {:?}", state.group, state.last));
    }
    state.start = to;
    let first = to.index.next();
    // The term of the first kept entry begins there now; the terms wholly before it are gone.
    let keep = state.terms.iter().rposition(|t| t.index <= first).unwrap_or(0);
    state.terms.drain(..keep);
    match state.terms.first_mut() {
        Some(t) if to.index < state.last.index => t.index = t.index.max(first),
        _ => state.terms.clear(),
    }
    if to.index == state.last.index {
        state.last = to;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SnapshotRecord;
    use longboat_raft::{SnapshotMeta, Term};

    fn pos(term: u64, index: u64) -> LogPos {
        LogPos::new(Term(term), Index(index))
    }

    fn appended(runs: &[(u64, u64, u64)]) -> Effect {
        let spans =
            runs.iter().map(|&(t, first, last)| TermSpan { term: Term(t), first: Index(first), last: Index(last) });
        Effect { spans: spans.collect(), ..Effect::default() }
    }

    #[test]
    fn terms_follow_appends_cuts_and_compactions() {
        let mut f = Folded::new(GroupId(1));
        f.apply(&appended(&[(1, 1, 5), (1, 6, 7), (3, 8, 10)])).expect("contiguous");
        assert_eq!(f.state.terms, [pos(1, 1), pos(3, 8)]);
        f.apply(&Effect { compact_to: Some(pos(1, 4)), ..Effect::default() }).expect("inside");
        assert_eq!((f.state.start, &f.state.terms[..]), (pos(1, 4), &[pos(1, 5), pos(3, 8)][..]));
        f.apply(&Effect { cut_tail: Some(Index(9)), ..appended(&[(4, 9, 9)]) }).expect("cut first");
        assert_eq!(f.state.terms, [pos(1, 5), pos(3, 8), pos(4, 9)]);
        f.apply(&Effect { cut_tail: Some(Index(8)), ..Effect::default() }).expect("cut");
        assert_eq!(f.state.last, pos(1, 7));
        f.apply(&Effect { compact_to: Some(pos(1, 7)), ..Effect::default() }).expect("all of it");
        assert_eq!((f.state.last, f.state.terms.len()), (pos(1, 7), 0));
        f.apply(&appended(&[(6, 8, 8)])).expect("goes on");
        assert_eq!(f.state.terms, [pos(6, 8)]);
    }

    #[test]
    fn compacting_up_to_a_term_boundary_keeps_the_next_term_only() {
        let mut f = Folded::new(GroupId(1));
        f.apply(&appended(&[(1, 1, 5), (2, 6, 9)])).expect("contiguous");
        f.apply(&Effect { compact_to: Some(pos(1, 5)), ..Effect::default() }).expect("inside");
        assert_eq!(f.state.terms, [pos(2, 6)]);
    }

    #[test]
    fn a_gap_is_refused() {
        let mut f = Folded::new(GroupId(1));
        assert!(f.apply(&appended(&[(1, 2, 3)])).is_err());
    }

    #[test]
    fn a_leaders_snapshot_replaces_the_log_and_a_removal_all_but_the_fact() {
        let mut f = Folded::new(GroupId(1));
        f.apply(&appended(&[(1, 1, 5)])).expect("contiguous");
        let meta = SnapshotMeta { pos: pos(7, 100), ..SnapshotMeta::default() };
        let record = Some(Box::new(Record::Snapshot(SnapshotRecord { meta, bytes: 1, resets_log: true })));
        f.apply(&Effect { record, ..appended(&[(7, 101, 101)]) }).expect("starts after the snapshot");
        assert_eq!((f.state.start, f.state.last, f.reset), (pos(7, 100), pos(7, 101), true));
        let record = Some(Box::new(Record::Removed { replica: ReplicaId(3) }));
        f.apply(&Effect { record, ..Effect::default() }).expect("removed");
        assert!(f.state.removed && f.state.last == LogPos::ZERO);
    }
}
