//! Builds frames of raft messages.

use super::*;
use bytes::{BufMut, Bytes, BytesMut};
use longboat_raft::{Body, GroupEpoch, GroupId, Message, RefusedReason, Run};
use smallvec::SmallVec;

/// The parts of one frame, for [`crate::Transport::send`].
pub type Parts = SmallVec<[Bytes; 4]>;

/// Room that a frame's head starts with.
const HEAD_BYTES_START: usize = 4 << 10;

/// Gathers the messages of one round that go to one host on one lane.
///
/// Keeps its buffer from frame to frame: once the transport has let go of the last frame, the next one allocates nothing.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    head: BytesMut,
    /// A place for the head, then the large runs.
    parts: Parts,
    tail_bytes: usize,
    /// Where in `head` the last record starts, if that is a record of packed commits.
    open_commits: Option<usize>,
}

impl FrameBuilder {
    /// An empty builder. Allocates nothing until the first message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no message yet.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// Bytes of the frame so far.
    pub fn len_bytes(&self) -> usize {
        self.head.len() + self.tail_bytes
    }

    /// Whether the frame has reached [`FRAME_BYTES_MAX`]: finish it before the next message.
    pub fn is_full(&self) -> bool {
        self.len_bytes() >= FRAME_BYTES_MAX
    }

