//! The bytes of a journal segment: header block, record header, directory, footer. `docs/log-format.md` says the same
//! for people.
//!
//! Every checksum of a segment starts from a seed that its use id gives, so that what an earlier use of the same
//! blocks left behind never looks valid. The headers of records and footers name the opening of the store that wrote them,
//! a random number, and the checksums of what follows the header start from that, too: what an earlier opening of the
//! store left of a record that it did not finish never goes with the header of a later one. Frames have a module of
//! their own, [`crate::frame`].

use bytes::{Buf, BufMut};
use longboat_raft::crc::crc32c;
use longboat_raft::{GroupId, HostId, Index, StoreId, plant};

/// Records and footers start on a multiple of this many bytes and are padded to it, so that no write touches a block
/// that holds durable bytes.
pub(crate) const BLOCK: u64 = 4096;
/// The version of everything under the journal's directory.
pub(crate) const JOURNAL_VERSION: u32 = 3;
/// Bytes of a segment's header that mean something: they fit in one sector of any disk.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER_BYTES: usize = 64;
/// Bytes of one item of a record's directory.
pub(crate) const DIRECTORY_ITEM_BYTES: usize = 16;
/// Bytes of a footer's header.
pub(crate) const FOOTER_HEADER_BYTES: usize = 64;
/// Bytes of one group, and of one frame, in a footer.
pub(crate) const FOOTER_ITEM_BYTES: usize = 16;

const SEGMENT_MAGIC: [u8; 8] = *b"LONGBJNL";
const RECORD_MAGIC: [u8; 4] = *b"LBRC";
const FOOTER_MAGIC: [u8; 4] = *b"LBFT";

/// Rounds up to whole blocks.
pub(crate) const fn padded(len: u64) -> u64 {
    len.div_ceil(BLOCK) * BLOCK
}

/// CRC-32C of `bytes`, continued from `seed`.
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    crc32c(seed, bytes)
}

/// What the checksums of a record or a footer start from, but for its header's: `seed` is that of the segment's use.
///
/// A checksum of given bytes is another one for every seed, so bytes of two openings are taken for each other only
/// if their seeds are equal.
pub(crate) fn body_seed(seed: u32, opening: u64) -> u32 {
    if plant::is("sums-without-opening") {
        return seed;
    }
    crc(seed, &opening.to_le_bytes())
}

/// Why a segment's header block was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// Never written, torn, or damaged.
    Invalid,
    /// Written by a version that this build can't read.
    Version(u32),
}

/// The front block of a segment: one use of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) store: StoreId,
    pub(crate) host: HostId,
    /// Counts the uses of all segments: a later use has a larger number.
    pub(crate) use_number: u64,
    /// Drawn at random for this use.
    pub(crate) use_id: u64,
    /// The sequence of the first record that this use may hold.
    pub(crate) first_seq: u64,
}

impl SegmentHeader {
    /// What every checksum of a header in this use starts from.
    pub(crate) fn seed(&self) -> u32 {
        crc(0, &self.use_id.to_le_bytes())
    }

    /// Appends the header and the zeros that fill its block.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let at = out.len();
        out.put_slice(&SEGMENT_MAGIC);
        out.put_u32_le(JOURNAL_VERSION);
        out.put_u32_le(0);
        out.put_u128_le(self.store.0);
        out.put_u64_le(self.host.0);
        out.put_u64_le(self.use_number);
        out.put_u64_le(self.use_id);
        out.put_u64_le(self.first_seq);
        debug_assert_eq!(out.len() - at, SEGMENT_HEADER_BYTES);
        let sum = crc(0, &out[at + 16..]);
        out[at + 12..at + 16].copy_from_slice(&sum.to_le_bytes());
        out.resize(at + BLOCK as usize, 0);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        if bytes.len() < SEGMENT_HEADER_BYTES || bytes[..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::Invalid);
        }
        let mut b = &bytes[8..];
        let (version, sum) = (b.get_u32_le(), b.get_u32_le());
        if sum != crc(0, &bytes[16..SEGMENT_HEADER_BYTES]) {
            return Err(HeaderFault::Invalid);
        }
        if version != JOURNAL_VERSION {
            return Err(HeaderFault::Version(version));
        }
        let header = Self {
            store: StoreId(b.get_u128_le()),
            host: HostId(b.get_u64_le()),
            use_number: b.get_u64_le(),
            use_id: b.get_u64_le(),
            first_seq: b.get_u64_le(),
        };
        // Uses are counted from 1, and another one can always follow: no host has written anything else.
        if header.use_number == 0 || header.use_number == u64::MAX {
            return Err(HeaderFault::Invalid);
        }
        Ok(header)
    }
}

