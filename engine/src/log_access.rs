//! A group's log as users see it: reading it, holding it for a reader, letting it go, and asking why it is as long as it is.
//!
//! Invariants: entries that a pin holds are readable until its lease ends or a leader's snapshot replaces the log; the log
//! goes only as far as a durable snapshot of this replica reaches; a pin is granted only for entries that nobody is
//! about to let go. Must not know: how entries are stored.

use crate::late::Late;
use crate::replica::Replica;
use crate::request::{Rare, Reply};
use crate::shared::{Command, GroupShared, SlotRef};
use crate::snapshot::{AfterDurable, SnapshotIo};
use crate::step::StepWorker;
use bytes::Bytes;
use longboat_io::{Job, JobState};
use longboat_logdb::{LogReader, ReadError};
use longboat_raft::{EntryKind, GroupId, Index, LogPos, ReplicaId, Role, Run, Term, Time, plant};
use longboat_rsm::{Pending, RequestError, SnapshotRefusal, Stage, packed};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Entries of one answer.
const ENTRIES_MAX: usize = 64 * 1024;
/// Payload bytes of one answer, as soon as they are more than one entry's.
const BYTES_MAX: usize = 64 << 20;
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;
/// Pins that one replica keeps.
const PINS_MAX: usize = 1024;
const NEVER: Time = Time(u64::MAX);

/// How much of a range one query returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryLimits {
    /// Entries, at most 65,536.
    pub entries: usize,
    /// Payload bytes, at most 64 MiB; one entry is returned whatever its size.
    pub bytes: usize,
}

impl Default for EntryLimits {
    fn default() -> Self {
        Self { entries: 1024, bytes: 4 << 20 }
    }
}

/// An entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogEntry {
    /// Its place.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// What it means.
    pub kind: EntryKind,
    /// Its payload: a command as it was encoded, or an encoded membership change. Witnesses keep none of commands.
    pub payload: Bytes,
}

/// Part of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntries {
    /// The entries, contiguous.
    pub entries: Vec<LogEntry>,
    /// Where to go on: the index after the last of them.
    pub next: Index,
}

/// Why a log is not truncated any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogHold {
    /// There is no snapshot that could stand for what goes.
    NoSnapshot,
    /// All before the newest snapshot is gone.
    Snapshot,
    /// The configured number of entries is kept behind the newest snapshot.
    Overhead,
    /// A reader has pinned the log from this entry on.
    Pinned {
        /// The entry.
        index: Index,
    },
    /// An older snapshot that is kept needs what comes after it.
    OlderSnapshot {
        /// The snapshot's index.
        index: Index,
    },
    /// A follower is being sent a snapshot, and needs what comes after it.
    Install {
        /// The snapshot's index.
        index: Index,
    },
    /// Snapshots let no log go here: that is asked for.
    NotAutomatic,
}

/// A group's log, and what keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogInfo {
    /// The first entry that is kept.
    pub first: Index,
    /// The last entry.
    pub last: Index,
    /// The last entry that is known to be committed.
    pub commit: Index,
    /// The newest snapshot; zero if there is none.
    pub snapshot: Index,
    /// Pins that are held: from which entry on, and for how long yet.
    pub pins: Vec<(Index, Duration)>,
    /// On the leader, the member that has the least of the log, and through where it is known to have it.
    pub slowest: Option<(ReplicaId, Index)>,
    /// Why no more of it is truncated.
    pub held_by: LogHold,
}

/// What a compaction came to. The space of what went is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// The entries through this one are gone.
    pub through: Index,
    /// Why no more are.
    pub held_by: LogHold,
}

/// Something asked of a group's log.
#[derive(Debug)]
pub enum LogRequest {
    /// Its entries.
    Query(Range<Index>, EntryLimits, Reply<LogEntries>),
    /// That what is at this index and after it stays until then.
    Pin(Index, Time, Reply<LogPin>),
    /// That a pin is held until then.
    Renew(u64, Time, Reply<()>),
    /// That a pin is held no more.
    Release(u64),
    /// What is known of it.
    Info(Reply<LogInfo>),
    /// That it is truncated: through this index, or as far as is configured.
    Compact(Option<Index>, Reply<Compacted>),
}

