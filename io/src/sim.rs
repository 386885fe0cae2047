//! The simulated disk: a file system in memory with the three faults that matter to a log, on a seed.
//!
//! - *Process kill*: open handles die, the page cache survives; a write that was under way may be in it in part.
//! - *Power loss*: of what was not synced, any subset of sectors survives; names that were made, changed or removed
//!   since their directory was synced may be either way.
//! - *Failed sync*: reported once; the pages stay readable and look clean, later syncs succeed without writing them, and
//!   a power loss takes them. Only writing them again helps.
//!
//! Submitted writes complete at a simulated time: [`SimDisk::set_now`] tells it, [`SimDisk::next_completion`] says what
//! to wait for. Blocking calls take no time. One disk per simulated host; nothing here reads a clock or the machine's
//! random numbers, so equal seeds and calls give equal outcomes.

use crate::disk::SharedDisk;
use longboat_raft::Time;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod content;
mod process;
mod sectors;
mod stopping;
mod tree;

pub use stopping::StoppingDisk;

use content::Content;
use process::SimProcess;
use tree::Tree;

/// How a simulated disk behaves.
#[derive(Clone, Copy, Debug)]
pub struct SimDiskConfig {
    /// What survives a power loss or not as a whole, in bytes: 512 or 4,096.
    pub sector_bytes: usize,
    /// How long a submitted write takes at least, in nanoseconds.
    pub latency_nanos: u64,
    /// How much longer it may take, drawn for each write, in nanoseconds.
    pub jitter_nanos: u64,
    /// What all files together may hold, in bytes.
    pub capacity_bytes: u64,
}

impl Default for SimDiskConfig {
    fn default() -> Self {
        Self { sector_bytes: 512, latency_nanos: 80_000, jitter_nanos: 120_000, capacity_bytes: u64::MAX }
    }
}

/// The calls that a fault can be injected into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimOp {
    /// Reading from a file.
    Read,
    /// Writing to a file, submitted or not. A failed write leaves the file as it was.
    Write,
    /// Syncing a file, submitted or not: what was to be synced becomes clean and is not on the disk.
    Sync,
    /// Making, reserving, renaming or removing files and directories, or syncing a directory.
    Metadata,
}

/// A host's disk, as its simulator holds it. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug)]
struct State {
    config: SimDiskConfig,
    rng: Rng,
    now: Time,
    stalled_until: Time,
    tree: Tree,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    /// Which process is alive; handles of earlier ones are dead.
    process: u64,
    locked: Vec<PathBuf>,
    /// A name or a last handle went: there may be files that nothing leads to.
    is_loose: bool,
    faults: Vec<Fault>,
    /// Faults that struck.
    struck: u64,
    /// Calls that changed something, so far.
    changes: u64,
    /// After this many the machine stops in the middle of the next.
    stop_after: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    op: SimOp,
    skip: u64,
    error: Injected,
}

