//! The bytes of log that a host's replicas hold in memory, all together, and what is done when they are too many.
//!
//! Replicas that hold something wait in a line. Over the bound the first of them let go of what is durable and applied,
//! whatever followers may still need: that is read back from the store. What can't be let go is not applied yet: then this
//! host's clients are told that it is busy, and, beyond [`APPENDS_PERCENT`] of the bound, leaders elsewhere stop sending it
//! entries. The second bound is the larger one so that hosts whose memory is full of their own proposals still take each
//! other's, without which none of these would ever be applied.
//!
//! Clients are refused for no longer than they have to be. What is refused beyond a bound is taken again well below it, so letting
//! go does not end at the bound but there: replicas that each hold less than they may could else fill a host for ever, with
//! nobody left whose proposal would bring it over the bound once more. While clients are refused every round of a worker asks
//! the next ones in its line. One that could not let go then can when more is applied, which no worker is told of: so whoever is
//! refused wakes them all, to ask again.
//!
//! Invariants: the host's sum is that of its workers' replicas as of each worker's last round; a replica that was told that
//! its host is overloaded is told when it is not any more; each refusal is followed by a round of every worker that asks the next
//! [`RELIEVED_MAX`], so clients who go on asking are refused no longer than most of what is held can't be let go of.

use crate::shared::{HostShared, SlotRef};
use crate::space::Room;
use crate::step::StepWorker;
use longboat_raft::{Time, plant, sometimes};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Percent of the bound beyond which entries of other hosts' leaders are refused.
const APPENDS_PERCENT: u64 = 200;
/// Percent of a bound at which what was refused beyond it is taken again: so that it is not refused and taken by turns.
const RELIEF_PERCENT: u64 = 75;
/// Replicas that are asked to let go in one round.
const RELIEVED_MAX: usize = 256;

/// The sum of a host, and whether it is too much.
#[derive(Debug)]
pub struct LogMemory {
    bytes: AtomicU64,
    bytes_max: u64,
    proposals_full: AtomicBool,
    appends_full: AtomicBool,
}

impl LogMemory {
    /// Nothing held, of this much.
    pub fn new(bytes_max: u64) -> Self {
        let (bytes, proposals_full, appends_full) = Default::default();
        Self { bytes, bytes_max, proposals_full, appends_full }
    }

    /// Bytes held, as of the workers' last rounds.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether proposals are refused.
    pub fn refuses_proposals(&self) -> bool {
        self.proposals_full.load(Ordering::Relaxed)
    }

    fn refuses_appends(&self) -> bool {
        self.appends_full.load(Ordering::Relaxed)
    }

    /// Whether replicas are to let go of what they can: as long as clients are refused.
    fn wants_relief(&self) -> bool {
        if plant::is("relief-ends-at-the-bound") { self.bytes() > self.bytes_max } else { self.refuses_proposals() }
    }

    /// A worker's replicas hold so much more, or less, than after its round before. Workers that do this at once may mark the sum of
    /// whoever was first: while anything is refused each round does it again.
    fn add(&self, delta: i64) {
        let before = self.bytes.fetch_add(delta as u64, Ordering::Relaxed);
        let now = before.wrapping_add(delta as u64);
        for (flag, percent) in [(&self.proposals_full, 100), (&self.appends_full, APPENDS_PERCENT)] {
            let bound = self.bytes_max / 100 * percent;
            let full = if flag.load(Ordering::Relaxed) { now > bound / 100 * RELIEF_PERCENT } else { now > bound };
            if flag.load(Ordering::Relaxed) != full {
                flag.store(full, Ordering::Relaxed);
                sometimes!(full && percent < APPENDS_PERCENT, "clients-refused-for-memory");
                sometimes!(full && percent == APPENDS_PERCENT, "appends-refused-for-memory");
                tracing::info!(bytes = now, bound, full, "log in memory");
            }
        }
    }
}

