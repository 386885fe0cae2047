//! Hosts that come back with another store than they had.

use crate::alone::{Alone, voters};
use longboat_engine::{HostEvent, Start};
use longboat_raft::{Body, GroupEpoch, HostId, Index, LogPos, Member, Membership, ReplicaId, StoreId, Term};
use longboat_transport::wire::{Beat, HostMessage};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const BEFORE: StoreId = StoreId(20);
const AFTER: StoreId = StoreId(21);

/// A candidate with a long log, of a later term than anybody's, speaks.
fn hear_candidate(alone: &mut Alone, replica: u64) {
    let last = LogPos::new(Term(5), Index(100));
    alone.hear(replica, GroupEpoch(1), replica, 6, Body::RequestVote { pre: false, transfer: true, last });
    alone.poll();
    alone.step();
}

fn term(alone: &Alone) -> Term {
    let replica = alone.host.steps[0].replicas().next().expect("it runs");
    replica.core.term()
}

/// A host that was wiped is not believed in what it says for its former replicas, nor after a restart of this one; others are.
pub fn a_wiped_host_is_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.start(1, voters(3)).expect("starts");
    alone.pass(5);
    alone.connect(2, BEFORE);
    alone.connect(3, BEFORE);
    alone.run_jobs();
    assert!(term(&alone) < Term(6));
    alone.host.shared.events.listen();
    alone.connect(2, AFTER);
    alone.host.shared.events.close();
    let told: Vec<HostEvent> = std::iter::from_fn(|| alone.host.shared.events.next()).collect();
    let event = HostEvent::StoreReplaced { host: HostId(2), before: BEFORE, now: AFTER };
    assert!(told.contains(&event), "{told:?}");
    hear_candidate(&mut alone, 2);
    assert!(term(&alone) < Term(6), "it heard a replica that forgot what it said");
    assert_eq!(alone.host.shared.counters.dropped_fenced.load(Ordering::Relaxed), 1);
    alone.run_jobs();
    drop(alone);

    let mut alone = Alone::open(dir.path());
    alone.start(1, Start::Restart).expect("starts");
    alone.pass(5);
    alone.connect(2, AFTER);
    hear_candidate(&mut alone, 2);
    assert!(term(&alone) < Term(6), "after a restart it is believed");
    hear_candidate(&mut alone, 3);
    assert_eq!(term(&alone), Term(6), "whoever kept its store is heard");
}

/// A replica that joined a wiped host under an id of its own is heard.
pub fn a_replica_that_is_new_on_a_wiped_host_is_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.connect(2, BEFORE);
    alone.connect(2, AFTER);
    let member = |host, store| Member { host: HostId(host), store };
    let members =
        [(1, member(1, StoreId::ZERO)), (2, member(2, AFTER))].map(|(replica, member)| (ReplicaId(replica), member));
    alone.start(1, Start::Bootstrap(Arc::new(Membership::from_voters(members)))).expect("starts");
    alone.pass(5);
    hear_candidate(&mut alone, 2);
    assert_eq!(term(&alone), Term(6));
}

/// A wiped host is not believed either in what it says for a group that was quarantined here when it came back.
pub fn a_wiped_host_is_not_believed_by_a_group_that_was_quarantined() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.start(1, voters(3)).expect("starts");
    alone.pass(5);
    alone.connect(2, BEFORE);
    alone.run_jobs();
    // Of entries that it never acknowledged a leader says that they are committed.
    alone.hear(3, GroupEpoch(1), 3, 1, Body::Heartbeat { commit: Index(50), read_round: 0 });
    alone.poll();
    alone.step();
    assert_eq!(alone.host.shared.counters.violations.load(Ordering::Relaxed), 1);
    alone.connect(2, AFTER);
    alone.run_jobs();
    drop(alone);

    let mut alone = Alone::open(dir.path());
    alone.start(1, Start::Restart).expect("starts");
    alone.pass(5);
    hear_candidate(&mut alone, 2);
    assert!(term(&alone) < Term(6), "it heard a replica that forgot what it said");
    hear_candidate(&mut alone, 3);
    assert_eq!(term(&alone), Term(6));
}

fn beat(alone: &Alone, from: u64, incarnation: u64, place: u64) {
    let beat = Beat { incarnation, interval_nanos: 1_000_000, place, ..Beat::default() };
    alone.arrive(from, HostMessage::Beat(beat).encode());
}

fn told(alone: &Alone) -> Vec<HostEvent> {
    std::iter::from_fn(|| alone.host.shared.events.next()).collect()
}

