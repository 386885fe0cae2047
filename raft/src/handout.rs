//! The end of a group's visit: committed entries to apply, membership changes into effect, a batch sealed, messages out.
//!
//! Invariants kept here: an entry is handed out once, in order, and only when it is both committed and durable here; a
//! membership change takes effect exactly when its entry is handed out; a held message leaves with a token whose batch
//! holds, or comes after, all that was accepted when it was made.

use crate::changer::ConfigChange;
use crate::core::{Core, Guard, RareOutput, Role};
use crate::ids::{Index, ReplicaId, Time};
use crate::log::Slice;
#[cfg(feature = "plant")]
use crate::message::Body;
use crate::message::Message;
use crate::output::{Event, Fetch, Output, Persist};
use crate::plant;
use crate::run::{EntryKind, Run};
use crate::sometimes;
use crate::spare::Emptied;
use smallvec::SmallVec;
use std::sync::Arc;

/// About how many bytes one cold read for the state machine brings.
const FETCH_BYTES_MAX: usize = 1 << 20;

/// Moves all messages to the end of another list. The memory goes with them where it can: thousands of cores would each keep
/// some for the next time, and by then it would have left the processor's caches.
fn move_all(from: &mut Vec<Message>, to: &mut Vec<Message>) {
    if to.is_empty() {
        *to = std::mem::take(from);
    } else {
        to.append(from);
    }
}

/// Entries that are read from the disk again to be handed out. Few replicas ever do so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ColdHandout {
    /// The cold read under way.
    pub(crate) ticket: Option<u64>,
    /// What such a read brought.
    pub(crate) fetched: Vec<Run>,
}

impl Emptied for ColdHandout {
    const EMPTY: &'static Self = &Self { ticket: None, fetched: Vec::new() };

    fn is_emptied(&self) -> bool {
        self.ticket.is_none() && self.fetched.is_empty()
    }
}

impl Core {
    /// Ends the group's visit in a round: sends what is due, and moves all output to the end of `out`.
    ///
    /// For a group with nothing to say this looks at a few words and returns.
    pub fn take_output(&mut self, now: Time, out: &mut Output) {
        self.tell(now);
        if !self.has_output() {
            return;
        }
        self.round_bytes = 0;
        // The commit index goes out before changes take effect: also to members that those remove, or they would never
        // learn of it.
        self.end_round();
        self.hand_out(&mut out.committed);
        self.announce();
        let install = self.outbox.rare.get_mut().and_then(|rare| rare.install.take());
        self.seal(install.as_deref().cloned(), out);
        out.install = install.map(|b| *b).or(out.install.take());
        move_all(&mut self.outbox.early, &mut out.early);
        if let Some(rare) = self.outbox.rare.get_mut() {
            out.recover = rare.recover.take().map(|b| *b).or(out.recover.take());
            out.reads.append(&mut rare.reads);
            out.refused.append(&mut rare.refused);
            out.closed.append(&mut rare.closed);
            out.snapshots_wanted.append(&mut rare.snapshots_wanted);
            out.fetches.append(&mut rare.fetches);
            out.events.append(&mut rare.events);
            // Where reads come, the next ones come soon.
            if rare.reads.capacity() == 0 {
                self.outbox.rare.shed();
            }
        }
        self.settle_quiet();
    }

    /// Whether [`Core::take_output`] would do anything.
    pub fn has_output(&self) -> bool {
        let o = &self.outbox;
        self.dirty
            || !o.early.is_empty()
            || !o.held.is_empty()
            || *o.rare != *RareOutput::EMPTY
            || (self.handout.handed < self.may_hand_out() && self.handout.cold.ticket.is_none())
            || self.durability.is_dirty(self.log.last().index, self.ballot())
            || self.quiet.save_commit
            || self.announced != (self.role, self.leader, self.term)
            || (self.role == Role::Leader && self.membership.auto_leave && self.pending_change <= self.handout.handed)
    }

    /// The last index that may be applied: committed, and on this disk too. Were it applied before, a crash could leave
    /// the state machine ahead of the log.
    fn may_hand_out(&self) -> Index {
        if plant::is("apply-before-durable") {
            return self.commit;
        }
        if self.guard != Guard::None {
            // There is no state machine that could take it.
            return self.handout.handed;
        }
        self.commit.min(self.durability.durable())
    }

    fn hand_out(&mut self, committed: &mut Vec<Run>) {
        let mut left = self.config.handout_bytes_max;
        while left > 0 && self.handout.handed < self.may_hand_out() {
            let Some(runs) = self.next_committed(self.handout.handed.next(), self.may_hand_out(), left) else {
                break;
            };
            for run in runs {
                left = left.saturating_sub(run.encoded_len());
                self.hand_out_run(run, committed);
            }
        }
        self.maybe_leave_joint();
        self.end_round();
    }

