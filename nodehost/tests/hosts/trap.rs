//! State machines of each kind that count, and that panic or hang where they are told to.

use crate::cluster::{PATIENCE, until};
use longboat::*;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub(crate) const GROUPS: u64 = 1000;

/// What a state machine is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum At {
    Nowhere,
    Apply,
    Lookup,
    Save,
    Recover,
    Open,
}

/// Where one state machine panics or hangs.
#[derive(Debug, Default)]
pub(crate) struct Trap {
    panics: AtomicU8,
    hangs: AtomicU8,
    /// Calls that hang now.
    hanging: Mutex<u64>,
    released: Condvar,
    /// What a machine with storage has in it: the count, and the last command's index.
    stored: [AtomicU64; 2],
}

impl Trap {
    pub(crate) fn panics(&self, at: At) {
        self.panics.store(at as u8, Ordering::SeqCst);
    }

    /// Calls hang there until it is told another place.
    pub(crate) fn hangs(&self, at: At) {
        let hanging = self.hanging.lock().unwrap();
        self.hangs.store(at as u8, Ordering::SeqCst);
        drop(hanging);
        self.released.notify_all();
    }

    /// Waits until a call hangs.
    pub(crate) fn caught(&self) {
        until("call that hangs", || (*self.hanging.lock().unwrap() > 0).then_some(()));
    }

    fn check(&self, here: At) {
        assert_ne!(self.panics.load(Ordering::SeqCst), here as u8, "planned");
        if self.hangs.load(Ordering::SeqCst) == here as u8 {
            let mut hanging = self.hanging.lock().unwrap();
            *hanging += 1;
            while self.hangs.load(Ordering::SeqCst) == here as u8 {
                hanging = self.released.wait(hanging).unwrap();
            }
            *hanging -= 1;
        }
    }
}

/// A state machine that has a trap.
pub(crate) trait Trapped: Machine<Command = u64, Output = u64, Query = (), Answer = u64> {
    fn with(trap: &Arc<Trap>) -> Self;
}

fn write_count(count: u64, out: &mut dyn Write) -> Result<(), MachineError> {
    Ok(out.write_all(&count.to_le_bytes())?)
}

