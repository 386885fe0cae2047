//! One replica, as its step worker owns it: the core, and who waits for what.
//!
//! Invariant: only the worker that owns a replica touches it; everything that others may see of it is in
//! [`GroupShared`], published at the end of a visit.

use crate::apply::ApplyItem;
use crate::config::{ReplicaConfig, ReplicaSettings};
use crate::events::ReplicaEvent;
use crate::liveness::index::Silence;
use crate::log_access::LogUse;
use crate::queue::{Chunk, Inbox};
use crate::rare::{RareState, Refusal, forward_refusal_of, refusal_of};
use crate::seldom::Seldom;
use crate::sending::Sending;
use crate::shared::{GroupShared, reason};
use crate::snapshot::SnapshotRequest;
use crate::tracker::{Ticket, Tracker};
use crate::waiting::{Asked, Waiting};
use longboat_logdb::{Bootstrap, GroupState, SnapshotRecord, Update};
use longboat_raft::spare::Spare;
use longboat_raft::{
    ClosedForwards, Core, Event, GroupEpoch, Guard, HostId, Index, Membership, Origin, Output, Proposed, ReplicaId,
    Term, Time, plant,
};
use longboat_rsm::RequestError;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const NEVER: Time = Time(u64::MAX);
/// Senders that the membership does not name yet, and members that it names no more, that one replica keeps routes to.
const ROUTES_MAX: usize = 256;
/// Heartbeats after which a read whose answer has not come asks again: the question or the answer was lost.
const READ_PATIENCE: u64 = 2;

/// Bytes of proposals that one visit takes from a group: what one record of the journal holds. Each record costs a flush of the
/// disk and, where its blocks are new, a commit of the file system: with 2 MiB under way, half a megabyte at a time was a
/// fifth slower. A visit of this much takes a few milliseconds, for which the worker's other groups wait.
const DRAIN_BYTES_MAX: usize = 4 << 20;

/// What others were last told, so that telling them again costs no look at memory that all threads share.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Told {
    term: Term,
    leader: ReplicaId,
    commit: Index,
    start: Index,
    last: Index,
    under_way: usize,
    guarded: bool,
}

/// A replica in its worker's table.
pub struct Replica {
    /// What others see.
    pub shared: Arc<GroupShared>,
    /// The incarnation of the group's history: what every message must carry.
    pub epoch: GroupEpoch,
    /// What others saw last.
    told: Option<Told>,
    /// The protocol.
    pub core: Core,
    /// Settings.
    pub config: ReplicaSettings,
    /// Requests under way.
    pub tracker: Spare<Tracker>,
    /// This replica's name as a proposer.
    pub origin: Origin,
    /// Requests outside of the core.
    pub(crate) waiting: Spare<Waiting>,
    /// The earliest deadline of the chunks that were left in the queue; never when none were.
    queued_until: Time,
    /// Leader transfers and membership changes under way.
    pub(crate) rare: Option<Box<RareState>>,
    /// The core was given something outside of a visit's beginning: it is visited once more.
    pub(crate) stirred: bool,
    /// What it has only at rare times.
    pub(crate) seldom: Spare<Seldom>,
    /// What the leader said of forwarded proposals, until it can be used.
    pub(crate) closed: Option<Box<ClosedForwards>>,
    next_context: u64,
    /// When to ask again.
    ask_again: Time,
    /// The newest snapshot whose record is durable or on its way.
    pub snapshot: Option<Box<SnapshotRecord>>,
    /// The membership that the replica began with on this host.
    first_membership: Arc<Membership>,
    /// The applied index of the last snapshot request.
    pub last_request: Index,
    /// Saves that are queued or under way.
    pub(crate) saves: u32,
    /// The newest of them is an export.
    pub(crate) exporting: bool,
    /// Through where the log goes with truncations that are durable or on their way.
    pub(crate) truncating: Index,
    /// Bytes that the log had taken when the newest snapshot was saved.
    pub(crate) log_bytes_saved: u64,
    /// Who reads the log.
    pub(crate) log_use: Option<Box<LogUse>>,
    /// The files of the newest recorded snapshot are damaged: the next one is saved whatever its index.
    pub(crate) record_is_hollow: bool,
    /// Through which snapshot the state machine has recovered, or which one it wrote itself.
    pub recovered: Index,
    /// The newest snapshot whose record is durable.
    pub recorded: Index,
    /// Its proposals wait until the host has less unsynced.
    pub starved: bool,
    /// Bytes of log that it was last seen to hold in memory.
    pub(crate) held_bytes: usize,
    /// It waits in its worker's line of those that hold something.
    pub(crate) in_line: bool,
    /// It was told that the host has no room for entries.
    pub(crate) overloaded: bool,
    /// Followers that are being sent a snapshot, and the log that they will go on with.
    pub(crate) sending: Sending,
    /// What it was noted with when it fell silent.
    pub(crate) silence: Option<Box<Silence>>,
    /// The version of the hosts' suspicions that its core was told.
    pub(crate) suspicions: u64,
    /// The version of what is known of stores that its list of fenced members is of.
    fences: u64,
}

