//! Membership changes: paper section 6, thesis chapter 4, and when a change takes effect here.

use crate::cluster::*;
use longboat_raft::*;
use std::collections::BTreeSet;

fn add(n: u64) -> ConfigChange {
    ConfigChange::add_voter(id(n), Member { host: HostId(n), ..Member::default() })
}

fn why(refused: Result<Proposed, Refused>) -> RefusedWhy {
    refused.expect_err("refused").reason
}

fn set(ids: &[u64]) -> BTreeSet<ReplicaId> {
    ids.iter().map(|n| id(*n)).collect()
}

fn joining(c: &mut Cluster, n: u64) {
    c.auto_snapshots = true;
    c.add(config(n), Disk::default());
}

#[test]
fn a_voter_is_added_and_catches_up() {
    let mut c = Cluster::new(&[1, 2]);
    c.elect(1);
    c.write(1, &["a"]);
    joining(&mut c, 3);
    c.change(1, add(3)).unwrap();
    c.settle();
    c.pass(2 * HEARTBEAT);
    c.write(1, &["b"]);
    // It began from a snapshot: the log alone does not tell whom the group began with.
    assert_eq!((c.node(3).installs.len(), c.node(3).payloads()), (1, vec!["b".to_owned()]));
    for n in [1, 2, 3] {
        assert_eq!(c.core(n).membership().voters, set(&[1, 2, 3]), "node {n}");
        assert_eq!(c.core(n).membership().change_id, Index(3));
    }
    assert!(c.core(3).is_voter());
}

#[test]
fn a_replica_that_joins_takes_no_log_without_a_membership_to_begin_from() {
    let mut c = Cluster::new(&[1, 2]);
    c.elect(1);
    c.add(config(3), Disk::default());
    c.change(1, add(3)).unwrap();
    c.settle();
    c.pass(5 * HEARTBEAT);
    assert_eq!(c.node(1).snapshots_wanted, [id(3)]);
    assert_eq!((c.core(3).last(), c.core(3).membership()), (LogPos::ZERO, &Membership::default()));
    c.pass(5 * ELECTION);
    assert_eq!(c.leaders(), [1]);
}

#[test]
fn a_change_takes_effect_when_it_is_handed_out_and_not_before() {
    let mut c = Cluster::new(&[1, 2]);
    c.elect(1);
    c.isolate(2);
    c.change(1, add(3)).unwrap();
    c.settle();
    assert_eq!(c.core(1).membership().voters, set(&[1, 2]), "in effect before it is committed");
    c.node(1).slow_disk = true;
    c.heal();
    c.pass(HEARTBEAT);
    assert_eq!(c.core(1).membership().voters, set(&[1, 2, 3]));
    // A follower that has committed the change and not written it does not act on it.
    let mut c = Cluster::new(&[1, 2, 3]);
    let mut chunk = RunBuilder::new();
    chunk.push(EntryKind::Config, 0, &add(4).encode());
    let change = chunk.seal(Term(1), Index(1), Origin::default());
    c.node(2).slow_disk = true;
    c.give(append(1, 2, 1, LogPos::ZERO, 1, &[change]));
    assert_eq!((c.core(2).commit(), c.core(2).membership().voters.len()), (Index(1), 3));
    c.complete_all(2);
    assert_eq!(c.core(2).membership().voters.len(), 4);
    assert!(c.node(2).events.contains(&Event::MembershipChanged(Index(1))));
}

#[test]
fn one_change_at_a_time() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(1);
    c.change(1, add(4)).unwrap();
    assert_eq!(why(c.change(1, add(5))), RefusedWhy::ConfigChange(ChangeError::InFlight));
    c.heal();
    c.pass(2 * HEARTBEAT);
    c.change(1, add(5)).unwrap();
}

#[test]
fn a_new_leader_counts_its_whole_tail_as_pending_changes() {
    let mut c = Cluster::new(&[]);
    c.add_with_log(1, &[1, 2, 3], 1, 0, &[run(1, 1, &["a", "b"])]);
    c.campaign(1);
    c.net.clear();
    c.give(message(2, 1, 2, Body::VoteResponse { pre: false, granted: true }));
    assert_eq!(c.core(1).role(), Role::Leader);
    assert_eq!(why(c.change(1, add(4))), RefusedWhy::ConfigChange(ChangeError::InFlight));
    c.give(message(2, 1, 2, Body::AppendAccepted { matched: Index(3) }));
    c.change(1, add(4)).unwrap();
}

