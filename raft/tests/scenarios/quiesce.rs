//! Falling silent and waking: nobody is silent while somebody else believes something that nothing would ever correct.

use crate::cluster::*;
use crate::silence::*;
use longboat_raft::*;

const NEVER: Time = Time(u64::MAX);

#[test]
fn an_idle_group_falls_silent_and_wants_nothing_any_more() {
    let mut c = silent_group(&[1, 2, 3]);
    for n in 1..=3 {
        assert_eq!(c.core(n).deadline(), NEVER);
        assert_eq!(c.core(n).leader(), Some(id(1)));
    }
    let terms: Vec<Term> = (1..=3).map(|n| c.core(n).term()).collect();
    c.now = c.now.plus_nanos(1000 * ELECTION);
    let now = c.now;
    (1..=3).for_each(|n| c.core(n).advance(now));
    (1..=3).for_each(|n| c.end_round(n));
    assert!(c.net.is_empty(), "silence is without messages: {:?}", c.net);
    assert_eq!(terms, (1..=3).map(|n| c.core(n).term()).collect::<Vec<_>>());
}

#[test]
fn a_group_that_is_told_never_to_stays_awake() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.pass(100 * ELECTION);
    assert_eq!(silent(&mut c), []);
}

#[test]
fn a_follower_that_is_told_never_to_keeps_its_group_awake() {
    let mut c =
        Cluster::with(&[1, 2, 3], |config| config.quiesce_after_nanos = if config.replica.0 < 3 { IDLE } else { 0 });
    c.elect(1);
    c.pass(10 * ELECTION);
    assert_eq!(silent(&mut c), []);
    assert_eq!(c.leaders(), [1]);
}

#[test]
fn a_group_that_is_used_is_not_idle() {
    let mut c = idle_group(&[1, 2, 3]);
    for _ in 0..30 {
        c.write(1, &["b"]);
        c.pass(IDLE - HEARTBEAT);
        assert_eq!(silent(&mut c), []);
    }
    for context in 1..30 {
        let now = c.now;
        c.core(2).read_index(now, context);
        c.settle();
        c.pass(IDLE - HEARTBEAT);
        assert_eq!(silent(&mut c), [], "reads are use");
    }
}

#[test]
fn a_replica_alone_falls_silent_too() {
    let mut c = silent_group(&[1]);
    c.write(1, &["b"]);
    assert_eq!(c.node(1).payloads(), ["a", "b"]);
    assert_eq!(silent(&mut c), []);
}

#[test]
fn a_proposal_wakes_the_group_and_is_committed() {
    for at in 1..=3 {
        let mut c = silent_group(&[1, 2, 3]);
        c.write(at, &["b"]);
        assert_eq!(silent(&mut c), [], "all are awake");
        for n in 1..=3 {
            assert_eq!(c.node(n).payloads(), ["a", "b"]);
            assert!(c.core(n).deadline() < NEVER);
        }
        c.pass(3 * IDLE);
        assert_eq!(silent(&mut c), [1, 2, 3], "and silent again");
        assert_eq!(c.core(2).term(), Term(1));
    }
}

#[test]
fn a_read_wakes_the_group_and_is_answered() {
    for at in 1..=3 {
        let mut c = silent_group(&[1, 2, 3]);
        let now = c.now;
        c.core(at).read_index(now, 9);
        c.settle();
        assert_eq!(c.node(at).reads, [ReadReady { context: 9, index: Some(Index(2)) }]);
        assert_eq!(silent(&mut c), []);
    }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn one_of_two_sides_wakes_from_quiesce_and_the_other_does_not() {
    // The leader wakes, and its first heartbeats are lost.
    let mut c = silent_group(&[1, 2, 3]);
    let now = c.now;
    c.core(1).wake(now);
    c.end_round(1);
    c.net.clear();
    assert_eq!(silent(&mut c), [2, 3]);
    c.pass(2 * HEARTBEAT);
    assert_eq!(silent(&mut c), []);
    c.pass(10 * IDLE);
    assert_eq!(silent(&mut c), [1, 2, 3]);
    // A follower wakes, and what it wants from the leader is lost.
    for lost in 0..3 {
        let mut c = silent_group(&[1, 2, 3]);
        c.propose(2, &["b"]).unwrap();
        c.end_round(2);
        c.net.clear();
        assert_eq!(silent(&mut c), [1, 3]);
        for _ in 0..lost {
            c.now = c.now.plus_nanos(2 * ELECTION);
            let now = c.now;
            c.core(2).advance(now);
            c.end_round(2);
            c.net.clear();
        }
        c.pass(2 * ELECTION);
        assert_eq!((c.leaders(), c.core(1).term()), (vec![1], Term(1)), "who is not heard asks, and disturbs nobody");
        c.write(2, &["c"]);
        c.pass(5 * IDLE);
        assert_eq!(silent(&mut c), [1, 2, 3]);
    }
}

#[test]
fn a_lost_question_is_asked_again() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    c.net.retain(|m| m.to != id(3));
    c.settle();
    assert_eq!(silent(&mut c), [2]);
    c.pass(ELECTION);
    c.pass(4 * IDLE);
    assert_eq!(silent(&mut c), [1, 2, 3]);
    assert_eq!(c.core(3).term(), Term(1));
}

