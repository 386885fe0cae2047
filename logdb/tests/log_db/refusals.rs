//! Directories that must not be opened, and damage that must be told from a torn tail.

use crate::support::*;
use crate::workload::seeded_steps;
use longboat_io::RealDisk;
use longboat_io::sim::SimDisk;
use longboat_logdb::{KeyValue, OpenError, SharedLog, SharedLogConfig};
use longboat_raft::HostId;
use longboat_raft::crc::crc32c;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn refused(host: &mut dyn Host) -> OpenError {
    match host.open() {
        Ok(_) => panic!("it was opened"),
        Err(e) => e,
    }
}

fn flip(disk: &SimDisk, path: &Path, byte: usize) {
    disk.damage(path, |bytes| bytes[byte] ^= 0x10).expect("there");
}

/// The segment files, that of the newest use last.
fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let mut files: Vec<_> = disk.files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    let use_number = |p: &PathBuf| {
        let bytes = disk.contents(p).expect("there");
        u64::from_le_bytes(bytes[40..48].try_into().expect("eight bytes"))
    };
    files.sort_by_key(use_number);
    files
}

/// A store with three records of one block each in its first segment.
fn three_records() -> (SimHost, SimDisk, PathBuf) {
    let mut host = SimHost::new(5);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    for i in 1..=3 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, 0), i, &[b"payload"])]);
    }
    drop(log);
    disk.kill();
    let first = segments(&disk).pop().expect("a segment in use");
    (host, disk, first)
}

#[test]
fn a_directory_with_something_else_in_it_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("precious"), b"data").expect("written");
    let config = SharedLogConfig { key_value: KeyValue::Memory, ..SharedLogConfig::new(dir.path(), HOST) };
    let e = SharedLog::open(Arc::new(RealDisk), config).map(|_| ()).expect_err("foreign");
    assert!(matches!(&e, OpenError::Format(why) if why.contains("precious")), "{e}");
    assert_eq!(std::fs::read(dir.path().join("precious")).expect("still there"), b"data");
}

#[test]
fn an_identity_of_another_kind_version_or_host_is_refused() {
    let (mut host, disk, _) = three_records();
    let store = Path::new("/host/store");
    let other = SharedLogConfig { host_id: HostId(8), ..host.config.clone() };
    let e = SharedLog::open(disk.process(), other).map(|_| ()).expect_err("another host");
    assert!(matches!(e, OpenError::OtherHost { expected: HostId(8), found: HOST }), "{e}");
    for (byte, is_format) in [(0, true), (8, true), (12, false), (20, false), (39, false)] {
        flip(&disk, store, byte);
        let e = refused(&mut host);
        assert_eq!(matches!(e, OpenError::Format(_)), is_format, "byte {byte}: {e}");
        assert!(is_format || matches!(e, OpenError::Corrupt(_)), "byte {byte}: {e}");
        flip(&disk, store, byte);
    }
    host.open().expect("whole again");
}

#[test]
fn a_second_host_on_the_same_directory_is_refused() {
    for mut host in [Box::new(SimHost::new(1)) as Box<dyn Host>, Box::new(RealHost::new(KeyValue::Memory))] {
        let first = host.open().expect("opens");
        let e = refused(&mut *host);
        assert!(matches!(e, OpenError::Locked(_)), "{e}");
        drop(first);
        host.open().expect("free again");
    }
}

