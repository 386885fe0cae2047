//! A group of cores on a table: nothing happens that a test does not ask for.

use longboat_raft::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const MS: u64 = 1_000_000;
pub const ELECTION: u64 = 100 * MS;
pub const HEARTBEAT: u64 = 10 * MS;

/// A batch on its way to a node's disk.
pub struct Batch {
    pub persist: Option<Persist>,
    pub token: PersistToken,
    pub held: Vec<Message>,
}

/// What a node's disk holds.
#[derive(Clone, Default)]
pub struct Disk {
    pub hard_state: HardState,
    pub start: LogPos,
    pub runs: Vec<Run>,
    pub membership: Membership,
    /// A snapshot that the state machine began from again, with the log as it was, and its membership.
    pub recovered: Option<SnapshotMeta>,
    /// What was lost and not made up for yet.
    pub guard: Guard,
}

impl Disk {
    pub fn write(&mut self, persist: &Persist) {
        if let Some(meta) = &persist.install {
            self.start = meta.pos;
            self.membership = meta.membership.clone();
            self.runs.clear();
            (self.guard, self.recovered) = (Guard::None, None);
        }
        if let Some(from) = persist.cut_tail {
            self.runs.retain(|r| r.first() < from);
            if let Some(run) = self.runs.pop() {
                let last = run.last().min(from.prev());
                self.runs.push(run.slice(run.first()..=last));
            }
        }
        for run in &persist.runs {
            assert_eq!(run.first(), self.last().index.next(), "the disk is given a gap or an overlap");
            self.runs.push(run.clone());
        }
        self.hard_state = persist.hard_state;
    }

    pub fn last(&self) -> LogPos {
        self.runs.last().map_or(self.start, |r| LogPos::new(r.term(), r.last()))
    }

    pub fn restored(&self) -> Restored {
        let mut terms: Vec<LogPos> = Vec::new();
        for run in &self.runs {
            if terms.last().is_none_or(|t| t.term < run.term()) {
                terms.push(LogPos::new(run.term(), run.first()));
            }
        }
        let recovered = self.recovered.as_ref().filter(|r| r.pos.index > self.start.index);
        Restored {
            hard_state: self.hard_state,
            membership: recovered.map_or_else(|| self.membership.clone(), |r| r.membership.clone()).into(),
            start: self.start,
            last: self.last(),
            terms,
            runs: self.runs.clone(),
            applied: recovered.map_or(self.start.index, |r| r.pos.index),
            guard: self.guard,
            ..Restored::default()
        }
    }
}

pub struct Node {
    pub core: Core,
    pub disk: Disk,
    /// Batches are kept in `batches` until the test completes them.
    pub slow_disk: bool,
    pub batches: VecDeque<Batch>,
    /// Everything applied: (index, term, kind, payload).
    pub applied: Vec<(u64, u64, EntryKind, Vec<u8>)>,
    pub reads: Vec<ReadReady>,
    pub refused: Vec<RefusedForward>,
    pub closed: Vec<ClosedForwards>,
    pub fetches: Vec<Fetch>,
    pub snapshots_wanted: Vec<ReplicaId>,
    pub events: Vec<Event>,
    pub installs: Vec<SnapshotMeta>,
    pub recovers: Vec<SnapshotMeta>,
    pub violation: Option<Violation>,
}

impl Node {
    pub fn payloads(&self) -> Vec<String> {
        let commands = self.applied.iter().filter(|a| a.2 == EntryKind::Command);
        commands.map(|a| String::from_utf8(a.3.clone()).unwrap()).collect()
    }
}

pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub net: VecDeque<Message>,
    pub cut: BTreeSet<(u64, u64)>,
    /// Messages that are lost on their way, besides those over a cut.
    pub lost: fn(&Message) -> bool,
    pub now: Time,
    /// Snapshots are there as soon as they are wanted, at what is applied, and travel like messages.
    pub auto_snapshots: bool,
    pub configs: BTreeMap<u64, CoreConfig>,
}

