//! What the polling thread does: events, accepts, handshakes, and whatever is due.

use super::hello::{Greeting, Hello, HelloError};
use super::inbound::{Closing, Inbound, Inbounds, Phase, Read};
use super::outbound::{Change, Peer};
use super::token::{self, Token};
use super::{Shared, socket};
use crate::counters::bump;
use crate::{FrameSink, Lane};
use longboat_raft::HostId;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::time::Timespec;
use socket2::Socket;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most events taken at a time; what is over them comes the next time.
const EVENTS_MAX: usize = 256;
/// The most connections accepted per poll.
const ACCEPTS_PER_POLL: usize = 64;
/// The most connections whose other side has not said who it is. Over it the oldest is closed: strangers who are silent must not
/// keep hosts out.
pub(super) const UNGREETED_MAX: usize = 64;
/// How long to accept nothing after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// State that only the polling thread touches.
#[derive(Debug)]
pub(super) struct Poller {
    /// Found by `wait`, not yet handled: what each is about, and what happened.
    events: Vec<(Token, EventFlags)>,
    listener: Option<Socket>,
    accept_again: Option<Instant>,
    inbound: Inbounds,
    /// Connections to read: rank, slot, generation. Kept for its memory.
    readable: Vec<(u8, usize, u32)>,
    /// Hosts to report as disconnected, at the end of the poll.
    lost: Vec<HostId>,
    /// When something is due; `None`: never.
    due: Option<Instant>,
    /// Something has changed that `due` does not know of.
    stale: bool,
}

impl Poller {
    pub(super) fn new(listener: Socket) -> Self {
        Self {
            events: Vec::with_capacity(EVENTS_MAX),
            listener: Some(listener),
            accept_again: None,
            inbound: Inbounds::default(),
            readable: Vec::new(),
            lost: Vec::new(),
            due: None,
            stale: false,
        }
    }

    /// Lets go of the buffers of connections on which nothing has begun to arrive.
    pub(super) fn shed(&mut self) {
        self.inbound.shed();
    }

    /// Blocks until there is something to do or `timeout` has passed.
    pub(super) fn wait(&mut self, shared: &Shared, timeout: Duration) {
        if !self.events.is_empty() {
            return;
        }
        let until_due = self.due.map_or(timeout, |due| due.saturating_duration_since(Instant::now()));
        let may_block = shared.waker.park() && !shared.attention() && !self.stale;
        let timeout = if may_block { timeout.min(until_due) } else { Duration::ZERO };
        self.gather(shared, timeout);
        shared.waker.unpark();
    }

    fn gather(&mut self, shared: &Shared, timeout: Duration) {
        // A timeout that the system can't express is cut; the caller waits again.
        let timeout = timeout.min(Duration::from_secs(3600));
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut room = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
        match epoll::wait(&shared.epoll, &mut room[..], Some(&timeout)) {
            Ok((events, _)) => {
                self.events.extend(events.iter().map(|event| (token::decode({ event.data }.u64()), event.flags)));
            }
            Err(Errno::INTR) => {}
            Err(errno) => tracing::error!(%errno, "epoll failed"),
        }
    }

    /// Handles what has happened. Returns the number of frames handed over.
    pub(super) fn poll(&mut self, shared: &Shared, sink: &mut dyn FrameSink) -> usize {
        if self.events.is_empty() {
            self.gather(shared, Duration::ZERO);
        }
        let now = Instant::now();
        let mut accept = false;
        for at in 0..self.events.len() {
            let (token, flags) = self.events[at];
            match token {
                Token::Wake => shared.waker.drain(),
                Token::Listener => accept = true,
                Token::Outbound { slot, generation } => {
                    let Some((peer, lane)) = shared.peer_of_slot(slot) else { continue };
                    let change = peer.lanes[lane].lock().on_event(shared, generation, flags, now);
                    self.changed(change, peer.host, sink);
                }
                Token::Inbound { slot, generation } => {
                    if let Some(connection) = self.inbound.at(slot, generation) {
                        self.readable.push((connection.rank(), slot, generation));
                    }
                }
            }
        }
        self.events.clear();
        let frames = self.read_all(shared, sink, now);
        if accept {
            self.accept(shared, now);
        }
        if shared.take_attention() || self.stale || self.due.is_some_and(|due| due <= now) {
            self.maintain(shared, now, sink);
        }
        for host in self.lost.drain(..) {
            sink.disconnected(host);
        }
        frames
    }

    fn changed(&mut self, change: Change, host: HostId, sink: &mut dyn FrameSink) {
        self.stale |= change != Change::None;
        match change {
            Change::None | Change::Rescheduled => {}
            Change::Connected(greeting) => sink.connected(greeting.host, greeting.store, greeting.incarnation),
            Change::Lost => {
                if !self.lost.contains(&host) {
                    self.lost.push(host);
                }
            }
        }
    }

