//! The layout of a snapshot file, see `docs/snapshot-format.md`.
//!
//! Every checksum after the header's has the header's mixed in, and a block's has its number: a block is good only in
//! the file and at the place for which it was written.

use super::error::SnapshotError;
use crc32fast::Hasher;
use longboat_raft::{GroupEpoch, GroupId, Index, LogPos, Membership, SnapshotMeta, Term};

pub(crate) const MAGIC: [u8; 8] = *b"LBSNAPSH";
pub(crate) const END_MAGIC: [u8; 4] = *b"LBSE";
pub(crate) const VERSION: u16 = 1;
/// Bytes before the header's body: magic, version, flags, length of the body.
pub(crate) const PREFIX_BYTES: usize = 16;
/// Bytes of the header's body before the membership.
const FIXED_BODY_BYTES: usize = 60;
pub(crate) const CRC_BYTES: usize = 4;
pub(crate) const BLOCK_HEADER_BYTES: usize = 8;
pub(crate) const FOOTER_BYTES: usize = 32;

/// Largest header: room for the membership of a group that has changed tens of thousands of times.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Payload bytes of a block as this build writes them: large enough that a checksum's and a write's overhead vanish,
/// small enough that stopping at the next block is soon.
pub const BLOCK_BYTES: usize = 256 << 10;
/// Largest block that is read; bounds the memory of a reader.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;

/// The kind of state machine that wrote the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum MachineKind {
    /// In memory, exclusive access.
    #[default]
    Exclusive = 1,
    /// In memory, concurrent lookups and saves.
    Concurrent = 2,
    /// With storage of its own.
    OnDisk = 3,
}

/// How the payload of blocks is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
}

/// What a snapshot file says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The group.
    pub group: GroupId,
    /// The incarnation of the group's history.
    pub epoch: GroupEpoch,
    /// What the snapshot stands for. The config change id is the membership's.
    pub meta: SnapshotMeta,
    /// Bytes of the session table, which comes before the state machine's own bytes.
    pub session_bytes: u64,
    /// The kind of state machine that wrote it.
    pub kind: MachineKind,
    /// How blocks are compressed.
    pub compression: Compression,
}

/// A header as read: its content, and what the rest of the file is checked with.
#[derive(Clone, Debug)]
pub(crate) struct ParsedHeader {
    pub(crate) header: SnapshotHeader,
    pub(crate) layout: Layout,
}

/// What readers and writers of one file need to know of its header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Bytes of the header with its checksum.
    pub(crate) header_bytes: usize,
    pub(crate) header_crc: u32,
    /// Largest payload of a block.
    pub(crate) block_bytes: usize,
}

/// The end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) blocks: u64,
    pub(crate) payload_bytes: u64,
    /// Checksum of all bytes before the footer.
    pub(crate) whole_crc: u32,
}

pub(crate) fn encode_header(header: &SnapshotHeader, block_bytes: usize) -> Result<(Vec<u8>, Layout), SnapshotError> {
    let membership = header.meta.membership.encode();
    let body_bytes = FIXED_BODY_BYTES + membership.len();
    let header_bytes = PREFIX_BYTES + body_bytes + CRC_BYTES;
    if header_bytes > HEADER_BYTES_MAX {
        return Err(SnapshotError::corrupt(format!("header of {header_bytes} bytes, the limit is {HEADER_BYTES_MAX}")));
    }
    let mut out = Vec::with_capacity(header_bytes);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&0u16.to_le_bytes());
    out.extend_from_slice(&(body_bytes as u32).to_le_bytes());
    let meta = &header.meta;
    for word in [
        header.group.0,
        header.epoch.0,
        meta.pos.index.0,
        meta.pos.term.0,
        meta.membership.change_id.0,
        header.session_bytes,
    ] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&[header.kind as u8, header.compression as u8, 0, 0]);
    out.extend_from_slice(&(block_bytes as u32).to_le_bytes());
    out.extend_from_slice(&(membership.len() as u32).to_le_bytes());
    out.extend_from_slice(&membership);
    let header_crc = crc32fast::hash(&out);
    out.extend_from_slice(&header_crc.to_le_bytes());
    assert_eq!(out.len(), header_bytes, "the header's length was computed from its parts");
    Ok((out, Layout { header_bytes, header_crc, block_bytes }))
}

