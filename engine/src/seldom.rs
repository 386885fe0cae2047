//! What a replica has only at times that are rare in its life: after a change of members, around a snapshot, at its end.
//!
//! Invariant: it is let go of when the replica falls silent with nothing in it, so what is silent takes a pointer for all of it.
//! Must not know: what is done with any of it.

use crate::snapshot::SnapshotRequest;
use longboat_raft::spare::Emptied;
use longboat_raft::{HostId, Index, ReplicaId, SnapshotMeta};
use longboat_transport::wire::Starts;
use std::collections::BTreeSet;

/// What most replicas have nothing of.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    /// The membership change by which the replica is gone for good, once it was told so.
    pub(crate) removed: Option<Index>,
    /// Replicas of the group that were removed from this host before.
    pub(crate) gone: BTreeSet<ReplicaId>,
    /// A request for a snapshot that waits until the saves under way have ended.
    pub(crate) next_save: Option<Box<SnapshotRequest>>,
    /// Snapshots older than the newest one that are kept, ascending.
    pub(crate) older: Vec<Index>,
    /// Where those live that the membership does not name: proved by a handshake, or named by an earlier membership. Members are
    /// looked up in the membership, which groups with equal members share: for thousands of groups it is in the processor's caches.
    pub(crate) routes: Vec<(ReplicaId, HostId)>,
    /// A received snapshot that the core was just told of.
    pub(crate) delivered: Option<Index>,
    /// Restored from a snapshot that the state machine must recover from first.
    pub(crate) recover_first: Option<Box<SnapshotMeta>>,
    /// The snapshot that the log was just reset to, until its record is durable. Only then the state machine recovers from it:
    /// a crash must not leave it ahead of a log that never heard of the snapshot. Until then nothing may be read, saved or applied.
    pub(crate) installing: Option<Index>,
    /// Members whose hosts lost the stores that they spoke from.
    pub(crate) fenced: Vec<ReplicaId>,
    /// Members that have stopped, and as of which of its starts their host said so.
    pub(crate) missed: Vec<(ReplicaId, Starts)>,
}

impl Emptied for Seldom {
    const EMPTY: &'static Self = &Self {
        removed: None,
        gone: BTreeSet::new(),
        next_save: None,
        older: Vec::new(),
        routes: Vec::new(),
        delivered: None,
        recover_first: None,
        installing: None,
        fenced: Vec::new(),
        missed: Vec::new(),
    };

    fn is_emptied(&self) -> bool {
        let Self { removed, gone, next_save, older, routes, delivered, recover_first, installing, fenced, missed } =
            self;
        let none = removed.is_none() && next_save.is_none() && delivered.is_none() && recover_first.is_none();
        let no_list = gone.is_empty() && older.is_empty() && routes.is_empty() && fenced.is_empty();
        none && no_list && missed.is_empty() && installing.is_none()
    }
}
