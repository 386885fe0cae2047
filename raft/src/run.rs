//! Runs: contiguous spans of log entries of one term, encoded once.
//!
//! The bytes of a run are the wire payload, the journal frame, what followers keep in memory and what the
//! state machine is given. A run is two byte strings: the *head* (header, one fixed descriptor per entry,
//! session side array) and the *payload area*. Both have a CRC of their own, so that a witness can be sent
//! heads without payloads.
//!
//! Layout of the head, little-endian:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | version, [`RUN_VERSION`] |
//! | 1 | 1 | flags: bit 0 says that the run is *stripped* |
//! | 2 | 2 | zero |
//! | 4 | 4 | count of entries, at least 1 |
//! | 8 | 8 | term |
//! | 16 | 8 | index of the first entry |
//! | 24 | 8 | origin: the replica that proposed |
//! | 32 | 8 | origin: its random start number |
//! | 40 | 4 | length of the payload area |
//! | 44 | 4 | length of the session side array |
//! | 48 | 4 | CRC-32C of the payload area |
//! | 52 | 4 | CRC-32C of bytes 0..48 and 56.. of the head, continued from that of the payload area |
//! | 56 | 16 each | descriptors |
//! | | | session side array |
//!
//! A descriptor: kind (1), flags (1), codec (1), zero (1), payload length (4), sequence number at the origin (8).
//! The flags and the side array are those of [`crate::session`], the codec is a [`PayloadCodec`]; only commands have another than 0.
//!
//! A stripped run is what a witness gets, keeps and reads back: its descriptors are as they were, and its payload area has the
//! payloads of membership changes and no others. It must not be sent on, nor be given to a state machine.
//!
//! Invariant: a `Run` that exists has a consistent head: the descriptors' lengths add up to the payload's length, and the
//! side array has one valid record for each descriptor that is flagged.

mod builder;
mod memory;

use crate::crc::crc32c;
use crate::ids::{Index, LogPos, ReplicaId, Term};
use crate::payload::PayloadCodec;
use crate::session::{self, FLAG_SESSION, SESSION_BYTES, SessionCall};
use builder::finish;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use memory::Memory;
use std::fmt;
use std::ops::{Range, RangeInclusive};

pub use builder::RunBuilder;

/// The version byte of a run's head.
pub const RUN_VERSION: u8 = 2;
/// Bytes of a run's header.
pub const RUN_HEADER_BYTES: usize = 56;
/// Bytes of one entry descriptor.
pub const DESCRIPTOR_BYTES: usize = 16;
/// Bytes of a run's header before its checksums.
const SUMMED_BYTES: usize = 48;
/// The flag of a stripped run.
const STRIPPED: u8 = 1;
/// The most entries that one run may hold: 4 MiB of descriptors would otherwise dominate a batch.
pub const RUN_ENTRIES_MAX: usize = 64 * 1024;
/// The most payload bytes that one run may hold, in bytes: a batch is at most 4 MiB, one large entry may fill more.
pub const RUN_PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What an entry means to the replicas that apply it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Nothing: a new leader's first entry (paper section 8).
    Empty = 0,
    /// A command for the state machine.
    Command = 1,
    /// A membership change: the payload is an encoded [`crate::ConfigChange`].
    Config = 2,
}

impl EntryKind {
    /// The kind with this number. Unknown kinds are refused: an unknown entry stops the replica, it is never skipped.
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            0 => Some(Self::Empty),
            1 => Some(Self::Command),
            2 => Some(Self::Config),
            _ => None,
        }
    }
}

/// Who proposed a run: a replica and the random number that its process drew at start.
///
/// Together with an entry's sequence number this names a proposal for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The replica where the proposal was made.
    pub replica: ReplicaId,
    /// The random number that this replica drew when it started.
    pub start: u64,
}

