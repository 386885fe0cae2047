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
}

impl ApplyItem {
    pub const fn number(&self) -> u32 {
        match self {
            Self::Step(n) | Self::Job(n) => *n,
        }
    }
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

/// As an apply worker's round. `step` does an item; `job` begins one, which is over when the inbox was told so.
pub fn round(
    inbox: &ApplyInbox,
    runner: u64,
    step: &dyn Fn(&Arc<GroupShared>, u32),
    job: &dyn Fn(&Arc<GroupShared>, u32),
) -> Round {
    let run = |shared: &Arc<GroupShared>, items: Vec<ApplyItem>| {
        let mut items = VecDeque::from(items);
        while let Some(item) = items.pop_front() {
            match item {
                ApplyItem::Step(n) => step(shared, n),
                ApplyItem::Job(n) => {
                    job(shared, n);
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
                    while let Some(items) = inbox.lane.give_back(&shared) {
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