    /// Reads what is readable, control lanes first.
    fn read_all(&mut self, shared: &Shared, sink: &mut dyn FrameSink, now: Instant) -> usize {
        let mut frames = 0;
        let mut readable = std::mem::take(&mut self.readable);
        readable.sort_unstable();
        for &(_, slot, generation) in &readable {
            self.read(shared, sink, now, slot, generation, &mut frames);
        }
        readable.clear();
        self.readable = readable;
        frames
    }

    fn read(
        &mut self,
        shared: &Shared,
        sink: &mut dyn FrameSink,
        now: Instant,
        slot: usize,
        generation: u32,
        frames: &mut usize,
    ) {
        // Twice at most: the handshake, and the frames that came with it.
        while let Some(connection) = self.inbound.at(slot, generation) {
            match connection.read(&shared.counters, sink, frames) {
                Ok(Read::Later) => return,
                Ok(Read::Greeted(hello)) => match self.greeted(shared, sink, now, slot, &hello) {
                    Ok(()) => {}
                    Err(error) => return self.close(shared, slot, &error.into()),
                },
                Err(closing) => return self.close(shared, slot, &closing),
            }
        }
    }

    /// Judges and answers a handshake.
    fn greeted(
        &mut self,
        shared: &Shared,
        sink: &mut dyn FrameSink,
        now: Instant,
        slot: usize,
        hello: &Hello,
    ) -> Result<(), HelloError> {
        let known = |host| shared.registry.resolve(host).is_some();
        let judged = hello.check_asker(&shared.config, known).and_then(|greeting| self.admit(greeting));
        let answer = Hello::answer(&shared.config, hello, judged.as_ref().err()).encode_enveloped();
        let generation = self.inbound.generation(slot);
        let connection = self.inbound.at(slot, generation).expect("the caller has just read from it");
        // An answer that does not fit into a fresh socket, or meets a broken one, needs no handling: the other side runs into
        // its deadline, and a broken connection shows when it is read.
        let _ = send(&connection.socket, &answer, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        let greeting = judged?;
        connection.phase = Phase::Open(greeting);
        let address = connection.address;
        self.replace_older(shared, sink, now, slot, greeting);
        // Whoever speaks to us will want an answer: on the control lane, or on the one that it speaks on.
        shared.want(greeting.host, &[Lane::Control, greeting.lane]);
        bump(&shared.counters.connected);
        tracing::info!(host = greeting.host.0, lane = ?greeting.lane, ?address, "accepted");
        sink.connected(greeting.host, greeting.store, greeting.incarnation);
        Ok(())
    }

    /// Refuses what a former life of a host left in the backlog, as long as the host's present life is connected.
    fn admit(&self, greeting: Greeting) -> Result<Greeting, HelloError> {
        let others = self.inbound.of_host(greeting.host);
        let newest = others.iter().map(|(_, other)| other.incarnation).max().unwrap_or(0);
        if newest > greeting.incarnation {
            return Err(HelloError::Stale { host: greeting.host, theirs: greeting.incarnation, newest });
        }
        Ok(greeting)
    }

    /// A host has one connection per lane, the latest, and none of its former lives.
    fn replace_older(
        &mut self,
        shared: &Shared,
        sink: &mut dyn FrameSink,
        now: Instant,
        slot: usize,
        greeting: Greeting,
    ) {
        let mut restarted = false;
        for (other_slot, other) in self.inbound.of_host(greeting.host) {
            let former_life = other.incarnation < greeting.incarnation;
            restarted |= former_life;
            if other_slot != slot && (former_life || other.lane == greeting.lane) {
                self.close(shared, other_slot, &Closing::Replaced);
            }
        }
        if restarted {
            self.changed(Change::Lost, greeting.host, sink);
        }
        if let Some(peer) = shared.peer(greeting.host) {
            for lane in &peer.lanes {
                let change = lane.lock().superseded(shared, greeting.incarnation, now);
                self.changed(change, greeting.host, sink);
            }
        }
    }

    fn close(&mut self, shared: &Shared, slot: usize, why: &Closing) {
        let Some(connection) = self.inbound.remove(slot) else { return };
        self.stale = true;
        let (address, host) = (
            connection.address,
            match connection.phase {
                Phase::Open(greeting) => Some(greeting.host.0),
                Phase::Ungreeted { .. } => None,
            },
        );
        if why.is_bad() {
            bump(&shared.counters.closed_bad);
            tracing::warn!(host, ?address, %why, "connection closed");
        } else {
            tracing::info!(host, ?address, %why, "connection closed");
        }
    }

    fn accept(&mut self, shared: &Shared, now: Instant) {
        for _ in 0..ACCEPTS_PER_POLL {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((socket, address)) => self.accepted(shared, now, socket, address.as_socket()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "accepting nothing for a moment");
                    let data = epoll::EventData::new_u64(token::LISTENER);
                    let _ = epoll::modify(&shared.epoll, listener, data, EventFlags::empty());
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                    self.stale = true;
                    return;
                }
            }
        }
    }

    fn accepted(&mut self, shared: &Shared, now: Instant, socket: Socket, address: Option<std::net::SocketAddr>) {
        self.make_room(shared);
        let (slot, generation) = self.inbound.reserve();
        let data = epoll::EventData::new_u64(token::inbound(slot, generation));
        let prepared = socket
            .set_nonblocking(true)
            .and_then(|()| socket::set_options(&socket))
            .and_then(|()| Ok(epoll::add(&shared.epoll, &socket, data, EventFlags::IN | EventFlags::RDHUP)?));
        if let Err(error) = prepared {
            tracing::debug!(?address, %error, "an accepted connection is gone already");
            self.inbound.remove(slot);
            return;
        }
        let deadline = now + Duration::from_millis(shared.config.handshake_ms_max);
        self.inbound.put(slot, Inbound::new(socket, address, deadline));
        self.stale = true;
    }

    /// Closes the oldest connections whose other side has not spoken, down to one below the bound.
    fn make_room(&mut self, shared: &Shared) {
        let mut ungreeted: Vec<(Instant, usize)> = self.ungreeted().collect();
        ungreeted.sort_unstable();
        let excess = (ungreeted.len() + 1).saturating_sub(UNGREETED_MAX);
        for (_, slot) in ungreeted.into_iter().take(excess) {
            self.close(shared, slot, &Closing::Evicted);
        }
    }

    /// Deadline and slot of each connection whose other side has not spoken.
    fn ungreeted(&self) -> impl Iterator<Item = (Instant, usize)> {
        self.inbound.iter().filter_map(|(slot, connection)| match connection.phase {
            Phase::Ungreeted { deadline } => Some((deadline, slot)),
            Phase::Open(_) => None,
        })
    }

    /// Does what is due and finds out when something is due next. Its cost grows with hosts, not with groups or frames.
    fn maintain(&mut self, shared: &Shared, now: Instant, sink: &mut dyn FrameSink) {
        self.stale = false;
        let moved = std::mem::take(&mut *shared.moved.lock());
        let mut due: Option<Instant> = None;
        for peer in shared.peers() {
            due = earliest(due, self.maintain_peer(shared, now, sink, &peer, moved.contains(&peer.host)));
        }
        for host in moved {
            self.forget_if_unknown(shared, host);
        }
        let late: Vec<usize> =
            self.ungreeted().filter(|(deadline, _)| *deadline <= now).map(|(_, slot)| slot).collect();
        for slot in late {
            self.close(shared, slot, &Closing::Late);
        }
        due = earliest(due, self.ungreeted().map(|(deadline, _)| deadline).min());
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            if let Some(listener) = &self.listener {
                let data = epoll::EventData::new_u64(token::LISTENER);
                let _ = epoll::modify(&shared.epoll, listener, data, EventFlags::IN);
            }
        }
        self.due = earliest(due, self.accept_again);
        self.stale = false;
    }

    /// Returns when this peer needs attention next.
    fn maintain_peer(
        &mut self,
        shared: &Shared,
        now: Instant,
        sink: &mut dyn FrameSink,
        peer: &Arc<Peer>,
        moved: bool,
    ) -> Option<Instant> {
        let mut due = None;
        for lane in &peer.lanes {
            let mut outbound = lane.lock();
            if moved {
                let change = outbound.readdress(shared, now);
                self.changed(change, peer.host, sink);
            }
            let change = outbound.maintain(shared, now);
            due = earliest(due, outbound.due());
            drop(outbound);
            self.changed(change, peer.host, sink);
        }
        due
    }

    fn forget_if_unknown(&mut self, shared: &Shared, host: HostId) {
        if shared.registry.resolve(host).is_some() {
            return;
        }
        for (slot, _) in self.inbound.of_host(host) {
            self.close(shared, slot, &Closing::Forgotten);
        }
    }

    /// Closes everything.
    pub(super) fn close_all(&mut self, shared: &Shared) {
        self.listener = None;
        self.inbound = Inbounds::default();
        self.events.clear();
        self.due = None;
        for peer in shared.peers() {
            for lane in &peer.lanes {
                lane.lock().close();
            }
        }
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
