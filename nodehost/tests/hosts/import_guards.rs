//! For each guard of an import, a scenario that fails when the guard is gone. Run as they are by `hosts`, and with each bug
//! planted, when they must fail, by `plants`.

use crate::machine::List;
use longboat::*;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const GUARDS: &[(&str, fn())] = &[
    ("import-not-here", a_replica_is_imported_where_the_members_name_it),
    ("import-removed-id", an_id_that_was_removed_is_not_imported),
    ("import-moved-id", a_replica_keeps_its_host),
    ("import-epoch-not-raised", an_import_goes_on_in_a_later_epoch),
    ("directory-taken-while-in-use", a_directory_in_use_is_not_imported_into),
    ("damaged-import-left-out", a_damaged_export_keeps_all_others_out),
];

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn every_guard_of_an_import_holds() {
    for (name, scenario) in GUARDS {
        eprintln!("the scenario for {name}");
        scenario();
    }
}

/// What is left of a host: its directory, and an export of each of its two groups. Group 1 had a member 2, which was removed,
/// and has a non-voting member 3 on host 3.
struct Left {
    dir: TempDir,
    exports: Vec<PathBuf>,
}

fn config(dir: &Path) -> NodeHostConfig {
    NodeHostConfig {
        data_dir: dir.join("host"),
        host_id: HostId(1),
        journal_segment_bytes: 4 << 20,
        journal_bytes_max: 64 << 20,
        payload_bytes_max: 1 << 20,
        ..NodeHostConfig::default()
    }
}

fn group_config(group: u64) -> GroupConfig {
    GroupConfig {
        group: GroupId(group),
        replica: ReplicaId(1),
        election_timeout_ms: 200,
        heartbeat_interval_ms: 30,
        ..GroupConfig::default()
    }
}

impl Left {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let host = NodeHost::open(config(dir.path())).expect("opens");
        let exports = (1..=2).map(|group| Self::fill(&host, group, dir.path())).collect();
        host.close(PATIENCE).expect("closes");
        Self { dir, exports }
    }

    fn fill(host: &NodeHost, group: u64, dir: &Path) -> PathBuf {
        let start = ReplicaStart::bootstrap([(ReplicaId(1), HostId(1))]);
        let list = host.start_replica(start, group_config(group), List::default).expect("starts");
        let begun = std::time::Instant::now();
        while !list.is_leader() {
            assert!(begun.elapsed() < PATIENCE, "the only voter does not lead");
            std::thread::sleep(Duration::from_millis(2));
        }
        if group == 1 {
            for (id, host) in [(2, 2), (3, 3)] {
                list.add_non_voting(ReplicaId(id), HostId(host), PATIENCE).unwrap().wait().expect("added");
            }
            list.remove(ReplicaId(2), PATIENCE).unwrap().wait().expect("removed");
        }
        for value in 0..10 {
            list.propose(value, PATIENCE).unwrap().wait().expect("applied");
        }
        // The host's own snapshot is at the same place as the export.
        list.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect("saved");
        match list.request_snapshot(SnapshotOptions::export_to(dir), PATIENCE).unwrap().wait().expect("exported") {
            SnapshotOutcome::Exported { dir, .. } => dir,
            other => panic!("{other:?}"),
        }
    }

    fn members() -> FirstMembers {
        FirstMembers::voters([(ReplicaId(1), HostId(1))])
    }

    fn import(&self, group: usize, members: FirstMembers) -> Import {
        Import::new(&self.exports[group - 1], ReplicaId(1), members)
    }

    fn refused(&self, imports: Vec<Import>) -> ImportError {
        import_snapshots(&config(self.dir.path()), imports).expect_err("refused")
    }

    /// The host opens again, and its groups have what they had.
    fn goes_on(&self) {
        let host = NodeHost::open(config(self.dir.path())).expect("opens");
        for group in 1..=2 {
            let list = host.start_replica(ReplicaStart::Restart, group_config(group), List::default).expect("starts");
            let begun = std::time::Instant::now();
            let read = || list.read((), Duration::from_secs(5)).unwrap().wait().ok();
            let values = loop {
                if let Some(values) = read() {
                    break values;
                }
                assert!(begun.elapsed() < PATIENCE, "group {group} does not answer");
            };
            assert_eq!(values, (0..10).collect::<Vec<_>>(), "group {group}");
        }
        host.close(PATIENCE).expect("closes");
    }
}

fn a_replica_is_imported_where_the_members_name_it() {
    let left = Left::new();
    let elsewhere = FirstMembers::voters([(ReplicaId(4), HostId(4))]);
    assert!(matches!(left.refused(vec![left.import(1, elsewhere)]), ImportError::NotAMember { .. }));
    left.goes_on();
}

fn an_id_that_was_removed_is_not_imported() {
    let left = Left::new();
    let back = Left::members().and_voter(ReplicaId(2), HostId(2));
    let error = left.refused(vec![left.import(1, back)]);
    assert!(matches!(error, ImportError::Removed { replica: ReplicaId(2), .. }), "{error}");
    left.goes_on();
}

fn a_replica_keeps_its_host() {
    let left = Left::new();
    let moved = Left::members().and_voter(ReplicaId(3), HostId(7));
    let error = left.refused(vec![left.import(1, moved)]);
    assert!(matches!(error, ImportError::Members { .. }), "{error}");
    left.goes_on();
}

fn an_import_goes_on_in_a_later_epoch() {
    let left = Left::new();
    let asked = left.import(1, Left::members()).in_epoch(GroupEpoch(1));
    let error = left.refused(vec![asked]);
    assert!(matches!(error, ImportError::EpochTaken { found: GroupEpoch(1), .. }), "{error}");
    left.goes_on();
    let later = |epoch| left.import(1, Left::members()).in_epoch(GroupEpoch(epoch));
    import_snapshots(&config(left.dir.path()), [later(5)]).expect("imported");
    assert!(matches!(left.refused(vec![later(4)]), ImportError::EpochTaken { found: GroupEpoch(5), .. }));
    left.goes_on();
}

/// Its own snapshot of the first group, at the very place of the export, is what the host goes on from.
fn a_damaged_export_keeps_all_others_out() {
    let left = Left::new();
    let file = left.exports[1].join("snapshot.bin");
    let mut bytes = std::fs::read(&file).unwrap();
    // In the state, which is looked at when all is copied.
    let value = bytes.windows(8).rposition(|word| word == 9u64.to_le_bytes()).expect("a value of the list");
    bytes[value] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let both = vec![left.import(1, Left::members()), left.import(2, Left::members())];
    assert!(matches!(left.refused(both), ImportError::Snapshot { .. }));
    left.goes_on();
    // As nothing was changed, nothing of it is imported.
    let again = import_snapshots(&config(left.dir.path()), [left.import(1, Left::members())]).expect("imported");
    assert!(!again[0].was_done);
    left.goes_on();
}

fn a_directory_in_use_is_not_imported_into() {
    let left = Left::new();
    let host = NodeHost::open(config(left.dir.path())).expect("opens");
    let error = left.refused(vec![left.import(1, Left::members())]);
    assert!(matches!(error, ImportError::Log(_)) && error.to_string().contains("is in use by another host"), "{error}");
    let error = NodeHost::open(config(left.dir.path())).expect_err("it is open");
    assert!(error.to_string().contains("is in use by another host"), "{error}");
    host.close(PATIENCE).expect("closes");
    left.goes_on();
}
