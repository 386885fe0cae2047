//! Several hosts driven by hand, whose frames pass through the test: it may drop, keep, change and replay them.

use crate::alone::{Alone, GROUP, Jobs, MILLI, TestClock};
use crate::list::List;
use crate::shelf::{Shelf, Storage};
use bytes::{Bytes, BytesMut};
use longboat_engine::{
    Changed, EngineConfig, GroupShared, Host, HostParts, Notifiers, Openings, PeerFile, PeerStores, Rare,
    ReplicaConfig, SnapshotOptions, SnapshotOutcome, Start, StartSpec, Worker,
};
use longboat_io::sim::SimDisk;
use longboat_io::{Clock, RealDisk, SharedDisk, Spawner};
use longboat_logdb::{KeyValue, SharedLog, SharedLogConfig};
use longboat_raft::{ConfigChange, HostId, Index, Member, Membership, ProposeOptions, ReplicaId, StoreId, Time};
use longboat_rsm::snapshot::SnapshotStore;
use longboat_rsm::{Machine, OnDisk, Pending, RequestError};
use longboat_transport::{FrameSink, Lane, Sent, Transport, TransportStats};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Rounds of a log writer before what it submitted completes.
const ROUNDS_MAX: usize = 50;

/// A frame on its way.
#[derive(Clone, Debug)]
pub struct Frame {
    pub from: HostId,
    pub to: HostId,
    pub lane: Lane,
    pub bytes: Bytes,
}

/// What a test does with a frame: what it returns arrives.
pub type Filter = Box<dyn FnMut(Frame) -> Option<Frame> + Send>;

/// The network between the hosts.
#[derive(Default)]
pub struct Wires {
    arrived: Mutex<Vec<VecDeque<Frame>>>,
    filter: Mutex<Option<Filter>>,
    says: AtomicBool,
}

impl Wires {
    /// A frame arrives, whatever the filter says.
    pub fn inject(&self, frame: Frame) {
        let mut arrived = self.arrived.lock();
        if let Some(queue) = arrived.get_mut(frame.to.0 as usize - 1) {
            queue.push_back(frame);
        }
    }

    /// From now on every frame goes through this.
    pub fn filter(&self, filter: impl FnMut(Frame) -> Option<Frame> + Send + 'static) {
        *self.filter.lock() = Some(Box::new(filter));
    }

    /// Whether who sends a frame that the filter drops is told so.
    pub fn says_what_is_lost(&self, says: bool) {
        self.says.store(says, Ordering::Relaxed);
    }

    /// All frames arrive again.
    pub fn open(&self) {
        *self.filter.lock() = None;
    }
}

struct Wire {
    host: HostId,
    wires: Arc<Wires>,
}

impl Transport for Wire {
    fn send(&self, to: HostId, lane: Lane, parts: &[Bytes]) -> Sent {
        let mut bytes = BytesMut::new();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let frame = Frame { from: self.host, to, lane, bytes: bytes.freeze() };
        let frame = match &mut *self.wires.filter.lock() {
            Some(filter) => filter(frame),
            None => Some(frame),
        };
        match frame {
            Some(frame) => self.wires.inject(frame),
            None if self.wires.says.load(Ordering::Relaxed) => return Sent::Unreachable,
            None => {}
        }
        Sent::Queued
    }

    fn poll(&self, sink: &mut dyn FrameSink) -> usize {
        let taken = std::mem::take(&mut self.wires.arrived.lock()[self.host.0 as usize - 1]);
        let count = taken.len();
        for frame in taken {
            sink.frame(frame.from, frame.lane, frame.bytes);
        }
        count
    }

    fn wait(&self, _timeout: Duration) {}
    fn wake(&self) {}
    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }
    fn close(&self) {}
}

/// One of the hosts.
pub struct One {
    pub host: Host<SharedLog>,
    pub jobs: Arc<Jobs>,
    pub dir: TempDir,
    pub shared: Arc<GroupShared>,
    pub storage: Storage,
    /// Its log writer does not run.
    pub writer_stands: bool,
    /// Its snapshot pool does not run.
    pub pool_stands: bool,
}

