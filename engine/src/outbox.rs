//! What one round of a worker sends: one frame per remote host and lane, however many groups it concerns.
//!
//! Where a commit index is all that a host would be told, it waits for [`COMMIT_HOLD_NANOS`]: mostly the next append, which carries
//! it, is sent before that, and a lone write then wakes each follower's thread once and not twice. A follower answers no request of
//! its own from what waits here: hosts that forward proposals, or ask for read indexes, are told at once.
//!
//! Invariant: what waits leaves with the next frame to its host, and after that time at the latest.

use ahash::AHashMap;
use longboat_raft::{Body, GroupEpoch, GroupId, HostId, Message, RefusedForward, RefusedReason, Time};
use longboat_transport::wire::{FrameBuilder, Parts};
use longboat_transport::{Lane, Sent, Transport};

/// Bytes at which a frame is sent although the round goes on.
const FRAME_FLUSH_BYTES: usize = 1 << 20;

/// Nanoseconds for which a commit index waits for something to go with: a few round trips of a client that writes its next command
/// when it has the answer to the last one, and far less than anybody notices at a follower.
const COMMIT_HOLD_NANOS: u64 = 250_000;
/// Groups whose commit indexes wait, of one host. A worker that has more to tell is busy, and its next round near anyway.
const COMMITS_HELD_MAX: usize = 8;
/// Nanoseconds for which a host is told at once after it asked for something that it waits for.
const PROMPT_NANOS: u64 = 100_000_000;

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
    /// Commit indexes that wait for something to go with, of at most [`COMMITS_HELD_MAX`] groups.
    commits: Vec<(GroupId, GroupEpoch, Message)>,
    /// When they leave even alone; set by the first round that kept some.
    commits_due: Option<Time>,
    /// Until when nothing waits.
    prompt_until: Time,
}

impl HostOut {
    fn new(host: HostId) -> Self {
        Self {
            host,
            control: FrameBuilder::new(),
            bulk: FrameBuilder::new(),
            forwards: Vec::new(),
            commits: Vec::new(),
            commits_due: None,
            prompt_until: Time::ZERO,
        }
    }

    /// Keeps a commit index back, where it may wait. What waited for the same member makes room for what says as much.
    fn keeps(&mut self, group: GroupId, epoch: GroupEpoch, message: &Message) -> bool {
        let is_commit = matches!(message.body, Body::Commit { .. });
        if is_commit || matches!(message.body, Body::Append { .. }) {
            self.commits.retain(|(kept, _, of)| (*kept, of.to) != (group, message.to));
        }
        let keeps = is_commit && self.commits.len() < COMMITS_HELD_MAX;
        if keeps {
            self.commits.push((group, epoch, message.clone()));
        }
        keeps
    }

    /// Whether only commit indexes are to be sent, and may wait. Notes until when.
    fn waits(&mut self, now: Time) -> bool {
        if self.commits.is_empty() || now < self.prompt_until || !(self.control.is_empty() && self.bulk.is_empty()) {
            return false;
        }
        let due = *self.commits_due.get_or_insert(now.plus_nanos(COMMIT_HOLD_NANOS));
        now < due
    }

    /// What waited is to leave.
    fn release(&mut self) {
        self.commits_due = None;
        for (group, epoch, message) in self.commits.drain(..) {
            self.control.push(group, epoch, &message);
        }
    }
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

    fn host(&mut self, host: HostId) -> &mut HostOut {
        let hosts = &mut self.hosts;
        let at = *self.index.entry(host).or_insert_with(|| {
            hosts.push(HostOut::new(host));
            hosts.len() - 1
        });
        &mut self.hosts[at]
    }

    /// Adds a message for `host`.
    pub fn push(&mut self, host: HostId, group: GroupId, epoch: GroupEpoch, message: &Message) {
        let lane = Self::lane(message);
        let out = self.host(host);
        if out.keeps(group, epoch, message) {
            return;
        }
        let builder = if lane == Lane::Bulk { &mut out.bulk } else { &mut out.control };
        builder.push(group, epoch, message);
        out.forwards.extend(unsent(message).map(|run| (group, run)));
        if builder.len_bytes() >= FRAME_FLUSH_BYTES {
            let forwards = if lane == Lane::Bulk { std::mem::take(&mut out.forwards) } else { Vec::new() };
            let frame = OutFrame { to: host, lane, parts: builder.finish(), forwards };
            self.full.push(frame);
        }
    }

    /// The host waits for something that this one has to tell it: for a while, nothing is kept back.
    pub fn is_asked(&mut self, now: Time, host: HostId) {
        self.host(host).prompt_until = now.plus_nanos(PROMPT_NANOS);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        let is_idle = |h: &HostOut| h.control.is_empty() && h.bulk.is_empty() && h.commits.is_empty();
        self.full.is_empty() && self.hosts.iter().all(is_idle)
    }

