//! The step worker: owns its groups' raft state outright and moves it, round by round.
//!
//! A round takes the ready groups, gives each what its clients, peers, disk and clock have for it, collects the output, and then, per round and
//! not per group, sends one batch to the log writer, one frame per remote host and lane, one hand-off per apply worker.
//!
//! Invariants:
//! - What leaves before durability is what the core put into `early`; everything else travels in the sealed batch and
//!   is released by the log writer once that batch, and so every earlier one, is durable.
//! - Tokens never leave the worker: a batch's tokens wait in `sealed`, and one number, the newest durable batch, crosses threads.
//! - A token, message or command for an older generation of a slot finds no replica and is dropped.

use crate::apply::ApplyTask;
use crate::durable::Sealed;
use crate::events::ReplicaEvent;
use crate::late::Late;
use crate::liveness::Waking;
use crate::log_writer::{SealedBatch, WriterInbox};
use crate::memory::Holders;
use crate::outbox::{Outbox, unsent};
use crate::remove::Removal;
use crate::replica::Replica;
use crate::request::Rare;
use crate::shared::{Command, GroupShared, HostShared, InFrame, SlotRef, WorkerInbox, reason};
use crate::snapshot::{AfterDurable, SnapshotIo, SnapshotRequest};
use crate::space::Room;
use crate::wheel::TimingWheel;
use crate::worker::{Work, Worker};
use ahash::AHashMap;
use longboat_logdb::{GroupState, Record, Update};
use longboat_raft::{Body, GroupId, Output, PersistToken, RefusedForward, Time, Violation, sometimes};
use longboat_rsm::RequestError;
use longboat_transport::Transport;
use longboat_transport::wire::Incoming;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Visits of one group in one round; what is still active then is visited in the next round.
const VISITS_MAX: usize = 3;

/// Bytes to be made durable from which on the log writer is told before anything is sent: the kernel takes about as long to
/// copy this to the sockets as the disk to write a block.
const WRITE_FIRST_BYTES: u64 = 64 << 10;

/// Replicas that are warmed before the first of them is stepped or visited: enough to hide the way to memory, few enough
/// that what is fetched is still there when its turn comes.
pub(crate) const WARM_AHEAD: usize = 16;

pub(crate) struct Slot {
    pub(crate) generation: u32,
    pub(crate) active: bool,
    pub(crate) replica: Option<Box<Replica>>,
}

/// Takes a vector, and leaves an empty one that need not grow to the same length step by step.
fn replace_sized<T>(vec: &mut Vec<T>) -> Vec<T> {
    let room = Vec::with_capacity(vec.len());
    std::mem::replace(vec, room)
}

/// Generations have 24 bits, as in a replica's route.
pub(crate) const fn next_generation(generation: u32) -> u32 {
    (generation + 1) & 0xFF_FFFF
}

/// The batch that this round gathers.
#[derive(Default)]
pub(crate) struct Open {
    updates: Vec<Update>,
    held: Outbox,
    bytes: u64,
    tokens: Vec<(SlotRef, PersistToken)>,
    pub(crate) after: Vec<(SlotRef, AfterDurable)>,
}

impl Open {
    fn push(&mut self, update: Update) {
        self.bytes += 64 + update.runs.iter().map(|r| r.encoded_len() as u64).sum::<u64>();
        self.updates.push(update);
    }
}

