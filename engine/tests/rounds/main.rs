//! One host whose workers are driven round by round, on a clock that the test moves and with no other host to speak to: what
//! a round leaves to be done at once, and in which order a group's words reach the journal.

use longboat_engine::{
    Changed, EngineConfig, GroupShared, Host, HostParts, Notifiers, Rare, ReplicaConfig, Start, StartError, StartSpec,
    Worker,
};
use longboat_io::{Clock, Job, JobState, RealDisk, SharedDisk, Spawner};
use longboat_logdb::{GroupState, KeyValue, SharedLog, SharedLogConfig};
use longboat_raft::{ConfigChange, GroupId, HostId, Member, Membership, ReplicaId, StoreId, Time};
use longboat_rsm::machine::WitnessMachine;
use longboat_rsm::snapshot::SnapshotStore;
use longboat_rsm::{Pending, RequestError, Stage};
use longboat_transport::{FrameSink, Lane, Sent, Transport, TransportStats};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const GROUP: GroupId = GroupId(1);
const HOST: HostId = HostId(1);
const MILLI: u64 = 1_000_000;
/// Rounds after which a worker that still has more to do at once is taken to spin.
const ROUNDS_MAX: usize = 50;

#[derive(Debug)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Jobs(Mutex<Vec<Box<dyn Job>>>);

impl Spawner for Jobs {
    fn spawn(&self, job: Box<dyn Job>) {
        self.0.lock().push(job);
    }
}

/// Reaches nobody.
struct Nowhere;

impl Transport for Nowhere {
    fn send(&self, _to: HostId, _lane: Lane, _parts: &[bytes::Bytes]) -> Sent {
        Sent::Unreachable
    }
    fn poll(&self, _sink: &mut dyn FrameSink) -> usize {
        0
    }
    fn wait(&self, _timeout: Duration) {}
    fn wake(&self) {}
    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }
    fn close(&self) {}
}

struct Alone {
    host: Host<SharedLog>,
    clock: Arc<TestClock>,
    jobs: Arc<Jobs>,
    found: Vec<GroupState>,
}

impl Alone {
    fn open(dir: &Path) -> Self {
        let disk: SharedDisk = Arc::new(RealDisk);
        let config = SharedLogConfig {
            segment_bytes: 4 << 20,
            journal_bytes_max: 64 << 20,
            key_value: KeyValue::Memory,
            ..SharedLogConfig::new(dir, HOST)
        };
        let log = SharedLog::open(Arc::clone(&disk), config).expect("opens");
        let found = log.groups.clone();
        let config = EngineConfig {
            host: HOST,
            step_workers: 1,
            apply_workers: 1,
            payload_bytes_max: 1 << 20,
            chunk_entries_max: 16,
            queue_entries_max: 256,
            queue_bytes_max: 4 << 20,
            queue_reads_max: 256,
            snapshot_sends_max: 1,
            snapshot_receives_max: 1,
            snapshot_send_bytes_per_s: 0,
            snapshot_receive_bytes_per_s: 0,
            log_cache_bytes_max: 1 << 20,
            log_memory_bytes_max: 1 << 30,
            seed: 1,
            incarnation: 1,
            suspect_after_nanos: 0,
        };
        let (clock, jobs) = (Arc::new(TestClock(AtomicU64::new(1000 * MILLI))), Arc::new(Jobs::default()));
        let notifiers = Notifiers::separate(&config);
        let parts = HostParts {
            config,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            log,
            snapshots: SnapshotStore::new(disk, dir.join("snapshots")),
            spawner: Arc::clone(&jobs) as Arc<dyn Spawner>,
            transport: Arc::new(Nowhere),
        };
        Self { host: Host::new(parts, &notifiers), clock, jobs, found }
    }

    fn start(&self, replica: u64, start: Start) -> Result<Arc<GroupShared>, StartError> {
        let config = ReplicaConfig {
            group: GROUP,
            replica: ReplicaId(replica),
            election_timeout_nanos: 100 * MILLI,
            heartbeat_interval_nanos: 25 * MILLI,
            snapshot_entries: 0,
            compaction_overhead: 0,
            pre_vote: true,
            check_quorum: true,
            quiesce_after_nanos: 0,
            unapplied_bytes_max: 64 << 20,
            preferred: None,
            witness: false,
            sessions_max: 16,
        };
        let (machine, machine_type) = (Box::new(WitnessMachine), std::any::TypeId::of::<WitnessMachine>());
        let spec = StartSpec { start, config, machine, machine_type };
        Ok(self.host.starter.start(vec![spec])?.remove(0))
    }

