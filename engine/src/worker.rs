//! What a thread, or the simulator, drives: workers with rounds.

use longboat_raft::Time;

/// What a round came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Something was done.
    pub did: bool,
    /// There is more to do at once.
    pub again: bool,
    /// The worker wants a round at this moment even if nobody notifies it.
    pub next: Option<Time>,
}

impl Work {
    /// Nothing done, nothing to wait for but a notification.
    pub const fn idle() -> Self {
        Self { did: false, again: false, next: None }
    }

    /// There is more to do at once.
    pub const fn again() -> Self {
        Self { did: true, again: true, next: None }
    }
}

/// A worker of a host.
pub trait Worker: Send {
    /// Does what there is to do at `now`. Never blocks on other workers; the log writer alone may block, on its disk.
    fn run_round(&mut self, now: Time) -> Work;
}
