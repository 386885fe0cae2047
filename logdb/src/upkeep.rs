//! Keeping the archive small: rows and references of entries that are gone are deleted at once, and what is left of segments
//! that are nearly empty becomes rows.
//!
//! Entries go when a compaction, a snapshot or a removal is durable in the journal. Their rows may be deleted then, long before
//! that record is settled: a replay comes past it in any case, and nobody asks for what is before it. Each batch
//! leaves the key-value store consistent, so a crash between two of them loses nothing and leaves nothing behind.

use crate::LogError;
use crate::archive::{Changes, free_dead};
use crate::codec::{Rows, group_row};
use crate::format::{FOOTER_ITEM_BYTES, FooterGroup, FrameAt};
use crate::index::Span;
use crate::kv::{LogRow, Reference, Table, group_key, log_key, take_log_key};
use crate::reader::{Gather, read_footer};
use crate::segment::Segment;
use crate::settle::{Failed, ROW_BYTES, is_behind, load};
use crate::shared::Shared;
use bytes::Bytes;
use longboat_raft::{GroupId, Index, plant};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Groups whose rows are looked at in one batch.
const GROUPS_PER_BATCH: usize = 64;

/// What rows of a frame's entries may be larger than the frame, besides its own length.
const FRAME_SLACK_BYTES: usize = 4096;

/// What comes next.
#[derive(Debug)]
enum Stage {
    /// Delete what is not needed any more.
    Dead,
    /// Choose a segment that is nearly empty.
    Choose,
    /// Move what this segment's footer lists from this group on, of which what is before this index was moved.
    Move { segment: Arc<Segment>, footer: Bytes, group: u32, from: Index },
    /// Give back the files that are free.
    Free,
}

/// One round of it.
#[derive(Debug)]
pub(crate) struct Upkeep {
    stage: Stage,
    changes: Changes,
}

impl Upkeep {
    pub(crate) fn new() -> Self {
        Self { stage: Stage::Dead, changes: Changes::default() }
    }

    /// Whether there may be something to do.
    pub(crate) fn is_due(shared: &Shared) -> bool {
        if shared.archive.is_empty() {
            return false;
        }
        shared.index.read().has_dead_rows() || shared.archive.has_dead() || remnants(shared).is_some()
    }

    /// Does about `budget` bytes of it. Whether that was all.
    pub(crate) fn step(&mut self, shared: &Shared, budget: usize) -> Result<bool, Failed> {
        match &mut self.stage {
            Stage::Dead => {
                if !self.dead_rows(shared)? {
                    self.stage = Stage::Choose;
                }
            }
            Stage::Choose => {
                self.stage = match remnants(shared) {
                    Some(segment) => match footer_of(shared, &segment) {
                        Ok(footer) => Stage::Move { segment, footer, group: 0, from: Index::ZERO },
                        Err(why) => {
                            give_up(shared, &segment, &why);
                            Stage::Choose
                        }
                    },
                    None => Stage::Free,
                };
            }
            Stage::Move { segment, footer, group, from } => {
                let (segment, footer, mut at, mut from) = (Arc::clone(segment), footer.clone(), *group, *from);
                let groups = segment.sealed.get().expect("archived segments are sealed").footer.groups;
                let mut moved = 0;
                while moved < budget.max(1) && at < groups {
                    match self.move_some(shared, &segment, &footer, at, from)? {
                        Moved::Some { bytes, next } => {
                            moved += bytes;
                            from = next;
                            continue;
                        }
                        Moved::All => moved += FOOTER_ITEM_BYTES,
                        Moved::Damaged(group, why) => {
                            // Who needs what can't be read is told when it is read; the others are not to suffer.
                            tracing::warn!(%group, why, "entries of an archived segment can't be moved, they stay");
                            moved += ROW_BYTES;
                        }
                    }
                    (at, from) = (at + 1, Index::ZERO);
                }
                if at < groups {
                    self.stage = Stage::Move { segment, footer, group: at, from };
                    return Ok(false);
                }
                // Everything that could be moved was: whatever the reason for the rest is, another attempt would do no more,
                // and the one after it neither.
                if shared.archive.is_kept(segment.use_number) && !plant::is("unmovable-segment-chosen-again") {
                    give_up(shared, &segment, "not all that is kept in it could be moved");
                }
                self.stage = Stage::Free;
            }
            Stage::Free => {
                free_dead(shared)?;
                // The journal goes first: of a long archive one segment is emptied between two passes.
                if is_behind(shared) || remnants(shared).is_none() {
                    return Ok(true);
                }
                self.stage = Stage::Choose;
            }
        }
        Ok(false)
    }

