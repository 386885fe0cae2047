//! The transport for hosts of one process: tests and examples without a network.
//!
//! A [`InProcessHub`] knows the hosts; sending puts a frame into the receiver's queue for this sender and lane, bounded as over TCP.
//! There is no handshake, no delay and no loss but what is asked for with [`InProcessHub::set_cut`].
//!
//! Invariant: frames of a lane are handed over in the order of their sending, control lanes first.

use crate::counters::{Counters, bump};
use crate::tcp::{BULK_QUEUE_BYTES_MAX, CONTROL_QUEUE_BYTES_MAX, SNAPSHOT_QUEUE_BYTES_MAX};
use crate::wire::FRAME_BYTES_LIMIT;
use crate::{FrameSink, Lane, Sent, Transport, TransportStats};
use bytes::{Bytes, BytesMut};
use longboat_raft::{HostId, StoreId};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How many bytes of one sender and lane a poll hands over before the others have their turn.
const BYTES_PER_POLL: usize = 1 << 20;

/// The hosts of one process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct InProcessHub {
    net: Arc<RwLock<Net>>,
}

#[derive(Debug, Default)]
struct Net {
    hosts: BTreeMap<HostId, Arc<Inbox>>,
    /// Sender and receiver between whom nothing passes.
    cut: BTreeSet<(HostId, HostId)>,
}

/// One host's end of an [`InProcessHub`].
#[derive(Debug)]
pub struct InProcessTransport {
    host: HostId,
    hub: InProcessHub,
    inbox: Arc<Inbox>,
    counters: Counters,
}

