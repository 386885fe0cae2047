//! Three hosts in one process, on free ports and temporary directories.

use crate::machine::List;
use longboat::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for any machine; tests end as soon as what they wait for is there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Hosts 1..=3 with their directories; a host that is down is `None`.
pub(crate) struct Cluster {
    pub(crate) dirs: Vec<TempDir>,
    pub(crate) hosts: Vec<Option<NodeHost>>,
    pub(crate) groups: u64,
    pub(crate) snapshot_entries: u64,
    pub(crate) poison: Option<(usize, u64)>,
    pub(crate) sessions_max: u32,
    change: fn(NodeHostConfig) -> NodeHostConfig,
}

fn config(dir: &TempDir, id: u64) -> NodeHostConfig {
    NodeHostConfig {
        data_dir: dir.path().to_path_buf(),
        host_id: HostId(id),
        journal_segment_bytes: 4 << 20,
        journal_bytes_max: 64 << 20,
        payload_bytes_max: 1 << 20,
        ..NodeHostConfig::default()
    }
}

pub(crate) fn members() -> BTreeMap<ReplicaId, HostId> {
    (1..=3).map(|i| (ReplicaId(i), HostId(i))).collect()
}

impl Cluster {
    /// Three hosts with `groups` groups.
    pub(crate) fn start(groups: u64, snapshot_entries: u64) -> Self {
        Self::start_as(groups, snapshot_entries, |config| config)
    }

    /// Without snapshots, on hosts with other settings.
    pub(crate) fn start_with(groups: u64, change: fn(NodeHostConfig) -> NodeHostConfig) -> Self {
        Self::start_as(groups, 0, change)
    }

    fn start_as(groups: u64, snapshot_entries: u64, change: fn(NodeHostConfig) -> NodeHostConfig) -> Self {
        let dirs = (0..3).map(|_| TempDir::new().unwrap()).collect();
        let hosts = vec![None, None, None];
        let mut cluster = Self { dirs, hosts, groups, snapshot_entries, poison: None, sessions_max: 100, change };
        (0..3).for_each(|i| cluster.open(i));
        cluster
    }

    /// Opens host `i` (from 0) and starts its replicas; tells everybody where everybody is.
    pub(crate) fn open(&mut self, i: usize) {
        let host = NodeHost::open((self.change)(config(&self.dirs[i], i as u64 + 1))).expect("opens");
        let poison = self.poison.filter(|p| p.0 == i).map(|p| p.1);
        let machine = || List { poison, ..List::default() };
        let specs = (1..=self.groups).map(|g| (ReplicaStart::bootstrap(members()), self.config(i, g), machine()));
        host.start_replicas(specs).expect("replicas start");
        self.hosts[i] = Some(host);
        self.introduce();
    }

    /// One more host, without replicas, known to everybody. Returns its number from 0.
    pub(crate) fn add_host(&mut self) -> usize {
        let i = self.dirs.len();
        self.dirs.push(TempDir::new().unwrap());
        self.hosts.push(Some(NodeHost::open((self.change)(config(&self.dirs[i], i as u64 + 1))).expect("opens")));
        self.introduce();
        i
    }

    /// Closes host `i` and opens it again, without starting anything.
    pub(crate) fn reopen_empty(&mut self, i: usize) {
        self.close(i);
        self.hosts[i] = Some(NodeHost::open((self.change)(config(&self.dirs[i], i as u64 + 1))).expect("opens"));
        self.introduce();
    }

    /// The configuration of host `i`.
    pub(crate) fn host_config(&self, i: usize) -> NodeHostConfig {
        (self.change)(config(&self.dirs[i], i as u64 + 1))
    }

    /// A directory for one more host, which is not open. Returns its number from 0.
    pub(crate) fn add_closed(&mut self) -> usize {
        self.dirs.push(TempDir::new().unwrap());
        self.hosts.push(None);
        self.dirs.len() - 1
    }

    /// Opens host `i` without starting anything.
    pub(crate) fn open_empty(&mut self, i: usize) {
        self.hosts[i] = Some(NodeHost::open(self.host_config(i)).expect("opens"));
        self.introduce();
    }

    fn introduce(&self) {
        for a in self.hosts.iter().flatten() {
            for b in self.hosts.iter().flatten() {
                a.set_peer_address(b.info().host, b.local_address());
            }
        }
    }

    /// Starts replica `replica` of `group` on host `i`, which joins.
    pub(crate) fn join(&self, i: usize, group: u64, replica: u64) -> Result<Group<List>, StartError> {
        let config = GroupConfig { replica: ReplicaId(replica), ..self.config(i, group) };
        self.host(i).start_replica(ReplicaStart::Join, config, List::default)
    }

    fn has(&self, i: usize, group: u64) -> bool {
        self.hosts[i].as_ref().is_some_and(|h| h.replica(GroupId(group)).is_ok())
    }

    pub(crate) fn host(&self, i: usize) -> &NodeHost {
        self.hosts[i].as_ref().unwrap()
    }

    pub(crate) fn config(&self, i: usize, group: u64) -> GroupConfig {
        GroupConfig {
            group: GroupId(group),
            replica: ReplicaId(i as u64 + 1),
            election_timeout_ms: 200,
            heartbeat_interval_ms: 30,
            snapshot_entries: self.snapshot_entries,
            compaction_overhead: 5,
            sessions_max: self.sessions_max,
            ..GroupConfig::default()
        }
    }

    /// Starts host `i`'s replica of `group` again.
    pub(crate) fn start_replica(&self, i: usize, group: u64) -> Result<Group<List>, StartError> {
        let host = self.hosts[i].as_ref().unwrap();
        host.start_replica(ReplicaStart::Restart, self.config(i, group), List::default)
    }

    /// Closes host `i`.
    pub(crate) fn close(&mut self, i: usize) {
        self.hosts[i].take().unwrap().close(Duration::from_secs(5)).expect("closes in order");
    }

    pub(crate) fn group(&self, i: usize, group: u64) -> Group<List> {
        self.hosts[i].as_ref().unwrap().group(GroupId(group)).unwrap()
    }

    /// The host that leads `group`, once all hosts that are up agree on it.
    pub(crate) fn leader(&self, group: u64) -> usize {
        until("a leader", || {
            let up: Vec<usize> = (0..3).filter(|&i| self.has(i, group)).collect();
            let leaders: Vec<_> = up.iter().map(|&i| self.group(i, group).leader()).collect();
            let first = leaders[0]?;
            let at = first.replica.0 as usize - 1;
            (leaders.iter().all(|l| *l == Some(first)) && up.contains(&at)).then_some(at)
        })
    }

    /// Proposes until it is taken. Only for values that may be proposed again when they were not applied.
    pub(crate) fn put(&self, i: usize, group: u64, value: u64) -> usize {
        until("a proposal", || match self.group(i, group).propose(value, PATIENCE).unwrap().wait() {
            Ok(len) => Some(len as usize),
            Err(e) if !e.may_have_applied() => None,
            Err(e) => panic!("proposal of {value}: {e}"),
        })
    }

    pub(crate) fn read(&self, i: usize, group: u64) -> Vec<u64> {
        self.group(i, group).read((), PATIENCE).unwrap().wait().expect("a read")
    }
}

/// Polls until `probe` gives something.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
