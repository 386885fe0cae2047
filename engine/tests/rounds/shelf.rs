//! An on-disk state machine whose storage the test holds.

use longboat_raft::Index;
use longboat_rsm::{Commands, DiskMachine, MachineError, SavePart, StopSignal};
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is written for each value, so that a state takes several chunks.
const VALUE_BYTES: usize = 4096;

/// What a test does as storage is opened.
pub type Hook = Box<dyn FnOnce() + Send>;

/// What the storage holds, and what was done with it.
#[derive(Default)]
pub struct Stored {
    pub values: Vec<u64>,
    pub applied: u64,
    pub open: bool,
    /// It says that all is durable, so that no save has to sync it.
    pub is_durable: bool,
    pub when_opened: Option<Hook>,
    /// The next views can't be made.
    pub fails: usize,
    /// Views that were made.
    pub views: usize,
    /// States that it was replaced by.
    pub recovered: usize,
    /// Views that there are, and the most that there were at once.
    live: Arc<AtomicUsize>,
    pub live_max: usize,
}

pub type Storage = Arc<Mutex<Stored>>;

/// The state machine.
pub struct Shelf {
    storage: Storage,
}

impl Shelf {
    pub fn on(storage: &Storage) -> Self {
        Self { storage: Arc::clone(storage) }
    }
}

/// The state at one moment.
#[derive(Debug)]
pub struct View {
    values: Vec<u64>,
    applied: u64,
    at: usize,
    live: Arc<AtomicUsize>,
}

impl Drop for View {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DiskMachine for Shelf {
    type Command = u64;
    type Output = usize;
    type Query = ();
    type Answer = Vec<u64>;
    type Reader = Storage;
    type View = View;

    fn open(&mut self, _stop: &StopSignal) -> Result<Index, MachineError> {
        let mut storage = self.storage.lock();
        assert!(!std::mem::replace(&mut storage.open, true), "opened by two at once");
        if let Some(hook) = storage.when_opened.take() {
            hook();
        }
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
        for (index, value) in commands {
            assert!(index.0 > storage.applied, "{index} is given after {}", storage.applied);
            storage.values.push(value);
            storage.applied = index.0;
            outputs.push(storage.values.len());
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn durable_applied(&self) -> Option<Index> {
        let storage = self.storage.lock();
        storage.is_durable.then_some(Index(storage.applied))
    }

    fn prepare(&mut self) -> Result<View, MachineError> {
        let mut storage = self.storage.lock();
        if storage.fails > 0 {
            storage.fails -= 1;
            return Err(MachineError::user("told to fail"));
        }
        storage.views += 1;
        storage.live_max = storage.live_max.max(storage.live.fetch_add(1, Ordering::Relaxed) + 1);
        let live = Arc::clone(&storage.live);
        Ok(View { values: storage.values.clone(), applied: storage.applied, at: 0, live })
    }

    fn save_part(view: &mut View, out: &mut dyn Write) -> Result<SavePart, MachineError> {
        if view.at == 0 {
            out.write_all(&view.applied.to_le_bytes())?;
        }
        let end = view.values.len().min(view.at + 16);
        for value in &view.values[view.at..end] {
            out.write_all(&value.to_le_bytes().repeat(VALUE_BYTES / 8))?;
        }
        view.at = end;
        Ok(if end == view.values.len() { SavePart::Done } else { SavePart::More })
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        let word = |b: &[u8]| u64::from_le_bytes(b[..8].try_into().unwrap());
        let mut storage = self.storage.lock();
        storage.applied = word(&bytes);
        storage.values = bytes[8..].chunks_exact(VALUE_BYTES).map(word).collect();
        storage.recovered += 1;
        Ok(())
    }
}
