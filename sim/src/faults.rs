//! Which faults are made, when, and how they end.

use crate::rng::Rng;
use crate::swarm::{FaultKind, Swarm};
use crate::world::World;
use longboat_raft::{GroupId, HostId, Time, sometimes};
use std::sync::Arc;

const MILLI: u64 = 1_000_000;

/// What is done later: the second half of a fault, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    Mend { from: HostId, to: HostId },
    Hasten { from: HostId, to: HostId },
    PowerLoss { host: HostId },
    Room { host: HostId },
    Stop { host: HostId },
    PutBack { host: HostId },
    GiveUp { host: HostId },
}

/// The faults of one simulation.
#[derive(Clone, Debug)]
pub(crate) struct FaultPlan {
    rng: Rng,
    every_nanos: u64,
    lasts_nanos: u64,
    kinds: Vec<FaultKind>,
    next: Time,
    ends: Time,
    later: Vec<(Time, Later)>,
    made: u64,
}

const NEVER: Time = Time(u64::MAX);

impl FaultPlan {
    pub(crate) fn new(mut rng: Rng, swarm: &Swarm, now: Time) -> Self {
        let next = if swarm.faults.is_empty() { NEVER } else { now.plus_nanos(rng.below(2 * swarm.fault_every_nanos)) };
        Self {
            rng,
            every_nanos: swarm.fault_every_nanos,
            lasts_nanos: swarm.fault_lasts_nanos,
            kinds: swarm.faults.clone(),
            next,
            ends: now.plus_nanos(swarm.fault_nanos),
            later: Vec::new(),
            made: 0,
        }
    }

    /// When the next thing is due.
    pub(crate) fn next(&self) -> Time {
        self.later.iter().map(|l| l.0).fold(self.next, Time::min)
    }

    /// Faults made so far.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// No more faults.
    pub(crate) fn end(&mut self) {
        self.next = NEVER;
        // Whose store failed is yet to be started again.
        self.later.retain(|(_, what)| matches!(what, Later::Stop { .. }));
    }

    /// How long a process stays down, in nanoseconds.
    pub(crate) fn downtime_nanos(&mut self) -> u64 {
        self.rng.magnitude(20, 1500) * MILLI
    }

    /// The process is stopped within some milliseconds.
    pub(crate) fn stop_later(&mut self, host: HostId, now: Time) {
        let after = self.rng.magnitude(1, 50) * MILLI;
        self.later.push((now.plus_nanos(after), Later::Stop { host }));
    }

    pub(crate) fn rng_mut(&mut self) -> &mut Rng {
        &mut self.rng
    }

    fn duration_nanos(&mut self) -> u64 {
        self.rng.magnitude(30 * MILLI, self.lasts_nanos.max(31 * MILLI))
    }
}

impl World {
    /// Does what is due of the plan.
    pub(crate) fn make_faults(&mut self, now: Time) {
        let (due, later) = std::mem::take(&mut self.plan.later).into_iter().partition(|l| l.0 <= now);
        self.plan.later = later;
        for (_, what) in due {
            match what {
                Later::Mend { from, to } => self.around.network.set_cut(from, to, false),
                Later::Hasten { from, to } => self.around.network.set_bandwidth(from, to, 0),
                Later::PowerLoss { host } => self.power_loss(host),
                Later::Stop { host } => self.kill(host),
                Later::PutBack { host } => self.put_back(host),
                Later::GiveUp { host } => self.lose(host),
                Later::Room { host } => self.hosts[host.0 as usize - 1].make_room(),
            }
        }
        if self.plan.next <= now {
            self.plan.next = now.plus_nanos(1 + self.plan.rng.below(2 * self.plan.every_nanos));
            let kind = *self.plan.rng.pick(&self.plan.kinds);
            self.plan.made += 1;
            self.fault(kind, now);
        }
    }

    fn any_host(&mut self) -> HostId {
        HostId(1 + self.plan.rng.below(self.hosts.len() as u64))
    }

