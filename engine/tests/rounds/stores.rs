//! Hosts that come back with another store than they had.

use crate::alone::{Alone, voters};
use longboat_engine::{HostEvent, Start};
use longboat_raft::{Body, GroupEpoch, HostId, Index, LogPos, Member, Membership, ReplicaId, StoreId, Term};
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
