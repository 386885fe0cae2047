//! Storage of on-disk state machines: who opens it when, and what may be said and saved of it.

use crate::alone::{Alone, GROUP, MILLI, voters};
use crate::shelf::{Shelf, Storage};
use crate::transfers::led;
use crate::trio::Trio;
use longboat_engine::apply::{ApplyItem, ApplyTask};
use longboat_engine::shared::Command;
use longboat_engine::snapshot::{SaveTask, SnapshotRequest};
use longboat_engine::{GroupShared, SnapshotOptions, StartError, StartSpec, Worker};
use longboat_io::Clock;
use longboat_raft::{Body, HostId, Index, LogPos, Membership, Message, ReplicaId, SnapshotMeta, Term, Time};
use longboat_rsm::{Machine, OnDisk, RequestError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("storage-opened-while-in-use", storage_that_may_be_in_use_is_not_opened),
    ("started-while-closing", a_replica_whose_storage_took_too_long_to_open_is_not_started),
    ("save-behind-its-storage", storage_that_is_ahead_of_the_log_is_not_exported),
    ("last-command-after-its-snapshot", a_snapshot_asks_for_no_command_after_it),
    ("wait-without-state", who_waits_for_an_index_is_not_told_of_state_that_is_lost),
    ("install-without-files", a_snapshot_without_files_brings_no_state_back),
    ("panic-leaves-its-group", an_assertion_in_an_apply_worker_stops_one_replica),
];

fn start(alone: &Alone, storage: &Storage) -> Result<Arc<GroupShared>, StartError> {
    let machine = OnDisk(Shelf::on(storage)).into_dyn();
    let machine_type = std::any::TypeId::of::<OnDisk<Shelf>>();
    let spec = StartSpec { start: voters(1), config: Alone::config(1), machine, machine_type };
    Ok(alone.host.starter.start(vec![spec])?.remove(0))
}

fn storage_that_may_be_in_use_is_not_opened() {
    let dir = TempDir::new().unwrap();
    let (alone, storage) = (Alone::open(dir.path()), Storage::default());
    // What was stopped for a contradiction is gone from the table at once; jobs of it may still be at work.
    alone.host.shared.quarantined.lock().insert(GROUP, Default::default());
    assert!(matches!(start(&alone, &storage), Err(StartError::Quarantined(GROUP))));
    assert!(!storage.lock().open, "opened while its former life may use it");
}

fn a_replica_whose_storage_took_too_long_to_open_is_not_started() {
    let dir = TempDir::new().unwrap();
    let (alone, storage) = (Alone::open(dir.path()), Storage::default());
    let shared = Arc::clone(&alone.host.shared);
    storage.lock().when_opened = Some(Box::new(move || shared.closing.store(true, Ordering::SeqCst)));
    assert!(matches!(start(&alone, &storage), Err(StartError::Closed(_))));
    assert!(alone.host.shared.group(GROUP).is_none(), "nobody would stop it any more");
}

/// A follower that has applied all of 0..305, restarted with this many commands in its storage that its log lacks, and
/// heard by nobody.
fn ahead(by: u64) -> (Trio, Index) {
    let (mut trio, _) = led(1);
    trio.join(2);
    trio.until_values(2, 0..300);
    // The leader tells a host that forwards at once what is committed: it is saved with the entries.
    trio.put_on(2, 300..305);
    trio.until_values(2, 0..305);
    trio.wires.filter(|_| None);
    let applied = Index(trio.one(2).shared.published.applied.load(Ordering::Relaxed));
    trio.restart(2, |storage| {
        let mut stored = storage.lock();
        stored.values.extend(305..305 + by);
        stored.applied = applied.0 + by;
        drop(stored);
        storage
    });
    trio.pass(20);
    (trio, applied)
}

fn storage_that_is_ahead_of_the_log_is_not_exported() {
    let (mut trio, _) = ahead(50);
    let target = TempDir::new().unwrap();
    let options = SnapshotOptions::export_to(target.path());
    let asked = trio.one(2).shared.enqueue_snapshot(options, Time(u64::MAX)).unwrap();
    trio.pass(100);
    let outcome = asked.wait_timeout(Duration::ZERO).expect("resolved");
    assert!(matches!(&outcome, Err(RequestError::Snapshot(text)) if text.contains("ahead")), "{outcome:?}");
}

