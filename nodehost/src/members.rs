//! Membership: how a change is put together, and what the first members of a group are.

use longboat_raft as raft;
use longboat_raft::{HostId, Index, Member, Membership, Promotion, ReplicaId, ReplicaKind, StoreId, Transition};
use std::path::PathBuf;

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
    /// Begins a new group from an exported snapshot, with these members, on the host of each of them. See
    /// [`ReplicaStart::from_snapshot`].
    FromSnapshot {
        /// The export's directory.
        dir: PathBuf,
        /// The members of the new group.
        members: FirstMembers,
    },
}

/// The members that a group begins with, or goes on with after an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstMembers {
    pub(crate) membership: Box<Membership>,
}

impl FirstMembers {
    /// Voters: which replica lives on which host.
    pub fn voters(members: impl IntoIterator<Item = (ReplicaId, HostId)>) -> Self {
        members.into_iter().fold(Self::default(), |all, (id, host)| all.and_voter(id, host))
    }

    /// One more voter.
    #[must_use]
    pub fn and_voter(self, replica: ReplicaId, host: HostId) -> Self {
        self.and(replica, host, |m| {
            m.voters.insert(replica);
        })
    }

    /// A witness: it votes and acknowledges, and has no state machine.
    #[must_use]
    pub fn and_witness(self, replica: ReplicaId, host: HostId) -> Self {
        self.and(replica, host, |m| {
            m.voters.insert(replica);
            m.witnesses.insert(replica);
        })
    }

    /// A non-voting member.
    #[must_use]
    pub fn and_non_voting(self, replica: ReplicaId, host: HostId) -> Self {
        self.and(replica, host, |m| {
            m.learners.insert(replica);
        })
    }

    fn and(mut self, replica: ReplicaId, host: HostId, add: impl FnOnce(&mut Membership)) -> Self {
        self.membership.hosts.insert(replica, member(host));
        add(&mut self.membership);
        self
    }
}

impl ReplicaStart {
    /// The first members of a new group, all voters: which replica lives on which host.
    pub fn bootstrap(members: impl IntoIterator<Item = (ReplicaId, HostId)>) -> Self {
        Self::Bootstrap(FirstMembers::voters(members))
    }

    /// Begins a *new* group, under an id of its own, from an exported snapshot of another one: for databases that split a
    /// group. Each member is started like this, from the same export. The new group goes on from the export's place in the
    /// log and has its client sessions. Copies and checks the export before it returns. Continues a replica that is here already.
    pub fn from_snapshot(dir: impl Into<PathBuf>, members: FirstMembers) -> Self {
        Self::FromSnapshot { dir: dir.into(), members }
    }

    /// One more voter among the first members.
    #[must_use]
    pub fn and_voter(self, replica: ReplicaId, host: HostId) -> Self {
        self.with(|members| members.and_voter(replica, host))
    }

    /// A witness among the first members: it votes and acknowledges, and has no state machine.
    #[must_use]
    pub fn and_witness(self, replica: ReplicaId, host: HostId) -> Self {
        self.with(|members| members.and_witness(replica, host))
    }

    /// A non-voting replica among the first members.
    #[must_use]
    pub fn and_non_voting(self, replica: ReplicaId, host: HostId) -> Self {
        self.with(|members| members.and_non_voting(replica, host))
    }

    /// Of no effect on a replica that joins or restarts: the group tells it its members.
    fn with(self, add: impl FnOnce(FirstMembers) -> FirstMembers) -> Self {
        match self {
            Self::Bootstrap(members) => Self::Bootstrap(add(members)),
            Self::FromSnapshot { dir, members } => Self::FromSnapshot { dir, members: add(members) },
            other => other,
        }
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
