//! Files of a state machine's own travel in its snapshots: to itself after a restart, to followers, and through exports.

use crate::cluster::{PATIENCE, members, until};
use longboat::*;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// Keeps the length of its list in its snapshot, and the list itself in a file beside it.
#[derive(Debug)]
struct Filed {
    dir: PathBuf,
    values: Vec<u8>,
    expected: u64,
}

impl StateMachine for Filed {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = Vec<u8>;

    fn apply(&mut self, _: Index, value: u64) -> Result<u64, MachineError> {
        self.values.push(value as u8);
        Ok(self.values.len() as u64)
    }

    fn lookup(&self, (): ()) -> Result<Vec<u8>, MachineError> {
        Ok(self.values.clone())
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        std::fs::write(self.dir.join("list"), &self.values)?;
        Ok(out.write_all(&(self.values.len() as u64).to_le_bytes())?)
    }

    fn save_files(&self, files: &mut SnapshotFiles) -> Result<(), MachineError> {
        files.add(7, self.dir.join("list"), b"the list")
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut bytes = [0; 8];
        input.read_exact(&mut bytes)?;
        self.expected = u64::from_le_bytes(bytes);
        Ok(())
    }

    fn recover_files(&mut self, files: &RecoveredFiles) -> Result<(), MachineError> {
        let file = files.find(7).ok_or_else(|| MachineError::user("no list"))?;
        assert_eq!((file.metadata(), file.bytes()), (&b"the list"[..], self.expected));
        self.values = std::fs::read(file.path())?;
        Ok(())
    }
}

struct Hosts {
    dirs: Vec<TempDir>,
    hosts: Vec<Option<NodeHost>>,
}

impl Hosts {
    fn config(&self, i: usize, id: u64) -> NodeHostConfig {
        NodeHostConfig { data_dir: self.dirs[i].path().join("host"), host_id: HostId(id), ..Default::default() }
    }

    fn open(&mut self, i: usize) {
        let host = NodeHost::open(self.config(i, i as u64 + 1)).unwrap();
        self.start(&host, i, ReplicaStart::bootstrap(members()), 1);
        self.hosts[i] = Some(host);
        for a in self.hosts.iter().flatten() {
            for b in self.hosts.iter().flatten() {
                a.set_peer_address(b.info().host, b.local_address());
            }
        }
    }

    fn start(&self, host: &NodeHost, i: usize, start: ReplicaStart, group: u64) -> Group<Filed> {
        let config = GroupConfig {
            group: GroupId(group),
            replica: ReplicaId(i as u64 + 1),
            election_timeout_ms: 200,
            heartbeat_interval_ms: 30,
            compaction_overhead: 1,
            ..GroupConfig::default()
        };
        let dir = self.dirs[i].path().to_path_buf();
        host.start_replica(start, config, || Filed { dir, values: Vec::new(), expected: 0 }).unwrap()
    }

    fn group(&self, i: usize) -> Group<Filed> {
        self.hosts[i].as_ref().unwrap().group(GroupId(1)).unwrap()
    }

    fn read(&self, i: usize) -> Vec<u8> {
        self.group(i).read((), PATIENCE).unwrap().wait().unwrap()
    }

    fn put(&self, i: usize, values: std::ops::Range<u64>) {
        for v in values {
            until("a proposal", || match self.group(i).propose(v, PATIENCE).unwrap().wait() {
                Ok(_) => Some(()),
                Err(e) if !e.may_have_applied() => None,
                Err(e) => panic!("{e}"),
            });
        }
    }

    fn close(&mut self, i: usize) {
        self.hosts[i].take().unwrap().close(Duration::from_secs(5)).unwrap();
    }
}

#[test]
fn files_of_a_state_machine_travel_in_its_snapshots() {
    let dirs = (0..3).map(|_| TempDir::new().unwrap()).collect();
    let mut hosts = Hosts { dirs, hosts: vec![None, None, None] };
    (0..3).for_each(|i| hosts.open(i));
    hosts.put(0, 0..20);
    hosts.close(2);
    hosts.put(0, 20..60);
    for i in 0..2 {
        let saved = hosts.group(i).request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait();
        assert!(matches!(saved, Ok(SnapshotOutcome::Saved { .. })), "{saved:?}");
    }
    // To a follower whose entries are gone, and to itself.
    hosts.open(2);
    let expected: Vec<u8> = (0..60).collect();
    assert_eq!(hosts.read(2), expected);
    assert!(hosts.group(2).info().snapshots_installed >= 1);
    (0..2).for_each(|i| hosts.close(i));
    (0..2).for_each(|i| hosts.open(i));
    (0..2).for_each(|i| assert_eq!(hosts.read(i), expected));
    // And through an export, to a group that begins with it.
    let target = TempDir::new().unwrap();
    let asked = hosts.group(0).request_snapshot(SnapshotOptions::export_to(target.path()), PATIENCE).unwrap().wait();
    let Ok(SnapshotOutcome::Exported { dir, .. }) = asked else { panic!("{asked:?}") };
    assert_eq!(inspect_snapshot(&dir).unwrap().files, [(7, 60)]);
    let alone = FirstMembers::voters([(ReplicaId(1), HostId(1))]);
    let host = hosts.hosts[0].as_ref().unwrap();
    let split = hosts.start(host, 0, ReplicaStart::from_snapshot(&dir, alone), 2);
    assert_eq!(split.read((), PATIENCE).unwrap().wait().unwrap(), expected);
}
