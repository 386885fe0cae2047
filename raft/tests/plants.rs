//! Plants every bug of this crate, one after the other, and sees that it is caught. A program of its own, because a bug is
//! planted for the whole process.
//!
//! Each has a scenario that it was planted against, a *guard*, which must fail with it and hold without it. For the table
//! that is printed, the bugs that others had and random groups have a go, too. `LONGBOAT_PLANT=name` plants that one alone and
//! shows what fails.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code, unused_imports)]

#[path = "scenarios/bad_input.rs"]
mod bad_input;
#[path = "scenarios/bugs.rs"]
mod bugs;
#[path = "scenarios/cluster.rs"]
mod cluster;
#[path = "scenarios/elections.rs"]
mod elections;
#[path = "scenarios/flow.rs"]
mod flow;
#[path = "scenarios/forwarding.rs"]
mod forwarding;
#[path = "scenarios/guards.rs"]
mod guards;
#[path = "scenarios/members.rs"]
mod members;
#[path = "scenarios/patience.rs"]
mod patience;
#[path = "scenarios/persistence.rs"]
mod persistence;
#[path = "scenarios/proposing.rs"]
mod proposing;
#[path = "scenarios/quiesce.rs"]
mod quiesce;
#[path = "scenarios/random.rs"]
mod random;
#[path = "scenarios/reading.rs"]
mod reading;
#[path = "scenarios/replication.rs"]
mod replication;
#[path = "scenarios/rules.rs"]
mod rules;
#[path = "scenarios/silence.rs"]
mod silence;
#[path = "scenarios/snapshots.rs"]
mod snapshots;

use longboat_raft::plant;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Whether this fails.
fn fails(scenario: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(scenario)).is_err()
}

/// The first seed of so many whose random group breaks a promise.
fn random_group(seeds: u64) -> Option<u64> {
    (1..=seeds).find(|seed| fails(|| random::play(*seed, 1500, seed % 2 == 0)))
}

/// The names of all bugs planted in this crate's code.
fn planted() -> BTreeSet<String> {
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let files = sources.map(|f| f.unwrap().path()).filter(|p| p.is_file() && !p.ends_with("plant.rs"));
    let text: String = files.map(|p| std::fs::read_to_string(p).unwrap()).collect();
    let names = text.split("plant::is(\"").skip(1).filter_map(|rest| rest.split('"').next());
    names.map(str::to_owned).collect()
}

fn main() {
    // What fails on purpose is not to be read, but for one that is asked for.
    let only = std::env::var("LONGBOAT_PLANT").ok();
    if only.is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
    assert!(random_group(20).is_none(), "random groups break promises with nothing planted");
    let mut wrong: Vec<String> = Vec::new();
    for (name, guard) in guards::GUARDS {
        if fails(guard) {
            wrong.push(format!("a guard of {name} fails with nothing planted"));
        }
    }
    let mut names: BTreeSet<&str> = guards::GUARDS.iter().map(|(name, _)| *name).collect();
    assert!(names.len() >= 25);
    assert_eq!(planted(), names.iter().map(|n| (*n).to_owned()).collect(), "planted, and guarded");
    names.retain(|name| only.as_deref().is_none_or(|only| only == *name));
    println!("{:<34} {:<8} {:<20} random groups", "planted", "guards", "other scenarios");
    for name in &names {
        plant::set(Some(name));
        let own: Vec<bool> = guards::GUARDS.iter().filter(|(n, _)| n == name).map(|(_, guard)| fails(guard)).collect();
        let others = bugs::BUGS.iter().filter(|(_, _, scenario)| fails(scenario)).count();
        let random = random_group(12).map_or("-".to_owned(), |seed| format!("seed {seed}"));
        plant::set(None);
        let caught = own.iter().filter(|caught| **caught).count();
        println!(
            "{name:<34} {:<8} {:<20} {random}",
            format!("{caught} of {}", own.len()),
            format!("{others} of {}", bugs::BUGS.len())
        );
        if caught < own.len() {
            wrong.push(format!("{name}: {} guards do not notice", own.len() - caught));
        }
    }
    println!("{} planted, {} wrong", names.len(), wrong.len());
    if !wrong.is_empty() {
        eprintln!("{}", wrong.join("\n"));
        std::process::exit(1);
    }
}
