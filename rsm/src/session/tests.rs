//! The table of sessions under a state machine, against a naive model of it.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::codec::OutputCodec;
use crate::completion::Completion;
use crate::machine::{DynMachine, MachineError, StateMachine, Typed};
use longboat_raft::{EntryKind, LogPos, Origin, Run, RunBuilder, SessionCall};
use proptest::prelude::*;
use std::io;
use std::sync::Arc;

/// Lists what it applied; the result is the position.
#[derive(Debug, Default)]
struct List(Vec<u64>);

impl StateMachine for List {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = Vec<u64>;

    fn apply(&mut self, _index: Index, command: u64) -> Result<u64, MachineError> {
        self.0.push(command);
        Ok(self.0.len() as u64)
    }

    fn lookup(&self, _query: ()) -> Result<Vec<u64>, MachineError> {
        Ok(self.0.clone())
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        for command in &self.0 {
            out.write_all(&command.to_le_bytes())?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        self.0 = bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
        Ok(())
    }

    fn session_results() -> Option<OutputCodec<u64>> {
        Some(OutputCodec::new())
    }

    fn state_hash(&self) -> Option<u64> {
        Some(self.0.iter().fold(7, |hash: u64, c| hash.wrapping_mul(31).wrapping_add(*c)))
    }
}

/// One entry of a test's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Plain(u64),
    Command { session: u64, series: u64, responded_to: u64, command: u64 },
    Register(u32),
    Close(u64),
}

fn push(builder: &mut RunBuilder, entry: Entry) {
    let (call, command) = match entry {
        Entry::Plain(command) => {
            builder.push(EntryKind::Command, 0, &command.to_le_bytes());
            return;
        }
        Entry::Command { session, series, responded_to, command } => {
            (SessionCall::Propose { session: SessionId(session), series, responded_to }, Some(command))
        }
        Entry::Register(sessions_max) => (SessionCall::Register { sessions_max }, None),
        Entry::Close(session) => (SessionCall::Close { session: SessionId(session) }, None),
    };
    let write = |out: &mut bytes::BytesMut| {
        if let Some(command) = command {
            out.extend_from_slice(&command.to_le_bytes());
        }
    };
    builder.push_session_with(call, 0, 100, write).unwrap();
}

fn run_of(first: u64, entries: &[Entry]) -> Run {
    let mut builder = RunBuilder::new();
    entries.iter().for_each(|e| push(&mut builder, *e));
    builder.seal(LogPos::ZERO.term.next(), Index(first), Origin::default())
}

fn applied(machine: &dyn DynMachine) -> Vec<u64> {
    let mut reads = crate::Reads::<List>::new();
    let pending = reads.add(());
    machine.lookup(Box::new(reads));
    pending.wait().unwrap()
}

/// Applies entries as one run; returns the results of the commands among them.
fn apply(machine: &mut dyn DynMachine, first: u64, entries: &[Entry]) -> Vec<Result<u64, RequestError>> {
    let results = Completion::<u64>::new();
    machine.apply_run(&run_of(first, entries), Some((&*results, 0))).unwrap();
    (0..entries.len() as u32).map(|n| crate::Pending::new(Arc::clone(&results), n).wait()).collect()
}

fn command(session: u64, series: u64, command: u64) -> Entry {
    Entry::Command { session, series, responded_to: 0, command }
}

#[test]
fn a_retry_is_answered_with_the_first_result_and_not_applied() {
    let mut machine = Typed::new(List::default());
    let results =
        apply(&mut machine, 1, &[Entry::Register(4), Entry::Plain(100), command(1, 1, 50), Entry::Plain(101)]);
    assert_eq!(results[1..], [Ok(1), Ok(2), Ok(3)]);
    let results = apply(&mut machine, 5, &[command(1, 1, 50), command(1, 2, 51), command(1, 1, 50)]);
    assert_eq!(results, [Ok(2), Ok(4), Ok(2)]);
    assert_eq!(applied(&machine), [100, 50, 101, 51]);
}

