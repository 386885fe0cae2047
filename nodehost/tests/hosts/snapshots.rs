//! Snapshots: asked for, periodic, installed.

use crate::cluster::{Cluster, PATIENCE, until};
use longboat::*;

#[test]
fn a_user_requested_snapshot_truncates_the_log_and_survives_a_restart() {
    let mut cluster = Cluster::start(1, 0);
    let batch = cluster.group(0, 1).propose_batch((0..100u64).collect::<Vec<_>>(), PATIENCE).unwrap();
    assert!(batch.wait().into_iter().all(|r| r.is_ok()));
    let group = cluster.group(0, 1);
    let outcome = group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect("saved");
    let SnapshotOutcome::Saved { index } = outcome else { panic!("{outcome:?}") };
    assert!(index.0 >= 100);
    assert_eq!(group.info().first_index.0, index.0 - 5 + 1, "compaction_overhead is 5");
    let again = group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect("answered");
    assert_eq!(again, SnapshotOutcome::Ignored);
    (0..3).for_each(|i| cluster.close(i));
    (0..3).for_each(|i| cluster.open(i));
    assert_eq!(cluster.read(0, 1), (0..100).collect::<Vec<_>>());
    assert_eq!(cluster.group(0, 1).info().snapshot_index, index);
}

#[test]
fn a_follower_that_fell_behind_the_log_gets_a_snapshot() {
    let mut cluster = Cluster::start(2, 50);
    let down = (cluster.leader(1) + 1) % 3;
    cluster.close(down);
    let up = (down + 1) % 3;
    for g in 1..=2 {
        cluster.leader(g);
        for round in 0..20u64 {
            let batch =
                cluster.group(up, g).propose_batch((0..20).map(|i| round * 20 + i).collect::<Vec<_>>(), PATIENCE);
            assert!(batch.unwrap().wait().into_iter().all(|r| r.is_ok()));
        }
    }
    until("truncated logs", || {
        (1..=2).all(|g| cluster.group(cluster.leader(g), g).info().first_index.0 > 100).then_some(())
    });
    cluster.open(down);
    for g in 1..=2 {
        assert_eq!(cluster.read(down, g), (0..400).collect::<Vec<_>>());
        assert!(cluster.group(down, g).info().snapshots_installed >= 1);
    }
    // What was installed is durable there.
    cluster.close(down);
    cluster.open(down);
    for g in 1..=2 {
        assert_eq!(cluster.read(down, g), (0..400).collect::<Vec<_>>());
    }
}

#[test]
fn an_export_is_the_whole_state_and_changes_nothing_of_the_replica() {
    let mut cluster = Cluster::start(1, 0);
    let batch = cluster.group(0, 1).propose_batch((0..100u64).collect::<Vec<_>>(), PATIENCE).unwrap();
    assert!(batch.wait().into_iter().all(|r| r.is_ok()));
    let (group, target) = (cluster.group(0, 1), tempfile::tempdir().unwrap());
    let before = group.info();
    let options = SnapshotOptions::export_to(target.path());
    let outcome = group.request_snapshot(options.clone(), PATIENCE).unwrap().wait().expect("exported");
    let SnapshotOutcome::Exported { index, dir } = outcome else { panic!("{outcome:?}") };
    let disk: longboat_io::SharedDisk = std::sync::Arc::new(longboat_io::RealDisk);
    let header = longboat_rsm::snapshot::verify_export(&disk, &dir).expect("whole");
    assert_eq!((header.group, header.meta.pos.index), (GroupId(1), index));
    let after = group.info();
    assert_eq!(
        (after.snapshot_index, after.first_index, after.snapshots_saved, after.entries_truncated),
        (before.snapshot_index, before.first_index, 0, 0)
    );
    // A snapshot of its own has something new to save all the same, and after that an export still yields one.
    let own = group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect("saved");
    assert_eq!(own, SnapshotOutcome::Saved { index });
    let other = tempfile::tempdir().unwrap();
    let again = group.request_snapshot(SnapshotOptions::export_to(other.path()), PATIENCE).unwrap().wait();
    assert!(matches!(again, Ok(SnapshotOutcome::Exported { index: i, .. }) if i == index), "{again:?}");
    (0..3).for_each(|i| cluster.close(i));
}

