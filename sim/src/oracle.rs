//! The checkers: told of everything as it happens, they remember what must never be contradicted.
//!
//! Checked: one leader per term; log matching over durable entries; leader completeness; a leader commits by counting in
//! its own term only; commits and applies rest on a durable quorum and on the own disk; equal state at equal index; nothing
//! leaves a host before what it rests on is durable; stores recover what was durable; no acknowledged write is lost, none
//! is applied twice, none that was refused is applied, and one that a session's client sent again has one answer; the history of each group is linearizable.
//!
//! The first violation is kept: what follows it is consequence.

mod imports;

use crate::client;
use crate::hash::{Hash64, chain, entry_hash};
use crate::machine::serial_of;
use crate::members::{self, History};
use crate::sessions::Table;
use crate::shadow::{Change, Fold, Mark, Shadow};
use bytes::Bytes;
use longboat_engine::GroupShared;
use longboat_engine::replica::Replica;
use longboat_logdb::{GroupState, Seq, Update};
use longboat_raft::{Body, EntryKind, GroupId, HostId, Index, LogPos, Membership, Message, ReplicaId, Role, Run, Term};
use longboat_rsm::{RequestError, packed};
use longboat_transport::wire;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

/// What became of a write, as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Refused(RequestError),
}

/// A committed entry.
#[derive(Clone, Copy, Debug)]
struct Committed {
    term: Term,
    entry: u64,
    chain: u64,
    /// The hash of the state after it, once a replica has stopped there.
    state: Option<u64>,
}

#[derive(Debug, Default)]
struct Group {
    /// Who its members were and are.
    history: History,
    /// The hosts on which its replica keeps no payloads.
    witnesses: BTreeSet<HostId>,
    /// The logs of replicas whose data was removed, as they were at last.
    graves: Vec<Fold>,
    /// Writes that are of one term or of none.
    terms: HashMap<u64, Term>,
    /// All entries that were ever applied, from index 1.
    committed: Vec<Committed>,
    /// The serials that these append, in order.
    list: Vec<u64>,
    listed: HashSet<u64>,
    writes: HashMap<u64, Fate>,
    /// What the log says of client sessions.
    sessions: Table,
    /// The longest list that a completed operation has seen.
    floor: u64,
    leaders: BTreeMap<Term, ReplicaId>,
    /// The hosts that led when they were last looked at, and in which term.
    leading: BTreeMap<HostId, Term>,
    /// The farthest commit of each term's leader.
    commits: BTreeMap<Term, LogPos>,
    /// The hash of the log through each durable entry that any host ever had.
    chains: HashMap<(Index, Term), u64>,
    shadows: BTreeMap<HostId, Shadow>,
    /// The index through which each host's state machine has applied; none while that is not known.
    applied: BTreeMap<HostId, Index>,
    /// The shadows of directories that were copied.
    copies: BTreeMap<HostId, Shadow>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<GroupId, Group>,
    violation: Option<String>,
    hash: Hash64,
}

/// The checkers of one simulation.
#[derive(Debug, Default)]
pub struct Oracle {
    state: Mutex<State>,
    /// The most journal segments that a host had archived.
    archived: AtomicU64,
}

impl Group {
    /// The replicas with this entry on their disks, now or until their data was removed.
    fn holders(&self, pos: LogPos) -> BTreeSet<ReplicaId> {
        let folds = self.shadows.values().map(|s| &s.durable).chain(&self.graves);
        folds.filter(|f| f.exists && f.holds(pos)).map(|f| f.replica).collect()
    }

    /// A host has less than it had. What it had counts as it was.
    fn forget(&mut self, host: HostId, now: Shadow) {
        let before = self.shadows.insert(host, now).unwrap_or_default();
        if before.durable.exists {
            self.graves.push(before.durable);
        }
        self.applied.remove(&host);
        self.leading.remove(&host);
    }

    fn committed_at(&self, index: Index) -> Option<&Committed> {
        self.committed.get((index.0 as usize).checked_sub(1)?)
    }

    /// The hash of the committed log through `pos`.
    fn chain_at(&self, pos: LogPos) -> Option<u64> {
        if pos.index.is_zero() {
            return Some(0);
        }
        self.committed_at(pos.index).filter(|c| c.term == pos.term).map(|c| c.chain)
    }

