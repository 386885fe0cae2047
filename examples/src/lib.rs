//! The parts of the examples: of `sharded_kv`, a key-value server whose hash slots are spread over Raft groups, and of `disk_kv`,
//! whose state lies on the disk.

pub mod client;
pub mod disk;
pub mod host;
pub mod kv;
pub mod resp;
pub mod server;
pub mod slots;
