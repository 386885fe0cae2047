//! State machines that hang: who is in a call that lasts too long, and when that is noticed.
//!
//! What hangs in the snapshot pool is in `snapshot/calls.rs`. A watch looks at the apply workers' lanes now and then. A call that it finds for the length of `apply_stall` is *stalled*: its
//! worker is given a spare, if the host has one left, and the group keeps the thread (`apply/lane.rs`). Without a spare left the
//! worker's other groups wait, too, until a call somewhere returns.
//!
//! Must not know: threads. Whoever drives the workers does what the watch says.

use crate::apply::{Call, Who};
use crate::config::APPLY_SPARES_MAX;
use crate::events::{HostEvent, ReplicaEvent};
use crate::shared::HostShared;
use longboat_raft::{GroupId, ReplicaId, Time};
use parking_lot::Mutex;
use std::sync::Arc;

/// A call of a state machine that lasts too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    pub(crate) call: Call,
}

impl Stalled {
    /// Whose state machine it is.
    pub fn of(&self) -> (GroupId, ReplicaId) {
        (self.call.who.group, self.call.who.replica)
    }
}

/// A state machine that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StalledMachine {
    /// Its group.
    pub group: GroupId,
    /// Its replica.
    pub replica: ReplicaId,
    /// Since when it was seen in the same call.
    pub since: Time,
    /// Its worker's other groups go on, on a spare thread. Else all spares are taken, and they wait.
    pub others_go_on: bool,
    /// It hangs in a save, a recovery, or while it is sent: others that save or recover go on or wait, and nobody else is concerned.
    pub in_snapshot: bool,
}

/// The state machines of a host that hang, those that began first first. A replica that was stopped while its state machine hung,
/// and started again, is another one: each has its own place here, and its own spare.
#[derive(Debug, Default)]
pub struct Stalls(Mutex<Vec<(Who, StalledMachine)>>);

impl Stalls {
    /// Those that hang now.
    pub fn list(&self) -> Vec<StalledMachine> {
        self.0.lock().iter().map(|s| s.1).collect()
    }

    /// A spare, if one is left, for the other groups of this one's worker; the event that tells of it.
    fn takes_spare(&self, host: &HostShared, stalled: &Stalled, since: Time) -> bool {
        let ((group, replica), who) = (stalled.of(), stalled.call.who);
        let mut all = self.0.lock();
        let others_go_on = all.iter().filter(|s| s.1.others_go_on).count() < APPLY_SPARES_MAX;
        let known = all.iter_mut().find(|s| s.0 == who).map(|s| &mut s.1);
        if known.as_ref().is_some_and(|known| known.others_go_on == others_go_on) {
            return others_go_on;
        }
        match known {
            Some(known) => known.others_go_on = others_go_on,
            None => all.push((who, StalledMachine { group, replica, since, others_go_on, in_snapshot: false })),
        }
        drop(all);
        tracing::warn!(%group, %replica, others_go_on, "a call of the state machine lasts too long");
        host.events.tell(HostEvent::Replica { group, replica, what: ReplicaEvent::MachineStalled { others_go_on } });
        others_go_on
    }

    /// The call has returned, and nothing more is to be done for the group at once.
    pub(crate) fn returned(&self, host: &HostShared, who: Who) {
        let Who { group, replica, .. } = who;
        let before = {
            let mut all = self.0.lock();
            let before = all.len();
            all.retain(|s| s.0 != who);
            before > all.len()
        };
        if before {
            tracing::info!(%group, %replica, "the state machine goes on");
            host.events.tell(HostEvent::Replica { group, replica, what: ReplicaEvent::MachineReturned });
        }
    }
}

impl Stalls {
    /// The call returned before its worker could be replaced, or the system had no thread to give.
    pub(crate) fn not_replaced(&self, host: &HostShared, stalled: &Stalled) {
        self.returned(host, stalled.call.who);
    }

    /// Whether the call's worker waits for it, for lack of a spare.
    fn is_waited_for(&self, who: Who) -> bool {
        self.0.lock().iter().any(|s| s.0 == who && !s.1.others_go_on)
    }
}

/// Looks for calls that last too long.
#[derive(Debug)]
pub struct StallWatch {
    host: Arc<HostShared>,
    /// By apply worker, the call that it was in, and when it was first seen there.
    seen: Vec<Option<(Stalled, Time)>>,
}

impl StallWatch {
    /// A watch over all apply workers of the host.
    pub fn new(host: &Arc<HostShared>) -> Self {
        Self { host: Arc::clone(host), seen: vec![None; host.apply.len()] }
    }

    /// The apply workers to replace now: whose calls have been seen for the length of `apply_stall`, as far as there are spares.
    pub fn look(&mut self, now: Time) -> Vec<(usize, Stalled)> {
        let host = Arc::clone(&self.host);
        let mut stalled = Vec::new();
        for (at, (inbox, seen)) in host.apply.iter().zip(&mut self.seen).enumerate() {
            let call = inbox.call();
            if let Some((before, _)) = seen.filter(|&(before, _)| call != Some(before)) {
                // Of one that was replaced its own worker says so.
                if host.stalls.is_waited_for(before.call.who) {
                    host.stalls.returned(&host, before.call.who);
                }
                *seen = None;
            }
            let Some(call) = call else { continue };
            let (_, since) = *seen.get_or_insert((call, now));
            if now.nanos_since(since) >= host.config.apply_stall_nanos && host.stalls.takes_spare(&host, &call, since) {
                stalled.push((at, call));
            }
        }
        stalled
    }
}
