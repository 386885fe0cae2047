//! The network between simulated hosts: it loses, delays, reorders and duplicates frames, and knows one-way cuts.
//!
//! Frames with forwarded proposals are never duplicated: the real transport is a stream, and a forwarded proposal that
//! arrives twice is two proposals. All other messages are claims that must stand being repeated.

use crate::clock::SimClock;
use crate::oracle::Oracle;
use crate::rng::Rng;
use bytes::{Bytes, BytesMut};
use longboat_io::Clock;
use longboat_raft::{Body, HostId, StoreId, Time};
use longboat_transport::{FrameSink, Lane, Sent, Transport, TransportStats, wire};
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

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
    frame: Bytes,
}

#[derive(Debug)]
struct Net {
    rng: Rng,
    faults: NetworkFaults,
    flying: BinaryHeap<Reverse<Flight>>,
    number: u64,
    ports: BTreeMap<HostId, Arc<Port>>,
    cuts: BTreeSet<(HostId, HostId)>,
    latest: BTreeMap<(HostId, HostId, u8), Time>,
    dropped: u64,
    duplicated: u64,
}

/// What has arrived for one life of a host.
#[derive(Debug, Default)]
pub struct Port {
    arrived: Mutex<VecDeque<(HostId, Lane, Bytes)>>,
    connected: Mutex<Vec<(HostId, StoreId, u64)>>,
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
            cuts: BTreeSet::new(),
            latest: BTreeMap::new(),
            dropped: 0,
            duplicated: 0,
        };
        Arc::new(Self { net: Mutex::new(net), clock, oracle })
    }

    /// A host's end in a new life of it. What is on the way to its former life arrives here too.
    pub fn join(self: &Arc<Self>, host: HostId) -> Arc<SimTransport> {
        let port = Arc::new(Port::default());
        self.net.lock().ports.insert(host, Arc::clone(&port));
        let (network, closed) = (Arc::clone(self), AtomicBool::new(false));
        Arc::new(SimTransport { network, host, port, closed, sent: AtomicU64::new(0) })
    }

    /// What runs on `host` is told that `other` connected, with its store, in this life of it.
    pub fn tell_connected(&self, host: HostId, other: HostId, store: StoreId, life: u64) {
        if let Some(port) = self.net.lock().ports.get(&host) {
            port.connected.lock().push((other, store, life));
        }
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
            net.cuts.remove(&(from, to))
        };
    }

    /// Mends every way.
    pub fn mend(&self) {
        self.net.lock().cuts.clear();
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
            port.arrived.lock().push_back((flight.from, lane, flight.frame.clone()));
            delivered.push(Delivery { from: flight.from, to: flight.to, lane, frame: flight.frame });
        }
        delivered
    }

    fn send(&self, from: HostId, to: HostId, lane: Lane, frame: Bytes) {
        let now = self.clock.now();
        let mut net = self.net.lock();
        let faults = net.faults;
        if net.rng.chance(faults.drop_permille) {
            net.dropped += 1;
            return;
        }
        let again = net.rng.chance(faults.duplicate_permille);
        if again && lane != Lane::Snapshot && !carries_proposals(&frame) {
            net.duplicated += 1;
            net.launch(now, from, to, lane, frame.clone());
        }
        net.launch(now, from, to, lane, frame);
    }
}

impl Net {
    fn launch(&mut self, now: Time, from: HostId, to: HostId, lane: Lane, frame: Bytes) {
        let faults = self.faults;
        let straggles = self.rng.chance(faults.straggle_permille);
        let extra = if straggles { faults.straggle_nanos } else { faults.jitter_nanos };
        // Long frames take longer: a gigabyte a second.
        let mut at = now.plus_nanos(faults.latency_nanos + self.rng.below(extra + 1) + frame.len() as u64);
        let lane = lane as u8;
        let latest = self.latest.entry((from, to, lane)).or_default();
        // Chunks of a snapshot travel on a stream whatever else happens.
        if !faults.reorder || lane == Lane::Snapshot as u8 {
            at = at.max(latest.plus_nanos(1));
        }
        *latest = at.max(*latest);
        self.number += 1;
        self.flying.push(Reverse(Flight { at, number: self.number, from, to, lane, frame }));
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
        self.network.send(self.host, to, lane, frame);
        Sent::Queued
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
