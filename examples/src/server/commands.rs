//! From a command's arguments to what the groups are asked to do, and how their results become the reply.

use super::admin::{self, Admin, Said};
use crate::kv::{Answer, Command, Output, Query, When};
use crate::resp::{self, KEY_BYTES_MAX};
use crate::slots;
use bytes::Bytes;
use smallvec::SmallVec;

/// What a command asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Nothing of the groups: this is the reply.
    Reply(Vec<u8>),
    /// The reply, after which the connection closes.
    Quit(Vec<u8>),
    /// A report of the server and its groups; of one section if named.
    Info(Option<String>),
    /// Work for groups, and how to reply to its results.
    Work(Shape, SmallVec<[Task; 1]>),
}

/// Work for one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    /// The group, counted from 0.
    pub(crate) shard: usize,
    pub(crate) work: Work,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Write(Command),
    Read(Query),
    Admin(Admin),
}

/// How the results of a command's tasks make up its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `OK`, or null where a condition did not hold.
    Set,
    /// `OK` once all keys are set.
    SetMany,
    /// A value.
    Value,
    /// An array of values.
    Values,
    /// The sum of all numbers.
    Sum,
    /// What was said to an operator.
    Said,
}

/// What a task came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Written(Output),
    Answered(Answer),
    Said(Said),
    /// The text of an error reply.
    Failed(String),
}

/// Tells which keys are the same. Keys that differ may collide: they are then kept in order without need.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Task {
    fn write(command: Command, shards: usize) -> Self {
        Self { shard: slots::shard(command.key(), shards), work: Work::Write(command) }
    }

    fn get(key: &Bytes, shards: usize) -> Self {
        Self { shard: slots::shard(key, shards), work: Work::Read(Query::Get(key.clone())) }
    }

    pub(crate) fn is_write(&self) -> bool {
        matches!(self.work, Work::Write(_))
    }

    /// The hash of its key; `None` when it is about all keys.
    pub(crate) fn key_hash(&self) -> Option<u64> {
        match &self.work {
            Work::Write(command) => Some(key_hash(command.key())),
            Work::Read(Query::Get(key) | Query::Exists(key)) => Some(key_hash(key)),
            Work::Read(Query::Count) | Work::Admin(_) => None,
        }
    }
}

/// Reads a command. Whatever is not known is answered by an error.
pub(crate) fn interpret(args: &[Bytes], shards: usize) -> Request {
    let Some((name, rest)) = args.split_first() else { return error("ERR empty command") };
    let mut upper = [0; 16];
    let Some(upper) = upper.get_mut(..name.len()) else { return unknown(name) };
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    match (&*upper, rest) {
        (b"GET", [key]) => keyed(rest, |_| Request::Work(Shape::Value, [Task::get(key, shards)].into())),
        (b"SET", [key, value, options @ ..]) => set(key, value, options, shards),
        (b"INCR", [key]) => {
            keyed(rest, |_| Request::Work(Shape::Sum, [Task::write(Command::Incr { key: key.clone() }, shards)].into()))
        }
        (b"DEL", [_, ..]) => each(Shape::Sum, rest, |key| Task::write(Command::Del { key: key.clone() }, shards)),
        (b"EXISTS", [_, ..]) => each(Shape::Sum, rest, |key| Task {
            shard: slots::shard(key, shards),
            work: Work::Read(Query::Exists(key.clone())),
        }),
        (b"MGET", [_, ..]) => each(Shape::Values, rest, |key| Task::get(key, shards)),
        (b"MSET", [_, _, ..]) if rest.len() % 2 == 0 => set_many(rest, shards),
        (b"DBSIZE", []) => {
            let count = |shard| Task { shard, work: Work::Read(Query::Count) };
            Request::Work(Shape::Sum, (0..shards).map(count).collect())
        }
        (b"LONGBOAT", _) => match admin::interpret(rest) {
            Ok(admin) => Request::Work(Shape::Said, [Task { shard: 0, work: Work::Admin(admin) }].into()),
            Err(text) => error(&text),
        },
        (b"PING", []) => Request::Reply(b"+PONG\r\n".to_vec()),
        (b"PING" | b"ECHO", [text]) => reply(|out| resp::write_bulk(out, Some(text))),
        (b"QUIT", _) => Request::Quit(b"+OK\r\n".to_vec()),
        (b"SELECT", [number]) if number == "0" => Request::Reply(b"+OK\r\n".to_vec()),
        (b"SELECT", [_]) => error("ERR DB index is out of range, there is only database 0"),
        (b"INFO", _) => Request::Info(rest.first().map(|s| String::from_utf8_lossy(s).to_ascii_lowercase())),
        (b"COMMAND", [sub]) if sub.eq_ignore_ascii_case(b"COUNT") => {
            reply(|out| resp::write_integer(out, COMMANDS.len() as i64))
        }
        (b"COMMAND", _) => reply(|out| resp::write_array(out, 0)),
        (b"CONFIG", [sub, name]) if sub.eq_ignore_ascii_case(b"GET") => config(name),
        (b"CONFIG", _) => error("ERR only CONFIG GET is supported"),
        (upper, _) if COMMANDS.iter().any(|known| known.as_bytes() == upper) => {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            error(&format!("ERR wrong number of arguments for '{name}' command"))
        }
        _ => unknown(name),
    }
}