pub fn id(n: u64) -> ReplicaId {
    ReplicaId(n)
}

pub fn config(n: u64) -> CoreConfig {
    CoreConfig {
        replica: id(n),
        seed: n,
        election_timeout_nanos: ELECTION,
        heartbeat_interval_nanos: HEARTBEAT,
        pre_vote: false,
        check_quorum: false,
        step_down_on_removal: false,
        see_off_removed: false,
        ..CoreConfig::default()
    }
}

pub fn voters(ids: &[u64]) -> Membership {
    Membership::from_voters(ids.iter().map(|n| (id(*n), Member { host: HostId(*n), ..Member::default() })))
}

pub fn commands(list: &[&str]) -> RunBuilder {
    let mut chunk = RunBuilder::new();
    for (i, text) in list.iter().enumerate() {
        chunk.push(EntryKind::Command, i as u64, text.as_bytes());
    }
    chunk
}

/// One run of commands with a given place.
pub fn run(term: u64, first: u64, list: &[&str]) -> Run {
    commands(list).seal(Term(term), Index(first), Origin::default())
}

pub fn pos(term: u64, index: u64) -> LogPos {
    LogPos::new(Term(term), Index(index))
}

pub fn message(from: u64, to: u64, term: u64, body: Body) -> Message {
    Message { from: id(from), to: id(to), term: Term(term), body }
}

pub fn append(from: u64, to: u64, term: u64, prev: LogPos, commit: u64, runs: &[Run]) -> Message {
    message(from, to, term, Body::Append { prev, commit: Index(commit), runs: runs.iter().cloned().collect() })
}

impl Cluster {
    pub fn new(members: &[u64]) -> Self {
        Self::with(members, |_| {})
    }

