//! Frames: what one group makes durable in one record.
//!
//! Layout, little-endian: checksum (4), flags (4), group (8), term (8), vote (8), commit (8), count of runs (4), length
//! of the rare record (4); then, where the flags say so, the cut (8), the compaction point (16) and the rare record,
//! padded to 8; then the runs back to back.
//!
//! The checksum is summed with the record's seed in its place, over all that comes before the runs and each run's own
//! header. That header holds the checksums of the rest of its run, so every byte is vouched for and none is summed twice.

use crate::codec::{Malformed, put_record, take_record};
use crate::format::crc;
use crate::{Record, Update};
use bytes::{Buf, Bytes};
use longboat_raft::run::{DESCRIPTOR_BYTES, RUN_HEADER_BYTES, RunError};
use longboat_raft::{GroupId, HardState, Index, LogPos, ReplicaId, Run, Term};
use smallvec::SmallVec;

/// Bytes of a frame's fixed part.
const FRAME_HEADER_BYTES: usize = 48;
const CUT: u32 = 1;
const COMPACT: u32 = 2;
const KNOWN_FLAGS: u32 = CUT | COMPACT;

/// A frame, read back. Its runs stay where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) group: GroupId,
    pub(crate) hard_state: HardState,
    pub(crate) cut_tail: Option<Index>,
    pub(crate) compact_to: Option<LogPos>,
    pub(crate) record: Option<Box<Record>>,
    pub(crate) runs: SmallVec<[RunAt; 1]>,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameFault {
    /// A checksum does not match, or there is no telling where it is: torn or damaged.
    #[error("{0}")]
    Damaged(&'static str),
    /// The checksums are right: somebody wrote this, and meant what this build does not know. Never a torn tail.
    #[error("{0}")]
    NotUnderstood(&'static str),
}

impl From<Malformed> for FrameFault {
    fn from(e: Malformed) -> Self {
        Self::NotUnderstood(e.0)
    }
}

/// A run inside of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunAt {
    pub(crate) term: Term,
    pub(crate) first: Index,
    pub(crate) last: Index,
    /// In bytes from the frame's start.
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// Bytes that the runs of an update's frame take.
pub(crate) fn runs_len(update: &Update) -> usize {
    update.runs.iter().map(Run::encoded_len).sum()
}

/// Bytes of an update's frame before the first run.
pub(crate) fn front_len(update: &Update) -> usize {
    let mut len = FRAME_HEADER_BYTES;
    len += if update.cut_tail.is_some() { 8 } else { 0 };
    len += if update.compact_to.is_some() { 16 } else { 0 };
    if let Some(record) = &update.record {
        // Rare, so encoding it twice costs less than keeping its bytes would.
        let mut bytes = Vec::new();
        put_record(&mut bytes, record);
        len += bytes.len().next_multiple_of(8);
    }
    len
}

/// Writes the frame of this update to bytes of just its length. The only copy that is made of a payload on its way to the disk.
pub(crate) fn encode(update: &Update, seed: u32, out: &mut [u8]) {
    let flags = [(update.cut_tail.is_some(), CUT), (update.compact_to.is_some(), COMPACT)];
    let flags = flags.iter().map(|(set, flag)| if *set { *flag } else { 0 }).sum::<u32>();
    let HardState { term, vote, commit } = update.hard_state;
    let start = u64::from(seed) | u64::from(flags) << 32;
    // Word by word where they stay: the sum reads words, and would wait for what was copied here in larger pieces.
    let fields = [start, update.group.0, term.0, vote.0, commit.0, update.runs.len() as u64];
    for (place, field) in out.as_chunks_mut::<8>().0.iter_mut().zip(fields) {
        *place = field.to_le_bytes();
    }
    let mut at = FRAME_HEADER_BYTES;
    if flags != 0 || update.record.is_some() {
        at = encode_rare(update, out);
    }
    // All up to the first run and the header of that lie together: one sum, for most frames.
    let (mut sum, mut from) = (0, 0);
    for run in &update.runs {
        let [bytes, apart] = run.parts();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        sum = crc(sum, &out[from..at + RUN_HEADER_BYTES]);
        at += bytes.len();
        if !apart.is_empty() {
            out[at..at + apart.len()].copy_from_slice(apart);
            at += apart.len();
        }
        from = at;
    }
    assert_eq!(at, out.len(), "a frame is as long as it was said to be");
    if update.runs.is_empty() {
        sum = crc(0, out);
    }
    out[..4].copy_from_slice(&sum.to_le_bytes());
}

/// Writes what few frames have. Where the first run begins.
fn encode_rare(update: &Update, out: &mut [u8]) -> usize {
    let mut at = FRAME_HEADER_BYTES;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    if let Some(from) = update.cut_tail {
        put(&from.0.to_le_bytes());
    }
    if let Some(to) = update.compact_to {
        put(&to.term.0.to_le_bytes());
        put(&to.index.0.to_le_bytes());
    }
    if let Some(record) = &update.record {
        let mut bytes = Vec::new();
        put_record(&mut bytes, record);
        let len = bytes.len();
        bytes.resize(len.next_multiple_of(8), 0);
        put(&bytes);
        out[44..48].copy_from_slice(&(len as u32).to_le_bytes());
    }
    at
}

impl Frame {
    /// Reads the frame that `bytes` are, all of them, and checks its own checksum; the runs' bytes are not looked at.
    pub(crate) fn decode(bytes: &[u8], seed: u32) -> Result<Self, FrameFault> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(FrameFault::Damaged("frame: too short"));
        }
        let mut b = bytes;
        let (sum, flags) = (b.get_u32_le(), b.get_u32_le());
        let group = GroupId(b.get_u64_le());
        let hard_state =
            HardState { term: Term(b.get_u64_le()), vote: ReplicaId(b.get_u64_le()), commit: Index(b.get_u64_le()) };
        let (run_count, record_len) = (b.get_u32_le() as usize, b.get_u32_le() as usize);
        let front = [8 * usize::from(flags & CUT != 0), 16 * usize::from(flags & COMPACT != 0)];
        let record_at = FRAME_HEADER_BYTES + front[0] + front[1];
        let runs_at = record_at.saturating_add(record_len.next_multiple_of(8));
        if runs_at > bytes.len() || run_count > bytes.len() / RUN_HEADER_BYTES {
            return Err(FrameFault::Damaged("frame: its lengths do not fit"));
        }
        let mut fixed = [0; FRAME_HEADER_BYTES];
        fixed.copy_from_slice(&bytes[..FRAME_HEADER_BYTES]);
        fixed[..4].copy_from_slice(&seed.to_le_bytes());
        let summed = crc(crc(0, &fixed), &bytes[FRAME_HEADER_BYTES..runs_at]);
        let (runs, summed) = walk_runs(bytes, runs_at, run_count, summed)?;
        if summed != sum {
            return Err(FrameFault::Damaged("frame: checksum mismatch"));
        }
        if flags & !KNOWN_FLAGS != 0 {
            return Err(FrameFault::NotUnderstood("frame: unknown flags"));
        }
        let end = runs.last().map_or(runs_at, |r| (r.offset + r.length) as usize);
        if end != bytes.len() {
            return Err(FrameFault::NotUnderstood("frame: bytes left over"));
        }
        if runs.iter().any(|r| Run::measure(&bytes[r.offset as usize..]).is_err()) {
            return Err(FrameFault::NotUnderstood("frame: a run of an unknown kind"));
        }
        let cut_tail = (flags & CUT != 0).then(|| Index(b.get_u64_le()));
        let compact_to = (flags & COMPACT != 0).then(|| LogPos::new(Term(b.get_u64_le()), Index(b.get_u64_le())));
        let mut record_bytes = &bytes[record_at..record_at + record_len];
        let record = if record_len > 0 { Some(Box::new(take_record(&mut record_bytes)?)) } else { None };
        Ok(Self { group, hard_state, cut_tail, compact_to, record, runs })
    }

    /// The first and the last index of the entries.
    pub(crate) fn appended(&self) -> Option<(Index, Index)> {
        Some((self.runs.first()?.first, self.runs.last()?.last))
    }
}

