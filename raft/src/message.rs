//! What replicas of one group say to each other.
//!
//! A message names its sender, its addressee and the sender's term; the group and its epoch are added by whoever
//! carries it. Which messages may leave before what they rest on is durable is decided by the core, see [`crate::Output`].

use crate::changer::ChangeError;
use crate::forwards::Forwards;
use crate::ids::{HostId, Index, LogPos, ReplicaId, StoreId, Term};
use crate::membership::Membership;
use crate::output::{TransferOutcome, TransferRefused};
use crate::run::Run;
use smallvec::SmallVec;

/// A message between two replicas of one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The replica that sent it.
    pub from: ReplicaId,
    /// The replica that it is for.
    pub to: ReplicaId,
    /// The sender's term; for a pre-vote request the term that it would campaign in; zero where no term is claimed
    /// (forwarded proposals and reads, and their answers; farewells).
    pub term: Term,
    /// What is said.
    pub body: Body,
}

/// The kinds of message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// AppendEntries (paper section 5.3). Empty `runs` probe.
    Append {
        /// The entry just before the first one sent.
        prev: LogPos,
        /// The leader's commit index.
        commit: Index,
        /// Contiguous runs that start right after `prev`.
        runs: SmallVec<[Run; 1]>,
    },
    /// The append was taken: the log matches the leader's through `matched`, durably.
    AppendAccepted {
        /// The last index that is known to match.
        matched: Index,
    },
    /// The append was refused: there is no entry like `prev`.
    AppendRejected {
        /// The `prev` index that was refused.
        rejected: Index,
        /// The largest place at or before `rejected` that can match, found by term: from it a diverged log is found in few round trips.
        hint: LogPos,
    },
    /// The append's entries were not taken, because the follower's host has no room for them: its log is the leader's through
    /// `matched`, durably, and it says in the answers to heartbeats when it has room again.
    AppendPaused {
        /// The last index that is known to match.
        matched: Index,
    },
    /// A leader's sign of life. Carries the follower's safe commit index and confirms reads (thesis section 6.4).
    Heartbeat {
        /// min(leader's commit, what is known to match at this follower).
        commit: Index,
        /// The leader's newest read round, 0 if none is under way.
        read_round: u64,
    },
    /// The answer to a heartbeat.
    HeartbeatResponse {
        /// The read round of the heartbeat.
        read_round: u64,
        /// Whether the follower's host has no room for entries.
        overloaded: bool,
    },
    /// The commit index moved and nothing else did.
    Commit {
        /// The leader's commit index. The follower takes it as far as it knows its log to be the leader's, and remembers
        /// the rest for the appends that are on their way: this may overtake them.
        commit: Index,
    },
    /// RequestVote (paper section 5.2), and pre-vote (thesis section 9.6).
    RequestVote {
        /// Only asks whether a vote would be given; changes no state.
        pre: bool,
        /// The leader asked for this election (thesis section 3.10): a live leader is no reason to refuse.
        transfer: bool,
        /// The last entry of the candidate's log.
        last: LogPos,
    },
    /// The answer to a vote request.
    VoteResponse {
        /// Whether this answers a pre-vote.
        pre: bool,
        /// Whether the vote was given.
        granted: bool,
    },
    /// The leader's log does not reach back far enough: a snapshot follows it. Sent to a replica when the
    /// snapshot's files are durable there, so that its core can install them.
    Snapshot(Box<SnapshotMeta>),
    /// What a witness gets in place of a snapshot: it has no state machine, so the place and the membership are all of it.
    WitnessSnapshot(Box<SnapshotMeta>),
    /// A follower can't go on by its log and needs a snapshot.
    SnapshotNeeded {
        /// No snapshot before this index will do.
        at_least: Index,
    },
    /// Asks the leader for an index to read at (thesis section 6.4).
    ReadIndex {
        /// The asking replica's unique number of this request.
        context: u64,
    },
    /// The leader's answer.
    ReadIndexResponse {
        /// The number of the request.
        context: u64,
        /// The index that a read must have applied; `None` when the addressee can't serve reads: ask again, under a new number.
        index: Option<Index>,
    },
    /// Proposals made at a follower, for the leader of the run's term to append, and for no other. The run's index is zero.
    Forward(Run),
    /// The leader did not append a forwarded run, and never will.
    ForwardRefused {
        /// The sequence number of the run's first entry.
        first_sequence: u64,
        /// The number of its entries.
        count: u32,
        /// Why.
        reason: RefusedReason,
    },
    /// Asks the leader of a term to append none of the sender's forwarded proposals up to some number any more.
    CloseForwards {
        /// The term in which they were forwarded.
        term: Term,
        /// Which.
        forwards: Forwards,
    },
    /// The leader's answer: of these, none that is not in its log by now will ever be.
    ForwardsClosed {
        /// The term in which it leads.
        term: Term,
        /// Which.
        forwards: Forwards,
        /// The last index of its log.
        end: Index,
    },
    /// Campaign now (thesis section 3.10).
    TimeoutNow,
    /// Asks the leader to hand leadership over. Between owners of cores, which never see it.
    Transfer {
        /// To whom.
        to: ReplicaId,
        /// The number of the question: the asker's own, never used for another one.
        question: u64,
    },
    /// What became of that. Between owners of cores, which never see it.
    TransferAnswer {
        /// To whom leadership was to go.
        to: ReplicaId,
        /// The question that is answered.
        question: u64,
        /// What the leader says of it.
        answer: TransferAnswer,
    },
    /// The leader has nothing to do and asks whether its follower falls silent with it. Sent when the leader's commit index is durable.
    Quiesce {
        /// Counts the leader's questions within its term.
        round: u64,
        /// The last entry of the leader's log: the follower's must be the same.
        last: LogPos,
        /// The leader's commit index: the follower's must be the same.
        commit: Index,
    },
    /// The answer to that.
    QuiesceResponse {
        /// The round that is answered.
        round: u64,
        /// The follower falls silent; its log and commit index are durable.
        agreed: bool,
    },
    /// The addressee was removed, and will never be needed again.
    Removed {
        /// The membership change by which it is gone, or a later one.
        change: Index,
    },
}

