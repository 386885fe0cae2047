//! The driver: one thread runs all workers of all hosts in seeded order over simulated time, and makes the faults.
//!
//! Invariant: whatever happens is a function of the seed. Rounds take a little simulated time each, so that what they
//! cause lies after them and nothing can go on for ever at one moment.

use crate::client::{Clients, Outcomes};
use crate::clock::SimClock;
use crate::faults::FaultPlan;
use crate::host::{Role, SimHost, Surroundings};
use crate::losses::Loss;
use crate::network::{Delivery, Network};
use crate::operator::Desk;
use crate::oracle::Oracle;
use crate::rng::Rng;
use crate::sessions::Sessions;
use crate::swarm::Swarm;
use crate::timeline;
use longboat_engine::GroupShared;
use longboat_io::Clock;
use longboat_raft::{GroupId, HostId, ProposeOptions, Time};
use longboat_transport::wire;
use std::sync::Arc;

/// The longest that a round takes, in nanoseconds.
const ROUND_NANOS_MAX: u64 = 12_000;
/// After all faults healed, every group acknowledges a write within this time, in nanoseconds.
const PROGRESS_NANOS: u64 = 10_000_000_000;
/// Or within so many election timeouts, where these are long.
const PROGRESS_ELECTIONS: u64 = 25;
/// After all faults healed, all replicas are equal within this time, in nanoseconds: a snapshot transfer whose last
/// words were lost is given up by its sender after 30 s.
const CONVERGE_NANOS: u64 = 45_000_000_000;
/// After everything has come to rest, all groups are silent within this time beyond their idle time, in nanoseconds.
const SILENCE_NANOS: u64 = 20_000_000_000;
/// Time between the writes that look for progress, in nanoseconds.
const PROBE_NANOS: u64 = 200_000_000;

/// How long some clients wait for a write, in nanoseconds: longer than a world has left. When all has come to rest their writes have
/// ended, too: what is lost must be found out, and not only given up.
const PATIENT_NANOS: u64 = 600_000_000_000;
/// One in so many clients.
const PATIENT_SHARE: u64 = 4;

/// Makes another generator of a seed, for clients in sessions: worlds without them are as if there were none anywhere.
const SESSIONS: u64 = 0x5E55_1075;
/// The same for state machines with storage of their own.
const MACHINES: u64 = 0x0D15_C0DE;
/// The same for clocks, schedulers and links.
const SURROUNDINGS: u64 = 0xC10C_0A7E;
/// The same for long lives, and for larger worlds.
const LENGTH: u64 = 0x0A6E_5EED;
/// The same for hosts that lose what they have.
const LOSSES: u64 = 0x105E_D15C;

/// Counts of one simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rounds of workers and steps of jobs.
    pub steps: u64,
    /// Faults made.
    pub faults: u64,
    /// Frames lost.
    pub frames_lost: u64,
    /// Frames that arrived twice.
    pub frames_doubled: u64,
    /// What clients learnt.
    pub outcomes: Outcomes,
    /// The most journal segments that a host had archived.
    pub archived: u64,
    /// Simulated time, in nanoseconds.
    pub nanos: u64,
}

/// What is shown while a world lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Whether anything is.
    pub on: bool,
    /// The group whose messages are.
    pub group: Option<GroupId>,
}

/// A simulated world.
pub struct World {
    /// What all hosts share.
    pub around: Surroundings,
    /// The hosts, number 1 first.
    pub hosts: Vec<SimHost>,
    /// The clients.
    pub clients: Clients,
    pub(crate) plan: FaultPlan,
    pub(crate) desk: Desk,
    pub(crate) loss: Option<Loss>,
    schedule: Rng,
    requests: Rng,
    next_request: Time,
    /// Whether clients ask for anything.
    pub busy: bool,
    started: Time,
    steps: u64,
    runnable: Vec<(usize, Role)>,
    roles: Vec<Role>,
    trace: Trace,
}