#[test]
fn snapshot_requests_that_make_no_sense_are_refused_with_the_reason() {
    let cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 7);
    let group = cluster.group(0, 1);
    let ask = |options: SnapshotOptions| match group.request_snapshot(options, PATIENCE) {
        Ok(pending) => pending.wait(),
        Err(error) => Err(error),
    };
    let refused = |refusal| Err(RequestError::SnapshotRefused(refusal));
    let both = SnapshotOptions::default().with_compaction_overhead(1).with_compaction_index(Index(1));
    assert_eq!(ask(both), refused(SnapshotRefusal::TwoOverrides));
    let mixed = SnapshotOptions::export_to("/").with_compaction_overhead(1);
    assert_eq!(ask(mixed), refused(SnapshotRefusal::ExportKeepsLog));
    let nowhere = cluster.dirs[0].path().join("not-there");
    let missing = refused(SnapshotRefusal::ExportDirectory(nowhere.clone()));
    assert_eq!(ask(SnapshotOptions::export_to(nowhere)), missing);
    let beyond = SnapshotOptions::default().with_compaction_index(Index(1_000));
    assert!(matches!(ask(beyond), Err(RequestError::SnapshotRefused(SnapshotRefusal::CompactionIndex { .. }))));
}

#[test]
fn a_replica_whose_only_snapshot_is_damaged_asks_the_leader_for_one() {
    let mut cluster = Cluster::start(1, 0);
    let batch = cluster.group(0, 1).propose_batch((0..100u64).collect::<Vec<_>>(), PATIENCE).unwrap();
    assert!(batch.wait().into_iter().all(|r| r.is_ok()));
    let down = (cluster.leader(1) + 1) % 3;
    assert_eq!(cluster.read(down, 1).len(), 100);
    let outcome = cluster.group(down, 1).request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait();
    let Ok(SnapshotOutcome::Saved { index }) = outcome else { panic!("{outcome:?}") };
    cluster.close(down);
    let file = cluster.dirs[down].path().join(format!("snapshots/1/{}/snapshot-{index}/snapshot.bin", down + 1));
    let mut bytes = std::fs::read(&file).expect("it was saved");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    cluster.open(down);
    // Its log is whole and begins behind the snapshot: it goes on from one of the leader's, and answers.
    until("an install", || (cluster.group(down, 1).info().snapshots_installed > 0).then_some(()));
    assert_eq!(cluster.read(down, 1), (0..100).collect::<Vec<_>>());
    cluster.put(down, 1, 100);
    cluster.close(down);
    cluster.open(down);
    assert_eq!(cluster.read(down, 1), (0..=100).collect::<Vec<_>>());
}

#[test]
fn the_log_is_read_held_and_truncated_through_the_group() {
    let cluster = Cluster::start(1, 0);
    let batch = cluster.group(0, 1).propose_batch((0..100u64).collect::<Vec<_>>(), PATIENCE).unwrap();
    assert!(batch.wait().into_iter().all(|r| r.is_ok()));
    let group = cluster.group(0, 1);
    let lease = std::time::Duration::from_secs(600);
    let pin = group.pin_log(Index(50), lease, PATIENCE).unwrap().wait().expect("it is there");
    group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect("saved");
    let info = group.log_info(PATIENCE).unwrap().wait().unwrap();
    assert_eq!((info.first, info.held_by), (Index(50), LogHold::Pinned { index: Index(50) }));
    let read = group.query_entries(Index(50)..Index(60), EntryLimits::default(), PATIENCE).unwrap().wait().unwrap();
    assert_eq!((read.entries.len(), read.next), (10, Index(60)));
    pin.renew(lease, PATIENCE).unwrap().wait().expect("it is held");
    drop(pin);
    let through = until("the end of the pin", || {
        let done = group.request_compaction(None, PATIENCE).unwrap().wait().expect("truncated");
        (done.held_by == LogHold::Overhead).then_some(done.through)
    });
    assert_eq!(group.info().first_index, through.next());
    let gone = group.query_entries(Index(50)..Index(60), EntryLimits::default(), PATIENCE).unwrap().wait();
    assert!(matches!(gone, Err(RequestError::LogRange { first, .. }) if first == through.next()), "{gone:?}");
}
