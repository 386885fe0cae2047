//! State machines with storage of their own: restarts, streams to followers, storage that is lost or can't be opened.

use crate::cluster::{PATIENCE, members, until};
use longboat::*;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// What the storage of one replica holds.
#[derive(Debug, Default)]
struct Stored {
    values: Vec<u64>,
    applied: u64,
    syncs: usize,
    /// A state machine has it open: nobody else may.
    open: bool,
    /// It can't be opened.
    broken: bool,
    panics: bool,
}

type Storage = Arc<Mutex<Stored>>;

/// A list on such storage. Fails when it is given an entry twice.
#[derive(Debug, Default)]
struct Shelf {
    storage: Storage,
    opened: bool,
}

impl Drop for Shelf {
    fn drop(&mut self) {
        if self.opened {
            self.storage.lock().open = false;
        }
    }
}

impl DiskMachine for Shelf {
    type Command = u64;
    type Output = usize;
    type Query = ();
    type Answer = Vec<u64>;
    type Reader = Storage;
    type View = (Vec<u64>, u64, usize);

    fn open(&mut self, _stop: &StopSignal) -> Result<Index, MachineError> {
        let mut storage = self.storage.lock();
        assert!(!storage.panics, "planned");
        if storage.broken || storage.open {
            return Err(MachineError::user(if storage.open { "in use" } else { "broken" }));
        }
        storage.open = true;
        self.opened = true;
        Ok(Index(storage.applied))
    }

    fn reader(&self) -> Storage {
        Arc::clone(&self.storage)
    }

    fn lookup(reader: &Storage, (): ()) -> Result<Vec<u64>, MachineError> {
        Ok(reader.lock().values.clone())
    }

    fn apply_batch(&mut self, commands: &mut Commands<'_, u64>, outputs: &mut Vec<usize>) -> Result<(), MachineError> {
        let mut storage = self.storage.lock();
        for (index, command) in commands {
            assert!(index.0 > storage.applied, "{index} is given after {}", storage.applied);
            storage.values.push(command);
            storage.applied = index.0;
            outputs.push(storage.values.len());
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        self.storage.lock().syncs += 1;
        Ok(())
    }

    fn prepare(&mut self) -> Result<Self::View, MachineError> {
        let storage = self.storage.lock();
        Ok((storage.values.clone(), storage.applied, 0))
    }

    fn save_part((values, applied, at): &mut Self::View, out: &mut dyn Write) -> Result<SavePart, MachineError> {
        if *at == 0 {
            out.write_all(&applied.to_le_bytes())?;
        }
        let end = values.len().min(*at + 100);
        for value in &values[*at..end] {
            out.write_all(&value.to_le_bytes())?;
        }
        *at = end;
        Ok(if end == values.len() { SavePart::Done } else { SavePart::More })
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        let mut words = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap()));
        let mut storage = self.storage.lock();
        storage.applied = words.next().unwrap();
        storage.values = words.collect();
        Ok(())
    }
}

/// Three hosts with on-disk groups; the storages outlive the hosts.
struct Disks {
    dirs: Vec<TempDir>,
    hosts: Vec<Option<NodeHost>>,
    storages: BTreeMap<(usize, u64), Storage>,
    groups: u64,
    snapshot_entries: u64,
    threads: Threads,
}

impl Disks {
    fn start(groups: u64, snapshot_entries: u64) -> Self {
        Self::start_with(Threads::Auto, groups, snapshot_entries)
    }

    fn start_with(threads: Threads, groups: u64, snapshot_entries: u64) -> Self {
        let dirs = (0..3).map(|_| TempDir::new().unwrap()).collect();
        let (hosts, storages) = (vec![None, None, None], BTreeMap::new());
        let mut disks = Self { dirs, hosts, storages, groups, snapshot_entries, threads };
        (0..3).for_each(|i| disks.open(i));
        disks
    }

