//! What the fuzz targets do with the bytes that they are given. Here, and not in `fuzz/`, so that the tests of this crate
//! compile it and play the committed corpus again.
//!
//! A violation is a fine outcome: it is what a core has to say when messages contradict each other. A panic is a bug.

use crate::cluster::*;
use crate::random::{self, Dice, Promises};
use longboat_raft::*;

/// The bytes of a fuzzer's input, as decisions. Out of bytes everything is decided the first way.
pub struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number near `base`, mostly; sometimes a small one, sometimes any at all.
    fn near(&mut self, base: u64) -> u64 {
        match self.byte() {
            b @ 0..=159 => base.saturating_add(u64::from(b % 10)).saturating_sub(5),
            b @ 160..=247 => u64::from(b - 160) / 4,
            248..=251 => u64::MAX - u64::from(self.byte()),
            _ => (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte())),
        }
    }
}

impl Dice for Bytes<'_> {
    fn roll(&mut self, sides: u64) -> u64 {
        let wide = if sides > 256 { u64::from(self.byte()) << 8 } else { 0 };
        (wide | u64::from(self.byte())) % sides
    }
}

fn any_run(b: &mut Bytes<'_>, term: u64, first: u64) -> Run {
    let mut chunk = RunBuilder::new();
    for i in 0..1 + b.roll(3) {
        match b.byte() % 12 {
            0 => chunk.push(EntryKind::Config, i, &any_change(b).encode()),
            1 => chunk.push(EntryKind::Config, i, &[b.byte(), b.byte(), b.byte()]),
            2 => chunk.push(EntryKind::Empty, i, b""),
            n => chunk.push(EntryKind::Command, i, &vec![n; 3 * usize::from(n)]),
        }
    }
    let run = chunk.seal(Term(term), Index(first), Origin::default());
    if b.byte() < 50 { run.strip() } else { run }
}

fn any_forwards(b: &mut Bytes<'_>) -> Forwards {
    Forwards { start: b.roll(2), commands: b.near(0), changes: b.near(0) }
}

/// A group of so many, of which `witness` keeps no payloads if it is one of them.
fn group(members: u64, witness: u64, flags: u8) -> Cluster {
    let ids: Vec<u64> = (1..=members).collect();
    let mut membership = voters(&ids);
    membership.witnesses = ids.iter().filter(|n| **n == witness).map(|n| id(*n)).collect();
    let mut c = Cluster::new(&[]);
    for n in ids {
        let mut config = config(n);
        tune(&mut config, flags);
        // As its owner does: a witness that was removed is one in no membership.
        config.witness = n == witness;
        c.add(config, Disk { membership: membership.clone(), ..Disk::default() });
    }
    c
}

fn any_change(b: &mut Bytes<'_>) -> ConfigChange {
    let transition = b.pick(&[Transition::Auto, Transition::JointImplicit, Transition::JointExplicit]);
    let (add, other) = (ChangeKind::AddVoter, [ChangeKind::Remove, ChangeKind::Update]);
    let kinds = [add, ChangeKind::AddLearner, ChangeKind::AddWitness, other[0], other[1]];
    let changes = (0..b.roll(4))
        .map(|_| {
            let replaced = id(b.roll(6));
            let promotion = b.pick(&[Promotion::Never, Promotion::WhenCaughtUp, Promotion::Replacing(replaced)]);
            Change { kind: b.pick(&kinds), replica: id(b.roll(6)), member: Member::default(), promotion }
        })
        .collect();
    ConfigChange { transition, changes, after: b.flag().then(|| Index(b.near(0))) }
}

fn any_membership(b: &mut Bytes<'_>) -> Membership {
    let mut ids = |mask: u8| -> std::collections::BTreeSet<ReplicaId> {
        let chosen = mask & b.byte();
        (0..6u64).filter(|n| chosen & 1 << n != 0).map(id).collect()
    };
    Membership {
        voters: ids(0xff),
        outgoing: ids(0x0f),
        learners: ids(0x30),
        learners_next: ids(0x08),
        witnesses: ids(0x0c),
        promotions: ids(0x30).into_iter().map(|n: ReplicaId| (n, Some(id(1)))).collect(),
        removed: ids(0x20),
        auto_leave: b.flag(),
        change_id: Index(b.near(0)),
        ..Membership::default()
    }
}

