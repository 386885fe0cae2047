//! Proposals: to the log of a leader, from a follower to the leader, or back to who made them.
//!
//! Invariant: one membership change at a time is on its way, and a leader proposes one only with every earlier one in
//! effect. Whatever is refused was not appended and never will be.

use crate::changer::{ChangeError, ConfigChange};
use crate::config::ChangeChecks;
use crate::core::{Core, Role};
use crate::ids::{Index, ReplicaId, Term, Time};
use crate::message::{Body, RefusedReason};
use crate::output::{ProposeOptions, Proposed, Refused, RefusedWhy};
use crate::plant;
use crate::run::{EntryKind, Origin, Run, RunBuilder};
use crate::sometimes;

impl Core {
    /// Proposes a chunk of commands: appended by a leader, sent to the leader by a follower.
    ///
    /// # Errors
    /// With the chunk, when neither is possible; then it is certain that nothing of it was or will be appended.
    pub fn propose(
        &mut self,
        now: Time,
        chunk: RunBuilder,
        origin: Origin,
        options: ProposeOptions,
    ) -> Result<Proposed, Refused> {
        self.wake(now);
        assert!(!chunk.is_empty(), "proposing nothing");
        // What is applied here completes requests, and a witness applies nothing.
        if self.is_witness {
            return Err(Refused { reason: RefusedWhy::Witness, chunk });
        }
        self.send_or_append(chunk, origin, options)
    }

    fn send_or_append(
        &mut self,
        mut chunk: RunBuilder,
        origin: Origin,
        options: ProposeOptions,
    ) -> Result<Proposed, Refused> {
        if let Some(reason) = self.refuses_options(options) {
            return Err(Refused { reason, chunk });
        }
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
        options: ProposeOptions,
    ) -> Result<Proposed, Refused> {
        self.wake(now);
        let refused = |reason| Err(Refused { reason, chunk: RunBuilder::new() });
        let mut chunk = RunBuilder::new();
        chunk.push(EntryKind::Config, sequence, &change.encode());
        if self.role != Role::Leader {
            let sent = self.send_or_append(chunk, origin, options);
            return sent.map_err(|refused| Refused { chunk: RunBuilder::new(), ..refused });
        }
        if let Some(reason) = self.refuses_options(options).or_else(|| self.refuses_change()) {
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

    /// Why a proposal can't be treated as it asks to be.
    fn refuses_options(&self, options: ProposeOptions) -> Option<RefusedWhy> {
        if self.role != Role::Leader && !options.forward {
            return Some(RefusedWhy::NotLeader);
        }
        // Forwarded it carries this replica's term, and is appended in that one or not at all.
        let other = options.expected_term.is_some_and(|term| term != self.term) && !plant::is("expected-term-ignored");
        other.then_some(RefusedWhy::TermChanged { current: self.term })
    }

    /// Why this leader takes no entries at present.
    fn refuses_entries(&mut self) -> Option<RefusedWhy> {
        let change = self.refuses_change();
        if change.is_some() || self.overloaded || self.full {
            return change.or(Some(RefusedWhy::Busy));
        }
        None
    }

    /// Why this leader takes no membership change at present, whatever it is. A host whose log is full takes those: they
    /// may be what helps it.
    pub(crate) fn refuses_change(&mut self) -> Option<RefusedWhy> {
        if self.transferee.is_some() {
            sometimes!("proposal-during-a-transfer");
            return Some(RefusedWhy::Transferring);
        }
        // Removed, it leads only until its followers have learned of that.
        if !self.membership.contains(self.id) {
            return Some(RefusedWhy::NoLeader);
        }
        let bytes_max = self.config.unapplied_bytes_max;
        if self.log.cached_bytes() > bytes_max {
            self.trim();
            if self.log.cached_bytes() > bytes_max.max(self.config.log_cache_bytes_max) {
                return Some(RefusedWhy::Busy);
            }
        }
        None
    }

    pub(crate) fn check_change(&self, change: &ConfigChange) -> Result<(), ChangeError> {
        let checks = self.config.change_checks;
        if checks == ChangeChecks::Nothing {
            return Ok(());
        }
        if self.pending_change > self.handout.handed && !plant::is("two-changes-in-flight") {
            sometimes!("change-refused-while-another-is-under-way");
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
        // Nobody is told of a barred one: whoever asked for the bar knows what it means.
        if run.is_stripped() || self.is_barred_forward(run) {
            self.dropped += 1;
            return;
        }
        match self.refuses_forward(run) {
            Some(reason) => {
                sometimes!("forwarded-proposals-refused");
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
        let same_term = run.term() == self.term || plant::is("forward-of-another-term-appended");
        if self.role != Role::Leader || !same_term {
            return Some(RefusedReason::NotLeader);
        }
        let refused = if run.has_config() { self.refuses_change() } else { self.refuses_entries() };
        match refused {
            None => {}
            Some(RefusedWhy::NoLeader) => return Some(RefusedReason::NotLeader),
            Some(_) => return Some(RefusedReason::Busy),
        }
        if !run.has_config() {
            return None;
        }
        // A change travels alone.
        let entry = run.entries().next().filter(|_| run.count() == 1);
        let change = entry.and_then(|e| ConfigChange::decode(e.payload).ok()).ok_or(ChangeError::Malformed);
        change.and_then(|change| self.check_change(&change)).err().map(RefusedReason::ConfigChange)
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
            if plant::is("leave-joint-twice") {
                chunk.push(EntryKind::Config, 0, &ConfigChange::leave_joint().encode());
            }
            let origin = Origin { replica: self.id, start: 0 };
            self.pending_change = self.append_own(chunk, origin);
        }
    }
}