    fn open(&mut self, i: usize) {
        let config = NodeHostConfig {
            data_dir: self.dirs[i].path().to_path_buf(),
            host_id: HostId(i as u64 + 1),
            journal_segment_bytes: 4 << 20,
            journal_bytes_max: 64 << 20,
            payload_bytes_max: 1 << 20,
            threads: self.threads,
            ..NodeHostConfig::default()
        };
        let host = NodeHost::open(config).expect("opens");
        let specs: Vec<_> = (1..=self.groups)
            .map(|g| (ReplicaStart::bootstrap(members()), self.config(i, g), self.machine(i, g)))
            .collect();
        host.start_replicas(specs).expect("replicas start");
        self.hosts[i] = Some(host);
        for a in self.hosts.iter().flatten() {
            for b in self.hosts.iter().flatten() {
                a.set_peer_address(b.info().host, b.local_address());
            }
        }
    }

    fn close(&mut self, i: usize) {
        self.hosts[i].take().unwrap().close(Duration::from_secs(5)).expect("closes in order");
    }

    fn storage(&mut self, i: usize, group: u64) -> Storage {
        Arc::clone(self.storages.entry((i, group)).or_default())
    }

    fn machine(&mut self, i: usize, group: u64) -> OnDisk<Shelf> {
        OnDisk(Shelf { storage: self.storage(i, group), opened: false })
    }

    fn config(&self, i: usize, group: u64) -> GroupConfig {
        GroupConfig {
            group: GroupId(group),
            replica: ReplicaId(i as u64 + 1),
            election_timeout_ms: 200,
            heartbeat_interval_ms: 30,
            snapshot_entries: self.snapshot_entries,
            compaction_overhead: 5,
            ..GroupConfig::default()
        }
    }

    fn group(&self, i: usize, group: u64) -> Group<OnDisk<Shelf>> {
        self.hosts[i].as_ref().unwrap().group(GroupId(group)).unwrap()
    }

    /// Proposes each value once, whoever leads.
    fn put(&self, i: usize, group: u64, values: std::ops::Range<u64>) {
        for value in values {
            until("a proposal", || match self.group(i, group).propose(value, PATIENCE).unwrap().wait() {
                Ok(_) => Some(()),
                Err(e) if !e.may_have_applied() => None,
                Err(e) => panic!("proposal of {value}: {e}"),
            });
        }
    }

    fn read(&self, i: usize, group: u64) -> Vec<u64> {
        self.group(i, group).read((), PATIENCE).unwrap().wait().expect("a read")
    }

    fn snapshot(&self, i: usize, group: u64) -> Index {
        let asked = self.group(i, group).request_snapshot(SnapshotOptions::default(), PATIENCE);
        match asked.unwrap().wait().expect("saved") {
            SnapshotOutcome::Saved { index } => index,
            other => panic!("{other:?}"),
        }
    }

    /// Bytes of the snapshot files of a host.
    fn snapshot_bytes(&self, i: usize) -> u64 {
        fn bytes(dir: &std::path::Path) -> u64 {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .map(|e| if e.path().is_dir() { bytes(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })
                .sum()
        }
        bytes(&self.dirs[i].path().join("snapshots"))
    }
}

#[test]
fn an_on_disk_machine_goes_on_from_its_storage_and_its_snapshots_hold_no_state() {
    let mut disks = Disks::start(1, 0);
    disks.put(0, 1, 0..500);
    disks.put(0, 1, 500..510);
    let index = disks.snapshot(0, 1);
    assert!(index.0 >= 510);
    assert_eq!(disks.group(0, 1).info().first_index.0, index.0 - 5 + 1, "compaction_overhead is 5");
    assert!(disks.storage(0, 1).lock().syncs >= 1, "the log went only behind what is durable");
    assert!((1..2000).contains(&disks.snapshot_bytes(0)), "{} bytes", disks.snapshot_bytes(0));
    disks.put(0, 1, 510..520);
    (0..3).for_each(|i| disks.close(i));
    (0..3).for_each(|i| disks.open(i));
    assert_eq!(disks.read(0, 1), (0..520).collect::<Vec<_>>());
    disks.put(1, 1, 520..530);
    (0..3).for_each(|i| assert_eq!(disks.read(i, 1), (0..530).collect::<Vec<_>>()));
    assert_eq!(disks.group(0, 1).info().snapshots_installed, 0);
}

#[test]
fn an_exported_snapshot_of_an_on_disk_machine_holds_its_state() {
    let disks = Disks::start(1, 0);
    disks.put(0, 1, 0..500);
    let dir = TempDir::new().unwrap();
    let asked = disks.group(0, 1).request_snapshot(SnapshotOptions::export_to(dir.path()), PATIENCE);
    let SnapshotOutcome::Exported { dir, .. } = asked.unwrap().wait().expect("exported") else { panic!() };
    let bytes: u64 = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes > 500 * 8, "{bytes} bytes");
}

