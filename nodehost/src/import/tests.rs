//! An import that dies at every step, and is made again.

use super::*;
use crate::{GroupConfig, NodeHost, ReplicaStart, SnapshotOptions, SnapshotOutcome};
use longboat_io::sim::{SimDisk, SimDiskConfig, StoppingDisk};
use longboat_logdb::KeyValue;
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

/// What survives a power loss is drawn from so many seeds, for each step.
const SEEDS: u64 = 3;

/// A simulated disk with these exports, and nothing else.
fn simulated(exports: &[PathBuf]) -> (SimDisk, Vec<PathBuf>) {
    let none = SimDiskConfig { latency_nanos: 0, jitter_nanos: 0, ..SimDiskConfig::default() };
    let disk = SimDisk::new(1, none);
    let process = disk.process();
    let put = |from: &PathBuf| {
        let to = Path::new("/exports").join(from.file_name().expect("it has a name"));
        process.create_dir_all(&to).expect("made");
        for entry in std::fs::read_dir(from).expect("there") {
            let path = entry.expect("an entry").path();
            let bytes = std::fs::read(&path).expect("read");
            let mut file = process.create(&to.join(path.file_name().expect("it has a name"))).expect("made");
            file.write_all_at(&bytes, 0).expect("written");
            file.sync_data().expect("synced");
        }
        process.sync_dir(&to).expect("synced");
        to
    };
    let exports = exports.iter().map(put).collect();
    process.create_dir_all(Path::new("/data")).expect("made");
    for dir in ["/exports", "/"] {
        process.sync_dir(Path::new(dir)).expect("synced");
    }
    (disk, exports)
}

fn open_simulated(disk: &SharedDisk) -> Result<Opened<SharedLog>, longboat_logdb::OpenError> {
    let config = SharedLogConfig {
        segment_bytes: 1 << 20,
        journal_bytes_max: 16 << 20,
        key_value: KeyValue::Memory,
        ..SharedLogConfig::new("/data", HostId(1))
    };
    SharedLog::open(Arc::clone(disk), config)
}

fn import_simulated(disk: &SimDisk, exports: &[PathBuf], epoch: u64) -> Result<Vec<Imported>, ImportError> {
    let process = disk.process();
    let store = SnapshotStore::new(Arc::clone(&process), "/data/snapshots".into());
    let members = FirstMembers::voters([(ReplicaId(1), HostId(1))]);
    let import = |dir| Import::new(dir, ReplicaId(1), members.clone()).in_epoch(GroupEpoch(epoch));
    import_into(open_simulated(&process)?, &store, &process, HostId(1), exports.iter().map(import))
}

/// Groups that stand where an import in this epoch has put them, with files that are whole. Every other one is as it was before, or
/// was begun and decides nothing.
fn stand(disk: &SimDisk, epoch: u64, before: Option<u64>, context: &str) -> usize {
    let process = disk.process();
    let Opened { groups, .. } = open_simulated(&process).unwrap_or_else(|error| panic!("{context}: {error}"));
    let store = SnapshotStore::new(process, "/data/snapshots".into());
    let whole = |state: &GroupState, at: Index| {
        let verified = store.verify(state.group, ReplicaId(1), at);
        verified.unwrap_or_else(|error| panic!("{context}: the file of {}: {error}", state.group));
    };
    let mut stand = 0;
    for state in &groups {
        let at = state.snapshot.as_ref().map(|s| s.meta.pos.index);
        match (state.bootstrap.epoch, at) {
            (GroupEpoch(found), Some(at)) if found == epoch => {
                assert_eq!((state.start.index, state.last.index, state.hard_state.commit), (at, at, at), "{context}");
                whole(state, at);
                stand += 1;
            }
            (GroupEpoch(found), Some(at)) if Some(found) == before => whole(state, at),
            (GroupEpoch(found), None) if found == epoch => {
                assert_eq!(state.bootstrap.membership, Membership::default(), "{context}: it decides nothing");
                assert_eq!((state.last.index, state.hard_state.commit), (Index::ZERO, Index::ZERO), "{context}");
            }
            found => panic!("{context}: group {} is at {found:?}", state.group),
        }
    }
    assert!(before.is_none() || groups.len() == 2, "{context}: groups are gone");
    stand
}

/// Power is lost at every step of an import of two groups, into a directory that has them and into an empty one.
#[test]
fn a_power_loss_at_any_step_leaves_each_group_imported_or_as_it_was() {
    let dir = TempDir::new().expect("a directory");
    let (empty, exports) = simulated(&prepared(dir.path()));
    let full = empty.fork();
    import_simulated(&full, &exports, 2).expect("imported");
    full.kill();
    for (base, before) in [(empty, None), (full, Some(2))] {
        let mut partly = 0;
        for changes in 0.. {
            let mut stopped = false;
            for seed in 0..SEEDS {
                let context = format!("seed {seed}, {changes} changes, before {before:?}");
                let disk = base.fork();
                disk.reseed(seed);
                disk.stop_after(changes);
                let first = import_simulated(&disk, &exports, 3);
                stopped |= disk.is_stopped();
                let told = first.is_ok();
                assert!(disk.is_stopped() || told, "{context}: {first:?}");
                disk.power_loss();
                let stands = stand(&disk, 3, before, &context);
                assert!(!told || stands == 2, "{context}: an import that was reported is lost");
                partly += usize::from(!told && stands > 0);
                // The same call finishes it, and what that reports outlives the next power loss.
                let again = import_simulated(&disk, &exports, 3).unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!(again.iter().filter(|done| done.was_done).count(), stands, "{context}");
                disk.power_loss();
                assert_eq!(stand(&disk, 3, before, &context), 2, "{context}");
            }
            if !stopped {
                assert!(changes > 30, "only {changes} steps were seen");
                break;
            }
        }
        assert!(partly > 0, "no power loss came between the record and its report");
    }
}
