//! One replica of every group replaced under load while whoever asked for it dies half-way: four hosts and this client, each
//! in a process.
//!
//! Hosts 1 to 3 have a replica of each group; those on host 3 are to give way to new ones on host 4. Host 2 asks for that, and is
//! killed when every group has begun and some have not ended; host 1 asks again. Writes go on all the time, one after the
//! other in each group, at whichever of hosts 1 and 2 lives. In the end host 2 is started again, and every replica must have the
//! whole history through the newest acknowledged write: a hash chain, so that what is lost, doubled or out of order shows.

mod child;

use crate::chain::Link;
use crate::children::Children;
use crate::cluster::BoxError;
use crate::report::rows;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// Hosts that have replicas at first.
const HOSTS: u64 = 3;
/// The host that asks first, and dies.
const CALLER: u64 = 2;
/// The host that asks again.
const HEIR: u64 = 1;
/// The replica that goes, and its host.
const OLD: u64 = 3;
/// The replica that comes, and its host.
const NEW: u64 = 4;
/// After this long without what is waited for, the run is given up.
const PATIENCE: Duration = Duration::from_secs(150);
/// Times that a call or a write without effect is made again.
const RETRIES_MAX: u32 = 1000;
/// Between a refusal and the next try.
const REPEAT: Duration = Duration::from_millis(10);
/// Load before the replacements begin, and after they have ended.
const LOAD_AROUND: Duration = Duration::from_secs(1);
/// Between two looks at how far the groups are.
const LOOK: Duration = Duration::from_millis(5);

/// How many groups, under how much load.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Groups of which one replica is replaced.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub groups: u32,
    /// Time between the end of a write in a group and the next one there, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5)]
    pub every_ms: u64,
    /// Where the hosts' directories are made, and removed afterwards [default: a new directory in the present one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Be this host; for this program's own use.
    #[arg(long, hide = true, value_name = "ID")]
    pub child: Option<u64>,
}

/// What it came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReplaceReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `replace`.
    pub scenario: &'static str,
    /// Groups of which one replica was to be replaced.
    pub groups: u32,
    /// Processes: the hosts and this one.
    pub processes: u64,
    /// From the first call to the last outcome, the death of the first caller included.
    pub seconds: f64,
    /// Groups whose replica was replaced.
    pub replaced: u64,
    /// Of these, those that were under way when the caller died, and were ended by another's call.
    pub resumed: u64,
    /// Calls that were refused without effect, and made again.
    pub retries: u64,
    /// Calls that failed otherwise.
    pub failed: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that some replica lacked in the end, or had in another order.
    pub lost: u64,
    /// Writes that were refused without effect, and made again.
    pub writes_repeated: u64,
    /// Writes whose outcome is not known: most were at the host that was killed. They are not made again.
    pub writes_unknown: u64,
    /// The longest that an acknowledged write took, its repetitions included, in milliseconds.
    pub write_ms_max: f64,
}

impl ReplaceReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let head = format!("replace: {} groups, four hosts and a client, each in a process\n", self.groups);
        head + &rows(&[
            ("replaced", self.replaced.to_string()),
            ("in", format!("{:.2} s", self.seconds)),
            ("resumed after the caller's death", self.resumed.to_string()),
            ("calls made again", self.retries.to_string()),
            ("calls failed", self.failed.to_string()),
            ("writes acknowledged", self.acknowledged.to_string()),
            ("of them lost", self.lost.to_string()),
            ("writes repeated", self.writes_repeated.to_string()),
            ("writes of unknown outcome", self.writes_unknown.to_string()),
            ("longest write", format!("{:.1} ms", self.write_ms_max)),
        ])
    }

    /// Whether every replica was replaced, some by the second caller, and nothing was lost.
    pub fn is_good(&self) -> bool {
        self.lost == 0 && self.failed == 0 && self.resumed > 0 && self.replaced == u64::from(self.groups)
    }
}

