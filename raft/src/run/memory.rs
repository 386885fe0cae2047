//! Where the bytes of a run are: within the run itself if they are few, else in memory that is shared.
//!
//! Hosts of thousands of groups pass very many runs of one small entry around. Such a run is cheaper to copy than the count of
//! its owners would be to change, and nobody has to find room for it, nor to free that, on whichever thread is the last.
//!
//! Must not know: what the bytes mean, but for the few fields of the header that are asked for all the time.

use super::{RUN_HEADER_BYTES, le32, le64};
use crate::ids::{Index, LogPos, Term};
use bytes::Bytes;

/// Bytes up to which a run is within itself: as many as fit where a larger run has its handles.
pub(super) const SMALL_BYTES: usize = 93;

/// The bytes of a run: the head, and behind it, or apart, the payload area.
#[derive(Clone)]
pub(super) enum Memory {
    /// All of it, here.
    Small(Small),
    /// In memory that clones share.
    Shared(Shared),
}

/// The bytes come first: a word of them is a word in memory.
#[derive(Clone)]
#[repr(C)]
pub(super) struct Small {
    bytes: [u8; SMALL_BYTES],
    len: u8,
    has_config: bool,
}

/// What it ends with has values that are none of its own: there it is told from a small one, which has all that is before.
#[derive(Clone)]
#[repr(C)]
pub(super) struct Shared {
    term: Term,
    first: Index,
    /// The head, and behind it the payload area if that is not apart: one count of owners for both.
    bytes: Bytes,
    /// The payload area if that has memory of its own; else nothing.
    apart: Bytes,
    count: u32,
    head_len: u32,
    unused: [u8; 7],
    has_config: bool,
}
const _: () = assert!(size_of::<Memory>() == 96 && size_of::<Small>() == 95);

impl Memory {
    /// A whole run, if it is a small one.
    #[inline]
    pub(super) fn small(run: &[u8], has_config: bool) -> Option<Self> {
        let mut bytes = [0; SMALL_BYTES];
        bytes.get_mut(..run.len())?.copy_from_slice(run);
        Some(Self::Small(Small { has_config, len: run.len() as u8, bytes }))
    }

    /// A small run of these bytes, of which the first `len` are the run's.
    #[inline]
    pub(super) fn of_small(bytes: [u8; SMALL_BYTES], len: usize, has_config: bool) -> Self {
        debug_assert!(len <= SMALL_BYTES, "{len} bytes");
        Self::Small(Small { has_config, len: len as u8, bytes })
    }

    /// A run whose head is the first `head_len` of `bytes`.
    pub(super) fn shared(head_len: usize, has_config: bool, bytes: Bytes, apart: Bytes) -> Self {
        let place = place(&bytes);
        let (term, first, count) = (place.term, place.index, le32(&bytes, 4));
        let (head_len, unused) = (head_len as u32, [0; 7]);
        Self::Shared(Shared { term, first, bytes, apart, count, head_len, unused, has_config })
    }

    /// The bytes of a small run.
    pub(super) fn small_mut(&mut self) -> Option<&mut [u8]> {
        match self {
            Self::Small(small) => Some(&mut small.bytes[..usize::from(small.len)]),
            Self::Shared(_) => None,
        }
    }

    /// The place of the first entry.
    #[inline]
    pub(super) fn place(&self) -> LogPos {
        match self {
            Self::Small(small) => place(&small.bytes),
            Self::Shared(shared) => LogPos { term: shared.term, index: shared.first },
        }
    }

    /// The number of entries.
    #[inline]
    pub(super) fn count(&self) -> u32 {
        match self {
            Self::Small(small) => le32(&small.bytes, 4),
            Self::Shared(shared) => shared.count,
        }
    }

    #[inline]
    pub(super) fn has_config(&self) -> bool {
        match self {
            Self::Small(small) => small.has_config,
            Self::Shared(shared) => shared.has_config,
        }
    }

    #[inline]
    pub(super) fn head(&self) -> &[u8] {
        match self {
            Self::Small(small) => &small.bytes[..small.head_len()],
            Self::Shared(shared) => &shared.bytes[..shared.head_len as usize],
        }
    }

    #[inline]
    pub(super) fn payload(&self) -> &[u8] {
        match self {
            Self::Small(small) => &small.bytes[small.head_len()..usize::from(small.len)],
            Self::Shared(shared) if shared.apart.is_empty() => &shared.bytes[shared.head_len as usize..],
            Self::Shared(shared) => &shared.apart,
        }
    }

    /// Memory that has the payload area and may be shared, and where it begins there.
    pub(super) fn shared_payload(&self) -> Option<(&Bytes, usize)> {
        match self {
            Self::Small(_) => None,
            Self::Shared(shared) if shared.apart.is_empty() => Some((&shared.bytes, shared.head_len as usize)),
            Self::Shared(shared) => Some((&shared.apart, 0)),
        }
    }

    /// Head and payload area, and what of it is apart.
    #[inline]
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        match self {
            Self::Small(small) => [&small.bytes[..usize::from(small.len)], &[]],
            Self::Shared(shared) => [&shared.bytes, &shared.apart],
        }
    }

    /// The same, shared where it can be.
    pub(super) fn shared_parts(&self) -> [Bytes; 2] {
        match self {
            Self::Small(small) => [Bytes::copy_from_slice(&small.bytes[..usize::from(small.len)]), Bytes::new()],
            Self::Shared(shared) => [shared.bytes.clone(), shared.apart.clone()],
        }
    }
}

impl Small {
    #[inline]
    fn head_len(&self) -> usize {
        usize::from(self.len) - le32(&self.bytes, 40) as usize
    }
}

#[inline]
fn place(head: &[u8]) -> LogPos {
    let head: &[u8; RUN_HEADER_BYTES] = head.first_chunk().expect("a run has a header");
    LogPos { term: Term(le64(head, 8)), index: Index(le64(head, 16)) }
}
