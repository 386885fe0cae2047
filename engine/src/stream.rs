//! Snapshots on their way between hosts: chunks on a lane of their own, a window of what is on the way, one job a transfer.
//!
//! Invariants: the receiver hands the snapshot to raft only when its files are durable; a receiver has one stream a
//! group, and a newer snapshot replaces an older one; both sides give up when nothing moves for [`STALL_NANOS`].

use crate::config::{SNAPSHOT_CHUNK_BYTES, SNAPSHOT_WINDOW_BYTES};
use crate::replica::Replica;
use crate::shared::{Command, GroupShared};
use crate::snapshot::SnapshotIo;
use ahash::AHashMap;
use bytes::Bytes;
use longboat_io::{Job, JobState};
use longboat_raft::{Body, GroupId, HostId, Message, ReplicaId, SnapshotMeta, Term, Time, sometimes};
use longboat_rsm::snapshot::{Appended, IncomingSnapshot, OutgoingSnapshot, SnapshotError, TransferKey};
use longboat_transport::wire::{Chunk, ChunkOutcome, ChunkStatus, SnapshotFrame};
use longboat_transport::{Lane, Sent};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// Nanoseconds without progress after which a transfer is given up.
const STALL_NANOS: u64 = 30_000_000_000;

const OPEN: u8 = 0;
const TAKEN: u8 = 1;
const REFUSED: u8 = 2;

/// What the receiver has said of a stream.
#[derive(Debug, Default)]
struct Answers {
    acked: AtomicU64,
    outcome: AtomicU8,
}

/// The transfers that this host sends.
#[derive(Debug, Default)]
pub struct Sends {
    next_id: AtomicU64,
    running: AtomicUsize,
    answers: Mutex<AHashMap<u64, Arc<Answers>>>,
}

/// Sends one snapshot file to one replica.
pub struct SendJob {
    io: Arc<SnapshotIo>,
    shared: Arc<GroupShared>,
    to: ReplicaId,
    host: HostId,
    term: Term,
    meta: SnapshotMeta,
    stream_id: u64,
    answers: Arc<Answers>,
    file: Option<OutgoingSnapshot>,
    /// A chunk that the lane had no room for.
    waiting: Option<Vec<Bytes>>,
    waiting_end: u64,
    sent: u64,
    seen: u64,
    moved: Time,
    all_sent: bool,
    ended: bool,
}

impl Drop for SendJob {
    /// A transfer that was not finished, because its job panicked or the pool ended, has failed.
    fn drop(&mut self) {
        let _ = self.finish(false);
    }
}

impl SendJob {
    /// Starts to send; false when the host sends as many as it may.
    pub fn start(io: &Arc<SnapshotIo>, replica: &Replica, to: ReplicaId, host: HostId, meta: &SnapshotMeta) -> bool {
        if io.sends.running.load(Ordering::Relaxed) >= io.host.config.snapshot_sends_max {
            return false;
        }
        io.sends.running.fetch_add(1, Ordering::Relaxed);
        // The host's start is in the number, so that an answer to an earlier life's stream matches none.
        let stream_id = io.host.config.seed.wrapping_add(io.sends.next_id.fetch_add(1, Ordering::Relaxed));
        let answers = Arc::new(Answers::default());
        io.sends.answers.lock().insert(stream_id, Arc::clone(&answers));
        tracing::info!(group = %replica.config.group, replica = %replica.config.replica, %to, index = %meta.pos.index, "snapshot transfer begins");
        io.spawner.spawn(Box::new(Self {
            io: Arc::clone(io),
            shared: Arc::clone(&replica.shared),
            to,
            host,
            term: replica.core.term(),
            meta: meta.clone(),
            stream_id,
            answers,
            file: None,
            waiting: None,
            waiting_end: 0,
            sent: 0,
            seen: 0,
            moved: io.host.clock.now(),
            all_sent: false,
            ended: false,
        }));
        true
    }

