//! The layout of a snapshot file, see `docs/snapshot-format.md`.
//!
//! Every checksum after the header's has the header's mixed in, and a block's has its number: a block is good only in
//! the file and at the place for which it was written. The footer's covers the header and the headers of all blocks, and
//! with their checksums every byte before it.

use super::error::SnapshotError;
use crc32c::{crc32c, crc32c_append};
use longboat_raft::{GroupEpoch, GroupId, Index, LogPos, Membership, SnapshotMeta, Term, plant};

pub(crate) const MAGIC: [u8; 8] = *b"LBSNAPSH";
pub(crate) const END_MAGIC: [u8; 4] = *b"LBSE";
pub(crate) const VERSION: u16 = 2;
/// Bytes before the header's body: magic, version, flags, length of the body.
pub(crate) const PREFIX_BYTES: usize = 16;
/// Bytes of the header's body before the membership.
const FIXED_BODY_BYTES: usize = 68;
pub(crate) const CRC_BYTES: usize = 4;
pub(crate) const BLOCK_HEADER_BYTES: usize = 16;
pub(crate) const FOOTER_BYTES: usize = 40;

/// Largest header: room for the membership of a group that has changed tens of thousands of times.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Payload bytes of a block as this build writes them: large enough that a checksum's and a write's overhead vanish,
/// small enough that stopping at the next block is soon.
pub const BLOCK_BYTES: usize = 256 << 10;
/// Largest block that is read, compressed or not; bounds the memory of a reader.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Largest table of sessions: all that a group may keep, and their results.
pub const SESSION_TABLE_BYTES_MAX: u64 = 256 << 20;

pub use crate::machine::MachineKind;

/// How the payload of blocks is compressed. A block that does not get smaller is stored as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// LZ4, blocks on their own.
    Lz4 = 1,
    /// Zstandard, blocks on their own.
    Zstd = 2,
}

/// How much of a replica a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Content {
    /// All of it.
    #[default]
    Full = 0,
    /// What it stands for. The state is in the storage of an on-disk state machine.
    Metadata = 1,
    /// What it stands for. A witness has no state.
    Witness = 2,
}

/// What a block is a part of. Blocks come in this order; each file is one `FileHead` and then its `FileData`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Section {
    Sessions = 1,
    State = 2,
    FileHead = 3,
    FileData = 4,
}

impl Section {
    const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Sessions),
            2 => Some(Self::State),
            3 => Some(Self::FileHead),
            4 => Some(Self::FileData),
            _ => None,
        }
    }

    /// Whether a block of this section may come after one of `before`.
    pub(crate) fn may_follow(self, before: Option<Self>) -> bool {
        match (before, self) {
            (None, next) => next <= Self::FileHead,
            (Some(Self::FileHead | Self::FileData), next) => next >= Self::FileHead,
            (Some(before), next) => next >= before && next != Self::FileData,
        }
    }
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
    /// How much it holds.
    pub content: Content,
    /// The last command that an on-disk state machine had applied: what its storage must have for a snapshot without state
    /// to be of use. Zero for machines in memory.
    pub last_command: Index,
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
    pub(crate) compression: Compression,
}

/// The end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) blocks: u64,
    /// Bytes of all payloads, decompressed.
    pub(crate) raw_bytes: u64,
    /// Bytes of all payloads in the file.
    pub(crate) stored_bytes: u64,
    /// Checksum of the header and of the headers of all blocks.
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
    out.extend_from_slice(&[header.kind as u8, header.compression as u8, header.content as u8, 0]);
    out.extend_from_slice(&(block_bytes as u32).to_le_bytes());
    out.extend_from_slice(&header.last_command.0.to_le_bytes());
    out.extend_from_slice(&(membership.len() as u32).to_le_bytes());
    out.extend_from_slice(&membership);
    let header_crc = crc32c(&out);
    out.extend_from_slice(&header_crc.to_le_bytes());
    assert_eq!(out.len(), header_bytes, "the header's length was computed from its parts");
    Ok((out, Layout { header_bytes, header_crc, block_bytes, compression: header.compression }))
}

