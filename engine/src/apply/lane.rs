//! What an apply worker has to do, apart from the thread that does it.
//!
//! A state machine may hang, and the thread that called it hangs with it. So what an apply worker knows is in a lane, and who
//! works on the lane, its *runner*, holds none of it while it calls a state machine. A runner whose call lasts too long is
//! replaced by another, on a spare thread, which takes the next task in its place.
//!
//! Invariants:
//! - One runner owns a lane. It takes each task in the section of the lane's lock in which it is seen to own it: whoever was
//!   replaced takes none.
//! - A group is in one pair of hands. The section that replaces a runner also marks the group that it called as busy; what
//!   comes for that group waits there, and only the replaced runner takes it, when its call has returned.
//! - A group's order is kept: what waits for a busy group came after what its runner had taken, and what that hands
//!   back (because a job of the pool is to end first) goes in front of it.
//! - The lock is never held while a state machine is called, or dropped.
//!
//! It costs the steady path one lock a task, which nobody else wants but a watch that looks twice a second: no clock is read.

use super::{ApplyItem, ApplyTask, MachineJob};
use crate::shared::GroupShared;
use crate::sync::Mutex;
use longboat_raft::{GroupId, ReplicaId, plant};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A replica, by its name and by its place in memory: one that was stopped and started again is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    place: usize,
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
}

impl Who {
    /// Good for as long as somebody holds the replica.
    pub(crate) fn of(shared: &Arc<GroupShared>) -> Self {
        Self { place: Arc::as_ptr(shared) as usize, group: shared.group, replica: shared.replica }
    }
}

/// Who has a group's state machine for itself.
enum Holder {
    /// A job of the pool: a recovery, or a save under the machine's lock.
    Job(Arc<GroupShared>),
    /// Nobody, but there are views of it, and what comes next waits until none is left.
    Views(Arc<GroupShared>),
    /// A runner that was replaced while it called the state machine. It holds the replica.
    Runner {
        /// The runner's number.
        of: u64,
        /// A job that it began has ended before it came to wait for that.
        job_ended: bool,
    },
}

struct Busy {
    who: Who,
    holder: Holder,
    waiting: VecDeque<ApplyItem>,
}

#[derive(Default)]
struct State {
    /// The number of the runner that owns the lane.
    owner: u64,
    /// Tasks begun.
    begun: u64,
    /// The replica that the task begun last is for, until that is done.
    current: Option<Who>,
    tasks: VecDeque<ApplyTask>,
    busy: Vec<Busy>,
    /// Replicas of which a view is being saved.
    saving: Vec<Arc<GroupShared>>,
    /// Replicas of which a view is being sent, and what ends that.
    streaming: Vec<(Arc<GroupShared>, Arc<AtomicBool>)>,
}

/// What a runner is to do next.
pub(super) enum Next {
    /// This.
    Task(ApplyTask),
    /// Nothing: all is done.
    Nothing,
    /// Nothing ever: another runner owns the lane.
    Replaced,
}

/// The call that a lane's runner is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The number of the task.
    pub(super) begun: u64,
    /// The replica that it is for.
    pub(crate) who: Who,
}

/// What an apply worker has to do.
#[derive(Default)]
pub(super) struct Lane(Mutex<State>);

impl State {
    fn busy_at(&self, who: Who) -> Option<usize> {
        self.busy.iter().position(|busy| busy.who == who)
    }

    fn has_views(&self, shared: &Arc<GroupShared>) -> bool {
        let streaming = self.streaming.iter().find(|s| Arc::ptr_eq(&s.0, shared));
        if let Some((_, stop)) = streaming {
            stop.store(true, Ordering::Relaxed);
        }
        streaming.is_some() || self.saving.iter().any(|saving| Arc::ptr_eq(saving, shared))
    }

    /// What waits for this group is the next to be done.
    fn resume(&mut self, at: usize) {
        let Busy { holder, waiting, who } = self.busy.swap_remove(at);
        match holder {
            Holder::Job(shared) | Holder::Views(shared) => {
                self.tasks.push_front(ApplyTask { shared, items: waiting.into() });
            }
            Holder::Runner { .. } => unreachable!("{who:?} is resumed by its own runner"),
        }
    }