/// The length of a run in bytes, by its header.
pub(crate) fn run_length(head: &[u8]) -> u64 {
    let entries = u64::from((&head[4..]).get_u32_le());
    let mut b = &head[40..];
    let (payload, session) = (u64::from(b.get_u32_le()), u64::from(b.get_u32_le()));
    RUN_HEADER_BYTES as u64 + entries * DESCRIPTOR_BYTES as u64 + session + payload
}

/// Takes the runs out of a frame, checksums of their contents included.
pub(crate) fn runs(frame: &Frame, bytes: &Bytes) -> Result<SmallVec<[Run; 1]>, FrameFault> {
    frame
        .runs
        .iter()
        .map(|at| {
            let mut input = bytes.slice(at.offset as usize..(at.offset + at.length) as usize);
            Run::decode(&mut input).map_err(run_fault)
        })
        .collect()
}

/// Checks the runs of a frame where they lie, checksums of their contents included.
pub(crate) fn check_runs(frame: &Frame, bytes: &[u8]) -> Result<(), FrameFault> {
    for at in &frame.runs {
        Run::verify(&bytes[at.offset as usize..(at.offset + at.length) as usize]).map_err(run_fault)?;
    }
    Ok(())
}

fn run_fault(e: RunError) -> FrameFault {
    match e {
        RunError::Checksum(_) => FrameFault::Damaged("run: checksum mismatch"),
        _ => FrameFault::NotUnderstood("run: unknown contents"),
    }
}

