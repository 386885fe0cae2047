//! The fault matrix: one test for each fault at each place, and that its page is what its table says.

use longboat_sim::matrix::Fault::*;
use longboat_sim::matrix::Place::*;
use longboat_sim::matrix::{strike, table};

#[test]
fn the_page_is_what_the_table_says() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fault-matrix.md");
    let found = std::fs::read_to_string(page).expect("the page is there");
    assert!(found == table::page(), "docs/fault-matrix.md is out of date: `longboat-sim matrix` prints it");
}

#[test]
fn every_planted_bug_has_a_row_in_its_page() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/planted-bugs.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let missing =
        longboat_raft::plant::ALL.iter().map(|(name, _)| *name).filter(|n| !page.contains(&format!("| `{n}` |")));
    let missing: Vec<&str> = missing.collect();
    assert!(
        missing.is_empty(),
        "docs/planted-bugs.md lacks {missing:?}: `longboat-sim mutants --page` prints its rows"
    );
}

#[test]
fn every_cell_says_what_is_required_and_names_a_test_that_exists() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    assert_eq!(table::missing(std::path::Path::new(root)), Vec::<String>::new());
}

#[test]
fn a_killed_process_at_the_leader() {
    strike(Kill, Leader);
}

#[test]
fn a_killed_process_at_a_follower() {
    strike(Kill, Follower);
}

#[test]
fn a_killed_process_at_a_joining_replica() {
    strike(Kill, Joining);
}

#[test]
fn a_killed_process_at_a_silent_host() {
    strike(Kill, Quiesced);
}

#[test]
fn a_killed_process_at_a_saving_host() {
    strike(Kill, Snapshotting);
}

#[test]
fn a_killed_process_at_the_leader_of_a_change() {
    strike(Kill, Change);
}

#[test]
fn a_torn_tail_at_the_leader() {
    strike(TornTail, Leader);
}

#[test]
fn a_torn_tail_at_a_follower() {
    strike(TornTail, Follower);
}

#[test]
fn a_torn_tail_at_a_joining_replica() {
    strike(TornTail, Joining);
}

#[test]
fn a_torn_tail_at_a_silent_host() {
    strike(TornTail, Quiesced);
}

#[test]
fn a_torn_tail_at_a_saving_host() {
    strike(TornTail, Snapshotting);
}

#[test]
fn a_torn_tail_at_the_leader_of_a_change() {
    strike(TornTail, Change);
}

#[test]
fn a_rotten_journal_at_the_leader() {
    strike(Rot, Leader);
}

#[test]
fn a_rotten_journal_at_a_follower() {
    strike(Rot, Follower);
}

#[test]
fn a_rotten_journal_at_a_silent_host() {
    strike(Rot, Quiesced);
}

#[test]
fn a_rotten_journal_at_a_saving_host() {
    strike(Rot, Snapshotting);
}

#[test]
fn a_rotten_journal_at_the_leader_of_a_change() {
    strike(Rot, Change);
}

#[test]
fn a_wiped_directory_at_the_leader() {
    strike(Wiped, Leader);
}

#[test]
fn a_wiped_directory_at_a_follower() {
    strike(Wiped, Follower);
}

#[test]
fn a_wiped_directory_at_a_silent_host() {
    strike(Wiped, Quiesced);
}

#[test]
fn a_wiped_directory_at_a_saving_host() {
    strike(Wiped, Snapshotting);
}

#[test]
fn a_wiped_directory_at_the_leader_of_a_change() {
    strike(Wiped, Change);
}

#[test]
fn a_directory_put_back_at_the_leader() {
    strike(PutBack, Leader);
}

#[test]
fn a_directory_put_back_at_a_follower() {
    strike(PutBack, Follower);
}

#[test]
fn a_directory_put_back_at_a_silent_host() {
    strike(PutBack, Quiesced);
}

#[test]
fn a_directory_put_back_at_a_saving_host() {
    strike(PutBack, Snapshotting);
}

