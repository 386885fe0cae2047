//! Making runs: the open chunk, and what fills in a run's head.
//!
//! A host of thousands of groups seals very many runs of one small entry. So a chunk of one keeps that within itself, as the
//! run does that it becomes, and neither takes an allocation. A sealed run that is somewhat larger is one: nothing but
//! the bytes and their count of owners.

use super::memory::{Memory, SMALL_BYTES};
use super::{
    DESCRIPTOR_BYTES, EntryKind, Origin, RUN_ENTRIES_MAX, RUN_HEADER_BYTES, RUN_PAYLOAD_BYTES_MAX, RUN_VERSION,
};
use super::{Run, SUMMED_BYTES, le32, le64};
use crate::crc::{crc32c_through, crc32c_words};
use crate::ids::{Index, LogPos, Term};
use crate::payload::PayloadCodec;
use crate::session::{FLAG_SESSION, SESSION_BYTES, SessionCall};
use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use std::cell::RefCell;

/// Descriptors that a chunk holds within itself.
const INLINE_ENTRIES: usize = 1;
/// Entries that a chunk has room for once its descriptors have an allocation: where there are two, more are to be expected,
/// and what a chunk did not use is gone when it is sealed.
const FIRST_ENTRIES: usize = 16;
/// Payload bytes that there is room for where a first entry is written.
const FIRST_PAYLOAD_BYTES: usize = 128;
/// Payload bytes that a chunk has room for from its second entry on, for the same reason.
const MANY_PAYLOAD_BYTES: usize = 512;
/// Bytes that a thread keeps room for in its place for the payloads of first entries.
const KEPT_BYTES_MAX: usize = 4096;
/// Payload bytes up to which a sealed run has its head and payload in one allocation: to copy so few again is cheaper
/// than to keep one more allocation, and the room that a chunk did not use, for as long as the run lives.
pub(super) const TOGETHER_BYTES_MAX: usize = 1024;
/// Payload bytes that a chunk holds within itself, while it has one entry: those of a small run.
const FEW_BYTES: usize = SMALL_BYTES - RUN_HEADER_BYTES - DESCRIPTOR_BYTES;
/// Lengths of runs that lie beside the count of their owners: with that, and the allocator's own word, powers of two.
const MEDIUM_BYTES: usize = 228;
const LARGE_BYTES: usize = 484;

/// The bytes of a run of moderate length.
struct Together<const N: usize> {
    len: u32,
    bytes: [u8; N],
}

impl<const N: usize> AsRef<[u8]> for Together<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

thread_local! {
    /// Where the payload of a chunk's first entry is written, since nobody knows before how long it is.
    static FIRST: RefCell<BytesMut> = RefCell::default();
}

/// The payloads of a chunk.
#[derive(Debug)]
enum Payloads {
    /// That of one entry, or of none.
    Few { len: u8, bytes: [u8; FEW_BYTES] },
    /// Any.
    Many(BytesMut),
}

impl Default for Payloads {
    fn default() -> Self {
        Self::Few { len: 0, bytes: [0; FEW_BYTES] }
    }
}

impl Payloads {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Few { len, bytes } => &bytes[..usize::from(*len)],
            Self::Many(bytes) => bytes,
        }
    }

    fn truncate(&mut self, to: usize) {
        match self {
            Self::Few { len, .. } => *len = to as u8,
            Self::Many(bytes) => bytes.truncate(to),
        }
    }

    /// Takes the payload of a first entry, copied if it is short.
    fn set_first(&mut self, written: &mut BytesMut) {
        if let Self::Few { len, bytes } = self
            && let Some(few) = bytes.get_mut(..written.len())
        {
            few.copy_from_slice(written);
            *len = written.len() as u8;
        } else {
            *self = Self::Many(std::mem::take(written));
        }
    }

    /// Memory that grows, with what is there.
    fn many(&mut self) -> &mut BytesMut {
        if let Self::Few { .. } = self {
            let mut many = BytesMut::with_capacity(MANY_PAYLOAD_BYTES);
            many.put_slice(self.as_slice());
            *self = Self::Many(many);
        }
        let Self::Many(many) = self else { unreachable!("just made so") };
        many
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
    pub(super) descriptors: SmallVec<[[u8; DESCRIPTOR_BYTES]; INLINE_ENTRIES]>,
    payloads: Payloads,
    sessions: Vec<u8>,
}

