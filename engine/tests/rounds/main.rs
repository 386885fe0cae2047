//! One host whose workers are driven round by round, on a clock that the test moves and with no other host to speak to: what
//! a round leaves to be done at once, in which order a group's words reach the journal, and the life of a snapshot.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod alone;
mod guards;
mod list;
mod log;

use alone::{Alone, GROUP, MILLI, outcome, voters};
use longboat_engine::{Changed, Rare, Start, StartError};
use longboat_io::Clock;
use longboat_raft::{ConfigChange, HostId, Member, ReplicaId, StoreId};
use longboat_rsm::{Pending, RequestError, Stage};

#[test]
fn every_guard_holds() {
    for (name, scenario) in guards::GUARDS {
        eprintln!("the scenario for {name}");
        scenario();
    }
}

#[test]
fn a_change_that_waits_for_a_leader_leaves_its_worker_nothing_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    // The other two voters are on hosts that nobody can reach: no leader ever comes.
    let shared = alone.start(1, voters(3)).expect("starts");
    alone.pass(300);
    let deadline = alone.clock.now().plus_nanos(500 * MILLI);
    let change = ConfigChange::add_learner(ReplicaId(4), Member { host: HostId(4), store: StoreId::ZERO });
    let pending: Pending<Changed> = shared.request(deadline, |reply| Rare::Change(change, reply)).expect("taken");
    alone.pass(400);
    assert_eq!(alone.step(), 1);
    alone.pass(200);
    let error = outcome(pending).expect_err("no leader came");
    assert_eq!(error, RequestError::Timeout { stage: Stage::NoLeader, may_have_applied: false });
}

#[test]
fn a_change_that_waited_is_made_as_soon_as_there_is_a_leader() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    let shared = alone.start(1, voters(1)).expect("starts");
    let deadline = alone.clock.now().plus_nanos(5000 * MILLI);
    let change = ConfigChange::add_learner(ReplicaId(4), Member { host: HostId(4), store: StoreId::ZERO });
    let pending: Pending<Changed> = shared.request(deadline, |reply| Rare::Change(change, reply)).expect("taken");
    alone.pass(500);
    assert!(outcome(pending).expect("made").membership.learners.contains(&ReplicaId(4)));
}

#[test]
fn a_group_does_not_come_back_before_the_tombstone_of_its_former_replica_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.start(1, voters(1)).expect("starts");
    alone.pass(300);
    assert!(alone.host.starter.stop(GROUP));
    alone.pass(2);
    let removed = alone.host.starter.remove_data(GROUP).expect("stopped");
    // Not written yet.
    alone.step();
    let error = alone.start(2, Start::Join).expect_err("the tombstone is on its way");
    assert!(matches!(error, StartError::BeingRemoved(GROUP)), "{error}");
    alone.pass(2);
    let error = alone.start(2, Start::Join).expect_err("the files are not deleted");
    assert!(matches!(error, StartError::BeingRemoved(GROUP)), "{error}");
    alone.run_jobs();
    outcome(removed).expect("removed");
    assert!(matches!(alone.start(1, voters(1)), Err(StartError::Removed { .. })));
    alone.start(2, Start::Join).expect("under another id");
    alone.pass(10);
    drop(alone);
    let found = Alone::open(dir.path()).found;
    assert_eq!((found[0].removed, found[0].bootstrap.replica), (false, ReplicaId(2)));
}