/// Holds a group's log at an index: what is there and after it stays readable here, until the lease ends, this is dropped,
/// the replica stops, or a leader's snapshot replaces the log.
#[derive(Debug)]
pub struct LogPin {
    shared: Arc<GroupShared>,
    number: u64,
    index: Index,
}

impl LogPin {
    /// The first entry that it holds.
    pub fn index(&self) -> Index {
        self.index
    }

    /// Holds on for this long from now. [`RequestError::PinExpired`] when the lease has ended before.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when too many requests wait, or that the replica takes no more requests.
    pub fn renew(&self, lease: Duration, timeout: Duration) -> Result<Pending<()>, RequestError> {
        let until = self.shared.deadline_after(lease);
        let deadline = self.shared.deadline_after(timeout);
        self.shared.request(deadline, |reply| Rare::Log(LogRequest::Renew(self.number, until, reply)))
    }
}

impl Drop for LogPin {
    fn drop(&mut self) {
        if !self.shared.is_closed() {
            let request = Rare::Log(LogRequest::Release(self.number));
            // Counted like all of them, and never refused.
            self.shared.rare_waiting.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.shared.host.command(self.shared.worker(), Command::Request(Arc::clone(&self.shared), request));
        }
    }
}

#[derive(Debug)]
struct Pin {
    number: u64,
    index: Index,
    until: Time,
}

/// Who uses a replica's log, beside the protocol.
#[derive(Debug, Default)]
pub(crate) struct LogUse {
    pins: Vec<Pin>,
    next_number: u64,
    /// Through where the log would have gone, had it not been held.
    wanted: Index,
}

impl LogUse {
    /// The first entry that is pinned, of those that a leader's snapshot has not replaced.
    fn first_pinned(&self, start: Index) -> Option<Index> {
        self.pins.iter().map(|pin| pin.index).filter(|&index| index > start).min()
    }

    /// Forgets pins whose lease has ended. Returns whether there were any.
    fn expire(&mut self, now: Time) -> bool {
        let before = self.pins.len();
        self.pins.retain(|pin| pin.until > now);
        self.pins.len() < before
    }

    /// When to look again: a lease ends, and something waits for that.
    fn deadline(&self) -> Time {
        if self.wanted.is_zero() { NEVER } else { self.pins.iter().map(|pin| pin.until).min().unwrap_or(NEVER) }
    }
}

impl Replica {
    /// Through where the log may go, of what goes through `wanted`: what is held is remembered, to go when nobody holds it.
    pub(crate) fn unheld(&mut self, wanted: Index) -> Index {
        let free = self.hold().map_or(wanted, |(bound, _)| wanted.min(bound));
        if free < wanted {
            let log_use = self.log_use.get_or_insert_with(Box::default);
            log_use.wanted = log_use.wanted.max(wanted);
        }
        free
    }

    /// What holds the log where, if anything does.
    fn hold(&self) -> Option<(Index, LogHold)> {
        let start = self.core.start().index;
        let pinned = self.log_use.as_ref().and_then(|u| u.first_pinned(start)).filter(|_| !plant::is("pin-ignored"));
        let pinned = pinned.map(|index| (index.prev(), LogHold::Pinned { index }));
        let older = self
            .seldom
            .older
            .first()
            .filter(|_| !plant::is("older-log-not-kept"))
            .map(|&index| (index, LogHold::OlderSnapshot { index }));
        let sent = self.sending.floor().map(|index| (index, LogHold::Install { index }));
        pinned.into_iter().chain(older).chain(sent).min_by_key(|(bound, _)| *bound)
    }