    fn finish(&mut self, ok: bool) -> JobState {
        if std::mem::replace(&mut self.ended, true) {
            return JobState::Done;
        }
        self.io.sends.answers.lock().remove(&self.stream_id);
        self.io.sends.running.fetch_sub(1, Ordering::Relaxed);
        let command = Command::SnapshotSent { shared: Arc::clone(&self.shared), to: self.to, ok };
        self.io.host.workers[self.shared.worker()].command(command);
        if !ok {
            tracing::warn!(group = %self.shared.group, to = %self.to, index = %self.meta.pos.index, "snapshot transfer failed");
        }
        JobState::Done
    }

    fn send_waiting(&mut self) -> Option<JobState> {
        let parts = self.waiting.take()?;
        match self.io.transport.send(self.host, Lane::Snapshot, &parts) {
            Sent::Queued => {
                self.sent = self.waiting_end;
                None
            }
            // Both are worth another try until the stall limit: the lane drains, or the connection is being made.
            Sent::Full | Sent::Unreachable => {
                self.waiting = Some(parts);
                Some(JobState::Blocked)
            }
        }
    }

    fn next_chunk(&mut self) -> Result<bool, SnapshotError> {
        if self.file.is_none() {
            let (group, replica) = (self.shared.group, self.shared.replica);
            self.file = Some(OutgoingSnapshot::open(&self.io.store, group, replica, self.meta.pos.index)?);
        }
        let file = self.file.as_mut().expect("just opened");
        let total = file.key().total_bytes;
        let Some(chunk) = file.next_chunk(SNAPSHOT_CHUNK_BYTES)? else { return Ok(false) };
        self.waiting_end = chunk.offset + chunk.data.len() as u64;
        let frame = Chunk {
            group: self.shared.group,
            epoch: self.shared.epoch,
            from: self.shared.replica,
            to: self.to,
            term: self.term,
            meta: (chunk.offset == 0).then(|| Box::new(self.meta.clone())),
            stream_id: self.stream_id,
            offset: chunk.offset,
            total,
            data: chunk.data,
            last: chunk.last,
        };
        self.waiting = Some(frame.encode().to_vec());
        Ok(true)
    }
}

impl Job for SendJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let now = self.io.host.clock.now();
        match self.answers.outcome.load(Ordering::Acquire) {
            TAKEN => return self.finish(true),
            REFUSED => return self.finish(false),
            _ => {}
        }
        let acked = self.answers.acked.load(Ordering::Acquire);
        if acked + self.sent > self.seen {
            self.seen = acked + self.sent;
            self.moved = now;
        }
        let stalled = now.nanos_since(self.moved) > STALL_NANOS;
        sometimes!(stalled, "snapshot-transfer-stalled");
        if stalled || self.shared.is_closed.load(Ordering::Relaxed) || self.io.host.closing.load(Ordering::Relaxed) {
            return self.finish(false);
        }
        if let Some(state) = self.send_waiting() {
            return state;
        }
        if self.all_sent || self.sent - acked.min(self.sent) >= SNAPSHOT_WINDOW_BYTES {
            return JobState::Blocked;
        }
        match self.next_chunk() {
            Ok(more) => {
                self.all_sent = !more;
                self.send_waiting().unwrap_or(JobState::Again)
            }
            Err(error) => {
                tracing::warn!(group = %self.shared.group, %error, "snapshot can't be read for sending");
                self.finish(false)
            }
        }
    }
}

/// One stream that this host receives.
#[derive(Debug)]
struct Receive {
    stream_id: u64,
    meta: SnapshotMeta,
    chunks: Mutex<(VecDeque<Chunk>, u64)>,
    replaced: AtomicBool,
}

/// The transfers that this host receives.
#[derive(Debug, Default)]
pub struct Receives {
    streams: Mutex<AHashMap<GroupId, Arc<Receive>>>,
}

