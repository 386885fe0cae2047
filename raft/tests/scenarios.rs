//! Scenarios over the core alone: several cores, a network of messages in a queue and disks that complete when told.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "scenarios/cluster.rs"]
mod cluster;
#[path = "scenarios/elections.rs"]
mod elections;
