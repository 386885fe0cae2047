//! Hosts that started anew, and are not believed before they have shown that their store has all that it had ([`crate::openings`]).
//!
//! What such a host says for its replicas meanwhile is held back, not thrown away: the answer is on its way already, and while a
//! vote or an acknowledgement would be said again, a proposal that was forwarded would not, and its client would wait until it gives
//! up. Held frames are late frames, which raft allows.
//!
//! Invariants: a held frame reaches a worker only after the life of the host that sent it has shown its store, in the order in
//! which they came; what is held of a host is bounded, and what comes on top of that is lost.

use super::{Liveness, SendToHost, Watch};
use crate::events::HostEvent;
use crate::openings::Standing;
use crate::shared::InFrame;
use longboat_raft::{HostId, Time, plant, sometimes};
use longboat_transport::Transport;
use longboat_transport::wire::HostMessage;
use std::sync::atomic::Ordering;

/// How long an answer is waited for before the question is put again, in nanoseconds.
const ASK_AGAIN_NANOS: u64 = 50_000_000;
/// What is held of one host at most, in bytes.
const HELD_BYTES_MAX: usize = 4 << 20;
/// What a frame is taken for beside its bytes.
const HELD_FRAME_BYTES: usize = 128;

/// A host that is not believed before it has shown that its store has all that it had when it was heard of last.
#[derive(Debug)]
pub(super) struct Doubt {
    known: Standing,
    asked_at: Time,
    /// It was told that it has not.
    refuted: bool,
    held: Vec<InFrame>,
    held_bytes: usize,
}

impl Doubt {
    fn new(known: Standing, now: Time) -> Self {
        Self { known, asked_at: now, refuted: false, held: Vec::new(), held_bytes: 0 }
    }

    /// The same, of a host that has started anew since: what it said before is not covered by what it will show.
    pub(super) fn of_next_life(self) -> Self {
        Self { held: Vec::new(), held_bytes: 0, ..self }
    }

    /// Keeps a frame, if there is room and hope.
    fn hold(&mut self, frame: InFrame) -> bool {
        let bytes = self.held_bytes + frame.frame.len() + HELD_FRAME_BYTES;
        let holds = !self.refuted && bytes <= HELD_BYTES_MAX;
        if holds {
            self.held_bytes = bytes;
            self.held.push(frame);
        }
        holds
    }
}

impl Liveness {
    /// The handshake, or a beat, tells which opening of its store a host is. Another one than is known must follow from that.
    pub(crate) fn shown(&mut self, now: Time, from: HostId, incarnation: u64) {
        let known = self.host.stores.shown(from, incarnation);
        let store = self.host.stores.standing(from).map(|standing| standing.store);
        let peers = &self.host.peers;
        let watch = self.watches.entry(from).or_insert_with(|| Watch::new(now, peers.peer(from)));
        let is_of = |doubt: &Doubt| Some(doubt.known.store) == store;
        match known {
            // Who fell behind itself within one opening is not believed because it connects again.
            None if watch.doubt.as_ref().is_some_and(is_of) && !plant::is("doubt-ends-with-a-connection") => {}
            None => watch.doubt = None,
            Some(known) if watch.doubt.as_ref().is_none_or(|doubt| doubt.known != known) => {
                self.doubt(now, from, known)
            }
            Some(_) => {}
        }
    }

    /// Whether what this host says for its replicas is believed. If not, the frame is held back until it is, or dropped.
    pub(crate) fn believes(&mut self, frame: InFrame) -> Option<InFrame> {
        let Some(doubt) = self.watches.get_mut(&frame.from).and_then(|watch| watch.doubt.as_mut()) else {
            return Some(frame);
        };
        if !doubt.hold(frame) {
            self.host.counters.dropped_doubted.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    /// What was held back and is believed now.
    pub(crate) fn released(&mut self) -> Vec<InFrame> {
        std::mem::take(&mut self.released)
    }

    pub(super) fn doubt(&mut self, now: Time, host: HostId, known: Standing) {
        sometimes!("restarted-host-is-asked-what-it-has");
        let watch = self.watches.get_mut(&host).expect("it is watched");
        watch.doubt = Some(Doubt::new(known, now));
        ask(&*self.transport, host, known);
    }

    pub(super) fn ask_again(&mut self, now: Time) {
        for (host, watch) in &mut self.watches {
            if let Some(doubt) = watch.doubt.as_mut().filter(|d| now.nanos_since(d.asked_at) >= ASK_AGAIN_NANOS) {
                doubt.asked_at = now;
                ask(&*self.transport, *host, doubt.known);
            }
        }
    }

    /// Another host asks whether this store has all that it had when it was heard of there.
    pub(super) fn on_asked(&mut self, from: HostId, heard: Standing) {
        let (openings, incarnation) = (&self.host.openings, self.host.openings.incarnation());
        let Some(follows) = openings.follows(heard) else { return };
        let Standing { incarnation: asked, place, .. } = heard;
        HostMessage::Answered { asked, place, incarnation, follows }.send(&*self.transport, from);
        if !follows && !self.host.has_failed.load(Ordering::SeqCst) {
            self.host.events.tell(HostEvent::RolledBack { told_by: from });
            self.host.fail("another host has seen more of this store than it has: the directory is an older copy");
            if let Err(error) = openings.mark() {
                tracing::error!(%error, "the directory could not be marked, it will be found out again");
            }
        }
    }

    pub(super) fn on_answered(&mut self, from: HostId, about: (u64, u64), incarnation: u64, follows: bool) {
        let Some(watch) = self.watches.get_mut(&from) else { return };
        let is_meant = |doubt: &Doubt| (doubt.known.incarnation, doubt.known.place) == about;
        if incarnation < watch.incarnation || !watch.doubt.as_ref().is_some_and(is_meant) {
            return;
        }
        let Some(doubt) = watch.doubt.as_mut() else { return };
        if follows {
            let held = std::mem::take(&mut doubt.held);
            watch.doubt = None;
            self.host.stores.proven(from, incarnation);
            // This one at once: an opening that somebody has seen is what tells copies of the time before it.
            (self.farther, self.kept_at) = (true, Time::ZERO);
            if !plant::is("held-frames-are-lost") {
                self.released.extend(held);
            }
            return;
        }
        let held = std::mem::take(&mut doubt.held).len() as u64;
        self.host.counters.dropped_doubted.fetch_add(held, Ordering::Relaxed);
        if !std::mem::replace(&mut doubt.refuted, true) {
            tracing::error!(host = %from, "host has an older copy of its store: it is not believed");
            self.host.events.tell(HostEvent::StoreRolledBack { host: from });
        }
    }
}

/// Asks a host whether its store has all that is known of it.
fn ask(transport: &dyn Transport, host: HostId, known: Standing) {
    let Standing { store, incarnation, place } = known;
    HostMessage::Asked { store, incarnation, place }.send(transport, host);
}
