//! The engine: replicas scheduled over fixed pools of workers, their requests, the log writer, snapshots.
//!
//! Workers are plain structs with rounds ([`Worker`]); a thread is a thin shell around them ([`Threads`]), and the
//! simulator calls the same rounds from one thread. Must not know: sockets' and files' real forms, users' types.

pub mod apply;
pub mod client;
mod closing;
pub mod config;
mod durable;
pub mod events;
pub mod give_back;
pub mod host;
mod late;
pub mod liveness;
mod log_access;
pub mod log_writer;
pub mod memory;
mod moves;
pub mod notify;
mod open;
pub mod openings;
pub mod outbox;
pub mod poller;
pub mod pool;
mod post;
pub mod queue;
mod rare;
mod receive;
mod remove;
mod replace;
pub mod replica;
pub mod request;
mod reseal;
mod saves;
mod send;
mod sending;
mod sessions;
pub mod shared;
pub mod snapshot;
mod space;
pub mod stalls;
pub mod start;
pub mod step;
pub mod stored;
pub mod stores;
pub mod stream;
pub mod threads;
pub mod tracker;
pub mod transfers;
mod waiting;
mod waits;
pub mod wheel;
pub mod worker;

pub use config::{EngineConfig, ReplicaConfig};
pub use events::{EventQueue, HostEvent, ReplicaEvent};
pub use host::{Host, HostParts, Notifiers};
pub use log_access::{Compacted, EntryLimits, LogEntries, LogEntry, LogHold, LogInfo, LogPin, LogRequest};
pub use openings::{Openings, Standing};
pub use request::{Changed, Rare, Replacement, Reply, Transferred};
pub use shared::{GroupShared, HostShared};
pub use snapshot::{SnapshotOptions, SnapshotOutcome, SnapshotRequest};
pub use stalls::{StallWatch, StalledMachine};
pub use start::{Start, StartError, StartSpec, Starter};
pub use stored::StoredReplica;
pub use stores::{PeerFile, PeerStores, STORE_NOT_KNOWN};
pub use threads::{CloseError, ThreadLayout, Threads};
pub use worker::{Work, Worker};
