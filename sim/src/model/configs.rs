//! The small groups that are checked: who is in them, what may happen how often, and which planted bugs each must catch.

use super::node::{ELECTION, HEARTBEAT};
use super::state::{BUDGETS, Budget};
use longboat_raft::{ConfigChange, CoreConfig, HostId, Member, Membership, ReplicaId};

/// A small group, and the bounds of what happens to it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// The planted bugs that it must catch.
    pub plants: &'static [&'static str],
    /// How many replicas there are, members or not, numbered from 1.
    pub(crate) replicas: u8,
    pub(crate) voters: &'static [u64],
    pub(crate) witnesses: &'static [u64],
    /// What can be proposed besides commands.
    pub(crate) changes: Vec<ConfigChange>,
    /// The highest term.
    pub(crate) terms: u8,
    pub(crate) budgets: [u8; BUDGETS],
    pub(crate) pre_vote: bool,
    pub(crate) check_quorum: bool,
    pub(crate) step_down: bool,
    /// Followers forward proposals.
    pub(crate) forward: bool,
    /// Appends and the rest travel apart.
    pub(crate) lanes: bool,
    /// One entry per append.
    pub(crate) single: bool,
    /// Runs leave memory as soon as they may.
    pub(crate) cold: bool,
    /// Idle groups fall silent.
    pub(crate) silent: bool,
    /// Besides the group that never ran: one that replica 1 leads in term 1.
    pub(crate) led: bool,
}

/// The budgets that every configuration has at least: three proposals, two crashes, a lost and a repeated packet.
const LEAST: [(Budget, u8); 7] = [
    (Budget::Proposals, 3),
    (Budget::Timeouts, 5),
    (Budget::Heartbeats, 2),
    (Budget::Crashes, 2),
    (Budget::Losses, 1),
    (Budget::Copies, 1),
    (Budget::Stalls, 2),
];

impl Config {
    fn new(name: &'static str, about: &'static str, voters: &'static [u64]) -> Self {
        let mut config = Self {
            name,
            about,
            plants: &[],
            replicas: voters.len() as u8,
            voters,
            witnesses: &[],
            changes: Vec::new(),
            terms: 4,
            budgets: [0; BUDGETS],
            pre_vote: false,
            check_quorum: false,
            step_down: true,
            forward: false,
            lanes: false,
            single: false,
            cold: false,
            silent: false,
            led: true,
        };
        config.allow(&LEAST);
        config.allow(&[(Budget::Delays, 1)]);
        config
    }

    fn allow(&mut self, budgets: &[(Budget, u8)]) {
        for (budget, times) in budgets {
            self.budgets[*budget as usize] = *times;
        }
    }

    /// The membership that the group begins with. Hosts are of no meaning here.
    pub(crate) fn membership(&self) -> Membership {
        let member = |id: &u64| (ReplicaId(*id), Member { host: HostId(*id), ..Member::default() });
        let mut members = Membership::from_voters(self.voters.iter().map(member));
        members.witnesses = self.witnesses.iter().map(|id| ReplicaId(*id)).collect();
        members
    }

    /// The settings of the replica at a position.
    pub(crate) fn core(&self, at: u8) -> CoreConfig {
        CoreConfig {
            replica: ReplicaId(u64::from(at) + 1),
            seed: 1,
            election_timeout_nanos: ELECTION,
            heartbeat_interval_nanos: HEARTBEAT,
            append_bytes_max: if self.single { 1 } else { CoreConfig::default().append_bytes_max },
            log_cache_bytes_max: if self.cold { 0 } else { CoreConfig::default().log_cache_bytes_max },
            pre_vote: self.pre_vote,
            // Two heartbeats at which nothing has happened.
            quiesce_after_nanos: if self.silent { HEARTBEAT } else { 0 },
            check_quorum: self.check_quorum,
            step_down_on_removal: self.step_down,
            witness: self.witnesses.contains(&(u64::from(at) + 1)),
            ..CoreConfig::default()
        }
    }

    /// Where among the replicas this one is.
    pub(crate) fn position(&self, id: ReplicaId) -> Option<u8> {
        (1..=u64::from(self.replicas)).contains(&id.0).then(|| id.0 as u8 - 1)
    }
}

fn member(id: u64) -> Member {
    Member { host: HostId(id), ..Member::default() }
}

/// All configurations.
pub fn all() -> Vec<Config> {
    vec![
        voters3_crash(),
        voters2(),
        voter_witness(),
        joint_crash(),
        transfer_prevote(),
        read_index(),
        quiesce(),
        remove_readd(),
        forwards(),
    ]
}

/// The configuration of this name.
pub fn named(name: &str) -> Option<Config> {
    all().into_iter().find(|c| c.name == name)
}

