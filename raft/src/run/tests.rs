//! Runs: what goes in comes out, and what was damaged is refused.

use super::builder::TOGETHER_BYTES_MAX;
use super::*;

fn three() -> Run {
    let mut b = RunBuilder::new();
    b.push(EntryKind::Empty, 0, b"");
    b.push(EntryKind::Command, 7, b"hello");
    b.push(EntryKind::Command, 8, b"world!");
    b.seal(Term(3), Index(10), Origin { replica: ReplicaId(2), start: 99 })
}

#[test]
fn decoding_returns_what_was_sealed() {
    let run = three();
    let mut bytes = BytesMut::new();
    run.encode(&mut bytes);
    bytes.put_slice(b"rest");
    let mut bytes = bytes.freeze();
    let back = Run::decode(&mut bytes).expect("valid");
    assert_eq!(back, run);
    assert_eq!(&bytes[..], b"rest");
    let seen: Vec<_> = back.entries().map(|e| (e.index.0, e.sequence, e.payload.to_vec())).collect();
    assert_eq!(seen, [(10, 0, b"".to_vec()), (11, 7, b"hello".to_vec()), (12, 8, b"world!".to_vec())]);
    assert_eq!(back.origin(), Origin { replica: ReplicaId(2), start: 99 });
}

/// A small payload in memory of its own would cost more than its copy, and a large one is not copied.
#[test]
fn head_and_payload_are_together_when_they_are_small() {
    for (bytes, together) in [(1, true), (50, true), (TOGETHER_BYTES_MAX, true), (TOGETHER_BYTES_MAX + 1, false)] {
        let mut b = RunBuilder::new();
        b.push(EntryKind::Command, 7, &vec![1; bytes]);
        let run = b.seal(Term(3), Index(10), Origin::default());
        let end = run.head().as_ptr_range().end;
        assert_eq!(end == run.payload().as_ptr(), together, "{bytes} bytes");
    }
}

/// A run of one small entry lies within its handle, which is no larger for that; nor is a chunk of one an allocation.
#[test]
fn small_runs_take_no_memory_of_their_own() {
    assert_eq!(size_of::<Run>(), 96);
    assert_eq!(size_of::<RunBuilder>(), 88);
    for (bytes, is_small) in [(0, true), (16, true), (21, true), (22, false), (100, false)] {
        let mut b = RunBuilder::new();
        b.push(EntryKind::Command, 7, &vec![3; bytes]);
        let run = b.seal(Term(3), Index(10), Origin::default());
        let within = |run: &Run| (run as *const Run).cast::<u8>().wrapping_add(size_of::<Run>()) > run.head().as_ptr();
        assert_eq!(run.payload_memory().is_none(), is_small, "{bytes} bytes");
        assert!(!is_small || within(&run) && within(&run.clone()), "{bytes} bytes");
        let mut encoded = BytesMut::new();
        run.encode(&mut encoded);
        let back = Run::decode(&mut encoded.freeze()).expect("valid");
        assert_eq!((back.payload_memory().is_none(), &back), (is_small, &run), "{bytes} bytes");
        assert_eq!(run.shared_parts().concat(), run.parts().concat());
    }
}

/// Whoever writes a payload may fill another chunk meanwhile, write more than is allowed, or panic.
#[test]
fn a_first_payload_is_written_whatever_its_writer_does_besides() {
    for bytes in [5, 21, 22, 300, 10_000] {
        let payload = vec![9; bytes];
        let mut b = RunBuilder::new();
        let mut other = RunBuilder::new();
        let pushed = b.push_with(EntryKind::Command, 1, bytes, |out| {
            out.put_slice(&payload[..2]);
            other.push(EntryKind::Command, 2, &payload);
            out.put_slice(&payload[2..]);
        });
        assert_eq!(pushed, Ok(bytes));
        let mut refused = RunBuilder::new();
        assert_eq!(refused.push_with(EntryKind::Command, 1, bytes - 1, |out| out.put_slice(&payload)), Err(bytes));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            refused.push_with(EntryKind::Command, 1, bytes, |out| {
                out.put_slice(&payload);
                panic!("a writer that fails");
            })
        }));
        assert!(panicked.is_err() && refused.is_empty() && refused.payload_bytes() == 0);
        refused.push(EntryKind::Command, 1, &payload);
        for mut chunk in [b, other, refused] {
            let run = chunk.seal(Term(1), Index(1), Origin::default());
            assert_eq!(run.entries().map(|e| e.payload).collect::<Vec<_>>(), [&payload[..]]);
        }
    }
}

