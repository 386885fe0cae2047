//! A replicated key-value store whose state lies on the disk, in a RocksDB of its own: one host, one group.
//!
//! It may be killed at any moment. What was acknowledged is there afterwards, and nothing is applied twice: `load` adds one
//! to a new key with every command, so that a key with a 2 would be a command that was applied again.

use bytes::Bytes;
use clap::{Parser, Subcommand};
use longboat::{
    Group, GroupConfig, GroupId, HostId, NodeHost, NodeHostConfig, OnDisk, ReplicaId, ReplicaStart, SnapshotOptions,
};
use longboat_examples::disk::{Change, DiskKv, Done, Question, Shown};
use std::collections::VecDeque;
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A replicated key-value store on the disk.
#[derive(Debug, Parser)]
struct Options {
    /// Directory for the log, the snapshots and the state.
    #[arg(long)]
    data: PathBuf,
    /// Applied entries between snapshots, behind which the log is let go of.
    #[arg(long, default_value_t = 1_000)]
    snapshot_entries: u64,
    /// Entries kept behind a snapshot.
    #[arg(long, default_value_t = 100)]
    compaction_overhead: u64,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Sets a key.
    Set {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Shows a key.
    Get {
        /// The key.
        key: String,
    },
    /// Shows all keys and values.
    Dump,
    /// Exports a snapshot of the whole state into a directory.
    Export {
        /// An existing directory.
        to: PathBuf,
    },
    /// Adds one to each of the keys FROM, FROM + 1 and so on, and prints each when that is acknowledged, until it is killed.
    Load {
        /// The first key.
        from: u64,
    },
}

const TIMEOUT: Duration = Duration::from_secs(30);
/// Commands of `load` that are on their way at once.
const WINDOW: usize = 64;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("disk_kv: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let host = NodeHost::open(NodeHostConfig {
        data_dir: options.data.join("host"),
        host_id: HostId(1),
        journal_segment_bytes: 4 << 20,
        journal_bytes_max: 64 << 20,
        payload_bytes_max: 1 << 20,
        ..NodeHostConfig::default()
    })?;
    let config = GroupConfig {
        group: GroupId(1),
        replica: ReplicaId(1),
        election_timeout_ms: 100,
        heartbeat_interval_ms: 20,
        snapshot_entries: options.snapshot_entries,
        compaction_overhead: options.compaction_overhead,
        ..GroupConfig::default()
    };
    let members = ReplicaStart::bootstrap([(ReplicaId(1), HostId(1))]);
    let state = DiskKv::new(options.data.join("state"));
    let group = host.start_replica(members, config, || OnDisk(state))?;
    carry_out(&group, &options.task)?;
    drop(group);
    Ok(host.close(TIMEOUT)?)
}

fn carry_out(group: &Group<OnDisk<DiskKv>>, task: &Task) -> Result<(), Box<dyn Error>> {
    let key = |key: &str| Bytes::copy_from_slice(key.as_bytes());
    match task {
        Task::Set { key: name, value } => {
            group.propose(Change::Set(key(name), key(value)), TIMEOUT)?.wait()?;
        }
        Task::Get { key: name } => {
            if let Shown::Value(Some(value)) = group.read(Question::Get(key(name)), TIMEOUT)?.wait()? {
                println!("{}", String::from_utf8_lossy(&value));
            }
        }
        Task::Dump => {
            if let Shown::All(all) = group.read(Question::All, TIMEOUT)?.wait()? {
                let mut out = std::io::stdout().lock();
                for (key, value) in all {
                    writeln!(out, "{} {}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&value))?;
                }
            }
        }
        Task::Export { to } => {
            println!("{:?}", group.request_snapshot(SnapshotOptions::export_to(to), TIMEOUT)?.wait()?);
        }
        Task::Load { from } => load(group, *from)?,
    }
    Ok(())
}

/// Goes on until the process is killed, or something fails.
fn load(group: &Group<OnDisk<DiskKv>>, from: u64) -> Result<(), Box<dyn Error>> {
    let mut open = VecDeque::new();
    let mut out = std::io::stdout().lock();
    // A snapshot in between is as good as a kill: both happen while commands are on their way.
    for n in from.. {
        open.push_back((n, group.propose(Change::Add(Bytes::from(n.to_string())), TIMEOUT)?));
        if open.len() >= WINDOW
            && let Some((n, pending)) = open.pop_front()
        {
            if pending.wait()? != Done::Number(1) {
                return Err(format!("{n} was there before").into());
            }
            writeln!(out, "{n}")?;
            out.flush()?;
        }
    }
    unreachable!("numbers do not end")
}
