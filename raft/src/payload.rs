//! How the payload of an entry is written: the codec byte of its descriptor.
//!
//! Must not know: how anything is compressed. That is the business of who proposes and who applies.

/// How an entry's payload is written. The replica where a command is proposed chooses; all others read what they find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PayloadCodec {
    /// As it is.
    #[default]
    Plain = 0,
    /// Its length (4 bytes, little-endian), and then an LZ4 block.
    Lz4 = 1,
    /// Its length (4 bytes, little-endian), and then a Zstandard frame.
    Zstd = 2,
}

impl PayloadCodec {
    /// The codec with this number. Unknown ones are refused: what can't be read can't be applied, and is never skipped.
    pub const fn from_u8(codec: u8) -> Option<Self> {
        match codec {
            0 => Some(Self::Plain),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}
