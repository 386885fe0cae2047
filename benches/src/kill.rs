//! Load in a process of its own that is killed at a random moment, again and again; after each time the hosts are opened
//! and everything that was acknowledged is looked for.
//!
//! The child prints one line an acknowledgement, and only when its completion has been seen. A kill keeps what the operating
//! system has in its caches: what a power failure takes is the simulator's subject.

use crate::chain::{Chain, Link, Serial};
use crate::cluster::{BoxError, Cluster, ClusterConfig, leader_of};
use crate::report::rows;
use longboat::PendingBatch;
use serde::Serialize;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Groups under load.
const GROUPS: usize = 16;
/// Batches under way in each group, and the proposals of one.
const BATCHES: usize = 4;
const BATCH: usize = 16;
/// Applied entries between snapshots: several are taken in each round.
const SNAPSHOT_ENTRIES: u64 = 5_000;
/// The shortest and the longest time that a child lives once its groups have leaders, in milliseconds.
const LIFE_MS: std::ops::Range<u64> = 100..1500;
/// The deadline of a request.
const TIMEOUT: Duration = Duration::from_secs(20);
/// What the child prints once it is under load.
const READY: &str = "ready";

/// How often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Times that the load is killed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Be the process under load; for this program's own use.
    #[arg(long, hide = true)]
    pub child: bool,
    /// The seed of the moments of killing [default: the time of day]
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What the rounds came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KillReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `kill`.
    pub scenario: &'static str,
    /// Times that the load was killed.
    pub rounds: u32,
    /// Proposals that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged proposals that were missing, or not in their place, after a reopening.
    pub lost: u64,
    /// The longest that opening, electing and reading everything took, in seconds.
    pub reopen_s_max: f64,
}

impl KillReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let table = [
            ("acknowledged proposals", format!("{}", self.acknowledged)),
            ("of them lost", format!("{}", self.lost)),
            ("longest reopening", format!("{:.2} s", self.reopen_s_max)),
        ];
        format!("kill: {} times SIGKILL under load, three hosts in one process\n", self.rounds) + &rows(&table)
    }
}

fn cluster_config(dir: &Path) -> ClusterConfig {
    ClusterConfig {
        dir: dir.to_path_buf(),
        groups: GROUPS,
        snapshot_entries: SNAPSHOT_ENTRIES,
        election_timeout_ms: 200,
        heartbeat_interval_ms: 20,
        ..Default::default()
    }
}

/// Runs the rounds in directories under `dir`.
///
/// # Errors
/// When the child can't be started, or hosts can't be opened after it was killed.
pub fn run(options: &Options, dir: &Path) -> Result<KillReport, BoxError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut chance = options.seed.unwrap_or(now.as_nanos() as u64);
    if !options.json {
        eprintln!("seed {chance}");
    }
    let mut report =
        KillReport { system: "longboat", scenario: "kill", rounds: options.rounds, ..KillReport::default() };
    let mut newest = vec![Link::default(); GROUPS];
    for round in 1..=options.rounds {
        chance = crate::chain::chained(chance, u64::from(round));
        let life = Duration::from_millis(LIFE_MS.start + chance % (LIFE_MS.end - LIFE_MS.start));
        report.acknowledged += one_life(dir, life, &mut newest)?;
        let begun = Instant::now();
        report.lost += look(dir, &newest)?;
        report.reopen_s_max = report.reopen_s_max.max(begun.elapsed().as_secs_f64());
        if !options.json {
            eprintln!("round {round}: {} acknowledged so far, {} lost", report.acknowledged, report.lost);
        }
    }
    for host in 1..=crate::cluster::HOSTS {
        std::fs::remove_dir_all(dir.join(format!("host-{host}")))?;
    }
    Ok(report)
}

/// One child, killed `life` after it is ready. Notes the newest acknowledged link of each group; returns how many
/// proposals were acknowledged.
fn one_life(dir: &Path, life: Duration, newest: &mut [Link]) -> Result<u64, BoxError> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["kill", "--child", "--dir"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().expect("its output is a pipe"));
    let mut line = String::new();
    lines.read_line(&mut line)?;
    if line.trim() != READY {
        child.kill()?;
        child.wait()?;
        return Err(format!("the process under load did not start: {line:?}").into());
    }
    let killer = thread::spawn(move || {
        thread::sleep(life);
        child.kill().and_then(|()| child.wait())
    });
    let mut acknowledged = 0;
    loop {
        line.clear();
        lines.read_line(&mut line)?;
        // The last line may be cut off by the kill.
        let Some(whole) = line.strip_suffix('\n') else { break };
        let fields: Option<Vec<u64>> = whole.split(' ').map(|f| f.parse().ok()).collect();
        let Some(&[group, fresh, count, hash]) = fields.as_deref() else {
            return Err(format!("the process under load said {whole:?}").into());
        };
        acknowledged += fresh;
        let slot = &mut newest[group as usize];
        if count > slot.count {
            *slot = Link { count, hash };
        }
    }
    killer.join().expect("killing does not panic")?;
    Ok(acknowledged)
}

/// Opens the hosts and compares every group with what was acknowledged. Returns how much is not there.
fn look(dir: &Path, newest: &[Link]) -> Result<u64, BoxError> {
    let cluster = Cluster::<Chain>::open(&cluster_config(dir))?;
    let mut lost = 0;
    for (group, acknowledged) in cluster.groups.iter().zip(newest) {
        // Every replica must have it, in the end; the linearizable read makes it catch up first.
        for replica in group {
            let here = replica.read(acknowledged.count, TIMEOUT)?.wait()?;
            if here != *acknowledged {
                eprintln!("group {} replica {}: {acknowledged:?} became {here:?}", replica.id(), replica.replica());
                lost += (acknowledged.count - here.count).max(1);
            }
        }
    }
    cluster.stop()?;
    Ok(lost)
}

/// The process under load: proposes until it is killed, or its parent is gone.
///
/// # Errors
/// When the hosts can't be opened or the parent's pipe is closed.
pub fn child(dir: &Path) -> Result<(), BoxError> {
    let cluster = Cluster::<Chain>::open(&cluster_config(dir))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{READY}")?;
    out.flush()?;
    // A parent that dies closes this pipe: then there is nobody to tell.
    thread::spawn(|| {
        let mut rest = String::new();
        let _ = std::io::stdin().read_line(&mut rest);
        std::process::exit(0);
    });
    let mut serial = u64::from(std::process::id()) << 40;
    let mut lanes: Vec<VecDeque<PendingBatch<Link>>> = (0..GROUPS).map(|_| VecDeque::new()).collect();
    loop {
        for (group, lane) in cluster.groups.iter().zip(&mut lanes) {
            let leader = leader_of(group).unwrap_or(0);
            while lane.len() < BATCHES {
                serial += BATCH as u64;
                match group[leader].propose_batch((0..BATCH).map(|n| Serial(serial + n as u64)), TIMEOUT) {
                    Ok(batch) => lane.push_back(batch),
                    Err(_) => break,
                }
            }
        }
        for (group, lane) in lanes.iter_mut().enumerate() {
            let Some(batch) = lane.pop_front() else { continue };
            let links: Vec<Link> = batch.wait().into_iter().flatten().collect();
            if let Some(last) = links.iter().max_by_key(|link| link.count) {
                writeln!(out, "{group} {} {} {}", links.len(), last.count, last.hash)?;
            }
        }
        out.flush()?;
    }
}