    /// Adds a message.
    ///
    /// Panics when the frame is full already or the message is larger than [`MESSAGE_BYTES_MAX`]: a caller's mistake.
    pub fn push(&mut self, group: GroupId, epoch: GroupEpoch, message: &Message) {
        assert!(!self.is_full(), "message pushed on a full frame of {} bytes", self.len_bytes());
        let before = self.len_bytes();
        if self.head.is_empty() {
            self.head.reserve(HEAD_BYTES_START);
            self.parts.push(Bytes::new());
            self.head.put_slice(&[BODY_MESSAGES, WIRE_VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        if let Body::Commit { commit } = message.body {
            self.push_commit(group, epoch, message, commit.0);
        } else {
            self.open_commits = None;
            self.push_record(group, epoch, message);
        }
        let len = self.len_bytes() - before;
        assert!(len <= MESSAGE_BYTES_MAX, "message of {len} bytes from {} of group {group}", message.from);
    }

    /// The frame's parts; the builder is empty again.
    pub fn finish(&mut self) -> Parts {
        if self.is_empty() {
            return Parts::new();
        }
        let records = (self.head.len() - BODY_HEADER_BYTES) as u32;
        self.head[4..8].copy_from_slice(&records.to_le_bytes());
        self.head[8..12].copy_from_slice(&(self.tail_bytes as u32).to_le_bytes());
        let head = self.head.split().freeze();
        self.tail_bytes = 0;
        self.open_commits = None;
        let mut parts = std::mem::take(&mut self.parts);
        parts[0] = head;
        parts
    }

    fn push_commit(&mut self, group: GroupId, epoch: GroupEpoch, message: &Message, commit: u64) {
        let at = *self.open_commits.get_or_insert_with(|| {
            let at = self.head.len();
            self.head.put_slice(&[kind::COMMITS, 0, 0, 0, 0, 0, 0, 0]);
            at
        });
        let count = &mut self.head[at + 4..at + 8];
        let n = u32::from_le_bytes(count.try_into().expect("four bytes"));
        count.copy_from_slice(&(n + 1).to_le_bytes());
        let mut record = [0u8; COMMIT_BYTES];
        put_u64s(&mut record, [group.0, epoch.0, message.from.0, message.to.0, message.term.0, commit]);
        self.head.put_slice(&record);
    }

    fn push_record(&mut self, group: GroupId, epoch: GroupEpoch, message: &Message) {
        let start = self.head.len();
        let mut header = [0u8; RECORD_HEADER_BYTES];
        put_u64s(&mut header[8..], [group.0, epoch.0, message.from.0, message.to.0, message.term.0]);
        self.head.put_slice(&header);
        let (kind, flags, count) = self.push_body(&message.body);
        let len = (self.head.len() - start - RECORD_HEADER_BYTES) as u32;
        let header = &mut self.head[start..start + 8];
        header[0] = kind;
        header[1] = flags;
        header[2..4].copy_from_slice(&count.to_le_bytes());
        header[4..8].copy_from_slice(&len.to_le_bytes());
    }

    /// Writes what is particular to a kind; returns kind, flags and count.
    fn push_body(&mut self, body: &Body) -> (u8, u8, u16) {
        let on = |set: bool, flag: u8| if set { flag } else { 0 };
        match body {
            Body::Append { prev, commit, runs } => {
                assert!(runs.len() <= APPEND_RUNS_MAX, "append of {} runs", runs.len());
                self.push_u64s([prev.term.0, prev.index.0, commit.0]);
                self.push_runs(runs);
                (kind::APPEND, 0, runs.len() as u16)
            }
            Body::AppendAccepted { matched } => {
                self.push_u64s([matched.0]);
                (kind::APPEND_ACCEPTED, 0, 0)
            }
            Body::AppendRejected { rejected, hint } => {
                self.push_u64s([rejected.0, hint.term.0, hint.index.0]);
                (kind::APPEND_REJECTED, 0, 0)
            }
            Body::Heartbeat { commit, read_round } => {
                self.push_u64s([commit.0, *read_round]);
                (kind::HEARTBEAT, 0, 0)
            }
            Body::AppendPaused { matched } => {
                self.push_u64s([matched.0]);
                (kind::APPEND_PAUSED, 0, 0)
            }
            Body::HeartbeatResponse { read_round, overloaded } => {
                self.push_u64s([*read_round]);
                (kind::HEARTBEAT_RESPONSE, on(*overloaded, flag::OVERLOADED), 0)
            }
            Body::Commit { .. } => unreachable!("commits are packed by push_commit"),
            Body::RequestVote { pre, transfer, last } => {
                self.push_u64s([last.term.0, last.index.0]);
                (kind::REQUEST_VOTE, on(*pre, flag::PRE) | on(*transfer, flag::TRANSFER), 0)
            }
            Body::VoteResponse { pre, granted } => {
                (kind::VOTE_RESPONSE, on(*pre, flag::PRE) | on(*granted, flag::GRANTED), 0)
            }
            Body::Snapshot(meta) => {
                self.head.put_slice(&meta::encode(meta));
                (kind::SNAPSHOT, 0, 0)
            }
            Body::WitnessSnapshot(meta) => {
                self.head.put_slice(&meta::encode(meta));
                (kind::WITNESS_SNAPSHOT, 0, 0)
            }
            Body::SnapshotNeeded { at_least } => {
                self.push_u64s([at_least.0]);
                (kind::SNAPSHOT_NEEDED, 0, 0)
            }
            Body::Removed { change } => {
                self.push_u64s([change.0]);
                (kind::REMOVED, 0, 0)
            }
            Body::ReadIndex { context } => {
                self.push_u64s([*context]);
                (kind::READ_INDEX, 0, 0)
            }
            Body::ReadIndexResponse { context, index } => {
                self.push_u64s([*context, index.map_or(0, |index| index.0)]);
                (kind::READ_INDEX_RESPONSE, on(index.is_some(), flag::SOME), 0)
            }
            Body::Forward(run) => {
                self.push_runs(std::slice::from_ref(run));
                (kind::FORWARD, 0, 1)
            }
            Body::ForwardRefused { first_sequence, count, reason } => {
                // A number of its own for the reason, then that of the membership error with its arguments.
                let (reason, (error, a, b)) = match reason {
                    RefusedReason::NotLeader => (0, (0, 0, 0)),
                    RefusedReason::Busy => (1, (0, 0, 0)),
                    RefusedReason::ConfigChange(error) => (2, error.to_parts()),
                };
                let numbers = u64::from(*count) | reason << 32 | u64::from(error) << 40;
                self.push_u64s([*first_sequence, numbers, a, b]);
                (kind::FORWARD_REFUSED, 0, 0)
            }
            Body::CloseForwards { term, forwards: f } => {
                self.push_u64s([term.0, f.start, f.commands, f.changes]);
                (kind::CLOSE_FORWARDS, 0, 0)
            }
            Body::ForwardsClosed { term, forwards: f, end } => {
                self.push_u64s([term.0, f.start, f.commands, f.changes, end.0]);
                (kind::FORWARDS_CLOSED, 0, 0)
            }
            Body::TimeoutNow => (kind::TIMEOUT_NOW, 0, 0),
            Body::Transfer { to, question } => {
                self.push_u64s([to.0, *question]);
                (kind::TRANSFER, 0, 0)
            }
            Body::TransferAnswer { to, question, answer } => {
                let (number, a, b) = answer.to_parts();
                self.push_u64s([to.0, *question, u64::from(number), a, b]);
                (kind::TRANSFER_ANSWER, 0, 0)
            }
            Body::Quiesce { round, last, commit } => {
                self.push_u64s([*round, last.term.0, last.index.0, commit.0]);
                (kind::QUIESCE, 0, 0)
            }
            Body::QuiesceResponse { round, agreed } => {
                self.push_u64s([*round]);
                (kind::QUIESCE_RESPONSE, on(*agreed, flag::GRANTED), 0)
            }
        }
    }

    /// A table of lengths, then the small runs; the large ones go to the tail.
    fn push_runs(&mut self, runs: &[Run]) {
        for run in runs {
            let len = run.encoded_len();
            assert!(len <= MESSAGE_BYTES_MAX, "run of {len} bytes");
            let place = if len >= RUN_INLINE_BYTES_MAX { RUN_IN_TAIL } else { 0 };
            self.head.put_u32_le(len as u32 | place);
        }
        for run in runs {
            let len = run.encoded_len();
            if len < RUN_INLINE_BYTES_MAX {
                run.encode(&mut self.head);
                continue;
            }
            self.tail_bytes += len;
            self.parts.extend(run.shared_parts().into_iter().filter(|part| !part.is_empty()));
        }
    }

    fn push_u64s<const N: usize>(&mut self, values: [u64; N]) {
        for value in values {
            self.head.put_u64_le(value);
        }
    }
}

fn put_u64s<const N: usize>(out: &mut [u8], values: [u64; N]) {
    for (place, value) in out.chunks_exact_mut(8).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}
