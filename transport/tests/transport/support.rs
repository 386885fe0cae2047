//! Hosts for tests, and a stranger that speaks the protocol byte by byte.

use bytes::Bytes;
use longboat_raft::{HostId, StoreId};
use longboat_transport::{FrameSink, Lane, Registry, Sent, StaticRegistry, TcpConfig, TcpTransport, Transport};
use prost::Message as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const DEPLOYMENT: u64 = 0xb0a7;
/// How often to look before giving up; each look waits up to 10 ms when there is nothing to do.
const LOOKS_MAX: usize = 3_000;

/// What a host has been handed.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) frames: Vec<(HostId, Lane, Bytes)>,
    pub(crate) disconnected: Vec<HostId>,
    pub(crate) connected: Vec<(HostId, StoreId, u64)>,
}

impl FrameSink for Seen {
    fn frame(&mut self, from: HostId, lane: Lane, frame: Bytes) {
        self.frames.push((from, lane, frame));
    }

    fn disconnected(&mut self, host: HostId) {
        self.disconnected.push(host);
    }

    fn connected(&mut self, host: HostId, store: StoreId, incarnation: u64) {
        self.connected.push((host, store, incarnation));
    }
}

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) transport: Arc<TcpTransport>,
    pub(crate) seen: Seen,
}

impl Host {
    pub(crate) fn start(id: u64, registry: &Arc<StaticRegistry>) -> Self {
        Self::start_with(config(id), registry)
    }

    pub(crate) fn start_with(config: TcpConfig, registry: &Arc<StaticRegistry>) -> Self {
        let id = config.host_id;
        let known = Arc::clone(registry) as Arc<dyn Registry>;
        let transport = TcpTransport::bind(config, known).expect("loopback has free ports");
        registry.set_peer_address(id, transport.local_address());
        Self { id, transport, seen: Seen::default() }
    }

    pub(crate) fn poll(&mut self) -> usize {
        self.transport.poll(&mut self.seen)
    }

    pub(crate) fn send(&self, to: u64, lane: Lane, frame: &[u8]) -> Sent {
        self.transport.send(HostId(to), lane, &[Bytes::copy_from_slice(frame)])
    }

    pub(crate) fn closed_bad(&self) -> u64 {
        self.transport.stats().closed_bad
    }
}

pub(crate) fn config(id: u64) -> TcpConfig {
    TcpConfig {
        deployment_id: DEPLOYMENT,
        store_id: StoreId(1000 + u128::from(id)),
        incarnation: 1,
        // Short, so that tests do not wait for nothing; no test depends on how long it takes.
        reconnect_ms_min: 1,
        reconnect_ms_max: 20,
        ..TcpConfig::new(HostId(id), "127.0.0.1:0".parse().unwrap())
    }
}

/// Two hosts that know each other.
pub(crate) fn pair() -> (Arc<StaticRegistry>, Host, Host) {
    let registry = Arc::new(StaticRegistry::default());
    let (one, two) = (Host::start(1, &registry), Host::start(2, &registry));
    (registry, one, two)
}

/// Polls the hosts in turn until `done`. Panics with `what` when that does not come.
pub(crate) fn until(what: &str, hosts: &mut [&mut Host], mut done: impl FnMut(&mut [&mut Host]) -> bool) {
    for _ in 0..LOOKS_MAX {
        let mut idle = true;
        for host in hosts.iter_mut() {
            idle &= host.poll() == 0;
        }
        if done(hosts) {
            return;
        }
        if idle {
            let share = Duration::from_millis(10) / hosts.len() as u32;
            hosts.iter().for_each(|host| host.transport.wait(share));
        }
    }
    panic!("never seen: {what}; {:?}", hosts.iter().map(|host| host.transport.stats()).collect::<Vec<_>>());
}

/// Sends until the frame is taken, which needs a connection.
pub(crate) fn deliver(from: &mut Host, to: &mut Host, lane: Lane, frame: &[u8]) {
    let target = to.id.0;
    until("a frame is taken", &mut [from, to], |hosts| hosts[0].send(target, lane, frame) == Sent::Queued);
    until("the frame arrives", &mut [from, to], |hosts| {
        hosts[1].seen.frames.iter().any(|(_, seen_lane, seen)| *seen_lane == lane && seen == frame)
    });
}

/// The handshake message as another implementation would write it: an independent statement of the layout.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RawHello {
    #[prost(uint32, tag = "1")]
    pub(crate) lowest_version: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) highest_version: u32,
    #[prost(fixed64, tag = "3")]
    pub(crate) deployment_id: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) host_id: u64,
    #[prost(fixed64, tag = "5")]
    pub(crate) store_id_high: u64,
    #[prost(fixed64, tag = "6")]
    pub(crate) store_id_low: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) incarnation: u64,
    #[prost(uint32, tag = "8")]
    pub(crate) lane: u32,
    #[prost(uint64, tag = "9")]
    pub(crate) expected_host_id: u64,
    #[prost(string, tag = "10")]
    pub(crate) refusal: String,
}

impl RawHello {
    /// What host `from` says to host `to`.
    pub(crate) fn good(from: u64, to: u64) -> Self {
        Self {
            lowest_version: 1,
            highest_version: 1,
            deployment_id: DEPLOYMENT,
            host_id: from,
            incarnation: 1,
            expected_host_id: to,
            ..Self::default()
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let message = self.encode_to_vec();
        let mut out = b"longboat".to_vec();
        out.extend_from_slice(&(message.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&message).to_le_bytes());
        out.extend_from_slice(&message);
        out
    }
}

/// A frame as another implementation would write it.
pub(crate) fn raw_frame(body: &[u8]) -> Vec<u8> {
    let mut out = b"LB\x01\x01".to_vec();
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// A stranger's connection.
pub(crate) struct Stranger(TcpStream);

impl Stranger {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the port is open");
        stream.set_nonblocking(true).unwrap();
        Self(stream)
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        // A connection that is closed meanwhile is what many tests are about.
        let _ = self.0.write_all(bytes);
    }

    /// Whether the other side has closed; takes what it has said.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 512];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Takes an answer, once it is there.
    pub(crate) fn answer(&mut self) -> Option<RawHello> {
        let mut bytes = [0; 2048];
        let n = self.0.read(&mut bytes).ok()?;
        RawHello::decode(bytes.get(16..n)?).ok()
    }
}
