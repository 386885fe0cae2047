//! A whole group whose members are also sent messages that nobody sent: a violation at worst, never a panic.
#![no_main]
#![allow(dead_code, unreachable_pub)]

#[path = "../../raft/tests/scenarios/cluster.rs"]
mod cluster;
#[path = "../../raft/tests/scenarios/fuzzing.rs"]
mod fuzzing;
#[path = "../../raft/tests/scenarios/random.rs"]
mod random;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::group_with_a_liar(data));
