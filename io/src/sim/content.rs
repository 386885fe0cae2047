//! What a file holds: as processes see it through the page cache, and as it is on the disk.
//!
//! Invariant: outside of `dirty` and `lost` sectors, both agree as far as the disk's copy reaches.

use super::Rng;
use super::sectors::Sectors;
use longboat_raft::Time;
use std::io;

/// Bytes that a kernel copies at a time: a write that is cut off by a kill ends at a multiple of them.
const PAGE_BYTES: usize = 4096;
/// A file that has grown beyond this gets room for [`ROOM_BYTES`] at once: files of that size are snapshots, written block by block, and
/// would be copied at each doubling.
const LARGE_BYTES: usize = 64 << 10;
/// Memory is only taken for what is written.
const ROOM_BYTES: usize = 1 << 20;

#[derive(Clone, Debug)]
pub(super) struct Content {
    sector_bytes: usize,
    seen: Vec<u8>,
    disk: Vec<u8>,
    /// Sectors that the page cache must still write.
    dirty: Sectors,
    /// Sectors that look clean and are not on the disk: a sync of them failed.
    lost: Sectors,
    under_way: Option<UnderWay>,
    /// Handles of the living process.
    pub(super) handles: usize,
}

/// A submitted write.
#[derive(Clone, Debug)]
struct UnderWay {
    offset: usize,
    /// What was there before.
    before: Vec<u8>,
    length: usize,
    completes_at: Time,
    /// What it will come to.
    fails: Option<io::ErrorKind>,
}

impl Content {
    pub(super) fn new(sector_bytes: usize) -> Self {
        let (seen, disk, dirty, lost) = (Vec::new(), Vec::new(), Sectors::default(), Sectors::default());
        Self { sector_bytes, seen, disk, dirty, lost, under_way: None, handles: 0 }
    }

    pub(super) fn seen(&self) -> &[u8] {
        &self.seen
    }

    pub(super) fn grow(&mut self, len: usize) {
        if len > self.seen.len() {
            self.make_room(len);
            self.seen.resize(len, 0);
        }
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if offset == self.seen.len() {
            self.make_room(end);
            self.seen.extend_from_slice(bytes);
        } else {
            self.grow(end);
            self.seen[offset..end].copy_from_slice(bytes);
        }
        let sectors = offset / self.sector_bytes..(end - 1) / self.sector_bytes + 1;
        self.lost.remove(sectors.clone());
        self.dirty.insert(sectors);
    }

    fn make_room(&mut self, len: usize) {
        if len > LARGE_BYTES && len > self.seen.capacity() {
            self.seen.reserve(len.max(ROOM_BYTES) - self.seen.len());
        }
    }

    pub(super) fn sync(&mut self) {
        if self.seen.len() > self.disk.len() {
            self.disk.reserve_exact(self.seen.len() - self.disk.len());
            self.disk.resize(self.seen.len(), 0);
        }
        for sector in self.dirty.take() {
            self.persist(sector);
        }
        if let Some(w) = &mut self.under_way {
            w.completes_at = Time::ZERO;
        }
    }

    /// A sync that fails: what it should have written is forgotten by everybody but readers.
    pub(super) fn fail_sync(&mut self) {
        let dirty = self.dirty.take();
        self.lost.extend(dirty);
    }

    fn persist(&mut self, sector: usize) {
        let start = sector * self.sector_bytes;
        let end = (start + self.sector_bytes).min(self.seen.len());
        if self.disk.len() < end {
            self.disk.resize(end, 0);
        }
        self.disk[start..end].copy_from_slice(&self.seen[start..end]);
    }

    /// Takes a write that completes later.
    pub(super) fn submit(&mut self, offset: usize, parts: &[&[u8]], completes_at: Time, fails: Option<io::ErrorKind>) {
        let length: usize = parts.iter().map(|p| p.len()).sum();
        let end = (offset + length).min(self.seen.len());
        let before = self.seen.get(offset..end).unwrap_or_default().to_vec();
        let mut at = offset;
        for part in parts {
            self.write(at, part);
            at += part.len();
        }
        self.under_way = Some(UnderWay { offset, before, length, completes_at, fails });
    }

    /// Nobody is left who could poll: what was submitted is in the page cache, and whether it was synced is nobody's business.
    pub(super) fn forget_submitted(&mut self) {
        self.under_way = None;
    }

    pub(super) fn completes_at(&self) -> Option<Time> {
        self.under_way.as_ref().map(|w| w.completes_at)
    }

    pub(super) fn delay_until(&mut self, until: Time) {
        if let Some(w) = &mut self.under_way {
            w.completes_at = w.completes_at.max(until);
        }
    }

    /// What the submitted write came to, once it is time.
    pub(super) fn poll(&mut self, now: Time) -> Option<io::Result<()>> {
        let done = self.under_way.take_if(|w| w.completes_at <= now)?;
        match done.fails {
            Some(kind) => {
                self.fail_sync();
                Some(Err(kind.into()))
            }
            None => {
                self.sync();
                Some(Ok(()))
            }
        }
    }

    /// The process dies: of a write that is under way, a part may be in the page cache.
    pub(super) fn interrupt(&mut self, rng: &mut Rng) {
        let Some(w) = self.under_way.take() else { return };
        if rng.chance(128) {
            return;
        }
        let pages = w.length.div_ceil(PAGE_BYTES);
        let kept = rng.below(pages.max(1) as u64) as usize * PAGE_BYTES;
        let mut before = w.before;
        before.resize(w.length, 0);
        if kept < w.length {
            self.write(w.offset + kept, &before[kept..]);
        }
    }

    /// The process is gone, however it ended.
    pub(super) fn end_process(&mut self) {
        self.under_way = None;
        self.handles = 0;
    }

    /// The power is cut: every sector that was not synced survives `survives` times out of 256.
    pub(super) fn power_loss(&mut self, rng: &mut Rng, survives: u64) {
        let grew = self.seen.len() > self.disk.len() && rng.chance(survives);
        let durable = self.disk.len();
        let as_it_was = self.dirty.is_empty() && self.lost.is_empty() && self.seen.len() == durable;
        for sector in self.dirty.take() {
            let inside = grew || (sector + 1) * self.sector_bytes <= durable;
            if rng.chance(survives) && inside {
                self.persist(sector);
            }
        }
        if grew {
            self.disk.resize(self.seen.len(), 0);
        }
        self.lost = Sectors::default();
        self.under_way = None;
        if !as_it_was {
            self.seen.clone_from(&self.disk);
        }
    }

    /// What is there after a power loss that nothing under way survives.
    pub(super) fn durable(&self) -> &[u8] {
        &self.disk
    }

    pub(super) fn damage(&mut self, change: impl FnOnce(&mut [u8])) {
        let before = self.seen.clone();
        change(&mut self.seen);
        for (i, (old, new)) in before.iter().zip(&self.seen).enumerate() {
            if old != new && i < self.disk.len() {
                self.disk[i] = *new;
            }
        }
    }
}