    /// When what waits is to be sent, if something does.
    pub fn due(&self) -> Option<Time> {
        self.hosts.iter().filter_map(|h| h.commits_due).min()
    }

    /// Takes all frames, control first.
    pub fn take(&mut self) -> Vec<OutFrame> {
        self.take_due(Time(u64::MAX))
    }

    /// Takes all frames but those of commit indexes that may wait.
    fn take_due(&mut self, now: Time) -> Vec<OutFrame> {
        let mut frames = std::mem::take(&mut self.full);
        for h in &mut self.hosts {
            if h.waits(now) {
                continue;
            }
            h.release();
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

    /// Sends what there is at `now`, but for commit indexes that may wait. Returns the forwarded runs in frames that the transport
    /// did not take.
    pub fn send(&mut self, now: Time, transport: &dyn Transport) -> Vec<(GroupId, RefusedForward)> {
        let mut unsent = Vec::new();
        for frame in self.take_due(now) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_raft::{Index, LogPos, ReplicaId, Term};
    use longboat_transport::wire::messages;
    use smallvec::SmallVec;

    const HOST: HostId = HostId(2);
    const EPOCH: GroupEpoch = GroupEpoch(0);

    fn message(to: u64, body: Body) -> Message {
        Message { from: ReplicaId(1), to: ReplicaId(to), term: Term(1), body }
    }

    fn commit(index: u64) -> Message {
        message(2, Body::Commit { commit: Index(index) })
    }

    fn sent(outbox: &mut Outbox, now: u64) -> Vec<Body> {
        let bytes = |frame: &OutFrame| frame.parts.iter().flat_map(|part| part.to_vec()).collect::<Vec<u8>>();
        let frames = outbox.take_due(Time(now));
        let bodies = |frame: &OutFrame| {
            messages(bytes(frame).into()).map(|m| m.expect("well formed").message.body).collect::<Vec<_>>()
        };
        frames.iter().flat_map(bodies).collect()
    }

    #[test]
    fn a_commit_index_waits_for_a_while_and_leaves_alone_then() {
        let mut outbox = Outbox::default();
        outbox.push(HOST, GroupId(1), EPOCH, &commit(5));
        assert_eq!(sent(&mut outbox, 10), []);
        assert_eq!(outbox.due(), Some(Time(10 + COMMIT_HOLD_NANOS)));
        assert!(!outbox.is_empty());
        outbox.push(HOST, GroupId(1), EPOCH, &commit(6));
        assert_eq!(sent(&mut outbox, 9 + COMMIT_HOLD_NANOS), []);
        assert_eq!(sent(&mut outbox, 10 + COMMIT_HOLD_NANOS), [Body::Commit { commit: Index(6) }]);
        assert!(outbox.is_empty() && outbox.due().is_none());
    }

    #[test]
    fn an_append_takes_its_place_and_others_go_with_it() {
        let mut outbox = Outbox::default();
        outbox.push(HOST, GroupId(1), EPOCH, &commit(5));
        outbox.push(HOST, GroupId(2), EPOCH, &commit(7));
        assert_eq!(sent(&mut outbox, 10), []);
        let append = Body::Append { prev: LogPos::new(Term(1), Index(5)), commit: Index(5), runs: SmallVec::new() };
        outbox.push(HOST, GroupId(1), EPOCH, &message(2, append.clone()));
        assert_eq!(sent(&mut outbox, 11), [append, Body::Commit { commit: Index(7) }]);
        assert!(outbox.is_empty() && outbox.due().is_none());
    }

    #[test]
    fn a_host_that_asked_for_something_is_told_at_once() {
        let mut outbox = Outbox::default();
        outbox.is_asked(Time(10), HOST);
        outbox.push(HOST, GroupId(1), EPOCH, &commit(5));
        assert_eq!(sent(&mut outbox, 10), [Body::Commit { commit: Index(5) }]);
        outbox.push(HOST, GroupId(1), EPOCH, &commit(6));
        assert_eq!(sent(&mut outbox, 10 + PROMPT_NANOS), []);
        outbox.is_asked(Time(11 + PROMPT_NANOS), HOST);
        assert_eq!(sent(&mut outbox, 11 + PROMPT_NANOS), [Body::Commit { commit: Index(6) }]);
    }

    #[test]
    fn of_many_groups_none_waits() {
        let mut outbox = Outbox::default();
        (0..=COMMITS_HELD_MAX as u64).for_each(|group| outbox.push(HOST, GroupId(group), EPOCH, &commit(group)));
        assert_eq!(sent(&mut outbox, 10).len(), COMMITS_HELD_MAX + 1);
    }
}
