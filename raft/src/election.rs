//! Terms, votes and leadership (paper sections 5.1, 5.2, 5.4.1; thesis sections 3.10 and 9.6).
//!
//! Invariants kept here: one vote per term, given only to a log at least as new as this one; a leader was voted for by
//! majorities of a configuration that this replica has in effect; a replica campaigns only with every config entry that
//! it knows to be committed in effect.

use crate::core::{Core, Guard, Role};
use crate::ids::{LogPos, ReplicaId, Term, Time};
use crate::message::Body;
use crate::output::TransferOutcome;
use crate::plant;
use crate::progress::{Progress, ProgressState};
use crate::quiesce::Phase;
use crate::quorum::{self, VoteResult};
use crate::sometimes;
use crate::spare::{Emptied, Spare};

/// What a candidate was answered. Nobody else has anything here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Votes(Vec<(ReplicaId, bool)>);

impl Emptied for Votes {
    const EMPTY: &'static Self = &Self(Vec::new());

    fn is_emptied(&self) -> bool {
        self.0.is_empty()
    }
}

impl Core {
    /// Acts on deadlines that have passed.
    pub fn advance(&mut self, now: Time) {
        self.tell(now);
        if self.is_quiet() {
            return;
        }
        if self.role == Role::Leader {
            self.advance_leader();
        } else if self.now >= self.election_deadline() {
            self.transfer_is_decided(None);
            if self.may_time_out() {
                // Who leads was not heard of for an election timeout. One that can't campaign, or only asks whether it may go,
                // stays a follower and begins another timeout: without forgetting it would hear that leader for ever, and refuse
                // its vote to those who can.
                if !plant::is("silent-leader-is-heard") {
                    self.forget_leader();
                }
                self.election_base = self.now;
                self.hup(false);
            }
        }
    }

    /// When to call [`Core::advance`] next; `Time(u64::MAX)` when there is nothing to wait for.
    pub fn deadline(&self) -> Time {
        if let Some(deadline) = self.quiet_deadline() {
            return deadline;
        }
        match self.role {
            Role::Leader => {
                let heartbeat = self.heartbeat_base.plus_nanos(self.config.heartbeat_interval_nanos);
                heartbeat.min(self.election_base.plus_nanos(self.config.election_timeout_nanos))
            }
            _ if self.may_time_out() || self.handover.awaited.is_some() => self.election_deadline(),
            _ => Time(u64::MAX),
        }
    }

    /// Starts an election now, if this replica may.
    pub fn campaign(&mut self, now: Time) {
        self.wake(now);
        self.hup(false);
    }

    /// Forgets who leads, without leaving the term: a vote may be given to somebody else at once. For a follower whose
    /// leader's host is suspected. The election timeout goes on.
    pub fn forget_leader(&mut self) {
        if self.role == Role::Follower && self.leader.is_some() {
            self.leader = None;
            self.fail_reads();
        }
    }

    /// Makes a replica that has just started ask for votes early, if it asks before it campaigns (thesis section 9.6) and
    /// whoever hears a leader refuses (`check_quorum`): so nobody is disturbed, and a group that has none needs not wait for an election timeout. The
    /// voters take turns, so that they do not split the votes; `spread` decides who is the first: give all of a
    /// group's replicas the same number and every group another, and leaders are spread over the hosts.
    pub fn start_early(&mut self, spread: u64) {
        let Some(at) = self.membership.voters.iter().position(|v| *v == self.id) else {
            return;
        };
        if self.config.pre_vote && self.config.check_quorum {
            let voters = self.membership.voters.len() as u64;
            let turn = (at as u64 + spread % voters) % voters;
            let apart = self.config.election_timeout_nanos / 2;
            // Half of the way to the next turn is chance: thousands of groups do not start at the same moment.
            let jitter = self.rng.jittered(apart / 2) - apart / 2;
            self.election_timeout_nanos = turn.min(3) * apart + jitter;
        }
    }

    /// Replaces the election timeout drawn at random, until the next is drawn. For tests that play a known schedule.
    pub fn set_election_timeout(&mut self, nanos: u64) {
        self.election_timeout_nanos = nanos;
    }

    fn election_deadline(&self) -> Time {
        self.election_base.plus_nanos(self.election_timeout_nanos)
    }

