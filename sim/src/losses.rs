//! Hosts that lose their directory, whose directory is put back from an earlier copy, or whose journal rots: and the operator, who
//! replaces what was there by new replicas.
//!
//! - A *wiped* host comes up with an empty directory. Sometimes it is started as it was, with the ids of its former replicas, before
//!   anybody looks: nobody may believe them.
//! - A host that is *put back* has a copy of its directory of some time ago. Others know better: it must find out, and is then wiped.
//! - Where a journal *rots*, a byte of it changes while the process does not run. The store may refuse to open; if it opens, what it
//!   recovers must be what it had, but for groups that it has quarantined, and these stay so until their data is removed. Some time
//!   later it is wiped, as it would be after a scrub, or, where groups are quarantined, only these are replaced under new ids.
//!
//! One host at a time: what it had is not forgotten by a second one before new replicas have taken over. Whoever has a voter there
//! has two elsewhere.
//!
//! Must not know: how any of it is noticed.

use crate::client::Asked;
use crate::host::Placed;
use crate::operator::Operations;
use crate::rng::Rng;
use crate::swarm::{FaultKind, Swarm};
use crate::world::World;
use longboat_engine::{PeerFile, PeerStores, Rare, Replacement};
use longboat_logdb::GroupState;
use longboat_raft::{GroupId, HostId, Index, Member, ReplicaId, StoreId, Time, sometimes};
use std::collections::BTreeMap;
use std::path::PathBuf;

const MILLI: u64 = 1_000_000;
/// How long a copy of a directory lies before it is put back at most, in milliseconds.
const COPY_MILLIS_MAX: u64 = 8_000;
/// How long a host goes on with a rotten journal that it could open at most, in milliseconds.
const ROTTEN_MILLIS_MAX: u64 = 3_000;
/// How long a wiped host may run as it was before the operator looks, in milliseconds.
const AS_BEFORE_MILLIS_MAX: u64 = 2_000;
/// How long the operator waits for a replacement, in nanoseconds.
const REPLACE_NANOS: u64 = 3_000_000_000;
/// Records that a copy may have beyond the place that was known to be durable when it was taken.
const UNDER_WAY: u64 = 2;
/// What a record of the journal begins with.
const RECORD: &[u8; 4] = b"LBRC";
const BLOCK: usize = 4096;

/// A host that lost its directory, or is about to.
#[derive(Debug)]
pub(crate) struct Loss {
    host: HostId,
    /// What it had, and what takes its place, if that is known.
    replicas: BTreeMap<GroupId, (ReplicaId, Option<ReplicaId>)>,
    /// It is to find out that it was put back.
    put_back: bool,
    /// It is wiped, or only what is quarantined there is replaced.
    wiped: bool,
    /// It is not wiped: what is quarantined there is replaced.
    mended: bool,
    /// Until then it runs with its former replicas.
    as_before_until: Option<Time>,
}

impl Swarm {
    /// In some worlds without other operators hosts lose what they have.
    pub fn draw_losses(&mut self, rng: &mut Rng) {
        let safe = self.hosts >= 3 && self.groups.iter().all(|(_, hosts)| hosts.len() >= 3);
        if !safe || self.operations.is_on() || !rng.chance(350) {
            return;
        }
        let kinds = [FaultKind::Wipe, FaultKind::PutBack, FaultKind::Rot];
        self.faults.extend((0..rng.between(1, 3)).map(|_| *rng.pick(&kinds)));
        self.operations = Operations { every_nanos: rng.between(20, 200) * MILLI, ..Operations::default() };
    }
}

impl World {
    /// Whether this host may lose what it has.
    fn may_lose(&self, host: HostId) -> bool {
        let groups = self.around.swarm.groups.iter();
        let spared = groups.map(|(group, _)| self.around.oracle.members(*group)).all(|members| {
            let here = members.hosts.values().any(|m| m.host == host);
            !members.is_joint() && (!here || members.voters.len() >= 3)
        });
        spared && self.loss.is_none() && self.desk.settling.is_none() && self.around.swarm.operations.is_on()
    }

