//! One node of a script: a core, its clock, its disk, its state machine, and what it has yet to do.

use crate::compare::Sent;
use longboat_raft::*;
use std::collections::{BTreeMap, VecDeque};

/// One tick of the scripts' clocks, in nanoseconds.
pub const TICK: u64 = 1_000_000;
pub const HEARTBEAT_TICKS: u64 = 1;
pub const ELECTION_TICKS: u64 = 3;

/// A batch on its way to the disk.
pub struct Batch {
    pub persist: Option<Persist>,
    pub token: PersistToken,
    pub held: Vec<Message>,
}

/// What is on its way to a node.
pub enum Flying {
    Message(Message),
    /// The disk's word that a batch is durable.
    Durable(u64, PersistToken),
    /// The state machine's word.
    Applied(u64, Index),
}

impl Flying {
    pub fn to(&self) -> u64 {
        match self {
            Self::Message(m) => m.to.0,
            Self::Durable(node, _) | Self::Applied(node, _) => *node,
        }
    }
}

pub struct Node {
    pub core: Core,
    pub clock: Time,
    pub asynchronous: bool,
    pub start: LogPos,
    pub runs: Vec<Run>,
    pub ballot: (u64, u64),
    pub append_work: VecDeque<Batch>,
    pub apply_work: VecDeque<Index>,
    /// Everything that was handed out, by index: term and text.
    pub committed: BTreeMap<u64, (u64, String)>,
}

impl Node {
    pub fn new(config: CoreConfig, start: LogPos, membership: Membership, asynchronous: bool) -> Result<Self, String> {
        let restored =
            Restored { membership: membership.into(), start, last: start, applied: start.index, ..Restored::default() };
        Ok(Self {
            core: Core::new(config, restored, Time::ZERO).map_err(|e| e.to_string())?,
            clock: Time::ZERO,
            asynchronous,
            start,
            runs: Vec::new(),
            ballot: (0, 0),
            append_work: VecDeque::new(),
            apply_work: VecDeque::new(),
            committed: BTreeMap::new(),
        })
    }

    /// The round ends. Returns what leaves at once; `None` when there was nothing at all to do.
    pub fn ready(&mut self) -> Option<Vec<Message>> {
        let mut out = Output::default();
        self.core.take_output(self.clock, &mut out);
        // A snapshot that is wanted is there, at what is applied.
        for to in std::mem::take(&mut out.snapshots_wanted) {
            let meta = self.snapshot();
            self.core.snapshot_sending(to, meta.pos);
            out.early.push(self.snapshot_message(to, meta));
        }
        if out.is_empty() {
            return None;
        }
        let mut leaves = std::mem::take(&mut out.early);
        for run in &out.committed {
            self.committed.extend(run.entries().map(|e| (e.index.0, (e.term.0, entry_text(&e)))));
        }
        if let Some(run) = out.committed.last() {
            self.apply_work.push_back(run.last());
        }
        if let Some(token) = out.token.take() {
            // etcd's vote requests leave before the vote is durable. Here they would leave with the batch; the scripts
            // deliver them before.
            let (votes, held) =
                out.held.drain(..).partition(|m| matches!(m.body, Body::RequestVote { pre: false, .. }));
            leaves.extend::<Vec<Message>>(votes);
            self.append_work.push_back(Batch { persist: out.persist.take(), token, held });
        }
        Some(leaves)
    }

    /// The oldest batch reaches the disk.
    pub fn write(&mut self) -> Option<(PersistToken, Vec<Message>)> {
        let batch = self.append_work.pop_front()?;
        if let Some(persist) = &batch.persist {
            self.write_batch(persist);
        }
        Some((batch.token, batch.held))
    }

    fn write_batch(&mut self, persist: &Persist) {
        if let Some(meta) = &persist.install {
            self.start = meta.pos;
            self.runs.clear();
        }
        if let Some(from) = persist.cut_tail {
            self.runs.retain(|r| r.first() < from);
            if let Some(run) = self.runs.pop() {
                self.runs.push(run.slice(run.first()..=run.last().min(from.prev())));
            }
        }
        self.runs.extend(persist.runs.iter().cloned());
        self.ballot = (persist.hard_state.term.0, persist.hard_state.vote.0);
    }

    pub fn snapshot(&self) -> SnapshotMeta {
        let index = self.core.applied_index();
        let term = self.core.term_at(index).expect("what is applied is in the log or its start");
        SnapshotMeta { pos: LogPos::new(term, index), membership: self.core.membership().clone() }
    }

    pub fn snapshot_message(&self, to: ReplicaId, meta: SnapshotMeta) -> Message {
        let body = Body::Snapshot(Box::new(meta));
        Message { from: self.core.replica(), to, term: self.core.term(), body }
    }

    /// Forgets the log through `to`. Returns what remains, as it is printed.
    pub fn compact(&mut self, to: Index) -> Result<String, String> {
        if to <= self.start.index {
            return Ok("requested index is unavailable due to compaction".to_owned());
        }
        if to > self.core.applied_index() {
            return Err(format!("compacts through {to}, applied is {}", self.core.applied_index()));
        }
        self.core.compact(to);
        self.start = self.core.start();
        Ok(self.log_text())
    }

    /// The durable log, as the scripts print it.
    pub fn log_text(&self) -> String {
        let entries: Vec<String> = (self.runs.iter().flat_map(Run::entries))
            .filter(|e| e.index > self.start.index)
            .map(|e| format!("{}/{} {}\n", e.term, e.index, entry_text(&e)))
            .collect();
        if entries.is_empty() {
            let first = self.start.index.next();
            return format!("log is empty: first index={first}, last index={}\n", self.start.index);
        }
        entries.concat()
    }

