//! Snapshots end to end: saved, read back, moved, damaged, cut off.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::completion::AnyCompletion;
use crate::machine::{DynMachine, MachineError};
use crate::reads::AnyReads;
use faulty::FaultyDisk;
use longboat_io::disk::SharedDisk;
use longboat_io::{Job, JobState, RealDisk};
use longboat_raft::{
    GroupEpoch, GroupId, HostId, Index, LogPos, Member, Membership, ReplicaId, Run, SnapshotMeta, StoreId, Term,
};
use parking_lot::Mutex;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use tempfile::TempDir;

mod content;
mod exported;
mod faulty;
mod power;

const GROUP: GroupId = GroupId(7);
const REPLICA: ReplicaId = ReplicaId(2);

/// A state machine that is a heap of bytes, with a wish how to fail.
struct Heap {
    bytes: Vec<u8>,
    trouble: Trouble,
    stop: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Error,
    Panic,
    /// Sets the stop flag half-way, and takes no notice of failed writes.
    Stop,
}

impl Heap {
    fn trouble(&self) -> Result<(), MachineError> {
        match self.trouble {
            Trouble::None => Ok(()),
            Trouble::Error => Err(MachineError::user("out of luck")),
            Trouble::Panic => panic!("out of reach"),
            Trouble::Stop => {
                self.stop.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

impl DynMachine for Heap {
    fn apply_run(&mut self, _: &Run, _: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        unreachable!("nothing is applied here")
    }

    fn lookup(&self, _: Box<dyn AnyReads>) {
        unreachable!("nothing is asked here")
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        let (now, later) = self.bytes.split_at(self.bytes.len() / 2);
        out.write_all(now)?;
        self.trouble()?;
        match out.write_all(later) {
            Err(error) if self.trouble != Trouble::Stop => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.trouble()?;
        self.bytes.clear();
        input.read_to_end(&mut self.bytes)?;
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        None
    }
}

fn header(index: u64) -> SnapshotHeader {
    let hosts = [1, 2, 3].map(|n| (ReplicaId(n), Member { host: HostId(n + 10), store: StoreId(u128::from(n) << 70) }));
    let membership = Membership {
        voters: [1, 2].map(ReplicaId).into(),
        outgoing: [2, 3].map(ReplicaId).into(),
        learners_next: [ReplicaId(3)].into(),
        auto_leave: true,
        hosts: hosts.into(),
        removed: [ReplicaId(9)].into(),
        change_id: Index(4),
        ..Membership::default()
    };
    let pos = LogPos::new(Term(3), Index(index));
    SnapshotHeader { group: GROUP, epoch: GroupEpoch(2), meta: SnapshotMeta { pos, membership }, ..Default::default() }
}

fn state(bytes: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.truncate(bytes);
    out
}

fn real_store(dir: &TempDir) -> SnapshotStore {
    SnapshotStore::new(Arc::new(RealDisk), dir.path().join("snapshots"))
}

fn machine(bytes: Vec<u8>, trouble: Trouble, stop: &Arc<AtomicBool>) -> SharedMachine {
    Arc::new(Mutex::new(Box::new(Heap { bytes, trouble, stop: Arc::clone(stop) })))
}

fn prepared(machine: &SharedMachine) -> Prepared {
    Prepared::new(machine, &mut **machine.lock(), Content::Full).unwrap()
}

fn run(mut job: impl Job) {
    while job.step(1 << 20) != JobState::Done {}
}

fn save_with(
    store: &SnapshotStore,
    index: u64,
    bytes: Vec<u8>,
    trouble: Trouble,
) -> Result<SavedSnapshot, SnapshotError> {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, outcome) = mpsc::channel();
    run(SaveJob::new(SaveTask {
        prepared: prepared(&machine(bytes, trouble, &stop)),
        export_to: None,
        header: header(index),
        replica: REPLICA,
        store: store.clone(),
        stop,
        on_done: Box::new(move |saved| sender.send(saved).unwrap()),
    }));
    outcome.recv().unwrap()
}

fn save(store: &SnapshotStore, index: u64, bytes: Vec<u8>) -> SavedSnapshot {
    save_with(store, index, bytes, Trouble::None).unwrap()
}

/// Recovers into a machine that held something else; returns the state.
fn recover(store: &SnapshotStore, index: u64, trouble: Trouble) -> Result<(SnapshotMeta, Vec<u8>), SnapshotError> {
    let stop = Arc::new(AtomicBool::new(false));
    let machine = Arc::new(Mutex::new(Heap { bytes: vec![1, 2, 3], trouble, stop: Arc::clone(&stop) }));
    struct Shared(Arc<Mutex<Heap>>);
    impl DynMachine for Shared {
        fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
            self.0.lock().apply_run(run, results)
        }
        fn lookup(&self, reads: Box<dyn AnyReads>) {
            self.0.lock().lookup(reads);
        }
        fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
            self.0.lock().save(out)
        }
        fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
            self.0.lock().recover(input)
        }
        fn state_hash(&self) -> Option<u64> {
            None
        }
    }
    let (sender, outcome) = mpsc::channel();
    run(RecoverJob::new(RecoverTask {
        machine: Arc::new(Mutex::new(Box::new(Shared(Arc::clone(&machine))))),
        group: GROUP,
        replica: REPLICA,
        index: Index(index),
        older: Vec::new(),
        store: store.clone(),
        stop,
        on_done: Box::new(move |recovered| sender.send(recovered).unwrap()),
    }));
    let meta = outcome.recv().unwrap()?;
    let bytes = std::mem::take(&mut machine.lock().bytes);
    Ok((meta, bytes))
}

fn file_path(dir: &TempDir, index: u64) -> PathBuf {
    dir.path().join(format!("snapshots/{GROUP}/{REPLICA}/snapshot-{index}/snapshot.bin"))
}

fn replica_dir(dir: &TempDir) -> PathBuf {
    dir.path().join(format!("snapshots/{GROUP}/{REPLICA}"))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Feeds a file to a new receiver in chunks; the file is published at the end.
fn receive(
    store: &SnapshotStore,
    key: TransferKey,
    file: &[u8],
    chunk: usize,
) -> Result<SnapshotHeader, SnapshotError> {
    let mut incoming = IncomingSnapshot::begin(store, REPLICA, key)?;
    for (n, data) in file.chunks(chunk).enumerate() {
        incoming.append((n * chunk) as u64, data)?;
    }
    while incoming.finish()? != JobState::Done {}
    Ok(incoming.header().unwrap().clone())
}

fn key(index: u64, file: &[u8]) -> TransferKey {
    TransferKey { group: GROUP, pos: LogPos::new(Term(3), Index(index)), total_bytes: file.len() as u64 }
}

#[test]
fn a_saved_state_is_recovered_whole_for_any_size() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    for (index, bytes) in [(1, 0), (2, 1), (3, BLOCK_BYTES), (4, BLOCK_BYTES + 1), (5, 3 * BLOCK_BYTES - 1)] {
        let saved = save(&store, index, state(bytes));
        assert_eq!(saved.meta, header(index).meta);
        assert_eq!(saved.bytes, std::fs::metadata(file_path(&dir, index)).unwrap().len());
        let (meta, recovered) = recover(&store, index, Trouble::None).unwrap();
        assert_eq!(meta, header(index).meta, "membership and joint part included");
        assert!(recovered == state(bytes), "{bytes} bytes");
        assert_eq!(store.verify(GROUP, REPLICA, Index(index)).unwrap(), header(index));
    }
    assert_eq!(store.list(GROUP, REPLICA).unwrap(), [1, 2, 3, 4, 5].map(Index));
    assert_eq!(store.replicas().unwrap(), [(GROUP, REPLICA)]);
}

#[test]
fn a_group_has_no_directory_before_its_first_snapshot() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    assert_eq!(store.list(GROUP, REPLICA).unwrap(), []);
    assert_eq!(store.replicas().unwrap(), []);
    assert_eq!(store.remove_orphans(GROUP, REPLICA, &[]).unwrap(), 0);
    store.remove_replica(GROUP, REPLICA).unwrap();
    assert!(!dir.path().join("snapshots").exists());
}

