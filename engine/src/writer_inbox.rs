//! Where sealed batches are left for the log writer.
//!
//! Invariants: no batch is lost or taken twice; batches of one worker are taken in the order in which it left them; the log
//! writer is woken for a batch after that is there.

use crate::log_writer::SealedBatch;
use crate::notify::Notifier;
use crate::sync::Mutex;
use longboat_logdb::{LogStats, Update};
use std::sync::Arc;

/// Emptied vectors of updates that are kept while a host is busy.
const SPARES_MAX: usize = 4;

/// What step workers leave for the log writer, and what it leaves for them.
#[derive(Debug)]
pub struct WriterInbox {
    left: Mutex<Left>,
    /// Wakes the log writer.
    pub notifier: Arc<Notifier>,
    stats: Mutex<LogStats>,
}

/// What goes from hand to hand.
#[derive(Debug, Default)]
struct Left {
    batches: Vec<SealedBatch>,
    /// Emptied vectors of updates, for who makes the next batches.
    spares: Vec<Vec<Update>>,
}

impl WriterInbox {
    /// An empty inbox.
    pub fn new(notifier: Arc<Notifier>) -> Arc<Self> {
        Arc::new(Self { left: Mutex::new(Left::default()), notifier, stats: Mutex::new(LogStats::default()) })
    }

    /// Leaves a batch. Batches are made durable in the order in which they are left.
    pub fn push(&self, batch: SealedBatch) {
        self.notifier.after(|| self.left.lock().batches.push(batch));
    }

    /// As [`WriterInbox::push`]. Returns an empty vector with room for as many updates as this batch has, about.
    pub fn exchange(&self, batch: SealedBatch) -> Vec<Update> {
        let updates = batch.updates.len();
        let spare = self.notifier.after(|| {
            let mut left = self.left.lock();
            left.batches.push(batch);
            left.spares.pop()
        });
        spare.unwrap_or_else(|| Vec::with_capacity(updates))
    }

    /// Swaps the batches into `out`, which is empty, and leaves what `spares` has while there is room for it.
    pub(crate) fn take(&self, out: &mut Vec<SealedBatch>, spares: impl FnMut() -> Option<Vec<Update>>) {
        let mut left = self.left.lock();
        std::mem::swap(&mut left.batches, out);
        let room = SPARES_MAX.saturating_sub(left.spares.len());
        left.spares.extend(std::iter::from_fn(spares).take(room));
    }

    /// Nothing is made durable any more.
    pub(crate) fn clear(&self) {
        let batches = std::mem::take(&mut self.left.lock().batches);
        drop(batches);
    }

    /// Lets go of the emptied vectors.
    pub(crate) fn shed(&self) {
        let spares = std::mem::take(&mut self.left.lock().spares);
        drop(spares);
    }

    /// The store's figures, as of the log writer's last round.
    pub fn stats(&self) -> LogStats {
        *self.stats.lock()
    }

    pub(crate) fn set_stats(&self, stats: LogStats) {
        *self.stats.lock() = stats;
    }
}