    fn at(&self, host: HostId) -> usize {
        host.0 as usize - 1
    }

    fn reserve(&mut self, host: HostId, put_back: bool) {
        let replicas = self.hosts[self.at(host)].replicas.iter();
        let replicas = replicas.map(|(group, placed)| (*group, (placed.replica, None))).collect();
        self.loss = Some(Loss { host, replicas, put_back, wiped: false, mended: false, as_before_until: None });
    }

    /// The host's directory is lost.
    pub(crate) fn wipe(&mut self, host: HostId) {
        if self.may_lose(host) {
            self.reserve(host, false);
            self.lose(host);
        }
    }

    /// A copy of the host's directory is made, to be put back later.
    pub(crate) fn copy_directory(&mut self, host: HostId, now: Time) -> Option<Time> {
        let at = self.at(host);
        let standing = self.hosts[at].life.as_ref()?.own_standing();
        let disk = self.hosts[at].disk.fork();
        disk.kill();
        // What is copied is files: neither a sync that was to fail nor a lack of room goes with them.
        disk.clear_faults();
        disk.set_capacity(u64::MAX);
        self.hosts[at].copy = Some((disk, standing));
        self.around.oracle.copy(host);
        Some(now.plus_nanos(self.plan_rng().magnitude(200, COPY_MILLIS_MAX) * MILLI))
    }

    /// The copy is put back, if everybody else has heard of more.
    pub(crate) fn put_back(&mut self, host: HostId) {
        let at = self.at(host);
        let Some((disk, copied)) = self.hosts[at].copy.take() else { return };
        let store = self.hosts[at].store;
        let members = self.hosts[at].replicas.keys().map(|group| self.around.oracle.members(*group));
        let met: Vec<HostId> = members.flat_map(|m| m.hosts.into_values().map(|member| member.host)).collect();
        let mut others = self.hosts.iter().filter(|h| h.id != host && met.contains(&h.id));
        let all_know = others.all(|h| {
            // On its disk: it may start anew before the host does.
            let known = PeerStores::open(PeerFile::new(h.disk.process(), "/data")).ok().and_then(|s| s.standing(host));
            known.filter(|s| s.store == store).is_some_and(|s| {
                let farther = s.place > copied.place + UNDER_WAY;
                s.incarnation > copied.incarnation || (s.incarnation == copied.incarnation && farther)
            })
        });
        if met.is_empty() || !all_know || !self.may_lose(host) {
            return;
        }
        self.say(|_| format!("host {host}: its directory is put back to what it was at record {}", copied.place));
        self.reserve(host, true);
        let nanos = self.plan.downtime_nanos();
        self.stop(host, false, nanos);
        self.hosts[at].replace_disk(disk);
        self.hosts[at].is_put_back = true;
        self.around.oracle.put_back(host);
    }

    /// A byte of the journal changes while the process does not run.
    pub(crate) fn rot(&mut self, host: HostId, now: Time) -> Option<Time> {
        if !self.may_lose(host) {
            return None;
        }
        let at = self.at(host);
        let nanos = self.plan.downtime_nanos();
        self.stop(host, false, nanos);
        let (path, places) = self.hosts[at].rottable(self.plan.rng_mut())?;
        let byte = *self.plan.rng_mut().pick(&places);
        self.say(|_| format!("host {host}: byte {byte} of {} rots", path.display()));
        self.hosts[at].disk.damage(&path, |bytes| bytes[byte] ^= 0x10).ok()?;
        self.hosts[at].is_rotten = true;
        self.reserve(host, false);
        Some(now.plus_nanos(self.plan_rng().magnitude(100, ROTTEN_MILLIS_MAX) * MILLI))
    }

