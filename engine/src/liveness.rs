//! Hosts, not groups, prove liveness: beats between hosts that share groups, suspicion, and who is told what follows.
//!
//! Every pair of hosts that share a group exchanges a beat every quarter of the smallest election timeout, on the control lane. Any
//! frame counts as a sign of life. A host of which none came for an election timeout is *suspected*: the silent groups that it led
//! wake, a bounded number per millisecond, and forget their leader; silent groups with a mere follower there sleep on.
//!
//! A live host does not prove a live replica, nor that both sides believe the same. So beats carry the count and the sum of the
//! hashes of (group, epoch, member, term, leader) of the sender's silent replicas that lead with a member at the receiver, and of those
//! that follow a leader there; the receiver compares them with its own, the other way round. What differs for two beats in a
//! row is looked into: sums by bucket, then lists of the buckets that differ, then each group that differs wakes, on both
//! sides. A leader that fell silent without a member on a suspected host has it in its sums as *lagging*, which nothing at
//! the other side equals: so it is found, and wakes, when that host is back. A replica that stops tells its peers; if that is lost, the
//! sums differ. Beats say how many replicas the host has started, since one that joins may know nobody (`missed.rs`).
//!
//! Invariants: this is the polling thread's, and costs per host and beat, never per group; nothing here touches a replica,
//! workers are told by commands. Must not know: raft.

mod doubt;
pub(crate) mod index;
mod missed;
pub mod peers;
mod step;

pub(crate) use step::Waking;

use crate::openings::Standing;
use crate::shared::{Command, HostShared, InFrame};
use ahash::AHashMap;
use bytes::Bytes;
use doubt::Doubt;
use longboat_raft::{Body, GroupId, HostId, Time, plant};
use longboat_transport::Transport;
use longboat_transport::wire::{
    self, Beat, Digest, GoneReplica, HOST_ITEMS_MAX, HostMessage, Incoming, Side, SilentGroup, SilentSum, Starts,
};
use peers::{Peer, SilentSums};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Beats in the smallest election timeout.
const BEATS_PER_TIMEOUT: u64 = 4;
/// Beats in a row whose sums differ before that is looked into: what is falling silent, or waking, differs for a moment.
const DIFFERING_BEATS: u32 = 2;
/// Without replicas there is nothing to beat for: how often that is looked at, in nanoseconds.
const UNUSED_NANOS: u64 = 100_000_000;
/// How often what is known of other hosts' stores is made durable at most, in nanoseconds.
const KEEP_NANOS: u64 = 10_000_000_000;
/// The longest interval that another host's beats may claim, in nanoseconds: a quarter of the longest election timeout.
const INTERVAL_NANOS_MAX: u64 = 150_000_000_000;

/// What the liveness of hosts has for a step worker.
#[derive(Clone, Debug)]
pub enum PeerNews {
    /// Nothing was heard of this host for too long.
    Suspected(HostId),
    /// The host has started anew: what led there does not any more.
    Restarted(HostId),
    /// The host has started replicas: one may be back that has stopped.
    Started(HostId),
    /// Tell this host what is silent in these buckets.
    List {
        /// The host.
        to: HostId,
        /// The buckets of those that lead here.
        led: u64,
        /// The buckets of those that follow a leader there.
        followed: u64,
        /// How many times this was asked: of a list that is too long, another part is told each time.
        turn: u64,
    },
    /// What the host says is silent there.
    Check(HostId, Side, Arc<Vec<SilentGroup>>),
    /// Groups that the host says are otherwise there.
    Differing(Arc<Vec<GroupId>>),
    /// Replicas of that host that do not run.
    Gone(HostId, Arc<Vec<GoneReplica>>),
}

/// What is known of another host's life.
#[derive(Debug)]
struct Watch {
    /// What is shared with it, at hand for each of its frames without a look into the table.
    peer: Arc<Peer>,
    last_heard: Time,
    /// A part of the silence since then was not held against it, because this host did not listen either.
    forgiven: bool,
    last_beat: Option<Time>,
    incarnation: u64,
    interval_nanos: u64,
    starts: u64,
    differing: u32,
    turn: u64,
    doubt: Option<Doubt>,
}

/// Watches the other hosts, for the polling thread.
pub(crate) struct Liveness {
    host: Arc<HostShared>,
    transport: Arc<dyn Transport>,
    watches: BTreeMap<HostId, Watch>,
    last_beat: Option<Time>,
    last_round: Time,
    /// Other stores have come farther since this was last made durable.
    farther: bool,
    kept_at: Time,
    /// Held back from hosts that were doubted, and are believed now.
    released: Vec<InFrame>,
}

