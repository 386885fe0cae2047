//! The search: cheapest histories first, and in turn with that dives along random paths from the edge and from the start, each
//! for half of the states.
//!
//! A history costs what its actions cost: those of a good day little, faults more. So all histories up to some cost are walked,
//! long ones without faults and shorter ones with some, where counting actions alone would stop at short ones full of faults.
//!
//! Invariant: the search is a function of the configuration and its limits; two runs visit the same states.

use super::act::{Action, Model, Next};
use super::configs::Config;
use super::hash::ByHash;
use super::state::{Budget, State};
use super::trace;
use crate::rng::Rng;
use std::collections::VecDeque;
use std::time::Instant;

/// How far a dive goes.
const DIVE_MAX: u32 = 120;
/// What the paths of dives are drawn from.
const SEED: u64 = 1;

/// Where to stop.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Distinct states.
    pub states: usize,
}

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which, and how.
    pub what: String,
    /// How many states were visited before.
    pub states: usize,
    /// What led there, shortened, a line for each action.
    pub trace: Vec<String>,
}

/// What a search came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Distinct states visited.
    pub states: usize,
    /// Actions that led from a state to a state, a new one or not.
    pub transitions: u64,
    /// The most actions from the start to a state.
    pub depth: u32,
    /// All histories of at most this cost were walked.
    pub cost_complete: u32,
    /// States in which a third term was reached, three commands were proposed and two crashes had happened.
    pub states_far: usize,
    /// Distinct states of single replicas.
    pub replica_states: usize,
    /// Distinct packets.
    pub packets: usize,
    /// How often the core was run.
    pub runs: usize,
    /// The broken rule, if one was.
    pub found: Option<Found>,
    /// Time taken, in seconds.
    pub seconds: f64,
}

impl Outcome {
    /// One line of JSON.
    pub fn json(&self, config: &str) -> String {
        serde_json::json!({
            "config": config,
            "states": self.states,
            "transitions": self.transitions,
            "depth": self.depth,
            "cost_complete": self.cost_complete,
            "states_with_3_terms_3_proposals_2_crashes": self.states_far,
            "replica_states": self.replica_states,
            "packets": self.packets,
            "core_runs": self.runs,
            "violations": u32::from(self.found.is_some()),
            "violation": self.found.as_ref().map(|f| f.what.clone()),
            "seconds": (self.seconds * 1000.0).round() / 1000.0,
            "states_per_second": (self.states as f64 / self.seconds.max(1e-9)).round(),
        })
        .to_string()
    }
}

/// More than the cost of any history that there is memory for.
const COST_MAX: usize = 200;

/// States that were reached and not left yet, by the cost of reaching them.
type Edge = Vec<VecDeque<(u32, State)>>;

/// States that cheapest-first search and dives each visit in turn.
const TURN: usize = 5_000;

/// No state led here: it is a start.
const START: u32 = u32::MAX;

struct Search {
    model: Model,
    starts: Vec<State>,
    seen: ByHash<[u64; 2], u32>,
    /// How each state was first reached.
    came_by: Vec<(u32, Option<Action>)>,
    depths: Vec<u8>,
    costs: Vec<u8>,
    outcome: Outcome,
}

/// Walks through a configuration's states.
pub fn explore(config: &Config, limits: Limits) -> Outcome {
    let begun = Instant::now();
    let mut search = Search {
        model: Model::new(config.clone()),
        starts: Vec::new(),
        seen: ByHash::default(),
        came_by: Vec::new(),
        depths: Vec::new(),
        costs: Vec::new(),
        outcome: Outcome::default(),
    };
    search.run(limits);
    let mut outcome = search.outcome;
    outcome.states = search.came_by.len();
    (outcome.replica_states, outcome.packets, outcome.runs) = search.model.known();
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome
}

