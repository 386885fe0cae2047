//! Random schedules of all that changes a group: witnesses, promotions, replacements, transfers, preferred replicas, full
//! hosts, replicas that are removed and deleted once they are told, and replicas that lose a part of what they had.
//!
//! A failure names its seed: `LONGBOAT_SEED=n cargo test --release -p longboat-raft --test scenarios storm` plays it again.
//! `LONGBOAT_SEEDS=n` plays the first n.

use crate::cluster::*;
use crate::random::Promises;
use longboat_raft::*;

struct Lots(u64);

impl Lots {
    fn draw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.draw(of.len() as u64) as usize]
    }
}

/// What may happen besides the usual.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    Changes,
    Losses,
}

struct Storm {
    c: Cluster,
    lots: Lots,
    weather: Weather,
    next_id: u64,
    promises: Promises,
}

impl Storm {
    fn new(seed: u64, weather: Weather) -> Self {
        let mut lots = Lots(seed.wrapping_mul(0xD1B5_4A32_D192_ED03) | 1);
        let flags = lots.draw(8);
        let members: Vec<u64> = (1..=lots.pick(&[3, 3, 5])).collect();
        let preferred = (lots.draw(2) == 0).then(|| id(lots.pick(&members)));
        let mut c = Cluster::with(&members, |config| {
            config.seed = seed ^ config.replica.0;
            (config.pre_vote, config.check_quorum) = (flags & 1 != 0, flags & 2 != 0);
            (config.step_down_on_removal, config.see_off_removed) = (true, true);
            config.preferred = preferred;
            config.inflight_appends_max = 4;
            config.append_bytes_max = 200;
            (config.peer_round_bytes_max, config.round_bytes_max) = (300, 700);
            config.log_cache_bytes_max = 400;
        });
        c.auto_snapshots = true;
        Self { c, lots, weather, next_id: 100, promises: Promises::default() }
    }

    fn joining(&mut self, witness: bool) -> ReplicaId {
        let joins = self.next_id;
        self.next_id += 1;
        let first = self.c.configs.values().next().expect("somebody is there").clone();
        self.c.add(CoreConfig { replica: id(joins), seed: joins, witness, ..first }, Disk::default());
        id(joins)
    }

    fn change(&mut self) {
        let Some(leader) = self.c.leaders().first().copied() else {
            return;
        };
        let members: Vec<ReplicaId> = self.c.core(leader).membership().replicas().collect();
        let room = members.len() < 6;
        let one = self.lots.pick(&members);
        let change = match self.lots.draw(8) {
            0 | 1 if members.len() > 2 => ConfigChange::remove(one),
            2 if room => ConfigChange::add_witness(self.joining(true), Member::default()),
            3 | 4 if room => {
                let mut add = ConfigChange::add_learner(self.joining(false), Member::default());
                add.changes[0].promotion = Promotion::WhenCaughtUp;
                add
            }
            5 | 6 if room => ConfigChange::replace(one, self.joining(false), Member::default()),
            7 if room => {
                let mut both = ConfigChange::add_voter(self.joining(false), Member::default());
                both.changes.extend(ConfigChange::remove(one).changes);
                both
            }
            // A witness stays one, whoever asks for something else.
            _ => ConfigChange::add_voter(one, Member::default()),
        };
        drop(self.c.change(leader, change));
        self.c.end_round(leader);
    }

    /// A replica begins again without a snapshot that it could read, or without the end of its log.
    fn lose(&mut self, n: u64) {
        if self.c.nodes.values().any(|node| node.disk.guard != Guard::None) {
            return;
        }
        let needs_snapshot = self.lots.draw(2) == 0;
        let disk = &mut self.c.node(n).disk;
        if needs_snapshot {
            disk.guard = Guard::NeedsSnapshot;
        } else {
            disk.guard = Guard::LostLog { through: disk.last().index };
            disk.runs.pop();
        }
        self.c.restart_slow(n);
    }

    fn step(&mut self) {
        let ids: Vec<u64> = self.c.nodes.keys().copied().collect();
        let (n, other) = (self.lots.pick(&ids), id(self.lots.pick(&ids)));
        let now = self.c.now;
        match self.lots.draw(100) {
            0..60 if !self.c.net.is_empty() => self.deliver(),
            60..72 => {
                self.c.now = now.plus_nanos(HEARTBEAT / 2);
                let now = self.c.now;
                self.c.core(n).advance(now);
            }
            72..84 => _ = self.c.complete(n),
            84..90 => _ = self.c.propose(n, &[&format!("{}", self.lots.0)]),
            90 => self.c.node(n).slow_disk = self.lots.draw(2) == 0,
            91 => self.c.restart_slow(n),
            92 => self.c.compact(n),
            93 => _ = self.c.core(n).transfer_leader(now, other),
            94 => {
                let ok = self.lots.draw(2) == 0;
                self.c.core(n).snapshot_finished(other, ok);
            }
            95 if self.weather == Weather::Changes => self.change(),
            95 if self.lots.draw(4) == 0 => self.lose(n),
            96 => {
                let full = self.lots.draw(2) == 0;
                self.c.core(n).set_overloaded(now, full);
            }
            97 => {
                self.c.core(n).forget_leader();
                self.c.core(n).campaign(now);
            }
            98 => self.c.core(n).trim(),
            _ => self.c.serve_fetches(n),
        }
        if self.c.nodes.contains_key(&n) {
            self.c.end_round(n);
        }
        self.delete_the_told();
        self.promises.check(&mut self.c);
    }

