//! Clients that write and read a few keys at any host, and note what they did and saw.

use crate::history::{ABSENT, OPEN, Operation};
use crate::rng::Rng;
use longboat_examples::client::{Client, Reply};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Keys in all: few enough that clients meet, enough that every group has some.
pub(crate) const KEYS: usize = 96;
/// A client that hears nothing for this long asks elsewhere, and does not know what became of its request.
const REPLY_WITHIN: Duration = Duration::from_secs(3);
/// Time between a client's requests: faults are what is looked for, not throughput.
const PAUSE: Duration = Duration::from_millis(1);
/// Time until a host that refused a connection is tried again.
const RECONNECT: Duration = Duration::from_millis(50);

/// What a client did, an operation with its key.
pub(crate) type Noted = Vec<(usize, Operation)>;

/// What clients came by while they run.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) done: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) unknown: AtomicU64,
    /// The longest time between two replies of any client, in milliseconds.
    pub(crate) longest_pause_ms: AtomicU64,
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) counters: Arc<Counters>,
    ends: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Noted>>,
}

/// What became of a request.
enum Outcome {
    /// A write was acknowledged, or a read saw this value.
    Done(u64),
    /// It had no effect.
    Refused,
    Unknown,
}

pub(crate) fn key(n: usize) -> String {
    format!("key{n}")
}

fn nanos(start: Instant) -> u64 {
    // The first nanosecond is the absent value's.
    start.elapsed().as_nanos() as u64 + 1
}

impl Load {
    pub(crate) fn start(clients: u64, addresses: &[SocketAddr], seed: u64, epoch: Instant) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let ends = Arc::new(AtomicBool::new(false));
        let clients = (1..=clients).map(|id| {
            let worker = Worker {
                id,
                addresses: addresses.to_vec(),
                rng: Rng::new(seed ^ id << 32),
                epoch,
                counters: Arc::clone(&counters),
                written: 0,
            };
            let ends = Arc::clone(&ends);
            thread::Builder::new().name(format!("client {id}")).spawn(move || worker.run(&ends))
        });
        let clients = clients.collect::<io::Result<_>>()?;
        Ok(Self { counters, ends, clients })
    }

    /// Ends all clients. What they noted, by key.
    pub(crate) fn finish(self) -> Vec<Vec<Operation>> {
        self.ends.store(true, Ordering::Relaxed);
        let mut by_key = vec![Vec::new(); KEYS];
        for client in self.clients {
            for (key, operation) in client.join().expect("a client has no reason to panic") {
                by_key[key].push(operation);
            }
        }
        by_key
    }
}

struct Worker {
    id: u64,
    addresses: Vec<SocketAddr>,
    rng: Rng,
    epoch: Instant,
    counters: Arc<Counters>,
    written: u64,
}

impl Worker {
    fn run(mut self, ends: &AtomicBool) -> Noted {
        let mut noted = Noted::new();
        let mut client: Option<Client> = None;
        let mut last_reply = Instant::now();
        while !ends.load(Ordering::Relaxed) {
            let Some(connected) = &mut client else {
                let at = self.rng.below(self.addresses.len() as u64) as usize;
                client = Client::connect(self.addresses[at], REPLY_WITHIN).ok();
                if client.is_none() {
                    thread::sleep(RECONNECT);
                }
                continue;
            };
            let key = self.rng.below(KEYS as u64) as usize;
            let write = self.rng.below(2) == 0;
            let (asked, value) = if write { self.write(key) } else { (get(key), ABSENT) };
            let start = nanos(self.epoch);
            let answered = connected.send(&asked).and_then(|()| connected.reply());
            let end = nanos(self.epoch);
            if answered.is_err() {
                client = None;
            }
            match outcome(answered, write, value) {
                Outcome::Done(value) => {
                    self.counters.done.fetch_add(1, Ordering::Relaxed);
                    noted.push((key, Operation { start, end, value, write }));
                    let pause = last_reply.elapsed().as_millis() as u64;
                    self.counters.longest_pause_ms.fetch_max(pause, Ordering::Relaxed);
                    last_reply = Instant::now();
                }
                Outcome::Refused => {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    // Elsewhere there may be a leader.
                    if self.rng.below(4) == 0 {
                        client = None;
                    }
                }
                Outcome::Unknown => {
                    self.counters.unknown.fetch_add(1, Ordering::Relaxed);
                    if write {
                        noted.push((key, Operation { start, end: OPEN, value, write }));
                    }
                }
            }
            thread::sleep(PAUSE);
        }
        noted
    }

