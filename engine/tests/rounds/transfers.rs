//! For each guard of a transfer, an install and a recovery, a scenario that fails when the guard is gone.

use crate::alone::{Alone, GROUP, MILLI};
use crate::shelf::Storage;
use crate::trio::{Frame, Trio};
use bytes::{Bytes, BytesMut};
use longboat_engine::apply::{ApplyItem, ApplyTask};
use longboat_engine::shared::Command;
use longboat_raft::{HostId, Index, LogPos, ReplicaId, SnapshotMeta, Term};
use longboat_transport::Lane;
use longboat_transport::wire::{Chunk, ChunkOutcome, ChunkStatus, SnapshotFrame};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("task-during-recover", entries_wait_while_a_state_machine_recovers),
    ("older-snapshot-recovered", a_state_is_not_replaced_by_an_older_one),
    ("stream-while-streaming", one_view_is_sent_at_a_time),
    ("failed-stream-unreported", a_machine_that_is_not_ready_is_asked_again),
    ("stale-stream-taken", a_stream_of_what_is_here_already_is_refused),
    ("older-stream-replaces", a_stream_of_an_older_snapshot_does_not_replace_a_newer_one),
    ("invalid-file-taken", a_file_that_is_not_what_was_announced_is_refused),
    ("install-without-its-log", the_log_behind_a_running_install_stays),
    ("recover-before-record", a_recovery_begins_when_its_record_is_durable),
    ("storage-behind-its-snapshot", storage_that_was_lost_is_filled_by_the_leader),
    ("overtaken-save-recorded", a_save_that_an_install_has_overtaken_leaves_no_record),
    ("orphans-kept", snapshots_that_no_record_names_go_at_the_start),
    ("former-transfer-ends-a-later-one", the_end_of_a_former_transfer_is_not_taken_for_a_later_ones),
    ("recorded-snapshot-discarded", a_snapshot_that_came_in_vain_takes_no_recorded_one_with_it),
    ("chunk-from-anybody", a_chunk_of_another_host_is_none_of_a_stream),
    ("dropped-taken-for-refused", a_receiver_without_room_is_asked_again),
    ("stop-taken-for-a-failure", a_replica_that_stops_while_it_recovers_has_not_failed),
];

/// A leader with a state of several chunks, whose log begins behind its snapshot.
pub fn led(others: u64) -> (Trio, Index) {
    let mut trio = Trio::new(others, |_| {});
    trio.put(0..300);
    let index = trio.save(1).unwrap();
    assert_eq!(trio.start_index(1), index);
    (trio, index)
}

fn decoded(frame: &Frame) -> Option<Chunk> {
    if frame.lane != Lane::Snapshot {
        return None;
    }
    match SnapshotFrame::decode(frame.bytes.clone()) {
        Ok(SnapshotFrame::Chunk(chunk)) => Some(chunk),
        _ => None,
    }
}

fn encoded(like: &Frame, chunk: &Chunk) -> Frame {
    let mut bytes = BytesMut::new();
    chunk.encode().iter().for_each(|part: &Bytes| bytes.extend_from_slice(part));
    Frame { bytes: bytes.freeze(), ..like.clone() }
}

/// Keeps chunks from the given one on in a list, and lets the others through.
pub fn hold_chunks(trio: &Trio, from: usize) -> Arc<Mutex<Vec<Frame>>> {
    let held = Arc::new(Mutex::new(Vec::new()));
    let (keeps, count) = (Arc::clone(&held), AtomicUsize::new(0));
    trio.wires.filter(move |frame| {
        if decoded(&frame).is_some() && count.fetch_add(1, Ordering::Relaxed) >= from {
            keeps.lock().push(frame);
            return None;
        }
        Some(frame)
    });
    held
}

