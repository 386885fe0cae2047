//! A snapshot file, received, read back and imported: refused, or read to its end.
#![no_main]

use longboat_rsm::snapshot::fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| longboat_fuzz::bounded(fuzzing::BYTES_MAX, || fuzzing::snapshot(data)));
