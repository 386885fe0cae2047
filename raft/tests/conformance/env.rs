//! Drives whole groups of nodes by a script and compares what the script expects.
//!
//! Each node has a core and a clock of its own, which only the tick commands move. After each input the round ends, so
//! one input gives one broadcast; output is moved out by `process-ready`, in `stabilize` for as long as there is any.

use crate::compare::{Sent, Traffics};
use crate::datadriven::{Case, flag, number};
use crate::expect::{self, Processed, Section};
use crate::node::{self, ELECTION_TICKS, Flying, HEARTBEAT_TICKS, Node, TICK};
use crate::pure::parse_changes;
use longboat_raft::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Default)]
pub struct Env {
    nodes: BTreeMap<u64, Node>,
    net: VecDeque<Flying>,
    hidden: bool,
    /// Commit indexes that move alone travel in empty appends, as etcd's do.
    commit_by_append: bool,
    /// Messages sent since they were last compared: what the script says, and what was.
    expected: Traffics,
    sent: Traffics,
    /// The highest index that `from` acknowledged to `to`, ever.
    acknowledged: BTreeMap<(u64, u64), u64>,
    /// The last hard state that the script told of a node.
    hard_states: BTreeMap<u64, (u64, u64, u64)>,
    /// Nodes whose committed entries the script showed in full since they were last compared, and which entries.
    committed: BTreeMap<u64, BTreeMap<u64, (u64, String)>>,
    /// How far each node had handed out when that was last compared.
    handed: BTreeMap<u64, u64>,
}

pub fn run(cases: &[Case], commit_by_append: bool) -> Result<(), String> {
    let mut env = Env { commit_by_append, ..Env::default() };
    for case in cases {
        env.case(case).map_err(|e| format!("line {}: {}: {e}", case.line, case.command))?;
    }
    // Scripts that never come to rest are compared where they end.
    let senders: Vec<u64> = env.nodes.keys().copied().collect();
    env.compare_messages(&senders).map_err(|e| format!("at the end: {e}"))
}

impl Env {
    fn case(&mut self, case: &Case) -> Result<(), String> {
        let quiet = case.values("log-level").map(|v| is_silent(&v.concat())).transpose()?;
        let hidden = quiet.unwrap_or(self.hidden);
        let ids = || case.numbers();
        match case.command.as_str() {
            // Where a debugger would stop.
            "_breakpoint" => return Ok(()),
            "log-level" => {
                self.hidden = is_silent(case.args.first().map(|a| a.key.as_str()).unwrap_or_default())?;
                return Ok(());
            }
            "add-nodes" => return self.add_nodes(case),
            "campaign" => self.input(ids()?[0], |node| node.core.campaign(node.clock))?,
            "propose" => return self.propose(case),
            "propose-conf-change" => self.propose_conf_change(case)?,
            "tick-heartbeat" => self.tick(ids()?[0], HEARTBEAT_TICKS)?,
            "tick-election" => self.tick(ids()?[0], ELECTION_TICKS)?,
            "set-randomized-election-timeout" => {
                case.only(&["timeout"])?;
                let ticks = number(&case.values("timeout").ok_or("no timeout")?[0])?;
                self.input(ids()?[0], |node| node.core.set_election_timeout(ticks * TICK))?;
            }
            "report-unreachable" => {
                let (node, other) = (ids()?[0], ids()?[1]);
                self.input(node, |node| node.core.report_unreachable(ReplicaId(other)))?;
            }
            "forget-leader" => self.input(ids()?[0], |node| node.core.forget_leader())?,
            "transfer-leadership" => {
                case.only(&["from", "to"])?;
                let end = |key| case.values(key).map_or(Err("no from or to".to_owned()), |v| number(&v[0]));
                let (from, to) = (end("from")?, end("to")?);
                self.input(from, |node| {
                    // etcd gives a transfer up for another. Here that is asked for.
                    if let Err(TransferRefused::Busy(_)) = node.core.transfer_leader(node.clock, ReplicaId(to)) {
                        node.core.give_up_transfer(node.clock);
                        _ = node.core.transfer_leader(node.clock, ReplicaId(to));
                    }
                })?;
            }
            "compact" => {
                let [id, to] = ids()?[..] else {
                    return Err("wants a node and an index".to_owned());
                };
                let got = self.node(id)?.compact(Index(to))?;
                return if hidden { Ok(()) } else { self.equal(case, got) };
            }
            "send-snapshot" => return self.send_snapshot(case, hidden),
            "deliver-msgs" => self.deliver_msgs(case)?,
            "process-ready" => {
                for id in ids()? {
                    self.process_ready(id)?;
                }
            }
            "process-append-thread" => self.process_append_threads(case, &ids()?, hidden)?,
            "process-apply-thread" => {
                for id in ids()? {
                    self.process_apply(id)?;
                }
            }
            "stabilize" => {
                case.only(&["log-level"])?;
                let ids = if ids()?.is_empty() { self.nodes.keys().copied().collect() } else { ids()? };
                self.stabilize(&ids)?;
                self.learn(case, hidden)?;
                return if hidden { Ok(()) } else { self.compare(&ids) };
            }
            "raft-state" => return self.equal(case, self.nodes.values().map(Node::state_text).collect()),
            "raft-log" => {
                let got = self.node(ids()?[0])?.log_text();
                return self.equal(case, got);
            }
            "status" => return self.status(case),
            other => return Err(format!("operation {other} is not known")),
        }
        self.learn(case, hidden)
    }

