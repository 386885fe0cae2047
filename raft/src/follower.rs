//! A follower's side of replication (paper section 5.3), and snapshot install (section 7).
//!
//! Invariants kept here: entries are taken only right after one that the leader has too; committed entries are never
//! overwritten; the commit index moves only over entries that are known to be the leader's.

use crate::core::{Core, Guard, Role};
use crate::error::Violation;
use crate::ids::{Index, LogPos, ReplicaId, Term};
use crate::log::configs_decode;
use crate::membership::ReplicaKind;
use crate::message::{Body, SnapshotMeta};
use crate::plant;
use crate::run::Run;
use crate::sometimes;
use crate::spare::Spare;
use std::sync::Arc;

impl Core {
    /// Somebody speaks as the leader of this term.
    pub(crate) fn hear_leader(&mut self, from: ReplicaId) -> Result<(), Violation> {
        let term = self.term;
        if self.role == Role::Leader {
            return Err(Violation::TwoLeaders { first: self.id, second: from, term });
        }
        match self.leader {
            Some(leader) if leader == from => {
                self.election_base = self.now;
                self.asked_to_help = false;
            }
            Some(first) => return Err(Violation::TwoLeaders { first, second: from, term }),
            // Candidates of this term lost; a follower that did not know, or forgot, knows now.
            None => self.become_follower(term, Some(from)),
        }
        Ok(())
    }

    pub(crate) fn on_append(
        &mut self,
        from: ReplicaId,
        prev: LogPos,
        commit: Index,
        runs: &[Run],
    ) -> Result<(), Violation> {
        // A witness takes no payloads, and nobody else takes a run whose payloads are gone: it could not apply it.
        let of_its_kind = runs.iter().all(|r| r.is_stripped() == self.is_witness) || plant::is("stripped-run-taken");
        if !of_its_kind || !is_well_formed(prev, runs, self.term) {
            self.dropped += 1;
            return Ok(());
        }
        if let Some(run) = runs.iter().find(|r| !configs_decode(r)) {
            return Err(Violation::ConfigEntry { index: run.first() });
        }
        self.hear_leader(from)?;
        if self.has_lost_log() {
            self.ask_for_snapshot(from);
            return Ok(());
        }
        if prev.index < self.commit {
            sometimes!("append-of-what-is-committed");
            // Late, or sent again. Whatever leads has all that is committed, so say how far that is.
            self.accept(from, self.commit);
            return Ok(());
        }
        // A replica that joins knows no membership, and none can be derived from a log whose first membership is not in
        // it: it would count whoever is added later as everybody. It needs a snapshot, and says so by refusing even the
        // start of the log.
        let knows_members = !self.membership.voters.is_empty();
        let planted = plant::is("term-zero-matches") && prev.term.is_zero() && prev.index <= self.log.last().index;
        if !knows_members || (self.log.term_at(prev.index) != Some(prev.term) && !planted) {
            sometimes!(!knows_members, "append-before-the-first-snapshot");
            sometimes!(prev.index > self.log.last().index, "append-beyond-the-log");
            sometimes!(prev.index <= self.log.last().index, "append-after-a-conflict");
            let hint = self.log.find_conflict(prev.index, prev.term);
            self.send_held(from, Body::AppendRejected { rejected: prev.index, hint });
            return Ok(());
        }
        if self.overloaded && runs.last().is_some_and(|r| self.first_new(r).is_some()) {
            sometimes!("append-without-room");
            // No room. What agreed so far still counts, and the commit index may move over it.
            self.verified = self.verified.max(prev.index);
            self.learn_commit(commit);
            self.send_held(from, Body::AppendPaused { matched: prev.index });
            return Ok(());
        }
        self.take_entries(from, runs)?;
        // By log matching the log through here is the leader's.
        let matched = runs.last().map_or(prev.index, Run::last);
        self.verified = self.verified.max(matched);
        self.learn_commit(commit);
        self.accept(from, matched);
        Ok(())
    }

    /// Takes what of `runs` is not in the log, cutting off what contradicts it.
    fn take_entries(&mut self, from: ReplicaId, runs: &[Run]) -> Result<(), Violation> {
        for run in runs {
            let Some(new_from) = self.first_new(run) else {
                continue;
            };
            if new_from <= self.log.last().index {
                if new_from <= self.commit {
                    return Err(Violation::CommittedOverwritten { from, index: new_from, commit: self.commit });
                }
                // A leader only appends, so what it once sent in this term it can't send differently.
                if new_from <= self.verified {
                    return Err(Violation::LeaderRewroteLog { from, index: new_from, term: self.term });
                }
                sometimes!("conflicting-tail-cut");
                sometimes!(self.durability.in_flight(), "tail-cut-while-being-written");
                self.log.cut_tail(new_from);
                self.durability.cut_tail(new_from);
            }
            self.log.append(run.slice(new_from..=run.last()));
        }
        Ok(())
    }

