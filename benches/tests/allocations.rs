//! How often memory is taken on the way of a proposal, from its call to its answer, over three hosts and their client.
//!
//! A program of its own, because its allocator counts for the whole process. What is promised: memory is taken per batch, not
//! per proposal. So as many calls of twice the proposals take hardly more memory, and a call of hundreds of proposals takes
//! less than one allocation for each.

use longboat_bench::cluster::{Cluster, ClusterConfig, leader_of};
use longboat_bench::machine::{Counter, Load};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Calls of each size that are counted.
const CALLS: u64 = 200;
/// Proposals of one call; the second measurement has twice as many.
const BATCH: usize = 250;
/// Allocations that a call may take, whatever its size: three hosts, each with a frame in and out, a run, a journal record, a
/// visit or two and what is handed to apply.
const PER_CALL_MAX: u64 = 100;
/// Of a proposal more in a call, the share of an allocation that it may cost: for buffers that grow to twice their size.
const PER_PROPOSAL_MAX: f64 = 0.02;
const TIMEOUT: Duration = Duration::from_secs(30);

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came; counting touches none of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above; `at` came from the system's allocator, by this one's `alloc` or `realloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of the whole process during [`CALLS`] calls of so many proposals, one after the other.
fn allocations(cluster: &Cluster<Counter>, batch: usize) -> u64 {
    let handles = &cluster.groups[0];
    let leader = leader_of(handles).expect("the group has a leader");
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..CALLS {
        let commands = std::iter::repeat_n(Load::Sent(&[7; 16]), batch);
        let pending = handles[leader].propose_batch(commands, TIMEOUT).expect("the queue has room");
        assert!(pending.wait().iter().all(Result::is_ok));
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn memory_is_taken_per_batch_and_not_per_proposal() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = ClusterConfig { dir: dir.path().to_path_buf(), groups: 1, ..ClusterConfig::default() };
    let cluster = Cluster::<Counter>::start(&config).expect("starts");
    // Buffers and the runs that are kept in memory have reached their size.
    allocations(&cluster, 2 * BATCH);
    let (single, double) = (allocations(&cluster, BATCH), allocations(&cluster, 2 * BATCH));
    cluster.close().expect("closes");
    let more = double.saturating_sub(single) as f64 / (CALLS as usize * BATCH) as f64;
    println!(
        "{CALLS} calls of {BATCH} proposals: {single} allocations, {} per call; of {}: {double}; {more:.4} per proposal more",
        single / CALLS,
        2 * BATCH,
    );
    assert!(single <= CALLS * PER_CALL_MAX, "{} allocations per call", single / CALLS);
    assert!(more <= PER_PROPOSAL_MAX, "{more} allocations per proposal more");
}
