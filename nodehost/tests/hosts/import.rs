//! Groups that begin, or begin again, from an exported snapshot.

use crate::cluster::{Cluster, PATIENCE, until};
use crate::machine::List;
use longboat::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

fn export(cluster: &Cluster, i: usize, group: u64, to: &Path) -> PathBuf {
    let asked = cluster.group(i, group).request_snapshot(SnapshotOptions::export_to(to), PATIENCE);
    match asked.unwrap().wait().expect("exported") {
        SnapshotOutcome::Exported { dir, .. } => dir,
        other => panic!("{other:?}"),
    }
}

fn new_members() -> FirstMembers {
    FirstMembers::voters([(ReplicaId(1), HostId(1)), (ReplicaId(4), HostId(4)), (ReplicaId(5), HostId(5))])
}

fn close_all(cluster: &mut Cluster) {
    (0..cluster.hosts.len())
        .filter(|&i| cluster.hosts[i].is_some())
        .collect::<Vec<_>>()
        .iter()
        .for_each(|&i| cluster.close(i));
}

fn resume(cluster: &Cluster, i: usize) -> Resumed<List> {
    cluster.host(i).resume_all(&cluster.config(i, 1), |_, kind| {
        assert_eq!(kind, ReplicaKind::Voter);
        List::default()
    })
}

/// The value is written through host `i`, whoever leads.
fn put(cluster: &Cluster, i: usize, group: u64, value: u64) {
    until("a proposal", || match cluster.group(i, group).propose(value, Duration::from_secs(5)).unwrap().wait() {
        Ok(_) => Some(()),
        Err(e) if !e.may_have_applied() => None,
        Err(e) => panic!("proposal of {value}: {e}"),
    });
}

#[test]
fn groups_that_lost_their_quorum_go_on_from_an_import_and_refuse_who_comes_back() {
    let mut cluster = Cluster::start(2, 0);
    let mut session = until("a session", || cluster.group(0, 1).register_session(PATIENCE).unwrap().wait().ok());
    let series = session.begin().unwrap();
    let sent =
        until("an answer", || cluster.group(0, 1).propose_in(&session, series, 7, PATIENCE).unwrap().wait().ok());
    for g in 1..=2 {
        for v in 0..20 {
            cluster.put(0, g, 100 * g + v);
        }
    }
    let target = TempDir::new().unwrap();
    let exports: Vec<PathBuf> = (1..=2).map(|g| export(&cluster, 0, g, target.path())).collect();
    cluster.put(0, 1, 999);
    close_all(&mut cluster);
    // Hosts 2 and 3 are lost, as far as anybody knows; 4 and 5 come in their place, and 1 stays.
    let new: Vec<usize> = (0..2).map(|_| cluster.add_closed()).collect();
    for (i, replica) in [(0, 1), (new[0], 4), (new[1], 5)] {
        let imports: Vec<_> = exports.iter().map(|dir| Import::new(dir, ReplicaId(replica), new_members())).collect();
        let done = import_snapshots(&cluster.host_config(i), imports.clone()).expect("imported");
        assert!(done.iter().all(|d| d.epoch == GroupEpoch(2) && !d.was_done), "{done:?}");
        // A call that was cut short is made again.
        assert!(import_snapshots(&cluster.host_config(i), imports).expect("the same").iter().all(|d| d.was_done));
        cluster.open_empty(i);
        let resumed = resume(&cluster, i);
        assert_eq!((resumed.groups.len(), resumed.failed.len(), resumed.unknown.len()), (2, 0, 0), "{resumed:?}");
    }
    let expected = |g: u64| -> Vec<u64> {
        let first = (g == 1).then_some(7);
        first.into_iter().chain((0..20).map(|v| 100 * g + v)).collect()
    };
    for i in [0, new[0], new[1]] {
        (1..=2).for_each(|g| assert_eq!(cluster.read(i, g), expected(g), "host {} group {g}", i + 1));
    }
    // The sessions came with it.
    let again = cluster.group(new[0], 1).propose_in(&session, series, 7, PATIENCE).unwrap().wait();
    assert_eq!(again, Ok(sent));
    (1..=2).for_each(|g| put(&cluster, new[1], g, 5000 + g));
    // Host 2 was not lost after all. Its replicas are told, and stop; nobody hears them.
    cluster.open(1);
    for g in 1..=2 {
        let stopped = || cluster.host(1).replica(GroupId(g)).err();
        assert_eq!(until("a superseded replica to stop", stopped), RequestError::NotHere(GroupId(g)));
        let after: Vec<u64> = expected(g).into_iter().chain([5000 + g]).collect();
        assert_eq!(cluster.read(new[0], g), after);
        let members = cluster.group(0, g).membership();
        assert!(members.removed.contains(&ReplicaId(2)) && members.removed.contains(&ReplicaId(3)), "{members:?}");
    }
    // What the new history has is durable.
    close_all(&mut cluster);
    for i in [0, new[0], new[1]] {
        cluster.open_empty(i);
        assert_eq!(resume(&cluster, i).groups.len(), 2);
    }
    assert_eq!(cluster.read(0, 2), expected(2).into_iter().chain([5002]).collect::<Vec<_>>());
}

