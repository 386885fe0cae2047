//! Messages that make no sense are dropped and counted; contradictions come back as violations; nothing panics.

use crate::cluster::*;
use longboat_raft::*;
use proptest::prelude::*;

/// Follower 2 of leader 1 in term 2, with entries 1..=3 of term 1, the first two committed.
fn follower() -> Cluster {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 2, LogPos::ZERO, 2, &[run(1, 1, &["a", "b", "c"])]));
    c.net.clear();
    c
}

fn violation(message: Message) -> Option<Violation> {
    let mut c = follower();
    c.give(message);
    c.node(2).violation.take()
}

#[test]
fn a_heartbeat_that_commits_past_the_log_is_a_violation() {
    let beat = Body::Heartbeat { commit: Index(9), read_round: 0 };
    let expected = Violation::CommitPastLog { from: id(1), commit: Index(9), last: Index(3) };
    assert_eq!(violation(message(1, 2, 2, beat)), Some(expected));
}

#[test]
fn two_leaders_of_one_term_are_a_violation() {
    let expected = Violation::TwoLeaders { first: id(1), second: id(3), term: Term(2) };
    assert_eq!(violation(append(3, 2, 2, pos(1, 3), 0, &[])), Some(expected));
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(2);
    c.give(append(3, 2, 1, LogPos::ZERO, 0, &[]));
    let expected = Violation::TwoLeaders { first: id(2), second: id(3), term: Term(1) };
    assert_eq!(c.node(2).violation, Some(expected));
}

#[test]
fn a_leader_that_rewrites_what_it_sent_is_a_violation() {
    let expected = Violation::LeaderRewroteLog { from: id(1), index: Index(3), term: Term(2) };
    assert_eq!(violation(append(1, 2, 2, pos(1, 2), 0, &[run(2, 3, &["x"])])), Some(expected));
}

#[test]
fn a_snapshot_of_another_history_is_a_violation() {
    let meta = SnapshotMeta { pos: pos(2, 2), membership: voters(&[1, 2, 3]) };
    let expected = Violation::Snapshot { snapshot: pos(2, 2), term: Term(1) };
    assert_eq!(violation(message(1, 2, 2, Body::Snapshot(Box::new(meta)))), Some(expected));
}

#[test]
fn a_change_that_cannot_be_read_is_a_violation() {
    let mut chunk = RunBuilder::new();
    chunk.push(EntryKind::Config, 0, &[0xff, 0xff]);
    let run = chunk.seal(Term(2), Index(4), Origin::default());
    assert_eq!(violation(append(1, 2, 2, pos(1, 3), 0, &[run])), Some(Violation::ConfigEntry { index: Index(4) }));
}

/// Committed entries are never overwritten, wherever the append that would do it starts.
#[test]
fn overwriting_a_committed_entry_is_refused() {
    let mut c = follower();
    c.give(append(3, 2, 3, pos(1, 1), 2, &[run(3, 2, &["x"])]));
    assert_eq!(c.net, [message(2, 3, 3, Body::AppendAccepted { matched: Index(2) })]);
    assert_eq!(c.core(2).term_at(Index(2)), Some(Term(1)));
}

#[test]
fn what_makes_no_sense_is_dropped_and_counted() {
    let gap = [run(2, 4, &["x"]), run(2, 6, &["y"])];
    let falling = [run(2, 4, &["x"]), run(1, 5, &["y"])];
    let nonsense = [
        ("for somebody else", message(1, 3, 2, Body::TimeoutNow)),
        ("from nobody", message(0, 2, 2, Body::TimeoutNow)),
        ("from itself", message(2, 2, 2, Body::Commit { commit: Index(3) })),
        ("of term zero", append(1, 2, 0, pos(1, 3), 0, &[])),
        ("of a term where none belongs", message(1, 2, 2, Body::ReadIndex { context: 1 })),
        ("of an earlier term", message(1, 2, 1, Body::Commit { commit: Index(3) })),
        ("of a term that cannot be counted on", append(1, 2, u64::MAX, pos(1, 3), 0, &[])),
        ("at an index that cannot be counted on", append(1, 2, 2, pos(1, u64::MAX), 0, &[])),
        ("with a gap before its entries", append(1, 2, 2, pos(1, 3), 0, &[run(2, 5, &["x"])])),
        ("with a gap among its entries", append(1, 2, 2, pos(1, 3), 0, &gap)),
        ("with falling terms", append(1, 2, 2, pos(1, 3), 0, &falling)),
        ("with entries of a later term", append(1, 2, 2, pos(1, 3), 0, &[run(3, 4, &["x"])])),
        ("with entries of term zero", append(1, 2, 2, pos(0, 0), 0, &[run(0, 1, &["x"])])),
        ("an acknowledgement to who does not lead", message(1, 2, 2, Body::AppendAccepted { matched: Index(1) })),
        ("a vote that was not asked for", message(1, 2, 2, Body::VoteResponse { pre: false, granted: true })),
        ("an answer to no read", message(1, 2, 0, Body::ReadIndexResponse { context: 1, index: None })),
    ];
    for (what, message) in nonsense {
        let mut c = follower();
        let before = c.core(2).clone();
        let now = c.now;
        // Some of it is for another addressee, so it is given to the core directly.
        c.core(2).step(now, message).unwrap();
        assert_eq!(c.core(2).dropped(), before.dropped() + 1, "{what}");
        assert_eq!((c.core(2).hard_state(), c.core(2).last()), (before.hard_state(), before.last()), "{what}");
        c.end_round(2);
        assert!(c.net.is_empty(), "{what}: {:?}", c.net);
    }
}

