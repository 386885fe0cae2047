//! The transport poller: reads sockets and hands each frame to the workers that it concerns.

use crate::liveness::Liveness;
use crate::shared::{HostShared, InFrame};
use crate::snapshot::SnapshotIo;
use crate::worker::{Work, Worker};
use bytes::Bytes;
use longboat_raft::{HostId, StoreId, Time};
use longboat_transport::wire::{self, HostMessage};
use longboat_transport::{FrameSink, Lane, Transport};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Polls the transport of one host.
pub struct Poller {
    transport: Arc<dyn Transport>,
    sink: Sink,
    shed_heard: u64,
}

struct Sink {
    host: Arc<HostShared>,
    snapshots: Arc<SnapshotIo>,
    /// Workers that were given something in this round, to be woken once each.
    touched: Vec<bool>,
    liveness: Liveness,
    /// The round's moment.
    now: Time,
}

impl Poller {
    /// The poller of a host.
    pub fn new(host: Arc<HostShared>, transport: Arc<dyn Transport>, snapshots: Arc<SnapshotIo>) -> Self {
        let touched = vec![false; host.workers.len()];
        let liveness = Liveness::new(Arc::clone(&host), Arc::clone(&transport));
        let now = host.clock.now();
        Self { transport, sink: Sink { host, snapshots, touched, liveness, now }, shed_heard: 0 }
    }
}

impl Sink {
    fn give(&mut self, worker: usize, frame: InFrame) {
        if self.host.workers[worker].frame(frame) {
            self.touched[worker] = true;
        } else {
            self.host.counters.dropped_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn hand_over(&mut self, frame: InFrame) {
        if frame.lane == Lane::Snapshot {
            self.snapshots.frame(frame.from, frame.frame);
            return;
        }
        if self.touched.len() == 1 {
            self.give(0, frame);
            return;
        }
        for (worker, concerned) in self.concerned(frame.from, &frame.frame).into_iter().enumerate() {
            if concerned {
                self.give(worker, frame.clone());
            }
        }
    }

    fn concerned(&self, from: HostId, frame: &Bytes) -> Vec<bool> {
        let mut concerned = vec![false; self.touched.len()];
        let mut unknown = Vec::new();
        let groups = self.host.groups.read();
        let walked = wire::for_each_group(frame, |group| match groups.get(&group) {
            Some(shared) => concerned[shared.worker()] = true,
            None => {
                self.host.counters.dropped_unknown.fetch_add(1, Ordering::Relaxed);
                unknown.push(group);
            }
        });
        drop(groups);
        if walked.is_err() {
            self.host.counters.bad_frames.fetch_add(1, Ordering::Relaxed);
            concerned.fill(false);
        } else if !unknown.is_empty() {
            self.liveness.unknown(from, frame, &unknown);
        }
        concerned
    }
}

impl FrameSink for Sink {
    fn frame(&mut self, from: HostId, lane: Lane, frame: Bytes) {
        self.liveness.heard(self.now, from);
        if HostMessage::is_one(&frame) {
            self.liveness.message(self.now, from, &frame);
            self.liveness.released().into_iter().for_each(|frame| self.hand_over(frame));
        } else if let Some(frame) = self.liveness.believes(InFrame { from, lane, frame }) {
            self.hand_over(frame);
        }
    }

    fn disconnected(&mut self, host: HostId) {
        tracing::debug!(%host, "peer disconnected");
    }

    fn connected(&mut self, host: HostId, store: StoreId, incarnation: u64) {
        let job = self.host.store_seen(host, store);
        self.liveness.shown(self.now, host, incarnation);
        if let Some(job) = job {
            self.snapshots.spawner.spawn(job);
        }
        self.liveness.incarnation(self.now, host, incarnation);
    }
}

impl Worker for Poller {
    fn run_round(&mut self, now: Time) -> Work {
        self.sink.now = now;
        let frames = self.transport.poll(&mut self.sink);
        for (worker, touched) in self.sink.touched.iter_mut().enumerate() {
            if std::mem::take(touched) {
                self.sink.host.workers[worker].notifier.notify();
            }
        }
        // After what has arrived was handed over: whoever was heard just now is not suspected.
        let next = self.sink.liveness.round(now);
        if self.sink.host.shed.is_new(&mut self.shed_heard) {
            self.transport.shed();
        }
        if self.sink.liveness.is_to_keep(now) {
            self.sink.snapshots.spawner.spawn(self.sink.host.keep_stores());
        }
        Work { did: frames > 0, again: false, next: Some(next) }
    }
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}
