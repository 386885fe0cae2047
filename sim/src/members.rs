//! Whose group it is, as its committed log says: the memberships one after the other, and what must agree with them.
//!
//! Checked: every replica that knows a membership knows the one that the log gives at its change id; a removed id stays removed;
//! a change that was refused for good is never made; one that was reported done is.
//!
//! Must not know: how replicas come to know their membership.

use longboat_raft::{ConfigChange, HostId, Index, Membership, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

/// Memberships that may have decided on the commit of one entry: a leader goes by the one that is in effect when it commits,
/// which may be older than the newest in its log by the changes that it commits together with the entry.
const IN_EFFECT_MAX: usize = 3;

/// The memberships of one group.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// In order, the first members first.
    all: Vec<Membership>,
    /// Known to some replica before their change was applied by any state machine.
    ahead: BTreeMap<Index, Membership>,
    /// The change id of each host's replica when it was last looked at.
    seen: BTreeMap<HostId, (ReplicaId, Index)>,
    /// Ids whose addition was refused for good, and how.
    never: BTreeMap<ReplicaId, String>,
}

/// Whether these replicas decide for the group.
pub(crate) fn is_quorum(membership: &Membership, holders: &BTreeSet<ReplicaId>) -> bool {
    let majority = |half: &BTreeSet<ReplicaId>| 2 * half.intersection(holders).count() > half.len();
    majority(&membership.voters) && (membership.outgoing.is_empty() || majority(&membership.outgoing))
}

impl History {
    /// A group with these first members.
    pub(crate) fn new(first: Membership) -> Self {
        Self { all: vec![first], ..Self::default() }
    }

    /// The group goes on with these members. Who is left out goes on as it did, knowing no change more.
    pub(crate) fn imported(members: Membership, left_out: Option<(HostId, ReplicaId)>) -> Self {
        let change = members.change_id;
        let seen = left_out.into_iter().map(|(host, replica)| (host, (replica, change))).collect();
        Self { seen, ..Self::new(members) }
    }

    /// The newest membership.
    pub(crate) fn last(&self) -> &Membership {
        self.all.last().expect("a group has first members")
    }

    /// Those that may have been in effect at the leader that committed the entry at `index`.
    pub(crate) fn in_effect(&self, index: Index) -> impl Iterator<Item = &Membership> {
        self.all.iter().rev().filter(move |m| m.change_id <= index).take(IN_EFFECT_MAX)
    }

    /// A state machine is given the change at `index`, as the first one.
    pub(crate) fn applied(&mut self, index: Index, payload: &[u8]) -> Result<(), String> {
        let change = ConfigChange::decode(payload).map_err(|e| format!("a committed change can't be read: {e}"))?;
        let (last, next) = (self.last(), self.last().after(&change, index));
        if !last.removed.is_subset(&next.removed) || next.removed.iter().any(|r| next.contains(*r)) {
            return Err(format!("a removed id is back: {next:?} after {last:?}"));
        }
        if let Some((id, why)) = self.never.iter().find(|(id, _)| next.contains(**id)) {
            return Err(format!(
                "replica {id} is added at {index}, and who asked for it was told that it never will be: {why}"
            ));
        }
        if let Some(told) = self.ahead.remove(&index)
            && told != next
        {
            return Err(format!(
                "a replica knew {told:?} before the change at {index} was applied, which gives {next:?}"
            ));
        }
        self.all.push(next);
        Ok(())
    }

    /// A replica takes this for the membership in effect.
    pub(crate) fn observe(&mut self, host: HostId, replica: ReplicaId, membership: &Membership) -> Result<(), String> {
        let change = membership.change_id;
        // Whoever joins knows nothing at first.
        if self.seen.get(&host) == Some(&(replica, change)) || membership.voters.is_empty() {
            return Ok(());
        }
        self.seen.insert(host, (replica, change));
        self.told(membership).map_err(|e| format!("replica {replica} on host {host} {e}"))
    }

    fn told(&mut self, membership: &Membership) -> Result<(), String> {
        let change = membership.change_id;
        let known = match self.all.binary_search_by_key(&change, |m| m.change_id) {
            Ok(at) => &self.all[at],
            Err(at) if at < self.all.len() => return Err(format!("knows a change at {change}, where there is none")),
            Err(_) => self.ahead.entry(change).or_insert_with(|| membership.clone()),
        };
        if known == membership { Ok(()) } else { Err(format!("takes {membership:?} for the members, it is {known:?}")) }
    }

