//! Seeing removed replicas off: when one may be told that it will never be needed again.
//!
//! A removed replica R may still be needed while somebody who stays does not know that its removal, the change at index c,
//! is committed: under the configuration that this one knows it may need R's vote, and R may have the longest log. So:
//!
//! A leader's `Empty` entry has as its sequence number the change id s in effect at the leader when it was appended. In
//! effect means committed there, so every append that carries this entry k carries a commit index of at least s, and whoever
//! has k durably saved that commit index with it, or a higher one (the commit index rides in the frame of its entries). That
//! holds for entries k that came from a later leader too: the first leader after this one that has k got it from this one,
//! knows that s is committed, and its appends say so; and so on by induction. A snapshot that covers k covers s.
//!
//! Once k is committed, a majority of a configuration in which s is in effect has it. Every later leader has k, hence knows
//! s, and of any majority that is alive the one with the longest log has k, knows s, has it in effect before it campaigns,
//! and needs no vote of a replica that s or an earlier change removed. So with k committed, all that was removed through s
//! may go, logs, votes and all.
//!
//! Every replica learns this by handing k out. A leader that has only entries older than the newest change makes one. It tells
//! the replicas that it saw removed; whoever was not reached asks, by a pre-vote, as a replica that does not know of its
//! removal does anyway, and any member that knows answers.
//!
//! Invariant: nobody is told before such an entry is committed. Must not know: where data is, and how it is deleted.

use crate::core::{Core, Role};
use crate::ids::{Index, ReplicaId, Term};
use crate::message::Body;
use crate::output::Event;
use crate::plant;
use crate::run::{EntryKind, Origin, Run, RunBuilder};
use crate::sometimes;
use crate::spare::Emptied;

/// Removed replicas that are told without having asked; more have to ask.
const LEAVING_MAX: usize = 64;

/// They are told for the last time after so many heartbeats.
const BEATS_MAX: u32 = 64;

/// What is known of removed replicas, and of being one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Farewell {
    /// Whoever was removed through this change may go.
    settled: Index,
    /// The newest change that took effect here by its entry, not with a snapshot.
    seen: Index,
    /// Removed while this replica looked, and being told.
    leaving: Vec<ReplicaId>,
    /// Heartbeats since they were first told.
    beats: u32,
    /// Leader: the change id in its newest own empty entry.
    pub(crate) vouched: Index,
    /// This replica was told.
    pub(crate) told: bool,
}

impl Emptied for Farewell {
    const EMPTY: &'static Self = &Self {
        settled: Index::ZERO,
        seen: Index::ZERO,
        leaving: Vec::new(),
        beats: 0,
        vouched: Index::ZERO,
        told: false,
    };

    fn is_emptied(&self) -> bool {
        self == Self::EMPTY
    }
}

impl Core {
    /// A membership took effect: those who are gone from it are to be told, in time.
    pub(crate) fn note_leaving(&mut self, gone: &[ReplicaId]) {
        if !self.membership.removed.is_empty() {
            self.farewell.seen = self.membership.change_id;
        }
        if self.config.see_off_removed && !gone.is_empty() {
            let room = LEAVING_MAX - self.farewell.leaving.len().min(LEAVING_MAX);
            let others = gone.iter().filter(|r| **r != self.id);
            self.farewell.leaving.extend(others.take(room).copied());
        }
    }

    /// A run of one entry is handed out: it may be a leader's empty one, which vouches for a change.
    pub(crate) fn learn_settled(&mut self, run: &Run) {
        if let Some(entry) = run.entries().next()
            && entry.kind == EntryKind::Empty
            && entry.sequence > self.farewell.settled.0
        {
            self.farewell.settled = Index(entry.sequence);
            self.farewell.beats = 0;
            self.tell_leaving();
        }
    }

    /// Whether this replica will hear that all who were removed so far may go, as it has the last change from the log: the entry that
    /// says so comes behind. With a snapshot both may have come.
    pub fn will_hear_who_may_go(&self) -> bool {
        self.config.see_off_removed && self.farewell.seen >= self.membership.change_id
    }

    /// Whether all who were removed so far may go, logs, votes and all: whoever stays knows of it for good. Before that, members who
    /// have the last change and do not know that it is committed may need a majority of those before it.
    pub fn removed_may_go(&self) -> bool {
        self.farewell.settled >= self.membership.change_id || plant::is("removed-told-too-early")
    }

