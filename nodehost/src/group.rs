//! A group as its clients hold it: typed, cheap to clone, usable from any thread.

use crate::replica::Replica;
use longboat_engine::GroupShared;
use longboat_raft::{Index, ProposeOptions};
use longboat_rsm::{AnyReads, Machine, Pending, PendingBatch, Reads, RequestError};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A group with a replica on this host, and the state machine `S`. What does not depend on the state machine is in
/// [`Replica`], and can be called on this too.
pub struct Group<S: Machine> {
    replica: Replica,
    machine: PhantomData<fn() -> S>,
}

impl<S: Machine> Clone for Group<S> {
    fn clone(&self) -> Self {
        Self { replica: self.replica.clone(), machine: PhantomData }
    }
}

impl<S: Machine> std::fmt::Debug for Group<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("group", &self.id()).finish_non_exhaustive()
    }
}

impl<S: Machine> Deref for Group<S> {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        &self.replica
    }
}

impl<S: Machine> Group<S> {
    pub(crate) fn new(shared: Arc<GroupShared>) -> Self {
        Self { replica: Replica { shared }, machine: PhantomData }
    }

    /// Proposes a command. Works on any replica: it is forwarded to the leader. The result is the state machine's,
    /// from this host's replica; when it is there, the command is durable on a majority and applied here.
    ///
    /// # Errors
    /// [`RequestError::Busy`] at once when the group's queue is full; or that the replica takes no more requests.
    pub fn propose(&self, command: S::Command, timeout: Duration) -> Result<Pending<S::Output>, RequestError> {
        self.propose_with(command, ProposeOptions::default(), timeout)
    }

    /// As [`Group::propose`], for databases that evaluate a command on the leader: it may be refused where it would be
    /// forwarded ([`RequestError::NotLeader`]), or appended in another term than the one that it was evaluated in
    /// ([`RequestError::TermChanged`]). Then it was not applied and never will be.
    ///
    /// # Errors
    /// As [`Group::propose`].
    pub fn propose_with(
        &self,
        command: S::Command,
        options: ProposeOptions,
        timeout: Duration,
    ) -> Result<Pending<S::Output>, RequestError> {
        let deadline = self.shared.deadline_after(timeout);
        let mut parts = self.shared.enqueue::<S>(std::iter::once(command), options, deadline)?;
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
        self.propose_batch_with(commands, ProposeOptions::default(), timeout)
    }

    /// As [`Group::propose_batch`], with the options of [`Group::propose_with`] for each of the commands.
    ///
    /// # Errors
    /// As [`Group::propose`].
    pub fn propose_batch_with<I>(
        &self,
        commands: I,
        options: ProposeOptions,
        timeout: Duration,
    ) -> Result<PendingBatch<S::Output>, RequestError>
    where
        I: IntoIterator<Item = S::Command>,
        I::IntoIter: ExactSizeIterator,
    {
        let deadline = self.shared.deadline_after(timeout);
        self.shared.enqueue::<S>(commands.into_iter(), options, deadline).map(PendingBatch::new)
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

    /// Reads this replica's state, which reflects everything through `at`: an index from [`Replica::read_index`], or one
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

    /// Reads this replica's state as it is: it may lag behind, by any amount. Runs on the calling thread.
    ///
    /// # Errors
    /// The state machine's, or that the replica takes no more requests.
    pub fn stale_read(&self, query: S::Query) -> Result<S::Answer, RequestError> {
        self.shared.check_open()?;
        let mut reads = Reads::<S>::new();
        let pending = reads.add(query);
        self.shared.lookup(None, Box::new(reads) as Box<dyn AnyReads>);
        pending.wait()
    }
}
