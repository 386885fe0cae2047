//! What the fuzz targets share: an allocator that counts, so that "no more memory than this" is checked and not hoped for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counted.
pub struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn grown(bytes: usize) {
    PEAK.fetch_max(ALLOCATED.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is passed on as it is to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Both may exist for a moment.
        grown(bytes);
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Does it, and fails when it had more than so many bytes of memory at any moment.
pub fn bounded<T>(bytes_max: usize, it: impl FnOnce() -> T) -> T {
    let before = ALLOCATED.load(Relaxed);
    PEAK.store(before, Relaxed);
    let done = it();
    let taken = PEAK.load(Relaxed).saturating_sub(before);
    assert!(taken <= bytes_max, "{taken} bytes of memory were taken, {bytes_max} are allowed");
    done
}
