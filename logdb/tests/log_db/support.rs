//! Opening, filling and reading any kind of store.

use crate::model::ModelHost;
use longboat_io::sim::{SimDisk, SimDiskConfig};
use longboat_io::{JobState, RealDisk, SharedDisk};
use longboat_logdb::{
    Bootstrap, GroupState, KeyValue, LogDb, LogError, LogReader, OpenError, ReadError, Record, Seq, SharedLog,
    SharedLogConfig, SnapshotRecord, Update,
};
use longboat_raft::{
    EntryKind, GroupEpoch, GroupId, HardState, HostId, Index, LogPos, Membership, Origin, ReplicaId, Run, RunBuilder,
    SnapshotMeta, StoreId, Term,
};
use smallvec::smallvec;
use std::path::Path;
use std::sync::Arc;

/// The host of all tests.
pub(crate) const HOST: HostId = HostId(7);
/// Small segments, so that sealing, settling and recycling are exercised.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;

/// A store, its id and its groups, or why it was not opened.
pub(crate) type OpenResult = Result<(Box<dyn LogDb>, StoreId, Vec<GroupState>), OpenError>;

/// A store that can be opened again and again.
pub(crate) trait Host {
    fn open(&mut self) -> OpenResult;
    /// Lets submitted writes of a simulated disk complete.
    fn advance(&mut self) {}
    /// Whether the journal is one with segments.
    fn has_journal(&self) -> bool {
        true
    }
}

/// The shared store on the machine's file system.
pub(crate) struct RealHost {
    _dir: tempfile::TempDir,
    pub(crate) config: SharedLogConfig,
}

impl RealHost {
    pub(crate) fn new(key_value: KeyValue) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = small(dir.path().join("data").as_path(), key_value);
        Self { _dir: dir, config }
    }
}

impl Host for RealHost {
    fn open(&mut self) -> OpenResult {
        open_shared(Arc::new(RealDisk), &self.config)
    }
}

/// The shared store on a simulated disk.
pub(crate) struct SimHost {
    pub(crate) disk: SimDisk,
    pub(crate) config: SharedLogConfig,
}

impl SimHost {
    pub(crate) fn new(seed: u64) -> Self {
        let config = SharedLogConfig { seed: Some(seed), ..small(Path::new("/host"), KeyValue::Memory) };
        Self { disk: SimDisk::new(seed, SimDiskConfig::default()), config }
    }
}

impl SimHost {
    /// With the smallest segments, so that few steps go round the journal.
    pub(crate) fn tiny(seed: u64) -> Self {
        let mut host = Self::new(seed);
        (host.config.segment_bytes, host.config.journal_bytes_max) = (SEGMENT_BYTES / 2, 2 * SEGMENT_BYTES);
        host
    }
}

impl SimHost {
    /// Segments with much that is kept are archived when they are settled.
    pub(crate) fn keeping(mut self) -> Self {
        self.config.archive_span_bytes_min = 1;
        self
    }
}

impl RealHost {
    /// Segments with much that is kept are archived when they are settled.
    pub(crate) fn keeping(mut self) -> Self {
        self.config.archive_span_bytes_min = 1;
        self
    }
}

impl Host for SimHost {
    fn open(&mut self) -> OpenResult {
        open_shared(self.disk.process(), &self.config)
    }

    fn advance(&mut self) {
        if let Some(at) = self.disk.next_completion() {
            self.disk.set_now(at.max(self.disk.now()));
        }
    }
}

pub(crate) fn open_shared(disk: SharedDisk, config: &SharedLogConfig) -> OpenResult {
    let opened = SharedLog::open(disk, config.clone())?;
    Ok((Box::new(opened.log), opened.store, opened.groups))
}

pub(crate) fn small(dir: &Path, key_value: KeyValue) -> SharedLogConfig {
    SharedLogConfig {
        segment_bytes: SEGMENT_BYTES,
        journal_bytes_max: 4 * SEGMENT_BYTES,
        settle_segments: 2,
        archive_span_bytes_min: u64::MAX,
        key_value,
        ..SharedLogConfig::new(dir, HOST)
    }
}

/// Every kind of store, by name.
pub(crate) fn hosts() -> Vec<(&'static str, Box<dyn Host>)> {
    vec![
        ("model", Box::new(ModelHost::default())),
        ("simulated disk", Box::new(SimHost::new(1))),
        ("simulated disk, archiving", Box::new(SimHost::new(1).keeping())),
        ("real disk, RocksDB", Box::new(RealHost::new(KeyValue::RocksDb))),
        ("real disk, RocksDB, archiving", Box::new(RealHost::new(KeyValue::RocksDb).keeping())),
        ("real disk, rows in memory", Box::new(RealHost::new(KeyValue::Memory))),
    ]
}