/// A message to `core`, of numbers near its own.
fn any_message(b: &mut Bytes<'_>, core: &Core) -> Message {
    let (term, last, commit) = (core.term().0, core.last(), core.commit().0);
    let index = |b: &mut Bytes<'_>| {
        let base = if b.flag() { last.index.0 } else { commit };
        Index(b.near(base))
    };
    let place = |b: &mut Bytes<'_>| {
        let index = index(b);
        let term = core.term_at(index).filter(|_| b.byte() > 40).unwrap_or_else(|| Term(b.near(last.term.0)));
        LogPos::new(term, index)
    };
    let mut term = if b.byte() < 160 { term } else { b.near(term) };
    let body = match b.roll(22) {
        0..4 => {
            let prev = place(b);
            let mut next = prev.index.0.saturating_add(1) % (1 << 62);
            let mut runs: smallvec::SmallVec<[Run; 1]> = smallvec::SmallVec::new();
            for _ in 0..b.roll(3) {
                let of = if b.byte() < 200 { term } else { b.near(prev.term.0) };
                let at = if b.byte() < 230 { next } else { b.near(next) };
                let run = any_run(b, of, at % (1 << 62));
                next = run.last().0 + 1;
                runs.push(run);
            }
            Body::Append { prev, commit: index(b), runs }
        }
        4 => Body::AppendAccepted { matched: index(b) },
        5 => Body::AppendRejected { rejected: index(b), hint: place(b) },
        6 => Body::Heartbeat { commit: index(b), read_round: b.near(1) },
        7 => Body::HeartbeatResponse { read_round: b.near(1), overloaded: b.flag() },
        8 => Body::Commit { commit: index(b) },
        9 => Body::RequestVote { pre: b.flag(), transfer: b.flag(), last: place(b) },
        10 => Body::VoteResponse { pre: b.flag(), granted: b.flag() },
        11 => Body::Snapshot(Box::new(SnapshotMeta { pos: place(b), membership: any_membership(b) })),
        12 => Body::ReadIndex { context: b.near(1) },
        13 => Body::ReadIndexResponse { context: b.near(1), index: b.flag().then(|| index(b)) },
        16 => Body::AppendPaused { matched: index(b) },
        17 => Body::WitnessSnapshot(Box::new(SnapshotMeta { pos: place(b), membership: any_membership(b) })),
        18 => Body::SnapshotNeeded { at_least: index(b) },
        19 => Body::Quiesce { round: b.near(1), last: place(b), commit: index(b) },
        20 => Body::QuiesceResponse { round: b.near(1), agreed: b.flag() },
        21 => Body::Removed { change: index(b) },
        14 if b.flag() => Body::Forward(any_run(b, term, 0)),
        14 if b.flag() => Body::CloseForwards { term: Term(term), forwards: any_forwards(b) },
        14 if b.flag() => Body::ForwardsClosed { term: Term(term), forwards: any_forwards(b), end: index(b) },
        14 => Body::ForwardRefused { first_sequence: b.near(0), count: 1, reason: RefusedReason::Busy },
        _ => Body::TimeoutNow,
    };
    let claims_none = matches!(
        body,
        Body::ReadIndex { .. }
            | Body::ReadIndexResponse { .. }
            | Body::Forward(_)
            | Body::ForwardRefused { .. }
            | Body::CloseForwards { .. }
            | Body::ForwardsClosed { .. }
    );
    if claims_none && b.byte() < 240 {
        term = 0;
    }
    let to = if b.byte() < 250 { core.replica().0 } else { b.roll(4) };
    message(b.roll(6), to, term, body)
}

/// What its owner may do to a core. Errors are violations.
fn act(b: &mut Bytes<'_>, c: &mut Cluster, n: u64) -> Result<(), Violation> {
    let now = c.now;
    match b.roll(28) {
        0..8 => {
            let message = any_message(b, &c.nodes[&n].core);
            return c.core(n).step(now, message);
        }
        8 | 9 => {
            c.now = now.plus_nanos(u64::from(b.byte()) * MS);
            let now = c.now;
            c.core(n).advance(now);
        }
        10 => drop(c.propose(n, &["p", "q"])),
        11 => drop(c.change(n, any_change(b))),
        12 => {
            let context = b.near(1);
            c.core(n).read_index(now, context);
        }
        13 => c.core(n).campaign(now),
        14 => c.core(n).forget_leader(),
        15 => _ = c.core(n).transfer_leader(now, id(b.roll(5))),
        16 => c.core(n).report_unreachable(id(b.roll(5))),
        17 => {
            // An owner sends what it has applied, or less.
            let at = b.near(c.core(n).last().index.0).min(c.core(n).applied_index().0);
            c.core(n).snapshot_sending(id(b.roll(5)), pos(1, at));
        }
        18 => c.core(n).snapshot_finished(id(b.roll(5)), b.flag()),
        19 if b.flag() => c.serve_fetches(n),
        19 => {
            let (ticket, term, first) = (b.near(1), b.near(1), 1 + b.roll(8));
            let runs = if b.flag() { Err(Compacted) } else { Ok(vec![any_run(b, term, first)]) };
            c.core(n).fetched(ticket, runs);
        }
        20 => drop(c.complete(n)),
        21 => c.compact(n),
        22 => c.core(n).trim(),
        23 => c.core(n).set_overloaded(now, b.flag()),
        24 => c.core(n).suspect_leader(now),
        25 => {
            let other = id(b.roll(5));
            c.core(n).set_suspected(now, other, b.flag());
        }
        26 => c.core(n).replica_gone(now, id(b.roll(5))),
        _ => c.end_round(n),
    }
    Ok(())
}

