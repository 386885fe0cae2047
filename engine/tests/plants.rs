//! Every planted bug of this crate is caught by a scenario.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

#[path = "rounds/alone.rs"]
mod alone;
#[path = "rounds/forwards.rs"]
mod forwards;
#[path = "rounds/guards.rs"]
mod guards;
#[path = "rounds/hosts.rs"]
mod hosts;
#[path = "rounds/hung_saves.rs"]
mod hung_saves;
#[path = "rounds/list.rs"]
mod list;
#[path = "rounds/memory.rs"]
mod memory;
#[path = "rounds/pipeline.rs"]
mod pipeline;
#[path = "rounds/replace.rs"]
mod replace;
#[path = "rounds/rotten.rs"]
mod rotten;
#[path = "rounds/shelf.rs"]
mod shelf;
#[path = "rounds/stalls.rs"]
mod stalls;
#[path = "rounds/storage.rs"]
mod storage;
#[path = "rounds/stores.rs"]
mod stores;
#[path = "rounds/strays.rs"]
mod strays;
#[path = "rounds/transfers.rs"]
mod transfers;
#[path = "rounds/trio.rs"]
mod trio;
#[path = "rounds/wire.rs"]
mod wire;

use longboat_raft::plant;

fn main() {
    let all = || guards::GUARDS.iter().chain(hosts::GUARDS).chain(transfers::GUARDS).chain(storage::GUARDS);
    let all = || {
        all()
            .chain(pipeline::GUARDS)
            .chain(stalls::GUARDS)
            .chain(hung_saves::GUARDS)
            .chain(strays::GUARDS)
            .chain(forwards::GUARDS)
            .chain(replace::GUARDS)
            .chain(memory::GUARDS)
            .chain(rotten::GUARDS)
    };
    for (_, scenario) in all() {
        scenario();
    }
    // From here on a panic is what is hoped for.
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<_> = all()
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
