//! The core's only source of chance: a seeded generator for election timeouts.
//!
//! SplitMix64 (Steele, Lea and Flood, 2014): one word of state, equal seeds give equal runs on every machine. Must not
//! be used for anything that an adversary should not guess.

/// A seeded generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `base..2 * base`; `base` when that range is empty.
    pub(crate) fn jittered(&mut self, base: u64) -> u64 {
        // The high half of the product is uniform enough for timeouts, and needs no division.
        let spread = (u128::from(self.next()) * u128::from(base)) >> 64;
        base.saturating_add(spread as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_twice_the_base_and_spreads() {
        let mut rng = Rng::new(7);
        let drawn: Vec<u64> = (0..1000).map(|_| rng.jittered(100)).collect();
        assert!(drawn.iter().all(|d| (100..200).contains(d)));
        assert!(drawn.iter().any(|d| *d < 110) && drawn.iter().any(|d| *d >= 190));
        assert_eq!(rng.jittered(0), 0);
    }

    /// The numbers that the authors' program prints for this seed.
    #[test]
    fn it_is_the_generator_that_it_is_named_for() {
        let mut rng = Rng::new(1_234_567);
        let drawn = [(); 3].map(|()| rng.next());
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn equal_seeds_draw_equal_numbers() {
        let (mut a, mut b) = (Rng::new(1), Rng::new(1));
        assert!((0..100).all(|_| a.jittered(1000) == b.jittered(1000)));
    }
}
