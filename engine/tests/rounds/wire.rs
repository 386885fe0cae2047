//! The other hosts, which are not there: what they would say is put on the wire, and what is said to them is read from it.

use crate::alone::{Alone, GROUP, MILLI};
use bytes::{Bytes, BytesMut};
use longboat_engine::Worker;
use longboat_io::Clock;
use longboat_raft::{Body, GroupEpoch, HostId, Message, ReplicaId, StoreId, Term};
use longboat_transport::wire::{self, FrameBuilder, HostMessage};
use longboat_transport::{FrameSink, Lane, Sent, Transport, TransportStats};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Keeps what is sent, and hands over what a test lets arrive.
#[derive(Default)]
pub struct Wire {
    sent: Mutex<Vec<(HostId, Bytes)>>,
    arriving: Mutex<VecDeque<(HostId, Bytes)>>,
    connected: Mutex<Vec<(HostId, StoreId, u64)>>,
}

fn joined(parts: &[Bytes]) -> Bytes {
    let mut whole = BytesMut::new();
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

impl Transport for Wire {
    fn send(&self, to: HostId, _lane: Lane, parts: &[Bytes]) -> Sent {
        self.sent.lock().push((to, joined(parts)));
        Sent::Queued
    }
    fn poll(&self, sink: &mut dyn FrameSink) -> usize {
        let connected = std::mem::take(&mut *self.connected.lock());
        connected.into_iter().for_each(|(host, store, incarnation)| sink.connected(host, store, incarnation));
        let arriving = std::mem::take(&mut *self.arriving.lock());
        let count = arriving.len();
        arriving.into_iter().for_each(|(from, frame)| sink.frame(from, Lane::Control, frame));
        count
    }
    fn wait(&self, _timeout: Duration) {}
    fn wake(&self) {}
    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }
    fn close(&self) {}
}

impl Alone {
    /// Moves the clock alone.
    pub fn sleep(&self, millis: u64) {
        self.clock.0.fetch_add(millis * MILLI, Ordering::Relaxed);
    }

    /// A round of the polling thread.
    pub fn poll(&mut self) {
        self.host.poller.run_round(self.clock.now());
    }

    /// As [`Alone::pass`], and the host listens.
    pub fn listen(&mut self, millis: u64) {
        for _ in 0..millis {
            self.poll();
            self.pass(1);
        }
        self.poll();
        self.step();
    }

    /// A host connects, and shows its store.
    pub fn connect(&mut self, from: u64, store: StoreId) {
        self.connect_as(from, store, 1);
    }

    /// As [`Alone::connect`], in this incarnation.
    pub fn connect_as(&mut self, from: u64, store: StoreId, incarnation: u64) {
        self.wire.connected.lock().push((HostId(from), store, incarnation));
        self.poll();
        self.step();
    }

    /// A frame of `from` arrives.
    pub fn arrive(&self, from: u64, frame: Bytes) {
        self.wire.arriving.lock().push_back((HostId(from), frame));
    }

    /// A replica's message to replica 1 arrives from host `from`.
    pub fn hear(&self, from: u64, epoch: GroupEpoch, replica: u64, term: u64, body: Body) {
        let message = Message { from: ReplicaId(replica), to: ReplicaId(1), term: Term(term), body };
        let mut frame = FrameBuilder::new();
        frame.push(GROUP, epoch, &message);
        self.arrive(from, joined(&frame.finish()));
    }

    /// Takes what was sent to other replicas since the last time.
    pub fn said(&self) -> Vec<Message> {
        let frames = std::mem::take(&mut *self.wire.sent.lock());
        let of_groups = frames.into_iter().filter(|(_, frame)| !HostMessage::is_one(frame));
        of_groups.flat_map(|(_, frame)| wire::messages(frame)).map(|m| m.expect("well formed").message).collect()
    }

    /// Takes what was sent to other hosts as such since the last time.
    pub fn said_to_hosts(&self) -> Vec<HostMessage> {
        let frames = std::mem::take(&mut *self.wire.sent.lock());
        let of_hosts = frames.into_iter().filter(|(_, frame)| HostMessage::is_one(frame));
        of_hosts.map(|(_, frame)| HostMessage::decode(&frame).expect("well formed")).collect()
    }

    /// Takes what was sent since the last time, and counts the beats.
    pub fn beats(&self) -> usize {
        let frames = std::mem::take(&mut *self.wire.sent.lock());
        let is_beat = |(_, frame): &&(HostId, Bytes)| {
            HostMessage::is_one(frame) && matches!(HostMessage::decode(frame), Ok(HostMessage::Beat(_)))
        };
        frames.iter().filter(is_beat).count()
    }
}
