//! One host in a process of its own, told what to do line by line: a shell around the public API.

use crate::chain::{Chain, Link, Serial};
use crate::cluster::BoxError;
use crate::obey::{Calls, number, said};
use longboat::{Group, GroupConfig, GroupId, HostId, NodeHost, NodeHostConfig, ReplicaId, ReplicaStart};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The deadline of a write, of a read and of closing.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The deadline of a replacement: the new replica may have to be sent everything.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(120);
/// Applied entries between snapshots: the new replicas are sent some.
const SNAPSHOT_ENTRIES: u64 = 500;

struct Host {
    host: NodeHost,
    replica: ReplicaId,
    groups: BTreeMap<u64, Group<Chain>>,
}

/// Serves until standard input ends.
///
/// # Errors
/// When the host can't be opened, or is told something that makes no sense.
pub(super) fn run(id: u64, dir: &Path) -> Result<(), BoxError> {
    let host = NodeHost::open(NodeHostConfig {
        data_dir: dir.join(format!("host-{id}")),
        host_id: HostId(id),
        deployment_id: 1,
        ..NodeHostConfig::default()
    })?;
    let mut calls = Calls::default();
    let mut host = Host { host, replica: ReplicaId(id), groups: BTreeMap::new() };
    calls.say(&format!("address {}", host.host.local_address()))?;
    calls.serve(|calls, words| host.obey(calls, words))?;
    Ok(host.host.close(TIMEOUT)?)
}

impl Host {
    fn obey(&mut self, calls: &mut Calls, words: &[&str]) -> Result<(), BoxError> {
        let number = |at| number(words, at);
        match words[0] {
            "peer" => self.host.set_peer_address(HostId(number(1)?), words[2].parse()?),
            "start" => {
                let members = || (1..=super::HOSTS).map(|n| (ReplicaId(n), HostId(n)));
                self.start(1..=number(1)?, || ReplicaStart::bootstrap(members()))?;
                calls.say("started")?;
            }
            "join" => {
                self.start(number(1)?..=number(2)?, || ReplicaStart::Join)?;
                calls.say("started")?;
            }
            "state" => {
                let state = self.state();
                calls.say(&state)?;
            }
            "write" => self.write(calls, number(1)?, number(2)?)?,
            "check" => self.check(calls, number(1)?, number(2)?)?,
            "replace" => self.replace(calls, number(1)?)?,
            other => return Err(format!("what is {other}?").into()),
        }
        Ok(())
    }

    fn start(
        &mut self,
        groups: std::ops::RangeInclusive<u64>,
        start: impl Fn() -> ReplicaStart,
    ) -> Result<(), BoxError> {
        let config = |group| GroupConfig {
            group: GroupId(group),
            replica: self.replica,
            snapshot_entries: SNAPSHOT_ENTRIES,
            ..GroupConfig::default()
        };
        let specs = groups.map(|group| (start(), config(group), Chain::default()));
        let started = self.host.start_replicas(specs.collect::<Vec<_>>())?;
        self.groups.extend(started.into_iter().map(|group| (group.id().0, group)));
        Ok(())
    }

    /// How many groups know a leader, in how many the replacement is under way, and in how many it is done: as this host knows.
    fn state(&self) -> String {
        let (old, new) = (ReplicaId(super::OLD), ReplicaId(super::NEW));
        let led = self.groups.values().filter(|g| g.leader().is_some()).count();
        let memberships: Vec<_> = self.groups.values().map(|g| g.membership()).collect();
        let done = memberships.iter().filter(|m| m.voters.contains(&new) && !m.contains(old)).count();
        let under_way = memberships.iter().filter(|m| m.contains(new) && m.contains(old)).count();
        format!("state {led} {under_way} {done}")
    }

    fn group(&self, group: u64) -> Result<&Group<Chain>, BoxError> {
        Ok(self.groups.get(&group).ok_or("no such group")?)
    }

    fn write(&mut self, calls: &mut Calls, group: u64, serial: u64) -> Result<(), BoxError> {
        let pending = self.group(group)?.propose(Serial(serial), TIMEOUT);
        calls.begin(Box::pin(async move {
            let result = match pending {
                Ok(pending) => pending.await.map(link),
                Err(error) => Err(error),
            };
            format!("wrote {group} {serial} {}", said(result))
        }))
    }

    /// The history through this many writes, as this replica has it.
    fn check(&mut self, calls: &mut Calls, group: u64, count: u64) -> Result<(), BoxError> {
        let pending = self.group(group)?.read(count, TIMEOUT);
        calls.begin(Box::pin(async move {
            let result = match pending {
                Ok(pending) => pending.await.map(link),
                Err(error) => Err(error),
            };
            format!("checked {group} {count} {}", said(result))
        }))
    }

    fn replace(&mut self, calls: &mut Calls, group: u64) -> Result<(), BoxError> {
        let (old, new) = (ReplicaId(super::OLD), ReplicaId(super::NEW));
        let pending = self.group(group)?.replace_replica(old, new, HostId(super::NEW), REPLACE_TIMEOUT);
        calls.begin(Box::pin(async move {
            let result = match pending {
                Ok(pending) => pending.await.map(|_| String::new()),
                Err(error) => Err(error),
            };
            format!("replaced {group} 0 {}", said(result))
        }))
    }
}

fn link(link: Link) -> String {
    format!("{} {}", link.count, link.hash)
}
