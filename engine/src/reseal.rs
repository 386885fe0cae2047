//! Writes the newest words of a stopped group again, so that it does not keep the oldest journal segment from being used anew.
//!
//! A running group's words are written again by its step worker; of a group that does not run nobody else may write.
//! Invariant: the table of stopped groups is locked from the look-up until the batch is left with the log writer, and a group that
//! starts is taken out of the table before its replica moves in; so whatever the replica writes comes after.

use crate::log_writer::{SealedBatch, WriterInbox};
use crate::shared::HostShared;
use longboat_io::{Job, JobState};
use longboat_logdb::{LogReader, Update};
use longboat_raft::{GroupId, Run};
use std::sync::Arc;

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// Writes the words of one stopped group again.
pub(crate) struct ResealJob {
    pub(crate) host: Arc<HostShared>,
    pub(crate) writer: Arc<WriterInbox>,
    pub(crate) reader: Arc<dyn LogReader>,
    pub(crate) group: GroupId,
}

impl Job for ResealJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let stopped = self.host.stopped.lock();
        let Some(state) = stopped.get(&self.group).filter(|s| !s.removed) else { return JobState::Done };
        let mut update = Update { group: self.group, hard_state: state.hard_state, ..Update::default() };
        let first = state.hard_state.commit.max(state.start.index).next();
        let mut next = first;
        while next <= state.last.index {
            let runs: Vec<Run> = match self.reader.entries(self.group, next, state.last.index, READ_BYTES) {
                Ok(runs) => runs,
                Err(error) => {
                    tracing::warn!(group = %self.group, %error, "tail of a stopped group can't be read");
                    return JobState::Done;
                }
            };
            next = runs.last().expect("a read gives at least one entry").last().next();
            update.runs.extend(runs);
        }
        if !update.runs.is_empty() {
            update.cut_tail = Some(first);
        }
        self.writer.push(SealedBatch { updates: vec![update], ..SealedBatch::default() });
        JobState::Done
    }
}
