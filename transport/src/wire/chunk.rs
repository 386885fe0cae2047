//! Snapshot chunks and the answers to them. They travel on [`crate::Lane::Snapshot`], one to a frame.

use super::*;
use bytes::{BufMut, Bytes, BytesMut};
use longboat_raft::{GroupEpoch, GroupId, ReplicaId, SnapshotMeta, Term};
use smallvec::smallvec;

/// The fixed fields of a chunk: kind, version, flags, zero, checksum of the data (4), group, epoch, from, to, term, stream,
/// offset, total, length of the metadata (4), length of the data (4).
const CHUNK_FIXED_BYTES: usize = 80;
/// The fixed fields of a status: kind, version, outcome, zero (5), group, epoch, from, to, term, stream, offset.
const STATUS_BYTES: usize = 64;

const CHUNK_LAST: u8 = 1;
const CHUNK_META: u8 = 2;

/// A piece of a snapshot on its way to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The group that the snapshot is of.
    pub group: GroupId,
    /// The epoch that the sender's group is in.
    pub epoch: GroupEpoch,
    /// The replica that sends.
    pub from: ReplicaId,
    /// The replica that it is for.
    pub to: ReplicaId,
    /// The sender's term.
    pub term: Term,
    /// What the snapshot stands for: in the first chunk of a stream, and only there.
    pub meta: Option<Box<SnapshotMeta>>,
    /// The sender's number of this stream.
    pub stream_id: u64,
    /// Where `data` starts in the snapshot, in bytes.
    pub offset: u64,
    /// Bytes of the whole snapshot; 0 while the sender does not know it.
    pub total: u64,
    /// The piece.
    pub data: Bytes,
    /// Whether the snapshot ends with this piece.
    pub last: bool,
}

/// What became of a stream of chunks, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChunkOutcome {
    /// Everything before `offset` was taken; go on.
    Accepted = 0,
    /// The stream was refused: end it. A later snapshot may be taken.
    Refused = 1,
    /// The whole snapshot is durable at the receiver.
    Done = 2,
    /// The receiver has no room for another stream now: what was sent is dropped, ask again.
    Busy = 3,
}

/// The receiver's answer to the sender of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkStatus {
    /// The group that the snapshot is of.
    pub group: GroupId,
    /// The epoch that the answering replica's group is in.
    pub epoch: GroupEpoch,
    /// The replica that answers.
    pub from: ReplicaId,
    /// The replica that sends the snapshot.
    pub to: ReplicaId,
    /// The answering replica's term; zero where it has none.
    pub term: Term,
    /// The stream that this is about.
    pub stream_id: u64,
    /// Bytes that were taken so far.
    pub offset: u64,
    /// What became of the stream.
    pub outcome: ChunkOutcome,
}

/// What travels on the snapshot lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotFrame {
    /// A piece of a snapshot.
    Chunk(Chunk),
    /// An answer to a stream.
    Status(ChunkStatus),
}

impl SnapshotFrame {
    /// Takes a frame of the snapshot lane apart. Chunk data shares the frame's memory.
    ///
    /// # Errors
    /// When the bytes are neither a chunk nor a status, or the data does not match its checksum.
    pub fn decode(frame: Bytes) -> Result<Self, WireError> {
        let mut fields = Fields(&frame);
        let (kind, version) = (fields.u8()?, fields.u8()?);
        if version != WIRE_VERSION {
            return Err(WireError::Version { found: version });
        }
        match kind {
            BODY_CHUNK => Ok(Self::Chunk(decode_chunk(frame)?)),
            BODY_CHUNK_STATUS => Ok(Self::Status(decode_status(&frame)?)),
            kind => Err(WireError::Kind { what: "snapshot frame", kind }),
        }
    }
}