fn a_snapshot_asks_for_no_command_after_it() {
    let (mut trio, applied) = ahead(50);
    assert_eq!(trio.save(2), Ok(applied));
    // A power loss takes what was not synced, none of which the snapshot stands for.
    trio.restart(2, |storage| {
        let mut stored = storage.lock();
        stored.values.truncate(305);
        stored.applied = applied.0;
        drop(stored);
        storage
    });
    trio.pass(20);
    assert!(!trio.one(2).shared.published.needs_snapshot.load(Ordering::Relaxed), "all that it needs is here");
}

/// A follower that lost the storage for which the log before this index has gone, and is heard by nobody.
fn lost() -> (Trio, Index) {
    let (mut trio, _) = led(1);
    trio.join(2);
    trio.until_values(2, 0..300);
    trio.put(300..305);
    trio.until_values(2, 0..305);
    let index = trio.save(2).unwrap();
    trio.wires.filter(|_| None);
    trio.restart(2, |_| Storage::default());
    trio.pass(20);
    (trio, index)
}

fn a_snapshot_without_files_brings_no_state_back() {
    let (mut trio, index) = lost();
    let shared = Arc::clone(&trio.one(2).shared);
    let term = Term(shared.published.term.load(Ordering::Relaxed));
    // It was refused as known before the state was lost, and raft hears of it after.
    let membership = Membership::clone(&shared.membership.lock());
    let meta = SnapshotMeta { pos: LogPos::new(term, index), membership };
    let (from, to, body) = (ReplicaId(1), ReplicaId(2), Body::Snapshot(Box::new(meta)));
    let message = Box::new(Message { from, to, term, body });
    let watched = Arc::clone(&shared);
    let installed = || watched.published.counters.installed.load(Ordering::Relaxed);
    let before = installed();
    trio.one(2).host.shared.workers[0].command(Command::Deliver { shared, from: HostId(1), message });
    trio.pass(50);
    assert_eq!(installed(), before, "nothing came that could take the log's place");
    trio.check();
    trio.wires.open();
    trio.until_values(2, 0..305);
}

fn who_waits_for_an_index_is_not_told_of_state_that_is_lost() {
    let (mut trio, index) = lost();
    let deadline = trio.clock.now().plus_nanos(60_000 * MILLI);
    let waits = trio.one(2).shared.enqueue_wait(index, deadline).unwrap();
    trio.pass(50);
    let waits = waits.wait_timeout(Duration::ZERO).expect_err("nothing is applied here");
    trio.wires.open();
    trio.until_values(2, 0..305);
    trio.pass(20);
    assert!(waits.wait_timeout(Duration::ZERO).expect("resolved").expect("reached") >= index);
}

fn an_assertion_in_an_apply_worker_stops_one_replica() {
    let dir = TempDir::new().unwrap();
    let (mut alone, storage) = (Alone::open(dir.path()), Storage::default());
    let shared = start(&alone, &storage).expect("starts");
    alone.pass(300);
    assert_eq!(shared.leader().map(|l| l.1), Some(ReplicaId(1)));
    // A task that stands at another place than the state machine.
    let meta = SnapshotMeta { pos: LogPos::new(Term(1), Index(999)), membership: Default::default() };
    let request = SnapshotRequest::periodic(&shared);
    let save = Box::new(SaveTask { meta, previous: Index::ZERO, request });
    let task = ApplyTask { shared: Arc::clone(&shared), items: vec![ApplyItem::Save(save)] };
    alone.host.shared.apply[0].push(&mut vec![task]);
    alone.host.applies[0].run_round(alone.clock.now());
    alone.pass(10);
    assert!(matches!(shared.refusal(), Some(RequestError::MachineFailed { .. })), "{:?}", shared.refusal());
    assert!(alone.host.shared.group(GROUP).is_none(), "it has stopped in order");
}
