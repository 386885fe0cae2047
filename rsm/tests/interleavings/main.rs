//! The results of requests under every order of the threads that make them and wait for them: the crate's own source, over
//! locks that let a checker decide who goes on after each step.
//!
//! `LONGBOAT_INTERLEAVINGS=100000` tries so many orders of each case. With the feature `plant` each planted bug of the source must
//! be found.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

mod locks;

/// What the source names from its crate.
mod error {
    pub use longboat_rsm::RequestError;
}
mod sync {
    pub use crate::locks::{Condvar, Mutex};
}

#[path = "../../src/completion.rs"]
mod completion;

use completion::{AnyCompletion, Completion, Pending, PendingBatch};
use error::RequestError;
use shuttle::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Orders that are tried of each case.
const ORDERS: usize = 3000;

/// A case, and the planted bugs that it finds.
type Case = (fn(), &'static [&'static str]);

const CASES: &[Case] = &[
    (who_blocks_is_woken, &["waiters-counted-too-early"]),
    (a_future_is_woken, &["waker-forgotten"]),
    (who_waits_for_a_time_may_ask_again, &["waiters-counted-too-early"]),
    (the_first_outcome_wins, &["resolved-twice"]),
    (a_batch_waits_for_all_of_its_parts, &["waiters-counted-too-early"]),
    (a_future_batch_is_woken_for_each_of_its_slots, &["waker-forgotten"]),
];

fn who_blocks_is_woken() {
    let (pending, completion) = Pending::<u32>::single();
    let other = thread::spawn(move || completion.complete(0, [Ok(7)].into_iter()));
    assert_eq!(pending.wait(), Ok(7));
    other.join().unwrap();
}

fn a_future_is_woken() {
    let (pending, completion) = Pending::<u32>::single();
    let other = thread::spawn(move || completion.complete(0, [Ok(7)].into_iter()));
    assert_eq!(shuttle::future::block_on(pending), Ok(7));
    other.join().unwrap();
}

fn who_waits_for_a_time_may_ask_again() {
    let (mut pending, completion) = Pending::<u32>::single();
    let other = thread::spawn(move || completion.complete(0, [Ok(7)].into_iter()));
    let outcome =
        (0..2).find_map(|_| match std::mem::replace(&mut pending, Pending::single().0).wait_timeout(Duration::ZERO) {
            Ok(outcome) => Some(outcome),
            Err(back) => {
                pending = back;
                None
            }
        });
    assert_eq!(outcome.unwrap_or_else(|| pending.wait()), Ok(7));
    other.join().unwrap();
}

fn the_first_outcome_wins() {
    let (pending, completion) = Pending::<u32>::single();
    let (applied, first) = (Arc::clone(&completion), Arc::new(AtomicBool::new(false)));
    let done = Arc::clone(&first);
    let worker = thread::spawn(move || {
        applied.complete(0, [Ok(7)].into_iter());
        done.store(true, Ordering::SeqCst);
    });
    let clock = thread::spawn(move || {
        let late = first.load(Ordering::SeqCst);
        completion.fail(0, 1, &RequestError::OutcomeUnknown);
        late
    });
    let late = clock.join().unwrap();
    worker.join().unwrap();
    let outcome = pending.wait();
    assert!(outcome == Ok(7) || !late, "what was resolved is overwritten with {outcome:?}");
}

fn a_batch_waits_for_all_of_its_parts() {
    let (one, two) = (Completion::<u32>::new(), Completion::<u32>::new());
    let batch = PendingBatch::new(vec![(Arc::clone(&one), 1..3), (Arc::clone(&two), 0..1)]);
    let first = thread::spawn(move || one.complete(0, [Ok(0), Ok(1), Ok(2)].into_iter()));
    let second = thread::spawn(move || two.fail(0, 1, &RequestError::Dropped));
    assert_eq!(batch.wait(), [Ok(1), Ok(2), Err(RequestError::Dropped)]);
    first.join().unwrap();
    second.join().unwrap();
}

fn a_future_batch_is_woken_for_each_of_its_slots() {
    let completion = Completion::<u32>::new();
    let batch = PendingBatch::new(vec![(Arc::clone(&completion), 0..2)]);
    let workers: Vec<_> = (0..2)
        .map(|slot| {
            let completion = Arc::clone(&completion);
            thread::spawn(move || completion.complete(slot, [Ok(slot)].into_iter()))
        })
        .collect();
    assert_eq!(shuttle::future::block_on(batch), [Ok(0), Ok(1)]);
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

fn main() {
    let orders = std::env::var("LONGBOAT_INTERLEAVINGS").ok().map_or(ORDERS, |n| n.parse().expect("a number"));
    for (case, _) in CASES {
        shuttle::check_random(case, orders);
        shuttle::check_pct(case, orders, 3);
    }
    println!("{} cases hold in {} orders each", CASES.len(), 2 * orders);
    #[cfg(feature = "plant")]
    planted(orders);
}

/// Each bug is found by each case that names it.
#[cfg(feature = "plant")]
fn planted(orders: usize) {
    use longboat_raft::plant;
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (at, (case, bugs)) in CASES.iter().enumerate() {
        for bug in *bugs {
            plant::set(Some(bug));
            let outcome = std::panic::catch_unwind(|| shuttle::check_random(case, orders));
            plant::set(None);
            println!("{bug} {} of 1", u32::from(outcome.is_err()));
            missed.extend(outcome.is_ok().then_some((at, bug)));
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found, by case: {missed:?}");
}
