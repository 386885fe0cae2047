//! What this process has used: processor time and memory. Linux only, as the engine is.

use rustix::time::{ClockId, clock_gettime};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// User and system time of all threads of this process so far.
pub fn cpu_time() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

/// User and system time of the calling thread so far.
pub fn thread_cpu_time() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

/// Resident memory of this process, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub resident_kb: u64,
    /// The most that was resident since the process began.
    pub peak_kb: u64,
}

/// Reads the memory figures from the kernel; zeros where it does not tell.
pub fn memory() -> Memory {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    Memory { resident_kb: status_kb(&status, "VmRSS:"), peak_kb: status_kb(&status, "VmHWM:") }
}

/// The peak is counted anew from here on, where the kernel allows that.
pub fn forget_peak() {
    // 5 is the kernel's word for it, see proc(5); without it the peak stays that of the whole life.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// What says that a process runs under a limit of memory already.
const LIMITED: &str = "LONGBOAT_BENCH_LIMITED";
/// Bytes of the stack of each thread of a limited process: stacks count whether they are touched or not.
const STACK_BYTES: u64 = 512 << 10;

/// Begins this process anew with so many bytes of private memory and no more, whether it touches them or not. Returns in the
/// process that has begun anew.
///
/// # Errors
/// When the kernel refuses.
pub fn limit_memory(bytes: u64) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::os::unix::process::CommandExt;
    if std::env::var_os(LIMITED).is_some() {
        return Ok(());
    }
    for (resource, bytes) in [(Resource::Data, bytes), (Resource::Stack, STACK_BYTES)] {
        let maximum = getrlimit(resource).maximum;
        setrlimit(resource, Rlimit { current: Some(bytes), maximum })?;
    }
    // The stacks of threads are as large as that of the process may be when it begins, or as this says.
    let mut again = std::process::Command::new(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1)).env(LIMITED, "1").env("RUST_MIN_STACK", STACK_BYTES.to_string());
    Err(again.env("MALLOC_ARENA_MAX", "4").exec())
}

fn status_kb(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Whether files under `dir` live in memory, where a sync costs nothing and a figure says nothing.
pub fn is_in_memory(dir: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC)
}

/// Bytes that the files under `dir` take on the disk. What vanishes meanwhile is not counted.
pub fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(m) if m.is_dir() => disk_bytes(&entry.path()),
        Ok(m) => m.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_figures_are_read_from_a_status_page() {
        let page = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(status_kb(page, "VmRSS:"), 1024);
        assert_eq!(status_kb(page, "VmHWM:"), 2048);
        assert_eq!(status_kb(page, "VmSwap:"), 0);
    }

    #[test]
    fn work_shows_in_the_processor_time() {
        let before = cpu_time();
        let mut x = 1u64;
        while cpu_time() == before {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(cpu_time() > before);
    }
}
