//! Files, as the journal and the snapshots need them.
//!
//! Metadata calls answer at once. The one call whose time matters, writing and syncing, is submit and poll: a real
//! file blocks inside `submit`, a simulated one completes later, so that what happens during an fsync can be simulated.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod real;
#[cfg(target_os = "linux")]
mod writeback;
pub use real::RealDisk;

/// A file system.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Makes a directory and its parents. Durable after [`Disk::sync_dir`] of each parent.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Makes a new file; fails when it exists.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file or directory, replacing a file of that name. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all in it; no error when it does not exist.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Whether a file or directory is there.
    fn exists(&self, path: &Path) -> bool;
    /// Makes the names in a directory durable. Blocks.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes the directory for this process. Released when the lock is dropped.
    ///
    /// # Errors
    /// `WouldBlock` when another host has it.
    fn lock_dir(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;
    /// Free bytes on the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// Whether this error of reading says that the bytes are lost on the disk, as far as this process can tell: the device could not read
/// them, or the file system found its own description of the file damaged, or there is less of the file than was written.
///
/// Not so an error that says something of the process or of the moment (too many open files, no memory, an interruption, no permission):
/// the same bytes may well be read a little later, and a good file is not to be given up for that.
pub fn is_lost_on_disk(error: &io::Error) -> bool {
    use rustix::io::Errno;
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return true;
    }
    let Some(errno) = error.raw_os_error().map(Errno::from_raw_os_error) else { return false };
    // A failed checksum of a block is reported by some file systems and devices as a bad message or an illegal sequence.
    let anywhere = [Errno::IO, Errno::BADMSG, Errno::ILSEQ];
    #[cfg(target_os = "linux")]
    // A medium error, a remote one, and a file system that needs cleaning.
    let here = [Errno::NODATA, Errno::REMOTEIO, Errno::UCLEAN];
    #[cfg(not(target_os = "linux"))]
    let here = [];
    anywhere.contains(&errno) || here.contains(&errno)
}

/// A held directory lock.
pub trait DiskLock: Send + Sync + fmt::Debug {}

/// An open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reserves blocks up to `len` bytes and sets the length; new bytes read as zero.
    fn allocate(&mut self, len: u64) -> io::Result<()>;
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Tells that all of the file will be read soon, from its start. Never blocks for long, and may do nothing.
    fn will_read(&self) {}
    /// Writes all of `buf` at `offset`, into the page cache. Blocks.
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Tells that a sync of this range will be asked for: the disk may begin with what was written there. Never waits for it,
    /// makes nothing durable, and may do nothing.
    fn will_sync(&self, _offset: u64, _len: u64) {}
    /// Writes zeros, so that later writes there are over blocks that were written before. Little of it is left in memory
    /// for the next sync of anybody, and it is durable after [`DiskFile::sync_data`]. Blocks.
    fn write_zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.write_all_at(&vec![0; len as usize], offset)?;
        self.sync_data()
    }
    /// Makes all data durable (`fdatasync`). Blocks.
    fn sync_data(&mut self) -> io::Result<()>;
    /// Starts to write `parts` one after the other at `offset` and then to sync the file's data. One at a time.
    /// The bytes are taken (written or copied) before this returns. One part that starts at a multiple of 4,096 in the
    /// file and in memory and is as long as one is the cheapest to write.
    fn submit_write_sync(&mut self, offset: u64, parts: &[&[u8]]);
    /// Whether the submitted write is durable. `None` while it is under way.
    ///
    /// After an error nothing may be assumed of what was written, and the file must not be written again.
    fn poll_write_sync(&mut self) -> Option<io::Result<()>>;
}

/// A disk that many own.
pub type SharedDisk = Arc<dyn Disk>;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn only_errors_of_the_disk_say_that_bytes_are_lost() {
        for lost in [Errno::IO, Errno::BADMSG] {
            assert!(is_lost_on_disk(&io::Error::from_raw_os_error(lost.raw_os_error())), "{lost}");
        }
        assert!(is_lost_on_disk(&io::ErrorKind::UnexpectedEof.into()));
        for passing in
            [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::ACCESS, Errno::AGAIN, Errno::NOENT]
        {
            assert!(!is_lost_on_disk(&io::Error::from_raw_os_error(passing.raw_os_error())), "{passing}");
        }
        assert!(!is_lost_on_disk(&io::Error::other("of nobody's making")));
    }
}