#[test]
fn a_lagging_follower_is_streamed_the_state_without_a_copy_at_the_leader() {
    let mut disks = Disks::start(2, 40);
    for g in 1..=2 {
        disks.put(0, g, 0..10);
    }
    disks.close(2);
    for g in 1..=2 {
        disks.put(0, g, 10..300);
    }
    until("truncated logs", || {
        (1..=2).all(|g| (0..2).all(|i| disks.group(i, g).info().first_index.0 > 100)).then_some(())
    });
    disks.open(2);
    for g in 1..=2 {
        assert_eq!(disks.read(2, g), (0..300).collect::<Vec<_>>());
        assert!(disks.group(2, g).info().snapshots_installed >= 1);
    }
    assert!(disks.snapshot_bytes(0) + disks.snapshot_bytes(1) < 4000, "only metadata is kept here");
    disks.close(2);
    disks.open(2);
    for g in 1..=2 {
        assert_eq!(disks.read(2, g), (0..300).collect::<Vec<_>>());
    }
}

#[test]
fn a_replica_whose_storage_was_lost_gets_a_full_snapshot() {
    let mut disks = Disks::start(1, 0);
    disks.put(0, 1, 0..200);
    for i in 0..3 {
        until("all applied", || (disks.read(i, 1).len() == 200).then_some(()));
        disks.snapshot(i, 1);
    }
    disks.close(2);
    *disks.storage(2, 1).lock() = Stored::default();
    disks.open(2);
    assert_eq!(disks.read(2, 1), (0..200).collect::<Vec<_>>());
    disks.put(2, 1, 200..210);
    assert_eq!(disks.read(2, 1), (0..210).collect::<Vec<_>>());
    // It goes on from what it was sent.
    disks.close(2);
    disks.open(2);
    assert_eq!(disks.read(2, 1), (0..210).collect::<Vec<_>>());
    assert_eq!(disks.group(2, 1).info().snapshots_installed, 0);
}

#[test]
fn storage_that_can_not_be_opened_stops_its_replica_and_no_other() {
    let mut disks = Disks::start(3, 0);
    disks.put(0, 1, 0..5);
    disks.close(2);
    disks.storage(2, 2).lock().broken = true;
    disks.storage(2, 3).lock().panics = true;
    disks.open(2);
    assert_eq!(disks.read(2, 1), (0..5).collect::<Vec<_>>());
    let host = disks.hosts[2].clone().unwrap();
    for g in [2, 3] {
        until("the replica to stop", || host.replica(GroupId(g)).is_err().then_some(()));
        disks.put(0, g, 0..5);
        let (config, machine) = (disks.config(2, g), disks.machine(2, g));
        let error = host.start_replica(ReplicaStart::Restart, config, || machine).expect_err("still broken");
        assert!(matches!(&error, StartError::Machine { group: GroupId(n), .. } if *n == g), "{error}");
        *disks.storage(2, g).lock() = Stored::default();
        let (config, machine) = (disks.config(2, g), disks.machine(2, g));
        host.start_replica(ReplicaStart::Restart, config, || machine).expect("mended");
        assert_eq!(disks.read(2, g), (0..5).collect::<Vec<_>>());
    }
}

