//! Commands that are compressed: every replica reads them, whatever it does with its own.

use crate::cluster::{Cluster, PATIENCE, until};
use longboat::*;
use std::io::{Read, Write};

const GROUP: GroupId = GroupId(9);
/// The largest command that a host here takes.
const PAYLOAD_MAX: usize = 1 << 20;

/// Keeps every command.
#[derive(Debug, Default)]
struct Blobs(Vec<Vec<u8>>);

impl StateMachine for Blobs {
    type Command = Vec<u8>;
    type Output = u64;
    type Query = ();
    type Answer = Vec<Vec<u8>>;

    fn apply(&mut self, _: Index, blob: Vec<u8>) -> Result<u64, MachineError> {
        self.0.push(blob);
        Ok(self.0.len() as u64)
    }

    fn session_results() -> Option<OutputCodec<u64>> {
        Some(OutputCodec::new())
    }

    fn lookup(&self, (): ()) -> Result<Vec<Vec<u8>>, MachineError> {
        Ok(self.0.clone())
    }

    fn save(&self, _: &mut dyn Write) -> Result<(), MachineError> {
        Ok(())
    }

    fn recover(&mut self, _: &mut dyn Read) -> Result<(), MachineError> {
        Err(MachineError::user("nothing was saved"))
    }
}

/// Replica 1 compresses with LZ4, 2 with Zstandard, 3 not at all.
fn cluster() -> Cluster {
    let cluster = Cluster::start(0, 0);
    for i in 0..3 {
        cluster
            .host(i)
            .start_replica(ReplicaStart::bootstrap(crate::cluster::members()), config(&cluster, i), Blobs::default)
            .unwrap();
    }
    cluster
}

fn config(cluster: &Cluster, i: usize) -> GroupConfig {
    let entry_compression = [Compression::Lz4, Compression::Zstd, Compression::None][i];
    GroupConfig { entry_compression, ..cluster.config(i, GROUP.0) }
}

fn group(cluster: &Cluster, i: usize) -> Group<Blobs> {
    cluster.host(i).group(GROUP).unwrap()
}

/// Proposes until it is done: a command may be there twice then.
fn put(cluster: &Cluster, i: usize, blob: &[u8]) {
    until("a write", || group(cluster, i).propose(blob.to_vec(), PATIENCE).ok()?.wait().ok());
}

fn put_in_session(cluster: &Cluster, i: usize, blob: &[u8]) {
    let mut session = until("a session", || group(cluster, i).register_session(PATIENCE).ok()?.wait().ok());
    let series = session.begin().unwrap();
    let again = || group(cluster, i).propose_in(&session, series, blob.to_vec(), PATIENCE).ok()?.wait().ok();
    until("a write", again);
}

fn seen(cluster: &Cluster, i: usize) -> Vec<Vec<u8>> {
    until("a read", || group(cluster, i).read((), PATIENCE).ok()?.wait().ok())
}

/// A command of some length that is like no other one.
fn blob(n: u8, bytes: usize) -> Vec<u8> {
    [&[n][..], &vec![b'a' + n % 20; bytes]].concat()
}

#[test]
fn commands_are_compressed_where_they_are_proposed_and_read_everywhere() {
    let mut cluster = cluster();
    let mut expected = Vec::new();
    for n in 0..30 {
        let (at, command) = (n as usize % 3, blob(n, [0, 50, 500, 50_000][n as usize % 4]));
        if n % 5 == 4 {
            put_in_session(&cluster, at, &command);
        } else {
            put(&cluster, at, &command);
        }
        expected.push(command);
    }
    for i in 0..3 {
        let mut all = seen(&cluster, i);
        all.dedup();
        assert_eq!(all, expected, "at host {i}");
    }
    // The log is given out as it was proposed, and what is counted is what is given out.
    let applied = group(&cluster, 0).info().applied;
    let limits = EntryLimits { bytes: 60_000, ..EntryLimits::default() };
    for i in 0..3 {
        let (mut from, mut found) = (Index(1), Vec::new());
        group(&cluster, i).wait_applied(applied, PATIENCE).unwrap().wait().expect("applied");
        while from <= applied {
            let log = group(&cluster, i).query_entries(from..applied.next(), limits, PATIENCE).unwrap().wait().unwrap();
            let bytes: usize = log.entries.iter().map(|e| e.payload.len()).sum();
            assert!(bytes <= 60_000 || log.entries.len() == 1, "{bytes} bytes in {} entries", log.entries.len());
            found.extend(log.entries.into_iter().filter(|e| e.kind == EntryKind::Command).map(|e| e.payload.to_vec()));
            from = log.next;
        }
        found.retain(|payload| !payload.is_empty());
        found.dedup();
        assert_eq!(found, expected, "the log at host {i}");
    }
    // A replica that begins again reads what is in its log.
    cluster.close(2);
    cluster.open_empty(2);
    cluster.host(2).start_replica(ReplicaStart::Restart, config(&cluster, 2), Blobs::default).unwrap();
    let mut all = seen(&cluster, 2);
    all.dedup();
    assert_eq!(all, expected);
}

#[test]
fn what_is_compressed_takes_less_of_the_journal_and_is_limited_by_what_it_was() {
    let cluster = cluster();
    put(&cluster, 0, &blob(1, 10));
    let before: Vec<u64> = (0..3).map(|i| cluster.host(i).info().log.journal_bytes_written).collect();
    let commands: Vec<_> = (0..20).map(|n| blob(n, 200_000)).collect();
    for command in &commands {
        put(&cluster, 0, command);
    }
    let raw: u64 = commands.iter().map(|c| c.len() as u64).sum();
    for (i, before) in before.into_iter().enumerate() {
        until("all", || (seen(&cluster, i).last() == commands.last()).then_some(()));
        let written = cluster.host(i).info().log.journal_bytes_written - before;
        assert!(written < raw / 2, "host {i} wrote {written} bytes for {raw}");
    }
    for i in 0..3 {
        let error = group(&cluster, i).propose(vec![7; PAYLOAD_MAX + 1], PATIENCE).map(drop).expect_err("too large");
        assert_eq!(error, RequestError::PayloadTooLarge { bytes: PAYLOAD_MAX + 1, limit: PAYLOAD_MAX });
    }
}

#[test]
fn a_witness_keeps_nothing_of_compressed_commands() {
    let cluster = Cluster::start(0, 0);
    let start = || {
        ReplicaStart::bootstrap([(ReplicaId(1), HostId(1)), (ReplicaId(2), HostId(2))])
            .and_witness(ReplicaId(3), HostId(3))
    };
    for i in 0..2 {
        cluster.host(i).start_replica(start(), config(&cluster, i), Blobs::default).unwrap();
    }
    let witness = cluster.host(2).start_witness(start(), config(&cluster, 2)).unwrap();
    for n in 0..10 {
        put(&cluster, n as usize % 2, &blob(n, 1000));
    }
    let applied = group(&cluster, 0).info().applied;
    until("the witness", || (witness.info().commit >= applied).then_some(()));
    let log =
        witness.query_entries(Index(1)..applied.next(), EntryLimits::default(), PATIENCE).unwrap().wait().unwrap();
    assert!(log.entries.iter().all(|e| e.payload.is_empty()), "{log:?}");
    assert!(log.entries.iter().any(|e| e.kind == EntryKind::Command));
}
