//! The only source of chance in a simulation: everything that happens is drawn from one seed.

/// A seeded generator (SplitMix64: one word of state, equal seeds give equal runs on every machine).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator of its own, so that what one part draws does not shift what another part gets.
    pub fn fork(&mut self) -> Self {
        Self(self.next() ^ 0x5851_F42D_4C95_7F2D)
    }

    /// Any number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is above zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below zero");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A number from `low` to `high` whose magnitude is uniform: small ones are as likely as large ones.
    pub fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let (low_log, high_log) = ((low.max(1) as f64).ln(), (high.max(1) as f64).ln());
        let at = low_log + (high_log - low_log) * (self.below(1 << 20) as f64 / (1u64 << 20) as f64);
        (at.exp() as u64).clamp(low, high)
    }

    /// True in `permille` of 1,000 cases.
    pub fn chance(&mut self, permille: u32) -> bool {
        self.below(1000) < u64::from(permille)
    }

    /// One of `items`, which is not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_draw_equal_numbers_and_forks_differ() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        let (mut fork_a, mut fork_b) = (a.fork(), b.fork());
        assert!((0..100).all(|_| a.next() == b.next() && fork_a.next() == fork_b.next()));
        assert_ne!(a.next(), fork_a.next());
    }

    #[test]
    fn numbers_stay_in_their_bounds_and_reach_both_ends() {
        let mut rng = Rng::new(1);
        let drawn: Vec<u64> = (0..1000).map(|_| rng.between(3, 6)).collect();
        assert!((3..=6).all(|n| drawn.contains(&n)) && drawn.iter().all(|n| (3..=6).contains(n)));
        assert!((0..1000).all(|_| (10..=10_000).contains(&rng.magnitude(10, 10_000))));
    }
}