/// Submits and drives until durable.
pub(crate) fn write(host: &mut dyn Host, log: &mut dyn LogDb, batch: Vec<Update>) -> Seq {
    let seq = log.submit(batch);
    drain(host, log).expect("nothing fails");
    seq
}

/// Drives until nothing is under way.
pub(crate) fn drain(host: &mut dyn Host, log: &mut dyn LogDb) -> Result<Seq, LogError> {
    loop {
        let progress = log.poll()?;
        if !progress.in_flight {
            return Ok(progress.durable_through);
        }
        host.advance();
    }
}

/// Runs housekeeping to its end. Returns whether there was any.
pub(crate) fn housekeep(log: &mut dyn LogDb) -> bool {
    const STEPS_MAX: u32 = 200_000;
    let Some(mut job) = log.background_job() else { return false };
    let done = (0..STEPS_MAX).any(|_| job.step(1000) == JobState::Done);
    assert!(done, "housekeeping does not come to its end");
    true
}

pub(crate) fn pos(term: u64, index: u64) -> LogPos {
    LogPos::new(Term(term), Index(index))
}

pub(crate) fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: ReplicaId(vote), commit: Index(commit) }
}

pub(crate) fn run(term: u64, first: u64, payloads: &[&[u8]]) -> Run {
    let mut b = RunBuilder::new();
    for (i, p) in payloads.iter().enumerate() {
        b.push(EntryKind::Command, first + i as u64, p);
    }
    b.seal(Term(term), Index(first), Origin { replica: ReplicaId(1), start: 9 })
}

/// An update that appends entries with payloads of their own.
pub(crate) fn append(group: u64, hard_state: HardState, first: u64, payloads: &[&[u8]]) -> Update {
    let runs = smallvec![run(hard_state.term.0, first, payloads)];
    Update { group: GroupId(group), hard_state, runs, ..Update::default() }
}

/// An update of the hard state alone.
pub(crate) fn state(group: u64, hard_state: HardState) -> Update {
    Update { group: GroupId(group), hard_state, ..Update::default() }
}

pub(crate) fn bootstrap(group: u64, replica: u64) -> Update {
    let membership = Membership { voters: (1..4).map(ReplicaId).collect(), ..Membership::default() };
    let record = Record::Bootstrap(Bootstrap {
        replica: ReplicaId(replica),
        epoch: GroupEpoch(1),
        membership,
        ..Bootstrap::default()
    });
    Update { record: Some(Box::new(record)), ..state(group, HardState::default()) }
}

pub(crate) fn snapshot(group: u64, hard_state: HardState, at: LogPos, resets_log: bool) -> Update {
    let membership =
        Membership { voters: (1..6).map(ReplicaId).collect(), change_id: at.index, ..Membership::default() };
    let record = SnapshotRecord { meta: SnapshotMeta { pos: at, membership }, bytes: 1234, resets_log };
    Update { record: Some(Box::new(Record::Snapshot(record))), ..state(group, hard_state) }
}

/// An entry as tests compare it.
pub(crate) type Seen = (u64, u64, Vec<u8>);

/// Reads `lo..=hi` in pieces of about `bytes` each.
pub(crate) fn read(reader: &dyn LogReader, group: u64, lo: u64, hi: u64, bytes: usize) -> Result<Vec<Seen>, ReadError> {
    let mut seen = Vec::new();
    let mut next = lo;
    while next <= hi {
        let runs = reader.entries(GroupId(group), Index(next), Index(hi), bytes)?;
        assert!(!runs.is_empty(), "at least one entry");
        for run in runs {
            assert_eq!(run.first(), Index(next), "contiguous");
            assert!(run.last() <= Index(hi), "ends at or before what was asked for");
            next = run.last().0 + 1;
            seen.extend(run.entries().map(|e| (e.term.0, e.index.0, e.payload.to_vec())));
        }
    }
    Ok(seen)
}

/// Reads all that a group has.
pub(crate) fn read_all(reader: &dyn LogReader, state: &GroupState) -> Vec<Seen> {
    read(reader, state.group.0, state.start.index.0 + 1, state.last.index.0, 1 << 16).expect("all of it is kept")
}