    /// A byte of one of a host's snapshots changes while the process does not run, always of the same host: the others have the state
    /// that it asks for when none of its own is whole.
    pub(crate) fn rot_snapshot(&mut self) {
        let swarm = &self.around.swarm;
        let host = HostId(1 + swarm.fault_nanos % swarm.hosts);
        let at = self.at(host);
        let disk = &self.hosts[at].disk;
        let is_snapshot = |path: &PathBuf| {
            let path = path.to_string_lossy();
            path.contains("/snapshots/") && !path.contains(".tmp")
        };
        let size = |path: &PathBuf| disk.contents(path).map_or(0, |bytes| bytes.len());
        let files = disk.files().into_iter().filter(is_snapshot).map(|path| (size(&path), path));
        let files: Vec<(usize, PathBuf)> = files.filter(|(size, _)| *size > 0).collect();
        if files.is_empty() {
            return;
        }
        let (size, path) = self.plan_rng().pick(&files).clone();
        let byte = self.plan_rng().below(size as u64) as usize;
        let nanos = self.plan.downtime_nanos();
        self.say(|_| format!("host {host}: byte {byte} of {} rots", path.display()));
        self.stop(host, false, nanos);
        sometimes!("snapshot-file-rots");
        self.hosts[at].disk.damage(&path, |bytes| bytes[byte] ^= 0x10).expect("just listed");
    }

    fn plan_rng(&mut self) -> &mut Rng {
        self.plan.rng_mut()
    }

    /// The reserved host's directory goes, with all that it had.
    pub(crate) fn lose(&mut self, host: HostId) {
        let now = self.now();
        let at = self.at(host);
        if self.loss.as_ref().is_none_or(|loss| loss.host != host || loss.wiped) {
            return;
        }
        if self.mend(host) {
            return;
        }
        let as_before = self.desk.rng.chance(300) && self.all_know_store_of(host);
        let until = now.plus_nanos(self.desk.rng.magnitude(50, AS_BEFORE_MILLIS_MAX) * MILLI);
        let nanos = self.plan.downtime_nanos();
        self.say(|_| {
            format!("host {host}: its directory is lost{}", if as_before { ", and nobody notices" } else { "" })
        });
        self.stop(host, false, nanos);
        let fresh = self.desk.rng.next();
        self.hosts[at].wipe(fresh, as_before);
        self.around.oracle.forgot(host);
        let loss = self.loss.as_mut().expect("it is reserved");
        (loss.wiped, loss.as_before_until) = (true, as_before.then_some(until));
        sometimes!("host-wiped");
        sometimes!(as_before, "wiped-host-runs-as-before");
    }

    /// A host that opened without some of its groups goes on with the others: only those are given up. Whether that is so.
    fn mend(&mut self, host: HostId) -> bool {
        let at = self.at(host);
        let Some(life) = &self.hosts[at].life else { return false };
        let quarantined = life.quarantined();
        // Which replica was here must be known, or nothing but the loss of the directory ends it.
        if quarantined.is_empty() || quarantined.iter().any(|q| q.replica.is_none()) || !self.desk.rng.chance(700) {
            return false;
        }
        self.say(|_| format!("host {host}: what is quarantined is given up: {quarantined:?}"));
        let loss = self.loss.as_mut().expect("it is reserved");
        loss.replicas.retain(|group, _| quarantined.iter().any(|q| q.group == *group));
        (loss.wiped, loss.mended) = (true, true);
        sometimes!("quarantined-replica-replaced");
        true
    }

    /// Whether what is quarantined on this host is given up.
    pub(crate) fn is_mended(&self, host: HostId) -> bool {
        self.loss.as_ref().is_some_and(|loss| loss.host == host && loss.mended)
    }

    /// Whether all others have it on their disks which store this host has.
    fn all_know_store_of(&self, host: HostId) -> bool {
        let store = self.hosts[self.at(host)].store.0.to_le_bytes();
        let mut others = self.hosts.iter().filter(|h| h.id != host);
        others.all(|h| {
            let peers = h.disk.contents(&PathBuf::from("/data/peers")).unwrap_or_default();
            peers.windows(store.len()).any(|bytes| bytes == store)
        })
    }

