//! Leaders: handed over, preferred, and what a proposal or a read may ask of them.

use crate::cluster::{Cluster, PATIENCE, until};
use crate::machine::List;
use longboat::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn failed(result: Result<Transferred, RequestError>) -> TransferError {
    match result.expect_err("refused") {
        RequestError::TransferFailed(why) => why,
        other => panic!("{other}"),
    }
}

#[test]
fn leadership_is_handed_over_at_the_leader_and_at_a_follower() {
    let cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    for asked_at_leader in [true, false, true, false] {
        let leader = cluster.leader(1);
        let (to, other) = ((leader + 1) % 3, (leader + 2) % 3);
        let at = if asked_at_leader { leader } else { other };
        let target = ReplicaId(to as u64 + 1);
        let done = cluster.group(at, 1).transfer_leader(target, PATIENCE).unwrap().wait().expect("handed over");
        assert_eq!(done.leader, target);
        until("the target to lead", || cluster.group(to, 1).is_leader().then_some(()));
        assert_eq!(cluster.group(to, 1).leader().unwrap().term, done.term);
        // Asking for what is there already is done at once, also where it is only known from others.
        let again = cluster.group(at, 1).transfer_leader(target, PATIENCE).unwrap().wait().expect("leads already");
        assert_eq!(again.leader, target);
    }
}

#[test]
fn a_target_that_can_not_lead_is_refused_by_name_also_when_asked_at_a_follower() {
    let cluster = Cluster::start(1, 0);
    let leader = cluster.leader(1);
    for at in [leader, (leader + 1) % 3] {
        let answer = cluster.group(at, 1).transfer_leader(ReplicaId(9), PATIENCE).unwrap().wait();
        assert_eq!(failed(answer), TransferError::NotAVoter(ReplicaId(9)));
    }
}

