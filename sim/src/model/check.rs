//! The rules, checked in every state.
//!
//! Of a replica alone, once for each state of it that is seen: votes and acknowledgements rest on the disk (where
//! messages leave, in `node`), its membership is what its log or snapshot says, it has at most one membership change
//! that it does not know to be committed, only voters lead. Of all replicas together, after each action: one leader per
//! term, log matching, one history of what is committed, which grows only at a leader, rests on the disks of majorities, is never lost from a
//! disk that had it, and is in the log of every later leader; nobody who lacks some of it could be elected; reads are
//! given an index no lower than what was committed when they were asked (in `act`); what is told to be lost is never committed.

use super::act::{Committed, Model, View};
use super::hash::Hash128;
use super::node::{Mark, Node, Said};
use super::state::State;
use longboat_raft::{Index, LogPos, Membership, ReplicaId, Role};
use std::collections::BTreeSet;

/// Whether the replicas of `mask` are majorities of both halves of a configuration.
fn is_quorum(view: View, mask: u8) -> bool {
    let majority = |half: u8| half == 0 || (mask & half).count_ones() * 2 > half.count_ones();
    view.incoming != 0 && majority(view.incoming) && majority(view.outgoing)
}

impl Model {
    /// What can be said of one replica.
    pub(crate) fn check_alone(&self, node: &Node, said: &mut Said) {
        let (core, id) = (&node.core, node.id());
        let handed = core.handed().0 as usize;
        if handed > node.history.len() || core.commit().0 as usize > node.history.len() {
            return said.wrong(|| format!("replica {id} commits {} past its log", core.commit()));
        }
        if core.is_quiet() && node.disk.hard.commit < core.commit() {
            let saved = node.disk.hard.commit;
            said.wrong(|| {
                format!("replica {id} falls silent with {} committed, and {saved} on its disk", core.commit())
            });
        }
        if node.history.iter().any(|m| m.config) {
            self.check_membership(node, handed, said);
        }
        if core.role() == Role::Leader && !core.is_voter() && !core.helps_out() && self.config.step_down {
            said.wrong(|| format!("replica {id} leads in term {} and is no voter", core.term()));
        }
        if core.role() == Role::Leader && core.membership().witnesses.contains(&id) {
            said.wrong(|| format!("witness {id} leads in term {}", core.term()));
        }
    }

    fn check_membership(&self, node: &Node, handed: usize, said: &mut Said) {
        let (core, id) = (&node.core, node.id());
        let unknown = node.history[core.commit().0 as usize..].iter().filter(|m| m.config).count();
        if unknown > 1 {
            said.wrong(|| {
                format!("replica {id} has {unknown} membership changes after its commit index {}", core.commit())
            });
        }
        let campaigns = matches!(core.role(), Role::Candidate | Role::PreCandidate);
        if campaigns && node.history[handed..core.commit().0 as usize].iter().any(|m| m.config) {
            said.wrong(|| format!("replica {id} campaigns with a committed membership change not in effect"));
        }
        if core.membership().voters.is_empty() {
            return;
        }
        let mut members = self.config.membership();
        for (at, mark) in node.history[..handed].iter().enumerate().filter(|(_, m)| m.config) {
            let Some(change) = self.rules.changes.get(&mark.what) else { continue };
            let next = members.after(change, Index(at as u64 + 1));
            if !meet(&members, &next) {
                said.wrong(|| format!("majorities of {members:?} and of the next one, {next:?}, need not meet"));
            }
            members = next;
        }
        if *core.membership() != members {
            let what = core.membership();
            said.wrong(|| format!("replica {id} has {what:?} in effect; its log through {handed} says {members:?}"));
        }
        let gone: BTreeSet<ReplicaId> = members.removed.iter().copied().filter(|r| members.contains(*r)).collect();
        if !gone.is_empty() {
            said.wrong(|| format!("{gone:?} were removed and are members again"));
        }
    }

