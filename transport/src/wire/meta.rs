//! Snapshot metadata on the wire: the place in fixed fields, the membership in its own encoding.

use super::{Fields, META_BYTES_MAX, WireError};
use longboat_raft::{HostId, Index, LogPos, Member, Membership, ReplicaId, SnapshotMeta, StoreId, Term};
use prost::Message as _;
use std::collections::BTreeSet;

#[derive(Clone, PartialEq, prost::Message)]
struct MembershipRecord {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    auto_leave: bool,
    #[prost(uint64, repeated, tag = "6")]
    witnesses: Vec<u64>,
    #[prost(message, repeated, tag = "7")]
    hosts: Vec<HostRecord>,
    #[prost(uint64, repeated, tag = "8")]
    removed: Vec<u64>,
    #[prost(uint64, tag = "9")]
    change_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HostRecord {
    #[prost(uint64, tag = "1")]
    replica: u64,
    #[prost(uint64, tag = "2")]
    host: u64,
    #[prost(fixed64, tag = "3")]
    store_high: u64,
    #[prost(fixed64, tag = "4")]
    store_low: u64,
}

/// The metadata's bytes. They are few and rare: an allocation does not matter.
pub(super) fn encode(meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(&meta.pos.term.0.to_le_bytes());
    out.extend_from_slice(&meta.pos.index.0.to_le_bytes());
    record(&meta.membership).encode(&mut out).expect("a Vec grows");
    assert!(out.len() <= META_BYTES_MAX, "snapshot metadata of {} bytes", out.len());
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<SnapshotMeta, WireError> {
    if bytes.len() > META_BYTES_MAX {
        return Err(WireError::Malformed("snapshot metadata above its bound"));
    }
    let mut fields = Fields(bytes);
    let pos = LogPos::new(Term(fields.u64()?), Index(fields.u64()?));
    let record = MembershipRecord::decode(fields.0).map_err(|_| WireError::Malformed("membership"))?;
    Ok(SnapshotMeta { pos, membership: membership(record) })
}

fn record(m: &Membership) -> MembershipRecord {
    let ids = |set: &BTreeSet<ReplicaId>| set.iter().map(|id| id.0).collect();
    MembershipRecord {
        voters: ids(&m.voters),
        outgoing: ids(&m.outgoing),
        learners: ids(&m.learners),
        learners_next: ids(&m.learners_next),
        auto_leave: m.auto_leave,
        witnesses: ids(&m.witnesses),
        hosts: m
            .hosts
            .iter()
            .map(|(replica, member)| HostRecord {
                replica: replica.0,
                host: member.host.0,
                store_high: (member.store.0 >> 64) as u64,
                store_low: member.store.0 as u64,
            })
            .collect(),
        removed: ids(&m.removed),
        change_id: m.change_id.0,
    }
}

fn membership(r: MembershipRecord) -> Membership {
    let ids = |list: Vec<u64>| list.into_iter().map(ReplicaId).collect();
    Membership {
        voters: ids(r.voters),
        outgoing: ids(r.outgoing),
        learners: ids(r.learners),
        learners_next: ids(r.learners_next),
        auto_leave: r.auto_leave,
        witnesses: ids(r.witnesses),
        hosts: r
            .hosts
            .into_iter()
            .map(|h| {
                let store = StoreId(u128::from(h.store_high) << 64 | u128::from(h.store_low));
                (ReplicaId(h.replica), Member { host: HostId(h.host), store })
            })
            .collect(),
        removed: ids(r.removed),
        change_id: Index(r.change_id),
    }
}