/// The length of the whole header, from its first [`PREFIX_BYTES`], whatever its version: where the length is and what it counts is the
/// same in all versions, and so is the checksum at the end. What the prefix says otherwise is believed only once that was found good.
pub(crate) fn header_bytes(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, SnapshotError> {
    if prefix[..8] != MAGIC {
        return Err(SnapshotError::corrupt("no snapshot's magic"));
    }
    if plant::is("damage-taken-for-a-version") {
        check_version(prefix)?;
    }
    let bytes = PREFIX_BYTES + u32_at(prefix, 12) as usize + CRC_BYTES;
    if !(PREFIX_BYTES + FIXED_BODY_BYTES + CRC_BYTES..=HEADER_BYTES_MAX).contains(&bytes) {
        return Err(SnapshotError::corrupt(format!("header of {bytes} bytes, the limit is {HEADER_BYTES_MAX}")));
    }
    Ok(bytes)
}

/// Refuses what a later version of this library wrote. Such a file is no damage: nothing takes its place, and it must be kept for the
/// build that can read it. So it is asked only of a header whose checksum is right: to a flipped bit in these four bytes there are
/// other answers, an older snapshot or the leader's.
fn check_version(header: &[u8]) -> Result<(), SnapshotError> {
    let (version, flags) = (u16_at(header, 8), u16_at(header, 10));
    if version != VERSION {
        let (found, supported) = (version.into(), VERSION.into());
        return Err(SnapshotError::Unsupported { what: "format version", found, supported });
    }
    if flags != 0 {
        return Err(SnapshotError::Unsupported { what: "flags", found: flags.into(), supported: 0 });
    }
    Ok(())
}

/// Reads a header that has the length that [`header_bytes`] told.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<ParsedHeader, SnapshotError> {
    let crc_at = bytes.len() - CRC_BYTES;
    let header_crc = crc32c(&bytes[..crc_at]);
    if header_crc != u32_at(bytes, crc_at) {
        return Err(SnapshotError::corrupt("checksum of the header"));
    }
    check_version(bytes)?;
    let body = &bytes[PREFIX_BYTES..crc_at];
    let (kind, compression, content) = decode_options(&body[48..52])?;
    let block_bytes = u32_at(body, 52) as usize;
    if !(1..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        return Err(SnapshotError::corrupt(format!("blocks of {block_bytes} bytes, the limit is {BLOCK_BYTES_MAX}")));
    }
    if u64_at(body, 40) > SESSION_TABLE_BYTES_MAX {
        return Err(SnapshotError::corrupt("length of the session table"));
    }
    if u32_at(body, 64) as usize != body.len() - FIXED_BODY_BYTES {
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
        compression,
        content,
        last_command: Index(u64_at(body, 56)),
    };
    Ok(ParsedHeader { header, layout: Layout { header_bytes: bytes.len(), header_crc, block_bytes, compression } })
}

fn decode_options(bytes: &[u8]) -> Result<(MachineKind, Compression, Content), SnapshotError> {
    let unsupported = |what, found: u8, supported: u8| SnapshotError::Unsupported {
        what,
        found: found.into(),
        supported: supported.into(),
    };
    let kind = match bytes[0] {
        1 => MachineKind::Exclusive,
        2 => MachineKind::Concurrent,
        3 => MachineKind::OnDisk,
        found => return Err(unsupported("state machine kind", found, 3)),
    };
    let compression = match bytes[1] {
        0 => Compression::None,
        1 => Compression::Lz4,
        2 => Compression::Zstd,
        found => return Err(unsupported("compression", found, 2)),
    };
    let content = match bytes[2] {
        0 => Content::Full,
        1 => Content::Metadata,
        2 => Content::Witness,
        found => return Err(unsupported("content", found, 2)),
    };
    if bytes[3] == 0 { Ok((kind, compression, content)) } else { Err(unsupported("option", bytes[3], 0)) }
}

/// The header of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    /// Bytes of the payload in the file.
    pub(crate) stored: u32,
    /// Bytes of the payload.
    pub(crate) raw: u32,
    pub(crate) section: Section,
    pub(crate) crc: u32,
}

