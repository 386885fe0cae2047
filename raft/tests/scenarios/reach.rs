//! How far rules reach: what is just beyond one is left alone, and bounds are where they are said to be.

use crate::cluster::*;
use crate::silence::*;
use longboat_raft::*;
use std::sync::Arc;

fn asks(from: u64, to: u64, term: u64, pre: bool) -> Message {
    message(from, to, term, Body::RequestVote { pre, transfer: true, last: LogPos::ZERO })
}

/// Else one with a short log, asking again and again, would keep those from campaigning who could win.
#[test]
fn a_voter_that_refuses_a_short_log_keeps_its_own_election_timeout() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    c.isolate(1);
    // A later term: nobody leads in it.
    c.give(asks(3, 2, 7, false));
    let before = c.core(2).deadline();
    c.now = c.now.plus_nanos(ELECTION / 2);
    c.give(asks(3, 2, 7, false));
    assert_eq!(c.core(2).deadline(), before);
}

#[test]
fn a_replica_that_does_not_vote_helps_out_only_without_a_leader_and_waits_only_once() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.join(4, |_| {});
    c.change_through(1, ConfigChange::add_learner(id(4), Member::default()));
    c.write(1, &["a"]);
    let never = Time(u64::MAX);
    c.give(asks(2, 4, 2, true));
    assert_eq!(c.core(4).deadline(), never, "it hears its leader");
    c.give(asks(2, 4, 7, false));
    let helps = c.core(4).deadline();
    assert_ne!(helps, never, "the one that asks needs what only it may have");
    c.now = c.now.plus_nanos(ELECTION / 2);
    c.give(asks(2, 4, 7, false));
    assert_eq!(c.core(4).deadline(), helps, "asked again, it would never come to it");
}

#[test]
fn a_witness_does_not_help_out() {
    let mut c = crate::rules::with_witness(|_| {});
    c.elect(1);
    c.write(1, &["a"]);
    c.change_through(1, ConfigChange::remove(id(3)));
    assert!(!c.core(3).is_voter());
    let before = c.core(3).deadline();
    c.give(asks(2, 3, 7, false));
    assert_eq!(c.core(3).deadline(), before);
}

#[test]
fn so_many_removed_replicas_are_told_without_having_asked_and_no_more() {
    const TOLD_MAX: u64 = 64;
    let mut c = Cluster::with(&[1], |config| (config.see_off_removed, config.step_down_on_removal) = (true, true));
    c.elect(1);
    let change = |kind: fn(ReplicaId) -> ConfigChange, ids: std::ops::RangeInclusive<u64>| {
        let changes = ids.flat_map(|n| kind(id(n)).changes).collect();
        ConfigChange { changes, ..kind(id(2)) }
    };
    let last = TOLD_MAX + 8;
    c.change_through(1, change(|r| ConfigChange::add_learner(r, Member::default()), 2..=last));
    // The messages are to replicas that are not here.
    let mut told = std::collections::BTreeSet::new();
    for removed in [2..=TOLD_MAX - 2, TOLD_MAX - 1..=last] {
        c.change(1, change(ConfigChange::remove, removed)).unwrap();
        for _ in 0..4 {
            c.end_round(1);
            told.extend(c.net.drain(..).filter(|m| matches!(m.body, Body::Removed { .. })).map(|m| m.to.0));
            c.now = c.now.plus_nanos(HEARTBEAT);
            let now = c.now;
            c.core(1).advance(now);
        }
    }
    assert_eq!(told, (2..=TOLD_MAX + 1).collect());
}

