//! State machines that hang: each keeps a thread, and a thousand others go on.

use crate::cluster::{PATIENCE, until};
use crate::trap::{At, Beside, Counter, GROUPS, Hall, Stored, Trapped};
use longboat::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Groups whose state machines hang here or there.
const APPLY: u64 = 1;
const LOOKUP: u64 = 2;
const SAVE: u64 = 3;
const RECOVER: u64 = 4;
/// Begin from what `RECOVER` exported, or anew.
const NEW: u64 = GROUPS + 1;
const OPENED: u64 = GROUPS + 2;

/// What was told of state machines that hang.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(GroupId, ReplicaEvent)>>);

impl SystemEventListener for Told {
    fn event(&self, event: &HostEvent) {
        if let HostEvent::Replica { group, what, .. } = event
            && !matches!(what, ReplicaEvent::LeaderChanged { .. })
        {
            self.0.lock().unwrap().push((*group, what.clone()));
        }
    }
}

impl Told {
    fn listeners(self: &Arc<Self>) -> Listeners {
        Listeners { system: Some(Arc::clone(self) as Arc<dyn SystemEventListener>), ..Listeners::default() }
    }

    fn has(&self, group: u64, what: &ReplicaEvent) -> bool {
        self.0.lock().unwrap().iter().any(|told| *told == (GroupId(group), what.clone()))
    }
}

fn stalled<M: Trapped>(hall: &Hall<M>) -> Vec<(u64, bool)> {
    hall.host.info().stalled.iter().map(|s| (s.group.0, s.others_go_on)).collect()
}

/// All groups but those that tests begin with, so that all of these stand alike.
fn others() -> impl Iterator<Item = u64> {
    10..=GROUPS
}

fn hangs_anywhere_and_holds_up_no_other_group<M: Trapped>(threads: Threads) {
    let hall = Hall::<M>::open(threads);
    assert!(hall.add_one(1..=GROUPS).into_iter().all(|count| count == 1));

    hall.trap(APPLY).hangs(At::Apply);
    let hanging = hall.group(APPLY).propose(1, PATIENCE).unwrap();
    hall.trap(APPLY).caught();
    assert!(hall.add_one(others()).into_iter().all(|count| count == 2));
    assert_eq!(stalled(&hall), [(APPLY, true)]);
    let behind = hall.group(APPLY).propose(1, PATIENCE).unwrap();

    hall.trap(LOOKUP).hangs(At::Lookup);
    let looking = hall.group(LOOKUP).read((), PATIENCE).unwrap();
    hall.trap(LOOKUP).caught();
    assert!(hall.add_one(others()).into_iter().all(|count| count == 3));
    assert_eq!(stalled(&hall), [(APPLY, true), (LOOKUP, true)]);

    hall.trap(SAVE).hangs(At::Save);
    let options = SnapshotOptions::export_to(hall.export_dir(SAVE));
    let saving = hall.group(SAVE).request_snapshot(options, PATIENCE).unwrap();
    hall.trap(SAVE).caught();
    hall.export(RECOVER).expect("exported");
    hall.trap(NEW).hangs(At::Recover);
    hall.begin_from(RECOVER, NEW);
    hall.trap(NEW).caught();
    assert!(hall.add_one(others()).into_iter().all(|count| count == 4));

    hall.trap(APPLY).hangs(At::Nowhere);
    assert_eq!((hanging.wait(), behind.wait()), (Ok(2), Ok(3)), "applied once, and in order");
    hall.trap(LOOKUP).hangs(At::Nowhere);
    assert_eq!(looking.wait(), Ok(1));
    hall.trap(SAVE).hangs(At::Nowhere);
    saving.wait().expect("exported");
    hall.trap(NEW).hangs(At::Nowhere);
    assert_eq!(hall.add_one([APPLY, LOOKUP, SAVE, NEW].into_iter()), [4, 2, 2, 2]);
    until("end of all stalls", || stalled(&hall).is_empty().then_some(()));
    hall.close();
}