    fn write(&mut self, key: usize) -> (Vec<u8>, u64) {
        self.written += 1;
        let value = self.id << 40 | self.written;
        (set(key, value), value)
    }
}

fn set(key: usize, value: u64) -> Vec<u8> {
    let mut command = Vec::new();
    Client::write_command(&mut command, &[b"SET", self::key(key).as_bytes(), value.to_string().as_bytes()]);
    command
}

fn get(key: usize) -> Vec<u8> {
    let mut command = Vec::new();
    Client::write_command(&mut command, &[b"GET", self::key(key).as_bytes()]);
    command
}

fn outcome(answered: io::Result<Reply>, write: bool, value: u64) -> Outcome {
    match answered {
        Ok(Reply::Simple(_)) if write => Outcome::Done(value),
        Ok(Reply::Bulk(None)) if !write => Outcome::Done(ABSENT),
        Ok(Reply::Bulk(Some(bytes))) if !write => {
            // What is no number was written by nobody: the check will say so.
            Outcome::Done(std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(OPEN - 1))
        }
        Ok(Reply::Error(error)) if error.starts_with("TRYAGAIN") => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

/// Writes and reads every key at every host, until each has answered or the time is over. What is noted, or what does not
/// answer. `pass` must differ between two of these.
pub(crate) fn ask_everything(
    addresses: &[SocketAddr],
    pass: u64,
    epoch: Instant,
    within: Duration,
) -> Result<Noted, String> {
    let deadline = Instant::now() + within;
    let mut noted = Noted::new();
    for (n, address) in addresses.iter().enumerate() {
        let mut asking = Asking { address: *address, client: None, epoch, deadline };
        for key in 0..KEYS {
            for write in [true, false] {
                // Not a client's: their numbers are below this.
                let first = 1 << 60 | pass << 50 | (n as u64) << 40 | (key as u64) << 20;
                asking
                    .until_answered(key, write, first, &mut noted)
                    .map_err(|()| format!("host {} does not answer for {} within {within:?}", n + 1, self::key(key)))?;
            }
        }
    }
    Ok(noted)
}

/// One host, asked until it answers.
struct Asking {
    address: SocketAddr,
    client: Option<Client>,
    epoch: Instant,
    deadline: Instant,
}

impl Asking {
    /// Each attempt to write has a value of its own, from `first` on.
    fn until_answered(&mut self, key: usize, write: bool, first: u64, noted: &mut Noted) -> Result<(), ()> {
        for value in first.. {
            if Instant::now() > self.deadline {
                return Err(());
            }
            let Some(connected) = &mut self.client else {
                self.client = Client::connect(self.address, REPLY_WITHIN).ok();
                thread::sleep(RECONNECT);
                continue;
            };
            let asked = if write { set(key, value) } else { get(key) };
            let start = nanos(self.epoch);
            let answered = connected.send(&asked).and_then(|()| connected.reply());
            let end = nanos(self.epoch);
            if answered.is_err() {
                self.client = None;
            }
            match outcome(answered, write, value) {
                Outcome::Done(value) => {
                    noted.push((key, Operation { start, end, value, write }));
                    break;
                }
                Outcome::Unknown if write => noted.push((key, Operation { start, end: OPEN, value, write })),
                Outcome::Refused | Outcome::Unknown => thread::sleep(RECONNECT),
            }
        }
        Ok(())
    }
}
