//! Segments that stay where they are when they are settled.

use crate::scenarios;
use crate::support::*;
use longboat_io::sim::SimDisk;
use longboat_logdb::{LogDb, OpenError, ReadError, Record, Update};
use longboat_raft::{Index, ReplicaId};
use std::path::PathBuf;

/// Looks for housekeeping that make sure that whatever is due was done.
const LOOKS: u32 = 100;

fn look(log: &mut dyn LogDb) {
    for _ in 0..LOOKS {
        housekeep(log);
    }
}

fn large(group: u64, i: u64) -> Vec<u8> {
    [vec![group as u8; 9000], i.to_le_bytes().to_vec()].concat()
}

fn small(group: u64, i: u64) -> Vec<u8> {
    [vec![group as u8; 500], i.to_le_bytes().to_vec()].concat()
}

/// Writes entries `from..=to` of group 1, large, and group 2, small, all of them committed.
fn fill(host: &mut dyn Host, log: &mut dyn LogDb, from: u64, to: u64) {
    for i in from..=to {
        let batch = vec![append(1, hard(1, 0, i), i, &[&large(1, i)]), append(2, hard(1, 0, i), i, &[&small(2, i)])];
        write(host, log, batch);
        housekeep(log);
    }
}

/// Lets the entries of a group through `to` go.
fn compact(host: &mut dyn Host, log: &mut dyn LogDb, group: u64, commit: u64, to: u64) {
    let update = Update { compact_to: Some(pos(1, to)), ..state(group, hard(1, 0, commit)) };
    write(host, log, vec![update]);
}

fn entries(group: u64, from: u64, to: u64, payload: impl Fn(u64, u64) -> Vec<u8>) -> Vec<Seen> {
    (from..=to).map(|i| (1, i, payload(group, i))).collect()
}

/// A simulated host with 60 entries of two groups, most of them in archived segments.
fn archived() -> (SimHost, Box<dyn LogDb>) {
    let mut host = SimHost::new(1).keeping();
    let (mut log, _, _) = host.open().expect("opens");
    fill(&mut host, &mut *log, 1, 60);
    let stats = log.stats();
    assert!(stats.archived_segments >= 5 && stats.settled_entries == 0, "{stats:?}");
    (host, log)
}

/// The files with segments, that of the oldest use first.
fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let mut files: Vec<_> = disk.files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    files.retain(|path| disk.contents(path).expect("there").starts_with(b"LONGBJNL"));
    files.sort_by_key(|path| {
        let bytes = disk.contents(path).expect("there");
        u64::from_le_bytes(bytes[40..48].try_into().expect("eight bytes"))
    });
    files
}

fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|w| w == wanted).expect("it is there")
}

#[test]
fn what_is_kept_stays_where_it_is_and_can_be_read_from_there() {
    for mut host in [
        Box::new(SimHost::new(1).keeping()) as Box<dyn Host>,
        Box::new(RealHost::new(longboat_logdb::KeyValue::RocksDb).keeping()),
    ] {
        let (mut log, _, _) = host.open().expect("opens");
        fill(&mut *host, &mut *log, 1, 60);
        let stats = log.stats();
        assert!(stats.archived_segments >= 5 && stats.settled_entries == 0, "{stats:?}");
        assert!(stats.pressure_percent <= 75, "archived segments are not the journal's: {stats:?}");
        for _ in 0..2 {
            let reader = log.reader();
            assert_eq!(read(&*reader, 1, 1, 60, 20_000).expect("kept"), entries(1, 1, 60, large));
            assert_eq!(read(&*reader, 2, 7, 55, 1).expect("kept"), entries(2, 7, 55, small));
            drop((log, reader));
            let (again, _, groups) = host.open().expect("opens");
            log = again;
            assert_eq!(groups[0].last, pos(1, 60));
            assert!(log.stats().archived_segments >= 5);
        }
    }
}

