//! An exported snapshot's directory: refused, or looked at to its end.
#![no_main]

use longboat_rsm::snapshot::fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| longboat_fuzz::bounded(fuzzing::BYTES_MAX, || fuzzing::export(data)));
