//! State machines that hang in the snapshot pool: in a save, a recovery, or while a view of them is sent.
//!
//! Each job there that calls a state machine is registered for as long as it lives. A watch looks at them now and then: one that
//! shows the same place in the user's code for the length of `snapshot_stall` is *stalled*. Its thread is the state machine's; the
//! pool goes on with a spare one, if there is one left, and what the job held of the host's places for saves and for transfers is
//! given back. What is slow and moves, because it writes, reads, or returns between its parts, is not meant.
//!
//! With all spares taken those that hang hold the pool's own threads, and with all of these no save could begin: users' requests
//! are refused then, and the host's own wait, rather than leave a group behind a save that nobody does.
//!
//! Must not know: threads. The pool does what it is told.

use super::SnapshotIo;
use super::admission::Turn;
use crate::apply::Who;
use crate::events::{HostEvent, ReplicaEvent};
use crate::send::SendPlace;
use crate::shared::{GroupShared, HostShared};
use crate::stalls::StalledMachine;
use longboat_io::{Job, JobState, Progress, Replaced};
use longboat_raft::{Time, plant};
use parking_lot::Mutex;
use std::sync::Arc;

/// What a job holds that others could use.
pub(crate) enum Place {
    /// Nothing.
    Nothing,
    /// It counts among the host's saves.
    Save(Arc<Turn>),
    /// It counts among what the host sends.
    Send(Arc<SendPlace>),
}

/// Where a call was seen, and what was told of it.
#[derive(Default)]
struct Seen {
    /// The place in the user's code, and since when.
    at: Option<(u64, Time)>,
    /// It was told that it hangs; whether the others go on.
    told: Option<bool>,
    /// The job is gone: nothing more is told of it.
    ended: bool,
}

/// A job that calls a state machine.
struct PoolCall {
    who: Who,
    progress: Arc<Progress>,
    place: Place,
    seen: Mutex<Seen>,
}

/// The jobs of a host's snapshot pool that call state machines.
#[derive(Default)]
pub struct PoolCalls(Mutex<Vec<Arc<PoolCall>>>);

impl PoolCall {
    fn tell(&self, host: &HostShared, what: ReplicaEvent) {
        let (group, replica) = (self.who.group, self.who.replica);
        host.events.tell(HostEvent::Replica { group, replica, what });
    }

    /// It moves on, or has ended.
    fn returned(&self, host: &HostShared, ended: bool) {
        // What is told of it is told with the lock held, and so in order.
        let mut seen = self.seen.lock();
        seen.ended = ended;
        if seen.told.take().is_some() {
            tracing::info!(group = %self.who.group, replica = %self.who.replica, "the state machine goes on with its snapshot");
            self.tell(host, ReplicaEvent::SnapshotReturned);
        }
    }

    /// Since when it has been in one place, if it is in the user's code.
    fn since(&self, now: Time) -> Option<Time> {
        let mut seen = self.seen.lock();
        let Some(place) = self.progress.place() else {
            seen.at = None;
            return None;
        };
        match seen.at {
            Some((before, since)) if before == place || plant::is("slow-save-taken-for-a-hanging-one") => Some(since),
            _ => {
                seen.at = Some((place, now));
                None
            }
        }
    }

    /// It has been in one place for too long.
    fn stalled(&self, io: &SnapshotIo) {
        let others_go_on = match io.spawner.replace(&self.progress) {
            Replaced::Ended => return,
            Replaced::Yes => true,
            Replaced::NoSpare => false,
        };
        let mut seen = self.seen.lock();
        if seen.ended || seen.told.replace(others_go_on) == Some(others_go_on) {
            return;
        }
        tracing::warn!(group = %self.who.group, replica = %self.who.replica, others_go_on, "the state machine hangs in its snapshot");
        self.tell(&io.host, ReplicaEvent::SnapshotStalled { others_go_on });
        drop(seen);
        match &self.place {
            _ if plant::is("hanging-save-keeps-its-place") => {}
            Place::Nothing => {}
            Place::Save(turn) => turn.end(),
            Place::Send(place) => place.leave(),
        }
    }
}

impl PoolCalls {
    /// Those that hang now.
    pub fn list(&self) -> Vec<StalledMachine> {
        let stalled = |call: &Arc<PoolCall>| {
            let seen = call.seen.lock();
            let (Who { group, replica, .. }, since, others_go_on) = (call.who, seen.at?.1, seen.told?);
            Some(StalledMachine { group, replica, since, others_go_on, in_snapshot: true })
        };
        self.0.lock().iter().filter_map(stalled).collect()
    }
}

impl SnapshotIo {
    /// Looks for state machines that hang in the pool.
    pub fn look_for_stalls(&self, now: Time) {
        // Without the lock on them: what is told of one may end another.
        let calls = self.host.pool_calls.0.lock().clone();
        for call in calls {
            match call.since(now) {
                None => {
                    let told = call.seen.lock().told.is_some();
                    if told {
                        call.returned(&self.host, false);
                    }
                }
                Some(since) if now.nanos_since(since) >= self.host.config.snapshot_stall_nanos => call.stalled(self),
                Some(_) => {}
            }
        }
        if !self.spawner.is_stuck() {
            self.admission.go_on();
        }
    }

    /// The pool runs this job, whose calls of the replica's state machine are watched.
    pub(crate) fn spawn_watched(self: &Arc<Self>, shared: &Arc<GroupShared>, place: Place, job: impl Job) {
        let progress = Arc::clone(job.progress().expect("it calls a state machine"));
        let call = Arc::new(PoolCall { who: Who::of(shared), progress, place, seen: Mutex::default() });
        self.host.pool_calls.0.lock().push(Arc::clone(&call));
        let registered = Registered { call, shared: Arc::clone(shared) };
        self.spawner.spawn(Box::new(Watched { job, _registered: registered }));
    }
}

/// A job that is registered.
struct Watched<J> {
    job: J,
    /// Last, so that who hears that a state machine goes on finds the job's end told.
    _registered: Registered,
}

impl<J: Job> Job for Watched<J> {
    fn step(&mut self, budget: usize) -> JobState {
        self.job.step(budget)
    }

    fn progress(&self) -> Option<&Arc<Progress>> {
        self.job.progress()
    }
}

struct Registered {
    call: Arc<PoolCall>,
    shared: Arc<GroupShared>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let host = &self.shared.host;
        host.pool_calls.0.lock().retain(|call| !Arc::ptr_eq(call, &self.call));
        self.call.returned(host, true);
    }
}

impl std::fmt::Debug for PoolCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolCalls").field("stalled", &self.list()).finish_non_exhaustive()
    }
}
