//! What a replica of the model knows of the commands that it has forwarded, as the engine's tracker and its closings do.
//!
//! Invariant, checked over all replicas (`check`): what was told to be lost is never committed, in whatever life it was told.
//! `raft/src/forwards.rs` argues why that holds.
//!
//! Must not know: which of these tellings is right.

use super::node::{Mark, command};
use longboat_raft::{ClosedForwards, Forwards, Index, RefusedForward, ReplicaId, Term};
use std::hash::{Hash, Hasher};

/// The commands that a replica has forwarded, by the terms in which it did and by their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forwarded {
    open: Vec<(Term, u64)>,
    /// What the leader of the newest term that has answered said first.
    answer: Option<ClosedForwards>,
    /// The marks of those that were told to be lost. Known to the checks alone: no crash takes them away.
    lost: Vec<u64>,
}

impl Forwarded {
    /// A command has left for the leader of this term.
    pub(crate) fn sent(&mut self, term: Term, sequence: u64) {
        self.open.push((term, sequence));
    }

    /// What is to be closed, if anything that was forwarded in this term is open.
    pub(crate) fn to_close(&self, term: Term) -> Option<Forwards> {
        let last = self.open.iter().filter(|(of, _)| *of == term).map(|(_, sequence)| *sequence).max()?;
        Some(Forwards { start: 0, commands: last + 1, changes: 0 })
    }

    /// The leader has answered.
    pub(crate) fn closed(&mut self, closed: ClosedForwards) {
        if self.answer.is_none_or(|earlier| earlier.term < closed.term) {
            self.answer = Some(closed);
        }
    }

    /// The leader appends this one never.
    pub(crate) fn refused(&mut self, own: ReplicaId, refused: &RefusedForward) {
        self.lose(own, |_, sequence| sequence == refused.first_sequence);
    }

    /// A snapshot took the place of the log: what is open may or may not be in it.
    pub(crate) fn skipped(&mut self) {
        self.open.clear();
    }

    /// A crash: nobody waits any more.
    pub(crate) fn forget(&mut self) {
        (self.open, self.answer) = (Vec::new(), None);
    }

    /// The log through `handed` was handed out. What of it is here has come; of the rest something may be lost.
    pub(crate) fn handed(&mut self, own: ReplicaId, log: &[Mark], handed: Index) {
        let log = &log[..log.len().min(handed.0 as usize)];
        self.open.retain(|(_, sequence)| !log.iter().any(|mark| mark.what == command(*sequence, own)));
        // Appended by the leader of their term or by nobody, and before any entry of a later one.
        if let Some(newest) = log.last().map(|mark| mark.term) {
            self.lose(own, |term, _| term < newest);
        }
        if let Some(closed) = self.answer.take_if(|closed| closed.end <= handed) {
            self.lose(own, |term, sequence| term == closed.term && sequence < closed.forwards.commands);
        }
    }

    fn lose(&mut self, own: ReplicaId, is_lost: impl Fn(Term, u64) -> bool) {
        let lost = self.open.extract_if(.., |(term, sequence)| is_lost(*term, *sequence));
        self.lost.extend(lost.map(|(_, sequence)| command(sequence, own)));
    }

    /// Whether this was told to be lost.
    pub(crate) fn is_lost(&self, mark: &Mark) -> bool {
        self.lost.contains(&mark.what)
    }
}

impl Hash for Forwarded {
    fn hash<H: Hasher>(&self, hash: &mut H) {
        (&self.open, &self.lost).hash(hash);
        self.answer.map(|closed| (closed.term, closed.forwards, closed.end)).hash(hash);
    }
}
