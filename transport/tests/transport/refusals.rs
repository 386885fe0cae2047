//! Those who are not let in, and those who are thrown out.

use crate::support::*;
use longboat_raft::HostId;
use longboat_transport::{Lane, Sent, StaticRegistry, TcpConfig, Transport};
use std::sync::Arc;

/// Says `bytes` to a host, and waits until that has closed the connection and counted it.
fn is_thrown_out(host: &mut Host, what: &str, bytes: &[u8]) {
    let before = host.closed_bad();
    let mut stranger = Stranger::connect(host.transport.local_address());
    stranger.say(bytes);
    until(what, &mut [host], |hosts| hosts[0].closed_bad() == before + 1 && stranger.is_closed());
}

#[test]
fn garbage_on_the_port_closes_that_connection_and_nothing_else() {
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Control, b"before");
    let connected = two.transport.stats().connected;
    is_thrown_out(&mut two, "an HTTP request", b"GET / HTTP/1.1\r\nHost: longboat\r\n\r\n");
    is_thrown_out(&mut two, "zeros", &[0; 4096]);
    is_thrown_out(&mut two, "one wrong byte", b"x");
    is_thrown_out(&mut two, "a handshake above the limit", b"longboat\xff\xff\xff\xff\0\0\0\0");
    is_thrown_out(&mut two, "a handshake with a wrong checksum", b"longboat\x02\0\0\0\0\0\0\0xx");
    let frames = two.seen.frames.len();
    assert_eq!((frames, two.transport.stats().connected), (1, connected));
    deliver(&mut one, &mut two, Lane::Control, b"after");
    assert!(two.seen.disconnected.is_empty() && one.seen.disconnected.is_empty());
}

#[test]
fn each_mismatch_of_a_handshake_is_refused_with_a_reason() {
    let (registry, _one, mut two) = pair();
    registry.set_peer_address(HostId(2), two.transport.local_address());
    let good = RawHello::good(1, 2);
    let mismatches = [
        ("deployment", RawHello { deployment_id: 1, ..good.clone() }),
        ("host", RawHello { expected_host_id: 3, ..good.clone() }),
        ("registry", RawHello { host_id: 9, ..good.clone() }),
        ("registry", RawHello { host_id: 2, ..good.clone() }),
        ("version", RawHello { lowest_version: 7, highest_version: 9, ..good.clone() }),
        ("version", RawHello { lowest_version: 0, highest_version: 0, ..good.clone() }),
        ("lane", RawHello { lane: 3, ..good.clone() }),
    ];
    for (reason, hello) in mismatches {
        let before = two.closed_bad();
        let mut stranger = Stranger::connect(two.transport.local_address());
        stranger.say(&hello.bytes());
        let mut answer = None;
        until(reason, &mut [&mut two], |hosts| {
            answer = answer.take().or_else(|| stranger.answer());
            answer.is_some() && hosts[0].closed_bad() == before + 1 && stranger.is_closed()
        });
        let refusal = answer.unwrap().refusal;
        assert!(refusal.contains(reason), "{reason}: {refusal:?}");
    }
    assert_eq!(two.seen.connected, []);
}

#[test]
fn a_good_handshake_is_answered_and_its_frames_are_taken() {
    let (_registry, _one, mut two) = pair();
    let mut stranger = Stranger::connect(two.transport.local_address());
    // A later version that still speaks ours; the frame comes along with the handshake.
    let hello = RawHello { highest_version: 9, lane: 1, ..RawHello::good(1, 2) };
    stranger.say(&[hello.bytes(), raw_frame(b"hello"), raw_frame(b"again")].concat());
    until("two frames", &mut [&mut two], |hosts| hosts[0].seen.frames.len() == 2);
    assert_eq!(two.seen.frames[1], (HostId(1), Lane::Bulk, bytes::Bytes::from_static(b"again")));
    let answer = stranger.answer().expect("the answer was sent before the frames were read");
    assert_eq!((answer.host_id, answer.expected_host_id, answer.refusal.as_str()), (2, 1, ""));
    assert_eq!((answer.store_id_low, answer.deployment_id, answer.lane), (1002, DEPLOYMENT, 1));
}

