//! Three server processes, started, killed and watched.

use longboat_examples::client::{Client, Reply};
use std::collections::BTreeMap;
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const HOSTS: usize = 3;
/// A cluster that does not serve within this time is not going to.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// What the servers are started with.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) groups: u16,
    pub(crate) snapshot_entries: u64,
    pub(crate) compaction_overhead: u64,
    pub(crate) election_timeout_ms: u64,
}

/// The figures of a host that add up over its lives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) groups_led: u64,
    pub(crate) snapshots_saved: u64,
    pub(crate) snapshots_installed: u64,
    pub(crate) entries_truncated: u64,
}

impl Figures {
    /// Adds what another life, or another host, has counted.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            groups_led: self.groups_led + other.groups_led,
            snapshots_saved: self.snapshots_saved + other.snapshots_saved,
            snapshots_installed: self.snapshots_installed + other.snapshots_installed,
            entries_truncated: self.entries_truncated + other.entries_truncated,
        }
    }
}

#[derive(Debug)]
struct Host {
    id: u64,
    resp: SocketAddr,
    child: Option<Child>,
    /// What its earlier lives counted.
    before: Figures,
    /// What this life had counted when last asked.
    now: Figures,
}

/// The processes. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    peers: String,
    /// The hosts that have every group from the start.
    members: String,
    plan: Plan,
    hosts: Vec<Host>,
}

/// One more process, outside of a cluster. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Alone {
    resp: SocketAddr,
    child: Child,
}

impl Alone {
    /// How many replicas run there, if it answers.
    pub(crate) fn running(&self) -> Option<u16> {
        fields(self.resp)?.get("groups")?.parse().ok()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("a host could not be killed: {error}");
        }
    }
}

/// Where each host listens for the others.
pub(crate) type Ports = BTreeMap<u64, u16>;

/// Free ports for these hosts.
pub(crate) fn ports<const N: usize>(ids: [u64; N]) -> Result<Ports, Box<dyn Error>> {
    Ok(ids.into_iter().zip(free_ports(N)?).collect())
}

impl Cluster {
    /// Starts all hosts. `resp` are the clients' ports; free ones are taken when there are none.
    pub(crate) fn start(dir: &Path, plan: Plan, resp: Option<[u16; HOSTS]>) -> Result<Self, Box<dyn Error>> {
        Self::start_as(dir, plan, resp, [1, 2, 3], ports([1, 2, 3])?)
    }

