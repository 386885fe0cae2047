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

use crate::crc::crc32c;
use crate::ids::{Index, LogPos, ReplicaId, Term};
use crate::payload::PayloadCodec;
use crate::session::{self, FLAG_SESSION, SESSION_BYTES, SessionCall};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::fmt;
use std::ops::RangeInclusive;

/// The version byte of a run's head.
pub const RUN_VERSION: u8 = 2;
/// Bytes of a run's header.
pub const RUN_HEADER_BYTES: usize = 56;
/// Bytes of one entry descriptor.
pub const DESCRIPTOR_BYTES: usize = 16;
/// The flag of a stripped run.
const STRIPPED: u8 = 1;
/// The most entries that one run may hold: 4 MiB of descriptors would otherwise dominate a batch.
pub const RUN_ENTRIES_MAX: usize = 64 * 1024;
/// The most payload bytes that one run may hold, in bytes: a batch is at most 4 MiB, one large entry may fill more.
pub const RUN_PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Entries that a chunk has room for from its first one on.
const FIRST_ENTRIES: usize = 8;
/// Payload bytes that a chunk has room for from its first entry on.
const FIRST_PAYLOAD_BYTES: usize = 128;
/// Payload bytes up to which a sealed run has its head and payload in one allocation: to copy so few again is cheaper
/// than to keep one more allocation, and the room that a chunk did not use, for as long as the run lives.
const TOGETHER_BYTES_MAX: usize = 1024;

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
#[derive(Clone, PartialEq, Eq)]
pub struct Run {
    term: Term,
    first: Index,
    count: u32,
    has_config: bool,
    head: Bytes,
    payload: Bytes,
}

impl Run {
    /// The term of every entry.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The index of the first entry.
    pub fn first(&self) -> Index {
        self.first
    }

    /// The index of the last entry.
    pub fn last(&self) -> Index {
        Index(self.first.0 + u64::from(self.count) - 1)
    }

    /// The number of entries, at least 1.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Whether one of the entries is a membership change. Known without looking at them again.
    pub fn has_config(&self) -> bool {
        self.has_config
    }

    /// Whether one of the entries belongs to a session. Known without looking at them.
    pub fn has_sessions(&self) -> bool {
        self.head.len() > self.sessions_at()
    }

    /// Where the session side array starts in the head.
    fn sessions_at(&self) -> usize {
        RUN_HEADER_BYTES + self.count() * DESCRIPTOR_BYTES
    }

    /// The record with this number in the side array.
    fn session_record(&self, number: usize) -> &[u8] {
        let at = self.sessions_at() + number * SESSION_BYTES;
        &self.head[at..at + SESSION_BYTES]
    }

    /// How many of the entries before the one at `before` belong to a session.
    fn sessions_before(&self, before: usize) -> usize {
        if self.has_sessions() { (0..before).filter(|&i| self.descriptor(i)[1] & FLAG_SESSION != 0).count() } else { 0 }
    }

    /// Whether this is a witness's form of the run, without payloads but those of membership changes.
    pub fn is_stripped(&self) -> bool {
        self.head[1] & STRIPPED != 0
    }

    /// The run as a witness gets it.
    pub fn strip(&self) -> Self {
        if self.is_stripped() {
            return self.clone();
        }
        let mut payload = BytesMut::new();
        for entry in self.entries().filter(|e| self.has_config && e.kind == EntryKind::Config) {
            payload.put_slice(entry.payload);
        }
        let mut head = BytesMut::from(&self.head[..self.sessions_at()]);
        head[1] |= STRIPPED;
        let first = LogPos::new(self.term, self.first);
        finish(head, &self.head[self.sessions_at()..], first, self.origin(), payload.freeze())
    }

    /// Who proposed these entries.
    pub fn origin(&self) -> Origin {
        Origin { replica: ReplicaId(le64(&self.head, 24)), start: le64(&self.head, 32) }
    }

