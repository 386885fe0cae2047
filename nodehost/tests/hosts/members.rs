//! Members: added, promoted, removed, replaced; from the first word to the last file.

use crate::cluster::{Cluster, PATIENCE, until};
use crate::machine::List;
use longboat::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn changed(pending: Result<Pending<Changed>, RequestError>) -> Changed {
    pending.expect("taken").wait().expect("in effect")
}

fn refused(pending: Result<Pending<Changed>, RequestError>) -> ChangeError {
    match pending.expect("taken").wait().expect_err("refused") {
        RequestError::ConfigRefused(why) => why,
        other => panic!("{other}"),
    }
}

/// Asks again while the change before, which is in effect here, is not yet so at a leader whose disk is slower.
fn settled(ask: impl Fn() -> Result<Pending<Changed>, RequestError>) -> Result<Changed, RequestError> {
    for _ in 0..1000 {
        let outcome = ask()?.wait();
        if !matches!(outcome, Err(RequestError::ConfigRefused(ChangeError::InFlight))) {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("a change stays in flight");
}

fn kinds(members: &[MemberInfo]) -> Vec<(u64, ReplicaKind, u64)> {
    members.iter().map(|m| (m.replica.0, m.kind, m.host.0)).collect()
}

/// All that are up, and run a replica of the group, agree on these voters.
fn await_voters(cluster: &Cluster, group: u64, voters: &[u64]) {
    until("these voters everywhere", || {
        let hosts = cluster.hosts.iter().flatten();
        let mut known = hosts.filter_map(|h| h.group::<List>(GroupId(group)).ok()).map(|g| g.membership());
        let same = |m: &Membership| !m.is_joint() && m.voters.iter().map(|r| r.0).eq(voters.iter().copied());
        known.all(|m| same(&m)).then_some(())
    });
}

#[test]
fn a_member_lives_from_its_addition_to_the_deletion_of_its_data() {
    use ReplicaKind::{NonVoting, Voter};
    let mut cluster = Cluster::start(1, 20);
    (0..100).for_each(|v| assert!(cluster.put(0, 1, v) > 0));
    let new = cluster.add_host();
    let leader = cluster.leader(1);
    let follower = cluster.group((leader + 1) % 3, 1);
    // Asked at a follower, so forwarded.
    let added = changed(follower.add_non_voting(ReplicaId(4), HostId(4), PATIENCE));
    assert_eq!(added.membership.kind(ReplicaId(4)), Some(NonVoting));
    assert_eq!(added.membership.change_id, added.change_id);
    let joined = cluster.join(new, 1, 4).expect("joins");
    until("a read at the new member", || {
        let read = joined.read((), Duration::from_secs(2)).ok()?.wait().ok()?;
        (read == (0..100).collect::<Vec<_>>()).then_some(())
    });
    assert_eq!(kinds(&joined.members()), [(1, Voter, 1), (2, Voter, 2), (3, Voter, 3), (4, NonVoting, 4)]);
    let promoted = changed(follower.promote(ReplicaId(4), PATIENCE));
    assert_eq!(promoted.membership.kind(ReplicaId(4)), Some(Voter));
    await_voters(&cluster, 1, &[1, 2, 3, 4]);
    joined.transfer_leader(ReplicaId(1), PATIENCE).unwrap().wait().expect("handed over");

    let gone = changed(cluster.group(0, 1).remove(ReplicaId(4), PATIENCE));
    assert!(gone.membership.removed.contains(&ReplicaId(4)));
    // It is told, stops, and says so.
    until("the removed replica to stop", || cluster.host(new).group::<List>(GroupId(1)).err());
    until("an error that says why", || matches!(joined.propose(1, PATIENCE), Err(RequestError::Removed)).then_some(()));
    assert!(cluster.host(new).stopped_groups().contains(&GroupId(1)));
    cluster.host(new).remove_data(GroupId(1)).expect("taken").wait().expect("removed");
    assert!(cluster.host(new).stopped_groups().is_empty());
    assert!(!cluster.dirs[new].path().join("snapshots").join("1").exists());
    let again = cluster.host(new).remove_data(GroupId(1)).map(drop);
    assert_eq!(again, Err(RequestError::NotHere(GroupId(1))));

    // Its id is refused for ever: by the group, and here, over a restart of the host.
    assert_eq!(refused(follower.add_voter(ReplicaId(4), HostId(4), PATIENCE)), ChangeError::Removed(ReplicaId(4)));
    for _ in 0..2 {
        let error = cluster.join(new, 1, 4).map(drop).expect_err("removed");
        assert!(matches!(error, StartError::Removed { replica: ReplicaId(4), .. }), "{error}");
        cluster.reopen_empty(new);
    }
    // Under another one the group comes back here.
    changed(cluster.group(0, 1).add_voter(ReplicaId(5), HostId(4), PATIENCE));
    let second = cluster.join(new, 1, 5).expect("another replica joins");
    until("a read at the second", || {
        (second.read((), Duration::from_secs(2)).ok()?.wait().ok()? == (0..100).collect::<Vec<_>>()).then_some(())
    });
    let error = cluster.host(new).remove_data(GroupId(1)).map(drop);
    assert_eq!(error, Err(RequestError::StillRunning(GroupId(1))));
    changed(cluster.group(0, 1).remove(ReplicaId(5), PATIENCE));
    until("the second to stop", || cluster.host(new).group::<List>(GroupId(1)).err());
    cluster.host(new).remove_data(GroupId(1)).expect("taken").wait().expect("removed");
    for id in [4, 5] {
        let error = cluster.join(new, 1, id).map(drop).expect_err("removed");
        assert!(matches!(error, StartError::Removed { .. }), "{error}");
    }
}

#[test]
fn changes_that_make_no_sense_are_refused_with_the_leaders_reason_everywhere() {
    let cluster = Cluster::start(1, 0);
    let leader = cluster.leader(1);
    for at in [leader, (leader + 1) % 3] {
        let group = cluster.group(at, 1);
        let why = |change: ConfigChange| refused(group.change_membership(change, PATIENCE));
        let change = ConfigChange::new;
        assert_eq!(why(change().add_voter(ReplicaId(1), HostId(1))), ChangeError::Exists(ReplicaId(1)));
        assert_eq!(why(change().remove(ReplicaId(8))), ChangeError::Unknown(ReplicaId(8)));
        assert_eq!(why(change().add_voter(ReplicaId(0), HostId(1))), ChangeError::ZeroReplica);
        assert_eq!(why(ConfigChange::leave_joint()), ChangeError::NotJoint);
        let all = change().remove(ReplicaId(1)).remove(ReplicaId(2)).remove(ReplicaId(3));
        assert_eq!(why(all), ChangeError::NoVoters);
        let current = group.membership().change_id;
        let late = change().remove(ReplicaId(1)).after(Index(current.0 + 77));
        assert_eq!(why(late), ChangeError::ChangeId { asked: Index(current.0 + 77), current });
        assert_eq!(why(change().add_witness(ReplicaId(1), HostId(1))), ChangeError::Witness(ReplicaId(1)));
    }
    let unknown = cluster.group(0, 1).promote(ReplicaId(9), PATIENCE).map(drop);
    assert_eq!(unknown, Err(RequestError::ConfigRefused(ChangeError::Unknown(ReplicaId(9)))));
}

#[test]
fn changes_in_order_of_their_ids_are_taken_and_others_refused() {
    let cluster = Cluster::start(1, 0);
    let group = cluster.group(0, 1);
    let mut id = group.membership().change_id;
    for replica in 4..8 {
        let change = ConfigChange::new().add_non_voting(ReplicaId(replica), HostId(9)).after(id);
        let stale = change.clone();
        id = settled(|| group.change_membership(change.clone(), PATIENCE)).expect("in effect").change_id;
        let why = match settled(|| group.change_membership(stale.clone(), PATIENCE)) {
            Err(RequestError::ConfigRefused(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(matches!(why, ChangeError::ChangeId { current, .. } if current == id), "{why}");
    }
}

#[test]
fn several_members_change_at_once_and_the_joint_configuration_is_left() {
    let mut cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    let new = cluster.add_host();
    let leader = cluster.leader(1);
    let (out, stays) = ((leader + 1) % 3, leader);
    let steps = ConfigChange::new().add_voter(ReplicaId(4), HostId(4)).remove(ReplicaId(out as u64 + 1));
    let pending = cluster.group(stays, 1).change_membership(steps, PATIENCE).unwrap();
    cluster.join(new, 1, 4).expect("joins");
    let done = pending.wait().expect("in effect");
    assert!(!done.membership.is_joint(), "resolved when it is left: {:?}", done.membership);
    assert!(done.membership.voters.contains(&ReplicaId(4)) && !done.membership.contains(ReplicaId(out as u64 + 1)));

    // Explicit: it stays joint until somebody says so.
    let steps = ConfigChange::new().add_voter(ReplicaId(5), HostId(4)).explicit();
    let joint = changed(cluster.group(stays, 1).change_membership(steps, PATIENCE));
    assert!(joint.membership.is_joint());
    let why = refused(cluster.group(stays, 1).remove(ReplicaId(5), PATIENCE));
    assert_eq!(why, ChangeError::AlreadyJoint);
    let left = changed(cluster.group(stays, 1).change_membership(ConfigChange::leave_joint(), PATIENCE));
    assert!(!left.membership.is_joint() && left.membership.voters.contains(&ReplicaId(5)));
}

#[test]
fn a_member_that_has_caught_up_is_promoted_if_asked() {
    let mut cluster = Cluster::start(1, 0);
    (0..50).for_each(|v| assert!(cluster.put(0, 1, v) > 0));
    let new = cluster.add_host();
    let change = ConfigChange::new().add_and_promote(ReplicaId(4), HostId(4));
    let added = changed(cluster.group(0, 1).change_membership(change, PATIENCE));
    assert_eq!(added.membership.kind(ReplicaId(4)), Some(ReplicaKind::NonVoting));
    cluster.join(new, 1, 4).expect("joins");
    await_voters(&cluster, 1, &[1, 2, 3, 4]);
}

#[test]
fn a_replica_is_replaced_under_load_although_whoever_asked_for_it_has_died() {
    let mut cluster = Cluster::start(1, 50);
    (0..20).for_each(|v| assert!(cluster.put(0, 1, v) > 0));
    let new = cluster.add_host();
    let leader = cluster.leader(1);
    let caller = (leader + 1) % 3;
    let out = (leader + 2) % 3;
    let (old_id, new_id) = (ReplicaId(out as u64 + 1), ReplicaId(4));
    let stop = AtomicBool::new(false);
    let group = cluster.group(leader, 1);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            for value in 1000u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match group.propose(value, PATIENCE).map(Pending::wait) {
                    Ok(Ok(_)) => acknowledged.push(value),
                    Ok(Err(e)) | Err(e) => assert!(!e.may_have_applied(), "a write with an unknown outcome: {e}"),
                }
            }
            acknowledged
        });
        // The one who asks dies half-way: the new replica is not even started.
        let first = cluster.group(caller, 1).replace_replica(old_id, new_id, HostId(4), PATIENCE).unwrap();
        until("the intent in the membership", || group.membership().promotions.contains_key(&new_id).then_some(()));
        drop(first);
        let dead = cluster.hosts[caller].take().unwrap();
        dead.close(Duration::from_secs(5)).expect("closes in order");
        cluster.open(caller);
        cluster.join(new, 1, 4).expect("joins");
        // Asked again, at another replica: it waits for the same thing.
        let again = changed(cluster.group(caller, 1).replace_replica(old_id, new_id, HostId(4), PATIENCE));
        assert!(again.membership.voters.contains(&new_id) && !again.membership.contains(old_id));
        stop.store(true, Ordering::Relaxed);
        let acknowledged = load.join().expect("the load does not panic");
        assert!(!acknowledged.is_empty());
        let read = cluster.read(new, 1);
        assert!(acknowledged.iter().all(|v| read.contains(v)), "an acknowledged write is lost");
    });
    // Done already: at once, everywhere; what contradicts it is refused.
    let asked = |at: usize, old: ReplicaId, new: ReplicaId, host| {
        cluster.group(at, 1).replace_replica(old, new, HostId(host), PATIENCE)
    };
    for at in [leader, caller, new] {
        changed(asked(at, old_id, new_id, 4));
        assert_eq!(refused(asked(at, ReplicaId(leader as u64 + 1), new_id, 4)), ChangeError::Exists(new_id));
        assert_eq!(refused(asked(at, old_id, new_id, 7)), ChangeError::Exists(new_id));
        assert_eq!(refused(asked(at, old_id, ReplicaId(6), 4)), ChangeError::NotAVoter(old_id));
    }
    until("the old replica to stop", || cluster.host(out).group::<List>(GroupId(1)).err());
}

#[test]
fn the_leader_can_replace_itself() {
    let mut cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    let new = cluster.add_host();
    let leader = cluster.leader(1);
    let old = ReplicaId(leader as u64 + 1);
    let other = cluster.group((leader + 1) % 3, 1);
    let pending = other.replace_replica(old, ReplicaId(4), HostId(4), PATIENCE).unwrap();
    cluster.join(new, 1, 4).expect("joins");
    let done = pending.wait().expect("replaced");
    assert!(!done.membership.contains(old) && done.membership.voters.contains(&ReplicaId(4)));
    until("the old leader to stop", || cluster.host(leader).group::<List>(GroupId(1)).err());
    until("a write", || other.propose(2, PATIENCE).unwrap().wait().ok());
}
