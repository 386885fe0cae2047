//! A state machine that keeps every value, in order.

use longboat_raft::Index;
use longboat_rsm::{ConcurrentMachine, MachineError, StateMachine};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is written to a snapshot at once: more than a block, so that a stop is seen in between.
const PADDING: [u8; 4096] = [7; 4096];

/// The state machine, and whether its next save fails.
#[derive(Debug, Default)]
pub struct List {
    pub values: Vec<u64>,
    pub fails: Arc<AtomicBool>,
}

impl StateMachine for List {
    type Command = u64;
    type Output = usize;
    type Query = ();
    type Answer = Vec<u64>;

    fn apply(&mut self, _: Index, value: u64) -> Result<usize, MachineError> {
        self.values.push(value);
        Ok(self.values.len())
    }

    fn lookup(&self, (): ()) -> Result<Vec<u64>, MachineError> {
        Ok(self.values.clone())
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        if self.fails.swap(false, Ordering::Relaxed) {
            return Err(MachineError::user("told to fail"));
        }
        out.write_all(&(self.values.len() as u64).to_le_bytes())?;
        for value in &self.values {
            out.write_all(&value.to_le_bytes())?;
        }
        for _ in 0..256 {
            out.write_all(&PADDING)?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut word = [0; 8];
        let mut next = || {
            input.read_exact(&mut word)?;
            Ok::<u64, MachineError>(u64::from_le_bytes(word))
        };
        let count = next()?;
        self.values = (0..count).map(|_| next()).collect::<Result<_, _>>()?;
        std::io::copy(input, &mut std::io::sink())?;
        Ok(())
    }
}

/// The same list, which is looked at and saved while it changes.
#[derive(Debug, Default)]
pub struct Open(Vec<u64>);

impl ConcurrentMachine for Open {
    type Command = u64;
    type Output = usize;
    type Query = ();
    type Answer = Vec<u64>;
    type View = Vec<u64>;

    fn apply(&mut self, _: Index, value: u64) -> Result<usize, MachineError> {
        self.0.push(value);
        Ok(self.0.len())
    }

    fn view(&self) -> Vec<u64> {
        self.0.clone()
    }

    fn lookup(view: &Vec<u64>, (): ()) -> Result<Vec<u64>, MachineError> {
        Ok(view.clone())
    }

    fn save(view: &Vec<u64>, out: &mut dyn Write) -> Result<(), MachineError> {
        for value in view {
            out.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        self.0 = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes"))).collect();
        Ok(())
    }
}
