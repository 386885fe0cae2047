//! Leader transfers and membership changes under way at one replica.
//!
//! A request that needs a leader waits for one. At the leader it goes to the core; at a follower a change travels as a
//! forwarded proposal and a transfer as a message, and the leader's refusal comes back with its reason.
//!
//! Invariants: a change is told to be in effect when this replica has put it into effect, and to be refused only when it
//! never will be; nothing is proposed twice, but by a replacement, whose steps say what they follow.

use crate::replace::Replace;
use crate::replica::Replica;
use crate::request::{Changed, Rare, Reply, Transferred};
use longboat_raft::{
    Body, ConfigChange, EntryKind, Index, Message, ProposeOptions, Proposed, RefusedForward, RefusedReason, RefusedWhy,
    ReplicaId, Role, Run, Term, Time, TransferAnswer, TransferOutcome, TransferRefused, plant,
};
use longboat_rsm::{RequestError, Stage};
use std::sync::Arc;

const NEVER: Time = Time(u64::MAX);
/// Requests of this kind that may be under way at one replica.
const RARE_MAX: usize = 1024;
/// Followers that may wait for the end of a transfer at one leader: each may ask again.
const ASKERS_MAX: usize = 256;
/// Heartbeats after which what may have been lost is said again.
const PATIENCE: u64 = 4;
/// The sequence numbers of changes have this bit, so that they are never those of commands, whose chunks count on without a gap.
const CHANGE_SEQUENCES: u64 = 1 << 63;

/// A leader transfer that somebody waits for here.
#[derive(Debug)]
struct Transfer {
    to: ReplicaId,
    /// This replica's core was asked.
    asked_here: bool,
    /// The number of the question that another replica was asked. An answer to an earlier one, to another leader or of
    /// another request for the same target, says nothing of this.
    question: Option<u64>,
    again: Time,
    reply: Reply<Transferred>,
}

/// A follower that asked its leader to hand over: under which number, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) replica: ReplicaId,
    pub(crate) question: u64,
    pub(crate) to: ReplicaId,
}

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stance {
    /// Waits for a leader, or for the end of a transfer.
    Waiting {
        /// When to try again, whatever happens.
        again: Time,
    },
    /// In this leader's log.
    Appended(Term, Index),
    /// On its way to the leader of this term, under this number. When to ask what became of it.
    Forwarded(Term, u64, Time),
    /// In effect, and the joint configuration that it went through is about to be left.
    Leaving,
}

/// A change that somebody waits for here.
#[derive(Debug)]
struct Change {
    change: ConfigChange,
    stance: Stance,
    reply: Reply<Changed>,
}

/// All of these of one replica.
#[derive(Debug, Default)]
pub(crate) struct RareState {
    transfers: Vec<Transfer>,
    /// Followers that asked this leader to hand over.
    askers: Vec<Asker>,
    changes: Vec<Change>,
    replaces: Vec<Replace>,
    sequences: u64,
    messages: Vec<Message>,
}

/// What a change's commit, or a later one, says of it.
pub(crate) enum Fate {
    Open,
    InEffect,
    Dropped,
    Unknown,
}

impl Stance {
    /// What the committed run says of a change in this stance that was proposed by `own`.
    pub(crate) fn fate(self, run: &Run, own: longboat_raft::Origin) -> Fate {
        match self {
            Self::Appended(term, index) if run.last() >= index => match run.first() <= index && run.term() == term {
                true => Fate::InEffect,
                // Log matching: another term at its place, so it is in no log that counts.
                false if run.first() <= index => Fate::Dropped,
                // Its place was passed without being handed out.
                false => Fate::Unknown,
            },
            // Terms never fall along the log: its own does not come after a later one.
            Self::Appended(term, _) if run.term() > term => Fate::Dropped,
            Self::Forwarded(term, sequence, _) => {
                let has = |run: &Run| run.entries().any(|e| e.kind == EntryKind::Config && e.sequence == sequence);
                if run.has_config() && run.origin() == own && has(run) {
                    Fate::InEffect
                } else if run.term() > term {
                    // Appended only by the leader of the term in which it was sent, before any entry of a later term.
                    Fate::Dropped
                } else {
                    Fate::Open
                }
            }
            _ => Fate::Open,
        }
    }
}

