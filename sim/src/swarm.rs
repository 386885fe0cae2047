//! What a seed's world is like: swarm testing, so that each seed switches faults and features on and off at random.

use crate::network::NetworkFaults;
use crate::operator::Operations;
use crate::rng::Rng;
use longboat_engine::{EngineConfig, ReplicaConfig};
use longboat_io::sim::SimDiskConfig;
use longboat_logdb::{KeyValue, SharedLogConfig};
use longboat_raft::{GroupId, HostId, Member, Membership, ReplicaId, StoreId};
use longboat_rsm::snapshot::Compression;
use std::collections::{BTreeMap, BTreeSet};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// One way between two hosts is cut for a while.
    Cut,
    /// The hosts are split in two for a while.
    Partition,
    /// A group's leader is cut off, in one direction or both.
    IsolateLeader,
    /// A process is killed and started again; the page cache survives.
    Kill,
    /// A host loses power and starts again.
    PowerLoss,
    /// A process is killed and started again, and soon after it loses power.
    KillThenPowerLoss,
    /// All hosts lose power at once.
    Blackout,
    /// A sync fails: the host stops serving and is started again.
    FailedSync,
    /// A sync fails, the host is started again, and soon after it loses power.
    FailedSyncThenPowerLoss,
    /// Syncs of a host hang for a while.
    Stall,
    /// Syncs of a group's leader hang, and it is cut off for a part of that time.
    StallLeader,
    /// A thread is not scheduled for a while.
    Pause,
    /// A host's disk is nearly full for a while.
    LittleRoom,
    /// A host's disk is full for a while: what needs more of it fails.
    NoRoom,
    /// A host's clock jumps on, by up to a minute.
    ClockForward,
    /// A host's clock is set back: it stands still until it has caught up.
    ClockBack,
    /// A whole process is stopped for a while, and goes on.
    Suspend,
    /// The connections between two hosts break.
    Reset,
    /// What one host sends another passes slowly for a while.
    SlowLink,
    /// A host loses its directory.
    Wipe,
    /// A host's directory is put back to what it was some time ago.
    PutBack,
    /// A byte of a host's journal changes.
    Rot,
    /// A byte of one of a host's snapshots changes.
    RotSnapshot,
}

impl FaultKind {
    /// So many kinds were there first: named seeds draw among them.
    const FIRST: usize = 12;

    /// Every kind.
    pub const ALL: [Self; 23] = [
        Self::Cut,
        Self::Partition,
        Self::IsolateLeader,
        Self::Kill,
        Self::PowerLoss,
        Self::KillThenPowerLoss,
        Self::Blackout,
        Self::FailedSync,
        Self::FailedSyncThenPowerLoss,
        Self::Stall,
        Self::StallLeader,
        Self::Pause,
        Self::LittleRoom,
        Self::NoRoom,
        Self::ClockForward,
        Self::ClockBack,
        Self::Suspend,
        Self::Reset,
        Self::SlowLink,
        Self::Wipe,
        Self::PutBack,
        Self::Rot,
        Self::RotSnapshot,
    ];
    /// Those of hosts' clocks, schedulers and links, drawn apart.
    const OF_THE_WORLD_AROUND: [Self; 5] =
        [Self::ClockForward, Self::ClockBack, Self::Suspend, Self::Reset, Self::SlowLink];
}

