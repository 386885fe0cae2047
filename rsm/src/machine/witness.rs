//! What a witness has in place of a state machine.

use super::{DynMachine, MachineError};
use crate::completion::AnyCompletion;
use crate::error::RequestError;
use crate::reads::AnyReads;
use longboat_raft::Run;
use std::io;

/// What a witness has in place of a state machine: nothing is applied, nothing can be asked, nothing is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WitnessMachine;

impl DynMachine for WitnessMachine {
    fn apply_run(&mut self, _run: &Run, _results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        Ok(())
    }

    fn lookup(&self, reads: Box<dyn AnyReads>) {
        reads.fail(&RequestError::LookupFailed("a witness has no state".to_owned()));
    }

    fn save(&self, _out: &mut dyn io::Write) -> Result<(), MachineError> {
        Err(MachineError::user("a witness has no state to save"))
    }

    fn recover(&mut self, _input: &mut dyn io::Read) -> Result<(), MachineError> {
        Err(MachineError::user("a witness has no state to recover"))
    }

    fn state_hash(&self) -> Option<u64> {
        None
    }
}
