//! The log store alone: batches of many groups, one sync each, then a reopening.
//!
//! This measures `longboat-logdb` below the public API, with the encoding of runs that the engine does, for comparing it with
//! other log stores.

use crate::cluster::BoxError;
use crate::process;
use crate::report::Latencies;
use longboat_io::{Job, JobState};
use longboat_logdb::{Bootstrap, LogDb, Record, Update};
use longboat_raft::{
    EntryKind, GroupId, HardState, Index, LogPos, Membership, Origin, ReplicaId, Run, RunBuilder, Term,
};
use serde::Serialize;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Batches between two looks at the store's housekeeping, as an engine under load would.
const HOUSEKEEPING_BATCHES: u64 = 16;
/// Bytes of background work per step.
const JOB_STEP_BYTES: usize = 1 << 20;
const TERM: Term = Term(1);

/// What is written.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Groups in each batch.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub groups: u64,
    /// Entries of each group in each batch.
    #[arg(long, value_name = "E", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub per_group: u64,
    /// Bytes of an entry's payload.
    #[arg(long, default_value_t = 16)]
    pub payload: usize,
    /// Seconds of writing.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub duration: f64,
    /// End after this many batches, if that is sooner.
    #[arg(long)]
    pub batches: Option<u64>,
    /// Compact each group's log to its last N entries as it grows, as periodic snapshots do; 0 keeps all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep: u64,
    /// Where the store's directory is made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What writing and reopening came to.
#[derive(Clone, Debug, Serialize)]
pub struct JournalReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `journal`.
    pub scenario: &'static str,
    /// Groups in each batch.
    pub groups: u64,
    /// Entries of each group in each batch.
    pub per_group: u64,
    /// Bytes of an entry's payload.
    pub payload: usize,
    /// Durable entries per second.
    pub entries_per_s: f64,
    /// Processor time of the process per entry, encoding and settling included, in microseconds.
    pub cpu_us_per_entry: f64,
    /// Processor time of the writing thread alone per entry, with its encoding, in microseconds.
    pub writer_cpu_us_per_entry: f64,
    /// From a batch's submission until it is durable.
    pub write_p50_us: f64,
    /// The same, 99th percentile.
    pub write_p99_us: f64,
    /// Bytes written to the journal per entry, padding included.
    pub journal_bytes_per_entry: f64,
    /// Closing not included: from opening until everything is known again.
    pub reopen_s: f64,
    /// Entries written.
    pub entries: u64,
}

impl JournalReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let rows = [
            ("entries", format!("{:.0}/s", self.entries_per_s)),
            ("processor time per entry", format!("{:.3} us", self.cpu_us_per_entry)),
            ("of it, the writing thread", format!("{:.3} us", self.writer_cpu_us_per_entry)),
            ("batch durable after, p50", format!("{:.0} us", self.write_p50_us)),
            ("batch durable after, p99", format!("{:.0} us", self.write_p99_us)),
            ("journal bytes per entry", format!("{:.1}", self.journal_bytes_per_entry)),
            ("reopened in", format!("{:.2} s", self.reopen_s)),
            ("entries written", format!("{}", self.entries)),
        ];
        let mut out =
            format!("journal: {} groups x {} entries of {} B per batch\n", self.groups, self.per_group, self.payload);
        for (name, value) in rows {
            out.push_str(&format!("  {name:<32} {value:>16}\n"));
        }
        out
    }
}