    /// Header, descriptors and session side array.
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    /// The payload area.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Bytes of this run on the wire and in the journal.
    pub fn encoded_len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Appends the encoded run to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.head);
        out.put_slice(&self.payload);
    }

    /// Takes one run off the front of `input`, sharing its memory, after checking both checksums.
    pub fn decode(input: &mut Bytes) -> Result<Self, RunError> {
        let (head_len, payload_len) = Self::measure(input)?;
        let needed = head_len + payload_len;
        if input.len() < needed {
            return Err(RunError::Truncated { needed, available: input.len() });
        }
        let mut run = Self {
            term: Term(le64(input, 8)),
            first: Index(le64(input, 16)),
            count: le32(input, 4),
            has_config: false,
            head: input.slice(..head_len),
            payload: input.slice(head_len..needed),
        };
        run.has_config = check(&run.head, &run.payload)?;
        input.advance(needed);
        Ok(run)
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
        &self.head[at..at + DESCRIPTOR_BYTES]
    }

    /// Bytes that the entry has in the payload area.
    fn payload_len(&self, i: usize) -> usize {
        let d = self.descriptor(i);
        if self.is_stripped() && d[0] != EntryKind::Config as u8 { 0 } else { le32(d, 4) as usize }
    }

    /// The entries in order.
    pub fn entries(&self) -> Entries<'_> {
        Entries { run: self, next: 0, offset: 0, session: 0 }
    }

    /// The part of this run whose indexes lie in `range`, sharing the payload's memory.
    ///
    /// Panics if the range is empty or reaches outside of the run: a caller's mistake.
    pub fn slice(&self, range: RangeInclusive<Index>) -> Self {
        let (lo, hi) = (*range.start(), *range.end());
        assert!(self.first <= lo && lo <= hi && hi <= self.last(), "slice {lo}..={hi} of run {self:?}");
        if lo == self.first && hi == self.last() {
            return self.clone();
        }
        let (skip, take) = ((lo.0 - self.first.0) as usize, (hi.0 - lo.0 + 1) as usize);
        let lens = |r: std::ops::Range<usize>| r.map(|i| self.payload_len(i)).sum::<usize>();
        let (from, len) = (lens(0..skip), lens(skip..skip + take));
        let payload = self.payload.slice(from..from + len);
        let at = RUN_HEADER_BYTES + skip * DESCRIPTOR_BYTES;
        let mut head = BytesMut::with_capacity(RUN_HEADER_BYTES + take * DESCRIPTOR_BYTES);
        head.put_slice(&self.head[..RUN_HEADER_BYTES]);
        head.put_slice(&self.head[at..at + take * DESCRIPTOR_BYTES]);
        let (first, end) = (self.sessions_before(skip), self.sessions_before(skip + take));
        let at = self.sessions_at();
        let sessions = &self.head[at + first * SESSION_BYTES..at + end * SESSION_BYTES];
        finish(head, sessions, LogPos::new(self.term, lo), self.origin(), payload)
    }

    /// The same entries at another place of the log: how a leader adopts a run that was forwarded to it.
    pub fn rebase(&self, term: Term, first: Index) -> Self {
        let mut head = BytesMut::from(&self.head[..]);
        head[8..16].copy_from_slice(&term.0.to_le_bytes());
        head[16..24].copy_from_slice(&first.0.to_le_bytes());
        let crc = head_crc(&head);
        head[52..56].copy_from_slice(&crc.to_le_bytes());
        Self { term, first, head: head.freeze(), payload: self.payload.clone(), ..*self }
    }
}

/// The head's checksum stands for all bytes of the head, and the payload's checksum is among them.
impl std::hash::Hash for Run {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.term.0);
        state.write_u64(self.first.0);
        state.write_u64(le64(&self.head, 48));
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {}/{}..={} ({} B)", self.term, self.first, self.last(), self.payload.len())
    }
}

/// The entries of a run, in order.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    run: &'a Run,
    next: usize,
    offset: usize,
    /// The next record of the session side array.
    session: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = EntryRef<'a>;

    fn next(&mut self) -> Option<EntryRef<'a>> {
        if self.next == self.run.count() {
            return None;
        }
        let d = self.run.descriptor(self.next);
        let len = self.run.payload_len(self.next);
        let call = (d[1] & FLAG_SESSION != 0).then(|| {
            let call = SessionCall::decode(d[1], self.run.session_record(self.session));
            self.session += 1;
            call.expect("a run's sessions were checked when it was made")
        });
        let entry = EntryRef {
            term: self.run.term,
            index: Index(self.run.first.0 + self.next as u64),
            kind: EntryKind::from_u8(d[0]).expect("a run's kinds were checked when it was made"),
            sequence: le64(d, 8),
            codec: PayloadCodec::from_u8(d[2]).expect("a run's codecs were checked when it was made"),
            payload: &self.run.payload[self.offset..self.offset + len],
            payload_offset: self.offset,
            session: call,
        };
        self.next += 1;
        self.offset += len;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.run.count() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// Cuts a payload area back to `from` when dropped: also when the code that writes to it panics.
