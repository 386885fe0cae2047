//! The load: as many operations under way as asked for, measured after a warm-up.

use crate::client::{ClientConfig, Counts};
use crate::cluster::{BoxError, Cluster, ClusterConfig, HOSTS};
use crate::load::{self, Class, Measured};
use crate::process;
use crate::report::Report;
use longboat::{Compression, Threads};
use std::path::PathBuf;

/// How much load, for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Raft groups, each with a replica on each of the three hosts.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub groups: u32,
    /// Bytes of a proposal's command.
    #[arg(long, default_value_t = 16)]
    pub payload: usize,
    /// Operations under way per group, all the time.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub inflight: u32,
    /// Operations per second, called when their time has come (an open loop; --inflight is only the largest call then)
    /// [default: as fast as they complete]
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// Linearizable reads among a hundred operations; the others are proposals.
    #[arg(long, value_name = "PCT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub reads: u32,
    /// Seconds of load before anything is counted.
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = seconds)]
    pub warmup: f64,
    /// Seconds that are counted.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds)]
    pub duration: f64,
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Client threads; the groups are divided among them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub clients: u32,
    /// The most operations of one call: what completes together is replaced by one call, or by several of this size
    /// [default: no limit]
    #[arg(long)]
    pub call_max: Option<usize>,
    /// Step workers of a host [default: the engine's]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub step_workers: usize,
    /// Apply workers of a host [default: the engine's]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub apply_workers: usize,
    /// Which thread runs which worker.
    #[arg(long, value_enum, default_value_t = Layout::Auto)]
    pub threads: Layout,
    /// Applied entries between snapshots of a group; 0 takes none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub snapshot_entries: u64,
    /// How commands are compressed; theirs are of one byte again and again, which shows the least that it costs.
    #[arg(long, value_enum, default_value_t = Compress::None)]
    pub compress: Compress,
    /// Smallest election timeout of a group, in milliseconds [default: the engine's]
    #[arg(long, value_name = "MS", default_value_t = 0, hide_default_value = true)]
    pub election_ms: u64,
    /// Time between a leader's heartbeats, in milliseconds [default: the engine's]
    #[arg(long, value_name = "MS", default_value_t = 0, hide_default_value = true)]
    pub heartbeat_ms: u64,
}

impl Options {
    /// The same with so many reads among a hundred operations, unless it has some.
    #[must_use]
    pub fn with_reads(self, reads: u32) -> Self {
        let reads = if self.reads == 0 { reads } else { self.reads };
        Self { reads, ..self }
    }
}

/// How commands are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Compress {
    /// Not at all.
    None,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// How a host's workers share threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// As the engine chooses, by the number of cores.
    Auto,
    /// One for each worker, and one for the sockets.
    Separate,
    /// One for all workers, and one for the log writer.
    Compact,
}

pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=86_400.0).contains(&s) => Ok(s),
        Ok(s) => Err(format!("{s} seconds, not between 0 and 86400")),
        Err(e) => Err(e.to_string()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if (1.0..=1e9).contains(&n) => Ok(n),
        Ok(n) => Err(format!("{n} per second, not between 1 and a billion")),
        Err(e) => Err(e.to_string()),
    }
}

impl Options {
    /// Tells a person what is going on. Programs read one line.
    fn say(&self, what: &str) {
        if !self.json {
            eprintln!("{what}");
        }
    }

    fn client_config(&self) -> ClientConfig {
        let inflight = self.inflight as usize;
        let call_max = self.call_max.unwrap_or(inflight).max(1);
        // Lives as long as the process: commands share it without counting references.
        let payload = Vec::leak(vec![7; self.payload]);
        let rate = self.rate.map(|rate| rate / f64::from(self.clients));
        ClientConfig { inflight, call_max, reads_percent: self.reads as usize, payload, rate }
    }

    fn cluster_config(&self, dir: PathBuf) -> ClusterConfig {
        ClusterConfig {
            dir,
            groups: self.groups as usize,
            step_workers: self.step_workers,
            apply_workers: self.apply_workers,
            threads: match self.threads {
                Layout::Auto => Threads::Auto,
                Layout::Separate => Threads::Separate,
                Layout::Compact => Threads::Compact,
            },
            snapshot_entries: self.snapshot_entries,
            entry_compression: match self.compress {
                Compress::None => Compression::None,
                Compress::Lz4 => Compression::Lz4,
                Compress::Zstd => Compression::Zstd,
            },
            election_timeout_ms: self.election_ms,
            heartbeat_interval_ms: self.heartbeat_ms,
            ..ClusterConfig::default()
        }
    }
}

/// Runs the load in directories under `dir`.
///
/// # Errors
/// When the cluster can't be started or closed.
pub fn run(options: &Options, dir: PathBuf) -> Result<(Report, Counts), BoxError> {
    let before = process::memory();
    options.say(&format!("starting {} groups on three hosts", options.groups));
    let cluster = Cluster::start(&options.cluster_config(dir))?;
    let idle = process::memory();
    options.say(&format!("load: {} s to warm up, then {} s measured", options.warmup, options.duration));
    let class =
        Class { groups: 0..cluster.groups.len(), config: options.client_config(), threads: options.clients as usize };
    let mut measured = load::measure(&cluster, &[class], options.warmup, options.duration);
    let replicas = (HOSTS * options.groups as usize) as f64;
    let mut report = report(options, &measured);
    report.peak_rss_mb = process::memory().peak_kb as f64 / 1024.0;
    report.rss_per_replica_kb = idle.resident_kb.saturating_sub(before.resident_kb) as f64 / replicas;
    report.start_s = cluster.started.as_secs_f64();
    report.elected_s = cluster.elected.as_secs_f64();
    cluster.close()?;
    Ok((report, measured.counts.swap_remove(0)))
}

fn report(options: &Options, measured: &Measured) -> Report {
    let Measured { counts, elapsed, cpu, log } = measured;
    let (counts, elapsed, cpu) = (&counts[0], *elapsed, *cpu);
    let operations = (counts.proposals + counts.reads) as f64;
    Report {
        system: "longboat",
        scenario: "throughput",
        groups: options.groups as usize,
        payload: options.payload,
        inflight: options.inflight as usize,
        proposals_per_s: counts.proposals as f64 / elapsed,
        reads_per_s: counts.reads as f64 / elapsed,
        cpu_us_per_op: cpu * 1e6 / operations.max(1.0),
        cores: cpu / elapsed,
        p50_us: counts.latencies.micros(0.5),
        p99_us: counts.latencies.micros(0.99),
        p999_us: counts.latencies.micros(0.999),
        fdatasyncs: log.syncs,
        entries_per_fdatasync: log.entries as f64 / log.syncs.max(1) as f64,
        peak_rss_mb: 0.0,
        rss_per_replica_kb: 0.0,
        start_s: 0.0,
        elected_s: 0.0,
        errors: counts.errors,
    }
}