#[test]
fn a_chunk_of_one_entry_takes_no_allocation_for_it_and_one_of_two_has_room_for_more() {
    let mut b = RunBuilder::new();
    b.push(EntryKind::Command, 1, b"x");
    assert!(!b.descriptors.spilled());
    b.push(EntryKind::Command, 2, b"x");
    assert!(b.descriptors.capacity() >= 16);
}

/// What is expected is a hint: nothing of it is seen in the run.
#[test]
fn a_chunk_that_expects_more_does_not_move_while_that_comes() {
    const MAX: usize = 4096;
    for (len, expected) in [(100, 5), (100, 1000), (3000, 1000), (5000, 3)] {
        let mut b = RunBuilder::new();
        b.expect_more(expected, MAX);
        let payload = vec![7; len];
        let room = |b: &RunBuilder| (b.payload_room(), b.descriptors.capacity());
        b.push(EntryKind::Command, 1, &payload);
        let before = room(&b);
        b.expect_more(expected, MAX);
        let expecting = room(&b);
        assert_eq!(expecting != before, len < MAX, "a chunk that is full expects nothing");
        assert!(expecting.0 <= 2 * before.0 + MAX + len, "{expecting:?}");
        for _ in 0..expected {
            if b.encoded_len() < MAX {
                b.push(EntryKind::Command, 1, &payload);
            }
        }
        assert_eq!(room(&b), expecting, "{} entries of {len} bytes", b.count());
        let run = b.seal(Term(1), Index(1), Origin::default());
        assert!(run.entries().all(|e| e.payload == payload));
    }
}

#[test]
fn runs_of_every_length_read_back_and_equal_what_they_were_read_from() {
    for (entries, bytes) in
        (1..=40).flat_map(|n| [(n, 0), (n, 1), (n, 16), (n, 29), (n, 61)]).chain([(1, 5000), (70, 40)])
    {
        let mut b = RunBuilder::new();
        let payload = |n: u64| vec![n as u8; if n.is_multiple_of(2) { bytes } else { bytes / 2 }];
        for n in 0..entries {
            b.push(EntryKind::Command, n, &payload(n));
        }
        let run = b.seal(Term(3), Index(10), Origin { replica: ReplicaId(2), start: 99 });
        let mut encoded = BytesMut::new();
        run.encode(&mut encoded);
        assert_eq!(encoded.len(), run.encoded_len());
        assert_eq!(run.parts().concat(), encoded);
        let back = Run::decode(&mut encoded.freeze()).expect("valid");
        // What was read is in one piece, what was sealed or given another place may be in two.
        assert_eq!(back, run, "{entries} entries of {bytes} bytes");
        assert_eq!(back.rebase(Term(4), Index(70)), run.rebase(Term(4), Index(70)));
        for entry in run.rebase(Term(4), Index(70)).entries() {
            let at = entry.payload_offset..entry.payload_offset + entry.payload.len();
            assert_eq!(
                (entry.payload, &run.shared_payload(at.clone())[..]),
                (&payload(entry.sequence)[..], &payload(entry.sequence)[..])
            );
            let shared = run.payload_memory().map(|(memory, area)| &memory[area + at.start..area + at.end]);
            assert_eq!(shared.unwrap_or(entry.payload), entry.payload);
            assert_eq!(
                shared.is_none(),
                run.encoded_len() <= memory::SMALL_BYTES,
                "{entries} entries of {bytes} bytes"
            );
        }
    }
}

#[test]
fn a_slice_is_a_run_of_its_own() {
    let part = three().slice(Index(11)..=Index(11));
    assert_eq!((part.first(), part.last(), part.term()), (Index(11), Index(11), Term(3)));
    let mut bytes = BytesMut::new();
    part.encode(&mut bytes);
    let back = Run::decode(&mut bytes.freeze()).expect("a slice carries its own checksums");
    assert_eq!(back.entries().next().map(|e| e.payload.to_vec()), Some(b"hello".to_vec()));
    assert_eq!(back.origin().start, 99);
}