#[test]
fn a_configuration_out_of_its_limits_is_refused_by_name() {
    let good = small(Path::new("/never"), KeyValue::Memory);
    let bad = [
        ("host_id", SharedLogConfig { host_id: HostId(0), ..good.clone() }),
        ("segment_bytes", SharedLogConfig { segment_bytes: 4096, ..good.clone() }),
        ("segment_bytes", SharedLogConfig { segment_bytes: SEGMENT_BYTES + 1, ..good.clone() }),
        ("journal_bytes_max", SharedLogConfig { journal_bytes_max: SEGMENT_BYTES, ..good.clone() }),
        ("settle_segments", SharedLogConfig { settle_segments: 0, ..good.clone() }),
    ];
    for (field, config) in bad {
        let disk = SimDisk::new(1, Default::default());
        let e = SharedLog::open(disk.process(), config).map(|_| ()).expect_err("out of limits");
        assert!(matches!(&e, OpenError::Config(why) if why.starts_with(field)), "{field}: {e}");
        assert_eq!(disk.changes(), 0);
    }
}

#[test]
fn a_torn_last_record_is_dropped_and_the_log_goes_on() {
    for damaged_byte in [0, 5, 20, 70, 100, 150] {
        let (mut host, disk, segment) = three_records();
        flip(&disk, &segment, 3 * 4096 + damaged_byte);
        let (mut log, _, groups) = host.open().expect("a torn tail is no damage");
        assert_eq!(groups[0].last.index.0, 2, "byte {damaged_byte}");
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, 0), 3, &[b"again"])]);
        drop(log);
        let (log, _, groups) = host.open().expect("opens");
        assert_eq!(read_all(&*log.reader(), &groups[0])[2].2, b"again");
    }
}

#[test]
fn damage_of_a_header_or_a_directory_in_the_middle_is_refused() {
    for record in [1, 2] {
        for damaged_byte in [0, 5, 20, 70] {
            let (mut host, disk, segment) = three_records();
            flip(&disk, &segment, record * 4096 + damaged_byte);
            let e = refused(&mut host);
            assert!(matches!(e, OpenError::Corrupt(_)), "record {record}, byte {damaged_byte}: {e}");
        }
    }
}

#[test]
fn after_a_rest_damage_of_the_last_record_is_noticed_too() {
    let (mut host, disk, segment) = three_records();
    let (mut log, _, _) = host.open().expect("opens");
    log.idle().expect("nothing fails");
    drain(&mut host, &mut *log).expect("nothing fails");
    drop(log);
    disk.kill();
    let fork = disk.fork();
    fork.kill();
    flip(&disk, &segment, 3 * 4096 + 70);
    let e = refused(&mut host);
    assert!(matches!(e, OpenError::Corrupt(_)), "{e}");
    flip(&fork, &segment, 3 * 4096 + 100);
    let (_log, _, groups) = SimHost { disk: fork, ..host }.open().expect("its directory is whole");
    assert_eq!(groups[0].quarantined, Some(3), "the last record is not taken for one that was torn");
}

/// A store that went through several segments, crashed without anything under way.
fn several_segments() -> (SimHost, SimDisk) {
    let mut host = SimHost::new(9);
    host.config.journal_bytes_max = 64 * SEGMENT_BYTES;
    let disk = host.disk.clone();
    let mut driver = crate::driver::Driver::new(&mut host);
    driver.open().expect("opens");
    for step in seeded_steps(3, 150) {
        driver.step(&step).expect("nothing fails");
    }
    driver.drain().expect("nothing fails");
    drop(driver);
    disk.kill();
    assert!(segments(&disk).len() > 5);
    (host, disk)
}

#[test]
fn a_segment_that_is_missing_or_has_a_damaged_header_is_refused() {
    let (host, disk) = several_segments();
    for segment in segments(&disk) {
        let in_use = disk.contents(&segment).expect("there")[..8] == *b"LONGBJNL";
        for lost in [false, true] {
            let disk = disk.fork();
            disk.kill();
            if lost {
                disk.process().remove_file(&segment).expect("there");
            } else {
                flip(&disk, &segment, 48);
            }
            let mut host = SimHost { disk, config: host.config.clone() };
            let opened = host.open();
            assert_eq!(opened.is_err(), in_use, "{} lost: {lost}", segment.display());
            if let Err(e) = opened {
                assert!(matches!(e, OpenError::Corrupt(_)), "{e}");
            }
        }
    }
}

