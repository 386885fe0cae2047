//! A snapshot that is larger than the memory there is.

use std::process::Command;

/// A process may have a third of what its one state takes, stacks of its threads and all: it saves it, sends it to a second host
/// and recovers it there. The state machine checks every byte.
#[test]
fn a_state_goes_through_a_process_that_has_no_room_for_it() {
    let dir = tempfile::tempdir_in(".").expect("a directory on a disk");
    let limited = ["snapshot", "--groups", "1", "--bytes", "512M", "--memory-limit", "192M", "--json", "--dir"];
    let done = Command::new(env!("CARGO_BIN_EXE_longboat-bench")).args(limited).arg(dir.path()).output();
    let done = done.expect("it runs");
    let (said, wrong) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{said}{wrong}");
    let report: serde_json::Value = serde_json::from_str(said.trim()).expect("one line of JSON");
    assert_eq!(report["memory_limit_mb"], 192.0, "{report}");
    assert!(report["peak_rss_mb"].as_f64().is_some_and(|mb| mb > 1.0 && mb < 192.0), "{report}");
}
