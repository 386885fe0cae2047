//! How raft messages and snapshot chunks are laid out in frames.
//!
//! A frame's body is a *head* and a *tail*. The head holds fixed little-endian records and small runs; the tail holds
//! large runs and chunk data. [`crate::Transport`] checksums the first part of a frame, which is the head; runs and chunk data
//! carry checksums of their own, so that no payload byte is summed twice.
//!
//! All integers are little-endian. A body starts with its kind (1: messages, 2: chunk, 3: chunk status, 4: a host's message) and [`WIRE_VERSION`].
//!
//! | messages: offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | kind, version, zero, zero |
//! | 4 | 4 | length of the records |
//! | 8 | 4 | length of the tail |
//! | 12 | 4 | zero |
//! | 16 | | records, one after the other |
//! | | | tail: the large runs, in the order of the records that they belong to |
//!
//! | record: offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | kind |
//! | 1 | 1 | flags, by kind |
//! | 2 | 2 | number of runs (append, forward), else zero |
//! | 4 | 4 | length of what follows this header |
//! | 8 | 5 x 8 | group, epoch, sender, addressee, term |
//! | 48 | | fields by kind, 8 bytes each, in the order of [`longboat_raft::Body`] |
//! | | 4 each | length of each run; the top bit says that it is in the tail |
//! | | | the other runs |
//!
//! Commits in a row share one record: kind, three zeros, count (4), then group, epoch, sender, addressee, term and commit of each.
//!
//! Decoding trusts nothing: lengths are compared with what is there before anything is allocated, and every failure
//! is a [`WireError`].
//!
//! Invariants: what [`FrameBuilder`] makes, [`messages`] takes apart into equal messages in the same order.
//! A decoded run shares the frame's memory: whoever keeps one run keeps the frame.
//!
//! Must not know: sockets, who lives where, what a message means to a replica.

mod build;
mod chunk;
mod host;
mod meta;
mod read;

pub use build::{FrameBuilder, Parts};
pub use chunk::{Chunk, ChunkOutcome, ChunkStatus, SnapshotFrame};
pub use host::{
    Beat, DIGEST_BUCKETS, Digest, GoneReplica, HOST_ITEMS_MAX, HostMessage, Side, SilentGroup, SilentSum, Starts,
};
pub use read::{Incoming, Messages, for_each_group, messages, messages_for};

use longboat_raft::{DecodeError, RunError};

/// The version of the layouts in this module, in every body's second byte.
pub const WIRE_VERSION: u8 = 1;

/// A [`FrameBuilder`] is full at this many bytes. Large enough that a round is one frame, small enough that the frames
/// of one connection interleave with those of others at the receiver.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// The most bytes that one message may take: a run of one entry of the largest size, its head and the runs before it.
pub const MESSAGE_BYTES_MAX: usize = 20 << 20;

/// No frame's body is longer: a builder that is almost full takes one more message of the largest size.
pub const FRAME_BYTES_LIMIT: usize = FRAME_BYTES_MAX + MESSAGE_BYTES_MAX;

/// Runs with at least this many bytes travel as parts of their own, uncopied. Below it a copy is cheaper than two more
/// entries in the socket's vector.
pub const RUN_INLINE_BYTES_MAX: usize = 4 << 10;

/// The most runs that one append may carry; an append of 256 KiB holds far fewer.
pub const APPEND_RUNS_MAX: usize = 4 << 10;

/// The most bytes of a snapshot's metadata: a membership with tens of thousands of removed ids.
pub const META_BYTES_MAX: usize = 1 << 20;

/// The most data bytes of one snapshot chunk.
pub const CHUNK_DATA_BYTES_MAX: usize = 1 << 20;

