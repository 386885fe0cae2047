//! What may happen next in a state, and what comes of it.

use super::configs::Config;
use super::hash::{ByHash, Hash128, Interner};
use super::node::{HEARTBEAT, LONG, Node, Rules, Said};
use super::state::{BUDGETS, Budget, Packet, READS_MAX, Read, Sent, State, TERMS_MAX};
use longboat_raft::{
    Body, ConfigChange, EntryKind, Membership, Origin, ProposeOptions, Proposed, ReplicaId, Role, RunBuilder, Term,
};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;

/// Numbers of membership changes start here, so that they differ from those of commands.
const CHANGE_SEQUENCES: u64 = 100;

/// Something that may happen. Replicas are given by position, packets by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// A packet arrives. With `stall`, the addressee's disk takes what comes of it and does not finish; so below.
    Deliver { packet: u32, stall: bool },
    /// An election timeout passes at a replica.
    Timeout { node: u8, stall: bool },
    /// A leader's heartbeat is due.
    Heartbeat { node: u8 },
    /// More than an election timeout passes and the replica's timer did not go off yet.
    Lapse { node: u8 },
    /// The replica's host suspects the host of its leader; and wakes it, if it leads.
    Suspect { node: u8 },
    /// The replica's host suspects the host of another member, or does so no more.
    Doubt { node: u8, of: u8, still: bool },
    /// A client proposes a command.
    Propose { node: u8, stall: bool },
    /// Somebody proposes one of the configuration's membership changes.
    Change { node: u8, which: u8, stall: bool },
    /// A client asks for a read index.
    Read { node: u8 },
    /// A replica asks its leader to close what it has forwarded to it.
    Close { node: u8 },
    /// Leadership is to be handed over.
    Transfer { node: u8, to: u8 },
    /// A snapshot is taken and the log before it forgotten.
    Compact { node: u8 },
    /// A cold read is done.
    Fetch { node: u8 },
    /// The disk finishes the oldest batch, and the core is told.
    Finish { node: u8 },
    /// The disk finishes the oldest batch; its messages leave; the core is not told yet.
    Write { node: u8 },
    /// The core is told of the oldest finished batch.
    Tell { node: u8 },
    /// The process ends and starts again; so many batches that were not finished are found on the disk.
    Crash { node: u8, kept: u8 },
    /// A packet is lost.
    Lose { packet: u32 },
    /// A packet arrives twice: once of these at any time.
    Copy { packet: u32 },
    /// A packet is overtaken: it arrives at any time.
    Delay { packet: u32 },
}

/// What came of one replica's taking one input.
#[derive(Debug)]
struct Effect {
    node: u32,
    sent: SmallVec<[u32; 3]>,
    reads: SmallVec<[(u8, Option<u64>); 1]>,
    wrong: Option<String>,
    /// A batch stalls.
    stalls: bool,
}

/// What is checked of a replica in relation to others, as bits by position.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View {
    pub(crate) incoming: u8,
    pub(crate) outgoing: u8,
    pub(crate) leads: bool,
    pub(crate) would_campaign: bool,
    pub(crate) gone: bool,
}

/// The number of the term in which an index was first known to be committed, with the entry there.
pub(crate) type Committed = Vec<(super::node::Mark, Term)>;

/// A configuration, and all replicas and packets that were seen in its states.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) rules: Rules,
    pub(crate) nodes: Interner<Node>,
    pub(crate) views: Vec<View>,
    pub(crate) packets: Interner<Sent>,
    pub(crate) committed: Interner<Committed>,
    effects: Vec<Effect>,
    effect_of: ByHash<(u32, u64), u32>,
}

/// What an action led to.
pub(crate) enum Next {
    /// Another state.
    State(Box<State>),
    /// Nothing new, or beyond the bounds of the model.
    Nothing,
    /// A rule is broken.
    Wrong(String),
}

/// What an action concerned.
enum Changed {
    /// Nothing: it was not possible, or leads beyond the bounds of the model.
    Nothing,
    /// The network alone.
    Network,
    /// The replica at this position.
    Replica(u8),
}

