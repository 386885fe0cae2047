//! A host of the key-value server: one `NodeHost`, with a replica of every group.

use crate::kv::{Answer, Command, Kv, Output, Query};
use crate::server::Shards;
use crate::slots::SLOTS;
use longboat::{
    Group, GroupConfig, GroupId, GroupInfo, HostId, NodeHost, NodeHostConfig, PendingBatch, ReplicaId, ReplicaStart,
    RequestError,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Hosts of other servers on the same ports are refused by it.
const DEPLOYMENT: u64 = 0x6b76;

/// What a host is started with. The same on every host but for `host_id` and `data`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host.
    pub host_id: u64,
    /// The raft addresses of all hosts, this one included.
    pub peers: BTreeMap<u64, SocketAddr>,
    /// The number of groups; can't be changed later.
    pub groups: u16,
    /// Where everything durable goes.
    pub data: PathBuf,
    /// See [`GroupConfig::snapshot_entries`].
    pub snapshot_entries: u64,
    /// See [`GroupConfig::compaction_overhead`].
    pub compaction_overhead: u64,
    /// See [`GroupConfig::election_timeout_ms`].
    pub election_timeout_ms: u64,
}

/// The replicas of this host.
#[derive(Debug)]
pub struct KvHost {
    host: NodeHost,
    groups: Vec<Group<Kv>>,
}

impl KvHost {
    /// Opens the host and starts a replica of every group; continues those that are in the directory.
    ///
    /// # Errors
    /// A setting that is out of its limits, a directory or an address that can't be used.
    pub fn open(settings: &Settings) -> Result<Self, Box<dyn Error>> {
        if !(1..=SLOTS).contains(&settings.groups) {
            return Err(format!("groups is {}: must be from 1 to {SLOTS}", settings.groups).into());
        }
        let own =
            settings.peers.get(&settings.host_id).ok_or_else(|| format!("peers name no host {}", settings.host_id))?;
        let others = settings.peers.iter().filter(|(id, _)| **id != settings.host_id);
        let host = NodeHost::open(NodeHostConfig {
            data_dir: settings.data.clone(),
            host_id: HostId(settings.host_id),
            deployment_id: DEPLOYMENT,
            listen_address: *own,
            peers: others.map(|(id, address)| (HostId(*id), *address)).collect(),
            ..NodeHostConfig::default()
        })?;
        let members = ReplicaStart::bootstrap(settings.peers.keys().map(|id| (ReplicaId(*id), HostId(*id))));
        let replica = |n: u16| {
            let config = GroupConfig {
                group: GroupId(u64::from(n) + 1),
                replica: ReplicaId(settings.host_id),
                election_timeout_ms: settings.election_timeout_ms,
                heartbeat_interval_ms: (settings.election_timeout_ms / 10).max(1),
                snapshot_entries: settings.snapshot_entries,
                compaction_overhead: settings.compaction_overhead,
                ..GroupConfig::default()
            };
            (members.clone(), config, Kv::default())
        };
        let groups = host.start_replicas((0..settings.groups).map(replica))?;
        Ok(Self { host, groups })
    }

    /// Ends the host in order. A host that is killed instead loses nothing that was acknowledged.
    ///
    /// # Errors
    /// When work under way did not end in time.
    pub fn close(&self, deadline: Duration) -> Result<(), Box<dyn Error>> {
        Ok(self.host.close(deadline)?)
    }

    fn write_totals(&self, infos: &[GroupInfo], out: &mut String) -> std::fmt::Result {
        let info = self.host.info();
        let sum = |figure: fn(&GroupInfo) -> u64| infos.iter().map(figure).sum::<u64>();
        write!(
            out,
            "# Longboat\r\nhost_id:{}\r\ngroups:{}\r\ngroups_led:{}\r\n",
            info.host, info.groups, info.leaders
        )?;
        write!(out, "applied_index:{}\r\n", sum(|i| i.applied.0))?;
        write!(out, "snapshots_saved:{}\r\n", sum(|i| i.snapshots_saved))?;
        write!(out, "snapshots_installed:{}\r\n", sum(|i| i.snapshots_installed))?;
        write!(out, "entries_truncated:{}\r\n", sum(|i| i.entries_truncated))?;
        write!(out, "log_bytes:{}\r\njournal_segments:{}\r\n", info.log.log_bytes, info.log.segments)?;
        write!(out, "journal_bytes_written:{}\r\nlog_syncs:{}\r\n", info.log.journal_bytes_written, info.log.syncs)?;
        write!(out, "log_entries:{}\r\nframes_refused:{}\r\n\r\n", info.log.entries, info.transport.closed_bad)
    }

    fn write_groups(infos: &[GroupInfo], out: &mut String) -> std::fmt::Result {
        out.push_str("# Groups\r\n");
        for i in infos {
            let leader = i.leader.map_or(0, |replica| replica.0);
            write!(
                out,
                "group{}:leader={leader},term={},commit={},applied={},first={},last={},snapshot={}\r\n",
                i.group, i.term, i.commit, i.applied, i.first_index, i.last_index, i.snapshot_index
            )?;
        }
        out.push_str("\r\n");
        Ok(())
    }
}

impl Shards for KvHost {
    fn count(&self) -> usize {
        self.groups.len()
    }

    fn propose(
        &self,
        shard: usize,
        commands: impl ExactSizeIterator<Item = Command>,
        timeout: Duration,
    ) -> Result<PendingBatch<Output>, RequestError> {
        self.groups[shard].propose_batch(commands, timeout)
    }

    fn read(
        &self,
        shard: usize,
        queries: impl ExactSizeIterator<Item = Query>,
        timeout: Duration,
    ) -> Result<PendingBatch<Answer>, RequestError> {
        self.groups[shard].read_batch(queries, timeout)
    }

    fn info(&self, section: Option<&str>, out: &mut String) {
        let infos: Vec<GroupInfo> = self.groups.iter().map(|group| group.info()).collect();
        let wanted = |name| section.is_none_or(|section| matches!(section, "all" | "everything") || section == name);
        let mut written = Ok(());
        if wanted("longboat") {
            written = self.write_totals(&infos, out);
        }
        if wanted("groups") {
            written = written.and(Self::write_groups(&infos, out));
        }
        written.expect("writing to a string can't fail");
    }
}
