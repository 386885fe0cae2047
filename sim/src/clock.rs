//! Simulated time: one clock for the whole world, moved by the driver alone.

use longboat_io::Clock;
use longboat_raft::Time;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct SimClock {
    nanos: AtomicU64,
}

impl SimClock {
    /// Starts one second above zero, as the real clock does.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { nanos: AtomicU64::new(1_000_000_000) })
    }

    /// Moves to `time`, never back.
    pub fn advance_to(&self, time: Time) {
        self.nanos.fetch_max(time.0, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Time {
        Time(self.nanos.load(Ordering::Relaxed))
    }
}