impl RunBuilder {
    /// An empty chunk.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of entries so far.
    #[inline]
    pub fn count(&self) -> usize {
        self.descriptors.len()
    }

    /// Whether there is no entry yet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// Bytes that the run would take.
    pub fn encoded_len(&self) -> usize {
        let header = if self.is_empty() { 0 } else { RUN_HEADER_BYTES };
        header + self.descriptors.len() * DESCRIPTOR_BYTES + self.sessions.len() + self.payload_bytes()
    }

    /// Tells that so many more entries like the last one follow. Makes room for all of them at once, as far as the chunk stays
    /// within `encoded_bytes_max`: a chunk that grows by doubling copies its payloads once more, and takes twice the memory.
    pub fn expect_more(&mut self, entries: usize, encoded_bytes_max: usize) {
        let Some(last) = self.descriptors.last() else { return };
        let len = le32(last, 4) as usize;
        let left = encoded_bytes_max.saturating_sub(self.encoded_len());
        if left == 0 {
            return;
        }
        let payload = self.payloads.many();
        if payload.capacity() - payload.len() >= len {
            return;
        }
        // The last one may reach beyond the bound.
        let entries = entries.min(left / (len + DESCRIPTOR_BYTES) + 1);
        payload.reserve(entries * len);
        self.descriptors.reserve(entries);
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
        let len = match &mut self.payloads {
            Payloads::Few { .. } if self.descriptors.is_empty() => self.write_first(bytes_max, write)?,
            payloads => {
                let payload = payloads.many();
                let mut undo = Undo { from: payload.len(), payload };
                write(undo.payload);
                let len = undo.payload.len() - undo.from;
                if len > bytes_max {
                    return Err(len);
                }
                undo.from = undo.payload.len();
                len
            }
        };
        assert!(self.payload_bytes() <= RUN_PAYLOAD_BYTES_MAX, "chunk of {} payload bytes", self.payload_bytes());
        if let Some(call) = call {
            self.sessions.put_slice(&call.encode());
        }
        self.describe(kind, (call.map_or(0, |call| call.flags()), codec), sequence, len);
        Ok(len)
    }

    /// Adds the descriptor of an entry whose payload is there already, so long.
    #[inline]
    fn describe(&mut self, kind: EntryKind, (flags, codec): (u8, PayloadCodec), sequence: u64, len: usize) {
        // Put together as one number: to copy what was written byte by byte would wait for all the bytes.
        let front = u64::from(kind as u8) | u64::from(flags) << 8 | u64::from(codec as u8) << 16 | (len as u64) << 32;
        let d = (u128::from(front) | u128::from(sequence) << 64).to_le_bytes();
        if self.descriptors.len() == INLINE_ENTRIES && !self.descriptors.spilled() {
            self.descriptors.reserve(FIRST_ENTRIES);
        }
        self.descriptors.push(d);
    }

    /// The payload of a first entry. Nothing of it is kept if `write` panics.
    fn write_first(&mut self, bytes_max: usize, write: impl FnOnce(&mut BytesMut)) -> Result<usize, usize> {
        FIRST.with(|first| {
            // It is in use only if `write` fills another chunk meanwhile.
            let (mut shared, mut own) = (first.try_borrow_mut(), BytesMut::new());
            let written = shared.as_deref_mut().unwrap_or(&mut own);
            written.clear();
            if written.capacity() < FIRST_PAYLOAD_BYTES {
                *written = BytesMut::with_capacity(FIRST_PAYLOAD_BYTES);
            }
            write(written);
            let len = written.len();
            if len <= bytes_max {
                self.payloads.set_first(written);
            }
            if written.capacity() > KEPT_BYTES_MAX {
                *written = BytesMut::new();
            }
            if len <= bytes_max { Ok(len) } else { Err(len) }
        })
    }

