//! Values that thousands of replicas of a host have in common, each in memory once.
//!
//! Invariant: what is given out equals what was given in. Nothing is kept that no replica holds any more, but for what the
//! next look for such entries finds.

use ahash::{AHashMap, RandomState};
use longboat_raft::{CoreConfig, Membership};
use parking_lot::Mutex;
use std::hash::Hash;
use std::sync::{Arc, Weak};

/// Entries that a table may have before it is first looked for entries that nobody holds.
const SWEEP_FIRST: usize = 64;

/// What the replicas of one host share.
#[derive(Debug, Default)]
pub struct Pool {
    memberships: Table<Membership>,
    configs: Table<CoreConfig>,
}

impl Pool {
    /// The membership, as others hold it if others do.
    pub fn membership(&self, membership: Arc<Membership>) -> Arc<Membership> {
        self.memberships.share(membership)
    }

    /// The settings, as others hold them if others do.
    pub fn config(&self, config: &Arc<CoreConfig>) -> Arc<CoreConfig> {
        self.configs.share(Arc::clone(config))
    }
}

/// Values by their hash. Of two with one hash the later is kept: the other is merely not found any more.
#[derive(Debug)]
struct Table<T>(Mutex<(AHashMap<u64, Weak<T>>, usize)>, RandomState);

impl<T> Default for Table<T> {
    fn default() -> Self {
        // Seeds of its own, so that runs repeat: nothing that comes from outside decides what is in here.
        Self(Mutex::new((AHashMap::new(), SWEEP_FIRST)), RandomState::with_seeds(1, 2, 3, 4))
    }
}

impl<T: Hash + Eq> Table<T> {
    fn share(&self, value: Arc<T>) -> Arc<T> {
        let hash = self.1.hash_one(&*value);
        let mut table = self.0.lock();
        let (held, sweep_at) = &mut *table;
        if let Some(known) = held.get(&hash).and_then(Weak::upgrade).filter(|known| *known == value) {
            return known;
        }
        if held.len() >= *sweep_at {
            held.retain(|_, value| value.strong_count() > 0);
            *sweep_at = SWEEP_FIRST.max(2 * held.len());
        }
        held.insert(hash, Arc::downgrade(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_in_memory_and_go_with_their_last_holder() {
        let table = Table::<String>::default();
        let held: Vec<_> = (0..100).map(|i| table.share(Arc::new((i % 10).to_string()))).collect();
        assert!(
            held.iter()
                .enumerate()
                .all(|(i, value)| Arc::ptr_eq(value, &held[i % 10]) && **value == (i % 10).to_string())
        );
        drop(held);
        for i in 0..1_000 {
            drop(table.share(Arc::new(i.to_string())));
        }
        assert!(table.0.lock().0.len() <= SWEEP_FIRST, "what nobody holds is let go of");
    }
}