/// Says this of a chunk, in the name of its receiver.
fn answered(frame: &Frame, chunk: &Chunk, outcome: ChunkOutcome) -> Frame {
    let Chunk { group, epoch, from, to, term, stream_id, .. } = *chunk;
    let status = ChunkStatus { group, epoch, from: to, to: from, term, stream_id, offset: 0, outcome };
    let mut bytes = BytesMut::new();
    status.encode().iter().for_each(|part: &Bytes| bytes.extend_from_slice(part));
    Frame { from: frame.to, to: frame.from, bytes: bytes.freeze(), ..frame.clone() }
}

/// Replica 2 joins, and is sent a snapshot; its log writer stands before the record is written.
fn installed_and_not_recorded(trio: &mut Trio, index: Index) {
    trio.join(2);
    trio.pass(5);
    trio.one(2).writer_stands = true;
    trio.until("files", |trio| trio.files(2).iter().any(|i| *i >= index));
    trio.pass(50);
}

fn entries_wait_while_a_state_machine_recovers() {
    let (mut trio, index) = led(1);
    installed_and_not_recorded(&mut trio, index);
    trio.one(2).pool_stands = true;
    trio.one(2).writer_stands = false;
    trio.until("an install", |trio| trio.recorded(2) >= index);
    // The recovery is in the pool, and the pool stands. What is committed meanwhile reaches the host.
    trio.put(300..310);
    trio.pass(100);
    assert_eq!(trio.values(2), Vec::<u64>::new());
    trio.one(2).pool_stands = false;
    trio.until_values(2, 0..310);
    assert_eq!(trio.one(2).storage.lock().recovered, 1);
}

fn a_state_is_not_replaced_by_an_older_one() {
    let (mut trio, index) = led(1);
    trio.join(2);
    trio.until_values(2, 0..300);
    let installed = trio.recorded(2);
    assert!(installed >= index);
    trio.put(300..310);
    trio.until_values(2, 0..310);
    let one = trio.one(2);
    let meta = SnapshotMeta { pos: LogPos::new(Term(1), installed), ..SnapshotMeta::default() };
    let items = vec![ApplyItem::Recover(Box::new(meta))];
    // The storage says that it has less, as one would that lost its newest writes.
    let shared = Arc::clone(&one.shared);
    one.host.shared.apply[0].push(&mut vec![ApplyTask { shared, items }]);
    trio.pass(20);
    let recovered = trio.one(2).storage.lock().recovered;
    trio.put(310..320);
    trio.until_values(2, 0..320);
    assert_eq!(recovered, 1);
}

fn one_view_is_sent_at_a_time() {
    let (mut trio, _) = led(2);
    let held = hold_chunks(&trio, 0);
    trio.join(2);
    trio.join(3);
    trio.pass(300);
    assert!(!held.lock().is_empty());
    assert_eq!(trio.one(1).storage.lock().live_max, 1);
    trio.wires.open();
    trio.until_values(2, 0..300);
    trio.until_values(3, 0..300);
    assert_eq!(trio.one(1).storage.lock().live_max, 1);
}

fn a_machine_that_is_not_ready_is_asked_again() {
    let (mut trio, _) = led(1);
    trio.one(1).storage.lock().fails = 2;
    trio.join(2);
    trio.until_values(2, 0..300);
    assert_eq!(trio.one(1).storage.lock().fails, 0);
}

/// A receiver without room is asked by empty chunks, and sent the same bytes when it has some.
fn a_receiver_without_room_is_asked_again() {
    let (mut trio, _) = led(1);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let keeps = Arc::clone(&asked);
    trio.wires.filter(move |frame| match decoded(&frame) {
        Some(chunk) => {
            if chunk.meta.is_some() && chunk.data.is_empty() {
                keeps.lock().push(frame.clone());
            }
            Some(answered(&frame, &chunk, ChunkOutcome::Busy))
        }
        None => Some(frame),
    });
    trio.join(2);
    trio.until("three questions", |_| asked.lock().len() == 3);
    // Of what was sent before it had said so, the receiver knows no stream.
    let question = asked.lock()[0].clone();
    trio.wires.inject(answered(&question, &decoded(&question).unwrap(), ChunkOutcome::Refused));
    trio.pass(5);
    assert_eq!(trio.one(1).host.shared.transfers.list().len(), 1);
    trio.wires.open();
    trio.until_values(2, 0..300);
    assert_eq!(trio.one(1).storage.lock().views, 1, "the transfer that waited is the one that arrived");
}

