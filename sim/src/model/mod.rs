//! Model checking: every order of events of a small group is walked through, over the shipped core.
//!
//! A *state* is all replicas (core, disk, batches under way), the network, what is left of the budgets of faults and
//! requests, and what the checks remember. From each state every *action* that is possible leads to another one; equal
//! states are visited once. [`explore`] goes breadth first through half of the states that it is given, so that every
//! short history is walked, and then dives from there along random paths, so that long histories are walked too.
//!
//! What is real: [`longboat_raft::Core`] with all that it puts out and is given back: batches and their order, held and
//! early messages, hand-outs and `applied`, snapshots, cold reads. What is modelled: the disk (a batch is on it whole or
//! not at all, in order), the network (links in order, with budgets of lost, repeated and delayed packets), time.
//!
//! Time enters as events: an election timeout passes, a heartbeat is due, nothing was heard for long. The core's
//! clock moves by a nanosecond or by more than two election timeouts, and by [`longboat_raft::Core::hash_timeless`]'s
//! argument no more of it matters than whether a leader was heard within an election timeout. Chance decides nothing but
//! the length of timeouts, hence nothing here.
//!
//! What makes it fast: an action changes one replica. Replicas and packets are interned, a state is a few numbers, and
//! the core runs once for each pair of a replica's state and an input; whatever follows is a look-up.
//!
//! Must not know: hosts, workers, the simulator's world.

mod act;
mod check;
mod configs;
mod explore;
mod forwarded;
mod hash;
mod node;
mod state;
mod trace;

pub use configs::{Config, all, named};
pub use explore::{Found, Limits, Outcome, explore};
