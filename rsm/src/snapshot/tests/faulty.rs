//! The real disk, with calls that fail on purpose. Only calls that change something are counted.

use longboat_io::{Disk, DiskFile, DiskLock, RealDisk};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub(super) struct FaultyDisk {
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Plan {
    calls: AtomicUsize,
    first_bad: usize,
    last_bad: usize,
}

impl FaultyDisk {
    /// Nothing changes any more after this many calls.
    pub(super) fn dies_after(calls: usize) -> Self {
        Self::new(calls, usize::MAX)
    }

    /// Only this call fails.
    pub(super) fn fails_once_at(call: usize) -> Self {
        Self::new(call, call)
    }

    fn new(first_bad: usize, last_bad: usize) -> Self {
        Self { plan: Arc::new(Plan { calls: AtomicUsize::new(0), first_bad, last_bad }) }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.plan.calls.load(Ordering::Relaxed) > self.plan.first_bad
    }
}

impl Plan {
    fn call(&self) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if (self.first_bad..=self.last_bad).contains(&call) {
            return Err(io::Error::other(format!("call {call} fails")));
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.plan.call()?;
        RealDisk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.plan.call()?;
        Ok(Box::new(FaultyFile { file: RealDisk.create(path)?, plan: Arc::clone(&self.plan), failed: None }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plan.call()?;
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.plan.call()?;
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.plan.call()?;
        RealDisk.remove_dir_all(path)
    }

    fn exists(&self, path: &Path) -> bool {
        RealDisk.exists(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.call()?;
        RealDisk.sync_dir(path)
    }

    fn lock_dir(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        RealDisk.lock_dir(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        RealDisk.free_bytes(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Box<dyn DiskFile>,
    plan: Arc<Plan>,
    /// The submitted write that was not made.
    failed: Option<io::Error>,
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.plan.call()?;
        self.file.allocate(len)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.plan.call()?;
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.plan.call()?;
        self.file.sync_data()
    }

    fn submit_write_sync(&mut self, offset: u64, parts: &[&[u8]]) {
        match self.plan.call() {
            Ok(()) => self.file.submit_write_sync(offset, parts),
            Err(error) => self.failed = Some(error),
        }
    }

    fn poll_write_sync(&mut self) -> Option<io::Result<()>> {
        match self.failed.take() {
            Some(error) => Some(Err(error)),
            None => self.file.poll_write_sync(),
        }
    }
}
