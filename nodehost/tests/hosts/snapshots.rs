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