/// What has come for a host.
#[derive(Debug)]
struct Inbox {
    store: StoreId,
    incarnation: u64,
    arrived: Mutex<Arrived>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Arrived {
    /// Ordered as they are handed over: lane (in the order of urgency) and sender.
    queues: BTreeMap<(u8, HostId), Queue>,
    news: Vec<News>,
    woken: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum News {
    Connected(HostId, StoreId, u64),
    Disconnected(HostId),
}

impl InProcessHub {
    /// A hub without hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host, or its next life: the former one is closed.
    pub fn join(&self, host: HostId, store: StoreId, incarnation: u64) -> Arc<InProcessTransport> {
        let inbox = Arc::new(Inbox { store, incarnation, arrived: Mutex::default(), wake: Condvar::new() });
        let mut net = self.net.write();
        if let Some(former) = net.hosts.remove(&host) {
            net.leave(host, &former);
        }
        for (&other, there) in &net.hosts {
            if !net.cut.contains(&(host, other)) {
                inbox.tell(News::Connected(other, there.store, there.incarnation));
            }
            if !net.cut.contains(&(other, host)) {
                there.tell(News::Connected(host, store, incarnation));
            }
        }
        net.hosts.insert(host, Arc::clone(&inbox));
        Arc::new(InProcessTransport { host, hub: self.clone(), inbox, counters: Counters::default() })
    }

    /// Cuts, or heals, the way from one host to another; the way back is another one.
    pub fn set_cut(&self, from: HostId, to: HostId, cut: bool) {
        let mut net = self.net.write();
        let changed = if cut { net.cut.insert((from, to)) } else { net.cut.remove(&(from, to)) };
        let (Some(sender), Some(receiver)) = (net.hosts.get(&from), net.hosts.get(&to)) else { return };
        if changed {
            let connected = News::Connected(to, receiver.store, receiver.incarnation);
            sender.tell(if cut { News::Disconnected(to) } else { connected });
        }
    }
}

impl Net {
    /// Tells the others that this host, which is no longer in the table, is gone.
    fn leave(&self, host: HostId, inbox: &Inbox) {
        let mut arrived = inbox.arrived.lock();
        *arrived = Arrived { closed: true, woken: true, ..Arrived::default() };
        drop(arrived);
        inbox.wake.notify_all();
        for there in self.hosts.values() {
            there.tell(News::Disconnected(host));
        }
    }
}

impl Inbox {
    fn tell(&self, news: News) {
        self.arrived.lock().news.push(news);
        self.wake.notify_one();
    }

    /// Takes a frame, unless the queue is full.
    fn take(&self, from: HostId, lane: Lane, frame: Bytes) -> Sent {
        let queue_bytes_max = match lane {
            Lane::Control => CONTROL_QUEUE_BYTES_MAX,
            Lane::Bulk => BULK_QUEUE_BYTES_MAX,
            Lane::Snapshot => SNAPSHOT_QUEUE_BYTES_MAX,
        };
        let mut arrived = self.arrived.lock();
        if arrived.closed {
            return Sent::Unreachable;
        }
        let queue = arrived.queues.entry((lane as u8, from)).or_default();
        if !queue.frames.is_empty() && queue.bytes + frame.len() > queue_bytes_max {
            return Sent::Full;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        drop(arrived);
        self.wake.notify_one();
        Sent::Queued
    }
}

impl Arrived {
    fn is_empty(&self) -> bool {
        self.news.is_empty() && self.queues.values().all(|queue| queue.frames.is_empty())
    }

    /// Takes what one poll hands over of each sender and lane.
    fn portion(&mut self) -> Vec<(HostId, Lane, Bytes)> {
        let mut portion = Vec::new();
        for (&(lane, from), queue) in &mut self.queues {
            let mut left = BYTES_PER_POLL;
            while left > 0 {
                let Some(frame) = queue.frames.pop_front() else { break };
                left = left.saturating_sub(frame.len());
                queue.bytes -= frame.len();
                portion.push((from, Lane::ALL[usize::from(lane)], frame));
            }
        }
        portion
    }
}

impl Transport for InProcessTransport {
    fn send(&self, to: HostId, lane: Lane, parts: &[Bytes]) -> Sent {
        let len: usize = parts.iter().map(Bytes::len).sum();
        if len == 0 {
            return Sent::Queued;
        }
        let net = self.hub.net.read();
        let open = to != self.host && !self.inbox.arrived.lock().closed && !net.cut.contains(&(self.host, to));
        let sent = match net.hosts.get(&to).filter(|_| open) {
            Some(_) if len > FRAME_BYTES_LIMIT => Sent::Full,
            Some(receiver) => receiver.take(self.host, lane, whole(parts, len)),
            None => Sent::Unreachable,
        };
        match sent {
            Sent::Queued => self.counters.sent(len),
            Sent::Full => bump(&self.counters.dropped_full),
            Sent::Unreachable => bump(&self.counters.dropped_unreachable),
        }
        sent
    }

    fn poll(&self, sink: &mut dyn FrameSink) -> usize {
        let mut arrived = self.inbox.arrived.lock();
        let (portion, news) = (arrived.portion(), std::mem::take(&mut arrived.news));
        drop(arrived);
        let frames = portion.len();
        for (from, lane, frame) in portion {
            self.counters.received(frame.len());
            sink.frame(from, lane, frame);
        }
        for news in news {
            match news {
                News::Connected(host, store, incarnation) => {
                    bump(&self.counters.connected);
                    sink.connected(host, store, incarnation);
                }
                News::Disconnected(host) => sink.disconnected(host),
            }
        }
        frames
    }

    fn wait(&self, timeout: Duration) {
        let mut arrived = self.inbox.arrived.lock();
        if !arrived.woken && arrived.is_empty() {
            self.inbox.wake.wait_for(&mut arrived, timeout);
        }
        arrived.woken = false;
    }

    fn wake(&self) {
        self.inbox.arrived.lock().woken = true;
        self.inbox.wake.notify_one();
    }

    fn stats(&self) -> TransportStats {
        self.counters.stats()
    }

    fn close(&self) {
        let mut net = self.hub.net.write();
        // A later life of this host is none of our business.
        if net.hosts.get(&self.host).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox)) {
            net.hosts.remove(&self.host);
            net.leave(self.host, &self.inbox);
        }
    }
}

/// The concatenation of the parts, uncopied when there is one.
fn whole(parts: &[Bytes], len: usize) -> Bytes {
    if let [part] = parts {
        return part.clone();
    }
    let mut frame = BytesMut::with_capacity(len);
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<(HostId, Lane, Bytes)>, Vec<HostId>, Vec<(HostId, u64)>);

    impl FrameSink for Seen {
        fn frame(&mut self, from: HostId, lane: Lane, frame: Bytes) {
            self.0.push((from, lane, frame));
        }
        fn disconnected(&mut self, host: HostId) {
            self.1.push(host);
        }
        fn connected(&mut self, host: HostId, _: StoreId, incarnation: u64) {
            self.2.push((host, incarnation));
        }
    }

