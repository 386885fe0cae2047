//! The sending half: one connection per remote host and lane, made by us.
//!
//! Any thread sends, under the lane's lock, straight to the socket. What the socket does not take waits in a bounded queue
//! that the polling thread empties when the socket says so. Only the polling thread makes and ends connections; a sender that
//! finds its connection broken leaves it [`Link::Broken`] and calls the polling thread.
//!
//! Invariant: while the queue is not empty, nothing is written past it, so that frames stay in order.

use super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use super::hello::{Greeting, HELLO_BYTES_MAX, HELLO_ENVELOPE_BYTES, Hello, HelloError};
use super::{Shared, socket, token};
use crate::counters::bump;
use crate::{Lane, Sent};
use bytes::{Buf, Bytes, BytesMut};
use longboat_raft::HostId;
use parking_lot::Mutex;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use smallvec::SmallVec;
use socket2::Socket;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The most buffers that one system call takes (`UIO_MAXIOV` of Linux).
const VECTORS_MAX: usize = 1024;
/// A connection that lived for less counts as a failed attempt, so that one that is ended at once is not made in a busy loop.
const LIVED: Duration = Duration::from_secs(1);

/// A remote host, as far as we send to it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) host: HostId,
    pub(super) lanes: [Mutex<Outbound>; Lane::ALL.len()],
}

impl Peer {
    /// `index` is its place in the table of peers.
    pub(super) fn new(shared: &Shared, host: HostId, index: usize) -> Self {
        let lanes = Lane::ALL.map(|lane| Mutex::new(Outbound::new(shared, host, lane, index)));
        Self { host, lanes }
    }
}

#[derive(Debug)]
enum Link {
    /// Not wanted so far.
    Idle,
    /// To be made at this time.
    Waiting { until: Instant },
    /// The connect is under way.
    Connecting { socket: Socket, deadline: Instant },
    /// We said who we are and wait for the answer.
    Greeting { socket: Socket, deadline: Instant, received: BytesMut },
    /// Frames may be sent.
    Up { socket: Socket, greeting: Greeting, since: Instant },
    /// A sender found that the connection is no more; the polling thread has yet to notice.
    Broken { since: Instant },
}

/// What an event, or the passing of time, came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// There is another time at which something is due.
    Rescheduled,
    /// The connection is up.
    Connected(Greeting),
    /// A connection that was up is no more.
    Lost,
}

/// One lane's connection to one host.
#[derive(Debug)]
pub(super) struct Outbound {
    host: HostId,
    lane: Lane,
    /// Names this lane in events, together with `generation`.
    slot: usize,
    /// Grows with every socket, so that an event of an earlier one is known as such.
    generation: u32,
    link: Link,
    address: Option<SocketAddr>,
    queue: VecDeque<Bytes>,
    queue_bytes: usize,
    queue_bytes_max: usize,
    /// Attempts that failed in a row.
    failed: u32,
    random: u64,
}

impl Outbound {
    fn new(shared: &Shared, host: HostId, lane: Lane, index: usize) -> Self {
        let config = &shared.config;
        let queue_bytes_max = match lane {
            Lane::Control => config.control_queue_bytes_max,
            Lane::Bulk => config.bulk_queue_bytes_max,
            Lane::Snapshot => config.snapshot_queue_bytes_max,
        };
        Self {
            host,
            lane,
            slot: index * Lane::ALL.len() + lane as usize,
            generation: 0,
            link: Link::Idle,
            address: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            queue_bytes_max,
            failed: 0,
            random: config.seed ^ host.0.rotate_left(17) ^ (lane as u64) << 56 ^ config.host_id.0.rotate_left(40),
        }
    }

