//! Apply workers: user state machines, in order, one call at a time.
//!
//! Invariants:
//! - What a group is given is done in the order in which it was given; while its state machine is recovered, or saved
//!   under its lock, the rest waits.
//! - A call that does not return keeps its thread, and its group waits for it; the worker's other groups go on, on a spare
//!   (`lane.rs` argues that, [`crate::stalls`] notices it).
//! - A save off a view goes on beside the applies, and so does a stream of one to a follower. There is one of each at a time. A
//!   recovery waits until both have ended, and breaks the stream off: what it shows is older than what comes.
//! - The storage of an on-disk state machine is let go of when all that was to be done with it is done.
//! - A state machine that returns an error or panics stops its own replica, and so does a broken assertion over what one
//!   replica was given to do; the worker goes on with the others.
//! - What is saved or sent whole is a state at the index that it is said to be of, and not a later one.
//! - `published.applied` moves only after the state machine has returned.

mod inbox;
mod lane;

use crate::events::ReplicaEvent;
use crate::send::SendTicket;
use crate::shared::{Command, GroupShared, HostShared, reason};
use crate::snapshot::{NotSaved, Recovery, SaveTask, SnapshotIo, content_of, machine_failed};
use crate::stalls::Stalled;
use crate::tracker::Waiter;
use crate::worker::{Work, Worker};
pub use inbox::ApplyInbox;
pub(crate) use lane::{Call, Who};
use lane::{Lane, Next};
use longboat_raft::{Index, Run, SnapshotMeta, Time, plant};
use longboat_rsm::snapshot::{Content, LiveSnapshot, Prepared, SavedSnapshot, SharedMachine, SnapshotHeader};
use longboat_rsm::{AnyReads, DynMachine, MachineError, MachineKind, RequestError, WitnessMachine};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One thing to do for a group.
#[derive(Debug)]
pub enum ApplyItem {
    /// Apply a committed run, and tell who waits for it.
    Run(Run, Option<Waiter>),
    /// Answer reads.
    Reads(Box<dyn AnyReads>),
    /// Save a snapshot at this point.
    Save(Box<SaveTask>),
    /// Send a follower the state as it is at this point.
    Stream(Box<SendTicket>),
    /// Replace the state by this snapshot's.
    Recover(Box<SnapshotMeta>),
    /// The replica is gone.
    Close,
}

/// Things to do for one group, in order.
#[derive(Debug)]
pub struct ApplyTask {
    /// The group.
    pub shared: Arc<GroupShared>,
    /// What to do.
    pub items: Vec<ApplyItem>,
}

/// What a job of the snapshot pool did with a group's state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineJob {
    /// It had the state machine for itself: a recovery, or a save under its lock.
    Alone,
    /// It saved a view of it.
    SavedView,
    /// It sent a view of it to a follower.
    Streamed,
}

impl ApplyInbox {
    /// The call that the worker is in, if it is in one.
    pub fn call(&self) -> Option<Stalled> {
        self.current().map(|call| Stalled { call })
    }
}

/// One apply worker: the runner of a lane, or a former one.
pub struct ApplyWorker {
    index: usize,
    host: Arc<HostShared>,
    snapshots: Arc<SnapshotIo>,
    /// Its number among the lane's runners.
    runner: u64,
    replaced: bool,
}

impl ApplyWorker {
    /// The apply worker with this index.
    pub fn new(index: usize, host: Arc<HostShared>, snapshots: Arc<SnapshotIo>) -> Self {
        Self { index, host, snapshots, runner: 0, replaced: false }
    }

    /// Whether another has taken its place: this one has nothing more to do, ever.
    pub fn is_replaced(&self) -> bool {
        self.replaced
    }

    /// Takes the place of the worker with this index while that is in this call. `None` when the call has returned.
    pub fn in_place_of(&self, index: usize, stalled: &Stalled) -> Option<Self> {
        let runner = self.host.apply[index].lane.replace(stalled.call)?;
        Some(Self { index, runner, ..self.another() })
    }

    /// Takes the place of the worker with this index, which is run by the thread of one that was just replaced.
    pub fn beside(&self, index: usize) -> Self {
        Self { index, runner: self.host.apply[index].lane.take_over(), ..self.another() }
    }

    /// As this one.
    pub(crate) fn another(&self) -> Self {
        Self { host: Arc::clone(&self.host), snapshots: Arc::clone(&self.snapshots), ..*self }
    }

    fn lane(&self) -> &Lane {
        &self.host.apply[self.index].lane
    }