    /// Through where the log goes behind the newest recorded snapshot, held or not.
    fn configured_compaction(&self) -> Index {
        Index(self.recorded.0.saturating_sub(self.config.compaction_overhead))
    }

    fn held_by(&self) -> LogHold {
        let start = self.core.start().index;
        match self.hold() {
            _ if self.recorded.is_zero() => LogHold::NoSnapshot,
            _ if start >= self.recorded => LogHold::Snapshot,
            Some((bound, hold)) if bound <= start => hold,
            _ if start < self.configured_compaction() && !self.config.auto_compaction => LogHold::NotAutomatic,
            _ => LogHold::Overhead,
        }
    }

    /// When a pin's end lets log go.
    pub(crate) fn log_use_deadline(&self) -> Time {
        self.log_use.as_ref().map_or(NEVER, |log_use| log_use.deadline())
    }

    /// Leases have ended. Returns whether log may go now that was held.
    pub(crate) fn expire_pins(&mut self, now: Time) -> bool {
        self.log_use.as_mut().is_some_and(|log_use| log_use.expire(now) && !log_use.wanted.is_zero())
    }

    fn pin(&mut self, now: Time, index: Index, until: Time, mut reply: Reply<LogPin>) {
        let (first, last) = (self.core.start().index.max(self.truncating).next(), self.core.last().index);
        let log_use = self.log_use.get_or_insert_with(Box::default);
        log_use.expire(now);
        if index < first {
            return reply.resolve(Err(RequestError::LogRange { first, last }));
        }
        if log_use.pins.len() >= PINS_MAX {
            return reply.resolve(Err(RequestError::Busy));
        }
        log_use.next_number += 1;
        let number = log_use.next_number;
        log_use.pins.push(Pin { number, index, until });
        tracing::debug!(group = %self.config.group, replica = %self.config.replica, %index, "log pinned");
        reply.resolve(Ok(LogPin { shared: Arc::clone(&self.shared), number, index }));
    }

    fn renew(&mut self, now: Time, number: u64, until: Time) -> Result<(), RequestError> {
        let pins = self.log_use.iter_mut().flat_map(|log_use| &mut log_use.pins);
        let pin = pins.into_iter().find(|pin| pin.number == number && pin.until > now);
        pin.ok_or(RequestError::PinExpired)?.until = until;
        Ok(())
    }

    fn release(&mut self, number: u64) -> bool {
        let Some(log_use) = &mut self.log_use else { return false };
        log_use.pins.retain(|pin| pin.number != number);
        !log_use.wanted.is_zero()
    }

    fn log_info(&mut self, now: Time) -> LogInfo {
        let pins = self.log_use.as_mut().map(|log_use| {
            log_use.expire(now);
            let left = |pin: &Pin| (pin.index, Duration::from_nanos(pin.until.nanos_since(now)));
            log_use.pins.iter().map(left).collect()
        });
        let leads = self.core.role() == Role::Leader;
        let others = self.core.membership().replicas().filter(|&id| leads && id != self.config.replica);
        let matched = others.filter_map(|id| Some((id, self.core.progress(id)?.matched())));
        LogInfo {
            first: self.core.start().index.next(),
            last: self.core.last().index,
            commit: self.core.commit(),
            snapshot: self.recorded,
            pins: pins.unwrap_or_default(),
            slowest: matched.min_by_key(|(_, index)| *index),
            held_by: self.held_by(),
        }
    }
}

impl StepWorker {
    /// A request of the group's log has its turn: all that its core has accepted is sealed.
    pub(crate) fn log_request(&mut self, at: SlotRef, request: LogRequest) {
        let now = self.host.clock.now();
        let snapshots = Arc::clone(&self.snapshots);
        let replica = self.replica(at.slot);
        match request {
            LogRequest::Query(range, limits, reply) => snapshots.query(replica, range, limits, reply),
            LogRequest::Pin(index, until, reply) => replica.pin(now, index, until, reply),
            LogRequest::Renew(number, until, mut reply) => reply.resolve(replica.renew(now, number, until)),
            LogRequest::Release(number) => {
                if replica.release(number) {
                    self.truncate_wanted(at);
                }
            }
            LogRequest::Info(mut reply) => reply.resolve(Ok(replica.log_info(now))),
            LogRequest::Compact(through, reply) => self.compact(at, through, reply),
        }
        // A pin's lease is one of the replica's deadlines now.
        self.activate(at.slot);
    }

