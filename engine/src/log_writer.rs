//! The log writer: all workers' sealed batches become one journal write and one sync; then what waited for it leaves.
//!
//! Invariants:
//! - A batch's held messages are sent, and its number is told to its worker, only when the store has reported that batch,
//!   and so all before it, durable.
//! - After the first failure of the store nothing is released any more.

use crate::config::{HOUSEKEEPING_NANOS, UNSYNCED_BYTES_MAX};
use crate::give_back::GiveBack;
use crate::outbox::OutFrame;
use crate::reseal::ResealJob;
use crate::shared::{HostShared, reason};
use crate::space;
use crate::worker::{Work, Worker};
pub use crate::writer_inbox::WriterInbox;
use longboat_io::Spawner;
use longboat_logdb::{LogDb, LogError, Seq, Update};
use longboat_raft::{Time, plant};
use longboat_transport::Transport;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Nanoseconds without a batch after which the store states what is durable.
const IDLE_NANOS: u64 = 10_000_000;

/// Percent of its bound beyond which the journal takes no proposals, until settling has caught up. The bound itself is a
/// goal: a burst may pass it.
const PRESSURE_PERCENT_MAX: u32 = 300;

/// What one round of one worker wants durable, and what may leave then.
#[derive(Debug, Default)]
pub struct SealedBatch {
    /// The step worker; `None` for a batch made by a caller that starts replicas.
    pub worker: Option<usize>,
    /// The worker's number of this batch.
    pub seq: u64,
    /// About how large it is.
    pub bytes: u64,
    /// What to make durable; empty when only messages wait for earlier batches.
    pub updates: Vec<Update>,
    /// What leaves when it is durable.
    pub held: Vec<OutFrame>,
}

struct Waiting {
    seq: Seq,
    since: Time,
    worker: Option<usize>,
    worker_seq: u64,
    held: Vec<OutFrame>,
}

/// The log writer of one host.
pub struct LogWriter<L: LogDb> {
    log: L,
    host: Arc<HostShared>,
    transport: Arc<dyn Transport>,
    inbox: Arc<WriterInbox>,
    spawner: Arc<dyn Spawner>,
    taken: Vec<SealedBatch>,
    waiting: VecDeque<Waiting>,
    submitted: Seq,
    last_submit: Time,
    stated: bool,
    next_housekeeping: Time,
    next_look: Time,
    give_back: GiveBack,
    shed_heard: u64,
    failed: bool,
    touched: Vec<bool>,
}

impl<L: LogDb> LogWriter<L> {
    /// The log writer over `log`.
    pub fn new(
        log: L,
        host: Arc<HostShared>,
        transport: Arc<dyn Transport>,
        inbox: Arc<WriterInbox>,
        spawner: Arc<dyn Spawner>,
    ) -> Self {
        let touched = vec![false; host.workers.len()];
        Self {
            log,
            host,
            transport,
            inbox,
            spawner,
            taken: Vec::new(),
            waiting: VecDeque::new(),
            submitted: Seq(0),
            last_submit: Time::ZERO,
            stated: true,
            next_housekeeping: Time::ZERO,
            next_look: Time::ZERO,
            give_back: GiveBack::default(),
            shed_heard: 0,
            failed: false,
            touched,
        }
    }

    fn submit(&mut self, now: Time) -> bool {
        self.inbox.take(&mut self.taken, || self.log.spare());
        let any = !self.taken.is_empty();
        for batch in self.taken.drain(..) {
            // A batch without updates waits for what was submitted before it.
            if !batch.updates.is_empty() {
                // Told before it begins: beginning it may block.
                let since = self.waiting.front().map_or(now, |w| w.since);
                self.host.peers.writing_since.store(since.0.max(1), Ordering::Relaxed);
                self.submitted = self.log.submit(batch.updates);
                self.last_submit = now;
                self.stated = false;
            }
            let mut waiting = Waiting {
                seq: self.submitted,
                since: now,
                worker: batch.worker,
                worker_seq: batch.seq,
                held: batch.held,
            };
            if plant::is("ack-before-durable") {
                Self::send(&*self.transport, &mut waiting.held);
            }
            self.waiting.push_back(waiting);
        }
        any
    }

    fn send(transport: &dyn Transport, held: &mut Vec<OutFrame>) {
        for frame in held.drain(..) {
            transport.send(frame.to, frame.lane, &frame.parts);
        }
    }

