//! The receiving side of snapshot transfers: chunks on a lane of their own, one job a transfer. What sends is in
//! [`crate::send`].
//!
//! Invariants: the snapshot is handed to raft only when its files are durable; a group has one stream, and one of a later
//! term, or of a newer snapshot, takes the place of an older; a chunk of any other stream is answered and dropped; a stream
//! on which nothing comes for [`STALL_NANOS`] gives up its place. All streams share the host's limit fairly: each step of a
//! job takes one chunk, and the pool's jobs take turns.

use crate::config::SNAPSHOT_WINDOW_BYTES;
use crate::send::STALL_NANOS;
use crate::shared::{Command, GroupShared};
use crate::snapshot::SnapshotIo;
use crate::transfers::{Direction, Pace, TransferInfo, Underway};
use ahash::AHashMap;
use bytes::Bytes;
use longboat_io::{Job, JobState};
use longboat_raft::{
    Body, GroupEpoch, GroupId, HostId, Message, ReplicaId, SnapshotMeta, Term, Time, plant, sometimes,
};
use longboat_rsm::snapshot::{Content, IncomingSnapshot, SnapshotError, TransferKey};
use longboat_transport::Lane;
use longboat_transport::wire::{Chunk, ChunkOutcome, ChunkStatus, SnapshotFrame};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Streams that were received of late, and are remembered in case that the word of it was lost.
const FINISHED_MAX: usize = 64;

/// One stream that this host receives.
#[derive(Debug)]
struct Receive {
    /// Who sends it: a chunk of anybody else's is none of it, whatever number it bears.
    from: HostId,
    stream_id: u64,
    term: Term,
    meta: SnapshotMeta,
    chunks: Mutex<Waiting>,
    /// Bytes that are in the file.
    received: AtomicU64,
    replaced: AtomicBool,
}

/// Chunks that wait for a stream's job, without a gap between them.
#[derive(Debug, Default)]
struct Waiting {
    chunks: VecDeque<Chunk>,
    bytes: u64,
    /// Where the last one ends.
    end: u64,
}

/// The transfers that this host receives.
#[derive(Debug)]
pub struct Receives {
    streams: Mutex<AHashMap<GroupId, Arc<Receive>>>,
    /// Streams that were received whole: number and length.
    finished: Mutex<VecDeque<(u64, u64)>>,
    pace: Pace,
}

impl Receives {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self { streams: Mutex::default(), finished: Mutex::default(), pace: Pace::new(bytes_per_s) }
    }

    /// The length of a stream that was received whole.
    fn finished(&self, stream_id: u64) -> Option<u64> {
        self.finished.lock().iter().find(|f| f.0 == stream_id).map(|f| f.1)
    }

    fn finish(&self, stream_id: u64, bytes: u64) {
        let mut finished = self.finished.lock();
        finished.truncate(FINISHED_MAX - 1);
        finished.push_front((stream_id, bytes));
    }
}

impl SnapshotIo {
    /// A frame arrived on the snapshot lane.
    pub fn frame(self: &Arc<Self>, from: HostId, frame: Bytes) {
        match SnapshotFrame::decode(frame) {
            Ok(SnapshotFrame::Chunk(chunk)) => self.chunk(from, chunk),
            Ok(SnapshotFrame::Status(status)) => self.sends.status(&status),
            Err(_) => {
                self.host.counters.bad_frames.fetch_add(1, Ordering::Relaxed);
            }
        }
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
        if let Some(bytes) = self.receives.finished(chunk.stream_id) {
            // It is here already, and the word of it was lost.
            return self.answer(from, &key, bytes, ChunkOutcome::Done);
        }
        if let Some(meta) = chunk.meta.take()
            && let Err(outcome) = self.begin(from, &key, shared, *meta, &chunk)
        {
            self.answer(from, &key, 0, outcome);
            return;
        }
        let stream = self.receives.streams.lock().get(&chunk.group).cloned();
        let Some(stream) =
            stream.filter(|s| s.stream_id == chunk.stream_id && (s.from == from || plant::is("chunk-from-anybody")))
        else {
            self.answer(from, &key, 0, ChunkOutcome::Refused);
            return;
        };
        let mut waiting = stream.chunks.lock();
        let (bytes, end) = (chunk.data.len() as u64, chunk.offset + chunk.data.len() as u64);
        // Sent again, or behind one that was lost: the sender is told how far this is, and goes on from there.
        if end <= waiting.end || chunk.offset > waiting.end {
            drop(waiting);
            let received = stream.received.load(Ordering::Relaxed);
            return self.answer(from, &key, received, ChunkOutcome::Accepted);
        }
        // A sender keeps to its window; one that does not is not listened to any further.
        if waiting.bytes + bytes > 2 * SNAPSHOT_WINDOW_BYTES {
            stream.replaced.store(true, Ordering::Relaxed);
            return;
        }
        waiting.bytes += bytes;
        waiting.end = end;
        waiting.chunks.push_back(chunk);
    }

