//! What a step worker has to do with silence: its index of silent replicas, and waking them, a bounded number at a time.
//!
//! Invariants: nobody is queued twice, so the queue is as long as there are replicas, whatever other hosts say and however often. What
//! is told here is a hint: whom it wakes finds out by itself how things are. So it may be late, come twice or be
//! about a former state, and none of it must be waited for.

use crate::liveness::index::{Silence, SilentIndex, Tie};
use crate::liveness::peers::PeerTable;
use crate::liveness::{PeerNews, SendToHost, gone_of, send_gone_to_all};
use crate::replica::Replica;
use crate::shared::SlotRef;
use crate::step::StepWorker;
use ahash::AHashMap;
use longboat_raft::{GroupId, HostId, ReplicaId, Role, Time, plant, sometimes};
use longboat_transport::wire::{GoneReplica, HOST_ITEMS_MAX, HostMessage, Incoming, Side, SilentGroup, Starts};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Silent replicas that a worker wakes per millisecond: the votes and heartbeats of as many share frames and syncs, and what
/// awake groups have to do goes on beside them.
const WAKES_PER_MILLI: usize = 64;
const MILLI: u64 = 1_000_000;

/// Why a replica is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The host of its leader is suspected. When it is heard of again before this one's turn has come, that was a pause: the
    /// sums of the next beats find those that differ, and the others sleep on.
    Suspected(HostId),
    /// The host of its leader has started anew: what led there does not any more.
    Restarted(HostId),
    /// Another host differs.
    Differs,
    /// A replica of its group has stopped, by what its host said as of this.
    Gone(ReplicaId, Starts),
}

impl Why {
    /// Whether this one, noted before, stands for `other` too: it is the same, or made to be.
    fn takes_in(&mut self, other: Self) -> bool {
        match (self, other) {
            (Self::Gone(replica, as_of), Self::Gone(other, later)) if *replica == other => {
                *as_of = later.max(*as_of);
                true
            }
            (this, other) => *this == other,
        }
    }
}

/// Whom to wake, in turn. Each is in it once, with all reasons that came up meanwhile: none stands for another, since who leads may
/// change before its turn. They are about members of its group, so they are few.
#[derive(Default)]
struct Queue {
    turns: VecDeque<SlotRef>,
    reasons: AHashMap<SlotRef, SmallVec<[Why; 1]>>,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    fn push(&mut self, at: SlotRef, why: Why) {
        let reasons = self.reasons.entry(at).or_insert_with(|| {
            self.turns.push_back(at);
            SmallVec::new()
        });
        if !reasons.iter_mut().any(|noted| noted.takes_in(why)) {
            reasons.push(why);
        }
    }

    fn pop(&mut self) -> Option<(SlotRef, SmallVec<[Why; 1]>)> {
        let Some(at) = self.turns.pop_front() else {
            // Ten thousands may have been in it.
            *self = Self::default();
            return None;
        };
        Some((at, self.reasons.remove(&at).expect("who has a turn has a reason")))
    }
}

/// What a worker has to wake, and whom it has to tell.
#[derive(Default)]
pub(crate) struct Waking {
    pub(crate) index: SilentIndex,
    queue: Queue,
    /// When the next ones may be woken.
    at: Time,
    gone: Vec<(HostId, GoneReplica)>,
}

impl Waking {
    /// When the worker wants its next round for this.
    pub(crate) fn next(&self) -> Option<Time> {
        (!self.queue.is_empty()).then_some(self.at)
    }

    /// This host is told at the end of the round.
    pub(crate) fn tell(&mut self, host: HostId, gone: GoneReplica) {
        self.gone.push((host, gone));
    }

    /// This replica has stopped, and its peers are told at the end of the round.
    pub(crate) fn stopped(&mut self, replica: &Replica) {
        let own = replica.shared.host.config.host;
        let (group, epoch) = (replica.config.group, replica.shared.epoch);
        let as_of = replica.shared.host.starts();
        let gone = GoneReplica { group, epoch, replica: replica.config.replica, as_of };
        let hosts = super::peers::hosts_of(own, replica.core.membership());
        if !plant::is("gone-notice-dropped") {
            self.gone.extend(hosts.into_iter().map(|host| (host, gone)));
        }
    }
}

impl StepWorker {
    pub(crate) fn peer_news(&mut self, now: Time, news: PeerNews) {
        match news {
            PeerNews::Suspected(host) => self.wake_led_by(host, Why::Suspected(host)),
            PeerNews::Restarted(host) => self.wake_led_by(host, Why::Restarted(host)),
            PeerNews::Started(host) => {
                let missing = self.waking.index.missing(host).collect();
                self.wake_later(missing, Why::Differs);
            }
            PeerNews::List { to, led, followed, turn } => {
                self.list(to, Side::Led, led, turn);
                self.list(to, Side::Followed, followed, turn);
            }
            PeerNews::Check(from, side, list) => self.check(from, side, &list),
            PeerNews::Differing(groups) => {
                let slots: Vec<u32> = groups.iter().filter_map(|group| self.by_group.get(group).copied()).collect();
                self.wake_later(slots, Why::Differs);
            }
            PeerNews::Gone(from, list) => {
                for gone in &*list {
                    self.hear_gone(now, from, gone);
                }
            }
        }
    }