/// Gives the messages to node `n` and expects that each is dropped, counted, answered by nothing and without effect.
fn are_dropped(c: &mut Cluster, n: u64, messages: Vec<Message>) {
    c.end_round(n);
    c.net.clear();
    for m in messages {
        let (now, before) = (c.now, c.core(n).clone());
        c.core(n).step(now, m.clone()).unwrap();
        let core = c.core(n);
        assert_eq!(core.dropped(), before.dropped() + 1, "{m:?}");
        let state =
            |core: &Core| (core.hard_state(), core.last(), core.role(), core.leader(), core.membership().clone());
        assert_eq!(state(core), state(&before), "{m:?}");
        for peer in [1, 2, 3] {
            assert_eq!(core.progress(id(peer)), before.progress(id(peer)), "{m:?}");
        }
        c.end_round(n);
        assert!(c.net.is_empty(), "{m:?}: {:?}", c.net);
    }
}

/// Leader 1 of term 1, with two entries that all have.
fn leader() -> Cluster {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a"]);
    c
}

#[test]
fn answers_of_unknown_replicas_are_dropped() {
    let mut c = leader();
    let bodies = [
        Body::AppendAccepted { matched: Index(2) },
        Body::AppendRejected { rejected: Index(2), hint: LogPos::ZERO },
        Body::AppendPaused { matched: Index(2) },
        Body::HeartbeatResponse { read_round: 0, overloaded: true },
    ];
    are_dropped(&mut c, 1, bodies.into_iter().map(|body| message(9, 1, 1, body)).collect());
}

#[test]
fn requests_of_unknown_replicas_are_dropped() {
    let mut c = leader();
    let bodies = [Body::ReadIndex { context: 1 }, Body::Forward(run(1, 0, &["x"]))];
    are_dropped(&mut c, 1, bodies.into_iter().map(|body| message(9, 1, 0, body)).collect());
    assert_eq!(c.core(1).last().index, Index(2));
}

#[test]
fn what_a_leader_of_a_lower_term_says_is_dropped() {
    let mut c = follower();
    let meta = SnapshotMeta { pos: pos(1, 9), membership: voters(&[1, 2, 3]) };
    let bodies = [
        Body::Append { prev: pos(1, 3), commit: Index(3), runs: [run(1, 4, &["x"])].into_iter().collect() },
        Body::Heartbeat { commit: Index(3), read_round: 1 },
        Body::Commit { commit: Index(3) },
        Body::Snapshot(Box::new(meta)),
        Body::TimeoutNow,
    ];
    are_dropped(&mut c, 2, bodies.into_iter().map(|body| message(1, 2, 1, body)).collect());
}

#[test]
fn answers_to_a_lower_term_are_dropped() {
    let mut c = leader();
    c.elect(2);
    c.write(2, &["b"]);
    c.elect(1);
    let bodies = [
        Body::AppendAccepted { matched: Index(3) },
        Body::AppendRejected { rejected: Index(3), hint: LogPos::ZERO },
        Body::VoteResponse { pre: false, granted: true },
        Body::HeartbeatResponse { read_round: 0, overloaded: false },
    ];
    are_dropped(&mut c, 1, bodies.into_iter().map(|body| message(2, 1, 1, body)).collect());
}

#[test]
fn an_acknowledgement_after_the_last_entry_is_dropped() {
    let mut c = leader();
    let messages = [3, 4, 1 << 40].map(|i| message(2, 1, 1, Body::AppendAccepted { matched: Index(i) }));
    are_dropped(&mut c, 1, messages.to_vec());
}

