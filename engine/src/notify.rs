//! Waking a worker's thread, once and only if it sleeps.
//!
//! Invariant: a notification that is made before a worker's round begins is seen by that round; one made during a
//! round makes the next `park` return at once.

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, Thread, current, park_timeout};
use longboat_raft::plant;
use longboat_transport::Transport;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How the thread behind some workers is woken.
#[derive(Default)]
pub struct Notifier {
    thread: Mutex<Option<Thread>>,
    /// Set for a thread that waits for sockets instead of parking.
    transport: OnceLock<Arc<dyn Transport>>,
    notified: AtomicBool,
    waiting: AtomicBool,
    /// Sleeps that ended before their time.
    wakes: AtomicU64,
}

impl std::fmt::Debug for Notifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notifier").field("notified", &self.notified).finish_non_exhaustive()
    }
}

impl Notifier {
    /// A notifier for a thread that is yet to be named. Driven by a simulator it stays without one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The calling thread is the one to wake, in place of who was so before; with a transport, it waits for sockets.
    pub fn attach(&self, transport: Option<Arc<dyn Transport>>) {
        *self.thread.lock() = Some(current());
        if let Some(transport) = transport {
            let _ = self.transport.set(transport);
        }
    }

    /// There is something to do.
    pub fn notify(&self) {
        if self.notified.swap(true, Ordering::SeqCst) {
            return;
        }
        if self.waiting.load(Ordering::SeqCst) {
            if let Some(transport) = self.transport.get() {
                transport.wake();
            } else if let Some(thread) = &*self.thread.lock() {
                thread.unpark();
            }
        }
    }

    /// Leaves something for the thread, which is told when it is there.
    pub fn after<R>(&self, leave: impl FnOnce() -> R) -> R {
        if plant::is("woken-before-it-is-left") {
            self.notify();
            return leave();
        }
        let left = leave();
        self.notify();
        left
    }

    /// How often its thread was woken, by others or by sockets.
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }

    /// Takes the notification, before a round.
    pub fn take(&self) -> bool {
        self.notified.swap(false, Ordering::SeqCst)
    }

    /// Sleeps until notified, or for `timeout`. Only for the attached thread.
    pub fn park(&self, timeout: Duration) {
        let early = plant::is("looked-before-it-sleeps") && !self.notified.load(Ordering::SeqCst);
        // Before the look: whoever notifies after it sees that there is somebody to wake.
        self.waiting.store(true, Ordering::SeqCst);
        if early || !self.notified.load(Ordering::SeqCst) {
            let begun = Instant::now();
            match self.transport.get() {
                Some(transport) => transport.wait(timeout),
                None => park_timeout(timeout),
            }
            if begun.elapsed() < timeout {
                self.wakes.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.waiting.store(false, Ordering::SeqCst);
    }
}