impl Chunk {
    /// The parts of the frame that carries this chunk. The data is not copied.
    ///
    /// Panics when the data is longer than [`CHUNK_DATA_BYTES_MAX`]: a caller's mistake.
    pub fn encode(&self) -> Parts {
        assert!(self.data.len() <= CHUNK_DATA_BYTES_MAX, "chunk of {} bytes", self.data.len());
        let meta = self.meta.as_deref().map(meta::encode);
        let meta_len = meta.as_ref().map_or(0, Vec::len);
        let mut head = BytesMut::with_capacity(CHUNK_FIXED_BYTES + meta_len);
        let last = if self.last { CHUNK_LAST } else { 0 };
        let has_meta = if meta.is_some() { CHUNK_META } else { 0 };
        head.put_slice(&[BODY_CHUNK, WIRE_VERSION, last | has_meta, 0]);
        head.put_u32_le(crc32fast::hash(&self.data));
        let ids = [self.group.0, self.epoch.0, self.from.0, self.to.0, self.term.0];
        for field in ids.into_iter().chain([self.stream_id, self.offset, self.total]) {
            head.put_u64_le(field);
        }
        head.put_u32_le(meta_len as u32);
        head.put_u32_le(self.data.len() as u32);
        head.put_slice(meta.as_deref().unwrap_or_default());
        if self.data.is_empty() { smallvec![head.freeze()] } else { smallvec![head.freeze(), self.data.clone()] }
    }
}

fn decode_chunk(frame: Bytes) -> Result<Chunk, WireError> {
    let mut fields = Fields(&frame);
    fields.u16()?;
    let flags = fields.u8()?;
    fields.u8()?;
    let crc = fields.u32()?;
    let (group, epoch) = (GroupId(fields.u64()?), GroupEpoch(fields.u64()?));
    let (from, to, term) = (ReplicaId(fields.u64()?), ReplicaId(fields.u64()?), Term(fields.u64()?));
    let (stream_id, offset, total) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (meta_len, data_len) = (fields.u32()? as usize, fields.u32()? as usize);
    if data_len > CHUNK_DATA_BYTES_MAX {
        return Err(WireError::Malformed("chunk data above its bound"));
    }
    if (flags & CHUNK_META == 0) != (meta_len == 0) {
        return Err(WireError::Malformed("chunk metadata and its flag disagree"));
    }
    if offset.checked_add(data_len as u64).is_none() {
        return Err(WireError::Malformed("chunk offset overflow"));
    }
    let meta_bytes = fields.take(meta_len)?;
    let data_at = CHUNK_FIXED_BYTES + meta_len;
    fields.take(data_len)?;
    fields.end()?;
    let meta = if meta_len == 0 { None } else { Some(Box::new(meta::decode(meta_bytes)?)) };
    let data = frame.slice(data_at..);
    if crc32fast::hash(&data) != crc {
        return Err(WireError::ChunkChecksum);
    }
    let last = flags & CHUNK_LAST != 0;
    Ok(Chunk { group, epoch, from, to, term, meta, stream_id, offset, total, data, last })
}

impl ChunkStatus {
    /// The parts of the frame that carries this status.
    pub fn encode(&self) -> Parts {
        let mut head = BytesMut::with_capacity(STATUS_BYTES);
        head.put_slice(&[BODY_CHUNK_STATUS, WIRE_VERSION, self.outcome as u8, 0, 0, 0, 0, 0]);
        for field in [self.group.0, self.epoch.0, self.from.0, self.to.0, self.term.0, self.stream_id, self.offset] {
            head.put_u64_le(field);
        }
        smallvec![head.freeze()]
    }
}

fn decode_status(frame: &[u8]) -> Result<ChunkStatus, WireError> {
    let mut fields = Fields(frame);
    fields.u16()?;
    let outcome = match fields.u8()? {
        0 => ChunkOutcome::Accepted,
        1 => ChunkOutcome::Refused,
        2 => ChunkOutcome::Done,
        3 => ChunkOutcome::Busy,
        _ => return Err(WireError::Malformed("outcome of a chunk stream")),
    };
    fields.take(5)?;
    let status = ChunkStatus {
        group: GroupId(fields.u64()?),
        epoch: GroupEpoch(fields.u64()?),
        from: ReplicaId(fields.u64()?),
        to: ReplicaId(fields.u64()?),
        term: Term(fields.u64()?),
        stream_id: fields.u64()?,
        offset: fields.u64()?,
        outcome,
    };
    fields.end()?;
    Ok(status)
}
