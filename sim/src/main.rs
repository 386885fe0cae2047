//! `longboat-sim`: runs seeds, replays one, plants bugs.

use clap::{Parser, Subcommand};
use longboat_raft::{GroupId, plant, sometimes};
use longboat_sim::reduce::{Reduction, run_reduced, shrink};
use longboat_sim::{Totals, Trace, campaign, model};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Runs whole Longboat hosts on one thread, from seeds, with faults and checkers.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Seeds to run, from..to.
    #[arg(long, value_parser = seeds, default_value = "0..200")]
    seeds: Range<u64>,
    /// One seed to replay.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print what happens, as a timeline.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// With --trace: also the messages of this group.
    #[arg(long, requires = "trace")]
    group: Option<u64>,
    /// Without operators, who in half of the worlds change members, move leaders, stop and remove replicas.
    #[arg(long)]
    unattended: bool,
    /// Run the seed without this: hosts=3, group=1, without=Kill, calm-network .. as --shrink prints it.
    #[arg(long, requires = "seed", value_delimiter = ',')]
    reduce: Vec<Reduction>,
    /// Look for a smaller world in which the seed still fails.
    #[arg(long, requires = "seed", conflicts_with = "trace")]
    shrink: bool,
    /// Threads to run seeds on.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Go on after the seeds that this file has a line for, and add lines to it.
    #[arg(long, conflicts_with = "seed")]
    ledger: Option<PathBuf>,
    /// Fail if any of the points that a search must come past was met less often.
    #[arg(long, value_name = "TIMES")]
    points: Option<u64>,
    /// Print one line of JSON at the end.
    #[arg(long)]
    json: bool,
    /// Plant a bug and stop at the first seed that catches it (builds with the feature `plant` only).
    #[arg(long)]
    plant: Option<String>,
    /// List the bugs that can be planted.
    #[arg(long)]
    list_bugs: bool,
}

