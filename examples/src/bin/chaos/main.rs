//! What `make chaos` does: real server processes with real disks, among proxies that misbehave, killed, stopped, cut off and
//! without room, under clients whose histories are checked for linearizability.

mod faults;
mod history;
mod hosts;
mod load;
mod proxy;
mod rng;

use clap::Parser;
use faults::{Faults, SMALL};
use history::Operation;
use hosts::{FIRST_MEMBERS, HOSTS, Hosts, SmallDisk};
use load::Load;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Faults on real processes, and a check that clients saw nothing of them but delays and errors.
#[derive(Debug, Parser)]
struct Options {
    /// Minutes of faults.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What the faults are drawn from [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Concurrent clients.
    #[arg(long, default_value_t = 12)]
    clients: u64,
    /// Where the hosts' directories go; they are removed if nothing was found.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Time between looks at what is due.
const LOOK: Duration = Duration::from_millis(50);
/// A cluster without faults serves everything within this time, or something is wrong.
const HEALED_WITHIN: Duration = Duration::from_secs(120);
/// Keys that are shown that are not linearizable.
const SHOWN: usize = 5;
/// Room on the small disk, in bytes.
const SMALL_DISK_BYTES: u64 = 2 << 30;

fn main() -> ExitCode {
    match chaos(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn chaos(options: &Options) -> Result<(), Box<dyn Error>> {
    let time_seed = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = options.seed.unwrap_or_else(time_seed);
    let mut builder = tempfile::Builder::new();
    builder.prefix("longboat-chaos-");
    let mut dir = match &options.dir {
        Some(dir) => builder.tempdir_in(dir)?,
        None => builder.tempdir()?,
    };
    println!("seed {seed}, {} minutes, {HOSTS} hosts in {}", options.minutes, dir.path().display());
    let run = run(options, seed, dir.path());
    if run.is_err() {
        dir.disable_cleanup(true);
        eprintln!(
            "the directories are kept; the small disk's is gone. Again: chaos --seed {seed} --minutes {}",
            options.minutes
        );
    }
    run
}

fn run(options: &Options, seed: u64, dir: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let small = SmallDisk::mount(&dir.join("small"), SMALL_DISK_BYTES);
    let mut data: [PathBuf; HOSTS] = std::array::from_fn(|n| dir.join(format!("host-{}", n + 1)));
    match &small {
        Some(small) => data[SMALL] = small.data(),
        None => println!("no file system can be mounted here: disks that fill up are left out"),
    }
    // Dropped before the disk that one of them is on.
    let mut faults = Faults::new(seed, small);
    let mut hosts = Hosts::start(&data)?;
    // Those that have all groups, whatever happens.
    let addresses = &hosts.addresses()[..FIRST_MEMBERS];
    let epoch = Instant::now();
    let before = load::ask_everything(addresses, 1, epoch, HEALED_WITHIN)?;
    let load = Load::start(options.clients, addresses, seed, epoch)?;
    let began = Instant::now();
    let lasts = Duration::from_secs_f64(60.0 * options.minutes);
    let mut said = Instant::now();
    while began.elapsed() < lasts {
        std::thread::sleep(LOOK);
        faults.step(&mut hosts)?;
        if said.elapsed() > Duration::from_secs(15) {
            said = Instant::now();
            let (done, lasted) = (load.counters.done.load(Ordering::Relaxed), began.elapsed().as_secs());
            println!("{lasted:4} s  {done} operations, {} faults", faults.counts.values().sum::<u64>());
        }
    }
    faults.heal(&mut hosts)?;
    let healing = Instant::now();
    let after = load::ask_everything(addresses, 2, epoch, HEALED_WITHIN)?;
    let healed = healing.elapsed();
    let counters = std::sync::Arc::clone(&load.counters);
    let mut keys = load.finish();
    before.into_iter().chain(after).for_each(|(key, operation)| keys[key].push(operation));

    println!();
    for (name, count) in &faults.counts {
        println!("{name:28} {count}");
    }
    println!("{:28} {}", "bytes changed", hosts.corrupted());
    println!();
    println!("{:28} {}", "operations done", counters.done.load(Ordering::Relaxed));
    println!("{:28} {}", "refused without effect", counters.refused.load(Ordering::Relaxed));
    println!("{:28} {}", "outcome not known", counters.unknown.load(Ordering::Relaxed));
    println!(
        "{:28} {:.1} s",
        "longest pause of a client",
        counters.longest_pause_ms.load(Ordering::Relaxed) as f64 / 1e3
    );
    println!("{:28} {:.1} s", "all served again after", healed.as_secs_f64());
    drop(hosts);
    judge(&keys)
}

fn judge(keys: &[Vec<Operation>]) -> Result<(), Box<dyn Error>> {
    let mut wrong = 0;
    for (n, operations) in keys.iter().enumerate() {
        if let Err(why) = history::check(operations) {
            wrong += 1;
            if wrong <= SHOWN {
                eprintln!("{} is not linearizable: {why}", load::key(n));
            }
        }
    }
    println!("{:28} {} of {}", "keys linearizable", keys.len() - wrong, keys.len());
    if wrong > 0 { Err(format!("{wrong} keys are not linearizable").into()) } else { Ok(()) }
}
