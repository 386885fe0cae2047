//! The timeline of a replayed seed: what the simulator does and what the engine says, with simulated time.

use longboat_raft::Time;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// The moment that lines are stamped with. Read by nothing but the timeline.
static NANOS: AtomicU64 = AtomicU64::new(0);

struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        write!(out, "{:>12.6}", NANOS.load(Ordering::Relaxed) as f64 / 1e9)
    }
}

/// Shows what the engine says, for the rest of the process.
pub fn show_engine() {
    let shown = tracing_subscriber::fmt()
        .with_timer(SimulatedTime)
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_ansi(false)
        .with_target(false)
        .try_init();
    // Another subscriber is as good.
    drop(shown);
}

/// Lines are stamped with this moment from here on: the time since the start of the simulation.
pub fn set_now(since_start: Time) {
    NANOS.store(since_start.0, Ordering::Relaxed);
}
