//! What a leader does for the members of its group besides replicating: witnesses joined, learners promoted, replicas replaced
//! and seen off, leadership handed over, full hosts spared, what was lost made up for.

use crate::cluster::*;
use crate::rules::{told_to_go, transfers, with_witness};
use longboat_raft::*;

fn sees_off(config: &mut CoreConfig) {
    (config.see_off_removed, config.step_down_on_removal) = (true, true);
    (config.pre_vote, config.check_quorum) = (true, true);
}

fn kind(c: &mut Cluster, n: u64, of: u64) -> Option<ReplicaKind> {
    c.core(n).membership().kind(id(of))
}

#[test]
fn a_witness_joins_without_a_snapshot_stream_and_counts_as_a_voter() {
    let mut c = Cluster::new(&[1, 2]);
    c.elect(1);
    c.write(1, &["a"]);
    c.join(3, |config| config.witness = true);
    c.change_through(1, ConfigChange::add_witness(id(3), Member::default()));
    assert!(c.node(1).snapshots_wanted.is_empty(), "a stream for a replica without a state machine");
    assert_eq!((c.node(3).installs.len(), kind(&mut c, 3, 3)), (1, Some(ReplicaKind::Witness)));
    c.isolate(2);
    c.write(1, &["b"]);
    assert_eq!(c.node(1).payloads(), ["a", "b"], "leader and witness are two of three");
    assert!(c.node(3).payloads().iter().all(String::is_empty));
}

#[test]
fn a_witness_votes_by_its_log_and_an_old_log_does_not_get_its_vote() {
    let mut c = with_witness(|_| {});
    c.elect(1);
    c.isolate(2);
    c.write(1, &["a"]);
    c.heal();
    c.isolate(1);
    c.campaign(2);
    assert_eq!(c.core(2).role(), Role::Candidate, "a laggard and the witness elected somebody");
    c.heal();
    c.isolate(2);
    c.pass(3 * HEARTBEAT);
    c.elect(1);
}

#[test]
fn a_witness_that_restarts_reads_its_own_runs_back() {
    let mut c = with_witness(|_| {});
    c.elect(1);
    c.write(1, &["a"]);
    c.change_through(1, ConfigChange::add_learner(id(9), Member { host: HostId(9), ..Member::default() }));
    let (last, membership) = (c.core(3).last(), c.core(3).membership().clone());
    c.restart(3);
    assert_eq!(c.core(3).last(), last);
    // The commit index rides with entries: the leader tells it again.
    c.pass(2 * HEARTBEAT);
    let core = c.core(3);
    assert_eq!((core.last(), core.membership(), core.is_witness()), (last, &membership, true));
    assert!(membership.learners.contains(&id(9)));
}

#[test]
fn a_log_with_stripped_runs_is_refused_to_a_replica_with_a_state_machine() {
    let disk = Disk { runs: vec![run(1, 1, &["a"]).strip()], membership: voters(&[1]), ..Disk::default() };
    assert!(matches!(Core::new(config(1), disk.restored(), Time(1)), Err(Violation::Restored(_))));
}

#[test]
fn a_witness_takes_no_payload_and_a_full_replica_no_bare_snapshot() {
    let mut c = with_witness(|_| {});
    c.give(append(1, 3, 1, LogPos::ZERO, 0, &[run(1, 1, &["a"])]));
    assert_eq!((c.core(3).last(), c.core(3).dropped(), c.net.len()), (LogPos::ZERO, 1, 0));
    let meta = Box::new(SnapshotMeta { pos: pos(1, 5), membership: voters(&[1, 2, 3]) });
    c.give(message(1, 2, 1, Body::WitnessSnapshot(meta.clone())));
    c.give(message(1, 3, 1, Body::Snapshot(meta)));
    assert_eq!((c.core(2).dropped(), c.core(3).dropped(), c.core(2).last()), (1, 2, LogPos::ZERO));
}

#[test]
fn a_snapshot_makes_no_witness_of_a_full_replica_and_none_of_a_witness() {
    let mut c = with_witness(|_| {});
    let mut membership = voters(&[1, 2, 3]);
    membership.witnesses.insert(id(2));
    let meta = Box::new(SnapshotMeta { pos: pos(1, 5), membership });
    c.give(message(1, 2, 1, Body::Snapshot(meta.clone())));
    c.give(message(1, 3, 1, Body::WitnessSnapshot(meta)));
    for n in [2, 3] {
        assert_eq!((c.core(n).dropped(), c.core(n).last()), (1, LogPos::ZERO), "{n}");
    }
}

