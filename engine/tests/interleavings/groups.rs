//! What clients, pollers and other workers leave for a step worker.

use crate::Case;
use crate::client_queue::ClientQueue;
use crate::notify::Notifier;
use crate::ready::{ReadyFlags, SlotRef};
use crate::shared::InFrame;
use crate::wakes::LONG;
use crate::worker_inbox::WorkerInbox;
use bytes::Bytes;
use longboat_raft::HostId;
use longboat_transport::Lane;
use shuttle::thread;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

pub const CASES: &[Case] = &[
    (
        "requests_are_taken_once_and_in_order",
        requests_are_taken_once_and_in_order,
        &["looked-before-it-moved-in", "put-back-behind", "woken-before-it-is-left", "looked-before-it-sleeps"],
    ),
    ("no_reason_is_lost", no_reason_is_lost, &["looked-before-it-moved-in", "reasons-taken-in-two-steps"]),
    (
        "requests_beside_a_closing_are_resolved_once",
        requests_beside_a_closing_are_resolved_once,
        &["left-in-a-closed-queue"],
    ),
    (
        "commands_are_taken_once_and_in_order",
        commands_are_taken_once_and_in_order,
        &["command-flag-cleared-late", "woken-before-it-is-left", "looked-before-it-sleeps"],
    ),
    (
        "commands_of_a_worker_that_goes_are_let_go_of",
        commands_of_a_worker_that_goes_are_let_go_of,
        &["gone-asked-before-leaving"],
    ),
    (
        "frames_are_taken_in_order_and_within_their_bound",
        frames_are_taken_in_order_and_within_their_bound,
        &["frames-unbounded"],
    ),
];

const QUEUE: u32 = 1;
const OTHER: u32 = 2;
const AT: SlotRef = SlotRef { slot: 5, generation: 3 };

/// A command that tells when it is let go of.
pub struct Command(u32, Arc<AtomicU32>);

impl Drop for Command {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// One worker with one replica.
struct World {
    inbox: WorkerInbox,
    flags: ReadyFlags,
    queue: ClientQueue<Vec<u32>, &'static str>,
    /// Requests that came to their end, in that order, and how.
    ended: Mutex<Vec<(u32, &'static str)>>,
}

impl World {
    fn new() -> Arc<Self> {
        let (inbox, flags) = (WorkerInbox::new(Notifier::new()), ReadyFlags::new(0));
        Arc::new(Self { inbox, flags, queue: ClientQueue::default(), ended: Mutex::default() })
    }

    fn enlist(&self, place: Option<(usize, SlotRef)>) {
        if let Some((worker, at)) = place {
            assert_eq!((worker, at), (0, AT));
            self.inbox.ready(at);
        }
    }

    fn end(&self, requests: impl IntoIterator<Item = u32>, how: &'static str) {
        self.ended.lock().unwrap().extend(requests.into_iter().map(|r| (r, how)));
    }

    /// As a client of the engine does it.
    fn ask(&self, request: u32) {
        if let Some(error) = self.queue.refusal() {
            return self.end([request], error);
        }
        self.queue.lock().get_or_insert_with(Box::default).push(request);
        self.enlist(self.flags.set(QUEUE));
        if let Some((requests, error)) = self.queue.abandoned() {
            self.end(*requests, error);
        }
    }

    /// As a step worker does it: the replica moves in, and is visited whenever it is listed; each visit takes one request.
    fn work(&self, until: impl Fn(u32, usize) -> bool) {
        self.inbox.notifier.attach(None);
        self.enlist(self.flags.moved_in(AT));
        let mut seen = 0;
        loop {
            self.inbox.notifier.take();
            let mut ready = Vec::new();
            self.inbox.take_ready(&mut ready);
            for _ in &ready {
                seen |= self.flags.take();
                self.visit();
            }
            if until(seen, self.ended.lock().unwrap().len()) {
                return;
            }
            if ready.is_empty() {
                self.inbox.notifier.park(LONG);
            }
        }
    }

