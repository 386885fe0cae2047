//! Whole groups under random schedules: messages lost, repeated and reordered, disks that lag, restarts that forget what
//! was not durable, snapshots, membership changes. After every step what Raft promises is checked.
//!
//! A failure names its seed: `LONGBOAT_SEED=n cargo test --release -p longboat-raft --test scenarios random` plays it again.
//! `LONGBOAT_SEEDS=n` plays the first n.

use crate::cluster::*;
use longboat_raft::*;
use std::collections::BTreeMap;

/// What decides at each step.
pub trait Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64;

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize]
    }
}

/// A small generator of the tests' own: the core's is not for others.
pub struct Seeded(pub u64);

impl Dice for Seeded {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// What was promised so far.
#[derive(Default)]
pub struct Promises {
    /// Who led in each term.
    leaders: BTreeMap<u64, u64>,
    /// What was committed at each index, as (term, payload).
    committed: BTreeMap<u64, (u64, Vec<u8>)>,
    /// Whom each replica voted for in each term, as its messages said.
    votes: BTreeMap<(u64, u64), u64>,
    /// How much of each node's applied entries was looked at.
    looked_at: BTreeMap<u64, usize>,
}

impl Promises {
    pub fn check(&mut self, c: &mut Cluster) {
        for (n, node) in &c.nodes {
            if let Some(violation) = &node.violation {
                panic!("node {n}: {violation}");
            }
            if node.core.role() == Role::Leader {
                let known = *self.leaders.entry(node.core.term().0).or_insert(*n);
                assert_eq!(known, *n, "two leaders in term {}", node.core.term());
            }
        }
        for (n, node) in &c.nodes {
            let core = &node.core;
            if core.role() == Role::Leader {
                // Leader completeness: whoever leads the newest term has everything that was committed.
                let newest = self.leaders.keys().next_back() == Some(&core.term().0);
                if newest && let Some((index, (term, _))) = self.committed.last_key_value() {
                    let here = core.term_at(Index(*index)).map(|t| t.0);
                    assert!(here == Some(*term) || core.start().index.0 > *index, "leader {n} lacks {term}/{index}");
                }
            }
            let from = self.looked_at.entry(*n).or_default();
            for (index, term, kind, payload) in &node.applied[*from..] {
                if core.is_witness() && *kind != EntryKind::Config {
                    // Of commands a witness knows the place.
                    let known = self.committed.get(index).is_none_or(|known| known.0 == *term);
                    assert!(known && payload.is_empty(), "witness {n} has another entry at {index}");
                    continue;
                }
                let entry = self.committed.entry(*index).or_insert_with(|| (*term, payload.clone()));
                assert_eq!((entry.0, &entry.1), (*term, payload), "node {n} applied another entry at {index}");
            }
            *from = node.applied.len();
            assert!(core.handed() <= core.durable() || core.handed() == core.start().index);
        }
        for m in &c.net {
            let vote = match m.body {
                Body::VoteResponse { pre: false, granted: true } => Some((m.from.0, m.to.0)),
                Body::RequestVote { pre: false, .. } => Some((m.from.0, m.from.0)),
                _ => None,
            };
            if let Some((voter, choice)) = vote {
                let known = *self.votes.entry((voter, m.term.0)).or_insert(choice);
                assert_eq!(known, choice, "{voter} voted twice in term {}", m.term);
            }
        }
    }
}

fn change(c: &mut Cluster, dice: &mut impl Dice, next_id: &mut u64) {
    let Some(leader) = c.leaders().first().copied() else {
        return;
    };
    let members: Vec<u64> = c.core(leader).membership().replicas().map(|r| r.0).collect();
    let mut wanted = ConfigChange {
        transition: dice.pick(&[Transition::Auto, Transition::JointImplicit]),
        ..ConfigChange::default()
    };
    if dice.roll(2) == 0 && members.len() > 2 {
        wanted.changes.extend(ConfigChange::remove(id(dice.pick(&members))).changes);
    }
    if members.len() < 6 {
        let joins = *next_id;
        *next_id += 1;
        let tuned = CoreConfig { replica: id(joins), seed: joins, ..c.configs[&1].clone() };
        c.add(tuned, Disk::default());
        let one = match dice.roll(3) {
            0 => ConfigChange::add_learner(id(joins), Member::default()),
            _ => ConfigChange::add_voter(id(joins), Member::default()),
        };
        wanted.changes.extend(one.changes);
    }
    if !wanted.changes.is_empty() {
        drop(c.change(leader, wanted));
        c.end_round(leader);
    }
}

pub fn step(c: &mut Cluster, dice: &mut impl Dice, next_id: &mut u64, changes: bool) {
    let ids: Vec<u64> = c.nodes.keys().copied().collect();
    let n = dice.pick(&ids);
    let now = c.now;
    match dice.roll(100) {
        0..60 if !c.net.is_empty() => {
            // Mostly in order, sometimes not; now and then lost or repeated.
            let at = if dice.roll(4) == 0 { dice.roll(c.net.len() as u64) as usize } else { 0 };
            let m = c.net.remove(at).expect("in range");
            match dice.roll(20) {
                0 => {}
                1 => {
                    c.net.push_back(m.clone());
                    c.give(m);
                }
                _ => c.give(m),
            }
        }
        60..72 => {
            c.now = now.plus_nanos(HEARTBEAT / 2);
            let now = c.now;
            c.core(n).advance(now);
            c.end_round(n);
        }
        72..84 => {
            if c.complete(n) {
                c.end_round(n);
            }
        }
        84..90 => {
            drop(c.propose(n, &[&format!("{}", dice.roll(1 << 32))]));
            c.end_round(n);
        }
        90..92 => c.node(n).slow_disk = dice.roll(2) == 0,
        92 => c.restart_slow(n),
        93 => c.compact(n),
        94 => {
            let to = id(dice.pick(&ids));
            if dice.roll(2) == 0 {
                _ = c.core(n).transfer_leader(now, to)
            } else {
                c.core(n).report_unreachable(to)
            }
            c.end_round(n);
        }
        95 => {
            let to = id(dice.pick(&ids));
            c.core(n).snapshot_finished(to, dice.roll(2) == 0);
            c.end_round(n);
        }
        96 if changes => change(c, dice, next_id),
        97 => {
            c.core(n).forget_leader();
            c.core(n).campaign(now);
            c.end_round(n);
        }
        98 => {
            c.core(n).trim();
            c.serve_fetches(n);
        }
        _ => c.serve_fetches(n),
    }
}

pub fn play(seed: u64, steps: u64, changes: bool) {
    let mut dice = Seeded(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let flags = dice.roll(8);
    let members: Vec<u64> = (1..=dice.pick(&[3, 3, 5])).collect();
    let mut c = Cluster::with(&members, |config| {
        config.seed = seed ^ config.replica.0;
        config.pre_vote = flags & 1 != 0;
        config.check_quorum = flags & 2 != 0;
        // A removed leader that goes on takes no proposals: whoever runs it has to stop it.
        config.step_down_on_removal = changes || flags & 4 != 0;
        config.inflight_appends_max = 4;
        config.append_bytes_max = 200;
        config.log_cache_bytes_max = 400;
    });
    c.auto_snapshots = true;
    let mut next_id = 100;
    let mut promises = Promises::default();
    for _ in 0..steps {
        step(&mut c, &mut dice, &mut next_id, changes);
        promises.check(&mut c);
    }
    // Faults end: the group must make progress. Replicas that were removed, or never joined, are not waited for.
    for n in c.nodes.keys().copied().collect::<Vec<_>>() {
        c.node(n).slow_disk = false;
        c.complete_all(n);
    }
    // Without pre-vote a replica that can't win may disturb the others many times: elections end with high probability
    // only.
    for round in 0..2000 {
        if round >= 60 && !c.leaders().is_empty() {
            break;
        }
        c.pass(ELECTION / 2);
        for n in c.nodes.keys().copied().collect::<Vec<_>>() {
            for other in c.nodes.keys().copied().collect::<Vec<_>>() {
                if let Some(ProgressState::Snapshot { .. }) = c.core(n).progress(id(other)).map(Progress::state) {
                    c.core(n).snapshot_finished(id(other), false);
                }
            }
            c.serve_fetches(n);
        }
        promises.check(&mut c);
    }
    let newest = c.nodes.values().filter(|n| n.core.role() == Role::Leader).max_by_key(|n| n.core.term());
    let leader = newest.expect("nobody leads after faults have ended").core.replica().0;
    let before = c.node(leader).applied.len();
    c.propose(leader, &["after the storm"]).unwrap();
    c.settle();
    c.serve_fetches(leader);
    c.settle();
    assert!(c.node(leader).applied.len() > before, "no progress after faults have ended");
    promises.check(&mut c);
}

fn seeds(count: u64, steps: u64, changes: bool) {
    let number = |name| -> Option<u64> { std::env::var(name).ok().map(|s| s.parse().unwrap()) };
    let count = number("LONGBOAT_SEEDS").unwrap_or(count);
    for seed in number("LONGBOAT_SEED").map_or(1..count + 1, |s| s..s + 1) {
        let outcome = std::panic::catch_unwind(|| play(seed, steps, changes));
        if let Err(panic) = outcome {
            eprintln!(
                "seed {seed} failed: LONGBOAT_SEED={seed} cargo test --release -p longboat-raft --test scenarios random"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn promises_hold_under_random_faults() {
    seeds(150, 3000, false);
}

#[test]
fn promises_hold_while_the_membership_changes() {
    seeds(150, 3000, true);
}