/// After 0, 1, 2, 4 and so on up to 64 heartbeats, and a new term is no reason to begin again.
#[test]
fn a_removed_replica_that_does_not_answer_is_told_eight_times() {
    let mut c = Cluster::with(&[1], |config| (config.see_off_removed, config.step_down_on_removal) = (true, true));
    c.elect(1);
    c.change_through(1, ConfigChange::add_learner(id(2), Member::default()));
    c.change(1, ConfigChange::remove(id(2))).unwrap();
    let told_within = |c: &mut Cluster, beats: u64| {
        let mut told = 0;
        for _ in 0..beats {
            c.end_round(1);
            told += c.net.drain(..).filter(|m| matches!(m.body, Body::Removed { .. })).count();
            c.now = c.now.plus_nanos(HEARTBEAT);
            let now = c.now;
            c.core(1).advance(now);
        }
        told
    };
    let before = told_within(&mut c, 20);
    let later = c.core(1).term().0 + 1;
    c.give(message(2, 1, later, Body::HeartbeatResponse { read_round: 0, overloaded: false }));
    assert_eq!(c.core(1).role(), Role::Follower);
    let now = c.now;
    c.core(1).campaign(now);
    let after = told_within(&mut c, 100);
    assert_eq!((c.core(1).role(), before, after), (Role::Leader, 6, 2));
}

#[test]
fn only_another_member_can_be_gone() {
    let mut c = silent_group(&[1, 2, 3]);
    let now = c.now;
    for replica in [id(1), id(9)] {
        c.core(1).replica_gone(now, replica);
        assert!(!c.core(1).is_gone(replica) && c.core(1).is_quiet(), "{replica}");
    }
    c.core(1).replica_gone(now, id(2));
    assert!(c.core(1).is_gone(id(2)) && !c.core(1).is_quiet());
}

#[test]
fn a_group_that_prefers_who_can_never_lead_falls_silent() {
    // A witness is a voter all the same, and 9 is nobody.
    for preferred in [3, 9] {
        let mut c = crate::rules::with_witness(|config| {
            (config.preferred, config.quiesce_after_nanos) = (Some(id(preferred)), IDLE);
            (config.pre_vote, config.check_quorum) = (true, true);
        });
        c.elect(1);
        c.write(1, &["a"]);
        c.pass(3 * IDLE);
        assert_eq!(silent(&mut c), [1, 2, 3], "with {preferred} preferred");
    }
}

#[test]
fn a_group_whose_preferred_replica_is_still_to_lead_stays_awake() {
    let mut c = Cluster::with(&[1, 2, 3], |config| {
        (config.preferred, config.quiesce_after_nanos) = (Some(id(3)), IDLE);
        (config.pre_vote, config.check_quorum) = (true, true);
    });
    // It refuses to campaign, in effect: what asks it to is lost.
    c.lost = |m| m.body == Body::TimeoutNow;
    c.elect(1);
    c.write(1, &["a"]);
    // Between two attempts there is time for silence.
    for _ in 0..60 {
        c.pass(ELECTION / 2);
        assert_eq!(silent(&mut c), [], "it would never be handed leadership");
    }
}

#[test]
fn a_replica_that_was_silent_writes_nothing_to_be_so_again_after_a_restart() {
    let mut c = silent_group(&[1, 2, 3]);
    c.restart(2);
    c.node(2).slow_disk = true;
    // It hears nobody, asks, and wakes its leader.
    c.pass(5 * ELECTION);
    assert_eq!(silent(&mut c), [1, 2, 3]);
    assert!(c.node(2).batches.is_empty(), "its commit index was durable already");
}

#[test]
fn an_answer_about_silence_that_nobody_asked_for_is_counted_and_dropped() {
    let mut c = silent_group(&[1, 2, 3]);
    let term = c.core(2).term().0;
    for n in 1..=2 {
        let before = c.core(n).dropped();
        c.give(message(3, n, term, Body::QuiesceResponse { round: 77, agreed: true }));
        c.give(message(3, n, term, Body::QuiesceResponse { round: 77, agreed: false }));
        assert_eq!((c.core(n).dropped() - before, c.core(n).is_quiet()), (2, true), "{n}");
    }
}

/// As many as are said, at a leader without a quorum and at a follower; the next one is told to ask again.
#[test]
fn open_reads_are_counted_and_bounded() {
    const READS_MAX: u64 = 64 * 1024;
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    let now = c.now;
    for n in [1, 2] {
        for context in 1..=READS_MAX + 3 {
            c.core(n).read_index(now, context);
        }
        assert_eq!(c.core(n).open_reads() as u64, READS_MAX, "at {n}");
        c.end_round(n);
        c.net.clear();
        let refused: Vec<u64> = c.node(n).reads.drain(..).map(|r| (r.context, r.index).0).collect();
        assert_eq!(refused, [READS_MAX + 1, READS_MAX + 2, READS_MAX + 3], "at {n}");
    }
}

