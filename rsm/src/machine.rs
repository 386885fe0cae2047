//! The state machines that users write, and the untyped form in which the engine runs them.

use crate::codec::{Codec, Payload};
use crate::completion::{AnyCompletion, Completion};
use crate::error::RequestError;
use crate::reads::{AnyReads, Reads};
use longboat_raft::{EntryKind, Index, Run};
use std::io;

/// The user's state machine failed. Its replica stops; other groups go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A command of the log can't be decoded.
    #[error("entry {index}: {source}")]
    Decode {
        /// The entry.
        index: Index,
        /// What is wrong with it.
        source: crate::codec::CodecError,
    },
    /// Reading or writing a snapshot failed.
    #[error("snapshot: {0}")]
    Io(#[from] io::Error),
    /// The user's code returned this error.
    #[error("{0}")]
    User(Box<dyn std::error::Error + Send + Sync>),
}

impl MachineError {
    /// Wraps an error of the user's own.
    pub fn user(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::User(error.into())
    }
}

/// A replicated state machine in memory, with exclusive access: one call at a time.
///
/// It must be deterministic: the same commands in the same order give the same state and the same outputs on every
/// replica. No clocks, no randomness, no iteration order of hash maps.
pub trait StateMachine: Send + 'static {
    /// What is replicated.
    type Command: Codec;
    /// What applying a command returns to who proposed it. Made on every replica, seen on one; never encoded.
    type Output: Send + 'static;
    /// What can be asked.
    type Query: Send + 'static;
    /// What asking returns.
    type Answer: Send + 'static;

    /// Applies the command at `index`.
    ///
    /// # Errors
    /// An error stops this replica. A command that is merely not possible is an `Output`, the same on every replica.
    fn apply(&mut self, index: Index, command: Self::Command) -> Result<Self::Output, MachineError>;

    /// Answers a query. Changes nothing that is replicated.
    ///
    /// # Errors
    /// An error fails this query and stops nothing.
    fn lookup(&self, query: Self::Query) -> Result<Self::Answer, MachineError>;

    /// Writes the whole state.
    ///
    /// # Errors
    /// Pass on the writer's errors: a stop request is one.
    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError>;

    /// Replaces the whole state by one that [`StateMachine::save`] wrote, perhaps on another host.
    ///
    /// # Errors
    /// An error stops this replica.
    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError>;

    /// A hash of the replicated state, for comparing replicas at equal index. `None` when there is none.
    fn state_hash(&self) -> Option<u64> {
        None
    }
}

/// A state machine whose types the engine does not know.
pub trait DynMachine: Send {
    /// Applies the commands of `run` in order. Their results go to the slots of `results` from the given one on, one slot an entry.
    ///
    /// # Errors
    /// The first error; the commands before it were applied and completed.
    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError>;

    /// Answers queries.
    fn lookup(&self, reads: Box<dyn AnyReads>);

    /// See [`StateMachine::save`].
    ///
    /// # Errors
    /// The user's.
    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError>;

    /// See [`StateMachine::recover`].
    ///
    /// # Errors
    /// The user's.
    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError>;

    /// See [`StateMachine::state_hash`].
    fn state_hash(&self) -> Option<u64>;
}

/// What a witness has in place of a state machine: nothing is applied, nothing can be asked, nothing is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WitnessMachine;

impl DynMachine for WitnessMachine {
    fn apply_run(&mut self, _run: &Run, _results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        Ok(())
    }

    fn lookup(&self, reads: Box<dyn AnyReads>) {
        reads.fail(&RequestError::LookupFailed("a witness has no state".to_owned()));
    }

    fn save(&self, _out: &mut dyn io::Write) -> Result<(), MachineError> {
        Err(MachineError::user("a witness has no state to save"))
    }

    fn recover(&mut self, _input: &mut dyn io::Read) -> Result<(), MachineError> {
        Err(MachineError::user("a witness has no state to recover"))
    }

    fn state_hash(&self) -> Option<u64> {
        None
    }
}

/// A typed state machine in its untyped form.
#[derive(Debug)]
pub struct Typed<S: StateMachine> {
    machine: S,
    /// Results of the run being applied; kept so that the steady path allocates nothing.
    outputs: Vec<S::Output>,
}

impl<S: StateMachine> Typed<S> {
    /// Wraps `machine`.
    pub fn new(machine: S) -> Self {
        Self { machine, outputs: Vec::new() }
    }

    fn apply_entries(&mut self, run: &Run) -> Result<(), MachineError> {
        for entry in run.entries() {
            if entry.kind != EntryKind::Command {
                continue;
            }
            let range = entry.payload_offset..entry.payload_offset + entry.payload.len();
            let command = S::Command::decode(Payload::new(run.payload(), range))
                .map_err(|source| MachineError::Decode { index: entry.index, source })?;
            let output = self.machine.apply(entry.index, command)?;
            self.outputs.push(output);
        }
        Ok(())
    }
}

impl<S: StateMachine> DynMachine for Typed<S> {
    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        self.outputs.clear();
        let applied = self.apply_entries(run);
        match results {
            Some((results, first)) => {
                let completion = results
                    .as_any()
                    .downcast_ref::<Completion<S::Output>>()
                    .expect("a group's completions are made by its own typed handle");
                completion.complete(first, self.outputs.drain(..).map(Ok));
            }
            None => self.outputs.clear(),
        }
        applied
    }

    fn lookup(&self, mut reads: Box<dyn AnyReads>) {
        let reads =
            reads.as_any_mut().downcast_mut::<Reads<S>>().expect("a group's reads are made by its own typed handle");
        let answers: Vec<_> = reads
            .take_queries()
            .into_iter()
            .map(|q| self.machine.lookup(q).map_err(|e| RequestError::LookupFailed(e.to_string())))
            .collect();
        reads.completion().complete(0, answers.into_iter());
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        self.machine.save(out)
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        self.machine.recover(input)
    }

    fn state_hash(&self) -> Option<u64> {
        self.machine.state_hash()
    }
}
