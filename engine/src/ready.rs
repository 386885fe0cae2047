//! Why a replica is to be visited, and where its worker finds it.
//!
//! Invariants:
//! - A reason that is set is taken by a visit that begins later. Whoever sets the first one since reasons were taken puts the
//!   replica on its worker's list; if it has not moved in yet, whoever moves it in does so.
//! - Reasons are taken in one step, before the queues that they speak of are drained: what is put there after the drain has
//!   set its reason after it was taken.
//! - A replica may be listed more often than it was set, and under a slot that it has left: slots, their generations and the
//!   timing wheel belong to one worker, which no other thread reads, and which passes over what is not there any more.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use longboat_raft::plant;

/// A place in a worker's table of replicas. Slots are used again under a new generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRef {
    /// The slot.
    pub slot: u32,
    /// Its generation when the replica moved in.
    pub generation: u32,
}

/// Bit of a route that says that the replica has moved in.
const MOVED_IN: u64 = 1 << 63;
/// A route is worker (15 bits), generation (24 bits) and slot (24 bits): sixteen million replicas a worker.
const WORKER_SHIFT: u32 = 48;
const GENERATION_SHIFT: u32 = 24;
const FIELD_MASK: u64 = (1 << 24) - 1;

/// The reasons of one replica, and its place.
#[derive(Debug)]
pub struct ReadyFlags {
    /// Worker, generation, slot.
    route: AtomicU64,
    reasons: AtomicU32,
}

impl ReadyFlags {
    /// Of a replica that is yet to move in with this worker.
    pub fn new(worker: usize) -> Self {
        Self { route: AtomicU64::new((worker as u64) << WORKER_SHIFT), reasons: AtomicU32::new(0) }
    }

    /// The step worker that has the replica.
    pub fn worker(&self) -> usize {
        ((self.route.load(Ordering::SeqCst) & !MOVED_IN) >> WORKER_SHIFT) as usize
    }

    /// Sets a reason. Returns which worker's list the replica is to be put on, and as what, if it is to be.
    #[must_use]
    pub fn set(&self, reason: u32) -> Option<(usize, SlotRef)> {
        // A replica that has not moved in yet is looked at when it does.
        if self.reasons.fetch_or(reason, Ordering::SeqCst) == 0 { self.place() } else { None }
    }

    /// Takes the reasons.
    pub fn take(&self) -> u32 {
        if plant::is("reasons-taken-in-two-steps") {
            let reasons = self.reasons.load(Ordering::SeqCst);
            self.reasons.store(0, Ordering::SeqCst);
            return reasons;
        }
        self.reasons.swap(0, Ordering::SeqCst)
    }

    /// The replica has moved into this slot of its worker. Returns as [`ReadyFlags::set`].
    #[must_use]
    pub fn moved_in(&self, at: SlotRef) -> Option<(usize, SlotRef)> {
        let worker = (self.worker() as u64) << WORKER_SHIFT;
        let generation = (u64::from(at.generation) & FIELD_MASK) << GENERATION_SHIFT;
        let early = plant::is("looked-before-it-moved-in").then(|| self.reasons.load(Ordering::SeqCst));
        self.route.store(MOVED_IN | worker | generation | u64::from(at.slot), Ordering::SeqCst);
        // After that: who sets the first reason later finds the route, and who has set it before is found here.
        let reasons = early.unwrap_or_else(|| self.reasons.load(Ordering::SeqCst));
        if reasons != 0 { self.place() } else { None }
    }

    fn place(&self) -> Option<(usize, SlotRef)> {
        let route = self.route.load(Ordering::SeqCst);
        let slot = (route & FIELD_MASK) as u32;
        let generation = (route >> GENERATION_SHIFT & FIELD_MASK) as u32;
        let worker = ((route & !MOVED_IN) >> WORKER_SHIFT) as usize;
        (route & MOVED_IN != 0).then_some((worker, SlotRef { slot, generation }))
    }
}
