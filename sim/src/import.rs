//! The last resort of operators: groups go on from an export, imported on hosts that do not run, and one member is left out.
//!
//! When a world has come to rest, a group is exported, all hosts are stopped, and the export is imported on all of its members but one,
//! sometimes after a first try that dies half-way. The one that is left out comes back with what it had, in an epoch that has ended.
//!
//! Checked: the imported replicas stand where the export does, in the next epoch, with its members; they make progress, with equal
//! state; the straggler decides nothing and is told that its history has ended.
//!
//! Must not know: how an import is made.

use crate::rng::Rng;
use crate::swarm::Swarm;
use crate::world::World;
use longboat::driven::import_into;
use longboat::{FirstMembers, Import};
use longboat_engine::SnapshotOptions;
use longboat_engine::SnapshotOutcome;
use longboat_io::sim::SimDisk;
use longboat_logdb::{GroupState, SharedLog};
use longboat_raft::{GroupEpoch, GroupId, HostId, Index, LogPos, ReplicaId, sometimes};
use longboat_rsm::snapshot::SnapshotStore;
use longboat_rsm::{Pending, RequestError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

const SECOND: u64 = 1_000_000_000;
/// An export takes so long at most, in nanoseconds.
const EXPORT_NANOS: u64 = 20 * SECOND;
/// A straggler is told within this time that its history has ended, in nanoseconds.
const TOLD_NANOS: u64 = 45 * SECOND;
/// Calls that change a disk before a first try dies, at most.
const DIES_AFTER_MAX: u64 = 60;

/// What is imported.
struct Plan {
    group: GroupId,
    at: Index,
    files: Vec<(PathBuf, Vec<u8>)>,
    dir: PathBuf,
    /// The members that go on, by host.
    members: BTreeMap<HostId, ReplicaId>,
    /// Who is left out.
    straggler: Option<(HostId, ReplicaId)>,
}

impl Swarm {
    /// In some worlds without operators a group is imported in the end.
    pub fn draw_import(&mut self, rng: &mut Rng) {
        let drawn = rng.chance(400);
        self.imports = drawn && !self.operations.is_on();
    }
}

impl World {
    /// Imports a group, and looks whether it goes on.
    pub(crate) fn import_one(&mut self) {
        let swarm = Arc::clone(&self.around.swarm);
        let group = self.plan.rng_mut().pick(&swarm.groups).0;
        let Some(plan) = self.export_all(group) else { return };
        let (hosts, restart) = (self.hosts.len() as u64, self.now().plus_nanos(SECOND));
        for id in (1..=hosts).map(HostId) {
            self.stop(id, false, restart.nanos_since(self.now()));
        }
        self.say(|_| {
            format!("group {group}: imported at {} on {:?}, without {:?}", plan.at, plan.members, plan.straggler)
        });
        let mut found = BTreeMap::new();
        for host in plan.members.keys() {
            match self.import_on(*host, &plan) {
                Ok(state) => drop(found.insert(*host, state)),
                Err(error) => {
                    return self.around.oracle.violate(format!("group {group}: no import on host {host}: {error}"));
                }
            }
        }
        self.around.oracle.imported(group, plan.at, &plan.members, &found, plan.straggler);
        self.clients.expect_progress();
        self.come_back(&plan);
    }

    /// The members of a group that is at rest, and its state.
    fn export_all(&mut self, group: GroupId) -> Option<Plan> {
        let members = self.around.oracle.members(group);
        let plain = !members.is_joint() && members.learners.is_empty() && members.witnesses.is_empty();
        let mut by_host: BTreeMap<HostId, ReplicaId> = BTreeMap::new();
        for (replica, member) in &members.hosts {
            by_host.insert(member.host, *replica);
        }
        if !plain || by_host.len() != members.voters.len() {
            return None;
        }
        let hosts: Vec<HostId> = by_host.keys().copied().collect();
        let host = *self.plan.rng_mut().pick(&hosts);
        let dir = PathBuf::from("/data/import");
        self.hosts[host.0 as usize - 1].disk.process().create_dir_all(&dir).ok()?;
        let by = self.now_at(host).plus_nanos(EXPORT_NANOS);
        let mut pending = self.replica(host, group)?.enqueue_snapshot(SnapshotOptions::export_to(&dir), by).ok()?;
        let mut done = None;
        let until = self.now().plus_nanos(EXPORT_NANOS + SECOND);
        self.run_until(until, |_| {
            done = poll(&mut pending);
            done.is_some()
        });
        let Some(Ok(SnapshotOutcome::Exported { index: at, dir })) = done else { return None };
        // What was committed since is lost by an import: the oracle is to know of none of it.
        if self.around.oracle.last_applied(group) != at || self.clients.open() > 0 {
            return None;
        }
        let disk = &self.hosts[host.0 as usize - 1].disk;
        let below = disk.files().into_iter().filter(|path| path.starts_with(&dir));
        let files = below.map(|path| (path.clone(), disk.contents(&path).expect("just listed"))).collect();
        let mut straggler = None;
        if hosts.len() > 1 && self.plan.rng_mut().chance(800) {
            let host = *self.plan.rng_mut().pick(&hosts);
            straggler = by_host.remove(&host).map(|replica| (host, replica));
        }
        Some(Plan { group, at, files, dir, members: by_host, straggler })
    }

    /// Imports on one host; returns what its store holds then.
    fn import_on(&mut self, host: HostId, plan: &Plan) -> Result<GroupState, String> {
        let (seed, dies_after) = (self.plan.rng_mut().next(), self.plan.rng_mut().below(2 * DIES_AFTER_MAX));
        let now = self.now();
        let world = &self.around.swarm;
        let host = &self.hosts[host.0 as usize - 1];
        // Whoever imports waits for the disk, and nothing else goes on meanwhile.
        host.disk.set_now(now);
        host.disk.set_delays(0, 0);
        copy(&host.disk, plan).map_err(|e| format!("copy: {e}"))?;
        let store_seed = host.store_seed();
        let once = || import_once(&host.disk, host.id, plan, world, store_seed);
        if dies_after < DIES_AFTER_MAX {
            host.disk.stop_after(dies_after);
            let died = once().is_err();
            sometimes!(died, "import-died-half-way");
            host.disk.reseed(seed);
            if died && dies_after % 2 == 0 {
                host.disk.power_loss()
            } else {
                host.disk.kill()
            }
            copy(&host.disk, plan).map_err(|e| format!("copy: {e}"))?;
        }
        once()?;
        let opened =
            SharedLog::open(host.disk.process(), world.store(host.id, store_seed)).map_err(|e| e.to_string())?;
        let state = opened.groups.into_iter().find(|state| state.group == plan.group).ok_or("nothing is there")?;
        drop(opened.log);
        host.disk.kill();
        let delays = world.disk();
        host.disk.set_delays(delays.latency_nanos, delays.jitter_nanos);
        if state.bootstrap.epoch == GroupEpoch(0) || state.start.index != plan.at {
            return Err(format!("{state:?} is of epoch 0, or not of {}", plan.at));
        }
        Ok(state)
    }

    /// Everybody starts again; the group goes on, the straggler does not.
    fn come_back(&mut self, plan: &Plan) {
        let group = plan.group;
        for host in plan.members.keys() {
            let placed = self.hosts[host.0 as usize - 1].replicas.get_mut(&group);
            placed.expect("a member is placed").imported = true;
        }
        if let Some((host, replica)) = plan.straggler {
            let until = self.now().plus_nanos(TOLD_NANOS);
            let told = self.run_until(until, |w| {
                w.replica(host, group).is_some_and(|shared| shared.refusal() == Some(RequestError::Superseded))
            });
            if !told && !self.around.oracle.is_violated() {
                let what = self.describe(group);
                self.around.oracle.violate(format!(
                    "group {group}: {replica} on host {host} is not told that its history has ended: {what}"
                ));
                return;
            }
            sometimes!("import-with-a-straggler");
            self.hosts[host.0 as usize - 1].replicas.remove(&group);
        }
        sometimes!("group-imported");
        self.progress();
        self.come_to_rest(self.now());
    }
}

fn poll(pending: &mut Pending<SnapshotOutcome>) -> Option<Result<SnapshotOutcome, RequestError>> {
    match Pin::new(pending).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

fn copy(disk: &SimDisk, plan: &Plan) -> std::io::Result<()> {
    let disk = disk.process();
    disk.create_dir_all(&plan.dir)?;
    for (path, bytes) in &plan.files {
        if disk.exists(path) {
            disk.remove_file(path)?;
        }
        disk.create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        disk.create(path)?.write_all_at(bytes, 0)?;
    }
    Ok(())
}

fn import_once(disk: &SimDisk, host: HostId, plan: &Plan, world: &Swarm, seed: u64) -> Result<(), String> {
    let process = disk.process();
    let opened = SharedLog::open(Arc::clone(&process), world.store(host, seed)).map_err(|e| e.to_string())?;
    let store = SnapshotStore::new(Arc::clone(&process), "/data/snapshots".into());
    let members = FirstMembers::voters(plan.members.iter().map(|(host, replica)| (*replica, *host)));
    let import = Import::new(&plan.dir, plan.members[&host], members);
    import_into(opened, &store, &process, host, [import]).map_err(|e| e.to_string())?;
    disk.kill();
    Ok(())
}

/// Where an imported replica stands.
pub(crate) fn stands(state: &GroupState) -> LogPos {
    state.snapshot.as_ref().map_or(LogPos::default(), |snapshot| snapshot.meta.pos)
}
