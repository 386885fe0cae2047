//! What one visit takes of what clients have left.

use crate::alone::{Alone, MILLI, voters};
use longboat_engine::Worker;
use longboat_io::Clock;
use longboat_raft::{Index, ProposeOptions};
use longboat_rsm::{MachineError, Pending, StateMachine};
use std::io::{Read, Write};
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of each command.
const COMMAND_BYTES: usize = 100 << 10;

/// Keeps the first byte of every command.
#[derive(Debug, Default)]
struct Firsts(Vec<u8>);

impl StateMachine for Firsts {
    type Command = Vec<u8>;
    type Output = usize;
    type Query = ();
    type Answer = Vec<u8>;

    fn apply(&mut self, _: Index, command: Vec<u8>) -> Result<usize, MachineError> {
        self.0.push(command[0]);
        Ok(self.0.len())
    }

    fn lookup(&self, (): ()) -> Result<Vec<u8>, MachineError> {
        Ok(self.0.clone())
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        Ok(out.write_all(&self.0)?)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        input.read_to_end(&mut self.0)?;
        Ok(())
    }
}

#[test]
fn one_visit_takes_a_part_of_many_large_commands_and_all_are_applied_in_order() {
    let dir = TempDir::new().unwrap();
    let mut alone = Alone::open(dir.path());
    let shared = alone.start_machine(Alone::config(1), voters(1), Firsts::default());
    alone.pass(300);
    let deadline = alone.clock.now().plus_nanos(60_000 * MILLI);
    let propose = |numbers: std::ops::Range<u8>| {
        let commands: Vec<_> = numbers.map(|n| vec![n; COMMAND_BYTES]).collect();
        shared.enqueue::<Firsts>(commands.into_iter(), ProposeOptions::default(), deadline).unwrap();
    };
    let last = |alone: &Alone| alone.host.steps[0].replicas().next().unwrap().core.last().index.0;
    let before = last(&alone);
    propose(0..60);
    let now = alone.clock.now();
    alone.host.steps[0].run_round(now);
    let taken = last(&alone) - before;
    assert!((1..60).contains(&taken), "{taken} entries in one round");
    // What comes meanwhile stays behind what was left.
    propose(60..66);
    alone.pass(20);
    assert_eq!(last(&alone) - before, 66);
    let (results, slots) = shared.enqueue_reads::<Firsts>([()].into_iter(), deadline).unwrap();
    alone.pass(5);
    let applied = Pending::new(results, slots.start).wait_timeout(Duration::ZERO).ok();
    assert_eq!(applied, Some(Ok((0..66).collect::<Vec<u8>>())));
}
