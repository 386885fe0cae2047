//! One core, and whatever anybody may send it or ask of it: a violation at worst, never a panic.
#![no_main]
#![allow(dead_code, unreachable_pub)]

#[path = "../../raft/tests/scenarios/cluster.rs"]
mod cluster;
#[path = "../../raft/tests/scenarios/fuzzing.rs"]
mod fuzzing;
#[path = "../../raft/tests/scenarios/random.rs"]
mod random;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::one_core(data));
