//! Membership changes, and what each makes of a membership (thesis chapter 4).
//!
//! [`apply`] is pure and idempotent: adding who is there and removing who is not is no error. Changes of at most one voter
//! are made directly (two majorities then always meet); more at once go through a joint configuration, in which the
//! majorities of both voter sets decide. What is allowed when (one change at a time, no removed ids) is decided by those
//! who propose.
//! Must not know: the log, the leader, where members live beyond passing it on.

use crate::ids::{Index, ReplicaId, StoreId};
use crate::membership::{DecodeError, Membership, member_of, member_record};
use crate::message::Member;
use crate::pb;
use crate::plant;
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
    /// For [`ChangeKind::AddLearner`]: what becomes of it. Of no meaning for other kinds.
    pub promotion: Promotion,
}

/// What becomes of a non-voting member. Kept in the membership, so that whichever replica leads carries it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Promotion {
    /// It stays what it is.
    #[default]
    Never,
    /// The leader makes it a voter as soon as it has caught up.
    WhenCaughtUp,
    /// As soon as it has caught up the leader makes it a voter and removes this voter, in one change.
    Replacing(ReplicaId),
}

impl Promotion {
    /// As [`Membership::promotions`] has it.
    pub(crate) fn recorded(self) -> Option<Option<ReplicaId>> {
        match self {
            Self::Never => None,
            Self::WhenCaughtUp => Some(None),
            Self::Replacing(old) => Some(Some(old)),
        }
    }
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
    /// Adds a witness. No other member becomes one, and it becomes nothing else.
    AddWitness = 5,
}

/// Why a change can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
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
    #[error("no voter would be left that can lead")]
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
    /// A witness would become something else, or something else a witness.
    #[error("replica {0} can't become a witness, or cease to be one: remove it and add another under a new id")]
    Witness(ReplicaId),
    /// What is to be replaced does not vote.
    #[error("replica {0} is not a voter that this one could replace")]
    NotAVoter(ReplicaId),
    /// Witnesses alone would be a majority.
    #[error("witnesses would be a majority of the voters")]
    ManyWitnesses,
    /// The change can't be read, or did not travel alone.
    #[error("membership change can't be read")]
    Malformed,
}

impl ChangeError {
    /// The error as a number and two arguments: how it travels back to a follower.
    pub fn to_parts(self) -> (u8, u64, u64) {
        match self {
            Self::InFlight => (1, 0, 0),
            Self::AlreadyJoint => (2, 0, 0),
            Self::NotJoint => (3, 0, 0),
            Self::ManyVoters => (4, 0, 0),
            Self::NoVoters => (5, 0, 0),
            Self::ZeroReplica => (6, 0, 0),
            Self::Removed(r) => (7, r.0, 0),
            Self::Exists(r) => (8, r.0, 0),
            Self::Unknown(r) => (9, r.0, 0),
            Self::ChangeId { asked, current } => (10, asked.0, current.0),
            Self::Witness(r) => (11, r.0, 0),
            Self::NotAVoter(r) => (12, r.0, 0),
            Self::Malformed => (13, 0, 0),
            Self::ManyWitnesses => (14, 0, 0),
        }
    }

    /// The error that [`Self::to_parts`] gave; `None` for a number that is not known.
    pub fn from_parts(number: u8, a: u64, b: u64) -> Option<Self> {
        Some(match number {
            1 => Self::InFlight,
            2 => Self::AlreadyJoint,
            3 => Self::NotJoint,
            4 => Self::ManyVoters,
            5 => Self::NoVoters,
            6 => Self::ZeroReplica,
            7 => Self::Removed(ReplicaId(a)),
            8 => Self::Exists(ReplicaId(a)),
            9 => Self::Unknown(ReplicaId(a)),
            10 => Self::ChangeId { asked: Index(a), current: Index(b) },
            11 => Self::Witness(ReplicaId(a)),
            12 => Self::NotAVoter(ReplicaId(a)),
            13 => Self::Malformed,
            14 => Self::ManyWitnesses,
            _ => return None,
        })
    }
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

    /// Adds one witness.
    pub fn add_witness(replica: ReplicaId, member: Member) -> Self {
        Self::one(ChangeKind::AddWitness, replica, member)
    }

