//! Snapshots of many groups: saved, sent to another host, recovered from, each against what the machine allows for the same
//! bytes.
//!
//! Two hosts in this process. Every group has one voter, on the first; a non-voting member that starts late, on the second,
//! is sent its snapshot; then the second host is opened again and recovers.

use crate::BoxError;
use crate::bulk::{Bulk, BulkCommand};
use crate::probe::{self, SnapshotProbe};
use crate::process;
use crate::report::rows;
use longboat::{
    Group, GroupConfig, GroupId, HostId, NodeHost, NodeHostConfig, ReplicaId, ReplicaStart, SnapshotOptions,
    SnapshotOutcome,
};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The first and the second host, and their replicas.
const SAVER: u64 = 1;
const RECEIVER: u64 = 2;
/// How long any step may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at whether a step is done.
const LOOK: Duration = Duration::from_millis(1);

/// How much is saved.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Raft groups.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub groups: u64,
    /// Bytes of all their states together: a number, or one with K, M or G.
    #[arg(long, default_value = "1G", value_parser = bytes)]
    pub bytes: u64,
    /// Measure the latency of proposals in other groups, without snapshots and while eight are saved at once.
    #[arg(long)]
    pub interference: bool,
    /// Seconds of each measurement of latency.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub duration: f64,
    /// Bytes of private memory that the process may have at all, threads' stacks and all maps included (`RLIMIT_DATA`): a number,
    /// or one with K, M or G. Beyond it an allocation fails, and the run with it.
    #[arg(long, value_parser = bytes)]
    pub memory_limit: Option<u64>,
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = number.parse().map_err(|e| format!("{e}"))?;
    number.checked_shl(shift).filter(|b| b >> shift == number).ok_or_else(|| "too much".to_owned())
}

/// What it came to. Rates are in millions of bytes per second.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `snapshot`.
    pub scenario: &'static str,
    /// Groups.
    pub groups: u64,
    /// Bytes of their states.
    pub bytes: u64,
    /// From the first request until every snapshot's record was durable.
    pub save_mb_s: f64,
    /// The same bytes written to a new file and synced.
    pub save_probe_mb_s: f64,
    /// The former over the latter.
    pub save_ratio: f64,
    /// From the start of the second host's replicas until every snapshot was installed there.
    pub transfer_mb_s: f64,
    /// The same bytes over loopback TCP into a new file, synced.
    pub transfer_probe_mb_s: f64,
    /// The former over the latter.
    pub transfer_ratio: f64,
    /// From the start of the second host's replicas, opened again, until every one had recovered.
    pub recover_mb_s: f64,
    /// The same bytes read from a file, checked with CRC32C, and copied.
    pub recover_probe_mb_s: f64,
    /// The former over the latter.
    pub recover_ratio: f64,
    /// Memory of the process with both hosts open, before the first save, in MB.
    pub idle_rss_mb: f64,
    /// The most since then.
    pub peak_rss_mb: f64,
    /// The limit of private memory under which it ran (`RLIMIT_DATA`), in MB; 0 for none.
    pub memory_limit_mb: f64,
}

impl SnapshotReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let row =
            |rate: f64, probe: f64, ratio: f64| format!("{rate:.0} MB/s, probe {probe:.0} MB/s, ratio {ratio:.2}");
        let table = [
            ("save", row(self.save_mb_s, self.save_probe_mb_s, self.save_ratio)),
            ("transfer", row(self.transfer_mb_s, self.transfer_probe_mb_s, self.transfer_ratio)),
            ("recover", row(self.recover_mb_s, self.recover_probe_mb_s, self.recover_ratio)),
            ("memory, idle", format!("{:.0} MB", self.idle_rss_mb)),
            ("memory, at most", format!("{:.0} MB", self.peak_rss_mb)),
            ("memory, limit", format!("{:.0} MB", self.memory_limit_mb)),
        ];
        format!("snapshot: {} groups, {} MB\n", self.groups, self.bytes >> 20) + &rows(&table)
    }
}

