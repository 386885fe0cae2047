//! How many threads a lone write wakes on its way over three hosts.

use longboat::Threads;
use longboat_bench::cluster::{Cluster, ClusterConfig, leader_of};
use longboat_bench::machine::{Counter, Load};
use std::time::Duration;

/// Writes, one after the other, of which the wakes are counted together, and how often that is done. The fewest count: heartbeats
/// and beats between hosts wake threads too, and how many of them come between two writes is the machine's affair.
const WRITES: u64 = 20;
const TURNS: usize = 15;
/// Threads that are woken for one write, its client's among them: the leader's thread and its log writer, those of both followers,
/// the leader's by each acknowledgement, and the client's. That is nine; the next append tells the followers of the commit. A tenth
/// is the leader's by its own disk, if that was slower than a follower's: of the fewest it is not.
const WAKES_MAX: f64 = 9.0;
const TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn a_lone_write_wakes_nine_threads() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = ClusterConfig {
        dir: dir.path().to_path_buf(),
        groups: 1,
        threads: Threads::Compact,
        ..ClusterConfig::default()
    };
    let cluster = Cluster::<Counter>::start(&config).expect("starts");
    let leader = leader_of(&cluster.groups[0]).expect("the group has a leader");
    let write = || cluster.groups[0][leader].propose(Load::Sent(&[7; 16]), TIMEOUT).expect("the queue has room").wait();
    write().expect("the first finds all connected");
    let turn = || {
        let before = cluster.host_figures().wakes;
        for _ in 0..WRITES {
            write().expect("it is applied");
        }
        (cluster.host_figures().wakes - before) as f64 / WRITES as f64 + 1.0
    };
    let wakes = (0..TURNS).map(|_| turn()).fold(f64::MAX, f64::min);
    cluster.close().expect("closes");
    println!("{wakes:.2} threads woken for a write");
    assert!(wakes <= WAKES_MAX, "{wakes} threads woken for a write");
}
