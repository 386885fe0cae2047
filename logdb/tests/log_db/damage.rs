//! What becomes of a journal whose bytes change behind everybody's back, for tests with all rules in place and with one of them broken.

use crate::driver::Driver;
use crate::model::{ModelGroup, ModelGroups};
use crate::support::*;
use crate::workload::seeded_steps;
use longboat_io::sim::SimDisk;
use longboat_logdb::{GroupState, OpenError, REPLICA_NOT_KNOWN, Record, Update};
use longboat_raft::{GroupId, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

const BLOCK: usize = 4096;

/// The files of the journal.
fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect()
}

fn word(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) as usize
}

/// A record in a segment: where it is, and where its frames are.
struct RecordAt {
    all: Range<usize>,
    frames: Vec<(Range<usize>, u64)>,
}

/// The records of a segment, one after the other.
fn records(bytes: &[u8]) -> Vec<RecordAt> {
    let mut records = Vec::new();
    let mut at = BLOCK;
    while bytes[at..].starts_with(b"LBRC") {
        let (length, frames) = (word(bytes, at + 16), word(bytes, at + 40) & 0xffff_ffff);
        let frame = |n: usize| {
            let item = at + 64 + 16 * n;
            let place = word(bytes, item + 8);
            let from = at + (place & 0xffff_ffff);
            (from..from + (place >> 32), word(bytes, item) as u64)
        };
        records.push(RecordAt { all: at..at + length, frames: (0..frames).map(frame).collect() });
        at += length.next_multiple_of(BLOCK);
    }
    records
}

fn flip(disk: &SimDisk, path: &Path, byte: usize) {
    disk.damage(path, |bytes| bytes[byte] ^= 0x10).expect("there");
}

pub(crate) fn states(host: &mut dyn Host) -> Result<Vec<GroupState>, OpenError> {
    host.open().map(|(_, _, groups)| groups)
}

/// Whether this is what is left of a group that was like `before`.
fn is_quarantined(state: &GroupState, before: &GroupState) -> bool {
    let (b, ids) = (&state.bootstrap, [before.bootstrap.replica, REPLICA_NOT_KNOWN]);
    let kept = (state.group, b.gone.is_subset(&before.bootstrap.gone), ids.contains(&b.replica));
    let nothing = GroupState { quarantined: state.quarantined, ..GroupState::default() };
    let rest = GroupState { group: nothing.group, bootstrap: Default::default(), ..state.clone() };
    state.quarantined.is_some() && kept == (before.group, true, true) && rest == nothing
}

/// Three groups in five records and a seal, in one segment.
fn three_groups() -> (SimHost, PathBuf) {
    let mut host = SimHost::new(5);
    let (mut log, _, _) = host.open().expect("opens");
    write(&mut host, &mut *log, (1..=3).map(|g| bootstrap(g, 10 + g)).collect());
    for i in 1..=3 {
        write(&mut host, &mut *log, (1..=3).map(|g| append(g, hard(i, g, i - 1), i, &[b"payload"])).collect());
    }
    write(&mut host, &mut *log, vec![state(2, hard(7, 3, 3))]);
    log.idle().expect("nothing fails");
    drain(&mut host, &mut *log).expect("nothing fails");
    drop(log);
    host.disk.kill();
    let path = segments(&host.disk).into_iter().find(|p| {
        let bytes = host.disk.contents(p).expect("there");
        bytes[BLOCK..].starts_with(b"LBRC")
    });
    (host, path.expect("one is in use"))
}