    /// What can be said of all, after the replica at `at` took an action that led from `before` to `now`.
    pub(crate) fn check(&mut self, before: &State, now: &mut State, at: u8) -> Result<(), String> {
        let slot = usize::from(at);
        if before.nodes[slot] == now.nodes[slot] {
            return Ok(());
        }
        self.check_leader(now, at)?;
        self.check_logs(before, now, at)?;
        self.check_committed(before, now, at)?;
        self.check_kept(before, now, at)?;
        self.check_leaders_logs(now)?;
        self.check_electable(now)?;
        self.check_lost(now)?;
        self.check_not_stranded(now)?;
        self.check_silence(now)
    }

    fn check_leader(&self, now: &mut State, at: u8) -> Result<(), String> {
        let core = &self.node(now, at).core;
        if core.role() != Role::Leader {
            return Ok(());
        }
        let term = core.term();
        let leader = &mut now.leaders[term.0 as usize - 1];
        match *leader {
            0 => *leader = at + 1,
            other if other != at + 1 => {
                return Err(format!("replicas {other} and {} both lead in term {term}", at + 1));
            }
            _ => {}
        }
        Ok(())
    }

    /// Entries of equal index and term are equal, and so is everything before them.
    fn check_logs(&self, before: &State, now: &State, at: u8) -> Result<(), String> {
        let here = &self.node(now, at).history;
        if self.node(before, at).history == *here {
            return Ok(());
        }
        for other in (0..now.nodes.len() as u8).filter(|o| *o != at) {
            let there = &self.node(now, other).history;
            let common = here.len().min(there.len());
            let agree = (0..common).rev().find(|&i| here[i].term == there[i].term);
            if agree.is_some_and(|i| here[..=i] != there[..=i]) {
                let (a, b) = (at + 1, other + 1);
                return Err(format!(
                    "the logs of replicas {a} and {b} do not match: {} and {}",
                    show(here),
                    show(there)
                ));
            }
        }
        Ok(())
    }

    /// What a replica knows to be committed is what everybody knows to be, and a leader with majorities knows it first.
    fn check_committed(&mut self, before: &State, now: &mut State, at: u8) -> Result<(), String> {
        let node = self.node(now, at);
        let commit = node.core.commit().0 as usize;
        let known = self.committed.at(now.committed);
        let common = commit.min(known.len());
        if node.history[..common].iter().ne(known[..common].iter().map(|(mark, _)| mark)) {
            return Err(format!(
                "replica {} commits {}, others {}",
                at + 1,
                show(&node.history[..common]),
                shown(known)
            ));
        }
        if commit <= known.len() {
            return Ok(());
        }
        let was = self.node(before, at);
        // A leader that its own removal or its help made step down has led until the end of the same visit.
        let led =
            node.core.role() == Role::Leader || was.core.role() == Role::Leader || was.core.role() == Role::Candidate;
        if !led {
            return Err(format!("replica {} knows {commit} to be committed before any leader does", at + 1));
        }
        let views = [before.nodes[usize::from(at)], now.nodes[usize::from(at)]].map(|n| self.views[n as usize]);
        let mark = node.history[commit - 1];
        let has = |n: &u8| self.node(now, *n).disk.history.get(commit - 1) == Some(&mark);
        let mask = (0..now.nodes.len() as u8).filter(has).fold(0u8, |mask, n| mask | 1 << n);
        if !views.iter().any(|view| is_quorum(*view, mask)) {
            return Err(format!("replica {} commits {commit}; only the disks of {mask:#b} have it", at + 1));
        }
        let term = node.core.term();
        let mut longer: Committed = known.clone();
        longer.extend(node.history[known.len()..commit].iter().map(|mark| (*mark, term)));
        now.committed = self.committed.put(Hash128::of(&longer), longer).0;
        Ok(())
    }

    /// What is committed and on a disk stays there.
    fn check_kept(&self, before: &State, now: &State, at: u8) -> Result<(), String> {
        let known = self.committed.at(now.committed);
        let had = |state: &State| {
            let disk = &self.node(state, at).disk.history;
            disk.iter().zip(known).take_while(|(a, (b, _))| *a == b).count()
        };
        let (was, is) = (had(before), had(now));
        if is < was {
            return Err(format!("the disk of replica {} had {was} committed entries and has {is}", at + 1));
        }
        Ok(())
    }

