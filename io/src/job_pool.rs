//! The real pool for jobs.
//!
//! Invariant: all jobs take turns, in one line. What rayon is given are turns and not jobs: its threads prefer what they
//! left themselves to what comes from outside, so that a few jobs that go on for long, or wait for another one, would keep
//! every new one from beginning.
//!
//! A step that hangs in foreign code keeps its thread. Whoever watches says so, and its turn goes to a thread of a second pool, which
//! is made when it is first needed: a host whose state machines return has none.

use crate::job::{Job, JobState, Progress, Replaced, Spawner};
use crate::line::Line;
use parking_lot::Mutex;
use rayon::ThreadPool;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of work per step on the real pool: large enough to amortise a task switch, small enough to stop soon.
pub const STEP_BYTES: usize = 1 << 20;
/// Threads in the place of those whose steps hang, at most: as many as apply workers have.
pub const SPARES_MAX: usize = 4;

/// How much later than threads of the usual priority those of a pool have their turn: requests come before snapshots.
const NICENESS: i32 = 5;
/// How long a thread naps when all jobs wait.
const NAP: Duration = Duration::from_micros(500);

/// Runs jobs on a rayon pool of its own. A step ends before the next begins, so that many jobs share few threads.
#[derive(Clone)]
pub struct RayonSpawner(Arc<Inner>);

struct Inner {
    name: String,
    pool: ThreadPool,
    /// Threads for steps in the place of those that hang; none before the first one did.
    spares: Mutex<Option<Arc<ThreadPool>>>,
    line: Line<Box<dyn Job>>,
    /// Jobs that were spawned and are not done.
    running: AtomicUsize,
    /// Steps in a row that found their job waiting.
    waiting: AtomicUsize,
}

impl RayonSpawner {
    /// A pool of `threads` threads named `name`-0 and so on.
    ///
    /// # Errors
    /// When the operating system can't start the threads.
    pub fn new(name: &str, threads: usize) -> std::io::Result<Self> {
        let (name, threads) = (name.to_owned(), threads.max(1));
        let pool = pool(&name, threads)?;
        let line = Line::new(threads, SPARES_MAX);
        let (spares, running, waiting) = Default::default();
        Ok(Self(Arc::new(Inner { name, pool, spares, line, running, waiting })))
    }

