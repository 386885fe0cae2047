//! Scenarios that more than one test goes through: with all rules in place, and with one of them broken.

use crate::driver::{Driver, Stopped};
use crate::support::*;
use crate::workload::{Step, seeded_steps};
use longboat_io::sim::{SimDisk, SimOp};
use longboat_logdb::{LogDb, ReadError, Update};
use longboat_raft::Index;
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

/// What a run goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// So many random steps; all that is kept is settled as rows.
    AsRows(usize),
    /// So many random steps; segments with much that is kept stay where they are.
    InPlace(usize),
    /// Segments stay, lose one group's entries and then the other's, and are used again.
    KeepAndLetGo,
}

impl Course {
    fn host(self, seed: u64) -> SimHost {
        let host = SimHost::tiny(seed);
        if matches!(self, Self::AsRows(_)) { host } else { host.keeping() }
    }

    /// Goes on until something fails. Whether it came to the end.
    fn go(self, driver: &mut Driver<'_>, seed: u64) -> bool {
        let gone = driver.open().and_then(|()| match self {
            Self::AsRows(count) | Self::InPlace(count) => {
                seeded_steps(seed, count).iter().try_for_each(|s| driver.step(s))
            }
            Self::KeepAndLetGo => keep_and_let_go(driver),
        });
        gone.is_ok() && driver.drain().is_ok()
    }
}

/// Writes two groups until segments are archived, lets one group go, so that the other's entries are remnants, and then
/// that one too, so that the files are used again.
pub(crate) fn keep_and_let_go(driver: &mut Driver<'_>) -> Result<(), Stopped> {
    let (large, small) = (vec![1; 5000], vec![2; 600]);
    let write = |driver: &mut Driver<'_>, i: u64, compact: [u64; 2]| {
        let compacted = |g: usize| (compact[g] > 0).then(|| pos(1, compact[g]));
        let of =
            |group, payload: &[u8], compact_to| Update { compact_to, ..append(group, hard(1, 0, i), i, &[payload]) };
        driver.submit(vec![of(1, &large, compacted(0)), of(2, &small, compacted(1))]);
        driver.drain()?;
        driver.housekeep(u32::MAX)
    };
    let mut next = 1;
    for (count, lag) in [(26, [0, 0]), (8, [2, 0]), (8, [2, 6]), (6, [1, 1])] {
        for i in next..next + count {
            write(driver, i, lag.map(|lag| if lag > 0 { i - lag } else { 0 }))?;
        }
        next += count;
        // Looks that nothing else is due at.
        for _ in 0..20 {
            driver.housekeep(u32::MAX)?;
        }
    }
    Ok(())
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
pub(crate) fn stop_everywhere(seed: u64, course: Course, crash: Crash) -> u64 {
    let more = seeded_steps(seed + 1000, 12);
    let mut stops = 0;
    for changes in 0.. {
        let mut host = course.host(seed);
        let disk = host.disk.clone();
        disk.reseed(seed * 1_000_003 + changes);
        disk.stop_after(changes);
        let mut driver = Driver::new(&mut host);
        if course.go(&mut driver, seed) {
            let settled = disk.contents(Path::new("/host/kv/rows")).expect("flushed").len();
            let (archived, freed) = (driver.archived_max, driver.archived_freed);
            match course {
                Course::AsRows(_) => assert!(settled > 500, "the steps of seed {seed} settle too little"),
                Course::InPlace(_) => assert!(settled > 200, "the steps of seed {seed} settle too little"),
                Course::KeepAndLetGo => assert!(archived > 3 && freed, "{archived} archived, freed: {freed}"),
            }
            break;
        }
        stops += 1;
        crash_and_go_on(&mut driver, &disk, crash, &more);
    }
    stops
}