    fn advance_leader(&mut self) {
        if self.now >= self.election_base.plus_nanos(self.config.election_timeout_nanos) {
            self.election_base = self.now;
            let yields = self.yields();
            // One that only helps out and reaches nobody is needed no more, or must be asked again.
            let reached = !(self.config.check_quorum || self.helps_out) || self.quorum_is_active();
            sometimes!(!reached, "leader-misses-its-quorum");
            sometimes!(yields, "leader-with-a-hung-disk-makes-way");
            if yields || !reached {
                return self.become_follower(self.term, None);
            }
            self.transfer_times_out();
        }
        if !self.advance_round() && self.now >= self.heartbeat_base.plus_nanos(self.config.heartbeat_interval_nanos) {
            self.heartbeat_base = self.now;
            self.heed_preference();
            self.promote_who_caught_up();
            self.vouch_for_removals();
            if !self.quiesces_instead() {
                self.broadcast_heartbeats();
            }
        }
    }

    /// Whether this replica's disk hangs: what it sealed has not become durable for so long that it can't be waited for.
    fn disk_hangs(&self) -> bool {
        let patience = self.config.disk_patience_nanos;
        let since = self.durability.oldest_sealed();
        patience > 0 && since.is_some_and(|since| self.now.nanos_since(since) >= patience)
    }

    /// Whether this leader steps down because its disk hangs. Its followers may go on committing without it, but it applies
    /// nothing, so no change of members takes effect, nobody here is answered, and once its memory is full it refuses all
    /// proposals. It can't hand over: to ask somebody to campaign must wait for the disk, too. It stays if the others, as far
    /// as they answer, could elect nobody without its vote.
    fn yields(&self) -> bool {
        if !self.disk_hangs() || plant::is("leader-with-a-hung-disk-stays") {
            return false;
        }
        let id = self.id;
        let votes = |p: &Progress| Some(p.id != id && p.active);
        let result = quorum::joint_vote(
            self.peers.iter().filter(|p| p.incoming).map(votes),
            self.peers.iter().filter(|p| p.outgoing).map(votes),
        );
        let heir = |p: &Progress| p.incoming && p.id != id && p.active && !p.witness;
        result == VoteResult::Won && self.peers.iter().any(heir)
    }

    /// Whether majorities answered since this was last asked.
    fn quorum_is_active(&mut self) -> bool {
        let id = self.id;
        let answered = |p: &Progress| Some(p.id == id || p.active);
        let result = quorum::joint_vote(
            self.peers.iter().filter(|p| p.incoming).map(answered),
            self.peers.iter().filter(|p| p.outgoing).map(answered),
        );
        for peer in &mut self.peers {
            peer.active = peer.id == id;
        }
        result == VoteResult::Won
    }

    /// Campaigns, if that is allowed. `transfer`: the leader asked for it, so nobody has to be asked first.
    fn hup(&mut self, transfer: bool) {
        if self.role == Role::Leader {
            return;
        }
        if !self.may_campaign() {
            if self.role != Role::Follower && !self.is_voter {
                // A candidate that is no voter any more, or that helped out and was not answered, goes back to waiting.
                self.become_follower(self.term, None);
            } else if self.role == Role::Follower && !transfer && self.may_ask_to_go() {
                self.ask_to_go();
            }
            return;
        }
        // A replica that helps out does not ask first: it was asked.
        if self.config.pre_vote && (!transfer || plant::is("transfer-asks-first")) && self.is_voter {
            self.become_pre_candidate();
        } else {
            self.become_candidate(transfer);
        }
    }

    /// A replica that is no voter does not campaign, except to help out. One that has not yet put into effect every
    /// membership change that it knows to be committed might win by a majority that is none any more: {1,2,3} grew by 4
    /// and 5, and 1 and 2 elect under the old three while {3,4,5} commit under the new five. Where memory does not say
    /// what the entries are, wait.
    pub(crate) fn may_campaign(&self) -> bool {
        (self.is_voter || self.asked_to_help) && self.could_campaign()
    }