    fn pair() -> (InProcessHub, Arc<InProcessTransport>, Arc<InProcessTransport>) {
        let hub = InProcessHub::new();
        let (one, two) = (hub.join(HostId(1), StoreId(1), 1), hub.join(HostId(2), StoreId(2), 1));
        (hub, one, two)
    }

    #[test]
    fn frames_arrive_whole_in_order_and_control_first() {
        let (_hub, one, two) = pair();
        let part = |n: u8| Bytes::from(vec![n; 3]);
        for n in 0..3 {
            assert_eq!(one.send(HostId(2), Lane::Bulk, &[part(n), part(n)]), Sent::Queued);
        }
        assert_eq!(one.send(HostId(2), Lane::Control, &[part(9)]), Sent::Queued);
        let mut seen = Seen::default();
        assert_eq!(two.poll(&mut seen), 4);
        let expected = [(Lane::Control, vec![9; 3]), (Lane::Bulk, vec![0; 6]), (Lane::Bulk, vec![1; 6])];
        for ((from, lane, frame), (expected_lane, bytes)) in seen.0.iter().zip(expected) {
            assert_eq!((*from, *lane, &frame[..]), (HostId(1), expected_lane, &bytes[..]));
        }
        assert_eq!((one.stats().frames_sent, two.stats().bytes_received), (4, 21));
        assert_eq!(seen.2, [(HostId(1), 1)]);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (_hub, one, two) = pair();
        let frame = Bytes::from(vec![0; 1 << 20]);
        let sent: Vec<_> = (0..6).map(|_| one.send(HostId(2), Lane::Snapshot, std::slice::from_ref(&frame))).collect();
        assert_eq!(sent, [Sent::Queued, Sent::Queued, Sent::Queued, Sent::Queued, Sent::Full, Sent::Full]);
        assert_eq!(one.stats().dropped_full, 2);
        let mut seen = Seen::default();
        assert_eq!(two.poll(&mut seen), 1, "a poll takes its portion");
        assert_eq!(one.send(HostId(2), Lane::Snapshot, &[frame]), Sent::Queued);
        let more: usize = (0..5).map(|_| two.poll(&mut seen)).sum();
        assert_eq!(more, 4);
    }

    #[test]
    fn cuts_are_one_way_and_heal() {
        let (hub, one, two) = pair();
        let frame = [Bytes::from_static(b"x")];
        hub.set_cut(HostId(1), HostId(2), true);
        assert_eq!(one.send(HostId(2), Lane::Control, &frame), Sent::Unreachable);
        assert_eq!(two.send(HostId(1), Lane::Control, &frame), Sent::Queued);
        let mut seen = Seen::default();
        one.poll(&mut seen);
        assert_eq!(seen.1, [HostId(2)]);
        hub.set_cut(HostId(1), HostId(2), false);
        assert_eq!(one.send(HostId(2), Lane::Control, &frame), Sent::Queued);
    }

    #[test]
    fn a_host_that_leaves_is_unreachable_until_its_next_life() {
        let (hub, one, two) = pair();
        let frame = [Bytes::from_static(b"x")];
        two.close();
        assert_eq!(one.send(HostId(2), Lane::Control, &frame), Sent::Unreachable);
        assert_eq!(two.send(HostId(1), Lane::Control, &frame), Sent::Unreachable);
        assert_eq!(one.send(HostId(1), Lane::Control, &frame), Sent::Unreachable);
        let again = hub.join(HostId(2), StoreId(2), 2);
        two.close();
        assert_eq!(one.send(HostId(2), Lane::Control, &frame), Sent::Queued);
        let mut seen = Seen::default();
        assert_eq!((two.poll(&mut seen), again.poll(&mut seen)), (0, 1));
        one.poll(&mut seen);
        assert_eq!((seen.1, seen.2.last()), (vec![HostId(2)], Some(&(HostId(2), 2))));
    }

    #[test]
    fn a_wake_or_a_frame_ends_the_wait() {
        let (_hub, one, two) = pair();
        // Each of these waits would outlast the test if nothing ended it.
        let forever = Duration::from_secs(3_000);
        two.poll(&mut Seen::default());
        two.wake();
        two.wait(forever);
        assert_eq!(one.send(HostId(2), Lane::Control, &[Bytes::from_static(b"x")]), Sent::Queued);
        two.wait(forever);
        assert_eq!(two.poll(&mut Seen::default()), 1);
    }
}
