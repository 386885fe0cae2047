//! How requests fail, and whether the command may have been applied all the same.

use longboat_raft::{ChangeError, GroupId, Index, ReplicaId, Term, TransferOutcome, TransferRefused};
use std::path::PathBuf;

/// The stage in which a request was when its deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Waiting for its group's worker.
    Queue,
    /// Waiting for a leader.
    NoLeader,
    /// Waiting for the log or a quorum.
    Quorum,
    /// Waiting for the state machine.
    Apply,
    /// Waiting for the disk.
    Disk,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Queue => "waiting in the group's queue",
            Self::NoLeader => "waiting for a leader",
            Self::Quorum => "waiting for a quorum",
            Self::Apply => "waiting for the state machine",
            Self::Disk => "waiting for the disk",
        })
    }
}

/// Why leadership was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The target was asked to campaign, and did not win in an election timeout. It may win yet.
    #[error("the target did not take over within an election timeout")]
    TimedOut,
    /// The target's log was not complete after an election timeout. The leader goes on.
    #[error("the target is too far behind: it has {matched} of {last}")]
    TooFarBehind {
        /// How far the target's log was known to match.
        matched: Index,
        /// The end of the leader's log.
        last: Index,
    },
    /// The target is no member any more, or none that can lead.
    #[error("the target was removed or demoted meanwhile")]
    TargetGone,
    /// Somebody else leads now, or nobody.
    #[error("the leader lost its leadership to another replica than the target")]
    LostLeadership,
    /// The target does not vote.
    #[error("replica {0} is not a voter")]
    NotAVoter(ReplicaId),
    /// The target is a witness.
    #[error("replica {0} is a witness and can't lead")]
    Witness(ReplicaId),
    /// Leadership is being handed to another replica.
    #[error("a transfer to replica {0} is under way")]
    Busy(ReplicaId),
}

impl From<TransferRefused> for TransferError {
    fn from(why: TransferRefused) -> Self {
        match why {
            TransferRefused::NotAVoter(r) => Self::NotAVoter(r),
            TransferRefused::Witness(r) => Self::Witness(r),
            TransferRefused::Busy(r) => Self::Busy(r),
            _ => Self::LostLeadership,
        }
    }
}

impl From<TransferOutcome> for TransferError {
    /// Of an outcome that is a failure.
    fn from(outcome: TransferOutcome) -> Self {
        match outcome {
            TransferOutcome::TooFarBehind { matched, last } => Self::TooFarBehind { matched, last },
            TransferOutcome::TargetGone => Self::TargetGone,
            TransferOutcome::TimedOut => Self::TimedOut,
            TransferOutcome::LostLeadership | TransferOutcome::Done => Self::LostLeadership,
        }
    }
}

/// Why a snapshot was not begun. Nothing was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRefusal {
    /// The request overrides both how many entries are kept and through which index the log goes.
    #[error("a compaction overhead and a compaction index are given: give one of them")]
    TwoOverrides,
    /// The request is an export and says what of the log goes.
    #[error("an export truncates no log: request a snapshot or a compaction for that")]
    ExportKeepsLog,
    /// The directory for an export is not there.
    #[error("export directory {0} does not exist")]
    ExportDirectory(PathBuf),
    /// The replica is a witness.
    #[error("a witness has no state to save")]
    Witness,
    /// The replica has applied nothing: it has no state, and no place in the log.
    #[error("the replica has not applied anything yet")]
    NothingApplied,
    /// The threads that make snapshots are all held by state machines that hang, and so are those in their place. The host's figures
    /// name them; restart the host if they do not return.
    #[error("all threads for snapshots are held by state machines that hang")]
    PoolStalled,
    /// The log was to go through an index that the snapshot does not reach.
    #[error("the log can't go through index {asked}: the snapshot is of index {index}")]
    CompactionIndex {
        /// The index that was asked for.
        asked: Index,
        /// The snapshot's.
        index: Index,
    },
}

