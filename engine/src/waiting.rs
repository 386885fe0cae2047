//! Requests of one replica that its core does not have, or has and answers later: what most replicas have none of at most times.
//!
//! Invariant: each request is in one of these places, and is resolved when it leaves the last of them. Must not know: where
//! answers come from.

use crate::queue::{Chunk, ReadChunk};
use crate::snapshot::SnapshotTimeout;
use crate::waits::Waits;
use longboat_raft::spare::Emptied;
use longboat_raft::{Core, Index, Time};
use longboat_rsm::{RequestError, Stage};
use std::collections::VecDeque;

/// Reads that wait for an index.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) context: u64,
    pub(crate) since: Time,
    pub(crate) chunk: ReadChunk,
}

/// Requests under way outside of the core.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Chunks that wait for a leader.
    pub(crate) parked: VecDeque<Chunk>,
    /// Reads that wait for the leader's word, by context.
    pub(crate) asked: VecDeque<Asked>,
    /// Reads whose index is known and not yet handed to apply.
    pub(crate) confirmed: Vec<(Index, ReadChunk)>,
    /// Reads that must ask again.
    pub(crate) unasked: Vec<ReadChunk>,
    /// Who waits for an index to be applied.
    pub(crate) waits: Waits,
    /// Snapshot requests whose clients may give up.
    pub(crate) snapshot_timeouts: Vec<SnapshotTimeout>,
}

impl Emptied for Waiting {
    const EMPTY: &'static Self = &Self {
        parked: VecDeque::new(),
        asked: VecDeque::new(),
        confirmed: Vec::new(),
        unasked: Vec::new(),
        waits: Waits::new(),
        snapshot_timeouts: Vec::new(),
    };

    fn is_emptied(&self) -> bool {
        self.count() == 0 && self.waits.is_empty() && self.snapshot_timeouts.is_empty()
    }
}

impl Waiting {
    /// Chunks of proposals and of reads.
    pub(crate) fn count(&self) -> usize {
        self.parked.len() + self.asked.len() + self.confirmed.len() + self.unasked.len()
    }

    /// When the first of them gives up; reads that were asked for longer than `patience_nanos` ago ask again.
    pub(crate) fn deadline(&self, patience_nanos: u64) -> Time {
        let asked = self.asked.iter().map(|r| r.chunk.deadlines.earliest().min(r.since.plus_nanos(patience_nanos)));
        let unasked = self.unasked.iter().map(|r| r.deadlines.earliest());
        let confirmed = self.confirmed.iter().map(|r| r.1.deadlines.earliest());
        let parked = self.parked.iter().map(|c| c.deadlines.earliest());
        let snapshots = self.snapshot_timeouts.iter().map(|t| t.deadline);
        asked.chain(unasked).chain(confirmed).chain(parked).chain(snapshots).fold(self.waits.deadline(), Time::min)
    }

    /// Fails those that have waited too long.
    pub(crate) fn expire(&mut self, now: Time, core: &mut Core) {
        let no_leader = RequestError::Timeout { stage: Stage::NoLeader, may_have_applied: false };
        self.parked.retain_mut(|c| c.expire(now, &no_leader));
        let late = RequestError::Timeout { stage: Stage::Quorum, may_have_applied: false };
        self.asked.retain_mut(|r| {
            let waits = r.chunk.expire(now, &late);
            if !waits {
                core.give_up_read(r.context);
            }
            waits
        });
        self.confirmed.retain_mut(|r| r.1.expire(now, &late));
        self.unasked.retain_mut(|r| r.expire(now, &late));
        self.waits.expire(now);
        for timeout in self.snapshot_timeouts.extract_if(.., |t| t.deadline <= now) {
            timeout.expire();
        }
    }

    /// Ends those that the core was not given: they were not applied and never will be.
    pub(crate) fn fail_parked(&mut self, error: &RequestError) {
        for chunk in self.parked.drain(..) {
            chunk.fail(error);
        }
    }

    /// Ends all.
    pub(crate) fn fail(&mut self, error: &RequestError) {
        self.fail_parked(error);
        let reads = self.asked.drain(..).map(|r| r.chunk).chain(self.unasked.drain(..));
        for r in reads.chain(self.confirmed.drain(..).map(|r| r.1)) {
            r.reads.fail(error);
        }
        self.waits.fail(error);
        for timeout in self.snapshot_timeouts.drain(..) {
            timeout.fail(error);
        }
    }
}
