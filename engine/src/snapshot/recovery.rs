//! Recovering a state machine, and what is done when the snapshot that it should begin from is damaged.
//!
//! The newest snapshot that is whole is used, if the log has all that comes after it: that is applied before anything else
//! is. With none the leader is asked for one, and until it has come nothing is asked of the state machine.
//!
//! Invariant: a state machine is used only when it stands where the replica says it does.

use super::{Place, SnapshotIo, SnapshotRequest, machine_failed};
use crate::apply::{MachineJob, panic_text};
use crate::events::ReplicaEvent;
use crate::late::Late;
use crate::shared::{Command, GroupShared};
use crate::step::StepWorker;
use longboat_io::{Job, JobState, Progress};
use longboat_logdb::LogReader;
use longboat_raft::{Index, Run, SnapshotMeta, plant, sometimes};
use longboat_rsm::MachineError;
use longboat_rsm::snapshot::{RecoverJob, RecoverTask, SnapshotError};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of log that are applied in one step.
const STEP_BYTES: usize = 1 << 20;

/// How a recovery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The state machine has the state of this index, from the snapshot of this one: an older one if the newest was damaged.
    Done {
        /// The snapshot that was used.
        used: Index,
    },
    /// No snapshot that could be used is left.
    Lost,
}

impl SnapshotIo {
    /// The pool replaces the state machine's state by a snapshot's. Damage leaves the replica without state; another
    /// failure stops it.
    pub fn recover(self: &Arc<Self>, shared: &Arc<GroupShared>, meta: SnapshotMeta) {
        let (group_shared, io) = (Arc::clone(shared), Arc::clone(self));
        let index = meta.pos.index;
        tracing::debug!(group = %shared.group, replica = %shared.replica, %index, "recovery begins");
        let on_done = move |result: Result<SnapshotMeta, SnapshotError>| {
            let shared = group_shared;
            match result {
                Ok(used) if used.pos.index < index && !plant::is("fallback-without-its-log") => {
                    return io.catch_up(shared, used.pos.index, index);
                }
                Ok(used) => recovered(&shared, index, Recovery::Done { used: used.pos.index }),
                Err(error) if error.is_unusable() => {
                    tracing::error!(group = %shared.group, replica = %shared.replica, %index, %error, "no snapshot can be used, the leader is asked for one");
                    recovered(&shared, index, Recovery::Lost);
                }
                // A replica that stops has its recovery stopped. Its state machine has not failed, and is not used any more.
                Err(SnapshotError::Stopped) if shared.is_closed() && !plant::is("stop-taken-for-a-failure") => {
                    tracing::debug!(group = %shared.group, replica = %shared.replica, %index, "recovery stopped");
                }
                Err(error) => machine_failed(&shared, format!("recovery at {index}: {error}")),
            }
            io.host.apply[shared.apply_worker].job_done(shared, MachineJob::Alone);
        };
        let job = RecoverJob::new(RecoverTask {
            machine: Arc::clone(&shared.machine),
            group: shared.group,
            replica: shared.replica,
            index,
            older: shared.take_fallbacks(),
            store: self.store.clone(),
            stop: shared.new_recovery(),
            on_done: Box::new(on_done),
        });
        self.spawn_watched(shared, Place::Nothing, job);
    }

    /// An older snapshot was used: what the log has after it, through where the newest one stood, is applied.
    fn catch_up(self: &Arc<Self>, shared: Arc<GroupShared>, used: Index, index: Index) {
        sometimes!("older-snapshot-used");
        tracing::warn!(group = %shared.group, replica = %shared.replica, %index, %used, "an older snapshot was used, the log brings its state up to date");
        let reader = Arc::clone(&self.reader);
        let next = used.next();
        let (io, progress) = (Arc::clone(self), Arc::default());
        let job = CatchUpJob { io, shared: Arc::clone(&shared), reader, used, next, index, progress };
        self.spawn_watched(&shared, Place::Nothing, job);
    }
}