#[test]
fn a_state_machine_that_hangs_anywhere_holds_up_no_other_group() {
    hangs_anywhere_and_holds_up_no_other_group::<Counter>(Threads::Compact);
}

#[test]
fn a_concurrent_state_machine_that_hangs_anywhere_holds_up_no_other_group() {
    hangs_anywhere_and_holds_up_no_other_group::<Concurrent<Beside>>(Threads::Separate);
}

#[test]
fn a_state_machine_on_disk_that_hangs_anywhere_holds_up_no_other_group() {
    let hall = Hall::<OnDisk<Stored>>::open(Threads::Compact);
    hall.trap(OPENED).hangs(At::Open);
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| {
            let start = ReplicaStart::bootstrap([(ReplicaId(1), HostId(1))]);
            let machine = || OnDisk::<Stored>::with(hall.trap(OPENED));
            hall.host.start_replica(start, Hall::<OnDisk<Stored>>::config(OPENED), machine)
        });
        hall.trap(OPENED).caught();
        assert!(hall.add_one(1..=GROUPS).into_iter().all(|count| count == 1));
        hall.trap(OPENED).hangs(At::Nowhere);
        starting.join().expect("no panic").expect("starts");
    });
    assert_eq!(hall.add_one(std::iter::once(OPENED)), [1]);
    hall.close();
    hangs_anywhere_and_holds_up_no_other_group::<OnDisk<Stored>>(Threads::Compact);
}

#[test]
fn when_five_state_machines_hang_the_others_wait_until_one_returns() {
    let told = Arc::<Told>::default();
    let hall = Hall::<Counter>::open_with(Threads::Compact, told.listeners());
    hall.add_one(1..=GROUPS);
    let mut hanging = Vec::new();
    for group in 1..=5 {
        hall.trap(group).hangs(At::Apply);
        hanging.push(hall.group(group).propose(1, PATIENCE).unwrap());
        hall.trap(group).caught();
        let others_go_on = group < 5;
        until("event", || told.has(group, &ReplicaEvent::MachineStalled { others_go_on }).then_some(()));
        assert_eq!(stalled(&hall).len() as u64, group);
    }
    assert_eq!(stalled(&hall)[4], (5, false));
    let mut others: Vec<_> = others().map(|g| hall.group(g).propose(1, PATIENCE).unwrap()).collect();
    let first = others.remove(0).wait_timeout(Duration::from_millis(200));
    let first = first.expect_err("whoever shares the fifth one's worker waits for it");

    hall.trap(2).hangs(At::Nowhere);
    assert_eq!(hanging.remove(1).wait(), Ok(2));
    assert_eq!(first.wait(), Ok(2));
    assert!(others.into_iter().all(|p| p.wait() == Ok(2)));
    assert!(told.has(5, &ReplicaEvent::MachineStalled { others_go_on: true }), "it got the spare that was freed");
    for group in [1, 3, 4, 5] {
        hall.trap(group).hangs(At::Nowhere);
    }
    assert!(hanging.into_iter().all(|p| p.wait() == Ok(2)));
    until("end of all stalls", || stalled(&hall).is_empty().then_some(()));
    until("event", || (1..=5).all(|g| told.has(g, &ReplicaEvent::MachineReturned)).then_some(()));
    hall.close();
}

#[test]
fn a_host_closes_without_a_state_machine_that_hangs_and_names_its_group() {
    for (threads, at) in [(Threads::Compact, At::Apply), (Threads::Separate, At::Apply), (Threads::Compact, At::Save)] {
        let hall = Hall::<Counter>::open(threads);
        hall.add_one(1..=GROUPS);
        hall.trap(7).hangs(at);
        let hanging = (at == At::Apply).then(|| hall.group(7).propose(1, PATIENCE).unwrap());
        let saving = (at == At::Save).then(|| {
            let options = SnapshotOptions::default();
            hall.group(7).request_snapshot(options, PATIENCE).unwrap()
        });
        hall.trap(7).caught();
        let error = hall.host.close(Duration::from_millis(300)).expect_err("it hangs");
        assert!(matches!(error, CloseError::Machine { group: GroupId(7), replica: ReplicaId(1) }), "{at:?}: {error}");
        assert!(error.to_string().contains("group 7"), "{error}");
        if let Some(hanging) = hanging {
            let error = hanging.wait().expect_err("it was not applied before the host closed");
            assert!(error.may_have_applied(), "{error}");
        }
        hall.trap(7).hangs(At::Nowhere);
        drop(saving);
    }
}