    /// A leader has all that was committed in its term and before (paper section 5.4).
    fn check_leaders_logs(&self, now: &State) -> Result<(), String> {
        let known = self.committed.at(now.committed);
        for (at, &id) in now.nodes.iter().enumerate() {
            if !self.views[id as usize].leads {
                continue;
            }
            let node = self.nodes.at(id);
            let due = known.partition_point(|(_, term)| *term <= node.core.term());
            if node.history.len() < due || node.history[..due].iter().ne(known[..due].iter().map(|(mark, _)| mark)) {
                let (log, term) = (show(&node.history), node.core.term());
                return Err(format!(
                    "replica {} leads in term {term} with {log}; {} is committed",
                    at + 1,
                    shown(known)
                ));
            }
        }
        Ok(())
    }

    /// Who lacks something committed could not win an election, whatever else crashed, under the configuration that it has
    /// in effect: the configurations of a group, and what is on disks, together see to that. This is what the safety of
    /// membership changes comes to; it is broken before a wrong leader is.
    fn check_electable(&self, now: &State) -> Result<(), String> {
        let known = self.committed.at(now.committed);
        let Some((mark, _)) = known.last() else { return Ok(()) };
        for (at, &id) in now.nodes.iter().enumerate() {
            let (view, node) = (self.views[id as usize], self.nodes.at(id));
            if !view.would_campaign || node.history.get(known.len() - 1) == Some(mark) {
                continue;
            }
            let last = node.core.last();
            let grants = |n: &u8| {
                let voter = self.node(now, *n);
                usize::from(*n) == at || (!voter.gone && voter.core.last().min(disk_last(voter)) <= last)
            };
            let mask = (0..now.nodes.len() as u8).filter(grants).fold(0u8, |mask, n| mask | 1 << n);
            if is_quorum(view, mask) {
                return Err(format!(
                    "replica {} could be elected by {mask:#b} with {}; {} is committed",
                    at + 1,
                    show(&node.history),
                    shown(known)
                ));
            }
        }
        Ok(())
    }
}

impl Model {
    /// A command that its client was told is lost is never committed.
    fn check_lost(&self, now: &State) -> Result<(), String> {
        if !self.config.forward {
            return Ok(());
        }
        let known = self.committed.at(now.committed);
        for node in now.nodes.iter().map(|id| self.nodes.at(*id)) {
            if let Some(at) = known.iter().position(|(mark, _)| node.forwarded.is_lost(mark)) {
                let (id, index) = (node.id(), at + 1);
                return Err(format!("replica {id} tells that a command is lost; it is committed at {index}"));
            }
        }
        Ok(())
    }

    /// A silent leader and a silent follower of it have the same log, all of it committed, unless the follower was left out.
    /// All other pairs of silent replicas differ in what their hosts compare: term and leader.
    fn check_silence(&self, now: &State) -> Result<(), String> {
        if !self.config.silent {
            return Ok(());
        }
        let silent = || now.nodes.iter().map(|id| self.nodes.at(*id)).filter(|n| n.core.is_quiet());
        for leader in silent().filter(|n| n.core.role() == Role::Leader) {
            let term = leader.core.term();
            let follows = |n: &&Node| n.core.term() == term && n.core.leader() == Some(leader.id());
            for follower in silent().filter(follows).filter(|n| !leader.core.lagging().contains(&n.id())) {
                if (follower.core.last(), follower.core.commit()) != (leader.core.last(), leader.core.commit()) {
                    let (a, b) = (leader.id(), follower.id());
                    return Err(format!("leader {a} and replica {b} are silent in term {term} and not equal"));
                }
            }
        }
        Ok(())
    }

