//! Log matching, conflicts and commit: paper sections 5.3 and 5.4.

use crate::cluster::*;
use longboat_raft::*;

/// Logs by the terms of their runs: `[(1, 3), (4, 2)]` is three entries of term 1 and two of term 4.
fn log(runs: &[(u64, u64)]) -> Vec<Run> {
    let mut first = 1;
    let mut made = Vec::new();
    for (term, count) in runs {
        let names: Vec<String> = (0..*count).map(|i| format!("{term}.{}", first + i)).collect();
        made.push(run(*term, first, &names.iter().map(String::as_str).collect::<Vec<_>>()));
        first += count;
    }
    made
}

fn terms(core: &Core) -> Vec<u64> {
    (1..=core.last().index.0).map(|i| core.term_at(Index(i)).unwrap().0).collect()
}

#[test]
fn every_log_of_figure_7_becomes_the_leaders() {
    let members = [1, 2, 3, 4, 5, 6, 7];
    let logs: [&[(u64, u64)]; 7] = [
        &[(1, 3), (4, 2), (5, 2), (6, 3)],
        &[(1, 3), (4, 2), (5, 2), (6, 2)],
        &[(1, 3), (4, 1)],
        &[(1, 3), (4, 2), (5, 2), (6, 4)],
        &[(1, 3), (4, 2), (5, 2), (6, 3), (7, 2)],
        &[(1, 3), (4, 4)],
        &[(1, 3), (2, 3), (3, 5)],
    ];
    let mut c = Cluster::new(&[]);
    for (n, runs) in members.iter().zip(logs) {
        c.add_with_log(*n, &members, 7, 0, &log(runs));
    }
    c.elect(1);
    for n in members {
        assert_eq!(terms(c.core(n)), [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 8], "node {n}");
        assert_eq!(c.core(n).commit(), Index(11), "node {n}");
    }
}

#[test]
fn a_diverged_log_is_found_in_few_round_trips() {
    // A hundred entries in each of a dozen terms that the leader never had.
    let theirs: Vec<(u64, u64)> = std::iter::once((1, 10)).chain((10..22).map(|t| (t, 100))).collect();
    let mut c = Cluster::new(&[]);
    c.add_with_log(1, &[1, 2, 3], 30, 0, &log(&[(1, 10), (2, 700), (25, 800)]));
    c.add_with_log(2, &[1, 2, 3], 30, 0, &log(&theirs));
    c.add_with_log(3, &[1, 2, 3], 30, 0, &log(&[(1, 10), (2, 700)]));
    c.campaign(1);
    assert_eq!(c.leaders(), [1]);
    assert_eq!(terms(c.core(2)), terms(c.core(1)));
    // Count what it takes a follower that lost everything in between.
    let mut c = Cluster::new(&[]);
    c.add_with_log(1, &[1, 2], 30, 0, &log(&[(1, 10), (2, 700), (25, 800)]));
    c.add_with_log(2, &[1, 2], 30, 0, &log(&theirs));
    let now = c.now;
    c.core(1).campaign(now);
    c.end_round(1);
    let mut rejections = 0;
    while let Some(m) = c.net.pop_front() {
        rejections += u32::from(matches!(m.body, Body::AppendRejected { .. }));
        c.give(m);
    }
    assert_eq!(terms(c.core(2)), terms(c.core(1)));
    assert!(rejections <= 3, "{rejections} rejections");
}

#[test]
fn a_conflicting_tail_is_cut_and_replaced() {
    let mut c = Cluster::new(&[]);
    c.add_with_log(2, &[1, 2, 3], 2, 0, &log(&[(1, 2), (2, 3)]));
    c.give(append(1, 2, 3, pos(1, 2), 0, &[run(3, 3, &["x"])]));
    assert_eq!(terms(c.core(2)), [1, 1, 3]);
    assert_eq!(c.net, [message(2, 1, 3, Body::AppendAccepted { matched: Index(3) })]);
}

#[test]
fn an_old_append_does_not_cut_what_came_after_it() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let old = append(1, 2, 1, LogPos::ZERO, 0, &[run(1, 1, &["a"])]);
    c.give(old.clone());
    c.give(append(1, 2, 1, pos(1, 1), 0, &[run(1, 2, &["b", "c"])]));
    c.give(old);
    assert_eq!(terms(c.core(2)), [1, 1, 1]);
}

#[test]
fn an_append_that_overlaps_adds_only_what_is_new() {
    let mut c = Cluster::new(&[]);
    c.add_with_log(2, &[1, 2, 3], 1, 0, &log(&[(1, 3)]));
    c.give(append(1, 2, 2, pos(1, 1), 0, &[run(1, 2, &["1.2", "1.3", "1.4"]), run(2, 5, &["x"])]));
    assert_eq!(terms(c.core(2)), [1, 1, 1, 1, 2]);
    assert_eq!(c.node(2).disk.last(), pos(2, 5));
}

