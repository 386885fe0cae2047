//! The replicated state of one group: an ordered map from keys to values.

use crate::resp::{BULK_BYTES_MAX, KEY_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};
use longboat::{Codec, CodecError, Index, MachineError, Payload, StateMachine};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// When a `SET` takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// In any case.
    Always,
    /// Only if the key is not there: `NX`.
    Absent,
    /// Only if the key is there: `XX`.
    Present,
}

/// What is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Sets a key.
    Set {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// On which condition.
        when: When,
    },
    /// Removes a key.
    Del {
        /// The key.
        key: Bytes,
    },
    /// Adds one to a decimal number; a missing key counts as 0.
    Incr {
        /// The key.
        key: Bytes,
    },
}

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The key was set.
    Set,
    /// The condition did not hold; nothing changed.
    NotSet,
    /// Keys removed, or the number after an increment.
    Number(i64),
    /// The value is no number, or the largest one; nothing changed.
    NoNumber,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// The value of a key.
    Get(Bytes),
    /// Whether a key is there.
    Exists(Bytes),
    /// The number of keys.
    Count,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The value, if the key is there.
    Value(Option<Bytes>),
    /// A number: of keys, or 1 for a key that is there.
    Number(u64),
}

impl Command {
    /// The key that it changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Set { key, .. } | Self::Del { key } | Self::Incr { key } => key,
        }
    }
}

const TAG_SET: u8 = 1;
const TAG_SET_ABSENT: u8 = 2;
const TAG_SET_PRESENT: u8 = 3;
const TAG_DEL: u8 = 4;
const TAG_INCR: u8 = 5;
const KEY_AT: usize = 5;

/// A tag, the key's length in four bytes, the key, the value.
impl Codec for Command {
    fn encode(&self, out: &mut BytesMut) {
        let (tag, value) = match self {
            Self::Set { value, when: When::Always, .. } => (TAG_SET, value.as_ref()),
            Self::Set { value, when: When::Absent, .. } => (TAG_SET_ABSENT, value.as_ref()),
            Self::Set { value, when: When::Present, .. } => (TAG_SET_PRESENT, value.as_ref()),
            Self::Del { .. } => (TAG_DEL, &[][..]),
            Self::Incr { .. } => (TAG_INCR, &[][..]),
        };
        let key = self.key();
        out.reserve(KEY_AT + key.len() + value.len());
        out.put_u8(tag);
        out.put_u32_le(key.len() as u32);
        out.put_slice(key);
        out.put_slice(value);
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        let bytes = payload.as_slice();
        let wrong = || CodecError(format!("{} bytes are no command", bytes.len()));
        let (&tag, rest) = bytes.split_first().ok_or_else(wrong)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(wrong)?;
        let (key, value) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(wrong)?;
        // Copied: a slice of the log would keep a whole run of it in memory.
        let key = Bytes::copy_from_slice(key);
        let set = |when| Self::Set { key: key.clone(), value: Bytes::copy_from_slice(value), when };
        match tag {
            TAG_SET => Ok(set(When::Always)),
            TAG_SET_ABSENT => Ok(set(When::Absent)),
            TAG_SET_PRESENT => Ok(set(When::Present)),
            TAG_DEL if value.is_empty() => Ok(Self::Del { key }),
            TAG_INCR if value.is_empty() => Ok(Self::Incr { key }),
            _ => Err(wrong()),
        }
    }
}

/// The map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kv {
    map: BTreeMap<Bytes, Bytes>,
}

impl Kv {
    fn incr(&mut self, key: Bytes) -> Output {
        let now = match self.map.get(&key) {
            Some(value) => std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok()),
            None => Some(0),
        };
        let Some(next) = now.and_then(|n| n.checked_add(1)) else { return Output::NoNumber };
        self.map.insert(key, Bytes::from(next.to_string()));
        Output::Number(next)
    }
}

impl StateMachine for Kv {
    type Command = Command;
    type Output = Output;
    type Query = Query;
    type Answer = Answer;

    fn apply(&mut self, _: Index, command: Command) -> Result<Output, MachineError> {
        Ok(match command {
            Command::Set { key, value, when } => {
                let wanted = match when {
                    When::Always => true,
                    When::Absent => !self.map.contains_key(&key),
                    When::Present => self.map.contains_key(&key),
                };
                if wanted {
                    self.map.insert(key, value);
                    Output::Set
                } else {
                    Output::NotSet
                }
            }
            Command::Del { key } => Output::Number(self.map.remove(&key).map_or(0, |_| 1)),
            Command::Incr { key } => self.incr(key),
        })
    }

    fn lookup(&self, query: Query) -> Result<Answer, MachineError> {
        Ok(match query {
            Query::Get(key) => Answer::Value(self.map.get(&key).cloned()),
            Query::Exists(key) => Answer::Number(self.map.contains_key(&key).into()),
            Query::Count => Answer::Number(self.map.len() as u64),
        })
    }

    /// The number of pairs, then for each the lengths of key and value, the key, the value.
    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        out.write_all(&(self.map.len() as u64).to_le_bytes())?;
        for (key, value) in &self.map {
            out.write_all(&(key.len() as u32).to_le_bytes())?;
            out.write_all(&(value.len() as u32).to_le_bytes())?;
            out.write_all(key)?;
            out.write_all(value)?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut count = [0; 8];
        input.read_exact(&mut count)?;
        let mut map = BTreeMap::new();
        for _ in 0..u64::from_le_bytes(count) {
            let (mut key_bytes, mut value_bytes) = ([0; 4], [0; 4]);
            input.read_exact(&mut key_bytes)?;
            input.read_exact(&mut value_bytes)?;
            let key = read_bytes(input, u32::from_le_bytes(key_bytes), KEY_BYTES_MAX)?;
            let value = read_bytes(input, u32::from_le_bytes(value_bytes), BULK_BYTES_MAX)?;
            map.insert(key, value);
        }
        self.map = map;
        Ok(())
    }
}

