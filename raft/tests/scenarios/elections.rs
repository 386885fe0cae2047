//! Terms, votes and leadership: paper sections 5.1, 5.2 and 5.4.1, thesis sections 3.10 and 9.6.

use crate::cluster::*;
use longboat_raft::*;

fn ask(from: u64, to: u64, term: u64, last: LogPos) -> Message {
    message(from, to, term, Body::RequestVote { pre: false, transfer: false, last })
}

fn answer(c: &mut Cluster) -> (u64, Body) {
    let m = c.net.pop_front().expect("an answer");
    (m.term.0, m.body)
}

const YES: Body = Body::VoteResponse { pre: false, granted: true };
const NO: Body = Body::VoteResponse { pre: false, granted: false };

#[test]
fn a_group_elects_a_leader_and_replicates() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a", "b"]);
    c.write(1, &["c"]);
    for n in 1..=3 {
        assert_eq!(c.node(n).payloads(), ["a", "b", "c"]);
        assert_eq!(c.core(n).commit(), Index(4));
        assert_eq!(c.core(n).leader(), Some(id(1)));
    }
}

#[test]
fn somebody_leads_soon_when_only_time_passes() {
    let mut c = Cluster::new(&[1, 2, 3, 4, 5]);
    c.pass(20 * ELECTION);
    assert_eq!(c.leaders().len(), 1);
}

#[test]
fn a_leader_that_is_heard_keeps_its_term() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.pass(50 * ELECTION);
    assert_eq!((c.leaders(), c.core(1).term()), (vec![1], Term(1)));
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn a_replica_alone_elects_itself_once_its_vote_is_durable() {
    let mut c = Cluster::new(&[1]);
    c.node(1).slow_disk = true;
    c.campaign(1);
    assert_eq!(c.core(1).role(), Role::Candidate);
    c.complete(1);
    assert_eq!(c.core(1).role(), Role::Leader);
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn one_vote_is_given_in_a_term_and_repeated_when_asked_again() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(ask(1, 3, 5, LogPos::ZERO));
    assert_eq!(answer(&mut c), (5, YES));
    c.give(ask(2, 3, 5, LogPos::ZERO));
    assert_eq!(answer(&mut c), (5, NO));
    c.give(ask(1, 3, 5, LogPos::ZERO));
    assert_eq!(answer(&mut c), (5, YES));
}

#[test]
fn a_vote_survives_a_restart() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(ask(1, 3, 5, LogPos::ZERO));
    assert_eq!(answer(&mut c), (5, YES));
    c.restart(3);
    c.give(ask(2, 3, 5, LogPos::ZERO));
    assert_eq!(answer(&mut c), (5, NO));
}

#[test]
fn a_vote_goes_only_to_a_log_at_least_as_new() {
    let mut c = Cluster::new(&[]);
    c.add_with_log(1, &[1, 2, 3], 3, 0, &[run(2, 1, &["a"]), run(3, 2, &["b"])]);
    for (last, expected) in [(pos(3, 1), NO), (pos(2, 9), NO), (pos(3, 2), YES)] {
        let term = c.core(1).term().0 + 1;
        c.give(ask(2, 1, term, last));
        assert_eq!(answer(&mut c), (term, expected), "{last:?}");
    }
    c.give(ask(3, 1, 9, pos(4, 1)));
    assert_eq!(answer(&mut c), (9, YES));
}

#[test]
fn a_vote_in_an_earlier_term_is_not_answered() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(ask(1, 3, 5, LogPos::ZERO));
    c.net.clear();
    c.give(ask(2, 3, 4, LogPos::ZERO));
    assert!(c.net.is_empty());
}

#[test]
fn nobody_is_voted_for_in_a_term_that_has_a_leader() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 3, 5, LogPos::ZERO, 0, &[]));
    c.net.clear();
    c.give(ask(2, 3, 5, pos(4, 9)));
    assert_eq!(answer(&mut c), (5, NO));
}

#[test]
fn a_split_vote_elects_nobody_and_time_decides() {
    let mut c = Cluster::new(&[1, 2]);
    let now = c.now;
    for n in [1, 2] {
        c.core(n).campaign(now);
        c.end_round(n);
    }
    c.settle();
    assert!(c.leaders().is_empty());
    c.pass(20 * ELECTION);
    assert_eq!(c.leaders().len(), 1);
}

