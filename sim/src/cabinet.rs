//! The same list on storage of its own: what it has not synced is lost with the power, and it says when it is given an entry
//! twice.

use crate::hash::Hash64;
use crate::machine::{Add, Seen};
use crate::oracle::Oracle;
use longboat_raft::{GroupId, HostId, Index, Run};
use longboat_rsm::{
    AnyCompletion, AnyReads, Commands, DiskMachine, DynMachine, Lookups, Machine, MachineError, MachineKind, OnDisk,
    SavePart, SaveView, StopSignal, StorageState,
};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// Serial numbers that a view writes in one part.
const PART: usize = 100;

/// What is stored at one moment, always whole.
#[derive(Clone, Debug, Default)]
struct Sheet {
    serials: Vec<u64>,
    chain: u64,
    /// The index of the last command.
    applied: u64,
}

impl Sheet {
    fn push(&mut self, serial: u64) {
        self.serials.push(serial);
        let mut hash = Hash64::new();
        self.chain = hash.word(self.chain).word(serial).value();
    }
}

/// The storage of one replica: it outlives the lives of its process.
#[derive(Debug, Default)]
pub struct Cabinet {
    seen: Sheet,
    durable: Sheet,
    /// It syncs by itself every so many commands, and tells how far that is.
    flush_every: u64,
    in_use: bool,
    /// How often it was opened.
    opened: u64,
}

impl Cabinet {
    /// Storage that syncs by itself every so many commands; 0 for never.
    pub fn new(flush_every: u64) -> Shared {
        Arc::new(Mutex::new(Self { flush_every, ..Self::default() }))
    }

    /// The process that uses it has ended, and with `power` what was not synced is gone.
    pub fn stop(&mut self, power: bool) {
        self.in_use = false;
        if power {
            self.seen = self.durable.clone();
        }
    }
}

/// Held by the host and by the state machine that uses it.
pub type Shared = Arc<Mutex<Cabinet>>;

/// The state machine.
#[derive(Debug)]
pub struct Filed {
    cabinet: Shared,
    ballast: usize,
    /// Which opening of the storage was its own; zero before that.
    opened: u64,
}

impl Drop for Filed {
    fn drop(&mut self) {
        let mut cabinet = self.cabinet.lock();
        // That of an earlier life of the process may be dropped when its successor uses the storage already.
        if self.opened == cabinet.opened {
            cabinet.in_use = false;
        }
    }
}

/// The state at one moment, and how much of it is written.
#[derive(Debug)]
pub struct View {
    sheet: Sheet,
    at: usize,
    ballast: usize,
}

fn user(text: String) -> MachineError {
    MachineError::user(text)
}

impl DiskMachine for Filed {
    type Command = Add;
    type Output = u64;
    type Query = ();
    type Answer = Seen;
    type Reader = Shared;
    type View = View;

    fn open(&mut self, _stop: &StopSignal) -> Result<Index, MachineError> {
        let mut cabinet = self.cabinet.lock();
        if std::mem::replace(&mut cabinet.in_use, true) {
            return Err(user("two state machines use one storage".to_owned()));
        }
        cabinet.opened += 1;
        self.opened = cabinet.opened;
        Ok(Index(cabinet.seen.applied))
    }

    fn reader(&self) -> Shared {
        Arc::clone(&self.cabinet)
    }

    fn lookup(reader: &Shared, (): ()) -> Result<Seen, MachineError> {
        Ok(Seen { count: reader.lock().seen.serials.len() as u64 })
    }

