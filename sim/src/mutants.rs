//! Every planted bug against whatever is to catch it, within a budget each.
//!
//! A bug is looked for by the models that name it, then by the scenario of silent groups that is its guard, then, if whole
//! worlds are known to catch it within few seeds, by those; then by the tests of the crate that it is planted in, which are
//! run by `cargo test` once and whose table is read; and what none of these knows is looked for by worlds until its budget is
//! spent. A row says which it was.
//!
//! Must not know: what a bug breaks.

use crate::model::{self, Limits};
use crate::{Trace, room, run, silence};
use longboat_raft::plant;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

/// The distinct states of a model in which a bug that it names must show.
const STATES: usize = 2_000_000;

/// Bugs of the log store, which the tests of that crate catch all or fail.
const OF_THE_STORE: &[&str] = &[
    "vote-lost-on-recycle",
    "reopen-without-rewrite",
    "archive-recycled-before-flush",
    "archived-segment-lost-from-list",
    "remnants-dropped",
    "unmovable-segment-chosen-again",
    "moved-rows-hide-the-rest",
    "archived-files-stay-open",
    "sums-without-opening",
    "effects-joined-over-a-cut",
    "rotten-frame-passed-over",
    "neighbour-quarantined",
    "quarantine-not-marked",
    "quarantine-lost-on-recycle",
    "quarantined-under-any-id",
];

/// What became of one planted bug.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// What caught it; nothing if it was not caught.
    pub by: Option<String>,
    /// Seeds that were run.
    pub seeds: u64,
    /// Simulated time, in nanoseconds.
    pub nanos: u64,
    /// States of models that were visited.
    pub states: usize,
    /// Time taken, in seconds; that of a crate's tests is not told apart by bug.
    pub seconds: f64,
}

/// What the tests of crates catch.
struct Tests {
    caught: BTreeSet<String>,
}

impl Tests {
    /// Runs them.
    fn run() -> Self {
        let mut tables = ["longboat-raft", "longboat-rsm", "longboat-engine", "longboat"]
            .map(|package| Self::of(package, "plants").unwrap_or_default())
            .to_vec();
        let orders = ["longboat-rsm", "longboat-engine"].map(|package| Self::of(package, "interleavings"));
        tables.extend(orders.into_iter().flatten());
        // A line for each bug: its name, how many of its guards notice, of how many.
        let whole = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words[..], [_, n, "of", m, ..] if n == m && n != "0").then(|| words[0].to_owned())
        };
        let mut caught: BTreeSet<String> = tables.iter().flat_map(|table| table.lines()).filter_map(whole).collect();
        if Self::of("longboat-logdb", "plants").is_some() {
            caught.extend(OF_THE_STORE.iter().map(|name| (*name).to_owned()));
        }
        Self { caught }
    }

    /// What a crate's tests of planted bugs print; nothing if they fail.
    fn of(package: &str, test: &str) -> Option<String> {
        let arguments = ["test", "--quiet", "--release", "-p", package, "--features", "plant", "--test", test];
        let done = Command::new(env!("CARGO")).current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
    }
}

/// Plants every bug in turn, or one. `told` is given each row as it is known.
pub fn all(only: Option<&str>, budget: Duration, mut told: impl FnMut(&Row)) -> Vec<Row> {
    let mut tests = None;
    let planted = plant::ALL.iter().map(|(name, _)| *name).filter(|name| only.is_none_or(|only| only == *name));
    planted
        .map(|name| {
            let begun = Instant::now();
            let mut row = Row { name, ..Row::default() };
            plant::set(Some(name));
            by_models(&mut row);
            by_scenarios(&mut row);
            if plant::IN_WORLDS.contains(&name) {
                by_worlds(&mut row, begun, budget);
            }
            plant::set(None);
            row.seconds = begun.elapsed().as_secs_f64();
            if row.by.is_none() && tests.get_or_insert_with(Tests::run).caught.contains(name) {
                row.by = Some("the tests of its crate".to_owned());
            }
            if row.by.is_none() && !plant::IN_WORLDS.contains(&name) {
                let begun = Instant::now();
                plant::set(Some(name));
                by_worlds(&mut row, begun, budget);
                plant::set(None);
                row.seconds += begun.elapsed().as_secs_f64();
            }
            told(&row);
            row
        })
        .collect()
}

fn by_models(row: &mut Row) {
    for config in model::all().into_iter().filter(|c| c.plants.contains(&row.name)) {
        if row.by.is_some() {
            return;
        }
        let outcome = model::explore(&config, Limits { states: STATES });
        row.states += outcome.states;
        row.by = outcome.found.map(|_| format!("model {}", config.name));
    }
}

fn by_scenarios(row: &mut Row) {
    let mut guards = silence::GUARDS.iter().chain(room::GUARDS).filter(|(name, _)| *name == row.name);
    if row.by.is_none() && guards.any(|(_, scenario)| std::panic::catch_unwind(scenario).is_err()) {
        row.by = Some("a scenario of whole hosts".to_owned());
    }
}

fn by_worlds(row: &mut Row, begun: Instant, budget: Duration) {
    while row.by.is_none() && begun.elapsed() < budget {
        let report = run(row.seeds, Trace::default());
        row.by = report.violation.map(|_| format!("simulator seed {}", row.seeds));
        row.seeds += 1;
        row.nanos += report.counts.nanos;
    }
}

/// The table of `docs/planted-bugs.md`, row by row.
pub fn page(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let by = row.by.as_deref().unwrap_or("nothing");
        let (seeds, hours) = match row.seeds {
            0 => (String::new(), String::new()),
            seeds => (seeds.to_string(), format!("{:.4}", row.nanos as f64 / 3600e9)),
        };
        format!("| `{}` | {by} | {seeds} | {hours} |\n", row.name)
    };
    rows.iter().map(line).collect()
}

/// All rows and their sum, as one line of JSON.
pub fn json(rows: &[Row]) -> String {
    let table: Vec<_> = rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "name": row.name,
                "caught": row.by.is_some(),
                "by": row.by,
                "seeds": row.seeds,
                "simulated_hours": row.nanos as f64 / 3600e9,
                "states": row.states,
                "seconds": (row.seconds * 1000.0).round() / 1000.0,
            })
        })
        .collect();
    let caught = rows.iter().filter(|row| row.by.is_some()).count();
    serde_json::json!({ "planted": rows.len(), "caught": caught, "rows": table }).to_string()
}
