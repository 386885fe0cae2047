//! Whole hosts over loopback TCP and real directories.
#![allow(clippy::unwrap_used)]

mod cluster;
mod compressed;
mod disk;
mod faulty;
mod files;
mod import;
mod import_guards;
mod leaders;
mod lifecycle;
mod machine;
mod members;
mod refusals;
mod replication;
mod rot;
mod sessions;
mod snapshots;
mod stalls;
mod stores;
mod trap;
mod verify;
mod witness;
