//! The sending side of a snapshot transfer: one job, whose bytes come from a file or are made as they are sent.
//!
//! Invariants: what was sent is held until the receiver has it on its disk, so that a broken connection costs what was on the
//! way and nothing else, also for a snapshot that can't be made a second time; that is at most [`SNAPSHOT_WINDOW_BYTES`]. A
//! transfer without progress for [`STALL_NANOS`] is given up, and with it the state machine's view. A receiver without room is asked
//! again by an empty chunk for [`ROOM_NANOS`]; then the place goes to the next follower in line. However it ends, the leader's core
//! is told, once.

use crate::apply::MachineJob;
use crate::config::{SNAPSHOT_CHUNK_BYTES, SNAPSHOT_WINDOW_BYTES};
use crate::replica::Replica;
use crate::shared::{Command, GroupShared, reason};
use crate::snapshot::{Place, SnapshotIo};
use crate::transfers::{Direction, Pace, TransferInfo, Underway};
use ahash::AHashMap;
use bytes::Bytes;
use longboat_io::{Job, JobState, Progress};
use longboat_raft::{GroupId, HostId, ReplicaId, SnapshotMeta, Term, Time, plant, sometimes};
use longboat_rsm::snapshot::{Chunk as Piece, LiveSnapshot, OutgoingSnapshot, SnapshotError};
use longboat_transport::wire::{Chunk, ChunkOutcome, ChunkStatus};
use longboat_transport::{Lane, Sent};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// Nanoseconds without progress after which a transfer is given up.
pub(crate) const STALL_NANOS: u64 = 30_000_000_000;
/// Nanoseconds without the receiver's word after which what is on the way is sent again.
const RESEND_NANOS: u64 = 1_000_000_000;
/// Nanoseconds for which a receiver without room is asked again, and between two questions.
const ROOM_NANOS: u64 = 2_000_000_000;
const ASK_FOR_ROOM_NANOS: u64 = 50_000_000;

const OPEN: u8 = 0;
const TAKEN: u8 = 1;
const REFUSED: u8 = 2;

/// What the receiver has said of a stream.
#[derive(Debug)]
struct Answers {
    group: GroupId,
    to: ReplicaId,
    acked: AtomicU64,
    /// How often it spoke.
    words: AtomicU64,
    /// It has no room, and drops what comes: what it says of that counts for nothing.
    no_room: AtomicBool,
    outcome: AtomicU8,
}

/// The transfers that this host sends.
#[derive(Debug)]
pub(crate) struct Sends {
    next_id: AtomicU64,
    next_ticket: AtomicU64,
    running: AtomicUsize,
    answers: Mutex<AHashMap<u64, Arc<Answers>>>,
    pace: Pace,
    /// Groups with followers that wait until there is room.
    line: Mutex<VecDeque<Arc<GroupShared>>>,
}

