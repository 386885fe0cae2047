//! Requests that are made seldom: leader transfers, membership changes, replacements, preferences.
//!
//! They go to the replica's worker as commands and not through the group's queue, so that a proposal pays nothing for them.
//! Invariant: a [`Reply`] is resolved once: by who carries the request out, or, when nobody can any more, by being dropped.

use crate::log_access::LogRequest;
use longboat_raft::{ConfigChange, Index, Member, Membership, ReplicaId, Term, Time};
use longboat_rsm::{Completion, Pending, RequestError, Stage};
use std::sync::Arc;

/// Leadership was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Who leads now.
    pub leader: ReplicaId,
    /// In this term.
    pub term: Term,
}

/// A membership change is in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// What the next change may say that it follows, to be refused if another one came between.
    pub change_id: Index,
    /// The membership.
    pub membership: Arc<Membership>,
}

/// A request on its way to the replica's worker.
#[derive(Debug)]
pub enum Rare {
    /// Hand leadership over.
    Transfer(ReplicaId, Reply<Transferred>),
    /// Change the membership.
    Change(ConfigChange, Reply<Changed>),
    /// Put a new replica in the place of another, step by step.
    Replace(Replacement, Reply<Changed>),
    /// Who is to lead when it can.
    Prefer(Option<ReplicaId>, Reply<()>),
    /// Something about the log.
    Log(LogRequest),
}

/// Which replica takes the place of which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The voter that goes.
    pub old: ReplicaId,
    /// The replica that comes.
    pub new: ReplicaId,
    /// Where it lives.
    pub member: Member,
}

/// Where the outcome of one request goes.
#[derive(Debug)]
pub struct Reply<T: Send + 'static> {
    results: Option<Arc<Completion<T>>>,
    /// When its client gives up.
    pub deadline: Time,
}

impl<T: Send + 'static> Reply<T> {
    /// A reply, and what its client waits on.
    pub fn new(deadline: Time) -> (Pending<T>, Self) {
        let (pending, results) = Pending::single();
        (pending, Self { results: Some(results), deadline })
    }

    /// Whether the outcome is open.
    pub fn is_open(&self) -> bool {
        self.results.is_some()
    }

    /// Tells the outcome. The first one counts.
    pub fn resolve(&mut self, outcome: Result<T, RequestError>) {
        if let Some(results) = self.results.take() {
            results.complete(0, std::iter::once(outcome));
        }
    }

    /// Ends the request if its deadline has passed.
    pub fn expire(&mut self, now: Time, stage: Stage, may_have_applied: bool) {
        if self.deadline <= now {
            self.resolve(Err(RequestError::Timeout { stage, may_have_applied }));
        }
    }
}

impl<T: Send + 'static> Drop for Reply<T> {
    /// A request that nobody carried out, because its replica or host is gone, is resolved all the same.
    fn drop(&mut self) {
        self.resolve(Err(RequestError::Stopped));
    }
}