    /// Sends a frame of `len` bytes, or says why not. Never blocks.
    pub(super) fn send(&mut self, shared: &Shared, parts: &[Bytes], len: usize) -> Sent {
        let Link::Up { socket, greeting, since } = &self.link else {
            if matches!(self.link, Link::Idle) {
                self.want();
                shared.call_poller();
            }
            bump(&shared.counters.dropped_unreachable);
            return Sent::Unreachable;
        };
        let total = FRAME_HEADER_BYTES + len;
        if !self.queue.is_empty() && self.queue_bytes + total > self.queue_bytes_max {
            bump(&shared.counters.dropped_full);
            return Sent::Full;
        }
        let header = FrameHeader::encode(greeting.version, &parts[0], len);
        let mut written = 0;
        if self.queue.is_empty() {
            let buffers = std::iter::once(&header[..]).chain(parts.iter().map(|part| &part[..]));
            written = match write(socket, buffers) {
                Ok(written) => written,
                Err(errno) => {
                    tracing::debug!(host = self.host.0, lane = ?self.lane, %errno, "connection broke while sending");
                    self.link = Link::Broken { since: *since };
                    shared.call_poller();
                    bump(&shared.counters.dropped_unreachable);
                    return Sent::Unreachable;
                }
            };
        }
        shared.counters.sent(len);
        if written < total {
            self.enqueue(shared, &header, parts, written);
        }
        Sent::Queued
    }

    /// Keeps what the socket did not take: all but the first `written` bytes of header and parts.
    fn enqueue(&mut self, shared: &Shared, header: &[u8], parts: &[Bytes], written: usize) {
        let first = self.queue.is_empty();
        let mut skip = written;
        if skip < header.len() {
            self.push(Bytes::copy_from_slice(&header[skip..]));
            skip = 0;
        } else {
            skip -= header.len();
        }
        for part in parts {
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            self.push(part.slice(skip..));
            skip = 0;
        }
        if first {
            self.interest(shared, EventFlags::IN | EventFlags::RDHUP | EventFlags::OUT);
        }
    }

    fn push(&mut self, bytes: Bytes) {
        self.queue_bytes += bytes.len();
        self.queue.push_back(bytes);
    }

    /// Tells epoll what to report. On failure the connection is given up: its queue would never be emptied.
    fn interest(&mut self, shared: &Shared, flags: EventFlags) {
        let data = epoll::EventData::new_u64(token::outbound(self.slot, self.generation));
        let (socket, since) = match &self.link {
            Link::Up { socket, since, .. } => (socket, *since),
            _ => return,
        };
        if let Err(errno) = epoll::modify(&shared.epoll, socket, data, flags) {
            tracing::warn!(host = self.host.0, lane = ?self.lane, %errno, "epoll refused a connection");
            self.link = Link::Broken { since };
            shared.call_poller();
        }
    }

    /// A connection is wanted now, unless there is one or an attempt is due.
    pub(super) fn want(&mut self) {
        if matches!(self.link, Link::Idle) {
            self.link = Link::Waiting { until: Instant::now() };
        }
    }

    /// Handles an event of the socket with this generation.
    pub(super) fn on_event(&mut self, shared: &Shared, generation: u32, flags: EventFlags, now: Instant) -> Change {
        if generation != self.generation {
            return Change::None;
        }
        match &self.link {
            Link::Connecting { .. } => self.on_connected(shared, now),
            Link::Greeting { .. } => self.on_answer(shared, now),
            Link::Up { .. } => self.on_ready(shared, flags, now),
            Link::Idle | Link::Waiting { .. } | Link::Broken { .. } => Change::None,
        }
    }

