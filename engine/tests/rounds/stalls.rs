//! State machines whose calls do not return: they keep their thread, and no other group waits. What a second thread would do
//! is done here within the call that hangs, so that nothing depends on time.

use crate::alone::{Alone, GROUP, MILLI, voters};
use longboat_engine::apply::ApplyWorker;
use longboat_engine::stalls::StallWatch;
use longboat_engine::{GroupShared, HostEvent, ReplicaEvent, SnapshotOptions, SnapshotOutcome, Worker};
use longboat_io::Clock;
use longboat_raft::{GroupId, Index, ProposeOptions, Time};
use longboat_rsm::{MachineError, StateMachine};
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("hanging-group-not-busy", a_call_that_hangs_keeps_its_group_and_no_other),
    ("replaced-runner-goes-on", a_worker_that_was_replaced_does_nothing_more),
];

type Hook = Box<dyn FnOnce() + Send>;

/// Keeps values; a call finds a hook that is to be run within it.
#[derive(Default)]
struct Hooked {
    values: Arc<Mutex<Vec<u64>>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl StateMachine for Hooked {
    type Command = u64;
    type Output = usize;
    type Query = ();
    type Answer = Vec<u64>;

    fn apply(&mut self, _: Index, value: u64) -> Result<usize, MachineError> {
        if let Some(hook) = self.hook.lock().take() {
            hook();
        }
        self.values.lock().push(value);
        Ok(self.values.lock().len())
    }

    fn lookup(&self, (): ()) -> Result<Vec<u64>, MachineError> {
        Ok(self.values.lock().clone())
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        Ok(out.write_all(&(self.values.lock().len() as u64).to_le_bytes())?)
    }

    fn recover(&mut self, _: &mut dyn Read) -> Result<(), MachineError> {
        Err(MachineError::user("nobody asked for it"))
    }
}

/// One group of the stage.
struct Member {
    shared: Arc<GroupShared>,
    values: Arc<Mutex<Vec<u64>>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

/// A host with some groups, which all share the one apply worker.
struct Stage {
    _dir: TempDir,
    alone: Mutex<Alone>,
    members: Vec<Member>,
    watch: Mutex<StallWatch>,
}

impl Stage {
    fn new(groups: u64) -> Arc<Self> {
        let dir = TempDir::new().unwrap();
        let mut alone = Alone::open(dir.path());
        alone.host.shared.events.listen();
        let start = |g: u64| {
            let machine = Hooked::default();
            let (values, hook) = (Arc::clone(&machine.values), Arc::clone(&machine.hook));
            let mut config = Alone::config(1);
            config.group = GroupId(g);
            Member { shared: alone.start_machine(config, voters(1), machine), values, hook }
        };
        let members: Vec<_> = (1..=groups).map(start).collect();
        alone.pass(500);
        assert!(members.iter().all(|m| m.shared.leader().is_some()), "each group has its leader");
        let watch = Mutex::new(StallWatch::new(&alone.host.shared));
        Arc::new(Self { _dir: dir, alone: Mutex::new(alone), members, watch })
    }

    /// The worker that the host came with.
    fn first(&self) -> ApplyWorker {
        let alone = self.alone.lock();
        ApplyWorker::new(0, Arc::clone(&alone.host.shared), Arc::clone(&alone.host.snapshots))
    }

    fn now(&self) -> Time {
        self.alone.lock().clock.now()
    }

    fn later(&self, millis: u64) {
        self.alone.lock().clock.0.fetch_add(millis * MILLI, Ordering::Relaxed);
    }

    /// Proposes a value in each of these groups (from 0), and does all but apply it.
    fn put(&self, groups: impl IntoIterator<Item = usize>, value: u64) {
        for group in groups {
            let options = ProposeOptions::default();
            let values = std::iter::once(value);
            self.members[group].shared.enqueue::<Hooked>(values, options, Time(u64::MAX)).unwrap();
        }
        self.commit();
    }

    fn commit(&self) {
        let mut alone = self.alone.lock();
        for _ in 0..2 {
            alone.step();
            alone.write();
        }
        alone.step();
    }

    fn values(&self, group: usize) -> Vec<u64> {
        self.members[group].values.lock().clone()
    }

    /// The next call of this group runs `hook`.
    fn hook(self: &Arc<Self>, group: usize, hook: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let stage = Arc::downgrade(self);
        let hook = move || hook(&stage.upgrade().expect("the test holds it"));
        *self.members[group].hook.lock() = Some(Box::new(hook));
    }

