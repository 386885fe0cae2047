use super::*;
use bytes::Bytes;
use longboat_raft::{
    Body, ChangeError, EntryKind, Forwards, GroupEpoch, GroupId, HostId, Index, LogPos, Member, Membership, Message,
    Origin, RefusedReason, ReplicaId, Run, RunBuilder, SnapshotMeta, StoreId, Term, TransferAnswer,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

fn whole(parts: &[Bytes]) -> Bytes {
    Bytes::from(parts.concat())
}

fn frame_of(messages: &[Incoming]) -> Bytes {
    let mut builder = FrameBuilder::new();
    for m in messages {
        builder.push(m.group, m.epoch, &m.message);
    }
    whole(&builder.finish())
}

fn any_pos() -> impl Strategy<Value = LogPos> {
    (any::<u64>(), any::<u64>()).prop_map(|(t, i)| LogPos::new(Term(t), Index(i)))
}

fn any_run() -> impl Strategy<Value = Run> {
    let payload = prop_oneof![8 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 4000..9000)];
    let entry = (0u8..3, any::<u64>(), payload);
    (vec(entry, 1..6), any::<u64>(), 0..u64::MAX / 2, any::<u64>(), any::<u64>()).prop_map(
        |(entries, term, first, replica, start)| {
            let mut b = RunBuilder::new();
            for (kind, sequence, payload) in entries {
                b.push(EntryKind::from_u8(kind).expect("0 to 2 are kinds"), sequence, &payload);
            }
            let run = b.seal(Term(term), Index(first), Origin { replica: ReplicaId(replica), start });
            if start % 4 == 0 { run.strip() } else { run }
        },
    )
}

fn any_membership() -> impl Strategy<Value = Membership> {
    let ids = || btree_set(any::<u64>().prop_map(ReplicaId), 0..5);
    let hosts = proptest::collection::btree_map(
        any::<u64>().prop_map(ReplicaId),
        (any::<u64>(), any::<u128>()).prop_map(|(h, s)| Member { host: HostId(h), store: StoreId(s) }),
        0..5,
    );
    let promotions = proptest::collection::btree_map(
        any::<u64>().prop_map(ReplicaId),
        proptest::option::of(any::<u64>().prop_map(ReplicaId)),
        0..3,
    );
    ((ids(), ids(), ids(), ids()), any::<bool>(), ids(), promotions, hosts, ids(), any::<u64>()).prop_map(
        |((voters, outgoing, learners, learners_next), auto_leave, witnesses, promotions, hosts, removed, id)| {
            Membership {
                voters,
                outgoing,
                learners,
                learners_next,
                auto_leave,
                witnesses,
                promotions,
                hosts,
                removed,
                change_id: Index(id),
            }
        },
    )
}

fn any_meta() -> impl Strategy<Value = SnapshotMeta> {
    (any_pos(), any_membership()).prop_map(|(pos, membership)| SnapshotMeta { pos, membership })
}

fn any_forwards() -> impl Strategy<Value = Forwards> {
    any::<[u64; 3]>().prop_map(|[start, commands, changes]| Forwards { start, commands, changes })
}

