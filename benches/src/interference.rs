//! Do snapshots reach the latency of proposals in other groups? Three hosts, load on 48 groups at half of what they can do,
//! and the same again while eight large groups of one host are saved, over and over.
//!
//! The load is open: proposals are made when they are due, whether earlier ones have completed or not.

use crate::bulk::{Bulk, BulkCommand};
use crate::cluster::{BoxError, Cluster, ClusterConfig, HOSTS, leader_of};
use crate::report::{Latencies, rows};
use crate::snapshot::{Options, save_all};
use longboat::{Group, PendingBatch};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// Groups under load.
const GROUPS: usize = 48;
/// Groups that are saved.
const SAVED: usize = 8;
/// Proposals under way in each group while the top load is found.
const TOP_INFLIGHT: usize = 256;
/// Seconds of that.
const TOP_SECONDS: f64 = 3.0;
/// Between two bursts of the open load: each is for one group in turn.
const BURST: Duration = Duration::from_micros(250);
/// Bytes of a proposal.
static NOISE: [u8; 16] = [7; 16];
const PATIENCE: Duration = Duration::from_secs(60);

/// The two measurements.
#[derive(Clone, Debug, Serialize)]
pub struct InterferenceReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `snapshot-interference`.
    pub scenario: &'static str,
    /// Groups under load.
    pub groups: usize,
    /// Groups that are saved.
    pub saved_groups: usize,
    /// Bytes of their states.
    pub bytes: u64,
    /// Proposals per second that the groups can do.
    pub top_per_s: f64,
    /// Proposals per second that were made: half of that.
    pub offered_per_s: f64,
    /// Median latency without snapshots, in microseconds.
    pub before_p50_us: f64,
    /// 99th percentile of that.
    pub before_p99_us: f64,
    /// Median latency while snapshots are saved.
    pub during_p50_us: f64,
    /// 99th percentile of that.
    pub during_p99_us: f64,
    /// The latter 99th percentile over the former.
    pub p99_ratio: f64,
    /// Snapshots saved meanwhile.
    pub snapshots: u64,
    /// Bytes of these per second, in millions.
    pub saved_mb_s: f64,
    /// Proposals that failed.
    pub errors: u64,
}

impl InterferenceReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let table = [
            ("top load", format!("{:.0}/s", self.top_per_s)),
            ("offered", format!("{:.0}/s", self.offered_per_s)),
            ("p50 before, during", format!("{:.0} us, {:.0} us", self.before_p50_us, self.during_p50_us)),
            ("p99 before, during", format!("{:.0} us, {:.0} us", self.before_p99_us, self.during_p99_us)),
            ("ratio of p99", format!("{:.2}", self.p99_ratio)),
            ("snapshots", format!("{} at {:.0} MB/s", self.snapshots, self.saved_mb_s)),
            ("errors", format!("{}", self.errors)),
        ];
        format!("snapshot-interference: {} groups, {} saved\n", self.groups, self.saved_groups) + &rows(&table)
    }
}

