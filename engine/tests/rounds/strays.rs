//! Snapshots that nobody has a use for any more, and what takes their names.

use crate::alone::GROUP;
use crate::trio::Trio;
use longboat_engine::shared::Command;
use longboat_engine::{SnapshotOptions, SnapshotOutcome, Worker};
use longboat_io::Clock;
use longboat_raft::{Index, Time};
use longboat_rsm::RequestError;

pub const GUARDS: &[(&str, fn())] = &[
    ("stream-beside-a-removal", a_snapshot_that_is_received_again_outlives_the_removal_of_the_one_before),
    ("stray-snapshot-kept", a_snapshot_that_came_for_a_stopped_replica_goes),
    ("overlap-puts-back-a-failure", a_failed_save_leaves_no_trace_in_the_request_after_it),
];

fn a_snapshot_that_is_received_again_outlives_the_removal_of_the_one_before() {
    let (mut trio, _) = crate::transfers::led(1);
    let index = trio.one(1).host.steps[0].replicas().next().unwrap().core.handed();
    trio.join(2);
    let now = trio.clock.now();
    let two = trio.one(2);
    // It moves in. One of this index came in vain, and the pool is not done with it.
    two.host.steps[0].run_round(now);
    two.pool_stands = true;
    two.host.snapshots.discard(two.host.steps[0].replicas().next().unwrap(), index);
    trio.pass(200);
    // Whatever the pool takes first, the removal comes last.
    let jobs = std::sync::Arc::clone(&trio.one(2).jobs);
    for _ in 0..200 {
        jobs.step_all_but_the_oldest();
        trio.pass(1);
    }
    trio.one(2).pool_stands = false;
    trio.until("an install", |trio| trio.recorded(2) >= index);
    trio.pass(20);
    assert!(trio.files(2).contains(&trio.recorded(2)), "the record names what is there");
    trio.until_values(2, 0..300);
    assert_eq!(trio.one(2).storage.lock().recovered, 1);
}

fn a_snapshot_that_came_for_a_stopped_replica_goes() {
    let (mut trio, _) = crate::transfers::led(1);
    trio.join(2);
    trio.until("a transfer", |trio| !trio.one(2).host.shared.transfers.list().is_empty());
    // All of it arrives, and before raft hears of that the replica is stopped.
    let mut found = Vec::new();
    for _ in 0..2000 {
        trio.pass_without_steps_of(2);
        found = trio.files(2);
        if !found.is_empty() {
            break;
        }
    }
    (0..20).for_each(|_| trio.pass_without_steps_of(2));
    let [index] = found[..] else { panic!("one snapshot: {found:?}") };
    let two = trio.one(2);
    let commands = two.host.shared.workers[0].take_commands();
    assert!(commands.iter().any(|c| matches!(c, Command::Deliver { .. })), "raft is about to be told");
    assert!(two.host.starter.stop(GROUP));
    commands.into_iter().for_each(|command| two.host.shared.command(0, command));
    trio.pass(20);
    assert_eq!(trio.files(2), [], "nobody will ever name {index}");
}

fn a_failed_save_leaves_no_trace_in_the_request_after_it() {
    let mut trio = Trio::new(0, |_| {});
    trio.put(0..10);
    let saved = trio.save(1).unwrap();
    trio.put(10..20);
    // A save then leaves the state machine to the applies.
    trio.one(1).storage.lock().is_durable = true;
    trio.one(1).pool_stands = true;
    let shared = std::sync::Arc::clone(&trio.one(1).shared);
    let ask = || shared.enqueue_snapshot(SnapshotOptions::default(), Time(u64::MAX)).unwrap();
    let first = ask();
    trio.pass(5);
    trio.put(20..30);
    let second = ask();
    // The second is ignored because the first is under way; that is aborted, and the worker hears of that first.
    trio.pass_without_steps_after_apply_of(1);
    assert!(shared.abort_snapshots());
    trio.one(1).jobs.step_all();
    let mut ended = trio.one(1).host.shared.workers[0].take_commands();
    assert_eq!(ended.iter().filter(|c| matches!(c, Command::SnapshotSaved(..))).count(), 2, "both have ended");
    ended.reverse();
    ended.into_iter().for_each(|command| trio.one(1).host.shared.command(0, command));
    trio.one(1).pool_stands = false;
    trio.pass(5);
    let outcome = |pending: longboat_rsm::Pending<SnapshotOutcome>| crate::alone::outcome(pending);
    assert_eq!(outcome(first), Err(RequestError::SnapshotAborted));
    assert_eq!(outcome(second), Ok(SnapshotOutcome::Ignored));
    let last: Index = trio.one(1).host.steps[0].replicas().next().unwrap().last_request;
    assert_eq!(last, saved, "the last request that came to something");
}
