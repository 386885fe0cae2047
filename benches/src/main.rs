//! `longboat-bench`: see `--help`.

use clap::{Parser, Subcommand};
use longboat_bench::probe::Probe;
use longboat_bench::{BoxError, process};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Load on Longboat, and what this machine allows.
///
/// Three hosts run in this process and speak over loopback TCP; every write is synced before it counts.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longboat-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), BoxError> {
    match command {
        Command::Probe { dir, json } => in_dir(dir, |dir| {
            let probe = Probe::run(dir)?;
            println!("{}", if json { serde_json::to_string(&probe)? } else { probe.table() });
            Ok(())
        }),
    }
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