#[test]
fn a_lost_answer_leaves_nobody_behind() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    let questions: Vec<Message> = c.net.drain(..).collect();
    questions.into_iter().for_each(|m| c.give(m));
    c.net.retain(|m| m.from != id(3));
    c.settle();
    assert_eq!(silent(&mut c), [2, 3], "the leader waits for 3");
    c.now = c.now.plus_nanos(ELECTION / 2);
    let now = c.now;
    c.core(1).advance(now);
    c.settle();
    assert_eq!(silent(&mut c), [], "given up: its heartbeats woke them");
    c.pass(4 * IDLE);
    assert_eq!(silent(&mut c), [1, 2, 3]);
}

#[test]
fn a_late_question_silences_nobody_for_long() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    let late = question(&c, 3);
    c.settle();
    c.write(1, &["b"]);
    c.give(late);
    assert_eq!(silent(&mut c), [], "its log is another one by now");
    c.pass(5 * IDLE);
    assert_eq!(silent(&mut c), [1, 2, 3]);
}

#[test]
fn a_late_question_with_the_same_log_is_corrected_by_the_next_heartbeat() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    let late = question(&c, 3);
    c.settle();
    let now = c.now;
    c.core(1).wake(now);
    c.settle();
    c.give(late);
    assert_eq!(silent(&mut c), [3]);
    c.pass(HEARTBEAT);
    assert_eq!(silent(&mut c), []);
}

#[test]
fn an_answer_to_an_earlier_round_does_not_count() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    let early =
        Message { from: id(3), to: id(1), term: Term(1), body: Body::QuiesceResponse { round: 1, agreed: true } };
    c.net.clear();
    c.pass(ELECTION / 2);
    assert!(!c.core(1).is_falling_quiet(), "the round was given up");
    until_asked(&mut c);
    assert!(matches!(question(&c, 2).body, Body::Quiesce { round: 2.., .. }));
    c.net.retain(|m| m.to != id(3));
    c.settle();
    c.give(early);
    assert!(!c.core(1).is_quiet(), "3 has not agreed to this round");
}

#[test]
fn a_repeated_question_and_a_repeated_answer_wake_nobody() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    let asked = question(&c, 3);
    c.settle();
    assert_eq!(silent(&mut c), [1, 2, 3]);
    c.give(asked);
    c.settle();
    assert_eq!(silent(&mut c), [1, 2, 3]);
}

#[test]
fn a_follower_that_campaigns_while_its_disk_hangs_does_not_fall_silent() {
    a_follower_that_campaigns_takes_its_agreement_back();
}

#[test]
fn a_follower_that_campaigns_without_asking_does_not_fall_silent_either() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.quiesce_after_nanos = IDLE);
    c.elect(1);
    until_asked(&mut c);
    c.node(2).slow_disk = true;
    let asked = question(&c, 2);
    c.give(asked);
    c.campaign(2);
    c.complete_all(2);
    assert_eq!((c.core(2).role(), c.core(2).is_quiet()), (Role::Candidate, false));
}

#[test]
fn a_leader_that_is_deposed_while_it_asks_waits_for_its_successor() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    c.net.clear();
    c.give(message(2, 1, 7, Body::HeartbeatResponse { read_round: 0, overloaded: false }));
    assert_eq!((c.core(1).role(), c.core(1).is_falling_quiet()), (Role::Follower, false));
    assert!(c.core(1).deadline() >= c.now.plus_nanos(ELECTION));
}

