//! Comparing the replicas of a group.

use crate::cluster::Cluster;
use crate::machine::List;
use longboat::*;
use std::time::Duration;

#[test]
fn equal_replicas_are_equal_at_one_index_and_an_odd_one_is_named() {
    let mut cluster = Cluster::start(1, 0);
    for value in 0..20 {
        cluster.put(value as usize % 3, 1, value);
    }
    let replicas =
        |cluster: &Cluster| -> Vec<Replica> { (0..3).map(|i| cluster.host(i).replica(GroupId(1)).unwrap()).collect() };
    let patience = Duration::from_secs(30);
    let Verdict::Equal { index, .. } = verify_group(&replicas(&cluster), patience) else { panic!("not equal") };
    assert!(index.0 >= 21);
    // One that lags is not compared at another index.
    cluster.close(2);
    let two = &replicas_of(&cluster, &[0, 1]);
    assert!(matches!(verify_group(two, patience), Verdict::Equal { .. }));
    // A replica whose memory differs.
    cluster.open_empty(2);
    let flawed = || List { flaw: 1, ..List::default() };
    cluster.host(2).start_replica(ReplicaStart::Restart, cluster.config(2, 1), flawed).unwrap();
    assert_eq!(cluster.read(2, 1).len(), 20);
    let verdict = verify_group(&replicas(&cluster), patience);
    let Verdict::Differ { hashes, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(hashes[&ReplicaId(1)], hashes[&ReplicaId(2)]);
    assert_ne!(hashes[&ReplicaId(1)], hashes[&ReplicaId(3)]);
    // A group that writes all the time is compared all the same, or said not to have been.
    let moving = std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..200).for_each(|v| drop(cluster.group(0, 1).propose(v, patience))));
        let verdict = verify_group(two, patience);
        writer.join().unwrap();
        verdict
    });
    assert!(matches!(moving, Verdict::Equal { .. }), "{moving:?}");
}

fn replicas_of(cluster: &Cluster, hosts: &[usize]) -> Vec<Replica> {
    hosts.iter().map(|&i| cluster.host(i).replica(GroupId(1)).unwrap()).collect()
}
