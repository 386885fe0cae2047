//! Repairing groups that lost their quorum, offline: exported snapshots become the whole of their replicas' state.
//!
//! Every member of the new membership is imported, each on its own host, from the same export. The group goes on in a later
//! *epoch*: replicas of the former membership that come back are refused by it, and stop.
//!
//! Invariants: nothing of what a data directory holds of a group changes before every file of the whole call was read,
//! checked and written; a crash in between leaves a replica that decides nothing, or the import as it was asked for, and
//! the same call finishes it.

use crate::config::{ConfigError, NodeHostConfig};
use crate::members::{self, FirstMembers, MemberInfo};
use longboat_engine::STORE_NOT_KNOWN;
use longboat_io::{RealDisk, SharedDisk};
use longboat_logdb::{
    Bootstrap, GroupState, LogDb, LogError, Opened, Record, SharedLog, SharedLogConfig, SnapshotRecord, Update,
};
use longboat_raft::{
    GroupEpoch, GroupId, HardState, HostId, Index, Membership, ReplicaId, ReplicaKind, SnapshotMeta, plant,
};
use longboat_rsm::snapshot::{SnapshotError, SnapshotHeader, SnapshotStore, inspect_export, verify_export};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Groups whose records are written together.
const BATCH_GROUPS: usize = 256;

/// One replica to import on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    dir: PathBuf,
    replica: ReplicaId,
    members: FirstMembers,
    epoch: Option<GroupEpoch>,
}

impl Import {
    /// The replica of this host, from an exported snapshot, in a group of these members. The members and the export are the
    /// same on every host.
    pub fn new(dir: impl Into<PathBuf>, replica: ReplicaId, members: FirstMembers) -> Self {
        Self { dir: dir.into(), replica, members, epoch: None }
    }

    /// The epoch in which the group goes on, the same on every host, above any that it was ever in. Without this it is the one
    /// after that of the export, which is right unless the group was imported from the same or an earlier one before.
    #[must_use]
    pub fn in_epoch(self, epoch: GroupEpoch) -> Self {
        Self { epoch: Some(epoch), ..self }
    }
}

/// A replica that was imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// The index that it stands at.
    pub index: Index,
    /// The epoch that the group goes on in.
    pub epoch: GroupEpoch,
    /// An earlier call had done it already.
    pub was_done: bool,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A field of the host's configuration is out of its limits.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The data directory can't be used. It is in use as long as its host runs.
    #[error(transparent)]
    Log(#[from] longboat_logdb::OpenError),
    /// An export is damaged, of another version, or holds no state; or its copy can't be written.
    #[error("{}: {source}", dir.display())]
    Snapshot {
        /// The export.
        dir: PathBuf,
        /// What is wrong.
        source: SnapshotError,
    },
    /// The member list does not name the replica on this host.
    #[error("group {group}: the members do not name replica {replica} on host {host}")]
    NotAMember {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
        /// This host.
        host: HostId,
    },
    /// The member list can't be a group's membership, or contradicts what its members were.
    #[error("group {group}: {why}")]
    Members {
        /// The group.
        group: GroupId,
        /// What is wrong with it.
        why: String,
    },
    /// The replica was removed from its group, or its data from this host: its id is never used again.
    #[error("replica {replica} of group {group} was removed and can't come back, use a new id")]
    Removed {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
    },
    /// The group was in this epoch before, or in a later one.
    #[error(
        "group {group} was in epoch {found} on this host already: import it in a later one than {asked}, on every host"
    )]
    EpochTaken {
        /// The group.
        group: GroupId,
        /// What it was in.
        found: GroupEpoch,
        /// What it was to be in.
        asked: GroupEpoch,
    },
    /// The group is quarantined here: a damaged disk took a part of what it had promised. Open the host, remove the group's
    /// data, and import it under a new replica id.
    #[error(
        "group {0} is quarantined in this data directory: remove its data first, and import it under a new replica id"
    )]
    Quarantined(GroupId),
    /// Two of the imports are of one group.
    #[error("group {0} is to be imported twice")]
    Twice(GroupId),
    /// Writing the records failed.
    #[error(transparent)]
    Write(#[from] LogError),
}

/// An import whose refusals were all considered.
struct Planned {
    dir: PathBuf,
    record: SnapshotRecord,
    bootstrap: Bootstrap,
    group: GroupId,
    witness: bool,
    was_done: bool,
    /// The replica that it takes the place of, if that is another one.
    former: Option<ReplicaId>,
}

