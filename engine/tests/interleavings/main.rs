//! What the engine's threads share, under every order of them: the crate's own sources, over locks and atomics that let a checker
//! decide who goes on after each step. A thread that nobody wakes is a deadlock, which the checker reports.
//!
//! The checker takes every atomic operation as sequentially consistent: it finds wrong orders, and not too weak ones.
//!
//! A case that fails is named before its orders; `LONGBOAT_CASE=NAME SHUTTLE_RANDOM_SEED=SEED` plays it again.
//! `LONGBOAT_INTERLEAVINGS=100000` tries so many orders of each case. With the feature `plant` each planted bug of the sources must
//! be found.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

mod applies;
mod apply;
mod batches;
mod groups;
#[path = "../../../rsm/tests/interleavings/locks.rs"]
mod locks;
mod turns;
mod wakes;

// What the sources name from their crate.
mod config {
    /// Small, so that few frames reach it.
    pub const INBOX_BYTES_MAX: usize = 20;
}
mod log_writer {
    /// A batch as the inbox knows it.
    #[derive(Debug, Default)]
    pub struct SealedBatch {
        pub worker: Option<usize>,
        pub seq: u64,
        pub updates: Vec<longboat_logdb::Update>,
    }
}
mod shared {
    pub use crate::groups::Command;
    pub use crate::ready::SlotRef;
    pub use longboat_engine::shared::InFrame;
    use longboat_raft::{GroupId, ReplicaId};

    /// A replica as lanes know it.
    #[derive(Debug)]
    pub struct GroupShared {
        pub group: GroupId,
        pub replica: ReplicaId,
    }
}
mod sync {
    pub use crate::locks::{Guard as MutexGuard, Mutex};
    pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
    pub use shuttle::thread::{Thread, current, park_timeout};
}

#[path = "../../src/client_queue.rs"]
mod client_queue;
#[path = "../../../io/src/line.rs"]
mod line;
#[path = "../../src/notify.rs"]
mod notify;
#[path = "../../src/ready.rs"]
mod ready;
#[path = "../../src/worker_inbox.rs"]
mod worker_inbox;
#[path = "../../src/writer_inbox.rs"]
mod writer_inbox;

/// Orders that are tried of each case, by chance, and as many again by priorities that change at few points.
const ORDERS: usize = 3000;

/// Points at which priorities change.
const DEPTH: usize = 3;

/// A case with its name, and the planted bugs that it finds.
type Case = (&'static str, fn(), &'static [&'static str]);

fn cases() -> impl Iterator<Item = &'static Case> {
    wakes::CASES.iter().chain(groups::CASES).chain(batches::CASES).chain(applies::CASES).chain(turns::CASES)
}

fn main() {
    let orders = std::env::var("LONGBOAT_INTERLEAVINGS").ok().map_or(ORDERS, |n| n.parse().expect("a number"));
    let only = std::env::var("LONGBOAT_CASE").ok();
    for (name, case, _) in cases().filter(|(name, ..)| only.as_ref().is_none_or(|only| only == name)) {
        println!("{name}");
        shuttle::check_random(case, orders);
        shuttle::check_pct(case, orders, DEPTH);
    }
    println!("{} cases hold in {} orders each", cases().count(), 2 * orders);
    #[cfg(feature = "plant")]
    planted(orders);
}

/// Each bug is found by each case that names it.
#[cfg(feature = "plant")]
fn planted(orders: usize) {
    use longboat_raft::plant;
    use std::panic::catch_unwind;
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (name, case, bugs) in cases() {
        for bug in *bugs {
            plant::set(Some(bug));
            let found = catch_unwind(|| shuttle::check_random(case, orders)).is_err()
                || catch_unwind(|| shuttle::check_pct(case, orders, DEPTH)).is_err();
            plant::set(None);
            println!("{bug} {} of 1", u32::from(found));
            missed.extend((!found).then_some((name, bug)));
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found, by case: {missed:?}");
}
