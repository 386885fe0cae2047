//! Who waits until a replica has applied an index.
//!
//! Invariant: what waits for an index goes to the apply worker right behind the applies that reach it.

use crate::queue::ReadChunk;
use longboat_raft::{Index, Time};
use longboat_rsm::{RequestError, Stage};
use std::collections::BTreeMap;

const NEVER: Time = Time(u64::MAX);
/// Requests that may wait at one replica.
const WAITS_MAX: usize = 64 * 1024;

/// The waiting requests of one replica, by index.
#[derive(Debug)]
pub(crate) struct Waits {
    by_index: BTreeMap<Index, Vec<ReadChunk>>,
    count: usize,
    /// No deadline is earlier.
    earliest: Time,
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

impl Waits {
    /// Nobody waits.
    pub(crate) const fn new() -> Self {
        Self { by_index: BTreeMap::new(), count: 0, earliest: NEVER }
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }

    /// Adds requests; they are refused when too many wait.
    pub(crate) fn add(&mut self, waits: Vec<(Index, ReadChunk)>) {
        for (index, chunk) in waits {
            if self.count >= WAITS_MAX {
                chunk.reads.fail(&RequestError::Busy);
                continue;
            }
            self.count += 1;
            self.earliest = self.earliest.min(chunk.deadlines.earliest());
            self.by_index.entry(index).or_default().push(chunk);
        }
    }

    /// When some give up.
    pub(crate) fn deadline(&self) -> Time {
        self.earliest
    }

    /// Takes those for `handed` and before.
    pub(crate) fn reached(&mut self, handed: Index) -> Vec<ReadChunk> {
        let mut reached = Vec::new();
        while let Some(entry) = self.by_index.first_entry().filter(|e| *e.key() <= handed) {
            reached.append(&mut entry.remove());
        }
        self.count -= reached.len();
        reached
    }

    /// Fails those that waited too long.
    pub(crate) fn expire(&mut self, now: Time) {
        if now < self.earliest {
            return;
        }
        let late = RequestError::Timeout { stage: Stage::Apply, may_have_applied: false };
        for chunks in self.by_index.values_mut() {
            chunks.retain_mut(|c| c.expire(now, &late));
        }
        self.by_index.retain(|_, chunks| !chunks.is_empty());
        self.count = self.by_index.values().map(Vec::len).sum();
        let deadlines = self.by_index.values().flatten().map(|c| c.deadlines.earliest());
        self.earliest = deadlines.min().unwrap_or(NEVER);
    }

    /// Ends all.
    pub(crate) fn fail(&mut self, error: &RequestError) {
        for chunk in std::mem::take(self).by_index.into_values().flatten() {
            chunk.reads.fail(error);
        }
    }
}
