//! The other hosts that this one shares groups with, and what is silent between them: shared by the poller and all workers.
//!
//! Invariant: the sums of a peer are those of the silent replicas that the workers have in their indexes, at any moment at which no
//! worker is in between; they are kept as replicas fall silent and wake, never counted anew. Must not know: beats, replicas.

use longboat_raft::{GroupId, HostId, Membership, ReplicaId};
use longboat_transport::wire::{DIGEST_BUCKETS, Side, SilentGroup, SilentSum, Starts};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Told when a host is suspected (true), and when it is heard of again (false).
pub type HostListener = Box<dyn Fn(HostId, bool) + Send + Sync>;

/// Sums of hashes, by bucket. Additions commute, so each worker makes its own without a lock.
#[derive(Debug)]
pub struct SilentSums {
    count: AtomicU64,
    buckets: [AtomicU64; DIGEST_BUCKETS],
}

impl Default for SilentSums {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl SilentSums {
    pub(crate) fn add(&self, silent: &SilentGroup) {
        self.buckets[bucket_of(silent.group)].fetch_add(hash_of(silent), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, silent: &SilentGroup) {
        self.buckets[bucket_of(silent.group)].fetch_sub(hash_of(silent), Ordering::Relaxed);
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// By bucket.
    pub fn buckets(&self) -> [u64; DIGEST_BUCKETS] {
        std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed))
    }

    /// All of them.
    pub fn total(&self) -> SilentSum {
        let sum = self.buckets().iter().fold(0u64, |sum, bucket| sum.wrapping_add(*bucket));
        SilentSum { count: self.count.load(Ordering::Relaxed), sum }
    }
}

/// What is shared with one other host.
#[derive(Debug)]
pub struct Peer {
    /// The host.
    pub host: HostId,
    /// Replicas here whose group has a member there.
    pub shares: AtomicU64,
    /// Silent replicas here that lead, with a member there.
    pub led: SilentSums,
    /// Silent replicas here that follow a leader there.
    pub followed: SilentSums,
    /// Nothing was heard of it for an election timeout.
    pub suspected: AtomicBool,
    /// The most that it is known to have started.
    started: Mutex<Starts>,
}

impl Peer {
    /// The most that the host is known to have started. What was said of a replica that does not run there as of less may be
    /// out of date, whenever it was said and in whatever order it came.
    pub(crate) fn started(&self) -> Starts {
        *self.started.lock()
    }

    /// Its beats, or the handshake, say so. Late ones change nothing.
    pub(crate) fn note_started(&self, starts: Starts) {
        let mut started = self.started.lock();
        *started = starts.max(*started);
    }

    /// The sums of one side.
    pub fn sums(&self, side: Side) -> &SilentSums {
        match side {
            Side::Led => &self.led,
            Side::Followed => &self.followed,
        }
    }
}

/// The table of the other hosts.
#[derive(Default)]
pub struct PeerTable {
    peers: RwLock<BTreeMap<HostId, Arc<Peer>>>,
    /// How many replicas here have each smallest election timeout.
    timeouts: Mutex<BTreeMap<u64, usize>>,
    /// The smallest of them, 0 without any: written under the lock of the table, read without.
    shortest_nanos: AtomicU64,
    /// Replicas that were started in this life of the host.
    starts: AtomicU64,
    /// Grows with each change of a suspicion.
    version: AtomicU64,
    /// Since when the log writer has had a write outstanding, in nanoseconds of the host's clock; 0 without one.
    pub writing_since: AtomicU64,
    /// Silent replicas here.
    pub silent: AtomicU64,
    listener: OnceLock<HostListener>,
}

impl PeerTable {
    /// What is shared with `host`, from now on if not before. As many as memberships name hosts.
    pub fn peer(&self, host: HostId) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().get(&host) {
            return Arc::clone(peer);
        }
        let make = || {
            Arc::new(Peer {
                host,
                shares: AtomicU64::new(0),
                led: SilentSums::default(),
                followed: SilentSums::default(),
                suspected: AtomicBool::new(false),
                started: Mutex::default(),
            })
        };
        Arc::clone(self.peers.write().entry(host).or_insert_with(make))
    }

    /// All of them, in the order of their ids.
    pub fn all(&self) -> Vec<Arc<Peer>> {
        self.peers.read().values().cloned().collect()
    }

    /// What is shared with `host`, if anything ever was.
    pub fn known(&self, host: HostId) -> Option<Arc<Peer>> {
        self.peers.read().get(&host).cloned()
    }

    /// Whether nothing was heard of `host` for too long.
    pub fn is_suspected(&self, host: HostId) -> bool {
        self.peers.read().get(&host).is_some_and(|p| p.suspected.load(Ordering::SeqCst))
    }

    /// The hosts of which nothing was heard for too long.
    pub fn suspected(&self) -> Vec<HostId> {
        let peers = self.peers.read();
        peers.values().filter(|p| p.suspected.load(Ordering::SeqCst)).map(|p| p.host).collect()
    }

    /// Marks a host; workers see the new version no earlier than the mark.
    pub(crate) fn suspect(&self, peer: &Peer, suspected: bool) {
        peer.suspected.store(suspected, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
        if let Some(listener) = self.listener.get() {
            listener(peer.host, suspected);
        }
    }

    /// Changes whenever a suspicion does; starts at 0.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Who is told of suspected and returned hosts: one, and quick, since the polling thread calls it.
    pub fn listen(&self, listener: HostListener) {
        let _ = self.listener.set(listener);
    }

    /// A replica moves in.
    pub(crate) fn replica_started(&self, own: HostId, membership: &Membership, election_timeout_nanos: u64) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        let mut timeouts = self.timeouts.lock();
        *timeouts.entry(election_timeout_nanos).or_default() += 1;
        self.note_shortest(&timeouts);
        drop(timeouts);
        hosts_of(own, membership).iter().for_each(|host| self.share(*host, 1));
    }

