//! The RESP server: few threads, each an epoll loop over its connections.
//!
//! A pass of a loop reads all connections that have input, gathers their commands into one batch per group, hands the
//! batches over, and writes the replies of those that are over. It never waits for a group.

pub mod admin;
mod commands;
mod conn;
mod rounds;

use crate::kv::{Answer, Command, Output, Query};
use admin::{Admin, Answering};
use commands::{Outcome, Task, Work};
use conn::{Conn, Place, Sink};
use longboat::{PendingBatch, RequestError};
use rounds::{ConnId, Op, Ready, Rounds};
use rustix::event::{Timespec, epoll};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The groups, as the server sees them.
pub trait Shards: Send + Sync + 'static {
    /// How many there are.
    fn count(&self) -> usize;

    /// Replicates commands in one group, in their order.
    ///
    /// # Errors
    /// When none of them was taken.
    fn propose(
        &self,
        shard: usize,
        commands: impl ExactSizeIterator<Item = Command>,
        timeout: Duration,
    ) -> Result<PendingBatch<Output>, RequestError>;

    /// Asks one group, linearizably.
    ///
    /// # Errors
    /// When none of the queries was taken.
    fn read(
        &self,
        shard: usize,
        queries: impl ExactSizeIterator<Item = Query>,
        timeout: Duration,
    ) -> Result<PendingBatch<Answer>, RequestError>;

    /// Carries out what an operator asks.
    fn admin(&self, admin: Admin, timeout: Duration) -> Answering;

    /// Appends sections about the groups to the report that `INFO` shows.
    fn info(&self, section: Option<&str>, out: &mut String);
}

/// Most connections of one thread; further ones are closed at once.
const CONNECTIONS_MAX: usize = 10_000;
/// After a connection could not be accepted.
const ACCEPT_DELAY: Duration = Duration::from_millis(10);
/// Read from one connection before the next has its turn.
const READ_BYTES: usize = 64 << 10;
/// Events taken in one pass.
const EVENTS: usize = 256;
const LISTENER: u64 = u64::MAX;
const READY: u64 = u64::MAX - 1;

/// What the server has counted.
#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    connections_total: AtomicU64,
    commands: AtomicU64,
    protocol_errors: AtomicU64,
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    loops: Vec<(Arc<Ready>, JoinHandle<io::Result<()>>)>,
}

impl Server {
    /// Serves `shards` at `address` with this many threads.
    ///
    /// # Errors
    /// When the address can't be bound, or threads can't be started.
    pub fn start<S: Shards>(address: SocketAddr, threads: usize, shards: Arc<S>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, counters) = (Arc::new(AtomicBool::new(false)), Arc::new(Counters::default()));
        let mut loops = Vec::new();
        for n in 0..threads.max(1) {
            let mut event_loop = EventLoop::new(listener.try_clone()?, Arc::clone(&shards), Arc::clone(&counters))?;
            let (ready, stop) = (Arc::clone(event_loop.rounds.ready()), Arc::clone(&stop));
            let thread = std::thread::Builder::new().name(format!("resp-{n}")).spawn(move || {
                let mut events = Vec::with_capacity(EVENTS);
                while !stop.load(Ordering::Relaxed) {
                    event_loop.pass(&mut events)?;
                }
                Ok(())
            })?;
            loops.push((ready, thread));
        }
        Ok(Self { address, stop, loops })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until a thread fails.
    ///
    /// # Errors
    /// Why it failed.
    pub fn wait(mut self) -> io::Result<()> {
        self.loops.drain(..).try_for_each(|(_, thread)| join(thread))
    }
}

fn join(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a RESP thread panicked")))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (ready, thread) in self.loops.drain(..) {
            ready.signal();
            if let Err(error) = join(thread) {
                tracing::error!(%error, "RESP thread failed");
            }
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    conn: Option<Conn>,
    generation: u32,
    interest: Option<epoll::EventFlags>,
    /// Whether it is in the list of connections to look at.
    listed: bool,
}

struct EventLoop<S> {
    epoll: OwnedFd,
    listener: TcpListener,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Connections to look at in this pass.
    listed: Vec<u32>,
    rounds: Rounds<S>,
    counters: Arc<Counters>,
    buffer: Vec<u8>,
}

