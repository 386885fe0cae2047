//! Whoever runs the groups: changes members, moves leaders, stops and starts replicas, removes the data of those that are gone.
//!
//! A replica is placed on a host before it is added to its group, as users do, and stays there until its data was removed: when
//! it was told that it is gone, or when its addition was refused for good. A host has one replica of a group at a time.
//!
//! Invariant: nothing that belongs to a member is removed.

use crate::client::{Asked, Ended};
use crate::host::Placed;
use crate::rng::Rng;
use crate::world::World;
use longboat_engine::{GroupShared, Rare, Replacement};
use longboat_raft::{
    Change, ConfigChange, GroupId, HostId, Member, Membership, Promotion, ReplicaId, StoreId, Time, Transition,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Time between looks at what waits to be started or removed, in nanoseconds.
const LOOK_NANOS: u64 = 50_000_000;
/// After the faults have healed, what was never a member is given up after this time, in nanoseconds: by then nothing is on
/// its way that could still add it.
const GIVE_UP_NANOS: u64 = 5_000_000_000;
/// After the faults have healed, preferences are taken back for so long, in nanoseconds, and the first two times that the operator looks.
const FORGET_NANOS: u64 = 500_000_000;
/// Ids of replicas that join later are counted from here.
const FIRST_JOINING: u64 = 100;

/// Something that an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Adds a voter.
    AddVoter,
    /// Adds a non-voting member.
    AddNonVoting,
    /// Adds a non-voting member that is promoted once it has caught up.
    AddAndPromote,
    /// Makes a non-voting member a voter.
    Promote,
    /// Adds a witness.
    AddWitness,
    /// Removes a member.
    Remove,
    /// Puts a new replica in the place of a voter.
    Replace,
    /// Several changes at once.
    Joint,
    /// Hands leadership over.
    Transfer,
    /// Names a preferred leader, or none.
    Prefer,
    /// Stops a replica, to start it again later.
    Stop,
    /// Exports a snapshot, aborts those under way, compacts, pins or reads the log.
    Keep,
}

const ALL: [Operation; 12] = [
    Operation::AddVoter,
    Operation::AddNonVoting,
    Operation::AddAndPromote,
    Operation::Promote,
    Operation::AddWitness,
    Operation::Remove,
    Operation::Replace,
    Operation::Joint,
    Operation::Transfer,
    Operation::Prefer,
    Operation::Stop,
    Operation::Keep,
];

/// What operators do in one world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// About how long it is from one operation to the next, in nanoseconds; 0 for none at all.
    pub every_nanos: u64,
    /// Which.
    pub kinds: Vec<Operation>,
    /// Writes in 1,000 that are not to be forwarded, or for one term alone.
    pub options_permille: u32,
    /// Requests in 1,000 that ask for an index and read locally.
    pub index_read_permille: u32,
}

impl Operations {
    /// Those of a seed.
    pub fn draw(rng: &mut Rng) -> Self {
        if !rng.chance(500) {
            return Self::default();
        }
        let count = rng.between(3, 14);
        let mut kinds: Vec<Operation> = (0..count).map(|_| *rng.pick(&ALL)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        Self {
            every_nanos: rng.magnitude(20, 400) * 1_000_000,
            kinds,
            options_permille: *rng.pick(&[0, 100, 400]),
            index_read_permille: *rng.pick(&[0, 100, 300]),
        }
    }

    /// Whether anybody operates.
    pub fn is_on(&self) -> bool {
        self.every_nanos > 0
    }
}

/// The operator's memory.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) rng: Rng,
    pub(crate) next: Time,
    /// Healed at this moment: nothing new is begun.
    pub(crate) settling: Option<Time>,
    replicas: u64,
    exports: u64,
    /// The newest replacement of each group, which may be asked for again.
    replacements: BTreeMap<GroupId, Replacement>,
}

impl Desk {
    pub(crate) fn new(rng: Rng, on: bool, now: Time) -> Self {
        let next = if on { now } else { Time(u64::MAX) };
        Self { rng, next, settling: None, replicas: FIRST_JOINING, exports: 0, replacements: BTreeMap::new() }
    }
}

impl Desk {
    /// An id that no replica had before.
    pub(crate) fn next_replica(&mut self) -> ReplicaId {
        self.replicas += 1;
        ReplicaId(self.replicas - 1)
    }

    /// A number that no export had before.
    pub(crate) fn next_export(&mut self) -> u64 {
        self.exports += 1;
        self.exports
    }
}

