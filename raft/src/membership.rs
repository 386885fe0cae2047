//! Who the members of a group are, in what role, and how that changes (paper section 6, thesis chapter 4).

use crate::changer::{self, Change, ChangeError, ChangeKind, ConfigChange, Promotion};
use crate::ids::{HostId, Index, ReplicaId, StoreId};
use crate::message::Member;
use crate::pb;
use crate::plant;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// The members of a group. While `outgoing` is not empty the configuration is joint: both majorities decide.
///
/// Invariants: a replica has one role; `outgoing` replicas that are not in `voters` may be in `learners_next`;
/// ids in `removed` are in no other set and never come back; a witness is a voter and was one from the start;
/// `promotions` names non-voting members only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Membership {
    /// The voters, or the incoming voters of a joint configuration.
    pub voters: BTreeSet<ReplicaId>,
    /// The outgoing voters of a joint configuration.
    pub outgoing: BTreeSet<ReplicaId>,
    /// Non-voting members.
    pub learners: BTreeSet<ReplicaId>,
    /// Outgoing voters that become non-voting members when the joint configuration is left.
    pub learners_next: BTreeSet<ReplicaId>,
    /// Whether the joint configuration is left as soon as it is applied.
    pub auto_leave: bool,
    /// Those of the voters that keep no payloads and have no state machine.
    pub witnesses: BTreeSet<ReplicaId>,
    /// Non-voting members that the leader makes voters once they have caught up, and the voter that each replaces.
    pub promotions: BTreeMap<ReplicaId, Option<ReplicaId>>,
    /// Where each member lives.
    pub hosts: BTreeMap<ReplicaId, Member>,
    /// Ids that were removed, for ever.
    pub removed: BTreeSet<ReplicaId>,
    /// The index of the last applied config entry; 0 for the bootstrap membership.
    pub change_id: Index,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaKind {
    /// Votes, and has a state machine.
    Voter,
    /// Receives the log and is not counted.
    NonVoting,
    /// Votes and acknowledges, keeps no payloads but those of membership changes, and has no state machine.
    Witness,
}

/// Bytes are not a record of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("membership record can't be decoded: {0}")]
pub struct DecodeError(pub(crate) String);

impl Membership {
    /// A membership of voters alone.
    pub fn from_voters(voters: impl IntoIterator<Item = (ReplicaId, Member)>) -> Self {
        let hosts: BTreeMap<ReplicaId, Member> = voters.into_iter().collect();
        Self { voters: hosts.keys().copied().collect(), hosts, ..Self::default() }
    }

    /// Whether two majorities decide.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether this can be a group's membership: somebody votes, nobody has two roles, and no removed id is back. What a
    /// message or a file brings may not be one; of an empty set of voters nobody is a majority, and everything commits.
    pub fn is_consistent(&self) -> bool {
        let zero = ReplicaId::ZERO;
        let members = [&self.voters, &self.outgoing, &self.learners, &self.learners_next];
        !self.voters.is_empty()
            && members.iter().all(|set| !set.contains(&zero) && set.is_disjoint(&self.removed))
            && self.learners.iter().all(|id| !self.is_voter(*id))
            && self.learners_next.iter().all(|id| self.outgoing.contains(id) && !self.voters.contains(id))
            && self.witnesses.iter().all(|id| self.is_voter(*id))
    }

