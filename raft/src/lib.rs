//! The Raft protocol of Longboat: a pure state machine per replica, without I/O, threads, clocks or unseeded randomness.
//!
//! Everything that the outside world does enters as an argument of a [`Core`] method, everything the protocol wants comes
//! out as an [`Output`]. Must not know: disks, sockets, hosts' addresses, workers, user state machines.

pub mod changer;
pub mod crc;
pub mod ids;
pub mod membership;
pub mod message;
pub mod plant;
pub mod quorum;
pub mod run;
pub mod session;
pub mod sometimes;
pub mod spare;

mod config;
mod core;
mod durability;
mod election;
mod error;
mod farewell;
mod follower;
mod forwards;
mod handout;
mod log;
mod look;
#[cfg(feature = "model")]
mod model;
mod output;
mod payload;
mod pb;
mod progress;
mod promotion;
mod proposals;
mod quiesce;
mod read;
mod replication;
mod rng;
mod transfer;

pub use crate::core::{Core, Guard, Restored, Role};
pub use changer::{Change, ChangeError, ChangeKind, ConfigChange, Promotion, Transition};
pub use config::{ChangeChecks, CoreConfig};
pub use durability::PersistToken;
pub use error::Violation;
pub use forwards::Forwards;
pub use ids::{GroupEpoch, GroupId, HardState, HostId, Index, LogPos, ReplicaId, SessionId, StoreId, Term, Time};
pub use membership::{DecodeError, Membership, ReplicaKind};
pub use message::{Body, Member, Message, RefusedReason, SnapshotMeta, TransferAnswer};
pub use output::{
    ClosedForwards, Compacted, Event, Fetch, Output, Persist, ProposeOptions, Proposed, ReadReady, Refused,
    RefusedForward, RefusedWhy, TransferOutcome, TransferRefused,
};
pub use payload::PayloadCodec;
pub use progress::{Progress, ProgressState};
pub use run::{EntryKind, EntryRef, Origin, Run, RunBuilder, RunError};
pub use session::SessionCall;