#[test]
fn what_a_client_acknowledged_is_refused_and_not_kept() {
    let mut machine = Typed::new(List::default());
    apply(&mut machine, 1, &[Entry::Register(4), command(1, 1, 50), command(1, 2, 51)]);
    let acknowledges = Entry::Command { session: 1, series: 3, responded_to: 2, command: 52 };
    let results = apply(&mut machine, 4, &[acknowledges, command(1, 1, 50), command(1, 2, 51)]);
    assert_eq!(results, [Ok(3), Err(RequestError::SessionAnswered), Err(RequestError::SessionAnswered)]);
    let table = SessionTable::decode(&machine.sessions()).unwrap();
    assert_eq!((table.len(), table.result_bytes), (1, 8), "only the last result is kept");
    let mistaken = Entry::Command { session: 1, series: 4, responded_to: 4, command: 53 };
    assert_eq!(
        apply(&mut machine, 7, &[mistaken, command(1, 0, 9)]),
        [Err(RequestError::SessionWindow), Err(RequestError::SessionWindow)]
    );
    assert_eq!(applied(&machine), [50, 51, 52]);
}

#[test]
fn the_session_not_used_for_longest_is_evicted_and_its_retry_refused() {
    let mut machine = Typed::new(List::default());
    apply(&mut machine, 1, &[Entry::Register(2), Entry::Register(2), command(1, 1, 50), command(2, 1, 60)]);
    // Session 1 is used after session 2, so a third evicts session 2.
    apply(&mut machine, 5, &[command(1, 1, 50), Entry::Register(2)]);
    let results = apply(&mut machine, 7, &[command(2, 1, 60), command(1, 1, 50), command(6, 1, 70)]);
    assert_eq!(results, [Err(RequestError::SessionExpired), Ok(1), Ok(3)]);
    assert!(!RequestError::SessionExpired.may_have_applied());
    assert_eq!(applied(&machine), [50, 60, 70]);
    // A smaller bound in a later registration evicts more.
    apply(&mut machine, 10, &[Entry::Register(1)]);
    assert_eq!(SessionTable::decode(&machine.sessions()).unwrap().len(), 1);
}

#[test]
fn calls_to_the_table_are_answered_to_a_completion_of_their_own() {
    let mut machine = Typed::new(List::default());
    let answers = Completion::<SessionAnswer>::new();
    let answer = |n| crate::Pending::new(Arc::clone(&answers), n).wait();
    let entries = [Entry::Register(9), Entry::Register(9), Entry::Close(10), Entry::Close(10)];
    machine.apply_run(&run_of(10, &entries), Some((&*answers, 0))).unwrap();
    assert_eq!(answer(0), Ok(SessionAnswer::Registered(SessionId(10))));
    assert_eq!(answer(1), Ok(SessionAnswer::Registered(SessionId(11))));
    assert_eq!(answer(2), Ok(SessionAnswer::Closed { existed: true }));
    assert_eq!(answer(3), Ok(SessionAnswer::Closed { existed: false }));
    assert_eq!(apply(&mut machine, 20, &[command(10, 1, 5)]), [Err(RequestError::SessionExpired)]);
    machine.apply_run(&run_of(21, &[Entry::Close(11)]), None).unwrap();
    assert!(machine.sessions().is_empty(), "a group without sessions has no table");
}

#[test]
fn a_session_keeps_a_window_of_results() {
    let mut machine = Typed::new(List::default());
    apply(&mut machine, 1, &[Entry::Register(1)]);
    let window = SESSION_WINDOW as u64;
    let entries: Vec<Entry> = (1..=window + 1).map(|n| command(1, n, n)).collect();
    let results = apply(&mut machine, 2, &entries);
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), SESSION_WINDOW);
    assert_eq!(results[SESSION_WINDOW], Err(RequestError::SessionWindow));
    let next = Entry::Command { session: 1, series: window + 1, responded_to: 1, command: 7 };
    assert_eq!(apply(&mut machine, 500, &[next]), [Ok(window + 1)]);
}