    /// The worker that takes the place of the one that hangs, if there is one.
    fn spare(&self) -> Option<ApplyWorker> {
        let stalled = self.watch.lock().look(self.now());
        let [(at, stalled)] = stalled[..] else { return None };
        self.first().in_place_of(at, &stalled)
    }

    /// As [`Stage::spare`], when the call has lasted for long enough.
    fn spare_in_time(&self) -> Option<ApplyWorker> {
        assert!(self.spare().is_none(), "the call has only begun");
        self.later(1000);
        self.spare()
    }

    fn stalled(&self) -> Vec<(GroupId, bool)> {
        self.alone.lock().host.shared.stalls.list().iter().map(|s| (s.group, s.others_go_on)).collect()
    }

    /// What was told of machines that hang.
    fn told(&self) -> Vec<(GroupId, ReplicaEvent)> {
        let events = &self.alone.lock().host.shared.events;
        events.close();
        let told = std::iter::from_fn(|| events.next()).filter_map(|event| match event {
            HostEvent::Replica { group, what, .. } => Some((group, what)),
            _ => None,
        });
        told.filter(|(_, e)| matches!(e, ReplicaEvent::MachineStalled { .. } | ReplicaEvent::MachineReturned)).collect()
    }
}

pub fn a_call_that_hangs_keeps_its_group_and_no_other() {
    let stage = Stage::new(3);
    let mut worker = stage.first();
    let spare: Arc<Mutex<Option<ApplyWorker>>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (kept, told) = (Arc::clone(&spare), Arc::clone(&seen));
    stage.hook(0, move |stage| {
        assert!(stage.spare().is_none(), "nobody was seen yet");
        stage.later(999);
        assert!(stage.spare().is_none(), "it has not lasted for long enough");
        stage.later(1);
        let mut next = stage.spare().expect("there are spares");
        let in_use = stage.alone.lock().host.shared.apply[0].in_use();
        assert!(in_use.iter().any(|u| u.0 == GROUP), "the group is in the hands of the call");
        next.run_round(stage.now());
        told.lock().push((stage.values(0), stage.values(1), stage.values(2)));
        stage.put(0..3, 2);
        next.run_round(stage.now());
        told.lock().push((stage.values(0), stage.values(1), stage.values(2)));
        assert_eq!(stage.stalled(), [(GROUP, true)]);
        *kept.lock() = Some(next);
    });
    stage.put(0..3, 1);
    worker.run_round(stage.now());
    assert_eq!(*seen.lock(), [(vec![], vec![1], vec![1]), (vec![], vec![1, 2], vec![1, 2])], "the others went on");
    assert_eq!(stage.values(0), [1, 2], "the group went on when its call returned, in order");
    assert_eq!(stage.stalled(), []);
    let mut next = spare.lock().take().expect("it took the place");
    stage.put(0..3, 3);
    next.run_round(stage.now());
    for group in 0..3 {
        assert_eq!(stage.values(group), [1, 2, 3]);
    }
    let told = stage.told();
    assert_eq!(told[0], (GROUP, ReplicaEvent::MachineStalled { others_go_on: true }));
    assert_eq!(told[1..], [(GROUP, ReplicaEvent::MachineReturned)]);
}

pub fn a_worker_that_was_replaced_does_nothing_more() {
    let stage = Stage::new(2);
    let mut worker = stage.first();
    let spare: Arc<Mutex<Option<ApplyWorker>>> = Arc::default();
    let kept = Arc::clone(&spare);
    stage.hook(0, move |stage| *kept.lock() = stage.spare_in_time());
    stage.put(0..2, 1);
    worker.run_round(stage.now());
    assert!(worker.is_replaced());
    assert_eq!((stage.values(0), stage.values(1)), (vec![1], vec![]), "what it had not begun is not its own");
    worker.run_round(stage.now());
    assert_eq!(stage.values(1), []);
    spare.lock().as_mut().expect("it took the place").run_round(stage.now());
    assert_eq!(stage.values(1), [1]);
}

/// A call in each of five groups hangs, each found by the spare of the one before.
pub fn beyond_four_the_others_wait_and_it_is_told() {
    fn hang(stage: &Arc<Stage>, group: usize, last: Arc<Mutex<Vec<ApplyWorker>>>) {
        stage.hook(group, move |stage| match stage.spare_in_time() {
            Some(mut spare) => {
                assert!(group < 4);
                hang(stage, group + 1, Arc::clone(&last));
                spare.run_round(stage.now());
                last.lock().push(spare);
            }
            None => {
                assert_eq!(group, 4, "there are four spares");
                let five: Vec<_> = (1..=5).map(|g| (GroupId(g), g < 5)).collect();
                assert_eq!(stage.stalled(), five);
            }
        });
    }
    let stage = Stage::new(6);
    let spares: Arc<Mutex<Vec<ApplyWorker>>> = Arc::default();
    hang(&stage, 0, Arc::clone(&spares));
    stage.put(0..6, 1);
    let mut worker = stage.first();
    worker.run_round(stage.now());
    assert!((0..6).all(|group| stage.values(group) == [1]), "each was applied once");
    assert!(stage.spare().is_none(), "nobody hangs any more");
    assert_eq!(stage.stalled(), []);
    let spares = std::mem::take(&mut *spares.lock());
    let replaced: Vec<_> = spares.iter().map(ApplyWorker::is_replaced).collect();
    assert_eq!(replaced, [false, true, true, true], "the last that took over is the worker");
    let told = stage.told();
    assert_eq!(told.iter().filter(|t| t.1 == ReplicaEvent::MachineReturned).count(), 5);
    assert!(told.contains(&(GroupId(5), ReplicaEvent::MachineStalled { others_go_on: false })));
}

/// What a hanging group was to do goes on with a save, which has its state machine for itself: the thread is done with the
/// group, and what came meanwhile waits for the save.
pub fn a_group_whose_call_returns_may_go_on_with_a_save() {
    let stage = Stage::new(2);
    let mut worker = stage.first();
    let spare: Arc<Mutex<Option<ApplyWorker>>> = Arc::default();
    let kept = Arc::clone(&spare);
    stage.hook(0, move |stage| {
        let mut next = stage.spare_in_time().expect("there are spares");
        stage.put(0..2, 2);
        next.run_round(stage.now());
        assert_eq!((stage.values(0), stage.values(1)), (vec![], vec![1, 2]));
        *kept.lock() = Some(next);
    });
    stage.put(0..2, 1);
    // Asked for while the value is on its way to be applied: it goes behind it.
    let shared = &stage.members[0].shared;
    let asked = shared.enqueue_snapshot(SnapshotOptions::default(), Time(u64::MAX)).unwrap();
    stage.commit();
    worker.run_round(stage.now());
    assert!(worker.is_replaced());
    assert_eq!(stage.values(0), [1], "the other value came behind the save");
    let mut next = spare.lock().take().expect("it took the place");
    next.run_round(stage.now());
    assert_eq!(stage.values(0), [1], "the save has the state machine for itself");
    for _ in 0..4 {
        stage.alone.lock().run_jobs();
        stage.commit();
        next.run_round(stage.now());
    }
    let saved = crate::alone::outcome(asked);
    assert!(matches!(saved, Ok(SnapshotOutcome::Saved { .. })), "{saved:?}");
    assert_eq!(stage.values(0), [1, 2]);
    stage.put(0..2, 3);
    next.run_round(stage.now());
    assert_eq!((stage.values(0), stage.values(1)), (vec![1, 2, 3], vec![1, 2, 3]));
}

/// A replica in memory may begin again while a call of its former life hangs, and may hang again: that is another one, with a
/// spare of its own, and the end of the one is not the end of the other.
pub fn a_replica_that_begins_again_while_it_hangs_may_hang_again() {
    let stage = Stage::new(1);
    let mut worker = stage.first();
    let seen = Arc::<Mutex<Vec<usize>>>::default();
    let told = Arc::clone(&seen);
    stage.hook(0, move |stage| {
        let mut spare = stage.spare_in_time().expect("there are spares");
        assert!(stage.alone.lock().host.starter.stop(GROUP));
        stage.alone.lock().pass(20);
        let again = Hooked::default();
        let (hangs, within) = (Arc::downgrade(stage), Arc::clone(&told));
        *again.hook.lock() = Some(Box::new(move || {
            let stage = hangs.upgrade().expect("the test holds it");
            drop(stage.spare_in_time().expect("there are spares"));
            within.lock().push(stage.stalled().len());
        }));
        let shared = stage.alone.lock().start_machine(Alone::config(1), longboat_engine::Start::Restart, again);
        stage.alone.lock().pass(500);
        assert!(shared.leader().is_some());
        spare.run_round(stage.now());
        told.lock().push(stage.stalled().len());
    });
    stage.put([0], 1);
    worker.run_round(stage.now());
    seen.lock().push(stage.stalled().len());
    assert_eq!(*seen.lock(), [2, 1, 0], "within both, after the second, after the first");
}