/// The log of a leader begins after 5; an answer that speaks of what is before moves nothing.
#[test]
fn answers_about_entries_before_the_first_change_nothing() {
    let mut c = leader();
    for i in 0..6 {
        c.write(1, &[&format!("{i}")]);
    }
    c.core(1).compact(Index(5));
    let before = c.core(1).progress(id(2)).unwrap().clone();
    for index in 0..6 {
        c.give(message(2, 1, 1, Body::AppendAccepted { matched: Index(index) }));
        c.give(message(2, 1, 1, Body::AppendRejected { rejected: Index(index), hint: LogPos::ZERO }));
        c.give(message(2, 1, 1, Body::AppendRejected { rejected: Index(index), hint: pos(1, index) }));
    }
    let after = c.core(1).progress(id(2)).unwrap();
    assert_eq!((after.matched(), after.next(), after.state()), (before.matched(), before.next(), before.state()));
}

#[test]
fn an_append_before_the_first_entry_is_answered_with_what_is_committed() {
    let mut c = follower();
    c.core(2).applied(Index(2));
    c.core(2).compact(Index(2));
    for index in [0, 1] {
        let term = u64::from(index > 0);
        c.give(append(1, 2, 2, pos(term, index), 2, &[run(1, index + 1, &["a", "b"])]));
        assert_eq!(c.net.pop_front(), Some(message(2, 1, 2, Body::AppendAccepted { matched: Index(2) })));
    }
    assert_eq!(c.core(2).last(), pos(1, 3));
}

#[test]
fn an_append_after_the_last_entry_is_refused_with_where_the_log_ends() {
    let mut c = follower();
    c.give(append(1, 2, 2, pos(2, 9), 9, &[run(2, 10, &["x"])]));
    let refused = Body::AppendRejected { rejected: Index(9), hint: pos(1, 3) };
    assert_eq!(c.net.pop_front(), Some(message(2, 1, 2, refused)));
    assert_eq!((c.core(2).last(), c.core(2).commit()), (pos(1, 3), Index(2)));
}

#[test]
fn entries_out_of_order_are_dropped() {
    let orders: [&[Run]; 4] = [
        &[run(2, 5, &["y"]), run(2, 4, &["x"])],
        &[run(2, 4, &["x"]), run(2, 4, &["x"])],
        &[run(2, 4, &["x", "y"]), run(2, 5, &["z"])],
        &[run(2, 4, &["x"]), run(1, 5, &["y"])],
    ];
    let messages = orders.iter().map(|runs| append(1, 2, 2, pos(1, 3), 3, runs)).collect();
    are_dropped(&mut follower(), 2, messages);
}

#[test]
fn a_term_of_zero_is_dropped_where_one_is_claimed_and_in_entries() {
    let meta = |term| SnapshotMeta { pos: pos(term, 9), membership: voters(&[1, 2, 3]) };
    let messages = vec![
        append(1, 2, 0, pos(1, 3), 3, &[run(2, 4, &["x"])]),
        append(1, 2, 2, pos(0, 0), 3, &[run(0, 1, &["x"])]),
        message(1, 2, 0, Body::Heartbeat { commit: Index(3), read_round: 0 }),
        message(3, 2, 0, Body::RequestVote { pre: false, transfer: false, last: pos(5, 5) }),
        message(1, 2, 0, Body::TimeoutNow),
        message(1, 2, 0, Body::Snapshot(Box::new(meta(1)))),
        message(1, 2, 2, Body::Snapshot(Box::new(meta(0)))),
    ];
    are_dropped(&mut follower(), 2, messages);
}

#[test]
fn a_witness_takes_no_payload() {
    let mut c = Cluster::new(&[]);
    let membership = Membership { witnesses: [id(2)].into(), ..voters(&[1, 2, 3]) };
    c.add(config(2), Disk { membership: membership.clone(), ..Disk::default() });
    let full = run(2, 1, &["payload"]);
    let meta = SnapshotMeta { pos: pos(1, 9), membership };
    let messages = vec![
        append(1, 2, 2, LogPos::ZERO, 0, std::slice::from_ref(&full)),
        append(1, 2, 2, LogPos::ZERO, 0, &[full.strip(), run(2, 2, &["payload"])]),
        message(1, 2, 2, Body::Snapshot(Box::new(meta))),
    ];
    c.give(message(1, 2, 2, Body::Heartbeat { commit: Index(0), read_round: 0 }));
    are_dropped(&mut c, 2, messages);
    c.give(append(1, 2, 2, LogPos::ZERO, 0, &[full.strip()]));
    assert_eq!(c.core(2).last(), pos(2, 1));
}

