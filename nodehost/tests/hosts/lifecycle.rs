//! Many replicas at once: what is here, and restarting it as what it was.

use crate::cluster::{Cluster, PATIENCE, until};
use crate::machine::List;
use longboat::*;
use tempfile::TempDir;

#[test]
fn every_replica_is_listed_and_resumed_as_what_it_was() {
    let mut cluster = Cluster::start(5, 0);
    let extra = cluster.add_host();
    for g in 1..=5 {
        cluster.put(0, g, g);
    }
    // A witness and a non-voting member join on the fourth host; a third one joins and is not added yet.
    let witness = GroupConfig { replica: ReplicaId(4), ..cluster.config(extra, 1) };
    cluster.host(extra).start_witness(ReplicaStart::Join, witness).expect("starts");
    until("a witness", || cluster.group(0, 1).add_witness(ReplicaId(4), HostId(4), PATIENCE).unwrap().wait().ok());
    cluster.join(extra, 2, 4).expect("starts");
    until("a member", || cluster.group(0, 2).add_non_voting(ReplicaId(4), HostId(4), PATIENCE).unwrap().wait().ok());
    cluster.join(extra, 3, 4).expect("starts");
    let heard = |g: u64| (cluster.host(extra).replica(GroupId(g)).unwrap().info().last_index.0 > 0).then_some(());
    (1..=2).for_each(|g| until("a log", || heard(g)));
    let kinds = |cluster: &Cluster| -> Vec<_> {
        cluster.host(extra).replicas().iter().map(|r| (r.group.0, r.kind, r.running)).collect()
    };
    let expected = |running| {
        vec![(1, Some(ReplicaKind::Witness), running), (2, Some(ReplicaKind::NonVoting), running), (3, None, running)]
    };
    until("the members to be known there", || (kinds(&cluster) == expected(true)).then_some(()));
    let snapshot = cluster.group(0, 4).request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait();
    let Ok(SnapshotOutcome::Saved { index }) = snapshot else { panic!("{snapshot:?}") };
    [0, extra].iter().for_each(|&i| cluster.reopen_empty(i));

    let stored = kinds(&cluster);
    assert_eq!((stored[0], stored[2]), (expected(false)[0], expected(false)[2]));
    assert!(stored[1].1.is_some_and(|kind| kind != ReplicaKind::Witness), "its log has payloads");
    let four = cluster.host(0).replicas()[3];
    assert_eq!((four.group, four.applied, four.leader, four.running), (GroupId(4), index, None, false));
    assert!(cluster.host(0).has_replica(GroupId(5)) && !cluster.host(0).has_replica(GroupId(6)));

    let template = GroupConfig { group: GroupId::ZERO, replica: ReplicaId::ZERO, ..cluster.config(0, 1) };
    let resumed = cluster.host(extra).resume_all(&template, |_, _| List::default());
    assert_eq!((resumed.groups.len(), resumed.witnesses.len(), resumed.failed.len()), (1, 1, 0), "{resumed:?}");
    assert_eq!(resumed.unknown, [GroupId(3)]);
    // All but one, whose settings make no sense: that keeps no other from starting.
    let resumed = cluster.host(0).resume_with(|stored, kind| {
        assert_eq!(kind, ReplicaKind::Voter);
        let group = stored.group;
        let heartbeat_interval_ms = if group == GroupId(2) { 0 } else { template.heartbeat_interval_ms };
        let config = GroupConfig { group, replica: stored.replica, heartbeat_interval_ms, ..template.clone() };
        (group != GroupId(5)).then(|| (config, Some(List::default())))
    });
    assert_eq!(resumed.groups.iter().map(|g| g.id().0).collect::<Vec<_>>(), [1, 3, 4]);
    assert!(matches!(resumed.failed[..], [(GroupId(2), StartError::Config(_))]), "{resumed:?}");
    assert_eq!(cluster.host(0).stopped_groups(), [GroupId(2), GroupId(5)]);
    cluster.host(0).wait_ready(PATIENCE).expect("they have leaders");
    assert!(cluster.host(0).replicas()[0].leader.is_some());
    assert_eq!(cluster.read(0, 4), [4]);
}

#[test]
fn who_has_no_leader_is_not_ready_and_named() {
    let mut cluster = Cluster::start(2, 0);
    for g in 1..=2 {
        cluster.put(0, g, g);
    }
    (0..3).for_each(|i| cluster.close(i));
    cluster.open(0);
    let waiting = cluster.host(0).wait_ready(std::time::Duration::from_millis(50)).expect_err("no quorum");
    assert_eq!(waiting.len(), 2);
    cluster.open(1);
    cluster.host(0).wait_ready(PATIENCE).expect("two of three");
}

#[test]
fn groups_are_exported_together() {
    let cluster = Cluster::start(3, 0);
    for g in 1..=3 {
        cluster.put(0, g, 10 + g);
    }
    let target = TempDir::new().unwrap();
    let outcomes = cluster.host(1).export_groups((1..=4).map(GroupId), target.path(), PATIENCE);
    for (group, outcome) in &outcomes[..3] {
        let Ok(SnapshotOutcome::Exported { dir, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(inspect_snapshot(dir).expect("whole").group, *group);
    }
    assert_eq!(outcomes[3], (GroupId(4), Err(RequestError::NotHere(GroupId(4)))));
}
