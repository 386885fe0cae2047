//! Who waits for which entry: from the moment a chunk has left its queue until its results are there.
//!
//! Invariants: the replica where a proposal was made completes it, with the state machine's result. On the leader a
//! chunk is known by its place (term, first index): when an entry of another term is committed at that place, the chunk
//! was definitely not applied, nor when one of a later term is committed before that place. A forwarded chunk is known by its sequence numbers: an applied entry of own origin
//! completes its own slot only; earlier open ones stay until applied, refused by the leader, found to be lost, or timed out. Nothing
//! is proposed again here.

use crate::queue::Deadlines;
use longboat_raft::spare::Emptied;
use longboat_raft::{Index, Origin, Run, Term, Time, plant, sometimes};
use longboat_rsm::{AnyCompletion, RequestError, Stage};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Where the results of one handed-out run go.
#[derive(Clone, Debug)]
pub struct Waiter {
    /// The chunk's results.
    pub results: Arc<dyn AnyCompletion>,
    /// The slot of the run's first entry.
    pub first_slot: u32,
}

/// A chunk whose entries were given to the core.
#[derive(Debug)]
pub struct Ticket {
    /// Where the results go: entry `i` has slot `i`.
    pub results: Arc<dyn AnyCompletion>,
    /// The sequence number of the first entry.
    pub first_sequence: u64,
    /// The number of entries.
    pub count: u32,
    /// When the clients give up.
    pub deadlines: Deadlines,
}

impl Ticket {
    /// Resolves the entries from `from` on with an error.
    fn fail(&self, from: u32, error: &RequestError) {
        self.results.fail(from, self.count - from, error);
    }

    fn expire(&mut self, now: Time, error: &RequestError) {
        self.deadlines.expire(now, self.count, &*self.results, error);
    }
}

#[derive(Debug)]
struct Local {
    term: Term,
    first: Index,
    /// The slots before this one were handed to apply: what becomes of them is not known here any more.
    next_slot: u32,
    ticket: Ticket,
}

impl Local {
    fn last(&self) -> Index {
        Index(self.first.0 + u64::from(self.ticket.count) - 1)
    }
}

#[derive(Debug)]
struct Forwarded {
    /// The term of the leader that it was sent to.
    term: Term,
    ticket: Ticket,
    /// The slots before this one were handed to apply.
    next_slot: u32,
    open: u32,
    /// When its leader is to be asked what became of it.
    ask_at: Time,
}

impl Forwarded {
    /// The sequence number after its last one.
    fn end(&self) -> u64 {
        self.ticket.first_sequence + u64::from(self.ticket.count)
    }
}

/// Something handed to the apply worker that may still time out there.
#[derive(Debug)]
struct Handed {
    through: Index,
    results: Arc<dyn AnyCompletion>,
    slots: Range<u32>,
    deadlines: Deadlines,
    /// For reads: how many chunks of reads were handed over up to this one.
    reads: Option<u64>,
}

/// Most groups of many have one chunk under way at a time: a first one takes room for itself alone.
fn first_room<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() == 0 {
        queue.reserve_exact(1);
    }
}

/// The requests of one replica that are under way.
#[derive(Debug, Default)]
pub struct Tracker {
    local: VecDeque<Local>,
    forwarded: VecDeque<Forwarded>,
    handed: VecDeque<Handed>,
    reads_handed: u64,
    /// No deadline is earlier than this.
    deadline: Option<Time>,
}

impl Emptied for Tracker {
    const EMPTY: &'static Self = &Self {
        local: VecDeque::new(),
        forwarded: VecDeque::new(),
        handed: VecDeque::new(),
        reads_handed: 0,
        deadline: None,
    };

    /// Chunks of reads are counted for the replica's life: the apply worker counts them too.
    fn is_emptied(&self) -> bool {
        self.under_way() == 0 && self.reads_handed == 0
    }
}

impl Tracker {
    /// Lets go of room for requests that have ended.
    pub(crate) fn shed(&mut self) {
        self.local.shrink_to_fit();
        self.forwarded.shrink_to_fit();
        self.handed.shrink_to_fit();
    }

    /// The moment at which [`Tracker::expire`] should be called.
    pub fn deadline(&self) -> Time {
        self.deadline.unwrap_or(Time(u64::MAX))
    }