impl World {
    /// The hosts that have a replica of the group, or are to have one.
    pub(crate) fn hosts_of(&self, group: GroupId) -> Vec<HostId> {
        self.hosts.iter().filter(|h| h.replicas.contains_key(&group)).map(|h| h.id).collect()
    }

    /// Does what is due of the operator's work.
    pub(crate) fn operate(&mut self, now: Time) {
        let operations = self.around.swarm.operations.clone();
        self.read_answers();
        self.check_exports();
        self.tend();
        self.tend_losses(now);
        if let Some(since) = self.desk.settling {
            self.desk.next = now.plus_nanos(LOOK_NANOS);
            return self.settle(now, since);
        }
        self.desk.next = now.plus_nanos(1 + self.desk.rng.below(2 * operations.every_nanos));
        if operations.kinds.is_empty() {
            return;
        }
        let swarm = Arc::clone(&self.around.swarm);
        let group = self.desk.rng.pick(&swarm.groups).0;
        let hosts = self.hosts_of(group);
        if hosts.is_empty() {
            return;
        }
        let host = *self.desk.rng.pick(&hosts);
        let kind = *self.desk.rng.pick(&operations.kinds);
        let Some(shared) = self.replica(host, group) else { return };
        let deadline = self.now_at(host).plus_nanos(swarm.timeout_nanos + self.desk.rng.below(2 * swarm.timeout_nanos));
        match kind {
            Operation::Transfer => self.transfer(host, &shared, deadline),
            Operation::Prefer => self.prefer(host, &shared),
            Operation::Keep => self.keep(host, &shared, deadline),
            Operation::Stop => self.stop_for_a_while(host, group),
            Operation::Replace => self.replace(host, &shared, deadline),
            kind => self.change(kind, host, &shared, deadline),
        }
    }

    fn read_answers(&mut self) {
        for ended in self.clients.take_ended() {
            match ended {
                Ended::Buried { host, group, replica } => {
                    let replicas = &mut self.hosts[host.0 as usize - 1].replicas;
                    if replicas.get(&group).is_some_and(|p| p.replica == replica) {
                        replicas.remove(&group);
                    }
                }
                Ended::Refused { group, replica } => {
                    let placed = self.hosts.iter_mut().filter_map(|h| h.replicas.get_mut(&group));
                    placed.filter(|p| p.replica == replica).for_each(|p| p.useless = true);
                }
            }
        }
    }

    /// Starts what is to run, and removes what is gone.
    fn tend(&mut self) {
        for at in 0..self.hosts.len() {
            let id = self.hosts[at].id;
            for group in self.hosts[at].replicas.keys().copied().collect::<Vec<_>>() {
                let told = self.hosts[at].note_told(group);
                let placed = self.hosts[at].replicas[&group];
                if told {
                    self.say(|_| {
                        format!("host {id}: replica {} of group {group} was told that it is gone", placed.replica)
                    });
                }
                if placed.rotten {
                    if self.is_mended(id) && !self.clients.asks(group) {
                        self.remove_data(at, group, placed.replica);
                    }
                } else if placed.told || placed.useless {
                    if self.desk.rng.chance(300) {
                        self.remove_data(at, group, placed.replica);
                    }
                } else if placed.wanted {
                    self.hosts[at].start_wanted(group);
                } else if self.desk.settling.is_some() || self.desk.rng.chance(150) {
                    self.hosts[at].replicas.get_mut(&group).expect("just seen").wanted = true;
                }
            }
        }
    }

    fn remove_data(&mut self, at: usize, group: GroupId, replica: ReplicaId) {
        let host = self.hosts[at].id;
        match self.hosts[at].remove_data(group) {
            Some(Ok(pending)) => {
                self.say(|_| format!("host {host}: the data of replica {replica} of group {group} is to go"));
                self.clients.ask(host, group, Asked::Bury { replica, pending });
            }
            // Nothing of it ever reached the store.
            Some(Err(_)) => drop(self.hosts[at].replicas.remove(&group)),
            None => {}
        }
    }

