//! What has become of proposals that were forwarded: a follower learns of those that were lost on their way although their
//! leader goes on leading.
//!
//! A forwarded run is sent once, and nothing answers it but its entries, or a refusal. So a replica whose forwarded
//! proposals are open for long asks their leader to *close* them ([`Body::CloseForwards`]): to append none of those up to some
//! number any more. The leader answers where its log ends ([`Body::ForwardsClosed`]). Once the replica has handed out the log
//! through that place, what is still open of them was lost, and is in no log that counts.
//!
//! Why this is exact. Let C be a run that its origin sent in term T, and that the leader of T has closed with its log
//! ending at n.
//! - C is appended by the leader of T or by nobody: whoever else gets it, in whatever term, compares the run's term with
//!   its own ([`Core::on_forward`]). There is one leader of T, in one life: a replica that restarts leads again only after an
//!   election, in a later term, since its own vote in T was durable before it led.
//! - Such a leader removes no entry, so if it appended C before it closed it, C ends at or before n. After it, it refuses C
//!   for as long as it leads in T: the bar goes with the leadership and no earlier.
//! - So if C is committed at all, it is within the first n entries of every log that counts, by log matching. When the origin has
//!   handed out n, it was handed C, in whatever pieces, and knows it by origin and numbers. If C is open then, it is not there.
//!   A snapshot that covers n ends what is open as unknown, before anything else is handed out.
//!
//! It does not matter which of several questions is answered, how late, or how often: an answer is a statement about the leader's
//! log, and stays true. What is lost is asked for again. A barred run is dropped without a refusal: it may be a late duplicate of
//! one that is in the log.
//!
//! Invariants: a bar only moves up, and holds until this replica stops leading in this term. Who never asks costs nothing.
//! Must not know: who waits for what, and when a proposal is open for long.

use crate::core::{Core, Role};
use crate::ids::{ReplicaId, Term, Time};
use crate::message::Body;
use crate::output::ClosedForwards;
use crate::plant;
use crate::run::{Origin, Run};
use crate::sometimes;
use crate::spare::Emptied;

/// Proposers, each in one of its lives, whose forwarded proposals a leader closes. More than groups have members; who comes later
/// gets no answer in this term.
const BARS_MAX: usize = 256;

/// The forwarded proposals of one life of a replica, up to some number: numbers only grow, commands and membership changes each
/// have their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Forwards {
    /// The random number of the proposing replica's life, as in [`Origin`].
    pub start: u64,
    /// Commands with sequence numbers below this one.
    pub commands: u64,
    /// Membership changes with sequence numbers below this one.
    pub changes: u64,
}

/// Which forwarded runs a leader appends no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Bars(Vec<(ReplicaId, Forwards)>);

impl Emptied for Bars {
    const EMPTY: &'static Self = &Self(Vec::new());

    fn is_emptied(&self) -> bool {
        self.0.is_empty()
    }
}

impl Bars {
    /// Bars these, too. False when there is no room for one more proposer.
    fn raise(&mut self, from: ReplicaId, forwards: Forwards) -> bool {
        let bars = &mut self.0;
        match bars.iter().position(|(replica, bar)| (*replica, bar.start) == (from, forwards.start)) {
            Some(at) => {
                let bar = &mut bars[at].1;
                bar.commands = bar.commands.max(forwards.commands);
                bar.changes = bar.changes.max(forwards.changes);
            }
            None if bars.len() < BARS_MAX => bars.push((from, forwards)),
            None => return false,
        }
        true
    }

    fn has(&self, origin: Origin, is_change: bool, sequence: u64) -> bool {
        let bar = self.0.iter().find(|(replica, bar)| (*replica, bar.start) == (origin.replica, origin.start));
        bar.is_some_and(|(_, bar)| sequence < if is_change { bar.changes } else { bar.commands })
    }
}

impl Core {
    /// Asks the leader to append none of these, which were forwarded in this term, any more. The answer comes in
    /// [`crate::Output::closed`], unless it or the question is lost. False when there is no leader to ask.
    pub fn close_forwards(&mut self, now: Time, forwards: Forwards) -> bool {
        self.wake(now);
        match self.leader {
            Some(to) if self.role != Role::Leader => {
                self.send_early(to, Term::ZERO, Body::CloseForwards { term: self.term, forwards });
                true
            }
            _ => false,
        }
    }

    /// Whether this forwarded run is closed.
    pub(crate) fn is_barred_forward(&self, run: &Run) -> bool {
        if self.bars.is_emptied() || plant::is("closed-forward-appended") {
            return false;
        }
        // It was sent whole and is closed whole: by its first entry.
        let first = run.entries().next();
        let barred = first.is_some_and(|e| self.bars.has(run.origin(), run.has_config(), e.sequence));
        sometimes!(barred, "forwarded-run-comes-after-it-was-closed");
        barred
    }

    pub(crate) fn on_close_forwards(&mut self, from: ReplicaId, term: Term, forwards: Forwards) {
        // The leader of another term can't say what this one's has appended, nor what it will.
        let own = term == self.term || plant::is("closed-by-another-terms-leader");
        if self.role != Role::Leader || !own || !self.bars.raise(from, forwards) {
            self.dropped += 1;
            return;
        }
        let end = if plant::is("closed-at-the-commit-index") { self.commit } else { self.log.last().index };
        self.send_early(from, Term::ZERO, Body::ForwardsClosed { term, forwards, end });
    }

    pub(crate) fn on_forwards_closed(&mut self, closed: ClosedForwards) {
        self.outbox.rare.closed.push(closed);
    }
}
