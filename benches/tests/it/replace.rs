//! Replacing replicas under load, in processes of which one is killed.

use std::process::Command;

#[test]
fn replicas_are_replaced_under_load_although_the_caller_dies_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_longboat-bench"))
        .args(["replace", "--groups", "5", "--json", "--dir"])
        .arg(dir.path())
        .output()
        .expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: serde_json::Value = serde_json::from_str(line.trim()).expect("one line of JSON");
    assert_eq!((report["lost"].as_u64(), report["replaced"].as_u64()), (Some(0), Some(5)), "{report}");
    assert!(report["acknowledged"].as_u64() > Some(0), "{report}");
    assert!(report["resumed"].as_u64() > Some(0), "nothing was under way when the caller died: {report}");
    let left = std::fs::read_dir(dir.path()).expect("it stays").count();
    assert_eq!(left, 0, "the hosts' directories stay behind");
}
