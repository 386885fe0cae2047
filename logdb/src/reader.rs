//! Reading entries, from any thread: from the journal's segments while they hold them, else from rows of the key-value
//! store, or from the archived segments that rows refer to.
//!
//! Places are looked up under the index's lock and read without it. What is read was durable when looked up, is checked
//! against its checksums, and its file is not used again while it is being read.

use crate::format::{FOOTER_HEADER_BYTES, FOOTER_ITEM_BYTES, FrameAt};
use crate::frame::{self, Frame};
use crate::index::{Place, Span};
use crate::kv::{Reference, Table, log_key, take_log_key, take_log_row};
use crate::segment::Segment;
use crate::shared::Shared;
use crate::upkeep;
use crate::{LogReader, ReadError};
use longboat_raft::{GroupId, Index, Run};
use std::sync::Arc;

/// Items of a footer's list that are read at once.
const LIST_ITEMS: u32 = 256;

/// Reads what a shared store has.
#[derive(Clone, Debug)]
pub(crate) struct SharedReader {
    pub(crate) shared: Arc<Shared>,
}

impl LogReader for SharedReader {
    fn entries(&self, group: GroupId, lo: Index, hi: Index, bytes_max: usize) -> Result<Vec<Run>, ReadError> {
        let mut out = Gather { group, next: lo, hi, bytes_left: bytes_max, runs: Vec::new() };
        let mut cuts = None;
        loop {
            let place = {
                let index = self.shared.index.read();
                let cuts_now = index.group(group).map(|g| g.cuts);
                // What was read before entries were taken back does not go together with what is there now.
                let stale = cuts.replace(cuts_now).is_some_and(|before| before != cuts_now);
                match index.locate(group, out.next, hi) {
                    _ if stale && !out.runs.is_empty() => break,
                    Err(_) if !out.runs.is_empty() => break,
                    place => place?,
                }
            };
            match place {
                Place::Settled(to) => match self.settled(&mut out, to) {
                    Err(ReadError::Unavailable) => self.still_here(&out)?,
                    other => other?,
                },
                Place::Frames { segment, frames, hi } => read_frames(&segment, &frames, None, hi, &mut out)?,
                Place::Footer { segment, span } => read_footer(&segment, &span, &mut out)?,
            }
            if out.is_full() {
                break;
            }
        }
        Ok(out.runs)
    }

    fn reclaim(&self, group: GroupId) -> Result<bool, ReadError> {
        upkeep::reclaim(&self.shared, group).map_err(|e| ReadError::Failed(e.to_string()))
    }
}

impl SharedReader {
    /// Rows of the key-value store from the next entry on. `Unavailable` when the row is not there.
    fn settled(&self, out: &mut Gather, to: Index) -> Result<(), ReadError> {
        let kv = &self.shared.kv;
        let failed = |e: String| ReadError::Failed(e);
        let mut missed = None;
        while !out.is_full() && out.next <= to {
            let row = kv.at_or_before(Table::Log, &log_key(out.group, out.next)).map_err(|e| failed(e.0))?;
            let Some((key, value)) = row else { return Err(ReadError::Unavailable) };
            let Some((_, first)) = take_log_key(&key).filter(|(g, _)| *g == out.group) else {
                return Err(ReadError::Unavailable);
            };
            let before = out.next;
            if let Some(Reference { use_number, last, at, count, .. }) = Reference::decode(&value) {
                if last < out.next {
                    return Err(ReadError::Unavailable);
                }
                let Some(segment) = self.shared.archive.segment(use_number) else {
                    // The last reference to a segment goes before the segment, so the next look does not find this one.
                    if missed.replace(use_number) == Some(use_number) {
                        return Err(ReadError::Unavailable);
                    }
                    continue;
                };
                let span = Span { segment: use_number, lo: first, hi: last.min(to), at, count };
                read_footer(&segment, &span, out)?;
                if out.next == before {
                    return Err(ReadError::Unavailable);
                }
                continue;
            }
            for run in take_log_row(value).map_err(failed)? {
                out.take(&run, to);
            }
            if out.next == before {
                return Err(ReadError::Unavailable);
            }
        }
        Ok(())
    }

    /// A row that was looked for is gone: fine if it was compacted meanwhile.
    fn still_here(&self, out: &Gather) -> Result<(), ReadError> {
        let index = self.shared.index.read();
        let settled = |g: &crate::index::Group| g.start < out.next && out.next <= g.settled;
        if index.group(out.group).is_some_and(settled) {
            return Err(ReadError::Failed(format!(
                "the row of group {} with entry {} is missing",
                out.group, out.next
            )));
        }
        Ok(())
    }
}

/// What was read so far: contiguous runs that end just before `next`.
#[derive(Debug)]
pub(crate) struct Gather {
    pub(crate) group: GroupId,
    pub(crate) next: Index,
    pub(crate) hi: Index,
    pub(crate) bytes_left: usize,
    pub(crate) runs: Vec<Run>,
}

