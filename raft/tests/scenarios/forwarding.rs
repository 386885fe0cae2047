//! Forwarded proposals that are lost or late while their leader goes on leading.

use crate::cluster::*;
use longboat_raft::*;
use std::collections::{BTreeMap, VecDeque};

const START: u64 = 7;

fn forwards(commands: u64, changes: u64) -> Forwards {
    Forwards { start: START, commands, changes }
}

/// A run with these numbers, as replica 3 forwards it to the leader of a term.
fn forward(term: u64, numbers: std::ops::Range<u64>, start: u64) -> Message {
    let mut chunk = RunBuilder::new();
    numbers.for_each(|n| chunk.push(EntryKind::Command, n, format!("c{n}").as_bytes()));
    let run = chunk.seal(Term(term), Index(0), Origin { replica: id(3), start });
    message(3, 1, 0, Body::Forward(run))
}

fn change(number: u64) -> Message {
    let mut chunk = RunBuilder::new();
    let learner = ConfigChange::add_learner(id(4), Member::default());
    chunk.push(EntryKind::Config, number, &learner.encode());
    let run = chunk.seal(Term(1), Index(0), Origin { replica: id(3), start: START });
    message(3, 1, 0, Body::Forward(run))
}

/// Replica 3 asks what became of its forwarded proposals.
fn ask(c: &mut Cluster, forwards: Forwards) {
    let now = c.now;
    assert!(c.core(3).close_forwards(now, forwards));
    c.settle();
}

/// Three replicas, led by the first.
fn led() -> Cluster {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c
}

pub fn what_was_lost_is_said_to_be_closed_and_never_appended_later() {
    let mut c = led();
    c.propose(3, &["a", "b"]).unwrap();
    c.end_round(3);
    let late = c.net.pop_back().unwrap();
    assert!(c.net.is_empty(), "only the forwarded run was on its way");
    ask(&mut c, forwards(2, 0));
    let end = c.core(1).last().index;
    assert_eq!(c.node(3).closed, [ClosedForwards { term: Term(1), forwards: forwards(2, 0), end }]);
    assert_eq!(c.core(3).handed(), end);
    // The run comes in the end, by a connection that was slow.
    c.give(late);
    c.settle();
    assert_eq!(c.core(1).last().index, end);
    assert!(c.node(3).payloads().is_empty());
    assert_eq!(c.node(3).refused, [], "whether it is a duplicate of one that is in the log nobody knows");
    c.give(forward(1, 2..3, START));
    c.settle();
    assert_eq!(c.node(3).payloads(), ["c2"], "what was not asked about is taken");
}

pub fn what_is_in_the_log_lies_before_the_end_that_is_named() {
    let mut c = led();
    // The leader's entries are not committed yet: its followers hear nothing.
    c.propose(3, &["a"]).unwrap();
    c.end_round(3);
    c.lost = |m| matches!(m.body, Body::Append { .. });
    c.settle();
    let (last, commit) = (c.core(1).last().index, c.core(1).commit());
    assert!(commit < last);
    ask(&mut c, forwards(1, 0));
    assert_eq!(c.node(3).closed[0].end, last);
    assert!(c.core(3).handed() < last, "the origin has to wait until it was handed that");
    c.lost = |_| false;
    c.pass(3 * HEARTBEAT);
    assert_eq!(c.node(3).payloads(), ["a"]);
}

pub fn no_leader_speaks_for_another_term() {
    let mut c = led();
    c.elect(2);
    c.elect(1);
    assert_eq!(c.core(1).term(), Term(3));
    for term in [0, 1, 2, 4] {
        c.give(message(3, 1, 0, Body::CloseForwards { term: Term(term), forwards: forwards(9, 9) }));
        c.settle();
        assert_eq!(c.node(3).closed, []);
    }
    c.give(forward(3, 0..1, START));
    c.settle();
    assert_eq!(c.node(3).payloads(), ["c0"], "nothing was barred");
}