    fn apply_batch(&mut self, commands: &mut Commands<'_, Add>, outputs: &mut Vec<u64>) -> Result<(), MachineError> {
        let cabinet = &mut *self.cabinet.lock();
        for (index, command) in commands {
            if index.0 <= cabinet.seen.applied {
                return Err(user(format!("{index} is given, {} is applied", cabinet.seen.applied)));
            }
            cabinet.seen.push(command.serial);
            cabinet.seen.applied = index.0;
            let count = cabinet.seen.serials.len() as u64;
            if cabinet.flush_every > 0 && count.is_multiple_of(cabinet.flush_every) {
                cabinet.durable = cabinet.seen.clone();
            }
            outputs.push(count);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        let cabinet = &mut *self.cabinet.lock();
        cabinet.durable = cabinet.seen.clone();
        Ok(())
    }

    fn durable_applied(&self) -> Option<Index> {
        let cabinet = self.cabinet.lock();
        (cabinet.flush_every > 0).then_some(Index(cabinet.durable.applied))
    }

    fn prepare(&mut self) -> Result<View, MachineError> {
        Ok(View { sheet: self.cabinet.lock().seen.clone(), at: 0, ballast: self.ballast })
    }

    fn save_part(view: &mut View, out: &mut dyn io::Write) -> Result<SavePart, MachineError> {
        let View { sheet, at, ballast } = view;
        if *at == 0 {
            out.write_all(&sheet.applied.to_le_bytes())?;
            out.write_all(&(sheet.serials.len() as u64).to_le_bytes())?;
        }
        let end = sheet.serials.len().min(*at + PART);
        for serial in &sheet.serials[*at..end] {
            out.write_all(&serial.to_le_bytes())?;
        }
        *at = end;
        if end < sheet.serials.len() {
            return Ok(SavePart::More);
        }
        out.write_all(&vec![sheet.chain as u8; *ballast])?;
        Ok(SavePart::Done)
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        let mut words = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
        let mut next = || words.next().ok_or_else(|| user("the snapshot ends early".to_owned()));
        let mut sheet = Sheet { applied: next()?, ..Sheet::default() };
        let count = next()?;
        for _ in 0..count {
            sheet.push(next()?);
        }
        let ballast = &bytes[16 + 8 * count as usize..];
        if ballast.len() != self.ballast || ballast.iter().any(|b| *b != sheet.chain as u8) {
            return Err(user("the snapshot's ballast is not what was saved".to_owned()));
        }
        let cabinet = &mut *self.cabinet.lock();
        (cabinet.seen, cabinet.durable) = (sheet.clone(), sheet);
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        let cabinet = self.cabinet.lock();
        let mut hash = Hash64::new();
        Some(hash.word(cabinet.seen.chain).word(cabinet.seen.serials.len() as u64).value())
    }
}

/// The state machine under observation.
pub struct WatchedDisk {
    inner: Box<dyn DynMachine>,
    oracle: Arc<Oracle>,
    group: GroupId,
    host: HostId,
}

impl WatchedDisk {
    /// The machine of `group` on `host`, over this storage.
    pub fn new(oracle: Arc<Oracle>, group: GroupId, host: HostId, cabinet: &Shared, ballast: usize) -> Self {
        let filed = Filed { cabinet: Arc::clone(cabinet), ballast, opened: 0 };
        Self { inner: OnDisk(filed).into_dyn(), oracle, group, host }
    }
}

impl DynMachine for WatchedDisk {
    fn kind(&self) -> MachineKind {
        self.inner.kind()
    }

    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        self.oracle.applying(self.host, self.group, run);
        // What it has already is handed to it again after a restart. Its state is then that of a later index.
        let ahead = self.inner.storage().is_some_and(|s| s.last_command > run.last());
        self.inner.apply_run(run, results)?;
        if ahead {
            self.oracle.passed(self.host, self.group, run.last());
        } else {
            self.oracle.applied(self.host, self.group, run.last(), self.inner.state_hash());
        }
        Ok(())
    }

    fn lookup(&self, reads: Box<dyn AnyReads>) {
        self.inner.lookup(reads);
    }

    fn lookups(&self) -> Option<Arc<dyn Lookups>> {
        self.inner.lookups()
    }

    fn prepare(&mut self) -> Result<Option<Box<dyn SaveView>>, MachineError> {
        self.inner.prepare()
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        self.inner.save(out)
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        self.inner.recover(input)?;
        self.oracle.recovered(self.host, self.group, self.inner.state_hash());
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        self.inner.state_hash()
    }

    fn open(&mut self, stop: &StopSignal) -> Result<Index, MachineError> {
        self.inner.open(stop)
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        self.inner.sync()
    }

    fn storage(&self) -> Option<StorageState> {
        self.inner.storage()
    }

    fn resume_at(&mut self, index: Index, last_command: Index) -> Result<(), MachineError> {
        self.inner.resume_at(index, last_command)?;
        self.oracle.recovered(self.host, self.group, self.inner.state_hash());
        Ok(())
    }

    fn recovered_at(&mut self, index: Index, last_command: Index) {
        self.inner.recovered_at(index, last_command);
    }
}
