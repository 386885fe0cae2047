//! Planted bugs of the store, each caught by the suite's own checks. A plant is for the whole process, so these tests
//! have one to themselves and take turns.

#[path = "../log_db/damage.rs"]
#[allow(dead_code, reason = "a part of it is for the tests of the suite")]
mod damage;
#[path = "../log_db/driver.rs"]
mod driver;
#[path = "../log_db/model.rs"]
#[allow(dead_code, reason = "a part of it is for the tests of the suite")]
mod model;
#[path = "../log_db/scenarios.rs"]
#[allow(dead_code, reason = "a part of it is for the tests of the suite")]
mod scenarios;
#[path = "../log_db/support.rs"]
#[allow(dead_code, reason = "a part of it is for the tests of the suite")]
mod support;
#[path = "../log_db/workload.rs"]
#[allow(dead_code, reason = "a part of it is for the tests of the suite")]
mod workload;

use longboat_io::sim::SimOp;
use longboat_raft::plant;
use scenarios::{Course, Crash};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Whether the check fails with this bug planted. It must pass without.
fn catches(name: &str, check: impl Fn()) -> bool {
    plant::set(None);
    check();
    plant::set(Some(name));
    let caught = catch_unwind(AssertUnwindSafe(&check)).is_err();
    plant::set(None);
    caught
}

fn failed_syncs() {
    for seed in 41..44 {
        scenarios::fail_everywhere(SimOp::Sync, seed, Course::AsRows(40), Crash::Kill);
    }
}

/// Archives, lets go and uses again, with the power lost after every change.
fn archive_and_lose_power() {
    scenarios::stop_everywhere(61, Course::KeepAndLetGo, Crash::PowerLoss);
}

#[test]
fn every_planted_bug_of_the_store_is_caught() {
    assert!(catches("vote-lost-on-recycle", scenarios::vote_then_recycle));
    assert!(catches("reopen-without-rewrite", failed_syncs));
    assert!(catches("effects-joined-over-a-cut", scenarios::overwrite_then_recycle));
    for name in ["archive-recycled-before-flush", "archived-segment-lost-from-list", "remnants-dropped"] {
        assert!(catches(name, archive_and_lose_power), "{name}");
    }
    assert!(catches("unmovable-segment-chosen-again", scenarios::what_can_not_be_moved_stays));
    let dropped_half_way = || [5, 6, 7].into_iter().for_each(|steps| scenarios::several_rows_are_moved(Some(steps)));
    assert!(catches("moved-rows-hide-the-rest", dropped_half_way));
    assert!(catches("archived-files-stay-open", scenarios::few_archived_files_stay_open));
    assert!(catches("sums-without-opening", scenarios::stale_blocks_of_an_earlier_opening));
    for name in ["rotten-frame-passed-over", "neighbour-quarantined"] {
        assert!(catches(name, damage::every_byte_rots), "{name}");
    }
    let go_on = || assert!(damage::rot_and_go_on(0..40) > 0);
    for name in ["quarantine-not-marked", "quarantine-lost-on-recycle"] {
        assert!(catches(name, go_on), "{name}");
    }
    assert!(catches("quarantined-under-any-id", damage::who_was_here));
}
