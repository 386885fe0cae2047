//! Membership changes, and what each makes of a membership (thesis chapter 4).
//!
//! [`apply`] is pure and idempotent: adding who is there and removing who is not is no error. Changes of at most one voter
//! are made directly (two majorities then always meet); more at once go through a joint configuration, in which the
//! majorities of both voter sets decide. What is allowed when (one change at a time, no removed ids) is decided by those
//! who propose.
//! Must not know: the log, the leader, where members live beyond passing it on.

use crate::ids::{Index, ReplicaId};
use crate::membership::{DecodeError, Membership, member_of, member_record};
use crate::message::Member;
use crate::pb;
use prost::Message as _;

/// A membership change. With no steps and automatic transition it leaves a joint configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// Whether to go through a joint configuration, and how it is left.
    pub transition: Transition,
    /// The steps, made together.
    pub changes: Vec<Change>,
    /// If given, the change is refused unless the membership's `change_id` is this.
    pub after: Option<Index>,
}

/// How a change is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transition {
    /// Directly where that is safe, else through a joint configuration that is left as soon as it is applied.
    #[default]
    Auto,
    /// Through a joint configuration that is left as soon as it is applied.
    JointImplicit,
    /// Through a joint configuration that stays until somebody proposes to leave it.
    JointExplicit,
}

/// One step of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happens to the replica.
    pub kind: ChangeKind,
    /// The replica.
    pub replica: ReplicaId,
    /// Where it lives; of no meaning when it is removed.
    pub member: Member,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangeKind {
    /// Adds a voter, or makes a non-voting member one.
    AddVoter = 1,
    /// Adds a non-voting member, or makes a voter one.
    AddLearner = 2,
    /// Removes a member.
    Remove = 3,
    /// Changes where a member lives.
    Update = 4,
}

/// Why a change can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// An earlier change is not applied yet.
    #[error("an earlier membership change is not applied yet: try again once it is")]
    InFlight,
    /// The configuration is joint.
    #[error("configuration is joint and must be left first")]
    AlreadyJoint,
    /// The configuration is not joint.
    #[error("configuration is not joint: there is nothing to leave")]
    NotJoint,
    /// More than one voter would change directly.
    #[error("more than one voter changes without a joint configuration")]
    ManyVoters,
    /// Nobody could vote.
    #[error("all voters would be removed")]
    NoVoters,
    /// Zero is not a replica.
    #[error("replica id 0 is not allowed")]
    ZeroReplica,
    /// The id was removed once.
    #[error("replica {0} was removed and can't come back: use a new id")]
    Removed(ReplicaId),
    /// The replica has this role already.
    #[error("replica {0} is already a member in this role")]
    Exists(ReplicaId),
    /// No such member.
    #[error("replica {0} is not a member")]
    Unknown(ReplicaId),
    /// The membership is not the one that the change was meant for.
    #[error("membership is at change {current}, the change was meant for {asked}")]
    ChangeId {
        /// The change id asked for.
        asked: Index,
        /// The change id as it is.
        current: Index,
    },
}

impl ConfigChange {
    /// Adds one voter.
    pub fn add_voter(replica: ReplicaId, member: Member) -> Self {
        Self::one(ChangeKind::AddVoter, replica, member)
    }

    /// Adds one non-voting member.
    pub fn add_learner(replica: ReplicaId, member: Member) -> Self {
        Self::one(ChangeKind::AddLearner, replica, member)
    }

    /// Removes one member.
    pub fn remove(replica: ReplicaId) -> Self {
        Self::one(ChangeKind::Remove, replica, Member::default())
    }

    /// Leaves a joint configuration.
    pub fn leave_joint() -> Self {
        Self::default()
    }

    fn one(kind: ChangeKind, replica: ReplicaId, member: Member) -> Self {
        Self { changes: vec![Change { kind, replica, member }], ..Self::default() }
    }

    /// Whether the change leaves a joint configuration.
    pub fn leaves_joint(&self) -> bool {
        self.transition == Transition::Auto && self.changes.is_empty()
    }