#[test]
fn a_stopped_replica_lets_go_of_its_storage_before_it_can_be_started_again() {
    let mut disks = Disks::start(1, 0);
    disks.put(0, 1, 0..5);
    let host = disks.hosts[2].clone().unwrap();
    let handle = disks.group(2, 1);
    for round in 1..=5 {
        host.stop_replica(GroupId(1)).expect("runs");
        let group = until("another start", || {
            let (config, machine) = (disks.config(2, 1), disks.machine(2, 1));
            match host.start_replica(ReplicaStart::Restart, config, || machine) {
                Ok(group) => Some(group),
                Err(StartError::AlreadyStarted(_)) => None,
                Err(error) => panic!("{error}"),
            }
        });
        disks.put(0, 1, round * 5..round * 5 + 5);
        assert_eq!(group.read((), PATIENCE).unwrap().wait().expect("a read").len() as u64, round * 5 + 5);
    }
    assert!(handle.stale_read(()).is_err(), "a handle on a former life reads nothing");
}

#[test]
fn an_on_disk_machine_has_no_sessions() {
    let disks = Disks::start(1, 0);
    disks.put(0, 1, 0..1);
    let refused = disks.group(0, 1).register_session(PATIENCE).expect_err("refused");
    assert_eq!(refused, RequestError::SessionsUnsupported);
}

#[test]
fn an_import_rolls_the_storage_back_once() {
    let mut disks = Disks::start(1, 0);
    disks.put(0, 1, 0..100);
    let target = TempDir::new().unwrap();
    let asked = disks.group(0, 1).request_snapshot(SnapshotOptions::export_to(target.path()), PATIENCE);
    let SnapshotOutcome::Exported { dir, .. } = asked.unwrap().wait().expect("exported") else { panic!("no export") };
    disks.put(0, 1, 100..150);
    (0..3).for_each(|i| disks.close(i));
    assert!(disks.storage(0, 1).lock().values.len() >= 100);
    let alone = FirstMembers::voters([(ReplicaId(1), HostId(1))]);
    let config = NodeHostConfig {
        journal_segment_bytes: 4 << 20,
        journal_bytes_max: 64 << 20,
        payload_bytes_max: 1 << 20,
        ..host_config(&disks, 0)
    };
    import_snapshots(&config, [Import::new(&dir, ReplicaId(1), alone)]).expect("imported");
    for round in 0..3u64 {
        let host = NodeHost::open(config.clone()).expect("opens");
        let machine = disks.machine(0, 1);
        let group = host.start_replica(ReplicaStart::Restart, disks.config(0, 1), move || machine).expect("starts");
        until("a proposal", || group.propose(1000 + round, PATIENCE).unwrap().wait().ok());
        let expected: Vec<u64> = (0..100).chain(1000..=1000 + round).collect();
        assert_eq!(group.read((), PATIENCE).unwrap().wait(), Ok(expected), "round {round}");
        drop(group);
        host.close(Duration::from_secs(5)).expect("closes in order");
    }
}

fn host_config(disks: &Disks, i: usize) -> NodeHostConfig {
    NodeHostConfig { data_dir: disks.dirs[i].path().to_path_buf(), host_id: HostId(i as u64 + 1), ..Default::default() }
}

#[test]
fn a_closed_host_has_let_go_of_all_storage() {
    for threads in [Threads::Separate, Threads::Compact] {
        let mut disks = Disks::start_with(threads, 3, 0);
        (1..=3).for_each(|g| disks.put(0, g, 0..5));
        let handles: Vec<_> = (1..=3).map(|g| disks.group(0, g)).collect();
        (0..3).for_each(|i| disks.close(i));
        for (place, storage) in &disks.storages {
            assert!(!storage.lock().open, "{place:?} is open, with threads {threads:?}");
        }
        assert!(
            handles.iter().all(|group| group.stale_read(()).is_err()),
            "a handle outlives its host and reads nothing"
        );
    }
}