impl World {
    /// What a seed draws: the generator that goes on, and the world. `attended`: with operators.
    pub fn drawn(seed: u64, attended: bool) -> (Rng, Swarm) {
        Self::drawn_with(seed, attended, Some(Rng::new(seed.rotate_left(48) ^ LENGTH)))
    }

    /// As [`World::drawn`], of the kind that worlds were at first.
    pub fn drawn_narrow(seed: u64, attended: bool) -> (Rng, Swarm) {
        Self::drawn_with(seed, attended, None)
    }

    fn drawn_with(seed: u64, attended: bool, mut breadth: Option<Rng>) -> (Rng, Swarm) {
        let mut rng = Rng::new(seed);
        let mut swarm = Swarm::draw(&mut rng);
        if let Some(breadth) = &mut breadth {
            swarm.draw_size(breadth);
        }
        swarm.draw_surroundings(&mut Rng::new(seed.rotate_left(24) ^ SURROUNDINGS));
        if attended {
            // A generator of its own: worlds without operators are as if there were none anywhere.
            swarm.draw_operations(&mut Rng::new(!seed));
            swarm.draw_room(&mut Rng::new(!seed.rotate_left(17)));
            swarm.draw_losses(&mut Rng::new(seed.rotate_left(8) ^ LOSSES));
        }
        if let Some(breadth) = &mut breadth {
            swarm.draw_length(breadth);
            swarm.draw_kept_snapshots(breadth);
        }
        swarm.draw_machines(&mut Rng::new(seed.rotate_left(40) ^ MACHINES));
        if let Some(breadth) = &mut breadth {
            swarm.draw_views(breadth);
            swarm.draw_import(breadth);
            swarm.draw_memory(breadth);
        }
        swarm.sessions = seed.rotate_left(32) ^ SESSIONS;
        (rng, swarm)
    }

    /// The world of a seed.
    pub fn new(seed: u64, trace: Trace) -> Self {
        let (rng, swarm) = Self::drawn(seed, true);
        Self::with(rng, swarm, trace)
    }

    /// The world of a seed as it is if nobody changes members, moves leaders, or stops replicas.
    pub fn unattended(seed: u64, trace: Trace) -> Self {
        let (rng, swarm) = Self::drawn(seed, false);
        Self::with(rng, swarm, trace)
    }

    /// A world with these settings.
    pub fn with(mut rng: Rng, swarm: Swarm, trace: Trace) -> Self {
        let (clock, oracle) = (SimClock::new(), Arc::new(Oracle::default()));
        let network = Network::new(rng.fork(), swarm.network, Arc::clone(&clock), Arc::clone(&oracle));
        for (group, _) in &swarm.groups {
            oracle.group(*group, swarm.first_members(*group));
        }
        let mut operators = rng.clone();
        let operated = swarm.operations.is_on();
        let sessions = {
            // What is on a disk has no sessions.
            let groups = swarm.groups.iter().map(|g| g.0).filter(|g| !swarm.on_disk.contains_key(g));
            Sessions::draw(swarm.sessions, groups)
        };
        let around = Surroundings { swarm: Arc::new(swarm), clock, network, oracle };
        let hosts = (1..=around.swarm.hosts).map(|id| SimHost::new(HostId(id), rng.next(), around.clone())).collect();
        let started = around.clock.now();
        let plan = FaultPlan::new(rng.fork(), &around.swarm, started);
        let mut world = Self {
            clients: Clients::new(Arc::clone(&around.oracle), sessions),
            around,
            hosts,
            plan,
            desk: Desk::new(operators.fork(), operated, started),
            loss: None,
            schedule: rng.fork(),
            requests: rng.fork(),
            next_request: started,
            busy: true,
            started,
            steps: 0,
            runnable: Vec::new(),
            roles: Vec::new(),
            trace,
        };
        world.say(|w| format!("{:?}", w.around.swarm));
        world
    }

    /// The current moment.
    pub fn now(&self) -> Time {
        self.around.clock.now()
    }

