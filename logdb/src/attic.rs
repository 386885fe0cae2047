//! What a segment's tallies have closed, put away until the segment's footer is written.
//!
//! Most groups of a young segment have their bootstrap here, a couple of hundred bytes that are much alike from group to group and
//! that nobody looks at before the footer. So it is kept compressed, block by block: a silent group is not to cost more here than
//! elsewhere. An item names the one of its group before it, which is how they are found again.
//!
//! Invariant: what comes out for a group is what went in for it, in that order. Must not know: what the bytes mean.

use lz4_flex::block::{compress, decompress};

/// Raw bytes after which a block is compressed: enough that what is alike is found, few enough that the log writer does not
/// stop for it.
const BLOCK_BYTES: usize = 32 << 10;
/// Before an item's bytes: the place of the item before it, and its own length.
const HEAD_BYTES: usize = 8;

/// A chain of items, by the place of its newest one plus one; zero for an empty chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain(u32);

/// Items of many chains.
#[derive(Debug, Default)]
pub(crate) struct Attic {
    /// Compressed, in order, with the raw length of each.
    blocks: Vec<(usize, Box<[u8]>)>,
    /// Raw bytes in them.
    blocks_bytes: usize,
    /// What follows them, raw.
    open: Vec<u8>,
}

impl Attic {
    /// Puts an item behind those of its chain.
    pub(crate) fn push(&mut self, chain: &mut Chain, item: impl FnOnce(&mut Vec<u8>)) {
        let at = self.open.len();
        // All of it fits into a segment's footer, and a segment is far smaller than this.
        let place = u32::try_from(self.blocks_bytes + at).expect("a segment's tallies are smaller than the segment");
        self.open.extend_from_slice(&chain.0.to_le_bytes());
        self.open.extend_from_slice(&[0; 4]);
        item(&mut self.open);
        let len = (self.open.len() - at - HEAD_BYTES) as u32;
        self.open[at + 4..at + HEAD_BYTES].copy_from_slice(&len.to_le_bytes());
        chain.0 = place + 1;
        if self.open.len() >= BLOCK_BYTES {
            self.blocks.push((self.open.len(), compress(&self.open).into()));
            self.blocks_bytes += self.open.len();
            self.open.clear();
        }
    }

    /// Forgets all items. Chains that had some are of no use any more.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// All items, to be read.
    pub(crate) fn open(&self) -> Opened {
        let mut raw = Vec::with_capacity(self.blocks_bytes + self.open.len());
        for (len, block) in &self.blocks {
            raw.extend(decompress(block, *len).expect("it was compressed in this memory"));
        }
        raw.extend_from_slice(&self.open);
        Opened { raw, places: Vec::new() }
    }
}

/// The raw items of an [`Attic`].
#[derive(Debug)]
pub(crate) struct Opened {
    raw: Vec<u8>,
    /// Kept for its memory.
    places: Vec<usize>,
}

impl Opened {
    /// Appends the items of a chain, oldest first.
    pub(crate) fn copy(&mut self, chain: Chain, out: &mut Vec<u8>) {
        let word = |at: usize| u32::from_le_bytes(self.raw[at..at + 4].try_into().expect("four bytes"));
        let mut next = chain.0;
        while let Some(place) = next.checked_sub(1) {
            self.places.push(place as usize);
            next = word(place as usize);
        }
        for place in self.places.drain(..).rev() {
            let from = place + HEAD_BYTES;
            out.extend_from_slice(&self.raw[from..from + word(place + 4) as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chain_has_its_items_in_their_order_and_takes_little_memory() {
        let mut attic = Attic::default();
        let mut chains = [Chain::default(); 1_000];
        let item = |chain: usize, number: usize| {
            let mut bytes = vec![7u8; 200 + chain % 3];
            bytes[..8].copy_from_slice(&(chain as u64).to_le_bytes());
            bytes[8] = number as u8;
            bytes
        };
        for number in 0..3 {
            // Some have fewer.
            for (at, chain) in chains.iter_mut().enumerate().filter(|(at, _)| at % 3 >= number) {
                attic.push(chain, |out| out.extend(item(at, number)));
            }
        }
        assert!(attic.blocks.len() > 5, "{} blocks", attic.blocks.len());
        let mut opened = attic.open();
        for (at, chain) in chains.iter().enumerate() {
            let mut out = vec![1];
            opened.copy(*chain, &mut out);
            let expected: Vec<u8> = (0..=at % 3).flat_map(|number| item(at, number)).collect();
            assert_eq!(out[1..], expected, "chain {at}");
        }
        let held: usize = attic.blocks.iter().map(|(_, block)| block.len()).sum();
        assert!(held * 5 < attic.blocks_bytes, "{held} bytes for {}", attic.blocks_bytes);
    }

    #[test]
    fn an_empty_chain_has_nothing() {
        let mut attic = Attic::default();
        attic.push(&mut Chain::default(), |out| out.extend([1, 2, 3]));
        let mut out = Vec::new();
        attic.open().copy(Chain::default(), &mut out);
        assert!(out.is_empty());
        attic.clear();
        assert_eq!(attic.open().raw, []);
    }
}
