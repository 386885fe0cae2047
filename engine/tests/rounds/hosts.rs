//! The rules of what hosts believe of each other, and of a replica's end, that planted bugs break: one scenario each. Run as they
//! are by `rounds`, and with each bug planted, when they must fail, by `plants`.

use crate::alone::{Alone, GROUP, MILLI, outcome, voters};
use longboat_engine::{Changed, Rare, Replacement, ReplicaConfig, Start, StartError, Transferred};
use longboat_io::Clock;
use longboat_raft::{
    Body, ConfigChange, EntryKind, GroupEpoch, HostId, Index, LogPos, Member, Origin, ReplicaId, RunBuilder, StoreId,
    Term, TransferAnswer, TransferOutcome, TransferRefused,
};
use longboat_rsm::{Pending, RequestError};
use longboat_transport::wire::{Beat, GoneReplica, HostMessage, Starts};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The smallest election timeout of the replicas, in milliseconds.
const ELECTION_MS: u64 = 100;

/// A planted bug, and the scenario that catches it.
pub const GUARDS: &[(&str, fn())] = &[
    ("any-answer-answers-a-transfer", an_answer_to_an_earlier_question_ends_no_later_transfer),
    ("slow-rounds-suspect-nobody", a_host_whose_poller_is_always_late_suspects_the_dead),
    ("beats-while-the-disk-hangs", a_host_whose_disk_hangs_stops_beating),
    ("sender-from-anywhere", a_message_counts_only_from_the_host_that_its_sender_lives_on),
    ("other-epoch-is-heard", a_message_of_another_history_is_dropped),
    ("gone-believed-of-anybody", only_a_replicas_own_host_is_believed_that_it_has_stopped),
    ("word-of-the-gone-never-ages", a_leader_does_not_fall_silent_for_good_without_a_member_that_was_started_meanwhile),
    ("stopped-with-more-than-was-sealed", a_replica_that_stops_as_a_change_has_its_turn_starts_again),
    ("superseded-believed-of-anybody", only_a_members_host_is_believed_that_a_history_has_ended),
    ("started-before-a-tombstone", a_group_does_not_come_back_before_the_tombstone_of_its_former_replica_is_written),
];

pub fn alone(scenario: impl FnOnce(Alone)) {
    let dir = tempfile::tempdir().expect("a directory");
    scenario(Alone::open(dir.path()));
}

fn heartbeat() -> Body {
    Body::Heartbeat { commit: Index::ZERO, read_round: 0 }
}

/// The questions for a transfer that were asked.
fn questions(lone: &Alone) -> Vec<u64> {
    let question = |body| if let Body::Transfer { question, .. } = body { Some(question) } else { None };
    lone.said().into_iter().filter_map(|m| question(m.body)).collect()
}

fn an_answer_to_an_earlier_question_ends_no_later_transfer() {
    alone(|mut lone| {
        let (three, shared) = (ReplicaId(3), lone.start(1, voters(3)).expect("starts"));
        lone.hear(2, shared.epoch, 2, 5, heartbeat());
        lone.listen(2);
        assert_eq!(shared.leader(), Some((Term(5), ReplicaId(2))));
        let deadline = lone.clock.now().plus_nanos(5000 * MILLI);
        let ask = || -> Pending<Transferred> {
            shared.request(deadline, |reply| Rare::Transfer(three, reply)).expect("taken")
        };
        let answer = |lone: &Alone, question, outcome| {
            let answer = TransferAnswer::Ended(outcome);
            lone.hear(2, shared.epoch, 2, 0, Body::TransferAnswer { to: three, question, answer });
        };
        let first = ask();
        lone.listen(2);
        let asked = questions(&lone);
        assert_eq!(asked.len(), 1, "{asked:?}");
        answer(&lone, asked[0], TransferOutcome::TimedOut);
        lone.listen(2);
        let error = outcome(first).expect_err("it timed out");
        assert!(matches!(error, RequestError::TransferFailed(_)), "{error}");
        // The same target again. The answer to the first question comes twice, and a refusal of it, too.
        let second = ask();
        lone.listen(2);
        let again = questions(&lone);
        assert_eq!(again.len(), 1, "{again:?}");
        answer(&lone, asked[0], TransferOutcome::TimedOut);
        let refused = TransferAnswer::Refused(TransferRefused::Busy(three));
        lone.hear(2, shared.epoch, 2, 0, Body::TransferAnswer { to: three, question: asked[0], answer: refused });
        lone.listen(2);
        let second = second.wait_timeout(Duration::ZERO).expect_err("an old answer ends it");
        answer(&lone, again[0], TransferOutcome::TargetGone);
        lone.listen(2);
        outcome(second).expect_err("the target is gone");
    });
}