impl Replica {
    /// A replica about to move in with its worker.
    pub fn new(shared: Arc<GroupShared>, core: Core, config: &ReplicaConfig, bootstrap: Bootstrap, start: u64) -> Self {
        let origin = Origin { replica: config.replica, start };
        let first_membership = match core.shared_membership() {
            now if **now == bootstrap.membership => Arc::clone(now),
            _ => Arc::new(bootstrap.membership),
        };
        Self {
            epoch: shared.epoch,
            told: None,
            shared,
            core,
            config: config.into(),
            tracker: Spare::default(),
            origin,
            waiting: Spare::default(),
            queued_until: NEVER,
            rare: None,
            stirred: false,
            seldom: Spare::from(Seldom { gone: bootstrap.gone, ..Seldom::default() }),
            closed: None,
            // Contexts are unique over restarts: an answer to a request of an earlier life must not match.
            next_context: start | 1,
            ask_again: NEVER,
            snapshot: None,
            first_membership,
            last_request: Index::ZERO,
            saves: 0,
            exporting: false,
            truncating: Index::ZERO,
            log_bytes_saved: 0,
            log_use: None,
            record_is_hollow: false,
            recovered: Index::ZERO,
            recorded: Index::ZERO,
            starved: false,
            held_bytes: 0,
            in_line: false,
            overloaded: false,
            sending: Sending::default(),
            silence: None,
            suspicions: 0,
            fences: 0,
        }
    }

    /// Right after output was taken, before anything of it is sent: who is a member no more is told so by what is in it.
    pub(crate) fn keep_routes(&mut self, out: &Output) {
        if !out.events.iter().any(|event| matches!(event, Event::MembershipChanged { .. })) {
            return;
        }
        let before = Arc::clone(&self.shared.membership.lock());
        let now = Arc::clone(self.core.shared_membership());
        for (&id, member) in before.hosts.iter().filter(|(id, _)| !now.hosts.contains_key(id)) {
            Self::set_route(&mut self.seldom.routes, id, member.host);
        }
    }

    fn set_route(routes: &mut Vec<(ReplicaId, HostId)>, id: ReplicaId, host: HostId) {
        match routes.iter_mut().find(|r| r.0 == id) {
            Some(route) => route.1 = host,
            None => routes.push((id, host)),
        }
    }

    /// Lets go of room that only requests under way need, and of log that was applied: the group has fallen silent.
    pub(crate) fn shed(&mut self) {
        self.take_applied();
        self.core.shed();
        if let Some(tracker) = self.tracker.get_mut() {
            tracker.shed();
        }
        self.tracker.shed();
        self.waiting.shed();
        self.forget_returned();
        self.seldom.shed();
    }

    /// Tells the core which members are on suspected hosts.
    pub(crate) fn tell_suspicions(&mut self, now: Time, is_suspected: impl Fn(HostId) -> bool) {
        let members = Arc::clone(self.core.shared_membership());
        let members = members.hosts.iter().map(|(id, member)| (*id, member.host));
        for (id, host) in members.chain(self.seldom.routes.iter().copied()) {
            if id != self.config.replica {
                self.core.set_suspected(now, id, is_suspected(host));
            }
        }
    }

    /// The host of a member, if known.
    pub fn host_of(&self, id: ReplicaId) -> Option<HostId> {
        let learnt = || self.seldom.routes.iter().find(|r| r.0 == id).map(|r| r.1);
        self.core.membership().host_of(id).or_else(learnt)
    }

