//! Replicated state machines: the traits that users implement, the results that their clients wait for, and snapshot files.
//!
//! Must not know: raft messages, journals, sockets, workers.

pub mod codec;
pub mod completion;
pub mod error;
pub mod machine;
pub mod reads;
pub mod snapshot;

pub use codec::{Codec, CodecError, Payload};
pub use completion::{AnyCompletion, Completion, Pending, PendingBatch};
pub use error::{RequestError, Stage, TransferError};
pub use machine::{DynMachine, MachineError, StateMachine, Typed, WitnessMachine};
pub use reads::{AnyReads, IndexReads, Reads};
