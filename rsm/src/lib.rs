//! Replicated state machines: the traits that users implement, the results that their clients wait for, and snapshot files.
//!
//! Must not know: raft messages, journals, sockets, workers.

pub mod codec;
pub mod completion;
pub mod error;
pub mod files;
pub mod machine;
pub mod packed;
pub mod reads;
pub mod retry;
pub mod session;
pub mod snapshot;
mod sync;

pub use codec::{Codec, CodecError, OutputCodec, Payload};
pub use completion::{AnyCompletion, Completion, Pending, PendingBatch};
pub use error::{RequestError, SnapshotRefusal, Stage, TransferError};
pub use files::{RecoveredFile, RecoveredFiles, SnapshotFiles};
pub use machine::{
    Commands, Concurrent, ConcurrentMachine, DiskMachine, DynMachine, Lookups, Machine, MachineError, MachineKind,
    OnDisk, SavePart, SaveView, StateMachine, StopSignal, StorageState, Typed, WitnessMachine,
};
pub use reads::{AnyReads, IndexReads, Reads};
pub use session::{SessionAnswer, SessionTable};
