//! Groups with nothing to do: what they cost, awake or silent, and with one host closed.

use crate::cluster::{BoxError, Cluster, ClusterConfig, HOSTS, HostFigures};
use crate::machine::Counter;
use crate::process;
use crate::report::rows;
use crate::restart::write_everywhere;
use serde::Serialize;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long a silent group was idle before it fell silent, in milliseconds.
const QUIESCE_AFTER_MS: u64 = 2_000;
/// Between two looks whether all are silent.
const LOOK: Duration = Duration::from_millis(50);
/// After this long with a group awake the run is given up.
const SILENCE_PATIENCE: Duration = Duration::from_secs(120);
/// Awake groups are left alone for this long before they are measured.
const SETTLE: Duration = Duration::from_secs(2);

/// What is idle, for how long.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("state").required(true))]
pub struct Options {
    /// Raft groups, each with a replica on each of the three hosts.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub groups: u32,
    /// Groups never fall silent: leaders heartbeat.
    #[arg(long, group = "state")]
    pub awake: bool,
    /// All groups have fallen silent before anything is measured.
    #[arg(long, group = "state")]
    pub quiesced: bool,
    /// One of the three hosts is closed before anything is measured.
    #[arg(long)]
    pub one_host_down: bool,
    /// Seconds that are measured.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = crate::throughput::seconds)]
    pub duration: f64,
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What idle groups cost.
#[derive(Clone, Debug, Serialize)]
pub struct IdleReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `idle`.
    pub scenario: &'static str,
    /// Groups, each with three replicas.
    pub groups: u32,
    /// Whether they were silent.
    pub quiesced: bool,
    /// Whether one of the three hosts was closed.
    pub one_host_down: bool,
    /// Processor time of the process over elapsed time.
    pub cores: f64,
    /// Memory per running replica, in KiB, with its state machine.
    pub rss_per_replica_kb: f64,
    /// Frames sent by all hosts, per second.
    pub messages_per_s: f64,
    /// Bytes of those frames, per second.
    pub bytes_per_s: f64,
    /// Syncs of the hosts' journals, per second.
    pub syncs_per_s: f64,
    /// Replicas that were silent at the end.
    pub silent: u64,
    /// From the last write, or from the closing of the host, until all were silent; 0 for awake ones.
    pub silent_after_s: f64,
}

impl IdleReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let state = if self.quiesced { "silent" } else { "awake" };
        let down = if self.one_host_down { ", one of them closed" } else { "" };
        let head = format!("idle: {} groups, {state}, on three hosts in this process{down}\n", self.groups);
        let table = [
            ("cores", format!("{:.4}", self.cores)),
            ("memory per replica", format!("{:.2} KB", self.rss_per_replica_kb)),
            ("messages", format!("{:.1} /s", self.messages_per_s)),
            ("bytes", format!("{:.0} /s", self.bytes_per_s)),
            ("syncs", format!("{:.1} /s", self.syncs_per_s)),
            ("silent replicas", self.silent.to_string()),
            ("silent after", format!("{:.2} s", self.silent_after_s)),
        ];
        head + &rows(&table)
    }
}

/// Everything that is read at both ends of the measured time.
struct Sample {
    at: Instant,
    cpu: Duration,
    hosts: HostFigures,
    syncs: u64,
}

impl Sample {
    fn take(cluster: &Cluster<Counter>) -> Self {
        let (hosts, syncs) = (cluster.host_figures(), cluster.log_figures().syncs);
        Self { at: Instant::now(), cpu: process::cpu_time(), hosts, syncs }
    }
}

/// Measures idle groups in directories under `dir`.
///
/// # Errors
/// When the cluster can't be started or closed, or groups that are to be silent are not.
pub fn run(options: &Options, dir: PathBuf) -> Result<IdleReport, BoxError> {
    let before = process::memory();
    let quiesce_after_ms = if options.quiesced { QUIESCE_AFTER_MS } else { 0 };
    let groups = options.groups as usize;
    let config = ClusterConfig { dir, groups, quiesce_after_ms: Some(quiesce_after_ms), ..Default::default() };
    let mut cluster = Cluster::<Counter>::start(&config)?;
    write_everywhere(&cluster, 1)?;
    let mut hosts = HOSTS;
    if options.one_host_down {
        cluster.close_host(HOSTS - 1)?;
        hosts -= 1;
    }
    let begun = Instant::now();
    if options.quiesced {
        await_silence(&cluster, (hosts * groups) as u64)?;
    }
    let silent_after = if options.quiesced { begun.elapsed() } else { Duration::ZERO };
    thread::sleep(SETTLE);
    let from = Sample::take(&cluster);
    thread::sleep(Duration::from_secs_f64(options.duration));
    let to = Sample::take(&cluster);
    let after = process::memory();
    let elapsed = (to.at - from.at).as_secs_f64();
    let report = IdleReport {
        system: "longboat",
        scenario: "idle",
        groups: options.groups,
        quiesced: options.quiesced,
        one_host_down: options.one_host_down,
        cores: (to.cpu - from.cpu).as_secs_f64() / elapsed,
        rss_per_replica_kb: after.resident_kb.saturating_sub(before.resident_kb) as f64 / (hosts * groups) as f64,
        messages_per_s: (to.hosts.frames_sent - from.hosts.frames_sent) as f64 / elapsed,
        bytes_per_s: (to.hosts.bytes_sent - from.hosts.bytes_sent) as f64 / elapsed,
        syncs_per_s: (to.syncs - from.syncs) as f64 / elapsed,
        silent: to.hosts.silent,
        silent_after_s: silent_after.as_secs_f64(),
    };
    cluster.close()?;
    Ok(report)
}

fn await_silence(cluster: &Cluster<Counter>, replicas: u64) -> Result<(), BoxError> {
    let begun = Instant::now();
    loop {
        let silent = cluster.host_figures().silent;
        if silent == replicas {
            return Ok(());
        }
        if begun.elapsed() > SILENCE_PATIENCE {
            return Err(format!("{silent} of {replicas} replicas are silent after {SILENCE_PATIENCE:?}").into());
        }
        thread::sleep(LOOK);
    }
}