/// Writes to the store that `open` gives, closes it, and times `open` again.
///
/// # Errors
/// The store's.
pub fn run<L: LogDb>(
    options: &Options,
    mut open: impl FnMut() -> Result<L, BoxError>,
) -> Result<JournalReport, BoxError> {
    let mut log = open()?;
    commit(&mut log, (1..=options.groups).map(|g| bootstrap(GroupId(g))).collect())?;
    let before = log.stats();
    let mut settler = Settler::default();
    let payload = vec![7u8; options.payload];
    let mut latencies = Latencies::default();
    let (started, cpu, writer_cpu) = (Instant::now(), process::cpu_time(), process::thread_cpu_time());
    let (mut next, mut batches) = (Index(1), 0);
    while started.elapsed().as_secs_f64() < options.duration && options.batches.is_none_or(|max| batches < max) {
        let mut batch = log.spare().unwrap_or_default();
        batch.extend((1..=options.groups).map(|g| update(GroupId(g), next, options, &payload)));
        next = Index(next.0 + options.per_group);
        let submitted = Instant::now();
        commit(&mut log, batch)?;
        latencies.record(submitted.elapsed().as_nanos() as u64, 1);
        batches += 1;
        if batches % HOUSEKEEPING_BATCHES == 0
            && let Some(job) = log.background_job()
        {
            settler.start(job);
        }
    }
    let elapsed = started.elapsed().as_secs_f64();
    let (cpu, writer_cpu) = (process::cpu_time() - cpu, process::thread_cpu_time() - writer_cpu);
    let entries = batches * options.groups * options.per_group;
    let journal_bytes = log.stats().journal_bytes_written - before.journal_bytes_written;
    log.close()?;
    drop(log);
    settler.join();
    let reopening = Instant::now();
    let mut log = open()?;
    let reopen_s = reopening.elapsed().as_secs_f64();
    log.close()?;
    let per_entry = |time: Duration| time.as_secs_f64() * 1e6 / entries.max(1) as f64;
    Ok(JournalReport {
        system: "longboat",
        scenario: "journal",
        groups: options.groups,
        per_group: options.per_group,
        payload: options.payload,
        entries_per_s: entries as f64 / elapsed,
        cpu_us_per_entry: per_entry(cpu),
        writer_cpu_us_per_entry: per_entry(writer_cpu),
        write_p50_us: latencies.micros(0.5),
        write_p99_us: latencies.micros(0.99),
        journal_bytes_per_entry: journal_bytes as f64 / entries.max(1) as f64,
        reopen_s,
        entries,
    })
}

/// Runs the store's background jobs beside the writer, each on a thread of its own: there are few at a time.
#[derive(Debug, Default)]
struct Settler(Vec<JoinHandle<()>>);

impl Settler {
    fn start(&mut self, mut job: Box<dyn Job>) {
        self.0.retain(|thread| !thread.is_finished());
        self.0.push(thread::spawn(move || {
            loop {
                match job.step(JOB_STEP_BYTES) {
                    JobState::Again => {}
                    JobState::Blocked => thread::sleep(Duration::from_millis(1)),
                    JobState::Done => return,
                }
            }
        }));
    }

    /// Waits for the jobs under way: they hold the store's directory.
    fn join(&mut self) {
        for thread in self.0.drain(..) {
            thread.join().expect("a job reports its failures to the store");
        }
    }
}

/// Submits a batch and waits until it is durable.
fn commit(log: &mut impl LogDb, batch: Vec<Update>) -> Result<(), BoxError> {
    let seq = log.submit(batch);
    while log.poll()?.durable_through < seq {}
    Ok(())
}

fn bootstrap(group: GroupId) -> Update {
    let record = Bootstrap { replica: ReplicaId(1), membership: Membership::default(), ..Default::default() };
    Update { group, record: Some(Box::new(Record::Bootstrap(record))), ..Default::default() }
}

/// The next entries of a group. What the batch before wrote counts as committed.
fn update(group: GroupId, first: Index, options: &Options, payload: &[u8]) -> Update {
    let commit = Index(first.0 - 1);
    let compact_to = (options.keep > 0 && commit.0 > options.keep)
        .then(|| LogPos { term: TERM, index: Index(commit.0 - options.keep) });
    Update {
        group,
        hard_state: HardState { term: TERM, vote: ReplicaId(1), commit },
        runs: [run_of(first, options.per_group, payload)].into(),
        compact_to,
        ..Default::default()
    }
}

fn run_of(first: Index, entries: u64, payload: &[u8]) -> Run {
    let mut chunk = RunBuilder::new();
    for n in 0..entries {
        chunk.push(EntryKind::Command, first.0 + n, payload);
    }
    chunk.seal(TERM, first, Origin { replica: ReplicaId(1), start: 1 })
}
