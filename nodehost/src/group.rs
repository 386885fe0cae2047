//! A group as its clients hold it: typed, cheap to clone, usable from any thread.

use longboat_engine::queue::{Chunk, Deadlines, Inbox, ReadChunk};
use longboat_engine::shared::reason;
use longboat_engine::{GroupShared, SnapshotOutcome, SnapshotRequest};
use longboat_raft::{EntryKind, GroupId, Index, Membership, ReplicaId, RunBuilder, Term, Time};
use longboat_rsm::{
    AnyCompletion, AnyReads, Codec, Completion, Pending, PendingBatch, Reads, RequestError, StateMachine,
};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Entries of one chunk: what a run may hold.
const CHUNK_ENTRIES_MAX: usize = longboat_raft::run::RUN_ENTRIES_MAX;

/// The leader of a group, as this replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The leader.
    pub replica: ReplicaId,
    /// Its term.
    pub term: Term,
}

/// Figures of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// Its term.
    pub term: Term,
    /// The leader that it knows.
    pub leader: Option<ReplicaId>,
    /// Its commit index.
    pub commit: Index,
    /// Through where its state machine has applied.
    pub applied: Index,
    /// The first entry that its log keeps.
    pub first_index: Index,
    /// The last entry of its log.
    pub last_index: Index,
    /// The index of its newest snapshot; zero if it has none.
    pub snapshot_index: Index,
    /// Snapshots saved since it started.
    pub snapshots_saved: u64,
    /// Snapshots installed from a leader since it started.
    pub snapshots_installed: u64,
    /// Entries truncated from its log since it started.
    pub entries_truncated: u64,
}

/// How to take a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotOptions {}

/// A group with a replica on this host, and the state machine `S`.
pub struct Group<S: StateMachine> {
    shared: Arc<GroupShared>,
    machine: PhantomData<fn() -> S>,
}

impl<S: StateMachine> Clone for Group<S> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.shared))
    }
}

impl<S: StateMachine> std::fmt::Debug for Group<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("group", &self.shared.group).finish_non_exhaustive()
    }
}

type Part<T> = (Arc<Completion<T>>, Range<u32>);

/// What a queue was like before a batch, to go back to when one of its commands is refused.
struct Mark {
    chunks: usize,
    last: Option<(usize, usize)>,
    entries: usize,
    bytes: usize,
    sequence: u64,
}

