//! Client sessions: a command that is sent again is applied once.

use crate::cluster::{Cluster, PATIENCE, until};
use crate::machine::List;
use longboat::*;
use std::time::Duration;

fn register(cluster: &Cluster, i: usize) -> ClientSession {
    until("a session", || match cluster.group(i, 1).register_session(PATIENCE).unwrap().wait() {
        Ok(session) => Some(session),
        Err(e) if !e.may_have_applied() => None,
        Err(e) => panic!("registering: {e}"),
    })
}

/// One attempt after the other at host `i`, until one is answered.
fn send(cluster: &Cluster, i: usize, session: &ClientSession, series: Series, value: u64) -> u64 {
    until("an answer", || {
        cluster.group(i, 1).propose_in(session, series, value, Duration::from_secs(2)).ok()?.wait().ok()
    })
}

fn refused(cluster: &Cluster, i: usize, session: &ClientSession, series: Series) -> RequestError {
    cluster.group(i, 1).propose_in(session, series, 666, PATIENCE).unwrap().wait().expect_err("refused")
}

#[test]
fn a_command_that_is_sent_again_is_applied_once_and_answered_alike() {
    let cluster = Cluster::start(1, 0);
    let mut session = register(&cluster, 0);
    let series: Vec<Series> = (0..10).map(|_| session.begin().unwrap()).collect();
    for (n, series) in series.iter().enumerate() {
        // At every host, the leader and the others alike; other commands come between.
        let answers: Vec<u64> = (0..3).map(|i| send(&cluster, i, &session, *series, n as u64)).collect();
        assert_eq!(answers, [2 * n as u64 + 1; 3]);
        cluster.put(n % 3, 1, 100);
    }
    let expected: Vec<u64> = (0..10).flat_map(|n| [n, 100]).collect();
    (0..3).for_each(|i| assert_eq!(cluster.read(i, 1), expected));
    // Commands of a session may be on their way together, with others between them.
    let open: Vec<Series> = (0..30).map(|_| session.begin().unwrap()).collect();
    let group = cluster.group(1, 1);
    let both = open.iter().flat_map(|s| [(*s, 1), (*s, 2)]);
    let pending: Vec<_> = both.map(|(s, v)| group.propose_in(&session, s, v, PATIENCE).unwrap()).collect();
    let answers: Vec<_> = pending.into_iter().map(|p| p.wait().expect("applied, or answered")).collect();
    assert!(answers.chunks(2).all(|two| two[0] == two[1]), "{answers:?}");
    assert_eq!(cluster.read(0, 1)[20..], [1; 30]);
    // What the client says that it has is forgotten.
    series.iter().chain(&open).for_each(|s| session.end(*s));
    let next = session.begin().unwrap();
    send(&cluster, 0, &session, next, 7);
    assert_eq!(refused(&cluster, 2, &session, series[3]), RequestError::SessionAnswered);
}

#[test]
fn a_session_outlives_leaders_snapshots_and_restarts() {
    let mut cluster = Cluster::start(1, 0);
    let mut session = register(&cluster, 1);
    let series = session.begin().unwrap();
    let answer = send(&cluster, 1, &session, series, 5);
    for i in 0..3 {
        let to = ReplicaId(i as u64 + 1);
        cluster.leader(1);
        until("a transfer", || cluster.group(0, 1).transfer_leader(to, PATIENCE).ok()?.wait().ok());
        assert_eq!(send(&cluster, (i + 1) % 3, &session, series, 5), answer);
        let saved = cluster.group(i, 1).request_snapshot(SnapshotOptions::default(), PATIENCE).unwrap().wait();
        assert!(matches!(saved, Ok(SnapshotOutcome::Saved { .. })), "{saved:?}");
        cluster.close(i);
        cluster.open(i);
        assert!(cluster.group(i, 1).info().snapshot_index.0 > 0);
        assert_eq!(send(&cluster, i, &session, series, 5), answer);
    }
    assert_eq!(cluster.read(0, 1), [5]);
}

#[test]
fn an_installed_snapshot_brings_the_sessions_with_it() {
    let mut cluster = Cluster::start(1, 50);
    let mut session = register(&cluster, 0);
    let (first, second) = (session.begin().unwrap(), session.begin().unwrap());
    let down = (cluster.leader(1) + 1) % 3;
    let up = (down + 1) % 3;
    cluster.close(down);
    let answers = [send(&cluster, up, &session, first, 1), send(&cluster, up, &session, second, 2)];
    for _ in 0..30 {
        let batch = cluster.group(up, 1).propose_batch(vec![9; 20], PATIENCE).unwrap();
        assert!(batch.wait().into_iter().all(|r| r.is_ok()));
    }
    until("a truncated log", || (cluster.group(cluster.leader(1), 1).info().first_index.0 > 100).then_some(()));
    cluster.open(down);
    // Answered from the table of the replica that was sent the snapshot.
    assert_eq!(send(&cluster, down, &session, first, 1), answers[0]);
    assert_eq!(send(&cluster, down, &session, second, 2), answers[1]);
    assert!(cluster.group(down, 1).info().snapshots_installed >= 1);
    assert_eq!(cluster.read(down, 1).iter().filter(|v| **v != 9).count(), 2);
}