impl RareState {
    fn count(&self) -> usize {
        self.transfers.len() + self.changes.len() + self.replaces.len()
    }

    /// What kept changes waiting may be over: they are tried again on the next drive.
    fn try_changes(&mut self) {
        for c in self.changes.iter_mut().filter(|c| matches!(c.stance, Stance::Waiting { .. })) {
            c.stance = Stance::Waiting { again: Time::ZERO };
        }
    }

    fn forget_resolved(&mut self) {
        self.transfers.retain(|t| t.reply.is_open());
        self.changes.retain(|c| c.reply.is_open());
        self.replaces.retain(Replace::is_open);
    }

    fn deadline(&self) -> Time {
        let transfers = self.transfers.iter().map(|t| t.again.min(t.reply.deadline));
        let changes = self.changes.iter().map(|c| match c.stance {
            Stance::Waiting { again } | Stance::Forwarded(_, _, again) => again.min(c.reply.deadline),
            _ => c.reply.deadline,
        });
        transfers.chain(changes).chain(self.replaces.iter().map(Replace::deadline)).min().unwrap_or(NEVER)
    }
}

/// What a proposal's refusal means for a change.
pub(crate) enum Refusal {
    /// Nothing was decided: to be tried again.
    Later,
    Final(RequestError),
}

pub(crate) fn refusal_of(why: RefusedWhy, leader: Option<ReplicaId>) -> Refusal {
    match why {
        RefusedWhy::NoLeader | RefusedWhy::Transferring => Refusal::Later,
        RefusedWhy::ConfigChange(why) => Refusal::Final(RequestError::ConfigRefused(why)),
        RefusedWhy::NotLeader => Refusal::Final(RequestError::NotLeader { leader }),
        RefusedWhy::TermChanged { current } => Refusal::Final(RequestError::TermChanged { current }),
        _ => Refusal::Final(RequestError::Busy),
    }
}

/// What a leader's refusal means for a forwarded request.
pub(crate) fn forward_refusal_of(reason: RefusedReason) -> RequestError {
    match reason {
        RefusedReason::Busy => RequestError::Busy,
        RefusedReason::NotLeader => RequestError::Dropped,
        RefusedReason::ConfigChange(why) => RequestError::ConfigRefused(why),
    }
}

impl Replica {
    /// A client's request arrives.
    pub(crate) fn rare_request(&mut self, now: Time, rare: Rare) {
        self.core.wake(now);
        let mut state = self.rare.take().unwrap_or_default();
        let full = state.count() >= RARE_MAX;
        match rare {
            Rare::Transfer(_, mut reply) if full => reply.resolve(Err(RequestError::Busy)),
            Rare::Change(_, mut reply) | Rare::Replace(_, mut reply) if full => reply.resolve(Err(RequestError::Busy)),
            Rare::Transfer(to, reply) => {
                state.transfers.push(Transfer { to, asked_here: false, question: None, again: now, reply });
            }
            Rare::Change(change, reply) => {
                state.changes.push(Change { change, stance: Stance::Waiting { again: now }, reply });
            }
            Rare::Replace(what, reply) => state.replaces.push(Replace::new(what, now, reply)),
            Rare::Log(_) => unreachable!("the worker takes what concerns the log alone"),
            Rare::Prefer(replica, mut reply) => {
                self.core.set_preferred(replica);
                reply.resolve(Ok(()));
            }
        }
        self.rare = Some(state);
        self.rare_drive(now);
    }

    /// When these requests want a visit.
    pub(crate) fn rare_deadline(&self) -> Time {
        self.rare.as_ref().map_or(NEVER, |state| state.deadline())
    }

    /// How many are under way.
    pub(crate) fn rare_count(&self) -> usize {
        self.rare.as_ref().map_or(0, |state| state.count())
    }

    /// Moves every request on as far as it goes, and ends those that waited too long.
    pub(crate) fn rare_drive(&mut self, now: Time) {
        if self.rare_count() == 0 {
            return;
        }
        let mut state = self.rare.take().expect("just counted");
        for at in 0..state.transfers.len() {
            self.drive_transfer(now, &mut state, at);
        }
        for change in &mut state.changes {
            self.drive_change(now, change, &mut state.sequences);
        }
        for replace in &mut state.replaces {
            replace.drive(self, now, &mut state.sequences);
        }
        state.forget_resolved();
        self.rare = Some(state);
    }