    /// Whether the change enters a joint configuration; and if so, whether that is left automatically.
    fn enters_joint(&self) -> Option<bool> {
        let joint = self.transition != Transition::Auto || self.changes.len() > 1;
        joint.then_some(self.transition != Transition::JointExplicit)
    }

    /// The change as the payload of a config entry.
    pub fn encode(&self) -> Vec<u8> {
        let changes = self
            .changes
            .iter()
            .map(|c| pb::Change { kind: c.kind as u32, member: Some(member_record(c.replica, &c.member)) });
        let record = pb::ConfigChange {
            transition: self.transition as u32,
            changes: changes.collect(),
            after: self.after.map(|a| a.0),
        };
        record.encode_to_vec()
    }

    /// The change that a config entry's payload stands for.
    ///
    /// # Errors
    /// When it stands for none.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let record = pb::ConfigChange::decode(bytes).map_err(|e| DecodeError(e.to_string()))?;
        let transition = match record.transition {
            0 => Transition::Auto,
            1 => Transition::JointImplicit,
            2 => Transition::JointExplicit,
            n => return Err(DecodeError(format!("transition {n}"))),
        };
        let changes = record.changes.iter().map(|c| {
            let kind = match c.kind {
                1 => ChangeKind::AddVoter,
                2 => ChangeKind::AddLearner,
                3 => ChangeKind::Remove,
                4 => ChangeKind::Update,
                n => return Err(DecodeError(format!("kind of change {n}"))),
            };
            let member = c.member.as_ref().ok_or_else(|| DecodeError("change without a member".to_owned()))?;
            let (replica, member) = member_of(member)?;
            Ok(Change { kind, replica, member })
        });
        Ok(Self { transition, changes: changes.collect::<Result<_, _>>()?, after: record.after.map(Index) })
    }
}

/// The membership after `change`, in whichever way the change says.
///
/// # Errors
/// When the configuration does not allow the change.
pub fn apply(membership: &Membership, change: &ConfigChange) -> Result<Membership, ChangeError> {
    if change.leaves_joint() {
        leave_joint(membership)
    } else if let Some(auto_leave) = change.enters_joint() {
        enter_joint(membership, &change.changes, auto_leave)
    } else {
        simple(membership, &change.changes)
    }
}

/// Makes changes directly: of voters, at most one.
///
/// # Errors
/// When the configuration is joint, more voters change, or none is left.
pub fn simple(membership: &Membership, changes: &[Change]) -> Result<Membership, ChangeError> {
    if membership.is_joint() {
        return Err(ChangeError::AlreadyJoint);
    }
    let mut next = membership.clone();
    make(&mut next, changes)?;
    // Two configurations that differ by one voter have no majorities that do not meet; by two they may.
    if membership.voters.symmetric_difference(&next.voters).count() > 1 {
        return Err(ChangeError::ManyVoters);
    }
    Ok(next)
}

/// Makes changes by entering a joint configuration: the voters of before are its outgoing half.
///
/// # Errors
/// When the configuration is joint already, or nobody votes before or after.
pub fn enter_joint(membership: &Membership, changes: &[Change], auto_leave: bool) -> Result<Membership, ChangeError> {
    if membership.is_joint() {
        return Err(ChangeError::AlreadyJoint);
    }
    if membership.voters.is_empty() {
        return Err(ChangeError::NoVoters);
    }
    let mut next = membership.clone();
    next.outgoing = membership.voters.clone();
    make(&mut next, changes)?;
    next.auto_leave = auto_leave;
    Ok(next)
}

/// Leaves a joint configuration: its incoming half alone decides from here on.
///
/// # Errors
/// When the configuration is not joint.
pub fn leave_joint(membership: &Membership) -> Result<Membership, ChangeError> {
    if !membership.is_joint() {
        return Err(ChangeError::NotJoint);
    }
    let mut next = membership.clone();
    next.outgoing.clear();
    let demoted = std::mem::take(&mut next.learners_next);
    next.learners.extend(demoted);
    next.auto_leave = false;
    forget_hosts_of_the_gone(&mut next);
    Ok(next)
}

