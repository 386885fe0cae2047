//! Proposals: to the log of a leader, from a follower to the leader, or back to who made them.
//!
//! Invariant: one membership change at a time is on its way, and a leader proposes one only with every earlier one in
//! effect. Whatever is refused was not appended and never will be.

use crate::changer::{ChangeError, ConfigChange};
use crate::core::{ChangeChecks, Core, Role};
use crate::ids::{Index, ReplicaId, Term, Time};
use crate::message::{Body, RefusedReason};
use crate::output::{Proposed, Refused, RefusedWhy};
use crate::run::{EntryKind, Origin, Run, RunBuilder};

/// Bytes of log in memory beyond which proposals are refused: what is applied can be dropped from memory, so this much
/// means that the majority, the disk or the state machine is far behind.
const UNAPPLIED_BYTES_MAX: usize = 64 << 20;

impl Core {
    /// Proposes a chunk of commands: appended by a leader, sent to the leader by a follower.
    ///
    /// # Errors
    /// With the chunk, when neither is possible; then it is certain that nothing of it was or will be appended.
    pub fn propose(&mut self, now: Time, chunk: RunBuilder, origin: Origin) -> Result<Proposed, Refused> {
        self.wake(now);
        assert!(!chunk.is_empty(), "proposing nothing");
        if self.role == Role::Leader {
            return match self.refuses_entries() {
                Some(reason) => Err(Refused { reason, chunk }),
                None => {
                    let count = chunk.count() as u32;
                    let first = self.append_own(chunk, origin);
                    Ok(Proposed::Appended { term: self.term, first, count })
                }
            };
        }
        match self.leader {
            Some(to) => {
                // The term tells which leader it is meant for; the place in the log is that leader's to give.
                let run = chunk.seal(self.term, Index::ZERO, origin);
                self.send_early(to, Term::ZERO, Body::Forward(run));
                Ok(Proposed::Forwarded { to })
            }
            None => Err(Refused { reason: RefusedWhy::NoLeader, chunk }),
        }
    }

    /// Proposes a membership change, like a command of its own.
    ///
    /// # Errors
    /// When it can't be made now, or at all.
    pub fn propose_change(
        &mut self,
        now: Time,
        change: ConfigChange,
        sequence: u64,
        origin: Origin,
    ) -> Result<Proposed, Refused> {
        self.wake(now);
        let refused = |reason| Err(Refused { reason, chunk: RunBuilder::new() });
        let mut chunk = RunBuilder::new();
        chunk.push(EntryKind::Config, sequence, &change.encode());
        if self.role != Role::Leader {
            return match self.leader {
                Some(_) => self.propose(now, chunk, origin),
                None => refused(RefusedWhy::NoLeader),
            };
        }
        if let Some(reason) = self.refuses_entries() {
            return refused(reason);
        }
        match self.check_change(&change) {
            Err(why) => refused(RefusedWhy::ConfigChange(why)),
            Ok(()) => {
                let first = self.append_own(chunk, origin);
                self.pending_change = first;
                Ok(Proposed::Appended { term: self.term, first, count: 1 })
            }
        }
    }

    /// Why this leader takes no entries at present.
    fn refuses_entries(&mut self) -> Option<RefusedWhy> {
        if self.transferee.is_some() {
            return Some(RefusedWhy::Transferring);
        }
        // Removed, it leads only until its followers have learned of that.
        if !self.membership.contains(self.config.replica) {
            return Some(RefusedWhy::NoLeader);
        }
        if self.log.cached_bytes() > UNAPPLIED_BYTES_MAX {
            self.trim();
            if self.log.cached_bytes() > UNAPPLIED_BYTES_MAX.max(self.config.log_cache_bytes_max) {
                return Some(RefusedWhy::Busy);
            }
        }
        None
    }

    fn check_change(&self, change: &ConfigChange) -> Result<(), ChangeError> {
        let checks = self.config.change_checks;
        if checks == ChangeChecks::Nothing {
            return Ok(());
        }
        if self.pending_change > self.handout.handed {
            return Err(ChangeError::InFlight);
        }
        match (checks, self.membership.is_joint(), change.leaves_joint()) {
            (ChangeChecks::Full, ..) => self.membership.check(change),
            (_, true, false) => Err(ChangeError::AlreadyJoint),
            (_, false, true) => Err(ChangeError::NotJoint),
            _ => Ok(()),
        }
    }

    /// Proposals of another replica.
    pub(crate) fn on_forward(&mut self, from: ReplicaId, run: &Run) {
        match self.refuses_forward(run) {
            Some(reason) => {
                let first_sequence = run.entries().next().map_or(0, |e| e.sequence);
                let body = Body::ForwardRefused { first_sequence, count: run.count() as u32, reason };
                self.send_early(from, Term::ZERO, body);
            }
            None => {
                let first = self.log.last().index.next();
                if run.has_config() {
                    self.pending_change = first;
                }
                self.append_own_run(run.rebase(self.term, first));
            }
        }
    }

    fn refuses_forward(&mut self, run: &Run) -> Option<RefusedReason> {
        // Appended only by the leader of the very term in which it was sent: so, once an entry of a later term is committed,
        // whoever sent it knows that it never will be.
        if self.role != Role::Leader || run.term() != self.term {
            return Some(RefusedReason::NotLeader);
        }
        match self.refuses_entries() {
            None => {}
            Some(RefusedWhy::NoLeader) => return Some(RefusedReason::NotLeader),
            Some(_) => return Some(RefusedReason::Busy),
        }
        if !run.has_config() {
            return None;
        }
        // A change travels alone.
        let entry = run.entries().next().filter(|_| run.count() == 1);
        let change = entry.and_then(|e| ConfigChange::decode(e.payload).ok());
        let fine = change.is_some_and(|change| self.check_change(&change).is_ok());
        (!fine).then_some(RefusedReason::ConfigChange)
    }

    /// Leaves a joint configuration that is to be left automatically, once it is in effect and nothing else is pending.
    ///
    /// Proposing it sets `pending_change`, so it is not proposed twice.
    pub(crate) fn maybe_leave_joint(&mut self) {
        let due = self.role == Role::Leader
            && self.membership.auto_leave
            && self.membership.is_joint()
            && self.pending_change <= self.handout.handed
            && self.transferee.is_none();
        if due {
            let mut chunk = RunBuilder::new();
            chunk.push(EntryKind::Config, 0, &ConfigChange::leave_joint().encode());
            let origin = Origin { replica: self.config.replica, start: 0 };
            self.pending_change = self.append_own(chunk, origin);
        }
    }
}
