//! Linearizable reads by rounds of heartbeats (thesis section 6.4).
//!
//! A leader that a majority still follows after a read arrived may answer it with the commit index of then. Reads are
//! gathered, and one round of heartbeats confirms all that arrived before it started. Rounds are numbered within a
//! leadership; answers carry the number, and are of no use in another term, because messages of other terms are.
//!
//! Invariants: a read joins only a round that starts after it arrived; a round's index is the commit index at its start,
//! and no round starts before an entry of the leader's own term is committed: until then the leader does not know which
//! entries of its predecessors are.

use crate::core::{Core, Role};
use crate::ids::{Index, ReplicaId, Term, Time};
use crate::message::Body;
use crate::output::ReadReady;
use crate::plant;
use crate::quorum;
use crate::sometimes;
use crate::spare::Emptied;
use std::collections::VecDeque;

/// Reads that a leader gathers or confirms at once, and a follower waits for; more are answered "ask again".
const READS_MAX: usize = 64 * 1024;

/// Rounds that a leader has under way at once. While no majority answers, what arrives is gathered for the next one.
const ROUNDS_MAX: usize = 256;

/// Who asked: this replica or another one, and under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Asked {
    by: Option<ReplicaId>,
    context: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Round {
    number: u64,
    index: Index,
    reads: Vec<Asked>,
}

/// The reads of one replica that are not answered yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Reads {
    /// Leader: arrived since the last round started.
    gathered: Vec<Asked>,
    /// Leader: rounds that are not confirmed, oldest first.
    rounds: VecDeque<Round>,
    /// Leader: the number of the newest round of this leadership.
    newest: u64,
    /// Follower: contexts sent to the leader.
    sent: Vec<u64>,
}

impl Emptied for Reads {
    const EMPTY: &'static Self = &Self { gathered: Vec::new(), rounds: VecDeque::new(), newest: 0, sent: Vec::new() };

    fn is_emptied(&self) -> bool {
        self == Self::EMPTY
    }
}

impl Reads {
    pub(crate) fn is_idle(&self) -> bool {
        self.gathered.is_empty() && self.rounds.is_empty() && self.sent.is_empty()
    }

    /// Lets go of room for reads that were answered.
    pub(crate) fn shed(&mut self) {
        self.gathered.shrink_to_fit();
        self.rounds.shrink_to_fit();
        self.sent.shrink_to_fit();
    }

    /// The number of the newest round of this leadership.
    pub(crate) fn newest_round(&self) -> u64 {
        self.newest
    }

    /// The newest round that is not confirmed; 0 if there is none. What heartbeats carry.
    fn open_round(&self) -> u64 {
        self.rounds.back().map_or(0, |r| r.number)
    }
}

impl Core {
    /// Asks for an index at which a linearizable read may be made. The answer comes in [`crate::Output::reads`]. A
    /// context must never be used twice: an answer to an earlier question would be taken for one to a later.
    pub fn read_index(&mut self, now: Time, context: u64) {
        self.wake(now);
        // A witness serves nobody, and neither does a replica that has no state to read.
        if self.is_barred() {
            return self.outbox.rare.reads.push(ReadReady { context, index: None });
        }
        match (self.role, self.leader) {
            (Role::Leader, _) => self.gather_read(Asked { by: None, context }),
            (_, Some(leader)) if self.reads.sent.len() < READS_MAX => {
                self.reads.sent.push(context);
                self.send_early(leader, Term::ZERO, Body::ReadIndex { context });
            }
            _ => self.outbox.rare.reads.push(ReadReady { context, index: None }),
        }
    }

    /// Nobody waits for the answer to this question any more: its owner has asked again, or lost patience.
    pub fn give_up_read(&mut self, context: u64) {
        if plant::is("given-up-reads-kept") {
            return;
        }
        let Some(Reads { gathered, rounds, sent, .. }) = self.reads.get_mut() else { return };
        sent.retain(|c| *c != context);
        let others = |read: &Asked| read.by.is_some() || read.context != context;
        gathered.retain(others);
        rounds.iter_mut().for_each(|round| round.reads.retain(others));
        // A round that confirms nothing is not waited for; those after it confirm the same majority.
        rounds.retain(|round| !round.reads.is_empty());
    }

    /// Questions of this replica, and of others, that are not answered yet.
    pub fn open_reads(&self) -> usize {
        let Reads { gathered, rounds, sent, .. } = &*self.reads;
        gathered.len() + sent.len() + rounds.iter().map(|round| round.reads.len()).sum::<usize>()
    }

