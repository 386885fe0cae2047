//! RESP2: commands in, replies out.
//!
//! Every length is checked against a limit before anything is allocated for it.

use bytes::{Bytes, BytesMut};
use std::ops::Range;

/// Largest value, and largest argument.
pub const BULK_BYTES_MAX: usize = 1 << 20;
/// Largest key.
pub const KEY_BYTES_MAX: usize = 64 << 10;
/// Most arguments of a command, its name included.
pub const ARGS_MAX: usize = 2048;
/// Largest command in all.
pub const COMMAND_BYTES_MAX: usize = 8 << 20;
/// Most digits of a length: looking further would only delay the refusal.
const LENGTH_DIGITS_MAX: usize = 20;
/// Longest line: a length, or an inline command.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// The client does not speak RESP, or goes beyond a limit. Its connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolError(pub String);

fn refuse<T>(what: impl Into<String>) -> Result<T, ProtocolError> {
    Err(ProtocolError(what.into()))
}

/// Takes the next whole command off `input`; `None` when more bytes are needed. The arguments share the input's memory.
///
/// A line that does not start with `*` is an inline command: words between blanks.
///
/// # Errors
/// When the bytes can't become a command, as soon as that is clear.
pub fn parse(input: &mut BytesMut) -> Result<Option<Vec<Bytes>>, ProtocolError> {
    while let Some(&first) = input.first() {
        let found = if first == b'*' { find_args(input)? } else { find_words(input)? };
        let Some((ranges, end)) = found else { return Ok(None) };
        let command = input.split_to(end).freeze();
        if !ranges.is_empty() {
            return Ok(Some(ranges.into_iter().map(|range| command.slice(range)).collect()));
        }
    }
    Ok(None)
}

/// The arguments' places, and where the command ends.
type Found = Option<(Vec<Range<usize>>, usize)>;

fn find_args(input: &[u8]) -> Result<Found, ProtocolError> {
    let Some((count, mut at)) = length_line(input, 0, "multibulk", ARGS_MAX)? else { return Ok(None) };
    let mut ranges = Vec::with_capacity(count.min(16));
    for _ in 0..count {
        match input.get(at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(other) => return refuse(format!("expected '$', got '{}'", other.escape_ascii())),
        }
        let Some((bytes, start)) = length_line(input, at, "bulk", BULK_BYTES_MAX)? else { return Ok(None) };
        let end = start + bytes;
        if end > COMMAND_BYTES_MAX {
            return refuse("too big command");
        }
        match input.get(end..end + 2) {
            None => return Ok(None),
            Some(b"\r\n") => {}
            Some(_) => return refuse("expected a line's end after a bulk string"),
        }
        ranges.push(start..end);
        at = end + 2;
    }
    Ok(Some((ranges, at)))
}

/// The number after the marker at `at`, and where the next line starts.
fn length_line(input: &[u8], at: usize, what: &str, limit: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
    let line = &input[at + 1..input.len().min(at + 2 + LENGTH_DIGITS_MAX)];
    let Some(digits) = line.iter().position(|&b| b == b'\r') else {
        return if line.len() > LENGTH_DIGITS_MAX || line.iter().any(|b| !b.is_ascii_digit() && *b != b'-') {
            refuse(format!("invalid {what} length"))
        } else {
            Ok(None)
        };
    };
    let text = std::str::from_utf8(&line[..digits]).ok().filter(|text| !text.starts_with('+'));
    let number = text.and_then(|text| text.parse::<i64>().ok());
    match number {
        // Redis takes an empty or negative count of arguments as no command.
        Some(n) if n <= 0 && what == "multibulk" => after_line(input, at + 1 + digits, 0),
        Some(n) if n >= 0 && n <= limit as i64 => after_line(input, at + 1 + digits, n as usize),
        _ => refuse(format!("invalid {what} length")),
    }
}

fn after_line(input: &[u8], end: usize, number: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
    match input.get(end + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((number, end + 2))),
        Some(_) => refuse("a carriage return without a line feed"),
    }
}

fn find_words(input: &[u8]) -> Result<Found, ProtocolError> {
    let seen = &input[..input.len().min(LINE_BYTES_MAX)];
    let end = seen.iter().position(|&b| b == b'\n');
    let line = &seen[..end.unwrap_or(seen.len())];
    let text = line.strip_suffix(b"\r").unwrap_or(line);
    if text.iter().any(|&b| b.is_ascii_control() && b != b'\t' || !b.is_ascii()) {
        return refuse("bytes that are no command");
    }
    let Some(end) = end else {
        return if seen.len() == LINE_BYTES_MAX { refuse("too big inline request") } else { Ok(None) };
    };
    let mut words = Vec::new();
    let mut start = None;
    for at in 0..=text.len() {
        let blank = text.get(at).is_none_or(|b| matches!(b, b' ' | b'\t'));
        match start {
            None if !blank => start = Some(at),
            Some(from) if blank => {
                words.push(from..at);
                start = None;
            }
            _ => {}
        }
    }
    // What a browser says to a port that it was sent to by a hostile page.
    if words.first().is_some_and(|w| matches!(&text[w.clone()], b"POST" | b"Host:")) {
        return refuse("this is not an HTTP server");
    }
    Ok(Some((words, end + 1)))
}

/// Appends `+text`.
pub fn write_simple(out: &mut Vec<u8>, text: &str) {
    write_line(out, b'+', text.as_bytes());
}

/// Appends `-text`, on one line whatever is in it.
pub fn write_error(out: &mut Vec<u8>, text: &str) {
    let start = out.len();
    write_line(out, b'-', text.as_bytes());
    let end = out.len() - 2;
    out[start..end].iter_mut().filter(|b| b.is_ascii_control()).for_each(|b| *b = b' ');
}

