//! Settling: one pass takes the oldest sealed segments, writes what is still needed of them to the key-value store,
//! and gives their files back.
//!
//! Order of a pass: rows of committed entries that are still kept, in any number of batches; then, in one batch, the
//! row of every group that the segments speak of as of their last record, and that record as the settled sequence; then
//! a flush; only then are the files free. A crash before the flush leaves the old settled sequence and at most rows that
//! nothing refers to, which the next opening sweeps.
//!
//! Entries that were compacted, cut or overwritten meanwhile are not written at all: the index says what is kept.

use crate::codec::{Rows, group_row};
use crate::fold::Folded;
use crate::format::{BLOCK, FOOTER_HEADER_BYTES, FOOTER_ITEM_BYTES, FooterGroup, crc};
use crate::kv::{
    KEY_SETTLED, KEY_SETTLING, KvBatch, KvError, LogRow, Settled, Table, group_key, log_key, take_log_key,
};
use crate::reader::{Gather, read_footer};
use crate::recover::SegmentFrames;
use crate::segment::Segment;
use crate::shared::{LOOKS_UNTIL_PREPARE, Shared};
use crate::{LogError, OpenError, ReadError};
use longboat_io::{Job, JobState};
use longboat_raft::{GroupId, Index, plant};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes at which a row is closed: large enough to be cheap to store, small enough to read for one follower.
const ROW_BYTES: usize = 256 << 10;
/// Groups whose place is moved under one hold of the index's lock.
const GROUPS_AT_ONCE: usize = 256;

/// Why a pass can't go on.
#[derive(Debug)]
struct Failed(String);

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

