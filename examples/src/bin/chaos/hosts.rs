//! The server processes, with a proxy on each way between two of them.

use crate::proxy::{Proxy, Weather};
use longboat_examples::client::{Client, Reply};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Hosts. The first three have all groups from the start, the fourth joins and leaves.
pub(crate) const HOSTS: usize = 4;
pub(crate) const FIRST_MEMBERS: usize = 3;
/// Groups of all.
pub(crate) const GROUPS: u64 = 16;
/// A host that is asked for something that an operator asks answers within this time or not at all.
const ADMIN_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Host {
    raft: SocketAddr,
    resp: SocketAddr,
    data: PathBuf,
    child: Option<Child>,
    stopped: bool,
}

/// The processes. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Hosts {
    binary: PathBuf,
    hosts: Vec<Host>,
    /// By who connects and to whom.
    proxies: BTreeMap<(usize, usize), Proxy>,
}

impl Hosts {
    /// Starts all, each with its directory of `data`.
    pub(crate) fn start(data: &[PathBuf; HOSTS]) -> Result<Self, Box<dyn Error>> {
        let binary = std::env::current_exe()?.with_file_name("sharded_kv");
        if !binary.exists() {
            return Err(format!("{} is not built: cargo build --release -p longboat-examples", binary.display()).into());
        }
        let ports = free_addresses(2 * HOSTS)?;
        let host = |n: usize| Host {
            raft: ports[n],
            resp: ports[HOSTS + n],
            data: data[n].clone(),
            child: None,
            stopped: false,
        };
        let hosts: Vec<Host> = (0..HOSTS).map(host).collect();
        let mut proxies = BTreeMap::new();
        for (from, to) in pairs() {
            proxies.insert((from, to), Proxy::start(hosts[to].raft)?);
        }
        let mut all = Self { binary, hosts, proxies };
        for n in 0..HOSTS {
            all.start_host(n)?;
        }
        Ok(all)
    }

    pub(crate) fn start_host(&mut self, n: usize) -> io::Result<()> {
        let at = |other: usize| if other == n { self.hosts[n].raft } else { self.proxies[&(n, other)].address() };
        let peers: Vec<_> = (0..HOSTS).map(|other| format!("{}={}", other + 1, at(other))).collect();
        let members: Vec<_> = (1..=FIRST_MEMBERS).map(|id| id.to_string()).collect();
        let child = Command::new(&self.binary)
            .args(["--host-id", &(n + 1).to_string(), "--peers", &peers.join(","), "--members", &members.join(",")])
            .args(["--resp", &self.hosts[n].resp.to_string(), "--groups", &GROUPS.to_string()])
            .arg("--data")
            .arg(&self.hosts[n].data)
            .args(["--snapshot-entries", "500", "--compaction-overhead", "50", "--election-timeout", "300"])
            .arg("--die-with-parent")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        (self.hosts[n].child, self.hosts[n].stopped) = (Some(child), false);
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self, n: usize) -> io::Result<()> {
        let Some(mut child) = self.hosts[n].child.take() else { return Ok(()) };
        child.kill()?;
        child.wait().map(drop)
    }

    /// SIGSTOP, or SIGCONT.
    pub(crate) fn set_stopped(&mut self, n: usize, stopped: bool) -> io::Result<()> {
        let host = &mut self.hosts[n];
        if let Some(child) = &host.child {
            kill_process(Pid::from_child(child), if stopped { Signal::STOP } else { Signal::CONT })?;
            host.stopped = stopped;
        }
        Ok(())
    }

    pub(crate) fn runs(&self, n: usize) -> bool {
        self.hosts[n].child.is_some()
    }

    /// How a host ended that nobody killed, if it did. It counts as not running from then on.
    pub(crate) fn ended(&mut self, n: usize) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.hosts[n].child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.hosts[n].child = None;
        }
        Ok(status)
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| host.resp).collect()
    }

    /// Sets the weather of all ways between two hosts, given by who sends and who receives.
    pub(crate) fn set_weather(&self, weather: impl Fn(usize, usize) -> Weather) {
        for (&(from, to), proxy) in &self.proxies {
            proxy.set_towards(weather(from, to));
            proxy.set_back(weather(to, from));
        }
    }

    /// Cuts all connections of a host.
    pub(crate) fn cut(&self, n: usize) {
        self.proxies.iter().filter(|((from, to), _)| *from == n || *to == n).for_each(|(_, proxy)| proxy.cut());
    }

    /// Bytes that proxies changed.
    pub(crate) fn corrupted(&self) -> u64 {
        self.proxies.values().map(Proxy::corrupted).sum()
    }

    /// Asks a host for something that an operator asks. Whether it was done.
    pub(crate) fn admin(&self, n: usize, command: &str) -> bool {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let asked = Client::connect(self.hosts[n].resp, ADMIN_WITHIN).and_then(|mut client| client.ask(&words));
        matches!(asked, Ok(Reply::Simple(_)))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for n in 0..HOSTS {
            if let Err(error) = self.kill(n) {
                eprintln!("host {} could not be killed: {error}", n + 1);
            }
        }
    }
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..HOSTS).flat_map(|from| (0..HOSTS).map(move |to| (from, to))).filter(|(from, to)| from != to)
}

fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    bound.iter().map(TcpListener::local_addr).collect()
}

/// A directory of a host on a small file system in memory, where this machine lets one be mounted. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    dir: PathBuf,
    bytes: u64,
}

impl SmallDisk {
    pub(crate) fn mount(dir: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(dir).ok()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Self { dir: dir.to_owned(), bytes })
    }

    /// Where a host's directory goes.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Takes all room but so much. Errors are what is wanted where nothing is to be left.
    pub(crate) fn fill_to(&self, left: u64) {
        let Ok(room) = rustix::fs::statvfs(&self.dir) else { return };
        let free = room.f_bavail * room.f_frsize;
        let filler = || -> io::Result<()> {
            let file = std::fs::File::create(self.dir.join("filler"))?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free.saturating_sub(left).max(1))?;
            Ok(())
        };
        if let Err(error) = filler() {
            eprintln!("{} of {} bytes could not be filled to {left}: {error}", self.dir.display(), self.bytes);
        }
    }

    pub(crate) fn empty(&self) {
        // Not there if it could not be made.
        let _ = std::fs::remove_file(self.dir.join("filler"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.dir).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.dir.display());
        }
    }
}
