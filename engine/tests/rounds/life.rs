//! Each transition in the life of a snapshot is an event with group, replica and index.

use longboat_engine::SnapshotOptions;
use longboat_raft::Time;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::span;

/// The transitions, by what their events say.
const TRANSITIONS: &[&str] = &[
    "snapshot requested",
    "snapshot request ignored",
    "snapshot request refused",
    "snapshot save queued",
    "snapshot save begins",
    "snapshot save failed",
    "snapshot save aborted",
    "snapshot exported",
    "snapshot record on its way",
    "snapshot saved",
    "log truncated",
    "snapshot removed",
    "snapshot transfer begins",
    "snapshot transfer goes on",
    "snapshot transfer failed",
    "snapshot transfer done",
    "snapshot reception begins",
    "snapshot received",
    "snapshot installed",
    "recovery begins",
    "state machine recovered",
];

/// What each event said, and which fields it had.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>);

#[derive(Default)]
struct Fields {
    message: String,
    names: BTreeSet<String>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.names.insert(field.name().to_owned());
        }
    }
}

impl tracing::Subscriber for Heard {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.0.lock().insert(fields.message, fields.names);
    }
}

fn one_life() {
    let options = SnapshotOptions::default;
    let (mut trio, index) = crate::transfers::led(1);
    let shared = Arc::clone(&trio.one(1).shared);
    let ask = |options: SnapshotOptions| shared.enqueue_snapshot(options, Time(u64::MAX)).unwrap();
    let ignored = ask(options());
    trio.pass(5);
    trio.put(300..301);
    let mut beyond = options();
    beyond.compaction_index = Some(longboat_raft::Index(index.0 + 100));
    let refused = ask(beyond);
    trio.pass(5);
    trio.put(301..310);
    trio.save(1).expect("saved");
    trio.pass(20);
    let dir = tempfile::TempDir::new().unwrap();
    let export = || SnapshotOptions::export_to(dir.path());
    trio.one(1).storage.lock().fails = 1;
    let failed = ask(export());
    trio.pass(20);
    trio.one(1).pool_stands = true;
    let aborted = ask(export());
    trio.pass(5);
    assert!(shared.abort_snapshots());
    trio.one(1).pool_stands = false;
    trio.pass(20);
    let exported = ask(export());
    trio.pass(50);
    // The first transfer finds the state machine not ready, and the next one loses its way for a while.
    trio.one(1).storage.lock().fails = 1;
    let held = crate::transfers::hold_chunks(&trio, 1);
    trio.join(2);
    trio.until("chunks", |_| !held.lock().is_empty());
    trio.pass(1500);
    trio.wires.open();
    trio.until_values(2, 0..310);
    drop((ignored, refused, failed, aborted, exported));
}

pub fn every_transition_is_an_event_with_group_replica_and_index() {
    let heard = Heard::default();
    tracing::subscriber::with_default(heard.clone(), || {
        // An event that another test's thread came by first is taken to be of interest to nobody, until that is looked at again.
        one_life();
        tracing::callsite::rebuild_interest_cache();
        one_life();
    });
    let heard = heard.0.lock();
    let missing: Vec<_> = TRANSITIONS.iter().filter(|what| !heard.contains_key(**what)).collect();
    assert!(missing.is_empty(), "not told: {missing:?}; told: {:?}", heard.keys().collect::<Vec<_>>());
    for what in TRANSITIONS {
        let has = |name: &str| heard[*what].contains(name);
        assert!(has("group") && has("replica") && has("index"), "{what}: {:?}", heard[*what]);
    }
}
