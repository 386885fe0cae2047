//! Small state machines of each kind, and a log to feed them.

use bytes::{BufMut, BytesMut};
use longboat_io::{Job, JobState, RealDisk};
use longboat_raft::{
    EntryKind, GroupId, Index, LogPos, Origin, ReplicaId, Run, RunBuilder, SessionCall, SessionId, SnapshotMeta, Term,
};
use longboat_rsm::snapshot::{
    Content, Prepared, RecoverJob, RecoverTask, SaveJob, SaveTask, SavedSnapshot, SharedMachine, SnapshotError,
    SnapshotHeader, SnapshotStore,
};
use longboat_rsm::{
    Commands, Completion, ConcurrentMachine, DiskMachine, DynMachine, Machine, MachineError, OnDisk, OutputCodec,
    Pending, Reads, RequestError, SavePart, StateMachine, StopSignal,
};
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use tempfile::TempDir;

pub const GROUP: GroupId = GroupId(7);
pub const REPLICA: ReplicaId = ReplicaId(2);

fn write_list(list: &[u64], out: &mut dyn Write) -> Result<(), MachineError> {
    for item in list {
        out.write_all(&item.to_le_bytes())?;
    }
    Ok(())
}

fn read_list(input: &mut dyn Read) -> Result<Vec<u64>, MachineError> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes)?;
    Ok(bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect())
}

/// A list with exclusive access. A command is appended and its position returned.
#[derive(Debug, Default)]
pub struct List(pub Vec<u64>);

impl StateMachine for List {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = Vec<u64>;

    fn apply(&mut self, _index: Index, command: u64) -> Result<u64, MachineError> {
        self.0.push(command);
        Ok(self.0.len() as u64)
    }

    fn lookup(&self, _query: ()) -> Result<Vec<u64>, MachineError> {
        Ok(self.0.clone())
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        write_list(&self.0, out)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.0 = read_list(input)?;
        Ok(())
    }

    fn session_results() -> Option<OutputCodec<u64>> {
        Some(OutputCodec::new())
    }
}

/// The same list, whose views are handles on versions of it.
#[derive(Debug, Default)]
pub struct Versions {
    list: Arc<Vec<u64>>,
}

impl ConcurrentMachine for Versions {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = Vec<u64>;
    type View = Arc<Vec<u64>>;

    fn apply(&mut self, _index: Index, command: u64) -> Result<u64, MachineError> {
        Arc::make_mut(&mut self.list).push(command);
        Ok(self.list.len() as u64)
    }

    fn view(&self) -> Arc<Vec<u64>> {
        Arc::clone(&self.list)
    }

    fn lookup(view: &Arc<Vec<u64>>, _query: ()) -> Result<Vec<u64>, MachineError> {
        Ok(view.to_vec())
    }

    fn save(view: &Arc<Vec<u64>>, out: &mut dyn Write) -> Result<(), MachineError> {
        write_list(view, out)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.list = Arc::new(read_list(input)?);
        Ok(())
    }

    fn session_results() -> Option<OutputCodec<u64>> {
        Some(OutputCodec::new())
    }
}

/// What a disk holds of a list: as processes see it, and as it would be after a power loss.
#[derive(Debug, Default)]
pub struct Stored {
    pub seen: (Vec<u64>, u64),
    pub durable: (Vec<u64>, u64),
    pub syncs: usize,
}

/// The same list on such a disk.
#[derive(Debug, Default)]
pub struct Shelf {
    pub disk: Arc<Mutex<Stored>>,
    /// Whether the disk tells what it holds durably.
    pub tells_durable: bool,
}

impl DiskMachine for Shelf {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = Vec<u64>;
    type Reader = Arc<Mutex<Stored>>;
    type View = (Vec<u64>, u64, usize);

    fn open(&mut self, _stop: &StopSignal) -> Result<Index, MachineError> {
        Ok(Index(self.disk.lock().seen.1))
    }

    fn reader(&self) -> Arc<Mutex<Stored>> {
        Arc::clone(&self.disk)
    }

    fn lookup(reader: &Arc<Mutex<Stored>>, _query: ()) -> Result<Vec<u64>, MachineError> {
        Ok(reader.lock().seen.0.clone())
    }

    fn apply_batch(&mut self, commands: &mut Commands<'_, u64>, outputs: &mut Vec<u64>) -> Result<(), MachineError> {
        let mut disk = self.disk.lock();
        for (index, command) in commands {
            disk.seen.0.push(command);
            disk.seen.1 = index.0;
            outputs.push(disk.seen.0.len() as u64);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        let mut disk = self.disk.lock();
        disk.syncs += 1;
        disk.durable = disk.seen.clone();
        Ok(())
    }

    fn durable_applied(&self) -> Option<Index> {
        self.tells_durable.then(|| Index(self.disk.lock().durable.1))
    }

    fn prepare(&mut self) -> Result<(Vec<u64>, u64, usize), MachineError> {
        let disk = self.disk.lock();
        Ok((disk.seen.0.clone(), disk.seen.1, 0))
    }

    fn save_part(view: &mut (Vec<u64>, u64, usize), out: &mut dyn Write) -> Result<SavePart, MachineError> {
        let (list, applied, at) = view;
        if *at == 0 {
            out.write_all(&applied.to_le_bytes())?;
        }
        let end = list.len().min(*at + 10);
        write_list(&list[*at..end], out)?;
        *at = end;
        Ok(if end == list.len() { SavePart::Done } else { SavePart::More })
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut all = read_list(input)?;
        let applied = all.remove(0);
        let mut disk = self.disk.lock();
        disk.seen = (all, applied);
        disk.durable = disk.seen.clone();
        Ok(())
    }
}

/// A plain command, nothing at all, or a call of a session.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    Command(u64),
    Empty,
    Register(u32),
    Session { session: u64, series: u64, command: u64 },
}

