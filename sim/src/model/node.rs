//! One replica of the model: the shipped core, what its disk has, and a driver that does what the engine does.
//!
//! The driver, as the engine's step worker and log writer: after every input the core's output is taken; early messages
//! leave; a batch goes to the disk with its token and held messages; when the disk has it the messages leave, and then
//! the core is told. A disk is *prompt*, which makes batches durable at once, unless an action says that it stalls; then
//! batches wait, in order, for actions of their own. The state machine is prompt always. A crash loses memory and of the batches
//! that wait all but a prefix of them, which may be empty: written or not, nobody was told.

use super::forwarded::Forwarded;
use super::hash::Hash128;
use super::state::Packet;
use longboat_raft::{
    Body, Compacted, ConfigChange, Core, CoreConfig, EntryKind, Event, Fetch, HardState, Index, LogPos, Membership,
    Message, Output, Persist, ReadReady, ReplicaId, Restored, Role, Run, SnapshotMeta, Term, Time,
};
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};

/// More than two election timeouts, in nanoseconds of the model's clock.
pub(crate) const LONG: u64 = 1 << 42;
/// The election timeout, in nanoseconds of the model's clock: more than all heartbeats of a history add up to.
pub(crate) const ELECTION: u64 = 1 << 40;
/// The heartbeat interval, in nanoseconds of the model's clock.
pub(crate) const HEARTBEAT: u64 = 1;
/// Visits after which a replica that still has something to say is taken to say it for ever.
const VISITS_MAX: usize = 50;

/// What makes an entry the entry that it is, its place apart. Payloads count for membership changes only: a witness has
/// no others, and commands are told apart by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark {
    pub(crate) term: Term,
    pub(crate) what: u64,
    pub(crate) config: bool,
}

/// What a disk has.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    /// The newest snapshot, or the bootstrap's membership at the log's very start.
    pub(crate) base: SnapshotMeta,
    /// The place before the log's first entry.
    pub(crate) start: LogPos,
    pub(crate) runs: Vec<Run>,
    /// All entries that the log stands for, from the very first one.
    pub(crate) history: Vec<Mark>,
}

/// A batch on its way to the disk.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Batch {
    persist: Option<Persisted>,
    held: Vec<Message>,
}

#[derive(Clone, Debug, Hash)]
struct Persisted {
    hard: HardState,
    cut_tail: Option<Index>,
    runs: Vec<Run>,
    install: Option<SnapshotMeta>,
    /// The log that it makes durable.
    history: Vec<Mark>,
}

/// A replica.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) core: Core,
    pub(crate) disk: Disk,
    pub(crate) flying: VecDeque<Batch>,
    /// The first so many of `flying` are on the disk, their messages have left, and the core was not told yet.
    pub(crate) written: usize,
    /// All entries of the core's log, from the very first one, compacted or not.
    pub(crate) history: Vec<Mark>,
    pub(crate) fetches: VecDeque<Fetch>,
    /// It was told that it is not needed any more, and its owner has deleted it.
    pub(crate) gone: bool,
    /// The votes that have left, by term: in each to one replica only, whatever the replica has forgotten since.
    pub(crate) promised: Vec<(Term, ReplicaId)>,
    /// The commands that it has forwarded.
    pub(crate) forwarded: Forwarded,
    /// Not part of the state, see the module `model`.
    pub(crate) clock: u64,
}

/// What one input made a replica say.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) packets: Vec<Packet>,
    pub(crate) reads: Vec<ReadReady>,
    pub(crate) wrong: Option<String>,
}

impl Said {
    pub(crate) fn wrong(&mut self, what: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }
}

/// What the driver is told of the model that it is part of.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Drop runs from memory as soon as they are durable and applied.
    pub(crate) trim: bool,
    /// The membership changes that were seen, by the hash of their payload.
    pub(crate) changes: HashMap<u64, ConfigChange>,
}

