//! Proposals: at the leader, forwarded, refused.

use crate::cluster::*;
use longboat_raft::*;

#[test]
fn a_leader_says_where_a_proposal_went() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let got = c.propose(1, &["a", "b"]).unwrap();
    assert_eq!(got, Proposed::Appended { term: Term(1), first: Index(2), count: 2 });
}

#[test]
fn without_a_leader_a_proposal_comes_back_whole() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let refused = c.propose(2, &["a", "b"]).unwrap_err();
    assert_eq!((refused.reason, refused.chunk.count()), (RefusedWhy::NoLeader, 2));
}

#[test]
fn a_candidate_takes_no_proposals() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let now = c.now;
    c.core(1).campaign(now);
    assert_eq!(c.propose(1, &["a"]).unwrap_err().reason, RefusedWhy::NoLeader);
}

#[test]
fn a_proposal_at_a_follower_is_appended_by_the_leader_with_its_origin() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    assert_eq!(c.propose(3, &["a"]).unwrap(), Proposed::Forwarded { to: id(1) });
    c.settle();
    for n in [1, 2, 3] {
        assert_eq!(c.node(n).payloads(), ["a"]);
        let run = c.core(n).tail_from(Index(2)).unwrap()[0].clone();
        assert_eq!(run.origin(), Origin { replica: id(3), start: 7 });
        assert_eq!((run.term(), run.first()), (Term(1), Index(2)));
    }
}

#[test]
fn who_does_not_lead_refuses_what_is_forwarded_to_it() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.propose(3, &["a", "b"]).unwrap();
    c.end_round(3);
    // The leader changed while the proposal was on its way.
    let forward = c.net.pop_back().unwrap();
    c.elect(2);
    c.give(forward);
    c.settle();
    let refused = RefusedForward { first_sequence: 0, count: 2, reason: RefusedReason::NotLeader };
    assert_eq!(c.node(3).refused, [refused]);
    assert!(c.node(3).payloads().is_empty());
}

#[test]
fn a_stranger_forwards_nothing() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let last = c.core(1).last();
    let run = commands(&["a"]).seal(c.core(1).term(), Index(0), Origin::default());
    c.give(message(9, 1, 0, Body::Forward(run)));
    assert_eq!(c.core(1).last(), last);
}

#[test]
fn a_leader_refuses_what_was_forwarded_in_an_earlier_term_also_to_itself() {
    what_was_forwarded_in_an_earlier_term_is_refused();
}

pub fn what_was_forwarded_in_an_earlier_term_is_refused() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let run = commands(&["late"]).seal(c.core(1).term(), Index(0), Origin::default());
    c.elect(2);
    c.elect(1);
    c.give(message(3, 1, 0, Body::Forward(run)));
    c.settle();
    assert_eq!(c.node(3).refused[0].reason, RefusedReason::NotLeader);
    assert!(c.node(1).payloads().is_empty());
}

#[test]
fn a_change_hidden_among_commands_is_refused() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let mut chunk = commands(&["a"]);
    chunk.push(EntryKind::Config, 9, &ConfigChange::remove(id(3)).encode());
    let run = chunk.seal(c.core(1).term(), Index(0), Origin::default());
    c.give(message(2, 1, 0, Body::Forward(run)));
    c.settle();
    assert_eq!(c.node(2).refused[0].reason, RefusedReason::ConfigChange(ChangeError::Malformed));
    assert!(c.core(1).membership().contains(id(3)));
}

#[test]
fn a_leader_that_cannot_commit_is_busy_in_the_end() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(1);
    let text = "x".repeat(4 << 20);
    let mut taken = 0;
    let refused = loop {
        match c.propose(1, &[&text]) {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
        c.end_round(1);
        c.net.clear();
        assert!(taken < 100, "never busy");
    };
    assert_eq!((refused.reason, refused.chunk.count()), (RefusedWhy::Busy, 1));
    c.heal();
    c.pass(2 * HEARTBEAT);
    assert_eq!(c.node(2).payloads().len(), taken);
    c.propose(1, &[&text]).unwrap();
}