/// An error to be made of it.
#[derive(Clone, Copy, Debug)]
enum Injected {
    Kind(io::ErrorKind),
    /// Of the operating system.
    Code(i32),
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, config: SimDiskConfig) -> Self {
        assert!(matches!(config.sector_bytes, 512 | 4096), "sectors of {} bytes", config.sector_bytes);
        let state = State {
            config,
            rng: Rng(seed),
            now: Time::ZERO,
            stalled_until: Time::ZERO,
            tree: Tree::default(),
            files: BTreeMap::new(),
            next_file: 0,
            process: 0,
            locked: Vec::new(),
            is_loose: false,
            faults: Vec::new(),
            struck: 0,
            changes: 0,
            stop_after: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The disk as the process that runs now sees it. After a kill or a power loss it is dead, and the next process gets
    /// its own.
    pub fn process(&self) -> SharedDisk {
        let process = self.state.lock().process;
        Arc::new(SimProcess { state: Arc::clone(&self.state), process })
    }

    /// A copy that goes its own way from here on, to be killed or to lose its power: handles stay with the original,
    /// and a write that is under way can't be polled on the copy.
    pub fn fork(&self) -> Self {
        let mut state = self.state.lock().clone();
        state.process += 1;
        state.is_loose = true;
        for file in state.files.values_mut() {
            file.handles = 0;
        }
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Draws later decisions from another seed, so that forks of one disk differ.
    pub fn reseed(&self, seed: u64) {
        self.state.lock().rng = Rng(seed);
    }

    /// The time that was told last.
    pub fn now(&self) -> Time {
        self.state.lock().now
    }

    /// Tells the time. Never back.
    pub fn set_now(&self, now: Time) {
        let mut state = self.state.lock();
        assert!(now >= state.now, "time went back from {:?} to {now:?}", state.now);
        state.now = now;
    }

    /// When the next submitted write completes, if one is under way and was not polled since it did.
    pub fn next_completion(&self) -> Option<Time> {
        self.state.lock().files.values().filter_map(Content::completes_at).min()
    }

    /// No submitted write completes before this moment, those under way included.
    pub fn stall_until(&self, until: Time) {
        let mut state = self.state.lock();
        state.stalled_until = state.stalled_until.max(until);
        for file in state.files.values_mut() {
            file.delay_until(until);
        }
    }

    /// Fails one call of this kind with `kind`, after `skip` others went well.
    pub fn inject(&self, op: SimOp, skip: u64, kind: io::ErrorKind) {
        self.state.lock().faults.push(Fault { op, skip, error: Injected::Kind(kind) });
    }

    /// As [`SimDisk::inject`], with an error of the operating system: 5 is EIO, 24 is EMFILE.
    pub fn inject_code(&self, op: SimOp, skip: u64, code: i32) {
        self.state.lock().faults.push(Fault { op, skip, error: Injected::Code(code) });
    }

    /// Whether a fault that was injected has struck.
    pub fn has_faulted(&self) -> bool {
        self.state.lock().struck > 0
    }

    /// Forgets what was injected and has not struck yet.
    pub fn clear_faults(&self) {
        self.state.lock().faults.clear();
    }

    /// Frees the memory of all files. Nothing is to be done with the disk any more, whoever still holds a part of it.
    pub fn discard(&self) {
        let mut state = self.state.lock();
        state.end_process();
        state.files.clear();
        state.tree = Tree::default();
    }

    /// How long submitted writes take from here on, in nanoseconds.
    pub fn set_delays(&self, latency_nanos: u64, jitter_nanos: u64) {
        let mut state = self.state.lock();
        (state.config.latency_nanos, state.config.jitter_nanos) = (latency_nanos, jitter_nanos);
    }

    /// What all files together may hold from here on, in bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().config.capacity_bytes = bytes;
    }

    /// Lets all files together hold no more than they do now and `left` bytes.
    pub fn fill_to(&self, left: u64) {
        let mut state = self.state.lock();
        state.config.capacity_bytes = state.used_bytes() + left;
    }

    /// Calls that changed something, so far.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Lets `changes` more calls change something; the next one comes half-way and everything after it fails, until
    /// the process is killed or the power is lost.
    pub fn stop_after(&self, changes: u64) {
        let mut state = self.state.lock();
        state.stop_after = Some(state.changes + changes);
    }

    /// Whether the machine has stopped.
    pub fn is_stopped(&self) -> bool {
        self.state.lock().is_stopped()
    }

    /// Kills the process: its handles die and its locks are released; the page cache stays.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        let State { files, rng, .. } = &mut *state;
        for file in files.values_mut() {
            file.interrupt(rng);
        }
        state.end_process();
    }

    /// Cuts the power: what was not synced survives in part.
    pub fn power_loss(&self) {
        let mut state = self.state.lock();
        let State { files, rng, tree, .. } = &mut *state;
        // Some losses take nearly all that was not synced, others nearly nothing.
        let survives = 64 * rng.below(5);
        for file in files.values_mut() {
            file.power_loss(rng, survives);
        }
        tree.power_loss(rng, survives);
        state.end_process();
        state.drop_unreachable();
    }

    /// The files there are, sorted by name.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state.lock().tree.file_names()
    }

    /// Files that the process has open, each as often as it is.
    pub fn handles(&self) -> usize {
        self.state.lock().files.values().map(|f| f.handles).sum()
    }

    /// The bytes of a file, as a process would read them.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        Ok(state.files[&state.tree.file(path)?].seen().to_vec())
    }

    /// The bytes that a file would have if the power went now and nothing under way were written.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn durable_contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let id = state.tree.file(path)?;
        Ok(state.files[&id].durable().to_vec())
    }

    /// Changes bytes that the disk holds behind everybody's back: bit rot, or an older copy that comes back.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.tree.file(path)?;
        state.files.get_mut(&id).expect("a named file exists").damage(change);
        Ok(())
    }

    /// A number that stands for all that is on the disk: equal runs have equal ones.
    pub fn digest(&self) -> u64 {
        let state = self.state.lock();
        let mut hash = 0xcbf2_9ce4_8422_2325;
        for path in state.tree.file_names() {
            let id = state.tree.file(&path).expect("it was just listed");
            for bytes in [path.as_os_str().as_encoded_bytes(), state.files[&id].seen()] {
                hash = bytes.iter().fold(hash, |h: u64, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
            }
        }
        hash
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("SimDisk").field("now", &state.now).field("files", &state.files.len()).finish_non_exhaustive()
    }
}