#[test]
fn an_archived_segment_is_free_as_soon_as_nothing_in_it_is_kept() {
    let (mut host, mut log) = archived();
    let before = log.stats();
    for group in [1, 2] {
        compact(&mut host, &mut *log, group, 60, 58);
    }
    // Nothing more is written: what these compactions say is not settled for a long time.
    look(&mut *log);
    let after = log.stats();
    assert_eq!((after.archived_segments, after.archived_file_bytes), (0, 0), "{before:?} {after:?}");
    let files = host.disk.files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).count() as u64;
    assert_eq!(files, after.segments + after.free_segments, "files beyond the bound are removed");
    drop(log);
    host.disk.power_loss();
    let (log, _, groups) = host.open().expect("opens");
    assert_eq!((groups[0].start, groups[1].start), (pos(1, 58), pos(1, 58)));
    assert_eq!(read_all(&*log.reader(), &groups[0]), entries(1, 59, 60, large));
}

#[test]
fn a_part_of_a_span_that_goes_leaves_the_rest_where_it_is() {
    let (mut host, mut log) = archived();
    for to in [2, 3, 4, 9, 17, 33] {
        compact(&mut host, &mut *log, 1, 60, to);
        look(&mut *log);
        assert_eq!(read(&*log.reader(), 1, to + 1, 60, 1 << 20).expect("kept"), entries(1, to + 1, 60, large));
        assert!(matches!(read(&*log.reader(), 1, to, to, 1), Err(ReadError::Compacted(first)) if first.0 == to + 1));
    }
    drop(log);
    let (log, _, groups) = host.open().expect("opens");
    assert_eq!(read_all(&*log.reader(), &groups[0]), entries(1, 34, 60, large));
    assert_eq!(read_all(&*log.reader(), &groups[1]), entries(2, 1, 60, small));
}

#[test]
fn what_is_left_of_nearly_empty_segments_becomes_rows() {
    let (mut host, mut log) = archived();
    compact(&mut host, &mut *log, 1, 60, 59);
    look(&mut *log);
    let stats = log.stats();
    // Half of the journal's bound may be dead.
    assert!(stats.archived_file_bytes <= 3 * SEGMENT_BYTES, "{stats:?}");
    assert!(stats.archived_segments > 0, "the rest waits for its own end: {stats:?}");
    for _ in 0..2 {
        assert_eq!(read(&*log.reader(), 2, 1, 60, 1000).expect("kept"), entries(2, 1, 60, small));
        drop(log);
        host.disk.power_loss();
        log = host.open().expect("opens").0;
    }
    compact(&mut host, &mut *log, 2, 60, 59);
    look(&mut *log);
    assert_eq!(log.stats().archived_segments, 0);
}

#[test]
fn remnants_of_several_rows_are_moved_to_the_last() {
    scenarios::several_rows_are_moved(None);
}

#[test]
fn a_move_that_is_dropped_half_way_goes_on_where_it_was() {
    for steps in [5, 6, 7] {
        scenarios::several_rows_are_moved(Some(steps));
    }
}

#[test]
fn of_a_long_archive_few_files_stay_open() {
    scenarios::few_archived_files_stay_open();
}

#[test]
fn remnants_that_can_not_be_read_stay_and_are_not_tried_for_ever() {
    scenarios::what_can_not_be_moved_stays();
}

#[test]
fn a_group_that_was_removed_and_made_anew_has_none_of_its_old_entries() {
    let (mut host, mut log) = archived();
    let removed = Record::Removed { replica: ReplicaId(0) };
    write(&mut host, &mut *log, vec![Update { record: Some(Box::new(removed)), ..state(1, hard(1, 0, 0)) }]);
    write(&mut host, &mut *log, vec![bootstrap(1, 5)]);
    let new = |group: u64, i: u64| [vec![9 + group as u8; 8000], i.to_le_bytes().to_vec()].concat();
    let mut next = 1;
    for rounds in [3, 30] {
        for i in next..next + rounds {
            write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&new(1, i)])]);
            housekeep(&mut *log);
        }
        next += rounds;
        assert_eq!(read(&*log.reader(), 1, 1, next - 1, 1 << 16).expect("kept"), entries(1, 1, next - 1, new));
        assert!(matches!(read(&*log.reader(), 1, 1, next, 1), Err(ReadError::Unavailable)));
        drop(log);
        host.disk.power_loss();
        log = host.open().expect("opens").0;
        assert_eq!(read(&*log.reader(), 1, 1, next - 1, 1 << 16).expect("kept"), entries(1, 1, next - 1, new));
        assert_eq!(read(&*log.reader(), 2, 1, 60, 1 << 16).expect("kept"), entries(2, 1, 60, small));
    }
}