    /// Whether a message of `from` may come from `host`: its known host, or, for a sender that the membership does not
    /// know yet, any (a joining replica learns its leader's host this way; the handshake proved the host's id).
    pub fn accepts_from(&mut self, from: ReplicaId, host: HostId) -> bool {
        match self.host_of(from) {
            Some(known) => known == host || plant::is("sender-from-anywhere"),
            None if self.seldom.routes.len() < ROUTES_MAX => {
                Self::set_route(&mut self.seldom.routes, from, host);
                true
            }
            None => false,
        }
    }

    /// Whether this member's host lost the store that it spoke from: what it says now it may have said otherwise.
    pub(crate) fn is_fenced(&mut self, from: ReplicaId) -> bool {
        let stores = &self.shared.host.stores;
        let version = stores.version();
        if self.fences != version {
            self.fences = version;
            let fenced = stores.fenced(self.config.group, self.epoch, self.core.membership());
            if fenced != self.seldom.fenced {
                self.seldom.fenced = fenced;
            }
        }
        self.seldom.fenced.contains(&from)
    }

    /// The moment at which this replica wants a visit.
    pub fn deadline(&self) -> Time {
        self.core.deadline().min(self.requests_deadline())
    }

    /// As [`Replica::deadline`], of all but the protocol.
    pub(crate) fn requests_deadline(&self) -> Time {
        let waiting = self.waiting.deadline(self.patience_nanos()).min(self.queued_until).min(self.rare_deadline());
        let waiting = waiting.min(self.log_use_deadline()).min(self.ask_again);
        self.tracker.deadline().min(waiting)
    }

    /// Takes what the clients left and gives it to the core. `take_proposals` is false while the host has too much unsynced.
    pub fn drain_queue(&mut self, now: Time, take_proposals: bool) -> Option<SnapshotRequest> {
        let mut inbox = self.shared.inbox.take()?;
        let extras = inbox.extras.take().map(|e| *e).unwrap_or_default();
        if !extras.waits.is_empty() {
            self.waiting.waits.add(extras.waits);
        }
        if inbox.reads.is_some() || extras.index_reads.is_some() {
            self.waiting.unasked.extend(inbox.reads.take().into_iter().chain(extras.index_reads));
            self.ask_reads(now);
        }
        let snapshot = inbox.snapshot.take();
        self.queued_until = NEVER;
        if !take_proposals || !self.waiting.parked.is_empty() {
            inbox.expire(now);
            self.put_back(inbox);
            return snapshot;
        }
        let mut bytes = 0;
        while let Some(chunk) = inbox.chunks.pop_front() {
            inbox.entries -= chunk.builder.count();
            inbox.bytes -= chunk.builder.payload_bytes();
            bytes += chunk.builder.encoded_len();
            self.propose(now, chunk);
            if bytes >= DRAIN_BYTES_MAX && !inbox.chunks.is_empty() {
                // What was taken goes to the disk and to the followers while the rest is summed and sealed.
                self.put_back(inbox);
                self.queued_until = NEVER;
                self.shared.ready(reason::QUEUE);
                break;
            }
        }
        snapshot
    }

    /// Puts chunks back in front of what clients have left meanwhile.
    fn put_back(&mut self, inbox: Box<Inbox>) {
        if inbox.chunks.is_empty() {
            return;
        }
        self.queued_until = inbox.chunks.iter().map(|c| c.deadlines.earliest()).fold(NEVER, Time::min);
        self.shared.inbox.put_back(inbox, Inbox::join);
    }

    fn propose(&mut self, now: Time, chunk: Chunk) {
        if chunk.builder.is_empty() {
            return;
        }
        if !self.waiting.parked.is_empty() {
            self.waiting.parked.push_back(chunk);
            return;
        }
        let Chunk { builder, completion, first_sequence, deadlines, options, closed } = chunk;
        let count = builder.count() as u32;
        match self.core.propose(now, builder, self.origin, options) {
            Ok(proposed) => {
                let ticket = Ticket { results: completion, first_sequence, count, deadlines };
                match proposed {
                    Proposed::Appended { term, first, .. } => self.tracker.appended(ticket, term, first),
                    Proposed::Forwarded { .. } => {
                        let ask_at = now.plus_nanos(self.forward_patience_nanos());
                        self.tracker.forwarded(ticket, self.core.term(), ask_at);
                    }
                }
            }
            Err(refused) => {
                let chunk = Chunk { builder: refused.chunk, completion, first_sequence, deadlines, options, closed };
                match refusal_of(refused.reason, self.core.leader()) {
                    // A leader comes, or the transfer ends: then it may be proposed.
                    Refusal::Later => self.waiting.parked.push_back(chunk),
                    Refusal::Final(error) => chunk.fail(&error),
                }
            }
        }
    }

