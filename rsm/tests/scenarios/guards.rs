//! For each guard of this crate, a scenario that fails when the guard is gone.

use crate::support::*;
use longboat_io::disk::SharedDisk;
use longboat_io::sim::{SimDisk, SimDiskConfig, SimOp};
use longboat_io::{JobState, RealDisk};
use longboat_raft::{Index, Origin, PayloadCodec, Run, RunBuilder, Term};
use longboat_rsm::packed::{self, PackedBatch, UNPACKED_BYTES_MAX};
use longboat_rsm::snapshot::{Compression, Content, SaveJob, SaveTask, SnapshotError, SnapshotStore, verify_export};
use longboat_rsm::{Completion, Concurrent, Lookups, MachineError, OnDisk, Pending, Reads, RequestError};
use parking_lot::Mutex;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Wake, Waker};
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("session-retry-applied", a_retry_in_a_session_is_not_applied_again),
    ("evicted-session-applied", a_retry_in_an_evicted_session_is_refused),
    ("sessions-unbounded", a_group_keeps_no_more_sessions_than_it_was_told),
    ("session-use-not-counted", the_session_that_was_used_stays),
    ("sessions-not-saved", sessions_survive_a_snapshot),
    ("view-published-late", who_was_told_of_a_result_finds_its_effect),
    ("disk-entry-applied-twice", an_on_disk_machine_is_fed_no_entry_twice),
    ("metadata-snapshot-trusted", storage_that_lost_entries_is_not_taken_for_a_snapshot),
    ("behind-stops-the-replica", an_older_snapshot_without_state_is_of_no_use_to_storage_that_was_lost),
    ("storage-not-synced", a_snapshot_without_state_waits_for_the_storage),
    ("save-not-stopped", a_stop_ends_a_save_at_the_next_block),
    ("block-checksum-ignored", a_damaged_block_is_not_recovered),
    ("damage-taken-for-a-version", a_damaged_header_is_damage_and_a_later_version_is_none),
    ("broken-not-set-aside", a_damaged_snapshot_is_set_aside),
    ("unreadable-stops-the-replica", a_snapshot_that_the_disk_can_not_read_gives_way_to_an_older_one),
    ("passing-error-taken-for-damage", an_error_of_the_moment_costs_no_snapshot),
    ("export-directory-made", an_export_does_not_make_the_users_directory),
    ("export-metadata-not-compared", an_export_is_refused_with_the_metadata_of_another),
    ("packed-though-longer", a_payload_that_does_not_shrink_stays_as_it_is),
    ("unpacked-without-bound", a_packed_payload_takes_no_more_memory_than_a_proposal),
    ("imported-mark-ignored", an_import_rolls_storage_back_once),
];

const FIRST: Entry = Entry::Session { session: 1, series: 1, command: 50 };

/// A run of one command that is written like this.
fn coded(codec: PayloadCodec, payload: &[u8]) -> Run {
    let mut builder = RunBuilder::new();
    builder.push_coded(None, codec, 0, payload);
    builder.seal(Term(1), Index(1), Origin::default())
}

/// Bytes that no compression makes shorter.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn a_payload_that_does_not_shrink_stays_as_it_is() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        let (noise, short, long) = (noise(5000), vec![7; 63], [b"again and ".repeat(1000), noise(100)].concat());
        let mut batch = PackedBatch::default();
        for raw in [&noise, &short, &long] {
            batch.add(compression, raw);
        }
        let packed: Vec<_> = batch.payloads().collect();
        assert_eq!(packed[0], (PayloadCodec::Plain, &noise[..]));
        assert_eq!(packed[1], (PayloadCodec::Plain, &short[..]));
        let (codec, payload) = packed[2];
        assert!(codec != PayloadCodec::Plain && payload.len() < 1000, "{codec:?} {}", payload.len());
        let run = coded(codec, payload);
        let entry = run.entries().next().unwrap();
        assert_eq!(packed::unpack(&entry).unwrap().unwrap(), long);
    }
}