    /// Rounds of the step worker until it has nothing to do at once. Returns how many.
    fn step(&mut self) -> usize {
        let now = self.clock.now();
        let again = |_: &usize| self.host.steps[0].run_round(now).again;
        let rounds = (1..=ROUNDS_MAX).take_while(again).count() + 1;
        assert!(rounds <= ROUNDS_MAX, "the worker finds something to do in each of {ROUNDS_MAX} rounds");
        rounds
    }

    fn write(&mut self) {
        while self.host.writer.run_round(self.clock.now()).again {}
    }

    fn run_jobs(&self) {
        let mut jobs = std::mem::take(&mut *self.jobs.0.lock());
        while !jobs.is_empty() {
            jobs.retain_mut(|job| job.step(1 << 20) != JobState::Done);
        }
    }

    /// Lets this much time pass, in steps that are short enough for every timer.
    fn pass(&mut self, millis: u64) {
        for _ in 0..millis {
            self.clock.0.fetch_add(MILLI, Ordering::Relaxed);
            self.step();
            self.write();
            self.step();
            self.host.applies[0].run_round(self.clock.now());
        }
    }
}

fn voters(count: u64) -> Start {
    let member = |i| (ReplicaId(i), Member { host: HostId(i), store: StoreId::ZERO });
    Start::Bootstrap(Box::new(Membership::from_voters((1..=count).map(member))))
}

fn outcome<T: std::fmt::Debug + Send + 'static>(pending: Pending<T>) -> Result<T, RequestError> {
    pending.wait_timeout(Duration::ZERO).expect("resolved")
}

#[test]
fn a_change_that_waits_for_a_leader_leaves_its_worker_nothing_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    // The other two voters are on hosts that nobody can reach: no leader ever comes.
    let shared = alone.start(1, voters(3)).expect("starts");
    alone.pass(300);
    let deadline = alone.clock.now().plus_nanos(500 * MILLI);
    let change = ConfigChange::add_learner(ReplicaId(4), Member { host: HostId(4), store: StoreId::ZERO });
    let pending: Pending<Changed> = shared.request(deadline, |reply| Rare::Change(change, reply)).expect("taken");
    alone.pass(400);
    assert_eq!(alone.step(), 1);
    alone.pass(200);
    let error = outcome(pending).expect_err("no leader came");
    assert_eq!(error, RequestError::Timeout { stage: Stage::NoLeader, may_have_applied: false });
}

#[test]
fn a_change_that_waited_is_made_as_soon_as_there_is_a_leader() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    let shared = alone.start(1, voters(1)).expect("starts");
    let deadline = alone.clock.now().plus_nanos(5000 * MILLI);
    let change = ConfigChange::add_learner(ReplicaId(4), Member { host: HostId(4), store: StoreId::ZERO });
    let pending: Pending<Changed> = shared.request(deadline, |reply| Rare::Change(change, reply)).expect("taken");
    alone.pass(500);
    assert!(outcome(pending).expect("made").membership.learners.contains(&ReplicaId(4)));
}

#[test]
fn a_group_does_not_come_back_before_the_tombstone_of_its_former_replica_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.start(1, voters(1)).expect("starts");
    alone.pass(300);
    assert!(alone.host.starter.stop(GROUP));
    alone.pass(2);
    let removed = alone.host.starter.remove_data(GROUP).expect("stopped");
    // Not written yet.
    alone.step();
    let error = alone.start(2, Start::Join).expect_err("the tombstone is on its way");
    assert!(matches!(error, StartError::BeingRemoved(GROUP)), "{error}");
    alone.pass(2);
    let error = alone.start(2, Start::Join).expect_err("the files are not deleted");
    assert!(matches!(error, StartError::BeingRemoved(GROUP)), "{error}");
    alone.run_jobs();
    outcome(removed).expect("removed");
    assert!(matches!(alone.start(1, voters(1)), Err(StartError::Removed { .. })));
    alone.start(2, Start::Join).expect("under another id");
    alone.pass(10);
    drop(alone);
    let found = Alone::open(dir.path()).found;
    assert_eq!((found[0].removed, found[0].bootstrap.replica), (false, ReplicaId(2)));
}
