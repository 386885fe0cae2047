//! The buffer of a write: bytes that start at a multiple of a block in memory, as a write past the page cache wants them.

use crate::format::BLOCK;

/// Bytes of one write, used again for the next.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    bytes: Vec<u8>,
    /// What is skipped at the front, so that the rest is aligned.
    skipped: usize,
}

impl WriteBuffer {
    /// Empties the buffer and gives it room for `len` bytes. They are appended to
    /// what this returns, and must not be more: else they move.
    pub(crate) fn start(&mut self, len: usize) -> &mut Vec<u8> {
        let room = len + BLOCK as usize;
        if self.bytes.capacity() < room {
            // Nothing of the old bytes is worth copying.
            self.bytes = Vec::with_capacity(room);
        }
        self.skipped = self.bytes.as_ptr().align_offset(BLOCK as usize);
        self.bytes.resize(self.skipped, 0);
        &mut self.bytes
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.skipped..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_aligned_however_often_the_buffer_is_used() {
        let mut buffer = WriteBuffer::default();
        for len in [1, 5000, 100, 1 << 20, 4096] {
            buffer.start(len).extend((0..len).map(|i| i as u8));
            assert_eq!(buffer.bytes().as_ptr() as usize % BLOCK as usize, 0);
            assert_eq!(buffer.bytes().len(), len);
            assert!(buffer.bytes().iter().enumerate().all(|(i, b)| *b == i as u8));
        }
    }
}
