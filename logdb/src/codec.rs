//! The bytes of what is rare: bootstrap, snapshot and removal records, and the rows of groups.
//!
//! Everything is little-endian; sets are written in their order, so equal values have equal bytes. Counts read from
//! a disk are checked against the bytes that are there before anything is allocated for them.

use crate::{Bootstrap, GroupState, Record, SnapshotRecord};
use bytes::{Buf, BufMut, TryGetError};
use longboat_raft::{
    GroupEpoch, GroupId, HardState, HostId, Index, LogPos, Member, Membership, ReplicaId, SnapshotMeta, StoreId, Term,
    plant,
};
use std::collections::{BTreeMap, BTreeSet};

/// The version byte at the front of a group's row.
const ROW_VERSION: u8 = 1;
/// That of a quarantined group's: a build that knows nothing of quarantine must not take such a replica for one with an empty log.
const ROW_VERSION_QUARANTINED: u8 = 2;

/// Bytes that passed their checksum and still make no sense: written by something else than this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl From<TryGetError> for Malformed {
    fn from(_: TryGetError) -> Self {
        Self("record: it ends too early")
    }
}

type Decoded<T> = Result<T, Malformed>;

/// The log rows that the key-value store has of a group. Both zero when there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// The key of the first row: the index of the first entry in it.
    pub(crate) from: Index,
    /// The last entry of the last row.
    pub(crate) to: Index,
}

impl Rows {
    pub(crate) fn is_empty(&self) -> bool {
        self.to.is_zero()
    }

    /// Takes in the row after the last one.
    pub(crate) fn extend(&mut self, first: Index, last: Index) {
        if self.is_empty() {
            self.from = first;
        }
        self.to = last;
    }
}

pub(crate) fn put_record(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Bootstrap(b) => {
            out.put_u8(1);
            put_bootstrap(out, b);
        }
        Record::Snapshot(s) => {
            out.put_u8(2);
            put_snapshot(out, s);
        }
        Record::Removed { replica } => {
            out.put_u8(3);
            out.put_u64_le(replica.0);
        }
        Record::Quarantined { replica, record } => {
            out.put_u8(4);
            out.put_u64_le(replica.0);
            out.put_u64_le(*record);
        }
    }
}

pub(crate) fn take_record(input: &mut &[u8]) -> Decoded<Record> {
    let record = match input.try_get_u8()? {
        1 => Record::Bootstrap(take_bootstrap(input)?),
        2 => Record::Snapshot(take_snapshot(input)?),
        3 => Record::Removed { replica: ReplicaId(input.try_get_u64_le()?) },
        4 => Record::Quarantined { replica: ReplicaId(input.try_get_u64_le()?), record: input.try_get_u64_le()? },
        _ => return Err(Malformed("record: its kind is not known")),
    };
    Ok(record)
}

pub(crate) fn group_row(state: &GroupState, rows: Rows) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    let quarantined = state.quarantined.filter(|_| !plant::is("quarantine-lost-on-recycle"));
    out.put_u8(if quarantined.is_some() { ROW_VERSION_QUARANTINED } else { ROW_VERSION });
    out.put_u8(u8::from(state.removed) | u8::from(state.snapshot.is_some()) << 1);
    put_bootstrap(&mut out, &state.bootstrap);
    out.put_u64_le(state.hard_state.term.0);
    out.put_u64_le(state.hard_state.vote.0);
    out.put_u64_le(state.hard_state.commit.0);
    put_pos(&mut out, state.start);
    put_pos(&mut out, state.last);
    out.put_u64_le(rows.from.0);
    out.put_u64_le(rows.to.0);
    out.put_u32_le(state.terms.len() as u32);
    for &t in &state.terms {
        put_pos(&mut out, t);
    }
    if let Some(s) = &state.snapshot {
        put_snapshot(&mut out, s);
    }
    if let Some(record) = quarantined {
        out.put_u64_le(record);
    }
    out
}

