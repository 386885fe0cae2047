//! What any log store must do.

use crate::support::*;
use longboat_logdb::{GroupState, LogReader, ReadError, Record, Update};
use longboat_raft::{GroupId, HardState, Index, ReplicaId, Run};
use smallvec::smallvec;

/// Runs a test over every kind of store.
fn each(test: impl Fn(&mut dyn Host)) {
    for (name, mut host) in hosts() {
        eprintln!("store: {name}");
        test(&mut *host);
    }
}

fn entry(term: u64, index: u64, payload: &[u8]) -> Seen {
    (term, index, payload.to_vec())
}

#[test]
fn a_new_store_has_no_groups_and_keeps_its_id() {
    each(|host| {
        let (log, store, groups) = host.open().expect("opens");
        assert!(groups.is_empty() && store.0 != 0);
        drop(log);
        let (_log, again, _) = host.open().expect("opens");
        assert_eq!(again, store);
    });
}

#[test]
fn batches_become_durable_in_order_and_are_there_after_reopening() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![bootstrap(1, 11), bootstrap(2, 21)]);
        let seqs = [
            log.submit(vec![append(1, hard(1, 11, 0), 1, &[b"a", b"b"])]),
            log.submit(vec![append(2, hard(1, 22, 0), 1, &[b"x"]), append(1, hard(1, 11, 1), 3, &[b"c"])]),
            log.submit(vec![state(2, hard(5, 0, 1))]),
        ];
        assert!(seqs.is_sorted(), "{seqs:?}");
        assert_eq!(drain(host, &mut *log).expect("nothing fails"), seqs[2]);
        let reader = log.reader();
        let first = vec![entry(1, 1, b"a"), entry(1, 2, b"b"), entry(1, 3, b"c")];
        assert_eq!(read(&*reader, 1, 1, 3, 1 << 20).expect("durable"), first);
        drop((log, reader));
        let (log, _, groups) = host.open().expect("opens");
        assert_eq!(groups.iter().map(|g| g.group.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(groups[0].hard_state, hard(1, 11, 1));
        assert_eq!((groups[0].bootstrap.replica, groups[0].bootstrap.membership.voters.len()), (ReplicaId(11), 3));
        assert_eq!((groups[1].hard_state, groups[1].last), (hard(5, 0, 1), pos(1, 1)));
        assert_eq!(read_all(&*log.reader(), &groups[0]), first);
    });
}

#[test]
fn an_empty_batch_is_durable_with_what_was_submitted_before_it() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        let empty = log.submit(Vec::new());
        assert_eq!(drain(host, &mut *log).expect("nothing fails"), empty);
        log.submit(vec![state(1, hard(1, 1, 0))]);
        let empty = log.submit(Vec::new());
        assert_eq!(drain(host, &mut *log).expect("nothing fails"), empty);
        let syncs = log.stats().syncs;
        log.submit(Vec::new());
        drain(host, &mut *log).expect("nothing fails");
        assert_eq!(log.stats().syncs, syncs, "nothing to sync");
    });
}

#[test]
fn a_cut_tail_is_overwritten_and_never_read_again() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"1", b"2", b"3", b"4", b"5"])]);
        let cut = Update { cut_tail: Some(Index(3)), ..append(1, hard(2, 0, 0), 3, &[b"three"]) };
        write(host, &mut *log, vec![cut]);
        let reader = log.reader();
        assert!(matches!(reader.entries(GroupId(1), Index(3), Index(4), 99), Err(ReadError::Unavailable)));
        write(host, &mut *log, vec![append(1, hard(2, 0, 0), 4, &[b"four"])]);
        let now = vec![entry(1, 1, b"1"), entry(1, 2, b"2"), entry(2, 3, b"three"), entry(2, 4, b"four")];
        assert_eq!(read(&*reader, 1, 1, 4, 1).expect("durable"), now);
        drop((log, reader));
        let (log, _, groups) = host.open().expect("opens");
        assert_eq!((groups[0].last, &groups[0].terms), (pos(2, 4), &vec![pos(1, 1), pos(2, 3)]));
        assert_eq!(read_all(&*log.reader(), &groups[0]), now);
    });
}

#[test]
fn a_cut_without_entries_shortens_the_log() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"1", b"2"])]);
        write(host, &mut *log, vec![Update { cut_tail: Some(Index(2)), ..state(1, hard(2, 0, 0)) }]);
        drop(log);
        let (_log, _, groups) = host.open().expect("opens");
        assert_eq!((groups[0].last, groups[0].terms.len()), (pos(1, 1), 1));
    });
}

