//! Two voters and a witness.

use crate::cluster::{Cluster, PATIENCE, until};
use crate::machine::List;
use longboat::*;

const GROUP: GroupId = GroupId(7);

fn start() -> ReplicaStart {
    ReplicaStart::bootstrap([(ReplicaId(1), HostId(1)), (ReplicaId(2), HostId(2))]).and_witness(ReplicaId(3), HostId(3))
}

/// Hosts 1 and 2 have voters, host 3 the witness.
fn with_witness(snapshot_entries: u64) -> (Cluster, Replica) {
    let cluster = Cluster::start(0, snapshot_entries);
    for i in 0..2 {
        cluster.host(i).start_replica(start(), cluster.config(i, GROUP.0), List::default).expect("starts");
    }
    let witness = cluster.host(2).start_witness(start(), cluster.config(2, GROUP.0)).expect("starts");
    (cluster, witness)
}

fn put(cluster: &Cluster, at: usize, value: u64) -> usize {
    let group = cluster.host(at).group::<List>(GROUP).unwrap();
    until("a write", || match group.propose(value, PATIENCE).unwrap().wait() {
        Ok(len) => Some(len as usize),
        Err(e) if !e.may_have_applied() => None,
        Err(e) => panic!("{e}"),
    })
}

#[test]
fn writes_go_on_when_one_of_two_voters_dies() {
    let (mut cluster, witness) = with_witness(0);
    (0..20).for_each(|v| assert!(put(&cluster, (v % 2) as usize, v) > 0));
    let leader = until("a leader", || witness.leader()).replica.0 as usize - 1;
    cluster.close(1 - leader);
    assert_eq!(put(&cluster, leader, 20), 21);
    // The same with the leader gone: the witness votes for the other, which has everything.
    let (mut cluster, witness) = with_witness(0);
    (0..20).for_each(|v| assert!(put(&cluster, (v % 2) as usize, v) > 0));
    let leader = until("a leader", || witness.leader()).replica.0 as usize - 1;
    let other = 1 - leader;
    // Before its leader dies the other one may lag: what the quorum had with the witness's help it must have itself.
    let applied = cluster.host(leader).replica(GROUP).unwrap().info().applied;
    cluster.host(other).replica(GROUP).unwrap().wait_applied(applied, PATIENCE).unwrap().wait().expect("applied");
    cluster.close(leader);
    until("another leader", || cluster.host(other).replica(GROUP).unwrap().is_leader().then_some(()));
    assert_eq!(put(&cluster, other, 20), 21);
}

#[test]
fn a_witness_never_leads_and_answers_nothing() {
    let (cluster, witness) = with_witness(0);
    put(&cluster, 0, 1);
    for at in 0..3 {
        let asked = cluster.host(at).replica(GROUP).unwrap();
        let error = asked.transfer_leader(ReplicaId(3), PATIENCE).unwrap().wait().expect_err("refused");
        assert_eq!(error, RequestError::TransferFailed(TransferError::Witness(ReplicaId(3))));
    }
    assert!(matches!(cluster.host(2).group::<List>(GROUP), Err(RequestError::OtherMachine { .. })));
    let error = witness.request_snapshot(SnapshotOptions::default(), PATIENCE).map(drop).expect_err("refused");
    assert_eq!(error, RequestError::SnapshotRefused(SnapshotRefusal::Witness));
    let error = cluster.host(2).start_replica(start(), cluster.config(2, GROUP.0 + 1), List::default).map(drop);
    let error = error.expect_err("a witness is started as one");
    assert!(matches!(error, StartError::OtherKind { kind: ReplicaKind::Witness, .. }), "{error}");
}

#[test]
fn a_witness_keeps_no_commands_and_lets_its_log_go() {
    let (mut cluster, witness) = with_witness(20);
    (0..200).for_each(|v| assert!(put(&cluster, 0, v) > 0));
    until("a short log at the witness", || (witness.info().first_index.0 > 100).then_some(()));
    let info = witness.info();
    assert!(!cluster.dirs[2].path().join("snapshots").join(GROUP.0.to_string()).exists(), "{info:?}");
    // Over a restart it is what it was.
    drop(witness);
    cluster.close(2);
    cluster.open(2);
    let witness = cluster.host(2).start_witness(ReplicaStart::Restart, cluster.config(2, GROUP.0)).expect("starts");
    assert!(witness.info().first_index >= info.first_index);
    cluster.close(1);
    assert_eq!(put(&cluster, 0, 200), 201);
    until("the witness to follow", || (witness.info().applied.0 >= 200).then_some(()));
}

#[test]
fn a_witness_that_joins_late_gets_the_place_and_no_state() {
    let mut cluster = Cluster::start(1, 20);
    (0..100).for_each(|v| assert!(cluster.put(0, 1, v) > 0));
    let new = cluster.add_host();
    let added = cluster.group(0, 1).add_witness(ReplicaId(4), HostId(4), PATIENCE).unwrap().wait().expect("added");
    assert_eq!(added.membership.kind(ReplicaId(4)), Some(ReplicaKind::Witness));
    let config = GroupConfig { replica: ReplicaId(4), ..cluster.config(new, 1) };
    let witness = cluster.host(new).start_witness(ReplicaStart::Join, config).expect("joins");
    until("the witness to catch up", || (witness.info().applied.0 > 100).then_some(()));
    assert!(!cluster.dirs[new].path().join("snapshots").exists());
    // Of four, three decide: with one voter down the witness is needed.
    let leader = cluster.leader(1);
    let down = (leader + 1) % 3;
    cluster.close(down);
    assert_eq!(cluster.put(leader, 1, 100), 101);
}
