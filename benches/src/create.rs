//! Creating many groups on three open hosts: until all have leaders, and until each has taken a write.

use crate::cluster::{BoxError, Cluster, ClusterConfig, HOSTS};
use crate::machine::Counter;
use crate::process;
use crate::report::rows;
use crate::restart::write_everywhere;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// What is created.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Raft groups, each with a replica on each of the three hosts.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub groups: u32,
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What creating came to.
#[derive(Clone, Debug, Serialize)]
pub struct CreateReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `create`.
    pub scenario: &'static str,
    /// Groups, each with three replicas.
    pub groups: u32,
    /// From the first call until all replicas were started on all hosts.
    pub create_s: f64,
    /// From the first call until all groups had leaders.
    pub leaders_s: f64,
    /// From the first call until every group had completed a write.
    pub all_written_s: f64,
    /// Processor time of the process from the first call to the last write, in seconds.
    pub cpu_s: f64,
    /// Memory per replica once each group has completed a write, in KiB.
    pub rss_per_replica_kb: f64,
    /// Bytes on the disk of all three hosts together, in MB.
    pub disk_mb: f64,
}

impl CreateReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let head = format!("create: {} groups on three hosts in this process, fsync on\n", self.groups);
        let table = [
            ("all replicas started after", format!("{:.2} s", self.create_s)),
            ("all leaders elected after", format!("{:.2} s", self.leaders_s)),
            ("a write completed in each after", format!("{:.2} s", self.all_written_s)),
            ("processor time", format!("{:.2} s", self.cpu_s)),
            ("memory per replica", format!("{:.1} KB", self.rss_per_replica_kb)),
            ("disk, all hosts", format!("{:.1} MB", self.disk_mb)),
        ];
        head + &rows(&table)
    }
}

/// Creates the groups in directories under `dir`.
///
/// # Errors
/// When the cluster can't be started or closed, or a write fails.
pub fn run(options: &Options, dir: PathBuf) -> Result<CreateReport, BoxError> {
    let (before, cpu) = (process::memory(), process::cpu_time());
    let config = ClusterConfig { dir, groups: options.groups as usize, ..Default::default() };
    let cluster = Cluster::<Counter>::start(&config)?;
    let elected = Instant::now();
    write_everywhere(&cluster, 1)?;
    let written = cluster.elected + elected.elapsed();
    let (after, cpu) = (process::memory(), process::cpu_time() - cpu);
    let since_open = |at: std::time::Duration| (at - cluster.opened).as_secs_f64();
    let report = CreateReport {
        system: "longboat",
        scenario: "create",
        groups: options.groups,
        create_s: since_open(cluster.started),
        leaders_s: since_open(cluster.elected),
        all_written_s: since_open(written),
        cpu_s: cpu.as_secs_f64(),
        rss_per_replica_kb: after.resident_kb.saturating_sub(before.resident_kb) as f64
            / (HOSTS as f64 * f64::from(options.groups)),
        disk_mb: cluster.disk_bytes() as f64 / 1e6,
    };
    cluster.close()?;
    Ok(report)
}