    /// Lets go of all that is durable. Workers are woken once each.
    fn release(&mut self, through: Seq) {
        while self.waiting.front().is_some_and(|w| w.seq <= through) {
            let mut batch = self.waiting.pop_front().expect("just seen");
            Self::send(&*self.transport, &mut batch.held);
            if let Some(worker) = batch.worker {
                let inbox = &self.host.workers[worker];
                let wanted = inbox.durable.reached(batch.worker_seq);
                // Other workers wait for what this one still counts as unsynced, if that is much.
                let much = self.host.unsynced_bytes.load(Ordering::Relaxed) > UNSYNCED_BYTES_MAX / 2;
                self.touched[worker] |= wanted || much;
            }
        }
        let since = self.waiting.front().map_or(0, |w| w.since.0.max(1));
        self.host.peers.writing_since.store(since, Ordering::Relaxed);
        for (worker, touched) in self.touched.iter_mut().enumerate() {
            if std::mem::take(touched) {
                self.host.workers[worker].notifier.notify();
            }
        }
    }

    fn housekeeping(&mut self, now: Time, in_flight: bool) -> Result<(), LogError> {
        if now < self.next_housekeeping {
            return Ok(());
        }
        self.next_housekeeping = now.plus_nanos(HOUSEKEEPING_NANOS);
        if let Some(job) = self.log.background_job() {
            self.spawner.spawn(job);
        }
        for group in self.log.pinned() {
            match self.host.group(group) {
                Some(group) => group.ready(reason::RESEAL),
                None => self.spawner.spawn(Box::new(ResealJob {
                    host: Arc::clone(&self.host),
                    writer: Arc::clone(&self.inbox),
                    reader: self.log.reader(),
                    group,
                })),
            }
        }
        let stats = self.log.stats();
        self.inbox.set_stats(stats);
        let overfull = stats.pressure_percent >= PRESSURE_PERCENT_MAX;
        if self.host.log_overfull.swap(overfull, Ordering::Relaxed) && !overfull {
            // Workers have put proposals aside: they may go on.
            for worker in &self.host.workers {
                worker.notifier.notify();
            }
        }
        if !self.stated && !in_flight && now.nanos_since(self.last_submit) >= IDLE_NANOS {
            self.log.idle()?;
            self.inbox.shed();
            self.stated = true;
        }
        Ok(())
    }

    fn look_for_room(&mut self, now: Time) {
        if now >= self.next_look {
            self.next_look = now.plus_nanos(space::LOOK_NANOS);
            if let Some(free) = self.log.free_bytes() {
                self.host.note_free_bytes(free);
            }
        }
    }

    fn round(&mut self, now: Time) -> Result<Work, LogError> {
        let any = self.submit(now);
        let progress = self.log.poll()?;
        self.host.openings.reached(progress.place);
        self.release(progress.durable_through);
        self.housekeeping(now, progress.in_flight)?;
        self.look_for_room(now);
        let silence = || (self.host.peers.silent.load(Ordering::Relaxed), self.host.groups.read().len() as u64);
        self.give_back.look(now, silence, &self.host.shed, &*self.spawner);
        if self.host.shed.is_new(&mut self.shed_heard) {
            self.log.shed();
            self.inbox.shed();
            self.taken.shrink_to_fit();
            self.waiting.shrink_to_fit();
        }
        let next = if self.stated { now.plus_nanos(IDLE_NANOS * 10) } else { self.next_housekeeping };
        Ok(Work { did: any, again: progress.in_flight, next: Some(next) })
    }

    /// Makes durable what was left, seals the log and stops.
    ///
    /// # Errors
    /// When the store failed, now or before.
    pub fn close(mut self, now: Time) -> Result<(), LogError> {
        self.submit(now);
        self.log.close()?;
        self.release(self.submitted);
        self.inbox.set_stats(self.log.stats());
        Ok(())
    }

    /// The store, for checkers.
    pub fn log(&self) -> &L {
        &self.log
    }
}

impl<L: LogDb> Worker for LogWriter<L> {
    fn run_round(&mut self, now: Time) -> Work {
        if self.failed {
            self.inbox.clear();
            return Work::idle();
        }
        match self.round(now) {
            Ok(work) => work,
            Err(error) => {
                // Final: nothing that waits is released, here or later.
                self.failed = true;
                self.waiting.clear();
                self.host.fail(&error.to_string());
                Work::idle()
            }
        }
    }
}

impl<L: LogDb> std::fmt::Debug for LogWriter<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("submitted", &self.submitted).finish_non_exhaustive()
    }
}
