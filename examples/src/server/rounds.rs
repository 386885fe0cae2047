//! Gathers tasks of all connections into one batch per group and round, and hands their outcomes back.

use super::Shards;
use super::admin::{Answering, Said};
use super::commands::{Task, Work};
use super::conn::Place;
use crate::kv::{Answer, Command, Output, Query};
use longboat::{PendingBatch, RequestError};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use std::{io, mem};

/// Tasks in one batch: more are split, so that a batch always fits a group's queue.
const BATCH_TASKS_MAX: usize = 1024;
/// Bytes in one batch, for the same reason.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// How long one attempt may take: then a leader is most likely gone.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long a command may take in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts: a fraction of an election.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// A connection's slot, and which use of the slot it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A task and whom it is for.
#[derive(Clone, Debug)]
pub(crate) struct Op<W> {
    pub(crate) conn: ConnId,
    pub(crate) place: Place,
    pub(crate) deadline: Instant,
    pub(crate) shard: u32,
    pub(crate) work: W,
}

/// What became of a batch.
pub(crate) type Finished<W, T> = (Vec<Op<W>>, Vec<Result<T, RequestError>>);

/// Batches that are over.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) writes: Vec<Finished<Command, Output>>,
    pub(crate) reads: Vec<Finished<Query, Answer>>,
    /// What operators are told.
    pub(crate) said: Vec<(ConnId, Place, Result<Said, String>)>,
}

struct Batch<W, T> {
    ops: Vec<Op<W>>,
    pending: PendingBatch<T>,
}

enum InFlight {
    Writes(Batch<Command, Output>, Waker),
    Reads(Batch<Query, Answer>, Waker),
    Admin(ConnId, Place, Answering, Waker),
}

#[derive(Debug, Default)]
struct Open {
    writes: Vec<Op<Command>>,
    reads: Vec<Op<Query>>,
}

pub(crate) struct Rounds<S> {
    pub(crate) shards: Arc<S>,
    /// Tasks of the round being gathered, per group.
    open: Vec<Open>,
    /// The groups that have some.
    touched: Vec<usize>,
    /// The number of the round being gathered.
    pub(crate) number: u64,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<u32>,
    ready: Arc<Ready>,
    /// Failed tasks that are tried again, in the order in which they failed.
    retries: VecDeque<(Instant, Op<Work>)>,
    collected: Collected,
}

impl<S: Shards> Rounds<S> {
    pub(crate) fn new(shards: Arc<S>) -> io::Result<Self> {
        let open = (0..shards.count()).map(|_| Open::default()).collect();
        Ok(Self {
            shards,
            open,
            touched: Vec::new(),
            number: 1,
            in_flight: Vec::new(),
            free: Vec::new(),
            ready: Arc::new(Ready::new()?),
            retries: VecDeque::new(),
            collected: Collected::default(),
        })
    }

    /// Becomes readable when batches are over, or someone calls [`Ready::signal`].
    pub(crate) fn ready(&self) -> &Arc<Ready> {
        &self.ready
    }

    /// Adds a task to the round.
    pub(crate) fn add(&mut self, conn: ConnId, place: Place, task: Task, now: Instant) {
        let op = Op { conn, place, deadline: now + PATIENCE, shard: task.shard as u32, work: task.work };
        self.add_op(op);
    }

    fn add_op(&mut self, op: Op<Work>) {
        let Op { conn, place, deadline, shard, work } = op;
        if let Work::Admin(admin) = work {
            let answering = self.shards.admin(admin, PATIENCE);
            return self.start(|waker| InFlight::Admin(conn, place, answering, waker));
        }
        let open = &mut self.open[shard as usize];
        if open.writes.is_empty() && open.reads.is_empty() {
            self.touched.push(shard as usize);
        }
        match work {
            Work::Write(work) => open.writes.push(Op { conn, place, deadline, shard, work }),
            Work::Read(work) => open.reads.push(Op { conn, place, deadline, shard, work }),
            Work::Admin(_) => unreachable!("begun above"),
        }
    }

    /// Tries a failed task again in a little while.
    pub(crate) fn retry(&mut self, op: Op<Work>, now: Instant) {
        self.retries.push_back((now + RETRY_DELAY, op));
    }