/// One step worker.
pub struct StepWorker {
    index: usize,
    pub(crate) host: Arc<HostShared>,
    pub(crate) transport: Arc<dyn Transport>,
    writer: Arc<WriterInbox>,
    pub(crate) snapshots: Arc<SnapshotIo>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) free: Vec<u32>,
    pub(crate) by_group: AHashMap<GroupId, u32>,
    wheel: TimingWheel,
    /// Slots to visit in this round, each once.
    active: Vec<u32>,
    /// Given from visit to visit; large, so that it is not to be moved.
    out: Option<Box<Output>>,
    pub(crate) early: Outbox,
    /// Forwarded runs that did not leave.
    unsent: Vec<(GroupId, RefusedForward)>,
    pub(crate) open: Open,
    pub(crate) sealed: VecDeque<Sealed>,
    /// The log writer is to wake this worker when what it has sealed is durable.
    pub(crate) awaits_disk: bool,
    next_seq: u64,
    pub(crate) control: VecDeque<InFrame>,
    pub(crate) bulk: VecDeque<InFrame>,
    pub(crate) taken: Vec<InFrame>,
    /// Messages of the frame being stepped, and whom they are for.
    pub(crate) ahead: Vec<(SlotRef, Incoming)>,
    pub(crate) ready: Vec<SlotRef>,
    expired: Vec<u32>,
    pub(crate) apply: Vec<Vec<ApplyTask>>,
    /// Groups whose proposals wait until the host has less unsynced.
    pub(crate) starved: Vec<SlotRef>,
    /// What is done after the visits, when all that these groups' cores have accepted is sealed.
    pub(crate) late: Vec<(SlotRef, Late)>,
    /// Silent replicas, and those to wake.
    pub(crate) waking: Waking,
    /// Who holds log in memory.
    pub(crate) holders: Holders,
    /// Stopped replicas whose state machine's storage is still in use.
    pub(crate) closing: Vec<(Arc<GroupShared>, Box<GroupState>)>,
    /// What its replicas know of the room on the disk.
    pub(crate) room: Room,
    /// Who waits until a group is unloaded, to remove its data.
    pub(crate) removals: Vec<Removal>,
    pub(crate) failed: bool,
    shed_heard: u64,
}

impl StepWorker {
    /// The step worker with this index, without replicas.
    pub fn new(
        index: usize,
        host: Arc<HostShared>,
        transport: Arc<dyn Transport>,
        writer: Arc<WriterInbox>,
        snapshots: Arc<SnapshotIo>,
    ) -> Self {
        let apply = host.apply.iter().map(|_| Vec::new()).collect();
        let now = host.clock.now();
        Self {
            index,
            host,
            transport,
            writer,
            snapshots,
            slots: Vec::new(),
            free: Vec::new(),
            by_group: AHashMap::new(),
            wheel: TimingWheel::new(now),
            active: Vec::new(),
            out: None,
            early: Outbox::default(),
            unsent: Vec::new(),
            open: Open::default(),
            sealed: VecDeque::new(),
            awaits_disk: false,
            next_seq: 1,
            control: VecDeque::new(),
            bulk: VecDeque::new(),
            taken: Vec::new(),
            ahead: Vec::new(),
            ready: Vec::new(),
            expired: Vec::new(),
            apply,
            starved: Vec::new(),
            late: Vec::new(),
            waking: Waking::default(),
            holders: Holders::default(),
            closing: Vec::new(),
            room: Room::default(),
            removals: Vec::new(),
            failed: false,
            shed_heard: 0,
        }
    }

    pub(crate) fn inbox(&self) -> &WorkerInbox {
        &self.host.workers[self.index]
    }

