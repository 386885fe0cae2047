//! Requests, applies, aborts, compactions, cuts, deaths, restarts and installs in any order: what was acknowledged is there,
//! what was refused is not, all replicas end with equal states, every request is answered once, and what was reported adds up.

use crate::alone::MILLI;
use crate::list::List;
use crate::shelf::{Shelf, Storage};
use crate::trio::{Trio, write};
use longboat_engine::{Compacted, LogRequest, Rare, SnapshotOptions, SnapshotOutcome, Start, Worker};
use longboat_io::sim::{SimDisk, SimDiskConfig};
use longboat_io::{Clock, SharedDisk};
use longboat_raft::{HostId, Index, ProposeOptions, Time};
use longboat_rsm::snapshot::verify_export;
use longboat_rsm::{OnDisk, Pending, Reads, RequestError};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;

/// Seeds that are tried, and steps of each.
const SEEDS: u64 = 10;
const STEPS: usize = 400;
/// Nanoseconds that a proposal waits.
const PATIENCE_NANOS: u64 = 2_000 * MILLI;
/// Milliseconds in which a healed group comes to rest.
const REST_MS: u64 = 20_000;

/// A small generator (splitmix64): a seed is replayed by its number.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % bound
    }
}

/// What is under way at a host in its present life, and what it said.
#[derive(Default)]
struct Life {
    proposals: Vec<(u64, Pending<usize>)>,
    snapshots: Vec<Pending<SnapshotOutcome>>,
    compactions: Vec<Pending<Compacted>>,
    /// Snapshots that it reported as saved.
    saved: u64,
}

/// What became of the values that were proposed.
#[derive(Default)]
struct Values {
    next: u64,
    acknowledged: BTreeSet<u64>,
    /// Those of which nobody knows.
    open: BTreeSet<u64>,
}

impl Values {
    /// The order is that of the log, which nobody but the log knows: a proposal that was forwarded may be overtaken.
    fn check(&self, found: &[u64], context: &str) {
        let set: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(set.len(), found.len(), "{context}: a value is there twice: {found:?}");
        let lost: Vec<_> = self.acknowledged.difference(&set).collect();
        assert!(lost.is_empty(), "{context}: {lost:?} were acknowledged and are gone");
        let refused: Vec<_> = set.iter().filter(|v| !self.acknowledged.contains(v) && !self.open.contains(v)).collect();
        assert!(refused.is_empty(), "{context}: {refused:?} were refused and are there");
    }

    /// A proposal ended.
    fn ended(&mut self, value: u64, result: Result<usize, RequestError>) {
        match result {
            Ok(_) => {
                self.open.remove(&value);
                self.acknowledged.insert(value);
            }
            Err(error) if !error.may_have_applied() => {
                self.open.remove(&value);
            }
            Err(_) => {}
        }
    }
}

struct World {
    trio: Trio,
    rng: Rng,
    context: String,
    values: Values,
    lives: Vec<Life>,
    /// What hosts that are down left, by position.
    left: Vec<Option<(TempDir, Storage)>>,
    /// The newest snapshot that each host reported, in all its lives.
    newest: Vec<Index>,
    exports: u64,
    installs: u64,
}

impl World {
    fn new(seed: u64, hosts: u64) -> Self {
        let (kept, in_memory) = (1 + seed % 3, !seed.is_multiple_of(2));
        let mut trio = Trio::down(
            hosts,
            match kept {
                1 => |config| (config.snapshots_kept, config.compaction_overhead) = (1, 0),
                2 => |config| (config.snapshots_kept, config.compaction_overhead) = (2, 3),
                _ => |config| (config.snapshots_kept, config.compaction_overhead) = (3, 3),
            },
        );
        trio.in_memory = in_memory;
        for host in 0..hosts {
            let disk = SimDisk::new(seed << 8 | host, SimDiskConfig::default());
            disk.process().create_dir_all(Path::new("/data")).unwrap();
            disk.process().sync_dir(Path::new("/")).unwrap();
            trio.disks.push(disk);
        }
        trio.bootstrap();
        trio.leader();
        Self {
            trio,
            rng: Rng(seed),
            context: format!("seed {seed}, {hosts} hosts"),
            values: Values::default(),
            lives: (0..hosts).map(|_| Life::default()).collect(),
            left: (0..hosts).map(|_| None).collect(),
            newest: vec![Index::ZERO; hosts as usize],
            exports: 0,
            installs: 0,
        }
    }

