//! Probing, pipelining within bounds, lost messages, and entries that left memory.

use crate::cluster::*;
use longboat_raft::*;

fn appends(m: &Message) -> bool {
    matches!(m.body, Body::Append { .. })
}

fn state(c: &mut Cluster, n: u64) -> ProgressState {
    let leader = c.leaders()[0];
    c.core(leader).progress(id(n)).unwrap().state()
}

#[test]
fn a_new_leader_probes_with_one_append_at_a_time() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.isolate(3);
    c.elect(1);
    c.heal();
    c.net.clear();
    for text in ["a", "b"] {
        c.propose(1, &[text]).unwrap();
        c.end_round(1);
    }
    assert_eq!(state(&mut c, 3), ProgressState::Probe);
    assert_eq!(c.flying(|m| appends(m) && m.to == id(3)), 0, "a second probe while the first is not answered");
    assert_eq!(c.flying(|m| appends(m) && m.to == id(2)), 2);
}

#[test]
fn no_more_than_the_bound_of_appends_is_in_flight() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.inflight_appends_max = 3);
    c.elect(1);
    for i in 0..10 {
        c.propose(1, &[&format!("{i}")]).unwrap();
        c.end_round(1);
    }
    assert_eq!(c.flying(|m| appends(m) && m.to == id(2)), 3);
    c.settle();
    assert_eq!(c.node(2).payloads().len(), 10);
}

#[test]
fn no_more_than_the_bound_of_bytes_is_in_flight() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.inflight_bytes_max = 2500);
    c.elect(1);
    let text = "x".repeat(1000);
    for _ in 0..10 {
        c.propose(1, &[&text]).unwrap();
        c.end_round(1);
    }
    // A bound that is reached stops, and one append may go over it.
    assert_eq!(c.flying(|m| appends(m) && m.to == id(2)), 3);
    c.settle();
    assert_eq!(c.node(2).payloads().len(), 10);
}

#[test]
fn an_append_is_no_larger_than_its_bound() {
    let mut c = Cluster::with(&[1, 2], |config| config.append_bytes_max = 1000);
    c.elect(1);
    c.isolate(2);
    let text = "x".repeat(300);
    for _ in 0..8 {
        c.write(1, &[&text, &text, &text, &text]);
    }
    c.heal();
    c.pass(HEARTBEAT);
    let mut largest = 0;
    c.propose(1, &["last"]).unwrap();
    c.end_round(1);
    while let Some(m) = c.net.pop_front() {
        if let Body::Append { runs, .. } = &m.body {
            largest = largest.max(runs.iter().map(Run::encoded_len).sum());
        }
        c.give(m);
    }
    c.pass(2 * HEARTBEAT);
    assert_eq!(c.node(2).payloads().len(), 33);
    assert!(largest <= 1000, "{largest} bytes in one append");
}

#[test]
fn one_entry_may_be_larger_than_an_append_should_be() {
    let mut c = Cluster::with(&[1, 2], |config| config.append_bytes_max = 100);
    c.elect(1);
    c.write(1, &[&"x".repeat(5000), "y", &"z".repeat(5000)]);
    assert_eq!(c.node(2).payloads().len(), 3);
}

#[test]
fn lost_appends_are_noticed_by_the_next_heartbeat() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.cut.insert((1, 3));
    for text in ["a", "b", "c"] {
        c.write(1, &[text]);
    }
    c.heal();
    assert_eq!(c.core(3).last(), pos(1, 1));
    c.pass(HEARTBEAT);
    assert_eq!(c.node(3).payloads(), ["a", "b", "c"]);
    assert_eq!(state(&mut c, 3), ProgressState::Replicate);
}

/// Only the timer's heartbeats are far enough apart to take what was not answered by then for lost.
#[test]
fn a_probe_is_not_repeated_for_an_answer_that_confirms_a_read() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.core(1).report_unreachable(id(3));
    let probes = |c: &Cluster| c.flying(|m| appends(m) && m.to == id(3));
    c.propose(1, &["a"]).unwrap();
    c.end_round(1);
    assert_eq!(probes(&c), 1);
    let now = c.now;
    c.core(1).read_index(now, 7);
    c.end_round(1);
    c.give(message(3, 1, 1, Body::HeartbeatResponse { read_round: 1, overloaded: false }));
    assert_eq!((c.node(1).reads.len(), probes(&c)), (1, 1), "the first one is still on its way");
}

#[test]
fn a_member_that_has_room_again_is_sent_to_as_soon_as_it_says_so() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.give(message(3, 1, 1, Body::AppendPaused { matched: Index(1) }));
    c.propose(1, &["a"]).unwrap();
    c.end_round(1);
    for (overloaded, sent) in [(true, 0), (false, 1)] {
        // No heartbeat of the timer is out: this confirms reads.
        c.give(message(3, 1, 1, Body::HeartbeatResponse { read_round: 0, overloaded }));
        assert_eq!(c.flying(|m| appends(m) && m.to == id(3)), sent);
    }
}

