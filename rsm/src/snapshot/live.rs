//! A snapshot that is sent as it is made, without a file on the sender's disk: how an on-disk state machine brings a
//! follower up to date.

use super::encoder::Encoder;
use super::error::SnapshotError;
use super::format::SnapshotHeader;
use super::jobs::{Watched, run_user_code};
use super::transfer::{Chunk, TransferKey};
use crate::machine::{SavePart, SaveView};
use bytes::BytesMut;
use longboat_io::Progress;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that a state machine may write in one part: bounds the memory of a transfer.
const PART_BYTES_MAX: usize = 32 << 20;

/// A snapshot being made and sent. It holds a chunk and what the state machine wrote beyond it in one part.
///
/// It can't go back: a transfer that lost a chunk restarts with a new view.
pub struct LiveSnapshot {
    view: Box<dyn SaveView>,
    encoder: Encoder,
    header: SnapshotHeader,
    /// Made and not sent.
    made: BytesMut,
    offset: u64,
    whole: bool,
    sent: bool,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
}

/// What a state machine writes to: blocks in memory, until `stop` is set.
struct Blocks<'a> {
    encoder: &'a mut Encoder,
    made: &'a mut BytesMut,
    stop: &'a AtomicBool,
}

impl io::Write for Blocks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other(SnapshotError::Stopped));
        }
        if self.made.len() > PART_BYTES_MAX {
            let text = format!("a part of a live snapshot has more than {PART_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        self.encoder.write(bytes, self.made).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LiveSnapshot {
    /// Begins to send what `view` shows. Once `stop` is set, the next chunk fails.
    ///
    /// # Errors
    /// When the header is too large.
    pub fn new(view: Box<dyn SaveView>, header: SnapshotHeader, stop: Arc<AtomicBool>) -> Result<Self, SnapshotError> {
        let mut made = BytesMut::new();
        let encoder = Encoder::begin(&header, &mut made)?;
        let progress = Arc::default();
        Ok(Self { view, encoder, header, made, offset: 0, whole: false, sent: false, stop, progress })
    }

    /// Shows whether the state machine's view moves on.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// What is being sent. Its length is not known before its end.
    pub fn key(&self) -> TransferKey {
        TransferKey { group: self.header.group, pos: self.header.meta.pos, total_bytes: 0 }
    }

    /// What the file will say about itself.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The next chunk, of at most `bytes_max` bytes. `None` after the last.
    ///
    /// # Errors
    /// The state machine's, or [`SnapshotError::Stopped`]. It is over then.
    pub fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Chunk>, SnapshotError> {
        assert!(bytes_max > 0, "a chunk has at least one byte");
        if self.sent {
            return Ok(None);
        }
        while !self.whole && self.made.len() <= bytes_max {
            self.make_part()?;
        }
        let data = self.made.split_to(self.made.len().min(bytes_max)).freeze();
        let offset = self.offset;
        self.offset += data.len() as u64;
        self.sent = self.whole && self.made.is_empty();
        Ok(Some(Chunk { offset, data, last: self.sent }))
    }

    fn make_part(&mut self) -> Result<(), SnapshotError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(SnapshotError::Stopped);
        }
        let Self { view, encoder, made, stop, progress, .. } = self;
        let mut part = SavePart::Done;
        let mut blocks = Blocks { encoder, made, stop };
        let written = run_user_code(progress, || {
            part = view.write_part(&mut Watched { inner: &mut blocks, progress })?;
            Ok(())
        });
        if self.stop.load(Ordering::Relaxed) {
            return Err(SnapshotError::Stopped);
        }
        written?;
        if part == SavePart::Done {
            let footer = self.encoder.end(&mut self.made)?;
            self.made.extend_from_slice(&footer);
            self.whole = true;
        }
        Ok(())
    }
}

impl std::fmt::Debug for LiveSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveSnapshot").field("key", &self.key()).field("offset", &self.offset).finish_non_exhaustive()
    }
}
