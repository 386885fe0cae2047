//! What a silent replica takes of the heap.
//!
//! A program of its own, because its allocator counts for the whole process. What is promised: a group with nothing to do takes
//! little, and no more than that because it was busy once. RocksDB takes its memory elsewhere, and is not counted: its part does not
//! grow with silent groups.

use longboat_bench::cluster::{Cluster, ClusterConfig};
use longboat_bench::machine::Counter;
use longboat_bench::restart::write_everywhere;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Groups, each with three replicas: as many as make buffers that a burst has left behind worth giving back.
const GROUPS: usize = 3_000;
const REPLICAS: usize = 3 * GROUPS;
/// Bytes that one takes, with its state machine, its share of what three hosts have in any case, and what tables of twice the room
/// leave empty.
const REPLICA_BYTES_MAX: usize = 2_700;
/// For how long all are given to fall silent, and their hosts to let go of buffers.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

static BYTES: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came; counting touches none of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above; `at` came from the system's allocator, by this one's `alloc` or `realloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        BYTES.fetch_add(size, Ordering::Relaxed);
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_silent_replica_takes_little_of_the_heap() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = ClusterConfig {
        dir: dir.path().to_path_buf(),
        groups: GROUPS,
        quiesce_after_ms: Some(1_000),
        ..ClusterConfig::default()
    };
    let before = BYTES.load(Ordering::Relaxed);
    let cluster = Cluster::<Counter>::start(&config).expect("starts");
    write_everywhere(&cluster, 1).expect("all groups write");
    let busy = (BYTES.load(Ordering::Relaxed) - before) / REPLICAS;
    let begun = Instant::now();
    let (mut silent, mut each) = (0, busy);
    while begun.elapsed() < PATIENCE && !(silent == REPLICAS as u64 && each <= REPLICA_BYTES_MAX) {
        thread::sleep(LOOK);
        silent = cluster.host_figures().silent;
        each = (BYTES.load(Ordering::Relaxed) - before) / REPLICAS;
    }
    cluster.close().expect("closes");
    println!("{each} bytes for each of {silent} silent replicas, {busy} when all had written");
    assert_eq!(silent, REPLICAS as u64, "all fall silent");
    assert!(each <= REPLICA_BYTES_MAX, "{each} bytes for each silent replica");
}
