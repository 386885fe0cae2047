//! Hashes of 128 bits for what is interned and for states. Not for adversaries.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Two hashes of 64 bits side by side, of different multipliers: states whose hashes are equal are taken to be equal.
/// Among ten million states two different ones share 128 bits with a chance below 2^-80.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash128 {
    a: u64,
    b: u64,
}

impl Hash128 {
    pub(crate) fn new() -> Self {
        Self { a: 0x243F_6A88_85A3_08D3, b: 0x1319_8A2E_0370_7344 }
    }

    pub(crate) fn of(item: &impl Hash) -> [u64; 2] {
        let mut hash = Self::new();
        item.hash(&mut hash);
        hash.value()
    }

    pub(crate) fn value(self) -> [u64; 2] {
        [mix(self.a), mix(self.b)]
    }
}

fn mix(mut x: u64) -> u64 {
    x ^= x >> 32;
    x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 32)
}

impl Hasher for Hash128 {
    fn finish(&self) -> u64 {
        self.value()[0]
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.a = (self.a.rotate_left(23) ^ word).wrapping_mul(0x9FB2_1C65_1E98_DF25);
        self.b = (self.b.rotate_left(29) ^ word).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        self.a ^= self.a >> 32;
        self.b ^= self.b >> 31;
    }

    fn write_u8(&mut self, i: u8) {
        self.write_u64(u64::from(i));
    }

    fn write_u32(&mut self, i: u32) {
        self.write_u64(u64::from(i));
    }

    fn write_usize(&mut self, i: usize) {
        self.write_u64(i as u64);
    }

    fn write_isize(&mut self, i: isize) {
        self.write_u64(i as u64);
    }
}

/// Keys that are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known(u64);

impl Hasher for Known {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks_exact(8) {
            self.write_u64(u64::from_le_bytes(word.try_into().expect("eight bytes")));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(17) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, _len: usize) {}
}

/// A map by keys that are hashes or small numbers. Never iterated.
pub(crate) type ByHash<K, V> = HashMap<K, V, BuildHasherDefault<Known>>;

/// Each different item once, by number.
#[derive(Debug)]
pub(crate) struct Interner<T> {
    items: Vec<T>,
    by_hash: ByHash<[u64; 2], u32>,
}

impl<T> Interner<T> {
    pub(crate) fn new() -> Self {
        Self { items: Vec::new(), by_hash: ByHash::default() }
    }

    /// The number of the item of this hash, and whether it is new.
    pub(crate) fn put(&mut self, hash: [u64; 2], item: T) -> (u32, bool) {
        if let Some(&known) = self.by_hash.get(&hash) {
            return (known, false);
        }
        let id = u32::try_from(self.items.len()).expect("memory ends before numbers do");
        self.items.push(item);
        self.by_hash.insert(hash, id);
        (id, true)
    }

    pub(crate) fn at(&self, id: u32) -> &T {
        &self.items[id as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_items_have_one_number_and_others_another() {
        let mut interner = Interner::new();
        let put = |interner: &mut Interner<Vec<u64>>, item: Vec<u64>| interner.put(Hash128::of(&item), item);
        assert_eq!(put(&mut interner, vec![1, 2]), (0, true));
        assert_eq!(put(&mut interner, vec![2, 1]), (1, true));
        assert_eq!(put(&mut interner, vec![1, 2]), (0, false));
        assert_eq!((interner.len(), interner.at(1)), (2, &vec![2, 1]));
    }

    #[test]
    fn both_halves_of_a_hash_depend_on_every_word_and_their_order() {
        let hashes: Vec<[u64; 2]> =
            (0..1000u64).flat_map(|i| [Hash128::of(&(i, 0u64)), Hash128::of(&(0u64, i + 1))]).collect();
        for half in 0..2 {
            let mut values: Vec<u64> = hashes.iter().map(|h| h[half]).collect();
            values.sort_unstable();
            values.dedup();
            assert_eq!(values.len(), 2000);
        }
    }
}
