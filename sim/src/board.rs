//! The same list with lookups and saves off a point-in-time view, while commands are applied.
//!
//! Invariant: a view shows the list as it was when it was made: serial numbers are only ever added behind what it shows, and a
//! recovery begins another list.

use crate::machine::{Add, List, Seen};
use longboat_raft::Index;
use longboat_rsm::{ConcurrentMachine, MachineError, OutputCodec};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// The list.
#[derive(Debug)]
pub struct Board {
    serials: Arc<Mutex<Vec<u64>>>,
    /// What the list's sums are, without its serial numbers.
    list: List,
}

/// The list as it was.
#[derive(Debug)]
pub struct BoardView {
    serials: Arc<Mutex<Vec<u64>>>,
    count: usize,
    list: List,
}

impl Board {
    /// An empty list whose snapshots carry `ballast` bytes besides it.
    pub fn new(ballast: usize) -> Self {
        Self { serials: Arc::default(), list: List::new(ballast) }
    }
}

impl ConcurrentMachine for Board {
    type Command = Add;
    type Output = u64;
    type Query = ();
    type Answer = Seen;
    type View = BoardView;

    fn apply(&mut self, _index: Index, command: Add) -> Result<u64, MachineError> {
        let mut serials = self.serials.lock();
        serials.push(command.serial);
        self.list.add(command.serial);
        Ok(serials.len() as u64)
    }

    fn view(&self) -> BoardView {
        BoardView { serials: Arc::clone(&self.serials), count: self.serials.lock().len(), list: self.list }
    }

    fn lookup(view: &BoardView, (): ()) -> Result<Seen, MachineError> {
        Ok(Seen { count: view.count as u64 })
    }

    fn save(view: &BoardView, out: &mut dyn io::Write) -> Result<(), MachineError> {
        let serials = view.serials.lock()[..view.count].to_vec();
        view.list.save(&serials, out)
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let serials = self.list.recover(input)?;
        self.serials = Arc::new(Mutex::new(serials));
        Ok(())
    }

    fn session_results() -> Option<OutputCodec<u64>> {
        Some(OutputCodec::new())
    }

    fn state_hash(&self) -> Option<u64> {
        Some(self.list.hash(self.serials.lock().len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_shows_nothing_of_what_comes_after_it() {
        let mut board = Board::new(10);
        (1..=3).for_each(|serial| drop(board.apply(Index(serial), Add { serial, padding: 0 })));
        let view = board.view();
        let then = board.state_hash();
        board.apply(Index(4), Add { serial: 4, padding: 0 }).expect("applied");
        let mut saved = Vec::new();
        Board::save(&view, &mut saved).expect("saved");
        assert_eq!(Board::lookup(&view, ()).expect("looked up").count, 3);
        board.recover(&mut saved.as_slice()).expect("recovered");
        assert_eq!(board.state_hash(), then);
        assert_eq!(Board::lookup(&view, ()).expect("looked up").count, 3);
        assert!(Board::new(9).recover(&mut saved.as_slice()).is_err(), "the ballast has another length");
    }
}
