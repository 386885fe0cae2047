//! What holds from the moment that a replacement is reported done.

use crate::alone::MILLI;
use crate::trio::{Trio, member};
use longboat_engine::{Changed, Rare, Replacement, Start};
use longboat_io::Clock;
use longboat_raft::{Membership, ReplicaId};
use longboat_rsm::Pending;
use std::sync::Arc;
use std::time::Duration;

/// A planted bug, and the scenario that catches it.
pub const GUARDS: &[(&str, fn())] =
    &[("replaced-before-settled", a_group_stands_the_loss_of_a_host_from_the_moment_that_a_replacement_is_done)];

/// Replica 4 takes the place of one whose host is gone for good. Once that is reported done, the leader's host starts anew and the
/// other of the old hosts is lost, too: two of the three members are left.
///
/// Seed 7462 of the simulator.
fn a_group_stands_the_loss_of_a_host_from_the_moment_that_a_replacement_is_done() {
    let mut trio = Trio::down(4, |_| {});
    let all = Arc::new(Membership::from_voters((1..=3).map(|id| (ReplicaId(id), member(id)))));
    (1..=3).for_each(|id| trio.start(id, Start::Bootstrap(Arc::clone(&all))));
    let leader = trio.leader();
    trio.put_on(leader, 0..20);
    let (old, other) = (1 + leader % 3, 1 + (leader + 1) % 3);
    trio.kill(old);
    trio.start(4, Start::Join);
    let (shared, deadline) = (Arc::clone(&trio.one(leader).shared), trio.clock.now().plus_nanos(20_000 * MILLI));
    let what = Replacement { old: ReplicaId(old), new: ReplicaId(4), member: member(4) };
    let mut asked: Pending<Changed> = shared.request(deadline, |reply| Rare::Replace(what, reply)).unwrap();
    let done = loop {
        trio.pass(1);
        match asked.wait_timeout(Duration::ZERO) {
            Ok(done) => break done.expect("a majority is up"),
            Err(open) => asked = open,
        }
    };
    assert!(done.membership.removed.contains(&ReplicaId(old)));
    drop(shared);
    trio.kill(other);
    trio.restart(leader, |storage| storage);
    trio.restart(4, |storage| storage);
    trio.leader();
    trio.put_on(4, 20..40);
}
