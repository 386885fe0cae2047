//! What is printed, for people and as JSON.

use longboat::{Imported, MachineKind, ReplicaKind, SnapshotError, SnapshotInfo};
use serde_json::{Value, json};
use std::path::Path;

const fn kind_of(kind: ReplicaKind) -> &'static str {
    match kind {
        ReplicaKind::Voter => "voter",
        ReplicaKind::NonVoting => "non-voting",
        ReplicaKind::Witness => "witness",
    }
}

const fn machine_of(kind: MachineKind) -> &'static str {
    match kind {
        MachineKind::Exclusive => "exclusive",
        MachineKind::Concurrent => "concurrent",
        MachineKind::OnDisk => "on-disk",
    }
}

fn fields(dir: &Path, info: &SnapshotInfo) -> Value {
    let members = info.members();
    let members = members.iter().map(|m| json!({ "replica": m.replica.0, "host": m.host.0, "kind": kind_of(m.kind) }));
    let files = info.files.iter().map(|(id, bytes)| json!({ "id": id, "bytes": bytes }));
    json!({
        "dir": dir,
        "ok": true,
        "group": info.group.0,
        "epoch": info.epoch.0,
        "index": info.meta.pos.index.0,
        "term": info.meta.pos.term.0,
        "members": members.collect::<Vec<_>>(),
        "removed": info.meta.membership.removed.iter().map(|r| r.0).collect::<Vec<_>>(),
        "joint": info.meta.membership.is_joint(),
        "change_id": info.meta.membership.change_id.0,
        "machine": machine_of(info.kind),
        "compression": info.compression,
        "file_bytes": info.file_bytes,
        "state_bytes": info.state_bytes,
        "sessions": info.sessions,
        "files": files.collect::<Vec<_>>(),
    })
}

/// All that an export holds.
pub(crate) fn inspected(dir: &Path, info: &SnapshotInfo, json: bool) {
    if json {
        return println!("{}", fields(dir, info));
    }
    println!("{}", dir.display());
    println!("  group           {}, in epoch {}", info.group, info.epoch);
    println!("  place           index {}, term {}", info.meta.pos.index, info.meta.pos.term);
    let joint = if info.meta.membership.is_joint() { ", joint" } else { "" };
    println!("  membership      change {}{joint}", info.meta.membership.change_id);
    for member in info.members() {
        println!("    replica {} on host {}, {}", member.replica, member.host, kind_of(member.kind));
    }
    println!("  state machine   {}", machine_of(info.kind));
    println!("  sessions        {}", info.sessions);
    println!("  size            {} bytes of state in {} ({})", info.state_bytes, info.file_bytes, info.compression);
    for (id, bytes) in &info.files {
        println!("  file {id:<10} {bytes} bytes");
    }
}

/// That an export is whole.
pub(crate) fn verified(dir: &Path, info: &SnapshotInfo, json: bool) {
    if json {
        let (group, index) = (info.group.0, info.meta.pos.index.0);
        return println!("{}", json!({ "dir": dir, "ok": true, "group": group, "index": index }));
    }
    println!("{}: good, group {} at index {}", dir.display(), info.group, info.meta.pos.index);
}

/// What is wrong with an export.
pub(crate) fn damaged(dir: &Path, error: &SnapshotError, json: bool) {
    if json {
        println!("{}", json!({ "dir": dir, "ok": false, "error": error.to_string() }));
    } else {
        eprintln!("longboat: {}: {error}", dir.display());
    }
}

/// What was imported.
pub(crate) fn imported(imported: &Imported, json: bool) {
    let Imported { group, replica, index, epoch, was_done, .. } = imported;
    if json {
        let line =
            json!({ "group": group.0, "replica": replica.0, "index": index.0, "epoch": epoch.0, "was_done": was_done });
        return println!("{line}");
    }
    let done = if *was_done { "was imported before" } else { "imported" };
    println!("group {group}: replica {replica} {done}, at index {index}, in epoch {epoch}");
}