/// Why bytes are not a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Fewer bytes than the header says.
    #[error("run is truncated: {needed} bytes needed, {available} available")]
    Truncated {
        /// Bytes that the run needs.
        needed: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// A version that this build does not know.
    #[error("run version {0} is not supported")]
    Version(u8),
    /// An entry kind that this build does not know.
    #[error("entry kind {0} is not known")]
    Kind(u8),
    /// A count or length above its bound, or lengths that do not add up.
    #[error("run is malformed: {0}")]
    Malformed(&'static str),
    /// A checksum does not match.
    #[error("run checksum mismatch in its {0}")]
    Checksum(&'static str),
}

/// One entry of a run, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The entry's term.
    pub term: Term,
    /// The entry's index.
    pub index: Index,
    /// What the entry means.
    pub kind: EntryKind,
    /// The entry's sequence number at the run's origin.
    pub sequence: u64,
    /// How the payload is written.
    pub codec: PayloadCodec,
    /// The entry's payload.
    pub payload: &'a [u8],
    /// Where `payload` starts in the run's payload area, in bytes.
    pub payload_offset: usize,
    /// The session that the entry belongs to, and what it asks of it.
    pub session: Option<SessionCall>,
}

/// A contiguous span of log entries of one term, encoded. Cheap to clone.
#[derive(Clone)]
pub struct Run {
    memory: Memory,
}

impl Run {
    /// The term of every entry.
    #[inline]
    pub fn term(&self) -> Term {
        self.memory.place().term
    }

    /// The index of the first entry.
    #[inline]
    pub fn first(&self) -> Index {
        self.memory.place().index
    }

    /// The index of the last entry.
    #[inline]
    pub fn last(&self) -> Index {
        Index(self.first().0 + u64::from(self.memory.count()) - 1)
    }

    /// The number of entries, at least 1.
    #[inline]
    pub fn count(&self) -> usize {
        self.memory.count() as usize
    }

    /// Whether one of the entries is a membership change. Known without looking at them again.
    #[inline]
    pub fn has_config(&self) -> bool {
        self.memory.has_config()
    }

    /// Whether one of the entries belongs to a session. Known without looking at them.
    pub fn has_sessions(&self) -> bool {
        self.head().len() > self.sessions_at()
    }

    /// Where the session side array starts in the head.
    fn sessions_at(&self) -> usize {
        RUN_HEADER_BYTES + self.count() * DESCRIPTOR_BYTES
    }

    /// How many of the entries before the one at `before` belong to a session.
    fn sessions_before(&self, before: usize) -> usize {
        if self.has_sessions() { (0..before).filter(|&i| self.descriptor(i)[1] & FLAG_SESSION != 0).count() } else { 0 }
    }

    /// Whether this is a witness's form of the run, without payloads but those of membership changes.
    pub fn is_stripped(&self) -> bool {
        self.head()[1] & STRIPPED != 0
    }

    /// The run as a witness gets it.
    pub fn strip(&self) -> Self {
        if self.is_stripped() {
            return self.clone();
        }
        let mut payload = BytesMut::new();
        for entry in self.entries().filter(|e| self.has_config() && e.kind == EntryKind::Config) {
            payload.put_slice(entry.payload);
        }
        let mut head = BytesMut::from(&self.head()[..self.sessions_at()]);
        head[1] |= STRIPPED;
        finish(head, &self.head()[self.sessions_at()..], self.memory.place(), self.origin(), payload.freeze())
    }

    /// Who proposed these entries.
    pub fn origin(&self) -> Origin {
        let head = self.head();
        Origin { replica: ReplicaId(le64(head, 24)), start: le64(head, 32) }
    }

    /// Header, descriptors and session side array.
    pub fn head(&self) -> &[u8] {
        self.memory.head()
    }

    /// The payload area.
    pub fn payload(&self) -> &[u8] {
        self.memory.payload()
    }

    /// The memory that has the payload area, and where it begins there; nothing for a small run, which is nobody else's.
    pub fn payload_memory(&self) -> Option<(&Bytes, usize)> {
        self.memory.shared_payload()
    }

    /// A part of the payload area, sharing its memory if the run is not a small one.
    ///
    /// Panics if it reaches outside of that: a caller's mistake.
    pub fn shared_payload(&self, range: Range<usize>) -> Bytes {
        match self.payload_memory() {
            Some((memory, at)) => memory.slice(at + range.start..at + range.end),
            None => Bytes::copy_from_slice(&self.payload()[range]),
        }
    }

    /// The run as it is encoded, in one or two parts: the second is empty, or the payload area that has memory of its own.
    #[inline]
    pub fn parts(&self) -> [&[u8]; 2] {
        self.memory.parts()
    }

    /// The same, sharing the run's memory if it is not a small one.
    pub fn shared_parts(&self) -> [Bytes; 2] {
        self.memory.shared_parts()
    }

    /// Bytes of this run on the wire and in the journal.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        let [bytes, apart] = self.parts();
        bytes.len() + apart.len()
    }

    /// Appends the encoded run to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        let [bytes, apart] = self.parts();
        out.put_slice(bytes);
        if !apart.is_empty() {
            out.put_slice(apart);
        }
    }

    /// Takes one run off the front of `input`, sharing its memory unless it is a small one, after checking both checksums.
    pub fn decode(input: &mut Bytes) -> Result<Self, RunError> {
        let (head_len, payload_len) = Self::measure(input)?;
        let needed = head_len + payload_len;
        if input.len() < needed {
            return Err(RunError::Truncated { needed, available: input.len() });
        }
        let has_config = check(&input[..head_len], &input[head_len..needed])?;
        if let Some(memory) = Memory::small(&input[..needed], has_config) {
            input.advance(needed);
            return Ok(Self { memory });
        }
        let bytes = if needed == input.len() { std::mem::take(input) } else { input.split_to(needed) };
        Ok(Self { memory: Memory::shared(head_len, has_config, bytes, Bytes::new()) })
    }

    /// The lengths in bytes of head and payload area of the run at the front of `input`, bounds checked, nothing allocated.
    pub fn measure(input: &[u8]) -> Result<(usize, usize), RunError> {
        if input.len() < RUN_HEADER_BYTES {
            return Err(RunError::Truncated { needed: RUN_HEADER_BYTES, available: input.len() });
        }
        if input[0] != RUN_VERSION {
            return Err(RunError::Version(input[0]));
        }
        let count = le32(input, 4) as usize;
        let payload_len = le32(input, 40) as usize;
        let session_len = le32(input, 44) as usize;
        if count == 0 || count > RUN_ENTRIES_MAX {
            return Err(RunError::Malformed("count of entries out of bounds"));
        }
        if payload_len > RUN_PAYLOAD_BYTES_MAX || session_len > RUN_PAYLOAD_BYTES_MAX {
            return Err(RunError::Malformed("length out of bounds"));
        }
        Ok((RUN_HEADER_BYTES + count * DESCRIPTOR_BYTES + session_len, payload_len))
    }

    /// Checks the run at the front of `input` as [`Run::decode`] does, without taking it. Returns its length in bytes.
    ///
    /// # Errors
    /// Those of [`Run::decode`].
    pub fn verify(input: &[u8]) -> Result<usize, RunError> {
        let (head_len, payload_len) = Self::measure(input)?;
        let needed = head_len + payload_len;
        if input.len() < needed {
            return Err(RunError::Truncated { needed, available: input.len() });
        }
        check(&input[..head_len], &input[head_len..needed])?;
        Ok(needed)
    }

    fn descriptor(&self, i: usize) -> &[u8] {
        let at = RUN_HEADER_BYTES + i * DESCRIPTOR_BYTES;
        &self.head()[at..at + DESCRIPTOR_BYTES]
    }

    /// Bytes that the entry has in the payload area.
    fn payload_len(&self, i: usize) -> usize {
        let d = self.descriptor(i);
        if self.is_stripped() && d[0] != EntryKind::Config as u8 { 0 } else { le32(d, 4) as usize }
    }

    /// The entries in order.
    pub fn entries(&self) -> Entries<'_> {
        let (descriptors, sessions) = self.head()[RUN_HEADER_BYTES..].split_at(self.count() * DESCRIPTOR_BYTES);
        let (next, is_stripped) = (self.memory.place(), self.is_stripped());
        Entries { next, is_stripped, descriptors, sessions, payload: self.payload(), offset: 0 }
    }

    /// The part of this run whose indexes lie in `range`, sharing the payload's memory.
    ///
    /// Panics if the range is empty or reaches outside of the run: a caller's mistake.
    pub fn slice(&self, range: RangeInclusive<Index>) -> Self {
        let (lo, hi) = (*range.start(), *range.end());
        assert!(self.first() <= lo && lo <= hi && hi <= self.last(), "slice {lo}..={hi} of run {self:?}");
        if lo == self.first() && hi == self.last() {
            return self.clone();
        }
        let (skip, take) = ((lo.0 - self.first().0) as usize, (hi.0 - lo.0 + 1) as usize);
        let lens = |r: Range<usize>| r.map(|i| self.payload_len(i)).sum::<usize>();
        let (from, len) = (lens(0..skip), lens(skip..skip + take));
        let payload = self.shared_payload(from..from + len);
        let at = RUN_HEADER_BYTES + skip * DESCRIPTOR_BYTES;
        let mut head = BytesMut::with_capacity(RUN_HEADER_BYTES + take * DESCRIPTOR_BYTES);
        head.put_slice(&self.head()[..RUN_HEADER_BYTES]);
        head.put_slice(&self.head()[at..at + take * DESCRIPTOR_BYTES]);
        let (first, end) = (self.sessions_before(skip), self.sessions_before(skip + take));
        let at = self.sessions_at();
        let sessions = &self.head()[at + first * SESSION_BYTES..at + end * SESSION_BYTES];
        finish(head, sessions, LogPos::new(self.term(), lo), self.origin(), payload)
    }

    /// The same entries at another place of the log: how a leader adopts a run that was forwarded to it.
    pub fn rebase(&self, term: Term, first: Index) -> Self {
        let place = |head: &mut [u8]| {
            head[8..16].copy_from_slice(&term.0.to_le_bytes());
            head[16..24].copy_from_slice(&first.0.to_le_bytes());
            let crc = head_crc(head);
            head[52..56].copy_from_slice(&crc.to_le_bytes());
        };
        let head_len = self.head().len();
        let Some((payload, at)) = self.payload_memory() else {
            let mut memory = self.memory.clone();
            place(&mut memory.small_mut().expect("it has no memory of its own")[..head_len]);
            return Self { memory };
        };
        let mut head = BytesMut::from(self.head());
        place(&mut head);
        let apart = payload.slice(at..at + self.payload().len());
        Self { memory: Memory::shared(head_len, self.has_config(), head.freeze(), apart) }
    }
}

