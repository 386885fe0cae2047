//! A host of the key-value server: one `NodeHost`, with a replica of every group.

mod admin;

use crate::kv::{Answer, Command, Kv, Output, Query};
use crate::server::Shards;
use crate::server::admin::{Admin, Answering};
use crate::slots::SLOTS;
use longboat::{
    Group, GroupConfig, GroupId, GroupInfo, HostId, NodeHost, NodeHostConfig, PendingBatch, ReplicaId, ReplicaKind,
    ReplicaStart, RequestError, StartError,
};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Those of the hosts that have a replica of every group from the start; all when empty. The others have none before they
    /// are told to join.
    pub members: BTreeSet<u64>,
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
    settings: Settings,
    /// By group, its replica here, if there is one.
    groups: RwLock<Vec<Option<Group<Kv>>>>,
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
        let groups = RwLock::new(vec![None; usize::from(settings.groups)]);
        let kv = Self { host, settings: settings.clone(), groups };
        kv.start()?;
        Ok(kv)
    }

    fn config(&self, group: GroupId) -> GroupConfig {
        let settings = &self.settings;
        GroupConfig {
            group,
            replica: ReplicaId(settings.host_id),
            election_timeout_ms: settings.election_timeout_ms,
            heartbeat_interval_ms: (settings.election_timeout_ms / 10).max(1),
            snapshot_entries: settings.snapshot_entries,
            compaction_overhead: settings.compaction_overhead,
            ..GroupConfig::default()
        }
    }

    /// Starts what is in the directory, as what it is, and what is to be here from the start.
    fn start(&self) -> Result<(), StartError> {
        let settings = &self.settings;
        let first: Vec<u64> = match settings.members.is_empty() {
            true => settings.peers.keys().copied().collect(),
            false => settings.members.iter().copied().collect(),
        };
        let bootstrap = ReplicaStart::bootstrap(first.iter().map(|id| (ReplicaId(*id), HostId(*id))));
        let here: BTreeMap<GroupId, ReplicaId> = self.host.stopped_replicas().into_iter().collect();
        for n in 0..usize::from(settings.groups) {
            let group = GroupId(n as u64 + 1);
            let (start, config) = match here.get(&group) {
                Some(&replica) => (ReplicaStart::Restart, GroupConfig { replica, ..self.config(group) }),
                None if first.contains(&settings.host_id) => (bootstrap.clone(), self.config(group)),
                None => continue,
            };
            match self.host.start_replica(start, config.clone(), Kv::default) {
                Ok(started) => self.groups.write()[n] = Some(started),
                Err(StartError::OtherKind { kind: ReplicaKind::Witness, .. }) => {
                    self.host.start_witness(ReplicaStart::Restart, config)?;
                }
                // It was here from the start and is not any more.
                Err(StartError::Removed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn group(&self, shard: usize) -> Result<Group<Kv>, RequestError> {
        self.groups.read()[shard].clone().ok_or(RequestError::NotHere(GroupId(shard as u64 + 1)))
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
        usize::from(self.settings.groups)
    }

    fn propose(
        &self,
        shard: usize,
        commands: impl ExactSizeIterator<Item = Command>,
        timeout: Duration,
    ) -> Result<PendingBatch<Output>, RequestError> {
        self.group(shard)?.propose_batch(commands, timeout)
    }

    fn read(
        &self,
        shard: usize,
        queries: impl ExactSizeIterator<Item = Query>,
        timeout: Duration,
    ) -> Result<PendingBatch<Answer>, RequestError> {
        self.group(shard)?.read_batch(queries, timeout)
    }

    fn admin(&self, admin: Admin, timeout: Duration) -> Answering {
        self.admin(admin, timeout)
    }

    fn info(&self, section: Option<&str>, out: &mut String) {
        let infos: Vec<GroupInfo> = self.groups.read().iter().flatten().map(|group| group.info()).collect();
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
