//! One client's connection: its commands in, its replies out in order.
//!
//! Effects keep the order of the commands per key: a command waits while an earlier one about the same key is under
//! way, unless both read, or both write and travel in the same batch.

use super::commands::{Outcome, Request, Shape, Task, interpret};
use crate::resp;
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Commands of one connection that wait for their replies; further ones wait in the socket.
const PIPELINE_MAX: usize = 256;
/// Replies that wait for the client to read them; no further command is taken beyond.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// The place of a task in its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the command on its connection.
    pub(crate) command: u64,
    /// The number of the task in its command.
    pub(crate) task: u32,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    input: BytesMut,
    output: Vec<u8>,
    sent: usize,
    /// Commands without a reply yet, oldest first.
    queue: VecDeque<Entry>,
    /// The number of the oldest.
    first: u64,
    /// A command that waits for others about its keys.
    held: Option<(Shape, SmallVec<[Task; 1]>)>,
    /// No more commands are taken: the client quit, broke the protocol, or ended its side.
    ending: bool,
    /// The client ended its side; what it sent before is still carried out.
    end_of_input: bool,
}

/// A command that waits for its reply.
#[derive(Debug)]
struct Entry {
    reply: Reply,
    /// Tasks that are not done.
    open: usize,
}

#[derive(Debug)]
enum Reply {
    Ready(Vec<u8>),
    Made(Shape, SmallVec<[Part; 1]>),
}

#[derive(Debug)]
struct Part {
    key: Option<u64>,
    write: bool,
    /// The round in which it was given to its group.
    round: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    UnderWay,
    /// It failed without effect, and is tried again.
    Retried,
    Done(Outcome),
}

/// What reading a connection's commands leads to.
pub(crate) trait Sink {
    /// The number of the round that is being gathered.
    fn round(&self) -> u64;
    /// The number of groups.
    fn shards(&self) -> usize;
    /// Takes a task for its group.
    fn task(&mut self, place: Place, task: Task);
    /// The report that `INFO` shows.
    fn info(&mut self, section: Option<&str>) -> String;
    /// Counts a command.
    fn command(&mut self);
    /// Counts a connection that broke the protocol.
    fn protocol_error(&mut self);
}

