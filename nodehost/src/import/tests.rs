//! An import that dies at every step, and is made again.

use super::*;
use crate::{GroupConfig, NodeHost, ReplicaStart, SnapshotOptions, SnapshotOutcome};
use longboat_io::sim::StoppingDisk;
use longboat_rsm::{MachineError, StateMachine};
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Counts.
#[derive(Default)]
struct Count(u64);

impl StateMachine for Count {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _: Index, value: u64) -> Result<u64, MachineError> {
        self.0 += value;
        Ok(self.0)
    }

    fn lookup(&self, (): ()) -> Result<u64, MachineError> {
        Ok(self.0)
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        Ok(out.write_all(&self.0.to_le_bytes())?)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut bytes = [0; 8];
        input.read_exact(&mut bytes)?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

fn config(dir: &Path) -> NodeHostConfig {
    NodeHostConfig {
        data_dir: dir.to_path_buf(),
        host_id: HostId(1),
        journal_segment_bytes: 1 << 20,
        journal_bytes_max: 16 << 20,
        payload_bytes_max: 64 << 10,
        ..NodeHostConfig::default()
    }
}

/// A host that was closed, with two groups and a snapshot of its own of each, and exports of the same places.
fn prepared(dir: &Path) -> Vec<PathBuf> {
    let host = NodeHost::open(config(&dir.join("base"))).expect("opens");
    let fill = |group| {
        let start = ReplicaStart::bootstrap([(ReplicaId(1), HostId(1))]);
        let config = GroupConfig { group: GroupId(group), replica: ReplicaId(1), ..GroupConfig::default() };
        let count = host.start_replica(start, config, Count::default).expect("starts");
        let begun = Instant::now();
        while !count.is_leader() {
            assert!(begun.elapsed() < PATIENCE, "the only voter does not lead");
            std::thread::sleep(Duration::from_millis(2));
        }
        count.propose(7, PATIENCE).expect("taken").wait().expect("applied");
        count.request_snapshot(SnapshotOptions::default(), PATIENCE).expect("taken").wait().expect("saved");
        match count.request_snapshot(SnapshotOptions::export_to(dir), PATIENCE).expect("taken").wait() {
            Ok(SnapshotOutcome::Exported { dir, .. }) => dir,
            other => panic!("{other:?}"),
        }
    };
    let exports = (1..=2).map(fill).collect();
    host.close(PATIENCE).expect("closes");
    exports
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("there") {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).expect("an entry");
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).expect("copied");
        }
    }
}

/// Whether both groups stand at their imports, with files that are whole.
fn assert_imported(config: &NodeHostConfig, imported: &[Imported], context: &str) {
    let disk: SharedDisk = Arc::new(RealDisk);
    let Opened { groups, .. } = open_store(config, &disk).expect("opens");
    let store = SnapshotStore::new(disk, config.data_dir.join("snapshots"));
    assert_eq!(imported.len(), 2, "{context}");
    for done in imported {
        let state = groups.iter().find(|s| s.group == done.group).expect("it is here");
        let at = state.snapshot.as_ref().map(|s| s.meta.pos.index);
        assert_eq!((state.bootstrap.epoch, at), (GroupEpoch(2), Some(done.index)), "{context}");
        let header = store.verify(done.group, done.replica, done.index).expect("whole");
        assert_eq!(header.epoch, GroupEpoch(2), "{context}");
    }
}

#[test]
fn an_import_that_died_at_any_step_is_finished_by_the_same_call() {
    let dir = TempDir::new().expect("a directory");
    let exports = prepared(dir.path());
    let members = || FirstMembers::voters([(ReplicaId(1), HostId(1))]);
    let imports = || exports.iter().map(|dir| Import::new(dir, ReplicaId(1), members()));
    let mut steps = 0;
    for changes in 0.. {
        let context = format!("after {changes} changes");
        let host = dir.path().join("host");
        copy(&dir.path().join("base"), &host);
        let (config, disk) = (config(&host), StoppingDisk::new(Arc::new(RealDisk)));
        disk.stop_after(changes);
        let first = import_on(Arc::new(disk.clone()), &config, imports());
        let stopped = disk.is_stopped();
        assert!(stopped || first.is_ok(), "{context}: {first:?}");
        let again = import_snapshots(&config, imports()).expect("finished");
        assert_imported(&config, &again, &context);
        std::fs::remove_dir_all(&host).expect("removed");
        if !stopped {
            assert!(again.iter().all(|done| done.was_done), "{context}");
            break;
        }
        steps += 1;
    }
    assert!(steps > 12, "only {steps} steps were seen");
}