/// Why bytes are not a frame of messages or a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Fewer bytes than a length says.
    #[error("frame is truncated: {needed} bytes needed, {available} available")]
    Truncated {
        /// Bytes that are needed.
        needed: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// A layout version that this build does not know.
    #[error("wire version {found} is not supported, this build knows {WIRE_VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// A body or record of a kind that this build does not know, or that does not belong here.
    #[error("{what} of kind {kind} is not known here")]
    Kind {
        /// What has the kind.
        what: &'static str,
        /// The kind.
        kind: u8,
    },
    /// A field that no sender writes.
    #[error("frame is malformed: {0}")]
    Malformed(&'static str),
    /// A run that can't be taken.
    #[error("frame carries a bad run")]
    Run(#[from] RunError),
    /// Snapshot metadata whose membership can't be taken.
    #[error("frame carries a bad membership")]
    Membership(#[from] DecodeError),
    /// Chunk data that does not match its checksum.
    #[error("chunk checksum mismatch")]
    ChunkChecksum,
}

/// The kinds of body.
const BODY_MESSAGES: u8 = 1;
const BODY_CHUNK: u8 = 2;
const BODY_CHUNK_STATUS: u8 = 3;
const BODY_HOST: u8 = 4;

/// Bytes before the first record: kind, version, zero (2), length of the records (4), length of the tail (4), zero (4).
const BODY_HEADER_BYTES: usize = 16;

/// Bytes before a record's own fields: kind, flags, count (2), length after this header (4), group, epoch, from, to, term.
const RECORD_HEADER_BYTES: usize = 48;

/// A record of packed commits: kind, zero (3), count of commits (4); then the commits.
const COMMITS_HEADER_BYTES: usize = 8;

/// A packed commit: group, epoch, from, to, term, commit.
const COMMIT_BYTES: usize = 48;

/// The kinds of record.
mod kind {
    pub(super) const APPEND: u8 = 1;
    pub(super) const APPEND_ACCEPTED: u8 = 2;
    pub(super) const APPEND_REJECTED: u8 = 3;
    pub(super) const HEARTBEAT: u8 = 4;
    pub(super) const HEARTBEAT_RESPONSE: u8 = 5;
    pub(super) const COMMITS: u8 = 6;
    pub(super) const REQUEST_VOTE: u8 = 7;
    pub(super) const VOTE_RESPONSE: u8 = 8;
    pub(super) const SNAPSHOT: u8 = 9;
    pub(super) const READ_INDEX: u8 = 10;
    pub(super) const READ_INDEX_RESPONSE: u8 = 11;
    pub(super) const FORWARD: u8 = 12;
    pub(super) const FORWARD_REFUSED: u8 = 13;
    pub(super) const TIMEOUT_NOW: u8 = 14;
    pub(super) const APPEND_PAUSED: u8 = 15;
    pub(super) const WITNESS_SNAPSHOT: u8 = 16;
    pub(super) const SNAPSHOT_NEEDED: u8 = 17;
    pub(super) const REMOVED: u8 = 18;
    pub(super) const TRANSFER: u8 = 19;
    pub(super) const TRANSFER_ANSWER: u8 = 20;
    pub(super) const CLOSE_FORWARDS: u8 = 21;
    pub(super) const FORWARDS_CLOSED: u8 = 22;
    pub(super) const QUIESCE: u8 = 32;
    pub(super) const QUIESCE_RESPONSE: u8 = 33;
}

/// Record flags; their meaning depends on the kind.
mod flag {
    /// A vote request or response is about a pre-vote.
    pub(super) const PRE: u8 = 1;
    /// The leader asked for this election.
    pub(super) const TRANSFER: u8 = 2;
    /// The vote was given, or the question was agreed to.
    pub(super) const GRANTED: u8 = 4;
    /// The sender of a heartbeat response has no room for entries.
    pub(super) const OVERLOADED: u8 = 1;
    /// A read index response carries an index.
    pub(super) const SOME: u8 = 1;
}

/// In a run's length: the run is in the tail.
const RUN_IN_TAIL: u32 = 1 << 31;

/// Bytes of the fixed part of an append: prev term, prev index, commit.
const APPEND_FIXED_BYTES: usize = 24;

/// Reads fixed fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        match self.0.split_at_checked(n) {
            Some((front, rest)) => {
                self.0 = rest;
                Ok(front)
            }
            None => Err(WireError::Truncated { needed: n, available: self.0.len() }),
        }
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.take(2)?.try_into().expect("two bytes")))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Malformed("bytes after a record's fields")) }
    }
}

#[cfg(test)]
mod tests;
