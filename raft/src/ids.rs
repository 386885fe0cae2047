//! The identities of the field: who replicates what, and where in the log.
//!
//! Distinct types, so that a term can't be given where an index is meant. Zero is never a valid
//! group, replica or host; term 0 and index 0 stand for "before the first".

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $repr);

        impl $name {
            /// The zero value: "none" for ids, "before the first" for terms and indexes.
            pub const ZERO: Self = Self(0);

            /// Whether this is the zero value.
            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// One Raft group (dragonboat: shard; TiKV: region; CockroachDB: range).
    GroupId(u64)
}
id! {
    /// A member of a group, living on one host. Never used again within its group.
    ReplicaId(u64)
}
id! {
    /// One host: a process's engine, known by this id and not by its address.
    HostId(u64)
}
id! {
    /// A Raft term (paper section 5.1).
    Term(u64)
}
id! {
    /// The index of a log entry; the first entry has index 1 (paper section 5.3).
    Index(u64)
}
id! {
    /// The incarnation of a group's history. Raised by an import; messages of a lower one are dropped.
    GroupEpoch(u64)
}
id! {
    /// A client session: the index of the entry that registered it, so that an id is never used again within its group.
    SessionId(u64)
}
id! {
    /// A random id made together with a data directory. A host that comes back with another one forgot what it promised.
    StoreId(u128)
}

impl Index {
    /// The index after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; the index before 0 is 0.
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Term {
    /// The term after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A place in the log: an index and the term of the entry there.
///
/// Ordered as votes compare logs: by term, then by index (paper section 5.4.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPos {
    /// The term of the entry at `index`.
    pub term: Term,
    /// The entry's index.
    pub index: Index,
}

impl LogPos {
    /// Before the first entry.
    pub const ZERO: Self = Self { term: Term::ZERO, index: Index::ZERO };

    /// The place of the entry of `term` at `index`.
    pub const fn new(term: Term, index: Index) -> Self {
        Self { term, index }
    }
}

impl fmt::Debug for LogPos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.index)
    }
}

/// A moment of the host's monotonic clock, in nanoseconds since an arbitrary start.
///
/// The core is told the time with every input and reads no clock.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The start of the clock.
    pub const ZERO: Self = Self(0);

    /// Whether this is the start of the clock.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// This moment plus `nanos` nanoseconds, saturating.
    pub const fn plus_nanos(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// This moment plus `millis` milliseconds, saturating.
    pub const fn plus_millis(self, millis: u64) -> Self {
        self.plus_nanos(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds from `earlier` to this moment; 0 when `earlier` is later.
    pub const fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}ms", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// The durable part of a replica's protocol state (paper figure 2, "persistent state").
///
/// `commit` is a hint that makes recovery and membership safe; it rides along and never costs a sync of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// The latest term this replica has seen.
    pub term: Term,
    /// The candidate that got this replica's vote in `term`; zero if none did.
    pub vote: ReplicaId,
    /// The commit index known when this state was made.
    pub commit: Index,
}
