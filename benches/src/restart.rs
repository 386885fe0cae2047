//! Restarting three hosts with many groups and a log that is kept: until all have leaders and take writes again.

use crate::cluster::{BoxError, Cluster, ClusterConfig, leader_of};
use crate::machine::{Counter, Load};
use crate::process;
use crate::report::rows;
use longboat::{Group, PendingBatch, RequestError};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The command of every entry that is written beforehand.
const PAYLOAD: &[u8] = &[7; 16];
/// The deadline of a write: groups may elect meanwhile.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Times that a refused or failed write is made again.
const ATTEMPTS: usize = 5;

/// What is restarted.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Raft groups, each with a replica on each of the three hosts.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub groups: u32,
    /// Entries in the logs of all groups together when the hosts stop.
    #[arg(long, default_value_t = 1_000_000)]
    pub entries: u64,
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What restarting came to. All times are from the first host's opening.
#[derive(Clone, Debug, Serialize)]
pub struct RestartReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `restart`.
    pub scenario: &'static str,
    /// Groups, each with three replicas.
    pub groups: u32,
    /// Entries in the logs of all groups together.
    pub entries: u64,
    /// Until all three hosts were open, one after the other.
    pub open_s: f64,
    /// Until all replicas were started.
    pub started_s: f64,
    /// Until all groups had leaders.
    pub leaders_s: f64,
    /// Until the first write was completed, made once all leaders were known.
    pub first_write_s: f64,
    /// Until every group had completed a write.
    pub all_written_s: f64,
    /// Processor time of the process, in seconds.
    pub cpu_s: f64,
}

impl RestartReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let head = format!("restart: {} groups, {} entries, three hosts in this process\n", self.groups, self.entries);
        let table = [
            ("hosts open after", format!("{:.2} s", self.open_s)),
            ("all replicas started after", format!("{:.2} s", self.started_s)),
            ("all leaders elected after", format!("{:.2} s", self.leaders_s)),
            ("first write completed after", format!("{:.2} s", self.first_write_s)),
            ("a write completed in each after", format!("{:.2} s", self.all_written_s)),
            ("processor time", format!("{:.2} s", self.cpu_s)),
        ];
        head + &rows(&table)
    }
}

/// Fills the groups, stops the hosts in order and opens them again, in directories under `dir`.
///
/// # Errors
/// When the cluster can't be started or closed, or a write fails.
pub fn run(options: &Options, dir: PathBuf) -> Result<RestartReport, BoxError> {
    let config = ClusterConfig { dir, groups: options.groups as usize, ..Default::default() };
    let cluster = Cluster::<Counter>::start(&config)?;
    // Every group has an entry already: its leader's first.
    let per_group = (options.entries / u64::from(options.groups)).max(2) - 1;
    write_everywhere(&cluster, per_group)?;
    cluster.stop()?;

    let (begun, cpu) = (Instant::now(), process::cpu_time());
    let cluster = Cluster::<Counter>::open(&config)?;
    write(&cluster.groups[0], 1)?.wait()?;
    let first_write = begun.elapsed();
    write_everywhere(&cluster, 1)?;
    let (all_written, cpu) = (begun.elapsed(), process::cpu_time() - cpu);
    let report = RestartReport {
        system: "longboat",
        scenario: "restart",
        groups: options.groups,
        entries: (per_group + 1) * u64::from(options.groups),
        open_s: cluster.opened.as_secs_f64(),
        started_s: cluster.started.as_secs_f64(),
        leaders_s: cluster.elected.as_secs_f64(),
        first_write_s: first_write.as_secs_f64(),
        all_written_s: all_written.as_secs_f64(),
        cpu_s: cpu.as_secs_f64(),
    };
    cluster.close()?;
    Ok(report)
}

/// A write under way, which can be made again.
struct Write<'a> {
    group: &'a [Group<Counter>; 3],
    count: u64,
    results: PendingBatch<u64>,
}

impl Write<'_> {
    fn wait(mut self) -> Result<(), RequestError> {
        for attempt in 1.. {
            let failed = self.results.wait().into_iter().find_map(Result::err);
            match failed {
                None => return Ok(()),
                Some(error) if attempt == ATTEMPTS => return Err(error),
                Some(_) => self.results = call(self.group, self.count)?,
            }
        }
        unreachable!("the loop ends by its attempts")
    }
}

fn call(group: &[Group<Counter>; 3], count: u64) -> Result<PendingBatch<u64>, RequestError> {
    let leader = leader_of(group).unwrap_or(0);
    group[leader].propose_batch(std::iter::repeat_n(Load::Sent(PAYLOAD), count as usize), TIMEOUT)
}

fn write(group: &[Group<Counter>; 3], count: u64) -> Result<Write<'_>, RequestError> {
    Ok(Write { group, count, results: call(group, count)? })
}

/// Writes `count` entries to every group and waits until all are completed.
///
/// # Errors
/// When a write fails again and again.
pub fn write_everywhere(cluster: &Cluster<Counter>, count: u64) -> Result<(), RequestError> {
    let writes: Result<Vec<_>, _> = cluster.groups.iter().map(|group| write(group, count)).collect();
    for write in writes? {
        write.wait()?;
    }
    Ok(())
}
