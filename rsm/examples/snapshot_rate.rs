//! How fast snapshots are saved and recovered, next to what the machine does with the same bytes without us.
//!
//! `snapshot_rate [directory] [files] [MiB of each file]`. Per file, alternating: a plain write and sync of a new file, a save,
//! a plain read with a checksum and a copy, a recovery. The machine makes its bytes as it goes and checks them, so that memory is
//! not its own. Times of all files are summed before rates and ratios are taken.

use longboat_io::disk::SharedDisk;
use longboat_io::{Job, JobState, RealDisk};
use longboat_raft::{GroupId, Index, LogPos, ReplicaId, Run, SnapshotMeta, Term};
use longboat_rsm::snapshot::{
    Content, Prepared, RecoverJob, RecoverTask, SaveJob, SaveTask, SharedMachine, SnapshotHeader, SnapshotStore,
};
use longboat_rsm::{AnyCompletion, AnyReads, DynMachine, MachineError};
use parking_lot::Mutex;
use std::error::Error;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PIECE: usize = 256 << 10;

/// Writes so many pieces, each of which says its number, and checks them when they come back.
struct Pieces {
    pieces: u64,
}

fn piece(number: u64, buffer: &mut [u8]) {
    buffer[..8].copy_from_slice(&number.to_le_bytes());
}

impl DynMachine for Pieces {
    fn apply_run(&mut self, _: &Run, _: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        Ok(())
    }

    fn lookup(&self, _: Box<dyn AnyReads>) {}

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        let mut buffer = vec![0xa7; PIECE];
        for number in 0..self.pieces {
            piece(number, &mut buffer);
            out.write_all(&buffer)?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut buffer = vec![0; PIECE];
        for number in 0..self.pieces {
            input.read_exact(&mut buffer)?;
            if buffer[..8] != number.to_le_bytes() || buffer[PIECE - 1] != 0xa7 {
                return Err(MachineError::user(format!("piece {number} is not what was saved")));
            }
        }
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        None
    }
}

fn run(mut job: impl Job) {
    while job.step(1 << 20) != JobState::Done {}
}

/// The same bytes, by the shortest way: written to a new file and synced.
fn plain_write(path: &Path, pieces: u64) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    let mut buffer = vec![0xa7; PIECE];
    for number in 0..pieces {
        piece(number, &mut buffer);
        file.write_all(&buffer)?;
    }
    file.sync_all()
}

/// The same bytes, read, summed and copied once.
fn plain_read(path: &Path, pieces: u64) -> std::io::Result<u32> {
    let mut file = std::fs::File::open(path)?;
    let (mut buffer, mut copy) = (vec![0; PIECE], vec![0; PIECE]);
    let mut crc = 0;
    for _ in 0..pieces {
        file.read_exact(&mut buffer)?;
        crc = crc32c::crc32c_append(crc, &buffer);
        copy.copy_from_slice(std::hint::black_box(&buffer));
        std::hint::black_box(&copy);
    }
    Ok(crc)
}

fn timed<T>(total: &mut Duration, what: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = what();
    *total += begun.elapsed();
    done
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| "snapshot-rate".to_owned());
    let files: u64 = arguments.next().map_or(Ok(64), |n| n.parse())?;
    let mib: u64 = arguments.next().map_or(Ok(16), |n| n.parse())?;
    let pieces = mib * (1 << 20) / PIECE as u64;
    std::fs::create_dir_all(&dir)?;
    let disk: SharedDisk = Arc::new(RealDisk);
    let store = SnapshotStore::new(disk, Path::new(&dir).join("snapshots"));
    let mut times = [Duration::ZERO; 4];
    for file in 1..=files {
        let plain = Path::new(&dir).join(format!("plain-{file}"));
        timed(&mut times[0], || plain_write(&plain, pieces))?;
        let machine: SharedMachine = Arc::new(Mutex::new(Box::new(Pieces { pieces })));
        let meta = SnapshotMeta { pos: LogPos::new(Term(1), Index(1)), ..SnapshotMeta::default() };
        let (sender, outcome) = mpsc::channel();
        let task = SaveTask {
            prepared: Prepared::new(&machine, &mut **machine.lock(), Content::Full)?,
            header: SnapshotHeader { group: GroupId(file), meta, ..SnapshotHeader::default() },
            replica: ReplicaId(1),
            store: store.clone(),
            export_to: None,
            stop: Arc::default(),
            on_done: Box::new(move |saved| drop(sender.send(saved))),
        };
        timed(&mut times[1], || run(SaveJob::new(task)));
        outcome.recv()??;
        timed(&mut times[2], || plain_read(&plain, pieces))?;
        let (sender, outcome) = mpsc::channel();
        let task = RecoverTask {
            machine,
            group: GroupId(file),
            replica: ReplicaId(1),
            index: Index(1),
            older: Vec::new(),
            store: store.clone(),
            stop: Arc::default(),
            on_done: Box::new(move |recovered| drop(sender.send(recovered))),
        };
        timed(&mut times[3], || run(RecoverJob::new(task)));
        outcome.recv()??;
    }
    std::fs::remove_dir_all(&dir)?;
    let rate = |time: Duration| (files * mib) as f64 * 1.048_576 / time.as_secs_f64();
    let [write, save, read, recover] = times.map(rate);
    println!(
        "{{\"write_mb_s\":{write:.0},\"save_mb_s\":{save:.0},\"save_ratio\":{:.2},\"read_mb_s\":{read:.0},\"recover_mb_s\":{recover:.0},\"recover_ratio\":{:.2}}}",
        save / write,
        recover / read
    );
    Ok(())
}