    /// Asks for an index for somebody who is told by [`Replica::rare_read_ready`]. Returns the question's number.
    pub(crate) fn ask_for_index(&mut self, now: Time) -> u64 {
        let context = self.next_question();
        self.core.read_index(now, context);
        context
    }

    /// A number that no other question of this replica has, in this life or an earlier one.
    pub(crate) fn next_question(&mut self) -> u64 {
        let number = self.next_context;
        self.next_context = self.next_context.wrapping_add(1);
        number
    }

    /// Asks the leader, or the own quorum, for an index for all reads that have none: one context for all.
    fn ask_reads(&mut self, now: Time) {
        for reads in std::mem::take(&mut self.waiting.unasked) {
            let context = self.ask_for_index(now);
            self.waiting.asked.push_back(Asked { context, since: now, chunk: reads });
        }
        self.ask_again = NEVER;
    }

    /// Time between a leader's heartbeats.
    pub(crate) fn heartbeat_nanos(&self) -> u64 {
        self.core.shared_config().heartbeat_interval_nanos
    }

    /// How long reads that have asked wait before they ask again.
    fn patience_nanos(&self) -> u64 {
        READ_PATIENCE * self.heartbeat_nanos()
    }

    /// Reads whose answer has not come for long ask again, under a new context: an answer to the old one counts no more.
    fn give_up_answers(&mut self, now: Time) {
        let patience = self.patience_nanos();
        while self.waiting.asked.front().is_some_and(|r| r.since.plus_nanos(patience) <= now) {
            let asked = self.waiting.asked.pop_front().expect("just seen");
            self.core.give_up_read(asked.context);
            self.waiting.unasked.push(asked.chunk);
            self.ask_again = now;
        }
    }

    /// Acts on the time: the core's deadlines, requests that waited too long, reads that ask again.
    pub fn advance(&mut self, now: Time) {
        self.core.advance(now);
        self.take_applied();
        self.ask_about_forwards(now);
        if let Some(tracker) = self.tracker.get_mut() {
            tracker.expire(now);
        }
        if let Some(waiting) = self.waiting.get_mut() {
            waiting.expire(now, &mut self.core);
        }
        self.give_up_answers(now);
        if self.ask_again <= now {
            self.ask_reads(now);
        }
        if self.expire_pins(now) {
            self.shared.ready(reason::TRUNCATE);
        }
        if self.rare_deadline() <= now {
            self.rare_drive(now);
        }
        self.unpark(now);
    }

    /// Whether a visit would find something to do after what was durable, or acknowledged, was told to the core: neither changes
    /// anything else that a visit looks at.
    pub fn wants_visit(&self) -> bool {
        self.core.has_output() || self.core.is_quiet() || self.core.is_falling_quiet()
    }

    /// Learns how far the apply worker is, if anything is with it.
    pub fn take_applied(&mut self) {
        if self.core.applied_index() == self.core.handed() && !self.tracker.awaits_apply() {
            return;
        }
        let published = &self.shared.published;
        let applied = Index(published.applied.load(Ordering::Acquire));
        self.core.applied(applied);
        let reads_done = published.reads_done.load(Ordering::Acquire);
        if let Some(tracker) = self.tracker.get_mut() {
            tracker.applied(applied, reads_done);
        }
    }

    /// Proposes what waited for a leader, if there is one now. What was left in the queue behind it has its turn when
    /// nothing waits any more, or when its own clients give up.
    fn unpark(&mut self, now: Time) {
        if self.core.leader().is_some() && !self.waiting.parked.is_empty() {
            for chunk in std::mem::take(&mut self.waiting.parked) {
                self.propose(now, chunk);
            }
            self.waiting.shed();
        }
        if self.queued_until != NEVER && (self.waiting.parked.is_empty() || self.queued_until <= now) {
            self.queued_until = NEVER;
            self.shared.ready(reason::QUEUE);
        }
    }

