//! A group as its clients hold it: typed, cheap to clone, usable from any thread.

use longboat_engine::{GroupShared, SnapshotOutcome};
use longboat_raft::{GroupId, Index, Membership, ReplicaId, Term};
use longboat_rsm::{AnyReads, Pending, PendingBatch, Reads, RequestError, StateMachine};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

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
        let deadline = self.shared.deadline_after(timeout);
        let mut parts = self.shared.enqueue::<S>(std::iter::once(command), deadline)?;
        let (completion, slots) = parts.pop().expect("one command, one part");
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
        let deadline = self.shared.deadline_after(timeout);
        self.shared.enqueue::<S>(commands.into_iter(), deadline).map(PendingBatch::new)
    }

    /// Reads linearizably: the answer reflects every proposal that was completed before this call. Works on any replica.
    ///
    /// # Errors
    /// [`RequestError::Busy`] at once when too many reads wait; or that the replica takes no more requests.
    pub fn read(&self, query: S::Query, timeout: Duration) -> Result<Pending<S::Answer>, RequestError> {
        let deadline = self.shared.deadline_after(timeout);
        let (completion, slots) = self.shared.enqueue_reads::<S>(std::iter::once(query), deadline)?;
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
        let deadline = self.shared.deadline_after(timeout);
        self.shared.enqueue_reads::<S>(queries.into_iter(), deadline).map(|part| PendingBatch::new(vec![part]))
    }

    /// Asks for an index at which a linearizable read may be made here, any number of times, with [`Group::local_read`].
    /// Resolves when this replica has applied that index.
    ///
    /// # Errors
    /// As [`Group::read`].
    pub fn read_index(&self, timeout: Duration) -> Result<Pending<Index>, RequestError> {
        self.shared.enqueue_read_index(self.shared.deadline_after(timeout))
    }

    /// Reads this replica's state, which reflects everything through `at`: an index from [`Group::read_index`], or one
    /// at which something was seen to be applied. Runs on the calling thread.
    ///
    /// # Errors
    /// [`RequestError::NotApplied`] when this replica is not there yet, the state machine's, or that the replica takes no
    /// more requests.
    pub fn local_read(&self, at: Index, query: S::Query) -> Result<S::Answer, RequestError> {
        let applied = Index(self.shared.published.applied.load(Ordering::Acquire));
        if applied < at {
            return Err(RequestError::NotApplied { asked: at, applied });
        }
        self.stale_read(query)
    }

    /// Waits until this replica has applied `index`, which may be one that no entry has yet. Resolves with how far it
    /// has applied.
    ///
    /// # Errors
    /// As [`Group::read`].
    pub fn wait_applied(&self, index: Index, timeout: Duration) -> Result<Pending<Index>, RequestError> {
        self.shared.enqueue_wait(index, self.shared.deadline_after(timeout))
    }

    /// Reads this replica's state as it is: it may lag behind, by any amount. Runs on the calling thread.
    ///
    /// # Errors
    /// The state machine's, or that the replica takes no more requests.
    pub fn stale_read(&self, query: S::Query) -> Result<S::Answer, RequestError> {
        self.shared.check_open()?;
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
        self.shared.enqueue_snapshot(self.shared.deadline_after(timeout))
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