impl<S: Shards> EventLoop<S> {
    fn new(listener: TcpListener, shards: Arc<S>, counters: Arc<Counters>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let rounds = Rounds::new(shards)?;
        let listening = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), listening)?;
        epoll::add(&epoll, rounds.ready(), epoll::EventData::new_u64(READY), epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            slots: Vec::new(),
            free: Vec::new(),
            listed: Vec::new(),
            rounds,
            counters,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Waits for something to do, and does all of it.
    fn pass(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        self.wait(events)?;
        for event in events.drain(..) {
            match event.data.u64() {
                LISTENER => self.accept(),
                READY => self.rounds.ready().reset(),
                slot => self.react(slot as u32, event.flags),
            }
        }
        self.rounds.add_due_retries(Instant::now());
        loop {
            self.take_commands();
            self.rounds.send();
            self.collect();
            if self.listed.is_empty() {
                return Ok(());
            }
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let timeout = self.rounds.next_retry().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    // Most likely out of file descriptors, and the connection still waits: not at once again.
                    std::thread::sleep(ACCEPT_DELAY);
                    return;
                }
            };
            if stream.set_nonblocking(true).is_err() || stream.set_nodelay(true).is_err() {
                continue;
            }
            let slot = match self.free.pop() {
                Some(slot) => slot,
                None if self.slots.len() == CONNECTIONS_MAX => {
                    // Said if the socket takes it; the connection closes either way.
                    let _ = (&stream).write(b"-ERR max number of clients reached\r\n");
                    continue;
                }
                None => {
                    self.slots.push(Slot::default());
                    (self.slots.len() - 1) as u32
                }
            };
            self.counters.connections.fetch_add(1, Ordering::Relaxed);
            self.counters.connections_total.fetch_add(1, Ordering::Relaxed);
            self.slots[slot as usize].conn = Some(Conn::new(stream));
            self.list(slot);
        }
    }

    fn react(&mut self, slot: u32, flags: epoll::EventFlags) {
        let Some(conn) = self.slots.get_mut(slot as usize).and_then(|slot| slot.conn.as_mut()) else { return };
        let broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        if broken || (conn.wants_input() && conn.read(&mut self.buffer).is_err()) {
            return self.close(slot);
        }
        self.list(slot);
    }

    fn list(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        if !entry.listed {
            entry.listed = true;
            self.listed.push(slot);
        }
    }

    /// Takes the commands of every listed connection, and writes what replies it has.
    fn take_commands(&mut self) {
        let now = Instant::now();
        for n in std::mem::take(&mut self.listed) {
            let slot = &mut self.slots[n as usize];
            slot.listed = false;
            let Some(conn) = &mut slot.conn else { continue };
            let id = ConnId { slot: n, generation: slot.generation };
            let sink = &mut LoopSink { rounds: &mut self.rounds, counters: &self.counters, conn: id, now };
            // Written first, and as long as there are replies that need no group: that makes room for commands.
            let mut flushed = conn.flush();
            while flushed.is_ok() && conn.advance(sink) {
                flushed = conn.flush();
            }
            if flushed.is_err() || conn.is_over() || self.watch(n).is_err() {
                self.close(n);
            }
        }
    }

    /// Asks for the events that the connection can use now.
    fn watch(&mut self, n: u32) -> io::Result<()> {
        let slot = &mut self.slots[n as usize];
        let Some(conn) = &slot.conn else { return Ok(()) };
        let mut wanted = epoll::EventFlags::empty();
        wanted.set(epoll::EventFlags::IN, conn.wants_input());
        wanted.set(epoll::EventFlags::OUT, conn.wants_output());
        let data = epoll::EventData::new_u64(n.into());
        match slot.interest {
            None => epoll::add(&self.epoll, &conn.stream, data, wanted)?,
            Some(now) if now != wanted => epoll::modify(&self.epoll, &conn.stream, data, wanted)?,
            Some(_) => {}
        }
        slot.interest = Some(wanted);
        Ok(())
    }

    fn close(&mut self, n: u32) {
        let slot = &mut self.slots[n as usize];
        // Closing the socket takes it out of the epoll set.
        if slot.conn.take().is_some() {
            slot.generation = slot.generation.wrapping_add(1);
            slot.interest = None;
            self.free.push(n);
            self.counters.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Hands the outcomes of finished batches to their connections.
    fn collect(&mut self) {
        let collected = self.rounds.collect();
        let now = Instant::now();
        for (ops, results) in collected.writes {
            self.deliver(ops, results, now, Work::Write, Outcome::Written, |error| !error.may_have_applied());
        }
        for (id, place, said) in collected.said {
            let Some(conn) = self.conn(id) else { continue };
            conn.done(place, said.map_or_else(Outcome::Failed, Outcome::Said));
            self.list(id.slot);
        }
        for (ops, results) in collected.reads {
            self.deliver(ops, results, now, Work::Read, Outcome::Answered, |_| true);
        }
    }

    fn deliver<W, T>(
        &mut self,
        ops: Vec<Op<W>>,
        results: Vec<Result<T, RequestError>>,
        now: Instant,
        work: fn(W) -> Work,
        outcome: fn(T) -> Outcome,
        without_effect: fn(&RequestError) -> bool,
    ) {
        let mut failed = Vec::new();
        for (op, result) in ops.into_iter().zip(results) {
            let Some(conn) = self.conn(op.conn) else { continue };
            match result {
                Ok(value) => conn.done(op.place, outcome(value)),
                Err(error) if op.deadline > now && is_passing(&error) && without_effect(&error) => {
                    conn.failed_without_effect(op.place);
                    failed.push((op, error));
                    continue;
                }
                Err(error) => conn.done(op.place, failure(&error)),
            }
            self.list(op.conn.slot);
        }
        // Judged once all failures of the batch are known: what failed together can be tried again together.
        for (op, error) in failed {
            let Some(conn) = self.conn(op.conn) else { continue };
            if conn.may_retry(op.place) {
                let Op { conn, place, deadline, shard, work: inner } = op;
                self.rounds.retry(Op { conn, place, deadline, shard, work: work(inner) }, now);
            } else {
                conn.done(op.place, failure(&error));
                self.list(op.conn.slot);
            }
        }
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.conn.as_mut() } else { None }
    }
}

