//! Which group owns a key: Redis cluster's 16,384 hash slots, spread evenly over the groups.

/// The number of hash slots, and so the largest number of groups.
pub const SLOTS: u16 = 16_384;

/// CRC-16/XMODEM, a byte at a time.
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The slot of a key. Of a key with a non-empty `{tag}` only the tag counts, so that related keys can share a group.
pub fn slot(key: &[u8]) -> u16 {
    crc16(hash_part(key)) % SLOTS
}

/// The group, counted from 0, that owns a key when there are `groups` of them.
pub fn shard(key: &[u8], groups: usize) -> usize {
    usize::from(slot(key)) * groups / usize::from(SLOTS)
}

fn hash_part(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&b| b == b'{') else { return key };
    let after = &key[open + 1..];
    match after.iter().position(|&b| b == b'}') {
        Some(close) if close > 0 => &after[..close],
        _ => key,
    }
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31c3, "the check value of CRC-16/XMODEM");
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"somekey"), 11_058);
    }

    #[test]
    fn only_a_tag_that_is_not_empty_counts() {
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
        assert_eq!(slot(b"open{ended"), crc16(b"open{ended") % SLOTS);
    }

    #[test]
    fn every_group_owns_its_share_of_the_slots() {
        for groups in [1, 3, 64, 1000, 16_384] {
            let mut owned = vec![0_u32; groups];
            for slot in 0..SLOTS {
                owned[usize::from(slot) * groups / usize::from(SLOTS)] += 1;
            }
            let (least, most) = (owned.iter().min(), owned.iter().max());
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{groups} groups");
        }
    }
}
