//! Settling: one pass takes the oldest sealed segments out of the journal. What they say of their groups becomes rows of the
//! key-value store; the entries that are still kept become rows too, or stay where they are in an archived segment.
//!
//! Order of a pass: rows of committed entries that are still kept, or references in their place, in any number of batches;
//! then, in one batch, the row of every group that the segments speak of as of their last record, the rows of the segments
//! that are archived, and that record as the settled sequence; then a flush; only then are the other files free. A crash before
//! the flush leaves the old settled sequence and at most rows that nothing refers to, which the next opening sweeps.
//!
//! Entries that were compacted, cut or overwritten meanwhile are not written at all: the index says what is kept.
//!
//! What it costs: of a segment of which much is kept only the footer is read, which says what its frames do to their groups.
//! Of the others less than a quarter is read and written again. So settling takes a small part of the disk's time whatever the
//! load is, and a step of it is bounded, but for the flush. It never holds the index's lock for longer than some hundred groups take.

use crate::archive::{self, Changes, is_little};
use crate::codec::group_row;
use crate::effect::Effect;
use crate::fold::Folded;
use crate::format::{FOOTER_ITEM_BYTES, FooterGroup};
use crate::index::Span;
use crate::kv::{
    KEY_SETTLED, KEY_SETTLING, KvBatch, KvError, LogRow, Reference, Settled, Table, group_key, log_key, take_log_key,
};
use crate::reader::{Gather, read_footer};
use crate::segment::Segment;
use crate::shared::{Pins, Shared};
use crate::upkeep::{self, Upkeep, drop_rows};
use crate::{LogError, OpenError};
use bytes::Bytes;
use longboat_io::{Job, JobState};
use longboat_raft::{GroupId, Index, plant, sometimes};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes at which a row is closed: large enough to be cheap to store, small enough to read for one follower.
pub(crate) const ROW_BYTES: usize = 256 << 10;
/// Groups that are looked at or changed under one hold of the index's lock.
const GROUPS_AT_ONCE: usize = 256;
/// What looking up a group's row counts for in a step's budget, in bytes: it takes as long as to read so many.
const GROUP_COST_BYTES: usize = 1 << 10;
/// Looks for housekeeping that pass between two rounds of upkeep while no segment is to be settled: entries go one group at a
/// time, and each round may end with a flush.
const LOOKS_UNTIL_UPKEEP: u32 = 16;

