#![doc = include_str!("../../README.md")]

mod config;
mod events;
mod group;
mod host;
mod ids_serde;
mod import;
mod lifecycle;
mod log;
mod members;
mod replica;
mod retrying;
mod session;
mod verify;

pub use config::{ConfigError, GroupConfig, NodeHostConfig, Threads};
pub use events::{LeaderChange, Listeners, MembershipChange, RaftEventListener, SystemEventListener};
pub use group::Group;
pub use host::{HostInfo, NodeHost, OpenError, ReplicaSpec, StalledMachine};
pub use import::{
    ExportError, Import, ImportError, Imported, SnapshotInfo, export_snapshot, import_snapshots, inspect_snapshot,
};
/// What the simulator drives, on stores and disks of its own. Not of the public API.
#[doc(hidden)]
pub mod driven {
    pub use crate::import::import_into;
}
pub use lifecycle::{ReplicaInfo, Resumed};
pub use longboat_engine::transfers::{Direction, TransferInfo};
pub use longboat_engine::{
    Changed, CloseError, Compacted, EntryLimits, HostEvent, LogEntries, LogEntry, LogHold, LogInfo, LogPin,
    QuarantinedReplica, ReplicaEvent, SnapshotOptions, SnapshotOutcome, StartError, StoredReplica, Transferred,
};
pub use longboat_logdb::LogStats;
pub use longboat_raft::{
    ChangeError, EntryKind, GroupEpoch, GroupId, HostId, Index, Membership, ProposeOptions, ReplicaId, ReplicaKind,
    SessionId, StoreId, Term,
};
pub use longboat_rsm::retry::{ClientSession, Series};
pub use longboat_rsm::snapshot::Compression;
pub use longboat_rsm::snapshot::SnapshotError;
pub use longboat_rsm::{
    Codec, CodecError, Commands, Concurrent, ConcurrentMachine, DiskMachine, Machine, MachineError, MachineKind,
    OnDisk, OutputCodec, Payload, Pending, PendingBatch, RecoveredFile, RecoveredFiles, RequestError, SavePart,
    SnapshotFiles, SnapshotRefusal, Stage, StateMachine, StopSignal, TransferError,
};
pub use longboat_transport::TransportStats;
pub use members::{ConfigChange, FirstMembers, MemberInfo, ReplicaStart};
pub use replica::{GroupInfo, Leader, Replica};
pub use retrying::{GaveUp, RetryingClient};
pub use session::PendingSession;
pub use verify::{Verdict, verify_group};
