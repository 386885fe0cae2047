//! Whose turn it is in a pool: a line of jobs, and how many of their steps may be under way at once.
//!
//! A step may be in foreign code that does not return. It keeps its thread; who notices that has the line *replace* it: it no
//! longer counts, and a spare thread takes the next turn in its place, as long as there are spares.
//!
//! Invariants:
//! - At most `slots` steps are counted, and at most `spares` are replaced: so many threads beside those of the slots are enough
//!   for every turn that is given.
//! - A step counts until it ends or is replaced, whichever comes first, and once.
//! - Whoever makes room for a turn while jobs wait is told to call for one: a job that could have its step is never left without
//!   a call. A call that finds no room, or no job, costs nothing.
//!
//! Must not know: threads, and what a job is.

use crate::sync::Mutex;
use std::collections::VecDeque;

/// What became of a step that is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// It holds nobody up: a spare takes its place, now or since before.
    Yes,
    /// All spares are taken. It goes on to hold its slot.
    NoSpare,
    /// It has ended.
    Ended,
}

/// A step under way that can be replaced.
struct Step {
    id: usize,
    replaced: bool,
    /// It was to be replaced, and there was no spare.
    stuck: bool,
}

struct State<J> {
    waiting: VecDeque<J>,
    counted: usize,
    steps: Vec<Step>,
}

/// Jobs that wait for their next step, and the steps under way.
pub(crate) struct Line<J> {
    slots: usize,
    spares: usize,
    state: Mutex<State<J>>,
}

impl<J> Line<J> {
    /// So many steps at once, and so many more in the place of those that do not end.
    pub(crate) fn new(slots: usize, spares: usize) -> Self {
        let state = Mutex::new(State { waiting: VecDeque::new(), counted: 0, steps: Vec::new() });
        Self { slots, spares, state }
    }

    /// A job joins the line: the caller calls for a turn.
    pub(crate) fn join(&self, job: J) {
        self.state.lock().waiting.push_back(job);
    }

    /// A turn for the job that has waited longest, if there is room. By `id`, if it has one, its step can be replaced; no two steps
    /// at once have the same.
    pub(crate) fn begin(&self, id: impl FnOnce(&J) -> Option<usize>) -> Option<(J, Option<usize>)> {
        let mut state = self.state.lock();
        if state.counted >= self.slots {
            return None;
        }
        let job = state.waiting.pop_front()?;
        let id = id(&job);
        state.counted += 1;
        state.steps.extend(id.map(|id| Step { id, replaced: false, stuck: false }));
        Some((job, id))
    }

    /// A step has ended; a job that goes on joins the line. Returns whether the caller is to call for a turn.
    pub(crate) fn end(&self, id: Option<usize>, again: Option<J>) -> bool {
        let mut state = self.state.lock();
        let at = id.map(|id| state.steps.iter().position(|s| s.id == id).expect("a step ends once"));
        let step = at.map(|at| state.steps.swap_remove(at));
        let counts = step.is_none_or(|step| !step.replaced);
        if counts || longboat_raft::plant::is("replaced-step-frees-a-slot-twice") {
            state.counted -= 1;
        }
        state.waiting.extend(again);
        !state.waiting.is_empty()
    }

    /// The step with this id holds its thread for too long. After [`Replaced::Yes`] the caller calls for a turn.
    pub(crate) fn replace(&self, id: usize) -> Replaced {
        let mut state = self.state.lock();
        let taken = state.steps.iter().filter(|s| s.replaced).count();
        let Some(step) = state.steps.iter_mut().find(|s| s.id == id) else { return Replaced::Ended };
        if step.replaced {
            return Replaced::Yes;
        }
        step.stuck = taken >= self.spares;
        if step.stuck {
            return Replaced::NoSpare;
        }
        step.replaced = true;
        if !longboat_raft::plant::is("hanging-step-keeps-its-slot") {
            state.counted -= 1;
        }
        Replaced::Yes
    }

    /// Whether every slot is held by a step that should have been replaced: no job has a turn before one of them ends.
    pub(crate) fn is_stuck(&self) -> bool {
        self.state.lock().steps.iter().filter(|s| s.stuck).count() >= self.slots
    }

    /// Steps that were replaced and have not ended.
    pub(crate) fn replaced(&self) -> usize {
        self.state.lock().steps.iter().filter(|s| s.replaced).count()
    }

    /// Takes the jobs that wait out of the line.
    pub(crate) fn take_waiting(&self) -> Vec<J> {
        std::mem::take(&mut self.state.lock().waiting).into()
    }
}