fn read_bytes(input: &mut dyn Read, length: u32, limit: usize) -> io::Result<Bytes> {
    let length = length as usize;
    if length > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("length {length} is above the limit of {limit}"),
        ));
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn set(key: &'static str, value: &'static str, when: When) -> Command {
        Command::Set { key: key.into(), value: value.into(), when }
    }

    fn apply(kv: &mut Kv, command: Command) -> Output {
        kv.apply(Index(1), command).unwrap()
    }

    fn get(kv: &Kv, key: &'static str) -> Option<Bytes> {
        match kv.lookup(Query::Get(key.into())).unwrap() {
            Answer::Value(value) => value,
            Answer::Number(_) => unreachable!("a get is answered by a value"),
        }
    }

    fn encoded(command: &Command) -> Bytes {
        let mut out = BytesMut::new();
        command.encode(&mut out);
        out.freeze()
    }

    #[test]
    fn commands_survive_encoding() {
        let all = [
            set("k", "v", When::Always),
            set("k", "", When::Absent),
            set("", "v", When::Present),
            Command::Del { key: "k".into() },
            Command::Incr { key: "k".into() },
        ];
        for command in all {
            let bytes = encoded(&command);
            assert_eq!(Command::decode(Payload::new(&bytes, 0..bytes.len())).unwrap(), command);
        }
    }

    #[test]
    fn bytes_that_are_no_command_are_refused() {
        let del = encoded(&Command::Del { key: "key".into() });
        for length in 0..del.len() {
            assert!(Command::decode(Payload::new(&del, 0..length)).is_err(), "{length} bytes");
        }
        for bad in [&[0, 0, 0, 0, 0][..], &[9, 0, 0, 0, 0], &[TAG_DEL, 0, 0, 0, 0, 1], &[TAG_SET, 255, 255, 255, 255]] {
            let bad = Bytes::copy_from_slice(bad);
            assert!(Command::decode(Payload::new(&bad, 0..bad.len())).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn set_keeps_to_its_condition() {
        let mut kv = Kv::default();
        assert_eq!(apply(&mut kv, set("k", "1", When::Present)), Output::NotSet);
        assert_eq!(get(&kv, "k"), None);
        assert_eq!(apply(&mut kv, set("k", "2", When::Absent)), Output::Set);
        assert_eq!(apply(&mut kv, set("k", "3", When::Absent)), Output::NotSet);
        assert_eq!(get(&kv, "k"), Some("2".into()));
        assert_eq!(apply(&mut kv, set("k", "4", When::Present)), Output::Set);
        assert_eq!(apply(&mut kv, set("k", "5", When::Always)), Output::Set);
        assert_eq!(get(&kv, "k"), Some("5".into()));
    }

    #[test]
    fn incr_counts_from_zero_and_refuses_what_is_no_number() {
        let mut kv = Kv::default();
        let incr = || Command::Incr { key: "n".into() };
        assert_eq!(apply(&mut kv, incr()), Output::Number(1));
        assert_eq!(apply(&mut kv, incr()), Output::Number(2));
        assert_eq!(get(&kv, "n"), Some("2".into()));
        for no_number in ["", "x", "1.5", "9223372036854775807", "9223372036854775808"] {
            apply(&mut kv, set("n", no_number, When::Always));
            assert_eq!(apply(&mut kv, incr()), Output::NoNumber, "{no_number}");
            assert_eq!(get(&kv, "n"), Some(no_number.into()));
        }
    }

    #[test]
    fn del_and_exists_and_count_agree() {
        let mut kv = Kv::default();
        apply(&mut kv, set("a", "1", When::Always));
        apply(&mut kv, set("b", "1", When::Always));
        assert_eq!(kv.lookup(Query::Count).unwrap(), Answer::Number(2));
        assert_eq!(apply(&mut kv, Command::Del { key: "a".into() }), Output::Number(1));
        assert_eq!(apply(&mut kv, Command::Del { key: "a".into() }), Output::Number(0));
        assert_eq!(kv.lookup(Query::Exists("a".into())).unwrap(), Answer::Number(0));
        assert_eq!(kv.lookup(Query::Exists("b".into())).unwrap(), Answer::Number(1));
        assert_eq!(kv.lookup(Query::Count).unwrap(), Answer::Number(1));
    }

    #[test]
    fn a_recovered_map_equals_the_saved_one_and_replaces_all() {
        let mut kv = Kv::default();
        for (key, value) in [("a", "1"), ("", "empty key"), ("empty value", "")] {
            apply(&mut kv, set(key, value, When::Always));
        }
        let mut saved = Vec::new();
        kv.save(&mut saved).unwrap();
        let mut other = Kv::default();
        apply(&mut other, set("left over", "1", When::Always));
        other.recover(&mut &saved[..]).unwrap();
        assert_eq!(other, kv);
        for length in 0..saved.len() {
            assert!(other.recover(&mut &saved[..length]).is_err(), "{length} bytes");
            assert_eq!(other, kv, "a failed recovery changes nothing");
        }
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_it_is_allocated() {
        let mut saved = 1_u64.to_le_bytes().to_vec();
        saved.extend_from_slice(&u32::MAX.to_le_bytes());
        saved.extend_from_slice(&0_u32.to_le_bytes());
        let error = Kv::default().recover(&mut &saved[..]).unwrap_err();
        assert!(error.to_string().contains("limit"), "{error}");
    }
}
