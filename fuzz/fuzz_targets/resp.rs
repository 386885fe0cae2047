//! What a client of the example server sends, in pieces: commands, or a protocol error; the same however it is cut.
#![no_main]
#![allow(dead_code, unreachable_pub)]

#[path = "../../examples/src/resp.rs"]
mod resp;

use bytes::{Bytes, BytesMut};

/// Bytes of memory per byte of input, and a base: places and arguments of a command cost a few words each.
const BYTES_MAX: usize = 1 << 20;

fn all(pieces: &[&[u8]]) -> (Vec<Vec<Bytes>>, bool) {
    let (mut input, mut commands) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match resp::parse(&mut input) {
                Ok(Some(command)) => commands.push(command),
                Ok(None) => break,
                Err(_) => return (commands, true),
            }
        }
    }
    (commands, false)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| longboat_fuzz::bounded(BYTES_MAX, || {
    let Some((cut, data)) = data.split_first() else { return };
    let (front, back) = data.split_at(usize::from(*cut).min(data.len()));
    let (whole, parts) = (all(&[data]), all(&[front, back]));
    assert_eq!(whole, parts);
    for command in whole.0 {
        assert!(!command.is_empty() && command.len() <= resp::ARGS_MAX);
        assert!(command.iter().map(Bytes::len).sum::<usize>() <= resp::COMMAND_BYTES_MAX);
    }
}));