/// The length of the whole header, from its first [`PREFIX_BYTES`].
pub(crate) fn header_bytes(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, SnapshotError> {
    if prefix[..8] != MAGIC {
        return Err(SnapshotError::corrupt("no snapshot's magic"));
    }
    let version = u16_at(prefix, 8);
    if version != VERSION {
        return Err(SnapshotError::Unsupported {
            what: "format version",
            found: version.into(),
            supported: VERSION.into(),
        });
    }
    if u16_at(prefix, 10) != 0 {
        return Err(SnapshotError::Unsupported { what: "flags", found: u16_at(prefix, 10).into(), supported: 0 });
    }
    let bytes = PREFIX_BYTES + u32_at(prefix, 12) as usize + CRC_BYTES;
    if !(PREFIX_BYTES + FIXED_BODY_BYTES + CRC_BYTES..=HEADER_BYTES_MAX).contains(&bytes) {
        return Err(SnapshotError::corrupt(format!("header of {bytes} bytes, the limit is {HEADER_BYTES_MAX}")));
    }
    Ok(bytes)
}

/// Reads a header that has the length that [`header_bytes`] told.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<ParsedHeader, SnapshotError> {
    let crc_at = bytes.len() - CRC_BYTES;
    let header_crc = crc32fast::hash(&bytes[..crc_at]);
    if header_crc != u32_at(bytes, crc_at) {
        return Err(SnapshotError::corrupt("checksum of the header"));
    }
    let body = &bytes[PREFIX_BYTES..crc_at];
    let kind = match body[48] {
        1 => MachineKind::Exclusive,
        2 => MachineKind::Concurrent,
        3 => MachineKind::OnDisk,
        found => {
            return Err(SnapshotError::Unsupported {
                what: "state machine kind",
                found: found.into(),
                supported: MachineKind::OnDisk as u64,
            });
        }
    };
    if body[49] != Compression::None as u8 {
        return Err(SnapshotError::Unsupported { what: "compression", found: body[49].into(), supported: 0 });
    }
    let block_bytes = u32_at(body, 52) as usize;
    if !(1..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        return Err(SnapshotError::corrupt(format!("blocks of {block_bytes} bytes, the limit is {BLOCK_BYTES_MAX}")));
    }
    if u32_at(body, 56) as usize != body.len() - FIXED_BODY_BYTES {
        return Err(SnapshotError::corrupt("length of the membership"));
    }
    let membership = Membership::decode(&body[FIXED_BODY_BYTES..])
        .map_err(|error| SnapshotError::corrupt(format!("membership: {error}")))?;
    if u64_at(body, 32) != membership.change_id.0 {
        return Err(SnapshotError::corrupt("config change id differs from the membership's"));
    }
    let header = SnapshotHeader {
        group: GroupId(u64_at(body, 0)),
        epoch: GroupEpoch(u64_at(body, 8)),
        meta: SnapshotMeta { pos: LogPos::new(Term(u64_at(body, 24)), Index(u64_at(body, 16))), membership },
        session_bytes: u64_at(body, 40),
        kind,
        compression: Compression::None,
    };
    Ok(ParsedHeader { header, layout: Layout { header_bytes: bytes.len(), header_crc, block_bytes } })
}

/// The checksum of block `number`, given that of its payload alone, so that the payload is gone over once.
pub(crate) fn block_crc(layout: &Layout, number: u64, payload_bytes: u32, payload: &Hasher) -> u32 {
    let mut crc = Hasher::new();
    crc.update(&layout.header_crc.to_le_bytes());
    crc.update(&number.to_le_bytes());
    crc.update(&payload_bytes.to_le_bytes());
    crc.combine(payload);
    crc.finalize()
}

impl Footer {
    pub(crate) fn encode(&self, layout: &Layout) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[8..16].copy_from_slice(&self.blocks.to_le_bytes());
        out[16..24].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[24..28].copy_from_slice(&self.whole_crc.to_le_bytes());
        out[28..32].copy_from_slice(&END_MAGIC);
        let crc = footer_crc(layout, &out);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(layout: &Layout, bytes: &[u8; FOOTER_BYTES]) -> Result<Self, SnapshotError> {
        if u32_at(bytes, 0) != 0 || bytes[28..32] != END_MAGIC || u32_at(bytes, 4) != footer_crc(layout, bytes) {
            return Err(SnapshotError::corrupt("no footer at the end: the file is cut short or damaged"));
        }
        Ok(Self { blocks: u64_at(bytes, 8), payload_bytes: u64_at(bytes, 16), whole_crc: u32_at(bytes, 24) })
    }

    /// The length of the whole file; `None` for counts that no file can have.
    pub(crate) fn file_bytes(&self, layout: &Layout) -> Option<u64> {
        self.blocks
            .checked_mul(BLOCK_HEADER_BYTES as u64)?
            .checked_add(self.payload_bytes)?
            .checked_add((layout.header_bytes + FOOTER_BYTES) as u64)
    }
}

fn footer_crc(layout: &Layout, footer: &[u8; FOOTER_BYTES]) -> u32 {
    let mut crc = Hasher::new();
    crc.update(&layout.header_crc.to_le_bytes());
    crc.update(&footer[..4]);
    crc.update(&footer[8..]);
    crc.finalize()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
