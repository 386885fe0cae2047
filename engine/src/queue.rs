//! The queues in which a group's clients leave what they want: open chunks, reads, snapshot requests.
//!
//! Invariants: a queue costs one pointer while empty; its bounds are counted, never preallocated; whoever puts
//! something in sets the group's ready flag afterwards, so that the worker that clears the flag and then drains sees it.

use crate::snapshot::SnapshotRequest;
use longboat_raft::{Index, ProposeOptions, RunBuilder, Time};
use longboat_rsm::{AnyCompletion, AnyReads, RequestError, Stage};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

const NEVER: Time = Time(u64::MAX);

/// When the clients of a chunk's slots give up: few moments, since slots that arrive together share one.
#[derive(Clone, Debug, Default)]
pub struct Deadlines {
    /// From the slot with this number on, until the next.
    from: SmallVec<[(u32, Time); 2]>,
}

impl Deadlines {
    /// Slots from `slot` on give up at `at`. Slots are noted in order.
    pub fn note(&mut self, slot: u32, at: Time) {
        if self.from.last().is_none_or(|d| d.1 != at) {
            self.from.push((slot, at));
        }
    }

    /// Forgets what was noted for slots from `slot` on.
    pub fn forget_from(&mut self, slot: u32) {
        while self.from.last().is_some_and(|d| d.0 >= slot) {
            self.from.pop();
        }
    }

    /// The earliest deadline that has not passed; `Time(u64::MAX)` when all have.
    pub fn earliest(&self) -> Time {
        self.from.iter().map(|d| d.1).min().unwrap_or(NEVER)
    }

    /// Whether some deadline is later than `now`.
    pub fn reach_beyond(&self, now: Time) -> bool {
        self.from.iter().any(|d| d.1 > now && d.1 != NEVER)
    }

    /// As [`Deadlines::expire`], but only for these of the slots.
    pub fn expire_within(&mut self, now: Time, slots: Range<u32>, results: &dyn AnyCompletion, error: &RequestError) {
        for i in 0..self.from.len() {
            let (from, at) = self.from[i];
            if at <= now {
                let from = from.max(slots.start);
                let end = self.from.get(i + 1).map_or(slots.end, |d| d.0).min(slots.end);
                if from < end {
                    results.fail(from, end - from, error);
                }
                self.from[i].1 = NEVER;
            }
        }
    }

    /// Fails the slots whose deadline has passed, of `count` in all, once.
    pub fn expire(&mut self, now: Time, count: u32, results: &dyn AnyCompletion, error: &RequestError) {
        self.expire_within(now, 0..count, results, error);
    }
}

/// Proposals that will become one run.
#[derive(Debug)]
pub struct Chunk {
    /// The entries.
    pub builder: RunBuilder,
    /// Where their results go: entry `i` has slot `i`.
    pub completion: Arc<dyn AnyCompletion>,
    /// The sequence number of the first entry; the others follow.
    pub first_sequence: u64,
    /// When the entries' clients give up.
    pub deadlines: Deadlines,
    /// How all of them may be treated: proposals of other options are in other chunks.
    pub options: ProposeOptions,
    /// Nothing is added to it: its results are of another type than those of commands.
    pub closed: bool,
}

impl Chunk {
    /// Fails the entries whose deadline has passed; false when none is left.
    ///
    /// While others are left the chunk may still be proposed as it is: those that gave up must not be told that they
    /// never will be applied.
    pub fn expire(&mut self, now: Time, error: &RequestError) -> bool {
        if self.deadlines.earliest() <= now {
            let error = match error {
                RequestError::Timeout { stage, .. } if self.deadlines.reach_beyond(now) => {
                    RequestError::Timeout { stage: *stage, may_have_applied: true }
                }
                other => other.clone(),
            };
            self.deadlines.expire(now, self.builder.count() as u32, &*self.completion, &error);
        }
        self.deadlines.earliest() != NEVER
    }

    /// Resolves every entry with an error.
    pub fn fail(&self, error: &RequestError) {
        self.completion.fail(0, self.builder.count() as u32, error);
    }
}

/// Reads that joined no round yet.
#[derive(Debug)]
pub struct ReadChunk {
    /// The queries.
    pub reads: Box<dyn AnyReads>,
    /// When their clients give up.
    pub deadlines: Deadlines,
}

impl ReadChunk {
    /// Fails the reads whose deadline has passed; false when none is left.
    pub fn expire(&mut self, now: Time, error: &RequestError) -> bool {
        if self.deadlines.earliest() <= now {
            self.deadlines.expire(now, self.reads.len() as u32, &*self.reads.results(), error);
        }
        self.deadlines.earliest() != NEVER
    }
}

/// What clients ask for seldom.
#[derive(Debug, Default)]
pub struct Extras {
    /// Who asks for an index to read at.
    pub index_reads: Option<ReadChunk>,
    /// Who waits until an index is applied here.
    pub waits: Vec<(Index, ReadChunk)>,
}

impl Extras {
    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.index_reads.as_ref().map_or(0, |r| r.reads.len()) + self.waits.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the clients of one group have left for its worker.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Chunks, the last one open.
    pub chunks: VecDeque<Chunk>,
    /// Reads, open.
    pub reads: Option<ReadChunk>,
    /// A snapshot request that waits for the group's worker.
    pub snapshot: Option<SnapshotRequest>,
    /// What is asked for seldom.
    pub extras: Option<Box<Extras>>,
    /// Entries in `chunks`.
    pub entries: usize,
    /// Bytes in `chunks`.
    pub bytes: usize,
}

impl Inbox {
    /// Appends what was left after this was taken. Of this, only chunks are left.
    pub(crate) fn join(&mut self, newer: Self) {
        self.entries += newer.entries;
        self.bytes += newer.bytes;
        self.chunks.extend(newer.chunks);
        self.reads = newer.reads;
        self.snapshot = newer.snapshot;
        self.extras = newer.extras;
    }

    /// Fails the proposals whose deadline has passed.
    pub fn expire(&mut self, now: Time) {
        let late = RequestError::Timeout { stage: Stage::Queue, may_have_applied: false };
        let Self { chunks, entries, bytes, .. } = self;
        chunks.retain_mut(|chunk| {
            let waits = chunk.expire(now, &late);
            if !waits {
                *entries -= chunk.builder.count();
                *bytes -= chunk.builder.payload_bytes();
            }
            waits
        });
    }
}

impl Inbox {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.reads.is_none() && self.snapshot.is_none() && self.extras.is_none()
    }

    /// Ends all that waits: none of it was proposed.
    pub fn fail(self, error: &RequestError) {
        for chunk in &self.chunks {
            chunk.fail(error);
        }
        let extras = self.extras.map(|e| *e).unwrap_or_default();
        let waits = extras.waits.into_iter().map(|w| w.1);
        for r in self.reads.into_iter().chain(extras.index_reads).chain(waits) {
            r.reads.fail(error);
        }
        if let Some(request) = self.snapshot {
            request.complete(Err(error.clone()));
        }
    }
}