    /// Adds `new` as a non-voting member that takes the place of the voter `old` once it has caught up.
    pub fn replace(old: ReplicaId, new: ReplicaId, member: Member) -> Self {
        let mut change = Self::add_learner(new, member);
        change.changes[0].promotion = Promotion::Replacing(old);
        change
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
        let promotion = Promotion::Never;
        Self { changes: vec![Change { kind, replica, member, promotion }], ..Self::default() }
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
        let changes = self.changes.iter().map(|c| {
            let (promotion, replaces) = match c.promotion {
                Promotion::Never => (0, 0),
                Promotion::WhenCaughtUp => (1, 0),
                Promotion::Replacing(old) => (2, old.0),
            };
            pb::Change { kind: c.kind as u32, member: Some(member_record(c.replica, &c.member)), promotion, replaces }
        });
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
                5 => ChangeKind::AddWitness,
                n => return Err(DecodeError(format!("kind of change {n}"))),
            };
            let member = c.member.as_ref().ok_or_else(|| DecodeError("change without a member".to_owned()))?;
            let (replica, member) = member_of(member)?;
            let promotion = match c.promotion {
                0 => Promotion::Never,
                1 => Promotion::WhenCaughtUp,
                2 => Promotion::Replacing(ReplicaId(c.replaces)),
                n => return Err(DecodeError(format!("promotion {n}"))),
            };
            Ok(Change { kind, replica, member, promotion })
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
    make(membership, &mut next, changes)?;
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
    make(membership, &mut next, changes)?;
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

fn make(before: &Membership, next: &mut Membership, changes: &[Change]) -> Result<(), ChangeError> {
    for change in changes.iter().filter(|c| !c.replica.is_zero()) {
        let id = change.replica;
        // A witness has no payloads to go on from as something else, and what has a state machine would lose it.
        match change.kind {
            ChangeKind::AddVoter | ChangeKind::AddLearner if next.is_witness(id) => {
                return Err(ChangeError::Witness(id));
            }
            ChangeKind::AddWitness if !next.is_witness(id) && (before.contains(id) || next.contains(id)) => {
                return Err(ChangeError::Witness(id));
            }
            _ => {}
        }
        match change.kind {
            ChangeKind::AddWitness => {
                next.voters.insert(id);
                next.witnesses.insert(id);
                next.hosts.insert(id, change.member);
            }
            ChangeKind::AddVoter => {
                next.learners.remove(&id);
                next.learners_next.remove(&id);
                next.promotions.remove(&id);
                next.voters.insert(id);
                // What the change does not say stays as it is recorded: whoever asked may know less of the member.
                let known = next.hosts.get(&id).copied().filter(|_| !plant::is("promotion-forgets-the-store"));
                next.hosts.insert(id, completed(change.member, known));
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
                if let Some(replaces) = change.promotion.recorded() {
                    next.promotions.insert(id, replaces);
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
    // Witnesses alone could elect nobody.
    let witnesses = next.voters.iter().filter(|v| next.is_witness(**v)).count();
    if witnesses == next.voters.len() {
        return Err(ChangeError::NoVoters);
    }
    // What a majority of witnesses has, with a leader that is gone or was never counted, nobody has the payloads of. So
    // every majority needs a full voter.
    if witnesses > next.voters.len() / 2 && !plant::is("majority-of-witnesses") {
        return Err(ChangeError::ManyWitnesses);
    }
    forget_hosts_of_the_gone(next);
    Ok(())
}

/// A member's record by what a change says of it and what was known before. A store belongs to one host.
fn completed(said: Member, known: Option<Member>) -> Member {
    match known {
        Some(known) if said.host.is_zero() || (said.host == known.host && said.store == StoreId::ZERO) => known,
        _ => said,
    }
}

fn remove(next: &mut Membership, id: ReplicaId) {
    next.voters.remove(&id);
    next.learners.remove(&id);
    next.learners_next.remove(&id);
    next.promotions.remove(&id);
}

/// A member's host is known as long as it is a member: an outgoing voter still is one.
fn forget_hosts_of_the_gone(next: &mut Membership) {
    let gone: Vec<ReplicaId> = next.hosts.keys().copied().filter(|id| !next.contains(*id)).collect();
    for id in gone {
        next.hosts.remove(&id);
    }
    let (voters, outgoing) = (&next.voters, &next.outgoing);
    next.witnesses.retain(|w| voters.contains(w) || outgoing.contains(w));
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
        change.changes.extend(ConfigChange::add_witness(ReplicaId(5), Member::default()).changes);
        change.changes.extend(ConfigChange::replace(ReplicaId(2), ReplicaId(6), Member::default()).changes);
        let mut caught_up = ConfigChange::add_learner(ReplicaId(7), Member::default()).changes[0];
        caught_up.promotion = Promotion::WhenCaughtUp;
        change.changes.push(caught_up);
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
    fn an_update_moves_a_member_and_adds_nobody() {
        let update = |replica| Change {
            kind: ChangeKind::Update,
            replica: ReplicaId(replica),
            member: Member { host: crate::HostId(9), ..Member::default() },
            promotion: Promotion::Never,
        };
        let moved = simple(&of(&[1, 2, 3]), &[update(2)]).expect("allowed");
        assert_eq!((moved.host_of(ReplicaId(2)), moved.voters.len()), (Some(crate::HostId(9)), 3));
        let same = simple(&of(&[1, 2, 3]), &[update(7)]).expect("of no effect");
        assert_eq!(same, of(&[1, 2, 3]));
    }

    #[test]
    fn every_error_travels() {
        let (r, a, b) = (ReplicaId(7), Index(8), Index(9));
        let all = (1..=255).filter_map(|n| ChangeError::from_parts(n, 7, 9));
        let sorted: Vec<ChangeError> = all.collect();
        assert!(sorted.len() == 14 && sorted.contains(&ChangeError::Witness(r)));
        for error in sorted.into_iter().chain([ChangeError::ChangeId { asked: a, current: b }]) {
            let (number, x, y) = error.to_parts();
            assert_eq!(ChangeError::from_parts(number, x, y), Some(error));
        }
    }

    #[test]
    fn two_voters_do_not_change_directly() {
        let steps: Vec<Change> =
            [3, 4].map(|r| ConfigChange::add_voter(ReplicaId(r), Member::default()).changes[0]).into();
        assert_eq!(simple(&of(&[1, 2]), &steps), Err(ChangeError::ManyVoters));
    }
}