/// Imports replicas into the data directory of a host that does not run: for groups that lost their quorum. Whatever the
/// directory has of these groups is replaced. One opening of the store serves any number of them; they are started as any
/// replica that is here already, with [`crate::ReplicaStart::Restart`] or [`crate::NodeHost::resume_all`].
///
/// All are imported or none, but for a failure while records are written: then the same call, made again, finishes it.
/// What was acknowledged after the export is lost; what the groups' clients know of the time after it was told
/// in a history that has ended.
///
/// # Errors
/// [`ImportError`] says which export, group or replica is refused, and why.
pub fn import_snapshots(
    config: &NodeHostConfig,
    imports: impl IntoIterator<Item = Import>,
) -> Result<Vec<Imported>, ImportError> {
    import_on(Arc::new(RealDisk), config, imports)
}

fn import_on(
    disk: SharedDisk,
    config: &NodeHostConfig,
    imports: impl IntoIterator<Item = Import>,
) -> Result<Vec<Imported>, ImportError> {
    config.validate()?;
    let opened = open_store(config, &disk)?;
    let store = SnapshotStore::new(Arc::clone(&disk), config.data_dir.join("snapshots"));
    import_into(opened, &store, &disk, config.host_id, imports)
}

/// Imports into what is open. Not of the public API: the simulator has stores and disks of its own.
///
/// # Errors
/// As [`import_snapshots`].
pub fn import_into(
    opened: Opened<SharedLog>,
    store: &SnapshotStore,
    disk: &SharedDisk,
    host: HostId,
    imports: impl IntoIterator<Item = Import>,
) -> Result<Vec<Imported>, ImportError> {
    let Opened { mut log, groups, .. } = opened;
    let found: BTreeMap<GroupId, GroupState> = groups.into_iter().map(|s| (s.group, s)).collect();
    let mut planned: Vec<Planned> = Vec::new();
    let mut asked = BTreeSet::new();
    for import in imports {
        let header = look(disk, &import.dir)?;
        if !asked.insert(header.group) {
            return Err(ImportError::Twice(header.group));
        }
        planned.push(plan(import, &header, host, found.get(&header.group))?);
    }
    for plan in planned.iter_mut().filter(|p| !p.was_done) {
        match stage(store, disk, plan) {
            Err(_) if plant::is("damaged-import-left-out") => plan.was_done = true,
            staged => staged?,
        }
    }
    for plans in planned.chunks(BATCH_GROUPS) {
        write(&mut log, plans)?;
    }
    log.close()?;
    for p in &planned {
        let (group, replica, index) = (p.group, p.bootstrap.replica, p.record.meta.pos.index);
        tracing::info!(%group, %replica, %index, epoch = %p.bootstrap.epoch, "imported");
    }
    Ok(planned.iter().map(Planned::done).collect())
}

pub(crate) fn open_store(
    config: &NodeHostConfig,
    disk: &SharedDisk,
) -> Result<Opened<SharedLog>, longboat_logdb::OpenError> {
    SharedLog::open(Arc::clone(disk), config.log())
}

/// What an export says of itself. Its bytes are checked when they are copied, before anything is replaced.
fn look(disk: &SharedDisk, dir: &Path) -> Result<SnapshotHeader, ImportError> {
    let opened = longboat_rsm::snapshot::open_export(disk, dir);
    let reader = opened.map_err(|source| ImportError::Snapshot { dir: dir.to_owned(), source })?;
    Ok(reader.header().clone())
}

/// Considers every reason against an import.
fn plan(
    import: Import,
    header: &SnapshotHeader,
    host: HostId,
    found: Option<&GroupState>,
) -> Result<Planned, ImportError> {
    let Import { dir, replica, members, epoch } = import;
    let group = header.group;
    let membership = new_membership(group, &members.membership, &header.meta.membership)?;
    if membership.host_of(replica) != Some(host) && !plant::is("import-not-here") {
        return Err(ImportError::NotAMember { group, replica, host });
    }
    if found.is_some_and(|s| s.quarantined.is_some()) {
        return Err(ImportError::Quarantined(group));
    }
    let mut former = None;
    let mut gone = found.map(|s| s.bootstrap.gone.clone()).unwrap_or_default();
    if gone.contains(&replica) {
        return Err(ImportError::Removed { group, replica });
    }
    let epoch = epoch.unwrap_or(GroupEpoch(header.epoch.0 + 1));
    let witness = membership.kind(replica) == Some(ReplicaKind::Witness);
    let meta = SnapshotMeta { pos: header.meta.pos, membership };
    let was_done = found.is_some_and(|s| {
        s.bootstrap.replica == replica
            && s.bootstrap.epoch == epoch
            && s.snapshot.as_ref().map(|s| &s.meta) == Some(&meta)
    });
    if let Some(state) = found.filter(|s| !s.removed && !was_done) {
        // One that was begun in this epoch and has nothing in it was cut short.
        let begun = state.bootstrap.replica == replica && state.snapshot.is_none() && state.last.index.is_zero();
        let taken = state.bootstrap.epoch > epoch || (state.bootstrap.epoch == epoch && !begun);
        if taken && !plant::is("import-epoch-not-raised") {
            return Err(ImportError::EpochTaken { group, found: state.bootstrap.epoch, asked: epoch });
        }
        if state.bootstrap.replica != replica {
            gone.insert(state.bootstrap.replica);
            former = Some(state.bootstrap.replica);
        }
    }
    if epoch <= header.epoch && !plant::is("import-epoch-not-raised") {
        return Err(ImportError::EpochTaken { group, found: header.epoch, asked: epoch });
    }
    // Without members it decides nothing before its snapshot's record is there.
    let bootstrap = Bootstrap { replica, epoch, membership: Membership::default(), gone };
    let record = SnapshotRecord { meta, bytes: 0, resets_log: true };
    Ok(Planned { dir, record, bootstrap, group, witness, was_done, former })
}