    /// Leader: tells those who leave, after 0, 1, 2, 4 .. heartbeats: messages get lost, and answers there are none.
    fn tell_leaving(&mut self) {
        if self.role != Role::Leader || self.farewell.leaving.is_empty() || !self.removed_may_go() {
            return;
        }
        let beats = self.farewell.beats;
        self.farewell.beats += 1;
        if beats.is_power_of_two() || beats == 0 {
            let (change, leaving) = (self.membership.change_id, std::mem::take(&mut self.farewell.leaving));
            leaving.iter().for_each(|to| self.send_farewell(*to, change));
            if beats < BEATS_MAX {
                self.farewell.leaving = leaving;
            }
        }
    }

    fn send_farewell(&mut self, to: ReplicaId, change: Index) {
        self.send_held(to, Body::Removed { change });
        self.outbox.held.last_mut().expect("just pushed").term = Term::ZERO;
    }

    /// A replica asks for a vote. If it was removed and may go, that is the answer, and its term and log are of no concern.
    pub(crate) fn sees_off(&mut self, from: ReplicaId) -> bool {
        let goes = self.membership.removed.contains(&from) && self.removed_may_go();
        if goes {
            sometimes!("removed-replica-asks-and-is-told");
            self.send_farewell(from, self.membership.change_id);
        }
        goes
    }

    /// Leader: makes the entry after which the removed may go, if the group's last change has none, and tells them. Looked
    /// at once per heartbeat.
    pub(crate) fn vouch_for_removals(&mut self) {
        let change = self.membership.change_id;
        let due = self.config.see_off_removed
            && self.farewell.vouched < change
            && !self.membership.removed.is_empty()
            && !self.membership.is_joint()
            && self.pending_change <= self.handout.handed
            && self.refuses_change().is_none();
        if due {
            self.append_empty();
        }
        self.tell_leaving();
    }

    /// Appends an entry that means nothing to state machines and vouches for the membership in effect.
    pub(crate) fn append_empty(&mut self) {
        let change = self.membership.change_id;
        if self.farewell.vouched != change {
            self.farewell.vouched = change;
        }
        let mut empty = RunBuilder::new();
        empty.push(EntryKind::Empty, change.0, b"");
        self.append_own(empty, Origin { replica: self.id, start: 0 });
    }

    /// A leader whose own removal took effect hands over, so that the others need not wait for an election timeout: to
    /// whoever has most of the log.
    pub(crate) fn hand_over(&mut self) {
        if !self.config.see_off_removed {
            return;
        }
        let may = |p: &&crate::Progress| {
            p.active && self.membership.voters.contains(&p.id) && !self.membership.is_witness(p.id)
        };
        if let Some(heir) = self.peers.iter().filter(may).max_by_key(|p| p.matched).map(|p| p.id) {
            self.send_held(heir, Body::TimeoutNow);
        }
    }

    /// Whether this replica, hearing no leader, asks whether it was removed for good. Those who may campaign do it by that.
    pub(crate) fn may_ask_to_go(&self) -> bool {
        let known = self.membership.voters.iter().any(|v| *v != self.id);
        self.config.see_off_removed && known && !self.farewell.told && (!self.is_voter || self.is_barred())
    }

    /// Asks the voters by a pre-vote, which changes nothing there. The answers of interest come from those who know that this
    /// replica may go. But if it was removed and a majority would vote for it, then the others have no leader, and maybe can't
    /// elect one of their own: a witness may have entries that this replica sent it before its removal took effect, and nobody
    /// else. So it leads once more, until they know what is committed.
    pub(crate) fn ask_to_go(&mut self) {
        if self.membership.removed.contains(&self.id) && self.could_campaign() {
            self.become_pre_candidate();
        } else {
            self.ask_for_votes(true, false);
        }
    }

    pub(crate) fn on_removed(&mut self, change: Index) {
        // Said of a membership that this replica knows, in which it is a member, it is not true.
        if self.membership.contains(self.id) && change <= self.membership.change_id {
            self.dropped += 1;
            return;
        }
        if self.farewell.told {
            return;
        }
        if self.role != Role::Follower {
            self.become_follower(self.term, None);
        }
        self.farewell.told = true;
        self.asked_to_help = false;
        self.outbox.rare.events.push(Event::Removed { change });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_nobody_left_and_that_was_not_told_keeps_nothing_of_it() {
        assert!(Farewell::default().is_emptied());
        assert!(!Farewell { told: true, ..Farewell::default() }.is_emptied());
        assert!(!Farewell { leaving: vec![ReplicaId(1)], ..Farewell::default() }.is_emptied());
    }
}