/// Changes every byte of a journal in turn.
pub(crate) fn every_byte_rots() {
    let (mut host, path) = three_groups();
    let before = states(&mut host).expect("whole");
    host.disk.kill();
    let bytes = host.disk.contents(&path).expect("there");
    let records = records(&bytes);
    let end = records.last().expect("there are some").all.end;
    let (mut refused, mut quarantined) = (0, 0);
    for byte in (0..64).chain(BLOCK..end + 8) {
        let disk = host.disk.fork();
        disk.kill();
        flip(&disk, &path, byte);
        let record = records.iter().position(|r| r.all.contains(&byte));
        let hit = record.and_then(|r| records[r].frames.iter().find(|(range, _)| range.contains(&byte)));
        // What closes the journal is vouched for by nothing, and says nothing of any group.
        let may_open = record.map_or(byte >= 64, |r| hit.is_some() || r + 1 == records.len());
        match states(&mut SimHost { disk, config: host.config.clone() }) {
            Err(e) => {
                assert!(!may_open, "byte {byte}: {e}");
                assert!(matches!(e, OpenError::Corrupt(_) | OpenError::Format(_)), "byte {byte}: {e}");
                refused += 1;
            }
            Ok(found) => {
                assert!(may_open, "byte {byte}: {found:?}");
                quarantined += u32::from(hit.is_some());
                for (state, before) in found.iter().zip(&before) {
                    let is_hit = hit.is_some_and(|(_, group)| *group == state.group.0);
                    let as_expected = if is_hit { is_quarantined(state, before) } else { state == before };
                    assert!(as_expected, "byte {byte} of group {:?}: {state:?}, it was {before:?}", hit);
                }
                assert_eq!(found.len(), before.len(), "byte {byte}");
            }
        }
    }
    assert!(refused > 300 && quarantined > 1000, "refused {refused}, quarantined {quarantined}");
}

/// The model after this damage.
fn damaged(groups: &ModelGroups, found: &[GroupState], hit: &BTreeSet<GroupId>) -> ModelGroups {
    let group = |state: &GroupState| {
        let before = &groups[&state.group];
        if *state == before.expected() {
            return (state.group, before.clone());
        }
        assert!(hit.contains(&state.group), "{state:?} was not hit, and was {:?}", before.expected());
        assert!(is_quarantined(state, &before.expected()), "{state:?}, it was {:?}", before.expected());
        (state.group, ModelGroup { state: state.clone(), entries: BTreeMap::new() })
    };
    assert_eq!(found.len(), groups.len());
    found.iter().map(group).collect()
}

/// A store that went through random steps and then had bytes of one or two frames changed, and what it holds then.
fn rotten(seed: u64) -> (SimHost, ModelGroups) {
    let mut host = if seed.is_multiple_of(2) { SimHost::new(seed) } else { SimHost::tiny(seed) };
    let mut driver = Driver::new(&mut host);
    driver.open().expect("opens");
    for step in seeded_steps(seed, 60 + seed as usize % 90) {
        driver.step(&step).expect("nothing fails");
    }
    driver.drain().expect("nothing fails");
    let log = driver.log.as_mut().expect("open");
    log.idle().expect("nothing fails");
    driver.drain().expect("nothing fails");
    while driver.log.as_mut().expect("open").poll().expect("nothing fails").in_flight {
        driver.host.advance();
    }
    let groups = driver.groups().clone();
    drop(driver);
    let disk = host.disk.clone();
    disk.kill();
    let (mut hit, mut next) = (BTreeSet::new(), seed as usize);
    for _ in 0..1 + seed % 3 / 2 {
        let paths = segments(&disk);
        let path = &paths[next % paths.len()];
        let bytes = disk.contents(path).expect("there");
        let frames: Vec<_> = records(&bytes).into_iter().flat_map(|r| r.frames).collect();
        next = next.wrapping_mul(0x9E37_79B9) + 11;
        if let Some((range, group)) = frames.get(next % frames.len().max(1)) {
            flip(&disk, path, range.start + next / 7 % range.len());
            hit.insert(GroupId(*group));
        }
    }
    let found = states(&mut host).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    let groups = damaged(&groups, &found, &hit);
    (host, groups)
}