fn a_packed_payload_takes_no_more_memory_than_a_proposal() {
    let unpacked = |codec, payload: &[u8]| {
        let run = coded(codec, payload);
        packed::unpack(&run.entries().next().unwrap()).map_err(|e| e.to_string())
    };
    for (codec, compression) in [(PayloadCodec::Lz4, Compression::Lz4), (PayloadCodec::Zstd, Compression::Zstd)] {
        let mut batch = PackedBatch::default();
        batch.add(compression, &[7; 5000]);
        let sound = batch.payloads().next().unwrap().1.to_vec();
        assert_eq!(unpacked(codec, &sound), Ok(Some(vec![7; 5000].into())));
        let says = |bytes: u32| [&bytes.to_le_bytes(), &sound[4..]].concat();
        let error = unpacked(codec, &says(UNPACKED_BYTES_MAX as u32 + 1)).expect_err("more than any proposal has");
        assert!(error.contains("at most"), "{error}");
        // Bytes that are nothing packed are an error, whatever they are.
        for bad in [says(4999), says(5001), says(0), sound[..3].to_vec(), sound[..5].to_vec(), noise(300), vec![]] {
            assert!(unpacked(codec, &bad).is_err(), "{bad:?}");
        }
        // It stops the replica, with the entry's index, as any command does that can't be read.
        let machine = shared(List::default());
        let error = machine.lock().apply_run(&coded(codec, &says(4999)), None).expect_err("not a command");
        assert!(matches!(error, MachineError::Decode { index: Index(1), .. }), "{error}");
    }
}

fn a_retry_in_a_session_is_not_applied_again() {
    let machine = shared(List::default());
    let mut machine = machine.lock();
    let results = apply(&mut **machine, 1, &[Entry::Register(9), FIRST, Entry::Command(51), FIRST]);
    assert_eq!(results[1..], [Ok(1), Ok(2), Ok(1)]);
    assert_eq!(listed::<List>(&**machine), Ok(vec![50, 51]));
}

fn a_retry_in_an_evicted_session_is_refused() {
    let machine = shared(List::default());
    let mut machine = machine.lock();
    let results = apply(&mut **machine, 1, &[Entry::Register(1), FIRST, Entry::Register(1), FIRST]);
    assert_eq!(results[3], Err(RequestError::SessionExpired));
    assert_eq!(listed::<List>(&**machine), Ok(vec![50]));
}

fn a_group_keeps_no_more_sessions_than_it_was_told() {
    let machine = shared(List::default());
    let mut machine = machine.lock();
    apply(&mut **machine, 1, &[Entry::Register(5); 5]);
    let bytes = machine.sessions().len();
    apply(&mut **machine, 6, &[Entry::Register(5); 50]);
    assert_eq!(machine.sessions().len(), bytes);
}

fn the_session_that_was_used_stays() {
    let machine = shared(List::default());
    let mut machine = machine.lock();
    apply(&mut **machine, 1, &[Entry::Register(2), Entry::Register(2), FIRST, Entry::Register(2)]);
    assert_eq!(apply(&mut **machine, 5, &[FIRST]), [Ok(1)], "session 2 was not used for longer");
}

fn sessions_survive_a_snapshot() {
    let dir = TempDir::new().unwrap();
    let (before, after) = (shared(List::default()), shared(List::default()));
    apply(&mut **before.lock(), 1, &[Entry::Register(9), FIRST]);
    save(&store(&dir), &before, 2, Content::Full);
    recover(&store(&dir), &after, 2).unwrap();
    assert_eq!(apply(&mut **after.lock(), 3, &[FIRST]), [Ok(1)]);
    assert_eq!(listed::<List>(&**after.lock()), Ok(vec![50]));
}

/// Looks at the machine in the moment in which a client is told of its result.
struct LooksAtOnce {
    lookups: Arc<dyn Lookups>,
    seen: Mutex<Option<Vec<u64>>>,
}

impl Wake for LooksAtOnce {
    fn wake(self: Arc<Self>) {
        let mut reads = Reads::<Concurrent<Versions>>::new();
        let pending = reads.add(());
        self.lookups.lookup(Box::new(reads));
        *self.seen.lock() = Some(pending.wait().unwrap());
    }
}

fn who_was_told_of_a_result_finds_its_effect() {
    let machine = shared(Concurrent(Versions::default()));
    let mut machine = machine.lock();
    let client = Arc::new(LooksAtOnce { lookups: machine.lookups().unwrap(), seen: Mutex::default() });
    let results = Completion::<u64>::new();
    let mut pending = Pending::new(Arc::clone(&results), 0);
    let waker = Waker::from(Arc::clone(&client));
    assert!(Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)).is_pending());
    machine.apply_run(&commands(1, &[50]), Some((&*results, 0))).unwrap();
    assert_eq!(*client.seen.lock(), Some(vec![50]));
}

