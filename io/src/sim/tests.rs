//! The three faults, one by one.

use super::*;
use crate::disk::DiskFile;

const PATH: &str = "/d/f";

fn disk(seed: u64) -> SimDisk {
    SimDisk::new(seed, SimDiskConfig::default())
}

/// A durable file of zeros.
fn file(disk: &SimDisk, len: u64) -> Box<dyn DiskFile> {
    let process = disk.process();
    process.create_dir_all(Path::new("/d")).expect("made");
    let mut file = process.create(Path::new(PATH)).expect("made");
    file.allocate(len).expect("reserved");
    file.sync_data().expect("synced");
    process.sync_dir(Path::new("/d")).expect("synced");
    process.sync_dir(Path::new("/")).expect("synced");
    file
}

fn contents(disk: &SimDisk) -> Vec<u8> {
    disk.contents(Path::new(PATH)).expect("there")
}

/// How many of 64 seeds leave the file in a state for which `what` holds after a power loss.
fn seeds_with(prepare: impl Fn(&SimDisk, &mut dyn DiskFile), what: impl Fn(&[u8]) -> bool) -> usize {
    let after = |seed| {
        let disk = disk(seed);
        let mut file = file(&disk, 8192);
        prepare(&disk, &mut *file);
        disk.power_loss();
        contents(&disk)
    };
    (0..64).filter(|seed| what(&after(*seed))).count()
}

#[test]
fn a_submitted_write_completes_at_its_time_and_is_durable_then() {
    let disk = disk(1);
    let mut file = file(&disk, 8192);
    file.submit_write_sync(0, &[&[7; 1000], &[8; 1000]]);
    assert!(file.poll_write_sync().is_none());
    let at = disk.next_completion().expect("under way");
    disk.set_now(at);
    assert!(matches!(file.poll_write_sync(), Some(Ok(()))));
    assert_eq!(disk.next_completion(), None);
    disk.power_loss();
    assert_eq!((contents(&disk)[999], contents(&disk)[1000], contents(&disk)[2000]), (7, 8, 0));
}

#[test]
fn a_write_whose_file_was_closed_keeps_nobody_waiting() {
    let disk = disk(1);
    let mut left = file(&disk, 4096);
    left.submit_write_sync(0, &[b"left"]);
    drop(left);
    assert_eq!(disk.next_completion(), None, "nobody can poll it, so it would be the next for ever");
    disk.power_loss();
}

#[test]
fn a_stalled_disk_completes_nothing_before_its_end() {
    let disk = disk(1);
    let mut file = file(&disk, 8192);
    file.submit_write_sync(0, &[&[7; 10]]);
    disk.stall_until(Time(60_000_000_000));
    assert_eq!(disk.next_completion(), Some(Time(60_000_000_000)));
    disk.set_now(Time(59_999_999_999));
    assert!(file.poll_write_sync().is_none());
    disk.set_now(Time(60_000_000_000));
    assert!(matches!(file.poll_write_sync(), Some(Ok(()))));
}

#[test]
fn a_power_loss_keeps_any_subset_of_the_sectors_that_were_not_synced() {
    let write = |_: &SimDisk, f: &mut dyn DiskFile| f.write_all_at(&[9; 4096], 0).expect("written");
    assert!(seeds_with(write, |b| b[..4096] == [0; 4096]) > 0, "all lost");
    assert!(seeds_with(write, |b| b[..4096] == [9; 4096]) > 0, "all kept");
    assert!(seeds_with(write, |b| b[0] == 0 && b[4095] == 9) > 0, "only the end kept");
    assert_eq!(seeds_with(write, |b| b.chunks(512).any(|s| s.iter().any(|x| *x != s[0]))), 0, "sectors are whole");
    let synced = |d: &SimDisk, f: &mut dyn DiskFile| {
        write(d, f);
        f.sync_data().expect("synced");
    };
    assert_eq!(seeds_with(synced, |b| b[..4096] == [9; 4096]), 64, "synced sectors stay");
}

#[test]
fn a_kill_leaves_the_page_cache_and_perhaps_a_part_of_the_write_under_way() {
    let after = |seed| {
        let disk = disk(seed);
        let mut file = file(&disk, 64 << 10);
        file.write_all_at(&[1; 100], 60_000).expect("written");
        file.submit_write_sync(0, &[&[7; 3 * 4096]]);
        disk.kill();
        assert!(matches!(file.poll_write_sync(), Some(Err(_))), "the handle is dead");
        assert!(file.len().is_err());
        let now = contents(&disk);
        assert_eq!(now[60_000], 1, "what was written stays");
        now[..3 * 4096].iter().filter(|b| **b == 7).count() / 4096
    };
    let lengths: std::collections::BTreeSet<_> = (0..64).map(after).collect();
    assert_eq!(lengths, [0, 1, 2, 3].into());
}