    fn drive_transfer(&mut self, now: Time, state: &mut RareState, at: usize) {
        let transfer = &mut state.transfers[at];
        let (leader, to) = (self.core.leader(), transfer.to);
        if leader == Some(to) {
            let done = Transferred { leader: to, term: self.core.term() };
            return transfer.reply.resolve(Ok(done));
        }
        if self.core.role() == Role::Leader {
            if !transfer.asked_here {
                transfer.again = NEVER;
                self.stirred = true;
                match self.core.transfer_leader(now, to) {
                    Ok(()) => transfer.asked_here = true,
                    Err(why) => transfer.reply.resolve(Err(RequestError::TransferFailed(why.into()))),
                }
            }
        } else if let Some(leader) = leader
            && !transfer.asked_here
            && transfer.again <= now
        {
            transfer.again = self.patience_from(now);
            // Numbers that are unique over restarts, as those of questions for an index are.
            let question = *transfer.question.get_or_insert_with(|| self.next_question());
            state.messages.push(self.message(leader, Body::Transfer { to, question }));
        }
        let transfer = &mut state.transfers[at];
        let stage = if leader.is_none() { Stage::NoLeader } else { Stage::Quorum };
        transfer.reply.expire(now, stage, true);
    }

    fn message(&self, to: ReplicaId, body: Body) -> Message {
        Message { from: self.config.replica, to, term: Term::ZERO, body }
    }

    pub(crate) fn patience_from(&self, now: Time) -> Time {
        now.plus_nanos(PATIENCE * self.heartbeat_nanos())
    }

    fn drive_change(&mut self, now: Time, change: &mut Change, sequences: &mut u64) {
        // Not on every visit: a change that nobody can take yet would cost one visit after the other.
        if let Stance::Waiting { again } = change.stance
            && again <= now
        {
            match self.propose_change(now, &change.change, sequences) {
                Ok(stance) => change.stance = stance,
                Err(Refusal::Later) => change.stance = Stance::Waiting { again: self.patience_from(now) },
                Err(Refusal::Final(error)) => change.reply.resolve(Err(error)),
            }
        }
        let waits = matches!(change.stance, Stance::Waiting { .. });
        change.reply.expire(now, if waits { Stage::NoLeader } else { Stage::Quorum }, !waits);
    }

    /// Gives a change to the core.
    pub(crate) fn propose_change(
        &mut self,
        now: Time,
        change: &ConfigChange,
        sequences: &mut u64,
    ) -> Result<Stance, Refusal> {
        *sequences += 1;
        let sequence = CHANGE_SEQUENCES | *sequences;
        let options = ProposeOptions::default();
        let mut change = change.clone();
        self.shared.host.stores.fill_in(&mut change, self.core.membership());
        let proposed = self.core.propose_change(now, change, sequence, self.origin, options);
        // A core that refused has nothing new to put out.
        self.stirred |= proposed.is_ok();
        match proposed {
            Ok(Proposed::Appended { term, first, .. }) => Ok(Stance::Appended(term, first)),
            Ok(Proposed::Forwarded { .. }) => {
                let ask_at = now.plus_nanos(self.forward_patience_nanos());
                Ok(Stance::Forwarded(self.core.term(), sequence, ask_at))
            }
            Err(refused) => Err(refusal_of(refused.reason, self.core.leader())),
        }
    }

    /// The membership in effect, as an answer.
    pub(crate) fn changed(&self) -> Changed {
        let membership = Arc::new(self.core.membership().clone());
        Changed { change_id: membership.change_id, membership }
    }

    /// A run is committed, and what it changes is in effect.
    pub(crate) fn rare_committed(&mut self, run: &Run) {
        let Some(mut state) = self.rare.take() else { return };
        for c in &mut state.changes {
            match c.stance.fate(run, self.origin) {
                Fate::Open => {}
                Fate::InEffect => c.stance = Stance::Leaving,
                Fate::Dropped => c.reply.resolve(Err(RequestError::Dropped)),
                Fate::Unknown => c.reply.resolve(Err(RequestError::OutcomeUnknown)),
            }
        }
        self.resolve_in_effect(&mut state);
        state.replaces.iter_mut().for_each(|r| r.committed(run, self.origin));
        state.forget_resolved();
        self.rare = Some(state);
    }

