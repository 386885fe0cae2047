//! The stores that other hosts have, and the replicas that went with a store that a host has no more.
//!
//! A host that comes back with another store than before has forgotten what its replicas voted for and acknowledged: their
//! words would elect leaders that lack committed entries. So every store is noted, durably, when it is first seen. When a host
//! shows another one, each member that this host knows to have been there is *fenced*: nothing that it says reaches a core any
//! more. Fresh replicas under new ids take their places; a member that was added while its host's store was known carries that in
//! the membership, and is judged by it.
//!
//! Invariants: a store is judged before the first frame that comes with it; fenced ids stay fenced, as ids are never used again;
//! what is fenced here is fenced after a restart, too, because the store before is remembered until the fence is durable.
//! A store that is seen for the first time is trusted: what it replaced before that nobody here knows.
//!
//! Also remembered is how far each store was heard to have come: it is asked about that when its host has started anew
//! ([`crate::openings`]).
//!
//! Must not know: raft state, connections.

use crate::openings::Standing;
use crate::shared::HostShared;
use longboat_io::{Job, JobState, SharedDisk};
use longboat_raft::{
    ChangeKind, ConfigChange, GroupEpoch, GroupId, HostId, Membership, ReplicaId, StoreId, crc, plant, sometimes,
};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The store of a member whose host's store was not known when it was added: it is not judged by it.
pub const STORE_NOT_KNOWN: StoreId = StoreId(u128::MAX);

const FILE: &str = "peers";
const MAGIC: [u8; 8] = *b"LBPEERS2";
/// Bytes of the file at most: a million fenced replicas.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What is remembered of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// The store that it has, and the farthest that this was heard to have come.
    standing: Standing,
    /// In the history of their group that was then: after an import an id may be another replica.
    fenced: BTreeSet<(GroupId, GroupEpoch, ReplicaId)>,
}

/// Where the table is kept.
#[derive(Clone)]
pub struct PeerFile {
    disk: SharedDisk,
    dir: PathBuf,
}

/// The table of other hosts' stores.
pub struct PeerStores {
    table: RwLock<BTreeMap<HostId, Known>>,
    /// Grows whenever somebody may be judged otherwise.
    version: AtomicU64,
    file: PeerFile,
    /// Held while the file is written: the newest table goes last.
    writing: Mutex<()>,
}

impl PeerFile {
    /// In this directory, which is there.
    pub fn new(disk: SharedDisk, dir: impl Into<PathBuf>) -> Self {
        Self { disk, dir: dir.into() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self) -> io::Result<BTreeMap<HostId, Known>> {
        let Some(bytes) = self.read_bytes(FILE, FILE_BYTES_MAX)? else { return Ok(BTreeMap::new()) };
        decode(&bytes).ok_or_else(|| damaged(&self.path(FILE)))
    }

    /// A small file of the directory, if it is there.
    pub(crate) fn read_bytes(&self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(name);
        if !self.disk.exists(&path) {
            return Ok(None);
        }
        let file = self.disk.open(&path)?;
        let length = file.len()?;
        if length > bytes_max {
            return Err(damaged(&path));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Some(bytes))
    }

    /// Puts a file in the place of what has its name, durably.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let next = self.dir.join(format!("{name}.tmp"));
        if self.disk.exists(&next) {
            self.disk.remove_file(&next)?;
        }
        let mut file = self.disk.create(&next)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        self.disk.rename(&next, &self.path(name))?;
        self.disk.sync_dir(&self.dir)
    }
}

