//! Snapshots: sent to members that are too far behind, installed, refused (paper section 7).

use crate::cluster::*;
use longboat_raft::*;

fn meta(term: u64, index: u64, members: &[u64]) -> SnapshotMeta {
    SnapshotMeta { pos: pos(term, index), membership: voters(members) }
}

fn snapshot(from: u64, to: u64, term: u64, meta: SnapshotMeta) -> Message {
    message(from, to, term, Body::Snapshot(Box::new(meta)))
}

fn accepted(c: &mut Cluster) -> Option<u64> {
    match c.net.pop_front()?.body {
        Body::AppendAccepted { matched } => Some(matched.0),
        other => panic!("{other:?}"),
    }
}

/// A leader whose log was compacted through 10, and a member that has nothing.
fn behind() -> Cluster {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(3);
    for i in 0..11 {
        c.write(1, &[&format!("{i}")]);
    }
    c.core(1).compact(Index(10));
    c.heal();
    c
}

#[test]
fn a_member_that_needs_compacted_entries_gets_a_snapshot() {
    let mut c = behind();
    c.pass(HEARTBEAT);
    assert_eq!(c.node(1).snapshots_wanted, [id(3)]);
    let meta = meta(1, 12, &[1, 2, 3]);
    c.core(1).snapshot_sending(id(3), meta.pos);
    assert_eq!(c.core(1).progress(id(3)).unwrap().state(), ProgressState::Snapshot { pending: Index(12) });
    c.pass(3 * HEARTBEAT);
    assert_eq!(c.node(1).snapshots_wanted.len(), 1, "asked for again while one is on its way");
    c.give(snapshot(1, 3, 1, meta.clone()));
    c.settle();
    assert_eq!(c.node(3).installs, [meta]);
    assert_eq!(c.core(1).progress(id(3)).unwrap().state(), ProgressState::Replicate);
    c.write(1, &["after"]);
    assert_eq!(c.node(3).payloads(), ["after"]);
}

#[test]
fn an_acknowledged_install_is_durable() {
    an_install_is_acknowledged_when_its_record_is_durable();
}

/// A crash before the record would leave neither the log nor the snapshot of what the leader counts.
pub fn an_install_is_acknowledged_when_its_record_is_durable() {
    let mut c = behind();
    c.node(3).slow_disk = true;
    c.give(snapshot(1, 3, 1, meta(1, 12, &[1, 2, 3])));
    assert_eq!(accepted(&mut c), None, "acknowledged before its record is on the disk");
    c.complete_all(3);
    assert_eq!(accepted(&mut c), Some(12));
}

#[test]
fn a_member_that_does_not_answer_gets_no_snapshot() {
    let mut c = behind();
    c.isolate(3);
    c.pass(5 * HEARTBEAT);
    c.write(1, &["x"]);
    assert!(c.node(1).snapshots_wanted.is_empty());
}

#[test]
fn after_a_failed_snapshot_the_member_is_probed_and_asked_for_again() {
    let mut c = behind();
    c.pass(HEARTBEAT);
    c.core(1).snapshot_sending(id(3), pos(1, 12));
    c.core(1).snapshot_finished(id(3), false);
    assert_eq!(c.core(1).progress(id(3)).unwrap().state(), ProgressState::Probe);
    c.pass(HEARTBEAT);
    assert_eq!(c.node(1).snapshots_wanted, [id(3), id(3)]);
}

#[test]
fn after_a_sent_snapshot_the_member_is_probed_behind_it() {
    let mut c = behind();
    c.pass(HEARTBEAT);
    c.core(1).snapshot_sending(id(3), pos(1, 11));
    c.core(1).snapshot_finished(id(3), true);
    let progress = c.core(1).progress(id(3)).unwrap();
    assert_eq!((progress.state(), progress.next(), progress.is_paused()), (ProgressState::Probe, Index(12), true));
}

#[test]
fn an_older_snapshot_than_the_pending_one_frees_the_member_too() {
    let mut c = behind();
    c.pass(HEARTBEAT);
    c.core(1).snapshot_sending(id(3), pos(1, 12));
    c.give(snapshot(1, 3, 1, meta(1, 11, &[1, 2, 3])));
    c.settle();
    assert_eq!(c.core(1).progress(id(3)).unwrap().state(), ProgressState::Replicate);
    assert_eq!(c.core(3).last().index, Index(12));
}

#[test]
fn an_install_resets_the_log_and_takes_the_membership_from_the_snapshot() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 0, &[run(1, 1, &["a", "b"])]));
    c.net.clear();
    c.node(2).slow_disk = true;
    let meta = meta(3, 20, &[1, 2, 3, 4]);
    c.give(snapshot(4, 2, 5, meta.clone()));
    assert_eq!((c.core(2).start(), c.core(2).last(), c.core(2).commit()), (pos(3, 20), pos(3, 20), Index(20)));
    assert_eq!(c.core(2).membership(), &meta.membership);
    assert_eq!(c.core(2).handed(), Index(20));
    assert!(c.net.is_empty(), "acknowledged before the log's reset is durable");
    assert_eq!(c.node(2).batches[0].persist.as_ref().unwrap().install.as_ref(), Some(&meta));
    c.complete_all(2);
    assert_eq!(accepted(&mut c), Some(20));
    c.restart(2);
    assert_eq!((c.core(2).start(), c.core(2).term()), (pos(3, 20), Term(5)));
}

