//! A TCP relay that lets only so many bytes a second through: a slow link in front of one host.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Bytes that are passed on at once.
const PIECE: usize = 16 << 10;
/// After this long without a byte a relay looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// A relay to one address. Dropping it ends it and cuts its connections.
#[derive(Debug)]
pub struct SlowLink {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl SlowLink {
    /// A relay to `target` on a free port of the loopback interface. Each connection may carry `bytes_per_s` towards it;
    /// what comes back is not slowed down.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(target: SocketAddr, bytes_per_s: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, stop) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&stop);
        thread::Builder::new().name("slow-link".into()).spawn(move || {
            for incoming in listener.incoming() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                // A connection that can't be made or passed on is dropped: whoever made it tries again.
                let Ok(from) = incoming else { continue };
                let Ok(to) = TcpStream::connect(target) else { continue };
                let (Ok(back_from), Ok(back_to)) = (to.try_clone(), from.try_clone()) else { continue };
                let (a, b) = (Arc::clone(&ended), Arc::clone(&ended));
                thread::spawn(move || relay(from, to, Some(bytes_per_s), &a));
                thread::spawn(move || relay(back_from, back_to, None, &b));
            }
        })?;
        Ok(Self { address, stop })
    }

    /// Where the relay listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
    }
}

/// Passes bytes on until either side ends or the relay is stopped.
fn relay(mut from: TcpStream, mut to: TcpStream, bytes_per_s: Option<u64>, stop: &AtomicBool) {
    let mut piece = vec![0; PIECE];
    let _ = from.set_read_timeout(Some(LOOK));
    while !stop.load(Ordering::Acquire) {
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        if let Some(rate) = bytes_per_s {
            thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_in_both_directions_unchanged() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let link = SlowLink::start(server.local_addr().expect("bound"), 100 << 20).expect("a free port");
        let mut client = TcpStream::connect(link.address()).expect("the relay listens");
        let (mut served, _) = server.accept().expect("the relay connects");
        let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let (mut there, mut back) = (vec![0; sent.len()], vec![0; 3]);
        client.write_all(&sent).expect("passed on");
        served.read_exact(&mut there).expect("passed on");
        served.write_all(b"yes").expect("passed on");
        client.read_exact(&mut back).expect("passed on");
        assert!(there == sent && back == b"yes");
    }
}