#[test]
fn a_flipped_bit_in_any_byte_is_refused_by_reader_and_receiver() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    save(&store, 5, state(300));
    let good = std::fs::read(file_path(&dir, 5)).unwrap();
    let target = TempDir::new().unwrap();
    let receiver = real_store(&target);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        // The attempt before has set the damaged snapshot aside.
        std::fs::create_dir_all(file_path(&dir, 5).parent().unwrap()).unwrap();
        std::fs::write(file_path(&dir, 5), &bad).unwrap();
        assert!(store.verify(GROUP, REPLICA, Index(5)).is_err(), "byte {at} was read as good");
        let refused = recover(&store, 5, Trouble::None).expect_err("a bit of it is another");
        assert!(refused.is_unusable(), "byte {at} is damage, and no reason to give the replica up: {refused}");
        assert!(receive(&receiver, key(5, &bad), &bad, 64).is_err(), "byte {at} was received as good");
        assert_eq!(names(&replica_dir(&target)), [] as [&str; 0], "byte {at} left something behind");
    }
}

#[test]
fn a_flipped_byte_of_a_large_file_never_reaches_the_state_machine() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    let whole = state(2 * BLOCK_BYTES + 77);
    save(&store, 5, whole.clone());
    let good = std::fs::read(file_path(&dir, 5)).unwrap();
    for at in (0..good.len()).step_by(good.len() / 40) {
        let mut bad = good.clone();
        bad[at] = !bad[at];
        std::fs::write(file_path(&dir, 5), &bad).unwrap();
        let Ok(mut reader) = store.open(GROUP, REPLICA, Index(5)) else { continue };
        let mut handed_out = Vec::new();
        reader.read_to_end(&mut handed_out).unwrap_err();
        assert!(whole.starts_with(&handed_out), "damaged bytes were handed out for byte {at}");
    }
}