fn a_host_whose_poller_is_always_late_suspects_the_dead() {
    alone(|mut lone| {
        lone.start(1, voters(3)).expect("starts");
        let suspected = |lone: &Alone, host| lone.host.shared.peers.is_suspected(HostId(host));
        lone.listen(5);
        // One long sleep, of this host alone: nobody is suspected for that.
        lone.sleep(100 * ELECTION_MS);
        lone.poll();
        assert!(!suspected(&lone, 2) && !suspected(&lone, 3), "suspected for a sleep of this host");
        for _ in 0..20 {
            lone.sleep(ELECTION_MS * 6 / 10);
            lone.arrive(2, HostMessage::Differing(Vec::new()).encode());
            lone.poll();
        }
        assert!(suspected(&lone, 3), "nothing was ever heard of it");
        assert!(!suspected(&lone, 2), "it is heard in every round");
    });
}

fn a_host_whose_disk_hangs_stops_beating() {
    alone(|mut lone| {
        lone.start(1, voters(3)).expect("starts");
        lone.listen(3 * ELECTION_MS);
        assert!(lone.beats() > 8, "two hosts are beaten to four times an election timeout");
        // What the log writer notes when it begins a write; without its rounds the write does not end.
        lone.host.shared.peers.writing_since.store(lone.clock.now().0, Ordering::Relaxed);
        let idle = |lone: &mut Alone, millis| {
            for _ in 0..millis {
                lone.sleep(1);
                lone.poll();
            }
        };
        idle(&mut lone, ELECTION_MS);
        assert!(lone.beats() > 0, "a slow write is no hung disk");
        idle(&mut lone, ELECTION_MS / 2);
        lone.beats();
        idle(&mut lone, 5 * ELECTION_MS);
        assert_eq!(lone.beats(), 0, "it pretends to live");
        lone.host.shared.peers.writing_since.store(0, Ordering::Relaxed);
        idle(&mut lone, ELECTION_MS);
        assert!(lone.beats() > 0, "its disk is back");
    });
}

fn a_message_counts_only_from_the_host_that_its_sender_lives_on() {
    alone(|mut lone| {
        let shared = lone.start(1, voters(3)).expect("starts");
        lone.hear(3, shared.epoch, 2, 5, heartbeat());
        lone.listen(2);
        assert_eq!(shared.leader(), None, "replica 2 does not live on host 3");
        lone.hear(2, shared.epoch, 2, 5, heartbeat());
        lone.listen(2);
        assert_eq!(shared.leader(), Some((Term(5), ReplicaId(2))));
    });
}

fn a_message_of_another_history_is_dropped() {
    alone(|mut lone| {
        let shared = lone.start(1, voters(3)).expect("starts");
        lone.hear(2, GroupEpoch(shared.epoch.0 + 1), 2, 5, heartbeat());
        lone.listen(2);
        assert_eq!(shared.leader(), None, "the group's history is another one");
        lone.hear(2, shared.epoch, 2, 5, heartbeat());
        lone.listen(2);
        assert!(shared.leader().is_some());
    });
}

/// Seed 2161 of the simulator: the visit in which a replica stopped appended a change behind what it had sealed.
fn a_replica_that_stops_as_a_change_has_its_turn_starts_again() {
    alone(|mut lone| {
        let shared = lone.start(1, voters(1)).expect("starts");
        lone.listen(300);
        let deadline = lone.clock.now().plus_nanos(5000 * MILLI);
        let member = Member { host: HostId(2), store: StoreId::ZERO };
        let what = Replacement { old: ReplicaId(1), new: ReplicaId(2), member };
        // Both are heard of in one round: what is to be proposed is found out in the visit in which the replica stops.
        let _asked: Pending<Changed> = shared.request(deadline, |reply| Rare::Replace(what, reply)).expect("taken");
        assert!(lone.host.starter.stop(GROUP));
        lone.listen(5);
        lone.start(1, Start::Restart).expect("all that it was stopped with is stored");
        lone.listen(300);
    });
}

