//! Forwarded proposals that are open for long: asks their leader what became of them, and ends those that were lost.
//!
//! A forwarded proposal is sent once. If it is lost although its leader goes on leading, no entry of a later term tells so. What
//! the transport did not take is known to be lost at once. For the rest this replica asks, an election timeout after it has
//! forwarded the oldest of them and again after each further one, whether they are in the leader's log; why the answer is exact is said
//! in `raft/src/forwards.rs`. While completions come in time nothing is sent.
//!
//! Invariants: what counts as lost here was not applied and never will be; an answer is used once the log through the end that it
//! names was handed out, and not before. Must not know: what the leader does about a question.

use crate::replica::Replica;
use longboat_raft::{ClosedForwards, Forwards, RefusedForward, Role, Time, plant, sometimes};
use longboat_rsm::RequestError;

impl Replica {
    /// How long what was forwarded may be open before its leader is asked.
    pub(crate) fn forward_patience_nanos(&self) -> u64 {
        self.core.shared_config().election_timeout_nanos
    }

    /// Asks about what has been open for long.
    pub(crate) fn ask_about_forwards(&mut self, now: Time) {
        if self.tracker.deadline() > now && self.rare_deadline() > now {
            return;
        }
        let (term, again) = (self.core.term(), now.plus_nanos(self.forward_patience_nanos()));
        let commands = self.tracker.get_mut().map_or(0, |tracker| tracker.due_forwards(now, term, again));
        let changes = self.rare_due_forwards(now, term, again);
        // What this term's leader has said already needs only to be handed out.
        let answered = self.closed.as_ref().is_some_and(|closed| closed.term == term);
        let nothing = commands == 0 && changes == 0;
        if nothing || answered || self.core.role() == Role::Leader || plant::is("lost-forward-not-asked-about") {
            return;
        }
        self.core.close_forwards(now, Forwards { start: self.origin.start, commands, changes });
    }

    /// The leader has answered.
    pub(crate) fn forwards_closed(&mut self, closed: ClosedForwards) {
        if closed.forwards.start != self.origin.start && !plant::is("closing-of-another-life") {
            return;
        }
        // An earlier answer of this term ends at an earlier place, and what it does not cover is asked for again.
        if self.closed.as_ref().is_none_or(|earlier| earlier.term < closed.term) {
            self.closed = Some(Box::new(closed));
        }
    }

    /// Ends what was closed, once the log that could hold it was handed out.
    pub(crate) fn settle_closed(&mut self) {
        let handed = self.core.handed();
        let is_over = |c: &mut Box<ClosedForwards>| c.end <= handed || plant::is("closed-before-it-was-handed");
        if let Some(ClosedForwards { term, forwards, .. }) = self.closed.take_if(is_over).map(|closed| *closed) {
            let lost = self.tracker.get_mut().is_some_and(|tracker| tracker.closed(term, forwards.commands));
            sometimes!(lost, "forwarded-chunk-lost");
            self.rare_closed(term, forwards.changes);
        }
    }

    /// A forwarded run did not leave this host.
    pub(crate) fn forward_not_sent(&mut self, refused: &RefusedForward) {
        if plant::is("unsent-forward-waits") || self.rare_refused(refused) {
            return;
        }
        if let Some(tracker) = self.tracker.get_mut() {
            tracker.refused(refused.first_sequence, &RequestError::Dropped);
        }
    }
}