/// Who has waited for room for long makes place for another, and comes back.
fn a_place_is_not_held_for_ever_by_who_waits_for_room() {
    let (mut trio, _) = led(1);
    trio.wires.filter(move |frame| match decoded(&frame) {
        Some(chunk) => Some(answered(&frame, &chunk, ChunkOutcome::Busy)),
        None => Some(frame),
    });
    trio.join(2);
    trio.until("another view", |trio| trio.one(1).storage.lock().views > 1);
    trio.wires.open();
    trio.until_values(2, 0..300);
}

/// The first chunk of the first stream, and a world in which that stream has come to its end.
fn after_a_stream() -> (Trio, Frame, Index) {
    let (mut trio, index) = led(1);
    let first = Arc::new(Mutex::new(None));
    let keeps = Arc::clone(&first);
    trio.wires.filter(move |frame| {
        if decoded(&frame).is_some() {
            keeps.lock().get_or_insert_with(|| frame.clone());
        }
        Some(frame)
    });
    trio.join(2);
    trio.until_values(2, 0..300);
    let frame = first.lock().take().unwrap();
    (trio, frame, index)
}

fn a_stream_of_what_is_here_already_is_refused() {
    let (mut trio, frame, _) = after_a_stream();
    trio.pass(100);
    assert!(trio.one(2).host.shared.transfers.list().is_empty());
    // The very same chunk again, and one of another stream of the same snapshot.
    let other = Chunk { stream_id: 77, ..decoded(&frame).unwrap() };
    for late in [frame.clone(), encoded(&frame, &other)] {
        trio.wires.inject(late);
        trio.pass(2);
        assert_eq!(trio.one(2).host.shared.transfers.list(), [], "a place is taken by what is of no use");
    }
    trio.put(300..305);
    trio.until_values(2, 0..305);
}

fn a_stream_of_an_older_snapshot_does_not_replace_a_newer_one() {
    let (mut trio, _) = led(1);
    let held = hold_chunks(&trio, 1);
    trio.join(2);
    trio.until("a chunk", |_| !held.lock().is_empty());
    let running = trio.one(2).host.shared.transfers.list();
    assert_eq!(running.len(), 1);
    let frame = held.lock()[0].clone();
    let mut old = decoded(&frame).unwrap();
    let pos = LogPos::new(Term(1), Index(running[0].index.0 - 1));
    old.meta = Some(Box::new(SnapshotMeta { pos, ..SnapshotMeta::default() }));
    (old.offset, old.stream_id) = (0, 77);
    trio.wires.inject(encoded(&frame, &old));
    trio.pass(5);
    assert_eq!(trio.one(2).host.shared.transfers.list(), running);
    trio.wires.open();
    trio.until_values(2, 0..300);
}

fn a_file_that_is_not_what_was_announced_is_refused() {
    let (mut trio, _) = led(1);
    let changed = AtomicUsize::new(0);
    trio.wires.filter(move |frame| match decoded(&frame) {
        Some(mut chunk) if chunk.meta.is_some() && changed.fetch_add(1, Ordering::Relaxed) == 0 => {
            let meta = chunk.meta.as_mut().unwrap();
            meta.membership.removed.insert(ReplicaId(99));
            Some(encoded(&frame, &chunk))
        }
        _ => Some(frame),
    });
    trio.join(2);
    trio.until_values(2, 0..300);
    let membership = trio.one(2).shared.membership.lock().clone();
    assert!(!membership.removed.contains(&ReplicaId(99)), "what the file did not say was believed");
}