#[test]
fn sessions_that_were_evicted_or_closed_are_refused_and_nothing_is_applied() {
    let mut cluster = Cluster::start(0, 0);
    (0..3).for_each(|i| cluster.close(i));
    (cluster.groups, cluster.sessions_max) = (1, 2);
    (0..3).for_each(|i| cluster.open(i));
    let mut first = register(&cluster, 0);
    let mut second = register(&cluster, 1);
    let (a, b) = (first.begin().unwrap(), second.begin().unwrap());
    send(&cluster, 0, &second, b, 2);
    send(&cluster, 0, &first, a, 1);
    // The second was not used for longest.
    let mut third = register(&cluster, 2);
    assert_eq!(refused(&cluster, 0, &second, b), RequestError::SessionExpired);
    assert_eq!(send(&cluster, 2, &first, a, 1), 2, "the first is still there");
    let c = third.begin().unwrap();
    send(&cluster, 1, &third, c, 3);
    let close = |id| cluster.group(1, 1).close_session(id, PATIENCE).unwrap().wait().expect("closed");
    assert!(close(third.id()));
    assert!(!close(third.id()), "it is gone");
    assert_eq!(refused(&cluster, 2, &third, c), RequestError::SessionExpired);
    assert_eq!(cluster.read(0, 1), [2, 1, 3]);
}

/// A machine that does not say how results are kept.
struct Plain;

impl StateMachine for Plain {
    type Command = u64;
    type Output = ();
    type Query = ();
    type Answer = ();

    fn apply(&mut self, _: Index, _: u64) -> Result<(), MachineError> {
        Ok(())
    }

    fn lookup(&self, (): ()) -> Result<(), MachineError> {
        Ok(())
    }

    fn save(&self, _: &mut dyn std::io::Write) -> Result<(), MachineError> {
        Ok(())
    }

    fn recover(&mut self, _: &mut dyn std::io::Read) -> Result<(), MachineError> {
        Ok(())
    }
}

#[test]
fn a_machine_without_sessions_refuses_them_and_takes_commands_of_no_session() {
    let cluster = Cluster::start(1, 0);
    let config = GroupConfig { group: GroupId(2), ..cluster.config(0, 2) };
    let alone = ReplicaStart::bootstrap([(ReplicaId(1), HostId(1))]);
    let group = cluster.host(0).start_replica(alone, config, || Plain).expect("starts");
    assert_eq!(group.register_session(PATIENCE).expect_err("refused"), RequestError::SessionsUnsupported);
    let stranger = register(&cluster, 0);
    let mut none = ClientSession::noop();
    assert_eq!(group.close_session(stranger.id(), PATIENCE).expect_err("refused"), RequestError::SessionsUnsupported);
    let series = none.begin().unwrap();
    until("an answer", || group.propose_in(&none, series, 1, PATIENCE).unwrap().wait().ok());
    let mut client = RetryingClient::<Plain>::new([cluster.host(0).clone()], GroupId(2));
    let gave_up = client.execute(&1, PATIENCE).expect_err("no sessions");
    assert_eq!((gave_up.may_have_applied, gave_up.last), (false, RequestError::SessionsUnsupported));
    let mut client = RetryingClient::<Plain>::without_session([cluster.host(0).clone()], GroupId(2));
    assert_eq!(client.execute(&1, PATIENCE), Ok(()));
}

#[test]
fn a_retrying_client_applies_each_command_once_while_hosts_come_and_go() {
    let mut cluster = Cluster::start(1, 40);
    cluster.leader(1);
    let hosts: Vec<NodeHost> = (0..3).map(|i| cluster.host(i).clone()).collect();
    // Each thread asks first another host, and only ones that stay: host 3 comes and goes.
    let threads: Vec<_> = (0..2u64)
        .map(|t| {
            let mut hosts = hosts[..2].to_vec();
            hosts.rotate_left(t as usize);
            std::thread::spawn(move || {
                let mut client =
                    RetryingClient::<List>::new(hosts, GroupId(1)).attempt_timeout(Duration::from_millis(300));
                for n in 0..150 {
                    client.execute(&(t * 1000 + n), PATIENCE).expect("a majority is there");
                }
                client.close(PATIENCE).expect("closes");
            })
        })
        .collect();
    drop(hosts);
    for _ in 0..3 {
        let _ = cluster.group(0, 1).transfer_leader(ReplicaId(3), PATIENCE).map(|p| p.wait());
        cluster.close(2);
        cluster.open(2);
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    let mut values = cluster.read(2, 1);
    values.sort_unstable();
    let expected: Vec<u64> = (0..150).chain(1000..1150).collect();
    assert_eq!(values, expected);
}

#[test]
fn a_retrying_client_whose_session_was_evicted_takes_another_one() {
    let mut cluster = Cluster::start(0, 0);
    (0..3).for_each(|i| cluster.close(i));
    (cluster.groups, cluster.sessions_max) = (1, 1);
    (0..3).for_each(|i| cluster.open(i));
    let mut client = RetryingClient::<List>::new([cluster.host(0).clone()], GroupId(1));
    assert_eq!(client.execute(&1, PATIENCE), Ok(1));
    let first = client.session().expect("it has one").id();
    register(&cluster, 1);
    assert_eq!(client.execute(&2, PATIENCE), Ok(2));
    assert_ne!(client.session().expect("it has one").id(), first);
    assert_eq!(cluster.read(0, 1), [1, 2]);
}
