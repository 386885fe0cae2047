//! A host that dies at every step of a snapshot's life: while it is written, between its name and its record, between the
//! record and the truncation, and while older ones are deleted.

use crate::alone::{Alone, voters};
use crate::guards::Led;
use crate::list::List;
use crate::log::log_goes_on_from_a_snapshot;
use longboat_engine::{HostEvent, ReplicaConfig, ReplicaEvent, SnapshotOptions, SnapshotOutcome, Start};
use longboat_io::sim::{SimDisk, SimDiskConfig, SimOp, StoppingDisk};
use longboat_io::{RealDisk, SharedDisk};
use longboat_raft::Index;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Seeds per step: what survives a power loss is drawn from them.
const SEEDS: u64 = 4;

/// A disk with a group that has applied ten values and has a snapshot of them.
fn prepared(kept: u32) -> SimDisk {
    let disk = SimDisk::new(kept.into(), SimDiskConfig::default());
    disk.process().create_dir_all(Path::new("/data")).unwrap();
    disk.process().sync_dir(Path::new("/")).unwrap();
    let mut led = Led::on(Alone::open_simulated(&disk).unwrap(), voters(1), keeping(kept));
    led.put(0..10);
    led.saved();
    disk.kill();
    disk
}

fn keeping(kept: u32) -> impl Fn(&mut ReplicaConfig) {
    move |config| config.snapshots_kept = kept
}

/// A disk that can't read the newest snapshot: an older one and the log bring the state back, and another takes its place.
#[test]
fn a_snapshot_that_the_disk_cannot_read_is_replaced() {
    let disk = prepared(2);
    let mut led = Led::on(Alone::open_simulated(&disk).unwrap(), Start::Restart, keeping(2));
    led.put(10..20);
    let newest = led.saved();
    led.put(20..25);
    disk.kill();
    drop(led);
    let alone = Alone::open_simulated(&disk).unwrap();
    alone.host.shared.events.listen();
    let events = Arc::clone(&alone.host.shared);
    let config = ReplicaConfig { snapshots_kept: 2, ..Alone::config(1) };
    let shared = alone.start_machine(config, Start::Restart, List::default());
    // Its log was read as it started: what is read next is its snapshot.
    disk.inject_code(SimOp::Read, 0, 5);
    let mut led = Led { dir: None, alone, shared, fails: Arc::default() };
    led.settle();
    led.alone.pass(300);
    led.settle();
    assert!(disk.has_faulted());
    assert_eq!(led.values(), (0..25).collect::<Vec<_>>());
    events.events.close();
    let damaged = |e: &HostEvent| matches!(e, HostEvent::Replica { what: ReplicaEvent::SnapshotDamaged { index, .. }, .. } if *index == newest);
    assert!(std::iter::from_fn(|| events.events.next()).any(|e| damaged(&e)), "it is told");
    assert!(led.files().last().is_some_and(|&index| index >= newest), "another has taken its place");
}

/// Dies after so many changes of the disk on the way of a second snapshot. Returns whether it came that far.
fn die_after(disk: &SimDisk, changes: u64, kept: u32, power: bool) -> bool {
    let context = format!("{changes} changes, {kept} kept, power loss: {power}");
    let mut led = Led::on(Alone::open_simulated(disk).unwrap(), Start::Restart, keeping(kept));
    led.put(10..20);
    assert_eq!(led.values(), (0..20).collect::<Vec<_>>(), "{context}");
    let pending = led.ask(SnapshotOptions::default()).unwrap();
    disk.stop_after(changes);
    led.settle();
    let reported = match pending.wait_timeout(std::time::Duration::ZERO) {
        Ok(Ok(SnapshotOutcome::Saved { index })) => index,
        _ => Index::ZERO,
    };
    let stopped = disk.is_stopped();
    if power {
        disk.power_loss()
    } else {
        disk.kill()
    };
    drop(led);
    let mut led = Led::on(Alone::open_simulated(disk).unwrap(), Start::Restart, keeping(kept));
    assert_eq!(led.values(), (0..20).collect::<Vec<_>>(), "{context}");
    let files = led.files();
    assert!(files.last().is_some_and(|&newest| newest >= reported), "{context}: {files:?}, {reported} was reported");
    log_goes_on_from_a_snapshot(&led, kept, &context);
    // It goes on as if nothing had been.
    led.put(20..30);
    let index = led.saved();
    assert!(index > reported, "{context}");
    log_goes_on_from_a_snapshot(&led, kept, &context);
    stopped
}

fn die_at_every_step(kept: u32) {
    let base = prepared(kept);
    for changes in 0.. {
        let mut stopped = false;
        for seed in 0..SEEDS {
            let disk = base.fork();
            disk.reseed(seed);
            stopped |= die_after(&disk, changes, kept, seed % 2 == 1);
        }
        if !stopped {
            assert!(changes > 12, "only {changes} steps were seen");
            return;
        }
    }
}

#[test]
fn a_snapshot_survives_a_death_at_every_step_of_its_life() {
    die_at_every_step(1);
}

#[test]
fn two_kept_snapshots_survive_a_death_at_every_step_of_their_life() {
    die_at_every_step(2);
}

/// As above with the store as it ships, on the machine's own disk, which stops between any two changes that are made to it.
#[test]
fn a_snapshot_survives_a_death_at_every_step_on_a_real_disk_with_rocksdb() {
    let mut changes = 0;
    while die_whole_after(changes, 1 + (changes % 2) as u32) {
        changes += 1;
    }
    assert!(changes > 12, "only {changes} steps were seen");
}

/// Dies after so many changes on the way of a second snapshot. Returns whether it came that far.
fn die_whole_after(changes: u64, kept: u32) -> bool {
    let (dir, context) = (TempDir::new().unwrap(), format!("{changes} changes, {kept} kept"));
    let disk = StoppingDisk::new(Arc::new(RealDisk));
    let open = |disk: SharedDisk| Alone::open_whole(disk, dir.path()).unwrap();
    let mut led = Led::on(open(Arc::new(disk.clone())), voters(1), keeping(kept));
    led.put(0..10);
    led.saved();
    led.put(10..20);
    let pending = led.ask(SnapshotOptions::default()).unwrap();
    disk.stop_after(changes);
    led.settle();
    let reported = match pending.wait_timeout(std::time::Duration::ZERO) {
        Ok(Ok(SnapshotOutcome::Saved { index })) => index,
        _ => Index::ZERO,
    };
    let stopped = disk.is_stopped();
    disk.stop_after(0);
    drop(led);
    let mut led = Led::on(open(Arc::new(RealDisk)), Start::Restart, keeping(kept));
    assert_eq!(led.values(), (0..20).collect::<Vec<_>>(), "{context}");
    let files = led.files();
    assert!(files.last().is_some_and(|&newest| newest >= reported), "{context}: {files:?}, {reported} was reported");
    log_goes_on_from_a_snapshot(&led, kept, &context);
    led.put(20..30);
    assert!(led.saved() > reported, "{context}");
    log_goes_on_from_a_snapshot(&led, kept, &context);
    stopped
}
