//! A leader's side of replication (paper sections 5.3, 5.4.2).
//!
//! Invariants kept here: a leader only appends to its log; it commits by counting only entries of its own term; what it
//! counts for a member was acknowledged by that member in this term, and for itself what is durable here.
//!
//! Every append carries the leader's commit index. A leader proposes a membership change only when every earlier one is
//! handed out, thus committed; so an append that carries change n + 1 carries a commit index of at least n, and no
//! replica has two changes in its log that it does not know the first of to be committed.

use crate::core::{Core, Role};
use crate::handout::ColdHandout;
use crate::ids::{Index, LogPos, ReplicaId, Term};
use crate::log::{Slice, configs_decode};
use crate::message::{Body, SnapshotMeta};
use crate::output::{Compacted, Fetch};
use crate::plant;
use crate::progress::{Progress, ProgressState};
use crate::quorum;
use crate::run::{Origin, Run, RunBuilder};
use crate::sometimes;
use smallvec::SmallVec;

impl Core {
    /// The leader's round ends: sends the appends and commit indexes that are due, and starts a round for the reads that
    /// gathered. [`Core::take_output`] does this by itself; a driver that wants one broadcast per input calls it too.
    pub fn end_round(&mut self) {
        if !self.dirty {
            return;
        }
        self.dirty = false;
        if self.role != Role::Leader {
            return;
        }
        self.start_read_round();
        let (members, first) = (self.peers.len(), self.first_peer);
        for i in 0..members {
            let at = (first + i) % members;
            if self.peers[at].id != self.id {
                self.send_due(at);
            }
        }
        // Its first append told a majority of those who stay what is committed: that was all that it was elected for.
        if self.helps_out && self.log.term_at(self.commit) == Some(self.term) {
            self.become_follower(self.term, None);
        }
    }

    /// The engine began to stream a snapshot at `pos` to the member: no appends until it is there.
    pub fn snapshot_sending(&mut self, to: ReplicaId, pos: LogPos) {
        if let Some(at) = self.peer(to) {
            self.peers[at].become_snapshot(pos.index);
        }
    }

    /// The snapshot stream ended. The next append waits for the member to be heard of: its acknowledgement if the
    /// snapshot arrived, a heartbeat's answer if not.
    pub fn snapshot_finished(&mut self, to: ReplicaId, ok: bool) {
        let Some(at) = self.peer(to) else {
            return;
        };
        let peer = &mut self.peers[at];
        match (peer.state, ok) {
            (ProgressState::Snapshot { .. }, true) => peer.become_probe(),
            (ProgressState::Snapshot { .. }, false) => peer.snapshot_failed(),
            // It was asked for and never begun: it may be asked for again.
            _ if peer.snapshot_wanted => peer.snapshot_wanted = false,
            _ => return,
        }
        peer.paused = true;
    }

    /// Messages to the member are known to be lost: what was in flight is not counted on.
    pub fn report_unreachable(&mut self, replica: ReplicaId) {
        if let Some(at) = self.peer(replica)
            && self.peers[at].state == ProgressState::Replicate
            && replica != self.id
        {
            self.peers[at].become_probe();
        }
    }

    /// A cold read is done. An answer that is no longer waited for is ignored.
    pub fn fetched(&mut self, ticket: u64, runs: Result<Vec<Run>, Compacted>) {
        let runs = runs.ok().filter(|runs| self.is_of_this_log(runs));
        if self.handout.cold.ticket == Some(ticket) {
            self.handout.cold = ColdHandout { ticket: None, fetched: runs.unwrap_or_default() }.into();
            return;
        }
        let Some(at) = self.peers.iter().position(|p| p.ticket == Some(ticket)) else {
            return;
        };
        self.peers[at].ticket = None;
        self.dirty = true;
        match runs {
            Some(runs) if runs[0].first() == self.peers[at].next => self.append_runs(at, SmallVec::from_vec(runs)),
            Some(_) => sometimes!("fetched-what-is-no-longer-next"),
            None => {
                sometimes!("fetched-what-was-compacted");
                self.want_snapshot(at);
            }
        }
    }

    /// Whether what a cold read brought are entries of this log as it is now: contiguous, readable and of its terms.
    fn is_of_this_log(&self, runs: &[Run]) -> bool {
        !runs.is_empty()
            && runs.windows(2).all(|w| w[0].last().next() == w[1].first())
            && runs.iter().all(|r| {
                let here = self.log.term_end(r.first());
                r.is_stripped() == self.is_witness
                    && here.is_some_and(|(term, end)| term == r.term() && end >= r.last())
                    && configs_decode(r)
            })
    }

