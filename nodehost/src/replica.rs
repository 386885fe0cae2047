//! A replica of this host as its clients hold it, whatever its state machine: leadership, membership, figures.

use crate::members::{self, ConfigChange, MemberInfo};
use longboat_engine::{Changed, GroupShared, Rare, Replacement, SnapshotOptions, SnapshotOutcome, Transferred};
use longboat_raft::{self as raft, ChangeError, GroupId, HostId, Index, Membership, ReplicaId, Term};
use longboat_rsm::{Pending, RequestError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The leader of a group, as this replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The leader.
    pub replica: ReplicaId,
    /// Its term.
    pub term: Term,
}

/// Figures of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// Its term.
    pub term: Term,
    /// The leader that it knows.
    pub leader: Option<ReplicaId>,
    /// Its commit index.
    pub commit: Index,
    /// Through where its state machine has applied.
    pub applied: Index,
    /// The first entry that its log keeps.
    pub first_index: Index,
    /// The last entry of its log.
    pub last_index: Index,
    /// The index of its newest snapshot; zero if it has none.
    pub snapshot_index: Index,
    /// Snapshots saved since it started.
    pub snapshots_saved: u64,
    /// Snapshots installed from a leader since it started.
    pub snapshots_installed: u64,
    /// Entries truncated from its log since it started.
    pub entries_truncated: u64,
}

/// A replica on this host. Cheap to clone, usable from any thread. [`crate::Group`] is one whose state machine is known.
#[derive(Clone)]
pub struct Replica {
    pub(crate) shared: Arc<GroupShared>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (group, replica) = (&self.shared.group, &self.shared.replica);
        f.debug_struct("Replica").field("group", group).field("replica", replica).finish_non_exhaustive()
    }
}