fn an_on_disk_machine_is_fed_no_entry_twice() {
    let disk = Arc::<Mutex<Stored>>::default();
    let machine = opened(&disk, false);
    machine.lock().apply_run(&commands(1, &[50, 51, 52]), None).unwrap();
    drop(machine);
    // The log is applied again from its start, in runs that overlap what is there.
    let machine = opened(&disk, false);
    let mut machine = machine.lock();
    machine.apply_run(&commands(1, &[50, 51]), None).unwrap();
    machine.apply_run(&commands(3, &[52, 53]), None).unwrap();
    assert_eq!(listed::<OnDisk<Shelf>>(&**machine), Ok(vec![50, 51, 52, 53]));
}

fn storage_that_lost_entries_is_not_taken_for_a_snapshot() {
    let dir = TempDir::new().unwrap();
    let disk = Arc::<Mutex<Stored>>::default();
    let machine = opened(&disk, false);
    machine.lock().apply_run(&commands(1, &[50, 51, 52]), None).unwrap();
    save(&store(&dir), &machine, 3, Content::Metadata);
    // Somebody put an older copy of the storage in its place.
    disk.lock().seen = (vec![50], 1);
    let refused = recover(&store(&dir), &opened(&disk, false), 3);
    assert!(matches!(&refused, Err(SnapshotError::Behind(text)) if text.contains("full snapshot")), "{refused:?}");
}

/// The newest snapshot is damaged, the older one says what the storage had, and the storage was lost: nobody's code has
/// failed, and the leader is to be asked.
fn an_older_snapshot_without_state_is_of_no_use_to_storage_that_was_lost() {
    let dir = TempDir::new().unwrap();
    let disk = Arc::<Mutex<Stored>>::default();
    let machine = opened(&disk, false);
    machine.lock().apply_run(&commands(1, &[50, 51, 52]), None).unwrap();
    save(&store(&dir), &machine, 3, Content::Metadata);
    machine.lock().apply_run(&commands(4, &[53]), None).unwrap();
    save(&store(&dir), &machine, 4, Content::Full);
    std::fs::write(snapshot_file(&dir, 4), b"damaged").unwrap();
    disk.lock().seen = (Vec::new(), 0);
    let lost = recover_from(&store(&dir), &opened(&disk, false), 4, &[3]).expect_err("nothing to begin from");
    assert!(lost.is_unusable() && matches!(lost, SnapshotError::Behind(_)), "{lost}");
    assert_eq!(store(&dir).list(GROUP, REPLICA).unwrap(), [Index(3)], "only what is damaged is set aside");
}

fn a_snapshot_without_state_waits_for_the_storage() {
    let dir = TempDir::new().unwrap();
    let disk = Arc::<Mutex<Stored>>::default();
    let machine = opened(&disk, false);
    machine.lock().apply_run(&commands(1, &[50, 51, 52]), None).unwrap();
    save(&store(&dir), &machine, 3, Content::Metadata);
    // Power loss: the log before 3 is gone.
    let durable = disk.lock().durable.clone();
    disk.lock().seen = durable;
    let machine = opened(&disk, false);
    recover(&store(&dir), &machine, 3).unwrap();
    assert_eq!(listed::<OnDisk<Shelf>>(&**machine.lock()), Ok(vec![50, 51, 52]));
}

fn a_stop_ends_a_save_at_the_next_block() {
    let dir = TempDir::new().unwrap();
    let stop = Arc::default();
    let mut writer = store(&dir).begin(header(5, Content::Full), REPLICA, Arc::clone(&stop)).unwrap();
    writer.write_all(&[1; 1000]).unwrap();
    stop.store(true, Ordering::Relaxed);
    assert!(writer.write_all(&vec![1; 2 * longboat_rsm::snapshot::BLOCK_BYTES]).is_err());
    drop(writer);
    let machine = shared(List::default());
    let job = SaveTask {
        prepared: prepared(&machine, Content::Full),
        header: header(5, Content::Full),
        replica: REPLICA,
        store: store(&dir),
        export_to: None,
        stop,
        on_done: Box::new(|saved| assert!(matches!(saved, Err(SnapshotError::Stopped)))),
    };
    assert_eq!(longboat_io::Job::step(&mut SaveJob::new(job), 1), JobState::Done);
    assert_eq!(store(&dir).list(GROUP, REPLICA).unwrap(), []);
}

