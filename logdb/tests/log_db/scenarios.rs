//! Scenarios that more than one test goes through: with all rules in place, and with one of them broken.

use crate::driver::Driver;
use crate::support::*;
use crate::workload::{Step, seeded_steps};
use longboat_io::sim::{SimDisk, SimOp};
use longboat_logdb::{LogDb, Update};
use std::io;
use std::path::Path;

/// What happens to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process goes, the page cache stays.
    Kill,
    /// What was not synced survives in part.
    PowerLoss,
}

impl Crash {
    fn strike(self, disk: &SimDisk) {
        match self {
            Self::Kill => disk.kill(),
            Self::PowerLoss => disk.power_loss(),
        }
    }
}

/// Goes through the steps until something fails. Whether it came to the end.
fn go(driver: &mut Driver<'_>, steps: &[Step]) -> bool {
    let mut steps = steps.iter();
    driver.open().is_ok() && steps.all(|s| driver.step(s).is_ok()) && driver.drain().is_ok()
}

/// Crashes, opens, loses power, opens, goes on, and opens once more.
fn crash_and_go_on(driver: &mut Driver<'_>, disk: &SimDisk, crash: Crash, more: &[Step]) {
    driver.log = None;
    disk.clear_faults();
    crash.strike(disk);
    driver.open().expect("opens after a crash");
    driver.log = None;
    disk.power_loss();
    driver.open().expect("opens after a power loss right after opening");
    for step in more {
        driver.step(step).expect("the disk works again");
    }
    driver.drain().expect("the disk works again");
    driver.log = None;
    disk.power_loss();
    driver.open().expect("opens after a power loss with nothing under way");
}

/// Stops the machine after every number of changes. Returns how many there were.
pub(crate) fn stop_everywhere(seed: u64, count: usize, crash: Crash) -> u64 {
    let (steps, more) = (seeded_steps(seed, count), seeded_steps(seed + 1000, 12));
    let mut stops = 0;
    for changes in 0.. {
        let mut host = SimHost::tiny(seed);
        let disk = host.disk.clone();
        disk.reseed(seed * 1_000_003 + changes);
        disk.stop_after(changes);
        let mut driver = Driver::new(&mut host);
        if go(&mut driver, &steps) {
            let settled = disk.contents(Path::new("/host/kv/rows")).expect("flushed").len();
            assert!(settled > 500, "the steps of seed {seed} settle too little");
            break;
        }
        stops += 1;
        crash_and_go_on(&mut driver, &disk, crash, &more);
    }
    stops
}

/// Fails every call of a kind in turn. Returns how many there were.
pub(crate) fn fail_everywhere(op: SimOp, seed: u64, count: usize, crash: Crash) -> u64 {
    let (steps, more) = (seeded_steps(seed, count), seeded_steps(seed + 1000, 12));
    let mut failed = 0;
    for skip in 0.. {
        let mut host = SimHost::tiny(seed);
        let disk = host.disk.clone();
        disk.reseed(seed * 1_000_003 + skip);
        disk.inject(op, skip, io::ErrorKind::Other);
        let mut driver = Driver::new(&mut host);
        if go(&mut driver, &steps) && !disk.has_faulted() {
            break;
        }
        failed += 1;
        crash_and_go_on(&mut driver, &disk, crash, &more);
    }
    failed
}

/// Fills the journal with another group until a pass is due, then runs housekeeping.
pub(crate) fn churn(host: &mut dyn Host, log: &mut dyn LogDb, next: &mut u64, records: u64) {
    let payload = vec![5u8; 3000];
    for _ in 0..records {
        let compact_to = (*next > 1).then(|| pos(1, *next - 1));
        let entry = append(99, hard(1, 0, *next), *next, &[&payload]);
        write(host, log, vec![Update { compact_to, ..entry }]);
        *next += 1;
        housekeep(log);
    }
}

/// A group votes and falls silent, and the journal goes round many times.
pub(crate) fn vote_then_recycle() {
    let mut host = SimHost::new(1);
    let (mut log, _, _) = host.open().expect("opens");
    write(&mut host, &mut *log, vec![bootstrap(1, 11), state(1, hard(41, 3, 0))]);
    write(&mut host, &mut *log, vec![state(1, hard(42, 7, 0))]);
    let mut next = 1;
    churn(&mut host, &mut *log, &mut next, 400);
    let stats = log.stats();
    assert!(stats.journal_bytes_written > 20 * SEGMENT_BYTES, "{stats:?}");
    assert!(stats.segments + stats.free_segments <= 5, "files are used again: {stats:?}");
    assert_eq!(stats.settled_entries, 0, "what is compacted in time is never written twice");
    drop(log);
    host.disk.power_loss();
    let (_log, _, groups) = host.open().expect("opens");
    assert_eq!(groups[0].hard_state, hard(42, 7, 0));
    assert_eq!(groups[0].bootstrap.replica.0, 11);
}
