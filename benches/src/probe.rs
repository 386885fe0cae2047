//! What the machine allows: a sync, a round trip, a stream of bytes. Figures of the engine mean little without these.

use crate::report::Quantiles;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Bytes of the probe's file: that of a journal segment.
const FILE_BYTES: u64 = 64 << 20;
/// Bytes of one small write: a journal's block.
const BLOCK_BYTES: usize = 4096;
/// Bytes of one large write.
const STREAM_WRITE_BYTES: usize = 4 << 20;
/// Syncs timed. Enough for a p99, a few hundred milliseconds on a good disk.
const SYNCS: u64 = 2_000;
/// Passes over the file when bandwidth is measured.
const STREAM_PASSES: u64 = 8;
/// Round trips timed.
const ROUND_TRIPS: u32 = 20_000;
/// Bytes of a message that goes round.
const MESSAGE_BYTES: usize = 64;

/// What the machine allows.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// A 4 KiB write and `fdatasync` into blocks that were written before.
    pub fdatasync_us: Quantiles,
    /// The same while the file grows.
    pub fdatasync_extending_us: Quantiles,
    /// A message of 64 bytes and its answer over loopback TCP.
    pub loopback_round_trip_us: Quantiles,
    /// Writes of 4 MiB over blocks that were written before, synced at the end.
    pub overwrite_mb_per_s: f64,
    /// The same into a new file.
    pub extend_mb_per_s: f64,
}

impl Probe {
    /// Measures in a file of 64 MiB under `dir`, which is removed afterwards.
    ///
    /// # Errors
    /// When the directory or loopback can't be used.
    pub fn run(dir: &Path) -> io::Result<Self> {
        let path = dir.join("longboat-probe.tmp");
        let extend_mb_per_s = stream(&create(&path)?, 1)?;
        let file = File::options().write(true).open(&path)?;
        let overwrite_mb_per_s = stream(&file, STREAM_PASSES)?;
        let fdatasync_us = syncs(&file)?;
        let fdatasync_extending_us = syncs(&create(&path)?)?;
        std::fs::remove_file(&path)?;
        let loopback_round_trip_us = round_trips()?;
        Ok(Self { fdatasync_us, fdatasync_extending_us, loopback_round_trip_us, overwrite_mb_per_s, extend_mb_per_s })
    }

    /// The probe as lines for a reader.
    pub fn table(&self) -> String {
        let q = |name: &str, q: &Quantiles| format!("{name:<44} p50 {:>8.1} us   p99 {:>8.1} us\n", q.p50, q.p99);
        let mb = |name: &str, v: f64| format!("{name:<44} {v:>12.0} MB/s\n");
        [
            q("4 KiB + fdatasync over recycled blocks", &self.fdatasync_us),
            q("4 KiB + fdatasync while the file grows", &self.fdatasync_extending_us),
            q("64 B round trip over loopback TCP", &self.loopback_round_trip_us),
            mb("sequential write over recycled blocks", self.overwrite_mb_per_s),
            mb("sequential write of a new file", self.extend_mb_per_s),
        ]
        .concat()
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).open(path)
}

fn stream(file: &File, passes: u64) -> io::Result<f64> {
    let block = vec![7u8; STREAM_WRITE_BYTES];
    let start = Instant::now();
    for _ in 0..passes {
        for at in (0..FILE_BYTES).step_by(STREAM_WRITE_BYTES) {
            file.write_all_at(&block, at)?;
        }
        file.sync_data()?;
    }
    Ok((passes * FILE_BYTES) as f64 / 1e6 / start.elapsed().as_secs_f64())
}