    /// Without faults: joint configurations are left, and what was never added is given up.
    fn settle(&mut self, now: Time, since: Time) {
        let patient = now.nanos_since(since) < GIVE_UP_NANOS;
        let forgets = now.nanos_since(since) < FORGET_NANOS.max(2 * self.around.swarm.operations.every_nanos);
        for (group, _) in self.around.swarm.groups.clone() {
            let members = self.around.oracle.members(group);
            let asked = self.clients.asks(group) || self.is_lost(group);
            if forgets {
                self.prefer_nobody(group);
            }
            for host in self.hosts_of(group) {
                let replicas = &mut self.hosts[host.0 as usize - 1].replicas;
                let placed = replicas.get_mut(&group).expect("just listed");
                let never = !self.around.oracle.ever_had(group, placed.replica);
                // If none of those whom it knows is left, there is nobody whom it could ask.
                let deaf =
                    !members.contains(placed.replica) && self.hosts[host.0 as usize - 1].knows_none_of(group, &members);
                if (never || deaf) && !asked && !patient {
                    self.hosts[host.0 as usize - 1].replicas.get_mut(&group).expect("just listed").useless = true;
                }
            }
            if members.is_joint() && !members.auto_leave && !asked {
                let hosts = self.hosts_of(group);
                let host = *self.desk.rng.pick(&hosts);
                if let Some(shared) = self.replica(host, group) {
                    let by = self.now_at(host).plus_nanos(GIVE_UP_NANOS);
                    self.ask_change(host, &shared, ConfigChange::leave_joint(), by);
                }
            }
        }
    }

    /// What is not as it should be when all has settled.
    pub(crate) fn unsettled(&self) -> Option<String> {
        if let Some(loss) = self.describe_loss() {
            return Some(loss);
        }
        for (group, _) in &self.around.swarm.groups {
            let members = self.around.oracle.members(*group);
            if members.is_joint() || !members.promotions.is_empty() {
                return Some(format!("group {group} has a change under way: {members:?}"));
            }
            for host in &self.hosts {
                if let Some(placed) = host.replicas.get(group).filter(|p| !members.contains(p.replica)) {
                    return Some(format!(
                        "group {group}: host {} still has {placed:?}, the members are {members:?}",
                        host.id
                    ));
                }
            }
        }
        None
    }

    fn any_member(&mut self, members: &Membership) -> Option<ReplicaId> {
        let all: Vec<ReplicaId> = members.replicas().collect();
        (!all.is_empty()).then(|| *self.desk.rng.pick(&all))
    }

    fn transfer(&mut self, host: HostId, shared: &Arc<GroupShared>, deadline: Time) {
        let members = Arc::clone(&shared.membership.lock());
        let Some(to) = self.any_member(&members) else { return };
        self.say(|_| format!("group {}: {to} is to lead", shared.group));
        if let Ok(pending) = shared.request(deadline, |reply| Rare::Transfer(to, reply)) {
            self.clients.ask(host, shared.group, Asked::Transfer { to, pending });
        }
    }

    fn prefer(&mut self, host: HostId, shared: &Arc<GroupShared>) {
        let members = Arc::clone(&shared.membership.lock());
        let preferred = if self.desk.rng.chance(300) { None } else { self.any_member(&members) };
        self.say(|_| format!("group {} on host {host}: {preferred:?} is preferred", shared.group));
        if let Ok(pending) = shared.request(Time(u64::MAX), |reply| Rare::Prefer(preferred, reply)) {
            self.clients.ask(host, shared.group, Asked::Prefer { pending });
        }
    }

    /// Replicas that prefer different ones would hand leadership round for ever.
    fn prefer_nobody(&mut self, group: GroupId) {
        for host in self.hosts_of(group) {
            if let Some(shared) = self.replica(host, group)
                && let Ok(pending) = shared.request(Time(u64::MAX), |reply| Rare::Prefer(None, reply))
            {
                self.clients.ask(host, group, Asked::Prefer { pending });
            }
        }
    }

    fn stop_for_a_while(&mut self, host: HostId, group: GroupId) {
        self.say(|_| format!("host {host}: the replica of group {group} is stopped"));
        let host = &mut self.hosts[host.0 as usize - 1];
        host.stop_replica(group);
        host.replicas.get_mut(&group).expect("it runs there").wanted = false;
    }

    /// Finds a place for a new replica of the group.
    fn place(&mut self, group: GroupId, witness: bool) -> Option<(ReplicaId, Member)> {
        let free: Vec<usize> =
            (0..self.hosts.len()).filter(|at| !self.hosts[*at].replicas.contains_key(&group)).collect();
        if free.is_empty() {
            return None;
        }
        let at = *self.desk.rng.pick(&free);
        let replica = self.desk.next_replica();
        let host = &mut self.hosts[at];
        self.around.oracle.placed(host.id, group, witness);
        let wanted = self.desk.rng.chance(700);
        host.replicas.insert(group, Placed { wanted, ..Placed::joining(replica, witness) });
        Some((replica, Member { host: host.id, store: StoreId::ZERO }))
    }

