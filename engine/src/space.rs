//! The room that is left on a host's disk, and what is refused while it is little.
//!
//! Below the reserve clients' commands are refused, wherever they come from; below half of it other leaders' entries, too, which
//! is said to those leaders. What is left is for votes, membership changes, snapshots, which let the log be truncated, and
//! whatever else helps. A disk that is full after all fails the store, and with it the host.
//!
//! Invariants: what is refused is taken again well above the bound at which it was refused, without anybody's doing; a worker's
//! replicas are told in the round in which it sees the change. Must not know: who filled the disk.

use crate::shared::HostShared;
use crate::step::StepWorker;
use longboat_raft::{Time, plant, sometimes};
use longboat_rsm::RequestError;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Time between looks, in nanoseconds.
pub(crate) const LOOK_NANOS: u64 = 100_000_000;
/// Percent of a bound at which what was refused below it is taken again.
const RELIEF_PERCENT: u64 = 125;

/// How much room there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// Enough.
    #[default]
    Enough,
    /// Less than the reserve: no commands.
    Little,
    /// Less than half of it: no entries of other leaders.
    None,
}

/// What is known of the room on the disk.
#[derive(Debug)]
pub struct DiskSpace {
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    room: AtomicU8,
}

impl DiskSpace {
    /// Nothing known yet; 0 for no reserve.
    pub fn new(reserve_bytes: u64) -> Self {
        Self { reserve_bytes, free_bytes: AtomicU64::new(u64::MAX), room: AtomicU8::new(0) }
    }

    pub(crate) fn room(&self) -> Room {
        match self.room.load(Ordering::Relaxed) {
            0 => Room::Enough,
            1 => Room::Little,
            _ => Room::None,
        }
    }

    /// Why a client's command is refused.
    pub(crate) fn refuses_commands(&self) -> Option<RequestError> {
        let refuses = self.room() != Room::Enough && !plant::is("commands-fill-the-disk");
        let free_bytes = self.free_bytes.load(Ordering::Relaxed);
        refuses.then_some(RequestError::DiskFull { free_bytes, reserve_bytes: self.reserve_bytes })
    }

    /// So much is left. Returns whether other things are refused from here on.
    pub(crate) fn note(&self, free_bytes: u64) -> bool {
        let before = self.room();
        let bound = |bound: u64, refused: bool| if refused { bound / 100 * RELIEF_PERCENT } else { bound };
        let room = if free_bytes < bound(self.reserve_bytes / 2, before == Room::None) {
            Room::None
        } else if free_bytes < bound(self.reserve_bytes, before != Room::Enough) {
            Room::Little
        } else {
            Room::Enough
        };
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
        self.room.store(room as u8, Ordering::Relaxed);
        if room != before {
            tracing::warn!(free_bytes, reserve_bytes = self.reserve_bytes, ?room, "room on the disk");
        }
        room != before
    }
}

impl HostShared {
    /// So much is left on the disk: workers are told if that changes what they take.
    pub(crate) fn note_free_bytes(&self, free_bytes: u64) {
        if self.space.note(free_bytes) {
            self.workers.iter().for_each(|worker| worker.notifier.notify());
        }
    }
}

impl StepWorker {
    /// Once a round: when the room on the disk has changed, every replica is told.
    pub(crate) fn heed_room(&mut self, now: Time) {
        let room = self.host.space.room();
        if std::mem::replace(&mut self.room, room) == room {
            return;
        }
        sometimes!(room == Room::Little, "disk-has-little-room");
        sometimes!(room == Room::None, "disk-has-no-room-for-entries");
        let full = room != Room::Enough && !plant::is("commands-fill-the-disk");
        for slot in 0..self.slots_len() {
            if self.replica_in(slot).is_some() {
                self.replica(slot).core.set_full(now, full);
                // A visit tells whether entries are taken.
                self.activate(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_below_a_bound_is_taken_again_well_above_it() {
        let space = DiskSpace::new(1000);
        assert!(!space.note(1000) && space.refuses_commands().is_none());
        assert!(space.note(999) && space.room() == Room::Little);
        let refused = RequestError::DiskFull { free_bytes: 999, reserve_bytes: 1000 };
        assert_eq!(space.refuses_commands(), Some(refused.clone()));
        assert!(!refused.may_have_applied());
        assert!(space.note(499) && space.room() == Room::None);
        assert!(!space.note(600));
        assert!(space.note(625) && space.room() == Room::Little);
        assert!(!space.note(1249));
        assert!(space.note(1250) && space.room() == Room::Enough);
    }

    #[test]
    fn without_a_reserve_nothing_is_refused() {
        let space = DiskSpace::new(0);
        assert!(!space.note(0) && space.refuses_commands().is_none());
    }
}
