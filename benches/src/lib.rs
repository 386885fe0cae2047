//! The load generator of Longboat: a cluster of three hosts in one process, closed-loop clients, and a report.
//!
//! It uses the public API alone, as any other program would; there is no path through the engine that only a benchmark
//! takes. `process` and `probe` look at the machine.

pub mod all;
pub mod bulk;
pub mod chain;
pub mod children;
pub mod client;
pub mod cluster;
pub mod contrast;
pub mod create;
pub mod idle;
pub mod interference;
pub mod journal;
pub mod kill;
pub mod load;
pub mod machine;
pub mod obey;
pub mod plot;
pub mod probe;
pub mod process;
pub mod replace;
pub mod report;
pub mod restart;
pub mod slow_link;
pub mod snapshot;
pub mod throughput;
pub mod transfer;

pub use cluster::BoxError;
