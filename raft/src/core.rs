//! One replica's protocol state, and what its owner gives it and sees of it.
//!
//! [`Core`] is a state machine: every input is a method, every output is collected and moved out by
//! [`Core::take_output`]. The protocol's parts are in modules of their own, each an `impl Core`: `election`,
//! `replication` (the leader's side), `follower`, `proposals`, `read`, `handout`.
//!
//! Invariants: `start <= handed <= commit <= last`; `term` never falls and a vote in it never changes; only a leader has
//! `peers`. Must not know: time beyond what it is told, disks, sockets, hosts.

use crate::config::CoreConfig;
use crate::durability::{Ballot, Durability, PersistToken};
use crate::election::Votes;
use crate::error::Violation;
use crate::farewell::Farewell;
use crate::forwards::Bars;
use crate::handout::ColdHandout;
use crate::ids::{HardState, Index, LogPos, ReplicaId, Term, Time};
use crate::log::Log;
use crate::membership::Membership;
use crate::message::{Body, Message, SnapshotMeta};
use crate::output::{ClosedForwards, Event, Fetch, ReadReady, RefusedForward};
use crate::plant;
use crate::progress::{InflightBounds, Progress};
use crate::promotion::Rounds;
use crate::quiesce::Quiet;
use crate::read::Reads;
use crate::rng::Rng;
use crate::run::Run;
use crate::spare::{Emptied, Spare};
use crate::transfer::Handover;
use std::sync::Arc;

/// The highest term and index that a message may name. Beyond it counting up would overflow, and nobody gets there: it
/// would take a billion elections a second for a century.
const NUMBER_MAX: u64 = 1 << 62;

/// What recovery found, for a new core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The last durable term, vote and commit.
    pub hard_state: HardState,
    /// The membership in effect at `applied`: the snapshot's, or the bootstrap's.
    pub membership: Arc<Membership>,
    /// The place just before the first entry that is kept.
    pub start: LogPos,
    /// The last entry; `start` when there is none.
    pub last: LogPos,
    /// The first entry of every term of the kept log, in order.
    pub terms: Vec<LogPos>,
    /// A suffix of the log to hold in memory. What is missing is read by tickets when it is needed.
    pub runs: Vec<Run>,
    /// What the state machine has already: the snapshot's index, which may be after `start`. Entries after it, through the
    /// commit index, are handed out again. A machine that keeps more on a disk of its own skips those it has: their
    /// membership changes are needed here.
    pub applied: Index,
    /// What a state machine with a disk of its own says it has applied; zero for others. It is known to be committed. If it
    /// is past the log's end, this replica does not campaign before it has caught up.
    pub machine: Index,
    /// What this replica must not do, because part of what it had is lost.
    pub guard: Guard,
}

/// What a replica must not do because part of what it had is lost. A snapshot of the leader's, which it asks for, ends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Guard {
    /// Nothing is lost.
    #[default]
    None,
    /// Log and hard state are whole, but no snapshot can be read from which the state machine could begin. It votes and
    /// acknowledges, and neither campaigns, nor serves reads, nor hands entries out.
    NeedsSnapshot,
    /// The log lost entries, whose acknowledgements may have been counted. It neither votes nor acknowledges. Hard state
    /// is whole: where that may be lost too, the replica must be replaced under a new id.
    LostLog {
        /// The last index that this replica may have acknowledged. An older snapshot does not help.
        through: Index,
    },
}

/// What a replica is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it could win.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Voters of most groups.
const MEMBERS_USUAL: usize = 3;

/// Lists of messages leave with what is in them: the next one takes no more memory than it is likely to need.
fn first_room(messages: &mut Vec<Message>, room: usize) {
    if messages.capacity() == 0 {
        messages.reserve_exact(room);
    }
}

/// What waits to be moved out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outbox {
    pub(crate) early: Vec<Message>,
    pub(crate) held: Vec<Message>,
    pub(crate) rare: Spare<RareOutput>,
}

