//! Applying runs of entries, the same for every kind of state machine: decoding, sessions, results.
//!
//! Invariants: every command is given to the machine once and in order; a command of a session is given to it only
//! when the table of sessions says so; entries without a session pay nothing for those that have one.

use super::MachineError;
use crate::codec::{Codec, CodecError, OutputCodec, Payload};
use crate::completion::{AnyCompletion, Completion};
use crate::error::RequestError;
use crate::packed;
use crate::session::{SessionAnswer, SessionTable, Verdict};
use longboat_raft::run::Entries;
use longboat_raft::{EntryKind, EntryRef, Index, PayloadCodec, Run, SessionCall, plant, sometimes};
use std::any::Any;
use std::cell::Cell;

/// Commands that were committed together, each with its index, in order.
#[derive(Debug)]
pub struct Commands<'a, C> {
    run: &'a Run,
    /// What comes after; `None` for one entry alone.
    entries: Option<Entries<'a>>,
    /// Decoded ahead, so that a batch is known to have a command.
    ahead: Option<(Index, C)>,
    /// The entry of a session at which the batch ended.
    session: Option<EntryRef<'a>>,
    error: Option<MachineError>,
    given: usize,
    last: Index,
}

impl<'a, C: Codec> Commands<'a, C> {
    fn new(run: &'a Run, entries: Entries<'a>) -> Self {
        let last = run.first().prev();
        let mut commands =
            Self { run, entries: Some(entries), ahead: None, session: None, error: None, given: 0, last };
        commands.ahead = commands.advance();
        commands
    }

    /// The command of one entry alone.
    fn only(run: &'a Run, entry: &EntryRef<'a>) -> Self {
        let mut commands =
            Self { run, entries: None, ahead: None, session: None, error: None, given: 0, last: entry.index };
        commands.ahead = commands.decode(entry);
        commands
    }

    fn decode(&mut self, entry: &EntryRef<'a>) -> Option<(Index, C)> {
        let decoded = match entry.codec {
            PayloadCodec::Plain => C::decode(match self.run.payload_memory() {
                Some((memory, area)) => {
                    let at = area + entry.payload_offset;
                    Payload::new(memory, at..at + entry.payload.len())
                }
                None => Payload::borrowed(entry.payload),
            }),
            _ => decode_packed(entry),
        };
        match decoded {
            Ok(command) => {
                self.given += 1;
                self.last = entry.index;
                Some((entry.index, command))
            }
            Err(source) => {
                self.error = Some(MachineError::Decode { index: entry.index, source });
                None
            }
        }
    }

    fn advance(&mut self) -> Option<(Index, C)> {
        while self.session.is_none() && self.error.is_none() {
            let entry = self.entries.as_mut()?.next()?;
            if entry.session.is_some() {
                self.session = Some(entry);
            } else if entry.kind == EntryKind::Command {
                return self.decode(&entry);
            }
        }
        None
    }
}

impl<C: Codec> Iterator for Commands<'_, C> {
    type Item = (Index, C);

    fn next(&mut self) -> Option<(Index, C)> {
        if self.ahead.is_some() {
            return self.ahead.take();
        }
        self.advance()
    }
}

/// A command that was compressed where it was proposed.
fn decode_packed<C: Codec>(entry: &EntryRef<'_>) -> Result<C, CodecError> {
    let unpacked = packed::unpack(entry)?.expect("its codec is another than plain");
    sometimes!("payload-unpacked");
    C::decode(Payload::new(&unpacked, 0..unpacked.len()))
}

/// The entry of a session at which a batch ended, and the entries after that.
type Left<'a> = Option<(EntryRef<'a>, Entries<'a>)>;

/// What runs are applied to.
pub(super) trait Applies {
    type Command: Codec;
    type Output: Send + 'static;

    fn apply_batch(
        &mut self,
        commands: &mut Commands<'_, Self::Command>,
        outputs: &mut Vec<Self::Output>,
    ) -> Result<(), MachineError>;
}