/// Whether the same request may well succeed a little later.
fn is_passing(error: &RequestError) -> bool {
    use RequestError::{Busy, DiskFull, Dropped, NoLeader, OutcomeUnknown, Timeout};
    matches!(error, Busy | DiskFull { .. } | Dropped | NoLeader | OutcomeUnknown | Timeout { .. })
}

fn failure(error: &RequestError) -> Outcome {
    let kind = if error.may_have_applied() { "UNKNOWN" } else { "TRYAGAIN" };
    Outcome::Failed(format!("{kind} {error}"))
}

/// What a connection's commands lead to, in the loop's hands.
struct LoopSink<'a, S> {
    rounds: &'a mut Rounds<S>,
    counters: &'a Counters,
    conn: ConnId,
    now: Instant,
}

impl<S: Shards> Sink for LoopSink<'_, S> {
    fn round(&self) -> u64 {
        self.rounds.number
    }

    fn shards(&self) -> usize {
        self.rounds.shards.count()
    }

    fn task(&mut self, place: Place, task: Task) {
        self.rounds.add(self.conn, place, task, self.now);
    }

    fn info(&mut self, section: Option<&str>) -> String {
        let mut out = String::new();
        let wanted =
            |name| section.is_none_or(|section| section == name || section == "all" || section == "everything");
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        if wanted("clients") {
            out.push_str(&format!("# Clients\r\nconnected_clients:{}\r\n\r\n", value(&self.counters.connections)));
        }
        if wanted("stats") {
            out.push_str(&format!(
                "# Stats\r\ntotal_connections_received:{}\r\ntotal_commands_processed:{}\r\nprotocol_errors:{}\r\n\r\n",
                value(&self.counters.connections_total),
                value(&self.counters.commands),
                value(&self.counters.protocol_errors),
            ));
        }
        self.rounds.shards.info(section, &mut out);
        out
    }

    fn command(&mut self) {
        self.counters.commands.fetch_add(1, Ordering::Relaxed);
    }

    fn protocol_error(&mut self) {
        self.counters.protocol_errors.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