#[test]
fn a_damaged_footer_is_refused() {
    let (mut host, disk) = several_segments();
    let segment = segments(&disk).into_iter().find(|p| disk.contents(p).expect("there").starts_with(b"LONGBJNL"));
    let segment = segment.expect("one is in use");
    let bytes = disk.contents(&segment).expect("there");
    let footer = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"LBFT")).expect("it is sealed");
    for byte in [0, 5, 10, 30, 45, 66, 90] {
        flip(&disk, &segment, footer + byte);
        let e = refused(&mut host);
        assert!(matches!(e, OpenError::Corrupt(_)), "byte {byte}: {e}");
        flip(&disk, &segment, footer + byte);
    }
    host.open().expect("whole again");
}

/// Makes the footer's header at `at` one that is meant.
fn seal_footer(bytes: &mut [u8], at: usize) {
    let sum = crc32c(crc32c(0, &bytes[48..56]), &bytes[at + 8..at + 64]);
    bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Makes the frame with one run in the record at `record` one that is meant.
fn seal_frame(bytes: &mut [u8], record: usize) {
    let frame = record + 64 + 16;
    let seed = crc32c(crc32c(0, &bytes[48..56]), &bytes[record + 48..record + 56]);
    bytes[frame..frame + 4].copy_from_slice(&seed.to_le_bytes());
    let sum = crc32c(0, &bytes[frame..frame + 48 + 56]);
    bytes[frame..frame + 4].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_footer_with_a_length_that_can_not_be_is_refused() {
    for length in [0u64, 63, 64, 1 << 40, u64::MAX] {
        let (mut host, disk, segment) = three_records();
        disk.damage(&segment, |bytes| {
            let at = 4 * 4096;
            bytes[at..at + 64].fill(0);
            bytes[at..at + 4].copy_from_slice(b"LBFT");
            bytes[at + 8] = 3;
            bytes[at + 16..at + 24].copy_from_slice(&length.to_le_bytes());
            bytes[at + 32] = 1;
            seal_footer(bytes, at);
        })
        .expect("there");
        let e = refused(&mut host);
        assert!(matches!(&e, OpenError::Corrupt(why) if why.contains("length")), "{length}: {e}");
    }
}

#[test]
fn a_last_record_that_is_whole_and_not_understood_is_refused_and_not_dropped() {
    // The flags of the frame, the version of its run and the count of its entries.
    for byte in [5, 48, 48 + 4] {
        let (mut host, disk, segment) = three_records();
        disk.damage(&segment, |bytes| {
            let frame = 3 * 4096 + 64 + 16;
            bytes[frame + byte] ^= 1;
            if byte == 52 {
                // One entry less is told by a payload that is longer by its descriptor.
                bytes[frame + 48 + 40] += 16;
            }
            seal_frame(bytes, 3 * 4096);
        })
        .expect("there");
        let e = refused(&mut host);
        assert!(matches!(e, OpenError::Format(_)), "byte {byte}: {e}");
    }
}

#[test]
fn rows_older_than_the_journal_are_refused() {
    let mut host = SimHost::new(4);
    let disk = host.disk.clone();
    let mut driver = crate::driver::Driver::new(&mut host);
    driver.open().expect("opens");
    let rows = Path::new("/host/kv/rows");
    let old = disk.contents(rows).expect("flushed when made");
    for step in seeded_steps(8, 400) {
        driver.step(&step).expect("nothing fails");
    }
    driver.drain().expect("nothing fails");
    drop(driver);
    disk.kill();
    let process = disk.process();
    assert_ne!(disk.contents(rows).expect("there"), old, "something was settled");
    process.remove_file(rows).expect("there");
    process.create(rows).and_then(|mut f| f.write_all_at(&old, 0)).expect("put back");
    let e = refused(&mut host);
    assert!(matches!(e, OpenError::Corrupt(_)), "{e}");
}

#[test]
fn a_journal_without_its_identity_is_refused_and_left_alone() {
    let (mut host, disk, segment) = three_records();
    disk.process().remove_file(Path::new("/host/store")).expect("there");
    let before = disk.contents(&segment).expect("there");
    let e = refused(&mut host);
    assert!(matches!(e, OpenError::Corrupt(_)), "{e}");
    assert_eq!(disk.contents(&segment).expect("there"), before);
}

#[test]
fn a_segment_of_another_store_is_refused() {
    let (mut host, disk, segment) = three_records();
    let mut stranger = SimHost::new(6);
    stranger.open().map(|_| ()).expect("opens");
    let foreign = segments(&stranger.disk).pop().expect("a segment in use");
    let bytes = stranger.disk.contents(&foreign).expect("there");
    disk.damage(&segment, |b| b[..4096].copy_from_slice(&bytes[..4096])).expect("there");
    let e = refused(&mut host);
    assert!(matches!(&e, OpenError::Format(why) if why.contains("another") || why.contains("belongs")), "{e}");
}

/// A configuration with its journal set apart, and what opening comes to.
fn apart(data_dir: &str, seed: u64) -> SharedLogConfig {
    let journal_dir = Some(PathBuf::from("/fast"));
    SharedLogConfig { journal_dir, seed: Some(seed), ..small(Path::new(data_dir), KeyValue::Memory) }
}

#[test]
fn a_journal_set_apart_is_refused_while_it_holds_anything_that_is_not_its_own() {
    for name in ["notes", "1.seg", "backup.seg", "00000009.seg.old"] {
        let disk = SimDisk::new(1, Default::default());
        let (process, path) = (disk.process(), Path::new("/fast").join(name));
        process.create_dir_all(Path::new("/fast")).expect("made");
        process.create(&path).and_then(|mut f| f.write_all_at(b"precious", 0)).expect("written");
        let e = SharedLog::open(disk.process(), apart("/one", 1)).map(|_| ()).expect_err("foreign");
        assert!(matches!(&e, OpenError::Format(why) if why.contains(name)), "{e}");
        assert_eq!(disk.contents(&path).expect("still there"), b"precious");
    }
}

#[test]
fn a_new_store_takes_no_journal_of_another_and_removes_none_of_it() {
    let disk = SimDisk::new(1, Default::default());
    let first = SharedLog::open(disk.process(), apart("/one", 1)).map_err(|e| e.to_string()).expect("opens");
    let e = SharedLog::open(disk.process(), apart("/two", 2)).map(|_| ()).expect_err("taken");
    assert!(matches!(&e, OpenError::Locked(path) if path == Path::new("/fast")), "{e}");
    drop(first);
    let files = disk.files();
    let e = SharedLog::open(disk.process(), apart("/two", 2)).map(|_| ()).expect_err("not its own");
    assert!(matches!(&e, OpenError::Format(why) if why.contains("belongs")), "{e}");
    assert!(files.iter().all(|path| disk.files().contains(path)), "nothing was removed");
    SharedLog::open(disk.process(), apart("/one", 1)).map(|_| ()).expect("opens as before");
}

#[test]
fn a_real_journal_set_apart_is_locked_and_opens_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = SharedLogConfig {
        journal_dir: Some(dir.path().join("fast")),
        ..small(&dir.path().join("data"), KeyValue::Memory)
    };
    for _ in 0..2 {
        let first = SharedLog::open(Arc::new(RealDisk), config.clone()).map_err(|e| e.to_string()).expect("opens");
        let other = SharedLogConfig { data_dir: dir.path().join("other"), ..config.clone() };
        let e = SharedLog::open(Arc::new(RealDisk), other).map(|_| ()).expect_err("taken");
        assert!(matches!(e, OpenError::Locked(_)), "{e}");
        drop(first);
    }
}
