//! Idle groups for tests of falling silent, and the rules of it that planted bugs break.

use crate::cluster::*;
use longboat_raft::*;

pub const IDLE: u64 = 3 * HEARTBEAT;

/// Members that fall silent, with the guards of a real group on.
pub fn idle_group(members: &[u64]) -> Cluster {
    let mut c = Cluster::with(members, |config| {
        config.quiesce_after_nanos = IDLE;
        config.pre_vote = true;
        config.check_quorum = true;
    });
    c.elect(members[0]);
    c.write(members[0], &["a"]);
    c
}

/// An idle group, all of it silent.
pub fn silent_group(members: &[u64]) -> Cluster {
    let mut c = idle_group(members);
    c.pass(3 * IDLE);
    assert_eq!(silent(&mut c), members);
    c
}

pub fn silent(c: &mut Cluster) -> Vec<u64> {
    c.nodes.iter().filter(|(_, n)| n.core.is_quiet()).map(|(n, _)| *n).collect()
}

pub fn question(c: &Cluster, to: u64) -> Message {
    let asked = c.net.iter().find(|m| m.to == id(to) && matches!(m.body, Body::Quiesce { .. }));
    asked.expect("a question").clone()
}

/// Passes time until leader 1 asks; the questions are on their way.
pub fn until_asked(c: &mut Cluster) {
    for _ in 0..1000 {
        c.now = c.now.plus_nanos(HEARTBEAT);
        let now = c.now;
        c.core(1).advance(now);
        c.end_round(1);
        if c.flying(|m| matches!(m.body, Body::Quiesce { .. })) > 0 {
            return;
        }
        c.settle();
    }
    panic!("leader 1 never asks");
}

pub fn followers_of_a_suspected_leader_elect_another_at_once() {
    let mut c = silent_group(&[1, 2, 3]);
    c.isolate(1);
    let now = c.now;
    c.core(2).suspect_leader(now);
    c.core(3).suspect_leader(now);
    assert!(c.core(2).deadline() < now.plus_nanos(ELECTION), "an election timeout has passed already");
    // Whoever is first wins: the other knows no leader whom it would stand by.
    let (first, other) = if c.core(2).deadline() < c.core(3).deadline() { (2, 3) } else { (3, 2) };
    c.now = c.core(first).deadline();
    let now = c.now;
    c.core(first).advance(now);
    c.settle();
    assert_eq!(c.core(first).role(), Role::Leader);
    assert_eq!(c.core(other).leader(), Some(id(first)));
}

pub fn nobody_is_silent_before_its_commit_index_is_durable() {
    let mut c = idle_group(&[1, 2, 3]);
    (1..=3).for_each(|n| c.node(n).slow_disk = true);
    for _ in 0..20 {
        c.now = c.now.plus_nanos(HEARTBEAT);
        for n in 1..=3 {
            let now = c.now;
            c.core(n).advance(now);
        }
        c.settle();
        for n in 1..=3 {
            let (quiet, saved) = (c.core(n).is_quiet(), c.node(n).disk.hard_state.commit);
            assert!(!quiet || saved == c.core(n).commit(), "{n} is silent with a durable commit index of {saved}");
        }
        (1..=3).for_each(|n| c.complete_all(n));
        c.settle();
    }
    assert_eq!(silent(&mut c), [1, 2, 3]);
}

pub fn a_follower_that_campaigns_takes_its_agreement_back() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    // It agrees, but its disk hangs until it has missed its leader for too long.
    c.node(2).slow_disk = true;
    let asked = question(&c, 2);
    c.give(asked);
    c.net.clear();
    c.isolate(2);
    c.now = c.core(2).deadline();
    let now = c.now;
    c.core(2).advance(now);
    assert_eq!(c.core(2).role(), Role::PreCandidate);
    c.complete_all(2);
    assert!(!c.core(2).is_quiet(), "it would be silent without a leader");
    assert_ne!(c.core(2).deadline(), Time(u64::MAX), "it asks again");
}

pub fn nobody_is_silent_with_another_log_than_the_leaders() {
    let mut c = idle_group(&[1, 2, 3]);
    c.isolate(3);
    c.write(1, &["b"]);
    c.heal();
    // Whatever would help 3 along is lost.
    for _ in 0..50 {
        c.now = c.now.plus_nanos(HEARTBEAT);
        let now = c.now;
        c.core(1).advance(now);
        c.end_round(1);
        c.net.retain(|m| m.to != id(3) || matches!(m.body, Body::Quiesce { .. }));
        c.settle();
        assert!(!c.core(3).is_quiet(), "3 lacks what is committed, and falls silent");
        assert!(!c.core(1).is_quiet(), "3 lacks what is committed, and the leader falls silent");
    }
}
