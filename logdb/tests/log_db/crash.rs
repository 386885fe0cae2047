//! Kills, power losses and failed syncs, at every change of the disk that a list of steps makes.
//!
//! After each: what was reported durable is there, in whole batches; nothing is there that was not submitted; and what
//! the store said that it held when it was opened is still there after another power loss right away.

use crate::scenarios::{Course, Crash, fail_everywhere, stop_everywhere};
use crate::support::*;
use longboat_io::sim::SimOp;
use std::io;

/// What the tests of this page go through, with the seeds to go through it with.
fn courses(from: u64) -> impl Iterator<Item = (u64, Course)> {
    let random = (from..from + 3).map(|seed| (seed, Course::AsRows(80)));
    let archiving = (from..from + 2).map(|seed| (seed, Course::InPlace(120)));
    random.chain(archiving).chain([(from, Course::KeepAndLetGo)])
}

#[test]
fn a_kill_at_any_change_loses_nothing_durable() {
    let stops: u64 = courses(1).map(|(seed, course)| stop_everywhere(seed, course, Crash::Kill)).sum();
    assert!(stops > 600, "only {stops} changes");
}

#[test]
fn a_power_loss_at_any_change_loses_nothing_durable() {
    let stops: u64 = courses(11).map(|(seed, course)| stop_everywhere(seed, course, Crash::PowerLoss)).sum();
    assert!(stops > 600, "only {stops} changes");
}

#[test]
fn a_failed_sync_is_final_and_loses_nothing_durable_after_a_kill() {
    let failed: u64 = courses(21).map(|(seed, course)| fail_everywhere(SimOp::Sync, seed, course, Crash::Kill)).sum();
    assert!(failed > 300, "only {failed} syncs");
}

#[test]
fn a_failed_sync_is_final_and_loses_nothing_durable_after_a_power_loss() {
    let fail = |(seed, course)| fail_everywhere(SimOp::Sync, seed, course, Crash::PowerLoss);
    let failed: u64 = courses(31).map(fail).sum();
    assert!(failed > 300, "only {failed} syncs");
}

#[test]
fn a_failed_write_or_directory_change_loses_nothing_durable() {
    for (op, from) in [(SimOp::Write, 41), (SimOp::Metadata, 51)] {
        let courses = [(from, Course::AsRows(80)), (from + 1, Course::AsRows(80)), (from, Course::KeepAndLetGo)];
        let failed = courses.map(|(seed, course)| fail_everywhere(op, seed, course, Crash::PowerLoss));
        assert!(failed.iter().sum::<u64>() > 30, "only {failed:?} calls");
    }
}

#[test]
fn the_first_failure_is_latched_and_nothing_is_written_after_it() {
    let mut host = SimHost::new(1);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    write(&mut host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"1"])]);
    disk.inject(SimOp::Sync, 0, io::ErrorKind::Other);
    log.submit(vec![append(1, hard(1, 0, 0), 2, &[b"2"])]);
    let first = drain(&mut host, &mut *log).expect_err("the sync fails").to_string();
    let changes = disk.changes();
    log.submit(vec![append(1, hard(1, 0, 0), 3, &[b"3"])]);
    for _ in 0..3 {
        assert_eq!(log.poll().expect_err("latched").to_string(), first);
        assert_eq!(log.idle().expect_err("latched").to_string(), first);
        assert!(log.background_job().is_none());
    }
    assert_eq!(log.close().expect_err("latched").to_string(), first);
    assert_eq!(disk.changes(), changes, "not a byte more");
    assert!(read(&*log.reader(), 1, 1, 1, 99).is_ok(), "what was durable can still be read");
}

#[test]
fn a_full_disk_fails_the_store_with_its_reason_when_a_segment_can_not_be_made() {
    let mut host = SimHost::new(1);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    disk.set_capacity(0);
    let big = vec![1; 40_000];
    let mut failed = None;
    for i in 1..20 {
        log.submit(vec![append(1, hard(1, 0, 0), i, &[&big])]);
        if let Err(e) = drain(&mut host, &mut *log) {
            failed = Some(e.to_string());
            break;
        }
    }
    assert!(failed.is_some_and(|e| e.contains("no storage space")), "the two segments hold two of these records");
    drop(log);
    disk.set_capacity(u64::MAX);
    let (_log, _, groups) = host.open().expect("opens once there is room");
    assert_eq!(groups[0].last.index.0, 2);
}

