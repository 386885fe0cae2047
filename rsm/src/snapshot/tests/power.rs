//! The simulated disk under the same code: the process is killed, or the power is lost, at every step.

use super::*;
use longboat_io::sim::{SimDisk, SimDiskConfig};

/// Seeds per step: what survives a power loss is drawn from them.
const SEEDS: u64 = 8;

fn store_on(disk: &SimDisk) -> SnapshotStore {
    SnapshotStore::new(disk.process(), PathBuf::from("/data/snapshots"))
}

fn new_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed, SimDiskConfig::default());
    disk.process().create_dir_all(Path::new("/data")).unwrap();
    disk.process().sync_dir(Path::new("/")).unwrap();
    disk
}

/// Lets the sync that is under way complete.
fn pass_time(disk: &SimDisk) {
    if let Some(at) = disk.next_completion() {
        disk.set_now(at);
    }
}

/// Saves on a simulated disk; whether it was reported durable.
fn save_on(disk: &SimDisk, index: u64, bytes: &[u8]) -> bool {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, outcome) = mpsc::channel();
    let mut job = SaveJob::new(SaveTask {
        prepared: prepared(&machine(bytes.to_vec(), Trouble::None, &stop)),
        export_to: None,
        header: header(index),
        replica: REPLICA,
        store: store_on(disk),
        stop,
        on_done: Box::new(move |saved| sender.send(saved.is_ok()).unwrap()),
    });
    while job.step(1 << 20) != JobState::Done {
        pass_time(disk);
    }
    outcome.recv().unwrap()
}

/// Receives on a simulated disk; whether it was reported durable.
fn receive_on(disk: &SimDisk, index: u64, file: &[u8]) -> Result<(), SnapshotError> {
    let mut incoming = IncomingSnapshot::begin(&store_on(disk), REPLICA, key(index, file))?;
    for (n, data) in file.chunks(64 << 10).enumerate() {
        incoming.append(((n * 64) << 10) as u64, data)?;
    }
    while incoming.finish()? != JobState::Done {
        pass_time(disk);
    }
    Ok(())
}

/// Cuts `make` off at every change that it makes to the disk, by a kill or a power loss, on a disk that has a snapshot
/// at 3 already. Whatever is found afterwards is whole, and what was reported durable is found.
fn check_every_step(make: impl Fn(&SimDisk) -> bool, bytes: &[u8]) {
    let (mut found_unreported, mut lost_unreported) = (0, 0);
    for changes in 0.. {
        let mut reported = 0;
        for seed in 0..SEEDS {
            let disk = new_disk(seed);
            assert!(save_on(&disk, 3, bytes));
            disk.stop_after(changes);
            let made = make(&disk);
            let cut_off = disk.is_stopped();
            match seed % 2 {
                0 => disk.kill(),
                _ => disk.power_loss(),
            }
            let store = store_on(&disk);
            let found = store.list(GROUP, REPLICA).unwrap();
            assert!(found.contains(&Index(3)), "the older one is gone: {changes} changes, seed {seed}");
            for index in &found {
                let (_, state) = recover(&store, index.0, Trouble::None).unwrap();
                assert!(state == bytes, "snapshot {index}: {changes} changes, seed {seed}");
            }
            let is_found = found.contains(&Index(5));
            assert!(!made || is_found, "reported and gone: {changes} changes, seed {seed}");
            found_unreported += u32::from(is_found && !made);
            lost_unreported += u32::from(!is_found);
            store.remove_orphans(GROUP, REPLICA, &[Index(3)]).unwrap();
            let left = disk.process().list(Path::new("/data/snapshots/7/2")).unwrap();
            assert_eq!(left, [Path::new("snapshot-3")], "{changes} changes, seed {seed}");
            reported += u64::from(made && !cut_off);
        }
        if reported == SEEDS {
            break;
        }
    }
    assert!(found_unreported > 0 && lost_unreported > 0, "cuts before and after the rename were tried");
}

#[test]
fn a_save_cut_off_at_any_step_leaves_a_whole_snapshot_or_none() {
    let bytes = state(BLOCK_BYTES + 10);
    check_every_step(|disk| save_on(disk, 5, &bytes), &bytes);
}

#[test]
fn an_install_cut_off_at_any_step_leaves_a_whole_snapshot_or_none() {
    let dir = TempDir::new().unwrap();
    let bytes = state(BLOCK_BYTES + 10);
    save(&real_store(&dir), 5, bytes.clone());
    let file = std::fs::read(file_path(&dir, 5)).unwrap();
    check_every_step(|disk| receive_on(disk, 5, &file).is_ok(), &bytes);
}

#[test]
fn the_first_snapshot_of_a_group_survives_a_power_loss_with_all_its_directories() {
    for seed in 0..SEEDS {
        let disk = new_disk(seed);
        assert!(save_on(&disk, 5, &state(10)));
        disk.power_loss();
        assert_eq!(recover(&store_on(&disk), 5, Trouble::None).unwrap().1, state(10), "seed {seed}");
    }
}
