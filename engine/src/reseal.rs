//! Writes the newest words of a stopped group again, so that it does not keep the oldest journal segment from being used anew.
//!
//! A running group's words are written again by its step worker; of a group that does not run nobody else may write.
//! Invariant: the batch is left with the log writer while the table of stopped groups is locked and holds the very state that
//! was read from; a group that starts is taken out of the table before its replica moves in, so whatever the replica writes
//! comes after.

use crate::log_writer::{SealedBatch, WriterInbox};
use crate::shared::HostShared;
use longboat_io::{Job, JobState};
use longboat_logdb::{GroupState, LogReader, Update};
use longboat_raft::GroupId;
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

impl ResealJob {
    /// The group's last words, from the store. `None` when it has none, or runs, or can't be read.
    fn words(&self) -> Option<(GroupState, Update)> {
        let state = self.host.stopped.lock().get(&self.group).filter(|s| !s.removed).cloned()?;
        let mut update = Update { group: self.group, hard_state: state.hard_state, ..Update::default() };
        let first = state.hard_state.commit.max(state.start.index).next();
        let mut next = first;
        while next <= state.last.index {
            match self.reader.entries(self.group, next, state.last.index, READ_BYTES) {
                Ok(runs) => {
                    next = runs.last().expect("a read gives at least one entry").last().next();
                    update.runs.extend(runs);
                }
                Err(error) => {
                    tracing::warn!(group = %self.group, %error, "tail of a stopped group can't be read");
                    return None;
                }
            }
        }
        if !update.runs.is_empty() {
            update.cut_tail = Some(first);
        }
        Some((state, update))
    }
}

impl Job for ResealJob {
    fn step(&mut self, _budget: usize) -> JobState {
        // Read without the lock: it may take long. What was read counts only if the group has not run meanwhile.
        if let Some((state, update)) = self.words() {
            let stopped = self.host.stopped.lock();
            if stopped.get(&self.group) == Some(&state) {
                self.writer.push(SealedBatch { updates: vec![update], ..SealedBatch::default() });
            }
        }
        JobState::Done
    }
}