#[test]
fn a_candidate_gives_up_for_the_leader_of_its_term() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let now = c.now;
    c.core(1).campaign(now);
    c.end_round(1);
    c.give(append(2, 1, 1, LogPos::ZERO, 0, &[]));
    assert_eq!((c.core(1).role(), c.core(1).leader()), (Role::Follower, Some(id(2))));
    assert_eq!(c.core(1).vote(), id(1));
}

#[test]
fn a_candidate_that_a_majority_refuses_is_a_follower_again() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let now = c.now;
    c.core(1).campaign(now);
    c.end_round(1);
    for n in [2, 3] {
        c.give(message(n, 1, 1, NO));
    }
    assert_eq!(c.core(1).role(), Role::Follower);
}

#[test]
fn an_answer_is_counted_once_whoever_repeats_it() {
    let mut c = Cluster::new(&[1, 2, 3, 4, 5]);
    let now = c.now;
    c.core(1).campaign(now);
    c.end_round(1);
    for _ in 0..3 {
        c.give(message(2, 1, 1, YES));
    }
    assert_eq!(c.core(1).role(), Role::Candidate);
    c.give(message(9, 1, 1, YES));
    assert_eq!(c.core(1).role(), Role::Candidate, "a stranger's vote counts");
    c.give(message(3, 1, 1, YES));
    assert_eq!(c.core(1).role(), Role::Leader);
}

#[test]
fn a_vote_of_a_later_term_is_no_vote() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let now = c.now;
    c.core(1).campaign(now);
    c.end_round(1);
    c.give(message(2, 1, 7, YES));
    assert_eq!((c.core(1).role(), c.core(1).term()), (Role::Follower, Term(7)));
}

#[test]
fn a_leader_that_hears_of_a_later_term_steps_down() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.give(message(2, 1, 9, Body::HeartbeatResponse { read_round: 0, overloaded: false }));
    assert_eq!((c.core(1).role(), c.core(1).term(), c.core(1).leader()), (Role::Follower, Term(9), None));
}

#[test]
fn a_pre_candidate_that_is_behind_disturbs_nobody() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.pre_vote = true);
    c.elect(1);
    c.isolate(3);
    c.write(1, &["a"]);
    c.pass(10 * ELECTION);
    assert_eq!(c.core(3).term(), Term(1), "terms rise while nobody hears");
    c.heal();
    c.campaign(3);
    assert_eq!((c.leaders(), c.core(1).term()), (vec![1], Term(1)));
}

#[test]
fn a_pre_vote_changes_neither_term_nor_vote() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(ask(1, 3, 5, LogPos::ZERO));
    c.net.clear();
    let before = c.core(3).hard_state();
    c.give(message(2, 3, 6, Body::RequestVote { pre: true, transfer: false, last: LogPos::ZERO }));
    assert_eq!(answer(&mut c), (6, Body::VoteResponse { pre: true, granted: true }));
    assert_eq!(c.core(3).hard_state(), before);
}

#[test]
fn a_pre_vote_of_an_earlier_campaign_does_not_count() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.pre_vote = true);
    c.give(append(2, 1, 4, LogPos::ZERO, 0, &[]));
    let now = c.now;
    c.core(1).campaign(now);
    c.end_round(1);
    c.give(message(3, 1, 4, Body::VoteResponse { pre: true, granted: true }));
    assert_eq!(c.core(1).role(), Role::PreCandidate);
    c.give(message(3, 1, 5, Body::VoteResponse { pre: true, granted: true }));
    assert_eq!((c.core(1).role(), c.core(1).term()), (Role::Candidate, Term(5)));
}

#[test]
fn a_leader_without_a_majority_steps_down_with_check_quorum() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.check_quorum = true);
    c.elect(1);
    c.isolate(1);
    c.pass(3 * ELECTION);
    assert_eq!(c.core(1).role(), Role::Follower);
}

#[test]
fn a_leader_that_half_of_the_group_answers_stays_with_check_quorum() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.check_quorum = true);
    c.elect(1);
    c.isolate(3);
    c.pass(10 * ELECTION - HEARTBEAT);
    assert_eq!(c.core(1).role(), Role::Leader);
    let answers = [2, 3].map(|n| c.core(1).progress(id(n)).unwrap().is_active());
    assert_eq!(answers, [true, false], "of 2 and 3");
}

