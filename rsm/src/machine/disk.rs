//! State machines with storage of their own.
//!
//! Invariants: such a machine is never given an entry twice, nor one before those that it lacks; what its storage would
//! hold after a power loss is told apart from what it holds.

use super::apply::{Applier, Applies, Commands};
use super::{DynMachine, Lookups, Machine, MachineError, MachineKind, SavePart, SaveView, StopSignal, StorageState};
use crate::codec::{Codec, OutputCodec};
use crate::completion::AnyCompletion;
use crate::error::RequestError;
use crate::reads::{AnyReads, Reads};
use longboat_raft::{EntryKind, Index, Run, plant};
use parking_lot::RwLock;
use std::io;
use std::sync::Arc;

/// A replicated state machine whose state lies in storage of its own, such as a key-value store that many groups share.
///
/// Deterministic as a [`StateMachine`](super::StateMachine). It keeps the index of the last command that it applied
/// together with the state, in one atomic write. It has no registered client sessions: their table would have to be part
/// of that write. Start it as `OnDisk(machine)`.
pub trait DiskMachine: Send + 'static {
    /// What is replicated.
    type Command: Codec;
    /// What applying a command returns to who proposed it.
    type Output: Send + 'static;
    /// What can be asked.
    type Query: Send + 'static;
    /// What asking returns.
    type Answer: Send + 'static;
    /// Reads the storage while commands are applied to it.
    type Reader: Send + Sync + 'static;
    /// The state at one moment, and how much of it has been written.
    type View: Send + 'static;

    /// Opens or makes the storage and returns the index of the last command in it, zero if there is none. Called once,
    /// before anything else.
    ///
    /// # Errors
    /// An error stops this replica.
    fn open(&mut self, stop: &StopSignal) -> Result<Index, MachineError>;

    /// A reader of the storage. Called after [`DiskMachine::open`] and after [`DiskMachine::recover`].
    fn reader(&self) -> Self::Reader;

    /// Answers a query. Many run at once, and while commands are applied.
    ///
    /// # Errors
    /// An error fails this query and stops nothing.
    fn lookup(reader: &Self::Reader, query: Self::Query) -> Result<Self::Answer, MachineError>;

    /// Applies commands that were committed together, all of them, and pushes one output for each, in order. The last index
    /// is to be written with them. Nothing needs to be durable when this returns.
    ///
    /// # Errors
    /// An error stops this replica.
    fn apply_batch(
        &mut self,
        commands: &mut Commands<'_, Self::Command>,
        outputs: &mut Vec<Self::Output>,
    ) -> Result<(), MachineError>;

    /// Makes all that was applied durable.
    ///
    /// # Errors
    /// An error stops this replica.
    fn sync(&mut self) -> Result<(), MachineError>;

    /// The last command that would be there after a power loss, for storage that knows. `None`: [`DiskMachine::sync`] is
    /// called instead, before the log lets go of entries. For thousands of groups that share one store this saves a sync each.
    fn durable_applied(&self) -> Option<Index> {
        None
    }

    /// The state as it is now, to be written out while commands are applied.
    ///
    /// # Errors
    /// An error fails what the state was wanted for and stops nothing.
    fn prepare(&mut self) -> Result<Self::View, MachineError>;

    /// Writes the next part of the state, the index of its last command included: some hundred kilobytes, or all there is.
    ///
    /// # Errors
    /// Pass on the writer's errors: a stop request is one.
    fn save_part(view: &mut Self::View, out: &mut dyn io::Write) -> Result<SavePart, MachineError>;

    /// Replaces the whole state by one that [`DiskMachine::save_part`] wrote, perhaps on another host, and makes it durable.
    /// When this is cut off, [`DiskMachine::open`] must find the state before it, or the one after it, or none at index zero.
    ///
    /// # Errors
    /// An error stops this replica.
    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError>;

    /// A hash of the replicated state, for comparing replicas at equal index. `None` when there is none.
    fn state_hash(&self) -> Option<u64> {
        None
    }
}

/// Makes a [`DiskMachine`] a [`Machine`].
#[derive(Clone, Debug)]
pub struct OnDisk<M>(pub M);

impl<M: DiskMachine> Machine for OnDisk<M> {
    type Command = M::Command;
    type Output = M::Output;
    type Query = M::Query;
    type Answer = M::Answer;
    const KIND: MachineKind = MachineKind::OnDisk;

    fn session_results() -> Option<OutputCodec<M::Output>> {
        None
    }

    fn into_dyn(self) -> Box<dyn DynMachine> {
        Box::new(TypedDisk::new(self))
    }
}