/// The world of one seed.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Hosts, numbered from 1.
    pub hosts: u64,
    /// The groups, numbered from 1, and the hosts of their replicas.
    pub groups: Vec<(GroupId, Vec<HostId>)>,
    /// Step workers of a host.
    pub step_workers: usize,
    /// Apply workers of a host.
    pub apply_workers: usize,
    /// How long faults go on, in nanoseconds.
    pub fault_nanos: u64,
    /// About how long it is from one fault to the next, in nanoseconds.
    pub fault_every_nanos: u64,
    /// The faults of this seed.
    pub faults: Vec<FaultKind>,
    /// About how long a fault lasts at most, in nanoseconds.
    pub fault_lasts_nanos: u64,
    /// The network while faults go on.
    pub network: NetworkFaults,
    /// About how long it is from one client's request to the next, in nanoseconds.
    pub request_every_nanos: u64,
    /// Requests in 1,000 that are reads.
    pub read_permille: u32,
    /// Requests in 1,000 that ask for a snapshot.
    pub snapshot_permille: u32,
    /// Bytes of padding of most writes at most.
    pub padding_max: usize,
    /// Requests in 1,000 that are two or three large writes, and their bytes: appends then travel in several messages.
    pub large: (u32, usize),
    /// When clients give up, in nanoseconds.
    pub timeout_nanos: u64,
    /// Bytes of a snapshot besides the list.
    pub ballast: usize,
    /// The smallest election timeout of every replica, in nanoseconds.
    pub election_timeout_nanos: u64,
    heartbeat_interval_nanos: u64,
    pub(crate) snapshot_entries: u64,
    compaction_overhead: u64,
    /// Snapshots that a replica keeps.
    pub snapshots_kept: u32,
    /// It lives for minutes.
    pub is_long: bool,
    /// A group is imported in the end.
    pub imports: bool,
    pub(crate) log_cache_bytes_max: usize,
    pub(crate) log_memory_bytes_max: u64,
    pre_vote: bool,
    check_quorum: bool,
    /// Without anything to do for this long groups fall silent; 0 for never. In nanoseconds.
    pub quiesce_after_nanos: u64,
    pub(crate) segment_bytes: u64,
    segments_max: u64,
    settle_segments: usize,
    disk: SimDiskConfig,
    /// What operators do.
    pub operations: Operations,
    /// Groups whose state machines have storage of their own, and after how many commands that syncs by itself; 0 for never.
    pub on_disk: BTreeMap<GroupId, u64>,
    /// Groups whose state machines are looked up and saved off views.
    pub with_views: BTreeSet<GroupId>,
    /// The seed of the clients that work in sessions; 0 for none.
    pub sessions: u64,
    /// How long a step of a background job takes at most, in nanoseconds.
    pub job_step_nanos: u64,
    /// How much faster each host's clock goes than the world's, in millionths, or slower; nothing of those that don't drift.
    pub drift_ppm: BTreeMap<HostId, i64>,
}

