//! A few seconds of `make chaos`: it runs, faults happen, and clients' histories are linearizable.

#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn a_few_seconds_of_chaos_leave_every_key_linearizable() {
    let dir = tempfile::TempDir::new().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--minutes", "0.15", "--seed", "11", "--clients", "4", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("keys linearizable            96 of 96"), "{said}");
}
