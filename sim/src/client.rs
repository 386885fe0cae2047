//! Clients of the simulated groups: they leave requests in the queues as the public API does, and learn the outcomes.

mod in_session;

use crate::board::Board;
use crate::cabinet::Filed;
use crate::keeper::{Held, Kept};
use crate::machine::{Add, Ledger, Seen};
use crate::oracle::Oracle;
use crate::sessions::Sessions;
use in_session::InSession;
use longboat_engine::{Changed, GroupShared, SnapshotOptions, SnapshotOutcome, Transferred};
use longboat_raft::{GroupId, HostId, Index, ProposeOptions, ReplicaId, Time};
use longboat_rsm::{Concurrent, DynMachine, Machine, MachineKind, OnDisk, Pending, Reads, RequestError};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};

/// What a client waits for.
#[derive(Debug)]
enum Request {
    Write { serial: u64, floor: u64, pending: Pending<u64> },
    Read { floor: u64, pending: Pending<Seen> },
    Snapshot { pending: Pending<SnapshotOutcome> },
    Index { floor: u64, shared: Arc<GroupShared>, pending: Pending<Index> },
    Asked(Asked),
    Session(InSession),
}

/// What an operator waits for.
#[derive(Debug)]
pub enum Asked {
    /// A membership change.
    Change {
        /// What it adds, or makes something else.
        adds: Vec<ReplicaId>,
        /// What it removes.
        removes: Vec<ReplicaId>,
        /// Refused, nothing of it was made.
        one_step: bool,
        /// The outcome.
        pending: Pending<Changed>,
    },
    /// A leader transfer.
    Transfer {
        /// Who is to lead.
        to: ReplicaId,
        /// The outcome.
        pending: Pending<Transferred>,
    },
    /// That a preferred leader is known.
    Prefer {
        /// The outcome.
        pending: Pending<()>,
    },
    /// Something about a group's data.
    Kept(Kept),
    /// That a replica's data is gone.
    Bury {
        /// Which.
        replica: ReplicaId,
        /// The outcome.
        pending: Pending<()>,
    },
}

/// What an operator has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The data of a replica is gone.
    Buried {
        /// From here.
        host: HostId,
        /// Of this group.
        group: GroupId,
        /// Which.
        replica: ReplicaId,
    },
    /// A replica will not be added.
    Refused {
        /// To this group.
        group: GroupId,
        /// Which.
        replica: ReplicaId,
    },
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
    /// Indexes given, and read at.
    pub index_reads: u64,
    /// Membership changes in effect.
    pub changes: u64,
    /// Leaders that were asked for.
    pub transfers: u64,
    /// Replicas whose data was removed.
    pub buried: u64,
    /// Snapshots exported.
    pub exports: u64,
    /// Logs compacted on request.
    pub compactions: u64,
    /// Reads of what a pin holds.
    pub pinned_reads: u64,
    /// Sessions registered.
    pub sessions: u64,
    /// Attempts in sessions, or of commands that may be sent again, that were answered.
    pub attempts: u64,
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
    ended: Vec<Ended>,
    /// Exports that were reported.
    pub(crate) exports: Vec<(HostId, GroupId, Index, PathBuf)>,
    /// Log pins.
    pub(crate) held: Vec<Held>,
    /// The clients that work in sessions.
    pub(crate) sessions: Sessions,
    /// Counts so far.
    pub outcomes: Outcomes,
}