    /// Raft is told of a snapshot.
    fn deliver(&self, shared: Arc<GroupShared>, from: HostId, key: &ChunkKey, term: Term, meta: SnapshotMeta) {
        let body = Body::Snapshot(Box::new(meta));
        let message = Box::new(Message { from: key.from, to: key.to, term, body });
        let worker = shared.worker();
        self.host.workers[worker].command(Command::Deliver { shared, from, message });
    }

    /// The first chunk of a stream: a receive job takes it from here, unless it is of no use, a newer one is on its way, or there is
    /// no room.
    fn begin(
        self: &Arc<Self>,
        from: HostId,
        key: &ChunkKey,
        shared: Arc<GroupShared>,
        meta: SnapshotMeta,
        chunk: &Chunk,
    ) -> Result<(), ChunkOutcome> {
        if !is_of_use(&shared, &meta) {
            tracing::debug!(group = %chunk.group, replica = %shared.replica, index = %meta.pos.index, "a snapshot of what is here already is refused");
            if !shared.witness {
                // Raft takes nothing of it either, and tells the leader how far this replica is: else it would be sent again and again.
                self.deliver(shared, from, key, chunk.term, meta);
            }
            return Err(ChunkOutcome::Refused);
        }
        let mut streams = self.receives.streams.lock();
        if let Some(old) = streams.get(&chunk.group) {
            if old.stream_id == chunk.stream_id && old.from == from {
                return Ok(());
            }
            let newer = (chunk.term, meta.pos.index) > (old.term, old.meta.pos.index);
            if !newer && !plant::is("older-stream-replaces") {
                return Err(ChunkOutcome::Refused);
            }
            sometimes!("stream-replaced-by-a-newer");
            old.replaced.store(true, Ordering::Relaxed);
        } else if streams.len() >= self.host.config.snapshot_receives_max {
            return Err(ChunkOutcome::Busy);
        }
        let index = meta.pos.index;
        tracing::debug!(group = %chunk.group, replica = %shared.replica, from = %chunk.from, %index, "snapshot reception begins");
        let stream = Arc::new(Receive {
            from,
            stream_id: chunk.stream_id,
            term: chunk.term,
            meta,
            chunks: Mutex::default(),
            received: AtomicU64::new(0),
            replaced: AtomicBool::new(false),
        });
        streams.insert(chunk.group, Arc::clone(&stream));
        drop(streams);
        let total = (chunk.total > 0).then_some(chunk.total);
        let (group, direction) = (chunk.group, Direction::Receiving);
        let info = TransferInfo { group, direction, peer: chunk.from, host: from, index, bytes: 0, total };
        self.spawner.spawn(Box::new(ReceiveJob {
            io: Arc::clone(self),
            underway: Underway::begin(&shared, info),
            shared,
            stream,
            key: *key,
            from,
            total: chunk.total,
            file: None,
            moved: self.host.clock.now(),
            finishing: false,
            ended: false,
        }));
        Ok(())
    }
}

/// Whether the replica could do anything with this snapshot: a witness has no state, and what is committed here needs none,
/// but for a replica that has lost what it would go on from.
fn is_of_use(shared: &GroupShared, meta: &SnapshotMeta) -> bool {
    let published = &shared.published;
    let is_new = meta.pos.index.0 > published.commit.load(Ordering::Relaxed);
    let wanted = is_new || published.needs_snapshot.load(Ordering::Relaxed);
    (wanted || plant::is("stale-stream-taken")) && !shared.witness
}

