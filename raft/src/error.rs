//! What can be wrong with what the core is given.

use crate::ids::{Index, LogPos, ReplicaId, Term};

/// A contradiction that only a message or damaged state can bring: the rules of Raft were broken somewhere, and this
/// replica must not go on. Its owner quarantines it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A leader asks to overwrite what is committed.
    #[error("replica {from} overwrites the committed entry {index}: commit is {commit}")]
    CommittedOverwritten {
        /// The leader.
        from: ReplicaId,
        /// The first index that it overwrites.
        index: Index,
        /// This replica's commit index.
        commit: Index,
    },
    /// A leader changes what it said in the same term.
    #[error("replica {from} overwrites entry {index}, which it sent in the same term {term}")]
    LeaderRewroteLog {
        /// The leader.
        from: ReplicaId,
        /// The first index that it overwrites.
        index: Index,
        /// Its term.
        term: Term,
    },
    /// A leader commits what this replica said it had, and does not have.
    #[error("replica {from} commits through {commit}, but the log ends at {last}: acknowledged entries were lost")]
    CommitPastLog {
        /// The leader.
        from: ReplicaId,
        /// The commit index that it gave.
        commit: Index,
        /// The last index here.
        last: Index,
    },
    /// Two replicas lead in one term.
    #[error("replicas {first} and {second} both lead in term {term}")]
    TwoLeaders {
        /// The leader known so far.
        first: ReplicaId,
        /// The other one.
        second: ReplicaId,
        /// The term.
        term: Term,
    },
    /// A leader sent a membership change that can't be read.
    #[error("config entry {index} can't be decoded")]
    ConfigEntry {
        /// The entry's index.
        index: Index,
    },
    /// A snapshot stands for an entry that is here with another term, below the commit index or as a newer leader has it.
    #[error("snapshot at {snapshot:?} contradicts the log, which has term {term} there")]
    Snapshot {
        /// What the snapshot stands for.
        snapshot: LogPos,
        /// The term here.
        term: Term,
    },
    /// What recovery found does not hang together.
    #[error("restored state is inconsistent: {0}")]
    Restored(&'static str),
}