    /// What a host takes for the current moment.
    pub fn now_at(&self, host: HostId) -> Time {
        self.hosts[host.0 as usize - 1].clock.now()
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        let (frames_lost, frames_doubled) = self.around.network.losses();
        Counts {
            steps: self.steps,
            faults: self.plan.made(),
            frames_lost,
            frames_doubled,
            outcomes: self.clients.outcomes,
            archived: self.around.oracle.archived_max(),
            nanos: self.now().nanos_since(self.started),
        }
    }

    /// Writes a line of the timeline.
    pub(crate) fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.on {
            println!("{:>12.6} {}", self.now().nanos_since(self.started) as f64 / 1e9, line(self));
        }
    }

    fn say_messages(&mut self, delivery: &Delivery, group: GroupId) {
        for incoming in wire::messages(delivery.frame.clone()).flatten().filter(|m| m.group == group) {
            let (from, to, message) = (delivery.from, delivery.to, incoming.message);
            self.say(|_| format!("{from} -> {to} in term {}: {:?}", message.term, message.body));
        }
    }

    /// Lets the world go on until `until`, or until `stop` says so after a step. Returns whether it did.
    pub fn run_until(&mut self, until: Time, mut stop: impl FnMut(&Self) -> bool) -> bool {
        while self.now() < until && !self.around.oracle.is_violated() {
            self.turn(until);
            if stop(self) {
                return true;
            }
        }
        false
    }

    /// Nothing happens any more: its hosts let go of what they had. Returns how many lives of hosts there were, and how many of
    /// them are still held by something.
    pub fn end(mut self) -> (usize, usize) {
        let lived: Vec<_> = self.hosts.iter_mut().flat_map(SimHost::end).collect();
        drop(self);
        (lived.len(), lived.iter().filter(|host| host.strong_count() > 0).count())
    }

    /// Faults first, then healing, then progress: the life of a seed.
    pub fn live(&mut self) {
        let healing = self.started.plus_nanos(self.around.swarm.fault_nanos);
        self.run_until(healing, |_| false);
        self.heal();
        self.converge();
    }

    /// Ends all faults.
    pub fn heal(&mut self) {
        self.say(|_| "-- all faults heal --".to_owned());
        self.plan.end();
        self.around.network.mend();
        self.around.network.set_faults(self.around.swarm.healed_network());
        let now = self.now();
        for host in &mut self.hosts {
            host.clear_faults();
            host.make_room();
            host.restart_at = host.restart_at.map(|_| now);
        }
        self.busy = false;
        self.desk.settling = Some(now);
        self.clients.expect_progress();
    }

    /// Checks that every group makes progress and that all replicas come to the same state; and, where groups fall silent, that all
    /// of them do, and wake again.
    pub fn converge(&mut self) {
        let healed = self.now();
        self.progress();
        self.come_to_settle(self.now());
        self.come_to_rest(self.now().max(healed));
        if self.around.swarm.quiesce_after_nanos > 0 {
            self.fall_silent();
            self.clients.expect_progress();
            let woken = self.now();
            self.progress();
            self.come_to_rest(woken);
        }
        if self.around.swarm.imports && !self.around.oracle.is_violated() {
            self.import_one();
        }
    }

    /// Every group acknowledges a write.
    pub(crate) fn progress(&mut self) {
        let groups = self.around.swarm.groups.clone();
        let (healed, mut probe) = (self.now(), self.now());
        // Where members change, the one that makes up the majority may have to be sent a snapshot first.
        let operated = self.around.swarm.operations.is_on();
        let elections = PROGRESS_ELECTIONS * self.around.swarm.election_timeout_nanos;
        let progress_by = healed.plus_nanos(if operated { CONVERGE_NANOS } else { PROGRESS_NANOS.max(elections) });
        while self.now() < progress_by && !self.around.oracle.is_violated() {
            let waiting: Vec<_> = groups.iter().filter(|g| !self.clients.has_progressed(g.0)).collect();
            if waiting.is_empty() {
                break;
            }
            for (group, _) in waiting {
                let hosts = self.hosts_of(*group);
                let host = *self.requests.pick(&hosts);
                self.probe(*group, host);
            }
            probe = probe.plus_nanos(PROBE_NANOS);
            self.run_until(probe, |_| false);
        }
        for (group, _) in &groups {
            if !self.clients.has_progressed(*group) && !self.around.oracle.is_violated() {
                let what = self.describe(*group);
                self.around.oracle.violate(format!("group {group}: no progress after all faults healed: {what}"));
            }
        }
    }

    /// No membership change is under way, and nothing is left of replicas that are no members.
    fn come_to_settle(&mut self, healed: Time) {
        if !self.around.swarm.operations.is_on() {
            return;
        }
        let by = healed.plus_nanos(CONVERGE_NANOS);
        let mut look = self.now();
        let settled = self.run_until(by, |w| {
            if w.now() < look {
                return false;
            }
            look = w.now().plus_nanos(PROBE_NANOS / 4);
            w.clients.open() == 0 && w.unsettled().is_none()
        });
        if !settled && !self.around.oracle.is_violated() {
            let what = self.unsettled().unwrap_or_else(|| self.clients.describe());
            let groups = self.around.swarm.groups.clone();
            let groups: Vec<String> = groups.iter().map(|g| format!("group {}: {}", g.0, self.describe(g.0))).collect();
            self.around
                .oracle
                .violate(format!("members do not settle after all faults healed: {what}; {}", groups.join("; ")));
        }
    }

    /// All replicas come to the same state.
    pub(crate) fn come_to_rest(&mut self, healed: Time) {
        let groups = self.around.swarm.groups.clone();
        let by = healed.plus_nanos(CONVERGE_NANOS);
        let mut look = self.now();
        let converged = self.run_until(by, |w| {
            if w.now() < look {
                return false;
            }
            look = w.now().plus_nanos(PROBE_NANOS / 4);
            w.clients.open() == 0 && w.differing().is_none()
        });
        if converged {
            self.compare();
        } else if !self.around.oracle.is_violated() {
            let groups: Vec<String> = groups.iter().map(|g| format!("group {}: {}", g.0, self.describe(g.0))).collect();
            let open = || format!("requests are open for ever: {}; {}", self.clients.describe(), groups.join("; "));
            let what = self.differing().unwrap_or_else(open);
            self.around.oracle.violate(format!("no convergence after all faults healed: {what}"));
        }
    }

    /// Every replica falls silent.
    fn fall_silent(&mut self) {
        self.say(|_| "-- all groups are to fall silent --".to_owned());
        let by = self.now().plus_nanos(SILENCE_NANOS + self.around.swarm.quiesce_after_nanos);
        let mut look = self.now();
        let silent = self.run_until(by, |w| {
            if w.now() < look {
                return false;
            }
            look = w.now().plus_nanos(PROBE_NANOS / 4);
            w.awake().is_none()
        });
        if let Some((group, host)) = self.awake().filter(|_| !silent && !self.around.oracle.is_violated()) {
            let what = self.describe(group);
            self.around.oracle.violate(format!("group {group} does not fall silent on host {host}: {what}"));
        }
    }

    /// A replica that is awake.
    pub fn awake(&self) -> Option<(GroupId, HostId)> {
        self.hosts.iter().find_map(|h| Some((h.life.as_ref()?.awake()?, h.id)))
    }

    fn probe(&mut self, group: GroupId, host: HostId) {
        let deadline = self.now_at(host).plus_nanos(5 * PROBE_NANOS);
        if let Some(shared) = self.replica(host, group).filter(|s| !s.witness) {
            self.clients.write(host, &shared, 0, deadline);
        }
    }

    /// The replica of a group on a host, if its process runs.
    pub fn replica(&self, host: HostId, group: GroupId) -> Option<Arc<GroupShared>> {
        self.hosts[host.0 as usize - 1].life.as_ref()?.groups.get(&group).cloned()
    }

    /// The first replica that has not applied all that others have.
    fn differing(&self) -> Option<String> {
        for (group, _) in &self.around.swarm.groups {
            let hosts = &self.hosts_of(*group);
            let last = self.around.oracle.last_applied(*group);
            for host in hosts {
                let Some(shared) = self.replica(*host, *group) else { return Some(format!("host {host} is down")) };
                let applied = shared.published.applied.load(std::sync::atomic::Ordering::Relaxed);
                if applied != last.0 {
                    return Some(format!("group {group} on host {host} has applied {applied} of {last}"));
                }
            }
        }
        None
    }

    /// What each replica of a group is like.
    pub(crate) fn describe(&self, group: GroupId) -> String {
        let lives = self.hosts.iter().filter_map(|h| h.life.as_ref());
        let replicas: Vec<String> = lives.filter_map(|l| l.describe(group)).collect();
        replicas.join(", ")
    }

    fn compare(&self) {
        for (group, _) in &self.around.swarm.groups {
            for host in &self.hosts_of(*group) {
                if let Some(shared) = self.replica(*host, *group).filter(|s| !s.witness) {
                    let state = shared.machine.lock().state_hash();
                    self.around.oracle.at_rest(*host, *group, self.around.oracle.last_applied(*group), state);
                }
            }
        }
    }

    /// One step: a round of some worker, or time passes.
    fn turn(&mut self, until: Time) {
        self.due();
        let now = self.now();
        if self.trace.on {
            timeline::set_now(Time(now.nanos_since(self.started)));
        }
        self.runnable.clear();
        for (at, host) in self.hosts.iter_mut().enumerate() {
            if let Some(life) = &mut host.life {
                self.roles.clear();
                life.runnable(now, self.around.swarm.job_step_nanos, &mut self.roles);
                self.runnable.extend(self.roles.iter().map(|role| (at, *role)));
            }
        }
        if self.runnable.is_empty() {
            let next = self.next().max(now.plus_nanos(1)).min(until);
            self.around.clock.advance_to(next);
            return;
        }
        let (at, role) = *self.schedule.pick(&self.runnable);
        let host = &mut self.hosts[at];
        let life = host.life.as_mut().expect("its worker can run");
        life.run(role, now, &self.around, host.id);
        self.steps += 1;
        self.around.clock.advance_to(now.plus_nanos(1 + self.schedule.below(ROUND_NANOS_MAX)));
        self.after_round(at);
    }

    fn after_round(&mut self, at: usize) {
        self.clients.collect();
        let host = &mut self.hosts[at];
        if let Some(complaint) = host.complaint() {
            self.around.oracle.violate(complaint);
        }
        if host.has_failed() && !host.is_failing {
            let id = host.id;
            self.say(|_| format!("host {id}: its log store failed"));
            if self.around.swarm.operations.is_on() {
                // Whoever runs it may take a while to see that.
                self.hosts[at].is_failing = true;
                self.plan.stop_later(id, self.around.clock.now());
            } else {
                let after = self.plan.downtime_nanos();
                self.stop(id, false, after);
            }
        }
    }

    /// Stops a host's process; it starts again after `nanos`.
    pub fn stop(&mut self, id: HostId, power: bool, nanos: u64) {
        let restart_at = self.now().plus_nanos(nanos);
        self.say(|_| format!("host {id}: {}", if power { "power loss" } else { "killed" }));
        self.hosts[id.0 as usize - 1].stop(power, restart_at);
        self.clients.forget(id);
    }

    /// When something happens that no worker does.
    fn next(&self) -> Time {
        let mut next = self.plan.next().min(self.desk.next);
        if self.busy {
            next = next.min(self.next_request);
        }
        let lives = self.hosts.iter().filter_map(|h| match &h.life {
            Some(life) => life.next(),
            None => h.restart_at,
        });
        lives.chain(self.around.network.next()).fold(next, Time::min)
    }

    /// Does what is due: deliveries, restarts, faults, requests.
    fn due(&mut self) {
        let now = self.now();
        for delivery in self.around.network.deliver(now) {
            if let Some(group) = self.trace.group {
                self.say_messages(&delivery, group);
            }
            if let Some(life) = &mut self.hosts[delivery.to.0 as usize - 1].life {
                life.arrived();
            }
        }
        for at in 0..self.hosts.len() {
            let host = &mut self.hosts[at];
            if host.life.is_none() && host.restart_at.is_some_and(|t| t <= now) {
                host.start();
                let id = host.id;
                self.say(|_| format!("host {id}: started"));
            }
        }
        if self.plan.next() <= now {
            self.make_faults(now);
        }
        if self.desk.next <= now {
            self.operate(now);
        }
        if self.busy && self.next_request <= now {
            let every = self.around.swarm.request_every_nanos;
            self.next_request = now.plus_nanos(1 + self.requests.below(2 * every));
            self.request();
        }
    }

    /// A client that works in a session does something, through some replica of its group.
    fn session_request(&mut self) {
        let (at, act) = self.clients.sessions.next();
        let group = self.clients.sessions.clients[at].group;
        let hosts = self.hosts_of(group);
        let swarm = &self.around.swarm;
        let rng = &mut self.clients.sessions.rng;
        let host = *rng.pick(&hosts);
        let by = swarm.timeout_nanos / 2 + rng.below(swarm.timeout_nanos);
        let by = self.hosts[host.0 as usize - 1].clock.now().plus_nanos(by);
        let padding = rng.below(swarm.padding_max as u64 + 1) as usize;
        if let Some(shared) = self.replica(host, group).filter(|s| !s.witness) {
            self.clients.act(host, &shared, at, act, padding, by);
        }
    }

    /// A client asks some replica of some group for something.
    fn request(&mut self) {
        let sessions = &mut self.clients.sessions;
        if sessions.permille > 0 && sessions.rng.chance(sessions.permille) {
            return self.session_request();
        }
        let swarm = Arc::clone(&self.around.swarm);
        let (group, _) = self.requests.pick(&swarm.groups);
        let hosts = self.hosts_of(*group);
        let host = *self.requests.pick(&hosts);
        let Some(shared) = self.replica(host, *group).filter(|s| !s.witness) else { return };
        let here = self.now_at(host);
        let more = self.requests.below(swarm.timeout_nanos);
        let deadline = here.plus_nanos(swarm.timeout_nanos / 2 + more);
        if self.requests.chance(swarm.snapshot_permille) {
            return self.clients.snapshot(host, &shared, deadline);
        }
        if swarm.operations.index_read_permille > 0 && self.desk.rng.chance(swarm.operations.index_read_permille) {
            return self.clients.read_index(host, &shared, deadline);
        }
        if self.requests.chance(swarm.read_permille) {
            return self.clients.read(host, &shared, deadline);
        }
        let deadline = if more.is_multiple_of(PATIENT_SHARE) { here.plus_nanos(PATIENT_NANOS) } else { deadline };
        let large = self.requests.chance(swarm.large.0);
        let count = if large { self.requests.between(2, 3) } else { self.requests.magnitude(1, 12) };
        for _ in 0..count {
            let padding =
                if large { swarm.large.1 } else { self.requests.below(swarm.padding_max as u64 + 1) as usize };
            let options = self.options(&shared);
            self.clients.write_with(host, &shared, padding, options, deadline);
        }
    }

    /// How a write is to be proposed.
    fn options(&mut self, shared: &GroupShared) -> ProposeOptions {
        let (permille, rng) = (self.around.swarm.operations.options_permille, &mut self.desk.rng);
        if permille == 0 || !rng.chance(permille) {
            return ProposeOptions::default();
        }
        let term = shared.leader().map(|l| l.0).filter(|_| rng.chance(600));
        ProposeOptions { forward: rng.chance(400), expected_term: term }
    }
}
