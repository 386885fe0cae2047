//! What a step worker does with received frames.
//!
//! Invariants: a round steps control frames before bulk ones, and some of each; a message reaches a core only when its group, epoch, addressee
//! and the sender's host are what this replica knows them to be; a frame counts against the worker's bound until it is stepped.

use crate::config::ROUND_NANOS_MAX;
use crate::rare::Asker;
use crate::shared::{InFrame, SlotRef};
use crate::step::{StepWorker, WARM_AHEAD};
use longboat_raft::{Body, GroupEpoch, Guard, HostId, Message, Time, plant};
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

    /// Steps the messages of a frame, some at a time: the replicas that they are for are warmed first.
    fn step_frame(&mut self, now: Time, frame: InFrame) {
        let mut messages = wire::messages(frame.frame);
        let mut ahead = std::mem::take(&mut self.ahead);
        let mut good = true;
        while good {
            good = self.look_ahead(frame.from, &mut messages, &mut ahead);
            self.warm(ahead.iter().map(|(at, _)| at.slot));
            if ahead.is_empty() {
                break;
            }
            for (at, incoming) in ahead.drain(..) {
                // An earlier message may have stopped the replica.
                if self.replica_at(at).is_some() {
                    self.guarded(at.slot, |w| w.deliver(now, at.slot, incoming.epoch, frame.from, incoming.message));
                }
            }
        }
        self.ahead = ahead;
    }

    /// Takes the next messages of a frame and finds whom they are for. Returns false at the end of the frame, and when the
    /// rest of it makes no sense.
    fn look_ahead(
        &mut self,
        from: HostId,
        messages: &mut wire::Messages,
        ahead: &mut Vec<(SlotRef, wire::Incoming)>,
    ) -> bool {
        let dropped_unknown = self.host.workers.len() == 1;
        while ahead.len() < WARM_AHEAD {
            let incoming = match messages.next() {
                Some(Ok(incoming)) => incoming,
                Some(Err(_)) => {
                    self.host.counters.bad_frames.fetch_add(1, Ordering::Relaxed);
                    return false;
                }
                None => return false,
            };
            match self.by_group.get(&incoming.group) {
                // A snapshot comes in chunks, and is told to raft when its files are durable; never like this.
                Some(_) if matches!(incoming.message.body, Body::Snapshot(_)) => {
                    self.host.counters.bad_frames.fetch_add(1, Ordering::Relaxed);
                }
                Some(&slot) => ahead.push((self.slot_ref(slot), incoming)),
                None if dropped_unknown => {
                    self.host.counters.dropped_unknown.fetch_add(1, Ordering::Relaxed);
                    self.hear_unknown(from, &incoming);
                }
                None => {}
            }
        }
        true
    }

    /// A snapshot came, or was refused because its state is here. The latter is told without files: when the state has been
    /// lost since, there is nothing to begin again from, and the leader is asked for all of it.
    pub(crate) fn told_of_snapshot(&mut self, now: Time, slot: u32, from: HostId, message: Message) {
        let Some(replica) = self.replica_in(slot) else { return };
        let (group, epoch) = (replica.config.group, replica.epoch);
        if let Body::Snapshot(meta) = &message.body
            && replica.core.guard() != Guard::None
            && !self.snapshots.has_received(group, meta.pos.index)
            && !plant::is("install-without-files")
        {
            return;
        }
        self.deliver(now, slot, epoch, from, message);
    }

    pub(crate) fn deliver(&mut self, now: Time, slot: u32, epoch: GroupEpoch, from: HostId, message: Message) {
        let replica = self.replica(slot);
        if epoch != replica.epoch && !plant::is("other-epoch-is-heard") {
            self.host.counters.dropped_epoch.fetch_add(1, Ordering::Relaxed);
            return self.answer_former_epoch(slot, epoch, from, message.from);
        }
        if message.to != replica.config.replica || !replica.accepts_from(message.from, from) {
            self.host.counters.dropped_unknown.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if replica.is_fenced(message.from) {
            self.host.counters.dropped_fenced.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Body::Snapshot(meta) = &message.body {
            replica.seldom.delivered = Some(meta.pos.index);
        }
        if matches!(message.body, Body::Forward(_) | Body::CloseForwards { .. } | Body::ReadIndex { .. }) {
            self.early.is_asked(now, from);
        }
        let replica = self.replica(slot);
        match message.body {
            // Only members have a say in who leads.
            Body::Transfer { to, question } if replica.core.membership().contains(message.from) => {
                replica.asked_to_transfer(now, Asker { replica: message.from, question, to });
                return self.activate(slot);
            }
            Body::TransferAnswer { to, question, answer } => {
                replica.transfer_answered(now, message.from, Asker { replica: message.to, question, to }, answer);
                return self.activate(slot);
            }
            _ => {}
        }
        // Most acknowledgements come when others had been faster, and nothing is to be done about them.
        let may_pass = matches!(message.body, Body::AppendAccepted { .. });
        let stepped = replica.core.step(now, message);
        // What the majority lacks now may be what this host's own disk is busy with.
        let awaits_disk = may_pass && replica.core.awaits_disk() && !plant::is("ack-asks-for-no-disk");
        let passes = may_pass && stepped.is_ok() && !replica.wants_visit();
        self.awaits_disk |= awaits_disk;
        if passes {
            return;
        }
        self.after_step(slot, stepped);
    }
}