    /// Adds an entry with a copy of `payload`.
    pub fn push(&mut self, kind: EntryKind, sequence: u64, payload: &[u8]) {
        if self.is_empty() {
            if let Payloads::Few { len, bytes } = &mut self.payloads
                && let Some(few) = bytes.get_mut(..payload.len())
            {
                few.copy_from_slice(payload);
                *len = payload.len() as u8;
                return self.describe(kind, (0, PayloadCodec::Plain), sequence, payload.len());
            }
            if payload.len() > FIRST_PAYLOAD_BYTES {
                self.payloads = Payloads::Many(BytesMut::with_capacity(payload.len()));
            }
        }
        let pushed = self.push_with(kind, sequence, RUN_PAYLOAD_BYTES_MAX, |out| out.put_slice(payload));
        assert!(pushed.is_ok(), "payload of {} bytes", payload.len());
    }

    /// Cuts the chunk back to its first `count` entries, whose payloads have `payload_bytes` in all.
    pub fn truncate(&mut self, count: usize, payload_bytes: usize) {
        assert!(count <= self.count() && payload_bytes <= self.payload_bytes(), "truncating to more than there is");
        if count < self.count() {
            self.descriptors.truncate(count);
            if !self.sessions.is_empty() {
                let kept = self.descriptors.iter().filter(|d| d[1] & FLAG_SESSION != 0);
                self.sessions.truncate(kept.count() * SESSION_BYTES);
            }
            self.payloads.truncate(payload_bytes);
        }
    }

    /// Bytes of all payloads so far.
    pub fn payload_bytes(&self) -> usize {
        self.payloads.as_slice().len()
    }

    /// Bytes of payloads that there is room for without memory being taken.
    #[cfg(test)]
    pub(super) fn payload_room(&self) -> usize {
        match &self.payloads {
            Payloads::Few { .. } => FEW_BYTES,
            Payloads::Many(bytes) => bytes.capacity(),
        }
    }

    /// Gives the entries their place in the log, and leaves the chunk without any. Panics if there are none.
    ///
    /// By reference: to hand on a chunk that was just filled would wait until it has left the processor's own buffers.
    pub fn seal(&mut self, term: Term, first: Index, origin: Origin) -> Run {
        assert!(!self.is_empty(), "sealing an empty chunk");
        if let (Payloads::Few { len, bytes }, [descriptor], true) =
            (&mut self.payloads, &self.descriptors[..], self.sessions.is_empty())
        {
            let words = [le64(descriptor, 0), le64(descriptor, 8)];
            let len = usize::from(std::mem::take(len));
            self.descriptors.clear();
            return one(words, bytes, len, LogPos::new(term, first), origin);
        }
        let run = self.seal_many(LogPos::new(term, first), origin);
        *self = Self::default();
        run
    }

