//! A key-value state machine with storage of its own: one RocksDB for each replica.
//!
//! What it shows: the index of the last command goes into the same atomic write as what the command changed, so that after
//! any crash the storage says exactly which commands it has; nothing is synced on the way, because the log still has what a
//! power loss takes; a snapshot is written off a checkpoint while commands go on; a state that comes from elsewhere is built
//! beside the old one, and takes its place in one step.
//!
//! Layout of its directory: `current` names the subdirectory with the RocksDB; all others are left over from a crash.

mod state;

pub use state::{Change, DiskKv, Done, Question, Shown};
