//! The bugs that others had, one scenario for each. [`BUGS`] is the list; each stands under its scenario's name among
//! the tests, and `plants` runs them with bugs planted.

use crate::cluster::*;
use crate::{guards, quiesce};
use longboat_raft::*;

macro_rules! bugs {
    ($($what:literal: $($scenario:ident)::+;)*) => {
        /// What went wrong elsewhere, the scenario that shows it does not here, and its name.
        pub const BUGS: &[(&str, &str, fn())] = &[$(($what, stringify!($($scenario)::+), $($scenario)::+)),*];
    };
}

bugs! {
    "import or restore with a config change id taken from the snapshot's index":
        a_snapshots_change_id_is_that_of_its_last_change;
    "an uncommitted config covered by a later snapshot stays effective":
        a_change_that_a_snapshot_covers_is_not_in_effect_beside_it;
    "election with a committed but unapplied config": nobody_campaigns_before_a_committed_change_is_in_effect;
    "leave-joint proposed twice": a_joint_configuration_is_left_by_one_entry;
    "restore drops the joint part": a_restored_joint_configuration_needs_both_majorities;
    "joint config left before it commits": a_joint_configuration_is_not_left_before_that_is_committed;
    "the commit forgotten at power loss makes an old configuration elect": power_loss_brings_no_old_configuration_back;
    "a delayed ack after remove and re-add in one term sets a false match": a_removed_replica_is_never_counted_again;
    "removing the leader of two strands the other": the_other_of_two_is_not_stranded_when_its_leader_goes;
    "an optimised quorum scan commits with 2 of 5": two_acknowledgements_of_five_commit_nothing;
    "seeing a higher vote counted as granting it": a_vote_of_another_term_elects_nobody;
    "a stale ack after the log was reverted": an_acknowledgement_of_a_reverted_log_counts_for_nothing;
    "the leader's own unflushed entry counted": a_leader_counts_only_what_it_has_written;
    "a read error at the leader yields an append without its predecessor": no_append_goes_without_its_predecessor;
    "a higher-term non-voter unseats the leader": a_non_voter_of_a_later_term_unseats_nobody;
    "pre-vote blocks a transfer": pre_vote_does_not_block_a_transfer;
    "ReadIndex before the first commit of the term": a_new_leader_serves_no_read_before_it_has_committed;
    "a retried ReadIndex reuses its context": an_answer_to_a_read_given_up_answers_no_other;
    "ABA: the ack of overwritten entries marks newer ones stable":
        guards::a_write_of_overwritten_entries_makes_nothing_durable;
    "an empty append with term 0 falsely matches": an_empty_append_after_term_zero_matches_nothing;
    "a conflicting entry exactly at a snapshot's index loops the install":
        a_snapshot_that_ends_at_a_conflict_is_installed_once;
    "an old snapshot truncates a newer suffix": an_old_snapshot_leaves_a_newer_suffix_alone;
    "a follower's conflicting tail is never offered again": a_conflicting_tail_is_replaced_though_messages_were_lost;
    "endless vote loop": the_only_one_who_can_win_learns_the_term_to_win_in;
    "one of two sides wakes from quiesce and the other does not":
        quiesce::one_of_two_sides_wakes_from_quiesce_and_the_other_does_not;
    "a removed node returns with a higher term": a_removed_replica_that_returns_with_a_later_term_disturbs_nobody;
    "a laggard and an up-to-date witness elect somebody": a_laggard_and_an_up_to_date_witness_elect_nobody;
    "the single-server change bug of 2015": a_new_leader_makes_no_change_on_top_of_one_that_it_may_have;
}

fn accepted(from: u64, to: u64, term: u64, matched: u64) -> Message {
    message(from, to, term, Body::AppendAccepted { matched: Index(matched) })
}

fn granted(from: u64, to: u64, term: u64) -> Message {
    message(from, to, term, Body::VoteResponse { pre: false, granted: true })
}

fn ask(from: u64, to: u64, term: u64, last: LogPos) -> Message {
    message(from, to, term, Body::RequestVote { pre: false, transfer: false, last })
}

fn snapshot(from: u64, to: u64, term: u64, pos: LogPos, membership: Membership) -> Message {
    message(from, to, term, Body::Snapshot(Box::new(SnapshotMeta { pos, membership })))
}