/// The log writer does all that there is, and what it submits to a simulated disk completes.
pub fn write(one: &mut One, disk: Option<&SimDisk>, now: Time) {
    for _ in 0..ROUNDS_MAX {
        // With a simulated disk it has more to do until what it submitted completes.
        (0..ROUNDS_MAX).find(|_| !one.host.writer.run_round(now).again);
        match disk.and_then(|disk| disk.next_completion()) {
            Some(at) => disk.expect("it has a completion").set_now(at),
            None => return,
        }
    }
}

/// Hosts with one on-disk group: the first has the only voter, the others are non-voting members that have not started.
pub struct Trio {
    pub clock: Arc<TestClock>,
    pub wires: Arc<Wires>,
    /// By position; those that are not started are `None`.
    pub hosts: Vec<Option<One>>,
    pub change: fn(&mut ReplicaConfig),
    /// The hosts' disks, if they are simulated.
    pub disks: Vec<SimDisk>,
    /// The state machine is a [`List`] in memory, in place of a [`Shelf`].
    pub in_memory: bool,
}

pub fn member(host: u64) -> Member {
    Member { host: HostId(host), store: StoreId::ZERO }
}

impl Trio {
    /// The first host leads, with the others' replicas as non-voting members.
    pub fn new(others: u64, change: fn(&mut ReplicaConfig)) -> Self {
        let mut trio = Self::down(others + 1, change);
        let first = Membership::from_voters([(ReplicaId(1), member(1))]);
        trio.start(1, Start::Bootstrap(Arc::new(first)));
        trio.pass(300);
        for other in 2..=others + 1 {
            trio.add(other);
        }
        trio
    }

    /// Three hosts, each with a voter.
    pub fn voters() -> Self {
        let mut trio = Self::down(3, |_| {});
        trio.bootstrap();
        trio
    }

    /// So many hosts, none of which has started.
    pub fn down(count: u64, change: fn(&mut ReplicaConfig)) -> Self {
        let clock = Arc::new(TestClock(AtomicU64::new(1000 * MILLI)));
        let wires = Arc::new(Wires::default());
        *wires.arrived.lock() = (0..count).map(|_| VecDeque::new()).collect();
        let hosts = (0..count).map(|_| None).collect();
        Self { clock, wires, hosts, change, disks: Vec::new(), in_memory: false }
    }

    /// All hosts start, each with a voter.
    pub fn bootstrap(&mut self) {
        let count = self.hosts.len() as u64;
        for id in 1..=count {
            let all = Membership::from_voters((1..=count).map(|i| (ReplicaId(i), member(i))));
            self.start(id, Start::Bootstrap(Arc::new(all)));
        }
    }

    /// The host that leads, once all that are up agree on it.
    pub fn leader(&mut self) -> u64 {
        let agreed = |trio: &Self| {
            let mut up = trio.hosts.iter().flatten().map(|one| one.shared.leader());
            let first = up.next().flatten()?;
            let is_up = trio.hosts[first.1.0 as usize - 1].is_some();
            (is_up && up.all(|leader| leader == Some(first))).then_some(first.1.0)
        };
        self.until("a leader", |trio| agreed(trio).is_some());
        agreed(self).expect("just found")
    }

    /// A host is gone for good.
    pub fn kill(&mut self, id: u64) {
        self.hosts[id as usize - 1] = None;
    }

    /// A host with a simulated disk dies, with its power or without. What it leaves is given back.
    pub fn die(&mut self, id: u64, power: bool) -> (TempDir, Storage) {
        let disk = &self.disks[id as usize - 1];
        if power {
            disk.power_loss();
        } else {
            disk.kill();
        }
        let One { host, shared, dir, storage, jobs, .. } = self.hosts[id as usize - 1].take().unwrap();
        jobs.clear();
        drop((host, shared));
        storage.lock().open = false;
        self.wires.arrived.lock()[id as usize - 1].clear();
        (dir, storage)
    }

    /// Host `id` starts its replica, with new directories.
    pub fn start(&mut self, id: u64, start: Start) {
        self.start_on(id, start, TempDir::new().unwrap(), Storage::default());
    }

    /// Host `id` is killed and starts again, with what this makes of its storage.
    pub fn restart(&mut self, id: u64, storage: impl FnOnce(Storage) -> Storage) {
        let One { host, shared, dir, storage: was, .. } = self.hosts[id as usize - 1].take().unwrap();
        drop((host, shared));
        was.lock().open = false;
        self.start_on(id, Start::Restart, dir, storage(was));
    }