impl Liveness {
    pub(crate) fn new(host: Arc<HostShared>, transport: Arc<dyn Transport>) -> Self {
        let last_round = host.clock.now();
        let (watches, kept_at) = (BTreeMap::new(), last_round);
        Self { host, transport, watches, last_beat: None, last_round, farther: false, kept_at, released: Vec::new() }
    }

    /// How long a host may be silent before it is suspected. A host whose groups are slower than ours beats slower.
    fn patience(&self, shortest: u64, watch: &Watch) -> u64 {
        let configured = self.host.config.suspect_after_nanos;
        let own = if configured > 0 { configured } else { shortest };
        own.max(BEATS_PER_TIMEOUT * watch.interval_nanos)
    }

    /// Beats, and looks whom it does not hear. Returns when it wants to be called next. What has arrived was handed over before.
    pub(crate) fn round(&mut self, now: Time) -> Time {
        self.ask_again(now);
        let Some(shortest) = self.host.peers.shortest_timeout() else {
            return now.plus_nanos(UNUSED_NANOS);
        };
        let interval = (shortest / BEATS_PER_TIMEOUT).max(1);
        let due = self.last_beat.map_or(now, |last| last.plus_nanos(interval));
        let slept = now.nanos_since(self.last_round);
        self.last_round = now;
        if now < due {
            return due;
        }
        self.last_beat = Some(now);
        let beats = self.may_beat(now, shortest);
        for peer in self.host.peers.all() {
            self.watch(now, &peer, slept, shortest);
            if beats && self.is_beaten_to(now, &peer) {
                self.beat(now, &peer, interval);
            }
        }
        now.plus_nanos(interval)
    }

    /// A host whose store failed, or whose disk hangs for an election timeout, does not pretend to live.
    fn may_beat(&self, now: Time, shortest: u64) -> bool {
        let since = self.host.peers.writing_since.load(Ordering::Relaxed);
        if plant::is("beats-while-the-disk-hangs") {
            return true;
        }
        !self.host.has_failed.load(Ordering::SeqCst) && (since == 0 || now.nanos_since(Time(since)) <= shortest)
    }

    /// Those that share a group, and those that think so: they beat.
    fn is_beaten_to(&self, now: Time, peer: &Peer) -> bool {
        let heard = self.watches.get(&peer.host).and_then(|w| Some((w.last_beat?, w.interval_nanos)));
        let beats = heard.is_some_and(|(at, interval)| now.nanos_since(at) <= BEATS_PER_TIMEOUT * interval);
        beats || peer.shares.load(Ordering::Relaxed) > 0
    }

    fn beat(&self, now: Time, peer: &Peer, interval_nanos: u64) {
        let since = self.host.peers.writing_since.load(Ordering::Relaxed);
        let beat = Beat {
            incarnation: self.host.config.incarnation,
            interval_nanos,
            writing_nanos: if since == 0 { 0 } else { now.nanos_since(Time(since)) },
            starts: self.host.peers.starts(),
            place: self.host.openings.place(),
            led: peer.led.total(),
            followed: peer.followed.total(),
        };
        HostMessage::Beat(beat).send(&*self.transport, peer.host);
    }

    fn watch(&mut self, now: Time, peer: &Arc<Peer>, slept: u64, shortest: u64) {
        self.forgive(now, peer, slept, shortest);
        let watch = &self.watches[&peer.host];
        let silent = now.nanos_since(watch.last_heard) > self.patience(shortest, watch);
        if silent && peer.shares.load(Ordering::Relaxed) > 0 && !peer.suspected.load(Ordering::SeqCst) {
            tracing::warn!(host = %peer.host, "host is suspected: nothing was heard of it for an election timeout");
            self.host.peers.suspect(peer, true);
            self.tell_all(&PeerNews::Suspected(peer.host));
        }
    }

    /// Whoever slept itself did not listen: what was sent meanwhile may not be here yet, and that time is not held against
    /// anybody. But by the next round it is here, so it is done once for each silence: to a polling thread that is always late
    /// every round looks like that.
    fn forgive(&mut self, now: Time, peer: &Arc<Peer>, slept: u64, shortest: u64) {
        let watch = self.watches.entry(peer.host).or_insert_with(|| Watch::new(now, Arc::clone(peer)));
        if slept > shortest / 2 && (!watch.forgiven || plant::is("slow-rounds-suspect-nobody")) {
            watch.forgiven = true;
            watch.last_heard = watch.last_heard.plus_nanos(slept).min(now);
        }
    }

    fn tell_all(&self, news: &PeerNews) {
        self.host.workers.iter().for_each(|w| w.command(Command::Peer(news.clone())));
    }

    /// A frame came from this host.
    pub(crate) fn heard(&mut self, now: Time, from: HostId) {
        let Some(watch) = self.watches.get_mut(&from) else { return };
        (watch.last_heard, watch.forgiven) = (now, false);
        if !watch.peer.suspected.load(Ordering::SeqCst) {
            return;
        }
        tracing::info!(host = %from, "host is heard of again");
        // What it was left out of is found by the next beat's sums.
        watch.differing = DIFFERING_BEATS;
        self.host.peers.suspect(&watch.peer, false);
    }

