//! State machines that panic: each stops its own replica at most, and a thousand others go on.

use crate::cluster::{PATIENCE, until};
use crate::trap::{At, Beside, Counter, GROUPS, Hall, Stored, Trapped};
use longboat::*;

/// Groups whose state machines panic here or there.
const APPLY: u64 = 1;
const LOOKUP: u64 = 2;
const SAVE: u64 = 3;
const RECOVER: u64 = 4;
/// Begins from what `RECOVER` exported.
const NEW: u64 = GROUPS + 1;

fn panics_anywhere_and_reaches_no_other_group<M: Trapped>() {
    let hall = Hall::<M>::open(Threads::Auto);
    assert!(hall.add_one(1..=GROUPS).into_iter().all(|count| count == 1));

    hall.trap(APPLY).panics(At::Apply);
    let group = hall.group(APPLY);
    let error = group.propose(1, PATIENCE).unwrap().wait().expect_err("it panics");
    assert!(matches!(error, RequestError::MachineFailed { .. }) && error.may_have_applied(), "{error}");
    until("the replica to stop", || hall.host.replica(group.id()).is_err().then_some(()));

    hall.trap(LOOKUP).panics(At::Lookup);
    let group = hall.group(LOOKUP);
    let error = group.read((), PATIENCE).unwrap().wait().expect_err("it panics");
    assert!(matches!(error, RequestError::LookupFailed(_)), "{error}");
    hall.trap(LOOKUP).panics(At::Nowhere);
    assert_eq!(group.read((), PATIENCE).unwrap().wait(), Ok(1));

    hall.trap(SAVE).panics(At::Save);
    let error = hall.export(SAVE).expect_err("it panics");
    assert!(matches!(error, RequestError::Snapshot(_)), "{error}");
    hall.trap(SAVE).panics(At::Nowhere);
    let saved = hall.group(SAVE).request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait();
    assert!(matches!(saved, Ok(SnapshotOutcome::Saved { .. })), "{saved:?}");

    hall.export(RECOVER).expect("exported");
    hall.trap(NEW).panics(At::Recover);
    let group = hall.begin_from(RECOVER, NEW);
    until("the replica to stop", || hall.host.replica(group.id()).is_err().then_some(()));

    assert_eq!(hall.host.info().machine_failures, 2);
    let counts = hall.add_one((1..=GROUPS).filter(|&g| g != APPLY));
    assert_eq!(counts, vec![2; GROUPS as usize - 1]);
    hall.close();
}

#[test]
fn a_state_machine_that_panics_anywhere_reaches_no_other_group() {
    panics_anywhere_and_reaches_no_other_group::<Counter>();
}

#[test]
fn a_concurrent_state_machine_that_panics_anywhere_reaches_no_other_group() {
    panics_anywhere_and_reaches_no_other_group::<Concurrent<Beside>>();
}

#[test]
fn a_state_machine_on_disk_that_panics_anywhere_reaches_no_other_group() {
    panics_anywhere_and_reaches_no_other_group::<OnDisk<Stored>>();
}