fn damaged(path: &Path) -> io::Error {
    let what = format!("{} is damaged: it says which stores other hosts had", path.display());
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn encode(table: &BTreeMap<HostId, Known>) -> Vec<u8> {
    let mut body = Vec::new();
    for (host, known) in table {
        body.extend(host.0.to_le_bytes());
        body.extend(known.standing.store.0.to_le_bytes());
        body.extend(known.standing.incarnation.to_le_bytes());
        body.extend(known.standing.place.to_le_bytes());
        body.extend((known.fenced.len() as u64).to_le_bytes());
        for (group, epoch, replica) in &known.fenced {
            body.extend(group.0.to_le_bytes());
            body.extend(epoch.0.to_le_bytes());
            body.extend(replica.0.to_le_bytes());
        }
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend(crc::crc32c(0, &body).to_le_bytes());
    bytes.append(&mut body);
    bytes
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<HostId, Known>> {
    let (sum, mut body) = bytes.strip_prefix(&MAGIC)?.split_first_chunk::<4>()?;
    if crc::crc32c(0, body) != u32::from_le_bytes(*sum) {
        return None;
    }
    fn word(body: &mut &[u8]) -> Option<u64> {
        let (word, rest) = body.split_first_chunk::<8>()?;
        *body = rest;
        Some(u64::from_le_bytes(*word))
    }
    let mut table = BTreeMap::new();
    while !body.is_empty() {
        let host = HostId(word(&mut body)?);
        let (low, high) = (word(&mut body)?, word(&mut body)?);
        let store = StoreId(u128::from(high) << 64 | u128::from(low));
        let standing = Standing { store, incarnation: word(&mut body)?, place: word(&mut body)? };
        let mut fenced = BTreeSet::new();
        for _ in 0..word(&mut body)? {
            fenced.insert((GroupId(word(&mut body)?), GroupEpoch(word(&mut body)?), ReplicaId(word(&mut body)?)));
        }
        table.insert(host, Known { standing, fenced });
    }
    Some(table)
}

impl PeerStores {
    /// The table as it was left.
    ///
    /// # Errors
    /// When the file can't be read, or is damaged: without it nobody knows whom to believe.
    pub fn open(file: PeerFile) -> io::Result<Self> {
        let table = RwLock::new(file.read()?);
        Ok(Self { table, version: AtomicU64::new(1), file, writing: Mutex::new(()) })
    }

    /// Grows whenever a member may be judged otherwise than before.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The members of this group that are not to be believed.
    pub(crate) fn fenced(&self, group: GroupId, epoch: GroupEpoch, members: &Membership) -> Vec<ReplicaId> {
        let table = self.table.read();
        let is_fenced = |(replica, member): &(&ReplicaId, &longboat_raft::Member)| {
            let Some(known) = table.get(&member.host) else { return false };
            let recorded = !member.store.is_zero() && member.store != STORE_NOT_KNOWN;
            known.fenced.contains(&(group, epoch, **replica)) || (recorded && member.store != known.standing.store)
        };
        members.hosts.iter().filter(is_fenced).map(|(replica, _)| *replica).collect()
    }

    /// Notes in a change which stores the hosts of those whom it adds have.
    pub(crate) fn fill_in(&self, change: &mut ConfigChange, members: &Membership) {
        let table = self.table.read();
        for change in &mut change.changes {
            let adds = matches!(change.kind, ChangeKind::AddVoter | ChangeKind::AddLearner | ChangeKind::AddWitness);
            if !adds || !change.member.store.is_zero() {
                continue;
            }
            // Who is a member already stays what it was said to be.
            change.member.store = match members.hosts.get(&change.replica) {
                Some(member) if member.host == change.member.host => member.store,
                _ => table.get(&change.member.host).map_or(STORE_NOT_KNOWN, |known| known.standing.store),
            };
        }
    }

    /// What is known of a host's store, if it ever was seen.
    pub fn standing(&self, host: HostId) -> Option<Standing> {
        self.table.read().get(&host).map(|known| known.standing)
    }

    /// A host shows which opening of its store it is. Returns what it must follow from before it is believed: nothing, if this is
    /// the first one that is seen, or the one that was seen last.
    pub(crate) fn shown(&self, host: HostId, incarnation: u64) -> Option<Standing> {
        let mut table = self.table.write();
        let known = table.get_mut(&host)?;
        if known.standing.incarnation == 0 {
            known.standing.incarnation = incarnation;
        }
        let before = known.standing;
        (before.incarnation != incarnation && !plant::is("rolled-back-host-is-believed")).then_some(before)
    }

    /// A host's store has come this far. Returns what is known, if that is more.
    pub(crate) fn heard(&self, host: HostId, incarnation: u64, place: u64) -> Option<Standing> {
        let mut table = self.table.write();
        let known = table.get_mut(&host)?;
        if known.standing.incarnation != incarnation {
            return None;
        }
        let fell = place < known.standing.place && !plant::is("rolled-back-host-is-believed");
        let before = known.standing;
        known.standing.place = before.place.max(place);
        fell.then_some(before)
    }

    /// A host's store has shown that it follows from what was known of it.
    pub(crate) fn proven(&self, host: HostId, incarnation: u64) {
        if let Some(known) = self.table.write().get_mut(&host) {
            known.standing.incarnation = incarnation;
        }
    }

    /// A host shows its store. What it had before, if that was another. `members` are those of the groups of this host.
    fn seen(
        &self,
        host: HostId,
        store: StoreId,
        members: impl FnOnce() -> Vec<(GroupId, GroupEpoch, Arc<Membership>)>,
    ) -> Seen {
        if store.is_zero() || self.table.read().get(&host).is_some_and(|known| known.standing.store == store) {
            return Seen::AsBefore;
        }
        let mut table = self.table.write();
        let known = table.entry(host).or_default();
        let before = std::mem::replace(&mut known.standing, Standing { store, ..Standing::default() }).store;
        if !before.is_zero() && !plant::is("wiped-host-is-believed") {
            sometimes!("host-with-another-store");
            for (group, epoch, members) in members() {
                let there = members.hosts.iter().filter(|(_, member)| member.host == host && member.store.is_zero());
                known.fenced.extend(there.map(|(replica, _)| (group, epoch, *replica)));
            }
        }
        drop(table);
        self.version.fetch_add(1, Ordering::Release);
        if before.is_zero() { Seen::First } else { Seen::Another { before } }
    }
}

/// What a host's store is to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    AsBefore,
    First,
    Another { before: StoreId },
}

impl HostShared {
    /// A host has connected and shows its store. Returns a job that makes a change of the table durable.
    pub(crate) fn store_seen(self: &Arc<Self>, host: HostId, store: StoreId) -> Option<Box<dyn Job>> {
        let members = || {
            // Whoever is on the way between the two lists is in one of them: the locks are taken in the order in which replicas move.
            let stopped = self.stopped.lock();
            let running = self.groups.read();
            let here =
                running.iter().map(|(group, shared)| (*group, shared.epoch, Arc::clone(&shared.membership.lock())));
            let restored = stopped.iter().filter(|(_, state)| !state.removed).map(|(group, state)| {
                let newest = state.snapshot.as_ref().map_or(&state.bootstrap.membership, |s| &s.meta.membership);
                (*group, state.bootstrap.epoch, Arc::new(newest.clone()))
            });
            // A quarantined one runs again when this host is started anew.
            let quarantined = self.quarantined.lock();
            let resting = quarantined.iter().map(|(group, (epoch, members))| (*group, *epoch, Arc::clone(members)));
            here.chain(restored).chain(resting).collect()
        };
        match self.stores.seen(host, store, members) {
            Seen::AsBefore => return None,
            Seen::First => {}
            Seen::Another { before } => {
                tracing::error!(%host, %before, %store, "host has another store: its former replicas are not believed any more");
                self.events.tell(crate::HostEvent::StoreReplaced { host, before, now: store });
            }
        }
        Some(self.keep_stores())
    }

    /// A job that makes the table durable.
    pub(crate) fn keep_stores(self: &Arc<Self>) -> Box<dyn Job> {
        Box::new(KeepJob(Arc::clone(self)))
    }
}

/// Writes the table.
struct KeepJob(Arc<HostShared>);

impl Job for KeepJob {
    fn step(&mut self, _budget: usize) -> JobState {
        let stores = &self.0.stores;
        let _last = stores.writing.lock();
        let bytes = encode(&stores.table.read());
        if let Err(error) = stores.file.write(FILE, &bytes) {
            // It is seen again, and judged alike, after a restart: what was known before is still in the file.
            tracing::warn!(%error, "the table of other hosts' stores was not written");
        }
        JobState::Done
    }
}

impl std::fmt::Debug for PeerStores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerStores").field("hosts", &self.table.read().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_io::RealDisk;
    use longboat_raft::Member;

    const A: StoreId = StoreId(10);
    const B: StoreId = StoreId(11);
    const FIRST: GroupEpoch = GroupEpoch(1);

    fn stores(dir: &Path) -> PeerStores {
        PeerStores::open(PeerFile::new(Arc::new(RealDisk), dir)).expect("opens")
    }

    fn members(list: &[(u64, u64, StoreId)]) -> Membership {
        let member = |(r, h, store): &(u64, u64, StoreId)| (ReplicaId(*r), Member { host: HostId(*h), store: *store });
        Membership::from_voters(list.iter().map(member))
    }

    #[test]
    fn whoever_was_on_a_host_with_its_former_store_is_fenced_and_nobody_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let stores = stores(dir.path());
        let first = members(&[(1, 1, StoreId::ZERO), (2, 2, StoreId::ZERO), (3, 3, StoreId::ZERO)]);
        let here = || vec![(GroupId(7), FIRST, Arc::new(first.clone()))];
        assert_eq!(stores.seen(HostId(2), A, || unreachable!()), Seen::First);
        assert_eq!(stores.seen(HostId(2), A, || unreachable!()), Seen::AsBefore);
        assert!(stores.fenced(GroupId(7), FIRST, &first).is_empty());
        assert_eq!(stores.seen(HostId(2), B, here), Seen::Another { before: A });
        assert_eq!(stores.fenced(GroupId(7), FIRST, &first), [ReplicaId(2)]);
        assert!(stores.fenced(GroupId(8), FIRST, &first).is_empty(), "a group that was made later");
        assert!(stores.fenced(GroupId(7), GroupEpoch(2), &first).is_empty(), "what an import made of it");
        // Back with the store of before, but what was said meanwhile nobody knows.
        assert_eq!(stores.seen(HostId(2), A, Vec::new), Seen::Another { before: B });
        assert_eq!(stores.fenced(GroupId(7), FIRST, &first), [ReplicaId(2)]);
    }

    #[test]
    fn a_member_is_judged_by_the_store_that_it_was_added_with() {
        let dir = tempfile::tempdir().expect("a directory");
        let stores = stores(dir.path());
        stores.seen(HostId(2), B, || unreachable!());
        let added = members(&[(1, 1, StoreId::ZERO), (4, 2, A), (5, 2, B), (6, 2, STORE_NOT_KNOWN)]);
        assert_eq!(stores.fenced(GroupId(7), FIRST, &added), [ReplicaId(4)]);
        let member = |host| Member { host: HostId(host), ..Member::default() };
        let filled = |replica: u64, host: u64| {
            let mut change = ConfigChange::add_voter(ReplicaId(replica), member(host));
            stores.fill_in(&mut change, &added);
            change.changes[0].member.store
        };
        assert_eq!((filled(9, 2), filled(9, 3), filled(4, 2)), (B, STORE_NOT_KNOWN, A));
    }

    #[test]
    fn the_table_is_kept_and_damage_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut table = BTreeMap::new();
        table.insert(
            HostId(3),
            Known {
                standing: Standing { store: B, incarnation: 5, place: 77 },
                fenced: [(GroupId(1), FIRST, ReplicaId(2))].into(),
            },
        );
        table.insert(
            HostId(4),
            Known { standing: Standing { store: STORE_NOT_KNOWN, ..Standing::default() }, ..Known::default() },
        );
        let bytes = encode(&table);
        stores(dir.path()).file.write(FILE, &bytes).expect("written");
        assert_eq!(*stores(dir.path()).table.read(), table);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            assert_eq!(decode(&bytes), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None, "{at} bytes");
        }
    }
}