    /// Deletes rows of some groups that lost entries. Whether there were any.
    fn dead_rows(&mut self, shared: &Shared) -> Result<bool, Failed> {
        let groups = shared.index.write().take_dead_rows(GROUPS_PER_BATCH);
        self.dead_rows_of(shared, &groups)?;
        Ok(!groups.is_empty())
    }

    fn dead_rows_of(&mut self, shared: &Shared, groups: &[GroupId]) -> Result<(), Failed> {
        for id in groups {
            let mut folded = load(shared, *id)?;
            let before = folded.rows;
            let kept_after = match shared.index.read().group(*id) {
                // A group that was reset has nothing settled until a pass has met that, and deleted what was before.
                Some(g) if !g.settled.is_zero() => g.start.min(before.to),
                _ => before.to,
            };
            drop_rows(shared, *id, &mut folded.rows, kept_after, &mut self.changes)?;
            if folded.rows != before {
                // As of the same record: only what is in the other table changes.
                self.changes.batch.put(Table::State, group_key(*id), group_row(&folded.state, folded.rows));
            }
        }
        if !groups.is_empty() {
            self.changes.write(shared)?;
        }
        Ok(())
    }

    /// Turns the next entries of one group, if the segment still has any that are kept, into a row. In one batch the row
    /// comes and the reference moves behind it, so there is never a moment without a place for an entry.
    fn move_some(
        &mut self,
        shared: &Shared,
        segment: &Segment,
        footer: &Bytes,
        at: u32,
        from: Index,
    ) -> Result<Moved, Failed> {
        let Some((group, first, reference)) = reference(shared, segment, footer, at, from)? else {
            return Ok(Moved::All);
        };
        let start = shared.index.read().group(group).map_or(Index::ZERO, |g| g.start);
        self.changes.batch.delete(Table::Log, log_key(group, first));
        let lo = first.max(start.next());
        let mut part = Gather { group, next: lo, hi: reference.last, bytes_left: ROW_BYTES, runs: Vec::new() };
        if lo <= reference.last {
            let Reference { use_number, last, at, count, .. } = reference;
            let span = Span { segment: use_number, lo, hi: last, at, count };
            let read = read_footer(segment, &span, &mut part).map_err(|e| e.to_string());
            let found = read.and_then(|()| if part.next > lo { Ok(()) } else { Err("entries are missing".into()) });
            if let Err(why) = found {
                self.changes = Changes::default();
                return Ok(Moved::Damaged(group, why));
            }
        }
        let mut row = LogRow::default();
        for run in &part.runs {
            row.push(run);
        }
        let bytes = row.bytes();
        if !plant::is("remnants-dropped") {
            row.finish(group, &mut Rows::default(), &mut self.changes.batch);
        }
        let mut left = 0;
        if part.next <= reference.last {
            let rest = reference.starting_at(first, part.next);
            left = rest.bytes;
            self.changes.batch.put(Table::Log, log_key(group, part.next), rest.encode());
        }
        self.changes.release(reference.use_number, reference.bytes - left);
        self.changes.write(shared)?;
        Ok(Moved::Some { bytes: bytes.max(1), next: part.next })
    }
}

/// Deletes what is not needed any more of one group. False while a job is running: there is one at a time.
pub(crate) fn reclaim(shared: &Shared, group: GroupId) -> Result<bool, Failed> {
    if shared.is_closed() || shared.job_running.swap(true, Ordering::AcqRel) {
        return Ok(false);
    }
    let done = Upkeep::new().dead_rows_of(shared, &[group]).and_then(|()| Ok(free_dead(shared)?));
    shared.job_running.store(false, Ordering::Release);
    // What a batch may have left half done is for nobody to go on from.
    if let Err(failed) = &done {
        shared.fail(LogError::KeyValue(failed.to_string()));
    }
    done.map(|()| true)
}

/// The list of a segment that is about to be read.
fn footer_of(shared: &Shared, segment: &Segment) -> Result<Bytes, String> {
    shared.archive.used(segment);
    segment.footer_body()
}

enum Moved {
    /// So many bytes; there may be more from the next entry on.
    Some { bytes: usize, next: Index },
    /// Nothing refers to this group's frames any more.
    All,
    /// What this group has there can't be read.
    Damaged(GroupId, String),
}

/// It stays for what refers to it, and goes with the last of that.
fn give_up(shared: &Shared, segment: &Segment, why: &str) {
    tracing::warn!(path = %segment.file.path.display(), why, "an archived segment can't be emptied, it stays");
    shared.archive.set_damaged(segment.use_number);
}

