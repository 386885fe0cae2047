//! Writes a snapshot file block by block into a temporary directory.

use super::error::SnapshotError;
use super::format::{BLOCK_BYTES, BLOCK_HEADER_BYTES, Footer, Layout, SnapshotHeader, block_crc, encode_header};
use super::publish::{Place, Publication, TempDir};
use crc32fast::Hasher;
use longboat_io::DiskFile;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A snapshot file in the making. Dropping it removes what was written.
///
/// After an error every later write fails too, so that a state machine that ignores one can't publish a file with a hole.
#[derive(Debug)]
pub struct SnapshotWriter {
    place: Place,
    temp: TempDir,
    file: Box<dyn DiskFile>,
    header: SnapshotHeader,
    layout: Layout,
    /// The open block, its header's room first.
    block: Vec<u8>,
    offset: u64,
    footer: Footer,
    whole: Hasher,
    stop: Arc<AtomicBool>,
    failed: bool,
    /// The first failure, until it is asked for: the state machine in between may hide it.
    failure: Option<SnapshotError>,
}

impl SnapshotWriter {
    pub(crate) fn new(
        place: Place,
        temp: TempDir,
        mut file: Box<dyn DiskFile>,
        header: SnapshotHeader,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, SnapshotError> {
        let (bytes, layout) = encode_header(&header, BLOCK_BYTES)?;
        file.write_all_at(&bytes, 0)?;
        let mut whole = Hasher::new();
        whole.update(&bytes);
        let mut block = Vec::with_capacity(BLOCK_HEADER_BYTES + layout.block_bytes);
        block.resize(BLOCK_HEADER_BYTES, 0);
        let footer = Footer { blocks: 0, payload_bytes: 0, whole_crc: 0 };
        let offset = bytes.len() as u64;
        Ok(Self { place, temp, file, header, layout, block, offset, footer, whole, stop, failed: false, failure: None })
    }

    /// Ends the file. What it returns makes it durable and gives it its name, step by step.
    ///
    /// # Errors
    /// When a write failed, now or before, or a stop was asked for.
    pub fn finish(mut self) -> Result<Publication, SnapshotError> {
        if self.failed {
            return Err(self.take_failure().unwrap_or_else(failed_before));
        }
        if self.block.len() > BLOCK_HEADER_BYTES {
            self.write_block()?;
        }
        let footer = Footer { whole_crc: self.whole.finalize(), ..self.footer }.encode(&self.layout);
        Ok(Publication::new(self.place, self.temp, self.file, self.header, self.offset, footer))
    }

    /// The failure that writing came to, once.
    pub(crate) fn take_failure(&mut self) -> Option<SnapshotError> {
        self.failure.take()
    }

    fn write_block(&mut self) -> Result<(), SnapshotError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(SnapshotError::Stopped);
        }
        let (head, payload) = self.block.split_at_mut(BLOCK_HEADER_BYTES);
        let payload_bytes = payload.len() as u32;
        let mut crc = Hasher::new();
        crc.update(payload);
        head[..4].copy_from_slice(&payload_bytes.to_le_bytes());
        head[4..].copy_from_slice(&block_crc(&self.layout, self.footer.blocks, payload_bytes, &crc).to_le_bytes());
        self.whole.update(head);
        self.whole.combine(&crc);
        self.file.write_all_at(&self.block, self.offset)?;
        self.offset += self.block.len() as u64;
        self.footer.blocks += 1;
        self.footer.payload_bytes += u64::from(payload_bytes);
        self.block.truncate(BLOCK_HEADER_BYTES);
        Ok(())
    }
}

impl io::Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other(failed_before()));
        }
        let room = BLOCK_HEADER_BYTES + self.layout.block_bytes - self.block.len();
        let taken = bytes.len().min(room);
        self.block.extend_from_slice(&bytes[..taken]);
        if taken == room
            && let Err(error) = self.write_block()
        {
            let shown = io::Error::other(error.to_string());
            self.failed = true;
            self.failure = Some(error);
            return Err(shown);
        }
        Ok(taken)
    }

    /// Does nothing: blocks are written when they are full, and all is made durable at the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed_before() -> SnapshotError {
    SnapshotError::Io(io::Error::other("an earlier write of this snapshot failed"))
}