#[test]
fn questions_are_counted_anew_in_a_new_term() {
    let mut c = idle_group(&[1, 2, 3]);
    let (last, commit) = (c.core(2).last(), c.core(2).commit());
    let asks = |from, term, round| message(from, 2, term, Body::Quiesce { round, last, commit });
    c.give(asks(1, 1, 5));
    c.give(asks(1, 1, 4));
    c.give(asks(3, 2, 1));
    let answers: Vec<Body> = c.net.drain(..).map(|m| m.body).collect();
    assert_eq!(answers, [5, 1].map(|round| Body::QuiesceResponse { round, agreed: true }));
}

#[test]
fn a_follower_that_differs_refuses_and_is_helped() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    let mut wrong = question(&c, 3);
    c.net.clear();
    let Body::Quiesce { commit, .. } = &mut wrong.body else { panic!("a question") };
    *commit = Index(1);
    c.give(wrong);
    assert_eq!(c.net.pop_back().map(|m| m.body), Some(Body::QuiesceResponse { round: 1, agreed: false }));
    assert_eq!(silent(&mut c), []);
}

#[test]
fn a_refusal_ends_the_round() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    c.net.clear();
    c.give(message(3, 1, 1, Body::QuiesceResponse { round: 1, agreed: false }));
    assert_eq!(c.flying(|m| matches!(m.body, Body::Heartbeat { .. })), 2);
    assert!(!c.core(1).is_falling_quiet());
}

#[test]
fn whatever_happens_while_it_asks_ends_the_round() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    let to_two = question(&c, 2);
    c.give(to_two);
    c.propose(1, &["b"]).unwrap();
    c.settle();
    assert_eq!(silent(&mut c), []);
    assert_eq!(c.node(2).payloads(), ["a", "b"]);
}

#[test]
fn a_leader_with_a_follower_behind_does_not_ask() {
    let mut c = idle_group(&[1, 2, 3]);
    c.isolate(3);
    c.write(1, &["b"]);
    c.pass(20 * IDLE);
    assert_eq!(silent(&mut c), []);
    c.heal();
    c.pass(20 * IDLE);
    assert_eq!(silent(&mut c), [1, 2, 3]);
}

#[test]
fn members_on_suspected_hosts_are_left_out_and_listed() {
    let mut c = idle_group(&[1, 2, 3]);
    c.isolate(3);
    c.write(1, &["b"]);
    let now = c.now;
    c.core(1).set_suspected(now, id(3), true);
    c.pass(5 * IDLE);
    assert!(c.core(1).is_quiet() && c.core(2).is_quiet());
    assert_eq!(c.core(1).lagging(), [id(3)]);
    // Back: the leader wakes and brings it up to date.
    c.heal();
    let now = c.now;
    c.core(1).set_suspected(now, id(3), false);
    assert!(!c.core(1).is_quiet());
    // What it lacks is not in memory any more.
    c.pass(3 * HEARTBEAT);
    c.serve_fetches(1);
    c.pass(10 * IDLE);
    assert_eq!(silent(&mut c), [1, 2, 3]);
    assert_eq!(c.node(3).payloads(), ["a", "b"]);
    assert!(c.core(1).lagging().is_empty());
}

#[test]
fn without_a_majority_nobody_falls_silent() {
    let mut c = idle_group(&[1, 2, 3]);
    let now = c.now;
    c.core(1).set_suspected(now, id(2), true);
    c.core(1).set_suspected(now, id(3), true);
    c.pass(10 * IDLE);
    assert_eq!(silent(&mut c), []);
}

#[test]
fn a_group_does_without_a_replica_that_has_stopped_until_it_is_heard_of() {
    let mut c = silent_group(&[1, 2, 3]);
    c.isolate(3);
    let now = c.now;
    c.core(1).replica_gone(now, id(3));
    assert!(!c.core(1).is_quiet() && c.core(1).is_gone(id(3)));
    c.pass(5 * IDLE);
    assert_eq!(silent(&mut c), [1, 2, 3]);
    assert_eq!(c.core(1).lagging(), [id(3)]);
    c.heal();
    c.restart(3);
    c.pass(3 * ELECTION);
    assert!(!c.core(1).is_gone(id(3)));
    c.pass(5 * IDLE);
    assert!(c.core(1).is_quiet() && c.core(1).lagging().is_empty());
}