fn read_count(input: &mut dyn Read) -> Result<u64, MachineError> {
    let mut word = [0; 8];
    input.read_exact(&mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// In memory, with exclusive access.
#[derive(Debug)]
pub(crate) struct Counter {
    count: u64,
    trap: Arc<Trap>,
}

impl Trapped for Counter {
    fn with(trap: &Arc<Trap>) -> Self {
        Self { count: 0, trap: Arc::clone(trap) }
    }
}

impl StateMachine for Counter {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _: Index, value: u64) -> Result<u64, MachineError> {
        self.trap.check(At::Apply);
        self.count += value;
        Ok(self.count)
    }

    fn lookup(&self, (): ()) -> Result<u64, MachineError> {
        self.trap.check(At::Lookup);
        Ok(self.count)
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        self.trap.check(At::Save);
        write_count(self.count, out)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.trap.check(At::Recover);
        self.count = read_count(input)?;
        Ok(())
    }
}

/// In memory, with lookups and saves beside the applies.
#[derive(Debug)]
pub(crate) struct Beside(Counter);

impl Trapped for Concurrent<Beside> {
    fn with(trap: &Arc<Trap>) -> Self {
        Self(Beside(Counter::with(trap)))
    }
}

impl ConcurrentMachine for Beside {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = u64;
    type View = (u64, Arc<Trap>);

    fn apply(&mut self, index: Index, value: u64) -> Result<u64, MachineError> {
        self.0.apply(index, value)
    }

    fn view(&self) -> Self::View {
        (self.0.count, Arc::clone(&self.0.trap))
    }

    fn lookup((count, trap): &Self::View, (): ()) -> Result<u64, MachineError> {
        trap.check(At::Lookup);
        Ok(*count)
    }

    fn save((count, trap): &Self::View, out: &mut dyn Write) -> Result<(), MachineError> {
        trap.check(At::Save);
        write_count(*count, out)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.0.recover(input)
    }
}

/// With storage, which is as durable as the trap.
#[derive(Debug)]
pub(crate) struct Stored(Arc<Trap>);

impl Trapped for OnDisk<Stored> {
    fn with(trap: &Arc<Trap>) -> Self {
        Self(Stored(Arc::clone(trap)))
    }
}

impl Stored {
    fn stored(trap: &Trap) -> (u64, u64) {
        (trap.stored[0].load(Ordering::SeqCst), trap.stored[1].load(Ordering::SeqCst))
    }

    fn store(&self, count: u64, index: u64) {
        self.0.stored[0].store(count, Ordering::SeqCst);
        self.0.stored[1].store(index, Ordering::SeqCst);
    }
}

impl DiskMachine for Stored {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = u64;
    type Reader = Arc<Trap>;
    type View = ((u64, u64), Arc<Trap>);

    fn open(&mut self, _: &StopSignal) -> Result<Index, MachineError> {
        self.0.check(At::Open);
        Ok(Index(Self::stored(&self.0).1))
    }

    fn reader(&self) -> Arc<Trap> {
        Arc::clone(&self.0)
    }

    fn lookup(trap: &Arc<Trap>, (): ()) -> Result<u64, MachineError> {
        trap.check(At::Lookup);
        Ok(Self::stored(trap).0)
    }

    fn apply_batch(&mut self, commands: &mut Commands<'_, u64>, outputs: &mut Vec<u64>) -> Result<(), MachineError> {
        for (index, value) in commands {
            self.0.check(At::Apply);
            let count = Self::stored(&self.0).0 + value;
            self.store(count, index.0);
            outputs.push(count);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn prepare(&mut self) -> Result<Self::View, MachineError> {
        Ok((Self::stored(&self.0), Arc::clone(&self.0)))
    }

    fn save_part(((count, index), trap): &mut Self::View, out: &mut dyn Write) -> Result<SavePart, MachineError> {
        trap.check(At::Save);
        write_count(*count, out)?;
        write_count(*index, out)?;
        Ok(SavePart::Done)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.0.check(At::Recover);
        let (count, index) = (read_count(input)?, read_count(input)?);
        self.store(count, index);
        Ok(())
    }
}

/// One host with a thousand groups, each led by its only replica.
pub(crate) struct Hall<M> {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) host: NodeHost,
    /// By group. Those beyond the last group are for groups that a test starts.
    pub(crate) traps: Vec<Arc<Trap>>,
    kind: std::marker::PhantomData<fn() -> M>,
}

impl<M: Trapped> Hall<M> {
    pub(crate) fn open(threads: Threads) -> Self {
        Self::open_with(threads, Listeners::default())
    }

    pub(crate) fn open_with(threads: Threads, listeners: Listeners) -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let config = NodeHostConfig {
            data_dir: dir.path().join("data"),
            host_id: HostId(1),
            threads,
            apply_workers: 1,
            apply_stall_ms: 50,
            snapshot_stall_ms: 50,
            journal_segment_bytes: 4 << 20,
            journal_bytes_max: 64 << 20,
            payload_bytes_max: 1 << 20,
            ..NodeHostConfig::default()
        };
        let host = NodeHost::open_with(config, listeners).expect("opens");
        let traps: Vec<_> = (0..GROUPS + 10).map(|_| Arc::<Trap>::default()).collect();
        let members = || ReplicaStart::bootstrap([(ReplicaId(1), HostId(1))]);
        let specs = (1..=GROUPS).map(|g| (members(), Self::config(g), M::with(&traps[g as usize])));
        host.start_replicas(specs).expect("start");
        Self { dir, host, traps, kind: std::marker::PhantomData }
    }

    pub(crate) fn config(group: u64) -> GroupConfig {
        GroupConfig {
            group: GroupId(group),
            replica: ReplicaId(1),
            election_timeout_ms: 200,
            heartbeat_interval_ms: 30,
            ..GroupConfig::default()
        }
    }

    pub(crate) fn group(&self, group: u64) -> Group<M> {
        self.host.group(GroupId(group)).unwrap()
    }

    pub(crate) fn trap(&self, group: u64) -> &Arc<Trap> {
        &self.traps[group as usize]
    }

    /// Adds one in each of these groups, all at once.
    pub(crate) fn add_one(&self, groups: impl Iterator<Item = u64>) -> Vec<u64> {
        let pending: Vec<_> = groups.map(|g| self.group(g).propose(1, PATIENCE).unwrap()).collect();
        pending.into_iter().map(|p| p.wait().expect("a sound group")).collect()
    }

    /// A directory for the export of a group.
    pub(crate) fn export_dir(&self, group: u64) -> std::path::PathBuf {
        let dir = self.dir.path().join(format!("export-{group}"));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Exports a group.
    pub(crate) fn export(&self, group: u64) -> Result<SnapshotOutcome, RequestError> {
        let options = SnapshotOptions::export_to(self.export_dir(group));
        self.group(group).request_snapshot(options, PATIENCE)?.wait()
    }

    /// Begins `new` from the export of `group`: what recovers there.
    pub(crate) fn begin_from(&self, group: u64, new: u64) -> Group<M> {
        let exported = std::fs::read_dir(self.export_dir(group)).unwrap().next().expect("exported").unwrap().path();
        let dir = if exported.is_dir() { exported } else { self.export_dir(group) };
        let members = FirstMembers::voters([(ReplicaId(1), HostId(1))]);
        let machine = || M::with(self.trap(new));
        self.host.start_replica(ReplicaStart::from_snapshot(dir, members), Self::config(new), machine).expect("starts")
    }

    pub(crate) fn close(self) {
        self.host.close(Duration::from_secs(10)).expect("closes in order");
    }
}
