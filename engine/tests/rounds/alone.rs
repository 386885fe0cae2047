//! One host without any other, driven by hand.

use crate::wire::Wire;
use longboat_engine::{
    EngineConfig, GroupShared, Host, HostParts, Notifiers, Openings, PeerFile, PeerStores, ReplicaConfig, Start,
    StartError, StartSpec, Worker,
};
use longboat_io::sim::SimDisk;
use longboat_io::{Clock, Job, JobState, Progress, RealDisk, Replaced, SharedDisk, Spawner};
use longboat_logdb::{GroupState, KeyValue, SharedLog, SharedLogConfig};
use longboat_raft::{GroupId, HostId, Member, Membership, ReplicaId, StoreId, Time};
use longboat_rsm::machine::WitnessMachine;
use longboat_rsm::snapshot::{Compression, SnapshotStore};
use longboat_rsm::{Machine, Pending, RequestError};
use longboat_transport::Transport;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub const GROUP: GroupId = GroupId(1);
const HOST: HostId = HostId(1);
pub const MILLI: u64 = 1_000_000;
/// Rounds after which a worker that still has more to do at once is taken to spin.
const ROUNDS_MAX: usize = 50;

#[derive(Debug)]
pub struct TestClock(pub AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }
}

/// Jobs, stepped by hand; and what a pool of threads would say of those that hang.
#[derive(Default)]
pub struct Jobs(Mutex<Vec<Box<dyn Job>>>, Mutex<Option<Replaced>>, AtomicBool);

impl Jobs {
    /// Each job takes a step.
    pub fn step_all(&self) {
        self.step_from(0);
    }

    /// Each job but the oldest takes a step.
    pub fn step_all_but_the_oldest(&self) {
        self.step_from(1);
    }

    /// From now on this becomes of steps that hang.
    pub fn replaces(&self, replaced: Replaced) {
        *self.1.lock() = Some(replaced);
    }

    /// All threads are held by steps that hang, or not.
    pub fn is_stuck(&self, stuck: bool) {
        self.2.store(stuck, Ordering::Relaxed);
    }

    /// Jobs that are not done.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// All jobs are gone, as with their host.
    pub fn clear(&self) {
        let jobs = std::mem::take(&mut *self.0.lock());
        drop(jobs);
    }

    fn step_from(&self, first: usize) {
        let mut jobs = std::mem::take(&mut *self.0.lock());
        let mut at = 0;
        jobs.retain_mut(|job| {
            at += 1;
            at <= first || job.step(1 << 20) != JobState::Done
        });
        self.0.lock().splice(0..0, jobs);
    }
}

impl Spawner for Jobs {
    fn spawn(&self, job: Box<dyn Job>) {
        self.0.lock().push(job);
    }

    fn replace(&self, _: &Arc<Progress>) -> Replaced {
        self.1.lock().unwrap_or(Replaced::Ended)
    }

    fn is_stuck(&self) -> bool {
        self.2.load(Ordering::Relaxed)
    }
}

/// A host with one group, and nobody else.
pub struct Alone {
    pub host: Host<SharedLog>,
    pub clock: Arc<TestClock>,
    pub wire: Arc<Wire>,
    jobs: Arc<Jobs>,
    pub found: Vec<GroupState>,
    sim: Option<SimDisk>,
    pub store: StoreId,
}

impl Drop for Alone {
    /// Jobs hold the host, and it holds them: a host that dies lets go of both.
    fn drop(&mut self) {
        self.jobs.clear();
    }
}

impl Alone {
    pub fn open(dir: &Path) -> Self {
        Self::open_on(Arc::new(RealDisk), dir, None).expect("opens")
    }

    /// With a store as it ships, RocksDB and all, on a disk that may have stopped.
    pub fn open_whole(disk: SharedDisk, dir: &Path) -> Option<Self> {
        Self::open_with(disk, dir, None, KeyValue::RocksDb, Self::engine())
    }

    /// As [`Alone::open`], with these settings.
    pub fn open_set(dir: &Path, config: EngineConfig) -> Self {
        Self::open_with(Arc::new(RealDisk), dir, None, KeyValue::Memory, config).expect("opens")
    }

    /// As [`Alone::open`]; nothing if it does not open.
    pub fn try_open(dir: &Path) -> Option<Self> {
        Self::open_on(Arc::new(RealDisk), dir, None)
    }

    /// On a simulated disk, which may have stopped: then it does not open.
    pub fn open_simulated(disk: &SimDisk) -> Option<Self> {
        Self::open_on(disk.process(), Path::new("/data"), Some(disk.clone()))
    }

    fn open_on(disk: SharedDisk, dir: &Path, sim: Option<SimDisk>) -> Option<Self> {
        Self::open_with(disk, dir, sim, KeyValue::Memory, Self::engine())
    }

    fn open_with(
        disk: SharedDisk,
        dir: &Path,
        sim: Option<SimDisk>,
        key_value: KeyValue,
        config: EngineConfig,
    ) -> Option<Self> {
        let store = SharedLogConfig {
            segment_bytes: 4 << 20,
            journal_bytes_max: 64 << 20,
            key_value,
            ..SharedLogConfig::new(dir, HOST)
        };
        let log = SharedLog::open(Arc::clone(&disk), store).ok()?;
        let (found, store) = (log.groups.clone(), log.store);
        let file = PeerFile::new(Arc::clone(&disk), dir);
        let (clock, jobs) = (Arc::new(TestClock(AtomicU64::new(1000 * MILLI))), Arc::new(Jobs::default()));
        let (wire, notifiers) = (Arc::new(Wire::default()), Notifiers::separate(&config));
        let parts = HostParts {
            config,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            openings: Openings::begin(file.clone(), log.store, 1, log.place).ok()?,
            log,
            stores: PeerStores::open(file).ok()?,
            snapshots: SnapshotStore::new(disk, dir.join("snapshots")),
            spawner: Arc::clone(&jobs) as Arc<dyn Spawner>,
            transport: Arc::clone(&wire) as Arc<dyn Transport>,
        };
        Some(Self { host: Host::new(parts, &notifiers), clock, wire, jobs, found, sim, store })
    }