impl State {
    fn end_process(&mut self) {
        self.process += 1;
        self.is_loose = true;
        self.locked.clear();
        self.stop_after = None;
        for file in self.files.values_mut() {
            file.end_process();
        }
    }

    /// Frees the files that no name, durable or not, and no handle leads to.
    fn drop_unreachable(&mut self) {
        if !std::mem::take(&mut self.is_loose) {
            return;
        }
        let reachable = self.tree.files();
        self.files.retain(|id, file| file.handles > 0 || reachable.contains(id));
    }

    fn is_stopped(&self) -> bool {
        self.stop_after.is_some_and(|n| self.changes > n)
    }

    /// Whether an injected fault strikes this call.
    fn fault(&mut self, op: SimOp) -> io::Result<()> {
        let Some(at) = self.faults.iter().position(|f| f.op == op) else { return Ok(()) };
        if self.faults[at].skip > 0 {
            self.faults[at].skip -= 1;
            return Ok(());
        }
        self.struck += 1;
        Err(match self.faults.remove(at).error {
            Injected::Kind(kind) => kind.into(),
            Injected::Code(code) => io::Error::from_raw_os_error(code),
        })
    }

    /// Counts a call that changes something. An error means that the machine stops in the middle of it.
    fn change(&mut self) -> io::Result<()> {
        self.changes += 1;
        if self.is_stopped() { Err(stopped()) } else { Ok(()) }
    }

    fn used_bytes(&self) -> u64 {
        self.files.values().map(|f| f.seen().len() as u64).sum()
    }

    /// Refuses a file that would grow beyond what the disk holds.
    fn room(&self, id: u64, len: u64) -> io::Result<()> {
        let more = len.saturating_sub(self.files[&id].seen().len() as u64);
        if more > 0 && self.used_bytes() + more > self.config.capacity_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// When a write that is submitted now completes.
    fn completion(&mut self) -> Time {
        let jitter = if self.config.jitter_nanos == 0 { 0 } else { self.rng.below(self.config.jitter_nanos) };
        self.now.plus_nanos(self.config.latency_nanos + jitter).max(self.stalled_until)
    }
}

fn stopped() -> io::Error {
    io::Error::other("the simulated machine has stopped")
}

/// splitmix64: small, seeded, good enough to draw faults from.
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not zero.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True `of_256` times out of 256.
    fn chance(&mut self, of_256: u64) -> bool {
        self.below(256) < of_256
    }
}

#[cfg(test)]
mod tests;