    fn wake_led_by(&mut self, host: HostId, why: Why) {
        let led_there = self.waking.index.slots(host, Side::Followed, u64::MAX).collect();
        self.wake_later(led_there, why);
    }

    fn wake_later(&mut self, slots: Vec<u32>, why: Why) {
        for slot in slots {
            self.waking.queue.push(self.slot_ref(slot), why);
        }
    }

    fn hear_gone(&mut self, now: Time, from: HostId, gone: &GoneReplica) {
        let Some(&slot) = self.by_group.get(&gone.group) else { return };
        let replica = self.replica(slot);
        if replica.shared.epoch < gone.epoch && replica.config.replica == gone.replica {
            return self.hear_superseded(now, slot, from, gone.epoch);
        }
        let lives_there = replica.host_of(gone.replica) == Some(from) || plant::is("gone-believed-of-anybody");
        if replica.shared.epoch == gone.epoch && lives_there {
            self.wake_later(vec![slot], Why::Gone(gone.replica, gone.as_of));
        }
    }

    /// Tells a host what is silent here in these buckets; of too many, a part that differs from turn to turn.
    fn list(&mut self, to: HostId, side: Side, mask: u64, turn: u64) {
        let slots: Vec<u32> = self.waking.index.slots(to, side, mask).collect();
        if slots.is_empty() {
            return;
        }
        let parts = slots.len().div_ceil(HOST_ITEMS_MAX);
        let from = (turn % parts as u64) as usize * HOST_ITEMS_MAX;
        let told = |slot: &u32| {
            let silence = self.replica_in(*slot)?.silence.as_deref()?;
            silence.told_to(to).filter(|t| t.0 == side).map(|t| t.1)
        };
        let list: Vec<SilentGroup> = slots[from..].iter().take(HOST_ITEMS_MAX).filter_map(told).collect();
        HostMessage::Silent(side, list).send(&*self.transport, to);
    }

    /// What another host says is silent there. What is otherwise here wakes, here and there.
    fn check(&mut self, from: HostId, side: Side, list: &[SilentGroup]) {
        let mut differing: Vec<GroupId> = Vec::new();
        for theirs in list {
            let Some(&slot) = self.by_group.get(&theirs.group) else { continue };
            let replica = self.replica(slot);
            // A leader that is still asking will be silent, or will wake its followers, soon.
            let asking = side == Side::Followed
                && replica.core.is_falling_quiet()
                && replica.core.role() == Role::Leader
                && replica.core.term() == theirs.term;
            let ours = replica.silence.as_deref().and_then(|s| s.told_to(from));
            let equal = ours.is_some_and(|(our_side, ours)| our_side != side && ours == *theirs);
            if !equal && !asking {
                differing.push(theirs.group);
                self.wake_later(vec![slot], Why::Differs);
            }
        }
        if !differing.is_empty() {
            sometimes!("woken-by-a-digest");
            tracing::debug!(host = %from, groups = differing.len(), "groups are silent differently at two hosts");
            HostMessage::Differing(differing).send(&*self.transport, from);
        }
    }

    /// Wakes those whose turn it is.
    pub(crate) fn wake_due(&mut self, now: Time) {
        if self.waking.queue.is_empty() || now < self.waking.at {
            return;
        }
        self.waking.at = now.plus_nanos(MILLI);
        for _ in 0..WAKES_PER_MILLI {
            let Some((at, reasons)) = self.waking.queue.pop() else { return };
            reasons.into_iter().for_each(|why| self.wake_for(now, at, why));
        }
    }

    fn wake_for(&mut self, now: Time, at: SlotRef, why: Why) {
        if let Why::Suspected(host) = why
            && !self.host.peers.is_suspected(host)
        {
            return;
        }
        let Some(replica) = self.replica_at(at) else { return };
        match why {
            Why::Suspected(host) | Why::Restarted(host) => {
                // Meanwhile another may lead.
                if replica.core.leader().and_then(|l| replica.host_of(l)) == Some(host) {
                    sometimes!(matches!(why, Why::Restarted(_)), "leaders-host-started-anew");
                    replica.core.suspect_leader(now);
                }
            }
            Why::Differs => replica.core.wake(now),
            Why::Gone(gone, as_of) => {
                sometimes!("told-that-a-replica-is-gone");
                replica.hear_gone(now, gone, as_of);
            }
        }
        self.activate(at.slot);
    }

    /// What is suspected of the members' hosts, if that has changed since the last visit.
    pub(crate) fn tell_suspicions(&mut self, now: Time, slot: u32) {
        let version = self.host.peers.version();
        if self.replica(slot).suspicions == version {
            return;
        }
        let host = Arc::clone(&self.host);
        let replica = self.replica(slot);
        replica.suspicions = version;
        replica.tell_suspicions(now, |at| host.peers.is_suspected(at));
    }

