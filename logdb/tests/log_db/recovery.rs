//! Crashes at moments that random steps seldom meet.

use crate::scenarios::stale_blocks_of_an_earlier_opening;
use crate::support::*;
use longboat_io::sim::SimDisk;
use longboat_logdb::{ReadError, Record, Update};
use longboat_raft::ReplicaId;
use std::path::PathBuf;

/// Groups with an entry in every batch: their footer is more than a page long.
const MANY_GROUPS: u64 = 200;

fn footers(disk: &SimDisk) -> usize {
    let starts = |bytes: &[u8]| bytes.chunks(4096).filter(|block| block.starts_with(b"LBFT")).count();
    disk.files().iter().map(|path| starts(&disk.contents(path).expect("there"))).sum()
}

#[test]
fn a_footer_that_is_torn_ends_the_journal_before_it() {
    let mut host = SimHost::new(1);
    (host.config.segment_bytes, host.config.journal_bytes_max) = (256 << 10, 2 << 20);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    let mut torn = 0;
    for i in 1..=40u64 {
        let sealed = footers(&disk);
        log.submit((1..=MANY_GROUPS).map(|g| append(g, hard(1, 0, i), i, &[b"payload"])).collect());
        while log.poll().expect("nothing fails").in_flight {
            let tries = if footers(&disk) > sealed { 24 } else { 1 };
            for seed in 0..tries {
                torn += u64::from(tries > 1);
                let fork = disk.fork();
                fork.reseed(i * 1000 + seed);
                if seed % 2 == 0 {
                    fork.power_loss()
                } else {
                    fork.kill()
                }
                goes_on(SimHost { disk: fork, config: host.config.clone() }, i);
            }
            host.advance();
        }
    }
    assert!(torn > 100, "only {torn} crashes while a footer was written");
}

/// Opens a store that crashed while batch `i` was under way, goes on, and loses power in the middle of that.
fn goes_on(mut host: SimHost, i: u64) {
    let (mut log, _, groups) = host.open().unwrap_or_else(|e| panic!("batch {i}: {e}"));
    let last = groups.first().map_or(0, |g| g.last.index.0);
    assert!((i - 1..=i).contains(&last), "batch {i}: the last entry is {last}");
    assert!(groups.iter().all(|g| g.last.index.0 == last), "batch {i}: a part of it is there");
    log.submit((1..=MANY_GROUPS).map(|g| append(g, hard(2, 0, last), last + 1, &[b"after"])).collect());
    log.poll().expect("nothing fails");
    let disk = host.disk.clone();
    disk.power_loss();
    drop(log);
    let (mut log, _, groups) = host.open().unwrap_or_else(|e| panic!("batch {i}, again: {e}"));
    let last = groups.first().map_or(0, |g| g.last.index.0);
    assert!(last + 1 >= i, "batch {i}, again: the last entry is {last}");
    for more in 1..=3 {
        let batch = (1..=MANY_GROUPS).map(|g| append(g, hard(3, 0, last), last + more, &[b"more"])).collect();
        write(&mut host, &mut *log, batch);
    }
    drop(log);
    disk.power_loss();
    let (_log, _, groups) = host.open().unwrap_or_else(|e| panic!("batch {i}, at the end: {e}"));
    assert!(groups.iter().all(|g| g.last.index.0 == last + 3));
}

/// The files whose header block says that they have a use, by use number, and whether a record follows.
fn uses(disk: &SimDisk) -> Vec<(u64, PathBuf, bool)> {
    let mut uses: Vec<_> = disk
        .files()
        .into_iter()
        .map(|path| (disk.contents(&path).expect("there"), path))
        .filter(|(bytes, _)| bytes.starts_with(b"LONGBJNL"))
        .map(|(bytes, path)| {
            let number = u64::from_le_bytes(bytes[40..48].try_into().expect("eight bytes"));
            (number, path, bytes[4096..].starts_with(b"LBRC"))
        })
        .collect();
    uses.sort();
    uses
}

/// Submits one entry and stops the machine after some of its changes, the first time that `wanted` holds.
fn stop_while_writing(host: &mut SimHost, next: u64, payload: &[u8], wanted: impl Fn(&SimDisk) -> bool) {
    for (changes, seed) in (0..40).flat_map(|changes| (0..8).map(move |seed| (changes, seed))) {
        let disk = host.disk.fork();
        disk.reseed(seed);
        let mut there = SimHost { disk: disk.clone(), config: host.config.clone() };
        let (mut log, _, _) = there.open().expect("opens");
        disk.stop_after(changes);
        log.submit(vec![append(1, hard(next, next, next), next, &[payload])]);
        let _ = drain(&mut there, &mut *log);
        drop(log);
        disk.kill();
        if wanted(&disk) {
            host.disk = disk;
            return;
        }
    }
    panic!("it never looks like that");
}

