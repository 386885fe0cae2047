//! What one round of a worker sends: one frame per remote host and lane, however many groups it concerns.

use ahash::AHashMap;
use longboat_raft::{Body, GroupEpoch, GroupId, HostId, Message, RefusedForward, RefusedReason};
use longboat_transport::wire::{FrameBuilder, Parts};
use longboat_transport::{Lane, Sent, Transport};

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
    /// The forwarded runs in it: their groups, and how they would be refused.
    forwards: Vec<(GroupId, RefusedForward)>,
}

struct HostOut {
    host: HostId,
    control: FrameBuilder,
    bulk: FrameBuilder,
    /// Forwarded runs in `bulk`.
    forwards: Vec<(GroupId, RefusedForward)>,
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
            // A question about forwarded runs comes after them.
            Body::Forward(_) | Body::CloseForwards { .. } => Lane::Bulk,
            _ => Lane::Control,
        }
    }

    /// Adds a message for `host`.
    pub fn push(&mut self, host: HostId, group: GroupId, epoch: GroupEpoch, message: &Message) {
        let hosts = &mut self.hosts;
        let at = *self.index.entry(host).or_insert_with(|| {
            let (control, bulk) = (FrameBuilder::new(), FrameBuilder::new());
            hosts.push(HostOut { host, control, bulk, forwards: Vec::new() });
            hosts.len() - 1
        });
        let lane = Self::lane(message);
        let out = &mut self.hosts[at];
        let builder = if lane == Lane::Bulk { &mut out.bulk } else { &mut out.control };
        builder.push(group, epoch, message);
        out.forwards.extend(unsent(message).map(|run| (group, run)));
        if builder.len_bytes() >= FRAME_FLUSH_BYTES {
            let forwards = if lane == Lane::Bulk { std::mem::take(&mut out.forwards) } else { Vec::new() };
            self.full.push(OutFrame { to: host, lane, parts: builder.finish(), forwards });
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
                    let forwards = if lane == Lane::Bulk { std::mem::take(&mut h.forwards) } else { Vec::new() };
                    frames.push(OutFrame { to: h.host, lane, parts: builder.finish(), forwards });
                }
            }
        }
        frames
    }

    /// Lets go of buffers, if nothing is in them.
    pub fn shed(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Sends all frames. Returns the forwarded runs in those that the transport did not take.
    pub fn send(&mut self, transport: &dyn Transport) -> Vec<(GroupId, RefusedForward)> {
        let mut unsent = Vec::new();
        for frame in self.take() {
            if transport.send(frame.to, frame.lane, &frame.parts) != Sent::Queued {
                unsent.extend(frame.forwards);
            }
        }
        unsent
    }
}

/// If the message forwards a run: as what it counts when it is not sent.
pub(crate) fn unsent(message: &Message) -> Option<RefusedForward> {
    let Body::Forward(run) = &message.body else { return None };
    let first_sequence = run.entries().next()?.sequence;
    Some(RefusedForward { first_sequence, count: run.count() as u32, reason: RefusedReason::NotLeader })
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("hosts", &self.hosts.len()).finish_non_exhaustive()
    }
}