    fn visit(&self) {
        let Some(mut requests) = self.queue.take() else { return };
        self.end([requests.remove(0)], "done");
        if !requests.is_empty() {
            self.queue.put_back(requests, |older, newer| older.extend(newer));
            self.enlist(self.flags.set(QUEUE));
        }
    }
}

/// Two clients, of which each asks for so much.
fn clients(world: &Arc<World>, each: u32) -> Vec<thread::JoinHandle<()>> {
    let client = |n: u32| {
        let world = Arc::clone(world);
        thread::spawn(move || (0..each).for_each(|i| world.ask(10 * n + i)))
    };
    (0..2).map(client).collect()
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// Each client's numbers are all there, once, and in its order.
fn in_order(numbers: &[u32], each: u32) {
    for n in 0..2 {
        let of_one: Vec<u32> = numbers.iter().copied().filter(|i| i / 10 == n).collect();
        assert_eq!(of_one, (10 * n..10 * n + each).collect::<Vec<_>>(), "{numbers:?}");
    }
}

fn requests_are_taken_once_and_in_order() {
    let world = World::new();
    let others = clients(&world, 3);
    world.work(|_, ended| ended == 6);
    join(others);
    in_order(&world.ended.lock().unwrap().iter().map(|e| e.0).collect::<Vec<_>>(), 3);
}

/// A reason without a queue has nothing but its bit.
fn no_reason_is_lost() {
    let world = World::new();
    let mut others = clients(&world, 1);
    let tells = Arc::clone(&world);
    others.push(thread::spawn(move || tells.enlist(tells.flags.set(OTHER))));
    world.work(|seen, ended| ended == 2 && seen & OTHER != 0);
    join(others);
}

fn requests_beside_a_closing_are_resolved_once() {
    let world = World::new();
    let mut others = clients(&world, 2);
    let fails = Arc::clone(&world);
    // A state machine that fails closes its replica from a thread of its own; the first reason counts.
    others.push(thread::spawn(move || fails.queue.close("failed")));
    world.enlist(world.flags.moved_in(AT));
    world.visit();
    world.queue.close("stopped");
    if let Some(requests) = world.queue.take() {
        world.end(*requests, world.queue.refusal().unwrap());
    }
    join(others);
    let mut ended = world.ended.lock().unwrap().clone();
    ended.sort_unstable();
    assert_eq!(ended.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1, 10, 11], "{ended:?}");
    let why = world.queue.refusal().unwrap();
    assert!(ended.iter().all(|e| e.1 == "done" || e.1 == why), "{ended:?}, closed as {why}");
}

/// Two threads, of which each leaves so many commands.
fn commanders(world: &Arc<World>, each: u32, dropped: &Arc<AtomicU32>) -> Vec<thread::JoinHandle<()>> {
    let commander = |n: u32| {
        let (world, dropped) = (Arc::clone(world), Arc::clone(dropped));
        thread::spawn(move || (0..each).for_each(|i| world.inbox.command(Command(10 * n + i, Arc::clone(&dropped)))))
    };
    (0..2).map(commander).collect()
}

fn commands_are_taken_once_and_in_order() {
    let (world, dropped) = (World::new(), Arc::default());
    let others = commanders(&world, 2, &dropped);
    world.inbox.notifier.attach(None);
    let mut taken = Vec::new();
    loop {
        world.inbox.notifier.take();
        taken.extend(world.inbox.take_commands().iter().map(|c| c.0));
        if taken.len() == 4 {
            break;
        }
        world.inbox.notifier.park(LONG);
    }
    join(others);
    in_order(&taken, 2);
}

fn commands_of_a_worker_that_goes_are_let_go_of() {
    let (world, dropped) = (World::new(), Arc::default());
    let others = commanders(&world, 2, &dropped);
    drop(world.inbox.take_commands());
    world.inbox.worker_is_gone();
    join(others);
    assert_eq!(dropped.load(Ordering::SeqCst), 4, "whoever waits for a command is told");
}

fn frames_are_taken_in_order_and_within_their_bound() {
    let (world, waiting) = (World::new(), Arc::new(AtomicI64::new(0)));
    let (polls, counted) = (Arc::clone(&world), Arc::clone(&waiting));
    let poller = thread::spawn(move || {
        let mut left = Vec::new();
        for i in 0..6u8 {
            let lane = if i % 3 == 2 { Lane::Control } else { Lane::Bulk };
            if polls.inbox.frame(InFrame { from: HostId(1), lane, frame: Bytes::from(vec![i; 9]) }) {
                left.push(i);
                let room = crate::config::INBOX_BYTES_MAX as i64 * if lane == Lane::Bulk { 1 } else { 2 };
                // Frames are counted here after they are taken in, and let go of here before: never more than there are.
                assert!(counted.fetch_add(9, Ordering::SeqCst) + 9 <= room, "{left:?}");
            }
            thread::yield_now();
        }
        polls.inbox.notifier.notify();
        left
    });
    world.inbox.notifier.attach(None);
    let mut seen = Vec::new();
    for _ in 0..3 {
        world.inbox.notifier.take();
        let mut frames = Vec::new();
        world.inbox.take_frames(&mut frames);
        for frame in frames {
            seen.push(frame.frame[0]);
            waiting.fetch_sub(9, Ordering::SeqCst);
            world.inbox.frame_done(&frame);
        }
        thread::yield_now();
    }
    let left = poller.join().unwrap();
    let mut rest = Vec::new();
    world.inbox.take_frames(&mut rest);
    seen.extend(rest.iter().map(|f| f.frame[0]));
    assert_eq!(seen, left, "each that was taken in, once, in the order of its coming");
}
