//! Another disk that stops for good in the middle of things, as for a process that is killed there: the file system of the
//! machine, for instance, under a store that has files besides. What was done before stays; what comes after fails.

use crate::disk::{Disk, DiskFile, DiskLock, SharedDisk};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A disk that takes so many changes and then no more.
#[derive(Clone, Debug)]
pub struct StoppingDisk {
    inner: SharedDisk,
    changes: Arc<Changes>,
}

#[derive(Debug)]
struct Changes {
    made: AtomicU64,
    max: AtomicU64,
}

impl Changes {
    fn change(&self) -> io::Result<()> {
        if self.made.fetch_add(1, Ordering::SeqCst) < self.max.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(io::Error::other("the disk has stopped"))
    }
}

impl StoppingDisk {
    /// This disk, which does not stop before it is told to.
    pub fn new(inner: SharedDisk) -> Self {
        let changes = Changes { made: AtomicU64::new(0), max: AtomicU64::new(u64::MAX) };
        Self { inner, changes: Arc::new(changes) }
    }

    /// It takes this many more changes.
    pub fn stop_after(&self, changes: u64) {
        let made = self.changes.made.load(Ordering::SeqCst);
        self.changes.max.store(made + changes, Ordering::SeqCst);
    }

    /// Whether it refused one.
    pub fn is_stopped(&self) -> bool {
        self.changes.made.load(Ordering::SeqCst) > self.changes.max.load(Ordering::SeqCst)
    }

    fn file(&self, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(StoppingFile { inner, changes: Arc::clone(&self.changes), refused: None })
    }
}

impl Disk for StoppingDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.changes.change()?;
        self.inner.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.inner.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.changes.change()?;
        Ok(self.file(self.inner.create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.changes.change()?;
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.changes.change()?;
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.changes.change()?;
        self.inner.remove_dir_all(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.inner.exists(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.changes.change()?;
        self.inner.sync_dir(path)
    }

    fn lock_dir(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.inner.lock_dir(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }
}

#[derive(Debug)]
struct StoppingFile {
    inner: Box<dyn DiskFile>,
    changes: Arc<Changes>,
    /// What the last submitted write came to, if it was refused.
    refused: Option<io::Error>,
}

impl DiskFile for StoppingFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.changes.change()?;
        self.inner.allocate(len)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.changes.change()?;
        self.inner.write_all_at(buf, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.changes.change()?;
        self.inner.sync_data()
    }

    fn submit_write_sync(&mut self, offset: u64, parts: &[&[u8]]) {
        match self.changes.change() {
            Ok(()) => self.inner.submit_write_sync(offset, parts),
            Err(error) => self.refused = Some(error),
        }
    }

    fn poll_write_sync(&mut self) -> Option<io::Result<()>> {
        match self.refused.take() {
            Some(error) => Some(Err(error)),
            None => self.inner.poll_write_sync(),
        }
    }
}
