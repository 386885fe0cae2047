//! Reads a snapshot's state back, block by block, each checked before any of its bytes are handed out.

use super::error::SnapshotError;
use super::format::{
    BLOCK_HEADER_BYTES, BlockHeader, FOOTER_BYTES, Footer, Layout, PREFIX_BYTES, Section, SnapshotHeader, block_seed,
    decode_header, header_bytes, u64_at,
};
use super::pack::Unpacker;
use crc32c::crc32c_append;
use longboat_io::DiskFile;
use longboat_raft::plant;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The state in a snapshot file. Holds one block in memory. As a [`io::Read`] it is what the state machine wrote.
#[derive(Debug)]
pub struct SnapshotReader {
    file: Box<dyn DiskFile>,
    header: SnapshotHeader,
    layout: Layout,
    footer: Footer,
    file_bytes: u64,
    /// Where the next block's header is.
    offset: u64,
    found: Footer,
    /// The current block's payload, and how much of it was handed out.
    block: Vec<u8>,
    taken: usize,
    /// What the current block is a part of; `None` before the first.
    section: Option<Section>,
    /// A compressed payload as it is in the file.
    packed: Vec<u8>,
    unpacker: Unpacker,
    ended: bool,
    failed: bool,
    /// The first failure, until it is asked for: the state machine in between may hide it.
    failure: Option<SnapshotError>,
    stop: Option<Arc<AtomicBool>>,
}

/// A file of the user's in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its id.
    pub id: u64,
    /// Its length.
    pub bytes: u64,
    /// What was said of it.
    pub metadata: Vec<u8>,
}

