//! Rules of membership, leadership and recovery that planted bugs break, one scenario each; see `guards`.

use crate::cluster::*;
use longboat_raft::*;

/// Replicas 1 and 2, and the witness 3.
pub fn with_witness(tune: impl Fn(&mut CoreConfig)) -> Cluster {
    let mut c = Cluster::with(&[], &tune);
    let mut membership = voters(&[1, 2, 3]);
    membership.witnesses.insert(id(3));
    for n in 1..=3 {
        let mut config = config(n);
        tune(&mut config);
        c.add(config, Disk { membership: membership.clone(), ..Disk::default() });
    }
    c
}

/// Replicas 1 to 3, led by 1, of which `n` begins again without part of what it had.
fn guarded(n: u64, guard: Guard) -> Cluster {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a", "b"]);
    let disk = Disk { guard, ..c.node(n).disk.clone() };
    c.add(config(n), disk);
    c.net.clear();
    c
}

pub fn transfers(c: &mut Cluster, n: u64) -> Vec<TransferOutcome> {
    let ended = |e: &Event| match e {
        Event::TransferEnded { outcome, .. } => Some(*outcome),
        _ => None,
    };
    c.node(n).events.iter().filter_map(ended).collect()
}

pub fn a_witness_keeps_places_and_no_payloads() {
    let mut c = with_witness(|_| {});
    c.elect(1);
    c.write(1, &["secret", "more"]);
    let last = c.core(1).last();
    assert_eq!((c.core(3).last(), c.core(3).dropped()), (last, 0), "the witness did not take what it was sent");
    let disk = &c.node(3).disk;
    assert!(disk.runs.iter().all(|r| r.is_stripped() && r.payload().is_empty()));
    assert!(c.node(2).disk.runs.iter().all(|r| !r.is_stripped()));
}

/// The leader's disk is slow: it crashes before its newest entry is on it, while the other full replica is away. Then it and the
/// witness are a majority that must be able to go on.
pub fn a_witness_is_never_ahead_of_its_leaders_disk() {
    let mut c = with_witness(|_| {});
    c.elect(1);
    c.write(1, &["a"]);
    c.isolate(2);
    c.node(1).slow_disk = true;
    c.propose(1, &["b"]).unwrap();
    c.settle();
    c.restart(1);
    c.settle();
    c.elect(1);
    c.write(1, &["c"]);
    assert_eq!(c.node(1).payloads(), ["a", "c"]);
}

pub fn witnesses_are_never_a_majority() {
    let mut c = with_witness(|_| {});
    c.elect(1);
    let refused = |c: &mut Cluster, change| c.change(1, change).expect_err("refused").reason;
    let many = RefusedWhy::ConfigChange(ChangeError::ManyWitnesses);
    let second = ConfigChange::add_witness(id(4), Member::default());
    c.change_through(1, second);
    assert_eq!(refused(&mut c, ConfigChange::remove(id(2))), many);
    assert_eq!(refused(&mut c, ConfigChange::add_witness(id(5), Member::default())), many);
    c.change(1, ConfigChange::add_voter(id(5), Member::default())).unwrap();
}

pub fn a_replica_with_a_state_machine_takes_no_stripped_run() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 1, &[run(1, 1, &["a"]).strip()]));
    assert_eq!((c.core(2).last(), c.core(2).dropped(), c.net.len()), (LogPos::ZERO, 1, 0));
}

/// Found by the fuzzer: a log with a witness's runs, at a replica that was none when it began again.
pub fn a_replica_is_a_witness_or_none_for_its_life() {
    let mut c = with_witness(|config| config.witness = config.replica == id(3));
    c.elect(1);
    c.write(1, &["a"]);
    c.change_through(1, ConfigChange::remove(id(3)));
    c.pass(3 * HEARTBEAT);
    assert!(c.core(3).membership().removed.contains(&id(3)));
    assert!(c.core(3).is_witness(), "its log has no payloads, whoever it belongs to");
    c.restart(3);
    assert!(c.core(3).is_witness());
    // A replica with a state machine is told that it was added as a witness. It has entries that it can apply, and takes no
    // others.
    c.add(config(4), Disk { membership: voters(&[1, 2]), ..Disk::default() });
    let mut named = RunBuilder::new();
    named.push(EntryKind::Config, 0, &ConfigChange::add_witness(id(4), Member::default()).encode());
    let named = named.seal(Term(2), Index(1), Origin::default());
    c.give(append(1, 4, 2, LogPos::ZERO, 1, &[named]));
    assert!(c.core(4).membership().is_witness(id(4)) && !c.core(4).is_witness(), "it has a state machine");
    c.give(append(1, 4, 2, pos(2, 1), 2, &[run(2, 2, &["b"]).strip()]));
    assert_eq!(c.core(4).last(), pos(2, 1), "it can't apply what has no payload");
}

