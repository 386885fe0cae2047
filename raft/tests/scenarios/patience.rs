//! What is not waited for for ever: a leader that is not heard, a disk that hangs, an answer that does not come.

use crate::cluster::*;
use longboat_raft::*;

fn careful(config: &mut CoreConfig) {
    (config.pre_vote, config.check_quorum, config.see_off_removed) = (true, true, true);
    config.disk_patience_nanos = 2 * ELECTION;
}

/// A full voter and a witness.
fn with_a_witness() -> Cluster {
    let mut c = Cluster::new(&[]);
    let mut membership = voters(&[1, 2]);
    membership.witnesses.insert(id(2));
    for n in [1, 2] {
        let mut config = config(n);
        careful(&mut config);
        c.add(config, Disk { membership: membership.clone(), ..Disk::default() });
    }
    c
}

/// The leader was cut off long enough to step down. The witness, which can't campaign, has asked meanwhile whether it may
/// go, and each time its election timeout began anew.
#[cfg_attr(not(feature = "plant"), test)]
pub fn a_leader_that_is_not_heard_is_not_waited_for_by_one_that_cannot_campaign() {
    let mut c = with_a_witness();
    c.elect(1);
    c.write(1, &["a"]);
    c.core(2).set_election_timeout(ELECTION);
    c.isolate(1);
    c.pass(5 * ELECTION);
    assert!(c.leaders().is_empty());
    assert_eq!(c.core(2).leader(), None, "heard for ever");
    c.heal();
    c.pass(5 * ELECTION);
    assert_eq!(c.leaders(), [1]);
    c.write(1, &["b"]);
    assert_eq!(c.core(1).commit(), c.core(1).last().index);
}

