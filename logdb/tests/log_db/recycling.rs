//! Going round the journal many times: settling, pins, bounds.

use crate::driver::Driver;
use crate::scenarios::{churn, overwrite_then_recycle, vote_then_recycle};
use crate::support::*;
use crate::workload::{reseal, seeded_steps};
use longboat_io::JobState;
use longboat_logdb::{LogStats, ReadError, Update};
use longboat_raft::{GroupId, Index};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[test]
fn votes_survive_any_number_of_recyclings() {
    vote_then_recycle();
}

#[test]
fn what_was_overwritten_before_it_was_settled_stays_so() {
    overwrite_then_recycle();
}

#[test]
fn committed_entries_survive_their_segments() {
    for mut host in
        [Box::new(SimHost::new(2)) as Box<dyn Host>, Box::new(RealHost::new(longboat_logdb::KeyValue::RocksDb))]
    {
        let (mut log, _, _) = host.open().expect("opens");
        for i in 1..=40u64 {
            let payload = i.to_le_bytes();
            write(&mut *host, &mut *log, vec![append(1, hard(1 + i / 10, 0, i), i, &[&payload])]);
        }
        let mut next = 1;
        churn(&mut *host, &mut *log, &mut next, 200);
        assert!(log.stats().settled_entries >= 40, "{:?}", log.stats());
        let wanted: Vec<Seen> = (1..=40u64).map(|i| (1 + i / 10, i, i.to_le_bytes().to_vec())).collect();
        assert_eq!(read(&*log.reader(), 1, 1, 40, 100).expect("settled"), wanted);
        // Later entries are in segments, and a read goes over both.
        write(&mut *host, &mut *log, vec![append(1, hard(9, 0, 40), 41, &[b"late"])]);
        assert_eq!(read(&*log.reader(), 1, 39, 41, 1 << 20).expect("kept").len(), 3);
        drop(log);
        let (mut log, _, groups) = host.open().expect("opens");
        assert_eq!((groups[0].last, groups[0].terms.len()), (pos(9, 41), 6));
        assert_eq!(read(&*log.reader(), 1, 1, 40, 100).expect("settled"), wanted);
        // Compaction reaches the rows, too.
        write(&mut *host, &mut *log, vec![Update { compact_to: Some(pos(4, 35)), ..state(1, hard(9, 0, 41)) }]);
        churn(&mut *host, &mut *log, &mut next, 200);
        assert_eq!(read(&*log.reader(), 1, 36, 41, 100).expect("kept").len(), 6);
        assert!(read(&*log.reader(), 1, 35, 35, 100).is_err());
    }
}

#[test]
fn an_uncommitted_tail_is_reported_and_lets_go_once_it_is_sealed_again() {
    let mut host = SimHost::new(3);
    let (mut log, _, _) = host.open().expect("opens");
    let mut driver_model = crate::model::ModelGroups::new();
    let batch = vec![append(1, hard(1, 0, 1), 1, &[b"committed", b"not", b"yet"])];
    crate::model::apply(&mut driver_model, &batch);
    write(&mut host, &mut *log, batch);
    let mut next = 1;
    let mut reports = 0;
    for _ in 0..150 {
        churn(&mut host, &mut *log, &mut next, 1);
        let pinned = log.pinned();
        if !pinned.is_empty() {
            reports += 1;
            assert_eq!(pinned, [GroupId(1)]);
            assert!(log.pinned().is_empty(), "reported once");
            assert!(log.stats().pressure_percent > 50);
            write(&mut host, &mut *log, vec![reseal(&driver_model[&GroupId(1)])]);
        }
    }
    assert!(reports > 2, "each time round the journal: {reports}");
    let stats = log.stats();
    assert!(stats.segments + stats.free_segments <= 6, "{stats:?}");
    assert_eq!(read(&*log.reader(), 1, 1, 3, 100).expect("kept").len(), 3);
    drop(log);
    host.disk.power_loss();
    let (log, _, groups) = host.open().expect("opens");
    assert_eq!(groups[0].last, pos(1, 3));
    assert_eq!(read(&*log.reader(), 1, 1, 3, 100).expect("kept")[2].2, b"yet");
}

#[test]
fn a_pinned_journal_grows_past_its_bound_and_says_so_rather_than_stop() {
    let mut host = SimHost::new(4);
    let (mut log, _, _) = host.open().expect("opens");
    write(&mut host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"never committed"])]);
    let mut next = 1;
    churn(&mut host, &mut *log, &mut next, 200);
    let stats = log.stats();
    assert!(stats.segments > 4 && stats.pressure_percent > 100, "{stats:?}");
    let reseal = Update { cut_tail: Some(Index(1)), ..append(1, hard(1, 0, 0), 1, &[b"never committed"]) };
    write(&mut host, &mut *log, vec![reseal]);
    for _ in 0..20 {
        while housekeep(&mut *log) {}
    }
    let stats = log.stats();
    assert!(stats.pressure_percent <= 50, "{stats:?}");
    assert!(stats.segments + stats.free_segments <= 4, "files beyond the bound are removed: {stats:?}");
    drop(log);
    let (_log, _, groups) = host.open().expect("opens");
    assert_eq!((groups[0].last, groups[1].last.index.0), (pos(1, 1), next - 1));
}