    fn is_up(&self, id: u64) -> bool {
        self.trio.hosts[id as usize - 1].is_some()
    }

    /// One step of somebody, drawn.
    fn act(&mut self) {
        let id = 1 + self.rng.below(self.trio.hosts.len() as u64);
        if !self.is_up(id) {
            return match self.rng.below(12) {
                0 => self.rise(id),
                _ => self.trio.pass(1),
            };
        }
        match self.rng.below(30) {
            0..5 => self.propose(id),
            5 => self.ask(id, SnapshotOptions::default()),
            6 => {
                let kept = self.rng.below(9);
                self.ask(id, SnapshotOptions::default().with_compaction_overhead(kept));
            }
            7 => {
                let applied = self.trio.one(id).shared.published.applied.load(Ordering::Relaxed);
                let index = Index(self.rng.below(applied + 3));
                self.ask(id, SnapshotOptions::default().with_compaction_index(index));
            }
            8 => {
                self.exports += 1;
                let dir = format!("/data/exports/{}", self.exports);
                self.trio.disks[id as usize - 1].process().create_dir_all(Path::new(&dir)).unwrap();
                self.ask(id, SnapshotOptions::export_to(dir));
            }
            9 => drop(self.trio.one(id).shared.abort_snapshots()),
            10 => self.compact(id),
            11..24 => self.work(id),
            24..26 => {
                let millis = 1 + self.rng.below(30);
                self.trio.pass(millis);
            }
            26 => self.leave_behind(id),
            27..29 => self.trio.wires.open(),
            _ => self.die(id),
        }
        self.look();
        self.trio.check();
    }

    /// A host is cut off, and the others' logs go on without it.
    fn leave_behind(&mut self, id: u64) {
        let cut = HostId(id);
        self.trio.wires.filter(move |frame| (frame.to != cut && frame.from != cut).then_some(frame));
        let others: Vec<u64> = (1..=self.trio.hosts.len() as u64).filter(|&n| n != id && self.is_up(n)).collect();
        for &other in &others {
            self.trio.pass(150);
            self.propose(other);
        }
        self.trio.pass(20);
        for other in others {
            self.ask(other, SnapshotOptions::default().with_compaction_overhead(0));
        }
        self.trio.pass(5);
    }

    /// One round of one worker of a host.
    fn work(&mut self, id: u64) {
        let (kind, now) = (self.rng.below(6), self.trio.clock.now());
        let Trio { hosts, disks, .. } = &mut self.trio;
        let (one, disk) = (hosts[id as usize - 1].as_mut().unwrap(), &disks[id as usize - 1]);
        match kind {
            0 => drop(one.host.poller.run_round(now)),
            1 => drop(one.host.steps[0].run_round(now)),
            2 => drop(one.host.applies[0].run_round(now)),
            3 => write(one, Some(disk), now),
            _ => one.jobs.step_all(),
        }
    }

    fn propose(&mut self, id: u64) {
        let count = 1 + self.rng.below(9);
        let values: Vec<u64> = (self.values.next..self.values.next + count).collect();
        self.values.next += count;
        let deadline = self.trio.clock.now().plus_nanos(PATIENCE_NANOS);
        let in_memory = self.trio.in_memory;
        let shared = &self.trio.one(id).shared;
        let (each, options) = (values.iter().copied(), ProposeOptions::default());
        let parts = match in_memory {
            true => shared.enqueue::<List>(each, options, deadline),
            false => shared.enqueue::<OnDisk<Shelf>>(each, options, deadline),
        };
        let Ok(parts) = parts else { return };
        let slots = parts.into_iter().flat_map(|(c, slots)| slots.map(move |slot| Pending::new(Arc::clone(&c), slot)));
        let life = &mut self.lives[id as usize - 1];
        life.proposals.extend(values.iter().copied().zip(slots));
        self.values.open.extend(values);
    }

    fn ask(&mut self, id: u64, options: SnapshotOptions) {
        match self.trio.one(id).shared.enqueue_snapshot(options, Time(u64::MAX)) {
            Ok(pending) => self.lives[id as usize - 1].snapshots.push(pending),
            Err(error) => assert_eq!(error, RequestError::Busy, "{}", self.context),
        }
    }