fn any_body() -> impl Strategy<Value = Body> {
    let index = || any::<u64>().prop_map(Index);
    let reason = prop_oneof![
        Just(RefusedReason::NotLeader),
        Just(RefusedReason::Busy),
        (1..15u8, any::<u64>(), any::<u64>()).prop_map(|(number, a, b)| {
            RefusedReason::ConfigChange(ChangeError::from_parts(number, a, b).expect("numbers of errors"))
        })
    ];
    prop_oneof![
        (any_pos(), index(), vec(any_run(), 0..4)).prop_map(|(prev, commit, runs)| Body::Append {
            prev,
            commit,
            runs: runs.into()
        }),
        index().prop_map(|matched| Body::AppendAccepted { matched }),
        (index(), any_pos()).prop_map(|(rejected, hint)| Body::AppendRejected { rejected, hint }),
        (index(), any::<u64>()).prop_map(|(commit, read_round)| Body::Heartbeat { commit, read_round }),
        (any::<u64>(), any::<bool>())
            .prop_map(|(read_round, overloaded)| Body::HeartbeatResponse { read_round, overloaded }),
        index().prop_map(|matched| Body::AppendPaused { matched }),
        index().prop_map(|at_least| Body::SnapshotNeeded { at_least }),
        index().prop_map(|change| Body::Removed { change }),
        any_meta().prop_map(|meta| Body::WitnessSnapshot(Box::new(meta))),
        index().prop_map(|commit| Body::Commit { commit }),
        (any::<bool>(), any::<bool>(), any_pos()).prop_map(|(pre, transfer, last)| Body::RequestVote {
            pre,
            transfer,
            last
        }),
        (any::<bool>(), any::<bool>()).prop_map(|(pre, granted)| Body::VoteResponse { pre, granted }),
        any_meta().prop_map(|meta| Body::Snapshot(Box::new(meta))),
        any::<u64>().prop_map(|context| Body::ReadIndex { context }),
        (any::<u64>(), proptest::option::of(index()))
            .prop_map(|(context, index)| Body::ReadIndexResponse { context, index }),
        any_run().prop_map(Body::Forward),
        (any::<u64>(), any::<u32>(), reason).prop_map(|(first_sequence, count, reason)| Body::ForwardRefused {
            first_sequence,
            count,
            reason
        }),
        (any::<u64>(), any_forwards()).prop_map(|(term, forwards)| Body::CloseForwards { term: Term(term), forwards }),
        (any::<u64>(), any_forwards(), index()).prop_map(|(term, forwards, end)| Body::ForwardsClosed {
            term: Term(term),
            forwards,
            end
        }),
        Just(Body::TimeoutNow),
        (any::<u64>(), any::<u64>()).prop_map(|(to, question)| Body::Transfer { to: ReplicaId(to), question }),
        (any::<[u64; 2]>(), 1..=10u8, any::<u64>(), any::<u64>()).prop_map(|([to, question], number, a, b)| {
            let answer = TransferAnswer::from_parts(number, a, b).expect("a number that is known");
            Body::TransferAnswer { to: ReplicaId(to), question, answer }
        }),
        (any::<u64>(), any_pos(), index()).prop_map(|(round, last, commit)| Body::Quiesce { round, last, commit }),
        (any::<u64>(), any::<bool>()).prop_map(|(round, agreed)| Body::QuiesceResponse { round, agreed }),
    ]
}

fn any_incoming() -> impl Strategy<Value = Incoming> {
    (any::<[u64; 5]>(), any_body()).prop_map(|([group, epoch, from, to, term], body)| Incoming {
        group: GroupId(group % 5),
        epoch: GroupEpoch(epoch),
        message: Message { from: ReplicaId(from), to: ReplicaId(to), term: Term(term), body },
    })
}

fn any_chunk() -> impl Strategy<Value = Chunk> {
    let ids = any::<[u64; 7]>();
    (ids, 0..u64::MAX / 2, proptest::option::of(any_meta()), vec(any::<u8>(), 0..300), any::<bool>()).prop_map(
        |([group, epoch, from, to, term, stream_id, total], offset, meta, data, last)| Chunk {
            group: GroupId(group),
            epoch: GroupEpoch(epoch),
            from: ReplicaId(from),
            to: ReplicaId(to),
            term: Term(term),
            meta: meta.map(Box::new),
            stream_id,
            offset,
            total,
            data: Bytes::from(data),
            last,
        },
    )
}

