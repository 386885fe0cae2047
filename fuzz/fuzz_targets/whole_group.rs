//! A whole group under faults that the input chooses: what Raft promises is kept.
#![no_main]
#![allow(dead_code, unreachable_pub)]

#[path = "../../raft/tests/scenarios/cluster.rs"]
mod cluster;
#[path = "../../raft/tests/scenarios/fuzzing.rs"]
mod fuzzing;
#[path = "../../raft/tests/scenarios/random.rs"]
mod random;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::whole_group(data));
