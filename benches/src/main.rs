//! `longboat-bench`: see `--help`.

use clap::{Parser, Subcommand};
use longboat_bench::contrast::{ContrastReport, Scenario};
use longboat_bench::create::CreateReport;
use longboat_bench::idle::IdleReport;
use longboat_bench::interference::InterferenceReport;
use longboat_bench::kill::KillReport;
use longboat_bench::probe::Probe;
use longboat_bench::replace::ReplaceReport;
use longboat_bench::restart::RestartReport;
use longboat_bench::snapshot::SnapshotReport;
use longboat_bench::transfer::TransferReport;
use longboat_bench::{
    BoxError, all, contrast, create, idle, interference, journal, kill, process, replace, restart, snapshot,
    throughput, transfer,
};
use longboat_io::RealDisk;
use longboat_logdb::{SharedLog, SharedLogConfig};
use longboat_raft::HostId;
use serde::Serialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

/// Load on Longboat, and what this machine allows.
///
/// Three hosts run in this process and speak over loopback TCP; every write is synced before it counts.
/// What the hosts have to say goes to standard error; RUST_LOG sets how much.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A fixed number of operations under way in each of many groups.
    ///
    /// Each operation is made on its group's leader through the public API; what completes is replaced at once.
    #[command(after_long_help = THROUGHPUT_FIELDS)]
    Throughput(throughput::Options),
    /// As `throughput`, of linearizable reads alone, or so many in a hundred as --reads says.
    #[command(after_long_help = THROUGHPUT_FIELDS)]
    Reads(throughput::Options),
    /// As `throughput`, half of it linearizable reads, or so many in a hundred as --reads says.
    #[command(after_long_help = THROUGHPUT_FIELDS)]
    Mixed(throughput::Options),
    /// The log store alone: batches of many groups, one sync each, then a reopening.
    ///
    /// One thread encodes runs, submits a batch and waits until it is durable; settling into RocksDB goes on beside it.
    #[command(after_long_help = JOURNAL_FIELDS)]
    Journal(journal::Options),
    /// Many groups created on three open hosts, until each has completed a write.
    Create(create::Options),
    /// Three hosts with many groups stopped in order and opened again, until each group has completed a write.
    Restart(restart::Options),
    /// Many groups with nothing to do: processor time, memory and messages, awake or silent.
    Idle(idle::Options),
    /// All scenarios in turn, each in a process of its own: under six minutes.
    All(all::Options),
    /// Half of the load on one group: does it reach the others' latency?
    Skewed(contrast::Options),
    /// One host behind a slow link: does it reach the groups' throughput?
    SlowFollower(contrast::Options),
    /// One host closed: does it reach the groups' throughput, and what does it keep in memory?
    DeadFollower(contrast::Options),
    /// Leadership of all groups moved from one host to another under load: three hosts and a client, each in a process.
    Transfer(transfer::Options),
    /// One replica of every group replaced under load, by a caller that is killed half-way and another that goes on: four hosts
    /// and a client, each in a process.
    Replace(replace::Options),
    /// Load in a process that is killed at random moments; what was acknowledged is looked for each time.
    Kill(kill::Options),
    /// Snapshots of many groups saved, sent and recovered from, against what this machine allows for the same bytes.
    Snapshot(snapshot::Options),
    /// What this machine allows: fdatasync, loopback round trip, sequential writes.
    Probe {
        /// Where a file of 64 MiB is made and removed [default: a new directory in the present one]
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Print one line of JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

/// What goes to standard error unless `RUST_LOG` says otherwise. The hosts of one process learn each other's ports one after
/// the other, and refuse who comes too early: nothing to warn of.
const LOG_DEFAULT: &str = "warn,longboat_transport=error";

const THROUGHPUT_FIELDS: &str = "\
Fields of the JSON line. Counts and times are those of the measured seconds, unless said otherwise.
  system, scenario          longboat, throughput
  groups, payload, inflight as given
  proposals_per_s           proposals that were committed, applied and seen by their client, per second
  reads_per_s               linearizable reads that were answered, per second
  cpu_us_per_op             user and system time of the whole process, clients included, per proposal or read, in us
  cores                     processor time over elapsed time
  p50_us, p99_us, p999_us   latency from call to completion as the client sees it, in us
  fdatasyncs                syncs of the three hosts' journals
  entries_per_fdatasync     log entries per sync; a proposal is an entry on each of three hosts
  peak_rss_mb               the most memory that the process held, from its start
  rss_per_replica_kb        memory per replica once all groups have leaders, before load
  start_s                   from the first host's opening until all replicas were started
  elected_s                 from the first host's opening until all groups had leaders
  errors                    operations that failed or were refused; others took their place";

const JOURNAL_FIELDS: &str = "\
Fields of the JSON line.
  system, scenario               longboat, journal
  groups, per_group, payload     as given
  entries_per_s                  durable entries per second
  cpu_us_per_entry               user and system time of the process per entry, settling included, in us
  writer_cpu_us_per_entry        that of the writing thread alone, with its encoding
  write_p50_us, write_p99_us     from a batch's submission until it is durable
  journal_bytes_per_entry        bytes written to the journal per entry, padding included
  reopen_s                       from opening the closed store until everything is known again
  entries                        entries written";

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longboat-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn load(options: &throughput::Options) -> Result<(), BoxError> {
    in_dir(options.dir.clone(), |dir| {
        let (report, counts) = throughput::run(options, dir.to_path_buf())?;
        println!("{}", if options.json { report.json() } else { report.table() });
        if let Some(error) = counts.last_error {
            eprintln!("the last error was: {error}");
        }
        Ok(())
    })
}

fn run(command: Command) -> Result<(), BoxError> {
    match command {
        Command::Throughput(options) => load(&options),
        Command::Reads(options) => load(&options.with_reads(100)),
        Command::Mixed(options) => load(&options.with_reads(50)),
        Command::Journal(options) => in_dir(options.dir.clone(), |dir| {
            let store = dir.join("store");
            let open = || -> Result<SharedLog, BoxError> {
                Ok(SharedLog::open(Arc::new(RealDisk), SharedLogConfig::new(&store, HostId(1)))?.log)
            };
            let report = journal::run(&options, open)?;
            std::fs::remove_dir_all(&store)?;
            println!("{}", if options.json { serde_json::to_string(&report)? } else { report.table() });
            Ok(())
        }),
        Command::Create(options) => in_dir(options.dir.clone(), |dir| {
            let report = create::run(&options, dir.to_path_buf())?;
            print(options.json, &report, CreateReport::table)
        }),
        Command::Restart(options) => in_dir(options.dir.clone(), |dir| {
            let report = restart::run(&options, dir.to_path_buf())?;
            print(options.json, &report, RestartReport::table)
        }),
        Command::Idle(options) => in_dir(options.dir.clone(), |dir| {
            let report = idle::run(&options, dir.to_path_buf())?;
            print(options.json, &report, IdleReport::table)
        }),
        Command::All(options) => in_dir(options.dir.clone(), |dir| {
            println!("{}", all::run(&options, dir)?.trim_end());
            Ok(())
        }),
        Command::Skewed(options) => contrast_in_dir(Scenario::Skewed, &options),
        Command::SlowFollower(options) => contrast_in_dir(Scenario::SlowFollower, &options),
        Command::DeadFollower(options) => contrast_in_dir(Scenario::DeadFollower, &options),
        Command::Kill(options) => in_dir(options.dir.clone(), |dir| {
            if options.child {
                return kill::child(dir);
            }
            let report = kill::run(&options, dir)?;
            print(options.json, &report, KillReport::table)?;
            if report.lost == 0 { Ok(()) } else { Err("acknowledged proposals were lost".into()) }
        }),
        Command::Transfer(options) => in_dir(options.dir.clone(), |dir| {
            let Some(report) = transfer::run(&options, dir)? else { return Ok(()) };
            print(options.json, &report, TransferReport::table)?;
            if report.writes_failed == 0 { Ok(()) } else { Err("writes failed".into()) }
        }),
        Command::Replace(options) => in_dir(options.dir.clone(), |dir| {
            let Some(report) = replace::run(&options, dir)? else { return Ok(()) };
            print(options.json, &report, ReplaceReport::table)?;
            if report.is_good() { Ok(()) } else { Err("not every replica was replaced, or writes were lost".into()) }
        }),
        Command::Snapshot(options) => snapshots(&options),
        Command::Probe { dir, json } => in_dir(dir, |dir| {
            let probe = Probe::run(dir)?;
            println!("{}", if json { serde_json::to_string(&probe)? } else { probe.table() });
            Ok(())
        }),
    }
}

fn snapshots(options: &snapshot::Options) -> Result<(), BoxError> {
    // First of all: what is made before would be left behind.
    options.memory_limit.map_or(Ok(()), process::limit_memory)?;
    in_dir(options.dir.clone(), |dir| {
        if options.interference {
            let report = interference::run(options, dir)?;
            return print(options.json, &report, InterferenceReport::table);
        }
        let report = snapshot::run(options, dir)?;
        print(options.json, &report, SnapshotReport::table)
    })
}

fn contrast_in_dir(scenario: Scenario, options: &contrast::Options) -> Result<(), BoxError> {
    in_dir(options.dir.clone(), |dir| {
        let report = contrast::run(scenario, options, dir.to_path_buf())?;
        print(options.json, &report, ContrastReport::table)
    })
}

fn print<R: Serialize>(json: bool, report: &R, table: impl FnOnce(&R) -> String) -> Result<(), BoxError> {
    println!("{}", if json { serde_json::to_string(report)? } else { table(report) });
    Ok(())
}

/// Runs `f` in `dir`, or in a new directory of the present one that is removed afterwards.
fn in_dir(dir: Option<PathBuf>, f: impl FnOnce(&Path) -> Result<(), BoxError>) -> Result<(), BoxError> {
    let made = match &dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("longboat-bench-").tempdir_in(".")?),
    };
    let dir = dir.as_deref().or(made.as_ref().map(tempfile::TempDir::path)).expect("given or made");
    std::fs::create_dir_all(dir)?;
    if process::is_in_memory(dir) {
        eprintln!("note: {} is in memory, where a sync costs nothing", dir.display());
    }
    f(dir)
}
