//! Where tasks are left for an apply worker.
//!
//! Invariants: nothing that was left is lost or taken twice; tasks of one group, which one step worker leaves, are taken in
//! that order; the worker is woken for what is left after that is there.

use super::lane::{Lane, Next};
use super::{ApplyTask, Call, MachineJob};
use crate::notify::Notifier;
use crate::shared::GroupShared;
use crate::sync::Mutex;
use longboat_raft::{GroupId, ReplicaId};
use std::sync::Arc;

/// The inbox of one apply worker.
pub struct ApplyInbox {
    tasks: Mutex<Vec<ApplyTask>>,
    done: Mutex<Vec<(Arc<GroupShared>, MachineJob)>>,
    pub(super) lane: Lane,
    /// Wakes the worker.
    pub notifier: Arc<Notifier>,
}

impl std::fmt::Debug for ApplyInbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplyInbox").field("call", &self.lane.call()).finish_non_exhaustive()
    }
}

impl ApplyInbox {
    /// An empty inbox.
    pub fn new(notifier: Arc<Notifier>) -> Self {
        Self { tasks: Mutex::new(Vec::new()), done: Mutex::new(Vec::new()), lane: Lane::default(), notifier }
    }

    /// Leaves tasks; `tasks` is empty after.
    pub fn push(&self, tasks: &mut Vec<ApplyTask>) {
        self.notifier.after(|| {
            let mut inbox = self.tasks.lock();
            if inbox.is_empty() {
                std::mem::swap(&mut *inbox, tasks);
            } else {
                inbox.append(tasks);
            }
        });
    }

    /// A save or recover of this group's state machine has ended.
    pub fn job_done(&self, shared: Arc<GroupShared>, job: MachineJob) {
        self.notifier.after(|| self.done.lock().push((shared, job)));
    }

    /// Takes what was left into the lane. Returns whether there was anything; `None` when `runner` was replaced.
    pub(super) fn refill(&self, runner: u64) -> Option<bool> {
        self.lane.refill(runner, &self.tasks, &self.done)
    }

    /// What the runner is to do next.
    pub(super) fn next(&self, runner: u64) -> Next {
        self.lane.next(runner)
    }

    /// Nobody takes what is here any more.
    pub fn clear(&self) {
        let (tasks, done) = (std::mem::take(&mut *self.tasks.lock()), std::mem::take(&mut *self.done.lock()));
        drop((tasks, done));
        self.lane.clear();
    }

    /// The call that the worker is in, if it is in one.
    pub(crate) fn current(&self) -> Option<Call> {
        self.lane.call()
    }

    /// The replicas whose state machines are in somebody's hands.
    pub fn in_use(&self) -> Vec<(GroupId, ReplicaId)> {
        let mut in_use = self.lane.in_use();
        // Jobs that have ended, without a round of the worker since then.
        let done = self.done.lock();
        in_use.retain(|&(group, replica)| !done.iter().any(|(s, _)| (s.group, s.replica) == (group, replica)));
        in_use
    }
}
