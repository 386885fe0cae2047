//! Hashes for comparing: two runs of a seed, and what replicas hold. Not for adversaries.

use longboat_raft::{EntryRef, Origin, SessionCall};

/// A running hash of 64 bits, the same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash64(u64);

impl Hash64 {
    /// Of nothing.
    pub const fn new() -> Self {
        Self(0x243F_6A88_85A3_08D3)
    }

    /// Adds a number.
    pub fn word(&mut self, word: u64) -> &mut Self {
        let mut x = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9FB2_1C65_1E98_DF25);
        x ^= x >> 32;
        self.0 = x;
        self
    }

    /// Adds bytes and their length.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.word(bytes.len() as u64).word(u64::from(crc32fast::hash(bytes)))
    }

    /// The hash so far.
    pub const fn value(&self) -> u64 {
        self.0
    }
}

impl Default for Hash64 {
    fn default() -> Self {
        Self::new()
    }
}

/// What makes an entry the entry that it is, its place apart.
pub fn entry_hash(entry: &EntryRef<'_>, origin: Origin) -> u64 {
    let mut hash = Hash64::new();
    hash.word(entry.kind as u64).word(entry.sequence).word(origin.replica.0).word(origin.start).bytes(entry.payload);
    if let Some(call) = entry.session {
        let words = match call {
            SessionCall::Propose { session, series, responded_to } => [session.0, series, responded_to],
            SessionCall::Register { sessions_max } => [0, u64::from(sessions_max), 1],
            SessionCall::Close { session } => [session.0, 0, 0],
        };
        words.into_iter().for_each(|word| {
            hash.word(word);
        });
    }
    hash.value()
}

/// The hash of a log that ends with this entry, given that of the log before it.
pub fn chain(before: u64, term: u64, entry: u64) -> u64 {
    Hash64(before).word(term).word(entry).value()
}