#[test]
fn a_lost_forward_is_closed() {
    what_was_lost_is_said_to_be_closed_and_never_appended_later();
}

#[test]
fn a_forward_in_the_log_is_not_behind_the_end() {
    what_is_in_the_log_lies_before_the_end_that_is_named();
}

#[test]
fn a_leader_closes_in_its_own_term_alone() {
    no_leader_speaks_for_another_term();
}

#[test]
fn commands_and_changes_are_closed_apart() {
    let mut c = led();
    ask(&mut c, forwards(5, 0));
    c.give(forward(1, 3..5, START));
    c.give(change(1 << 63 | 2));
    c.settle();
    assert!(c.node(3).payloads().is_empty());
    assert!(c.core(1).membership().contains(id(4)), "no change was closed");
    ask(&mut c, forwards(0, 1 << 63 | 4));
    let last = c.core(1).last().index;
    c.give(change(1 << 63 | 3));
    c.give(forward(1, 4..5, START));
    assert_eq!(c.core(1).last().index, last, "the lower bar for commands took nothing back");
    c.give(forward(1, 5..6, START));
    c.settle();
    assert_eq!(c.node(3).payloads(), ["c5"]);
}

#[test]
fn a_run_that_reaches_over_the_bar_is_closed_whole() {
    let mut c = led();
    ask(&mut c, forwards(5, 0));
    c.give(forward(1, 4..7, START));
    c.settle();
    assert!(c.node(3).payloads().is_empty());
}

#[test]
fn another_life_of_the_same_replica_is_not_closed() {
    let mut c = led();
    ask(&mut c, forwards(5, 0));
    c.give(forward(1, 1..2, START + 1));
    c.settle();
    assert_eq!(c.node(3).payloads(), ["c1"]);
    c.give(forward(1, 1..2, START));
    c.settle();
    assert_eq!(c.node(3).payloads(), ["c1"], "the earlier life's are closed as they were");
}

#[test]
fn a_leader_that_lost_its_bars_with_its_term_takes_nothing_of_that_term() {
    let mut c = led();
    ask(&mut c, forwards(5, 0));
    c.elect(2);
    c.elect(1);
    c.give(forward(1, 1..2, START));
    c.settle();
    assert_eq!(c.node(3).refused[0].reason, RefusedReason::NotLeader);
    c.give(forward(3, 4..5, START));
    c.settle();
    assert_eq!(c.node(3).payloads(), ["c4"]);
}

#[test]
fn a_leader_that_restarts_takes_nothing_of_its_term() {
    let mut c = led();
    ask(&mut c, forwards(5, 0));
    c.restart(1);
    c.give(forward(1, 1..2, START));
    c.settle();
    assert!(c.node(3).payloads().is_empty());
    assert_eq!(c.node(3).refused[0].reason, RefusedReason::NotLeader);
}

#[test]
fn who_leads_or_knows_no_leader_has_nobody_to_ask() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let now = c.now;
    assert!(!c.core(3).close_forwards(now, forwards(1, 0)));
    c.elect(1);
    assert!(!c.core(1).close_forwards(now, forwards(1, 0)));
}

#[test]
fn strangers_close_nothing_and_many_lives_are_too_many() {
    let mut c = led();
    let close = |from, start| {
        message(
            from,
            1,
            0,
            Body::CloseForwards { term: Term(1), forwards: Forwards { start, commands: 1, changes: 0 } },
        )
    };
    c.give(close(9, START));
    assert!(c.net.is_empty());
    for start in 0..400 {
        c.give(close(3, start));
    }
    let answers = c.net.iter().filter(|m| matches!(m.body, Body::ForwardsClosed { .. })).count();
    assert_eq!(answers, 256);
    c.settle();
    c.give(forward(1, 0..1, 399));
    c.settle();
    assert_eq!(c.node(3).payloads(), ["c0"], "who got no answer was not closed");
}

