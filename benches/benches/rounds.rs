//! Micro-benches of what a worker does with groups, besides moving bytes: the protocol, deadlines, who is ready.
//!
//! `cargo bench -p longboat-bench --bench rounds` runs them all; a word after `--` picks those that have it in their name.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use longboat_engine::notify::Notifier;
use longboat_engine::shared::{SlotRef, WorkerInbox};
use longboat_engine::wheel::TimingWheel;
use longboat_raft::{
    Body, Core, CoreConfig, EntryKind, HostId, LogPos, Member, Membership, Message, Origin, Output, ProposeOptions,
    ReplicaId, Restored, Role, RunBuilder, Term, Time,
};

/// No timer has a say in what is measured.
const NOW: Time = Time(1_000_000);
const ORIGIN: Origin = Origin { replica: ReplicaId(1), start: 42 };

fn chunk(entries: usize, payload: &[u8]) -> RunBuilder {
    let mut builder = RunBuilder::new();
    for sequence in 0..entries {
        builder.push(EntryKind::Command, sequence as u64, payload);
    }
    builder
}

/// A core of a group of these voters, restored from nothing.
fn core(replica: u64, voters: u64) -> Core {
    let member = |r| (ReplicaId(r), Member { host: HostId(r), ..Member::default() });
    let membership = Membership::from_voters((1..=voters).map(member));
    let config = CoreConfig { replica: ReplicaId(replica), seed: replica, ..CoreConfig::default() };
    let restored = Restored { membership: membership.into(), ..Restored::default() };
    Core::new(config, restored, NOW).expect("a membership and nothing else")
}

/// Ends a visit, and with it what was sealed is durable and what was committed is applied.
fn end_visit(core: &mut Core, out: &mut Output) {
    for _ in 0..2 {
        core.take_output(NOW, out);
        if let Some(token) = out.token.take() {
            core.persisted(token).expect("nothing contradicts");
        }
        if let Some(run) = out.committed.last() {
            core.applied(run.last());
        }
        out.clear();
    }
    core.trim_to(0);
}

/// A group's protocol alone: what a leader does for a chunk of proposals from its call to its commit, with itself for a majority, and
/// what a follower does for an append from its arrival until it is durable.
fn protocol(c: &mut Criterion) {
    for entries in [1usize, 16, 512] {
        let mut group = c.benchmark_group(format!("core, {entries} x 16 B"));
        group.throughput(Throughput::Elements(entries as u64));
        let (mut leader, mut out) = (core(1, 1), Output::default());
        leader.campaign(NOW);
        end_visit(&mut leader, &mut out);
        end_visit(&mut leader, &mut out);
        assert_eq!(leader.role(), Role::Leader);
        group.bench_function("propose to commit", |b| {
            b.iter_batched(
                || chunk(entries, &[7; 16]),
                |chunk| {
                    leader.propose(NOW, chunk, ORIGIN, ProposeOptions::default()).expect("it leads");
                    end_visit(&mut leader, &mut out);
                },
                BatchSize::SmallInput,
            );
        });
        assert_eq!(leader.commit(), leader.last().index, "everything was committed");
        let (mut follower, mut prev) = (core(2, 3), LogPos::ZERO);
        group.bench_function("step of an append to durable", |b| {
            b.iter_batched(
                || {
                    let run = chunk(entries, &[7; 16]).seal(Term(1), prev.index.next(), ORIGIN);
                    let body = Body::Append { prev, commit: prev.index, runs: [run.clone()].into_iter().collect() };
                    prev = LogPos { term: Term(1), index: run.last() };
                    Message { from: ReplicaId(1), to: ReplicaId(2), term: Term(1), body }
                },
                |append| {
                    follower.step(NOW, append).expect("a leader's");
                    end_visit(&mut follower, &mut out);
                },
                BatchSize::PerIteration,
            );
        });
        assert_eq!(follower.last(), prev, "everything was taken");
        group.finish();
    }
}

/// What a worker keeps of time and of who is ready.
fn rounds(c: &mut Criterion) {
    const SLOTS: u32 = 10_000;
    const MILLI: u64 = 1_000_000;
    let mut group = c.benchmark_group("round of 10000 groups");
    group.throughput(Throughput::Elements(u64::from(SLOTS)));
    let (mut wheel, mut now, mut due) = (TimingWheel::new(Time(0)), 0, Vec::new());
    group.bench_function("timing wheel: deadlines move later", |b| {
        b.iter(|| {
            now += MILLI;
            for slot in 0..SLOTS {
                wheel.schedule(slot, Time(now + 250 * MILLI));
            }
            wheel.expire(Time(now), &mut due);
            due.drain(..).count()
        });
    });
    group.bench_function("timing wheel: all expire", |b| {
        b.iter(|| {
            for slot in 0..SLOTS {
                wheel.schedule(slot, Time(now + MILLI * u64::from(slot % 250)));
            }
            now += 300 * MILLI;
            wheel.expire(Time(now), &mut due);
            due.drain(..).count()
        });
    });
    let inbox = WorkerInbox::new(Notifier::new());
    let mut taken = Vec::new();
    group.bench_function("ready list: push and take", |b| {
        b.iter(|| {
            for slot in 0..SLOTS {
                inbox.ready(SlotRef { slot, generation: 1 });
            }
            inbox.notifier.take();
            taken.clear();
            inbox.take_ready(&mut taken);
            taken.len()
        });
    });
    group.finish();
}

criterion_group!(benches, protocol, rounds);
criterion_main!(benches);