    /// Hosts whose stores did not open are wiped; who was lost is replaced, a group at a time.
    pub(crate) fn tend_losses(&mut self, now: Time) {
        let Some(loss) = &self.loss else { return };
        let (host, at) = (loss.host, self.at(loss.host));
        if self.hosts[at].is_refused || (self.hosts[at].is_rotten && self.desk.settling.is_some()) {
            self.lose(host);
        }
        if self.loss.as_ref().is_some_and(|loss| !loss.wiped) {
            return;
        }
        let as_before_until = self.loss.as_ref().and_then(|loss| loss.as_before_until);
        if as_before_until.is_some_and(|until| until <= now || self.desk.settling.is_some()) {
            self.empty(host);
        }
        let groups: Vec<GroupId> = self.loss.as_ref().expect("just seen").replicas.keys().copied().collect();
        for group in groups {
            self.replace_lost(group, at);
        }
        if self.loss.as_ref().is_some_and(|loss| loss.replicas.is_empty()) {
            self.loss = None;
        }
    }

    /// The operator has noticed: the host begins anew, without replicas.
    fn empty(&mut self, host: HostId) {
        let (at, nanos) = (self.at(host), self.plan.downtime_nanos());
        self.say(|_| format!("host {host}: begins anew without replicas"));
        self.stop(host, false, nanos);
        let fresh = self.desk.rng.next();
        self.hosts[at].wipe(fresh, false);
        self.around.oracle.forgot(host);
        self.loss.as_mut().expect("it is lost").as_before_until = None;
    }

    fn replace_lost(&mut self, group: GroupId, at: usize) {
        let loss = self.loss.as_ref().expect("somebody is lost");
        let (old, new) = loss.replicas[&group];
        let members = self.around.oracle.members(group);
        if !members.contains(old) {
            // The next host may be lost once those who stay know for good that this one is not needed.
            if !members.removed.contains(&old) || self.knows_who_may_go(group, members.change_id) {
                self.loss.as_mut().expect("just seen").replicas.remove(&group);
            }
            return;
        }
        if self.hosts[at].life.is_none() || loss.as_before_until.is_some() {
            return;
        }
        let host = loss.host;
        // What is quarantined has to go first.
        if self.hosts[at].replicas.get(&group).is_some_and(|placed| placed.rotten) {
            return;
        }
        let new = match new {
            Some(new) => new,
            None => {
                let new = self.desk.next_replica();
                self.around.oracle.placed(host, group, false);
                self.hosts[at].replicas.insert(group, Placed::joining(new, false));
                self.loss.as_mut().expect("just seen").replicas.insert(group, (old, Some(new)));
                new
            }
        };
        if self.clients.asks(group) {
            return;
        }
        let others: Vec<HostId> = self.hosts_of(group).into_iter().filter(|h| *h != host).collect();
        if others.is_empty() {
            return;
        }
        let asked = *self.desk.rng.pick(&others);
        let Some(shared) = self.replica(asked, group) else { return };
        // A member is added with the store that its host is known to have.
        let store = self.hosts[at].store;
        let knows = |h: &crate::host::SimHost| {
            h.id == host || h.life.as_ref().is_none_or(|l| l.standing_of(host).is_some_and(|s| s.store == store))
        };
        if !self.hosts.iter().all(knows) {
            return;
        }
        let what = Replacement { old, new, member: Member { host, store: StoreId::ZERO } };
        let deadline = self.now_at(asked).plus_nanos(REPLACE_NANOS);
        self.say(|_| format!("group {group}: {new} takes the place of {old}, which host {host} lost"));
        if let Ok(pending) = shared.request(deadline, |reply| Rare::Replace(what, reply)) {
            let change = Asked::Change { adds: vec![new], removes: vec![old], one_step: false, pending };
            self.clients.ask(asked, group, change);
        }
    }

    /// Who is lost, and not replaced yet.
    pub(crate) fn describe_loss(&self) -> Option<String> {
        let loss = self.loss.as_ref()?;
        let unnoticed = loss.put_back && !loss.wiped;
        let what =
            if unnoticed { "was put back to an earlier copy of its directory, and goes on" } else { "is not replaced" };
        Some(format!("host {} {what}: {loss:?}", loss.host))
    }

