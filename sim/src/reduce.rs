//! Smaller worlds of a seed: a failing one is easier to read with fewer hosts, groups, faults and requests.
//!
//! A [`Reduction`] takes one thing away from the world that a seed draws, and is written as text, so that one command replays
//! the smaller world. [`shrink`] tries them greedily. A smaller world is another run, in which the bug shows or not: each is
//! lived through under a few schedules.
//!
//! Must not know: what is violated.

use crate::network::NetworkFaults;
use crate::operator::Operations;
use crate::report::{Report, live};
use crate::rng::Rng;
use crate::swarm::{FaultKind, Swarm};
use crate::world::{Trace, World};
use std::fmt;
use std::str::FromStr;

/// Schedules under which each smaller world is tried.
const SCHEDULES: u64 = 10;
/// Characters that tell one kind of violation from another.
const KIND_CHARS: usize = 30;
const MILLI: u64 = 1_000_000;

/// Something that a world does without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Only the hosts up to this number.
    Hosts(u64),
    /// Only this group.
    Group(u64),
    /// Not this kind of fault.
    Without(FaultKind),
    /// Faults end after this time, in milliseconds.
    FaultMillis(u64),
    /// This much time between requests, in milliseconds.
    RequestMillis(u64),
    /// A network that neither loses nor delays.
    CalmNetwork,
    /// Nobody changes members, moves leaders or stops replicas.
    NoOperations,
    /// Clocks that do not drift.
    SteadyClocks,
    /// No clients in sessions.
    NoSessions,
    /// Small writes and snapshots.
    Small,
    /// No reads.
    NoReads,
    /// No snapshots on request.
    NoRequestedSnapshots,
    /// One worker of each kind.
    OneWorker,
    /// Groups never fall silent.
    NeverSilent,
    /// Another schedule.
    Schedule(u64),
    /// Neither a long life nor more hosts, groups and kinds of things than worlds had at first. Seeds that are named in tests found what
    /// they found in such worlds.
    Narrow,
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hosts(n) => write!(f, "hosts={n}"),
            Self::Group(n) => write!(f, "group={n}"),
            Self::Without(kind) => write!(f, "without={kind:?}"),
            Self::FaultMillis(n) => write!(f, "fault-ms={n}"),
            Self::RequestMillis(n) => write!(f, "request-ms={n}"),
            Self::CalmNetwork => write!(f, "calm-network"),
            Self::NoOperations => write!(f, "no-operations"),
            Self::SteadyClocks => write!(f, "steady-clocks"),
            Self::NoSessions => write!(f, "no-sessions"),
            Self::Small => write!(f, "small"),
            Self::NoReads => write!(f, "no-reads"),
            Self::NoRequestedSnapshots => write!(f, "no-requested-snapshots"),
            Self::OneWorker => write!(f, "one-worker"),
            Self::NeverSilent => write!(f, "never-silent"),
            Self::Schedule(n) => write!(f, "schedule={n}"),
            Self::Narrow => write!(f, "narrow"),
        }
    }
}

impl FromStr for Reduction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let number = || value.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        Ok(match name {
            "hosts" => Self::Hosts(number()?),
            "group" => Self::Group(number()?),
            "without" => {
                let kind = FaultKind::ALL.iter().find(|kind| format!("{kind:?}") == value);
                Self::Without(*kind.ok_or_else(|| format!("{text}: there is no such fault"))?)
            }
            "fault-ms" => Self::FaultMillis(number()?),
            "request-ms" => Self::RequestMillis(number()?),
            "calm-network" => Self::CalmNetwork,
            "no-operations" => Self::NoOperations,
            "steady-clocks" => Self::SteadyClocks,
            "no-sessions" => Self::NoSessions,
            "small" => Self::Small,
            "no-reads" => Self::NoReads,
            "no-requested-snapshots" => Self::NoRequestedSnapshots,
            "one-worker" => Self::OneWorker,
            "never-silent" => Self::NeverSilent,
            "schedule" => Self::Schedule(number()?),
            "narrow" => Self::Narrow,
            _ => return Err(format!("{text}: no reduction is called that")),
        })
    }
}