fn add(n: u64) -> ConfigChange {
    ConfigChange::add_voter(id(n), Member::default())
}

fn change_run(term: u64, index: u64, change: &ConfigChange) -> Run {
    let mut chunk = RunBuilder::new();
    chunk.push(EntryKind::Config, 0, &change.encode());
    chunk.seal(Term(term), Index(index), Origin::default())
}

/// `n` campaigns, and gets the votes of `by`; what it says meanwhile is lost.
fn win(c: &mut Cluster, n: u64, by: &[u64]) {
    let now = c.now;
    c.core(n).campaign(now);
    c.end_round(n);
    let term = c.core(n).term().0;
    by.iter().for_each(|voter| c.give(granted(*voter, n, term)));
    assert_eq!(c.core(n).role(), Role::Leader);
    c.net.clear();
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_snapshots_change_id_is_that_of_its_last_change() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let membership = Membership { change_id: Index(7), ..voters(&[1, 2, 3]) };
    c.give(snapshot(1, 2, 1, pos(1, 20), membership));
    assert_eq!(c.core(2).membership().change_id, Index(7));
    win(&mut c, 2, &[3]);
    c.give(accepted(3, 2, 2, 21));
    let after = |index| ConfigChange { after: Some(Index(index)), ..ConfigChange::remove(id(3)) };
    c.change(2, after(20)).expect_err("nothing was changed at the snapshot's index");
    c.change(2, after(7)).unwrap();
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_change_that_a_snapshot_covers_is_not_in_effect_beside_it() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 0, &[change_run(1, 1, &add(9))]));
    assert!(!c.core(2).membership().contains(id(9)), "in effect before it is committed");
    // The next leader never had that entry.
    c.give(snapshot(3, 2, 2, pos(2, 5), voters(&[1, 2, 3])));
    assert_eq!(c.core(2).membership(), &voters(&[1, 2, 3]));
    c.restart(2);
    assert_eq!(c.core(2).membership(), &voters(&[1, 2, 3]));
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn nobody_campaigns_before_a_committed_change_is_in_effect() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.node(2).slow_disk = true;
    c.give(append(1, 2, 1, LogPos::ZERO, 1, &[change_run(1, 1, &add(4))]));
    assert_eq!((c.core(2).commit(), c.core(2).handed()), (Index(1), Index(0)));
    c.pass(5 * ELECTION);
    assert_eq!(c.core(2).role(), Role::Follower, "campaigns by a configuration that is over");
    c.complete_all(2);
    c.campaign(2);
    assert_eq!(c.core(2).role(), Role::Candidate);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_joint_configuration_is_left_by_one_entry() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let change = ConfigChange { transition: Transition::JointImplicit, ..ConfigChange::remove(id(3)) };
    c.change(1, change).unwrap();
    c.settle();
    c.pass(5 * HEARTBEAT);
    assert!(!c.core(1).membership().is_joint());
    let leaves = |a: &&(u64, u64, EntryKind, Vec<u8>)| a.2 == EntryKind::Config && a.3.is_empty();
    assert_eq!(c.node(1).applied.iter().filter(leaves).count(), 1);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_restored_joint_configuration_needs_both_majorities() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let joint = Membership {
        outgoing: [id(1), id(4), id(5)].into(),
        learners_next: [id(5)].into(),
        auto_leave: true,
        ..voters(&[1, 2, 3])
    };
    c.give(snapshot(2, 1, 1, pos(1, 20), joint.clone()));
    assert_eq!(c.core(1).membership(), &joint);
    c.restart(1);
    assert_eq!(c.core(1).membership(), &joint, "the joint part did not survive a restart");
    c.campaign(1);
    for voter in [2, 3] {
        c.give(granted(voter, 1, 2));
    }
    assert_eq!(c.core(1).role(), Role::Candidate, "elected by one half of the configuration");
    c.give(granted(4, 1, 2));
    assert_eq!(c.core(1).role(), Role::Leader);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_joint_configuration_is_not_left_before_that_is_committed() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let mut swap = add(4);
    swap.changes.extend(add(5).changes);
    swap.changes.extend(ConfigChange::remove(id(2)).changes);
    swap.changes.extend(ConfigChange::remove(id(3)).changes);
    swap.transition = Transition::JointExplicit;
    c.change(1, swap).unwrap();
    c.change(1, ConfigChange::leave_joint()).expect_err("left before it was entered");
    c.settle();
    assert!(c.core(1).membership().is_joint());
    c.net.clear();
    c.change(1, ConfigChange::leave_joint()).unwrap();
    c.end_round(1);
    c.net.clear();
    let last = c.core(1).last().index;
    // The whole new half has it, and nobody of the old one but the leader.
    for n in [4, 5] {
        c.give(accepted(n, 1, 1, last.0));
    }
    assert!(c.core(1).commit() < last && c.core(1).membership().is_joint(), "left by one half of the configuration");
    c.give(accepted(2, 1, 1, last.0));
    assert!(c.core(1).commit() == last && !c.core(1).membership().is_joint());
}