    /// Whether a replica of the group has heard that all who were removed through this change may go.
    fn knows_who_may_go(&self, group: GroupId, change: Index) -> bool {
        let mut cores = self.hosts.iter().filter_map(|h| h.life.as_ref()?.core(group));
        cores.any(|core| core.membership().change_id >= change && core.removed_may_go())
    }

    /// Whether this group waits for the replacement of what was lost.
    pub(crate) fn is_lost(&self, group: GroupId) -> bool {
        self.loss.as_ref().is_some_and(|loss| loss.replicas.contains_key(&group))
    }
}

impl crate::host::SimHost {
    /// The store has opened: which of its groups are quarantined, and what it has of the others. What it had of those is not had
    /// any more; and once it is so, it stays so until the data is removed.
    pub(crate) fn note_quarantined(&mut self, found: &[GroupState]) -> Vec<GroupState> {
        let (quarantined, others): (Vec<_>, Vec<_>) = found.iter().cloned().partition(|s| s.quarantined.is_some());
        let is_quarantined = |group: &GroupId| quarantined.iter().any(|s| s.group == *group);
        let forgotten = self.replicas.iter().find(|(group, placed)| placed.rotten && !is_quarantined(group));
        let oracle = &self.around.oracle;
        if let Some((group, placed)) = forgotten {
            oracle.violate(format!(
                "host {}: the quarantine of {} in group {group} is forgotten",
                self.id, placed.replica
            ));
        }
        if !quarantined.is_empty() && !self.is_rotten {
            oracle.violate(format!("host {} has lost a part of {quarantined:?}, and nothing was damaged", self.id));
        }
        for state in &quarantined {
            oracle.quarantined(self.id, state.group);
            if let Some(placed) = self.replicas.get_mut(&state.group) {
                placed.rotten = true;
            }
        }
        others
    }

    /// A file of the journal, and the places in it whose damage the journal can notice: not those of the last record, which nothing
    /// vouches for, and which can't be told from one that was torn. A record that a power loss may still take vouches for nothing.
    fn rottable(&self, rng: &mut Rng) -> Option<(PathBuf, Vec<usize>)> {
        let files: Vec<PathBuf> =
            self.disk.files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
        let mut last = (0, PathBuf::new(), 0..0);
        let mut all = Vec::new();
        for path in files {
            let bytes = self.disk.durable_contents(&path).ok()?;
            for at in (0..bytes.len().saturating_sub(64)).step_by(BLOCK).filter(|at| bytes[*at..].starts_with(RECORD)) {
                let word = |from: usize| u64::from_le_bytes(bytes[at + from..at + from + 8].try_into().expect("eight"));
                if word(8) > last.0 {
                    last = (word(8), path.clone(), at..at + word(16) as usize);
                }
            }
            all.push((path, bytes));
        }
        if all.is_empty() {
            return None;
        }
        let (path, bytes) = rng.pick(&all).clone();
        let written = (0..bytes.len()).filter(|at| bytes[*at] != 0 && !(path == last.1 && last.2.contains(at)));
        let written: Vec<usize> = written.collect();
        (!written.is_empty()).then_some((path, written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Trace;
    use longboat_logdb::SharedLog;

    #[test]
    fn a_copy_of_a_directory_does_not_have_the_faults_of_its_disk() {
        let mut rng = Rng::new(1);
        let swarm = Swarm::quiet(&mut rng, 2);
        let mut world = World::with(rng, swarm, Trace::default());
        let (host, begun) = (HostId(1), world.now().plus_nanos(1_000 * MILLI));
        world.run_until(begun, |_| false);
        world.hosts[0].fill_disk(0);
        world.hosts[0].fail_sync();
        let now = world.now();
        assert!(world.copy_directory(host, now).is_some(), "its process runs");
        let (copy, _) = world.hosts[0].copy.take().expect("just made");
        let settings = world.around.swarm.store(host, world.hosts[0].store_seed());
        let opened = SharedLog::open(copy.process(), settings).map(|opened| opened.groups.len());
        assert_eq!(opened.map_err(|e| e.to_string()), Ok(2));
    }
}
