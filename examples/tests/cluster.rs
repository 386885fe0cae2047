//! Three hosts of the key-value server in one process, spoken to as a client would.

#![allow(clippy::unwrap_used)]

use longboat_examples::host::{KvHost, Settings};
use longboat_examples::server::Server;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn settings(host_id: u64, peers: &BTreeMap<u64, SocketAddr>, dir: &Path) -> Settings {
    Settings {
        host_id,
        peers: peers.clone(),
        members: (1..=3).filter(|id| peers.contains_key(id)).collect(),
        groups: 8,
        data: dir.join(host_id.to_string()),
        snapshot_entries: 50,
        compaction_overhead: 10,
        election_timeout_ms: 200,
    }
}

/// Ports below those that the system gives to outgoing connections: one of ours, of a client, can't take them between this and
/// the host's own bind, nor while a host is down.
fn free_addresses(count: u64) -> BTreeMap<u64, SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() * 64 % 16_384;
    let mut free = std::iter::repeat_with(|| {
        let port = 12_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 16_384;
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
    })
    .filter(|address| TcpListener::bind(address).is_ok());
    (1..=count).map(|id| (id, free.next().unwrap())).collect()
}

struct Cluster {
    servers: Vec<Server>,
    peers: BTreeMap<u64, SocketAddr>,
    dir: TempDir,
}

