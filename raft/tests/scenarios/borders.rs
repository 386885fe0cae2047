//! The borders of what a replica does: the first moment that is too late, the second time that is once too often, the member
//! that is not meant.

use crate::cluster::*;
use crate::rules::{told_to_go, transfers};
use crate::silence::silent_group;
use longboat_raft::*;

fn kind(c: &mut Cluster, n: u64, of: u64) -> Option<ReplicaKind> {
    c.core(n).membership().kind(id(of))
}

#[test]
fn a_round_that_takes_a_whole_election_timeout_promotes_nobody() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.join(4, |_| {});
    c.isolate(4);
    let mut add = ConfigChange::add_learner(id(4), Member::default());
    add.changes[0].promotion = Promotion::WhenCaughtUp;
    c.change(1, add).unwrap();
    c.settle();
    // The round begins with the first heartbeat, and what it is to receive arrives with the last but one in time.
    c.pass(ELECTION - HEARTBEAT);
    c.heal();
    c.pass(HEARTBEAT);
    assert_eq!(c.core(4).last(), c.core(1).last(), "it has caught up");
    c.pass(HEARTBEAT);
    assert_eq!(kind(&mut c, 1, 4), Some(ReplicaKind::NonVoting), "promoted after a whole timeout");
    c.pass(HEARTBEAT);
    assert_eq!(kind(&mut c, 1, 4), Some(ReplicaKind::Voter), "the next round was short");
}

#[test]
fn attempts_to_hand_over_are_forgotten_only_after_a_longer_wait_than_any_of_them_causes() {
    for (late, timeouts) in [(0, 4), (1, 2)] {
        let mut c = Cluster::with(&[1, 2, 3], |config| config.preferred = Some(id(3)));
        c.lost = |m| m.body == Body::TimeoutNow;
        c.elect(1);
        while c.core(1).transferee().is_none() {
            c.pass(HEARTBEAT);
        }
        // A full host is not handed leadership. The answer to the last heartbeat says that it has room again.
        let now = c.now;
        c.core(3).set_overloaded(now, true);
        c.pass(256 * ELECTION + late * HEARTBEAT - 2 * HEARTBEAT);
        let now = c.now;
        c.core(3).set_overloaded(now, false);
        c.pass(HEARTBEAT);
        assert_eq!((c.core(1).transferee(), transfers(&mut c, 1).len()), (None, 1));
        c.pass(HEARTBEAT);
        assert_eq!(c.core(1).transferee(), Some(id(3)), "the second attempt");
        c.pass(timeouts * ELECTION - HEARTBEAT);
        assert_eq!((c.core(1).transferee(), transfers(&mut c, 1).len()), (None, 2));
        c.pass(2 * HEARTBEAT);
        assert_eq!(c.core(1).transferee(), Some(id(3)), "the third attempt, {timeouts} timeouts later");
    }
}

#[test]
fn whoever_is_to_lead_can_be_changed_while_the_group_runs() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.pass(5 * ELECTION);
    (1..=3).for_each(|n| c.core(n).set_preferred(Some(id(2))));
    c.pass(5 * ELECTION);
    assert_eq!(c.leaders(), [2]);
    (1..=3).for_each(|n| c.core(n).set_preferred(None));
    c.elect(1);
    c.pass(5 * ELECTION);
    assert_eq!(c.leaders(), [1]);
}

#[test]
fn a_follower_that_has_stopped_makes_nobody_doubt_the_leader() {
    let mut c = silent_group(&[1, 2, 3]);
    let now = c.now;
    c.core(2).replica_gone(now, id(3));
    assert_eq!((c.core(2).leader(), c.core(2).is_quiet()), (Some(id(1)), true));
    assert!(c.core(2).is_gone(id(3)));
}

#[test]
fn a_removed_learner_that_missed_its_farewell_asks_for_it() {
    let tune = |config: &mut CoreConfig| {
        (config.see_off_removed, config.step_down_on_removal) = (true, true);
        (config.pre_vote, config.check_quorum) = (true, true);
    };
    let mut c = Cluster::with(&[1, 2, 3], tune);
    c.elect(1);
    c.join(4, tune);
    c.change_through(1, ConfigChange::add_learner(id(4), Member::default()));
    assert!(c.core(4).membership().contains(id(4)) && !c.core(4).is_voter());
    c.isolate(4);
    c.change_through(1, ConfigChange::remove(id(4)));
    c.pass(100 * HEARTBEAT);
    c.heal();
    // Whoever removed it says no more: it is heard because it asks.
    assert!(!told_to_go(&mut c, 4));
    c.pass(4 * ELECTION);
    assert!(told_to_go(&mut c, 4), "never asked");
}

#[test]
fn a_snapshot_that_is_wanted_is_asked_for_once_until_it_is_sent() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(3);
    c.write(1, &["a", "b", "c"]);
    c.core(1).compact(Index(3));
    c.heal();
    c.pass(10 * HEARTBEAT);
    assert_eq!(c.node(1).snapshots_wanted, [id(3)]);
}

#[test]
fn a_change_that_is_refused_gives_nothing_back_to_propose_again() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let refused = c.change(2, ConfigChange::remove(id(3))).expect_err("nobody leads");
    assert_eq!((refused.reason, refused.chunk.count()), (RefusedWhy::NoLeader, 0));
}

#[test]
fn what_a_replica_is_and_whom_it_follows_is_told_when_it_changes() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let leads = Event::LeaderChanged { leader: Some(id(1)), term: Term(1) };
    for n in 1..=3 {
        assert_eq!(c.node(n).events.iter().filter(|e| **e == leads).count(), 1, "at {n}");
    }
    assert!(c.node(1).events.contains(&Event::RoleChanged { role: Role::Leader, term: Term(1) }));
    c.elect(2);
    assert!(c.node(1).events.contains(&Event::RoleChanged { role: Role::Follower, term: Term(2) }));
    assert!(c.node(3).events.contains(&Event::LeaderChanged { leader: Some(id(2)), term: Term(2) }));
}

#[test]
fn an_output_that_was_cleared_is_empty() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.propose(1, &["a"]).unwrap();
    let (mut out, now) = (Output::default(), c.now);
    c.core(1).take_output(now, &mut out);
    assert!(!out.early.is_empty() && out.persist.is_some() && out.token.is_some());
    out.clear();
    assert!(out.is_empty());
}

#[test]
fn each_number_of_a_message_must_be_countable_and_not_just_one_of_them() {
    let huge = |term| LogPos::new(Term(term), Index(u64::MAX));
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let last = c.core(1).last();
    for (from, to, body) in [
        (1, 2, Body::Quiesce { round: 1, last, commit: Index(u64::MAX) }),
        (1, 2, Body::Quiesce { round: 1, last: huge(1), commit: Index(1) }),
        (2, 1, Body::AppendRejected { rejected: Index(u64::MAX), hint: last }),
        (2, 1, Body::AppendRejected { rejected: Index(1), hint: huge(1) }),
    ] {
        let dropped = c.core(to).dropped();
        c.give(message(from, to, 1, body.clone()));
        assert_eq!((c.core(to).dropped(), c.net.len()), (dropped + 1, 0), "{body:?}");
    }
}

#[test]
fn only_the_start_of_the_clock_is_no_moment() {
    assert!(Time::ZERO.is_zero() && !Time(1).is_zero());
}
