//! Random but valid use of a store: steps are numbers, so that a failing list of them shrinks.

use crate::model::{ModelGroup, ModelGroups};
use crate::support::*;
use longboat_logdb::{REPLICA_NOT_KNOWN, Record, Update};
use longboat_raft::{GroupId, HardState, Index, LogPos, ReplicaId, Run, Term};
use proptest::prelude::*;

/// Groups that steps are about.
const GROUPS: u32 = 6;

/// What to do, and with which numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) kind: u8,
    pub(crate) group: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
}

/// What a step comes to.
#[derive(Debug)]
pub(crate) enum Action {
    /// Submit, and drive until durable.
    Write(Vec<Update>),
    /// Submit, and do not drive.
    Queue(Vec<Update>),
    /// Run a housekeeping job to its end, and re-seal what pins the journal.
    Housekeep,
    /// Let a job make a few steps only.
    HousekeepPartly(u32),
    Idle,
    Reopen {
        close: bool,
    },
    /// Read somewhere.
    Read(u32, u32),
}

pub(crate) fn steps(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let step = (any::<u8>(), 0..GROUPS, any::<u32>(), any::<u32>());
    prop::collection::vec(step.prop_map(|(kind, group, a, b)| Step { kind, group, a, b }), count)
}

/// Steps from a seed, for tests that go through many faults of one list.
pub(crate) fn seeded_steps(seed: u64, count: usize) -> Vec<Step> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..count)
        .map(|_| Step { kind: (next() >> 8) as u8, group: next() % GROUPS, a: next() >> 4, b: next() >> 4 })
        .collect()
}

impl Step {
    pub(crate) fn action(&self, groups: &ModelGroups) -> Action {
        let updates = || {
            // Often several groups in one batch, sometimes one group twice.
            let count = 1 + self.b % 3;
            let mut groups = groups.clone();
            let mut batch = Vec::new();
            for i in 0..count {
                let id = GroupId(u64::from((self.group + i * (self.a % 3)) % GROUPS) + 1);
                let update = update(&groups, id, self.a.rotate_left(i * 7), self.b.rotate_left(i * 5));
                crate::model::apply(&mut groups, std::slice::from_ref(&update));
                batch.push(update);
            }
            batch
        };
        match self.kind {
            0..=119 => Action::Write(updates()),
            120..=189 => Action::Queue(updates()),
            190..=214 => Action::Housekeep,
            215..=222 => Action::HousekeepPartly(self.a % 8),
            223..=232 => Action::Idle,
            233..=242 => Action::Read(self.a, self.b),
            243 => Action::Write(Vec::new()),
            _ => Action::Reopen { close: self.a.is_multiple_of(2) },
        }
    }
}

/// What a group that pins the journal is submitted with again.
pub(crate) fn reseal(group: &ModelGroup) -> Update {
    let kept = group.state.hard_state.commit.max(group.state.start.index);
    let runs = group.entries.range(kept.0 + 1..).map(|(_, run)| run.clone()).collect();
    Update { cut_tail: Some(kept.next()), runs, ..state(group.state.group.0, group.state.hard_state) }
}

fn update(groups: &ModelGroups, id: GroupId, a: u32, b: u32) -> Update {
    let Some(g) = groups.get(&id).filter(|g| !g.state.removed) else {
        return Update { group: id, ..bootstrap(id.0, u64::from(a % 100) + 1) };
    };
    if g.state.quarantined.is_some() {
        // Words that come too late, and at some time the removal of what was here.
        let removed = Record::Removed { replica: g.state.bootstrap.replica };
        let record =
            (a.is_multiple_of(16) && g.state.bootstrap.replica != REPLICA_NOT_KNOWN).then(|| Box::new(removed));
        return Update { record, ..state(id.0, hard(u64::from(a % 50), 0, 0)) };
    }
    let hs = g.state.hard_state;
    let term = hs.term.max(Term(1));
    let (start, last) = (g.state.start.index, g.last().index);
    let floor = hs.commit.max(start);
    let pick = |from: Index, to: Index| Index(from.0 + u64::from(b) % (to.0 - from.0 + 1));
    let base = |hard_state: HardState| state(id.0, hard_state);
    let grow = |hard_state: HardState, first: Index, b: u32| Update {
        runs: runs(hard_state.term, first, b).into_iter().collect(),
        ..base(hard_state)
    };
    match a % 32 {
        0..=13 => grow(HardState { term, ..hs }, last.next(), b),
        14..=19 => base(HardState { commit: pick(hs.commit, last.max(hs.commit)), ..hs }),
        20..=22 if last > floor => {
            let from = pick(floor.next(), last);
            let hs = HardState { term: term.next(), ..hs };
            Update { cut_tail: Some(from), ..if b.is_multiple_of(4) { base(hs) } else { grow(hs, from, b >> 3) } }
        }
        23..=25 => base(HardState { term: term.next(), vote: ReplicaId(u64::from(b % 5)), ..hs }),
        26..=28 if hs.commit.min(last) > start => {
            let to = pick(start.next(), hs.commit.min(last));
            Update { compact_to: Some(LogPos::new(g.entries[&to.0].term(), to)), ..base(hs) }
        }
        29 if hs.commit.min(last) > start => {
            let at = LogPos::new(g.entries[&hs.commit.min(last).0].term(), hs.commit.min(last));
            let to = pick(start.next(), at.index);
            let compact_to = Some(LogPos::new(g.entries[&to.0].term(), to));
            Update { compact_to, ..snapshot(id.0, hs, at, false) }
        }
        30 => {
            let at = LogPos::new(term, Index(last.0 + u64::from(b % 50) + 1));
            snapshot(id.0, HardState { term, commit: at.index, ..hs }, at, true)
        }
        31 if b.is_multiple_of(3) => {
            let removed = Record::Removed { replica: g.state.bootstrap.replica };
            Update { record: Some(Box::new(removed)), ..base(hs) }
        }
        _ => grow(HardState { term, ..hs }, last.next(), b),
    }
}

/// One or two runs of a few entries, mostly small, some of several kilobytes.
fn runs(term: Term, first: Index, b: u32) -> Vec<Run> {
    let count = 1 + u64::from(b % 7);
    let entry = |i: u64| {
        let len = match (b >> 4) % 8 {
            0 => 0,
            1 => 5000,
            2 => 1200,
            _ => (b >> 8) % 200,
        };
        let mut payload = vec![b as u8; len as usize];
        payload.extend_from_slice(&(term.0 * 1_000_000 + i).to_le_bytes());
        payload
    };
    let make = |from: u64, to: u64| {
        let payloads: Vec<_> = (from..to).map(entry).collect();
        run(term.0, from, &payloads.iter().map(|p| &p[..]).collect::<Vec<_>>())
    };
    let (from, to) = (first.0, first.0 + count);
    if count > 3 { vec![make(from, from + 2), make(from + 2, to)] } else { vec![make(from, to)] }
}