fn the_log_behind_a_running_install_stays() {
    let (mut trio, _) = led(1);
    let held = hold_chunks(&trio, 1);
    trio.join(2);
    trio.until("a chunk", |_| !held.lock().is_empty());
    let sent = trio.one(1).host.shared.transfers.list()[0].index;
    trio.put(300..320);
    trio.save(1).unwrap();
    assert_eq!(trio.start_index(1), sent, "what comes after the snapshot is kept for its receiver");
    trio.wires.open();
    trio.until_values(2, 0..320);
    assert_eq!(trio.one(2).storage.lock().recovered, 1, "one install was enough");
    // It has gone on: the log need not be kept any more.
    trio.put(320..325);
    trio.until_values(2, 0..325);
    let index = trio.save(1).unwrap();
    assert_eq!(trio.start_index(1), index);
}

fn a_recovery_begins_when_its_record_is_durable() {
    let (mut trio, index) = led(1);
    // The whole file is there, and raft has taken it.
    installed_and_not_recorded(&mut trio, index);
    assert_eq!(trio.one(2).storage.lock().recovered, 0, "a crash now would leave storage ahead of its log");
    trio.one(2).writer_stands = false;
    trio.until_values(2, 0..300);
}

fn storage_that_was_lost_is_filled_by_the_leader() {
    let (mut trio, _) = led(1);
    trio.join(2);
    trio.until_values(2, 0..300);
    trio.put(300..310);
    trio.until_values(2, 0..310);
    trio.save(2).unwrap();
    trio.restart(2, |_| Storage::default());
    assert_eq!(trio.values(2), Vec::<u64>::new());
    trio.until_values(2, 0..310);
    trio.put(310..320);
    trio.until_values(2, 0..320);
    // With all that it needs, it is sent nothing.
    trio.restart(2, |storage| storage);
    trio.put(320..325);
    trio.until_values(2, 0..325);
    assert_eq!(trio.one(2).storage.lock().recovered, 1);
}

fn a_save_that_an_install_has_overtaken_leaves_no_record() {
    let (mut trio, _) = led(1);
    trio.join(2);
    trio.until_values(2, 0..300);
    trio.put(300..305);
    trio.until_values(2, 0..305);
    // A save waits in the pool of a follower that is cut off, and the log goes on without it.
    trio.one(2).pool_stands = true;
    let asked = trio.one(2).shared.enqueue_snapshot(Default::default(), longboat_raft::Time(u64::MAX)).unwrap();
    trio.pass(5);
    trio.wires.filter(|frame| (frame.to != HostId(2) && frame.from != HostId(2)).then_some(frame));
    trio.put(305..400);
    let newer = trio.save(1).unwrap();
    trio.wires.open();
    // The receiving job comes first, the save's after the install.
    trio.until("an install", |trio| {
        trio.one(2).jobs.step_all_but_the_oldest();
        trio.recorded(2) >= newer
    });
    trio.one(2).pool_stands = false;
    trio.until_values(2, 0..400);
    trio.pass(50);
    assert!(asked.wait_timeout(std::time::Duration::ZERO).expect("resolved").is_err(), "it was overtaken");
    assert_eq!(trio.files(2), [trio.recorded(2)]);
    trio.restart(2, |storage| storage);
    trio.put(400..405);
    trio.until_values(2, 0..405);
}

fn snapshots_that_no_record_names_go_at_the_start() {
    let dir = TempDir::new().unwrap();
    drop(Alone::open(dir.path()));
    let place = dir.path().join("snapshots").join(GROUP.0.to_string()).join("1");
    for name in ["snapshot-7", "snapshot-9-1.tmp"] {
        std::fs::create_dir_all(place.join(name)).unwrap();
    }
    drop(Alone::open(dir.path()));
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "a crash's leavings stay for ever");
}

