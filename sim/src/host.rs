//! One simulated host: a disk that outlives the lives of its process, and in each life the shipped engine's workers.

use crate::cabinet::{self, Cabinet, WatchedDisk};
use crate::clock::{HostClock, SimClock};
use crate::jobs::SimSpawner;
use crate::machine::Watched;
use crate::network::{Network, SimTransport};
use crate::oracle::Oracle;
use crate::recorder::Recorder;
use crate::rng::Rng;
use crate::swarm::Swarm;
use longboat_engine::shared::HostShared;
use longboat_engine::{
    GroupShared, Host, HostParts, Notifiers, Openings, PeerFile, PeerStores, QuarantinedReplica, Standing, Start,
    StartError, StartSpec, Work, Worker,
};
use longboat_io::sim::{SimDisk, SimOp};
use longboat_io::{Clock, Job, JobState};
use longboat_logdb::{OpenError, Opened, SharedLog};
use longboat_raft::{Core, GroupId, HostId, Membership, ReplicaId, StoreId, Time, sometimes};
use longboat_rsm::snapshot::SnapshotStore;
use longboat_rsm::{DynMachine, Pending, RequestError, WitnessMachine};
use longboat_transport::Transport;
use parking_lot::Mutex;
use std::any::TypeId;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Bytes of work of one step of a job: little, so that much happens in between.
const STEP_BYTES: usize = 16 << 10;
/// When a process that could not open its store is started again, in nanoseconds.
const REOPEN_NANOS: u64 = 50_000_000;
/// How long a job that waits is left alone, in nanoseconds.
const BLOCKED_NANOS: u64 = 500_000;

/// When the log writer looks again at a write that should be over, in nanoseconds.
const LOOK_AGAIN_NANOS: u64 = 5_000;

/// The workers of a host, in the order in which the driver counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads what has arrived.
    Poller,
    /// A step worker.
    Step(usize),
    /// An apply worker.
    Apply(usize),
    /// The log writer.
    Writer,
    /// A background job.
    Job(usize),
}

/// When a worker runs next.
#[derive(Clone, Copy, Debug, Default)]
struct Wake {
    /// It was told that there is something to do.
    pending: bool,
    /// It wants a round at this moment of the host's clock.
    next: Option<Time>,
    /// Its thread is not scheduled before this moment.
    paused_until: Time,
}

struct RunningJob {
    job: Box<dyn Job>,
    not_before: Time,
}

/// A replica that a host has, or is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which.
    pub replica: ReplicaId,
    /// It was added later: it does not know the first members.
    pub joins: bool,
    /// It is a witness.
    pub witness: bool,
    /// It is to run.
    pub wanted: bool,
    /// It was told that it was removed.
    pub told: bool,
    /// It never will be a member.
    pub useless: bool,
    /// It was imported: it knows its members from there.
    pub imported: bool,
    /// It is quarantined: a part of what it had is damaged. It never runs again.
    pub rotten: bool,
}

impl Placed {
    /// One of the first members.
    pub fn first(replica: ReplicaId) -> Self {
        let (told, useless, imported, rotten) = (false, false, false, false);
        Self { replica, joins: false, witness: false, wanted: true, told, useless, imported, rotten }
    }

    /// One that comes later.
    pub fn joining(replica: ReplicaId, witness: bool) -> Self {
        Self { joins: true, witness, ..Self::first(replica) }
    }
}

/// What all lives of all hosts share.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The world's settings.
    pub swarm: Arc<Swarm>,
    /// The clock.
    pub clock: Arc<SimClock>,
    /// The network.
    pub network: Arc<Network>,
    /// The checkers.
    pub oracle: Arc<Oracle>,
}

/// A life of a host.
pub struct Life {
    host: Host<Recorder<SharedLog>>,
    notifiers: Notifiers,
    spawner: Arc<SimSpawner>,
    transport: Arc<SimTransport>,
    disk: SimDisk,
    clock: Arc<HostClock>,
    /// Poller, step workers, apply workers, log writer.
    wakes: Vec<Wake>,
    jobs: Vec<RunningJob>,
    /// How long the steps of jobs take.
    pace: Rng,
    /// The replicas here.
    pub groups: BTreeMap<GroupId, Arc<GroupShared>>,
}