    /// Once some replica was told to go, those who stay can still elect one of them with their own votes. Who is no voter any
    /// more campaigns when it is asked to help.
    fn check_not_stranded(&self, now: &State) -> Result<(), String> {
        let views = || now.nodes.iter().map(|id| (self.views[*id as usize], self.nodes.at(*id)));
        // What is not on a disk yet may be what one of them waits for.
        if !views().any(|(view, _)| view.gone) || views().any(|(_, node)| !node.flying.is_empty()) {
            return Ok(());
        }
        let able = |(view, node): &(View, &Node)| {
            let helper = !node.core.is_voter() && !node.core.membership().is_witness(node.id());
            !view.gone && (view.leads || view.would_campaign || helper)
        };
        let could_win = views().filter(able).any(|(view, node)| {
            let grants =
                |(_, (view, voter)): &(usize, (View, &Node))| !view.gone && voter.core.last() <= node.core.last();
            let mask = views().enumerate().filter(grants).fold(0u8, |mask, (at, _)| mask | 1 << at);
            is_quorum(view, mask)
        });
        if could_win {
            Ok(())
        } else {
            Err("those who stay can't elect anybody without those who were told to go".to_owned())
        }
    }
}

fn disk_last(node: &Node) -> LogPos {
    let history = &node.disk.history;
    history.last().map_or(LogPos::ZERO, |mark| LogPos::new(mark.term, Index(history.len() as u64)))
}

/// Whether every majority of one configuration has a member in common with every majority of another.
fn meet(a: &Membership, b: &Membership) -> bool {
    let all: Vec<ReplicaId> = a.all_voters().chain(b.all_voters()).collect::<BTreeSet<_>>().into_iter().collect();
    let wins = |m: &Membership, mask: u32| {
        let majority = |half: &BTreeSet<ReplicaId>| {
            let in_half = all.iter().enumerate().filter(|(at, id)| mask & (1 << at) != 0 && half.contains(id)).count();
            half.is_empty() || in_half * 2 > half.len()
        };
        majority(&m.voters) && majority(&m.outgoing)
    };
    // If some majority of `a` misses some majority of `b`, then it misses all that is outside of it.
    let everybody = (1u32 << all.len()) - 1;
    (0..=everybody).all(|mask| !(wins(a, mask) && wins(b, everybody & !mask)))
}

/// A log by the terms of its entries; membership changes stand out.
pub(crate) fn show(history: &[Mark]) -> String {
    let entries: Vec<String> =
        history.iter().map(|m| format!("{}{}", m.term, if m.config { "!" } else { "" })).collect();
    format!("[{}]", entries.join(" "))
}

fn shown(known: &Committed) -> String {
    show(&known.iter().map(|(mark, _)| *mark).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_raft::Member;

    fn of(voters: &[u64], outgoing: &[u64]) -> Membership {
        let mut m = Membership::from_voters(voters.iter().map(|r| (ReplicaId(*r), Member::default())));
        m.outgoing = outgoing.iter().map(|r| ReplicaId(*r)).collect();
        m
    }

    #[test]
    fn configurations_one_voter_apart_meet_and_two_apart_need_not() {
        assert!(meet(&of(&[1, 2, 3], &[]), &of(&[1, 2, 3, 4], &[])));
        assert!(!meet(&of(&[1, 2, 3], &[]), &of(&[1, 2, 3, 4, 5], &[])));
        assert!(!meet(&of(&[1, 2], &[]), &of(&[2, 3, 4], &[])));
    }

    #[test]
    fn a_joint_configuration_meets_both_of_its_halves() {
        let joint = of(&[3, 4, 5], &[1, 2, 3]);
        assert!(meet(&joint, &of(&[1, 2, 3], &[])) && meet(&joint, &of(&[3, 4, 5], &[])));
        assert!(!meet(&of(&[1, 2, 3], &[]), &of(&[3, 4, 5], &[])));
    }

    #[test]
    fn a_quorum_needs_majorities_of_both_halves() {
        let view = View { incoming: 0b11100, outgoing: 0b00111, ..View::default() };
        assert!(is_quorum(view, 0b01111) && !is_quorum(view, 0b11100) && !is_quorum(view, 0b00111));
        assert!(!is_quorum(View::default(), 0b1));
    }
}