fn the_end_of_a_former_transfer_is_not_taken_for_a_later_ones() {
    let (mut trio, _) = led(1);
    hold_chunks(&trio, 2);
    trio.join(2);
    trio.until("a view", |trio| trio.one(1).storage.lock().views == 1);
    trio.pass(50);
    // One that began in an earlier leadership, and stood since.
    let shared = Arc::clone(&trio.one(1).shared);
    let former = Command::SnapshotSent { shared, to: ReplicaId(2), number: 0, ok: false };
    trio.one(1).host.shared.workers[0].command(former);
    trio.pass(200);
    assert_eq!(trio.one(1).storage.lock().views, 1, "another transfer began beside the one that is under way");
    trio.put(300..320);
    let index = trio.save(1).unwrap();
    assert!(trio.start_index(1) < index, "the log behind the running transfer has gone");
    trio.wires.open();
    trio.until_values(2, 0..320);
}

fn a_snapshot_that_came_in_vain_takes_no_recorded_one_with_it() {
    let (mut trio, index) = led(0);
    trio.put(300..320);
    // A newer one is on its way to the disk, and does not reach it.
    trio.one(1).writer_stands = true;
    let asked = trio.one(1).shared.enqueue_snapshot(Default::default(), longboat_raft::Time(u64::MAX)).unwrap();
    trio.pass(50);
    // One at the index of the recorded one was received, and raft had no use for it.
    let one = trio.one(1);
    let replica = one.host.steps[0].replicas().next().unwrap();
    one.host.snapshots.discard(replica, index);
    trio.pass(50);
    assert!(trio.files(1).contains(&index), "a crash now would leave a record of what is gone");
    drop(asked);
    trio.restart(1, |storage| storage);
    trio.pass(300);
    assert_eq!(trio.recorded(1), index);
    trio.check();
}

fn a_chunk_of_another_host_is_none_of_a_stream() {
    let (mut trio, _) = led(1);
    let held = hold_chunks(&trio, 1);
    trio.join(2);
    trio.until("a chunk", |_| !held.lock().is_empty());
    let frame = held.lock()[0].clone();
    let mut chunk = decoded(&frame).unwrap();
    chunk.data = Bytes::from(vec![0; chunk.data.len()]);
    trio.wires.inject(Frame { from: HostId(3), ..encoded(&frame, &chunk) });
    trio.pass(5);
    trio.wires.open();
    trio.until_values(2, 0..300);
    assert_eq!(trio.one(1).storage.lock().views, 1, "what another host sent broke the transfer");
}

fn a_replica_that_stops_while_it_recovers_has_not_failed() {
    let (mut trio, index) = led(1);
    installed_and_not_recorded(&mut trio, index);
    // Its recovery is the next thing that the pool would do.
    (trio.one(2).pool_stands, trio.one(2).writer_stands) = (true, false);
    trio.until("a record", |trio| trio.recorded(2) >= index);
    trio.pass(5);
    assert_eq!(trio.one(2).storage.lock().recovered, 0);
    assert!(trio.one(2).host.starter.stop(GROUP));
    trio.pass(5);
    trio.one(2).pool_stands = false;
    trio.pass(20);
    assert!(trio.one(2).host.shared.group(GROUP).is_none(), "it has stopped");
    trio.check();
}

/// What else a transfer goes through.
pub const SCENARIOS: &[(&str, fn())] = &[
    ("a place is not held for ever by who waits for room", a_place_is_not_held_for_ever_by_who_waits_for_room),
    ("a broken connection costs a live stream nothing but time", a_broken_connection_costs_only_time),
    ("a stream that stands gives up its places", a_stream_that_stands_gives_up_its_places),
    ("a stream goes on while its group compacts past it", a_stream_survives_a_broken_transfer_and_compaction),
    ("a sender dies and another leader streams another index", a_sender_dies_and_another_leader_streams),
    ("a learner that is promoted while it receives", a_learner_is_promoted_while_it_receives),
];

fn a_broken_connection_costs_only_time() {
    let (mut trio, _) = led(1);
    let count = AtomicUsize::new(0);
    // Chunks 2 and 3 are lost, and so is every second answer.
    trio.wires.filter(move |frame| {
        let lost = match decoded(&frame) {
            Some(_) => (1..3).contains(&count.fetch_add(1, Ordering::Relaxed)),
            None => frame.lane == Lane::Snapshot && count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2),
        };
        (!lost).then_some(frame)
    });
    trio.join(2);
    trio.until_values(2, 0..300);
    assert_eq!(trio.one(1).storage.lock().views, 1, "the view can't be made a second time");
}