pub fn run_of(first: u64, entries: &[Entry]) -> Run {
    let mut builder = RunBuilder::new();
    for entry in entries {
        match *entry {
            Entry::Command(command) => builder.push(EntryKind::Command, 0, &command.to_le_bytes()),
            Entry::Empty => builder.push(EntryKind::Empty, 0, &[]),
            Entry::Register(sessions_max) => {
                builder.push_session_with(SessionCall::Register { sessions_max }, 0, 8, |_| ()).map(drop).unwrap();
            }
            Entry::Session { session, series, command } => {
                let call = SessionCall::Propose { session: SessionId(session), series, responded_to: 0 };
                let write = |out: &mut BytesMut| out.put_u64_le(command);
                builder.push_session_with(call, 0, 8, write).map(drop).unwrap();
            }
        }
    }
    builder.seal(Term(3), Index(first), Origin::default())
}

pub fn commands(first: u64, list: &[u64]) -> Run {
    run_of(first, &list.iter().copied().map(Entry::Command).collect::<Vec<_>>())
}

/// Applies entries as one run; what each came to.
pub fn apply(machine: &mut dyn DynMachine, first: u64, entries: &[Entry]) -> Vec<Result<u64, RequestError>> {
    let results = Completion::<u64>::new();
    machine.apply_run(&run_of(first, entries), Some((&*results, 0))).unwrap();
    (0..entries.len() as u32).map(|n| Pending::new(Arc::clone(&results), n).wait()).collect()
}

/// Asks a machine of type `M` for its list.
pub fn listed<M: Machine<Query = (), Answer = Vec<u64>>>(machine: &dyn DynMachine) -> Result<Vec<u64>, RequestError> {
    let mut reads = Reads::<M>::new();
    let pending = reads.add(());
    match machine.lookups() {
        Some(lookups) => lookups.lookup(Box::new(reads)),
        None => machine.lookup(Box::new(reads)),
    }
    pending.wait()
}

pub fn shared<M: Machine>(machine: M) -> SharedMachine {
    Arc::new(Mutex::new(machine.into_dyn()))
}

pub fn store(dir: &TempDir) -> SnapshotStore {
    SnapshotStore::new(Arc::new(RealDisk), dir.path().join("snapshots"))
}

pub fn header(index: u64, content: Content) -> SnapshotHeader {
    let meta = SnapshotMeta { pos: LogPos::new(Term(3), Index(index)), ..SnapshotMeta::default() };
    SnapshotHeader { group: GROUP, meta, content, ..SnapshotHeader::default() }
}

pub fn run(mut job: impl Job) {
    while job.step(1 << 20) != JobState::Done {}
}

pub fn prepared(machine: &SharedMachine, content: Content) -> Prepared {
    Prepared::new(machine, &mut **machine.lock(), content).unwrap()
}

pub fn save_to(
    store: &SnapshotStore,
    prepared: Prepared,
    header: SnapshotHeader,
    export_to: Option<PathBuf>,
    stop: &Arc<AtomicBool>,
) -> Result<SavedSnapshot, SnapshotError> {
    let (sender, outcome) = mpsc::channel();
    run(SaveJob::new(SaveTask {
        prepared,
        header,
        replica: REPLICA,
        store: store.clone(),
        export_to,
        stop: Arc::clone(stop),
        on_done: Box::new(move |saved| sender.send(saved).unwrap()),
    }));
    outcome.recv().unwrap()
}

pub fn save(store: &SnapshotStore, machine: &SharedMachine, index: u64, content: Content) {
    save_to(store, prepared(machine, content), header(index, content), None, &Arc::default()).unwrap();
}

pub fn recover(store: &SnapshotStore, machine: &SharedMachine, index: u64) -> Result<SnapshotMeta, SnapshotError> {
    recover_from(store, machine, index, &[])
}

pub fn recover_from(
    store: &SnapshotStore,
    machine: &SharedMachine,
    index: u64,
    older: &[u64],
) -> Result<SnapshotMeta, SnapshotError> {
    let (sender, outcome) = mpsc::channel();
    run(RecoverJob::new(RecoverTask {
        machine: Arc::clone(machine),
        group: GROUP,
        replica: REPLICA,
        index: Index(index),
        older: older.iter().copied().map(Index).collect(),
        store: store.clone(),
        stop: Arc::default(),
        on_done: Box::new(move |recovered| sender.send(recovered).unwrap()),
    }));
    outcome.recv().unwrap()
}

pub fn snapshot_file(dir: &TempDir, index: u64) -> PathBuf {
    dir.path().join(format!("snapshots/{GROUP}/{REPLICA}/snapshot-{index}/snapshot.bin"))
}

/// Opens an on-disk machine on `disk`.
pub fn opened(disk: &Arc<Mutex<Stored>>, tells_durable: bool) -> SharedMachine {
    let machine = shared(OnDisk(Shelf { disk: Arc::clone(disk), tells_durable }));
    machine.lock().open(&StopSignal::default()).unwrap();
    machine
}
