//! Snapshot metadata on the wire: the place in fixed fields, then the membership in its own encoding.

use super::{Fields, META_BYTES_MAX, WireError};
use longboat_raft::{Index, LogPos, Membership, SnapshotMeta, Term};

/// The metadata's bytes. They are few and rare: allocations do not matter.
pub(super) fn encode(meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(&meta.pos.term.0.to_le_bytes());
    out.extend_from_slice(&meta.pos.index.0.to_le_bytes());
    out.extend_from_slice(&meta.membership.encode());
    assert!(out.len() <= META_BYTES_MAX, "snapshot metadata of {} bytes", out.len());
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<SnapshotMeta, WireError> {
    if bytes.len() > META_BYTES_MAX {
        return Err(WireError::Malformed("snapshot metadata above its bound"));
    }
    let mut fields = Fields(bytes);
    let pos = LogPos::new(Term(fields.u64()?), Index(fields.u64()?));
    Ok(SnapshotMeta { pos, membership: Membership::decode(fields.0)? })
}