/// What names a stream in its answers.
#[derive(Clone, Copy, Debug)]
struct ChunkKey {
    group: GroupId,
    epoch: GroupEpoch,
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
    file: Option<IncomingSnapshot>,
    underway: Underway,
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
        let bytes = self.file.take().map_or(0, |file| file.received());
        if outcome == ChunkOutcome::Done {
            self.io.receives.finish(self.key.stream_id, bytes);
        }
        self.io.answer(self.from, &self.key, bytes, outcome);
        JobState::Done
    }

    fn take(&mut self) -> Result<JobState, SnapshotError> {
        if self.file.is_none() {
            // What is being removed has the name that this one will have.
            if self.io.is_removing(self.key.group, self.stream.meta.pos.index) {
                return Ok(JobState::Blocked);
            }
            let key = TransferKey { group: self.key.group, pos: self.stream.meta.pos, total_bytes: self.total };
            self.file = Some(IncomingSnapshot::begin(&self.io.store, self.shared.replica, key)?);
        }
        let now = self.io.host.clock.now();
        let file = self.file.as_mut().expect("just begun");
        if self.finishing {
            return file.finish();
        }
        let chunk = {
            let mut waiting = self.stream.chunks.lock();
            let Some(bytes) = waiting.chunks.front().map(|c| c.data.len()) else { return Ok(JobState::Blocked) };
            if !self.io.receives.pace.let_through(now, bytes) {
                return Ok(JobState::Blocked);
            }
            waiting.bytes -= bytes as u64;
            waiting.chunks.pop_front().expect("just seen")
        };
        file.append(chunk.offset, &chunk.data)?;
        self.moved = now;
        let received = file.received();
        self.finishing = file.is_complete();
        self.stream.received.store(received, Ordering::Relaxed);
        self.underway.moved(received);
        self.io.answer(self.from, &self.key, received, ChunkOutcome::Accepted);
        Ok(JobState::Again)
    }

    /// Whether the file is what was announced, and what this replica can go on from.
    fn is_as_announced(&self) -> bool {
        let Some(header) = self.file.as_ref().and_then(|f| f.header()) else { return false };
        let announced = (self.key.group, self.key.epoch, &self.stream.meta);
        let same = (header.group, header.epoch, &header.meta) == announced;
        (same && header.content == Content::Full && header.kind == self.shared.kind) || plant::is("invalid-file-taken")
    }

    /// The files are durable: only now raft hears of the snapshot. What was announced must be what the file says.
    fn hand_over(&mut self) -> JobState {
        let meta = self.stream.meta.clone();
        if !self.is_as_announced() {
            tracing::warn!(group = %self.key.group, replica = %self.shared.replica, index = %meta.pos.index, from = %self.from, "snapshot file is not what was announced");
            return self.end(ChunkOutcome::Refused);
        }
        let bytes = self.file.as_ref().map_or(0, IncomingSnapshot::received);
        self.io.received.lock().insert((self.key.group, meta.pos.index), bytes);
        tracing::debug!(group = %self.key.group, replica = %self.shared.replica, index = %meta.pos.index, bytes, "snapshot received");
        let shared = Arc::clone(&self.shared);
        self.io.deliver(shared, self.from, &self.key, self.stream.term, meta);
        self.end(ChunkOutcome::Done)
    }
}

impl Job for ReceiveJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let gone = self.shared.is_closed() || self.io.host.closing.load(Ordering::Relaxed);
        let stalled = !self.finishing && self.io.host.clock.now().nanos_since(self.moved) > STALL_NANOS;
        if gone || stalled || self.stream.replaced.load(Ordering::Relaxed) {
            return self.end(ChunkOutcome::Refused);
        }
        match self.take() {
            Ok(JobState::Done) => self.hand_over(),
            Ok(state) => state,
            Err(error) => {
                let index = self.stream.meta.pos.index;
                tracing::warn!(group = %self.key.group, replica = %self.shared.replica, %index, from = %self.from, %error, "snapshot transfer refused");
                self.end(ChunkOutcome::Refused)
            }
        }
    }
}