#[test]
fn a_core_that_has_nothing_to_say_says_so() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    for n in 1..=3 {
        assert!(!c.core(n).has_output(), "{n}");
    }
    c.propose(1, &["b"]).unwrap();
    assert!(c.core(1).has_output());
}

/// The slower of two followers answers when the faster one's answer has committed, and told, all that there is.
#[test]
fn an_acknowledgement_after_which_nothing_is_due_asks_for_no_visit() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.propose(1, &["a"]).unwrap();
    c.end_round(1);
    for (n, commits) in [(2, true), (3, false)] {
        let now = c.now;
        c.core(1).step(now, message(n, 1, 1, Body::AppendAccepted { matched: Index(2) })).unwrap();
        assert_eq!(c.core(1).has_output(), commits, "{n}");
        c.end_round(1);
    }
}

/// It could do nothing with it: it takes no more of the index than what it has of the leader's log.
#[test]
fn a_commit_index_is_told_to_nobody_who_was_not_sent_more() {
    let mut c = Cluster::with(&[1, 2, 3, 4, 5], |config| config.round_bytes_max = 1);
    c.elect(1);
    c.propose(1, &["a"]).unwrap();
    let round = |c: &mut Cluster| {
        let (now, mut out) = (c.now, Output::default());
        c.core(1).take_output(now, &mut out);
        out.token.into_iter().for_each(|token| c.core(1).persisted(token).unwrap());
        out.early
    };
    // One member in each round.
    let sent: Vec<u64> = [round(&mut c), round(&mut c)].iter().flatten().map(|m| m.to.0).collect();
    assert_eq!(sent.len(), 2);
    for n in &sent {
        let now = c.now;
        c.core(1).step(now, message(*n, 1, 1, Body::AppendAccepted { matched: Index(2) })).unwrap();
    }
    assert_eq!(c.core(1).commit(), Index(2));
    let told = round(&mut c).into_iter().filter(|m| matches!(m.body, Body::Commit { .. })).map(|m| m.to.0);
    assert!(told.eq([2, 3, 4, 5].into_iter().filter(|n| sent.contains(n))));
}

/// Groups of one host with equal settings have them in memory once.
#[test]
fn what_is_equal_is_shared_and_nothing_else() {
    let mut c = Cluster::with(&[1, 2, 3], |_| {});
    let other =
        Cluster::with(&[1, 2, 3, 4], |config| config.heartbeat_interval_nanos += 1).nodes.remove(&1).unwrap().core;
    let (of_2, config_of_2) = (c.core(2).shared_membership().clone(), c.core(2).shared_config().clone());
    let core = c.core(1);
    core.share(other.shared_membership(), other.shared_config());
    assert_ne!((core.shared_membership(), core.shared_config()), (other.shared_membership(), other.shared_config()));
    assert_eq!((core.membership(), core.shared_config()), (&*of_2, &config_of_2));
    core.share(&of_2, &config_of_2);
    assert!(Arc::ptr_eq(core.shared_membership(), &of_2) && Arc::ptr_eq(core.shared_config(), &config_of_2));
}

/// A heartbeat's answer says that the member is there, and not that it has what was sent: that counts as under way.
#[test]
fn a_full_window_stays_full_while_only_heartbeats_are_answered() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.inflight_appends_max = 2);
    c.elect(1);
    c.lost = |m| m.to == ReplicaId(3) && matches!(m.body, Body::Append { .. });
    for text in ["a", "b", "c", "d", "e"] {
        c.write(1, &[text]);
        c.pass(HEARTBEAT);
        assert!(c.core(1).progress(id(3)).unwrap().inflight() <= 2, "after {text}");
    }
    c.lost = |_| false;
    c.pass(3 * HEARTBEAT);
    assert_eq!(c.node(3).payloads().len(), 5);
}