#[test]
fn a_file_cut_short_or_grown_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    save(&store, 5, state(300));
    let good = std::fs::read(file_path(&dir, 5)).unwrap();
    let target = TempDir::new().unwrap();
    let receiver = real_store(&target);
    for bytes in 0..good.len() {
        std::fs::write(file_path(&dir, 5), &good[..bytes]).unwrap();
        let refused = store.verify(GROUP, REPLICA, Index(5)).expect_err("there is less of it");
        assert!(refused.is_unusable(), "{bytes} bytes: {refused}");
        assert!(receive(&receiver, key(5, &good), &good[..bytes], 100).is_err(), "{bytes} bytes were received as good");
        assert!(receive(&receiver, key(5, &good[..bytes]), &good[..bytes], 100).is_err(), "announced as {bytes} bytes");
    }
    let mut grown = good;
    grown.push(0);
    std::fs::write(file_path(&dir, 5), &grown).unwrap();
    assert!(store.verify(GROUP, REPLICA, Index(5)).is_err());
    assert!(receive(&receiver, key(5, &grown), &grown, 100).is_err());
}

#[test]
fn blocks_of_another_file_or_another_place_are_refused() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    save(&store, 5, state(2 * BLOCK_BYTES));
    save(&store, 6, state(2 * BLOCK_BYTES));
    let five = std::fs::read(file_path(&dir, 5)).unwrap();
    let six = std::fs::read(file_path(&dir, 6)).unwrap();
    let block = BLOCK_BYTES + 16;
    let first = five.len() - 40 - 2 * block;
    let mut swapped = five.clone();
    swapped[first..first + block].copy_from_slice(&five[first + block..first + 2 * block]);
    swapped[first + block..first + 2 * block].copy_from_slice(&five[first..first + block]);
    let mut foreign = five;
    foreign[first..first + block].copy_from_slice(&six[first..first + block]);
    for bad in [swapped, foreign] {
        std::fs::write(file_path(&dir, 5), &bad).unwrap();
        let error = store.verify(GROUP, REPLICA, Index(5)).unwrap_err();
        assert!(matches!(&error, SnapshotError::Corrupt(what) if what.contains("block 0")), "{error}");
    }
    std::fs::write(file_path(&dir, 5), &six).unwrap();
    let error = store.verify(GROUP, REPLICA, Index(5)).unwrap_err();
    assert!(matches!(error, SnapshotError::Mismatch { found_index: Index(6), .. }), "{error}");
}