/// A snapshot at 3 with a damaged byte in its only block.
fn damaged(dir: &TempDir) {
    let machine = shared(List((0..100).collect()));
    save(&store(dir), &machine, 3, Content::Full);
    let mut bytes = std::fs::read(snapshot_file(dir, 3)).unwrap();
    let at = bytes.len() - 200;
    bytes[at] ^= 1;
    std::fs::write(snapshot_file(dir, 3), bytes).unwrap();
}

fn a_damaged_block_is_not_recovered() {
    let dir = TempDir::new().unwrap();
    damaged(&dir);
    let refused = recover(&store(&dir), &shared(List::default()), 3);
    assert!(matches!(refused, Err(SnapshotError::Corrupt(_))), "{refused:?}");
}

/// Seed 2746 of the simulator: a flipped bit in the version of a snapshot stopped its replica, where any other would have made it ask
/// its leader.
fn a_damaged_header_is_damage_and_a_later_version_is_none() {
    let dir = TempDir::new().unwrap();
    save(&store(&dir), &shared(List(vec![9])), 3, Content::Full);
    let good = std::fs::read(snapshot_file(&dir, 3)).unwrap();
    let header_bytes = 16 + u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize + 4;
    let opened = |bytes: &[u8]| {
        std::fs::write(snapshot_file(&dir, 3), bytes).unwrap();
        store(&dir).open(GROUP, REPLICA, Index(3)).map(drop)
    };
    for bit in 0..8 * header_bytes {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = opened(&bad).expect_err("a bit of the header is another");
        assert!(error.is_unusable(), "bit {bit}: {error}");
    }
    // A version, and a flag, that a later build wrote.
    for at in [8, 10] {
        let mut later = good.clone();
        later[at] += 1;
        let crc_at = header_bytes - 4;
        let crc = crc32c::crc32c(&later[..crc_at]);
        later[crc_at..header_bytes].copy_from_slice(&crc.to_le_bytes());
        let error = opened(&later).expect_err("no build of today wrote that");
        assert!(matches!(error, SnapshotError::Unsupported { .. }) && !error.is_unusable(), "{error}");
    }
    opened(&good).unwrap();
}

fn a_damaged_snapshot_is_set_aside() {
    let dir = TempDir::new().unwrap();
    save(&store(&dir), &shared(List(vec![9])), 2, Content::Full);
    damaged(&dir);
    let machine = shared(List::default());
    let used = recover_from(&store(&dir), &machine, 3, &[2]).unwrap();
    assert_eq!(used.pos.index, Index(2));
    assert_eq!(listed::<List>(&**machine.lock()), Ok(vec![9]));
    assert_eq!(store(&dir).list(GROUP, REPLICA).unwrap(), [Index(2)], "nothing finds the damaged one again");
}

/// A simulated disk with snapshots at 2 and 3, and a store on it.
fn two_simulated() -> (SimDisk, SnapshotStore) {
    let disk = SimDisk::new(1, SimDiskConfig::default());
    disk.process().create_dir_all(std::path::Path::new("/data")).unwrap();
    let store = SnapshotStore::new(disk.process(), "/data/snapshots".into());
    for index in [2, 3] {
        let prepared = prepared(&shared(List((0..1000 * index).collect())), Content::Full);
        let (sender, saved) = std::sync::mpsc::channel();
        let mut job = SaveJob::new(SaveTask {
            prepared,
            header: header(index, Content::Full),
            replica: REPLICA,
            store: store.clone(),
            export_to: None,
            stop: Arc::default(),
            on_done: Box::new(move |outcome| sender.send(outcome).unwrap()),
        });
        while longboat_io::Job::step(&mut job, 1 << 20) != JobState::Done {
            disk.next_completion().into_iter().for_each(|at| disk.set_now(at));
        }
        saved.recv().unwrap().unwrap();
    }
    (disk, store)
}

const EIO: i32 = 5;
const EMFILE: i32 = 24;
const EINTR: i32 = 4;
const ENOMEM: i32 = 12;