/// The head has term, first index and the number of entries in it.
impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        (self.head(), self.payload()) == (other.head(), other.payload())
    }
}

impl Eq for Run {}

/// The head's checksum stands for all bytes of the head, and the payload's checksum is among them.
impl std::hash::Hash for Run {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let LogPos { term, index } = self.memory.place();
        state.write_u64(term.0);
        state.write_u64(index.0);
        state.write_u64(le64(self.head(), 48));
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {}/{}..={} ({} B)", self.term(), self.first(), self.last(), self.payload().len())
    }
}

/// The entries of a run, in order.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    /// The place of the next one.
    next: LogPos,
    is_stripped: bool,
    /// From that of the next one on.
    descriptors: &'a [u8],
    /// What is left of the session side array.
    sessions: &'a [u8],
    payload: &'a [u8],
    /// Where the next one's payload starts.
    offset: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = EntryRef<'a>;

    fn next(&mut self) -> Option<EntryRef<'a>> {
        let (d, descriptors) = self.descriptors.split_first_chunk::<DESCRIPTOR_BYTES>()?;
        let kind = EntryKind::from_u8(d[0]).expect("a run's kinds were checked when it was made");
        let len = if self.is_stripped && kind != EntryKind::Config { 0 } else { le32(d, 4) as usize };
        let session = (d[1] & FLAG_SESSION != 0).then(|| {
            let (record, rest) = self.sessions.split_at(SESSION_BYTES);
            self.sessions = rest;
            SessionCall::decode(d[1], record).expect("a run's sessions were checked when it was made")
        });
        let LogPos { term, index } = self.next;
        let entry = EntryRef {
            term,
            index,
            kind,
            sequence: le64(d, 8),
            codec: PayloadCodec::from_u8(d[2]).expect("a run's codecs were checked when it was made"),
            payload: &self.payload[self.offset..self.offset + len],
            payload_offset: self.offset,
            session,
        };
        self.descriptors = descriptors;
        self.next.index = Index(index.0 + 1);
        self.offset += len;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.descriptors.len() / DESCRIPTOR_BYTES;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// Checks everything of a run but the lengths in its header, and tells whether a config entry is among the entries.
