//! A log store over a journal that anybody may have changed, checksums and all.
#![no_main]

use longboat_logdb::fuzzing;

libfuzzer_sys::fuzz_target!(init: fuzzing::prepare(), |data: &[u8]| longboat_fuzz::bounded(fuzzing::BYTES_MAX, || {
    fuzzing::journal(data);
}));
