//! Segment files and their uses.
//!
//! A file is used, settled, and used again for ever: overwriting blocks that were written once costs a quarter of
//! extending a file. Names are integers and say nothing; the header block tells what a file holds.

use crate::format::{BLOCK, FOOTER_HEADER_BYTES, FooterHeader, FooterOpening, SegmentHeader, body_seed, crc, padded};
use bytes::Bytes;
use longboat_io::{DiskFile, SharedDisk};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A file of the journal. Readers share it; it is used again only when nobody else holds it.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) path: PathBuf,
    /// The file's length in bytes: those with one huge entry are longer than the others.
    pub(crate) capacity: u64,
    /// Its blocks before this place were written once, or are not worth writing ahead.
    filled_to: AtomicU64,
    disk: SharedDisk,
    file: Mutex<Handle>,
    /// While it is being filled.
    filling: Option<Box<dyn DiskFile>>,
}

/// For reading a file.
#[derive(Debug)]
struct Handle {
    open: Option<Arc<dyn DiskFile>>,
    /// Whether it stays open once it is. Otherwise each read opens it for itself: what a reader opens after the file was let
    /// go of is nobody's to close.
    keep: bool,
}

/// The end of the name of a segment's file.
const EXTENSION: &str = "seg";

impl SegmentFile {
    /// Makes a file with its blocks reserved, durable but for its contents.
    pub(crate) fn create(disk: &SharedDisk, dir: &Path, number: u64, capacity: u64) -> io::Result<Self> {
        let path = dir.join(Self::name(number));
        let mut file = disk.create(&path)?;
        let reserved = file.allocate(capacity).and_then(|()| file.sync_data()).and_then(|()| disk.sync_dir(dir));
        if let Err(e) = reserved {
            // On a full disk every attempt would leave one more.
            if let Err(error) = disk.remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "a journal segment without its space stays behind");
            }
            return Err(e);
        }
        Ok(Self::new(disk, path, capacity, 0, file))
    }

    fn new(disk: &SharedDisk, path: PathBuf, capacity: u64, filled_to: u64, file: Box<dyn DiskFile>) -> Self {
        let file = Mutex::new(Handle { open: Some(file.into()), keep: true });
        Self { path, capacity, filled_to: AtomicU64::new(filled_to), disk: Arc::clone(disk), file, filling: None }
    }

    /// From here on it stays open, once it is.
    pub(crate) fn keep_open(&self) {
        self.file.lock().keep = true;
    }

    /// From here on it is open only while it is read.
    pub(crate) fn let_go(&self) {
        *self.file.lock() = Handle { open: None, keep: false };
    }

    /// Closes it until somebody reads it.
    pub(crate) fn close(&self) {
        self.file.lock().open = None;
    }

    fn handle(&self) -> io::Result<Arc<dyn DiskFile>> {
        let mut handle = self.file.lock();
        if let Some(open) = &handle.open {
            return Ok(Arc::clone(open));
        }
        let open: Arc<dyn DiskFile> = self.disk.open(&self.path)?.into();
        handle.open = handle.keep.then(|| Arc::clone(&open));
        Ok(open)
    }

    /// Writes about `budget` bytes of zeros where nothing was written yet; the last ones are synced. For files without a
    /// use only.
    pub(crate) fn fill(&mut self, budget: u64) -> io::Result<()> {
        let position = *self.filled_to.get_mut();
        let until = position.saturating_add(budget.max(BLOCK)).min(self.capacity) / BLOCK * BLOCK;
        let file = match &mut self.filling {
            Some(file) => file,
            none => none.insert(self.disk.open(&self.path)?),
        };
        file.write_zeros(position, until - position)?;
        if until == self.capacity {
            // One commit of the file system for all of the file: what costs a sync into reserved blocks one each.
            file.sync_data()?;
            self.filling = None;
        }
        *self.filled_to.get_mut() = until;
        Ok(())
    }

    /// Puts an end to filling it, wherever that is.
    pub(crate) fn stop_filling(&mut self) {
        self.filling = None;
    }

    pub(crate) fn is_filled(&self) -> bool {
        self.filled_to.load(Ordering::Relaxed) >= self.capacity
    }

    /// From here on its blocks are not worth writing ahead: they were written in a use, or that failed.
    pub(crate) fn set_filled(&self) {
        self.filled_to.store(self.capacity, Ordering::Relaxed);
    }

    /// Opens a file of before.
    pub(crate) fn open(disk: &SharedDisk, path: &Path) -> io::Result<Self> {
        let file = disk.open(path)?;
        let capacity = file.len()? / BLOCK * BLOCK;
        Ok(Self::new(disk, path.to_path_buf(), capacity, capacity, file))
    }

    fn name(number: u64) -> String {
        format!("{number:08}.{EXTENSION}")
    }

    /// The number in the name of a segment's file; `None` for any name that a segment is never given.
    pub(crate) fn number(name: &Path) -> Option<u64> {
        let number = name.file_stem()?.to_str()?.parse().ok()?;
        (Path::new(&Self::name(number)) == name).then_some(number)
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buf = vec![0; len];
        self.read_into(&mut buf, offset)?;
        Ok(buf.into())
    }

    /// Tells that all of it will be read soon.
    pub(crate) fn will_read(&self) {
        // Who reads it learns why it can't be opened.
        if let Ok(file) = self.handle() {
            file.will_read();
        }
    }

    pub(crate) fn read_into(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.handle()?.read_exact_at(buf, offset)
    }
}