/// The members that the group goes on with. Those that it had and has no more never come back.
fn new_membership(group: GroupId, new: &Membership, old: &Membership) -> Result<Membership, ImportError> {
    let wrong = |why: String| ImportError::Members { group, why };
    let mut membership = new.clone();
    membership.change_id = old.change_id;
    membership.removed = old.removed.clone();
    // On stores that others may not have seen yet, or that were made just for this.
    membership.hosts.values_mut().for_each(|member| member.store = STORE_NOT_KNOWN);
    let returns = |r: &ReplicaId| old.removed.contains(r) && !plant::is("import-removed-id");
    if let Some(replica) = new.replicas().find(returns) {
        return Err(ImportError::Removed { group, replica });
    }
    for replica in old.replicas() {
        if !new.contains(replica) {
            membership.removed.insert(replica);
            continue;
        }
        let (was, is) = (old.host_of(replica), new.host_of(replica));
        if was != is && !plant::is("import-moved-id") {
            let on = |host: Option<HostId>| host.unwrap_or_default();
            let why =
                format!("replica {replica} was on host {} and can't be on host {}: use a new id", on(was), on(is));
            return Err(wrong(why));
        }
        if old.is_witness(replica) != new.is_witness(replica) {
            return Err(wrong(format!("replica {replica} can't become a witness, or stop being one: use a new id")));
        }
    }
    if membership.hosts.values().any(|m| m.host.is_zero()) || !membership.is_consistent() {
        return Err(wrong("the members need a voter, and ids and hosts that are not zero".to_owned()));
    }
    if membership.voters.is_subset(&membership.witnesses) {
        return Err(wrong("a voter that is no witness is needed: somebody must lead".to_owned()));
    }
    Ok(membership)
}

/// Makes the snapshot's file, which counts for nothing yet.
fn stage(store: &SnapshotStore, disk: &SharedDisk, plan: &mut Planned) -> Result<(), ImportError> {
    let failed = |source| ImportError::Snapshot { dir: plan.dir.clone(), source };
    if plan.witness {
        // It keeps the place alone; but what it vouches for must be whole.
        verify_export(disk, &plan.dir).map_err(failed)?;
        return Ok(());
    }
    let (epoch, membership) = (plan.bootstrap.epoch, plan.record.meta.membership.clone());
    let change = |header: &mut SnapshotHeader| {
        header.epoch = epoch;
        header.meta.membership = membership;
    };
    plan.record.bytes = store.import(&plan.dir, plan.bootstrap.replica, change).map_err(failed)?.bytes;
    Ok(())
}

/// Writes the records of some groups: each replica is begun anew, then stands at its snapshot.
fn write(log: &mut SharedLog, plans: &[Planned]) -> Result<(), LogError> {
    let plans = || plans.iter().filter(|p| !p.was_done);
    let update = |p: &Planned, record| Update { group: p.group, record: Some(Box::new(record)), ..Update::default() };
    // Whoever was here is removed in so many words: the store takes a group whose one frame is damaged for that of the replica
    // before it, unless that was removed.
    let removed = plans().filter_map(|p| Some(update(p, Record::Removed { replica: p.former? })));
    let begun = plans().map(|p| update(p, Record::Bootstrap(p.bootstrap.clone())));
    submit(log, removed.chain(begun).collect())?;
    let stands = plans().map(|p| {
        let pos = p.record.meta.pos;
        let hard_state = HardState { term: pos.term, commit: pos.index, ..HardState::default() };
        Update {
            group: p.group,
            hard_state,
            record: Some(Box::new(Record::Snapshot(p.record.clone()))),
            ..Update::default()
        }
    });
    submit(log, stands.collect())
}