/// A use was prepared and never written to; the journal went on without it, and is settled to where that use starts.
#[test]
fn a_use_that_was_prepared_before_a_crash_is_not_where_the_journal_starts() {
    let mut host = SimHost::tiny(1);
    host.config.journal_bytes_max = 2 * host.config.segment_bytes;
    let (mut log, _, _) = host.open().expect("opens");
    let small = vec![1; 3000];
    for next in 1..=5 {
        write(&mut host, &mut *log, vec![append(1, hard(next, next, next), next, &[&small])]);
    }
    drop(log);
    host.disk.kill();
    stop_while_writing(&mut host, 6, &[1; 30_000], |disk| {
        matches!(&uses(disk)[..], [(1, _, true), (2, _, false)]) && footers(disk) == 1
    });
    stop_while_writing(&mut host, 6, &[1; 60_000], |disk| {
        matches!(&uses(disk)[..], [(1, _, true), (2, _, false), (3, _, false)]) && footers(disk) == 1
    });
    let prepared = uses(&host.disk)[2].1.clone();
    let header = host.disk.contents(&prepared).expect("there")[..4096].to_vec();
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    assert_eq!(uses(&disk).len(), 2, "the prepared use is gone before anything is written");
    disk.damage(&prepared, |bytes| bytes[..4096].copy_from_slice(&header)).expect("there");
    write(&mut host, &mut *log, vec![append(1, hard(6, 6, 6), 6, &[b"acknowledged"])]);
    while housekeep(&mut *log) {}
    assert!(log.stats().settled_entries > 0);
    let groups_at = |host: &mut SimHost| host.open().expect("opens").2;
    drop(log);
    disk.kill();
    let groups = groups_at(&mut host);
    assert_eq!((groups[0].hard_state, groups[0].last), (hard(6, 6, 6), pos(6, 6)), "even if it came back");
}

#[test]
fn blocks_that_an_earlier_opening_left_go_with_no_record_of_a_later_one() {
    stale_blocks_of_an_earlier_opening();
}

#[test]
fn a_new_store_is_durable_with_all_directories_that_lead_to_it() {
    for seed in 0..20 {
        let mut host = SimHost::new(seed);
        host.config.data_dir = PathBuf::from("/made/on/the/way/host");
        host.config.journal_dir = Some(PathBuf::from("/also/made/journal"));
        let (mut log, store, _) = host.open().expect("opens");
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"1"])]);
        drop(log);
        host.disk.power_loss();
        let (_log, found, groups) = host.open().expect("opens");
        assert_eq!((found, groups.len()), (store, 1), "seed {seed}");
    }
}

#[test]
fn a_snapshot_that_arrives_after_a_removal_brings_nothing_back() {
    let mut host = SimHost::new(1);
    let (mut log, _, _) = host.open().expect("opens");
    let removed = Record::Removed { replica: ReplicaId(11) };
    write(&mut host, &mut *log, vec![bootstrap(1, 11)]);
    write(&mut host, &mut *log, vec![Update { record: Some(Box::new(removed)), ..state(1, hard(1, 0, 0)) }]);
    write(&mut host, &mut *log, vec![snapshot(1, hard(2, 0, 9), pos(2, 9), true)]);
    write(&mut host, &mut *log, vec![append(1, hard(2, 0, 9), 10, &[b"late"])]);
    assert!(matches!(read(&*log.reader(), 1, 10, 10, 99), Err(ReadError::Unavailable)));
    drop(log);
    let (_log, _, groups) = host.open().expect("opens");
    assert!(groups[0].removed && groups[0].snapshot.is_none() && groups[0].last == pos(0, 0), "{groups:?}");
}

#[test]
fn a_damaged_footer_is_noticed_before_its_segment_is_settled() {
    let mut host = SimHost::new(1);
    let (mut log, _, _) = host.open().expect("opens");
    let disk = host.disk.clone();
    for i in 1..=3 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, 0), i, &[&[1; 40_000]])]);
    }
    let sealed = uses(&disk)[0].1.clone();
    disk.damage(&sealed, |bytes| {
        let footer = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"LBFT")).expect("sealed");
        bytes[footer + 64] ^= 2;
    })
    .expect("there");
    while housekeep(&mut *log) {}
    assert!(log.pinned().is_empty(), "the group is not recognised");
    let e = log.poll().expect_err("damaged").to_string();
    assert!(e.contains("footer"), "{e}");
}