fn check(head: &[u8], payload: &[u8]) -> Result<bool, RunError> {
    if le32(head, 52) != head_crc(head) {
        return Err(RunError::Checksum("head"));
    }
    if le32(head, 48) != crc32c(0, payload) {
        return Err(RunError::Checksum("payload"));
    }
    if head[1] & !STRIPPED != 0 {
        return Err(RunError::Malformed("flags that are not known"));
    }
    let count = le32(head, 4);
    if le64(head, 16).checked_add(u64::from(count)).is_none() {
        return Err(RunError::Malformed("index overflow"));
    }
    let (descriptors, records) = head[RUN_HEADER_BYTES..].split_at(count as usize * DESCRIPTOR_BYTES);
    let (mut total, mut has_config, mut sessions) = (0usize, false, records.chunks_exact(SESSION_BYTES));
    for d in descriptors.chunks_exact(DESCRIPTOR_BYTES) {
        let Some(kind) = EntryKind::from_u8(d[0]) else { return Err(RunError::Kind(d[0])) };
        has_config |= kind == EntryKind::Config;
        total += if head[1] & STRIPPED != 0 && kind != EntryKind::Config { 0 } else { le32(d, 4) as usize };
        if !session::are_known(d[1]) {
            return Err(RunError::Malformed("unknown flags of an entry"));
        }
        if (d[2], d[3]) != (0, 0) && (kind != EntryKind::Command || PayloadCodec::from_u8(d[2]).is_none() || d[3] != 0)
        {
            return Err(RunError::Malformed("codec of an entry"));
        }
        if d[1] & FLAG_SESSION != 0 {
            let record = sessions.next().filter(|_| kind == EntryKind::Command);
            if record.and_then(|r| SessionCall::decode(d[1], r)).is_none() {
                return Err(RunError::Malformed("session of an entry"));
            }
        }
    }
    if sessions.next().is_some() || !sessions.remainder().is_empty() {
        return Err(RunError::Malformed("session records that belong to no entry"));
    }
    if total != payload.len() {
        return Err(RunError::Malformed("entry lengths do not add up"));
    }
    Ok(has_config)
}

/// Continues from the payload's checksum instead of summing that field: what is left are whole words.
fn head_crc(head: &[u8]) -> u32 {
    let crc = crc32c(le32(head, SUMMED_BYTES), &head[..SUMMED_BYTES]);
    crc32c(crc, &head[RUN_HEADER_BYTES..])
}

#[inline]
fn le32(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"))
}

#[inline]
fn le64(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;