    /// Digests what the core put out besides messages and persistence; what goes to the apply worker goes to `items`, in order.
    /// Returns whether the core was given something new and wants another visit.
    pub fn digest(&mut self, now: Time, out: &mut Output, items: &mut Vec<ApplyItem>) -> bool {
        for refused in out.refused.drain(..) {
            if self.rare_refused(&refused) {
                continue;
            }
            let error = forward_refusal_of(refused.reason);
            if let Some(tracker) = self.tracker.get_mut() {
                tracker.refused(refused.first_sequence, &error);
            }
        }
        if let Some(meta) = out.install.take() {
            self.skipped(meta.pos.index);
            self.last_request = meta.pos.index;
            self.seldom.installing = Some(meta.pos.index);
            if plant::is("recover-before-record") {
                items.push(ApplyItem::Recover(Box::new(meta)));
            }
        }
        if let Some(meta) = out.recover.take() {
            self.skipped(meta.pos.index);
            self.last_request = self.last_request.max(meta.pos.index);
            items.push(ApplyItem::Recover(Box::new(meta)));
        }
        for run in out.committed.drain(..) {
            let waiter = self.tracker.get_mut().and_then(|tracker| tracker.handed(&run, self.origin));
            if self.rare.is_some() {
                self.rare_committed(&run);
            }
            items.push(ApplyItem::Run(run, waiter));
        }
        for closed in out.closed.drain(..) {
            self.forwards_closed(closed);
        }
        self.settle_closed();
        for ready in out.reads.drain(..) {
            self.read_ready(now, ready.context, ready.index);
        }
        self.hand_reads(items);
        let (mut moved, mut ended) = (false, false);
        for event in out.events.drain(..) {
            match event {
                Event::TransferEnded { to, outcome } => {
                    self.rare_transfer_ended(to, outcome);
                    ended = true;
                }
                Event::Removed { change } => self.seldom.removed = Some(change),
                Event::MembershipChanged { .. } => {
                    // The hosts of the new members are not known to be suspected or not.
                    self.suspicions = 0;
                    self.fences = 0;
                    let after = self.shared.host.pool.membership(Arc::clone(self.core.shared_membership()));
                    let config = Arc::clone(self.core.shared_config());
                    self.core.share(&after, &config);
                    let before = std::mem::replace(&mut *self.shared.membership.lock(), Arc::clone(&after));
                    let host = &self.shared.host;
                    host.peers.members_changed(host.config.host, &before, &after);
                    self.shared.tell(|| ReplicaEvent::MembershipChanged(after));
                }
                Event::LeaderChanged { leader, term } => {
                    moved = true;
                    self.shared.tell(|| ReplicaEvent::LeaderChanged { leader, term });
                }
                _ => {}
            }
        }
        if moved {
            tracing::debug!(group = %self.config.group, replica = %self.config.replica, term = %self.core.term(), leader = ?self.core.leader(), "leader changed");
            self.rare_leader_changed(now);
            if !self.waiting.unasked.is_empty() {
                self.ask_reads(now);
            }
        }
        // What waited for a leader, or for the end of a transfer, has its turn.
        if moved || ended {
            self.unpark(now);
        }
        self.rare_drive(now);
        let stirred = std::mem::take(&mut self.stirred);
        moved || ended || stirred
    }

    /// The log was reset to a snapshot at `through`: what it covers may or may not have been applied.
    fn skipped(&mut self, through: Index) {
        if let Some(tracker) = self.tracker.get_mut() {
            tracker.skipped(through);
        }
        self.rare_skipped(through);
    }

    fn read_ready(&mut self, now: Time, context: u64, index: Option<Index>) {
        let Some(at) = self.waiting.asked.iter().position(|r| r.context == context) else {
            return self.rare_read_ready(context, index);
        };
        let reads = self.waiting.asked.remove(at).expect("just found").chunk;
        match index {
            Some(index) => self.waiting.confirmed.push((index, reads)),
            None => {
                self.waiting.unasked.push(reads);
                self.ask_again = self.ask_again.min(now.plus_nanos(self.heartbeat_nanos()));
            }
        }
    }

