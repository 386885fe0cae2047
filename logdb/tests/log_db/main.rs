//! One suite for every log store: the shared store over real and simulated disks, and a model in memory.
//!
//! `conformance` says what any store must do; `random` holds stores against the model over random operations and
//! reopenings; `crash` kills, cuts the power and fails syncs at every write; `recovery`
//! holds single crashes that are rarer than that; `power` cuts it for RocksDB too; `refusals` are the directories that
//! must not be opened; `rot` are damaged ones that are opened all the same; `recycling` goes round the journal many times; `archive` has segments that stay.

mod archive;
mod conformance;
mod crash;
mod damage;
mod driver;
mod model;
mod power;
mod random;
mod recovery;
mod recycling;
mod refusals;
mod rot;
mod scenarios;
mod support;
mod workload;