/// Finds the runs by the lengths in their headers and sums those. Says nothing of what is in them.
fn walk_runs(
    bytes: &[u8],
    mut at: usize,
    count: usize,
    mut sum: u32,
) -> Result<(SmallVec<[RunAt; 1]>, u32), FrameFault> {
    const BEYOND: FrameFault = FrameFault::Damaged("frame: a run reaches beyond it");
    let mut runs = SmallVec::new();
    for _ in 0..count {
        let head = bytes[at..].get(..RUN_HEADER_BYTES).ok_or(BEYOND)?;
        sum = crc(sum, head);
        let mut b = &head[4..];
        let entries = u64::from(b.get_u32_le());
        let (term, first) = (Term(b.get_u64_le()), Index(b.get_u64_le()));
        let length = run_length(head);
        if length > (bytes.len() - at) as u64 {
            return Err(BEYOND);
        }
        let length = length as usize;
        let last = Index(first.0.saturating_add(entries.saturating_sub(1)));
        runs.push(RunAt { term, first, last, offset: at as u32, length: length as u32 });
        at += length;
    }
    Ok((runs, sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bootstrap;
    use longboat_raft::{EntryKind, Origin, RunBuilder};
    use smallvec::smallvec;

    fn update() -> Update {
        let run = |first: u64, payloads: &[&[u8]]| {
            let mut b = RunBuilder::new();
            for (i, p) in payloads.iter().enumerate() {
                b.push(EntryKind::Command, i as u64, p);
            }
            b.seal(Term(4), Index(first), Origin { replica: ReplicaId(1), start: 5 })
        };
        Update {
            group: GroupId(77),
            hard_state: HardState { term: Term(4), vote: ReplicaId(2), commit: Index(9) },
            cut_tail: Some(Index(10)),
            runs: smallvec![run(10, &[b"abc", b""]), run(12, &[b"defgh"])],
            compact_to: Some(LogPos::new(Term(3), Index(8))),
            record: Some(Box::new(Record::Bootstrap(Bootstrap::default()))),
        }
    }

    /// Over bytes that say something else before.
    fn encoded(update: &Update, seed: u32) -> Vec<u8> {
        let mut bytes = vec![0xaa; front_len(update) + runs_len(update)];
        encode(update, seed, &mut bytes);
        bytes
    }

    #[test]
    fn a_frame_reads_back_as_it_was_written() {
        for update in [update(), Update { group: GroupId(1), ..Update::default() }] {
            let bytes = encoded(&update, 99);
            let frame = Frame::decode(&bytes, 99).expect("valid");
            assert_eq!(frame.group, update.group);
            assert_eq!(frame.hard_state, update.hard_state);
            assert_eq!(frame.cut_tail, update.cut_tail);
            assert_eq!(frame.compact_to, update.compact_to);
            assert_eq!(frame.record, update.record);
            assert_eq!(runs(&frame, &bytes.into()).expect("valid"), update.runs);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed_by_the_frame_or_by_its_runs() {
        let bytes = encoded(&update(), 99);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = Frame::decode(&bad, 99).and_then(|f| runs(&f, &bad.clone().into()));
            assert!(read.is_err(), "bit {bit} of {} went unnoticed", bytes.len() * 8);
        }
    }

    #[test]
    fn a_frame_of_another_use_is_refused() {
        let bytes = encoded(&update(), 99);
        assert_eq!(Frame::decode(&bytes, 98), Err(FrameFault::Damaged("frame: checksum mismatch")));
    }
}
