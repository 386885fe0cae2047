//! The transport over TCP.
//!
//! Each host connects to each host that it sends to, once per lane, and only sends there; what it receives comes over the
//! connections that the others made. One direction per connection costs twice the sockets of a shared one, and buys that no two
//! hosts ever have to agree on which of two crossing connections stays, that a lane's state has one owner on each side, and that
//! what a restart or a change of address invalidates is exactly one side's connections.
//!
//! A connection starts with a handshake in both directions ([`hello`]); after it come frames ([`frame`]). Whoever sends
//! garbage loses the connection and is counted, and nothing else happens.
//!
//! A host that is spoken to connects back at once, so that its first answer finds a connection.
//!
//! Sending threads write sockets themselves; the one polling thread does all the rest: connecting, accepting, reading, and
//! writing what a full socket did not take. Nothing here blocks but [`crate::Transport::wait`].
//!
//! Invariants: frames of a lane arrive in the order of their sending, or the connection breaks. A host's id is believed only as far as
//! the registry knows it. Every queue, buffer and number of connections has a named bound.
//!
//! Must not know: what is in a frame.

mod frame;
mod hello;
mod inbound;
mod outbound;
mod poller;
mod receive;
mod socket;
mod token;
mod wake;

#[cfg(any(test, feature = "fuzz"))]
pub use hello::fuzzing;

use crate::counters::{Counters, bump};
use crate::registry::Registry;
use crate::wire::FRAME_BYTES_LIMIT;
use crate::{FrameSink, Lane, Sent, Transport, TransportStats};
use ahash::AHashMap;
use bytes::Bytes;
use longboat_raft::{HostId, StoreId};
use outbound::Peer;
use parking_lot::{Mutex, RwLock};
use poller::Poller;
use rustix::event::epoll::{self, EventFlags};
use rustix::fd::OwnedFd;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use wake::Waker;

/// Bytes that may wait on a control connection: acknowledgements that are older than this many are of no use.
pub const CONTROL_QUEUE_BYTES_MAX: usize = 4 << 20;
/// Bytes that may wait on a bulk connection: a few rounds' worth for a host that is slow for a moment. One frame is always taken.
pub const BULK_QUEUE_BYTES_MAX: usize = 32 << 20;
/// Bytes that may wait on a snapshot connection: few, so that whoever reads a snapshot from disk feels the network's pace.
pub const SNAPSHOT_QUEUE_BYTES_MAX: usize = 4 << 20;
/// The first delay after a failed attempt to connect, in milliseconds; it doubles from attempt to attempt.
pub const RECONNECT_MS_MIN: u64 = 100;
/// The longest delay between attempts to connect, in milliseconds.
pub const RECONNECT_MS_MAX: u64 = 3_000;
/// How long connecting, or saying who one is, may take, in milliseconds.
pub const HANDSHAKE_MS_MAX: u64 = 5_000;
/// How long closing waits for a poll that is under way, which closes by itself when it ends.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// What a [`TcpTransport`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Where to listen. Port 0 takes a free port, see [`TcpTransport::local_address`].
    pub listen_address: SocketAddr,
    /// Hosts of another deployment are refused.
    pub deployment_id: u64,
    /// This host.
    pub host_id: HostId,
    /// The store that this host has.
    pub store_id: StoreId,
    /// Greater with every start of this host: connections of its former lives make way.
    pub incarnation: u64,
    /// Bytes that may wait for a host on its control connection.
    pub control_queue_bytes_max: usize,
    /// Bytes that may wait for a host on its bulk connection.
    pub bulk_queue_bytes_max: usize,
    /// Bytes that may wait for a host on its snapshot connection.
    pub snapshot_queue_bytes_max: usize,
    /// The first delay after a failed attempt to connect.
    pub reconnect_ms_min: u64,
    /// The longest delay between attempts to connect.
    pub reconnect_ms_max: u64,
    /// How long connecting, or saying who one is, may take.
    pub handshake_ms_max: u64,
    /// Where the jitter of delays starts from.
    pub seed: u64,
}

