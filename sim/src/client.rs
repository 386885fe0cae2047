//! Clients of the simulated groups: they leave requests in the queues as the public API does, and learn the outcomes.

use crate::machine::{Add, Ledger, Seen};
use crate::oracle::Oracle;
use longboat_engine::{GroupShared, SnapshotOutcome};
use longboat_raft::{GroupId, HostId, ProposeOptions, Time};
use longboat_rsm::Pending;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

/// What a client waits for.
#[derive(Debug)]
enum Request {
    Write { serial: u64, floor: u64, pending: Pending<u64> },
    Read { floor: u64, pending: Pending<Seen> },
    Snapshot { pending: Pending<SnapshotOutcome> },
}

#[derive(Debug)]
struct Waiting {
    host: HostId,
    group: GroupId,
    request: Request,
}

/// Counts of what clients asked for and what they learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Requests made.
    pub requests: u64,
    /// Writes acknowledged.
    pub writes: u64,
    /// Linearizable reads answered.
    pub reads: u64,
    /// Snapshots saved on request.
    pub snapshots: u64,
    /// Requests that were refused or timed out.
    pub errors: u64,
}

#[derive(Debug)]
struct Bell {
    rung: Arc<Mutex<Vec<u64>>>,
    request: u64,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.lock().push(self.request);
    }
}

/// All clients of a simulation.
#[derive(Debug)]
pub struct Clients {
    oracle: Arc<Oracle>,
    waiting: BTreeMap<u64, Waiting>,
    next_request: u64,
    next_serial: u64,
    rung: Arc<Mutex<Vec<u64>>>,
    /// Writes from this serial number on show whether their group makes progress.
    probes_from: u64,
    progressed: BTreeSet<GroupId>,
    /// Counts so far.
    pub outcomes: Outcomes,
}

impl Clients {
    /// Clients that have asked for nothing yet.
    pub fn new(oracle: Arc<Oracle>) -> Self {
        Self {
            oracle,
            waiting: BTreeMap::new(),
            next_request: 0,
            next_serial: 1,
            rung: Arc::default(),
            probes_from: u64::MAX,
            progressed: BTreeSet::new(),
            outcomes: Outcomes::default(),
        }
    }

    /// Writes that begin from here on show whether their group makes progress.
    pub fn expect_progress(&mut self) {
        self.probes_from = self.next_serial;
        self.progressed.clear();
    }

    /// Whether a write of this group was acknowledged that began after progress was expected.
    pub fn has_progressed(&self, group: GroupId) -> bool {
        self.progressed.contains(&group)
    }

    /// Requests whose outcome is open.
    pub fn open(&self) -> usize {
        self.waiting.len()
    }

    /// The first few requests whose outcome is open.
    pub fn describe(&self) -> String {
        let some = self.waiting.values().take(3).map(|w| format!("host {} group {} {:?}", w.host, w.group, w.request));
        format!("{}, among them {}", self.waiting.len(), some.collect::<Vec<_>>().join(", "))
    }

    /// Proposes a write of its own; returns its serial number.
    pub fn write(&mut self, host: HostId, shared: &GroupShared, padding: usize, deadline: Time) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        let floor = self.oracle.write_begins(shared.group, serial);
        match shared.enqueue::<Ledger>(std::iter::once(Add { serial, padding }), ProposeOptions::default(), deadline) {
            Ok(mut parts) => {
                let (completion, slots) = parts.pop().expect("one command, one part");
                let pending = Pending::new(completion, slots.start);
                self.wait(host, shared.group, Request::Write { serial, floor, pending });
            }
            Err(error) => {
                self.outcomes.requests += 1;
                self.outcomes.errors += 1;
                self.oracle.write_refused(shared.group, serial, &error);
            }
        }
        serial
    }

    /// Reads linearizably.
    pub fn read(&mut self, host: HostId, shared: &GroupShared, deadline: Time) {
        let floor = self.oracle.read_begins(shared.group);
        if let Ok((completion, slots)) = shared.enqueue_reads::<Ledger>(std::iter::once(()), deadline) {
            let pending = Pending::new(completion, slots.start);
            self.wait(host, shared.group, Request::Read { floor, pending });
        }
    }

    /// Asks for a snapshot.
    pub fn snapshot(&mut self, host: HostId, shared: &GroupShared, deadline: Time) {
        let Ok(pending) = shared.enqueue_snapshot(deadline) else { return };
        self.wait(host, shared.group, Request::Snapshot { pending });
    }

    fn wait(&mut self, host: HostId, group: GroupId, request: Request) {
        let number = self.next_request;
        self.next_request += 1;
        self.outcomes.requests += 1;
        self.waiting.insert(number, Waiting { host, group, request });
        self.look(number);
    }

    /// Looks at the requests that were completed since the last call.
    pub fn collect(&mut self) {
        let rung = std::mem::take(&mut *self.rung.lock());
        for number in rung {
            self.look(number);
        }
    }

    /// The host has lost its memory: nobody will ever answer what was asked there.
    pub fn forget(&mut self, host: HostId) {
        self.waiting.retain(|_, w| w.host != host);
    }

    fn look(&mut self, number: u64) {
        let Some(mut waiting) = self.waiting.remove(&number) else { return };
        let waker = Waker::from(Arc::new(Bell { rung: Arc::clone(&self.rung), request: number }));
        let mut cx = Context::from_waker(&waker);
        let (group, outcomes) = (waiting.group, &mut self.outcomes);
        let open = match &mut waiting.request {
            Request::Write { serial, floor, pending } => match Pin::new(pending).poll(&mut cx) {
                Poll::Pending => true,
                Poll::Ready(Ok(position)) => {
                    outcomes.writes += 1;
                    if *serial >= self.probes_from {
                        self.progressed.insert(group);
                    }
                    self.oracle.write_done(group, *serial, position, *floor);
                    false
                }
                Poll::Ready(Err(error)) => {
                    outcomes.errors += 1;
                    if !error.may_have_applied() {
                        self.oracle.write_refused(group, *serial, &error);
                    }
                    false
                }
            },
            Request::Read { floor, pending } => match Pin::new(pending).poll(&mut cx) {
                Poll::Pending => true,
                Poll::Ready(answer) => {
                    match answer {
                        Ok(seen) => {
                            outcomes.reads += 1;
                            self.oracle.read_done(group, seen.count, *floor);
                        }
                        Err(_) => outcomes.errors += 1,
                    }
                    false
                }
            },
            Request::Snapshot { pending } => match Pin::new(pending).poll(&mut cx) {
                Poll::Pending => true,
                Poll::Ready(outcome) => {
                    match outcome {
                        Ok(_) => outcomes.snapshots += 1,
                        Err(_) => outcomes.errors += 1,
                    }
                    false
                }
            },
        };
        if open {
            self.waiting.insert(number, waiting);
        }
    }
}
