//! Handing leadership over (thesis section 3.10): because somebody asks for it, or because another replica is preferred.
//!
//! The leader takes no proposals meanwhile, completes the target's log, and tells the target to campaign at once. What
//! becomes of it is known when the next leader is: a leader that stepped down for its target waits for that.
//!
//! Invariants: one transfer at a time; each that was asked for ends with one [`Event::TransferEnded`]; a preference changes
//! no vote and no timeout, and waits longer after each attempt. Must not know: who asks, or why.

use crate::core::{Core, Role};
use crate::ids::{ReplicaId, Time};
use crate::message::Body;
use crate::output::{Event, TransferOutcome, TransferRefused};
use crate::plant;
use crate::progress::{Progress, ProgressState};
use crate::sometimes;
use crate::spare::Emptied;

/// A preferred replica is handed leadership when it lacks at most this many entries: what is missing is sent while
/// proposals wait, so it must be little.
const LAG_ENTRIES_MAX: u64 = 1024;
/// The wait between two attempts to hand leadership to the preferred replica grows to 2 to this power election timeouts.
const BACKOFF_DOUBLINGS_MAX: u32 = 6;

/// The state of handing over, besides who the target is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handover {
    /// The target was told to campaign.
    hurried: bool,
    /// Nobody asked: the target is the preferred replica.
    by_preference: bool,
    /// This replica stepped down, maybe for this target: the next leader tells.
    pub(crate) awaited: Option<ReplicaId>,
    /// No attempt to hand over by preference before this moment.
    not_before: Time,
    /// Such attempts in a row, each soon after the one before.
    attempts: u32,
    /// When the last one began.
    last_attempt: Time,
}

impl Emptied for Handover {
    const EMPTY: &'static Self = &Self {
        hurried: false,
        by_preference: false,
        awaited: None,
        not_before: Time::ZERO,
        attempts: 0,
        last_attempt: Time::ZERO,
    };

    fn is_emptied(&self) -> bool {
        self == Self::EMPTY
    }
}

impl Core {
    /// Hands leadership to `to`, a voter, as soon as its log is complete. Proposals are refused meanwhile. Given up after
    /// one election timeout. [`Event::TransferEnded`] tells what became of it, once; asking again for the same target
    /// while the transfer is under way begins no other.
    ///
    /// # Errors
    /// Why it is not begun.
    pub fn transfer_leader(&mut self, now: Time, to: ReplicaId) -> Result<(), TransferRefused> {
        self.wake(now);
        if self.role != Role::Leader {
            return Err(TransferRefused::NotLeader);
        }
        if to == self.id {
            return Err(TransferRefused::AlreadyLeader);
        }
        if !self.membership.is_voter(to) {
            return Err(TransferRefused::NotAVoter(to));
        }
        if self.membership.is_witness(to) {
            return Err(TransferRefused::Witness(to));
        }
        match self.transferee {
            Some(target) if target == to => {
                self.handover.by_preference = false;
                return Ok(());
            }
            // Who asks goes before who is preferred.
            Some(other) if !self.handover.by_preference => return Err(TransferRefused::Busy(other)),
            _ => {}
        }
        self.begin_transfer(to, false);
        Ok(())
    }

    /// Gives up a transfer that is under way, as if its time were over: for an owner that thought better of it, or that
    /// wants another target.
    pub fn give_up_transfer(&mut self, now: Time) {
        self.wake(now);
        self.transfer_times_out();
    }

    /// Which replica is to lead when it can, from now on.
    pub fn set_preferred(&mut self, replica: Option<ReplicaId>) {
        std::sync::Arc::make_mut(&mut self.config).preferred = replica;
        (self.handover.not_before, self.handover.attempts) = (self.now, 0);
        self.stir();
    }

    fn begin_transfer(&mut self, to: ReplicaId, by_preference: bool) {
        self.transferee = Some(to);
        (self.handover.hurried, self.handover.by_preference) = (false, by_preference);
        // The time to do it in is one election timeout from here.
        self.election_base = self.now;
        self.dirty = true;
        self.hurry_transferee();
    }

    /// The target of a transfer campaigns as soon as its log is complete.
    pub(crate) fn hurry_transferee(&mut self) {
        if let Some(to) = self.transferee
            && let Some(at) = self.peer(to)
            && (self.peers[at].matched == self.log.last().index || plant::is("transfer-to-a-laggard"))
        {
            self.handover.hurried = true;
            self.send_held(to, Body::TimeoutNow);
        }
    }