/// A simulated host.
pub struct SimHost {
    /// Its id.
    pub id: HostId,
    /// Its disk.
    pub disk: SimDisk,
    /// Its clock, which goes on while its process does not run.
    pub clock: Arc<HostClock>,
    pub(crate) around: Surroundings,
    /// Its replicas, whether its process runs or not.
    pub replicas: BTreeMap<GroupId, Placed>,
    lives: u64,
    seed: u64,
    /// What on-disk state machines have stored.
    cabinets: Mutex<BTreeMap<(GroupId, ReplicaId), cabinet::Shared>>,
    /// The next sync fails.
    sync_fails: bool,
    /// Its disk has a bound at present, which may be reached.
    tight: bool,
    /// Its store failed, and its process will be stopped.
    pub is_failing: bool,
    /// A copy of its disk, and how far its store had come then.
    pub(crate) copy: Option<(SimDisk, Standing)>,
    /// The id of its store, when that was last open.
    pub(crate) store: StoreId,
    /// Its directory was put back to an earlier copy.
    pub(crate) is_put_back: bool,
    /// A byte of its journal has changed.
    pub(crate) is_rotten: bool,
    /// Its store does not open any more.
    pub(crate) is_refused: bool,
    /// It was wiped, and runs with the ids that its replicas had.
    as_before: bool,
    /// Its process, while it runs.
    pub life: Option<Box<Life>>,
    /// What its lives had, which goes with the world: within a host, groups and jobs hold what holds them.
    lived: Vec<(Arc<HostShared>, Arc<SimSpawner>)>,
    /// When its process starts again, while it does not run.
    pub restart_at: Option<Time>,
}

impl SimHost {
    /// A host that never ran.
    pub fn new(id: HostId, seed: u64, around: Surroundings) -> Self {
        let disk = SimDisk::new(seed, around.swarm.disk());
        let here = around.swarm.groups.iter().filter(|(_, hosts)| hosts.contains(&id));
        let replicas = here.map(|(group, _)| (*group, Placed::first(ReplicaId(id.0)))).collect();
        let clock = HostClock::new(Arc::clone(&around.clock), around.swarm.drift_ppm(id));
        Self {
            id,
            disk,
            clock,
            around,
            replicas,
            lives: 0,
            seed,
            cabinets: Mutex::default(),
            sync_fails: false,
            tight: false,
            is_failing: false,
            copy: None,
            store: StoreId::ZERO,
            is_put_back: false,
            is_rotten: false,
            is_refused: false,
            as_before: false,
            life: None,
            lived: Vec::new(),
            restart_at: Some(Time::ZERO),
        }
    }

    /// Starts the process: opens the store, starts all replicas.
    pub fn start(&mut self) {
        self.restart_at = None;
        self.lives += 1;
        let around = &self.around;
        self.disk.set_now(around.clock.now());
        let life_seed = self.seed.wrapping_mul(0x9E37_79B9).wrapping_add(self.lives << 32);
        let disk = self.disk.process();
        let opened = match SharedLog::open(Arc::clone(&disk), around.swarm.store(self.id, self.seed)) {
            Ok(opened) => opened,
            Err(error) => return self.not_opened(error),
        };
        sometimes!(self.is_rotten, "rotten-host-opened");
        self.store = opened.store;
        // Whose tombstone became durable is gone, whether anybody heard of it or not.
        for state in &opened.groups {
            let gone = |placed: &Placed| state.bootstrap.gone.contains(&placed.replica);
            if self.replicas.get(&state.group).is_some_and(gone) {
                self.replicas.remove(&state.group);
            }
        }
        let found = self.note_quarantined(&opened.groups);
        let around = &self.around;
        around.oracle.recovered_store(self.id, &found);
        // Its operator may not know either what it was told: then it is told again.
        if self.lives.is_multiple_of(2) {
            self.replicas.values_mut().filter(|p| p.told).for_each(|p| p.told = false);
        }
        let log = Recorder::new(opened.log, Arc::clone(&around.oracle), self.id);
        let log = Opened { log, store: opened.store, place: opened.place, groups: opened.groups };
        let file = PeerFile::new(Arc::clone(&disk), "/data");
        let openings = match Openings::begin(file.clone(), log.store, self.lives, log.place) {
            Ok(openings) => openings,
            Err(error) => return self.not_opened(error),
        };
        let config = around.swarm.engine(self.id, life_seed, openings.incarnation());
        let notifiers = Notifiers::separate(&config);
        let (spawner, incarnation) = (SimSpawner::new(), openings.incarnation());
        let transport = around.network.join(self.id, log.store, incarnation);
        let stores = match PeerStores::open(file) {
            Ok(stores) => stores,
            Err(error) => return self.not_opened(error.into()),
        };
        let parts = HostParts {
            config,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            log,
            stores,
            openings,
            snapshots: SnapshotStore::new(disk, "/data/snapshots".into()),
            spawner: Arc::clone(&spawner) as Arc<_>,
            transport: Arc::clone(&transport) as Arc<dyn Transport>,
        };
        let host = Host::new(parts, &notifiers);
        self.lived.push((Arc::clone(&host.shared), Arc::clone(&spawner)));
        let wakes = vec![Wake { pending: true, ..Wake::default() }; host.steps.len() + host.applies.len() + 2];
        let groups = match host.starter.start(self.specs()) {
            Ok(started) => started.into_iter().map(|s| (s.group, s)).collect(),
            // What is damaged may be an entry, which is read when its replica starts.
            Err(StartError::Log { .. }) if self.is_rotten => return self.refuse("host-refused-as-rotten"),
            Err(error) => return around.oracle.violate(format!("host {} can't start its replicas: {error}", self.id)),
        };
        let (disk, jobs) = (self.disk.clone(), Vec::new());
        let (clock, pace) = (Arc::clone(&self.clock), Rng::new(life_seed));
        self.life =
            Some(Box::new(Life { host, notifiers, spawner, transport, disk, clock, wakes, jobs, pace, groups }));
    }

