//! Leadership of all groups moved from one host to another while clients write: four processes, three hosts and this one.
//!
//! Each host is a child of this process and is told line by line what to do. The client has one write at a time in each group,
//! at the host that leads it as far as it knows. A write that is refused and had no effect is made again, and counted; one
//! whose outcome is not known, or that is refused for too long, has failed.

mod child;

use crate::children::Children;
use crate::cluster::BoxError;
use crate::report::rows;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// Hosts, each in a process.
const HOSTS: u64 = 3;
/// Where leadership is, and where it goes.
const FROM: u64 = 1;
const TO: u64 = 2;
/// After this long without what is waited for, the run is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Times that a write without effect is made again.
const RETRIES_MAX: u32 = 200;
/// Between a refusal and the next try.
const REPEAT: Duration = Duration::from_millis(10);
/// Load before the transfers begin, and after they have ended.
const LOAD_AROUND: Duration = Duration::from_secs(1);
/// Between two looks for who leads.
const LOOK: Duration = Duration::from_millis(100);

/// How many groups, under how much load.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Groups whose leadership moves.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub groups: u32,
    /// Time between the end of a write in a group and the next one there, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 100)]
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
pub struct TransferReport {
    /// Always `longboat`.
    pub system: &'static str,
    /// Always `transfer`.
    pub scenario: &'static str,
    /// Groups whose leadership was to move.
    pub groups: u32,
    /// Processes: the hosts and this one.
    pub processes: u64,
    /// From the first transfer's call to the last one's outcome.
    pub seconds: f64,
    /// Transfers that ended with the target leading.
    pub moved: u64,
    /// Transfers by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Groups that the target led at the end.
    pub led_by_target: u64,
    /// Writes that were acknowledged, from before the transfers until after them.
    pub writes: u64,
    /// Of these, while leadership moved.
    pub writes_meanwhile: u64,
    /// Writes that were refused without effect, and made again.
    pub writes_repeated: u64,
    /// Writes whose outcome is not known, or that were refused for too long.
    pub writes_failed: u64,
    /// The longest that a write took, its repetitions included, in milliseconds.
    pub write_ms_max: f64,
}

impl TransferReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let head = format!("transfer: {} groups, three hosts and a client, each in a process\n", self.groups);
        let outcomes: Vec<String> = self.outcomes.iter().map(|(what, n)| format!("{n} {what}")).collect();
        head + &rows(&[
            ("leadership moved in", format!("{:.2} s", self.seconds)),
            ("transfers", outcomes.join(", ")),
            ("led by the target after", self.led_by_target.to_string()),
            ("writes", self.writes.to_string()),
            ("writes meanwhile", self.writes_meanwhile.to_string()),
            ("writes repeated", self.writes_repeated.to_string()),
            ("writes failed", self.writes_failed.to_string()),
            ("longest write", format!("{:.1} ms", self.write_ms_max)),
        ])
    }
}

/// Runs it, or, told so, one of its hosts.
///
/// # Errors
/// When a host can't be started or says what it should not.
pub fn run(options: &Options, dir: &Path) -> Result<Option<TransferReport>, BoxError> {
    if let Some(id) = options.child {
        child::run(id, dir)?;
        return Ok(None);
    }
    let mut driver = Driver::start(options, dir)?;
    let report = driver.drive();
    driver.hosts.end()?;
    report.map(Some)
}

/// One group as the client sees it.
#[derive(Clone, Copy, Debug)]
struct Lane {
    leader: u64,
    /// When its write began, while one is under way.
    since: Option<Instant>,
    /// It was given to a host that has not answered.
    sent: bool,
    /// When the next write is made, or this one again.
    next: Instant,
    repeated: u32,
}

struct Driver {
    hosts: Children,
    lanes: Vec<Lane>,
    every: Duration,
    report: TransferReport,
    transfers_open: u64,
    leads: BTreeMap<u64, u64>,
}

impl Driver {
    fn start(options: &Options, dir: &Path) -> Result<Self, BoxError> {
        let mut hosts = Children::new("transfer", dir);
        (1..=HOSTS).try_for_each(|id| hosts.spawn(id))?;
        let now = Instant::now();
        let lane = Lane { leader: FROM, since: None, sent: false, next: now, repeated: 0 };
        let report = TransferReport {
            system: "longboat",
            scenario: "transfer",
            groups: options.groups,
            processes: HOSTS + 1,
            ..TransferReport::default()
        };
        Ok(Self {
            hosts,
            lanes: vec![lane; options.groups as usize],
            every: Duration::from_millis(options.every_ms),
            report,
            transfers_open: 0,
            leads: BTreeMap::new(),
        })
    }

    fn tell(&mut self, host: u64, line: &str) -> Result<(), BoxError> {
        self.hosts.tell(host, line)
    }

    fn await_all(&self, word: &str) -> Result<Vec<String>, BoxError> {
        self.hosts.await_each(&(1..=HOSTS).collect::<Vec<_>>(), word, PATIENCE)
    }