/// Opens damaged stores, and goes on with them until the segments with the damage are used again. Returns how many groups were
/// quarantined.
pub(crate) fn rot_and_go_on(seeds: Range<u64>) -> usize {
    let mut quarantined = 0;
    for seed in seeds {
        let (mut host, groups) = rotten(seed);
        quarantined += groups.values().filter(|g| g.state.quarantined.is_some()).count();
        let disk = host.disk.clone();
        let mut driver = Driver::resumed(&mut host, groups);
        for (n, step) in seeded_steps(seed + 500, 120).into_iter().enumerate() {
            if n % 30 == 0 {
                driver.log = None;
                disk.power_loss();
                driver.open().unwrap_or_else(|e| panic!("seed {seed}, step {n}: {e:?}"));
            }
            driver.step(&step).unwrap_or_else(|e| panic!("seed {seed}, step {n}: {e:?}"));
        }
        driver.drain().expect("nothing fails");
        driver.log = None;
        disk.power_loss();
        driver.open().unwrap_or_else(|e| panic!("seed {seed}, at the end: {e:?}"));
    }
    quarantined
}

/// Opens a damaged store with the machine stopped after every change that this and a few steps make. Whether the damage was
/// anywhere that matters.
pub(crate) fn rot_and_stop_everywhere(seed: u64) -> bool {
    let (host, groups) = rotten(seed);
    if groups.values().all(|g| g.state.quarantined.is_none()) {
        return false;
    }
    host.disk.kill();
    for changes in 0.. {
        let disk = host.disk.fork();
        disk.reseed(seed * 1_000_003 + changes);
        disk.stop_after(changes);
        let mut there = SimHost { disk: disk.clone(), config: host.config.clone() };
        let mut driver = Driver::resumed(&mut there, groups.clone());
        let gone = driver.open().and_then(|()| seeded_steps(seed, 6).iter().try_for_each(|s| driver.step(s)));
        if gone.is_ok() && driver.drain().is_ok() {
            assert!(changes > 5, "only {changes} changes");
            break;
        }
        driver.log = None;
        disk.clear_faults();
        disk.power_loss();
        driver.open().unwrap_or_else(|e| panic!("seed {seed}, change {changes}: {e:?}"));
    }
    true
}

/// A store of one group whose frame in this record is damaged.
pub(crate) fn one_group(batches: Vec<Vec<Update>>, damaged: &[usize]) -> SimHost {
    let mut host = SimHost::new(7);
    let (mut log, _, _) = host.open().expect("opens");
    for batch in batches {
        write(&mut host, &mut *log, batch);
    }
    write(&mut host, &mut *log, vec![bootstrap(99, 1)]);
    drop(log);
    host.disk.kill();
    for path in segments(&host.disk) {
        let bytes = host.disk.contents(&path).expect("there");
        for (n, record) in records(&bytes).iter().enumerate().filter(|(n, _)| damaged.contains(n)) {
            let at = record.frames.first().unwrap_or_else(|| panic!("record {n} has a frame")).0.start;
            flip(&host.disk, &path, at + 9);
        }
    }
    host
}

pub(crate) fn removal(group: u64, replica: u64) -> Update {
    Update { record: Some(Box::new(Record::Removed { replica: ReplicaId(replica) })), ..state(group, hard(0, 0, 0)) }
}

/// Which replica was here is known only where no damaged frame can have said it.
pub(crate) fn who_was_here() {
    let entry = |i: u64| vec![append(1, hard(1, 0, 0), i, &[b"payload"])];
    let cases = [
        (vec![vec![bootstrap(1, 4)], entry(1), entry(2)], vec![1], ReplicaId(4)),
        // The frame that began it.
        (vec![vec![bootstrap(1, 4)], entry(1), entry(2)], vec![0], REPLICA_NOT_KNOWN),
        // The first may have removed it, and the second have begun another.
        (vec![vec![bootstrap(1, 4)], entry(1), entry(2), entry(3)], vec![1, 2], REPLICA_NOT_KNOWN),
        // What began the one after it.
        (vec![vec![bootstrap(1, 4)], entry(1), vec![removal(1, 4)], vec![bootstrap(1, 5)]], vec![3], REPLICA_NOT_KNOWN),
    ];
    for (batches, damaged, expected) in cases {
        let mut host = one_group(batches, &damaged);
        for _ in 0..2 {
            let found = states(&mut host).expect("opens");
            assert!(found[0].quarantined.is_some(), "{found:?}");
            assert_eq!(found[0].bootstrap.replica, expected, "records {damaged:?} are damaged: {found:?}");
            host.disk.power_loss();
        }
    }
}
