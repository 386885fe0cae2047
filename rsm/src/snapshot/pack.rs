//! Compression of blocks. Every block stands on its own, so that it can be checked and read on its own.

use super::error::SnapshotError;
use super::format::{BLOCK_BYTES_MAX, Compression};
use std::io;

/// Snapshots are written once and read rarely: the fastest level.
const ZSTD_LEVEL: i32 = 1;

/// Compresses blocks of one file.
pub(crate) struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    compression: Compression,
    out: Vec<u8>,
}

impl Packer {
    pub(crate) fn new(compression: Compression) -> Result<Self, SnapshotError> {
        let zstd = match compression {
            Compression::Zstd => Some(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
            Compression::None | Compression::Lz4 => None,
        };
        Ok(Self { zstd, compression, out: Vec::new() })
    }

    /// The payload compressed; `None` when it is to be stored as it is.
    pub(crate) fn pack(&mut self, raw: &[u8]) -> Option<&[u8]> {
        let bound = match self.compression {
            Compression::None => return None,
            Compression::Lz4 => lz4_flex::block::get_maximum_output_size(raw.len()),
            Compression::Zstd => zstd::zstd_safe::compress_bound(raw.len()),
        };
        self.out.resize(bound, 0);
        let packed = match &mut self.zstd {
            Some(zstd) => zstd.compress_to_buffer(raw, &mut self.out[..]).ok()?,
            None => lz4_flex::block::compress_into(raw, &mut self.out).ok()?,
        };
        (packed < raw.len()).then(|| &self.out[..packed])
    }
}

/// Decompresses blocks of one file.
#[derive(Default)]
pub(crate) struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Unpacker {
    /// Replaces `out` by what `packed` stands for: exactly `raw` bytes, a length that was checked against the cap before.
    pub(crate) fn unpack(
        &mut self,
        compression: Compression,
        packed: &[u8],
        raw: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), SnapshotError> {
        assert!(raw <= BLOCK_BYTES_MAX, "block of {raw} bytes");
        out.clear();
        out.resize(raw, 0);
        let bytes = match compression {
            Compression::None => {
                return Err(SnapshotError::corrupt("a compressed block in a file without compression"));
            }
            Compression::Lz4 => lz4_flex::block::decompress_into(packed, out).map_err(io::Error::other),
            Compression::Zstd => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    slot => slot.insert(zstd::bulk::Decompressor::new()?),
                };
                zstd.decompress_to_buffer(packed, &mut out[..])
            }
        };
        match bytes {
            Ok(bytes) if bytes == raw => Ok(()),
            Ok(bytes) => Err(SnapshotError::corrupt(format!("a block of {bytes} bytes that should have {raw}"))),
            Err(error) => Err(SnapshotError::corrupt(format!("a block can't be decompressed: {error}"))),
        }
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}