impl From<ReadError> for Failed {
    fn from(e: ReadError) -> Self {
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
    /// Choose the segments.
    Plan,
    /// Read the records of a segment, from this place on.
    Fold { segment: usize, position: u64, seq: u64 },
    /// Write the rows of the groups after this one.
    Rows { after: Option<GroupId> },
    /// Write what refers to the rows, flush, and give the files back.
    Finish,
}

/// One pass.
#[derive(Debug)]
pub(crate) struct SettleJob {
    shared: Arc<Shared>,
    phase: Phase,
    segments: Vec<Arc<Segment>>,
    groups: BTreeMap<GroupId, Folded>,
    batch: KvBatch,
    entries: u64,
    /// The last durable record when the pass was made.
    last_seq: u64,
    /// A file should be made ahead of its use.
    prepare: bool,
}

impl Drop for SettleJob {
    fn drop(&mut self) {
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
    let prepare = shared.may_prepare() && shared.wants_file(&shared.files.lock());
    let due = !candidates(shared).is_empty() && !is_pinned(shared, last_seq);
    if !(prepare || due) || shared.job_running.swap(true, Ordering::AcqRel) {
        return None;
    }
    let (phase, segments, groups) = (Phase::Plan, Vec::new(), BTreeMap::new());
    let shared = Arc::clone(shared);
    Some(SettleJob { shared, phase, segments, groups, batch: KvBatch::default(), entries: 0, last_seq, prepare })
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

/// Whether the groups that kept the oldest segment at the last look still do. Looks again after many records, so that
/// a host that lost the report gets another.
fn is_pinned(shared: &Shared, last_seq: u64) -> bool {
    const RECORDS_UNTIL_NEXT_LOOK: u64 = 256;
    let pins = shared.pins.lock();
    let index = shared.index.read();
    let pinned = |id: &GroupId| index.group(*id).is_some_and(|g| g.pins(pins.segment));
    last_seq < pins.looked_at + RECORDS_UNTIL_NEXT_LOOK && pins.groups.iter().any(pinned)
}

impl SettleJob {
    fn try_step(&mut self, budget: usize) -> Result<JobState, Failed> {
        match self.phase {
            Phase::Plan => {
                if self.prepare
                    && let Err(error) = self.shared.prepare_file()
                {
                    self.shared.looks_until_prepare.store(LOOKS_UNTIL_PREPARE, Ordering::Relaxed);
                    // Not needed yet: when it is, and there is still no room, the writer fails with the reason.
                    tracing::warn!(%error, "no journal segment could be prepared");
                }
                self.plan()
            }
            Phase::Fold { segment, position, seq } => self.fold(segment, position, seq, budget),
            Phase::Rows { after } => self.rows(after, budget),
            Phase::Finish => self.finish(),
        }
    }

    /// Takes the oldest segments up to the first one that holds an uncommitted entry.
    fn plan(&mut self) -> Result<JobState, Failed> {
        for segment in candidates(&self.shared) {
            let pinned = self.pinned(&segment)?;
            if pinned.is_empty() {
                self.segments.push(segment);
                continue;
            }
            if self.segments.is_empty() {
                let (unreported, groups) = (pinned.clone(), pinned);
                let (segment, looked_at) = (segment.use_number, self.last_seq);
                *self.shared.pins.lock() = crate::shared::Pins { unreported, groups, segment, looked_at };
            }
            break;
        }
        let Some(first) = self.segments.first() else { return Ok(JobState::Done) };
        let mut batch = KvBatch::default();
        batch.put(Table::State, KEY_SETTLING.to_vec(), Vec::new());
        self.shared.kv.write(batch)?;
        self.phase = Phase::Fold { segment: 0, position: BLOCK, seq: first.first_seq };
        Ok(JobState::Again)
    }

    /// The groups with uncommitted entries in a sealed segment.
    fn pinned(&self, segment: &Segment) -> Result<Vec<GroupId>, Failed> {
        let sealed = segment.sealed.get().expect("only sealed segments are candidates");
        let body = sealed.footer.length as usize - FOOTER_HEADER_BYTES;
        let bytes = segment.file.read(sealed.offset + FOOTER_HEADER_BYTES as u64, body)?;
        if crc(segment.seed, &bytes) != sealed.footer.body_crc {
            // A group that is not recognised here would be settled with entries that are not committed.
            let path = segment.file.path.display();
            return Err(Failed(format!("settling: the footer of {path} is damaged")));
        }
        let bytes = &bytes[..sealed.footer.groups as usize * FOOTER_ITEM_BYTES];
        let index = self.shared.index.read();
        let ids = bytes.chunks_exact(FOOTER_ITEM_BYTES).map(|b| FooterGroup::decode(b).group);
        Ok(ids.filter(|id| index.group(*id).is_some_and(|g| g.pins(segment.use_number))).collect())
    }

    /// Folds records until the budget is used.
    fn fold(&mut self, at: usize, position: u64, seq: u64, budget: usize) -> Result<JobState, Failed> {
        let segment = Arc::clone(&self.segments[at]);
        let mut records = SegmentFrames::new(&segment, position, seq);
        let (mut end, mut next_seq) = (position, seq);
        while end - position < budget.max(1) as u64 {
            let Some((frames, after)) = records.next()? else {
                self.phase = match self.segments.get(at + 1) {
                    Some(next) => Phase::Fold { segment: at + 1, position: BLOCK, seq: next.first_seq },
                    None => Phase::Rows { after: None },
                };
                return Ok(JobState::Again);
            };
            for frame in &frames {
                let folded = match self.groups.entry(frame.group) {
                    std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
                    std::collections::btree_map::Entry::Vacant(e) => e.insert(load(&self.shared, frame.group)?),
                };
                folded.apply(frame).map_err(Failed)?;
            }
            (end, next_seq) = (after, next_seq + 1);
        }
        self.phase = Phase::Fold { segment: at, position: end, seq: next_seq };
        Ok(JobState::Again)
    }

    /// Writes the rows of some more groups.
    fn rows(&mut self, after: Option<GroupId>, budget: usize) -> Result<JobState, Failed> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut groups = std::mem::take(&mut self.groups);
        let mut last = after;
        let from = after.map_or(Unbounded, Excluded);
        for (group, folded) in groups.range_mut((from, Unbounded)) {
            if self.batch.bytes >= budget.max(1) {
                break;
            }
            last = Some(*group);
            self.drop_rows(*group, folded)?;
            self.group_rows(*group, folded)?;
        }
        let done = last == groups.last_key_value().map(|(g, _)| *g);
        self.groups = groups;
        self.shared.kv.write(std::mem::take(&mut self.batch))?;
        self.phase = if done { Phase::Finish } else { Phase::Rows { after: last } };
        Ok(JobState::Again)
    }

    /// Deletes the rows of entries that are gone, key by key: a range deletion per group and truncation would pile up.
    fn drop_rows(&mut self, group: GroupId, folded: &mut Folded) -> Result<(), Failed> {
        let kept_after = match self.shared.index.read().group(group) {
            Some(g) if !folded.reset => g.start.max(folded.state.start.index).min(folded.rows.to),
            _ => folded.rows.to,
        };
        if folded.rows.is_empty() || kept_after < folded.rows.from {
            return Ok(());
        }
        let mut keys: Vec<Index> = Vec::new();
        self.shared.kv.scan(Table::Log, &log_key(group, folded.rows.from), &mut |key, _| match take_log_key(key) {
            Some((g, first)) if g == group && first <= folded.rows.to => {
                keys.push(first);
                // The row after tells where the one before ends.
                first <= kept_after
            }
            _ => false,
        })?;
        let whole = keys.iter().enumerate().take_while(|(i, _)| {
            let last = keys.get(i + 1).map_or(folded.rows.to, |next| next.prev());
            last <= kept_after
        });
        let count = whole.count();
        for first in &keys[..count] {
            self.batch.delete(Table::Log, log_key(group, *first));
        }
        folded.rows = match keys.get(count) {
            Some(first) => Rows { from: *first, ..folded.rows },
            None => Rows::default(),
        };
        Ok(())
    }

    /// Writes the entries of one group that are still kept in the segments of this pass. All of them are committed.
    fn group_rows(&mut self, group: GroupId, folded: &mut Folded) -> Result<(), Failed> {
        let spans = {
            let index = self.shared.index.read();
            index.group(group).map(|g| g.spans.clone()).unwrap_or_default()
        };
        let mut row = LogRow::default();
        for segment in &self.segments {
            let Some(span) = spans.iter().find(|s| s.segment == segment.use_number) else { continue };
            let mut next = span.lo;
            while next <= span.hi {
                let bytes_left = ROW_BYTES.saturating_sub(row.bytes()).max(1);
                let mut part = Gather { group, next, hi: span.hi, bytes_left, runs: Vec::new() };
                read_footer(segment, span, &mut part)?;
                for run in &part.runs {
                    row.push(run);
                    self.entries += run.count() as u64;
                }
                next = part.next;
                if row.bytes() >= ROW_BYTES {
                    row.finish(group, &mut folded.rows, &mut self.batch);
                }
            }
        }
        row.finish(group, &mut folded.rows, &mut self.batch);
        Ok(())
    }

    fn finish(&mut self) -> Result<JobState, Failed> {
        let last = self.segments.last().expect("a pass has segments");
        let footer = last.sealed.get().expect("sealed").footer;
        let (through, settled) = (last.use_number, footer.last_seq);
        let mut batch = KvBatch::default();
        for (group, folded) in &self.groups {
            let mut state = folded.state.clone();
            if plant::is("vote-lost-on-recycle") {
                state.hard_state = load(&self.shared, *group)?.state.hard_state;
            }
            batch.put(Table::State, group_key(*group), group_row(&state, folded.rows));
        }
        let row = Settled { seq: settled, next_use_id: footer.next_use_id };
        batch.put(Table::State, KEY_SETTLED.to_vec(), row.encode());
        batch.delete(Table::State, KEY_SETTLING.to_vec());
        self.shared.kv.write(batch)?;
        self.shared.kv.flush()?;
        self.shared.settled.store(settled, Ordering::Release);
        self.shared.row_bytes.store(self.shared.kv.bytes(), Ordering::Relaxed);
        self.shared.settled_entries.fetch_add(self.entries, Ordering::Relaxed);
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for some in groups.chunks(GROUPS_AT_ONCE) {
            self.shared.index.write().settle(some, through);
        }
        self.give_back(through);
        tracing::debug!(settled, segments = self.segments.len(), groups = groups.len(), "settled");
        Ok(JobState::Done)
    }

    fn give_back(&mut self, through: u64) {
        self.segments.clear();
        let gone: Vec<Arc<Segment>> = {
            let mut index = self.shared.index.write();
            let count = index.segments.partition_point(|s| s.use_number <= through);
            index.segments.drain(..count).collect()
        };
        // Each segment goes before its file is free: a file that somebody else holds can't be used again.
        self.shared.recycle(gone.into_iter().map(|s| Arc::clone(&s.file)).collect());
    }
}

/// What the key-value store knows of a group.
fn load(shared: &Shared, group: GroupId) -> Result<Folded, Failed> {
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
