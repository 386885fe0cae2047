//! Batches, from the worker that seals them to the log writer and back.

use crate::Case;
use crate::log_writer::SealedBatch;
use crate::notify::Notifier;
use crate::wakes::LONG;
use crate::worker_inbox::WorkerInbox;
use crate::writer_inbox::WriterInbox;
use longboat_logdb::Update;
use shuttle::thread;
use std::sync::Arc;

pub const CASES: &[Case] = &[(
    "batches_are_written_in_order_and_their_workers_learn_of_it",
    batches_are_written_in_order_and_their_workers_learn_of_it,
    &["wish-looked-for-too-early", "woken-before-it-is-left", "looked-before-it-sleeps"],
)];

const WORKERS: usize = 2;
const BATCHES: u64 = 2;

/// As a step worker does it: it waits for its last batch alone, and sleeps meanwhile.
fn seal(worker: usize, own: &WorkerInbox, writer: &WriterInbox) {
    own.notifier.attach(None);
    for seq in 1..=BATCHES {
        let spare = writer.exchange(SealedBatch { worker: Some(worker), seq, updates: Vec::new() });
        assert!(spare.is_empty());
    }
    own.durable.want(BATCHES);
    loop {
        own.notifier.take();
        if own.durable.through() == BATCHES {
            return;
        }
        if own.durable.wanted_and_reached() < BATCHES {
            own.notifier.park(LONG);
        }
    }
}

fn batches_are_written_in_order_and_their_workers_learn_of_it() {
    let writer = WriterInbox::new(Notifier::new());
    let inboxes: Vec<_> = (0..WORKERS).map(|_| Arc::new(WorkerInbox::new(Notifier::new()))).collect();
    let workers: Vec<_> = inboxes
        .iter()
        .enumerate()
        .map(|(n, own)| {
            let (own, writer) = (Arc::clone(own), Arc::clone(&writer));
            thread::spawn(move || seal(n, &own, &writer))
        })
        .collect();
    writer.notifier.attach(None);
    let mut written = [0; WORKERS];
    while written != [BATCHES; WORKERS] {
        writer.notifier.take();
        let mut batches = Vec::new();
        writer.take(&mut batches, || Some(Vec::<Update>::new()));
        let none = batches.is_empty();
        for batch in batches {
            let worker = batch.worker.unwrap();
            assert_eq!(batch.seq, written[worker] + 1, "of worker {worker}");
            written[worker] = batch.seq;
            if inboxes[worker].durable.reached(batch.seq) {
                inboxes[worker].notifier.notify();
            }
        }
        if none {
            writer.notifier.park(LONG);
        }
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}
