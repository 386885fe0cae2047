//! Filling free segment files with zeros, while the host is idle.
//!
//! Writing over blocks that were written once takes a fraction of the time that the first write takes: the file system need not
//! turn reserved blocks into written ones, and the sync has only data to bring to the disk. Under load this would only
//! double what is written, so it waits, and ends when load returns.
//!
//! Invariant: a file that is being filled is in nobody's list: the writer can't take it until it is given back. At least
//! one other file is free meanwhile.

use crate::segment::SegmentFile;
use crate::shared::Shared;
use longboat_io::{Job, JobState};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Fills one file, a step at a time.
pub(crate) struct FillJob {
    shared: Arc<Shared>,
    file: Option<SegmentFile>,
    /// The last record when it began.
    last_seq: u64,
}

/// A file to fill, if one is free and nothing was written since the last look. Every look comes here, also while a job is
/// running: it is how that job learns that load is back.
pub(crate) fn job(shared: &Arc<Shared>, last_seq: u64) -> Option<FillJob> {
    let idle = shared.looked_at.swap(last_seq, Ordering::AcqRel) == last_seq;
    if !idle || shared.job_running.swap(true, Ordering::AcqRel) {
        return None;
    }
    let file = shared.take_unfilled();
    if file.is_none() {
        shared.job_running.store(false, Ordering::Release);
    }
    file.map(|file| FillJob { shared: Arc::clone(shared), file: Some(file), last_seq })
}

impl Job for FillJob {
    fn step(&mut self, budget: usize) -> JobState {
        let Some(file) = &mut self.file else { return JobState::Done };
        if self.shared.is_closed() || self.shared.looked_at.load(Ordering::Acquire) != self.last_seq {
            return JobState::Done;
        }
        if let Err(error) = file.fill(budget as u64) {
            // It stays usable as it is: only slower at its first use.
            tracing::warn!(%error, "a journal segment could not be filled");
            file.set_filled();
        }
        if file.is_filled() { JobState::Done } else { JobState::Again }
    }
}

impl Drop for FillJob {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.shared.give_back(file);
        }
        self.shared.job_running.store(false, Ordering::Release);
    }
}
