//! What comes out of a core at the end of a group's visit, and what goes with it.

use crate::core::Role;
use crate::durability::PersistToken;
use crate::forwards::Forwards;
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
    /// The log was reset: the state machine, if this is no witness, must recover from this snapshot before it applies any of
    /// `committed`.
    pub install: Option<SnapshotMeta>,
    /// The state machine must recover from this snapshot before it applies any of `committed`; the log stays as it is, and goes
    /// on after it. Only under [`crate::Guard::NeedsSnapshot`]. Its record is for the owner to write, like that of a snapshot
    /// that was saved here.
    pub recover: Option<SnapshotMeta>,
    /// Reads that may be served, or can't be.
    pub reads: Vec<ReadReady>,
    /// Forwarded proposals that the leader will never append.
    pub refused: Vec<RefusedForward>,
    /// What a leader said of forwarded proposals that were open for long.
    pub closed: Vec<ClosedForwards>,
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
        let Self { early, held, persist, token, committed, reads, refused, closed, snapshots_wanted, fetches, .. } =
            self;
        early.clear();
        held.clear();
        *persist = None;
        *token = None;
        committed.clear();
        reads.clear();
        refused.clear();
        closed.clear();
        snapshots_wanted.clear();
        fetches.clear();
        self.events.clear();
        (self.install, self.recover) = (None, None);
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

/// The leader of `term` appends none of these any more: what is not within its log's first `end` entries never will be
/// committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedForwards {
    /// The leader's term.
    pub term: Term,
    /// Which of this replica's forwarded proposals.
    pub forwards: Forwards,
    /// The last index that may hold one of them.
    pub end: Index,
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
    /// A leader transfer ended; see [`crate::Core::transfer_leader`]. Also told of those that a preference began.
    TransferEnded {
        /// The replica that was to lead.
        to: ReplicaId,
        /// What became of it.
        outcome: TransferOutcome,
    },
    /// This replica was removed for good, and will never be needed again: its owner stops it, and may delete its data.
    Removed {
        /// The membership change by which it is gone, or a later one.
        change: Index,
    },
}

/// What became of a leader transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferOutcome {
    /// The target leads.
    Done,
    /// The target was asked to campaign, and nobody else was heard to lead within an election timeout. If this replica still
    /// leads, it goes on; the target may win yet.
    TimedOut,
    /// The target's log was still not complete after an election timeout. This replica goes on leading.
    TooFarBehind {
        /// How far the target's log was known to match.
        matched: Index,
        /// The end of the leader's log.
        last: Index,
    },
    /// The target is no voter any more.
    TargetGone,
    /// Somebody else leads, or this replica lost its quorum or was removed.
    LostLeadership,
}

/// Why a leader transfer was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum TransferRefused {
    /// Only a leader hands leadership over.
    #[error("this replica does not lead")]
    NotLeader,
    /// The target does not vote.
    #[error("replica {0} is not a voter")]
    NotAVoter(ReplicaId),
    /// The target is a witness.
    #[error("replica {0} is a witness and can't lead")]
    Witness(ReplicaId),
    /// The target leads: nothing is to be done.
    #[error("the target leads already")]
    AlreadyLeader,
    /// A transfer to another replica is under way.
    #[error("a transfer to replica {0} is under way")]
    Busy(ReplicaId),
}

/// How a proposal may be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposeOptions {
    /// Whether a replica that does not lead sends it on to the one that does.
    pub forward: bool,
    /// If given, it is appended in this term or not at all.
    pub expected_term: Option<Term>,
}

impl Default for ProposeOptions {
    fn default() -> Self {
        Self { forward: true, expected_term: None }
    }
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
    /// This replica does not lead, and the proposal was not to be forwarded.
    #[error("this replica does not lead")]
    NotLeader,
    /// The term is not the one that the proposal was meant for.
    #[error("the term is {current} now")]
    TermChanged {
        /// The term as it is.
        current: Term,
    },
    /// A witness takes no proposals.
    #[error("this replica is a witness")]
    Witness,
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
