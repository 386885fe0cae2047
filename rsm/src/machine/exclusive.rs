//! State machines in memory with exclusive access: one call at a time.

use super::apply::{Applier, Applies, Commands};
use super::{DynMachine, Machine, MachineError, MachineKind};
use crate::codec::{Codec, OutputCodec};
use crate::completion::AnyCompletion;
use crate::error::RequestError;
use crate::files::{RecoveredFiles, SnapshotFiles};
use crate::reads::{AnyReads, Reads};
use longboat_raft::{Index, Run};
use std::io;

/// A replicated state machine in memory, with exclusive access: one call at a time.
///
/// It must be deterministic: the same commands in the same order give the same state and the same outputs on every
/// replica. No clocks, no randomness, no iteration order of hash maps.
pub trait StateMachine: Send + 'static {
    /// What is replicated.
    type Command: Codec;
    /// What applying a command returns to who proposed it. Made on every replica, seen on one; encoded only for sessions.
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

    /// Applies commands that were committed together, for a machine that can do that at less cost than one by one. It must
    /// take them all and push one output for each, in order. How commands fall into batches differs between replicas.
    ///
    /// # Errors
    /// As [`StateMachine::apply`]. What was pushed before counts as applied.
    fn apply_batch(
        &mut self,
        commands: &mut Commands<'_, Self::Command>,
        outputs: &mut Vec<Self::Output>,
    ) -> Result<(), MachineError> {
        for (index, command) in commands {
            outputs.push(self.apply(index, command)?);
        }
        Ok(())
    }

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

    /// Names files that belong to the state besides what [`StateMachine::save`] wrote. They become part of the snapshot, and
    /// must not change until the next call of this method.
    ///
    /// # Errors
    /// An error fails the save and stops nothing.
    fn save_files(&self, _files: &mut SnapshotFiles) -> Result<(), MachineError> {
        Ok(())
    }

    /// Replaces the whole state by one that [`StateMachine::save`] wrote, perhaps on another host.
    ///
    /// # Errors
    /// An error stops this replica.
    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError>;

    /// Takes over the files of the snapshot, after [`StateMachine::recover`]. They are the machine's to rename; what it leaves
    /// is removed when this returns.
    ///
    /// # Errors
    /// An error stops this replica.
    fn recover_files(&mut self, files: &RecoveredFiles) -> Result<(), MachineError> {
        files.none_expected()
    }

    /// A hash of the replicated state, for comparing replicas at equal index. `None` when there is none.
    fn state_hash(&self) -> Option<u64> {
        None
    }

    /// How results are kept for client sessions, so that a retry is answered with the result of the first attempt:
    /// `Some(OutputCodec::new())` where the output has a [`Codec`]. `None`: the machine has no sessions.
    fn session_results() -> Option<OutputCodec<Self::Output>> {
        None
    }
}

impl<S: StateMachine> Machine for S {
    type Command = S::Command;
    type Output = S::Output;
    type Query = S::Query;
    type Answer = S::Answer;
    const KIND: MachineKind = MachineKind::Exclusive;

    fn session_results() -> Option<OutputCodec<S::Output>> {
        <S as StateMachine>::session_results()
    }

    fn into_dyn(self) -> Box<dyn DynMachine> {
        Box::new(Typed::new(self))
    }
}

impl<S: StateMachine> Applies for S {
    type Command = S::Command;
    type Output = S::Output;

    fn apply_batch(
        &mut self,
        commands: &mut Commands<'_, S::Command>,
        outputs: &mut Vec<S::Output>,
    ) -> Result<(), MachineError> {
        StateMachine::apply_batch(self, commands, outputs)
    }
}

/// A [`StateMachine`] in its untyped form.
#[derive(Debug)]
pub struct Typed<S: StateMachine> {
    machine: S,
    applier: Applier<S::Output>,
}

impl<S: StateMachine> Typed<S> {
    /// Wraps `machine`.
    pub fn new(machine: S) -> Self {
        Self { machine, applier: Applier::new(<S as StateMachine>::session_results()) }
    }
}

impl<S: StateMachine> DynMachine for Typed<S> {
    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        let applied = self.applier.apply(&mut self.machine, run, Index::ZERO);
        self.applier.complete(results);
        applied
    }

    fn lookup(&self, reads: Box<dyn AnyReads>) {
        Reads::<S>::answer(reads, |query| {
            self.machine.lookup(query).map_err(|e| RequestError::LookupFailed(e.to_string()))
        });
    }

    fn sessions(&self) -> Vec<u8> {
        self.applier.sessions()
    }

    fn restore_sessions(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.applier.restore_sessions(bytes)
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        self.machine.save(out)
    }

    fn save_files(&self, files: &mut SnapshotFiles) -> Result<(), MachineError> {
        self.machine.save_files(files)
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        self.machine.recover(input)
    }

    fn recover_files(&mut self, files: &RecoveredFiles) -> Result<(), MachineError> {
        self.machine.recover_files(files)
    }

    fn state_hash(&self) -> Option<u64> {
        self.applier.state_hash(self.machine.state_hash())
    }
}