/// Why a request did not complete.
///
/// [`RequestError::may_have_applied`] tells whether a proposal may nevertheless take or have taken effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A queue is full. Nothing was taken; try again a little later.
    #[error("the group's queue is full, try again later")]
    Busy,
    /// The host's disk is nearly full. Nothing was taken; reads, snapshots and membership changes go on, and proposals are taken
    /// again as soon as there is room.
    #[error(
        "the disk of this host has {free_bytes} bytes left, proposals need a reserve of {reserve_bytes}: make room"
    )]
    DiskFull {
        /// Bytes left where the log is.
        free_bytes: u64,
        /// The configured reserve.
        reserve_bytes: u64,
    },
    /// The payload is larger than allowed.
    #[error("payload of {bytes} bytes is above the limit of {limit}")]
    PayloadTooLarge {
        /// The payload's size.
        bytes: usize,
        /// The largest allowed size.
        limit: usize,
    },
    /// The group has no replica on this host.
    #[error("group {0} has no replica on this host")]
    NotHere(GroupId),
    /// The group's replica was started with another state machine.
    #[error("group {group} runs another state machine than {asked}")]
    OtherMachine {
        /// The group.
        group: GroupId,
        /// The type that was asked for.
        asked: &'static str,
    },
    /// There is no leader that could take the request. It was not applied.
    #[error("the group has no leader, try again later")]
    NoLeader,
    /// Another leader's entry took the place, or the leader refused it. It was not applied and never will be.
    #[error("the request was dropped and not applied, try again")]
    Dropped,
    /// The deadline passed.
    #[error("deadline passed while {stage}")]
    Timeout {
        /// What the request was waiting for.
        stage: Stage,
        /// Whether it was a proposal that had left the queue.
        may_have_applied: bool,
    },
    /// The replica lost track: it restarted, stopped or installed a snapshot over the place. A proposal may have been applied.
    #[error("the outcome is unknown")]
    OutcomeUnknown,
    /// The replica was stopped or the host closed before the request was sent on. It was not applied.
    #[error("the replica was stopped")]
    Stopped,
    /// The host's log store failed; the host takes no more requests.
    #[error("the host failed: {0}")]
    HostFailed(String),
    /// The user's state machine returned an error or panicked; its replica stopped.
    #[error("the state machine of replica {replica} failed: {reason}")]
    MachineFailed {
        /// The replica that stopped.
        replica: ReplicaId,
        /// What the state machine said.
        reason: String,
    },
    /// This replica does not lead, and the request was not to be forwarded. It was not applied.
    #[error("this replica does not lead")]
    NotLeader {
        /// Who does, as far as is known here.
        leader: Option<ReplicaId>,
    },
    /// The group is in another term than the request was meant for. It was not applied.
    #[error("the group is in term {current} now")]
    TermChanged {
        /// The term as it is.
        current: Term,
    },
    /// A membership change was refused. It was not made.
    #[error("membership change refused: {0}")]
    ConfigRefused(#[source] ChangeError),
    /// Leadership was not handed over.
    #[error("leadership was not transferred: {0}")]
    TransferFailed(#[source] TransferError),
    /// The replica was removed from its group: ask another one. A request that was under way may have been carried out.
    #[error("the replica was removed from its group")]
    Removed,
    /// The group was imported from a snapshot elsewhere, and goes on in a later epoch without this replica: ask one of its new
    /// members. A request that was under way may have been carried out, in a history that has ended.
    #[error("the group goes on without this replica: it was imported from a snapshot")]
    Superseded,
    /// The group is quarantined here, and which replica was here is not known any more: the data directory has to go before
    /// the group can come back to this host. Its other members can put a new replica in its place elsewhere.
    #[error("group {0} is quarantined, and which of its replicas was on this host is not known any more")]
    ReplicaNotKnown(GroupId),
    /// The group's replica is running: stop it first.
    #[error("group {0} has a running replica on this host: stop it first")]
    StillRunning(GroupId),
    /// The replica has not applied the index that a local read was to reflect.
    #[error("index {asked} is not applied here yet, {applied} is")]
    NotApplied {
        /// The index that was asked for.
        asked: Index,
        /// Through where the replica has applied.
        applied: Index,
    },
    /// The state machine refused this query.
    #[error("lookup failed: {0}")]
    LookupFailed(String),
    /// The session was never registered here, was closed, or was evicted because the group has too many. The command was
    /// not applied by this attempt. Register a new session; a command whose earlier attempt has an unknown outcome must
    /// not be sent in it.
    #[error("the session is not known to the group: it was closed or evicted")]
    SessionExpired,
    /// The client said before that it has this command's result. The command was not applied again.
    #[error("the result of this command was acknowledged before and is not kept")]
    SessionAnswered,
    /// The session has too many results that the client did not acknowledge, or the command's number is not one. The
    /// command was not applied.
    #[error("the session's window of unacknowledged results is full, or the number is not valid in it")]
    SessionWindow,
    /// The state machine has no client sessions: it is on disk, or does not say how its results are kept.
    #[error("this state machine has no client sessions")]
    SessionsUnsupported,
    /// The command was applied by an earlier attempt, and its kept result can't be decoded.
    #[error("the command was applied before, its kept result can't be read: {0}")]
    ResultUnreadable(String),
    /// The log does not have what was asked for.
    #[error("the log has entries from {first} through {last} here")]
    LogRange {
        /// The first entry that it has.
        first: Index,
        /// The last committed one.
        last: Index,
    },
    /// Entries of the log can't be read, or their space can't be freed.
    #[error("log of group {group}: {reason}")]
    LogUnreadable {
        /// The group.
        group: GroupId,
        /// What went wrong.
        reason: String,
    },
    /// The lease of a log pin has ended: what it held may be gone.
    #[error("the lease of the log pin has ended")]
    PinExpired,
    /// No snapshot of this replica could be recovered, and it waits for one of the leader's. Ask another replica. A proposal
    /// may have been applied there.
    #[error("this replica lost its state and waits for a snapshot")]
    StateLost,
    /// A snapshot request failed.
    #[error("snapshot failed: {0}")]
    Snapshot(String),
    /// A snapshot was not begun.
    #[error("snapshot refused: {0}")]
    SnapshotRefused(#[source] SnapshotRefusal),
    /// A snapshot was aborted on request. What was written of it is removed.
    #[error("the snapshot was aborted")]
    SnapshotAborted,
}

impl RequestError {
    /// Whether a proposal that ended like this may have been applied, or may be applied later.
    pub fn may_have_applied(&self) -> bool {
        match self {
            Self::Timeout { may_have_applied, .. } => *may_have_applied,
            Self::OutcomeUnknown | Self::StateLost | Self::HostFailed(_) | Self::MachineFailed { .. } => true,
            Self::Removed | Self::Superseded | Self::ResultUnreadable(_) => true,
            _ => false,
        }
    }
}