/// Fails every call of a kind in turn. Returns how many there were.
pub(crate) fn fail_everywhere(op: SimOp, seed: u64, course: Course, crash: Crash) -> u64 {
    let more = seeded_steps(seed + 1000, 12);
    let mut failed = 0;
    for skip in 0.. {
        let mut host = course.host(seed);
        let disk = host.disk.clone();
        disk.reseed(seed * 1_000_003 + skip);
        disk.inject(op, skip, io::ErrorKind::Other);
        let mut driver = Driver::new(&mut host);
        if course.go(&mut driver, seed) && !disk.has_faulted() {
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

/// Entries of one segment are overwritten in it by another term's, and the journal goes round many times.
pub(crate) fn overwrite_then_recycle() {
    let mut host = SimHost::new(2);
    let (mut log, _, _) = host.open().expect("opens");
    write(&mut host, &mut *log, vec![bootstrap(1, 11)]);
    write(&mut host, &mut *log, vec![append(1, hard(1, 0, 1), 1, &[b"one", b"two", b"three"])]);
    let cut_tail = Some(Index(2));
    write(&mut host, &mut *log, vec![Update { cut_tail, ..append(1, hard(3, 0, 2), 2, &[b"other"]) }]);
    write(&mut host, &mut *log, vec![append(1, hard(3, 0, 4), 3, &[b"third", b"fourth"])]);
    churn(&mut host, &mut *log, &mut 1, 400);
    drop(log);
    host.disk.power_loss();
    let (log, _, groups) = host.open().expect("opens");
    let (state, entries) = (&groups[0], read(&*log.reader(), 1, 1, 4, 100).expect("kept"));
    assert_eq!((state.last, &state.terms[..]), (pos(3, 4), &[pos(1, 1), pos(3, 2)][..]));
    assert_eq!(entries.iter().map(|e| &e.2[..]).collect::<Vec<_>>(), [&b"one"[..], b"other", b"third", b"fourth"]);
}

/// Two openings write a record of the same shape at the same place, and each crashes while it does. Whatever blocks of
/// the two the disk has in the end, the next opening sees one of the records whole, or none.
pub(crate) fn stale_blocks_of_an_earlier_opening() {
    const BLOCKS: usize = 4;
    let mut host = SimHost::new(3);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    write(&mut host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"before"])]);
    drop(log);
    disk.kill();
    // The frames of the groups fill a block each, the first one together with the record's header and directory.
    let front = 64 + BLOCKS * 16;
    let record = |term: u64, byte: u8| -> Vec<Update> {
        let payload = |group: usize| vec![byte; 4096 - 48 - 56 - 16 - if group == 0 { front } else { 0 }];
        let update = |group: usize| append(group as u64 + 10, hard(term, term, 0), 1, &[&payload(group)]);
        (0..BLOCKS).map(update).collect()
    };
    let path = Path::new("/host/journal/00000001.seg");
    let (from, to) = (2 * 4096, (2 + BLOCKS) * 4096);
    let before = disk.contents(path).expect("in use");
    let written = |host: &mut SimHost, term, byte| {
        let (mut log, _, groups) = host.open().expect("opens");
        assert_eq!(groups.len(), 1, "the record under way is dropped");
        write(host, &mut *log, record(term, byte));
        drop(log);
        disk.kill();
        disk.contents(path).expect("in use")[from..to].to_vec()
    };
    let put = |disk: &SimDisk, blocks: &[&[u8]]| {
        disk.damage(path, |bytes| bytes[from..to].copy_from_slice(&blocks.concat())).expect("in use");
    };
    fn block(bytes: &[u8], at: usize) -> &[u8] {
        &bytes[at * 4096..(at + 1) * 4096]
    }
    let old = written(&mut host, 2, 0xaa);
    // Of the first record, the last block did not get to the disk.
    put(&disk, &[&old[..3 * 4096], block(&before[from..to], 3)]);
    let new = written(&mut host, 3, 0xbb);
    for mask in 0..1u32 << BLOCKS {
        let of = |at: usize| block(if mask & 1 << at == 0 { &old } else { &new }, at);
        put(&disk, &(0..BLOCKS).map(of).collect::<Vec<_>>());
        let mut there = SimHost { disk: disk.fork(), config: host.config.clone() };
        let (mut log, _, groups) = there.open().unwrap_or_else(|e| panic!("blocks {mask:04b}: {e}"));
        let terms: Vec<u64> = groups.iter().skip(1).map(|g| g.hard_state.term.0).collect();
        let whole = [vec![2; BLOCKS], vec![3; BLOCKS]].contains(&terms);
        assert!(terms.is_empty() || whole, "blocks {mask:04b}: the groups are in terms {terms:?}");
        assert_eq!(terms.is_empty(), mask != 0 && mask + 1 != 1 << BLOCKS, "blocks {mask:04b}");
        write(&mut there, &mut *log, record_after(groups.len()));
        drop(log);
        there.disk.power_loss();
        there.open().unwrap_or_else(|e| panic!("blocks {mask:04b}, later: {e}"));
    }
}

/// What is written after a recovery that may have found the record before or not.
fn record_after(groups: usize) -> Vec<Update> {
    vec![append(100, hard(4, 0, 0), 1, &[&vec![1; groups * 1000]])]
}

/// A host with some archived segments of 4 MiB, in each of which one group keeps about 600 KiB and the other will not keep
/// anything. Every group has this many entries.
fn remnants_of_several_rows(entries: u64) -> (SimHost, Box<dyn LogDb>) {
    let mut host = SimHost::new(1).keeping();
    (host.config.segment_bytes, host.config.journal_bytes_max) = (4 << 20, 16 << 20);
    let (mut log, _, _) = host.open().expect("opens");
    let gone = vec![1; 90_000];
    for i in 1..=entries {
        let batch = vec![append(1, hard(1, 0, i), i, &[&gone]), append(2, hard(1, 0, i), i, &[&kept(i)])];
        write(&mut host, &mut *log, batch);
        housekeep(&mut *log);
    }
    let stats = log.stats();
    assert!(stats.archived_segments >= 4 && stats.settled_entries == 0, "{stats:?}");
    (host, log)
}