/// What few visits put out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RareOutput {
    pub(crate) reads: Vec<ReadReady>,
    pub(crate) refused: Vec<RefusedForward>,
    pub(crate) closed: Vec<ClosedForwards>,
    pub(crate) snapshots_wanted: Vec<ReplicaId>,
    pub(crate) fetches: Vec<Fetch>,
    pub(crate) events: Vec<Event>,
    /// The snapshot that the log was reset to.
    pub(crate) install: Option<Box<SnapshotMeta>>,
    /// The snapshot that the state machine begins from again, with the log as it was.
    pub(crate) recover: Option<Box<SnapshotMeta>>,
}

impl Emptied for RareOutput {
    const EMPTY: &'static Self = &Self {
        reads: Vec::new(),
        refused: Vec::new(),
        closed: Vec::new(),
        snapshots_wanted: Vec::new(),
        fetches: Vec::new(),
        events: Vec::new(),
        install: None,
        recover: None,
    };

    fn is_emptied(&self) -> bool {
        self == Self::EMPTY
    }
}

/// Entries on the way to the state machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Handout {
    /// The last index that was handed out.
    pub(crate) handed: Index,
    /// What the state machine said it has applied.
    pub(crate) applied: Index,
    pub(crate) cold: Spare<ColdHandout>,
}

/// The protocol state of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Shared with cores of the same settings: which replica this is, and its seed, are not in it.
    pub(crate) config: Arc<CoreConfig>,
    pub(crate) id: ReplicaId,
    pub(crate) rng: Rng,
    /// The latest time that it was told.
    pub(crate) now: Time,
    pub(crate) role: Role,
    pub(crate) term: Term,
    pub(crate) vote: ReplicaId,
    pub(crate) leader: Option<ReplicaId>,
    pub(crate) log: Log,
    pub(crate) durability: Durability,
    pub(crate) commit: Index,
    pub(crate) handout: Handout,
    pub(crate) membership: Arc<Membership>,
    /// Whether this replica is a voter of `membership`, in either half.
    pub(crate) is_voter: bool,
    /// Whether it is a witness.
    pub(crate) is_witness: bool,
    pub(crate) guard: Guard,
    /// It does not campaign with a log that ends before this: its state machine had more.
    pub(crate) catch_up_to: Index,
    /// This replica's host has no room for entries.
    pub(crate) overloaded: bool,
    /// The host takes no commands of clients at present.
    pub(crate) full: bool,
    /// The last index at which the log may hold a config entry that is not in effect.
    pub(crate) pending_change: Index,
    /// Since when the election timeout runs; for a leader, the start of its quorum check's interval.
    pub(crate) election_base: Time,
    pub(crate) election_timeout_nanos: u64,
    pub(crate) heartbeat_base: Time,
    pub(crate) votes: Spare<Votes>,
    /// Follower: the last index at which the log is known to be the leader's, in this term.
    pub(crate) verified: Index,
    /// Follower: the leader's commit index, as far as it was told in this term.
    pub(crate) leader_commit: Index,
    /// Leader: the members, by id.
    pub(crate) peers: Vec<Progress>,
    /// Leader: something may be due to members at the end of the round.
    pub(crate) dirty: bool,
    /// A replica that was removed: the others may need it to be elected once more.
    pub(crate) asked_to_help: bool,
    /// Leader: elected after it was removed, until the others know what is committed.
    pub(crate) helps_out: bool,
    /// Leader: whom leadership is being handed to.
    pub(crate) transferee: Option<ReplicaId>,
    pub(crate) handover: Spare<Handover>,
    pub(crate) farewell: Spare<Farewell>,
    /// Leader: how non-voting members that are to become voters catch up.
    pub(crate) rounds: Spare<Rounds>,
    /// Leader: bytes of entries sent in this round, and the member that comes first in it.
    pub(crate) round_bytes: usize,
    pub(crate) first_peer: usize,
    pub(crate) reads: Spare<Reads>,
    /// Leader: forwarded proposals that it appends no more.
    pub(crate) bars: Spare<Bars>,
    pub(crate) quiet: Quiet,
    pub(crate) last_ticket: u64,
    pub(crate) outbox: Outbox,
    /// Role, leader and term as last told in events.
    pub(crate) announced: (Role, Option<ReplicaId>, Term),
    /// Messages that were of no use or made no sense.
    pub(crate) dropped: u64,
}