/// A host's word that a replica does not run there, when it has started so many.
fn gone(epoch: GroupEpoch, replica: u64, count: u64) -> bytes::Bytes {
    let as_of = Starts { incarnation: 1, count };
    HostMessage::Gone(vec![GoneReplica { group: GROUP, epoch, replica: ReplicaId(replica), as_of }]).encode()
}

/// A follower of replica 2 that has fallen silent with it.
fn silent_follower(lone: &mut Alone) -> GroupEpoch {
    let config = ReplicaConfig { quiesce_after_nanos: 50 * MILLI, ..Alone::config(1) };
    let epoch = lone.start_with(config, voters(3)).expect("starts").epoch;
    let mut empty = RunBuilder::new();
    empty.push(EntryKind::Empty, 0, b"");
    let run = empty.seal(Term(5), Index(1), Origin { replica: ReplicaId(2), start: 0 });
    let runs = std::iter::once(run).collect();
    lone.hear(2, epoch, 2, 5, Body::Append { prev: LogPos::ZERO, commit: Index(1), runs });
    lone.listen(3);
    let last = LogPos::new(Term(5), Index(1));
    lone.hear(2, epoch, 2, 5, Body::Quiesce { round: 1, last, commit: Index(1) });
    lone.listen(5);
    assert_eq!(lone.host.shared.peers.silent.load(Ordering::Relaxed), 1, "it was to fall silent");
    epoch
}

fn only_a_replicas_own_host_is_believed_that_it_has_stopped() {
    alone(|mut lone| {
        let epoch = silent_follower(&mut lone);
        let silent = |lone: &Alone| lone.host.shared.peers.silent.load(Ordering::Relaxed) == 1;
        lone.arrive(3, gone(epoch, 2, 0));
        lone.arrive(2, gone(GroupEpoch(epoch.0 + 1), 2, 0));
        lone.listen(5);
        assert!(silent(&lone), "woken by somebody else's word, or of another history");
        lone.arrive(2, gone(epoch, 2, 0));
        lone.listen(5);
        assert!(!silent(&lone), "its leader has stopped");
    });
}

/// What host 2 says of its life: it has started so many replicas, and none is silent.
fn beat(count: u64) -> bytes::Bytes {
    let beat = Beat { incarnation: 1, interval_nanos: 25 * MILLI, starts: count, ..Beat::default() };
    HostMessage::Beat(beat).encode()
}

/// Lets time pass in which host 2 beats. Returns what was said to it.
fn beaten(lone: &mut Alone, count: u64, millis: u64) -> Vec<HostMessage> {
    let mut said = Vec::new();
    for _ in 0..millis.div_ceil(25) {
        lone.arrive(2, beat(count));
        lone.listen(25);
        said.extend(lone.said_to_hosts());
    }
    said
}

/// A leader without followers but a learner on host 2, which does not run there by that host's word. The group is silent.
fn leader_without_its_learner(lone: &mut Alone) -> GroupEpoch {
    let config = ReplicaConfig { quiesce_after_nanos: 50 * MILLI, ..Alone::config(1) };
    let shared = lone.start_with(config, voters(1)).expect("starts");
    beaten(lone, 5, 300);
    let member = Member { host: HostId(2), store: StoreId::ZERO };
    let change = ConfigChange::add_learner(ReplicaId(7), member);
    let deadline = lone.clock.now().plus_nanos(5000 * MILLI);
    let changed = shared.request(deadline, |reply| Rare::Change(change, reply)).expect("taken");
    beaten(lone, 5, 100);
    outcome(changed).expect("changed");
    assert!(!is_silent(lone), "the learner is waited for");
    lone.arrive(2, gone(shared.epoch, 7, 5));
    beaten(lone, 5, 200);
    assert!(is_silent(lone), "all that run are at rest");
    shared.epoch
}

