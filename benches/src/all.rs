//! All scenarios in turn, each in a process of its own, and a table of what they came to.

use crate::cluster::BoxError;
use crate::plot;
use serde_json::{Map, Value};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Every run: a title, and the arguments.
const RUNS: &[(&str, &str)] = &[
    ("the machine", "probe"),
    ("one client", "throughput --groups 1 --inflight 1 --warmup 1 --duration 4"),
    ("one group", "throughput --groups 1 --inflight 2048 --warmup 2 --duration 5"),
    ("one group, 1 KB", "throughput --groups 1 --inflight 2048 --payload 1024 --warmup 2 --duration 5"),
    ("48 groups", "throughput --groups 48 --inflight 256 --warmup 2 --duration 5"),
    ("48 groups, deep", "throughput --groups 48 --inflight 2048 --warmup 2 --duration 5"),
    ("48 groups, 1 KB", "throughput --groups 48 --inflight 256 --payload 1024 --warmup 2 --duration 5"),
    (
        "48 groups, 1 KB, snapshots",
        "throughput --groups 48 --inflight 256 --payload 1024 --snapshot-entries 20000 --warmup 2 --duration 5",
    ),
    ("1,000 groups", "throughput --groups 1000 --inflight 16 --warmup 2 --duration 5"),
    ("1,000 groups, deep", "throughput --groups 1000 --inflight 128 --warmup 2 --duration 5"),
    ("10,000 groups", "throughput --groups 10000 --inflight 4 --warmup 4 --duration 6"),
    ("48 groups, reads", "throughput --groups 48 --inflight 256 --reads 100 --warmup 2 --duration 4"),
    ("1,000 groups, reads", "throughput --groups 1000 --inflight 16 --reads 100 --warmup 2 --duration 4"),
    ("48 groups, half reads", "throughput --groups 48 --inflight 256 --reads 50 --warmup 2 --duration 4"),
    ("one group takes half", "skewed --warmup 2 --duration 4"),
    ("a slow follower", "slow-follower --warmup 2 --duration 4"),
    ("a dead follower", "dead-follower --warmup 2 --duration 4"),
    ("creating 10,000 groups", "create --groups 10000"),
    ("restarting 10,000 groups", "restart --groups 10000 --entries 1000000"),
    ("the log store, 48 x 16", "journal --groups 48 --per-group 16 --duration 4"),
    ("the log store, 1,000 x 1", "journal --groups 1000 --per-group 1 --duration 4"),
    ("killed under load", "kill --rounds 3"),
    ("replicas replaced", "replace --groups 200"),
];

/// Fields that the table shows, where a run has them, with what they are called there.
const COLUMNS: &[(&str, &str)] = &[
    ("proposals_per_s", "proposals/s"),
    ("reads_per_s", "reads/s"),
    ("worse_per_s", "then, proposals/s"),
    ("throughput_ratio", "ratio"),
    ("p99_ratio", "ratio of p99"),
    ("entries_per_s", "entries/s"),
    ("cpu_us_per_op", "CPU us per operation"),
    ("writer_cpu_us_per_entry", "writer's CPU us per entry"),
    ("p50_us", "p50 us"),
    ("p99_us", "p99 us"),
    ("create_s", "created after s"),
    ("open_s", "open after s"),
    ("leaders_s", "all leaders after s"),
    ("all_written_s", "all written after s"),
    ("reopen_s", "reopened in s"),
    ("rss_per_replica_kb", "KB per replica"),
    ("peak_rss_mb", "peak MB"),
    ("replaced", "replaced"),
    ("resumed", "resumed"),
    ("acknowledged", "acknowledged"),
    ("lost", "lost"),
    ("errors", "errors"),
];

/// What to do with the results.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Also write `latest.json`, `latest.md` and `latest.svg` there.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Only the runs whose title contains this.
    #[arg(long)]
    pub only: Option<String>,
}

/// One run and its line of JSON.
struct Outcome {
    title: &'static str,
    arguments: &'static str,
    report: Map<String, Value>,
}

/// Runs all scenarios in directories under `dir`; returns what to print.
///
/// # Errors
/// When a scenario fails, or the results can't be written.
pub fn run(options: &Options, dir: &Path) -> Result<String, BoxError> {
    let begun = Instant::now();
    let wanted = |title: &str| options.only.as_ref().is_none_or(|part| title.contains(part.as_str()));
    let runs: Vec<_> = RUNS.iter().filter(|(title, _)| wanted(title)).collect();
    let mut outcomes = Vec::new();
    for (n, &&(title, arguments)) in runs.iter().enumerate() {
        progress(&format!("[{:3.0} s] {}/{}: {title}", begun.elapsed().as_secs_f64(), n + 1, runs.len()));
        outcomes.push(Outcome { title, arguments, report: one(arguments, dir)? });
    }
    progress(&format!("[{:3.0} s] done\n", begun.elapsed().as_secs_f64()));
    let json: Vec<Value> = outcomes.iter().map(Outcome::json).collect();
    let json = serde_json::to_string(&json)?;
    let table = table(&outcomes);
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out)?;
        std::fs::write(out.join("latest.json"), format!("{json}\n"))?;
        std::fs::write(out.join("latest.md"), markdown(&outcomes))?;
        std::fs::write(out.join("latest.svg"), plot::throughput_by_groups(&points(&outcomes))?)?;
    }
    Ok(if options.json { json } else { table })
}