impl Search {
    fn run(&mut self, limits: Limits) {
        let mut edge: Edge = vec![VecDeque::new(); COST_MAX];
        match trace::starts(&mut self.model) {
            Ok(starts) => self.starts = starts,
            Err((what, trace)) => {
                self.outcome.found = Some(Found { what, states: 0, trace });
                return;
            }
        }
        for start in self.starts.clone() {
            let at = self.visit(&start, START, None).expect("starts differ");
            edge[0].push_back((at, start));
        }
        let mut rng = Rng::new(SEED);
        while self.came_by.len() < limits.states && self.outcome.found.is_none() {
            let known = self.came_by.len();
            self.widen(&mut edge, limits.states.min(known + TURN));
            if self.outcome.found.is_none() {
                self.dive(&mut rng, &edge, limits.states.min(known + 2 * TURN));
            }
            if self.came_by.len() == known {
                // There is nothing that was not seen.
                return;
            }
        }
    }

    /// Notes a state. Its number if it is new.
    fn visit(&mut self, state: &State, from: u32, by: Option<Action>) -> Result<u32, u32> {
        let number = self.came_by.len() as u32;
        match self.seen.entry(state.hash()) {
            std::collections::hash_map::Entry::Occupied(known) => return Err(*known.get()),
            std::collections::hash_map::Entry::Vacant(slot) => slot.insert(number),
        };
        self.came_by.push((from, by));
        let depth = if from == START { 0 } else { self.depths[from as usize].saturating_add(1) };
        self.depths.push(depth);
        self.costs.push(u8::MAX);
        self.outcome.depth = self.outcome.depth.max(u32::from(depth));
        let third = state.leaders.len() > 2 && state.nodes.iter().any(|n| self.model.nodes.at(*n).core.term().0 >= 3);
        let far = third && state.spent(Budget::Proposals) >= 3 && state.spent(Budget::Crashes) >= 2;
        self.outcome.states_far += usize::from(far);
        Ok(number)
    }

    /// Cheapest first until so many states are known.
    fn widen(&mut self, edge: &mut Edge, states: usize) {
        let mut actions = Vec::new();
        for cost in self.outcome.cost_complete as usize..COST_MAX {
            while let Some((at, state)) = edge[cost].pop_front() {
                // A cheaper way here was found meanwhile, and taken.
                if usize::from(self.costs[at as usize]) < cost {
                    continue;
                }
                if self.came_by.len() >= states {
                    edge[cost].push_front((at, state));
                    return;
                }
                self.costs[at as usize] = cost as u8;
                self.model.actions(&state, &mut actions);
                for &action in &actions {
                    match self.model.next(&state, action) {
                        Next::State(next) => self.reach(edge, at, cost + cost_of(&action), *next, action),
                        Next::Nothing => {}
                        Next::Wrong(what) => return self.found(what, at, action),
                    }
                }
            }
            self.outcome.cost_complete = cost as u32;
        }
    }

    /// A state is reached from another one by an action, at a cost in all.
    fn reach(&mut self, edge: &mut Edge, from: u32, cost: usize, state: State, action: Action) {
        self.outcome.transitions += 1;
        let number = match self.visit(&state, from, Some(action)) {
            Ok(number) => number,
            Err(known) if usize::from(self.costs[known as usize]) > cost => {
                self.came_by[known as usize] = (from, Some(action));
                known
            }
            Err(_) => return,
        };
        self.costs[number as usize] = cost as u8;
        if cost < COST_MAX {
            edge[cost].push_back((number, state));
        }
    }

    /// Along random paths until so many states are known.
    fn dive(&mut self, rng: &mut Rng, edge: &Edge, states: usize) {
        let mut actions = Vec::new();
        let mut dives_without_news = 0;
        while self.came_by.len() < states && dives_without_news < 1000 {
            let known = self.came_by.len();
            let (mut at, mut state) = if rng.chance(500) {
                pick(rng, edge).unwrap_or_else(|| (0, self.starts[0].clone()))
            } else {
                let start = rng.below(self.starts.len() as u64) as usize;
                (start as u32, self.starts[start].clone())
            };
            for _ in 0..DIVE_MAX {
                self.model.actions(&state, &mut actions);
                let Some((next, action)) = self.step(rng, at, &state, &mut actions) else { break };
                at = self.visit(&next, at, Some(action)).unwrap_or_else(|number| number);
                state = next;
            }
            if self.outcome.found.is_some() {
                return;
            }
            dives_without_news = if self.came_by.len() > known { 0 } else { dives_without_news + 1 };
        }
    }