/// The front of a record: one batch of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) seq: u64,
    /// Header, directory and frames, in bytes, without the padding.
    pub(crate) length: u64,
    /// Every record up to this one was durable when this one was written.
    pub(crate) durable_through: u64,
    /// The records before this one are settled: nothing needs them any more.
    pub(crate) oldest_needed: u64,
    pub(crate) frames: u32,
    pub(crate) directory_crc: u32,
    /// The opening of the store that wrote it.
    pub(crate) opening: u64,
}

impl RecordHeader {
    pub(crate) fn encode(&self, seed: u32) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = [0; RECORD_HEADER_BYTES];
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.length.to_le_bytes());
        out[24..32].copy_from_slice(&self.durable_through.to_le_bytes());
        out[32..40].copy_from_slice(&self.oldest_needed.to_le_bytes());
        out[40..44].copy_from_slice(&self.frames.to_le_bytes());
        out[44..48].copy_from_slice(&self.directory_crc.to_le_bytes());
        out[48..56].copy_from_slice(&self.opening.to_le_bytes());
        let sum = crc(seed, &out[8..]);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The header at the front of `bytes`, if one of this use is there.
    pub(crate) fn decode(bytes: &[u8], seed: u32) -> Option<Self> {
        let mut b = checked(bytes, RECORD_MAGIC, seed, RECORD_HEADER_BYTES)?;
        Some(Self {
            seq: b.get_u64_le(),
            length: b.get_u64_le(),
            durable_through: b.get_u64_le(),
            oldest_needed: b.get_u64_le(),
            frames: b.get_u32_le(),
            directory_crc: b.get_u32_le(),
            opening: b.get_u64_le(),
        })
    }

    /// Bytes of header and directory.
    pub(crate) fn front_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.frames) * DIRECTORY_ITEM_BYTES as u64
    }
}

/// One item of a record's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryItem {
    pub(crate) group: GroupId,
    /// Where the frame starts, in bytes from the record's start.
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

impl DirectoryItem {
    pub(crate) fn encode(&self) -> FooterItem {
        footer_item(self.group.0, self.offset, self.length)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let (group, offset, length) = take_footer_item(bytes);
        Self { group: GroupId(group), offset, length }
    }
}

/// The front of a footer: the segment is full, and all its records are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FooterHeader {
    /// The last record of the segment.
    pub(crate) last_seq: u64,
    /// Header and body, in bytes, without the padding.
    pub(crate) length: u64,
    /// The use in which the journal goes on; its header block was durable before this footer was written.
    pub(crate) next_use_id: u64,
    pub(crate) groups: u32,
    pub(crate) frames: u32,
    pub(crate) body_crc: u32,
    /// The opening of the store that wrote it.
    pub(crate) opening: u64,
    /// How many openings have records in the segment.
    pub(crate) openings: u32,
    /// Bytes that say what the groups' frames come to.
    pub(crate) tally_bytes: u32,
}

impl FooterHeader {
    pub(crate) fn encode(&self, seed: u32) -> [u8; FOOTER_HEADER_BYTES] {
        let mut out = [0; FOOTER_HEADER_BYTES];
        out[..4].copy_from_slice(&FOOTER_MAGIC);
        out[8..16].copy_from_slice(&self.last_seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.length.to_le_bytes());
        out[24..32].copy_from_slice(&self.next_use_id.to_le_bytes());
        out[32..36].copy_from_slice(&self.groups.to_le_bytes());
        out[36..40].copy_from_slice(&self.frames.to_le_bytes());
        out[40..44].copy_from_slice(&self.body_crc.to_le_bytes());
        out[44..52].copy_from_slice(&self.opening.to_le_bytes());
        out[52..56].copy_from_slice(&self.openings.to_le_bytes());
        out[56..60].copy_from_slice(&self.tally_bytes.to_le_bytes());
        let sum = crc(seed, &out[8..]);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The header at the front of `bytes`, if one of this use is there.
    pub(crate) fn decode(bytes: &[u8], seed: u32) -> Option<Self> {
        let mut b = checked(bytes, FOOTER_MAGIC, seed, FOOTER_HEADER_BYTES)?;
        Some(Self {
            last_seq: b.get_u64_le(),
            length: b.get_u64_le(),
            next_use_id: b.get_u64_le(),
            groups: b.get_u32_le(),
            frames: b.get_u32_le(),
            body_crc: b.get_u32_le(),
            opening: b.get_u64_le(),
            openings: b.get_u32_le(),
            tally_bytes: b.get_u32_le(),
        })
    }

    /// Bytes of the header and of all that it says is behind it.
    pub(crate) fn bytes(&self) -> u64 {
        let items = [self.groups, self.frames, self.openings].map(u64::from);
        let items = items.iter().sum::<u64>() * FOOTER_ITEM_BYTES as u64;
        FOOTER_HEADER_BYTES as u64 + items + u64::from(self.tally_bytes)
    }

    /// Where in the body the tallies are: behind the lists of groups and frames.
    pub(crate) fn tallies(&self) -> std::ops::Range<usize> {
        let from = (self.groups as usize + self.frames as usize) * FOOTER_ITEM_BYTES;
        from..from + self.tally_bytes as usize
    }
}

/// An item of a footer, or of a directory.
pub(crate) type FooterItem = [u8; FOOTER_ITEM_BYTES];
const _: () = assert!(FOOTER_ITEM_BYTES == DIRECTORY_ITEM_BYTES);

/// A group in a footer: its items in the footer's list of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FooterGroup {
    pub(crate) group: GroupId,
    pub(crate) at: u32,
    pub(crate) count: u32,
}