impl Conn {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            sent: 0,
            queue: VecDeque::new(),
            first: 0,
            held: None,
            ending: false,
            end_of_input: false,
        }
    }

    /// Whether there is room for more input.
    pub(crate) fn wants_input(&self) -> bool {
        !self.ending && !self.end_of_input && self.can_take()
    }

    /// Whether replies wait for the socket.
    pub(crate) fn wants_output(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Whether all is said.
    pub(crate) fn is_over(&self) -> bool {
        (self.ending || self.end_of_input) && self.queue.is_empty() && self.held.is_none() && !self.wants_output()
    }

    fn can_take(&self) -> bool {
        self.held.is_none() && self.queue.len() < PIPELINE_MAX && self.output.len() - self.sent < OUTPUT_BYTES_MAX
    }

    /// Reads what the socket has, at most a buffer full.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => self.end_of_input = true,
                Ok(bytes) => self.input.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }

    /// Takes commands off the input until one has to wait; whether it took any.
    pub(crate) fn advance(&mut self, sink: &mut impl Sink) -> bool {
        let before = self.queue.len();
        if let Some((shape, tasks)) = self.held.take() {
            self.work(shape, tasks, sink);
        }
        while !self.ending && self.can_take() {
            match resp::parse(&mut self.input) {
                Ok(Some(args)) => self.command(&args, sink),
                Ok(None) => break,
                Err(error) => {
                    sink.protocol_error();
                    let mut reply = Vec::new();
                    resp::write_error(&mut reply, &format!("ERR Protocol error: {}", error.0));
                    self.reply(reply);
                    self.ending = true;
                }
            }
        }
        self.queue.len() > before
    }

    fn command(&mut self, args: &[Bytes], sink: &mut impl Sink) {
        sink.command();
        match interpret(args, sink.shards()) {
            Request::Reply(reply) => self.reply(reply),
            Request::Quit(reply) => {
                self.reply(reply);
                self.ending = true;
            }
            Request::Info(section) => {
                let mut reply = Vec::new();
                resp::write_bulk(&mut reply, Some(sink.info(section.as_deref()).as_bytes()));
                self.reply(reply);
            }
            Request::Work(shape, tasks) => self.work(shape, tasks, sink),
        }
    }

    fn reply(&mut self, reply: Vec<u8>) {
        self.queue.push_back(Entry { reply: Reply::Ready(reply), open: 0 });
    }

    fn work(&mut self, shape: Shape, tasks: SmallVec<[Task; 1]>, sink: &mut impl Sink) {
        let round = sink.round();
        if tasks.iter().any(|task| self.must_wait(task, round)) {
            self.held = Some((shape, tasks));
            return;
        }
        let command = self.first + self.queue.len() as u64;
        let mut parts = SmallVec::with_capacity(tasks.len());
        for (n, task) in tasks.into_iter().enumerate() {
            parts.push(Part { key: task.key_hash(), write: task.is_write(), round, state: State::UnderWay });
            sink.task(Place { command, task: n as u32 }, task);
        }
        self.queue.push_back(Entry { open: parts.len(), reply: Reply::Made(shape, parts) });
    }

    /// Whether an earlier command about the same key has to be over first.
    fn must_wait(&self, task: &Task, round: u64) -> bool {
        let (key, write) = (task.key_hash(), task.is_write());
        let in_the_way = |part: &Part| {
            let same_key = part.key.is_none() || key.is_none() || part.key == key;
            let same_batch = part.write && write && part.round == round;
            let both_read = !part.write && !write;
            same_key && !same_batch && !both_read && !matches!(part.state, State::Done(_))
        };
        self.queue.iter().filter(|entry| entry.open > 0).flat_map(Entry::parts).any(in_the_way)
    }

    /// The outcome of a task. A task of a command that is not waiting any more is ignored.
    pub(crate) fn done(&mut self, place: Place, outcome: Outcome) {
        let Some(entry) = self.entry(place) else { return };
        let Reply::Made(_, parts) = &mut entry.reply else { return };
        if let Some(part) = parts.get_mut(place.task as usize)
            && !matches!(part.state, State::Done(_))
        {
            part.state = State::Done(outcome);
            entry.open -= 1;
        }
    }

    /// The task failed without effect and could be tried again.
    pub(crate) fn failed_without_effect(&mut self, place: Place) {
        if let Some(Reply::Made(_, parts)) = self.entry(place).map(|entry| &mut entry.reply)
            && let Some(part) = parts.get_mut(place.task as usize)
        {
            part.state = State::Retried;
        }
    }

    /// Whether trying a failed task again keeps the order of effects: not once a later write of its key is, or may be, carried out.
    pub(crate) fn may_retry(&self, place: Place) -> bool {
        let Some(entry) = place.command.checked_sub(self.first).and_then(|n| self.queue.get(n as usize)) else {
            return false;
        };
        let Some(key) = entry.parts().get(place.task as usize).map(|part| part.key) else { return false };
        let from = (place.command - self.first) as usize;
        let later = self.queue.iter().enumerate().skip(from).flat_map(|(n, entry)| {
            let skip = if n == from { place.task as usize + 1 } else { 0 };
            entry.parts().iter().skip(skip)
        });
        later.filter(|part| part.write && part.key == key).all(|part| matches!(part.state, State::Retried))
    }

    fn entry(&mut self, place: Place) -> Option<&mut Entry> {
        self.queue.get_mut(place.command.checked_sub(self.first)? as usize)
    }

    /// Writes the replies that are complete, in order, as far as the socket takes them.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.queue.front().is_some_and(|entry| entry.open == 0) {
            if let Some(entry) = self.queue.pop_front() {
                self.first += 1;
                entry.write(&mut self.output);
            }
        }
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
        Ok(())
    }
}

impl Entry {
    fn parts(&self) -> &[Part] {
        match &self.reply {
            Reply::Ready(_) => &[],
            Reply::Made(_, parts) => parts,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match &self.reply {
            Reply::Ready(reply) => out.extend_from_slice(reply),
            Reply::Made(shape, parts) => shape.write(parts.iter().map(Part::outcome), out),
        }
    }
}

impl Part {
    fn outcome(&self) -> &Outcome {
        match &self.state {
            State::Done(outcome) => outcome,
            State::UnderWay | State::Retried => unreachable!("a reply is written when all its tasks are done"),
        }
    }
}
