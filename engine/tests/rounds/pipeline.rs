//! What is asked for and refused on the way to a save, and a joint configuration that comes with a snapshot.

use crate::alone::{Alone, GROUP, MILLI, outcome, voters};
use crate::guards::Led;
use crate::list::Open;
use crate::transfers::led;
use crate::trio::Trio;
use longboat_engine::{Changed, Rare, SnapshotOptions, SnapshotOutcome};
use longboat_io::Clock;
use longboat_raft::{
    Change, ChangeKind, ConfigChange, HostId, Index, Member, Promotion, ProposeOptions, ReplicaId, StoreId, Time,
    Transition,
};
use longboat_rsm::{Concurrent, Pending, RequestError, SnapshotRefusal};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("nothing-applied-saved", a_replica_that_has_applied_nothing_saves_nothing),
    ("two-overrides-taken", a_request_says_in_one_way_what_of_the_log_stays),
    ("save-while-saving", a_save_beside_another_is_ignored),
    ("stopped-before-truncated", a_replica_that_stops_while_log_goes_is_started_without_it),
];

fn a_replica_that_has_applied_nothing_saves_nothing() {
    let dir = TempDir::new().unwrap();
    // Nobody else is there: no leader, no entry, no snapshot.
    let mut led = Led::on(Alone::open(dir.path()), voters(3), |_| {});
    assert_eq!(led.applied(), Index::ZERO);
    let refused = Err(RequestError::SnapshotRefused(SnapshotRefusal::NothingApplied));
    assert_eq!(led.snapshot(SnapshotOptions::default()), refused);
    let dir = TempDir::new().unwrap();
    assert_eq!(led.snapshot(SnapshotOptions::export_to(dir.path())), refused);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Seed 13315 of the simulator: the next life pinned an entry that its store did not have any more.
fn a_replica_that_stops_while_log_goes_is_started_without_it() {
    let mut trio = Trio::new(0, |_| {});
    trio.put(0..30);
    trio.one(1).writer_stands = true;
    let options = SnapshotOptions::default().with_compaction_overhead(3);
    let asked = trio.one(1).shared.enqueue_snapshot(options, Time(u64::MAX)).unwrap();
    trio.pass(20);
    let before = trio.start_index(1);
    let open = asked.wait_timeout(Duration::ZERO);
    drop(open.expect_err("its record is on its way, and so is the end of the log before it"));
    assert!(trio.one(1).host.starter.stop(GROUP));
    trio.pass(1);
    trio.one(1).writer_stands = false;
    let now = trio.clock.now();
    trio.next_life(1, now);
    trio.pass(300);
    let (start, index) = (trio.start_index(1), trio.recorded(1));
    assert!(start > before && start.0 == index.0 - 3, "{start} of {index}");
    trio.put(30..40);
    trio.until_values(1, 0..40);
}

fn a_request_says_in_one_way_what_of_the_log_stays() {
    let mut led = Led::new(|_| {});
    led.put(0..10);
    let both = SnapshotOptions::default().with_compaction_overhead(1).with_compaction_index(Index(3));
    let refused = led.ask(both).map(drop);
    assert_eq!(refused, Err(RequestError::SnapshotRefused(SnapshotRefusal::TwoOverrides)));
    let dir = TempDir::new().unwrap();
    let export = led.ask(SnapshotOptions::export_to(dir.path()).with_compaction_overhead(1)).map(drop);
    assert_eq!(export, Err(RequestError::SnapshotRefused(SnapshotRefusal::ExportKeepsLog)));
    led.settle();
    assert_eq!((led.start(), led.files()), (Index::ZERO, Vec::new()), "what was refused is done");
}

fn a_save_beside_another_is_ignored() {
    let dir = TempDir::new().unwrap();
    let mut alone = Alone::open(dir.path());
    let shared = alone.start_machine(Alone::config(1), voters(1), Concurrent(Open::default()));
    alone.pass(300);
    let put = |alone: &mut Alone, values: std::ops::Range<u64>| {
        let values: Vec<u64> = values.collect();
        let deadline = alone.clock.now().plus_nanos(1_000 * MILLI);
        shared.enqueue::<Concurrent<Open>>(values.into_iter(), ProposeOptions::default(), deadline).unwrap();
        alone.pass(5);
        Index(shared.published.applied.load(Ordering::Relaxed))
    };
    let ask = || shared.enqueue_snapshot(SnapshotOptions::default(), Time(u64::MAX)).unwrap();
    // The state goes on changing while it is saved, and no job of the pool has its turn.
    let index = put(&mut alone, 0..10);
    let first = ask();
    assert!(put(&mut alone, 10..20) > index);
    let second = ask();
    alone.pass(5);
    let early = second.wait_timeout(Duration::ZERO).expect("answered at once");
    assert_eq!(early, Ok(SnapshotOutcome::Ignored));
    alone.run_jobs();
    alone.pass(5);
    assert_eq!(outcome(first), Ok(SnapshotOutcome::Saved { index }));
    // What was ignored does not count as saved.
    let third = ask();
    alone.pass(5);
    alone.run_jobs();
    alone.pass(5);
    assert!(matches!(outcome(third), Ok(SnapshotOutcome::Saved { index: later }) if later > index));
}

/// A group stands in a joint configuration while its log goes: a member that comes then has it from the snapshot, both
/// halves, and leaves it with the others.
pub fn a_joint_configuration_comes_with_a_snapshot() {
    let (mut trio, _) = led(1);
    let member = Member { host: HostId(9), store: StoreId::ZERO };
    let (kind, promotion) = (ChangeKind::AddLearner, Promotion::Never);
    let changes = vec![Change { kind, replica: ReplicaId(9), member, promotion }];
    let enter = ConfigChange { transition: Transition::JointExplicit, changes, after: None };
    let ask = |trio: &mut Trio, change| -> Pending<Changed> {
        let deadline = trio.clock.now().plus_nanos(20_000 * MILLI);
        let shared = Arc::clone(&trio.one(1).shared);
        shared.request(deadline, |reply| Rare::Change(change, reply)).unwrap()
    };
    let joint = ask(&mut trio, enter);
    trio.until("a joint configuration", |trio| trio.one(1).shared.membership.lock().is_joint());
    joint.wait_timeout(Duration::ZERO).expect("resolved").expect("in effect");
    let index = trio.save(1).unwrap();
    assert_eq!(trio.start_index(1), index, "the entry that entered it is gone");
    trio.join(2);
    trio.until("an install", |trio| trio.one(2).storage.lock().recovered > 0);
    let membership = |trio: &mut Trio, id| trio.one(id).shared.membership.lock().clone();
    let (here, there) = (membership(&mut trio, 2), membership(&mut trio, 1));
    assert!(here.is_joint() && here == there, "{here:?}, {there:?}");
    // It is as durable as the snapshot.
    trio.restart(2, |storage| storage);
    assert!(trio.one(2).shared.membership.lock().is_joint());
    trio.wires.open();
    let left = ask(&mut trio, ConfigChange::leave_joint());
    trio.until("one configuration", |trio| !trio.one(2).shared.membership.lock().is_joint());
    trio.pass(50);
    left.wait_timeout(Duration::ZERO).expect("resolved").expect("left");
    trio.put(300..310);
    trio.until_values(2, 0..310);
}
