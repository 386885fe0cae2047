//! The rules that the planted bugs of this crate break, one scenario each. Run as they are by `scenarios`, and with each
//! bug planted, when they must fail, by `plants`.

use crate::cluster::*;
use longboat_raft::*;

/// A scenario, and the planted bug that it catches.
pub const GUARDS: &[(&str, fn())] = &[
    ("ack-before-durable", an_append_is_acknowledged_when_it_is_durable),
    ("ack-before-durable", a_vote_is_given_when_it_is_durable),
    ("duplicate-append-acked-in-flight", a_repeated_append_waits_for_the_first),
    ("request-vote-before-durable", a_vote_is_asked_for_when_the_own_one_is_durable),
    ("commit-old-term-by-counting", an_entry_of_an_earlier_term_is_not_committed_by_counting),
    ("aba-token", a_write_of_overwritten_entries_makes_nothing_durable),
    ("apply-before-durable", entries_are_applied_when_they_are_durable_here),
    ("own-log-never-decides", crate::patience::only_who_does_something_with_it_awaits_its_disk),
    ("quiesce-without-match", crate::silence::nobody_is_silent_with_another_log_than_the_leaders),
    ("quiesce-before-commit-durable", crate::silence::nobody_is_silent_before_its_commit_index_is_durable),
    ("suspected-leader-kept", crate::silence::followers_of_a_suspected_leader_elect_another_at_once),
    ("pre-candidate-falls-silent", crate::silence::a_follower_that_campaigns_takes_its_agreement_back),
    ("payload-to-witness", crate::rules::a_witness_keeps_places_and_no_payloads),
    ("witness-ahead-of-leader", crate::rules::a_witness_is_never_ahead_of_its_leaders_disk),
    ("majority-of-witnesses", crate::rules::witnesses_are_never_a_majority),
    ("stripped-run-taken", crate::rules::a_replica_with_a_state_machine_takes_no_stripped_run),
    ("witness-for-a-while", crate::rules::a_replica_is_a_witness_or_none_for_its_life),
    ("witness-campaigns", crate::rules::a_witness_never_campaigns),
    ("two-changes-in-flight", crate::rules::a_change_waits_for_the_one_before),
    ("promoted-before-caught-up", crate::rules::a_learner_that_lags_is_not_promoted),
    ("forward-of-another-term-appended", crate::proposing::what_was_forwarded_in_an_earlier_term_is_refused),
    ("closed-forward-appended", crate::forwarding::what_was_lost_is_said_to_be_closed_and_never_appended_later),
    ("closed-at-the-commit-index", crate::forwarding::what_is_in_the_log_lies_before_the_end_that_is_named),
    ("closed-by-another-terms-leader", crate::forwarding::no_leader_speaks_for_another_term),
    ("expected-term-ignored", crate::rules::a_proposal_for_another_term_is_refused),
    ("transfer-to-a-laggard", crate::rules::the_target_of_a_transfer_campaigns_with_the_whole_log),
    ("preferred-before-caught-up", crate::rules::a_preferred_replica_that_lags_is_not_handed_leadership),
    ("preferred-without-back-off", crate::rules::handing_over_to_the_preferred_backs_off),
    ("removed-told-too-early", crate::rules::a_removed_replica_may_go_when_a_majority_knows),
    ("campaign-without-snapshot", crate::rules::a_replica_without_a_snapshot_does_not_campaign),
    ("campaign-behind-the-machine", crate::rules::a_replica_behind_its_machine_does_not_campaign),
    ("lost-log-taken-for-committed", crate::rules::a_replica_behind_its_machine_does_not_campaign),
    ("reads-wait-for-the-removed", crate::reading::a_read_does_not_wait_for_a_member_that_is_gone),
    ("ack-after-losing-log", crate::rules::a_replica_that_lost_entries_acknowledges_nothing),
    ("vote-after-losing-log", crate::rules::a_replica_that_lost_entries_does_not_vote),
    ("lost-log-takes-old-snapshot", crate::rules::lost_entries_are_made_up_for_by_a_snapshot_that_covers_them),
    ("two-votes-in-a-term", crate::elections::one_vote_is_given_in_a_term_and_repeated_when_asked_again),
    ("vote-for-an-older-log", crate::bugs::a_laggard_and_an_up_to_date_witness_elect_nobody),
    ("own-vote-before-durable", crate::elections::a_replica_alone_elects_itself_once_its_vote_is_durable),
    ("own-entry-before-durable", crate::bugs::a_leader_counts_only_what_it_has_written),
    ("later-vote-counts", crate::bugs::a_vote_of_another_term_elects_nobody),
    ("ack-of-an-earlier-term", crate::bugs::an_acknowledgement_of_a_reverted_log_counts_for_nothing),
    ("two-of-five", crate::bugs::two_acknowledgements_of_five_commit_nothing),
    ("joint-by-one-half", crate::bugs::a_joint_configuration_is_not_left_before_that_is_committed),
    ("joint-by-one-half", crate::bugs::a_restored_joint_configuration_needs_both_majorities),
    ("leave-joint-twice", crate::bugs::a_joint_configuration_is_left_by_one_entry),
    ("new-leader-ignores-tail", crate::bugs::a_new_leader_makes_no_change_on_top_of_one_that_it_may_have),
    ("campaign-before-change-in-effect", crate::bugs::nobody_campaigns_before_a_committed_change_is_in_effect),
    ("commit-not-saved", crate::bugs::power_loss_brings_no_old_configuration_back),
    ("removed-id-returns", crate::bugs::a_removed_replica_is_never_counted_again),
    ("removed-is-heard", crate::bugs::a_removed_replica_that_returns_with_a_later_term_disturbs_nobody),
    ("non-voter-unseats", crate::bugs::a_non_voter_of_a_later_term_unseats_nobody),
    ("disruptor-is-helped", crate::elections::who_hears_its_leader_helps_no_disruptor_with_check_quorum),
    ("pre-candidate-not-told", crate::bugs::the_only_one_who_can_win_learns_the_term_to_win_in),
    ("transfer-asks-first", crate::bugs::pre_vote_does_not_block_a_transfer),
    ("append-without-predecessor", crate::bugs::no_append_goes_without_its_predecessor),
    ("term-zero-matches", crate::bugs::an_empty_append_after_term_zero_matches_nothing),
    (
        "commit-past-the-known",
        crate::replication::a_commit_index_counts_only_as_far_as_the_log_is_known_to_be_the_leaders,
    ),
    ("heartbeat-commits-too-much", crate::bugs::a_conflicting_tail_is_replaced_though_messages_were_lost),
    ("lost-appends-forgotten", crate::bugs::a_conflicting_tail_is_replaced_though_messages_were_lost),
    ("stale-rejection-moves-back", crate::flow::a_stale_rejection_moves_nothing_back),
    ("snapshot-cuts-suffix", crate::bugs::an_old_snapshot_leaves_a_newer_suffix_alone),
    ("snapshot-ends-at-a-conflict", crate::bugs::a_snapshot_that_ends_at_a_conflict_is_installed_once),
    ("snapshot-demotes", crate::snapshots::a_snapshot_does_not_make_a_voter_non_voting),
    ("snapshot-without-voters", crate::bad_input::a_snapshot_whose_membership_contradicts_itself_is_dropped),
    ("install-acked-before-its-record", crate::snapshots::an_install_is_acknowledged_when_its_record_is_durable),
    ("restore-drops-joint", crate::bugs::a_restored_joint_configuration_needs_both_majorities),
    ("change-id-of-snapshot", crate::bugs::a_snapshots_change_id_is_that_of_its_last_change),
    ("read-before-own-commit", crate::bugs::a_new_leader_serves_no_read_before_it_has_committed),
    ("read-joins-a-running-round", crate::reading::a_read_is_not_confirmed_by_a_round_that_began_before_it),
    ("given-up-reads-kept", crate::patience::a_question_for_an_index_that_was_given_up_takes_no_room),
    (
        "silent-leader-is-heard",
        crate::patience::a_leader_that_is_not_heard_is_not_waited_for_by_one_that_cannot_campaign,
    ),
    ("leader-with-a-hung-disk-stays", crate::patience::a_leader_whose_disk_hangs_makes_way),
    ("promotion-forgets-the-store", crate::patience::a_promotion_leaves_what_is_recorded_of_the_member),
    ("any-answer-answers-a-read", crate::bugs::an_answer_to_a_read_given_up_answers_no_other),
];

