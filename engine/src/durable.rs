//! What a step worker learns of its sealed batches.
//!
//! Invariants: batches complete in the order of their sealing, each once. A worker with a replica that does something as soon as
//! a batch is durable is woken for it; one without, whose replicas all follow and know of nothing to apply, is not: the log writer
//! has sent their acknowledgements, and the worker learns of the batch in its next round, whatever that is for.

use crate::shared::SlotRef;
use crate::snapshot::AfterDurable;
use crate::step::{StepWorker, WARM_AHEAD};
use longboat_raft::{PersistToken, plant};
use std::sync::atomic::Ordering;

/// What waits for a sealed batch to be durable.
pub(crate) struct Sealed {
    pub(crate) seq: u64,
    pub(crate) bytes: u64,
    pub(crate) tokens: Vec<(SlotRef, PersistToken)>,
    pub(crate) after: Vec<(SlotRef, AfterDurable)>,
}

impl StepWorker {
    /// Tells the replicas whose batches are durable.
    pub(crate) fn complete_durable(&mut self) {
        let durable = self.inbox().durable.through();
        while self.sealed.front().is_some_and(|s| s.seq <= durable) {
            let sealed = self.sealed.pop_front().expect("just seen");
            self.host.unsynced_bytes.fetch_sub(sealed.bytes, Ordering::Relaxed);
            self.complete_tokens(sealed.tokens);
            for (at, after) in sealed.after {
                self.after_durable(at, after);
            }
        }
        if !self.starved.is_empty() && self.host.takes_proposals() {
            for at in std::mem::take(&mut self.starved) {
                if let Some(replica) = self.replica_at(at) {
                    replica.starved = false;
                    self.ready.push(at);
                }
            }
        }
    }

    fn complete_tokens(&mut self, tokens: Vec<(SlotRef, PersistToken)>) {
        let mut tokens = tokens.into_iter();
        while !tokens.as_slice().is_empty() {
            let ahead = tokens.as_slice().iter().take(WARM_AHEAD).map(|(at, _)| at.slot);
            let mix = ahead.filter_map(|slot| self.replica_in(slot)).fold(0, |mix, r| mix ^ r.core.warm_durable());
            std::hint::black_box(mix);
            for (at, token) in tokens.by_ref().take(WARM_AHEAD) {
                // A token of a replica that has moved out is dropped with it.
                if self.replica_at(at).is_none() {
                    continue;
                }
                self.guarded(at.slot, |w| {
                    let replica = w.replica(at.slot);
                    let stepped = replica.core.persisted(token);
                    if stepped.is_err() || replica.wants_visit() {
                        w.after_step(at.slot, stepped);
                    }
                });
            }
        }
    }

    /// At the end of a round, after its batch was left with the log writer.
    pub(crate) fn ask_to_be_woken(&mut self) {
        let awaits = std::mem::take(&mut self.awaits_disk) || !self.starved.is_empty();
        if let Some(newest) = self.sealed.back().filter(|_| awaits && !plant::is("durable-without-a-wake")) {
            self.inbox().durable.want(newest.seq);
        }
    }

    /// Whether a batch became durable before the log writer could see that this worker wants to know: then there is another
    /// round. Either the writer sees the wish, which was left before this look, or this look sees the batch.
    pub(crate) fn missed_durable(&self) -> bool {
        let known = self.inbox().durable.wanted_and_reached();
        self.sealed.front().is_some_and(|s| s.seq <= known)
    }
}
