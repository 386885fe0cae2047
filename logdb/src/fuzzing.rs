//! A journal that anybody may have changed: driven by a fuzzer, and by the tests with what it kept.
//!
//! A small store is made once. Each input changes bytes of its segments; checksums are made right where it says so: else
//! nothing behind them would ever be looked at. Then the store is opened, read, settled and closed.

use crate::format::{BLOCK, SegmentHeader, body_seed, crc, padded};
use crate::frame;
use crate::{
    Bootstrap, KeyValue, LogDb as _, Opened, Record, SEGMENT_BYTES_MIN, SharedLog, SharedLogConfig, SnapshotRecord,
    Update,
};
use longboat_io::JobState;
use longboat_io::sim::{SimDisk, SimDiskConfig};
use longboat_raft::run::RUN_HEADER_BYTES;
use longboat_raft::{
    EntryKind, GroupEpoch, GroupId, HardState, HostId, Index, LogPos, Member, Membership, Origin, ReplicaId, Run,
    RunBuilder, SnapshotMeta, Term,
};
use smallvec::smallvec;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Memory that opening a store of a few small segments may take, in bytes, the simulated disk with it: a window of a
/// megabyte to a segment, and what the records of that say.
pub const BYTES_MAX: usize = 16 << 20;

const DIR: &str = "/store";
const BATCHES: u64 = 9;

/// Ids come from the seed. As real ones are random, every opening has another: else what is left of a use that damage hid would
/// look like a part of the next one.
fn config(seed: u64) -> SharedLogConfig {
    SharedLogConfig {
        segment_bytes: SEGMENT_BYTES_MIN,
        journal_bytes_max: 2 * SEGMENT_BYTES_MIN,
        key_value: KeyValue::Memory,
        seed: Some(seed),
        ..SharedLogConfig::new(DIR, HostId(7))
    }
}

fn run(term: u64, first: u64) -> Run {
    let mut chunk = RunBuilder::new();
    chunk.push(EntryKind::Command, first, b"payload");
    chunk.push(EntryKind::Command, first + 1, b"another");
    chunk.seal(Term(term), Index(first), Origin { replica: ReplicaId(1), start: 9 })
}

/// What two groups make durable in batch `n`: something of every kind.
fn batch(n: u64) -> Vec<Update> {
    let membership = Membership::from_voters((1..4).map(|r| (ReplicaId(r), Member::default())));
    let hard_state = HardState { term: Term(1 + n / 4), vote: ReplicaId(2), commit: Index(n) };
    let of = |group| {
        let update = Update { group: GroupId(group), hard_state, ..Update::default() };
        if n == 1 {
            let (replica, epoch) = (ReplicaId(1), GroupEpoch(1));
            let record = Bootstrap { replica, epoch, membership: membership.clone(), ..Bootstrap::default() };
            return Update { record: Some(Box::new(Record::Bootstrap(record))), ..update };
        }
        // Three batches append two entries each, and the fourth overwrites the last one.
        let first = 2 * (n - 2) + 1 - n / 4;
        let cut_tail = n.is_multiple_of(4).then_some(Index(first));
        let update = Update { cut_tail, runs: smallvec![run(hard_state.term.0, first)], ..update };
        if n != 7 || group == 2 {
            return update;
        }
        let meta = SnapshotMeta { pos: LogPos::new(Term(1), Index(2)), membership: membership.clone() };
        let record = Record::Snapshot(SnapshotRecord { meta: meta.clone(), bytes: 77, resets_log: false });
        Update { compact_to: Some(meta.pos), record: Some(Box::new(record)), ..update }
    };
    vec![of(1), of(2)]
}

/// Polls until nothing is under way.
fn drain(disk: &SimDisk, log: &mut SharedLog) -> Result<(), crate::LogError> {
    while log.poll()?.in_flight {
        disk.set_now(disk.next_completion().expect("what is under way ends some time"));
    }
    Ok(())
}

fn store() -> &'static SimDisk {
    static STORE: OnceLock<SimDisk> = OnceLock::new();
    STORE.get_or_init(|| {
        let disk = SimDisk::new(3, SimDiskConfig::default());
        let mut log = SharedLog::open(disk.process(), config(1)).expect("a new store opens").log;
        for n in 1..=BATCHES {
            log.submit(batch(n));
            drain(&disk, &mut log).expect("nothing fails");
        }
        drop(log);
        disk
    })
}