const COMMANDS: &[&str] = &[
    "COMMAND", "CONFIG", "DBSIZE", "DEL", "ECHO", "EXISTS", "GET", "INCR", "INFO", "LONGBOAT", "MGET", "MSET", "PING",
    "QUIT", "SELECT", "SET",
];

fn set(key: &Bytes, value: &Bytes, options: &[Bytes], shards: usize) -> Request {
    let when = match options {
        [] => When::Always,
        [option] if option.eq_ignore_ascii_case(b"NX") => When::Absent,
        [option] if option.eq_ignore_ascii_case(b"XX") => When::Present,
        _ => return error("ERR syntax error, SET takes NX or XX"),
    };
    keyed(std::slice::from_ref(key), |_| {
        let command = Command::Set { key: key.clone(), value: value.clone(), when };
        Request::Work(Shape::Set, [Task::write(command, shards)].into())
    })
}

fn set_many(pairs: &[Bytes], shards: usize) -> Request {
    if pairs.iter().step_by(2).any(|key| key.len() > KEY_BYTES_MAX) {
        return key_too_large();
    }
    let task = |pair: &[Bytes]| {
        let (key, value) = (pair[0].clone(), pair[1].clone());
        Task::write(Command::Set { key, value, when: When::Always }, shards)
    };
    Request::Work(Shape::SetMany, pairs.chunks_exact(2).map(task).collect())
}

fn each(shape: Shape, keys: &[Bytes], task: impl Fn(&Bytes) -> Task) -> Request {
    keyed(keys, |keys| Request::Work(shape, keys.iter().map(task).collect()))
}

fn keyed(keys: &[Bytes], request: impl FnOnce(&[Bytes]) -> Request) -> Request {
    if keys.iter().any(|key| key.len() > KEY_BYTES_MAX) { key_too_large() } else { request(keys) }
}

fn key_too_large() -> Request {
    error(&format!("ERR key is above the limit of {KEY_BYTES_MAX} bytes"))
}

/// What redis-benchmark asks for before it starts.
fn config(name: &Bytes) -> Request {
    let value = match name.to_ascii_lowercase().as_slice() {
        b"save" => "",
        b"appendonly" => "yes",
        b"databases" => "1",
        _ => return reply(|out| resp::write_array(out, 0)),
    };
    reply(|out| {
        resp::write_array(out, 2);
        resp::write_bulk(out, Some(name));
        resp::write_bulk(out, Some(value.as_bytes()));
    })
}

fn reply(write: impl FnOnce(&mut Vec<u8>)) -> Request {
    let mut out = Vec::new();
    write(&mut out);
    Request::Reply(out)
}

fn error(text: &str) -> Request {
    reply(|out| resp::write_error(out, text))
}

fn unknown(name: &[u8]) -> Request {
    let shown = &name[..name.len().min(64)];
    error(&format!("ERR unknown command '{}'", shown.escape_ascii()))
}

impl Shape {
    /// Appends the reply to `outcomes`, one for each task in order. The first failure is the whole reply.
    pub(crate) fn write<'a>(self, outcomes: impl ExactSizeIterator<Item = &'a Outcome> + Clone, out: &mut Vec<u8>) {
        let failed = outcomes.clone().find_map(|outcome| match outcome {
            Outcome::Failed(text) => Some(text.as_str()),
            Outcome::Written(Output::NoNumber) => Some("ERR value is not an integer or out of range"),
            _ => None,
        });
        if let Some(text) = failed {
            return resp::write_error(out, text);
        }
        match self {
            Self::SetMany => resp::write_simple(out, "OK"),
            Self::Sum => resp::write_integer(out, outcomes.map(number).sum()),
            Self::Values => {
                resp::write_array(out, outcomes.len());
                outcomes.for_each(|outcome| write_value(outcome, out));
            }
            Self::Value => outcomes.for_each(|outcome| write_value(outcome, out)),
            Self::Said => outcomes.for_each(|outcome| match outcome {
                Outcome::Said(said) => said.write(out),
                _ => resp::write_bulk(out, None),
            }),
            Self::Set => outcomes.for_each(|outcome| match outcome {
                Outcome::Written(Output::Set) => resp::write_simple(out, "OK"),
                _ => resp::write_bulk(out, None),
            }),
        }
    }
}