fn accepted(m: &Message) -> bool {
    matches!(m.body, Body::AppendAccepted { .. })
}

/// A follower of leader 1 in term 1, with a slow disk.
fn follower() -> Cluster {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.give(append(1, 2, 1, LogPos::ZERO, 0, &[run(1, 1, &["a"])]));
    c.net.clear();
    c.node(2).slow_disk = true;
    c
}

pub fn an_append_is_acknowledged_when_it_is_durable() {
    let mut c = follower();
    c.give(append(1, 2, 1, pos(1, 1), 0, &[run(1, 2, &["b"])]));
    assert_eq!(c.flying(accepted), 0, "acknowledged before it is on the disk");
    c.complete_all(2);
    let answer = message(2, 1, 1, Body::AppendAccepted { matched: Index(2) });
    assert_eq!(c.net.pop_front(), Some(answer));
}

pub fn a_vote_is_given_when_it_is_durable() {
    let mut c = follower();
    let ask = Body::RequestVote { pre: false, transfer: false, last: pos(1, 9) };
    c.give(message(3, 2, 2, ask));
    assert!(c.net.is_empty(), "answered before the vote is on the disk");
    c.complete_all(2);
    assert_eq!(c.net.pop_front(), Some(message(2, 3, 2, Body::VoteResponse { pre: false, granted: true })));
}