/// Measures in directories under `dir`.
///
/// # Errors
/// When a host can't be opened, a snapshot fails, or a step takes too long.
pub fn run(options: &Options, dir: &Path) -> Result<SnapshotReport, BoxError> {
    let hosts = [open(dir, SAVER)?, open(dir, RECEIVER)?];
    introduce(&hosts);
    let saver = start(&hosts[0], options, SAVER, ReplicaStart::bootstrap([(ReplicaId(SAVER), HostId(SAVER))]))?;
    let each = options.bytes / options.groups;
    for group in &saver {
        wait("a leader", || group.is_leader())?;
        group.propose(BulkCommand::Resize(each), PATIENCE)?.wait()?;
        group.add_non_voting(ReplicaId(RECEIVER), HostId(RECEIVER), PATIENCE)?.wait()?;
    }
    let idle_rss_mb = megabytes(process::memory().resident_kb);
    process::forget_peak();
    let rate = |since: Instant| options.bytes as f64 / 1e6 / since.elapsed().as_secs_f64();
    let mut probes = Probes { dir, bytes: options.bytes, peak_kb: 0 };

    let save_probe = probes.around(probe::write, || {
        let begun = Instant::now();
        save_all(&saver)?;
        Ok(rate(begun))
    })?;
    let mut receiver = Vec::new();
    let transfer_probe = probes.around(probe::transfer, || {
        let begun = Instant::now();
        receiver = start(&hosts[1], options, RECEIVER, ReplicaStart::Join)?;
        wait("installs", || receiver.iter().all(|g| g.info().snapshots_installed > 0))?;
        let rate = rate(begun);
        wait("recoveries", || receiver.iter().all(|g| g.info().applied >= g.info().snapshot_index))?;
        Ok(rate)
    })?;
    drop(receiver);
    let [first, second] = hosts;
    second.close(PATIENCE)?;
    let recover_probe = probes.around(probe::recover, || {
        let host = open(dir, RECEIVER)?;
        let begun = Instant::now();
        let groups = start(&host, options, RECEIVER, ReplicaStart::Restart)?;
        wait("recoveries", || groups.iter().all(|g| g.info().applied >= g.info().snapshot_index))?;
        let rate = rate(begun);
        host.close(PATIENCE)?;
        Ok(rate)
    })?;
    let peak_rss_mb = megabytes(probes.peak_kb);
    drop(saver);
    first.close(PATIENCE)?;
    for host in [SAVER, RECEIVER] {
        std::fs::remove_dir_all(host_dir(dir, host))?;
    }
    Ok(SnapshotReport {
        system: "longboat",
        scenario: "snapshot",
        groups: options.groups,
        bytes: options.bytes,
        save_mb_s: save_probe.0,
        save_probe_mb_s: save_probe.1,
        save_ratio: save_probe.0 / save_probe.1,
        transfer_mb_s: transfer_probe.0,
        transfer_probe_mb_s: transfer_probe.1,
        transfer_ratio: transfer_probe.0 / transfer_probe.1,
        recover_mb_s: recover_probe.0,
        recover_probe_mb_s: recover_probe.1,
        recover_ratio: recover_probe.0 / recover_probe.1,
        idle_rss_mb,
        peak_rss_mb,
        memory_limit_mb: options.memory_limit.unwrap_or(0) as f64 / f64::from(1 << 20),
    })
}

/// Probes before and after each step, so that both meet the same machine.
struct Probes<'a> {
    dir: &'a Path,
    bytes: u64,
    /// The most memory that any step took.
    peak_kb: u64,
}

impl Probes<'_> {
    /// The rate of a step, and the mean of its probe's before and after it.
    fn around(
        &mut self,
        probe: SnapshotProbe,
        step: impl FnOnce() -> Result<f64, BoxError>,
    ) -> Result<(f64, f64), BoxError> {
        let before = probe(self.dir, self.bytes)?;
        process::forget_peak();
        let rate = step()?;
        self.peak_kb = self.peak_kb.max(process::memory().peak_kb);
        let after = probe(self.dir, self.bytes)?;
        Ok((rate, 2.0 / (1.0 / before + 1.0 / after)))
    }
}

fn megabytes(kb: u64) -> f64 {
    kb as f64 / 1024.0
}

/// Snapshots of all groups, all asked for at once.
pub(crate) fn save_all(groups: &[Group<Bulk>]) -> Result<(), BoxError> {
    let options = || SnapshotOptions::default().with_compaction_overhead(0);
    let asked: Vec<_> = groups.iter().map(|g| g.request_snapshot(options(), PATIENCE)).collect::<Result<_, _>>()?;
    for pending in asked {
        match pending.wait()? {
            SnapshotOutcome::Saved { .. } => {}
            other => return Err(format!("a snapshot was to be saved: {other:?}").into()),
        }
    }
    Ok(())
}

fn host_dir(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("host-{id}"))
}

/// A host without limits: what it can do is measured.
fn open(dir: &Path, id: u64) -> Result<NodeHost, BoxError> {
    Ok(NodeHost::open(NodeHostConfig {
        data_dir: host_dir(dir, id),
        host_id: HostId(id),
        deployment_id: 1,
        snapshot_save_bytes_per_s: 0,
        snapshot_send_bytes_per_s: 0,
        snapshot_receive_bytes_per_s: 0,
        ..NodeHostConfig::default()
    })?)
}

fn introduce(hosts: &[NodeHost]) {
    for a in hosts {
        for b in hosts {
            a.set_peer_address(b.info().host, b.local_address());
        }
    }
}

fn start(host: &NodeHost, options: &Options, replica: u64, start: ReplicaStart) -> Result<Vec<Group<Bulk>>, BoxError> {
    let spec = |group| {
        let config = GroupConfig {
            group: GroupId(group),
            replica: ReplicaId(replica),
            election_timeout_ms: 500,
            heartbeat_interval_ms: 50,
            quiesce_after_ms: 0,
            ..GroupConfig::default()
        };
        (start.clone(), config, Bulk::default())
    };
    Ok(host.start_replicas((1..=options.groups).map(spec))?)
}

fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<(), BoxError> {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("no {what} after {PATIENCE:?}").into());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!((bytes("17"), bytes("3K"), bytes("1G")), (Ok(17), Ok(3 << 10), Ok(1 << 30)));
        assert!(bytes("x").is_err() && bytes("99999999999999G").is_err());
    }

    #[test]
    fn a_small_run_saves_sends_and_recovers_within_bounded_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let (groups, bytes) = (8, 64 << 20);
        let (interference, duration, json) = (false, 0.1, true);
        let options = Options { groups, bytes, interference, duration, memory_limit: None, dir: None, json };
        let report = run(&options, dir.path()).expect("runs");
        assert!(report.save_mb_s > 0.0 && report.transfer_mb_s > 0.0 && report.recover_mb_s > 0.0, "{report:?}");
        assert!(std::fs::read_dir(dir.path()).expect("there").next().is_none(), "nothing is left behind");
    }
}
