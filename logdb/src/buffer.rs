//! The buffer of a write: bytes that start at a multiple of a block in memory, as a write past the page cache wants them.
//!
//! Large ones lie in huge pages. A disk takes what it writes by pieces that lie together in memory; of a megabyte in small
//! pages there are 256, and with three writers at once that alone halved what a disk wrote in a second.

use crate::format::BLOCK;
use longboat_io::heap::{HUGE_PAGE_BYTES, prefer_huge_pages};

/// Bytes of a write from which on its buffer has huge pages: for each small page the kernel looks up where it is, at every
/// write. Smaller ones are few pieces, and a host that writes little keeps no megabytes for it.
const LARGE_BYTES: usize = 128 << 10;

/// Bytes of one write, used again for the next.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    /// All that was ever asked for: what is asked for again is not cleared before.
    bytes: Vec<u8>,
    /// What is skipped at the front, so that the rest is aligned.
    skipped: usize,
    /// Bytes of the write.
    len: usize,
}

impl WriteBuffer {
    /// The `len` bytes of the next write, with whatever was in them before: the caller fills in all of them.
    pub(crate) fn start(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.capacity() < self.skipped + len || self.bytes.capacity() == 0 {
            self.make_room(len);
        }
        if self.bytes.len() < self.skipped + len {
            self.bytes.resize(self.skipped + len, 0);
        }
        self.len = len;
        &mut self.bytes[self.skipped..self.skipped + len]
    }

    /// Only the first `len` bytes are to be written.
    pub(crate) fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "{len} of {} bytes", self.len);
        self.len = len;
    }

    /// Takes other memory. Nothing of the old bytes is worth copying.
    fn make_room(&mut self, len: usize) {
        // The old memory first: it may become part of the new one.
        self.bytes = Vec::new();
        if len < LARGE_BYTES {
            self.bytes = Vec::with_capacity(len + BLOCK as usize);
            self.skipped = self.bytes.as_ptr().align_offset(BLOCK as usize);
            return;
        }
        self.bytes = Vec::with_capacity(len.next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES);
        prefer_huge_pages(self.bytes.spare_capacity_mut());
        let start = self.bytes.as_ptr();
        // Most systems begin such an allocation with a huge page, but for the allocator's few bytes in front of it. Where the
        // first one starts later, what lies before it is in small pages.
        let near = start.align_offset(BLOCK as usize);
        let in_first = (start as usize % HUGE_PAGE_BYTES) < BLOCK as usize;
        self.skipped = if in_first { near } else { start.align_offset(HUGE_PAGE_BYTES) };
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.skipped..self.skipped + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_aligned_however_often_the_buffer_is_used() {
        let mut buffer = WriteBuffer::default();
        for len in [1, 5000, 100, 1 << 20, 4096, LARGE_BYTES, 0, 5 << 20, 2 << 20, 6 << 20] {
            let out = buffer.start(len);
            out.iter_mut().enumerate().for_each(|(i, b)| *b = i as u8);
            assert_eq!(buffer.bytes().as_ptr() as usize % BLOCK as usize, 0);
            assert_eq!(buffer.bytes().len(), len);
            assert!(buffer.bytes().iter().enumerate().all(|(i, b)| *b == i as u8));
            buffer.truncate(len / 2);
            assert!(buffer.bytes().iter().enumerate().all(|(i, b)| *b == i as u8));
            assert_eq!(buffer.bytes().len(), len / 2);
        }
    }
}