#[test]
fn a_save_that_fails_panics_or_is_stopped_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    for (trouble, bytes) in [(Trouble::Error, 10), (Trouble::Panic, 10), (Trouble::Stop, 8 * BLOCK_BYTES)] {
        let error = save_with(&store, 5, state(bytes), trouble).unwrap_err();
        match trouble {
            Trouble::Error => assert!(matches!(&error, SnapshotError::Machine(m) if m == "out of luck"), "{error}"),
            Trouble::Panic => assert!(matches!(&error, SnapshotError::Panicked(m) if m == "out of reach"), "{error}"),
            _ => assert!(matches!(error, SnapshotError::Stopped), "{error}"),
        }
        assert_eq!(names(&replica_dir(&dir)), [] as [&str; 0]);
    }
    save(&store, 5, state(10));
    assert_eq!(names(&replica_dir(&dir)), ["snapshot-5"]);
}

#[test]
fn writing_ends_at_the_block_after_a_stop() {
    let dir = TempDir::new().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writer = real_store(&dir).begin(header(5), REPLICA, Arc::clone(&stop)).unwrap();
    writer.write_all(&state(BLOCK_BYTES)).unwrap();
    stop.store(true, Ordering::Relaxed);
    writer.write_all(&state(BLOCK_BYTES - 1)).unwrap();
    writer.write_all(&[0]).unwrap_err();
    writer.write_all(&[0]).unwrap_err();
    assert!(matches!(writer.finish(), Err(SnapshotError::Stopped)));
    assert_eq!(names(&replica_dir(&dir)), [] as [&str; 0]);
}

#[test]
fn a_dropped_job_reports_that_it_was_stopped_after_it_has_cleaned_up() {
    let dir = TempDir::new().unwrap();
    let (sender, outcome) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let watched = replica_dir(&dir);
    let mut job = SaveJob::new(SaveTask {
        prepared: prepared(&machine(state(10), Trouble::None, &stop)),
        export_to: None,
        header: header(5),
        replica: REPLICA,
        store: real_store(&dir),
        stop,
        on_done: Box::new(move |saved| sender.send((saved.is_err(), names(&watched).len())).unwrap()),
    });
    assert_eq!(job.step(1), JobState::Again);
    assert_eq!(names(&replica_dir(&dir)), ["snapshot-5-1.tmp"]);
    drop(job);
    assert_eq!(outcome.recv().unwrap(), (true, 0));
}

#[test]
fn a_state_machine_that_fails_to_recover_is_reported() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    save(&store, 5, state(10));
    assert!(matches!(recover(&store, 5, Trouble::Error), Err(SnapshotError::Machine(m)) if m == "out of luck"));
    assert!(matches!(recover(&store, 5, Trouble::Panic), Err(SnapshotError::Panicked(m)) if m == "out of reach"));
    assert!(matches!(recover(&store, 5, Trouble::Stop), Err(SnapshotError::Stopped)));
    assert!(
        matches!(recover(&store, 6, Trouble::None), Err(SnapshotError::Io(e)) if e.kind() == io::ErrorKind::NotFound)
    );
}