    /// The first index of the run whose entry is not in the log: missing, or of another term. Entries of equal index and
    /// term are equal, so whole stretches of one term are compared at a time, and no entry is looked at.
    fn first_new(&self, run: &Run) -> Option<Index> {
        match self.log.term_end(run.first()) {
            Some((term, end)) if term == run.term() => (end < run.last()).then(|| end.next()),
            _ => Some(run.first()),
        }
    }

    /// Acknowledges, once all that was accepted so far is durable. Acknowledgements to one leader add up to the highest.
    fn accept(&mut self, to: ReplicaId, matched: Index) {
        let term = self.term;
        if let Some(last) = self.outbox.held.last_mut()
            && let Body::AppendAccepted { matched: earlier } = &mut last.body
            && last.to == to
            && last.term == term
        {
            *earlier = matched.max(*earlier);
            return;
        }
        self.send_held(to, Body::AppendAccepted { matched });
    }

    /// The leader has committed through `commit`. That holds for its own log: here only as far as this is known to be it.
    fn learn_commit(&mut self, commit: Index) {
        self.leader_commit = self.leader_commit.max(commit);
        sometimes!(self.leader_commit > self.verified, "commit-beyond-the-verified");
        let known = if plant::is("commit-past-the-known") { self.log.last().index } else { self.verified };
        self.commit_to(self.leader_commit.min(known));
    }

    pub(crate) fn on_commit(&mut self, from: ReplicaId, commit: Index) -> Result<(), Violation> {
        self.hear_leader(from)?;
        self.learn_commit(commit);
        Ok(())
    }

    pub(crate) fn on_heartbeat(&mut self, from: ReplicaId, commit: Index, read_round: u64) -> Result<(), Violation> {
        self.hear_leader(from)?;
        if self.guard != Guard::None {
            self.ask_for_snapshot(from);
            if self.has_lost_log() {
                return Ok(());
            }
        }
        // A heartbeat names no more than this replica acknowledged in this term. If the log is shorter, it lost entries.
        let last = self.log.last().index;
        if commit > last {
            return Err(Violation::CommitPastLog { from, commit, last });
        }
        self.commit_to(commit);
        self.send_early(from, self.term, Body::HeartbeatResponse { read_round, overloaded: self.overloaded });
        Ok(())
    }

    /// Whether entries that this replica acknowledged may be gone.
    fn has_lost_log(&self) -> bool {
        matches!(self.guard, Guard::LostLog { .. }) && !plant::is("ack-after-losing-log")
    }

    /// What is lost only a snapshot brings back: one that covers all that was acknowledged, or from which this log goes on.
    fn ask_for_snapshot(&mut self, leader: ReplicaId) {
        let at_least = match self.guard {
            Guard::LostLog { through } => through,
            Guard::NeedsSnapshot | Guard::None => self.log.start().index,
        };
        self.send_held(leader, Body::SnapshotNeeded { at_least });
    }