#[test]
fn an_append_after_a_gap_is_refused_with_where_the_log_ends() {
    let mut c = Cluster::new(&[]);
    c.add_with_log(2, &[1, 2, 3], 1, 0, &log(&[(1, 3)]));
    c.give(append(1, 2, 2, pos(2, 9), 0, &[run(2, 10, &["x"])]));
    let body = Body::AppendRejected { rejected: Index(9), hint: pos(1, 3) };
    assert_eq!(c.net, [message(2, 1, 2, body)]);
}

#[test]
fn an_append_with_predecessor_of_term_zero_matches_nothing_but_the_start() {
    let mut c = Cluster::new(&[]);
    c.add_with_log(2, &[1, 2, 3], 1, 0, &log(&[(1, 3)]));
    for index in [2, 9] {
        c.give(append(1, 2, 2, pos(0, index), 0, &[]));
        let answer = c.net.pop_front().unwrap();
        assert!(matches!(answer.body, Body::AppendRejected { .. }), "{index}: {answer:?}");
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_commit_index_counts_only_as_far_as_the_log_is_known_to_be_the_leaders() {
    let mut c = Cluster::new(&[]);
    c.add_with_log(2, &[1, 2, 3], 2, 0, &log(&[(1, 2), (2, 3)]));
    // The leader's log differs after index 2, but this append does not reach so far.
    c.give(append(1, 2, 3, pos(1, 1), 5, &[]));
    assert_eq!(c.core(2).commit(), Index(1));
    c.give(message(1, 2, 3, Body::Commit { commit: Index(5) }));
    assert_eq!(c.core(2).commit(), Index(1));
}

#[test]
fn a_commit_index_that_overtakes_its_append_is_remembered() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(message(1, 2, 1, Body::Commit { commit: Index(2) }));
    assert_eq!(c.core(2).commit(), Index(0));
    c.give(append(1, 2, 1, LogPos::ZERO, 0, &[run(1, 1, &["a", "b", "c"])]));
    assert_eq!((c.core(2).commit(), c.node(2).payloads()), (Index(2), vec!["a".to_owned(), "b".to_owned()]));
}

#[test]
fn what_one_leader_said_of_its_commit_is_not_believed_of_another() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(message(1, 2, 1, Body::Commit { commit: Index(2) }));
    c.give(append(3, 2, 2, LogPos::ZERO, 0, &[run(2, 1, &["x", "y"])]));
    assert_eq!(c.core(2).commit(), Index(0));
}

#[test]
fn the_commit_index_reaches_followers_in_the_round_in_which_it_moves() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.propose(1, &["a"]).unwrap();
    c.end_round(1);
    c.net.clear();
    c.give(message(2, 1, 1, Body::AppendAccepted { matched: Index(2) }));
    let commit = Body::Commit { commit: Index(2) };
    assert_eq!(c.net, [message(1, 2, 1, commit.clone()), message(1, 3, 1, commit)]);
}

#[test]
fn the_commit_index_rides_with_entries_that_go_anyway() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.propose(1, &["a"]).unwrap();
    c.end_round(1);
    c.net.clear();
    let now = c.now;
    c.core(1).step(now, message(2, 1, 1, Body::AppendAccepted { matched: Index(2) })).unwrap();
    c.propose(1, &["b"]).unwrap();
    c.end_round(1);
    assert_eq!(c.flying(|m| matches!(m.body, Body::Commit { .. })), 0);
    assert_eq!(c.flying(|m| matches!(m.body, Body::Append { commit: Index(2), .. })), 2);
}

#[test]
fn an_acknowledgement_of_another_term_counts_for_nothing() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.elect(1 + 1);
    c.propose(2, &["a"]).unwrap();
    c.end_round(2);
    c.net.clear();
    c.give(message(3, 2, 1, Body::AppendAccepted { matched: Index(3) }));
    assert_eq!(c.core(2).commit(), Index(2));
}

#[test]
fn an_acknowledgement_past_the_leaders_log_is_dropped() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let before = c.core(1).dropped();
    c.give(message(2, 1, 1, Body::AppendAccepted { matched: Index(99) }));
    assert_eq!((c.core(1).dropped(), c.core(1).commit()), (before + 1, Index(1)));
}

#[test]
fn a_leader_of_an_earlier_term_commits_nothing_more() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(1);
    c.write(1, &["lost"]);
    c.elect(2);
    c.write(2, &["kept"]);
    c.heal();
    c.pass(5 * HEARTBEAT);
    for n in [1, 2, 3] {
        assert_eq!(c.node(n).payloads(), ["kept"], "node {n}");
    }
}

#[test]
fn two_of_five_commit_nothing() {
    let mut c = Cluster::new(&[1, 2, 3, 4, 5]);
    c.elect(1);
    for n in [3, 4, 5] {
        c.isolate(n);
    }
    c.write(1, &["a"]);
    assert_eq!(c.core(1).commit(), Index(1));
    c.heal();
    c.pass(3 * HEARTBEAT);
    assert_eq!(c.core(1).commit(), Index(2));
}