fn a_stream_that_stands_gives_up_its_places() {
    let (mut trio, _) = led(1);
    let held = hold_chunks(&trio, 1);
    trio.join(2);
    trio.until("a chunk", |_| !held.lock().is_empty());
    trio.wires.filter(|frame| (frame.lane != Lane::Snapshot).then_some(frame));
    let begun = trio.one(2).host.shared.transfers.list();
    trio.pass(15_000);
    assert_eq!(trio.one(2).host.shared.transfers.list(), begun);
    trio.until("free places", |trio| trio.one(2).host.shared.transfers.list().is_empty());
    trio.wires.open();
    trio.until_values(2, 0..300);
    assert!(trio.one(1).storage.lock().views >= 2);
}

fn a_stream_survives_a_broken_transfer_and_compaction() {
    let (mut trio, _) = led(1);
    let held = hold_chunks(&trio, 1);
    trio.join(2);
    trio.until("a chunk", |_| !held.lock().is_empty());
    for round in 0..5 {
        trio.put(300 + round * 10..310 + round * 10);
        trio.save(1).unwrap();
    }
    trio.wires.open();
    trio.until_values(2, 0..350);
    assert_eq!(trio.one(1).storage.lock().views, 1);
}

fn a_learner_is_promoted_while_it_receives() {
    let (mut trio, _) = led(1);
    let held = hold_chunks(&trio, 1);
    trio.join(2);
    trio.until("a chunk", |_| !held.lock().is_empty());
    let shared = Arc::clone(&trio.one(1).shared);
    let member = longboat_raft::Member { host: HostId(2), store: longboat_raft::StoreId::ZERO };
    let change = longboat_raft::ConfigChange::add_voter(ReplicaId(2), member);
    let deadline = longboat_raft::Time(u64::MAX);
    let pending: longboat_rsm::Pending<longboat_engine::Changed> =
        shared.request(deadline, |reply| longboat_engine::Rare::Change(change, reply)).unwrap();
    trio.pass(20);
    trio.wires.open();
    trio.until("a voter", |trio| trio.one(2).shared.membership.lock().is_voter(ReplicaId(2)));
    trio.put(300..310);
    trio.until_values(2, 0..310);
    pending.wait_timeout(std::time::Duration::ZERO).expect("resolved").expect("promoted");
}

fn a_sender_dies_and_another_leader_streams() {
    let mut trio = Trio::voters();
    let old = trio.leader();
    trio.put_on(old, 0..10);
    let (next, behind) = (old % 3 + 1, (old + 1) % 3 + 1);
    trio.until_values(behind, 0..10);
    trio.until_values(next, 0..10);
    let (cut_off, without) = (HostId(behind), HostId(old));
    trio.wires.filter(move |frame| (frame.to != cut_off && frame.from != cut_off).then_some(frame));
    trio.put_on(old, 10..300);
    trio.until_values(next, 0..300);
    for id in [old, next] {
        trio.save(id).unwrap();
    }
    let held = hold_chunks(&trio, 1);
    trio.until("a chunk", |_| !held.lock().is_empty());
    let begun = trio.one(behind).host.shared.transfers.list();
    assert_eq!((begun.len(), begun[0].host), (1, without));
    trio.kill(old);
    // The next leader's stream takes the place of the dead one's, which would be held for half a minute.
    trio.wires.open();
    assert_eq!(trio.leader(), next);
    let from = trio.clock.0.load(Ordering::Relaxed);
    trio.until_values(behind, 0..300);
    assert!(trio.clock.0.load(Ordering::Relaxed) - from < 10_000 * MILLI);
    trio.put_on(next, 300..310);
    trio.until_values(behind, 0..310);
}