/// Whichever of its reads fails.
fn a_snapshot_that_the_disk_can_not_read_gives_way_to_an_older_one() {
    for skip in 0.. {
        let (disk, store) = two_simulated();
        disk.inject_code(SimOp::Read, skip, EIO);
        let machine = shared(List::default());
        let used = recover_from(&store, &machine, 3, &[2]).unwrap().pos.index;
        if !disk.has_faulted() {
            assert!(used == Index(3) && skip > 3, "a snapshot is read in {skip} reads");
            break;
        }
        assert_eq!((used, listed::<List>(&**machine.lock()).unwrap().len()), (Index(2), 2000), "read {skip}");
        assert_eq!(store.list(GROUP, REPLICA).unwrap(), [Index(2)], "the other is set aside");
    }
    // With none that is older its replica asks its leader.
    let (disk, store) = two_simulated();
    disk.inject_code(SimOp::Read, 0, EIO);
    let lost = recover_from(&store, &shared(List::default()), 3, &[]).expect_err("there is no other");
    assert!(lost.is_unusable() && matches!(lost, SnapshotError::Unreadable(_)), "{lost}");
}

fn an_error_of_the_moment_costs_no_snapshot() {
    for code in [EMFILE, EINTR, ENOMEM] {
        for skip in 0..4 {
            let (disk, store) = two_simulated();
            disk.inject_code(SimOp::Read, skip, code);
            let machine = shared(List::default());
            let failed = recover_from(&store, &machine, 3, &[2]).expect_err("a read failed");
            assert!(!failed.is_unusable(), "{failed}");
            assert_eq!(store.list(GROUP, REPLICA).unwrap(), [Index(2), Index(3)], "both are there");
            assert_eq!(
                recover_from(&store, &machine, 3, &[2]).unwrap().pos.index,
                Index(3),
                "the next time it is read"
            );
        }
    }
}

fn an_export_does_not_make_the_users_directory() {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let machine = shared(List::default());
    let path = to.path().join("mistyped");
    let prepared = prepared(&machine, Content::Full);
    let refused = save_to(&store(&dir), prepared, header(3, Content::Full), Some(path.clone()), &Arc::default());
    assert!(matches!(refused, Err(SnapshotError::ExportDirectory(_))), "{refused:?}");
    assert!(!path.exists());
}

fn an_export_is_refused_with_the_metadata_of_another() {
    let dir = TempDir::new().unwrap();
    let exported = [vec![1], vec![2]].map(|list| {
        let to = TempDir::new().unwrap();
        let prepared = prepared(&shared(List(list)), Content::Full);
        let export_to = Some(to.path().to_owned());
        save_to(&store(&dir), prepared, header(3, Content::Full), export_to, &Arc::default()).unwrap();
        to
    });
    let disk: SharedDisk = Arc::new(RealDisk);
    let path = |to: &TempDir| to.path().join("snapshot-7-3");
    verify_export(&disk, &path(&exported[0])).unwrap();
    std::fs::copy(path(&exported[1]).join("snapshot.meta"), path(&exported[0]).join("snapshot.meta")).unwrap();
    verify_export(&disk, &path(&exported[0])).unwrap_err();
}

fn an_import_rolls_storage_back_once() {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let disk = Arc::<Mutex<Stored>>::default();
    let machine = opened(&disk, false);
    machine.lock().apply_run(&commands(1, &[50, 51, 52]), None).unwrap();
    let export_to = Some(to.path().to_owned());
    save_to(&store(&dir), prepared(&machine, Content::Full), header(3, Content::Full), export_to, &Arc::default())
        .unwrap();
    // What follows is of a history that the import ends.
    machine.lock().apply_run(&commands(4, &[60, 61]), None).unwrap();
    store(&dir).import(&to.path().join("snapshot-7-3"), REPLICA, |_| ()).unwrap();
    let machine = opened(&disk, false);
    recover(&store(&dir), &machine, 3).unwrap();
    assert_eq!(listed::<OnDisk<Shelf>>(&**machine.lock()), Ok(vec![50, 51, 52]));
    assert!(!store(&dir).is_imported(GROUP, REPLICA, Index(3)), "from now on the storage counts");
    // What the new history adds stays after a restart.
    machine.lock().apply_run(&commands(4, &[70]), None).unwrap();
    let machine = opened(&disk, false);
    recover(&store(&dir), &machine, 3).unwrap();
    assert_eq!(listed::<OnDisk<Shelf>>(&**machine.lock()), Ok(vec![50, 51, 52, 70]));
}
