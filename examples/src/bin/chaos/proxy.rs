//! What stands between two hosts: a TCP proxy that holds back, delays, slows down, corrupts and cuts.
//!
//! Each host has a proxy of its own for each other host, so that a direction can be had alone. A thread per direction of a
//! connection: hosts are few.

use parking_lot::Mutex;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes that are passed on at once.
const PIECE_BYTES: usize = 16 << 10;
/// Time between looks at what is ordered, while nothing arrives or nothing may pass.
const LOOK: Duration = Duration::from_millis(10);

/// What becomes of the bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Nothing passes; what is sent waits.
    pub(crate) held: bool,
    /// Each piece waits this long.
    pub(crate) delay: Duration,
    /// Bytes a second; 0 for no limit.
    pub(crate) bytes_per_s: u64,
    /// One byte of one piece in so many is changed; 0 for none.
    pub(crate) corrupt_one_in: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// Towards the host behind the proxy, and back.
    weather: [Mutex<Weather>; 2],
    /// Raised to cut all connections.
    cuts: AtomicU64,
    corrupted: AtomicU64,
    ended: AtomicBool,
}

/// A proxy in front of one host, for one other.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at a free port and passes on to `target`.
    pub(crate) fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("proxy".into()).spawn(move || accept(&listener, target, &shared))?
        };
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what becomes of what the other host sends to the one behind the proxy.
    pub(crate) fn set_towards(&self, weather: Weather) {
        *self.shared.weather[0].lock() = weather;
    }

    /// Sets what becomes of what comes back.
    pub(crate) fn set_back(&self, weather: Weather) {
        *self.shared.weather[1].lock() = weather;
    }

    /// Cuts all connections, in the middle of whatever they carry.
    pub(crate) fn cut(&self) {
        self.shared.cuts.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that were changed.
    pub(crate) fn corrupted(&self) -> u64 {
        self.shared.corrupted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut();
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, shared: &Arc<Shared>) {
    let mut pumps: Vec<JoinHandle<()>> = Vec::new();
    while !shared.ended.load(Ordering::Relaxed) {
        pumps.retain(|pump| !pump.is_finished());
        match listener.accept() {
            // A connection that can't be made is one that was cut: whoever made it tries again.
            Ok((near, _)) => pumps.extend(connect(near, target, shared).unwrap_or_default()),
            Err(_) => thread::sleep(LOOK),
        }
    }
    for pump in pumps {
        let _ = pump.join();
    }
}

/// Two threads, one for each direction.
fn connect(near: TcpStream, target: SocketAddr, shared: &Arc<Shared>) -> io::Result<Vec<JoinHandle<()>>> {
    let far = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
    for stream in [&near, &far] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        // Also how long a cut may take where the receiver does not read.
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    }
    let pipes = [(near.try_clone()?, far.try_clone()?), (far, near)];
    let cuts = shared.cuts.load(Ordering::Relaxed);
    let pumps = pipes.into_iter().enumerate().map(|(direction, (from, to))| {
        let shared = Arc::clone(shared);
        thread::Builder::new().name("pump".into()).spawn(move || {
            // Either end: the connection is over for both.
            let _ = pump(&from, &to, direction, cuts, &shared);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        })
    });
    pumps.collect()
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, direction: usize, cuts: u64, shared: &Shared) -> io::Result<()> {
    let mut piece = [0; PIECE_BYTES];
    let mut pieces = 0_u64;
    while shared.cuts.load(Ordering::Relaxed) == cuts {
        let weather = *shared.weather[direction].lock();
        if weather.held {
            thread::sleep(LOOK);
            continue;
        }
        let len = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error),
        };
        // The weather may have changed while nothing came.
        let weather = *shared.weather[direction].lock();
        pieces += 1;
        thread::sleep(weather.delay);
        if weather.bytes_per_s > 0 {
            thread::sleep(Duration::from_secs_f64(len as f64 / weather.bytes_per_s as f64));
        }
        if weather.corrupt_one_in > 0 && pieces.is_multiple_of(weather.corrupt_one_in) {
            piece[pieces as usize * 7 % len] ^= 1 << (pieces % 8);
            shared.corrupted.fetch_add(1, Ordering::Relaxed);
        }
        to.write_all(&piece[..len])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy, a client's side of a connection through it, and the server's side.
    fn pair() -> (Proxy, TcpStream, TcpStream) {
        let server = TcpListener::bind("127.0.0.1:0").expect("bound");
        let proxy = Proxy::start(server.local_addr().expect("bound")).expect("started");
        let client = TcpStream::connect(proxy.address()).expect("connected");
        let (accepted, _) = server.accept().expect("accepted");
        for stream in [&client, &accepted] {
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        }
        (proxy, client, accepted)
    }

    #[test]
    fn bytes_pass_are_corrupted_and_wait_in_one_direction_alone() {
        let (proxy, mut client, mut server) = pair();
        let mut got = [0; 4];
        client.write_all(b"ping").expect("written");
        server.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"ping");

        proxy.set_towards(Weather { corrupt_one_in: 1, ..Weather::default() });
        client.write_all(b"ping").expect("written");
        server.read_exact(&mut got).expect("read");
        assert_ne!(&got, b"ping");
        assert!(proxy.corrupted() > 0);

        proxy.set_towards(Weather { held: true, ..Weather::default() });
        client.write_all(b"held").expect("written");
        server.write_all(b"pong").expect("written");
        client.read_exact(&mut got).expect("the way back is open");
        assert_eq!(&got, b"pong");
        proxy.set_towards(Weather::default());
        server.read_exact(&mut got).expect("it had waited");
        assert_eq!(&got, b"held");
    }

    #[test]
    fn a_cut_ends_both_sides() {
        let (proxy, mut client, mut server) = pair();
        proxy.cut();
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
        assert!(matches!(server.read(&mut [0]), Ok(0) | Err(_)));
    }
}