/// Half of what the journal may have is what the archive may have for nothing.
fn remnants(shared: &Shared) -> Option<Arc<Segment>> {
    shared.archive.with_remnants(shared.journal_bytes_max / 2)
}

/// The reference to what the group at this place of the footer has in the segment, if it is at or after `from`.
///
/// Entries before the first that is kept are gone, and segments ascend as entries do. So from the group's first frame here on
/// there are rows of entries that were in this segment, then the reference if there is one, then what later segments have.
/// Rows that start behind the start of its last frame are of that frame, or there is no reference: so not many more of them are
/// passed than that frame fills.
fn reference(
    shared: &Shared,
    segment: &Segment,
    footer: &Bytes,
    at: u32,
    from: Index,
) -> Result<Option<(GroupId, Index, Reference)>, Failed> {
    let place = at as usize * FOOTER_ITEM_BYTES;
    let item = FooterGroup::decode(&footer[place..place + FOOTER_ITEM_BYTES]);
    let mut list = items(segment, footer, item.at, item.count);
    let Some(frame) = list.next() else { return Ok(None) };
    let last = list.next_back().unwrap_or(frame);
    // A row may be larger than the same entries in a frame, by some headers.
    let passed_max = 2 * last.length as usize + FRAME_SLACK_BYTES;
    let mut passed = 0;
    let mut found = None;
    shared.kv.scan(Table::Log, &log_key(item.group, frame.first.max(from)), &mut |key, value| {
        let Some((_, first)) = take_log_key(key).filter(|(g, _)| *g == item.group) else { return false };
        if let Some(reference) = Reference::decode(value) {
            found = (reference.use_number == segment.use_number).then_some((item.group, first, reference));
            return false;
        }
        if plant::is("moved-rows-hide-the-rest") {
            return false;
        }
        passed += if first > last.first { value.len() } else { 0 };
        passed <= passed_max
    })?;
    Ok(found)
}

/// Some items of a footer's list of frames.
pub(crate) fn items<'a>(
    segment: &Segment,
    footer: &'a Bytes,
    at: u32,
    count: u32,
) -> impl DoubleEndedIterator<Item = FrameAt> + 'a {
    let groups = segment.sealed.get().expect("only asked of sealed segments").footer.groups as usize;
    let (from, to) = (groups + at as usize, groups + at as usize + count as usize);
    let bytes = footer.get(from * FOOTER_ITEM_BYTES..to * FOOTER_ITEM_BYTES).unwrap_or_default();
    bytes.chunks_exact(FOOTER_ITEM_BYTES).map(FrameAt::decode)
}

/// Deletes the rows of entries through `kept_after`, key by key: a range deletion per group and truncation would pile up.
/// A reference that reaches beyond is made anew for what is left; a row stays whole.
pub(crate) fn drop_rows(
    shared: &Shared,
    group: GroupId,
    rows: &mut Rows,
    kept_after: Index,
    changes: &mut Changes,
) -> Result<(), Failed> {
    if rows.is_empty() || kept_after < rows.from {
        return Ok(());
    }
    let mut found: Vec<(Index, Option<Reference>)> = Vec::new();
    shared.kv.scan(Table::Log, &log_key(group, rows.from), &mut |key, value| match take_log_key(key) {
        Some((g, first)) if g == group && first <= rows.to => {
            found.push((first, Reference::decode(value)));
            // The row after tells where the one before ends.
            first <= kept_after
        }
        _ => false,
    })?;
    let mut from = None;
    for (i, &(first, reference)) in found.iter().enumerate() {
        let before_next = || found.get(i + 1).map_or(rows.to, |(next, _)| next.prev());
        let last = reference.map_or_else(before_next, |r| r.last);
        let dead = last <= kept_after;
        if !dead && (first > kept_after || reference.is_none()) {
            from = Some(first);
            break;
        }
        changes.batch.delete(Table::Log, log_key(group, first));
        let Some(reference) = reference else { continue };
        let mut left = 0;
        if !dead {
            let rest = reference.starting_at(first, kept_after.next());
            changes.batch.put(Table::Log, log_key(group, kept_after.next()), rest.encode());
            (left, from) = (rest.bytes, Some(kept_after.next()));
        }
        changes.release(reference.use_number, reference.bytes - left);
        if !dead {
            break;
        }
    }
    *rows = from.map_or_else(Rows::default, |from| Rows { from, ..*rows });
    Ok(())
}