    fn node(&mut self, id: u64) -> Result<&mut Node, String> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("no node {id}"))
    }

    /// An input, and the end of its round.
    fn input(&mut self, id: u64, act: impl FnOnce(&mut Node)) -> Result<(), String> {
        let node = self.node(id)?;
        act(node);
        node.core.end_round();
        Ok(())
    }

    fn add_nodes(&mut self, case: &Case) -> Result<(), String> {
        let known = [
            "voters",
            "learners",
            "index",
            "content",
            "async-storage-writes",
            "prevote",
            "checkquorum",
            "inflight",
            "max-committed-size-per-ready",
            "disable-conf-change-validation",
            "read-only",
            "step-down-on-removal",
        ];
        case.only(&known)?;
        let one = |key: &str| case.values(key).map(|v| v[0].as_str());
        let on = |key: &str| one(key).map_or(Ok(false), flag);
        let size = |key: &str| one(key).map_or(Ok(0), number).map(|n| if n == 0 { usize::MAX } else { n as usize });
        let ids = |key: &str| -> Result<BTreeSet<ReplicaId>, String> {
            case.values(key).unwrap_or_default().iter().map(|v| number(v).map(ReplicaId)).collect()
        };
        match one("read-only") {
            None | Some("safe") => {}
            Some("lease-based") => return Err("lease reads are not specified yet".to_owned()),
            Some(other) => return Err(format!("read-only option {other} is not known")),
        }
        let index = one("index").map_or(Ok(0), number)?;
        let unchecked = on("disable-conf-change-validation")?;
        let bootstrap = ["voters", "learners", "index", "content"].iter().any(|key| case.values(key).is_some());
        if bootstrap && index <= 1 {
            return self.says(case, "index must be specified as > 1 due to bootstrap");
        }
        let membership = Membership { voters: ids("voters")?, learners: ids("learners")?, ..Membership::default() };
        let start = LogPos::new(Term(u64::from(index > 0)), Index(index));
        for _ in 0..*case.numbers()?.first().ok_or("no number of nodes")? {
            let id = self.nodes.len() as u64 + 1;
            let config = CoreConfig {
                replica: ReplicaId(id),
                seed: id,
                election_timeout_nanos: ELECTION_TICKS * TICK,
                heartbeat_interval_nanos: HEARTBEAT_TICKS * TICK,
                append_bytes_max: usize::MAX,
                inflight_appends_max: size("inflight")?,
                inflight_bytes_max: u64::MAX,
                handout_bytes_max: size("max-committed-size-per-ready")?,
                change_checks: if unchecked { ChangeChecks::Nothing } else { ChangeChecks::Order },
                commit_by_append: self.commit_by_append,
                pre_vote: on("prevote")?,
                check_quorum: on("checkquorum")?,
                step_down_on_removal: on("step-down-on-removal")?,
                // etcd tells removed nodes nothing.
                see_off_removed: false,
                ..CoreConfig::default()
            };
            let node = Node::new(config, start, membership.clone(), on("async-storage-writes")?)?;
            self.handed.insert(id, index);
            self.nodes.insert(id, node);
        }
        Ok(())
    }

    /// What a command prints when it is refused.
    fn says(&self, case: &Case, text: &str) -> Result<(), String> {
        if case.expected.contains(text) { Ok(()) } else { Err(format!("expected {}got {text}", case.expected)) }
    }

    fn tick(&mut self, id: u64, ticks: u64) -> Result<(), String> {
        for _ in 0..ticks {
            self.input(id, |node| {
                node.clock = node.clock.plus_nanos(TICK);
                node.core.advance(node.clock);
            })?;
        }
        Ok(())
    }

    fn propose(&mut self, case: &Case) -> Result<(), String> {
        let [id, data] = &case.args[..] else {
            return Err("wants a node and data".to_owned());
        };
        let mut chunk = RunBuilder::new();
        chunk.push(EntryKind::Command, 0, data.key.as_bytes());
        let node = self.node(number(&id.key)?)?;
        let taken = node.core.propose(node.clock, chunk, Origin::default(), ProposeOptions::default());
        node.core.end_round();
        let dropped = case.expected.contains("proposal dropped");
        if taken.is_err() != dropped {
            return Err(format!("expected {}got {taken:?}", case.expected));
        }
        Ok(())
    }

    fn propose_conf_change(&mut self, case: &Case) -> Result<(), String> {
        case.only(&["v1", "transition"])?;
        let v1 = case.values("v1").map_or(Ok(false), |v| flag(&v.concat()))?;
        let changes = parse_changes(&case.input)?;
        if v1 && (changes.len() != 1 || case.values("transition").is_some_and(|v| v != ["auto"])) {
            return self.says(case, "v1 conf change can only have one operation and no transition");
        }
        let transition = match case.values("transition").map(|v| v[0].as_str()) {
            None | Some("auto") => Transition::Auto,
            Some("implicit") => Transition::JointImplicit,
            Some("explicit") => Transition::JointExplicit,
            Some(other) => return Err(format!("transition {other} is not known")),
        };
        let change = ConfigChange { transition, changes, after: None };
        let node = self.node(number(&case.args[0].key)?)?;
        let origin = Origin::default();
        match node.core.propose_change(node.clock, change, 0, origin, ProposeOptions::default()) {
            Ok(_) => {}
            // etcd makes an empty entry of a change that it refuses.
            Err(Refused { reason: RefusedWhy::ConfigChange(_), .. }) => {
                let mut chunk = RunBuilder::new();
                chunk.push(EntryKind::Empty, 0, b"");
                node.core
                    .propose(node.clock, chunk, origin, ProposeOptions::default())
                    .map_err(|e| e.reason.to_string())?;
            }
            Err(_) if case.expected.contains("proposal dropped") => {}
            Err(refused) => return Err(refused.reason.to_string()),
        }
        node.core.end_round();
        Ok(())
    }

    /// A snapshot is sent behind the leader's back: the script tells of it, no node does.
    fn send_snapshot(&mut self, case: &Case, hidden: bool) -> Result<(), String> {
        let [from, to] = case.numbers()?[..] else {
            return Err("wants two nodes".to_owned());
        };
        let node = self.node(from)?;
        let message = node.snapshot_message(ReplicaId(to), node.snapshot());
        let sent = node::describe(&message).expect("etcd has snapshots");
        self.net.push_back(Flying::Message(message));
        if !hidden && !case.expected.contains(&sent.snapshot) {
            return Err(format!("expected {}got {}", case.expected, sent.snapshot));
        }
        Ok(())
    }

    /// Messages leave a node.
    fn dispatch(&mut self, messages: Vec<Message>) {
        for message in messages {
            if let Some(sent) = node::describe(&message) {
                self.sent.entry((sent.from, sent.to)).or_default().add(sent);
            }
            self.net.push_back(Flying::Message(message));
        }
    }

    fn process_ready(&mut self, id: u64) -> Result<bool, String> {
        let node = self.node(id)?;
        let Some(messages) = node.ready() else {
            return Ok(false);
        };
        let asynchronous = node.asynchronous;
        self.dispatch(messages);
        if !asynchronous {
            while let Some((token, held)) = self.node(id)?.write() {
                self.input(id, |node| node.core.persisted(token).expect("in order"))?;
                self.dispatch(held);
            }
            let node = self.node(id)?;
            while let Some(index) = node.apply_work.pop_front() {
                node.core.applied(index);
            }
        }
        Ok(true)
    }

    fn process_append(&mut self, id: u64) -> Result<bool, String> {
        let Some((token, held)) = self.node(id)?.write() else {
            return Ok(false);
        };
        self.dispatch(held);
        self.net.push_back(Flying::Durable(id, token));
        Ok(true)
    }

    /// Completes the batches that the script's lines name; lines that only move the commit index have none here.
    fn process_append_threads(&mut self, case: &Case, ids: &[u64], hidden: bool) -> Result<(), String> {
        if hidden {
            return ids.iter().try_for_each(|id| self.process_append(*id).map(drop));
        }
        let only = (ids.len() == 1).then(|| ids[0]);
        for section in expect::sections(&case.expected, only)? {
            for line in &section.processed {
                self.process_named_batch(section.node, line)?;
            }
        }
        Ok(())
    }

    fn process_named_batch(&mut self, id: u64, line: &Processed) -> Result<(), String> {
        let node = self.node(id)?;
        let same_ballot = line.term == 0 || (line.term, line.vote) == node.ballot;
        let commit_only = line.entries.is_empty() && !line.has_snapshot && same_ballot;
        let front = node.append_work.front();
        if commit_only {
            let waits = front.is_some_and(|b| b.persist.is_none());
            if line.has_responses && waits {
                self.process_append(id)?;
            }
            return Ok(());
        }
        let persist = front.and_then(|b| b.persist.as_ref()).ok_or("no batch where the script has one")?;
        let last = persist.runs.last().map(|r| (r.last().0, r.term().0));
        let wanted = line.entries.last().map(|(index, term, _)| (*index, *term));
        let ballot = (persist.hard_state.term.0, persist.hard_state.vote.0);
        if last != wanted || (line.term != 0 && ballot != (line.term, line.vote)) {
            return Err(format!("batch of {last:?} and {ballot:?} where the script has {line:?}"));
        }
        self.process_append(id).map(drop)
    }

    fn process_apply(&mut self, id: u64) -> Result<bool, String> {
        let Some(index) = self.node(id)?.apply_work.pop_front() else {
            return Ok(false);
        };
        self.net.push_back(Flying::Applied(id, index));
        Ok(true)
    }

    fn deliver_msgs(&mut self, case: &Case) -> Result<(), String> {
        case.only(&["drop", "type"])?;
        let kind = case.values("type").map(|v| v[0].as_str());
        let known = |k: &str| crate::compare::KINDS.contains(&k) || LOCAL_KINDS.contains(&k);
        if kind.is_some_and(|k| !known(k)) {
            return Err(format!("message {kind:?} is not known"));
        }
        let to = case.numbers()?;
        let dropped: Vec<u64> =
            case.values("drop").unwrap_or_default().iter().map(|v| number(v)).collect::<Result<_, _>>()?;
        if let Some(id) = to.iter().find(|id| dropped.contains(id)) {
            return Err(format!("can't both deliver and drop messages to {id}"));
        }
        for id in to {
            self.deliver(id, kind)?;
        }
        // What a node says to itself is never lost.
        self.net.retain(|f| {
            !dropped.contains(&f.to()) || matches!(f, Flying::Durable(..) | Flying::Applied(..)) || !is_kind(f, kind)
        });
        Ok(())
    }

    /// Delivers what is on its way to a node now. Whether there was anything.
    fn deliver(&mut self, id: u64, kind: Option<&str>) -> Result<bool, String> {
        let mine = |f: &Flying| f.to() == id && is_kind(f, kind);
        let (now, later): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.net).into_iter().partition(mine);
        self.net = later;
        let any = !now.is_empty();
        for flying in now {
            let mut violation = None;
            self.input(id, |node| match flying {
                Flying::Message(message) => violation = node.core.step(node.clock, message).err(),
                Flying::Durable(_, token) => violation = node.core.persisted(token).err(),
                Flying::Applied(_, index) => node.core.applied(index),
            })?;
            if let Some(violation) = violation {
                return Err(format!("node {id}: {violation}"));
            }
        }
        Ok(any)
    }

    fn stabilize(&mut self, ids: &[u64]) -> Result<(), String> {
        for _ in 0..1000 {
            let mut done = true;
            for id in ids {
                done &= !self.process_ready(*id)?;
            }
            for id in ids {
                done &= !self.deliver(*id, None)?;
            }
            for id in ids {
                while self.process_append(*id)? {
                    done = false;
                }
            }
            for id in ids {
                while self.process_apply(*id)? {
                    done = false;
                }
            }
            if done {
                return Ok(());
            }
        }
        Err("nodes do not come to rest".to_owned())
    }

    /// Notes what the script says happened. After output that it hides, what was compared starts afresh.
    fn learn(&mut self, case: &Case, hidden: bool) -> Result<(), String> {
        if hidden {
            self.expected.clear();
            self.note_acknowledgements(|_| true);
            self.hard_states.clear();
            self.committed.clear();
            self.handed = self.nodes.iter().map(|(id, n)| (*id, n.core.handed().0)).collect();
            return Ok(());
        }
        let acts = ["process-ready", "process-append-thread", "stabilize"];
        if !acts.contains(&case.command.as_str()) {
            return Ok(());
        }
        let ids = case.numbers()?;
        let only = (case.command != "stabilize" && ids.len() == 1).then(|| ids[0]);
        for section in expect::sections(&case.expected, only)? {
            let Section { node, hard_state, committed, sent, .. } = section;
            if let Some(state) = hard_state {
                self.hard_states.insert(node, state);
            }
            let entries = self.committed.entry(node).or_default();
            entries.extend(committed.into_iter().map(|(index, term, text)| (index, (term, text))));
            for message in sent {
                let Sent { from, to, .. } = message;
                self.expected.entry((from, to)).or_default().add(message);
            }
        }
        Ok(())
    }

    /// Forgets the messages from nodes that `of` tells, and keeps what they acknowledged.
    fn note_acknowledgements(&mut self, of: impl Fn(u64) -> bool) {
        for (ends, traffic) in &self.sent {
            if of(ends.0) {
                let highest = self.acknowledged.entry(*ends).or_default();
                *highest = (*highest).max(traffic.accepted.unwrap_or(0));
            }
        }
        self.sent.retain(|ends, _| !of(ends.0));
        self.expected.retain(|ends, _| !of(ends.0));
    }

    /// The nodes came to rest: what they said, have committed and hold as hard state must be what the script says.
    fn compare(&mut self, ids: &[u64]) -> Result<(), String> {
        self.compare_messages(ids)?;
        ids.iter().try_for_each(|id| self.compare_node(*id))
    }

    fn compare_messages(&mut self, ids: &[u64]) -> Result<(), String> {
        let pairs: BTreeSet<(u64, u64)> = self.expected.keys().chain(self.sent.keys()).copied().collect();
        for ends in pairs.into_iter().filter(|(from, _)| ids.contains(from)) {
            let expected = self.expected.get(&ends).cloned().unwrap_or_default();
            let sent = self.sent.get(&ends).cloned().unwrap_or_default();
            let acknowledged = self.acknowledged.get(&ends).copied().unwrap_or(0);
            if !expected.matches(&sent, acknowledged) {
                return Err(format!("messages {ends:?}: expected\n  {expected:?}\ngot\n  {sent:?}"));
            }
        }
        self.note_acknowledgements(|from| ids.contains(&from));
        Ok(())
    }

    fn compare_node(&mut self, id: u64) -> Result<(), String> {
        let expected = self.committed.remove(&id).unwrap_or_default();
        let before = self.handed.get(&id).copied().unwrap_or(0);
        let known = self.hard_states.get(&id).copied();
        let node = self.node(id)?;
        let state = node.core.hard_state();
        let state = (state.term.0, state.vote.0, state.commit.0);
        if known.is_some_and(|known| known != state) {
            return Err(format!("hard state of {id} (term, vote, commit): expected {known:?}, got {state:?}"));
        }
        let got: BTreeMap<_, _> = node.committed.range(before + 1..).map(|(i, e)| (*i, e.clone())).collect();
        let handed = node.core.handed().0;
        self.handed.insert(id, handed);
        if got != expected {
            return Err(format!("committed by {id}: expected\n  {expected:?}\ngot\n  {got:?}"));
        }
        Ok(())
    }

    fn equal(&self, case: &Case, got: String) -> Result<(), String> {
        let expected = case.expected.replace("EntryConfChangeV2", "EntryConfChange");
        if expected.trim_end() == got.trim_end() { Ok(()) } else { Err(format!("expected\n{expected}got\n{got}")) }
    }

    /// Of a status, the state, match and pending snapshot of each member.
    fn status(&mut self, case: &Case) -> Result<(), String> {
        let kept = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let pending = words.iter().find(|w| w.starts_with("pendingSnap="));
            let matched = words.iter().find(|w| w.starts_with("match=")).copied().unwrap_or_default();
            let pending = pending.map_or(String::new(), |p| format!(" {p}"));
            format!("{} {} {matched}{pending}", words[0], words.get(1).copied().unwrap_or_default())
        };
        // Who does not lead has nothing to tell.
        let expected: Vec<String> = case.expected.lines().filter(|l| *l != "ok").map(kept).collect();
        let got = self.node(case.numbers()?[0])?.status();
        if expected == got { Ok(()) } else { Err(format!("expected {expected:#?}, got {got:#?}")) }
    }
}

/// Whether output of this level hides everything.
fn is_silent(level: &str) -> Result<bool, String> {
    match level.to_lowercase().as_str() {
        "none" => Ok(true),
        "debug" | "info" | "warn" | "error" | "fatal" => Ok(false),
        _ => Err(format!("log level {level} is not known")),
    }
}

/// What a node's disk and state machine say to it.
const LOCAL_KINDS: &[&str] = &["MsgStorageAppendResp", "MsgStorageApplyResp"];

fn is_kind(flying: &Flying, kind: Option<&str>) -> bool {
    kind.is_none_or(|kind| match flying {
        Flying::Message(message) => node::describe(message).is_some_and(|sent| sent.kind == kind),
        Flying::Durable(..) => kind == LOCAL_KINDS[0],
        Flying::Applied(..) => kind == LOCAL_KINDS[1],
    })
}
