//! Snapshot transfers of a host as others see them, and how fast they may go.
//!
//! Invariant: a transfer is in the table from its first chunk until it has ended, however it ends.

use crate::events::ReplicaEvent;
use crate::shared::GroupShared;
use longboat_raft::{GroupId, HostId, Index, ReplicaId, Time};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes between two events of one transfer's progress.
const TELL_BYTES: u64 = 16 << 20;
/// How long a limit may be saved up, in nanoseconds: what was not used for longer is lost.
const BURST_NANOS: u64 = 20_000_000;

/// Which way a snapshot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From this host.
    Sending,
    /// To this host.
    Receiving,
}

/// A snapshot on its way between this host and another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferInfo {
    /// The group.
    pub group: GroupId,
    /// Which way.
    pub direction: Direction,
    /// The replica at the other end.
    pub peer: ReplicaId,
    /// Its host.
    pub host: HostId,
    /// The index that the snapshot stands for.
    pub index: Index,
    /// Bytes that are on the receiver's disk, as far as is known here.
    pub bytes: u64,
    /// Bytes of all of it; `None` while it is made as it is sent.
    pub total: Option<u64>,
}

#[derive(Debug)]
struct Entry {
    info: TransferInfo,
    bytes: Arc<AtomicU64>,
}

/// The transfers of a host.
#[derive(Debug, Default)]
pub struct Transfers {
    table: Mutex<BTreeMap<u64, Entry>>,
    next: AtomicU64,
}

impl Transfers {
    /// All that are under way, those that began first first.
    pub fn list(&self) -> Vec<TransferInfo> {
        let table = self.table.lock();
        table.values().map(|e| TransferInfo { bytes: e.bytes.load(Ordering::Relaxed), ..e.info }).collect()
    }
}

/// A transfer's place in the table. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Underway {
    shared: Arc<GroupShared>,
    number: u64,
    info: TransferInfo,
    bytes: Arc<AtomicU64>,
    told: u64,
}

impl Underway {
    pub(crate) fn begin(shared: &Arc<GroupShared>, info: TransferInfo) -> Self {
        let transfers = &shared.host.transfers;
        let number = transfers.next.fetch_add(1, Ordering::Relaxed);
        let bytes = Arc::new(AtomicU64::new(0));
        transfers.table.lock().insert(number, Entry { info, bytes: Arc::clone(&bytes) });
        Self { shared: Arc::clone(shared), number, info, bytes, told: 0 }
    }

    /// So many bytes have arrived.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        if bytes >= self.told + TELL_BYTES {
            self.told = bytes;
            let info = TransferInfo { bytes, ..self.info };
            self.shared.tell(|| ReplicaEvent::SnapshotProgress(info));
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.shared.host.transfers.table.lock().remove(&self.number);
    }
}

/// A limit of bytes per second that all transfers of one direction share.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Zero for none.
    bytes_per_s: u64,
    /// The moment through which what was let through is paid for.
    paid: Mutex<Time>,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, paid: Mutex::new(Time::ZERO) }
    }

    /// Whether so many bytes may go now; they are paid for then. A chunk may go beyond the limit, the next waits for it.
    pub(crate) fn let_through(&self, now: Time, bytes: usize) -> bool {
        if self.bytes_per_s == 0 {
            return true;
        }
        let mut paid = self.paid.lock();
        if *paid > now {
            return false;
        }
        let earliest = Time(now.0.saturating_sub(BURST_NANOS));
        let cost = (bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_s)) as u64;
        *paid = (*paid).max(earliest).plus_nanos(cost);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_over_time_and_lets_no_more_through_after_a_pause() {
        let pace = Pace::new(100 << 20);
        let second = |pace: &Pace, from: u64| -> usize {
            let steps = (0..100_000u64).map(|i| Time(from + i * 10_000));
            steps.filter(|now| pace.let_through(*now, 256 << 10)).count() * (256 << 10)
        };
        for from in [1_000_000_000, 60_000_000_000] {
            let bytes = second(&pace, from);
            assert!((98 << 20..=103 << 20).contains(&bytes), "{bytes} bytes in a second");
        }
        assert!((0..1000).all(|_| Pace::new(0).let_through(Time(1), usize::MAX)));
    }
}