impl Core {
    /// A replica as recovery found it: a follower that knows no leader.
    ///
    /// # Errors
    /// When what was restored does not hang together.
    pub fn new(config: CoreConfig, restored: Restored, now: Time) -> Result<Self, Violation> {
        let Restored { hard_state, membership, start, last, terms, runs, applied, machine, guard } = restored;
        let is_witness = config.witness || membership.is_witness(config.replica);
        if !is_witness && runs.iter().any(Run::is_stripped) {
            return Err(Violation::Restored("the log of a replica with a state machine has a witness's runs"));
        }
        let log = Log::restored(start, last, &terms, runs)?;
        let lost_log = matches!(guard, Guard::LostLog { .. });
        if hard_state.commit > last.index && !lost_log {
            return Err(Violation::Restored("the saved commit index is past the log"));
        }
        if applied > last.index && !lost_log {
            return Err(Violation::Restored("the state machine is ahead of the log"));
        }
        // The saved commit index may be older than what a state machine was given. If that is past the log's end, this log is not
        // the one that it was given: what it has after the saved commit index may be what a later leader has overwritten.
        let given =
            if machine <= last.index || plant::is("lost-log-taken-for-committed") { machine } else { Index::ZERO };
        let commit = hard_state.commit.max(start.index).max(applied).max(given).min(last.index);
        let applied = applied.max(start.index).min(last.index);
        let handout = Handout { handed: applied, applied, ..Handout::default() };
        let ballot = Ballot { term: hard_state.term, vote: hard_state.vote };
        let mut core = Self {
            id: config.replica,
            rng: Rng::new(config.seed),
            now,
            role: Role::Follower,
            term: hard_state.term,
            vote: hard_state.vote,
            leader: None,
            durability: Durability::restored(log.last().index, ballot),
            log,
            commit,
            handout,
            is_voter: membership.is_voter(config.replica),
            is_witness,
            guard,
            catch_up_to: machine,
            overloaded: false,
            full: false,
            membership,
            pending_change: Index::ZERO,
            election_base: now,
            election_timeout_nanos: 0,
            heartbeat_base: now,
            votes: Spare::default(),
            verified: Index::ZERO,
            leader_commit: Index::ZERO,
            peers: Vec::new(),
            dirty: false,
            asked_to_help: false,
            helps_out: false,
            transferee: None,
            handover: Spare::default(),
            farewell: Spare::default(),
            rounds: Spare::default(),
            round_bytes: 0,
            first_peer: 0,
            reads: Spare::default(),
            bars: Spare::default(),
            quiet: Quiet::restored(hard_state.commit),
            last_ticket: 0,
            outbox: Outbox::default(),
            announced: (Role::Follower, None, hard_state.term),
            dropped: 0,
            config: Arc::new(CoreConfig { replica: ReplicaId::ZERO, seed: 0, ..config }),
        };
        core.election_timeout_nanos = core.rng.jittered(core.config.election_timeout_nanos);
        Ok(core)
    }

