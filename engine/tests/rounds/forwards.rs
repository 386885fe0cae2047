//! Proposals that are made at a follower and lost, delayed or taken while their leader goes on leading.

use crate::alone::MILLI;
use crate::shelf::Shelf;
use crate::trio::{Frame, Trio};
use longboat_engine::{Changed, GroupShared, Rare};
use longboat_io::Clock;
use longboat_raft::{Body, ConfigChange, HostId, Member, ProposeOptions, ReplicaId, Term, Time};
use longboat_rsm::{OnDisk, Pending, RequestError};
use longboat_transport::wire::{self, FrameBuilder};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A planted bug, and the scenario that catches it.
pub const GUARDS: &[(&str, fn())] = &[
    ("lost-forward-not-asked-about", a_lost_proposal_ends_although_its_leader_stays),
    ("closed-before-it-was-handed", a_proposal_that_is_in_the_log_stays_open_until_it_is_applied),
    ("closing-of-another-life", an_answer_to_an_earlier_life_ends_nothing),
    ("life-from-the-clock", a_proposal_of_an_earlier_life_completes_nothing_in_one_moment_of_the_clock),
    ("cut-chunk-waits", what_a_deposed_leader_appended_ends_with_the_next_leaders_first_entry),
    ("unsent-forward-waits", a_proposal_that_did_not_leave_ends_at_once),
];

/// Those that no planted bug is for.
pub const SCENARIOS: &[(&str, fn())] = &[
    ("a lost change", a_lost_change_ends_although_its_leader_stays),
    ("in time", nothing_is_asked_while_completions_come_in_time),
    ("a lost question", a_question_or_an_answer_that_is_lost_is_asked_for_again),
];

const ELECTION_MS: u64 = 100;
/// What a request may take: far longer than anything here waits.
const DEADLINE_MS: u64 = 60_000;

fn bodies(frame: &Frame) -> Vec<Body> {
    wire::messages(frame.bytes.clone()).filter_map(|m| m.ok()).map(|m| m.message.body).collect()
}

fn has(frame: &Frame, of: fn(&Body) -> bool) -> bool {
    bodies(frame).iter().any(of)
}

fn is_forward(body: &Body) -> bool {
    matches!(body, Body::Forward(_))
}

fn is_question(body: &Body) -> bool {
    matches!(body, Body::CloseForwards { .. })
}

fn is_answer(body: &Body) -> bool {
    matches!(body, Body::ForwardsClosed { .. })
}

/// Three hosts that have a leader, and one of the others.
struct Led {
    trio: Trio,
    follower: u64,
}

impl Led {
    fn new() -> Self {
        let mut trio = Trio::voters();
        let leader = trio.leader();
        Self { trio, follower: 1 + leader % 3 }
    }

    fn shared(&mut self) -> Arc<GroupShared> {
        Arc::clone(&self.trio.one(self.follower).shared)
    }

    fn term(&mut self) -> (Term, ReplicaId) {
        self.shared().leader().unwrap()
    }

    fn deadline(&self) -> Time {
        self.trio.clock.now().plus_nanos(DEADLINE_MS * MILLI)
    }

    /// Proposes at the follower.
    fn propose(&mut self, value: u64) -> Pending<usize> {
        let (deadline, shared) = (self.deadline(), self.shared());
        let parts = shared.enqueue::<OnDisk<Shelf>>([value].into_iter(), ProposeOptions::default(), deadline).unwrap();
        let (completion, slots) = parts.into_iter().next().unwrap();
        Pending::new(completion, slots.start)
    }

    /// Keeps the frames with such messages, and lets all others through.
    fn keep(&self, of: fn(&Body) -> bool) -> Arc<Mutex<Vec<Frame>>> {
        let kept = Arc::<Mutex<Vec<Frame>>>::default();
        let keeps = Arc::clone(&kept);
        self.trio.wires.filter(move |frame| {
            if has(&frame, of) {
                keeps.lock().push(frame);
                return None;
            }
            Some(frame)
        });
        kept
    }

    /// What is kept arrives, and nothing is kept any more.
    fn let_go(&mut self, kept: &Mutex<Vec<Frame>>) {
        self.trio.wires.open();
        kept.lock().drain(..).for_each(|frame| self.trio.wires.inject(frame));
    }
}

/// The outcome, or the request back while it is open.
fn end<T: std::fmt::Debug + Send + 'static>(pending: Pending<T>) -> Result<Result<T, RequestError>, Pending<T>> {
    pending.wait_timeout(Duration::ZERO)
}

