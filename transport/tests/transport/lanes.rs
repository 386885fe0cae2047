//! Frames that arrive: order, size, lanes, backpressure.

use crate::support::*;
use bytes::Bytes;
use longboat_raft::{HostId, StoreId};
use longboat_transport::wire::{FRAME_BYTES_LIMIT, FRAME_BYTES_MAX};
use longboat_transport::{Lane, Sent, TcpConfig, Transport};
use std::time::Duration;

fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; len.max(4)];
    frame[..4].copy_from_slice(&number.to_le_bytes());
    frame
}

fn number(frame: &Bytes) -> u32 {
    u32::from_le_bytes(frame[..4].try_into().unwrap())
}

#[test]
fn frames_of_a_lane_arrive_whole_and_in_order() {
    let (_registry, mut one, mut two) = pair();
    for lane in Lane::ALL {
        deliver(&mut one, &mut two, lane, b"first");
    }
    two.seen.frames.clear();
    let len = |n: u32| [4, 60, 5_000, 70_000, 300_000][n as usize % 5];
    for n in 0..60 {
        for lane in Lane::ALL {
            let frame = Bytes::from(numbered(n, len(n)));
            let (head, tail) = (frame.slice(..3), frame.slice(3..));
            assert_eq!(one.transport.send(two.id, lane, &[head, tail]), Sent::Queued);
            one.poll();
            two.poll();
        }
    }
    until("180 frames", &mut [&mut one, &mut two], |hosts| hosts[1].seen.frames.len() == 180);
    for lane in Lane::ALL {
        let of_lane: Vec<_> = two.seen.frames.iter().filter(|(_, seen, _)| *seen == lane).collect();
        for (n, (from, _, frame)) in (0u32..).zip(&of_lane) {
            assert_eq!((*from, frame), (HostId(1), &Bytes::from(numbered(n, len(n)))));
        }
        assert_eq!(of_lane.len(), 60);
    }
}

#[test]
fn a_host_learns_store_and_incarnation_of_the_other() {
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Control, b"hello");
    assert_eq!(one.seen.connected.first(), Some(&(HostId(2), StoreId(1002), 1)));
    assert_eq!(two.seen.connected.first(), Some(&(HostId(1), StoreId(1001), 1)));
}

#[test]
fn a_host_that_is_spoken_to_can_answer() {
    for lane in Lane::ALL {
        let (_registry, mut one, mut two) = pair();
        deliver(&mut one, &mut two, lane, b"question");
        let lanes = if lane == Lane::Control { 1 } else { 2 };
        until("connections back", &mut [&mut one, &mut two], |hosts| hosts[1].transport.stats().connected == 1 + lanes);
        assert_eq!(two.send(1, lane, b"answer"), Sent::Queued);
        assert_eq!(two.send(1, Lane::Control, b"answer"), Sent::Queued);
        assert_eq!(two.transport.stats().dropped_unreachable, 0);
    }
}

#[test]
fn the_largest_frame_arrives_and_a_larger_one_is_dropped() {
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Bulk, b"first");
    for len in [FRAME_BYTES_MAX, FRAME_BYTES_LIMIT] {
        two.seen.frames.clear();
        let frame = numbered(9, len);
        assert_eq!(one.send(2, Lane::Bulk, &frame), Sent::Queued);
        until("a large frame", &mut [&mut one, &mut two], |hosts| !hosts[1].seen.frames.is_empty());
        assert!(two.seen.frames[0].2 == frame, "a frame of {len} bytes was changed");
    }
    let dropped = one.transport.stats().dropped_full;
    assert_eq!(one.send(2, Lane::Bulk, &vec![0; FRAME_BYTES_LIMIT + 1]), Sent::Full);
    assert_eq!(one.transport.stats().dropped_full, dropped + 1);
}

#[test]
fn a_frame_of_very_many_parts_arrives() {
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Bulk, b"first");
    two.seen.frames.clear();
    let parts: Vec<Bytes> = (0..5_000u32).map(|n| Bytes::from(numbered(n, 100))).collect();
    assert_eq!(one.transport.send(two.id, Lane::Bulk, &parts), Sent::Queued);
    until("the frame", &mut [&mut one, &mut two], |hosts| !hosts[1].seen.frames.is_empty());
    assert!(two.seen.frames[0].2 == parts.concat());
}

#[test]
fn a_full_queue_drops_and_counts_and_what_was_taken_arrives() {
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Snapshot, b"first");
    two.seen.frames.clear();
    let before = one.transport.stats();
    // The receiver does not read: the socket fills, then the queue. 64 MiB is more than both hold.
    let mut taken = Vec::new();
    let mut full = 0;
    for n in 0..256 {
        match one.send(2, Lane::Snapshot, &numbered(n, 256 << 10)) {
            Sent::Queued => taken.push(n),
            Sent::Full => full += 1,
            Sent::Unreachable => panic!("the connection is up"),
        }
    }
    assert!(full > 0, "256 frames were taken");
    let stats = one.transport.stats();
    assert_eq!(stats.dropped_full - before.dropped_full, full);
    assert_eq!(stats.frames_sent - before.frames_sent, taken.len() as u64);
    until("what was taken", &mut [&mut one, &mut two], |hosts| hosts[1].seen.frames.len() == taken.len());
    let arrived: Vec<u32> = two.seen.frames.iter().map(|(_, _, frame)| number(frame)).collect();
    assert_eq!(arrived, taken);
    assert_eq!(one.send(2, Lane::Snapshot, b"room again"), Sent::Queued);
}

