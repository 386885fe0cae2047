//! Three hosts in this process, over loopback TCP, with every group on each of them.

use crate::process;
use longboat::{
    Compression, Group, GroupConfig, GroupId, HostId, NodeHost, NodeHostConfig, ReplicaId, ReplicaStart, StateMachine,
    Threads,
};
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Hosts of a cluster, and replicas of each of its groups.
pub const HOSTS: usize = 3;
/// Between two looks for leaders that are not elected yet.
const LEADER_LOOK: Duration = Duration::from_millis(2);
/// After this long without a leader somewhere, the run is given up.
const ELECTION_PATIENCE: Duration = Duration::from_secs(120);
/// How long hosts may take to close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// What can fail around a run. Shown to a person, never matched on.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// How the hosts and groups are set up. Zeros leave the engine's default.
#[derive(Clone, Debug, Default)]
pub struct ClusterConfig {
    /// Where the hosts' directories are made.
    pub dir: PathBuf,
    /// Groups.
    pub groups: usize,
    /// Step workers of a host.
    pub step_workers: usize,
    /// Apply workers of a host.
    pub apply_workers: usize,
    /// Which thread runs which worker.
    pub threads: Threads,
    /// Applied entries between snapshots; 0 for none.
    pub snapshot_entries: u64,
    /// Smallest election timeout.
    pub election_timeout_ms: u64,
    /// Between a leader's heartbeats.
    pub heartbeat_interval_ms: u64,
    /// How commands are compressed.
    pub entry_compression: Compression,
    /// When idle groups fall silent, 0 for never; `None` for the engine's default.
    pub quiesce_after_ms: Option<u64>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster<S: StateMachine> {
    hosts: Vec<NodeHost>,
    /// A host that was closed.
    closed: Option<usize>,
    dirs: Vec<PathBuf>,
    /// Per group, its handle on each host.
    pub groups: Vec<[Group<S>; HOSTS]>,
    /// From the first host's opening until all hosts were open.
    pub opened: Duration,
    /// From the first host's opening until all replicas were started.
    pub started: Duration,
    /// From the first host's opening until every group had a leader.
    pub elected: Duration,
}

/// What the hosts have sent, and who is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFigures {
    /// Frames sent.
    pub frames_sent: u64,
    /// Bytes of those.
    pub bytes_sent: u64,
    /// Silent replicas.
    pub silent: u64,
    /// How often the hosts' threads were woken.
    pub wakes: u64,
}

/// What the hosts' journals have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFigures {
    /// Syncs, of all hosts.
    pub syncs: u64,
    /// Entries appended, on all hosts.
    pub entries: u64,
}

impl<S: StateMachine + Default> Cluster<S> {
    /// Opens the hosts, starts every group on each, and waits until all groups have leaders.
    ///
    /// # Errors
    /// When a host can't be opened, a replica not be started, or a group finds no leader.
    pub fn start(config: &ClusterConfig) -> Result<Self, BoxError> {
        for dir in host_dirs(config) {
            if dir.exists() {
                return Err(format!("{} exists already: give an empty directory", dir.display()).into());
            }
        }
        Self::open(config)
    }

    /// As [`Cluster::start`], with hosts that may have been there before: their replicas go on where they stopped.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn open(config: &ClusterConfig) -> Result<Self, BoxError> {
        let begun = Instant::now();
        let dirs = host_dirs(config);
        let mut hosts = Vec::new();
        for (n, dir) in dirs.iter().enumerate() {
            hosts.push(open_host(config, n as u64 + 1, dir)?);
        }
        introduce(&hosts);
        let opened = begun.elapsed();
        let groups = start_groups(config, &hosts)?;
        let started = begun.elapsed();
        let mut cluster = Self { hosts, closed: None, dirs, groups, opened, started, elected: Duration::ZERO };
        cluster.await_leaders()?;
        cluster.elected = begun.elapsed();
        Ok(cluster)
    }

    fn await_leaders(&self) -> Result<(), BoxError> {
        let begun = Instant::now();
        for handles in &self.groups {
            // What a closed host last believed does not count.
            while leader_of(handles).is_none_or(|leader| Some(leader) == self.closed) {
                if begun.elapsed() > ELECTION_PATIENCE {
                    return Err(format!("group {} has no leader after {ELECTION_PATIENCE:?}", handles[0].id()).into());
                }
                thread::sleep(LEADER_LOOK);
            }
        }
        Ok(())
    }

    /// What the hosts' journals have done so far.
    pub fn log_figures(&self) -> LogFigures {
        let mut sum = LogFigures::default();
        for host in &self.hosts {
            let log = host.info().log;
            sum.syncs += log.syncs;
            sum.entries += log.entries;
        }
        sum
    }

    /// What the running hosts have sent so far, and how many of their replicas are silent.
    pub fn host_figures(&self) -> HostFigures {
        let mut sum = HostFigures::default();
        for host in self.hosts.iter().enumerate().filter(|(n, _)| Some(*n) != self.closed).map(|(_, host)| host) {
            let info = host.info();
            sum.frames_sent += info.transport.frames_sent;
            sum.bytes_sent += info.transport.bytes_sent;
            sum.silent += info.silent;
            sum.wakes += info.thread_wakes;
        }
        sum
    }

    /// Closes the hosts and removes their directories.
    ///
    /// # Errors
    /// The first host's that does not close, or a directory that can't be removed.
    pub fn close(self) -> Result<(), BoxError> {
        let dirs = self.dirs.clone();
        self.stop()?;
        for dir in &dirs {
            std::fs::remove_dir_all(dir)?;
        }
        Ok(())
    }

    /// Closes the hosts and leaves their directories, to be opened again.
    ///
    /// # Errors
    /// The first host's that does not close.
    pub fn stop(self) -> Result<(), BoxError> {
        drop(self.groups);
        for host in self.hosts {
            host.close(CLOSE_PATIENCE)?;
        }
        Ok(())
    }

    /// Where a host listens.
    pub fn address(&self, host: usize) -> SocketAddr {
        self.hosts[host].local_address()
    }

    /// The others reach a host at `address` from now on: present connections to it are given up.
    pub fn reroute(&self, host: usize, address: SocketAddr) {
        for (n, other) in self.hosts.iter().enumerate() {
            if n != host {
                other.set_peer_address(HostId(host as u64 + 1), address);
            }
        }
    }

    /// Closes one host for good, and waits until the others lead all groups.
    ///
    /// # Errors
    /// When it does not close, or a group finds no leader.
    pub fn close_host(&mut self, host: usize) -> Result<(), BoxError> {
        self.hosts[host].close(CLOSE_PATIENCE)?;
        self.closed = Some(host);
        self.await_leaders()
    }

    /// Bytes on the disk under the hosts' directories.
    pub fn disk_bytes(&self) -> u64 {
        self.dirs.iter().map(|dir| process::disk_bytes(dir)).sum()
    }
}