/// Measures in directories under `dir`.
///
/// # Errors
/// When the cluster can't be started or closed, or a snapshot fails.
pub fn run(options: &Options, dir: &Path) -> Result<InterferenceReport, BoxError> {
    let config = ClusterConfig { dir: dir.to_path_buf(), groups: GROUPS + SAVED, ..Default::default() };
    let cluster = Cluster::<Bulk>::start(&config)?;
    let (loaded, large) = cluster.groups.split_at(GROUPS);
    for group in large {
        propose(group, BulkCommand::Resize(options.bytes / SAVED as u64))?;
    }
    let top_per_s = top(loaded);
    let offered_per_s = top_per_s / 2.0;
    let before = open_load(loaded, offered_per_s, options.duration);
    let (stop, saved) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    let during = thread::scope(|scope| {
        let saver = scope.spawn(|| save_until(large, &stop, &saved));
        // The first of them are under way.
        thread::sleep(Duration::from_millis(300));
        let during = open_load(loaded, offered_per_s, options.duration);
        stop.store(true, Ordering::Relaxed);
        saver.join().expect("the saving thread does not panic").map(|()| during)
    })?;
    let (snapshots, seconds) = (saved.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    let report = InterferenceReport {
        system: "longboat",
        scenario: "snapshot-interference",
        groups: GROUPS,
        saved_groups: SAVED,
        bytes: options.bytes,
        top_per_s,
        offered_per_s,
        before_p50_us: before.latencies.micros(0.5),
        before_p99_us: before.latencies.micros(0.99),
        during_p50_us: during.latencies.micros(0.5),
        during_p99_us: during.latencies.micros(0.99),
        p99_ratio: during.latencies.micros(0.99) / before.latencies.micros(0.99),
        snapshots,
        saved_mb_s: snapshots as f64 * (options.bytes / SAVED as u64) as f64 / 1e6 / seconds,
        errors: before.errors + during.errors,
    };
    cluster.close()?;
    Ok(report)
}

fn leader(group: &[Group<Bulk>; HOSTS]) -> &Group<Bulk> {
    &group[leader_of(group).unwrap_or(0)]
}

fn propose(group: &[Group<Bulk>; HOSTS], command: BulkCommand) -> Result<(), BoxError> {
    leader(group).propose(command, PATIENCE)?.wait()?;
    Ok(())
}

/// Saves the first host's replicas of the groups, all at once, over and over.
fn save_until(groups: &[[Group<Bulk>; HOSTS]], stop: &AtomicBool, saved: &AtomicU64) -> Result<(), BoxError> {
    let here: Vec<_> = groups.iter().map(|g| g[0].clone()).collect();
    let mut last = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for (group, here) in groups.iter().zip(&here) {
            propose(group, BulkCommand::Noise(&NOISE))?;
            // A read that is linearizable here: what was proposed is applied, so there is something new to save.
            last.push(here.read((), PATIENCE)?);
        }
        for read in last.drain(..) {
            read.wait()?;
        }
        save_all(&here)?;
        saved.fetch_add(here.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Proposals per second with many under way in each group.
fn top(groups: &[[Group<Bulk>; HOSTS]]) -> f64 {
    let mut calls: VecDeque<_> = groups.iter().map(|g| batch(leader(g), TOP_INFLIGHT)).collect();
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed().as_secs_f64() < TOP_SECONDS {
        for (at, group) in groups.iter().enumerate() {
            if let Some(call) = calls[at].take() {
                done += call.wait().into_iter().filter(Result::is_ok).count();
            }
            calls[at] = batch(leader(group), TOP_INFLIGHT);
        }
    }
    done as f64 / begun.elapsed().as_secs_f64()
}

fn batch(group: &Group<Bulk>, count: usize) -> Option<PendingBatch<u64>> {
    group.propose_batch(vec![BulkCommand::Noise(&NOISE); count], PATIENCE).ok()
}

/// What an open load came to.
#[derive(Debug, Default)]
struct Measured {
    latencies: Latencies,
    errors: u64,
}

/// Notes the moment at which a call completes.
struct Stamp {
    due: Instant,
    count: u64,
    latencies: Arc<Mutex<Latencies>>,
    noted: AtomicBool,
}

impl Stamp {
    fn note(&self) {
        if !self.noted.swap(true, Ordering::AcqRel) {
            self.latencies.lock().record(self.due.elapsed().as_nanos() as u64, self.count);
        }
    }
}

impl Wake for Stamp {
    fn wake(self: Arc<Self>) {
        self.note();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.note();
    }
}

/// Proposes to each group in turn, so many a second in all, for so many seconds.
fn open_load(groups: &[[Group<Bulk>; HOSTS]], per_s: f64, seconds: f64) -> Measured {
    let latencies = Arc::new(Mutex::new(Latencies::default()));
    let count = (per_s * BURST.as_secs_f64()).round().max(1.0) as usize;
    let bursts = (seconds / BURST.as_secs_f64()) as u32;
    let (begun, mut calls, mut errors) = (Instant::now(), VecDeque::new(), 0);
    for n in 0..bursts {
        let due = begun + BURST * n;
        while let Some(wait) = due.checked_duration_since(Instant::now()) {
            thread::sleep(wait);
        }
        let Some(mut call) = batch(leader(&groups[n as usize % groups.len()]), count) else {
            errors += count as u64;
            continue;
        };
        let noted = AtomicBool::new(false);
        let stamp = Arc::new(Stamp { due, count: count as u64, latencies: Arc::clone(&latencies), noted });
        let waker = Waker::from(Arc::clone(&stamp));
        if let Poll::Ready(results) = Pin::new(&mut call).poll(&mut Context::from_waker(&waker)) {
            stamp.note();
            errors += results.into_iter().filter(Result::is_err).count() as u64;
        } else {
            calls.push_back((stamp, call));
        }
        while calls.front().is_some_and(|(stamp, _)| stamp.noted.load(Ordering::Acquire)) {
            let (_, call) = calls.pop_front().expect("just seen");
            errors += call.wait().into_iter().filter(Result::is_err).count() as u64;
        }
    }
    for (_, call) in calls {
        errors += call.wait().into_iter().filter(Result::is_err).count() as u64;
    }
    let latencies = std::mem::take(&mut *latencies.lock());
    Measured { latencies, errors }
}