fn call(series: u64) -> SessionCall {
    SessionCall::Propose { session: crate::SessionId(40), series, responded_to: series - 1 }
}

fn with_sessions() -> Run {
    let mut b = RunBuilder::new();
    b.push(EntryKind::Command, 1, b"plain");
    for (n, call) in [(2, call(5)), (3, SessionCall::Register { sessions_max: 9 }), (5, call(6))] {
        if n == 5 {
            b.push(EntryKind::Command, 4, b"between");
        }
        b.push_session_with(call, n, 100, |out| out.put_slice(b"in session")).expect("short");
    }
    b.push_session_with(SessionCall::Close { session: crate::SessionId(40) }, 6, 100, |_| ()).expect("short");
    b.seal(Term(3), Index(10), Origin { replica: ReplicaId(2), start: 99 })
}

#[test]
fn sessions_follow_their_entries_through_slices_and_rebasing() {
    let run = with_sessions();
    let calls = |run: &Run| run.entries().map(|e| (e.sequence, e.session)).collect::<Vec<_>>();
    let all = calls(&run);
    assert_eq!(all.iter().map(|c| c.1.is_some()).collect::<Vec<_>>(), [false, true, true, false, true, true]);
    assert!(run.has_sessions() && !three().has_sessions());
    for lo in 0..6u64 {
        for hi in lo..6 {
            let part = run.slice(Index(10 + lo)..=Index(10 + hi)).rebase(Term(8), Index(70));
            let mut bytes = BytesMut::new();
            part.encode(&mut bytes);
            let back = Run::decode(&mut bytes.freeze()).expect("a slice carries its own checksums");
            assert_eq!(calls(&back), all[lo as usize..=hi as usize]);
        }
    }
}

#[test]
fn a_chunk_that_is_cut_back_forgets_the_sessions_of_what_it_lost() {
    let mut b = RunBuilder::new();
    for series in 1..=3 {
        b.push_session_with(call(series), series, 100, |out| out.put_slice(b"four")).expect("short");
    }
    b.push_session_with(call(4), 4, 3, |out| out.put_slice(b"four")).expect_err("too long");
    b.truncate(1, 4);
    b.push_session_with(call(9), 9, 100, |_| ()).expect("short");
    let run = b.seal(Term(1), Index(1), Origin::default());
    assert_eq!(run.entries().map(|e| e.session).collect::<Vec<_>>(), [Some(call(1)), Some(call(9))]);
}

#[test]
fn each_call_of_a_session_comes_back_as_what_it_was() {
    let close = SessionCall::Close { session: crate::SessionId(40) };
    for call in [call(5), SessionCall::Register { sessions_max: 9 }, close] {
        let mut b = RunBuilder::new();
        b.push_session_with(call, 1, 9, |out| out.put_slice(b"x")).expect("it fits");
        let run = b.seal(Term(1), Index(1), Origin::default());
        assert_eq!(run.entries().next().and_then(|e| e.session), Some(call));
    }
}

#[test]
fn entries_know_how_many_are_left() {
    let run = three();
    let mut entries = run.entries();
    for left in (0..3).rev() {
        assert_eq!(entries.len(), left + 1);
        entries.next();
        assert_eq!(entries.len(), left);
    }
}

fn coded() -> Run {
    let mut b = RunBuilder::new();
    b.push(EntryKind::Empty, 0, b"");
    b.push_coded(None, PayloadCodec::Lz4, 7, b"packed");
    b.push_coded(Some(call(5)), PayloadCodec::Zstd, 8, b"and packed");
    b.push(EntryKind::Command, 9, b"plain");
    b.seal(Term(3), Index(10), Origin::default())
}