    /// The committed runs from `lo` on, from a cold read, of which all are handed out, or from memory. `None` when they
    /// must be read first.
    fn next_committed(&mut self, lo: Index, hi: Index, bytes_max: usize) -> Option<SmallVec<[Run; 1]>> {
        let fetched = self.handout.cold.get_mut().map(|cold| std::mem::take(&mut cold.fetched)).unwrap_or_default();
        self.handout.cold.shed();
        if fetched.first().is_some_and(|r| r.first() <= lo && r.last() >= lo) {
            let within = fetched.iter().filter(|r| r.first() <= hi && r.last() >= lo);
            return Some(within.map(|r| r.slice(r.first().max(lo)..=r.last().min(hi))).collect());
        }
        match self.log.entries(lo, hi, bytes_max) {
            Slice::Runs(runs) => Some(runs),
            Slice::Cold { hi } => {
                if self.handout.cold.ticket.is_none() {
                    let ticket = self.next_ticket();
                    self.handout.cold.ticket = Some(ticket);
                    self.outbox.rare.fetches.push(Fetch { ticket, lo, hi, bytes_max: FETCH_BYTES_MAX });
                }
                None
            }
            Slice::Compacted => unreachable!("only what is applied is compacted, and {lo} is not handed out"),
        }
    }

    fn hand_out_run(&mut self, run: Run, committed: &mut Vec<Run>) {
        assert_eq!(run.first(), self.handout.handed.next(), "entries are handed out in order, each once");
        if run.has_config() {
            for entry in run.entries().filter(|e| e.kind == EntryKind::Config) {
                self.handout.handed = entry.index;
                let change = ConfigChange::decode(entry.payload)
                    .expect("config entries were decoded when they came into the log");
                self.put_into_effect(&change, entry.index);
            }
        }
        self.handout.handed = run.last();
        if run.count() == 1 {
            self.learn_settled(&run);
        }
        committed.push(run);
    }

    /// The membership change at `index` takes effect: not before it is committed, as single changes are safe only then
    /// with the saved commit index, and joint ones either way.
    fn put_into_effect(&mut self, change: &ConfigChange, index: Index) {
        let next = self.membership.after(change, index);
        let gone: SmallVec<[ReplicaId; 4]> = self.membership.replicas().filter(|r| !next.contains(*r)).collect();
        self.membership = Arc::new(next);
        self.learn_own_role();
        self.note_leaving(&gone);
        self.outbox.rare.events.push(Event::MembershipChanged(index));
        if self.role != Role::Leader {
            return;
        }
        sometimes!(self.membership.is_joint(), "leader-enters-a-joint-configuration");
        if !self.is_voter && self.config.step_down_on_removal {
            sometimes!("leader-removed");
            self.hand_over();
            return self.become_follower(self.term, None);
        }
        // A new member is probed with the last entry. It counts as active: it had no chance to answer yet.
        self.rebuild_peers(self.log.last().index, true);
        self.maybe_commit();
        // Whoever follows may be a majority of the new members, and there may be nobody left whose answer would show it. Answers
        // count as in a round that began now: who gave one after a read had arrived elects nobody else without this leader's knowing.
        if !plant::is("reads-wait-for-the-removed") {
            self.confirm_reads();
        }
        self.dirty = true;
        self.end_round();
    }

    fn announce(&mut self) {
        let (role, leader, term) = self.announced;
        self.announced = (self.role, self.leader, self.term);
        if self.role != role {
            self.outbox.rare.events.push(Event::RoleChanged { role: self.role, term: self.term });
        }
        if self.leader != leader || (self.term != term && self.leader.is_some()) {
            self.outbox.rare.events.push(Event::LeaderChanged { leader: self.leader, term: self.term });
        }
    }

    /// Whether something was accepted that is in no batch yet: the next output has it.
    pub fn has_unsealed(&self) -> bool {
        self.durability.is_dirty(self.log.last().index, self.ballot())
    }

    /// Seals what was accepted into a batch, with the messages that wait for it.
    fn seal(&mut self, install: Option<crate::SnapshotMeta>, out: &mut Output) {
        #[cfg(feature = "plant")]
        self.let_planted_messages_out();
        let (last, ballot) = (self.log.last().index, self.ballot());
        let dirty = self.durability.is_dirty(last, ballot) || self.quiet.save_commit;
        if !dirty && !self.durability.in_flight() {
            // Everything that was accepted is durable already: nothing to wait for.
            move_all(&mut self.outbox.held, &mut self.outbox.early);
        }
        if !dirty && self.outbox.held.is_empty() {
            return;
        }
        let (unsealed, token) = self.durability.seal(self.now, last, ballot);
        if dirty {
            let runs = self.log.tail_from(unsealed.append_from).expect("what is not durable stays in memory");
            let mut hard_state = self.hard_state();
            if plant::is("commit-not-saved") {
                hard_state.commit = Index::ZERO;
            }
            self.quiet.sealed(hard_state.commit);
            out.persist = Some(Persist { hard_state, cut_tail: unsealed.cut_tail, runs, install });
        }
        out.token = Some(token);
        move_all(&mut self.outbox.held, &mut out.held);
    }

    /// Planted bugs: messages that leave although what they rest on is not durable.
    #[cfg(feature = "plant")]
    fn let_planted_messages_out(&mut self) {
        let clean = !self.durability.is_dirty(self.log.last().index, self.ballot());
        let mut kept = Vec::new();
        for message in std::mem::take(&mut self.outbox.held) {
            let too_early = match &message.body {
                Body::RequestVote { .. } => plant::is("request-vote-before-durable"),
                Body::AppendAccepted { .. } if clean && plant::is("duplicate-append-acked-in-flight") => true,
                _ => plant::is("ack-before-durable"),
            };
            if too_early { self.outbox.early.push(message) } else { kept.push(message) }
        }
        self.outbox.held = kept;
    }
}