/// What replica 3 forwarded, or appended as a leader, and waits for: by number, the term in which it went.
#[derive(Default)]
struct Origin3 {
    next: u64,
    open: BTreeMap<u64, u64>,
    lost: BTreeMap<u64, u64>,
    seen: usize,
    answered: usize,
}

impl Origin3 {
    fn look(&mut self, c: &mut Cluster) -> usize {
        let node = c.node(3);
        for text in node.payloads().split_off(self.seen) {
            self.seen += 1;
            let number: u64 = text[1..].parse().unwrap();
            assert!(self.open.remove(&number).is_some(), "{number} is applied, lost: {:?}", self.lost);
        }
        let handed = node.core.handed();
        let before = self.lost.len();
        for closed in node.closed.iter().filter(|c| c.end <= handed) {
            let gone: Vec<u64> = self.open.range(..closed.forwards.commands).map(|(n, _)| *n).collect();
            let gone = gone.into_iter().filter(|n| self.open[n] == closed.term.0);
            for number in gone.collect::<Vec<_>>() {
                let term = self.open.remove(&number).unwrap();
                self.lost.insert(number, term);
            }
        }
        self.answered = node.closed.len();
        self.lost.len() - before
    }
}

/// Forwards, losses, delays, questions and elections in any order. Returns how many were found to be lost, and applied.
fn play(seed: u64) -> (usize, usize) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut roll = move |sides: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % sides
    };
    let mut c = led();
    let (mut o, mut late, mut found) = (Origin3::default(), VecDeque::new(), 0);
    for _ in 0..150 {
        match roll(12) {
            0..4 => {
                let (now, count) = (c.now, 1 + roll(2));
                let mut chunk = RunBuilder::new();
                (o.next..o.next + count).for_each(|n| chunk.push(EntryKind::Command, n, format!("c{n}").as_bytes()));
                let origin = Origin { replica: id(3), start: START };
                let options = ProposeOptions::default();
                if c.core(3).propose(now, chunk, origin, options).is_ok() {
                    let term = c.core(3).term().0;
                    o.open.extend((o.next..o.next + count).map(|n| (n, term)));
                    o.next += count;
                }
                c.end_round(3);
            }
            4 | 5 => {
                let (now, commands) = (c.now, o.next - roll(o.next.min(3) + 1));
                c.core(3).close_forwards(now, forwards(commands, 0));
                c.end_round(3);
            }
            6 if roll(4) == 0 => {
                let to = 1 + roll(2);
                let now = c.now;
                c.core(to).campaign(now);
                c.end_round(to);
            }
            7 => {
                let at = roll(c.net.len() as u64 + 1) as usize;
                late.extend(c.net.remove(at).filter(|m| matches!(m.body, Body::Forward(_))));
            }
            8 => {
                if let Some(message) = late.pop_front() {
                    c.give(message);
                }
            }
            9 => c.pass(HEARTBEAT),
            _ => {
                let at = roll(c.net.len() as u64 + 1) as usize;
                if let Some(message) = c.net.remove(at) {
                    c.give(message);
                }
            }
        }
        found += o.look(&mut c);
    }
    c.settle();
    late.into_iter().for_each(|message| c.give(message));
    c.settle();
    c.pass(10 * HEARTBEAT);
    found += o.look(&mut c);
    (found, o.seen)
}

pub fn nothing_that_counts_as_lost_is_ever_applied() {
    let (mut lost, mut applied) = (0, 0);
    for seed in 1..=300 {
        let (l, a) = play(seed);
        (lost, applied) = (lost + l, applied + a);
    }
    assert!(lost > 300 && applied > 3000, "{lost} lost, {applied} applied: this does not look");
}

#[test]
fn in_any_order_what_counts_as_lost_is_never_applied() {
    nothing_that_counts_as_lost_is_ever_applied();
}
