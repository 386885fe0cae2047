//! Proposals and reads, on any replica, over restarts.

use crate::cluster::{Cluster, PATIENCE, until};
use longboat::*;
use std::time::Duration;

#[test]
fn what_is_proposed_at_any_replica_is_read_at_every_replica() {
    let cluster = Cluster::start(4, 0);
    for group in 1..=4 {
        for (i, value) in (0..3).zip(10..) {
            cluster.put(i, group, value);
            for j in 0..3 {
                assert!(cluster.read(j, group).contains(&value), "group {group}, written at {i}, read at {j}");
            }
        }
    }
}

#[test]
fn a_batch_keeps_its_order_and_completes_as_one() {
    let cluster = Cluster::start(1, 0);
    for i in [cluster.leader(1), (cluster.leader(1) + 1) % 3] {
        let before = cluster.read(i, 1).len();
        let batch = cluster.group(i, 1).propose_batch((0..1000u64).collect::<Vec<_>>(), PATIENCE).unwrap();
        let results = batch.wait();
        let lens: Vec<usize> = results.into_iter().map(|r| r.expect("applied") as usize).collect();
        assert_eq!(lens, (before + 1..=before + 1000).collect::<Vec<_>>());
        assert_eq!(cluster.read(i, 1)[before..], (0..1000).collect::<Vec<u64>>());
    }
}

#[test]
fn a_group_goes_on_without_one_host_and_the_host_catches_up() {
    let mut cluster = Cluster::start(3, 0);
    (1..=3).for_each(|g| assert_eq!(cluster.put(0, g, 1), 1));
    let down = cluster.leader(2);
    cluster.close(down);
    let up = (down + 1) % 3;
    for g in 1..=3 {
        cluster.leader(g);
        assert_eq!(cluster.put(up, g, 2), 2);
    }
    cluster.open(down);
    for g in 1..=3 {
        assert_eq!(cluster.read(down, g), [1, 2]);
    }
}

#[test]
fn all_hosts_restarted_have_all_that_was_acknowledged() {
    let mut cluster = Cluster::start(8, 0);
    for round in 0..3 {
        for g in 1..=8 {
            cluster.put((g as usize + round) % 3, g, round as u64);
        }
        (0..3).for_each(|i| cluster.close(i));
        (0..3).for_each(|i| cluster.open(i));
        for g in 1..=8 {
            assert_eq!(cluster.read(round, g), (0..=round as u64).collect::<Vec<_>>());
        }
    }
}

#[test]
fn without_a_quorum_requests_time_out_and_say_where_they_died() {
    let mut cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    let alone = cluster.leader(1);
    (0..3).filter(|&i| i != alone).for_each(|i| cluster.close(i));
    let group = cluster.group(alone, 1);
    let error = group.propose(7, Duration::from_millis(300)).unwrap().wait().expect_err("no quorum");
    assert!(matches!(error, RequestError::Timeout { .. }), "{error}");
    let error = group.read((), Duration::from_millis(300)).unwrap().wait().expect_err("no quorum");
    assert!(matches!(error, RequestError::Timeout { may_have_applied: false, .. }), "{error}");
    assert_eq!(group.stale_read(()).unwrap(), [1]);
}

#[test]
fn a_state_machine_that_panics_stops_its_replica_only() {
    let mut cluster = Cluster::start(0, 0);
    (0..3).for_each(|i| cluster.close(i));
    cluster.groups = 3;
    cluster.poison = Some((0, 666));
    (0..3).for_each(|i| cluster.open(i));
    (1..=3).for_each(|g| assert_eq!(cluster.put(1, g, 1), 1));
    // Host 1's replica of group 2 fails when the value reaches it; the others take it.
    assert_eq!(cluster.put(1, 2, 666), 2);
    until("a stopped replica", || cluster.hosts[0].as_ref().unwrap().group::<crate::machine::List>(GroupId(2)).err());
    // What is forwarded to a leader that is no more is lost: wait until host 3 knows another.
    until("another leader", || cluster.group(2, 2).leader().filter(|l| l.replica != ReplicaId(1)));
    assert_eq!(cluster.put(2, 2, 3), 3);
    assert_eq!(cluster.put(0, 1, 4), 2);
    assert_eq!(cluster.put(0, 3, 4), 2);
    assert_eq!(cluster.hosts[0].as_ref().unwrap().info().machine_failures, 1);
}

#[test]
fn close_resolves_every_pending_request() {
    let mut cluster = Cluster::start(1, 0);
    let leader = cluster.leader(1);
    (0..3).filter(|&i| i != leader).for_each(|i| cluster.close(i));
    let group = cluster.group(leader, 1);
    let proposal = group.propose(1, PATIENCE).unwrap();
    let read = group.read((), PATIENCE).unwrap();
    let host = cluster.hosts[leader].take().unwrap();
    host.close(Duration::from_millis(100)).expect("closes in order");
    assert!(proposal.wait().is_err());
    assert!(read.wait().is_err());
    assert!(matches!(group.propose(2, PATIENCE), Err(RequestError::Stopped)));
}

#[test]
fn a_replica_that_is_stopped_and_started_again_goes_on_where_it_was() {
    let cluster = Cluster::start(2, 20);
    let host = cluster.hosts[0].as_ref().unwrap();
    for round in 0..5u64 {
        for value in 0..10 {
            assert_eq!(cluster.put(1, 1, round * 10 + value), (round * 10 + value) as usize + 1);
        }
        host.stop_replica(GroupId(1)).unwrap();
        until("a stopped replica", || host.stopped_groups().contains(&GroupId(1)).then_some(()));
        assert!(matches!(host.stop_replica(GroupId(1)), Err(RequestError::NotHere(_))));
        cluster.start_replica(0, 1).expect("restarts");
        assert_eq!(cluster.read(0, 1), (0..(round + 1) * 10).collect::<Vec<_>>());
    }
    assert_eq!(cluster.put(0, 2, 1), 1);
}
