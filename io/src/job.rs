//! Background jobs: resumable structs, run in small steps on a pool or by the simulator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use crate::line::Replaced;

/// What a step of a job came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// There is more to do now.
    Again,
    /// Waiting for something outside (a full queue, a sync under way): worth another step a little later.
    Blocked,
    /// Finished; the job is dropped.
    Done,
}

/// Work that is done in steps. A job reports its outcome itself, through whatever it was built with; one that is dropped
/// before it is done, because it panicked or the pool ended, must report that too.
pub trait Job: Send + 'static {
    /// Does about `budget` bytes of work. Must return; must not wait for other jobs.
    fn step(&mut self, budget: usize) -> JobState;

    /// For a job whose steps call foreign code, which may not return: what shows whether it moves on. The same for all its steps.
    fn progress(&self) -> Option<&Arc<Progress>> {
        None
    }
}

impl Job for Box<dyn Job> {
    fn step(&mut self, budget: usize) -> JobState {
        (**self).step(budget)
    }

    fn progress(&self) -> Option<&Arc<Progress>> {
        (**self).progress()
    }
}

/// Runs jobs to their end.
pub trait Spawner: Send + Sync + 'static {
    /// Takes a job. Never blocks.
    fn spawn(&self, job: Box<dyn Job>);

    /// The step of the job with this progress holds its thread for too long: others are not to wait for it.
    fn replace(&self, _progress: &Arc<Progress>) -> Replaced {
        Replaced::Ended
    }

    /// Whether every job waits for steps that hold their threads for too long, since there are no spare ones left.
    fn is_stuck(&self) -> bool {
        false
    }
}

/// Whether a thread is in foreign code, and whether that moves on: written by that thread alone, read by whoever watches it.
///
/// It costs the one who writes a store for each way in or out, and no read of a clock.
#[derive(Debug, Default)]
pub struct Progress {
    /// Ways in and out: odd within.
    passes: AtomicU64,
}

impl Progress {
    /// Enters the foreign code, until what this returns is dropped.
    pub fn inside(&self) -> impl Drop + '_ {
        self.pass();
        Passing(self)
    }

    /// Leaves it to do something of the caller's own, which it called for, until what this returns is dropped.
    pub fn outside(&self) -> impl Drop + '_ {
        self.pass();
        Passing(self)
    }

    fn pass(&self) {
        // One thread at a time writes: no two of these can be lost in each other.
        self.passes.store(self.passes.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// Where in the foreign code the thread is; `None` when it is not in it. A call that does not move shows the same place again.
    pub fn place(&self) -> Option<u64> {
        Some(self.passes.load(Ordering::Acquire)).filter(|passes| passes % 2 == 1)
    }
}

struct Passing<'a>(&'a Progress);

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.0.pass();
    }
}
