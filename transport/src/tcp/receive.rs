//! The receive buffer of a connection: the only place of this crate with unsafe code.
//!
//! Frames are split off the front and share the buffer's memory. The buffer starts small and grows while reads fill it:
//! a busy connection reads up to 1 MiB at a time, and what an idle group keeps of a frame holds on to little.

use bytes::BytesMut;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// The least room that a read is given, in bytes.
const ROOM_BYTES_MIN: usize = 16 << 10;
/// The most, in bytes: what a socket holds under load.
const ROOM_BYTES_MAX: usize = 1 << 20;
/// Reads in a row that use less than an eighth of their room before the room shrinks.
const QUIET_READS: u32 = 64;

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// This many bytes, and there may be more.
    Some(usize),
    /// This many bytes, maybe none; more when the socket is readable again.
    Drained(usize),
    /// The other side has closed.
    Closed,
    /// The connection is broken.
    Failed(Errno),
}

#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    pub(super) bytes: BytesMut,
    room_bytes: usize,
    quiet: u32,
}

impl ReceiveBuffer {
    /// A buffer without memory; the first read gives it some.
    pub(super) fn new() -> Self {
        Self { bytes: BytesMut::new(), room_bytes: ROOM_BYTES_MIN, quiet: 0 }
    }

    /// Becomes as a new one, unless part of a frame is there.
    pub(super) fn shed(&mut self) {
        if self.bytes.is_empty() {
            *self = Self::new();
        }
    }

    /// Reads once. `needed` is how many bytes the frame at the front has in all, 0 while unknown.
    pub(super) fn receive(&mut self, socket: impl AsFd, needed: usize) -> Received {
        let missing = needed.saturating_sub(self.bytes.len());
        let spare = self.bytes.capacity() - self.bytes.len();
        if spare < missing.max(self.room_bytes / 2) {
            self.bytes.reserve(missing.max(self.room_bytes));
        }
        let room = self.bytes.spare_capacity_mut();
        let room_bytes = room.len().min(ROOM_BYTES_MAX);
        let read = match recv(socket, &mut room[..room_bytes], RecvFlags::DONTWAIT) {
            Ok(((filled, _), _)) => filled.len(),
            Err(Errno::AGAIN | Errno::INTR) => return Received::Drained(0),
            Err(errno) => return Received::Failed(errno),
        };
        if read == 0 {
            return Received::Closed;
        }
        let len = self.bytes.len() + read;
        // SAFETY: `recv` has just initialised the first `read` bytes of the spare capacity, which starts at the old length.
        unsafe { self.bytes.set_len(len) };
        self.adapt(read, room_bytes);
        if read < room_bytes { Received::Drained(read) } else { Received::Some(read) }
    }

    fn adapt(&mut self, read: usize, room_bytes: usize) {
        if read == room_bytes {
            self.room_bytes = (self.room_bytes * 4).min(ROOM_BYTES_MAX);
            self.quiet = 0;
        } else if read * 8 >= self.room_bytes {
            self.quiet = 0;
        } else {
            self.quiet += 1;
            if self.quiet >= QUIET_READS {
                self.room_bytes = (self.room_bytes / 4).max(ROOM_BYTES_MIN);
                self.quiet = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn reads_grow_under_load_and_shrink_when_it_is_over() {
        let (mut far, near) = UnixStream::pair().expect("a socket pair");
        far.set_nonblocking(true).expect("a socket option");
        let mut buffer = ReceiveBuffer::new();
        for _ in 0..6 {
            while far.write(&[1; 64 << 10]).is_ok() {}
            let _ = buffer.receive(&near, 0);
            buffer.bytes.clear();
        }
        let grown = buffer.room_bytes;
        assert!(grown > ROOM_BYTES_MIN, "room of {grown} bytes");
        while matches!(buffer.receive(&near, 0), Received::Some(_)) {}
        for _ in 0..QUIET_READS * 8 {
            far.write_all(b"x").expect("room in the socket");
            assert_eq!(buffer.receive(&near, 0), Received::Drained(1));
            buffer.bytes.clear();
        }
        assert_eq!(buffer.room_bytes, ROOM_BYTES_MIN);
        drop(far);
        assert_eq!(buffer.receive(&near, 0), Received::Closed);
    }

    #[test]
    fn a_buffer_that_is_shed_keeps_what_has_arrived_of_a_frame() {
        let (mut far, near) = UnixStream::pair().expect("a socket pair");
        far.write_all(b"head").expect("room in the socket");
        let mut buffer = ReceiveBuffer::new();
        assert_eq!(buffer.receive(&near, 0), Received::Drained(4));
        buffer.shed();
        assert_eq!(&buffer.bytes[..], b"head");
        buffer.bytes.clear();
        buffer.shed();
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    #[test]
    fn a_large_frame_gets_room_at_once() {
        let (mut far, near) = UnixStream::pair().expect("a socket pair");
        far.write_all(b"head").expect("room in the socket");
        let mut buffer = ReceiveBuffer::new();
        assert_eq!(buffer.receive(&near, 5 << 20), Received::Drained(4));
        assert!(buffer.bytes.capacity() >= 5 << 20);
    }
}