    /// The time for a transfer is over, and this replica still leads.
    pub(crate) fn transfer_times_out(&mut self) {
        let Some(to) = self.transferee else {
            return;
        };
        let matched = self.peer(to).map_or(crate::Index::ZERO, |at| self.peers[at].matched);
        sometimes!("transfer-timed-out");
        self.end_transfer(match self.handover.hurried {
            true => TransferOutcome::TimedOut,
            false => TransferOutcome::TooFarBehind { matched, last: self.log.last().index },
        });
    }

    /// The transfer under way, if there is one, came to this.
    pub(crate) fn end_transfer(&mut self, outcome: TransferOutcome) {
        if let Some(to) = self.transferee.take() {
            self.outbox.rare.events.push(Event::TransferEnded { to, outcome });
        }
    }

    /// This replica stops leading, for a later term or not.
    pub(crate) fn transfer_loses_its_leader(&mut self, for_later_term: bool) {
        match self.transferee {
            // Most likely for its target. Who leads in the later term tells.
            Some(to) if for_later_term => (self.handover.awaited, self.transferee) = (Some(to), None),
            _ => self.end_transfer(TransferOutcome::LostLeadership),
        }
    }

    /// After stepping down: another replica leads, or none was heard of for an election timeout.
    pub(crate) fn transfer_is_decided(&mut self, leader: Option<ReplicaId>) {
        if let Some(to) = self.handover.get_mut().and_then(|handover| handover.awaited.take()) {
            let outcome = match leader {
                Some(leader) if leader == to => TransferOutcome::Done,
                Some(_) => TransferOutcome::LostLeadership,
                None => TransferOutcome::TimedOut,
            };
            self.outbox.rare.events.push(Event::TransferEnded { to, outcome });
        }
    }

    /// A new leader gives itself, and a preferred replica that joins or restarts, time to settle.
    pub(crate) fn prefer_later(&mut self) {
        // Without a preference there is nothing to put off, and one that is set later begins its own time.
        if self.config.preferred.is_some() {
            let settle = self.now.plus_nanos(self.config.election_timeout_nanos);
            self.handover.not_before = self.handover.not_before.max(settle);
        }
    }

    /// Whether the replica could lead at once.
    fn can_take_over(&self, to: ReplicaId) -> bool {
        let last = self.log.last().index.0;
        let is_able = |p: &Progress| {
            let here = p.is_here(self.config.check_quorum);
            let near = here && p.state == ProgressState::Replicate && last - p.matched.0 <= LAG_ENTRIES_MAX;
            (near || plant::is("preferred-before-caught-up")) && !p.overloaded && !p.witness
        };
        self.membership.voters.contains(&to) && self.peers.iter().any(|p| p.id == to && is_able(p))
    }

    /// Hands leadership to the preferred replica if it can take it and nothing is under way that this would hurt. Looked at
    /// once per heartbeat.
    pub(crate) fn heed_preference(&mut self) {
        let Some(to) = self.config.preferred.filter(|to| *to != self.id) else {
            return;
        };
        let quiet = self.transferee.is_none()
            && self.now >= self.handover.not_before
            && self.pending_change <= self.handout.handed
            && !self.membership.is_joint()
            && self.log.term_at(self.commit) == Some(self.term);
        if !quiet || !self.can_take_over(to) {
            return;
        }
        // Each attempt that follows soon on another waits twice as long: whatever sent leadership back, a target that does
        // not win or another's preference, is not helped by trying faster.
        let timeout = self.config.election_timeout_nanos;
        let handover = &mut self.handover;
        if self.now.nanos_since(handover.last_attempt) > timeout.saturating_mul(4 << BACKOFF_DOUBLINGS_MAX) {
            handover.attempts = 0;
        }
        handover.attempts = (handover.attempts + 1).min(BACKOFF_DOUBLINGS_MAX);
        handover.last_attempt = self.now;
        if !plant::is("preferred-without-back-off") {
            handover.not_before = self.now.plus_nanos(timeout.saturating_mul(1 << handover.attempts));
        }
        sometimes!("preferred-replica-takes-over");
        self.begin_transfer(to, true);
    }
}

#[cfg(feature = "model")]
impl Core {
    /// As [`Core::hash_timeless`] says. When a preference may be tried again is left out: no model has one.
    pub(crate) fn hash_handover<H: std::hash::Hasher>(&self, handover: &Handover, state: &mut H) {
        use std::hash::Hash as _;
        let Handover { hurried, by_preference, awaited, not_before: _, attempts: _, last_attempt: _ } = handover;
        (hurried, by_preference, awaited).hash(state);
    }
}
