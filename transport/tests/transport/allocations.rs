//! What the steady path allocates: counted by an allocator that stands before the system's.

use crate::support::*;
use bytes::Bytes;
use longboat_raft::{
    Body, EntryKind, GroupEpoch, GroupId, Index, LogPos, Message, Origin, ReplicaId, RunBuilder, Term,
};
use longboat_transport::wire::{FrameBuilder, messages};
use longboat_transport::{Lane, Sent, Transport};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it is; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// How often this thread allocates while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// A round's messages: an append, an acknowledgement and a commit for each of 100 groups.
fn round() -> Vec<(GroupId, Message)> {
    let message = |body| Message { from: ReplicaId(1), to: ReplicaId(2), term: Term(3), body };
    let mut round = Vec::new();
    for group in (1..=100).map(GroupId) {
        let mut run = RunBuilder::new();
        run.push(EntryKind::Command, 1, &[7; 16]);
        let run = run.seal(Term(3), Index(9), Origin::default());
        let runs = [run].into_iter().collect();
        round.push((group, message(Body::Append { prev: LogPos::ZERO, commit: Index(8), runs })));
        round.push((group, message(Body::AppendAccepted { matched: Index(9) })));
        round.push((group, message(Body::Commit { commit: Index(9) })));
    }
    round
}

fn build(builder: &mut FrameBuilder, round: &[(GroupId, Message)]) {
    for (group, message) in round {
        builder.push(*group, GroupEpoch(1), message);
    }
}

#[test]
fn building_sending_and_decoding_do_not_allocate_per_message() {
    let (_registry, mut one, mut two) = pair();
    deliver(&mut one, &mut two, Lane::Bulk, b"first");
    let round = round();
    let mut builder = FrameBuilder::new();
    let (mut building, mut sending, mut decoding, mut decoded) = (0, 0, 0, 0);
    let rounds = 50;
    for n in 0..rounds {
        two.seen.frames.clear();
        let mut sent = None;
        let built = allocations(|| build(&mut builder, &round));
        let sends = allocations(|| sent = Some(one.transport.send(two.id, Lane::Bulk, &builder.finish())));
        assert_eq!(sent, Some(Sent::Queued));
        until("the frame", &mut [&mut two], |hosts| !hosts[0].seen.frames.is_empty());
        let frame: Bytes = two.seen.frames.pop().unwrap().2;
        let reads = allocations(|| decoded += messages(frame).filter(Result::is_ok).count());
        // The first rounds find out how large the buffers must be.
        if n >= 10 {
            building += built;
            sending += sends;
            decoding += reads;
        }
    }
    assert_eq!(decoded, rounds * round.len());
    assert_eq!(decoding, 0, "allocations while decoding 40 rounds");
    // Now and then the kept buffer moves; that is per round and not per message.
    assert!(building + sending <= 40, "{building} allocations while building 40 rounds, {sending} while sending them");
}
