//! Putting a new replica in the place of another: asked for here, carried out by whichever replica leads.
//!
//! The intent is part of the membership once its first change is in effect, and every leader goes on with it. A request
//! looks at the membership as of a linearizable read, and decides anew: done, under way, refused, or still to be proposed.
//! Asking again after the one who asked has died is therefore the same as going on. Invariant: what is proposed says which
//! membership it was decided by, so that deciding twice does nothing twice.

use crate::rare::{Fate, Refusal, Stance};
use crate::replica::Replica;
use crate::request::{Changed, Replacement, Reply};
use longboat_raft::{ChangeError, ConfigChange, Index, Membership, Origin, Run, Time, plant};
use longboat_rsm::{RequestError, Stage};

/// How far a replacement has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// To be asked, from this moment on: at what index is the membership of now in effect?
    Ask(Time),
    /// That was asked under this number; to be asked again if no answer comes.
    Asked(u64, Time),
    /// The membership is looked at when this index has been handed out.
    Look(Index),
    /// Its change is proposed.
    Proposed(Stance),
    /// The intent is in the membership: whoever leads carries it out.
    UnderWay,
    /// It is done, and those who stay are to know it for good. Until this moment at most, where that may never be heard of here.
    Settling(Time),
}

/// A replacement that somebody waits for here.
#[derive(Debug)]
pub(crate) struct Replace {
    what: Replacement,
    step: Step,
    reply: Reply<Changed>,
}

/// What a membership says of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    UnderWay,
    ToPropose,
    Refused(ChangeError),
}

/// Decides by the membership alone, so that whoever asks, wherever and whenever, comes to the same.
fn judge(what: &Replacement, m: &Membership) -> Verdict {
    let (old, new) = (what.old, what.new);
    if old.is_zero() || new.is_zero() {
        return Verdict::Refused(ChangeError::ZeroReplica);
    }
    if m.removed.contains(&new) {
        return Verdict::Refused(ChangeError::Removed(new));
    }
    let elsewhere = m.hosts.get(&new).is_some_and(|member| member.host != what.member.host);
    if m.is_witness(old) || m.is_witness(new) {
        return Verdict::Refused(ChangeError::Witness(if m.is_witness(old) { old } else { new }));
    }
    if elsewhere {
        return Verdict::Refused(ChangeError::Exists(new));
    }
    if m.voters.contains(&new) {
        return match (m.contains(old), m.voters.contains(&old)) {
            (false, _) if m.removed.contains(&old) => Verdict::Done,
            // The old one votes in the outgoing half only: the joint configuration is about to be left.
            (true, false) if m.outgoing.contains(&old) => Verdict::UnderWay,
            // Somebody has made it a non-voting member: nobody is about to remove it.
            (true, false) => Verdict::Refused(ChangeError::NotAVoter(old)),
            _ => Verdict::Refused(ChangeError::Exists(new)),
        };
    }
    match m.promotions.get(&new) {
        Some(Some(replaced)) if *replaced == old => Verdict::UnderWay,
        Some(_) => Verdict::Refused(ChangeError::Exists(new)),
        None if !m.voters.contains(&old) => Verdict::Refused(ChangeError::NotAVoter(old)),
        // Somebody else is about to take its place.
        None if m.promotions.values().any(|replaced| *replaced == Some(old)) => {
            Verdict::Refused(ChangeError::NotAVoter(old))
        }
        None => Verdict::ToPropose,
    }
}

impl Replace {
    pub(crate) fn new(what: Replacement, now: Time, reply: Reply<Changed>) -> Self {
        Self { what, step: Step::Ask(now), reply }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.reply.is_open()
    }

    pub(crate) fn deadline(&self) -> Time {
        match self.step {
            Step::Ask(again)
            | Step::Asked(_, again)
            | Step::Settling(again)
            | Step::Proposed(Stance::Forwarded(_, _, again)) => again.min(self.reply.deadline),
            _ => self.reply.deadline,
        }
    }