#[test]
fn a_full_window_whose_appends_were_all_lost_opens_again() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.inflight_appends_max = 2);
    c.elect(1);
    c.cut.insert((1, 3));
    for i in 0..6 {
        c.write(1, &[&format!("{i}")]);
    }
    assert!(c.core(1).progress(id(3)).unwrap().is_paused());
    c.heal();
    c.pass(2 * HEARTBEAT);
    assert_eq!(c.node(3).payloads().len(), 6);
}

#[test]
fn a_lost_commit_index_is_told_by_the_next_heartbeat() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.propose(1, &["a"]).unwrap();
    c.end_round(1);
    while let Some(m) = c.net.pop_front() {
        if !matches!(m.body, Body::Commit { .. }) {
            c.give(m);
        }
    }
    assert_eq!((c.core(1).commit(), c.core(2).commit()), (Index(2), Index(1)));
    c.pass(HEARTBEAT);
    assert_eq!(c.core(2).commit(), Index(2));
}

#[test]
fn an_unreachable_member_is_probed() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.core(1).report_unreachable(id(3));
    assert_eq!(state(&mut c, 3), ProgressState::Probe);
    c.pass(HEARTBEAT);
    assert_eq!(state(&mut c, 3), ProgressState::Replicate);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_stale_rejection_moves_nothing_back() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    c.give(message(2, 1, 1, Body::AppendRejected { rejected: Index(1), hint: LogPos::ZERO }));
    assert_eq!(state(&mut c, 2), ProgressState::Replicate);
    assert!(c.net.is_empty());
}

#[test]
fn a_slow_member_costs_the_others_nothing() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.inflight_appends_max = 4);
    c.elect(1);
    c.isolate(3);
    for i in 0..100 {
        c.write(1, &[&format!("{i}")]);
    }
    assert_eq!((c.node(1).payloads().len(), c.node(2).payloads().len()), (100, 100));
}

/// A leader with ten entries, none of them in memory, and a member that has none of them.
fn evicted() -> Cluster {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.log_cache_bytes_max = 0);
    c.elect(1);
    c.isolate(3);
    for i in 0..9 {
        c.write(1, &[&format!("{i}")]);
    }
    c.core(1).trim();
    assert_eq!(c.core(1).cached_bytes(), 0);
    c.heal();
    c
}

#[test]
fn what_left_memory_is_fetched_for_a_member_that_needs_it() {
    let mut c = evicted();
    c.pass(HEARTBEAT);
    let fetch = c.node(1).fetches.pop().expect("a cold read");
    assert_eq!((fetch.lo, fetch.hi), (Index(2), Index(10)));
    assert!(c.core(1).progress(id(3)).unwrap().is_paused(), "nothing more is sent meanwhile");
    c.pass(3 * HEARTBEAT);
    assert!(c.node(1).fetches.is_empty(), "asked twice");
    let found: Vec<Run> = c.node(1).disk.runs.iter().filter(|r| r.first() >= fetch.lo).cloned().collect();
    c.core(1).fetched(fetch.ticket, Ok(found));
    c.settle();
    assert_eq!(c.node(3).payloads().len(), 9);
}

#[test]
fn each_of_two_members_is_sent_what_was_fetched_for_it() {
    let mut c = Cluster::with(&[1, 2, 3, 4, 5], |config| config.log_cache_bytes_max = 0);
    c.elect(1);
    for away in [4, 5] {
        c.isolate(away);
        c.write(1, &["a"]);
        c.write(1, &["b"]);
    }
    c.core(1).trim();
    c.heal();
    c.pass(HEARTBEAT);
    let fetches = std::mem::take(&mut c.node(1).fetches);
    assert_eq!(fetches.iter().map(|f| f.lo).collect::<Vec<_>>(), [Index(2), Index(4)]);
    // The second one is done first.
    for fetch in fetches.iter().rev() {
        let found: Vec<Run> = c.node(1).disk.runs.iter().filter(|r| r.first() >= fetch.lo).cloned().collect();
        c.core(1).fetched(fetch.ticket, Ok(found));
        c.settle();
    }
    assert_eq!((c.node(4).payloads().len(), c.node(5).payloads().len()), (4, 4));
    assert!(c.node(1).fetches.is_empty(), "read again");
}