    fn compact(&mut self, at: SlotRef, through: Option<Index>, mut reply: Reply<Compacted>) {
        let replica = self.replica(at.slot);
        let index = replica.recorded;
        if let Some(asked) = through.filter(|&asked| asked > index) {
            let refusal = SnapshotRefusal::CompactionIndex { asked, index };
            return reply.resolve(Err(RequestError::SnapshotRefused(refusal)));
        }
        let wanted = through.unwrap_or_else(|| replica.configured_compaction());
        self.truncate(at, wanted, Some(reply));
    }

    /// Nobody holds any more, or not as much, of what was to go.
    pub(crate) fn truncate_wanted(&mut self, at: SlotRef) {
        let log_use = self.replica(at.slot).log_use.as_mut();
        let wanted = log_use.map(|log_use| std::mem::take(&mut log_use.wanted)).unwrap_or_default();
        if !wanted.is_zero() {
            self.truncate(at, wanted, None);
        }
    }

    fn truncate(&mut self, at: SlotRef, wanted: Index, reply: Option<Reply<Compacted>>) {
        let snapshots = Arc::clone(&self.snapshots);
        let replica = self.replica(at.slot);
        for follower in replica.sending.settle(&replica.core) {
            snapshots.sends.abort(replica.config.group, follower);
        }
        let to = replica.unheld(wanted.min(replica.recorded));
        let known = replica.core.start().index.max(replica.truncating);
        let mut update = replica.empty_update();
        if to > known
            && let Some(term) = replica.core.term_at(to)
        {
            tracing::debug!(group = %replica.config.group, replica = %replica.config.replica, index = %to, "log truncation on its way");
            update.compact_to = Some(LogPos::new(term, to));
            replica.truncating = to;
        } else if reply.is_none() {
            return;
        }
        // Also with nothing to truncate: one that is on its way is durable by then.
        let compact_to = update.compact_to;
        self.push_update(update);
        self.open.after.push((at, AfterDurable::Truncated { compact_to, reply }));
    }

    /// What was asked of a group's log waits until its turn at the end of the round.
    pub(crate) fn log_later(&mut self, slot: u32, request: LogRequest) {
        let at = self.slot_ref(slot);
        self.late.push((at, Late::Log(Box::new(request))));
    }
}

impl SnapshotIo {
    fn query(&self, replica: &Replica, range: Range<Index>, limits: EntryLimits, mut reply: Reply<LogEntries>) {
        // Committed and on this disk.
        let (first, last) = (replica.core.start().index.next(), replica.core.handed());
        let hi = range.end.prev().min(last);
        if range.start < first || range.start > last.next() {
            return reply.resolve(Err(RequestError::LogRange { first, last }));
        }
        let limits = EntryLimits { entries: limits.entries.min(ENTRIES_MAX), bytes: limits.bytes.min(BYTES_MAX) };
        self.spawner.spawn(Box::new(QueryJob {
            reader: Arc::clone(&self.reader),
            shared: Arc::clone(&replica.shared),
            found: LogEntries { entries: Vec::new(), next: range.start },
            hi,
            limits,
            bytes: 0,
            reply,
        }));
    }

    /// A truncation is durable: who asked for it is told when its space is free.
    pub(crate) fn truncated(&self, replica: &mut Replica, compact_to: Option<LogPos>, reply: Option<Reply<Compacted>>) {
        if let Some(to) = compact_to {
            self.let_go(replica, to.index);
        }
        if let Some(reply) = reply {
            let done = Compacted { through: replica.core.start().index, held_by: replica.held_by() };
            let (reader, shared) = (Arc::clone(&self.reader), Arc::clone(&replica.shared));
            self.spawner.spawn(Box::new(ReclaimJob { reader, shared, done, reply }));
        }
    }
}