impl SnapshotIo {
    /// A frame arrived on the snapshot lane.
    pub fn frame(self: &Arc<Self>, from: HostId, frame: Bytes) {
        match SnapshotFrame::decode(frame) {
            Ok(SnapshotFrame::Chunk(chunk)) => self.chunk(from, chunk),
            Ok(SnapshotFrame::Status(status)) => self.status(&status),
            Err(_) => {
                self.host.counters.bad_frames.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn status(&self, status: &ChunkStatus) {
        let Some(answers) = self.sends.answers.lock().get(&status.stream_id).cloned() else { return };
        answers.acked.fetch_max(status.offset, Ordering::AcqRel);
        let outcome = match status.outcome {
            ChunkOutcome::Accepted => return,
            ChunkOutcome::Done => TAKEN,
            ChunkOutcome::Refused => REFUSED,
        };
        let _ = answers.outcome.compare_exchange(OPEN, outcome, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn answer(&self, to_host: HostId, chunk: &ChunkKey, offset: u64, outcome: ChunkOutcome) {
        let status = ChunkStatus {
            group: chunk.group,
            epoch: chunk.epoch,
            from: chunk.to,
            to: chunk.from,
            term: Term::ZERO,
            stream_id: chunk.stream_id,
            offset,
            outcome,
        };
        self.transport.send(to_host, Lane::Snapshot, &status.encode());
    }

    fn chunk(self: &Arc<Self>, from: HostId, mut chunk: Chunk) {
        let key = ChunkKey::of(&chunk);
        let Some(shared) = self.host.group(chunk.group).filter(|s| s.replica == chunk.to && s.epoch == chunk.epoch)
        else {
            self.host.counters.dropped_unknown.fetch_add(1, Ordering::Relaxed);
            self.answer(from, &key, 0, ChunkOutcome::Refused);
            return;
        };
        if let Some(meta) = chunk.meta.take()
            && !self.begin(from, &key, shared, *meta, &chunk)
        {
            self.answer(from, &key, 0, ChunkOutcome::Refused);
            return;
        }
        let stream = self.receives.streams.lock().get(&chunk.group).cloned();
        let Some(stream) = stream.filter(|s| s.stream_id == chunk.stream_id) else {
            self.answer(from, &key, 0, ChunkOutcome::Refused);
            return;
        };
        let mut chunks = stream.chunks.lock();
        let bytes = chunk.data.len() as u64;
        // A sender keeps to its window; one that does not is not listened to any further.
        if chunks.1 + bytes > 2 * SNAPSHOT_WINDOW_BYTES {
            stream.replaced.store(true, Ordering::Relaxed);
            return;
        }
        chunks.1 += bytes;
        chunks.0.push_back(chunk);
    }

    /// The first chunk of a stream: a receive job takes it from here, unless a newer snapshot is on its way already.
    fn begin(
        self: &Arc<Self>,
        from: HostId,
        key: &ChunkKey,
        shared: Arc<GroupShared>,
        meta: SnapshotMeta,
        chunk: &Chunk,
    ) -> bool {
        let mut streams = self.receives.streams.lock();
        if let Some(old) = streams.get(&chunk.group) {
            if old.stream_id == chunk.stream_id || old.meta.pos.index > meta.pos.index {
                return old.stream_id == chunk.stream_id;
            }
            sometimes!("stream-replaced-by-a-newer");
            old.replaced.store(true, Ordering::Relaxed);
        } else if streams.len() >= self.host.config.snapshot_receives_max {
            return false;
        }
        let stream = Arc::new(Receive {
            stream_id: chunk.stream_id,
            meta,
            chunks: Mutex::new((VecDeque::new(), 0)),
            replaced: AtomicBool::new(false),
        });
        streams.insert(chunk.group, Arc::clone(&stream));
        drop(streams);
        self.spawner.spawn(Box::new(ReceiveJob {
            io: Arc::clone(self),
            shared,
            stream,
            key: *key,
            from,
            total: chunk.total,
            term: chunk.term,
            file: None,
            moved: self.host.clock.now(),
            finishing: false,
            ended: false,
        }));
        true
    }
}

/// What names a stream in its answers.
#[derive(Clone, Copy, Debug)]
struct ChunkKey {
    group: GroupId,
    epoch: longboat_raft::GroupEpoch,
    from: ReplicaId,
    to: ReplicaId,
    stream_id: u64,
}

impl ChunkKey {
    fn of(chunk: &Chunk) -> Self {
        Self { group: chunk.group, epoch: chunk.epoch, from: chunk.from, to: chunk.to, stream_id: chunk.stream_id }
    }
}

/// Writes one received snapshot, and hands it to raft when it is durable.
struct ReceiveJob {
    io: Arc<SnapshotIo>,
    shared: Arc<GroupShared>,
    stream: Arc<Receive>,
    key: ChunkKey,
    from: HostId,
    total: u64,
    term: Term,
    file: Option<IncomingSnapshot>,
    moved: Time,
    finishing: bool,
    ended: bool,
}

impl Drop for ReceiveJob {
    /// A transfer that was not finished, because its job panicked or the pool ended, is refused.
    fn drop(&mut self) {
        let _ = self.end(ChunkOutcome::Refused);
    }
}

impl ReceiveJob {
    fn end(&mut self, outcome: ChunkOutcome) -> JobState {
        if std::mem::replace(&mut self.ended, true) {
            return JobState::Done;
        }
        let mut streams = self.io.receives.streams.lock();
        if streams.get(&self.key.group).is_some_and(|s| s.stream_id == self.key.stream_id) {
            streams.remove(&self.key.group);
        }
        drop(streams);
        self.file = None;
        self.io.answer(self.from, &self.key, self.total, outcome);
        JobState::Done
    }

    fn take(&mut self) -> Result<JobState, SnapshotError> {
        if self.file.is_none() {
            let key = TransferKey { group: self.key.group, pos: self.stream.meta.pos, total_bytes: self.total };
            self.file = Some(IncomingSnapshot::begin(&self.io.store, self.shared.replica, key)?);
        }
        let file = self.file.as_mut().expect("just begun");
        if self.finishing {
            return file.finish();
        }
        let chunk = {
            let mut chunks = self.stream.chunks.lock();
            let chunk = chunks.0.pop_front();
            chunks.1 -= chunk.as_ref().map_or(0, |c| c.data.len() as u64);
            chunk
        };
        let Some(chunk) = chunk else { return Ok(JobState::Blocked) };
        if file.append(chunk.offset, &chunk.data)? == Appended::Duplicate {
            return Ok(JobState::Again);
        }
        self.moved = self.io.host.clock.now();
        let received = file.received();
        self.finishing = file.is_complete();
        self.io.answer(self.from, &self.key, received, ChunkOutcome::Accepted);
        Ok(JobState::Again)
    }

    /// The files are durable: only now raft hears of the snapshot. What was announced must be what the file says.
    fn hand_over(&mut self) -> JobState {
        let meta = self.stream.meta.clone();
        let said = self.file.as_ref().and_then(|f| f.header()).map(|h| (h.group, h.epoch, &h.meta));
        if said != Some((self.key.group, self.key.epoch, &meta)) {
            tracing::warn!(group = %self.key.group, from = %self.from, "snapshot file is not what was announced");
            return self.end(ChunkOutcome::Refused);
        }
        self.io.received.lock().insert((self.key.group, meta.pos.index), self.total);
        let body = Body::Snapshot(Box::new(meta));
        let message = Message { from: self.key.from, to: self.key.to, term: self.term, body };
        let shared = Arc::clone(&self.shared);
        let command = Command::Deliver { shared, from: self.from, message: Box::new(message) };
        self.io.host.workers[self.shared.worker()].command(command);
        self.end(ChunkOutcome::Done)
    }
}

impl Job for ReceiveJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let gone = self.shared.is_closed.load(Ordering::Relaxed) || self.io.host.closing.load(Ordering::Relaxed);
        let stalled = self.io.host.clock.now().nanos_since(self.moved) > STALL_NANOS;
        if gone || stalled || self.stream.replaced.load(Ordering::Relaxed) {
            return self.end(ChunkOutcome::Refused);
        }
        match self.take() {
            Ok(JobState::Done) => self.hand_over(),
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(group = %self.key.group, from = %self.from, %error, "snapshot transfer refused");
                self.end(ChunkOutcome::Refused)
            }
        }
    }
}