impl Model {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            rules: Rules { trim: config.cold, changes: HashMap::new() },
            config,
            nodes: Interner::new(),
            views: Vec::new(),
            packets: Interner::new(),
            committed: Interner::new(),
            effects: Vec::new(),
            effect_of: ByHash::default(),
        }
    }

    /// The state in which no replica ever ran.
    pub(crate) fn first(&mut self) -> State {
        let members = self.config.membership();
        let nodes: Vec<u32> = (0..self.config.replicas)
            .map(|at| {
                let id = ReplicaId(u64::from(at) + 1);
                let knows = if members.contains(id) { members.clone() } else { Membership::default() };
                let node = Node::new(self.config.core(at), knows);
                self.put_node(node).0
            })
            .collect();
        let (committed, _) = self.committed.put(Hash128::of(&Committed::new()), Committed::new());
        State {
            nodes: nodes.into(),
            net: SmallVec::new(),
            late: SmallVec::new(),
            spent: [0; BUDGETS],
            committed,
            leaders: [0; TERMS_MAX],
            reads: [Read::default(); READS_MAX],
        }
    }

    pub(crate) fn node(&self, state: &State, at: u8) -> &Node {
        self.nodes.at(state.nodes[usize::from(at)])
    }

    fn put_node(&mut self, node: Node) -> (u32, bool) {
        let view = self.view(&node);
        let (id, new) = self.nodes.put(node.hash(), node);
        if new {
            self.views.push(view);
        }
        (id, new)
    }

    fn view(&self, node: &Node) -> View {
        let bits = |ids: &std::collections::BTreeSet<ReplicaId>| {
            ids.iter().filter_map(|id| self.config.position(*id)).fold(0u8, |bits, at| bits | 1 << at)
        };
        let members = node.core.membership();
        View {
            incoming: bits(&members.voters),
            outgoing: bits(&members.outgoing),
            leads: node.core.role() == Role::Leader,
            would_campaign: node.core.would_campaign() && !node.gone,
            gone: node.gone,
        }
    }

    fn left(&self, state: &State, budget: Budget) -> bool {
        state.spent(budget) < self.config.budgets[budget as usize]
    }

    /// All that may happen in a state. Some of it comes to nothing.
    pub(crate) fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.clear();
        let left = |budget| self.left(state, budget);
        let stalls: &[bool] = if left(Budget::Stalls) { &[false, true] } else { &[false] };
        let link_of = |p: u32| self.packets.at(p).link;
        let heads = state.heads(link_of).map(|at| (state.net[at], false));
        let late = state.late.iter().enumerate().filter(|(at, p)| *at == 0 || state.late[*at - 1] != **p);
        for (packet, is_late) in heads.chain(late.map(|(_, p)| (*p, true))) {
            if let Some(to) = self.packets.at(packet).to {
                let idle = self.node(state, to).flying.is_empty();
                let stalls = if idle { stalls } else { &[false] };
                actions.extend(stalls.iter().map(|&stall| Action::Deliver { packet, stall }));
            }
            if left(Budget::Losses) {
                actions.push(Action::Lose { packet });
            }
            let is_raft = matches!(self.packets.at(packet).packet, Packet::Raft(_));
            // Nobody repeats a forwarded run: a link is a stream, and its entries would be applied twice.
            let is_forward = |p: &Packet| matches!(p, Packet::Raft(m) if matches!(m.body, Body::Forward(_)));
            if left(Budget::Copies) && is_raft && !is_forward(&self.packets.at(packet).packet) {
                actions.push(Action::Copy { packet });
            }
            if left(Budget::Delays) && is_raft && !is_late {
                actions.push(Action::Delay { packet });
            }
        }
        (0..state.nodes.len() as u8).for_each(|node| self.actions_of(state, node, stalls, actions));
    }

    fn actions_of(&self, state: &State, node: u8, stalls: &[bool], actions: &mut Vec<Action>) {
        let left = |budget| self.left(state, budget);
        let here = self.node(state, node);
        if here.gone {
            return;
        }
        let view = self.views[state.nodes[usize::from(node)] as usize];
        let stalls = if here.flying.is_empty() { stalls } else { &[false] };
        let timed = if view.leads {
            self.config.check_quorum || self.config.silent
        } else {
            here.core.role() != Role::Follower || view.would_campaign
        };
        // Whoever is silent has no timer.
        if self.config.silent && left(Budget::Suspicions) {
            actions.push(Action::Suspect { node });
            let others = (0..state.nodes.len() as u8).filter(|of| *of != node && view.leads);
            actions.extend(others.flat_map(|of| [true, false].map(|still| Action::Doubt { node, of, still })));
        }
        let timed = timed && !here.core.is_quiet();
        if timed && left(Budget::Timeouts) {
            actions.extend(stalls.iter().map(|&stall| Action::Timeout { node, stall }));
        }
        if left(Budget::Lapses) && !view.leads && !here.core.is_quiet() && here.core.leader().is_some() {
            actions.push(Action::Lapse { node });
        }
        if view.leads {
            if left(Budget::Heartbeats) && !here.core.is_quiet() {
                actions.push(Action::Heartbeat { node });
            }
            if left(Budget::Transfers) {
                let targets = (0..state.nodes.len() as u8).filter(|to| *to != node);
                actions.extend(targets.map(|to| Action::Transfer { node, to }));
            }
        }
        let heard = view.leads || (self.config.forward && here.core.leader().is_some());
        if heard && left(Budget::Proposals) {
            actions.extend(stalls.iter().map(|&stall| Action::Propose { node, stall }));
        }
        if heard && left(Budget::Changes) {
            for which in 0..self.config.changes.len() as u8 {
                actions.extend(stalls.iter().map(|&stall| Action::Change { node, which, stall }));
            }
        }
        if left(Budget::Reads) && (view.leads || here.core.leader().is_some()) {
            actions.push(Action::Read { node });
        }
        let to_close = || here.forwarded.to_close(here.core.term()).is_some();
        if left(Budget::Closings) && !view.leads && here.core.leader().is_some() && to_close() {
            actions.push(Action::Close { node });
        }
        if left(Budget::Compactions) && here.may_compact() {
            actions.push(Action::Compact { node });
        }
        if !here.fetches.is_empty() {
            actions.push(Action::Fetch { node });
        }
        if here.flying.len() > here.written {
            if here.written == 0 {
                actions.push(Action::Finish { node });
            }
            actions.push(Action::Write { node });
        }
        if here.written > 0 {
            actions.push(Action::Tell { node });
        }
        if left(Budget::Crashes) {
            let waiting = (here.flying.len() - here.written) as u8;
            actions.extend((0..=waiting).map(|kept| Action::Crash { node, kept }));
        }
    }

    /// The state after an action.
    pub(crate) fn next(&mut self, state: &State, action: Action) -> Next {
        let mut next = Box::new(state.clone());
        match self.change(&mut next, action) {
            Ok(Changed::Replica(at)) => match self.check(state, &mut next, at) {
                Ok(()) => Next::State(next),
                Err(what) => Next::Wrong(what),
            },
            Ok(Changed::Network) => Next::State(next),
            Ok(Changed::Nothing) => Next::Nothing,
            Err(what) => Next::Wrong(what),
        }
    }

    /// Carries an action out. An error when it broke a rule.
    fn change(&mut self, next: &mut State, action: Action) -> Result<Changed, String> {
        use Action as A;
        let (node, stall, budget) = match action {
            A::Lose { packet } | A::Copy { packet } | A::Delay { packet } => {
                let done = self.disturb(next, packet, action);
                return Ok(if done { Changed::Network } else { Changed::Nothing });
            }
            A::Deliver { packet, stall } => {
                let packets = &self.packets;
                if !next.take(packet, |p| packets.at(p).link) {
                    return Ok(Changed::Nothing);
                }
                let Some(to) = self.packets.at(packet).to else { return Ok(Changed::Nothing) };
                (to, stall, None)
            }
            A::Timeout { node, stall } => (node, stall, Some(Budget::Timeouts)),
            A::Heartbeat { node } => (node, false, Some(Budget::Heartbeats)),
            A::Lapse { node } => (node, false, Some(Budget::Lapses)),
            A::Suspect { node } | A::Doubt { node, .. } => (node, false, Some(Budget::Suspicions)),
            A::Propose { node, stall } => (node, stall, Some(Budget::Proposals)),
            A::Change { node, stall, .. } => (node, stall, Some(Budget::Changes)),
            A::Read { node } => (node, false, Some(Budget::Reads)),
            A::Close { node } => (node, false, Some(Budget::Closings)),
            A::Transfer { node, .. } => (node, false, Some(Budget::Transfers)),
            A::Compact { node } => (node, false, Some(Budget::Compactions)),
            A::Crash { node, .. } => (node, false, Some(Budget::Crashes)),
            A::Fetch { node } | A::Finish { node } | A::Write { node } | A::Tell { node } => (node, false, None),
        };
        if let A::Read { .. } = action {
            let floor = self.committed.at(next.committed).len() as u8;
            next.reads[usize::from(next.spent(Budget::Reads))] = Read { floor, open: true };
        }
        let at = usize::from(node);
        let effect = self.effect(next, node, action);
        let effect = &self.effects[effect as usize];
        if let Some(what) = &effect.wrong {
            return Err(what.clone());
        }
        if stall && !effect.stalls {
            return Ok(Changed::Nothing);
        }
        let silent = effect.node == next.nodes[at] && effect.sent.is_empty() && effect.reads.is_empty();
        if silent && !matches!(action, A::Deliver { .. }) {
            return Ok(Changed::Nothing);
        }
        next.nodes[at] = effect.node;
        let packets = &self.packets;
        for &packet in &effect.sent {
            match packets.at(packet).packet {
                Packet::Report { .. } => next.set_late(packet),
                _ => next.send(packet, |p| packets.at(p).link),
            }
        }
        for &(context, index) in &effect.reads {
            let read = &mut next.reads[usize::from(context) - 1];
            if let Some(index) = index.filter(|i| read.open && *i < u64::from(read.floor)) {
                return Err(format!(
                    "read {context} is given index {index}; {} was committed when it was asked",
                    read.floor
                ));
            }
            *read = Read::default();
        }
        if let Some(budget) = budget {
            next.spend(budget);
        }
        if stall {
            next.spend(Budget::Stalls);
        }
        if let A::Crash { .. } = action {
            // What the process was still sending a snapshot for is over.
            next.late
                .retain(|p| !matches!(packets.at(*p).packet, Packet::Report { .. } if packets.at(*p).to == Some(node)));
        }
        let beyond = self.nodes.at(next.nodes[at]).core.term().0 > u64::from(self.config.terms);
        Ok(if beyond { Changed::Nothing } else { Changed::Replica(node) })
    }

    /// The network loses, repeats or delays a packet.
    fn disturb(&mut self, next: &mut State, packet: u32, action: Action) -> bool {
        let packets = &self.packets;
        match action {
            Action::Copy { .. } => {
                let mut probe = next.clone();
                if !probe.take(packet, |p| packets.at(p).link) {
                    return false;
                }
                next.set_late(packet);
                next.spend(Budget::Copies);
            }
            Action::Delay { .. } if next.take(packet, |p| packets.at(p).link) => {
                next.set_late(packet);
                next.spend(Budget::Delays);
            }
            Action::Lose { .. } if next.take(packet, |p| packets.at(p).link) => {
                next.spend(Budget::Losses);
                if let Packet::Snapshot(message, _) = &packets.at(packet).packet
                    && let Body::Snapshot(_) = message.body
                {
                    let report = Packet::Report { to: message.from, of: message.to, ok: false };
                    let report = self.put_packet(report);
                    next.set_late(report);
                }
            }
            _ => return false,
        }
        true
    }

    fn put_packet(&mut self, packet: Packet) -> u32 {
        let sent = Sent { link: packet.link(self.config.lanes), to: self.config.position(packet.to()), packet };
        self.packets.put(Hash128::of(&sent.packet), sent).0
    }

    /// What comes of an action at a replica: found out once.
    fn effect(&mut self, state: &State, node: u8, action: Action) -> u32 {
        let id = state.nodes[usize::from(node)];
        // Requests carry numbers: that of the next one is an input like the action itself.
        let number = match action {
            Action::Propose { .. } => state.spent(Budget::Proposals),
            Action::Change { .. } => state.spent(Budget::Changes),
            Action::Read { .. } => state.spent(Budget::Reads),
            _ => 0,
        };
        let key = (id, Hash128::of(&(action, number))[0]);
        if let Some(&known) = self.effect_of.get(&key) {
            return known;
        }
        let made = self.run(id, node, action, u64::from(number) + 1);
        self.effects.push(made);
        let at = self.effects.len() as u32 - 1;
        self.effect_of.insert(key, at);
        at
    }

    /// Gives a copy of a replica an input. A panic is what the engine's guard would stop the replica for.
    fn run(&mut self, id: u32, at: u8, action: Action, number: u64) -> Effect {
        let mut said = Said::default();
        let mut node = self.nodes.at(id).clone();
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| self.input(&mut node, at, action, number, &mut said)));
        if let Err(panic) = ran {
            said.wrong(|| format!("panic: {}", crate::report::panic_text(&*panic)));
        }
        let stalls = !node.flying.is_empty();
        if said.wrong.is_none() {
            self.check_alone(&node, &mut said);
        }
        if said.wrong.is_some() {
            return Effect { node: id, sent: SmallVec::new(), reads: SmallVec::new(), wrong: said.wrong, stalls };
        }
        let packets = std::mem::take(&mut said.packets);
        let sent = packets.into_iter().map(|p| self.put_packet(p)).collect();
        let reads = said.reads.iter().map(|r| (r.context as u8, r.index.map(|i| i.0))).collect();
        let (node, _) = self.put_node(node);
        Effect { node, sent, reads, wrong: None, stalls }
    }

    fn input(&mut self, node: &mut Node, at: u8, action: Action, number: u64, said: &mut Said) {
        use Action as A;
        let origin = Origin { replica: node.id(), start: 0 };
        let mut stalls = false;
        let mut brought = None;
        match action {
            A::Deliver { packet, stall } => {
                stalls = stall;
                let packet = self.packets.at(packet).packet.clone();
                brought = self.deliver(node, packet, said);
            }
            A::Timeout { stall, .. } => {
                stalls = stall;
                node.clock += LONG;
                node.core.advance(node.now());
            }
            A::Heartbeat { .. } => {
                node.clock += HEARTBEAT;
                node.core.advance(node.now());
            }
            A::Lapse { .. } => node.clock += LONG,
            A::Suspect { .. } if node.core.leader() == Some(node.id()) => node.core.wake(node.now()),
            A::Suspect { .. } => {
                node.core.suspect_leader(node.now());
                if let Some(leader) = node.core.leader() {
                    said.wrong(|| format!("replica {} suspects {leader} and goes on to follow it", node.id()));
                }
            }
            A::Doubt { of, still, .. } => {
                node.core.set_suspected(node.now(), ReplicaId(u64::from(of) + 1), still);
            }
            A::Propose { stall, .. } => {
                stalls = stall;
                let mut chunk = RunBuilder::new();
                chunk.push(EntryKind::Command, number, b"c");
                let proposed = node.core.propose(node.now(), chunk, origin, ProposeOptions::default());
                if let Ok(Proposed::Forwarded { .. }) = proposed {
                    node.forwarded.sent(node.core.term(), number);
                }
            }
            A::Change { which, stall, .. } => {
                stalls = stall;
                let change: ConfigChange = self.config.changes[usize::from(which)].clone();
                let _ = node.core.propose_change(
                    node.now(),
                    change,
                    CHANGE_SEQUENCES + number,
                    origin,
                    ProposeOptions::default(),
                );
            }
            A::Read { .. } => node.core.read_index(node.now(), number),
            A::Close { .. } => {
                if let Some(forwards) = node.forwarded.to_close(node.core.term()) {
                    node.core.close_forwards(node.now(), forwards);
                }
            }
            A::Transfer { to, .. } => {
                let _ = node.core.transfer_leader(node.now(), ReplicaId(u64::from(to) + 1));
            }
            A::Compact { .. } => node.compact(),
            A::Fetch { .. } => node.serve_fetch(),
            A::Finish { .. } => {
                node.write(said);
                node.tell(said);
            }
            A::Write { .. } => return node.write(said),
            A::Tell { .. } => node.tell(said),
            A::Crash { kept, .. } => return node.crash(&mut self.rules, self.config.core(at), usize::from(kept), said),
            A::Lose { .. } | A::Copy { .. } | A::Delay { .. } => unreachable!("these concern the network alone"),
        }
        if said.wrong.is_none() {
            node.settle(&mut self.rules, stalls, brought.as_deref(), said);
        }
    }

    /// A packet arrives. Returns the log that a snapshot stands for.
    fn deliver(&self, node: &mut Node, packet: Packet, said: &mut Said) -> Option<Vec<super::node::Mark>> {
        if node.gone {
            return None;
        }
        let now = node.now();
        let (message, brought) = match packet {
            Packet::Raft(message) => (message, None),
            Packet::Snapshot(message, history) => {
                if let Body::Snapshot(_) = message.body {
                    said.packets.push(Packet::Report { to: message.from, of: message.to, ok: true });
                }
                (message, Some(history))
            }
            Packet::Report { of, ok, .. } => {
                node.core.snapshot_finished(of, ok);
                return None;
            }
        };
        if let Err(violation) = node.core.step(now, message) {
            said.wrong(|| format!("replica {}: {violation}", node.id()));
        }
        brought
    }

    /// How many replicas' states, packets and effects were found out.
    pub(crate) fn known(&self) -> (usize, usize, usize) {
        (self.nodes.len(), self.packets.len(), self.effects.len())
    }
}
