//! A register machine: appends values, answers with all of them.

use longboat::*;
use std::io::{Read, Write};

/// Keeps every value that it was given, in order.
#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) values: Vec<u64>,
    /// Fails at this value, to stop its replica.
    pub(crate) poison: Option<u64>,
    /// Makes its state another one than that of the other replicas.
    pub(crate) flaw: u64,
}

impl StateMachine for List {
    type Command = u64;
    type Output = u64;
    type Query = ();
    type Answer = Vec<u64>;

    fn apply(&mut self, _: Index, value: u64) -> Result<u64, MachineError> {
        assert_ne!(Some(value), self.poison, "poisoned");
        self.values.push(value);
        Ok(self.values.len() as u64)
    }

    fn state_hash(&self) -> Option<u64> {
        Some(self.values.iter().fold(0, |hash: u64, v| hash.rotate_left(5).wrapping_mul(31) ^ v) ^ self.flaw)
    }

    fn session_results() -> Option<OutputCodec<u64>> {
        Some(OutputCodec::new())
    }

    fn lookup(&self, (): ()) -> Result<Vec<u64>, MachineError> {
        Ok(self.values.clone())
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        for value in &self.values {
            out.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        self.values = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
        Ok(())
    }
}