    pub(crate) fn stance(&self) -> Stance {
        match self.step {
            Step::Proposed(stance) => stance,
            _ => Stance::Leaving,
        }
    }

    pub(crate) fn stance_mut(&mut self) -> Option<&mut Stance> {
        match &mut self.step {
            Step::Proposed(stance) => Some(stance),
            _ => None,
        }
    }

    pub(crate) fn ask_again(&mut self) {
        self.step = Step::Ask(Time::ZERO);
    }

    pub(crate) fn fail(&mut self, error: &RequestError) {
        self.reply.resolve(Err(error.clone()));
    }

    pub(crate) fn read_ready(&mut self, context: u64, index: Option<Index>) {
        if let Step::Asked(asked, again) = self.step
            && asked == context
        {
            self.step = index.map_or(Step::Ask(again), Step::Look);
        }
    }

    /// What was forwarded was refused. It may have been decided by a membership that was over: that is looked at anew.
    pub(crate) fn refused(&mut self, error: &RequestError) {
        match error {
            RequestError::ConfigRefused(why) if !is_passing(*why) => self.reply.resolve(Err(error.clone())),
            _ => self.ask_again(),
        }
    }

    /// A run is committed.
    pub(crate) fn committed(&mut self, run: &Run, own: Origin) {
        if let Step::Proposed(stance) = self.step {
            match stance.fate(run, own) {
                Fate::Open => {}
                Fate::InEffect => self.step = Step::UnderWay,
                Fate::Dropped | Fate::Unknown => self.ask_again(),
            }
        }
    }

    /// Moves on as far as it goes.
    pub(crate) fn drive(&mut self, replica: &mut Replica, now: Time, sequences: &mut u64) {
        match self.step {
            Step::Ask(from) | Step::Asked(_, from) if from <= now => {
                if let Step::Asked(before, _) = self.step {
                    replica.core.give_up_read(before);
                }
                replica.stirred = true;
                let context = replica.ask_for_index(now);
                self.step = Step::Asked(context, replica.patience_from(now));
            }
            Step::Look(index) if replica.core.handed() >= index => self.look(replica, now, sequences),
            Step::UnderWay => match judge(&self.what, replica.core.membership()) {
                Verdict::Done => self.settle(replica, replica.patience_from(now), now),
                Verdict::UnderWay => {}
                Verdict::ToPropose => self.step = Step::Ask(now),
                Verdict::Refused(why) => self.reply.resolve(Err(RequestError::ConfigRefused(why))),
            },
            Step::Settling(until) => self.settle(replica, until, now),
            _ => {}
        }
        let may_have_applied = matches!(self.step, Step::Proposed(_) | Step::UnderWay | Step::Settling(_));
        self.reply.expire(now, Stage::Quorum, may_have_applied);
    }

    /// The place is taken, which is told once a majority of those who stay know it for good.
    ///
    /// Invariant: whoever is told may lose another host at once, up to a minority of the members. Earlier that could cost the group:
    /// the leader alone knows that the change is committed; were it and another to fail, those with the change in their log would
    /// wait for a majority of the former members, of whom the replaced one is gone for ever.
    fn settle(&mut self, replica: &Replica, until: Time, now: Time) {
        let waited = until <= now && !replica.core.will_hear_who_may_go();
        match replica.core.removed_may_go() || waited || plant::is("replaced-before-settled") {
            true => self.reply.resolve(Ok(replica.changed())),
            // From then on it is looked at whenever there is something new.
            false => self.step = Step::Settling(if until <= now { self.reply.deadline } else { until }),
        }
    }

