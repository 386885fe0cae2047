//! Which of a worker's replicas are silent, by the host at the other side: what is woken when that host is suspected, or differs.
//!
//! Invariant: a replica is in the index, and in the sums that its host's beats carry, exactly with what its [`Silence`] says, from the
//! visit in which it fell silent to the visit in which it wakes. Costs four bytes per silent follower, and per member of a silent leader.
//! Must not know: when anybody is woken.

use crate::liveness::peers::{Peer, PeerTable, bucket_of};
use ahash::AHashMap;
use longboat_raft::{GroupEpoch, GroupId, HostId, ReplicaId, Term};
use longboat_transport::wire::{DIGEST_BUCKETS, Side, SilentGroup};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a silent replica has to do with one other host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tie {
    /// It leads, and this member is there; or it was left out although its host was only suspected.
    Leads { member: ReplicaId, lagging: bool },
    /// It leads, and the member there has stopped.
    Misses,
    /// It follows the leader there.
    Follows,
}

/// What a silent replica believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) group: GroupId,
    pub(crate) epoch: GroupEpoch,
    pub(crate) replica: ReplicaId,
    pub(crate) term: Term,
    pub(crate) leader: ReplicaId,
    pub(crate) ties: SmallVec<[(HostId, Tie); 2]>,
}

impl Silence {
    /// What its host's sums say of it to `host`.
    pub(crate) fn told_to(&self, host: HostId) -> Option<(Side, SilentGroup)> {
        self.ties.iter().find(|t| t.0 == host).and_then(|t| self.told(t.1))
    }

    fn told(&self, tie: Tie) -> Option<(Side, SilentGroup)> {
        let Self { group, epoch, term, leader, replica, .. } = *self;
        let (side, member, lagging) = match tie {
            Tie::Leads { member, lagging } => (Side::Led, member, lagging),
            Tie::Follows => (Side::Followed, replica, false),
            Tie::Misses => return None,
        };
        Some((side, SilentGroup { group, epoch, member, term, leader, lagging }))
    }
}

/// The silent replicas of one worker that have to do with one host, as slots of the worker.
struct PeerSlots {
    peer: Arc<Peer>,
    led: [Vec<u32>; DIGEST_BUCKETS],
    followed: [Vec<u32>; DIGEST_BUCKETS],
    /// Those that lead and miss a member there.
    missing: [Vec<u32>; DIGEST_BUCKETS],
}

impl PeerSlots {
    fn list(&mut self, group: GroupId, tie: Tie) -> &mut Vec<u32> {
        match tie {
            Tie::Leads { .. } => &mut self.led[bucket_of(group)],
            Tie::Follows => &mut self.followed[bucket_of(group)],
            Tie::Misses => &mut self.missing[bucket_of(group)],
        }
    }
}

/// The index of one worker.
#[derive(Default)]
pub(crate) struct SilentIndex {
    by_host: AHashMap<HostId, PeerSlots>,
}

impl SilentIndex {
    pub(crate) fn insert(&mut self, table: &PeerTable, slot: u32, silence: &Silence) {
        table.silent.fetch_add(1, Ordering::Relaxed);
        for (host, tie) in &silence.ties {
            let make = || PeerSlots {
                peer: table.peer(*host),
                led: std::array::from_fn(|_| Vec::new()),
                followed: std::array::from_fn(|_| Vec::new()),
                missing: std::array::from_fn(|_| Vec::new()),
            };
            let slots = self.by_host.entry(*host).or_insert_with(make);
            slots.list(silence.group, *tie).push(slot);
            if let Some((side, silent)) = silence.told(*tie) {
                slots.peer.sums(side).add(&silent);
            }
        }
    }

    pub(crate) fn remove(&mut self, table: &PeerTable, slot: u32, silence: &Silence) {
        table.silent.fetch_sub(1, Ordering::Relaxed);
        for (host, tie) in &silence.ties {
            let slots = self.by_host.get_mut(host).expect("what was put in is there");
            let list = slots.list(silence.group, *tie);
            let at = list.iter().position(|s| *s == slot).expect("what was put in is there");
            list.swap_remove(at);
            // An idle host's index is as large as what is in it.
            if list.capacity() > 64 && list.len() < list.capacity() / 4 {
                list.shrink_to_fit();
            }
            if let Some((side, silent)) = silence.told(*tie) {
                slots.peer.sums(side).remove(&silent);
            }
        }
    }

    /// The slots of one side and host, of the buckets in `mask`, in order.
    pub(crate) fn slots(&self, host: HostId, side: Side, mask: u64) -> impl Iterator<Item = u32> + '_ {
        let lists = self.by_host.get(&host).map(|slots| match side {
            Side::Led => &slots.led,
            Side::Followed => &slots.followed,
        });
        let buckets = lists.into_iter().flatten().enumerate().filter(move |(at, _)| mask & (1 << at) != 0);
        buckets.flat_map(|(_, list)| list.iter().copied())
    }

    /// The slots of leaders that miss a member on `host`.
    pub(crate) fn missing(&self, host: HostId) -> impl Iterator<Item = u32> + '_ {
        self.by_host.get(&host).into_iter().flat_map(|slots| slots.missing.iter().flatten().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence(group: u64, ties: &[(u64, Tie)]) -> Silence {
        Silence {
            group: GroupId(group),
            epoch: GroupEpoch(1),
            replica: ReplicaId(1),
            term: Term(2),
            leader: ReplicaId(1),
            ties: ties.iter().map(|(h, t)| (HostId(*h), *t)).collect(),
        }
    }

    #[test]
    fn what_leads_here_and_what_follows_there_have_equal_sums() {
        let (here, there) = (PeerTable::default(), PeerTable::default());
        let (mut led, mut followed) = (SilentIndex::default(), SilentIndex::default());
        for group in 1..50 {
            let tie = Tie::Leads { member: ReplicaId(7), lagging: false };
            led.insert(&here, group as u32, &silence(group, &[(2, tie)]));
            let follower = Silence { replica: ReplicaId(7), ..silence(group, &[(1, Tie::Follows)]) };
            followed.insert(&there, group as u32, &follower);
        }
        assert_eq!(here.peer(HostId(2)).led.total(), there.peer(HostId(1)).followed.total());
        assert_eq!(led.slots(HostId(2), Side::Led, u64::MAX).count(), 49);
        assert_eq!(led.slots(HostId(2), Side::Followed, u64::MAX).count(), 0);
        assert_eq!(
            followed.slots(HostId(1), Side::Followed, 1).count()
                + followed.slots(HostId(1), Side::Followed, !1).count(),
            49
        );
    }

    #[test]
    fn a_lagging_member_makes_a_difference_and_a_stopped_one_does_not() {
        let table = PeerTable::default();
        let mut index = SilentIndex::default();
        let lagging = silence(1, &[(2, Tie::Leads { member: ReplicaId(7), lagging: true }), (3, Tie::Misses)]);
        index.insert(&table, 4, &lagging);
        assert_eq!(table.peer(HostId(2)).led.total().count, 1);
        assert_eq!(table.peer(HostId(3)).led.total().count, 0);
        assert_eq!(index.missing(HostId(3)).collect::<Vec<_>>(), [4]);
        index.remove(&table, 4, &lagging);
        assert_eq!((table.peer(HostId(2)).led.total().sum, index.missing(HostId(3)).count()), (0, 0));
    }
}
