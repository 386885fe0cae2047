//! Tasks of an apply worker whose thread may be replaced at any moment.

use crate::Case;
use crate::apply::{ApplyInbox, ApplyItem, ApplyTask, MachineJob, Machines, Round, give_back_late, replace, round};
use crate::notify::Notifier;
use crate::shared::GroupShared;
use crate::wakes::LONG;
use longboat_raft::{GroupId, ReplicaId};
use shuttle::thread;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

pub const CASES: &[Case] = &[
    (
        "tasks_are_done_once_and_in_order",
        tasks_are_done_once_and_in_order,
        &["woken-before-it-is-left", "looked-before-it-sleeps"],
    ),
    ("what_follows_a_job_waits_for_it", what_follows_a_job_waits_for_it, &["task-during-recover"]),
    ("what_is_done_alone_waits_for_views", what_is_done_alone_waits_for_views, &["task-during-recover"]),
    (
        "a_view_that_ends_while_its_runner_is_replaced_holds_up_nothing",
        a_view_that_ends_while_its_runner_is_replaced_holds_up_nothing,
        &["waiting-group-held-twice"],
    ),
    (
        "a_group_is_in_one_pair_of_hands",
        a_group_is_in_one_pair_of_hands,
        &["hanging-group-not-busy", "replaced-runner-goes-on"],
    ),
    (
        "a_group_is_given_back_by_who_has_it",
        a_group_is_given_back_by_who_has_it,
        &["group-of-another-runner-given-back"],
    ),
    (
        "a_job_that_ends_while_its_runner_is_replaced_holds_up_nothing",
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
    views: AtomicU32,
}

impl World {
    fn new(items: u32) -> Arc<Self> {
        let group = |n| Group {
            shared: Arc::new(GroupShared { group: GroupId(n), replica: ReplicaId(1) }),
            held: AtomicBool::new(false),
            next: AtomicU32::new(0),
            views: AtomicU32::new(0),
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

    /// Rounds, until all is done or the runner was replaced.
    fn run(self: &Arc<Self>, runner: u64) {
        self.inbox.notifier.attach(None);
        loop {
            self.inbox.notifier.take();
            let ended = round(&self.inbox, runner, self);
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

impl Machines for Arc<World> {
    fn step(&self, shared: &Arc<GroupShared>, number: u32) {
        self.call(shared, number);
    }

    fn begin_job(&self, shared: &Arc<GroupShared>, number: u32) {
        let shared = Arc::clone(shared);
        self.spawn(move |world| {
            world.call(&shared, number);
            world.inbox.job_done(shared, MachineJob::Alone);
        });
    }

    fn begin_view(&self, shared: &Arc<GroupShared>) {
        let shared = Arc::clone(shared);
        self.groups[shared.group.0 as usize].views.fetch_add(1, Ordering::SeqCst);
        self.spawn(move |world| {
            thread::yield_now();
            world.groups[shared.group.0 as usize].views.fetch_sub(1, Ordering::SeqCst);
            world.inbox.job_done(shared, MachineJob::SavedView);
        });
    }

    fn has_no_view(&self, shared: &Arc<GroupShared>) {
        let views = &self.groups[shared.group.0 as usize].views;
        assert_eq!(views.load(Ordering::SeqCst), 0, "of {shared:?}");
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

fn what_is_done_alone_waits_for_views() {
    let items = vec![ApplyItem::View(0), ApplyItem::Step(1), ApplyItem::Alone(2), ApplyItem::Step(3)];
    World::live([items, steps(1)], 0);
}

fn a_view_that_ends_while_its_runner_is_replaced_holds_up_nothing() {
    let items = vec![ApplyItem::View(0), ApplyItem::Alone(1), ApplyItem::View(2), ApplyItem::Alone(3)];
    World::live([items, steps(1)], 4);
}

fn a_group_is_in_one_pair_of_hands() {
    World::live([steps(3), steps(2)], 4);
}

/// Rare by chance: the first runner does nothing for as long as its successor hangs.
fn a_group_is_given_back_by_who_has_it() {
    let world = World::new(0);
    world.spawn(|world| drop(world.inbox.in_use()));
    give_back_late(&world.inbox, &world.groups[0].shared);
}

fn a_job_that_ends_while_its_runner_is_replaced_holds_up_nothing() {
    World::live([vec![ApplyItem::Job(0), ApplyItem::Job(1), ApplyItem::Step(2)], steps(1)], 4);
}