    fn drive(&mut self) -> Result<TransferReport, BoxError> {
        let addresses = self.await_all("address")?;
        for host in 1..=HOSTS {
            for (peer, address) in (1..).zip(&addresses) {
                self.tell(host, &format!("peer {peer} {address}"))?;
            }
            self.tell(host, &format!("start {} {HOSTS}", self.report.groups))?;
        }
        self.await_all("started")?;
        self.gather_leadership()?;
        let begun = Instant::now();
        // The groups' writes are spread over time, so that at every moment some are under way.
        let groups = self.lanes.len() as u32;
        for (at, lane) in (0..).zip(&mut self.lanes) {
            lane.next = begun + self.every * at / groups;
        }
        self.serve(|_| begun.elapsed() > LOAD_AROUND)?;
        let before = self.report.writes;
        self.report.outcomes.clear();
        let moving = Instant::now();
        self.transfer_all(FROM, TO)?;
        self.serve(|d| d.transfers_open == 0)?;
        self.report.seconds = moving.elapsed().as_secs_f64();
        self.report.moved = self.report.outcomes.get("done").copied().unwrap_or(0);
        self.report.writes_meanwhile = self.report.writes - before;
        let after = Instant::now();
        self.serve(|_| after.elapsed() > LOAD_AROUND)?;
        // The last writes are waited for: one of them may be the one that failed.
        self.every = PATIENCE;
        self.serve(|d| d.lanes.iter().all(|l| l.since.is_none()))?;
        self.look()?;
        self.report.led_by_target = self.leads.get(&TO).copied().unwrap_or(0);
        Ok(self.report.clone())
    }

    fn transfer_all(&mut self, at: u64, to: u64) -> Result<(), BoxError> {
        let mut lines = String::new();
        for group in 1..=self.lanes.len() {
            lines.push_str(&format!("transfer {group} {to}\n"));
        }
        self.transfers_open += self.lanes.len() as u64;
        self.tell(at, lines.trim_end())
    }

    /// All groups come to be led by one host, before anything is measured.
    fn gather_leadership(&mut self) -> Result<(), BoxError> {
        let begun = Instant::now();
        loop {
            self.look()?;
            let led: u64 = self.leads.values().sum();
            if led == self.lanes.len() as u64 {
                if self.leads.get(&FROM) == Some(&led) {
                    return Ok(());
                }
                self.transfer_all(FROM, FROM)?;
                self.hear(|d| d.transfers_open == 0)?;
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{led} groups are led after {PATIENCE:?}: {:?}", self.leads).into());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&mut self) -> Result<(), BoxError> {
        for host in 1..=HOSTS {
            self.tell(host, "leaders")?;
        }
        let count = |led: &String| led.split(',').filter(|g| !g.is_empty()).count() as u64;
        self.leads = (1..).zip(self.await_all("leads")?.iter().map(count)).collect();
        Ok(())
    }

    /// Hears what the hosts say, without making any writes.
    fn hear(&mut self, until: impl Fn(&Self) -> bool) -> Result<(), BoxError> {
        while !until(self) {
            let (host, line) = self.hosts.hear(PATIENCE)?;
            self.take(host, &line)?;
        }
        Ok(())
    }

    /// Makes writes and hears what the hosts say.
    fn serve(&mut self, until: impl Fn(&Self) -> bool) -> Result<(), BoxError> {
        let mut due = Vec::new();
        while !until(self) {
            let now = Instant::now();
            due.extend((0..self.lanes.len()).filter(|&at| !self.lanes[at].sent && self.lanes[at].next <= now));
            let mut lines = vec![String::new(); HOSTS as usize];
            for at in due.drain(..) {
                let lane = &mut self.lanes[at];
                lane.since.get_or_insert(now);
                lane.sent = true;
                lines[lane.leader as usize - 1].push_str(&format!("write {}\n", at + 1));
            }
            for (host, lines) in (1..).zip(&lines).filter(|(_, lines)| !lines.is_empty()) {
                self.tell(host, lines.trim_end())?;
            }
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

    fn take(&mut self, host: u64, line: &str) -> Result<(), BoxError> {
        let mut words = line.splitn(4, ' ');
        let (what, group) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (outcome, why) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match what {
            "wrote" => self.wrote(group.parse::<usize>()? - 1, outcome, why),
            "transferred" => {
                self.transfers_open -= 1;
                let name = if outcome == "ok" { "done" } else { why };
                *self.report.outcomes.entry(name.to_owned()).or_default() += 1;
                if outcome == "ok" {
                    self.lanes[group.parse::<usize>()? - 1].leader = if self.report.writes == 0 { FROM } else { TO };
                }
            }
            _ => return Err(format!("host {host} said: {line}").into()),
        }
        Ok(())
    }

    fn wrote(&mut self, at: usize, outcome: &str, why: &str) {
        let now = Instant::now();
        let lane = &mut self.lanes[at];
        let Some(since) = lane.since else { return };
        if outcome == "none" && lane.repeated < RETRIES_MAX {
            // Made again in a moment, and its time goes on.
            lane.repeated += 1;
            (lane.sent, lane.next) = (false, now + REPEAT);
            self.report.writes_repeated += 1;
            return;
        }
        (lane.since, lane.sent, lane.repeated, lane.next) = (None, false, 0, now + self.every);
        let took = now.saturating_duration_since(since).as_secs_f64() * 1e3;
        self.report.write_ms_max = self.report.write_ms_max.max(took);
        if outcome == "ok" {
            self.report.writes += 1;
        } else {
            self.report.writes_failed += 1;
            eprintln!("a write of group {} failed: {why}", at + 1);
        }
    }
}
