//! A snapshot file on its way from host to host: read in chunks at the sender, checked and written at the receiver.

use super::error::SnapshotError;
use super::format::{FOOTER_BYTES, SnapshotHeader};
use super::publish::{Place, Publication, TempDir};
use super::store::{SnapshotStore, check_place};
use super::verify::Verifier;
use bytes::Bytes;
use longboat_io::{DiskFile, JobState};
use longboat_raft::{GroupId, Index, LogPos, ReplicaId};

/// What a transfer is of: told by the sender with every chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferKey {
    /// The group.
    pub group: GroupId,
    /// The place in the log that the snapshot covers.
    pub pos: LogPos,
    /// The size of the file.
    pub total_bytes: u64,
}

/// A part of a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its bytes.
    pub data: Bytes,
    /// Whether it ends the file.
    pub last: bool,
}

/// A snapshot file being sent. Holds one chunk at a time; the file stays readable while it is open, even if it is removed.
#[derive(Debug)]
pub struct OutgoingSnapshot {
    file: Box<dyn DiskFile>,
    key: TransferKey,
    header: SnapshotHeader,
    offset: u64,
    /// Checks what is sent, so that damage is found here and not blamed on the way.
    verifier: Verifier,
}

impl OutgoingSnapshot {
    /// Opens the replica's snapshot at `pos.index`.
    ///
    /// # Errors
    /// When it is not there, is damaged, or is not what its name says.
    pub fn open(
        store: &SnapshotStore,
        group: GroupId,
        replica: ReplicaId,
        index: Index,
    ) -> Result<Self, SnapshotError> {
        let reader = store.open(group, replica, index)?;
        let header = reader.header().clone();
        let key = TransferKey { group, pos: header.meta.pos, total_bytes: reader.file_bytes() };
        Ok(Self { file: reader.into_file(), key, header, offset: 0, verifier: Verifier::new() })
    }

    /// What is being sent.
    pub fn key(&self) -> TransferKey {
        self.key
    }

    /// What the file says about itself.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The next chunk, of at most `bytes_max` bytes. `None` after the last.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Chunk>, SnapshotError> {
        assert!(bytes_max > 0, "a chunk has at least one byte");
        let bytes = (self.key.total_bytes - self.offset).min(bytes_max as u64) as usize;
        if bytes == 0 {
            return Ok(None);
        }
        let mut data = vec![0; bytes];
        self.file.read_exact_at(&mut data, self.offset)?;
        self.verifier.feed(&data)?;
        let offset = self.offset;
        self.offset += bytes as u64;
        let last = self.offset == self.key.total_bytes;
        if last && !self.verifier.is_whole() {
            return Err(SnapshotError::corrupt("the file changed while it was sent"));
        }
        Ok(Some(Chunk { offset, data: Bytes::from(data), last }))
    }
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It was new, or in part.
    Taken,
    /// All of it was here already.
    Duplicate,
}

/// A snapshot file being received. Dropping it before it is done removes what was written.
///
/// Every byte is checked as it arrives. The last bytes, the footer, are written only by the call that makes the file
/// durable, and that is made only after all of it was found good.
#[derive(Debug)]
pub struct IncomingSnapshot {
    key: TransferKey,
    verifier: Verifier,
    /// The bytes of the file's end that have arrived, kept back until the file is made durable.
    footer: Vec<u8>,
    state: Incoming,
}

#[derive(Debug)]
enum Incoming {
    Receiving { place: Place, temp: TempDir, file: Box<dyn DiskFile> },
    Publishing(Box<Publication>),
    Failed,
}

impl IncomingSnapshot {
    /// Begins to receive.
    ///
    /// # Errors
    /// When files can't be made, or the file is said to be too small to be a snapshot.
    pub fn begin(store: &SnapshotStore, replica: ReplicaId, key: TransferKey) -> Result<Self, SnapshotError> {
        if key.total_bytes <= FOOTER_BYTES as u64 {
            return Err(SnapshotError::corrupt(format!("file of {} bytes", key.total_bytes)));
        }
        let (place, temp, file) = store.begin_file(key.group, replica, key.pos.index)?;
        let state = Incoming::Receiving { place, temp, file };
        Ok(Self { key, verifier: Verifier::new(), footer: Vec::with_capacity(FOOTER_BYTES), state })
    }