#[test]
fn many_steps_go_round_the_journal_and_agree_with_the_model() {
    for seed in 0..6 {
        let mut host = SimHost::new(seed);
        let mut driver = Driver::new(&mut host);
        driver.open().expect("opens");
        let (mut settled, mut written) = (0, 0);
        for step in seeded_steps(seed, 1500) {
            if let Some(log) = &driver.log {
                let stats = log.stats();
                settled += u64::from(stats.settled_entries > 0);
                written = written.max(stats.journal_bytes_written);
            }
            driver.step(&step).expect("nothing fails");
        }
        assert!(settled > 0, "seed {seed} settled nothing");
    }
}

#[test]
fn the_journal_grows_into_files_that_were_written_ahead() {
    let mut host = SimHost::new(6).keeping();
    let (mut log, _, _) = host.open().expect("opens");
    let payload = vec![1u8; 20_000];
    for i in 1..=40 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&payload])]);
        for _ in 0..3 {
            housekeep(&mut *log);
        }
    }
    let stats = log.stats();
    assert!(stats.archived_segments > 5 && stats.unfilled_segments == 0, "{stats:?}");
    // Nobody makes files while nobody looks: then they are taken as they are.
    for i in 41..=60 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&payload])]);
    }
    assert!(log.stats().unfilled_segments > 0, "{:?}", log.stats());
    assert_eq!(read(&*log.reader(), 1, 1, 60, 1000).expect("kept").len(), 60);
}

#[test]
fn a_job_that_is_dropped_half_way_leaves_nothing_behind() {
    let mut host = SimHost::new(5);
    let (mut log, _, _) = host.open().expect("opens");
    let payload = vec![1u8; 20_000];
    for i in 1..=20 {
        write(&mut host, &mut *log, vec![append(1, hard(1, 0, i), i, &[&payload])]);
    }
    for steps in 1.. {
        let Some(mut job) = log.background_job() else { panic!("a pass is due") };
        let others: Vec<_> = std::iter::from_fn(|| log.background_job()).take(3).collect();
        assert!(others.len() <= 1, "one pass at a time, and one job that makes files");
        if (0..steps).any(|_| job.step(30_000) == JobState::Done) {
            break;
        }
    }
    assert!(log.stats().settled_entries > 0);
    assert_eq!(read(&*log.reader(), 1, 1, 20, 1000).expect("kept").len(), 20);
    drop(log);
    let (log, _, groups) = host.open().expect("opens");
    assert_eq!(read_all(&*log.reader(), &groups[0]).len(), 20);
}

#[test]
fn readers_on_other_threads_see_whole_entries_while_segments_are_used_again() {
    read_beside(RealHost::new(longboat_logdb::KeyValue::RocksDb), |stats| stats.settled_entries > 500);
}

#[test]
fn readers_on_other_threads_see_whole_entries_while_archived_segments_are_used_again() {
    let host = RealHost::new(longboat_logdb::KeyValue::RocksDb).keeping();
    read_beside(host, |stats| (1..40).contains(&stats.archived_segments));
}

fn read_beside(mut host: RealHost, went_round: fn(&LogStats) -> bool) {
    let (mut log, _, _) = host.open().expect("opens");
    let reader = log.reader();
    let (durable, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let payload = |i: u64| i.to_le_bytes().repeat(1 + (i % 200) as usize);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2u64)
            .map(|n| {
                let (reader, durable, done) = (&reader, &durable, &done);
                scope.spawn(move || {
                    let (mut reads, mut x) = (0u64, n);
                    while !done.load(Ordering::Acquire) || reads == 0 {
                        let hi = durable.load(Ordering::Acquire);
                        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let lo = 1 + (x >> 33) % hi.max(1);
                        if hi == 0 {
                            std::thread::yield_now();
                            continue;
                        }
                        match read(&**reader, 1, lo, hi.min(lo + 50), 5000) {
                            Ok(seen) => assert!(seen.iter().all(|(_, i, p)| *p == payload(*i)), "from {lo}"),
                            Err(ReadError::Compacted(first)) => assert!(first.0 > lo),
                            Err(e) => panic!("entries from {lo}: {e}"),
                        }
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for i in 1..=2000u64 {
            let entry = append(1, hard(1, 0, i), i, &[&payload(i)]);
            let compact_to = (i % 700 == 0).then(|| pos(1, i - 600));
            write(&mut host, &mut *log, vec![Update { compact_to, ..entry }]);
            durable.store(i, Ordering::Release);
            if let Some(mut job) = log.background_job() {
                scope.spawn(move || while job.step(20_000) != JobState::Done {});
            }
        }
        done.store(true, Ordering::Release);
        assert!(readers.into_iter().all(|r| r.join().expect("no reader panicked") > 0));
    });
    while housekeep(&mut *log) {}
    assert!(went_round(&log.stats()), "{:?}", log.stats());
}
