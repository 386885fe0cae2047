//! A state machine as large as it is told to be, that holds none of it: what it saves is generated, and what it recovers is
//! checked, block by block. So the memory that is measured is the engine's.

use bytes::BytesMut;
use longboat::{Codec, CodecError, Index, MachineError, Payload, StateMachine};
use std::io;
use std::sync::LazyLock;

/// Bytes of a generated block: each begins with its number and the state's, then comes a pattern.
const BLOCK_BYTES: usize = 256 << 10;
/// Bytes of those numbers.
const HEAD_BYTES: usize = 24;

/// The pattern. It does not compress.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut word = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    (0..BLOCK_BYTES / 8).flat_map(|_| word().to_le_bytes()).collect()
});

/// What is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkCommand {
    /// The state has so many bytes from now on.
    Resize(u64),
    /// Nothing but bytes in the log.
    Noise(&'static [u8]),
    /// The same as it is applied.
    Heard,
}

impl Codec for BulkCommand {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Resize(bytes) => {
                out.extend_from_slice(&[1]);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Self::Noise(bytes) => {
                out.extend_from_slice(&[0]);
                out.extend_from_slice(bytes);
            }
            Self::Heard => unreachable!("what was applied is not proposed again"),
        }
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        match payload.as_slice() {
            [0, ..] => Ok(Self::Heard),
            [1, bytes @ ..] if bytes.len() == 8 => Ok(Self::Resize(word(bytes, 0))),
            _ => Err(CodecError("neither noise nor a size".to_owned())),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
}

/// The state machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bulk {
    bytes: u64,
    count: u64,
}

impl Bulk {
    fn head(&self, block: u64) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        for (at, word) in [block, self.bytes, self.count].into_iter().enumerate() {
            head[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        head
    }

    fn blocks(&self) -> u64 {
        self.bytes.div_ceil(BLOCK_BYTES as u64).max(1)
    }
}

impl StateMachine for Bulk {
    type Command = BulkCommand;
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _index: Index, command: BulkCommand) -> Result<u64, MachineError> {
        if let BulkCommand::Resize(bytes) = command {
            self.bytes = bytes;
        }
        self.count += 1;
        Ok(self.count)
    }

    fn lookup(&self, _query: ()) -> Result<u64, MachineError> {
        Ok(self.count)
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        let mut block = PATTERN.clone();
        for number in 0..self.blocks() {
            block[..HEAD_BYTES].copy_from_slice(&self.head(number));
            out.write_all(&block)?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut block = vec![0; BLOCK_BYTES];
        let (mut number, mut blocks) = (0, 1);
        while number < blocks {
            input.read_exact(&mut block)?;
            if number == 0 {
                *self = Self { bytes: word(&block, 8), count: word(&block, 16) };
                blocks = self.blocks();
            }
            if block[..HEAD_BYTES] != self.head(number) || block[HEAD_BYTES..] != PATTERN[HEAD_BYTES..] {
                return Err(MachineError::user(format!("block {number} is not what was saved")));
            }
            number += 1;
        }
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        Some(self.bytes.rotate_left(32) ^ self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_recovers_from_what_it_saved_and_from_nothing_else() {
        let bulk = Bulk { bytes: 600 << 10, count: 7 };
        let mut file = Vec::new();
        bulk.save(&mut file).expect("a vector takes all");
        assert_eq!(file.len(), 3 * BLOCK_BYTES);
        let mut back = Bulk::default();
        back.recover(&mut file.as_slice()).expect("what was saved");
        assert_eq!(back, bulk);
        file[BLOCK_BYTES + 100] ^= 1;
        back.recover(&mut file.as_slice()).expect_err("a byte differs");
    }
}
