//! Beginning to write a range of a file to the disk: a place for unsafe code.

use std::fs::File;
use std::os::fd::AsRawFd;

/// The kernel begins to write the dirty pages of a range, and goes on in the background.
pub(super) fn begin(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the call takes numbers and a descriptor, which is open as long as `file` is borrowed; it touches no memory of ours.
    // What it returns is of no interest: a sync comes later and tells what went wrong.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}