#[test]
fn an_append_with_a_change_carries_the_commit_of_the_one_before() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.change(1, add(4)).unwrap();
    c.settle();
    c.change(1, add(5)).unwrap();
    c.end_round(1);
    let carries = |m: &Message| match &m.body {
        Body::Append { commit, runs, .. } if runs.iter().any(Run::has_config) => *commit >= Index(2),
        _ => true,
    };
    assert!(c.net.iter().all(carries));
}

#[test]
fn nobody_campaigns_with_a_committed_change_not_in_effect() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let mut chunk = RunBuilder::new();
    chunk.push(EntryKind::Config, 0, &add(4).encode());
    let change = chunk.seal(Term(1), Index(1), Origin::default());
    c.node(2).slow_disk = true;
    c.give(append(1, 2, 1, LogPos::ZERO, 1, &[change]));
    c.campaign(2);
    assert_eq!(c.core(2).role(), Role::Follower);
    c.complete_all(2);
    c.campaign(2);
    assert_eq!(c.core(2).role(), Role::Candidate);
}

/// {1,2,3} grows by 4 and 5; 1 and 2 lose power. They must not elect each other under the old three, which is why the
/// commit index that the second change carried is saved with it.
#[test]
fn the_commit_index_that_survives_power_loss_keeps_an_old_majority_from_electing() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(3);
    for n in [4, 5] {
        joining(&mut c, n);
        c.change(3, add(n)).unwrap();
        c.settle();
        c.pass(2 * HEARTBEAT);
    }
    for n in [1, 2] {
        c.restart(n);
        assert!(c.core(n).membership().voters.len() >= 4, "{n} forgot that the group grew");
    }
    for n in [3, 4, 5] {
        c.isolate(n);
    }
    c.campaign(1);
    c.campaign(2);
    assert!(c.leaders().iter().all(|n| *n == 3), "an old majority elected {:?}", c.leaders());
}

#[test]
fn a_removed_leader_leads_until_its_followers_know_and_steps_down_if_asked_to() {
    for step_down in [false, true] {
        let mut c = Cluster::with(&[1, 2, 3], |config| config.step_down_on_removal = step_down);
        c.elect(1);
        c.change(1, ConfigChange::remove(id(1))).unwrap();
        c.settle();
        assert_eq!(c.core(1).role() == Role::Leader, !step_down);
        assert!(matches!(why(c.propose(1, &["x"])), RefusedWhy::NoLeader));
        for n in [2, 3] {
            assert_eq!(c.core(n).membership().voters, set(&[2, 3]), "{n} never learned of it");
        }
        c.elect(2);
        c.write(2, &["y"]);
        assert_eq!(c.node(3).payloads(), ["y"]);
    }
}

/// As above, and the leader stays as a non-voting member: with its longer log it refuses the other its vote for ever.
#[test]
fn making_the_leader_of_two_non_voting_does_not_strand_the_other() {
    let mut c = Cluster::with(&[1, 2], |config| config.step_down_on_removal = true);
    c.elect(1);
    c.change(1, ConfigChange::add_learner(id(1), Member::default())).unwrap();
    c.end_round(1);
    let append = c.net.pop_front().unwrap();
    // 2 takes the change, but nothing of what comes after it, and never hears that it is committed.
    c.propose(1, &["later"]).unwrap();
    c.end_round(1);
    c.net.clear();
    c.give(append);
    let accepted = c.net.pop_front().unwrap();
    c.give(accepted);
    c.net.clear();
    assert_eq!(c.leaders(), [0; 0], "1 is no voter any more");
    assert!(c.core(1).last() > c.core(2).last());
    c.pass(60 * ELECTION);
    assert_eq!(c.leaders(), [2]);
    c.write(2, &["alone"]);
    assert_eq!(c.node(2).payloads(), ["later", "alone"]);
}

