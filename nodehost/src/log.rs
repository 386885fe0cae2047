//! A replica's log as its users see it.

use crate::replica::Replica;
use longboat_engine::{Compacted, EntryLimits, LogEntries, LogInfo, LogPin, LogRequest, Rare};
use longboat_raft::Index;
use longboat_rsm::{Pending, RequestError};
use std::ops::Range;
use std::time::Duration;

impl Replica {
    /// Reads committed entries of this replica's log, from the first of `range` on: as many as it keeps of the range and as
    /// the limits allow. Ask again from [`LogEntries::next`] for more.
    ///
    /// [`RequestError::LogRange`] when the range begins before the first entry that is kept, or after the last one that is
    /// committed.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when too many such requests wait; or that the replica takes no more requests.
    pub fn query_entries(
        &self,
        range: Range<Index>,
        limits: EntryLimits,
        timeout: Duration,
    ) -> Result<Pending<LogEntries>, RequestError> {
        let deadline = self.shared.deadline_after(timeout);
        self.shared.request(deadline, |reply| Rare::Log(LogRequest::Query(range, limits, reply)))
    }

    /// Holds this replica's log: what is at `index` and after it stays readable until `lease` has passed from now, or the
    /// pin is dropped. A leader's snapshot replaces the log all the same, and no pin survives a restart.
    ///
    /// [`RequestError::LogRange`] when the entry is gone, or about to go.
    ///
    /// # Errors
    /// As [`Replica::query_entries`].
    pub fn pin_log(&self, index: Index, lease: Duration, timeout: Duration) -> Result<Pending<LogPin>, RequestError> {
        let (until, deadline) = (self.shared.deadline_after(lease), self.shared.deadline_after(timeout));
        self.shared.request(deadline, |reply| Rare::Log(LogRequest::Pin(index, until, reply)))
    }

    /// What this replica's log holds, who uses it, and why it is not truncated any further.
    ///
    /// # Errors
    /// As [`Replica::query_entries`].
    pub fn log_info(&self, timeout: Duration) -> Result<Pending<LogInfo>, RequestError> {
        let deadline = self.shared.deadline_after(timeout);
        self.shared.request(deadline, |reply| Rare::Log(LogRequest::Info(reply)))
    }

    /// Truncates this replica's log through `through`, or, without it, as far as [`crate::GroupConfig::compaction_overhead`]
    /// lets it go behind the newest snapshot. Resolves when the space of what went is free. What is pinned, or needed by
    /// an older snapshot that is kept, stays, and goes when it is not any more.
    ///
    /// [`RequestError::SnapshotRefused`] when the newest snapshot does not reach `through`.
    ///
    /// # Errors
    /// As [`Replica::query_entries`].
    pub fn request_compaction(
        &self,
        through: Option<Index>,
        timeout: Duration,
    ) -> Result<Pending<Compacted>, RequestError> {
        let deadline = self.shared.deadline_after(timeout);
        self.shared.request(deadline, |reply| Rare::Log(LogRequest::Compact(through, reply)))
    }
}
