//! Falling silent while there is nothing to do, and waking.
//!
//! A leader that has been idle for [`crate::CoreConfig::quiesce_after_nanos`], and whose followers all have its log and know its
//! commit index, asks them to fall silent ([`crate::Body::Quiesce`]). Who agrees stops its election timer. When all have agreed
//! the leader stops its heartbeats. From then on the group costs nothing, and its *hosts* prove each other's life: whoever owns
//! a core tells it when the host of its leader is suspected ([`Core::suspect_leader`]), when a replica has stopped
//! ([`Core::replica_gone`]), and wakes it ([`Core::wake`]) when two hosts differ about who is silent.
//!
//! Why no group is stuck by this. A replica is *awake* or *silent*. Whoever is awake speaks within bounded time, and goes on
//! until it is heard: a leader heartbeats, a voter that hears no leader asks for votes. And every message that is not an answer
//! wakes its addressee. So a group can only be stuck with all of its replicas silent, and what remains to be shown is that all
//! silent ones believe the same, or differ in what their hosts compare:
//! - A follower falls silent only for the leader of its term, in answer to a question of that leader; a leader only when
//!   everybody has answered the *same* question, by its number, and nothing happened since: any sign of activity ends the round.
//! - A question or an answer that was lost leaves the leader asking. It gives up after [`Core::patience`] and heartbeats, which
//!   wakes those that have agreed.
//! - A question that arrives late silences a follower of a leader that is awake: its next heartbeat wakes it. An answer that
//!   arrives late has the number of an earlier round, and does not count.
//! - A replica that restarts is awake. A leader that is replaced, stops or dies leaves followers silent in its term: then no
//!   silent leader of that term is at the other side, which is what hosts tell each other by the hash of (group, replica, term,
//!   leader) of their silent replicas. Members on suspected hosts are not asked: they are *lagging*, and the leader wakes when their
//!   host is back.
//! - One that joins, or is no voter, asks for no votes: it is heard by its leader alone, and that one goes on asking for it unless its
//!   host was suspected or had said that it does not run. Both are taken back by what that host's beats say, again and again.
//!
//! Nothing of this touches what raft's safety rests on: a silent replica keeps its term, vote and log. Before anybody falls silent its
//! commit index is durable, so that an idle group that loses power wakes with all its membership changes in effect.
//!
//! Must not know: hosts, beats, who is told what.

use crate::core::{Core, Role};
use crate::error::Violation;
use crate::ids::{Index, LogPos, ReplicaId, Time};
use crate::message::Body;
use crate::plant;
use crate::progress::ProgressState;
use crate::quorum::{self, VoteResult};
use crate::sometimes;
use crate::spare::{Emptied, Spare};

/// How far a replica is on the way to silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Timers run.
    #[default]
    Awake,
    /// Leader: the round's question is out, or waits for the commit index to be durable.
    Asking { since: Time },
    /// Follower: has agreed, and falls silent once its answer may leave.
    Agreeing,
    /// No timer, no message.
    Silent,
}

/// What a leader compares to tell whether anything has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Mark {
    last: Index,
    commit: Index,
    change_id: Index,
    reads: u64,
}

/// Members in whatever way of concern. Of most replicas at most times there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Lists {
    /// Leader: whom it asked in this round, and whether they have agreed.
    asked: Vec<(ReplicaId, bool)>,
    /// Leader: members that were left out of this round.
    lagging: Vec<ReplicaId>,
    /// Members on suspected hosts.
    suspected: Vec<ReplicaId>,
    /// Members that have stopped, by what their hosts said.
    gone: Vec<ReplicaId>,
}

impl Emptied for Lists {
    const EMPTY: &'static Self =
        &Self { asked: Vec::new(), lagging: Vec::new(), suspected: Vec::new(), gone: Vec::new() };

    fn is_emptied(&self) -> bool {
        self == Self::EMPTY
    }
}

/// One replica's part in its group's silence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quiet {
    pub(crate) phase: Phase,
    /// Leader: the number of its newest round. Follower: of the newest that it was asked about. Within one term.
    round: u64,
    mark: Mark,
    /// Leader: since when the mark is what it is.
    idle_since: Time,
    lists: Spare<Lists>,
    /// The commit index of the newest sealed hard state.
    sealed_commit: Index,
    /// The commit index is to be made durable, even if nothing else is.
    pub(crate) save_commit: bool,
}

impl Quiet {
    pub(crate) fn restored(saved_commit: Index) -> Self {
        Self { sealed_commit: saved_commit, ..Self::default() }
    }

    /// A hard state with this commit index was sealed.
    pub(crate) fn sealed(&mut self, commit: Index) {
        self.sealed_commit = commit;
        self.save_commit = false;
    }