#[test]
fn results_that_take_too_much_memory_evict_the_oldest_sessions() {
    let mut table = None;
    let big = Bytes::from(vec![0; (SESSION_RESULT_BYTES_MAX / 2) as usize]);
    for index in 1..=3 {
        let id = SessionTable::register(&mut table, Index(index), 100);
        assert_eq!(SessionTable::propose(&mut table, Index(10 + index), id, 1, 0), Verdict::Apply);
        SessionTable::keep_result(&mut table, id, 1, big.clone());
    }
    assert_eq!(table.as_ref().unwrap().sessions.keys().map(|id| id.0).collect::<Vec<_>>(), [2, 3]);
    SessionTable::propose(&mut table, Index(20), SessionId(3), 2, 0);
    SessionTable::keep_result(&mut table, SessionId(3), 2, Bytes::from(vec![0; 3 * big.len()]));
    assert_eq!(table.unwrap().len(), 1, "the session that was just used stays");
}

#[test]
fn a_machine_that_does_not_say_how_results_are_kept_has_no_sessions() {
    struct Plain(Typed<Without>);
    #[derive(Debug, Default)]
    struct Without(Vec<u64>);
    impl StateMachine for Without {
        type Command = u64;
        type Output = u64;
        type Query = ();
        type Answer = ();
        fn apply(&mut self, _index: Index, command: u64) -> Result<u64, MachineError> {
            self.0.push(command);
            Ok(self.0.len() as u64)
        }
        fn lookup(&self, _query: ()) -> Result<(), MachineError> {
            Ok(())
        }
        fn save(&self, _out: &mut dyn io::Write) -> Result<(), MachineError> {
            Ok(())
        }
        fn recover(&mut self, _input: &mut dyn io::Read) -> Result<(), MachineError> {
            Ok(())
        }
    }
    let mut machine = Plain(Typed::new(Without::default()));
    let answers = Completion::<SessionAnswer>::new();
    machine.0.apply_run(&run_of(1, &[Entry::Register(3)]), Some((&*answers, 0))).unwrap();
    assert_eq!(crate::Pending::new(answers, 0).wait(), Err(RequestError::SessionsUnsupported));
    assert_eq!(
        apply(&mut machine.0, 2, &[command(1, 1, 5), Entry::Plain(6)]),
        [Err(RequestError::SessionsUnsupported), Ok(1)]
    );
    assert!(machine.0.sessions().is_empty());
}

#[test]
fn damaged_tables_are_refused() {
    let mut machine = Typed::new(List::default());
    apply(&mut machine, 1, &[Entry::Register(3), Entry::Register(3), command(1, 1, 5), command(2, 4, 6)]);
    let good = machine.sessions();
    for bytes in 1..good.len() {
        assert!(SessionTable::decode(&good[..bytes]).is_err(), "{bytes} bytes");
    }
    let twice = [&good[..8], &good[8..], &good[8..]].concat();
    assert!(SessionTable::decode(&twice).is_err());
    let mut many = good.clone();
    many[4..8].copy_from_slice(&(SESSIONS_LIMIT + 1).to_le_bytes());
    assert!(SessionTable::decode(&many).is_err());
    let mut version = good;
    version[0] = 2;
    assert!(machine.restore_sessions(&version).is_err());
}

type Results = Vec<(u64, u64)>;

/// The table as somebody would write it who never heard of cost: a list in the order of use, all results ever.
#[derive(Clone, Default)]
struct Model {
    /// Id, acknowledged through, results by series.
    sessions: Vec<(u64, u64, Results)>,
    list: Vec<u64>,
}