    /// The host of some group's leader, as far as anybody knows; else any host.
    fn leading_host(&mut self) -> HostId {
        let swarm = Arc::clone(&self.around.swarm);
        let (group, _) = self.plan.rng.pick(&swarm.groups);
        let group = *group;
        let hosts = self.hosts_of(group);
        let leads = |host: &&HostId| self.leads(**host, group);
        let leader = hosts.iter().find(leads).copied();
        leader.unwrap_or_else(|| self.any_host())
    }

    pub(crate) fn leads(&self, host: HostId, group: GroupId) -> bool {
        let leader = self.replica(host, group).and_then(|r| r.leader());
        let here = self.replica(host, group).map(|r| r.replica);
        leader.is_some_and(|l| Some(l.1) == here)
    }

    fn fault(&mut self, kind: FaultKind, now: Time) {
        let (host, lasts) = (self.any_host(), self.plan.duration_nanos());
        match kind {
            FaultKind::Cut => {
                let to = self.any_host();
                self.cut(host, to, now.plus_nanos(lasts));
            }
            FaultKind::Partition => self.partition(now.plus_nanos(lasts)),
            FaultKind::IsolateLeader => {
                let host = self.leading_host();
                self.isolate(host, now.plus_nanos(lasts));
            }
            FaultKind::Kill => self.kill(host),
            FaultKind::PowerLoss => self.power_loss(host),
            FaultKind::KillThenPowerLoss => {
                self.kill(host);
                self.power_loss_soon(host, now);
            }
            FaultKind::Blackout => (1..=self.hosts.len() as u64).for_each(|id| self.power_loss(HostId(id))),
            FaultKind::FailedSync => self.fail_sync(host),
            FaultKind::FailedSyncThenPowerLoss => {
                self.fail_sync(host);
                self.power_loss_soon(host, now);
            }
            FaultKind::Stall => self.stall(host, now.plus_nanos(lasts)),
            FaultKind::StallLeader => {
                let host = self.leading_host();
                self.stall(host, now.plus_nanos(lasts));
                let cut = lasts / 2 + self.plan.rng.below(lasts / 2 + 1);
                self.isolate(host, now.plus_nanos(cut));
            }
            FaultKind::LittleRoom => {
                let percent = self.plan.rng.between(20, 120);
                self.fill_disk(host, percent, now.plus_nanos(lasts));
            }
            FaultKind::NoRoom => self.fill_disk(host, 0, now.plus_nanos(lasts)),
            FaultKind::Wipe => self.wipe(host),
            FaultKind::PutBack => {
                if let Some(at) = self.copy_directory(host, now) {
                    self.plan.later.push((at, Later::PutBack { host }));
                }
            }
            FaultKind::Rot => {
                if let Some(at) = self.rot(host, now) {
                    self.plan.later.push((at, Later::GiveUp { host }));
                }
            }
            FaultKind::RotSnapshot => self.rot_snapshot(),
            FaultKind::ClockForward => {
                let nanos = self.plan.rng.magnitude(10, 60_000) * MILLI;
                self.set_clock(host, nanos as i64);
            }
            FaultKind::ClockBack => {
                let nanos = self.plan.rng.magnitude(10, 2_000) * MILLI;
                self.set_clock(host, -(nanos as i64));
            }
            FaultKind::Suspend => {
                let until = self.while_faults_last(now.plus_nanos(lasts));
                self.say(|_| format!("host {host}: the process is stopped for {} ms", until.nanos_since(now) / MILLI));
                if let Some(life) = &mut self.hosts[host.0 as usize - 1].life {
                    sometimes!("process-suspended");
                    life.suspend(until);
                }
            }
            FaultKind::Reset => {
                let other = self.any_host();
                self.say(|_| format!("the connections between {host} and {other} break"));
                self.around.network.reset(host, other);
            }
            FaultKind::SlowLink => {
                let (to, bytes_per_s) = (self.any_host(), self.plan.rng.magnitude(20_000, 5_000_000));
                self.say(|_| format!("{host} -> {to} carries {bytes_per_s} bytes a second for {} ms", lasts / MILLI));
                self.around.network.set_bandwidth(host, to, bytes_per_s);
                self.plan.later.push((now.plus_nanos(lasts), Later::Hasten { from: host, to }));
            }
            FaultKind::Pause => {
                let (worker, until) = (self.plan.rng.next(), self.while_faults_last(now.plus_nanos(lasts)));
                self.say(|_| format!("host {host}: a thread pauses for {} ms", until.nanos_since(now) / MILLI));
                if let Some(life) = &mut self.hosts[host.0 as usize - 1].life {
                    life.pause(worker, until);
                }
            }
        }
    }

