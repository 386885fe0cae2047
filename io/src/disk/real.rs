//! The machine's file system.
//!
//! Submitting a write blocks until it is synced: the caller is the log writer's own thread.

use super::{Disk, DiskFile, DiskLock};
use rustix::fs::{FallocateFlags, FlockOperation};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The file whose lock stands for its directory.
const LOCK_FILE: &str = "LOCK";
/// Slices that one `pwritev` takes: the smallest limit of the systems that this runs on.
const SLICES_MAX: usize = 1024;

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names =
            fs::read_dir(path)?.map(|e| e.map(|e| PathBuf::from(e.file_name()))).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Box::new(RealFile { file, outcome: None }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(RealFile { file, outcome: None }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock_dir(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join(LOCK_FILE))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(RealLock { _file: file }))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let s = rustix::fs::statvfs(path)?;
        Ok(s.f_bavail.saturating_mul(s.f_frsize))
    }
}

/// A lock that the operating system takes back when the process ends, however it ends.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl DiskLock for RealLock {}

#[derive(Debug)]
struct RealFile {
    file: File,
    /// What the last submitted write came to, until it is asked for.
    outcome: Option<io::Result<()>>,
}

impl RealFile {
    fn write_parts(&self, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        for parts in parts.chunks(SLICES_MAX) {
            let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
            let mut rest = &mut slices[..];
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                let written = match rustix::io::pwritev(&self.file, rest, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => n,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(e) => return Err(e.into()),
                };
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
        }
        Ok(())
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            // A file system without reservation still works: its blocks come with the first write.
            Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(len.max(self.len()?)),
            Err(e) => Err(e.into()),
        }
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn submit_write_sync(&mut self, offset: u64, parts: &[&[u8]]) {
        assert!(self.outcome.is_none(), "a write was submitted before the one before it was polled");
        let written = match parts {
            [one] => self.file.write_all_at(one, offset),
            many => self.write_parts(offset, many),
        };
        self.outcome = Some(written.and_then(|()| self.file.sync_data()));
    }

    fn poll_write_sync(&mut self) -> Option<io::Result<()>> {
        self.outcome.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submitted_parts_are_written_one_after_the_other() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut file = RealDisk.create(&dir.path().join("f")).expect("created");
        file.allocate(8192).expect("allocated");
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i as u8; (i % 3) as usize]).collect();
        let slices: Vec<&[u8]> = parts.iter().map(|p| &p[..]).collect();
        file.submit_write_sync(100, &slices);
        assert!(matches!(file.poll_write_sync(), Some(Ok(()))));
        assert!(file.poll_write_sync().is_none());
        let want = parts.concat();
        let mut got = vec![0; want.len()];
        file.read_exact_at(&mut got, 100).expect("read");
        assert_eq!(got, want);
        assert_eq!(file.len().expect("length"), 8192);
    }

    #[test]
    fn a_locked_directory_is_refused_until_the_lock_is_dropped() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lock = RealDisk.lock_dir(dir.path()).expect("free");
        let refused = RealDisk.lock_dir(dir.path()).expect_err("held");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        RealDisk.lock_dir(dir.path()).expect("free again");
    }

    #[test]
    fn names_are_listed_sorted_and_a_new_file_never_replaces_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["b", "a", "c"] {
            RealDisk.create(&dir.path().join(name)).expect("created");
        }
        let names = RealDisk.list(dir.path()).expect("listed");
        assert_eq!(names, ["a", "b", "c"].map(PathBuf::from));
        let e = RealDisk.create(&dir.path().join("a")).expect_err("exists");
        assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
        RealDisk.sync_dir(dir.path()).expect("synced");
        assert!(RealDisk.free_bytes(dir.path()).expect("known") > 0);
        RealDisk.remove_dir_all(&dir.path().join("none")).expect("nothing to remove");
    }
}
