//! Load on the groups of a running cluster, and what is read at both ends of the measured time.

use crate::client::{self, ClientConfig, Counts, Phase};
use crate::cluster::{Cluster, LogFigures};
use crate::machine::Counter;
use crate::process;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Groups that get the same load, and are counted together.
#[derive(Clone, Debug)]
pub struct Class {
    /// Positions among the cluster's groups.
    pub groups: Range<usize>,
    /// The load of each of them.
    pub config: ClientConfig,
    /// Client threads; the groups are divided among them.
    pub threads: usize,
}

/// What the measured time came to.
#[derive(Clone, Debug)]
pub struct Measured {
    /// By class.
    pub counts: Vec<Counts>,
    /// Seconds.
    pub elapsed: f64,
    /// Processor time of the process, in seconds.
    pub cpu: f64,
    /// What the hosts' journals did.
    pub log: LogFigures,
}

impl Measured {
    /// Completed operations of a class, per second.
    pub fn per_second(&self, class: usize) -> f64 {
        let counts = &self.counts[class];
        (counts.proposals + counts.reads) as f64 / self.elapsed
    }
}

/// Everything that is read at both ends of the measured time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    cpu: Duration,
    log: LogFigures,
}

impl Sample {
    fn take(cluster: &Cluster<Counter>) -> Self {
        Self { at: Instant::now(), cpu: process::cpu_time(), log: cluster.log_figures() }
    }
}

/// Puts load on the classes for `warmup` and then `duration` seconds, of which the latter are counted.
pub fn measure(cluster: &Cluster<Counter>, classes: &[Class], warmup: f64, duration: f64) -> Measured {
    let phase = Arc::new(Phase::default());
    let clients: Vec<Vec<_>> = classes.iter().map(|class| spawn_clients(cluster, class, &phase)).collect();
    thread::sleep(Duration::from_secs_f64(warmup));
    let from = Sample::take(cluster);
    phase.counting.store(true, Ordering::Release);
    thread::sleep(Duration::from_secs_f64(duration));
    phase.counting.store(false, Ordering::Release);
    let to = Sample::take(cluster);
    phase.stop.store(true, Ordering::Release);
    let sum = |clients: Vec<JoinHandle<Counts>>| {
        let mut counts = Counts::default();
        for client in clients {
            client.thread().unpark();
            counts.merge(client.join().expect("a client does not panic"));
        }
        counts
    };
    Measured {
        counts: clients.into_iter().map(sum).collect(),
        elapsed: (to.at - from.at).as_secs_f64(),
        cpu: (to.cpu - from.cpu).as_secs_f64(),
        log: LogFigures { syncs: to.log.syncs - from.log.syncs, entries: to.log.entries - from.log.entries },
    }
}

fn spawn_clients(cluster: &Cluster<Counter>, class: &Class, phase: &Arc<Phase>) -> Vec<JoinHandle<Counts>> {
    let groups = &cluster.groups[class.groups.clone()];
    let config = class.config;
    let spawn = |groups: &[_]| {
        let (groups, phase) = (groups.to_vec(), Arc::clone(phase));
        thread::Builder::new()
            .name("client".into())
            .spawn(move || client::run(groups, config, &phase))
            .expect("the system has a thread for a client")
    };
    groups.chunks(groups.len().div_ceil(class.threads).max(1)).map(spawn).collect()
}