    pub(crate) fn peer(&self, id: ReplicaId) -> Option<usize> {
        self.peers.iter().position(|p| p.id == id)
    }

    /// Appends to the leader's own log; returns the index of the first entry.
    pub(crate) fn append_own(&mut self, mut chunk: RunBuilder, origin: Origin) -> Index {
        let first = self.log.last().index.next();
        self.append_own_run(chunk.seal(self.term, first, origin));
        first
    }

    pub(crate) fn append_own_run(&mut self, run: Run) {
        assert_eq!(self.role, Role::Leader, "only a leader appends of its own");
        self.log.append(run);
        self.dirty = true;
    }

    /// The durable part of the own log counts like a member's acknowledgement.
    pub(crate) fn count_own_log(&mut self) {
        let last = self.log.last().index;
        let durable = if plant::is("own-entry-before-durable") { last } else { self.durability.durable().min(last) };
        if let Some(at) = self.peer(self.id)
            && self.peers[at].acknowledged(durable)
        {
            // Witnesses get what is durable.
            self.dirty |= !self.membership.witnesses.is_empty();
            self.maybe_commit();
        }
    }

    /// Whether the leader's own log, once all of it is durable, makes a majority that is not there yet, or is what witnesses wait
    /// for. Mostly its disk is done before the first follower's answer is here: then there is nothing to be woken for.
    pub(crate) fn own_log_decides(&self) -> bool {
        let reached = |p: &Progress| if p.id == self.id { self.log.last().index } else { p.matched };
        let index = quorum::joint_index(
            self.peers.iter().filter(|p| p.incoming).map(reached),
            self.peers.iter().filter(|p| p.outgoing).map(reached),
        );
        (index > self.commit || !self.membership.witnesses.is_empty()) && !plant::is("own-log-never-decides")
    }

    /// Commits what majorities have.
    pub(crate) fn maybe_commit(&mut self) {
        let index = quorum::joint_index(
            self.peers.iter().filter(|p| p.incoming).map(|p| p.matched),
            self.peers.iter().filter(|p| p.outgoing).map(|p| p.matched),
        );
        if index <= self.commit || self.peers.is_empty() {
            return;
        }
        assert!(index <= self.log.last().index, "majority at {index}, log ends at {:?}", self.log.last());
        // An entry of an earlier term may be on a majority and still be overwritten by a leader that never saw it (paper
        // figure 8). One of the own term can't: whoever is elected later has it. Earlier ones are committed with it.
        if self.log.term_at(index) == Some(self.term) || plant::is("commit-old-term-by-counting") {
            self.commit_to(index);
            self.dirty = true;
        } else {
            sometimes!("earlier-terms-entries-wait");
        }
    }

    /// Sends a member all that it may be sent now.
    fn send_due(&mut self, at: usize) {
        let (last, commit, bounds) = (self.last_for(at), self.commit, self.bounds());
        // Bounds that are reached stop, and one append may go over them. A member whose turn is cut off by what others were
        // sent comes first in the next round.
        let before = self.round_bytes;
        loop {
            let spent = self.round_bytes >= self.config.round_bytes_max
                || self.round_bytes - before >= self.config.peer_round_bytes_max;
            let peer = &mut self.peers[at];
            if peer.is_paused() {
                return;
            }
            let wants_entries = peer.next <= last && !peer.is_full(bounds);
            let has_entries = wants_entries && !spent;
            if wants_entries && spent {
                if self.round_bytes == before {
                    self.first_peer = at;
                }
                self.dirty = true;
            }
            let commit_due = peer.commit_due(commit);
            let probes = peer.state == ProgressState::Probe || self.config.commit_by_append;
            if has_entries || peer.owes_empty || (commit_due && probes) {
                if !self.append_to(at, has_entries) || !has_entries {
                    return;
                }
                continue;
            }
            if commit_due {
                // What it has of this leader's log it knows by itself: it takes no more of the index than that.
                peer.sent_commit = commit;
                let to = peer.id;
                self.send_early(to, self.term, Body::Commit { commit });
            }
            return;
        }
    }

    /// Whether [`Core::send_due`] might have something for this member.
    fn is_due(&self, at: usize) -> bool {
        let peer = &self.peers[at];
        peer.next <= self.last_for(at) || peer.owes_empty || peer.commit_due(self.commit) || self.helps_out
    }