#[test]
fn control_is_read_before_bulk_that_was_there_first() {
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Control, b"first");
    deliver(&mut one, &mut two, Lane::Bulk, b"first");
    two.seen.frames.clear();
    // Small ones, so that a fresh socket holds several.
    let bulk = 1_000;
    for n in 0..bulk {
        assert_eq!(one.send(2, Lane::Bulk, &numbered(n, 4 << 10)), Sent::Queued);
    }
    assert_eq!(one.send(2, Lane::Control, b"urgent"), Sent::Queued);
    let (mut handed_over, mut place) = (0, None);
    until("all frames", &mut [&mut one, &mut two], |hosts| {
        // What this poll handed over.
        let frames = &hosts[1].seen.frames[handed_over..];
        let control = frames.iter().position(|(_, lane, _)| *lane == Lane::Control);
        place = place.or(control.map(|at| (handed_over, at)));
        handed_over += frames.len();
        handed_over == bulk as usize + 1
    });
    let (before, at) = place.unwrap();
    assert_eq!(at, 0, "bulk frames were read before the control frame in the same poll");
    assert!(before < bulk as usize, "the control frame came last");
}

#[test]
fn without_a_connection_frames_are_dropped_and_counted() {
    let (_registry, one, two) = pair();
    assert_eq!(one.send(2, Lane::Control, b"too early"), Sent::Unreachable);
    assert_eq!(one.send(3, Lane::Control, b"nobody"), Sent::Unreachable);
    assert_eq!(one.send(1, Lane::Control, b"myself"), Sent::Unreachable);
    assert_eq!(one.transport.stats().dropped_unreachable, 3);
    assert_eq!(two.transport.stats().frames_received, 0);
}

#[test]
fn connecting_ahead_spares_the_first_frame() {
    let (_registry, mut one, mut two) = pair();
    one.transport.connect(HostId(2));
    until("connections", &mut [&mut one, &mut two], |hosts| {
        // Both lanes in both directions.
        hosts[0].transport.stats().connected == 4
    });
    assert_eq!(one.send(2, Lane::Control, b"now"), Sent::Queued);
    assert_eq!(one.send(2, Lane::Bulk, b"now"), Sent::Queued);
    assert_eq!(one.transport.stats().dropped_unreachable, 0);
}

#[test]
fn a_wake_ends_the_wait_under_way_or_the_next_one() {
    let (_registry, one, _two) = pair();
    let (tell, told) = crossbeam_channel::bounded(2);
    let waiting = {
        let transport = one.transport.clone();
        std::thread::spawn(move || {
            for _ in 0..2 {
                // Nothing else would end it before the test gives up.
                transport.wait(Duration::from_secs(3_000));
                tell.send(()).unwrap();
            }
        })
    };
    for _ in 0..2 {
        one.transport.wake();
        told.recv_timeout(Duration::from_secs(60)).expect("the wait was ended");
    }
    waiting.join().unwrap();
}

#[test]
fn many_threads_may_send_at_once() {
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Bulk, b"first");
    two.seen.frames.clear();
    let senders: Vec<_> = (0..4u32)
        .map(|sender| {
            let transport = one.transport.clone();
            std::thread::spawn(move || {
                for n in 0..200 {
                    let frame = Bytes::from(numbered(sender << 16 | n, 4_000));
                    assert_eq!(transport.send(HostId(2), Lane::Bulk, &[frame]), Sent::Queued);
                }
            })
        })
        .collect();
    until("800 frames", &mut [&mut one, &mut two], |hosts| hosts[1].seen.frames.len() == 800);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    for sender in 0..4 {
        let numbers = two.seen.frames.iter().map(|(_, _, frame)| number(frame)).filter(|n| n >> 16 == sender);
        assert!(numbers.eq((0..200).map(|n| sender << 16 | n)), "frames of sender {sender} changed places");
    }
}

#[test]
fn a_taken_address_is_refused_by_name() {
    let (registry, one, _two) = pair();
    let address = one.transport.local_address();
    let taken = TcpConfig { listen_address: address, ..config(3) };
    let error = longboat_transport::TcpTransport::bind(taken, registry).expect_err("the address is taken");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[test]
fn a_configuration_out_of_bounds_is_refused_by_name() {
    let (registry, _one, _two) = pair();
    let bad = [
        ("host_id", TcpConfig { host_id: HostId(0), ..config(3) }),
        ("reconnect_ms_min", TcpConfig { reconnect_ms_min: 0, ..config(3) }),
        ("reconnect_ms_max", TcpConfig { reconnect_ms_max: 0, ..config(3) }),
        ("handshake_ms_max", TcpConfig { handshake_ms_max: 0, ..config(3) }),
    ];
    for (field, config) in bad {
        let error = longboat_transport::TcpTransport::bind(config, registry.clone()).expect_err("out of bounds");
        assert!(error.to_string().contains(field), "{error}");
    }
}
