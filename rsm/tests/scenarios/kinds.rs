//! What sets the three kinds of state machine apart.

use crate::support::*;
use longboat_raft::Index;
use longboat_rsm::snapshot::{Content, IncomingSnapshot, LiveSnapshot, SnapshotHeader};
use longboat_rsm::{
    Commands, Concurrent, Machine, MachineError, MachineKind, OnDisk, RequestError, StateMachine, StopSignal,
};
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::sync::Arc;
use tempfile::TempDir;

#[test]
fn each_kind_says_which_it_is() {
    assert_eq!(List::default().into_dyn().kind(), MachineKind::Exclusive);
    assert_eq!(Concurrent(Versions::default()).into_dyn().kind(), MachineKind::Concurrent);
    assert_eq!(OnDisk(Shelf::default()).into_dyn().kind(), MachineKind::OnDisk);
    assert!(List::default().into_dyn().lookups().is_none());
}

#[test]
fn a_concurrent_machine_is_looked_up_and_saved_while_commands_are_applied() {
    let dir = TempDir::new().unwrap();
    let machine = shared(Concurrent(Versions::default()));
    let lookups = machine.lock().lookups().unwrap();
    apply(&mut **machine.lock(), 1, &[Entry::Command(50), Entry::Command(51)]);
    let view = prepared(&machine, Content::Full);
    assert!(!view.holds_machine());
    // The lock stands for an apply that is under way: neither the save nor the lookup needs it.
    let mut applying = machine.lock();
    apply(&mut **applying, 3, &[Entry::Command(52)]);
    let mut reads = longboat_rsm::Reads::<Concurrent<Versions>>::new();
    let pending = reads.add(());
    lookups.lookup(Box::new(reads));
    assert_eq!(pending.wait(), Ok(vec![50, 51, 52]));
    save_to(&store(&dir), view, header(2, Content::Full), None, &Arc::default()).unwrap();
    drop(applying);
    let other = shared(Concurrent(Versions::default()));
    recover(&store(&dir), &other, 2).unwrap();
    assert_eq!(listed::<Concurrent<Versions>>(&**other.lock()), Ok(vec![50, 51]), "the state at the save's place");
}

#[test]
fn sessions_are_saved_with_the_view_and_not_as_they_are_later() {
    let dir = TempDir::new().unwrap();
    let machine = shared(Concurrent(Versions::default()));
    let retried = Entry::Session { session: 1, series: 1, command: 50 };
    apply(&mut **machine.lock(), 1, &[Entry::Register(4)]);
    let view = prepared(&machine, Content::Full);
    apply(&mut **machine.lock(), 2, &[retried]);
    save_to(&store(&dir), view, header(1, Content::Full), None, &Arc::default()).unwrap();
    let other = shared(Concurrent(Versions::default()));
    recover(&store(&dir), &other, 1).unwrap();
    // The log after the snapshot: the command is applied there, too, and its retry is not.
    assert_eq!(apply(&mut **other.lock(), 2, &[retried, retried]), [Ok(1), Ok(1)]);
    apply(&mut **machine.lock(), 3, &[retried]);
    assert_eq!(other.lock().sessions(), machine.lock().sessions());
}

#[test]
fn an_exclusive_machine_is_held_while_it_is_saved() {
    assert!(prepared(&shared(List::default()), Content::Full).holds_machine());
}

#[test]
fn an_on_disk_machine_has_no_sessions() {
    let machine = opened(&Arc::default(), false);
    let entries = [Entry::Session { session: 1, series: 1, command: 50 }, Entry::Command(51)];
    assert_eq!(apply(&mut **machine.lock(), 1, &entries), [Err(RequestError::SessionsUnsupported), Ok(1)]);
    assert!(<OnDisk<Shelf> as Machine>::session_results().is_none());
}

#[test]
fn an_on_disk_machine_must_be_opened_once_and_misses_no_entry() {
    let mut machine = OnDisk(Shelf::default()).into_dyn();
    assert!(machine.apply_run(&commands(1, &[50]), None).is_err());
    assert!(listed::<OnDisk<Shelf>>(&*machine).is_err());
    assert_eq!(machine.open(&StopSignal::default()).unwrap(), Index::ZERO);
    assert!(machine.open(&StopSignal::default()).is_err());
    let gap = machine.apply_run(&commands(2, &[50]), None);
    assert!(matches!(gap, Err(MachineError::Behind { needed: Index(1), .. })), "{gap:?}");
    machine.apply_run(&commands(1, &[50]), None).unwrap();
    assert_eq!(listed::<OnDisk<Shelf>>(&*machine), Ok(vec![50]));
}