/// The results of the run being applied.
#[derive(Debug)]
struct Results<O> {
    outputs: Vec<O>,
    /// Results of a run with sessions, of which some are refusals. Empty otherwise.
    mixed: Vec<Result<O, RequestError>>,
    /// Answers to what a run asked of the table itself, by position.
    answers: Vec<(usize, Result<SessionAnswer, RequestError>)>,
}

thread_local! {
    /// The room for results that the last run on this thread took, so that the steady path allocates nothing. It belongs to the
    /// thread and not to a replica: one run is applied at a time, and thousands of replicas that had room of their own would keep
    /// it, outside of every cache, for the next time that each of them has something to apply.
    static ROOM: Cell<Option<Box<dyn Any>>> = const { Cell::new(None) };
}

impl<O: Send + 'static> Results<O> {
    /// Empty ones, in the room that results of this type had last.
    fn empty() -> Box<Self> {
        let room = ROOM.take().and_then(|room| room.downcast().ok());
        room.unwrap_or_else(|| Box::new(Self { outputs: Vec::new(), mixed: Vec::new(), answers: Vec::new() }))
    }

    fn complete(&mut self, completion: &dyn AnyCompletion, first: u32) {
        if let Some(completion) = completion.as_any().downcast_ref::<Completion<O>>() {
            if self.mixed.is_empty() {
                completion.complete(first, self.outputs.drain(..).map(Ok));
            } else {
                self.mixed.extend(self.outputs.drain(..).map(Ok));
                completion.complete(first, self.mixed.drain(..));
            }
        } else if let Some(completion) = completion.as_any().downcast_ref::<Completion<SessionAnswer>>() {
            for (at, answer) in self.answers.drain(..) {
                completion.complete(first + at as u32, std::iter::once(answer));
            }
        } else {
            unreachable!("a group's completions are made by its own typed handle");
        }
    }

    /// Leaves the room to the next run. What was not handed out goes: nobody is to find it.
    fn done(mut self: Box<Self>) {
        self.outputs.clear();
        self.mixed.clear();
        self.answers.clear();
        ROOM.set(Some(self));
    }
}

/// Applies runs and keeps the table of sessions.
#[derive(Debug)]
pub(super) struct Applier<O> {
    /// Between [`Applier::apply`] and [`Applier::complete`].
    results: Option<Box<Results<O>>>,
    codec: Option<OutputCodec<O>>,
    table: Option<Box<SessionTable>>,
}

