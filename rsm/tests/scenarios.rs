//! State machines of the three kinds, their sessions and snapshots, through the crate's public face.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

#[path = "scenarios/guards.rs"]
mod guards;
#[path = "scenarios/kinds.rs"]
mod kinds;
#[path = "scenarios/support.rs"]
mod support;

#[test]
fn every_guard_holds() {
    for (name, scenario) in guards::GUARDS {
        eprintln!("the scenario for {name}");
        scenario();
    }
}
