//! Configuration of a host and of a replica, with limits that are checked.

use longboat_engine::{EngineConfig, ReplicaConfig, StartError};
use longboat_raft::{GroupId, HostId, ReplicaId};
use longboat_rsm::snapshot::Compression;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// A field of a configuration is out of its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: {limit}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What it is.
    pub value: String,
    /// What it must be.
    pub limit: String,
}

fn check(ok: bool, field: &'static str, value: impl ToString, limit: impl ToString) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError { field, value: value.to_string(), limit: limit.to_string() }) }
}

fn within(field: &'static str, value: u64, low: u64, high: u64) -> Result<(), ConfigError> {
    check((low..=high).contains(&value), field, value, format!("must be from {low} to {high}"))
}

/// Which thread runs which worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Threads {
    /// By the number of cores.
    #[default]
    Auto,
    /// A thread for each worker, and one for the sockets.
    Separate,
    /// One thread polls sockets, steps groups and applies in turn; the log writer has its own.
    Compact,
}

/// Configuration of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeHostConfig {
    /// Where everything durable goes. Made when it does not exist; used by one host at a time.
    pub data_dir: PathBuf,
    /// Where the journal goes, if not under `data_dir`.
    pub journal_dir: Option<PathBuf>,
    /// This host's id, for ever; not zero.
    #[serde(with = "crate::ids_serde::host")]
    pub host_id: HostId,
    /// Hosts of another deployment are refused.
    pub deployment_id: u64,
    /// Where the other hosts reach this one. Port 0 takes a free one.
    pub listen_address: SocketAddr,
    /// The addresses of the other hosts. Can be changed live with [`crate::NodeHost::set_peer_address`].
    #[serde(with = "crate::ids_serde::peers")]
    pub peers: BTreeMap<HostId, SocketAddr>,
    /// Threads that step groups; 0 for a default by cores.
    pub step_workers: usize,
    /// Threads that run state machines; 0 for a default by cores.
    pub apply_workers: usize,
    /// Threads that save, recover and stream snapshots; 0 for a default by cores.
    pub snapshot_workers: usize,
    /// Which thread runs which worker.
    pub threads: Threads,
    /// The largest proposal, in bytes.
    pub payload_bytes_max: usize,
    /// Proposals that may wait in the queue of one group; past it proposals are refused as busy.
    pub queue_entries_max: usize,
    /// Bytes of proposals that may wait in the queue of one group.
    pub queue_bytes_max: usize,
    /// Reads that may wait in the queue of one group.
    pub queue_reads_max: usize,
    /// The size of a journal segment, in bytes.
    pub journal_segment_bytes: u64,
    /// What the journal should not outgrow, in bytes.
    pub journal_bytes_max: u64,
    /// Bytes of log that each replica keeps in memory although they are durable and applied, for followers that lag a little.
    pub log_cache_bytes_max: usize,
    /// Bytes of log that all replicas of the host may hold in memory. Beyond it proposals are refused as busy, and beyond twice
    /// as much leaders on other hosts are told to send no more entries.
    pub log_memory_bytes_max: u64,
    /// Bytes that must stay free on the disk of the log: with less, clients' commands are refused with
    /// [`DiskFull`](crate::RequestError::DiskFull), and with less than half of it other leaders' entries too, while reads, snapshots and
    /// membership changes go on. 0 for no reserve: then a full disk fails the host.
    pub disk_reserve_bytes: u64,
    /// Automatic snapshots that are saved at once; those go first that free most of the log. Requested ones do not wait.
    pub snapshot_saves_max: usize,
    /// Snapshot streams to other hosts at once.
    pub snapshot_sends_max: usize,
    /// Snapshot streams from other hosts at once.
    pub snapshot_receives_max: usize,
    /// Bytes of snapshots that are written a second, saved and exported ones together; 0 for no limit. A state machine with
    /// exclusive access applies nothing while it is saved.
    pub snapshot_save_bytes_per_s: u64,
    /// Bytes of snapshots that are sent a second, by all streams together; 0 for no limit.
    pub snapshot_send_bytes_per_s: u64,
    /// Bytes of snapshots that are received a second, by all streams together; 0 for no limit.
    pub snapshot_receive_bytes_per_s: u64,
    /// How long nothing may be heard of another host before it is suspected, and the groups that it led look for other leaders;
    /// 0 for the smallest election timeout of the replicas here. In milliseconds.
    pub suspect_after_ms: u64,
    /// How long a call of a state machine may last before it is said to be stalled, and its worker's other groups go on without
    /// it: on a spare thread, of which the host has four. In milliseconds.
    pub apply_stall_ms: u64,
    /// How long a state machine may be in one place while it is saved, recovered or sent, neither writing nor reading, before it is said
    /// to be stalled, and others are saved and recovered on a spare thread, of which the host has four. In milliseconds.
    pub snapshot_stall_ms: u64,
}