#[test]
fn entries_that_follow_a_snapshot_in_the_same_round_are_kept() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let now = c.now;
    c.core(2).step(now, snapshot(1, 2, 5, meta(3, 20, &[1, 2, 3]))).unwrap();
    c.core(2).step(now, append(1, 2, 5, pos(3, 20), 21, &[run(5, 21, &["x"])])).unwrap();
    c.end_round(2);
    assert_eq!((c.node(2).payloads(), c.node(2).installs.len()), (vec!["x".to_owned()], 1));
    assert_eq!((c.node(2).disk.start, c.node(2).disk.last()), (pos(3, 20), pos(5, 21)));
    assert_eq!(accepted(&mut c), Some(21));
}

#[test]
fn a_write_under_way_before_an_install_makes_nothing_durable_after_it() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.node(2).slow_disk = true;
    c.give(append(1, 2, 1, LogPos::ZERO, 0, &[run(1, 1, &["a", "b"])]));
    c.give(snapshot(1, 2, 5, meta(3, 20, &[1, 2, 3])));
    c.complete(2);
    assert_eq!(c.core(2).durable(), Index(0));
    c.complete_all(2);
    assert_eq!(c.core(2).durable(), Index(20));
}

#[test]
fn an_old_snapshot_is_answered_with_the_commit_index() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 3, &[run(1, 1, &["a", "b", "c"])]));
    c.net.clear();
    c.give(snapshot(1, 2, 1, meta(1, 2, &[1, 2, 3])));
    assert_eq!((accepted(&mut c), c.core(2).last()), (Some(3), pos(1, 3)));
    assert!(c.node(2).installs.is_empty());
}

#[test]
fn a_snapshot_of_an_entry_that_is_here_only_moves_the_commit_index() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 1, &[run(1, 1, &["a", "b", "c"])]));
    c.net.clear();
    c.give(snapshot(1, 2, 1, meta(1, 2, &[1, 2, 3])));
    assert_eq!((accepted(&mut c), c.core(2).last(), c.core(2).commit()), (Some(2), pos(1, 3), Index(2)));
    assert_eq!(c.node(2).payloads(), ["a", "b"]);
    assert!(c.node(2).installs.is_empty());
}

#[test]
fn a_conflicting_entry_exactly_at_the_snapshot_is_replaced() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 1, &[run(1, 1, &["a", "b", "c"])]));
    c.net.clear();
    c.give(snapshot(3, 2, 4, meta(2, 3, &[1, 2, 3])));
    assert_eq!((accepted(&mut c), c.core(2).last()), (Some(3), pos(2, 3)));
    c.give(snapshot(3, 2, 4, meta(2, 3, &[1, 2, 3])));
    assert_eq!((accepted(&mut c), c.node(2).installs.len()), (Some(3), 1));
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_snapshot_does_not_make_a_voter_non_voting() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let mut demoting = meta(3, 20, &[1, 3]);
    demoting.membership.learners.insert(id(2));
    c.give(snapshot(1, 2, 5, demoting));
    assert_eq!((accepted(&mut c), c.core(2).last()), (Some(0), LogPos::ZERO));
}

#[test]
fn a_snapshot_without_this_replica_is_not_installed() {
    let mut c = Cluster::new(&[]);
    c.add(config(4), Disk::default());
    c.give(snapshot(1, 4, 5, meta(3, 20, &[1, 2, 3])));
    assert_eq!((accepted(&mut c), c.core(4).last()), (Some(0), LogPos::ZERO));
}

#[test]
fn a_committed_change_that_a_later_snapshot_covers_is_not_in_effect_beside_it() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let mut chunk = RunBuilder::new();
    chunk.push(EntryKind::Config, 0, &ConfigChange::add_voter(id(9), Member::default()).encode());
    c.give(append(1, 2, 1, LogPos::ZERO, 0, &[chunk.seal(Term(1), Index(1), Origin::default())]));
    c.give(snapshot(3, 2, 2, meta(2, 5, &[1, 2, 3])));
    assert!(!c.core(2).membership().contains(id(9)));
}

#[test]
fn a_snapshot_brings_the_joint_part_and_a_leader_leaves_it() {
    let mut c = Cluster::new(&[1]);
    c.elect(1);
    let mut joint = meta(1, 20, &[1, 2]);
    joint.membership.outgoing.insert(id(1));
    joint.membership.auto_leave = true;
    c.give(snapshot(2, 1, 2, joint));
    assert!(c.core(1).membership().is_joint());
    c.net.clear();
    c.auto_snapshots = true;
    c.add(config(2), Disk::default());
    c.node(2).core.step(Time(2), snapshot(1, 2, 2, meta(1, 20, &[1, 2]))).unwrap();
    c.end_round(2);
    c.elect(1);
    c.pass(2 * HEARTBEAT);
    assert!(!c.core(1).membership().is_joint());
}

#[test]
fn compaction_keeps_the_place_of_the_last_entry_gone() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a", "b"]);
    c.core(1).compact(Index(2));
    let core = c.core(1);
    assert_eq!((core.start(), core.term_at(Index(2)), core.term_at(Index(1))), (pos(1, 2), Some(Term(1)), None));
    c.write(1, &["c"]);
    assert_eq!(c.node(3).payloads(), ["a", "b", "c"]);
}
