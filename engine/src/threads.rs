//! Threads: thin shells that call a worker's rounds and park.
//!
//! Invariant: a shell has no logic of its own; whatever it does, the simulator can do from one thread.

use crate::apply::ApplyWorker;
use crate::host::{Host, Notifiers};
use crate::log_writer::LogWriter;
use crate::notify::Notifier;
use crate::post::{Guard, Post, round, spawn, until};
use crate::shared::HostShared;
use crate::worker::Worker;
use longboat_logdb::{LogDb, LogError};
use longboat_raft::{GroupId, ReplicaId};
use longboat_transport::Transport;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    shared: Arc<HostShared>,
    posts: Vec<Arc<Post>>,
    guard: Option<Guard>,
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
    /// A call of a state machine did not return in time; its thread is left behind.
    #[error("the state machine of group {group} (replica {replica}) did not return in time")]
    Machine {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
    },
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
        let Host { shared, steps, applies, writer, poller, snapshots, .. } = host;
        let name = |role: &str| format!("lb{}-{role}", shared.config.host);
        let stop = Arc::new(AtomicBool::new(false));
        let stop_writer = Arc::new(AtomicBool::new(false));
        let closed = Arc::new(Mutex::new(None));
        let post = |role: &str, notifier: &Arc<Notifier>, polls: bool, crew, applies| {
            let transport = polls.then(|| Arc::clone(&transport));
            Post::new(name(role), &shared, notifier, transport, &stop, crew, applies)
        };
        let boxed = |step| vec![Box::new(step) as Box<dyn Worker>];
        let template = ApplyWorker::new(0, Arc::clone(&shared), Arc::clone(&snapshots));
        let mut posts: Vec<(Arc<Post>, Vec<ApplyWorker>)> = Vec::new();
        match layout {
            ThreadLayout::Compact => {
                let mut crew: Vec<Box<dyn Worker>> = vec![Box::new(poller)];
                crew.extend(steps.into_iter().map(|w| Box::new(w) as Box<dyn Worker>));
                posts.push((post("core", &notifiers.step[0], true, crew, 0..applies.len()), applies));
            }
            ThreadLayout::Separate => {
                for (i, w) in steps.into_iter().enumerate() {
                    posts.push((post(&format!("step{i}"), &notifiers.step[i], false, boxed(w), 0..0), Vec::new()));
                }
                for (i, w) in applies.into_iter().enumerate() {
                    let one = i..i + 1;
                    posts.push((post(&format!("apply{i}"), &notifiers.apply[i], false, Vec::new(), one), vec![w]));
                }
                posts.push((post("poll", &Notifier::new(), true, vec![Box::new(poller)], 0..0), Vec::new()));
            }
        }
        let mut started = Vec::new();
        for (post, applies) in posts {
            post.start(applies)?;
            started.push(post);
        }
        let guard = Guard::start(name("watch"), &shared, started.clone(), template, snapshots)?;
        let inbox = Arc::clone(&closed);
        let writer = writer_shell(name("log"), Arc::clone(&shared), &notifiers.writer, &stop_writer, writer, inbox)?;
        let (guard, writer) = (Some(guard), Some(writer));
        Ok(Self { shared, posts: started, guard, writer, stop, stop_writer, closed, transport })
    }

    /// Stops and joins every thread: first those that make batches, then the log writer, which seals the log.
    ///
    /// # Errors
    /// When the log could not be sealed, or a thread (one inside a user's state machine, say) did not end by `deadline`.
    pub fn close(mut self, deadline: Instant) -> Result<(), CloseError> {
        self.stop.store(true, Ordering::SeqCst);
        let mut hung = None;
        // Meanwhile those whose state machines hang are given spares, so that all others come to their end.
        while !self.posts.iter().all(|post| post.has_ended()) {
            self.posts.iter().for_each(|post| post.wake());
            if Instant::now() >= deadline {
                hung = self.hung();
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        if let Some(guard) = self.guard.take() {
            guard.stop();
        }
        for post in self.posts.drain(..).filter(|post| post.has_ended()) {
            if post.join() {
                tracing::error!(thread = post.name(), "thread panicked");
                hung = hung.or(Some(CloseError::Hung(post.name().to_owned())));
            }
        }
        self.stop_writer.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            hung = hung.or(join(writer, deadline).map(CloseError::Hung));
        }
        self.transport.close();
        if let Some(hung) = hung {
            return Err(hung);
        }
        let closed = self.closed.lock().take();
        closed.unwrap_or(Ok(())).map_err(CloseError::from)
    }

    /// What is in the way: a state machine that does not return, if there is one.
    fn hung(&self) -> Option<CloseError> {
        let stalled = self.shared.stalls.list().into_iter().map(|s| (s.group, s.replica));
        let called = self.shared.apply.iter().filter_map(|inbox| Some(inbox.call()?.of()));
        if let Some((group, replica)) = stalled.chain(called).next() {
            return Some(CloseError::Machine { group, replica });
        }
        let post = self.posts.iter().find(|post| !post.has_ended())?;
        Some(CloseError::Hung(post.name().to_owned()))
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
        f.debug_struct("Threads").field("posts", &self.posts.len()).finish_non_exhaustive()
    }
}