impl Node {
    pub(crate) fn new(config: CoreConfig, membership: Membership) -> Self {
        let base = SnapshotMeta { pos: LogPos::ZERO, membership };
        let disk =
            Disk { hard: HardState::default(), base, start: LogPos::ZERO, runs: Vec::new(), history: Vec::new() };
        let core = Core::new(config, disk.restored(), Time::ZERO).expect("an empty log hangs together");
        Self {
            core,
            disk,
            flying: VecDeque::new(),
            written: 0,
            history: Vec::new(),
            fetches: VecDeque::new(),
            gone: false,
            promised: Vec::new(),
            forwarded: Forwarded::default(),
            clock: 0,
        }
    }

    /// The hash of all that decides what it will do and say.
    pub(crate) fn hash(&self) -> [u64; 2] {
        let Self { core, disk, flying, written, history, fetches, gone, promised, forwarded, clock: _ } = self;
        let mut hash = Hash128::new();
        core.replica().hash(&mut hash);
        core.hash_timeless(&mut hash);
        disk.hash(&mut hash);
        flying.hash(&mut hash);
        (written, history, gone, promised, forwarded).hash(&mut hash);
        for Fetch { ticket, lo, hi, bytes_max: _ } in fetches {
            (ticket, lo, hi).hash(&mut hash);
        }
        hash.write_usize(fetches.len());
        hash.value()
    }

    pub(crate) fn now(&self) -> Time {
        Time(self.clock)
    }

    pub(crate) fn id(&self) -> ReplicaId {
        self.core.replica()
    }

    /// Ends a visit: takes what the core put out. With `stall`, or while batches wait, batches wait too.
    pub(crate) fn settle(&mut self, rules: &mut Rules, stall: bool, brought: Option<&[Mark]>, said: &mut Said) {
        let prompt = !stall && self.flying.is_empty();
        for _ in 0..VISITS_MAX {
            let mut out = Output::default();
            self.core.take_output(self.now(), &mut out);
            if out.is_empty() {
                self.trim(rules, said);
                return;
            }
            self.collect(rules, out, brought, said);
            while prompt && said.wrong.is_none() && !self.flying.is_empty() {
                self.write(said);
                self.tell(said);
            }
            if said.wrong.is_some() {
                return;
            }
        }
        said.wrong(|| format!("replica {} never stops talking to itself", self.id()));
    }

    fn trim(&mut self, rules: &Rules, said: &mut Said) {
        if !rules.trim {
            return;
        }
        self.core.trim();
        let mut again = Output::default();
        self.core.take_output(self.now(), &mut again);
        if !again.is_empty() {
            said.wrong(|| format!("dropping runs from memory made replica {} say {again:?}", self.id()));
        }
    }

    fn collect(&mut self, rules: &mut Rules, out: Output, brought: Option<&[Mark]>, said: &mut Said) {
        let mut before = std::mem::take(&mut self.history);
        if let Some(meta) = &out.install {
            let history = brought.filter(|h| h.len() as u64 >= meta.pos.index.0);
            match history {
                Some(history) => before = history[..meta.pos.index.0 as usize].to_vec(),
                None => said.wrong(|| format!("replica {} installs a snapshot that nobody sent: {meta:?}", self.id())),
            }
            self.core.applied(meta.pos.index);
            self.forwarded.skipped();
        }
        self.history = history(&self.core, before, rules, said);
        for run in &out.committed {
            let (lo, hi) = (run.first().0 as usize, run.last().0 as usize);
            let durable = hi <= self.disk.history.len()
                && hi <= self.history.len()
                && self.disk.history[lo - 1..hi] == self.history[lo - 1..hi];
            if !durable {
                said.wrong(|| format!("replica {} applies {run:?}, which its disk does not have", self.id()));
            }
            self.core.applied(run.last());
        }
        let id = self.id();
        out.refused.iter().for_each(|refused| self.forwarded.refused(id, refused));
        out.closed.into_iter().for_each(|closed| self.forwarded.closed(closed));
        self.forwarded.handed(id, &self.history, self.core.handed());
        // When a message is made is when it must be true: one that waits for the disk may be late when it leaves.
        out.early.iter().chain(&out.held).for_each(|message| self.check_sent(message, said));
        for message in out.early {
            self.release(message, said);
        }
        if out.token.is_some() {
            let history = &self.history;
            let persist = out.persist.map(|p| Persisted::of(p, history));
            self.flying.push_back(Batch { persist, held: out.held });
        } else if !out.held.is_empty() || out.persist.is_some() {
            said.wrong(|| format!("replica {} gives a batch without a token", self.core.replica()));
        }
        out.snapshots_wanted.iter().for_each(|to| self.send_snapshot(*to, said));
        self.fetches.extend(out.fetches);
        self.gone |= out.events.iter().any(|e| matches!(e, Event::Removed { .. }));
        said.reads.extend(out.reads);
    }