#[test]
fn the_codec_of_a_payload_goes_with_it_wherever_the_run_goes() {
    let run = coded();
    let mut bytes = BytesMut::new();
    run.encode(&mut bytes);
    let back = Run::decode(&mut bytes.freeze()).expect("valid");
    let codecs = [PayloadCodec::Plain, PayloadCodec::Lz4, PayloadCodec::Zstd, PayloadCodec::Plain];
    let seen = |run: &Run| run.entries().map(|e| e.codec).collect::<Vec<_>>();
    assert_eq!(seen(&back), codecs);
    assert_eq!(seen(&run.slice(Index(11)..=Index(12)).rebase(Term(4), Index(40))), codecs[1..3]);
    assert_eq!(seen(&run.strip()), codecs, "a witness keeps what others would see");
    let [_, packed, in_session, _] = back.entries().collect::<Vec<_>>()[..] else { panic!("four entries") };
    assert_eq!((packed.payload, packed.session, packed.kind), (&b"packed"[..], None, EntryKind::Command));
    assert_eq!((in_session.payload, in_session.session), (&b"and packed"[..], Some(call(5))));
}

#[test]
fn a_codec_that_nobody_knows_is_refused_and_so_is_one_of_what_is_no_command() {
    let forged = |at: usize, value: u8| {
        let mut bytes = BytesMut::new();
        coded().encode(&mut bytes);
        let head_len = Run::measure(&bytes).expect("whole").0;
        bytes[RUN_HEADER_BYTES + at] = value;
        let crc = head_crc(&bytes[..head_len]);
        bytes[52..56].copy_from_slice(&crc.to_le_bytes());
        Run::decode(&mut bytes.freeze())
    };
    let second = DESCRIPTOR_BYTES;
    assert!(forged(second + 2, PayloadCodec::Zstd as u8).is_ok());
    for (at, value) in [(second + 2, 3), (second + 2, 255), (second + 3, 1), (2, 1), (3, 7)] {
        let refused = forged(at, value);
        assert!(matches!(refused, Err(RunError::Malformed(_))), "{value} at {at}: {refused:?}");
    }
}

#[test]
fn sessions_that_make_no_sense_are_refused() {
    let forged = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = BytesMut::new();
        with_sessions().encode(&mut bytes);
        let head_len = Run::measure(&bytes).expect("whole").0;
        change(&mut bytes[..head_len]);
        let crc = head_crc(&bytes[..head_len]);
        bytes[52..56].copy_from_slice(&crc.to_le_bytes());
        Run::decode(&mut bytes.freeze())
    };
    let flags_of = |entry: usize| RUN_HEADER_BYTES + entry * DESCRIPTOR_BYTES + 1;
    assert!(forged(&|_| ()).is_ok());
    for (entry, flags) in [(0, FLAG_SESSION), (1, 0), (0, 2), (1, 8), (1, 7), (1, FLAG_SESSION | 2)] {
        let refused = forged(&|head| head[flags_of(entry)] = flags);
        assert!(matches!(refused, Err(RunError::Malformed(_))), "flags {flags} of entry {entry}: {refused:?}");
    }
    let kind = forged(&|head| head[flags_of(1) - 1] = EntryKind::Empty as u8);
    assert!(matches!(kind, Err(RunError::Malformed(_))), "{kind:?}");
}

#[test]
fn rebasing_moves_the_entries_and_keeps_their_origin() {
    let moved = three().rebase(Term(9), Index(100));
    assert_eq!((moved.term(), moved.first(), moved.last()), (Term(9), Index(100), Index(102)));
    let mut bytes = BytesMut::new();
    moved.encode(&mut bytes);
    let back = Run::decode(&mut bytes.freeze()).expect("valid");
    assert_eq!((back.term(), back.first(), back.last()), (Term(9), Index(100), Index(102)));
    assert_eq!(back.origin(), three().origin());
}