#[test]
fn removing_the_leader_of_two_does_not_strand_the_other() {
    let mut c = Cluster::with(&[1, 2], |config| config.step_down_on_removal = true);
    c.elect(1);
    c.change(1, ConfigChange::remove(id(1))).unwrap();
    c.end_round(1);
    // 2 takes the change, and never hears that it is committed.
    while let Some(m) = c.net.pop_front() {
        if m.to == id(1) || matches!(m.body, Body::Append { .. }) {
            c.give(m);
        }
    }
    assert_eq!((c.core(1).role(), c.core(2).membership().voters.len()), (Role::Follower, 2));
    c.elect(2);
    assert_eq!(c.core(2).membership().voters, set(&[2]));
}

/// The leader that was removed has the longest log, and the other needs its vote because it does not know of the removal.
#[test]
fn a_removed_replica_that_is_needed_once_more_helps_out() {
    let mut c = Cluster::with(&[1, 2], |config| (config.step_down_on_removal, config.pre_vote) = (true, true));
    c.elect(1);
    c.change(1, ConfigChange::remove(id(1))).unwrap();
    c.end_round(1);
    let append = c.net.pop_front().unwrap();
    c.give(append);
    let accepted = c.net.pop_front().unwrap();
    // Entries that only the leader has, proposed before it learns that the change is committed; then what it says is lost,
    // that commit index with it.
    c.propose(1, &["only", "here"]).unwrap();
    c.give(accepted);
    c.net.clear();
    assert_eq!((c.core(1).role(), c.core(1).is_voter(), c.core(2).is_voter()), (Role::Follower, false, true));
    assert_eq!((c.core(1).deadline(), c.core(2).membership().voters.len()), (Time(u64::MAX), 2));
    c.pass(30 * ELECTION);
    assert_eq!((c.leaders(), c.core(1).role()), (vec![2], Role::Follower));
    assert_eq!(c.core(2).membership().voters, set(&[2]));
    c.write(2, &["on"]);
    assert_eq!(c.node(2).payloads(), ["only", "here", "on"]);
}

#[test]
fn a_removed_replica_does_not_campaign_and_is_not_listened_to() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.change(1, ConfigChange::remove(id(3))).unwrap();
    c.settle();
    assert!(!c.core(3).is_voter());
    assert_eq!(c.core(3).deadline(), Time(u64::MAX));
    let term = c.core(1).term();
    c.give(message(3, 2, 50, Body::RequestVote { pre: false, transfer: true, last: pos(40, 99) }));
    assert_eq!(c.core(2).term(), term);
}

#[test]
fn a_stranger_does_not_unseat_a_leader() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.give(message(9, 1, 50, Body::RequestVote { pre: false, transfer: true, last: pos(40, 99) }));
    assert_eq!((c.core(1).role(), c.core(1).term()), (Role::Leader, Term(1)));
}

#[test]
fn a_non_voting_member_is_replicated_to_and_not_counted() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    joining(&mut c, 4);
    c.change(1, ConfigChange::add_learner(id(4), Member::default())).unwrap();
    c.settle();
    c.pass(2 * HEARTBEAT);
    c.isolate(2);
    c.isolate(3);
    c.write(1, &["a"]);
    assert_eq!(c.core(4).last().index, c.core(1).last().index);
    assert!(c.node(1).payloads().is_empty(), "a non-voting member was counted");
    c.pass(20 * ELECTION);
    assert_eq!(c.core(4).role(), Role::Follower);
}

#[test]
fn a_non_voting_member_is_promoted() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    joining(&mut c, 4);
    c.change(1, ConfigChange::add_learner(id(4), Member::default())).unwrap();
    c.settle();
    c.pass(2 * HEARTBEAT);
    c.change(1, add(4)).unwrap();
    c.settle();
    assert!(c.core(4).is_voter());
    c.isolate(3);
    c.isolate(2);
    c.write(1, &["a"]);
    assert!(c.node(1).payloads().is_empty(), "two of four committed");
}

fn swap(out: u64, joins: u64, transition: Transition) -> ConfigChange {
    let mut change = add(joins);
    change.changes.extend(ConfigChange::remove(id(out)).changes);
    change.transition = transition;
    change
}