impl Reduction {
    /// In place of one of its kind, if there is one.
    fn add_to(&self, all: &mut Vec<Self>) {
        let same = |other: &Self| std::mem::discriminant(other) == std::mem::discriminant(self);
        all.retain(|other| matches!(other, Self::Without(_)) || !same(other));
        all.push(self.clone());
    }

    fn apply(&self, swarm: &mut Swarm) {
        match self {
            Self::Hosts(n) => {
                swarm.hosts = swarm.hosts.min(*n).max(1);
                swarm.groups.iter_mut().for_each(|(_, hosts)| hosts.retain(|host| host.0 <= *n));
                swarm.groups.retain(|(_, hosts)| !hosts.is_empty());
            }
            Self::Group(n) => swarm.groups.retain(|(group, _)| group.0 == *n),
            Self::Without(kind) => swarm.faults.retain(|k| k != kind),
            Self::FaultMillis(n) => swarm.fault_nanos = swarm.fault_nanos.min(n * MILLI),
            Self::RequestMillis(n) => swarm.request_every_nanos = n * MILLI,
            Self::CalmNetwork => {
                swarm.network =
                    NetworkFaults { latency_nanos: 100_000, jitter_nanos: 200_000, ..NetworkFaults::default() };
            }
            Self::NoOperations => swarm.operations = Operations::default(),
            Self::SteadyClocks => swarm.drift_ppm.clear(),
            Self::NoSessions => swarm.sessions = 0,
            Self::Small => (swarm.large, swarm.padding_max, swarm.ballast) = ((0, 0), 0, 0),
            Self::NoReads => (swarm.read_permille, swarm.operations.index_read_permille) = (0, 0),
            Self::NoRequestedSnapshots => swarm.snapshot_permille = 0,
            Self::OneWorker => (swarm.step_workers, swarm.apply_workers) = (1, 1),
            Self::NeverSilent => swarm.quiesce_after_nanos = 0,
            // Other draws, and not another world.
            Self::Schedule(_) | Self::Narrow => {}
        }
    }
}

/// What kind of violation it is: what it says, without numbers, up to where it begins to describe the state of things.
fn kind(violation: &str) -> String {
    let words = violation.chars().filter(|c| !c.is_ascii_digit());
    words.take(KIND_CHARS).collect()
}

fn drawn(seed: u64, attended: bool, reductions: &[Reduction]) -> (Rng, Swarm) {
    let narrow = reductions.contains(&Reduction::Narrow);
    if narrow { World::drawn_narrow(seed, attended) } else { World::drawn(seed, attended) }
}

