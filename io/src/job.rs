//! Background jobs: resumable structs, run in small steps on a pool or by the simulator.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
}

/// Runs jobs to their end.
pub trait Spawner: Send + Sync + 'static {
    /// Takes a job. Never blocks.
    fn spawn(&self, job: Box<dyn Job>);
}

/// Bytes of work per step on the real pool: large enough to amortise a task switch, small enough to stop soon.
pub const STEP_BYTES: usize = 1 << 20;

/// Runs jobs on a rayon pool of its own. A step ends before the next begins, so that many jobs share few threads.
///
/// Invariant: all jobs take turns, in one line. What rayon is given are turns and not jobs: its threads prefer what they
/// left themselves to what comes from outside, so that a few jobs that go on for long, or wait for another one, would keep
/// every new one from beginning.
#[derive(Clone)]
pub struct RayonSpawner {
    pool: Arc<rayon::ThreadPool>,
    /// Jobs that wait for their next step. There is a turn under way, or to come, for each.
    line: Arc<Mutex<VecDeque<Box<dyn Job>>>>,
    /// Jobs that were spawned and are not done.
    running: Arc<AtomicUsize>,
    /// Steps in a row that found their job waiting.
    waiting: Arc<AtomicUsize>,
}

/// How much later than threads of the usual priority those of a pool have their turn: requests come before snapshots.
const NICENESS: i32 = 5;
/// How long a thread naps when all jobs wait.
const NAP: Duration = Duration::from_micros(500);

impl RayonSpawner {
    /// A pool of `threads` threads named `name`-0 and so on.
    ///
    /// # Errors
    /// When the operating system can't start the threads.
    pub fn new(name: &str, threads: usize) -> std::io::Result<Self> {
        let name = name.to_owned();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(move |i| format!("{name}-{i}"))
            .start_handler(|_| {
                // Of this thread alone, as Linux has it. Where it is refused, the pool has the usual priority.
                let _ = rustix::process::setpriority_process(None, NICENESS);
            })
            .build()
            .map_err(std::io::Error::other)?;
        let (line, running, waiting) = Default::default();
        Ok(Self { pool: Arc::new(pool), line, running, waiting })
    }

    /// Jobs that were spawned and are not done.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// One step of the job that has waited longest.
    fn turn(self) {
        let mut job = self.line.lock().pop_front().expect("there are as many turns as jobs");
        // A job that panics ends like one that is dropped: it tells its owner in its `drop`, and the pool goes on.
        let state = std::panic::catch_unwind(AssertUnwindSafe(|| job.step(STEP_BYTES)));
        match state.unwrap_or(JobState::Done) {
            JobState::Done => {
                drop(job);
                self.running.fetch_sub(1, Ordering::AcqRel);
                return;
            }
            JobState::Again => self.waiting.store(0, Ordering::Relaxed),
            JobState::Blocked => {
                // Jobs wait for disks and sockets: when all of them do, a short nap is cheaper than a wake list.
                let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
                if waiting >= self.running() {
                    self.waiting.store(0, Ordering::Relaxed);
                    std::thread::sleep(NAP);
                }
            }
        }
        self.join_line(job);
    }

    fn join_line(self, job: Box<dyn Job>) {
        self.line.lock().push_back(job);
        let pool = Arc::clone(&self.pool);
        pool.spawn_fifo(move || self.turn());
    }
}

impl Spawner for RayonSpawner {
    fn spawn(&self, job: Box<dyn Job>) {
        self.running.fetch_add(1, Ordering::AcqRel);
        self.clone().join_line(job);
    }
}

impl std::fmt::Debug for RayonSpawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RayonSpawner").field("threads", &self.pool.current_num_threads()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Panics(Arc<AtomicUsize>);

    impl Job for Panics {
        fn step(&mut self, _budget: usize) -> JobState {
            panic!("planned");
        }
    }

    impl Drop for Panics {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits until another job has set the flag, if it does not set it.
    struct Flag(Arc<AtomicUsize>, bool);

    impl Job for Flag {
        fn step(&mut self, _budget: usize) -> JobState {
            if self.1 {
                self.0.store(1, Ordering::SeqCst);
            }
            if self.0.load(Ordering::SeqCst) == 1 { JobState::Done } else { JobState::Blocked }
        }
    }

    #[test]
    fn a_new_job_has_its_turn_while_others_wait_for_it() {
        let (spawner, flag) = (RayonSpawner::new("test", 2).expect("threads"), Arc::new(AtomicUsize::new(0)));
        for _ in 0..3 {
            spawner.spawn(Box::new(Flag(Arc::clone(&flag), false)));
        }
        // The threads are with the jobs that wait.
        std::thread::sleep(Duration::from_millis(5));
        spawner.spawn(Box::new(Flag(Arc::clone(&flag), true)));
        for _ in 0..10_000 {
            if spawner.running() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let running = spawner.running();
        flag.store(1, Ordering::SeqCst);
        assert_eq!(running, 0, "jobs wait for one that never begins");
    }

    #[test]
    fn a_job_that_panics_is_dropped_and_the_pool_goes_on() {
        let spawner = RayonSpawner::new("test", 1).expect("a thread");
        let dropped = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            spawner.spawn(Box::new(Panics(Arc::clone(&dropped))));
        }
        for _ in 0..10_000 {
            if spawner.running() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((spawner.running(), dropped.load(Ordering::SeqCst)), (0, 3));
    }
}