    /// The oldest batch that is not on the disk gets there, and its messages leave.
    pub(crate) fn write(&mut self, said: &mut Said) {
        let batch = self.flying[self.written].clone();
        self.written += 1;
        if let Some(persist) = &batch.persist {
            self.disk.write(self.core.replica(), persist, said);
        }
        batch.held.into_iter().for_each(|message| self.release(message, said));
    }

    /// The core is told of the oldest batch that is on the disk.
    pub(crate) fn tell(&mut self, said: &mut Said) {
        self.written -= 1;
        self.flying.pop_front();
        match self.core.persisted_oldest() {
            Ok(true) => {}
            Ok(false) => said.wrong(|| format!("replica {} knows of no batch under way", self.id())),
            Err(violation) => said.wrong(|| violation.to_string()),
        }
    }

    /// A member needs what was compacted: the newest snapshot file goes, or one made for it of what is applied.
    fn send_snapshot(&mut self, to: ReplicaId, said: &mut Said) {
        let applied = self.core.applied_index();
        let meta = if self.disk.base.pos.index.is_zero() {
            let term = self.core.term_at(applied).filter(|_| applied.0 > 0);
            term.map(|term| SnapshotMeta {
                pos: LogPos::new(term, applied),
                membership: self.core.membership().clone(),
            })
        } else {
            Some(self.disk.base.clone())
        };
        let Some(meta) = meta else { return self.core.snapshot_finished(to, false) };
        self.core.snapshot_sending(to, meta.pos);
        let history = self.history[..meta.pos.index.0 as usize].to_vec();
        let body = Body::Snapshot(Box::new(meta));
        let message = Message { from: self.core.replica(), to, term: self.core.term(), body };
        said.packets.push(Packet::Snapshot(message, history));
    }

    /// A message leaves. What it promises must be on the disk.
    fn release(&mut self, message: Message, said: &mut Said) {
        let (id, disk) = (self.core.replica(), &self.disk);
        let granted = match &message.body {
            Body::VoteResponse { pre: false, granted: true } => Some(message.to),
            Body::RequestVote { pre: false, .. } => Some(id),
            _ => None,
        };
        if let Some(to) = granted {
            let kept = disk.hard.term > message.term || (disk.hard.term == message.term && disk.hard.vote == to);
            if !kept {
                let what = format!("a vote for {to} in term {}; its disk has {:?}", message.term, disk.hard);
                said.wrong(|| format!("replica {id} gives {what}"));
            }
            match self.promised.iter().find(|(term, _)| *term == message.term) {
                Some((term, other)) if *other != to => {
                    said.wrong(|| format!("replica {id} votes twice in term {term}: for {other} and for {to}"));
                }
                Some(_) => {}
                None => self.promised.push((message.term, to)),
            }
        }
        if let Body::AppendAccepted { matched } = &message.body {
            let kept = disk.hard.term > message.term
                || (disk.hard.term == message.term && disk.history.len() as u64 >= matched.0);
            if !kept {
                let (term, len) = (message.term, disk.history.len());
                said.wrong(|| {
                    format!(
                        "replica {id} acknowledges {matched} in term {term}; its disk ends at {len} in term {}",
                        disk.hard.term
                    )
                });
            }
        }
        said.packets.push(match &message.body {
            Body::WitnessSnapshot(meta) => {
                let history = self.history[..meta.pos.index.0 as usize].to_vec();
                Packet::Snapshot(message, history)
            }
            _ => Packet::Raft(message),
        });
    }