struct Undo<'a> {
    payload: &'a mut BytesMut,
    from: usize,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.payload.truncate(self.from);
    }
}

/// An open chunk: entries gathered before they have a place in the log. Sealing turns it into a [`Run`].
#[derive(Debug, Default)]
pub struct RunBuilder {
    head: BytesMut,
    payload: BytesMut,
    sessions: Vec<u8>,
    count: u32,
}

impl RunBuilder {
    /// An empty chunk. Allocates nothing until the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of entries so far.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no entry yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the run would take.
    pub fn encoded_len(&self) -> usize {
        self.head.len() + self.sessions.len() + self.payload.len()
    }

    /// Tells that so many more entries like the last one follow. Makes room for all of them at once, as far as the chunk stays
    /// within `encoded_bytes_max`: a chunk that grows by doubling copies its payloads once more, and takes twice the memory.
    pub fn expect_more(&mut self, entries: usize, encoded_bytes_max: usize) {
        if self.count == 0 {
            return;
        }
        let len = le32(&self.head, self.head.len() - DESCRIPTOR_BYTES + 4) as usize;
        let left = encoded_bytes_max.saturating_sub(self.encoded_len());
        if self.payload.capacity() - self.payload.len() >= len || left == 0 {
            return;
        }
        // The last one may reach beyond the bound.
        let entries = entries.min(left / (len + DESCRIPTOR_BYTES) + 1);
        self.payload.reserve(entries * len);
        self.head.reserve(entries * DESCRIPTOR_BYTES);
    }

