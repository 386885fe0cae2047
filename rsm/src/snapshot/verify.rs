//! Checks the bytes of a snapshot file as they pass, in pieces of any size, without keeping them.
//!
//! Memory: the header until it is whole, and a few bytes after that. Blocks are not decompressed: their checksums are
//! over the bytes in the file, and the length that they may have is checked with their headers.

use super::error::SnapshotError;
use super::format::{
    BLOCK_HEADER_BYTES, BlockHeader, FOOTER_BYTES, Footer, Layout, PREFIX_BYTES, ParsedHeader, Section, SnapshotHeader,
    block_seed, decode_header, header_bytes, u32_at,
};
use crc32c::crc32c_append;

/// Checks a file from its first byte to its last.
#[derive(Clone, Debug)]
pub struct Verifier {
    part: Part,
    /// The bytes so far of a part that is read whole.
    piece: Vec<u8>,
    header: Option<ParsedHeader>,
    /// What the footer must say.
    found: Option<Footer>,
    section: Option<Section>,
    bytes: u64,
    failed: bool,
}

#[derive(Clone, Debug)]
enum Part {
    Prefix,
    Header { bytes: usize },
    BlockHeader,
    Block { expected: u32, crc: u32, remaining: usize },
    Footer,
    End,
}

impl Verifier {
    /// Before the first byte.
    pub fn new() -> Self {
        Self {
            part: Part::Prefix,
            piece: Vec::new(),
            header: None,
            found: None,
            section: None,
            bytes: 0,
            failed: false,
        }
    }

    /// The file's header, once its bytes have passed.
    pub fn header(&self) -> Option<&SnapshotHeader> {
        self.header.as_ref().map(|h| &h.header)
    }

    /// Bytes that were found good or can't be judged yet.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the whole file has passed, footer included.
    pub fn is_whole(&self) -> bool {
        matches!(self.part, Part::End) && !self.failed
    }

    /// Where the footer starts, once its first bytes have passed.
    pub(crate) fn footer_offset(&self) -> Option<u64> {
        match self.part {
            Part::Footer => Some(self.bytes - self.piece.len() as u64),
            Part::End => Some(self.bytes - FOOTER_BYTES as u64),
            _ => None,
        }
    }

    /// The footer of a whole file.
    pub(crate) fn footer(&self) -> Option<[u8; FOOTER_BYTES]> {
        if self.is_whole() { self.piece[..].try_into().ok() } else { None }
    }

    /// Takes the next bytes. A block is judged when its last byte is here.
    ///
    /// # Errors
    /// What is wrong with the file. From then on it stays wrong.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        if self.failed {
            return Err(SnapshotError::corrupt("damage was found before"));
        }
        let fed = self.feed_parts(bytes);
        self.failed = fed.is_err();
        fed
    }

    fn feed_parts(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let wanted = match &mut self.part {
                Part::End => return Err(SnapshotError::corrupt("bytes after the footer")),
                Part::Block { remaining, crc, .. } => {
                    let (now, later) = bytes.split_at(bytes.len().min(*remaining));
                    *crc = crc32c_append(*crc, now);
                    *remaining -= now.len();
                    bytes = later;
                    if *remaining == 0 {
                        self.end_block()?;
                    }
                    continue;
                }
                Part::Prefix => PREFIX_BYTES,
                Part::Header { bytes } => *bytes,
                Part::BlockHeader => BLOCK_HEADER_BYTES,
                Part::Footer => FOOTER_BYTES,
            };
            let (now, later) = bytes.split_at(bytes.len().min(wanted - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == wanted {
                self.end_piece()?;
            }
        }
        Ok(())
    }

    fn layout(&self) -> &Layout {
        &self.header.as_ref().expect("blocks come after the header").layout
    }

    fn found(&mut self) -> &mut Footer {
        self.found.as_mut().expect("blocks come after the header")
    }

    fn end_block(&mut self) -> Result<(), SnapshotError> {
        let Part::Block { expected, crc, .. } = std::mem::replace(&mut self.part, Part::BlockHeader) else {
            unreachable!("called at the end of a block");
        };
        if expected != crc {
            return Err(SnapshotError::corrupt(format!("checksum of block {}", self.found().blocks - 1)));
        }
        Ok(())
    }

    fn end_piece(&mut self) -> Result<(), SnapshotError> {
        match self.part {
            Part::Prefix => {
                let prefix = self.piece[..].try_into().expect("the piece is a whole prefix");
                self.part = Part::Header { bytes: header_bytes(prefix)? };
                return Ok(());
            }
            Part::Header { .. } => {
                let parsed = decode_header(&self.piece)?;
                self.found = Some(Footer::begin(&parsed.layout));
                self.header = Some(parsed);
                self.part = Part::BlockHeader;
            }
            Part::BlockHeader => {
                if u32_at(&self.piece, 0) == 0 {
                    self.part = Part::Footer;
                    return Ok(());
                }
                let head: [u8; BLOCK_HEADER_BYTES] = self.piece[..].try_into().expect("the piece is a whole header");
                let (layout, number) = (*self.layout(), self.found().blocks);
                let block = BlockHeader::decode(&layout, number, self.section, &head)?;
                self.section = Some(block.section);
                self.found().add(&head);
                let crc = block_seed(&layout, number, &head);
                self.part = Part::Block { expected: block.crc, crc, remaining: block.stored as usize };
            }
            Part::Footer => {
                let bytes = self.piece[..].try_into().expect("the piece is a whole footer");
                if Footer::decode(self.layout(), bytes)? != *self.found() {
                    return Err(SnapshotError::corrupt("the footer does not fit what comes before it"));
                }
                self.part = Part::End;
                // Kept: whoever writes the file writes its end last.
                return Ok(());
            }
            Part::Block { .. } | Part::End => unreachable!("no piece is gathered there"),
        }
        self.piece.clear();
        Ok(())
    }
}

impl Default for Verifier {
    fn default() -> Self {
        Self::new()
    }
}
