//! Starts, and histories of actions: replayed, shortened, shown.

use super::act::{Action, Model, Next};
use super::check::show;
use super::state::{BUDGETS, Packet, State};

/// Actions after which a group that is to settle is taken never to.
const SETTLE_MAX: usize = 200;

/// The states in which the search begins. An error is a broken rule on the way there.
pub(crate) fn starts(model: &mut Model) -> Result<Vec<State>, (String, Vec<String>)> {
    let first = model.first();
    let mut starts = vec![first.clone()];
    if model.config.led {
        let mut path = vec![];
        let led = lead(model, first.clone(), &mut path).map_err(|what| (what, told(model, &first, &path)))?;
        starts.push(led);
    }
    Ok(starts)
}

/// Replica 1 is elected and everything that follows is delivered. None of that counts against the budgets.
fn lead(model: &mut Model, mut state: State, path: &mut Vec<Action>) -> Result<State, String> {
    let mut action = Action::Timeout { node: 0, stall: false };
    let budgets = std::mem::replace(&mut model.config.budgets, [0; BUDGETS]);
    for _ in 0..SETTLE_MAX {
        path.push(action);
        match model.next(&state, action) {
            Next::State(next) => state = *next,
            Next::Nothing => {}
            Next::Wrong(what) => {
                model.config.budgets = budgets;
                return Err(what);
            }
        }
        let mut actions = Vec::new();
        model.actions(&state, &mut actions);
        let Some(deliver) = actions.into_iter().find(|a| matches!(a, Action::Deliver { .. })) else { break };
        action = deliver;
    }
    model.config.budgets = budgets;
    state.spent = [0; BUDGETS];
    Ok(state)
}

/// What a path from `start` leads to: the rule that it breaks at its end, if all of it is possible.
fn replay(model: &mut Model, start: &State, path: &[Action]) -> Option<String> {
    let mut state = start.clone();
    let mut actions = Vec::new();
    for (at, action) in path.iter().enumerate() {
        model.actions(&state, &mut actions);
        if !actions.contains(action) {
            return None;
        }
        match model.next(&state, *action) {
            Next::State(next) => state = *next,
            Next::Nothing => return None,
            Next::Wrong(what) => return (at + 1 == path.len()).then_some(what),
        }
    }
    None
}

/// The path without what is not needed for a rule to be broken at its end, shown, and which rule that is.
///
/// Leaving out one or two neighbouring actions at a time finds no shorter path than breadth-first search does, but
/// makes the path of a dive short enough to be read.
pub(crate) fn shorten(
    model: &mut Model,
    start: &State,
    mut path: Vec<Action>,
    mut what: String,
) -> (String, Vec<String>) {
    loop {
        let before = path.len();
        for width in [8, 4, 2, 1] {
            let mut at = path.len();
            while at > 0 {
                at -= 1;
                if at + width >= path.len() {
                    continue;
                }
                let mut shorter = path.clone();
                shorter.drain(at..at + width);
                if let Some(other) = replay(model, start, &shorter) {
                    (path, what) = (shorter, other);
                }
            }
        }
        if path.len() == before {
            break;
        }
    }
    let lines = told(model, start, &path);
    (what, lines)
}

/// A path as lines for a reader.
fn told(model: &mut Model, start: &State, path: &[Action]) -> Vec<String> {
    let mut state = start.clone();
    let mut lines = vec![format!("start: {}", group(model, &state))];
    for (at, action) in path.iter().enumerate() {
        lines.push(format!("{:>3}. {}", at + 1, name(model, *action)));
        match model.next(&state, *action) {
            Next::State(next) => {
                lines.extend(changes(model, &state, &next));
                state = *next;
            }
            Next::Nothing => {}
            Next::Wrong(what) => lines.push(format!("     BROKEN: {what}")),
        }
    }
    lines
}

fn name(model: &Model, action: Action) -> String {
    use Action as A;
    let packet = |id: u32| match &model.packets.at(id).packet {
        Packet::Raft(m) | Packet::Snapshot(m, _) => {
            format!("{} -> {} in term {}: {:?}", m.from, m.to, m.term, m.body)
        }
        Packet::Report { to, of, ok } => format!("{to} is told: snapshot to {of} arrived: {ok}"),
    };
    let stalls = |stall: bool| if stall { " (and its disk stalls)" } else { "" };
    let id = |node: u8| node + 1;
    match action {
        A::Deliver { packet: p, stall } => format!("arrives {}{}", packet(p), stalls(stall)),
        A::Lose { packet: p } => format!("LOST {}", packet(p)),
        A::Copy { packet: p } => format!("COPIED {}", packet(p)),
        A::Delay { packet: p } => format!("DELAYED {}", packet(p)),
        A::Timeout { node, stall } => format!("election timeout at {}{}", id(node), stalls(stall)),
        A::Heartbeat { node } => format!("heartbeats of {}", id(node)),
        A::Lapse { node } => format!("{} heard nothing for long", id(node)),
        A::Suspect { node } => format!("{} is woken, or told that its leader's host is suspected", id(node)),
        A::Doubt { node, of, still } => {
            format!("{} is told that the host of {} is suspected: {still}", id(node), id(of))
        }
        A::Propose { node, stall } => format!("a command is proposed at {}{}", id(node), stalls(stall)),
        A::Change { node, which, stall } => {
            format!("proposed at {}{}: {:?}", id(node), stalls(stall), model.config.changes[usize::from(which)])
        }
        A::Read { node } => format!("a read index is asked for at {}", id(node)),
        A::Close { node } => format!("{} asks its leader to close what it has forwarded", id(node)),
        A::Transfer { node, to } => format!("{} is to hand leadership to {}", id(node), id(to)),
        A::Compact { node } => format!("{} takes a snapshot and compacts its log", id(node)),
        A::Fetch { node } => format!("{} has read what was cold", id(node)),
        A::Finish { node } => format!("the disk of {} finishes a batch", id(node)),
        A::Write { node } => format!("the disk of {} finishes a batch, and its core does not know yet", id(node)),
        A::Tell { node } => format!("the core of {} learns of a finished batch", id(node)),
        A::Crash { node, kept } => format!("CRASH of {}, which finds {kept} unfinished batches on its disk", id(node)),
    }
}

/// The replica that changed, and what set out.
fn changes(model: &Model, before: &State, now: &State) -> Vec<String> {
    let changed = (0..now.nodes.len() as u8).filter(|at| before.nodes[usize::from(*at)] != now.nodes[usize::from(*at)]);
    changed.map(|at| format!("     {}", replica(model, now, at))).collect()
}

fn group(model: &Model, state: &State) -> String {
    let replicas: Vec<String> = (0..state.nodes.len() as u8).map(|at| replica(model, state, at)).collect();
    replicas.join("; ")
}

fn replica(model: &Model, state: &State, at: u8) -> String {
    let node = model.node(state, at);
    let core = &node.core;
    let voters: Vec<u64> = core.membership().voters.iter().map(|v| v.0).collect();
    let outgoing: Vec<u64> = core.membership().outgoing.iter().map(|v| v.0).collect();
    let joint = if outgoing.is_empty() { String::new() } else { format!(" and {outgoing:?}") };
    let waits = if node.flying.is_empty() { String::new() } else { format!(", {} batches wait", node.flying.len()) };
    format!(
        "{}: {:?} of term {}, vote {}, log {} from {}, commit {}, durable {}, voters {voters:?}{joint}{waits}",
        at + 1,
        core.role(),
        core.term(),
        core.vote(),
        show(&node.history),
        core.start().index,
        core.commit(),
        core.durable()
    )
}