    /// Tells of the changes that are in effect, but for those whose joint configuration is about to be left.
    fn resolve_in_effect(&self, state: &mut RareState) {
        let m = self.core.membership();
        if m.is_joint() && m.auto_leave {
            return;
        }
        for c in state.changes.iter_mut().filter(|c| c.stance == Stance::Leaving) {
            c.reply.resolve(Ok(self.changed()));
        }
    }

    /// The log was reset to a snapshot: what it covers may or may not have been applied.
    pub(crate) fn rare_skipped(&mut self, through: Index) {
        let Some(mut state) = self.rare.take() else { return };
        // The snapshot may cover the entry that leaves a joint configuration.
        self.resolve_in_effect(&mut state);
        for c in &mut state.changes {
            let lost = match c.stance {
                Stance::Appended(_, index) => index <= through,
                Stance::Forwarded(..) => true,
                _ => false,
            };
            if lost {
                c.reply.resolve(Err(RequestError::OutcomeUnknown));
            }
        }
        state.replaces.iter_mut().for_each(Replace::ask_again);
        state.forget_resolved();
        self.rare = Some(state);
    }

    /// The leader refused something forwarded. Returns whether it was one of these.
    pub(crate) fn rare_refused(&mut self, refused: &RefusedForward) -> bool {
        if refused.first_sequence & CHANGE_SEQUENCES == 0 {
            return false;
        }
        let Some(state) = &mut self.rare else { return true };
        let is_it = |stance: Stance| matches!(stance, Stance::Forwarded(_, s, _) if s == refused.first_sequence);
        let error = forward_refusal_of(refused.reason);
        for c in state.changes.iter_mut().filter(|c| is_it(c.stance)) {
            c.reply.resolve(Err(error.clone()));
        }
        for r in state.replaces.iter_mut().filter(|r| is_it(r.stance())) {
            r.refused(&error);
        }
        state.forget_resolved();
        true
    }

    /// As [`crate::tracker::Tracker::due_forwards`], of changes.
    pub(crate) fn rare_due_forwards(&mut self, now: Time, term: Term, again: Time) -> u64 {
        let Some(state) = &mut self.rare else { return 0 };
        let changes = state.changes.iter_mut().map(|c| &mut c.stance);
        let mut before = 0;
        for stance in changes.chain(state.replaces.iter_mut().filter_map(Replace::stance_mut)) {
            if let Stance::Forwarded(of, sequence, ask_at) = stance
                && *ask_at <= now
            {
                *ask_at = if *of == term { again } else { NEVER };
                before = if *of == term { before.max(*sequence + 1) } else { before };
            }
        }
        before
    }

    /// As [`crate::tracker::Tracker::closed`], of changes.
    pub(crate) fn rare_closed(&mut self, term: Term, before: u64) {
        let Some(state) = &mut self.rare else { return };
        let is_it = |stance: Stance| matches!(stance, Stance::Forwarded(t, s, _) if t == term && s < before);
        for c in state.changes.iter_mut().filter(|c| is_it(c.stance)) {
            c.reply.resolve(Err(RequestError::Dropped));
        }
        for r in state.replaces.iter_mut().filter(|r| is_it(r.stance())) {
            r.refused(&RequestError::Dropped);
        }
        state.forget_resolved();
    }

    /// The answer to a question for an index came. Returns whether it was asked for one of these.
    pub(crate) fn rare_read_ready(&mut self, context: u64, index: Option<Index>) {
        if let Some(state) = &mut self.rare {
            state.replaces.iter_mut().for_each(|r| r.read_ready(context, index));
        }
    }

