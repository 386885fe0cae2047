//! How requests fail, and whether the command may have been applied all the same.

use longboat_raft::{GroupId, Index, ReplicaId};

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
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Queue => "waiting in the group's queue",
            Self::NoLeader => "waiting for a leader",
            Self::Quorum => "waiting for a quorum",
            Self::Apply => "waiting for the state machine",
        })
    }
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
    /// A membership change was refused.
    #[error("membership change refused: {0}")]
    ConfigRefused(String),
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
    /// A snapshot request failed.
    #[error("snapshot failed: {0}")]
    Snapshot(String),
}

impl RequestError {
    /// Whether a proposal that ended like this may have been applied, or may be applied later.
    pub fn may_have_applied(&self) -> bool {
        match self {
            Self::Timeout { may_have_applied, .. } => *may_have_applied,
            Self::OutcomeUnknown | Self::HostFailed(_) | Self::MachineFailed { .. } => true,
            _ => false,
        }
    }
}
