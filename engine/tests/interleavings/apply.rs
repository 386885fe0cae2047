//! The apply worker's inbox and lane, with tasks that are numbers.

use crate::shared::GroupShared;
pub use longboat_engine::apply::MachineJob;
use std::sync::Arc;

#[path = "../../src/apply/inbox.rs"]
mod inbox;
#[path = "../../src/apply/lane.rs"]
mod lane;

pub use inbox::ApplyInbox;
pub(crate) use lane::Call;
use lane::Next;
use std::collections::VecDeque;

/// One thing to do for a group.
#[derive(Debug)]
pub enum ApplyItem {
    /// It has this number.
    Step(u32),
    /// Likewise, and a job of the pool does it.
    Job(u32),
    /// Likewise, and a job saves a view of what is there then.
    View(u32),
    /// Likewise, and no view may be left.
    Alone(u32),
}

/// What a runner does for a group.
pub trait Machines {
    /// An item.
    fn step(&self, shared: &Arc<GroupShared>, number: u32);
    /// Begins a job that does an item, and tells the inbox when it has.
    fn begin_job(&self, shared: &Arc<GroupShared>, number: u32);
    /// Begins a job that has a view, and tells the inbox when it has it no more.
    fn begin_view(&self, shared: &Arc<GroupShared>);
    /// No view may be left.
    fn has_no_view(&self, shared: &Arc<GroupShared>);
}

/// Things to do for one group, in order.
#[derive(Debug)]
pub struct ApplyTask {
    pub shared: Arc<GroupShared>,
    pub items: Vec<ApplyItem>,
}

/// A runner's round is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Done,
    Replaced,
}

/// As an apply worker's round.
pub fn round(inbox: &ApplyInbox, runner: u64, machines: &impl Machines) -> Round {
    let run = |shared: &Arc<GroupShared>, items: Vec<ApplyItem>| {
        let mut items = VecDeque::from(items);
        while let Some(item) = items.pop_front() {
            match item {
                ApplyItem::Step(n) => machines.step(shared, n),
                ApplyItem::View(n) => {
                    machines.step(shared, n);
                    inbox.lane.saves(shared);
                    machines.begin_view(shared);
                }
                alone @ ApplyItem::Alone(n) => {
                    items.push_front(alone);
                    let Some(mut back) = inbox.lane.wait_for_views(shared, items) else { return };
                    back.pop_front();
                    items = back;
                    machines.has_no_view(shared);
                    machines.step(shared, n);
                }
                ApplyItem::Job(n) => {
                    machines.begin_job(shared, n);
                    let Some(back) = inbox.lane.wait_for_job(shared, items) else { return };
                    items = back;
                }
            }
        }
    };
    if inbox.refill(runner).is_none() {
        return Round::Replaced;
    }
    let mut before: Option<Arc<GroupShared>> = None;
    loop {
        match inbox.next(runner) {
            Next::Task(task) => {
                run(&task.shared, task.items);
                before = Some(task.shared);
            }
            Next::Nothing => return Round::Done,
            Next::Replaced => {
                if let Some(shared) = before {
                    while let Some(items) = inbox.lane.give_back(runner, &shared) {
                        run(&shared, items);
                    }
                }
                return Round::Replaced;
            }
        }
    }
}

/// Replaces the runner that is in this call, if it still is. Returns its successor.
pub(crate) fn replace(inbox: &ApplyInbox, call: Call) -> Option<u64> {
    inbox.lane.replace(call)
}

/// A replaced runner leaves its group to a job, which ends, and is not heard of until its successor was replaced in the same group.
pub fn give_back_late(inbox: &ApplyInbox, shared: &Arc<GroupShared>) {
    let items = |n| vec![ApplyItem::Step(n)];
    inbox.push(&mut (0..2).map(|n| ApplyTask { shared: Arc::clone(shared), items: items(n) }).collect());
    assert_eq!(inbox.refill(0), Some(true));
    assert!(matches!(inbox.next(0), Next::Task(_)));
    let one = replace(inbox, inbox.current().unwrap()).unwrap();
    assert!(inbox.lane.wait_for_job(shared, VecDeque::new()).is_none());
    inbox.job_done(Arc::clone(shared), MachineJob::Alone);
    assert_eq!(inbox.refill(one), Some(true));
    assert!(matches!(inbox.next(one), Next::Task(_)));
    let two = replace(inbox, inbox.current().unwrap()).unwrap();
    assert!(matches!(inbox.next(two), Next::Nothing));
    assert!(inbox.lane.give_back(0, shared).is_none(), "it has left the group to a job");
    let back = inbox.lane.give_back(one, shared).map(|items| items.len());
    assert_eq!((back, inbox.lane.give_back(one, shared).is_none()), (Some(1), true));
}