/// Appends `:number`.
pub fn write_integer(out: &mut Vec<u8>, number: i64) {
    write_number(out, b':', number);
}

/// Appends a bulk string, or the null one.
pub fn write_bulk(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            write_number(out, b'$', bytes.len() as i64);
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
        None => out.extend_from_slice(b"$-1\r\n"),
    }
}

/// Appends the head of an array of `count` replies.
pub fn write_array(out: &mut Vec<u8>, count: usize) {
    write_number(out, b'*', count as i64);
}

fn write_line(out: &mut Vec<u8>, marker: u8, text: &[u8]) {
    out.push(marker);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

fn write_number(out: &mut Vec<u8>, marker: u8, number: i64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push(marker);
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn all(input: &[u8]) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
        let mut input = BytesMut::from(input);
        let mut commands = Vec::new();
        while let Some(args) = parse(&mut input)? {
            commands.push(args.iter().map(|arg| arg.to_vec()).collect());
        }
        assert!(input.is_empty(), "{input:?} is left over");
        Ok(commands)
    }

    fn args(words: &[&str]) -> Vec<Vec<u8>> {
        words.iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    #[test]
    fn pipelined_commands_are_taken_one_by_one() {
        let input =
            b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$0\r\n\r\n$4\r\n\r\n\r\n\r\n";
        assert_eq!(all(input).unwrap(), [args(&["GET", "a"]), args(&["PING"]), args(&["SET", "", "\r\n\r\n"])]);
    }

    #[test]
    fn inline_commands_are_words_between_blanks() {
        assert_eq!(all(b"PING\r\n").unwrap(), [args(&["PING"])]);
        assert_eq!(all(b"  set  a\tb \n\r\n\nget a\r\n").unwrap(), [args(&["set", "a", "b"]), args(&["get", "a"])]);
    }

    #[test]
    fn an_empty_array_is_no_command() {
        assert_eq!(all(b"*0\r\n*-1\r\nPING\r\n").unwrap(), [args(&["PING"])]);
    }

    #[test]
    fn a_command_in_pieces_is_taken_when_it_is_whole_and_not_before() {
        let whole = b"*3\r\n$3\r\nSET\r\n$5\r\nhello\r\n$13\r\nwo\r\nrld12\r\n34\r\n";
        for split in 0..whole.len() {
            let mut input = BytesMut::from(&whole[..split]);
            assert_eq!(parse(&mut input).unwrap(), None, "after {split} bytes");
            input.extend_from_slice(&whole[split..]);
            assert_eq!(parse(&mut input).unwrap().unwrap().len(), 3, "after {split} bytes");
            assert!(input.is_empty());
        }
    }

    /// Every input that a fuzzer found worth keeping: its first byte says where the others are cut.
    #[test]
    fn commands_are_the_same_however_they_are_cut() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/resp");
        let mut files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        for file in files {
            let data = std::fs::read(&file).unwrap();
            let Some((cut, data)) = data.split_first() else { continue };
            let (front, back) = data.split_at(usize::from(*cut).min(data.len()));
            let (mut whole, mut parts) = (BytesMut::from(data), BytesMut::from(front));
            let mut added = false;
            loop {
                let mut part = parse(&mut parts);
                if part == Ok(None) && !added {
                    parts.extend_from_slice(back);
                    (part, added) = (parse(&mut parts), true);
                }
                // The part may be refused before the whole has come so far.
                let all = parse(&mut whole);
                assert_eq!(part.is_err(), all.is_err(), "{}", file.display());
                if !matches!(part, Ok(Some(_))) {
                    break;
                }
                assert_eq!(part, all, "{}", file.display());
            }
        }
    }

    #[test]
    fn every_length_has_a_limit() {
        let refused = [
            format!("*{}\r\n", ARGS_MAX + 1),
            "*99999999999999999999\r\n".to_owned(),
            format!("*1\r\n${}\r\n", BULK_BYTES_MAX + 1),
            "*1\r\n$-1\r\n".to_owned(),
            "*1\r\n$9999999999999999999999".to_owned(),
            "*x\r\n".to_owned(),
            // In pieces it was refused, and whole it was not.
            "*+2\r\n".to_owned(),
            "*1x".to_owned(),
            "*1\r\n:1\r\n".to_owned(),
            "*1\r\n$1\r\nabc".to_owned(),
            "*1\rx".to_owned(),
            "x".repeat(LINE_BYTES_MAX),
        ];
        for input in refused {
            assert!(all(input.as_bytes()).is_err(), "{}", &input[..input.len().min(40)]);
        }
        let value = "x".repeat(BULK_BYTES_MAX);
        let mut large = format!("*{}\r\n", ARGS_MAX);
        for _ in 0..COMMAND_BYTES_MAX / BULK_BYTES_MAX {
            large.push_str(&format!("${}\r\n{value}\r\n", value.len()));
        }
        assert_eq!(all(large.as_bytes()), refuse("too big command"));
    }

    #[test]
    fn garbage_is_refused_without_waiting_for_a_line_end() {
        for garbage in [&[0_u8, 1, 2][..], &[0xff; 10], b"\x16\x03\x01\x02\x00", b"POST / HTTP/1.1\r\n"] {
            assert!(all(garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn replies_are_as_redis_writes_them() {
        let mut out = Vec::new();
        write_simple(&mut out, "OK");
        write_error(&mut out, "ERR two\r\nlines");
        write_integer(&mut out, i64::MIN);
        write_integer(&mut out, 0);
        write_array(&mut out, 2);
        write_bulk(&mut out, Some(b"hi"));
        write_bulk(&mut out, None);
        let expected = "+OK\r\n-ERR two  lines\r\n:-9223372036854775808\r\n:0\r\n*2\r\n$2\r\nhi\r\n$-1\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