    /// A change was reported to be in effect: it added and removed these.
    pub(crate) fn done(
        &mut self,
        membership: &Membership,
        adds: &[ReplicaId],
        removes: &[ReplicaId],
    ) -> Result<(), String> {
        self.told(membership).map_err(|e| format!("a change is reported done, and its client {e}"))?;
        let was = |id: &ReplicaId| membership.contains(*id) || membership.removed.contains(id);
        // A joint configuration that is left only when somebody says so keeps who goes until then.
        let goes = |id: &ReplicaId| {
            let leaving = membership.outgoing.contains(id) && !membership.voters.contains(id);
            membership.removed.contains(id) || leaving && !membership.auto_leave
        };
        if adds.iter().all(was) && removes.iter().all(goes) {
            return Ok(());
        }
        Err(format!(
            "a change that adds {adds:?} and removes {removes:?} is reported done, the members are {membership:?}"
        ))
    }

    /// The addition of this id was refused for good.
    pub(crate) fn refused(&mut self, id: ReplicaId, why: &str) -> Result<(), String> {
        self.never.insert(id, why.to_owned());
        let mut known = self.all.iter().chain(self.ahead.values());
        match known.find(|m| m.contains(id)) {
            None => Ok(()),
            Some(m) => Err(format!(
                "replica {id} was added by {}, and who asked for it is told that it never will be: {why}",
                m.change_id
            )),
        }
    }

    /// Whether this id ever was a member.
    pub(crate) fn ever_had(&self, id: ReplicaId) -> bool {
        self.all.iter().chain(self.ahead.values()).any(|m| m.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_raft::{Member, StoreId};

    fn member(host: u64) -> Member {
        Member { host: HostId(host), store: StoreId::ZERO }
    }

    fn three() -> History {
        History::new(Membership::from_voters((1..=3).map(|r| (ReplicaId(r), member(r)))))
    }

    #[test]
    fn both_halves_of_a_joint_configuration_decide() {
        let mut m = three().last().clone();
        let (one, three, four) = (ReplicaId(1), ReplicaId(3), ReplicaId(4));
        assert!(is_quorum(&m, &[one, three].into()) && !is_quorum(&m, &[one, four].into()));
        m.outgoing = [four].into();
        assert!(is_quorum(&m, &[one, three, four].into()) && !is_quorum(&m, &[one, three].into()));
    }

    #[test]
    fn what_a_replica_knows_is_what_the_log_says_whoever_comes_first() {
        let change = ConfigChange::add_voter(ReplicaId(4), member(4));
        let mut history = three();
        let next = history.last().after(&change, Index(7));
        assert_eq!(history.observe(HostId(1), ReplicaId(1), &next), Ok(()));
        assert_eq!(history.applied(Index(7), &change.encode()), Ok(()));
        assert_eq!(history.observe(HostId(2), ReplicaId(2), &next), Ok(()));
        let other = Membership { change_id: Index(7), ..three().last().clone() };
        assert!(history.observe(HostId(3), ReplicaId(3), &other).is_err());
        let mut early = three();
        assert_eq!(early.observe(HostId(1), ReplicaId(1), &other), Ok(()));
        assert!(early.applied(Index(7), &change.encode()).is_err());
    }

    #[test]
    fn a_refused_addition_is_not_made_before_or_after() {
        let change = ConfigChange::add_voter(ReplicaId(4), member(4));
        let mut history = three();
        assert_eq!(history.refused(ReplicaId(4), "refused"), Ok(()));
        assert!(history.applied(Index(7), &change.encode()).is_err());
        let mut history = three();
        assert_eq!(history.applied(Index(7), &change.encode()), Ok(()));
        assert!(history.refused(ReplicaId(4), "refused").is_err());
    }

    #[test]
    fn a_removal_that_is_reported_done_shows() {
        let change = ConfigChange::remove(ReplicaId(3));
        let mut history = three();
        let before = history.last().clone();
        assert_eq!(history.applied(Index(7), &change.encode()), Ok(()));
        let after = history.last().clone();
        assert_eq!(history.done(&after, &[], &[ReplicaId(3)]), Ok(()));
        assert!(history.done(&before, &[], &[ReplicaId(3)]).is_err());
    }
}
