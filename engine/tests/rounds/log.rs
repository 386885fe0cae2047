//! The log as its users see it: truncated on request, read in parts.

use crate::guards::Led;
use longboat_engine::{EntryLimits, LogHold, LogRequest};
use longboat_raft::{EntryKind, Index};
use longboat_rsm::{RequestError, SnapshotRefusal};

/// The files are those that are kept, and the log has what comes after the oldest of them.
pub fn log_goes_on_from_a_snapshot(led: &Led, kept: u32, context: &str) {
    let (files, start) = (led.files(), led.start());
    assert!(!files.is_empty() && files.len() <= kept as usize, "{context}: {files:?}");
    assert!(start <= files[0], "{context}: {files:?}, the log begins after {start}");
}

#[test]
fn without_automatic_compaction_the_log_goes_when_that_is_asked_for() {
    let mut led = Led::new(|config| (config.auto_compaction, config.compaction_overhead) = (false, 4));
    led.put(0..20);
    assert_eq!(led.log(LogRequest::Info).unwrap().held_by, LogHold::NoSnapshot);
    let index = led.saved();
    let info = led.log(LogRequest::Info).unwrap();
    assert_eq!((info.first, info.snapshot, info.held_by), (Index(1), index, LogHold::NotAutomatic));
    let asked = index.next();
    let refused = led.log(|reply| LogRequest::Compact(Some(asked), reply));
    assert_eq!(refused, Err(RequestError::SnapshotRefused(SnapshotRefusal::CompactionIndex { asked, index })));
    let done = led.log(|reply| LogRequest::Compact(None, reply)).unwrap();
    assert_eq!((done.through, done.held_by), (Index(index.0 - 4), LogHold::Overhead));
    let done = led.log(|reply| LogRequest::Compact(Some(index), reply)).unwrap();
    assert_eq!((done.through, done.held_by), (index, LogHold::Snapshot));
    // It is as durable as it was said to be.
    let led = led.restart(|config| config.auto_compaction = false);
    assert_eq!((led.start(), led.files()), (index, vec![index]));
}

#[test]
fn entries_are_read_in_parts_within_their_limits() {
    let mut led = Led::new(|_| {});
    led.put(0..50);
    let last = led.applied();
    let (mut next, mut commands, mut parts) = (Index(1), Vec::new(), 0);
    while next <= last {
        let limits = EntryLimits { entries: 7, bytes: 40 };
        let part = led.log(|reply| LogRequest::Query(next..Index(1000), limits, reply)).unwrap();
        assert_eq!(part.entries.first().map(|e| e.index), Some(next));
        let bytes: usize = part.entries.iter().map(|e| e.payload.len()).sum();
        assert!(part.entries.len() <= 7 && bytes <= 40, "{part:?}");
        commands.extend(part.entries.iter().filter(|e| e.kind == EntryKind::Command).map(|e| e.payload.clone()));
        (next, parts) = (part.next, parts + 1);
    }
    assert!(parts >= 10, "five of eight bytes fit");
    let expected: Vec<_> = (0..50u64).map(|value| value.to_le_bytes().to_vec()).collect();
    assert_eq!(commands, expected);
    let beyond = last.next().next();
    let refused = led.log(|reply| LogRequest::Query(beyond..Index(1000), EntryLimits::default(), reply));
    assert_eq!(refused, Err(RequestError::LogRange { first: Index(1), last }));
}
