//! The state machine under load: it counts commands and their bytes, so that what is measured is the engine.

use bytes::BytesMut;
use longboat::{Codec, CodecError, Index, MachineError, Payload, StateMachine};
use std::io;

/// A command of a given size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// As it is proposed: all proposals of a run share these bytes, each is copied into the log.
    Sent(&'static [u8]),
    /// As it is applied: looked at where it lies in the log.
    Received {
        /// The number of bytes.
        len: u64,
        /// First and last byte: proof that they were read.
        ends: u64,
    },
}

impl Codec for Load {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Sent(bytes) => out.extend_from_slice(bytes),
            Self::Received { .. } => unreachable!("what was applied is not proposed again"),
        }
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        let bytes = payload.as_slice();
        let ends = bytes.first().zip(bytes.last()).map_or(0, |(a, b)| u64::from(*a) + u64::from(*b));
        Ok(Self::Received { len: bytes.len() as u64, ends })
    }
}

/// Counts commands and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    count: u64,
    bytes: u64,
    ends: u64,
}

impl StateMachine for Counter {
    type Command = Load;
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _index: Index, command: Load) -> Result<u64, MachineError> {
        if let Load::Received { len, ends } = command {
            self.count += 1;
            self.bytes += len;
            self.ends = self.ends.wrapping_add(ends);
        }
        Ok(self.count)
    }

    fn lookup(&self, _query: ()) -> Result<u64, MachineError> {
        Ok(self.count)
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        for field in [self.count, self.bytes, self.ends] {
            out.write_all(&field.to_le_bytes())?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        for field in [&mut self.count, &mut self.bytes, &mut self.ends] {
            let mut bytes = [0; 8];
            input.read_exact(&mut bytes)?;
            *field = u64::from_le_bytes(bytes);
        }
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        Some(self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.bytes.rotate_left(32) ^ self.ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_counter_recovers_to_the_same_state() {
        let mut counter = Counter::default();
        let seen = Load::Received { len: 16, ends: 9 };
        assert_eq!(counter.apply(Index(1), seen).expect("counts"), 1);
        assert_eq!(counter.apply(Index(2), seen).expect("counts"), 2);
        let mut file = Vec::new();
        counter.save(&mut file).expect("a vector takes all");
        let mut back = Counter::default();
        back.recover(&mut file.as_slice()).expect("what was saved");
        assert_eq!(back, counter);
    }
}
