//! Turns of a pool's jobs, one of which hangs until the others are done, and is replaced at any moment.

use crate::Case;
use crate::line::{Line, Replaced};
use crate::locks::{Condvar, Mutex};
use shuttle::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const CASES: &[Case] = &[(
    "a_step_that_hangs_leaves_its_slot_to_others_once",
    a_step_that_hangs_leaves_its_slot_to_others_once,
    &["hanging-step-keeps-its-slot", "replaced-step-frees-a-slot-twice"],
)];

/// The id of the job that hangs.
const HANGS: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// It returns when the others are done.
    Hangs,
    /// It has so many steps.
    Steps(u32),
}

#[derive(Default)]
struct Seen {
    inside: bool,
    done: usize,
}

/// A pool of one slot and one spare; a call for a turn is a thread of its own.
struct World {
    line: Line<Job>,
    seen: Mutex<Seen>,
    changed: Condvar,
    /// Steps of those that do not hang, now.
    steps: AtomicUsize,
    threads: std::sync::Mutex<Vec<thread::JoinHandle<()>>>,
}

impl World {
    fn spawn(self: &Arc<Self>, act: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let world = Arc::clone(self);
        let spawned = thread::spawn(move || act(&world));
        self.threads.lock().unwrap().push(spawned);
    }

    fn turn(self: &Arc<Self>) {
        let Some((job, id)) = self.line.begin(|job| (*job == Job::Hangs).then_some(HANGS)) else { return };
        let again = self.step(job);
        if self.line.end(id, again) {
            self.spawn(Self::turn);
        }
    }

    fn step(&self, job: Job) -> Option<Job> {
        if let Job::Steps(left) = job {
            assert_eq!(self.steps.fetch_add(1, Ordering::SeqCst), 0, "one slot is one step at once");
            thread::yield_now();
            self.steps.fetch_sub(1, Ordering::SeqCst);
            if left > 1 {
                return Some(Job::Steps(left - 1));
            }
            self.seen.lock().done += 1;
            self.changed.notify_all();
            return None;
        }
        let mut seen = self.seen.lock();
        seen.inside = true;
        self.changed.notify_all();
        while seen.done < 2 {
            self.changed.wait(&mut seen);
        }
        None
    }

    fn join(self: &Arc<Self>, job: Job) {
        self.line.join(job);
        self.spawn(Self::turn);
    }
}

fn a_step_that_hangs_leaves_its_slot_to_others_once() {
    let world = Arc::new(World {
        line: Line::new(1, 1),
        seen: Mutex::default(),
        changed: Condvar::new(),
        steps: AtomicUsize::new(0),
        threads: std::sync::Mutex::default(),
    });
    for job in [Job::Steps(2), Job::Hangs, Job::Steps(2)] {
        world.spawn(move |world| world.join(job));
    }
    world.spawn(|world| {
        let mut seen = world.seen.lock();
        while !seen.inside {
            world.changed.wait(&mut seen);
        }
        drop(seen);
        let replaced = world.line.replace(HANGS);
        assert_ne!(replaced, Replaced::NoSpare);
        if replaced == Replaced::Yes {
            world.spawn(World::turn);
        }
    });
    while let Some(thread) = { world.threads.lock().unwrap().pop() } {
        thread.join().unwrap();
    }
    assert_eq!((world.seen.lock().done, world.line.replaced()), (2, 0), "all is done");
    for job in [Job::Steps(1); 2] {
        world.line.join(job);
    }
    let turns = [world.line.begin(|_| None), world.line.begin(|_| None)];
    assert_eq!(turns.map(|turn| turn.is_some()), [true, false], "there is one slot again");
}