/// Runs it, or, told so, one of its hosts.
///
/// # Errors
/// When a host can't be started or says what it should not.
pub fn run(options: &Options, dir: &Path) -> Result<Option<ReplaceReport>, BoxError> {
    if let Some(id) = options.child {
        child::run(id, dir)?;
        return Ok(None);
    }
    let mut driver = Driver::start(options, dir)?;
    driver.drive()?;
    driver.hosts.end()?;
    for host in 1..=NEW {
        std::fs::remove_dir_all(dir.join(format!("host-{host}")))?;
    }
    Ok(Some(driver.report))
}

/// One group as the client sees it.
#[derive(Clone, Copy, Debug)]
struct Lane {
    /// Where it writes.
    host: u64,
    /// What it writes, and when it began, while a write is under way.
    write: Option<(u64, Instant)>,
    /// It was given to a host that has not answered.
    sent: bool,
    /// When the next write is made, or this one again.
    next: Instant,
    repeated: u32,
    /// The newest acknowledged write's place.
    newest: Link,
    /// Its replacement was asked for, how often, and has not ended.
    asked: Option<u32>,
    replaced: bool,
}

/// How far the groups are, as one host knows it.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    led: u64,
    under_way: u64,
    done: u64,
}

struct Driver {
    hosts: Children,
    lanes: Vec<Lane>,
    every: Duration,
    serial: u64,
    /// Nothing new is written.
    resting: bool,
    caller: u64,
    /// Groups whose call is to be made again, and when.
    again: Vec<(usize, Instant)>,
    state: Option<State>,
    addresses: Vec<Option<String>>,
    started: u64,
    checks_open: u64,
    report: ReplaceReport,
}

impl Driver {
    fn start(options: &Options, dir: &Path) -> Result<Self, BoxError> {
        let mut hosts = Children::new("replace", dir);
        (1..=NEW).try_for_each(|id| hosts.spawn(id))?;
        let now = Instant::now();
        let lane = |group: u32| Lane {
            host: 1 + u64::from(group % 2),
            write: None,
            sent: false,
            next: now,
            repeated: 0,
            newest: Link::default(),
            asked: None,
            replaced: false,
        };
        let report = ReplaceReport {
            system: "longboat",
            scenario: "replace",
            groups: options.groups,
            processes: NEW + 1,
            ..ReplaceReport::default()
        };
        Ok(Self {
            hosts,
            lanes: (0..options.groups).map(lane).collect(),
            every: Duration::from_millis(options.every_ms),
            serial: 0,
            resting: true,
            caller: CALLER,
            again: Vec::new(),
            state: None,
            addresses: vec![None; NEW as usize],
            started: 0,
            checks_open: 0,
            report,
        })
    }

    fn drive(&mut self) -> Result<(), BoxError> {
        let groups = u64::from(self.report.groups);
        self.serve("addresses", |d| d.addresses.iter().all(Option::is_some))?;
        (1..=NEW).try_for_each(|host| self.introduce(host))?;
        for host in 1..=HOSTS {
            self.hosts.tell(host, &format!("start {groups}"))?;
        }
        // One half of the new replicas is there early: in that half replacements end before the caller dies.
        self.hosts.tell(NEW, &format!("join 1 {}", groups / 2))?;
        self.serve("starts", |d| d.started == NEW)?;
        self.watch(HEIR, "leaders", |s| s.led == groups)?;
        self.resting = false;
        self.load_for(LOAD_AROUND)?;
        let begun = Instant::now();
        (0..self.lanes.len()).try_for_each(|at| self.ask(at))?;
        self.watch(HEIR, "all replacements under way", |s| s.under_way + s.done == groups)?;
        self.lose_the_caller()?;
        self.watch(HEIR, "a look after the caller's death", |_| true)?;
        self.report.resumed = self.state.map_or(0, |s| s.under_way);
        self.hosts.tell(NEW, &format!("join {} {groups}", groups / 2 + 1))?;
        self.caller = HEIR;
        (0..self.lanes.len()).try_for_each(|at| self.ask(at))?;
        self.serve("replacements", |d| d.lanes.iter().all(|l| l.asked.is_none()) && d.again.is_empty())?;
        self.report.seconds = begun.elapsed().as_secs_f64();
        self.report.replaced = self.lanes.iter().filter(|l| l.replaced).count() as u64;
        self.load_for(LOAD_AROUND)?;
        self.resting = true;
        self.serve("the last writes", |d| d.lanes.iter().all(|l| l.write.is_none()))?;
        self.bring_back_the_caller()?;
        self.check_all()
    }

