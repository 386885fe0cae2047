//! Groups of which a part is damaged on the disk: who may be started, and whose data may be removed.

use crate::alone::{Alone, GROUP, voters};
use longboat_engine::{QuarantinedReplica, StartError};
use longboat_logdb::{Bootstrap, GroupState, REPLICA_NOT_KNOWN};
use longboat_raft::ReplicaId;
use longboat_rsm::RequestError;
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("quarantined-replica-started", a_quarantined_replica_is_not_started),
    ("unknown-replica-removed", a_replica_that_nobody_knows_is_not_removed),
];

/// A host whose store says that the group is quarantined, and was here as this replica.
fn quarantined(dir: &TempDir, replica: ReplicaId) -> Alone {
    let alone = Alone::open(dir.path());
    let bootstrap = Bootstrap { replica, ..Bootstrap::default() };
    let state = GroupState { group: GROUP, bootstrap, quarantined: Some(7), ..GroupState::default() };
    alone.host.shared.stopped.lock().insert(GROUP, state);
    alone
}

fn a_quarantined_replica_is_not_started() {
    let dir = TempDir::new().unwrap();
    let alone = quarantined(&dir, ReplicaId(1));
    let known = QuarantinedReplica { group: GROUP, replica: Some(ReplicaId(1)), record: 7 };
    assert_eq!(alone.host.starter.quarantined(), [known]);
    assert!(alone.host.starter.stored().is_empty(), "nobody is to restart it");
    // Neither as what it was, nor as another one beside it.
    for id in [1, 2] {
        let refused = alone.start(id, voters(3)).expect_err("it never runs again");
        assert!(matches!(refused, StartError::Rotten { replica: ReplicaId(1), record: 7, .. }), "{refused}");
    }
    assert!(alone.host.starter.remove_data(GROUP).is_ok(), "its data may go");
}

fn a_replica_that_nobody_knows_is_not_removed() {
    let dir = TempDir::new().unwrap();
    let alone = quarantined(&dir, REPLICA_NOT_KNOWN);
    let refused = alone.start(1, voters(3)).expect_err("it may be the one that was here");
    assert!(matches!(refused, StartError::RottenUnknown { record: 7, .. }), "{refused}");
    let refused = alone.host.starter.remove_data(GROUP).map(|_| ()).expect_err("under which id?");
    assert_eq!(refused, RequestError::ReplicaNotKnown(GROUP));
}
