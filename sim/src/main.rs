//! `longboat-sim`: runs seeds, replays one, plants bugs.

use clap::{Parser, Subcommand};
use longboat_raft::{GroupId, plant};
use longboat_sim::{Totals, Trace, model, run};
use std::ops::Range;
use std::process::ExitCode;

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
    if let Some(Command::Model { config, states, json, list, plant }) = &arguments.command {
        return check_models(config.as_deref(), *states, *json, *list, plant.as_deref());
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
    let totals = run_all(&arguments);
    if arguments.json {
        println!("{}", totals.json());
    }
    // A planted bug is to be caught, anything else is to find nothing.
    if (totals.violations > 0) == arguments.plant.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

fn run_all(arguments: &Arguments) -> Totals {
    if arguments.trace {
        longboat_sim::timeline::show_engine();
    } else {
        // A panic is reported as the violation that it is.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let mut totals = Totals::default();
    let seeds = arguments.seed.map_or(arguments.seeds.clone(), |seed| seed..seed + 1);
    for seed in seeds {
        let report = run(seed, Trace { on: arguments.trace, group: arguments.group.map(GroupId) });
        totals.add(&report);
        if arguments.seed.is_some() {
            eprintln!("seed {seed}: hash {:016x}, {:?}", report.hash, report.counts);
        }
        if let Some(violation) = &report.violation {
            eprintln!("seed {seed}: {violation}");
            eprintln!("replay: {}", replay(seed, arguments.plant.as_deref()));
            if arguments.plant.is_some() {
                break;
            }
        }
    }
    totals
}

/// The one command that replays a seed.
fn replay(seed: u64, plant: Option<&str>) -> String {
    let (features, plant) = match plant {
        Some(name) => (" --features plant", format!(" --plant {name}")),
        None => ("", String::new()),
    };
    format!("cargo run --release -p longboat-sim{features} -- --seed {seed} --trace{plant}")
}
