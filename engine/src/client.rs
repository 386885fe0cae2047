//! What a group's clients do, on their own threads: they leave requests in its queue and get what to wait on.
//!
//! One implementation for the public API and for the simulator's clients. Invariants: all of a call is taken or none; a
//! request that is in the queue when the replica closes is resolved, by whoever comes second: the worker that empties the
//! queue, or the client that finds the replica closed after it left something. Must not know: raft state.

use crate::config::CHUNK_BYTES_MAX;
use crate::queue::{Chunk, Deadlines, Extras, Inbox, ReadChunk};
use crate::request::{Rare, Reply};
use crate::shared::{Command, GroupShared, reason};
use crate::snapshot::{SnapshotOptions, SnapshotOutcome, SnapshotRequest};
use bytes::BytesMut;
use longboat_raft::{EntryKind, Index, PayloadCodec, ProposeOptions, RunBuilder, SessionCall, Time, plant};
use longboat_rsm::packed::PackedBatch;
use longboat_rsm::snapshot::Compression;
use longboat_rsm::{
    AnyCompletion, Codec, Completion, IndexReads, Machine, Pending, Reads, RequestError, SnapshotRefusal,
};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Rare requests of one group that may wait for its worker.
const RARE_WAITING_MAX: u32 = 1024;

/// Slots of one completion.
pub type Part<T> = (Arc<Completion<T>>, Range<u32>);

/// What a queue was like before a batch, to go back to when one of its commands is refused.
pub(crate) struct Mark {
    chunks: usize,
    last: Option<(usize, usize)>,
    entries: usize,
    bytes: usize,
    sequence: u64,
}

