//! What a core's owner may look at between inputs.
//!
//! Invariant: nothing here changes what the core will do. Must not know: what the owner makes of it.

use crate::config::CoreConfig;
use crate::core::{Core, Guard, Role};
use crate::ids::{HardState, Index, LogPos, ReplicaId, Term};
use crate::membership::Membership;
use crate::progress::Progress;
use crate::run::Run;
use smallvec::SmallVec;
use std::sync::Arc;

impl Core {
    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        self.id
    }

    /// What it is at the moment.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The latest term that it has seen.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Who got its vote in this term; zero if nobody did.
    pub fn vote(&self) -> ReplicaId {
        self.vote
    }

    /// The leader of this term, if it is known.
    pub fn leader(&self) -> Option<ReplicaId> {
        self.leader
    }

    /// The commit index.
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The last index of the log's durable prefix.
    pub fn durable(&self) -> Index {
        self.durability.durable()
    }

    /// The last index that was handed out to be applied.
    pub fn handed(&self) -> Index {
        self.handout.handed
    }

    /// The last index that the state machine said it has applied.
    pub fn applied_index(&self) -> Index {
        self.handout.applied
    }

    /// The last entry of the log.
    pub fn last(&self) -> LogPos {
        self.log.last()
    }

    /// The place just before the first entry of the log.
    pub fn start(&self) -> LogPos {
        self.log.start()
    }

    /// Where the log starts once the entries through `to` are gone, and the first entry of every term that it has then, in order.
    pub fn log_without(&self, to: Index) -> (LogPos, Vec<LogPos>) {
        let (start, terms) = self.log.without(to);
        (start, terms.into_vec())
    }

    /// The term of the entry at `index`. Never needs a disk. `None` outside of the log.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The membership in effect.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Term, vote and commit as they are now, durable or not.
    pub fn hard_state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.commit }
    }

    /// The membership in effect, to be held by others too.
    pub fn shared_membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Its settings, without which replica it is and its seed, to be held by others too.
    pub fn shared_config(&self) -> &Arc<CoreConfig> {
        &self.config
    }

    /// Lets go of its own copies of what others hold as well. What is not equal to its own is not taken.
    pub fn share(&mut self, membership: &Arc<Membership>, config: &Arc<CoreConfig>) {
        if *self.membership == **membership {
            self.membership = Arc::clone(membership);
        }
        if *self.config == **config {
            self.config = Arc::clone(config);
        }
    }

    /// What a leader knows of a member; `None` for others, and unless this replica leads.
    pub fn progress(&self, replica: ReplicaId) -> Option<&Progress> {
        self.peers.iter().find(|p| p.id == replica)
    }

    /// Whether it votes in the membership in effect.
    pub fn is_voter(&self) -> bool {
        self.is_voter
    }

    /// Whether it is a witness: it has no state machine, and of what it is told to apply only membership changes mean something.
    pub fn is_witness(&self) -> bool {
        self.is_witness
    }

    /// What it must not do at present because part of what it had is lost.
    pub fn guard(&self) -> Guard {
        self.guard
    }

    /// Whom leadership is being handed to.
    pub fn transferee(&self) -> Option<ReplicaId> {
        self.transferee
    }

    /// A snapshot for this member that ends before this index would be of no use to it.
    pub fn snapshot_floor(&self, replica: ReplicaId) -> Index {
        let said = self.progress(replica).map_or(Index::ZERO, |p| p.snapshot_floor);
        said.max(self.log.start().index)
    }

    /// Whether a bound of bytes for one round cut off what is due to members: another visit would send more. Without one, the
    /// next acknowledgement does.
    pub fn has_more_to_send(&self) -> bool {
        self.role == Role::Leader && self.dirty
    }

    /// Bytes of log in memory.
    pub fn cached_bytes(&self) -> usize {
        self.log.cached_bytes()
    }

    /// All runs from `index` to the log's end; `None` when some are not in memory. For sealing an uncommitted tail again.
    pub fn tail_from(&self, index: Index) -> Option<SmallVec<[Run; 1]>> {
        self.log.tail_from(index)
    }

    /// How many messages were dropped: unknown senders, stale answers, malformed content.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether a batch is sealed and not durable yet.
    pub fn persist_in_flight(&self) -> bool {
        self.durability.in_flight()
    }
}