fn tune(config: &mut CoreConfig, flags: u8) {
    config.pre_vote = flags & 1 != 0;
    config.check_quorum = flags & 2 != 0;
    config.step_down_on_removal = flags & 4 != 0;
    config.commit_by_append = flags & 8 != 0;
    config.log_cache_bytes_max = if flags & 16 != 0 { 0 } else { 1 << 20 };
    config.handout_bytes_max = if flags & 32 != 0 { 1 } else { usize::MAX };
    config.inflight_appends_max = if flags & 64 != 0 { 2 } else { 256 };
    config.append_bytes_max = 300;
    config.see_off_removed = flags & 4 != 0;
    config.quiesce_after_nanos = if flags & 2 != 0 { 3 * HEARTBEAT } else { 0 };
}

/// One core, and whatever anybody may send it or ask of it.
pub fn one_core(data: &[u8]) {
    let mut b = Bytes(data);
    let (flags, members, witness) = (b.byte(), b.pick(&[1, 2, 3, 3, 5]), b.pick(&[0, 0, 1, 2]));
    let mut c = group(members, witness, flags);
    c.node(1).slow_disk = flags & 128 != 0;
    while !b.0.is_empty() {
        let before = c.core(1).hard_state();
        if act(&mut b, &mut c, 1).is_err() {
            return;
        }
        if b.flag() {
            c.end_round(1);
        }
        let core = c.core(1);
        let after = core.hard_state();
        assert!(after.term >= before.term && after.commit >= before.commit, "{before:?} became {after:?}");
        assert!(after.term > before.term || before.vote.is_zero() || after.vote == before.vote, "voted twice");
        assert!(core.handed() <= core.commit() && core.commit() <= core.last().index);
        assert!(core.deadline() > Time::ZERO);
    }
}

/// A group of three and those that join it, their network, disks and restarts. Nobody lies: promises are kept.
pub fn whole_group(data: &[u8]) {
    let mut b = Bytes(data);
    let flags = b.byte();
    let mut c = group(3, 0, flags | 4);
    c.auto_snapshots = flags & 128 == 0;
    let (mut next_id, mut promises) = (100, Promises::default());
    for _ in 0..2000 {
        if b.0.is_empty() {
            break;
        }
        random::step(&mut c, &mut b, &mut next_id, true);
        promises.check(&mut c);
    }
}

/// A group of three whose members are also sent messages that nobody sent.
pub fn group_with_a_liar(data: &[u8]) {
    let mut b = Bytes(data);
    let flags = b.byte();
    let mut c = group(3, b.pick(&[0, 0, 2, 3]), flags);
    c.auto_snapshots = true;
    let mut next_id = 100;
    for _ in 0..1000 {
        if b.0.is_empty() {
            return;
        }
        if b.roll(6) != 0 {
            random::step(&mut c, &mut b, &mut next_id, true);
            continue;
        }
        let n = 1 + b.roll(3);
        if c.node(n).violation.is_none()
            && let Err(violation) = act(&mut b, &mut c, n)
        {
            c.node(n).violation = Some(violation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Seeded;

    /// Every input that a fuzzer found worth keeping, and some that nobody chose.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may read files; the core does not")]
    fn the_fuzz_corpus_and_random_bytes_bring_nothing_but_violations() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 4] = [
            ("one_core", one_core),
            ("whole_group", whole_group),
            ("group_with_a_liar", group_with_a_liar),
            ("runs", crate::decoding::runs),
        ];
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in targets {
            let mut files: Vec<_> =
                std::fs::read_dir(corpus.join(name)).into_iter().flatten().map(|f| f.unwrap().path()).collect();
            files.sort();
            for file in files {
                eprintln!("{}", file.display());
                target(&std::fs::read(file).unwrap());
            }
            let mut dice = Seeded(0x1234_5678_9abc_def1);
            for round in 0..400 {
                eprintln!("{name}, random input {round}");
                let bytes: Vec<u8> = (0..50 + dice.roll(600)).map(|_| dice.roll(256) as u8).collect();
                target(&bytes);
            }
        }
    }
}