    /// As [`Cluster::start`], with hosts of these ids, which know of all that have ports.
    pub(crate) fn start_as(
        dir: &Path,
        plan: Plan,
        resp: Option<[u16; HOSTS]>,
        ids: [u64; HOSTS],
        raft: Ports,
    ) -> Result<Self, Box<dyn Error>> {
        let binary = std::env::current_exe()?.with_file_name("sharded_kv");
        if !binary.exists() {
            return Err(format!("{} is not built: cargo build --release -p longboat-examples", binary.display()).into());
        }
        let resp: Vec<_> = match resp {
            Some(ports) => Vec::from(ports),
            None => free_ports(HOSTS)?,
        };
        let peers: Vec<_> = raft.iter().map(|(id, port)| format!("{id}=127.0.0.1:{port}")).collect();
        let host = |(id, port): (u64, &u16)| Host {
            id,
            resp: SocketAddr::from(([127, 0, 0, 1], *port)),
            child: None,
            before: Figures::default(),
            now: Figures::default(),
        };
        let hosts = ids.into_iter().zip(&resp).map(host).collect();
        let members = ids.map(|id| id.to_string()).join(",");
        let mut cluster = Self { binary, dir: dir.to_owned(), peers: peers.join(","), members, plan, hosts };
        for n in 0..HOSTS {
            cluster.start_host(n)?;
        }
        Ok(cluster)
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| host.resp).collect()
    }

    /// Starts the process of a host that was killed, and that no longer counts as one of these.
    pub(crate) fn restart_alone(&self, n: usize) -> Result<Alone, Box<dyn Error>> {
        Ok(Alone { resp: self.hosts[n].resp, child: self.spawn(n)? })
    }

    /// Some host that runs.
    pub(crate) fn running(&self) -> Option<usize> {
        (0..HOSTS).find(|&n| self.hosts[n].child.is_some())
    }

    fn spawn(&self, n: usize) -> std::io::Result<Child> {
        let plan = &self.plan;
        let id = self.hosts[n].id;
        Command::new(&self.binary)
            .args(["--host-id", &id.to_string(), "--peers", &self.peers, "--members", &self.members])
            .args(["--resp", &self.hosts[n].resp.to_string(), "--groups", &plan.groups.to_string()])
            .arg("--data")
            .arg(self.dir.join(format!("host-{id}")))
            .args(["--snapshot-entries", &plan.snapshot_entries.to_string()])
            .args(["--compaction-overhead", &plan.compaction_overhead.to_string()])
            .args(["--election-timeout", &plan.election_timeout_ms.to_string()])
            .arg("--die-with-parent")
            .stdout(Stdio::null())
            .spawn()
    }

    pub(crate) fn start_host(&mut self, n: usize) -> Result<(), Box<dyn Error>> {
        let child = self.spawn(n)?;
        let host = &mut self.hosts[n];
        host.child = Some(child);
        host.before = host.before.plus(std::mem::take(&mut host.now));
        Ok(())
    }

    /// Kills hosts with SIGKILL, all before any is waited for.
    pub(crate) fn kill(&mut self, hosts: impl IntoIterator<Item = usize>) -> Result<(), Box<dyn Error>> {
        let hosts: Vec<_> = hosts.into_iter().collect();
        for &n in &hosts {
            if let Some(child) = &mut self.hosts[n].child {
                child.kill()?;
            }
        }
        for &n in &hosts {
            if let Some(mut child) = self.hosts[n].child.take() {
                child.wait()?;
            }
        }
        Ok(())
    }

    /// Waits until every host answers for every group.
    pub(crate) fn wait_ready(&mut self) -> Result<Duration, Box<dyn Error>> {
        let start = Instant::now();
        for n in 0..HOSTS {
            while !self.answers(n) {
                self.check_running()?;
                if start.elapsed() > READY_WITHIN {
                    return Err(format!("host {} does not serve after {READY_WITHIN:?}", n + 1).into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(start.elapsed())
    }

    fn answers(&self, n: usize) -> bool {
        let asked = Client::connect(self.hosts[n].resp, READY_WITHIN).and_then(|mut client| client.ask(&[b"DBSIZE"]));
        matches!(asked, Ok(Reply::Integer(_)))
    }

    /// Fails when a host ended that nobody killed.
    pub(crate) fn check_running(&mut self) -> Result<(), Box<dyn Error>> {
        for (n, host) in self.hosts.iter_mut().enumerate() {
            if let Some(child) = &mut host.child
                && let Some(status) = child.try_wait()?
            {
                return Err(format!("host {} ended by itself: {status}", n + 1).into());
            }
        }
        Ok(())
    }

    /// Asks every running host for its figures.
    pub(crate) fn look(&mut self) {
        for host in self.hosts.iter_mut().filter(|host| host.child.is_some()) {
            if let Some(figures) = ask_figures(host.resp) {
                host.now = figures;
            }
        }
    }

    /// The figures of a host's present life, as last looked at.
    pub(crate) fn figures(&self, n: usize) -> Figures {
        self.hosts[n].now
    }

    /// All that all lives of all hosts have counted.
    pub(crate) fn totals(&self) -> Figures {
        self.hosts.iter().fold(Figures::default(), |sum, host| sum.plus(host.before).plus(host.now))
    }

    /// The host that led most groups when last looked at.
    pub(crate) fn busiest_leader(&self) -> usize {
        (0..HOSTS).max_by_key(|&n| self.hosts[n].now.groups_led).expect("there are hosts")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.kill(0..HOSTS) {
            eprintln!("a host could not be killed: {error}");
        }
    }
}

fn fields(address: SocketAddr) -> Option<BTreeMap<String, String>> {
    let mut client = Client::connect(address, Duration::from_secs(1)).ok()?;
    let Ok(Reply::Bulk(Some(text))) = client.ask(&[b"INFO", b"longboat"]) else { return None };
    let text = String::from_utf8(text).ok()?;
    let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
    Some(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn ask_figures(address: SocketAddr) -> Option<Figures> {
    let fields = fields(address)?;
    let field = |name| fields.get(name).and_then(|value| value.parse().ok());
    Some(Figures {
        groups_led: field("groups_led")?,
        snapshots_saved: field("snapshots_saved")?,
        snapshots_installed: field("snapshots_installed")?,
        entries_truncated: field("entries_truncated")?,
    })
}

/// Ports that nobody listens on, all different.
fn free_ports(count: usize) -> Result<Vec<u16>, Box<dyn Error>> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    Ok(bound.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect::<Result<_, _>>()?)
}
