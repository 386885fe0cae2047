//! State machines in memory whose lookups and saves work on point-in-time views, while applies go on.
//!
//! Invariant: the view that lookups see is published after a batch was applied and before the batch's results are
//! handed out, so that who was told of a command's result finds its effect.

use super::apply::{Applier, Applies, Commands};
use super::{DynMachine, Lookups, Machine, MachineError, MachineKind, SavePart, SaveView};
use crate::codec::{Codec, OutputCodec};
use crate::completion::AnyCompletion;
use crate::error::RequestError;
use crate::files::{RecoveredFiles, SnapshotFiles};
use crate::reads::{AnyReads, Reads};
use longboat_raft::{Index, Run, plant};
use parking_lot::RwLock;
use std::io;
use std::sync::Arc;

/// A replicated state machine in memory that is looked up and saved while commands are applied.
///
/// Deterministic as a [`StateMachine`](super::StateMachine). Start it as `Concurrent(machine)`.
pub trait ConcurrentMachine: Send + 'static {
    /// What is replicated.
    type Command: Codec;
    /// What applying a command returns to who proposed it.
    type Output: Send + 'static;
    /// What can be asked.
    type Query: Send + 'static;
    /// What asking returns.
    type Answer: Send + 'static;
    /// The state at one moment: no later command changes what it shows.
    type View: Send + Sync + 'static;

    /// Applies the command at `index`.
    ///
    /// # Errors
    /// An error stops this replica. A command that is merely not possible is an `Output`, the same on every replica.
    fn apply(&mut self, index: Index, command: Self::Command) -> Result<Self::Output, MachineError>;

    /// Applies commands that were committed together. See [`StateMachine::apply_batch`](super::StateMachine::apply_batch).
    ///
    /// # Errors
    /// As [`ConcurrentMachine::apply`].
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

    /// The state as it is now. Called after every batch, so it must cost little: a handle on a persistent structure, or on
    /// versions that are kept apart, and never a copy of the state.
    fn view(&self) -> Self::View;

    /// Answers a query. Many run at once, and while commands are applied.
    ///
    /// # Errors
    /// An error fails this query and stops nothing.
    fn lookup(view: &Self::View, query: Self::Query) -> Result<Self::Answer, MachineError>;

    /// Writes the whole state, while commands are applied.
    ///
    /// # Errors
    /// Pass on the writer's errors: a stop request is one.
    fn save(view: &Self::View, out: &mut dyn io::Write) -> Result<(), MachineError>;

    /// Names files that belong to the view's state. They must not change while the view lives.
    ///
    /// # Errors
    /// An error fails the save and stops nothing.
    fn save_files(_view: &Self::View, _files: &mut SnapshotFiles) -> Result<(), MachineError> {
        Ok(())
    }

    /// Replaces the whole state by one that [`ConcurrentMachine::save`] wrote, perhaps on another host.
    ///
    /// # Errors
    /// An error stops this replica.
    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError>;

    /// See [`StateMachine::recover_files`](super::StateMachine::recover_files).
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

    /// See [`StateMachine::session_results`](super::StateMachine::session_results).
    fn session_results() -> Option<OutputCodec<Self::Output>> {
        None
    }
}

/// Makes a [`ConcurrentMachine`] a [`Machine`].
#[derive(Clone, Debug)]
pub struct Concurrent<M>(pub M);

impl<M: ConcurrentMachine> Machine for Concurrent<M> {
    type Command = M::Command;
    type Output = M::Output;
    type Query = M::Query;
    type Answer = M::Answer;
    const KIND: MachineKind = MachineKind::Concurrent;

    fn session_results() -> Option<OutputCodec<M::Output>> {
        M::session_results()
    }

    fn into_dyn(self) -> Box<dyn DynMachine> {
        Box::new(TypedConcurrent::new(self))
    }
}

impl<M: ConcurrentMachine> Applies for Concurrent<M> {
    type Command = M::Command;
    type Output = M::Output;

    fn apply_batch(
        &mut self,
        commands: &mut Commands<'_, M::Command>,
        outputs: &mut Vec<M::Output>,
    ) -> Result<(), MachineError> {
        self.0.apply_batch(commands, outputs)
    }
}

/// The newest view. Its lock is held for as long as taking or replacing an `Arc` lasts.
struct ViewCell<M: ConcurrentMachine>(RwLock<Arc<M::View>>);

impl<M: ConcurrentMachine> Lookups for ViewCell<M> {
    fn lookup(&self, reads: Box<dyn AnyReads>) {
        let view = Arc::clone(&self.0.read());
        Reads::<Concurrent<M>>::answer(reads, |query| {
            M::lookup(&view, query).map_err(|e| RequestError::LookupFailed(e.to_string()))
        });
    }
}

struct TypedConcurrent<M: ConcurrentMachine> {
    machine: Concurrent<M>,
    applier: Applier<M::Output>,
    newest: Arc<ViewCell<M>>,
}

impl<M: ConcurrentMachine> TypedConcurrent<M> {
    fn new(machine: Concurrent<M>) -> Self {
        let newest = Arc::new(ViewCell(RwLock::new(Arc::new(machine.0.view()))));
        Self { machine, applier: Applier::new(M::session_results()), newest }
    }

    fn publish(&self) {
        let view = Arc::new(self.machine.0.view());
        let old = std::mem::replace(&mut *self.newest.0.write(), view);
        // Outside of the lock: the last handle on an old view may free much.
        drop(old);
    }
}

impl<M: ConcurrentMachine> DynMachine for TypedConcurrent<M> {
    fn kind(&self) -> MachineKind {
        MachineKind::Concurrent
    }

    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        let applied = self.applier.apply(&mut self.machine, run, Index::ZERO);
        if !plant::is("view-published-late") {
            self.publish();
        }
        self.applier.complete(results);
        if plant::is("view-published-late") {
            self.publish();
        }
        applied
    }

    fn lookup(&self, reads: Box<dyn AnyReads>) {
        self.newest.lookup(reads);
    }

    fn lookups(&self) -> Option<Arc<dyn Lookups>> {
        Some(Arc::clone(&self.newest) as Arc<dyn Lookups>)
    }

    fn sessions(&self) -> Vec<u8> {
        self.applier.sessions()
    }

    fn restore_sessions(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.applier.restore_sessions(bytes)
    }

    fn prepare(&mut self) -> Result<Option<Box<dyn SaveView>>, MachineError> {
        Ok(Some(Box::new(ConcurrentSave::<M>(Arc::clone(&self.newest.0.read())))))
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        M::save(&self.machine.0.view(), out)
    }

    fn save_files(&self, files: &mut SnapshotFiles) -> Result<(), MachineError> {
        M::save_files(&self.machine.0.view(), files)
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let recovered = self.machine.0.recover(input);
        self.publish();
        recovered
    }

    fn recover_files(&mut self, files: &RecoveredFiles) -> Result<(), MachineError> {
        let recovered = self.machine.0.recover_files(files);
        self.publish();
        recovered
    }

    fn state_hash(&self) -> Option<u64> {
        self.applier.state_hash(self.machine.0.state_hash())
    }
}

struct ConcurrentSave<M: ConcurrentMachine>(Arc<M::View>);

impl<M: ConcurrentMachine> SaveView for ConcurrentSave<M> {
    fn write_part(&mut self, out: &mut dyn io::Write) -> Result<SavePart, MachineError> {
        M::save(&self.0, out)?;
        Ok(SavePart::Done)
    }

    fn files(&mut self, files: &mut SnapshotFiles) -> Result<(), MachineError> {
        M::save_files(&self.0, files)
    }
}
