//! Shows the oracle what a host's store takes and what it reports durable.

use crate::oracle::Oracle;
use longboat_io::Job;
use longboat_logdb::{LogDb, LogError, LogReader, LogStats, Progress, Seq, Update};
use longboat_raft::{GroupId, HostId};
use std::sync::Arc;

/// A store under observation.
#[derive(Debug)]
pub struct Recorder<L> {
    inner: L,
    oracle: Arc<Oracle>,
    host: HostId,
    durable: Seq,
}

impl<L: LogDb> Recorder<L> {
    /// Observes `inner`, the store of `host`.
    pub fn new(inner: L, oracle: Arc<Oracle>, host: HostId) -> Self {
        Self { inner, oracle, host, durable: Seq(0) }
    }
}

impl<L: LogDb> LogDb for Recorder<L> {
    fn submit(&mut self, batch: Vec<Update>) -> Seq {
        // The store numbers its batches from 1, in order.
        let updates = batch.clone();
        let seq = self.inner.submit(batch);
        self.oracle.submitted(self.host, seq, &updates);
        seq
    }

    fn poll(&mut self) -> Result<Progress, LogError> {
        let progress = self.inner.poll()?;
        if progress.durable_through > self.durable {
            self.durable = progress.durable_through;
            self.oracle.durable(self.host, self.durable);
        }
        Ok(progress)
    }

    fn background_job(&mut self) -> Option<Box<dyn Job>> {
        self.inner.background_job()
    }

    fn pinned(&mut self) -> Vec<GroupId> {
        self.inner.pinned()
    }

    fn idle(&mut self) -> Result<(), LogError> {
        self.inner.idle()
    }

    fn shed(&mut self) {
        self.inner.shed();
    }

    fn close(&mut self) -> Result<(), LogError> {
        self.inner.close()
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.inner.reader()
    }

    fn stats(&self) -> LogStats {
        let stats = self.inner.stats();
        self.oracle.archived(stats.archived_segments);
        stats
    }

    fn free_bytes(&self) -> Option<u64> {
        self.inner.free_bytes()
    }
}