impl Gather {
    fn is_full(&self) -> bool {
        self.next > self.hi || (self.bytes_left == 0 && !self.runs.is_empty())
    }

    /// Takes what this run has of the next entries, through `to`.
    fn take(&mut self, run: &Run, to: Index) {
        let to = to.min(run.last()).min(self.hi);
        if self.is_full() || run.first() > self.next || to < self.next {
            return;
        }
        let to = self.last_that_fits(run, to);
        let part = run.slice(self.next..=to);
        self.bytes_left = self.bytes_left.saturating_sub(part.encoded_len());
        self.next = to.next();
        self.runs.push(part);
    }

    /// The last entry within the bytes left, but at least the next one if nothing was read yet.
    fn last_that_fits(&mut self, run: &Run, to: Index) -> Index {
        if run.encoded_len() <= self.bytes_left {
            return to;
        }
        let mut bytes = 0;
        let mut last = None;
        for entry in run.entries().skip((self.next.0 - run.first().0) as usize) {
            bytes += entry.payload.len() + longboat_raft::run::DESCRIPTOR_BYTES;
            if entry.index > to || (last.is_some() && bytes > self.bytes_left) {
                break;
            }
            last = Some(entry.index);
        }
        self.bytes_left = 0;
        last.expect("the next entry is in this run")
    }
}

/// Reads frames, ascending, each valid until the first entry of the one after it (`after` for the last).
fn read_frames(
    segment: &Segment,
    frames: &[FrameAt],
    after: Option<Index>,
    hi: Index,
    out: &mut Gather,
) -> Result<(), ReadError> {
    let ends = frames[1..].iter().map(|f| f.first.prev()).chain([after.map_or(hi, Index::prev)]);
    for (at, end) in frames.iter().zip(ends) {
        if out.is_full() || out.next > hi {
            break;
        }
        if end < out.next {
            continue;
        }
        let before = out.next;
        for run in read_frame(segment, out.group, *at)? {
            out.take(&run, end.min(hi));
        }
        if out.next == before {
            let why = format!("group {}: entry {before} is not in the frame that should have it", out.group);
            return Err(ReadError::Failed(why));
        }
    }
    Ok(())
}

/// The runs of one frame, all their checksums checked.
pub(crate) fn read_frame(segment: &Segment, group: GroupId, at: FrameAt) -> Result<Vec<Run>, ReadError> {
    let failed = |why: String| ReadError::Failed(format!("{}: {why}", segment.file.path.display()));
    let bytes = segment.file.read(u64::from(at.offset), at.length as usize).map_err(|e| failed(e.to_string()))?;
    let frame = Frame::decode(&bytes, segment.seed_at(u64::from(at.offset))).map_err(|e| failed(e.to_string()))?;
    if frame.group != group {
        return Err(failed(format!("frame of group {} where one of {group} should be", frame.group)));
    }
    Ok(frame::runs(&frame, &bytes).map_err(|e| failed(e.to_string()))?.into_vec())
}

/// Items `from..to` of a sealed segment's list of frames.
fn footer_list(segment: &Segment, from: u32, to: u32) -> Result<Vec<FrameAt>, ReadError> {
    let sealed = segment.sealed.get().expect("only asked of sealed segments");
    let list = sealed.offset + (FOOTER_HEADER_BYTES + sealed.footer.groups as usize * FOOTER_ITEM_BYTES) as u64;
    let bytes = segment
        .file
        .read(list + u64::from(from) * FOOTER_ITEM_BYTES as u64, (to - from) as usize * FOOTER_ITEM_BYTES)
        .map_err(|e| ReadError::Failed(format!("{}: {e}", segment.file.path.display())))?;
    Ok(bytes.chunks_exact(FOOTER_ITEM_BYTES).map(FrameAt::decode).collect())
}

/// Reads the next entries as far as this span has them.
pub(crate) fn read_footer(segment: &Segment, span: &Span, out: &mut Gather) -> Result<(), ReadError> {
    segment.check_list().map_err(ReadError::Failed)?;
    // The last frame that starts at or before the next entry: the list is ascending.
    let (mut from, mut to) = (span.at, span.at + span.count);
    while to - from > 1 {
        let middle = from + (to - from) / 2;
        let at = footer_list(segment, middle, middle + 1)?[0];
        if at.first <= out.next { from = middle } else { to = middle }
    }
    let end = span.at + span.count;
    while from < end && !out.is_full() && out.next <= span.hi {
        let to = (from + LIST_ITEMS).min(end);
        let list = footer_list(segment, from, (to + 1).min(end))?;
        let count = (to - from) as usize;
        let after = list.get(count).map(|f| f.first);
        read_frames(segment, &list[..count], after, span.hi, out)?;
        from = to;
    }
    Ok(())
}
