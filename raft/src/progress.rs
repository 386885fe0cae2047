//! What a leader knows of one member: how far its log matches, what is under way to it, and whether to send more.
//!
//! A member is *probed* while the place where its log leaves the leader's is not known: one append at a time. It is
//! *replicated* to, optimistically and pipelined within bounds, once one append was accepted. It is in *snapshot* while
//! the entries that it needs are gone and a snapshot is on its way.
//!
//! Invariants: `matched < next`; `matched` only grows (within one leadership); outside of `Snapshot` nothing is pending.
//! Must not know: the log, the membership, messages.

use crate::ids::{Index, ReplicaId, Time};
use crate::plant;
use crate::sometimes;
use smallvec::SmallVec;

/// How entries are sent to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProgressState {
    /// One append at a time, to find where the logs agree.
    Probe,
    /// Appends are pipelined.
    Replicate,
    /// No appends: a snapshot through `pending` is on its way.
    Snapshot {
        /// The last index that the snapshot covers.
        pending: Index,
    },
}

/// The two bounds of what may be under way to one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InflightBounds {
    pub(crate) appends: usize,
    pub(crate) bytes: u64,
}

/// Appends that were sent and not yet acknowledged: the last index and the bytes of each, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Inflights {
    sent: SmallVec<[(Index, u32); 2]>,
    bytes: u64,
}

impl Inflights {
    fn add(&mut self, last: Index, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.sent.push((last, bytes));
        self.bytes += u64::from(bytes);
    }

    fn free_through(&mut self, index: Index) {
        let acknowledged = self.sent.iter().take_while(|(last, _)| *last <= index).count();
        let bytes: u64 = self.sent.drain(..acknowledged).map(|(_, bytes)| u64::from(bytes)).sum();
        self.bytes -= bytes;
    }

    fn full(&self, bounds: InflightBounds) -> bool {
        self.sent.len() >= bounds.appends || self.bytes >= bounds.bytes
    }

    fn clear(&mut self) {
        self.sent.clear();
        self.bytes = 0;
    }
}

/// A leader's view of one member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Progress {
    pub(crate) id: ReplicaId,
    pub(crate) matched: Index,
    pub(crate) next: Index,
    pub(crate) state: ProgressState,
    /// The highest commit index that was sent, as far as it can have had an effect.
    pub(crate) sent_commit: Index,
    /// A probe, or as many appends as may be, are under way: wait for an answer or a heartbeat's.
    pub(crate) paused: bool,
    /// The member answered since this was last cleared.
    pub(crate) active: bool,
    /// When entries were last sent, and when news of what was sent last came.
    pub(crate) sent_at: Time,
    pub(crate) news_at: Time,
    /// A heartbeat of the timer is out: its answer makes the leader try again what may have been lost.
    pub(crate) nudge: bool,
    /// An append must go out even if there is no entry for it.
    pub(crate) owes_empty: bool,
    /// The member needs a snapshot, and that was said.
    pub(crate) snapshot_wanted: bool,
    /// The entries that it needs are being read.
    pub(crate) ticket: Option<u64>,
    /// The newest read round that it confirmed.
    pub(crate) read_round: u64,
    /// A voter of the (incoming) configuration.
    pub(crate) incoming: bool,
    /// A voter of the outgoing configuration.
    pub(crate) outgoing: bool,
    /// It gets stripped runs, and no snapshots but the membership.
    pub(crate) witness: bool,
    /// Its host has no room for entries: it gets none until it says otherwise.
    pub(crate) overloaded: bool,
    /// It said that no snapshot before this index will do.
    pub(crate) snapshot_floor: Index,
    inflights: Inflights,
}

impl Progress {
    /// A member of which nothing is known yet.
    pub(crate) fn new(id: ReplicaId, next: Index, active: bool) -> Self {
        Self {
            id,
            matched: Index::ZERO,
            next: next.max(Index(1)),
            state: ProgressState::Probe,
            sent_commit: Index::ZERO,
            paused: false,
            active,
            sent_at: Time::ZERO,
            news_at: Time::ZERO,
            nudge: false,
            owes_empty: false,
            snapshot_wanted: false,
            ticket: None,
            read_round: 0,
            incoming: false,
            outgoing: false,
            witness: false,
            overloaded: false,
            snapshot_floor: Index::ZERO,
            inflights: Inflights::default(),
        }
    }

    /// The last index that is known to match the leader's log, durably.
    pub fn matched(&self) -> Index {
        self.matched
    }

    /// The next index to send.
    pub fn next(&self) -> Index {
        self.next
    }

    /// How entries are sent.
    pub fn state(&self) -> ProgressState {
        self.state
    }

    /// Whether the member answered recently.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The number of appends that were not acknowledged yet.
    pub fn inflight(&self) -> usize {
        self.inflights.sent.len()
    }

    /// Whether nothing is sent at present.
    pub fn is_paused(&self) -> bool {
        self.paused
            || self.overloaded
            || self.snapshot_wanted
            || self.ticket.is_some()
            || matches!(self.state, ProgressState::Snapshot { .. })
    }