/// Makes the store whose bytes are changed.
pub fn prepare() {
    store();
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "seg")).collect()
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: usize, sum: u32) {
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Makes the checksums of a segment right, as far as its lengths can be followed.
fn make_sums(bytes: &mut [u8]) {
    put(bytes, 12, crc(0, &bytes[16..64]));
    let Ok(header) = SegmentHeader::decode(bytes) else { return };
    let (seed, mut at) = (header.seed(), BLOCK as usize);
    while at + BLOCK as usize <= bytes.len() {
        let length = match &bytes[at..at + 4] {
            b"LBRC" => make_record_sums(&mut bytes[at..], seed),
            b"LBFT" => make_footer_sums(&mut bytes[at..], seed),
            _ => BLOCK,
        };
        at = at.saturating_add(padded(length.clamp(1, SEGMENT_BYTES_MIN)) as usize);
    }
}

/// Returns the length that it says it has.
fn make_record_sums(bytes: &mut [u8], seed: u32) -> u64 {
    let (length, frames, body_seed) = (le64(bytes, 16), le32(bytes, 40) as usize, body_seed(seed, le64(bytes, 48)));
    let front = 64 + frames.saturating_mul(16);
    if length <= bytes.len() as u64 && front as u64 <= length {
        for item in (64..front).step_by(16) {
            let (from, len) = (le32(bytes, item + 8) as usize, le32(bytes, item + 12) as usize);
            if from >= front && from + len <= length as usize {
                make_frame_sums(&mut bytes[from..from + len], body_seed);
            }
        }
        put(bytes, 44, crc(body_seed, &bytes[64..front]));
    }
    put(bytes, 4, crc(seed, &bytes[8..64]));
    length
}

fn make_footer_sums(bytes: &mut [u8], seed: u32) -> u64 {
    let length = le64(bytes, 16);
    if (64..=bytes.len() as u64).contains(&length) {
        put(bytes, 40, crc(body_seed(seed, le64(bytes, 44)), &bytes[64..length as usize]));
    }
    put(bytes, 4, crc(seed, &bytes[8..64]));
    length
}

fn make_frame_sums(bytes: &mut [u8], seed: u32) {
    if bytes.len() < 48 {
        return;
    }
    // A cut and a compaction point, where the flags say so, and a rare record come before the runs.
    let (flags, count, record) = (le32(bytes, 4) as usize, le32(bytes, 40), le32(bytes, 44) as usize);
    let mut at = 48 + 8 * (flags & 1) + 8 * (flags & 2) + record.next_multiple_of(8);
    if at > bytes.len() {
        return;
    }
    put(bytes, 0, seed);
    let mut sum = crc(0, &bytes[..at]);
    for _ in 0..count {
        let Some(run) = bytes.get_mut(at..).filter(|run| run.len() >= RUN_HEADER_BYTES) else { break };
        make_run_sums(run);
        sum = crc(sum, &run[..RUN_HEADER_BYTES]);
        at = at.saturating_add(frame::run_length(run) as usize);
    }
    put(bytes, 0, sum);
}

fn make_run_sums(bytes: &mut [u8]) {
    if let Ok((head, payload)) = Run::measure(bytes)
        && bytes.len() >= head + payload
    {
        let sum = crc(0, &bytes[head..head + payload]);
        put(bytes, 48, sum);
        put(bytes, 52, crc(crc(sum, &bytes[..48]), &bytes[RUN_HEADER_BYTES..head]));
    }
}

/// Changes bytes: a segment and a block of it, a place in that, a length, and as many bytes.
fn change(disk: &SimDisk, mut data: &[u8], sums: bool) {
    let files = segments(disk);
    while let [block, low, high, length, rest @ ..] = data {
        let (path, block) = (&files[usize::from(*block >> 4) % files.len()], usize::from(*block & 7));
        let (bytes, rest) = rest.split_at(rest.len().min(1 + usize::from(*length % 16)));
        // Most of a block is padding: one place in two is near its front.
        let place = usize::from(u16::from_le_bytes([*low, *high]));
        let place = if place.is_multiple_of(2) { place / 2 % 256 } else { place / 2 % BLOCK as usize };
        let from = block * BLOCK as usize + place;
        let write = |all: &mut [u8]| all.iter_mut().skip(from).zip(bytes).for_each(|(to, byte)| *to = *byte);
        disk.damage(path, write).expect("it was listed");
        data = rest;
    }
    if sums {
        files.iter().for_each(|path| disk.damage(path, make_sums).expect("it was listed"));
    }
}

/// The first byte says whether the checksums are to be right, the others what is changed.
pub fn journal(data: &[u8]) {
    let Some((mode, edits)) = data.split_first() else { return };
    let disk = store().fork();
    change(&disk, edits, mode & 1 == 0);
    let Ok(Opened { mut log, groups, .. }) = SharedLog::open(disk.process(), config(2)) else { return };
    let reader = log.reader();
    for group in groups.iter().filter(|g| g.last.index > g.start.index) {
        let (lo, hi) = (group.start.index.next(), group.last.index);
        if let Ok(runs) = reader.entries(group.group, lo, hi, 1 << 20) {
            assert_eq!(runs.first().map(Run::first), Some(lo), "of {group:?}");
        }
    }
    drop(reader);
    if used(&disk, &mut log).is_err() {
        return;
    }
    drop(log);
    let again = SharedLog::open(disk.process(), config(3)).unwrap_or_else(|e| panic!("opened before, and now {e}"));
    assert_eq!(again.groups, groups, "what is known has changed by itself");
}

/// What a host does that has nothing to write: it settles, and closes.
fn used(disk: &SimDisk, log: &mut SharedLog) -> Result<(), crate::LogError> {
    drain(disk, log)?;
    log.idle()?;
    drain(disk, log)?;
    for _ in 0..4 {
        let Some(mut job) = log.background_job() else { break };
        for _ in 0..100 {
            match job.step(1 << 20) {
                JobState::Again => {}
                JobState::Blocked => drain(disk, log)?,
                JobState::Done => break,
            }
        }
        log.pinned();
        drain(disk, log)?;
    }
    log.close()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzz_corpus_brings_refusals_at_worst() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/journal");
        let kept = std::fs::read_dir(corpus).expect("kept inputs");
        let mut files: Vec<_> = kept.map(|f| f.expect("one").path()).collect();
        files.sort();
        for file in files {
            eprintln!("{}", file.display());
            journal(&std::fs::read(file).expect("readable"));
        }
    }

    #[test]
    fn a_store_that_nobody_changed_opens_with_all_that_it_has() {
        let disk = store().fork();
        segments(&disk).iter().for_each(|path| disk.damage(path, make_sums).expect("it was listed"));
        let opened = SharedLog::open(disk.process(), config(2)).expect("the sums are those that were there");
        assert_eq!(
            (opened.groups.len(), opened.groups[0].start.index, opened.groups[1].start.index),
            (2, Index(2), Index(0))
        );
        assert!(opened.groups.iter().all(|g| g.last.index > Index(10)), "{:?}", opened.groups);
    }

    /// Gives the segment with this use another one, and opens the store.
    fn open_with_use(number: u64, claimed: u64) -> String {
        let disk = store().fork();
        let is_it = |path: &&PathBuf| {
            let front = disk.contents(path).expect("it was listed");
            SegmentHeader::decode(&front).is_ok_and(|header| header.use_number == number)
        };
        let path = segments(&disk).iter().find(is_it).expect("the store has two segments").clone();
        let change = |bytes: &mut [u8]| {
            bytes[40..48].copy_from_slice(&claimed.to_le_bytes());
            make_sums(bytes);
        };
        disk.damage(&path, change).expect("it was listed");
        SharedLog::open(disk.process(), config(2)).map(drop).expect_err("it can't be read").to_string()
    }

    /// Found by the fuzzer: the journal goes on in a segment whose use says that it is an earlier one, or none.
    #[test]
    fn segments_whose_uses_do_not_ascend_are_refused() {
        let refused = open_with_use(1, 9);
        assert!(refused.contains("use 2 of a segment comes after use 9"), "{refused}");
        for (number, claimed) in [(1, 0), (2, 0), (2, u64::MAX)] {
            let refused = open_with_use(number, claimed);
            assert!(refused.contains("missing") || refused.contains("no segment"), "{number} as {claimed}: {refused}");
        }
    }
}
