//! The machine's file system.
//!
//! Submitting a write blocks until it is synced: the caller is the log writer's own thread. Where the file system can, a
//! write of whole blocks goes past the page cache (`O_DIRECT`): the copy into it, and finding the dirty pages again for
//! the sync, cost half of the processor time of a small synced write, and twice to thirty times that of a write of
//! megabytes, by whether the cache has pages there. Reads go through the cache, which the kernel keeps
//! in step: it drops what it has of a range that is written directly.

use super::{Disk, DiskFile, DiskLock};
use crate::heap::{HUGE_PAGE_BYTES, prefer_huge_pages};
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file whose lock stands for its directory.
const LOCK_FILE: &str = "LOCK";
/// What a direct write starts, ends and lies in memory at a multiple of, in bytes: no disk has larger sectors.
const DIRECT_ALIGNMENT: usize = 4096;
/// Bytes of one write of zeros: large enough that its cost is the disk's.
const ZEROS_BYTES: usize = 1 << 20;
/// Slices that one `pwritev` takes: the smallest limit of the systems that this runs on.
const SLICES_MAX: usize = 1024;

/// Zeros that a direct write takes, out of one huge page: in one piece for the disk. Nobody ever writes there, so the kernel
/// need not find memory for it.
#[derive(Debug)]
struct Zeros(Vec<u8>);
const _: () = assert!(ZEROS_BYTES <= HUGE_PAGE_BYTES);

impl Zeros {
    fn new() -> Self {
        let memory = vec![0; 2 * HUGE_PAGE_BYTES];
        prefer_huge_pages(&memory);
        Self(memory)
    }

    fn bytes(&self) -> &[u8] {
        let at = self.0.as_ptr().align_offset(HUGE_PAGE_BYTES);
        &self.0[at..at + ZEROS_BYTES]
    }
}

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
        Ok(Box::new(RealFile::new(file, path)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(RealFile::new(file, path)))
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
    path: PathBuf,
    /// The same file once more, for direct writes. Opened at the first one: most files see none.
    direct: Direct,
    /// What the last submitted write came to, until it is asked for.
    outcome: Option<io::Result<()>>,
    /// From the first zeros on that were asked for: there are more to come.
    zeros: Option<Zeros>,
}

#[derive(Debug)]
enum Direct {
    Untried,
    Open(File),
    /// The file system has no direct writes, or wants them otherwise.
    Impossible,
}

