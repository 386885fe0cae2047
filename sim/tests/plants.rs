//! Tests of the tests: every planted bug is caught, by few seeds. A plant holds for the whole process: one test plants all.
#![cfg(feature = "plant")]

use longboat_raft::plant;
use longboat_sim::{Trace, run};

/// The worlds that a planted bug may survive: far fewer than the seeds of one test run.
const SEEDS_MAX: u64 = 100;

#[test]
fn every_planted_bug_is_caught_within_a_hundred_worlds() {
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
