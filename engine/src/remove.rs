//! The end of a replica: it is told that it was removed and stops, and its data goes when somebody asks for that.
//!
//! Invariants: a tombstone is made only of a group that is unloaded, and the group can't be started under that id from the
//! moment at which the tombstone is on its way, nor under another one before its files are gone, so that the tombstone is
//! written before whatever comes after it; files go when the tombstone is durable, so that nothing that a crash leaves names
//! files that are gone.

use crate::events::ReplicaEvent;
use crate::request::Reply;
use crate::shared::HostShared;
use crate::snapshot::AfterDurable;
use crate::step::StepWorker;
use longboat_io::{Job, JobState};
use longboat_logdb::{GroupState, Record, Update};
use longboat_raft::{GroupEpoch, GroupId, HostId, ReplicaId, Time, plant};
use longboat_rsm::RequestError;
use longboat_rsm::snapshot::SnapshotStore;
use longboat_transport::wire::GoneReplica;
use std::sync::Arc;

/// Somebody waits until a group's data is gone.
#[derive(Debug)]
pub struct Removal {
    pub(crate) group: GroupId,
    pub(crate) reply: Reply<()>,
}

impl StepWorker {
    /// A replica that was told that it is gone for good stops; what waits there is told so.
    pub(crate) fn stop_if_removed(&mut self, now: Time, slot: u32) {
        let replica = self.replica(slot);
        let Some(change) = replica.seldom.removed else { return };
        let shared = Arc::clone(&replica.shared);
        tracing::info!(group = %shared.group, replica = %shared.replica, %change, "replica was removed from its group and stops");
        shared.stopping.store(true, std::sync::atomic::Ordering::SeqCst);
        self.stop(now, slot, &RequestError::Removed, &RequestError::Removed);
        shared.tell(|| ReplicaEvent::Removed { change });
    }

    /// A replica of a history that an import has ended spoke: it is told. One of a later epoch is not: it knows more than
    /// this one, and will say so.
    pub(crate) fn answer_former_epoch(&mut self, slot: u32, epoch: GroupEpoch, host: HostId, replica: ReplicaId) {
        let as_of = self.host.starts();
        let own = self.replica(slot);
        if epoch < own.epoch {
            let superseded = GoneReplica { group: own.config.group, epoch: own.epoch, replica, as_of };
            self.waking.tell(host, superseded);
        }
    }

    /// Another host says that this replica is gone, in a later epoch than its own: its group's history was ended by an import.
    /// Believed of hosts that its group had members on.
    pub(crate) fn hear_superseded(&mut self, now: Time, slot: u32, from: HostId, by: GroupEpoch) {
        let replica = self.replica(slot);
        let known = replica.core.membership().hosts.values().any(|m| m.host == from);
        let known = known || plant::is("superseded-believed-of-anybody");
        if !known || replica.shared.stopping.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(&replica.shared);
        tracing::info!(group = %shared.group, replica = %shared.replica, %by, "the group was imported from a snapshot, this replica of its former history stops");
        self.stop(now, slot, &RequestError::Superseded, &RequestError::Superseded);
        shared.tell(|| ReplicaEvent::Superseded { by });
    }

    /// A group's data is to go: now if it is unloaded, else once it is.
    pub(crate) fn remove_data(&mut self, group: GroupId, reply: Reply<()>) {
        let removal = Removal { group, reply };
        // Still loaded, if only because its last words are not durable yet.
        if self.host.group(group).is_some() {
            self.removals.push(removal);
        } else {
            self.bury(removal);
        }
    }

    /// The group is unloaded: who waits for that has its turn.
    pub(crate) fn unloaded(&mut self, group: GroupId) {
        for removal in self.removals.extract_if(.., |r| r.group == group).collect::<Vec<_>>() {
            self.bury(removal);
        }
    }

    fn bury(&mut self, mut removal: Removal) {
        let group = removal.group;
        let replica = {
            let mut stopped = self.host.stopped.lock();
            // Two were asked for while it was still loaded: the second waits for the first.
            if let Some(waiting) = self.host.burying.lock().get_mut(&group) {
                return waiting.push(removal.reply);
            }
            let Some(state) = stopped.get_mut(&group).filter(|s| !s.removed) else {
                // It was started again meanwhile, or somebody else has removed it.
                let running = self.host.groups.read().contains_key(&group);
                let error = if running { RequestError::StillRunning(group) } else { RequestError::NotHere(group) };
                return removal.reply.resolve(Err(error));
            };
            let mut bootstrap = std::mem::take(&mut state.bootstrap);
            let replica = bootstrap.replica;
            bootstrap.gone.insert(replica);
            bootstrap.membership = Default::default();
            // The tombstone leaves with this round's batch, and a start's bootstrap record leaves at once: it would be overtaken.
            self.host.burying.lock().insert(group, Vec::new());
            // From here on nobody starts it, and nobody writes its words again.
            *state = GroupState { group, bootstrap, removed: true, ..GroupState::default() };
            replica
        };
        let record = Some(Box::new(Record::Removed { replica }));
        self.push_update(Update { group, record, ..Update::default() });
        let nowhere = crate::shared::SlotRef { slot: u32::MAX, generation: 0 };
        self.open.after.push((nowhere, AfterDurable::Buried(removal, replica)));
    }
}

/// Deletes the files of a replica whose tombstone is durable.
pub(crate) struct DeleteJob {
    pub(crate) host: Arc<HostShared>,
    pub(crate) store: SnapshotStore,
    pub(crate) removal: Removal,
    pub(crate) replica: ReplicaId,
}

impl Job for DeleteJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let (group, replica) = (self.removal.group, self.replica);
        if let Err(error) = self.store.remove_replica(group, replica) {
            // Left for the next start, which removes what no record names.
            tracing::warn!(%group, %replica, %error, "files of a removed replica were not deleted");
        }
        // Before the answer: whoever has it may start the group under another id.
        let waiting = self.host.burying.lock().remove(&group).unwrap_or_default();
        self.removal.reply.resolve(Ok(()));
        waiting.into_iter().for_each(|mut reply| reply.resolve(Ok(())));
        JobState::Done
    }
}
