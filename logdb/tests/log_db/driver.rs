//! Drives a store through steps beside the model, and says what may be found after a crash.

use crate::model::{self, ModelGroup, ModelGroups};
use crate::support::*;
use crate::workload::{Action, Step, reseal};
use longboat_io::JobState;
use longboat_logdb::{GroupState, LogDb, LogError, OpenError, ReadError, Update};

/// A store and the model of all that was submitted to it.
pub(crate) struct Driver<'a> {
    pub(crate) host: &'a mut dyn Host,
    pub(crate) log: Option<Box<dyn LogDb>>,
    /// What the store holds after each number of batches.
    pub(crate) history: Vec<ModelGroups>,
    /// This many batches are durable for certain.
    pub(crate) durable: usize,
    /// The batches before this opening.
    base: usize,
    /// The most segments that were archived at any time, and whether one was let go.
    pub(crate) archived_max: u64,
    pub(crate) archived_freed: bool,
}

/// Why a run ended early.
#[derive(Debug)]
pub(crate) enum Stopped {
    #[allow(dead_code, reason = "shown when a test fails")]
    Open(OpenError),
    #[allow(dead_code, reason = "shown when a test fails")]
    Log(LogError),
    #[allow(dead_code, reason = "shown when a test fails")]
    Read(ReadError),
}

impl From<LogError> for Stopped {
    fn from(e: LogError) -> Self {
        Self::Log(e)
    }
}

/// What disks say that have stopped: the simulated one, and RocksDB's when its power is gone.
const STOPPED: [&str; 2] = ["the simulated machine has stopped", "the power is gone"];

/// What was read. A machine that has stopped reads nothing; any other failure is the store's.
fn unless_stopped(read: Result<Vec<Seen>, ReadError>) -> Result<Vec<Seen>, Stopped> {
    read.map_err(|e| match e {
        ReadError::Failed(why) if STOPPED.iter().any(|stopped| why.contains(stopped)) => {
            Stopped::Read(ReadError::Failed(why))
        }
        e => panic!("durable and kept, but {e}"),
    })
}

impl<'a> Driver<'a> {
    pub(crate) fn new(host: &'a mut dyn Host) -> Self {
        Self {
            host,
            log: None,
            history: vec![ModelGroups::new()],
            durable: 0,
            base: 0,
            archived_max: 0,
            archived_freed: false,
        }
    }

    /// A store that holds this already.
    pub(crate) fn resumed(host: &'a mut dyn Host, groups: ModelGroups) -> Self {
        Self { history: vec![groups], ..Self::new(host) }
    }

    pub(crate) fn groups(&self) -> &ModelGroups {
        self.history.last().expect("starts with the empty store")
    }

    /// Opens the store, which must hold what was submitted up to some batch that is not before the last durable one.
    pub(crate) fn open(&mut self) -> Result<(), Stopped> {
        self.log = None;
        let (log, _, states) = self.host.open().map_err(Stopped::Open)?;
        let held = (self.durable..self.history.len()).find(|k| expected(&self.history[*k]) == states);
        let Some(held) = held else {
            panic!(
                "after {} durable and {} submitted batches the store holds\n{states:#?}\nand not\n{:#?}",
                self.durable,
                self.history.len() - 1,
                expected(&self.history[self.durable])
            );
        };
        self.history.truncate(held + 1);
        (self.base, self.durable) = (held, held);
        let reader = log.reader();
        for state in states.iter().filter(|s| !s.removed && s.quarantined.is_none()) {
            let (first, last) = (state.start.index.0 + 1, state.last.index.0);
            let seen = unless_stopped(read(&*reader, state.group.0, first, last, 1 << 16))?;
            assert_eq!(seen, model_entries(&self.groups()[&state.group]), "group {}", state.group);
        }
        self.log = Some(log);
        Ok(())
    }

    pub(crate) fn step(&mut self, step: &Step) -> Result<(), Stopped> {
        match step.action(self.groups()) {
            Action::Write(batch) => {
                self.submit(batch);
                self.drain()?;
            }
            Action::Queue(batch) => {
                self.submit(batch);
                if step.a.is_multiple_of(2) {
                    self.poll()?;
                }
            }
            Action::Housekeep => self.housekeep(u32::MAX)?,
            Action::HousekeepPartly(steps) => self.housekeep(steps)?,
            Action::Idle => self.log().idle()?,
            Action::Reopen { close } => {
                if close {
                    self.log().close()?;
                    self.durable = self.history.len() - 1;
                } else {
                    self.drain()?;
                }
                self.open()?;
            }
            Action::Read(a, b) => self.read(a, b)?,
        }
        Ok(())
    }

    pub(crate) fn submit(&mut self, batch: Vec<Update>) {
        let mut groups = self.groups().clone();
        model::apply(&mut groups, &batch);
        self.history.push(groups);
        let seq = self.log().submit(batch);
        assert_eq!(seq.0 as usize + self.base, self.history.len() - 1);
    }

    fn poll(&mut self) -> Result<bool, Stopped> {
        let progress = self.log().poll()?;
        let durable = self.base + progress.durable_through.0 as usize;
        assert!(durable >= self.durable && durable < self.history.len());
        self.durable = durable;
        Ok(progress.in_flight)
    }

    pub(crate) fn drain(&mut self) -> Result<(), Stopped> {
        while self.poll()? {
            self.host.advance();
        }
        assert_eq!(self.durable, self.history.len() - 1);
        Ok(())
    }

    /// Runs a job, and submits again what keeps it from settling.
    pub(crate) fn housekeep(&mut self, steps: u32) -> Result<(), Stopped> {
        if let Some(mut job) = self.log().background_job() {
            for _ in 0..steps {
                if job.step(1000) == JobState::Done {
                    break;
                }
            }
            let archived = self.log().stats().archived_segments;
            self.archived_freed |= archived < self.archived_max;
            self.archived_max = self.archived_max.max(archived);
        }
        let pinned = self.log().pinned();
        if !pinned.is_empty() {
            self.drain()?;
            let batch: Vec<_> = pinned.iter().map(|id| reseal(&self.groups()[id])).collect();
            self.submit(batch);
            self.drain()?;
        }
        self.log().poll()?;
        Ok(())
    }

    /// Reads a range of some group, where nothing is under way.
    fn read(&mut self, a: u32, b: u32) -> Result<(), Stopped> {
        self.drain()?;
        let reader = self.log().reader();
        let groups = self.groups();
        let Some(g) = groups.values().filter(|g| !g.entries.is_empty()).nth(a as usize % groups.len().max(1)) else {
            return Ok(());
        };
        let (first, last) = (g.state.start.index.0 + 1, g.last().index.0);
        let lo = first + u64::from(b) % (last - first + 1);
        let hi = lo + u64::from(a) % (last - lo + 1);
        let all = model_entries(g);
        let wanted = &all[(lo - first) as usize..=(hi - first) as usize];
        let seen = unless_stopped(read(&*reader, g.state.group.0, lo, hi, a as usize % 4000))?;
        assert_eq!(seen, wanted, "group {} from {lo} to {hi}", g.state.group);
        Ok(())
    }

    fn log(&mut self) -> &mut dyn LogDb {
        &mut **self.log.as_mut().expect("open")
    }
}

fn expected(groups: &ModelGroups) -> Vec<GroupState> {
    groups.values().map(ModelGroup::expected).collect()
}

fn model_entries(g: &ModelGroup) -> Vec<Seen> {
    let payload = |run: &longboat_raft::Run| run.entries().next().expect("one entry").payload.to_vec();
    g.entries.iter().map(|(i, run)| (run.term().0, *i, payload(run))).collect()
}