    /// The hash of the log that a snapshot at `pos` stands for on `host`. A witness is given what is committed, applied by somebody
    /// or not; its log has other sums, and is compared with nobody's.
    fn base_at(&self, host: HostId, pos: LogPos) -> Option<u64> {
        let for_witness = || {
            let known = self.commits.values().any(|commit| commit.index >= pos.index);
            (self.witnesses.contains(&host) && known && !self.holders(pos).is_empty()).then_some(0)
        };
        self.chain_at(pos).or_else(for_witness)
    }

    fn match_log(&mut self, host: HostId, written: &[(Index, Mark)]) -> Result<(), String> {
        // Without the payloads the log has other sums.
        if self.witnesses.contains(&host) {
            return Ok(());
        }
        for (index, mark) in written {
            let known = *self.chains.entry((*index, mark.term)).or_insert(mark.chain);
            if known != mark.chain {
                return Err(format!("log matching: host {host} has another log through {}/{index}", mark.term));
            }
        }
        Ok(())
    }

    fn made_durable(&mut self, host: HostId, seq: Seq) -> Result<(), String> {
        loop {
            let shadow = self.shadows.entry(host).or_default();
            let Some(change) = shadow.next_durable(seq) else { return Ok(()) };
            let mut fold = std::mem::take(&mut shadow.durable);
            if change.removes() {
                self.graves.push(fold.clone());
            }
            let written = fold.apply(&change, |pos| self.base_at(host, pos)).map_err(|e| format!("host {host} {e}"))?;
            self.shadows.entry(host).or_default().durable = fold;
            self.match_log(host, &written)?;
        }
    }

    fn recovered(&mut self, host: HostId, state: Option<&GroupState>) -> Result<(), String> {
        self.applied.remove(&host);
        self.leading.remove(&host);
        let mut shadow = std::mem::take(self.shadows.entry(host).or_default());
        if shadow.durable.exists && state.is_none_or(|s| s.removed) {
            self.graves.push(shadow.durable.clone());
        }
        let recovered = shadow.recovered(state, |pos| self.base_at(host, pos));
        self.shadows.insert(host, shadow);
        let written = recovered.map_err(|e| format!("durable state lost: host {host} {e}"))?;
        self.match_log(host, &written)
    }

    /// A message leaves `host`: what it rests on must be durable there.
    fn sent(&self, host: HostId, message: &Message) -> Result<(), String> {
        let unborn = Fold::default();
        let durable = match self.shadows.get(&host).map(|s| &s.durable) {
            Some(durable) if durable.replica == message.from => durable,
            Some(_) if self.graves.iter().all(|f| f.replica != message.from) => &unborn,
            _ => return Ok(()),
        };
        let (hard, last) = (durable.hard, durable.last());
        let early = |what: &str| {
            Err(format!(
                "not durable: host {host} sent {what} {message:?}; durable are {hard:?} and the log to {last:?}"
            ))
        };
        let later = hard.term > message.term;
        match &message.body {
            Body::RequestVote { pre: false, .. }
                if !later && (hard.term, hard.vote) != (message.term, message.from) =>
            {
                early("a vote request")
            }
            Body::VoteResponse { pre: false, granted: true }
                if !later && (hard.term, hard.vote) != (message.term, message.to) =>
            {
                early("a vote")
            }
            Body::VoteResponse { pre: false, .. } | Body::AppendRejected { .. } if hard.term < message.term => {
                early("a rejection")
            }
            // A later term's leader may have cut the log meanwhile; the same term's never cuts what was acknowledged.
            Body::AppendAccepted { matched } if !later && (hard.term < message.term || last.index < *matched) => {
                early("an acknowledgement")
            }
            _ => Ok(()),
        }
    }