/// {1,2,3} grows by 4 and 5. 1 and 2 lose power: if they forgot what is committed, they would elect each other.
#[cfg_attr(not(feature = "plant"), test)]
pub fn power_loss_brings_no_old_configuration_back() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.auto_snapshots = true;
    c.elect(3);
    for n in [4, 5] {
        c.add(config(n), Disk::default());
        c.change(3, add(n)).unwrap();
        c.settle();
        c.pass(2 * HEARTBEAT);
    }
    for n in [1, 2] {
        c.restart(n);
    }
    for n in [3, 4, 5] {
        c.isolate(n);
    }
    for n in [1, 2, 1, 2] {
        c.campaign(n);
        assert_eq!(c.leaders(), [3], "an old majority elected");
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_removed_replica_is_never_counted_again() {
    // Also by a leader whose owner checks changes by itself, and lets this one through.
    for checks in [ChangeChecks::Full, ChangeChecks::Nothing] {
        let mut c = Cluster::with(&[1, 2, 3], |config| config.change_checks = checks);
        c.elect(1);
        c.write(1, &["a"]);
        let late = accepted(3, 1, 1, c.core(1).last().index.0);
        c.change(1, ConfigChange::remove(id(3))).unwrap();
        c.settle();
        let back = c.change(1, add(3));
        assert_eq!(back.is_err(), checks == ChangeChecks::Full);
        c.settle();
        c.give(late);
        assert_eq!(c.core(1).progress(id(3)), None, "a match that the replica's second life never had");
        assert!(!c.core(1).membership().contains(id(3)));
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn the_other_of_two_is_not_stranded_when_its_leader_goes() {
    let mut c = Cluster::with(&[1, 2], |config| config.step_down_on_removal = true);
    c.elect(1);
    c.change(1, ConfigChange::remove(id(1))).unwrap();
    c.end_round(1);
    while let Some(m) = c.net.pop_front() {
        // Not even the commit index of its removal arrives.
        if m.to == id(1) || !matches!(m.body, Body::Commit { .. }) {
            c.give(m);
        }
    }
    c.pass(60 * ELECTION);
    assert_eq!(c.leaders(), [2]);
    c.write(2, &["alone"]);
    assert_eq!(c.node(2).payloads(), ["alone"]);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn two_acknowledgements_of_five_commit_nothing() {
    let mut c = Cluster::new(&[1, 2, 3, 4, 5]);
    win(&mut c, 1, &[2, 3]);
    c.give(accepted(2, 1, 1, 1));
    assert_eq!(c.core(1).commit(), Index(0));
    c.give(accepted(5, 1, 1, 1));
    assert_eq!(c.core(1).commit(), Index(1));
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_vote_of_another_term_elects_nobody() {
    let mut c = Cluster::new(&[1, 2, 3, 4, 5]);
    let now = c.now;
    c.core(1).campaign(now);
    c.end_round(1);
    c.net.clear();
    c.give(granted(2, 1, 1));
    // Granted in a later term it may be, but not to this candidate of an earlier one.
    c.give(granted(3, 1, 5));
    assert_eq!((c.core(1).role(), c.core(1).term()), (Role::Follower, Term(5)));
    c.core(1).campaign(now);
    c.end_round(1);
    let term = c.core(1).term().0;
    c.give(granted(2, 1, term));
    c.give(ask(3, 1, term + 1, LogPos::ZERO));
    assert_eq!(c.core(1).role(), Role::Follower, "asked for a vote of a later term, and took it for one");
    for n in [2, 3, 4] {
        c.give(granted(n, 1, term));
    }
    assert_eq!(c.core(1).role(), Role::Follower);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn an_acknowledgement_of_a_reverted_log_counts_for_nothing() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(1);
    c.propose(1, &["lost", "lost too"]).unwrap();
    c.settle();
    // 3 had taken and acknowledged those; the answer is late. Then 2 led, and reverted them everywhere.
    let late = accepted(3, 1, 1, 3);
    c.elect(2);
    c.heal();
    c.pass(2 * HEARTBEAT);
    assert_eq!(c.core(1).last(), pos(2, 2));
    win(&mut c, 1, &[2]);
    c.propose(1, &["new"]).unwrap();
    c.end_round(1);
    c.net.clear();
    let before = c.core(1).progress(id(3)).unwrap().matched();
    c.give(late);
    assert_eq!(c.core(1).progress(id(3)).unwrap().matched(), before);
    assert_eq!(c.core(1).commit(), Index(2));
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_leader_counts_only_what_it_has_written() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.node(1).slow_disk = true;
    for entry in ["a", "b"] {
        c.propose(1, &[entry]).unwrap();
        c.end_round(1);
    }
    c.give(accepted(2, 1, 1, 3));
    assert_eq!(c.core(1).commit(), Index(1), "committed what one disk has");
    c.complete(1);
    assert_eq!(c.core(1).commit(), Index(2), "committed with a write what the next one brings");
    c.complete_all(1);
    assert_eq!(c.core(1).commit(), Index(3));
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn no_append_goes_without_its_predecessor() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.log_cache_bytes_max = 0);
    c.elect(1);
    c.isolate(3);
    for i in 0..9 {
        c.write(1, &[&format!("{i}")]);
    }
    c.core(1).trim();
    c.heal();
    c.pass(2 * HEARTBEAT);
    let fetch = c.node(1).fetches.pop().expect("what left memory is read");
    // The read fails, because what it was for is compacted.
    c.core(1).compact(Index(9));
    c.core(1).fetched(fetch.ticket, Err(Compacted));
    c.core(1).snapshot_finished(id(3), false);
    for _ in 0..5 {
        c.now = c.now.plus_nanos(HEARTBEAT);
        let now = c.now;
        c.core(1).advance(now);
        c.end_round(1);
        while let Some(m) = c.net.pop_front() {
            if let Body::Append { prev, .. } = &m.body {
                assert_eq!(prev.term.is_zero(), prev.index.is_zero(), "{m:?}");
            }
            c.give(m);
        }
    }
    assert_eq!(c.node(1).snapshots_wanted, [id(3), id(3)], "once after the read, once after the snapshot failed");
    assert_eq!(c.core(3).last().index, Index(1));
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_non_voter_of_a_later_term_unseats_nobody() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.auto_snapshots = true;
    c.elect(1);
    c.add(config(4), Disk::default());
    c.change(1, ConfigChange::add_learner(id(4), Member::default())).unwrap();
    c.settle();
    c.pass(2 * HEARTBEAT);
    for (pre, transfer) in [(false, false), (true, false), (false, true)] {
        for from in [4, 77] {
            c.give(message(from, 1, 9, Body::RequestVote { pre, transfer, last: pos(8, 80) }));
            assert_eq!((c.core(1).role(), c.core(1).term()), (Role::Leader, Term(1)), "unseated by {from}");
        }
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn pre_vote_does_not_block_a_transfer() {
    for check_quorum in [false, true] {
        let mut c = Cluster::with(&[1, 2, 3], |config| (config.pre_vote, config.check_quorum) = (true, check_quorum));
        c.elect(1);
        c.pass(2 * HEARTBEAT);
        let now = c.now;
        _ = c.core(1).transfer_leader(now, id(2));
        c.end_round(1);
        let asks = |m: &Message| matches!(m.body, Body::RequestVote { pre: true, .. });
        while let Some(m) = c.net.pop_front() {
            assert!(!asks(&m), "the target asks whether it may");
            c.give(m);
        }
        assert_eq!(c.leaders(), [2]);
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_new_leader_serves_no_read_before_it_has_committed() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    win(&mut c, 2, &[3]);
    let now = c.now;
    c.core(2).read_index(now, 1);
    c.end_round(2);
    // A majority follows it. It does not know yet what that means for the commit index.
    for round in 0..3 {
        c.give(message(3, 2, 2, Body::HeartbeatResponse { read_round: round, overloaded: false }));
    }
    assert_eq!(c.node(2).reads, [ReadReady { context: 1, index: None }]);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn an_answer_to_a_read_given_up_answers_no_other() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    c.isolate(1);
    let now = c.now;
    c.core(2).read_index(now, 7);
    c.settle();
    let late = message(1, 2, 0, Body::ReadIndexResponse { context: 7, index: Some(Index(2)) });
    // Another leader commits more, and the read is asked again under a new number.
    c.elect(3);
    c.write(3, &["b"]);
    assert_eq!(c.node(2).reads.pop(), Some(ReadReady { context: 7, index: None }));
    let now = c.now;
    c.core(2).read_index(now, 8);
    c.give(late);
    assert!(c.node(2).reads.is_empty(), "an index from before the write: {:?}", c.node(2).reads);
    c.settle();
    assert_eq!(c.node(2).reads, [ReadReady { context: 8, index: Some(Index(4)) }]);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn an_empty_append_after_term_zero_matches_nothing() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 0, &[run(1, 1, &["a", "b"])]));
    c.net.clear();
    for index in [1, 2, 3, 9] {
        c.give(append(3, 2, 2, pos(0, index), index, &[]));
        assert_eq!(c.flying(|m| matches!(m.body, Body::AppendAccepted { .. })), 0, "matched at 0/{index}");
        assert_eq!(c.core(2).commit(), Index(0));
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_snapshot_that_ends_at_a_conflict_is_installed_once() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 1, &[run(1, 1, &["a", "b", "c"])]));
    c.net.clear();
    for _ in 0..3 {
        c.give(snapshot(3, 2, 4, pos(2, 3), voters(&[1, 2, 3])));
        assert_eq!(c.core(2).last(), pos(2, 3));
        assert_eq!(c.net.pop_front(), Some(accepted(2, 3, 4, 3)));
    }
    assert_eq!(c.node(2).installs.len(), 1);
    c.give(append(3, 2, 4, pos(2, 3), 4, &[run(4, 4, &["d"])]));
    assert_eq!(c.node(2).payloads(), ["a", "d"]);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn an_old_snapshot_leaves_a_newer_suffix_alone() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 2, &[run(1, 1, &["a", "b", "c", "d"])]));
    for (index, commit) in [(1, 2), (2, 2), (3, 3)] {
        c.give(snapshot(1, 2, 1, pos(1, index), voters(&[1, 2, 3])));
        assert_eq!((c.core(2).last(), c.core(2).commit()), (pos(1, 4), Index(commit)), "a snapshot at {index}");
    }
    assert_eq!(c.node(2).payloads(), ["a", "b", "c"]);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_conflicting_tail_is_replaced_though_messages_were_lost() {
    let members = [1, 2, 3];
    let mut c = Cluster::new(&[]);
    let common = run(1, 1, &["a"]);
    c.add_with_log(1, &members, 3, 1, &[common.clone(), run(3, 2, &["b", "c"])]);
    c.add_with_log(2, &members, 3, 1, std::slice::from_ref(&common));
    c.add_with_log(3, &members, 3, 1, &[common, run(2, 2, &["x", "y", "z", "zz"])]);
    c.cut.extend([(1, 3), (3, 1)]);
    c.elect(1);
    // First what is sent to it is lost, then its answers, more than once.
    for lost in [(1, 3), (3, 1), (1, 3), (3, 1)] {
        c.heal();
        c.cut.insert(lost);
        c.pass(2 * HEARTBEAT);
    }
    c.heal();
    c.pass(4 * HEARTBEAT);
    assert_eq!(c.core(3).last(), c.core(1).last());
    assert_eq!(c.node(3).payloads(), ["a", "b", "c"]);
}

/// 1 has the newer log, 2 the later term. Nobody else is there: 2 can't win, and 1 only in a term that it has to learn.
#[cfg_attr(not(feature = "plant"), test)]
pub fn the_only_one_who_can_win_learns_the_term_to_win_in() {
    for check_quorum in [false, true] {
        let members = [1, 2, 3];
        let mut c = Cluster::new(&[]);
        let tuned = |n| CoreConfig { pre_vote: true, check_quorum, ..config(n) };
        for (n, term, runs) in [(1, 2, vec![run(2, 1, &["a", "b"])]), (2, 5, vec![run(2, 1, &["a"])])] {
            let hard_state = HardState { term: Term(term), ..HardState::default() };
            let disk = Disk { hard_state, runs, membership: voters(&members), ..Disk::default() };
            c.add(tuned(n), disk);
        }
        c.pass(20 * ELECTION);
        assert_eq!(c.leaders(), [1]);
        let rounds = c.core(1).term().0;
        assert!(rounds < 12, "it took {rounds} terms");
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_removed_replica_that_returns_with_a_later_term_disturbs_nobody() {
    let mut c = Cluster::new(&[1, 2, 3, 4]);
    c.elect(1);
    c.isolate(4);
    c.change(1, ConfigChange::remove(id(4))).unwrap();
    c.settle();
    c.pass(20 * ELECTION);
    assert!(c.core(4).term() > Term(5));
    c.heal();
    c.pass(10 * ELECTION);
    for n in [1, 2, 3] {
        assert_eq!((c.core(n).term(), c.core(n).leader()), (Term(1), Some(id(1))), "{n} was disturbed");
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_laggard_and_an_up_to_date_witness_elect_nobody() {
    let mut c = Cluster::new(&[]);
    let membership = Membership { witnesses: [id(3)].into(), ..voters(&[1, 2, 3]) };
    for n in [1, 2, 3] {
        c.add(config(n), Disk { membership: membership.clone(), ..Disk::default() });
    }
    c.elect(1);
    c.write(1, &["both have it"]);
    c.isolate(2);
    c.write(1, &["2 lacks it"]);
    assert_eq!(c.node(1).payloads().len(), 2, "a leader and a witness are a majority");
    assert!(c.core(3).is_witness() && !c.core(2).is_witness());
    c.heal();
    c.isolate(1);
    c.pass(30 * ELECTION);
    assert_eq!(c.leaders(), [1], "{:?} leads without what is committed, or without a state machine", c.leaders());
    assert!(c.core(2).term() > Term(1), "2 tried");
    assert_ne!(c.core(3).role(), Role::Candidate);
    c.heal();
    c.pass(10 * ELECTION);
    assert_eq!(c.leaders(), [1]);
    c.write(1, &["all are back"]);
    assert_eq!(c.node(2).payloads(), ["both have it", "2 lacks it", "all are back"]);
}

/// Two leaders that each change the configuration they began from, one voter at a time, end with majorities that do not
/// meet, if a change counts before it is committed, or if one is made on top of an unknown one.
#[cfg_attr(not(feature = "plant"), test)]
pub fn a_new_leader_makes_no_change_on_top_of_one_that_it_may_have() {
    let mut c = Cluster::new(&[1, 2, 3, 4]);
    c.elect(1);
    // 1 adds 5, and only it and 2 have that.
    c.change(1, add(5)).unwrap();
    c.end_round(1);
    c.net.retain(|m| m.to == id(2));
    let known = c.net.pop_front().expect("an append");
    c.net.clear();
    c.give(known);
    c.net.clear();
    // 2 leads next, and is to remove 1.
    win(&mut c, 2, &[3, 4]);
    let refused = c.change(2, ConfigChange::remove(id(1))).expect_err("the tail may hold a change, and does");
    assert_eq!(refused.reason, RefusedWhy::ConfigChange(ChangeError::InFlight));
    c.give(accepted(3, 2, 2, 3));
    c.give(accepted(4, 2, 2, 3));
    assert_eq!((c.core(2).commit(), c.core(2).membership().voters.len()), (Index(3), 5));
    // Now it may. Two of those four who are left are no majority of the five who decide on it.
    c.change(2, ConfigChange::remove(id(1))).unwrap();
    c.end_round(2);
    c.give(accepted(3, 2, 2, 4));
    assert_eq!(c.core(2).commit(), Index(3));
    c.give(accepted(4, 2, 2, 4));
    assert_eq!((c.core(2).commit(), c.core(2).membership().voters.len()), (Index(4), 4));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list has all that the project set out with.
    #[test]
    fn each_bug_has_a_scenario_of_its_own() {
        let names: std::collections::BTreeSet<&str> = BUGS.iter().map(|(_, name, _)| *name).collect();
        assert_eq!(names.len(), BUGS.len());
        assert_eq!(BUGS.len(), 28);
    }
}
