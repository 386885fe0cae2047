//! The simplest store that can be right: a map of groups to their entries. Nothing is shared with the real code.

use crate::support::Host;
use longboat_io::Job;
use longboat_logdb::{
    GroupState, LogDb, LogError, LogReader, LogStats, OpenError, Progress, ReadError, Record, Seq, Update,
};
use longboat_raft::{GroupId, Index, LogPos, ReplicaId, Run, StoreId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A group: its state without the log, and the log as single entries by index.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ModelGroup {
    pub(crate) state: GroupState,
    pub(crate) entries: BTreeMap<u64, Run>,
}

impl ModelGroup {
    /// What a store should know of this group after opening.
    pub(crate) fn expected(&self) -> GroupState {
        let mut state = self.state.clone();
        state.last = self.last();
        state.terms.clear();
        for (index, run) in &self.entries {
            if state.terms.last().is_none_or(|t: &LogPos| t.term != run.term()) {
                state.terms.push(LogPos::new(run.term(), Index(*index)));
            }
        }
        state
    }

    pub(crate) fn last(&self) -> LogPos {
        self.entries.last_key_value().map_or(self.state.start, |(i, run)| LogPos::new(run.term(), Index(*i)))
    }

    fn apply(&mut self, update: &Update) {
        let group = update.group;
        match update.record.as_deref() {
            Some(Record::Bootstrap(b)) => {
                self.entries.clear();
                self.state = GroupState { group, bootstrap: b.clone(), ..GroupState::default() };
            }
            // Of a replica that another one has followed: the frame means nothing.
            Some(Record::Removed { replica })
                if ![ReplicaId::ZERO, *replica].contains(&self.state.bootstrap.replica) =>
            {
                return;
            }
            Some(Record::Removed { replica }) => {
                self.entries.clear();
                let mut gone = std::mem::take(&mut self.state.bootstrap.gone);
                gone.insert(*replica);
                self.state = GroupState { group, removed: true, ..GroupState::default() };
                (self.state.bootstrap.replica, self.state.bootstrap.gone) = (*replica, gone);
            }
            Some(Record::Snapshot(s)) => {
                if s.resets_log {
                    self.entries.clear();
                    self.state.start = s.meta.pos;
                }
                self.state.snapshot = Some(s.clone());
            }
            Some(Record::Quarantined { .. }) => unreachable!("only the store makes one"),
            None => {}
        }
        if self.state.removed || self.state.quarantined.is_some() {
            return;
        }
        self.state.hard_state = update.hard_state;
        if let Some(from) = update.cut_tail {
            self.entries.split_off(&from.0);
        }
        for run in &update.runs {
            for i in run.first().0..=run.last().0 {
                self.entries.insert(i, run.slice(Index(i)..=Index(i)));
            }
        }
        if let Some(to) = update.compact_to.filter(|to| to.index > self.state.start.index) {
            self.entries = self.entries.split_off(&(to.index.0 + 1));
            self.state.start = to;
        }
    }
}

/// All groups.
pub(crate) type ModelGroups = BTreeMap<GroupId, ModelGroup>;

/// Applies one batch.
pub(crate) fn apply(groups: &mut ModelGroups, batch: &[Update]) {
    for update in batch {
        let fresh = || ModelGroup {
            state: GroupState { group: update.group, ..GroupState::default() },
            entries: BTreeMap::new(),
        };
        groups.entry(update.group).or_insert_with(fresh).apply(update);
    }
}

/// A host whose store is the model.
#[derive(Default)]
pub(crate) struct ModelHost {
    groups: Arc<Mutex<ModelGroups>>,
}

impl Host for ModelHost {
    fn open(&mut self) -> Result<(Box<dyn LogDb>, StoreId, Vec<GroupState>), OpenError> {
        let log = ModelLog { groups: Arc::clone(&self.groups), submitted: Seq(0) };
        let states = self.groups.lock().expect("no panics").values().map(ModelGroup::expected).collect();
        Ok((Box::new(log), StoreId(1), states))
    }

    fn has_journal(&self) -> bool {
        false
    }
}

struct ModelLog {
    groups: Arc<Mutex<ModelGroups>>,
    submitted: Seq,
}

impl LogDb for ModelLog {
    fn submit(&mut self, batch: Vec<Update>) -> Seq {
        apply(&mut self.groups.lock().expect("no panics"), &batch);
        self.submitted.0 += 1;
        self.submitted
    }

    fn poll(&mut self) -> Result<Progress, LogError> {
        Ok(Progress { durable_through: self.submitted, in_flight: false, place: self.submitted.0 })
    }

    fn background_job(&mut self) -> Option<Box<dyn Job>> {
        None
    }

    fn pinned(&mut self) -> Vec<GroupId> {
        Vec::new()
    }

    fn idle(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(ModelReader { groups: Arc::clone(&self.groups) })
    }

    fn stats(&self) -> LogStats {
        LogStats::default()
    }
}

struct ModelReader {
    groups: Arc<Mutex<ModelGroups>>,
}

impl LogReader for ModelReader {
    fn entries(&self, group: GroupId, lo: Index, hi: Index, bytes_max: usize) -> Result<Vec<Run>, ReadError> {
        let groups = self.groups.lock().expect("no panics");
        let g = groups.get(&group).filter(|g| !g.state.removed).ok_or(ReadError::Unavailable)?;
        if lo <= g.state.start.index {
            return Err(ReadError::Compacted(g.state.start.index.next()));
        }
        if hi > g.last().index || lo > hi {
            return Err(ReadError::Unavailable);
        }
        let mut left = bytes_max as isize;
        let mut runs = Vec::new();
        for run in g.entries.range(lo.0..=hi.0).map(|(_, run)| run) {
            runs.push(run.clone());
            left -= run.encoded_len() as isize;
            if left <= 0 {
                break;
            }
        }
        Ok(runs)
    }
}
