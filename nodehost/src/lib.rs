#![doc = include_str!("../../README.md")]

mod config;
mod events;
mod group;
mod host;
mod ids_serde;

pub use config::{ConfigError, GroupConfig, NodeHostConfig, Threads};
pub use events::{LeaderChange, Listeners, MembershipChange, RaftEventListener, SystemEventListener};
pub use group::{Group, GroupInfo, Leader, SnapshotOptions};
pub use host::{HostInfo, NodeHost, OpenError, ReplicaSpec, ReplicaStart};
pub use longboat_engine::{CloseError, HostEvent, ReplicaEvent, SnapshotOutcome, StartError};
pub use longboat_logdb::LogStats;
pub use longboat_raft::{GroupEpoch, GroupId, HostId, Index, Membership, ReplicaId, StoreId, Term};
pub use longboat_rsm::{
    Codec, CodecError, MachineError, Payload, Pending, PendingBatch, RequestError, Stage, StateMachine,
};
pub use longboat_transport::TransportStats;
