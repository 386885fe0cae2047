//! For each guard of a snapshot's life, a scenario that fails when the guard is gone.

use crate::alone::{Alone, GROUP, MILLI, outcome, voters};
use crate::list::List;
use crate::shelf::Shelf;
use crate::trio::{Trio, write};
use longboat_engine::{
    EntryLimits, GroupShared, LogHold, LogPin, LogRequest, Rare, ReplicaConfig, Reply, SnapshotOptions,
    SnapshotOutcome, Start, Worker,
};
use longboat_io::{Clock, RealDisk, SharedDisk};
use longboat_raft::{GroupId, HostId, Index, ProposeOptions, ReplicaId};
use longboat_rsm::snapshot::{Compression, verify_export};
use longboat_rsm::{OnDisk, Pending, Reads, RequestError, SnapshotRefusal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("snapshot-slot-not-checked", a_second_request_is_busy_while_one_waits),
    ("witness-saves", a_witness_is_asked_for_no_snapshot),
    ("unchanged-state-saved", a_request_without_anything_new_is_ignored),
    ("failed-save-counts", a_request_after_a_failed_save_is_not_ignored),
    ("export-ignored", an_export_yields_a_file_though_nothing_is_new),
    ("export-recorded", an_export_leaves_record_and_log_alone),
    ("overhead-wraps", a_log_shorter_than_what_is_kept_stays_whole),
    ("compaction-index-not-checked", the_log_goes_no_further_than_its_snapshot),
    ("pin-ignored", pinned_log_stays_until_its_lease_ends),
    ("older-log-not-kept", the_log_reaches_back_to_the_oldest_snapshot_that_is_kept),
    ("fallback-without-its-log", an_older_snapshot_is_brought_up_to_date_by_the_log),
    ("state-lost-not-seen", nothing_is_asked_of_a_machine_without_state),
    ("wiped-host-is-believed", crate::stores::a_wiped_host_is_not_believed),
    ("rolled-back-host-is-believed", crate::stores::a_host_that_was_rolled_back_is_not_believed),
    ("doubt-ends-with-a-connection", crate::stores::a_host_that_was_rolled_back_is_not_believed),
    ("held-frames-are-lost", crate::stores::what_a_restarted_host_says_is_held_until_it_is_believed),
    ("asked-for-another-store", crate::stores::a_host_that_was_rolled_back_serves_no_more),
    ("rolled-back-and-unaware", crate::stores::a_host_that_was_rolled_back_serves_no_more),
    ("saves-unbounded", snapshots_that_free_most_are_saved_first_and_one_by_one),
    ("abort-not-seen", an_aborted_save_leaves_nothing),
    ("ack-asks-for-no-disk", a_leader_is_woken_for_its_disk_when_followers_were_faster),
    ("durable-without-a-wake", a_leader_is_woken_when_its_entries_are_durable),
];

/// A host with a group of one voter, which leads.
pub struct Led {
    pub dir: Option<TempDir>,
    pub alone: Alone,
    pub shared: Arc<GroupShared>,
    pub fails: Arc<AtomicBool>,
}

impl Led {
    pub fn new(change: impl FnOnce(&mut ReplicaConfig)) -> Self {
        let dir = TempDir::new().unwrap();
        let led = Self::on(Alone::open(dir.path()), voters(1), change);
        assert_eq!(led.shared.leader().map(|l| l.1), Some(ReplicaId(1)));
        Self { dir: Some(dir), ..led }
    }

    /// The group on a host that was opened just now, as it was before or new.
    pub fn on(mut alone: Alone, start: Start, change: impl FnOnce(&mut ReplicaConfig)) -> Self {
        let mut config = Alone::config(1);
        change(&mut config);
        let fails = Arc::<AtomicBool>::default();
        let list = List { fails: Arc::clone(&fails), ..List::default() };
        let shared = alone.start_machine(config, start, list);
        for _ in 0..3 {
            alone.pass(2);
            alone.run_jobs();
        }
        alone.pass(300);
        Self { dir: None, alone, shared, fails }
    }

