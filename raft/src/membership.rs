//! Who the members of a group are, in what role, and how that changes (paper section 6, thesis chapter 4).

use crate::changer::{self, Change, ChangeError, ChangeKind, ConfigChange};
use crate::ids::{HostId, Index, ReplicaId, StoreId};
use crate::message::Member;
use crate::pb;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// The members of a group. While `outgoing` is not empty the configuration is joint: both majorities decide.
///
/// Invariants: a replica has one role; `outgoing` replicas that are not in `voters` may be in `learners_next`;
/// ids in `removed` are in no other set and never come back.
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
    /// Where each member lives.
    pub hosts: BTreeMap<ReplicaId, Member>,
    /// Ids that were removed, for ever.
    pub removed: BTreeSet<ReplicaId>,
    /// The index of the last applied config entry; 0 for the bootstrap membership.
    pub change_id: Index,
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

    /// Whether the replica votes, in either half of the configuration.
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.outgoing.contains(&replica)
    }

    /// Whether the replica is a member, in whatever role.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.is_voter(replica) || self.learners.contains(&replica)
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
        for Change { kind, replica, .. } in &change.changes {
            let replica = *replica;
            if replica.is_zero() {
                return Err(ChangeError::ZeroReplica);
            }
            match kind {
                ChangeKind::AddVoter | ChangeKind::AddLearner if self.removed.contains(&replica) => {
                    return Err(ChangeError::Removed(replica));
                }
                ChangeKind::AddVoter if self.voters.contains(&replica) => return Err(ChangeError::Exists(replica)),
                ChangeKind::AddLearner if self.learners.contains(&replica) => return Err(ChangeError::Exists(replica)),
                ChangeKind::Remove | ChangeKind::Update if !self.contains(replica) => {
                    return Err(ChangeError::Unknown(replica));
                }
                _ => {}
            }
        }
        changer::apply(self, change).map(drop)
    }

    /// This membership after a committed change, the config entry at `index`.
    ///
    /// A change that can't be made leaves the members as they are, on every replica alike: all decide by the same
    /// committed history. An id that was removed is not added again.
    #[must_use]
    pub fn after(&self, change: &ConfigChange, index: Index) -> Self {
        let mut change = change.clone();
        change.changes.retain(|c| c.kind == ChangeKind::Remove || !self.removed.contains(&c.replica));
        let mut next = changer::apply(self, &change).unwrap_or_else(|_| self.clone());
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
            hosts: hosts?,
            removed: ids(record.removed),
            change_id: Index(record.change_id),
        })
    }
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
