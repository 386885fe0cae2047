//! Worlds that are larger than most: long lives, more hosts, many groups, snapshots that are kept, less memory than that takes.
//!
//! Most worlds live for some ten seconds, in which something happens all the time. In a *long* life there is a fault every few
//! seconds, over minutes: stores go through their segments many times over, directories age, terms and snapshots go by, groups fall
//! silent and wake between two faults, and what takes half a minute to be given up is. Each is drawn by a generator of its own, so
//! that the other worlds are as if these were none.
//!
//! Must not know: what faults do.

use crate::rng::Rng;
use crate::swarm::{FaultKind, Swarm, members};
use longboat_raft::GroupId;

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// Groups of the largest worlds.
const GROUPS_MAX: u64 = 200;

impl Swarm {
    /// In some worlds there are more hosts, or more groups.
    pub fn draw_size(&mut self, rng: &mut Rng) {
        if rng.chance(60) {
            self.hosts = rng.between(6, 7);
            let groups = self.groups.len() as u64;
            self.groups = (1..=groups).map(|g| (GroupId(g), members(rng, self.hosts))).collect();
        }
        if rng.chance(30) {
            // A few of them are busy at any moment: the clients' requests are spread over all.
            let (first, count) = (self.groups.len() as u64, rng.magnitude(20, GROUPS_MAX));
            self.groups.extend((first + 1..=count).map(|g| (GroupId(g), members(rng, self.hosts))));
            self.fault_nanos = self.fault_nanos.min(5 * SECOND);
            self.large = (0, 0);
            self.ballast = self.ballast.min(1000);
            // The journal has room for a frame of each group between two of its segments.
            self.segment_bytes = self.segment_bytes.max(64 * 4096);
        }
    }

    /// In some worlds replicas keep more than one snapshot, and files of them rot.
    pub fn draw_kept_snapshots(&mut self, rng: &mut Rng) {
        if !rng.chance(250) {
            return;
        }
        self.snapshots_kept = rng.between(2, 4) as u32;
        let safe = self.hosts >= 3 && self.groups.iter().all(|(_, hosts)| hosts.len() >= 3);
        if safe && !self.operations.is_on() && rng.chance(600) {
            self.snapshot_entries = self.snapshot_entries.clamp(10, 30);
            self.faults.extend([FaultKind::RotSnapshot; 2]);
        }
    }

    /// In some worlds a part of the groups is looked up and saved off views.
    pub fn draw_views(&mut self, rng: &mut Rng) {
        if rng.chance(400) {
            let groups = self.groups.iter().map(|g| g.0).filter(|g| !self.on_disk.contains_key(g));
            self.with_views = groups.filter(|_| rng.chance(500)).collect();
        }
    }

    /// In some worlds hosts have little memory for log, and each replica alone may hold more than its host.
    pub fn draw_memory(&mut self, rng: &mut Rng) {
        if rng.chance(150) {
            self.log_cache_bytes_max = 64 << 10;
            self.log_memory_bytes_max = rng.magnitude(4, 64) << 10;
        }
    }

    /// Some worlds live for minutes.
    pub fn draw_length(&mut self, rng: &mut Rng) {
        if self.groups.len() > 20 || !rng.chance(250) {
            return;
        }
        self.is_long = true;
        self.fault_nanos = rng.between(120, 480) * SECOND;
        self.fault_every_nanos = rng.magnitude(1_000, 4_000) * MILLI;
        self.fault_lasts_nanos = rng.magnitude(500, 20_000) * MILLI;
        self.request_every_nanos = rng.magnitude(150, 500) * MILLI;
        self.timeout_nanos = rng.magnitude(500, 8_000) * MILLI;
        self.set_heartbeat(rng.between(40, 80) * MILLI, rng.between(4, 8));
        // Large writes and files cost time, and show nothing that they don't show in short lives.
        self.large = (0, 0);
        self.ballast = self.ballast.min(1000);
        self.operations.every_nanos *= 10;
        self.faults.retain(|kind| *kind != FaultKind::NoRoom || rng.chance(500));
        if self.faults.is_empty() {
            self.faults.push(FaultKind::Kill);
        }
    }
}
