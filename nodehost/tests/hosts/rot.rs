//! A byte of a host's journal changes: the group that it belongs to is quarantined and replaced, the others go on.

use crate::cluster::{Cluster, PATIENCE, until};
use crate::machine::List;
use longboat::*;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Changes a byte of some entry of the group in a journal, in the middle of its frames there. The journal's format is in
/// `docs/log-format.md`.
fn damage(journal: &Path, group: u64) {
    for entry in std::fs::read_dir(journal).expect("listed") {
        let path = entry.expect("listed").path();
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        let records =
            (4096..bytes.len().saturating_sub(64)).step_by(4096).filter(|at| bytes[*at..].starts_with(b"LBRC"));
        let mut frames = Vec::new();
        for at in records {
            let items = (0..word(&bytes, at + 40) as u32 as usize).map(|n| at + 64 + 16 * n);
            let of_group = items.filter(|item| word(&bytes, *item) == group);
            frames.extend(of_group.map(|item| at + word(&bytes, item + 8) as u32 as usize));
        }
        if frames.len() > 4 {
            bytes[frames[frames.len() / 2] + 20] ^= 4;
            std::fs::write(&path, bytes).expect("written");
            return;
        }
    }
    panic!("no journal segment with frames of group {group}");
}

#[derive(Default)]
struct Seen(Mutex<Vec<(GroupId, ReplicaId)>>);

impl SystemEventListener for Seen {
    fn event(&self, event: &HostEvent) {
        if let HostEvent::Replica { group, replica, what: ReplicaEvent::Rotten { .. } } = event {
            self.0.lock().push((*group, *replica));
        }
    }
}

#[test]
fn a_group_with_damage_in_the_journal_is_quarantined_and_replaced_and_the_others_go_on() {
    let mut cluster = Cluster::start(3, 0);
    for value in 0..20 {
        (1..=3).for_each(|group| assert!(cluster.put(0, group, value) > 0));
    }
    // The third host has it all before it goes.
    let has_all = |group| cluster.group(2, group).read((), PATIENCE).ok()?.wait().ok().filter(|list| list.len() == 20);
    (1..=3).for_each(|group| drop(until("the log", || has_all(group))));
    cluster.close(2);
    damage(&cluster.dirs[2].path().join("journal"), 2);
    let events = Arc::new(Seen::default());
    // The quarantine is durable from the first opening on.
    for _ in 0..2 {
        let listeners = Listeners { system: Some(events.clone() as Arc<_>), ..Listeners::default() };
        let host = NodeHost::open_with(cluster.host_config(2), listeners).expect("it opens");
        let quarantined = host.info().quarantined;
        assert_eq!(quarantined.len(), 1, "{quarantined:?}");
        assert_eq!((quarantined[0].group, quarantined[0].replica), (GroupId(2), Some(ReplicaId(3))));
        until("the event", || events.0.lock().pop().map(|told| assert_eq!(told, (GroupId(2), ReplicaId(3)))));
        host.close(Duration::from_secs(5)).expect("closes");
    }
    cluster.open_empty(2);
    let template = GroupConfig { group: GroupId::ZERO, replica: ReplicaId::ZERO, ..cluster.config(2, 1) };
    let resumed = cluster.host(2).resume_all(&template, |_, _| List::default());
    assert_eq!(resumed.groups.iter().map(|g| g.id().0).collect::<Vec<_>>(), [1, 3]);
    assert!(matches!(resumed.failed[..], [(GroupId(2), StartError::Rotten { .. })]), "{resumed:?}");
    let again = cluster.join(2, 2, 4).expect_err("what is quarantined has to go first");
    assert!(matches!(again, StartError::Rotten { .. }), "{again}");
    // The group goes on without it, and then with another one in its place.
    assert!(cluster.put(0, 2, 20) > 20);
    cluster.host(2).remove_data(GroupId(2)).expect("taken").wait().expect("removed");
    assert!(cluster.host(2).info().quarantined.is_empty());
    let again = cluster.join(2, 2, 3).expect_err("that id never comes back");
    assert!(matches!(again, StartError::Removed { .. }), "{again}");
    let joined = cluster.join(2, 2, 4).expect("joins");
    until("the replacement", || {
        cluster.group(0, 2).replace_replica(ReplicaId(3), ReplicaId(4), HostId(3), PATIENCE).ok()?.wait().ok()
    });
    let there = until("a read at the new replica", || joined.read((), Duration::from_secs(2)).ok()?.wait().ok());
    assert_eq!(there[..21], (0..21).collect::<Vec<_>>());
    for group in [1, 3] {
        until("a read of the others", || cluster.group(2, group).read((), PATIENCE).ok()?.wait().ok());
    }
}