pub fn a_witness_never_campaigns() {
    let mut c = with_witness(|_| {});
    c.elect(1);
    c.isolate(3);
    c.pass(20 * ELECTION);
    assert_eq!((c.core(3).role(), c.core(3).term()), (Role::Follower, Term(1)));
    c.give(message(1, 3, 1, Body::TimeoutNow));
    assert_eq!((c.core(3).role(), c.core(3).term()), (Role::Follower, Term(1)));
}

pub fn a_change_waits_for_the_one_before() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(1);
    c.change(1, ConfigChange::add_voter(id(4), Member::default())).unwrap();
    let refused = c.change(1, ConfigChange::add_voter(id(5), Member::default())).expect_err("refused").reason;
    assert_eq!(refused, RefusedWhy::ConfigChange(ChangeError::InFlight));
}

pub fn a_learner_that_lags_is_not_promoted() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.join(4, |_| {});
    c.isolate(4);
    let mut add = ConfigChange::add_learner(id(4), Member::default());
    add.changes[0].promotion = Promotion::WhenCaughtUp;
    c.change_through(1, add);
    c.pass(5 * ELECTION);
    assert_eq!(c.core(1).membership().kind(id(4)), Some(ReplicaKind::NonVoting), "promoted unseen");
    c.heal();
    c.pass(2 * ELECTION);
    for n in 1..=4 {
        assert_eq!(c.core(n).membership().kind(id(4)), Some(ReplicaKind::Voter), "at {n}");
        assert!(c.core(n).membership().promotions.is_empty());
    }
}

pub fn a_proposal_for_another_term_is_refused() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let (now, origin) = (c.now, Origin { replica: id(1), start: 7 });
    for n in [1, 2] {
        let options = ProposeOptions { expected_term: Some(Term(7)), ..ProposeOptions::default() };
        let refused = c.core(n).propose(now, commands(&["x"]), origin, options).expect_err("another term");
        assert_eq!((refused.reason, refused.chunk.count()), (RefusedWhy::TermChanged { current: Term(1) }, 1));
    }
    let options = ProposeOptions { expected_term: Some(Term(1)), forward: false };
    c.core(1).propose(now, commands(&["y"]), origin, options).unwrap();
    let refused = c.core(2).propose(now, commands(&["y"]), origin, options).expect_err("not to be forwarded");
    assert_eq!(refused.reason, RefusedWhy::NotLeader);
}

pub fn the_target_of_a_transfer_campaigns_with_the_whole_log() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(3);
    c.write(1, &["a"]);
    let now = c.now;
    c.core(1).transfer_leader(now, id(3)).unwrap();
    c.end_round(1);
    assert_eq!(c.flying(|m| m.body == Body::TimeoutNow), 0, "told to campaign without the newest entries");
    c.net.clear();
    c.heal();
    c.pass(2 * HEARTBEAT);
    assert_eq!((c.leaders(), transfers(&mut c, 1)), (vec![3], vec![TransferOutcome::Done]));
}

pub fn a_preferred_replica_that_lags_is_not_handed_leadership() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.preferred = Some(id(3)));
    c.elect(1);
    c.isolate(3);
    c.write(1, &["a"]);
    for _ in 0..30 {
        c.pass(HEARTBEAT);
        assert_eq!(c.core(1).transferee(), None, "handed to a replica that is not there");
    }
    c.heal();
    c.pass(5 * ELECTION);
    assert_eq!(c.leaders(), [3]);
    c.pass(20 * ELECTION);
    assert_eq!(c.leaders(), [3], "leadership did not stay");
}

pub fn handing_over_to_the_preferred_backs_off() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.preferred = Some(id(3)));
    c.lost = |m| m.body == Body::TimeoutNow;
    c.elect(1);
    c.pass(130 * ELECTION);
    // After waits of 2, 4, 8, 16, 32 and 64 election timeouts.
    let failed = transfers(&mut c, 1);
    assert!((5..=7).contains(&failed.len()), "{} attempts", failed.len());
    assert!(failed.iter().all(|o| *o == TransferOutcome::TimedOut));
}

fn sees_off(config: &mut CoreConfig) {
    (config.see_off_removed, config.step_down_on_removal) = (true, true);
    (config.pre_vote, config.check_quorum) = (true, true);
}

pub fn told_to_go(c: &mut Cluster, n: u64) -> bool {
    c.node(n).events.iter().any(|e| matches!(e, Event::Removed { .. }))
}