    /// Does what there is to do for one group; a panic there concerns that group alone.
    fn run(&self, shared: &Arc<GroupShared>, items: Vec<ApplyItem>) {
        if plant::is("panic-leaves-its-group") {
            return self.run_items(shared, items);
        }
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| self.run_items(shared, items))) {
            machine_failed(shared, format!("what it was given to do contradicts itself: {}", panic_text(&*panic)));
        }
    }

    fn run_items(&self, shared: &Arc<GroupShared>, items: Vec<ApplyItem>) {
        let mut items = VecDeque::from(items);
        let machine = Arc::clone(&shared.machine);
        let mut guard = Some(machine.lock());
        while let Some(mut item) = items.pop_front() {
            let failed = shared.refusal().or_else(|| state_lost(shared, &item));
            if needs_no_views(shared, &item, failed.is_none()) {
                items.push_front(item);
                let Some(back) = self.lane().wait_for_views(shared, items) else { return };
                items = back;
                item = items.pop_front().expect("it was given back");
            }
            let starts_job = match item {
                ApplyItem::Run(run, waiter) => {
                    match failed {
                        None => self.apply(shared, &mut ***guard.as_mut().expect("held between jobs"), &run, waiter),
                        Some(error) => fail_waiter(waiter, run.count() as u32, &under_way(error)),
                    }
                    false
                }
                ApplyItem::Reads(reads) => {
                    match failed {
                        None => shared.lookup(Some(&***guard.as_ref().expect("held between jobs")), reads),
                        Some(error) => reads.fail(&error),
                    }
                    shared.published.reads_done.fetch_add(1, Ordering::Release);
                    false
                }
                ApplyItem::Save(task) => {
                    let alone = self.save(shared, &mut ***guard.as_mut().expect("held between jobs"), *task, failed);
                    if alone {
                        guard = None;
                    }
                    alone
                }
                ApplyItem::Stream(ticket) => {
                    self.stream(shared, &mut ***guard.as_mut().expect("held between jobs"), *ticket, failed);
                    false
                }
                // Out of date: what the state machine has is not taken from it.
                ApplyItem::Recover(meta) if self.is_behind(shared, &meta) => false,
                ApplyItem::Recover(meta) if shared.witness => {
                    // The place is all that there is to recover.
                    let index = meta.pos.index;
                    shared.published.applied.store(index.0, Ordering::Release);
                    let command = Command::Recovered(Arc::clone(shared), index, Recovery::Done { used: index });
                    self.host.workers[shared.worker()].command(command);
                    false
                }
                ApplyItem::Recover(meta) => {
                    guard = None;
                    failed.is_none() && {
                        self.snapshots.recover(shared, *meta);
                        true
                    }
                }
                ApplyItem::Close => {
                    guard = None;
                    self.close(shared);
                    false
                }
            };
            if starts_job {
                let Some(back) = self.lane().wait_for_job(shared, items) else { return };
                items = back;
            }
            if guard.is_none() {
                guard = Some(machine.lock());
            }
        }
    }

    fn is_behind(&self, shared: &GroupShared, meta: &SnapshotMeta) -> bool {
        let behind = meta.pos.index.0 <= shared.published.applied.load(Ordering::Acquire);
        behind && !plant::is("older-snapshot-recovered")
    }

    /// Nothing more is done with the state machine. One with storage is let go of, so that the storage can be opened again.
    fn close(&self, shared: &Arc<GroupShared>) {
        if shared.kind != MachineKind::OnDisk {
            return;
        }
        let machine = std::mem::replace(&mut *shared.machine.lock(), Box::new(WitnessMachine));
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(machine))) {
            tracing::error!(group = %shared.group, reason = panic_text(&*panic), "a state machine panicked as it was dropped");
        }
        shared.machine_gone.store(true, Ordering::SeqCst);
        self.host.workers[shared.worker()].command(Command::MachineGone(Arc::clone(shared)));
    }

    /// A follower is sent a view of the state machine, if that is ready and nobody is being sent one. The ticket tells how it
    /// ends, by being dropped if it does not begin.
    fn stream(
        &self,
        shared: &Arc<GroupShared>,
        machine: &mut dyn DynMachine,
        ticket: SendTicket,
        failed: Option<RequestError>,
    ) {
        if failed.is_some() || (self.lane().is_streaming(shared) && !plant::is("stream-while-streaming")) {
            return;
        }
        let applied = Index(shared.published.applied.load(Ordering::Acquire));
        assert_eq!(applied, ticket.meta.pos.index, "a stream stands right behind the applies that precede it");
        let stop = Arc::new(AtomicBool::new(false));
        let live = prepare(&shared.machine, machine, Content::Full, applied).and_then(|prepared| {
            let mut header = SnapshotHeader {
                group: shared.group,
                epoch: shared.epoch,
                meta: ticket.meta.clone(),
                kind: shared.kind,
                compression: shared.compression,
                ..SnapshotHeader::default()
            };
            prepared.fill_in(&mut header);
            let view = prepared.into_view().ok_or("the state machine has no views")?;
            LiveSnapshot::new(view, header, Arc::clone(&stop)).map_err(|e| e.to_string())
        });
        match live {
            Ok(live) => {
                self.lane().streams(shared, &stop);
                ticket.send_live(live, stop);
            }
            Err(reason) => {
                tracing::warn!(group = %shared.group, replica = %shared.replica, reason, "state machine is not ready to be sent");
            }
        }
    }

    /// Step 3 of the life of a snapshot. Returns whether the group waits until the save is over, because its machine can be
    /// saved only while nothing is applied.
    fn save(
        &self,
        shared: &Arc<GroupShared>,
        machine: &mut dyn DynMachine,
        task: SaveTask,
        failed: Option<RequestError>,
    ) -> bool {
        if let Some(error) = failed {
            self.snapshots.not_saved(shared, task, NotSaved::Failed(error));
            return false;
        }
        let applied = Index(shared.published.applied.load(Ordering::Acquire));
        assert_eq!(applied, task.meta.pos.index, "a save task stands right behind the applies that precede it");
        if shared.witness {
            // The place alone is recorded, so that the log before it can go.
            let saved = SavedSnapshot { meta: task.meta.clone(), bytes: 0 };
            let outcome = Box::new(task.ended(Ok(saved)));
            self.host.workers[shared.worker()].command(Command::SnapshotSaved(Arc::clone(shared), outcome));
            return false;
        }
        if self.lane().is_saving(shared) && !plant::is("save-while-saving") {
            self.snapshots.not_saved(shared, task, NotSaved::Overlaps);
            return false;
        }
        if self.snapshots.is_removing(shared.group, applied) && task.request.export_to().is_none() {
            let text = format!("one at {applied} that is of no use is still being removed, ask again");
            self.snapshots.not_saved(shared, task, NotSaved::Failed(RequestError::Snapshot(text)));
            return false;
        }
        if task.request.is_aborted() {
            self.snapshots.not_saved(shared, task, NotSaved::Failed(RequestError::SnapshotAborted));
            return false;
        }
        match prepare(&shared.machine, machine, content_of(shared, &task), applied) {
            Ok(prepared) => {
                let alone = prepared.holds_machine();
                if !alone {
                    self.lane().saves(shared);
                }
                self.snapshots.save(shared, task, prepared);
                alone
            }
            Err(text) => {
                self.snapshots.not_saved(shared, task, NotSaved::Failed(RequestError::Snapshot(text)));
                false
            }
        }
    }

    fn apply(&self, shared: &Arc<GroupShared>, machine: &mut dyn DynMachine, run: &Run, waiter: Option<Waiter>) {
        let applied = shared.published.applied.load(Ordering::Relaxed);
        if run.first().0 != applied + 1 {
            let text = format!("entry {} was given after {applied}", run.first());
            return self.machine_failed(shared, &text, waiter, run);
        }
        let results = waiter.as_ref().map(|w| (&*w.results, w.first_slot));
        let applied = std::panic::catch_unwind(AssertUnwindSafe(|| machine.apply_run(run, results)));
        match applied {
            Ok(Ok(())) => {
                shared.published.applied.store(run.last().0, Ordering::Release);
                if run.last().0 >= shared.snapshot_due.load(Ordering::Relaxed) {
                    shared.snapshot_due.store(run.last().0 + shared.snapshot_entries, Ordering::Relaxed);
                    shared.ready(reason::SNAPSHOT_DUE);
                }
            }
            Ok(Err(error)) => self.machine_failed(shared, &error.to_string(), waiter, run),
            Err(panic) => self.machine_failed(shared, &panic_text(&*panic), waiter, run),
        }
    }

    fn machine_failed(&self, shared: &Arc<GroupShared>, text: &str, waiter: Option<Waiter>, run: &Run) {
        tracing::error!(group = %shared.group, replica = %shared.replica, reason = text, "state machine failed, its replica stops");
        self.host.counters.machine_failures.fetch_add(1, Ordering::Relaxed);
        let error = RequestError::MachineFailed { replica: shared.replica, reason: text.to_owned() };
        shared.close(error.clone());
        shared.tell(|| ReplicaEvent::MachineFailed { reason: text.to_owned() });
        fail_waiter(waiter, run.count() as u32, &error);
        shared.ready(reason::MACHINE_FAILED);
    }
}