/// What a leader says to a follower that asked it to hand leadership over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferAnswer {
    /// It was not begun.
    Refused(TransferRefused),
    /// It has ended.
    Ended(TransferOutcome),
}

impl TransferAnswer {
    /// The answer as a number and two arguments: how it travels.
    pub fn to_parts(self) -> (u8, u64, u64) {
        match self {
            Self::Refused(TransferRefused::NotLeader) => (1, 0, 0),
            Self::Refused(TransferRefused::NotAVoter(r)) => (2, r.0, 0),
            Self::Refused(TransferRefused::Witness(r)) => (3, r.0, 0),
            Self::Refused(TransferRefused::AlreadyLeader) => (4, 0, 0),
            Self::Refused(TransferRefused::Busy(r)) => (5, r.0, 0),
            Self::Ended(TransferOutcome::Done) => (6, 0, 0),
            Self::Ended(TransferOutcome::TimedOut) => (7, 0, 0),
            Self::Ended(TransferOutcome::TooFarBehind { matched, last }) => (8, matched.0, last.0),
            Self::Ended(TransferOutcome::TargetGone) => (9, 0, 0),
            Self::Ended(TransferOutcome::LostLeadership) => (10, 0, 0),
        }
    }

    /// The answer that [`Self::to_parts`] gave; `None` for a number that is not known.
    pub fn from_parts(number: u8, a: u64, b: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Refused(TransferRefused::NotLeader),
            2 => Self::Refused(TransferRefused::NotAVoter(ReplicaId(a))),
            3 => Self::Refused(TransferRefused::Witness(ReplicaId(a))),
            4 => Self::Refused(TransferRefused::AlreadyLeader),
            5 => Self::Refused(TransferRefused::Busy(ReplicaId(a))),
            6 => Self::Ended(TransferOutcome::Done),
            7 => Self::Ended(TransferOutcome::TimedOut),
            8 => Self::Ended(TransferOutcome::TooFarBehind { matched: Index(a), last: Index(b) }),
            9 => Self::Ended(TransferOutcome::TargetGone),
            10 => Self::Ended(TransferOutcome::LostLeadership),
            _ => return None,
        })
    }
}

/// Why a forwarded proposal was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedReason {
    /// The addressee is not the leader, or not in the term that the proposal is meant for.
    NotLeader,
    /// The leader has no room for more, or hands leadership over.
    Busy,
    /// The membership change can't be made.
    ConfigChange(ChangeError),
}

/// What a snapshot stands for: the log through `pos`, and the membership there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SnapshotMeta {
    /// The last entry that the snapshot covers.
    pub pos: LogPos,
    /// The membership effective at that entry.
    pub membership: Membership,
}

/// Where a member lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Member {
    /// The host that holds the replica.
    pub host: HostId,
    /// The store that the host had when it joined; zero while unknown.
    pub store: StoreId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_about_a_transfer_travels() {
        let all: Vec<_> = (0..=u8::MAX).filter_map(|n| Some((n, TransferAnswer::from_parts(n, 7, 9)?))).collect();
        assert_eq!(all.len(), 10, "{all:?}");
        for (number, answer) in all {
            let (sent, a, b) = answer.to_parts();
            assert_eq!((sent, TransferAnswer::from_parts(sent, a, b)), (number, Some(answer)));
        }
    }
}