impl Default for NodeHostConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::new(),
            journal_dir: None,
            host_id: HostId::ZERO,
            deployment_id: 0,
            listen_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            peers: BTreeMap::new(),
            step_workers: 0,
            apply_workers: 0,
            snapshot_workers: 0,
            threads: Threads::Auto,
            payload_bytes_max: 4 << 20,
            queue_entries_max: 64 * 1024,
            queue_bytes_max: 64 << 20,
            queue_reads_max: 64 * 1024,
            journal_segment_bytes: 64 << 20,
            journal_bytes_max: 1 << 30,
            log_cache_bytes_max: 1 << 20,
            log_memory_bytes_max: 1 << 30,
            disk_reserve_bytes: 256 << 20,
            snapshot_saves_max: 4,
            snapshot_sends_max: 8,
            snapshot_receives_max: 8,
            snapshot_save_bytes_per_s: SNAPSHOT_BYTES_PER_S,
            snapshot_send_bytes_per_s: SNAPSHOT_BYTES_PER_S,
            snapshot_receive_bytes_per_s: SNAPSHOT_BYTES_PER_S,
            suspect_after_ms: 0,
            apply_stall_ms: 1000,
            snapshot_stall_ms: 5000,
        }
    }
}

/// The default limit of each of the things that are done with snapshots: a small part of what a disk and a processor can, so that
/// requests hardly notice.
const SNAPSHOT_BYTES_PER_S: u64 = 128 << 20;

/// Workers that a host may have of one kind.
const WORKERS_MAX: u64 = 256;
/// The largest proposal that can be allowed: an entry is less than a quarter of a segment of 64 MB.
const PAYLOAD_BYTES_LIMIT: u64 = 15 << 20;

impl NodeHostConfig {
    /// Checks every field against its limits.
    ///
    /// # Errors
    /// The first field that is out of its limits.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check(!self.data_dir.as_os_str().is_empty(), "data_dir", "empty", "must name a directory")?;
        check(!self.host_id.is_zero(), "host_id", 0, "must not be zero")?;
        for (id, address) in &self.peers {
            check(!id.is_zero(), "peers", format!("0={address}"), "a host id must not be zero")?;
            check(address.port() != 0, "peers", format!("{id}={address}"), "a peer's port must not be zero")?;
        }
        for (field, value) in [
            ("step_workers", self.step_workers),
            ("apply_workers", self.apply_workers),
            ("snapshot_workers", self.snapshot_workers),
        ] {
            within(field, value as u64, 0, WORKERS_MAX)?;
        }
        within("journal_segment_bytes", self.journal_segment_bytes, 1 << 20, 1 << 30)?;
        within("journal_bytes_max", self.journal_bytes_max, 2 * self.journal_segment_bytes, 1 << 40)?;
        let quarter = (self.journal_segment_bytes / 4).min(PAYLOAD_BYTES_LIMIT);
        within("payload_bytes_max", self.payload_bytes_max as u64, 1, quarter)?;
        within("queue_entries_max", self.queue_entries_max as u64, 1, 1 << 30)?;
        within("queue_bytes_max", self.queue_bytes_max as u64, self.payload_bytes_max as u64, 1 << 40)?;
        within("queue_reads_max", self.queue_reads_max as u64, 1, 1 << 30)?;
        within("log_memory_bytes_max", self.log_memory_bytes_max, 1 << 20, 1 << 40)?;
        within("disk_reserve_bytes", self.disk_reserve_bytes, 0, 1 << 50)?;
        within("snapshot_saves_max", self.snapshot_saves_max as u64, 1, 1024)?;
        within("snapshot_sends_max", self.snapshot_sends_max as u64, 1, 1024)?;
        within("snapshot_receives_max", self.snapshot_receives_max as u64, 1, 1024)?;
        within("apply_stall_ms", self.apply_stall_ms, 10, 600_000)?;
        within("snapshot_stall_ms", self.snapshot_stall_ms, 10, 600_000)?;
        within("suspect_after_ms", self.suspect_after_ms, 0, 600_000)
    }

    pub(crate) fn engine(&self, seed: u64, incarnation: u64) -> EngineConfig {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let by_cores = |n: usize| {
            if n > 0 {
                n
            } else if cores < 4 {
                1
            } else {
                cores / 4
            }
        };
        EngineConfig {
            host: self.host_id,
            step_workers: by_cores(self.step_workers),
            apply_workers: by_cores(self.apply_workers),
            payload_bytes_max: self.payload_bytes_max,
            chunk_entries_max: longboat_raft::run::RUN_ENTRIES_MAX,
            queue_entries_max: self.queue_entries_max,
            queue_bytes_max: self.queue_bytes_max,
            queue_reads_max: self.queue_reads_max,
            snapshot_saves_max: self.snapshot_saves_max,
            snapshot_sends_max: self.snapshot_sends_max,
            snapshot_receives_max: self.snapshot_receives_max,
            snapshot_send_bytes_per_s: self.snapshot_send_bytes_per_s,
            snapshot_receive_bytes_per_s: self.snapshot_receive_bytes_per_s,
            log_cache_bytes_max: self.log_cache_bytes_max,
            log_memory_bytes_max: self.log_memory_bytes_max,
            disk_reserve_bytes: self.disk_reserve_bytes,
            seed,
            incarnation,
            suspect_after_nanos: self.suspect_after_ms * 1_000_000,
            apply_stall_nanos: self.apply_stall_ms * 1_000_000,
            snapshot_stall_nanos: self.snapshot_stall_ms * 1_000_000,
        }
    }
}