/// Where a sealed segment's footer is, and what it says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed {
    pub(crate) offset: u64,
    pub(crate) footer: FooterHeader,
}

/// One use of a segment file.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) use_number: u64,
    pub(crate) use_id: u64,
    pub(crate) first_seq: u64,
    /// What the checksums of headers start from.
    pub(crate) seed: u32,
    /// Set when the footer is durable.
    pub(crate) sealed: OnceLock<Sealed>,
    /// Set once the footer's list of frames was read and found to be what was written.
    list_checked: OnceLock<()>,
    /// From where on the records were written under which opening of the store, ascending.
    openings: Mutex<SmallVec<[FooterOpening; 1]>>,
}

impl Segment {
    pub(crate) fn new(file: Arc<SegmentFile>, header: &SegmentHeader) -> Self {
        let SegmentHeader { use_number, use_id, first_seq, .. } = *header;
        let openings = Mutex::new(SmallVec::new());
        Self {
            file,
            use_number,
            use_id,
            first_seq,
            seed: header.seed(),
            sealed: OnceLock::new(),
            list_checked: OnceLock::new(),
            openings,
        }
    }

    /// The records from `offset` on were written under this opening of the store.
    pub(crate) fn open_from(&self, offset: u64, opening: u64) {
        let mut openings = self.openings.lock();
        if openings.last().is_none_or(|last| last.opening != opening) {
            let offset = u32::try_from(offset).expect("segments are below 4 GiB");
            openings.push(FooterOpening { opening, offset });
        }
    }

    /// What the checksums of a frame or a directory at this place start from.
    pub(crate) fn seed_at(&self, offset: u64) -> u32 {
        let openings = self.openings.lock();
        let at = openings.partition_point(|o| u64::from(o.offset) <= offset);
        body_seed(self.seed, at.checked_sub(1).map_or(0, |at| openings[at].opening))
    }

    /// The body of a sealed segment's footer, its checksum checked.
    pub(crate) fn footer_body(&self) -> Result<Bytes, String> {
        let sealed = self.sealed.get().expect("only asked of sealed segments");
        let path = self.file.path.display();
        let length = sealed.footer.length as usize - FOOTER_HEADER_BYTES;
        let read = self.file.read(sealed.offset + FOOTER_HEADER_BYTES as u64, length);
        let bytes = read.map_err(|e| format!("the footer of {path}: {e}"))?;
        if crc(body_seed(self.seed, sealed.footer.opening), &bytes) != sealed.footer.body_crc {
            return Err(format!("the footer of {path} is damaged"));
        }
        self.list_checked.get_or_init(|| ());
        Ok(bytes)
    }

    /// Makes sure, once for as long as the segment is known, that its footer's list of frames is what was written. A list that
    /// is wrong can lead to a frame that was overwritten, whose own checksums are right.
    pub(crate) fn check_list(&self) -> Result<(), String> {
        if self.list_checked.get().is_none() {
            self.footer_body()?;
        }
        Ok(())
    }

    /// The openings that have records here.
    pub(crate) fn openings(&self) -> SmallVec<[FooterOpening; 1]> {
        self.openings.lock().clone()
    }
}

/// Reads a file forwards in large pieces, handing out slices of them.
#[derive(Debug)]
pub(crate) struct Window<'a> {
    file: &'a SegmentFile,
    base: u64,
    piece: Vec<u8>,
    /// Pieces are at least this long, in bytes.
    piece_bytes: usize,
}

impl<'a> Window<'a> {
    pub(crate) fn new(file: &'a SegmentFile, piece_bytes: usize) -> Self {
        Self { file, base: 0, piece: Vec::new(), piece_bytes }
    }

    /// The bytes there; `None` when the file ends before.
    pub(crate) fn bytes(&mut self, offset: u64, len: u64) -> io::Result<Option<&[u8]>> {
        let end = offset.saturating_add(len);
        if end > self.file.capacity {
            return Ok(None);
        }
        if offset < self.base || end > self.base + self.piece.len() as u64 {
            let piece = padded(len).max(self.piece_bytes as u64).min(self.file.capacity - offset);
            // What stays of the piece before is read over, and only what is new costs the filling.
            self.piece.resize(piece as usize, 0);
            if let Err(e) = self.file.read_into(&mut self.piece, offset) {
                self.piece.clear();
                return Err(e);
            }
            self.base = offset;
        }
        let at = (offset - self.base) as usize;
        Ok(Some(&self.piece[at..at + len as usize]))
    }
}
