//! Damage in the middle of a journal that hits some groups and no others.
//!
//! The header of a record and its directory have checksums of their own. When these are right and a frame is not, in a record
//! that something vouches for, it is known whose frame it was, and nothing else of it: it may have had entries that were
//! acknowledged, a term, a vote. So its group is *quarantined*: what a damaged frame does to its group is what a record of
//! quarantine does. Everything that the group had goes, but for which replica was here, and its later frames mean nothing
//! until a replica is begun anew.
//!
//! Invariants:
//! - Nothing of a group is believed past a damaged frame: neither what was before it (a term and a vote that may be old, a log
//!   whose end may be missing) nor what comes after it (a log with a hole).
//! - A record of quarantine is durable before the store is anybody's: before anything is submitted, settled or recycled. So
//!   the fact outlives the segment with the damage; the fold carries it into the group's row as it does any other record.
//! - Who was here stays known, so that the id is never used again; or it is known that this is not known.
//!
//! **Who was here.** A damaged frame may have begun a replica. One that runs is never replaced without a frame that removes it
//! before: so if the group has a replica when its frame is damaged, that is who was here, or who was removed just now. It is
//! not known any more if the group had none, or one with nothing in it, which a start from a snapshot may replace at once;
//! and not after a second damaged frame, since the first may have removed what the second began.
//!
//! **Footers.** The footer of a segment whose frame is damaged was written when the frame was whole, or by an opening that knew of the
//! damage; and one behind it by either. So for groups that are quarantined in this journal a footer may say other things
//! than the records do, and for no others.

use crate::effect::Effect;
use crate::format::{DirectoryItem, FOOTER_HEADER_BYTES, FOOTER_ITEM_BYTES, FooterGroup, FooterHeader};
use crate::index::{FooterBody, LogIndex};
use crate::{GroupState, OpenError, REPLICA_NOT_KNOWN, Record, Update};
use longboat_raft::{GroupId, ReplicaId, plant, sometimes};
use std::collections::{BTreeMap, BTreeSet};

/// What a replay has met of it.
#[derive(Debug, Default)]
pub(crate) struct Rot {
    /// The groups with a damaged frame or a record of quarantine in the journal.
    hit: BTreeSet<GroupId>,
    /// Those of which no record of quarantine says it yet.
    unmarked: BTreeSet<GroupId>,
    /// The groups of which a footer says other things than the records, and what it follows.
    doubtful: BTreeMap<GroupId, u64>,
}

/// The replica that was here when a frame of its group was found damaged.
fn who_was_here(state: &GroupState) -> ReplicaId {
    let empty = state.snapshot.is_none() && state.last.index.is_zero() && state.bootstrap.membership.voters.is_empty();
    let known = !(state.is_void() || empty) || plant::is("quarantined-under-any-id");
    if known { state.bootstrap.replica } else { REPLICA_NOT_KNOWN }
}

impl Rot {
    /// A frame of the group in this record is damaged: what that does.
    pub(crate) fn meet(&mut self, state: &GroupState, record: u64) -> Effect {
        let (group, replica) = (state.group, who_was_here(state));
        sometimes!("group-quarantined-as-rotten");
        sometimes!(replica == REPLICA_NOT_KNOWN, "quarantined-replica-not-known");
        tracing::error!(%group, %replica, record, "a part of what the group had made durable is damaged: it is quarantined");
        self.hit.insert(group);
        self.unmarked.insert(group);
        Effect { record: Some(Box::new(Record::Quarantined { replica, record })), ..Effect::default() }
    }

    /// A frame of the group that is whole is carried out.
    pub(crate) fn pass(&mut self, group: GroupId, effect: &Effect) {
        match effect.record.as_deref() {
            Some(Record::Quarantined { .. }) => {
                self.hit.insert(group);
                self.unmarked.remove(&group);
            }
            Some(Record::Bootstrap(_)) => {
                self.unmarked.remove(&group);
            }
            _ => {}
        }
    }

