//! Background jobs: resumable structs, run in small steps on a pool or by the simulator.

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
#[derive(Clone)]
pub struct RayonSpawner {
    pool: Arc<rayon::ThreadPool>,
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
        Ok(Self { pool: Arc::new(pool), running: Arc::default(), waiting: Arc::default() })
    }

    /// Jobs that were spawned and are not done.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    fn run(self, mut job: Box<dyn Job>) {
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
        let pool = Arc::clone(&self.pool);
        pool.spawn_fifo(move || self.run(job));
    }
}

impl Spawner for RayonSpawner {
    fn spawn(&self, job: Box<dyn Job>) {
        self.running.fetch_add(1, Ordering::AcqRel);
        let own = self.clone();
        self.pool.spawn_fifo(move || own.run(job));
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
