//! The receiving half: connections that other hosts made to us. Belongs to the polling thread alone.

use super::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};
use super::hello::{Greeting, Hello, HelloError};
use super::receive::{ReceiveBuffer, Received};
use super::token;
use crate::counters::Counters;
use crate::{FrameSink, Lane};
use longboat_raft::HostId;
use rustix::io::Errno;
use socket2::Socket;
use std::net::SocketAddr;
use std::time::Instant;

/// How much one connection may read per poll, in bytes, before the others have their turn; a read that is under way is finished.
const READ_BYTES_PER_POLL: usize = 1 << 20;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closing {
    #[error("closed by the other side")]
    Closed,
    #[error("broken: {0}")]
    Broken(Errno),
    #[error("ended in the middle of a frame")]
    Truncated,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("no handshake in time")]
    Late,
    #[error("made way for a newer connection without a handshake")]
    Evicted,
    #[error("replaced by a newer connection of the same host")]
    Replaced,
    #[error("the host is no longer in the registry")]
    Forgotten,
}

impl Closing {
    /// Whether the other side did what no good host does.
    pub(super) fn is_bad(&self) -> bool {
        match self {
            Self::Truncated | Self::Frame(_) | Self::Hello(_) | Self::Late | Self::Evicted => true,
            Self::Closed | Self::Broken(_) | Self::Replaced | Self::Forgotten => false,
        }
    }
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody knows who is there.
    Ungreeted { deadline: Instant },
    /// A host that proved itself; frames may come.
    Open(Greeting),
}

#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) socket: Socket,
    pub(super) address: Option<SocketAddr>,
    pub(super) phase: Phase,
    buffer: ReceiveBuffer,
}

/// What reading a connection came to, unless it is to be closed.
#[derive(Debug)]
pub(super) enum Read {
    /// Nothing more until the socket is readable again.
    Later,
    /// The other side has said who it is. Read on once that has been judged.
    Greeted(Hello),
}

impl Inbound {
    pub(super) fn new(socket: Socket, address: Option<SocketAddr>, deadline: Instant) -> Self {
        Self { socket, address, phase: Phase::Ungreeted { deadline }, buffer: ReceiveBuffer::new() }
    }

    /// Where this connection comes in the order of reading: control never waits for bulk.
    pub(super) fn rank(&self) -> u8 {
        match self.phase {
            Phase::Open(greeting) => greeting.lane as u8,
            Phase::Ungreeted { .. } => Lane::ALL.len() as u8,
        }
    }

    /// Hands on what is there. `frames` counts the frames.
    pub(super) fn read(
        &mut self,
        counters: &Counters,
        sink: &mut dyn FrameSink,
        frames: &mut usize,
    ) -> Result<Read, Closing> {
        let mut left = READ_BYTES_PER_POLL;
        let mut drained = false;
        loop {
            let needed = match self.phase {
                Phase::Ungreeted { .. } => match Hello::take(&mut self.buffer.bytes)? {
                    Some(hello) => return Ok(Read::Greeted(hello)),
                    None => 0,
                },
                Phase::Open(greeting) => self.hand_on(greeting, counters, sink, frames)?,
            };
            if drained || left == 0 {
                return Ok(Read::Later);
            }
            match self.buffer.receive(&self.socket, needed) {
                Received::Some(n) => left = left.saturating_sub(n),
                Received::Drained(_) => drained = true,
                // However it ends, half a frame is half a frame.
                Received::Closed | Received::Failed(_) if !self.buffer.bytes.is_empty() => {
                    return Err(Closing::Truncated);
                }
                Received::Closed => return Err(Closing::Closed),
                Received::Failed(errno) => return Err(Closing::Broken(errno)),
            }
        }
    }

    /// Hands the whole frames of the buffer to the sink. Returns how many bytes the frame at its front needs, 0 while unknown.
    fn hand_on(
        &mut self,
        from: Greeting,
        counters: &Counters,
        sink: &mut dyn FrameSink,
        frames: &mut usize,
    ) -> Result<usize, FrameError> {
        let bytes = &mut self.buffer.bytes;
        while bytes.len() >= FRAME_HEADER_BYTES {
            let header = FrameHeader::decode(bytes, from.version)?;
            let total = FRAME_HEADER_BYTES + header.len;
            if bytes.len() < total {
                return Ok(total);
            }
            let body = bytes.split_to(total).freeze().slice(FRAME_HEADER_BYTES..);
            header.check(&body)?;
            counters.received(body.len());
            *frames += 1;
            sink.frame(from.host, from.lane, body);
        }
        Ok(0)
    }
}

/// The connections, in slots that are used again under another generation.
#[derive(Debug, Default)]
pub(super) struct Inbounds {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    connection: Option<Inbound>,
}

impl Inbounds {
    pub(super) fn shed(&mut self) {
        self.slots.iter_mut().filter_map(|slot| slot.connection.as_mut()).for_each(|c| c.buffer.shed());
    }

    /// Takes a slot for a connection that is about to be put there.
    pub(super) fn reserve(&mut self) -> (usize, u32) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        (slot, self.slots[slot].generation)
    }

    pub(super) fn put(&mut self, slot: usize, connection: Inbound) {
        assert!(self.slots[slot].connection.is_none(), "slot {slot} is taken");
        self.slots[slot].connection = Some(connection);
    }

    /// The connection of an event, unless that is an event of an earlier one.
    pub(super) fn at(&mut self, slot: usize, generation: u32) -> Option<&mut Inbound> {
        let slot = self.slots.get_mut(slot).filter(|slot| slot.generation == generation)?;
        slot.connection.as_mut()
    }

    pub(super) fn generation(&self, slot: usize) -> u32 {
        self.slots[slot].generation
    }

    /// Gives a slot back, with the connection that was in it, if one was.
    pub(super) fn remove(&mut self, slot: usize) -> Option<Inbound> {
        let place = &mut self.slots[slot];
        place.generation = place.generation.wrapping_add(1) & token::GENERATION_MASK;
        self.free.push(slot);
        place.connection.take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Inbound)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.connection.as_ref()?)))
    }

    /// The slots of this host's connections.
    pub(super) fn of_host(&self, host: HostId) -> Vec<(usize, Greeting)> {
        let greeting = |connection: &Inbound| match connection.phase {
            Phase::Open(greeting) if greeting.host == host => Some(greeting),
            _ => None,
        };
        self.iter().filter_map(|(slot, connection)| Some((slot, greeting(connection)?))).collect()
    }
}