    /// State, match and pending snapshot of every member.
    pub fn status(&self) -> Vec<String> {
        let mut ids: Vec<ReplicaId> = self.core.membership().replicas().collect();
        ids.sort_unstable();
        let line = |id: &ReplicaId| {
            let p = self.core.progress(*id)?;
            let (state, pending) = match p.state() {
                ProgressState::Probe => ("StateProbe", String::new()),
                ProgressState::Replicate => ("StateReplicate", String::new()),
                ProgressState::Snapshot { pending } => ("StateSnapshot", format!(" pendingSnap={pending}")),
            };
            Some(format!("{id}: {state} match={}{pending}", p.matched()))
        };
        ids.iter().filter_map(line).collect()
    }

    pub fn state_text(&self) -> String {
        let core = &self.core;
        let state = match core.role() {
            Role::Follower => "StateFollower",
            Role::PreCandidate => "StatePreCandidate",
            Role::Candidate => "StateCandidate",
            Role::Leader => "StateLeader",
        };
        let voter = if core.is_voter() { "Voter" } else { "Non-Voter" };
        let leader = core.leader().unwrap_or_default();
        format!("{}: {state} ({voter}) Term:{} Lead:{leader}\n", core.replica(), core.term())
    }
}

fn entry_text(entry: &EntryRef<'_>) -> String {
    if entry.kind != EntryKind::Config {
        return format!("EntryNormal {:?}", String::from_utf8_lossy(entry.payload));
    }
    let change = ConfigChange::decode(entry.payload).expect("a config entry of the log");
    let step = |c: &Change| {
        let kind = match c.kind {
            ChangeKind::AddVoter => 'v',
            ChangeKind::AddLearner => 'l',
            ChangeKind::Remove => 'r',
            ChangeKind::Update => 'u',
            ChangeKind::AddWitness => 'w',
        };
        format!(" {kind}{}", c.replica)
    };
    format!("EntryConfChange{}", change.changes.iter().map(step).collect::<String>())
}

/// A message in etcd's terms. What has no counterpart there is told apart by `None`.
pub fn describe(message: &Message) -> Option<Sent> {
    let mut sent = Sent { from: message.from.0, to: message.to.0, term: message.term.0, ..Sent::default() };
    match &message.body {
        Body::Append { prev, commit, runs } => {
            sent.kind = "MsgApp";
            (sent.log_term, sent.index, sent.commit) = (prev.term.0, prev.index.0, commit.0);
            sent.entries = runs.iter().flat_map(Run::entries).map(|e| (e.index.0, e.term.0, entry_text(&e))).collect();
        }
        Body::Commit { commit } => (sent.kind, sent.commit) = ("MsgApp", commit.0),
        Body::AppendAccepted { matched } => (sent.kind, sent.index) = ("MsgAppResp", matched.0),
        Body::AppendRejected { rejected, hint } => {
            sent.kind = "MsgAppResp";
            (sent.index, sent.log_term, sent.rejected) = (rejected.0, hint.term.0, Some(hint.index.0));
        }
        Body::Heartbeat { .. } => sent.kind = "MsgHeartbeat",
        Body::HeartbeatResponse { .. } => sent.kind = "MsgHeartbeatResp",
        Body::RequestVote { pre, last, .. } => {
            sent.kind = if *pre { "MsgPreVote" } else { "MsgVote" };
            (sent.log_term, sent.index) = (last.term.0, last.index.0);
        }
        Body::VoteResponse { pre, granted } => {
            sent.kind = if *pre { "MsgPreVoteResp" } else { "MsgVoteResp" };
            sent.rejected = (!granted).then_some(0);
        }
        Body::Snapshot(meta) => {
            sent.kind = "MsgSnap";
            sent.snapshot = snapshot_text(meta);
        }
        Body::Forward(_) => sent.kind = "MsgProp",
        Body::TimeoutNow => sent.kind = "MsgTimeoutNow",
        Body::ReadIndex { .. } | Body::ReadIndexResponse { .. } | Body::ForwardRefused { .. } => return None,
        Body::CloseForwards { .. } | Body::ForwardsClosed { .. } => return None,
        // The scripts' groups never fall silent.
        Body::Quiesce { .. } | Body::QuiesceResponse { .. } => return None,
        // Nor have they witnesses, full hosts, or replicas that lost a part of what they had.
        Body::AppendPaused { .. } | Body::SnapshotNeeded { .. } | Body::WitnessSnapshot(_) => return None,
        Body::Removed { .. } | Body::Transfer { .. } | Body::TransferAnswer { .. } => return None,
    }
    Some(sent)
}

fn snapshot_text(meta: &SnapshotMeta) -> String {
    let m = &meta.membership;
    let list = |set: &std::collections::BTreeSet<ReplicaId>| {
        let ids: Vec<String> = set.iter().map(ToString::to_string).collect();
        format!("[{}]", ids.join(" "))
    };
    format!(
        "Snapshot: Index:{} Term:{} ConfState:Voters:{} VotersOutgoing:{} Learners:{} LearnersNext:{} AutoLeave:{}",
        meta.pos.index,
        meta.pos.term,
        list(&m.voters),
        list(&m.outgoing),
        list(&m.learners),
        list(&m.learners_next),
        m.auto_leave
    )
}
