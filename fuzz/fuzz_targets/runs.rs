//! Bytes that are to be a run of log entries: refused, or all that is done with runs works on it.
#![no_main]

#[path = "../../raft/tests/scenarios/decoding.rs"]
mod decoding;

/// Bytes of memory: what a run is decoded from is a few kilobytes, and its parts share its memory.
const BYTES_MAX: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| longboat_fuzz::bounded(BYTES_MAX, || decoding::runs(data)));