#[test]
fn imports_that_make_no_sense_are_refused_and_change_nothing() {
    let mut cluster = Cluster::start(2, 0);
    for g in 1..=2 {
        cluster.put(0, g, g);
    }
    let target = TempDir::new().unwrap();
    let dir = export(&cluster, 0, 1, target.path());
    let other = export(&cluster, 0, 2, target.path());
    let config = cluster.host_config(0);
    let import = |members: FirstMembers| Import::new(&dir, ReplicaId(1), members);
    let try_it = |imports: Vec<Import>| import_snapshots(&config, imports).expect_err("refused");
    assert!(matches!(try_it(vec![import(new_members())]), ImportError::Log(_)), "the directory is in use");
    close_all(&mut cluster);
    let elsewhere = FirstMembers::voters([(ReplicaId(4), HostId(4))]);
    assert!(matches!(try_it(vec![import(elsewhere)]), ImportError::NotAMember { .. }));
    let moved = new_members().and_voter(ReplicaId(2), HostId(7));
    assert!(matches!(try_it(vec![import(moved)]), ImportError::Members { .. }));
    let witnesses = FirstMembers::default().and_witness(ReplicaId(1), HostId(1));
    assert!(matches!(try_it(vec![import(witnesses)]), ImportError::Members { .. }));
    assert!(matches!(try_it(vec![import(new_members()); 2]), ImportError::Twice(GroupId(1))));
    let early = import(new_members()).in_epoch(GroupEpoch(1));
    assert!(matches!(try_it(vec![early]), ImportError::EpochTaken { .. }));
    let nowhere = Import::new(target.path().join("nowhere"), ReplicaId(1), new_members());
    assert!(matches!(try_it(vec![nowhere]), ImportError::Snapshot { .. }));
    // One damaged export keeps the others of the call out, too.
    let file = other.join("snapshot.bin");
    let whole = std::fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let both = vec![import(new_members()), Import::new(&other, ReplicaId(1), new_members())];
    assert!(matches!(try_it(both), ImportError::Snapshot { .. }));
    (0..3).for_each(|i| cluster.open(i));
    (1..=2).for_each(|g| assert_eq!(cluster.read(0, g), [g], "as if nobody had tried"));
    // What was removed from a directory stays removed.
    cluster.host(0).stop_replica(GroupId(1)).unwrap();
    until("an unloaded replica", || cluster.host(0).stopped_groups().contains(&GroupId(1)).then_some(()));
    cluster.host(0).remove_data(GroupId(1)).unwrap().wait().expect("removed");
    close_all(&mut cluster);
    assert!(matches!(try_it(vec![import(new_members())]), ImportError::Removed { .. }));
    // And an id that is here in a later epoch is not taken back to an earlier one.
    std::fs::write(&file, &whole).unwrap();
    let second = |epoch| vec![Import::new(&other, ReplicaId(1), new_members()).in_epoch(GroupEpoch(epoch))];
    import_snapshots(&config, second(5)).expect("imported");
    assert!(matches!(try_it(second(4)), ImportError::EpochTaken { found: GroupEpoch(5), .. }));
    import_snapshots(&config, second(6)).expect("in a later one again");
}