impl Replica {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.shared.group
    }

    /// The replica on this host.
    pub fn replica(&self) -> ReplicaId {
        self.shared.replica
    }

    /// Asks for an index at which a linearizable read may be made here, any number of times, with
    /// [`crate::Group::local_read`]. Resolves when this replica has applied that index.
    ///
    /// # Errors
    /// As [`crate::Group::read`].
    pub fn read_index(&self, timeout: Duration) -> Result<Pending<Index>, RequestError> {
        self.shared.enqueue_read_index(self.shared.deadline_after(timeout))
    }

    /// Waits until this replica has applied `index`, which may be one that no entry has yet. Resolves with how far it
    /// has applied.
    ///
    /// # Errors
    /// As [`crate::Group::read`].
    pub fn wait_applied(&self, index: Index, timeout: Duration) -> Result<Pending<Index>, RequestError> {
        self.shared.enqueue_wait(index, self.shared.deadline_after(timeout))
    }

    /// Asks for a snapshot of this replica: one of its own, behind which the log is truncated, or one that is exported to a
    /// directory, to be carried away. A timeout ends the waiting; the save goes on.
    ///
    /// [`RequestError::SnapshotRefused`] says why none is begun. A request while nothing new was applied is
    /// [`SnapshotOutcome::Ignored`]; an export never is.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when a request waits already; options that do not go together; or that the replica takes no
    /// more requests.
    pub fn request_snapshot(
        &self,
        options: SnapshotOptions,
        timeout: Duration,
    ) -> Result<Pending<SnapshotOutcome>, RequestError> {
        self.shared.enqueue_snapshot(options, self.shared.deadline_after(timeout))
    }

    /// Aborts the snapshots of this replica that are asked for or under way, exports and automatic ones too. They end at the
    /// next block, with [`RequestError::SnapshotAborted`] and without a trace, unless they are done before. Returns whether
    /// there was any.
    pub fn abort_snapshots(&self) -> bool {
        self.shared.abort_snapshots()
    }

    // ---- leadership ---------------------------------------------------------------------------------------------

    /// The leader that this replica knows, without asking anybody.
    pub fn leader(&self) -> Option<Leader> {
        self.shared.leader().map(|(term, replica)| Leader { replica, term })
    }

    /// Whether this replica takes itself for the leader.
    pub fn is_leader(&self) -> bool {
        self.shared.leader().is_some_and(|(_, replica)| replica == self.shared.replica)
    }

    /// Hands leadership to the voter `to`. Works on any replica: the leader is asked. Proposals made at the leader
    /// meanwhile wait; the target is given an election timeout to take over. Resolves when it leads, at once if it does.
    ///
    /// [`RequestError::TransferFailed`] says why it does not: not a voter, a witness, too far behind, not won in time. After
    /// [`RequestError::Timeout`] it may still come to lead.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when too many such requests wait; or that the replica takes no more requests.
    pub fn transfer_leader(&self, to: ReplicaId, timeout: Duration) -> Result<Pending<Transferred>, RequestError> {
        self.shared.request(self.shared.deadline_after(timeout), |reply| Rare::Transfer(to, reply))
    }

    /// Names the replica that is to lead when it can, or nobody. While this replica leads it hands leadership over to the
    /// preferred one as soon as that has caught up; votes and timeouts are the same for all. Known to this replica until it
    /// stops: tell every replica, or set [`crate::GroupConfig::preferred_leader`].
    ///
    /// # Errors
    /// As [`Replica::transfer_leader`].
    pub fn set_preferred_leader(&self, replica: Option<ReplicaId>) -> Result<Pending<()>, RequestError> {
        let never = raft::Time(u64::MAX);
        self.shared.request(never, |reply| Rare::Prefer(replica, reply))
    }

    // ---- membership ---------------------------------------------------------------------------------------------

    /// The membership in effect at this replica, joint part and change id included, without asking anybody.
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.shared.membership.lock())
    }

    /// The members as this replica knows them, sorted by replica.
    pub fn members(&self) -> Vec<MemberInfo> {
        members::infos(&self.membership())
    }

    /// Changes the membership. Works on any replica: it is forwarded to the leader. Resolves when the change is in effect
    /// here; one through a joint configuration that is left by itself, when that is left.
    ///
    /// [`RequestError::ConfigRefused`] carries the leader's reason. One change at a time is on its way.
    ///
    /// # Errors
    /// As [`Replica::transfer_leader`].
    pub fn change_membership(&self, change: ConfigChange, timeout: Duration) -> Result<Pending<Changed>, RequestError> {
        let change = change.into_inner();
        self.shared.request(self.shared.deadline_after(timeout), |reply| Rare::Change(change, reply))
    }

    /// Adds a voter. Its replica is started there with [`crate::ReplicaStart::Join`].
    ///
    /// # Errors
    /// As [`Replica::transfer_leader`].
    pub fn add_voter(
        &self,
        replica: ReplicaId,
        host: HostId,
        timeout: Duration,
    ) -> Result<Pending<Changed>, RequestError> {
        self.change_membership(ConfigChange::new().add_voter(replica, host), timeout)
    }

    /// Adds a member that receives the log and is not counted.
    ///
    /// # Errors
    /// As [`Replica::transfer_leader`].
    pub fn add_non_voting(
        &self,
        replica: ReplicaId,
        host: HostId,
        timeout: Duration,
    ) -> Result<Pending<Changed>, RequestError> {
        self.change_membership(ConfigChange::new().add_non_voting(replica, host), timeout)
    }

    /// Adds a witness. It is started there with [`crate::NodeHost::start_witness`].
    ///
    /// # Errors
    /// As [`Replica::transfer_leader`].
    pub fn add_witness(
        &self,
        replica: ReplicaId,
        host: HostId,
        timeout: Duration,
    ) -> Result<Pending<Changed>, RequestError> {
        self.change_membership(ConfigChange::new().add_witness(replica, host), timeout)
    }

    /// Makes a non-voting member a voter, where it lives.
    ///
    /// # Errors
    /// As [`Replica::transfer_leader`], and at once when this replica knows no such member.
    pub fn promote(&self, replica: ReplicaId, timeout: Duration) -> Result<Pending<Changed>, RequestError> {
        if !self.membership().contains(replica) {
            return Err(RequestError::ConfigRefused(ChangeError::Unknown(replica)));
        }
        // Where it lives is not said: what is recorded when the change takes effect stays, which may be newer than what is known here.
        self.add_voter(replica, HostId::ZERO, timeout)
    }

    /// Removes a member, for ever. It is told, and stops.
    ///
    /// # Errors
    /// As [`Replica::transfer_leader`].
    pub fn remove(&self, replica: ReplicaId, timeout: Duration) -> Result<Pending<Changed>, RequestError> {
        self.change_membership(ConfigChange::new().remove(replica), timeout)
    }

    /// Puts `new`, on `host`, in the place of the voter `old`: adds it, lets it catch up, makes it a voter and removes the
    /// old one in one change. The intent is part of the membership, so whichever replica leads carries it out, also when
    /// whoever called this is gone. Calling it again with the same arguments, at any replica, waits for the same thing, or
    /// says that it is done; contradicting ones are refused. Resolves when `new` is a voter, `old` is no member any more, and
    /// those who stay know that for good: from then on the group stands the loss of any minority of its members, `old` not among
    /// them. One host may be taken away after the other so, each when this has resolved for all of its replicas.
    ///
    /// When the host comes back with an empty directory, ask once it is not among `HostInfo::suspected_hosts` any more: a member
    /// that is added before its host has shown its new store is recorded with the former one, and never believed. It then
    /// takes one more replacement, under another id.
    ///
    /// # Errors
    /// As [`Replica::transfer_leader`].
    pub fn replace_replica(
        &self,
        old: ReplicaId,
        new: ReplicaId,
        host: HostId,
        timeout: Duration,
    ) -> Result<Pending<Changed>, RequestError> {
        let what = Replacement { old, new, member: members::member(host) };
        self.shared.request(self.shared.deadline_after(timeout), |reply| Rare::Replace(what, reply))
    }

    // ---- figures ------------------------------------------------------------------------------------------------

    /// Figures of this replica, without asking anybody. They are read one after the other, not at one moment.
    pub fn info(&self) -> GroupInfo {
        let p = &self.shared.published;
        let index = |cell: &AtomicU64| Index(cell.load(Ordering::Acquire));
        GroupInfo {
            group: self.shared.group,
            replica: self.shared.replica,
            term: Term(p.term.load(Ordering::Acquire)),
            leader: self.shared.leader().map(|l| l.1),
            commit: index(&p.commit),
            applied: index(&p.applied),
            first_index: index(&p.start).next(),
            last_index: index(&p.last),
            snapshot_index: index(&p.snapshot),
            snapshots_saved: p.counters.saved.load(Ordering::Relaxed),
            snapshots_installed: p.counters.installed.load(Ordering::Relaxed),
            entries_truncated: p.counters.truncated.load(Ordering::Relaxed),
        }
    }

    /// A hash of the replica's state, if its state machine has one, and the index at which it was taken.
    pub fn state_hash(&self) -> Option<(Index, u64)> {
        let machine = self.shared.machine.lock();
        let index = Index(self.shared.published.applied.load(Ordering::Acquire));
        machine.state_hash().map(|hash| (index, hash))
    }
}