#[cfg_attr(not(feature = "plant"), test)]
pub fn who_hears_its_leader_helps_no_disruptor_with_check_quorum() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.check_quorum = true);
    c.elect(1);
    c.give(ask(3, 2, 9, pos(8, 99)));
    assert!(c.net.is_empty());
    assert_eq!(c.core(2).term(), Term(1));
}

#[test]
fn a_forgotten_leader_does_not_keep_a_vote_back() {
    let mut c = Cluster::with(&[1, 2, 3], |config| (config.check_quorum, config.pre_vote) = (true, true));
    c.elect(1);
    c.core(2).forget_leader();
    assert_eq!((c.core(2).leader(), c.core(2).role()), (None, Role::Follower));
    c.isolate(1);
    c.elect(3);
    assert_eq!(c.core(2).leader(), Some(id(3)));
}

#[test]
fn an_old_leader_learns_of_the_term_that_it_cannot_be_asked_about() {
    let mut c = Cluster::with(&[1, 2, 3], |config| config.pre_vote = true);
    c.elect(1);
    c.isolate(1);
    c.elect(2);
    c.heal();
    c.pass(2 * HEARTBEAT);
    assert_eq!((c.core(1).role(), c.core(1).term()), (Role::Follower, Term(2)));
}

#[test]
fn leadership_is_handed_over_at_once_and_nothing_is_lost() {
    let mut c = Cluster::with(&[1, 2, 3], |config| (config.check_quorum, config.pre_vote) = (true, true));
    c.elect(1);
    c.propose(1, &["a"]).unwrap();
    let now = c.now;
    c.core(1).transfer_leader(now, id(3)).unwrap();
    c.settle();
    assert_eq!(c.leaders(), [3]);
    assert!(c.node(1).events.contains(&Event::TransferEnded { to: id(3), outcome: TransferOutcome::Done }));
    c.write(3, &["b"]);
    assert_eq!(c.node(2).payloads(), ["a", "b"]);
}

#[test]
fn a_transfer_that_is_not_answered_is_given_up() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(3);
    let now = c.now;
    c.core(1).transfer_leader(now, id(3)).unwrap();
    c.settle();
    assert!(matches!(c.propose(1, &["x"]), Err(Refused { reason: RefusedWhy::Transferring, .. })));
    c.pass(2 * ELECTION);
    assert_eq!(c.leaders(), [1]);
    let outcome = TransferOutcome::TimedOut;
    let ended = c.node(1).events.iter().find(|e| matches!(e, Event::TransferEnded { .. }));
    assert_eq!(ended, Some(&Event::TransferEnded { to: id(3), outcome }));
    c.write(1, &["x"]);
}

#[test]
fn a_transfer_is_given_up_for_another_when_its_owner_says_so() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.isolate(3);
    let now = c.now;
    c.core(1).transfer_leader(now, id(3)).unwrap();
    c.settle();
    assert_eq!(c.core(1).transfer_leader(now, id(2)), Err(TransferRefused::Busy(id(3))));
    c.core(1).give_up_transfer(now);
    c.core(1).transfer_leader(now, id(2)).unwrap();
    c.settle();
    assert_eq!(c.leaders(), [2]);
    let ended = |e: &Event| matches!(e, Event::TransferEnded { .. });
    let outcomes: Vec<&Event> = c.nodes[&1].events.iter().filter(|e| ended(e)).collect();
    let given_up = Event::TransferEnded { to: id(3), outcome: TransferOutcome::TimedOut };
    let done = Event::TransferEnded { to: id(2), outcome: TransferOutcome::Done };
    assert_eq!(outcomes, [&given_up, &done]);
}

#[test]
fn leadership_is_not_handed_to_who_does_not_vote() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let now = c.now;
    assert_eq!(c.core(1).transfer_leader(now, id(9)), Err(TransferRefused::NotAVoter(id(9))));
    assert_eq!(c.core(2).transfer_leader(now, id(3)), Err(TransferRefused::NotLeader));
    assert_eq!(c.core(1).transfer_leader(now, id(1)), Err(TransferRefused::AlreadyLeader));
}