pub fn a_repeated_append_waits_for_the_first() {
    let mut c = follower();
    let again = append(1, 2, 1, pos(1, 1), 0, &[run(1, 2, &["b"])]);
    c.give(again.clone());
    c.give(again);
    assert_eq!(c.flying(accepted), 0, "the repeated append is acknowledged while the first is in flight");
    // The repeated one persists nothing of its own; its answer rides behind the first one's batch.
    assert_eq!(c.node(2).batches.len(), 2);
    assert!(c.node(2).batches[1].persist.is_none());
    c.complete(2);
    assert_eq!(c.flying(accepted), 1);
}

pub fn a_vote_is_asked_for_when_the_own_one_is_durable() {
    let mut c = follower();
    c.campaign(2);
    assert!(c.net.is_empty(), "asked before the candidate's term is on the disk");
    c.complete(2);
    assert_eq!(c.flying(|m| matches!(m.body, Body::RequestVote { pre: false, .. })), 2);
}

/// Paper figure 8: an entry of term 2 on a majority may still be overwritten by the leader of term 3.
pub fn an_entry_of_an_earlier_term_is_not_committed_by_counting() {
    let members = [1, 2, 3, 4, 5];
    let mut c = Cluster::new(&[]);
    c.add_with_log(1, &members, 3, 0, &[run(1, 1, &["one"]), run(2, 2, &["two"])]);
    c.campaign(1);
    c.net.clear();
    for voter in [2, 3] {
        c.give(message(voter, 1, 4, Body::VoteResponse { pre: false, granted: true }));
    }
    assert_eq!(c.core(1).role(), Role::Leader);
    // Figure 8 (c): term 2's entry is on a majority, nothing of the leader's own term is.
    for follower in [2, 3] {
        c.give(message(follower, 1, 4, Body::AppendAccepted { matched: Index(2) }));
    }
    assert_eq!(c.core(1).commit(), Index(0), "committed an entry of an earlier term by counting");
    // (e): once an entry of its own term is on a majority, all before it is committed with it.
    for follower in [2, 3] {
        c.give(message(follower, 1, 4, Body::AppendAccepted { matched: Index(3) }));
    }
    assert_eq!(c.core(1).commit(), Index(3));
}

pub fn a_write_of_overwritten_entries_makes_nothing_durable() {
    let mut c = follower();
    c.give(append(1, 2, 1, pos(1, 1), 0, &[run(1, 2, &["old"])]));
    // Another leader overwrites the entry while its write is under way, and commits what it wrote there.
    c.give(append(3, 2, 2, pos(1, 1), 2, &[run(2, 2, &["new"])]));
    assert_eq!(c.node(2).batches.len(), 2);
    c.complete(2);
    c.end_round(2);
    assert_eq!(c.core(2).durable(), Index(1), "an old write made a newer entry durable");
    assert_eq!(c.node(2).payloads(), ["a"]);
    c.complete_all(2);
    assert_eq!(c.core(2).durable(), Index(2));
    assert_eq!(c.node(2).payloads(), ["a", "new"]);
    assert_eq!(c.node(2).disk.last(), pos(2, 2));
}

pub fn entries_are_applied_when_they_are_durable_here() {
    let mut c = follower();
    c.give(append(1, 2, 1, pos(1, 1), 2, &[run(1, 2, &["b"])]));
    assert_eq!(c.core(2).commit(), Index(2));
    assert_eq!(c.node(2).payloads(), ["a"], "applied what is not on the disk");
    c.complete_all(2);
    assert_eq!(c.node(2).payloads(), ["a", "b"]);
}
