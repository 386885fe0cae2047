//! Checks the bytes of a snapshot file as they pass, in pieces of any size, without keeping them.
//!
//! Memory: the header until it is whole, and a few bytes after that.

use super::error::SnapshotError;
use super::format::{
    BLOCK_HEADER_BYTES, FOOTER_BYTES, Footer, Layout, PREFIX_BYTES, ParsedHeader, SnapshotHeader, block_crc,
    decode_header, header_bytes, u32_at,
};
use crc32fast::Hasher;

/// Checks a file from its first byte to its last.
#[derive(Clone, Debug)]
pub struct Verifier {
    part: Part,
    /// The bytes so far of a part that is read whole.
    piece: Vec<u8>,
    header: Option<ParsedHeader>,
    /// Over all bytes before the footer.
    whole: Hasher,
    blocks: u64,
    payload_bytes: u64,
    bytes: u64,
    failed: bool,
}

#[derive(Clone, Debug)]
enum Part {
    Prefix,
    Header { bytes: usize },
    BlockHeader,
    Block { payload_bytes: u32, crc: u32, remaining: usize, payload: Hasher },
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
            whole: Hasher::new(),
            blocks: 0,
            payload_bytes: 0,
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
                Part::Block { remaining, payload, .. } => {
                    let (now, later) = bytes.split_at(bytes.len().min(*remaining));
                    payload.update(now);
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

    fn end_block(&mut self) -> Result<(), SnapshotError> {
        let Part::Block { payload_bytes, crc, payload, .. } = std::mem::replace(&mut self.part, Part::BlockHeader)
        else {
            unreachable!("called at the end of a block");
        };
        if crc != block_crc(self.layout(), self.blocks, payload_bytes, &payload) {
            return Err(SnapshotError::corrupt(format!("checksum of block {}", self.blocks)));
        }
        self.whole.combine(&payload);
        self.blocks += 1;
        self.payload_bytes += u64::from(payload_bytes);
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
                self.header = Some(decode_header(&self.piece)?);
                self.whole.update(&self.piece);
                self.part = Part::BlockHeader;
            }
            Part::BlockHeader => {
                let payload_bytes = u32_at(&self.piece, 0);
                if payload_bytes == 0 {
                    self.part = Part::Footer;
                    return Ok(());
                }
                if payload_bytes as usize > self.layout().block_bytes {
                    return Err(SnapshotError::corrupt(format!("length of block {}", self.blocks)));
                }
                self.whole.update(&self.piece);
                self.part = Part::Block {
                    payload_bytes,
                    crc: u32_at(&self.piece, 4),
                    remaining: payload_bytes as usize,
                    payload: Hasher::new(),
                };
            }
            Part::Footer => {
                let bytes = self.piece[..].try_into().expect("the piece is a whole footer");
                let footer = Footer::decode(self.layout(), bytes)?;
                let found = Footer {
                    blocks: self.blocks,
                    payload_bytes: self.payload_bytes,
                    whole_crc: self.whole.clone().finalize(),
                };
                if footer != found {
                    return Err(SnapshotError::corrupt("the footer does not fit what comes before it"));
                }
                self.part = Part::End;
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