#[test]
fn followers_of_a_leader_that_has_stopped_elect_another() {
    let mut c = silent_group(&[1, 2, 3]);
    c.isolate(1);
    let now = c.now;
    for n in [2, 3] {
        c.core(n).replica_gone(now, id(1));
        assert_eq!(c.core(n).leader(), None);
    }
    c.pass(3 * ELECTION);
    assert!(c.leaders().iter().any(|n| *n != 1));
}

#[test]
fn a_restarted_replica_is_awake_and_wakes_the_others() {
    for n in 1..=3 {
        let mut c = silent_group(&[1, 2, 3]);
        c.restart(n);
        assert!(!c.core(n).is_quiet() && c.core(n).deadline() < NEVER);
        c.pass(3 * ELECTION);
        assert_eq!(c.leaders().len(), 1);
        c.write(2, &["b"]);
        c.pass(5 * IDLE);
        assert_eq!(silent(&mut c), [1, 2, 3]);
        assert_eq!(c.node(3).payloads().last().map(String::as_str), Some("b"));
    }
}

#[test]
fn a_silent_group_that_loses_power_knows_what_is_committed() {
    let mut c = silent_group(&[1, 2, 3]);
    (1..=3).for_each(|n| c.restart(n));
    for n in 1..=3 {
        assert_eq!(c.core(n).commit(), Index(2));
    }
}

#[test]
fn learners_fall_silent_with_their_group() {
    let mut c = idle_group(&[1, 2, 3]);
    let tuned = CoreConfig { replica: id(4), seed: 4, ..c.configs[&1].clone() };
    c.add(tuned, Disk::default());
    c.auto_snapshots = true;
    c.change(1, ConfigChange::add_learner(id(4), Member { host: HostId(4), ..Member::default() })).unwrap();
    c.settle();
    c.pass(20 * IDLE);
    assert_eq!(silent(&mut c), [1, 2, 3, 4]);
    c.write(4, &["b"]);
    assert_eq!(c.node(4).payloads().last().map(String::as_str), Some("b"));
}

#[test]
fn a_question_of_an_earlier_term_is_answered_with_the_term() {
    let mut c = idle_group(&[1, 2, 3]);
    until_asked(&mut c);
    let late = question(&c, 3);
    c.net.clear();
    c.isolate(1);
    c.pass(6 * ELECTION);
    let term = c.core(3).term();
    assert!(term > Term(1));
    c.give(late);
    assert!(!c.core(3).is_quiet());
    assert!(c.net.iter().any(|m| m.to == id(1) && m.term == term));
}

#[test]
fn a_leader_of_a_joint_configuration_does_not_ask() {
    let mut c = idle_group(&[1, 2, 3]);
    let mut change = ConfigChange::remove(id(3));
    change.transition = Transition::JointExplicit;
    c.change(1, change).unwrap();
    c.settle();
    c.pass(10 * IDLE);
    assert_eq!(silent(&mut c), []);
    c.change(1, ConfigChange::leave_joint()).unwrap();
    c.settle();
    c.pass(10 * IDLE);
    assert!(c.core(1).is_quiet() && c.core(2).is_quiet());
}

#[test]
fn what_a_silent_replica_does_not_need_leaves_memory() {
    let mut c = silent_group(&[1, 2, 3]);
    assert!((1..=3).all(|n| c.core(n).cached_bytes() == 0));
}

#[test]
fn leadership_goes_to_the_preferred_replica_before_the_group_falls_silent() {
    let mut c = Cluster::with(&[1, 2, 3], |config| {
        config.quiesce_after_nanos = IDLE;
        config.preferred = Some(id(2));
    });
    c.elect(1);
    c.write(1, &["a"]);
    c.pass(20 * ELECTION);
    assert_eq!((c.leaders(), silent(&mut c)), (vec![2], vec![1, 2, 3]));
}

#[test]
fn a_learner_is_promoted_before_the_group_falls_silent() {
    let mut c = idle_group(&[1, 2, 3]);
    let tuned = CoreConfig { replica: id(4), seed: 4, ..c.configs[&1].clone() };
    c.add(tuned, Disk::default());
    c.auto_snapshots = true;
    let mut add = ConfigChange::add_learner(id(4), Member { host: HostId(4), ..Member::default() });
    add.changes[0].promotion = Promotion::WhenCaughtUp;
    c.change(1, add).unwrap();
    c.settle();
    c.pass(20 * ELECTION);
    assert_eq!(silent(&mut c), [1, 2, 3, 4]);
    assert!(c.core(1).membership().voters.contains(&id(4)));
}