    fn seal_many(&mut self, at: LogPos, origin: Origin) -> Run {
        let parts = [self.descriptors.as_flattened(), &self.sessions[..], self.payloads.as_slice()];
        let (session_bytes, payload_len) = (self.sessions.len(), parts[2].len());
        let head_len = RUN_HEADER_BYTES + parts[0].len() + session_bytes;
        let (has_config, bytes) = match head_len + payload_len {
            len if len <= SMALL_BYTES => return small(parts, at, origin),
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
        let apart = match std::mem::take(&mut self.payloads) {
            Payloads::Many(payload) if payload_len > 0 && bytes.len() == head_len => payload.freeze(),
            _ => Bytes::new(),
        };
        Run { memory: Memory::shared(head_len, has_config, bytes, apart) }
    }
}

/// Head, session side array and payload of a run, filled in. Tells where the head ends, and whether an entry is a config one.
fn fill_together(bytes: &mut [u8], parts: [&[u8]; 3], first: LogPos, origin: Origin) -> (usize, bool) {
    let mut at = RUN_HEADER_BYTES;
    for part in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    let [_, sessions, payload] = parts;
    let has_config = fill_in(&mut bytes[..at - payload.len()], sessions.len(), first, origin, payload);
    (at, has_config)
}

/// The run of one small entry. It is put together out of numbers at fixed places: what is copied in larger pieces than it was
/// written, or read so, has to wait until it has left the processor's own buffers.
fn one([front, sequence]: [u64; 2], payload: &[u8; FEW_BYTES], len: usize, first: LogPos, origin: Origin) -> Run {
    const HEAD_BYTES: usize = RUN_HEADER_BYTES + DESCRIPTOR_BYTES;
    const { assert!(FEW_BYTES == 21, "two words, half of one, and a byte") };
    let has_config = front as u8 == EntryKind::Config as u8;
    let LogPos { term, index } = first;
    let start = u64::from(RUN_VERSION) | 1 << 32;
    let head = [start, term.0, index.0, origin.replica.0, origin.start, len as u64, front, sequence];
    let (payload_sum, head_sum) = crc32c_words(&payload[..len], &head);
    let [start, term, index, replica, origin, lengths, ..] = head;
    let sums = u64::from(payload_sum) | u64::from(head_sum) << 32;
    let mut bytes = [0; SMALL_BYTES];
    let words =
        [start, term, index, replica, origin, lengths, sums, front, sequence, le64(payload, 0), le64(payload, 8)];
    for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    bytes[HEAD_BYTES + 16..HEAD_BYTES + 20].copy_from_slice(&le32(payload, 16).to_le_bytes());
    bytes[HEAD_BYTES + 20] = payload[20];
    Run { memory: Memory::of_small(bytes, HEAD_BYTES + len, has_config) }
}

/// A small run: no allocation.
fn small(parts: [&[u8]; 3], first: LogPos, origin: Origin) -> Run {
    let mut bytes = [0; SMALL_BYTES];
    let (len, has_config) = fill_together(&mut bytes, parts, first, origin);
    Run { memory: Memory::of_small(bytes, len, has_config) }
}

/// The bytes of a run of moderate length: one allocation.
fn together<const N: usize>(parts: [&[u8]; 3], first: LogPos, origin: Origin) -> (bool, Bytes) {
    let mut together = Together { len: 0, bytes: [0; N] };
    let (len, has_config) = fill_together(&mut together.bytes, parts, first, origin);
    together.len = len as u32;
    (has_config, Bytes::from_owner(together))
}

/// A run of this head, to which its session side array is added, and this payload.
pub(super) fn finish(mut head: BytesMut, sessions: &[u8], first: LogPos, origin: Origin, payload: Bytes) -> Run {
    if head.len() + sessions.len() + payload.len() <= SMALL_BYTES {
        // The flags are in the header, and nothing else that is not filled in again.
        let mut bytes = [0; SMALL_BYTES];
        bytes[..RUN_HEADER_BYTES].copy_from_slice(&head[..RUN_HEADER_BYTES]);
        let (len, has_config) =
            fill_together(&mut bytes, [&head[RUN_HEADER_BYTES..], sessions, &payload], first, origin);
        return Run { memory: Memory::of_small(bytes, len, has_config) };
    }
    head.put_slice(sessions);
    let has_config = fill_in(&mut head, sessions.len(), first, origin, &payload);
    Run { memory: Memory::shared(head.len(), has_config, head.freeze(), payload) }
}

/// Fills in the header of `head`, which has room for it, the run's flags in place, all its descriptors and its session side
/// array, which is so long. Returns whether a config entry is among them.
fn fill_in(head: &mut [u8], session_bytes: usize, first: LogPos, origin: Origin, payload: &[u8]) -> bool {
    let LogPos { term, index: first } = first;
    let (h, rest) = head.split_first_chunk_mut::<RUN_HEADER_BYTES>().expect("it has room for the header");
    let descriptors = &rest[..rest.len() - session_bytes];
    let count = (descriptors.len() / DESCRIPTOR_BYTES) as u32;
    let has_config = descriptors.chunks_exact(DESCRIPTOR_BYTES).any(|d| d[0] == EntryKind::Config as u8);
    // Word by word where it stays: who reads it next reads words.
    let fields = [
        u64::from(RUN_VERSION) | u64::from(h[1]) << 8 | u64::from(count) << 32,
        term.0,
        first.0,
        origin.replica.0,
        origin.start,
        payload.len() as u64 | (session_bytes as u64) << 32,
    ];
    for (place, field) in h.as_chunks_mut::<8>().0.iter_mut().zip(fields) {
        *place = field.to_le_bytes();
    }
    let (payload_sum, head_sum) = crc32c_through(payload, [&h[..SUMMED_BYTES], rest]);
    h[SUMMED_BYTES..].copy_from_slice(&(u64::from(payload_sum) | u64::from(head_sum) << 32).to_le_bytes());
    has_config
}