#[test]
fn who_has_a_state_machine_takes_no_run_without_its_payloads() {
    let stripped = run(2, 4, &["payload"]).strip();
    are_dropped(&mut follower(), 2, vec![append(1, 2, 2, pos(1, 3), 3, &[stripped])]);
}

/// Found by the fuzzer: a leader without voters takes everything for committed.
#[cfg_attr(not(feature = "plant"), test)]
pub fn a_snapshot_whose_membership_contradicts_itself_is_dropped() {
    let fine = voters(&[1, 2, 3]);
    let set = |list: &[u64]| list.iter().map(|n| id(*n)).collect::<std::collections::BTreeSet<_>>();
    let nonsense = [
        ("no voters", Membership { voters: set(&[]), outgoing: set(&[1, 2]), ..fine.clone() }),
        ("replica zero", Membership { voters: set(&[0, 1, 2]), ..fine.clone() }),
        ("two roles", Membership { learners: set(&[3]), ..fine.clone() }),
        ("two roles in a joint half", Membership { outgoing: set(&[4]), learners: set(&[4]), ..fine.clone() }),
        (
            "a voter that becomes non-voting",
            Membership { outgoing: set(&[3]), learners_next: set(&[3]), ..fine.clone() },
        ),
        ("who becomes non-voting was nobody", Membership { learners_next: set(&[4]), ..fine.clone() }),
        ("a removed voter", Membership { removed: set(&[2]), ..fine.clone() }),
        ("a witness that does not vote", Membership { witnesses: set(&[7]), ..fine.clone() }),
    ];
    for (what, membership) in nonsense {
        let mut c = follower();
        let before = (c.core(2).last(), c.core(2).membership().clone(), c.core(2).dropped());
        let meta = SnapshotMeta { pos: pos(2, 20), membership };
        c.give(message(1, 2, 2, Body::Snapshot(Box::new(meta))));
        let core = c.core(2);
        assert_eq!(
            (core.last(), core.membership().clone(), core.dropped()),
            (before.0, before.1, before.2 + 1),
            "{what}"
        );
    }
    assert!(fine.is_consistent());
}

/// Each number that a message carries, alone too large to count on from there.
#[test]
fn numbers_that_cannot_be_counted_on_are_dropped_wherever_they_stand() {
    const HUGE: u64 = (1 << 62) + 1;
    let voters = || voters(&[1, 2, 3]);
    let bodies = [
        Body::Append { prev: pos(HUGE, 3), commit: Index(3), runs: [].into_iter().collect() },
        Body::Append { prev: pos(1, HUGE), commit: Index(3), runs: [].into_iter().collect() },
        Body::Append { prev: pos(1, 3), commit: Index(HUGE), runs: [].into_iter().collect() },
        Body::Append { prev: pos(1, 3), commit: Index(3), runs: [run(2, HUGE, &["x"])].into_iter().collect() },
        Body::Heartbeat { commit: Index(HUGE), read_round: 0 },
        Body::Commit { commit: Index(HUGE) },
        Body::AppendAccepted { matched: Index(HUGE) },
        Body::AppendRejected { rejected: Index(HUGE), hint: pos(1, 1) },
        Body::AppendRejected { rejected: Index(1), hint: pos(1, HUGE) },
        Body::AppendRejected { rejected: Index(1), hint: pos(HUGE, 1) },
        Body::RequestVote { pre: false, transfer: false, last: pos(HUGE, 9) },
        Body::RequestVote { pre: false, transfer: false, last: pos(9, HUGE) },
        Body::Snapshot(Box::new(SnapshotMeta { pos: pos(2, HUGE), membership: voters() })),
        Body::Snapshot(Box::new(SnapshotMeta { pos: pos(HUGE, 9), membership: voters() })),
    ];
    are_dropped(&mut follower(), 2, bodies.iter().map(|body| message(1, 2, 2, body.clone())).collect());
    // A later term would be entered, were the message not dropped before.
    are_dropped(&mut follower(), 2, bodies.into_iter().map(|body| message(1, 2, 3, body)).collect());
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..8, 1 => Just(u64::MAX), 1 => Just(1 << 62)]
}

fn any_pos() -> impl Strategy<Value = LogPos> {
    (any_number(), any_number()).prop_map(|(t, i)| pos(t, i))
}

fn any_run() -> impl Strategy<Value = Run> {
    (0u64..6, 0u64..8, 1usize..4, 0u8..12).prop_map(|(term, first, count, kind)| {
        let mut chunk = RunBuilder::new();
        for i in 0..count {
            match kind {
                0 => chunk.push(EntryKind::Config, 0, &ConfigChange::remove(id(3)).encode()),
                1 => chunk.push(EntryKind::Config, 0, b"\xff"),
                2 => chunk.push(EntryKind::Config, 0, b""),
                _ => chunk.push(EntryKind::Command, i as u64, b"x"),
            }
        }
        chunk.seal(Term(term), Index(first), Origin::default())
    })
}

