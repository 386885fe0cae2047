//! The Raft protocol of Longboat: a pure state machine per replica, without I/O, threads, clocks or unseeded randomness.
//!
//! Everything that the outside world does enters as an argument, everything the protocol wants comes out as an
//! [`Output`](crate). Must not know: disks, sockets, hosts' addresses, workers, user state machines.

pub mod ids;
pub mod membership;
pub mod message;
pub mod plant;
pub mod run;

pub use ids::{GroupEpoch, GroupId, HardState, HostId, Index, LogPos, ReplicaId, StoreId, Term, Time};
pub use membership::Membership;
pub use message::{Body, Member, Message, RefusedReason, SnapshotMeta};
pub use run::{EntryKind, EntryRef, Origin, Run, RunBuilder, RunError};
