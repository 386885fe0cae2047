//! The program as others call it.

use std::process::{Command, Output};

/// The fields that the comparison with other engines and the plots read.
const FIELDS: [&str; 19] = [
    "system",
    "scenario",
    "groups",
    "payload",
    "inflight",
    "proposals_per_s",
    "reads_per_s",
    "cpu_us_per_op",
    "cores",
    "p50_us",
    "p99_us",
    "p999_us",
    "fdatasyncs",
    "entries_per_fdatasync",
    "peak_rss_mb",
    "rss_per_replica_kb",
    "start_s",
    "elected_s",
    "errors",
];

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longboat-bench")).args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Calls as the comparison does; returns the JSON line.
fn throughput(dir: &std::path::Path, more: &[&str]) -> serde_json::Value {
    let dir = dir.to_str().expect("a plain path");
    let common = ["throughput", "--payload", "16", "--warmup", "0.2", "--duration", "1", "--dir", dir, "--json"];
    let output = bench(&[&common, more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let line = stdout.lines().rfind(|line| line.starts_with('{')).expect("a line of JSON");
    serde_json::from_str(line).expect("valid JSON")
}

#[test]
fn throughput_prints_one_line_with_every_field() {
    let dir = tempfile::tempdir().expect("a directory");
    let report = throughput(dir.path(), &["--groups", "3", "--inflight", "8", "--reads", "0"]);
    let fields = report.as_object().expect("an object");
    for field in FIELDS {
        assert!(fields.contains_key(field), "no {field} in {report}");
    }
    assert!(report["proposals_per_s"].as_f64() > Some(0.0), "{report}");
    assert_eq!(report["reads_per_s"].as_f64(), Some(0.0), "{report}");
    assert!(report["fdatasyncs"].as_u64() > Some(0), "every write is synced: {report}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("it stays").collect();
    assert!(left.is_empty(), "the hosts' directories stay behind: {left:?}");
}

#[test]
fn reads_and_proposals_are_counted_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let report = throughput(dir.path(), &["--groups", "2", "--inflight", "64", "--reads", "50"]);
    assert!(report["proposals_per_s"].as_f64() > Some(0.0), "{report}");
    assert!(report["reads_per_s"].as_f64() > Some(0.0), "{report}");
}

#[test]
fn a_directory_with_a_host_in_it_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("host-1")).expect("made");
    let output = bench(&["throughput", "--groups", "1", "--dir", dir.path().to_str().expect("a plain path")]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("exists already"), "{}", text(&output.stderr));
}

#[test]
fn out_of_range_options_name_the_option() {
    for arguments in [["--groups", "0"], ["--inflight", "0"], ["--reads", "101"], ["--duration", "100000"]] {
        let output = bench(&[&["throughput"][..], &arguments].concat());
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output.stderr).contains(arguments[0]), "{}", text(&output.stderr));
    }
}
