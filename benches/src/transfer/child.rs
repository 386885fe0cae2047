//! One host in a process of its own, told what to do line by line: a shell around the public API.

use crate::cluster::BoxError;
use crate::machine::{Counter, Load};
use crate::obey::{Calls, number, said};
use longboat::{Group, GroupConfig, GroupId, HostId, NodeHost, NodeHostConfig, ReplicaId, ReplicaStart};
use std::path::Path;
use std::time::Duration;

/// The deadline of a write, and of a transfer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is written.
const PAYLOAD: &[u8] = &[7; 16];

struct Host {
    host: NodeHost,
    replica: ReplicaId,
    groups: Vec<Group<Counter>>,
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
    let mut host = Host { host, replica: ReplicaId(id), groups: Vec::new() };
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
                self.start(number(1)?, number(2)?)?;
                calls.say("started")?;
            }
            "leaders" => {
                let led = self.groups.iter().filter(|g| g.is_leader()).map(|g| g.id().to_string());
                let led = led.collect::<Vec<_>>().join(",");
                calls.say(&format!("leads {led}"))?;
            }
            "write" => self.write(calls, number(1)?)?,
            "transfer" => self.transfer(calls, number(1)?, ReplicaId(number(2)?))?,
            other => return Err(format!("what is {other}?").into()),
        }
        Ok(())
    }

    fn start(&mut self, groups: u64, hosts: u64) -> Result<(), BoxError> {
        let members = || (1..=hosts).map(|n| (ReplicaId(n), HostId(n)));
        let config = |group| GroupConfig { group: GroupId(group), replica: self.replica, ..GroupConfig::default() };
        let specs = (1..=groups).map(|g| (ReplicaStart::bootstrap(members()), config(g), Counter::default()));
        self.groups = self.host.start_replicas(specs)?;
        Ok(())
    }

    fn group(&self, group: u64) -> Result<&Group<Counter>, BoxError> {
        Ok(self.groups.get(group as usize - 1).ok_or("no such group")?)
    }

    fn write(&mut self, calls: &mut Calls, group: u64) -> Result<(), BoxError> {
        let pending = self.group(group)?.propose(Load::Sent(PAYLOAD), TIMEOUT);
        calls.begin(Box::pin(async move {
            let result = match pending {
                Ok(pending) => pending.await.map(|_| String::new()),
                Err(error) => Err(error),
            };
            format!("wrote {group} {}", said(result))
        }))
    }

    fn transfer(&mut self, calls: &mut Calls, group: u64, to: ReplicaId) -> Result<(), BoxError> {
        let pending = self.group(group)?.transfer_leader(to, TIMEOUT);
        calls.begin(Box::pin(async move {
            let result = match pending {
                Ok(pending) => pending.await.map(|_| String::new()),
                Err(error) => Err(error),
            };
            format!("transferred {group} {}", said(result))
        }))
    }
}
