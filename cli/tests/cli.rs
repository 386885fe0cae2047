//! The binary as its users run it.
#![allow(clippy::unwrap_used)]

use longboat::*;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Adds up what it is given.
struct Sum(u64);

impl StateMachine for Sum {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _: Index, add: u64) -> Result<u64, MachineError> {
        self.0 += add;
        Ok(self.0)
    }

    fn lookup(&self, (): ()) -> Result<u64, MachineError> {
        Ok(self.0)
    }

    fn save(&self, out: &mut dyn std::io::Write) -> Result<(), MachineError> {
        Ok(out.write_all(&self.0.to_le_bytes())?)
    }

    fn recover(&mut self, input: &mut dyn std::io::Read) -> Result<(), MachineError> {
        let mut bytes = [0; 8];
        input.read_exact(&mut bytes)?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

fn host(dir: &Path, id: u64) -> NodeHost {
    NodeHost::open(NodeHostConfig { data_dir: dir.to_path_buf(), host_id: HostId(id), ..Default::default() }).unwrap()
}

fn start(host: &NodeHost, start: ReplicaStart, replica: u64) -> Group<Sum> {
    let config = GroupConfig { group: GroupId(3), replica: ReplicaId(replica), ..Default::default() };
    host.start_replica(start, config, || Sum(0)).unwrap()
}

/// A directory of host 1 with a group of one member, whose sum is 42 in the snapshot and 50 in the log.
fn made() -> TempDir {
    let dir = TempDir::new().unwrap();
    let host = host(dir.path(), 1);
    let group = start(&host, ReplicaStart::bootstrap([(ReplicaId(1), HostId(1))]), 1);
    assert_eq!(group.propose(42, PATIENCE).unwrap().wait(), Ok(42));
    let saved = group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait();
    assert!(matches!(saved, Ok(SnapshotOutcome::Saved { .. })), "{saved:?}");
    assert_eq!(group.propose(8, PATIENCE).unwrap().wait(), Ok(50));
    drop(group);
    host.close(PATIENCE).unwrap();
    dir
}

fn longboat(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longboat")).args(["snapshot"]).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn export(data: &Path, to: &Path) -> PathBuf {
    let (data, to) = (data.to_str().unwrap(), to.to_str().unwrap());
    let output = longboat(&["export", "--data-dir", data, "--host-id", "1", "--group", "3", "--to", to, "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&line["group"], &line["epoch"], &line["ok"]), (&3.into(), &1.into(), &true.into()));
    assert_eq!(line["members"][0]["kind"], "voter");
    PathBuf::from(line["dir"].as_str().unwrap())
}

#[test]
fn a_snapshot_is_exported_looked_at_checked_and_imported_elsewhere() {
    let (data, to, other) = (made(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let dir = export(data.path(), to.path());
    let dir = dir.to_str().unwrap();
    let inspected = longboat(&["inspect", dir]);
    assert!(
        inspected.status.success() && said(&inspected).contains("replica 1 on host 1, voter"),
        "{}",
        said(&inspected)
    );
    let verified = longboat(&["verify", dir]);
    assert!(verified.status.success() && said(&verified).contains("good, group 3"), "{}", said(&verified));

    let into = other.path().to_str().unwrap();
    let import = ["import", "--data-dir", into, "--host-id", "2", "--replica", "2", "--members", "2=2", dir];
    let imported = longboat(&import);
    assert!(imported.status.success() && said(&imported).contains("in epoch 2"), "{}", said(&imported));
    let again = longboat(&import);
    assert!(again.status.success() && said(&again).contains("imported before"), "{}", said(&again));
    let host = host(other.path(), 2);
    let group = start(&host, ReplicaStart::Restart, 2);
    assert_eq!(group.read((), PATIENCE).unwrap().wait(), Ok(42), "what the snapshot stands for");
    let in_use = longboat(&import);
    assert!(!in_use.status.success() && said(&in_use).contains("in use"), "{}", said(&in_use));
    drop(group);
    host.close(PATIENCE).unwrap();
}

#[test]
fn damage_and_mistakes_are_refused_and_named() {
    let (data, to) = (made(), TempDir::new().unwrap());
    let dir = export(data.path(), to.path());
    let into = TempDir::new().unwrap();
    let (into, data) = (into.path().to_str().unwrap(), data.path().to_str().unwrap());
    let path = dir.as_path();
    let dir = path.to_str().unwrap();
    let import = |members| {
        longboat(&["import", "--data-dir", into, "--host-id", "2", "--replica", "2", "--members", members, dir])
    };
    let refused = import("2=5");
    assert!(
        !refused.status.success() && said(&refused).contains("do not name replica 2 on host 2"),
        "{}",
        said(&refused)
    );
    let refused = import("two");
    assert!(!refused.status.success() && said(&refused).contains("ID=HOST"), "{}", said(&refused));
    let file = path.join("snapshot.bin");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let verified = longboat(&["verify", dir]);
    assert!(!verified.status.success() && said(&verified).contains("corrupt"), "{}", said(&verified));
    let verified = longboat(&["verify", "--json", dir]);
    let line: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!((verified.status.success(), &line["ok"]), (false, &false.into()));
    let refused = import("2=2");
    assert!(!refused.status.success() && said(&refused).contains("corrupt"), "{}", said(&refused));
    let to = to.path().to_str().unwrap();
    let absent = longboat(&["export", "--data-dir", data, "--host-id", "1", "--group", "9", "--to", to]);
    assert!(!absent.status.success() && said(&absent).contains("group 9 has no snapshot"), "{}", said(&absent));
    let others = longboat(&["export", "--data-dir", data, "--host-id", "7", "--group", "3", "--to", to]);
    assert!(!others.status.success() && said(&others).contains("belongs to host 1"), "{}", said(&others));
}