    /// Host `id` starts its replica on what is there.
    pub fn start_on(&mut self, id: u64, start: Start, dir: TempDir, storage: Storage) {
        let (disk, path): (SharedDisk, &Path) = match self.disks.get(id as usize - 1) {
            Some(disk) => (disk.process(), Path::new("/data")),
            None => (Arc::new(RealDisk), dir.path()),
        };
        let log = SharedLogConfig {
            segment_bytes: 4 << 20,
            journal_bytes_max: 64 << 20,
            key_value: KeyValue::Memory,
            ..SharedLogConfig::new(path, HostId(id))
        };
        let log = SharedLog::open(Arc::clone(&disk), log).expect("opens");
        let config = EngineConfig {
            host: HostId(id),
            seed: id << 32 | self.clock.now().0 >> 20,
            snapshot_sends_max: 4,
            incarnation: self.clock.now().0,
            ..Alone::engine()
        };
        let jobs = Arc::new(Jobs::default());
        let notifiers = Notifiers::separate(&config);
        let file = PeerFile::new(Arc::clone(&disk), path);
        let parts = HostParts {
            config,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            openings: Openings::begin(file.clone(), log.store, self.clock.now().0, log.place).expect("written"),
            log,
            stores: PeerStores::open(file).expect("readable"),
            snapshots: SnapshotStore::new(disk, path.join("snapshots")),
            spawner: Arc::clone(&jobs) as Arc<dyn Spawner>,
            transport: Arc::new(Wire { host: HostId(id), wires: Arc::clone(&self.wires) }),
        };
        let host = Host::new(parts, &notifiers);
        let shared = host.starter.start(vec![self.spec(id, start, &storage)]).expect("starts").remove(0);
        let one = One { host, jobs, dir, shared, storage, writer_stands: false, pool_stands: false };
        self.hosts[id as usize - 1] = Some(one);
    }

    fn spec(&self, id: u64, start: Start, storage: &Storage) -> StartSpec {
        let mut config = Alone::config(id);
        (self.change)(&mut config);
        let (machine, machine_type) = match self.in_memory {
            true => (List::default().into_dyn(), std::any::TypeId::of::<List>()),
            false => (OnDisk(Shelf::on(storage)).into_dyn(), std::any::TypeId::of::<OnDisk<Shelf>>()),
        };
        StartSpec { start, config, machine, machine_type }
    }

    /// Host `id` stops its replica and starts it again, when its clock says `at`.
    pub fn next_life(&mut self, id: u64, at: Time) {
        let storage = Arc::clone(&self.one(id).storage);
        assert!(self.one(id).host.starter.stop(GROUP));
        (0..ROUNDS_MAX).find(|_| {
            self.round();
            self.one(id).host.shared.group(GROUP).is_none()
        });
        storage.lock().open = false;
        let spec = self.spec(id, Start::Restart, &storage);
        let now = self.clock.0.swap(at.0, Ordering::Relaxed);
        let one = self.one(id);
        one.shared = one.host.starter.start(vec![spec]).expect("it has stopped").remove(0);
        self.clock.0.store(now, Ordering::Relaxed);
    }

    pub fn one(&mut self, id: u64) -> &mut One {
        self.hosts[id as usize - 1].as_mut().unwrap()
    }

    fn add(&mut self, id: u64) {
        let change = ConfigChange::add_learner(ReplicaId(id), member(id));
        let deadline = self.clock.now().plus_nanos(5000 * MILLI);
        let shared = Arc::clone(&self.one(1).shared);
        let pending: Pending<Changed> = shared.request(deadline, |reply| Rare::Change(change, reply)).unwrap();
        self.pass(20);
        pending.wait_timeout(Duration::ZERO).expect("resolved").expect("added");
    }

    /// Host `id` starts its replica, which joins.
    pub fn join(&mut self, id: u64) {
        self.start(id, Start::Join);
    }

    /// Lets this much time pass.
    pub fn pass(&mut self, millis: u64) {
        for _ in 0..millis {
            self.clock.0.fetch_add(MILLI, Ordering::Relaxed);
            self.round();
        }
    }

