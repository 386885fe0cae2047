//! The seeded simulator of Longboat: whole hosts on one thread, with faults and checkers.
//!
//! The shipped step, log-writer, apply and snapshot code of several hosts runs from one thread in seeded order, over a
//! simulated clock, network and disk. [`run`] lives through the world of one seed; the [`oracle`] checks after every step.
//! Equal seeds give equal runs: [`Report::hash`] stands for all that went in and out.
//!
//! Must not know: threads, real time, sockets, files, the machine's random numbers.

pub mod board;
mod breadth;
pub mod cabinet;
pub mod campaign;
pub mod client;
pub mod clock;
pub mod faults;
pub mod hash;
pub mod host;
mod import;
pub mod jobs;
mod keeper;
mod losses;
pub mod machine;
pub mod matrix;
mod members;
pub mod model;
#[cfg(feature = "plant")]
pub mod mutants;
pub mod network;
pub mod operator;
pub mod oracle;
pub mod recorder;
pub mod reduce;
pub mod report;
pub mod rng;
pub mod room;
mod sessions;
pub mod shadow;
pub mod silence;
pub mod swarm;
pub mod timeline;
pub mod world;

pub use report::{Report, Totals, run, run_unattended};
pub use world::{Trace, World};
