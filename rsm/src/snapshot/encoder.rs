//! Turns sections of bytes into blocks, for a file or for a stream.

use super::error::SnapshotError;
use super::format::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, BlockHeader, FOOTER_BYTES, Footer, Layout, Section, SnapshotHeader, encode_header,
};
use super::pack::Packer;
use bytes::BytesMut;

/// Where blocks go.
pub(crate) trait BlockSink {
    /// Takes the next bytes of the file.
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError>;
}

impl BlockSink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

impl BlockSink for BytesMut {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// Makes the blocks of one file.
#[derive(Debug)]
pub(crate) struct Encoder {
    layout: Layout,
    packer: Packer,
    section: Section,
    /// The open block, its header's room first, so that header and payload leave in one piece.
    block: Vec<u8>,
    footer: Footer,
}

impl Encoder {
    /// Puts the header.
    pub(crate) fn begin(header: &SnapshotHeader, sink: &mut dyn BlockSink) -> Result<Self, SnapshotError> {
        let (bytes, layout) = encode_header(header, BLOCK_BYTES)?;
        sink.put(&bytes)?;
        let packer = Packer::new(header.compression)?;
        let footer = Footer::begin(&layout);
        Ok(Self { layout, packer, section: Section::State, block: Vec::new(), footer })
    }

    /// What is written from here on belongs to `section`.
    pub(crate) fn enter(&mut self, section: Section, sink: &mut dyn BlockSink) -> Result<(), SnapshotError> {
        self.flush(sink)?;
        self.section = section;
        Ok(())
    }

    /// Takes bytes of the section. Whole blocks are made of them where they lie, without a copy.
    pub(crate) fn write(&mut self, mut bytes: &[u8], sink: &mut dyn BlockSink) -> Result<(), SnapshotError> {
        while !bytes.is_empty() {
            let open = self.open_bytes();
            if open == 0 && bytes.len() >= self.layout.block_bytes {
                let (whole, rest) = bytes.split_at(self.layout.block_bytes);
                self.put_block(whole, sink)?;
                bytes = rest;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.layout.block_bytes - open));
            if self.block.is_empty() {
                self.block.reserve_exact(BLOCK_HEADER_BYTES + self.layout.block_bytes);
                self.block.resize(BLOCK_HEADER_BYTES, 0);
            }
            self.block.extend_from_slice(now);
            bytes = later;
            if self.open_bytes() == self.layout.block_bytes {
                self.flush(sink)?;
            }
        }
        Ok(())
    }

    /// Ends the last block. The file's last bytes are returned, not put.
    pub(crate) fn end(&mut self, sink: &mut dyn BlockSink) -> Result<[u8; FOOTER_BYTES], SnapshotError> {
        self.flush(sink)?;
        Ok(self.footer.encode(&self.layout))
    }

    fn open_bytes(&self) -> usize {
        self.block.len().saturating_sub(BLOCK_HEADER_BYTES)
    }

    fn flush(&mut self, sink: &mut dyn BlockSink) -> Result<(), SnapshotError> {
        if self.open_bytes() == 0 {
            return Ok(());
        }
        let mut block = std::mem::take(&mut self.block);
        let (head, payload) = block.split_at_mut(BLOCK_HEADER_BYTES);
        let put = match self.packer.pack(payload) {
            Some(packed) => {
                let header = BlockHeader::of(&self.layout, self.footer.blocks, self.section, payload.len(), packed);
                self.footer.add(&header);
                sink.put(&header).and_then(|()| sink.put(packed))
            }
            None => {
                let header = BlockHeader::of(&self.layout, self.footer.blocks, self.section, payload.len(), payload);
                self.footer.add(&header);
                head.copy_from_slice(&header);
                sink.put(&block)
            }
        };
        block.truncate(BLOCK_HEADER_BYTES);
        self.block = block;
        put
    }

    fn put_block(&mut self, raw: &[u8], sink: &mut dyn BlockSink) -> Result<(), SnapshotError> {
        let stored = self.packer.pack(raw).unwrap_or(raw);
        let header = BlockHeader::of(&self.layout, self.footer.blocks, self.section, raw.len(), stored);
        self.footer.add(&header);
        sink.put(&header)?;
        sink.put(stored)
    }
}