fn make(next: &mut Membership, changes: &[Change]) -> Result<(), ChangeError> {
    for change in changes.iter().filter(|c| !c.replica.is_zero()) {
        let id = change.replica;
        match change.kind {
            ChangeKind::AddVoter => {
                next.learners.remove(&id);
                next.learners_next.remove(&id);
                next.voters.insert(id);
                next.hosts.insert(id, change.member);
            }
            ChangeKind::AddLearner => {
                remove(next, id);
                // A replica that still votes in the outgoing half becomes a non-voting member when that half goes: in
                // between it would have two roles.
                if next.outgoing.contains(&id) {
                    next.learners_next.insert(id);
                } else {
                    next.learners.insert(id);
                }
                next.hosts.insert(id, change.member);
            }
            ChangeKind::Remove => remove(next, id),
            ChangeKind::Update if next.contains(id) => {
                next.hosts.insert(id, change.member);
            }
            ChangeKind::Update => {}
        }
    }
    if next.voters.is_empty() {
        return Err(ChangeError::NoVoters);
    }
    forget_hosts_of_the_gone(next);
    Ok(())
}

fn remove(next: &mut Membership, id: ReplicaId) {
    next.voters.remove(&id);
    next.learners.remove(&id);
    next.learners_next.remove(&id);
}

/// A member's host is known as long as it is a member: an outgoing voter still is one.
fn forget_hosts_of_the_gone(next: &mut Membership) {
    let gone: Vec<ReplicaId> = next.hosts.keys().copied().filter(|id| !next.contains(*id)).collect();
    for id in gone {
        next.hosts.remove(&id);
        next.witnesses.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(voters: &[u64]) -> Membership {
        Membership::from_voters(voters.iter().map(|r| (ReplicaId(*r), Member::default())))
    }

    fn ids(list: &[u64]) -> std::collections::BTreeSet<ReplicaId> {
        list.iter().map(|r| ReplicaId(*r)).collect()
    }

    #[test]
    fn encoding_keeps_every_change() {
        let mut change = ConfigChange::add_voter(ReplicaId(4), Member { host: crate::HostId(9), ..Member::default() });
        change.changes.extend(ConfigChange::remove(ReplicaId(1)).changes);
        change.transition = Transition::JointExplicit;
        change.after = Some(Index(0));
        assert_eq!(ConfigChange::decode(&change.encode()), Ok(change));
        let leave = ConfigChange::leave_joint();
        assert!(leave.encode().is_empty());
        assert_eq!(ConfigChange::decode(&[]), Ok(leave));
        assert!(ConfigChange::decode(&[8, 7]).is_err());
    }

    #[test]
    fn several_voters_at_once_go_through_a_joint_configuration() {
        let mut change = ConfigChange::add_voter(ReplicaId(4), Member::default());
        change.changes.extend(ConfigChange::remove(ReplicaId(1)).changes);
        let joint = apply(&of(&[1, 2, 3]), &change).expect("allowed");
        assert_eq!((&joint.voters, &joint.outgoing), (&ids(&[2, 3, 4]), &ids(&[1, 2, 3])));
        assert!(joint.auto_leave && joint.hosts.contains_key(&ReplicaId(1)));
        assert_eq!(apply(&joint, &change), Err(ChangeError::AlreadyJoint));
        let left = apply(&joint, &ConfigChange::leave_joint()).expect("joint");
        assert_eq!((&left.voters, left.is_joint()), (&ids(&[2, 3, 4]), false));
        assert!(!left.hosts.contains_key(&ReplicaId(1)) && !left.auto_leave);
    }

    #[test]
    fn two_voters_do_not_change_directly() {
        let steps: Vec<Change> =
            [3, 4].map(|r| ConfigChange::add_voter(ReplicaId(r), Member::default()).changes[0]).into();
        assert_eq!(simple(&of(&[1, 2]), &steps), Err(ChangeError::ManyVoters));
    }
}