    fn deliver(&mut self) {
        // Mostly in order, sometimes not; now and then lost or repeated.
        let len = self.c.net.len() as u64;
        let at = if self.lots.draw(4) == 0 { self.lots.draw(len) as usize } else { 0 };
        let m = self.c.net.remove(at).expect("in range");
        match self.lots.draw(20) {
            0 => {}
            1 => {
                self.c.net.push_back(m.clone());
                self.c.give(m);
            }
            _ => self.c.give(m),
        }
    }

    /// Whoever was told that it will never be needed again is deleted at once.
    fn delete_the_told(&mut self) {
        let told = |node: &Node| node.events.iter().any(|e| matches!(e, Event::Removed { .. }));
        self.c.nodes.retain(|_, node| !told(node));
    }

    fn after(&mut self) {
        for n in self.c.nodes.keys().copied().collect::<Vec<_>>() {
            self.c.node(n).slow_disk = false;
            let now = self.c.now;
            self.c.core(n).set_overloaded(now, false);
            self.c.complete_all(n);
        }
        let mut done = 0;
        // What was lost is made up for by a snapshot that covers it: the group must come that far.
        for _ in 0..3000 {
            self.c.pass(ELECTION / 2);
            self.delete_the_told();
            for n in self.c.nodes.keys().copied().collect::<Vec<_>>() {
                for other in self.c.nodes.keys().copied().collect::<Vec<_>>() {
                    if let Some(ProgressState::Snapshot { .. }) =
                        self.c.core(n).progress(id(other)).map(Progress::state)
                    {
                        self.c.core(n).snapshot_finished(id(other), false);
                    }
                }
                self.c.serve_fetches(n);
            }
            self.promises.check(&mut self.c);
            done += usize::from(self.writes());
            let whole = self.c.nodes.values().all(|node| node.core.guard() == Guard::None);
            if done >= 40 && whole && self.is_at_rest() {
                return;
            }
        }
        let state = |n: &Node| {
            let core = &n.core;
            let at = (core.role(), core.term(), core.last(), core.commit(), core.handed());
            format!("{}: {at:?} {:?} {:?}", core.replica(), core.guard(), core.membership())
        };
        let states: Vec<String> = self.c.nodes.values().map(state).collect();
        panic!("no rest after faults have ended, {done} writes:\n{}", states.join("\n"));
    }

    fn leader(&self) -> Option<u64> {
        let leads = self.c.nodes.values().filter(|n| n.core.role() == Role::Leader);
        leads.max_by_key(|n| n.core.term()).map(|n| n.core.replica().0)
    }

    /// Whether a write comes through.
    fn writes(&mut self) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let before = self.c.node(leader).applied.len();
        let taken = self.c.propose(leader, &["after the storm"]).is_ok();
        self.c.settle();
        if !self.c.nodes.contains_key(&leader) {
            return false;
        }
        self.c.serve_fetches(leader);
        self.c.settle();
        taken && self.c.nodes.get(&leader).is_some_and(|n| n.applied.len() > before)
    }

    /// Whether all that was asked of the group came to its end.
    fn is_at_rest(&mut self) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let membership = self.c.core(leader).membership().clone();
        // One that knows nobody of the group as it is can ask nobody.
        let knows = |r: &ReplicaId| {
            let known = self.c.nodes.get(&r.0).map(|n| n.core.membership());
            known.is_some_and(|known| known.all_voters().any(|v| membership.is_voter(v)))
        };
        let told = !membership.removed.iter().any(knows);
        let promoted = membership.promotions.is_empty() && !membership.is_joint();
        let preferred = self.c.configs[&leader].preferred;
        let able = preferred.filter(|p| membership.voters.contains(p) && !membership.is_witness(*p));
        let preferred = able.is_none_or(|p| p == id(leader));
        told && promoted && preferred
    }
}

fn play(seed: u64, weather: Weather) {
    let mut storm = Storm::new(seed, weather);
    for _ in 0..3000 {
        storm.step();
    }
    storm.after();
}

fn seeds(count: u64, weather: Weather) {
    let number = |name| -> Option<u64> { std::env::var(name).ok().map(|s| s.parse().unwrap()) };
    let count = number("LONGBOAT_SEEDS").unwrap_or(count);
    for seed in number("LONGBOAT_SEED").map_or(1..count + 1, |s| s..s + 1) {
        if let Err(panic) = std::panic::catch_unwind(|| play(seed, weather)) {
            eprintln!(
                "seed {seed} failed: LONGBOAT_SEED={seed} cargo test --release -p longboat-raft --test scenarios storm"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn promises_hold_while_members_of_all_kinds_come_and_go() {
    seeds(150, Weather::Changes);
}

#[test]
fn promises_hold_while_replicas_lose_parts_of_what_they_had() {
    seeds(150, Weather::Losses);
}