fn voters3_crash() -> Config {
    let mut c =
        Config::new("voters3-crash", "three voters, one entry per append, crashes and stalling disks", &[1, 2, 3]);
    c.single = true;
    c.plants = &[
        "ack-before-durable",
        "request-vote-before-durable",
        "two-votes-in-a-term",
        "vote-for-an-older-log",
        "commit-old-term-by-counting",
        "aba-token",
        "duplicate-append-acked-in-flight",
        "apply-before-durable",
    ];
    c
}

fn voters2() -> Config {
    let mut c =
        Config::new("voters2", "two voters, snapshots, forwarded proposals, appends apart from the rest", &[1, 2]);
    c.allow(&[(Budget::Compactions, 1), (Budget::Delays, 2), (Budget::Stalls, 3)]);
    (c.lanes, c.forward, c.cold) = (true, true, true);
    c.plants = &["ack-before-durable", "request-vote-before-durable", "duplicate-append-acked-in-flight"];
    c
}

fn voter_witness() -> Config {
    let mut c = Config::new("voter-witness", "two voters and a witness, snapshots", &[1, 2, 3]);
    c.witnesses = &[3];
    c.allow(&[(Budget::Compactions, 1)]);
    c.plants = &["witness-campaigns", "payload-to-witness", "vote-for-an-older-log"];
    c
}

fn joint_crash() -> Config {
    let about = "three voters; one is replaced, or two go at once, through joint configurations";
    let mut c = Config::new("joint-crash", about, &[1, 2, 3]);
    let mut replace = ConfigChange::add_voter(ReplicaId(4), member(4));
    replace.changes.extend(ConfigChange::remove(ReplicaId(2)).changes);
    let mut shrink = ConfigChange::remove(ReplicaId(2));
    shrink.changes.extend(ConfigChange::remove(ReplicaId(3)).changes);
    c.changes = vec![shrink, replace];
    c.replicas = 4;
    c.allow(&[(Budget::Changes, 2), (Budget::Stalls, 1)]);
    c.plants = &["joint-by-one-half", "two-changes-in-flight", "two-votes-in-a-term"];
    c
}

fn transfer_prevote() -> Config {
    let mut c = Config::new(
        "transfer-prevote",
        "three voters with pre-vote and check-quorum, leadership handed over",
        &[1, 2, 3],
    );
    c.allow(&[
        (Budget::Transfers, 2),
        (Budget::Lapses, 3),
        (Budget::Stalls, 1),
        (Budget::Heartbeats, 3),
        (Budget::Timeouts, 8),
    ]);
    (c.pre_vote, c.check_quorum) = (true, true);
    c.plants = &["transfer-to-a-laggard", "vote-for-an-older-log", "duplicate-append-acked-in-flight"];
    c
}

fn read_index() -> Config {
    let mut c = Config::new("read-index", "three voters, reads at all of them", &[1, 2, 3]);
    c.allow(&[(Budget::Reads, 3), (Budget::Stalls, 1), (Budget::Delays, 2)]);
    c.lanes = true;
    c.plants = &["read-before-own-commit", "read-joins-a-running-round", "apply-before-durable"];
    c
}

fn quiesce() -> Config {
    let mut c = Config::new("quiesce", "three voters that fall silent and wake", &[1, 2, 3]);
    c.allow(&[(Budget::Heartbeats, 6), (Budget::Suspicions, 2), (Budget::Stalls, 1)]);
    (c.silent, c.lanes) = (true, true);
    c.plants = &["quiesce-without-match", "quiesce-before-commit-durable", "suspected-leader-kept"];
    c
}

fn forwards() -> Config {
    let about = "three voters, commands forwarded, and closed by who leads; what is told to be lost is never committed";
    let mut c = Config::new("forwards", about, &[1, 2, 3]);
    c.allow(&[(Budget::Closings, 2), (Budget::Delays, 2), (Budget::Stalls, 1)]);
    (c.lanes, c.forward) = (true, true);
    c.plants = &[
        "closed-forward-appended",
        "closed-at-the-commit-index",
        "closed-by-another-terms-leader",
        "forward-of-another-term-appended",
    ];
    c
}

fn remove_readd() -> Config {
    let mut c =
        Config::new("remove-readd", "voters are removed, made non-voting and added again, one by one", &[1, 2, 3]);
    c.changes = vec![
        ConfigChange::remove(ReplicaId(3)),
        ConfigChange::add_learner(ReplicaId(2), member(2)),
        ConfigChange::add_voter(ReplicaId(2), member(2)),
        ConfigChange::add_voter(ReplicaId(3), member(3)),
        ConfigChange::add_voter(ReplicaId(4), member(4)),
    ];
    c.replicas = 4;
    c.allow(&[(Budget::Changes, 3), (Budget::Stalls, 1), (Budget::Compactions, 1)]);
    c.plants = &["two-changes-in-flight", "vote-for-an-older-log"];
    c
}
