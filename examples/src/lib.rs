//! The parts of the `sharded_kv` example: a key-value server whose hash slots are spread over Raft groups.

pub mod host;
pub mod kv;
pub mod resp;
pub mod server;
pub mod slots;