    pub(crate) fn on_read_index(&mut self, from: ReplicaId, context: u64) {
        if self.role == Role::Leader && !self.membership.is_witness(from) {
            self.gather_read(Asked { by: Some(from), context });
        } else {
            self.answer_read(Asked { by: Some(from), context }, None);
        }
    }

    pub(crate) fn on_read_index_response(&mut self, context: u64, index: Option<Index>) {
        // An answer that nothing here waits for was given up when the leader changed.
        if let Some(at) = self.reads.sent.iter().position(|c| *c == context || plant::is("any-answer-answers-a-read")) {
            self.reads.sent.swap_remove(at);
            self.outbox.rare.reads.push(ReadReady { context, index });
        } else {
            self.dropped += 1;
        }
    }

    fn gather_read(&mut self, read: Asked) {
        // Before its first commit in its own term a leader may not know of what its predecessors committed.
        let knows = self.log.term_at(self.commit) == Some(self.term) || plant::is("read-before-own-commit");
        sometimes!(!knows, "read-before-the-terms-first-commit");
        if !knows || self.reads.gathered.len() >= READS_MAX {
            return self.answer_read(read, None);
        }
        match self.reads.rounds.back_mut() {
            Some(round) if plant::is("read-joins-a-running-round") => round.reads.push(read),
            _ => self.reads.gathered.push(read),
        }
        self.dirty = true;
    }

    /// Starts one round for all reads gathered since the last.
    pub(crate) fn start_read_round(&mut self) {
        if self.reads.gathered.is_empty() || self.reads.rounds.len() >= ROUNDS_MAX {
            return;
        }
        let index = self.commit;
        let Reads { gathered, rounds, newest, .. } = &mut *self.reads;
        *newest += 1;
        rounds.push_back(Round { number: *newest, index, reads: std::mem::take(gathered) });
        for at in 0..self.peers.len() {
            if self.peers[at].incoming || self.peers[at].outgoing {
                self.send_heartbeat(at);
            }
        }
        // Alone, this replica is the majority.
        self.confirm_reads();
    }

    /// What heartbeats say of reads.
    pub(crate) fn open_read_round(&self) -> u64 {
        self.reads.open_round()
    }

    /// A member answered a heartbeat of `round`: it followed this leader after that round started.
    pub(crate) fn confirm_read_round(&mut self, at: usize, round: u64) {
        if round > self.peers[at].read_round && round <= self.reads.newest {
            self.peers[at].read_round = round;
            self.confirm_reads();
        }
    }

    /// Answers the reads of all rounds that a majority has confirmed.
    pub(crate) fn confirm_reads(&mut self) {
        if self.reads.rounds.is_empty() {
            return;
        }
        let id = self.id;
        let reached = |p: &crate::Progress| Index(if p.id == id { u64::MAX } else { p.read_round });
        let confirmed = quorum::joint_index(
            self.peers.iter().filter(|p| p.incoming).map(reached),
            self.peers.iter().filter(|p| p.outgoing).map(reached),
        );
        while self.reads.rounds.front().is_some_and(|r| r.number <= confirmed.0) {
            let round = self.reads.rounds.pop_front().expect("just looked at");
            for read in round.reads {
                self.answer_read(read, Some(round.index));
            }
            // There is room for a round of what was gathered meanwhile.
            self.dirty |= !self.reads.gathered.is_empty();
        }
    }

    fn answer_read(&mut self, read: Asked, index: Option<Index>) {
        match read.by {
            None => self.outbox.rare.reads.push(ReadReady { context: read.context, index }),
            Some(by) => self.send_early(by, Term::ZERO, Body::ReadIndexResponse { context: read.context, index }),
        }
    }

    /// Whatever was asked will not be answered: the leader, here or elsewhere, is another one or none.
    pub(crate) fn fail_reads(&mut self) {
        if self.reads.is_idle() {
            drop(self.reads.take());
            return;
        }
        let Reads { gathered, rounds, sent, .. } = self.reads.take();
        sometimes!(!rounds.is_empty(), "read-round-cut-short");
        sometimes!(!sent.is_empty(), "forwarded-read-given-up");
        for read in rounds.into_iter().flat_map(|r| r.reads).chain(gathered) {
            self.answer_read(read, None);
        }
        for context in sent {
            self.outbox.rare.reads.push(ReadReady { context, index: None });
        }
    }
}
