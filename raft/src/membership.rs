//! Who the members of a group are, in what role, and how that changes (paper section 6, thesis chapter 4).

use crate::ids::{Index, ReplicaId};
use crate::message::Member;
use std::collections::{BTreeMap, BTreeSet};

/// The members of a group. While `outgoing` is not empty the configuration is joint: both majorities decide.
///
/// Invariants: a replica has one role; `outgoing` replicas that are not in `voters` may be in `learners_next`;
/// ids in `removed` are in no other set and never come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The voters, or the incoming voters of a joint configuration.
    pub voters: BTreeSet<ReplicaId>,
    /// The outgoing voters of a joint configuration.
    pub outgoing: BTreeSet<ReplicaId>,
    /// Non-voting members.
    pub learners: BTreeSet<ReplicaId>,
    /// Outgoing voters that become non-voting members when the joint configuration is left.
    pub learners_next: BTreeSet<ReplicaId>,
    /// Whether the joint configuration is left as soon as it is applied.
    pub auto_leave: bool,
    /// Those of the voters that keep no payloads and have no state machine.
    pub witnesses: BTreeSet<ReplicaId>,
    /// Where each member lives.
    pub hosts: BTreeMap<ReplicaId, Member>,
    /// Ids that were removed, for ever.
    pub removed: BTreeSet<ReplicaId>,
    /// The index of the last applied config entry; 0 for the bootstrap membership.
    pub change_id: Index,
}