/// A frame with answers, as if they were about commands with any number: each life's begin anywhere.
fn of_all_commands(frame: &Frame) -> Frame {
    let mut builder = FrameBuilder::new();
    for incoming in wire::messages(frame.bytes.clone()) {
        let wire::Incoming { group, epoch, mut message } = incoming.unwrap();
        if let Body::ForwardsClosed { forwards, .. } = &mut message.body {
            forwards.commands = 1 << 63;
        }
        builder.push(group, epoch, &message);
    }
    Frame { bytes: builder.finish().concat().into(), ..frame.clone() }
}

fn a_lost_proposal_ends_although_its_leader_stays() {
    let mut led = Led::new();
    let before = led.term();
    let kept = led.keep(is_forward);
    let pending = led.propose(7);
    led.trio.pass(ELECTION_MS / 2);
    let pending = end(pending).expect_err("an answer may come yet");
    led.trio.pass(2 * ELECTION_MS);
    assert_eq!(end(pending).expect("an election timeout has passed"), Err(RequestError::Dropped));
    assert_eq!((led.term(), kept.lock().len()), (before, 1));
    // The frame arrives in the end.
    led.let_go(&kept);
    led.trio.pass(ELECTION_MS);
    for host in 1..=3 {
        assert_eq!(led.trio.values(host), [], "it was said not to have been applied");
    }
    let again = led.propose(8);
    led.trio.pass(ELECTION_MS);
    assert_eq!(end(again).expect("the leader hears again"), Ok(1));
    led.trio.check();
}

fn a_proposal_that_is_in_the_log_stays_open_until_it_is_applied() {
    let mut led = Led::new();
    let before = led.term();
    let asked = Arc::<AtomicUsize>::default();
    let counts = Arc::clone(&asked);
    // The leader's entries reach nobody; its heartbeats do.
    led.trio.wires.filter(move |frame| {
        counts.fetch_add(usize::from(has(&frame, is_question)), Ordering::Relaxed);
        let is_append = |body: &Body| matches!(body, Body::Append { runs, .. } if !runs.is_empty());
        (!has(&frame, is_append)).then_some(frame)
    });
    let pending = led.propose(7);
    led.trio.pass(5 * ELECTION_MS);
    let pending = end(pending).expect_err("it is in the leader's log");
    assert_eq!(asked.load(Ordering::Relaxed), 1, "one answer is enough");
    led.trio.wires.open();
    led.trio.pass(2 * ELECTION_MS);
    assert_eq!(end(pending).expect("the followers hear again"), Ok(1));
    assert_eq!(led.term(), before);
    led.trio.check();
}

fn an_answer_to_an_earlier_life_ends_nothing() {
    let mut led = Led::new();
    let before = led.term();
    // Lost, and the answer about it is on its way when the host dies.
    let lost = led.keep(is_forward);
    let first = led.propose(7);
    led.trio.pass(ELECTION_MS / 2);
    assert_eq!(lost.lock().len(), 1);
    let answers = led.keep(is_answer);
    led.trio.pass(2 * ELECTION_MS);
    assert!(!answers.lock().is_empty());
    led.trio.restart(led.follower, |storage| storage);
    drop(first);
    led.trio.wires.open();
    led.trio.until("the leader that there was", |trio| trio.one(before.1.0).shared.leader() == Some(before));
    led.trio.pass(2 * ELECTION_MS);
    assert_eq!(led.term(), before);
    // The new life's first proposal is in the leader's log, and may have a number that the answer covers.
    led.trio.wires.filter(|frame| {
        let is_append = |body: &Body| matches!(body, Body::Append { runs, .. } if !runs.is_empty());
        (!has(&frame, is_append)).then_some(frame)
    });
    let second = led.propose(8);
    led.trio.pass(5);
    answers.lock().drain(..).for_each(|frame| led.trio.wires.inject(of_all_commands(&frame)));
    led.trio.pass(5);
    let second = end(second).expect_err("it is in the leader's log");
    led.trio.wires.open();
    led.trio.pass(2 * ELECTION_MS);
    assert_eq!(end(second).expect("the followers hear again"), Ok(1));
}

