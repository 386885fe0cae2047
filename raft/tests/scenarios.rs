//! Scenarios over the core alone: several cores, a network of messages in a queue and disks that complete when told.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "scenarios/bad_input.rs"]
mod bad_input;
#[path = "scenarios/borders.rs"]
mod borders;
#[path = "scenarios/bugs.rs"]
mod bugs;
#[path = "scenarios/cluster.rs"]
mod cluster;
#[path = "scenarios/decoding.rs"]
mod decoding;
#[path = "scenarios/elections.rs"]
mod elections;
#[path = "scenarios/flow.rs"]
mod flow;
#[path = "scenarios/forwarding.rs"]
mod forwarding;
#[path = "scenarios/fuzzing.rs"]
mod fuzzing;
#[path = "scenarios/guards.rs"]
mod guards;
#[path = "scenarios/house.rs"]
mod house;
#[path = "scenarios/members.rs"]
mod members;
#[path = "scenarios/oracle.rs"]
mod oracle;
#[path = "scenarios/patience.rs"]
mod patience;
#[path = "scenarios/persistence.rs"]
mod persistence;
#[path = "scenarios/proposing.rs"]
mod proposing;
#[path = "scenarios/quiesce.rs"]
mod quiesce;
#[path = "scenarios/random.rs"]
mod random;
#[path = "scenarios/reach.rs"]
mod reach;
#[path = "scenarios/reading.rs"]
mod reading;
#[path = "scenarios/replication.rs"]
mod replication;
#[path = "scenarios/rules.rs"]
mod rules;
#[path = "scenarios/silence.rs"]
mod silence;
#[path = "scenarios/snapshots.rs"]
mod snapshots;
#[path = "scenarios/storm.rs"]
mod storm;

#[test]
fn the_rules_that_planted_bugs_break_hold() {
    for (_, scenario) in guards::GUARDS {
        scenario();
    }
}