    /// A transfer that this leader was asked for has ended.
    pub(crate) fn rare_transfer_ended(&mut self, to: ReplicaId, outcome: TransferOutcome) {
        let term = self.core.term();
        let own = self.config.replica;
        let leads = self.core.leader() == Some(to);
        let Some(state) = &mut self.rare else { return };
        for t in state.transfers.iter_mut().filter(|t| t.to == to && t.asked_here) {
            t.reply.resolve(match outcome {
                TransferOutcome::Done if leads => Ok(Transferred { leader: to, term }),
                // Another term has begun meanwhile: the next leader is asked, if it is another one.
                TransferOutcome::Done => {
                    t.asked_here = false;
                    continue;
                }
                failed => Err(RequestError::TransferFailed(failed.into())),
            });
        }
        for Asker { replica, question, .. } in state.askers.extract_if(.., |asker| asker.to == to) {
            let body = Body::TransferAnswer { to, question, answer: TransferAnswer::Ended(outcome) };
            state.messages.push(Message { from: own, to: replica, term: Term::ZERO, body });
        }
        state.try_changes();
        state.forget_resolved();
    }

    /// A follower asks this replica to hand leadership over.
    pub(crate) fn asked_to_transfer(&mut self, now: Time, asker: Asker) {
        self.core.wake(now);
        let mut state = self.rare.take().unwrap_or_default();
        let Asker { replica, question, to } = asker;
        let answer = match self.core.transfer_leader(now, to) {
            Ok(()) if state.askers.contains(&asker) || state.askers.len() >= ASKERS_MAX => None,
            Ok(()) => {
                state.askers.push(asker);
                None
            }
            Err(TransferRefused::AlreadyLeader) => Some(TransferAnswer::Ended(TransferOutcome::Done)),
            Err(why) => Some(TransferAnswer::Refused(why)),
        };
        if let Some(answer) = answer {
            state.messages.push(self.message(replica, Body::TransferAnswer { to, question, answer }));
        }
        self.rare = Some(state);
    }

    /// The leader that was asked to hand over answers.
    pub(crate) fn transfer_answered(&mut self, now: Time, from: ReplicaId, asker: Asker, answer: TransferAnswer) {
        let Asker { question, to, .. } = asker;
        let term = self.core.term();
        let leader = self.core.leader();
        let still_leads = leader == Some(from);
        let patience = self.patience_from(now);
        let Some(state) = &mut self.rare else { return };
        let asked = |t: &&mut Transfer| t.question == Some(question) || plant::is("any-answer-answers-a-transfer");
        for t in state.transfers.iter_mut().filter(|t| t.to == to && !t.asked_here).filter(asked) {
            match answer {
                TransferAnswer::Ended(TransferOutcome::Done) if leader == Some(to) => {
                    t.reply.resolve(Ok(Transferred { leader: to, term }));
                }
                // In which term it leads is known here only once this replica follows it.
                TransferAnswer::Ended(TransferOutcome::Done) => t.again = patience,
                // Whoever leads now is asked as soon as it is known here.
                TransferAnswer::Refused(TransferRefused::NotLeader) => {
                    t.again = if still_leads { t.again } else { now };
                }
                TransferAnswer::Ended(failed) => t.reply.resolve(Err(RequestError::TransferFailed(failed.into()))),
                TransferAnswer::Refused(why) => t.reply.resolve(Err(RequestError::TransferFailed(why.into()))),
            }
        }
        state.forget_resolved();
    }

    /// Another leader is known, or none: whoever was asked may not answer any more.
    pub(crate) fn rare_leader_changed(&mut self, now: Time) {
        if let Some(state) = &mut self.rare {
            for t in state.transfers.iter_mut().filter(|t| !t.asked_here) {
                (t.again, t.question) = (now, None);
            }
            state.try_changes();
        }
    }

    /// Messages to send, made by these requests.
    pub(crate) fn rare_messages(&mut self) -> Vec<Message> {
        self.rare.as_mut().map(|state| std::mem::take(&mut state.messages)).unwrap_or_default()
    }

    /// Ends all: the replica stops. What waits was not proposed; what is under way may have been carried out.
    pub(crate) fn rare_fail(&mut self, queued: &RequestError, under_way: &RequestError) {
        let Some(mut state) = self.rare.take() else { return };
        for t in &mut state.transfers {
            t.reply.resolve(Err(under_way.clone()));
        }
        for c in &mut state.changes {
            let waits = matches!(c.stance, Stance::Waiting { .. });
            c.reply.resolve(Err(if waits { queued } else { under_way }.clone()));
        }
        for r in &mut state.replaces {
            r.fail(under_way);
        }
    }
}
