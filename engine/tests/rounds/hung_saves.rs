//! State machines that hang in the snapshot pool. What other threads would do meanwhile is done within the call that hangs, so that
//! nothing depends on time.

use crate::alone::{Alone, Jobs, MILLI, outcome, voters};
use longboat_engine::{GroupShared, HostEvent, ReplicaConfig, ReplicaEvent, SnapshotOptions, StalledMachine};
use longboat_io::{Clock, Replaced};
use longboat_raft::{GroupId, Index, ProposeOptions, ReplicaId, Time};
use longboat_rsm::{MachineError, RequestError, SnapshotRefusal, StateMachine};
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("hanging-save-keeps-its-place", a_save_that_hangs_gives_its_place_to_others),
    ("slow-save-taken-for-a-hanging-one", a_save_that_writes_now_and_then_does_not_hang),
    ("save-queued-behind-those-that-hang", when_all_threads_hang_no_save_begins),
];

/// Runs within a call, before each of its parts.
type Hook = Box<dyn FnMut() + Send>;
/// The hook of a state machine.
type Hung = Arc<Mutex<Option<Hook>>>;

/// Counts; its saves, in three parts, and its recoveries find a hook.
#[derive(Default)]
struct Hooked {
    count: u64,
    hook: Hung,
}

impl Hooked {
    fn hooked(&self) {
        let mut hook = self.hook.lock().take();
        if let Some(hook) = &mut hook {
            hook();
        }
        *self.hook.lock() = hook;
    }
}

impl StateMachine for Hooked {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _: Index, _: u64) -> Result<u64, MachineError> {
        self.count += 1;
        Ok(self.count)
    }

    fn lookup(&self, (): ()) -> Result<u64, MachineError> {
        Ok(self.count)
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        for part in self.count.to_le_bytes().chunks(3) {
            self.hooked();
            out.write_all(part)?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut word = [0; 8];
        input.read_exact(&mut word)?;
        self.hooked();
        self.count = u64::from_le_bytes(word);
        Ok(())
    }
}

/// A host that saves one snapshot at once, with two groups that are due after ten entries.
struct Stage {
    _dir: TempDir,
    alone: Mutex<Alone>,
    jobs: Arc<Jobs>,
    groups: [(Arc<GroupShared>, Hung); 2],
}

impl Stage {
    fn new() -> Arc<Self> {
        let dir = TempDir::new().unwrap();
        let mut alone = Alone::open(dir.path());
        alone.host.shared.events.listen();
        let groups = [1, 2].map(|group| {
            let config = ReplicaConfig { group: GroupId(group), snapshot_entries: 10, ..Alone::config(1) };
            let machine = Hooked::default();
            let hook = Arc::clone(&machine.hook);
            (alone.start_machine(config, voters(1), machine), hook)
        });
        alone.pass(300);
        let jobs = alone.jobs();
        Arc::new(Self { _dir: dir, alone: Mutex::new(alone), jobs, groups })
    }

    /// So many entries are applied in this group (from 0).
    fn put(&self, group: usize, count: u64) {
        let values: Vec<_> = (0..count).collect();
        self.groups[group].0.enqueue::<Hooked>(values.into_iter(), ProposeOptions::default(), Time(u64::MAX)).unwrap();
        self.alone.lock().pass(5);
    }

    /// Rounds, and jobs beside the one that is in a step.
    fn settle(&self) {
        for _ in 0..20 {
            self.alone.lock().pass(2);
            self.jobs.step_all();
        }
        self.alone.lock().pass(2);
    }

    fn hook(self: &Arc<Self>, group: usize, mut hook: impl FnMut(&Arc<Self>) + Send + 'static) {
        let stage = Arc::downgrade(self);
        *self.groups[group].1.lock() = Some(Box::new(move || hook(&stage.upgrade().expect("the test holds it"))));
    }

    /// The watch looks, after so much time.
    fn look(&self, after_millis: u64) -> Vec<(u64, bool)> {
        let alone = self.alone.lock();
        alone.clock.0.fetch_add(after_millis * MILLI, Ordering::Relaxed);
        alone.host.snapshots.look_for_stalls(alone.clock.now());
        let stalled = alone.host.shared.pool_calls.list();
        assert!(stalled.iter().all(|s| s.in_snapshot));
        stalled.iter().map(|s: &StalledMachine| (s.group.0, s.others_go_on)).collect()
    }

    fn saved(&self, group: usize) -> Vec<Index> {
        let shared = &self.groups[group].0;
        self.alone.lock().host.snapshots.store().list(shared.group, ReplicaId(1)).unwrap()
    }

    fn log_begins_at(&self, group: usize) -> u64 {
        self.groups[group].0.published.start.load(Ordering::Relaxed)
    }

    fn running(&self) -> usize {
        self.alone.lock().host.snapshots.admission.running()
    }

    /// What was told of machines that hang.
    fn told(&self) -> Vec<(u64, ReplicaEvent)> {
        let events = &self.alone.lock().host.shared.events;
        events.close();
        let told = std::iter::from_fn(|| events.next()).filter_map(|event| match event {
            HostEvent::Replica { group, what, .. } => Some((group.0, what)),
            _ => None,
        });
        told.filter(|(_, e)| matches!(e, ReplicaEvent::SnapshotStalled { .. } | ReplicaEvent::SnapshotReturned))
            .collect()
    }
}