    /// Adds the failed tasks whose time has come to the round.
    pub(crate) fn add_due_retries(&mut self, now: Instant) {
        while self.retries.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, op)) = self.retries.pop_front() {
                self.add_op(op);
            }
        }
    }

    /// When the next failed task is due.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.retries.front().map(|(at, _)| *at)
    }

    /// Ends the round: gives every group its batch of writes and its batch of reads.
    pub(crate) fn send(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        self.number += 1;
        for shard in mem::take(&mut self.touched) {
            let Open { writes, reads } = mem::take(&mut self.open[shard]);
            for ops in split(writes) {
                self.send_writes(shard, ops);
            }
            for ops in split(reads) {
                self.send_reads(shard, ops);
            }
        }
    }

    fn send_writes(&mut self, shard: usize, ops: Vec<Op<Command>>) {
        match self.shards.propose(shard, ops.iter().map(|op| op.work.clone()), ATTEMPT) {
            Ok(pending) => self.start(|waker| InFlight::Writes(Batch { ops, pending }, waker)),
            Err(error) => {
                let results = ops.iter().map(|_| Err(error.clone())).collect();
                self.collected.writes.push((ops, results));
            }
        }
    }

    fn send_reads(&mut self, shard: usize, ops: Vec<Op<Query>>) {
        match self.shards.read(shard, ops.iter().map(|op| op.work.clone()), ATTEMPT) {
            Ok(pending) => self.start(|waker| InFlight::Reads(Batch { ops, pending }, waker)),
            Err(error) => {
                let results = ops.iter().map(|_| Err(error.clone())).collect();
                self.collected.reads.push((ops, results));
            }
        }
    }

    fn start(&mut self, batch: impl FnOnce(Waker) -> InFlight) {
        let id = self.free.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            (self.in_flight.len() - 1) as u32
        });
        let waker = Waker::from(Arc::new(BatchWaker { id, ready: Arc::clone(&self.ready) }));
        self.in_flight[id as usize] = Some(batch(waker));
        self.poll(id);
    }

    fn poll(&mut self, id: u32) {
        let Some(batch) = &mut self.in_flight[id as usize] else { return };
        match batch {
            InFlight::Writes(batch, waker) => match poll_batch(batch, waker) {
                Some(finished) => self.collected.writes.push(finished),
                None => return,
            },
            InFlight::Reads(batch, waker) => match poll_batch(batch, waker) {
                Some(finished) => self.collected.reads.push(finished),
                None => return,
            },
            InFlight::Admin(conn, place, answering, waker) => {
                match answering.as_mut().poll(&mut Context::from_waker(waker)) {
                    Poll::Ready(said) => self.collected.said.push((*conn, *place, said)),
                    Poll::Pending => return,
                }
            }
        }
        self.in_flight[id as usize] = None;
        self.free.push(id);
    }

    /// The batches that are over since the last call.
    pub(crate) fn collect(&mut self) -> Collected {
        for id in self.ready.take() {
            self.poll(id);
        }
        mem::take(&mut self.collected)
    }
}

fn poll_batch<W, T: Send + 'static>(batch: &mut Batch<W, T>, waker: &Waker) -> Option<Finished<W, T>> {
    match Pin::new(&mut batch.pending).poll(&mut Context::from_waker(waker)) {
        Poll::Ready(results) => Some((mem::take(&mut batch.ops), results)),
        Poll::Pending => None,
    }
}

/// What a task weighs in its batch.
trait Weight {
    fn bytes(&self) -> usize;
}

impl Weight for Command {
    fn bytes(&self) -> usize {
        match self {
            Self::Set { key, value, .. } => key.len() + value.len(),
            Self::Del { key } | Self::Incr { key } => key.len(),
        }
    }
}

impl Weight for Query {
    fn bytes(&self) -> usize {
        0
    }
}

/// Cuts tasks into batches that keep to the limits, in order.
fn split<W: Weight>(ops: Vec<Op<W>>) -> Vec<Vec<Op<W>>> {
    let mut batches = Vec::with_capacity(1);
    let mut batch = Vec::with_capacity(ops.len().min(BATCH_TASKS_MAX));
    let mut bytes = 0;
    for op in ops {
        if !batch.is_empty() && (batch.len() == BATCH_TASKS_MAX || bytes + op.work.bytes() > BATCH_BYTES_MAX) {
            batches.push(mem::take(&mut batch));
            bytes = 0;
        }
        bytes += op.work.bytes();
        batch.push(op);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Where wakers put the batches that are over, and what wakes the loop.
#[derive(Debug)]
pub(crate) struct Ready {
    ids: Mutex<Vec<u32>>,
    /// Set from the first signal until the loop looks.
    signaled: AtomicBool,
    event: OwnedFd,
}

impl Ready {
    fn new() -> io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { ids: Mutex::new(Vec::new()), signaled: AtomicBool::new(false), event })
    }

    /// Wakes the loop.
    pub(crate) fn signal(&self) {
        if !self.signaled.swap(true, Ordering::AcqRel) {
            // It can only fail when the counter is full, and then the loop is awake.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Makes the event unreadable until the next signal.
    pub(crate) fn reset(&self) {
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
    }

    fn take(&self) -> Vec<u32> {
        // Before the list: whoever adds to it afterwards signals again.
        self.signaled.store(false, Ordering::Release);
        mem::take(&mut *self.ids.lock())
    }
}

impl AsFd for Ready {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

struct BatchWaker {
    id: u32,
    ready: Arc<Ready>,
}

impl Wake for BatchWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.ids.lock().push(self.id);
        self.ready.signal();
    }
}
