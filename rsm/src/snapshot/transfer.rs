//! A snapshot file on its way from host to host: read in chunks at the sender, checked and written at the receiver.

use super::ahead::Ahead;
use super::encoder::Encoder;
use super::error::SnapshotError;
use super::format::{Content, FOOTER_BYTES, SnapshotHeader};
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
    /// The size of the file; zero when the sender does not know it, because it makes the file as it sends it.
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

/// Where the bytes of an outgoing file come from.
#[derive(Debug)]
enum Source {
    File(Box<dyn DiskFile>),
    /// A file without blocks, made on the spot.
    Bytes(Bytes),
}

/// A snapshot file being sent. Holds one chunk at a time; the file stays readable while it is open, even if it is removed.
#[derive(Debug)]
pub struct OutgoingSnapshot {
    file: Source,
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
        Ok(Self { file: Source::File(reader.into_file()), key, header, offset: 0, verifier: Verifier::new() })
    }

    /// A snapshot for a witness: what `header` says, and no state.
    ///
    /// # Errors
    /// When the header is too large.
    pub fn witness(header: &SnapshotHeader) -> Result<Self, SnapshotError> {
        let header =
            SnapshotHeader { content: Content::Witness, session_bytes: 0, last_command: Index::ZERO, ..header.clone() };
        let mut bytes = Vec::new();
        let footer = Encoder::begin(&header, &mut bytes)?.end(&mut bytes)?;
        bytes.extend_from_slice(&footer);
        let key = TransferKey { group: header.group, pos: header.meta.pos, total_bytes: bytes.len() as u64 };
        Ok(Self { file: Source::Bytes(Bytes::from(bytes)), key, header, offset: 0, verifier: Verifier::new() })
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
        let data = match &self.file {
            Source::File(file) => {
                let mut data = vec![0; bytes];
                file.read_exact_at(&mut data, self.offset).map_err(SnapshotError::reading)?;
                Bytes::from(data)
            }
            Source::Bytes(all) => all.slice(self.offset as usize..self.offset as usize + bytes),
        };
        self.verifier.feed(&data)?;
        let offset = self.offset;
        self.offset += bytes as u64;
        let last = self.offset == self.key.total_bytes;
        if last && !self.verifier.is_whole() {
            return Err(SnapshotError::corrupt("the file changed while it was sent"));
        }
        Ok(Some(Chunk { offset, data, last }))
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
    /// Keeps back the file's end until the file is made durable.
    verifier: Verifier,
    state: Incoming,
}

#[derive(Debug)]
enum Incoming {
    Receiving { place: Place, temp: TempDir, file: Box<dyn DiskFile>, ahead: Ahead },
    Publishing(Box<Publication>),
    Failed,
}

impl IncomingSnapshot {
    /// Begins to receive.
    ///
    /// # Errors
    /// When files can't be made, or the file is said to be too small to be a snapshot.
    pub fn begin(store: &SnapshotStore, replica: ReplicaId, key: TransferKey) -> Result<Self, SnapshotError> {
        if (1..=FOOTER_BYTES as u64).contains(&key.total_bytes) {
            return Err(SnapshotError::corrupt(format!("file of {} bytes", key.total_bytes)));
        }
        let (place, temp, file) = store.begin_file(key.group, replica, key.pos.index)?;
        let state = Incoming::Receiving { place, temp, file, ahead: Ahead::default() };
        Ok(Self { key, verifier: Verifier::new(), state })
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
        self.verifier.is_whole() && matches!(self.key.total_bytes, total if total == 0 || total == self.received())
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
        let Incoming::Receiving { file, ahead, .. } = &mut self.state else {
            return Err(SnapshotError::corrupt("bytes for a transfer that has ended"));
        };
        let (bytes, total) = (data.len() as u64, self.key.total_bytes);
        if total > 0 && bytes > total - offset {
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
        // What may yet turn out to be the footer's first bytes is written with the rest: a part of a footer is none.
        let body =
            self.verifier.footer_offset().map_or(data.len(), |at| data.len().min(at.saturating_sub(offset) as usize));
        if body > 0 {
            file.write_all_at(&data[..body], offset)?;
            ahead.wrote(&**file, offset + body as u64);
        }
        if total > 0 && offset + bytes == total && !self.verifier.is_whole() {
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
        if let Incoming::Receiving { place, temp, file, .. } = std::mem::replace(&mut self.state, Incoming::Failed) {
            let header = self.verifier.header().expect("a whole file has a header").clone();
            let footer = self.verifier.footer().expect("the end of a whole file is its footer");
            let footer_offset = self.received() - FOOTER_BYTES as u64;
            let publication = Publication::new(place, temp, file, header, footer_offset, footer);
            self.state = Incoming::Publishing(Box::new(publication));
        }
    }
}
