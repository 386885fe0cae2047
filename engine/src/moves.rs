//! Replicas move into a worker and out of it: started, stopped in order, quarantined, or given up with the host's store.
//!
//! Invariant: a replica that has moved out resolved every request that it had; what it accepted before a stop in order is sealed.

use crate::apply::ApplyTask;
use crate::events::ReplicaEvent;
use crate::replica::Replica;
use crate::shared::{Command, SlotRef};
use crate::snapshot::AfterDurable;
use crate::space::Room;
use crate::step::{Slot, StepWorker, next_generation};
use longboat_raft::{Time, plant, sometimes};
use longboat_rsm::RequestError;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Further visits of a replica that stops. Requests go on by one entry in each, and there are few; nothing new is taken meanwhile.
const STOP_VISITS_MAX: usize = 64;

impl StepWorker {
    /// The replica stops in order: what it has accepted is sealed first, and once that is durable it may be started again.
    pub(crate) fn stop(&mut self, now: Time, slot: u32, queued: &RequestError, under_way: &RequestError) {
        // What was not proposed yet must not be proposed by the visit: nothing may come into the log after it.
        self.replica(slot).fail_queued(queued);
        self.visit(now, slot);
        // A change of members whose turn has come with this visit is appended behind what the visit sealed. What the replica is
        // stopped as is what batches have: else it could not be started again, for want of entries that nobody ever wrote.
        for _ in 0..STOP_VISITS_MAX {
            if !self.replica(slot).core.has_unsealed() || plant::is("stopped-with-more-than-was-sealed") {
                break;
            }
            self.visit(now, slot);
        }
        let at = self.slot_ref(slot);
        let replica = self.replica(slot);
        let state = Box::new(replica.stored_state());
        // The commit index goes along, so that the stopped group keeps no segment from being settled.
        let update = replica.empty_update();
        self.push_update(update);
        self.remove(slot, queued, under_way);
        self.open.after.push((at, AfterDurable::Stopped(state)));
    }

    /// The replica moves in.
    pub(crate) fn start(&mut self, now: Time, mut replica: Box<Replica>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, active: false, replica: None });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.generation = next_generation(entry.generation);
        let at = SlotRef { slot, generation: entry.generation };
        let shared = Arc::clone(&replica.shared);
        if let Some(meta) = replica.seldom.get_mut().and_then(|s| s.recover_first.take()) {
            let items = vec![crate::apply::ApplyItem::Recover(meta)];
            self.apply[shared.apply_worker].push(ApplyTask { shared: Arc::clone(&shared), items });
        }
        replica.publish();
        let timeout = replica.core.shared_config().election_timeout_nanos;
        self.host.peers.replica_started(self.host.config.host, &shared.membership.lock(), timeout);
        entry.replica = Some(replica);
        self.by_group.insert(shared.group, slot);
        shared.moved_in(at);
        tracing::debug!(group = %shared.group, replica = %shared.replica, "replica started");
        shared.tell(|| ReplicaEvent::Started);
        let full = self.room != Room::Enough;
        self.replica(slot).core.set_full(now, full);
        self.replica(slot).advance(now);
        self.activate(slot);
    }

    /// The replica moves out. What was queued was not applied; what was under way may have been.
    pub(crate) fn remove(&mut self, slot: u32, queued: &RequestError, under_way: &RequestError) {
        let entry = &mut self.slots[slot as usize];
        let Some(mut replica) = entry.replica.take() else { return };
        entry.generation = next_generation(entry.generation);
        self.free.push(slot);
        self.by_group.remove(&replica.config.group);
        self.uncount_memory(replica.held_bytes);
        if let Some(silence) = replica.silence.take() {
            self.waking.index.remove(&self.host.peers, slot, &silence);
        }
        let timeout = replica.core.shared_config().election_timeout_nanos;
        self.host.peers.replica_stopped(self.host.config.host, &replica.shared.membership.lock(), timeout);
        if !self.host.has_failed.load(Ordering::SeqCst) {
            self.waking.stopped(&replica);
        }
        replica.shared.close(queued.clone());
        replica.fail_all(queued, under_way);
        let shared = Arc::clone(&replica.shared);
        self.apply[shared.apply_worker]
            .push(ApplyTask { shared: Arc::clone(&shared), items: vec![crate::apply::ApplyItem::Close] });
        tracing::debug!(group = %shared.group, replica = %shared.replica, "replica stopped");
    }

    /// The replica stops for as long as the host runs: what it was told, or what it did, contradicts itself.
    pub(crate) fn quarantine(&mut self, slot: u32, why: &str) {
        let replica = self.replica(slot);
        let (group, id) = (replica.config.group, replica.config.replica);
        let members = (replica.shared.epoch, Arc::clone(&replica.shared.membership.lock()));
        tracing::error!(%group, replica = %id, why, "replica quarantined");
        replica.shared.tell(|| ReplicaEvent::Quarantined { reason: why.to_owned() });
        self.host.counters.violations.fetch_add(1, Ordering::Relaxed);
        // Before it leaves the running ones: whoever lists all groups finds it in one of the two.
        self.host.quarantined.lock().insert(group, members);
        self.host.groups.write().remove(&group);
        self.remove(slot, &RequestError::Stopped, &RequestError::OutcomeUnknown);
        // Nothing else will unload it: whoever waits for that to remove its data is answered now.
        self.unloaded(group);
    }

    /// The log store failed: every request ends, nothing is sent any more.
    pub(crate) fn fail(&mut self) {
        sometimes!("store-failed-under-a-host");
        self.failed = true;
        let reason = self.host.failed.lock().clone().unwrap_or_default();
        let error = RequestError::HostFailed(reason);
        for slot in 0..self.slots.len() as u32 {
            self.remove(slot, &error, &error);
        }
        self.late.clear();
        self.closing.clear();
        self.removals.clear();
        for sealed in self.sealed.drain(..) {
            for (_, after) in sealed.after {
                after.abandon();
            }
        }
    }

    /// After a failure: a replica that is still on its way in is turned away. What other commands hold resolves by being dropped.
    pub(crate) fn refuse_commands(&mut self) {
        let error = RequestError::HostFailed(self.host.failed.lock().clone().unwrap_or_default());
        for command in self.inbox().take_commands() {
            if let Command::Start(mut replica) = command {
                replica.shared.close(error.clone());
                replica.fail_all(&error, &error);
            }
        }
    }
}