    /// After a visit: the index and the sums follow what the replica is now.
    pub(crate) fn note_silence(&mut self, now: Time, slot: u32) {
        let host = Arc::clone(&self.host);
        let replica = self.replica(slot);
        if replica.silence.is_none() && !replica.core.is_quiet() {
            return;
        }
        let silence = if replica.core.is_quiet() { silence_of(replica, &host.peers) } else { None };
        if replica.core.is_quiet() && silence.is_none() {
            // Of a member whose host is not known nobody would ever tell that it differs.
            replica.core.wake(now);
            self.activate(slot);
        }
        let replica = self.replica(slot);
        if replica.silence.as_deref() == silence.as_ref() {
            return;
        }
        let (fresh, stale) = (silence.map(Box::new), replica.silence.take());
        replica.silence.clone_from(&fresh);
        if let Some(stale) = stale {
            self.waking.index.remove(&self.host.peers, slot, &stale);
        }
        if let Some(fresh) = fresh {
            self.replica(slot).shed();
            let at = self.slot_ref(slot);
            self.count_memory(now, at);
            self.waking.index.insert(&self.host.peers, slot, &fresh);
            self.heed_suspicion(slot, &fresh);
        }
    }

    /// A suspicion is told once, to those that are silent by then. A follower that has agreed may wait for its disk meanwhile, and
    /// would follow a dead leader in silence for ever. A host is marked before workers are told: either the mark is seen here,
    /// or the news comes later and finds this one in the index.
    fn heed_suspicion(&mut self, slot: u32, silence: &Silence) {
        for (host, _) in silence.ties.iter().filter(|(_, tie)| *tie == Tie::Follows) {
            if self.host.peers.is_suspected(*host) && !plant::is("suspicion-missed-while-agreeing") {
                self.wake_later(vec![slot], Why::Suspected(*host));
            }
        }
    }

    /// A message for a group that does not run here.
    pub(crate) fn hear_unknown(&mut self, from: HostId, incoming: &Incoming) {
        self.waking.gone.extend(gone_of(&self.host, incoming).map(|gone| (from, gone)));
    }

    /// Tells other hosts which replicas do not run here.
    pub(crate) fn send_gone(&mut self) {
        if !self.waking.gone.is_empty() {
            send_gone_to_all(&*self.transport, std::mem::take(&mut self.waking.gone));
        }
    }
}

/// What a silent replica believes; `None` when the host of somebody that it counts on is not known.
fn silence_of(replica: &Replica, peers: &PeerTable) -> Option<Silence> {
    let core = &replica.core;
    let (own, leader) = (replica.shared.host.config.host, core.leader()?);
    let mut silence = Silence {
        group: replica.config.group,
        epoch: replica.shared.epoch,
        replica: replica.config.replica,
        term: core.term(),
        leader,
        ties: SmallVec::new(),
    };
    if core.role() != Role::Leader {
        silence.ties.push((replica.host_of(leader).filter(|h| *h != own)?, Tie::Follows));
        return Some(silence);
    }
    // A host holds one replica of a group; of a wrong membership the first counts.
    let mut ties: BTreeMap<HostId, Tie> = BTreeMap::new();
    for member in core.membership().replicas().filter(|r| *r != replica.config.replica) {
        let host = replica.host_of(member)?;
        let tie = match core.lagging().contains(&member) {
            true if replica.misses(member, &peers.peer(host)) => Tie::Misses,
            lagging => Tie::Leads { member, lagging },
        };
        ties.entry(host).or_insert(tie);
    }
    silence.ties = ties.into_iter().collect();
    Some(silence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_queued_twice_and_no_reason_is_lost() {
        let at = |slot: u32| SlotRef { slot, generation: 1 };
        let as_of = |count| Starts { incarnation: 1, count };
        let mut queue = Queue::default();
        for turn in 0..1000 {
            for slot in 0..3 {
                queue.push(at(slot), Why::Differs);
                queue.push(at(slot), Why::Suspected(HostId(2)));
                queue.push(at(slot), Why::Gone(ReplicaId(7), as_of(turn)));
            }
        }
        assert_eq!((queue.turns.len(), queue.reasons.len()), (3, 3));
        for slot in 0..3 {
            let (turn, reasons) = queue.pop().expect("queued");
            assert_eq!(turn, at(slot), "in the order in which they came");
            let newest = Why::Gone(ReplicaId(7), as_of(999));
            assert_eq!(reasons[..], [Why::Differs, Why::Suspected(HostId(2)), newest]);
        }
        assert!(queue.pop().is_none() && queue.is_empty());
        // Who had its turn may be queued again, and a slot that was given to another replica is another.
        queue.push(at(1), Why::Differs);
        queue.push(SlotRef { slot: 1, generation: 2 }, Why::Differs);
        assert_eq!(queue.turns.len(), 2);
    }
}
