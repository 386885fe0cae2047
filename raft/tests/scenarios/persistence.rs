//! What waits for the disk, what comes back from it, and what a restart may forget.

use crate::cluster::*;
use longboat_raft::*;

#[test]
fn a_leader_counts_its_own_log_when_it_is_durable() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.node(1).slow_disk = true;
    c.isolate(3);
    c.write(1, &["a"]);
    // 2 has it; one of three is no majority as long as the leader's own write is under way.
    assert_eq!((c.core(1).commit(), c.core(1).progress(id(2)).unwrap().matched()), (Index(1), Index(2)));
    c.complete_all(1);
    assert_eq!(c.core(1).commit(), Index(2));
}

#[test]
fn followers_may_commit_before_the_leader_has_written() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.node(1).slow_disk = true;
    c.write(1, &["a"]);
    assert_eq!(c.node(2).payloads(), ["a"]);
    assert_eq!((c.core(1).commit(), c.node(1).payloads().len()), (Index(2), 0));
    c.complete_all(1);
    assert_eq!(c.node(1).payloads(), ["a"]);
}

#[test]
fn stepping_goes_on_while_a_write_is_under_way() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.node(2).slow_disk = true;
    for i in 0..50 {
        c.write(1, &[&format!("{i}")]);
    }
    assert_eq!((c.core(1).commit(), c.core(2).commit()), (Index(51), Index(51)));
    assert_eq!((c.core(2).durable(), c.node(2).payloads().len()), (Index(1), 0));
    c.complete_all(2);
    c.settle();
    assert_eq!((c.core(2).durable(), c.node(2).payloads().len()), (Index(51), 50));
    assert_eq!(c.core(1).progress(id(2)).unwrap().matched(), Index(51));
}

#[test]
fn a_commit_index_that_moves_alone_writes_nothing() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.propose(1, &["a"]).unwrap();
    c.end_round(1);
    let appends: Vec<Message> = c.net.drain(..).collect();
    for m in appends {
        c.give(m);
    }
    for n in [1, 2, 3] {
        c.node(n).slow_disk = true;
    }
    c.settle();
    assert_eq!(c.core(3).commit(), Index(2));
    assert!(c.nodes.values().all(|n| n.batches.is_empty()), "a commit index cost a write");
}

#[test]
fn a_batch_carries_the_newest_term_vote_and_commit() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    c.write(1, &["b"]);
    assert_eq!(c.node(2).disk.hard_state, HardState { term: Term(1), vote: id(1), commit: Index(2) });
}

#[test]
fn after_a_restart_entries_through_the_saved_commit_are_applied_again() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    c.write(1, &["b"]);
    c.restart(2);
    assert_eq!((c.core(2).commit(), c.node(2).payloads()), (Index(2), vec!["a".to_owned()]));
    c.pass(2 * HEARTBEAT);
    assert_eq!(c.node(2).payloads(), ["a", "b"]);
}

#[test]
fn what_was_not_durable_is_forgotten_and_sent_again() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.node(2).slow_disk = true;
    c.write(1, &["a"]);
    c.write(1, &["b"]);
    c.restart(2);
    assert_eq!(c.core(2).last(), pos(1, 1));
    c.pass(5 * HEARTBEAT);
    assert_eq!(c.node(2).payloads(), ["a", "b"]);
}

#[test]
fn a_cut_tail_reaches_the_disk_with_what_replaces_it() {
    let mut c = Cluster::new(&[]);
    c.add_with_log(2, &[1, 2, 3], 1, 0, &[run(1, 1, &["a", "b", "c"])]);
    c.give(append(3, 2, 2, pos(1, 1), 0, &[run(2, 2, &["x"])]));
    assert_eq!(c.node(2).disk.last(), pos(2, 2));
    assert_eq!(c.core(2).last(), pos(2, 2));
    c.restart(2);
    assert_eq!((c.core(2).last(), c.core(2).term_at(Index(1))), (pos(2, 2), Some(Term(1))));
}

#[test]
fn entries_overwritten_before_they_were_written_cost_the_disk_no_cut() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let now = c.now;
    c.core(2).step(now, append(1, 2, 1, LogPos::ZERO, 0, &[run(1, 1, &["a", "b"])])).unwrap();
    c.core(2).step(now, append(3, 2, 2, pos(1, 1), 0, &[run(2, 2, &["x"])])).unwrap();
    let mut out = Output::default();
    c.core(2).take_output(now, &mut out);
    let persist = out.persist.unwrap();
    assert_eq!(persist.cut_tail, None);
    let spans: Vec<_> = persist.runs.iter().map(|r| (r.term().0, r.first().0, r.last().0)).collect();
    assert_eq!(spans, [(1, 1, 1), (2, 2, 2)]);
}

#[test]
fn answers_of_several_appends_leave_as_one() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let now = c.now;
    c.core(2).step(now, append(1, 2, 1, LogPos::ZERO, 0, &[run(1, 1, &["a"])])).unwrap();
    c.core(2).step(now, append(1, 2, 1, pos(1, 1), 0, &[run(1, 2, &["b"])])).unwrap();
    c.end_round(2);
    assert_eq!(c.net, [message(2, 1, 1, Body::AppendAccepted { matched: Index(2) })]);
}

#[test]
fn a_rejection_waits_for_the_disk_too() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.node(2).slow_disk = true;
    c.give(append(1, 2, 3, pos(1, 7), 0, &[]));
    assert!(c.net.is_empty());
    c.complete(2);
    assert_eq!(c.flying(|m| matches!(m.body, Body::AppendRejected { .. })), 1);
}

#[test]
fn leaders_messages_and_heartbeat_answers_do_not_wait() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.node(1).slow_disk = true;
    c.propose(1, &["a"]).unwrap();
    c.end_round(1);
    assert_eq!(c.flying(|m| matches!(m.body, Body::Append { .. })), 2);
    c.node(2).slow_disk = true;
    c.net.clear();
    c.give(message(1, 2, 1, Body::Heartbeat { commit: Index(0), read_round: 3 }));
    assert_eq!(c.net, [message(2, 1, 1, Body::HeartbeatResponse { read_round: 3, overloaded: false })]);
}

#[test]
fn a_group_with_nothing_to_say_puts_nothing_out() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    for n in [1, 2, 3] {
        let (now, mut out) = (c.now, Output::default());
        c.core(n).take_output(now, &mut out);
        assert!(out.is_empty(), "{n}: {out:?}");
    }
}

#[test]
fn restored_state_that_contradicts_itself_is_refused() {
    let membership = voters(&[1]);
    let good = Restored { membership: membership.into(), ..Restored::default() };
    let past = HardState { commit: Index(3), ..HardState::default() };
    let new = |restored: Restored| Core::new(config(1), restored, Time::ZERO);
    assert!(new(good.clone()).is_ok());
    assert!(matches!(new(Restored { hard_state: past, ..good.clone() }), Err(Violation::Restored(_))));
    assert!(matches!(new(Restored { applied: Index(1), ..good.clone() }), Err(Violation::Restored(_))));
    assert!(matches!(new(Restored { last: pos(1, 4), ..good }), Err(Violation::Restored(_))));
}