    /// Another role or term: awake, and rounds are counted anew in a new term.
    pub(crate) fn reset(&mut self, new_term: bool, now: Time) {
        self.phase = Phase::Awake;
        self.idle_since = now;
        self.end_round();
        if new_term {
            self.round = 0;
        }
    }

    /// The leader's round is over, or of no use any more.
    fn end_round(&mut self) {
        if let Some(lists) = self.lists.get_mut() {
            (lists.asked, lists.lagging) = (Vec::new(), Vec::new());
            self.lists.shed();
        }
    }

    fn is_absent(&self, replica: ReplicaId) -> bool {
        self.lists.suspected.contains(&replica) || self.lists.gone.contains(&replica)
    }
}

/// What its owner tells it.
impl Core {
    /// Whether it has fallen silent: it wants no visit, sends nothing, and wakes by itself for nothing but a message or a request.
    pub fn is_quiet(&self) -> bool {
        self.quiet.phase == Phase::Silent
    }

    /// Whether it leads and is asking its followers to fall silent: they may have, and it may not yet.
    pub fn is_falling_quiet(&self) -> bool {
        matches!(self.quiet.phase, Phase::Asking { .. } | Phase::Agreeing)
    }

    /// Of a silent leader, the members that were left out, because their hosts were suspected or they had stopped.
    pub fn lagging(&self) -> &[ReplicaId] {
        &self.quiet.lists.lagging
    }

    /// Whether this member has stopped, by what its host said, and was not heard of since.
    pub fn is_gone(&self, replica: ReplicaId) -> bool {
        self.quiet.lists.gone.contains(&replica)
    }

    /// Wakes it, if it is silent: a leader heartbeats at once, a follower arms its election deadline.
    pub fn wake(&mut self, now: Time) {
        self.tell(now);
        self.stir();
    }

    /// The host of its leader is suspected. It forgets the leader, so that pre-votes pass at once, and campaigns within an
    /// election timeout, at a moment of its own.
    pub fn suspect_leader(&mut self, now: Time) {
        self.tell(now);
        if self.role != Role::Follower {
            return;
        }
        sometimes!(self.is_quiet(), "leaders-host-suspected-in-silence");
        self.stir();
        if !plant::is("suspected-leader-kept") {
            self.forget_leader();
        }
        // The leader's host was silent for an election timeout already: what is left to wait is the jitter.
        let base = self.config.election_timeout_nanos;
        self.election_base = self.now;
        self.election_timeout_nanos = self.rng.jittered(base).saturating_sub(base);
    }

    /// The host of a member is suspected, or is not any more. Members on suspected hosts are left out when the group falls silent; a
    /// leader that has left one out wakes when its host is back.
    pub fn set_suspected(&mut self, now: Time, replica: ReplicaId, suspected: bool) {
        self.tell(now);
        let at = self.quiet.lists.suspected.iter().position(|r| *r == replica);
        match (at, suspected) {
            (None, true) => self.quiet.lists.suspected.push(replica),
            (Some(at), false) => {
                self.quiet.lists.suspected.remove(at);
                if self.quiet.lists.lagging.contains(&replica) {
                    sometimes!("one-left-behind-is-back");
                    self.stir();
                }
            }
            _ => {}
        }
    }

    /// A member has stopped although its host lives, or so its host says: until it is heard of again the group does without it.
    pub fn replica_gone(&mut self, now: Time, replica: ReplicaId) {
        self.tell(now);
        if replica == self.id || !self.membership.contains(replica) {
            return;
        }
        if !self.quiet.lists.gone.contains(&replica) {
            let members = &self.membership;
            self.quiet.lists.gone.retain(|r| members.contains(*r));
            self.quiet.lists.gone.push(replica);
        }
        match self.role {
            Role::Leader => self.stir(),
            _ if self.leader == Some(replica) => self.suspect_leader(now),
            _ => {}
        }
    }
}

impl Core {
    /// Something is asked of this replica, or it was told something: if it was silent, or about to be, it is awake now.
    pub(crate) fn stir(&mut self) {
        let before = std::mem::take(&mut self.quiet.phase);
        if before == Phase::Awake {
            return;
        }
        sometimes!(before == Phase::Silent, "woken-from-silence");
        sometimes!(before != Phase::Silent, "woken-while-falling-silent");
        self.quiet.idle_since = self.now;
        self.quiet.end_round();
        if self.role != Role::Leader {
            // It has heard nothing for long, and that was agreed on: the timeout starts now.
            self.election_base = self.now;
            self.election_timeout_nanos = self.rng.jittered(self.config.election_timeout_nanos);
            return;
        }
        if before == Phase::Silent {
            // Nobody was asked for a sign of life meanwhile: whether a majority still follows is known an election timeout
            // from now, by answers that are yet to come.
            self.election_base = self.now;
            let id = self.id;
            self.peers.iter_mut().for_each(|p| p.active = p.id == id);
        }
        // Those that have agreed are silent until they hear of this.
        self.heartbeat_base = self.now;
        for at in 0..self.peers.len() {
            self.peers[at].nudge = true;
            self.send_heartbeat(at);
        }
    }