#[test]
fn a_witness_serves_no_reads_and_takes_no_proposals() {
    let mut c = with_witness(|_| {});
    c.elect(1);
    let now = c.now;
    c.core(3).read_index(now, 7);
    c.settle();
    assert_eq!(c.node(3).reads, [ReadReady { context: 7, index: None }]);
    c.give(message(3, 1, 0, Body::ReadIndex { context: 8 }));
    assert_eq!(c.net.pop_front(), Some(message(1, 3, 0, Body::ReadIndexResponse { context: 8, index: None })));
    assert_eq!(c.propose(3, &["x"]).expect_err("refused").reason, RefusedWhy::Witness);
    assert_eq!(c.core(1).transfer_leader(now, id(3)), Err(TransferRefused::Witness(id(3))));
}

#[test]
fn a_replica_is_replaced_in_one_change_by_whoever_leads() {
    let mut c = Cluster::with(&[1, 2, 3], sees_off);
    c.elect(1);
    c.join(4, sees_off);
    c.isolate(4);
    c.change_through(1, ConfigChange::replace(id(3), id(4), Member::default()));
    // Its leader goes before the new one has caught up: the next one carries on.
    let now = c.now;
    c.core(1).transfer_leader(now, id(2)).unwrap();
    c.settle();
    c.heal();
    c.pass(5 * ELECTION);
    for n in [1, 2, 4] {
        let m = c.core(n).membership().clone();
        assert_eq!((m.voters.len(), m.is_joint(), m.removed.contains(&id(3))), (3, false, true), "at {n}");
        assert!(m.voters.contains(&id(4)) && m.promotions.is_empty());
    }
    assert!(told_to_go(&mut c, 3));
    let configs = c.node(2).applied.iter().filter(|a| a.2 == EntryKind::Config).count();
    assert_eq!(configs, 3, "added, promoted and replaced at once, left: each once");
}

#[test]
fn a_leader_that_is_replaced_hands_over_without_an_election_timeout() {
    let mut c = Cluster::with(&[1, 2, 3], sees_off);
    c.elect(1);
    c.join(4, sees_off);
    c.change_through(1, ConfigChange::replace(id(1), id(4), Member::default()));
    let mut silent = 0;
    for _ in 0..50 {
        c.pass(HEARTBEAT);
        silent += u64::from(c.leaders().is_empty());
    }
    assert!(c.leaders() != [1] && !c.leaders().is_empty());
    assert!(silent * HEARTBEAT < ELECTION, "nobody led for {silent} heartbeats");
    assert!(told_to_go(&mut c, 1));
}

#[test]
fn a_removed_learner_ends_its_promotion() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.join(4, |_| {});
    c.isolate(4);
    c.change_through(1, ConfigChange::replace(id(3), id(4), Member::default()));
    c.change_through(1, ConfigChange::remove(id(4)));
    c.heal();
    c.pass(5 * ELECTION);
    assert_eq!((c.core(1).membership().voters.len(), c.core(1).membership().promotions.len()), (3, 0));
}

#[test]
fn a_transfer_to_a_replica_too_far_behind_says_so() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(3);
    c.write(1, &["a", "b"]);
    let now = c.now;
    c.core(1).transfer_leader(now, id(3)).unwrap();
    assert_eq!(c.core(1).transfer_leader(now, id(2)), Err(TransferRefused::Busy(id(3))));
    c.core(1).transfer_leader(now, id(3)).unwrap();
    c.pass(2 * ELECTION);
    assert_eq!(transfers(&mut c, 1), [TransferOutcome::TooFarBehind { matched: Index(1), last: Index(3) }]);
    c.write(1, &["c"]);
}

#[test]
fn a_transfer_whose_target_is_removed_ends() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(3);
    c.change(1, ConfigChange::remove(id(3))).unwrap();
    let now = c.now;
    c.core(1).transfer_leader(now, id(3)).unwrap();
    c.settle();
    assert_eq!(transfers(&mut c, 1), [TransferOutcome::TargetGone]);
}

#[test]
fn a_transfer_that_somebody_else_wins_is_not_done() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.lost = |m| m.body == Body::TimeoutNow;
    let now = c.now;
    c.core(1).transfer_leader(now, id(3)).unwrap();
    c.settle();
    c.elect(2);
    assert_eq!(transfers(&mut c, 1), [TransferOutcome::LostLeadership]);
}

/// Within its term, nobody else can have come to lead: whoever asked need not wait for an election to hear that.
#[test]
fn a_transfer_ends_when_its_leader_misses_its_majority() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.check_quorum = true);
    c.elect(1);
    c.isolate(1);
    // Whoever answered before that counts once more.
    c.pass(ELECTION);
    let now = c.now;
    c.core(1).transfer_leader(now, id(3)).unwrap();
    c.pass(ELECTION);
    assert_eq!((c.core(1).role(), c.core(1).term()), (Role::Follower, Term(1)));
    assert_eq!(transfers(&mut c, 1), [TransferOutcome::LostLeadership]);
}

