//! The numbers by which epoll names what an event is about: a slot and the generation of what is in it.

/// Generations wrap at 30 bits: an event is handled long before a slot has been used that often.
pub(super) const GENERATION_MASK: u32 = (1 << 30) - 1;

pub(super) const WAKE: u64 = u64::MAX;
pub(super) const LISTENER: u64 = u64::MAX - 1;
const OUTBOUND: u64 = 1 << 62;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Wake,
    Listener,
    Outbound { slot: usize, generation: u32 },
    Inbound { slot: usize, generation: u32 },
}

pub(super) fn outbound(slot: usize, generation: u32) -> u64 {
    OUTBOUND | inbound(slot, generation)
}

pub(super) fn inbound(slot: usize, generation: u32) -> u64 {
    u64::from(generation & GENERATION_MASK) << 32 | slot as u64
}

pub(super) fn decode(token: u64) -> Token {
    let (slot, generation) = ((token & u64::from(u32::MAX)) as usize, (token >> 32) as u32 & GENERATION_MASK);
    match token {
        WAKE => Token::Wake,
        LISTENER => Token::Listener,
        _ if token & OUTBOUND != 0 => Token::Outbound { slot, generation },
        _ => Token::Inbound { slot, generation },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for (slot, generation) in [(0, 0), (5, 1), (u32::MAX as usize, GENERATION_MASK)] {
            assert_eq!(decode(outbound(slot, generation)), Token::Outbound { slot, generation });
            assert_eq!(decode(inbound(slot, generation)), Token::Inbound { slot, generation });
        }
        assert_eq!((decode(WAKE), decode(LISTENER)), (Token::Wake, Token::Listener));
    }
}