impl<S: StateMachine> Group<S> {
    pub(crate) fn new(shared: Arc<GroupShared>) -> Self {
        Self { shared, machine: PhantomData }
    }

    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.shared.group
    }

    /// The replica on this host.
    pub fn replica(&self) -> ReplicaId {
        self.shared.replica
    }

    /// Proposes a command. Works on any replica: it is forwarded to the leader. The result is the state machine's,
    /// from this host's replica; when it is there, the command is durable on a majority and applied here.
    ///
    /// # Errors
    /// [`RequestError::Busy`] at once when the group's queue is full; or that the replica takes no more requests.
    pub fn propose(&self, command: S::Command, timeout: Duration) -> Result<Pending<S::Output>, RequestError> {
        let (completion, slots) =
            self.enqueue(std::iter::once(command), timeout)?.pop().expect("one command, one part");
        Ok(Pending::new(completion, slots.start))
    }

    /// Proposes many commands with one completion. They keep their order. All are taken or none.
    ///
    /// # Errors
    /// As [`Group::propose`].
    pub fn propose_batch<I>(&self, commands: I, timeout: Duration) -> Result<PendingBatch<S::Output>, RequestError>
    where
        I: IntoIterator<Item = S::Command>,
        I::IntoIter: ExactSizeIterator,
    {
        self.enqueue(commands.into_iter(), timeout).map(PendingBatch::new)
    }

    fn check_open(&self) -> Result<(), RequestError> {
        if let Some(error) = self.shared.refusal() {
            return Err(error);
        }
        let host = &self.shared.host;
        if host.has_failed.load(Ordering::Relaxed) {
            return Err(RequestError::HostFailed(host.failed.lock().clone().unwrap_or_default()));
        }
        if host.closing.load(Ordering::Relaxed) { Err(RequestError::Stopped) } else { Ok(()) }
    }

    /// The moment at which a request that is made now gives up: on the next full millisecond, so that requests that
    /// arrive together share it.
    fn deadline(&self, timeout: Duration) -> Time {
        const TICK: u64 = 1_000_000;
        let at = self.shared.host.clock.now().plus_nanos(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
        Time(at.0.saturating_add(TICK - 1) / TICK * TICK)
    }

    fn enqueue(
        &self,
        commands: impl ExactSizeIterator<Item = S::Command>,
        timeout: Duration,
    ) -> Result<Vec<Part<S::Output>>, RequestError> {
        self.check_open()?;
        let deadline = self.deadline(timeout);
        let config = &self.shared.host.config;
        let mut parts = Vec::with_capacity(1);
        {
            let mut slot = self.shared.inbox.lock();
            let inbox = slot.get_or_insert_with(Box::default);
            if inbox.entries + commands.len() > config.queue_entries_max || inbox.bytes > config.queue_bytes_max {
                return Err(RequestError::Busy);
            }
            let mark = self.mark(inbox);
            for command in commands {
                if let Err(error) = self.add(inbox, &command, deadline, &mut parts) {
                    self.rollback(inbox, &mark);
                    return Err(error);
                }
            }
        }
        if !parts.is_empty() {
            self.shared.ready(reason::QUEUE);
        }
        // Whoever closed the replica meanwhile may have emptied the queue before this request was in it.
        if self.shared.is_closed.load(Ordering::SeqCst) {
            self.fail_queue();
        }
        Ok(parts)
    }

    fn add(
        &self,
        inbox: &mut Inbox,
        command: &S::Command,
        deadline: Time,
        parts: &mut Vec<Part<S::Output>>,
    ) -> Result<(), RequestError> {
        let full = |c: &Chunk| {
            c.builder.encoded_len() >= longboat_engine::config::CHUNK_BYTES_MAX
                || c.builder.count() >= CHUNK_ENTRIES_MAX
        };
        let sequence = self.shared.sequence.load(Ordering::Relaxed);
        if inbox.chunks.back().is_none_or(full) {
            inbox.chunks.push_back(Chunk {
                builder: RunBuilder::new(),
                completion: Completion::<S::Output>::new(),
                first_sequence: sequence,
                deadlines: Deadlines::default(),
            });
        }
        let chunk = inbox.chunks.back_mut().expect("just made sure");
        let slot = chunk.builder.count() as u32;
        let limit = self.shared.host.config.payload_bytes_max;
        let bytes = chunk
            .builder
            .push_with(EntryKind::Command, sequence, limit, |out| command.encode(out))
            .map_err(|bytes| RequestError::PayloadTooLarge { bytes, limit })?;
        chunk.deadlines.note(slot, deadline);
        inbox.entries += 1;
        inbox.bytes += bytes;
        self.shared.sequence.store(sequence + 1, Ordering::Relaxed);
        match parts.last_mut() {
            Some((_, slots)) if slots.end == slot && slot > 0 => slots.end += 1,
            _ => parts.push((typed(&chunk.completion), slot..slot + 1)),
        }
        Ok(())
    }

    fn mark(&self, inbox: &Inbox) -> Mark {
        Mark {
            chunks: inbox.chunks.len(),
            last: inbox.chunks.back().map(|c| (c.builder.count(), c.builder.payload_bytes())),
            entries: inbox.entries,
            bytes: inbox.bytes,
            sequence: self.shared.sequence.load(Ordering::Relaxed),
        }
    }

    fn rollback(&self, inbox: &mut Inbox, mark: &Mark) {
        inbox.chunks.truncate(mark.chunks);
        if let (Some(chunk), Some((count, bytes))) = (inbox.chunks.back_mut(), mark.last) {
            chunk.builder.truncate(count, bytes);
            chunk.deadlines.forget_from(count as u32);
        }
        inbox.entries = mark.entries;
        inbox.bytes = mark.bytes;
        self.shared.sequence.store(mark.sequence, Ordering::Relaxed);
    }

    fn fail_queue(&self) {
        let error = self.shared.refusal().unwrap_or(RequestError::Stopped);
        if let Some(inbox) = self.shared.inbox.lock().take() {
            for chunk in &inbox.chunks {
                chunk.fail(&error);
            }
            if let Some(chunk) = inbox.reads {
                chunk.reads.fail(&error);
            }
            if let Some(request) = inbox.snapshot {
                request.complete(Err(error));
            }
        }
    }

    /// Reads linearizably: the answer reflects every proposal that was completed before this call. Works on any replica.
    ///
    /// # Errors
    /// [`RequestError::Busy`] at once when too many reads wait; or that the replica takes no more requests.
    pub fn read(&self, query: S::Query, timeout: Duration) -> Result<Pending<S::Answer>, RequestError> {
        let (completion, slots) = self.enqueue_reads(std::iter::once(query), timeout)?;
        Ok(Pending::new(completion, slots.start))
    }

    /// Reads many queries at one applied index, with one completion. See [`Group::read`].
    ///
    /// # Errors
    /// As [`Group::read`].
    pub fn read_batch<I>(&self, queries: I, timeout: Duration) -> Result<PendingBatch<S::Answer>, RequestError>
    where
        I: IntoIterator<Item = S::Query>,
        I::IntoIter: ExactSizeIterator,
    {
        self.enqueue_reads(queries.into_iter(), timeout).map(|part| PendingBatch::new(vec![part]))
    }

    fn enqueue_reads(
        &self,
        queries: impl ExactSizeIterator<Item = S::Query>,
        timeout: Duration,
    ) -> Result<Part<S::Answer>, RequestError> {
        self.check_open()?;
        let deadline = self.deadline(timeout);
        let count = queries.len();
        let part = {
            let mut slot = self.shared.inbox.lock();
            let inbox = slot.get_or_insert_with(Box::default);
            let chunk = inbox.reads.get_or_insert_with(|| ReadChunk {
                reads: Box::new(Reads::<S>::new()),
                deadlines: Deadlines::default(),
            });
            if chunk.reads.len() + count > self.shared.host.config.queue_reads_max {
                return Err(RequestError::Busy);
            }
            let reads: &mut Reads<S> = chunk.reads.as_any_mut().downcast_mut().expect("made by this handle's type");
            let (completion, first) = reads.add_many(queries);
            chunk.deadlines.note(first, deadline);
            (completion, first..first + count as u32)
        };
        self.shared.ready(reason::QUEUE);
        if self.shared.is_closed.load(Ordering::SeqCst) {
            self.fail_queue();
        }
        Ok(part)
    }

    /// Reads this replica's state as it is: it may lag behind, by any amount. Runs on the calling thread.
    ///
    /// # Errors
    /// The state machine's, or that the replica takes no more requests.
    pub fn stale_read(&self, query: S::Query) -> Result<S::Answer, RequestError> {
        self.check_open()?;
        let mut reads = Reads::<S>::new();
        let pending = reads.add(query);
        self.shared.machine.lock().lookup(Box::new(reads) as Box<dyn AnyReads>);
        pending.wait()
    }

    /// Asks for a snapshot of this replica. The log is truncated behind it.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when a request waits already; or that the replica takes no more requests.
    pub fn request_snapshot(
        &self,
        options: SnapshotOptions,
        timeout: Duration,
    ) -> Result<Pending<SnapshotOutcome>, RequestError> {
        let SnapshotOptions {} = options;
        self.check_open()?;
        let (pending, completion) = Pending::single();
        {
            let mut slot = self.shared.inbox.lock();
            let inbox = slot.get_or_insert_with(Box::default);
            if inbox.snapshot.is_some() {
                return Err(RequestError::Busy);
            }
            inbox.snapshot = Some(SnapshotRequest::user(completion, self.deadline(timeout)));
        }
        self.shared.ready(reason::QUEUE);
        if self.shared.is_closed.load(Ordering::SeqCst) {
            self.fail_queue();
        }
        Ok(pending)
    }

    /// The leader that this replica knows, without asking anybody.
    pub fn leader(&self) -> Option<Leader> {
        self.shared.leader().map(|(term, replica)| Leader { replica, term })
    }

    /// Whether this replica takes itself for the leader.
    pub fn is_leader(&self) -> bool {
        self.shared.leader().is_some_and(|(_, replica)| replica == self.shared.replica)
    }

    /// The membership in effect at this replica.
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.shared.membership.lock())
    }

    /// Figures of this replica, without asking anybody. They are read one after the other, not at one moment.
    pub fn info(&self) -> GroupInfo {
        let p = &self.shared.published;
        let index = |cell: &std::sync::atomic::AtomicU64| Index(cell.load(Ordering::Acquire));
        GroupInfo {
            group: self.shared.group,
            replica: self.shared.replica,
            term: Term(p.term.load(Ordering::Acquire)),
            leader: self.shared.leader().map(|l| l.1),
            commit: index(&p.commit),
            applied: index(&p.applied),
            first_index: index(&p.start).next(),
            last_index: index(&p.last),
            snapshot_index: index(&p.snapshot),
            snapshots_saved: p.counters.saved.load(Ordering::Relaxed),
            snapshots_installed: p.counters.installed.load(Ordering::Relaxed),
            entries_truncated: p.counters.truncated.load(Ordering::Relaxed),
        }
    }

    /// A hash of the replica's state, if its state machine has one, and the index at which it was taken.
    pub fn state_hash(&self) -> Option<(Index, u64)> {
        let machine = self.shared.machine.lock();
        let index = Index(self.shared.published.applied.load(Ordering::Acquire));
        machine.state_hash().map(|hash| (index, hash))
    }
}

fn typed<T: Send + 'static>(completion: &Arc<dyn AnyCompletion>) -> Arc<Completion<T>> {
    let any: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(completion).into_any();
    any.downcast().expect("made by this handle's type")
}