    fn note(&mut self, at: Time) {
        self.deadline = Some(self.deadline().min(at));
    }

    /// The leader appended the chunk at this place.
    pub fn appended(&mut self, ticket: Ticket, term: Term, first: Index) {
        self.note(ticket.deadlines.earliest());
        first_room(&mut self.local);
        self.local.push_back(Local { term, first, next_slot: 0, ticket });
    }

    /// The chunk went to the leader of this term, which is to be asked at `ask_at` what became of it.
    pub fn forwarded(&mut self, ticket: Ticket, term: Term, ask_at: Time) {
        self.note(ticket.deadlines.earliest().min(ask_at));
        let open = ticket.count;
        self.forwarded.push_back(Forwarded { term, ticket, next_slot: 0, open, ask_at });
    }

    /// The leader of `term`, the present one, is to be asked about the commands with numbers below the one returned; 0 if
    /// it need not be asked. It is to be asked again at `again` about those that are still open then.
    pub fn due_forwards(&mut self, now: Time, term: Term, again: Time) -> u64 {
        let Some(last) = self.forwarded.iter().rposition(|f| f.ask_at <= now) else { return 0 };
        let mut before = 0;
        for f in self.forwarded.range_mut(..=last) {
            // What was forwarded in an earlier term ends when an entry of this one is handed out.
            f.ask_at = if f.term == term { again } else { Time(u64::MAX) };
            if f.term == term && f.open > 0 {
                before = f.end();
            }
        }
        before
    }

    /// What was forwarded in `term` with numbers below `before`, and is open, was lost. Returns whether there was any.
    pub fn closed(&mut self, term: Term, before: u64) -> bool {
        let mut any = false;
        for f in self.forwarded.iter_mut().filter(|f| f.open > 0 && f.term == term && f.end() <= before) {
            f.ticket.fail(f.next_slot, &RequestError::Dropped);
            (f.open, any) = (0, true);
        }
        self.drop_closed();
        any
    }

    /// The leader refused a forwarded chunk: it was not applied.
    pub fn refused(&mut self, first_sequence: u64, error: &RequestError) {
        if let Ok(at) = self.find_forwarded(first_sequence) {
            sometimes!("forwarded-chunk-refused");
            let f = &mut self.forwarded[at];
            f.ticket.fail(f.next_slot, error);
            f.open = 0;
            self.drop_closed();
        }
    }

    /// The log was reset to a snapshot at `through`: what it covers may or may not have been applied.
    pub fn skipped(&mut self, through: Index) {
        while self.local.front().is_some_and(|l| l.first <= through) {
            sometimes!("chunk-covered-by-an-install");
            self.pop_local(&RequestError::OutcomeUnknown);
        }
        for f in self.forwarded.drain(..) {
            f.ticket.fail(f.next_slot, &RequestError::OutcomeUnknown);
        }
    }

    /// A committed run goes to the apply worker: finds who waits for it. `own` is this replica's origin.
    pub fn handed(&mut self, run: &Run, own: Origin) -> Option<Waiter> {
        self.drop_forwarded_before(run.term());
        let found = self.match_local(run).or_else(|| self.match_forwarded(run, own));
        let (waiter, deadlines) = found?;
        let slots = waiter.first_slot..waiter.first_slot + run.count() as u32;
        first_room(&mut self.handed);
        self.handed.push_back(Handed {
            through: run.last(),
            results: Arc::clone(&waiter.results),
            slots,
            deadlines,
            reads: None,
        });
        Some(waiter)
    }

    /// Reads go to the apply worker, behind the applies through `through`.
    pub fn handed_reads(&mut self, results: Arc<dyn AnyCompletion>, count: u32, through: Index, deadlines: Deadlines) {
        self.note(deadlines.earliest());
        self.reads_handed += 1;
        let reads = Some(self.reads_handed);
        self.handed.push_back(Handed { through, results, slots: 0..count, deadlines, reads });
    }