    fn not_opened(&mut self, error: OpenError) {
        match error {
            // The sync that was to fail was one of these: nothing was promised, the process is started again.
            OpenError::Io(_) | OpenError::KeyValue(_) if self.sync_fails => self.try_again(),
            OpenError::Io(_) | OpenError::KeyValue(_) if self.tight => self.try_again(),
            OpenError::RolledBack(_) => self.refuse("host-refused-as-an-older-copy"),
            OpenError::Corrupt(_) | OpenError::Format(_) if self.is_rotten => self.refuse("host-refused-as-rotten"),
            error => self.around.oracle.violate(format!("host {} can't open its store: {error}", self.id)),
        }
    }

    /// The process does not come up any more: somebody must do something about its directory.
    fn refuse(&mut self, point: &str) {
        sometimes!(point == "host-refused-as-rotten", "host-refused-as-rotten");
        sometimes!(point == "host-refused-as-an-older-copy", "host-refused-as-an-older-copy");
        self.stop(false, Time::ZERO);
        self.restart_at = None;
        self.is_refused = true;
    }

    /// Its directory is lost. It comes up with an empty one, without replicas, or as it was.
    pub(crate) fn wipe(&mut self, seed: u64, as_before: bool) {
        self.disk = SimDisk::new(seed, self.around.swarm.disk());
        self.disk.set_now(self.around.clock.now());
        self.seed = seed;
        self.cabinets.lock().clear();
        if !as_before {
            self.replicas.clear();
        }
        // What runs as before runs on another store, with nothing of what was damaged.
        self.replicas.values_mut().for_each(|placed| placed.rotten = false);
        self.copy = None;
        (self.is_rotten, self.is_put_back, self.is_refused, self.as_before) = (false, false, false, as_before);
        if self.restart_at.is_none() {
            self.restart_at = Some(self.around.clock.now());
        }
    }

    /// The process did not come up, through no fault of its own: it is started again.
    fn try_again(&mut self) {
        let restart_at = self.around.clock.now().plus_nanos(REOPEN_NANOS);
        self.stop(false, restart_at);
    }

    /// What its store draws its ids from.
    pub(crate) fn store_seed(&self) -> u64 {
        self.seed
    }

    fn specs(&self) -> Vec<StartSpec> {
        let wanted = self.replicas.iter().filter(|(_, p)| p.wanted && !p.told && !p.useless && !p.rotten);
        wanted.map(|(group, placed)| self.spec(*group, *placed)).collect()
    }

