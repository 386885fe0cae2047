//! A state machine that remembers its whole history as a chain of hashes, so that what is lost, doubled or out of order shows.

use bytes::BytesMut;
use longboat::{Codec, CodecError, Index, MachineError, Payload, StateMachine};
use std::io;

/// A serial number that is proposed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial(pub u64);

impl Codec for Serial {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        let bytes = payload.as_slice().try_into();
        bytes.map(|b| Self(u64::from_le_bytes(b))).map_err(|_| CodecError("a serial number is eight bytes".to_owned()))
    }
}

/// A place in the history: how many commands came before and with it, and the hash of all of them in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Commands so far.
    pub count: u64,
    /// Their hash.
    pub hash: u64,
}

/// The hash of a history and one more command.
pub const fn chained(hash: u64, serial: u64) -> u64 {
    let mixed = (hash ^ serial).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(31)
}

/// The history, one hash a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    hashes: Vec<u64>,
}

impl StateMachine for Chain {
    type Command = Serial;
    type Output = Link;
    /// The number of commands of a prefix.
    type Query = u64;
    /// The last link of that prefix, or of the whole history where it is shorter.
    type Answer = Link;

    fn apply(&mut self, _index: Index, command: Serial) -> Result<Link, MachineError> {
        let hash = chained(self.hashes.last().copied().unwrap_or(0), command.0);
        self.hashes.push(hash);
        Ok(Link { count: self.hashes.len() as u64, hash })
    }

    fn lookup(&self, prefix: u64) -> Result<Link, MachineError> {
        let count = prefix.min(self.hashes.len() as u64);
        let hash = count.checked_sub(1).map_or(0, |last| self.hashes[last as usize]);
        Ok(Link { count, hash })
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        out.write_all(&(self.hashes.len() as u64).to_le_bytes())?;
        for hash in &self.hashes {
            out.write_all(&hash.to_le_bytes())?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut bytes = [0; 8];
        input.read_exact(&mut bytes)?;
        self.hashes.clear();
        for _ in 0..u64::from_le_bytes(bytes) {
            input.read_exact(&mut bytes)?;
            self.hashes.push(u64::from_le_bytes(bytes));
        }
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        Some(self.hashes.last().copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(serials: &[u64]) -> Chain {
        let mut chain = Chain::default();
        for &serial in serials {
            chain.apply(Index(1), Serial(serial)).expect("never fails");
        }
        chain
    }

    #[test]
    fn what_is_lost_doubled_or_out_of_order_shows_in_the_link() {
        let good = chain(&[5, 6, 7]).lookup(3).expect("never fails");
        for other in [&[5, 7][..], &[5, 6, 6, 7], &[6, 5, 7]] {
            assert_ne!(chain(other).lookup(3).expect("never fails"), good, "{other:?}");
        }
        assert_eq!(chain(&[5, 6, 7, 8]).lookup(3).expect("never fails"), good, "a longer history keeps it");
    }

    #[test]
    fn a_saved_history_recovers_to_the_same_links() {
        let before = chain(&[1, 2, 3]);
        let mut file = Vec::new();
        before.save(&mut file).expect("a vector takes all");
        let mut after = chain(&[9]);
        after.recover(&mut file.as_slice()).expect("what was saved");
        assert_eq!(after, before);
    }
}