/// Returns when all of it is durable.
fn submit(log: &mut SharedLog, batch: Vec<Update>) -> Result<(), LogError> {
    if batch.is_empty() {
        return Ok(());
    }
    let seq = log.submit(batch);
    while log.poll()?.durable_through < seq {}
    // What fills the journal is settled here: nobody else drives this store.
    while let Some(mut job) = log.background_job() {
        while job.step(usize::MAX) != longboat_io::JobState::Done {
            std::thread::yield_now();
        }
    }
    Ok(())
}

impl Planned {
    fn done(&self) -> Imported {
        Imported {
            group: self.group,
            replica: self.bootstrap.replica,
            index: self.record.meta.pos.index,
            epoch: self.bootstrap.epoch,
            was_done: self.was_done,
        }
    }
}

impl NodeHostConfig {
    /// The log store's part.
    pub(crate) fn log(&self) -> SharedLogConfig {
        SharedLogConfig {
            journal_dir: self.journal_dir.clone(),
            segment_bytes: self.journal_segment_bytes,
            journal_bytes_max: self.journal_bytes_max,
            ..SharedLogConfig::new(&self.data_dir, self.host_id)
        }
    }
}

/// What is in an exported snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// The group.
    pub group: GroupId,
    /// The epoch of the group's history.
    pub epoch: GroupEpoch,
    /// What it stands for: its place in the log, and the members there.
    pub meta: SnapshotMeta,
    /// The kind of state machine that wrote it.
    pub kind: longboat_rsm::MachineKind,
    /// How its blocks are compressed: `none`, `lz4`, `zstd`.
    pub compression: &'static str,
    /// The size of its file.
    pub file_bytes: u64,
    /// The size of what is in it, decompressed.
    pub state_bytes: u64,
    /// Client sessions in it.
    pub sessions: usize,
    /// The files that the state machine has added, and their sizes.
    pub files: Vec<(u64, u64)>,
}

impl SnapshotInfo {
    /// The members of the group there, sorted by replica.
    pub fn members(&self) -> Vec<MemberInfo> {
        members::infos(&self.meta.membership)
    }
}

/// Reads an exported snapshot, checks every byte of it, and says what is in it.
///
/// # Errors
/// What is wrong with it.
pub fn inspect_snapshot(dir: &Path) -> Result<SnapshotInfo, SnapshotError> {
    let disk: SharedDisk = Arc::new(RealDisk);
    let found = inspect_export(&disk, dir)?;
    let header = found.header;
    Ok(SnapshotInfo {
        group: header.group,
        epoch: header.epoch,
        meta: header.meta,
        kind: header.kind,
        compression: match header.compression {
            longboat_rsm::snapshot::Compression::None => "none",
            longboat_rsm::snapshot::Compression::Lz4 => "lz4",
            longboat_rsm::snapshot::Compression::Zstd => "zstd",
        },
        file_bytes: found.file_bytes,
        state_bytes: found.state_bytes,
        sessions: found.sessions,
        files: found.files.into_iter().map(|f| (f.id, f.bytes)).collect(),
    })
}

/// Why no snapshot was exported from a data directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A field of the host's configuration is out of its limits.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The data directory can't be used. It is in use as long as its host runs: ask the host then.
    #[error(transparent)]
    Log(#[from] longboat_logdb::OpenError),
    /// The directory has no replica of the group, or one without a snapshot.
    #[error("group {0} has no snapshot in this data directory")]
    NoSnapshot(GroupId),
    /// The snapshot is damaged or holds no state, or the export can't be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// Exports the newest snapshot of a group from the data directory of a host that does not run, and returns the export's own
/// directory in `to`. What is in the log behind the snapshot is not in it: a running replica exports all that it has applied, with
/// [`crate::Replica::request_snapshot`].
///
/// # Errors
/// [`ExportError`] says why there is none.
pub fn export_snapshot(config: &NodeHostConfig, group: GroupId, to: &Path) -> Result<PathBuf, ExportError> {
    config.validate()?;
    let disk: SharedDisk = Arc::new(RealDisk);
    let Opened { mut log, groups, .. } = open_store(config, &disk)?;
    let store = SnapshotStore::new(disk, config.data_dir.join("snapshots"));
    let state = groups.into_iter().find(|s| s.group == group && !s.removed);
    let newest = state.and_then(|s| Some((s.bootstrap.replica, s.snapshot?.meta.pos.index)));
    let (replica, index) = newest.ok_or(ExportError::NoSnapshot(group))?;
    let exported = store.export((group, replica), index, to)?;
    // Nothing was written: a store that can't be sealed is not this call's affair.
    if let Err(error) = log.close() {
        tracing::warn!(%error, "the log store was not sealed");
    }
    Ok(exported)
}

#[cfg(test)]
mod tests;
