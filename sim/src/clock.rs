//! Simulated time: one clock for the whole world, moved by the driver alone, and each host's own, which drifts and jumps.
//!
//! Invariant: no clock ever goes back, as no monotonic one does: what is set back stands still until it has caught up.

use longboat_io::Clock;
use longboat_raft::Time;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

const MILLION: i64 = 1_000_000;

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

/// What a host takes for the time.
#[derive(Debug)]
pub struct HostClock {
    world: Arc<SimClock>,
    /// How much more it counts than the world in a million, or less.
    drift_ppm: i64,
    /// How far it was set on, in nanoseconds, or back.
    set_nanos: AtomicI64,
    /// The latest time that it told.
    told: AtomicU64,
}

impl HostClock {
    /// A clock that goes faster than the world by so much, or slower.
    pub fn new(world: Arc<SimClock>, drift_ppm: i64) -> Arc<Self> {
        Arc::new(Self { world, drift_ppm, set_nanos: AtomicI64::new(0), told: AtomicU64::new(0) })
    }

    /// Sets it on, or back.
    pub fn set(&self, nanos: i64) {
        self.set_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What it shows when the world's clock shows `world`.
    fn shown(&self, world: Time) -> Time {
        let set = self.set_nanos.load(Ordering::Relaxed);
        // Simulated times are far below the 292 years that fit.
        let world = world.0.min(i64::MAX as u64) as i64;
        let drifted = match self.drift_ppm {
            0 => world,
            ppm => world + (i128::from(world) * i128::from(ppm)).div_euclid(i128::from(MILLION)) as i64,
        };
        Time(u64::try_from(drifted.saturating_add(set)).unwrap_or(0).max(self.told.load(Ordering::Relaxed)))
    }

    /// When the world's clock shows this host's `time`, unless this one is set meanwhile. Never too early.
    pub fn in_world(&self, time: Time) -> Time {
        let set = self.set_nanos.load(Ordering::Relaxed);
        if self.drift_ppm == 0 {
            return Time(time.0.saturating_add_signed(set.saturating_neg()));
        }
        let counted = (i128::from(time.0) - i128::from(set)) * i128::from(MILLION);
        let rate = i128::from(MILLION + self.drift_ppm);
        Time(u64::try_from((counted.max(0) + rate - 1) / rate).unwrap_or(u64::MAX))
    }
}

impl Clock for HostClock {
    fn now(&self) -> Time {
        let now = self.shown(self.world.now());
        self.told.fetch_max(now.0, Ordering::Relaxed);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_s_clock_drifts_jumps_on_and_never_goes_back() {
        let world = SimClock::new();
        let clock = HostClock::new(Arc::clone(&world), 50_000);
        assert_eq!(clock.now(), Time(1_050_000_000));
        clock.set(1_000_000_000);
        assert_eq!(clock.now(), Time(2_050_000_000));
        clock.set(-2_000_000_000);
        assert_eq!(clock.now(), Time(2_050_000_000), "it stands still");
        let catches_up = clock.in_world(Time(2_050_000_100));
        world.advance_to(Time(catches_up.0 - 200));
        assert_eq!(clock.now(), Time(2_050_000_000));
        world.advance_to(catches_up);
        assert!(clock.now() >= Time(2_050_000_100), "a deadline is due when it was said to be");
    }
}