impl FooterGroup {
    pub(crate) fn encode(&self) -> FooterItem {
        footer_item(self.group.0, self.at, self.count)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let (group, at, count) = take_footer_item(bytes);
        Self { group: GroupId(group), at, count }
    }
}

/// Where a frame with entries lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameAt {
    /// The index of its first entry.
    pub(crate) first: Index,
    /// In bytes from the segment's start.
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

impl FrameAt {
    pub(crate) fn encode(&self) -> FooterItem {
        footer_item(self.first.0, self.offset, self.length)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let (first, offset, length) = take_footer_item(bytes);
        Self { first: Index(first), offset, length }
    }
}

/// From where on the records of a segment were written under which opening of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FooterOpening {
    pub(crate) opening: u64,
    /// In bytes from the segment's start.
    pub(crate) offset: u32,
}

impl FooterOpening {
    pub(crate) fn encode(&self) -> FooterItem {
        footer_item(self.opening, self.offset, 0)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let (opening, offset, _) = take_footer_item(bytes);
        Self { opening, offset }
    }
}

/// Bytes 8.. of a header, if magic and checksum are those of this use.
fn checked(bytes: &[u8], magic: [u8; 4], seed: u32, len: usize) -> Option<&[u8]> {
    if bytes.len() < len || bytes[..4] != magic {
        return None;
    }
    let sum = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
    (sum == crc(seed, &bytes[8..len])).then_some(&bytes[8..len])
}

fn footer_item(a: u64, b: u32, c: u32) -> FooterItem {
    (u128::from(a) | u128::from(b) << 64 | u128::from(c) << 96).to_le_bytes()
}

fn take_footer_item(mut bytes: &[u8]) -> (u64, u32, u32) {
    (bytes.get_u64_le(), bytes.get_u32_le(), bytes.get_u32_le())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader =
        SegmentHeader { store: StoreId(1 << 100), host: HostId(3), use_number: 7, use_id: 0xdead_beef, first_seq: 42 };

    #[test]
    fn a_segment_header_reads_back_and_notices_every_flipped_bit() {
        let mut bytes = Vec::new();
        HEADER.encode(&mut bytes);
        assert_eq!(bytes.len() as u64, BLOCK);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(HEADER));
        for bit in 0..SEGMENT_HEADER_BYTES * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(SegmentHeader::decode(&bad), Ok(HEADER), "bit {bit}");
        }
    }

    #[test]
    fn a_record_header_of_another_use_is_not_one() {
        let record = RecordHeader {
            seq: 9,
            length: 5000,
            durable_through: 8,
            oldest_needed: 1,
            frames: 3,
            directory_crc: 77,
            opening: 1 << 63,
        };
        let other = SegmentHeader { use_id: HEADER.use_id + 1, ..HEADER };
        let bytes = record.encode(HEADER.seed());
        assert_eq!(RecordHeader::decode(&bytes, HEADER.seed()), Some(record));
        assert_eq!(RecordHeader::decode(&bytes, other.seed()), None);
        assert_eq!(FooterHeader::decode(&bytes, HEADER.seed()), None);
    }

    #[test]
    fn a_footer_header_reads_back() {
        let footer = FooterHeader {
            last_seq: 8,
            length: 96,
            next_use_id: 5,
            groups: 1,
            frames: 1,
            body_crc: 9,
            opening: 6,
            openings: 2,
            tally_bytes: 64,
        };
        assert_eq!(FooterHeader::decode(&footer.encode(1), 1), Some(footer));
        assert_eq!(FooterHeader::decode(&footer.encode(1), 2), None);
    }
}