#[test]
fn a_bad_frame_closes_the_connection_after_a_good_handshake() {
    let (_registry, _one, mut two) = pair();
    let hello = RawHello::good(1, 2).bytes();
    let after = |frame: &[u8]| [&hello[..], frame].concat();
    let damaged = |at: usize| {
        let mut frame = raw_frame(b"hello");
        frame[at] ^= 0x10;
        after(&frame)
    };
    is_thrown_out(&mut two, "garbage", &after(&[7; 100]));
    is_thrown_out(&mut two, "a damaged length", &damaged(5));
    is_thrown_out(&mut two, "a damaged body", &damaged(21));
    let resealed = |at: usize, value: &[u8]| {
        let mut frame = raw_frame(b"hello");
        frame[at..at + value.len()].copy_from_slice(value);
        let crc = crc32fast::hash(&frame[..16]);
        frame[16..20].copy_from_slice(&crc.to_le_bytes());
        after(&frame)
    };
    is_thrown_out(&mut two, "another type", &resealed(2, &[2]));
    is_thrown_out(&mut two, "another version", &resealed(3, &[2]));
    is_thrown_out(&mut two, "an oversized frame", &resealed(4, &u32::MAX.to_le_bytes()));
    is_thrown_out(&mut two, "an empty frame", &resealed(4, &[0; 8]));
    is_thrown_out(&mut two, "a checksum over more than there is", &resealed(8, &[6]));
    assert_eq!(two.seen.frames, []);
    assert_eq!(two.transport.stats().frames_received, 0);
}

#[test]
fn a_frame_that_ends_early_is_counted() {
    let (_registry, _one, mut two) = pair();
    let hello = RawHello::good(1, 2).bytes();
    let frame = raw_frame(b"hello");
    let mut stranger = Stranger::connect(two.transport.local_address());
    stranger.say(&[&hello[..], &frame[..frame.len() - 1]].concat());
    until("a greeted connection", &mut [&mut two], |hosts| !hosts[0].seen.connected.is_empty());
    drop(stranger);
    until("the cut is noticed", &mut [&mut two], |hosts| hosts[0].closed_bad() == 1);
    assert_eq!(two.seen.frames, []);
}

#[test]
fn leaving_after_a_whole_frame_is_no_offence() {
    let (_registry, _one, mut two) = pair();
    let mut stranger = Stranger::connect(two.transport.local_address());
    stranger.say(&[RawHello::good(1, 2).bytes(), raw_frame(b"bye")].concat());
    drop(stranger);
    until("the frame", &mut [&mut two], |hosts| hosts[0].seen.frames.len() == 1);
    drop(Stranger::connect(two.transport.local_address()));
    // A later connection is served after the earlier ones were seen to end.
    is_thrown_out(&mut two, "garbage", b"garbage!");
    assert_eq!(two.closed_bad(), 1);
}

#[test]
fn who_says_nothing_is_closed_after_the_deadline() {
    let registry = Arc::new(StaticRegistry::default());
    let mut host = Host::start_with(TcpConfig { handshake_ms_max: 1, ..config(1) }, &registry);
    is_thrown_out(&mut host, "the deadline", b"");
    is_thrown_out(&mut host, "the deadline of a slow one", b"longb");
}

#[test]
fn many_silent_strangers_do_not_keep_a_host_out() {
    let (_registry, mut one, mut two) = pair();
    let strangers: Vec<_> = (0..100).map(|_| Stranger::connect(two.transport.local_address())).collect();
    deliver(&mut one, &mut two, Lane::Control, b"let me in");
    // The bound on silent connections is 64, and the good one was one of 101.
    assert!(two.closed_bad() >= 36, "{} of {} strangers were closed", two.closed_bad(), strangers.len());
}

#[test]
fn a_host_of_another_deployment_is_not_spoken_to() {
    let registry = Arc::new(StaticRegistry::default());
    let mut one = Host::start(1, &registry);
    let mut two = Host::start_with(TcpConfig { deployment_id: 1, ..config(2) }, &registry);
    assert_eq!(one.send(2, Lane::Control, b"hello"), Sent::Unreachable);
    until("both count it", &mut [&mut one, &mut two], |hosts| hosts.iter().all(|host| host.closed_bad() > 1));
    assert_eq!(one.send(2, Lane::Control, b"hello"), Sent::Unreachable);
    assert!(one.seen.connected.is_empty() && two.seen.connected.is_empty());
}

#[test]
fn another_host_at_a_known_address_is_not_spoken_to() {
    let (registry, mut one, mut two) = pair();
    registry.set_peer_address(HostId(3), two.transport.local_address());
    assert_eq!(one.send(3, Lane::Control, b"hello"), Sent::Unreachable);
    until("both count it", &mut [&mut one, &mut two], |hosts| hosts.iter().all(|host| host.closed_bad() > 0));
    assert_eq!(one.send(3, Lane::Control, b"hello"), Sent::Unreachable);
    assert_eq!(two.seen.connected, []);
}