#[test]
fn a_transfer_after_which_a_third_replica_leads_was_lost() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let now = c.now;
    c.core(1).transfer_leader(now, id(2)).unwrap();
    c.end_round(1);
    // Before its target hears of it, 3 is elected.
    c.net.clear();
    c.elect(3);
    let lost = Event::TransferEnded { to: id(2), outcome: TransferOutcome::LostLeadership };
    assert!(c.node(1).events.contains(&lost), "{:?}", c.node(1).events);
}

#[test]
fn another_replica_may_be_preferred_from_now_on() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.pass(5 * ELECTION);
    assert_eq!(c.leaders(), [1]);
    c.core(1).set_preferred(Some(id(3)));
    c.pass(5 * ELECTION);
    assert_eq!(c.leaders(), [3]);
}

#[test]
fn roles_and_leaders_are_told_when_they_change_and_only_then() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    let term = Term(1);
    let told = |c: &mut Cluster, n| std::mem::take(&mut c.node(n).events);
    let role = |role, term| Event::RoleChanged { role, term };
    let leader = |leader: u64, term| Event::LeaderChanged { leader: Some(id(leader)), term };
    assert_eq!(told(&mut c, 1), [role(Role::Candidate, term), role(Role::Leader, term), leader(1, term)]);
    assert_eq!(told(&mut c, 2), [leader(1, term)]);
    c.write(1, &["a"]);
    c.pass(3 * HEARTBEAT);
    assert_eq!((told(&mut c, 1), told(&mut c, 2)), (vec![], vec![]), "nothing changed");
    c.core(2).forget_leader();
    c.end_round(2);
    assert_eq!(told(&mut c, 2), [Event::LeaderChanged { leader: None, term }]);
    c.elect(3);
    let later = Term(2);
    assert_eq!(told(&mut c, 1).last(), Some(&leader(3, later)));
    assert_eq!(told(&mut c, 2).last(), Some(&leader(3, later)));
}

#[test]
fn equal_inputs_give_equal_replicas() {
    let play = || {
        let mut c = Cluster::new(&[1, 2, 3]);
        c.pass(5 * ELECTION);
        let leader = c.leaders()[0];
        c.write(leader, &["a"]);
        c.pass(5 * ELECTION);
        c.nodes.into_values().map(|n| n.core).collect::<Vec<_>>()
    };
    assert_eq!(play(), play());
}

#[test]
fn followers_tell_a_deadline_and_it_moves_when_the_leader_is_heard() {
    let mut c = Cluster::new(&[1, 2, 3]);
    let before = c.core(2).deadline();
    assert!(before >= Time(ELECTION) && before < Time(2 * ELECTION + 2));
    c.elect(1);
    c.pass(3 * HEARTBEAT);
    assert!(c.core(2).deadline() >= c.now.plus_nanos(ELECTION - HEARTBEAT));
    assert!(c.core(1).deadline() <= c.now.plus_nanos(HEARTBEAT));
}

fn asks_first(config: &mut CoreConfig) {
    (config.pre_vote, config.check_quorum) = (true, true);
}

#[test]
fn replicas_that_have_just_started_elect_early_and_by_turns() {
    for first in 1..=3u64 {
        let mut c = Cluster::with(&[1, 2, 3], asks_first);
        for n in 1..=3 {
            // The positions are 0, 1 and 2: with this spread, `first` has turn 0.
            c.core(n).start_early(4 - first);
        }
        let timeout = c.core(1).deadline().min(c.core(2).deadline()).min(c.core(3).deadline());
        assert_eq!(c.core(first).deadline(), timeout, "{first} is the first to ask");
        c.pass(config(1).election_timeout_nanos / 2);
        assert_eq!(c.leaders(), [first]);
    }
}

#[test]
fn a_replica_that_starts_early_does_not_disturb_a_leader() {
    let mut c = Cluster::with(&[1, 2, 3], asks_first);
    c.elect(1);
    let term = c.core(1).term();
    c.restart(3);
    c.core(3).start_early(1);
    c.pass(4 * config(1).election_timeout_nanos);
    assert_eq!((c.leaders(), c.core(1).term()), (vec![1], term));
}
