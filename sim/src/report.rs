//! Running a seed from its first step to its verdict, and adding up what many seeds came to.

use crate::world::{Counts, Trace, World};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// What a seed came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The first violation, if there was one.
    pub violation: Option<String>,
    /// Stands for all that went in and out.
    pub hash: u64,
    /// Counts.
    pub counts: Counts,
}

/// Lives through the world of a seed. A panic of the code under test is a violation.
pub fn run(seed: u64, trace: Trace) -> Report {
    live(seed, World::new(seed, trace))
}

/// As [`run`], without operators.
pub fn run_unattended(seed: u64, trace: Trace) -> Report {
    live(seed, World::unattended(seed, trace))
}

/// Lives through a world of this seed.
pub fn live(seed: u64, mut world: World) -> Report {
    let oracle = Arc::clone(&world.around.oracle);
    let lived = std::panic::catch_unwind(AssertUnwindSafe(|| world.live()));
    if let Err(panic) = lived {
        oracle.violate(format!("panic: {}", panic_text(&*panic)));
    }
    let report = Report { seed, violation: oracle.violation(), hash: oracle.hash(), counts: world.counts() };
    oracle.discard();
    if report.violation.is_some() {
        // What panicked may do so again while it is dropped.
        world.hosts.iter().for_each(|host| host.disk.discard());
        std::mem::forget(world);
    } else {
        world.end();
    }
    report
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without words".to_owned())
}

/// The sums over many seeds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Seeds run.
    pub seeds: u64,
    /// Simulated time, in nanoseconds.
    pub nanos: u64,
    /// Rounds of workers and steps of jobs.
    pub steps: u64,
    /// Requests that were answered: writes acknowledged, reads and snapshots served.
    pub operations: u64,
    /// Membership changes in effect.
    pub changes: u64,
    /// Leaders that were asked for.
    pub transfers: u64,
    /// Replicas whose data was removed.
    pub buried: u64,
    /// Client sessions registered.
    pub sessions: u64,
    /// Attempts at commands that may be sent again, answered.
    pub attempts: u64,
    /// Faults made, lost frames apart.
    pub faults: u64,
    /// Frames lost.
    pub frames_lost: u64,
    /// Frames that arrived twice.
    pub frames_doubled: u64,
    /// Seeds in which a host archived a journal segment.
    pub archiving: u64,
    /// Seeds with a violation.
    pub violations: u64,
    /// Which.
    pub failing: Vec<u64>,
    /// Points of the search that were met by seeds of an earlier process.
    pub points_before: BTreeMap<String, u64>,
}

impl Totals {
    /// Adds what a seed came to.
    pub fn add(&mut self, report: &Report) {
        let counts = &report.counts;
        self.seeds += 1;
        self.nanos += counts.nanos;
        self.steps += counts.steps;
        self.operations += {
            let o = &counts.outcomes;
            self.changes += o.changes;
            self.transfers += o.transfers;
            self.buried += o.buried;
            self.sessions += o.sessions;
            self.attempts += o.attempts;
            o.attempts + o.writes + o.reads + o.index_reads + o.snapshots + o.changes + o.transfers
        };
        self.faults += counts.faults;
        self.frames_lost += counts.frames_lost;
        self.frames_doubled += counts.frames_doubled;
        self.archiving += u64::from(counts.archived > 0);
        if report.violation.is_some() {
            self.violations += 1;
            self.failing.push(report.seed);
        }
    }

    /// Adds what other seeds came to.
    pub fn extend(&mut self, other: &Self) {
        let Self { seeds, nanos, steps, operations, changes, transfers, buried, faults, .. } = other;
        self.seeds += seeds;
        self.nanos += nanos;
        self.steps += steps;
        self.operations += operations;
        self.changes += changes;
        self.transfers += transfers;
        self.buried += buried;
        self.faults += faults;
        self.frames_lost += other.frames_lost;
        self.frames_doubled += other.frames_doubled;
        self.archiving += other.archiving;
        self.violations += other.violations;
        self.failing.extend(&other.failing);
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        let minutes = (self.nanos as f64 / 60e9).max(f64::MIN_POSITIVE);
        serde_json::json!({
            "seeds": self.seeds,
            "simulated_hours": self.nanos as f64 / 3600e9,
            "steps": self.steps,
            "operations": self.operations,
            "changes": self.changes,
            "transfers": self.transfers,
            "buried": self.buried,
            "sessions": self.sessions,
            "attempts": self.attempts,
            "faults": self.faults,
            "frames_lost": self.frames_lost,
            "frames_doubled": self.frames_doubled,
            "archiving": self.archiving,
            "operations_per_simulated_minute": (self.operations as f64 / minutes).round(),
            "faults_per_simulated_minute": (self.faults as f64 / minutes).round(),
            "points": longboat_raft::sometimes::ALL.len(),
            "points_never_met": crate::campaign::rarely_met(1, &self.points_before).iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            "violations": self.violations,
            "failing_seeds": self.failing,
        })
        .to_string()
    }
}
