//! Tests of the tests: planted bugs are caught, by few seeds and by few states of models. A plant holds for the whole
//! process: one test at a time plants.
#![cfg(feature = "plant")]

use longboat_raft::plant;
use longboat_sim::model::{self, Limits};
use longboat_sim::{Trace, room, run, silence};
use std::sync::Mutex;

/// Held by the test that plants.
static PLANTING: Mutex<()> = Mutex::new(());

/// The states of a model that a planted bug which it is to catch may survive.
const STATES_MAX: usize = 300_000;

/// The worlds that a planted bug may survive: far fewer than the seeds of one test run.
const SEEDS_MAX: u64 = 100;

#[test]
fn every_planted_bug_is_caught_within_a_hundred_worlds() {
    let _alone = PLANTING.lock();
    // A panic that a planted bug leads to is a way of being caught.
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    for (name, what) in plant::ALL.iter().filter(|(name, _)| plant::IN_WORLDS.contains(name)) {
        plant::set(Some(name));
        let caught = (0..SEEDS_MAX).find_map(|seed| Some((seed, run(seed, Trace::default()).violation?)));
        match caught {
            Some((seed, violation)) => println!("{name}: caught by seed {seed}: {violation}"),
            None => survivors.push(format!("{name} ({what})")),
        }
    }
    plant::set(None);
    let _ = std::panic::take_hook();
    assert!(survivors.is_empty(), "not caught in {SEEDS_MAX} worlds each: {survivors:?}");
}

#[test]
fn every_planted_bug_of_silence_and_of_full_disks_is_caught_by_its_scenario() {
    let _alone = PLANTING.lock();
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<&str> = silence::GUARDS
        .iter()
        .chain(room::GUARDS)
        .filter(|(name, scenario)| {
            plant::set(Some(name));
            std::panic::catch_unwind(scenario).is_ok()
        })
        .map(|(name, _)| *name)
        .collect();
    // A notice that is lost is made up for by the beats.
    plant::set(Some("gone-notice-dropped"));
    let made_up_for = std::panic::catch_unwind(silence::a_lost_word_of_a_stopped_leader_is_found_by_the_beats).is_ok();
    plant::set(None);
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not caught: {missed:?}");
    assert!(made_up_for, "without notices the beats must find what has stopped");
}

#[test]
fn every_model_catches_its_planted_bugs_within_few_states() {
    let _alone = PLANTING.lock();
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    for config in model::all() {
        assert!(config.plants.len() >= 2, "{} has too few planted bugs to catch", config.name);
        for name in config.plants {
            plant::set(Some(name));
            match model::explore(&config, Limits { states: STATES_MAX }).found {
                Some(found) => println!("{}: {name} caught after {} states: {}", config.name, found.states, found.what),
                None => survivors.push(format!("{name} by {}", config.name)),
            }
        }
    }
    plant::set(None);
    let _ = std::panic::take_hook();
    assert!(survivors.is_empty(), "not caught within {STATES_MAX} states: {survivors:?}");
}