    /// A replica moves out.
    pub(crate) fn replica_stopped(&self, own: HostId, membership: &Membership, election_timeout_nanos: u64) {
        let mut timeouts = self.timeouts.lock();
        if let Some(count) = timeouts.get_mut(&election_timeout_nanos) {
            *count -= 1;
            if *count == 0 {
                timeouts.remove(&election_timeout_nanos);
            }
        }
        self.note_shortest(&timeouts);
        drop(timeouts);
        hosts_of(own, membership).iter().for_each(|host| self.share(*host, -1));
    }

    /// A replica's group has other members.
    pub(crate) fn members_changed(&self, own: HostId, before: &Membership, after: &Membership) {
        let (before, after) = (hosts_of(own, before), hosts_of(own, after));
        after.difference(&before).for_each(|host| self.share(*host, 1));
        before.difference(&after).for_each(|host| self.share(*host, -1));
    }

    fn share(&self, host: HostId, more: i64) {
        self.peer(host).shares.fetch_add(more as u64, Ordering::Relaxed);
    }

    fn note_shortest(&self, timeouts: &BTreeMap<u64, usize>) {
        let shortest = timeouts.keys().next().copied().unwrap_or(0);
        self.shortest_nanos.store(shortest, Ordering::Release);
    }

    /// The smallest election timeout of the running replicas.
    pub fn shortest_timeout(&self) -> Option<u64> {
        let shortest = self.shortest_nanos.load(Ordering::Acquire);
        (shortest > 0).then_some(shortest)
    }

    /// Replicas that were started in this life of the host.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for PeerTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerTable").field("peers", &self.peers.read().len()).finish_non_exhaustive()
    }
}

/// The hosts of a group's members, without this one.
pub(crate) fn hosts_of(own: HostId, membership: &Membership) -> BTreeSet<HostId> {
    membership.hosts.values().map(|m| m.host).filter(|h| *h != own && !h.is_zero()).collect()
}

/// The bucket of a group: the same at every host.
pub(crate) fn bucket_of(group: GroupId) -> usize {
    (mixed(group.0) >> 58) as usize
}

/// Stands for all that two hosts must agree on about a silent group.
pub(crate) fn hash_of(silent: &SilentGroup) -> u64 {
    let SilentGroup { group, epoch, member, term, leader, lagging } = *silent;
    let ReplicaId(member) = member;
    let words = [group.0, epoch.0, member, term.0, leader.0, u64::from(lagging)];
    words.iter().fold(0x6C6F_6E67_626F_6174, |hash, word| mixed(hash ^ word).rotate_left(23))
}

/// Splitmix64's finalizer.
const fn mixed(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_raft::{GroupEpoch, Member, Term};

    fn silent(group: u64) -> SilentGroup {
        SilentGroup {
            group: GroupId(group),
            epoch: GroupEpoch(1),
            member: ReplicaId(2),
            term: Term(3),
            leader: ReplicaId(1),
            lagging: false,
        }
    }

    #[test]
    fn sums_depend_on_what_is_silent_and_not_on_the_way_there() {
        let (one, other) = (SilentSums::default(), SilentSums::default());
        (1..100).for_each(|g| one.add(&silent(g)));
        (1..200).rev().for_each(|g| other.add(&silent(g)));
        assert_ne!(one.total(), other.total());
        (100..200).for_each(|g| other.remove(&silent(g)));
        assert_eq!((one.total(), one.buckets()), (other.total(), other.buckets()));
        assert_eq!(one.total().count, 99);
    }

    #[test]
    fn whatever_two_hosts_may_differ_in_is_in_the_hash() {
        let base = silent(1);
        let others = [
            SilentGroup { group: GroupId(2), ..base },
            SilentGroup { epoch: GroupEpoch(2), ..base },
            SilentGroup { member: ReplicaId(3), ..base },
            SilentGroup { term: Term(4), ..base },
            SilentGroup { leader: ReplicaId(3), ..base },
            SilentGroup { lagging: true, ..base },
        ];
        assert!(others.iter().all(|o| hash_of(o) != hash_of(&base)));
    }

    #[test]
    fn groups_spread_over_the_buckets() {
        let mut counts = [0; DIGEST_BUCKETS];
        (0..6400).for_each(|g| counts[bucket_of(GroupId(g))] += 1);
        assert!(counts.iter().all(|n| (50..150).contains(n)), "{counts:?}");
    }

    #[test]
    fn shares_and_timeouts_follow_the_replicas() {
        let members = |hosts: &[u64]| {
            let member = |h: &u64| (ReplicaId(*h), Member { host: HostId(*h), ..Member::default() });
            Membership::from_voters(hosts.iter().map(member))
        };
        let table = PeerTable::default();
        let shares = |h: u64| table.known(HostId(h)).map_or(0, |p| p.shares.load(Ordering::Relaxed));
        table.replica_started(HostId(1), &members(&[1, 2, 3]), 100);
        table.replica_started(HostId(1), &members(&[1, 2]), 50);
        assert_eq!((shares(1), shares(2), shares(3)), (0, 2, 1));
        assert_eq!((table.shortest_timeout(), table.starts()), (Some(50), 2));
        table.members_changed(HostId(1), &members(&[1, 2, 3]), &members(&[1, 3, 4]));
        assert_eq!((shares(2), shares(3), shares(4)), (1, 1, 1));
        table.replica_stopped(HostId(1), &members(&[1, 2]), 50);
        assert_eq!((shares(2), table.shortest_timeout()), (0, Some(100)));
    }
}
