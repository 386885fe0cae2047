//! A host whose directory is lost comes back under the same id: what it forgot is not believed, and new replicas take over.

use crate::cluster::{Cluster, PATIENCE, until};
use longboat::*;
use std::time::Duration;

#[test]
fn a_wiped_host_elects_nobody_and_comes_back_under_new_replica_ids() {
    let mut cluster = Cluster::start(1, 0);
    (0..20).for_each(|v| assert!(cluster.put(0, 1, v) > 0));
    // Host 3 misses what hosts 1 and 2 commit; then host 2 forgets it, while nobody leads.
    cluster.close(2);
    (20..40).for_each(|v| assert!(cluster.put(0, 1, v) > 0));
    cluster.close(1);
    cluster.close(0);
    cluster.dirs[1] = tempfile::TempDir::new().unwrap();
    cluster.open(0);
    cluster.open(1);
    // It would vote for anybody, and acknowledge anything. Nobody listens.
    until("word of the wiped host", || (cluster.host(0).info().dropped_fenced > 0).then_some(()));
    let error = cluster.group(0, 1).propose(99, Duration::from_secs(1)).unwrap().wait().expect_err("no quorum");
    assert!(matches!(error, RequestError::Timeout { .. } | RequestError::Dropped), "{error}");
    cluster.open(2);
    let read = until("a read", || cluster.group(0, 1).read((), PATIENCE).ok()?.wait().ok());
    assert_eq!(read[..40], (0..40).collect::<Vec<_>>(), "what was acknowledged is there");
    // The wiped host's replica makes way for one under an id of its own.
    cluster.host(1).stop_replica(GroupId(1)).expect("it runs");
    until("it to stop", || cluster.host(1).stopped_groups().contains(&GroupId(1)).then_some(()));
    cluster.host(1).remove_data(GroupId(1)).expect("taken").wait().expect("removed");
    let joined = cluster.join(1, 1, 4).expect("joins");
    let done = cluster.group(0, 1).replace_replica(ReplicaId(2), ReplicaId(4), HostId(2), PATIENCE);
    done.expect("taken").wait().expect("replaced");
    let there = until("a read at the new replica", || joined.read((), Duration::from_secs(2)).ok()?.wait().ok());
    assert_eq!(there[..40], (0..40).collect::<Vec<_>>());
    // It counts: with host 3 down again, writes need it.
    cluster.close(2);
    assert!(cluster.put(0, 1, 100) > 40);
}