    fn spec(&self, group: GroupId, placed: Placed) -> StartSpec {
        let swarm = &self.around.swarm;
        let first = || Arc::new(swarm.first_members(group));
        let machine: (Box<dyn DynMachine>, TypeId) = if placed.witness {
            (Box::new(WitnessMachine), TypeId::of::<WitnessMachine>())
        } else if let Some(flush_every) = swarm.on_disk.get(&group) {
            let oracle = Arc::clone(&self.around.oracle);
            let new = || Cabinet::new(*flush_every);
            let cabinet = Arc::clone(self.cabinets.lock().entry((group, placed.replica)).or_insert_with(new));
            let machine = WatchedDisk::new(oracle, group, self.id, &cabinet, swarm.ballast);
            (Box::new(machine), TypeId::of::<WatchedDisk>())
        } else {
            let oracle = Arc::clone(&self.around.oracle);
            let has_views = swarm.with_views.contains(&group);
            (Box::new(Watched::new(oracle, group, self.id, swarm.ballast, has_views)), TypeId::of::<Watched>())
        };
        StartSpec {
            start: match placed {
                Placed { imported: true, .. } => Start::Restart,
                Placed { joins: true, .. } => Start::Join,
                _ => Start::Bootstrap(first()),
            },
            config: swarm.replica(group, placed.replica, placed.witness),
            machine: machine.0,
            machine_type: machine.1,
        }
    }

    /// Stops one replica; the process goes on.
    pub fn stop_replica(&self, group: GroupId) {
        if let Some(life) = &self.life {
            life.host.starter.stop(group);
        }
    }

    /// Starts a replica that is to run and does not, unless it is still on its way down.
    pub fn start_wanted(&mut self, group: GroupId) {
        let down = |l: &Life| l.host.shared.group(group).is_none();
        if self.life.as_deref().is_some_and(down) {
            self.start_replica(group);
        }
    }

    /// Whether the replica of this group has now been told that it was removed; it is remembered.
    pub fn note_told(&mut self, group: GroupId) -> bool {
        let shared = self.life.as_ref().and_then(|l| l.groups.get(&group));
        let told = shared.is_some_and(|s| s.refusal() == Some(RequestError::Removed));
        let Some(placed) = self.replicas.get_mut(&group).filter(|p| told && !p.told) else { return false };
        let its = shared.is_some_and(|s| s.replica == placed.replica);
        placed.told = its;
        its
    }

    /// Whether the replica of this group runs and takes none of these members for a voter.
    pub fn knows_none_of(&self, group: GroupId, members: &Membership) -> bool {
        let core = self.life.as_ref().and_then(|l| l.core(group));
        core.is_some_and(|c| !c.membership().voters.iter().any(|v| members.contains(*v)))
    }

    /// Removes the data of a replica, which is stopped first if it runs. Nothing while the process does not run.
    pub fn remove_data(&mut self, group: GroupId) -> Option<Result<Pending<()>, RequestError>> {
        let starter = &self.life.as_ref()?.host.starter;
        starter.stop(group);
        Some(starter.remove_data(group))
    }

    /// Starts one replica that was stopped.
    pub fn start_replica(&mut self, group: GroupId) {
        let Some(placed) = self.replicas.get(&group).copied() else { return };
        let specs = vec![self.spec(group, placed)];
        // A host whose store has just failed starts nothing; it is about to be started again itself.
        if self.has_failed() {
            return;
        }
        let Some(life) = &mut self.life else { return };
        self.around.oracle.started(self.id, group);
        match life.host.starter.start(specs) {
            Ok(started) => life.groups.extend(started.into_iter().map(|s| (s.group, s))),
            // It was quarantined for what it lacks, and stays so until somebody replaces it.
            Err(StartError::Quarantined(_)) if self.lacks_something() => {}
            Err(error) => self.around.oracle.violate(format!("host {} can't start a replica: {error}", self.id)),
        }
    }

    /// Ends the process. Its memory is gone; with `power` also what the disk has not synced.
    pub fn stop(&mut self, power: bool, restart_at: Time) {
        self.disk.set_now(self.around.clock.now());
        if power {
            self.disk.power_loss()
        } else {
            self.disk.kill()
        }
        self.clear_faults();
        self.is_failing = false;
        self.around.network.leave(self.id);
        if let Some(life) = self.life.take() {
            // Whoever still holds a part of the former life can do nothing with it.
            life.transport.close();
        }
        self.cabinets.lock().values().for_each(|cabinet| cabinet.lock().stop(power));
        self.restart_at = Some(restart_at);
    }

    /// The world has ended: what its lives had is let go of. Returns what tells whether it has really gone.
    pub fn end(&mut self) -> Vec<Weak<HostShared>> {
        self.disk.discard();
        self.life = None;
        let end = |(shared, spawner): (Arc<HostShared>, Arc<SimSpawner>)| {
            // As in a host that closes: first the jobs, which leave their words to the workers as they end.
            while !spawner.take_new().is_empty() {}
            shared.forget_commands();
            shared.let_go();
            Arc::downgrade(&shared)
        };
        self.lived.drain(..).map(end).collect()
    }