    /// What is being received.
    pub fn key(&self) -> TransferKey {
        self.key
    }

    /// The first byte that is missing.
    pub fn received(&self) -> u64 {
        self.verifier.bytes()
    }

    /// Whether all bytes are here and found good.
    pub fn is_complete(&self) -> bool {
        self.received() == self.key.total_bytes && self.verifier.is_whole()
    }

    /// What the file says about itself, once its header is here.
    pub fn header(&self) -> Option<&SnapshotHeader> {
        self.verifier.header()
    }

    /// Takes a chunk. What is here already is dropped.
    ///
    /// # Errors
    /// [`SnapshotError::Gap`] changes nothing. Any other error is final: the file is damaged, is not the one that was
    /// announced, or can't be written; what was received is removed.
    pub fn append(&mut self, offset: u64, data: &[u8]) -> Result<Appended, SnapshotError> {
        let received = self.received();
        if offset > received {
            return Err(SnapshotError::Gap { expected: received, found: offset });
        }
        let known = received - offset;
        if known >= data.len() as u64 {
            return Ok(Appended::Duplicate);
        }
        let taken = self.take(received, &data[known as usize..]);
        if taken.is_err() {
            self.state = Incoming::Failed;
        }
        taken.map(|()| Appended::Taken)
    }

    fn take(&mut self, offset: u64, data: &[u8]) -> Result<(), SnapshotError> {
        let Incoming::Receiving { file, .. } = &mut self.state else {
            return Err(SnapshotError::corrupt("bytes for a transfer that has ended"));
        };
        let bytes = data.len() as u64;
        if bytes > self.key.total_bytes - offset {
            return Err(SnapshotError::corrupt("more bytes than were announced"));
        }
        let header_known = self.verifier.header().is_some();
        self.verifier.feed(data)?;
        if !header_known && let Some(header) = self.verifier.header() {
            check_place(header, self.key.group, self.key.pos.index)?;
            if header.meta.pos.term != self.key.pos.term {
                return Err(SnapshotError::corrupt("term differs from the one that was announced"));
            }
        }
        let footer_offset = self.key.total_bytes - FOOTER_BYTES as u64;
        let body = data.len().min(footer_offset.saturating_sub(offset) as usize);
        if body > 0 {
            file.write_all_at(&data[..body], offset)?;
        }
        self.footer.extend_from_slice(&data[body..]);
        if offset + bytes == self.key.total_bytes && !self.verifier.is_whole() {
            return Err(SnapshotError::corrupt("file ends before its footer"));
        }
        Ok(())
    }

    /// Makes a complete file durable and gives it its name, a step at a time: see [`Publication::step`].
    ///
    /// # Errors
    /// The first failure is final; what was received is removed.
    pub fn finish(&mut self) -> Result<JobState, SnapshotError> {
        if !self.is_complete() {
            return Err(SnapshotError::corrupt(format!(
                "{} of {} bytes were received",
                self.received(),
                self.key.total_bytes
            )));
        }
        self.start_publication();
        let Incoming::Publishing(publication) = &mut self.state else {
            return Err(SnapshotError::corrupt("bytes for a transfer that has ended"));
        };
        publication.step()
    }

    fn start_publication(&mut self) {
        if !matches!(self.state, Incoming::Receiving { .. }) {
            return;
        }
        if let Incoming::Receiving { place, temp, file } = std::mem::replace(&mut self.state, Incoming::Failed) {
            let header = self.verifier.header().expect("a whole file has a header").clone();
            let footer = self.footer[..].try_into().expect("the end of a whole file is its footer");
            let footer_offset = self.key.total_bytes - FOOTER_BYTES as u64;
            let publication = Publication::new(place, temp, file, header, footer_offset, footer);
            self.state = Incoming::Publishing(Box::new(publication));
        }
    }
}