    /// The handshake, or a beat, tells which life of the host it is.
    pub(crate) fn incarnation(&mut self, now: Time, from: HostId, incarnation: u64) {
        let peers = &self.host.peers;
        let watch = self.watches.entry(from).or_insert_with(|| Watch::new(now, peers.peer(from)));
        if incarnation > watch.incarnation {
            let restarted = watch.incarnation != 0;
            let doubt = watch.doubt.take().map(Doubt::of_next_life);
            watch.peer.note_started(Starts { incarnation, count: 0 });
            *watch = Watch { incarnation, doubt, ..Watch::new(now, Arc::clone(&watch.peer)) };
            if restarted {
                tracing::info!(host = %from, "host has started anew");
                self.heard(now, from);
                self.tell_all(&PeerNews::Restarted(from));
            }
        }
    }

    /// Whether what is known of other hosts' stores is to be made durable: places seldom, since they are needed only if both this
    /// host starts anew and another one is put back to a copy of the opening that it was in.
    pub(crate) fn is_to_keep(&mut self, now: Time) -> bool {
        let keep = self.farther && now.nanos_since(self.kept_at) >= KEEP_NANOS;
        if keep {
            (self.farther, self.kept_at) = (false, now);
        }
        keep
    }

    /// A host's message.
    pub(crate) fn message(&mut self, now: Time, from: HostId, frame: &[u8]) {
        let Ok(message) = HostMessage::decode(frame) else {
            self.host.counters.bad_frames.fetch_add(1, Ordering::Relaxed);
            return;
        };
        match message {
            HostMessage::Beat(beat) => self.on_beat(now, from, &beat),
            HostMessage::Digest(digest) => self.on_digest(from, &digest),
            HostMessage::Silent(side, list) => self.on_silent(from, side, list),
            HostMessage::Differing(groups) => {
                let news = |list| PeerNews::Differing(Arc::new(list));
                self.give(groups, |group| *group, news);
            }
            HostMessage::Gone(list) => {
                let news = |list| PeerNews::Gone(from, Arc::new(list));
                self.give(list, |gone| gone.group, news);
            }
            HostMessage::Asked { store, incarnation, place } => {
                self.on_asked(from, Standing { store, incarnation, place });
            }
            HostMessage::Answered { asked, place, incarnation, follows } => {
                self.on_answered(from, (asked, place), incarnation, follows);
            }
        }
    }

    fn on_beat(&mut self, now: Time, from: HostId, beat: &Beat) {
        if self.watches.get(&from).is_none_or(|w| w.incarnation < beat.incarnation) {
            self.shown(now, from, beat.incarnation);
        }
        self.incarnation(now, from, beat.incarnation);
        let peer = self.host.peers.peer(from);
        let watch = self.watches.get_mut(&from).expect("it was just made");
        if beat.incarnation < watch.incarnation {
            // Of a former life, on its way since then.
            return;
        }
        let (fell, doubted) = (self.host.stores.heard(from, beat.incarnation, beat.place), watch.doubt.is_some());
        self.farther |= fell.is_none();
        watch.last_beat = Some(now);
        watch.interval_nanos = beat.interval_nanos.min(INTERVAL_NANOS_MAX);
        if watch.starts < beat.starts {
            watch.starts = beat.starts;
            // Before workers are told: a leader that falls silent without a member there sees it, or is found by the news.
            peer.note_started(Starts { incarnation: beat.incarnation, count: beat.starts });
            self.tell_all(&PeerNews::Started(from));
        }
        if let Some(known) = fell.filter(|_| !doubted) {
            // A process that was put back with its memory is the same incarnation; a late beat is no such thing.
            self.doubt(now, from, known);
        }
        let watch = self.watches.get_mut(&from).expect("it was just made");
        if equal(&peer, beat.led, beat.followed) || plant::is("beat-hash-ignored") {
            watch.differing = 0;
            return;
        }
        watch.differing += 1;
        if watch.differing >= DIFFERING_BEATS {
            watch.differing = 0;
            tracing::debug!(host = %from, "hosts differ about who is silent");
            let (led, followed) = (peer.led.buckets(), peer.followed.buckets());
            HostMessage::Digest(Box::new(Digest { led, followed })).send(&*self.transport, from);
        }
    }

    /// The other host's sums by bucket: it is told what is silent here where they differ. It does the same.
    fn on_digest(&mut self, from: HostId, digest: &Digest) {
        let Some(peer) = self.host.peers.known(from) else { return };
        let Some(watch) = self.watches.get_mut(&from) else { return };
        let (led, followed) = (mask(&peer.led, &digest.followed), mask(&peer.followed, &digest.led));
        if led | followed != 0 {
            watch.turn += 1;
            let turn = watch.turn;
            self.tell_all(&PeerNews::List { to: from, led, followed, turn });
        }
    }