    /// What a leader may not say, durable or not.
    fn check_sent(&self, message: &Message, said: &mut Said) {
        let (core, to) = (&self.core, message.to);
        match &message.body {
            Body::Append { runs, .. } => {
                let whole = runs.iter().any(|r| !r.is_stripped() && r.entries().any(|e| e.kind == EntryKind::Command));
                if whole && core.membership().is_witness(to) {
                    said.wrong(|| format!("witness {to} is sent payloads: {runs:?}"));
                }
            }
            Body::TimeoutNow if core.role() == Role::Leader => {
                let matched = core.progress(to).map(|p| p.matched());
                if matched != Some(core.last().index) {
                    said.wrong(|| format!("{to} is asked to take over with {matched:?} of {:?}", core.last()));
                }
            }
            Body::ForwardsClosed { term, .. } if (core.role(), core.term()) != (Role::Leader, *term) => {
                said.wrong(|| format!("{} in term {} speaks for the leader of {term}", core.replica(), core.term()));
            }
            _ => {}
        }
    }

    /// The process ends, and another one recovers what the disk has: `kept` of the batches under way got there.
    pub(crate) fn crash(&mut self, rules: &mut Rules, config: CoreConfig, kept: usize, said: &mut Said) {
        for batch in self.flying.iter().skip(self.written).take(kept) {
            if let Some(persist) = &batch.persist {
                self.disk.write(config.replica, persist, said);
            }
        }
        self.flying.clear();
        self.fetches.clear();
        self.forwarded.forget();
        self.written = 0;
        self.history = self.disk.history.clone();
        match Core::new(config, self.disk.restored(), self.now()) {
            Ok(core) => self.core = core,
            Err(violation) => return said.wrong(|| violation.to_string()),
        }
        let (commit, hard) = (self.core.commit(), self.disk.hard);
        if commit < hard.commit || self.core.term() != hard.term || self.core.vote() != hard.vote {
            said.wrong(|| format!("replica {} came back as {:?} from {hard:?}", self.id(), self.core.hard_state()));
        }
        self.settle(rules, false, None, said);
    }

    /// Whether a snapshot of what is applied would be news.
    pub(crate) fn may_compact(&self) -> bool {
        self.flying.is_empty() && self.core.applied_index() > self.disk.base.pos.index
    }

    /// Takes a snapshot of all that is applied, and forgets the log before it.
    pub(crate) fn compact(&mut self) {
        let index = self.core.applied_index();
        let term = self.core.term_at(index).expect("what is applied since the last snapshot is in the log");
        let pos = LogPos::new(term, index);
        self.core.compact(index);
        let disk = &mut self.disk;
        disk.base = SnapshotMeta { pos, membership: self.core.membership().clone() };
        disk.start = pos;
        disk.hard = self.core.hard_state();
        disk.runs.retain(|r| r.last() > index);
        if let Some(run) = disk.runs.first_mut() {
            *run = run.slice(run.first().max(index.next())..=run.last());
        }
    }

    /// The oldest cold read is done.
    pub(crate) fn serve_fetch(&mut self) {
        let Some(fetch) = self.fetches.pop_front() else { return };
        let within = self.disk.runs.iter().filter(|r| r.last() >= fetch.lo && r.first() <= fetch.hi);
        let runs: Vec<Run> = within.map(|r| r.slice(r.first().max(fetch.lo)..=r.last().min(fetch.hi))).collect();
        let found = runs.first().is_some_and(|r| r.first() == fetch.lo);
        self.core.fetched(fetch.ticket, if found { Ok(runs) } else { Err(Compacted) });
    }
}