    fn look(&mut self, replica: &mut Replica, now: Time, sequences: &mut u64) {
        let m = replica.core.membership();
        let change = ConfigChange {
            after: Some(m.change_id),
            ..ConfigChange::replace(self.what.old, self.what.new, self.what.member)
        };
        match judge(&self.what, m) {
            Verdict::Done => self.settle(replica, replica.patience_from(now), now),
            Verdict::UnderWay => self.step = Step::UnderWay,
            Verdict::Refused(why) => self.reply.resolve(Err(RequestError::ConfigRefused(why))),
            Verdict::ToPropose => match replica.propose_change(now, &change, sequences) {
                Ok(stance) => self.step = Step::Proposed(stance),
                Err(Refusal::Final(RequestError::ConfigRefused(why))) if !is_passing(why) => {
                    self.reply.resolve(Err(RequestError::ConfigRefused(why)));
                }
                Err(_) => self.step = Step::Ask(replica.patience_from(now)),
            },
        }
    }
}

/// Whether a change that was refused for this may be taken a little later.
fn is_passing(why: ChangeError) -> bool {
    matches!(why, ChangeError::InFlight | ChangeError::AlreadyJoint | ChangeError::ChangeId { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_raft::{HostId, Member, ReplicaId};

    fn member(host: u64) -> Member {
        Member { host: HostId(host), ..Member::default() }
    }

    fn three() -> Membership {
        Membership::from_voters((1..=3).map(|r| (ReplicaId(r), member(r))))
    }

    fn what(old: u64, new: u64, host: u64) -> Replacement {
        Replacement { old: ReplicaId(old), new: ReplicaId(new), member: member(host) }
    }

    #[test]
    fn the_same_request_goes_on_and_a_contradicting_one_is_refused() {
        let four = ReplicaId(4);
        assert_eq!(judge(&what(3, 4, 4), &three()), Verdict::ToPropose);
        assert_eq!(judge(&what(9, 4, 4), &three()), Verdict::Refused(ChangeError::NotAVoter(ReplicaId(9))));
        let begun = three().after(&ConfigChange::replace(ReplicaId(3), four, member(4)), Index(5));
        assert_eq!(judge(&what(3, 4, 4), &begun), Verdict::UnderWay);
        assert_eq!(judge(&what(2, 4, 4), &begun), Verdict::Refused(ChangeError::Exists(four)));
        assert_eq!(judge(&what(3, 4, 5), &begun), Verdict::Refused(ChangeError::Exists(four)), "another host");
        assert_eq!(judge(&what(3, 6, 6), &begun), Verdict::Refused(ChangeError::NotAVoter(ReplicaId(3))));
        let both = [ConfigChange::add_voter(four, member(4)).changes, ConfigChange::remove(ReplicaId(3)).changes];
        let joint = begun.after(&ConfigChange { changes: both.concat(), ..ConfigChange::default() }, Index(6));
        assert_eq!(judge(&what(3, 4, 4), &joint), Verdict::UnderWay);
        let done = joint.after(&ConfigChange::leave_joint(), Index(7));
        assert_eq!(judge(&what(3, 4, 4), &done), Verdict::Done);
        assert_eq!(judge(&what(2, 4, 4), &done), Verdict::Refused(ChangeError::Exists(four)));
        // The old one was made a non-voting member instead of being removed: nothing is under way any more.
        let demoted = [ConfigChange::add_voter(four, member(4)), ConfigChange::add_learner(ReplicaId(3), member(3))];
        let changes = demoted.map(|change| change.changes).concat();
        let joint = begun.after(&ConfigChange { changes, ..ConfigChange::default() }, Index(6));
        assert_eq!(judge(&what(3, 4, 4), &joint), Verdict::UnderWay);
        let kept = joint.after(&ConfigChange::leave_joint(), Index(7));
        assert!(kept.contains(ReplicaId(3)) && kept.voters.contains(&four));
        assert_eq!(judge(&what(3, 4, 4), &kept), Verdict::Refused(ChangeError::NotAVoter(ReplicaId(3))));
        let gone = done.after(&ConfigChange::remove(four), Index(8));
        assert_eq!(judge(&what(3, 4, 4), &gone), Verdict::Refused(ChangeError::Removed(four)));
    }
}
