//! Micro-benches of the pieces that every proposal goes through.
//!
//! `cargo bench -p longboat-bench` runs them all; a word after `--` picks those that have it in their name.

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use longboat_io::{JobState, RealDisk};
use longboat_logdb::{Bootstrap, KeyValue, LogDb, Record, SharedLog, SharedLogConfig, Update};
use longboat_raft::{
    Body, EntryKind, GroupEpoch, GroupId, HardState, HostId, Index, LogPos, Message, Origin, ReplicaId, Run,
    RunBuilder, Term,
};
use longboat_rsm::{Completion, PendingBatch};
use longboat_transport::wire::{self, FrameBuilder};
use std::future::Future;
use std::hint::black_box;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Entries of a run and payload bytes of each: a lone write, a small group's batch, a large one's, and large payloads.
const SHAPES: [(usize, usize); 4] = [(1, 16), (16, 16), (512, 16), (64, 1024)];
const ORIGIN: Origin = Origin { replica: ReplicaId(1), start: 42 };

fn chunk(entries: usize, payload: &[u8]) -> RunBuilder {
    let mut builder = RunBuilder::new();
    for sequence in 0..entries {
        builder.push(EntryKind::Command, sequence as u64, payload);
    }
    builder
}

fn runs(c: &mut Criterion) {
    for (entries, bytes) in SHAPES {
        let payload = vec![7u8; bytes];
        let run = chunk(entries, &payload).seal(Term(3), Index(1000), ORIGIN);
        let mut encoded = BytesMut::new();
        run.encode(&mut encoded);
        let encoded: Bytes = encoded.freeze();

        let mut group = c.benchmark_group(format!("run {entries} x {bytes} B"));
        group.throughput(Throughput::Elements(entries as u64));
        group.bench_function("gather", |b| b.iter(|| chunk(entries, black_box(&payload))));
        group.bench_function("seal", |b| {
            b.iter_batched(
                || chunk(entries, &payload),
                |mut chunk| chunk.seal(Term(3), Index(1000), ORIGIN),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("encode", |b| {
            let mut out = BytesMut::with_capacity(run.encoded_len());
            b.iter(|| {
                out.clear();
                run.encode(&mut out);
                out.len()
            });
        });
        group.bench_function("decode", |b| b.iter(|| Run::decode(&mut encoded.clone()).expect("it was encoded above")));
        group.bench_function("rebase", |b| b.iter(|| run.rebase(Term(4), Index(2000))));
        group.bench_function("visit entries", |b| {
            b.iter(|| run.entries().map(|e| e.index.0 + e.payload.len() as u64).sum::<u64>());
        });
        if entries > 2 {
            let middle = Index(1001)..=Index(1000 + entries as u64 - 2);
            group.bench_function("slice", |b| b.iter(|| run.slice(middle.clone())));
        }
        group.finish();
    }
}

fn completions(c: &mut Criterion) {
    for entries in [1u32, 16, 512] {
        let mut group = c.benchmark_group(format!("completion of {entries}"));
        group.throughput(Throughput::Elements(u64::from(entries)));
        let pending = || {
            let completion = Completion::<u64>::new();
            let batch = PendingBatch::new(vec![(Arc::clone(&completion), 0..entries)]);
            (completion, batch)
        };
        group.bench_function("make, complete, take", |b| {
            b.iter(|| {
                let (completion, batch) = pending();
                completion.complete(0, (0..entries).map(|n| Ok(u64::from(n))));
                batch.wait()
            });
        });
        group.bench_function("await", |b| {
            let mut context = Context::from_waker(Waker::noop());
            b.iter(|| {
                let (completion, batch) = pending();
                let mut batch = pin!(batch);
                assert!(batch.as_mut().poll(&mut context).is_pending());
                completion.complete(0, (0..entries).map(|n| Ok(u64::from(n))));
                match batch.poll(&mut context) {
                    Poll::Ready(results) => results,
                    Poll::Pending => unreachable!("all its slots are resolved"),
                }
            });
        });
        group.finish();
    }
}

/// One round's frame to one host: an append for each of many groups, and the answers to it.
fn frames(c: &mut Criterion) {
    let message = |body| Message { from: ReplicaId(1), to: ReplicaId(2), term: Term(3), body };
    for (groups, entries) in [(1u64, 512), (48, 64), (1000, 16)] {
        let run = chunk(entries, &[7; 16]).seal(Term(3), Index(1000), ORIGIN);
        let prev = LogPos { term: Term(3), index: Index(999) };
        let append = message(Body::Append { prev, commit: Index(990), runs: [run].into_iter().collect() });
        let accepted = message(Body::AppendAccepted { matched: Index(2000) });
        let commit = message(Body::Commit { commit: Index(2000) });
        for (name, message) in [("append", append), ("accepted", accepted), ("commit", commit)] {
            let mut builder = FrameBuilder::new();
            let mut build = move || {
                let mut frames = Vec::new();
                for group in 1..=groups {
                    if builder.is_full() {
                        frames.push(builder.finish());
                    }
                    builder.push(GroupId(group), GroupEpoch(1), &message);
                }
                frames.push(builder.finish());
                frames
            };
            let frames: Vec<Bytes> = build().iter().map(|parts| parts.concat().into()).collect();

            let mut group = c.benchmark_group(format!("frame of {name} for {groups} groups, {entries} entries"));
            group.throughput(Throughput::Elements(groups));
            group.bench_function("build", |b| b.iter(&mut build));
            group.bench_function("read", |b| {
                b.iter(|| {
                    let read = |frame: &Bytes| wire::messages(frame.clone()).filter(Result::is_ok).count() as u64;
                    assert_eq!(frames.iter().map(read).sum::<u64>(), groups);
                });
            });
            group.finish();
        }
    }
}

/// One batch of many groups made durable by the store, in a directory without a disk behind it where there is one: what is left
/// is the processor's part. Settling is not in it.
fn records(c: &mut Criterion) {
    const KEPT: u64 = 10_000;
    let shared_memory = Path::new("/dev/shm");
    let place = if shared_memory.is_dir() { shared_memory.to_path_buf() } else { std::env::temp_dir() };
    for (groups, entries, bytes) in [(1u64, 512usize, 16usize), (48, 16, 16), (1000, 1, 16), (48, 16, 1024)] {
        let dir = tempfile::tempdir_in(&place).expect("a temporary directory");
        let config = SharedLogConfig { key_value: KeyValue::Memory, ..SharedLogConfig::new(dir.path(), HostId(1)) };
        let mut log = SharedLog::open(Arc::new(RealDisk), config).expect("opens").log;
        let payload = vec![7u8; bytes];
        let mut first = 1u64;
        let mut batch = || {
            let run = |first| chunk(entries, &payload).seal(Term(3), Index(first), ORIGIN);
            let commit = first - 1;
            let update = |group| Update {
                group: GroupId(group),
                hard_state: HardState { term: Term(3), vote: ReplicaId(1), commit: Index(commit) },
                runs: [run(first)].into_iter().collect(),
                compact_to: (commit > KEPT).then(|| LogPos { term: Term(3), index: Index(commit - KEPT) }),
                ..Update::default()
            };
            let batch: Vec<Update> = (1..=groups).map(update).collect();
            first += entries as u64;
            batch
        };
        let write = |log: &mut SharedLog, batch| {
            let seq = log.submit(batch);
            while log.poll().expect("nothing fails").durable_through < seq {}
        };
        let start = (1..=groups).map(|g| Update {
            group: GroupId(g),
            record: Some(Box::new(Record::Bootstrap(Bootstrap::default()))),
            ..Update::default()
        });
        write(&mut log, start.collect());

        let mut group = c.benchmark_group(format!("record of {groups} groups x {entries} x {bytes} B"));
        group.throughput(Throughput::Elements(groups * entries as u64));
        group.bench_function("write", |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let batch = batch();
                    let started = Instant::now();
                    write(&mut log, batch);
                    spent += started.elapsed();
                    while let Some(mut job) = log.background_job() {
                        while job.step(1 << 20) != JobState::Done {}
                    }
                }
                spent
            });
        });
        group.finish();
    }
}

criterion_group!(benches, runs, completions, frames, records);
criterion_main!(benches);