    /// A message came that makes sense.
    pub(crate) fn heard(&mut self, from: ReplicaId, body: &Body) {
        if !self.quiet.lists.gone.is_empty() {
            self.quiet.lists.gone.retain(|r| *r != from);
        }
        // Answers to what was asked before the silence may be late, and ask for nothing. Who sent them is either silent too, or
        // will say something else. What belongs to the falling silent itself decides on its own whether it wakes.
        let wakes = !matches!(
            body,
            Body::Quiesce { .. }
                | Body::QuiesceResponse { .. }
                | Body::HeartbeatResponse { .. }
                | Body::AppendAccepted { .. }
        );
        if wakes {
            self.stir();
        }
    }

    /// When a replica on the way to silence wants to be called; `None` while it is awake.
    pub(crate) fn quiet_deadline(&self) -> Option<Time> {
        match self.quiet.phase {
            Phase::Silent => Some(Time(u64::MAX)),
            Phase::Asking { since } => {
                let quorum_check = self.election_base.plus_nanos(self.config.election_timeout_nanos);
                Some(since.plus_nanos(self.patience()).min(quorum_check))
            }
            Phase::Awake | Phase::Agreeing => None,
        }
    }

    /// How long a leader waits for everybody's answer. Followers that have not agreed hear nothing meanwhile, so it is well
    /// below the smallest election timeout; but an answer may have to wait for a disk.
    fn patience(&self) -> u64 {
        (self.config.election_timeout_nanos / 2).max(self.config.heartbeat_interval_nanos)
    }

    /// A leader's heartbeat is due. Whether none is to be sent, because a round has begun instead or is under way.
    pub(crate) fn quiesces_instead(&mut self) -> bool {
        if self.config.quiesce_after_nanos == 0 {
            return false;
        }
        let (last, commit) = (self.log.last().index, self.commit);
        let mark = Mark { last, commit, change_id: self.membership.change_id, reads: self.reads.newest_round() };
        if mark != self.quiet.mark || !self.is_settled() {
            self.quiet.mark = mark;
            self.quiet.idle_since = self.now;
            return false;
        }
        self.now.nanos_since(self.quiet.idle_since) >= self.config.quiesce_after_nanos && self.ask_to_quiesce()
    }

    /// A round that is under way for too long is given up.
    pub(crate) fn advance_round(&mut self) -> bool {
        let Phase::Asking { since } = self.quiet.phase else {
            return false;
        };
        if self.now >= since.plus_nanos(self.patience()) {
            self.stir();
        }
        true
    }

    /// Whether this leader has nothing to do but to be there: no request, change, transfer or entry is on its way.
    fn is_settled(&self) -> bool {
        let last = self.log.last();
        self.role == Role::Leader
            && self.membership.is_voter(self.id)
            && !self.membership.is_joint()
            && !self.helps_out
            && self.transferee.is_none()
            && self.reads.is_idle()
            && last.term == self.term
            // Then all is committed, durable and handed out.
            && self.handout.applied == last.index
            && !self.has_plans()
    }

    /// Whether it is to promote a learner or to hand leadership over, and those whom that concerns are here.
    fn has_plans(&self) -> bool {
        let here = |replica: &ReplicaId| !self.quiet.is_absent(*replica);
        let (id, members) = (self.id, &self.membership);
        let may_lead = |p: &ReplicaId| members.voters.contains(p) && !members.witnesses.contains(p);
        let other = self.config.preferred.filter(|p| *p != id && may_lead(p));
        self.membership.promotions.keys().any(here) || other.as_ref().is_some_and(here)
    }

    /// Begins a round, if every member either has all of the log or is absent, and those that are here are a majority.
    fn ask_to_quiesce(&mut self) -> bool {
        let (id, last, commit) = (self.id, self.log.last(), self.commit);
        let (mut asked, mut lagging) = (Vec::new(), Vec::new());
        for peer in self.peers.iter().filter(|p| p.id != id) {
            let complete = peer.matched == last.index && peer.state == ProgressState::Replicate;
            if self.quiet.is_absent(peer.id) {
                lagging.push(peer.id);
            } else if (complete && !peer.is_paused() && !peer.commit_due(commit)) || plant::is("quiesce-without-match")
            {
                asked.push((peer.id, false));
            } else {
                return false;
            }
        }
        let here = |p: &crate::Progress| Some(p.id == id || asked.iter().any(|a| a.0 == p.id));
        if quorum::majority_vote(self.peers.iter().filter(|p| p.incoming).map(here)) != VoteResult::Won {
            return false;
        }
        self.quiet.round += 1;
        self.quiet.phase = Phase::Asking { since: self.now };
        self.save_commit();
        let round = self.quiet.round;
        for (to, _) in &asked {
            // Held: it leaves once the commit index is durable here.
            self.send_held(*to, Body::Quiesce { round, last, commit });
        }
        self.quiet.lists.asked = asked;
        self.quiet.lists.lagging = lagging;
        // Alone, or with all others absent, it waits for nobody.
        self.settle_quiet();
        true
    }

