//! Threads: thin shells that call a worker's rounds and park.
//!
//! Invariant: a shell has no logic of its own; whatever it does, the simulator can do from one thread.

use crate::host::{Host, Notifiers};
use crate::log_writer::LogWriter;
use crate::notify::Notifier;
use crate::shared::HostShared;
use crate::worker::{Work, Worker};
use longboat_io::Clock;
use longboat_logdb::{LogDb, LogError};
use longboat_transport::Transport;
use parking_lot::Mutex;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest that a thread sleeps: a bound, so that a lost wake would be a delay and not a hang.
const PARK_MAX: Duration = Duration::from_millis(500);

/// Which thread runs which worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadLayout {
    /// A thread for each worker and one for the sockets.
    Separate,
    /// One thread polls, steps and applies in turn; the log writer has its own. For few cores.
    Compact,
}

impl ThreadLayout {
    /// The notifiers that go with this layout.
    pub fn notifiers(self, config: &crate::config::EngineConfig) -> Notifiers {
        match self {
            Self::Separate => Notifiers::separate(config),
            Self::Compact => Notifiers::compact(config),
        }
    }
}

struct Shell {
    handle: JoinHandle<()>,
    notifier: Arc<Notifier>,
}

/// The running threads of a host.
pub struct Threads {
    shells: Vec<Shell>,
    writer: Option<Shell>,
    stop: Arc<AtomicBool>,
    stop_writer: Arc<AtomicBool>,
    closed: Arc<Mutex<Option<Result<(), LogError>>>>,
    transport: Arc<dyn Transport>,
}

/// Why a host did not close in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// The log store failed, now or before.
    #[error("the log was not sealed: {0}")]
    Log(#[from] LogError),
    /// A thread did not end in time; it is left behind.
    #[error("thread {0} did not stop in time")]
    Hung(String),
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(work)
}

fn shell(
    name: String,
    shared: &Arc<HostShared>,
    notifier: &Arc<Notifier>,
    transport: Option<Arc<dyn Transport>>,
    stop: &Arc<AtomicBool>,
    mut workers: Vec<Box<dyn Worker>>,
) -> std::io::Result<Shell> {
    let (own, stop, shared) = (Arc::clone(notifier), Arc::clone(stop), Arc::clone(shared));
    let handle = spawn(name, move || {
        own.attach(transport);
        let clock = Arc::clone(&shared.clock);
        loop {
            own.take();
            let stopping = stop.load(Ordering::SeqCst);
            let (mut again, mut next) = (false, None);
            for worker in &mut workers {
                let Some(work) = round(&shared, &mut **worker) else { return };
                again |= work.again;
                next = earlier(next, work.next);
            }
            if stopping && !again {
                return;
            }
            if !again {
                own.park(until(&*clock, next));
            }
        }
    })?;
    Ok(Shell { handle, notifier: Arc::clone(notifier) })
}

/// One round. A panic that no group's boundary caught is the host's own failure: it serves no more, and says so.
fn round(shared: &HostShared, worker: &mut dyn Worker) -> Option<Work> {
    match std::panic::catch_unwind(AssertUnwindSafe(|| worker.run_round(shared.clock.now()))) {
        Ok(work) => Some(work),
        Err(panic) => {
            shared.fail(&format!("a worker panicked: {}", crate::apply::panic_text(&*panic)));
            None
        }
    }
}

fn earlier(a: Option<longboat_raft::Time>, b: Option<longboat_raft::Time>) -> Option<longboat_raft::Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn until(clock: &dyn Clock, next: Option<longboat_raft::Time>) -> Duration {
    next.map_or(PARK_MAX, |t| Duration::from_nanos(t.nanos_since(clock.now())).min(PARK_MAX))
}