    /// Every replica, for checkers.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.slots.iter().filter_map(|s| s.replica.as_deref())
    }

    pub(crate) fn replica_at(&mut self, at: SlotRef) -> Option<&mut Replica> {
        let slot = &mut self.slots[at.slot as usize];
        if slot.generation == at.generation { slot.replica.as_deref_mut() } else { None }
    }

    pub(crate) fn replica_in(&self, slot: u32) -> Option<&Replica> {
        self.slots[slot as usize].replica.as_deref()
    }

    pub(crate) fn activate(&mut self, slot: u32) {
        let s = &mut self.slots[slot as usize];
        if !s.active && s.replica.is_some() {
            s.active = true;
            self.active.push(slot);
        }
    }

    // ---- inputs -------------------------------------------------------------------------------------------------

    fn take_commands(&mut self, now: Time) {
        for command in self.inbox().take_commands() {
            match command {
                Command::Start(replica) => self.start(now, replica),
                Command::Stop(shared) => self.with(&shared, |w, slot| {
                    w.stop(now, slot, &RequestError::Stopped, &RequestError::OutcomeUnknown);
                }),
                Command::RemoveData(group, reply) => self.remove_data(group, reply),
                Command::Request(shared, rare) => {
                    shared.rare_waiting.fetch_sub(1, Ordering::Relaxed);
                    self.with(&shared, |w, slot| match rare {
                        Rare::Log(request) => w.log_later(slot, request),
                        rare => w.replica(slot).rare_request(now, rare),
                    });
                }
                Command::SnapshotSaved(shared, outcome) => {
                    self.with(&shared, |w, slot| {
                        let at = w.slot_ref(slot);
                        w.late.push((at, Late::Saved(outcome)));
                    });
                }
                Command::SnapshotSent { shared, to, number, ok } => self.with(&shared, |w, slot| {
                    let replica = w.replica(slot);
                    if replica.sending.ended(to, number, ok) {
                        replica.core.snapshot_finished(to, ok);
                    }
                    replica.shared.tell(|| ReplicaEvent::SnapshotSent { to, ok });
                }),
                Command::Deliver { shared, from, message } => match (self.slot_of(&shared), &message.body) {
                    (None, Body::Snapshot(meta)) => self.snapshots.stray(&shared, meta.pos.index),
                    _ => self.with(&shared, |w, slot| w.told_of_snapshot(now, slot, from, *message)),
                },
                Command::Recovered(shared, index, how) => {
                    self.with(&shared, |w, slot| w.recovery_ended(slot, index, how));
                }
                Command::MachineGone(shared) => self.machine_gone(&shared),
                Command::Peer(news) => self.peer_news(now, news),
                Command::Fetched { shared, ticket, runs } => {
                    self.with(&shared, |w, slot| w.fetched(slot, ticket, runs));
                }
            }
        }
    }

    /// The slot of this very replica: not of one that was started later for the same group.
    fn slot_of(&self, shared: &Arc<GroupShared>) -> Option<u32> {
        let &slot = self.by_group.get(&shared.group)?;
        let replica = self.slots[slot as usize].replica.as_ref()?;
        Arc::ptr_eq(&replica.shared, shared).then_some(slot)
    }

    fn with(&mut self, shared: &Arc<GroupShared>, act: impl FnOnce(&mut Self, u32)) {
        if let Some(slot) = self.slot_of(shared) {
            self.guarded(slot, |w| {
                act(w, slot);
                w.activate(slot);
            });
        }
    }

    pub(crate) fn slot_ref(&self, slot: u32) -> SlotRef {
        SlotRef { slot, generation: self.slots[slot as usize].generation }
    }

    pub(crate) fn slots_len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn is_active(&self, slot: u32) -> bool {
        self.slots[slot as usize].active
    }

    pub(crate) fn replica(&mut self, slot: u32) -> &mut Replica {
        self.slots[slot as usize].replica.as_deref_mut().expect("a slot in by_group or active is taken")
    }

    /// A contradiction stops the replica; else it is visited at the end of the round.
    pub(crate) fn after_step(&mut self, slot: u32, stepped: Result<(), Violation>) {
        match stepped {
            Ok(()) => self.activate(slot),
            Err(violation) => self.quarantine(slot, &violation.to_string()),
        }
    }

    /// Runs what concerns one group; a panic there (a broken assertion over its own state) stops that group only.
    pub(crate) fn guarded(&mut self, slot: u32, act: impl FnOnce(&mut Self)) {
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| act(self))) {
            let text = crate::apply::panic_text(&*panic);
            if self.slots[slot as usize].replica.is_some() {
                self.quarantine(slot, &text);
            }
        }
    }

    fn take_ready(&mut self, now: Time) {
        let mut ready = std::mem::take(&mut self.ready);
        self.inbox().take_ready(&mut ready);
        let take_proposals = self.host.takes_proposals();
        for at in ready.drain(..) {
            if self.replica_at(at).is_none() {
                continue;
            }
            self.guarded(at.slot, |w| w.drain(now, at, take_proposals));
        }
        self.ready = ready;
    }

    fn drain(&mut self, now: Time, at: SlotRef, take_proposals: bool) {
        let replica = self.replica(at.slot);
        let reasons = replica.shared.take_reasons();
        if reasons & reason::MACHINE_FAILED != 0 {
            let error = replica.shared.refusal().unwrap_or(RequestError::OutcomeUnknown);
            self.stop(now, at.slot, &RequestError::Stopped, &error);
            return;
        }
        if reasons & reason::MAY_SEND != 0 {
            replica.sending.has_turn();
        }
        let mut request = replica.drain_queue(now, take_proposals);
        if reasons & reason::SNAPSHOT_DUE != 0 && request.is_none() {
            request = Some(SnapshotRequest::periodic(&replica.shared));
        }
        if !take_proposals && !std::mem::replace(&mut replica.starved, true) {
            sometimes!("proposals-wait-for-the-disk");
            self.starved.push(at);
        }
        if let Some(request) = request {
            self.late.push((at, Late::Request(request)));
        }
        if reasons & reason::RESEAL != 0 {
            self.late.push((at, Late::Reseal));
        }
        if reasons & reason::TRUNCATE != 0 {
            self.late.push((at, Late::Truncate));
        }
        self.activate(at.slot);
    }

    fn expire(&mut self, now: Time) {
        let mut expired = std::mem::take(&mut self.expired);
        self.wheel.expire(now, &mut expired);
        for slots in expired.chunks(WARM_AHEAD) {
            self.warm(slots.iter().copied());
            for &slot in slots {
                if self.slots[slot as usize].replica.is_some() {
                    self.guarded(slot, |w| w.expire_one(now, slot));
                }
            }
        }
        expired.clear();
        self.expired = expired;
    }

    /// Most deadlines have moved later since they were noted, and most of a leader's that have come find its followers flowing.
    fn expire_one(&mut self, now: Time, slot: u32) {
        let replica = self.replica(slot);
        let requests = replica.requests_deadline();
        if replica.core.deadline().min(requests) <= now {
            replica.advance(now);
            if requests <= now || replica.wants_visit() {
                return self.activate(slot);
            }
        }
        let deadline = self.replica(slot).deadline();
        self.wheel.schedule(slot, deadline);
    }

    // ---- outputs ------------------------------------------------------------------------------------------------

    /// Collects the output of every active replica. A visit may make its replica active again (what waited for a leader
    /// was proposed to the one just seen): it is visited once more.
    fn visit_active(&mut self, now: Time) {
        let mut visiting = Vec::new();
        for _ in 0..VISITS_MAX {
            std::mem::swap(&mut visiting, &mut self.active);
            for slots in visiting.chunks(WARM_AHEAD) {
                self.warm(slots.iter().copied());
                for &slot in slots {
                    self.slots[slot as usize].active = false;
                    if self.slots[slot as usize].replica.is_some() {
                        self.guarded(slot, |w| {
                            w.visit(now, slot);
                            w.stop_if_removed(now, slot);
                        });
                    }
                }
            }
            visiting.clear();
            if self.active.is_empty() {
                // Keeps the larger buffer for the next round.
                self.active = visiting;
                return;
            }
        }
    }

    /// Fetches what visits of these replicas will look at.
    pub(crate) fn warm(&self, slots: impl Iterator<Item = u32> + Clone) {
        let replica = |slot: u32| self.slots[slot as usize].replica.as_deref();
        let near = slots.clone().filter_map(replica).map(Replica::warm).fold(0, |a, b| a ^ b);
        let far = slots.filter_map(replica).map(Replica::warm_deep).fold(0, |a, b| a ^ b);
        std::hint::black_box(near ^ far);
    }

    pub(crate) fn visit(&mut self, now: Time, slot: u32) {
        self.tell_suspicions(now, slot);
        let mut out = self.out.take().unwrap_or_default();
        let at = SlotRef { slot, generation: self.slots[slot as usize].generation };
        let replica = self.slots[slot as usize].replica.as_deref_mut().expect("the caller checked");
        replica.take_applied();
        replica.core.take_output(now, &mut out);
        replica.keep_routes(&out);
        self.awaits_disk |= replica.core.awaits_disk();
        let (group, epoch) = (replica.config.group, replica.epoch);
        // What is to be durable goes into the batch first, and the messages that wait for it right after, with nothing between
        // that could fail: a replica whose visit breaks off below has sealed what its acknowledgements and votes rest on.
        let installed = out.persist.as_ref().and_then(|p| p.install.clone());
        if let Some(persist) = &out.persist {
            replica.sending.logged(persist.runs.iter().map(|r| r.encoded_len() as u64).sum());
        }
        if let Some(update) = out.persist.take().map(|p| self.snapshots.update_of(group, p)) {
            if let Some(Record::Snapshot(record)) = update.record.as_deref() {
                replica.snapshot = Some(Box::new(record.clone()));
            }
            self.open.push(update);
        }
        if let Some(token) = out.token.take() {
            self.open.tokens.push((at, token));
        }
        if let Some(meta) = installed {
            self.open.after.push((at, AfterDurable::Installed { meta: Box::new(meta), resets_log: true }));
        }
        if let Some(meta) = out.recover.clone() {
            // The log stays, so a crash before this is durable leaves what was there, and a state machine that has more of it.
            let record = self.snapshots.received_record(group, &meta);
            let mut update = replica.empty_update();
            update.record = Some(Box::new(Record::Snapshot(record.clone())));
            replica.snapshot = Some(Box::new(record));
            self.open.push(update);
            self.open.after.push((at, AfterDurable::Installed { meta: Box::new(meta), resets_log: false }));
        }
        for message in out.held.drain(..) {
            if let Some(host) = replica.host_of(message.to) {
                self.open.held.push(host, group, epoch, &message);
            }
        }
        for message in out.early.drain(..) {
            match replica.host_of(message.to) {
                Some(host) => self.early.push(host, group, epoch, &message),
                None => self.unsent.extend(unsent(&message).map(|run| (group, run))),
            }
        }
        let mut items = Vec::with_capacity(out.committed.len());
        let again = replica.digest(now, &mut out, &mut items);
        for message in replica.rare_messages() {
            if let Some(host) = replica.host_of(message.to) {
                self.early.push(host, group, epoch, &message);
            }
        }
        if let Some(index) = replica.seldom.get_mut().and_then(|s| s.delivered.take()) {
            self.snapshots.discard_received(replica, index);
        }
        let wants_snapshot = self.snapshots.serve(replica, &mut out, &mut items);
        replica.core.trim();
        replica.publish();
        self.wheel.schedule(slot, replica.deadline());
        if !items.is_empty() {
            let shared = Arc::clone(&replica.shared);
            self.apply[shared.apply_worker].push(ApplyTask { shared, items });
        }
        out.clear();
        self.out = Some(out);
        self.count_memory(now, at);
        if wants_snapshot {
            let request = SnapshotRequest::periodic(&self.replica(slot).shared);
            self.late.push((at, Late::Request(request)));
        }
        if again {
            self.activate(slot);
        }
        self.note_silence(now, slot);
    }

    pub(crate) fn push_update(&mut self, update: Update) {
        self.open.push(update);
    }

    /// Hands over what the round gathered.
    fn flush(&mut self, now: Time) {
        // A host that closes has no later round for what might wait.
        let now = if self.host.closing.load(Ordering::Relaxed) { Time(u64::MAX) } else { now };
        // What takes long to write and long to send is done by two threads at once. Of little the sockets come first: the way
        // over them and back is the longer one.
        let writes_much = self.open.bytes >= WRITE_FIRST_BYTES;
        if !writes_much {
            self.unsent.extend(self.early.send(now, &*self.transport));
        }
        self.seal_batch();
        if writes_much {
            self.unsent.extend(self.early.send(now, &*self.transport));
        }
        self.end_unsent();
        self.send_gone();
        self.ask_to_be_woken();
        for (worker, tasks) in self.apply.iter_mut().enumerate() {
            if !tasks.is_empty() {
                self.host.apply[worker].push(tasks);
            }
        }
    }

    /// Tells those whose forwarded proposals did not leave this host.
    fn end_unsent(&mut self) {
        for (group, refused) in std::mem::take(&mut self.unsent) {
            if let Some(&slot) = self.by_group.get(&group) {
                self.guarded(slot, |w| w.replica(slot).forward_not_sent(&refused));
                self.activate(slot);
            }
        }
    }

    /// Lets go of the room that its rounds no longer take.
    fn shed(&mut self) {
        self.early.shed();
        self.open.held.shed();
        self.open.updates.shrink_to_fit();
        self.active.shrink_to_fit();
        self.ready.shrink_to_fit();
        self.expired.shrink_to_fit();
        self.taken.shrink_to_fit();
        self.ahead.shrink_to_fit();
        self.late.shrink_to_fit();
        self.sealed.shrink_to_fit();
        self.inbox().shed();
    }

    /// Leaves what is to be durable, and what waits for that, with the log writer.
    fn seal_batch(&mut self) {
        let open = &mut self.open;
        if !(open.updates.is_empty() && open.held.is_empty() && open.tokens.is_empty() && open.after.is_empty()) {
            let seq = self.next_seq;
            self.next_seq += 1;
            let bytes = std::mem::take(&mut open.bytes);
            self.host.unsynced_bytes.fetch_add(bytes, Ordering::Relaxed);
            let batch = SealedBatch {
                worker: Some(self.index),
                seq,
                bytes,
                updates: std::mem::take(&mut open.updates),
                held: open.held.take(),
            };
            // The next round is likely as large as this one.
            let tokens = replace_sized(&mut open.tokens);
            let after = std::mem::take(&mut open.after);
            self.awaits_disk |= !after.is_empty();
            self.sealed.push_back(Sealed { seq, bytes, tokens, after });
            self.open.updates = self.writer.exchange(batch);
        }
    }

    fn fetched(&mut self, slot: u32, ticket: u64, runs: Result<Vec<longboat_raft::Run>, longboat_logdb::ReadError>) {
        let replica = self.replica(slot);
        if let Err(error) = &runs {
            tracing::debug!(group = %replica.config.group, %error, "cold read failed, the follower needs a snapshot");
        }
        replica.core.fetched(ticket, runs.map_err(|_| longboat_raft::Compacted));
    }
}

impl Worker for StepWorker {
    fn run_round(&mut self, now: Time) -> Work {
        if self.host.has_failed.load(Ordering::SeqCst) {
            if !self.failed {
                self.fail();
            }
            self.refuse_commands();
            self.flush(now);
            return Work::idle();
        }
        self.take_commands(now);
        self.heed_room(now);
        self.complete_durable();
        let more = self.take_frames(now);
        self.take_ready(now);
        self.expire(now);
        self.wake_due(now);
        let busy = !self.active.is_empty();
        self.visit_active(now);
        self.do_late();
        self.settle_memory(now);
        self.flush(now);
        if self.host.shed.is_new(&mut self.shed_heard) {
            self.shed();
        }
        Work {
            did: busy,
            again: more || !self.active.is_empty() || self.missed_durable(),
            next: [self.wheel.next(), self.waking.next(), self.early.due()].into_iter().flatten().min(),
        }
    }
}

impl std::fmt::Debug for StepWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepWorker")
            .field("index", &self.index)
            .field("groups", &self.by_group.len())
            .finish_non_exhaustive()
    }
}