impl<M: DiskMachine> Applies for OnDisk<M> {
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

/// The reader, once the storage is open.
struct ReaderCell<M: DiskMachine>(RwLock<Option<Arc<M::Reader>>>);

impl<M: DiskMachine> Lookups for ReaderCell<M> {
    fn lookup(&self, reads: Box<dyn AnyReads>) {
        let reader = self.0.read().clone();
        Reads::<OnDisk<M>>::answer(reads, |query| {
            let reader = reader.as_ref().ok_or_else(|| RequestError::LookupFailed("storage is not open".to_owned()))?;
            M::lookup(reader, query).map_err(|e| RequestError::LookupFailed(e.to_string()))
        });
    }
}

struct TypedDisk<M: DiskMachine> {
    machine: OnDisk<M>,
    applier: Applier<M::Output>,
    reader: Arc<ReaderCell<M>>,
    state: StorageState,
    opened: bool,
}

impl<M: DiskMachine> TypedDisk<M> {
    fn new(machine: OnDisk<M>) -> Self {
        let reader = Arc::new(ReaderCell(RwLock::new(None)));
        Self { machine, applier: Applier::new(None), reader, state: StorageState::default(), opened: false }
    }

    fn check_open(&self) -> Result<(), MachineError> {
        if self.opened { Ok(()) } else { Err(MachineError::user("storage is used before it was opened")) }
    }

    fn publish_reader(&self) {
        let reader = Arc::new(self.machine.0.reader());
        let old = self.reader.0.write().replace(reader);
        // Outside of the lock: the last handle on former storage may close files.
        drop(old);
    }
}

impl<M: DiskMachine> DynMachine for TypedDisk<M> {
    fn kind(&self) -> MachineKind {
        MachineKind::OnDisk
    }

    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        self.check_open()?;
        let through = self.state.applied;
        if run.first() > through.next() {
            return Err(MachineError::Behind { applied: through, needed: through.next() });
        }
        let skip = if plant::is("disk-entry-applied-twice") { Index::ZERO } else { through };
        let applied = self.applier.apply(&mut self.machine, run, skip);
        if applied.is_ok() {
            self.state.applied = through.max(run.last());
            if let Some(command) = run.entries().filter(|e| e.kind == EntryKind::Command).last() {
                self.state.last_command = self.state.last_command.max(command.index);
            }
        }
        self.applier.complete(results);
        applied
    }

    fn lookup(&self, reads: Box<dyn AnyReads>) {
        self.reader.lookup(reads);
    }

    fn lookups(&self) -> Option<Arc<dyn Lookups>> {
        Some(Arc::clone(&self.reader) as Arc<dyn Lookups>)
    }

    fn prepare(&mut self) -> Result<Option<Box<dyn SaveView>>, MachineError> {
        self.check_open()?;
        Ok(Some(Box::new(DiskSave::<M>(self.machine.0.prepare()?))))
    }

    fn save(&self, _out: &mut dyn io::Write) -> Result<(), MachineError> {
        Err(MachineError::user("an on-disk state machine is saved off a view"))
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        self.check_open()?;
        let recovered = self.machine.0.recover(input);
        self.publish_reader();
        recovered
    }

    fn state_hash(&self) -> Option<u64> {
        self.machine.0.state_hash()
    }

    fn open(&mut self, stop: &StopSignal) -> Result<Index, MachineError> {
        if self.opened {
            return Err(MachineError::user("storage is opened twice"));
        }
        let applied = self.machine.0.open(stop)?;
        self.opened = true;
        self.state = StorageState { applied, last_command: applied, durable: Index::ZERO };
        self.publish_reader();
        Ok(applied)
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        self.check_open()?;
        self.machine.0.sync()?;
        self.state.durable = self.state.applied;
        Ok(())
    }

    fn storage(&self) -> Option<StorageState> {
        let mut state = self.state;
        if let Some(durable) = self.machine.0.durable_applied() {
            // With the last command all is durable: the entries after it left nothing in the storage.
            let through = if durable >= state.last_command { state.applied } else { durable };
            state.durable = state.durable.max(through);
        }
        Some(state)
    }

    fn resume_at(&mut self, index: Index, last_command: Index) -> Result<(), MachineError> {
        self.check_open()?;
        let applied = self.state.applied;
        if applied < last_command && !plant::is("metadata-snapshot-trusted") {
            return Err(MachineError::Behind { applied, needed: last_command });
        }
        self.state.applied = applied.max(index);
        Ok(())
    }

    fn recovered_at(&mut self, index: Index, last_command: Index) {
        self.state = StorageState { applied: index, last_command, durable: index };
    }
}

impl<M: DiskMachine> Drop for TypedDisk<M> {
    /// Whoever still answers reads holds on to no storage: it may be opened again.
    fn drop(&mut self) {
        let reader = self.reader.0.write().take();
        drop(reader);
    }
}

struct DiskSave<M: DiskMachine>(M::View);

impl<M: DiskMachine> SaveView for DiskSave<M> {
    fn write_part(&mut self, out: &mut dyn io::Write) -> Result<SavePart, MachineError> {
        M::save_part(&mut self.0, out)
    }
}