    /// What is silent there: workers check what they have of it, and what is not here at all has stopped.
    fn on_silent(&mut self, from: HostId, side: Side, list: Vec<SilentGroup>) {
        let as_of = self.host.starts();
        let absent = self.give(list, |s| s.group, |list| PeerNews::Check(from, side, Arc::new(list)));
        let gone = absent.into_iter().map(|s| GoneReplica {
            group: s.group,
            epoch: s.epoch,
            replica: if side == Side::Led { s.member } else { s.leader },
            as_of,
        });
        send_gone(&*self.transport, from, gone.collect());
    }

    /// Messages for groups that do not run here.
    pub(crate) fn unknown(&self, from: HostId, frame: &Bytes, groups: &[GroupId]) {
        let messages = wire::messages_for(frame.clone(), |group| groups.contains(&group));
        let gone = messages.flatten().filter_map(|incoming| gone_of(&self.host, &incoming));
        send_gone(&*self.transport, from, gone.collect());
    }

    /// Gives each worker what is about its groups. Returns what is about groups that do not run here.
    fn give<T>(&self, list: Vec<T>, group: impl Fn(&T) -> GroupId, news: impl Fn(Vec<T>) -> PeerNews) -> Vec<T> {
        let mut parts: Vec<Vec<T>> = self.host.workers.iter().map(|_| Vec::new()).collect();
        let mut absent = Vec::new();
        let groups = self.host.groups.read();
        for item in list {
            match groups.get(&group(&item)) {
                Some(shared) => parts[shared.worker()].push(item),
                None => absent.push(item),
            }
        }
        drop(groups);
        for (worker, part) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            self.host.workers[worker].command(Command::Peer(news(part)));
        }
        absent
    }
}

impl Watch {
    /// Whoever is watched from now on has the time that all have.
    fn new(now: Time, peer: Arc<Peer>) -> Self {
        Self {
            peer,
            last_heard: now,
            forgiven: false,
            last_beat: None,
            incarnation: 0,
            interval_nanos: 0,
            starts: 0,
            differing: 0,
            turn: 0,
            doubt: None,
        }
    }
}

/// Whether what the other host says of its side is what is true here, the other way round.
fn equal(peer: &Peer, led: SilentSum, followed: SilentSum) -> bool {
    peer.followed.total() == led && peer.led.total() == followed
}

/// The buckets that differ.
fn mask(own: &SilentSums, other: &[u64]) -> u64 {
    let differs = own.buckets().into_iter().zip(other).enumerate().filter(|(_, (own, other))| own != *other);
    differs.fold(0, |mask, (at, _)| mask | 1 << at)
}

/// Tells a host which of its groups' replicas do not run here.
pub(crate) fn send_gone(transport: &dyn Transport, to: HostId, mut gone: Vec<GoneReplica>) {
    while !gone.is_empty() {
        let rest = gone.split_off(gone.len().min(HOST_ITEMS_MAX));
        HostMessage::Gone(gone).send(transport, to);
        gone = rest;
    }
}

/// What to answer to a message for a group that does not run here: if its replica once did, whoever counts on it is told.
pub(crate) fn gone_of(host: &HostShared, incoming: &Incoming) -> Option<GoneReplica> {
    let Incoming { group, epoch, message } = incoming;
    let counts_on_it = matches!(message.body, Body::Heartbeat { .. } | Body::Quiesce { .. });
    let gone = GoneReplica { group: *group, epoch: *epoch, replica: message.to, as_of: host.starts() };
    (counts_on_it && host.was_here(*group)).then_some(gone)
}

/// By host, in the order of their ids.
pub(crate) fn send_gone_to_all(transport: &dyn Transport, gone: Vec<(HostId, GoneReplica)>) {
    let mut by_host: AHashMap<HostId, Vec<GoneReplica>> = AHashMap::new();
    gone.into_iter().for_each(|(host, gone)| by_host.entry(host).or_default().push(gone));
    let mut by_host: Vec<_> = by_host.into_iter().collect();
    by_host.sort_unstable_by_key(|(host, _)| *host);
    by_host.into_iter().for_each(|(host, gone)| send_gone(transport, host, gone));
}

/// Host messages travel on the control lane, one a frame.
pub(crate) trait SendToHost {
    fn send(&self, transport: &dyn Transport, to: HostId);
}

impl SendToHost for HostMessage {
    fn send(&self, transport: &dyn Transport, to: HostId) {
        // A lost one is followed by another: nothing waits for any of them.
        transport.send(to, longboat_transport::Lane::Control, &[self.encode()]);
    }
}
