//! `longboat`: what an operator does with snapshots while no host runs on a directory, or with exports anywhere.
//!
//! Invariant: whatever is refused leaves everything as it was, and says why on the standard error; the exit code is 0 only
//! when all that was asked for is done. Must not know: how snapshots are laid out. Every step is a call of the library's.

mod members;
mod show;

use clap::{Args, Parser, Subcommand};
use longboat::{FirstMembers, GroupEpoch, GroupId, HostId, Import, NodeHostConfig, ReplicaId};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Tools for the data of Longboat hosts.
#[derive(Debug, Parser)]
#[command(name = "longboat", version)]
struct Options {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Exported snapshots: looks at them, checks them, makes them from a directory, brings them into one.
    #[command(subcommand)]
    Snapshot(Snapshot),
}

#[derive(Debug, Subcommand)]
enum Snapshot {
    /// Exports the newest snapshot of a group from the data directory of a host that does not run.
    ///
    /// What the log has behind that snapshot is not in it: a host that runs exports all that it has applied, by
    /// `request_snapshot` with `SnapshotOptions::export_to`. Snapshots of on-disk state machines hold no state and can
    /// only be exported like that.
    Export {
        #[command(flatten)]
        host: Host,
        /// The group.
        #[arg(long)]
        group: u64,
        /// An existing directory; the export becomes a directory of its own in it.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Print one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Says what exported snapshots hold; reads and checks every byte of them.
    Inspect {
        /// The exports' own directories.
        #[arg(required = true, value_name = "DIR")]
        dirs: Vec<PathBuf>,
        /// Print a line of JSON for each.
        #[arg(long)]
        json: bool,
    },
    /// Checks every byte of exported snapshots. Fails if one of them is damaged.
    Verify {
        /// The exports' own directories.
        #[arg(required = true, value_name = "DIR")]
        dirs: Vec<PathBuf>,
        /// Print a line of JSON for each.
        #[arg(long)]
        json: bool,
    },
    /// Brings exported snapshots into the data directory of a host that does not run, for groups that lost their quorum.
    ///
    /// Run it with the same exports and members on the host of every member, then start the hosts. What the directory had of the
    /// groups is replaced; replicas of the former members that come back are refused. All of the exports are
    /// imported, or none. After a crash in between, the same command finishes it.
    Import {
        #[command(flatten)]
        host: Host,
        /// The replica that this host is to have of each group.
        #[arg(long)]
        replica: u64,
        /// The members that the groups go on with; new ids for replicas on other hosts than before.
        #[arg(long, value_name = "ID=HOST[:witness|:non-voting],..", value_parser = members::parse)]
        members: FirstMembers,
        /// The epoch to go on in, the same on every host [default: the one after the export's]
        #[arg(long)]
        epoch: Option<u64>,
        /// The exports' own directories.
        #[arg(required = true, value_name = "DIR")]
        dirs: Vec<PathBuf>,
        /// Print a line of JSON for each.
        #[arg(long)]
        json: bool,
    },
}

/// Whose data directory it is.
#[derive(Debug, Args)]
struct Host {
    /// The host's data directory.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Its journal, if that is not in the data directory.
    #[arg(long, value_name = "DIR")]
    journal_dir: Option<PathBuf>,
    /// The host's id.
    #[arg(long)]
    host_id: u64,
}

impl Host {
    fn config(&self) -> NodeHostConfig {
        NodeHostConfig {
            data_dir: self.data_dir.clone(),
            journal_dir: self.journal_dir.clone(),
            host_id: HostId(self.host_id),
            ..NodeHostConfig::default()
        }
    }
}

fn main() -> ExitCode {
    let Tool::Snapshot(snapshot) = Options::parse().tool;
    match run(snapshot) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("longboat: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all was well.
fn run(snapshot: Snapshot) -> Result<bool, Box<dyn Error>> {
    match snapshot {
        Snapshot::Export { host, group, to, json } => {
            if !host.data_dir.is_dir() {
                return Err(format!("{} is no directory", host.data_dir.display()).into());
            }
            let dir = longboat::export_snapshot(&host.config(), GroupId(group), &to)?;
            show::inspected(&dir, &longboat::inspect_snapshot(&dir)?, json);
            Ok(true)
        }
        Snapshot::Inspect { dirs, json } => Ok(each(&dirs, |dir| {
            let found = longboat::inspect_snapshot(dir);
            found.map(|info| show::inspected(dir, &info, json)).map_err(|e| show::damaged(dir, &e, json))
        })),
        Snapshot::Verify { dirs, json } => Ok(each(&dirs, |dir| {
            let found = longboat::inspect_snapshot(dir);
            found.map(|info| show::verified(dir, &info, json)).map_err(|e| show::damaged(dir, &e, json))
        })),
        Snapshot::Import { host, replica, members, epoch, dirs, json } => {
            let import = |dir: &PathBuf| {
                let import = Import::new(dir, ReplicaId(replica), members.clone());
                epoch.iter().fold(import, |import, epoch| import.in_epoch(GroupEpoch(*epoch)))
            };
            let done = longboat::import_snapshots(&host.config(), dirs.iter().map(import))?;
            done.iter().for_each(|imported| show::imported(imported, json));
            Ok(true)
        }
    }
}

/// Does all, and tells whether all was well.
fn each(dirs: &[PathBuf], look: impl Fn(&PathBuf) -> Result<(), ()>) -> bool {
    dirs.iter().filter(|dir| look(dir).is_err()).count() == 0
}