fn syncs(file: &File) -> io::Result<Quantiles> {
    let block = vec![9u8; BLOCK_BYTES];
    let mut nanos = Vec::with_capacity(SYNCS as usize);
    for i in 0..SYNCS {
        let start = Instant::now();
        file.write_all_at(&block, i * BLOCK_BYTES as u64 % FILE_BYTES)?;
        file.sync_data()?;
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    Ok(Quantiles::of_nanos(nanos))
}

fn round_trips() -> io::Result<Quantiles> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let mut message = [0; MESSAGE_BYTES];
        for _ in 0..ROUND_TRIPS {
            socket.read_exact(&mut message)?;
            socket.write_all(&message)?;
        }
        Ok(())
    });
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut message = [1; MESSAGE_BYTES];
    let mut nanos = Vec::with_capacity(ROUND_TRIPS as usize);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        socket.write_all(&message)?;
        socket.read_exact(&mut message)?;
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    echo.join().expect("the echo thread does not panic")?;
    Ok(Quantiles::of_nanos(nanos))
}

/// Bytes that are written, sent or read at once by the probes for snapshots.
const SNAPSHOT_BLOCK_BYTES: usize = 256 << 10;

/// What the machine allows for a step of a snapshot's life: so many bytes, in a directory; millions of bytes per second.
pub type SnapshotProbe = fn(&Path, u64) -> io::Result<f64>;

fn blocks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    let block = SNAPSHOT_BLOCK_BYTES as u64;
    (0..bytes.div_ceil(block)).map(move |n| (n * block, block.min(bytes - n * block) as usize))
}

fn rate(bytes: u64, begun: Instant) -> f64 {
    bytes as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

/// Writes a new file and syncs it: what saving comes down to.
///
/// # Errors
/// When the directory can't be used.
pub fn write(dir: &Path, bytes: u64) -> io::Result<f64> {
    let path = dir.join("longboat-probe.tmp");
    let block = vec![7u8; SNAPSHOT_BLOCK_BYTES];
    let begun = Instant::now();
    let file = create(&path)?;
    for (at, len) in blocks(bytes) {
        file.write_all_at(&block[..len], at)?;
    }
    file.sync_data()?;
    let rate = rate(bytes, begun);
    std::fs::remove_file(&path)?;
    Ok(rate)
}

/// Sends bytes over loopback TCP into a new file and syncs it: what a transfer comes down to.
///
/// # Errors
/// When the directory or loopback can't be used.
pub fn transfer(dir: &Path, bytes: u64) -> io::Result<f64> {
    let path = dir.join("longboat-probe.tmp");
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let begun = Instant::now();
    let sender = std::thread::spawn(move || -> io::Result<()> {
        let mut socket = TcpStream::connect(address)?;
        let block = vec![7u8; SNAPSHOT_BLOCK_BYTES];
        blocks(bytes).try_for_each(|(_, len)| socket.write_all(&block[..len]))
    });
    let (mut socket, _) = listener.accept()?;
    let file = create(&path)?;
    let mut block = vec![0u8; SNAPSHOT_BLOCK_BYTES];
    for (at, len) in blocks(bytes) {
        socket.read_exact(&mut block[..len])?;
        file.write_all_at(&block[..len], at)?;
    }
    file.sync_data()?;
    let rate = rate(bytes, begun);
    sender.join().expect("the sending thread does not panic")?;
    std::fs::remove_file(&path)?;
    Ok(rate)
}

/// Reads a file that was just written, checks it with CRC32C and copies it: what recovering comes down to.
///
/// # Errors
/// When the directory can't be used.
pub fn recover(dir: &Path, bytes: u64) -> io::Result<f64> {
    let path = dir.join("longboat-probe.tmp");
    let mut block = vec![7u8; SNAPSHOT_BLOCK_BYTES];
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    for (at, len) in blocks(bytes) {
        file.write_all_at(&block[..len], at)?;
    }
    file.sync_data()?;
    let mut copy = vec![0u8; SNAPSHOT_BLOCK_BYTES];
    let begun = Instant::now();
    let mut sum = 0;
    for (at, len) in blocks(bytes) {
        file.read_exact_at(&mut block[..len], at)?;
        sum = crc32c::crc32c_append(sum, &block[..len]);
        copy[..len].copy_from_slice(&block[..len]);
        std::hint::black_box(&copy);
    }
    std::hint::black_box(sum);
    let rate = rate(bytes, begun);
    std::fs::remove_file(&path)?;
    Ok(rate)
}
