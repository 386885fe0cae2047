//! What the store holds of replicas that are not running, for whoever lists or restarts them.

use crate::events::{HostEvent, ReplicaEvent};
use crate::start::{StartError, Starter};
use longboat_logdb::{GroupState, REPLICA_NOT_KNOWN};
use longboat_raft::{GroupId, Index, ReplicaId, ReplicaKind};

/// A replica that is in the data directory and does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredReplica {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// What it is in its group, as far as what is stored of it says; nothing for one that was started to join and has not
    /// heard of the group since.
    pub kind: Option<ReplicaKind>,
    /// The index of its newest snapshot; zero if it has none.
    pub snapshot: Index,
    /// The last entry of its log.
    pub last: Index,
}

/// A group that is in the data directory and never runs again as what it was: a part of what it had made durable was damaged.
/// It neither votes nor acknowledges; put another replica in its place, under a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuarantinedReplica {
    /// The group.
    pub group: GroupId,
    /// The replica that was here. `None` when the damage may have taken which one that was: then its data can't be removed, and
    /// the group can't come back to this directory.
    pub replica: Option<ReplicaId>,
    /// The record of the journal that is damaged.
    pub record: u64,
}

impl QuarantinedReplica {
    pub(crate) fn of(state: &GroupState) -> Option<Self> {
        let replica = Some(state.bootstrap.replica).filter(|r| *r != REPLICA_NOT_KNOWN);
        Some(Self { group: state.group, replica, record: state.quarantined? })
    }

    /// Why it is not started.
    pub fn refusal(self) -> StartError {
        let Self { group, replica, record } = self;
        match replica {
            Some(replica) => StartError::Rotten { group, replica, record },
            None => StartError::RottenUnknown { group, record },
        }
    }
}

impl Starter {
    /// The groups that are quarantined because of damage on the disk, sorted.
    pub fn quarantined(&self) -> Vec<QuarantinedReplica> {
        let mut found: Vec<_> = self.host.stopped.lock().values().filter_map(QuarantinedReplica::of).collect();
        found.sort_unstable_by_key(|q| q.group);
        found
    }

    /// Tells the listener of those.
    pub fn tell_quarantined(&self) {
        for quarantined in self.quarantined() {
            let QuarantinedReplica { group, replica, record } = quarantined;
            let what = ReplicaEvent::Rotten { record };
            self.host.events.tell(HostEvent::Replica { group, replica: replica.unwrap_or_default(), what });
        }
    }

    /// The replicas that the store holds and that are not running, sorted. Reads the logs of those that joined and have no
    /// snapshot yet: what they are is said nowhere else.
    pub fn stored(&self) -> Vec<StoredReplica> {
        let here = |s: &&GroupState| !s.removed && s.quarantined.is_none();
        let states: Vec<GroupState> = self.host.stopped.lock().values().filter(here).cloned().collect();
        let mut stored: Vec<StoredReplica> = states.iter().map(|state| self.stored_replica(state)).collect();
        stored.sort_unstable_by_key(|s| s.group);
        stored
    }

    /// Whether the store has a replica of this group that can be started again, or is quarantined.
    pub fn has_stored(&self, group: GroupId) -> bool {
        let is_something = |s: &GroupState| !s.removed && (s.quarantined.is_some() || !is_blank(s));
        self.host.stopped.lock().get(&group).is_some_and(is_something)
    }

    /// Whether this replica was removed from its group, or its data from here: its id is never used again.
    pub fn is_gone(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.host.stopped.lock().get(&group).is_some_and(|s| s.bootstrap.gone.contains(&replica))
    }

    fn stored_replica(&self, state: &GroupState) -> StoredReplica {
        let replica = state.bootstrap.replica;
        let snapshot = state.snapshot.as_ref().map(|s| &s.meta);
        let membership = snapshot.map_or(&state.bootstrap.membership, |s| &s.membership);
        StoredReplica {
            group: state.group,
            replica,
            kind: membership.kind(replica).or_else(|| self.kind_by_log(state)),
            snapshot: snapshot.map_or(Index::ZERO, |s| s.pos.index),
            last: state.last.index,
        }
    }

    /// A member that joined was told of itself by its log alone. Only a witness's log lacks payloads.
    fn kind_by_log(&self, state: &GroupState) -> Option<ReplicaKind> {
        let first = state.start.index.next();
        if first > state.last.index {
            return None;
        }
        let runs = self.reader.entries(state.group, first, state.last.index, 1).ok()?;
        let witness = runs.first()?.is_stripped();
        Some(if witness { ReplicaKind::Witness } else { ReplicaKind::Voter })
    }
}

/// Whether nothing but the fact that it joins is known of a replica.
pub(crate) fn is_blank(state: &GroupState) -> bool {
    state.snapshot.is_none() && state.last.index.is_zero() && state.bootstrap.membership.voters.is_empty()
}
