//! A follower's side of replication (paper section 5.3), and snapshot install (section 7).
//!
//! Invariants kept here: entries are taken only right after one that the leader has too; committed entries are never
//! overwritten; the commit index moves only over entries that are known to be the leader's.

use crate::core::{Core, Role};
use crate::error::Violation;
use crate::ids::{Index, LogPos, ReplicaId, Term};
use crate::log::configs_decode;
use crate::message::{Body, SnapshotMeta};
use crate::run::Run;

impl Core {
    /// Somebody speaks as the leader of this term.
    pub(crate) fn hear_leader(&mut self, from: ReplicaId) -> Result<(), Violation> {
        let term = self.term;
        if self.role == Role::Leader {
            return Err(Violation::TwoLeaders { first: self.config.replica, second: from, term });
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
        if !is_well_formed(prev, runs, self.term) {
            self.dropped += 1;
            return Ok(());
        }
        if let Some(run) = runs.iter().find(|r| !configs_decode(r)) {
            return Err(Violation::ConfigEntry { index: run.first() });
        }
        self.hear_leader(from)?;
        if prev.index < self.commit {
            // Late, or sent again. Whatever leads has all that is committed, so say how far that is.
            self.accept(from, self.commit);
            return Ok(());
        }
        // A replica that joins knows no membership, and none can be derived from a log whose first membership is not in
        // it: it would count whoever is added later as everybody. It needs a snapshot, and says so by refusing even the
        // start of the log.
        let knows_members = !self.membership.voters.is_empty();
        if !knows_members || self.log.term_at(prev.index) != Some(prev.term) {
            let hint = self.log.find_conflict(prev.index, prev.term);
            self.send_held(from, Body::AppendRejected { rejected: prev.index, hint });
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
        self.commit_to(self.leader_commit.min(self.verified));
    }

    pub(crate) fn on_commit(&mut self, from: ReplicaId, commit: Index) -> Result<(), Violation> {
        self.hear_leader(from)?;
        self.learn_commit(commit);
        Ok(())
    }

    pub(crate) fn on_heartbeat(&mut self, from: ReplicaId, commit: Index, read_round: u64) -> Result<(), Violation> {
        self.hear_leader(from)?;
        // A heartbeat names no more than this replica acknowledged in this term. If the log is shorter, it lost entries.
        let last = self.log.last().index;
        if commit > last {
            return Err(Violation::CommitPastLog { from, commit, last });
        }
        self.commit_to(commit);
        self.send_early(from, self.term, Body::HeartbeatResponse { read_round });
        Ok(())
    }

    pub(crate) fn on_snapshot(&mut self, from: ReplicaId, meta: SnapshotMeta) -> Result<(), Violation> {
        if meta.pos.term > self.term || meta.pos.term.is_zero() || meta.pos.index.is_zero() {
            self.dropped += 1;
            return Ok(());
        }
        self.hear_leader(from)?;
        let pos = meta.pos;
        let here = self.log.term_at(pos.index);
        if pos.index <= self.commit {
            // Old news; and if it is no news but another history, somebody's committed entry is gone.
            if let Some(term) = here.filter(|term| *term != pos.term) {
                return Err(Violation::Snapshot { snapshot: pos, term });
            }
            self.accept(from, self.commit);
            return Ok(());
        }
        if here == Some(pos.term) {
            // The log has all that the snapshot stands for, and maybe more that this replica has acknowledged.
            self.verified = self.verified.max(pos.index);
            self.commit_to(pos.index);
            self.accept(from, self.commit);
            return Ok(());
        }
        // A snapshot without this replica in it is meant for somebody else; and one can't make a voter non-voting, because
        // its vote may be what elected the leader.
        let id = self.config.replica;
        let demoted = self.membership.is_voter(id) && !meta.membership.is_voter(id);
        if demoted || !meta.membership.contains(id) {
            self.accept(from, self.commit);
            return Ok(());
        }
        self.restore(meta);
        self.accept(from, pos.index);
        Ok(())
    }

    /// Replaces the log by a snapshot. The membership comes from it, never from entries that are gone.
    fn restore(&mut self, meta: SnapshotMeta) {
        let pos = meta.pos;
        self.log.reset(pos);
        self.durability.reset(pos.index);
        self.commit = pos.index;
        self.verified = pos.index;
        self.handout.handed = pos.index;
        self.handout.ticket = None;
        self.handout.fetched.clear();
        self.membership = meta.membership.clone();
        self.is_voter = self.membership.is_voter(self.config.replica);
        self.outbox.events.push(crate::Event::MembershipChanged(self.membership.change_id));
        self.outbox.install = Some(Box::new(meta));
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