    fn compact(&mut self, id: u64) {
        let deadline = self.trio.clock.now().plus_nanos(PATIENCE_NANOS);
        let asked = self.trio.one(id).shared.request(deadline, |reply| Rare::Log(LogRequest::Compact(None, reply)));
        self.lives[id as usize - 1].compactions.push(asked.unwrap());
    }

    /// What was answered meanwhile.
    fn look(&mut self) {
        for at in 0..self.lives.len() {
            let (life, context) = (&mut self.lives[at], &self.context);
            for (value, pending) in std::mem::take(&mut life.proposals) {
                match pending.wait_timeout(Duration::ZERO) {
                    Err(open) => life.proposals.push((value, open)),
                    Ok(result) => self.values.ended(value, result),
                }
            }
            for pending in std::mem::take(&mut life.snapshots) {
                match pending.wait_timeout(Duration::ZERO) {
                    Err(open) => life.snapshots.push(open),
                    Ok(Ok(SnapshotOutcome::Saved { index })) => {
                        assert!(index > self.newest[at], "{context}: {index} after {}", self.newest[at]);
                        (self.newest[at], life.saved) = (index, life.saved + 1);
                    }
                    Ok(Ok(SnapshotOutcome::Exported { index, dir })) => {
                        let disk: SharedDisk = self.trio.disks[at].process();
                        assert_eq!(verify_export(&disk, &dir).unwrap().meta.pos.index, index, "{context}");
                    }
                    Ok(Ok(_) | Err(RequestError::SnapshotAborted | RequestError::SnapshotRefused(_))) => {}
                    // A save that an install has overtaken, and requests of a replica that waits for one.
                    Ok(Err(RequestError::Busy | RequestError::Snapshot(_) | RequestError::StateLost)) => {}
                    Ok(Err(other)) => panic!("{context}: {other}"),
                }
            }
            for pending in std::mem::take(&mut life.compactions) {
                match pending.wait_timeout(Duration::ZERO) {
                    Err(open) => life.compactions.push(open),
                    Ok(Ok(done)) => {
                        let snapshot =
                            self.trio.hosts[at].as_ref().unwrap().shared.published.snapshot.load(Ordering::Relaxed);
                        assert!(
                            done.through.0 <= snapshot,
                            "{context}: {done:?}, the newest snapshot is at {snapshot}"
                        );
                    }
                    Ok(Err(_)) => {}
                }
            }
        }
    }

    /// A host dies as it is; what it was asked and did not answer is forgotten with it.
    fn die(&mut self, id: u64) {
        self.look();
        let power = self.rng.below(2) == 0;
        let at = id as usize - 1;
        self.installs += self.installed(id);
        self.left[at] = Some(self.trio.die(id, power));
        self.lives[at] = Life::default();
    }

    fn installed(&mut self, id: u64) -> u64 {
        self.trio.one(id).shared.published.counters.installed.load(Ordering::Relaxed)
    }

    /// A host that died comes back.
    fn rise(&mut self, id: u64) {
        let at = id as usize - 1;
        let (dir, storage) = self.left[at].take().unwrap();
        self.trio.start_on(id, Start::Restart, dir, storage);
        let newest = self.trio.files(id).last().copied().unwrap_or_default();
        assert!(
            newest >= self.newest[at],
            "{}: host {id} reported {}, {newest} is left",
            self.context,
            self.newest[at]
        );
    }