    fn save_commit(&mut self) {
        self.quiet.save_commit = self.quiet.sealed_commit != self.commit && !plant::is("quiesce-before-commit-durable");
    }

    /// Follower: the leader asks to fall silent.
    pub(crate) fn on_quiesce(
        &mut self,
        from: ReplicaId,
        round: u64,
        last: LogPos,
        commit: Index,
    ) -> Result<(), Violation> {
        self.hear_leader(from)?;
        if round < self.quiet.round {
            // The leader has asked again since: it does not wait for this answer.
            self.dropped += 1;
            return Ok(());
        }
        self.quiet.round = round;
        let matches = (last == self.log.last() && commit == self.commit) || plant::is("quiesce-without-match");
        // Reads whose question or answer was lost are no reason to stay awake: whoever waits for one asks again, and wakes it.
        let settled = self.handout.handed == self.commit
            && self.outbox.rare.install.is_none()
            && !self.asked_to_help
            && self.membership.contains(self.id);
        let agreed = matches && settled && self.config.quiesce_after_nanos > 0;
        if !agreed {
            self.stir();
        } else if self.quiet.phase != Phase::Silent {
            self.quiet.phase = Phase::Agreeing;
            self.save_commit();
        }
        // Held: an agreement rests on what is durable, log and commit index.
        self.send_held(from, Body::QuiesceResponse { round, agreed });
        Ok(())
    }

    /// Leader: a follower's answer.
    pub(crate) fn on_quiesce_response(&mut self, from: ReplicaId, round: u64, agreed: bool) {
        if self.role != Role::Leader || round != self.quiet.round {
            self.dropped += 1;
            return;
        }
        if let Some(at) = self.peer(from) {
            self.peers[at].active = true;
        }
        if !agreed {
            // It does not match after all, or has a reason of its own: the next heartbeats help it along.
            return self.stir();
        }
        if let Some(asked) = self.quiet.lists.asked.iter_mut().find(|a| a.0 == from) {
            asked.1 = true;
            self.settle_quiet();
        }
    }

    /// Falls silent if all that it waited for has come.
    pub(crate) fn settle_quiet(&mut self) {
        let ready = match self.quiet.phase {
            Phase::Asking { .. } => self.quiet.lists.asked.iter().all(|a| a.1) && self.is_settled(),
            Phase::Agreeing => self.outbox.held.is_empty(),
            Phase::Awake | Phase::Silent => false,
        };
        let saved = self.quiet.sealed_commit == self.commit && !self.quiet.save_commit && !self.durability.in_flight();
        if ready && (saved || plant::is("quiesce-before-commit-durable")) {
            self.quiet.phase = Phase::Silent;
            if let Some(lists) = self.quiet.lists.get_mut() {
                lists.asked = Vec::new();
            }
            self.shed();
        }
    }

    /// Lets go of memory that only an awake replica needs. Done as it falls silent; what of its log was not known to be applied by
    /// then goes when its owner, who knows by now, says this again.
    pub fn shed(&mut self) {
        self.trim_to(0);
        self.log.shed();
        self.durability.shed();
        if let Some(reads) = self.reads.get_mut() {
            reads.shed();
        }
        self.reads.shed();
        self.handover.shed();
        self.farewell.shed();
        self.votes = Spare::default();
        self.peers.iter_mut().for_each(crate::Progress::shed);
        self.peers.shrink_to_fit();
        let outbox = &mut self.outbox;
        outbox.early.shrink_to_fit();
        outbox.held.shrink_to_fit();
        outbox.rare.shed();
        self.quiet.lists.shed();
    }
}

#[cfg(feature = "model")]
impl Core {
    /// As [`Core::hash_timeless`] says: of times only what has passed.
    pub(crate) fn hash_quiet<H: std::hash::Hasher>(&self, quiet: &Quiet, state: &mut H) {
        use std::hash::Hash as _;
        let Quiet { phase, round, mark, idle_since, lists, sealed_commit, save_commit } = quiet;
        let asking_for = match phase {
            Phase::Asking { since } => Some(self.now.nanos_since(*since) >= self.patience()),
            _ => None,
        };
        let idle = self.now.nanos_since(*idle_since) >= self.config.quiesce_after_nanos;
        (std::mem::discriminant(phase), asking_for, idle, round, mark).hash(state);
        (lists, sealed_commit, save_commit).hash(state);
    }
}
