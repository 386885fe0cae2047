//! What happens to a host and its replicas, told to whoever listens.
//!
//! Invariants: whoever tells an event never waits for who hears it; the queue is bounded, and what it has no room for is
//! counted; without a listener nothing is kept. Must not know: who listens.

use crate::transfers::TransferInfo;
use longboat_raft::{GroupEpoch, GroupId, HostId, Index, Membership, ReplicaId, StoreId, Term};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Events that wait for the listener; further ones are dropped and counted.
const EVENTS_MAX: usize = 64 * 1024;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostEvent {
    /// To a replica of this host.
    Replica {
        /// The group.
        group: GroupId,
        /// The replica on this host.
        replica: ReplicaId,
        /// What happened to it.
        what: ReplicaEvent,
    },
    /// Nothing was heard from a host for long: replicas there are taken to be gone.
    HostSuspected(HostId),
    /// A host that was suspected is heard again.
    HostReturned(HostId),
    /// A host shows another store than before: it was wiped, or another took its id. What its replicas say is not believed any
    /// more; replace them by new ones.
    StoreReplaced {
        /// The host.
        host: HostId,
        /// The store that it had.
        before: StoreId,
        /// The store that it has now.
        now: StoreId,
    },
    /// A host's store lacks what this host knows that it had: its directory is an older copy. Nothing that it says is believed.
    StoreRolledBack {
        /// The host.
        host: HostId,
    },
    /// Another host has seen more of this host's store than it has: the directory is an older copy. This host serves no more, and
    /// its directory is not opened again: remove it, and replace its replicas by new ones.
    RolledBack {
        /// Who knows better.
        told_by: HostId,
    },
    /// The log store failed: this host serves no more.
    LogFailed(String),
}

/// Something that happened to a replica of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaEvent {
    /// It knows another leader, or none.
    LeaderChanged {
        /// The leader.
        leader: Option<ReplicaId>,
        /// The term.
        term: Term,
    },
    /// A membership took effect here.
    MembershipChanged(Arc<Membership>),
    /// It started.
    Started,
    /// It stopped because it was asked to, and may be started again.
    Stopped,
    /// It was removed from its group, and has stopped for good: its data may be removed.
    Removed {
        /// The membership change by which it is gone, or a later one.
        change: Index,
    },
    /// It has stopped because its group's history was ended by an import: the group goes on, on other replicas, in a later
    /// epoch. Its data may be removed.
    Superseded {
        /// The group's epoch.
        by: GroupEpoch,
    },
    /// It was stopped because what it was told, or did, contradicts itself.
    Quarantined {
        /// The contradiction.
        reason: String,
    },
    /// The host has opened, and this replica is quarantined: a part of what it had made durable was damaged on the disk, so it
    /// may have voted and acknowledged what nobody remembers. Put another in its place, under a new id. The id told is zero
    /// when the damage may have taken which replica it was.
    Rotten {
        /// The record of the journal that is damaged.
        record: u64,
    },
    /// It was stopped because its state machine failed.
    MachineFailed {
        /// What the state machine said.
        reason: String,
    },
    /// A call of its state machine lasts too long. It keeps its thread.
    MachineStalled {
        /// Its worker's other groups go on, on a spare thread; else all spares are taken, and they wait.
        others_go_on: bool,
    },
    /// Its state machine, which was stalled, goes on.
    MachineReturned,
    /// Its state machine hangs in a save, a recovery, or while it is sent to a follower. It keeps its thread.
    SnapshotStalled {
        /// Others are saved and recovered on a spare thread; else all spares are taken, and there is one thread less for them.
        others_go_on: bool,
    },
    /// Its state machine, which hung in a snapshot, goes on.
    SnapshotReturned,
    /// A snapshot was damaged and is set aside; an older one and the log were used in its place.
    SnapshotDamaged {
        /// The index that it stood for.
        index: Index,
        /// The index of the one that was used.
        used: Index,
    },
    /// No snapshot could be recovered: it waits for one of the leader's, and serves nothing before that has come.
    StateLost {
        /// The index of the newest one that it had.
        index: Index,
    },
    /// A snapshot of its own is durable.
    SnapshotSaved {
        /// The index that it stands for.
        index: Index,
    },
    /// A snapshot that a leader sent has replaced its log.
    SnapshotInstalled {
        /// The index that it stands for.
        index: Index,
    },
    /// It can't go on but from a snapshot of its leader's, and asks for one.
    SnapshotNeeded,
    /// A snapshot on its way to or from it has moved on.
    SnapshotProgress(TransferInfo),
    /// It has sent a snapshot, or failed to.
    SnapshotSent {
        /// To whom.
        to: ReplicaId,
        /// Whether all of it arrived.
        ok: bool,
    },
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<HostEvent>,
    closed: bool,
}

/// Events on their way to the listener's thread.
#[derive(Debug, Default)]
pub struct EventQueue {
    /// Somebody listens.
    on: AtomicBool,
    queue: Mutex<Queue>,
    ready: Condvar,
    dropped: AtomicU64,
}

impl EventQueue {
    /// Keeps events from here on, for a thread that calls [`EventQueue::next`].
    pub fn listen(&self) {
        self.on.store(true, Ordering::SeqCst);
    }

    /// Whether anybody listens: else an event need not even be made.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Tells an event, if anybody listens.
    pub fn tell(&self, event: HostEvent) {
        if !self.is_on() {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.closed || queue.events.len() >= EVENTS_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.events.push_back(event);
        let first = queue.events.len() == 1;
        drop(queue);
        if first {
            self.ready.notify_one();
        }
    }

    /// The next event; waits for it. `None` once the queue is closed and empty.
    pub fn next(&self) -> Option<HostEvent> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(event) = queue.events.pop_front() {
                return Some(event);
            }
            if queue.closed {
                return None;
            }
            self.ready.wait(&mut queue);
        }
    }

    /// No more events come.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.ready.notify_all();
    }

    /// Events that there was no room for.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_bound_are_counted_and_those_before_it_are_kept_in_order() {
        let queue = EventQueue::default();
        queue.tell(HostEvent::HostSuspected(HostId(1)));
        queue.listen();
        for n in 0..EVENTS_MAX as u64 + 3 {
            queue.tell(HostEvent::HostReturned(HostId(n)));
        }
        assert_eq!(queue.dropped(), 3, "what nobody listened for is not dropped but never kept");
        queue.close();
        for n in 0..EVENTS_MAX as u64 {
            assert_eq!(queue.next(), Some(HostEvent::HostReturned(HostId(n))));
        }
        assert_eq!(queue.next(), None);
    }
}