    /// A footer whose list is not what the records come to: what it says, if that may be so.
    ///
    /// # Errors
    /// It is nothing that a footer of this segment could have been.
    pub(crate) fn other_footer(
        &mut self,
        index: &LogIndex,
        (footer, found): (&FooterHeader, &[u8]),
        (records, expected): (&FooterBody, &[u8]),
    ) -> Result<FooterBody, String> {
        let lists = (records.groups.len() + records.frames) * FOOTER_ITEM_BYTES;
        let tallies = lists..lists + records.tally_bytes;
        if found[footer.tallies().end..] != expected[tallies.end..] {
            return Err("its openings are not those of the records".to_owned());
        }
        let (found, expected) = (Parts::of(found, footer.groups as usize, footer.tallies())?, {
            Parts::of(expected, records.groups.len(), tallies)?
        });
        let groups: BTreeSet<GroupId> = found.groups.keys().chain(expected.groups.keys()).copied().collect();
        for group in groups {
            if found.groups.get(&group).map(Part::says) != expected.groups.get(&group).map(Part::says) {
                self.doubtful.insert(group, footer.last_seq);
            }
        }
        // What lies where in the segment is what the footer on the disk says.
        let slot = |part: &Part<'_>| Some((index.slot(part.at.group)?, part.at));
        let groups = found.groups.values().filter_map(slot).collect();
        let (frames, tally_bytes) = (footer.frames as usize, footer.tally_bytes as usize);
        Ok(FooterBody { groups, frames, tally_bytes, length: footer.length as usize - FOOTER_HEADER_BYTES })
    }

    /// The journal is at its end: only of groups that are quarantined in it may a footer have said other things.
    ///
    /// # Errors
    /// One did of another group.
    pub(crate) fn check_footers(&self) -> Result<(), OpenError> {
        match self.doubtful.iter().find(|(group, _)| !self.hit.contains(group)) {
            None => Ok(()),
            Some((group, seq)) => Err(OpenError::Corrupt(format!(
                "footer after record {seq}: it does not list what the records hold of group {group}"
            ))),
        }
    }

    /// What must be durable before the store is anybody's: every quarantine of which no record speaks.
    pub(crate) fn marks<'a>(&self, states: impl Iterator<Item = &'a GroupState>) -> Vec<Update> {
        let unmarked = states.filter(|s| self.unmarked.contains(&s.group));
        let mark = |s: &GroupState| {
            let record = Record::Quarantined { replica: s.bootstrap.replica, record: s.quarantined? };
            Some(Update { group: s.group, record: Some(Box::new(record)), ..Update::default() })
        };
        unmarked.filter_map(mark).filter(|_| !plant::is("quarantine-not-marked")).collect()
    }
}

/// Whose frame a damaged one is taken for.
pub(crate) fn owner<F>(frames: &[(DirectoryItem, F)], at: usize) -> GroupId {
    let at = if plant::is("neighbour-quarantined") { (at + 1) % frames.len() } else { at };
    frames[at].0.group
}

/// What a footer says, by group.
struct Parts<'a> {
    groups: BTreeMap<GroupId, Part<'a>>,
}

/// What a footer says of a group: where its frames are in the list, those, and what they come to.
struct Part<'a> {
    at: FooterGroup,
    frames: &'a [u8],
    tally: &'a [u8],
}

impl<'a> Part<'a> {
    /// All of it that does not depend on what other groups have in the segment.
    fn says(&self) -> (&'a [u8], &'a [u8]) {
        (self.frames, self.tally)
    }
}

impl<'a> Parts<'a> {
    /// Takes the body of a footer with so many groups and its tallies there apart.
    fn of(body: &'a [u8], groups: usize, tallies: std::ops::Range<usize>) -> Result<Self, String> {
        let malformed = || "its list is not one".to_owned();
        let lists = body.get(..tallies.start).ok_or_else(malformed)?;
        let mut tally = body.get(tallies).ok_or_else(malformed)?;
        let (items, frames) = lists.split_at_checked(groups * FOOTER_ITEM_BYTES).ok_or_else(malformed)?;
        let mut parts = Self { groups: BTreeMap::new() };
        for at in items.chunks_exact(FOOTER_ITEM_BYTES).map(FooterGroup::decode) {
            let from = at.at as usize * FOOTER_ITEM_BYTES;
            let to = from + at.count as usize * FOOTER_ITEM_BYTES;
            let frames = frames.get(from..to).ok_or_else(malformed)?;
            let all = tally;
            while !Effect::take(&mut tally).map_err(|e| e.to_string())?.1 {}
            let tally = &all[..all.len() - tally.len()];
            parts.groups.insert(at.group, Part { at, frames, tally });
        }
        if tally.is_empty() { Ok(parts) } else { Err(malformed()) }
    }
}