#[test]
fn a_full_disk_gathers_no_files_and_is_not_asked_at_every_look() {
    let mut host = SimHost::new(1);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    for i in 1..=2 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, 0), i, &[&[1; 40_000]])]);
    }
    disk.set_capacity(0);
    let (files, changes) = (disk.files(), disk.changes());
    let looks = (0..1000).filter(|_| housekeep(&mut *log)).count();
    assert!((5..=10).contains(&looks), "{looks} attempts");
    assert!(disk.changes() > changes);
    assert_eq!(disk.files(), files);
    disk.set_capacity(u64::MAX);
    for _ in 0..200 {
        housekeep(&mut *log);
    }
    assert_eq!(disk.files().len(), files.len() + 2, "once there is room, two files are made ahead");
}

#[test]
fn files_that_were_never_used_are_removed_at_opening_and_not_given_space() {
    let mut host = SimHost::new(1);
    let disk = host.disk.clone();
    drop(host.open().expect("opens"));
    let process = disk.process();
    for number in 10..60 {
        process.create(std::path::Path::new(&format!("/host/journal/{number:08}.seg"))).expect("made");
    }
    disk.set_capacity(0);
    let (log, _, _) = host.open().expect("opens on a full disk");
    assert_eq!(log.stats().free_segments, 1);
    let left = disk.files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).count();
    assert_eq!(left, 2, "the one in use, and one ahead");
}

#[test]
fn closing_a_store_that_failed_still_ends_its_jobs() {
    let mut host = SimHost::new(1);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    for i in 1..=20 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&[1; 20_000]])]);
    }
    let mut job = log.background_job().expect("a pass is due");
    assert_eq!(job.step(1), longboat_io::JobState::Again);
    disk.inject(SimOp::Sync, 0, io::ErrorKind::Other);
    log.submit(vec![append(1, hard(1, 0, 0), 21, &[b"fails"])]);
    drain(&mut host, &mut *log).expect_err("the sync fails");
    log.close().expect_err("latched");
    let changes = disk.changes();
    assert_eq!(job.step(1 << 20), longboat_io::JobState::Done);
    assert_eq!(disk.changes(), changes);
}

#[test]
fn a_file_beyond_the_bound_that_can_not_be_removed_fails_nobody() {
    let mut host = SimHost::new(4);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    for i in 1..=20 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&[1; 40_000]])]);
    }
    // One pass after the other; each names the rows' file anew first, which are changes that must not fail.
    let mut failed = 0;
    while log.stats().pressure_percent > 50 {
        let mut job = log.background_job().expect("a pass is due");
        loop {
            let fork = log.stats().settled_entries;
            disk.clear_faults();
            disk.inject(SimOp::Metadata, 3, io::ErrorKind::Other);
            let state = job.step(1 << 20);
            failed += u64::from(disk.has_faulted() && log.stats().settled_entries > fork);
            if state == longboat_io::JobState::Done {
                break;
            }
        }
    }
    disk.clear_faults();
    assert!(failed > 0, "the fault struck no removal");
    log.poll().expect("nothing failed");
    assert_eq!(read(&*log.reader(), 1, 1, 20, 1000).expect("kept").len(), 20);
}

#[test]
fn batches_wait_through_a_stall_and_are_durable_after_it() {
    let mut host = SimHost::new(1);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    disk.stall_until(longboat_raft::Time(60_000_000_000));
    let first = log.submit(vec![append(1, hard(1, 0, 0), 1, &[b"1"])]);
    for i in 2..=9 {
        assert!(log.poll().expect("nothing fails").in_flight);
        log.submit(vec![append(1, hard(1, 0, 0), i, &[b"x"])]);
    }
    disk.set_now(longboat_raft::Time(59_000_000_000));
    assert!(log.poll().expect("nothing fails").durable_through < first);
    let syncs = log.stats().syncs;
    drain(&mut host, &mut *log).expect("nothing fails");
    assert_eq!(log.stats().syncs, syncs + 2, "the one that stalled, and one for all that gathered meanwhile");
}
