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
