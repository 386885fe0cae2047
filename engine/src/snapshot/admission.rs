//! How many snapshots a host saves at once by itself, and whose turn is next: the group's whose snapshot frees most of the log.
//!
//! Invariant: what was admitted counts until its request has ended, however it ends, or hangs in its state machine. Users' requests
//! count and are never held.

use crate::shared::{GroupShared, reason};
use longboat_raft::plant;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// Groups that are due, and the bytes of log that a snapshot of each lets go.
    waiting: Vec<(u64, Arc<GroupShared>)>,
    /// One was not admitted since no save could have begun.
    held: bool,
}

/// The saves of one host.
#[derive(Debug)]
pub struct Admission {
    max: usize,
    state: Mutex<State>,
}

/// A save that counts.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<Turn>);

/// That a save counts: ended once, by its request, or before, when its state machine hangs.
#[derive(Debug)]
pub(crate) struct Turn {
    admission: Arc<Admission>,
    ended: AtomicBool,
}

impl Turn {
    /// It counts no longer.
    pub(crate) fn end(&self) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            self.admission.ended();
        }
    }
}

impl Admitted {
    fn new(admission: &Arc<Admission>) -> Self {
        Self(Arc::new(Turn { admission: Arc::clone(admission), ended: AtomicBool::new(false) }))
    }

    /// For who may end it early.
    pub(crate) fn turn(&self) -> Arc<Turn> {
        Arc::clone(&self.0)
    }
}

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
        Admitted::new(self)
    }

    /// The engine's own save of this group, which would let go of so many bytes. `None` when there are enough, or none could begin
    /// because the pool is `stuck`: the group is told again that it is due when its turn comes.
    pub(crate) fn ask(self: &Arc<Self>, shared: &Arc<GroupShared>, bytes: u64, stuck: bool) -> Option<Admitted> {
        let mut state = self.state.lock();
        state.waiting.retain(|(_, waiting)| !Arc::ptr_eq(waiting, shared));
        state.held |= stuck;
        if stuck || (state.running >= self.max && !plant::is("saves-unbounded")) {
            state.waiting.push((bytes, Arc::clone(shared)));
            return None;
        }
        state.running += 1;
        drop(state);
        Some(Admitted::new(self))
    }

    /// The pool is not stuck: those that were held for that have their turns.
    pub(crate) fn go_on(&self) {
        let next = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.held) {
                return;
            }
            let room = self.max.saturating_sub(state.running);
            std::iter::from_fn(|| state.next()).take(room).collect::<Vec<_>>()
        };
        next.iter().for_each(|shared| shared.ready(reason::SNAPSHOT_DUE));
    }

    fn ended(&self) {
        let next = {
            let mut state = self.state.lock();
            state.running -= 1;
            if state.running < self.max { state.next() } else { None }
        };
        if let Some(shared) = next {
            shared.ready(reason::SNAPSHOT_DUE);
        }
    }
}

impl State {
    /// Whose snapshot lets most of the log go.
    fn next(&mut self) -> Option<Arc<GroupShared>> {
        self.waiting.retain(|(_, waiting)| waiting.refusal().is_none());
        let turn = |(_, (bytes, shared)): &(usize, &(u64, Arc<GroupShared>))| (*bytes, Reverse(shared.group));
        let most = self.waiting.iter().enumerate().max_by_key(turn).map(|(at, _)| at);
        most.map(|at| self.waiting.swap_remove(at).1)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.end();
    }
}
