//! A leader's decisions against the obvious way to make them, over random answers: which index is committed, whether a vote
//! is won, which reads are answered. The obvious way asks of each index and each read whether majorities stand behind it.

use crate::cluster::*;
use longboat_raft::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Voters of a configuration of replica 1 and others, joint or not.
fn any_voters() -> impl Strategy<Value = Membership> {
    let half = || prop::collection::btree_set(2u64..8, 0..6);
    (half(), half(), any::<bool>(), any::<bool>()).prop_map(|(incoming, outgoing, joint, in_both)| {
        let ids = |set: BTreeSet<u64>, own: bool| -> BTreeSet<ReplicaId> {
            set.into_iter().chain(own.then_some(1)).map(id).collect()
        };
        let outgoing = if joint { ids(outgoing, in_both) } else { BTreeSet::new() };
        Membership { voters: ids(incoming, true), outgoing, ..Membership::default() }
    })
}

/// Whether majorities of both halves are among those of whom `is` holds. An empty half has no say.
fn decide(m: &Membership, is: impl Fn(u64) -> bool) -> bool {
    let most = |half: &BTreeSet<ReplicaId>| half.iter().filter(|v| is(v.0)).count() * 2 > half.len() || half.is_empty();
    most(&m.voters) && most(&m.outgoing)
}

fn group(membership: &Membership) -> Cluster {
    let mut c = Cluster::new(&[]);
    c.add(config(1), Disk { membership: membership.clone(), ..Disk::default() });
    c
}

fn campaign(c: &mut Cluster) {
    let now = c.now;
    c.core(1).campaign(now);
    c.end_round(1);
}

/// Replica 1 leads, by everybody's vote.
fn leader(membership: &Membership) -> Cluster {
    let mut c = group(membership);
    campaign(&mut c);
    for voter in membership.all_voters().map(|v| v.0).filter(|v| *v != 1) {
        c.give(message(voter, 1, 1, Body::VoteResponse { pre: false, granted: true }));
    }
    assert_eq!(c.core(1).role(), Role::Leader);
    c
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_vote_is_won_and_lost_when_counting_says_so(
        membership in any_voters(),
        answers in prop::collection::vec((2u64..9, any::<bool>()), 0..14),
    ) {
        let mut c = group(&membership);
        campaign(&mut c);
        // The first answer of each counts, and what is decided stays.
        let mut said: BTreeMap<u64, bool> = BTreeMap::from([(1, true)]);
        let mut expected = Role::Candidate;
        for answer in std::iter::once(None).chain(answers.into_iter().map(Some)) {
            if let Some((voter, granted)) = answer {
                c.give(message(voter, 1, 1, Body::VoteResponse { pre: false, granted }));
                said.entry(voter).or_insert(granted);
            }
            if expected == Role::Candidate {
                let won = decide(&membership, |v| said.get(&v) == Some(&true));
                let can_win = decide(&membership, |v| said.get(&v) != Some(&false));
                expected = if won { Role::Leader } else if can_win { Role::Candidate } else { Role::Follower };
            }
            prop_assert_eq!(c.core(1).role(), expected);
        }
    }

    #[test]
    fn what_majorities_have_is_committed_and_nothing_else(
        membership in any_voters(),
        steps in prop::collection::vec((2u64..9, 0u64..12, any::<bool>()), 1..30),
    ) {
        let mut c = leader(&membership);
        let mut has: BTreeMap<u64, u64> = BTreeMap::new();
        for (from, matched, proposes) in steps {
            if proposes {
                drop(c.propose(1, &["x"]));
                c.end_round(1);
            }
            let last = c.core(1).last().index.0;
            has.insert(1, last);
            c.give(message(from, 1, 1, Body::AppendAccepted { matched: Index(matched) }));
            // Nobody acknowledges what the leader never had; what was acknowledged stays so.
            if matched <= last {
                let before = has.entry(from).or_default();
                *before = matched.max(*before);
            }
            let reached = |index: u64| decide(&membership, |v| has.get(&v).is_some_and(|i| *i >= index));
            let expected = (0..=last).rev().find(|i| reached(*i)).unwrap_or(0);
            prop_assert_eq!(c.core(1).commit(), Index(expected));
        }
    }

    #[test]
    fn a_read_is_answered_when_majorities_confirmed_a_round_that_began_after_it(
        membership in any_voters(),
        steps in prop::collection::vec((0u8..6, 2u64..9, 0u64..8), 1..40),
    ) {
        let mut c = leader(&membership);
        for voter in membership.all_voters().filter(|v| v.0 != 1).collect::<Vec<_>>() {
            c.give(message(voter.0, 1, 1, Body::AppendAccepted { matched: Index(1) }));
        }
        prop_assert_eq!(c.core(1).commit(), Index(1));
        // The round that each read waits for, those not in one yet, and the newest round that each member confirmed.
        let (mut waiting, mut gathered): (BTreeMap<u64, u64>, Vec<u64>) = (BTreeMap::new(), Vec::new());
        let (mut newest, mut confirmed): (u64, BTreeMap<u64, u64>) = (0, BTreeMap::from([(1, u64::MAX)]));
        let (mut expected, mut context) = (BTreeSet::new(), 0);
        for (what, from, round) in steps {
            match what {
                0 | 1 => {
                    context += 1;
                    let now = c.now;
                    c.core(1).read_index(now, context);
                    gathered.push(context);
                }
                _ => {
                    let body = Body::HeartbeatResponse { read_round: round, overloaded: false };
                    let (now, answer) = (c.now, message(from, 1, 1, body));
                    c.core(1).step(now, answer).unwrap();
                    if round <= newest && membership.is_voter(id(from)) {
                        let before = confirmed.entry(from).or_default();
                        *before = round.max(*before);
                    }
                }
            }
            // Several reads may share a round.
            if what != 1 {
                c.end_round(1);
                newest += u64::from(!gathered.is_empty());
                waiting.extend(gathered.drain(..).map(|read| (read, newest)));
            }
            let sure = |round: u64| decide(&membership, |v| confirmed.get(&v).is_some_and(|r| *r >= round));
            expected.extend(waiting.iter().filter(|(_, round)| sure(**round)).map(|(read, _)| *read));
            let answered: BTreeSet<u64> = c.node(1).reads.iter().map(|r| r.context).collect();
            prop_assert_eq!(&answered, &expected);
            prop_assert!(c.node(1).reads.iter().all(|r| r.index == Some(Index(1))));
        }
    }
}