pub fn a_save_that_hangs_gives_its_place_to_others() {
    let stage = Stage::new();
    stage.put(0, 20);
    stage.put(1, 20);
    assert_eq!(stage.running(), 1, "the second one waits for its turn");
    let mut hung = false;
    stage.hook(0, move |stage| {
        if std::mem::replace(&mut hung, true) {
            return;
        }
        stage.settle();
        assert_eq!((stage.look(0), stage.look(4999)), (vec![], vec![]), "it has not lasted for long enough");
        assert_eq!(stage.look(1), [], "it is not in a step that the pool knows");
        stage.jobs.replaces(Replaced::NoSpare);
        assert_eq!(stage.look(0), [(1, false)]);
        stage.jobs.replaces(Replaced::Yes);
        assert_eq!(stage.look(0), [(1, true)], "a spare was freed");
        assert_eq!(stage.look(0), [(1, true)]);
        stage.settle();
        assert_eq!(stage.saved(1).len(), 1, "the second one has its turn");
        assert!(stage.log_begins_at(1) >= 20, "and its log goes");
        stage.put(1, 20);
        stage.settle();
        assert!(stage.log_begins_at(1) >= 40, "and so on");
        assert_eq!((stage.saved(0), stage.running()), (vec![], 0));
    });
    stage.settle();
    assert!(stage.log_begins_at(0) >= 20, "it goes on where it hung");
    assert_eq!((stage.look(0), stage.running()), (vec![], 0), "what was given back is not given back twice");
    let stalled = |others_go_on| (1, ReplicaEvent::SnapshotStalled { others_go_on });
    assert_eq!(stage.told(), [stalled(false), stalled(true), (1, ReplicaEvent::SnapshotReturned)]);
}

pub fn a_save_that_writes_now_and_then_does_not_hang() {
    let stage = Stage::new();
    stage.jobs.replaces(Replaced::Yes);
    stage.hook(0, |stage| {
        for _ in 0..3 {
            assert_eq!(stage.look(2400), []);
        }
    });
    stage.put(0, 20);
    stage.settle();
    assert_eq!(stage.saved(0).len(), 1);
    assert_eq!(stage.told(), []);
}

/// It moves on after it was told to hang, and hangs again.
pub fn a_save_that_goes_on_may_hang_again() {
    let stage = Stage::new();
    stage.jobs.replaces(Replaced::Yes);
    stage.hook(0, |stage| {
        assert_eq!(stage.look(1), [], "it has written since");
        assert_eq!(stage.look(5000), [(1, true)]);
    });
    stage.put(0, 20);
    stage.settle();
    let once = [(1, ReplicaEvent::SnapshotStalled { others_go_on: true }), (1, ReplicaEvent::SnapshotReturned)];
    assert_eq!(stage.told(), [&once[..], &once[..], &once[..]].concat());
}

pub fn when_all_threads_hang_no_save_begins() {
    let stage = Stage::new();
    stage.jobs.is_stuck(true);
    stage.put(0, 20);
    stage.put(1, 20);
    assert_eq!(stage.running(), 0, "what is due waits");
    let ask = |options| stage.groups[0].0.enqueue_snapshot(options, Time(u64::MAX)).unwrap();
    let (saved, exported) =
        (ask(SnapshotOptions::default()), SnapshotOptions::export_to(std::env::temp_dir().join("nowhere")));
    stage.alone.lock().pass(2);
    let refused = Err(RequestError::SnapshotRefused(SnapshotRefusal::PoolStalled));
    assert_eq!(outcome(saved), refused);
    let exported = ask(exported);
    stage.alone.lock().pass(2);
    assert_eq!(outcome(exported), refused);
    assert_eq!(stage.look(1), []);
    stage.settle();
    assert_eq!(stage.saved(0), [], "it is stuck all the same");
    stage.jobs.is_stuck(false);
    assert_eq!(stage.look(1), []);
    stage.settle();
    assert_eq!((stage.saved(0).len(), stage.saved(1).len()), (1, 1), "one after the other");
    assert_eq!(stage.running(), 0);
}

/// A recovery that hangs is told, too.
pub fn a_recovery_that_hangs_is_told_and_goes_on() {
    let stage = Stage::new();
    stage.jobs.replaces(Replaced::Yes);
    stage.put(0, 20);
    stage.settle();
    assert_eq!(stage.saved(0).len(), 1);
    assert!(stage.alone.lock().host.starter.stop(GroupId(1)));
    stage.alone.lock().pass(5);
    let machine = Hooked::default();
    let within = Arc::downgrade(&stage);
    *machine.hook.lock() = Some(Box::new(move || {
        let stage = within.upgrade().expect("the test holds it");
        assert_eq!((stage.look(0), stage.look(5000)), (vec![], vec![(1, true)]));
    }));
    let config = ReplicaConfig { group: GroupId(1), ..Alone::config(1) };
    let again = stage.alone.lock().start_machine(config, longboat_engine::Start::Restart, machine);
    stage.settle();
    stage.alone.lock().pass(300);
    assert!(again.leader().is_some(), "it has recovered");
    assert_eq!(stage.told().len(), 2);
}