#[test]
fn a_failed_sync_at_the_leader() {
    strike(FailedSync, Leader);
}

#[test]
fn a_failed_sync_at_a_follower() {
    strike(FailedSync, Follower);
}

#[test]
fn a_failed_sync_at_a_joining_replica() {
    strike(FailedSync, Joining);
}

#[test]
fn a_failed_sync_at_a_silent_host() {
    strike(FailedSync, Quiesced);
}

#[test]
fn a_failed_sync_at_a_saving_host() {
    strike(FailedSync, Snapshotting);
}

#[test]
fn a_failed_sync_at_the_leader_of_a_change() {
    strike(FailedSync, Change);
}

#[test]
fn a_full_disk_at_the_leader() {
    strike(NoRoom, Leader);
}

#[test]
fn a_full_disk_at_a_follower() {
    strike(NoRoom, Follower);
}

#[test]
fn a_full_disk_at_a_joining_replica() {
    strike(NoRoom, Joining);
}

#[test]
fn a_full_disk_at_a_silent_host() {
    strike(NoRoom, Quiesced);
}

#[test]
fn a_full_disk_at_a_saving_host() {
    strike(NoRoom, Snapshotting);
}

#[test]
fn a_full_disk_at_the_leader_of_a_change() {
    strike(NoRoom, Change);
}

#[test]
fn a_hanging_sync_at_the_leader() {
    strike(Stall, Leader);
}

#[test]
fn a_hanging_sync_at_a_follower() {
    strike(Stall, Follower);
}

#[test]
fn a_hanging_sync_at_a_joining_replica() {
    strike(Stall, Joining);
}

#[test]
fn a_hanging_sync_at_a_silent_host() {
    strike(Stall, Quiesced);
}

#[test]
fn a_hanging_sync_at_a_saving_host() {
    strike(Stall, Snapshotting);
}

#[test]
fn a_hanging_sync_at_the_leader_of_a_change() {
    strike(Stall, Change);
}

#[test]
fn a_clock_that_jumps_on_at_the_leader() {
    strike(ClockForward, Leader);
}

#[test]
fn a_clock_that_jumps_on_at_a_follower() {
    strike(ClockForward, Follower);
}

#[test]
fn a_clock_that_jumps_on_at_a_joining_replica() {
    strike(ClockForward, Joining);
}

#[test]
fn a_clock_that_jumps_on_at_a_silent_host() {
    strike(ClockForward, Quiesced);
}

#[test]
fn a_clock_that_jumps_on_at_a_saving_host() {
    strike(ClockForward, Snapshotting);
}

#[test]
fn a_clock_that_jumps_on_at_the_leader_of_a_change() {
    strike(ClockForward, Change);
}

#[test]
fn a_clock_that_is_set_back_at_the_leader() {
    strike(ClockBack, Leader);
}

#[test]
fn a_clock_that_is_set_back_at_a_follower() {
    strike(ClockBack, Follower);
}

#[test]
fn a_clock_that_is_set_back_at_a_joining_replica() {
    strike(ClockBack, Joining);
}

#[test]
fn a_clock_that_is_set_back_at_a_silent_host() {
    strike(ClockBack, Quiesced);
}

#[test]
fn a_clock_that_is_set_back_at_a_saving_host() {
    strike(ClockBack, Snapshotting);
}

#[test]
fn a_clock_that_is_set_back_at_the_leader_of_a_change() {
    strike(ClockBack, Change);
}

#[test]
fn a_stopped_process_at_the_leader() {
    strike(Suspended, Leader);
}

#[test]
fn a_stopped_process_at_a_follower() {
    strike(Suspended, Follower);
}

#[test]
fn a_stopped_process_at_a_joining_replica() {
    strike(Suspended, Joining);
}

#[test]
fn a_stopped_process_at_a_silent_host() {
    strike(Suspended, Quiesced);
}

#[test]
fn a_stopped_process_at_a_saving_host() {
    strike(Suspended, Snapshotting);
}

