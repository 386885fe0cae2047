//! What `make demo` shows: three server processes under load, killed one by one and all together, lose nothing that
//! they acknowledged.

mod cluster;
mod load;
mod repair;

use clap::Parser;
use cluster::{Cluster, HOSTS, Plan};
use load::{Acknowledged, Load};
use longboat_examples::client::{Client, Reply};
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Three hosts of a replicated key-value server under load, killed again and again.
#[derive(Debug, Parser)]
struct Options {
    /// Kill all three hosts at once, this many times, and check every acknowledged write after each.
    #[arg(long, value_name = "TIMES")]
    torture: Option<usize>,
    /// Only start the three hosts, with clients' ports 6401 to 6403, until interrupted.
    #[arg(long, conflicts_with = "torture")]
    serve: bool,
    /// Lose two of the three hosts, and go on from exported snapshots on new ones.
    #[arg(long, conflicts_with_all = ["torture", "serve"])]
    repair: bool,
    /// Concurrent clients.
    #[arg(long, default_value_t = 48)]
    clients: usize,
    /// Raft groups.
    #[arg(long, default_value_t = 64)]
    groups: u16,
    /// Where the hosts' directories go; they are removed at the end.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Applied entries between snapshots: few, so that a host that is away for seconds has to be caught up by one.
const SNAPSHOT_ENTRIES: u64 = 1_000;
const COMPACTION_OVERHEAD: u64 = 100;
const ELECTION_TIMEOUT_MS: u64 = 500;
const SERVE_PORTS: [u16; HOSTS] = [6401, 6402, 6403];

fn main() -> ExitCode {
    let options = Options::parse();
    let shown = match options.torture {
        Some(times) => torture(&options, times),
        None if options.serve => serve(&options),
        None if options.repair => repair::repair(&options),
        None => demo(&options),
    };
    match shown {
        Ok(0) => ExitCode::SUCCESS,
        Ok(lost) => {
            eprintln!("demo: {lost} acknowledged writes were lost");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn plan(options: &Options) -> Plan {
    Plan {
        groups: options.groups,
        snapshot_entries: SNAPSHOT_ENTRIES,
        compaction_overhead: COMPACTION_OVERHEAD,
        election_timeout_ms: ELECTION_TIMEOUT_MS,
    }
}

fn directory(options: &Options) -> std::io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("longboat-demo-");
    match &options.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            builder.tempdir_in(dir)
        }
        None => builder.tempdir(),
    }
}

/// What the load does in its fifteen seconds.
const SCRIPT: &[(u64, Step)] =
    &[(4, Step::KillFirst), (8, Step::RestartFirst), (12, Step::KillBusiestLeader), (15, Step::End)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    KillFirst,
    RestartFirst,
    KillBusiestLeader,
    End,
}

/// Runs the script and reports; returns how many acknowledged writes were lost.
fn demo(options: &Options) -> Result<u64, Box<dyn Error>> {
    let start = Instant::now();
    let dir = directory(options)?;
    let mut progress = Progress::new();
    progress.say(&format!("starting {HOSTS} hosts with {} groups each", options.groups));
    let mut cluster = Cluster::start(dir.path(), plan(options), None)?;
    let elected = cluster.wait_ready()?;
    progress.say(&format!(
        "all groups have leaders after {:.1} s; {} clients begin",
        elected.as_secs_f64(),
        options.clients
    ));
    let load = Load::start("d", options.clients, &cluster.addresses())?;
    let caught_up = run_script(&mut cluster, &load, &mut progress)?;
    let written = load.finish();
    show_snapshots(&cluster, dir.path(), &mut progress)?;

    progress.say("killing all hosts, and restarting them");
    cluster.look();
    cluster.kill(0..HOSTS)?;
    for n in 0..HOSTS {
        cluster.start_host(n)?;
    }
    let restarted = cluster.wait_ready()?;
    let count = load::count(&written);
    progress.say(&format!("all serve again after {:.1} s; reading {count} writes back", restarted.as_secs_f64()));
    let lost = load::count_lost(&written, &cluster.addresses())?;
    cluster.look();
    let totals = cluster.totals();
    progress.end();
    println!();
    println!("writes acknowledged          {count}");
    println!("writes lost                  {lost}");
    println!("longest pause of a client    {:.2} s", load::longest_pause(&written).as_secs_f64());
    println!("snapshots taken              {}", totals.snapshots_saved);
    println!("log entries truncated        {}", totals.entries_truncated);
    println!("requests failed or cut off   {}", load::failures(&written));
    println!("caught up by snapshot        host 1, by {caught_up} snapshots, after 4 s away");
    println!("time                         {:.0} s", start.elapsed().as_secs_f64());
    println!();
    println!("To try it yourself:  {} --serve", std::env::current_exe()?.display());
    println!(
        "and then             redis-cli -p 6401 set boat long; redis-cli -p 6402 get boat; redis-cli -p 6403 info"
    );
    if caught_up == 0 {
        return Err("host 1 was not caught up by a snapshot".into());
    }
    Ok(lost)
}

/// A snapshot that a user asked for, and one that is exported.
fn show_snapshots(cluster: &Cluster, dir: &Path, progress: &mut Progress) -> Result<(), Box<dyn Error>> {
    let up = cluster.running().ok_or("no host runs")?;
    let mut client = Client::connect(cluster.addresses()[up], Duration::from_secs(20))?;
    let to = dir.join("exports");
    std::fs::create_dir(&to)?;
    let to = to.to_str().ok_or("the directory's name is no text")?.as_bytes();
    let mut ask = |what: &[&[u8]]| match client.ask(what)? {
        Reply::Simple(line) => Ok(line),
        other => Err(std::io::Error::other(format!("{other:?}"))),
    };
    let saved = ask(&[b"LONGBOAT", b"SNAPSHOT", b"1"])?;
    progress.say(&format!("host {} takes a snapshot of group 1 on request: {saved}", up + 1));
    let exported = ask(&[b"LONGBOAT", b"EXPORT", b"1", to])?;
    let (_, dir) = exported.split_once(" to ").ok_or("the export has no directory")?;
    let info = longboat::inspect_snapshot(Path::new(dir))?;
    let (index, bytes) = (info.meta.pos.index, info.file_bytes);
    progress.say(&format!("and exports one: index {index}, {bytes} bytes, every byte of it checked"));
    Ok(())
}

/// Kills and restarts while the load runs. Returns how many snapshots caught the first host up.
fn run_script(cluster: &mut Cluster, load: &Load, progress: &mut Progress) -> Result<u64, Box<dyn Error>> {
    let start = Instant::now();
    let mut caught_up = 0;
    let mut steps = SCRIPT.iter();
    let mut next = steps.next();
    while let Some((at, step)) = next {
        std::thread::sleep(Duration::from_millis(100));
        cluster.check_running()?;
        cluster.look();
        let elapsed = start.elapsed();
        progress.show(&format!("{:4.1} s  {} writes acknowledged", elapsed.as_secs_f64(), load.acknowledged()));
        if elapsed < Duration::from_secs(*at) {
            continue;
        }
        match step {
            Step::KillFirst => {
                progress.say("kill -9 of host 1");
                cluster.kill([0])?;
            }
            Step::RestartFirst => {
                progress.say("host 1 starts again");
                cluster.start_host(0)?;
            }
            Step::KillBusiestLeader => {
                let (leader, led) = (cluster.busiest_leader(), cluster.figures(cluster.busiest_leader()).groups_led);
                caught_up = cluster.figures(0).snapshots_installed;
                progress.say(&format!("kill -9 of host {}, which leads {led} groups", leader + 1));
                cluster.kill([leader])?;
            }
            Step::End => {}
        }
        next = steps.next();
    }
    Ok(caught_up)
}

/// Kills all hosts under full load, again and again. Returns how many acknowledged writes were lost.
fn torture(options: &Options, times: usize) -> Result<u64, Box<dyn Error>> {
    let dir = directory(options)?;
    let mut progress = Progress::new();
    let mut cluster = Cluster::start(dir.path(), plan(options), None)?;
    cluster.wait_ready()?;
    let mut all: Vec<Acknowledged> = Vec::new();
    let mut lost = 0;
    for round in 1..=times {
        let load = Load::start(&format!("t{round}-"), options.clients, &cluster.addresses())?;
        // Not the same moment of the hosts' own rhythms each time.
        std::thread::sleep(Duration::from_millis(1_000 + 137 * (round as u64 % 8)));
        cluster.look();
        cluster.kill(0..HOSTS)?;
        let written = load.finish();
        for n in 0..HOSTS {
            cluster.start_host(n)?;
        }
        let ready = cluster.wait_ready()?;
        let new = load::count(&written);
        all.extend(written);
        let missing = load::count_lost(&all, &cluster.addresses())?;
        lost += missing;
        progress.say(&format!(
            "kill {round} of {times}: {new} writes acknowledged before it, {} in all, {missing} lost; served again after {:.1} s",
            load::count(&all),
            ready.as_secs_f64()
        ));
    }
    cluster.look();
    let totals = cluster.totals();
    println!(
        "{times} kills of all hosts: {} writes acknowledged, {lost} lost, {} snapshots taken, {} log entries truncated",
        load::count(&all),
        totals.snapshots_saved,
        totals.entries_truncated
    );
    Ok(lost)
}

/// Starts the hosts and leaves them to their user.
fn serve(options: &Options) -> Result<u64, Box<dyn Error>> {
    let dir = directory(options)?;
    let plan = Plan { snapshot_entries: 100_000, compaction_overhead: 10_000, ..plan(options) };
    let mut cluster = Cluster::start(dir.path(), plan, Some(SERVE_PORTS))?;
    cluster.wait_ready()?;
    println!("three hosts with {} groups serve at ports 6401, 6402 and 6403; Enter ends them", options.groups);
    println!("  redis-cli -p 6401 set boat long; redis-cli -p 6402 get boat; redis-cli -p 6403 info");
    println!("  redis-benchmark -p 6401 -t set,get,incr,mset -n 200000 -c 50 -P 16 -r 100000 -q");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(0)
}

/// A line that is written over on a terminal; elsewhere a line every two seconds.
#[derive(Debug)]
struct Progress {
    terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: None }
    }

    /// What goes on now.
    fn show(&mut self, text: &str) {
        let mut out = std::io::stderr().lock();
        // A progress line that can't be written is no reason to stop.
        if self.terminal {
            let _ = write!(out, "\r\x1b[K{text}");
            let _ = out.flush();
        } else if self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(2)) {
            let _ = writeln!(out, "{text}");
            self.last = Some(Instant::now());
        }
    }

    /// What happened.
    fn say(&mut self, text: &str) {
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(std::io::stderr(), "{start}{text}");
    }

    fn end(&mut self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests;
