//! What must be equal of the messages between two nodes, on both sides of the comparison.

use std::collections::{BTreeMap, BTreeSet};

/// Entries by index: term and text.
pub type Entries = BTreeMap<u64, (u64, String)>;

/// Messages from one node to another since they were last compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Votes, pre-votes, their answers, TimeoutNow and snapshots, as lines.
    pub exact: Vec<String>,
    /// Appends: the union of their entries.
    pub entries: Entries,
    /// Appends: the highest commit index.
    pub commit: Option<u64>,
    /// Append answers: the highest index.
    pub accepted: Option<u64>,
    /// Append answers: each rejection, as (index, hint, hint's term). As appends are not counted, one that is only
    /// repeated counts once.
    pub rejected: BTreeSet<(u64, u64, u64)>,
    pub heartbeats: bool,
    pub heartbeat_answers: bool,
}

/// All traffic, by (from, to).
pub type Traffics = BTreeMap<(u64, u64), Traffic>;

/// What a message is, in etcd's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub from: u64,
    pub to: u64,
    pub kind: &'static str,
    pub term: u64,
    pub log_term: u64,
    pub index: u64,
    pub commit: u64,
    pub rejected: Option<u64>,
    pub entries: Vec<(u64, u64, String)>,
    /// The snapshot's line.
    pub snapshot: String,
}

/// The kinds of message between nodes that are compared or known.
pub const KINDS: &[&str] = &[
    "MsgApp",
    "MsgAppResp",
    "MsgVote",
    "MsgVoteResp",
    "MsgPreVote",
    "MsgPreVoteResp",
    "MsgHeartbeat",
    "MsgHeartbeatResp",
    "MsgSnap",
    "MsgProp",
    "MsgTimeoutNow",
];

impl Traffic {
    pub fn add(&mut self, m: Sent) {
        let refused = if m.rejected.is_some() { " rejected" } else { "" };
        match m.kind {
            "MsgApp" => {
                self.commit = self.commit.max(Some(m.commit));
                self.entries.extend(m.entries.into_iter().map(|(index, term, text)| (index, (term, text))));
            }
            "MsgAppResp" => match m.rejected {
                Some(hint) => _ = self.rejected.insert((m.index, hint, m.log_term)),
                None => self.accepted = self.accepted.max(Some(m.index)),
            },
            "MsgHeartbeat" => self.heartbeats = true,
            "MsgHeartbeatResp" => self.heartbeat_answers = true,
            "MsgSnap" => self.exact.push(format!("MsgSnap term {} {}", m.term, m.snapshot)),
            "MsgProp" => {}
            kind => self.exact.push(format!("{kind} term {} log {}/{}{refused}", m.term, m.log_term, m.index)),
        }
    }

    /// Whether `ours` is as good as what was expected. `acknowledged` is the highest index acknowledged before.
    pub fn matches(&self, ours: &Self, acknowledged: u64) -> bool {
        let mut ours = ours.clone();
        // A commit index that moves alone is not acknowledged here: etcd's answer says again what was said before.
        let repeated = self.accepted.is_some_and(|index| index <= acknowledged);
        if ours.accepted.is_none() && repeated {
            ours.accepted = self.accepted;
        }
        *self == ours
    }
}