    fn match_local(&mut self, run: &Run) -> Option<(Waiter, Deadlines)> {
        while let Some(front) = self.local.front_mut() {
            if front.first > run.last() && (front.term >= run.term() || plant::is("cut-chunk-waits")) {
                return None;
            }
            if front.first > run.last() {
                // Terms never fall along the log: after an entry of a later term there is none of the chunk's. Nobody may propose
                // anything for long, so its place is not waited for.
                sometimes!("chunk-cut-by-a-later-term");
                self.pop_local(&RequestError::Dropped);
            } else if front.last() < run.first() {
                // Its place was passed without being handed out: a snapshot covered it.
                self.pop_local(&RequestError::OutcomeUnknown);
            } else if front.term != run.term() {
                // Log matching: with another term at this place, no entry of the chunk from here on is ever committed.
                sometimes!("chunk-overwritten-by-another-term");
                self.pop_local(&RequestError::Dropped);
            } else {
                assert!(
                    front.first <= run.first() && run.last() <= front.last(),
                    "a handed-out run is a piece of one chunk: {run:?} of {}..={}",
                    front.first,
                    front.last()
                );
                let first_slot = (run.first().0 - front.first.0) as u32;
                let waiter = Waiter { results: Arc::clone(&front.ticket.results), first_slot };
                let deadlines = front.ticket.deadlines.clone();
                front.next_slot = first_slot + run.count() as u32;
                if run.last() == front.last() {
                    self.local.pop_front();
                }
                return Some((waiter, deadlines));
            }
        }
        None
    }

    fn pop_local(&mut self, error: &RequestError) {
        let local = self.local.pop_front().expect("the caller looked at the front");
        local.ticket.fail(local.next_slot, error);
    }

    fn match_forwarded(&mut self, run: &Run, own: Origin) -> Option<(Waiter, Deadlines)> {
        if self.forwarded.is_empty() || run.origin() != own {
            return None;
        }
        let sequence = run.entries().next().expect("a run has an entry").sequence;
        let at = self.find_forwarded(sequence).ok()?;
        let f = &mut self.forwarded[at];
        let first_slot = (sequence - f.ticket.first_sequence) as u32;
        let waiter = Waiter { results: Arc::clone(&f.ticket.results), first_slot };
        let deadlines = f.ticket.deadlines.clone();
        f.next_slot = first_slot + run.count() as u32;
        f.open = f.open.saturating_sub(run.count() as u32);
        self.drop_closed();
        Some((waiter, deadlines))
    }

    /// An entry of `term` is committed. A forwarded chunk is appended only by the leader of the term in which it was sent,
    /// before any entry of a later term: one of an earlier term that has not come by now never will.
    fn drop_forwarded_before(&mut self, term: Term) {
        while self.forwarded.front().is_some_and(|f| f.term < term) {
            sometimes!("forwarded-chunk-outlived-by-a-term");
            let f = self.forwarded.pop_front().expect("just seen");
            f.ticket.fail(f.next_slot, &RequestError::Dropped);
        }
    }

    fn find_forwarded(&self, sequence: u64) -> Result<usize, usize> {
        self.forwarded.binary_search_by(|f| {
            if sequence < f.ticket.first_sequence {
                std::cmp::Ordering::Greater
            } else if sequence >= f.ticket.first_sequence + u64::from(f.ticket.count) {
                std::cmp::Ordering::Less
            } else {
                std::cmp::Ordering::Equal
            }
        })
    }

    fn drop_closed(&mut self) {
        while self.forwarded.front().is_some_and(|f| f.open == 0) {
            self.forwarded.pop_front();
        }
    }

    /// The state machine has applied through `applied`, and answered so many chunks of reads.
    pub fn applied(&mut self, applied: Index, reads_done: u64) {
        let over = |h: &Handed| match h.reads {
            None => h.through <= applied,
            Some(number) => number <= reads_done,
        };
        while self.handed.front().is_some_and(over) {
            self.handed.pop_front();
        }
    }

    /// Whether requests were handed to the apply worker whose end is not known yet.
    pub fn awaits_apply(&self) -> bool {
        !self.handed.is_empty()
    }

    /// Requests under way, in chunks.
    pub fn under_way(&self) -> usize {
        self.local.len() + self.forwarded.len() + self.handed.len()
    }