    /// One round of every worker that does not stand.
    pub fn round(&mut self) {
        let now = self.clock.now();
        for (at, one) in self.hosts.iter_mut().enumerate() {
            let Some(one) = one else { continue };
            one.host.poller.run_round(now);
            one.host.steps[0].run_round(now);
            if !one.writer_stands {
                write(one, self.disks.get(at), now);
            }
            one.host.steps[0].run_round(now);
            one.host.applies[0].run_round(now);
            if !one.pool_stands {
                one.jobs.step_all();
            }
        }
    }

    /// Passes a millisecond in which the step worker of host `id` does nothing.
    pub fn pass_without_steps_of(&mut self, id: u64) {
        let mut one = self.hosts[id as usize - 1].take().expect("it is up");
        self.pass(1);
        let now = self.clock.now();
        one.host.poller.run_round(now);
        one.host.applies[0].run_round(now);
        one.jobs.step_all();
        self.hosts[id as usize - 1] = Some(one);
    }

    /// The step worker of host `id` does what there is to do, and then its apply worker: what that says is not heard yet.
    pub fn pass_without_steps_after_apply_of(&mut self, id: u64) {
        let now = self.clock.now();
        let one = self.one(id);
        for _ in 0..3 {
            one.host.steps[0].run_round(now);
        }
        one.host.applies[0].run_round(now);
    }

    /// Passes time until this holds.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.pass(1);
        }
        panic!("no {what}");
    }

    /// Proposes these values on the first host and waits until they are applied there.
    pub fn put(&mut self, values: std::ops::Range<u64>) {
        self.put_on(1, values);
    }

    /// Proposes these values on a host and waits until they are applied there.
    pub fn put_on(&mut self, id: u64, values: std::ops::Range<u64>) {
        let values: Vec<u64> = values.collect();
        let shared = Arc::clone(&self.one(id).shared);
        for values in values.chunks(100) {
            let (last, options) = (values[values.len() - 1], ProposeOptions::default());
            let deadline = self.clock.now().plus_nanos(10_000 * MILLI);
            shared.enqueue::<OnDisk<Shelf>>(values.iter().copied(), options, deadline).unwrap();
            self.until("applied values", |trio| trio.one(id).storage.lock().values.last() == Some(&last));
        }
    }

    /// Saves a snapshot on host `id`; the log goes behind it.
    pub fn save(&mut self, id: u64) -> Result<Index, RequestError> {
        let asked = self.one(id).shared.enqueue_snapshot(SnapshotOptions::default(), Time(u64::MAX))?;
        self.pass(20);
        match asked.wait_timeout(Duration::ZERO).expect("resolved")? {
            SnapshotOutcome::Saved { index } => Ok(index),
            other => panic!("{other:?}"),
        }
    }

    /// The values that a host's storage has.
    pub fn values(&mut self, id: u64) -> Vec<u64> {
        self.one(id).storage.lock().values.clone()
    }

    /// Waits until a host has these values.
    pub fn until_values(&mut self, id: u64, values: std::ops::Range<u64>) {
        let values: Vec<u64> = values.collect();
        self.until("equal values", |trio| trio.values(id) == values);
        self.check();
    }

    /// Nothing has gone wrong anywhere.
    pub fn check(&self) {
        for one in self.hosts.iter().flatten() {
            let counters = &one.host.shared.counters;
            let (failures, violations) =
                (counters.machine_failures.load(Ordering::Relaxed), counters.violations.load(Ordering::Relaxed));
            assert_eq!((failures, violations), (0, 0), "host {}", one.host.shared.config.host);
            assert_eq!(*one.host.shared.failed.lock(), None, "host {}", one.host.shared.config.host);
        }
    }

    /// The index of the newest snapshot that a host has recorded.
    pub fn recorded(&mut self, id: u64) -> Index {
        Index(self.one(id).shared.published.snapshot.load(Ordering::Relaxed))
    }

    pub fn start_index(&mut self, id: u64) -> Index {
        Index(self.one(id).shared.published.start.load(Ordering::Relaxed))
    }

    /// The indexes of the snapshots that a host has files of.
    pub fn files(&mut self, id: u64) -> Vec<Index> {
        self.one(id).host.snapshots.store().list(GROUP, ReplicaId(id)).unwrap()
    }
}