#[test]
fn a_leaders_snapshot_lets_go_of_what_is_archived() {
    let (mut host, mut log) = archived();
    for group in [1, 2] {
        write(&mut host, &mut *log, vec![snapshot(group, hard(2, 0, 500), pos(2, 500), true)]);
    }
    look(&mut *log);
    assert_eq!(log.stats().archived_segments, 0);
    write(&mut host, &mut *log, vec![append(1, hard(2, 0, 500), 501, &[b"after"])]);
    drop(log);
    let (log, _, groups) = host.open().expect("opens");
    assert_eq!(read_all(&*log.reader(), &groups[0]), [(2, 501, b"after".to_vec())]);
}

#[test]
fn a_damaged_frame_of_an_archived_segment_refuses_its_group_and_nobody_else() {
    let (mut host, mut log) = archived();
    let disk = host.disk.clone();
    let first = segments(&disk)[0].clone();
    disk.damage(&first, |bytes| {
        let at = find(bytes, &small(2, 3));
        bytes[at + 7] ^= 1;
    })
    .expect("there");
    let refused =
        |read: Result<Vec<Seen>, ReadError>| matches!(read, Err(ReadError::Failed(why)) if why.contains("checksum"));
    for _ in 0..2 {
        assert!(refused(read(&*log.reader(), 2, 3, 3, 1)));
        assert_eq!(read(&*log.reader(), 2, 4, 60, 1).expect("whole"), entries(2, 4, 60, small));
        assert_eq!(read(&*log.reader(), 1, 1, 60, 1 << 20).expect("whole"), entries(1, 1, 60, large));
        drop(log);
        log = host.open().expect("one group's damage is not the host's").0;
    }
    // What can't be moved keeps its file; everything else goes on.
    compact(&mut host, &mut *log, 1, 60, 59);
    look(&mut *log);
    log.poll().expect("nothing failed");
    assert!(refused(read(&*log.reader(), 2, 3, 3, 1)));
    assert_eq!(read(&*log.reader(), 2, 4, 60, 1000).expect("whole"), entries(2, 4, 60, small));
    compact(&mut host, &mut *log, 2, 60, 59);
    look(&mut *log);
    assert_eq!(log.stats().archived_segments, 0, "and goes with its last entry");
}

#[test]
fn a_damaged_list_of_an_archived_segment_is_never_believed() {
    let (mut host, log) = archived();
    drop(log);
    let disk = host.disk.clone();
    let first = segments(&disk)[0].clone();
    let bytes = disk.contents(&first).expect("there");
    let footer = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"LBFT")).expect("it is sealed");
    // Two groups, then the list: index, offset and length of every frame.
    for byte in footer + 64 + 32..footer + 64 + 32 + 64 {
        for bit in [1, 0x40] {
            disk.damage(&first, |bytes| bytes[byte] ^= bit).expect("there");
            let (log, _, _) = host.open().expect("opens");
            let e = read(&*log.reader(), 1, 1, 60, 1).expect_err("the list has a checksum");
            assert!(matches!(e, ReadError::Failed(_)), "byte {byte}: {e}");
            disk.damage(&first, |bytes| bytes[byte] ^= bit).expect("there");
        }
    }
}

