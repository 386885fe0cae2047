//! What a step worker does with received frames.
//!
//! Invariants: a round steps control frames before bulk ones, and some of each; a message reaches a core only when its group, epoch, addressee
//! and the sender's host are what this replica knows them to be; a frame counts against the worker's bound until it is stepped.

use crate::config::ROUND_NANOS_MAX;
use crate::shared::InFrame;
use crate::step::StepWorker;
use longboat_raft::{Body, GroupEpoch, HostId, Message, Time};
use longboat_transport::{Lane, wire};
use std::sync::atomic::Ordering;

impl StepWorker {
    /// Steps received frames, those of the control lane first, until the round's time is up. Returns whether some are left.
    pub(crate) fn take_frames(&mut self, now: Time) -> bool {
        let mut taken = std::mem::take(&mut self.taken);
        self.inbox().take_frames(&mut taken);
        for frame in taken.drain(..) {
            let queue = if frame.lane == Lane::Control { &mut self.control } else { &mut self.bulk };
            queue.push_back(frame);
        }
        self.taken = taken;
        self.step_lane(now, Lane::Control, ROUND_NANOS_MAX / 2);
        self.step_lane(now, Lane::Bulk, ROUND_NANOS_MAX);
        !(self.control.is_empty() && self.bulk.is_empty())
    }

    /// Steps a lane's frames until `nanos` after the round began, and at least one: a flood on one lane slows the other down,
    /// and never stops it.
    fn step_lane(&mut self, now: Time, lane: Lane, nanos: u64) {
        loop {
            let queue = if lane == Lane::Control { &mut self.control } else { &mut self.bulk };
            let Some(frame) = queue.pop_front() else { return };
            self.inbox().frame_done(&frame);
            self.step_frame(now, frame);
            if self.host.clock.now().nanos_since(now) > nanos {
                return;
            }
        }
    }

    fn step_frame(&mut self, now: Time, frame: InFrame) {
        for incoming in wire::messages(frame.frame) {
            let Ok(incoming) = incoming else {
                self.host.counters.bad_frames.fetch_add(1, Ordering::Relaxed);
                return;
            };
            match self.by_group.get(&incoming.group) {
                // A snapshot comes in chunks, and is told to raft when its files are durable; never like this.
                Some(_) if matches!(incoming.message.body, Body::Snapshot(_)) => {
                    self.host.counters.bad_frames.fetch_add(1, Ordering::Relaxed);
                }
                Some(&slot) => {
                    self.guarded(slot, |w| w.deliver(now, slot, incoming.epoch, frame.from, incoming.message));
                }
                None if self.host.workers.len() == 1 => {
                    self.host.counters.dropped_unknown.fetch_add(1, Ordering::Relaxed);
                }
                None => {}
            }
        }
    }

    pub(crate) fn deliver(&mut self, now: Time, slot: u32, epoch: GroupEpoch, from: HostId, message: Message) {
        let replica = self.replica(slot);
        if epoch != replica.shared.epoch {
            self.host.counters.dropped_epoch.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if message.to != replica.config.replica || !replica.accepts_from(message.from, from) {
            self.host.counters.dropped_unknown.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Body::Snapshot(meta) = &message.body {
            replica.delivered = Some(meta.pos.index);
        }
        let stepped = replica.core.step(now, message);
        self.after_step(slot, stepped);
    }
}
