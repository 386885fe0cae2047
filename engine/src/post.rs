//! Posts: the workers that one thread runs in turn, and that thread's spares.
//!
//! Invariants:
//! - One thread is at a post's crew (poller and step workers) at a time, and none while it calls a state machine: so a thread
//!   that hangs in one holds up neither. Crew and lanes are passed on together, by whoever replaces the hanging worker.
//! - A thread whose apply worker was replaced touches nothing of its post any more: it ends when its group is done.

use crate::apply::ApplyWorker;
use crate::notify::Notifier;
use crate::shared::HostShared;
use crate::snapshot::SnapshotIo;
use crate::stalls::{StallWatch, Stalled};
use crate::worker::{Work, Worker};
use crossbeam_channel::bounded;
use longboat_io::Clock;
use longboat_raft::Time;
use longboat_transport::Transport;
use parking_lot::Mutex;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest that a thread sleeps: a bound, so that a lost wake would be a delay and not a hang.
const PARK_MAX: Duration = Duration::from_millis(500);

/// Workers that one thread runs in turn.
pub(crate) struct Post {
    name: String,
    shared: Arc<HostShared>,
    notifier: Arc<Notifier>,
    transport: Option<Arc<dyn Transport>>,
    stop: Arc<AtomicBool>,
    /// Poller and step workers, in the hands of the thread that runs their rounds, and of nobody while it runs other ones.
    crew: Mutex<Vec<Box<dyn Worker>>>,
    /// Its apply workers, by index.
    applies: Range<usize>,
    /// The thread that runs it, and those that hang.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Post {
    pub(crate) fn new(
        name: String,
        shared: &Arc<HostShared>,
        notifier: &Arc<Notifier>,
        transport: Option<Arc<dyn Transport>>,
        stop: &Arc<AtomicBool>,
        crew: Vec<Box<dyn Worker>>,
        applies: Range<usize>,
    ) -> Arc<Self> {
        let (shared, notifier, stop) = (Arc::clone(shared), Arc::clone(notifier), Arc::clone(stop));
        let (crew, threads) = (Mutex::new(crew), Mutex::default());
        Arc::new(Self { name, shared, notifier, transport, stop, crew, applies, threads })
    }

    /// Starts the post's first thread.
    pub(crate) fn start(self: &Arc<Self>, applies: Vec<ApplyWorker>) -> std::io::Result<()> {
        let post = Arc::clone(self);
        self.spawn(move || post.run(applies))
    }

    fn spawn(&self, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = spawn(self.name.clone(), work)?;
        let mut threads = self.threads.lock();
        threads.retain(|t| !t.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Rounds, until the host stops or the thread was replaced.
    fn run(&self, mut applies: Vec<ApplyWorker>) {
        self.notifier.attach(self.transport.clone());
        let clock = Arc::clone(&self.shared.clock);
        loop {
            self.notifier.take();
            let stopping = self.stop.load(Ordering::SeqCst);
            let Some((mut again, mut next)) = self.crew_round() else { return };
            for worker in &mut applies {
                let Some(work) = round(&self.shared, worker) else { return };
                if worker.is_replaced() {
                    return;
                }
                again |= work.again;
                next = earlier(next, work.next);
            }
            if stopping && !again {
                return;
            }
            if !again {
                self.notifier.park(until(&*clock, next));
            }
        }
    }

    fn crew_round(&self) -> Option<(bool, Option<Time>)> {
        let (mut again, mut next) = (false, None);
        for worker in &mut *self.crew.lock() {
            let work = round(&self.shared, &mut **worker)?;
            again |= work.again;
            next = earlier(next, work.next);
        }
        Some((again, next))
    }

    /// Has another thread run this post in place of the one whose apply worker is in this call. Whether that was so is known
    /// when this returns; a system that has no thread to give leaves all as it is.
    fn replace(self: &Arc<Self>, template: &ApplyWorker, at: usize, stalled: Stalled) -> bool {
        let (post, template) = (Arc::clone(self), template.another());
        let (tell, told) = bounded(1);
        let spawned = self.spawn(move || {
            let spare = template.in_place_of(at, &stalled);
            let _ = tell.send(spare.is_some());
            if let Some(spare) = spare {
                let beside = post.applies.clone().filter(|&other| other != at).map(|other| template.beside(other));
                let mut applies: Vec<_> = beside.collect();
                applies.push(spare);
                post.run(applies);
            }
        });
        spawned.is_ok() && told.recv().unwrap_or(false)
    }

    /// The thread wakes and looks whether it is to stop.
    pub(crate) fn wake(&self) {
        self.notifier.notify();
    }

    /// Whether all of the post's threads have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.threads.lock().iter().all(JoinHandle::is_finished)
    }

    /// Joins its threads, which have ended. Returns whether one of them panicked.
    pub(crate) fn join(&self) -> bool {
        let threads = std::mem::take(&mut *self.threads.lock());
        threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count() > 0
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// The thread that gives posts their spares.
pub(crate) struct Guard {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Guard {
    /// Watches these posts. `template` is how apply workers of this host are made.
    pub(crate) fn start(
        name: String,
        shared: &Arc<HostShared>,
        posts: Vec<Arc<Post>>,
        template: ApplyWorker,
        snapshots: Arc<SnapshotIo>,
    ) -> std::io::Result<Self> {
        let (mut watch, shared) = (StallWatch::new(shared), Arc::clone(shared));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // A call is noticed at most half as much later as it must last.
        let stall_nanos = shared.config.apply_stall_nanos.min(shared.config.snapshot_stall_nanos);
        let every = Duration::from_nanos(stall_nanos / 2).max(Duration::from_millis(1));
        let thread = spawn(name, move || {
            while !stopped.load(Ordering::SeqCst) {
                for (at, stalled) in watch.look(shared.clock.now()) {
                    let post = posts.iter().find(|post| post.applies.contains(&at));
                    let replaced = post.is_some_and(|post| post.replace(&template, at, stalled));
                    if !replaced {
                        shared.stalls.not_replaced(&shared, &stalled);
                    }
                }
                snapshots.look_for_stalls(shared.clock.now());
                std::thread::park_timeout(every);
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends the watch.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the watch over state machines panicked");
        }
    }
}

pub(crate) fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(work)
}

/// One round. A panic that no group's boundary caught is the host's own failure: it serves no more, and says so.
pub(crate) fn round(shared: &HostShared, worker: &mut dyn Worker) -> Option<Work> {
    match std::panic::catch_unwind(AssertUnwindSafe(|| worker.run_round(shared.clock.now()))) {
        Ok(work) => Some(work),
        Err(panic) => {
            shared.fail(&format!("a worker panicked: {}", crate::apply::panic_text(&*panic)));
            None
        }
    }
}

fn earlier(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

pub(crate) fn until(clock: &dyn Clock, next: Option<Time>) -> Duration {
    next.map_or(PARK_MAX, |t| Duration::from_nanos(t.nanos_since(clock.now())).min(PARK_MAX))
}