    /// The last entry that the member may be sent. A witness gets only what is on this disk too. Else, with a leader that crashed
    /// and forgot it, the witness could hold entries that nobody has the payloads of: no log would be as new as its own, and
    /// without its vote maybe nobody could be elected any more.
    fn last_for(&self, at: usize) -> Index {
        let last = self.log.last().index;
        if self.peers[at].witness && !plant::is("witness-ahead-of-leader") {
            last.min(self.durability.durable())
        } else {
            last
        }
    }

    /// Sends one append, with entries or without. False when it could not be made now.
    fn append_to(&mut self, at: usize, with_entries: bool) -> bool {
        let next = self.peers[at].next;
        if self.predecessor_term(next.prev()).is_none() {
            self.want_snapshot(at);
            return false;
        }
        let mut runs = SmallVec::new();
        if with_entries {
            match self.log.entries(next, self.last_for(at), self.config.append_bytes_max) {
                Slice::Runs(found) => runs = found,
                Slice::Compacted if plant::is("append-without-predecessor") => {
                    self.append_runs(at, runs);
                    return false;
                }
                Slice::Compacted => {
                    self.want_snapshot(at);
                    return false;
                }
                Slice::Cold { hi } => {
                    sometimes!("follower-fed-from-disk");
                    let ticket = self.next_ticket();
                    self.peers[at].ticket = Some(ticket);
                    let fetch = Fetch { ticket, lo: next, hi, bytes_max: self.config.append_bytes_max };
                    self.outbox.rare.fetches.push(fetch);
                    return false;
                }
            }
        }
        self.append_runs(at, runs);
        true
    }

    /// The term of the entry before the first one of an append.
    fn predecessor_term(&self, index: Index) -> Option<Term> {
        self.log.term_at(index).or(plant::is("append-without-predecessor").then_some(Term::ZERO))
    }

    fn append_runs(&mut self, at: usize, runs: SmallVec<[Run; 1]>) {
        let (commit, bounds) = (self.commit, self.bounds());
        let index = self.peers[at].next.prev();
        // An append without its predecessor's term could never be checked against the follower's log.
        let Some(term) = self.predecessor_term(index) else {
            return self.want_snapshot(at);
        };
        let entries = runs.iter().map(|r| r.count() as u64).sum();
        let mut runs = runs;
        if self.peers[at].witness && !plant::is("payload-to-witness") {
            runs.iter_mut().for_each(|run| *run = run.strip());
        }
        let bytes = runs.iter().map(Run::encoded_len).sum();
        self.round_bytes = self.round_bytes.saturating_add(bytes);
        let peer = &mut self.peers[at];
        peer.sent(entries, bytes, bounds);
        peer.sent_commit = commit;
        if entries > 0 {
            peer.sent_at = self.now;
        }
        let to = peer.id;
        self.send_early(to, self.term, Body::Append { prev: LogPos::new(term, index), commit, runs });
    }

    /// The member needs what was compacted. Said once, and only of a member that answers: a dead one gets no snapshots.
    fn want_snapshot(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if peer.witness {
            return self.send_witness_snapshot(at);
        }
        if peer.active && !peer.snapshot_wanted {
            peer.snapshot_wanted = true;
            self.outbox.rare.snapshots_wanted.push(peer.id);
        }
    }

    /// What a witness needs in place of entries that are gone, or of the first membership: where the log goes on, and who the
    /// members are there. It is a small message and needs no stream; if it is lost, the next probe is refused and it goes again.
    fn send_witness_snapshot(&mut self, at: usize) {
        let index = self.handout.handed;
        let term = self.log.term_at(index).expect("what was handed out is in the log or just before it");
        let membership = (*self.membership).clone();
        let peer = &mut self.peers[at];
        peer.become_snapshot(index);
        peer.become_probe();
        peer.paused = true;
        let to = peer.id;
        let meta = SnapshotMeta { pos: LogPos::new(term, index), membership };
        self.send_early(to, self.term, Body::WitnessSnapshot(Box::new(meta)));
    }

    /// A member can't go on by its log. It is served like one that is too far behind, unless that is under way already or no
    /// snapshot could be new enough: it asks again.
    pub(crate) fn on_snapshot_needed(&mut self, from: ReplicaId, at_least: Index) {
        let Some(at) = self.peer(from) else {
            self.dropped += 1;
            return;
        };
        let handed = self.handout.handed;
        let peer = &mut self.peers[at];
        peer.active = true;
        peer.snapshot_floor = at_least;
        if handed >= at_least && !matches!(peer.state, ProgressState::Snapshot { .. }) {
            self.want_snapshot(at);
        }
    }

