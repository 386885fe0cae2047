//! The network between simulated hosts: it loses, delays, reorders and duplicates frames, and knows one-way cuts, connections
//! that are reset and links that are slow.
//!
//! A host is introduced to another with the first frame of each of its lives, and after each reset, as a handshake does.
//!
//! Frames with forwarded proposals are never duplicated: the real transport is a stream, and a forwarded proposal that
//! arrives twice is two proposals. All other messages are claims that must stand being repeated.

use crate::clock::SimClock;
use crate::oracle::Oracle;
use crate::rng::Rng;
use bytes::{Bytes, BytesMut};
use longboat_io::Clock;
use longboat_raft::{Body, HostId, StoreId, Time, sometimes};
use longboat_transport::{FrameSink, Lane, Sent, Transport, TransportStats, wire};
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What may wait for a slow link, in bytes: less than the transport's queues hold, so that they are full at times.
const SLOW_QUEUE_BYTES_MAX: u128 = 128 << 10;
/// Frames in 1,000 for a host behind a cut whose sender knows of it.
const UNREACHABLE_PERMILLE: u32 = 100;
const SECOND: u128 = 1_000_000_000;

/// How the network behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkFaults {
    /// The shortest time on the way, in nanoseconds.
    pub latency_nanos: u64,
    /// How much longer a frame usually takes at most, in nanoseconds.
    pub jitter_nanos: u64,
    /// Frames in 1,000 that are lost.
    pub drop_permille: u32,
    /// Frames in 1,000 that arrive twice.
    pub duplicate_permille: u32,
    /// Frames in 1,000 that take very long.
    pub straggle_permille: u32,
    /// How long those take at most, in nanoseconds.
    pub straggle_nanos: u64,
    /// Whether frames of one lane may overtake each other.
    pub reorder: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: Time,
    number: u64,
    from: HostId,
    to: HostId,
    lane: u8,
    /// Of this life of the sender.
    life: Shown,
    frame: Bytes,
}

/// What a handshake shows of a host: its store, and which life of it this is.
type Shown = (StoreId, u64);

/// A link that carries little.
#[derive(Clone, Copy, Debug)]
struct Slow {
    bytes_per_s: u64,
    /// What was sent before is on its way until then.
    busy_until: Time,
}

#[derive(Debug)]
struct Net {
    rng: Rng,
    faults: NetworkFaults,
    flying: BinaryHeap<Reverse<Flight>>,
    number: u64,
    ports: BTreeMap<HostId, Arc<Port>>,
    lives: BTreeMap<HostId, Shown>,
    cuts: BTreeSet<(HostId, HostId)>,
    slow: BTreeMap<(HostId, HostId), Slow>,
    latest: BTreeMap<(HostId, HostId, u8), Time>,
    dropped: u64,
    duplicated: u64,
}

/// What has arrived for one life of a host.
#[derive(Debug, Default)]
pub struct Port {
    arrived: Mutex<VecDeque<(HostId, Lane, Bytes)>>,
    connected: Mutex<Vec<(HostId, StoreId, u64)>>,
    /// The newest life of each host that has been introduced here.
    introduced: Mutex<BTreeMap<HostId, u64>>,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    net: Mutex<Net>,
    clock: Arc<SimClock>,
    oracle: Arc<Oracle>,
}

/// A frame that has arrived.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Who sent it.
    pub from: HostId,
    /// Whose poller has something to do.
    pub to: HostId,
    /// The lane.
    pub lane: Lane,
    /// The frame.
    pub frame: Bytes,
}

impl Network {
    /// A network without hosts.
    pub fn new(rng: Rng, faults: NetworkFaults, clock: Arc<SimClock>, oracle: Arc<Oracle>) -> Arc<Self> {
        let net = Net {
            rng,
            faults,
            flying: BinaryHeap::new(),
            number: 0,
            ports: BTreeMap::new(),
            lives: BTreeMap::new(),
            cuts: BTreeSet::new(),
            slow: BTreeMap::new(),
            latest: BTreeMap::new(),
            dropped: 0,
            duplicated: 0,
        };
        Arc::new(Self { net: Mutex::new(net), clock, oracle })
    }

    /// A host's end in a new life of it. What is on the way to its former life arrives here too.
    pub fn join(self: &Arc<Self>, host: HostId, store: StoreId, life: u64) -> Arc<SimTransport> {
        let port = Arc::new(Port::default());
        let mut net = self.net.lock();
        net.ports.insert(host, Arc::clone(&port));
        net.lives.insert(host, (store, life));
        let others: Vec<HostId> = net.ports.keys().copied().filter(|other| *other != host).collect();
        others.into_iter().for_each(|other| net.shake_hands(host, other));
        drop(net);
        let (network, closed) = (Arc::clone(self), AtomicBool::new(false));
        Arc::new(SimTransport { network, host, port, closed, sent: AtomicU64::new(0) })
    }