    fn on_connected(&mut self, shared: &Shared, now: Instant) -> Change {
        let Link::Connecting { socket, deadline } = std::mem::replace(&mut self.link, Link::Idle) else {
            unreachable!("the caller has looked");
        };
        match socket.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return self.attempt_failed(shared, now, &error.to_string()),
        }
        if socket::is_connected_to_itself(&socket) {
            return self.attempt_failed(shared, now, "connected to itself: nobody listens there");
        }
        let hello = Hello::new(&shared.config, self.lane, self.host).encode_enveloped();
        if write(&socket, [&hello[..]]) != Ok(hello.len()) {
            return self.attempt_failed(shared, now, "the handshake could not be sent");
        }
        let data = epoll::EventData::new_u64(token::outbound(self.slot, self.generation));
        if let Err(errno) = epoll::modify(&shared.epoll, &socket, data, EventFlags::IN | EventFlags::RDHUP) {
            return self.attempt_failed(shared, now, &errno.to_string());
        }
        self.link = Link::Greeting { socket, deadline, received: BytesMut::new() };
        Change::Rescheduled
    }

    fn on_answer(&mut self, shared: &Shared, now: Instant) -> Change {
        let Link::Greeting { socket, received, .. } = &mut self.link else { unreachable!("the caller has looked") };
        let mut bytes = [0u8; HELLO_ENVELOPE_BYTES + HELLO_BYTES_MAX];
        match recv(&*socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return self.attempt_failed(shared, now, "closed during the handshake"),
            Ok((n, _)) => received.extend_from_slice(&bytes[..n]),
            Err(Errno::AGAIN | Errno::INTR) => return Change::None,
            Err(errno) => return self.attempt_failed(shared, now, &errno.to_string()),
        }
        let greeting = match Hello::take(received) {
            Ok(None) => return Change::None,
            Ok(Some(_)) if !received.is_empty() => Err(HelloError::Trailing(received.len())),
            Ok(Some(answer)) => answer.check_answer(&shared.config, self.host, self.lane),
            Err(error) => Err(error),
        };
        match greeting {
            Ok(greeting) => {
                let Link::Greeting { socket, .. } = std::mem::replace(&mut self.link, Link::Idle) else {
                    unreachable!("the caller has looked");
                };
                self.link = Link::Up { socket, greeting, since: now };
                bump(&shared.counters.connected);
                tracing::info!(host = self.host.0, lane = ?self.lane, address = ?self.address, "connected");
                Change::Connected(greeting)
            }
            Err(error) => {
                bump(&shared.counters.closed_bad);
                tracing::warn!(host = self.host.0, lane = ?self.lane, address = ?self.address, %error, "handshake failed");
                self.attempt_failed(shared, now, "handshake")
            }
        }
    }

    /// The socket takes more, or its other side has something to say, which can only be good-bye.
    fn on_ready(&mut self, shared: &Shared, flags: EventFlags, now: Instant) -> Change {
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            let Link::Up { socket, .. } = &self.link else { unreachable!("the caller has looked") };
            let mut byte = [0u8; 1];
            match recv(socket, &mut byte[..], RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Ok((0, _)) => return self.lost(shared, now, "closed by the other side"),
                Err(errno) => return self.lost(shared, now, &errno.to_string()),
                Ok(_) => {
                    bump(&shared.counters.closed_bad);
                    return self.lost(shared, now, "the other side sent bytes where it only receives");
                }
            }
        }
        if flags.contains(EventFlags::OUT) { self.flush(shared, now) } else { Change::None }
    }

    /// Writes what waits, as far as the socket takes it.
    fn flush(&mut self, shared: &Shared, now: Instant) -> Change {
        while !self.queue.is_empty() {
            let Link::Up { socket, .. } = &self.link else { return Change::None };
            let offered: usize = self.queue.iter().take(VECTORS_MAX).map(Bytes::len).sum();
            let written = match write(socket, self.queue.iter().map(|bytes| &bytes[..])) {
                Ok(written) => written,
                Err(errno) => return self.lost(shared, now, &errno.to_string()),
            };
            self.advance(written);
            if written < offered {
                return Change::None;
            }
        }
        self.interest(shared, EventFlags::IN | EventFlags::RDHUP);
        Change::None
    }

    /// Takes written bytes off the queue.
    fn advance(&mut self, mut written: usize) {
        self.queue_bytes -= written;
        while written > 0 {
            let front = self.queue.front_mut().expect("no more was written than was queued");
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.queue.pop_front();
        }
    }

    /// Does what is due: notices a connection that a sender found broken, ends attempts that take too long, makes new ones.
    pub(super) fn maintain(&mut self, shared: &Shared, now: Instant) -> Change {
        let mut change = Change::None;
        match &self.link {
            Link::Broken { .. } => change = self.lost(shared, now, "broke while sending"),
            Link::Connecting { deadline, .. } | Link::Greeting { deadline, .. } if *deadline <= now => {
                change = self.attempt_failed(shared, now, "took too long");
            }
            _ => {}
        }
        if matches!(self.link, Link::Waiting { until } if until <= now) {
            self.dial(shared, now);
        }
        change
    }

    /// When [`Outbound::maintain`] has something to do next.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.link {
            Link::Idle | Link::Up { .. } => None,
            Link::Waiting { until } => Some(*until),
            Link::Connecting { deadline, .. } | Link::Greeting { deadline, .. } => Some(*deadline),
            Link::Broken { since } => Some(*since),
        }
    }

    /// The host's address may have changed: a connection or attempt elsewhere is moved.
    pub(super) fn readdress(&mut self, shared: &Shared, now: Instant) -> Change {
        if matches!(self.link, Link::Idle) {
            return Change::None;
        }
        let waiting = matches!(self.link, Link::Waiting { .. });
        if !waiting && shared.registry.resolve(self.host) == self.address {
            return Change::None;
        }
        let was_up = matches!(self.link, Link::Up { .. } | Link::Broken { .. });
        self.drop_link(Link::Waiting { until: now });
        self.failed = 0;
        if was_up { Change::Lost } else { Change::Rescheduled }
    }

    /// The host has restarted, as `incarnation`: a connection to an earlier one is dead, whether or not it shows.
    pub(super) fn superseded(&mut self, shared: &Shared, incarnation: u64, now: Instant) -> Change {
        match &self.link {
            Link::Up { greeting, .. } if greeting.incarnation < incarnation => {
                self.lost(shared, now, "the host has restarted")
            }
            Link::Waiting { .. } => {
                // It is there: no reason to wait for the rest of the delay.
                self.failed = 0;
                self.link = Link::Waiting { until: now };
                Change::Rescheduled
            }
            _ => Change::None,
        }
    }

    /// Ends the connection for good.
    pub(super) fn close(&mut self) {
        self.drop_link(Link::Idle);
    }

    fn drop_link(&mut self, next: Link) {
        self.link = next;
        self.queue.clear();
        self.queue_bytes = 0;
    }

    fn lost(&mut self, shared: &Shared, now: Instant, why: &str) -> Change {
        let since = match &self.link {
            Link::Up { since, .. } | Link::Broken { since } => *since,
            _ => return Change::None,
        };
        tracing::info!(host = self.host.0, lane = ?self.lane, address = ?self.address, why, "connection lost");
        self.failed = if now.saturating_duration_since(since) < LIVED { self.failed + 1 } else { 0 };
        let until = if self.failed == 0 { now } else { now + self.delay(shared) };
        self.drop_link(Link::Waiting { until });
        Change::Lost
    }

    fn attempt_failed(&mut self, shared: &Shared, now: Instant, why: &str) -> Change {
        tracing::debug!(host = self.host.0, lane = ?self.lane, address = ?self.address, why, "could not connect");
        self.failed = self.failed.saturating_add(1);
        let until = now + self.delay(shared);
        self.drop_link(Link::Waiting { until });
        Change::Rescheduled
    }

    /// How long to wait after `failed` attempts: doubled each time, and between half and all of that at random, so that
    /// many hosts that lost one do not come back to it all at once.
    fn delay(&mut self, shared: &Shared) -> Duration {
        let config = &shared.config;
        let doubled = config.reconnect_ms_min.saturating_mul(1 << self.failed.saturating_sub(1).min(16));
        let most = doubled.clamp(config.reconnect_ms_min, config.reconnect_ms_max.max(config.reconnect_ms_min));
        let micros = most * 1000;
        Duration::from_micros(micros / 2 + splitmix(&mut self.random) % (micros / 2 + 1))
    }

    fn dial(&mut self, shared: &Shared, now: Instant) {
        self.address = shared.registry.resolve(self.host);
        let Some(address) = self.address else {
            self.attempt_failed(shared, now, "the registry knows no address");
            return;
        };
        self.generation = self.generation.wrapping_add(1) & token::GENERATION_MASK;
        let data = epoll::EventData::new_u64(token::outbound(self.slot, self.generation));
        let dialled = socket::dial(address).and_then(|socket| {
            epoll::add(&shared.epoll, &socket, data, EventFlags::OUT)?;
            Ok(socket)
        });
        match dialled {
            Ok(socket) => {
                let deadline = now + Duration::from_millis(shared.config.handshake_ms_max);
                self.link = Link::Connecting { socket, deadline };
            }
            Err(error) => {
                self.attempt_failed(shared, now, &error.to_string());
            }
        }
    }
}

/// Writes as much of the buffers as the socket takes, in one system call. A full socket takes nothing.
fn write<'a>(socket: &Socket, buffers: impl IntoIterator<Item = &'a [u8]>) -> Result<usize, Errno> {
    let vectors: SmallVec<[IoSlice<'a>; 16]> = buffers.into_iter().take(VECTORS_MAX).map(IoSlice::new).collect();
    // NOSIGNAL: a broken connection is an error to handle, not a signal to the process.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match sendmsg(socket, &vectors, &mut SendAncillaryBuffer::default(), flags) {
        Ok(written) => Ok(written),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// The next number of a seeded sequence (Steele, Lea and Flood's SplitMix64).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
