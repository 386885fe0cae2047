//! What one round of a worker sends: one frame per remote host and lane, however many groups it concerns.

use ahash::AHashMap;
use longboat_raft::{Body, GroupEpoch, GroupId, HostId, Message};
use longboat_transport::wire::{FrameBuilder, Parts};
use longboat_transport::{Lane, Transport};

/// Bytes at which a frame is sent although the round goes on.
const FRAME_FLUSH_BYTES: usize = 1 << 20;

/// A finished frame and where it goes.
#[derive(Debug)]
pub struct OutFrame {
    /// The host.
    pub to: HostId,
    /// The lane.
    pub lane: Lane,
    /// The frame, in parts.
    pub parts: Parts,
}

struct HostOut {
    host: HostId,
    control: FrameBuilder,
    bulk: FrameBuilder,
}

/// Gathers messages by host and lane. Hosts are flushed in the order in which they were first met.
#[derive(Default)]
pub struct Outbox {
    hosts: Vec<HostOut>,
    index: AHashMap<HostId, usize>,
    full: Vec<OutFrame>,
}

impl Outbox {
    /// The lane on which a message travels: bulk never delays control.
    fn lane(message: &Message) -> Lane {
        match &message.body {
            Body::Append { runs, .. } if !runs.is_empty() => Lane::Bulk,
            Body::Forward(_) => Lane::Bulk,
            _ => Lane::Control,
        }
    }

    /// Adds a message for `host`.
    pub fn push(&mut self, host: HostId, group: GroupId, epoch: GroupEpoch, message: &Message) {
        let hosts = &mut self.hosts;
        let at = *self.index.entry(host).or_insert_with(|| {
            hosts.push(HostOut { host, control: FrameBuilder::new(), bulk: FrameBuilder::new() });
            hosts.len() - 1
        });
        let lane = Self::lane(message);
        let out = &mut self.hosts[at];
        let builder = if lane == Lane::Bulk { &mut out.bulk } else { &mut out.control };
        builder.push(group, epoch, message);
        if builder.len_bytes() >= FRAME_FLUSH_BYTES {
            self.full.push(OutFrame { to: host, lane, parts: builder.finish() });
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.full.is_empty() && self.hosts.iter().all(|h| h.control.is_empty() && h.bulk.is_empty())
    }

    /// Takes all frames, control first.
    pub fn take(&mut self) -> Vec<OutFrame> {
        let mut frames = std::mem::take(&mut self.full);
        for h in &mut self.hosts {
            for (lane, builder) in [(Lane::Control, &mut h.control), (Lane::Bulk, &mut h.bulk)] {
                if !builder.is_empty() {
                    frames.push(OutFrame { to: h.host, lane, parts: builder.finish() });
                }
            }
        }
        frames
    }

    /// Sends all frames.
    pub fn send(&mut self, transport: &dyn Transport) {
        for frame in self.take() {
            transport.send(frame.to, frame.lane, &frame.parts);
        }
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("hosts", &self.hosts.len()).finish_non_exhaustive()
    }
}