/// Configuration of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// The group; not zero.
    pub group: GroupId,
    /// The replica on this host; not zero, and never used again in its group.
    pub replica: ReplicaId,
    /// The smallest election timeout, in milliseconds; each is random in once to twice this.
    pub election_timeout_ms: u64,
    /// Time between a leader's heartbeats, in milliseconds. They also tell when messages were lost, and are sent only where no
    /// entries flow. A quarter of the election timeout leaves room for three that are lost or late; with thousands
    /// of awake groups, more of them cost processor time and tell nothing new.
    pub heartbeat_interval_ms: u64,
    /// Bytes of log in memory that are not applied yet, beyond which the group's proposals are refused as busy.
    pub unapplied_bytes_max: usize,
    /// Applied entries between automatic snapshots; 0 for none.
    pub snapshot_entries: u64,
    /// How snapshots are compressed, on disk and on their way to followers.
    pub snapshot_compression: Compression,
    /// How the commands that are proposed at this replica are compressed, in the log and on their way to the others, whatever those
    /// have here. Commands that do not get smaller stay as they are. Costs processor time where they are proposed and
    /// wherever they are applied.
    pub entry_compression: Compression,
    /// Entries that are kept in the log behind a snapshot, so that slow followers need no install.
    pub compaction_overhead: u64,
    /// Snapshots let the log go only on request: with [`crate::Replica::request_compaction`], or by what one request for a
    /// snapshot says.
    pub disable_auto_compaction: bool,
    /// Snapshots that are kept, so that a damaged one can be done without. The log reaches back to the oldest of them.
    pub snapshots_kept: u32,
    /// Ask whether votes would be given before campaigning (thesis section 9.6), so that a replica that was cut off does not disturb its group.
    pub pre_vote: bool,
    /// A leader that does not hear from a quorum steps down (thesis section 6.2).
    pub check_quorum: bool,
    /// A group that had nothing to do for this long falls silent: it costs nothing until it is used again. 0 for never. In
    /// milliseconds; the same for all members, since one that never does keeps the others awake.
    pub quiesce_after_ms: u64,
    /// The replica that is to lead when it can; nobody when zero. See [`crate::Replica::set_preferred_leader`].
    pub preferred_leader: ReplicaId,
    /// Client sessions that the group keeps. It goes into the log with each session that is registered here; beyond it the one
    /// that was not used for longest is evicted. Well above the number of clients that are active at a time.
    pub sessions_max: u32,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            group: GroupId::ZERO,
            replica: ReplicaId::ZERO,
            election_timeout_ms: 1_000,
            heartbeat_interval_ms: 250,
            unapplied_bytes_max: 64 << 20,
            snapshot_entries: 0,
            snapshot_compression: Compression::None,
            entry_compression: Compression::None,
            compaction_overhead: 1_000,
            disable_auto_compaction: false,
            snapshots_kept: 1,
            pre_vote: true,
            check_quorum: true,
            quiesce_after_ms: 5_000,
            preferred_leader: ReplicaId::ZERO,
            sessions_max: 4_096,
        }
    }
}

