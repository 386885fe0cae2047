//! Comparing the replicas of a group: equal state at equal index.

use crate::replica::Replica;
use longboat_raft::{Index, ReplicaId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time between looks at replicas that were not seen at a common index yet.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Indexes of one replica that are remembered: a group that is written to moves on between two looks.
const SEEN_MAX: usize = 100_000;

/// What comparing the replicas of a group came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// All have the same state.
    Equal {
        /// At this index.
        index: Index,
        /// The hash of the state there.
        hash: u64,
    },
    /// They differ: a state machine is not deterministic, or its memory or disk was damaged. Replace the odd one out.
    Differ {
        /// At this index.
        index: Index,
        /// The hash of each replica's state there.
        hashes: BTreeMap<ReplicaId, u64>,
    },
    /// The state machine of this replica has no hash.
    NoHash(ReplicaId),
    /// They were not seen at a common index in time: one does not run or lags, or the group is written to all the time.
    NoCommonIndex,
}

/// Compares replicas of one group, those of one process, at an index at which each was seen. Elsewhere
/// [`Replica::state_hash`] says what there is to compare. Asks no leader and writes nothing; a group that rests is compared
/// at once.
pub fn verify_group(replicas: &[Replica], timeout: Duration) -> Verdict {
    let until = Instant::now() + timeout;
    let mut seen: Vec<BTreeMap<Index, u64>> = vec![BTreeMap::new(); replicas.len()];
    loop {
        for (replica, seen) in replicas.iter().zip(&mut seen) {
            let Some((index, hash)) = replica.state_hash() else { return Verdict::NoHash(replica.replica()) };
            seen.insert(index, hash);
            if seen.len() > SEEN_MAX {
                seen.pop_first();
            }
        }
        if let Some(verdict) = compare(replicas, &seen) {
            return verdict;
        }
        if Instant::now() >= until {
            return Verdict::NoCommonIndex;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn compare(replicas: &[Replica], seen: &[BTreeMap<Index, u64>]) -> Option<Verdict> {
    let first = seen.first()?;
    let index = *first.keys().rev().find(|index| seen.iter().all(|s| s.contains_key(index)))?;
    let hashes: BTreeMap<ReplicaId, u64> = replicas.iter().zip(seen).map(|(r, s)| (r.replica(), s[&index])).collect();
    let hash = first[&index];
    let equal = hashes.values().all(|h| *h == hash);
    Some(if equal { Verdict::Equal { index, hash } } else { Verdict::Differ { index, hashes } })
}
