//! Three hosts in one process replicate a counter; one of them stops, and the others go on.

use longboat::{
    Group, GroupConfig, GroupId, HostId, Index, MachineError, NodeHost, NodeHostConfig, ReplicaId, ReplicaStart,
    StateMachine,
};
use std::error::Error;
use std::io::{Read, Write};
use std::time::Duration;

const GROUP: GroupId = GroupId(1);
const TIMEOUT: Duration = Duration::from_secs(5);

struct Counter(u64);

impl StateMachine for Counter {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _index: Index, add: u64) -> Result<u64, MachineError> {
        self.0 += add;
        Ok(self.0)
    }

    fn lookup(&self, _query: ()) -> Result<u64, MachineError> {
        Ok(self.0)
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        Ok(out.write_all(&self.0.to_le_bytes())?)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut bytes = [0; 8];
        input.read_exact(&mut bytes)?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let open = |id| {
        NodeHost::open(NodeHostConfig {
            data_dir: dir.path().join(format!("host-{id}")),
            host_id: HostId(id),
            deployment_id: 1,
            ..NodeHostConfig::default()
        })
    };
    let hosts = [open(1)?, open(2)?, open(3)?];
    for (host, peer) in hosts.iter().flat_map(|host| hosts.iter().map(move |peer| (host, peer))) {
        host.set_peer_address(peer.info().host, peer.local_address());
    }
    let start = |(host, id): (&NodeHost, u64)| -> Result<Group<Counter>, Box<dyn Error>> {
        let members = ReplicaStart::bootstrap([1, 2, 3].map(|id| (ReplicaId(id), HostId(id))));
        let config = GroupConfig { group: GROUP, replica: ReplicaId(id), ..GroupConfig::default() };
        Ok(host.start_replica(members, config, || Counter(0))?)
    };
    let groups = hosts.iter().zip(1..).map(start).collect::<Result<Vec<_>, _>>()?;

    println!("host 1 adds 40: the counter is {}", groups[0].propose(40, TIMEOUT)?.wait()?);
    println!("host 2 adds 2:  the counter is {}", groups[1].propose(2, TIMEOUT)?.wait()?);
    println!("host 3 reads:   the counter is {}", groups[2].read((), TIMEOUT)?.wait()?);
    hosts[0].close(TIMEOUT)?;
    println!("host 1 is gone; host 3 reads: {}", groups[2].read((), TIMEOUT)?.wait()?);
    println!("host 2 adds 58: the counter is {}", groups[1].propose(58, TIMEOUT)?.wait()?);
    Ok(())
}