impl RealFile {
    fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.to_path_buf(), direct: Direct::Untried, outcome: None, zeros: None }
    }

    /// Writes whole blocks past the page cache; `None` if that can't be done here.
    fn write_direct(&mut self, offset: u64, bytes: &[u8]) -> Option<io::Result<()>> {
        let whole = |n: usize| n.is_multiple_of(DIRECT_ALIGNMENT);
        if !(whole(offset as usize) && whole(bytes.len()) && whole(bytes.as_ptr() as usize)) {
            return None;
        }
        if let Direct::Untried = self.direct {
            let flags = OFlags::DIRECT.bits() as i32;
            let opened = OpenOptions::new().write(true).custom_flags(flags).open(&self.path);
            // The name may be another file's by now.
            let inode = |f: &File| f.metadata().map(|m| (m.dev(), m.ino())).ok();
            let same = |f: &File| inode(f) == inode(&self.file);
            self.direct = opened.ok().filter(same).map_or(Direct::Impossible, Direct::Open);
        }
        let Direct::Open(file) = &self.direct else { return None };
        match file.write_all_at(bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                // The caller writes all of it again through the cache, so it is no matter how far this came.
                self.direct = Direct::Impossible;
                None
            }
            written => Some(written),
        }
    }

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

    fn will_read(&self) {
        // A hint: who reads anyway learns what is wrong with the file.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::WillNeed);
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    #[cfg(target_os = "linux")]
    fn will_sync(&self, offset: u64, len: u64) {
        super::writeback::begin(&self.file, offset, len);
    }

    fn write_zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let (mut at, end) = (offset, offset + len);
        let zeros = self.zeros.take().unwrap_or_else(Zeros::new);
        while at < end {
            let bytes = &zeros.bytes()[..(end - at).min(ZEROS_BYTES as u64) as usize];
            match self.write_direct(at, bytes) {
                Some(written) => written?,
                None => {
                    self.file.write_all_at(bytes, at)?;
                    self.file.sync_data()?;
                }
            }
            at += bytes.len() as u64;
        }
        self.zeros = Some(zeros);
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn submit_write_sync(&mut self, offset: u64, parts: &[&[u8]]) {
        assert!(self.outcome.is_none(), "a write was submitted before the one before it was polled");
        let written = match parts {
            [one] => self.write_direct(offset, one).unwrap_or_else(|| self.file.write_all_at(one, offset)),
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
    fn a_write_of_whole_blocks_and_one_of_parts_of_them_are_seen_alike() {
        let dir = tempfile::tempdir_in(".").expect("a temporary directory on a disk");
        let path = dir.path().join("f");
        let mut file = RealDisk.create(&path).expect("created");
        file.allocate(1 << 16).expect("allocated");
        let other = RealDisk.open(&path).expect("opened");
        let mut want = vec![0; 1 << 16];
        let mut got = want.clone();
        let buffer: Vec<u8> = (0..12 << 10).map(|i| i as u8 | 1).collect();
        let aligned = buffer.as_ptr().align_offset(DIRECT_ALIGNMENT);
        for (at, from, len) in [(4096, aligned, 4096), (8000, 0, 300), (0, aligned, 8192), (4096, 1, 4096)] {
            let bytes = &buffer[from..from + len];
            file.submit_write_sync(at as u64, &[bytes]);
            assert!(matches!(file.poll_write_sync(), Some(Ok(()))));
            want[at..at + len].copy_from_slice(bytes);
            for reader in [&file, &other] {
                reader.read_exact_at(&mut got, 0).expect("read");
                assert_eq!(got, want, "after {len} bytes at {at}");
            }
        }
    }

    #[test]
    fn zeros_are_written_at_any_place_and_in_any_length() {
        let dir = tempfile::tempdir_in(".").expect("a temporary directory on a disk");
        let mut file = RealDisk.create(&dir.path().join("f")).expect("created");
        let len = 3 * ZEROS_BYTES;
        file.write_all_at(&vec![7; len], 0).expect("written");
        let mut want = vec![7; len];
        for (at, bytes) in [(0, 4096), (5000, 1), (8192, ZEROS_BYTES + 4096), (2 * ZEROS_BYTES + 1, 9000), (100, 0)] {
            file.write_zeros(at as u64, bytes as u64).expect("written");
            file.sync_data().expect("synced");
            want[at..at + bytes].fill(0);
            let mut got = vec![1; len];
            file.read_exact_at(&mut got, 0).expect("read");
            assert!(got == want, "after {bytes} bytes at {at}");
        }
        assert_eq!(file.len().expect("length"), len as u64);
    }

    #[test]
    fn what_is_told_of_a_coming_sync_changes_nothing_of_the_file() {
        let dir = tempfile::tempdir_in(".").expect("a temporary directory on a disk");
        let mut file = RealDisk.create(&dir.path().join("f")).expect("created");
        file.write_all_at(&[7; 10_000], 0).expect("written");
        for (offset, len) in [(0, 4096), (5000, 1_000_000), (0, 0), (u64::MAX, u64::MAX)] {
            file.will_sync(offset, len);
        }
        file.sync_data().expect("synced");
        let mut got = vec![0; 10_000];
        file.read_exact_at(&mut got, 0).expect("read");
        assert_eq!((got, file.len().expect("length")), (vec![7; 10_000], 10_000));
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
