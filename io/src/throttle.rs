//! A limit of bytes per second for work that may wait.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// How long a limit may be saved up: what was not used for longer is lost.
const BURST: Duration = Duration::from_millis(20);

/// A limit that all who hold it share. Whoever goes beyond it sleeps: for threads of a pool, never for a worker.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_s: u64,
    /// The moment through which what was let through is paid for.
    paid: Mutex<Instant>,
}

impl Throttle {
    /// A limit of so many bytes per second, which is not zero.
    pub fn new(bytes_per_s: u64) -> Self {
        assert!(bytes_per_s > 0, "a limit of nothing lets nothing through");
        Self { bytes_per_s, paid: Mutex::new(Instant::now()) }
    }

    /// Pays for so many bytes, and sleeps until what was paid before is due.
    pub fn pay(&self, bytes: usize) {
        let now = Instant::now();
        let due = {
            let mut paid = self.paid.lock();
            let due = (*paid).max(now.checked_sub(BURST).unwrap_or(now));
            *paid = due + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
            due
        };
        std::thread::sleep(due.saturating_duration_since(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_paid_is_due_after_as_long_as_the_limit_says() {
        let throttle = Throttle::new(1 << 20);
        let from = Instant::now();
        throttle.pay(1 << 18);
        throttle.pay(1);
        assert!(from.elapsed() + BURST >= Duration::from_millis(250), "{:?}", from.elapsed());
    }
}
