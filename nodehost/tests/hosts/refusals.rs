//! Bad input: a typed error that names the field or id, the value and the limit.

use crate::cluster::{Cluster, members};
use crate::machine::List;
use longboat::*;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;
use tempfile::TempDir;

fn config(dir: &TempDir, id: u64) -> NodeHostConfig {
    NodeHostConfig { data_dir: dir.path().to_path_buf(), host_id: HostId(id), ..NodeHostConfig::default() }
}

fn group(group: u64, replica: u64) -> GroupConfig {
    GroupConfig { group: GroupId(group), replica: ReplicaId(replica), ..GroupConfig::default() }
}

#[test]
fn a_directory_in_use_or_of_another_host_is_refused() {
    let dir = TempDir::new().unwrap();
    let host = NodeHost::open(config(&dir, 1)).unwrap();
    let error = NodeHost::open(config(&dir, 1)).expect_err("in use");
    assert!(error.to_string().contains("in use"), "{error}");
    host.close(Duration::from_secs(5)).unwrap();
    let error = NodeHost::open(config(&dir, 2)).expect_err("another host's");
    assert_eq!(error.to_string(), "data directory belongs to host 1, this is host 2");
}

#[test]
fn an_address_that_cannot_be_bound_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = TempDir::new().unwrap();
    let address = taken.local_addr().unwrap();
    let error = NodeHost::open(NodeHostConfig { listen_address: address, ..config(&dir, 1) }).expect_err("taken");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[test]
fn groups_are_refused_with_their_id() {
    let dir = TempDir::new().unwrap();
    let host = NodeHost::open(config(&dir, 1)).unwrap();
    let start = |c| host.start_replica(ReplicaStart::bootstrap(members()), c, List::default).map(|_| ());
    start(group(7, 1)).unwrap();
    let said = |r: Result<(), StartError>| r.expect_err("refused").to_string();
    assert_eq!(said(start(group(7, 1))), "group 7 is already started on this host");
    assert_eq!(said(start(group(0, 1))), "configuration: group is 0: must not be zero");
    assert!(said(start(group(8, 9))).contains("replica 9"));
    let restart = host.start_replica(ReplicaStart::Restart, group(9, 1), List::default).map(|_| ());
    assert!(said(restart).contains("group 9"));
    let error = host.group::<List>(GroupId(5)).map(|_| ()).expect_err("not here");
    assert_eq!(error, RequestError::NotHere(GroupId(5)));
}

#[test]
fn a_payload_above_the_limit_is_refused_and_leaves_the_batch_untouched() {
    let dir = TempDir::new().unwrap();
    let host = NodeHost::open(NodeHostConfig { payload_bytes_max: 4, ..config(&dir, 1) }).unwrap();
    let members = [(ReplicaId(1), HostId(1))];
    let group = host.start_replica(ReplicaStart::bootstrap(members), group(1, 1), List::default).unwrap();
    let error = group.propose(1, Duration::from_secs(5)).map(|_| ()).expect_err("eight bytes");
    assert_eq!(error, RequestError::PayloadTooLarge { bytes: 8, limit: 4 });
}

#[test]
fn a_full_queue_says_busy_at_once() {
    let dir = TempDir::new().unwrap();
    let host = NodeHost::open(NodeHostConfig { queue_entries_max: 10, ..config(&dir, 1) }).unwrap();
    // Two of three members are nowhere: no leader will ever take what is queued.
    let group = host.start_replica(ReplicaStart::bootstrap(members()), group(1, 1), List::default).unwrap();
    let mut taken = Vec::new();
    let error = loop {
        match group.propose(1, Duration::from_secs(60)) {
            Ok(pending) => taken.push(pending),
            Err(error) => break error,
        }
        assert!(taken.len() < 1000, "the queue has no bound");
    };
    assert_eq!(error, RequestError::Busy);
    assert!(!error.may_have_applied());
}

#[test]
fn a_host_whose_memory_is_full_of_log_says_busy_until_it_is_applied() {
    let mut cluster = Cluster::start_with(1, |config| NodeHostConfig { log_memory_bytes_max: 1 << 20, ..config });
    cluster.put(0, 1, 1);
    let leader = cluster.leader(1);
    (0..3).filter(|&i| i != leader).for_each(|i| cluster.close(i));
    // Nobody else is there: what is proposed stays in memory, neither committed nor applied.
    let group = cluster.group(leader, 1);
    let mut pending = Vec::new();
    let error = loop {
        match group.propose_batch((0..10_000).collect::<Vec<u64>>(), crate::cluster::PATIENCE) {
            Ok(batch) => pending.push(batch),
            Err(error) => break error,
        }
        assert!(pending.len() < 10_000, "the memory has no bound");
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(error, RequestError::Busy);
    (0..3).filter(|&i| i != leader).for_each(|i| cluster.open(i));
    crate::cluster::until("room again", || group.propose(2, crate::cluster::PATIENCE).ok()?.wait().ok());
    crate::cluster::until("less in memory", || (cluster.host(leader).info().log_memory_bytes <= 1 << 20).then_some(()));
}

#[test]
fn garbage_on_the_raft_port_closes_that_connection_and_nothing_else() {
    let cluster = Cluster::start(1, 0);
    cluster.put(0, 1, 1);
    let address = cluster.hosts[0].as_ref().unwrap().local_address();
    let before = cluster.hosts[0].as_ref().unwrap().info().transport.closed_bad;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &[0xff; 4096], &[0; 64]] {
        let mut socket = TcpStream::connect(address).unwrap();
        let _ = socket.write_all(garbage);
        let _ = socket.shutdown(std::net::Shutdown::Write);
    }
    crate::cluster::until("closed connections", || {
        (cluster.hosts[0].as_ref().unwrap().info().transport.closed_bad >= before + 3).then_some(())
    });
    assert_eq!(cluster.put(0, 1, 2), 2);
}
