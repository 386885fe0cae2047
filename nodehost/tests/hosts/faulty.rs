//! State machines that panic: each stops its own replica at most, and a thousand others go on.

use crate::cluster::{PATIENCE, until};
use longboat::*;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const GROUPS: u64 = 1000;
const SOUND: u8 = 0;
const APPLY: u8 = 1;
const LOOKUP: u8 = 2;
const SAVE: u8 = 3;
const RECOVER: u8 = 4;

/// Counts, and panics where it is told to.
#[derive(Debug, Default)]
struct Faulty {
    count: u64,
    panics: Arc<AtomicU8>,
}

impl Faulty {
    fn check(&self, here: u8) {
        assert_ne!(self.panics.load(Ordering::Relaxed), here, "planned");
    }
}

impl StateMachine for Faulty {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _: Index, value: u64) -> Result<u64, MachineError> {
        self.check(APPLY);
        self.count += value;
        Ok(self.count)
    }

    fn lookup(&self, (): ()) -> Result<u64, MachineError> {
        self.check(LOOKUP);
        Ok(self.count)
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        self.check(SAVE);
        Ok(out.write_all(&self.count.to_le_bytes())?)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.check(RECOVER);
        let mut word = [0; 8];
        input.read_exact(&mut word)?;
        self.count = u64::from_le_bytes(word);
        Ok(())
    }
}

struct Hall {
    _dir: tempfile::TempDir,
    host: NodeHost,
    panics: Vec<Arc<AtomicU8>>,
}

impl Hall {
    fn open() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let config = NodeHostConfig {
            data_dir: dir.path().to_path_buf(),
            host_id: HostId(1),
            journal_segment_bytes: 4 << 20,
            journal_bytes_max: 64 << 20,
            payload_bytes_max: 1 << 20,
            ..NodeHostConfig::default()
        };
        let host = NodeHost::open(config).expect("opens");
        let panics: Vec<_> = (0..=GROUPS).map(|_| Arc::<AtomicU8>::default()).collect();
        let specs = (1..=GROUPS).map(|g| {
            let machine = Faulty { count: 0, panics: Arc::clone(&panics[g as usize]) };
            (ReplicaStart::bootstrap([(ReplicaId(1), HostId(1))]), Self::config(g), machine)
        });
        host.start_replicas(specs).expect("start");
        Self { _dir: dir, host, panics }
    }

    fn config(group: u64) -> GroupConfig {
        GroupConfig {
            group: GroupId(group),
            replica: ReplicaId(1),
            election_timeout_ms: 200,
            heartbeat_interval_ms: 30,
            ..GroupConfig::default()
        }
    }

    fn group(&self, group: u64) -> Group<Faulty> {
        self.host.group(GroupId(group)).unwrap()
    }

    fn set(&self, group: u64, what: u8) {
        self.panics[group as usize].store(what, Ordering::Relaxed);
    }

    /// Adds one in each of these groups, all at once.
    fn add_one(&self, groups: impl Iterator<Item = u64>) -> Vec<u64> {
        let pending: Vec<_> = groups.map(|g| self.group(g).propose(1, PATIENCE).unwrap()).collect();
        pending.into_iter().map(|p| p.wait().expect("a sound group")).collect()
    }
}

#[test]
fn a_state_machine_that_panics_anywhere_reaches_no_other_group() {
    let hall = Hall::open();
    assert!(hall.add_one(1..=GROUPS).into_iter().all(|count| count == 1));

    hall.set(APPLY.into(), APPLY);
    let group = hall.group(APPLY.into());
    let error = group.propose(1, PATIENCE).unwrap().wait().expect_err("it panics");
    assert!(matches!(error, RequestError::MachineFailed { .. }) && error.may_have_applied(), "{error}");
    until("the replica to stop", || hall.host.replica(group.id()).is_err().then_some(()));

    hall.set(LOOKUP.into(), LOOKUP);
    let group = hall.group(LOOKUP.into());
    let error = group.read((), PATIENCE).unwrap().wait().expect_err("it panics");
    assert!(matches!(error, RequestError::LookupFailed(_)), "{error}");
    hall.set(LOOKUP.into(), SOUND);
    assert_eq!(group.read((), PATIENCE).unwrap().wait(), Ok(1));

    hall.set(SAVE.into(), SAVE);
    let group = hall.group(SAVE.into());
    let error = group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect_err("it panics");
    assert!(matches!(error, RequestError::Snapshot(_)), "{error}");
    hall.set(SAVE.into(), SOUND);
    let saved = group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait();
    assert!(matches!(saved, Ok(SnapshotOutcome::Saved { .. })), "{saved:?}");

    let group = hall.group(RECOVER.into());
    group.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect("saved");
    hall.set(RECOVER.into(), RECOVER);
    hall.host.stop_replica(group.id()).expect("runs");
    let panics = &hall.panics[usize::from(RECOVER)];
    until("another start", || {
        let machine = || Faulty { count: 0, panics: Arc::clone(panics) };
        hall.host.start_replica(ReplicaStart::Restart, Hall::config(RECOVER.into()), machine).ok()
    });
    until("the replica to stop", || hall.host.replica(group.id()).is_err().then_some(()));

    assert_eq!(hall.host.info().machine_failures, 2);
    let rest = (1..=GROUPS).filter(|g| ![APPLY.into(), RECOVER.into()].contains(g));
    let counts = hall.add_one(rest);
    assert_eq!(counts, vec![2; GROUPS as usize - 2]);
    hall.host.close(Duration::from_secs(5)).expect("closes in order");
}