fn number(outcome: &Outcome) -> i64 {
    match outcome {
        Outcome::Written(Output::Number(number)) => *number,
        Outcome::Answered(Answer::Number(number)) => *number as i64,
        _ => 0,
    }
}

fn write_value(outcome: &Outcome, out: &mut Vec<u8>) {
    match outcome {
        Outcome::Answered(Answer::Value(value)) => resp::write_bulk(out, value.as_deref()),
        _ => resp::write_bulk(out, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(words: &[&'static str]) -> Request {
        let args: Vec<Bytes> = words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect();
        interpret(&args, 64)
    }

    fn text(request: Request) -> String {
        match request {
            Request::Reply(bytes) => String::from_utf8(bytes).expect("replies here are text"),
            other => panic!("{other:?} is no reply"),
        }
    }

    fn tasks(request: Request) -> usize {
        match request {
            Request::Work(_, tasks) => tasks.len(),
            other => panic!("{other:?} is no work"),
        }
    }

    #[test]
    fn commands_of_many_keys_become_a_task_for_each() {
        assert_eq!(tasks(ask(&["mget", "a", "b", "a"])), 3);
        assert_eq!(tasks(ask(&["MSET", "a", "1", "b", "2"])), 2);
        assert_eq!(tasks(ask(&["Del", "a"])), 1);
        assert_eq!(tasks(ask(&["dbsize"])), 64);
    }

    #[test]
    fn a_key_always_goes_to_the_group_that_owns_it() {
        let shard = |words| match ask(words) {
            Request::Work(_, tasks) => tasks[0].shard,
            other => panic!("{other:?} is no work"),
        };
        assert_eq!(shard(&["GET", "foo"]), slots::shard(b"foo", 64));
        assert_eq!(shard(&["SET", "foo", "1"]), shard(&["GET", "foo"]));
        assert_eq!(shard(&["EXISTS", "foo"]), shard(&["INCR", "foo"]));
    }

    #[test]
    fn what_is_not_supported_is_an_error() {
        assert!(text(ask(&["FLUSHALL"])).starts_with("-ERR unknown command 'FLUSHALL'"));
        assert!(text(ask(&["a-name-that-is-longer-than-any"])).starts_with("-ERR unknown command"));
        assert!(text(ask(&["GET"])).starts_with("-ERR wrong number of arguments for 'get'"));
        assert!(text(ask(&["MSET", "a", "1", "b"])).starts_with("-ERR wrong number"));
        assert!(text(ask(&["SET", "a", "1", "EX", "10"])).starts_with("-ERR syntax error"));
        assert!(text(ask(&["SELECT", "1"])).starts_with("-ERR DB index"));
        assert!(text(ask(&["CONFIG", "SET", "save", ""])).starts_with("-ERR"));
        let long = Bytes::from(vec![b'k'; KEY_BYTES_MAX + 1]);
        for words in [&["GET", ""][..], &["MSET", "", "v"], &["SET", "", "v"]] {
            let mut args: Vec<Bytes> = words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect();
            args[1] = long.clone();
            assert!(text(interpret(&args, 64)).starts_with("-ERR key is above the limit"));
        }
    }

    #[test]
    fn redis_benchmark_gets_its_configuration() {
        assert_eq!(text(ask(&["CONFIG", "GET", "save"])), "*2\r\n$4\r\nsave\r\n$0\r\n\r\n");
        assert_eq!(text(ask(&["CONFIG", "GET", "nothing"])), "*0\r\n");
    }

    #[test]
    fn results_make_up_the_reply() {
        let reply = |shape: Shape, outcomes: &[Outcome]| {
            let mut out = Vec::new();
            shape.write(outcomes.iter(), &mut out);
            String::from_utf8(out).expect("replies here are text")
        };
        let value = |text: &'static str| Outcome::Answered(Answer::Value(Some(text.into())));
        let none = Outcome::Answered(Answer::Value(None));
        let failed = Outcome::Failed("TRYAGAIN no leader".to_owned());
        assert_eq!(reply(Shape::Set, &[Outcome::Written(Output::Set)]), "+OK\r\n");
        assert_eq!(reply(Shape::Set, &[Outcome::Written(Output::NotSet)]), "$-1\r\n");
        assert_eq!(reply(Shape::Values, &[value("a"), none]), "*2\r\n$1\r\na\r\n$-1\r\n");
        assert_eq!(reply(Shape::Values, &[value("a"), failed]), "-TRYAGAIN no leader\r\n");
        assert_eq!(
            reply(Shape::Sum, &[Outcome::Written(Output::Number(1)), Outcome::Written(Output::Number(2))]),
            ":3\r\n"
        );
        assert!(reply(Shape::Sum, &[Outcome::Written(Output::NoNumber)]).starts_with("-ERR value is not an integer"));
    }
}
