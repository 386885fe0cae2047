//! Tasks of an apply worker whose thread may be replaced at any moment.

use crate::Case;
use crate::apply::{ApplyInbox, ApplyItem, ApplyTask, MachineJob, Round, replace, round};
use crate::notify::Notifier;
use crate::shared::GroupShared;
use crate::wakes::LONG;
use longboat_raft::{GroupId, ReplicaId};
use shuttle::thread;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

pub const CASES: &[Case] = &[
    (tasks_are_done_once_and_in_order, &["woken-before-it-is-left", "looked-before-it-sleeps"]),
    (what_follows_a_job_waits_for_it, &["task-during-recover"]),
    (a_group_is_in_one_pair_of_hands, &["hanging-group-not-busy", "replaced-runner-goes-on"]),
    (
        a_job_that_ends_while_its_runner_is_replaced_holds_up_nothing,
        &["wait-for-an-ended-job", "waiting-group-held-twice"],
    ),
];

/// Two groups of one apply worker.
struct World {
    inbox: ApplyInbox,
    groups: [Group; 2],
    left: AtomicU32,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

struct Group {
    shared: Arc<GroupShared>,
    /// Somebody has the state machine.
    held: AtomicBool,
    next: AtomicU32,
}

impl World {
    fn new(items: u32) -> Arc<Self> {
        let group = |n| Group {
            shared: Arc::new(GroupShared { group: GroupId(n), replica: ReplicaId(1) }),
            held: AtomicBool::new(false),
            next: AtomicU32::new(0),
        };
        let (inbox, groups) = (ApplyInbox::new(Notifier::new()), [group(0), group(1)]);
        Arc::new(Self { inbox, groups, left: AtomicU32::new(items), threads: Mutex::default() })
    }

    fn spawn(self: &Arc<Self>, act: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let world = Arc::clone(self);
        let spawned = thread::spawn(move || act(&world));
        self.threads.lock().unwrap().push(spawned);
    }

    /// A call of the group's state machine.
    fn call(&self, shared: &Arc<GroupShared>, number: u32) {
        let group = &self.groups[shared.group.0 as usize];
        assert!(!group.held.swap(true, Ordering::SeqCst), "{shared:?} is in two pairs of hands");
        thread::yield_now();
        assert_eq!(group.next.fetch_add(1, Ordering::SeqCst), number, "of {shared:?}");
        group.held.store(false, Ordering::SeqCst);
        self.left.fetch_sub(1, Ordering::SeqCst);
    }

    fn begin_job(self: &Arc<Self>, shared: &Arc<GroupShared>, number: u32) {
        let shared = Arc::clone(shared);
        self.spawn(move |world| {
            world.call(&shared, number);
            world.inbox.job_done(shared, MachineJob::Alone);
        });
    }

    /// Rounds, until all is done or the runner was replaced.
    fn run(self: &Arc<Self>, runner: u64) {
        self.inbox.notifier.attach(None);
        loop {
            self.inbox.notifier.take();
            let step = |shared: &Arc<GroupShared>, n| self.call(shared, n);
            let ended = round(&self.inbox, runner, &step, &|shared, n| self.begin_job(shared, n));
            if self.left.load(Ordering::SeqCst) == 0 {
                // A successor may sleep.
                return self.inbox.notifier.notify();
            }
            if ended == Round::Replaced {
                return;
            }
            self.inbox.notifier.park(LONG);
        }
    }

    /// A group's items, each a task.
    fn leave(&self, group: usize, items: Vec<ApplyItem>) {
        for item in items {
            let shared = Arc::clone(&self.groups[group].shared);
            self.inbox.push(&mut vec![ApplyTask { shared, items: vec![item] }]);
        }
    }

    /// Replaces the runner in each call that is seen, up to so many times.
    fn guard(self: &Arc<Self>, looks: u32) {
        for _ in 0..looks {
            thread::yield_now();
            let Some(runner) = self.inbox.current().and_then(|call| replace(&self.inbox, call)) else { continue };
            self.spawn(move |world| world.run(runner));
        }
    }

    /// Lives through this: what each group is given, with so many looks of the guard.
    fn live(items: [Vec<ApplyItem>; 2], looks: u32) {
        let world = Self::new(items.iter().map(Vec::len).sum::<usize>() as u32);
        for (group, items) in items.into_iter().enumerate() {
            world.spawn(move |world| world.leave(group, items));
        }
        world.spawn(|world| world.run(0));
        world.spawn(move |world| world.guard(looks));
        // Threads begin others before they end.
        while let Some(thread) = { world.threads.lock().unwrap().pop() } {
            thread.join().unwrap();
        }
        assert_eq!(world.left.load(Ordering::SeqCst), 0, "all is done");
    }
}

fn steps(count: u32) -> Vec<ApplyItem> {
    (0..count).map(ApplyItem::Step).collect()
}

fn tasks_are_done_once_and_in_order() {
    World::live([steps(3), steps(2)], 0);
}

fn what_follows_a_job_waits_for_it() {
    World::live([vec![ApplyItem::Step(0), ApplyItem::Job(1), ApplyItem::Step(2)], steps(1)], 0);
}

fn a_group_is_in_one_pair_of_hands() {
    World::live([steps(3), steps(2)], 4);
}

fn a_job_that_ends_while_its_runner_is_replaced_holds_up_nothing() {
    World::live([vec![ApplyItem::Job(0), ApplyItem::Job(1), ApplyItem::Step(2)], steps(1)], 4);
}
