//! A snapshot file, and an exported snapshot, that anybody may have made: driven by a fuzzer, and by the tests with what it
//! kept.
//!
//! Checksums are made right where the input says so: else nothing behind them would ever be looked at.

use super::export::{METADATA_NAME, inspect_export, verify_export};
use super::format::{
    BLOCK_HEADER_BYTES, CRC_BYTES, FOOTER_BYTES, Footer, Layout, PREFIX_BYTES, block_seed, decode_header, header_bytes,
    u32_at,
};
use super::reader::SnapshotReader;
use super::store::FILE_NAME;
use super::verify::Verifier;
use crate::session::SessionTable;
use crc32c::{crc32c, crc32c_append};
use longboat_io::SharedDisk;
use longboat_io::sim::{SimDisk, SimDiskConfig};
use std::io::Read as _;
use std::path::Path;

/// Memory that reading a snapshot of a few kilobytes may take, in bytes: a block, packed and unpacked, and what unpacks it.
pub const BYTES_MAX: usize = 16 << 20;

const DIR: &str = "/snapshot";

fn on_disk(files: &[(&str, &[u8])]) -> SharedDisk {
    let disk = SimDisk::new(1, SimDiskConfig::default()).process();
    let dir = Path::new(DIR);
    let make = || {
        disk.create_dir_all(dir)?;
        files.iter().try_for_each(|(name, bytes)| disk.create(&dir.join(name))?.write_all_at(bytes, 0))
    };
    make().expect("the simulated disk takes it");
    disk
}

/// The layout that the header says, its checksum made right.
fn layout(bytes: &mut [u8]) -> Option<Layout> {
    let prefix: &[u8; PREFIX_BYTES] = bytes.get(..PREFIX_BYTES)?.try_into().ok()?;
    let end = header_bytes(prefix).ok()?;
    let header = bytes.get_mut(..end)?;
    let sum = crc32c(&header[..end - CRC_BYTES]);
    header[end - CRC_BYTES..].copy_from_slice(&sum.to_le_bytes());
    Some(decode_header(header).ok()?.layout)
}

/// Makes the checksums of header and blocks right, and puts a footer that fits behind the last block that is whole.
fn with_sums(mut bytes: Vec<u8>) -> Vec<u8> {
    let Some(layout) = layout(&mut bytes) else { return bytes };
    let (mut footer, mut at) = (Footer::begin(&layout), layout.header_bytes);
    while let Some(head) = bytes.get(at..at + BLOCK_HEADER_BYTES) {
        let mut head: [u8; BLOCK_HEADER_BYTES] = head.try_into().expect("as long as that");
        let from = at + BLOCK_HEADER_BYTES;
        let Some(payload) = bytes.get(from..from.saturating_add(u32_at(&head, 0) as usize)) else { break };
        if payload.is_empty() {
            break;
        }
        let sum = crc32c_append(block_seed(&layout, footer.blocks, &head), payload);
        let end = from + payload.len();
        head[12..].copy_from_slice(&sum.to_le_bytes());
        footer.add(&head);
        bytes[at..from].copy_from_slice(&head);
        at = end;
    }
    bytes.truncate(at);
    bytes.extend_from_slice(&footer.encode(&layout));
    assert!(bytes.len() >= FOOTER_BYTES, "it ends with one");
    bytes
}

fn file(mode: u8, bytes: &[u8]) -> Vec<u8> {
    if mode & 1 == 0 { with_sums(bytes.to_vec()) } else { bytes.to_vec() }
}

/// A snapshot file as it is received and as it is read back. The first byte says whether the checksums are to be right.
pub fn snapshot(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let bytes = file(*mode, bytes);
    let mut verifier = Verifier::new();
    let fed = bytes.chunks(1 + usize::from(mode >> 1)).try_for_each(|piece| verifier.feed(piece));
    let disk = on_disk(&[(FILE_NAME, &bytes)]);
    let read = read(&disk);
    let received = fed.is_ok() && verifier.is_whole();
    assert!(received || read.is_err(), "what would not be received was read: {fed:?}");
}