impl BlockHeader {
    /// The header of the block with this number, whose payload in the file is `stored`.
    pub(crate) fn of(
        layout: &Layout,
        number: u64,
        section: Section,
        raw: usize,
        stored: &[u8],
    ) -> [u8; BLOCK_HEADER_BYTES] {
        let mut out = [0; BLOCK_HEADER_BYTES];
        out[..4].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        out[4..8].copy_from_slice(&(raw as u32).to_le_bytes());
        out[8] = section as u8;
        let crc = crc32c_append(block_seed(layout, number, &out), stored);
        out[12..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header, and checks it as far as that can be done without the payload.
    pub(crate) fn decode(
        layout: &Layout,
        number: u64,
        before: Option<Section>,
        bytes: &[u8; BLOCK_HEADER_BYTES],
    ) -> Result<Self, SnapshotError> {
        let (stored, raw) = (u32_at(bytes, 0), u32_at(bytes, 4));
        // The cap on what a block decompresses to: checked before any memory is taken for it.
        let is_packed = stored != raw;
        if raw as usize > layout.block_bytes || stored > raw || stored == 0 {
            return Err(SnapshotError::corrupt(format!("length of block {number}")));
        }
        if is_packed && layout.compression == Compression::None {
            return Err(SnapshotError::corrupt(format!("block {number} is compressed")));
        }
        let section = Section::from_u8(bytes[8]).filter(|s| s.may_follow(before) && bytes[9..12] == [0; 3]);
        let section = section.ok_or_else(|| SnapshotError::corrupt(format!("section of block {number}")))?;
        Ok(Self { stored, raw, section, crc: u32_at(bytes, 12) })
    }

    pub(crate) fn is_packed(&self) -> bool {
        self.stored != self.raw
    }
}

/// What the checksum of a block's payload starts with: where the block belongs, and what its header says.
pub(crate) fn block_seed(layout: &Layout, number: u64, header: &[u8; BLOCK_HEADER_BYTES]) -> u32 {
    let mut place = [0; 24];
    place[..4].copy_from_slice(&layout.header_crc.to_le_bytes());
    place[4..12].copy_from_slice(&number.to_le_bytes());
    place[12..].copy_from_slice(&header[..12]);
    crc32c(&place)
}

impl Footer {
    /// The counts before the first block.
    pub(crate) fn begin(layout: &Layout) -> Self {
        Self { blocks: 0, raw_bytes: 0, stored_bytes: 0, whole_crc: crc32c(&layout.header_crc.to_le_bytes()) }
    }

    /// Counts a block, given its header.
    pub(crate) fn add(&mut self, header: &[u8; BLOCK_HEADER_BYTES]) {
        self.blocks += 1;
        self.stored_bytes += u64::from(u32_at(header, 0));
        self.raw_bytes += u64::from(u32_at(header, 4));
        self.whole_crc = crc32c_append(self.whole_crc, header);
    }

    pub(crate) fn encode(&self, layout: &Layout) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[8..16].copy_from_slice(&self.blocks.to_le_bytes());
        out[16..24].copy_from_slice(&self.raw_bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.stored_bytes.to_le_bytes());
        out[32..36].copy_from_slice(&self.whole_crc.to_le_bytes());
        out[36..].copy_from_slice(&END_MAGIC);
        let crc = footer_crc(layout, &out);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(layout: &Layout, bytes: &[u8; FOOTER_BYTES]) -> Result<Self, SnapshotError> {
        if u32_at(bytes, 0) != 0 || bytes[36..] != END_MAGIC || u32_at(bytes, 4) != footer_crc(layout, bytes) {
            return Err(SnapshotError::corrupt("no footer at the end: the file is cut short or damaged"));
        }
        Ok(Self {
            blocks: u64_at(bytes, 8),
            raw_bytes: u64_at(bytes, 16),
            stored_bytes: u64_at(bytes, 24),
            whole_crc: u32_at(bytes, 32),
        })
    }

    /// The length of the whole file; `None` for counts that no file can have.
    pub(crate) fn file_bytes(&self, layout: &Layout) -> Option<u64> {
        self.blocks
            .checked_mul(BLOCK_HEADER_BYTES as u64)?
            .checked_add(self.stored_bytes)?
            .checked_add((layout.header_bytes + FOOTER_BYTES) as u64)
    }
}

fn footer_crc(layout: &Layout, footer: &[u8; FOOTER_BYTES]) -> u32 {
    let crc = crc32c_append(crc32c(&layout.header_crc.to_le_bytes()), &footer[..4]);
    crc32c_append(crc, &footer[8..])
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
