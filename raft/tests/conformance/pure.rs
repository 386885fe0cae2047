//! Scripts of pure functions: `quorum/` and `confchange/`.

use crate::datadriven::{Case, flag, number};
use longboat_raft::changer::{enter_joint, leave_joint, simple};
use longboat_raft::quorum::{VoteResult, joint_index, joint_vote};
use longboat_raft::{Change, ChangeKind, Index, Member, Membership, Promotion, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

fn at(case: &Case, what: &str) -> String {
    format!("line {}: {}: {what}", case.line, case.command)
}

pub fn quorum(cases: &[Case]) -> Result<(), String> {
    for case in cases {
        case.only(&["cfg", "cfgj", "idx", "votes"]).map_err(|e| at(case, &e))?;
        let got = quorum_case(case).map_err(|e| at(case, &e))?;
        let expected = case.expected.lines().last().unwrap_or_default();
        let expected = expected.rsplit('>').next().unwrap_or_default().trim();
        if got != expected {
            return Err(at(case, &format!("expected {expected}, got {got}")));
        }
    }
    Ok(())
}

fn quorum_case(case: &Case) -> Result<String, String> {
    let ids = |key| -> Result<Vec<u64>, String> {
        let values = case.values(key).unwrap_or_default();
        values.iter().filter(|v| *v != "zero").map(|v| number(v)).collect()
    };
    let (incoming, outgoing) = (ids("cfg")?, ids("cfgj")?);
    // What is given is given for the voters of both halves in order, each once.
    let mut voters: Vec<u64> = Vec::new();
    for id in incoming.iter().chain(&outgoing) {
        if !voters.contains(id) {
            voters.push(*id);
        }
    }
    let key = if case.command == "vote" { "votes" } else { "idx" };
    let given = case.values(key).unwrap_or_default();
    if given.len() != voters.len() {
        return Err(format!("{} values for {} voters", given.len(), voters.len()));
    }
    let said: BTreeMap<u64, &str> = voters.iter().copied().zip(given.iter().map(String::as_str)).collect();
    match case.command.as_str() {
        "committed" => {
            let reached = |ids: &[u64]| -> Result<Vec<Index>, String> {
                let index = |id: &u64| if said[id] == "_" { Ok(0) } else { number(said[id]) };
                ids.iter().map(|id| index(id).map(Index)).collect()
            };
            let index = joint_index(reached(&incoming)?, reached(&outgoing)?);
            Ok(if index.0 == u64::MAX { "∞".to_owned() } else { index.to_string() })
        }
        "vote" => {
            let votes = |ids: &[u64]| -> Result<Vec<Option<bool>>, String> {
                let vote = |id: &u64| match said[id] {
                    "y" => Ok(Some(true)),
                    "n" => Ok(Some(false)),
                    "_" => Ok(None),
                    other => Err(format!("vote {other:?} is not known")),
                };
                ids.iter().map(vote).collect()
            };
            let result = joint_vote(votes(&incoming)?, votes(&outgoing)?);
            let name = match result {
                VoteResult::Pending => "VotePending",
                VoteResult::Lost => "VoteLost",
                VoteResult::Won => "VoteWon",
            };
            Ok(name.to_owned())
        }
        other => Err(format!("operation {other} is not known")),
    }
}

/// `v1 l2 r3 u4`: voter, learner, removed, updated.
pub fn parse_changes(text: &str) -> Result<Vec<Change>, String> {
    let change = |word: &str| {
        let (kind, id) = word.split_at(1);
        let kind = match kind {
            "v" => ChangeKind::AddVoter,
            "l" => ChangeKind::AddLearner,
            "r" => ChangeKind::Remove,
            "u" => ChangeKind::Update,
            other => return Err(format!("change {other} is not known")),
        };
        Ok(Change { kind, replica: ReplicaId(number(id)?), member: Member::default(), promotion: Promotion::Never })
    };
    text.split_whitespace().map(change).collect()
}

pub fn confchange(cases: &[Case]) -> Result<(), String> {
    let mut membership = Membership::default();
    // Where each member's progress begins: at the last index of when it became one, which the scripts count up.
    let mut next: BTreeMap<ReplicaId, u64> = BTreeMap::new();
    for (last_index, case) in cases.iter().enumerate() {
        case.only(&["autoleave"]).map_err(|e| at(case, &e))?;
        let changes = parse_changes(&case.input).map_err(|e| at(case, &e))?;
        let auto_leave = case.values("autoleave").map_or(Ok(false), |v| flag(&v[0])).map_err(|e| at(case, &e))?;
        let result = match case.command.as_str() {
            "simple" => simple(&membership, &changes),
            "enter-joint" => enter_joint(&membership, &changes, auto_leave),
            "leave-joint" if !changes.is_empty() => {
                if case.expected.starts_with("voters=") {
                    return Err(at(case, "takes no input"));
                }
                continue;
            }
            "leave-joint" => leave_joint(&membership),
            other => return Err(at(case, &format!("operation {other} is not known"))),
        };
        let is_error = !case.expected.starts_with("voters=");
        match result {
            Err(error) if !is_error => return Err(at(case, &format!("refused: {error}"))),
            Err(_) => continue,
            Ok(changed) => membership = changed,
        }
        next.retain(|id, _| membership.contains(*id));
        for id in membership.replicas() {
            next.entry(id).or_insert((last_index as u64).max(1));
        }
        let got = describe(&membership, &next);
        if got != case.expected {
            return Err(at(case, &format!("expected\n{}got\n{got}", case.expected)));
        }
    }
    Ok(())
}

fn describe(m: &Membership, next: &BTreeMap<ReplicaId, u64>) -> String {
    let list = |set: &BTreeSet<ReplicaId>| {
        let ids: Vec<String> = set.iter().map(ToString::to_string).collect();
        format!("({})", ids.join(" "))
    };
    let mut text = format!("voters={}", list(&m.voters));
    for (name, set) in [("&&", &m.outgoing), (" learners=", &m.learners), (" learners_next=", &m.learners_next)] {
        if !set.is_empty() {
            text += &format!("{name}{}", list(set));
        }
    }
    text += if m.auto_leave { " autoleave\n" } else { "\n" };
    for (id, next) in next {
        let learner = if m.learners.contains(id) { " learner" } else { "" };
        text += &format!("{id}: StateProbe match=0 next={next}{learner}\n");
    }
    text
}
