//! How many snapshots a host saves at once by itself, and whose turn is next: the group's whose snapshot frees most of the log.
//!
//! Invariant: what was admitted counts until its request has ended, however it ends. Users' requests count and are never held.

use crate::shared::{GroupShared, reason};
use longboat_raft::plant;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::sync::Arc;

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// Groups that are due, and the bytes of log that a snapshot of each lets go.
    waiting: Vec<(u64, Arc<GroupShared>)>,
}

/// The saves of one host.
#[derive(Debug)]
pub struct Admission {
    max: usize,
    state: Mutex<State>,
}

/// A save that counts.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<Admission>);

impl Admission {
    /// At most so many at once.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, state: Mutex::default() })
    }

    /// Saves that count now.
    pub fn running(&self) -> usize {
        self.state.lock().running
    }

    /// A user asks: that is not refused.
    pub(crate) fn begin(self: &Arc<Self>) -> Admitted {
        self.state.lock().running += 1;
        Admitted(Arc::clone(self))
    }

    /// The engine's own save of this group, which would let go of so many bytes. `None` when there are enough: the group is told
    /// again that it is due when its turn comes.
    pub(crate) fn ask(self: &Arc<Self>, shared: &Arc<GroupShared>, bytes: u64) -> Option<Admitted> {
        let mut state = self.state.lock();
        state.waiting.retain(|(_, waiting)| !Arc::ptr_eq(waiting, shared));
        if state.running >= self.max && !plant::is("saves-unbounded") {
            state.waiting.push((bytes, Arc::clone(shared)));
            return None;
        }
        state.running += 1;
        drop(state);
        Some(Admitted(Arc::clone(self)))
    }

    fn ended(&self) {
        let next = {
            let mut state = self.state.lock();
            state.running -= 1;
            state.waiting.retain(|(_, waiting)| waiting.refusal().is_none());
            let turn = |(_, (bytes, shared)): &(usize, &(u64, Arc<GroupShared>))| (*bytes, Reverse(shared.group));
            let most = state.waiting.iter().enumerate().max_by_key(turn).map(|(at, _)| at);
            most.filter(|_| state.running < self.max).map(|at| state.waiting.swap_remove(at).1)
        };
        if let Some(shared) = next {
            shared.ready(reason::SNAPSHOT_DUE);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.ended();
    }
}
