//! Every planted bug of this crate is caught by a scenario.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

#[path = "scenarios/guards.rs"]
mod guards;
#[path = "scenarios/support.rs"]
mod support;

use longboat_raft::plant;

/// One test, because a bug is planted for the whole process.
#[test]
fn every_planted_bug_is_caught() {
    for (_, scenario) in guards::GUARDS {
        scenario();
    }
    let missed: Vec<_> = guards::GUARDS
        .iter()
        .filter(|(name, scenario)| {
            plant::set(Some(name));
            let outcome = std::panic::catch_unwind(scenario);
            plant::set(None);
            outcome.is_ok()
        })
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