#[test]
fn compacted_entries_are_refused_and_the_place_stays_known() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![append(1, hard(1, 0, 3), 1, &[b"1", b"2", b"3", b"4"])]);
        write(host, &mut *log, vec![Update { compact_to: Some(pos(1, 3)), ..state(1, hard(1, 0, 3)) }]);
        let reader = log.reader();
        let refused = reader.entries(GroupId(1), Index(3), Index(4), 99);
        assert!(matches!(refused, Err(ReadError::Compacted(Index(4)))), "{refused:?}");
        assert_eq!(read(&*reader, 1, 4, 4, 99).expect("kept"), [entry(1, 4, b"4")]);
        write(host, &mut *log, vec![Update { compact_to: Some(pos(1, 4)), ..state(1, hard(1, 0, 4)) }]);
        drop((log, reader));
        let (_log, _, groups) = host.open().expect("opens");
        assert_eq!((groups[0].start, groups[0].last, groups[0].terms.len()), (pos(1, 4), pos(1, 4), 0));
    });
}

#[test]
fn one_update_can_do_all_of_it_in_the_order_of_the_contract() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"1", b"2", b"3"])]);
        let all = Update {
            cut_tail: Some(Index(2)),
            runs: smallvec![run(1, 2, &[b"zwei"]), run(2, 3, &[b"drei", b"vier"])],
            compact_to: Some(pos(1, 2)),
            ..snapshot(1, hard(2, 3, 3), pos(1, 1), false)
        };
        write(host, &mut *log, vec![all]);
        drop(log);
        let (log, _, groups) = host.open().expect("opens");
        let g = &groups[0];
        assert_eq!((g.start, g.last, &g.terms), (pos(1, 2), pos(2, 4), &vec![pos(2, 3)]));
        assert_eq!(g.snapshot.as_ref().map(|s| s.meta.pos), Some(pos(1, 1)));
        assert_eq!(read_all(&*log.reader(), g), [entry(2, 3, b"drei"), entry(2, 4, b"vier")]);
    });
}

#[test]
fn a_leaders_snapshot_replaces_the_log() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"1", b"2", b"3"])]);
        write(host, &mut *log, vec![snapshot(1, hard(4, 0, 100), pos(4, 100), true)]);
        let refused = log.reader().entries(GroupId(1), Index(1), Index(1), 99);
        assert!(matches!(refused, Err(ReadError::Compacted(Index(101)))), "{refused:?}");
        write(host, &mut *log, vec![append(1, hard(4, 0, 100), 101, &[b"next"])]);
        drop(log);
        let (log, _, groups) = host.open().expect("opens");
        let g = &groups[0];
        assert_eq!((g.start, g.last, &g.terms), (pos(4, 100), pos(4, 101), &vec![pos(4, 101)]));
        let record = g.snapshot.as_ref().expect("recorded");
        assert_eq!((record.bytes, record.meta.membership.voters.len()), (1234, 5));
        assert_eq!(read_all(&*log.reader(), g), [entry(4, 101, b"next")]);
    });
}

#[test]
fn a_removed_group_leaves_its_tombstone_and_may_be_made_anew() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![bootstrap(1, 11), append(1, hard(3, 11, 2), 1, &[b"1", b"2"])]);
        let removed = Record::Removed { replica: ReplicaId(11) };
        let removal = Update { record: Some(Box::new(removed)), ..state(1, hard(3, 11, 2)) };
        write(host, &mut *log, vec![removal]);
        assert!(matches!(log.reader().entries(GroupId(1), Index(1), Index(1), 9), Err(ReadError::Unavailable)));
        write(host, &mut *log, vec![state(1, hard(4, 1, 2))]);
        drop(log);
        let (mut log, _, groups) = host.open().expect("opens");
        let mut gone = GroupState { group: GroupId(1), removed: true, ..GroupState::default() };
        gone.bootstrap.replica = ReplicaId(11);
        gone.bootstrap.gone.insert(ReplicaId(11));
        assert_eq!(groups, [gone]);
        write(host, &mut *log, vec![bootstrap(1, 12), append(1, hard(1, 12, 0), 1, &[b"new"])]);
        drop(log);
        let (log, _, groups) = host.open().expect("opens");
        assert_eq!((groups[0].removed, groups[0].bootstrap.replica), (false, ReplicaId(12)));
        assert_eq!(read_all(&*log.reader(), &groups[0]), [entry(1, 1, b"new")]);
    });
}

#[test]
fn a_tombstone_that_a_bootstrap_has_overtaken_takes_nothing_from_the_new_replica() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![bootstrap(1, 11), append(1, hard(3, 11, 2), 1, &[b"1", b"2"])]);
        write(host, &mut *log, vec![bootstrap(1, 12), append(1, hard(5, 12, 1), 1, &[b"new"])]);
        let removed = Record::Removed { replica: ReplicaId(11) };
        let removal = Update { group: GroupId(1), record: Some(Box::new(removed)), ..Update::default() };
        write(host, &mut *log, vec![removal]);
        let look = |reader: &dyn LogReader, groups: &[GroupState]| {
            let g = &groups[0];
            assert_eq!((g.removed, g.bootstrap.replica, g.hard_state), (false, ReplicaId(12), hard(5, 12, 1)));
            assert_eq!(read_all(reader, g), [entry(5, 1, b"new")]);
        };
        drop(log);
        let (mut log, _, groups) = host.open().expect("opens");
        look(&*log.reader(), &groups);
        // The new replica goes on, over another crash.
        write(host, &mut *log, vec![append(1, hard(5, 12, 2), 2, &[b"newer"])]);
        drop(log);
        let (_, _, groups) = host.open().expect("opens");
        assert_eq!((groups[0].last, groups[0].hard_state), (pos(5, 2), hard(5, 12, 2)));
    });
}