impl TcpConfig {
    /// The defaults for this host, listening here.
    pub fn new(host_id: HostId, listen_address: SocketAddr) -> Self {
        Self {
            listen_address,
            deployment_id: 0,
            host_id,
            store_id: StoreId::ZERO,
            incarnation: 0,
            control_queue_bytes_max: CONTROL_QUEUE_BYTES_MAX,
            bulk_queue_bytes_max: BULK_QUEUE_BYTES_MAX,
            snapshot_queue_bytes_max: SNAPSHOT_QUEUE_BYTES_MAX,
            reconnect_ms_min: RECONNECT_MS_MIN,
            reconnect_ms_max: RECONNECT_MS_MAX,
            handshake_ms_max: HANDSHAKE_MS_MAX,
            seed: 0,
        }
    }

    fn validate(&self) -> Result<(), BindError> {
        let at_least_one = [
            ("host_id", self.host_id.0),
            ("reconnect_ms_min", self.reconnect_ms_min),
            ("handshake_ms_max", self.handshake_ms_max),
        ];
        for (field, value) in at_least_one {
            if value == 0 {
                return Err(BindError::Config { field, value, limit: "at least 1" });
            }
        }
        if self.reconnect_ms_max < self.reconnect_ms_min {
            let (field, value) = ("reconnect_ms_max", self.reconnect_ms_max);
            return Err(BindError::Config { field, value, limit: "at least reconnect_ms_min" });
        }
        Ok(())
    }
}

/// Why a transport could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A field of the configuration is out of bounds.
    #[error("{field} is {value}, it must be {limit}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        limit: &'static str,
    },
    /// The address can't be listened on: it is taken, or not this machine's, or not allowed.
    #[error("can't listen on {address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The operating system has no more descriptors for the transport.
    #[error("can't set up polling")]
    Polling(#[source] io::Error),
}

/// What sending threads and the polling thread share.
struct Shared {
    config: TcpConfig,
    registry: Arc<dyn Registry>,
    epoll: OwnedFd,
    waker: Waker,
    counters: Counters,
    peers: RwLock<Peers>,
    /// Hosts whose address has changed, for the polling thread.
    moved: Mutex<Vec<HostId>>,
    /// A sender or the registry wants the polling thread to look after connections.
    attention: AtomicBool,
    closed: AtomicBool,
}

#[derive(Default)]
struct Peers {
    by_host: AHashMap<HostId, Arc<Peer>>,
    /// In the order of their making; a place here is part of an event's name, so none is ever taken out.
    all: Vec<Arc<Peer>>,
}

impl Shared {
    fn attention(&self) -> bool {
        self.attention.load(SeqCst)
    }

    fn take_attention(&self) -> bool {
        // The load first: the swap would write to a shared cache line with every poll.
        self.attention.load(SeqCst) && self.attention.swap(false, SeqCst)
    }

    fn call_poller(&self) {
        self.attention.store(true, SeqCst);
        self.waker.wake();
    }

    fn peer(&self, host: HostId) -> Option<Arc<Peer>> {
        self.peers.read().by_host.get(&host).cloned()
    }

    fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().all.clone()
    }

    /// The peer and the number of the lane that an event's slot is about.
    fn peer_of_slot(&self, slot: usize) -> Option<(Arc<Peer>, usize)> {
        let peer = self.peers.read().all.get(slot / Lane::ALL.len()).cloned()?;
        Some((peer, slot % Lane::ALL.len()))
    }

    /// Wants connections to a host on these lanes.
    fn want(&self, host: HostId, lanes: &[Lane]) {
        if let Some(peer) = self.peer(host).or_else(|| self.make_peer(host)) {
            lanes.iter().for_each(|&lane| peer.lanes[lane as usize].lock().want());
            self.call_poller();
        }
    }

    /// Makes a peer of a host that the registry knows. Their number is bounded by the registry's.
    fn make_peer(&self, host: HostId) -> Option<Arc<Peer>> {
        if host == self.config.host_id || self.registry.resolve(host).is_none() {
            return None;
        }
        let mut peers = self.peers.write();
        if let Some(peer) = peers.by_host.get(&host) {
            return Some(Arc::clone(peer));
        }
        let peer = Arc::new(Peer::new(self, host, peers.all.len()));
        peers.by_host.insert(host, Arc::clone(&peer));
        peers.all.push(Arc::clone(&peer));
        Some(peer)
    }
}

/// Moves frames between hosts over TCP.
pub struct TcpTransport {
    shared: Arc<Shared>,
    poller: Mutex<Poller>,
    local_address: SocketAddr,
}

