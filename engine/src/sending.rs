//! What a leader keeps of its log for followers that are being sent snapshots.
//!
//! Invariant: while a snapshot is on its way, and until its receiver has gone on from it, the entries after it stay in the
//! log: else it would arrive to find that another one is needed. That ends when they are too much: the transfer is broken
//! off then, and a newer snapshot is sent.

use longboat_raft::spare::{Emptied, Spare};
use longboat_raft::{Core, Index, ReplicaId};

/// Bytes of log that may gather behind a snapshot that is on its way.
pub(crate) const KEPT_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug)]
struct One {
    to: ReplicaId,
    index: Index,
    /// Bytes that the log had taken in this life when the transfer began.
    log_bytes: u64,
    arrived: bool,
}

/// The snapshots on their way to a group's followers.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    /// Bytes that the log has taken in this life.
    log_bytes: u64,
    transfers: Spare<Transfers>,
}

/// What most groups have none of.
#[derive(Debug, Default)]
struct Transfers {
    list: Vec<One>,
    /// The newest transfer to each follower, until it has ended.
    under_way: Vec<(ReplicaId, u64)>,
    /// Followers that wait until the host has room for another transfer.
    waiting: Vec<ReplicaId>,
    /// The group is in the host's line.
    in_line: bool,
    has_turn: bool,
}

impl Emptied for Transfers {
    const EMPTY: &'static Self =
        &Self { list: Vec::new(), under_way: Vec::new(), waiting: Vec::new(), in_line: false, has_turn: false };

    fn is_emptied(&self) -> bool {
        let unlisted = self.list.is_empty() && self.under_way.is_empty() && self.waiting.is_empty();
        unlisted && !self.in_line && !self.has_turn
    }
}

impl Sending {
    /// The host has no room for another transfer. Returns whether the group is to join the host's line.
    pub(crate) fn wait(&mut self, to: ReplicaId) -> bool {
        let transfers = &mut *self.transfers;
        if !transfers.waiting.contains(&to) {
            transfers.waiting.push(to);
        }
        !std::mem::replace(&mut transfers.in_line, true)
    }

    /// The group was the next in line.
    pub(crate) fn has_turn(&mut self) {
        let transfers = &mut *self.transfers;
        (transfers.in_line, transfers.has_turn) = (false, true);
    }

    /// The followers that waited, if it is their turn.
    pub(crate) fn take_turn(&mut self) -> Option<Vec<ReplicaId>> {
        let transfers = self.transfers.get_mut()?;
        let waited = std::mem::take(&mut transfers.has_turn).then(|| std::mem::take(&mut transfers.waiting));
        self.transfers.shed();
        waited
    }

    /// The log has taken so many bytes.
    pub(crate) fn logged(&mut self, bytes: u64) {
        self.log_bytes += bytes;
    }

    /// Bytes that the log has taken in this life.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// A snapshot at `index` is on its way to a follower.
    pub(crate) fn begins(&mut self, to: ReplicaId, index: Index, number: u64) {
        let transfers = &mut *self.transfers;
        transfers.under_way.retain(|one| one.0 != to);
        transfers.under_way.push((to, number));
        transfers.list.retain(|one| one.to != to);
        transfers.list.push(One { to, index, log_bytes: self.log_bytes, arrived: false });
    }

    /// It arrived, or did not. Returns false when another one to the same follower has taken its place: the end of one that
    /// began in an earlier leadership, and stood since, says nothing of that.
    pub(crate) fn ended(&mut self, to: ReplicaId, number: u64, ok: bool) -> bool {
        let transfers = &mut *self.transfers;
        let before = transfers.under_way.len();
        transfers.under_way.retain(|one| *one != (to, number));
        if transfers.under_way.len() == before && !longboat_raft::plant::is("former-transfer-ends-a-later-one") {
            return false;
        }
        transfers.list.retain(|one| one.to != to || ok);
        transfers.list.iter_mut().filter(|one| one.to == to).for_each(|one| one.arrived = true);
        true
    }

    /// Forgets those that need the log no more. Returns the followers whose transfers are to be broken off, because too much
    /// has gathered behind them.
    pub(crate) fn settle(&mut self, core: &Core) -> Vec<ReplicaId> {
        let (now, mut late) = (self.log_bytes, Vec::new());
        let Some(transfers) = self.transfers.get_mut() else { return late };
        transfers.list.retain(|one| {
            let Some(progress) = core.progress(one.to) else { return false };
            let on = one.arrived && progress.matched() > one.index;
            let too_much = now - one.log_bytes > KEPT_BYTES_MAX;
            if too_much && !one.arrived {
                late.push(one.to);
            }
            !on && !too_much
        });
        self.transfers.shed();
        late
    }

    /// The index that the log must not be truncated beyond, if any.
    pub(crate) fn floor(&self) -> Option<Index> {
        if longboat_raft::plant::is("install-without-its-log") {
            return None;
        }
        self.transfers.list.iter().map(|one| one.index).min()
    }
}