impl Sends {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self {
            next_id: AtomicU64::new(0),
            next_ticket: AtomicU64::new(1),
            running: AtomicUsize::new(0),
            answers: Mutex::default(),
            pace: Pace::new(bytes_per_s),
            line: Mutex::default(),
        }
    }

    /// Joins the line of those that wait until there is room.
    pub(crate) fn join_line(&self, shared: &Arc<GroupShared>) {
        self.line.lock().push_back(Arc::clone(shared));
    }

    /// Gives as many groups a turn as there is room for. Called when room was made, and by whoever had a turn and may have made
    /// no use of it.
    pub(crate) fn next_in_line(&self, max: usize) {
        let room = max.saturating_sub(self.running.load(Ordering::Relaxed));
        let mut line = self.line.lock();
        line.retain(|shared| !shared.is_closed());
        let at = room.min(line.len());
        let next: Vec<_> = line.drain(..at).collect();
        drop(line);
        for shared in next {
            shared.ready(reason::MAY_SEND);
        }
    }

    /// The receiver of a stream says how far it is.
    pub(crate) fn status(&self, status: &ChunkStatus) {
        let Some(answers) = self.answers.lock().get(&status.stream_id).cloned() else { return };
        match status.outcome {
            ChunkOutcome::Busy => return answers.no_room.store(true, Ordering::Release),
            ChunkOutcome::Refused
                if answers.no_room.load(Ordering::Acquire) && !plant::is("dropped-taken-for-refused") =>
            {
                return;
            }
            _ => answers.no_room.store(false, Ordering::Release),
        }
        answers.acked.fetch_max(status.offset, Ordering::AcqRel);
        answers.words.fetch_add(1, Ordering::Relaxed);
        let outcome = match status.outcome {
            ChunkOutcome::Accepted | ChunkOutcome::Busy => return,
            ChunkOutcome::Done => TAKEN,
            ChunkOutcome::Refused => REFUSED,
        };
        let _ = answers.outcome.compare_exchange(OPEN, outcome, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Breaks a transfer off.
    pub(crate) fn abort(&self, group: GroupId, to: ReplicaId) {
        for answers in self.answers.lock().values().filter(|a| a.group == group && a.to == to) {
            let _ = answers.outcome.compare_exchange(OPEN, REFUSED, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// One of the host's places for transfers. Left once: when the transfer ends, or before, when the state machine hangs whose view it
/// sends.
pub(crate) struct SendPlace {
    io: Arc<SnapshotIo>,
    left: AtomicBool,
}

impl SendPlace {
    /// The place is somebody else's.
    pub(crate) fn leave(&self) {
        if !self.left.swap(true, Ordering::SeqCst) {
            self.io.sends.running.fetch_sub(1, Ordering::Relaxed);
            self.io.sends.next_in_line(self.io.host.config.snapshot_sends_max);
        }
    }
}

/// The right to send one snapshot to one follower. However it ends, also by being dropped, the leader's core is told.
pub struct SendTicket {
    io: Arc<SnapshotIo>,
    shared: Arc<GroupShared>,
    /// What tells the end of this transfer from that of an earlier one to the same follower.
    pub(crate) number: u64,
    pub(crate) to: ReplicaId,
    host: HostId,
    term: Term,
    pub(crate) meta: SnapshotMeta,
    /// Bytes of the file; `None` for what is made as it is sent.
    bytes: Option<u64>,
    place: Arc<SendPlace>,
    ended: bool,
}

impl SendTicket {
    /// Takes one of the host's places; `None` when it sends as many as it may.
    pub(crate) fn take(
        io: &Arc<SnapshotIo>,
        replica: &Replica,
        to: ReplicaId,
        host: HostId,
        (meta, bytes): (SnapshotMeta, Option<u64>),
    ) -> Option<Self> {
        let max = io.host.config.snapshot_sends_max;
        let free = |n: usize| (n < max).then_some(n + 1);
        io.sends.running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
        let (shared, term) = (Arc::clone(&replica.shared), replica.core.term());
        let number = io.sends.next_ticket.fetch_add(1, Ordering::Relaxed);
        let place = Arc::new(SendPlace { io: Arc::clone(io), left: AtomicBool::new(false) });
        Some(Self { io: Arc::clone(io), shared, number, to, host, term, meta, bytes, place, ended: false })
    }

    /// The transfer ended, or why it failed.
    pub(crate) fn end(&mut self, outcome: Result<(), Failed>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.place.leave();
        let (group, replica, index) = (self.shared.group, self.shared.replica, self.meta.pos.index);
        let ok = outcome.is_ok();
        match outcome {
            Ok(()) => tracing::info!(%group, %replica, to = %self.to, %index, "snapshot transfer done"),
            // The follower has gone on, or another snapshot is on its way: nothing that anybody had to look into.
            Err(why @ (Failed::Refused | Failed::NoRoom | Failed::Stopped)) => {
                tracing::info!(%group, %replica, to = %self.to, %index, ?why, "snapshot transfer failed");
            }
            Err(why) => tracing::warn!(%group, %replica, to = %self.to, %index, ?why, "snapshot transfer failed"),
        }
        if !ok && plant::is("failed-stream-unreported") {
            return;
        }
        let command = Command::SnapshotSent { shared: Arc::clone(&self.shared), to: self.to, number: self.number, ok };
        self.io.host.workers[self.shared.worker()].command(command);
    }

    /// Begins to send the snapshot's file.
    pub(crate) fn send_file(self) {
        let io = Arc::clone(&self.io);
        io.spawner.spawn(Box::new(SendJob::new(self, Source::File(None), None)));
    }

    /// Begins to send what is made as it is sent, until `stop` is set.
    pub(crate) fn send_live(self, live: LiveSnapshot, stop: Arc<AtomicBool>) {
        let (io, shared, place) = (Arc::clone(&self.io), Arc::clone(&self.shared), Arc::clone(&self.place));
        let job = SendJob::new(self, Source::Live(Box::new(live)), Some(stop));
        io.spawn_watched(&shared, Place::Send(place), job);
    }
}

impl Drop for SendTicket {
    fn drop(&mut self) {
        self.end(Err(Failed::Stopped));
    }
}

impl std::fmt::Debug for SendTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendTicket").field("to", &self.to).field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// Why a transfer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The receiver has no use for it, or the leader has another one for it.
    Refused,
    /// The receiver had no room for so long that somebody else is to have the place.
    NoRoom,
    /// The replica, the host or the job ends.
    Stopped,
    /// Without progress for [`STALL_NANOS`].
    Stalled,
    /// It could not be read.
    Unreadable,
}

/// How long a receiver has had no room, and when it is asked again.
#[derive(Clone, Copy, Debug)]
struct NoRoom {
    since: Time,
    ask_at: Time,
}

/// Where the bytes come from.
enum Source {
    /// A file, opened when the first chunk is due.
    File(Option<Box<OutgoingSnapshot>>),
    /// The state machine's view.
    Live(Box<LiveSnapshot>),
}

/// A chunk on its way.
struct Flying {
    end: u64,
    parts: Vec<Bytes>,
}

/// Sends one snapshot to one replica.
struct SendJob {
    ticket: SendTicket,
    stream_id: u64,
    answers: Arc<Answers>,
    source: Source,
    stop: Option<Arc<AtomicBool>>,
    flying: VecDeque<Flying>,
    /// How many of these were given to the transport.
    given: usize,
    made: u64,
    /// The length of the whole, where it is known.
    total: u64,
    all_made: bool,
    acked: u64,
    words: u64,
    /// When the receiver last spoke.
    moved: Time,
    /// When what is on the way is sent again.
    resend_at: Time,
    no_room: Option<NoRoom>,
    underway: Underway,
    /// Of the state machine whose view it sends.
    progress: Option<Arc<Progress>>,
}

impl Drop for SendJob {
    /// Also of a job that panicked, or that a closing pool drops.
    fn drop(&mut self) {
        let SendTicket { io, shared, .. } = &self.ticket;
        io.sends.answers.lock().remove(&self.stream_id);
        if self.stop.is_some() {
            // The view goes first: whoever waits for that may close the storage.
            self.source = Source::File(None);
            io.host.apply[shared.apply_worker].job_done(Arc::clone(shared), MachineJob::Streamed);
        }
    }
}

impl SendJob {
    fn new(ticket: SendTicket, source: Source, stop: Option<Arc<AtomicBool>>) -> Self {
        let io = &ticket.io;
        // The host's start is in the number, so that an answer to an earlier life's stream matches none.
        let stream_id = io.host.config.seed.wrapping_add(io.sends.next_id.fetch_add(1, Ordering::Relaxed));
        let (group, to, index) = (ticket.shared.group, ticket.to, ticket.meta.pos.index);
        let answers = Arc::new(Answers {
            group,
            to,
            acked: AtomicU64::new(0),
            words: AtomicU64::new(0),
            no_room: AtomicBool::new(false),
            outcome: AtomicU8::new(OPEN),
        });
        io.sends.answers.lock().insert(stream_id, Arc::clone(&answers));
        tracing::info!(%group, replica = %ticket.shared.replica, %to, %index, live = stop.is_some(), "snapshot transfer begins");
        let (direction, now) = (Direction::Sending, io.host.clock.now());
        let info = TransferInfo { group, direction, peer: to, host: ticket.host, index, bytes: 0, total: ticket.bytes };
        let underway = Underway::begin(&ticket.shared, info);
        let progress = match &source {
            Source::Live(live) => Some(Arc::clone(live.progress())),
            Source::File(_) => None,
        };
        Self {
            ticket,
            stream_id,
            answers,
            source,
            stop,
            flying: VecDeque::new(),
            given: 0,
            made: 0,
            total: 0,
            all_made: false,
            acked: 0,
            words: 0,
            moved: now,
            resend_at: now.plus_nanos(RESEND_NANOS),
            no_room: None,
            underway,
            progress,
        }
    }

    fn end(&mut self, outcome: Result<(), Failed>) -> JobState {
        self.ticket.end(outcome);
        JobState::Done
    }

    fn is_over(&self, now: Time) -> Option<Failed> {
        let stopped = self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed));
        let closed = self.ticket.shared.is_closed();
        let closing = self.ticket.io.host.closing.load(Ordering::Relaxed);
        let stalled = now.nanos_since(self.moved) > STALL_NANOS;
        sometimes!(stalled, "snapshot-transfer-stalled");
        match (stopped || closed || closing, stalled) {
            (true, _) => Some(Failed::Stopped),
            (_, true) => Some(Failed::Stalled),
            _ => None,
        }
    }

    /// The receiver has no room: it is asked again now and then. Who has waited for long gives the place to somebody whose receiver
    /// may have some, and comes back by the next heartbeat's answer. It is given up only when a question has had time to be answered:
    /// else the receiver might keep room for nobody.
    fn wait_for_room(&mut self, now: Time) -> JobState {
        sometimes!("receiver-without-room");
        let at = *self.no_room.get_or_insert(NoRoom { since: now, ask_at: now.plus_nanos(ASK_FOR_ROOM_NANOS) });
        // All of it goes again: nothing was taken.
        self.given = 0;
        if now < at.ask_at {
            return JobState::Blocked;
        }
        if now.nanos_since(at.since) > ROOM_NANOS {
            return self.end(Err(Failed::NoRoom));
        }
        self.no_room = Some(NoRoom { ask_at: now.plus_nanos(ASK_FOR_ROOM_NANOS), ..at });
        let question = self.chunk(Piece { offset: 0, data: Bytes::new(), last: false }, self.total);
        self.ticket.io.transport.send(self.ticket.host, Lane::Snapshot, &question.encode());
        JobState::Blocked
    }

    /// Lets go of what the receiver has.
    fn take_acks(&mut self, now: Time) {
        let (acked, words) = (self.answers.acked.load(Ordering::Acquire), self.answers.words.load(Ordering::Relaxed));
        if words != self.words {
            self.words = words;
            self.moved = now;
        }
        // No more than was sent, whatever the receiver says.
        let acked = acked.min(self.made);
        if acked > self.acked {
            self.acked = acked;
            self.resend_at = now.plus_nanos(RESEND_NANOS);
            while self.flying.front().is_some_and(|f| f.end <= acked) {
                self.flying.pop_front();
                self.given = self.given.saturating_sub(1);
            }
            self.underway.moved(acked);
        }
        // Nothing was heard for long: what is on the way may be lost. Where it is not, the receiver drops it.
        if self.given > 0 && now >= self.resend_at {
            self.given = 0;
            self.resend_at = now.plus_nanos(RESEND_NANOS);
            let SendTicket { shared, to, meta, .. } = &self.ticket;
            let (group, replica, index) = (shared.group, shared.replica, meta.pos.index);
            tracing::debug!(%group, %replica, %to, %index, from = acked, "snapshot transfer goes on");
        }
    }

    /// Gives the next chunk to the transport.
    fn give(&mut self, now: Time) -> JobState {
        let (io, next) = (&self.ticket.io, &self.flying[self.given]);
        let bytes = next.parts.iter().map(Bytes::len).sum();
        if !io.sends.pace.let_through(now, bytes) {
            return JobState::Blocked;
        }
        match io.transport.send(self.ticket.host, Lane::Snapshot, &next.parts) {
            Sent::Queued => {
                if self.given == 0 {
                    self.resend_at = now.plus_nanos(RESEND_NANOS);
                }
                self.given += 1;
                JobState::Again
            }
            // Worth another try until the stall limit: the lane drains.
            Sent::Full => JobState::Blocked,
            // The connection broke, and with it what was on the way; another one is being made.
            Sent::Unreachable => {
                self.given = 0;
                JobState::Blocked
            }
        }
    }

    fn next_piece(&mut self) -> Result<(Option<Piece>, u64), SnapshotError> {
        match &mut self.source {
            Source::Live(live) => Ok((live.next_chunk(SNAPSHOT_CHUNK_BYTES)?, 0)),
            Source::File(file) => {
                if file.is_none() {
                    let SendTicket { io, shared, meta, .. } = &self.ticket;
                    let opened = OutgoingSnapshot::open(&io.store, shared.group, shared.replica, meta.pos.index)?;
                    *file = Some(Box::new(opened));
                }
                let file = file.as_mut().expect("just opened");
                let total = file.key().total_bytes;
                Ok((file.next_chunk(SNAPSHOT_CHUNK_BYTES)?, total))
            }
        }
    }

    fn make(&mut self) -> Result<(), SnapshotError> {
        let (Some(piece), total) = self.next_piece()? else {
            self.all_made = true;
            return Ok(());
        };
        (self.all_made, self.total) = (piece.last, total);
        let end = piece.offset + piece.data.len() as u64;
        let parts = self.chunk(piece, total).encode().to_vec();
        self.made = end;
        self.flying.push_back(Flying { end, parts });
        Ok(())
    }

    fn chunk(&self, piece: Piece, total: u64) -> Chunk {
        let SendTicket { shared, to, term, meta, .. } = &self.ticket;
        Chunk {
            group: shared.group,
            epoch: shared.epoch,
            from: shared.replica,
            to: *to,
            term: *term,
            meta: (piece.offset == 0).then(|| Box::new(meta.clone())),
            stream_id: self.stream_id,
            offset: piece.offset,
            total,
            data: piece.data,
            last: piece.last,
        }
    }
}

impl Job for SendJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let now = self.ticket.io.host.clock.now();
        match self.answers.outcome.load(Ordering::Acquire) {
            TAKEN => return self.end(Ok(())),
            REFUSED => return self.end(Err(Failed::Refused)),
            _ => {}
        }
        if let Some(why) = self.is_over(now) {
            return self.end(Err(why));
        }
        if self.answers.no_room.load(Ordering::Acquire) {
            return self.wait_for_room(now);
        }
        self.no_room = None;
        self.take_acks(now);
        if self.given < self.flying.len() {
            return self.give(now);
        }
        if self.all_made || self.made - self.acked >= SNAPSHOT_WINDOW_BYTES {
            return JobState::Blocked;
        }
        match self.make() {
            Ok(()) => JobState::Again,
            Err(error) => {
                tracing::warn!(group = %self.ticket.shared.group, %error, "snapshot can't be read for sending");
                self.end(Err(Failed::Unreadable))
            }
        }
    }

    fn progress(&self) -> Option<&Arc<Progress>> {
        self.progress.as_ref()
    }
}
