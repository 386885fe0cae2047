//! Exported snapshots: a directory that can be carried away, looked at, verified and imported.
//!
//! It holds the snapshot file, and beside it a small file that says what the snapshot file must be: its header, length and
//! checksum. Each vouches for the other, so that no byte of either can change unnoticed.

use super::error::SnapshotError;
use super::format::{CRC_BYTES, SnapshotHeader, encode_header, u16_at, u32_at};
use super::reader::{FileEntry, SnapshotReader};
use super::store::FILE_NAME;
use crate::session::SessionTable;
use crc32c::crc32c;
use longboat_io::disk::SharedDisk;
use longboat_raft::{GroupId, Index, plant};
use std::path::{Path, PathBuf};

pub(crate) const METADATA_NAME: &str = "snapshot.meta";
const MAGIC: [u8; 8] = *b"LBEXPORT";
const VERSION: u16 = 1;
/// Magic, version, zero, length of the header, length of the snapshot file, its checksum, zero.
const FIXED_BYTES: usize = 32;

/// The directory of an exported snapshot, in the one that the user named.
pub(crate) fn dir_name(group: GroupId, index: Index) -> String {
    format!("snapshot-{group}-{index}")
}

/// Where the snapshot of this group and index comes to be when it is exported to `dir`.
pub fn export_path(dir: &Path, group: GroupId, index: Index) -> PathBuf {
    dir.join(dir_name(group, index))
}

/// What an exported snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// What it says about itself.
    pub header: SnapshotHeader,
    /// The size of the file.
    pub file_bytes: u64,
    /// The size of what is in it, decompressed.
    pub state_bytes: u64,
    /// Client sessions in it.
    pub sessions: usize,
    /// The user's files in it.
    pub files: Vec<FileEntry>,
}

/// Reads an exported snapshot and checks every byte of it.
///
/// # Errors
/// What is wrong with it.
pub fn verify_export(disk: &SharedDisk, dir: &Path) -> Result<SnapshotHeader, SnapshotError> {
    let mut reader = open_export(disk, dir)?;
    reader.drain()?;
    Ok(reader.header().clone())
}

/// Opens an exported snapshot for reading: its header and footer are checked, and that they are what the metadata says.
///
/// # Errors
/// When one of its files is missing, damaged, or not the other's.
pub fn open_export(disk: &SharedDisk, dir: &Path) -> Result<SnapshotReader, SnapshotError> {
    let reader = SnapshotReader::new(disk.open(&dir.join(FILE_NAME))?)?;
    let file = disk.open(&dir.join(METADATA_NAME))?;
    let expected = encode_metadata(&reader)?;
    if file.len()? != expected.len() as u64 {
        return Err(SnapshotError::corrupt("length of the metadata"));
    }
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, 0)?;
    check_version(&found)?;
    if found != expected && !plant::is("export-metadata-not-compared") {
        return Err(SnapshotError::corrupt("the metadata is not that of the snapshot file"));
    }
    Ok(reader)
}

/// Reads an exported snapshot, checks every byte of it, and tells what it holds.
///
/// # Errors
/// What is wrong with it.
pub fn inspect_export(disk: &SharedDisk, dir: &Path) -> Result<Inspection, SnapshotError> {
    let mut reader = open_export(disk, dir)?;
    let table = reader.sessions()?;
    let sessions = if table.is_empty() {
        0
    } else {
        SessionTable::decode(&table).map_err(|e| SnapshotError::corrupt(e.to_string()))?.len()
    };
    let mut files = Vec::new();
    while let Some(file) = reader.next_file()? {
        files.push(file);
    }
    reader.drain()?;
    Ok(Inspection {
        header: reader.header().clone(),
        file_bytes: reader.file_bytes(),
        state_bytes: reader.state_bytes(),
        sessions,
        files,
    })
}

/// Writes the metadata of the snapshot file in `dir`, durably.
pub(crate) fn write_metadata(disk: &SharedDisk, dir: &Path) -> Result<(), SnapshotError> {
    let reader = SnapshotReader::new(disk.open(&dir.join(FILE_NAME))?)?;
    let bytes = encode_metadata(&reader)?;
    let mut file = disk.create(&dir.join(METADATA_NAME))?;
    file.write_all_at(&bytes, 0)?;
    Ok(file.sync_data()?)
}

fn encode_metadata(reader: &SnapshotReader) -> Result<Vec<u8>, SnapshotError> {
    let (header, _) = encode_header(reader.header(), reader.block_bytes())?;
    let mut out = Vec::with_capacity(FIXED_BYTES + header.len() + CRC_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&0u16.to_le_bytes());
    out.extend_from_slice(&(header.len() as u32).to_le_bytes());
    out.extend_from_slice(&reader.file_bytes().to_le_bytes());
    out.extend_from_slice(&reader.whole_crc().to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    assert_eq!(out.len(), FIXED_BYTES, "the parts have fixed lengths");
    out.extend_from_slice(&header);
    let crc = crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// A version that this build does not know is named as such, not as damage.
fn check_version(bytes: &[u8]) -> Result<(), SnapshotError> {
    if bytes.len() < FIXED_BYTES + CRC_BYTES || bytes[..8] != MAGIC {
        return Err(SnapshotError::corrupt("no export's magic"));
    }
    let crc_at = bytes.len() - CRC_BYTES;
    if u32_at(bytes, crc_at) != crc32c(&bytes[..crc_at]) {
        return Err(SnapshotError::corrupt("checksum of the metadata"));
    }
    match u16_at(bytes, 8) {
        VERSION => Ok(()),
        found => {
            Err(SnapshotError::Unsupported { what: "export version", found: found.into(), supported: VERSION.into() })
        }
    }
}
