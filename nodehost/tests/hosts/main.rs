//! Whole hosts over loopback TCP and real directories.
#![allow(clippy::unwrap_used)]

mod cluster;
mod machine;
mod refusals;
mod replication;
mod snapshots;