/// One line that is written over on a terminal, and one after the other elsewhere.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    } else {
        eprintln!("{}", text.trim_end());
    }
}

fn one(arguments: &str, dir: &Path) -> Result<Map<String, Value>, BoxError> {
    let output = Command::new(std::env::current_exe()?)
        .args(arguments.split(' '))
        .arg("--json")
        .arg("--dir")
        .arg(dir)
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rfind(|line| line.starts_with('{'));
    match line {
        Some(line) if output.status.success() => Ok(serde_json::from_str(line)?),
        _ => Err(format!("`longboat-bench {arguments}` failed: {}, {text}", output.status).into()),
    }
}

impl Outcome {
    fn json(&self) -> Value {
        let mut report = self.report.clone();
        report.insert("title".to_owned(), self.title.into());
        report.insert("arguments".to_owned(), self.arguments.into());
        Value::Object(report)
    }

    fn number(&self, field: &str) -> Option<f64> {
        self.report.get(field).and_then(Value::as_f64)
    }

    /// What the table shows of it. The machine's own figures have names that say what they are.
    fn shown(&self) -> Vec<(&str, f64)> {
        if self.arguments == "probe" {
            return flat(&self.report);
        }
        let zero = |field: &str| matches!(field, "proposals_per_s" | "reads_per_s" | "errors");
        let column = |&(field, name): &(&str, &'static str)| {
            self.number(field).filter(|v| !(*v == 0.0 && zero(field))).map(|v| (name, v))
        };
        COLUMNS.iter().filter_map(column).collect()
    }
}

/// Numbers, and the medians of pairs of quantiles.
fn flat(report: &Map<String, Value>) -> Vec<(&str, f64)> {
    let number = |v: &Value| v.as_f64().or_else(|| v.get("p50").and_then(Value::as_f64));
    report.iter().filter_map(|(name, v)| number(v).map(|v| (name.as_str(), v))).collect()
}

fn amount(value: f64) -> String {
    if value.abs() >= 100.0 || value == value.trunc() { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn table(outcomes: &[Outcome]) -> String {
    let mut out = String::new();
    for outcome in outcomes {
        let shown: Vec<String> = outcome.shown().iter().map(|(name, v)| format!("{name} {}", amount(*v))).collect();
        out.push_str(&format!("{:<28} {}\n", outcome.title, shown.join(", ")));
    }
    out
}

fn markdown(outcomes: &[Outcome]) -> String {
    let mut out = String::from(
        "# The last report\n\nThree hosts in one process over loopback TCP, fsync on. Written by `make bench-report`.\n\n\
         | run | arguments | what it came to |\n| --- | --- | --- |\n",
    );
    for outcome in outcomes {
        let shown: Vec<String> = outcome.shown().iter().map(|(name, v)| format!("{name} {}", amount(*v))).collect();
        out.push_str(&format!("| {} | `{}` | {} |\n", outcome.title, outcome.arguments, shown.join("; ")));
    }
    out.push_str("\n![Throughput and p99 against groups](latest.svg)\n");
    out
}

/// Proposals of 16 bytes by number of groups: of several runs of as many groups the one with the most in flight.
fn points(outcomes: &[Outcome]) -> Vec<plot::Point> {
    let mut points: Vec<plot::Point> = Vec::new();
    for outcome in outcomes {
        let fields = ["groups", "inflight", "payload", "proposals_per_s", "reads_per_s", "p99_us"];
        let Some(values) = fields.iter().map(|f| outcome.number(f)).collect::<Option<Vec<f64>>>() else { continue };
        let [groups, inflight, payload, per_s, reads, p99_us] = values[..] else { continue };
        if payload != 16.0 || reads > 0.0 || inflight < 2.0 {
            continue;
        }
        points.retain(|p| p.groups != groups || p.inflight > inflight);
        if points.iter().all(|p| p.groups != groups) {
            points.push(plot::Point { groups, inflight, per_s, p99_ms: p99_us / 1e3 });
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(arguments: &'static str, json: &str) -> Outcome {
        Outcome { title: "t", arguments, report: serde_json::from_str(json).expect("an object") }
    }

    #[test]
    fn the_plot_takes_the_deepest_run_of_each_number_of_groups() {
        let run = |groups, inflight, per_s| {
            let json = format!(
                r#"{{"groups":{groups},"inflight":{inflight},"payload":16,"proposals_per_s":{per_s},"reads_per_s":0.0,"p99_us":5000.0}}"#
            );
            outcome("throughput", &json)
        };
        let points = points(&[run(48, 256, 10.0), run(48, 2048, 20.0), run(1000, 16, 5.0), run(1, 1, 1.0)]);
        let seen: Vec<_> = points.iter().map(|p| (p.groups, p.per_s, p.p99_ms)).collect();
        assert_eq!(seen, [(48.0, 20.0, 5.0), (1000.0, 5.0, 5.0)]);
    }

    #[test]
    fn the_table_leaves_out_what_a_run_has_nothing_of() {
        let text = table(&[outcome("throughput", r#"{"proposals_per_s":12345.6,"reads_per_s":0.0,"p99_us":1.25}"#)]);
        assert_eq!(text.trim_end(), format!("{:<28} proposals/s 12346, p99 us 1.250", "t"));
    }
}
