//! Client sessions as they stand in a run: who calls, and with which number.
//!
//! An entry that belongs to a session has [`FLAG_SESSION`] in its descriptor's flags, the operation in the two bits
//! after it, and one record of [`SESSION_BYTES`] in the run's session side array, in the order of the entries. Entries
//! without a session cost nothing there.
//!
//! Must not know: what a table of sessions does with a call. That is replicated state, above this crate.

use crate::ids::SessionId;

/// Bytes of one record of the session side array.
pub const SESSION_BYTES: usize = 24;
/// Descriptor flag: the entry has a record in the session side array.
pub(crate) const FLAG_SESSION: u8 = 1;
const OP_SHIFT: u32 = 1;
/// The flags that this build knows. Others are refused: they may change what an entry means.
const FLAGS_KNOWN: u8 = 0b111;

/// What an entry asks of its group's table of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionCall {
    /// A command that is applied once, however often it is in the log.
    Propose {
        /// The session.
        session: SessionId,
        /// The command's number within the session, counted from 1. A retry has the number of the first attempt.
        series: u64,
        /// The client has the answers of all commands up to this one: they need not be kept.
        responded_to: u64,
    },
    /// A new session. Its id is the index of this entry.
    Register {
        /// How many sessions the group keeps from here on. In the entry, so that every replica keeps the same ones.
        sessions_max: u32,
    },
    /// The session ends.
    Close {
        /// The session.
        session: SessionId,
    },
}

impl SessionCall {
    /// The flags of the entry's descriptor.
    pub(crate) const fn flags(self) -> u8 {
        let op = match self {
            Self::Propose { .. } => 0,
            Self::Register { .. } => 1,
            Self::Close { .. } => 2,
        };
        FLAG_SESSION | op << OP_SHIFT
    }

    pub(crate) fn encode(self) -> [u8; SESSION_BYTES] {
        let words = match self {
            Self::Propose { session, series, responded_to } => [session.0, series, responded_to],
            Self::Register { sessions_max } => [0, u64::from(sessions_max), 0],
            Self::Close { session } => [session.0, 0, 0],
        };
        let mut out = [0; SESSION_BYTES];
        for (at, word) in words.into_iter().enumerate() {
            out[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// The call of an entry with these flags and this record; `None` when they are not one.
    pub(crate) fn decode(flags: u8, record: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            u64::from_le_bytes(record[at * 8..at * 8 + 8].try_into().expect("a record has three words of eight bytes"))
        };
        let session = SessionId(word(0));
        match (flags >> OP_SHIFT, word(1), word(2)) {
            (0, series, responded_to) => Some(Self::Propose { session, series, responded_to }),
            (1, max, 0) if session.is_zero() => Some(Self::Register { sessions_max: u32::try_from(max).ok()? }),
            (2, 0, 0) => Some(Self::Close { session }),
            _ => None,
        }
    }
}

/// Whether the flags of a descriptor are ones that this build knows.
pub(crate) const fn are_known(flags: u8) -> bool {
    flags & !FLAGS_KNOWN == 0 && (flags & FLAG_SESSION != 0 || flags == 0) && flags >> OP_SHIFT < 3
}
