//! What goes wrong, when, and for how long.
//!
//! At most two faults last at the same time, so that most of the time somebody can serve. Some happen at once and are over:
//! cut connections, and what operators ask.

use crate::hosts::{FIRST_MEMBERS, GROUPS, HOSTS, Hosts, SmallDisk};
use crate::proxy::Weather;
use crate::rng::Rng;
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

/// Faults that last at the same time, at most.
const AT_ONCE: usize = 2;
/// The host whose directory is on a small disk, where there is one.
pub(crate) const SMALL: usize = 2;
/// What the small disk is filled to: commands are refused, entries of leaders too, and everything fails.
const ROOM_LEFT: [u64; 3] = [200 << 20, 100 << 20, 0];

/// A fault that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed { host: usize },
    AllKilled,
    Stopped { host: usize },
    Isolated { host: usize },
    OneWay { from: usize, to: usize },
    Flapping { host: usize },
    Delayed { host: usize, ms: u64 },
    Slow { host: usize, bytes_per_s: u64 },
    Corrupt { host: usize },
    LittleRoom { left: u64 },
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Killed { .. } => "host killed",
            Self::AllKilled => "all hosts killed",
            Self::Stopped { .. } => "host stopped",
            Self::Isolated { .. } => "host cut off",
            Self::OneWay { .. } => "one way cut off",
            Self::Flapping { .. } => "host cut off now and then",
            Self::Delayed { .. } => "delays",
            Self::Slow { .. } => "slow links",
            Self::Corrupt { .. } => "bytes changed on the way",
            Self::LittleRoom { left: 0 } => "disk full",
            Self::LittleRoom { .. } => "disk nearly full",
        }
    }

    /// What it makes of what one host sends to another.
    fn weather(self, from: usize, to: usize, now_ms: u64) -> Weather {
        let clear = Weather::default();
        let concerns = |host: usize| from == host || to == host;
        match self {
            Self::Isolated { host } if concerns(host) => Weather { held: true, ..clear },
            Self::Flapping { host } if concerns(host) => Weather { held: (now_ms / 400).is_multiple_of(2), ..clear },
            Self::OneWay { from: a, to: b } if (a, b) == (from, to) => Weather { held: true, ..clear },
            Self::Delayed { host, ms } if concerns(host) => Weather { delay: Duration::from_millis(ms), ..clear },
            Self::Slow { host, bytes_per_s } if concerns(host) => Weather { bytes_per_s, ..clear },
            Self::Corrupt { host } if concerns(host) => Weather { corrupt_one_in: 40, ..clear },
            _ => clear,
        }
    }
}

fn worse(a: Weather, b: Weather) -> Weather {
    Weather {
        held: a.held || b.held,
        delay: a.delay.max(b.delay),
        bytes_per_s: a.bytes_per_s.max(b.bytes_per_s),
        corrupt_one_in: a.corrupt_one_in.max(b.corrupt_one_in),
    }
}

/// The faults of a run.
#[derive(Debug)]
pub(crate) struct Faults {
    rng: Rng,
    small: Option<SmallDisk>,
    active: Vec<(Instant, Fault)>,
    next: Instant,
    begun: Instant,
    /// How often each was.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Until when the host on the small disk may end by itself, or be of no use.
    full_until: Option<Instant>,
    /// Of each group, the replica that the fourth host was given.
    joined: BTreeMap<u64, u64>,
    next_replica: u64,
}

impl Faults {
    pub(crate) fn new(seed: u64, small: Option<SmallDisk>) -> Self {
        let now = Instant::now();
        Self {
            rng: Rng::new(seed),
            small,
            active: Vec::new(),
            next: now,
            begun: now,
            counts: BTreeMap::new(),
            full_until: None,
            joined: BTreeMap::new(),
            next_replica: 100,
        }
    }

    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Ends what is over and begins what is due.
    ///
    /// # Errors
    /// A host ended that nobody killed, or the machine refuses something.
    pub(crate) fn step(&mut self, hosts: &mut Hosts) -> io::Result<()> {
        let now = Instant::now();
        while let Some(n) = self.active.iter().position(|(until, _)| *until <= now) {
            let (_, fault) = self.active.swap_remove(n);
            self.end(fault, hosts)?;
        }
        for n in 0..HOSTS {
            if let Some(status) = hosts.ended(n)? {
                if n != SMALL || self.full_until.is_none() {
                    return Err(io::Error::other(format!("host {} ended by itself: {status}", n + 1)));
                }
                self.count("host ended on its full disk");
            }
        }
        if now >= self.next {
            self.next = now + Duration::from_millis(self.rng.from(300, 3_000));
            if self.rng.below(3) == 0 || self.active.len() >= AT_ONCE {
                self.at_once(hosts);
            } else {
                self.begin(hosts)?;
            }
        }
        self.tell_the_weather(hosts);
        Ok(())
    }

    /// Ends all faults.
    pub(crate) fn heal(&mut self, hosts: &mut Hosts) -> io::Result<()> {
        for (_, fault) in std::mem::take(&mut self.active) {
            self.end(fault, hosts)?;
        }
        for n in 0..HOSTS {
            if !hosts.runs(n) {
                hosts.start_host(n)?;
            }
        }
        self.tell_the_weather(hosts);
        Ok(())
    }