#[test]
fn a_damaged_list_leads_to_no_entry_that_was_overwritten() {
    let mut host = SimHost::new(1).keeping();
    let (mut log, _, _) = host.open().expect("opens");
    let (old, new) = (vec![b'o'; 3000], vec![b'n'; 3000]);
    write(&mut host, &mut *log, vec![append(1, hard(1, 0, 6), 1, &[&old[..]; 10])]);
    // Another leader has other entries from 7 on. Both frames lie in the first segment.
    let cut = Update { cut_tail: Some(Index(7)), ..append(1, hard(2, 0, 12), 7, &[&new[..]; 6]) };
    write(&mut host, &mut *log, vec![cut]);
    for i in 1..=60 {
        write(&mut host, &mut *log, vec![append(2, hard(1, 0, i), i, &[&large(2, i)])]);
        housekeep(&mut *log);
    }
    assert!(log.stats().archived_segments >= 3, "{:?}", log.stats());
    let good = read(&*log.reader(), 1, 1, 12, 1 << 20).expect("kept");
    assert!(good[6..].iter().all(|(term, _, payload)| *term == 2 && *payload == new));
    drop(log);
    let disk = host.disk.clone();
    let first = segments(&disk)[0].clone();
    let bytes = disk.contents(&first).expect("there");
    let footer = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"LBFT")).expect("it is sealed");
    // The item of the second frame: index 7, then offset and length.
    let list = footer + 64;
    let item =
        (list..bytes.len()).step_by(16).find(|at| bytes[*at..].starts_with(&7u64.to_le_bytes())).expect("listed");
    for bit in [8, 16, 128] {
        disk.damage(&first, |bytes| bytes[item] ^= bit).expect("there");
        let (log, _, _) = host.open().expect("opens");
        let e = read(&*log.reader(), 1, 1, 12, 1 << 20).expect_err("refused");
        assert!(matches!(e, ReadError::Failed(_)), "{e}");
        disk.damage(&first, |bytes| bytes[item] ^= bit).expect("there");
    }
}

#[test]
fn an_archived_segment_that_is_missing_or_has_a_damaged_header_or_footer_is_refused() {
    let (host, log) = archived();
    drop(log);
    host.disk.kill();
    let first = segments(&host.disk)[0].clone();
    let bytes = host.disk.contents(&first).expect("there");
    let footer = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"LBFT")).expect("it is sealed");
    for byte in [None, Some(0), Some(45), Some(50), Some(footer), Some(footer + 9), Some(footer + 20)] {
        let disk = host.disk.fork();
        match byte {
            Some(byte) => disk.damage(&first, |bytes| bytes[byte] ^= 4).expect("there"),
            None => disk.process().remove_file(&first).expect("there"),
        }
        let mut host = SimHost { disk, config: host.config.clone() };
        let e = host.open().map(|_| ()).expect_err("refused");
        assert!(matches!(&e, OpenError::Corrupt(why) if why.contains("archived segment")), "{byte:?}: {e}");
    }
}

#[test]
fn an_entry_that_can_not_be_read_when_it_is_settled_keeps_its_segment_and_fails_nobody() {
    let mut host = SimHost::new(1);
    let (mut log, _, _) = host.open().expect("opens");
    let disk = host.disk.clone();
    for i in 1..=10 {
        let batch = vec![append(1, hard(1, 0, i), i, &[&large(1, i)]), append(2, hard(1, 0, i), i, &[&small(2, i)])];
        write(&mut host, &mut *log, batch);
    }
    disk.damage(&segments(&disk)[0], |bytes| {
        let at = find(bytes, &small(2, 3));
        bytes[at + 7] ^= 1;
    })
    .expect("there");
    fill(&mut host, &mut *log, 11, 60);
    let stats = log.stats();
    assert!(stats.archived_segments == 1 && stats.settled_entries > 40, "{stats:?}");
    for _ in 0..2 {
        assert!(matches!(read(&*log.reader(), 2, 3, 3, 1), Err(ReadError::Failed(_))));
        assert_eq!(read(&*log.reader(), 2, 1, 2, 1).expect("whole"), entries(2, 1, 2, small));
        assert_eq!(read(&*log.reader(), 2, 4, 60, 1).expect("whole"), entries(2, 4, 60, small));
        assert_eq!(read(&*log.reader(), 1, 1, 60, 1 << 20).expect("whole"), entries(1, 1, 60, large));
        drop(log);
        log = host.open().expect("opens").0;
    }
}

#[test]
fn small_spans_become_rows_and_large_ones_stay() {
    for (bytes, archives) in [(9_000, true), (60_000, false)] {
        let mut host = SimHost::new(1);
        host.config.archive_span_bytes_min = bytes;
        let (mut log, _, _) = host.open().expect("opens");
        fill(&mut host, &mut *log, 1, 60);
        let stats = log.stats();
        assert_eq!((stats.archived_segments > 0, stats.settled_entries > 0), (archives, !archives), "{stats:?}");
    }
}