fn is_silent(lone: &Alone) -> bool {
    lone.host.shared.peers.silent.load(Ordering::Relaxed) == 1
}

/// Seed 1510 of the simulator: a leader was awake when it heard of its learner's start, so nobody was woken; it fell silent without the
/// learner, which knew no member whom it could have asked.
fn a_leader_does_not_fall_silent_for_good_without_a_member_that_was_started_meanwhile() {
    alone(|mut lone| {
        let epoch = leader_without_its_learner(&mut lone);
        let asks = |said: &[HostMessage]| said.iter().any(|m| matches!(m, HostMessage::Digest(_)));
        let tell = |lone: &mut Alone, word| {
            lone.arrive(2, word);
            lone.listen(5);
            assert!(!is_silent(lone), "told that a member has stopped");
        };
        assert!(!asks(&beaten(&mut lone, 5, 200)), "what has stopped is no difference");
        // The word is given again, which wakes the leader, and then something starts: it may be the learner.
        tell(&mut lone, gone(epoch, 7, 5));
        let said = beaten(&mut lone, 6, 300);
        assert!(!is_silent(&lone) || asks(&said), "nobody would ever ask for the learner");
        // The same the other way round: the word is on its way for longer than the beat.
        tell(&mut lone, gone(epoch, 7, 6));
        assert!(!asks(&beaten(&mut lone, 6, 300)) && is_silent(&lone), "it was something else that started");
        lone.arrive(2, beat(7));
        tell(&mut lone, gone(epoch, 7, 6));
        let said = beaten(&mut lone, 7, 300);
        assert!(!is_silent(&lone) || asks(&said), "a late word is believed");
        // A host that has started anew may have started fewer.
        let as_of = Starts { incarnation: 2, count: 0 };
        let word = GoneReplica { group: GROUP, epoch, replica: ReplicaId(7), as_of };
        tell(&mut lone, HostMessage::Gone(vec![word]).encode());
        assert!(!asks(&beaten(&mut lone, 7, 300)) && is_silent(&lone), "the word of its next life is newer");
    });
}

fn only_a_members_host_is_believed_that_a_history_has_ended() {
    alone(|mut lone| {
        let shared = lone.start(1, voters(3)).expect("starts");
        let gone = |epoch: u64| gone(GroupEpoch(epoch), 1, 0);
        lone.arrive(9, gone(shared.epoch.0 + 1));
        lone.arrive(2, gone(shared.epoch.0));
        lone.arrive(2, gone(shared.epoch.0 - 1));
        lone.listen(5);
        assert_eq!(shared.refusal(), None, "stopped by a stranger's word, or one of no later history");
        lone.arrive(2, gone(shared.epoch.0 + 1));
        lone.listen(5);
        assert_eq!(shared.refusal(), Some(RequestError::Superseded));
    });
}

fn a_group_does_not_come_back_before_the_tombstone_of_its_former_replica_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut lone = Alone::open(dir.path());
    lone.start(1, voters(1)).expect("starts");
    lone.listen(300);
    assert!(lone.host.starter.stop(GROUP));
    lone.listen(2);
    let removed = lone.host.starter.remove_data(GROUP).expect("stopped");
    // Not written yet.
    lone.step();
    let error = lone.start(2, Start::Join).expect_err("the tombstone is on its way");
    assert!(matches!(error, StartError::BeingRemoved(GROUP)), "{error}");
    lone.listen(2);
    let error = lone.start(2, Start::Join).expect_err("the files are not deleted");
    assert!(matches!(error, StartError::BeingRemoved(GROUP)), "{error}");
    lone.run_jobs();
    outcome(removed).expect("removed");
    assert!(matches!(lone.start(1, voters(1)), Err(StartError::Removed { .. })));
    lone.start(2, Start::Join).expect("under another id");
    lone.listen(10);
    drop(lone);
    let found = Alone::open(dir.path()).found.clone();
    assert_eq!((found[0].removed, found[0].bootstrap.replica), (false, ReplicaId(2)));
}