    /// Its directory is on another disk from here on, one that does what it is asked to.
    pub(crate) fn replace_disk(&mut self, disk: SimDisk) {
        self.disk = disk;
        (self.sync_fails, self.tight) = (false, false);
    }

    /// No sync fails any more.
    pub fn clear_faults(&mut self) {
        self.disk.clear_faults();
        self.sync_fails = false;
    }

    /// Its disk holds no more than it does now and this much.
    pub fn fill_disk(&mut self, left_bytes: u64) {
        self.tight = true;
        self.disk.fill_to(left_bytes);
    }

    /// Its disk has room again.
    pub fn make_room(&mut self) {
        self.tight = false;
        self.disk.set_capacity(u64::MAX);
    }

    /// The next sync fails.
    pub fn fail_sync(&mut self) {
        self.sync_fails = true;
        self.disk.inject(SimOp::Sync, 0, io::ErrorKind::Other);
    }

    /// What must not have happened in this life.
    pub fn complaint(&self) -> Option<String> {
        let counters = &self.life.as_ref()?.host.shared.counters;
        let count = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
        let (violations, machines, bad) =
            (count(&counters.violations), count(&counters.machine_failures), count(&counters.bad_frames));
        // Who forgot what it said is told of what it never heard of; a log with a hole in it can't be gone on with.
        let violations = if self.lacks_something() { 0 } else { violations };
        (violations + machines + bad > 0).then(|| {
            let id = self.id;
            format!(
                "host {id} quarantined {violations} replicas, {machines} machines failed, {bad} frames were malformed"
            )
        })
    }

    /// Whether its store is not what it was, and nobody has noticed yet.
    fn lacks_something(&self) -> bool {
        self.as_before || self.is_rotten || self.is_put_back
    }

    /// Whether the log store has failed, so that the process must be started again.
    pub fn has_failed(&self) -> bool {
        self.life.as_ref().is_some_and(|l| l.host.shared.has_failed.load(Ordering::Relaxed))
    }
}

impl Life {
    /// The groups that are here and never run again as what they were.
    pub(crate) fn quarantined(&self) -> Vec<QuarantinedReplica> {
        self.host.starter.quarantined()
    }

    /// How far this host's store has come.
    pub(crate) fn own_standing(&self) -> Standing {
        let openings = &self.host.shared.openings;
        Standing { incarnation: openings.incarnation(), place: openings.place(), ..Standing::default() }
    }

    /// What this host knows of another one's store.
    pub(crate) fn standing_of(&self, host: HostId) -> Option<Standing> {
        self.host.shared.stores.standing(host)
    }

    /// The workers that have something to do now.
    pub fn runnable(&mut self, now: Time, job_step_nanos: u64, out: &mut Vec<Role>) {
        self.take_jobs(now, job_step_nanos);
        let here = self.clock.now();
        for at in 0..self.wakes.len() {
            let role = self.role(at);
            let notified = match role {
                Role::Step(i) => self.notifiers.step[i].take(),
                Role::Apply(i) => self.notifiers.apply[i].take(),
                Role::Writer => self.notifiers.writer.take(),
                Role::Poller | Role::Job(_) => false,
            };
            let wake = &mut self.wakes[at];
            wake.pending |= notified;
            if wake.paused_until <= now && (wake.pending || wake.next.is_some_and(|t| t <= here)) {
                out.push(role);
            }
        }
        out.extend((0..self.jobs.len()).filter(|&i| self.jobs[i].not_before <= now).map(Role::Job));
    }

    /// The protocol state of a group's replica here.
    pub fn core(&self, group: GroupId) -> Option<&Core> {
        let mut replicas = self.host.steps.iter().flat_map(|s| s.replicas());
        replicas.find(|r| r.config.group == group).map(|r| &r.core)
    }

    /// Whether this host takes another one to be dead.
    pub fn suspects(&self, other: HostId) -> bool {
        self.host.shared.peers.is_suspected(other)
    }

    /// A group whose replica here is awake.
    pub fn awake(&self) -> Option<GroupId> {
        let mut replicas = self.host.steps.iter().flat_map(|s| s.replicas());
        replicas.find(|r| !r.core.is_quiet()).map(|r| r.config.group)
    }