impl Model {
    fn apply(&mut self, index: u64, entry: Entry) -> Option<Result<u64, RequestError>> {
        match entry {
            Entry::Plain(command) => {
                self.list.push(command);
                Some(Ok(self.list.len() as u64))
            }
            Entry::Register(max) => {
                self.sessions.push((index, 0, Vec::new()));
                while self.sessions.len() > max.max(1) as usize {
                    self.sessions.remove(0);
                }
                None
            }
            Entry::Close(id) => {
                self.sessions.retain(|s| s.0 != id);
                None
            }
            Entry::Command { session, series, responded_to, command } => {
                let Some(at) = self.sessions.iter().position(|s| s.0 == session) else {
                    return Some(Err(RequestError::SessionExpired));
                };
                let mut used = self.sessions.remove(at);
                let result = if responded_to >= series {
                    Err(RequestError::SessionWindow)
                } else {
                    used.1 = used.1.max(responded_to);
                    match used.2.iter().find(|r| r.0 == series) {
                        _ if series <= used.1 => Err(RequestError::SessionAnswered),
                        Some((_, result)) => Ok(*result),
                        None => {
                            self.list.push(command);
                            used.2.push((series, self.list.len() as u64));
                            Ok(self.list.len() as u64)
                        }
                    }
                };
                self.sessions.push(used);
                Some(result)
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// These entries, in one run.
    Apply(Vec<Entry>),
    /// The replica starts again from a snapshot of another that is at the same place.
    Restore,
}

fn entries() -> impl Strategy<Value = Entry> {
    // Ids and numbers from small ranges, so that retries, evicted sessions and acknowledged numbers are common. The ids are
    // places in the log, some of which hold registrations.
    prop_oneof![
        1 => (1000u64..2000).prop_map(Entry::Plain),
        2 => (0u32..5).prop_map(Entry::Register),
        1 => (1u64..40).prop_map(Entry::Close),
        8 => (1u64..40, 1u64..6, 0u64..5, 0u64..1000)
            .prop_map(|(session, series, responded_to, command)| Entry::Command { session, series, responded_to, command }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => prop::collection::vec(entries(), 1..8).prop_map(Step::Apply),
        1 => Just(Step::Restore),
    ];
    prop::collection::vec(step, 1..30)
}

#[test]
fn replicas_of_equal_state_and_other_sessions_have_other_hashes() {
    let hash_with = |sessions: usize| {
        let mut machine = Typed::new(List::default());
        apply(&mut machine, 1, &vec![Entry::Register(100); sessions]);
        machine.state_hash()
    };
    let hashes = [1, 2, 3].map(hash_with);
    assert_eq!(hashes, [1, 2, 3].map(hash_with));
    assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && hashes[0] != hashes[2], "{hashes:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Two replicas, one of which applies entry by entry and is restored from snapshots of the other.
    #[test]
    fn tables_and_results_are_those_of_the_model(steps in steps()) {
        let (mut whole, mut single) = (Typed::new(List::default()), Typed::new(List::default()));
        let mut model = Model::default();
        let mut next = 1;
        for step in steps {
            match step {
                Step::Apply(entries) => {
                    let results = apply(&mut whole, next, &entries);
                    for (n, entry) in entries.iter().enumerate() {
                        let alone = apply(&mut single, next + n as u64, &[*entry]);
                        if let Some(expected) = model.apply(next + n as u64, *entry) {
                            prop_assert_eq!(&results[n], &expected, "{:?} at {}", entry, next + n as u64);
                            prop_assert_eq!(&alone[0], &expected);
                        }
                    }
                    next += entries.len() as u64;
                }
                Step::Restore => {
                    let mut state = Vec::new();
                    whole.save(&mut state).unwrap();
                    single = Typed::new(List::default());
                    single.restore_sessions(&whole.sessions()).unwrap();
                    single.recover(&mut &state[..]).unwrap();
                }
            }
            prop_assert_eq!(applied(&whole), model.list.clone(), "a command was applied twice or not at all");
            prop_assert_eq!(whole.sessions(), single.sessions());
            prop_assert_eq!(whole.state_hash(), single.state_hash());
            let kept: Vec<u64> = SessionTable::decode(&{
                let bytes = whole.sessions();
                if bytes.is_empty() { vec![1, 0, 0, 0, 0, 0, 0, 0] } else { bytes }
            }).unwrap().by_use.values().map(|id| id.0).collect();
            prop_assert_eq!(kept, model.sessions.iter().map(|s| s.0).collect::<Vec<_>>());
        }
    }
}