/// Why a pass can't go on.
#[derive(Debug)]
pub(crate) struct Failed(String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<KvError> for Failed {
    fn from(e: KvError) -> Self {
        Self(e.0)
    }
}

impl From<OpenError> for Failed {
    fn from(e: OpenError) -> Self {
        Self(format!("settling: {e}"))
    }
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Self {
        Self(format!("settling: {e}"))
    }
}

/// What comes next.
#[derive(Debug)]
enum Phase {
    /// Delete what is not needed any more.
    Upkeep(Upkeep),
    /// Choose the segments.
    Plan,
    /// Fold what a segment's footer says of its groups, from this one on.
    Fold { segment: usize, next: NextGroup },
    /// Write the rows of the groups after this one.
    Rows { after: Option<GroupId> },
    /// Write what refers to the rows, flush, and give the files back.
    Finish,
}

/// A place in a footer: the group with this number, and where in the body the tally of it begins.
#[derive(Clone, Copy, Debug)]
struct NextGroup {
    number: usize,
    tally: usize,
}

/// A segment of a pass.
#[derive(Debug)]
struct Settling {
    segment: Arc<Segment>,
    /// Its footer's groups and list.
    footer: Bytes,
    /// It stays as it is, with references to it.
    keep: bool,
    /// The bytes of all references to it.
    referred: u64,
}

/// One pass.
#[derive(Debug)]
pub(crate) struct SettleJob {
    shared: Arc<Shared>,
    phase: Phase,
    segments: Vec<Settling>,
    groups: BTreeMap<GroupId, Folding>,
    changes: Changes,
    /// The keys of rows that nothing refers to yet.
    written: Vec<Vec<u8>>,
    entries: u64,
    /// The last durable record when the pass was made.
    last_seq: u64,
}

/// A group in a pass.
#[derive(Debug)]
struct Folding {
    folded: Folded,
    /// Through where its log was compacted when its rows were made.
    start: Index,
}

impl Drop for SettleJob {
    fn drop(&mut self) {
        if !self.written.is_empty()
            && !self.shared.is_closed()
            && let Err(e) = self.take_back()
        {
            self.shared.fail(LogError::KeyValue(e.0));
        }
        self.shared.job_running.store(false, Ordering::Release);
    }
}

impl Job for SettleJob {
    fn step(&mut self, budget: usize) -> JobState {
        if self.shared.is_closed() {
            return JobState::Done;
        }
        match self.try_step(budget) {
            Ok(state) => state,
            Err(Failed(why)) => {
                self.shared.fail(LogError::KeyValue(why));
                JobState::Done
            }
        }
    }
}

/// A pass over the oldest segments, if enough of them wait for one and no other is running.
pub(crate) fn job(shared: &Arc<Shared>, last_seq: u64) -> Option<SettleJob> {
    let due = is_behind(shared) && !is_pinned(shared, last_seq);
    let upkeep = (due || shared.looks_until_upkeep.tick()) && Upkeep::is_due(shared);
    if !(due || upkeep) || shared.job_running.swap(true, Ordering::AcqRel) {
        return None;
    }
    let phase = if upkeep {
        shared.looks_until_upkeep.set(LOOKS_UNTIL_UPKEEP);
        Phase::Upkeep(Upkeep::new())
    } else {
        Phase::Plan
    };
    Some(SettleJob {
        shared: Arc::clone(shared),
        phase,
        segments: Vec::new(),
        groups: BTreeMap::new(),
        changes: Changes::default(),
        written: Vec::new(),
        entries: 0,
        last_seq,
    })
}

/// The sealed segments that are due: there are more than half of what the journal may have.
fn candidates(shared: &Shared) -> Vec<Arc<Segment>> {
    let index = shared.index.read();
    let live: u64 = index.segments.iter().map(|s| s.file.capacity).sum();
    if live <= shared.journal_bytes_max / 2 {
        return Vec::new();
    }
    let sealed = index.segments.iter().filter(|s| s.sealed.get().is_some());
    sealed.take(shared.settle_segments).cloned().collect()
}

/// Whether segments wait for a pass.
pub(crate) fn is_behind(shared: &Shared) -> bool {
    !candidates(shared).is_empty()
}

/// Whether the groups that kept the oldest segment at the last look still do. Looks again after many records, so that
/// a host that lost the report gets another.
fn is_pinned(shared: &Shared, last_seq: u64) -> bool {
    const RECORDS_UNTIL_NEXT_LOOK: u64 = 256;
    let pins = shared.pins.lock();
    let index = shared.index.read();
    let pinned = |id: &GroupId| index.group(*id).is_some_and(|g| g.pins(pins.segment));
    last_seq < pins.looked_at + RECORDS_UNTIL_NEXT_LOOK && pins.groups.iter().any(pinned)
}

/// What a sealed segment still holds.
#[derive(Debug, Default)]
struct Look {
    /// The groups with uncommitted entries in it.
    pinned: Vec<GroupId>,
    /// The bytes of frames with entries that are kept, and the groups that have any.
    live_bytes: u64,
    spans: u64,
}

/// About how many bytes of the segment the entries of this span are: whole frames, as its footer lists them.
fn span_bytes(segment: &Segment, footer: &Bytes, span: &Span) -> u64 {
    let (mut bytes, mut after) = (0, None);
    for frame in upkeep::items(segment, footer, span.at, span.count).rev() {
        if frame.first <= span.hi && after.is_none_or(|next| span.lo < next) {
            bytes += u64::from(frame.length);
        }
        after = Some(frame.first);
    }
    bytes.max(1)
}

impl SettleJob {
    fn try_step(&mut self, budget: usize) -> Result<JobState, Failed> {
        match &mut self.phase {
            Phase::Upkeep(upkeep) => {
                if upkeep.step(&self.shared, budget)? {
                    self.phase = Phase::Plan;
                }
                Ok(JobState::Again)
            }
            Phase::Plan => self.plan(),
            &mut Phase::Fold { segment, next } => self.fold(segment, next, budget),
            &mut Phase::Rows { after } => self.rows(after, budget),
            Phase::Finish => self.finish(),
        }
    }

    /// Takes the oldest segments up to the first one that holds an uncommitted entry.
    fn plan(&mut self) -> Result<JobState, Failed> {
        for segment in candidates(&self.shared) {
            // A group that is not recognised here would be settled with entries that are not committed.
            let footer = segment.footer_body().map_err(|e| Failed(format!("settling: {e}")))?;
            let look = self.look(&segment, &footer);
            if look.pinned.is_empty() {
                let large_spans = look.live_bytes / look.spans.max(1) >= self.shared.archive_span_bytes_min;
                let keep = look.spans > 0 && large_spans && !is_little(look.live_bytes, &segment);
                self.segments.push(Settling { segment, footer, keep, referred: 0 });
                continue;
            }
            if self.segments.is_empty() {
                let (unreported, groups) = (look.pinned.clone(), look.pinned);
                let (segment, looked_at) = (segment.use_number, self.last_seq);
                *self.shared.pins.lock() = Pins { unreported, groups, segment, looked_at };
            }
            break;
        }
        if self.segments.is_empty() {
            return Ok(JobState::Done);
        }
        let mut batch = KvBatch::default();
        batch.put(Table::State, KEY_SETTLING.to_vec(), Vec::new());
        self.shared.kv.write(batch)?;
        self.phase = self.begin_fold(0);
        Ok(JobState::Again)
    }

    fn look(&self, segment: &Segment, footer: &Bytes) -> Look {
        let mut look = Look::default();
        let groups = segment.sealed.get().expect("only sealed segments are candidates").footer.groups as usize;
        for some in footer[..groups * FOOTER_ITEM_BYTES].chunks(GROUPS_AT_ONCE * FOOTER_ITEM_BYTES) {
            let ids = some.chunks_exact(FOOTER_ITEM_BYTES).map(|item| FooterGroup::decode(item).group);
            let spans: Vec<(GroupId, Span, bool)> = {
                let index = self.shared.index.read();
                let found = ids.filter_map(|id| {
                    let group = index.group(id)?;
                    Some((id, *group.span(segment.use_number)?, group.pins(segment.use_number)))
                });
                found.collect()
            };
            // A group's frames may be very many: they are added up without the lock.
            for (id, span, pins) in spans {
                look.spans += 1;
                look.live_bytes += span_bytes(segment, footer, &span);
                if pins {
                    look.pinned.push(id);
                }
            }
        }
        look
    }

    /// The phase in which a segment is folded; behind the last one, that in which rows are written.
    fn begin_fold(&self, segment: usize) -> Phase {
        let Some(settling) = self.segments.get(segment) else { return Phase::Rows { after: None } };
        let footer = settling.segment.sealed.get().expect("only sealed segments are settled").footer;
        Phase::Fold { segment, next: NextGroup { number: 0, tally: footer.tallies().start } }
    }

    /// Folds what a footer says of its groups until the budget is used.
    fn fold(&mut self, at: usize, mut next: NextGroup, budget: usize) -> Result<JobState, Failed> {
        let Settling { segment, footer, .. } = &self.segments[at];
        let header = segment.sealed.get().expect("only sealed segments are settled").footer;
        let malformed = |why: String| Failed(format!("settling: the footer of {}: {why}", segment.file.path.display()));
        let mut used = 0;
        while next.number < header.groups as usize && used < budget.max(1) {
            let group = FooterGroup::decode(&footer[next.number * FOOTER_ITEM_BYTES..]).group;
            let folding = match self.groups.entry(group) {
                std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
                std::collections::btree_map::Entry::Vacant(e) => {
                    e.insert(Folding { folded: load(&self.shared, group)?, start: Index::ZERO })
                }
            };
            let mut tally = &footer[next.tally..header.tallies().end];
            loop {
                let (effect, is_last) = Effect::take(&mut tally).map_err(|e| malformed(e.to_string()))?;
                folding.folded.apply(&effect).map_err(&malformed)?;
                if is_last {
                    break;
                }
            }
            let end = header.tallies().end - tally.len();
            used += end - next.tally + GROUP_COST_BYTES;
            next = NextGroup { number: next.number + 1, tally: end };
        }
        self.phase = match next.number < header.groups as usize {
            true => Phase::Fold { segment: at, next },
            false => self.begin_fold(at + 1),
        };
        Ok(JobState::Again)
    }

    /// Writes the rows of some more groups.
    fn rows(&mut self, after: Option<GroupId>, budget: usize) -> Result<JobState, Failed> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut groups = std::mem::take(&mut self.groups);
        let from = after.map_or(Unbounded, Excluded);
        let mut last = after;
        for (group, folding) in groups.range_mut((from, Unbounded)) {
            if self.changes.batch.bytes >= budget.max(1) {
                break;
            }
            last = Some(*group);
            let folded = &mut folding.folded;
            let kept_after = match self.shared.index.read().group(*group) {
                Some(g) if !folded.reset => g.start.max(folded.state.start.index).min(folded.rows.to),
                _ => folded.rows.to,
            };
            drop_rows(&self.shared, *group, &mut folded.rows, kept_after, &mut self.changes)?;
            let before = self.changes.batch.changes.len();
            self.group_rows(*group, folding);
            self.written.extend(self.changes.batch.changes[before..].iter().map(|(_, key, _)| key.clone()));
        }
        let done = last == groups.last_key_value().map(|(g, _)| *g);
        self.groups = groups;
        self.changes.write(&self.shared)?;
        self.phase = if done { Phase::Finish } else { Phase::Rows { after: last } };
        Ok(JobState::Again)
    }

    /// Writes the entries of one group that are still kept in the segments of this pass, or refers to them where the
    /// segment stays. All of them are committed.
    fn group_rows(&mut self, group: GroupId, folding: &mut Folding) {
        let spans = {
            let index = self.shared.index.read();
            let known = index.group(group);
            folding.start = known.map(|g| g.start).unwrap_or_default();
            known.map(|g| g.spans.clone()).unwrap_or_default()
        };
        let (rows, batch) = (&mut folding.folded.rows, &mut self.changes.batch);
        let mut row = LogRow::default();
        for settling in &mut self.segments {
            let Settling { segment, footer, keep, referred } = settling;
            let Some(span) = spans.iter().find(|s| s.segment == segment.use_number) else { continue };
            let mut next = span.lo;
            while next <= span.hi && !*keep {
                let bytes_left = ROW_BYTES.saturating_sub(row.bytes()).max(1);
                let mut part = Gather { group, next, hi: span.hi, bytes_left, runs: Vec::new() };
                let read = read_footer(segment, span, &mut part);
                if read.is_err() || part.next == next {
                    // Who needs them is told when they are read; nobody else is to suffer.
                    tracing::warn!(%group, from = %next, error = ?read.err(), "entries can't be read, their segment stays");
                    break;
                }
                for run in &part.runs {
                    row.push(run);
                    self.entries += run.count() as u64;
                }
                next = part.next;
                if row.bytes() >= ROW_BYTES {
                    row.finish(group, rows, batch);
                }
            }
            if next <= span.hi {
                row.finish(group, rows, batch);
                sometimes!("settled-in-place");
                let bytes = span_bytes(segment, footer, &Span { lo: next, ..*span });
                let Span { segment: use_number, hi: last, at, count, .. } = *span;
                let reference = Reference { use_number, last, at, count, bytes };
                batch.put(Table::Log, log_key(group, next), reference.encode());
                rows.extend(next, last);
                *referred += bytes;
            }
        }
        row.finish(group, rows, batch);
    }

    /// Deletes the rows of a pass that does not come to its end: the next one may choose other rows for the same entries, and
    /// these would then be counted as if they were needed.
    fn take_back(&mut self) -> Result<(), KvError> {
        sometimes!("settling-taken-back");
        let mut batch = KvBatch::default();
        for key in self.written.drain(..) {
            batch.delete(Table::Log, key);
        }
        self.shared.kv.write(batch)
    }

    fn finish(&mut self) -> Result<JobState, Failed> {
        let last = &self.segments.last().expect("a pass has segments").segment;
        let footer = last.sealed.get().expect("sealed").footer;
        let (through, settled) = (last.use_number, footer.last_seq);
        let mut batch = KvBatch::default();
        for (group, Folding { folded, .. }) in &self.groups {
            let mut state = folded.state.clone();
            if plant::is("vote-lost-on-recycle") {
                state.hard_state = load(&self.shared, *group)?.state.hard_state;
            }
            batch.put(Table::State, group_key(*group), group_row(&state, folded.rows));
        }
        for settling in self.segments.iter().filter(|s| s.referred > 0) {
            archive::put_row(&settling.segment, settling.referred, &mut batch);
        }
        let row = Settled { seq: settled, next_use_id: footer.next_use_id };
        batch.put(Table::State, KEY_SETTLED.to_vec(), row.encode());
        batch.delete(Table::State, KEY_SETTLING.to_vec());
        self.shared.kv.write(batch)?;
        self.written.clear();
        self.shared.kv.flush()?;
        self.shared.settled.store(settled, Ordering::Release);
        sometimes!(self.segments.len() > 1, "several-segments-settled-at-once");
        self.shared.row_bytes.store(self.shared.kv.bytes(), Ordering::Relaxed);
        self.shared.settled_entries.fetch_add(self.entries, Ordering::Relaxed);
        self.hand_over(through);
        tracing::debug!(settled, segments = self.segments.len(), groups = self.groups.len(), "settled");
        self.give_back(through);
        Ok(JobState::Done)
    }

    /// From here on readers look for the entries in rows and by references.
    fn hand_over(&self, through: u64) {
        for settling in self.segments.iter().filter(|s| s.referred > 0) {
            self.shared.archive.insert(Arc::clone(&settling.segment), settling.referred);
        }
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for some in groups.chunks(GROUPS_AT_ONCE) {
            let mut index = self.shared.index.write();
            index.settle(some, through);
            for id in some {
                let Folding { folded, start } = &self.groups[id];
                // What went while the rows were written is not known to be in rows by who let it go.
                let is_less = index.group(*id).is_some_and(|g| g.start > *start || g.settled < folded.rows.to);
                if is_less && !folded.rows.is_empty() {
                    index.note_dead_rows(*id);
                }
            }
        }
    }

    fn give_back(&mut self, through: u64) {
        let kept: Vec<u64> = self.segments.iter().filter(|s| s.referred > 0).map(|s| s.segment.use_number).collect();
        self.segments.clear();
        let gone: Vec<Arc<Segment>> = {
            let mut index = self.shared.index.write();
            let count = index.segments.partition_point(|s| s.use_number <= through);
            index.segments.drain(..count).collect()
        };
        let (archived, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|s| kept.contains(&s.use_number));
        self.shared.leave(archived.iter().map(|s| s.file.capacity));
        // Each segment goes before its file is free: a file that somebody else holds can't be used again.
        self.shared.recycle(gone.into_iter().map(|s| Arc::clone(&s.file)).collect());
    }
}

