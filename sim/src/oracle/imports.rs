//! What an import does to what is known of a group: its history ends at the export, and goes on in another epoch.
//!
//! Checked: the imported replicas stand at the export's place, in one epoch, with the members that they were given.

use super::{Group, Oracle};
use crate::import;
use crate::members::History;
use crate::shadow::{Fold, Shadow};
use longboat_logdb::GroupState;
use longboat_raft::{GroupId, HostId, Index, LogPos, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

impl Group {
    /// The group's history ends at `at`; these go on from there.
    fn imported(
        &mut self,
        at: Index,
        members: &BTreeMap<HostId, ReplicaId>,
        found: &BTreeMap<HostId, GroupState>,
        left_out: Option<(HostId, ReplicaId)>,
    ) -> Result<(), String> {
        let (term, chain) =
            self.committed_at(at).map(|c| (c.term, c.chain)).ok_or("an import of what is not committed")?;
        let pos = LogPos::new(term, at);
        let mut epochs = BTreeSet::new();
        for (host, state) in found {
            let there = import::stands(state);
            let voters = &state.snapshot.as_ref().ok_or("an import without a snapshot")?.meta.membership;
            if there != pos || state.last != pos || !voters.voters.iter().eq(members.values()) {
                return Err(format!("host {host}: imported at {there:?} of {voters:?}, it is {pos:?} of {members:?}"));
            }
            epochs.insert(state.bootstrap.epoch);
            let fold = Fold::at_snapshot(members[host], state.hard_state, pos, chain);
            self.shadows.insert(*host, Shadow::of(fold));
            self.history = History::imported(voters.clone(), left_out);
        }
        if epochs.len() != 1 {
            return Err(format!("imported into the epochs {epochs:?}"));
        }
        // What the former history's replicas had, and who led it, says nothing about this one.
        self.graves.clear();
        self.leaders.clear();
        self.leading.clear();
        self.chains.clear();
        self.applied.clear();
        self.commits = [(term, pos)].into();
        Ok(())
    }
}

impl Oracle {
    /// A group goes on from an import at `at` on these hosts, whose stores hold this; somebody may be left out.
    pub fn imported(
        &self,
        group: GroupId,
        at: Index,
        members: &BTreeMap<HostId, ReplicaId>,
        found: &BTreeMap<HostId, GroupState>,
        left_out: Option<(HostId, ReplicaId)>,
    ) {
        self.note(&[group.0, at.0, members.len() as u64]);
        self.with(group, |g| g.imported(at, members, found, left_out));
    }
}
