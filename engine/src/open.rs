//! What a starting replica's state machine has already, and what it begins from.
//!
//! Invariants: storage is opened before the replica's core is made, never on a step worker, and by one life of the replica
//! at a time; a state machine is begun from nothing that it does not have whole. Must not know: how entries come to it later.

use crate::apply::panic_text;
use longboat_logdb::SnapshotRecord;
use longboat_raft::{GroupId, Guard, Index, ReplicaId, SnapshotMeta, plant};
use longboat_rsm::snapshot::{Content, SnapshotStore};
use longboat_rsm::{DynMachine, MachineError, MachineKind, StopSignal};
use std::panic::AssertUnwindSafe;

/// A state machine whose storage was opened, or could not be.
pub(crate) struct Opened {
    pub(crate) machine: Box<dyn DynMachine>,
    /// The last command in its storage.
    pub(crate) has: Index,
    /// What went wrong, if something did: nothing may be asked of it then.
    pub(crate) failed: Option<String>,
}

impl Opened {
    /// Opens the machine's storage, if it is of the kind that has any. The user's code may fail or panic: that concerns this
    /// replica alone.
    pub(crate) fn open(mut machine: Box<dyn DynMachine>) -> Self {
        if machine.kind() != MachineKind::OnDisk {
            return Self { machine, has: Index::ZERO, failed: None };
        }
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| machine.open(&StopSignal::default())));
        let (has, failed) = match opened {
            Ok(Ok(has)) => (has, None),
            Ok(Err(error)) => (Index::ZERO, Some(format!("storage can't be opened: {error}"))),
            Err(panic) => (Index::ZERO, Some(format!("opening the storage panicked: {}", panic_text(&*panic)))),
        };
        Self { machine, has, failed }
    }

    /// Whether the storage has state of its own.
    fn is_on_disk(&self) -> bool {
        self.failed.is_none() && self.machine.kind() == MachineKind::OnDisk
    }
}

/// What a replica begins from.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// The snapshot that the state machine must recover from before it is given entries.
    pub(crate) recover: Option<SnapshotMeta>,
    /// The state machine stands at the newest snapshot, or beyond it.
    pub(crate) stands: bool,
    /// What the core must not do.
    pub(crate) guard: Guard,
    /// What the state machine says it has: committed entries, maybe more than the log has.
    pub(crate) machine: Index,
}

impl Beginning {
    /// What there is to begin from. A state machine in memory begins from the newest snapshot. One with storage goes on from
    /// what it has, when that is all that the snapshot stands for; from the snapshot, when that holds the whole state; and
    /// else from one of the leader's: its storage was lost, and the log before the snapshot is gone.
    pub(crate) fn find(
        opened: &mut Opened,
        store: &SnapshotStore,
        (group, replica): (GroupId, ReplicaId),
        newest: Option<&SnapshotRecord>,
    ) -> Self {
        let meta = newest.map(|s| s.meta.clone());
        if !opened.is_on_disk() {
            return Self { recover: meta, ..Self::default() };
        }
        let machine = opened.has;
        let Some(meta) = meta else { return Self { machine, ..Self::default() } };
        let index = meta.pos.index;
        let header = store.open(group, replica, index).map(|reader| reader.header().clone());
        let (needed, is_full) = match &header {
            Ok(header) => (header.last_command, header.content == Content::Full),
            // Storage that has a later entry has all that the snapshot stands for, whatever became of its file.
            Err(_) => (index, false),
        };
        if plant::is("storage-behind-its-snapshot") {
            return Self::resume(opened, index, Index::ZERO);
        }
        // What the storage has is of a history that an import ended.
        if is_full && store.is_imported(group, replica, index) {
            return Self { recover: Some(meta), ..Self::default() };
        }
        if machine >= needed {
            return Self::resume(opened, index, needed);
        }
        if is_full {
            return Self { recover: Some(meta), machine, ..Self::default() };
        }
        let why = header.err().map(|e| e.to_string()).unwrap_or_default();
        tracing::warn!(%group, %replica, storage = %machine, snapshot = %index, why, "storage lacks what the log no longer has, the leader is asked for a snapshot");
        Self { guard: Guard::NeedsSnapshot, machine, ..Self::default() }
    }

    fn resume(opened: &mut Opened, index: Index, last_command: Index) -> Self {
        let machine = opened.has;
        let resumed = std::panic::catch_unwind(AssertUnwindSafe(|| opened.machine.resume_at(index, last_command)));
        match resumed {
            Ok(Ok(())) => return Self { stands: true, machine, ..Self::default() },
            Ok(Err(MachineError::Behind { .. })) => {
                return Self { guard: Guard::NeedsSnapshot, machine, ..Self::default() };
            }
            Ok(Err(error)) => opened.failed = Some(format!("storage can't go on at {index}: {error}")),
            Err(panic) => opened.failed = Some(format!("going on at {index} panicked: {}", panic_text(&*panic))),
        }
        Self::default()
    }
}
