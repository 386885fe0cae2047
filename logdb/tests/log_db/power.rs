//! Power that goes for journal and RocksDB at one moment: the journal on the simulated disk, RocksDB on the real one over its
//! own `FaultInjectionTestFS`.
//!
//! The moment is a number of changes, of either the one or the other: between any two steps of a settling pass, of RocksDB's
//! flushes and of what it notes about its files. After it nothing of either is written any more.

use crate::driver::Driver;
use crate::scenarios::keep_and_let_go;
use crate::support::*;
use crate::workload::seeded_steps;
use longboat_faultfs::PowerFs;
use longboat_io::sim::{SimDisk, SimDiskConfig};
use longboat_logdb::{KeyValue, RocksEnv, SharedLogConfig};
use std::sync::Arc;

/// Steps of a run, and those after its power loss.
const STEPS: usize = 90;
const STEPS_AFTER: usize = 12;
/// Moments that are tried where the environment says nothing, and the variable that says it.
const POINTS: u64 = 40;
const POINTS_VARIABLE: &str = "LONGBOAT_POWER_POINTS";

/// A store whose two halves lose power together.
struct PowerHost {
    disk: SimDisk,
    power: Arc<PowerFs>,
    config: SharedLogConfig,
    _dir: tempfile::TempDir,
}

impl PowerHost {
    fn new(seed: u64) -> Self {
        // The losses are made up, so the directory may well be in memory: its syncs cost nothing there.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory");
        let power = Arc::new(PowerFs::new());
        let base = SharedLogConfig { seed: Some(seed), ..small(dir.path(), KeyValue::RocksDb) };
        let config = SharedLogConfig {
            segment_bytes: SEGMENT_BYTES / 2,
            journal_bytes_max: 2 * SEGMENT_BYTES,
            // Every other run has segments that stay where they are, with references to them in RocksDB.
            archive_span_bytes_min: if seed.is_multiple_of(2) { 1 } else { u64::MAX },
            rocks_env: Some(RocksEnv(power.env())),
            ..base
        };
        Self { disk: SimDisk::new(seed, SimDiskConfig::default()), power, config, _dir: dir }
    }
}

impl Host for PowerHost {
    fn open(&mut self) -> OpenResult {
        open_shared(self.disk.process(), &self.config)
    }

    fn advance(&mut self) {
        if let Some(at) = self.disk.next_completion() {
            self.disk.set_now(at.max(self.disk.now()));
        }
    }
}

/// When the power goes.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Journal(u64),
    RocksDb(u64),
    Never,
}

/// What a run changed: of the journal's files, and of RocksDB's.
#[derive(Clone, Copy, Debug)]
struct Changes {
    journal: u64,
    rocksdb: u64,
}

/// Takes both halves' power away, and gives it back. The store must be closed.
fn lose_power(disk: &SimDisk, power: &PowerFs, seed: u64) {
    power.cut();
    disk.power_loss();
    // Each second time nothing of what was not synced is left.
    power.restore(if seed.is_multiple_of(2) { 0 } else { seed as u32 | 1 });
}

/// Goes through a run's steps until the power goes; then opens, loses power again at once, goes on, and opens once more. The
/// driver holds each opening against what was durable.
fn run(seed: u64, moment: Moment) -> Changes {
    let mut host = PowerHost::new(seed);
    let (disk, power) = (host.disk.clone(), Arc::clone(&host.power));
    match moment {
        Moment::Journal(changes) => disk.stop_after(changes),
        Moment::RocksDb(changes) => power.stop_after(changes),
        Moment::Never => {}
    }
    let mut driver = Driver::new(&mut host);
    let through = driver
        .open()
        .and_then(|()| match seed % 4 {
            // Segments stay, lose their entries and are used again.
            2 => keep_and_let_go(&mut driver),
            _ => seeded_steps(seed, STEPS).iter().try_for_each(|step| driver.step(step)),
        })
        .and_then(|()| driver.drain());
    let changes = Changes { journal: disk.changes(), rocksdb: power.changes() };
    if let (Moment::Never, Err(stopped)) = (moment, &through) {
        panic!("nothing failed, but {stopped:?}");
    }
    for _ in 0..2 {
        driver.log = None;
        disk.clear_faults();
        lose_power(&disk, &power, seed);
        driver.open().expect("opens after a power loss");
    }
    for step in seeded_steps(seed + 1000, STEPS_AFTER) {
        driver.step(&step).expect("the disks work again");
    }
    driver.drain().expect("the disks work again");
    driver.log = None;
    lose_power(&disk, &power, seed + 1);
    driver.open().expect("opens after a power loss with nothing under way");
    changes
}

#[test]
fn a_power_loss_of_journal_and_rocksdb_at_any_moment_loses_nothing_durable() {
    let points = std::env::var(POINTS_VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(POINTS);
    let mut struck = 0;
    for seed in 1.. {
        let all = run(seed, Moment::Never);
        assert!(all.rocksdb > 100, "{all:?}: RocksDB had nothing to do");
        // Five moments of each half, spread over the run, others with each seed.
        for n in 0..5 {
            let at = |changes: u64| (changes * n + seed * 7 % 10 * changes / 10) / 5 % changes;
            for moment in [Moment::Journal(at(all.journal)), Moment::RocksDb(at(all.rocksdb))] {
                run(seed, moment);
                struck += 1;
                if struck == points {
                    println!("{struck} power losses, nothing durable was lost");
                    return;
                }
            }
        }
    }
}
