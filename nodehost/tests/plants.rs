//! Every planted bug of this crate is caught by a scenario.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

#[path = "hosts/import_guards.rs"]
mod import_guards;
#[path = "hosts/machine.rs"]
mod machine;

use longboat_raft::plant;

fn main() {
    for (_, scenario) in import_guards::GUARDS {
        scenario();
    }
    // From here on a panic is what is hoped for.
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<_> = import_guards::GUARDS
        .iter()
        .filter(|(name, scenario)| {
            plant::set(Some(name));
            let outcome = std::panic::catch_unwind(scenario);
            plant::set(None);
            // Read by whoever puts all crates' planted bugs into one table: how many scenarios notice, of how many.
            println!("{name} {} of 1", u32::from(outcome.is_err()));
            outcome.is_ok()
        })
        .map(|(name, _)| *name)
        .collect();
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