pub(crate) fn take_group_row(group: GroupId, mut input: &[u8]) -> Decoded<(GroupState, Rows)> {
    let input = &mut input;
    let version = input.try_get_u8()?;
    if version != ROW_VERSION && version != ROW_VERSION_QUARANTINED {
        return Err(Malformed("group row: its version is not known"));
    }
    let flags = input.try_get_u8()?;
    let bootstrap = take_bootstrap(input)?;
    let hard_state = HardState {
        term: Term(input.try_get_u64_le()?),
        vote: ReplicaId(input.try_get_u64_le()?),
        commit: Index(input.try_get_u64_le()?),
    };
    let (start, last) = (take_pos(input)?, take_pos(input)?);
    let rows = Rows { from: Index(input.try_get_u64_le()?), to: Index(input.try_get_u64_le()?) };
    let terms = (0..take_count(input, 16)?).map(|_| take_pos(input)).collect::<Decoded<Vec<_>>>()?;
    let snapshot = if flags & 2 != 0 { Some(take_snapshot(input)?) } else { None };
    let removed = flags & 1 != 0;
    let quarantined = if version == ROW_VERSION_QUARANTINED { Some(input.try_get_u64_le()?) } else { None };
    Ok((GroupState { group, bootstrap, hard_state, snapshot, start, last, terms, removed, quarantined }, rows))
}

fn put_pos(out: &mut Vec<u8>, pos: LogPos) {
    out.put_u64_le(pos.term.0);
    out.put_u64_le(pos.index.0);
}

fn take_pos(input: &mut &[u8]) -> Decoded<LogPos> {
    Ok(LogPos::new(Term(input.try_get_u64_le()?), Index(input.try_get_u64_le()?)))
}

fn put_bootstrap(out: &mut Vec<u8>, b: &Bootstrap) {
    out.put_u64_le(b.replica.0);
    out.put_u64_le(b.epoch.0);
    put_membership(out, &b.membership);
    put_ids(out, &b.gone);
}

fn take_bootstrap(input: &mut &[u8]) -> Decoded<Bootstrap> {
    let (replica, epoch) = (ReplicaId(input.try_get_u64_le()?), GroupEpoch(input.try_get_u64_le()?));
    Ok(Bootstrap { replica, epoch, membership: take_membership(input)?, gone: take_ids(input)? })
}

fn put_ids(out: &mut Vec<u8>, ids: &BTreeSet<ReplicaId>) {
    out.put_u32_le(ids.len() as u32);
    for replica in ids {
        out.put_u64_le(replica.0);
    }
}

fn take_ids(input: &mut &[u8]) -> Decoded<BTreeSet<ReplicaId>> {
    (0..take_count(input, 8)?).map(|_| Ok(ReplicaId(input.try_get_u64_le()?))).collect()
}

fn put_snapshot(out: &mut Vec<u8>, s: &SnapshotRecord) {
    put_pos(out, s.meta.pos);
    out.put_u64_le(s.bytes);
    out.put_u8(u8::from(s.resets_log));
    put_membership(out, &s.meta.membership);
}

fn take_snapshot(input: &mut &[u8]) -> Decoded<SnapshotRecord> {
    let pos = take_pos(input)?;
    let bytes = input.try_get_u64_le()?;
    let resets_log = input.try_get_u8()? != 0;
    Ok(SnapshotRecord { meta: SnapshotMeta { pos, membership: take_membership(input)? }, bytes, resets_log })
}

fn put_membership(out: &mut Vec<u8>, m: &Membership) {
    for set in [&m.voters, &m.outgoing, &m.learners, &m.learners_next, &m.witnesses, &m.removed] {
        put_ids(out, set);
    }
    out.put_u32_le(m.hosts.len() as u32);
    for (replica, member) in &m.hosts {
        out.put_u64_le(replica.0);
        out.put_u64_le(member.host.0);
        out.put_u128_le(member.store.0);
    }
    out.put_u32_le(m.promotions.len() as u32);
    for (learner, replaces) in &m.promotions {
        out.put_u64_le(learner.0);
        // Zero is no replica.
        out.put_u64_le(replaces.unwrap_or_default().0);
    }
    out.put_u8(u8::from(m.auto_leave));
    out.put_u64_le(m.change_id.0);
}