    fn job_done(&mut self, shared: &Arc<GroupShared>, job: MachineJob) {
        match job {
            MachineJob::SavedView => self.saving.retain(|saving| !Arc::ptr_eq(saving, shared)),
            MachineJob::Streamed => self.streaming.retain(|streaming| !Arc::ptr_eq(&streaming.0, shared)),
            MachineJob::Alone => {}
        }
        let Some(at) = self.busy_at(Who::of(shared)) else { return };
        match &mut self.busy[at].holder {
            // Its runner looks whether it still has to wait.
            Holder::Runner { job_ended, .. } => *job_ended |= job == MachineJob::Alone,
            Holder::Job(_) if job != MachineJob::Alone => {}
            Holder::Job(_) | Holder::Views(_) => self.resume(at),
        }
    }

    /// These wait until `holder` is done with the group's state machine.
    fn wait(&mut self, who: Who, items: VecDeque<ApplyItem>, holder: Holder) {
        match self.busy_at(who) {
            Some(at) => {
                let busy = &mut self.busy[at];
                let later = std::mem::replace(&mut busy.waiting, items);
                busy.waiting.extend(later);
                busy.holder = holder;
            }
            None => self.busy.push(Busy { who, holder, waiting: items }),
        }
    }
}

impl Lane {
    /// Takes what came for the lane. Returns whether anything did; `None` when `runner` was replaced.
    pub(super) fn refill(
        &self,
        runner: u64,
        tasks: &Mutex<Vec<ApplyTask>>,
        done: &Mutex<Vec<(Arc<GroupShared>, MachineJob)>>,
    ) -> Option<bool> {
        let ended;
        let any = {
            let mut lane = self.0.lock();
            if lane.owner != runner {
                return None;
            }
            ended = std::mem::take(&mut *done.lock());
            if lane.tasks.is_empty() {
                // The buffers go round between who leaves tasks and who takes them.
                let mut buffer = Vec::from(std::mem::take(&mut lane.tasks));
                std::mem::swap(&mut *tasks.lock(), &mut buffer);
                lane.tasks = VecDeque::from(buffer);
            } else {
                lane.tasks.extend(tasks.lock().drain(..));
            }
            for (shared, job) in &ended {
                lane.job_done(shared, *job);
            }
            !lane.tasks.is_empty() || !ended.is_empty()
        };
        // Outside of the lock: it may be the last handle on a replica.
        drop(ended);
        Some(any)
    }

    /// The task before this one is done; the next one is begun.
    pub(super) fn next(&self, runner: u64) -> Next {
        let mut lane = self.0.lock();
        if lane.owner != runner && !plant::is("replaced-runner-goes-on") {
            return Next::Replaced;
        }
        while let Some(mut task) = lane.tasks.pop_front() {
            let who = Who::of(&task.shared);
            if let Some(at) = lane.busy_at(who)
                && !plant::is("task-during-recover")
            {
                lane.busy[at].waiting.extend(task.items.drain(..));
                continue;
            }
            lane.begun += 1;
            lane.current = Some(who);
            return Next::Task(task);
        }
        lane.current = None;
        Next::Nothing
    }

    /// The call that the owner is in.
    pub(super) fn call(&self) -> Option<Call> {
        let lane = self.0.lock();
        lane.current.map(|who| Call { begun: lane.begun, who })
    }

    /// Replaces the runner that is in this call, if it still is. Returns the number of its successor. A group that its runner has left
    /// to a job is in no call any more.
    pub(super) fn replace(&self, call: Call) -> Option<u64> {
        let mut lane = self.0.lock();
        // A group that waits for a job or for views is out of its runner's hands, which is about to take the next task: marked as
        // that runner's a second time, it would be given back once, and wait for ever.
        if lane.busy_at(call.who).is_some() && !plant::is("waiting-group-held-twice") {
            return None;
        }
        if lane.begun != call.begun || lane.current.take_if(|who| *who == call.who).is_none() {
            return None;
        }
        if !plant::is("hanging-group-not-busy") {
            let holder = Holder::Runner { of: lane.owner, job_ended: false };
            lane.busy.push(Busy { who: call.who, holder, waiting: VecDeque::new() });
        }
        lane.owner += 1;
        Some(lane.owner)
    }

    /// Takes over a lane whose runner was replaced in another one, and so is not at work on this one.
    pub(super) fn take_over(&self) -> u64 {
        let mut lane = self.0.lock();
        assert_eq!(lane.current, None, "a runner is in one lane at a time");
        lane.owner += 1;
        lane.owner
    }