    /// Whether this replica would make a leader, if it were one to campaign.
    pub(crate) fn could_campaign(&self) -> bool {
        let waiting = self.log.may_have_config(self.handout.handed.next(), self.commit)
            && !plant::is("campaign-before-change-in-effect");
        // A state machine that is ahead of the log was given committed entries that the log lacks.
        let behind = self.log.last().index < self.catch_up_to && !plant::is("campaign-behind-the-machine");
        // Its own vote would not become durable, and meanwhile others would wait for it.
        let ready = !waiting && !behind && !self.disk_hangs();
        sometimes!(waiting, "campaign-waits-for-a-change");
        !self.farewell.told && ready && !self.is_barred() && self.outbox.rare.install.is_none()
    }

    /// Whether silence concerns this replica.
    pub(crate) fn may_time_out(&self) -> bool {
        let may_lead = self.is_voter && !self.is_barred() && !self.farewell.told;
        may_lead || self.asked_to_help || self.role != Role::Follower || self.may_ask_to_go()
    }

    pub(crate) fn become_pre_candidate(&mut self) {
        self.transfer_is_decided(None);
        // Neither term nor vote change: only the answer is of interest. One that had agreed to fall silent takes that back: else
        // it would fall silent once its answer is durable, as a candidate that nobody hears.
        if !plant::is("pre-candidate-falls-silent") {
            self.quiet.phase = Phase::Awake;
        }
        self.role = Role::PreCandidate;
        self.leader = None;
        self.fail_reads();
        self.votes = Spare::default();
        self.ask_for_votes(true, false);
        self.count_vote(self.id, true);
    }

    fn become_candidate(&mut self, transfer: bool) {
        self.transfer_is_decided(None);
        self.reset(self.term.next());
        self.role = Role::Candidate;
        self.vote = self.id;
        // The own vote is counted when it is durable, in `persisted`.
        self.ask_for_votes(false, transfer);
        if plant::is("own-vote-before-durable") {
            self.count_vote(self.id, true);
        }
    }

    pub(crate) fn ask_for_votes(&mut self, pre: bool, transfer: bool) {
        let (id, last) = (self.id, self.log.last());
        let voters: Vec<ReplicaId> = self.membership.all_voters().filter(|v| *v != id).collect();
        for to in voters {
            let body = Body::RequestVote { pre, transfer, last };
            if pre {
                self.send_early(to, self.term.next(), body);
            } else {
                // Held until the new term and the vote for itself are durable: a candidate that forgot its term could
                // campaign in it twice, and with another log.
                self.send_held(to, body);
            }
        }
    }

    /// Notes an answer, the first of each replica, and acts on what the vote has come to.
    pub(crate) fn count_vote(&mut self, from: ReplicaId, granted: bool) {
        if self.votes.0.iter().all(|(voter, _)| *voter != from) {
            self.votes.0.push((from, granted));
        }
        let answer = |voter: &ReplicaId| self.votes.0.iter().find(|(v, _)| v == voter).map(|(_, granted)| *granted);
        let result =
            quorum::joint_vote(self.membership.voters.iter().map(answer), self.membership.outgoing.iter().map(answer));
        match (result, self.role) {
            (VoteResult::Pending, _) => {}
            (VoteResult::Won, Role::PreCandidate) => self.become_candidate(false),
            (VoteResult::Won, _) => self.become_leader(),
            (VoteResult::Lost, role) => {
                sometimes!(role == Role::PreCandidate, "pre-vote-lost");
                sometimes!(role == Role::Candidate, "election-lost");
                self.become_follower(self.term, None);
            }
        }
    }