    /// The host is gone: what arrives is lost.
    pub fn leave(&self, host: HostId) {
        self.net.lock().ports.remove(&host);
    }

    /// Changes how the network behaves from now on.
    pub fn set_faults(&self, faults: NetworkFaults) {
        self.net.lock().faults = faults;
    }

    /// Cuts or mends the way from one host to another; the way back is another one.
    pub fn set_cut(&self, from: HostId, to: HostId, cut: bool) {
        let mut net = self.net.lock();
        if cut {
            net.cuts.insert((from, to))
        } else {
            let was_cut = net.cuts.remove(&(from, to));
            net.shake_hands(from, to);
            was_cut
        };
    }

    /// Mends every way.
    pub fn mend(&self) {
        let mut net = self.net.lock();
        net.slow.clear();
        for (from, to) in std::mem::take(&mut net.cuts) {
            net.shake_hands(from, to);
        }
    }

    /// All connections between two hosts break: what is on the way is lost, also the rest of a frame of which a part has arrived.
    /// They connect again.
    pub fn reset(&self, one: HostId, other: HostId) {
        let mut net = self.net.lock();
        let between = |f: &Flight| (f.from, f.to) == (one, other) || (f.from, f.to) == (other, one);
        let before = net.flying.len();
        net.flying.retain(|f| !between(&f.0));
        let lost = before - net.flying.len();
        sometimes!(lost > 0, "connection-reset-in-mid-frame");
        net.dropped += lost as u64;
        for (host, peer) in [(one, other), (other, one)] {
            if let Some(port) = net.ports.get(&host) {
                port.introduced.lock().remove(&peer);
            }
        }
    }

    /// The way from one host to another carries so many bytes a second; 0 for as many as ever.
    pub fn set_bandwidth(&self, from: HostId, to: HostId, bytes_per_s: u64) {
        let mut net = self.net.lock();
        if bytes_per_s == 0 {
            net.slow.remove(&(from, to));
        } else {
            net.slow.insert((from, to), Slow { bytes_per_s, busy_until: Time::ZERO });
        }
    }

    /// When the next frame arrives.
    pub fn next(&self) -> Option<Time> {
        self.net.lock().flying.peek().map(|f| f.0.at)
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.net.lock().number
    }

    /// Frames lost and frames that arrived twice.
    pub fn losses(&self) -> (u64, u64) {
        let net = self.net.lock();
        (net.dropped, net.duplicated)
    }

    /// Hands over the frames whose time has come.
    pub fn deliver(&self, now: Time) -> Vec<Delivery> {
        let mut net = self.net.lock();
        let mut delivered = Vec::new();
        while net.flying.peek().is_some_and(|f| f.0.at <= now) {
            let Reverse(flight) = net.flying.pop().expect("just seen");
            let Some(port) = net.ports.get(&flight.to).filter(|_| !net.cuts.contains(&(flight.from, flight.to))) else {
                net.dropped += 1;
                continue;
            };
            self.oracle.note(&[flight.at.0, flight.from.0, flight.to.0, u64::from(flight.lane)]);
            self.oracle.note_bytes(&flight.frame);
            let lane = Lane::ALL[usize::from(flight.lane)];
            let is_new = port.introduce(flight.from, flight.life);
            port.arrived.lock().push_back((flight.from, lane, flight.frame.clone()));
            if is_new {
                net.shake_hands(flight.from, flight.to);
            }
            delivered.push(Delivery { from: flight.from, to: flight.to, lane, frame: flight.frame });
        }
        delivered
    }

    fn send(&self, from: HostId, to: HostId, lane: Lane, frame: Bytes) -> Sent {
        let now = self.clock.now();
        let mut net = self.net.lock();
        if !net.has_room(now, from, to) {
            sometimes!("slow-link-has-no-room");
            net.dropped += 1;
            return Sent::Full;
        }
        // Who finds out that a connection is broken can't open another one.
        if net.cuts.contains(&(from, to)) && lane != Lane::Control && net.rng.chance(UNREACHABLE_PERMILLE) {
            net.dropped += 1;
            return Sent::Unreachable;
        }
        let faults = net.faults;
        if net.rng.chance(faults.drop_permille) {
            net.dropped += 1;
            return Sent::Queued;
        }
        let again = net.rng.chance(faults.duplicate_permille);
        if again && lane != Lane::Snapshot && !carries_proposals(&frame) {
            net.duplicated += 1;
            net.launch(now, from, to, lane, frame.clone());
        }
        net.launch(now, from, to, lane, frame);
        Sent::Queued
    }
}