    fn replace(&mut self, host: HostId, shared: &Arc<GroupShared>, deadline: Time) {
        let group = shared.group;
        let known = self.desk.replacements.get(&group).copied().filter(|_| self.desk.rng.chance(400));
        let what = match known {
            Some(known) => known,
            None => {
                let voters: Vec<ReplicaId> = shared.membership.lock().voters.iter().copied().collect();
                if voters.is_empty() {
                    return;
                }
                let old = *self.desk.rng.pick(&voters);
                let Some((new, member)) = self.place(group, false) else { return };
                Replacement { old, new, member }
            }
        };
        self.desk.replacements.insert(group, what);
        self.say(|_| format!("group {group}: {} takes the place of {}", what.new, what.old));
        if let Ok(pending) = shared.request(deadline, |reply| Rare::Replace(what, reply)) {
            let asked = Asked::Change { adds: vec![what.new], removes: vec![what.old], one_step: false, pending };
            self.clients.ask(host, group, asked);
        }
    }

    fn change(&mut self, kind: Operation, host: HostId, shared: &Arc<GroupShared>, deadline: Time) {
        let members = Arc::clone(&shared.membership.lock());
        let mut change = if kind == Operation::Joint {
            let count = self.desk.rng.between(1, 3);
            let kinds = [Operation::AddVoter, Operation::AddNonVoting, Operation::Promote, Operation::Remove];
            let steps = (0..count).filter_map(|_| {
                let kind = *self.desk.rng.pick(&kinds);
                self.step(kind, shared.group, &members)
            });
            let mut change = ConfigChange { changes: steps.collect(), ..ConfigChange::default() };
            let ways = [Transition::Auto, Transition::JointImplicit, Transition::JointExplicit];
            // No member is changed twice at once.
            let mut named = BTreeSet::new();
            change.changes.retain(|c| named.insert(c.replica));
            change.transition = *self.desk.rng.pick(&ways);
            if members.is_joint() && self.desk.rng.chance(700) {
                change = ConfigChange::leave_joint();
            }
            change
        } else {
            let Some(step) = self.step(kind, shared.group, &members) else { return };
            ConfigChange { changes: vec![step], ..ConfigChange::default() }
        };
        if self.desk.rng.chance(300) {
            change.after = Some(members.change_id);
        }
        self.ask_change(host, shared, change, deadline);
    }

    fn step(&mut self, kind: Operation, group: GroupId, members: &Membership) -> Option<Change> {
        let add = |w: &mut Self, make: fn(ReplicaId, Member) -> ConfigChange, witness| {
            let (replica, member) = w.place(group, witness)?;
            make(replica, member).changes.pop()
        };
        match kind {
            Operation::AddVoter => add(self, ConfigChange::add_voter, false),
            Operation::AddNonVoting => add(self, ConfigChange::add_learner, false),
            Operation::AddAndPromote => {
                let step = add(self, ConfigChange::add_learner, false)?;
                Some(Change { promotion: Promotion::WhenCaughtUp, ..step })
            }
            Operation::AddWitness => add(self, ConfigChange::add_witness, true),
            Operation::Promote => {
                let learner = members.learners.iter().next().copied()?;
                ConfigChange::add_voter(learner, *members.hosts.get(&learner)?).changes.pop()
            }
            _ => ConfigChange::remove(self.any_member(members)?).changes.pop(),
        }
    }

    pub(crate) fn ask_change(&mut self, host: HostId, shared: &Arc<GroupShared>, change: ConfigChange, deadline: Time) {
        self.say(|_| format!("group {} on host {host}: asked for {change:?}", shared.group));
        let of = |remove: bool| {
            let steps = change.changes.iter().filter(|c| (c.kind == longboat_raft::ChangeKind::Remove) == remove);
            steps.map(|c| c.replica).collect::<Vec<_>>()
        };
        let (adds, removes) = (of(false), of(true));
        match shared.request(deadline, |reply| Rare::Change(change, reply)) {
            Ok(pending) => {
                self.clients.ask(host, shared.group, Asked::Change { adds, removes, one_step: true, pending });
            }
            Err(error) => self.clients.change_refused(shared.group, &adds, &error),
        }
    }
}