impl Clients {
    /// Clients that have asked for nothing yet.
    pub(crate) fn new(oracle: Arc<Oracle>, sessions: Sessions) -> Self {
        Self {
            oracle,
            waiting: BTreeMap::new(),
            next_request: 0,
            next_serial: 1,
            rung: Arc::default(),
            probes_from: u64::MAX,
            progressed: BTreeSet::new(),
            ended: Vec::new(),
            exports: Vec::new(),
            held: Vec::new(),
            sessions,
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
        self.write_with(host, shared, padding, ProposeOptions::default(), deadline)
    }

    /// As [`Clients::write`], with these options.
    pub fn write_with(
        &mut self,
        host: HostId,
        shared: &GroupShared,
        padding: usize,
        options: ProposeOptions,
        deadline: Time,
    ) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        let floor = self.oracle.write_begins(shared.group, serial, options.expected_term);
        match shared.enqueue::<Ledger>(std::iter::once(Add { serial, padding }), options, deadline) {
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
        let query = std::iter::once(());
        let asked = match shared.kind {
            MachineKind::OnDisk => shared.enqueue_reads::<OnDisk<Filed>>(query, deadline),
            MachineKind::Concurrent => shared.enqueue_reads::<Concurrent<Board>>(query, deadline),
            MachineKind::Exclusive => shared.enqueue_reads::<Ledger>(query, deadline),
        };
        if let Ok((completion, slots)) = asked {
            let pending = Pending::new(completion, slots.start);
            self.wait(host, shared.group, Request::Read { floor, pending });
        }
    }

    /// Asks for a snapshot.
    pub fn snapshot(&mut self, host: HostId, shared: &GroupShared, deadline: Time) {
        let Ok(pending) = shared.enqueue_snapshot(SnapshotOptions::default(), deadline) else { return };
        self.wait(host, shared.group, Request::Snapshot { pending });
    }

    /// Asks for an index, to read locally there.
    pub fn read_index(&mut self, host: HostId, shared: &Arc<GroupShared>, deadline: Time) {
        let floor = self.oracle.read_begins(shared.group);
        if let Ok(pending) = shared.enqueue_read_index(deadline) {
            self.wait(host, shared.group, Request::Index { floor, shared: Arc::clone(shared), pending });
        }
    }

    /// An operator asked for this.
    pub fn ask(&mut self, host: HostId, group: GroupId, asked: Asked) {
        self.wait(host, group, Request::Asked(asked));
    }

    /// Whether an operator waits for anything of this group.
    pub fn asks(&self, group: GroupId) -> bool {
        self.waiting.values().any(|w| w.group == group && matches!(w.request, Request::Asked(_)))
    }

    /// The exports that were reported since the last call.
    pub(crate) fn take_exports(&mut self) -> Vec<(HostId, GroupId, Index, PathBuf)> {
        std::mem::take(&mut self.exports)
    }

    pub(crate) fn violate(&self, what: String) {
        self.oracle.violate(what);
    }

    /// What operators have to know since the last call.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// A change ended without having been made, if the error says so.
    pub fn change_refused(&mut self, group: GroupId, adds: &[ReplicaId], error: &RequestError) {
        if error.may_have_applied() {
            return;
        }
        // A member that was to become something else is none that was to be added.
        for replica in adds.iter().copied().filter(|r| !self.oracle.ever_had(group, *r)) {
            self.oracle.addition_refused(group, replica, error);
            self.ended.push(Ended::Refused { group, replica });
        }
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
        self.held.retain(|held| held.host() != host);
        let (lost, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(_, w)| w.host == host);
        self.waiting = waiting;
        let lost: BTreeMap<u64, Waiting> = lost;
        for lost in lost.into_values() {
            if let Request::Session(request) = &lost.request {
                self.lost(lost.group, request);
            }
        }
    }

    fn look(&mut self, number: u64) {
        let Some(mut waiting) = self.waiting.remove(&number) else { return };
        let waker = Waker::from(Arc::new(Bell { rung: Arc::clone(&self.rung), request: number }));
        let mut cx = Context::from_waker(&waker);
        if let Request::Asked(asked) = &mut waiting.request {
            let open = self.look_asked(waiting.host, waiting.group, asked, &mut cx);
            if open {
                self.waiting.insert(number, waiting);
            }
            return;
        }
        if let Request::Session(asked) = &mut waiting.request {
            let open = self.look_in_session(waiting.group, asked, &mut cx);
            if open {
                self.waiting.insert(number, waiting);
            }
            return;
        }
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
            Request::Index { floor, shared, pending } => match Pin::new(pending).poll(&mut cx) {
                Poll::Pending => true,
                Poll::Ready(answer) => {
                    match answer {
                        Ok(index) => {
                            outcomes.index_reads += 1;
                            self.oracle.read_here(shared, index, *floor);
                        }
                        Err(_) => outcomes.errors += 1,
                    }
                    false
                }
            },
            Request::Asked(_) | Request::Session(_) => unreachable!("looked at above"),
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

    /// Looks at what an operator asked for. Returns whether its outcome is open.
    fn look_asked(&mut self, host: HostId, group: GroupId, asked: &mut Asked, cx: &mut Context<'_>) -> bool {
        match asked {
            Asked::Change { adds, removes, one_step, pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(changed)) => {
                    self.outcomes.changes += 1;
                    if changed.change_id != changed.membership.change_id {
                        self.oracle
                            .violate(format!("group {group}: another change id than the membership's: {changed:?}"));
                    }
                    self.oracle.change_done(group, &changed.membership, adds, removes);
                }
                Poll::Ready(Err(error)) => {
                    self.outcomes.errors += 1;
                    if *one_step {
                        let adds = std::mem::take(adds);
                        self.change_refused(group, &adds, &error);
                    }
                }
            },
            Asked::Transfer { to, pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(done)) => {
                    self.outcomes.transfers += 1;
                    if done.leader != *to {
                        self.oracle.violate(format!("group {group}: {to} was to lead, {done:?}"));
                    }
                    self.oracle.transferred(group, done.leader, done.term);
                }
                Poll::Ready(Err(_)) => self.outcomes.errors += 1,
            },
            Asked::Prefer { pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(done) => self.outcomes.errors += u64::from(done.is_err()),
            },
            Asked::Kept(kept) => return self.look_kept(host, group, kept, cx),
            Asked::Bury { replica, pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(())) => {
                    self.outcomes.buried += 1;
                    self.ended.push(Ended::Buried { host, group, replica: *replica });
                }
                Poll::Ready(Err(_)) => self.outcomes.errors += 1,
            },
        }
        false
    }
}

/// The length of the list of a replica, as it is now; nothing while its state machine is busy.
pub(crate) fn length_here(shared: &GroupShared) -> Option<u64> {
    shared.check_open().ok()?;
    let machine = shared.machine.try_lock()?;
    let mut pending = match shared.kind {
        MachineKind::OnDisk => ask::<OnDisk<Filed>>(shared, &**machine),
        MachineKind::Concurrent => ask::<Concurrent<Board>>(shared, &**machine),
        MachineKind::Exclusive => ask::<Ledger>(shared, &**machine),
    };
    match Pin::new(&mut pending).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(seen)) => Some(seen.count),
        _ => None,
    }
}

fn ask<S: Machine<Query = (), Answer = Seen>>(shared: &GroupShared, machine: &dyn DynMachine) -> Pending<Seen> {
    let mut reads = Reads::<S>::new();
    let pending = reads.add(());
    shared.lookup(Some(machine), Box::new(reads));
    pending
}

/// Through where a replica has applied.
pub(crate) fn applied_here(shared: &GroupShared) -> Index {
    Index(shared.published.applied.load(Ordering::Relaxed))
}