    /// Whether the replica votes, in either half of the configuration.
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.outgoing.contains(&replica)
    }

    /// Whether the replica is a member, in whatever role.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.is_voter(replica) || self.learners.contains(&replica)
    }

    /// What the replica is; `None` for one that is no member.
    pub fn kind(&self, replica: ReplicaId) -> Option<ReplicaKind> {
        if self.is_voter(replica) {
            Some(if self.is_witness(replica) { ReplicaKind::Witness } else { ReplicaKind::Voter })
        } else {
            self.learners.contains(&replica).then_some(ReplicaKind::NonVoting)
        }
    }

    /// Whether the replica is a witness.
    pub fn is_witness(&self, replica: ReplicaId) -> bool {
        self.witnesses.contains(&replica)
    }

    /// The host on which the replica lives, if that is known.
    pub fn host_of(&self, replica: ReplicaId) -> Option<HostId> {
        self.hosts.get(&replica).map(|m| m.host)
    }

    /// All members, each once: voters of either half in order, then non-voting members in order.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.all_voters().chain(self.learners.iter().copied())
    }

    /// The voters of either half, each once, in order.
    pub fn all_voters(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.voters.union(&self.outgoing).copied()
    }

    /// Whether `change` may be made to this membership now: what a leader asks before it proposes one.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, change: &ConfigChange) -> Result<(), ChangeError> {
        if let Some(after) = change.after
            && after != self.change_id
        {
            return Err(ChangeError::ChangeId { asked: after, current: self.change_id });
        }
        change.changes.iter().try_for_each(|step| self.check_step(step))?;
        changer::apply(self, change).map(drop)
    }

    fn check_step(&self, step: &Change) -> Result<(), ChangeError> {
        let replica = step.replica;
        if replica.is_zero() {
            return Err(ChangeError::ZeroReplica);
        }
        let exists = match step.kind {
            ChangeKind::Remove | ChangeKind::Update if self.contains(replica) => return Ok(()),
            ChangeKind::Remove | ChangeKind::Update => return Err(ChangeError::Unknown(replica)),
            _ if self.removed.contains(&replica) => return Err(ChangeError::Removed(replica)),
            ChangeKind::AddWitness => self.is_witness(replica),
            _ if self.is_witness(replica) => return Err(ChangeError::Witness(replica)),
            ChangeKind::AddVoter => self.voters.contains(&replica),
            // A non-voting member may be told anew when it is to become a voter.
            ChangeKind::AddLearner => {
                self.learners.contains(&replica) && self.promotions.get(&replica).copied() == step.promotion.recorded()
            }
        };
        match step.promotion {
            _ if exists => Err(ChangeError::Exists(replica)),
            Promotion::Replacing(old) if old == replica || !self.voters.contains(&old) => {
                Err(ChangeError::NotAVoter(old))
            }
            _ => Ok(()),
        }
    }

    /// This membership after a committed change, the config entry at `index`.
    ///
    /// A change that can't be made leaves the members as they are, on every replica alike: all decide by the same
    /// committed history. An id that was removed is not added again.
    #[must_use]
    pub fn after(&self, change: &ConfigChange, index: Index) -> Self {
        let mut allowed = change.clone();
        allowed.changes.retain(|c| {
            c.kind == ChangeKind::Remove || !self.removed.contains(&c.replica) || plant::is("removed-id-returns")
        });
        // A change of which nothing is left is not one that leaves a joint configuration.
        let changed = if allowed.leaves_joint() && !change.leaves_joint() {
            Err(ChangeError::Malformed)
        } else {
            changer::apply(self, &allowed)
        };
        let mut next = changed.unwrap_or_else(|_| self.clone());
        let gone: Vec<ReplicaId> = self.replicas().filter(|r| !next.contains(*r)).collect();
        next.removed.extend(gone);
        next.change_id = index;
        next
    }

    /// The membership as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let ids = |set: &BTreeSet<ReplicaId>| set.iter().map(|r| r.0).collect();
        let record = pb::Membership {
            voters: ids(&self.voters),
            outgoing: ids(&self.outgoing),
            learners: ids(&self.learners),
            learners_next: ids(&self.learners_next),
            auto_leave: self.auto_leave,
            witnesses: ids(&self.witnesses),
            members: self.hosts.iter().map(|(r, m)| member_record(*r, m)).collect(),
            removed: ids(&self.removed),
            change_id: self.change_id.0,
            promotions: self.promotions.iter().map(promotion_record).collect(),
        };
        record.encode_to_vec()
    }

    /// The membership that these bytes stand for.
    ///
    /// # Errors
    /// When they stand for none.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let record = pb::Membership::decode(bytes).map_err(|e| DecodeError(e.to_string()))?;
        let ids = |list: Vec<u64>| list.into_iter().map(ReplicaId).collect();
        let hosts: Result<BTreeMap<_, _>, _> = record.members.iter().map(member_of).collect();
        Ok(Self {
            voters: ids(record.voters),
            outgoing: ids(record.outgoing),
            learners: ids(record.learners),
            learners_next: ids(record.learners_next),
            auto_leave: record.auto_leave,
            witnesses: ids(record.witnesses),
            promotions: record.promotions.iter().map(promotion_of).collect(),
            hosts: hosts?,
            removed: ids(record.removed),
            change_id: Index(record.change_id),
        })
    }
}