/// The world of a seed without what `reductions` take away.
pub fn reduced(seed: u64, attended: bool, reductions: &[Reduction], trace: Trace) -> World {
    let (mut rng, mut swarm) = drawn(seed, attended, reductions);
    reductions.iter().for_each(|reduction| reduction.apply(&mut swarm));
    for reduction in reductions {
        if let Reduction::Schedule(n) = reduction {
            rng = Rng::new(seed ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
    }
    World::with(rng, swarm, trace)
}

/// Lives through a world without what `reductions` take away.
pub fn run_reduced(seed: u64, attended: bool, reductions: &[Reduction], trace: Trace) -> Report {
    live(seed, reduced(seed, attended, reductions, trace))
}

/// What else could be taken away from this world, the largest things first.
fn candidates(swarm: &Swarm) -> Vec<Reduction> {
    let mut all = Vec::new();
    if swarm.groups.len() > 1 {
        all.extend(swarm.groups.iter().map(|(group, _)| Reduction::Group(group.0)));
    }
    if swarm.operations.is_on() {
        all.push(Reduction::NoOperations);
    }
    if swarm.sessions > 0 {
        all.push(Reduction::NoSessions);
    }
    if !swarm.drift_ppm.is_empty() {
        all.push(Reduction::SteadyClocks);
    }
    all.extend((1..swarm.hosts).map(Reduction::Hosts));
    let mut kinds = swarm.faults.clone();
    kinds.dedup();
    all.extend(kinds.into_iter().map(Reduction::Without));
    let millis = swarm.fault_nanos / MILLI;
    if millis > 100 {
        all.extend([millis / 8, millis / 2, millis * 3 / 4].map(Reduction::FaultMillis));
    }
    let calm = NetworkFaults { latency_nanos: 100_000, jitter_nanos: 200_000, ..NetworkFaults::default() };
    let steps = [
        (swarm.network != calm, Reduction::CalmNetwork),
        (swarm.large != (0, 0) || swarm.padding_max > 0 || swarm.ballast > 0, Reduction::Small),
        (swarm.read_permille > 0 || swarm.operations.index_read_permille > 0, Reduction::NoReads),
        (swarm.snapshot_permille > 0, Reduction::NoRequestedSnapshots),
        (swarm.step_workers > 1 || swarm.apply_workers > 1, Reduction::OneWorker),
        (swarm.quiesce_after_nanos > 0, Reduction::NeverSilent),
        (swarm.request_every_nanos < 200 * MILLI, Reduction::RequestMillis(4 * swarm.request_every_nanos / MILLI + 1)),
    ];
    all.extend(steps.into_iter().filter(|(applies, _)| *applies).map(|(_, reduction)| reduction));
    all
}

/// The reductions under which a seed still fails, and how; nothing if it does not fail as it is. `fails` lives through a world and
/// says what was violated: anything of another kind does not count. `told` hears of each step.
pub fn shrink(
    seed: u64,
    attended: bool,
    fails: impl Fn(&[Reduction]) -> Option<String>,
    mut told: impl FnMut(&[Reduction], &str),
) -> Option<(Vec<Reduction>, String)> {
    let mut best = (Vec::new(), fails(&[])?);
    let sought = kind(&best.1);
    loop {
        let mut swarm = drawn(seed, attended, &best.0).1;
        best.0.iter().for_each(|reduction: &Reduction| reduction.apply(&mut swarm));
        let smaller = candidates(&swarm).into_iter().find_map(|candidate| {
            (0..SCHEDULES).find_map(|schedule| {
                let mut with = best.0.clone();
                candidate.add_to(&mut with);
                if schedule > 0 {
                    Reduction::Schedule(schedule).add_to(&mut with);
                }
                let what = fails(&with).filter(|what| kind(what) == sought)?;
                Some((with, what))
            })
        });
        let Some(smaller) = smaller else { return Some(best) };
        best = smaller;
        told(&best.0, &best.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reduction_is_read_as_it_is_written() {
        let mut swarm = World::drawn(3, true).1;
        swarm.faults = FaultKind::ALL.to_vec();
        (swarm.hosts, swarm.step_workers, swarm.snapshot_permille, swarm.read_permille) = (3, 2, 1, 1);
        let mut all = candidates(&swarm);
        all.extend([Reduction::NoOperations, Reduction::Small, Reduction::Schedule(4), Reduction::Group(2)]);
        assert!(all.len() > 20);
        for reduction in all {
            assert_eq!(reduction.to_string().parse(), Ok(reduction));
        }
        assert!("without=Sunshine".parse::<Reduction>().is_err());
        assert!("hosts=many".parse::<Reduction>().is_err());
    }

    #[test]
    fn what_a_failure_does_not_need_is_taken_away() {
        // It fails wherever a process may be killed and there are two hosts.
        let world = |reductions: &[Reduction]| {
            let mut swarm = World::drawn(9, false).1;
            (swarm.hosts, swarm.faults) = (5, vec![FaultKind::Cut, FaultKind::Kill]);
            reductions.iter().for_each(|r| r.apply(&mut swarm));
            swarm
        };
        let fails = |reductions: &[Reduction]| {
            let swarm = world(reductions);
            let kept = !reductions.contains(&Reduction::Without(FaultKind::Kill)) && swarm.hosts >= 2;
            kept.then(|| "it failed".to_owned())
        };
        let (reductions, what) = shrink(9, false, fails, |_, _| {}).expect("it fails");
        let swarm = world(&reductions);
        assert_eq!(what, "it failed");
        assert!(swarm.groups.len() == 1 && swarm.fault_nanos <= 200 * MILLI, "{reductions:?}");
        assert!(!reductions.contains(&Reduction::Without(FaultKind::Kill)));
        assert_eq!(shrink(9, false, |_| None, |_, _| {}), None);
    }
}
