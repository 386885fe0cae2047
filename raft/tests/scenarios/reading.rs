//! Linearizable reads: thesis section 6.4.

use crate::cluster::*;
use longboat_raft::*;

fn read(c: &mut Cluster, n: u64, context: u64) {
    let now = c.now;
    c.core(n).read_index(now, context);
}

fn answers(c: &mut Cluster, n: u64) -> Vec<(u64, Option<u64>)> {
    c.node(n).reads.drain(..).map(|r| (r.context, r.index.map(|i| i.0))).collect()
}

#[test]
fn a_read_is_answered_when_a_majority_still_follows() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    read(&mut c, 1, 7);
    c.end_round(1);
    assert!(answers(&mut c, 1).is_empty());
    c.settle();
    assert_eq!(answers(&mut c, 1), [(7, Some(2))]);
}

#[test]
fn a_leader_that_was_replaced_answers_no_read() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(1);
    c.elect(2);
    c.write(2, &["a"]);
    read(&mut c, 1, 7);
    c.settle();
    c.pass(3 * HEARTBEAT);
    assert!(answers(&mut c, 1).is_empty(), "served a read that misses a write");
    c.heal();
    c.pass(3 * HEARTBEAT);
    assert_eq!(answers(&mut c, 1), [(7, None)]);
}

#[test]
fn no_read_before_a_commit_in_the_own_term() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    let now = c.now;
    c.core(2).campaign(now);
    c.end_round(2);
    c.net.clear();
    c.give(message(3, 2, 2, Body::VoteResponse { pre: false, granted: true }));
    assert_eq!(c.core(2).role(), Role::Leader);
    read(&mut c, 2, 1);
    c.end_round(2);
    assert_eq!(answers(&mut c, 2), [(1, None)]);
    c.settle();
    c.pass(HEARTBEAT);
    read(&mut c, 2, 2);
    c.settle();
    assert_eq!(answers(&mut c, 2), [(2, Some(3))]);
}

#[test]
fn all_reads_of_a_round_share_one_round_of_heartbeats() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    for context in 1..=100 {
        read(&mut c, 1, context);
    }
    c.end_round(1);
    assert_eq!(c.flying(|m| matches!(m.body, Body::Heartbeat { .. })), 2);
    c.settle();
    assert_eq!(answers(&mut c, 1).len(), 100);
}

/// Seed 5448 of the simulator: the read waited for ever, and the group never fell silent.
#[cfg_attr(not(feature = "plant"), test)]
pub fn a_read_does_not_wait_for_a_member_that_is_gone() {
    let mut c = Cluster::new(&[1, 2]);
    c.elect(1);
    c.change(1, ConfigChange::remove(id(2))).unwrap();
    read(&mut c, 1, 7);
    c.end_round(1);
    c.net.retain(|m| !matches!(m.body, Body::Heartbeat { .. }));
    assert!(answers(&mut c, 1).is_empty());
    c.settle();
    assert_eq!(c.core(1).membership().voters.len(), 1);
    assert_eq!(answers(&mut c, 1), [(7, Some(1))]);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_read_is_not_confirmed_by_a_round_that_began_before_it() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    read(&mut c, 1, 1);
    c.end_round(1);
    let first: Vec<Message> = c.net.drain(..).collect();
    read(&mut c, 1, 2);
    c.end_round(1);
    c.net.clear();
    first.into_iter().for_each(|m| c.give(m));
    let responses: Vec<Message> = c.net.drain(..).collect();
    responses.into_iter().for_each(|m| c.give(m));
    assert_eq!(answers(&mut c, 1), [(1, Some(1))]);
    // A later heartbeat carries the newest round.
    c.pass(HEARTBEAT);
    assert_eq!(answers(&mut c, 1), [(2, Some(1))]);
}

#[test]
fn answers_to_rounds_that_never_were_confirm_nothing() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    read(&mut c, 1, 1);
    c.end_round(1);
    for n in [2, 3] {
        c.give(message(n, 1, 1, Body::HeartbeatResponse { read_round: 99, overloaded: false }));
        c.give(message(n, 1, 1, Body::HeartbeatResponse { read_round: 0, overloaded: false }));
    }
    assert!(answers(&mut c, 1).is_empty());
}

#[test]
fn a_replica_alone_answers_at_once() {
    let mut c = Cluster::new(&[1]);
    c.elect(1);
    read(&mut c, 1, 1);
    c.end_round(1);
    assert_eq!(answers(&mut c, 1), [(1, Some(1))]);
}

#[test]
fn a_follower_reads_at_the_leaders_index() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    read(&mut c, 3, 9);
    c.settle();
    assert_eq!(answers(&mut c, 3), [(9, Some(2))]);
}

#[test]
fn a_non_voting_member_reads_too() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.auto_snapshots = true;
    c.add(config(4), Disk::default());
    c.change(1, ConfigChange::add_learner(id(4), Member::default())).unwrap();
    c.settle();
    c.pass(2 * HEARTBEAT);
    read(&mut c, 4, 9);
    c.settle();
    assert_eq!(answers(&mut c, 4), [(9, Some(2))]);
}

#[test]
fn without_a_leader_a_read_is_to_be_asked_again() {
    let mut c = Cluster::new(&[1, 2, 3]);
    read(&mut c, 2, 1);
    c.end_round(2);
    assert_eq!(answers(&mut c, 2), [(1, None)]);
}

#[test]
fn a_followers_read_fails_when_the_leader_changes() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    read(&mut c, 3, 5);
    c.end_round(3);
    c.net.clear();
    c.elect(2);
    assert_eq!(answers(&mut c, 3), [(5, None)]);
    c.give(message(1, 3, 0, Body::ReadIndexResponse { context: 5, index: Some(Index(1)) }));
    assert!(answers(&mut c, 3).is_empty(), "answered twice");
}

#[test]
fn in_a_joint_configuration_both_majorities_confirm_a_read() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.auto_snapshots = true;
    for n in [4, 5] {
        c.add(config(n), Disk::default());
    }
    let mut change = ConfigChange { transition: Transition::JointExplicit, ..ConfigChange::default() };
    for n in [2, 3] {
        change.changes.extend(ConfigChange::remove(id(n)).changes);
        change.changes.extend(ConfigChange::add_voter(id(n + 2), Member::default()).changes);
    }
    c.change(1, change).unwrap();
    c.settle();
    c.pass(3 * HEARTBEAT);
    assert!(c.core(1).membership().is_joint());
    c.isolate(2);
    c.isolate(3);
    read(&mut c, 1, 1);
    c.settle();
    c.pass(2 * HEARTBEAT);
    assert!(answers(&mut c, 1).is_empty());
    c.heal();
    c.pass(HEARTBEAT);
    assert_eq!(answers(&mut c, 1).len(), 1);
}