    /// Every host learns where this one is, and it where they are.
    fn introduce(&mut self, host: u64) -> Result<(), BoxError> {
        for (peer, address) in (1..).zip(self.addresses.clone()) {
            if let Some(address) = address.filter(|_| peer != host) {
                self.hosts.tell(host, &format!("peer {peer} {address}"))?;
                let own = self.addresses[host as usize - 1].clone().ok_or("a host without an address")?;
                self.hosts.tell(peer, &format!("peer {host} {own}"))?;
            }
        }
        Ok(())
    }

    fn load_for(&mut self, time: Duration) -> Result<(), BoxError> {
        let begun = Instant::now();
        self.serve("load", |_| begun.elapsed() > time)
    }

    /// Looks at one host's state until it is as wanted.
    fn watch(&mut self, host: u64, what: &str, wanted: impl Fn(State) -> bool) -> Result<(), BoxError> {
        let begun = Instant::now();
        loop {
            self.state = None;
            self.hosts.tell(host, "state")?;
            self.serve(what, |d| d.state.is_some())?;
            let state = self.state.unwrap_or_default();
            if wanted(state) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{what}: not after {PATIENCE:?}, {state:?}").into());
            }
            self.load_for(LOOK)?;
        }
    }

    fn lose_the_caller(&mut self) -> Result<(), BoxError> {
        self.hosts.kill(CALLER)?;
        // What it said before it died counts.
        while let Some((host, line)) = self.hosts.heard() {
            self.take(host, &line)?;
        }
        self.addresses[CALLER as usize - 1] = None;
        let now = Instant::now();
        for lane in &mut self.lanes {
            lane.asked = None;
            if lane.host == CALLER {
                self.report.writes_unknown += u64::from(lane.sent);
                lane.write = lane.write.filter(|_| !lane.sent);
                (lane.host, lane.sent, lane.next) = (HEIR, false, now);
            }
        }
        self.again.clear();
        Ok(())
    }

    fn bring_back_the_caller(&mut self) -> Result<(), BoxError> {
        self.hosts.spawn(CALLER)?;
        self.serve("the caller's address", |d| d.addresses[CALLER as usize - 1].is_some())?;
        self.introduce(CALLER)?;
        let before = self.started;
        self.hosts.tell(CALLER, &format!("start {}", self.report.groups))?;
        self.serve("the caller's start", |d| d.started > before)
    }

    /// Every replica has every acknowledged write.
    fn check_all(&mut self) -> Result<(), BoxError> {
        for host in [HEIR, CALLER, NEW] {
            for at in 0..self.lanes.len() {
                self.checks_open += 1;
                self.hosts.tell(host, &format!("check {} {}", at + 1, self.lanes[at].newest.count))?;
            }
            self.serve("checks", |d| d.checks_open == 0)?;
        }
        Ok(())
    }

    fn ask(&mut self, at: usize) -> Result<(), BoxError> {
        self.lanes[at].asked = Some(self.lanes[at].asked.map_or(0, |times| times + 1));
        self.hosts.tell(self.caller, &format!("replace {}", at + 1))
    }

    /// Makes writes and hears what the hosts say.
    fn serve(&mut self, what: &str, until: impl Fn(&Self) -> bool) -> Result<(), BoxError> {
        let begun = Instant::now();
        while !until(self) {
            if begun.elapsed() > PATIENCE {
                return Err(format!("{what}: nothing after {PATIENCE:?}").into());
            }
            self.write_what_is_due()?;
            match self.hosts.hear(Duration::from_millis(1)) {
                Ok((host, line)) => self.take(host, &line)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("all hosts have ended".into()),
            }
            while let Some((host, line)) = self.hosts.heard() {
                self.take(host, &line)?;
            }
        }
        Ok(())
    }

    fn write_what_is_due(&mut self) -> Result<(), BoxError> {
        let now = Instant::now();
        let mut lines = vec![String::new(); HOSTS as usize];
        for (at, lane) in self.lanes.iter_mut().enumerate().filter(|(_, l)| !l.sent && l.next <= now) {
            if lane.write.is_none() && self.resting {
                continue;
            }
            let (serial, _) = *lane.write.get_or_insert_with(|| {
                self.serial += 1;
                (self.serial, now)
            });
            lane.sent = true;
            lines[lane.host as usize - 1].push_str(&format!("write {} {serial}\n", at + 1));
        }
        for (host, lines) in (1..).zip(&lines).filter(|(_, lines)| !lines.is_empty()) {
            self.hosts.tell(host, lines.trim_end())?;
        }
        let due: Vec<usize> = self.again.extract_if(.., |(_, when)| *when <= now).map(|(at, _)| at).collect();
        due.into_iter().try_for_each(|at| self.ask(at))
    }

    fn take(&mut self, host: u64, line: &str) -> Result<(), BoxError> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| crate::obey::number(&words, at);
        match words[0] {
            "address" => self.addresses[host as usize - 1] = words.get(1).map(|a| (*a).to_owned()),
            "started" => self.started += 1,
            "state" => self.state = Some(State { led: number(1)?, under_way: number(2)?, done: number(3)? }),
            "wrote" => self.wrote(number(1)? as usize - 1, number(2)?, &words[3..])?,
            "replaced" => self.replaced(number(1)? as usize - 1, &words[3..])?,
            "checked" => self.checked(host, number(1)? as usize - 1, &words[3..])?,
            _ => return Err(format!("host {host} said: {line}").into()),
        }
        Ok(())
    }

    fn wrote(&mut self, at: usize, serial: u64, outcome: &[&str]) -> Result<(), BoxError> {
        let now = Instant::now();
        let lane = &mut self.lanes[at];
        let Some((_, since)) = lane.write.filter(|(under_way, _)| *under_way == serial) else { return Ok(()) };
        if outcome[0] == "none" && lane.repeated < RETRIES_MAX {
            lane.repeated += 1;
            (lane.sent, lane.next) = (false, now + REPEAT);
            self.report.writes_repeated += 1;
            return Ok(());
        }
        (lane.write, lane.sent, lane.repeated, lane.next) = (None, false, 0, now + self.every);
        if outcome[0] != "ok" {
            self.report.writes_unknown += 1;
            return Ok(());
        }
        let link = link(outcome)?;
        if link.count > lane.newest.count {
            lane.newest = link;
        }
        self.report.acknowledged += 1;
        let took = now.saturating_duration_since(since).as_secs_f64() * 1e3;
        self.report.write_ms_max = self.report.write_ms_max.max(took);
        Ok(())
    }

    fn replaced(&mut self, at: usize, outcome: &[&str]) -> Result<(), BoxError> {
        let lane = &mut self.lanes[at];
        let Some(times) = lane.asked else { return Ok(()) };
        if outcome[0] == "none" && times < RETRIES_MAX {
            self.report.retries += 1;
            self.again.push((at, Instant::now() + REPEAT));
            return Ok(());
        }
        lane.asked = None;
        lane.replaced |= outcome[0] == "ok";
        if outcome[0] != "ok" {
            self.report.failed += 1;
            eprintln!("the replica of group {} was not replaced: {}", at + 1, outcome.join(" "));
        }
        Ok(())
    }

    fn checked(&mut self, host: u64, at: usize, outcome: &[&str]) -> Result<(), BoxError> {
        let newest = self.lanes[at].newest;
        if outcome[0] == "none" {
            // A read has no effect: it is made again until its replica has caught up.
            std::thread::sleep(REPEAT);
            return self.hosts.tell(host, &format!("check {} {}", at + 1, newest.count));
        }
        self.checks_open -= 1;
        let here = if outcome[0] == "ok" { link(outcome)? } else { Link::default() };
        if here != newest {
            eprintln!("group {} on host {host}: {newest:?} became {}", at + 1, outcome.join(" "));
            self.report.lost += newest.count.saturating_sub(here.count).max(1);
        }
        Ok(())
    }
}

/// A place in the history as a host says it, after `ok`.
fn link(outcome: &[&str]) -> Result<Link, BoxError> {
    Ok(Link { count: crate::obey::number(outcome, 1)?, hash: crate::obey::number(outcome, 2)? })
}