fn three() -> Cluster {
    let mut c = Cluster::with(&[1, 2, 3], careful);
    c.elect(1);
    c.write(1, &["a"]);
    c
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_leader_whose_disk_hangs_makes_way() {
    let mut c = three();
    c.node(1).slow_disk = true;
    c.write(1, &["b"]);
    c.pass(8 * ELECTION);
    assert_eq!(c.core(1).role(), Role::Follower);
    let leaders = c.leaders();
    assert!(leaders == [2] || leaders == [3], "{leaders:?}");
    c.write(leaders[0], &["c"]);
    assert_eq!(c.node(leaders[0]).payloads(), ["a", "b", "c"]);
    // What it wrote too late does no harm.
    c.node(1).slow_disk = false;
    c.complete_all(1);
    c.pass(3 * HEARTBEAT);
    assert_eq!(c.node(1).payloads(), ["a", "b", "c"]);
    assert_eq!(c.leaders(), leaders);
}

#[test]
fn a_leader_whose_disk_is_slow_and_not_hung_goes_on_leading() {
    let mut c = three();
    c.node(1).slow_disk = true;
    for text in ["b", "c", "d", "e"] {
        c.write(1, &[text]);
        c.pass(ELECTION);
        c.complete_all(1);
    }
    assert_eq!(c.leaders(), [1]);
    assert_eq!(c.node(1).payloads(), ["a", "b", "c", "d", "e"]);
}

#[test]
fn a_leader_whose_disk_hangs_stays_where_nobody_could_be_elected_without_it() {
    for others in [&[][..], &[2], &[2, 3]] {
        let members: Vec<u64> = [&[1], others].concat();
        let mut c = Cluster::with(&members, careful);
        c.elect(1);
        // Of three one is gone: the other two need each other.
        if others.len() == 2 {
            c.isolate(3);
        }
        c.node(1).slow_disk = true;
        let _ = c.propose(1, &["a"]).unwrap();
        c.settle();
        c.pass(8 * ELECTION);
        assert_eq!(c.leaders(), [1], "of {members:?}");
        c.complete_all(1);
        c.settle();
        assert_eq!(c.node(1).payloads(), ["a"], "of {members:?}");
    }
}

#[test]
fn a_leader_whose_disk_hangs_does_not_make_way_for_witnesses_alone() {
    let mut c = Cluster::new(&[]);
    let mut membership = voters(&[1, 2, 3]);
    membership.witnesses.insert(id(3));
    for n in [1, 2, 3] {
        let mut config = config(n);
        careful(&mut config);
        c.add(config, Disk { membership: membership.clone(), ..Disk::default() });
    }
    c.elect(1);
    c.isolate(2);
    c.node(1).slow_disk = true;
    let _ = c.propose(1, &["a"]).unwrap();
    c.settle();
    c.pass(6 * ELECTION);
    assert_eq!(c.leaders(), [1]);
}

#[test]
fn a_replica_whose_disk_hangs_does_not_campaign() {
    let mut c = three();
    c.node(2).slow_disk = true;
    c.write(1, &["b"]);
    c.pass(2 * ELECTION);
    c.isolate(2);
    c.pass(5 * ELECTION);
    assert_eq!((c.core(2).role(), c.core(2).term()), (Role::Follower, Term(1)));
    c.complete_all(2);
    c.pass(3 * ELECTION);
    assert_eq!(c.core(2).role(), Role::PreCandidate, "it asks when its disk is back");
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_question_for_an_index_that_was_given_up_takes_no_room() {
    let mut c = three();
    let (now, asked) = (c.now, 1..=1000);
    for n in [1, 2] {
        for context in asked.clone() {
            c.core(n).read_index(now, context);
            c.end_round(n);
            // Every message is lost.
            c.net.clear();
            c.core(n).give_up_read(context);
        }
        assert_eq!(c.core(n).open_reads(), 0, "of {n}");
        c.core(n).read_index(now, 2000);
        c.settle();
        assert_eq!(c.node(n).reads.pop().map(|r| (r.context, r.index)), Some((2000, Some(Index(2)))), "of {n}");
        assert!(c.node(n).reads.is_empty());
    }
}

#[test]
fn rounds_of_reads_that_nobody_confirms_are_bounded_and_lose_nothing() {
    let mut c = Cluster::with(&[1, 2, 3], |_| {});
    c.elect(1);
    let now = c.now;
    for context in 1..=1000 {
        c.core(1).read_index(now, context);
        c.end_round(1);
    }
    let asked = c.flying(|m| matches!(m.body, Body::Heartbeat { .. }));
    assert!(asked < 1000, "{asked} heartbeats for reads");
    c.settle();
    let mut answered: Vec<u64> = c.node(1).reads.iter().filter(|r| r.index.is_some()).map(|r| r.context).collect();
    answered.sort_unstable();
    assert_eq!(answered, (1..=1000).collect::<Vec<u64>>());
}

/// Where a member lives, by host and store.
fn at(host: u64, store: u128) -> Member {
    Member { host: HostId(host), store: StoreId(store) }
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_promotion_leaves_what_is_recorded_of_the_member() {
    let learner = id(4);
    let with = voters(&[1, 2, 3]).after(&ConfigChange::add_learner(learner, at(4, 44)), Index(1));
    // Who asks may know the host and not the store, or nothing at all, as the leader that promotes by itself.
    for said in [at(4, 0), Member::default()] {
        let after = with.after(&ConfigChange::add_voter(learner, said), Index(2));
        assert_eq!((after.voters.contains(&learner), after.hosts[&learner]), (true, at(4, 44)), "{said:?} was said");
    }
    // What is said counts.
    for said in [at(4, 45), at(5, 0)] {
        let after = with.after(&ConfigChange::add_voter(learner, said), Index(2));
        assert_eq!(after.hosts[&learner], said);
    }
}

/// Of a disk that is done with a write only those are told who do something then.
#[cfg_attr(not(feature = "plant"), test)]
pub fn only_who_does_something_with_it_awaits_its_disk() {
    let mut c = three();
    c.pass(ELECTION / 2);
    for n in [1, 2, 3] {
        assert!(!c.core(n).persist_in_flight() && !c.core(n).awaits_disk(), "{n} has nothing under way");
        assert!(!c.core(n).has_more_to_send(), "{n} has sent all that it has");
    }
    c.node(1).slow_disk = true;
    c.node(2).slow_disk = true;
    c.isolate(3);
    c.write(1, &["b"]);
    assert!(c.core(1).persist_in_flight(), "the leader is writing");
    assert!(!c.core(1).awaits_disk(), "its own log alone is no majority");
    assert!(c.core(2).persist_in_flight(), "the follower is writing");
    assert!(!c.core(2).awaits_disk(), "its acknowledgement leaves by itself, and nothing is committed");
    c.complete_all(2);
    c.settle();
    assert!(c.core(1).persist_in_flight() && c.core(1).awaits_disk(), "its own log is what the majority lacks");
}
