//! One host whose workers are driven round by round, on a clock that the test moves and with other hosts that say only what the test puts on the wire: what
//! a round leaves to be done at once, in which order a group's words reach the journal, and the life of a snapshot.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod alone;
mod crashes;
mod drain;
mod forwards;
mod guards;
mod hosts;
mod hung_saves;
mod interleavings;
mod life;
mod list;
mod log;
mod memory;
mod pipeline;
mod replace;
mod rotten;
mod shelf;
mod stalls;
mod storage;
mod stores;
mod strays;
mod transfers;
mod trio;
mod wire;

use alone::{Alone, GROUP, MILLI, outcome, voters};
use longboat_engine::shared::Command;
use longboat_engine::{Changed, Rare};
use longboat_io::Clock;
use longboat_raft::{
    Body, ConfigChange, EntryKind, HostId, Index, LogPos, Member, Message, Origin, ReplicaId, RunBuilder, StoreId, Term,
};
use longboat_rsm::{Pending, RequestError, Stage};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn every_guard_holds() {
    let all = guards::GUARDS.iter().chain(hosts::GUARDS).chain(transfers::GUARDS).chain(storage::GUARDS);
    for (name, scenario) in all
        .chain(pipeline::GUARDS)
        .chain(stalls::GUARDS)
        .chain(hung_saves::GUARDS)
        .chain(strays::GUARDS)
        .chain(forwards::GUARDS)
        .chain(replace::GUARDS)
        .chain(memory::GUARDS)
        .chain(rotten::GUARDS)
    {
        eprintln!("the scenario for {name}");
        scenario();
    }
}

#[test]
fn state_machines_that_hang_in_snapshots_hold_up_no_others() {
    hung_saves::a_save_that_goes_on_may_hang_again();
    hung_saves::a_recovery_that_hangs_is_told_and_goes_on();
}

#[test]
fn forwarded_proposals_come_to_their_end() {
    for (name, scenario) in forwards::SCENARIOS {
        eprintln!("{name}");
        scenario();
    }
}

#[test]
fn transfers_come_to_their_end() {
    for (name, scenario) in transfers::SCENARIOS {
        eprintln!("{name}");
        scenario();
    }
}

#[test]
fn every_transition_of_a_snapshot_is_an_event_with_group_replica_and_index() {
    life::every_transition_is_an_event_with_group_replica_and_index();
}

#[test]
fn a_replica_that_begins_again_while_it_hangs_may_hang_again() {
    stalls::a_replica_that_begins_again_while_it_hangs_may_hang_again();
}

#[test]
fn beyond_four_hanging_state_machines_the_others_wait_and_it_is_told() {
    stalls::beyond_four_the_others_wait_and_it_is_told();
}

#[test]
fn a_group_whose_call_returns_may_go_on_with_a_save() {
    stalls::a_group_whose_call_returns_may_go_on_with_a_save();
}

#[test]
fn a_joint_configuration_comes_with_a_snapshot() {
    pipeline::a_joint_configuration_comes_with_a_snapshot();
}

#[test]
fn a_wiped_host_is_not_believed_by_a_group_that_was_quarantined() {
    stores::a_wiped_host_is_not_believed_by_a_group_that_was_quarantined();
}

#[test]
fn what_a_host_had_is_remembered() {
    stores::what_a_host_had_is_remembered();
}

#[test]
fn a_host_that_was_rolled_back_is_not_believed() {
    stores::a_host_that_was_rolled_back_is_not_believed();
}

#[test]
fn what_a_restarted_host_says_is_held_until_it_is_believed() {
    stores::what_a_restarted_host_says_is_held_until_it_is_believed();
}

#[test]
fn a_host_that_was_rolled_back_serves_no_more() {
    stores::a_host_that_was_rolled_back_serves_no_more();
}

#[test]
fn a_replica_that_is_new_on_a_wiped_host_is_believed() {
    stores::a_replica_that_is_new_on_a_wiped_host_is_believed();
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

/// Whoever asks a second time hears of the same end, and not before it: until the tombstone is durable a power loss brings
/// the data back.
#[test]
fn a_removal_that_is_asked_for_again_ends_when_the_first_one_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    let shared = alone.start(1, voters(1)).expect("starts");
    alone.pass(300);
    assert!(alone.host.starter.stop(GROUP));
    let before = alone.host.starter.remove_data(GROUP).expect("it is stopping");
    let twice = alone.host.starter.remove_data(GROUP).expect("it is stopping");
    alone.pass(2);
    alone.step();
    let later = alone.host.starter.remove_data(GROUP).expect("its tombstone is on its way, or its files are");
    let later = later.wait_timeout(Duration::ZERO).expect_err("the files are there");
    alone.run_jobs();
    for removal in [before, twice, later] {
        outcome(removal).expect("removed");
    }
    assert!(matches!(alone.host.starter.remove_data(GROUP), Err(RequestError::NotHere(GROUP))));
    assert_eq!(Arc::strong_count(&shared), 1, "nobody holds what is gone");
}

#[test]
fn a_follower_is_woken_for_a_disk_only_when_it_has_something_to_apply() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    let shared = alone.start(1, voters(3)).expect("starts");
    alone.step();
    alone.write();
    let notifier = Arc::clone(&alone.host.shared.workers[0].notifier);
    for (index, commit) in [(1, 0), (2, 2)] {
        let mut chunk = RunBuilder::new();
        chunk.push(EntryKind::Empty, 0, b"");
        let runs = [chunk.seal(Term(1), Index(index), Origin::default())].into_iter().collect();
        let prev = if index == 1 { LogPos::ZERO } else { LogPos { term: Term(1), index: Index(1) } };
        let body = Body::Append { prev, commit: Index(commit), runs };
        let message = Box::new(Message { from: ReplicaId(2), to: ReplicaId(1), term: Term(1), body });
        let from = HostId(2);
        alone.host.shared.command(0, Command::Deliver { shared: Arc::clone(&shared), from, message });
        alone.step();
        notifier.take();
        alone.write();
        assert_eq!(notifier.take(), commit > 0, "entry {index}, committed through {commit}");
    }
    alone.step();
    assert_eq!(shared.published.commit.load(Ordering::Relaxed), 2);
}