#[test]
fn storage_is_durable_through_entries_that_are_no_commands() {
    for tells in [false, true] {
        let disk = Arc::<Mutex<Stored>>::default();
        let machine = opened(&disk, tells);
        let mut machine = machine.lock();
        apply(&mut **machine, 1, &[Entry::Command(50), Entry::Command(51)]);
        machine.apply_run(&run_of(3, &[Entry::Empty]), None).unwrap();
        let storage = machine.storage().unwrap();
        assert_eq!((storage.applied, storage.last_command, storage.durable), (Index(3), Index(2), Index(0)));
        {
            let mut disk = disk.lock();
            disk.durable = (vec![50], 1);
        }
        assert_eq!(machine.storage().unwrap().durable, Index(u64::from(tells)));
        machine.sync().unwrap();
        assert_eq!(machine.storage().unwrap().durable, Index(3));
    }
}

#[test]
fn an_on_disk_machine_streams_its_state_without_a_file_of_its_own() {
    let disk = Arc::<Mutex<Stored>>::default();
    let machine = opened(&disk, false);
    machine.lock().apply_run(&commands(1, &(0..1000).collect::<Vec<_>>()), None).unwrap();
    let ready = prepared(&machine, Content::Full);
    let mut header = SnapshotHeader { kind: MachineKind::OnDisk, ..header(1000, Content::Full) };
    ready.fill_in(&mut header);
    let mut live = LiveSnapshot::new(ready.into_view().unwrap(), header, Arc::default()).unwrap();
    machine.lock().apply_run(&commands(1001, &[5, 6]), None).unwrap();

    let target = TempDir::new().unwrap();
    let mut incoming = IncomingSnapshot::begin(&store(&target), REPLICA, live.key()).unwrap();
    while let Some(chunk) = live.next_chunk(300).unwrap() {
        incoming.append(chunk.offset, &chunk.data).unwrap();
    }
    while incoming.finish().unwrap() != longboat_io::JobState::Done {}
    let other = Arc::<Mutex<Stored>>::default();
    let follower = opened(&other, false);
    recover(&store(&target), &follower, 1000).unwrap();
    let mut follower = follower.lock();
    assert_eq!(follower.storage().unwrap().durable, Index(1000));
    follower.apply_run(&commands(1001, &[5, 6]), None).unwrap();
    assert_eq!(other.lock().seen, disk.lock().seen);
}

/// Takes a command too few of each batch, or returns a result too many.
struct Careless {
    takes_all: bool,
}

impl StateMachine for Careless {
    type Command = u64;
    type Output = ();
    type Query = ();
    type Answer = ();

    fn apply(&mut self, _index: Index, _command: u64) -> Result<(), MachineError> {
        Ok(())
    }

    fn apply_batch(&mut self, commands: &mut Commands<'_, u64>, outputs: &mut Vec<()>) -> Result<(), MachineError> {
        outputs.push(());
        if self.takes_all {
            outputs.extend(commands.map(|_| ()));
        } else {
            commands.next();
        }
        Ok(())
    }

    fn lookup(&self, _query: ()) -> Result<(), MachineError> {
        Ok(())
    }

    fn save(&self, _out: &mut dyn Write) -> Result<(), MachineError> {
        Ok(())
    }

    fn recover(&mut self, _input: &mut dyn Read) -> Result<(), MachineError> {
        Ok(())
    }
}

#[test]
fn a_batch_is_taken_whole_with_one_result_for_each_command() {
    for takes_all in [false, true] {
        let mut machine = Careless { takes_all }.into_dyn();
        let refused = machine.apply_run(&commands(1, &[1, 2, 3]), None);
        assert!(matches!(refused, Err(MachineError::Results { .. })), "{refused:?}");
    }
}

#[test]
fn a_command_that_can_not_be_decoded_ends_the_run_behind_what_was_applied() {
    let machine = shared(List::default());
    let mut builder = longboat_raft::RunBuilder::new();
    for payload in [&50u64.to_le_bytes()[..], b"short", &51u64.to_le_bytes()[..]] {
        builder.push(longboat_raft::EntryKind::Command, 0, payload);
    }
    let run = builder.seal(longboat_raft::Term(1), Index(1), longboat_raft::Origin::default());
    let failed = machine.lock().apply_run(&run, None);
    assert!(matches!(failed, Err(MachineError::Decode { index: Index(2), .. })), "{failed:?}");
    assert_eq!(listed::<List>(&**machine.lock()), Ok(vec![50]));
}