impl Swarm {
    /// The world of a seed: `rng` is drawn from it.
    pub fn draw(rng: &mut Rng) -> Self {
        let hosts = *rng.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5, 5]);
        let count = rng.magnitude(1, 8);
        let groups = (1..=count).map(|g| (GroupId(g), members(rng, hosts))).collect();
        let large =
            if rng.chance(200) { (rng.between(5, 20) as u32, rng.between(90, 200) as usize * 1024) } else { (0, 0) };
        let heartbeat_interval_nanos = rng.between(10, 40) * MILLI;
        let segment_blocks = if large.0 > 0 { rng.between(256, 512) } else { *rng.pick(&[8, 12, 16, 64]) };
        let count = rng.between(2, 6);
        let mut faults: Vec<FaultKind> = (0..count).map(|_| *rng.pick(&FaultKind::ALL[..FaultKind::FIRST])).collect();
        faults.sort_unstable();
        let mut swarm = Self {
            hosts,
            groups,
            step_workers: *rng.pick(&[1, 1, 2]),
            apply_workers: *rng.pick(&[1, 1, 2]),
            fault_nanos: rng.between(6, 14) * SECOND,
            fault_every_nanos: rng.magnitude(150, 1200) * MILLI,
            faults,
            fault_lasts_nanos: rng.magnitude(200, 3000) * MILLI,
            network: network(rng),
            request_every_nanos: rng.magnitude(5, 40) * MILLI,
            read_permille: *rng.pick(&[0, 200, 500]),
            snapshot_permille: *rng.pick(&[0, 5, 20]),
            padding_max: *rng.pick(&[0, 32, 300]),
            large,
            timeout_nanos: rng.magnitude(200, 4000) * MILLI,
            ballast: *rng.pick(&[0, 0, 1000, 700_000]),
            election_timeout_nanos: heartbeat_interval_nanos * rng.between(4, 10),
            heartbeat_interval_nanos,
            snapshot_entries: *rng.pick(&[0, 10, 30, 100]),
            compaction_overhead: *rng.pick(&[0, 3, 20, 100]),
            snapshots_kept: 1,
            is_long: false,
            imports: false,
            log_cache_bytes_max: *rng.pick(&[0, 4 << 10, 64 << 10, 4 << 20]),
            log_memory_bytes_max: 1 << 30,
            pre_vote: rng.chance(700),
            check_quorum: rng.chance(700),
            segment_bytes: segment_blocks * 4096,
            segments_max: rng.between(3, 8),
            settle_segments: rng.between(1, 4) as usize,
            disk: disk(rng),
            quiesce_after_nanos: heartbeat_interval_nanos * *rng.pick(&[0, 3, 10, 50]),
            operations: Operations::default(),
            on_disk: BTreeMap::new(),
            with_views: BTreeSet::new(),
            sessions: 0,
            job_step_nanos: 0,
            drift_ppm: BTreeMap::new(),
        };
        // Hosts that keep little for each of their groups also have little for all of them.
        if swarm.log_cache_bytes_max == 4 << 10 {
            swarm.log_memory_bytes_max = 128 << 10;
        }
        swarm
    }

    /// What operators do in this world. Drawn by a generator of its own: a world without them is as if there were none.
    pub fn draw_operations(&mut self, rng: &mut Rng) {
        self.operations = Operations::draw(rng);
        if !self.operations.is_on() {
            return;
        }
        // Some hosts are left free, for those who come later.
        for (_, hosts) in &mut self.groups {
            let keep = rng.between(1, hosts.len() as u64) as usize;
            while hosts.len() > keep {
                hosts.remove(rng.below(hosts.len() as u64) as usize);
            }
        }
    }

    /// In half of the worlds some groups have on-disk state machines. Drawn by a generator of its own, too.
    pub fn draw_machines(&mut self, rng: &mut Rng) {
        if rng.chance(500) {
            let groups: Vec<_> = self.groups.iter().map(|g| g.0).filter(|_| rng.chance(500)).collect();
            self.on_disk = groups.into_iter().map(|g| (g, *rng.pick(&[0, 0, 1, 7, 50]))).collect();
        }
    }

    /// In some worlds disks are filled, too.
    pub fn draw_room(&mut self, rng: &mut Rng) {
        if rng.chance(300) {
            self.faults.extend([*rng.pick(&[FaultKind::LittleRoom, FaultKind::LittleRoom, FaultKind::NoRoom])]);
        }
    }

    /// In some worlds clocks drift and jump, processes are suspended, connections break, links are slow.
    pub fn draw_surroundings(&mut self, rng: &mut Rng) {
        if rng.chance(300) {
            let drift_max = *rng.pick(&[200, 5_000, 50_000]);
            let drifts =
                (1..=self.hosts).map(|host| (HostId(host), rng.below(2 * drift_max + 1) as i64 - drift_max as i64));
            self.drift_ppm = drifts.collect();
        }
        if rng.chance(400) {
            let count = rng.between(1, 3);
            self.faults.extend((0..count).map(|_| *rng.pick(&FaultKind::OF_THE_WORLD_AROUND)));
        }
        if rng.chance(300) {
            self.job_step_nanos = *rng.pick(&[200_000, 2 * MILLI, 20 * MILLI]);
        }
        if self.large.0 > 0 && rng.chance(200) {
            // What gathers behind a hung disk is more than one record takes.
            self.faults.extend([FaultKind::Stall; 2]);
            (self.large.0, self.segments_max, self.fault_lasts_nanos) = (150, 16, 3 * SECOND);
        }
        if self.large.0 == 0 && rng.chance(150) {
            // Small segments of many groups have large footers, and many of them.
            let first = self.groups.len() as u64;
            self.groups.extend((first + 1..=10).map(|g| (GroupId(g), members(rng, self.hosts))));
            (self.segment_bytes, self.disk.sector_bytes) = (8 * 4096, 512);
            self.faults.extend([FaultKind::PowerLoss; 2]);
        }
    }

    /// Leaders speak so often, and election timeouts are so much longer.
    pub(crate) fn set_heartbeat(&mut self, nanos: u64, times: u64) {
        self.quiesce_after_nanos = self.quiesce_after_nanos / self.heartbeat_interval_nanos * nanos;
        (self.heartbeat_interval_nanos, self.election_timeout_nanos) = (nanos, nanos * times);
    }

    /// How much faster this host's clock goes than the world's, in millionths.
    pub fn drift_ppm(&self, host: HostId) -> i64 {
        self.drift_ppm.get(&host).copied().unwrap_or(0)
    }

    /// A quiet world of three hosts for scenarios: no faults but those that the scenario makes.
    pub fn quiet(rng: &mut Rng, groups: u64) -> Self {
        let hosts: Vec<HostId> = (1..=3).map(HostId).collect();
        Self {
            hosts: 3,
            groups: (1..=groups).map(|g| (GroupId(g), hosts.clone())).collect(),
            faults: Vec::new(),
            network: NetworkFaults { latency_nanos: 100_000, jitter_nanos: 200_000, ..NetworkFaults::default() },
            request_every_nanos: 10 * MILLI,
            timeout_nanos: SECOND,
            election_timeout_nanos: 150 * MILLI,
            heartbeat_interval_nanos: 20 * MILLI,
            disk: SimDiskConfig::default(),
            large: (0, 0),
            pre_vote: true,
            check_quorum: true,
            quiesce_after_nanos: 400 * MILLI,
            // A leader whose disk hangs holds all that it commits in memory: there is room for a minute of it.
            log_memory_bytes_max: 1 << 30,
            ..Self::draw(rng)
        }
    }

    /// The first members of a group.
    pub fn first_members(&self, group: GroupId) -> Membership {
        let hosts = self.groups.iter().filter(|g| g.0 == group).flat_map(|g| &g.1);
        Membership::from_voters(hosts.map(|host| (ReplicaId(host.0), Member { host: *host, store: StoreId::ZERO })))
    }

    /// The network after all faults have healed.
    pub fn healed_network(&self) -> NetworkFaults {
        NetworkFaults { latency_nanos: 100_000, jitter_nanos: 200_000, ..NetworkFaults::default() }
    }

    /// Settings of a host's engine, in one life of it.
    pub fn engine(&self, host: HostId, seed: u64, incarnation: u64) -> EngineConfig {
        EngineConfig {
            host,
            step_workers: self.step_workers,
            apply_workers: self.apply_workers,
            payload_bytes_max: 1 << 20,
            // Few, so that queues hold several chunks.
            chunk_entries_max: 16,
            queue_entries_max: 256,
            queue_bytes_max: 4 << 20,
            queue_reads_max: 256,
            snapshot_saves_max: 2,
            snapshot_sends_max: 2,
            snapshot_receives_max: 2,
            snapshot_send_bytes_per_s: 0,
            snapshot_receive_bytes_per_s: 0,
            log_cache_bytes_max: self.log_cache_bytes_max,
            log_memory_bytes_max: self.log_memory_bytes_max,
            disk_reserve_bytes: self.disk_reserve_bytes(),
            seed,
            incarnation,
            suspect_after_nanos: 0,
            apply_stall_nanos: 1_000_000_000,
            snapshot_stall_nanos: 5_000_000_000,
        }
    }

    /// Settings of a replica.
    pub fn replica(&self, group: GroupId, replica: ReplicaId, witness: bool) -> ReplicaConfig {
        ReplicaConfig {
            group,
            replica,
            election_timeout_nanos: self.election_timeout_nanos,
            heartbeat_interval_nanos: self.heartbeat_interval_nanos,
            unapplied_bytes_max: 64 << 20,
            snapshot_entries: self.snapshot_entries,
            compaction_overhead: self.compaction_overhead,
            auto_compaction: true,
            snapshots_kept: self.snapshots_kept,
            snapshot_compression: Compression::None,
            // Each replica has its own: all must read what any of them writes.
            entry_compression: [Compression::None, Compression::Lz4, Compression::Zstd][replica.0 as usize % 3],
            pre_vote: self.pre_vote,
            check_quorum: self.check_quorum,
            quiesce_after_nanos: self.quiesce_after_nanos,
            preferred: None,
            witness,
            sessions_max: 4,
        }
    }

    /// Settings of a host's store.
    pub fn store(&self, host: HostId, seed: u64) -> SharedLogConfig {
        SharedLogConfig {
            segment_bytes: self.segment_bytes,
            journal_bytes_max: self.segment_bytes * self.segments_max,
            settle_segments: self.settle_segments,
            // A third of the worlds settle everything as rows, a third keep what they can in place, a third as the size goes.
            archive_span_bytes_min: [u64::MAX, 1, 1 << 10][self.segments_max as usize % 3],
            // A quarter of the worlds have batches that one record does not hold.
            record_bytes_max: if self.segments_max.is_multiple_of(4) { 1 << 10 } else { 4 << 20 },
            key_value: KeyValue::Memory,
            seed: Some(seed),
            ..SharedLogConfig::new("/data", host)
        }
    }

    /// What clients must leave free on a host's disk, in bytes.
    pub fn disk_reserve_bytes(&self) -> u64 {
        // The simulated rows are one file, of which there are two while it is written.
        (8 << 20) + 4 * self.segment_bytes
    }

    /// How the hosts' disks behave.
    pub fn disk(&self) -> SimDiskConfig {
        self.disk
    }
}

