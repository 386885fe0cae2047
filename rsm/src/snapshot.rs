//! Snapshot files: how a state machine's state is written, published, read back and moved to another host.
//!
//! Invariants: a directory with its final name holds a whole, durable file; everything unfinished has a name that ends
//! in `.tmp` and goes when its maker fails, stops, or the replica starts again; no byte is handed to a state machine,
//! and no received file is made durable, before its checksum was found good. The format is in
//! `docs/snapshot-format.md`.
//!
//! A file here counts for nothing until a record of the log store names it: whoever drives this module writes that
//! record after the publication is done, and only then truncates the log or acknowledges an install.
//!
//! Must not know: raft messages, journals, sockets, workers.

mod ahead;
mod encoder;
mod error;
mod export;
mod format;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzzing;
mod import;
mod jobs;
mod live;
mod pack;
mod publish;
mod reader;
mod recover;
mod store;
mod transfer;
mod verify;
mod writer;

pub use error::SnapshotError;
pub use export::{Inspection, export_path, inspect_export, open_export, verify_export};
pub use format::{
    BLOCK_BYTES, BLOCK_BYTES_MAX, Compression, Content, HEADER_BYTES_MAX, MachineKind, SESSION_TABLE_BYTES_MAX,
    SnapshotHeader,
};
pub use jobs::{Prepared, SaveJob, SaveTask, SavedSnapshot, SharedMachine};
pub use live::LiveSnapshot;
pub use publish::Publication;
pub use reader::{FileEntry, SnapshotReader};
pub use recover::{RecoverJob, RecoverTask};
pub use store::SnapshotStore;
pub use transfer::{Appended, Chunk, IncomingSnapshot, OutgoingSnapshot, TransferKey};
pub use verify::Verifier;
pub use writer::SnapshotWriter;

#[cfg(test)]
mod tests;
