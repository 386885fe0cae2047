//! Memory that a burst left behind goes back to the operating system when groups have fallen silent.
//!
//! Thousands of groups that start, elect and write at once take tens of megabytes for a moment. Workers keep their buffers as
//! large as they were needed then, and the allocator what was freed, spread over the heap of each thread, while the groups that
//! they were for are silent and may stay so for days. So the workers are asked to let go of theirs first, and when they have had
//! time to, the allocator is asked for its pages.
//!
//! Invariant: it happens once after each time that many replicas fell silent and most of the host's are; what takes long of
//! it happens on a thread of the pool. Must not know: which replicas they are, and what workers keep.

use longboat_io::{Job, JobState, Spawner, heap};
use longboat_raft::Time;
use std::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds between looks: falling silent is a matter of seconds.
const LOOK_NANOS: u64 = 1_000_000_000;
/// Replicas that must have fallen silent since the last time: fewer leave too little behind to look for it.
const SILENT_MIN: u64 = 1_000;

/// Asks every worker of a host to let go of the buffers that it does not use at the moment, each in a round of its own.
#[derive(Debug, Default)]
pub struct ShedCall(AtomicU64);

impl ShedCall {
    /// Whether there was a call since this was last asked with the same `heard`.
    pub(crate) fn is_new(&self, heard: &mut u64) -> bool {
        let calls = self.0.load(Ordering::Relaxed);
        std::mem::replace(heard, calls) != calls
    }
}

/// When to do it.
#[derive(Debug, Default)]
pub(crate) struct GiveBack {
    next_look: Time,
    /// The workers were asked at the last look.
    called: bool,
    /// Silent replicas at the last look.
    seen: u64,
    /// Those of them after whose silence memory was given back already.
    done_for: u64,
}

impl GiveBack {
    /// Looks, if it is time to, how many of the host's replicas are silent.
    pub(crate) fn look(
        &mut self,
        now: Time,
        counts: impl FnOnce() -> (u64, u64),
        call: &ShedCall,
        spawner: &dyn Spawner,
    ) {
        if now < self.next_look {
            return;
        }
        self.next_look = now.plus_nanos(LOOK_NANOS);
        if std::mem::take(&mut self.called) {
            // Workers run a round for each beat, which come more often than these looks.
            spawner.spawn(Box::new(GiveBackJob));
        }
        let (silent, all) = counts();
        if self.is_due(silent, all) {
            tracing::debug!(silent, all, "memory that was left behind is given back");
            call.0.fetch_add(1, Ordering::Relaxed);
            self.called = true;
        }
    }

    fn is_due(&mut self, silent: u64, all: u64) -> bool {
        let settled = std::mem::replace(&mut self.seen, silent) == silent;
        // Those that woke may fall silent again.
        self.done_for = self.done_for.min(silent);
        let due = settled && silent - self.done_for >= SILENT_MIN && 2 * silent >= all;
        if due {
            self.done_for = silent;
        }
        due
    }
}

struct GiveBackJob;

impl Job for GiveBackJob {
    fn step(&mut self, _budget: usize) -> JobState {
        heap::give_back();
        JobState::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_once_after_many_fell_silent() {
        let mut give_back = GiveBack::default();
        let due: Vec<bool> = [(400, 3_000), (2_900, 3_000), (3_000, 3_000), (3_000, 3_000), (3_000, 3_000)]
            .map(|(silent, all)| give_back.is_due(silent, all))
            .into();
        assert_eq!(due, [false, false, false, true, false], "when no more of them do, and once");
        assert!(!give_back.is_due(2_500, 3_000) && !give_back.is_due(3_000, 3_000) && !give_back.is_due(3_000, 3_000));
        assert!(!give_back.is_due(100, 3_000) && !give_back.is_due(3_000, 3_000), "they woke");
        assert!(give_back.is_due(3_000, 3_000), "and have left something behind again");
    }

    #[test]
    fn a_busy_host_keeps_its_memory() {
        let mut give_back = GiveBack::default();
        assert!((0..5).all(|_| !give_back.is_due(4_000, 10_000)), "most of it is used again at once");
        assert!((0..5).all(|_| !give_back.is_due(900, 900)), "that is not worth it");
    }
}