fn writer_shell<L: LogDb>(
    name: String,
    shared: Arc<HostShared>,
    notifier: &Arc<Notifier>,
    stop: &Arc<AtomicBool>,
    mut writer: LogWriter<L>,
    closed: Arc<Mutex<Option<Result<(), LogError>>>>,
) -> std::io::Result<Shell> {
    let (own, stop) = (Arc::clone(notifier), Arc::clone(stop));
    let handle = spawn(name, move || {
        own.attach(None);
        let clock = Arc::clone(&shared.clock);
        loop {
            own.take();
            let stopping = stop.load(Ordering::SeqCst);
            let Some(work) = round(&shared, &mut writer) else { return };
            if stopping && !work.again {
                *closed.lock() = Some(writer.close(clock.now()));
                return;
            }
            if !work.again {
                own.park(until(&*clock, work.next));
            }
        }
    })?;
    Ok(Shell { handle, notifier: Arc::clone(notifier) })
}

impl Threads {
    /// Starts the threads of `host`, which was put together with this layout's notifiers.
    ///
    /// # Errors
    /// When the operating system can't start a thread.
    pub fn start<L: LogDb>(
        host: Host<L>,
        notifiers: &Notifiers,
        layout: ThreadLayout,
        transport: Arc<dyn Transport>,
    ) -> std::io::Result<Self> {
        let Host { shared, steps, applies, writer, poller, .. } = host;
        let name = |role: &str| format!("lb{}-{role}", shared.config.host);
        let stop = Arc::new(AtomicBool::new(false));
        let stop_writer = Arc::new(AtomicBool::new(false));
        let closed = Arc::new(Mutex::new(None));
        let mut shells = Vec::new();
        match layout {
            ThreadLayout::Compact => {
                let mut workers: Vec<Box<dyn Worker>> = vec![Box::new(poller)];
                workers.extend(steps.into_iter().map(|w| Box::new(w) as Box<dyn Worker>));
                workers.extend(applies.into_iter().map(|w| Box::new(w) as Box<dyn Worker>));
                let one = Arc::clone(&notifiers.step[0]);
                shells.push(shell(name("core"), &shared, &one, Some(Arc::clone(&transport)), &stop, workers)?);
            }
            ThreadLayout::Separate => {
                for (i, w) in steps.into_iter().enumerate() {
                    let workers: Vec<Box<dyn Worker>> = vec![Box::new(w)];
                    shells.push(shell(name(&format!("step{i}")), &shared, &notifiers.step[i], None, &stop, workers)?);
                }
                for (i, w) in applies.into_iter().enumerate() {
                    let workers: Vec<Box<dyn Worker>> = vec![Box::new(w)];
                    shells.push(shell(name(&format!("apply{i}")), &shared, &notifiers.apply[i], None, &stop, workers)?);
                }
                let (workers, own): (Vec<Box<dyn Worker>>, _) = (vec![Box::new(poller)], Notifier::new());
                shells.push(shell(name("poll"), &shared, &own, Some(Arc::clone(&transport)), &stop, workers)?);
            }
        }
        let inbox = Arc::clone(&closed);
        let writer = writer_shell(name("log"), Arc::clone(&shared), &notifiers.writer, &stop_writer, writer, inbox)?;
        Ok(Self { shells, writer: Some(writer), stop, stop_writer, closed, transport })
    }

    /// Stops and joins every thread: first those that make batches, then the log writer, which seals the log.
    ///
    /// # Errors
    /// When the log could not be sealed, or a thread (one inside a user's state machine, say) did not end by `deadline`.
    pub fn close(mut self, deadline: Instant) -> Result<(), CloseError> {
        self.stop.store(true, Ordering::SeqCst);
        let mut hung = None;
        for shell in self.shells.drain(..) {
            hung = hung.or(join(shell, deadline));
        }
        self.stop_writer.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            hung = hung.or(join(writer, deadline));
        }
        self.transport.close();
        if let Some(name) = hung {
            return Err(CloseError::Hung(name));
        }
        let closed = self.closed.lock().take();
        closed.unwrap_or(Ok(())).map_err(CloseError::from)
    }
}

/// Joins a thread; its name if it did not end in time.
fn join(shell: Shell, deadline: Instant) -> Option<String> {
    let name = shell.handle.thread().name().unwrap_or("longboat").to_owned();
    while !shell.handle.is_finished() {
        shell.notifier.notify();
        if Instant::now() >= deadline {
            return Some(name);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    if shell.handle.join().is_err() {
        tracing::error!(thread = name, "thread panicked");
        return Some(name);
    }
    None
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads").field("shells", &self.shells.len()).finish_non_exhaustive()
    }
}