fn host_dirs(config: &ClusterConfig) -> Vec<PathBuf> {
    (1..=HOSTS).map(|n| config.dir.join(format!("host-{n}"))).collect()
}

/// Which host leads a group, as a position in its handles.
pub fn leader_of<S: StateMachine>(handles: &[Group<S>; HOSTS]) -> Option<usize> {
    handles.iter().position(|group| group.is_leader())
}

fn open_host(config: &ClusterConfig, id: u64, dir: &Path) -> Result<NodeHost, BoxError> {
    Ok(NodeHost::open(NodeHostConfig {
        data_dir: dir.to_path_buf(),
        host_id: HostId(id),
        deployment_id: 1,
        listen_address: "127.0.0.1:0".parse()?,
        step_workers: config.step_workers,
        apply_workers: config.apply_workers,
        threads: config.threads,
        ..Default::default()
    })?)
}

/// The system chose the ports: now everyone can be told.
fn introduce(hosts: &[NodeHost]) {
    for host in hosts {
        for (n, other) in hosts.iter().enumerate() {
            host.set_peer_address(HostId(n as u64 + 1), other.local_address());
        }
    }
}

/// Starts all groups, on all hosts at once, each host's replicas in one batch. Those that were there before are resumed.
fn start_groups<S: StateMachine + Default>(
    config: &ClusterConfig,
    hosts: &[NodeHost],
) -> Result<Vec<[Group<S>; HOSTS]>, BoxError> {
    let members = |_| (1..=HOSTS as u64).map(|n| (ReplicaId(n), HostId(n)));
    let start = |n: usize, host: &NodeHost| {
        if host.has_replica(GroupId(1)) {
            let template = group_config(config, GroupId::ZERO, ReplicaId::ZERO);
            let resumed = host.resume_all(&template, |_, _| S::default());
            return resumed.failed.into_iter().next().map_or(Ok(resumed.groups), |(_, error)| Err(error));
        }
        host.start_replicas((1..=config.groups as u64).map(|group| {
            let group = group_config(config, GroupId(group), ReplicaId(n as u64 + 1));
            (ReplicaStart::bootstrap(members(())), group, S::default())
        }))
    };
    let mut per_host = Vec::new();
    thread::scope(|scope| {
        let threads: Vec<_> = hosts.iter().enumerate().map(|(n, host)| scope.spawn(move || start(n, host))).collect();
        for thread in threads {
            per_host.push(thread.join().expect("starting replicas does not panic"));
        }
    });
    let mut columns = Vec::new();
    for handles in per_host {
        columns.push(handles?.into_iter());
    }
    let row = |_| std::array::from_fn(|n| columns[n].next().expect("every host started every group"));
    Ok((0..config.groups).map(row).collect())
}

fn group_config(config: &ClusterConfig, group: GroupId, replica: ReplicaId) -> GroupConfig {
    let mut group = GroupConfig { group, replica, snapshot_entries: config.snapshot_entries, ..Default::default() };
    if config.election_timeout_ms > 0 {
        group.election_timeout_ms = config.election_timeout_ms;
    }
    group.entry_compression = config.entry_compression;
    if let Some(after) = config.quiesce_after_ms {
        group.quiesce_after_ms = after;
    }
    if config.heartbeat_interval_ms > 0 {
        group.heartbeat_interval_ms = config.heartbeat_interval_ms;
    }
    group
}