fn kept(i: u64) -> Vec<u8> {
    [vec![2; 15_000], i.to_le_bytes().to_vec()].concat()
}

/// What one group keeps of a segment takes several rows: all of it is moved and the file is free, also when jobs are dropped
/// after so many small steps before, and the ones after have to find where to go on.
pub(crate) fn several_rows_are_moved(dropped_after: Option<u32>) {
    const ENTRIES: u64 = 300;
    let (mut host, mut log) = remnants_of_several_rows(ENTRIES);
    let before = log.stats();
    let compact_to = Some(pos(1, ENTRIES - 1));
    write(&mut host, &mut *log, vec![Update { compact_to, ..state(1, hard(1, 0, ENTRIES)) }]);
    for _ in 0..100 {
        let Some(steps) = dropped_after else { break };
        let Some(mut job) = log.background_job() else { continue };
        for _ in 0..steps {
            job.step(1);
        }
    }
    for _ in 0..100 {
        housekeep(&mut *log);
    }
    let after = log.stats();
    // Half of the journal's bound may be dead.
    assert!(after.archived_file_bytes <= 3 * (4 << 20), "{before:?} {after:?}");
    assert!(log.background_job().is_none(), "nothing more is due");
    let all: Vec<Seen> = (1..=ENTRIES).map(|i| (1, i, kept(i))).collect();
    for _ in 0..2 {
        assert!(read(&*log.reader(), 2, 1, ENTRIES, 100_000).expect("kept") == all, "the entries are what was written");
        drop(log);
        host.disk.power_loss();
        log = host.open().expect("opens").0;
    }
}

/// Entries of one group that can't be read keep their segment; everything else goes on, and nothing is tried for ever.
pub(crate) fn what_can_not_be_moved_stays() {
    const ENTRIES: u64 = 300;
    let (mut host, mut log) = remnants_of_several_rows(ENTRIES);
    let disk = host.disk.clone();
    // The first segment's, in the middle of what is kept.
    let wanted = kept(20)[14_990..].to_vec();
    let holds = |bytes: &[u8]| bytes.windows(wanted.len()).position(|w| w == wanted);
    let files = disk.files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg"));
    let found = files.filter_map(|path| Some((holds(&disk.contents(&path).expect("there"))?, path))).next();
    let (at, path) = found.expect("it was written");
    disk.damage(&path, |bytes| bytes[at] ^= 1).expect("there");
    let compact_to = Some(pos(1, ENTRIES - 1));
    write(&mut host, &mut *log, vec![Update { compact_to, ..state(1, hard(1, 0, ENTRIES)) }]);
    for _ in 0..100 {
        housekeep(&mut *log);
    }
    log.poll().expect("nothing failed");
    let stats = log.stats();
    assert!(stats.archived_file_bytes <= 4 * (4 << 20), "the others are free: {stats:?}");
    assert!(matches!(read(&*log.reader(), 2, 20, 20, 1), Err(ReadError::Failed(_))));
    for (from, to) in [(1, 19), (21, ENTRIES)] {
        let all: Vec<Seen> = (from..=to).map(|i| (1, i, kept(i))).collect();
        assert!(read(&*log.reader(), 2, from, to, 1).expect("kept") == all, "the entries are what was written");
    }
}

/// An archive of more segments than files may be open, of which old and new entries are read, before and after a restart.
pub(crate) fn few_archived_files_stay_open() {
    let mut host = SimHost::new(1).keeping();
    let (mut log, _, _) = host.open().expect("opens");
    let payload = |i: u64| [vec![3; 40_000], i.to_le_bytes().to_vec()].concat();
    for i in 1..=110 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&payload(i)])]);
        while housekeep(&mut *log) {}
    }
    for _ in 0..2 {
        assert!(log.stats().archived_segments > 90, "{:?}", log.stats());
        for i in (1..=110).chain([1, 50, 1]) {
            assert_eq!(read(&*log.reader(), 1, i, i, 1).expect("kept"), [(1, i, payload(i))]);
        }
        // Those of the journal, its free ones, the rows', the lock's, and sixty-four.
        let (stats, handles) = (log.stats(), host.disk.handles() as u64);
        assert!(handles <= 64 + stats.segments + stats.free_segments + 4, "{handles} handles: {stats:?}");
        drop(log);
        host.disk.kill();
        log = host.open().expect("opens").0;
    }
    let compact_to = Some(pos(1, 109));
    write(&mut host, &mut *log, vec![Update { compact_to, ..state(1, hard(1, 0, 110)) }]);
    while housekeep(&mut *log) {}
    assert_eq!(log.stats().archived_segments, 0);
    for i in 111..=150 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&payload(i)])]);
    }
    assert_eq!(read(&*log.reader(), 1, 140, 140, 1).expect("kept"), [(1, 140, payload(140))]);
}
