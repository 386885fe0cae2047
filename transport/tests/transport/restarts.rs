//! Connections that break, move and come back.

use crate::support::*;
use longboat_raft::HostId;
use longboat_transport::{Lane, Sent, StaticRegistry, TcpConfig, Transport};
use std::sync::Arc;

/// Host 2 at its former address, in its next life.
fn restarted(two: Host, registry: &Arc<StaticRegistry>, incarnation: u64) -> Host {
    let address = two.transport.local_address();
    two.transport.close();
    drop(two);
    Host::start_with(TcpConfig { listen_address: address, incarnation, ..config(2) }, registry)
}

#[test]
fn a_host_that_restarts_is_found_again() {
    let (registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Bulk, b"first life");
    deliver(&mut two, &mut one, Lane::Control, b"first life");
    for incarnation in 2..5 {
        two = restarted(two, &registry, incarnation);
        deliver(&mut one, &mut two, Lane::Bulk, format!("life {incarnation}").as_bytes());
        deliver(&mut two, &mut one, Lane::Control, format!("life {incarnation}").as_bytes());
        assert_eq!(two.seen.frames.len(), 1);
        assert!(one.seen.disconnected.contains(&HostId(2)), "the loss was not reported");
        one.seen.disconnected.clear();
    }
    assert_eq!(one.closed_bad(), 0);
}

#[test]
fn a_lost_connection_is_made_again_without_a_frame_to_send() {
    let (registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Control, b"first life");
    let dropped = one.transport.stats().dropped_unreachable;
    let mut two = restarted(two, &registry, 2);
    // Ours to the second life, and its own to us.
    until("two connections", &mut [&mut one, &mut two], |hosts| {
        hosts[0].seen.connected.iter().filter(|(_, _, incarnation)| *incarnation == 2).count() == 2
    });
    assert_eq!(one.send(2, Lane::Control, b"second life"), Sent::Queued);
    assert_eq!(one.transport.stats().dropped_unreachable, dropped);
}

#[test]
fn a_new_incarnation_replaces_the_connections_of_the_former() {
    let (_registry, _one, mut two) = pair();
    let address = two.transport.local_address();
    let mut former: Vec<Stranger> = (0..3).map(|_| Stranger::connect(address)).collect();
    for (lane, stranger) in former.iter_mut().enumerate() {
        stranger.say(&RawHello { lane: lane as u32, ..RawHello::good(1, 2) }.bytes());
    }
    until("three lanes", &mut [&mut two], |hosts| hosts[0].seen.connected.len() == 3);
    let mut later = Stranger::connect(address);
    later.say(&RawHello { incarnation: 2, ..RawHello::good(1, 2) }.bytes());
    until("all three are closed", &mut [&mut two], |_| former.iter_mut().all(Stranger::is_closed));
    assert_eq!((two.closed_bad(), two.seen.disconnected.as_slice()), (0, &[HostId(1)][..]));
    // What the former life left in the backlog must not throw out the present one.
    let mut ghost = Stranger::connect(address);
    ghost.say(&RawHello::good(1, 2).bytes());
    until("the ghost is refused", &mut [&mut two], |hosts| ghost.is_closed() && hosts[0].closed_bad() == 1);
    later.say(&raw_frame(b"still here"));
    until("a frame", &mut [&mut two], |hosts| hosts[0].seen.frames.len() == 1);
}

#[test]
fn a_second_connection_of_a_lane_replaces_the_first() {
    let (_registry, _one, mut two) = pair();
    let connect = || Stranger::connect(two.transport.local_address());
    let (mut first, mut other_lane, mut second) = (connect(), connect(), connect());
    first.say(&RawHello::good(1, 2).bytes());
    other_lane.say(&RawHello { lane: 1, ..RawHello::good(1, 2) }.bytes());
    until("two lanes", &mut [&mut two], |hosts| hosts[0].seen.connected.len() == 2);
    second.say(&RawHello::good(1, 2).bytes());
    until("the first is closed", &mut [&mut two], |_| first.is_closed());
    other_lane.say(&raw_frame(b"bulk"));
    second.say(&raw_frame(b"control"));
    until("two frames", &mut [&mut two], |hosts| hosts[0].seen.frames.len() == 2);
    assert_eq!(two.closed_bad(), 0);
}

#[test]
fn connections_move_when_an_address_changes() {
    let (registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Bulk, b"at the old place");
    // The same host, somewhere else, while the old place still listens.
    let mut moved = Host::start_with(TcpConfig { incarnation: 2, ..config(2) }, &registry);
    until("the loss is reported", &mut [&mut one, &mut two, &mut moved], |hosts| {
        hosts[0].seen.disconnected == [HostId(2)]
    });
    two.seen.frames.clear();
    deliver(&mut one, &mut moved, Lane::Bulk, b"at the new place");
    two.poll();
    assert_eq!(two.seen.frames, []);
}

#[test]
fn a_host_that_is_removed_from_the_registry_is_cut_off() {
    let (registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Control, b"one to two");
    deliver(&mut two, &mut one, Lane::Control, b"two to one");
    let other = Arc::new(StaticRegistry::new([(HostId(1), one.transport.local_address())]));
    drop(other);
    registry.remove_peer(HostId(2));
    until("the loss is reported", &mut [&mut one, &mut two], |hosts| hosts[0].seen.disconnected == [HostId(2)]);
    assert_eq!(one.send(2, Lane::Control, b"gone"), Sent::Unreachable);
    let (lost, received) = (two.seen.disconnected.len(), one.seen.frames.len());
    until("the other side loses it", &mut [&mut one, &mut two], |hosts| {
        hosts[1].seen.disconnected.len() > lost || hosts[1].send(1, Lane::Control, b"?") == Sent::Unreachable
    });
    assert_eq!(one.seen.frames.len(), received);
}

#[test]
fn a_closed_transport_sends_nothing_and_frees_its_port() {
    let (registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Control, b"open");
    one.transport.close();
    assert_eq!(one.send(2, Lane::Control, b"closed"), Sent::Unreachable);
    assert_eq!(one.send(3, Lane::Control, b"closed"), Sent::Unreachable);
    assert_eq!(one.poll(), 0);
    one.transport.connect(HostId(2));
    let again = TcpConfig { listen_address: one.transport.local_address(), incarnation: 2, ..config(1) };
    let mut again = Host::start_with(again, &registry);
    deliver(&mut two, &mut again, Lane::Control, b"open again");
}

#[test]
fn a_transport_may_be_closed_by_the_sink() {
    use bytes::Bytes;
    use longboat_transport::{FrameSink, TcpTransport};
    struct Closing(Arc<TcpTransport>, usize);
    impl FrameSink for Closing {
        fn frame(&mut self, _: HostId, _: Lane, _: Bytes) {
            self.1 += 1;
            self.0.close();
        }
        fn disconnected(&mut self, _: HostId) {}
    }
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Control, b"open");
    assert_eq!(one.send(2, Lane::Control, b"close"), Sent::Queued);
    let mut sink = Closing(Arc::clone(&two.transport), 0);
    for _ in 0..1_000 {
        if sink.1 > 0 {
            break;
        }
        two.transport.wait(std::time::Duration::from_millis(10));
        two.transport.poll(&mut sink);
    }
    assert_eq!(sink.1, 1);
    assert_eq!(two.send(1, Lane::Control, b"closed"), Sent::Unreachable);
    until("the other side loses it", &mut [&mut one], |hosts| hosts[0].seen.disconnected == [HostId(2)]);
}