    fn applying(&mut self, host: HostId, run: &Run) -> Result<(), String> {
        let origin = run.origin();
        if let Some(applied) = self.applied.get(&host)
            && run.first() != applied.next()
        {
            return Err(format!("host {host} applies {run:?} after {applied}"));
        }
        for entry in run.entries() {
            let pos = LogPos::new(entry.term, entry.index);
            let durable = self.shadows.get(&host).is_some_and(|s| s.durable.holds(pos));
            if !durable {
                return Err(format!("host {host} applies {pos:?}, which is not durable there"));
            }
            let hash = entry_hash(&entry, origin);
            match self.committed_at(entry.index) {
                Some(known) if (known.term, known.entry) == (entry.term, hash) => continue,
                Some(known) => {
                    return Err(format!(
                        "host {host} applies {pos:?}, another entry than {}'s applied before",
                        known.term
                    ));
                }
                None => {}
            }
            if entry.index.0 != self.committed.len() as u64 + 1 {
                return Err(format!("host {host} applies {pos:?}; so far {} were applied", self.committed.len()));
            }
            let holders = self.holders(pos);
            if !self.history.in_effect(entry.index).any(|m| members::is_quorum(m, &holders)) {
                let of = self.history.last();
                return Err(format!("{pos:?} is applied on host {host} and durable at {holders:?} only, of {of:?}"));
            }
            let before = self.committed.last().map_or(0, |c| c.chain);
            let chain = chain(before, entry.term.0, hash);
            self.committed.push(Committed { term: entry.term, entry: hash, chain, state: None });
            match entry.kind {
                EntryKind::Command if self.sessions.applies(entry.index, entry.session) => {
                    let unpacked = packed::unpack(&entry).map_err(|e| e.to_string())?;
                    let serial = serial_of(unpacked.as_deref().unwrap_or(entry.payload))
                        .ok_or("a command without a serial number")?;
                    self.listed(serial, entry.term)?;
                }
                EntryKind::Config => self.history.applied(entry.index, entry.payload)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn listed(&mut self, serial: u64, term: Term) -> Result<(), String> {
        if let Some(only) = self.terms.get(&serial)
            && *only != term
        {
            return Err(format!("write {serial} is applied in term {term}, it was for term {only} alone"));
        }
        match self.writes.get(&serial) {
            None => return Err(format!("write {serial} is applied, and nobody proposed it")),
            Some(Fate::Refused(error)) => {
                return Err(format!(
                    "write {serial} is applied, and its client was told that it never will be: {error}"
                ));
            }
            Some(Fate::Open) => {}
        }
        self.list.push(serial);
        if self.listed.insert(serial) { Ok(()) } else { Err(format!("write {serial} is applied twice")) }
    }

    fn state_at(&mut self, host: HostId, index: Index, state: u64) -> Result<(), String> {
        let Some(at) = (index.0 as usize).checked_sub(1) else { return Ok(()) };
        let known = *self.committed[at].state.get_or_insert(state);
        if known == state { Ok(()) } else { Err(format!("host {host} has another state than others at index {index}")) }
    }

    fn observe_leader(&mut self, replica: &Replica) -> Result<(), String> {
        let (id, term) = (replica.config.replica, replica.core.term());
        match self.leaders.insert(term, id) {
            None => self.check_complete(replica)?,
            Some(known) if known == id => {}
            Some(known) => return Err(format!("two leaders in term {term}: replicas {known} and {id}")),
        }
        let commit = replica.core.commit();
        let known = self.commits.values().map(|c| c.index).max().unwrap_or_default();
        // What a leader had committed when it was first seen was committed before it, unless nobody knew of it.
        let before = self.commits.get(&term).map_or(known, |c| c.index);
        let own = replica.core.term_at(commit).unwrap_or_default();
        if commit > before && own != term {
            return Err(format!("leader {id} of term {term} commits {commit}, an entry of term {own}, by counting"));
        }
        self.commits.insert(term, LogPos::new(own, commit));
        Ok(())
    }

    /// A new leader holds all that leaders of earlier terms have committed.
    fn check_complete(&self, replica: &Replica) -> Result<(), String> {
        let (id, term) = (replica.config.replica, replica.core.term());
        for pos in self.commits.range(..term).map(|c| c.1) {
            let has = pos.index < replica.core.start().index || replica.core.term_at(pos.index) == Some(pos.term);
            if !has {
                return Err(format!("leader completeness: {id} leads term {term} without the committed {pos:?}"));
            }
        }
        Ok(())
    }

    fn observe(&mut self, host: HostId, replica: &Replica) -> Result<(), String> {
        self.history.observe(host, replica.config.replica, replica.core.membership())?;
        let commit = replica.core.commit();
        if replica.core.role() == Role::Leader {
            self.observe_leader(replica)?;
            self.leading.insert(host, replica.core.term());
        } else if let Some(led) = self.leading.remove(&host)
            && replica.core.term_at(commit) == Some(led)
        {
            // It may have committed, and then stepped down, within one round.
            let known = self.commits.entry(led).or_default();
            *known = (*known).max(LogPos::new(led, commit));
        }
        let known = self.commits.values().map(|c| c.index).max().unwrap_or_default();
        if commit > known {
            return Err(format!("host {host} takes {commit} for committed, leaders have committed through {known}"));
        }
        if replica.core.is_quiet()
            && let Some(durable) = self.shadows.get(&host).map(|s| &s.durable)
            && (durable.hard.commit != commit
                || durable.last() != replica.core.last()
                || durable.last().index != commit)
        {
            let what = (durable.hard, durable.last());
            return Err(format!("host {host} is silent with a commit index of {commit}; durable are {what:?}"));
        }
        let applied = replica.shared.published.applied.load(Ordering::Relaxed);
        if applied > commit.0 {
            return Err(format!("host {host} has applied {applied}, its commit index is {commit}"));
        }
        Ok(())
    }
}

impl Oracle {
    fn with(&self, group: GroupId, check: impl FnOnce(&mut Group) -> Result<(), String>) {
        let mut state = self.state.lock();
        if let Err(what) = check(state.groups.entry(group).or_default()) {
            state.violation.get_or_insert_with(|| format!("group {group}: {what}"));
        }
    }

    /// A group, and its first members.
    pub fn group(&self, group: GroupId, first: Membership) {
        self.with(group, |g| {
            g.history = History::new(first);
            Ok(())
        });
    }

    /// Something that must not happen has happened.
    pub fn violate(&self, what: String) {
        self.state.lock().violation.get_or_insert(what);
    }

    /// A host's store has so many archived segments.
    pub fn archived(&self, segments: u64) {
        self.archived.fetch_max(segments, Ordering::Relaxed);
    }

    /// The most that any had.
    pub fn archived_max(&self) -> u64 {
        self.archived.load(Ordering::Relaxed)
    }

    /// The first violation, if there was one.
    pub fn violation(&self) -> Option<String> {
        self.state.lock().violation.clone()
    }

    /// Frees the memory of what is known of the groups.
    pub fn discard(&self) {
        self.state.lock().groups.clear();
    }

    /// Whether there was a violation.
    pub fn is_violated(&self) -> bool {
        self.state.lock().violation.is_some()
    }

    /// Adds to the hash of all that goes in and out.
    pub fn note(&self, words: &[u64]) {
        let mut state = self.state.lock();
        for word in words {
            state.hash.word(*word);
        }
    }

    /// Adds bytes to the hash of all that goes in and out.
    pub fn note_bytes(&self, bytes: &[u8]) {
        self.state.lock().hash.bytes(bytes);
    }

    /// The hash of all that went in and out.
    pub fn hash(&self) -> u64 {
        self.state.lock().hash.value()
    }

    /// A frame leaves `host`.
    pub fn sent(&self, host: HostId, frame: Bytes) {
        for incoming in wire::messages(frame) {
            match incoming {
                Ok(incoming) => self.with(incoming.group, |g| g.sent(host, &incoming.message)),
                Err(error) => self.violate(format!("host {host} sent a frame that can't be read: {error}")),
            }
        }
    }

    /// The store of `host` took a batch.
    pub fn submitted(&self, host: HostId, seq: Seq, batch: &[Update]) {
        for update in batch {
            let change = Change::of(seq, update);
            let mut state = self.state.lock();
            let (hard, runs) = (update.hard_state, &update.runs);
            state
                .hash
                .word(host.0)
                .word(seq.0)
                .word(update.group.0)
                .word(hard.term.0)
                .word(hard.vote.0)
                .word(hard.commit.0);
            state.hash.word(runs.first().map_or(0, |r| r.first().0)).word(runs.last().map_or(0, |r| r.last().0));
            let group = state.groups.entry(update.group).or_default();
            group.shadows.entry(host).or_default().submitted(change);
        }
    }

    /// The store of `host` reported its batches through `seq` durable.
    pub fn durable(&self, host: HostId, seq: Seq) {
        self.note(&[host.0, seq.0]);
        let groups: Vec<GroupId> = self.state.lock().groups.keys().copied().collect();
        for group in groups {
            self.with(group, |g| g.made_durable(host, seq));
        }
    }

    /// `host` has opened its store again and found this.
    pub fn recovered_store(&self, host: HostId, found: &[GroupState]) {
        let groups: Vec<GroupId> = self.state.lock().groups.keys().copied().collect();
        for group in groups {
            let state = found.iter().find(|s| s.group == group);
            self.with(group, |g| g.recovered(host, state));
        }
    }

    /// A host's directory is copied, to be put back later.
    pub fn copy(&self, host: HostId) {
        for group in self.state.lock().groups.values_mut() {
            group.copies.insert(host, group.shadows.get(&host).cloned().unwrap_or_default());
        }
    }

    /// The copy of a host's directory was put in its place: what it had is forgotten there.
    pub fn put_back(&self, host: HostId) {
        for group in self.state.lock().groups.values_mut() {
            let copy = group.copies.remove(&host).unwrap_or_default();
            group.forget(host, copy);
        }
    }

    /// A part of what a host had of a group is damaged, and it counts none of it any more.
    pub fn quarantined(&self, host: HostId, group: GroupId) {
        if let Some(group) = self.state.lock().groups.get_mut(&group) {
            group.forget(host, Shadow::default());
        }
    }

    /// A host's directory is lost.
    pub fn forgot(&self, host: HostId) {
        for group in self.state.lock().groups.values_mut() {
            group.forget(host, Shadow::default());
        }
    }

    /// A replica of `host` starts with an empty state machine.
    pub fn started(&self, host: HostId, group: GroupId) {
        self.with(group, |g| {
            g.applied.remove(&host);
            g.leading.remove(&host);
            Ok(())
        });
    }

    /// The state machine of `group` on `host` is given a run.
    pub fn applying(&self, host: HostId, group: GroupId, run: &Run) {
        self.with(group, |g| g.applying(host, run));
    }

    /// The state machine of `group` on `host` has applied through `index`.
    pub fn applied(&self, host: HostId, group: GroupId, index: Index, state: Option<u64>) {
        let hash = state.unwrap_or_default();
        self.note(&[host.0, group.0, index.0, hash]);
        self.with(group, |g| {
            g.applied.insert(host, index);
            if g.committed.len() < index.0 as usize { Ok(()) } else { g.state_at(host, index, hash) }
        });
    }

    /// The state machine of `group` on `host` was given entries through `index`, and had them already.
    pub fn passed(&self, host: HostId, group: GroupId, index: Index) {
        self.note(&[host.0, group.0, index.0]);
        self.with(group, |g| {
            g.applied.insert(host, index);
            Ok(())
        });
    }

    /// The state machine of `group` on `host` was replaced by a snapshot's.
    pub fn recovered(&self, host: HostId, group: GroupId, state: Option<u64>) {
        self.note(&[host.0, group.0, state.unwrap_or_default()]);
        self.with(group, |g| {
            g.applied.remove(&host);
            Ok(())
        });
    }

    /// Looks at a replica after its worker's round.
    pub fn observe(&self, host: HostId, replica: &Replica) {
        self.with(replica.config.group, |g| g.observe(host, replica));
    }

    /// A client proposes a write; returns what it must not come before.
    pub fn write_begins(&self, group: GroupId, serial: u64, only_in: Option<Term>) -> u64 {
        let mut floor = 0;
        self.with(group, |g| {
            g.writes.insert(serial, Fate::Open);
            g.terms.extend(only_in.map(|term| (serial, term)));
            floor = g.floor;
            Ok(())
        });
        floor
    }

    /// A write was acknowledged at this position.
    pub fn write_done(&self, group: GroupId, serial: u64, position: u64, floor: u64) {
        self.note(&[group.0, serial, position]);
        self.with(group, |g| {
            let at = (position as usize).checked_sub(1).and_then(|at| g.list.get(at));
            if at != Some(&serial) {
                return Err(format!("write {serial} was acknowledged at position {position}, where {at:?} is"));
            }
            if position <= floor {
                return Err(format!("write {serial} took position {position}; {floor} were seen before it began"));
            }
            g.floor = g.floor.max(position);
            Ok(())
        });
    }

    /// A write ended with an error that says that it was not, and never will be, applied.
    pub fn write_refused(&self, group: GroupId, serial: u64, error: &RequestError) {
        self.note(&[group.0, serial]);
        self.with(group, |g| {
            g.writes.insert(serial, Fate::Refused(error.clone()));
            if !g.listed.contains(&serial) {
                return Ok(());
            }
            Err(format!("write {serial} was applied, and its client is told that it never will be: {error}"))
        });
    }

    /// A client begins to read; returns what it must see.
    pub fn read_begins(&self, group: GroupId) -> u64 {
        self.state.lock().groups.get(&group).map_or(0, |g| g.floor)
    }

    /// A linearizable read saw a list of this length.
    pub fn read_done(&self, group: GroupId, count: u64, floor: u64) {
        self.note(&[group.0, count]);
        self.with(group, |g| {
            if count < floor {
                return Err(format!("a read saw {count} writes; {floor} were seen before it began"));
            }
            if count > g.list.len() as u64 {
                return Err(format!("a read saw {count} writes, {} are committed", g.list.len()));
            }
            g.floor = g.floor.max(count);
            Ok(())
        });
    }

    /// A replica was given an index at which its clients may read what it has applied.
    pub fn read_here(&self, shared: &GroupShared, index: Index, floor: u64) {
        let applied = client::applied_here(shared);
        if applied < index && shared.refusal().is_none() {
            self.violate(format!("group {}: a read at {index} may be made where {applied} is applied", shared.group));
        }
        if let Some(count) = client::length_here(shared) {
            self.read_done(shared.group, count, floor);
        }
    }

    /// The index of the last entry that was applied anywhere.
    pub fn last_applied(&self, group: GroupId) -> Index {
        Index(self.state.lock().groups.get(&group).map_or(0, |g| g.committed.len() as u64))
    }

    /// Compares the state of a replica at rest.
    pub fn at_rest(&self, host: HostId, group: GroupId, index: Index, state: Option<u64>) {
        self.with(group, |g| g.state_at(host, index, state.unwrap_or_default()));
    }

    // ---- members and leaders ------------------------------------------------------------------------------------

    /// A replica of the group is to be on this host, from its next start on.
    pub fn placed(&self, host: HostId, group: GroupId, witness: bool) {
        self.with(group, |g| {
            if witness {
                g.witnesses.insert(host)
            } else {
                g.witnesses.remove(&host)
            };
            Ok(())
        });
    }

    /// The newest membership that a state machine was given.
    pub fn members(&self, group: GroupId) -> Membership {
        self.state.lock().groups[&group].history.last().clone()
    }

    /// Whether this replica ever was a member.
    pub fn ever_had(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.state.lock().groups[&group].history.ever_had(replica)
    }

    /// A membership change was reported to be in effect.
    pub fn change_done(&self, group: GroupId, members: &Membership, adds: &[ReplicaId], removes: &[ReplicaId]) {
        self.note(&[group.0, members.change_id.0]);
        self.with(group, |g| g.history.done(members, adds, removes));
    }

    /// The addition of a replica ended with an error that says that it never will be made.
    pub fn addition_refused(&self, group: GroupId, replica: ReplicaId, error: &RequestError) {
        self.note(&[group.0, replica.0]);
        self.with(group, |g| g.history.refused(replica, &error.to_string()));
    }

    /// A leader transfer was reported done.
    pub fn transferred(&self, group: GroupId, leader: ReplicaId, term: Term) {
        self.note(&[group.0, leader.0, term.0]);
        self.with(group, |g| match g.leaders.get(&term) {
            Some(known) if *known == leader => Ok(()),
            known => Err(format!("a client is told that {leader} leads term {term}; known is {known:?}")),
        });
    }
}
