//! Whose data directory it is: the `store` file, and the random numbers that name stores and segment uses.
//!
//! The file is written last when a directory is made, so a directory with one is whole. Layout, little-endian: magic
//! (8), version (4), checksum of what follows (4), host id (8), store id (16).

use crate::OpenError;
use bytes::{Buf, BufMut};
use longboat_io::SharedDisk;
use longboat_raft::crc::crc32c;
use longboat_raft::{HostId, StoreId};
use std::io::{self, Read};
use std::path::Path;

const MAGIC: [u8; 8] = *b"LONGBOAT";
const VERSION: u32 = 3;
const FILE: &str = "store";
const FILE_NEXT: &str = "store.next";
const BYTES: usize = 40;

/// What a directory may hold before it has an identity: what an interrupted first opening leaves, and what a file system
/// puts at its root.
pub(crate) const LEFTOVERS: [&str; 5] = [LOCK, FILE_NEXT, "journal", "kv", LOST_AND_FOUND];
/// The file that the real disk locks for its directory.
pub(crate) const LOCK: &str = "LOCK";
/// Where file systems put what they repaired. A directory may be the root of one.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// The directory's store; `None` when it has no identity yet.
pub(crate) fn read(disk: &SharedDisk, dir: &Path, host: HostId) -> Result<Option<StoreId>, OpenError> {
    let path = dir.join(FILE);
    if !disk.exists(&path) {
        return Ok(None);
    }
    let file = disk.open(&path)?;
    let foreign = |why: String| OpenError::Format(format!("{}: {why}", path.display()));
    if file.len()? != BYTES as u64 {
        return Err(foreign(format!("{} bytes long, not {BYTES}", file.len()?)));
    }
    let mut bytes = [0; BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    let Some(mut b) = bytes.strip_prefix(&MAGIC) else { return Err(foreign("wrong magic number".into())) };
    let (version, sum) = (b.get_u32_le(), b.get_u32_le());
    if version != VERSION {
        return Err(foreign(format!("version {version}, this build reads {VERSION}")));
    }
    if sum != crc32c(0, b) {
        return Err(OpenError::Corrupt(format!("{}: checksum mismatch", path.display())));
    }
    let (found, store) = (HostId(b.get_u64_le()), StoreId(b.get_u128_le()));
    if found != host {
        return Err(OpenError::OtherHost { expected: host, found });
    }
    // Seen here is not yet durable: the process before may have died between renaming and syncing.
    disk.sync_dir(dir)?;
    Ok(Some(store))
}

/// Gives the directory its identity, durably.
pub(crate) fn write(disk: &SharedDisk, dir: &Path, host: HostId, store: StoreId) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.put_slice(&MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u32_le(0);
    bytes.put_u64_le(host.0);
    bytes.put_u128_le(store.0);
    let sum = crc32c(0, &bytes[16..]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    let next = dir.join(FILE_NEXT);
    if disk.exists(&next) {
        disk.remove_file(&next)?;
    }
    let mut file = disk.create(&next)?;
    file.write_all_at(&bytes, 0)?;
    file.sync_data()?;
    disk.rename(&next, &dir.join(FILE))?;
    disk.sync_dir(dir)
}

/// Where ids come from: the machine's random numbers, or a seed when runs must repeat.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ids {
    Random,
    Seeded(u64),
}

impl Ids {
    pub(crate) fn store(self) -> io::Result<StoreId> {
        match self {
            Self::Random => Ok(StoreId(u128::from_le_bytes(random()?))),
            Self::Seeded(seed) => Ok(StoreId(u128::from(mix(seed, 1)) << 64 | u128::from(mix(seed, 2)))),
        }
    }

    /// The id of an opening of a store that goes on at a place whose blocks have this checksum. Random ones never repeat. A
    /// seeded one repeats only if nothing was written since the opening before, so that there is nothing to tell apart.
    pub(crate) fn opening(self, last_seq: u64, blocks: u32) -> io::Result<u64> {
        match self {
            Self::Random => Ok(u64::from_le_bytes(random()?)),
            Self::Seeded(seed) => Ok(mix(mix(mix(seed, 4), last_seq), u64::from(blocks))),
        }
    }

    pub(crate) fn is_random(self) -> bool {
        matches!(self, Self::Random)
    }

    /// The id of a use of a segment. Use numbers never repeat on a directory, so seeded ids don't either.
    pub(crate) fn segment_use(self, use_number: u64) -> io::Result<u64> {
        match self {
            Self::Random => Ok(u64::from_le_bytes(random()?)),
            Self::Seeded(seed) => Ok(mix(mix(seed, 3), use_number)),
        }
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The finalizer of splitmix64 over both numbers: spreads neighbouring seeds over all bits.
fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..2 {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    z
}
