//! Clients that write unique values and remember what was acknowledged, and the check that all of it is there.

use longboat_examples::client::{Client, Reply};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Writes that a client sends before it reads their replies.
const PIPELINE: u64 = 4;
/// Keys that one read asks for.
const KEYS_PER_READ: usize = 64;
/// Reads under way on one connection.
const READS_AT_ONCE: usize = 4;
/// Longer than the servers' own patience: past it a server hangs.
const REPLY_WITHIN: Duration = Duration::from_secs(15);
/// A read that fails is tried again for so long: the groups may have to elect leaders.
const READ_WITHIN: Duration = Duration::from_secs(20);

/// The writes of one client that were acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Acknowledged {
    client: String,
    writes: Vec<u64>,
    /// The longest time between two acknowledgements, the ends of the load included.
    longest_pause: Duration,
    /// Replies that were errors, and connections that broke.
    failures: u64,
}

fn key(client: &str, write: u64) -> String {
    format!("{client}:{write}")
}

/// Different for every write.
fn value(client: &str, write: u64) -> String {
    let mixed = (write + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ client.len() as u64;
    format!("{client}={write}={mixed:016x}")
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Acknowledged>>,
}

impl Load {
    /// Starts `count` clients, each with keys of its own that start with `name`.
    pub(crate) fn start(name: &str, count: usize, addresses: &[SocketAddr]) -> io::Result<Self> {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = |n: usize| {
            let mut addresses = addresses.to_vec();
            let own = n % addresses.len();
            addresses.rotate_left(own);
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let client = format!("{name}{n}");
            let run = move || write_until(&stop, client, &addresses, &acknowledged);
            std::thread::Builder::new().stack_size(256 << 10).spawn(run)
        };
        let clients = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok(Self { stop, acknowledged, clients })
    }

    /// Writes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Tells the clients to stop, before whoever they talk to goes away.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops the clients and gathers what they know.
    pub(crate) fn finish(self) -> Vec<Acknowledged> {
        self.stop();
        self.clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
    }
}

/// One client: writes until it is told to stop, at whichever host serves it.
fn write_until(stop: &AtomicBool, client: String, addresses: &[SocketAddr], total: &AtomicU64) -> Acknowledged {
    let mut all = Acknowledged { client, writes: Vec::new(), longest_pause: Duration::ZERO, failures: 0 };
    let (mut connection, mut turn, mut next) = (None, 0, 0);
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let Some(open) = &mut connection else {
            connection = Client::connect(addresses[turn % addresses.len()], REPLY_WITHIN).ok();
            turn += 1;
            if connection.is_none() {
                std::thread::sleep(Duration::from_millis(10));
            }
            continue;
        };
        let mut commands = Vec::new();
        let batch = next..next + PIPELINE;
        for write in batch.clone() {
            let (key, value) = (key(&all.client, write), value(&all.client, write));
            Client::write_command(&mut commands, &[b"SET", key.as_bytes(), value.as_bytes()]);
        }
        next = batch.end;
        let mut broken = open.send(&commands).is_err();
        for write in batch {
            match open.reply() {
                Ok(Reply::Simple(ok)) if ok == "OK" => {
                    all.writes.push(write);
                    total.fetch_add(1, Ordering::Relaxed);
                    all.longest_pause = all.longest_pause.max(last.elapsed());
                    last = Instant::now();
                }
                Ok(_) => all.failures += 1,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        if broken {
            all.failures += 1;
            connection = None;
        }
    }
    all.longest_pause = all.longest_pause.max(last.elapsed());
    all
}

/// The longest time that any client had to wait for an acknowledgement.
pub(crate) fn longest_pause(all: &[Acknowledged]) -> Duration {
    all.iter().map(|client| client.longest_pause).max().unwrap_or_default()
}

/// How many writes were acknowledged.
pub(crate) fn count(all: &[Acknowledged]) -> u64 {
    all.iter().map(|client| client.writes.len() as u64).sum()
}

/// How many requests were answered by an error or cut off: what they wrote may be there or not.
pub(crate) fn failures(all: &[Acknowledged]) -> u64 {
    all.iter().map(|client| client.failures).sum()
}

/// Reads every acknowledged write back, through all hosts at once. Returns how many are gone or changed.
pub(crate) fn count_lost(all: &[Acknowledged], addresses: &[SocketAddr]) -> Result<u64, String> {
    std::thread::scope(|scope| {
        let part = |n: usize| {
            let address = addresses[n];
            let clients: Vec<_> = all.iter().skip(n).step_by(addresses.len()).collect();
            scope.spawn(move || clients.iter().map(|client| lost_of(client, address)).sum::<Result<u64, String>>())
        };
        let parts: Vec<_> = (0..addresses.len()).map(part).collect();
        parts.into_iter().map(|part| part.join().expect("a reader does not panic")).sum()
    })
}

fn lost_of(all: &Acknowledged, address: SocketAddr) -> Result<u64, String> {
    let (mut lost, mut connection) = (0, None);
    for writes in all.writes.chunks(KEYS_PER_READ * READS_AT_ONCE) {
        let start = Instant::now();
        loop {
            match read_back(&mut connection, address, &all.client, writes) {
                Ok(missing) => {
                    lost += missing;
                    break;
                }
                Err(error) if start.elapsed() > READ_WITHIN => {
                    return Err(format!("writes of client {} can't be read back: {error}", all.client));
                }
                Err(_) => {
                    connection = None;
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
    Ok(lost)
}

fn read_back(connection: &mut Option<Client>, address: SocketAddr, client: &str, writes: &[u64]) -> io::Result<u64> {
    if connection.is_none() {
        *connection = Some(Client::connect(address, REPLY_WITHIN)?);
    }
    let open = connection.as_mut().expect("just made sure");
    let mut commands = Vec::new();
    for writes in writes.chunks(KEYS_PER_READ) {
        let keys: Vec<_> = writes.iter().map(|&write| key(client, write)).collect();
        let args: Vec<_> = std::iter::once(&b"MGET"[..]).chain(keys.iter().map(String::as_bytes)).collect();
        Client::write_command(&mut commands, &args);
    }
    open.send(&commands)?;
    let mut missing = 0;
    for writes in writes.chunks(KEYS_PER_READ) {
        let values = match open.reply()? {
            Reply::Array(values) if values.len() == writes.len() => values,
            other => return Err(io::Error::other(format!("{other:?}"))),
        };
        for (&write, found) in writes.iter().zip(values) {
            if found != Reply::Bulk(Some(value(client, write).into_bytes())) {
                eprintln!("LOST: {} was acknowledged, found {found:?}", key(client, write));
                missing += 1;
            }
        }
    }
    Ok(missing)
}