    pub fn with(members: &[u64], tune: impl Fn(&mut CoreConfig)) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            net: VecDeque::new(),
            cut: BTreeSet::new(),
            lost: |_| false,
            now: Time(1),
            auto_snapshots: false,
            configs: BTreeMap::new(),
        };
        for n in members {
            let mut config = config(*n);
            tune(&mut config);
            cluster.add(config, Disk { membership: voters(members), ..Disk::default() });
        }
        cluster
    }

    pub fn add(&mut self, config: CoreConfig, disk: Disk) {
        let n = config.replica.0;
        let core = Core::new(config.clone(), disk.restored(), self.now).unwrap();
        self.configs.insert(n, config);
        let node = Node {
            core,
            disk,
            slow_disk: false,
            batches: VecDeque::new(),
            applied: Vec::new(),
            reads: Vec::new(),
            refused: Vec::new(),
            closed: Vec::new(),
            fetches: Vec::new(),
            snapshots_wanted: Vec::new(),
            events: Vec::new(),
            installs: Vec::new(),
            recovers: Vec::new(),
            violation: None,
        };
        self.nodes.insert(n, node);
    }

    /// A node whose log and hard state are given.
    pub fn add_with_log(&mut self, n: u64, members: &[u64], term: u64, commit: u64, runs: &[Run]) {
        let hard_state = HardState { term: Term(term), vote: ReplicaId::ZERO, commit: Index(commit) };
        let disk = Disk { hard_state, runs: runs.to_vec(), membership: voters(members), ..Disk::default() };
        self.add(config(n), disk);
        self.end_round(n);
    }

    pub fn core(&mut self, n: u64) -> &mut Core {
        &mut self.nodes.get_mut(&n).unwrap().core
    }

    pub fn node(&mut self, n: u64) -> &mut Node {
        self.nodes.get_mut(&n).unwrap()
    }

    /// Ends the node's round: early messages leave, the batch goes to the disk.
    pub fn end_round(&mut self, n: u64) {
        loop {
            let now = self.now;
            let node = self.nodes.get_mut(&n).unwrap();
            let mut out = Output::default();
            node.core.take_output(now, &mut out);
            if out.is_empty() {
                return;
            }
            self.net.extend(out.early);
            if let Some(meta) = out.install {
                node.core.applied(meta.pos.index);
                node.installs.push(meta);
            }
            if let Some(meta) = out.recover {
                node.core.applied(meta.pos.index);
                (node.disk.guard, node.disk.recovered) = (Guard::None, Some(meta.clone()));
                node.recovers.push(meta);
            }
            for run in &out.committed {
                node.applied.extend(run.entries().map(|e| (e.index.0, e.term.0, e.kind, e.payload.to_vec())));
            }
            if let Some(last) = out.committed.last() {
                node.core.applied(last.last());
            }
            node.reads.extend(out.reads);
            node.refused.extend(out.refused);
            node.closed.extend(out.closed);
            node.fetches.extend(out.fetches);
            for to in &out.snapshots_wanted {
                let (core, auto) = (&mut node.core, self.auto_snapshots);
                let index = core.applied_index();
                let pos = LogPos::new(core.term_at(index).unwrap(), index);
                let meta = SnapshotMeta { pos, membership: core.membership().clone() };
                if auto {
                    core.snapshot_sending(*to, pos);
                    self.net.push_back(message(n, to.0, core.term().0, Body::Snapshot(Box::new(meta))));
                }
            }
            node.snapshots_wanted.extend(out.snapshots_wanted);
            node.events.extend(out.events);
            match out.token {
                Some(token) => node.batches.push_back(Batch { persist: out.persist, token, held: out.held }),
                None => assert!(out.persist.is_none() && out.held.is_empty()),
            }
            if node.slow_disk {
                continue;
            }
            while self.complete(n) {}
        }
    }

    /// The node's oldest batch becomes durable. Does not end the round. False if there was none.
    pub fn complete(&mut self, n: u64) -> bool {
        let node = self.nodes.get_mut(&n).unwrap();
        let Some(batch) = node.batches.pop_front() else {
            return false;
        };
        if let Some(persist) = &batch.persist {
            node.disk.write(persist);
        }
        node.core.persisted(batch.token).unwrap();
        self.net.extend(batch.held);
        true
    }

    pub fn complete_all(&mut self, n: u64) {
        while self.complete(n) {}
        self.end_round(n);
    }

    /// Gives a message to its addressee and ends that round.
    pub fn give(&mut self, message: Message) {
        let (to, now) = (message.to.0, self.now);
        let Some(node) = self.nodes.get_mut(&to).filter(|n| n.violation.is_none()) else {
            return;
        };
        if let Err(violation) = node.core.step(now, message) {
            node.violation = Some(violation);
            return;
        }
        self.end_round(to);
    }

    /// Delivers until nothing is on its way; messages over a cut are lost.
    pub fn settle(&mut self) {
        for n in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.end_round(n);
        }
        let mut steps = 0;
        while let Some(message) = self.net.pop_front() {
            steps += 1;
            assert!(steps < 100_000, "messages without end");
            if !self.cut.contains(&(message.from.0, message.to.0)) && !(self.lost)(&message) {
                self.give(message);
            }
        }
    }

    /// A new replica that knows nothing, as a host that is told to join makes it; snapshots are there when they are wanted.
    pub fn join(&mut self, n: u64, tune: impl Fn(&mut CoreConfig)) {
        self.auto_snapshots = true;
        let mut config = config(n);
        tune(&mut config);
        self.add(config, Disk::default());
    }

    /// As [`Self::change`], until nothing is on its way and new members have been heard of.
    pub fn change_through(&mut self, n: u64, change: ConfigChange) {
        self.change(n, change).unwrap();
        self.settle();
        self.pass(3 * HEARTBEAT);
    }

    pub fn isolate(&mut self, n: u64) {
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.cut.insert((n, other));
            self.cut.insert((other, n));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    pub fn campaign(&mut self, n: u64) {
        let now = self.now;
        self.core(n).campaign(now);
        self.settle();
    }

    /// `n` leads and everybody knows.
    pub fn elect(&mut self, n: u64) {
        self.campaign(n);
        assert_eq!(self.core(n).role(), Role::Leader, "{n} was to lead");
    }

    pub fn propose(&mut self, n: u64, list: &[&str]) -> Result<Proposed, Refused> {
        let now = self.now;
        let origin = Origin { replica: id(n), start: 7 };
        self.core(n).propose(now, commands(list), origin, ProposeOptions::default())
    }

    pub fn write(&mut self, n: u64, list: &[&str]) {
        self.propose(n, list).unwrap();
        self.settle();
    }

    pub fn change(&mut self, n: u64, change: ConfigChange) -> Result<Proposed, Refused> {
        let now = self.now;
        let origin = Origin { replica: id(n), start: 7 };
        self.core(n).propose_change(now, change, 1, origin, ProposeOptions::default())
    }

    /// Time passes for everybody, in steps of a heartbeat.
    pub fn pass(&mut self, nanos: u64) {
        let end = self.now.plus_nanos(nanos);
        while self.now < end {
            self.now = self.now.plus_nanos(HEARTBEAT).min(end);
            for n in self.nodes.keys().copied().collect::<Vec<_>>() {
                let now = self.now;
                self.core(n).advance(now);
            }
            self.settle();
        }
    }

    /// The node loses its memory and what its disk had not completed.
    pub fn restart(&mut self, n: u64) {
        let disk = self.node(n).disk.clone();
        let config = self.configs[&n].clone();
        self.add(config, disk);
        self.end_round(n);
    }

    /// As [`Self::restart`], and the disk is as slow as it was.
    pub fn restart_slow(&mut self, n: u64) {
        let (slow, applied) = (self.node(n).slow_disk, std::mem::take(&mut self.node(n).applied));
        let disk = self.node(n).disk.clone();
        let config = self.configs[&n].clone();
        self.add(config, disk);
        let node = self.node(n);
        (node.slow_disk, node.applied) = (slow, applied);
        self.end_round(n);
    }

    /// The node takes a snapshot of all that it has applied and forgets the log before it.
    pub fn compact(&mut self, n: u64) {
        let node = self.nodes.get_mut(&n).unwrap();
        let index = node.core.applied_index();
        if index <= node.disk.start.index || index > node.disk.last().index {
            return;
        }
        node.core.compact(index);
        if node.core.start().index != index || node.core.durable() < index {
            // The log was reset to a snapshot, and that is not durable yet.
            return;
        }
        node.disk.start = node.core.start();
        node.disk.membership = node.core.membership().clone();
        node.disk.runs.retain(|r| r.last() > index);
        if let Some(run) = node.disk.runs.first_mut()
            && run.first() <= index
        {
            *run = run.slice(index.next()..=run.last());
        }
    }

    /// Answers all cold reads of the node from its disk.
    pub fn serve_fetches(&mut self, n: u64) {
        for fetch in std::mem::take(&mut self.node(n).fetches) {
            let node = self.node(n);
            let within = node.disk.runs.iter().filter(|r| r.last() >= fetch.lo && r.first() <= fetch.hi);
            let runs: Vec<Run> = within.map(|r| r.slice(r.first().max(fetch.lo)..=r.last().min(fetch.hi))).collect();
            let found = runs.first().is_some_and(|r| r.first() == fetch.lo);
            node.core.fetched(fetch.ticket, if found { Ok(runs) } else { Err(Compacted) });
            self.end_round(n);
        }
    }

    /// What is on its way of the kind that `pick` tells, and stays there.
    pub fn flying(&self, pick: impl Fn(&Message) -> bool) -> usize {
        self.net.iter().filter(|m| pick(m)).count()
    }

    pub fn leaders(&self) -> Vec<u64> {
        let leads = |n: &Node| n.core.role() == Role::Leader;
        self.nodes.iter().filter(|(_, n)| leads(n)).map(|(id, _)| *id).collect()
    }
}