/// The apply worker and the step worker learn how it ended, in this order.
fn recovered(shared: &Arc<GroupShared>, index: Index, how: Recovery) {
    if let Recovery::Done { used } = how {
        tracing::debug!(group = %shared.group, replica = %shared.replica, %index, %used, "state machine recovered");
    }
    sometimes!(how == Recovery::Lost, "state-lost-with-its-snapshots");
    let lost = how == Recovery::Lost && !plant::is("state-lost-not-seen");
    shared.machine_lost.store(lost, Ordering::SeqCst);
    if !lost {
        shared.published.applied.store(index.0, Ordering::Release);
    }
    shared.host.workers[shared.worker()].command(Command::Recovered(Arc::clone(shared), index, how));
}

/// Applies what the log has between two snapshots.
struct CatchUpJob {
    io: Arc<SnapshotIo>,
    shared: Arc<GroupShared>,
    reader: Arc<dyn LogReader>,
    used: Index,
    next: Index,
    index: Index,
    progress: Arc<Progress>,
}

/// Why the log can't bring a state up to date.
enum Stuck {
    /// Its entries can't be read.
    Log(String),
    /// The user's code failed.
    Machine(String),
}

impl CatchUpJob {
    fn some(&mut self) -> Result<(), Stuck> {
        let read = self.reader.entries(self.shared.group, self.next, self.index, STEP_BYTES);
        for run in read.map_err(|e| Stuck::Log(e.to_string()))? {
            self.apply(&run)?;
            self.next = run.last().next();
        }
        Ok(())
    }

    fn apply(&self, run: &Run) -> Result<(), Stuck> {
        let _inside = self.progress.inside();
        let mut machine = self.shared.machine.lock();
        let applied: Result<Result<(), MachineError>, _> =
            std::panic::catch_unwind(AssertUnwindSafe(|| machine.apply_run(run, None)));
        match applied {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Stuck::Machine(error.to_string())),
            Err(panic) => Err(Stuck::Machine(panic_text(&*panic))),
        }
    }

    fn end(&self, how: Recovery) -> JobState {
        recovered(&self.shared, self.index, how);
        self.done()
    }

    fn done(&self) -> JobState {
        self.io.host.apply[self.shared.apply_worker].job_done(Arc::clone(&self.shared), MachineJob::Alone);
        JobState::Done
    }
}

impl Job for CatchUpJob {
    fn step(&mut self, _budget: usize) -> JobState {
        if self.shared.is_closed() {
            return self.done();
        }
        match self.some() {
            Ok(()) if self.next <= self.index => JobState::Again,
            Ok(()) => self.end(Recovery::Done { used: self.used }),
            Err(Stuck::Log(reason)) => {
                let (group, replica, index) = (self.shared.group, self.shared.replica, self.next);
                tracing::error!(%group, %replica, %index, reason, "the log can't bring an older snapshot's state up to date");
                self.end(Recovery::Lost)
            }
            Err(Stuck::Machine(reason)) => {
                machine_failed(&self.shared, reason);
                self.done()
            }
        }
    }

    fn progress(&self) -> Option<&Arc<Progress>> {
        Some(&self.progress)
    }
}

impl StepWorker {
    /// The state machine stands at an installed or restored snapshot, or nowhere.
    pub(crate) fn recovery_ended(&mut self, slot: u32, index: Index, how: Recovery) {
        let (now, at) = (self.host.clock.now(), self.slot_ref(slot));
        let snapshots = Arc::clone(&self.snapshots);
        let replica = self.replica(slot);
        match how {
            Recovery::Lost => {
                replica.core.lose_machine(now);
                replica.forget_older(Index::ZERO);
                replica.shared.tell(|| ReplicaEvent::StateLost { index });
            }
            Recovery::Done { used } => {
                replica.core.applied(index);
                replica.recovered = replica.recovered.max(used);
                snapshots.remove_unneeded(replica);
                if used < index {
                    // The one that is recorded has no files: another takes its place, whether or not there is anything new.
                    replica.forget_older(used);
                    replica.record_is_hollow = true;
                    replica.last_request = used;
                    let request = SnapshotRequest::periodic(&replica.shared);
                    replica.shared.tell(|| ReplicaEvent::SnapshotDamaged { index, used });
                    self.late.push((at, Late::Request(request)));
                }
            }
        }
    }
}
