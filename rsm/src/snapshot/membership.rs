//! A group's membership as bytes.

use super::error::SnapshotError;
use longboat_raft::{HostId, Index, Member, Membership, ReplicaId, StoreId};
use std::collections::BTreeSet;

pub(crate) fn encode(membership: &Membership) -> Vec<u8> {
    let mut out = Vec::new();
    let m = membership;
    for set in [&m.voters, &m.outgoing, &m.learners, &m.learners_next, &m.witnesses, &m.removed] {
        out.extend_from_slice(&(set.len() as u32).to_le_bytes());
        for replica in set {
            out.extend_from_slice(&replica.0.to_le_bytes());
        }
    }
    out.extend_from_slice(&(m.hosts.len() as u32).to_le_bytes());
    for (replica, member) in &m.hosts {
        out.extend_from_slice(&replica.0.to_le_bytes());
        out.extend_from_slice(&member.host.0.to_le_bytes());
        out.extend_from_slice(&member.store.0.to_le_bytes());
    }
    out.push(u8::from(m.auto_leave));
    out.extend_from_slice(&m.change_id.0.to_le_bytes());
    out
}

pub(crate) fn decode(mut bytes: &[u8]) -> Result<Membership, SnapshotError> {
    let mut sets: [BTreeSet<ReplicaId>; 6] = Default::default();
    for set in &mut sets {
        for _ in 0..u32::from_le_bytes(take(&mut bytes)?) {
            set.insert(ReplicaId(u64::from_le_bytes(take(&mut bytes)?)));
        }
    }
    let [voters, outgoing, learners, learners_next, witnesses, removed] = sets;
    let mut membership =
        Membership { voters, outgoing, learners, learners_next, witnesses, removed, ..Membership::default() };
    for _ in 0..u32::from_le_bytes(take(&mut bytes)?) {
        let replica = ReplicaId(u64::from_le_bytes(take(&mut bytes)?));
        let host = HostId(u64::from_le_bytes(take(&mut bytes)?));
        let store = StoreId(u128::from_le_bytes(take(&mut bytes)?));
        membership.hosts.insert(replica, Member { host, store });
    }
    membership.auto_leave = take::<1>(&mut bytes)?[0] != 0;
    membership.change_id = Index(u64::from_le_bytes(take(&mut bytes)?));
    if bytes.is_empty() { Ok(membership) } else { Err(SnapshotError::corrupt("length of the membership")) }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], SnapshotError> {
    let (now, later) = bytes.split_first_chunk().ok_or_else(|| SnapshotError::corrupt("length of the membership"))?;
    *bytes = later;
    Ok(*now)
}
