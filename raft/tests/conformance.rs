//! etcd's data-driven raft scripts, run against the core.
//!
//! The scripts are not part of this repository. They are read from `LONGBOAT_CONFORMANCE_DIR`, else from
//! `shared/conformance/etcd-raft` beside the repository: every file of `interaction/`, `quorum/` and `confchange/` there.
//! An operation or option that the harness does not know fails its script. Without the directory only the harness itself
//! is checked, by a script of our own.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "conformance/compare.rs"]
mod compare;
#[path = "conformance/datadriven.rs"]
mod datadriven;
#[path = "conformance/env.rs"]
mod env;
#[path = "conformance/expect.rs"]
mod expect;
#[path = "conformance/node.rs"]
mod node;
#[path = "conformance/pure.rs"]
mod pure;

use std::path::{Path, PathBuf};

/// Where our answers may differ from etcd's, and why. None touches hard state, entries or what is committed.
pub const ACCEPTED_DIFFERENCES: &[&str] = &[
    "RequestVote leaves when its term and vote are durable, etcd's at once: the harness lets it out when etcd does",
    "a commit index that moves alone is not acknowledged: the same acknowledgement repeated is not missed",
    "the number of heartbeats and of appends, and where they are cut, are not compared; nor, then, of equal rejections",
    "a commit index that moves alone travels in an empty append here as there; what ships may send it by itself",
    "what a step-down of check-quorum one interval earlier than etcd's leaves out: heartbeats",
];

/// Scripts that need not pass yet, and what they wait for. This list only shrinks: one that passes fails the test.
const NOT_REQUIRED_YET: &[(&str, &str)] =
    &[("interaction/forget_leader_read_only_lease_based.txt", "lease reads are not specified yet")];

type Outcome = Result<(), String>;

fn scripts_dir() -> PathBuf {
    match std::env::var_os("LONGBOAT_CONFORMANCE_DIR") {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/etcd-raft"),
    }
}

fn run_script(family: &str, text: &str) -> Outcome {
    run_script_with(family, text, true)
}

fn run_script_with(family: &str, text: &str, commit_by_append: bool) -> Outcome {
    let cases = datadriven::parse(text)?;
    match family {
        "interaction" => env::run(&cases, commit_by_append),
        "quorum" => pure::quorum(&cases),
        "confchange" => pure::confchange(&cases),
        other => Err(format!("no such family of scripts: {other}")),
    }
}

fn scripts_of(dir: &Path, family: &str) -> Vec<(String, String)> {
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(dir.join(family)) {
        Ok(entries) => entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect(),
        Err(_) => Vec::new(),
    };
    paths.sort();
    let name = |p: &Path| format!("{family}/{}", p.file_name().unwrap().to_string_lossy());
    paths.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

#[test]
fn etcd_scripts_pass() {
    let dir = scripts_dir();
    if !dir.is_dir() {
        let explicit = std::env::var_os("LONGBOAT_CONFORMANCE_DIR").is_some();
        assert!(!explicit, "LONGBOAT_CONFORMANCE_DIR={} is not a directory", dir.display());
        eprintln!("NO CONFORMANCE SCRIPTS at {}: only the harness itself is checked", dir.display());
        return;
    }
    let (mut passed, mut waiting, mut wrong) = (0, 0, Vec::new());
    for family in ["interaction", "quorum", "confchange"] {
        for (name, text) in scripts_of(&dir, family) {
            // A panic fails its script, and does not keep the others from being run.
            let outcome = std::panic::catch_unwind(|| run_script(family, &text))
                .unwrap_or_else(|_| Err("panicked; the reason is above".to_owned()));
            let waits_for = NOT_REQUIRED_YET.iter().find(|(n, _)| *n == name).map(|(_, why)| *why);
            match (outcome, waits_for) {
                (Ok(()), None) => passed += 1,
                (Ok(()), Some(_)) => wrong.push(format!("{name} passes: take it off the list of those not required")),
                (Err(_), Some(why)) => {
                    waiting += 1;
                    eprintln!("not required yet: {name}: {why}");
                }
                (Err(error), None) => wrong.push(format!("{name}: {error}")),
            }
        }
    }
    eprintln!("conformance: {passed} scripts passed, {waiting} not required yet, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n\n"));
    assert!(passed > 0, "no scripts in {}", dir.display());
}

/// A script of our own, in the same form: two of three nodes replicate an entry.
const OWN: &str = include_str!("conformance/own_script.txt");

#[test]
fn the_harness_passes_a_true_script() {
    run_script("interaction", OWN).unwrap();
}

#[test]
fn the_harness_fails_scripts_that_are_not_true() {
    for (from, to) in [
        ("1/4 EntryNormal \"x\"", "1/4 EntryNormal \"y\""),
        ("Vote:1 Commit:2", "Vote:2 Commit:2"),
        ("1->2 MsgVote Term:1 Log:1/2", "1->2 MsgVote Term:1 Log:1/1"),
        ("2->1 MsgAppResp Term:1 Log:0/4", "2->1 MsgAppResp Term:1 Log:0/5"),
        ("Commit:4 Entries", "Commit:3 Entries"),
        ("2: StateFollower", "2: StateLeader"),
        ("match=4", "match=5"),
        ("propose 1 x", "interpose 1 x"),
        ("index=2", "index=2 colour=blue"),
    ] {
        assert!(OWN.contains(from), "{from}");
        let outcome = run_script("interaction", &OWN.replace(from, to));
        assert!(outcome.is_err(), "{to:?} in place of {from:?} went unnoticed");
    }
}

/// The selection that is kept beside the repository holds for cores that send commit indexes by themselves, too.
#[test]
fn etcd_scripts_pass_with_commit_indexes_that_travel_alone() {
    if std::env::var_os("LONGBOAT_CONFORMANCE_DIR").is_some() {
        return;
    }
    for (name, text) in scripts_of(&scripts_dir(), "interaction") {
        let outcome = run_script_with("interaction", &text, false);
        let waits = NOT_REQUIRED_YET.iter().any(|(n, _)| *n == name);
        assert!(outcome.is_ok() || waits, "{name}: {outcome:?}");
    }
    run_script_with("interaction", OWN, false).unwrap();
}

#[test]
fn the_list_of_accepted_differences_is_short() {
    assert!(ACCEPTED_DIFFERENCES.len() < 15);
}
