//! A state of the whole group, as numbers that stand for interned replicas and packets.

use super::hash::Hash128;
use super::node::Mark;
use longboat_raft::{Body, Message, ReplicaId};
use smallvec::SmallVec;
use std::hash::{Hash, Hasher};

/// Terms that a model can count to.
pub(crate) const TERMS_MAX: usize = 10;
/// Reads that a model can count to.
pub(crate) const READS_MAX: usize = 4;

/// What is bounded, so that a model ends: requests, faults, and what time brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Budget {
    /// Commands proposed.
    Proposals,
    /// Membership changes proposed.
    Changes,
    /// Reads asked for.
    Reads,
    /// Leader transfers.
    Transfers,
    /// Snapshots taken.
    Compactions,
    /// Election timeouts passed.
    Timeouts,
    /// Heartbeats of a leader's timer.
    Heartbeats,
    /// Times that nobody was heard for long and no timer went off.
    Lapses,
    /// Times that hosts suspect another one, or wake a silent replica.
    Suspicions,
    /// Crashes.
    Crashes,
    /// Packets lost.
    Losses,
    /// Packets delivered twice.
    Copies,
    /// Packets overtaken by later ones.
    Delays,
    /// Times that a disk stalled.
    Stalls,
    /// Times that a leader is asked to close what was forwarded to it.
    Closings,
}

/// How many kinds of budgets there are.
pub(crate) const BUDGETS: usize = 15;

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Packet {
    /// A message.
    Raft(Message),
    /// A snapshot, with the log that it stands for.
    Snapshot(Message, Vec<Mark>),
    /// The sender's snapshot connection tells how it ended.
    Report {
        /// Who sent the snapshot and is told.
        to: ReplicaId,
        /// To whom it was sent.
        of: ReplicaId,
        /// Whether it arrived.
        ok: bool,
    },
}

impl Packet {
    /// Packets of one link arrive in order: of one sender, addressee and lane.
    pub(crate) fn link(&self, lanes: bool) -> u32 {
        let (from, to, lane) = match self {
            Self::Raft(m) => (m.from, m.to, lanes && matches!(m.body, Body::Append { .. })),
            Self::Snapshot(m, _) => (m.from, m.to, true),
            Self::Report { to, of, .. } => (*of, *to, true),
        };
        (from.0 as u32) << 16 | (to.0 as u32) << 8 | u32::from(lane)
    }

    pub(crate) fn to(&self) -> ReplicaId {
        match self {
            Self::Raft(m) | Self::Snapshot(m, _) => m.to,
            Self::Report { to, .. } => *to,
        }
    }
}

/// A packet, and on which link it travels.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) packet: Packet,
    pub(crate) link: u32,
    /// The position of the addressee among the replicas; none for one that the model does not have.
    pub(crate) to: Option<u8>,
}

/// A read that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Read {
    /// How much was committed when it was asked for.
    pub(crate) floor: u8,
    pub(crate) open: bool,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// The replicas.
    pub(crate) nodes: SmallVec<[u32; 5]>,
    /// Packets on their way, by link, in order on each.
    pub(crate) net: SmallVec<[u32; 12]>,
    /// Packets that may arrive at any time, by number.
    pub(crate) late: SmallVec<[u32; 4]>,
    /// What of each budget is spent.
    pub(crate) spent: [u8; BUDGETS],
    /// What was ever known to be committed.
    pub(crate) committed: u32,
    /// Who led in each term, counted from one; zero for nobody.
    pub(crate) leaders: [u8; TERMS_MAX],
    pub(crate) reads: [Read; READS_MAX],
}

impl State {
    pub(crate) fn hash(&self) -> [u64; 2] {
        let Self { nodes, net, late, spent, committed, leaders, reads } = self;
        let mut hash = Hash128::new();
        let word = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
        hash.write_u64(word(nodes.len() as u32, *committed));
        hash.write_u64(word(net.len() as u32, late.len() as u32));
        for pair in nodes.chunks(2).chain(net.chunks(2)).chain(late.chunks(2)) {
            hash.write_u64(word(pair[0], pair.get(1).copied().unwrap_or(u32::MAX)));
        }
        hash.write(spent);
        hash.write(leaders);
        for read in reads {
            hash.write_u64(u64::from(read.floor) << 1 | u64::from(read.open));
        }
        hash.value()
    }

    pub(crate) fn spent(&self, budget: Budget) -> u8 {
        self.spent[budget as usize]
    }

    pub(crate) fn spend(&mut self, budget: Budget) {
        self.spent[budget as usize] += 1;
    }

    /// A packet sets out: behind those of its link, which are given by `link_of`.
    pub(crate) fn send(&mut self, packet: u32, link_of: impl Fn(u32) -> u32) {
        let link = link_of(packet);
        let at = self.net.iter().position(|p| link_of(*p) > link).unwrap_or(self.net.len());
        self.net.insert(at, packet);
    }

    /// A packet may arrive at any time from here on.
    pub(crate) fn set_late(&mut self, packet: u32) {
        let at = self.late.partition_point(|p| *p < packet);
        self.late.insert(at, packet);
    }

    /// A packet is on its way no more. False if it was not one of those that may arrive next.
    pub(crate) fn take(&mut self, packet: u32, link_of: impl Fn(u32) -> u32) -> bool {
        if let Some(at) = self.late.iter().position(|p| *p == packet) {
            self.late.remove(at);
            return true;
        }
        let head = self.heads(&link_of).find(|at| self.net[*at] == packet);
        match head {
            Some(at) => {
                self.net.remove(at);
                true
            }
            None => false,
        }
    }

    /// Where in `net` the first packet of each link is.
    pub(crate) fn heads<'a>(&'a self, link_of: impl Fn(u32) -> u32 + 'a) -> impl Iterator<Item = usize> + 'a {
        (0..self.net.len()).filter(move |&at| at == 0 || link_of(self.net[at - 1]) != link_of(self.net[at]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            nodes: SmallVec::new(),
            net: SmallVec::new(),
            late: SmallVec::new(),
            spent: [0; BUDGETS],
            committed: 0,
            leaders: [0; TERMS_MAX],
            reads: [Read::default(); READS_MAX],
        }
    }

    #[test]
    fn packets_of_a_link_arrive_in_order_and_late_ones_at_any_time() {
        let link_of = |packet: u32| packet / 10;
        let mut s = state();
        [25, 11, 21, 13].iter().for_each(|p| s.send(*p, link_of));
        assert_eq!(s.net[..], [11, 13, 25, 21]);
        let heads: Vec<u32> = s.heads(link_of).map(|at| s.net[at]).collect();
        assert_eq!(heads, [11, 25]);
        assert!(!s.take(13, link_of) && s.take(11, link_of) && s.take(13, link_of));
        s.set_late(21);
        assert!(s.take(21, link_of) && !s.take(21, link_of));
        assert_eq!((&s.net[..], s.late.len()), (&[25, 21][..], 0));
    }

    #[test]
    fn states_that_differ_anywhere_have_other_hashes() {
        let mut variants = vec![state(); 8];
        variants[1].net.push(1);
        variants[2].late.push(1);
        variants[3].spend(Budget::Stalls);
        variants[4].committed = 1;
        variants[5].leaders[9] = 1;
        variants[6].reads[3].open = true;
        variants[7].nodes.push(1);
        let mut hashes: Vec<[u64; 2]> = variants.iter().map(State::hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 8);
    }
}