    /// Adds an entry whose payload `write` appends to the buffer that it is given. Returns the payload's length.
    ///
    /// When the payload is longer than `bytes_max`, or `write` panics, the chunk is as it was before.
    ///
    /// # Errors
    /// The length of a payload that is too long.
    ///
    /// Panics when the chunk is full: callers bound chunks far below [`RUN_ENTRIES_MAX`] and [`RUN_PAYLOAD_BYTES_MAX`].
    pub fn push_with(
        &mut self,
        kind: EntryKind,
        sequence: u64,
        bytes_max: usize,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<usize, usize> {
        self.push_entry(kind, (None, PayloadCodec::Plain), sequence, bytes_max, write)
    }

    /// Adds a command, of a session or not, whose payload is written like this already.
    pub fn push_coded(&mut self, call: Option<SessionCall>, codec: PayloadCodec, sequence: u64, payload: &[u8]) {
        let write = |out: &mut BytesMut| out.put_slice(payload);
        let pushed = self.push_entry(EntryKind::Command, (call, codec), sequence, RUN_PAYLOAD_BYTES_MAX, write);
        assert!(pushed.is_ok(), "payload of {} bytes", payload.len());
    }

    /// Adds a command that belongs to a session. See [`RunBuilder::push_with`].
    ///
    /// # Errors
    /// The length of a payload that is too long.
    pub fn push_session_with(
        &mut self,
        call: SessionCall,
        sequence: u64,
        bytes_max: usize,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<usize, usize> {
        self.push_entry(EntryKind::Command, (Some(call), PayloadCodec::Plain), sequence, bytes_max, write)
    }

    fn push_entry(
        &mut self,
        kind: EntryKind,
        (call, codec): (Option<SessionCall>, PayloadCodec),
        sequence: u64,
        bytes_max: usize,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<usize, usize> {
        assert!((self.count as usize) < RUN_ENTRIES_MAX, "chunk of {} entries", self.count);
        if self.count == 0 {
            // A few small entries are the usual case: one allocation each for their heads and payloads.
            self.payload.reserve(FIRST_PAYLOAD_BYTES);
            self.head.reserve(RUN_HEADER_BYTES + FIRST_ENTRIES * DESCRIPTOR_BYTES);
        }
        let mut undo = Undo { from: self.payload.len(), payload: &mut self.payload };
        write(undo.payload);
        let len = undo.payload.len() - undo.from;
        if len > bytes_max {
            return Err(len);
        }
        undo.from = undo.payload.len();
        drop(undo);
        assert!(self.payload.len() <= RUN_PAYLOAD_BYTES_MAX, "chunk of {} payload bytes", self.payload.len());
        if self.head.is_empty() {
            self.head.put_bytes(0, RUN_HEADER_BYTES);
        }
        let mut d = [0u8; DESCRIPTOR_BYTES];
        d[0] = kind as u8;
        if let Some(call) = call {
            d[1] = call.flags();
            self.sessions.put_slice(&call.encode());
        }
        d[2] = codec as u8;
        d[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        d[8..16].copy_from_slice(&sequence.to_le_bytes());
        self.head.put_slice(&d);
        self.count += 1;
        Ok(len)
    }

    /// Adds an entry with a copy of `payload`.
    pub fn push(&mut self, kind: EntryKind, sequence: u64, payload: &[u8]) {
        if self.count == 0 {
            self.payload.reserve(payload.len().max(FIRST_PAYLOAD_BYTES));
        }
        let pushed = self.push_with(kind, sequence, RUN_PAYLOAD_BYTES_MAX, |out| out.put_slice(payload));
        assert!(pushed.is_ok(), "payload of {} bytes", payload.len());
    }

    /// Cuts the chunk back to its first `count` entries, whose payloads have `payload_bytes` in all.
    pub fn truncate(&mut self, count: usize, payload_bytes: usize) {
        assert!(count <= self.count() && payload_bytes <= self.payload.len(), "truncating to more than there is");
        if count < self.count() {
            self.head.truncate(RUN_HEADER_BYTES + count * DESCRIPTOR_BYTES);
            if !self.sessions.is_empty() {
                let kept = self.head[RUN_HEADER_BYTES..].chunks_exact(DESCRIPTOR_BYTES);
                self.sessions.truncate(kept.filter(|d| d[1] & FLAG_SESSION != 0).count() * SESSION_BYTES);
            }
            self.payload.truncate(payload_bytes);
            self.count = count as u32;
        }
    }

    /// Bytes of all payloads so far.
    pub fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Gives the entries their place in the log. Panics if there are none.
    pub fn seal(self, term: Term, first: Index, origin: Origin) -> Run {
        assert!(self.count > 0, "sealing an empty chunk");
        let Self { mut head, sessions, payload, .. } = self;
        let first = LogPos::new(term, first);
        if payload.len() > TOGETHER_BYTES_MAX {
            return finish(head, &sessions, first, origin, payload.freeze());
        }
        let (count, has_config) = fill_in(&mut head, &sessions, first, origin, &payload);
        let mut bytes = Vec::with_capacity(head.len() + payload.len());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&payload);
        let mut bytes = Bytes::from(bytes);
        let head = bytes.split_to(head.len());
        Run { term, first: first.index, count, has_config, head, payload: bytes }
    }
}

fn finish(mut head: BytesMut, sessions: &[u8], first: LogPos, origin: Origin, payload: Bytes) -> Run {
    let (count, has_config) = fill_in(&mut head, sessions, first, origin, &payload);
    Run { term: first.term, first: first.index, count, has_config, head: head.freeze(), payload }
}

/// Fills in the header of `head`, which has room for it, the run's flags in place, and all its descriptors, and adds the
/// session side array. Returns the number of entries and whether a config entry is among them.
fn fill_in(head: &mut BytesMut, sessions: &[u8], first: LogPos, origin: Origin, payload: &[u8]) -> (u32, bool) {
    let LogPos { term, index: first } = first;
    let count = ((head.len() - RUN_HEADER_BYTES) / DESCRIPTOR_BYTES) as u32;
    let mut h = [0u8; RUN_HEADER_BYTES];
    (h[0], h[1]) = (RUN_VERSION, head[1]);
    h[4..8].copy_from_slice(&count.to_le_bytes());
    h[8..16].copy_from_slice(&term.0.to_le_bytes());
    h[16..24].copy_from_slice(&first.0.to_le_bytes());
    h[24..32].copy_from_slice(&origin.replica.0.to_le_bytes());
    h[32..40].copy_from_slice(&origin.start.to_le_bytes());
    h[40..44].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    h[44..48].copy_from_slice(&(sessions.len() as u32).to_le_bytes());
    h[48..52].copy_from_slice(&crc32c(0, payload).to_le_bytes());
    head[..RUN_HEADER_BYTES].copy_from_slice(&h);
    let has_config = head[RUN_HEADER_BYTES..].chunks_exact(DESCRIPTOR_BYTES).any(|d| d[0] == EntryKind::Config as u8);
    head.put_slice(sessions);
    let crc = head_crc(head);
    head[52..56].copy_from_slice(&crc.to_le_bytes());
    (count, has_config)
}

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
    let crc = crc32c(le32(head, 48), &head[..48]);
    crc32c(crc, &head[RUN_HEADER_BYTES..])
}

fn le32(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"))
}

fn le64(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;
