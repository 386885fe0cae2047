//! The state machines that users write, and the untyped form in which the engine runs them.
//!
//! There are three kinds: [`StateMachine`], in memory with exclusive access; [`ConcurrentMachine`], in memory, whose
//! lookups and saves work on point-in-time views while applies go on; [`DiskMachine`], with storage of its own. [`Machine`]
//! is what they have in common.
//!
//! Must not know: raft messages, journals, workers.

mod apply;
mod concurrent;
mod disk;
mod exclusive;
mod witness;

pub use apply::Commands;
pub use concurrent::{Concurrent, ConcurrentMachine};
pub use disk::{DiskMachine, OnDisk};
pub use exclusive::{StateMachine, Typed};
pub use witness::WitnessMachine;

use crate::codec::{Codec, OutputCodec};
use crate::completion::AnyCompletion;
use crate::files::{RecoveredFiles, SnapshotFiles};
use crate::reads::AnyReads;
use longboat_raft::{Index, Run};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// A batch of commands was applied, and the number of results is not that of the commands.
    #[error("{results} results for {commands} commands, the last of them at {last}")]
    Results {
        /// Results returned.
        results: usize,
        /// Commands in the batch.
        commands: usize,
        /// The last command.
        last: Index,
    },
    /// The storage of an on-disk state machine lacks entries that the log no longer has.
    #[error(
        "storage has applied through {applied}, entries from {needed} on are gone: the replica needs a full snapshot"
    )]
    Behind {
        /// Through where the storage has applied.
        applied: Index,
        /// The first entry that it lacks, or a later one.
        needed: Index,
    },
    /// The table of sessions in a snapshot can't be read.
    #[error("session table: {0}")]
    Sessions(String),
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

/// The kind of a state machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum MachineKind {
    /// In memory, exclusive access: [`StateMachine`].
    #[default]
    Exclusive = 1,
    /// In memory, concurrent lookups and saves: [`ConcurrentMachine`].
    Concurrent = 2,
    /// With storage of its own: [`DiskMachine`].
    OnDisk = 3,
}

/// Whether a step of a save was the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavePart {
    /// There is more to write.
    More,
    /// All is written.
    Done,
}

/// Tells long work that it should end early.
#[derive(Clone, Debug, Default)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// A signal that is given when `flag` is set.
    pub fn new(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Whether to stop: the result of what is being done is not needed any more.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A state machine of whatever kind: what is replicated, what can be asked, and how the engine runs it.
///
/// Not implemented by users: every [`StateMachine`] is one, and so is a [`Concurrent`] around a [`ConcurrentMachine`]
/// and an [`OnDisk`] around a [`DiskMachine`].
pub trait Machine: Send + Sized + 'static {
    /// What is replicated.
    type Command: Codec;
    /// What applying a command returns to who proposed it.
    type Output: Send + 'static;
    /// What can be asked.
    type Query: Send + 'static;
    /// What asking returns.
    type Answer: Send + 'static;
    /// The kind.
    const KIND: MachineKind;

    /// How results are kept for client sessions. `None` when the machine has no sessions.
    fn session_results() -> Option<OutputCodec<Self::Output>>;

    /// The form in which the engine runs it.
    fn into_dyn(self) -> Box<dyn DynMachine>;
}

/// Answers queries without the state machine, while it applies.
pub trait Lookups: Send + Sync {
    /// Answers queries.
    fn lookup(&self, reads: Box<dyn AnyReads>);
}

/// A state machine's state at one place of the log, to be written while later entries are applied.
pub trait SaveView: Send {
    /// Writes the next part, about a block's worth or all there is. Not called again after [`SavePart::Done`].
    ///
    /// # Errors
    /// The user's, or the writer's.
    fn write_part(&mut self, out: &mut dyn io::Write) -> Result<SavePart, MachineError>;

    /// Names the files that belong to the state.
    ///
    /// # Errors
    /// The user's.
    fn files(&mut self, _files: &mut SnapshotFiles) -> Result<(), MachineError> {
        Ok(())
    }
}

/// A state machine whose types the engine does not know.
pub trait DynMachine: Send {
    /// The kind.
    fn kind(&self) -> MachineKind {
        MachineKind::Exclusive
    }

    /// Applies the commands of `run` in order. Their results go to the slots of `results` from the given one on, one slot an entry.
    ///
    /// # Errors
    /// The first error; the commands before it were applied and completed.
    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError>;

    /// Answers queries, with the machine at hand.
    fn lookup(&self, reads: Box<dyn AnyReads>);

    /// What answers queries without the machine, if this kind has that. Good for as long as the machine lives.
    fn lookups(&self) -> Option<Arc<dyn Lookups>> {
        None
    }

    /// The table of sessions as it is now, for a snapshot. Empty when there is none.
    fn sessions(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Replaces the table of sessions by one that [`DynMachine::sessions`] returned.
    ///
    /// # Errors
    /// When the bytes are not one.
    fn restore_sessions(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        if bytes.is_empty() { Ok(()) } else { Err(MachineError::Sessions("this state machine has none".to_owned())) }
    }

    /// The state as it is now, to be saved while applies go on. `None` when the kind must be saved with
    /// [`DynMachine::save`] while nothing is applied.
    ///
    /// # Errors
    /// The user's.
    fn prepare(&mut self) -> Result<Option<Box<dyn SaveView>>, MachineError> {
        Ok(None)
    }

    /// See [`StateMachine::save`].
    ///
    /// # Errors
    /// The user's.
    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError>;

    /// See [`StateMachine::save_files`].
    ///
    /// # Errors
    /// The user's.
    fn save_files(&self, _files: &mut SnapshotFiles) -> Result<(), MachineError> {
        Ok(())
    }

    /// See [`StateMachine::recover`].
    ///
    /// # Errors
    /// The user's.
    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError>;

    /// See [`StateMachine::recover_files`].
    ///
    /// # Errors
    /// The user's.
    fn recover_files(&mut self, files: &RecoveredFiles) -> Result<(), MachineError> {
        files.none_expected()
    }

    /// See [`StateMachine::state_hash`]. With sessions, their table is part of the state.
    fn state_hash(&self) -> Option<u64>;

    /// See [`DiskMachine::open`]. Zero for a machine in memory: it starts with nothing.
    ///
    /// # Errors
    /// The user's.
    fn open(&mut self, _stop: &StopSignal) -> Result<Index, MachineError> {
        Ok(Index::ZERO)
    }

    /// Makes all that was applied durable in the machine's own storage. Nothing for a machine in memory.
    ///
    /// # Errors
    /// The user's.
    fn sync(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Where the machine's own storage stands. `None` for a machine in memory.
    fn storage(&self) -> Option<StorageState> {
        None
    }

    /// The state is to be that of the snapshot at `index`, which is the machine's own storage when that was saved with
    /// `last_command` applied. Later entries follow.
    ///
    /// # Errors
    /// [`MachineError::Behind`] when the storage does not have that.
    fn resume_at(&mut self, _index: Index, _last_command: Index) -> Result<(), MachineError> {
        Err(MachineError::user("a snapshot without state can't restore a state machine in memory"))
    }

    /// The whole state was just recovered from the snapshot at `index`, whose last command is `last_command`.
    fn recovered_at(&mut self, _index: Index, _last_command: Index) {}
}

/// Where the storage of an on-disk state machine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageState {
    /// Through which entry it has applied, entries that are no commands included.
    pub applied: Index,
    /// The last command among these: what [`DiskMachine::open`] must return at least, once all is durable.
    pub last_command: Index,
    /// Through which entry it would be whole after a power loss.
    pub durable: Index,
}