    /// Reads whose index has been handed to apply go right behind it.
    fn hand_reads(&mut self, items: &mut Vec<ApplyItem>) {
        // Without state nothing has been applied, whatever was handed out before that was lost.
        let lost = self.core.guard() != Guard::None && !plant::is("wait-without-state");
        if self.seldom.installing.is_some() || lost {
            return;
        }
        let Some(waiting) = self.waiting.get_mut() else { return };
        let handed = self.core.handed();
        let reached = waiting.waits.reached(handed);
        let confirmed = waiting.confirmed.extract_if(.., |(index, _)| *index <= handed).map(|(_, chunk)| chunk);
        for chunk in reached.into_iter().chain(confirmed) {
            let count = chunk.reads.len() as u32;
            self.tracker.handed_reads(chunk.reads.results(), count, handed, chunk.deadlines);
            items.push(ApplyItem::Reads(chunk.reads));
        }
    }

    /// An update that says nothing new, to add a record to.
    pub fn empty_update(&self) -> Update {
        Update { group: self.config.group, hard_state: self.core.hard_state(), ..Update::default() }
    }

    /// What the store holds of this replica once all that it has sealed is durable: also without the entries whose truncation is
    /// on its way, or its next life would take them to be there.
    pub fn stored_state(&self) -> GroupState {
        let gone = if plant::is("stopped-before-truncated") { Index::ZERO } else { self.truncating };
        let (start, terms) = self.core.log_without(gone);
        GroupState {
            group: self.config.group,
            bootstrap: Bootstrap {
                replica: self.config.replica,
                epoch: self.epoch,
                membership: (*self.first_membership).clone(),
                gone: self.seldom.gone.clone(),
            },
            hard_state: self.core.hard_state(),
            snapshot: self.snapshot.as_deref().cloned(),
            start,
            last: self.core.last(),
            terms,
            removed: false,
            quarantined: None,
        }
    }

    /// Publishes what clients may see without asking.
    pub fn publish(&mut self) {
        let now = Told {
            term: self.core.term(),
            leader: self.core.leader().unwrap_or(ReplicaId::ZERO),
            commit: self.core.commit(),
            start: self.core.start().index,
            last: self.core.last().index,
            under_way: self.tracker.under_way() + self.waiting.count() + self.rare_count(),
            guarded: self.core.guard() != Guard::None,
        };
        if self.told.replace(now) == Some(now) {
            return;
        }
        let p = &self.shared.published;
        p.term.store(now.term.0, Ordering::Release);
        p.leader.store(now.leader.0, Ordering::Release);
        p.commit.store(now.commit.0, Ordering::Relaxed);
        p.start.store(now.start.0, Ordering::Relaxed);
        p.last.store(now.last.0, Ordering::Relaxed);
        p.under_way.store(now.under_way as u64, Ordering::Release);
        p.needs_snapshot.store(now.guarded, Ordering::Relaxed);
    }

    /// Reads a word of each place that a visit looks at and returns their mix, which means nothing. With thousands of groups
    /// none of them is in a cache: looked at for several replicas in a row before the first is visited, they are fetched side
    /// by side and not one after the other.
    pub fn warm(&self) -> u64 {
        self.core.warm() ^ self.told.map_or(0, |t| t.last.0) ^ self.queued_until.0 ^ self.origin.start
    }

    /// As [`Replica::warm`], for what is a pointer further.
    pub fn warm_deep(&self) -> u64 {
        self.core.warm_deep() ^ self.tracker.under_way() as u64
    }

    /// Ends what was not given to the core yet: it was not applied and never will be.
    pub fn fail_queued(&mut self, error: &RequestError) {
        if let Some(waiting) = self.waiting.get_mut() {
            waiting.fail_parked(error);
        }
        if let Some(inbox) = self.shared.inbox.take() {
            inbox.fail(error);
        }
    }

    /// Ends all requests: the replica stops.
    pub fn fail_all(&mut self, queued: &RequestError, under_way: &RequestError) {
        self.fail_queued(queued);
        if let Some(tracker) = self.tracker.get_mut() {
            tracker.fail_all(under_way);
        }
        if let Some(waiting) = self.waiting.get_mut() {
            waiting.fail(queued);
        }
        self.rare_fail(queued, under_way);
        self.shared.published.under_way.store(0, Ordering::Release);
        self.told = None;
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("group", &self.config.group).field("core", &self.core).finish_non_exhaustive()
    }
}
