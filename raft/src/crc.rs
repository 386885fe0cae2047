//! CRC-32C, the checksum of runs and of the journal: the polynomial that processors have an instruction for.
//!
//! Most of what is summed are headers of some tens of bytes, where a call's fixed cost is what counts; those are summed
//! here, a word at a time. Long payloads go to the crate `crc32c`, which sums three parts of them at once.

/// Bytes from which on summing in parts pays.
#[cfg(target_arch = "x86_64")]
const LONG_BYTES: usize = 1024;

/// The CRC-32C of bytes whose own is `sum` and of `bytes` after them. With a `sum` of 0, that of `bytes`.
#[inline]
pub fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() < LONG_BYTES && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instructions that the function is compiled for; it asks for nothing else.
        return unsafe { short(sum, bytes) };
    }
    crc32c::crc32c_append(sum, bytes)
}

/// The CRC-32C of some bytes, and that continued over two more strings of them.
#[inline]
pub(crate) fn crc32c_through(first: &[u8], then: [&[u8]; 2]) -> (u32, u32) {
    #[cfg(target_arch = "x86_64")]
    if first.len() + then[0].len() + then[1].len() < LONG_BYTES && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instructions that the function is compiled for; it asks for nothing else.
        return unsafe { short_through(first, then) };
    }
    let sum = crc32c(0, first);
    (sum, crc32c(crc32c(sum, then[0]), then[1]))
}

/// The CRC-32C of a few bytes, and that continued over words, each as its bytes in little-endian order.
///
/// Words that were just computed are summed without being read back from where they will be.
#[inline]
pub(crate) fn crc32c_words(first: &[u8], then: &[u64; 8]) -> (u32, u32) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instructions that the function is compiled for; it asks for nothing else.
        return unsafe { short_words(first, then) };
    }
    let sum = crc32c(0, first);
    (sum, then.iter().fold(sum, |sum, word| crc32c(sum, &word.to_le_bytes())))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short_words(first: &[u8], then: &[u64; 8]) -> (u32, u32) {
    use std::arch::x86_64::_mm_crc32_u64;
    let sum = short(0, first);
    let state = then.iter().fold(u64::from(!sum), |state, word| _mm_crc32_u64(state, *word));
    (sum, !(state as u32))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short_through(first: &[u8], then: [&[u8]; 2]) -> (u32, u32) {
    let sum = short(0, first);
    (sum, short(short(sum, then[0]), then[1]))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
#[inline]
fn short(sum: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};
    let mut state = u64::from(!sum);
    let (words, mut rest) = bytes.as_chunks::<8>();
    for word in words {
        state = _mm_crc32_u64(state, u64::from_le_bytes(*word));
    }
    let mut state = state as u32;
    if let Some((half, after)) = rest.split_first_chunk::<4>() {
        state = _mm_crc32_u32(state, u32::from_le_bytes(*half));
        rest = after;
    }
    for byte in rest {
        state = _mm_crc32_u8(state, *byte);
    }
    !state
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, a bit at a time.
    fn by_bits(sum: u32, bytes: &[u8]) -> u32 {
        let mut state = !sum;
        for byte in bytes {
            state ^= u32::from(*byte);
            for _ in 0..8 {
                state = (state >> 1) ^ if state & 1 == 1 { 0x82f6_3b78 } else { 0 };
            }
        }
        !state
    }

    #[test]
    fn known_sums_are_right() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn every_length_and_place_gives_the_sum_of_the_definition() {
        let bytes: Vec<u8> = (0..5000u32).map(|i| ((i * i) >> 3) as u8).collect();
        let lengths = (0..100).chain([127, 1015, 1023, 1024, 1025, 4097]);
        for (n, len) in lengths.enumerate() {
            let part = &bytes[n % 9..n % 9 + len];
            assert_eq!(crc32c(0, part), by_bits(0, part), "{len} bytes");
            assert_eq!(crc32c(77, part), by_bits(77, part), "{len} bytes after others");
            let (front, back) = part.split_at(len / 3);
            assert_eq!(crc32c(crc32c(5, front), back), crc32c(5, part), "{len} bytes in two parts");
            let through = crc32c_through(front, [back, &bytes[..len / 5]]);
            assert_eq!(through.0, by_bits(0, front));
            assert_eq!(through.1, by_bits(by_bits(0, part), &bytes[..len / 5]), "{len} bytes in three parts");
            let words: [u8; 64] = *bytes[len..].first_chunk().expect("so many are left");
            let numbers = std::array::from_fn(|i| u64::from_le_bytes(words.as_chunks::<8>().0[i]));
            let sums = (by_bits(0, part), by_bits(by_bits(0, part), &words));
            assert_eq!(crc32c_words(part, &numbers), sums, "{len} bytes and words");
        }
    }
}