impl Port {
    /// Frames of this life come from now on. Returns whether that is news.
    fn introduce(&self, host: HostId, (store, life): Shown) -> bool {
        let mut introduced = self.introduced.lock();
        // What is left of a former life is no handshake.
        let is_new = introduced.get(&host).is_none_or(|known| *known < life);
        if is_new {
            introduced.insert(host, life);
            self.connected.lock().push((host, store, life));
        }
        is_new
    }
}

impl Net {
    /// Both learn who is at the other end, if the ways between them are open.
    fn shake_hands(&self, one: HostId, other: HostId) {
        let open = !self.cuts.contains(&(one, other)) && !self.cuts.contains(&(other, one));
        let ends = [one, other].map(|host| Some((self.ports.get(&host)?, *self.lives.get(&host)?)));
        if let ([Some((port, life)), Some((other_port, other_life))], true) = (ends, open) {
            port.introduce(other, other_life);
            other_port.introduce(one, life);
        }
    }

    fn launch(&mut self, now: Time, from: HostId, to: HostId, lane: Lane, frame: Bytes) {
        let faults = self.faults;
        let straggles = self.rng.chance(faults.straggle_permille);
        let extra = if straggles { faults.straggle_nanos } else { faults.jitter_nanos };
        // Long frames take longer: a gigabyte a second.
        let begins = self.carried(now, from, to, frame.len() as u64);
        let mut at = begins.plus_nanos(faults.latency_nanos + self.rng.below(extra + 1) + frame.len() as u64);
        let lane = lane as u8;
        let life = self.lives.get(&from).copied().unwrap_or_default();
        let latest = self.latest.entry((from, to, lane)).or_default();
        // Chunks of a snapshot travel on a stream whatever else happens.
        if !faults.reorder || lane == Lane::Snapshot as u8 {
            at = at.max(latest.plus_nanos(1));
        }
        *latest = at.max(*latest);
        self.number += 1;
        self.flying.push(Reverse(Flight { at, number: self.number, from, to, lane, life, frame }));
    }

    /// Whether a slow link has room for more.
    fn has_room(&self, now: Time, from: HostId, to: HostId) -> bool {
        let Some(slow) = self.slow.get(&(from, to)) else { return true };
        u128::from(slow.busy_until.nanos_since(now)) * u128::from(slow.bytes_per_s) < SLOW_QUEUE_BYTES_MAX * SECOND
    }

    /// When a frame has left for a host.
    fn carried(&mut self, now: Time, from: HostId, to: HostId, bytes: u64) -> Time {
        let Some(slow) = self.slow.get_mut(&(from, to)) else { return now };
        slow.busy_until = slow.busy_until.max(now).plus_nanos(bytes * SECOND as u64 / slow.bytes_per_s);
        slow.busy_until
    }
}

fn carries_proposals(frame: &Bytes) -> bool {
    wire::messages(frame.clone()).any(|m| m.is_ok_and(|m| matches!(m.message.body, Body::Forward(_))))
}

/// One host's end of the network, in one life of the host.
#[derive(Debug)]
pub struct SimTransport {
    network: Arc<Network>,
    host: HostId,
    port: Arc<Port>,
    closed: AtomicBool,
    sent: AtomicU64,
}

impl Transport for SimTransport {
    fn send(&self, to: HostId, lane: Lane, parts: &[Bytes]) -> Sent {
        if self.closed.load(Ordering::Relaxed) {
            return Sent::Unreachable;
        }
        let mut frame = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        let frame = frame.freeze();
        if lane != Lane::Snapshot && !wire::HostMessage::is_one(&frame) {
            self.network.oracle.sent(self.host, frame.clone());
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.network.send(self.host, to, lane, frame)
    }

    fn poll(&self, sink: &mut dyn FrameSink) -> usize {
        for (other, store, life) in std::mem::take(&mut *self.port.connected.lock()) {
            sink.connected(other, store, life);
        }
        let arrived = std::mem::take(&mut *self.port.arrived.lock());
        let count = arrived.len();
        for (from, lane, frame) in arrived {
            sink.frame(from, lane, frame);
        }
        count
    }

    fn wait(&self, _timeout: Duration) {}

    fn wake(&self) {}

    fn stats(&self) -> TransportStats {
        TransportStats { frames_sent: self.sent.load(Ordering::Relaxed), ..TransportStats::default() }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}