/// What the key-value store knows of a group.
pub(crate) fn load(shared: &Shared, group: GroupId) -> Result<Folded, Failed> {
    let Some(row) = shared.kv.get(Table::State, &group_key(group))? else { return Ok(Folded::new(group)) };
    let (state, rows) = crate::codec::take_group_row(group, &row).map_err(|e| Failed(e.to_string()))?;
    Ok(crate::recover::folded(state, rows))
}

/// Deletes the log rows that an interrupted pass left and nothing refers to.
pub(crate) fn sweep(shared_kv: &dyn crate::kv::Kv, groups: &BTreeMap<GroupId, Folded>) -> Result<(), KvError> {
    let mut batch = KvBatch::default();
    shared_kv.scan(Table::Log, &[], &mut |key, _| {
        let known = take_log_key(key).is_some_and(|(g, first)| {
            let rows = groups.get(&g).map(|f| f.rows).unwrap_or_default();
            rows.from <= first && first <= rows.to
        });
        if !known {
            batch.delete(Table::Log, key.to_vec());
        }
        true
    })?;
    batch.delete(Table::State, KEY_SETTLING.to_vec());
    shared_kv.write(batch)?;
    shared_kv.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Rows;
    use crate::kv::{Kv, MemKv};
    use longboat_io::{RealDisk, SharedDisk};

    #[test]
    fn a_sweep_deletes_the_rows_that_no_group_refers_to_and_no_others() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk: SharedDisk = Arc::new(RealDisk);
        let kv = MemKv::open(disk, dir.path()).expect("opens");
        let mut batch = KvBatch::default();
        batch.put(Table::State, KEY_SETTLING.to_vec(), Vec::new());
        for (group, first) in [(1, 1), (1, 10), (1, 20), (1, 30), (2, 1)] {
            batch.put(Table::Log, log_key(GroupId(group), Index(first)), Vec::new());
        }
        kv.write(batch).expect("written");
        let rows = Rows { from: Index(10), to: Index(29) };
        let groups = [(GroupId(1), Folded { rows, ..Folded::new(GroupId(1)) }), (GroupId(2), Folded::new(GroupId(2)))];
        sweep(&kv, &groups.into()).expect("swept");
        let mut left = Vec::new();
        kv.scan(Table::Log, &[], &mut |key, _| {
            left.extend(take_log_key(key));
            true
        })
        .expect("scanned");
        assert_eq!(left, [(GroupId(1), Index(10)), (GroupId(1), Index(20))]);
        assert_eq!(kv.get(Table::State, KEY_SETTLING), Ok(None));
    }
}