    /// What the replica of a group here is like.
    pub fn describe(&self, group: GroupId) -> Option<String> {
        let replica = self.host.steps.iter().flat_map(|s| s.replicas()).find(|r| r.config.group == group)?;
        let core = &replica.core;
        let applied = replica.shared.published.applied.load(Ordering::Relaxed);
        Some(format!(
            "{}{} {:?} of term {} led by {:?}: log {:?} to {:?}, durable {}, commit {}, handed {}, applied {applied}",
            core.replica(),
            if core.is_quiet() { ", silent," } else { "" },
            core.role(),
            core.term(),
            core.leader(),
            core.start(),
            core.last(),
            core.durable(),
            core.commit(),
            core.handed()
        ))
    }

    /// Where jobs are slow, the first step takes as long as the others.
    fn take_jobs(&mut self, now: Time, takes_nanos_max: u64) {
        for job in self.spawner.take_new() {
            let not_before = now.plus_nanos(self.pace.below(takes_nanos_max + 1));
            self.jobs.push(RunningJob { job, not_before });
        }
    }

    fn role(&self, at: usize) -> Role {
        let steps = self.host.steps.len();
        match at {
            0 => Role::Poller,
            at if at <= steps => Role::Step(at - 1),
            at if at == self.wakes.len() - 1 => Role::Writer,
            at => Role::Apply(at - 1 - steps),
        }
    }

    /// When a worker has something to do, if nobody tells it anything.
    pub fn next(&self) -> Option<Time> {
        let wakes = self.wakes.iter().filter_map(|w| {
            let at = if w.pending { Some(Time::ZERO) } else { w.next.map(|t| self.clock.in_world(t)) };
            at.map(|t| t.max(w.paused_until))
        });
        wakes.chain(self.jobs.iter().map(|j| j.not_before)).min()
    }

    /// Frames have arrived.
    pub fn arrived(&mut self) {
        self.wakes[0].pending = true;
    }

    /// The thread of one worker is not scheduled for a while.
    pub fn pause(&mut self, worker: u64, until: Time) {
        let at = (worker % self.wakes.len() as u64) as usize;
        self.wakes[at].paused_until = until;
    }

    /// None of its threads is scheduled for a while.
    pub fn suspend(&mut self, until: Time) {
        self.wakes.iter_mut().for_each(|wake| wake.paused_until = until);
        self.jobs.iter_mut().for_each(|job| job.not_before = job.not_before.max(until));
    }

    /// Runs one round of a worker, and what is checked after it.
    pub fn run(&mut self, role: Role, now: Time, around: &Surroundings, id: HostId) {
        self.disk.set_now(now);
        let at = match role {
            Role::Job(i) => return self.run_job(i, now, around.swarm.job_step_nanos),
            Role::Poller => 0,
            Role::Step(i) => 1 + i,
            Role::Apply(i) => 1 + self.host.steps.len() + i,
            Role::Writer => self.wakes.len() - 1,
        };
        self.wakes[at].pending = false;
        let here = self.clock.now();
        let work = match role {
            Role::Step(i) => {
                let worker = &mut self.host.steps[i];
                let work = worker.run_round(here);
                worker.replicas().for_each(|replica| around.oracle.observe(id, replica));
                work
            }
            Role::Apply(i) => self.host.applies[i].run_round(here),
            Role::Writer => self.write(now, here),
            Role::Poller | Role::Job(_) => self.host.poller.run_round(here),
        };
        self.wakes[at].pending |= work.again;
        self.wakes[at].next = work.next;
    }

    /// While a write is under way there is nothing to do before it completes.
    fn write(&mut self, now: Time, here: Time) -> Work {
        let work = self.host.writer.run_round(here);
        if !work.again {
            return work;
        }
        let under_way = self.disk.next_completion().map_or(0, |completes| completes.nanos_since(now));
        let completes = here.plus_nanos(under_way.max(LOOK_AGAIN_NANOS));
        let next = work.next.filter(|t| *t > here).map_or(completes, |t| t.min(completes));
        Work { again: false, next: Some(next), ..work }
    }

    fn run_job(&mut self, at: usize, now: Time, takes_nanos_max: u64) {
        match self.jobs[at].job.step(STEP_BYTES) {
            JobState::Again => self.jobs[at].not_before = now.plus_nanos(self.pace.below(takes_nanos_max + 1)),
            JobState::Blocked => self.jobs[at].not_before = now.plus_nanos(BLOCKED_NANOS),
            JobState::Done => drop(self.jobs.remove(at)),
        }
    }
}
