//! A state machine that keeps every value, in order.

use longboat_raft::Index;
use longboat_rsm::{MachineError, StateMachine};
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
