//! Crashes at moments that random steps seldom meet.

use crate::support::*;
use longboat_io::sim::SimDisk;

/// Groups with an entry in every batch: their footer is more than a page long.
const MANY_GROUPS: u64 = 200;

fn footers(disk: &SimDisk) -> usize {
    let starts = |bytes: &[u8]| bytes.chunks(4096).filter(|block| block.starts_with(b"LBFT")).count();
    disk.files().iter().map(|path| starts(&disk.contents(path).expect("there"))).sum()
}

#[test]
fn a_footer_that_is_torn_ends_the_journal_before_it() {
    let mut host = SimHost::new(1);
    (host.config.segment_bytes, host.config.journal_bytes_max) = (256 << 10, 2 << 20);
    let disk = host.disk.clone();
    let (mut log, _, _) = host.open().expect("opens");
    let mut torn = 0;
    for i in 1..=40u64 {
        let sealed = footers(&disk);
        log.submit((1..=MANY_GROUPS).map(|g| append(g, hard(1, 0, i), i, &[b"payload"])).collect());
        while log.poll().expect("nothing fails").in_flight {
            let tries = if footers(&disk) > sealed { 24 } else { 1 };
            for seed in 0..tries {
                torn += u64::from(tries > 1);
                let fork = disk.fork();
                fork.reseed(i * 1000 + seed);
                if seed % 2 == 0 {
                    fork.power_loss()
                } else {
                    fork.kill()
                }
                goes_on(SimHost { disk: fork, config: host.config.clone() }, i);
            }
            host.advance();
        }
    }
    assert!(torn > 100, "only {torn} crashes while a footer was written");
}

/// Opens a store that crashed while batch `i` was under way, goes on, and loses power in the middle of that.
fn goes_on(mut host: SimHost, i: u64) {
    let (mut log, _, groups) = host.open().unwrap_or_else(|e| panic!("batch {i}: {e}"));
    let last = groups.first().map_or(0, |g| g.last.index.0);
    assert!((i - 1..=i).contains(&last), "batch {i}: the last entry is {last}");
    assert!(groups.iter().all(|g| g.last.index.0 == last), "batch {i}: a part of it is there");
    log.submit((1..=MANY_GROUPS).map(|g| append(g, hard(2, 0, last), last + 1, &[b"after"])).collect());
    log.poll().expect("nothing fails");
    let disk = host.disk.clone();
    disk.power_loss();
    drop(log);
    let (mut log, _, groups) = host.open().unwrap_or_else(|e| panic!("batch {i}, again: {e}"));
    let last = groups.first().map_or(0, |g| g.last.index.0);
    assert!(last + 1 >= i, "batch {i}, again: the last entry is {last}");
    for more in 1..=3 {
        let batch = (1..=MANY_GROUPS).map(|g| append(g, hard(3, 0, last), last + more, &[b"more"])).collect();
        write(&mut host, &mut *log, batch);
    }
    drop(log);
    disk.power_loss();
    let (_log, _, groups) = host.open().unwrap_or_else(|e| panic!("batch {i}, at the end: {e}"));
    assert!(groups.iter().all(|g| g.last.index.0 == last + 3));
}