    /// Proposes these values, one entry each, and waits until they are applied.
    pub fn put(&mut self, values: std::ops::Range<u64>) {
        let deadline = self.alone.clock.0.load(Ordering::Relaxed) + 1_000_000_000;
        let values: Vec<u64> = values.collect();
        let options = ProposeOptions::default();
        self.shared.enqueue::<List>(values.into_iter(), options, longboat_raft::Time(deadline)).unwrap();
        self.alone.pass(5);
    }

    pub fn ask(&self, options: SnapshotOptions) -> Result<Pending<SnapshotOutcome>, RequestError> {
        self.shared.enqueue_snapshot(options, longboat_raft::Time(u64::MAX))
    }

    /// Lets rounds and jobs go on until all is done.
    pub fn settle(&mut self) {
        for _ in 0..5 {
            self.alone.pass(2);
            self.alone.run_jobs();
        }
        self.alone.pass(2);
    }

    /// What a request comes to.
    pub fn snapshot(&mut self, options: SnapshotOptions) -> Result<SnapshotOutcome, RequestError> {
        let pending = self.ask(options)?;
        self.settle();
        outcome(pending)
    }

    /// What a request of the log comes to.
    pub fn log<T: std::fmt::Debug + Send + 'static>(
        &mut self,
        make: impl FnOnce(Reply<T>) -> LogRequest,
    ) -> Result<T, RequestError> {
        let deadline = self.alone.clock.now().plus_nanos(10_000 * MILLI);
        let pending = self.shared.request(deadline, |reply| Rare::Log(make(reply)))?;
        self.settle();
        outcome(pending)
    }

    pub fn saved(&mut self) -> Index {
        match self.snapshot(SnapshotOptions::default()) {
            Ok(SnapshotOutcome::Saved { index }) => index,
            other => panic!("{other:?}"),
        }
    }

    /// What the state machine holds.
    pub fn values(&self) -> Vec<u64> {
        let machine = self.shared.machine.lock();
        let mut reads = Reads::<List>::new();
        let pending = reads.add(());
        machine.lookup(Box::new(reads));
        outcome(pending).unwrap()
    }

    pub fn applied(&self) -> Index {
        Index(self.shared.published.applied.load(Ordering::Relaxed))
    }

    /// The place before the first entry that is kept.
    pub fn start(&self) -> Index {
        Index(self.shared.published.start.load(Ordering::Relaxed))
    }

    /// The indexes of the snapshots that have files.
    pub fn files(&self) -> Vec<Index> {
        self.alone.host.snapshots.store().list(GROUP, ReplicaId(1)).unwrap()
    }

    /// Closes the host as a kill would, and opens it again with the same group.
    pub fn restart(self, change: impl FnOnce(&mut ReplicaConfig)) -> Self {
        let Self { dir, alone, shared, .. } = self;
        drop((alone, shared));
        let alone = Alone::open(dir.as_ref().unwrap().path());
        Self { dir, ..Self::on(alone, Start::Restart, change) }
    }
}

fn a_second_request_is_busy_while_one_waits() {
    let mut led = Led::new(|_| {});
    led.put(0..3);
    let first = led.ask(SnapshotOptions::default()).unwrap();
    assert_eq!(led.ask(SnapshotOptions::default()).map(drop), Err(RequestError::Busy));
    led.settle();
    assert!(matches!(outcome(first), Ok(SnapshotOutcome::Saved { .. })), "the first one is carried out");
}

fn a_witness_is_asked_for_no_snapshot() {
    let dir = TempDir::new().unwrap();
    let alone = Alone::open(dir.path());
    let config = ReplicaConfig { witness: true, ..Alone::config(2) };
    let shared = alone.start_machine(config, Start::Join, List::default());
    let refused = shared.enqueue_snapshot(SnapshotOptions::default(), longboat_raft::Time(u64::MAX)).map(drop);
    assert_eq!(refused, Err(RequestError::SnapshotRefused(SnapshotRefusal::Witness)));
}

