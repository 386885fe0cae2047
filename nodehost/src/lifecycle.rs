//! The life of many replicas at once: what is here, restarting it, waiting until it serves.

use crate::config::GroupConfig;
use crate::group::Group;
use crate::host::NodeHost;
use crate::members::ReplicaStart;
use crate::replica::Replica;
use longboat_engine::{SnapshotOptions, SnapshotOutcome, StartError, StoredReplica};
use longboat_raft::{GroupId, Index, ReplicaId, ReplicaKind};
use longboat_rsm::{Machine, MachineKind, Pending, RequestError};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time between looks at replicas that are not ready yet.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A replica that is on this host, running or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaInfo {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// What it is in its group. Of one that does not run, what its snapshot or first membership says: a voter may be a
    /// non-voting member meanwhile, or the other way round. Nothing for one that was to join and has heard of nobody yet.
    pub kind: Option<ReplicaKind>,
    /// The kind of its state machine, while it runs.
    pub machine: Option<MachineKind>,
    /// Through where its state machine has applied; of one that does not run, the index of its newest snapshot.
    pub applied: Index,
    /// The leader that it knows, while it runs.
    pub leader: Option<ReplicaId>,
    /// Whether it runs.
    pub running: bool,
}

/// What came of restarting replicas.
#[derive(Debug)]
pub struct Resumed<S: Machine> {
    /// Those that have a state machine.
    pub groups: Vec<Group<S>>,
    /// Witnesses.
    pub witnesses: Vec<Replica>,
    /// Those that were not started, and why.
    pub failed: Vec<(GroupId, StartError)>,
    /// Those that were to join and have heard of nobody yet, so that nothing says what they are: start them with
    /// [`ReplicaStart::Join`] again.
    pub unknown: Vec<GroupId>,
}

impl NodeHost {
    /// Every replica on this host, running or not, sorted by group. Asks no worker.
    pub fn replicas(&self) -> Vec<ReplicaInfo> {
        let running = self.running().into_iter().map(|r| {
            let info = r.info();
            ReplicaInfo {
                group: info.group,
                replica: info.replica,
                kind: r.membership().kind(info.replica),
                machine: (!r.shared.witness).then_some(r.shared.kind),
                applied: info.applied,
                leader: info.leader,
                running: true,
            }
        });
        let stored = self.starter().map_or_else(Vec::new, |s| s.stored());
        let stored = stored.into_iter().map(|s| ReplicaInfo {
            group: s.group,
            replica: s.replica,
            kind: s.kind,
            machine: None,
            applied: s.snapshot,
            leader: None,
            running: false,
        });
        let mut all: Vec<_> = running.chain(stored).collect();
        all.sort_by_key(|r| (r.group, !r.running));
        all.dedup_by_key(|r| r.group);
        all
    }

    /// Whether a replica of the group is on this host, running or not.
    pub fn has_replica(&self, group: GroupId) -> bool {
        self.replica(group).is_ok() || self.starter().is_some_and(|s| s.has_stored(group))
    }

    /// Restarts every replica that is in the data directory and does not run, each as what it was: voter, non-voting member
    /// or witness. `template` has the settings of all of them; `machine` makes the empty state machine of each but the witnesses.
    ///
    /// One that can't be started keeps no other from it.
    pub fn resume_all<S: Machine>(
        &self,
        template: &GroupConfig,
        mut machine: impl FnMut(GroupId, ReplicaKind) -> S,
    ) -> Resumed<S> {
        self.resume_with(|stored, kind| {
            let config = GroupConfig { group: stored.group, replica: stored.replica, ..template.clone() };
            let machine = (kind != ReplicaKind::Witness).then(|| machine(stored.group, kind));
            Some((config, machine))
        })
    }

    /// As [`NodeHost::resume_all`], with settings for each; what `choose` returns nothing for stays as it is. A witness needs
    /// no state machine, and one that is given for it is not used.
    pub fn resume_with<S: Machine>(
        &self,
        mut choose: impl FnMut(&StoredReplica, ReplicaKind) -> Option<(GroupConfig, Option<S>)>,
    ) -> Resumed<S> {
        let mut resumed =
            Resumed { groups: Vec::new(), witnesses: Vec::new(), failed: Vec::new(), unknown: Vec::new() };
        let mut specs = Vec::new();
        let quarantined = self.starter().map_or_else(Vec::new, |s| s.quarantined());
        resumed.failed.extend(quarantined.into_iter().map(|q| (q.group, q.refusal())));
        for stored in self.starter().map_or_else(Vec::new, |s| s.stored()) {
            let Some(kind) = stored.kind else {
                resumed.unknown.push(stored.group);
                continue;
            };
            match choose(&stored, kind) {
                None => {}
                Some((config, _)) if kind == ReplicaKind::Witness => {
                    match self.start_witness(ReplicaStart::Restart, config) {
                        Ok(witness) => resumed.witnesses.push(witness),
                        Err(error) => resumed.failed.push((stored.group, error)),
                    }
                }
                Some((config, Some(machine))) => specs.push((ReplicaStart::Restart, config, machine)),
                Some((_, None)) => resumed.failed.push((stored.group, StartError::NoMachine(stored.group))),
            }
        }
        for (group, outcome) in self.start_each(specs) {
            match outcome {
                Ok(started) => resumed.groups.push(started),
                Err(error) => resumed.failed.push((group, error)),
            }
        }
        resumed
    }

    /// Waits until every running replica knows its leader and has applied all that was committed, as far as it knew, when that
    /// became known to it.
    ///
    /// # Errors
    /// The groups that are not ready when `timeout` is over.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), Vec<GroupId>> {
        let until = Instant::now() + timeout;
        let mut waiting: Vec<(Replica, Option<Index>)> = self.running().into_iter().map(|r| (r, None)).collect();
        loop {
            waiting.retain_mut(|(replica, target)| {
                let published = &replica.shared.published;
                if target.is_none() && replica.leader().is_some() {
                    *target = Some(Index(published.commit.load(Ordering::Acquire)));
                }
                let ready = target.is_some_and(|t| published.applied.load(Ordering::Acquire) >= t.0);
                !ready && !replica.shared.is_closed()
            });
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(waiting.into_iter().map(|(replica, _)| replica.id()).collect());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Exports snapshots of these groups' replicas here, each to a directory of its own in `dir`, and waits for all of them.
    /// The outcomes are in the order of the groups.
    pub fn export_groups(
        &self,
        groups: impl IntoIterator<Item = GroupId>,
        dir: &Path,
        timeout: Duration,
    ) -> Vec<(GroupId, Result<SnapshotOutcome, RequestError>)> {
        let ask = |group| -> Result<Pending<SnapshotOutcome>, RequestError> {
            self.replica(group)?.request_snapshot(SnapshotOptions::export_to(dir), timeout)
        };
        let asked: Vec<_> = groups.into_iter().map(|group| (group, ask(group))).collect();
        asked.into_iter().map(|(group, pending)| (group, pending.and_then(Pending::wait))).collect()
    }

    fn running(&self) -> Vec<Replica> {
        self.shared_groups().into_iter().map(|shared| Replica { shared }).collect()
    }
}