#[test]
fn an_export_with_a_byte_changed_is_refused_wherever_the_byte_is() {
    let mut cluster = Cluster::start(1, 0);
    let batch = cluster.group(0, 1).propose_batch((0..200u64).collect::<Vec<_>>(), PATIENCE).unwrap();
    assert!(batch.wait().into_iter().all(|r| r.is_ok()));
    let target = TempDir::new().unwrap();
    let dir = export(&cluster, 0, 1, target.path());
    close_all(&mut cluster);
    inspect_snapshot(&dir).expect("whole");
    let disk: longboat_io::SharedDisk = Arc::new(longboat_io::RealDisk);
    let store = longboat_rsm::snapshot::SnapshotStore::new(disk, target.path().join("store"));
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    for round in 0..5000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = ["snapshot.bin", "snapshot.bin", "snapshot.bin", "snapshot.meta"][round % 4];
        let mut bytes = std::fs::read(dir.join(name)).unwrap();
        let whole = bytes.clone();
        let at = (seed >> 33) as usize % bytes.len();
        bytes[at] ^= 1 << (seed >> 20 & 7);
        std::fs::write(dir.join(name), &bytes).unwrap();
        assert!(inspect_snapshot(&dir).is_err(), "{name} with byte {at} changed is taken for good");
        assert!(store.import(&dir, ReplicaId(1), |_| ()).is_err(), "{name} with byte {at} changed is imported");
        if round < 8 {
            let alone = FirstMembers::voters([(ReplicaId(1), HostId(1))]);
            let imported = import_snapshots(&cluster.host_config(0), [Import::new(&dir, ReplicaId(1), alone)]);
            assert!(
                matches!(imported, Err(ImportError::Snapshot { .. })),
                "{name} with byte {at} changed: {imported:?}"
            );
        }
        std::fs::write(dir.join(name), &whole).unwrap();
    }
    inspect_snapshot(&dir).expect("whole again");
    assert_eq!(store.list(GroupId(1), ReplicaId(1)).unwrap(), [], "nothing of them is left");
}

#[test]
fn a_group_splits_off_another_by_its_snapshot() {
    let mut cluster = Cluster::start(1, 0);
    for v in 0..30 {
        cluster.put(0, 1, v);
    }
    let target = TempDir::new().unwrap();
    // An export is of what its own replica has applied: all of it, after a read there.
    assert_eq!(cluster.read(1, 1).len(), 30);
    let dir = export(&cluster, 1, 1, target.path());
    cluster.put(0, 1, 99);
    let members = || FirstMembers::voters((1..=3).map(|i| (ReplicaId(i), HostId(i))));
    let start = |cluster: &Cluster, i: usize| {
        let start = ReplicaStart::from_snapshot(&dir, members());
        cluster.host(i).start_replica(start, cluster.config(i, 9), List::default)
    };
    let config = cluster.config(0, 9);
    let foreign = ReplicaStart::from_snapshot(&dir, FirstMembers::voters([(ReplicaId(8), HostId(8))]));
    let refused = cluster.host(0).start_replica(foreign, config.clone(), List::default).map(drop);
    assert!(matches!(refused, Err(StartError::NotAMember { .. })), "{refused:?}");
    let missing = ReplicaStart::from_snapshot(target.path(), members());
    let refused = cluster.host(0).start_replica(missing, config, List::default).map(drop);
    assert!(matches!(refused, Err(StartError::Snapshot { .. })), "{refused:?}");
    (0..3).for_each(|i| drop(start(&cluster, i).expect("starts")));
    let mut expected: Vec<u64> = (0..30).collect();
    (0..3).for_each(|i| assert_eq!(cluster.read(i, 9), expected));
    put(&cluster, 1, 9, 77);
    assert!(cluster.read(2, 1).ends_with(&[99]), "the old group is its own");
    // It goes on after a restart, started the same way.
    (0..3).for_each(|i| cluster.close(i));
    (0..3).for_each(|i| cluster.open(i));
    (0..3).for_each(|i| drop(start(&cluster, i).expect("continues")));
    expected.push(77);
    (0..3).for_each(|i| assert_eq!(cluster.read(i, 9), expected));
    // The newest snapshot of a host that does not run can be exported, too.
    let group = cluster.group(0, 9);
    let index = match group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect("saved") {
        SnapshotOutcome::Saved { index } => index,
        other => panic!("{other:?}"),
    };
    drop(group);
    close_all(&mut cluster);
    let out = TempDir::new().unwrap();
    let exported = export_snapshot(&cluster.host_config(0), GroupId(9), out.path()).expect("exported");
    let info = inspect_snapshot(&exported).expect("whole");
    assert_eq!((info.group, info.meta.pos.index), (GroupId(9), index));
    let none = export_snapshot(&cluster.host_config(0), GroupId(1), out.path());
    assert!(matches!(none, Err(ExportError::NoSnapshot(GroupId(1)))), "{none:?}");
}
