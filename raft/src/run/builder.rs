//! Making runs: the open chunk, and what fills in a run's head.
//!
//! A host of thousands of groups seals very many runs of one small entry. So a chunk of one keeps its descriptor
//! within itself, and a sealed run that is small is one allocation: nothing but the bytes and their count of owners.

use super::{
    DESCRIPTOR_BYTES, EntryKind, Origin, RUN_ENTRIES_MAX, RUN_HEADER_BYTES, RUN_PAYLOAD_BYTES_MAX, RUN_VERSION,
};
use super::{Run, head_crc, le32};
use crate::crc::crc32c;
use crate::ids::{Index, LogPos, Term};
use crate::payload::PayloadCodec;
use crate::session::{FLAG_SESSION, SESSION_BYTES, SessionCall};
use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

/// Bytes of descriptors that a chunk holds within itself: one.
const INLINE_BYTES: usize = DESCRIPTOR_BYTES;
/// Entries that a chunk has room for once its descriptors have an allocation.
const FIRST_ENTRIES: usize = 8;
/// Payload bytes that a chunk has room for from its first entry on.
const FIRST_PAYLOAD_BYTES: usize = 128;
/// Payload bytes up to which a sealed run has its head and payload in one allocation: to copy so few again is cheaper
/// than to keep one more allocation, and the room that a chunk did not use, for as long as the run lives.
pub(super) const TOGETHER_BYTES_MAX: usize = 1024;
/// Lengths of runs that lie beside the count of their owners: with that, and the allocator's own word, powers of two.
const SMALL_BYTES: usize = 100;
const MEDIUM_BYTES: usize = 228;
const LARGE_BYTES: usize = 484;

/// The bytes of a small run.
struct Small<const N: usize> {
    len: u32,
    bytes: [u8; N],
}

impl<const N: usize> AsRef<[u8]> for Small<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

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
    pub(super) descriptors: SmallVec<[u8; INLINE_BYTES]>,
    pub(super) payload: BytesMut,
    sessions: Vec<u8>,
}

impl RunBuilder {
    /// An empty chunk. Allocates nothing until the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of entries so far.
    pub fn count(&self) -> usize {
        self.descriptors.len() / DESCRIPTOR_BYTES
    }

    /// Whether there is no entry yet.
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// Bytes that the run would take.
    pub fn encoded_len(&self) -> usize {
        let header = if self.is_empty() { 0 } else { RUN_HEADER_BYTES };
        header + self.descriptors.len() + self.sessions.len() + self.payload.len()
    }