impl HostShared {
    /// Whether clients' proposals are refused for want of memory. If so, the workers look whether more can be let go of by now.
    pub(crate) fn has_no_memory(&self) -> bool {
        let refuses = self.log_memory.refuses_proposals();
        if refuses && !plant::is("refused-without-a-look") {
            self.workers.iter().for_each(|worker| worker.notifier.notify());
        }
        refuses
    }
}

/// One worker's part of it.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// Replicas that hold something, each once, first come first.
    line: VecDeque<SlotRef>,
    /// What the worker's replicas hold more than the host's sum says.
    delta: i64,
    /// Replicas that were told that the host is overloaded.
    overloaded: Vec<SlotRef>,
}

impl StepWorker {
    /// After a visit: what the replica holds is counted, and it learns whether the host has room.
    pub(crate) fn count_memory(&mut self, now: Time, at: SlotRef) {
        let refuses = self.host.log_memory.refuses_appends();
        let no_room = self.room == Room::None;
        let Some(replica) = self.replica_at(at) else { return };
        let held = replica.core.cached_bytes();
        let delta = held as i64 - replica.held_bytes as i64;
        let joins = held > 0 && !replica.in_line;
        (replica.held_bytes, replica.in_line) = (held, replica.in_line || joins);
        // Only who has committed entries to apply refuses more of them: these go without anybody's help. Uncommitted ones may
        // go only by what the leader sends: were that refused, hosts full of them would wait for each other for ever.
        let refuses = (refuses && replica.core.applied_index() < replica.core.commit()) || no_room;
        if refuses != replica.overloaded {
            replica.overloaded = refuses;
            replica.core.set_overloaded(now, refuses);
            if refuses && !self.holders.overloaded.contains(&at) {
                self.holders.overloaded.push(at);
            }
        }
        self.holders.delta += delta;
        if joins {
            self.holders.line.push_back(at);
        }
    }

    /// A replica moves out with all that it holds.
    pub(crate) fn uncount_memory(&mut self, held_bytes: usize) {
        self.holders.delta -= held_bytes as i64;
    }

    /// Once a round: the host learns of it, and while it refuses clients replicas let go of what they can.
    pub(crate) fn settle_memory(&mut self, now: Time) {
        let delta = std::mem::take(&mut self.holders.delta);
        if delta != 0 || self.host.log_memory.refuses_proposals() {
            self.host.log_memory.add(delta);
        }
        if self.host.log_memory.wants_relief() {
            self.relieve();
        }
        let has_room = !self.host.log_memory.refuses_appends() && self.room != Room::None;
        if has_room && !self.holders.overloaded.is_empty() {
            for at in std::mem::take(&mut self.holders.overloaded) {
                if let Some(replica) = self.replica_at(at).filter(|r| r.overloaded) {
                    replica.overloaded = false;
                    replica.core.set_overloaded(now, false);
                }
            }
        }
    }

    fn relieve(&mut self) {
        for _ in 0..self.holders.line.len().min(RELIEVED_MAX) {
            let Some(at) = self.holders.line.pop_front() else { break };
            let Some(replica) = self.replica_at(at) else { continue };
            replica.take_applied();
            replica.core.trim_to(0);
            let held = replica.core.cached_bytes();
            let delta = held as i64 - replica.held_bytes as i64;
            (replica.held_bytes, replica.in_line) = (held, held > 0);
            self.host.log_memory.add(delta);
            if held > 0 {
                self.holders.line.push_back(at);
            }
            if !self.host.log_memory.wants_relief() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_beyond_a_bound_is_taken_again_well_below_it() {
        let memory = LogMemory::new(1000);
        let said = |memory: &LogMemory| (memory.refuses_proposals(), memory.refuses_appends());
        memory.add(1000);
        assert_eq!(said(&memory), (false, false));
        memory.add(1);
        assert_eq!(said(&memory), (true, false));
        memory.add(1000);
        assert_eq!(said(&memory), (true, true));
        memory.add(-600);
        assert_eq!((said(&memory), memory.bytes()), ((true, false), 1401));
        memory.add(-650);
        assert_eq!(said(&memory), (true, false), "751 is above three quarters");
        memory.add(-101);
        assert_eq!(said(&memory), (false, false));
    }
}