#[test]
fn a_preferred_witness_or_learner_is_never_handed_leadership() {
    let mut c = with_witness(|config| config.preferred = Some(id(3)));
    c.elect(1);
    c.pass(10 * ELECTION);
    assert_eq!((c.leaders(), transfers(&mut c, 1)), (vec![1], vec![]));
}

#[test]
fn a_follower_learns_why_its_change_was_refused() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.change_through(1, ConfigChange::remove(id(3)));
    let add = |n| ConfigChange::add_voter(id(n), Member::default());
    let late = ConfigChange { after: Some(Index(0)), ..add(4) };
    let change_id = ChangeError::ChangeId { asked: Index(0), current: Index(2) };
    for (change, error) in [
        (add(3), ChangeError::Removed(id(3))),
        (add(1), ChangeError::Exists(id(1))),
        (ConfigChange::remove(id(9)), ChangeError::Unknown(id(9))),
        (ConfigChange::leave_joint(), ChangeError::NotJoint),
        (ConfigChange::replace(id(9), id(5), Member::default()), ChangeError::NotAVoter(id(9))),
        (late, change_id),
    ] {
        c.change(2, change.clone()).unwrap();
        c.settle();
        let told = c.node(2).refused.pop().expect("an answer").reason;
        assert_eq!(told, RefusedReason::ConfigChange(error));
        let here = c.change(1, change).expect_err("refused at the leader too").reason;
        assert_eq!(here, RefusedWhy::ConfigChange(error));
    }
}

#[test]
fn a_full_host_is_sent_no_entries_until_it_has_room() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let now = c.now;
    c.core(3).set_overloaded(now, true);
    c.write(1, &["a"]);
    assert_eq!((c.core(3).last().index, c.node(1).payloads().len()), (Index(1), 1));
    assert!(c.core(1).progress(id(3)).unwrap().is_paused());
    c.pass(3 * HEARTBEAT);
    c.propose(1, &["b"]).unwrap();
    c.end_round(1);
    assert_eq!(c.flying(|m| m.to == id(3) && matches!(m.body, Body::Append { .. })), 0);
    c.settle();
    // It still votes, and answers heartbeats.
    let now = c.now;
    c.core(3).set_overloaded(now, false);
    c.pass(2 * HEARTBEAT);
    assert_eq!(c.node(3).payloads(), ["a", "b"]);
}

#[test]
fn a_leader_on_a_full_host_takes_changes_and_no_proposals() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let now = c.now;
    c.core(1).set_overloaded(now, true);
    assert_eq!(c.propose(1, &["x"]).expect_err("refused").reason, RefusedWhy::Busy);
    c.change_through(1, ConfigChange::remove(id(3)));
    assert_eq!(c.core(1).membership().voters.len(), 2);
}

#[test]
fn one_round_sends_no_more_than_its_bounds_and_starves_nobody() {
    let mut c = Cluster::with(&[1, 2, 3], |config| {
        config.append_bytes_max = 500;
        (config.peer_round_bytes_max, config.round_bytes_max) = (1000, 1500);
    });
    c.elect(1);
    let text = "x".repeat(400);
    for _ in 0..10 {
        c.propose(1, &[&text]).unwrap();
    }
    let (mut out, now) = (Output::default(), c.now);
    let bytes = |out: &Output, to: u64| -> usize {
        let runs = out.early.iter().filter(|m| m.to == id(to)).filter_map(|m| match &m.body {
            Body::Append { runs, .. } => Some(runs),
            _ => None,
        });
        runs.flatten().map(Run::encoded_len).sum()
    };
    c.core(1).take_output(now, &mut out);
    let (second, third) = (bytes(&out, 2), bytes(&out, 3));
    assert!(second > 0 && second <= 1500 && third > 0 && second + third <= 2000, "{second} and {third}");
    assert!(c.core(1).has_more_to_send());
    c.net.extend(out.early);
    c.node(1).batches.push_back(Batch { persist: out.persist, token: out.token.unwrap(), held: out.held });
    c.complete_all(1);
    c.settle();
    assert_eq!((c.node(2).payloads().len(), c.node(3).payloads().len()), (10, 10));
}

#[test]
fn the_bound_of_what_is_not_applied_is_a_setting() {
    let mut c =
        Cluster::with(&[1, 2, 3], |config| (config.unapplied_bytes_max, config.log_cache_bytes_max) = (1000, 0));
    c.elect(1);
    c.isolate(1);
    let text = "x".repeat(600);
    c.propose(1, &[&text]).unwrap();
    c.propose(1, &[&text]).unwrap();
    assert_eq!(c.propose(1, &[&text]).expect_err("refused").reason, RefusedWhy::Busy);
}