    fn tell_the_weather(&self, hosts: &Hosts) {
        let now_ms = self.begun.elapsed().as_millis() as u64;
        let of = |from, to| self.active.iter().map(move |(_, fault)| fault.weather(from, to, now_ms));
        hosts.set_weather(|from, to| of(from, to).fold(Weather::default(), worse));
    }

    fn begin(&mut self, hosts: &mut Hosts) -> io::Result<()> {
        let rng = &mut self.rng;
        let host = rng.below(HOSTS as u64) as usize;
        let other = (host + 1 + rng.below(HOSTS as u64 - 1) as usize) % HOSTS;
        let fault = match rng.below(12) {
            0 | 1 => Fault::Killed { host },
            2 => Fault::AllKilled,
            3 | 4 => Fault::Stopped { host },
            5 => Fault::Isolated { host },
            6 => Fault::OneWay { from: host, to: other },
            7 => Fault::Flapping { host },
            8 => Fault::Delayed { host, ms: rng.from(1, 60) },
            9 => Fault::Slow { host, bytes_per_s: rng.from(20_000, 500_000) },
            10 => Fault::Corrupt { host },
            _ => Fault::LittleRoom { left: ROOM_LEFT[rng.below(3) as usize] },
        };
        let lasts = Duration::from_millis(self.rng.from(200, 6_000));
        match fault {
            Fault::Killed { host } => hosts.kill(host)?,
            Fault::AllKilled => (0..HOSTS).try_for_each(|n| hosts.kill(n))?,
            Fault::Stopped { host } => hosts.set_stopped(host, true)?,
            Fault::LittleRoom { left } => {
                let Some(small) = &self.small else { return Ok(()) };
                small.fill_to(left);
                if left == 0 {
                    self.full_until = Some(Instant::now() + lasts);
                }
            }
            _ => {}
        }
        self.count(fault.name());
        self.active.push((Instant::now() + lasts, fault));
        Ok(())
    }

    fn end(&mut self, fault: Fault, hosts: &mut Hosts) -> io::Result<()> {
        // Another fault of the same kind may last.
        let still = |wanted: &dyn Fn(Fault) -> bool| self.active.iter().any(|(_, fault)| wanted(*fault));
        let killed = |n: usize| move |f: Fault| f == Fault::AllKilled || f == Fault::Killed { host: n };
        match fault {
            Fault::Killed { host } if !still(&killed(host)) && !hosts.runs(host) => hosts.start_host(host)?,
            Fault::AllKilled => {
                for n in (0..HOSTS).filter(|n| !still(&killed(*n))) {
                    if !hosts.runs(n) {
                        hosts.start_host(n)?;
                    }
                }
            }
            Fault::Stopped { host } if !still(&|f| f == Fault::Stopped { host }) => hosts.set_stopped(host, false)?,
            Fault::LittleRoom { left } if !still(&|f| matches!(f, Fault::LittleRoom { .. })) => {
                if let Some(small) = &self.small {
                    small.empty();
                }
                // A store that failed stays failed: its operator starts the host again once there is room.
                if left == 0 || self.full_until.take().is_some() {
                    hosts.kill(SMALL)?;
                    if !still(&killed(SMALL)) {
                        hosts.start_host(SMALL)?;
                    }
                    self.full_until = None;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Something that is over at once.
    fn at_once(&mut self, hosts: &Hosts) {
        let asked = self.rng.below(HOSTS as u64) as usize;
        let group = self.rng.from(1, GROUPS);
        let done = match self.rng.below(5) {
            0 => {
                hosts.cut(asked);
                Some("connections cut")
            }
            1 => {
                let to = self.rng.from(1, FIRST_MEMBERS as u64);
                hosts.admin(asked, &format!("LONGBOAT TRANSFER {group} {to}")).then_some("leader moved")
            }
            2 => hosts.admin(asked, &format!("LONGBOAT SNAPSHOT {group}")).then_some("snapshot on request"),
            _ => self.change_members(asked, group, hosts),
        };
        if let Some(done) = done {
            self.count(done);
        }
    }

    /// The fourth host gets a replica of a group, or loses it.
    fn change_members(&mut self, asked: usize, group: u64, hosts: &Hosts) -> Option<&'static str> {
        if let Some(replica) = self.joined.get(&group) {
            let removed = hosts.admin(asked, &format!("LONGBOAT REMOVE {group} {replica}"));
            return removed.then(|| {
                self.joined.remove(&group);
                "replica removed"
            });
        }
        // An attempt that came to nothing leaves its id behind: ids are never used twice.
        let replica = self.next_replica;
        self.next_replica += 1;
        let joins = hosts.admin(HOSTS - 1, &format!("LONGBOAT JOIN {group} {replica}"));
        let added = joins && hosts.admin(asked, &format!("LONGBOAT ADD {group} {replica} {HOSTS}"));
        added.then(|| {
            self.joined.insert(group, replica);
            "replica added"
        })
    }
}