fn promotion_record((learner, replaces): (&ReplicaId, &Option<ReplicaId>)) -> pb::Promotion {
    pb::Promotion { learner: learner.0, replaces: replaces.map(|r| r.0) }
}

fn promotion_of(record: &pb::Promotion) -> (ReplicaId, Option<ReplicaId>) {
    (ReplicaId(record.learner), record.replaces.map(ReplicaId))
}

pub(crate) fn member_record(replica: ReplicaId, member: &Member) -> pb::Member {
    let store = if member.store.is_zero() { Vec::new() } else { member.store.0.to_le_bytes().to_vec() };
    pb::Member { replica: replica.0, host: member.host.0, store }
}

pub(crate) fn member_of(record: &pb::Member) -> Result<(ReplicaId, Member), DecodeError> {
    let store = match record.store.len() {
        0 => StoreId::ZERO,
        16 => StoreId(u128::from_le_bytes(record.store[..].try_into().expect("sixteen bytes"))),
        n => return Err(DecodeError(format!("store id of {n} bytes"))),
    };
    Ok((ReplicaId(record.replica), Member { host: HostId(record.host), store }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(host: u64) -> Member {
        Member { host: HostId(host), store: StoreId(u128::from(host) << 70) }
    }

    fn three() -> Membership {
        Membership::from_voters((1..=3).map(|r| (ReplicaId(r), member(r * 10))))
    }

    #[test]
    fn encoding_keeps_everything() {
        let mut m = three();
        m.outgoing = [ReplicaId(3), ReplicaId(4)].into();
        m.learners = [ReplicaId(7)].into();
        m.learners_next = [ReplicaId(4)].into();
        m.auto_leave = true;
        m.witnesses = [ReplicaId(2)].into();
        m.promotions = [(ReplicaId(7), Some(ReplicaId(1))), (ReplicaId(8), None)].into();
        m.removed = [ReplicaId(9)].into();
        m.change_id = Index(77);
        assert_eq!(Membership::decode(&m.encode()), Ok(m));
        assert!(Membership::decode(&[0xff]).is_err());
    }

    #[test]
    fn members_are_found_once_each_with_their_hosts() {
        let mut m = three();
        m.outgoing = [ReplicaId(3), ReplicaId(4)].into();
        m.learners = [ReplicaId(2 + 7)].into();
        assert_eq!(m.replicas().map(|r| r.0).collect::<Vec<_>>(), [1, 2, 3, 4, 9]);
        assert!(m.is_joint() && m.contains(ReplicaId(4)) && !m.contains(ReplicaId(5)));
        assert_eq!((m.host_of(ReplicaId(2)), m.host_of(ReplicaId(5))), (Some(HostId(20)), None));
    }

    #[test]
    fn a_removed_id_never_comes_back() {
        let gone = three().after(&ConfigChange::remove(ReplicaId(3)), Index(5));
        assert!(gone.removed.contains(&ReplicaId(3)) && !gone.contains(ReplicaId(3)));
        assert!(!gone.hosts.contains_key(&ReplicaId(3)));
        let again = ConfigChange::add_voter(ReplicaId(3), member(30));
        assert_eq!(gone.check(&again), Err(ChangeError::Removed(ReplicaId(3))));
        let after = gone.after(&again, Index(6));
        assert!(!after.contains(ReplicaId(3)));
        assert_eq!(after.change_id, Index(6));
    }

    #[test]
    fn a_witness_is_one_from_the_start_and_for_ever() {
        let w = ReplicaId(4);
        let m = three().after(&ConfigChange::add_witness(w, member(40)), Index(5));
        assert_eq!((m.kind(w), m.kind(ReplicaId(1))), (Some(ReplicaKind::Witness), Some(ReplicaKind::Voter)));
        assert!(m.is_voter(w) && m.kind(ReplicaId(9)).is_none());
        for other in [ConfigChange::add_voter(w, member(40)), ConfigChange::add_learner(w, member(40))] {
            assert_eq!(m.check(&other), Err(ChangeError::Witness(w)));
            // Committed all the same, it changes nothing but the change id.
            assert_eq!(m.after(&other, Index(6)), Membership { change_id: Index(6), ..m.clone() });
        }
        assert_eq!(m.check(&ConfigChange::add_witness(w, member(40))), Err(ChangeError::Exists(w)));
        let voter = ConfigChange::add_witness(ReplicaId(1), member(10));
        assert_eq!(m.check(&voter), Err(ChangeError::Witness(ReplicaId(1))));
        assert_eq!(m.after(&voter, Index(6)).witnesses, [w].into());
        let both = ConfigChange {
            changes: [ConfigChange::remove(w).changes, ConfigChange::add_voter(w, member(40)).changes].concat(),
            ..ConfigChange::default()
        };
        assert_eq!(m.check(&both), Err(ChangeError::Witness(w)));
        let gone = m.after(&ConfigChange::remove(w), Index(7));
        assert!(gone.witnesses.is_empty() && gone.removed.contains(&w));
    }

    #[test]
    fn witnesses_alone_are_no_voters() {
        let one = Membership::from_voters([(ReplicaId(1), member(10))]);
        let m = one.after(&ConfigChange::add_witness(ReplicaId(2), member(20)), Index(1));
        assert_eq!(m.check(&ConfigChange::remove(ReplicaId(1))), Err(ChangeError::NoVoters));
    }

    #[test]
    fn what_becomes_of_a_learner_is_part_of_the_membership() {
        let (old, new) = (ReplicaId(1), ReplicaId(4));
        let replace = ConfigChange::replace(old, new, member(40));
        let m = three().after(&replace, Index(5));
        assert_eq!((m.kind(new), m.promotions.get(&new)), (Some(ReplicaKind::NonVoting), Some(&Some(old))));
        assert_eq!(m.check(&replace), Err(ChangeError::Exists(new)));
        let other = ConfigChange::replace(ReplicaId(2), new, member(40));
        assert_eq!(m.after(&other, Index(6)).promotions, [(new, Some(ReplicaId(2)))].into());
        assert!(m.after(&ConfigChange::add_learner(new, member(40)), Index(6)).promotions.is_empty());
        assert!(m.after(&ConfigChange::add_voter(new, member(40)), Index(6)).promotions.is_empty());
        assert!(m.after(&ConfigChange::remove(new), Index(6)).promotions.is_empty());
        let unknown = ConfigChange::replace(ReplicaId(8), new, member(40));
        assert_eq!(m.check(&unknown), Err(ChangeError::NotAVoter(ReplicaId(8))));
        assert_eq!(m.check(&ConfigChange::replace(new, new, member(40))), Err(ChangeError::NotAVoter(new)));
    }

    #[test]
    fn a_change_of_which_nothing_is_left_does_not_leave_a_joint_configuration() {
        let gone = three().after(&ConfigChange::remove(ReplicaId(3)), Index(5));
        let steps =
            [ConfigChange::add_voter(ReplicaId(5), member(50)).changes, ConfigChange::remove(ReplicaId(1)).changes];
        let joint = gone.after(&ConfigChange { changes: steps.concat(), ..ConfigChange::default() }, Index(6));
        assert!(joint.is_joint());
        assert!(joint.after(&ConfigChange::add_voter(ReplicaId(3), member(30)), Index(7)).is_joint());
    }

    #[test]
    fn changes_that_make_no_sense_are_refused_with_their_reason() {
        let m = three();
        let check = |change| m.check(&change).expect_err("refused");
        assert_eq!(check(ConfigChange::remove(ReplicaId::ZERO)), ChangeError::ZeroReplica);
        assert_eq!(check(ConfigChange::remove(ReplicaId(8))), ChangeError::Unknown(ReplicaId(8)));
        assert_eq!(check(ConfigChange::add_voter(ReplicaId(1), member(1))), ChangeError::Exists(ReplicaId(1)));
        assert_eq!(check(ConfigChange::leave_joint()), ChangeError::NotJoint);
        let late = ConfigChange { after: Some(Index(4)), ..ConfigChange::remove(ReplicaId(1)) };
        assert_eq!(check(late), ChangeError::ChangeId { asked: Index(4), current: Index(0) });
        assert_eq!(m.check(&ConfigChange::remove(ReplicaId(1))), Ok(()));
    }
}
