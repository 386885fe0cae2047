//! Reads a snapshot's state back, block by block, each checked before any of its bytes are handed out.

use super::error::SnapshotError;
use super::format::{
    BLOCK_HEADER_BYTES, FOOTER_BYTES, Footer, Layout, PREFIX_BYTES, SnapshotHeader, block_crc, decode_header,
    header_bytes, u32_at,
};
use crc32fast::Hasher;
use longboat_io::DiskFile;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The state in a snapshot file. Holds one block in memory.
#[derive(Debug)]
pub struct SnapshotReader {
    file: Box<dyn DiskFile>,
    header: SnapshotHeader,
    layout: Layout,
    footer: Footer,
    file_bytes: u64,
    /// Where the next block's header is.
    offset: u64,
    blocks: u64,
    payload_bytes: u64,
    whole: Hasher,
    /// The current block's payload, and how much of it was handed out.
    block: Vec<u8>,
    taken: usize,
    ended: bool,
    failed: bool,
    /// The first failure, until it is asked for: the state machine in between may hide it.
    failure: Option<SnapshotError>,
    stop: Option<Arc<AtomicBool>>,
}

impl SnapshotReader {
    pub(crate) fn new(file: Box<dyn DiskFile>) -> Result<Self, SnapshotError> {
        let file_bytes = file.len()?;
        if file_bytes < (PREFIX_BYTES + FOOTER_BYTES) as u64 {
            return Err(SnapshotError::corrupt(format!("file of {file_bytes} bytes")));
        }
        let mut prefix = [0; PREFIX_BYTES];
        file.read_exact_at(&mut prefix, 0)?;
        let bytes = header_bytes(&prefix)?;
        if file_bytes < (bytes + FOOTER_BYTES) as u64 {
            return Err(SnapshotError::corrupt("file ends within its header"));
        }
        let mut head = vec![0; bytes];
        file.read_exact_at(&mut head, 0)?;
        let parsed = decode_header(&head)?;
        let mut end = [0; FOOTER_BYTES];
        file.read_exact_at(&mut end, file_bytes - FOOTER_BYTES as u64)?;
        let footer = Footer::decode(&parsed.layout, &end)?;
        if footer.file_bytes(&parsed.layout) != Some(file_bytes) {
            return Err(SnapshotError::corrupt("the footer does not fit the length of the file"));
        }
        let mut whole = Hasher::new();
        whole.update(&head);
        Ok(Self {
            file,
            header: parsed.header,
            layout: parsed.layout,
            footer,
            file_bytes,
            offset: bytes as u64,
            blocks: 0,
            payload_bytes: 0,
            whole,
            block: Vec::new(),
            taken: 0,
            ended: false,
            failed: false,
            failure: None,
            stop: None,
        })
    }

    /// What the file says about itself.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The size of the state in it.
    pub fn state_bytes(&self) -> u64 {
        self.footer.payload_bytes
    }

    /// Once `stop` is set, reading fails from the next block on.
    pub fn stop_with(&mut self, stop: Arc<AtomicBool>) {
        self.stop = Some(stop);
    }

    /// Reads and checks all that is left, through the footer.
    ///
    /// # Errors
    /// When the file is damaged, now or before, or a stop was asked for.
    pub fn drain(&mut self) -> Result<(), SnapshotError> {
        while self.next_block()? {}
        self.taken = self.block.len();
        Ok(())
    }

    /// The failure that reading came to, once.
    pub(crate) fn take_failure(&mut self) -> Option<SnapshotError> {
        self.failure.take()
    }

    /// The open file, for reading it as it is.
    pub(crate) fn into_file(self) -> Box<dyn DiskFile> {
        self.file
    }

    /// Reads the next block; false when there is none and the footer fits all that came before it.
    fn next_block(&mut self) -> Result<bool, SnapshotError> {
        if self.failed {
            return Err(SnapshotError::corrupt("an earlier block could not be read"));
        }
        let read = self.read_block();
        self.failed = read.is_err();
        if self.failed {
            self.block.clear();
            self.taken = 0;
        }
        read
    }

    fn read_block(&mut self) -> Result<bool, SnapshotError> {
        if self.ended {
            return Ok(false);
        }
        if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(SnapshotError::Stopped);
        }
        let footer_offset = self.file_bytes - FOOTER_BYTES as u64;
        if self.offset == footer_offset {
            let found = Footer {
                blocks: self.blocks,
                payload_bytes: self.payload_bytes,
                whole_crc: self.whole.clone().finalize(),
            };
            if found != self.footer {
                return Err(SnapshotError::corrupt("the footer does not fit what comes before it"));
            }
            self.ended = true;
            return Ok(false);
        }
        if footer_offset - self.offset <= BLOCK_HEADER_BYTES as u64 {
            return Err(SnapshotError::corrupt(format!("length of block {}", self.blocks)));
        }
        let mut head = [0; BLOCK_HEADER_BYTES];
        self.file.read_exact_at(&mut head, self.offset)?;
        let payload_bytes = u32_at(&head, 0);
        let room = footer_offset - self.offset - BLOCK_HEADER_BYTES as u64;
        if payload_bytes == 0 || payload_bytes as usize > self.layout.block_bytes || u64::from(payload_bytes) > room {
            return Err(SnapshotError::corrupt(format!("length of block {}", self.blocks)));
        }
        self.block.resize(payload_bytes as usize, 0);
        self.file.read_exact_at(&mut self.block, self.offset + BLOCK_HEADER_BYTES as u64)?;
        let mut crc = Hasher::new();
        crc.update(&self.block);
        if u32_at(&head, 4) != block_crc(&self.layout, self.blocks, payload_bytes, &crc) {
            return Err(SnapshotError::corrupt(format!("checksum of block {}", self.blocks)));
        }
        self.whole.update(&head);
        self.whole.combine(&crc);
        self.taken = 0;
        self.offset += BLOCK_HEADER_BYTES as u64 + u64::from(payload_bytes);
        self.blocks += 1;
        self.payload_bytes += u64::from(payload_bytes);
        Ok(true)
    }
}

impl io::Read for SnapshotReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.taken == self.block.len() {
            match self.next_block() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    let shown = io::Error::other(error.to_string());
                    self.failure.get_or_insert(error);
                    return Err(shown);
                }
            }
        }
        let bytes = out.len().min(self.block.len() - self.taken);
        out[..bytes].copy_from_slice(&self.block[self.taken..self.taken + bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}