impl SnapshotReader {
    pub(crate) fn new(file: Box<dyn DiskFile>) -> Result<Self, SnapshotError> {
        let file_bytes = file.len().map_err(SnapshotError::reading)?;
        if file_bytes < (PREFIX_BYTES + FOOTER_BYTES) as u64 {
            return Err(SnapshotError::corrupt(format!("file of {file_bytes} bytes")));
        }
        let mut prefix = [0; PREFIX_BYTES];
        file.read_exact_at(&mut prefix, 0).map_err(SnapshotError::reading)?;
        let bytes = header_bytes(&prefix)?;
        if file_bytes < (bytes + FOOTER_BYTES) as u64 {
            return Err(SnapshotError::corrupt("file ends within its header"));
        }
        let mut head = vec![0; bytes];
        file.read_exact_at(&mut head, 0).map_err(SnapshotError::reading)?;
        let parsed = decode_header(&head)?;
        let mut end = [0; FOOTER_BYTES];
        file.read_exact_at(&mut end, file_bytes - FOOTER_BYTES as u64).map_err(SnapshotError::reading)?;
        let footer = Footer::decode(&parsed.layout, &end)?;
        if footer.file_bytes(&parsed.layout) != Some(file_bytes) {
            return Err(SnapshotError::corrupt("the footer does not fit the length of the file"));
        }
        Ok(Self {
            file,
            header: parsed.header,
            layout: parsed.layout,
            footer,
            file_bytes,
            offset: bytes as u64,
            found: Footer::begin(&parsed.layout),
            block: Vec::new(),
            taken: 0,
            section: None,
            packed: Vec::new(),
            unpacker: Unpacker::default(),
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

    /// The size of all that is in it, decompressed: table of sessions, state, files.
    pub fn state_bytes(&self) -> u64 {
        self.footer.raw_bytes
    }

    /// The checksum by which the file can be told from any other.
    pub(crate) fn whole_crc(&self) -> u32 {
        self.footer.whole_crc
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.layout.block_bytes
    }

    /// Once `stop` is set, reading fails from the next block on.
    pub fn stop_with(&mut self, stop: Arc<AtomicBool>) {
        self.stop = Some(stop);
    }

    /// The table of sessions. To be read before anything else; empty later.
    ///
    /// # Errors
    /// When the file is damaged, or a stop was asked for.
    pub fn sessions(&mut self) -> Result<Vec<u8>, SnapshotError> {
        // The length was checked against its bound; memory is taken as the bytes come.
        let mut table = Vec::new();
        if self.section.is_none() {
            while self.fill(Section::Sessions)? {
                table.extend_from_slice(&self.block[self.taken..]);
                self.taken = self.block.len();
            }
            if table.len() as u64 != self.header.session_bytes {
                return Err(SnapshotError::corrupt("the session table has not the length that the header says"));
            }
        }
        Ok(table)
    }

    /// The next of the user's files, after all state was passed over. `None` after the last.
    ///
    /// # Errors
    /// When the file is damaged, or a stop was asked for.
    pub fn next_file(&mut self) -> Result<Option<FileEntry>, SnapshotError> {
        for passed in [Section::Sessions, Section::State, Section::FileData] {
            while self.fill(passed)? {
                self.taken = self.block.len();
            }
        }
        if !self.fill(Section::FileHead)? {
            return Ok(None);
        }
        if self.block.len() < 16 || self.taken > 0 {
            return Err(SnapshotError::corrupt("description of a file"));
        }
        let (id, bytes) = (u64_at(&self.block, 0), u64_at(&self.block, 8));
        self.taken = self.block.len();
        Ok(Some(FileEntry { id, bytes, metadata: self.block[16..].to_vec() }))
    }

    /// The next bytes of the file that [`SnapshotReader::next_file`] named. `None` after the last.
    ///
    /// # Errors
    /// When the file is damaged, or a stop was asked for.
    pub fn next_file_part(&mut self) -> Result<Option<&[u8]>, SnapshotError> {
        if !self.fill(Section::FileData)? {
            return Ok(None);
        }
        let from = std::mem::replace(&mut self.taken, self.block.len());
        Ok(Some(&self.block[from..]))
    }

    /// Reads and checks all that is left, through the footer.
    ///
    /// # Errors
    /// When the file is damaged, now or before, or a stop was asked for.
    pub fn drain(&mut self) -> Result<(), SnapshotError> {
        self.taken = self.block.len();
        while self.next_block()? {
            self.taken = self.block.len();
        }
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

    /// Whether there are bytes of `section` at hand, after reading a block if need be.
    fn fill(&mut self, section: Section) -> Result<bool, SnapshotError> {
        if self.taken == self.block.len() && !self.next_block()? {
            return Ok(false);
        }
        Ok(self.section == Some(section))
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
        let number = self.found.blocks;
        let footer_offset = self.file_bytes - FOOTER_BYTES as u64;
        if self.offset == footer_offset {
            if self.found != self.footer {
                return Err(SnapshotError::corrupt("the footer does not fit what comes before it"));
            }
            self.ended = true;
            return Ok(false);
        }
        let room = (footer_offset - self.offset).checked_sub(BLOCK_HEADER_BYTES as u64);
        let room = room.ok_or_else(|| SnapshotError::corrupt(format!("length of block {number}")))?;
        let mut head = [0; BLOCK_HEADER_BYTES];
        self.file.read_exact_at(&mut head, self.offset).map_err(SnapshotError::reading)?;
        let block = BlockHeader::decode(&self.layout, number, self.section, &head)?;
        if u64::from(block.stored) > room {
            return Err(SnapshotError::corrupt(format!("length of block {number}")));
        }
        let stored = if block.is_packed() { &mut self.packed } else { &mut self.block };
        stored.resize(block.stored as usize, 0);
        self.file.read_exact_at(stored, self.offset + BLOCK_HEADER_BYTES as u64).map_err(SnapshotError::reading)?;
        let crc = crc32c_append(block_seed(&self.layout, number, &head), stored);
        if crc != block.crc && !plant::is("block-checksum-ignored") {
            return Err(SnapshotError::corrupt(format!("checksum of block {number}")));
        }
        if block.is_packed() {
            let raw = block.raw as usize;
            self.unpacker.unpack(self.layout.compression, &self.packed, raw, &mut self.block)?;
        }
        self.found.add(&head);
        self.section = Some(block.section);
        self.taken = 0;
        self.offset += BLOCK_HEADER_BYTES as u64 + u64::from(block.stored);
        Ok(true)
    }

    fn fill_state(&mut self) -> Result<bool, SnapshotError> {
        self.sessions()?;
        self.fill(Section::State)
    }
}

impl io::Read for SnapshotReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        match self.fill_state() {
            Ok(true) => {}
            Ok(false) => return Ok(0),
            Err(error) => {
                let shown = io::Error::other(error.to_string());
                self.failure.get_or_insert(error);
                return Err(shown);
            }
        }
        let bytes = out.len().min(self.block.len() - self.taken);
        out[..bytes].copy_from_slice(&self.block[self.taken..self.taken + bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}
