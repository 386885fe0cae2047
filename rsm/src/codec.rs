//! How commands become bytes in the log.

use crate::error::RequestError;
use bytes::{Bytes, BytesMut};
use std::ops::{Deref, Range};

/// The bytes of one log entry: borrowed, or shared without a copy on demand.
#[derive(Clone, Debug)]
pub struct Payload<'a> {
    bytes: &'a [u8],
    /// The memory that has them at this place, if it may be shared.
    memory: Option<(&'a Bytes, usize)>,
}

impl<'a> Payload<'a> {
    /// The part `range` of the memory that has a run's payload area.
    pub fn new(area: &'a Bytes, range: Range<usize>) -> Self {
        let at = range.start;
        Self { bytes: &area[range], memory: Some((area, at)) }
    }

    /// Bytes that are in nobody's memory for long.
    pub fn borrowed(bytes: &'a [u8]) -> Self {
        Self { bytes, memory: None }
    }

    /// The bytes as an owned handle that shares the log's memory; few bytes may be copied instead. What is shared keeps the
    /// whole run alive: copy what is kept for long.
    pub fn to_bytes(&self) -> Bytes {
        match self.memory {
            Some((memory, at)) => memory.slice(at..at + self.bytes.len()),
            None => Bytes::copy_from_slice(self.bytes),
        }
    }

    /// The bytes, for as long as the run is borrowed.
    pub fn as_slice(&self) -> &'a [u8] {
        self.bytes
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// A command can't be read back from its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("command can't be decoded: {0}")]
pub struct CodecError(pub String);

/// How the results of commands are kept for client sessions: as bytes that every replica has.
#[derive(Debug)]
pub struct OutputCodec<O> {
    encode: fn(&O, &mut BytesMut),
    decode: fn(Payload<'_>) -> Result<O, CodecError>,
}

impl<O> Clone for OutputCodec<O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for OutputCodec<O> {}

impl<O: Codec> OutputCodec<O> {
    /// By the result's own [`Codec`]. Its bytes must be the same on every replica, as the result is.
    pub fn new() -> Self {
        Self { encode: O::encode, decode: O::decode }
    }
}

impl<O: Codec> Default for OutputCodec<O> {
    fn default() -> Self {
        Self::new()
    }
}

impl<O> OutputCodec<O> {
    pub(crate) fn encode(&self, output: &O) -> Bytes {
        let mut out = BytesMut::new();
        (self.encode)(output, &mut out);
        // Without the spare room of a growing buffer: results are kept for long.
        Bytes::copy_from_slice(&out)
    }

    /// What a retry is answered. Bytes that are no result concern this one request: the state is what it should be.
    pub(crate) fn decode(&self, bytes: Bytes) -> Result<O, RequestError> {
        (self.decode)(Payload::new(&bytes, 0..bytes.len())).map_err(|e| RequestError::ResultUnreadable(e.to_string()))
    }
}

/// Turns commands into bytes and back.
///
/// `decode(encode(x)) == x` on every replica, whatever its version: the bytes are the replicated truth.
pub trait Codec: Sized + Send + 'static {
    /// Appends the command's bytes to `out`.
    fn encode(&self, out: &mut BytesMut);

    /// Reads a command.
    ///
    /// # Errors
    /// When the bytes are not a command. The replica then stops: it must not skip what others may apply.
    fn decode(payload: Payload<'_>) -> Result<Self, CodecError>;
}

impl Codec for Bytes {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(self);
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        Ok(payload.to_bytes())
    }
}

impl Codec for Vec<u8> {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(self);
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        Ok(payload.to_vec())
    }
}

impl Codec for String {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(self.as_bytes());
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        Self::from_utf8(payload.to_vec()).map_err(|e| CodecError(e.to_string()))
    }
}

impl Codec for () {
    fn encode(&self, _out: &mut BytesMut) {}

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        if payload.is_empty() { Ok(()) } else { Err(CodecError(format!("{} bytes, not none", payload.len()))) }
    }
}

impl Codec for u64 {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        let bytes = payload.as_slice().try_into().map_err(|_| CodecError(format!("{} bytes, not 8", payload.len())))?;
        Ok(Self::from_le_bytes(bytes))
    }
}
