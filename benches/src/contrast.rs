//! The same groups under load twice, with one thing made worse the second time: does it reach those that it should not?

use crate::client::ClientConfig;
use crate::cluster::{BoxError, Cluster, ClusterConfig};
use crate::load::{Class, measure};
use crate::machine::Counter;
use crate::process;
use crate::report::rows;
use crate::slow_link::SlowLink;
use serde::Serialize;
use std::path::PathBuf;

/// What the slow link carries on each connection, in bytes per second: far less than the load makes.
const SLOW_BYTES_PER_S: u64 = 256 << 10;
/// The host that is made worse.
const WORSE_HOST: usize = 2;

/// What is made worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// One group takes half of the load.
    Skewed,
    /// One host is behind a slow link.
    SlowFollower,
    /// One host is closed.
    DeadFollower,
}

impl Scenario {
    const fn name(self) -> &'static str {
        match self {
            Self::Skewed => "skewed",
            Self::SlowFollower => "slow-follower",
            Self::DeadFollower => "dead-follower",
        }
    }
}

/// How much load, for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Raft groups, each with a replica on each of the three hosts.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub groups: u32,
    /// Bytes of a proposal's command.
    #[arg(long, default_value_t = 128)]
    pub payload: usize,
    /// Proposals under way per group.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub inflight: u32,
    /// Seconds of load before each measurement.
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub warmup: f64,
    /// Seconds that are counted, each time.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub duration: f64,
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// The two measurements.
#[derive(Clone, Debug, Serialize)]
pub struct ContrastReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// The subcommand.
    pub scenario: &'static str,
    /// Groups.
    pub groups: u32,
    /// Bytes of a command.
    pub payload: usize,
    /// Proposals under way per group, before.
    pub inflight: u32,
    /// Completed proposals per second before, of all groups.
    pub before_per_s: f64,
    /// The same with one thing made worse; for `skewed` the hot group's too.
    pub worse_per_s: f64,
    /// The latter over the former.
    pub throughput_ratio: f64,
    /// 99th percentile of latency before, in microseconds.
    pub before_p99_us: f64,
    /// The same with one thing made worse; for `skewed` that of the other groups.
    pub worse_p99_us: f64,
    /// The latter over the former.
    pub p99_ratio: f64,
    /// Memory of the process before, in MB.
    pub before_rss_mb: f64,
    /// Memory at the end.
    pub worse_rss_mb: f64,
    /// Operations that failed while one thing was worse.
    pub errors: u64,
}

impl ContrastReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let table = [
            ("proposals before", format!("{:.0}/s", self.before_per_s)),
            ("proposals then", format!("{:.0}/s", self.worse_per_s)),
            ("ratio", format!("{:.2}", self.throughput_ratio)),
            ("p99 before", format!("{:.0} us", self.before_p99_us)),
            ("p99 then", format!("{:.0} us", self.worse_p99_us)),
            ("ratio of p99", format!("{:.2}", self.p99_ratio)),
            ("memory before", format!("{:.0} MB", self.before_rss_mb)),
            ("memory then", format!("{:.0} MB", self.worse_rss_mb)),
            ("errors", format!("{}", self.errors)),
        ];
        let (groups, inflight) = (self.groups, self.inflight);
        format!("{}: {groups} groups x {inflight} in flight, {} B\n", self.scenario, self.payload) + &rows(&table)
    }
}

/// Measures twice in directories under `dir`.
///
/// # Errors
/// When the cluster can't be started or closed.
pub fn run(scenario: Scenario, options: &Options, dir: PathBuf) -> Result<ContrastReport, BoxError> {
    let config = ClusterConfig { dir, groups: options.groups as usize, ..Default::default() };
    let mut cluster = Cluster::<Counter>::start(&config)?;
    let payload: &'static [u8] = Vec::leak(vec![7; options.payload]);
    let class = |groups: std::ops::Range<usize>, inflight: u32| {
        let inflight = inflight as usize;
        Class {
            groups,
            config: ClientConfig { inflight, call_max: inflight, reads_percent: 0, payload, rate: None },
            threads: 1,
        }
    };
    let all = 0..config.groups;
    let before = measure(&cluster, &[class(all.clone(), options.inflight)], options.warmup, options.duration);
    let before_rss = process::memory().resident_kb;
    let mut link = None;
    let classes = match scenario {
        // The same number under way: every other group gives half of its own to one.
        Scenario::Skewed => {
            let half = options.inflight / 2;
            vec![class(1..config.groups, half), class(0..1, half * (options.groups - 1))]
        }
        Scenario::SlowFollower => {
            let slow = SlowLink::start(cluster.address(WORSE_HOST), SLOW_BYTES_PER_S)?;
            cluster.reroute(WORSE_HOST, slow.address());
            link = Some(slow);
            vec![class(all, options.inflight)]
        }
        Scenario::DeadFollower => {
            cluster.close_host(WORSE_HOST)?;
            vec![class(all, options.inflight)]
        }
    };
    let worse = measure(&cluster, &classes, options.warmup, options.duration);
    let worse_rss = process::memory().resident_kb;
    let before_p99 = before.counts[0].latencies.micros(0.99);
    let worse_p99 = worse.counts[0].latencies.micros(0.99);
    let worse_per_s: f64 = (0..classes.len()).map(|class| worse.per_second(class)).sum();
    let report = ContrastReport {
        system: "longboat",
        scenario: scenario.name(),
        groups: options.groups,
        payload: options.payload,
        inflight: options.inflight,
        before_per_s: before.per_second(0),
        worse_per_s,
        throughput_ratio: worse_per_s / before.per_second(0).max(1.0),
        before_p99_us: before_p99,
        worse_p99_us: worse_p99,
        p99_ratio: worse_p99 / before_p99.max(1.0),
        before_rss_mb: before_rss as f64 / 1024.0,
        worse_rss_mb: worse_rss as f64 / 1024.0,
        errors: worse.counts.iter().map(|c| c.errors).sum(),
    };
    drop(link);
    cluster.close()?;
    Ok(report)
}