#[test]
fn a_replica_without_a_snapshot_asks_and_goes_on_from_the_leaders() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.auto_snapshots = true;
    c.elect(1);
    c.write(1, &["a", "b"]);
    let disk = Disk { guard: Guard::NeedsSnapshot, ..c.node(2).disk.clone() };
    c.add(config(2), disk);
    let now = c.now;
    c.core(2).read_index(now, 9);
    c.settle();
    assert_eq!(c.node(2).reads, [ReadReady { context: 9, index: None }]);
    c.pass(3 * HEARTBEAT);
    assert_eq!((c.node(2).recovers.len(), c.node(2).installs.len(), c.core(2).guard()), (1, 0, Guard::None));
    assert_eq!(c.core(2).start(), LogPos::ZERO, "acknowledged entries were thrown away");
    c.core(1).snapshot_finished(id(2), true);
    c.write(1, &["c"]);
    c.pass(2 * HEARTBEAT);
    assert_eq!(c.node(2).payloads(), ["c"]);
    c.elect(2);
}

/// Else a crash could leave its state machine ahead of its log.
#[test]
fn a_replica_without_a_snapshot_takes_none_ahead_of_its_disk() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    let disk = Disk { guard: Guard::NeedsSnapshot, ..c.node(2).disk.clone() };
    c.add(config(2), disk);
    c.node(2).slow_disk = true;
    c.give(append(1, 2, 1, pos(1, 2), 3, &[run(1, 3, &["b"])]));
    let meta = SnapshotMeta { pos: pos(1, 3), membership: voters(&[1, 2, 3]) };
    let snapshot = message(1, 2, 1, Body::Snapshot(Box::new(meta.clone())));
    c.give(snapshot.clone());
    assert_eq!((c.core(2).dropped(), c.node(2).recovers.len()), (1, 0));
    c.complete_all(2);
    c.give(snapshot);
    assert_eq!((c.core(2).dropped(), &c.node(2).recovers[..]), (1, &[meta][..]));
}

#[test]
fn a_snapshot_that_would_not_help_is_not_begun() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let before = c.core(1).dropped();
    c.give(message(9, 1, 1, Body::SnapshotNeeded { at_least: Index(1) }));
    assert_eq!((c.core(1).dropped() - before, c.core(1).snapshot_floor(id(9))), (1, Index(0)), "of a stranger");
    c.give(message(2, 1, 1, Body::SnapshotNeeded { at_least: Index(9) }));
    assert!(c.node(1).snapshots_wanted.is_empty());
    assert_eq!(c.core(1).snapshot_floor(id(2)), Index(9));
    c.write(1, &["1", "2", "3", "4", "5", "6", "7", "8"]);
    for _ in 0..2 {
        c.give(message(2, 1, 1, Body::SnapshotNeeded { at_least: Index(9) }));
    }
    assert_eq!(c.node(1).snapshots_wanted, [id(2)], "asked for twice");
    c.core(1).snapshot_sending(id(2), pos(1, 9));
    c.give(message(2, 1, 1, Body::SnapshotNeeded { at_least: Index(9) }));
    assert_eq!(c.node(1).snapshots_wanted.len(), 1, "a second one while one is on its way");
}

#[test]
fn a_lost_farewell_is_asked_for() {
    let mut c = Cluster::with(&[1, 2, 3], sees_off);
    c.elect(1);
    c.lost = |m| matches!(m.body, Body::Removed { .. });
    c.change_through(1, ConfigChange::remove(id(3)));
    c.pass(30 * ELECTION);
    assert!(!told_to_go(&mut c, 3));
    c.lost = |_| false;
    c.pass(3 * ELECTION);
    assert!(told_to_go(&mut c, 3));
    c.pass(10 * ELECTION);
    assert_eq!((c.core(3).deadline(), c.core(3).role()), (Time(u64::MAX), Role::Follower));
}

#[test]
fn a_member_is_not_told_to_go_by_somebody_who_knows_less() {
    let mut c = Cluster::with(&[1, 2, 3], sees_off);
    c.elect(1);
    c.change_through(1, ConfigChange::add_learner(id(4), Member::default()));
    let dropped = c.core(2).dropped();
    c.give(message(3, 2, 0, Body::Removed { change: Index(1) }));
    assert!(!told_to_go(&mut c, 2) && c.core(2).dropped() == dropped + 1);
}

#[test]
fn a_candidate_that_is_told_to_go_stops_campaigning() {
    let mut c = Cluster::with(&[1, 2, 3], |config| {
        sees_off(config);
        config.pre_vote = false;
    });
    c.elect(1);
    c.isolate(3);
    c.change_through(1, ConfigChange::remove(id(3)));
    c.campaign(3);
    assert_eq!(c.core(3).role(), Role::Candidate);
    c.give(message(1, 3, 0, Body::Removed { change: Index(100) }));
    assert!(told_to_go(&mut c, 3));
    assert_eq!(c.core(3).role(), Role::Follower);
}
