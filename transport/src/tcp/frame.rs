//! The header of a frame on a stream.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | magic, `LB` |
//! | 2 | 1 | type, 1: a frame for the sink |
//! | 3 | 1 | wire version, the one agreed on in the handshake |
//! | 4 | 4 | length of the body |
//! | 8 | 4 | how many of the body's first bytes are checksummed |
//! | 12 | 4 | CRC-32 of those |
//! | 16 | 4 | CRC-32 of bytes 0..16 |
//!
//! The header's own checksum means that a length is believed only after it has been checked, and that garbage is noticed at once.

use crate::wire::FRAME_BYTES_LIMIT;
use bytes::Bytes;

pub(super) const FRAME_HEADER_BYTES: usize = 20;
const MAGIC: [u8; 2] = *b"LB";
const TYPE_FRAME: u8 = 1;

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("frame header checksum mismatch")]
    HeaderChecksum,
    #[error("frame magic {0:?}")]
    Magic([u8; 2]),
    #[error("frame type {0} is not known")]
    Type(u8),
    #[error("frame of wire version {found} on a connection of version {agreed}")]
    Version { found: u8, agreed: u8 },
    #[error("frame of {0} bytes, the limit is {FRAME_BYTES_LIMIT}")]
    Oversized(usize),
    #[error("frame checksum over {checked} of {len} bytes")]
    Lengths { checked: usize, len: usize },
    #[error("frame checksum mismatch")]
    Checksum,
}

/// What the header says about the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) len: usize,
    checked: usize,
    crc: u32,
}

impl FrameHeader {
    /// The header of the frame with this first part and this length in all.
    pub(super) fn encode(version: u8, first: &[u8], len: usize) -> [u8; FRAME_HEADER_BYTES] {
        let mut header = [0; FRAME_HEADER_BYTES];
        header[0..2].copy_from_slice(&MAGIC);
        header[2] = TYPE_FRAME;
        header[3] = version;
        header[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        header[8..12].copy_from_slice(&(first.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&crc32fast::hash(first).to_le_bytes());
        let crc = crc32fast::hash(&header[..16]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// Reads the header at the front of `bytes`, which has at least [`FRAME_HEADER_BYTES`].
    pub(super) fn decode(bytes: &[u8], version: u8) -> Result<Self, FrameError> {
        let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        // The magic first: it tells a stranger from a damaged frame.
        if bytes[0..2] != MAGIC {
            return Err(FrameError::Magic([bytes[0], bytes[1]]));
        }
        if crc32fast::hash(&bytes[..16]) != le32(16) {
            return Err(FrameError::HeaderChecksum);
        }
        if bytes[2] != TYPE_FRAME {
            return Err(FrameError::Type(bytes[2]));
        }
        if bytes[3] != version {
            return Err(FrameError::Version { found: bytes[3], agreed: version });
        }
        let (len, checked) = (le32(4) as usize, le32(8) as usize);
        if len > FRAME_BYTES_LIMIT {
            return Err(FrameError::Oversized(len));
        }
        if checked > len || len == 0 {
            return Err(FrameError::Lengths { checked, len });
        }
        Ok(Self { len, checked, crc: le32(12) })
    }

    /// Checks a whole body.
    pub(super) fn check(&self, body: &Bytes) -> Result<(), FrameError> {
        if crc32fast::hash(&body[..self.checked]) == self.crc { Ok(()) } else { Err(FrameError::Checksum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_checks_its_body() {
        let header = FrameHeader::encode(1, b"first", 9);
        let back = FrameHeader::decode(&header, 1).expect("valid");
        assert_eq!((back.len, back.checked), (9, 5));
        assert_eq!(back.check(&Bytes::from_static(b"firstrest")), Ok(()));
        assert_eq!(back.check(&Bytes::from_static(b"fursTrest")), Err(FrameError::Checksum));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let header = FrameHeader::encode(1, b"first", 9);
        for bit in 0..header.len() * 8 {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bad, 1).is_err(), "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn lengths_and_versions_are_checked_even_when_the_checksum_is_good() {
        let oversized = FrameHeader::encode(1, b"x", FRAME_BYTES_LIMIT + 1);
        assert_eq!(FrameHeader::decode(&oversized, 1), Err(FrameError::Oversized(FRAME_BYTES_LIMIT + 1)));
        let short = FrameHeader::encode(1, b"first", 4);
        assert_eq!(FrameHeader::decode(&short, 1), Err(FrameError::Lengths { checked: 5, len: 4 }));
        let empty = FrameHeader::encode(1, b"", 0);
        assert_eq!(FrameHeader::decode(&empty, 1), Err(FrameError::Lengths { checked: 0, len: 0 }));
        let other = FrameHeader::encode(2, b"x", 1);
        assert_eq!(FrameHeader::decode(&other, 1), Err(FrameError::Version { found: 2, agreed: 1 }));
    }
}