/// Four hang on the pool's own threads, and spares take their places; with four more there is none left. Others are saved, and their
/// log goes, until then; beyond it they are refused, and are not behind those that hang.
#[test]
fn others_are_saved_while_state_machines_hang_in_their_saves() {
    let told = Arc::<Told>::default();
    let hall = Hall::<Counter>::open_with(Threads::Compact, told.listeners());
    hall.add_one(1..=GROUPS);
    let ask = |group| {
        let options = SnapshotOptions::default().with_compaction_overhead(0);
        hall.group(group).request_snapshot(options, PATIENCE).unwrap()
    };
    let mut hanging = Vec::new();
    for group in 1..=8 {
        hall.trap(group).hangs(At::Save);
        hanging.push(ask(group));
        hall.trap(group).caught();
        let others_go_on = group <= 4;
        until("event", || told.has(group, &ReplicaEvent::SnapshotStalled { others_go_on }).then_some(()));
        if group == 4 {
            let saving: Vec<_> = (10..60).map(ask).collect();
            assert!(saving.into_iter().all(|s| matches!(s.wait(), Ok(SnapshotOutcome::Saved { .. }))));
            assert!((10..60).all(|g| hall.group(g).info().entries_truncated > 0), "their log has gone");
        }
    }
    let hang: Vec<_> = (1..=8).map(|g| (g, g <= 4)).collect();
    until("all of them", || {
        let mut stalled = stalled(&hall);
        stalled.sort_unstable();
        (stalled == hang).then_some(())
    });
    assert!(hall.host.info().stalled.iter().all(|s| s.in_snapshot));
    let refused = ask(70).wait();
    assert_eq!(refused, Err(RequestError::SnapshotRefused(SnapshotRefusal::PoolStalled)));
    assert!(
        hall.add_one(others()).into_iter().all(|count| count == 2),
        "whoever saves nothing has nothing to do with it"
    );

    hall.trap(1).hangs(At::Nowhere);
    assert!(matches!(hanging.remove(0).wait(), Ok(SnapshotOutcome::Saved { .. })));
    // The spare that was freed is given to one of the others, and its thread is the pool's again.
    until("a save", || matches!(ask(70).wait(), Ok(SnapshotOutcome::Saved { .. })).then_some(()));
    for group in 2..=8 {
        hall.trap(group).hangs(At::Nowhere);
    }
    assert!(hanging.into_iter().all(|s| matches!(s.wait(), Ok(SnapshotOutcome::Saved { .. }))));
    until("end of all stalls", || stalled(&hall).is_empty().then_some(()));
    until("event", || (1..=8).all(|g| told.has(g, &ReplicaEvent::SnapshotReturned)).then_some(()));
    hall.close();
}

/// Whoever waits for a thread does not hold the closed host's store.
#[test]
fn a_host_closes_beside_saves_that_hang_on_all_threads() {
    let hall = Hall::<Counter>::open(Threads::Compact);
    hall.add_one(1..=GROUPS);
    let mut asked = Vec::new();
    for group in 1..=8 {
        hall.trap(group).hangs(At::Save);
        asked.push(hall.group(group).request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap());
        hall.trap(group).caught();
    }
    let error = hall.host.close(Duration::from_millis(300)).expect_err("they hang");
    assert!(matches!(error, CloseError::Machine { replica: ReplicaId(1), .. }), "{error}");
    for group in 1..=8 {
        hall.trap(group).hangs(At::Nowhere);
    }
    for asked in asked {
        let ended = asked.wait().expect_err("the host has closed");
        assert!(matches!(ended, RequestError::Stopped | RequestError::SnapshotAborted), "{ended}");
    }
}