    /// Jobs that were spawned and are not done.
    pub fn running(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Lets go of the jobs that wait for a step, which tell their owners so: their host has closed, and what holds all threads may
    /// never return.
    pub fn drop_waiting(&self) {
        for job in self.0.line.take_waiting() {
            drop(job);
            self.0.running.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// One step of the job that has waited longest, if there is room.
    fn turn(self) {
        let begun = self.0.line.begin(|job| job.progress().map(id_of));
        let Some((mut job, id)) = begun else { return };
        // Its place in memory is the step's id: no other job's may be there before the step has ended.
        let _progress = job.progress().cloned();
        // A job that panics ends like one that is dropped: it tells its owner in its `drop`, and the pool goes on.
        let state = std::panic::catch_unwind(AssertUnwindSafe(|| job.step(STEP_BYTES)));
        let again = match state.unwrap_or(JobState::Done) {
            JobState::Done => {
                drop(job);
                self.0.running.fetch_sub(1, Ordering::AcqRel);
                None
            }
            JobState::Again => {
                self.0.waiting.store(0, Ordering::Relaxed);
                Some(job)
            }
            JobState::Blocked => {
                self.nap();
                Some(job)
            }
        };
        if self.0.line.end(id, again) {
            self.call();
        }
    }

    /// Jobs wait for disks and sockets: when all of them do, a short nap is cheaper than a wake list.
    fn nap(&self) {
        let waiting = self.0.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        if waiting >= self.running() {
            self.0.waiting.store(0, Ordering::Relaxed);
            std::thread::sleep(NAP);
        }
    }

    /// Calls for a turn. Where threads of the pool hang, one of the spare ones may be the first that can take it.
    fn call(&self) {
        let spawner = self.clone();
        self.0.pool.spawn_fifo(move || spawner.turn());
        let spares = self.0.spares.lock().as_ref().filter(|_| self.0.line.replaced() > 0).cloned();
        if let Some(spares) = spares {
            let spawner = self.clone();
            spares.spawn_fifo(move || spawner.turn());
        }
    }

    /// Sees to it that there are spare threads.
    fn has_spares(&self) -> bool {
        let mut spares = self.0.spares.lock();
        if spares.is_none() {
            match pool(&format!("{}-spare", self.0.name), SPARES_MAX) {
                Ok(made) => *spares = Some(Arc::new(made)),
                Err(error) => tracing::error!(%error, "no spare threads for the pool"),
            }
        }
        spares.is_some()
    }
}

impl Spawner for RayonSpawner {
    fn spawn(&self, job: Box<dyn Job>) {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        self.0.line.join(job);
        self.call();
    }

    fn replace(&self, progress: &Arc<Progress>) -> Replaced {
        if !self.has_spares() {
            return Replaced::NoSpare;
        }
        let replaced = self.0.line.replace(id_of(progress));
        if replaced == Replaced::Yes {
            self.call();
        }
        replaced
    }

    fn is_stuck(&self) -> bool {
        self.0.line.is_stuck()
    }
}

/// A job's progress stays where it is for as long as the job lives.
fn id_of(progress: &Arc<Progress>) -> usize {
    Arc::as_ptr(progress) as usize
}

fn pool(name: &str, threads: usize) -> std::io::Result<ThreadPool> {
    let name = name.to_owned();
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("{name}-{i}"))
        .start_handler(|_| {
            // Of this thread alone, as Linux has it. Where it is refused, the pool has the usual priority.
            let _ = rustix::process::setpriority_process(None, NICENESS);
        })
        .build()
        .map_err(std::io::Error::other)
}

impl std::fmt::Debug for RayonSpawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RayonSpawner").field("threads", &self.0.pool.current_num_threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;
    use std::sync::Mutex as StdMutex;

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

    /// A call that does not return before the gate is opened.
    struct Hangs(Arc<Progress>, Arc<(StdMutex<bool>, Condvar)>);

    impl Job for Hangs {
        fn step(&mut self, _budget: usize) -> JobState {
            let _inside = self.0.inside();
            let mut open = self.1.0.lock().expect("nobody panics with it");
            while !*open {
                open = self.1.1.wait(open).expect("nobody panics with it");
            }
            JobState::Done
        }

        fn progress(&self) -> Option<&Arc<Progress>> {
            Some(&self.0)
        }
    }

    /// Waits until this is so, or for long.
    fn wait(mut is_so: impl FnMut() -> bool) -> bool {
        for _ in 0..30_000 {
            if is_so() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
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
        let ended = wait(|| spawner.running() == 0);
        flag.store(1, Ordering::SeqCst);
        assert!(ended, "jobs wait for one that never begins");
    }

    #[test]
    fn a_job_that_panics_is_dropped_and_the_pool_goes_on() {
        let spawner = RayonSpawner::new("test", 1).expect("a thread");
        let dropped = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            spawner.spawn(Box::new(Panics(Arc::clone(&dropped))));
        }
        assert!(wait(|| spawner.running() == 0));
        assert_eq!(dropped.load(Ordering::SeqCst), 3);
    }

    /// Two threads, and six steps that hang: four are replaced, two hold the pool until they return.
    #[test]
    fn steps_that_hang_hold_up_nobody_while_there_are_spares() {
        let spawner = RayonSpawner::new("test", 2).expect("threads");
        let gate = Arc::<(StdMutex<bool>, Condvar)>::default();
        let mut held = Vec::new();
        for at in 0..2 + SPARES_MAX {
            let progress = Arc::<Progress>::default();
            assert_eq!(spawner.replace(&progress), Replaced::Ended, "it has not begun");
            spawner.spawn(Box::new(Hangs(Arc::clone(&progress), Arc::clone(&gate))));
            assert!(wait(|| progress.place().is_some()), "hanging job {at} has its turn");
            let spare = if at < SPARES_MAX { Replaced::Yes } else { Replaced::NoSpare };
            assert!(!spawner.is_stuck());
            assert_eq!(spawner.replace(&progress), spare);
            held.push(progress);
            let done = Arc::new(AtomicUsize::new(0));
            spawner.spawn(Box::new(Flag(Arc::clone(&done), true)));
            if at < 1 + SPARES_MAX {
                assert!(wait(|| done.load(Ordering::SeqCst) == 1), "beside {at} that hang, others have their turns");
            }
        }
        assert!(spawner.is_stuck());
        assert_eq!(spawner.replace(&held[0]), Replaced::Yes, "it was");
        *gate.0.lock().expect("nobody panics with it") = true;
        gate.1.notify_all();
        assert!(wait(|| spawner.running() == 0));
        assert!(!spawner.is_stuck());
        assert_eq!(spawner.replace(&held[0]), Replaced::Ended);
    }

    #[test]
    fn jobs_behind_what_hangs_can_be_let_go_of() {
        let spawner = RayonSpawner::new("test", 1).expect("a thread");
        let (progress, gate) = (Arc::<Progress>::default(), Arc::<(StdMutex<bool>, Condvar)>::default());
        spawner.spawn(Box::new(Hangs(Arc::clone(&progress), Arc::clone(&gate))));
        assert!(wait(|| progress.place().is_some()));
        let dropped = Arc::new(AtomicUsize::new(0));
        spawner.spawn(Box::new(Panics(Arc::clone(&dropped))));
        spawner.drop_waiting();
        assert_eq!((dropped.load(Ordering::SeqCst), spawner.running()), (1, 1));
        *gate.0.lock().expect("nobody panics with it") = true;
        gate.1.notify_all();
        assert!(wait(|| spawner.running() == 0));
    }
}
