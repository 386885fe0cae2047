//! A set of sectors, as bits: files are written and synced in long stretches of them.

use std::ops::Range;

/// Sectors of one file, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Sectors {
    words: Vec<u64>,
    /// How many are in it.
    count: usize,
}

impl Sectors {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn insert(&mut self, sectors: Range<usize>) {
        if sectors.end > 64 * self.words.len() {
            self.words.resize(sectors.end.div_ceil(64), 0);
        }
        for sector in sectors {
            let word = &mut self.words[sector / 64];
            self.count += usize::from(*word & bit(sector) == 0);
            *word |= bit(sector);
        }
    }

    pub(super) fn remove(&mut self, sectors: Range<usize>) {
        if self.is_empty() {
            return;
        }
        for sector in sectors.start..sectors.end.min(64 * self.words.len()) {
            let word = &mut self.words[sector / 64];
            self.count -= usize::from(*word & bit(sector) != 0);
            *word &= !bit(sector);
        }
    }

    pub(super) fn extend(&mut self, others: impl Iterator<Item = usize>) {
        others.for_each(|sector| self.insert(sector..sector + 1));
    }

    /// Those that were in it, in ascending order; it is empty then.
    pub(super) fn take(&mut self) -> impl Iterator<Item = usize> + use<> {
        let words = if self.is_empty() { Vec::new() } else { std::mem::take(&mut self.words) };
        self.count = 0;
        words.into_iter().enumerate().flat_map(|(at, word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let lowest = rest.trailing_zeros() as usize;
                rest &= rest.wrapping_sub(1);
                (lowest < 64).then_some(64 * at + lowest)
            })
        })
    }
}

fn bit(sector: usize) -> u64 {
    1 << (sector % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_in_comes_out_once_and_in_order() {
        let mut set = Sectors::default();
        set.insert(60..70);
        set.insert(62..64);
        set.insert(200..201);
        set.remove(64..69);
        set.remove(500..600);
        assert!(!set.is_empty());
        assert_eq!(set.take().collect::<Vec<_>>(), [60, 61, 62, 63, 69, 200]);
        assert!(set.is_empty());
        assert_eq!(set.take().count(), 0);
        set.insert(3..4);
        set.remove(3..4);
        assert!(set.is_empty());
    }
}
