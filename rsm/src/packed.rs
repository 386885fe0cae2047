//! Compressed payloads of entries: made where a command is proposed, undone where it is applied or shown.
//!
//! Invariants: what is packed is smaller than what it stands for; what is unpacked is no larger than any proposal may be, which
//! is checked before memory is taken for it; bytes that are nothing packed are an error, and never a panic.

use crate::codec::CodecError;
use crate::snapshot::Compression;
use bytes::Bytes;
use longboat_raft::run::RUN_PAYLOAD_BYTES_MAX;
use longboat_raft::{EntryRef, PayloadCodec, plant};
use std::cell::RefCell;

/// Bytes that a payload may have unpacked: what a run has room for.
pub const UNPACKED_BYTES_MAX: usize = RUN_PAYLOAD_BYTES_MAX;
/// Payloads of fewer bytes are left as they are: there is next to nothing to gain.
pub const PACK_BYTES_MIN: usize = 64;
/// Bytes of the length in front.
const LENGTH_BYTES: usize = 4;
/// Commands are compressed on the way of a write: the fastest level.
const ZSTD_LEVEL: i32 = 1;

thread_local! {
    /// Contexts are large and slow to make.
    static ZSTD: RefCell<(Option<zstd::bulk::Compressor<'static>>, Option<zstd::bulk::Decompressor<'static>>)> =
        const { RefCell::new((None, None)) };
}

/// Payloads of a batch, each packed if that makes it smaller.
#[derive(Debug, Default)]
pub struct PackedBatch {
    bytes: Vec<u8>,
    /// The end of each in `bytes`, and how it is written.
    ends: Vec<(usize, PayloadCodec)>,
}

impl PackedBatch {
    /// Adds one.
    pub fn add(&mut self, compression: Compression, raw: &[u8]) {
        let from = self.bytes.len();
        let codec = if raw.len() < PACK_BYTES_MIN { None } else { pack(compression, raw, &mut self.bytes) };
        if codec.is_none() {
            self.bytes.truncate(from);
            self.bytes.extend_from_slice(raw);
        }
        self.ends.push((self.bytes.len(), codec.unwrap_or_default()));
    }

    /// The payloads, in the order in which they were added.
    pub fn payloads(&self) -> impl Iterator<Item = (PayloadCodec, &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|e| e.0));
        self.ends.iter().zip(starts).map(|(&(end, codec), start)| (codec, &self.bytes[start..end]))
    }
}

/// Appends the packed form to `out`, which is left longer or not if there is none: because it would not be smaller.
fn pack(compression: Compression, raw: &[u8], out: &mut Vec<u8>) -> Option<PayloadCodec> {
    let (codec, bound) = match compression {
        Compression::None => return None,
        Compression::Lz4 => (PayloadCodec::Lz4, lz4_flex::block::get_maximum_output_size(raw.len())),
        Compression::Zstd => (PayloadCodec::Zstd, zstd::zstd_safe::compress_bound(raw.len())),
    };
    let length = u32::try_from(raw.len()).ok().filter(|_| raw.len() <= UNPACKED_BYTES_MAX)?;
    out.extend_from_slice(&length.to_le_bytes());
    let from = out.len();
    out.resize(from + bound, 0);
    let packed = match codec {
        PayloadCodec::Lz4 => lz4_flex::block::compress_into(raw, &mut out[from..]).ok()?,
        _ => ZSTD.with_borrow_mut(|(zstd, _)| {
            let zstd = match zstd {
                Some(zstd) => zstd,
                none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()?),
            };
            zstd.compress_to_buffer(raw, &mut out[from..]).ok()
        })?,
    };
    out.truncate(from + packed);
    (LENGTH_BYTES + packed < raw.len() || plant::is("packed-though-longer")).then_some(codec)
}

/// What the entry's payload stands for; `None` when that is the payload itself.
///
/// # Errors
/// When it is not what its codec says, or stands for more than any proposal may have.
pub fn unpack(entry: &EntryRef<'_>) -> Result<Option<Bytes>, CodecError> {
    if entry.codec == PayloadCodec::Plain {
        return Ok(None);
    }
    let Some((length, packed)) = entry.payload.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(CodecError(format!("a packed payload of {} bytes", entry.payload.len())));
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > UNPACKED_BYTES_MAX && !plant::is("unpacked-without-bound") {
        return Err(CodecError(format!("a packed payload of {length} bytes, at most {UNPACKED_BYTES_MAX} are taken")));
    }
    let mut raw = vec![0; length];
    let unpacked = match entry.codec {
        PayloadCodec::Plain => unreachable!("it was looked at above"),
        PayloadCodec::Lz4 => lz4_flex::block::decompress_into(packed, &mut raw).map_err(|e| e.to_string()),
        PayloadCodec::Zstd => ZSTD.with_borrow_mut(|(_, zstd)| {
            let zstd = match zstd {
                Some(zstd) => zstd,
                none => none.insert(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?),
            };
            zstd.decompress_to_buffer(packed, &mut raw[..]).map_err(|e| e.to_string())
        }),
    };
    match unpacked {
        Ok(bytes) if bytes == length => Ok(Some(raw.into())),
        Ok(bytes) => Err(CodecError(format!("a packed payload of {bytes} bytes that should have {length}"))),
        Err(error) => Err(CodecError(format!("a payload can't be unpacked: {error}"))),
    }
}
