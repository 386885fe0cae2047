//! What the store holds of replicas that are not running, for whoever lists or restarts them.

use crate::start::Starter;
use longboat_logdb::GroupState;
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

impl Starter {
    /// The replicas that the store holds and that are not running, sorted. Reads the logs of those that joined and have no
    /// snapshot yet: what they are is said nowhere else.
    pub fn stored(&self) -> Vec<StoredReplica> {
        let states: Vec<GroupState> = self.host.stopped.lock().values().filter(|s| !s.removed).cloned().collect();
        let mut stored: Vec<StoredReplica> = states.iter().map(|state| self.stored_replica(state)).collect();
        stored.sort_unstable_by_key(|s| s.group);
        stored
    }

    /// Whether the store has a replica of this group that can be started again.
    pub fn has_stored(&self, group: GroupId) -> bool {
        self.host.stopped.lock().get(&group).is_some_and(|s| !s.removed && !is_blank(s))
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
