//! Snapshots that go from an export into a store, or from a store into an export, outside of a running replica.
//!
//! The header changes on the way (another membership, epoch or group), and every checksum has the header's mixed in: so the
//! file is written anew, and each byte of the old one is checked as it is read.
//!
//! Invariants: what is damaged never gets a final name; an imported snapshot bears a mark until a state machine was
//! recovered from it and has made that durable. The mark matters to a state machine with storage of its own: whatever it
//! holds is of the history that the import ended, and may reach beyond the snapshot.

use super::error::SnapshotError;
use super::export::{dir_name, open_export};
use super::format::{Content, SnapshotHeader};
use super::jobs::SavedSnapshot;
use super::publish::Publication;
use super::reader::SnapshotReader;
use super::store::SnapshotStore;
use super::writer::SnapshotWriter;
use longboat_io::JobState;
use longboat_raft::{GroupId, Index, ReplicaId, plant};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file that marks an imported snapshot.
pub(crate) const IMPORTED_NAME: &str = "imported";
/// Bytes of state that are copied at once.
const COPY_BYTES: usize = 256 << 10;

impl SnapshotStore {
    /// Takes over the exported snapshot in `dir` as the snapshot of `replica`, with a header that `change` has changed. It is
    /// durable when this returns, and counts when a record names it.
    ///
    /// # Errors
    /// When the export is damaged or holds no state, or files can't be written. Nothing of it is left then.
    pub fn import(
        &self,
        dir: &Path,
        replica: ReplicaId,
        change: impl FnOnce(&mut SnapshotHeader),
    ) -> Result<SavedSnapshot, SnapshotError> {
        let mut reader = open_export(&self.disk, dir)?;
        let mut header = reader.header().clone();
        if header.content != Content::Full {
            return Err(SnapshotError::Stateless);
        }
        change(&mut header);
        let meta = header.meta.clone();
        let (mut place, temp, file) = self.begin_file(header.group, replica, meta.pos.index)?;
        place.imported = true;
        let mut writer = SnapshotWriter::new(place, temp, file, header, Arc::default())?;
        copy(&mut reader, &mut writer)?;
        Ok(SavedSnapshot { meta, bytes: publish(writer.finish()?)? })
    }

    /// Exports a snapshot of this store to a directory of its own in `to`, and returns that.
    ///
    /// # Errors
    /// When the snapshot is damaged or holds no state, `to` does not exist or has one of this group and index already.
    pub fn export(
        &self,
        (group, replica): (GroupId, ReplicaId),
        index: Index,
        to: &Path,
    ) -> Result<PathBuf, SnapshotError> {
        let mut reader = self.open(group, replica, index)?;
        let header = reader.header().clone();
        if header.content != Content::Full {
            return Err(SnapshotError::Stateless);
        }
        let mut writer = self.begin_export(to, header, replica, Arc::default())?;
        copy(&mut reader, &mut writer)?;
        publish(writer.finish()?)?;
        Ok(to.join(dir_name(group, index)))
    }

    /// Whether the snapshot came from an import, and no state machine has made durable what it recovered from it.
    pub fn is_imported(&self, group: GroupId, replica: ReplicaId, index: Index) -> bool {
        let mark = self.snapshot_dir(group, replica, index).join(IMPORTED_NAME);
        self.disk.exists(&mark) && !plant::is("imported-mark-ignored")
    }

    /// The state machine has it, durably.
    pub(crate) fn recovered_import(
        &self,
        group: GroupId,
        replica: ReplicaId,
        index: Index,
    ) -> Result<(), SnapshotError> {
        let dir = self.snapshot_dir(group, replica, index);
        self.disk.remove_file(&dir.join(IMPORTED_NAME))?;
        Ok(self.disk.sync_dir(&dir)?)
    }
}

/// Copies what comes after the header.
fn copy(reader: &mut SnapshotReader, writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
    let sessions = reader.sessions()?;
    writer.write_sessions(&sessions)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let read = reader.read(&mut buffer);
        if let Some(failure) = reader.take_failure() {
            return Err(failure);
        }
        let bytes = read?;
        if bytes == 0 {
            break;
        }
        let written = io::Write::write_all(writer, &buffer[..bytes]);
        if let Some(failure) = writer.take_failure() {
            return Err(failure);
        }
        written?;
    }
    while let Some(file) = reader.next_file()? {
        writer.begin_file(file.id, file.bytes, &file.metadata)?;
        let mut bytes = 0;
        while let Some(part) = reader.next_file_part()? {
            bytes += part.len() as u64;
            writer.write_file_part(part)?;
        }
        if bytes != file.bytes {
            return Err(SnapshotError::corrupt(format!("file {} has not its length", file.id)));
        }
    }
    // Through the footer: it vouches for all that came before.
    reader.drain()
}

/// Returns the size of the file.
fn publish(mut publication: Publication) -> Result<u64, SnapshotError> {
    let bytes = publication.bytes();
    while publication.step()? != JobState::Done {
        std::thread::yield_now();
    }
    Ok(bytes)
}
