//! What comes out of a core at the end of a group's visit, and what goes with it.

use crate::core::Role;
use crate::durability::PersistToken;
use crate::ids::{HardState, Index, ReplicaId, Term};
use crate::message::{Message, RefusedReason, SnapshotMeta};
use crate::run::{Run, RunBuilder};
use smallvec::SmallVec;

/// All that a core wants done. Reused: [`crate::Core::take_output`] appends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// May leave at once: these rest on nothing that is not durable, or claim nothing about it.
    pub early: Vec<Message>,
    /// Leave when `token`'s batch is durable, which is when everything is that this replica had accepted when they were made.
    pub held: Vec<Message>,
    /// What to make durable now.
    pub persist: Option<Persist>,
    /// There if and only if `persist` is or `held` is not empty; an empty batch rides behind those under way.
    pub token: Option<PersistToken>,
    /// Entries to apply, contiguous, each handed out once, all committed and durable here.
    pub committed: Vec<Run>,
    /// The log was reset: the state machine must recover from this snapshot before it applies any of `committed`.
    pub install: Option<SnapshotMeta>,
    /// Reads that may be served, or can't be.
    pub reads: Vec<ReadReady>,
    /// Forwarded proposals that the leader will never append.
    pub refused: Vec<RefusedForward>,
    /// Members that need a snapshot. Said once per need, until [`crate::Core::snapshot_sending`] or `snapshot_finished`.
    pub snapshots_wanted: Vec<ReplicaId>,
    /// Cold reads to make, for [`crate::Core::fetched`].
    pub fetches: Vec<Fetch>,
    /// What happened.
    pub events: Vec<Event>,
}

impl Output {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        let Self { early, held, persist, token, committed, install, reads, refused, snapshots_wanted, fetches, events } =
            self;
        early.clear();
        held.clear();
        *persist = None;
        *token = None;
        committed.clear();
        *install = None;
        reads.clear();
        refused.clear();
        snapshots_wanted.clear();
        fetches.clear();
        events.clear();
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What to make durable, in this order: `install`, `cut_tail`, `runs`; the hard state with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Persist {
    /// Term, vote and commit. Always given.
    pub hard_state: HardState,
    /// Removes the entries from this index on.
    pub cut_tail: Option<Index>,
    /// Appended right after the last entry.
    pub runs: SmallVec<[Run; 1]>,
    /// First of all resets the log to this snapshot.
    pub install: Option<SnapshotMeta>,
}

/// The answer to [`crate::Core::read_index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadReady {
    /// The number of the request.
    pub context: u64,
    /// The index that must be applied before reading; `None` if it can't be served: ask again under a new number.
    pub index: Option<Index>,
}

/// The leader refused a run of this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedForward {
    /// The sequence number of the run's first entry.
    pub first_sequence: u64,
    /// The number of its entries.
    pub count: u32,
    /// Why.
    pub reason: RefusedReason,
}

/// A cold read to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Names the read in [`crate::Core::fetched`].
    pub ticket: u64,
    /// The first index wanted.
    pub lo: Index,
    /// The last index wanted.
    pub hi: Index,
    /// About how many bytes; at least one entry.
    pub bytes_max: usize,
}

/// The entries of a fetch were compacted meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted;

/// Something that happened to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Another leader is known, or none.
    LeaderChanged {
        /// The leader, if one is known.
        leader: Option<ReplicaId>,
        /// The term.
        term: Term,
    },
    /// The replica has another role.
    RoleChanged {
        /// The role.
        role: Role,
        /// The term.
        term: Term,
    },
    /// A membership took effect: the config entry's index, or the snapshot's change id.
    MembershipChanged(Index),
    /// An awaited leader transfer ended; see [`crate::Core::transfer_leader`].
    TransferEnded {
        /// The replica that was to lead.
        to: ReplicaId,
        /// Whether this replica stopped leading. False: timed out, or the target left.
        done: bool,
    },
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposed {
    /// It is in this leader's log.
    Appended {
        /// The leader's term: another term applied at these indexes means that it was not.
        term: Term,
        /// The index of its first entry.
        first: Index,
        /// The number of its entries.
        count: u32,
    },
    /// It is on its way to the leader.
    Forwarded {
        /// The leader.
        to: ReplicaId,
    },
}

/// A proposal that was not taken. It is certain that it was not.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub reason: RefusedWhy,
    /// The proposal, back; empty for a membership change.
    pub chunk: RunBuilder,
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedWhy {
    /// No leader is known.
    #[error("no leader is known")]
    NoLeader,
    /// Too much is uncommitted.
    #[error("too much is proposed and not yet applied")]
    Busy,
    /// Leadership is being handed over.
    #[error("leadership is being transferred")]
    Transferring,
    /// The membership change can't be made.
    #[error("membership change refused: {0}")]
    ConfigChange(#[source] crate::changer::ChangeError),
}