    /// A replaced runner has done what it had taken for its group: what has come for that meanwhile. With nothing more, or if
    /// a job goes on with it, the group is the lane's owner's again. That one may have begun with it since, and may have been replaced
    /// in turn: then it is in that runner's hands, and not this one's to give.
    pub(super) fn give_back(&self, runner: u64, shared: &Arc<GroupShared>) -> Option<Vec<ApplyItem>> {
        let mut lane = self.0.lock();
        let at = lane.busy_at(Who::of(shared))?;
        let is_own = |of: u64| of == runner || plant::is("group-of-another-runner-given-back");
        if !matches!(lane.busy[at].holder, Holder::Runner { of, .. } if is_own(of)) {
            return None;
        }
        if !lane.busy[at].waiting.is_empty() {
            return Some(std::mem::take(&mut lane.busy[at].waiting).into());
        }
        lane.busy.swap_remove(at);
        None
    }

    /// The group waits until the job that was just begun has given its state machine back. Returns the items if that has happened
    /// already.
    pub(super) fn wait_for_job(
        &self,
        shared: &Arc<GroupShared>,
        items: VecDeque<ApplyItem>,
    ) -> Option<VecDeque<ApplyItem>> {
        let (mut lane, who) = (self.0.lock(), Who::of(shared));
        if let Some(at) = lane.busy_at(who)
            && let Holder::Runner { job_ended, .. } = &mut lane.busy[at].holder
            && std::mem::take(job_ended)
            && !plant::is("wait-for-an-ended-job")
        {
            return Some(items);
        }
        lane.wait(who, items, Holder::Job(Arc::clone(shared)));
        None
    }

    /// The group waits until no view of its state machine is left; one that is being sent is asked to end. Returns the items if
    /// there is none.
    pub(super) fn wait_for_views(
        &self,
        shared: &Arc<GroupShared>,
        items: VecDeque<ApplyItem>,
    ) -> Option<VecDeque<ApplyItem>> {
        let mut lane = self.0.lock();
        if !lane.has_views(shared) {
            return Some(items);
        }
        lane.wait(Who::of(shared), items, Holder::Views(Arc::clone(shared)));
        None
    }

    /// Whether a view of the state machine is being saved.
    pub(super) fn is_saving(&self, shared: &Arc<GroupShared>) -> bool {
        self.0.lock().saving.iter().any(|saving| Arc::ptr_eq(saving, shared))
    }

    /// A view of the state machine is about to be saved.
    pub(super) fn saves(&self, shared: &Arc<GroupShared>) {
        self.0.lock().saving.push(Arc::clone(shared));
    }

    /// Whether a view of the state machine is being sent.
    pub(super) fn is_streaming(&self, shared: &Arc<GroupShared>) -> bool {
        self.0.lock().streaming.iter().any(|streaming| Arc::ptr_eq(&streaming.0, shared))
    }

    /// A view of the state machine is about to be sent; `stop` ends that.
    pub(super) fn streams(&self, shared: &Arc<GroupShared>, stop: &Arc<AtomicBool>) {
        self.0.lock().streaming.push((Arc::clone(shared), Arc::clone(stop)));
    }

    /// The replicas whose state machines are in somebody's hands: of a call, of a runner that was replaced, or of jobs.
    pub(super) fn in_use(&self) -> Vec<(GroupId, ReplicaId)> {
        let lane = self.0.lock();
        let calls = lane.current.iter().copied();
        let held = lane.busy.iter().filter(|busy| !matches!(busy.holder, Holder::Views(_))).map(|busy| busy.who);
        let views = lane.saving.iter().chain(lane.streaming.iter().map(|s| &s.0)).map(Who::of);
        calls.chain(held).chain(views).map(|who| (who.group, who.replica)).collect()
    }

    /// Lets go of all that is to be done: nobody does it any more.
    pub(super) fn clear(&self) {
        let mut lane = self.0.lock();
        let mut waiting: Vec<_> = lane.busy.iter_mut().map(|busy| std::mem::take(&mut busy.waiting)).collect();
        let gone = (std::mem::take(&mut lane.tasks), waiting.drain(..).flatten().collect::<Vec<_>>());
        drop(lane);
        drop(gone);
    }
}