#[test]
fn while_no_file_can_be_made_the_last_ones_are_kept_for_what_must_go_on() {
    let mut host = SimHost::new(1);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    look(&mut *log);
    assert_eq!(log.stats().free_segments, 2, "two files are there ahead");
    disk.set_capacity(0);
    for i in 1..=6 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&large(1, i)])]);
    }
    write(&mut host, &mut *log, vec![append(1, hard(1, 0, 7), 7, &[&large(1, 7)])]);
    look(&mut *log);
    assert!(log.stats().free_segments == 1 && log.stats().pressure_percent >= 1000, "{:?}", log.stats());
    write(&mut host, &mut *log, vec![state(1, hard(9, 3, 7))]);
    disk.set_capacity(u64::MAX);
    look(&mut *log);
    assert!(log.stats().free_segments == 2 && log.stats().pressure_percent <= 50, "{:?}", log.stats());
    assert_eq!(read(&*log.reader(), 1, 1, 7, 1).expect("kept").last().expect("seven").1, Index(7).0);
}

#[test]
fn of_large_frames_only_the_heads_are_needed_to_settle_them() {
    let mut host = SimHost::new(1).keeping();
    let (mut log, _, _) = host.open().expect("opens");
    let (mut next, mut cut) = (1, None);
    for round in 1..=30u64 {
        // Several runs of several sizes, a snapshot record, a cut and a compaction in one frame of some ten kilobytes.
        let hs = hard(round, round % 4, next.max(2) - 2);
        let runs = [700, 12_000, 3, 4_000].map(|bytes: usize| {
            let payload = [vec![round as u8; bytes], next.to_le_bytes().to_vec()].concat();
            next += 1;
            run(round, next - 1, &[&payload])
        });
        let base = if round % 5 == 0 { snapshot(1, hs, pos(round, next - 5), false) } else { state(1, hs) };
        write(&mut host, &mut *log, vec![Update { runs: runs.into_iter().collect(), cut_tail: cut, ..base }]);
        housekeep(&mut *log);
        // The last one is taken back by the next.
        next -= 1;
        cut = Some(Index(next));
    }
    let stats = log.stats();
    assert!(stats.archived_segments > 0, "{stats:?}");
    let before = read(&*log.reader(), 1, 1, next, 30_000).expect("kept");
    assert_eq!(before.iter().map(|(_, _, p)| p.len()).max(), Some(12_008));
    drop(log);
    host.disk.power_loss();
    let (log, _, groups) = host.open().expect("opens");
    assert_eq!((groups[0].hard_state, groups[0].last), (hard(30, 2, next - 5), pos(30, next)));
    assert_eq!((groups[0].terms.len(), groups[0].snapshot.as_ref().map(|s| s.meta.pos.term.0)), (30, Some(30)));
    assert_eq!(read_all(&*log.reader(), &groups[0]), before);
}

#[test]
fn a_pass_that_is_dropped_half_way_leaves_no_reference_that_counts() {
    for steps in 1..40 {
        let mut host = SimHost::new(1).keeping();
        let (mut log, _, _) = host.open().expect("opens");
        for i in 1..=20 {
            let batch =
                vec![append(1, hard(1, 0, i), i, &[&large(1, i)]), append(2, hard(1, 0, i), i, &[&small(2, i)])];
            write(&mut host, &mut *log, batch);
        }
        let mut job = log.background_job().expect("a pass is due");
        let done = (0..steps).any(|_| job.step(3000) == longboat_io::JobState::Done);
        drop(job);
        // The next pass has other first entries to refer to, and then most of what it refers to goes.
        for to in [2, 12] {
            compact(&mut host, &mut *log, 1, 20, to);
            compact(&mut host, &mut *log, 2, 20, to);
            look(&mut *log);
        }
        fill(&mut host, &mut *log, 21, 60);
        assert_eq!(read(&*log.reader(), 1, 13, 60, 1 << 20).expect("kept"), entries(1, 13, 60, large));
        drop(log);
        log = host.open().expect("opens").0;
        assert_eq!(read(&*log.reader(), 2, 13, 60, 1000).expect("kept"), entries(2, 13, 60, small));
        if done {
            assert!(steps > 3, "the pass was never dropped in the middle");
            return;
        }
    }
    panic!("the pass never came to its end");
}