impl TcpTransport {
    /// Listens, and is ready to send. Nothing is accepted or connected before the first poll.
    ///
    /// # Errors
    /// When the configuration is out of bounds or the address can't be listened on.
    pub fn bind(config: TcpConfig, registry: Arc<dyn Registry>) -> Result<Arc<Self>, BindError> {
        config.validate()?;
        let address = config.listen_address;
        let listener = socket::listen(address).map_err(|source| BindError::Address { address, source })?;
        let local = listener.local_addr().map_err(|source| BindError::Address { address, source })?;
        let polling = |errno: rustix::io::Errno| BindError::Polling(errno.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(polling)?;
        let waker = Waker::new().map_err(polling)?;
        let data = epoll::EventData::new_u64;
        epoll::add(&epoll, waker.fd(), data(token::WAKE), EventFlags::IN).map_err(polling)?;
        epoll::add(&epoll, &listener, data(token::LISTENER), EventFlags::IN).map_err(polling)?;
        let shared = Arc::new(Shared {
            config,
            registry,
            epoll,
            waker,
            counters: Counters::default(),
            peers: RwLock::default(),
            moved: Mutex::default(),
            attention: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let watching = Arc::downgrade(&shared);
        shared.registry.watch(Box::new(move |host| {
            let Some(shared) = watching.upgrade() else { return false };
            shared.moved.lock().push(host);
            shared.call_poller();
            true
        }));
        Ok(Arc::new(Self {
            shared,
            poller: Mutex::new(Poller::new(listener)),
            local_address: local.as_socket().expect("a TCP listener has an IP address"),
        }))
    }

    /// Where this host listens.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }
}

impl Transport for TcpTransport {
    fn send(&self, to: HostId, lane: Lane, parts: &[Bytes]) -> Sent {
        let shared = &*self.shared;
        let len = parts.iter().map(Bytes::len).sum();
        if len == 0 {
            return Sent::Queued;
        }
        if len > FRAME_BYTES_LIMIT {
            tracing::error!(host = to.0, ?lane, len, "frame above the limit of {FRAME_BYTES_LIMIT} bytes dropped");
            bump(&shared.counters.dropped_full);
            return Sent::Full;
        }
        let peers = shared.peers.read();
        if let Some(peer) = peers.by_host.get(&to) {
            let mut outbound = peer.lanes[lane as usize].lock();
            // Looked at under the lane's lock: closing takes it after having set this.
            if !shared.closed.load(SeqCst) {
                return outbound.send(shared, parts, len);
            }
        } else {
            drop(peers);
            if let Some(peer) = shared.make_peer(to) {
                return peer.lanes[lane as usize].lock().send(shared, parts, len);
            }
        }
        bump(&shared.counters.dropped_unreachable);
        Sent::Unreachable
    }

    fn connect(&self, host: HostId) {
        if !self.shared.closed.load(SeqCst) {
            self.shared.want(host, &[Lane::Control, Lane::Bulk]);
        }
    }

    fn poll(&self, sink: &mut dyn FrameSink) -> usize {
        let mut poller = self.poller.lock();
        let frames = if self.shared.closed.load(SeqCst) { 0 } else { poller.poll(&self.shared, sink) };
        if self.shared.closed.load(SeqCst) {
            poller.close_all(&self.shared);
        }
        frames
    }

    fn wait(&self, timeout: Duration) {
        let mut poller = self.poller.lock();
        poller.wait(&self.shared, timeout);
        if self.shared.closed.load(SeqCst) {
            poller.close_all(&self.shared);
        }
    }

    fn shed(&self) {
        self.poller.lock().shed();
    }

    fn wake(&self) {
        self.shared.waker.wake();
    }

    fn stats(&self) -> TransportStats {
        self.shared.counters.stats()
    }

    fn close(&self) {
        self.shared.closed.store(true, SeqCst);
        self.shared.waker.wake();
        // Not forever: a sink may call this in the middle of a poll, which then closes by itself.
        if let Some(mut poller) = self.poller.try_lock_for(CLOSE_WAIT) {
            poller.close_all(&self.shared);
        }
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport")
            .field("host", &self.shared.config.host_id)
            .field("address", &self.local_address)
            .finish_non_exhaustive()
    }
}