/// Reads part of a log: never on a step worker's time.
struct QueryJob {
    reader: Arc<dyn LogReader>,
    shared: Arc<GroupShared>,
    found: LogEntries,
    hi: Index,
    limits: EntryLimits,
    bytes: usize,
    reply: Reply<LogEntries>,
}

impl QueryJob {
    /// Takes entries while there is room. Returns whether there is any left.
    fn take(&mut self, run: &Run) -> Result<bool, RequestError> {
        for entry in run.entries() {
            let shared = || run.shared_payload(entry.payload_offset..entry.payload_offset + entry.payload.len());
            let unpacked = if run.is_stripped() { Ok(None) } else { packed::unpack(&entry) };
            let unreadable = |e| RequestError::LogUnreadable { group: self.shared.group, reason: format!("{e}") };
            let payload = unpacked.map_err(unreadable)?.unwrap_or_else(shared);
            let (entries, bytes) = (self.found.entries.len(), self.bytes + payload.len());
            if entries >= self.limits.entries || (entries > 0 && bytes > self.limits.bytes) {
                return Ok(false);
            }
            self.bytes = bytes;
            let (index, term, kind) = (entry.index, entry.term, entry.kind);
            self.found.entries.push(LogEntry { index, term, kind, payload });
            self.found.next = index.next();
        }
        Ok(true)
    }

    fn read(&mut self) -> Result<bool, RequestError> {
        if self.found.next > self.hi || self.limits.entries == 0 {
            return Ok(false);
        }
        let bytes = READ_BYTES.min(self.limits.bytes.max(1));
        let group = self.shared.group;
        let runs = self.reader.entries(group, self.found.next, self.hi, bytes).map_err(|e| self.failed(group, &e))?;
        for run in &runs {
            if !self.take(run)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn failed(&self, group: GroupId, error: &ReadError) -> RequestError {
        match error {
            // Truncated meanwhile.
            ReadError::Compacted(first) => RequestError::LogRange { first: *first, last: self.hi },
            other => RequestError::LogUnreadable { group, reason: other.to_string() },
        }
    }
}

impl Job for QueryJob {
    fn step(&mut self, _budget: usize) -> JobState {
        self.reply.expire(self.shared.host.clock.now(), Stage::Disk, false);
        match self.read() {
            Ok(true) if self.reply.is_open() => return JobState::Again,
            Ok(_) => {
                let next = self.found.next;
                let found = std::mem::replace(&mut self.found, LogEntries { entries: Vec::new(), next });
                self.reply.resolve(Ok(found));
            }
            Err(error) => self.reply.resolve(Err(error)),
        }
        JobState::Done
    }
}

/// Waits until the space of what was truncated is free.
struct ReclaimJob {
    reader: Arc<dyn LogReader>,
    shared: Arc<GroupShared>,
    done: Compacted,
    reply: Reply<Compacted>,
}

impl Job for ReclaimJob {
    fn step(&mut self, _budget: usize) -> JobState {
        self.reply.expire(self.shared.host.clock.now(), Stage::Disk, false);
        if !self.reply.is_open() || self.shared.is_closed() {
            return JobState::Done;
        }
        match self.reader.reclaim(self.shared.group) {
            Ok(true) => {
                tracing::debug!(group = %self.shared.group, replica = %self.shared.replica, index = %self.done.through, "log space reclaimed");
                self.reply.resolve(Ok(self.done));
            }
            Ok(false) => return JobState::Blocked,
            Err(error) => {
                let (group, reason) = (self.shared.group, error.to_string());
                self.reply.resolve(Err(RequestError::LogUnreadable { group, reason }));
            }
        }
        JobState::Done
    }
}
