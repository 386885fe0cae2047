//! Whole hosts from seeds: every rule holds, runs repeat, one host's hung disk is its own affair.
//!
//! A failing seed is replayed by the command that the test prints.

use longboat_raft::{HostId, Time};
use longboat_sim::reduce::{Reduction, run_reduced};
use longboat_sim::rng::Rng;
use longboat_sim::swarm::Swarm;
use longboat_sim::{Report, Totals, Trace, World, room, run, silence};

const SECOND: u64 = 1_000_000_000;

/// The seeds that every test run lives through.
const SEEDS: u64 = 200;

/// A named seed, in the world that it had when it was named.
fn live(seed: u64) -> Report {
    judge(run_reduced(seed, false, &[Reduction::Narrow], Trace::default()), " --unattended --reduce narrow")
}

/// The same, with operators.
fn live_attended(seed: u64) -> Report {
    judge(run_reduced(seed, true, &[Reduction::Narrow], Trace::default()), " --reduce narrow")
}

fn judge(report: Report, way: &str) -> Report {
    let seed = report.seed;
    if let Some(violation) = &report.violation {
        panic!("seed {seed}: {violation}\nreplay: cargo run --release -p longboat-sim -- --seed {seed} --trace{way}");
    }
    report
}

#[test]
fn every_rule_holds_in_two_hundred_worlds() {
    let mut totals = Totals::default();
    (0..SEEDS).for_each(|seed| totals.add(&judge(run(seed, Trace::default()), "")));
    println!("{}", totals.json());
    let minutes = totals.nanos as f64 / 60e9;
    assert!(totals.operations as f64 > 500.0 * minutes, "hours of silent groups count for nothing: {totals:?}");
    assert!(totals.archiving > SEEDS / 40, "segments are hardly ever archived: {totals:?}");
    assert!(
        totals.sessions > 2 * SEEDS && totals.attempts > 5 * totals.sessions,
        "sessions are hardly used: {totals:?}"
    );
    assert!(totals.faults as f64 > 20.0 * minutes, "worlds without faults count for nothing: {totals:?}");
    let (changes, transfers, buried) = (totals.changes, totals.transfers, totals.buried);
    assert!(changes > SEEDS && transfers > SEEDS / 2, "operators hardly do anything: {totals:?}");
    assert!(buried > SEEDS / 2, "hardly any replica is seen off and removed: {totals:?}");
}

#[test]
fn a_follower_that_asked_for_a_transfer_is_told_the_term_of_the_new_leader() {
    live_attended(152);
}

#[test]
fn a_witness_that_hears_no_leader_helps_to_elect_one() {
    live_attended(112);
}

#[test]
fn whoever_asks_again_for_a_removal_hears_of_its_end_and_not_before() {
    live_attended(426);
    live_attended(67);
}

/// Its only process is stopped shortly before faults end, for longer than any group may take to make progress after that.
#[test]
fn a_process_that_is_stopped_goes_on_at_the_latest_when_faults_end() {
    judge(run(3030, Trace::default()), "");
}

/// A campaign is thousands of worlds in one process. A host that was killed in the middle of something may be held by that.
#[test]
fn worlds_that_have_ended_let_go_of_their_hosts() {
    let (mut lives, mut kept) = (0, 0);
    for seed in 0..6 {
        let mut world = World::new(seed, Trace::default());
        world.live();
        let (lived, held) = world.end();
        (lives, kept) = (lives + lived, kept + held);
    }
    assert!(lives > 20 && kept * 20 < lives, "{kept} of {lives} lives of hosts are still held");
}