impl GroupConfig {
    /// Checks every field against its limits.
    ///
    /// # Errors
    /// The first field that is out of its limits.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check(!self.group.is_zero(), "group", 0, "must not be zero")?;
        check(!self.replica.is_zero(), "replica", 0, "must not be zero")?;
        within("unapplied_bytes_max", self.unapplied_bytes_max as u64, 1 << 16, 1 << 40)?;
        within("snapshots_kept", self.snapshots_kept.into(), 1, 64)?;
        within("heartbeat_interval_ms", self.heartbeat_interval_ms, 1, 60_000)?;
        let above = format!("must be above heartbeat_interval_ms, {}", self.heartbeat_interval_ms);
        check(
            self.election_timeout_ms > self.heartbeat_interval_ms,
            "election_timeout_ms",
            self.election_timeout_ms,
            above,
        )?;
        within("election_timeout_ms", self.election_timeout_ms, 2, 600_000)?;
        within("sessions_max", self.sessions_max.into(), 1, longboat_rsm::session::SESSIONS_LIMIT.into())?;
        if self.quiesce_after_ms == 0 {
            return Ok(());
        }
        within("quiesce_after_ms", self.quiesce_after_ms, self.heartbeat_interval_ms, 86_400_000)
    }

    /// The engine's form of it, once it is within its limits.
    pub(crate) fn checked(&self) -> Result<ReplicaConfig, StartError> {
        self.validate().map_err(|e| StartError::Config(e.to_string()))?;
        Ok(ReplicaConfig {
            group: self.group,
            replica: self.replica,
            election_timeout_nanos: self.election_timeout_ms * 1_000_000,
            heartbeat_interval_nanos: self.heartbeat_interval_ms * 1_000_000,
            unapplied_bytes_max: self.unapplied_bytes_max,
            snapshot_entries: self.snapshot_entries,
            snapshot_compression: self.snapshot_compression,
            entry_compression: self.entry_compression,
            compaction_overhead: self.compaction_overhead,
            auto_compaction: !self.disable_auto_compaction,
            snapshots_kept: self.snapshots_kept,
            pre_vote: self.pre_vote,
            check_quorum: self.check_quorum,
            quiesce_after_nanos: self.quiesce_after_ms * 1_000_000,
            preferred: Some(self.preferred_leader).filter(|r| !r.is_zero()),
            witness: false,
            sessions_max: self.sessions_max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> NodeHostConfig {
        NodeHostConfig { data_dir: "data".into(), host_id: HostId(1), ..NodeHostConfig::default() }
    }

    fn group() -> GroupConfig {
        GroupConfig { group: GroupId(1), replica: ReplicaId(1), ..GroupConfig::default() }
    }

    #[test]
    fn the_defaults_are_within_their_limits() {
        assert_eq!(host().validate(), Ok(()));
        assert_eq!(group().validate(), Ok(()));
    }

    #[test]
    fn an_error_names_the_field_the_value_and_the_limit() {
        let e = NodeHostConfig { host_id: HostId::ZERO, ..host() }.validate().expect_err("zero id");
        assert_eq!((e.field, e.to_string()), ("host_id", "host_id is 0: must not be zero".to_owned()));
        let e = NodeHostConfig { payload_bytes_max: 1 << 30, ..host() }.validate().expect_err("too large");
        assert_eq!(e.field, "payload_bytes_max");
        assert!(e.to_string().contains("1073741824") && e.to_string().contains("15728640"), "{e}");
        let e = GroupConfig { quiesce_after_ms: 1, ..group() }.validate().expect_err("below a heartbeat");
        assert_eq!((e.field, e.to_string().contains("from 250 to")), ("quiesce_after_ms", true));
        let e = GroupConfig { election_timeout_ms: 100, ..group() }.validate().expect_err("not above");
        assert_eq!((e.field, e.value.as_str()), ("election_timeout_ms", "100"));
    }
}