    /// `bare`: of a place and a membership alone, as witnesses get it.
    pub(crate) fn on_snapshot(&mut self, from: ReplicaId, meta: SnapshotMeta, bare: bool) -> Result<(), Violation> {
        let senseless = meta.pos.term > self.term || meta.pos.term.is_zero() || meta.pos.index.is_zero();
        let senseless = senseless || (!meta.membership.is_consistent() && !plant::is("snapshot-without-voters"));
        if senseless || bare != self.is_witness || self.is_of_other_kind(&meta) {
            self.dropped += 1;
            return Ok(());
        }
        self.hear_leader(from)?;
        let pos = meta.pos;
        let here = self.log.term_at(pos.index);
        match self.guard {
            Guard::LostLog { through } if pos.index < through && !plant::is("lost-log-takes-old-snapshot") => {
                self.dropped += 1;
                return Ok(());
            }
            Guard::LostLog { .. } if meta.membership.contains(self.id) => {
                self.restore(meta);
                self.accept(from, pos.index);
                return Ok(());
            }
            // Were it ahead of what is durable, a crash could leave the state machine ahead of the log. It asks again.
            Guard::NeedsSnapshot if here == Some(pos.term) && pos.index > self.durability.durable() => {
                self.dropped += 1;
                return Ok(());
            }
            Guard::NeedsSnapshot if here == Some(pos.term) => {
                self.begin_again(meta);
                self.accept(from, self.commit);
                return Ok(());
            }
            _ => {}
        }
        if pos.index <= self.commit {
            // Old news; and if it is no news but another history, somebody's committed entry is gone.
            if let Some(term) = here.filter(|term| *term != pos.term) {
                return Err(Violation::Snapshot { snapshot: pos, term });
            }
            sometimes!("stale-snapshot");
            self.accept(from, self.commit);
            return Ok(());
        }
        let same = if plant::is("snapshot-ends-at-a-conflict") { here.is_some() } else { here == Some(pos.term) };
        if same && !plant::is("snapshot-cuts-suffix") {
            sometimes!("snapshot-of-what-the-log-has");
            // The log has all that the snapshot stands for, and maybe more that this replica has acknowledged.
            self.verified = self.verified.max(pos.index);
            self.commit_to(pos.index);
            self.accept(from, self.commit);
            return Ok(());
        }
        // A snapshot without this replica in it is meant for somebody else; and one can't make a voter non-voting, because
        // its vote may be what elected the leader.
        let id = self.id;
        let demoted = !plant::is("snapshot-demotes") && self.membership.is_voter(id) && !meta.membership.is_voter(id);
        if demoted || !meta.membership.contains(id) {
            self.accept(from, self.commit);
            return Ok(());
        }
        self.restore(meta);
        if plant::is("install-acked-before-its-record") {
            self.send_early(from, self.term, Body::AppendAccepted { matched: pos.index });
        }
        self.accept(from, pos.index);
        Ok(())
    }

    /// Whether the snapshot's membership makes a witness of a replica with a state machine, or the other way round.
    fn is_of_other_kind(&self, meta: &SnapshotMeta) -> bool {
        let kind = meta.membership.kind(self.id);
        kind.is_some_and(|kind| (kind == ReplicaKind::Witness) != self.is_witness)
    }

    /// The state machine begins from a snapshot of what the log has, and may have acknowledged more of: nothing of it goes.
    fn begin_again(&mut self, meta: SnapshotMeta) {
        let pos = meta.pos;
        self.verified = self.verified.max(pos.index);
        self.commit_to(pos.index);
        self.hand_out_after(pos.index, &meta);
        self.outbox.rare.recover = Some(Box::new(meta));
    }

    /// What is handed out next is what comes after the snapshot.
    fn hand_out_after(&mut self, index: Index, meta: &SnapshotMeta) {
        self.guard = Guard::None;
        self.handout.handed = index;
        self.handout.cold = Spare::default();
        self.membership = Arc::new(meta.membership.clone());
        self.learn_own_role();
        self.outbox.rare.events.push(crate::Event::MembershipChanged(self.membership.change_id));
    }

    /// Replaces the log by a snapshot. The membership comes from it, never from entries that are gone.
    fn restore(&mut self, mut meta: SnapshotMeta) {
        let pos = meta.pos;
        sometimes!(meta.membership.is_joint(), "install-of-a-joint-configuration");
        sometimes!(self.durability.in_flight(), "install-while-writes-are-under-way");
        sometimes!(self.log.last().index > self.log.start().index, "install-over-a-log");
        if plant::is("restore-drops-joint") {
            meta.membership.outgoing.clear();
        }
        if plant::is("change-id-of-snapshot") {
            meta.membership.change_id = pos.index;
        }
        self.log.reset(pos);
        self.durability.reset(pos.index);
        self.commit = pos.index;
        self.verified = pos.index;
        self.hand_out_after(pos.index, &meta);
        (self.outbox.rare.recover, self.catch_up_to) = (None, Index::ZERO);
        self.outbox.rare.install = Some(Box::new(meta));
    }
}

/// Whether the runs are contiguous from right after `prev`, with terms that never fall and are at most the leader's.
fn is_well_formed(prev: LogPos, runs: &[Run], term: Term) -> bool {
    let mut last = prev;
    for run in runs {
        if run.first() != last.index.next() || run.term() < last.term || run.term().is_zero() || run.term() > term {
            return false;
        }
        last = LogPos::new(run.term(), run.last());
    }
    last.term <= term
}
