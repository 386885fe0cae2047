//! What a stranger says first on a connection, in pieces: refused with a word that fits, or understood.
#![no_main]

use longboat_transport::tcp::fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| longboat_fuzz::bounded(fuzzing::BYTES_MAX, || fuzzing::handshake(data)));