    /// Tells that so many more entries like the last one follow. Makes room for all of them at once, as far as the chunk stays
    /// within `encoded_bytes_max`: a chunk that grows by doubling copies its payloads once more, and takes twice the memory.
    pub fn expect_more(&mut self, entries: usize, encoded_bytes_max: usize) {
        let Some(last) = self.descriptors.last_chunk::<DESCRIPTOR_BYTES>() else { return };
        let len = le32(last, 4) as usize;
        let left = encoded_bytes_max.saturating_sub(self.encoded_len());
        if self.payload.capacity() - self.payload.len() >= len || left == 0 {
            return;
        }
        // The last one may reach beyond the bound.
        let entries = entries.min(left / (len + DESCRIPTOR_BYTES) + 1);
        self.payload.reserve(entries * len);
        self.descriptors.reserve(entries * DESCRIPTOR_BYTES);
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
        assert!(self.count() < RUN_ENTRIES_MAX, "chunk of {} entries", self.count());
        if self.is_empty() {
            // A few small entries are the usual case: one allocation for their payloads.
            self.reserve_first(FIRST_PAYLOAD_BYTES);
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
        let mut d = [0u8; DESCRIPTOR_BYTES];
        d[0] = kind as u8;
        if let Some(call) = call {
            d[1] = call.flags();
            self.sessions.put_slice(&call.encode());
        }
        d[2] = codec as u8;
        d[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        d[8..16].copy_from_slice(&sequence.to_le_bytes());
        if self.descriptors.len() + DESCRIPTOR_BYTES > INLINE_BYTES && !self.descriptors.spilled() {
            self.descriptors.reserve(FIRST_ENTRIES * DESCRIPTOR_BYTES);
        }
        self.descriptors.extend_from_slice(&d);
        Ok(len)
    }

    /// Makes room for the payload of a first entry.
    fn reserve_first(&mut self, bytes: usize) {
        if self.payload.capacity() < bytes {
            self.payload = BytesMut::with_capacity(bytes);
        }
    }

    /// Adds an entry with a copy of `payload`.
    pub fn push(&mut self, kind: EntryKind, sequence: u64, payload: &[u8]) {
        if self.is_empty() {
            self.reserve_first(payload.len().max(FIRST_PAYLOAD_BYTES));
        }
        let pushed = self.push_with(kind, sequence, RUN_PAYLOAD_BYTES_MAX, |out| out.put_slice(payload));
        assert!(pushed.is_ok(), "payload of {} bytes", payload.len());
    }

    /// Cuts the chunk back to its first `count` entries, whose payloads have `payload_bytes` in all.
    pub fn truncate(&mut self, count: usize, payload_bytes: usize) {
        assert!(count <= self.count() && payload_bytes <= self.payload.len(), "truncating to more than there is");
        if count < self.count() {
            self.descriptors.truncate(count * DESCRIPTOR_BYTES);
            if !self.sessions.is_empty() {
                let kept = self.descriptors.chunks_exact(DESCRIPTOR_BYTES);
                self.sessions.truncate(kept.filter(|d| d[1] & FLAG_SESSION != 0).count() * SESSION_BYTES);
            }
            self.payload.truncate(payload_bytes);
        }
    }

    /// Bytes of all payloads so far.
    pub fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Gives the entries their place in the log. Panics if there are none.
    pub fn seal(self, term: Term, first: Index, origin: Origin) -> Run {
        assert!(!self.is_empty(), "sealing an empty chunk");
        let parts = [&self.descriptors[..], &self.sessions[..], &self.payload[..]];
        let count = self.count() as u32;
        let (session_bytes, payload_len) = (self.sessions.len(), self.payload.len());
        let head_len = RUN_HEADER_BYTES + self.descriptors.len() + session_bytes;
        let at = LogPos::new(term, first);
        let (has_config, bytes) = match head_len + payload_len {
            len if len <= SMALL_BYTES => together::<SMALL_BYTES>(parts, at, origin),
            len if len <= MEDIUM_BYTES => together::<MEDIUM_BYTES>(parts, at, origin),
            len if len <= LARGE_BYTES => together::<LARGE_BYTES>(parts, at, origin),
            len => {
                let is_together = payload_len <= TOGETHER_BYTES_MAX;
                let mut bytes = Vec::with_capacity(if is_together { len } else { head_len });
                bytes.resize(RUN_HEADER_BYTES, 0);
                parts[..if is_together { 3 } else { 2 }].iter().for_each(|part| bytes.extend_from_slice(part));
                let has_config = fill_in(&mut bytes[..head_len], session_bytes, at, origin, parts[2]);
                (has_config, Bytes::from(bytes))
            }
        };
        let is_apart = payload_len > 0 && bytes.len() == head_len;
        let apart = if is_apart { self.payload.freeze() } else { Bytes::new() };
        Run { term, first, count, head_len: head_len as u32, has_config, bytes, apart }
    }
}

/// Head, session side array and payload of a small run, filled in: one allocation.
fn together<const N: usize>(parts: [&[u8]; 3], first: LogPos, origin: Origin) -> (bool, Bytes) {
    let mut small = Small { len: 0, bytes: [0; N] };
    let mut at = RUN_HEADER_BYTES;
    for part in parts {
        small.bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    small.len = at as u32;
    let [descriptors, sessions, payload] = parts;
    let head = &mut small.bytes[..RUN_HEADER_BYTES + descriptors.len() + sessions.len()];
    let has_config = fill_in(head, sessions.len(), first, origin, payload);
    (has_config, Bytes::from_owner(small))
}

/// A run of this head, to which its session side array is added, and this payload.
pub(super) fn finish(mut head: BytesMut, sessions: &[u8], first: LogPos, origin: Origin, payload: Bytes) -> Run {
    let count = ((head.len() - RUN_HEADER_BYTES) / DESCRIPTOR_BYTES) as u32;
    head.put_slice(sessions);
    let has_config = fill_in(&mut head, sessions.len(), first, origin, &payload);
    let (term, first, head_len) = (first.term, first.index, head.len() as u32);
    Run { term, first, count, head_len, has_config, bytes: head.freeze(), apart: payload }
}

/// Fills in the header of `head`, which has room for it, the run's flags in place, all its descriptors and its session side
/// array, which is so long. Returns whether a config entry is among them.
fn fill_in(head: &mut [u8], session_bytes: usize, first: LogPos, origin: Origin, payload: &[u8]) -> bool {
    let LogPos { term, index: first } = first;
    let descriptors = &head[RUN_HEADER_BYTES..head.len() - session_bytes];
    let count = (descriptors.len() / DESCRIPTOR_BYTES) as u32;
    let has_config = descriptors.chunks_exact(DESCRIPTOR_BYTES).any(|d| d[0] == EntryKind::Config as u8);
    let mut h = [0u8; RUN_HEADER_BYTES];
    (h[0], h[1]) = (RUN_VERSION, head[1]);
    h[4..8].copy_from_slice(&count.to_le_bytes());
    h[8..16].copy_from_slice(&term.0.to_le_bytes());
    h[16..24].copy_from_slice(&first.0.to_le_bytes());
    h[24..32].copy_from_slice(&origin.replica.0.to_le_bytes());
    h[32..40].copy_from_slice(&origin.start.to_le_bytes());
    h[40..44].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    h[44..48].copy_from_slice(&(session_bytes as u32).to_le_bytes());
    h[48..52].copy_from_slice(&crc32c(0, payload).to_le_bytes());
    head[..RUN_HEADER_BYTES].copy_from_slice(&h);
    let crc = head_crc(head);
    head[52..56].copy_from_slice(&crc.to_le_bytes());
    has_config
}
