//! One thread that keeps operations under way in many groups, through the public API.
//!
//! Each group is a [`Lane`]: proposals and reads as batches, in the order in which they were called. What is completed is replaced
//! at once, so that the number under way stays the same (a closed loop); or, with a rate, operations are called when their time has
//! come, whatever is under way, and their latency counts from that time on (an open loop). A lane has one waker: when its oldest batch
//! completes, the lane goes on the ready list and the thread is unparked, once, whatever number of lanes is ready.
//!
//! An operation that fails is not counted as completed; another takes its place at the group's present leader.

use crate::cluster::{HOSTS, leader_of};
use crate::machine::{Counter, Load};
use crate::report::Latencies;
use longboat::{Group, PendingBatch, RequestError};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a lane waits after a refusal before it calls again.
const REFUSED_PAUSE: Duration = Duration::from_micros(500);
/// How often operations of an open loop are called.
const PACE: Duration = Duration::from_micros(200);
/// The deadline of every operation.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a client does.
#[derive(Clone, Copy, Debug)]
pub struct ClientConfig {
    /// Operations under way per group.
    pub inflight: usize,
    /// The most operations of one call.
    pub call_max: usize,
    /// Linearizable reads among a hundred operations.
    pub reads_percent: usize,
    /// The command.
    pub payload: &'static [u8],
    /// Operations per second of one client thread, spread over its groups in turn; `None` for as fast as they complete.
    pub rate: Option<f64>,
}

/// What tells clients when to count and when to end.
#[derive(Debug, Default)]
pub struct Phase {
    /// Completions are counted while this holds.
    pub counting: AtomicBool,
    /// The clients end.
    pub stop: AtomicBool,
}

/// What a client has counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Completed proposals.
    pub proposals: u64,
    /// Completed reads.
    pub reads: u64,
    /// Operations that ended in an error, or were refused when called.
    pub errors: u64,
    /// The last of these errors.
    pub last_error: Option<RequestError>,
    /// From call to completion, proposals and reads together.
    pub latencies: Latencies,
}

impl Counts {
    /// Adds another client's.
    pub fn merge(&mut self, other: Self) {
        self.proposals += other.proposals;
        self.reads += other.reads;
        self.errors += other.errors;
        self.last_error = other.last_error.or(self.last_error.take());
        self.latencies.merge(&other.latencies);
    }
}

/// Runs load on `groups` from this thread until the phase says stop.
pub fn run(groups: Vec<[Group<Counter>; HOSTS]>, config: ClientConfig, phase: &Phase) -> Counts {
    Client::new(groups, config).run(phase)
}

#[derive(Debug)]
struct ReadyList {
    lanes: Mutex<Vec<u32>>,
    client: Thread,
}

#[derive(Debug)]
struct LaneWaker {
    lane: u32,
    /// The lane is on the ready list.
    ready: AtomicBool,
    list: Arc<ReadyList>,
}

impl Wake for LaneWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.ready.swap(true, Ordering::AcqRel) {
            return;
        }
        let first = {
            let mut lanes = self.list.lanes.lock();
            lanes.push(self.lane);
            lanes.len() == 1
        };
        // Whoever finds the list empty unparks; the client takes the whole list before it parks again.
        if first {
            self.list.client.unpark();
        }
    }
}

struct Call {
    results: PendingBatch<u64>,
    called: Instant,
}

struct Lane {
    handles: [Group<Counter>; HOSTS],
    leader: usize,
    proposals: VecDeque<Call>,
    reads: VecDeque<Call>,
    /// Operations that are due and not called yet, and since when, if that matters.
    owed: usize,
    due: Option<Instant>,
    /// Operations called so far, modulo 100: decides which are reads.
    turn: usize,
    waker: Waker,
    notified: Arc<LaneWaker>,
}

struct Client {
    lanes: Vec<Lane>,
    list: Arc<ReadyList>,
    config: ClientConfig,
    counts: Counts,
    /// Lanes whose last call was refused.
    refused: Vec<u32>,
    /// Of an open loop: when it began, and how many operations have become due.
    began: Instant,
    paced: u64,
}

impl Client {
    fn new(groups: Vec<[Group<Counter>; HOSTS]>, config: ClientConfig) -> Self {
        assert!(config.call_max > 0 && config.inflight > 0 && config.reads_percent <= 100, "{config:?}");
        let list = Arc::new(ReadyList { lanes: Mutex::new(Vec::new()), client: thread::current() });
        let lane = |(lane, handles): (usize, [Group<Counter>; HOSTS])| {
            let notified =
                Arc::new(LaneWaker { lane: lane as u32, ready: AtomicBool::new(false), list: Arc::clone(&list) });
            Lane {
                leader: leader_of(&handles).unwrap_or(0),
                handles,
                proposals: VecDeque::new(),
                reads: VecDeque::new(),
                owed: if config.rate.is_some() { 0 } else { config.inflight },
                due: None,
                turn: 0,
                waker: Waker::from(Arc::clone(&notified)),
                notified,
            }
        };
        let lanes = groups.into_iter().enumerate().map(lane).collect();
        let (counts, refused, began) = (Counts::default(), Vec::new(), Instant::now());
        Self { lanes, list, config, counts, refused, began, paced: 0 }
    }

