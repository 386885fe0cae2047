//! The heap of the process, as far as the operating system has a say in it.
//!
//! Holds the only unsafe code of this crate. Must not know: who uses memory, and when it is worth giving some back.

/// Gives the pages that the allocator holds and nobody uses back to the operating system. Takes milliseconds for each
/// hundred megabytes of heap, in which other threads' allocations may wait: not for a thread that answers somebody.
///
/// With another C library, or where the program has brought an allocator of its own, this does little or nothing.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: malloc_trim(3) may be called by any thread at any time, and touches no memory that is in use.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Resident memory in pages, by proc(5).
    fn resident_pages() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("there is a proc");
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("the second number")
    }

    #[test]
    fn what_lies_free_below_what_is_used_goes_back() {
        const BLOCK: usize = 8 << 10;
        let blocks: Vec<_> = (0..8 << 10).map(|i| vec![i as u8; BLOCK]).collect();
        // The last one keeps the allocator from giving anything back by itself.
        let pin = vec![1u8; BLOCK];
        drop(blocks);
        let before = resident_pages();
        give_back();
        let after = resident_pages();
        assert!(after + (4 << 10) < before, "{before} pages were resident, {after} are");
        drop(pin);
    }
}
