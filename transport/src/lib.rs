//! How hosts reach each other: frames on lanes, over TCP or within one process.
//!
//! A frame is a bag of raft messages for many groups, or a snapshot chunk; this crate moves frames and knows how messages are laid out in
//! them ([`wire`]), not what they mean. Frames may be lost and connections may break: nothing is retried here.
//! Per lane and connection, frames arrive in order.
//!
//! Must not know: disks, workers, replicas.

use bytes::Bytes;
use longboat_raft::{HostId, StoreId};
use std::time::Duration;

mod counters;
pub mod in_process;
pub mod registry;
pub mod tcp;
pub mod wire;

pub use in_process::{InProcessHub, InProcessTransport};
pub use registry::{Registry, StaticRegistry};
pub use tcp::{BindError, TcpConfig, TcpTransport};

/// The lanes between two hosts. Bulk never delays control; chunks have a connection of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Acknowledgements, votes, heartbeats.
    Control,
    /// Appends and forwarded proposals.
    Bulk,
    /// Snapshot chunks.
    Snapshot,
}

impl Lane {
    /// The lanes, in the order of their urgency.
    pub const ALL: [Self; 3] = [Self::Control, Self::Bulk, Self::Snapshot];
}

/// What became of a frame that was given to [`Transport::send`]. Of one that was dropped nothing reaches the other host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Written to the socket or queued for it.
    Queued,
    /// Dropped and counted: the lane's queue is full.
    Full,
    /// Dropped and counted: there is no connection. One is being made, with backoff.
    Unreachable,
}

/// Moves frames between hosts.
///
/// `send` may be called by any thread and never blocks; it writes the socket itself and leaves to the polling thread only what the socket did not take.
/// `poll` and `wait` are for one polling thread.
pub trait Transport: Send + Sync + 'static {
    /// Sends one frame: the concatenation of `parts`. The frame's checksum covers the first part; the others must carry
    /// checksums of their own, as runs and chunk data do, so that no payload byte is summed twice.
    fn send(&self, to: HostId, lane: Lane, parts: &[Bytes]) -> Sent;

    /// Starts to connect to a host that will soon be spoken to, so that the first frame finds a connection. Optional.
    fn connect(&self, host: HostId) {
        let _ = host;
    }

    /// Reads what has arrived, hands it to `sink`, writes what waited. Does not block. Returns the number of frames handed over.
    fn poll(&self, sink: &mut dyn FrameSink) -> usize;

    /// Blocks until [`Transport::poll`] has something to do, [`Transport::wake`] was called, or `timeout` has passed.
    fn wait(&self, timeout: Duration);

    /// Ends a `wait` that is under way, or the next one.
    fn wake(&self);

    /// Lets go of buffers that hold nothing. For the polling thread, when there has been nothing to do for long. Optional.
    fn shed(&self) {}

    /// Figures so far.
    fn stats(&self) -> TransportStats;

    /// Closes every connection and listener. Later sends are `Unreachable`.
    fn close(&self);
}

/// Receives frames, on the polling thread.
pub trait FrameSink {
    /// A whole frame arrived and its checksum, which covers the sender's first part, is good. The host at the other end proved its id in the handshake.
    fn frame(&mut self, from: HostId, lane: Lane, frame: Bytes);

    /// The connections to this host broke, or it has restarted. What was sent lately may be lost. May come several times.
    fn disconnected(&mut self, host: HostId);

    /// A connection to or from this host was made: the store that it has, and the incarnation that it is in. Comes per connection.
    fn connected(&mut self, host: HostId, store: StoreId, incarnation: u64) {
        let _ = (host, store, incarnation);
    }
}

/// Counters of a transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Frames written or queued.
    pub frames_sent: u64,
    /// Bytes of those frames.
    pub bytes_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Bytes of those frames.
    pub bytes_received: u64,
    /// Frames dropped because a queue was full.
    pub dropped_full: u64,
    /// Frames dropped because there was no connection.
    pub dropped_unreachable: u64,
    /// Connections closed because of garbage, oversized, truncated or wrong-version frames, or a failed handshake.
    pub closed_bad: u64,
    /// Connections made.
    pub connected: u64,
}