    fn become_leader(&mut self) {
        assert_eq!(self.role, Role::Candidate, "only a candidate becomes leader");
        assert_eq!(self.vote, self.id, "a candidate votes for itself");
        self.reset(self.term);
        self.role = Role::Leader;
        self.leader = Some(self.id);
        self.helps_out = !self.is_voter;
        sometimes!(self.helps_out, "elected-though-no-voter");
        sometimes!(self.membership.is_joint(), "elected-in-a-joint-configuration");
        sometimes!(self.log.last().index > self.commit, "elected-with-an-uncommitted-tail");
        self.heartbeat_base = self.now;
        self.prefer_later();
        let last = self.log.last().index;
        self.rebuild_peers(last.next(), false);
        // Which of its entries are membership changes a new leader may not know: it counts the whole tail as pending
        // ones, and proposes none before all of it is in effect.
        self.pending_change = if plant::is("new-leader-ignores-tail") { crate::Index::ZERO } else { last };
        // An entry of its own term, because only through one can it commit those of earlier terms (paper section 5.4.2).
        self.append_empty();
    }

    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<ReplicaId>) {
        self.reset(term);
        self.role = Role::Follower;
        self.leader = leader;
        if leader.is_some() {
            self.transfer_is_decided(leader);
        }
    }

    fn reset(&mut self, term: Term) {
        assert!(term >= self.term, "term goes back from {} to {term}", self.term);
        let later = term != self.term;
        sometimes!(later && self.role == Role::Leader, "leader-deposed-by-a-later-term");
        sometimes!(self.role == Role::Candidate && later, "candidate-begins-anew");
        self.quiet.reset(later, self.now);
        if later {
            self.term = term;
            self.vote = ReplicaId::ZERO;
            // What an earlier leader said of its log and commit is not said by this term's.
            self.verified = crate::Index::ZERO;
            self.leader_commit = crate::Index::ZERO;
        }
        self.transfer_loses_its_leader(later);
        self.fail_reads();
        drop(self.bars.take());
        self.leader = None;
        self.votes = Spare::default();
        self.peers = Vec::new();
        self.rounds = Spare::default();
        self.dirty = false;
        self.helps_out = false;
        self.asked_to_help = false;
        self.election_base = self.now;
        self.election_timeout_nanos = self.rng.jittered(self.config.election_timeout_nanos);
    }

    /// The progress of every member, kept for those that had one. `recently_active` is what new ones start with.
    pub(crate) fn rebuild_peers(&mut self, next: crate::Index, recently_active: bool) {
        let mut ids: Vec<ReplicaId> = self.membership.replicas().collect();
        ids.sort_unstable();
        let mut old = std::mem::take(&mut self.peers);
        for id in ids {
            let mut peer = match old.iter().position(|p| p.id == id) {
                Some(at) => old.swap_remove(at),
                None => Progress::new(id, next, recently_active),
            };
            peer.incoming = self.membership.voters.contains(&id);
            peer.outgoing = self.membership.outgoing.contains(&id);
            peer.witness = self.membership.is_witness(id);
            if id == self.id && peer.state == ProgressState::Probe {
                peer.become_replicate();
                peer.active = true;
            }
            self.peers.push(peer);
        }
        self.count_own_log();
        if self.transferee.is_some_and(|to| !self.membership.is_voter(to)) {
            self.end_transfer(TransferOutcome::TargetGone);
        }
    }

    /// A message of a later term. Returns whether to go on with it.
    pub(crate) fn meet_higher_term(&mut self, from: ReplicaId, term: Term, body: &Body) -> bool {
        match body {
            Body::RequestVote { pre, transfer, .. } => {
                if self.ignores_candidate(from, *transfer) {
                    sometimes!("candidate-ignored");
                    return false;
                }
                // A pre-vote is only a question.
                if !pre {
                    self.become_follower(term, None);
                }
            }
            // Granted for the term that was asked about, which this replica has not entered yet. Refused, the answer
            // carries the other's own term.
            Body::VoteResponse { pre: true, granted: true } => {}
            Body::VoteResponse { .. } if plant::is("later-vote-counts") && self.role == Role::Candidate => {
                self.count_vote(from, true);
            }
            Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::Commit { .. }
            | Body::Snapshot(_)
            | Body::Quiesce { .. } => {
                self.become_follower(term, Some(from));
            }
            _ => self.become_follower(term, None),
        }
        true
    }

    /// Whether a candidate of a later term gets no attention, not even to its term.
    fn ignores_candidate(&self, from: ReplicaId, transfer: bool) -> bool {
        // A leader with no change pending has every committed configuration in effect: who is no voter there can't be
        // elected by anyone who is, and could only unseat it.
        if self.role == Role::Leader && self.pending_change <= self.handout.handed && !self.membership.is_voter(from) {
            return !plant::is("non-voter-unseats");
        }
        // Whoever hears its leader helps nobody to disturb it, unless the leader itself asked for that. And a replica that
        // was removed without learning of it may disturb it least of all. But without a leader it must be heard: it may be
        // the only one with a log new enough, and others may need it to be elected and commit what removed it.
        self.hears_leader()
            && ((self.config.check_quorum && !transfer && !plant::is("disruptor-is-helped"))
                || (self.membership.removed.contains(&from) && !plant::is("removed-is-heard")))
    }

    /// Whether a leader was heard within the election timeout.
    fn hears_leader(&self) -> bool {
        self.leader.is_some() && self.now.nanos_since(self.election_base) < self.config.election_timeout_nanos
    }

    /// A message of an earlier term.
    pub(crate) fn answer_lower_term(&mut self, from: ReplicaId, body: &Body) {
        match body {
            // A leader of an earlier term that lost its majority without learning of this one would try for ever; and
            // pre-vote or check-quorum keep this replica's term from unseating it by an election. So tell it the term.
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Quiesce { .. }
                if self.config.check_quorum || self.config.pre_vote =>
            {
                sometimes!("stale-leader-is-told-the-term");
                self.send_held(from, Body::AppendAccepted { matched: crate::Index::ZERO });
            }
            // Else a pre-candidate of an earlier term, with a newer log, would never learn the term to campaign in.
            Body::RequestVote { pre: true, .. } if !plant::is("pre-candidate-not-told") => {
                self.send_held(from, Body::VoteResponse { pre: true, granted: false });
            }
            _ => self.dropped += 1,
        }
    }

    pub(crate) fn on_request_vote(&mut self, from: ReplicaId, term: Term, pre: bool, last: LogPos) {
        // A log that lost acknowledged entries must not help to elect somebody who does not have them.
        if matches!(self.guard, Guard::LostLog { .. }) && !plant::is("vote-after-losing-log") {
            self.dropped += 1;
            return;
        }
        // A vote, once given, is repeated but never changed. With a leader in this term the election is over. A pre-vote
        // for a later term promises nothing.
        let may = self.vote == from || (self.vote.is_zero() && self.leader.is_none()) || (pre && term > self.term);
        // A log that ends in a later term, or in the same and not before, has everything that may be committed
        // (paper section 5.4.1). A non-voting member answers too: the candidate may know that it was promoted.
        let may = may || plant::is("two-votes-in-a-term");
        let granted = may && (last >= self.log.last() || plant::is("vote-for-an-older-log"));
        sometimes!(may && !granted, "vote-refused-for-an-older-log");
        sometimes!(!may, "vote-refused-for-another");
        if granted && !pre {
            self.vote = from;
            self.election_base = self.now;
        }
        let answer = Body::VoteResponse { pre, granted };
        self.send_held(from, answer);
        if granted && pre {
            // The answer names the term that was asked about.
            self.outbox.held.last_mut().expect("just pushed").term = term;
        }
        if last < self.log.last() && self.role == Role::Follower && self.membership.is_voter(from) {
            self.help_out();
        }
    }

    /// A replica that was removed, or made non-voting, is asked for its vote by one that stays and does not know of that yet:
    /// it may need this vote under a configuration that is over, and can't have it, because its log is older. With this
    /// replica gone quiet the others would be stranded. So it campaigns, unless a leader is heard within an election timeout,
    /// and leads by the votes of those who stay until they have learned what is committed. It never wins by a vote that does not count.
    fn help_out(&mut self) {
        if !self.is_voter && !self.hears_leader() && !self.asked_to_help && !self.is_barred() {
            sometimes!("non-voter-helps-out");
            self.asked_to_help = true;
            self.election_base = self.now;
        }
    }

    pub(crate) fn on_vote_response(&mut self, from: ReplicaId, term: Term, pre: bool, granted: bool) {
        let asked = match self.role {
            Role::PreCandidate => pre && (!granted || term == self.term.next()),
            Role::Candidate => !pre,
            Role::Follower | Role::Leader => false,
        };
        if asked {
            self.count_vote(from, granted);
        } else {
            self.dropped += 1;
        }
    }

    pub(crate) fn on_timeout_now(&mut self, from: ReplicaId) {
        // Only its leader, or one of a later term, can ask it to.
        if self.role == Role::Follower && self.leader.is_none_or(|l| l == from) {
            sometimes!("transfer-target-campaigns");
            self.hup(true);
        } else {
            self.dropped += 1;
        }
    }
}