    /// What nobody mends, a sync or a thread that hangs, ends by itself before the faults do: progress is expected from then on, and
    /// a group whose only process stands still can make none.
    fn while_faults_last(&self, until: Time) -> Time {
        until.min(self.plan.ends)
    }

    fn set_clock(&mut self, host: HostId, nanos: i64) {
        sometimes!(nanos > 0, "clock-set-on");
        sometimes!(nanos < 0, "clock-set-back");
        self.say(|_| format!("host {host}: its clock is set by {} ms", nanos / MILLI as i64));
        self.hosts[host.0 as usize - 1].clock.set(nanos);
    }

    fn cut(&mut self, from: HostId, to: HostId, until: Time) {
        if from != to {
            self.say(|w| format!("cut {from} -> {to} for {} ms", until.nanos_since(w.now()) / MILLI));
            self.around.network.set_cut(from, to, true);
            self.plan.later.push((until, Later::Mend { from, to }));
        }
    }

    fn partition(&mut self, until: Time) {
        let sides: Vec<bool> = self.hosts.iter().map(|_| self.plan.rng.chance(500)).collect();
        let hosts = 1..=self.hosts.len() as u64;
        for (a, b) in hosts.clone().flat_map(|a| hosts.clone().map(move |b| (a, b))) {
            if sides[a as usize - 1] != sides[b as usize - 1] {
                self.cut(HostId(a), HostId(b), until);
            }
        }
    }

    fn isolate(&mut self, host: HostId, until: Time) {
        let ways = *self.plan.rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        for other in (1..=self.hosts.len() as u64).map(HostId) {
            if ways.0 {
                self.cut(host, other, until);
            }
            if ways.1 {
                self.cut(other, host, until);
            }
        }
    }

    fn kill(&mut self, host: HostId) {
        if self.hosts[host.0 as usize - 1].life.is_some() {
            let nanos = self.plan.downtime_nanos();
            self.stop(host, false, nanos);
        }
    }

    /// Also of a host whose process does not run: its page cache goes.
    fn power_loss(&mut self, host: HostId) {
        let nanos = self.plan.downtime_nanos();
        self.stop(host, true, nanos);
    }

    fn power_loss_soon(&mut self, host: HostId, now: Time) {
        let after = self.plan.rng.magnitude(20, 2500) * MILLI;
        self.plan.later.push((now.plus_nanos(after), Later::PowerLoss { host }));
    }

    fn fail_sync(&mut self, host: HostId) {
        self.say(|_| format!("host {host}: a sync will fail"));
        self.hosts[host.0 as usize - 1].fail_sync();
    }

    /// The disk has this much of the host's reserve left.
    fn fill_disk(&mut self, host: HostId, percent: u64, until: Time) {
        let left = self.around.swarm.disk_reserve_bytes() * percent / 100;
        self.say(|w| format!("host {host}: {left} bytes of disk left, for {} ms", until.nanos_since(w.now()) / MILLI));
        self.hosts[host.0 as usize - 1].fill_disk(left);
        self.plan.later.push((until, Later::Room { host }));
    }

    fn stall(&mut self, host: HostId, until: Time) {
        let until = self.while_faults_last(until);
        self.say(|w| format!("host {host}: syncs hang for {} ms", until.nanos_since(w.now()) / MILLI));
        self.hosts[host.0 as usize - 1].disk.stall_until(until);
    }
}