impl<O: Send + 'static> Applier<O> {
    pub(super) fn new(codec: Option<OutputCodec<O>>) -> Self {
        Self { results: None, codec, table: None }
    }

    /// Gives the machine what is new of `run`: what comes after `through`. The results wait for [`Applier::complete`].
    pub(super) fn apply<M>(&mut self, machine: &mut M, run: &Run, through: Index) -> Result<(), MachineError>
    where
        M: Applies<Output = O>,
    {
        let mut results = Results::empty();
        let applied = self.apply_to(machine, run, through, &mut results);
        self.results = Some(results);
        applied
    }

    fn apply_to<M>(
        &mut self,
        machine: &mut M,
        run: &Run,
        through: Index,
        results: &mut Results<O>,
    ) -> Result<(), MachineError>
    where
        M: Applies<Output = O>,
    {
        let mut entries = run.entries();
        if through >= run.first() {
            let skipped = (through.0.min(run.last().0) - run.first().0 + 1) as usize;
            entries.nth(skipped - 1);
            results.mixed.extend((0..skipped).map(|_| Err(RequestError::OutcomeUnknown)));
        }
        loop {
            let commands = Commands::new(run, entries);
            let (left, applied) = Self::batch(machine, commands, results);
            applied?;
            let Some((entry, rest)) = left else { return Ok(()) };
            entries = rest;
            results.mixed.extend(results.outputs.drain(..).map(Ok));
            let result = self.session_entry(machine, run, &entry, results)?;
            results.mixed.push(result);
        }
    }

    /// Applies one batch; returns the entry of a session at which it ended, and the entries after that.
    fn batch<'a, M>(
        machine: &mut M,
        mut commands: Commands<'a, M::Command>,
        results: &mut Results<O>,
    ) -> (Left<'a>, Result<(), MachineError>)
    where
        M: Applies<Output = O>,
    {
        let outputs = &mut results.outputs;
        let before = outputs.len();
        if commands.ahead.is_some()
            && let Err(error) = machine.apply_batch(&mut commands, outputs)
        {
            return (None, Err(error));
        }
        // A machine that takes fewer commands than there are, or counts them differently, would leave its replicas apart.
        let results = outputs.len() - before;
        if results != commands.given || commands.ahead.is_some() || commands.next().is_some() {
            let Commands { given, last, .. } = commands;
            return (None, Err(MachineError::Results { results, commands: given, last }));
        }
        match commands.error {
            Some(error) => (None, Err(error)),
            None => (commands.session.zip(commands.entries), Ok(())),
        }
    }

    /// One entry of a session.
    fn session_entry<M>(
        &mut self,
        machine: &mut M,
        run: &Run,
        entry: &EntryRef<'_>,
        results: &mut Results<O>,
    ) -> Result<Result<O, RequestError>, MachineError>
    where
        M: Applies<Output = O>,
    {
        let call = entry.session.expect("called for entries of sessions");
        let Some(codec) = self.codec else {
            results.answers.push((results.mixed.len(), Err(RequestError::SessionsUnsupported)));
            return Ok(Err(RequestError::SessionsUnsupported));
        };
        let (session, series) = match call {
            SessionCall::Propose { session, series, responded_to } => {
                match SessionTable::propose(&mut self.table, entry.index, session, series, responded_to) {
                    Verdict::Apply => (session, series),
                    Verdict::Answered(_) if plant::is("session-retry-applied") => (session, series),
                    Verdict::Expired if plant::is("evicted-session-applied") => (session, series),
                    Verdict::Answered(bytes) => return Ok(codec.decode(bytes)),
                    refused => return Ok(Err(refused.error())),
                }
            }
            SessionCall::Register { sessions_max } => {
                let id = SessionTable::register(&mut self.table, entry.index, sessions_max);
                results.answers.push((results.mixed.len(), Ok(SessionAnswer::Registered(id))));
                return Ok(Err(RequestError::OutcomeUnknown));
            }
            SessionCall::Close { session } => {
                let existed = SessionTable::close(&mut self.table, session);
                results.answers.push((results.mixed.len(), Ok(SessionAnswer::Closed { existed })));
                return Ok(Err(RequestError::OutcomeUnknown));
            }
        };
        let (_, applied) = Self::batch(machine, Commands::only(run, entry), results);
        applied?;
        let output = results.outputs.pop().expect("a batch of one command has one result, that was checked");
        SessionTable::keep_result(&mut self.table, session, series, codec.encode(&output));
        Ok(Ok(output))
    }

    /// Hands out the results of the last run. Those of calls to the table itself go to a completion of their own type.
    pub(super) fn complete(&mut self, results: Option<(&dyn AnyCompletion, u32)>) {
        let mut of_run = self.results.take().expect("a run was applied");
        if let Some((completion, first)) = results {
            of_run.complete(completion, first);
        }
        of_run.done();
    }

    /// The table of sessions, encoded; empty when there is none.
    pub(super) fn sessions(&self) -> Vec<u8> {
        if plant::is("sessions-not-saved") {
            return Vec::new();
        }
        self.table.as_ref().map(|table| table.encode()).unwrap_or_default()
    }

    pub(super) fn restore_sessions(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.table = if bytes.is_empty() { None } else { Some(Box::new(SessionTable::decode(bytes)?)) };
        Ok(())
    }

    /// The machine's hash and that of the table of sessions as one.
    pub(super) fn state_hash(&self, machine: Option<u64>) -> Option<u64> {
        let hash = machine?;
        Some(self.table.as_ref().map_or(hash, |table| hash.rotate_left(17) ^ table.hash()))
    }
}