#[test]
fn a_target_that_is_down_is_given_up_and_the_leader_goes_on() {
    let mut cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    let leader = cluster.leader(1);
    let (down, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.close(down);
    let target = ReplicaId(down as u64 + 1);
    for at in [leader, other] {
        let why = failed(cluster.group(at, 1).transfer_leader(target, PATIENCE).unwrap().wait());
        assert!(matches!(why, TransferError::TimedOut | TransferError::TooFarBehind { .. }), "{why}");
    }
    assert_eq!(cluster.put(other, 1, 2), 2);
}

#[test]
fn proposals_at_the_old_leader_wait_for_the_new_one() {
    let cluster = Cluster::start(1, 0);
    let leader = cluster.leader(1);
    let group = cluster.group(leader, 1);
    let mut expected = 0;
    for turn in 0..10 {
        let to = ReplicaId((leader as u64 + turn) % 3 + 1);
        let transfer = group.transfer_leader(to, PATIENCE).unwrap();
        let pending: Vec<_> = (0..50).map(|v| group.propose(v, PATIENCE).unwrap()).collect();
        for p in pending {
            // Only what was on its way to a leader that lost its place may have to be said again.
            match p.wait() {
                Ok(_) => expected += 1,
                Err(e) => assert!(!e.may_have_applied() && turn > 0, "turn {turn}: {e}"),
            }
        }
        transfer.wait().expect("handed over");
        cluster.leader(1);
    }
    assert_eq!(cluster.read(leader, 1).len(), expected);
}

#[test]
fn the_preferred_replica_comes_to_lead() {
    let cluster = Cluster::start(1, 0);
    let leader = cluster.leader(1);
    let preferred = ReplicaId((leader as u64 + 1) % 3 + 1);
    for i in 0..3 {
        cluster.group(i, 1).set_preferred_leader(Some(preferred)).unwrap().wait().expect("noted");
    }
    until("the preferred leader", || {
        let all = (0..3).all(|i| cluster.group(i, 1).leader().is_some_and(|l| l.replica == preferred));
        all.then_some(())
    });
}

#[test]
fn a_proposal_that_is_not_to_be_forwarded_is_refused_by_who_does_not_lead() {
    let cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    let leader = cluster.leader(1);
    let here = ProposeOptions { forward: false, expected_term: None };
    assert_eq!(cluster.group(leader, 1).propose_with(7, here, PATIENCE).unwrap().wait(), Ok(2));
    let follower = cluster.group((leader + 1) % 3, 1);
    let error = follower.propose_with(8, here, PATIENCE).unwrap().wait().expect_err("does not lead");
    assert_eq!(error, RequestError::NotLeader { leader: Some(ReplicaId(leader as u64 + 1)) });
    assert!(!error.may_have_applied());
    // Batches of different options do not travel together: one's refusal is not the other's.
    let refused = follower.propose_batch_with([9, 10], here, PATIENCE).unwrap();
    let taken = follower.propose_batch([11, 12], PATIENCE).unwrap();
    assert!(refused.wait().into_iter().all(|r| matches!(r, Err(RequestError::NotLeader { .. }))));
    assert_eq!(taken.wait(), [Ok(3), Ok(4)]);
    assert_eq!(cluster.read(leader, 1), [1, 7, 11, 12]);
}

#[test]
fn a_proposal_meant_for_another_term_is_refused_and_not_applied() {
    let cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    let leader = cluster.leader(1);
    let term = cluster.group(leader, 1).leader().unwrap().term;
    for at in [leader, (leader + 1) % 3] {
        let options = |term| ProposeOptions { expected_term: Some(term), ..ProposeOptions::default() };
        let error = cluster.group(at, 1).propose_with(5, options(Term(term.0 + 1)), PATIENCE).unwrap().wait();
        let error = error.expect_err("another term");
        assert_eq!(error, RequestError::TermChanged { current: term });
        assert!(!error.may_have_applied());
        assert!(cluster.group(at, 1).propose_with(6, options(term), PATIENCE).unwrap().wait().is_ok());
    }
    assert_eq!(cluster.read(leader, 1), [1, 6, 6]);
}

#[test]
fn a_read_index_serves_local_reads_at_every_replica() {
    let cluster = Cluster::start(1, 0);
    for (i, value) in (0..3).zip(1..) {
        cluster.put(i, 1, value);
        for j in 0..3 {
            let group = cluster.group(j, 1);
            let at = group.read_index(PATIENCE).unwrap().wait().expect("an index");
            assert_eq!(group.local_read(at, ()).unwrap(), (1..=value).collect::<Vec<_>>());
            let beyond = Index(group.info().applied.0 + 1000);
            let error = group.local_read(beyond, ()).expect_err("not applied");
            assert!(matches!(error, RequestError::NotApplied { asked, .. } if asked == beyond), "{error}");
        }
    }
}

#[test]
fn who_waits_for_an_index_hears_when_it_is_applied() {
    let cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    let group = cluster.group(2, 1);
    let applied = cluster.group(0, 1).info().applied;
    assert!(group.wait_applied(applied, PATIENCE).unwrap().wait().expect("applied") >= applied);
    let next = Index(group.info().applied.0 + 5);
    let waits: Vec<_> = (0..5).map(|n| group.wait_applied(Index(next.0 - n), PATIENCE).unwrap()).collect();
    let never = group.wait_applied(Index(u64::MAX), Duration::from_millis(50)).unwrap();
    (0..10).for_each(|v| assert!(cluster.put(1, 1, v) > 0));
    for (n, wait) in waits.into_iter().enumerate() {
        assert!(wait.wait().expect("applied").0 >= next.0 - n as u64);
    }
    assert!(matches!(never.wait(), Err(RequestError::Timeout { may_have_applied: false, .. })));
}

#[derive(Default)]
struct Heard {
    leaders: Mutex<Vec<LeaderChange>>,
    members: Mutex<Vec<MembershipChange>>,
    system: Mutex<Vec<HostEvent>>,
}

impl RaftEventListener for Heard {
    fn leader_changed(&self, change: &LeaderChange) {
        self.leaders.lock().unwrap().push(*change);
    }

    fn membership_changed(&self, change: &MembershipChange) {
        self.members.lock().unwrap().push(change.clone());
    }
}

impl SystemEventListener for Heard {
    fn event(&self, event: &HostEvent) {
        self.system.lock().unwrap().push(event.clone());
    }
}

#[test]
fn listeners_hear_of_leaders_members_and_the_life_of_replicas() {
    let dir = tempfile::TempDir::new().unwrap();
    let heard = Arc::new(Heard::default());
    let listeners = Listeners { raft: Some(heard.clone()), system: Some(heard.clone()) };
    let config = NodeHostConfig { data_dir: dir.path().to_path_buf(), host_id: HostId(1), ..NodeHostConfig::default() };
    let host = NodeHost::open_with(config, listeners).unwrap();
    let (group, replica) = (GroupId(1), ReplicaId(1));
    let config =
        GroupConfig { group, replica, election_timeout_ms: 100, heartbeat_interval_ms: 20, ..GroupConfig::default() };
    let start = ReplicaStart::bootstrap([(replica, HostId(1))]);
    let handle = host.start_replica(start, config, List::default).unwrap();
    assert_eq!(handle.propose(1, PATIENCE).unwrap().wait(), Ok(1));
    handle.add_non_voting(ReplicaId(2), HostId(2), PATIENCE).unwrap().wait().expect("added");
    handle.request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait().expect("saved");
    host.stop_replica(group).unwrap();
    let is = |event: &HostEvent, wanted: fn(&ReplicaEvent) -> bool| match event {
        HostEvent::Replica { group: g, replica: r, what } => *g == group && *r == replica && wanted(what),
        _ => false,
    };
    until("the end of the replica", || {
        let heard = heard.system.lock().unwrap();
        heard.iter().any(|e| is(e, |w| *w == ReplicaEvent::Stopped)).then_some(())
    });
    let system = heard.system.lock().unwrap();
    assert!(is(&system[0], |w| *w == ReplicaEvent::Started), "{system:?}");
    assert!(system.iter().any(|e| is(e, |w| matches!(w, ReplicaEvent::SnapshotSaved { .. }))), "{system:?}");
    let leaders = heard.leaders.lock().unwrap();
    assert!(leaders.iter().any(|l| l.group == group && l.leader == Some(replica)), "{leaders:?}");
    let members = heard.members.lock().unwrap();
    assert!(members.iter().any(|m| m.membership.kind(ReplicaId(2)) == Some(ReplicaKind::NonVoting)), "{members:?}");
    assert_eq!(host.info().events_dropped, 0);
}
