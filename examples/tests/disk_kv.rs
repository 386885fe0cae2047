//! `disk_kv` as a process that is killed again and again.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const KILLS: u64 = 12;

fn disk_kv(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_disk_kv"));
    // Few entries between snapshots: the log is let go of many times, and only the storage has what was in it.
    command.arg("--data").arg(data).args(["--snapshot-entries", "200", "--compaction-overhead", "10"]);
    command
}

fn dump(data: &Path) -> BTreeMap<u64, String> {
    let output = disk_kv(data).arg("dump").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
    pairs.map(|(key, value)| (key.parse().unwrap(), value.to_owned())).collect()
}

#[test]
fn killed_at_any_moment_it_loses_nothing_and_applies_nothing_twice() {
    let seed = std::env::var("DISK_KV_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("replay: DISK_KV_SEED={seed} cargo test --release -p longboat-examples --test disk_kv");
    let mut random = seed;
    let data = TempDir::new().unwrap();
    let (mut acknowledged, mut next) = (Vec::new(), 0u64);
    for _ in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut child = disk_kv(data.path()).args(["load", &next.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after some acknowledgements, and then a moment that is not theirs; the rest of what it said counts as well.
        let count = 1 + (random >> 33) % 3_000;
        for _ in 0..count {
            acknowledged.push(lines.next().expect("it goes on until it is killed").unwrap().parse::<u64>().unwrap());
        }
        std::thread::sleep(Duration::from_micros((random >> 20) % 3_000));
        child.kill().unwrap();
        acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| line.parse::<u64>().ok()));
        child.wait().unwrap();
        next = acknowledged.iter().max().unwrap() + 1_000;
    }
    let found = dump(data.path());
    let lost: Vec<&u64> = acknowledged.iter().filter(|n| !found.contains_key(n)).collect();
    let twice: Vec<_> = found.iter().filter(|(_, value)| *value != "1").collect();
    assert!(lost.is_empty(), "of {} acknowledged, lost: {lost:?}", acknowledged.len());
    assert!(twice.is_empty(), "applied more than once: {twice:?}");
    assert!(found.len() > KILLS as usize, "something was written");
}

#[test]
fn what_was_set_is_there_after_a_restart() {
    let data = TempDir::new().unwrap();
    assert!(disk_kv(data.path()).args(["set", "7", "seven"]).status().unwrap().success());
    let output = disk_kv(data.path()).args(["get", "7"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "seven\n");
}
