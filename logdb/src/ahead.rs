//! Segment files ahead of their use: made, their blocks reserved, then filled with zeros.
//!
//! A sync after a write into reserved blocks has the file system turn them into written ones and commit that, which takes as
//! long as the write itself, and many times that while somebody else has the file system commit much. After a write over
//! blocks that were written once the sync has only data to bring to the disk. So the files are written ahead in large direct
//! writes, with one commit to a file: what that costs is a third of what it saves.
//!
//! While records are large that does not pay: a file holds few of them, what their commits cost is little beside the writing,
//! and zeros would be half of all that is written. So no file is filled then.
//!
//! It takes a bounded share of the disk: at most one file is filled for each one that the journal takes for the first time,
//! and a file that is used again is never filled. With snapshots in time all are.
//!
//! Invariant: a file that is being filled is in nobody's list: the writer can't take it until it is given back. At least
//! one other file is free when it is taken out, and another is made while it is filled if the writer takes that one.

use crate::segment::SegmentFile;
use crate::shared::Shared;
use longboat_io::{Job, JobState};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Makes and fills files until enough are ready, a step at a time.
pub(crate) struct AheadJob {
    shared: Arc<Shared>,
    file: Option<SegmentFile>,
}

/// A job, if a file is wanted or could be filled and no other job does so. Each call is a look that counts towards the next
/// attempt after one that failed.
pub(crate) fn job(shared: &Arc<Shared>) -> Option<AheadJob> {
    let due = (shared.may_prepare() && shared.wants_file()) || shared.has_unfilled();
    if !due || shared.ahead_running.swap(true, Ordering::AcqRel) {
        return None;
    }
    Some(AheadJob { shared: Arc::clone(shared), file: None })
}

impl Job for AheadJob {
    fn step(&mut self, budget: usize) -> JobState {
        if self.shared.is_closed() {
            return JobState::Done;
        }
        // The writer must always find a file, so that comes first.
        self.shared.prepare_file();
        if self.file.is_none() {
            self.file = self.shared.take_unfilled();
        }
        let Some(file) = &mut self.file else { return JobState::Done };
        if let Err(error) = file.fill(budget as u64) {
            // It stays usable as it is: only slower at its first use.
            tracing::warn!(%error, "a journal segment could not be filled");
            file.set_filled();
        }
        if file.is_filled() {
            self.give_back();
        }
        JobState::Again
    }
}

impl AheadJob {
    fn give_back(&mut self) {
        if let Some(mut file) = self.file.take() {
            file.stop_filling();
            self.shared.give_back(file);
        }
    }
}

impl Drop for AheadJob {
    fn drop(&mut self) {
        self.give_back();
        self.shared.ahead_running.store(false, Ordering::Release);
    }
}
