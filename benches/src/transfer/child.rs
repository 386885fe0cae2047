//! One host in a process of its own, told what to do line by line.
//!
//! It is a shell around the public API: a line is a call, and its outcome is a line. Futures of the calls are polled by one
//! thread, which sleeps until a line comes or one of them is woken.

use crate::cluster::BoxError;
use crate::machine::{Counter, Load};
use longboat::{Group, GroupConfig, GroupId, HostId, NodeHost, NodeHostConfig, ReplicaId, ReplicaStart, RequestError};
use std::collections::HashMap;
use std::io::{BufRead, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// The deadline of a write, and of a transfer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is written.
const PAYLOAD: &[u8] = &[7; 16];

enum Heard {
    Line(String),
    Woken(u64),
    End,
}

struct Bell {
    call: u64,
    heard: Sender<Heard>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Nobody listens any more when the process ends.
        let _ = self.heard.send(Heard::Woken(self.call));
    }
}

/// A call under way: its future ends with the line that is said of it.
type Call = Pin<Box<dyn Future<Output = String>>>;

struct Child {
    host: NodeHost,
    replica: ReplicaId,
    groups: Vec<Group<Counter>>,
    calls: HashMap<u64, Call>,
    last_call: u64,
    heard: Sender<Heard>,
    said: std::io::BufWriter<std::io::Stdout>,
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
    let (heard, inbox) = channel();
    let lines = heard.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = lines.send(Heard::Line(line));
        }
        let _ = lines.send(Heard::End);
    });
    let said = std::io::BufWriter::new(std::io::stdout());
    let (groups, calls) = (Vec::new(), HashMap::new());
    let mut child = Child { host, replica: ReplicaId(id), groups, calls, last_call: 0, heard, said };
    child.say(&format!("address {}", child.host.local_address()))?;
    loop {
        child.said.flush()?;
        let first = inbox.recv()?;
        for heard in std::iter::once(first).chain(inbox.try_iter().take(1024)) {
            match heard {
                Heard::Line(line) => child.obey(&line)?,
                Heard::Woken(call) => child.poll(call)?,
                Heard::End => return Ok(child.host.close(TIMEOUT)?),
            }
        }
    }
}

impl Child {
    fn say(&mut self, line: &str) -> std::io::Result<()> {
        writeln!(self.said, "{line}")
    }

    fn obey(&mut self, line: &str) -> Result<(), BoxError> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).ok_or("too few words")?.parse::<u64>().map_err(BoxError::from);
        match words[0] {
            "peer" => self.host.set_peer_address(HostId(number(1)?), words[2].parse()?),
            "start" => {
                self.start(number(1)?, number(2)?)?;
                self.say("started")?;
            }
            "leaders" => {
                let led = self.groups.iter().filter(|g| g.is_leader()).map(|g| g.id().to_string());
                let led = led.collect::<Vec<_>>().join(",");
                self.say(&format!("leads {led}"))?;
            }
            "write" => self.write(number(1)?)?,
            "transfer" => self.transfer(number(1)?, ReplicaId(number(2)?))?,
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

    fn write(&mut self, group: u64) -> Result<(), BoxError> {
        let pending = self.group(group)?.propose(Load::Sent(PAYLOAD), TIMEOUT);
        self.call(Box::pin(async move {
            let result = match pending {
                Ok(pending) => pending.await.map(drop),
                Err(error) => Err(error),
            };
            format!("wrote {group} {}", said(result))
        }))
    }

    fn transfer(&mut self, group: u64, to: ReplicaId) -> Result<(), BoxError> {
        let pending = self.group(group)?.transfer_leader(to, TIMEOUT);
        self.call(Box::pin(async move {
            let result = match pending {
                Ok(pending) => pending.await.map(drop),
                Err(error) => Err(error),
            };
            format!("transferred {group} {}", said(result))
        }))
    }

    fn call(&mut self, call: Call) -> Result<(), BoxError> {
        self.last_call += 1;
        self.calls.insert(self.last_call, call);
        self.poll(self.last_call)
    }

    fn poll(&mut self, number: u64) -> Result<(), BoxError> {
        let Some(call) = self.calls.get_mut(&number) else { return Ok(()) };
        let waker = Waker::from(Arc::new(Bell { call: number, heard: self.heard.clone() }));
        if let Poll::Ready(line) = call.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.calls.remove(&number);
            self.say(&line)?;
        }
        Ok(())
    }
}

/// `ok`, or whether it had no effect, and why.
fn said(result: Result<(), RequestError>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) if error.may_have_applied() => format!("unknown {error}"),
        Err(error) => format!("none {error}"),
    }
}
