//! Members that have stopped although their host lives: whether a leader that falls silent may count on hearing of their return.
//!
//! A silent leader asks nobody for a sign of life, and a replica that joins, or that never campaigns, can't make itself heard. So of a
//! member that was left out its host has to speak: by its beats, which say how many replicas it has started. What was said of a
//! member that does not run is kept with how many that host had started by then ([`Starts`]), and holds while the host has
//! started no other.
//!
//! Invariant: a leader is silent without telling the host of a member that it left out only while that host is not known to have started
//! anything since the word that the member is gone. Else the member is *lagging*, as one on a host that was suspected: beat after beat
//! the sums differ, until the two hosts have compared what they have, and either the member speaks for itself or the
//! word is given again. Both orders of the word and the beat come to that, and so does the loss of either. Must not know: what wakes a replica.

use crate::liveness::peers::Peer;
use crate::replica::Replica;
use longboat_raft::{ReplicaId, Time, plant};
use longboat_transport::wire::Starts;

impl Replica {
    /// A member's host says that it does not run there.
    pub(super) fn hear_gone(&mut self, now: Time, member: ReplicaId, as_of: Starts) {
        self.forget_returned();
        self.core.replica_gone(now, member);
        if !self.core.is_gone(member) {
            // It is no member, or this replica itself.
            return;
        }
        let missed = &mut self.seldom.missed;
        match missed.iter_mut().find(|m| m.0 == member) {
            // Of two words the one that was said later, whichever came later.
            Some((_, known)) => *known = as_of.max(*known),
            None => missed.push((member, as_of)),
        }
    }

    /// Whether a member that was left out has stopped, and its host has started nothing since it said so.
    pub(super) fn misses(&self, member: ReplicaId, host: &Peer) -> bool {
        let said = || self.seldom.missed.iter().find(|m| m.0 == member).map(|m| m.1);
        let holds = || said().is_some_and(|as_of| as_of >= host.started()) || plant::is("word-of-the-gone-never-ages");
        self.core.is_gone(member) && holds()
    }

    /// Lets go of words about members that were heard of since.
    pub(crate) fn forget_returned(&mut self) {
        if let Some(seldom) = self.seldom.get_mut() {
            seldom.missed.retain(|m| self.core.is_gone(m.0));
        }
    }
}