/// Longer than any machine takes on which tests are worth running. Nothing that holds waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer will do. Elections of 200 ms on a busy machine move leaders at any time: no request answers at the first
/// try for certain, and no host has heard yet what another one knows.
fn until<T: std::fmt::Debug>(what: &str, mut ask: impl FnMut() -> T, mut will_do: impl FnMut(&T) -> bool) -> T {
    let begun = Instant::now();
    loop {
        let answer = ask();
        if will_do(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {answer:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Cluster {
    fn start() -> Self {
        Self::start_with(3)
    }

    /// With this many hosts, the first three of them members of all groups.
    fn start_with(hosts: u64) -> Self {
        let mut cluster = Self { servers: Vec::new(), peers: free_addresses(hosts), dir: TempDir::new().unwrap() };
        cluster.start_hosts();
        cluster
    }

    /// A list, or the one line that is said instead.
    fn ask_list(&self, n: usize, command: &str) -> Vec<String> {
        let mut stream = BufReader::new(TcpStream::connect(self.servers[n].address()).unwrap());
        stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let Some(count) = line.strip_prefix('*') else { return vec![line.trim_end().to_owned()] };
        let count: usize = count.trim_end().parse().unwrap();
        (0..2 * count)
            .filter_map(|n| {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                (n % 2 == 1).then(|| line.trim_end().to_owned())
            })
            .collect()
    }

    /// The first answer that is one: neither "try again" nor "I do not know whether". For what may be asked twice.
    fn settled(&self, n: usize, command: &str) -> String {
        until(command, || self.ask(n, command), |said| !said.starts_with("-TRYAGAIN") && !said.starts_with("-UNKNOWN"))
    }

    /// Makes a change of members. One whose outcome was unknown may have been made, and is then refused with this.
    fn change(&self, n: usize, command: &str, refused_when_made: &str) {
        let mut unknown = false;
        let done = |said: &String| {
            let made = said.starts_with("+OK") || unknown && said.contains(refused_when_made);
            unknown |= said.starts_with("-UNKNOWN");
            assert!(made || unknown || said.starts_with("-TRYAGAIN"), "{command}: {said}");
            made
        };
        until(command, || self.ask(n, command), done);
    }

    fn start_hosts(&mut self) {
        for id in self.peers.keys() {
            let host = KvHost::open(&settings(*id, &self.peers, self.dir.path())).unwrap();
            self.servers.push(Server::start("127.0.0.1:0".parse().unwrap(), 1, Arc::new(host)).unwrap());
        }
    }

    /// Asks host `n`, counted from 0, with an inline command; the first line of the reply, or the whole of a bulk string.
    fn ask(&self, n: usize, command: &str) -> String {
        let mut stream = BufReader::new(TcpStream::connect(self.servers[n].address()).unwrap());
        stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim_end().to_owned();
        match line.strip_prefix('$').map(|length| length.parse::<usize>()) {
            Some(Ok(length)) => {
                let mut bulk = vec![0; length];
                stream.read_exact(&mut bulk).unwrap();
                String::from_utf8(bulk).unwrap()
            }
            _ => line,
        }
    }
}

#[test]
fn any_host_serves_any_key_and_all_of_it_is_there_after_a_restart() {
    let mut cluster = Cluster::start();
    for n in 0..1000 {
        assert_eq!(cluster.settled(n % 3, &format!("SET key{n} {n}")), "+OK");
        assert_eq!(cluster.settled((n + 1) % 3, &format!("GET key{n}")), n.to_string(), "another host sees it at once");
    }
    assert_eq!(cluster.settled(0, "DBSIZE"), ":1000");
    let info = cluster.ask(1, "INFO");
    for field in ["groups:8", "snapshots_saved:", "applied_index:", "log_bytes:", "group8:leader="] {
        assert!(info.contains(field), "{field} is missing in {info}");
    }
    // A hundred entries to a group are more than the fifty between snapshots, which are taken in their own time.
    until("a snapshot", || cluster.ask(1, "INFO"), |info| !info.contains("snapshots_saved:0\r"));

    cluster.servers.clear();
    cluster.start_hosts();
    for n in (0..1000).step_by(7) {
        assert_eq!(cluster.settled(n % 3, &format!("GET key{n}")), n.to_string());
    }
    assert_eq!(cluster.settled(2, "DBSIZE"), ":1000");
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let peers = free_addresses(1);
    let good = settings(1, &peers, dir.path());
    let cases = [
        (Settings { groups: 0, ..good.clone() }, "groups is 0"),
        (Settings { groups: 16_385, ..good.clone() }, "must be from 1 to 16384"),
        (Settings { host_id: 2, ..good.clone() }, "no host 2"),
        (Settings { election_timeout_ms: 1, ..good }, "election_timeout_ms is 1"),
    ];
    for (settings, expected) in cases {
        let error = KvHost::open(&settings).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn members_and_leaders_change_by_command_at_any_host() {
    let cluster = Cluster::start_with(4);
    assert_eq!(cluster.settled(0, "SET key value"), "+OK");
    for (n, to) in [(0, 2), (1, 3), (2, 1)] {
        // It leads in the term that is named. A later one may have another leader: then it is handed over again.
        let leads = format!("replica {to} on host {to} voter leader");
        let hand_over = || {
            let said = cluster.settled(n, &format!("LONGBOAT TRANSFER 5 {to}"));
            assert!(said.starts_with(&format!("+OK leader {to} ")), "{said}");
            cluster.ask_list(n, "LONGBOAT MEMBERS 5")
        };
        until(&leads, hand_over, |members| members.contains(&leads));
    }
    let refused = cluster.settled(0, "LONGBOAT TRANSFER 5 9");
    assert!(refused.starts_with("-ERR") && refused.contains("not a voter"), "{refused}");

    // The fourth host has nothing before it joins, and then serves.
    for group in 1..=7 {
        assert!(cluster.ask(3, &format!("LONGBOAT INFO {group}")).starts_with("-ERR"));
        cluster.change(1, &format!("LONGBOAT ADD {group} 4 4 NONVOTING"), "already a member");
        assert_eq!(cluster.ask(3, &format!("LONGBOAT JOIN {group} 4")), "+OK");
        cluster.change(2, &format!("LONGBOAT ADD {group} 4 4"), "already a member");
    }
    let again = cluster.settled(0, "LONGBOAT ADD 5 4 4");
    assert!(again.starts_with("-ERR") && again.contains("already a member"), "{again}");
    assert!(cluster.ask(3, "LONGBOAT INFO 5").contains("replica:4"));

    // In the eighth group it takes the place of another. Asked again, the same thing is waited for.
    assert_eq!(cluster.ask(3, "LONGBOAT JOIN 8 4"), "+OK");
    let replaced = cluster.settled(0, "LONGBOAT REPLACE 8 3 4 4");
    assert!(replaced.starts_with("+OK"), "{replaced}");
    let listed = |members: &Vec<String>| members.len() > 1;
    let members = until("MEMBERS", || cluster.ask_list(3, "LONGBOAT MEMBERS 8"), listed);
    let is = |what: &str| members.iter().any(|line| line.starts_with(what));
    assert!(is("replica 4 on host 4 voter") && !is("replica 3"), "{members:?}");
    let other = cluster.settled(0, "LONGBOAT REPLACE 8 2 4 4");
    assert!(other.starts_with("-ERR"), "{other}");
    assert_eq!(cluster.settled(3, "GET key"), "value");

    // Removed, it is gone from there, and its id is refused.
    cluster.change(2, "LONGBOAT REMOVE 5 4", "not a member");
    // Asked of the very replica: it answers, or has stopped by then.
    let done = |said: &String| said.starts_with("+OK") || said.contains("has no replica");
    until("REMOVE 6 4", || cluster.ask(3, "LONGBOAT REMOVE 6 4"), done);
    for group in [5, 6] {
        let gone = cluster.settled(0, &format!("LONGBOAT ADD {group} 4 4"));
        assert!(gone.starts_with("-ERR") && gone.contains("was removed"), "{gone}");
        let stopped = |said: &String| said.starts_with("-ERR");
        until("the removed replica stops", || cluster.ask(3, &format!("LONGBOAT INFO {group}")), stopped);
    }
}
