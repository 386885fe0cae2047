//! A host whose directory is lost comes back under the same id: what it forgot is not believed, and new replicas take over.

use crate::cluster::{Cluster, PATIENCE, until};
use longboat::*;
use std::path::Path;
use std::time::Duration;

/// A copy of a directory that nobody uses.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("listed") {
        let (path, kind) = entry.map(|e| (e.path(), e.file_type().expect("known"))).expect("listed");
        let there = to.join(path.file_name().expect("named"));
        if kind.is_dir() {
            std::fs::create_dir(&there).expect("made");
            copy(&path, &there);
        } else {
            std::fs::copy(&path, &there).expect("copied");
        }
    }
}

/// A directory that is put back from an earlier copy is found out by whoever met the host since, and served from no more; new
/// replicas take over.
#[test]
fn a_host_whose_directory_is_an_older_copy_serves_no_more() {
    let mut cluster = Cluster::start(1, 0);
    (0..20).for_each(|v| assert!(cluster.put(0, 1, v) > 0));
    cluster.close(1);
    let older = tempfile::TempDir::new().unwrap();
    copy(cluster.dirs[1].path(), older.path());
    cluster.open(1);
    // Host 3 misses what hosts 1 and 2 commit; then host 2 is put back to before that.
    cluster.close(2);
    (20..40).for_each(|v| assert!(cluster.put(0, 1, v) > 0));
    cluster.close(1);
    cluster.dirs[1] = older;
    cluster.open(1);
    // It marks the directory: the first byte after what every such file begins with.
    let file = cluster.dirs[1].path().join("openings");
    until("host 2 to find out", || std::fs::read(&file).is_ok_and(|bytes| bytes[12] == 1).then_some(()));
    let _ = cluster.hosts[1].take().unwrap().close(Duration::from_secs(5));
    let error = NodeHost::open(cluster.host_config(1)).expect_err("it is not opened again");
    assert!(error.to_string().contains("older copy"), "{error}");
    cluster.open(2);
    let read = until("a read", || cluster.group(0, 1).read((), PATIENCE).ok()?.wait().ok());
    assert_eq!(read[..40], (0..40).collect::<Vec<_>>(), "what was acknowledged is there");
    // The directory goes, and with it the replica's id. Who asks for a new one must have met the new store: the member would be
    // recorded with the one before.
    let is_suspected = |cluster: &Cluster| cluster.host(0).info().suspected_hosts.contains(&HostId(2));
    until("host 2 to be missed", || is_suspected(&cluster).then_some(()));
    cluster.dirs[1] = tempfile::TempDir::new().unwrap();
    cluster.open_empty(1);
    until("host 2 to be heard", || (!is_suspected(&cluster)).then_some(()));
    let joined = cluster.join(1, 1, 4).expect("joins");
    let done = cluster.group(0, 1).replace_replica(ReplicaId(2), ReplicaId(4), HostId(2), PATIENCE);
    done.expect("taken").wait().expect("replaced");
    let there = until("a read at the new replica", || joined.read((), Duration::from_secs(2)).ok()?.wait().ok());
    assert_eq!(there[..40], (0..40).collect::<Vec<_>>());
}

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
