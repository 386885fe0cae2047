//! Membership: how a change is put together, and what the first members of a group are.

use longboat_raft as raft;
use longboat_raft::{HostId, Index, Member, Membership, Promotion, ReplicaId, ReplicaKind, StoreId, Transition};

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberInfo {
    /// The replica.
    pub replica: ReplicaId,
    /// What it is.
    pub kind: ReplicaKind,
    /// The host that it lives on.
    pub host: HostId,
}

/// The members of a group, sorted by replica.
pub(crate) fn infos(membership: &Membership) -> Vec<MemberInfo> {
    let info = |replica| {
        let kind = membership.kind(replica)?;
        Some(MemberInfo { replica, kind, host: membership.host_of(replica).unwrap_or_default() })
    };
    let mut infos: Vec<_> = membership.replicas().filter_map(info).collect();
    infos.sort_unstable_by_key(|m| m.replica);
    infos
}

/// How a replica comes to be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaStart {
    /// With the group's first members, the same on every host. Continues a replica that is here already.
    Bootstrap(FirstMembers),
    /// Joins a group that has added it.
    Join,
    /// Continues a replica that is here already.
    Restart,
}

/// The first members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstMembers {
    pub(crate) membership: Box<Membership>,
}

impl ReplicaStart {
    /// The first members of a new group, all voters: which replica lives on which host.
    pub fn bootstrap(members: impl IntoIterator<Item = (ReplicaId, HostId)>) -> Self {
        members
            .into_iter()
            .fold(Self::Bootstrap(FirstMembers::default()), |start, (id, host)| start.and_voter(id, host))
    }

    /// One more voter among the first members.
    #[must_use]
    pub fn and_voter(self, replica: ReplicaId, host: HostId) -> Self {
        self.and(replica, host, |m| {
            m.voters.insert(replica);
        })
    }

    /// A witness among the first members: it votes and acknowledges, and has no state machine.
    #[must_use]
    pub fn and_witness(self, replica: ReplicaId, host: HostId) -> Self {
        self.and(replica, host, |m| {
            m.voters.insert(replica);
            m.witnesses.insert(replica);
        })
    }

    /// A non-voting replica among the first members.
    #[must_use]
    pub fn and_non_voting(self, replica: ReplicaId, host: HostId) -> Self {
        self.and(replica, host, |m| {
            m.learners.insert(replica);
        })
    }

    /// Of no effect on a replica that joins or restarts: the group tells it its members.
    fn and(mut self, replica: ReplicaId, host: HostId, add: impl FnOnce(&mut Membership)) -> Self {
        if let Self::Bootstrap(first) = &mut self {
            first.membership.hosts.insert(replica, member(host));
            add(&mut first.membership);
        }
        self
    }
}

pub(crate) fn member(host: HostId) -> Member {
    Member { host, store: StoreId::ZERO }
}

/// A membership change: one step, or several that are made together by joint consensus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigChange {
    inner: raft::ConfigChange,
}

impl ConfigChange {
    /// No steps yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves a joint configuration that was entered with [`ConfigChange::explicit`].
    pub fn leave_joint() -> Self {
        Self { inner: raft::ConfigChange::leave_joint() }
    }

    /// Adds a voter, or makes a non-voting member one.
    #[must_use]
    pub fn add_voter(self, replica: ReplicaId, host: HostId) -> Self {
        self.with(raft::ConfigChange::add_voter(replica, member(host)))
    }

    /// Adds a non-voting member, or makes a voter one.
    #[must_use]
    pub fn add_non_voting(self, replica: ReplicaId, host: HostId) -> Self {
        self.with(raft::ConfigChange::add_learner(replica, member(host)))
    }

    /// Adds a non-voting member that the leader makes a voter as soon as it has caught up.
    #[must_use]
    pub fn add_and_promote(self, replica: ReplicaId, host: HostId) -> Self {
        let mut change = raft::ConfigChange::add_learner(replica, member(host));
        change.changes.iter_mut().for_each(|c| c.promotion = Promotion::WhenCaughtUp);
        self.with(change)
    }

    /// Adds a witness. No member becomes one, and it becomes nothing else.
    #[must_use]
    pub fn add_witness(self, replica: ReplicaId, host: HostId) -> Self {
        self.with(raft::ConfigChange::add_witness(replica, member(host)))
    }

    /// Removes a member. Its id is never used again.
    #[must_use]
    pub fn remove(self, replica: ReplicaId) -> Self {
        self.with(raft::ConfigChange::remove(replica))
    }

    /// Makes the steps by joint consensus even where one change would do, and stays in the joint configuration until
    /// [`ConfigChange::leave_joint`]. Else it is entered where it is needed and left by itself.
    #[must_use]
    pub fn explicit(mut self) -> Self {
        self.inner.transition = Transition::JointExplicit;
        self
    }

    /// Refused unless the membership's change id is this: no other change came between.
    #[must_use]
    pub fn after(mut self, change_id: Index) -> Self {
        self.inner.after = Some(change_id);
        self
    }

    fn with(mut self, step: raft::ConfigChange) -> Self {
        self.inner.changes.extend(step.changes);
        self
    }

    pub(crate) fn into_inner(self) -> raft::ConfigChange {
        self.inner
    }
}
