//! What a model checker needs of a core: its state without time and chance, and copies with batches under way.
//!
//! Two cores of one hash must behave alike as long as time comes to them in the way that [`Core::hash_timeless`] says.
//! Only with the feature `model`, which is in no shipped build. Must not know: how states are explored.

use crate::core::{Core, Role};
use crate::error::Violation;
use crate::run::Run;
use std::hash::{Hash, Hasher};

impl Core {
    /// Hashes all that decides what the core will do, given that time comes to it in one of two ways only: between any
    /// two inputs either less than an election timeout passes in all, or more than twice that.
    ///
    /// Then the time that it knows, the bases of its timers and the timeout that it drew at random decide nothing but
    /// whether a leader was heard within an election timeout, which is hashed instead; and chance decides nothing but the
    /// timeout drawn. Numbers of batches only tell that batches complete in the order of their sealing, counters of
    /// dropped messages are for figures, and the configuration is the same in all states of one replica. Every field is
    /// named here, so that one that is added does not compile before it is decided what it is.
    pub fn hash_timeless<H: Hasher>(&self, state: &mut H) {
        let Self {
            config,
            id: _,
            rng: _,
            now,
            role,
            term,
            vote,
            leader,
            log,
            durability,
            commit,
            handout,
            membership,
            is_voter,
            is_witness,
            guard,
            catch_up_to,
            overloaded,
            full,
            pending_change,
            election_base,
            election_timeout_nanos: _,
            heartbeat_base: _,
            votes,
            verified,
            leader_commit,
            peers,
            dirty,
            asked_to_help,
            helps_out,
            transferee,
            handover,
            farewell,
            rounds,
            round_bytes: _,
            first_peer,
            reads,
            bars,
            quiet,
            last_ticket,
            outbox: _,
            announced,
            dropped: _,
        } = self;
        let fresh = now.nanos_since(*election_base) < config.election_timeout_nanos;
        (role, term, vote, leader, fresh).hash(state);
        log.hash(state);
        durability.hash_without_numbers(state);
        (commit, handout, membership, is_voter, pending_change).hash(state);
        votes.hash(state);
        (is_witness, guard, catch_up_to, overloaded, full).hash(state);
        (farewell, first_peer, verified, leader_commit).hash(state);
        self.hash_handover(handover, state);
        self.hash_rounds(rounds, state);
        peers.hash(state);
        (dirty, asked_to_help, helps_out, transferee).hash(state);
        (reads, bars, last_ticket, announced).hash(state);
        self.hash_quiet(quiet, state);
    }

    /// The oldest batch under way is durable: as [`Core::persisted`], for copies of a core, whose tokens nobody has.
    /// False if there is none.
    ///
    /// # Errors
    /// As [`Core::persisted`].
    pub fn persisted_oldest(&mut self) -> Result<bool, Violation> {
        match self.durability.oldest_token() {
            Some(token) => self.persisted(token).map(|()| true),
            None => Ok(false),
        }
    }

    /// The runs in memory, oldest first: a suffix of the log.
    pub fn runs_in_memory(&self) -> impl Iterator<Item = &Run> {
        self.log.runs()
    }

    /// Whether it would campaign if its election timeout passed now.
    pub fn would_campaign(&self) -> bool {
        self.role != Role::Leader && self.may_time_out() && self.may_campaign()
    }

    /// Whether it leads although it was removed, until the others know what is committed.
    pub fn helps_out(&self) -> bool {
        self.helps_out
    }
}