    /// Resolves what has waited too long.
    pub fn expire(&mut self, now: Time) {
        if now < self.deadline() {
            return;
        }
        let quorum = RequestError::Timeout { stage: Stage::Quorum, may_have_applied: true };
        for local in &mut self.local {
            local.ticket.expire(now, &quorum);
        }
        for f in &mut self.forwarded {
            f.ticket.expire(now, &quorum);
        }
        // A forwarded chunk that all clients gave up on is forgotten; its entries may still be applied, unseen.
        self.forwarded.retain(|f| f.ticket.deadlines.earliest() != Time(u64::MAX));
        for h in &mut self.handed {
            let error = RequestError::Timeout { stage: Stage::Apply, may_have_applied: h.reads.is_none() };
            h.deadlines.expire_within(now, h.slots.clone(), &*h.results, &error);
        }
        let deadlines = self.local.iter().map(|l| l.ticket.deadlines.earliest());
        let deadlines = deadlines.chain(self.forwarded.iter().map(|f| f.ticket.deadlines.earliest().min(f.ask_at)));
        self.deadline = deadlines.chain(self.handed.iter().map(|h| h.deadlines.earliest())).min();
    }

    /// Ends everything: the replica stops.
    pub fn fail_all(&mut self, error: &RequestError) {
        for local in self.local.drain(..) {
            local.ticket.fail(local.next_slot, error);
        }
        for f in self.forwarded.drain(..) {
            f.ticket.fail(f.next_slot, error);
        }
        for h in self.handed.drain(..) {
            h.results.fail(h.slots.start, h.slots.end - h.slots.start, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_raft::{EntryKind, ReplicaId, RunBuilder};
    use longboat_rsm::{Completion, Pending};

    const NEVER: Time = Time(u64::MAX);
    const OWN: Origin = Origin { replica: ReplicaId(1), start: 77 };

    fn run(term: u64, first: u64, sequences: Range<u64>, origin: Origin) -> Run {
        let mut chunk = RunBuilder::new();
        sequences.for_each(|s| chunk.push(EntryKind::Command, s, b"x"));
        chunk.seal(Term(term), Index(first), origin)
    }

    fn ticket(first_sequence: u64, count: u32, at: u64) -> (Ticket, Arc<Completion<u32>>) {
        let results = Completion::new();
        let mut deadlines = Deadlines::default();
        deadlines.note(0, Time(at));
        (Ticket { results: results.clone(), first_sequence, count, deadlines }, results)
    }

    fn outcome(results: &Arc<Completion<u32>>, slot: u32) -> Option<Result<u32, RequestError>> {
        Pending::new(Arc::clone(results), slot).wait_timeout(std::time::Duration::ZERO).ok()
    }

    #[test]
    fn a_chunk_is_found_by_its_place_also_piece_by_piece() {
        let mut tracker = Tracker::default();
        let (t, _) = ticket(1, 4, 1000);
        tracker.appended(t, Term(2), Index(10));
        let whole = run(2, 10, 1..5, OWN);
        let first = tracker.handed(&whole.slice(Index(10)..=Index(11)), OWN).expect("waited for");
        let second = tracker.handed(&whole.slice(Index(12)..=Index(13)), OWN).expect("waited for");
        assert_eq!((first.first_slot, second.first_slot), (0, 2));
        assert!(tracker.handed(&run(2, 14, 9..10, OWN), OWN).is_none());
    }

    #[test]
    fn another_term_at_a_chunks_place_means_that_it_was_not_applied() {
        let mut tracker = Tracker::default();
        let (old, results) = ticket(1, 2, 1000);
        tracker.appended(old, Term(2), Index(10));
        let other = Origin { replica: ReplicaId(2), start: 5 };
        assert!(tracker.handed(&run(3, 10, 1..2, other), OWN).is_none());
        for slot in 0..2 {
            assert_eq!(outcome(&results, slot), Some(Err(RequestError::Dropped)));
        }
    }

    #[test]
    fn a_later_term_before_a_chunks_place_means_that_it_was_not_applied() {
        let mut tracker = Tracker::default();
        let (old, results) = ticket(1, 2, 1000);
        let (new, n) = ticket(3, 1, 1000);
        tracker.appended(old, Term(2), Index(10));
        tracker.appended(new, Term(4), Index(9));
        let other = Origin { replica: ReplicaId(2), start: 5 };
        assert!(tracker.handed(&run(2, 7, 1..2, other), OWN).is_none());
        assert_eq!(outcome(&results, 0), None);
        assert!(tracker.handed(&run(3, 8, 1..2, other), OWN).is_none());
        assert_eq!(outcome(&results, 0), Some(Err(RequestError::Dropped)));
        assert_eq!(outcome(&n, 0), None, "it may come yet");
    }

    #[test]
    fn what_was_handed_over_is_not_said_to_be_dropped_with_the_rest_of_its_chunk() {
        let mut tracker = Tracker::default();
        let (old, results) = ticket(1, 2, 1000);
        tracker.appended(old, Term(2), Index(10));
        assert!(tracker.handed(&run(2, 10, 1..2, OWN), OWN).is_some());
        assert!(tracker.handed(&run(3, 11, 1..2, Origin { start: 5, ..OWN }), OWN).is_none());
        assert_eq!(outcome(&results, 0), None, "its result comes from the state machine");
        assert_eq!(outcome(&results, 1), Some(Err(RequestError::Dropped)));
    }

    #[test]
    fn what_a_snapshot_skipped_has_an_unknown_outcome() {
        let mut tracker = Tracker::default();
        let (local, l) = ticket(1, 1, 1000);
        let (forwarded, f) = ticket(2, 1, 1000);
        tracker.appended(local, Term(2), Index(10));
        tracker.forwarded(forwarded, Term(5), NEVER);
        tracker.skipped(Index(10));
        assert_eq!(outcome(&l, 0), Some(Err(RequestError::OutcomeUnknown)));
        assert_eq!(outcome(&f, 0), Some(Err(RequestError::OutcomeUnknown)));
    }

    #[test]
    fn a_forwarded_chunk_is_found_by_its_sequence_numbers_and_leaves_earlier_ones_open() {
        let mut tracker = Tracker::default();
        let (first, f) = ticket(1, 2, 1000);
        let (second, _) = ticket(3, 2, 1000);
        tracker.forwarded(first, Term(5), NEVER);
        tracker.forwarded(second, Term(5), NEVER);
        let waiter = tracker.handed(&run(5, 20, 3..5, OWN), OWN).expect("waited for");
        assert_eq!(waiter.first_slot, 0);
        assert_eq!(outcome(&f, 0), None, "an earlier chunk may still be applied");
        assert!(tracker.handed(&run(5, 22, 1..3, Origin { start: 78, ..OWN }), OWN).is_none(), "another life's");
        tracker.refused(1, &RequestError::Dropped);
        assert_eq!(outcome(&f, 1), Some(Err(RequestError::Dropped)));
    }

    #[test]
    fn a_forwarded_chunk_was_not_applied_when_a_later_term_commits_without_it() {
        let mut tracker = Tracker::default();
        let (old, o) = ticket(1, 2, 1000);
        let (new, n) = ticket(3, 1, 1000);
        tracker.forwarded(old, Term(5), NEVER);
        tracker.forwarded(new, Term(6), NEVER);
        assert!(tracker.handed(&run(5, 20, 1..2, OWN), OWN).is_some(), "its first entry came");
        let other = Origin { replica: ReplicaId(2), start: 5 };
        assert!(tracker.handed(&run(6, 21, 1..2, other), OWN).is_none());
        assert_eq!(outcome(&o, 0), None, "its result comes from the state machine");
        assert_eq!(outcome(&o, 1), Some(Err(RequestError::Dropped)));
        assert_eq!(outcome(&n, 0), None);
    }

    #[test]
    fn deadlines_name_the_stage_and_whether_it_may_have_applied() {
        let mut tracker = Tracker::default();
        let (waiting, w) = ticket(1, 1, 100);
        let (handed, h) = ticket(2, 1, 100);
        tracker.appended(handed, Term(2), Index(10));
        tracker.appended(waiting, Term(2), Index(11));
        assert!(tracker.handed(&run(2, 10, 2..3, OWN), OWN).is_some());
        tracker.expire(Time(99));
        assert_eq!((outcome(&w, 0), outcome(&h, 0)), (None, None));
        assert_eq!(tracker.deadline(), Time(100));
        tracker.expire(Time(100));
        let late = |stage| Some(Err(RequestError::Timeout { stage, may_have_applied: true }));
        assert_eq!((outcome(&w, 0), outcome(&h, 0)), (late(Stage::Quorum), late(Stage::Apply)));
        assert_eq!(tracker.deadline(), Time(u64::MAX));
    }
}