/// 4 is removed, which 1 and 4 learn, and 2 and 3 don't. Then 1 dies. 2 and 3 are a majority of those who stay, but they need
/// the vote of 4: it must still be there.
pub fn a_removed_replica_may_go_when_a_majority_knows() {
    let mut c = Cluster::with(&[1, 2, 3, 4], sees_off);
    c.elect(1);
    c.change(1, ConfigChange::remove(id(4))).unwrap();
    c.end_round(1);
    let appends: Vec<Message> = c.net.drain(..).collect();
    appends.into_iter().for_each(|m| c.give(m));
    // They answer, and nobody but 4 hears what the leader has to say then.
    c.cut.extend([(1, 2), (1, 3), (2, 4), (3, 4), (4, 2), (4, 3)]);
    c.settle();
    assert_eq!((c.core(1).membership().voters.len(), c.core(2).membership().voters.len()), (3, 4));
    // 4 hears no leader any more, and asks.
    c.pass(5 * ELECTION);
    // The owner of a replica that is told to go deletes it.
    let gone = if told_to_go(&mut c, 4) { vec![1, 4] } else { vec![1] };
    c.heal();
    gone.into_iter().for_each(|n| c.isolate(n));
    assert!(c.leaders().iter().all(|n| *n != 2 && *n != 3));
    c.pass(20 * ELECTION);
    assert!(c.leaders().iter().any(|n| *n == 2 || *n == 3), "two of the three who stay can't elect");
    // With everybody back, it is told.
    c.heal();
    c.pass(20 * ELECTION);
    assert!(told_to_go(&mut c, 4), "never told to go");
    c.isolate(4);
    let leader = c.leaders()[0];
    c.write(leader, &["on"]);
}

pub fn a_replica_without_a_snapshot_does_not_campaign() {
    let mut c = guarded(2, Guard::NeedsSnapshot);
    c.isolate(1);
    c.isolate(3);
    c.pass(10 * ELECTION);
    assert_eq!((c.core(2).role(), c.core(2).term()), (Role::Follower, Term(1)));
    // It votes, and acknowledges.
    c.heal();
    let ask = Body::RequestVote { pre: false, transfer: true, last: pos(1, 9) };
    c.give(message(3, 2, 2, ask));
    assert_eq!(c.net.pop_front(), Some(message(2, 3, 2, Body::VoteResponse { pre: false, granted: true })));
    c.give(append(3, 2, 2, pos(1, 3), 2, &[run(2, 4, &["c"])]));
    assert_eq!(c.net.pop_front(), Some(message(2, 3, 2, Body::AppendAccepted { matched: Index(4) })));
    assert!(c.node(2).payloads().is_empty(), "applied to a state machine that is not there");
}

pub fn a_replica_behind_its_machine_does_not_campaign() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a", "b"]);
    let restored = Restored { machine: Index(3), ..c.node(2).disk.restored() };
    let (saved, last) = (restored.hard_state.commit, restored.last.index);
    assert_eq!((last, saved < last), (Index(3), true));
    let core = Core::new(config(2), restored, c.now).unwrap();
    assert_eq!(core.commit(), last, "what the machine was given is committed");
    let restored = Restored { machine: Index(7), ..c.node(2).disk.restored() };
    c.node(2).core = Core::new(config(2), restored, c.now).unwrap();
    c.end_round(2);
    assert_eq!(c.core(2).commit(), saved, "this is not the log that the machine was given");
    c.campaign(2);
    assert_eq!(c.core(2).role(), Role::Follower);
    c.write(1, &["c", "d", "e", "f"]);
    c.pass(2 * HEARTBEAT);
    c.elect(2);
}

pub fn a_replica_that_lost_entries_acknowledges_nothing() {
    let mut c = guarded(2, Guard::LostLog { through: Index(3) });
    c.give(append(1, 2, 1, pos(1, 3), 3, &[run(1, 4, &["c"])]));
    c.give(message(1, 2, 1, Body::Heartbeat { commit: Index(3), read_round: 0 }));
    let asks = message(2, 1, 1, Body::SnapshotNeeded { at_least: Index(3) });
    assert!(c.net.iter().all(|m| *m == asks), "{:?}", c.net);
    assert_eq!((c.net.len(), c.core(2).last()), (2, pos(1, 3)));
}

pub fn a_replica_that_lost_entries_does_not_vote() {
    let mut c = guarded(2, Guard::LostLog { through: Index(3) });
    for pre in [true, false] {
        c.give(message(3, 2, 2, Body::RequestVote { pre, transfer: true, last: pos(1, 9) }));
    }
    assert!(c.net.is_empty(), "{:?}", c.net);
}

pub fn lost_entries_are_made_up_for_by_a_snapshot_that_covers_them() {
    let mut c = guarded(2, Guard::LostLog { through: Index(5) });
    let snapshot =
        |index| Body::Snapshot(Box::new(SnapshotMeta { pos: pos(1, index), membership: voters(&[1, 2, 3]) }));
    c.give(message(1, 2, 1, snapshot(4)));
    assert!(c.net.is_empty() && c.core(2).guard() != Guard::None, "an old snapshot was enough");
    assert_eq!(c.core(2).dropped(), 1);
    c.give(message(1, 2, 1, snapshot(5)));
    assert_eq!(c.net.pop_front(), Some(message(2, 1, 1, Body::AppendAccepted { matched: Index(5) })));
    assert_eq!((c.core(2).guard(), c.core(2).start()), (Guard::None, pos(1, 5)));
    c.give(message(3, 2, 2, Body::RequestVote { pre: false, transfer: true, last: pos(1, 9) }));
    assert_eq!(c.net.pop_front(), Some(message(2, 3, 2, Body::VoteResponse { pre: false, granted: true })));
}
