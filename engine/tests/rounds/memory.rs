//! A host whose memory is full of log takes proposals again as soon as it can.

use crate::alone::{Alone, MILLI, voters};
use crate::list::List;
use longboat_engine::{EngineConfig, GroupShared, ReplicaConfig, Worker};
use longboat_io::Clock;
use longboat_raft::{GroupId, ProposeOptions};
use longboat_rsm::RequestError;
use std::sync::Arc;
use tempfile::TempDir;

pub const GUARDS: &[(&str, fn())] = &[
    ("relief-ends-at-the-bound", many_replicas_that_each_hold_little_do_not_fill_a_host_for_ever),
    ("refused-without-a-look", who_is_refused_for_want_of_memory_has_the_worker_look_for_some),
];

const LOG_MEMORY_BYTES_MAX: u64 = 64 << 10;
/// Entries of one proposal.
const ENTRIES: usize = 200;
/// An entry with eight bytes takes at least this.
const ENTRY_BYTES: u64 = 24;

/// Groups of one voter each, on a host with little memory for their logs, of which each alone may hold more than the host.
struct Crowd {
    alone: Alone,
    groups: Vec<Arc<GroupShared>>,
    _dir: TempDir,
}

impl Crowd {
    fn new(groups: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let config = EngineConfig { log_memory_bytes_max: LOG_MEMORY_BYTES_MAX, ..Alone::engine() };
        assert!(config.log_cache_bytes_max as u64 > LOG_MEMORY_BYTES_MAX);
        let mut alone = Alone::open_set(dir.path(), config);
        let config = |group| ReplicaConfig { group: GroupId(group), ..Alone::config(1) };
        let groups = (1..=groups).map(|g| alone.start_machine(config(g), voters(1), List::default())).collect();
        alone.pass(300);
        Self { alone, groups, _dir: dir }
    }

    fn propose(&self, group: usize) -> Result<(), RequestError> {
        let deadline = self.alone.clock.now().plus_nanos(60_000 * MILLI);
        self.groups[group].enqueue::<List>(vec![7; ENTRIES].into_iter(), ProposeOptions::default(), deadline).map(drop)
    }
}

/// The first ones that are asked let go of all that they hold, which brings the host below its bound and not to where clients are
/// taken again. The others hold no more than they may, and nobody would ever ask them.
fn many_replicas_that_each_hold_little_do_not_fill_a_host_for_ever() {
    let mut crowd = Crowd::new(8);
    let (mut proposed, mut most) = (0, 0);
    while proposed < 8 * LOG_MEMORY_BYTES_MAX / ENTRY_BYTES {
        for group in 0..crowd.groups.len() {
            let taken = crowd.propose(group);
            assert_eq!(taken, Ok(()), "after {proposed} entries, all of them applied");
            proposed += ENTRIES as u64;
            crowd.alone.pass(5);
            most = crowd.alone.host.shared.log_memory.bytes().max(most);
        }
    }
    assert!(most > LOG_MEMORY_BYTES_MAX / 2, "little is held although there is room: {most} bytes");
}

/// When all is applied that a host is full of, no worker hears of it, and a host that refuses everybody may have nothing that
/// would give its workers a round.
fn who_is_refused_for_want_of_memory_has_the_worker_look_for_some() {
    let mut crowd = Crowd::new(8);
    let mut taken = 0;
    // Nothing is applied meanwhile.
    while crowd.propose(taken % 8).is_ok() {
        taken += 1;
        assert!(taken < 100, "the memory has no bound");
        for _ in 0..2 {
            crowd.alone.step();
            crowd.alone.write();
        }
    }
    crowd.alone.step();
    let now = crowd.alone.clock.now();
    crowd.alone.host.applies[0].run_round(now);
    let notifier = Arc::clone(&crowd.alone.host.shared.workers[0].notifier);
    notifier.take();
    assert_eq!(crowd.propose(0), Err(RequestError::Busy), "the worker can't know yet");
    assert!(notifier.take(), "the worker sleeps, and clients are refused for ever");
    crowd.alone.step();
    assert_eq!(crowd.propose(0), Ok(()));
}
