//! Writes a snapshot file block by block into a temporary directory.

use super::ahead::Ahead;
use super::encoder::{BlockSink, Encoder};
use super::error::SnapshotError;
use super::format::{Section, SnapshotHeader};
use super::publish::{Place, Publication, TempDir};
use longboat_io::disk::SharedDisk;
use longboat_io::{DiskFile, Throttle};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a user's file that are read at once.
const COPY_BYTES: usize = 256 << 10;

/// A snapshot file in the making. Dropping it removes what was written.
///
/// After an error every later write fails too, so that a state machine that ignores one can't publish a file with a hole.
#[derive(Debug)]
pub struct SnapshotWriter {
    place: Place,
    temp: TempDir,
    sink: FileSink,
    header: SnapshotHeader,
    encoder: Encoder,
    failed: bool,
    /// The first failure, until it is asked for: the state machine in between may hide it.
    failure: Option<SnapshotError>,
}

/// The file's end. A stop request ends it at the next piece, which is a block or the header of one.
#[derive(Debug)]
struct FileSink {
    file: Box<dyn DiskFile>,
    offset: u64,
    ahead: Ahead,
    stop: Arc<AtomicBool>,
    throttle: Option<Arc<Throttle>>,
}

impl BlockSink for FileSink {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        if self.stop.load(Ordering::Relaxed) && !longboat_raft::plant::is("save-not-stopped") {
            return Err(SnapshotError::Stopped);
        }
        if let Some(throttle) = &self.throttle {
            throttle.pay(bytes.len());
        }
        self.file.write_all_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        self.ahead.wrote(&*self.file, self.offset);
        Ok(())
    }
}

impl SnapshotWriter {
    pub(crate) fn new(
        place: Place,
        temp: TempDir,
        file: Box<dyn DiskFile>,
        header: SnapshotHeader,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, SnapshotError> {
        let mut sink =
            FileSink { file, offset: 0, ahead: Ahead::default(), stop, throttle: place.store.throttle.clone() };
        let encoder = Encoder::begin(&header, &mut sink)?;
        Ok(Self { place, temp, sink, header, encoder, failed: false, failure: None })
    }

    /// Writes the table of sessions, which comes before anything else. Its length is that in the header.
    pub(crate) fn write_sessions(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        assert_eq!(bytes.len() as u64, self.header.session_bytes, "the header was made with the table at hand");
        self.encoder.enter(Section::Sessions, &mut self.sink)?;
        self.encoder.write(bytes, &mut self.sink)?;
        self.encoder.enter(Section::State, &mut self.sink)
    }

    /// Adds a user's file, as long as it is now. State can't follow.
    pub(crate) fn write_file(
        &mut self,
        disk: &SharedDisk,
        named: &crate::files::NamedFile,
    ) -> Result<(), SnapshotError> {
        let file = disk.open(&named.path)?;
        let bytes = file.len()?;
        self.begin_file(named.id, bytes, &named.metadata)?;
        let mut buffer = vec![0; COPY_BYTES.min(bytes as usize)];
        let mut offset = 0;
        while offset < bytes {
            let part = &mut buffer[..(bytes - offset).min(COPY_BYTES as u64) as usize];
            file.read_exact_at(part, offset)?;
            self.write_file_part(part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Begins a user's file of this length. State can't follow.
    pub(crate) fn begin_file(&mut self, id: u64, bytes: u64, metadata: &[u8]) -> Result<(), SnapshotError> {
        let mut head = Vec::with_capacity(16 + metadata.len());
        head.extend_from_slice(&id.to_le_bytes());
        head.extend_from_slice(&bytes.to_le_bytes());
        head.extend_from_slice(metadata);
        self.encoder.enter(Section::FileHead, &mut self.sink)?;
        self.encoder.write(&head, &mut self.sink)?;
        self.encoder.enter(Section::FileData, &mut self.sink)
    }

    /// The next bytes of the file that was begun.
    pub(crate) fn write_file_part(&mut self, part: &[u8]) -> Result<(), SnapshotError> {
        self.encoder.write(part, &mut self.sink)
    }

    /// Ends the file. What it returns makes it durable and gives it its name, step by step.
    ///
    /// # Errors
    /// When a write failed, now or before, or a stop was asked for.
    pub fn finish(mut self) -> Result<Publication, SnapshotError> {
        if self.failed {
            return Err(self.take_failure().unwrap_or_else(failed_before));
        }
        let footer = self.encoder.end(&mut self.sink)?;
        Ok(Publication::new(self.place, self.temp, self.sink.file, self.header, self.sink.offset, footer))
    }

    /// The failure that writing came to, once.
    pub(crate) fn take_failure(&mut self) -> Option<SnapshotError> {
        self.failure.take()
    }
}

impl io::Write for SnapshotWriter {
    /// Takes all bytes, or fails.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other(failed_before()));
        }
        if let Err(error) = self.encoder.write(bytes, &mut self.sink) {
            let shown = io::Error::other(error.to_string());
            self.failed = true;
            self.failure = Some(error);
            return Err(shown);
        }
        Ok(bytes.len())
    }

    /// Does nothing: blocks are written when they are full, and all is made durable at the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed_before() -> SnapshotError {
    SnapshotError::Io(io::Error::other("an earlier write of this snapshot failed"))
}