#[test]
fn a_stopped_process_at_the_leader_of_a_change() {
    strike(Suspended, Change);
}

#[test]
fn a_partition_at_the_leader() {
    strike(CutOff, Leader);
}

#[test]
fn a_partition_at_a_follower() {
    strike(CutOff, Follower);
}

#[test]
fn a_partition_at_a_joining_replica() {
    strike(CutOff, Joining);
}

#[test]
fn a_partition_at_a_silent_host() {
    strike(CutOff, Quiesced);
}

#[test]
fn a_partition_at_a_saving_host() {
    strike(CutOff, Snapshotting);
}

#[test]
fn a_partition_at_the_leader_of_a_change() {
    strike(CutOff, Change);
}

#[test]
fn a_one_way_cut_from_at_the_leader() {
    strike(Unheard, Leader);
}

#[test]
fn a_one_way_cut_from_at_a_follower() {
    strike(Unheard, Follower);
}

#[test]
fn a_one_way_cut_from_at_a_joining_replica() {
    strike(Unheard, Joining);
}

#[test]
fn a_one_way_cut_from_at_a_silent_host() {
    strike(Unheard, Quiesced);
}

#[test]
fn a_one_way_cut_from_at_a_saving_host() {
    strike(Unheard, Snapshotting);
}

#[test]
fn a_one_way_cut_from_at_the_leader_of_a_change() {
    strike(Unheard, Change);
}

#[test]
fn a_one_way_cut_to_at_the_leader() {
    strike(Deaf, Leader);
}

#[test]
fn a_one_way_cut_to_at_a_follower() {
    strike(Deaf, Follower);
}

#[test]
fn a_one_way_cut_to_at_a_joining_replica() {
    strike(Deaf, Joining);
}

#[test]
fn a_one_way_cut_to_at_a_silent_host() {
    strike(Deaf, Quiesced);
}

#[test]
fn a_one_way_cut_to_at_a_saving_host() {
    strike(Deaf, Snapshotting);
}

#[test]
fn a_one_way_cut_to_at_the_leader_of_a_change() {
    strike(Deaf, Change);
}

#[test]
fn a_flapping_partition_at_the_leader() {
    strike(Flapping, Leader);
}

#[test]
fn a_flapping_partition_at_a_follower() {
    strike(Flapping, Follower);
}

#[test]
fn a_flapping_partition_at_a_joining_replica() {
    strike(Flapping, Joining);
}

#[test]
fn a_flapping_partition_at_a_silent_host() {
    strike(Flapping, Quiesced);
}

#[test]
fn a_flapping_partition_at_a_saving_host() {
    strike(Flapping, Snapshotting);
}

#[test]
fn a_flapping_partition_at_the_leader_of_a_change() {
    strike(Flapping, Change);
}

#[test]
fn a_slow_link_at_the_leader() {
    strike(SlowLink, Leader);
}

#[test]
fn a_slow_link_at_a_follower() {
    strike(SlowLink, Follower);
}

#[test]
fn a_slow_link_at_a_joining_replica() {
    strike(SlowLink, Joining);
}

#[test]
fn a_slow_link_at_a_silent_host() {
    strike(SlowLink, Quiesced);
}

#[test]
fn a_slow_link_at_a_saving_host() {
    strike(SlowLink, Snapshotting);
}

#[test]
fn a_slow_link_at_the_leader_of_a_change() {
    strike(SlowLink, Change);
}

#[test]
fn broken_connections_at_the_leader() {
    strike(Resets, Leader);
}

#[test]
fn broken_connections_at_a_follower() {
    strike(Resets, Follower);
}

#[test]
fn broken_connections_at_a_joining_replica() {
    strike(Resets, Joining);
}

#[test]
fn broken_connections_at_a_silent_host() {
    strike(Resets, Quiesced);
}

#[test]
fn broken_connections_at_a_saving_host() {
    strike(Resets, Snapshotting);
}

#[test]
fn broken_connections_at_the_leader_of_a_change() {
    strike(Resets, Change);
}
