//! Limits and timings of a host and of a replica, with their reasons.

use longboat_raft::{GroupId, HostId, ReplicaId};
use longboat_rsm::snapshot::Compression;

/// Bytes of one open chunk before the next is begun: what one append message carries, so that runs need no cutting on the way.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Bytes that a host has sealed and not yet synced, past which its workers take no proposals.
pub const UNSYNCED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of received frames that one worker may have waiting. Past it frames are dropped and counted: raft resends.
pub const INBOX_BYTES_MAX: usize = 64 << 20;
/// Bytes of a snapshot chunk.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;
/// Bytes of a snapshot stream that may be on the way without the receiver's word that they are on its disk. Both ends hold
/// them: times the number of transfers, it bounds what those take of memory. Six chunks keep both ends at work.
pub const SNAPSHOT_WINDOW_BYTES: u64 = 3 << 19;
/// Nanoseconds of work after which a round ends, so that what it has gathered goes out.
pub const ROUND_NANOS_MAX: u64 = 200_000;
/// Nanoseconds between looks at the store's housekeeping while the host is busy.
pub const HOUSEKEEPING_NANOS: u64 = 10_000_000;

/// Threads that a host has to spare for workers whose state machines hang: each of these keeps one until it returns.
pub const APPLY_SPARES_MAX: usize = 4;

/// Settings of the engine of one host.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This host.
    pub host: HostId,
    /// Step workers.
    pub step_workers: usize,
    /// Apply workers.
    pub apply_workers: usize,
    /// The largest payload of a proposal, in bytes.
    pub payload_bytes_max: usize,
    /// Entries of one chunk before the next is begun; at most [`longboat_raft::run::RUN_ENTRIES_MAX`].
    pub chunk_entries_max: usize,
    /// Entries that may wait in the queue of one group.
    pub queue_entries_max: usize,
    /// Bytes that may wait in the queue of one group.
    pub queue_bytes_max: usize,
    /// Reads that may wait in the queue of one group.
    pub queue_reads_max: usize,
    /// Snapshots that this host saves at once by itself.
    pub snapshot_saves_max: usize,
    /// Snapshot streams that this host sends at once.
    pub snapshot_sends_max: usize,
    /// Snapshot streams that this host receives at once.
    pub snapshot_receives_max: usize,
    /// Bytes of snapshots that this host sends a second; 0 for no limit.
    pub snapshot_send_bytes_per_s: u64,
    /// Bytes of snapshots that this host receives a second; 0 for no limit.
    pub snapshot_receive_bytes_per_s: u64,
    /// Bytes of log that each replica keeps in memory although they are durable and applied.
    pub log_cache_bytes_max: usize,
    /// Bytes of log that all replicas of the host may hold in memory; beyond it proposals are refused.
    pub log_memory_bytes_max: u64,
    /// Bytes on the disk that clients' commands must leave free; 0 for none.
    pub disk_reserve_bytes: u64,
    /// The seed of election deadlines and random start numbers.
    pub seed: u64,
    /// Greater with every start of this host.
    pub incarnation: u64,
    /// How long nothing may be heard of a host before it is suspected, in nanoseconds; 0 for the smallest election timeout of
    /// the replicas here.
    pub suspect_after_nanos: u64,
    /// How long a call of a state machine may last before its worker's other groups go on without it, in nanoseconds.
    pub apply_stall_nanos: u64,
    /// How long a state machine may be in one place while it is saved, recovered or sent, before others of the snapshot pool go on
    /// without it, in nanoseconds.
    pub snapshot_stall_nanos: u64,
}

/// Settings of one replica.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// The smallest election timeout, in nanoseconds; each deadline is random in once to twice this.
    pub election_timeout_nanos: u64,
    /// Time between a leader's heartbeats, in nanoseconds.
    pub heartbeat_interval_nanos: u64,
    /// Bytes of log in memory that are not applied yet, beyond which the replica's proposals are refused.
    pub unapplied_bytes_max: usize,
    /// Applied entries between automatic snapshots; 0 for none.
    pub snapshot_entries: u64,
    /// How snapshots are compressed.
    pub snapshot_compression: Compression,
    /// How commands that are proposed here are compressed.
    pub entry_compression: Compression,
    /// Entries that are kept behind a snapshot, so that slow followers need no install.
    pub compaction_overhead: u64,
    /// The log goes behind each snapshot by itself; else only when that is asked for.
    pub auto_compaction: bool,
    /// Snapshots that are kept, at least one. The log reaches back to the oldest of them.
    pub snapshots_kept: u32,
    /// Ask for votes before campaigning (thesis section 9.6).
    pub pre_vote: bool,
    /// A leader that hears from no quorum steps down.
    pub check_quorum: bool,
    /// Without anything to do for this long a group falls silent; 0 for never. In nanoseconds.
    pub quiesce_after_nanos: u64,
    /// The replica that is to lead when it can.
    pub preferred: Option<ReplicaId>,
    /// The replica is a witness: it has no state machine.
    pub witness: bool,
    /// Client sessions that the group keeps, as its clients here say when they register one.
    pub sessions_max: u32,
}

/// What a running replica looks at of its settings. Timings are in those of its core, which replicas share.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaSettings {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// Entries that are kept behind a snapshot.
    pub compaction_overhead: u64,
    /// Snapshots that are kept, at least one.
    pub snapshots_kept: u32,
    /// The log goes behind each snapshot by itself.
    pub auto_compaction: bool,
}

impl From<&ReplicaConfig> for ReplicaSettings {
    fn from(config: &ReplicaConfig) -> Self {
        Self {
            group: config.group,
            replica: config.replica,
            compaction_overhead: config.compaction_overhead,
            snapshots_kept: config.snapshots_kept,
            auto_compaction: config.auto_compaction,
        }
    }
}