/// Whether this is done only when no view of the state machine is left: it would be shown what it is not.
fn needs_no_views(shared: &GroupShared, item: &ApplyItem, sound: bool) -> bool {
    match item {
        ApplyItem::Recover(_) => sound,
        ApplyItem::Close => shared.kind == MachineKind::OnDisk,
        _ => false,
    }
}

/// Why nothing but a recovery may be done with the state machine, if it stands nowhere.
fn state_lost(shared: &GroupShared, item: &ApplyItem) -> Option<RequestError> {
    let recovers = matches!(item, ApplyItem::Recover(_) | ApplyItem::Close);
    (shared.machine_lost.load(Ordering::SeqCst) && !recovers).then_some(RequestError::StateLost)
}

/// What was committed but not applied here may be applied elsewhere: nothing else may be said of it.
fn under_way(error: RequestError) -> RequestError {
    if error.may_have_applied() { error } else { RequestError::OutcomeUnknown }
}

fn fail_waiter(waiter: Option<Waiter>, count: u32, error: &RequestError) {
    if let Some(waiter) = waiter {
        waiter.results.fail(waiter.first_slot, count, error);
    }
}

/// The user's code may panic here: that fails the save and stops nothing.
///
/// Storage may be ahead of `applied`: right after a start, until what it has was handed out again, and for longer when the
/// log lost what it has. Its state is then one of a later index: taken for one of `applied`, it would be given the entries
/// between a second time, or, after an import, be taken to have entries that another history has in their place.
fn prepare(
    shared: &SharedMachine,
    machine: &mut dyn DynMachine,
    content: Content,
    applied: Index,
) -> Result<Prepared, String> {
    let prepare = || {
        let ahead = machine.storage().map(|s| s.applied).filter(|&at| at > applied && content == Content::Full);
        match ahead.filter(|_| !plant::is("save-behind-its-storage")) {
            Some(at) => Err(MachineError::user(format!("its storage is ahead at {at}, it can be saved from there on"))),
            None => Prepared::new(shared, machine, content),
        }
    };
    match std::panic::catch_unwind(AssertUnwindSafe(prepare)) {
        Ok(prepared) => prepared.map_err(|e| e.to_string()),
        Err(panic) => Err(panic_text(&*panic)),
    }
}