#[test]
fn what_was_compacted_while_it_was_fetched_needs_a_snapshot() {
    let mut c = evicted();
    c.pass(HEARTBEAT);
    let fetch = c.node(1).fetches.pop().expect("a cold read");
    c.core(1).compact(Index(5));
    c.core(1).fetched(fetch.ticket, Err(Compacted));
    c.settle();
    assert_eq!(c.node(1).snapshots_wanted, [id(3)]);
}

#[test]
fn an_answer_to_a_read_that_nobody_waits_for_is_ignored() {
    let mut c = evicted();
    c.pass(HEARTBEAT);
    let fetch = c.node(1).fetches.pop().expect("a cold read");
    let found = c.node(1).disk.runs.clone();
    let before = c.core(1).clone();
    c.core(1).fetched(fetch.ticket + 7, Ok(found));
    assert_eq!(*c.core(1), before);
}

#[test]
fn fetched_entries_of_another_log_are_not_sent() {
    let mut c = evicted();
    c.pass(HEARTBEAT);
    let fetch = c.node(1).fetches.pop().expect("a cold read");
    c.core(1).fetched(fetch.ticket, Ok(vec![run(9, 2, &["not", "ours"])]));
    c.net.clear();
    c.end_round(1);
    assert_eq!(c.flying(|m| matches!(&m.body, Body::Append { runs, .. } if !runs.is_empty())), 0);
}

#[test]
fn only_what_is_durable_and_applied_leaves_memory() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.log_cache_bytes_max = 0);
    c.elect(1);
    c.node(1).slow_disk = true;
    c.write(1, &["a"]);
    c.core(1).trim();
    assert!(c.core(1).tail_from(Index(2)).is_some());
    assert!(c.core(1).tail_from(Index(1)).is_none());
}

#[test]
fn a_restart_without_entries_in_memory_reads_what_it_has_to_apply() {
    let mut c = Cluster::new(&[]);
    let runs = [run(1, 1, &["a", "b"]), run(1, 3, &["c"])];
    let hard_state = HardState { term: Term(1), vote: ReplicaId::ZERO, commit: Index(3) };
    let disk = Disk { hard_state, runs: runs.to_vec(), membership: voters(&[1]), ..Disk::default() };
    c.add(config(1), disk.clone());
    let restored = Restored { runs: Vec::new(), ..disk.restored() };
    c.node(1).core = Core::new(config(1), restored, c.now).unwrap();
    c.campaign(1);
    assert_eq!(c.core(1).role(), Role::Follower, "campaigned without knowing what the entries are");
    let fetch = c.node(1).fetches.pop().expect("a cold read");
    assert_eq!((fetch.lo, fetch.hi), (Index(1), Index(3)));
    c.core(1).fetched(fetch.ticket, Ok(vec![runs[0].clone()]));
    c.settle();
    assert_eq!(c.node(1).payloads(), ["a", "b"]);
    let fetch = c.node(1).fetches.pop().expect("the rest");
    assert_eq!(fetch.lo, Index(3));
    c.core(1).fetched(fetch.ticket, Ok(vec![runs[1].clone()]));
    c.settle();
    assert_eq!(c.node(1).payloads(), ["a", "b", "c"]);
    c.elect(1);
}

#[test]
fn a_member_to_which_entries_flow_needs_no_heartbeat_and_gets_one_when_they_stop() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let heartbeats = |c: &Cluster, to| c.flying(|m| matches!(m.body, Body::Heartbeat { .. }) && m.to == id(to));
    // Writes at less than the heartbeat's distance, acknowledged by 2; 3 hears of them and its answers are lost.
    for _ in 0..4 {
        c.isolate(3);
        c.write(1, &["a"]);
        c.heal();
        c.now = c.now.plus_nanos(HEARTBEAT / 2);
        let now = c.now;
        c.core(1).advance(now);
        c.end_round(1);
    }
    assert_eq!(heartbeats(&c, 2), 0, "entries and acknowledgements flow");
    assert!(heartbeats(&c, 3) > 0, "no acknowledgement comes from there");
    c.settle();
    c.now = c.now.plus_nanos(2 * HEARTBEAT);
    let now = c.now;
    c.core(1).advance(now);
    c.end_round(1);
    assert_eq!(heartbeats(&c, 2), 1, "nothing flows any more");
}

#[test]
fn what_is_under_way_to_a_member_is_counted_until_it_answers() {
    let mut c = Cluster::with(&[1, 2, 3], |_| {});
    c.elect(1);
    c.isolate(2);
    c.write(1, &["a"]);
    c.write(1, &["b"]);
    let under_way = |c: &mut Cluster, n| c.core(1).progress(id(n)).expect("a member").inflight();
    assert_eq!((under_way(&mut c, 2), under_way(&mut c, 3)), (2, 0));
    c.heal();
    c.pass(3 * HEARTBEAT);
    assert_eq!(under_way(&mut c, 2), 0);
}