    /// Settings of a host with one worker of each kind.
    pub fn engine() -> EngineConfig {
        EngineConfig {
            host: HOST,
            step_workers: 1,
            apply_workers: 1,
            payload_bytes_max: 1 << 20,
            chunk_entries_max: 16,
            queue_entries_max: 256,
            queue_bytes_max: 4 << 20,
            queue_reads_max: 256,
            snapshot_saves_max: 1,
            snapshot_sends_max: 1,
            snapshot_receives_max: 1,
            snapshot_send_bytes_per_s: 0,
            snapshot_receive_bytes_per_s: 0,
            log_cache_bytes_max: 1 << 20,
            log_memory_bytes_max: 1 << 30,
            disk_reserve_bytes: 0,
            seed: 1,
            incarnation: 1,
            suspect_after_nanos: 0,
            apply_stall_nanos: 1000 * MILLI,
            snapshot_stall_nanos: 5000 * MILLI,
        }
    }

    /// Starts a replica without a state machine of any use.
    pub fn start(&self, replica: u64, start: Start) -> Result<Arc<GroupShared>, StartError> {
        self.start_with(Self::config(replica), start)
    }

    /// As [`Alone::start`], with these settings.
    pub fn start_with(&self, config: ReplicaConfig, start: Start) -> Result<Arc<GroupShared>, StartError> {
        let (machine, machine_type) = (Box::new(WitnessMachine), std::any::TypeId::of::<WitnessMachine>());
        let spec = StartSpec { start, config, machine, machine_type };
        Ok(self.host.starter.start(vec![spec])?.remove(0))
    }

    /// Starts replica 1 with this state machine.
    pub fn start_machine<S: Machine>(&self, config: ReplicaConfig, start: Start, machine: S) -> Arc<GroupShared> {
        let spec = StartSpec { start, config, machine: machine.into_dyn(), machine_type: std::any::TypeId::of::<S>() };
        self.host.starter.start(vec![spec]).expect("starts").remove(0)
    }

    pub fn config(replica: u64) -> ReplicaConfig {
        ReplicaConfig {
            group: GROUP,
            replica: ReplicaId(replica),
            election_timeout_nanos: 100 * MILLI,
            heartbeat_interval_nanos: 25 * MILLI,
            snapshot_entries: 0,
            compaction_overhead: 0,
            auto_compaction: true,
            snapshots_kept: 1,
            snapshot_compression: Compression::None,
            entry_compression: Compression::None,
            pre_vote: true,
            check_quorum: true,
            quiesce_after_nanos: 0,
            unapplied_bytes_max: 64 << 20,
            preferred: None,
            witness: false,
            sessions_max: 16,
        }
    }

    /// Rounds of the step worker until it has nothing to do at once. Returns how many.
    pub fn step(&mut self) -> usize {
        let now = self.clock.now();
        let again = |_: &usize| self.host.steps[0].run_round(now).again;
        let rounds = (1..=ROUNDS_MAX).take_while(again).count() + 1;
        assert!(rounds <= ROUNDS_MAX, "the worker finds something to do in each of {ROUNDS_MAX} rounds");
        rounds
    }

    pub fn write(&mut self) {
        for _ in 0..ROUNDS_MAX {
            // A host whose store has failed has more to do for ever.
            (0..ROUNDS_MAX).find(|_| !self.host.writer.run_round(self.clock.now()).again);
            if !self.complete_writes() {
                return;
            }
        }
    }

    /// Lets what is under way on a simulated disk complete. Returns whether there was anything.
    fn complete_writes(&self) -> bool {
        let Some((disk, at)) = self.sim.as_ref().and_then(|disk| Some((disk, disk.next_completion()?))) else {
            return false;
        };
        disk.set_now(at);
        true
    }

    /// Its jobs, for who steps them within a call that is made with the host at hand.
    pub fn jobs(&self) -> Arc<Jobs> {
        Arc::clone(&self.jobs)
    }

    /// One step of each job.
    pub fn step_jobs(&self) {
        let mut jobs = std::mem::take(&mut *self.jobs.0.lock());
        jobs.retain_mut(|job| job.step(1 << 20) != JobState::Done);
        self.jobs.0.lock().append(&mut jobs);
    }

    pub fn run_jobs(&self) {
        for _ in 0..10 * ROUNDS_MAX {
            self.step_jobs();
            self.complete_writes();
            if self.jobs.0.lock().is_empty() {
                return;
            }
        }
    }

    /// Lets this much time pass, in steps that are short enough for every timer.
    pub fn pass(&mut self, millis: u64) {
        for _ in 0..millis {
            self.clock.0.fetch_add(MILLI, Ordering::Relaxed);
            self.step();
            self.write();
            self.step();
            self.host.applies[0].run_round(self.clock.now());
        }
    }
}

pub fn voters(count: u64) -> Start {
    let member = |i| (ReplicaId(i), Member { host: HostId(i), store: StoreId::ZERO });
    Start::Bootstrap(Arc::new(Membership::from_voters((1..=count).map(member))))
}

pub fn outcome<T: std::fmt::Debug + Send + 'static>(pending: Pending<T>) -> Result<T, RequestError> {
    pending.wait_timeout(Duration::ZERO).expect("resolved")
}