    /// Takes a message.
    ///
    /// Whatever the message says, this does not panic. What makes no sense is dropped and counted.
    ///
    /// # Errors
    /// On a contradiction that can only mean that somebody broke the rules; the core must not be used any more.
    pub fn step(&mut self, now: Time, message: Message) -> Result<(), Violation> {
        self.tell(now);
        if !self.is_sane(&message) {
            self.dropped += 1;
            return Ok(());
        }
        let Message { from, term, body, .. } = message;
        if matches!(body, Body::RequestVote { .. }) && self.sees_off(from) {
            return Ok(());
        }
        self.heard(from, &body);
        if !term.is_zero() {
            if term > self.term && !self.meet_higher_term(from, term, &body) {
                self.dropped += 1;
                return Ok(());
            }
            if term < self.term {
                match body {
                    Body::AppendAccepted { matched } if plant::is("ack-of-an-earlier-term") => {
                        self.on_accepted(from, matched);
                    }
                    _ => self.answer_lower_term(from, &body),
                }
                return Ok(());
            }
        }
        match body {
            Body::Append { prev, commit, runs } => self.on_append(from, prev, commit, &runs)?,
            Body::AppendAccepted { matched } => self.on_accepted(from, matched),
            Body::AppendRejected { rejected, hint } => self.on_rejected(from, rejected, hint),
            Body::Heartbeat { commit, read_round } => self.on_heartbeat(from, commit, read_round)?,
            Body::AppendPaused { matched } => self.on_paused(from, matched),
            Body::HeartbeatResponse { read_round, overloaded } => {
                self.on_heartbeat_response(from, read_round, overloaded);
            }
            Body::Commit { commit } => self.on_commit(from, commit)?,
            Body::RequestVote { pre, last, .. } => self.on_request_vote(from, term, pre, last),
            Body::VoteResponse { pre, granted } => self.on_vote_response(from, term, pre, granted),
            Body::Snapshot(meta) => self.on_snapshot(from, *meta, false)?,
            Body::WitnessSnapshot(meta) => self.on_snapshot(from, *meta, true)?,
            Body::SnapshotNeeded { at_least } => self.on_snapshot_needed(from, at_least),
            Body::ReadIndex { context } => self.on_read_index(from, context),
            Body::ReadIndexResponse { context, index } => self.on_read_index_response(context, index),
            Body::Forward(run) => self.on_forward(from, &run),
            Body::ForwardRefused { first_sequence, count, reason } => {
                self.outbox.rare.refused.push(RefusedForward { first_sequence, count, reason });
            }
            Body::CloseForwards { term, forwards } => self.on_close_forwards(from, term, forwards),
            Body::ForwardsClosed { term, forwards, end } => {
                self.on_forwards_closed(ClosedForwards { term, forwards, end });
            }
            Body::TimeoutNow => self.on_timeout_now(from),
            Body::Transfer { .. } | Body::TransferAnswer { .. } => self.dropped += 1,
            Body::Quiesce { round, last, commit } => self.on_quiesce(from, round, last, commit)?,
            Body::QuiesceResponse { round, agreed } => self.on_quiesce_response(from, round, agreed),
            Body::Removed { change } => self.on_removed(change),
        }
        Ok(())
    }

    /// Whether the message can be looked at without fear: addressed here, by somebody else, of countable numbers, with a
    /// term where one is claimed and none where none is, and from a member where only members have a say.
    fn is_sane(&self, message: &Message) -> bool {
        let Message { from, to, term, body } = message;
        let termless = matches!(
            body,
            Body::ReadIndex { .. }
                | Body::ReadIndexResponse { .. }
                | Body::Forward(_)
                | Body::ForwardRefused { .. }
                | Body::CloseForwards { .. }
                | Body::ForwardsClosed { .. }
                | Body::Removed { .. }
        );
        let addressed = *to == self.id && *from != *to && !from.is_zero();
        let known = !termless
            || self.membership.contains(*from)
            || matches!(
                body,
                Body::ForwardRefused { .. }
                    | Body::ForwardsClosed { .. }
                    | Body::ReadIndexResponse { .. }
                    | Body::Removed { .. }
            );
        addressed && known && termless == term.is_zero() && term.0 <= NUMBER_MAX && numbers_are_countable(body)
    }

