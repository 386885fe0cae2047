//! The check itself: a loss must be seen.

#![allow(clippy::unwrap_used)]

use crate::load::{self, Load};
use longboat_examples::client::{Client, Reply};
use longboat_examples::host::{KvHost, Settings};
use longboat_examples::server::Server;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_write_that_is_gone_or_changed_is_counted_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let host = KvHost::open(&Settings {
        members: [].into(),
        host_id: 1,
        peers: [(1, "127.0.0.1:0".parse().unwrap())].into(),
        groups: 4,
        data: dir.path().join("host"),
        snapshot_entries: 0,
        compaction_overhead: 0,
        election_timeout_ms: 100,
    });
    let server = Server::start("127.0.0.1:0".parse().unwrap(), 1, Arc::new(host.unwrap())).unwrap();
    let addresses = [server.address()];
    let load = Load::start("x", 2, &addresses).unwrap();
    while load.acknowledged() < 600 {
        std::thread::yield_now();
    }
    let written = load.finish();
    assert!(load::count(&written) >= 600);
    assert_eq!(load::count_lost(&written, &addresses), Ok(0));

    let mut client = Client::connect(server.address(), Duration::from_secs(15)).unwrap();
    assert_eq!(client.ask(&[b"DEL", b"x0:0"]).unwrap(), Reply::Integer(1));
    assert_eq!(client.ask(&[b"SET", b"x1:1", b"other", b"XX"]).unwrap(), Reply::Simple("OK".to_owned()));
    assert_eq!(load::count_lost(&written, &addresses), Ok(2));
}