#[test]
fn a_failed_sync_is_reported_once_and_its_pages_are_lost_at_a_power_loss() {
    let fail = |d: &SimDisk, f: &mut dyn DiskFile| {
        d.inject(SimOp::Sync, 0, io::ErrorKind::Other);
        f.submit_write_sync(0, &[&[9; 4096]]);
        d.set_now(d.next_completion().expect("under way"));
        assert!(matches!(f.poll_write_sync(), Some(Err(_))));
        assert_eq!(contents(d)[0], 9, "still readable");
        f.sync_data().expect("the error was reported already");
    };
    assert_eq!(seeds_with(fail, |b| b[..4096] == [0; 4096]), 64, "lost");
    let rewritten = |d: &SimDisk, f: &mut dyn DiskFile| {
        fail(d, f);
        f.write_all_at(&[9; 4096], 0).expect("written");
        f.sync_data().expect("synced");
    };
    assert_eq!(seeds_with(rewritten, |b| b[..4096] == [9; 4096]), 64, "writing again helps");
}

#[test]
fn names_are_durable_once_their_directory_is_synced() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let disk = disk(seed);
        drop(file(&disk, 512));
        let process = disk.process();
        process.rename(Path::new(PATH), Path::new("/d/g")).expect("renamed");
        process.create(Path::new("/d/new")).expect("made").sync_data().expect("synced");
        disk.power_loss();
        seen.insert(disk.files());
    }
    let paths = |names: &[&str]| names.iter().map(|n| Path::new("/d").join(n)).collect::<Vec<_>>();
    assert_eq!(seen, [&["f"][..], &["g"], &["f", "new"], &["g", "new"]].map(paths).into());
    let disk = disk(1);
    drop(file(&disk, 512));
    let process = disk.process();
    process.rename(Path::new(PATH), Path::new("/d/g")).expect("renamed");
    process.sync_dir(Path::new("/d")).expect("synced");
    disk.power_loss();
    assert_eq!(disk.files(), paths(&["g"]));
}

#[test]
fn a_lock_dies_with_its_process_and_is_not_taken_from_the_next() {
    let disk = disk(1);
    let process = disk.process();
    let lock = process.lock_dir(Path::new("/")).expect("free");
    assert_eq!(process.lock_dir(Path::new("/")).expect_err("held").kind(), io::ErrorKind::WouldBlock);
    disk.kill();
    assert!(process.lock_dir(Path::new("/")).is_err(), "the process is dead");
    let next = disk.process();
    let _held = next.lock_dir(Path::new("/")).expect("free again");
    drop(lock);
    assert!(next.lock_dir(Path::new("/")).is_err(), "still held by the next process");
}

#[test]
fn a_full_disk_refuses_to_grow_files_but_not_to_overwrite_them() {
    let disk = disk(1);
    let mut file = file(&disk, 8192);
    disk.set_capacity(8192);
    assert_eq!(disk.process().free_bytes(Path::new("/")).expect("known"), 0);
    assert_eq!(file.allocate(8193).expect_err("full").kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.write_all_at(&[1; 2], 8191).expect_err("full").kind(), io::ErrorKind::StorageFull);
    file.write_all_at(&[1; 8192], 0).expect("overwritten");
}

#[test]
fn a_machine_that_stops_comes_half_way_through_one_change() {
    let disk = disk(1);
    let mut file = file(&disk, 8192);
    disk.stop_after(1);
    file.write_all_at(&[1; 512], 0).expect("allowed");
    assert!(file.write_all_at(&[2; 512], 512).is_err());
    assert!(disk.is_stopped() && file.sync_data().is_err() && disk.process().list(Path::new("/d")).is_err());
    disk.kill();
    assert_eq!((contents(&disk)[0], contents(&disk)[512]), (1, 2), "the page cache took it");
}

#[test]
fn equal_seeds_and_calls_leave_equal_disks() {
    let digest = |seed| {
        let disk = disk(seed);
        let mut file = file(&disk, 64 << 10);
        file.submit_write_sync(0, &[&[7; 40_000]]);
        disk.power_loss();
        disk.digest()
    };
    assert_eq!(digest(3), digest(3));
    assert!((0..16).any(|seed| digest(seed) != digest(3)));
}