/// The hosts of a group's first members.
pub(crate) fn members(rng: &mut Rng, hosts: u64) -> Vec<HostId> {
    let mut members: Vec<HostId> = (1..=hosts).map(HostId).collect();
    let keep = if hosts > 3 && rng.chance(400) { 3 } else { members.len() };
    while members.len() > keep {
        members.remove(rng.below(members.len() as u64) as usize);
    }
    members
}

fn network(rng: &mut Rng) -> NetworkFaults {
    NetworkFaults {
        latency_nanos: rng.magnitude(30_000, MILLI),
        jitter_nanos: rng.magnitude(1_000, 20 * MILLI),
        drop_permille: *rng.pick(&[0, 0, 5, 30, 100]),
        duplicate_permille: *rng.pick(&[0, 10, 100]),
        straggle_permille: *rng.pick(&[0, 0, 10, 50]),
        straggle_nanos: rng.magnitude(20, 2000) * MILLI,
        reorder: rng.chance(500),
    }
}

fn disk(rng: &mut Rng) -> SimDiskConfig {
    SimDiskConfig {
        sector_bytes: *rng.pick(&[512, 4096]),
        latency_nanos: rng.magnitude(50_000, 5 * MILLI),
        jitter_nanos: rng.magnitude(10_000, 30 * MILLI),
        capacity_bytes: u64::MAX,
    }
}