    /// One random action that leads somewhere.
    fn step(&mut self, rng: &mut Rng, at: u32, state: &State, actions: &mut Vec<Action>) -> Option<(State, Action)> {
        loop {
            let total: u64 = actions.iter().map(weight).sum();
            if total == 0 {
                return None;
            }
            let mut left = rng.below(total);
            let pick = actions.iter().position(|a| {
                let weight = weight(a);
                let here = left < weight;
                left = left.saturating_sub(weight);
                here
            });
            let action = actions.swap_remove(pick.expect("the weights add up to the total"));
            match self.model.next(state, action) {
                Next::State(next) => {
                    self.outcome.transitions += 1;
                    return Some((*next, action));
                }
                Next::Nothing => {}
                Next::Wrong(what) => {
                    self.found(what, at, action);
                    return None;
                }
            }
        }
    }

    fn found(&mut self, what: String, at: u32, action: Action) {
        let mut path = vec![action];
        let mut at = at;
        while let (from, Some(action)) = self.came_by[at as usize] {
            path.push(action);
            at = from;
        }
        path.reverse();
        let start = self.starts[at as usize].clone();
        let states = self.came_by.len();
        let (what, trace) = trace::shorten(&mut self.model, &start, path, what);
        self.outcome.found = Some(Found { what, states, trace });
    }
}

/// A state of the edge, any.
fn pick(rng: &mut Rng, edge: &Edge) -> Option<(u32, State)> {
    let total: usize = edge.iter().map(VecDeque::len).sum();
    let mut left = rng.below(total.max(1) as u64) as usize;
    let bucket = edge.iter().find(|bucket| {
        let here = left < bucket.len();
        left -= if here { 0 } else { bucket.len() };
        here
    })?;
    bucket.get(left).cloned()
}

/// What an action adds to the cost of a history.
fn cost_of(action: &Action) -> usize {
    let stalls = |stall: &bool| if *stall { 3 } else { 0 };
    match action {
        Action::Deliver { stall, .. } | Action::Propose { stall, .. } | Action::Change { stall, .. } => {
            1 + stalls(stall)
        }
        Action::Timeout { stall, .. } => 2 + stalls(stall),
        Action::Finish { .. } | Action::Tell { .. } | Action::Write { .. } | Action::Fetch { .. } => 1,
        Action::Read { .. } | Action::Transfer { .. } | Action::Close { .. } => 1,
        Action::Heartbeat { .. } | Action::Compact { .. } | Action::Lapse { .. } => 2,
        Action::Suspect { .. } | Action::Doubt { .. } => 2,
        Action::Crash { .. } | Action::Lose { .. } | Action::Delay { .. } | Action::Copy { .. } => 3,
    }
}

/// How often a dive takes an action: mostly what makes progress, faults now and then, or their budgets are spent before
/// anything is at stake.
fn weight(action: &Action) -> u64 {
    match action {
        Action::Deliver { stall: false, .. } => 60,
        Action::Finish { .. } | Action::Tell { .. } | Action::Write { .. } | Action::Fetch { .. } => 30,
        Action::Propose { stall: false, .. } | Action::Change { stall: false, .. } => 20,
        Action::Read { .. } | Action::Close { .. } => 20,
        Action::Timeout { stall: false, .. } | Action::Heartbeat { .. } => 10,
        Action::Compact { .. } | Action::Transfer { .. } | Action::Lapse { .. } => 10,
        Action::Suspect { .. } | Action::Doubt { .. } => 4,
        Action::Deliver { .. } | Action::Timeout { .. } | Action::Propose { .. } | Action::Change { .. } => 4,
        Action::Crash { .. } | Action::Lose { .. } | Action::Copy { .. } | Action::Delay { .. } => 4,
    }
}
