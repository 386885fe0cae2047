//! The heap of the process, as far as the operating system has a say in it.
//!
//! Must not know: who uses memory, and when it is worth giving some back.

/// The bytes of a huge page, and what the place of one is a multiple of, on the machines that this runs on.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;
/// The bytes of a page.
#[cfg(target_os = "linux")]
const PAGE_BYTES: usize = 4 << 10;

/// Asks for huge pages behind this memory, where whole ones fit. For memory that is not touched yet and that devices
/// read or write directly: they do that by pieces that lie together, and a megabyte of small pages is 256 pieces.
///
/// A hint: nothing tells whether it was heeded, and memory that was not touched stays without any.
pub fn prefer_huge_pages<T>(memory: &[T]) {
    #[cfg(target_os = "linux")]
    if size_of_val(memory) > 0 {
        let start = memory.as_ptr() as usize / PAGE_BYTES * PAGE_BYTES;
        let end = (memory.as_ptr() as usize + size_of_val(memory)).next_multiple_of(PAGE_BYTES);
        // SAFETY: each page of the range has some of `memory` in it, so all are mapped. The call changes no byte of them, nor
        // who may use them, but only how large the pages are with which the kernel provides what is touched later.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

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
    fn memory_for_which_huge_pages_are_preferred_holds_what_is_put_there() {
        let mut bytes: Vec<u8> = Vec::with_capacity(3 * HUGE_PAGE_BYTES);
        prefer_huge_pages(bytes.spare_capacity_mut());
        prefer_huge_pages(&bytes.spare_capacity_mut()[5..6]);
        prefer_huge_pages::<u8>(&[]);
        prefer_huge_pages(&[(), ()]);
        // Few bytes: the test beside this one counts pages.
        bytes.extend((0..50_000).map(|i| i as u8));
        assert!(bytes.iter().enumerate().all(|(i, b)| *b == i as u8));
    }

    #[test]
    fn what_lies_free_below_what_is_used_goes_back() {
        const BLOCK: usize = 8 << 10;
        let mut blocks: Vec<_> = (0..8 << 10).map(|i| vec![i as u8; BLOCK]).collect();
        // The allocator gives back by itself what lies free at an end, or fills all of one of its heaps: so some stay everywhere.
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        let before = resident_pages();
        give_back();
        let after = resident_pages();
        assert!(after + (4 << 10) < before, "{before} pages were resident, {after} are");
        drop(blocks);
    }
}