#[test]
fn orphans_and_unfinished_snapshots_are_removed_and_strangers_are_not() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    for index in [3, 5, 9] {
        save(&store, index, state(10));
    }
    for name in ["snapshot-11-4.tmp", "snapshot-7.broken", "snapshot-007", "notes"] {
        std::fs::create_dir(replica_dir(&dir).join(name)).unwrap();
    }
    assert_eq!(store.remove_orphans(GROUP, REPLICA, &[Index(5)]).unwrap(), 3);
    assert_eq!(names(&replica_dir(&dir)), ["notes", "snapshot-007", "snapshot-5", "snapshot-7.broken"]);
    assert_eq!(store.list(GROUP, REPLICA).unwrap(), [Index(5)]);
    store.remove(GROUP, REPLICA, Index(5)).unwrap();
    store.remove(GROUP, REPLICA, Index(5)).unwrap();
    assert_eq!(store.list(GROUP, REPLICA).unwrap(), []);
    store.remove_replica(GROUP, REPLICA).unwrap();
    assert_eq!(store.replicas().unwrap(), []);
}

#[test]
fn a_transfer_arrives_whole_for_any_chunk_size() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    let bytes = state(BLOCK_BYTES + 1000);
    let saved = save(&store, 5, bytes.clone());
    for chunk in [7777, 64 << 10, 1 << 20] {
        let target = TempDir::new().unwrap();
        let receiver = real_store(&target);
        let mut outgoing = OutgoingSnapshot::open(&store, GROUP, REPLICA, Index(5)).unwrap();
        assert_eq!(outgoing.key().total_bytes, saved.bytes);
        let mut incoming = IncomingSnapshot::begin(&receiver, REPLICA, outgoing.key()).unwrap();
        let mut last = false;
        while let Some(part) = outgoing.next_chunk(chunk).unwrap() {
            assert!(!last && part.data.len() <= chunk);
            assert_eq!(incoming.append(part.offset, &part.data).unwrap(), Appended::Taken);
            last = part.last;
        }
        assert!(last && incoming.is_complete());
        assert_eq!(receiver.list(GROUP, REPLICA).unwrap(), [], "nothing counts before it is durable");
        while incoming.finish().unwrap() != JobState::Done {}
        assert_eq!(incoming.header(), Some(&header(5)));
        assert!(recover(&receiver, 5, Trouble::None).unwrap().1 == bytes);
        assert_eq!(names(&replica_dir(&target)), ["snapshot-5"]);
    }
}

#[test]
fn chunks_that_are_repeated_overlap_or_leave_a_gap() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    save(&store, 5, state(1000));
    let file = std::fs::read(file_path(&dir, 5)).unwrap();
    let target = TempDir::new().unwrap();
    let receiver = real_store(&target);
    let mut incoming = IncomingSnapshot::begin(&receiver, REPLICA, key(5, &file)).unwrap();
    assert_eq!(incoming.append(0, &file[..500]).unwrap(), Appended::Taken);
    assert!(matches!(incoming.append(501, &file[501..600]), Err(SnapshotError::Gap { expected: 500, found: 501 })));
    assert_eq!(incoming.append(100, &file[100..500]).unwrap(), Appended::Duplicate);
    assert_eq!(incoming.append(400, &file[400..700]).unwrap(), Appended::Taken);
    assert_eq!(incoming.received(), 700);
    incoming.append(700, &file[700..]).unwrap();
    while incoming.finish().unwrap() != JobState::Done {}
    assert_eq!(incoming.finish().unwrap(), JobState::Done, "asking again changes nothing");
    assert!(recover(&receiver, 5, Trouble::None).unwrap().1 == state(1000));
}