fn take_membership(input: &mut &[u8]) -> Decoded<Membership> {
    let mut sets: [BTreeSet<ReplicaId>; 6] = Default::default();
    for set in &mut sets {
        *set = take_ids(input)?;
    }
    let mut hosts = BTreeMap::new();
    for _ in 0..take_count(input, 32)? {
        let replica = ReplicaId(input.try_get_u64_le()?);
        let host = HostId(input.try_get_u64_le()?);
        hosts.insert(replica, Member { host, store: StoreId(input.try_get_u128_le()?) });
    }
    let mut promotions = BTreeMap::new();
    for _ in 0..take_count(input, 16)? {
        let learner = ReplicaId(input.try_get_u64_le()?);
        let replaces = ReplicaId(input.try_get_u64_le()?);
        promotions.insert(learner, (!replaces.is_zero()).then_some(replaces));
    }
    let auto_leave = input.try_get_u8()? != 0;
    let change_id = Index(input.try_get_u64_le()?);
    let [voters, outgoing, learners, learners_next, witnesses, removed] = sets;
    Ok(Membership {
        voters,
        outgoing,
        learners,
        learners_next,
        auto_leave,
        witnesses,
        promotions,
        hosts,
        removed,
        change_id,
    })
}

/// A count of items of at least `item_bytes` each.
fn take_count(input: &mut &[u8], item_bytes: usize) -> Decoded<usize> {
    let count = input.try_get_u32_le()? as usize;
    if count > input.remaining() / item_bytes {
        return Err(Malformed("record: it counts more items than it has bytes for"));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let ids = |r: std::ops::Range<u64>| r.map(ReplicaId).collect::<BTreeSet<_>>();
        Membership {
            voters: ids(1..4),
            outgoing: ids(2..5),
            learners: ids(7..8),
            learners_next: ids(4..5),
            auto_leave: true,
            witnesses: ids(3..4),
            promotions: [(ReplicaId(7), Some(ReplicaId(1))), (ReplicaId(8), None)].into(),
            hosts: [(ReplicaId(1), Member { host: HostId(9), store: StoreId(u128::MAX - 5) })].into(),
            removed: ids(20..30),
            change_id: Index(77),
        }
    }

    fn state() -> GroupState {
        let pos = |t, i| LogPos::new(Term(t), Index(i));
        GroupState {
            group: GroupId(5),
            bootstrap: Bootstrap {
                replica: ReplicaId(1),
                epoch: GroupEpoch(2),
                membership: membership(),
                gone: [40, 41].map(ReplicaId).into(),
            },
            hard_state: HardState { term: Term(8), vote: ReplicaId(3), commit: Index(90) },
            snapshot: Some(SnapshotRecord {
                meta: SnapshotMeta { pos: pos(4, 50), membership: membership() },
                bytes: 1 << 40,
                resets_log: true,
            }),
            start: pos(4, 50),
            last: pos(8, 99),
            terms: vec![pos(4, 51), pos(8, 60)],
            removed: false,
            quarantined: None,
        }
    }

    #[test]
    fn a_group_row_reads_back_as_it_was_written() {
        let rows = Rows { from: Index(40), to: Index(80) };
        assert_eq!(take_group_row(GroupId(5), &group_row(&state(), rows)), Ok((state(), rows)));
        let gone = GroupState { group: GroupId(6), removed: true, ..GroupState::default() };
        let bytes = group_row(&gone, Rows::default());
        assert_eq!(take_group_row(GroupId(6), &bytes), Ok((gone, Rows::default())));
        let quarantined = GroupState { group: GroupId(7), quarantined: Some(1 << 40), ..GroupState::default() };
        let bytes = group_row(&quarantined, Rows::default());
        assert_eq!(take_group_row(GroupId(7), &bytes), Ok((quarantined, Rows::default())));
    }

    #[test]
    fn every_record_reads_back_as_it_was_written() {
        let s = state();
        let snapshot = s.snapshot.clone().expect("made with one");
        let quarantined = Record::Quarantined { replica: ReplicaId(5), record: 6 };
        let removed = Record::Removed { replica: ReplicaId(4) };
        for record in [Record::Bootstrap(s.bootstrap), Record::Snapshot(snapshot), removed, quarantined] {
            let mut bytes = Vec::new();
            put_record(&mut bytes, &record);
            assert_eq!(take_record(&mut &bytes[..]), Ok(record));
        }
    }

    #[test]
    fn a_row_cut_short_anywhere_is_refused() {
        let bytes = group_row(&state(), Rows::default());
        for len in 0..bytes.len() {
            assert!(take_group_row(GroupId(5), &bytes[..len]).is_err(), "cut to {len} bytes");
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused_before_allocating() {
        let mut bytes = vec![1u8];
        bytes.put_u64_le(1);
        bytes.put_u64_le(1);
        bytes.put_u32_le(u32::MAX);
        assert!(take_record(&mut &bytes[..]).is_err());
    }
}
