//! The monotonic clock.

use longboat_raft::Time;
use std::time::Instant;

/// Tells the time. Never goes back.
pub trait Clock: Send + Sync + 'static {
    /// The current moment, in nanoseconds since an arbitrary start.
    fn now(&self) -> Time;
}

/// The machine's monotonic clock; its start is when it was made.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    start: Instant,
}

impl MonotonicClock {
    /// A clock that starts one second above zero, so that "long ago" can be expressed.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Time {
        Time(self.start.elapsed().as_nanos() as u64 + 1_000_000_000)
    }
}