#[test]
fn two_runs_of_a_seed_are_the_same_run() {
    let mut hashes = Vec::new();
    for seed in 0..8 {
        let (first, second) = (run(seed, Trace::default()), run(seed, Trace::default()));
        assert_eq!(first, second, "seed {seed} gives two runs");
        hashes.push(first.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 8, "other seeds give other runs");
}

/// The disk of `host` hangs for 60 s in a quiet world of three hosts; meanwhile, and after, every group commits.
fn hang_for_a_minute(seed: u64, host: HostId) {
    let mut rng = Rng::new(seed);
    let swarm = Swarm::quiet(&mut rng, 4);
    let groups = swarm.groups.clone();
    let mut world = World::with(rng, swarm, Trace::default());
    let later = |world: &World, seconds: u64| world.now().plus_nanos(seconds * SECOND);
    let warm = later(&world, 3);
    world.run_until(warm, |_| false);
    let syncs_again: Time = later(&world, 60);
    world.hosts[host.0 as usize - 1].disk.stall_until(syncs_again);
    for tenth in 0..6 {
        world.clients.expect_progress();
        let until = later(&world, 10).min(syncs_again);
        world.run_until(until, |_| false);
        for (group, _) in &groups {
            let went_on = world.clients.has_progressed(*group);
            assert!(went_on, "group {group} stood still {tenth}0 s after the disk of host {host} hung");
            let other = if host == HostId(1) { HostId(2) } else { HostId(1) };
            let leader = world.replica(other, *group).and_then(|shared| shared.leader()).map(|(_, replica)| replica.0);
            assert!(leader.is_some_and(|leader| leader != host.0), "group {group} is led where the disk hangs");
        }
        assert_eq!(world.around.oracle.violation(), None);
    }
    world.heal();
    world.converge();
    assert_eq!(world.around.oracle.violation(), None);
}

#[test]
fn the_others_go_on_committing_while_one_hosts_fsync_hangs_for_a_minute() {
    (1..=3).for_each(|host| hang_for_a_minute(host, HostId(host)));
}

// What the simulator has found. Each of these seeds failed before the fault that it is named after was mended.

#[test]
fn a_write_is_not_said_never_to_be_applied_while_its_chunk_may_still_be_proposed() {
    live(3);
}

#[test]
fn what_waits_behind_a_chunk_without_a_leader_is_not_forgotten_when_that_times_out() {
    live(4);
}

#[test]
fn a_tail_that_is_written_again_is_not_written_twice_in_one_batch() {
    live(66);
}

#[test]
fn a_footer_that_a_power_loss_tore_does_not_refuse_the_host() {
    live(2112);
}

#[test]
fn a_published_snapshot_is_there_after_a_power_loss() {
    live(999);
}

#[test]
fn the_rules_of_silence_that_planted_bugs_break_hold() {
    silence::GUARDS.iter().for_each(|(_, scenario)| scenario());
}

#[test]
fn a_host_whose_disk_is_nearly_full_refuses_commands_and_nothing_else() {
    room::a_host_whose_disk_is_nearly_full_refuses_commands_and_nothing_else();
}

#[test]
fn a_follower_whose_disk_is_full_holds_nobody_up_and_catches_up() {
    room::a_follower_whose_disk_is_full_holds_nobody_up_and_catches_up();
}

#[test]
fn a_dead_host_wakes_the_groups_that_it_led_and_no_others() {
    silence::a_dead_host_wakes_the_groups_that_it_led_and_no_others();
}

#[test]
fn a_stopped_follower_does_not_keep_its_group_awake_and_is_missed_until_it_is_back() {
    silence::a_stopped_follower_does_not_keep_its_group_awake_and_is_missed_until_it_is_back();
}

#[test]
fn one_of_two_sides_wakes_from_quiesce_and_the_other_does_not() {
    silence::one_of_two_sides_wakes_from_quiesce_and_the_other_does_not();
}

#[test]
fn silent_groups_survive_that_all_hosts_lose_power() {
    silence::silent_groups_survive_that_all_hosts_lose_power();
}

#[test]
fn a_host_that_starts_anew_before_it_is_suspected_leaves_no_group_behind() {
    silence::a_host_that_starts_anew_before_it_is_suspected_leaves_no_group_behind();
}

#[test]
fn silent_groups_send_nothing_but_their_hosts_beats() {
    silence::silent_groups_send_nothing_but_their_hosts_beats();
}

#[test]
fn groups_of_a_dead_host_elect_within_two_election_timeouts() {
    silence::groups_of_a_dead_host_elect_within_two_election_timeouts();
}

#[test]
fn a_host_that_was_cut_off_while_its_groups_slept_is_brought_up_to_date() {
    silence::a_host_that_was_cut_off_while_its_groups_slept_is_brought_up_to_date();
}

#[test]
fn a_host_that_is_back_before_its_groups_turn_came_goes_on_leading() {
    silence::a_host_that_is_back_before_its_groups_turn_came_goes_on_leading();
}

#[test]
fn a_witness_is_given_a_snapshot_of_what_is_committed_though_nobody_has_applied_it() {
    let without = [
        "narrow",
        "without=KillThenPowerLoss",
        "group=4",
        "no-sessions",
        "hosts=2",
        "calm-network",
        "small",
        "no-requested-snapshots",
        "schedule=6",
        "fault-ms=474",
        "one-worker",
    ];
    let without: Vec<Reduction> = without.iter().map(|text| text.parse().expect("a reduction")).collect();
    let report = run_reduced(227, true, &without, Trace::default());
    assert_eq!(report.violation, None);
}
