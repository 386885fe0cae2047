//! Reading the heads of a sealed segment's frames, without what is in their runs.
//!
//! Settling needs what frames say of their groups, not the entries: it leaves those where they are, or reads the few that
//! are still kept. Of large frames only the heads are read, so that a segment of large payloads costs some thousand small
//! reads and not 64 MiB. Checksums of records, directories and frames are checked; those of runs where runs are read.

use crate::OpenError;
use crate::format::{DIRECTORY_ITEM_BYTES, DirectoryItem, RECORD_HEADER_BYTES, RecordHeader, crc, padded};
use crate::frame::{self, Frame};
use crate::segment::{Segment, Window};
use longboat_raft::run::RUN_HEADER_BYTES;
use std::io;

/// Bytes that are read at once where frames are small.
const READ_BYTES: usize = 256 << 10;
/// Bytes of an average frame from which on heads are read one by one: a read of its own costs about as much as copying this.
const LARGE_FRAME_BYTES: u64 = 8 << 10;
/// Bytes that are read of a large frame at first: most have one run and no rare record.
const FRONT_BYTES: usize = 512;

/// Walks the records of a sealed segment.
pub(crate) struct SegmentHeads<'a> {
    at: At<'a>,
    window: Window<'a>,
    /// A large frame with its heads in their places and anything between them.
    sparse: Vec<u8>,
}

/// The record that is read.
#[derive(Clone, Copy)]
struct At<'a> {
    segment: &'a Segment,
    position: u64,
    seq: u64,
}

impl<'a> SegmentHeads<'a> {
    /// Starts at `position`, which is that of record `seq`.
    pub(crate) fn new(segment: &'a Segment, position: u64, seq: u64) -> Self {
        let window = Window::new(&segment.file, READ_BYTES);
        Self { at: At { segment, position, seq }, window, sparse: Vec::new() }
    }

    /// The frames of the next record, and where the one after it starts; `None` at the footer.
    pub(crate) fn next(&mut self) -> Result<Option<(Vec<Frame>, u64)>, OpenError> {
        let sealed = self.at.segment.sealed.get().expect("only sealed segments are settled");
        if self.at.position == sealed.offset {
            return Ok(None);
        }
        let header = self.header()?;
        let front = header.front_bytes();
        let frame_bytes = (header.length - front) / u64::from(header.frames.max(1));
        let frames = if frame_bytes >= LARGE_FRAME_BYTES { self.sparse(&header)? } else { self.whole(&header)? };
        self.at.position += padded(header.length);
        self.at.seq += 1;
        Ok(Some((frames, self.at.position)))
    }

    fn header(&mut self) -> Result<RecordHeader, OpenError> {
        let header = match self.window.has(self.at.position, RECORD_HEADER_BYTES) {
            Some(bytes) => RecordHeader::decode(bytes, self.at.segment.seed),
            None => {
                // No more than that: the frames may be large.
                let mut bytes = [0; RECORD_HEADER_BYTES];
                self.at.segment.file.read_into(&mut bytes, self.at.position)?;
                RecordHeader::decode(&bytes, self.at.segment.seed)
            }
        };
        let header = header.ok_or_else(|| self.at.corrupt("no header"))?;
        let end = self.at.segment.sealed.get().map_or(0, |s| s.offset);
        if header.seq != self.at.seq || header.front_bytes() > header.length || self.at.position + header.length > end {
            return Err(self.at.corrupt("its header is not its own"));
        }
        Ok(header)
    }

    /// All of a record that has many small frames.
    fn whole(&mut self, header: &RecordHeader) -> Result<Vec<Frame>, OpenError> {
        let at = self.at;
        let bytes = self.window.bytes(at.position, header.length)?;
        let bytes = bytes.ok_or_else(|| at.corrupt("it reaches beyond its file"))?;
        let items = at.directory(header, bytes)?;
        items
            .iter()
            .map(|item| at.frame(item, &bytes[item.offset as usize..(item.offset + item.length) as usize]))
            .collect()
    }

    /// The heads of a record's large frames.
    fn sparse(&mut self, header: &RecordHeader) -> Result<Vec<Frame>, OpenError> {
        let front = self.at.segment.file.read(self.at.position, header.front_bytes() as usize)?;
        let items = self.at.directory(header, &front)?;
        let mut sparse = std::mem::take(&mut self.sparse);
        if sparse.is_empty() {
            self.at.segment.file.will_read_pieces();
        }
        let mut frames = Vec::with_capacity(items.len());
        for item in &items {
            let length = item.length as usize;
            if sparse.len() < length {
                sparse.resize(length, 0);
            }
            read_heads(self.at.segment, self.at.position + u64::from(item.offset), &mut sparse[..length])?;
            frames.push(self.at.frame(item, &sparse[..length])?);
        }
        self.sparse = sparse;
        Ok(frames)
    }
}

impl At<'_> {
    fn corrupt(&self, why: &str) -> OpenError {
        OpenError::Corrupt(format!("record {}: {why}", self.seq))
    }

    fn directory(&self, header: &RecordHeader, bytes: &[u8]) -> Result<Vec<DirectoryItem>, OpenError> {
        let directory = &bytes[RECORD_HEADER_BYTES..header.front_bytes() as usize];
        if crc(self.segment.seed_at(self.position), directory) != header.directory_crc {
            return Err(self.corrupt("directory checksum mismatch"));
        }
        let items = directory.chunks_exact(DIRECTORY_ITEM_BYTES).map(DirectoryItem::decode);
        items
            .map(|item| match u64::from(item.offset) + u64::from(item.length) <= header.length {
                true => Ok(item),
                false => Err(self.corrupt("a frame reaches beyond it")),
            })
            .collect()
    }

    fn frame(&self, item: &DirectoryItem, bytes: &[u8]) -> Result<Frame, OpenError> {
        match Frame::decode(bytes, self.segment.seed_at(self.position)) {
            Ok(frame) if frame.group == item.group => Ok(frame),
            Ok(_) => Err(self.corrupt("a frame of another group")),
            Err(fault) => Err(self.corrupt(&fault.to_string())),
        }
    }
}

/// Fills the places of a frame's head and of its runs' headers. A frame whose lengths do not fit is read as far as they do:
/// its checksum is looked at next.
fn read_heads(segment: &Segment, offset: u64, frame: &mut [u8]) -> io::Result<()> {
    let mut have = 0;
    let mut need = |frame: &mut [u8], from: usize, to: usize| -> io::Result<bool> {
        if to > frame.len() {
            return Ok(false);
        }
        if to > have {
            let until = (from + FRONT_BYTES).max(to).min(frame.len());
            segment.file.read_into(&mut frame[from..until], offset + from as u64)?;
            have = until;
        }
        Ok(true)
    };
    if !need(frame, 0, FRONT_BYTES.min(frame.len()))? {
        return Ok(());
    }
    let Some((mut at, runs)) = frame::front(frame) else { return Ok(()) };
    if !need(frame, 0, at)? {
        return Ok(());
    }
    for _ in 0..runs {
        if !need(frame, at, at.saturating_add(RUN_HEADER_BYTES))? {
            return Ok(());
        }
        at = at.saturating_add(frame::run_length(&frame[at..at + RUN_HEADER_BYTES]) as usize);
    }
    Ok(())
}