#[test]
fn leadership_is_left_to_a_voter_and_to_nobody_else() {
    let mut c =
        Cluster::with(&[1, 2, 3], |config| (config.see_off_removed, config.step_down_on_removal) = (true, true));
    c.elect(1);
    c.join(4, |_| {});
    c.change_through(1, ConfigChange::add_learner(id(4), Member::default()));
    c.write(1, &["a"]);
    c.change(1, ConfigChange::remove(id(1))).unwrap();
    let mut told = Vec::new();
    c.end_round(1);
    // The one that does not vote is the first to have the whole log.
    let learners = |m: &Message| m.from == id(4) || m.to == id(4);
    while !c.net.is_empty() {
        let at = c.net.iter().position(learners).unwrap_or(0);
        let m = c.net.remove(at).unwrap();
        told.extend((m.body == Body::TimeoutNow).then_some(m.to));
        c.give(m);
    }
    assert!(told == [id(2)] || told == [id(3)], "{told:?}");
}

/// Witnesses that are a majority are refused where members change, and a membership may be older than that.
#[test]
fn a_leader_whose_disk_hangs_stays_with_witnesses_that_are_a_majority() {
    let mut c = Cluster::new(&[]);
    let mut membership = voters(&[1, 2, 3]);
    membership.witnesses.extend([id(2), id(3)]);
    for n in [1, 2, 3] {
        let config = CoreConfig { check_quorum: true, disk_patience_nanos: 2 * ELECTION, ..config(n) };
        c.add(config, Disk { membership: membership.clone(), ..Disk::default() });
    }
    c.elect(1);
    c.node(1).slow_disk = true;
    c.propose(1, &["a"]).unwrap();
    c.settle();
    c.pass(6 * ELECTION);
    assert_eq!(c.leaders(), [1]);
}

#[test]
fn whatever_number_a_group_is_spread_by_its_voters_take_turns() {
    for spread in [0, 1, 2, u64::MAX - 1, u64::MAX] {
        let mut c = Cluster::with(&[1, 2, 3], |config| (config.pre_vote, config.check_quorum) = (true, true));
        let mut deadlines = Vec::new();
        for n in 1..=3 {
            c.core(n).start_early(spread);
            deadlines.push((c.core(n).deadline(), n));
        }
        deadlines.sort_unstable();
        let turns: Vec<u64> = deadlines.iter().map(|d| (d.1 - 1 + spread % 3) % 3).collect();
        assert_eq!(turns, [0, 1, 2], "by {spread}");
    }
}

/// Turns are half an election timeout apart, chance takes half of the way to the next, and who comes after the fourth comes
/// with it.
#[test]
fn turns_to_start_early_are_apart_and_their_beginnings_spread() {
    let apart = ELECTION / 2;
    let ids = [1, 2, 3, 4, 5, 6];
    let mut waits = std::collections::BTreeSet::new();
    for spread in [0, 4, u64::MAX - 3] {
        let mut c = Cluster::with(&ids, |config| (config.pre_vote, config.check_quorum) = (true, true));
        for n in ids {
            c.core(n).start_early(spread);
            let wait = c.core(n).deadline().nanos_since(c.now);
            let turn = ((u128::from(n - 1) + u128::from(spread)) % 6).min(3) as u64;
            assert!((turn * apart..turn * apart + apart / 2).contains(&wait), "{n} at turn {turn} waits {wait}");
            waits.insert(wait % apart);
        }
    }
    assert_eq!(waits.len(), ids.len(), "{waits:?}");
}

#[test]
fn nobody_starts_early_who_could_disturb_a_leader() {
    for (pre_vote, check_quorum) in [(true, false), (false, true), (false, false)] {
        let mut c = Cluster::with(&[1, 2, 3], |c| (c.pre_vote, c.check_quorum) = (pre_vote, check_quorum));
        let before = c.core(1).deadline();
        c.core(1).start_early(0);
        assert_eq!(c.core(1).deadline(), before, "{pre_vote} {check_quorum}");
    }
}