#[test]
fn a_stripped_run_keeps_places_and_membership_changes_only() {
    let mut b = RunBuilder::new();
    b.push(EntryKind::Command, 7, b"hello");
    b.push(EntryKind::Config, 8, b"change");
    b.push(EntryKind::Command, 9, b"world!");
    let run = b.seal(Term(3), Index(10), Origin { replica: ReplicaId(2), start: 99 });
    let bare = run.strip();
    assert!(bare.is_stripped() && !run.is_stripped() && bare.has_config());
    let place = |r: &Run| (r.term(), r.first(), r.last(), r.origin());
    assert_eq!((place(&bare), bare.payload()), (place(&run), &b"change"[..]));
    let mut bytes = BytesMut::new();
    bare.encode(&mut bytes);
    let back = Run::decode(&mut bytes.freeze()).expect("valid");
    assert_eq!((&back, back.strip()), (&bare, bare.clone()));
    let seen: Vec<_> = back.entries().map(|e| (e.sequence, e.payload.to_vec())).collect();
    assert_eq!(seen, [(7, vec![]), (8, b"change".to_vec()), (9, vec![])]);
    let (front, rest) = (bare.slice(Index(10)..=Index(10)), bare.slice(Index(11)..=Index(12)));
    assert!(front.is_stripped() && front.payload().is_empty());
    assert!(rest.is_stripped() && rest.has_config() && rest.payload() == b"change");
    assert!(bare.rebase(Term(4), Index(1)).is_stripped());
}

#[test]
fn a_stripped_run_keeps_its_sessions() {
    let bare = with_sessions().strip();
    let mut bytes = BytesMut::new();
    bare.encode(&mut bytes);
    let back = Run::decode(&mut bytes.freeze()).expect("valid");
    assert!(back.is_stripped() && back.has_sessions() && back.payload().is_empty());
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut bytes = BytesMut::new();
    with_sessions().encode(&mut bytes);
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Run::decode(&mut Bytes::from(bad)).is_err(), "bit {bit} went unnoticed");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let mut bytes = BytesMut::new();
    three().encode(&mut bytes);
    for len in 0..bytes.len() {
        let got = Run::decode(&mut Bytes::copy_from_slice(&bytes[..len]));
        assert!(matches!(got, Err(RunError::Truncated { .. })), "{len}: {got:?}");
    }
}

#[test]
fn lengths_say_what_is_encoded() {
    for run in [three(), with_sessions()] {
        let mut bytes = BytesMut::new();
        run.encode(&mut bytes);
        assert_eq!(bytes.len(), run.encoded_len());
        assert_eq!(bytes[..], [run.head(), run.payload()].concat()[..]);
        assert_eq!(Run::measure(&bytes), Ok((run.head().len(), run.payload().len())));
        bytes.put_slice(b"rest");
        assert_eq!(Run::verify(&bytes), Ok(run.encoded_len()));
        let last = run.encoded_len() - 1;
        bytes[last] ^= 1;
        assert!(Run::verify(&bytes).is_err(), "a damaged payload");
        assert!(matches!(Run::verify(&bytes[..last]), Err(RunError::Truncated { .. })));
    }
    let mut chunk = RunBuilder::new();
    assert_eq!((chunk.encoded_len(), chunk.payload_bytes(), chunk.count()), (0, 0, 0));
    chunk.push(EntryKind::Command, 7, b"hello");
    chunk.push_session_with(call(2), 8, 100, |out| out.put_slice(b"again")).expect("short");
    assert_eq!((chunk.payload_bytes(), chunk.count()), (10, 2));
    let expected = chunk.encoded_len();
    let run = chunk.seal(Term(1), Index(1), Origin { replica: ReplicaId(1), start: 1 });
    assert_eq!(run.encoded_len(), expected);
}

#[test]
fn a_head_whose_lengths_are_out_of_bounds_is_refused() {
    let mut bytes = BytesMut::new();
    three().encode(&mut bytes);
    for at in [40, 44] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&(RUN_PAYLOAD_BYTES_MAX as u32 + 1).to_le_bytes());
        assert_eq!(Run::measure(&bytes), Err(RunError::Malformed("length out of bounds")), "at {at}");
        bytes[at..at + 4].copy_from_slice(&(RUN_PAYLOAD_BYTES_MAX as u32).to_le_bytes());
        assert!(Run::measure(&bytes).is_ok(), "at {at}: just within them");
    }
    for count in [0, RUN_ENTRIES_MAX as u32 + 1] {
        bytes[4..8].copy_from_slice(&count.to_le_bytes());
        assert_eq!(Run::measure(&bytes), Err(RunError::Malformed("count of entries out of bounds")));
    }
}