fn a_request_without_anything_new_is_ignored() {
    let mut led = Led::new(|_| {});
    led.put(0..3);
    led.saved();
    assert_eq!(led.snapshot(SnapshotOptions::default()), Ok(SnapshotOutcome::Ignored));
    led.put(3..4);
    led.saved();
}

fn a_request_after_a_failed_save_is_not_ignored() {
    let mut led = Led::new(|_| {});
    led.put(0..3);
    led.fails.store(true, Ordering::Relaxed);
    let failed = led.snapshot(SnapshotOptions::default());
    assert!(matches!(&failed, Err(RequestError::Snapshot(text)) if text.contains("told to fail")), "{failed:?}");
    assert!(led.saved() >= Index(3));
}

fn an_export_yields_a_file_though_nothing_is_new() {
    let mut led = Led::new(|_| {});
    led.put(0..3);
    let index = led.saved();
    let target = TempDir::new().unwrap();
    match led.snapshot(SnapshotOptions::export_to(target.path())) {
        Ok(SnapshotOutcome::Exported { index: of, dir }) => {
            let disk: SharedDisk = Arc::new(RealDisk);
            assert_eq!((of, verify_export(&disk, &dir).unwrap().meta.pos.index), (index, index));
        }
        other => panic!("{other:?}"),
    }
}

fn an_export_leaves_record_and_log_alone() {
    let mut led = Led::new(|_| {});
    led.put(0..3);
    let target = TempDir::new().unwrap();
    let exported = led.snapshot(SnapshotOptions::export_to(target.path()));
    assert!(matches!(exported, Ok(SnapshotOutcome::Exported { .. })), "{exported:?}");
    assert_eq!((led.start(), led.files()), (Index::ZERO, Vec::new()));
    let index = led.saved();
    assert_eq!((led.start(), led.files()), (index, vec![index]), "an own one has something new to save all the same");
}

fn a_log_shorter_than_what_is_kept_stays_whole() {
    let mut led = Led::new(|config| config.compaction_overhead = 100);
    led.put(0..3);
    led.saved();
    assert_eq!(led.start(), Index::ZERO);
    led.put(3..200);
    let index = led.saved();
    assert_eq!(led.start(), Index(index.0 - 100));
}

fn the_log_goes_no_further_than_its_snapshot() {
    let mut led = Led::new(|config| config.compaction_overhead = 100);
    led.put(0..10);
    let (asked, index) = (Index(1000), led.applied());
    let refused = Err(RequestError::SnapshotRefused(SnapshotRefusal::CompactionIndex { asked, index }));
    assert_eq!(led.snapshot(SnapshotOptions::default().with_compaction_index(asked)), refused);
    let taken = led.snapshot(SnapshotOptions::default().with_compaction_index(Index(5)));
    assert_eq!((taken, led.start()), (Ok(SnapshotOutcome::Saved { index }), Index(5)));
    led.put(10..12);
    let index = led.applied();
    let taken = led.snapshot(SnapshotOptions::default().with_compaction_overhead(1));
    assert_eq!((taken, led.start()), (Ok(SnapshotOutcome::Saved { index }), Index(index.0 - 1)));
}

fn pinned_log_stays_until_its_lease_ends() {
    let mut led = Led::new(|_| {});
    led.put(0..20);
    let lease = led.alone.clock.now().plus_nanos(1_000 * MILLI);
    let pin: LogPin = led.log(|reply| LogRequest::Pin(Index(7), lease, reply)).unwrap();
    let index = led.saved();
    assert_eq!(led.start(), Index(6), "what is pinned is kept");
    let read = led.log(|reply| LogRequest::Query(Index(7)..Index(10), EntryLimits::default(), reply)).unwrap();
    assert_eq!(read.entries.iter().map(|e| e.index.0).collect::<Vec<_>>(), [7, 8, 9]);
    let info = led.log(LogRequest::Info).unwrap();
    assert_eq!((info.held_by, info.pins[0].0), (LogHold::Pinned { index: Index(7) }, Index(7)));
    let done = led.log(|reply| LogRequest::Compact(None, reply)).unwrap();
    assert_eq!((done.through, done.held_by), (Index(6), LogHold::Pinned { index: Index(7) }));
    // What it held goes with it.
    led.alone.pass(1_100);
    assert_eq!(led.start(), index);
    let gone = led.log(|reply| LogRequest::Pin(Index(7), lease, reply)).map(drop);
    assert_eq!(gone, Err(RequestError::LogRange { first: index.next(), last: index }));
    drop(pin);
}

