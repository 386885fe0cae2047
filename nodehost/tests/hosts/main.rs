//! Whole hosts over loopback TCP and real directories.
#![allow(clippy::unwrap_used)]

mod cluster;
mod disk;
mod leaders;
mod machine;
mod members;
mod refusals;
mod replication;
mod sessions;
mod snapshots;
mod witness;