#[test]
fn several_changes_at_once_go_through_a_joint_configuration_and_out_of_it() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    joining(&mut c, 4);
    c.change(1, swap(3, 4, Transition::Auto)).unwrap();
    c.settle();
    c.pass(3 * HEARTBEAT);
    for n in [1, 2, 4] {
        let m = c.core(n).membership().clone();
        assert_eq!((&m.voters, m.is_joint()), (&set(&[1, 2, 4]), false), "node {n}");
        assert!(m.removed.contains(&id(3)));
    }
    let leaves = c.node(1).applied.iter().filter(|a| a.2 == EntryKind::Config && a.3.is_empty()).count();
    assert_eq!(leaves, 1, "leaving was proposed more than once");
}

#[test]
fn in_a_joint_configuration_both_majorities_decide() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    for n in [4, 5] {
        joining(&mut c, n);
    }
    let mut change = swap(2, 4, Transition::JointExplicit);
    change.changes.extend(swap(3, 5, Transition::Auto).changes);
    c.change(1, change).unwrap();
    c.settle();
    c.pass(3 * HEARTBEAT);
    assert!(c.core(1).membership().is_joint());
    // The outgoing majority alone.
    c.isolate(4);
    c.isolate(5);
    c.write(1, &["a"]);
    assert!(c.node(1).payloads().is_empty(), "the incoming half did not agree");
    c.heal();
    c.pass(2 * HEARTBEAT);
    assert_eq!(c.node(1).payloads(), ["a"]);
    // The incoming majority alone.
    c.isolate(2);
    c.isolate(3);
    c.write(1, &["b"]);
    assert_eq!(c.node(1).payloads(), ["a"], "the outgoing half did not agree");
}

#[test]
fn an_explicit_joint_configuration_stays_until_it_is_left() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    joining(&mut c, 4);
    c.change(1, swap(3, 4, Transition::JointExplicit)).unwrap();
    c.settle();
    c.pass(3 * HEARTBEAT);
    assert!(c.core(1).membership().is_joint());
    assert_eq!(why(c.change(1, add(5))), RefusedWhy::ConfigChange(ChangeError::AlreadyJoint));
    c.change(1, ConfigChange::leave_joint()).unwrap();
    c.settle();
    assert!(!c.core(1).membership().is_joint());
    assert_eq!(why(c.change(1, ConfigChange::leave_joint())), RefusedWhy::ConfigChange(ChangeError::NotJoint));
}

#[test]
fn a_new_leader_leaves_the_joint_configuration_that_its_predecessor_entered() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    joining(&mut c, 4);
    c.change(1, swap(3, 4, Transition::JointImplicit)).unwrap();
    c.end_round(1);
    // The change is committed by 2 and 3, and its leader is cut off before it can propose to leave.
    let appends: Vec<Message> = c.net.drain(..).collect();
    appends.into_iter().for_each(|m| c.give(m));
    c.isolate(1);
    c.settle();
    c.cut.clear();
    c.isolate(1);
    c.elect(2);
    c.pass(3 * HEARTBEAT);
    c.heal();
    c.pass(3 * HEARTBEAT);
    assert_eq!((c.core(2).membership().is_joint(), &c.core(2).membership().voters), (false, &set(&[1, 2, 4])));
}

#[test]
fn changes_that_cannot_be_made_are_refused_with_their_reason() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.change(1, ConfigChange::remove(id(3))).unwrap();
    c.settle();
    let mut refuses = |change, error| assert_eq!(why(c.change(1, change)), RefusedWhy::ConfigChange(error));
    refuses(add(3), ChangeError::Removed(id(3)));
    refuses(add(2), ChangeError::Exists(id(2)));
    refuses(add(0), ChangeError::ZeroReplica);
    refuses(ConfigChange::remove(id(7)), ChangeError::Unknown(id(7)));
    let late = ConfigChange { after: Some(Index(0)), ..add(4) };
    refuses(late, ChangeError::ChangeId { asked: Index(0), current: Index(2) });
}

#[test]
fn a_change_at_a_follower_goes_to_the_leader() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    assert_eq!(c.change(2, ConfigChange::remove(id(3))).unwrap(), Proposed::Forwarded { to: id(1) });
    c.settle();
    assert_eq!(c.core(1).membership().voters, set(&[1, 2]));
    c.change(2, add(3)).unwrap();
    c.settle();
    let reason = RefusedReason::ConfigChange(ChangeError::Removed(id(3)));
    let refused = RefusedForward { first_sequence: 1, count: 1, reason };
    assert_eq!(c.node(2).refused, [refused]);
}