    /// The timer's heartbeats. A member to which entries flow and whose acknowledgements flow back needs none: those tell
    /// each of the other all that a heartbeat and its answer would. When either stops, for whatever reason, one goes out an
    /// interval later.
    pub(crate) fn broadcast_heartbeats(&mut self) {
        let interval = self.config.heartbeat_interval_nanos;
        for at in 0..self.peers.len() {
            if !self.peers[at].flows(self.now, interval) {
                self.peers[at].nudge = true;
                self.send_heartbeat(at);
            }
        }
    }

    pub(crate) fn send_heartbeat(&mut self, at: usize) {
        let peer = &self.peers[at];
        if peer.id == self.id {
            return;
        }
        // Not more than it has acknowledged: its log may differ after that.
        let commit = if plant::is("heartbeat-commits-too-much") { self.commit } else { self.commit.min(peer.matched) };
        let body = Body::Heartbeat { commit, read_round: self.open_read_round() };
        self.send_early(peer.id, self.term, body);
    }

    pub(crate) fn on_heartbeat_response(&mut self, from: ReplicaId, read_round: u64, overloaded: bool) {
        let Some(at) = self.peer(from) else {
            self.dropped += 1;
            return;
        };
        let last = self.log.last().index;
        let peer = &mut self.peers[at];
        peer.active = true;
        if peer.overloaded && !overloaded {
            sometimes!("follower-has-room-again");
            peer.paused = false;
            self.dirty = true;
        }
        peer.overloaded = overloaded;
        // Once per heartbeat of the timer, not for those that confirm reads, take it that whatever was sent before it may
        // be lost, and ask again: with an empty append if there is nothing new. Its answer tells.
        if peer.nudge && !plant::is("lost-appends-forgotten") {
            peer.nudge = false;
            peer.paused = false;
            if peer.matched < last || peer.state == ProgressState::Probe {
                peer.owes_empty = true;
                self.dirty = true;
            }
        }
        self.confirm_read_round(at, read_round);
    }

    pub(crate) fn on_accepted(&mut self, from: ReplicaId, matched: Index) {
        // An acknowledgement of what this leader never had is not of this leader's log.
        let at = match self.peer(from) {
            Some(at) if matched <= self.log.last().index && from != self.id => at,
            _ => {
                self.dropped += 1;
                return;
            }
        };
        let start = self.log.start().index;
        let peer = &mut self.peers[at];
        peer.active = true;
        let probe_answered = peer.matched == matched && peer.state == ProgressState::Probe;
        if !peer.acknowledged(matched) && !probe_answered {
            return;
        }
        peer.news_at = self.now;
        peer.settle(start);
        self.maybe_commit();
        // Room for more, or a commit index that it may be told of. With nothing due, as when others were faster to
        // acknowledge and nothing came since, there is no reason for a visit.
        self.dirty |= self.is_due(at);
        if self.transferee == Some(from) {
            self.hurry_transferee();
        }
    }

    /// The member's host has no room for entries: nothing more goes there before it says that it has. What it had is as
    /// good as acknowledged.
    pub(crate) fn on_paused(&mut self, from: ReplicaId, matched: Index) {
        let dropped = self.dropped;
        self.on_accepted(from, matched);
        if let Some(at) = self.peer(from)
            && self.dropped == dropped
        {
            let peer = &mut self.peers[at];
            peer.overloaded = true;
            if peer.state == ProgressState::Replicate {
                peer.become_probe();
            }
        }
    }

    pub(crate) fn on_rejected(&mut self, from: ReplicaId, rejected: Index, hint: LogPos) {
        let Some(at) = self.peer(from) else {
            self.dropped += 1;
            return;
        };
        // The follower's log has `hint.term` at `hint.index` and nothing of that term after it up to `rejected`. Where this
        // log's term is higher the two can't agree, so each side skips whole terms, not single entries.
        let guess =
            if hint.term > Term::ZERO { self.log.find_conflict(hint.index, hint.term).index } else { hint.index };
        let peer = &mut self.peers[at];
        peer.active = true;
        // Every log agrees before its first entry. Who refuses that joins, and knows no membership to begin from.
        if rejected.is_zero() && peer.state == ProgressState::Probe && peer.matched.is_zero() {
            return self.want_snapshot(at);
        }
        if peer.rejected(rejected, guess) {
            peer.owes_empty = true;
            self.dirty = true;
        }
    }
}
