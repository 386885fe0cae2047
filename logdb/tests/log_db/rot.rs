//! Bytes of a journal that change behind everybody's back: groups whose frames are hit are quarantined, and nobody else.

use crate::damage::*;
use crate::support::*;
use longboat_raft::ReplicaId;
use std::collections::BTreeSet;

#[test]
fn every_byte_of_a_journal_is_refused_or_quarantines_the_groups_that_it_belongs_to() {
    every_byte_rots();
}

#[test]
fn a_quarantined_group_stays_so_wherever_the_journal_goes_and_all_others_are_whole() {
    let quarantined = rot_and_go_on(0..150);
    assert!(quarantined > 30, "only {quarantined} groups were hit where it matters");
}

#[test]
fn a_quarantine_survives_a_crash_at_every_moment() {
    let hits = (0..24).filter(|seed| rot_and_stop_everywhere(*seed)).count();
    assert!(hits > 5, "only {hits} stores were damaged where it matters");
}

#[test]
fn the_replica_of_a_damaged_frame_is_known_only_where_no_damaged_frame_can_have_begun_it() {
    who_was_here();
}

#[test]
fn a_replica_that_is_begun_anew_after_the_damage_is_whole() {
    let again = [vec![removal(1, 4)], vec![bootstrap(1, 5)], vec![append(1, hard(2, 0, 0), 1, &[b"new"])]];
    let batches = [vec![bootstrap(1, 4)], vec![append(1, hard(1, 0, 0), 1, &[b"old"])]];
    let mut host = one_group(batches.into_iter().chain(again).collect(), &[1]);
    let (log, _, found) = host.open().expect("opens");
    assert_eq!((found[0].quarantined, found[0].bootstrap.replica), (None, ReplicaId(5)), "{found:?}");
    assert_eq!(read_all(&*log.reader(), &found[0])[0].2, b"new");
}

#[test]
fn the_data_of_a_quarantined_group_is_removed_and_another_replica_begun() {
    let batches = vec![vec![bootstrap(1, 4)], vec![append(1, hard(1, 0, 0), 1, &[b"old"])]];
    let mut host = one_group(batches, &[1]);
    let (mut log, _, _) = host.open().expect("opens");
    // Its late frames mean nothing.
    write(&mut host, &mut *log, vec![append(1, hard(9, 9, 0), 2, &[b"late"])]);
    write(&mut host, &mut *log, vec![removal(1, 4)]);
    drop(log);
    host.disk.power_loss();
    let found = states(&mut host).expect("opens");
    assert!(found[0].removed && found[0].quarantined.is_none(), "{found:?}");
    assert_eq!(found[0].bootstrap.gone, BTreeSet::from([ReplicaId(4)]), "it never comes back");
    let (mut log, _, _) = host.open().expect("opens");
    write(&mut host, &mut *log, vec![bootstrap(1, 5)]);
    write(&mut host, &mut *log, vec![append(1, hard(3, 0, 0), 1, &[b"new"])]);
    drop(log);
    host.disk.power_loss();
    let found = states(&mut host).expect("opens");
    assert_eq!((found[0].quarantined, found[0].hard_state, found[0].last), (None, hard(3, 0, 0), pos(3, 1)));
}

#[test]
fn no_removal_ends_the_quarantine_of_a_group_whose_replica_is_not_known() {
    let mut host = one_group(vec![vec![bootstrap(1, 4)], vec![append(1, hard(1, 0, 0), 1, &[b"old"])]], &[0]);
    let (mut log, _, _) = host.open().expect("opens");
    write(&mut host, &mut *log, vec![removal(1, 4)]);
    drop(log);
    host.disk.power_loss();
    let found = states(&mut host).expect("opens");
    assert!(found[0].quarantined.is_some() && !found[0].removed, "{found:?}");
}