fn any_body() -> impl Strategy<Value = Body> {
    let index = || any_number().prop_map(Index);
    let appends = (any_pos(), index(), prop::collection::vec(any_run(), 0..3));
    prop_oneof![
        4 => appends.prop_map(|(prev, commit, runs)| Body::Append { prev, commit, runs: runs.into() }),
        3 => index().prop_map(|matched| Body::AppendAccepted { matched }),
        1 => (index(), any_pos()).prop_map(|(rejected, hint)| Body::AppendRejected { rejected, hint }),
        1 => (index(), any_number()).prop_map(|(commit, read_round)| Body::Heartbeat { commit, read_round }),
        1 => any_number().prop_map(|n| Body::HeartbeatResponse { read_round: n, overloaded: n % 7 == 0 }),
        1 => index().prop_map(|commit| Body::Commit { commit }),
        2 => (any::<bool>(), any::<bool>(), any_pos())
            .prop_map(|(pre, transfer, last)| Body::RequestVote { pre, transfer, last }),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(pre, granted)| Body::VoteResponse { pre, granted }),
        1 => (any_pos(), prop::collection::btree_set(1u64..5, 0..4)).prop_map(|(pos, ids)| {
            let ids: Vec<u64> = ids.into_iter().collect();
            Body::Snapshot(Box::new(SnapshotMeta { pos, membership: voters(&ids) }))
        }),
        1 => any_number().prop_map(|context| Body::ReadIndex { context }),
        1 => any_number().prop_map(|context| Body::ReadIndexResponse { context, index: None }),
        1 => any_run().prop_map(Body::Forward),
        1 => (any_number(), any_number(), any_number()).prop_map(|(term, start, commands)| Body::CloseForwards {
            term: Term(term),
            forwards: Forwards { start, commands, changes: 0 },
        }),
        1 => Just(Body::TimeoutNow),
    ]
}

#[derive(Clone, Debug)]
enum Input {
    Message(Message),
    Pass(u64),
    Propose,
    Change(u64),
    Read(u64),
    Complete,
    Round,
    Trim,
}

fn any_input() -> impl Strategy<Value = Input> {
    let messages = (0u64..5, prop_oneof![9 => Just(1u64), 1 => Just(2)], any_number(), any_body());
    prop_oneof![
        12 => messages.prop_map(|(from, to, term, body)| Input::Message(message(from, to, term, body))),
        2 => (0u64..300).prop_map(Input::Pass),
        1 => Just(Input::Propose),
        1 => (1u64..6).prop_map(Input::Change),
        1 => (0u64..9).prop_map(Input::Read),
        2 => Just(Input::Complete),
        3 => Just(Input::Round),
        1 => Just(Input::Trim),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever arrives, in whatever order: a violation at worst, and what is promised stays promised.
    #[test]
    fn no_sequence_of_inputs_panics(
        inputs in prop::collection::vec(any_input(), 1..60),
        pre_vote: bool,
        check_quorum: bool,
    ) {
        let mut c = Cluster::with(&[1, 2, 3], |config| {
            (config.pre_vote, config.check_quorum) = (pre_vote, check_quorum);
            config.log_cache_bytes_max = 0;
        });
        c.node(1).slow_disk = true;
        for input in inputs {
            let before = c.core(1).hard_state();
            match input {
                Input::Message(m) => {
                    let now = c.now;
                    if c.core(1).step(now, m).is_err() {
                        break;
                    }
                }
                Input::Pass(millis) => {
                    c.now = c.now.plus_millis(millis);
                    let now = c.now;
                    c.core(1).advance(now);
                }
                Input::Propose => drop(c.propose(1, &["p"])),
                Input::Change(n) => drop(c.change(1, ConfigChange::remove(id(n)))),
                Input::Read(context) => {
                    let now = c.now;
                    c.core(1).read_index(now, context);
                }
                Input::Complete => drop(c.complete(1)),
                Input::Round => c.end_round(1),
                Input::Trim => c.core(1).trim(),
            }
            let after = c.core(1).hard_state();
            prop_assert!(after.term >= before.term && after.commit >= before.commit);
            prop_assert!(after.term > before.term || before.vote.is_zero() || after.vote == before.vote);
            let core = c.core(1);
            prop_assert!(core.handed() <= core.commit() && core.commit() <= core.last().index);
        }
    }
}