    /// Whether the member was heard of lately. `checked`: whether `active` is cleared in every election timeout; if not,
    /// an unanswered heartbeat tells.
    pub(crate) fn is_here(&self, checked: bool) -> bool {
        self.active && (checked || !self.nudge)
    }

    /// Lets go of room for appends that were acknowledged.
    pub(crate) fn shed(&mut self) {
        self.inflights.sent.shrink_to_fit();
    }

    pub(crate) fn is_full(&self, bounds: InflightBounds) -> bool {
        self.state == ProgressState::Replicate && self.inflights.full(bounds)
    }

    fn reset(&mut self, state: ProgressState) {
        self.state = state;
        self.paused = false;
        self.snapshot_wanted = false;
        self.owes_empty = false;
        // Whatever is being read starts at an index that is not next any more.
        self.ticket = None;
        self.inflights.clear();
    }

    pub(crate) fn become_probe(&mut self) {
        // A snapshot that arrived is a better guess than the last match. If it did not, the probe is refused.
        let floor = match self.state {
            ProgressState::Snapshot { pending } => pending,
            _ => Index::ZERO,
        };
        self.reset(ProgressState::Probe);
        self.next = self.matched.max(floor).next();
        self.sent_commit = self.sent_commit.min(self.next.prev());
    }

    pub(crate) fn become_replicate(&mut self) {
        self.reset(ProgressState::Replicate);
        self.next = self.matched.next();
    }

    pub(crate) fn become_snapshot(&mut self, pending: Index) {
        self.reset(ProgressState::Snapshot { pending });
        self.next = pending.max(self.matched).next();
        self.sent_commit = pending;
    }

    /// The snapshot failed: what was matched before is all there is.
    pub(crate) fn snapshot_failed(&mut self) {
        self.state = ProgressState::Snapshot { pending: Index::ZERO };
        self.become_probe();
    }

    /// An append of `entries` entries that ends at `last` went out.
    pub(crate) fn sent(&mut self, entries: u64, bytes: usize, bounds: InflightBounds) {
        match self.state {
            ProgressState::Replicate => {
                if entries > 0 {
                    self.next = Index(self.next.0 + entries);
                    self.inflights.add(self.next.prev(), bytes);
                }
                // Beyond the bound only an empty append goes out, once per heartbeat's answer: if all that is in
                // flight was lost, its rejection starts over.
                self.paused = self.inflights.full(bounds);
            }
            ProgressState::Probe => self.paused |= entries > 0,
            ProgressState::Snapshot { .. } => unreachable!("nothing is appended while a snapshot is under way"),
        }
        self.owes_empty = false;
    }

    /// The member's log matches through `index`. Whether that is news.
    pub(crate) fn acknowledged(&mut self, index: Index) -> bool {
        if index <= self.matched {
            return false;
        }
        self.matched = index;
        self.next = self.next.max(index.next());
        self.paused = false;
        if self.snapshot_wanted {
            self.snapshot_wanted = false;
        }
        true
    }

    /// Moves on after an acknowledgement that brought news, or that answered a probe.
    pub(crate) fn settle(&mut self, start: Index) {
        match self.state {
            ProgressState::Probe => self.become_replicate(),
            // Whatever snapshot it was that the member installed: the log reaches it now. Waiting for the pending index
            // would strand a member that was helped by someone else.
            ProgressState::Snapshot { .. } if self.matched >= start => {
                sometimes!("follower-needs-its-snapshot-no-more");
                self.become_replicate();
            }
            ProgressState::Snapshot { .. } => {}
            ProgressState::Replicate => self.inflights.free_through(self.matched),
        }
    }

    /// The append after `rejected` was refused; the logs can agree at `hint` at best. Whether that is news: answers may be
    /// late or repeated.
    pub(crate) fn rejected(&mut self, rejected: Index, hint: Index) -> bool {
        if self.state == ProgressState::Replicate {
            // Something at or below what it acknowledged can't be refused by an answer that is not stale.
            sometimes!(rejected <= self.matched, "stale-rejection");
            if rejected <= self.matched && !plant::is("stale-rejection-moves-back") {
                return false;
            }
            self.become_probe();
            return true;
        }
        if self.next.prev() != rejected {
            return false;
        }
        self.next = rejected.min(hint.next()).max(self.matched.next());
        self.sent_commit = self.sent_commit.min(self.next.prev());
        self.paused = false;
        self.ticket = None;
        true
    }

    /// Whether entries flow to the member and its acknowledgements flow back, both within the last `nanos` nanoseconds.
    /// Entries alone prove nothing: they may be stuck behind others.
    pub(crate) fn flows(&self, now: Time, nanos: u64) -> bool {
        let recent = |at: Time| !at.is_zero() && now.nanos_since(at) < nanos;
        self.state == ProgressState::Replicate && !self.paused && recent(self.sent_at) && recent(self.news_at)
    }

    /// Whether telling `commit` alone can move the member's commit index.
    pub(crate) fn commit_due(&self, commit: Index) -> bool {
        commit > self.sent_commit && self.sent_commit < self.next.prev()
    }
}