    fn run(mut self, phase: &Phase) -> Counts {
        let mut due: Vec<u32> = (0..self.lanes.len() as u32).collect();
        while !phase.stop.load(Ordering::Acquire) {
            let counting = phase.counting.load(Ordering::Acquire);
            for lane in due.drain(..) {
                self.visit(lane, counting);
            }
            std::mem::swap(&mut due, &mut *self.list.lanes.lock());
            self.pace(&mut due);
            if !due.is_empty() {
                continue;
            }
            if self.config.rate.is_some() {
                thread::park_timeout(PACE);
                due.append(&mut self.refused);
            } else if self.refused.is_empty() {
                thread::park();
            } else {
                thread::park_timeout(REFUSED_PAUSE);
                due.append(&mut self.refused);
            }
        }
        self.counts
    }

    /// Makes operations due whose time has come, in one lane after the other.
    fn pace(&mut self, due: &mut Vec<u32>) {
        let Some(rate) = self.config.rate else { return };
        let now = Instant::now();
        let target = (now.saturating_duration_since(self.began).as_secs_f64() * rate) as u64;
        for number in self.paced..target {
            let at = (number % self.lanes.len() as u64) as usize;
            let lane = &mut self.lanes[at];
            if lane.owed == 0 {
                lane.due = Some(self.began + Duration::from_secs_f64(number as f64 / rate));
                due.push(at as u32);
            }
            lane.owed += 1;
        }
        self.paced = self.paced.max(target);
    }

    /// Takes what is completed in a lane, and calls as many operations again.
    fn visit(&mut self, number: u32, counting: bool) {
        let lane = &mut self.lanes[number as usize];
        // Cleared before the batches are polled: a completion after this puts the lane on the list again.
        lane.notified.ready.store(false, Ordering::Release);
        let now = Instant::now();
        loop {
            let failed = lane.take_completed(now, counting, self.config.rate.is_none(), &mut self.counts);
            if failed {
                lane.leader = leader_of(&lane.handles).unwrap_or(lane.leader);
            }
            if lane.owed == 0 {
                return; // each queue's oldest batch has the waker
            }
            if let Err(error) = lane.call(&self.config) {
                self.counts.last_error = Some(error);
                self.counts.errors += u64::from(counting);
                lane.leader = leader_of(&lane.handles).unwrap_or(lane.leader);
                self.refused.push(number);
                return;
            }
        }
    }
}

/// The oldest batch, if it is completed. If not, the waker stays with it: batches complete in order, so no other needs it.
fn next_completed(calls: &mut VecDeque<Call>, waker: &Waker) -> Option<(Vec<Result<u64, RequestError>>, Instant)> {
    let oldest = calls.front_mut()?;
    match Pin::new(&mut oldest.results).poll(&mut Context::from_waker(waker)) {
        Poll::Pending => None,
        Poll::Ready(results) => {
            let called = oldest.called;
            calls.pop_front();
            Some((results, called))
        }
    }
}

impl Lane {
    /// Counts what is completed. What is not gets the waker. Returns whether operations failed.
    fn take_completed(&mut self, now: Instant, counting: bool, replace: bool, counts: &mut Counts) -> bool {
        let mut any_failed = false;
        let queues = [(&mut self.proposals, &mut counts.proposals), (&mut self.reads, &mut counts.reads)];
        for (calls, completed_sum) in queues {
            while let Some((results, called)) = next_completed(calls, &self.waker) {
                self.owed += if replace { results.len() } else { 0 };
                let mut failed = 0;
                for error in results.iter().filter_map(|r| r.as_ref().err()) {
                    failed += 1;
                    counts.last_error = Some(error.clone());
                }
                any_failed |= failed > 0;
                if counting {
                    let completed = results.len() as u64 - failed;
                    *completed_sum += completed;
                    counts.errors += failed;
                    counts.latencies.record(now.saturating_duration_since(called).as_nanos() as u64, completed);
                }
            }
        }
        any_failed
    }

    /// Calls all operations that are owed, in batches of at most `call_max`.
    fn call(&mut self, config: &ClientConfig) -> Result<(), RequestError> {
        while self.owed > 0 {
            let count = self.owed.min(config.call_max);
            let turns = |lane: &Self| (lane.turn..lane.turn + count).filter(|t| t % 100 < config.reads_percent).count();
            let reads = turns(self);
            // What a refusal leaves uncalled stays owed.
            self.call_reads(reads)?;
            self.owed -= reads;
            self.call_proposals(count - reads, config.payload)?;
            self.owed -= count - reads;
            self.turn = (self.turn + count) % 100;
        }
        Ok(())
    }

    fn call_reads(&mut self, count: usize) -> Result<(), RequestError> {
        if count == 0 {
            return Ok(());
        }
        let called = self.due.unwrap_or_else(Instant::now);
        let results = self.handles[self.leader].read_batch(std::iter::repeat_n((), count), TIMEOUT)?;
        self.reads.push_back(Call { results, called });
        Ok(())
    }

    fn call_proposals(&mut self, count: usize, payload: &'static [u8]) -> Result<(), RequestError> {
        if count == 0 {
            return Ok(());
        }
        let called = self.due.unwrap_or_else(Instant::now);
        let commands = std::iter::repeat_n(Load::Sent(payload), count);
        let results = self.handles[self.leader].propose_batch(commands, TIMEOUT)?;
        self.proposals.push_back(Call { results, called });
        Ok(())
    }
}