/// Decodes in every way there is, to the end: that it returns is what is tested.
fn decode_all(frame: &Bytes) {
    let records_max = frame.len();
    assert!(messages(frame.clone()).count() <= records_max + 1);
    assert!(messages_for(frame.clone(), |group| group.0.is_multiple_of(2)).count() <= records_max + 1);
    let _ = for_each_group(frame, |_| ());
    let _ = SnapshotFrame::decode(frame.clone());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn messages_come_back_equal_and_in_order(sent in vec(any_incoming(), 0..12)) {
        let frame = frame_of(&sent);
        if sent.is_empty() {
            prop_assert!(frame.is_empty());
            return Ok(());
        }
        let back: Result<Vec<_>, _> = messages(frame.clone()).collect();
        prop_assert_eq!(back.as_deref(), Ok(&sent[..]));
        let mut groups = Vec::new();
        for_each_group(&frame, |group| groups.push(group)).expect("a built frame is well-formed");
        prop_assert_eq!(groups, sent.iter().map(|m| m.group).collect::<Vec<_>>());
        let some: Result<Vec<_>, _> = messages_for(frame, |group| group == GroupId(2)).collect();
        let expected: Vec<_> = sent.into_iter().filter(|m| m.group == GroupId(2)).collect();
        prop_assert_eq!(some, Ok(expected));
    }

    #[test]
    fn chunks_and_statuses_come_back_equal(chunk in any_chunk(), outcome in 0usize..4) {
        let frame = whole(&chunk.encode());
        prop_assert_eq!(SnapshotFrame::decode(frame), Ok(SnapshotFrame::Chunk(chunk.clone())));
        let Chunk { group, epoch, from, to, term, stream_id, offset, .. } = chunk;
        let outcome = [ChunkOutcome::Accepted, ChunkOutcome::Refused, ChunkOutcome::Done, ChunkOutcome::Busy][outcome];
        let status = ChunkStatus { group, epoch, from, to, term, stream_id, offset, outcome };
        prop_assert_eq!(SnapshotFrame::decode(whole(&status.encode())), Ok(SnapshotFrame::Status(status)));
    }

    #[test]
    fn garbage_never_panics(
        kind in 0u8..5, version in 0u8..3, records in 0u8..255, bytes in vec(any::<u8>(), 0..400), fitting in any::<bool>()
    ) {
        decode_all(&Bytes::from(bytes.clone()));
        // The same behind a header that leads further in.
        let mut frame = vec![kind, version, 0, 0, records, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        if fitting {
            frame[4..8].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
        frame.extend_from_slice(&bytes);
        decode_all(&Bytes::from(frame));
    }

    #[test]
    fn damaged_frames_never_panic(
        sent in vec(any_incoming(), 1..6), flips in vec((any::<usize>(), 0u8..8), 1..4), cut in proptest::option::of(any::<usize>())
    ) {
        let mut bytes = frame_of(&sent).to_vec();
        for (at, bit) in flips {
            // Most flips go where they reach the most code: the first records.
            let at = if at % 3 == 0 { at % bytes.len() } else { at % bytes.len().min(200) };
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut % (bytes.len() + 1));
        }
        decode_all(&Bytes::from(bytes));
    }

    #[test]
    fn every_truncation_is_an_error(sent in vec(any_incoming(), 1..4), cut in any::<usize>()) {
        let frame = frame_of(&sent);
        let short = frame.slice(..cut % frame.len());
        prop_assert!(for_each_group(&short, |_| ()).is_err());
        prop_assert!(messages(short).any(|m| m.is_err()));
    }

    #[test]
    fn damaged_chunk_data_is_noticed(mut chunk in any_chunk(), at in any::<usize>(), bit in 0u8..8) {
        chunk.data = Bytes::from([&chunk.data[..], b"x"].concat());
        let mut bytes = whole(&chunk.encode()).to_vec();
        let data_at = bytes.len() - chunk.data.len();
        let at = data_at + at % chunk.data.len();
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(SnapshotFrame::decode(Bytes::from(bytes)), Err(WireError::ChunkChecksum));
    }
}

fn message(body: Body) -> Message {
    Message { from: ReplicaId(1), to: ReplicaId(2), term: Term(3), body }
}

fn run_of(payload: usize) -> Run {
    let mut b = RunBuilder::new();
    b.push(EntryKind::Command, 1, &vec![7; payload]);
    b.seal(Term(3), Index(10), Origin::default())
}

fn append_of(run: Run) -> Message {
    message(Body::Append { prev: LogPos::ZERO, commit: Index(1), runs: [run].into_iter().collect() })
}

#[test]
fn a_large_run_is_passed_on_without_a_copy() {
    let run = run_of(100_000);
    let mut builder = FrameBuilder::new();
    builder.push(GroupId(1), GroupEpoch(0), &append_of(run_of(10)));
    builder.push(GroupId(1), GroupEpoch(0), &append_of(run.clone()));
    let parts = builder.finish();
    assert_eq!(parts.len(), 3, "records, the large run's head, its payload");
    assert_eq!(parts[2].as_ptr(), run.payload().as_ptr());
    assert!(parts[0].len() < 1_000, "the payload is not in the head of {} bytes", parts[0].len());
}

#[test]
fn a_decoded_run_shares_the_frames_memory() {
    let frame = frame_of(&[Incoming { group: GroupId(1), epoch: GroupEpoch(0), message: append_of(run_of(9_000)) }]);
    let memory = frame.as_ptr_range();
    let incoming = messages(frame.clone()).next().expect("one message").expect("valid");
    let Body::Append { runs, .. } = incoming.message.body else { panic!("an append") };
    assert!(memory.contains(&runs[0].payload().as_ptr()) && memory.contains(&runs[0].head().as_ptr()));
}

#[test]
fn commits_in_a_row_are_packed() {
    let mut builder = FrameBuilder::new();
    for group in 1..=100 {
        builder.push(GroupId(group), GroupEpoch(0), &message(Body::Commit { commit: Index(group) }));
    }
    assert_eq!(builder.len_bytes(), BODY_HEADER_BYTES + COMMITS_HEADER_BYTES + 100 * COMMIT_BYTES);
    assert_eq!(messages(whole(&builder.finish())).filter(|m| m.is_ok()).count(), 100);
}

#[test]
fn a_builder_reports_that_it_is_full_and_starts_anew() {
    let large = append_of(run_of(1 << 20));
    let mut builder = FrameBuilder::new();
    while !builder.is_full() {
        builder.push(GroupId(1), GroupEpoch(0), &large);
    }
    assert!((FRAME_BYTES_MAX..FRAME_BYTES_MAX + (2 << 20)).contains(&builder.len_bytes()));
    assert_eq!(messages(whole(&builder.finish())).filter(|m| m.is_ok()).count(), 8);
    assert!(builder.is_empty() && !builder.is_full() && builder.finish().is_empty());
}

#[test]
fn a_builder_uses_its_buffer_again_once_the_frame_is_gone() {
    let mut builder = FrameBuilder::new();
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..50 {
        for group in 1..=8 {
            builder.push(GroupId(group), GroupEpoch(0), &append_of(run_of(16)));
        }
        places.insert(builder.finish()[0].as_ptr() as usize);
    }
    assert!(places.len() <= 8, "50 frames of one allocation, at {} places", places.len());
}

#[test]
fn another_version_is_refused_by_name() {
    let mut bytes =
        frame_of(&[Incoming { group: GroupId(1), epoch: GroupEpoch(0), message: message(Body::TimeoutNow) }]).to_vec();
    bytes[1] = 9;
    let frame = Bytes::from(bytes);
    assert_eq!(messages(frame.clone()).next(), Some(Err(WireError::Version { found: 9 })));
    assert_eq!(for_each_group(&frame, |_| ()), Err(WireError::Version { found: 9 }));
    assert_eq!(SnapshotFrame::decode(frame), Err(WireError::Version { found: 9 }));
}