/// Seed 2077 of the simulator: a replica stopped and started twice on a host whose clock had been set back, so that it stood.
fn a_proposal_of_an_earlier_life_completes_nothing_in_one_moment_of_the_clock() {
    let mut led = Led::new();
    let (follower, before, at) = (led.follower, led.term(), led.trio.clock.now());
    let again = |led: &mut Led| {
        led.trio.next_life(follower, at);
        led.trio.until("the leader that there was", |trio| trio.one(follower).shared.leader() == Some(before));
    };
    again(&mut led);
    let appends = led.keep(|body| matches!(body, Body::Append { runs, .. } if !runs.is_empty()));
    drop(led.propose(7));
    led.trio.pass(5);
    assert!(!appends.lock().is_empty(), "the leader has it");
    again(&mut led);
    // The second life's first proposal is lost, and then the first life's comes with the log.
    let _lost = led.keep(is_forward);
    let second = led.propose(8);
    led.trio.until("the first life's value", |trio| trio.values(follower) == [7]);
    led.trio.pass(3 * ELECTION_MS);
    assert_eq!(led.term(), before);
    assert_eq!(end(second).expect("its leader was asked"), Err(RequestError::Dropped));
    assert_eq!(led.trio.values(follower), [7]);
}

fn a_proposal_that_did_not_leave_ends_at_once() {
    let mut led = Led::new();
    led.trio.wires.says_what_is_lost(true);
    let _kept = led.keep(is_forward);
    let pending = led.propose(7);
    led.trio.pass(3);
    assert_eq!(end(pending).expect("it is known not to have left"), Err(RequestError::Dropped));
    led.trio.wires.open();
    led.trio.pass(2 * ELECTION_MS);
    assert_eq!(led.trio.values(led.follower), []);
}

fn what_a_deposed_leader_appended_ends_with_the_next_leaders_first_entry() {
    let mut led = Led::new();
    let (before, old) = (led.term(), led.term().1.0);
    led.follower = old;
    led.trio.wires.filter(move |frame| (frame.from.0 != old && frame.to.0 != old).then_some(frame));
    let mut pending = Vec::new();
    for value in 0..3 {
        pending.push(led.propose(value));
        led.trio.pass(2);
    }
    led.trio.pass(5 * ELECTION_MS);
    led.trio.wires.open();
    let term = led.trio.leader();
    assert!(led.term().0 > before.0, "{term} leads");
    led.trio.pass(2 * ELECTION_MS);
    for pending in pending {
        assert_eq!(end(pending).expect("its place is passed, or never reached"), Err(RequestError::Dropped));
    }
}

fn a_lost_change_ends_although_its_leader_stays() {
    let mut led = Led::new();
    let before = led.term();
    let kept = led.keep(is_forward);
    let change = || ConfigChange::add_learner(ReplicaId(4), Member { host: HostId(4), ..Member::default() });
    let (deadline, shared) = (led.deadline(), led.shared());
    let ask = |change| -> Pending<Changed> { shared.request(deadline, |r| Rare::Change(change, r)).unwrap() };
    let pending = ask(change());
    led.trio.pass(3 * ELECTION_MS);
    assert_eq!(end(pending).expect("an election timeout has passed").unwrap_err(), RequestError::Dropped);
    led.let_go(&kept);
    led.trio.pass(ELECTION_MS);
    assert_eq!(led.term(), before);
    assert!(!shared.membership.lock().contains(ReplicaId(4)));
    let again = ask(change());
    led.trio.pass(ELECTION_MS);
    assert!(end(again).expect("the leader hears again").expect("made").membership.contains(ReplicaId(4)));
}

fn nothing_is_asked_while_completions_come_in_time() {
    let mut led = Led::new();
    let kept = led.keep(is_question);
    let mut open: Vec<Pending<usize>> = Vec::new();
    for value in 0..20 * ELECTION_MS {
        open.push(led.propose(value));
        led.trio.pass(1);
        open = open.into_iter().filter_map(|pending| end(pending).err()).collect();
        assert!(open.len() < 50, "{} are open", open.len());
    }
    assert_eq!(kept.lock().len(), 0);
}

fn a_question_or_an_answer_that_is_lost_is_asked_for_again() {
    for lost in [is_question as fn(&Body) -> bool, is_answer] {
        let mut led = Led::new();
        let forwards = led.keep(is_forward);
        let pending = led.propose(7);
        led.trio.pass(ELECTION_MS / 2);
        assert_eq!(forwards.lock().len(), 1);
        let kept = led.keep(lost);
        led.trio.pass(5 * ELECTION_MS);
        let pending = end(pending).expect_err("nothing is known of it");
        let asked = kept.lock().len();
        assert!((3..=5).contains(&asked), "asked {asked} times in about five election timeouts");
        led.trio.wires.open();
        led.trio.pass(2 * ELECTION_MS);
        assert_eq!(end(pending).expect("answered"), Err(RequestError::Dropped));
    }
}