/// What to do instead of running seeds.
#[derive(Debug, Subcommand)]
enum Command {
    /// Walks through the states of small groups over the shipped core, and checks the rules in each.
    Model {
        /// The configuration; all of them if not given.
        #[arg(long)]
        config: Option<String>,
        /// How many distinct states to visit in each.
        #[arg(long, default_value_t = 1_000_000)]
        states: usize,
        /// Print a line of JSON for each configuration.
        #[arg(long)]
        json: bool,
        /// List the configurations.
        #[arg(long)]
        list: bool,
        /// Plant a bug, which is to be caught (builds with the feature `plant` only).
        #[arg(long)]
        plant: Option<String>,
    },
    /// Prints the page of the fault matrix.
    Matrix,
    /// Plants every bug of the registry in turn and looks whether it is caught (builds with the feature `plant` only).
    Mutants {
        /// The time for each, in minutes or seconds: 10m, 30s.
        #[arg(long, value_parser = duration, default_value = "10m")]
        budget: Duration,
        /// Print one line of JSON at the end.
        #[arg(long)]
        json: bool,
        /// Print the rows of docs/planted-bugs.md.
        #[arg(long, conflicts_with = "json")]
        page: bool,
        /// This one only.
        #[arg(long)]
        plant: Option<String>,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|e| format!("{text}: {e}"))?;
    match unit {
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(60 * number)),
        _ => Err(format!("{text}: minutes are given as 10m, seconds as 30s")),
    }
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("seeds are given as from..to")?;
    let number = |s: &str| s.parse::<u64>().map_err(|e| format!("{s}: {e}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err(format!("{text} holds no seed")) } else { Ok(range) }
}

#[cfg(feature = "plant")]
fn plant_bug(name: &str) -> Result<(), String> {
    if plant::ALL.iter().any(|(known, _)| *known == name) {
        plant::set(Some(name));
        return Ok(());
    }
    Err(format!("no planted bug is called {name}: see --list-bugs"))
}

#[cfg(not(feature = "plant"))]
fn plant_bug(_name: &str) -> Result<(), String> {
    Err("this build has no planted bugs: build with --features plant".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Command::Model { config, states, json, list, plant }) => {
            return check_models(config.as_deref(), *states, *json, *list, plant.as_deref());
        }
        Some(Command::Matrix) => {
            print!("{}", longboat_sim::matrix::table::page());
            return ExitCode::SUCCESS;
        }
        Some(Command::Mutants { budget, json, page, plant }) => {
            return plant_all(plant.as_deref(), *budget, *json, *page);
        }
        None => {}
    }
    if arguments.list_bugs {
        for (name, what) in plant::ALL {
            println!("{name:<34} {what}");
        }
        return ExitCode::SUCCESS;
    }
    if let Some(name) = &arguments.plant
        && let Err(error) = plant_bug(name)
    {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    if arguments.shrink {
        return shrink_seed(&arguments);
    }
    let totals = match run_all(&arguments) {
        Ok(totals) => totals,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if arguments.json {
        println!("{}", totals.json());
    }
    let rare = campaign::rarely_met(arguments.points.unwrap_or(0), &totals.points_before);
    for (point, count) in &rare {
        eprintln!("met {count} times only: {point}");
    }
    // A planted bug is to be caught, anything else is to find nothing.
    let as_expected = (totals.violations > 0) == arguments.plant.is_some();
    if as_expected && rare.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(not(feature = "plant"))]
fn plant_all(_only: Option<&str>, _budget: Duration, _json: bool, _page: bool) -> ExitCode {
    eprintln!("this build has no planted bugs: build with --features plant");
    ExitCode::from(2)
}

#[cfg(feature = "plant")]
fn plant_all(only: Option<&str>, budget: Duration, json: bool, page: bool) -> ExitCode {
    use longboat_sim::mutants;
    std::panic::set_hook(Box::new(|_| {}));
    let rows = mutants::all(only, budget, |row| {
        let by = row.by.as_deref().unwrap_or("NOT CAUGHT");
        eprintln!("{:<34} {by} ({} states, {} seeds, {:.1} s)", row.name, row.states, row.seeds, row.seconds);
    });
    if json {
        println!("{}", mutants::json(&rows));
    }
    if page {
        print!("{}", mutants::page(&rows));
    }
    let all_caught = rows.iter().all(|row| row.by.is_some());
    if all_caught && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Walks through one configuration or all.
fn check_models(config: Option<&str>, states: usize, json: bool, list: bool, plant: Option<&str>) -> ExitCode {
    if list {
        for config in model::all() {
            println!("{:<18} {}", config.name, config.about);
        }
        return ExitCode::SUCCESS;
    }
    let configs = match config.map(model::named) {
        None => model::all(),
        Some(Some(config)) => vec![config],
        Some(None) => {
            eprintln!("no configuration is called {}: see --list", config.unwrap_or_default());
            return ExitCode::from(2);
        }
    };
    if let Some(Err(error)) = plant.map(plant_bug) {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    // A panic is reported as the violation that it is.
    std::panic::set_hook(Box::new(|_| {}));
    let mut violations = 0;
    for config in configs {
        let outcome = model::explore(&config, model::Limits { states });
        if json {
            println!("{}", outcome.json(config.name));
        } else {
            println!("{}: {} states, {} deep, {:.1} s", config.name, outcome.states, outcome.depth, outcome.seconds);
        }
        if let Some(found) = outcome.found {
            violations += 1;
            eprintln!("{}: {} (after {} states)", config.name, found.what, found.states);
            found.trace.iter().for_each(|line| eprintln!("{line}"));
        }
    }
    if (violations > 0) == plant.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the seeds, in parts if a ledger is kept.
fn run_all(arguments: &Arguments) -> Result<Totals, String> {
    if arguments.trace {
        longboat_sim::timeline::show_engine();
    } else {
        // A panic is reported as the violation that it is.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let seeds = arguments.seed.map_or(arguments.seeds.clone(), |seed| seed..seed + 1);
    let Some(ledger) = &arguments.ledger else { return Ok(run_part(arguments, seeds)) };
    let failed = |e: std::io::Error| format!("{}: {e}", ledger.display());
    let known = campaign::resume(ledger, &seeds).map_err(failed)?;
    let (commit, mut totals) = (commit(), known.totals);
    totals.points_before = known.points;
    for from in (known.next..seeds.end).step_by(campaign::BLOCK as usize) {
        let part = from..seeds.end.min(from + campaign::BLOCK);
        let before = sometimes::counts();
        let came_to = run_part(arguments, part.clone());
        let met: Vec<u64> = sometimes::counts().iter().zip(before).map(|(now, before)| now - before).collect();
        campaign::record(ledger, &commit, &part, &came_to, &met).map_err(failed)?;
        totals.extend(&came_to);
    }
    Ok(totals)
}

fn run_part(arguments: &Arguments, seeds: Range<u64>) -> Totals {
    let trace = Trace { on: arguments.trace, group: arguments.group.map(GroupId) };
    let live = |seed| run_reduced(seed, !arguments.unattended, &arguments.reduce, trace);
    campaign::run(seeds, arguments.threads.max(1), live, |report| {
        let seed = report.seed;
        if arguments.seed.is_some() {
            eprintln!("seed {seed}: hash {:016x}, {:?}", report.hash, report.counts);
        }
        let Some(violation) = &report.violation else { return true };
        eprintln!("seed {seed}: {violation}");
        eprintln!("replay: {}", replay(arguments, seed, &arguments.reduce));
        arguments.plant.is_none()
    })
}

/// What the seeds are run at, if this is a checkout.
fn commit() -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asked = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(here).output();
    let known = asked.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    known.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn shrink_seed(arguments: &Arguments) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let seed = arguments.seed.expect("asked for with a seed only");
    let fails = |with: &[Reduction]| run_reduced(seed, !arguments.unattended, with, Trace::default()).violation;
    let told = |with: &[Reduction], what: &str| {
        eprintln!("still fails: {what}\n  {}", replay(arguments, seed, with));
    };
    match shrink(seed, !arguments.unattended, fails, told) {
        Some((with, what)) => {
            println!("{what}\n{}", replay(arguments, seed, &with));
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("seed {seed} does not fail");
            ExitCode::FAILURE
        }
    }
}

/// The one command that replays a seed.
fn replay(arguments: &Arguments, seed: u64, reductions: &[Reduction]) -> String {
    let features = if arguments.plant.is_some() { " --features plant" } else { "" };
    let mut command = format!("cargo run --release -p longboat-sim{features} -- --seed {seed} --trace");
    if arguments.unattended {
        command += " --unattended";
    }
    if !reductions.is_empty() {
        let list: Vec<String> = reductions.iter().map(ToString::to_string).collect();
        command += &format!(" --reduce {}", list.join(","));
    }
    if let Some(name) = &arguments.plant {
        command += &format!(" --plant {name}");
    }
    command
}