/// Changes a byte in the middle of a snapshot's file.
fn damage(led: &Led, index: Index) {
    let dir = led.dir.as_ref().unwrap().path().join(format!("snapshots/{GROUP}/1/snapshot-{index}"));
    let file = dir.join("snapshot.bin");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

fn two_kept(config: &mut ReplicaConfig) {
    config.snapshot_compression = Compression::Lz4;
    config.snapshots_kept = 2;
}

fn the_log_reaches_back_to_the_oldest_snapshot_that_is_kept() {
    let mut led = Led::new(two_kept);
    led.put(0..10);
    let first = led.saved();
    assert_eq!(led.start(), first);
    led.put(10..20);
    let second = led.saved();
    assert_eq!((led.start(), led.files()), (first, vec![first, second]));
    assert_eq!(led.log(LogRequest::Info).unwrap().held_by, LogHold::OlderSnapshot { index: first });
    led.put(20..30);
    let third = led.saved();
    assert_eq!((led.start(), led.files()), (second, vec![second, third]));
    let led = led.restart(two_kept);
    assert_eq!((led.start(), led.files()), (second, vec![second, third]));
    assert_eq!(led.values(), (0..30).collect::<Vec<_>>());
}

fn an_older_snapshot_is_brought_up_to_date_by_the_log() {
    let mut led = Led::new(two_kept);
    led.put(0..10);
    let first = led.saved();
    led.put(10..20);
    let second = led.saved();
    led.put(20..25);
    damage(&led, second);
    let mut led = led.restart(two_kept);
    led.settle();
    assert_eq!(led.values(), (0..25).collect::<Vec<_>>());
    let broken = format!("snapshots/{GROUP}/1/snapshot-{second}.broken");
    assert!(led.dir.as_ref().unwrap().path().join(broken).exists());
    // The damaged one was recorded: another has taken its place, without anybody asking.
    let files = led.files();
    assert!(files.len() == 2 && files[0] == first && files[1] >= second, "{files:?}");
    let led = led.restart(two_kept);
    assert_eq!(led.values(), (0..25).collect::<Vec<_>>());
}

fn nothing_is_asked_of_a_machine_without_state() {
    let mut led = Led::new(|_| {});
    led.put(0..10);
    let index = led.saved();
    led.put(10..20);
    damage(&led, index);
    let mut led = led.restart(|_| {});
    // It is the only voter, and there is nobody to ask: it does not go on without what it lost.
    led.alone.pass(2_000);
    assert_eq!((led.applied(), led.shared.leader()), (Index::ZERO, None));
    let mut reads = Reads::<List>::new();
    let pending = reads.add(());
    led.shared.lookup(None, Box::new(reads));
    assert_eq!(outcome(pending), Err(RequestError::StateLost));
    assert_eq!(led.snapshot(SnapshotOptions::default()), Err(RequestError::StateLost));
}

fn snapshots_that_free_most_are_saved_first_and_one_by_one() {
    let dir = TempDir::new().unwrap();
    let mut alone = Alone::open(dir.path());
    let groups: Vec<_> = (1..=3u64)
        .map(|group| {
            let config = ReplicaConfig { group: GroupId(group), snapshot_entries: 10, ..Alone::config(1) };
            alone.start_machine(config, voters(1), List::default())
        })
        .collect();
    alone.pass(300);
    // Group 1 is the first that is due, and of the others group 3 has more to let go.
    for (shared, count) in groups.iter().zip([20u64, 40, 80]) {
        let deadline = alone.clock.now().plus_nanos(10_000 * MILLI);
        shared
            .enqueue::<List>((0..count).collect::<Vec<_>>().into_iter(), ProposeOptions::default(), deadline)
            .unwrap();
        alone.pass(5);
    }
    let saved = |alone: &Alone| -> Vec<u64> {
        let list = |group| alone.host.snapshots.store().list(GroupId(group), ReplicaId(1)).unwrap();
        (1..=3).filter(|&group| !list(group).is_empty()).collect()
    };
    assert_eq!(alone.host.snapshots.admission.running(), 1);
    for expected in [&[1][..], &[1, 3], &[1, 2, 3]] {
        alone.run_jobs();
        assert_eq!(saved(&alone), expected);
        alone.pass(3);
    }
    assert_eq!(alone.host.snapshots.admission.running(), 0);
}

fn an_aborted_save_leaves_nothing() {
    let mut led = Led::new(|_| {});
    led.put(0..3);
    // In the queue, with the apply worker, and in the pool.
    for rounds in [0, 1, 2] {
        let pending = led.ask(SnapshotOptions::default()).unwrap();
        if rounds > 0 {
            led.alone.step();
        }
        if rounds > 1 {
            led.alone.pass(2);
        }
        assert!(led.shared.abort_snapshots());
        led.settle();
        assert_eq!(outcome(pending), Err(RequestError::SnapshotAborted), "after {rounds} rounds");
        assert_eq!((led.start(), led.files()), (Index::ZERO, Vec::new()));
    }
    assert!(!led.shared.abort_snapshots(), "none is left");
    led.saved();
}

fn a_leader_is_woken_when_its_entries_are_durable() {
    let mut led = Led::new(|_| {});
    let deadline = led.alone.clock.now().plus_nanos(1_000 * MILLI);
    led.shared.enqueue::<List>([7].into_iter(), ProposeOptions::default(), deadline).unwrap();
    led.alone.step();
    let notifier = Arc::clone(&led.alone.host.shared.workers[0].notifier);
    notifier.take();
    led.alone.write();
    assert!(notifier.take(), "its own log counts towards the majority, and nobody else would tell");
}

fn a_leader_is_woken_for_its_disk_when_followers_were_faster() {
    let mut trio = Trio::voters();
    let leader = trio.leader();
    let notifier = Arc::clone(&trio.one(leader).host.shared.workers[0].notifier);
    let propose = |trio: &mut Trio, value: u64| {
        let deadline = trio.clock.now().plus_nanos(1_000 * MILLI);
        let options = ProposeOptions::default();
        trio.one(leader).shared.enqueue::<OnDisk<Shelf>>([value].into_iter(), options, deadline).unwrap();
    };
    // Its disk is done before anybody has answered: that is no majority.
    propose(&mut trio, 1);
    let now = trio.clock.now();
    trio.one(leader).host.steps[0].run_round(now);
    notifier.take();
    write(trio.one(leader), None, now);
    assert!(!notifier.take(), "nothing follows from its own log alone");
    trio.until("the value", |trio| trio.values(leader) == [1]);
    // One follower is done before its disk is, and the other is not heard of: now nothing else is missing.
    let unheard = HostId(leader % 3 + 1);
    trio.wires.filter(move |frame| (frame.from != unheard).then_some(frame));
    trio.one(leader).writer_stands = true;
    propose(&mut trio, 2);
    for _ in 0..4 {
        trio.round();
    }
    notifier.take();
    let now = trio.clock.now();
    write(trio.one(leader), None, now);
    assert!(notifier.take(), "its own log is what the majority lacks");
    trio.one(leader).writer_stands = false;
    trio.until("both values", |trio| trio.values(leader) == [1, 2]);
    trio.check();
}
