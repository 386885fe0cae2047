//! Many seeds: run side by side, added up, checked that they replay, and written to a ledger that a later campaign goes on from.
//!
//! Invariants: what a campaign finds does not depend on how many threads run it; seeds are added up in their order, a block at
//! a time, and only whole blocks are in the ledger. Must not know: what a seed's world is like.

use crate::report::{Report, Totals};
use longboat_raft::sometimes;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that a ledger's line stands for at most.
pub const BLOCK: u64 = 250;

/// One seed in so many is run twice, and must come to the same.
const TWICE_EVERY: u64 = 100;

/// Runs these seeds on this many threads. `told` is given each report, in the order of seeds, and says whether to go on.
pub fn run(
    seeds: Range<u64>,
    threads: usize,
    live: impl Fn(u64) -> Report + Sync,
    mut told: impl FnMut(&Report) -> bool,
) -> Totals {
    let mut totals = Totals::default();
    for from in seeds.clone().step_by(BLOCK as usize) {
        for report in block(from..seeds.end.min(from + BLOCK), threads, &live) {
            totals.add(&report);
            if !told(&report) {
                return totals;
            }
        }
    }
    totals
}

/// The reports of a block of seeds, in their order.
fn block(seeds: Range<u64>, threads: usize, live: &(impl Fn(u64) -> Report + Sync)) -> Vec<Report> {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut reports = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return reports;
            }
            reports.push(checked(seed, live));
        }
    };
    let mut reports = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        others.into_iter().for_each(|o| all.extend(o.join().expect("violations are caught where they happen")));
        all
    });
    reports.sort_by_key(|r| r.seed);
    reports
}

fn checked(seed: u64, live: &impl Fn(u64) -> Report) -> Report {
    let mut report = live(seed);
    if seed % TWICE_EVERY == TWICE_EVERY - 1 && report.violation.is_none() {
        let again = live(seed);
        if again != report {
            let what = format!("two runs of the seed differ: hash {:016x} and {:016x}", report.hash, again.hash);
            report.violation = Some(what);
        }
    }
    report
}

/// What a ledger knows of a range of seeds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The first seed that no line stands for.
    pub next: u64,
    /// What the others came to.
    pub totals: Totals,
    /// How often they met each point.
    pub points: BTreeMap<String, u64>,
}

/// What this ledger knows of these seeds; nothing if there is none. Lines of other seeds are passed over.
///
/// # Errors
/// When the file can't be read, or is no ledger.
pub fn resume(ledger: &Path, seeds: &Range<u64>) -> io::Result<Known> {
    let mut known = Known { next: seeds.start, ..Known::default() };
    let text = match std::fs::read_to_string(ledger) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(known),
        Err(e) => return Err(e),
    };
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let number = |name: &str| row[name].as_u64();
        let (Some(from), Some(to)) = (number("from"), number("to")) else {
            return Err(io::Error::other(format!("no line of a ledger: {line}")));
        };
        if from != known.next || to > seeds.end {
            continue;
        }
        known.next = to;
        known.totals.extend(&Totals {
            seeds: to - from,
            nanos: (row["simulated_hours"].as_f64().unwrap_or_default() * 3600e9) as u64,
            steps: number("steps").unwrap_or_default(),
            operations: number("operations").unwrap_or_default(),
            faults: number("faults").unwrap_or_default(),
            violations: number("violations").unwrap_or_default(),
            failing: row["failing_seeds"].as_array().into_iter().flatten().filter_map(|s| s.as_u64()).collect(),
            ..Totals::default()
        });
        for (name, count) in row["points"].as_object().into_iter().flatten() {
            *known.points.entry(name.clone()).or_default() += count.as_u64().unwrap_or_default();
        }
    }
    Ok(known)
}

/// Adds a line: what these seeds came to, at this commit, and how often they met each point of [`sometimes::ALL`].
///
/// # Errors
/// When the file can't be written.
pub fn record(ledger: &Path, commit: &str, seeds: &Range<u64>, totals: &Totals, met: &[u64]) -> io::Result<()> {
    let points = sometimes::ALL.iter().zip(met).filter(|(_, count)| **count > 0);
    let points: BTreeMap<&str, u64> = points.map(|((name, _), count)| (*name, *count)).collect();
    let line = serde_json::json!({
        "commit": commit,
        "from": seeds.start,
        "to": seeds.end,
        "simulated_hours": totals.nanos as f64 / 3600e9,
        "steps": totals.steps,
        "operations": totals.operations,
        "faults": totals.faults,
        "violations": totals.violations,
        "failing_seeds": totals.failing,
        "points": points,
    });
    let mut file = OpenOptions::new().create(true).append(true).open(ledger)?;
    writeln!(file, "{line}")
}

/// The points of [`sometimes::ALL`] that were met less often than `least` in this process and `before`, and how often.
pub fn rarely_met(least: u64, before: &BTreeMap<String, u64>) -> Vec<(&'static str, u64)> {
    let before = |name: &str| before.get(name).copied().unwrap_or_default();
    let points = sometimes::ALL.iter().zip(sometimes::counts());
    points.map(|((name, _), count)| (*name, count + before(name))).filter(|(_, count)| *count < least).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Counts;

    fn report(seed: u64) -> Report {
        let violation = (seed == 7).then(|| "found".to_owned());
        Report { seed, violation, hash: seed, counts: Counts { faults: seed, ..Counts::default() } }
    }

    #[test]
    fn a_campaign_comes_to_the_same_on_any_number_of_threads() {
        let mut seen = Vec::new();
        let one = run(3..600, 1, report, |r| {
            seen.push(r.seed);
            true
        });
        assert_eq!(seen, (3..600).collect::<Vec<_>>());
        assert_eq!((one.seeds, one.violations, &one.failing), (597, 1, &vec![7]));
        assert_eq!(one, run(3..600, 3, report, |_| true));
    }

    #[test]
    fn a_seed_that_does_not_replay_is_a_violation() {
        let calls = AtomicU64::new(0);
        let fickle = |seed| Report { hash: calls.fetch_add(1, Ordering::Relaxed), ..report(seed) };
        let totals = run(90..110, 1, fickle, |_| true);
        assert_eq!(totals.failing, [99]);
    }

    #[test]
    fn a_ledger_is_gone_on_from() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = dir.path().join("ledger");
        assert_eq!(resume(&ledger, &(5..100)).expect("none there").next, 5);
        let totals = Totals { seeds: 25, steps: 7, failing: vec![9], violations: 1, ..Totals::default() };
        let mut met = vec![0; sometimes::ALL.len()];
        met[0] = 3;
        record(&ledger, "abc", &(5..30), &totals, &met).expect("written");
        record(&ledger, "abc", &(30..40), &Totals::default(), &met).expect("written");
        record(&ledger, "abc", &(1000..2000), &totals, &met).expect("written");
        let known = resume(&ledger, &(5..100)).expect("read");
        assert_eq!((known.next, known.totals.steps, &known.totals.failing), (40, 7, &vec![9]));
        assert_eq!(known.points, [(sometimes::ALL[0].0.to_owned(), 6)].into());
        assert_eq!(resume(&ledger, &(1000..3000)).expect("read").next, 2000, "a campaign of other seeds");
        assert_eq!(resume(&ledger, &(0..100)).expect("read").next, 0, "a ledger that leaves out the first seeds");
        std::fs::write(&ledger, "something else\n").expect("written");
        assert!(resume(&ledger, &(5..100)).is_err());
    }
}