/// Reads all of it, state by state machine and files by name.
fn read(disk: &SharedDisk) -> Result<(), super::SnapshotError> {
    let open = || SnapshotReader::new(disk.open(&Path::new(DIR).join(FILE_NAME))?);
    let mut reader = open()?;
    let sessions = reader.sessions();
    if let Ok(table) = &sessions
        && !table.is_empty()
        && let Ok(table) = SessionTable::decode(table)
    {
        let _ = table.len();
    }
    let mut state = Vec::new();
    let _ = reader.by_ref().take(BYTES_MAX as u64 / 4).read_to_end(&mut state);
    while let Ok(Some(_)) = reader.next_file() {
        while let Ok(Some(part)) = reader.next_file_part() {
            assert!(!part.is_empty());
        }
    }
    reader.drain()?;
    // What one way of reading finds good, every other does.
    open()?.drain()
}

/// An exported snapshot: the first bytes are the file of what it is, the others the snapshot's.
pub fn export(data: &[u8]) {
    let [mode, cut, bytes @ ..] = data else { return };
    let (metadata, snapshot) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let (mut metadata, snapshot) = (metadata.to_vec(), file(*mode, snapshot));
    if mode & 2 == 0
        && let Some(body) = metadata.len().checked_sub(CRC_BYTES)
    {
        let sum = crc32c(&metadata[..body]);
        metadata[body..].copy_from_slice(&sum.to_le_bytes());
    }
    let disk = on_disk(&[(FILE_NAME, &snapshot), (METADATA_NAME, &metadata)]);
    let (verified, looked_at) = (verify_export(&disk, Path::new(DIR)), inspect_export(&disk, Path::new(DIR)));
    if let Ok(inspection) = looked_at {
        let header = verified.expect("what was looked at to its end is good");
        assert_eq!((inspection.header, inspection.file_bytes), (header, snapshot.len() as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{BlockHeader, Compression, Section, SnapshotHeader, encode_header};
    use super::*;

    #[test]
    fn the_fuzz_corpus_brings_refusals_at_worst() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in [("snapshot", snapshot as fn(&[u8])), ("export", export)] {
            let kept = std::fs::read_dir(corpus.join(name)).expect("kept inputs");
            let mut files: Vec<_> = kept.map(|f| f.expect("one").path()).collect();
            files.sort();
            for file in files {
                eprintln!("{}", file.display());
                target(&std::fs::read(file).expect("readable"));
            }
        }
    }

    /// A snapshot with something of every section, its checksums missing.
    fn without_sums(compression: Compression) -> Vec<u8> {
        let header = SnapshotHeader { compression, session_bytes: 3, ..SnapshotHeader::default() };
        let (mut bytes, layout) = encode_header(&header, 64).expect("a small header");
        let file_head = [7u64.to_le_bytes(), 4u64.to_le_bytes()].concat();
        let blocks = [
            (Section::Sessions, &b"abc"[..]),
            (Section::State, b"state"),
            (Section::FileHead, &file_head),
            (Section::FileData, b"file"),
        ];
        for (section, payload) in blocks {
            let mut head = BlockHeader::of(&layout, 0, section, payload.len(), payload);
            head[12..].fill(0);
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(payload);
        }
        bytes
    }

    #[test]
    fn what_has_all_its_sums_made_right_is_read_to_its_end() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let bytes = without_sums(compression);
            let whole = with_sums(bytes.clone());
            assert!(read(&on_disk(&[(FILE_NAME, &whole)])).is_ok(), "{compression:?}");
            assert!(read(&on_disk(&[(FILE_NAME, &bytes)])).is_err(), "{compression:?}");
            let mut verifier = Verifier::new();
            verifier.feed(&whole).expect("what is read is received");
            assert!(verifier.is_whole());
            snapshot(&[&[0][..], &bytes].concat());
        }
    }
}