impl Persisted {
    fn of(persist: Persist, history: &[Mark]) -> Self {
        let Persist { hard_state: hard, cut_tail, runs, install } = persist;
        Self { hard, cut_tail, runs: runs.into_vec(), install, history: history.to_vec() }
    }
}

impl Disk {
    fn last(&self) -> LogPos {
        self.runs.last().map_or(self.start, |r| LogPos::new(r.term(), r.last()))
    }

    fn write(&mut self, id: ReplicaId, persist: &Persisted, said: &mut Said) {
        if let Some(meta) = &persist.install {
            self.start = meta.pos;
            self.base = meta.clone();
            self.runs.clear();
        }
        if let Some(from) = persist.cut_tail {
            self.runs.retain(|r| r.first() < from);
            if let Some(run) = self.runs.last_mut() {
                *run = run.slice(run.first()..=run.last().min(from.prev()));
            }
        }
        for run in &persist.runs {
            if run.first() != self.last().index.next() {
                said.wrong(|| format!("replica {id} writes {run:?} after {:?}", self.last()));
            }
            self.runs.push(run.clone());
        }
        self.hard = persist.hard;
        self.history.clone_from(&persist.history);
        let marks = self.runs.iter().flat_map(marks).map(|(mark, _)| mark);
        let from = self.start.index.0 as usize;
        if from > self.history.len() || !marks.eq(self.history[from..].iter().copied()) {
            said.wrong(|| format!("the disk of replica {id} does not have the log that was sealed"));
        }
    }

    fn restored(&self) -> Restored {
        let mut terms: Vec<LogPos> = Vec::new();
        for run in &self.runs {
            if terms.last().is_none_or(|t| t.term < run.term()) {
                terms.push(LogPos::new(run.term(), run.first()));
            }
        }
        Restored {
            hard_state: self.hard,
            membership: self.base.membership.clone().into(),
            start: self.start,
            last: self.last(),
            terms,
            runs: self.runs.clone(),
            applied: self.base.pos.index,
            ..Restored::default()
        }
    }
}

/// The marks of a run's entries, with the payloads of membership changes.
fn marks(run: &Run) -> impl Iterator<Item = (Mark, Option<&[u8]>)> {
    let origin = run.origin().replica;
    run.entries().map(move |entry| {
        let config = entry.kind == EntryKind::Config;
        let mut hash = what(entry.kind, entry.sequence, origin);
        if config {
            hash.write(entry.payload);
        }
        (Mark { term: entry.term, what: hash.finish(), config }, config.then_some(entry.payload))
    })
}

fn what(kind: EntryKind, sequence: u64, origin: ReplicaId) -> Hash128 {
    let mut hash = Hash128::new();
    (kind, sequence, origin.0).hash(&mut hash);
    hash
}

/// What the mark of a command says of it.
pub(crate) fn command(sequence: u64, origin: ReplicaId) -> u64 {
    what(EntryKind::Command, sequence, origin).finish()
}

/// The whole log of a core whose entries before those in memory are as `before` has them.
fn history(core: &Core, mut before: Vec<Mark>, rules: &mut Rules, said: &mut Said) -> Vec<Mark> {
    let first = core.runs_in_memory().next().map_or(core.last().index.next(), Run::first);
    let kept = first.prev().0 as usize;
    if before.len() < kept {
        said.wrong(|| format!("replica {} has a log from {first} on, after {} entries", core.replica(), before.len()));
        return before;
    }
    before.truncate(kept);
    for run in core.runs_in_memory() {
        for (mark, payload) in marks(run) {
            if let Some(change) = payload.and_then(|p| ConfigChange::decode(p).ok()) {
                rules.changes.entry(mark.what).or_insert(change);
            }
            before.push(mark);
        }
    }
    before
}