    /// Everything heals, comes to its end, and adds up. Returns the values that all have in the end.
    fn rest(&mut self) -> Vec<u64> {
        self.trio.wires.open();
        let hosts = self.trio.hosts.len() as u64;
        for id in 1..=hosts {
            if !self.is_up(id) {
                self.rise(id);
            }
        }
        for _ in 0..REST_MS / 100 {
            self.trio.pass(100);
            self.look();
            if self.is_quiet() {
                break;
            }
        }
        let (context, first) = (self.context.clone(), self.state(1));
        if !self.is_quiet() {
            let hosts: Vec<_> = (1..=hosts).map(|id| self.describe(id)).collect();
            panic!("{context}: something is never answered, or replicas differ for ever:\n{}", hosts.join("\n"));
        }
        self.values.check(&first, &context);
        for id in 1..=hosts {
            let at = id as usize - 1;
            let said = self.trio.one(id).shared.published.counters.saved.load(Ordering::Relaxed);
            assert_eq!(said, self.lives[at].saved, "{context}: host {id} counts others than it reported");
            let (files, start, recorded) = (self.trio.files(id), self.trio.start_index(id), self.trio.recorded(id));
            assert_eq!(files.last().copied().unwrap_or_default(), recorded, "{context}: host {id} has {files:?}");
            assert!(recorded >= self.newest[at], "{context}: host {id} reported {}", self.newest[at]);
            assert!(files.len() as u64 <= 3, "{context}: host {id} has {files:?}");
            let oldest = files.first().copied().unwrap_or_default();
            assert!(start <= oldest, "{context}: host {id} has {files:?}, and its log begins after {start}");
        }
        self.trio.check();
        first
    }

    /// Where a host stands, for whoever looks why it does.
    fn describe(&mut self, id: u64) -> String {
        let life = &self.lives[id as usize - 1];
        let open = (life.proposals.len(), life.snapshots.len(), life.compactions.len());
        let (count, files) = (self.state(id).len(), self.trio.files(id));
        let one = self.trio.one(id);
        let (shared, jobs) = (&one.shared, one.jobs.len());
        let transfers = one.host.shared.transfers.list();
        format!(
            "host {id}: {count} values, leader {:?}, {:?}, open {open:?}, files {files:?}, {jobs} jobs, {transfers:?}",
            shared.leader(),
            shared.published,
        )
    }

    fn is_quiet(&mut self) -> bool {
        let open = |l: &Life| !l.proposals.is_empty() || !l.snapshots.is_empty() || !l.compactions.is_empty();
        if self.lives.iter().any(open) {
            return false;
        }
        let first = self.state(1);
        (1..=self.trio.hosts.len() as u64).all(|id| self.state(id) == first && self.files_are_settled(id))
    }

    /// What is no longer needed goes in a job of its own.
    fn files_are_settled(&mut self, id: u64) -> bool {
        let recorded = self.trio.recorded(id);
        let files = self.trio.files(id);
        files.last().copied().unwrap_or_default() == recorded && files.len() <= 3
    }

    /// What a host's state machine holds.
    fn state(&mut self, id: u64) -> Vec<u64> {
        if !self.trio.in_memory {
            return self.trio.values(id);
        }
        let mut reads = Reads::<List>::new();
        let pending = reads.add(());
        self.trio.one(id).shared.lookup(None, Box::new(reads));
        pending.wait_timeout(Duration::ZERO).expect("answered").unwrap_or_default()
    }
}

/// Returns how many snapshots were installed.
fn run(seed: u64, hosts: u64) -> u64 {
    let mut world = World::new(seed, hosts);
    for _ in 0..STEPS {
        world.act();
    }
    let before = world.rest();
    // All of it is there when everybody lost power at once.
    for id in 1..=hosts {
        world.installs += world.installed(id);
        world.left[id as usize - 1] = Some(world.trio.die(id, true));
        world.lives[id as usize - 1] = Life::default();
    }
    assert_eq!(world.rest(), before, "{}", world.context);
    world.installs
}

fn seeds(hosts: u64, test: &str) -> u64 {
    let asked = std::env::var("LONGBOAT_SEED").ok().map(|s| s.parse().unwrap());
    let seeds = asked.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    seeds
        .map(|seed| {
            eprintln!("LONGBOAT_SEED={seed} cargo test --release -p longboat-engine --test rounds {test}");
            run(seed, hosts)
        })
        .sum()
}

#[test]
fn any_interleaving_on_one_host_ends_with_what_was_acknowledged() {
    seeds(1, "any_interleaving_on_one_host_ends_with_what_was_acknowledged");
}

#[test]
fn any_interleaving_on_three_hosts_ends_with_equal_states() {
    let installs = seeds(3, "any_interleaving_on_three_hosts_ends_with_equal_states");
    if std::env::var_os("LONGBOAT_SEED").is_none() {
        assert!(installs > SEEDS, "only {installs} installs were seen");
    }
}