    /// Notes the time. A clock that goes back is taken to stand still.
    pub(crate) fn tell(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// The oldest batch that was sealed is durable.
    ///
    /// # Errors
    /// None yet: room for contradictions that only show when a batch completes.
    pub fn persisted(&mut self, token: PersistToken) -> Result<(), Violation> {
        let ballot = self.durability.complete(&token);
        // A candidate counts its own vote only now. Had it counted it before, it could win, crash, forget that it voted
        // and help to elect another leader of the same term.
        if self.role == Role::Candidate && ballot.term == self.term && ballot.vote == self.id {
            self.count_vote(self.id, true);
        }
        // Likewise a leader's own entries count towards the quorum once they are on its disk.
        if self.role == Role::Leader {
            self.count_own_log();
        }
        self.settle_quiet();
        Ok(())
    }

    /// The state machine has applied everything through `index`.
    pub fn applied(&mut self, index: Index) {
        assert!(index <= self.handout.handed, "applied {index}, handed out {}", self.handout.handed);
        self.handout.applied = self.handout.applied.max(index);
    }

    /// Forgets the entries through `to`, which must be applied. The owner makes that durable by itself.
    pub fn compact(&mut self, to: Index) {
        assert!(to <= self.handout.applied, "compacting to {to}, applied {}", self.handout.applied);
        self.log.compact(to);
    }

    /// Reads a word here and there of its own memory and returns their mix, which means nothing: an owner of thousands
    /// calls it for several cores in a row, so that their memory is fetched side by side before each is used.
    pub fn warm(&self) -> u64 {
        let ids = self.id.0 ^ self.term.0 ^ self.commit.0 ^ self.log.last().index.0 ^ self.last_ticket;
        let times = self.election_base.0 ^ self.heartbeat_base.0 ^ self.announced.2.0 ^ self.handout.handed.0;
        let lens = self.outbox.early.len() ^ self.log.cached_bytes();
        ids ^ times ^ lens as u64 ^ self.durability.durable().0
    }

    /// As [`Core::warm`], for what [`Core::persisted`] looks at.
    pub fn warm_durable(&self) -> u64 {
        self.durability.warm() ^ self.log.last().index.0 ^ self.commit.0 ^ self.term.0
    }

    /// As [`Core::warm`], for what is a pointer further: members, the newest run.
    pub fn warm_deep(&self) -> u64 {
        let peers = self.peers.iter().map(|p| p.matched.0 ^ p.read_round).fold(0, |a, b| a ^ b);
        peers ^ self.log.newest_run_bytes() as u64
    }

    /// Drops runs beyond `log_cache_bytes_max` that are durable and applied, whatever members still need: those are read
    /// back by tickets.
    pub fn trim(&mut self) {
        self.trim_to(self.config.log_cache_bytes_max);
    }

    /// As [`Core::trim`], with another bound than the configured one.
    pub fn trim_to(&mut self, bytes_max: usize) {
        let limit = self.handout.applied.min(self.durability.durable());
        self.log.evict(limit, bytes_max);
    }

    /// Whether this replica's host has no room for entries: then its log takes none. Proposals are refused as busy, and
    /// leaders stop sending it entries until it has room again, which they learn by the next heartbeat.
    pub fn set_overloaded(&mut self, now: Time, overloaded: bool) {
        self.tell(now);
        self.overloaded = overloaded;
    }

    /// Whether this replica's host is short of what entries need, and keeps what is left for membership changes: as a leader it
    /// refuses commands as busy, its clients' own and forwarded ones. Another leader's entries it takes.
    pub fn set_full(&mut self, now: Time, full: bool) {
        self.tell(now);
        self.full = full;
    }

    /// The state machine lost its state, and nothing here brings it back: from now on this replica is as one that started with
    /// [`Guard::NeedsSnapshot`]. What it was handed counts no more; what it has acknowledged does.
    pub fn lose_machine(&mut self, now: Time) {
        self.tell(now);
        self.wake(now);
        if self.guard == Guard::None {
            self.guard = Guard::NeedsSnapshot;
            if self.role != Role::Follower {
                self.become_follower(self.term, None);
            }
        }
    }

    /// Whether this replica does something as soon as what is being written is durable. Of others nobody has to be told.
    pub fn awaits_disk(&self) -> bool {
        let acts = || match self.role {
            Role::Follower => false,
            Role::PreCandidate | Role::Candidate => true,
            Role::Leader => self.own_log_decides(),
        };
        self.durability.in_flight() && (self.commit > self.durability.durable() || self.is_falling_quiet() || acts())
    }

    /// Takes its role from the membership in effect, but for what it is from the start.
    pub(crate) fn learn_own_role(&mut self) {
        self.is_voter = self.membership.is_voter(self.id);
        // Whether it is a witness is settled for its life: its log has payloads or it has none. One that was removed keeps what
        // it is, and what a membership says of a replica that has a state machine makes it no witness.
        if plant::is("witness-for-a-while") {
            self.is_witness = self.config.witness || self.membership.is_witness(self.id);
        }
    }

    /// Whether this replica can't lead whatever the configuration says: a witness, or one that lost part of what it had.
    pub(crate) fn is_barred(&self) -> bool {
        let witness = self.is_witness && !plant::is("witness-campaigns");
        witness || (self.guard != Guard::None && !plant::is("campaign-without-snapshot"))
    }

    pub(crate) fn bounds(&self) -> InflightBounds {
        InflightBounds { appends: self.config.inflight_appends_max, bytes: self.config.inflight_bytes_max }
    }

    pub(crate) fn next_ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    pub(crate) fn send_early(&mut self, to: ReplicaId, term: Term, body: Body) {
        first_room(&mut self.outbox.early, MEMBERS_USUAL - 1);
        self.outbox.early.push(Message { from: self.id, to, term, body });
    }

    pub(crate) fn send_held(&mut self, to: ReplicaId, body: Body) {
        first_room(&mut self.outbox.held, 1);
        self.outbox.held.push(Message { from: self.id, to, term: self.term, body });
    }

    pub(crate) fn ballot(&self) -> Ballot {
        Ballot { term: self.term, vote: self.vote }
    }

    /// Moves the commit index forward.
    pub(crate) fn commit_to(&mut self, index: Index) {
        if index > self.commit {
            assert!(index <= self.log.last().index, "commit {index} past the log's end {:?}", self.log.last());
            self.commit = index;
        }
    }
}

/// Whether all indexes and terms in the body can be counted up from without overflow.
fn numbers_are_countable(body: &Body) -> bool {
    let index = |i: &Index| i.0 <= NUMBER_MAX;
    let pos = |p: &LogPos| p.term.0 <= NUMBER_MAX && p.index.0 <= NUMBER_MAX;
    match body {
        Body::Append { prev, commit, runs } => {
            pos(prev) && index(commit) && runs.last().is_none_or(|r| r.last().0 <= NUMBER_MAX)
        }
        Body::AppendAccepted { matched } | Body::AppendPaused { matched } => index(matched),
        Body::SnapshotNeeded { at_least } => index(at_least),
        Body::Removed { change } => index(change),
        Body::ForwardsClosed { end, .. } => index(end),
        Body::AppendRejected { rejected, hint } => index(rejected) && pos(hint),
        Body::Heartbeat { commit, .. } | Body::Commit { commit } => index(commit),
        Body::RequestVote { last, .. } => pos(last),
        Body::Quiesce { last, commit, .. } => pos(last) && index(commit),
        Body::Snapshot(meta) | Body::WitnessSnapshot(meta) => pos(&meta.pos),
        _ => true,
    }
}