#[test]
fn a_receiver_refuses_what_was_not_announced_and_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    save(&store, 5, state(1000));
    let file = std::fs::read(file_path(&dir, 5)).unwrap();
    let target = TempDir::new().unwrap();
    let receiver = real_store(&target);
    let right = key(5, &file);
    let wrong = [
        TransferKey { group: GroupId(8), ..right },
        TransferKey { pos: LogPos::new(Term(3), Index(6)), ..right },
        TransferKey { pos: LogPos::new(Term(4), Index(5)), ..right },
        TransferKey { total_bytes: right.total_bytes - 1, ..right },
        TransferKey { total_bytes: right.total_bytes + 1, ..right },
    ];
    for key in wrong {
        assert!(receive(&receiver, key, &file, 300).is_err(), "{key:?}");
    }
    let incoming = IncomingSnapshot::begin(&receiver, REPLICA, right).unwrap();
    drop(incoming);
    assert_eq!(names(&replica_dir(&target)), [] as [&str; 0]);
}

#[test]
fn publishing_over_a_whole_snapshot_keeps_it_and_over_a_damaged_one_replaces_it() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    save(&store, 5, state(1000));
    let file = std::fs::read(file_path(&dir, 5)).unwrap();
    save(&store, 5, state(1000));
    assert_eq!(std::fs::read(file_path(&dir, 5)).unwrap(), file);
    std::fs::write(file_path(&dir, 5), &file[..100]).unwrap();
    save(&store, 5, state(1000));
    assert_eq!(std::fs::read(file_path(&dir, 5)).unwrap(), file);
    assert_eq!(names(&replica_dir(&dir)), ["snapshot-5"]);
}

#[test]
fn a_host_killed_at_any_step_finds_a_whole_snapshot_or_none() {
    let bytes = state(BLOCK_BYTES + 10);
    let mut whole = 0;
    for ops in 0.. {
        let dir = TempDir::new().unwrap();
        let disk: SharedDisk = Arc::new(FaultyDisk::dies_after(ops));
        let store = SnapshotStore::new(disk, dir.path().join("snapshots"));
        let outcome = save_with(&store, 5, bytes.clone(), Trouble::None);
        let reopened = real_store(&dir);
        for index in reopened.list(GROUP, REPLICA).unwrap() {
            assert!(recover(&reopened, index.0, Trouble::None).unwrap().1 == bytes, "killed after {ops} calls");
            whole += 1;
        }
        reopened.remove_orphans(GROUP, REPLICA, &[]).unwrap();
        assert_eq!(names(&replica_dir(&dir)), [] as [&str; 0], "killed after {ops} calls");
        if outcome.is_ok() {
            assert!(ops > 8, "fewer calls than there are steps");
            break;
        }
    }
    assert!(whole > 1, "some kills come after the rename");
}

#[test]
fn one_failing_call_fails_the_save_and_leaves_nothing() {
    for call in 0.. {
        let dir = TempDir::new().unwrap();
        let disk = Arc::new(FaultyDisk::fails_once_at(call));
        let store = SnapshotStore::new(Arc::clone(&disk) as SharedDisk, dir.path().join("snapshots"));
        let outcome = save_with(&store, 5, state(BLOCK_BYTES + 10), Trouble::None);
        if !disk.has_failed() {
            assert!(outcome.is_ok() && call > 8);
            break;
        }
        assert!(matches!(outcome, Err(SnapshotError::Io(_))), "call {call}");
        assert_eq!(names(&replica_dir(&dir)), [] as [&str; 0], "call {call}");
    }
}

#[test]
fn saves_are_held_up_only_by_a_write_limit_that_was_set() {
    let dir = TempDir::new().unwrap();
    assert!(real_store(&dir).throttle.is_none());
    assert!(real_store(&dir).with_write_limit(0).throttle.is_none());
    assert!(real_store(&dir).with_write_limit(1 << 20).throttle.is_some());
}
