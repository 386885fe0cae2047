//! How one replica behaves: what its owner sets when it makes it, and what is taken if nothing is said.
//!
//! Must not know: the state of a core. What the numbers must be to each other is said at each; the owner keeps to it.

use crate::ids::ReplicaId;

/// How one replica behaves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CoreConfig {
    /// This replica.
    pub replica: ReplicaId,
    /// What its election timeouts are drawn from.
    pub seed: u64,
    /// Without a word from a leader for this long, drawn anew in `t..2t` each time, it campaigns. Nanoseconds.
    pub election_timeout_nanos: u64,
    /// A leader's heartbeats are this far apart. Nanoseconds; below the election timeout.
    pub heartbeat_interval_nanos: u64,
    /// The most bytes of entries in one append; one entry may be larger.
    pub append_bytes_max: usize,
    /// The most unacknowledged appends to one member.
    pub inflight_appends_max: usize,
    /// The most unacknowledged bytes to one member; `u64::MAX` for no bound.
    pub inflight_bytes_max: u64,
    /// About the most bytes of entries that one member is sent in one round; what is left waits for the next.
    pub peer_round_bytes_max: usize,
    /// About the most bytes of entries that all members together are sent in one round.
    pub round_bytes_max: usize,
    /// Proposals are refused while more bytes of log than this are in memory. What is applied is dropped from memory first, so
    /// this much means that the majority, the disk or the state machine is far behind.
    pub unapplied_bytes_max: usize,
    /// Runs in memory beyond this many bytes are dropped by [`Core::trim`](crate::Core::trim) once durable and applied.
    pub log_cache_bytes_max: usize,
    /// Ask before campaigning, so that a replica that can't win disturbs nobody (thesis section 9.6).
    pub pre_vote: bool,
    /// A leader that no majority answers steps down; a follower that hears its leader helps nobody else.
    pub check_quorum: bool,
    /// A leader whose oldest unfinished write has been under way for this long steps down if the others can elect one, and no
    /// such replica campaigns; 0 for never. Nanoseconds.
    pub disk_patience_nanos: u64,
    /// A leader that has had nothing to do for this long asks its group to fall silent; 0 for never. Nanoseconds.
    pub quiesce_after_nanos: u64,
    /// A leader steps down when a change that removes it, or makes it non-voting, takes effect.
    pub step_down_on_removal: bool,
    /// Removed replicas are told when they may go, which may take the leader an empty entry after a change; those that can't
    /// campaign ask when they hear no leader; and a leader that steps down on its removal asks another one to campaign.
    pub see_off_removed: bool,
    /// The replica that is to lead when it can. Whoever else leads hands over.
    pub preferred: Option<ReplicaId>,
    /// This replica is a witness: said whenever it starts. One that is a witness in the membership that it starts with is one
    /// without this.
    pub witness: bool,
    /// The most bytes of committed entries that one [`Core::take_output`](crate::Core::take_output) hands out, and at least
    /// one entry; the rest comes with the next ones.
    pub handout_bytes_max: usize,
    /// What a leader asks of a membership change before it proposes it.
    pub change_checks: ChangeChecks,
    /// A commit index that moves alone is told by an empty append, which also finds out whether earlier ones were lost.
    /// If not, by a word of its own, which is cheaper, and the next heartbeat finds out.
    pub commit_by_append: bool,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            replica: ReplicaId::ZERO,
            seed: 0,
            election_timeout_nanos: 1_000_000_000,
            heartbeat_interval_nanos: 100_000_000,
            append_bytes_max: 256 * 1024,
            inflight_appends_max: 256,
            inflight_bytes_max: 64 << 20,
            peer_round_bytes_max: 4 << 20,
            round_bytes_max: 16 << 20,
            unapplied_bytes_max: 64 << 20,
            log_cache_bytes_max: 1 << 20,
            pre_vote: true,
            check_quorum: true,
            disk_patience_nanos: 0,
            quiesce_after_nanos: 0,
            step_down_on_removal: true,
            see_off_removed: true,
            preferred: None,
            witness: false,
            handout_bytes_max: usize::MAX,
            change_checks: ChangeChecks::Full,
            commit_by_append: false,
        }
    }
}

/// What a leader asks of a membership change before it proposes it. What can't be made when it takes effect changes
/// nothing then, on every replica alike; so an owner that orders its changes by itself may ask for less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ChangeChecks {
    /// Every earlier change is in effect, the configuration allows it, and each of its steps makes sense.
    #[default]
    Full,
    /// Every earlier change is in effect, and the change enters a joint configuration only from one that is not, and
    /// leaves only one that is. Steps that change nothing are let through.
    Order,
    /// Nothing.
    Nothing,
}