/// A lookup that panics fails its reads and stops nothing: it changed no replicated state.
pub(crate) fn guarded(reads: Box<dyn AnyReads>, lookup: impl FnOnce(Box<dyn AnyReads>)) {
    let (results, count) = (reads.results(), reads.len() as u32);
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| lookup(reads))) {
        results.fail(0, count, &RequestError::LookupFailed(panic_text(&*panic)));
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
}

impl ApplyWorker {
    /// This worker was replaced while it did something for a group. It goes on with that group, whose state machine may well
    /// hang again, until there is nothing more; then the group is its successor's.
    fn finish_group(&self, shared: &Arc<GroupShared>) {
        while let Some(items) = self.lane().give_back(self.runner, shared) {
            self.run(shared, items);
        }
        self.host.stalls.returned(&self.host, Who::of(shared));
    }
}

impl Worker for ApplyWorker {
    fn run_round(&mut self, _now: Time) -> Work {
        let inbox = &self.host.apply[self.index];
        let Some(any) = inbox.refill(self.runner) else {
            self.replaced = true;
            return Work::idle();
        };
        // Held until the lane was told that it is done.
        let mut before: Option<Arc<GroupShared>> = None;
        loop {
            match inbox.next(self.runner) {
                Next::Task(task) => {
                    self.run(&task.shared, task.items);
                    before = Some(task.shared);
                }
                Next::Nothing => return Work { did: any, again: false, next: None },
                Next::Replaced => {
                    self.replaced = true;
                    if let Some(shared) = before {
                        self.finish_group(&shared);
                    }
                    return Work::idle();
                }
            }
        }
    }
}

impl std::fmt::Debug for ApplyWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplyWorker").field("index", &self.index).finish_non_exhaustive()
    }
}