/// A host that starts anew is not heard before it has said that its store has all that it had; nor is one that says that it
/// has not, or whose process was put back with its memory.
pub fn a_host_that_was_rolled_back_is_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.start(1, voters(3)).expect("starts");
    alone.pass(5);
    alone.connect_as(2, BEFORE, 7);
    beat(&alone, 2, 7, 50);
    alone.poll();
    alone.run_jobs();
    alone.said_to_hosts();
    alone.host.shared.events.listen();
    alone.connect_as(2, BEFORE, 9);
    let asked = HostMessage::Asked { store: BEFORE, incarnation: 7, place: 50 };
    assert!(alone.said_to_hosts().contains(&asked));
    hear_candidate(&mut alone, 2);
    assert!(term(&alone) < Term(6), "it heard a host of which nobody knows what it has");
    let dropped = |alone: &Alone| alone.host.shared.counters.dropped_doubted.load(Ordering::Relaxed);
    assert_eq!(dropped(&alone), 0);
    let answer = |follows| HostMessage::Answered { asked: 7, place: 50, incarnation: 9, follows };
    // A lost question is put again.
    alone.sleep(60);
    alone.poll();
    assert!(alone.said_to_hosts().contains(&asked));
    alone.arrive(2, answer(false).encode());
    alone.arrive(2, answer(false).encode());
    alone.poll();
    assert_eq!(dropped(&alone), 1, "what was held back");
    hear_candidate(&mut alone, 2);
    assert!(term(&alone) < Term(6), "it heard a host with an older copy of its store");
    assert_eq!(dropped(&alone), 2);
    alone.arrive(2, answer(true).encode());
    hear_candidate(&mut alone, 2);
    assert_eq!(term(&alone), Term(6));
    // The same incarnation, with less than it had.
    beat(&alone, 2, 9, 60);
    beat(&alone, 2, 9, 40);
    alone.poll();
    assert!(alone.said_to_hosts().contains(&HostMessage::Asked { store: BEFORE, incarnation: 9, place: 60 }));
    alone.host.shared.events.close();
    let event = HostEvent::StoreRolledBack { host: HostId(2) };
    assert_eq!(told(&alone).into_iter().filter(|e| *e == event).count(), 1);
    // A new connection does not make it whole.
    alone.connect_as(2, BEFORE, 9);
    let heartbeat = Body::Heartbeat { commit: Index(1), read_round: 0 };
    alone.hear(2, GroupEpoch(1), 2, 9, heartbeat);
    alone.poll();
    alone.step();
    assert_eq!(term(&alone), Term(6), "it heard a process that was put back with its memory");
}

/// What a host says before it has shown its store is heard once it has: a forwarded proposal would not be said again. Of what it
/// said in a former life nothing is.
pub fn what_a_restarted_host_says_is_held_until_it_is_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.start(1, voters(3)).expect("starts");
    alone.pass(5);
    alone.connect_as(2, BEFORE, 7);
    beat(&alone, 2, 7, 50);
    alone.poll();
    let answer = |alone: &mut Alone, incarnation| {
        let known = alone.host.shared.stores.standing(HostId(2)).expect("it is known");
        let answer = HostMessage::Answered { asked: known.incarnation, place: known.place, incarnation, follows: true };
        alone.arrive(2, answer.encode());
        alone.poll();
    };
    alone.connect_as(2, BEFORE, 8);
    hear_candidate(&mut alone, 2);
    assert!(term(&alone) < Term(6));
    alone.connect_as(2, BEFORE, 9);
    answer(&mut alone, 9);
    alone.step();
    assert!(term(&alone) < Term(6), "what it said before it started anew again");

    alone.connect_as(2, BEFORE, 10);
    hear_candidate(&mut alone, 2);
    assert!(term(&alone) < Term(6));
    answer(&mut alone, 10);
    alone.step();
    assert_eq!(term(&alone), Term(6), "what it said was thrown away");
}

/// What is known of another host's store outlives a restart of this one.
pub fn what_a_host_had_is_remembered() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.start(1, voters(3)).expect("starts");
    alone.pass(5);
    alone.connect_as(2, BEFORE, 7);
    beat(&alone, 2, 7, 50);
    alone.poll();
    alone.sleep(11_000);
    alone.poll();
    alone.run_jobs();
    drop(alone);

    let mut alone = Alone::open(dir.path());
    alone.connect_as(2, BEFORE, 9);
    assert!(alone.said_to_hosts().contains(&HostMessage::Asked { store: BEFORE, incarnation: 7, place: 50 }));
}

/// A host learns that others have seen more of its store than it has: it serves no more, and is not opened again. Whoever knows
/// less than it has is answered so.
pub fn a_host_that_was_rolled_back_serves_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut alone = Alone::open(dir.path());
    alone.start(1, voters(1)).expect("starts");
    alone.pass(20);
    alone.poll();
    let place = alone.host.shared.openings.place();
    assert!(place > 0);
    alone.said_to_hosts();
    let own = alone.store;
    let ask = |alone: &mut Alone, store, place| {
        alone.arrive(2, HostMessage::Asked { store, incarnation: 1, place }.encode());
        alone.poll();
        let answered = alone.said_to_hosts().into_iter();
        answered
            .filter_map(|m| if let HostMessage::Answered { follows, .. } = m { Some(follows) } else { None })
            .next_back()
    };
    assert_eq!(ask(&mut alone, own, place), Some(true));
    assert_eq!(ask(&mut alone, AFTER, place + 1), None, "that was a store which this host had before");
    assert!(!alone.host.shared.has_failed.load(Ordering::SeqCst));
    alone.host.shared.events.listen();
    assert_eq!(ask(&mut alone, own, place + 1), Some(false), "it never had that");
    alone.host.shared.events.close();
    assert!(told(&alone).contains(&HostEvent::RolledBack { told_by: HostId(2) }));
    assert!(alone.host.shared.has_failed.load(Ordering::SeqCst), "it goes on");
    drop(alone);
    assert!(Alone::try_open(dir.path()).is_none(), "the directory was marked");
}