/// What a command's entry will have.
pub(crate) enum Body<'a, C> {
    /// What its codec writes.
    Plain(&'a C),
    /// This, which was made before and is within the limit.
    Packed(PayloadCodec, &'a [u8]),
}

impl GroupShared {
    /// Why a new request can't be taken, if so.
    ///
    /// # Errors
    /// The replica is closed, or its host has failed or closes.
    pub fn check_open(&self) -> Result<(), RequestError> {
        if let Some(error) = self.refusal() {
            return Err(error);
        }
        let host = &self.host;
        if host.has_failed.load(Ordering::Relaxed) {
            return Err(RequestError::HostFailed(host.failed.lock().clone().unwrap_or_default()));
        }
        if host.closing.load(Ordering::Relaxed) { Err(RequestError::Stopped) } else { Ok(()) }
    }

    /// The moment at which a request that is made now gives up: on the next full millisecond, so that requests that
    /// arrive together share it.
    pub fn deadline_after(&self, timeout: Duration) -> Time {
        const TICK: u64 = 1_000_000;
        let at = self.host.clock.now().plus_nanos(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
        Time(at.0.saturating_add(TICK - 1) / TICK * TICK)
    }

    /// Leaves commands for a state machine of type `S`, which the replica must have. They keep their order.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when the queue is full, a command that is too large, or that the replica takes no requests.
    pub fn enqueue<S: Machine>(
        &self,
        commands: impl ExactSizeIterator<Item = S::Command>,
        options: ProposeOptions,
        deadline: Time,
    ) -> Result<Vec<Part<S::Output>>, RequestError> {
        self.check_open()?;
        if self.host.has_no_memory() {
            return Err(RequestError::Busy);
        }
        if let Some(error) = self.host.space.refuses_commands() {
            return Err(error);
        }
        let mut parts = Vec::with_capacity(1);
        let mut commands = commands;
        let count = commands.len();
        // Without the lock: it takes longer than all the rest, and the group's worker may want the queue meanwhile.
        let packed = self.packed::<S>(&mut commands)?;
        {
            let mut slot = self.inbox.lock();
            let inbox = slot.get_or_insert_with(Box::default);
            self.check_room(inbox, count)?;
            let mark = self.mark(inbox);
            if count > 0 && inbox.chunks.back().is_some_and(|c| c.options != options) {
                self.begin_chunk::<S>(inbox, options);
            }
            let mut left = count;
            let mut add = |body: Body<'_, S::Command>| {
                let added = self.add::<S>(inbox, body, None, options, deadline, &mut parts);
                added.inspect_err(|_| self.rollback(inbox, &mark))?;
                left -= 1;
                self.expect_more(inbox, left);
                Ok(())
            };
            match &packed {
                None => commands.try_for_each(|command| add(Body::Plain(&command)))?,
                Some(packed) => packed.payloads().try_for_each(|p| add(Body::Packed(p.0, p.1)))?,
            }
        }
        if !parts.is_empty() {
            self.tell_worker();
        }
        Ok(parts)
    }

    /// Whether so many more entries may wait.
    pub(crate) fn check_room(&self, inbox: &Inbox, entries: usize) -> Result<(), RequestError> {
        let config = &self.host.config;
        let full = inbox.entries + entries > config.queue_entries_max || inbox.bytes > config.queue_bytes_max;
        if full { Err(RequestError::Busy) } else { Ok(()) }
    }

    /// The commands compressed, in a group that wants that.
    pub(crate) fn packed<S: Machine>(
        &self,
        commands: &mut dyn Iterator<Item = S::Command>,
    ) -> Result<Option<PackedBatch>, RequestError> {
        if self.entry_compression == Compression::None {
            return Ok(None);
        }
        let (mut batch, mut raw) = (PackedBatch::default(), BytesMut::new());
        for command in commands {
            self.pack_one(&mut batch, &mut raw, &command)?;
        }
        Ok(Some(batch))
    }

    /// Adds a command to those that are compressed.
    pub(crate) fn pack_one<C: Codec>(
        &self,
        batch: &mut PackedBatch,
        raw: &mut BytesMut,
        command: &C,
    ) -> Result<(), RequestError> {
        let limit = self.host.config.payload_bytes_max;
        raw.clear();
        command.encode(raw);
        if raw.len() > limit {
            return Err(RequestError::PayloadTooLarge { bytes: raw.len(), limit });
        }
        batch.add(self.entry_compression, raw);
        Ok(())
    }

    /// Adds a command, which belongs to a session if `call` says so.
    pub(crate) fn add<S: Machine>(
        &self,
        inbox: &mut Inbox,
        body: Body<'_, S::Command>,
        call: Option<SessionCall>,
        options: ProposeOptions,
        deadline: Time,
        parts: &mut Vec<Part<S::Output>>,
    ) -> Result<(), RequestError> {
        let entries_max = self.host.config.chunk_entries_max;
        let full =
            |c: &Chunk| c.closed || c.builder.encoded_len() >= CHUNK_BYTES_MAX || c.builder.count() >= entries_max;
        let sequence = self.sequence.load(Ordering::Relaxed);
        if inbox.chunks.back().is_none_or(full) {
            self.begin_chunk::<S>(inbox, options);
        }
        let chunk = inbox.chunks.back_mut().expect("just made sure");
        let slot = chunk.builder.count() as u32;
        let limit = self.host.config.payload_bytes_max;
        let pushed = match (body, call) {
            (Body::Plain(c), None) => chunk.builder.push_with(EntryKind::Command, sequence, limit, |b| c.encode(b)),
            (Body::Plain(c), Some(call)) => chunk.builder.push_session_with(call, sequence, limit, |b| c.encode(b)),
            (Body::Packed(codec, payload), call) => {
                chunk.builder.push_coded(call, codec, sequence, payload);
                Ok(payload.len())
            }
        };
        let bytes = pushed.map_err(|bytes| RequestError::PayloadTooLarge { bytes, limit })?;
        chunk.deadlines.note(slot, deadline);
        inbox.entries += 1;
        inbox.bytes += bytes;
        self.sequence.store(sequence + 1, Ordering::Relaxed);
        match parts.last_mut() {
            Some((_, slots)) if slots.end == slot && slot > 0 => slots.end += 1,
            _ => parts.push((typed(&chunk.completion), slot..slot + 1)),
        }
        Ok(())
    }

    /// The open chunk has room for what follows in the same call, as far as that goes into it.
    fn expect_more(&self, inbox: &mut Inbox, commands: usize) {
        if commands > 0
            && let Some(chunk) = inbox.chunks.back_mut()
        {
            let entries = commands.min(self.host.config.chunk_entries_max.saturating_sub(chunk.builder.count()));
            chunk.builder.expect_more(entries, CHUNK_BYTES_MAX);
        }
    }

    pub(crate) fn begin_chunk<S: Machine>(&self, inbox: &mut Inbox, options: ProposeOptions) {
        inbox.chunks.push_back(Chunk {
            builder: RunBuilder::new(),
            completion: Completion::<S::Output>::new(),
            first_sequence: self.sequence.load(Ordering::Relaxed),
            deadlines: Deadlines::default(),
            options,
            closed: false,
        });
    }

    pub(crate) fn mark(&self, inbox: &Inbox) -> Mark {
        Mark {
            chunks: inbox.chunks.len(),
            last: inbox.chunks.back().map(|c| (c.builder.count(), c.builder.payload_bytes())),
            entries: inbox.entries,
            bytes: inbox.bytes,
            sequence: self.sequence.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn rollback(&self, inbox: &mut Inbox, mark: &Mark) {
        inbox.chunks.truncate(mark.chunks);
        if let (Some(chunk), Some((count, bytes))) = (inbox.chunks.back_mut(), mark.last) {
            chunk.builder.truncate(count, bytes);
            chunk.deadlines.forget_from(count as u32);
        }
        inbox.entries = mark.entries;
        inbox.bytes = mark.bytes;
        self.sequence.store(mark.sequence, Ordering::Relaxed);
    }

    /// Leaves queries for a state machine of type `S`, which the replica must have.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when too many wait, or that the replica takes no requests.
    pub fn enqueue_reads<S: Machine>(
        &self,
        queries: impl ExactSizeIterator<Item = S::Query>,
        deadline: Time,
    ) -> Result<Part<S::Answer>, RequestError> {
        self.check_open()?;
        let count = queries.len();
        let part = {
            let mut slot = self.inbox.lock();
            let inbox = slot.get_or_insert_with(Box::default);
            let chunk = inbox.reads.get_or_insert_with(|| ReadChunk {
                reads: Box::new(Reads::<S>::new()),
                deadlines: Deadlines::default(),
            });
            if chunk.reads.len() + count > self.host.config.queue_reads_max {
                return Err(RequestError::Busy);
            }
            let reads: &mut Reads<S> = chunk.reads.as_any_mut().downcast_mut().expect("made by this type's clients");
            let (completion, first) = reads.add_many(queries);
            chunk.deadlines.note(first, deadline);
            (completion, first..first + count as u32)
        };
        self.tell_worker();
        Ok(part)
    }

    /// Asks for a snapshot of this replica.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when a request waits already, options that do not go together, or that the replica takes no
    /// requests.
    pub fn enqueue_snapshot(
        &self,
        options: SnapshotOptions,
        deadline: Time,
    ) -> Result<Pending<SnapshotOutcome>, RequestError> {
        self.check_open()?;
        options.check().map_err(RequestError::SnapshotRefused)?;
        if self.witness && !plant::is("witness-saves") {
            return Err(RequestError::SnapshotRefused(SnapshotRefusal::Witness));
        }
        let (pending, completion) = Pending::single();
        {
            let mut slot = self.inbox.lock();
            let inbox = slot.get_or_insert_with(Box::default);
            if inbox.snapshot.is_some() && !plant::is("snapshot-slot-not-checked") {
                return Err(RequestError::Busy);
            }
            inbox.snapshot = Some(SnapshotRequest::user(self, options, completion, deadline));
        }
        let index = self.published.applied.load(Ordering::Relaxed);
        tracing::debug!(group = %self.group, replica = %self.replica, index, "snapshot requested");
        self.tell_worker();
        Ok(pending)
    }

    /// Aborts the snapshots of this replica that are asked for or under way, exports and the engine's own too: they end at
    /// the next block, and their requests with [`RequestError::SnapshotAborted`], unless they are done before. Returns
    /// whether there was any.
    pub fn abort_snapshots(&self) -> bool {
        let waiting = self.inbox.lock().as_mut().and_then(|inbox| inbox.snapshot.take());
        let waited = waiting.is_some();
        if let Some(request) = waiting {
            request.complete(Err(RequestError::SnapshotAborted));
        }
        self.stop_saves() || waited
    }

    /// Asks for an index at which a linearizable read may be made; answered when this replica has applied it.
    ///
    /// # Errors
    /// As [`GroupShared::enqueue_reads`].
    pub fn enqueue_read_index(&self, deadline: Time) -> Result<Pending<Index>, RequestError> {
        self.enqueue_extra(|extras| {
            let chunk = extras.index_reads.get_or_insert_with(index_chunk);
            add_index_read(chunk, deadline)
        })
    }

    /// Waits until this replica has applied `index`; answered with how far it has.
    ///
    /// # Errors
    /// As [`GroupShared::enqueue_reads`].
    pub fn enqueue_wait(&self, index: Index, deadline: Time) -> Result<Pending<Index>, RequestError> {
        self.enqueue_extra(|extras| {
            let mut chunk = index_chunk();
            let pending = add_index_read(&mut chunk, deadline);
            extras.waits.push((index, chunk));
            pending
        })
    }

    fn enqueue_extra<T>(&self, add: impl FnOnce(&mut Extras) -> T) -> Result<T, RequestError> {
        self.check_open()?;
        let pending = {
            let mut slot = self.inbox.lock();
            let extras = slot.get_or_insert_with(Box::default).extras.get_or_insert_with(Box::default);
            if extras.len() >= self.host.config.queue_reads_max {
                return Err(RequestError::Busy);
            }
            add(extras)
        };
        self.tell_worker();
        Ok(pending)
    }

    /// Leaves a request that is made seldom with the replica's worker.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when too many wait, or that the replica takes no requests.
    pub fn request<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Time,
        make: impl FnOnce(Reply<T>) -> Rare,
    ) -> Result<Pending<T>, RequestError> {
        self.check_open()?;
        if self.rare_waiting.fetch_add(1, Ordering::Relaxed) >= RARE_WAITING_MAX {
            self.rare_waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(RequestError::Busy);
        }
        let (pending, reply) = Reply::new(deadline);
        self.host.command(self.worker(), Command::Request(Arc::clone(self), make(reply)));
        Ok(pending)
    }

    pub(crate) fn tell_worker(&self) {
        self.ready(reason::QUEUE);
        // Whoever closed the replica meanwhile may have emptied the queue before this request was in it.
        if let Some((inbox, error)) = self.inbox.abandoned() {
            inbox.fail(&error);
        }
    }
}

fn index_chunk() -> ReadChunk {
    ReadChunk { reads: Box::new(IndexReads::new()), deadlines: Deadlines::default() }
}

fn add_index_read(chunk: &mut ReadChunk, deadline: Time) -> Pending<Index> {
    let reads: &mut IndexReads = chunk.reads.as_any_mut().downcast_mut().expect("made right here");
    let (slot, pending) = reads.add();
    chunk.deadlines.note(slot, deadline);
    pending
}

fn typed<T: Send + 'static>(completion: &Arc<dyn AnyCompletion>) -> Arc<Completion<T>> {
    let any: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(completion).into_any();
    any.downcast().expect("a group's completions are made by clients of its own type")
}