#[test]
fn reads_are_bounded_by_bytes_and_yield_at_least_one_entry() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        let big = vec![7u8; 1000];
        let payloads: Vec<&[u8]> = (0..20).map(|_| &big[..]).collect();
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &payloads[..10])]);
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 11, &payloads[10..])]);
        let reader = log.reader();
        let count = |lo: u64, bytes: usize| -> usize {
            let runs = reader.entries(GroupId(1), Index(lo), Index(20), bytes).expect("durable");
            assert_eq!(runs[0].first(), Index(lo));
            runs.iter().map(Run::count).sum()
        };
        assert_eq!(count(1, 0), 1);
        assert_eq!(count(20, 1), 1);
        assert!((2..6).contains(&count(4, 4000)), "about 4,000 bytes are {} entries", count(4, 4000));
        assert!((12..=16).contains(&count(2, 15_000)), "about 15,000 bytes are {} entries", count(2, 15_000));
        assert_eq!(count(1, 1 << 20), 20);
        for (lo, hi) in [(21, 21), (5, 4), (20, 21)] {
            let refused = reader.entries(GroupId(1), Index(lo), Index(hi), 99);
            assert!(matches!(refused, Err(ReadError::Unavailable)), "{lo}..={hi}: {refused:?}");
        }
        assert!(matches!(reader.entries(GroupId(9), Index(1), Index(1), 9), Err(ReadError::Unavailable)));
    });
}

#[test]
fn only_what_is_durable_is_read() {
    each(|host| {
        if !host.has_journal() {
            return;
        }
        let (mut log, _, _) = host.open().expect("opens");
        log.submit(vec![append(1, hard(1, 0, 0), 1, &[b"1"])]);
        let reader = log.reader();
        assert!(matches!(reader.entries(GroupId(1), Index(1), Index(1), 9), Err(ReadError::Unavailable)));
        drain(host, &mut *log).expect("nothing fails");
        assert_eq!(read(&*reader, 1, 1, 1, 9).expect("durable"), [entry(1, 1, b"1")]);
    });
}

#[test]
fn batches_that_wait_share_one_sync_up_to_four_mebibytes() {
    each(|host| {
        if !host.has_journal() {
            return;
        }
        let (mut log, _, _) = host.open().expect("opens");
        write(host, &mut *log, vec![state(1, HardState::default())]);
        let before = log.stats().syncs;
        for i in 0..50 {
            log.submit(vec![append(1 + i % 5, hard(1, 0, 0), 1 + i / 5, &[b"entry"])]);
        }
        drain(host, &mut *log).expect("nothing fails");
        assert_eq!(log.stats().syncs, before + 1);
        assert_eq!(log.stats().entries, 50);
    });
}

#[test]
fn an_update_larger_than_a_segment_is_kept() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        let big = vec![3u8; 3 * SEGMENT_BYTES as usize];
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 1, &[b"small"])]);
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 2, &[&big])]);
        write(host, &mut *log, vec![append(1, hard(1, 0, 0), 3, &[b"small again"])]);
        drop(log);
        let (log, _, groups) = host.open().expect("opens");
        let seen = read_all(&*log.reader(), &groups[0]);
        assert_eq!(seen, [entry(1, 1, b"small"), entry(1, 2, &big), entry(1, 3, b"small again")]);
    });
}

#[test]
fn a_closed_store_has_all_that_was_submitted() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        for i in 1..=20 {
            log.submit(vec![append(1, hard(1, 0, 0), i, &[b"entry"])]);
        }
        log.close().expect("closes");
        drop(log);
        let (_log, _, groups) = host.open().expect("opens");
        assert_eq!(groups[0].last, pos(1, 20));
    });
}

#[test]
fn being_idle_changes_nothing_that_is_kept() {
    each(|host| {
        let (mut log, _, _) = host.open().expect("opens");
        for i in 1..=5 {
            write(host, &mut *log, vec![append(1, hard(1, 0, 0), i, &[b"entry"])]);
            for _ in 0..3 {
                log.idle().expect("nothing fails");
                drain(host, &mut *log).expect("nothing fails");
            }
        }
        let stats = log.stats();
        assert!(!host.has_journal() || stats.syncs == 10, "one seal for each rest: {stats:?}");
        drop(log);
        let (_log, _, groups) = host.open().expect("opens");
        assert_eq!(groups[0].last, pos(1, 5));
    });
}
