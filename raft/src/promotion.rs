//! Non-voting members that become voters once they have caught up (thesis section 4.2.1).
//!
//! Which ones, and in whose place, is in the membership: so whichever replica leads carries it out, and one that takes over
//! goes on. A member is caught up when it received in less than an election timeout all that the leader had at the start of
//! a *round*: what gathered meanwhile takes it no longer, and adding it holds up commits for less than electing would.
//!
//! Invariants: a promotion is proposed like any other change, with none under way, and never twice: until it is in effect it
//! is under way, and afterwards the membership does not ask for it any more. Must not know: who asked for it.

use crate::changer::{Change, ChangeKind, ConfigChange, Promotion};
use crate::core::Core;
use crate::ids::{Index, ReplicaId, Time};
use crate::plant;
use crate::progress::ProgressState;
use crate::run::{EntryKind, Origin, RunBuilder};
use crate::sometimes;
use crate::spare::{Emptied, Spare};

/// A member's round: to receive what the leader had at `since`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    learner: ReplicaId,
    target: Index,
    since: Time,
}

/// The rounds of a leader's members that are to become voters. Few groups have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rounds(Vec<Round>);

impl Emptied for Rounds {
    const EMPTY: &'static Self = &Self(Vec::new());

    fn is_emptied(&self) -> bool {
        self.0.is_empty()
    }
}

impl Core {
    /// Proposes one promotion that is due. Looked at once per heartbeat.
    pub(crate) fn promote_who_caught_up(&mut self) {
        if self.membership.promotions.is_empty() {
            self.rounds = Spare::default();
            return;
        }
        let promotions = &self.membership.promotions;
        if let Some(rounds) = self.rounds.get_mut() {
            rounds.0.retain(|r| promotions.contains_key(&r.learner));
        }
        let wanted: Vec<(ReplicaId, Option<ReplicaId>)> = promotions.iter().map(|(l, r)| (*l, *r)).collect();
        for (learner, replaces) in wanted {
            if self.has_caught_up(learner) && self.promote(learner, replaces) {
                return;
            }
        }
    }

    /// Whether the member ended a round in time. Begins the next one.
    fn has_caught_up(&mut self, learner: ReplicaId) -> bool {
        let Some(at) = self.peer(learner) else {
            return false;
        };
        let (now, last) = (self.now, self.log.last().index);
        let peer = &self.peers[at];
        let here = peer.is_here(self.config.check_quorum) && peer.state == ProgressState::Replicate;
        let Some(round) = self.rounds.0.iter_mut().find(|r| r.learner == learner) else {
            self.rounds.0.push(Round { learner, target: last, since: now });
            return plant::is("promoted-before-caught-up");
        };
        if peer.matched < round.target || !here {
            return plant::is("promoted-before-caught-up");
        }
        let took = now.nanos_since(round.since);
        (round.target, round.since) = (last, now);
        took < self.config.election_timeout_nanos
    }

    fn promote(&mut self, learner: ReplicaId, replaces: Option<ReplicaId>) -> bool {
        // Where it lives is not said: what is recorded when the change takes effect stays.
        let mut change = ConfigChange::add_voter(learner, Default::default());
        // Whoever was to be replaced may be gone, or vote no more, by now.
        if let Some(old) = replaces.filter(|old| self.membership.voters.contains(old)) {
            let (kind, promotion) = (ChangeKind::Remove, Promotion::Never);
            change.changes.push(Change { kind, replica: old, member: Default::default(), promotion });
        }
        if self.refuses_change().is_some() || self.check_change(&change).is_err() {
            return false;
        }
        let mut chunk = RunBuilder::new();
        chunk.push(EntryKind::Config, 0, &change.encode());
        sometimes!("learner-promoted-by-itself");
        self.pending_change = self.append_own(chunk, Origin { replica: self.id, start: 0 });
        true
    }
}

#[cfg(feature = "model")]
impl Core {
    /// As [`Core::hash_timeless`] says: of a round's time only whether it is in time.
    pub(crate) fn hash_rounds<H: std::hash::Hasher>(&self, rounds: &Rounds, state: &mut H) {
        use std::hash::Hash as _;
        for Round { learner, target, since } in &rounds.0 {
            (learner, target, self.now.nanos_since(*since) < self.config.election_timeout_nanos).hash(state);
        }
    }
}
