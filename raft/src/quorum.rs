//! What a majority, or two, have agreed on: commit indexes and votes (paper section 5, thesis section 4.3).
//!
//! Pure functions over what each voter said. A configuration is joint when it has two sets of voters; then both
//! majorities decide. An empty set of voters agrees to everything, so that a configuration that is not joint can be given
//! as one whose second half is empty.

use crate::ids::Index;
use crate::plant;
use smallvec::SmallVec;

/// What a vote has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// Not decided yet.
    Pending,
    /// A majority was against, or can't be reached any more.
    Lost,
    /// A majority was for it.
    Won,
}

/// The highest index that a majority of the voters has reached, given what each voter has reached.
///
/// `Index(u64::MAX)` for no voters at all.
pub fn majority_index(reached: impl IntoIterator<Item = Index>) -> Index {
    // Sorting all of them is the obvious way and the right one: configurations are small, and a cleverer scan once
    // committed with two of five elsewhere.
    let mut reached: SmallVec<[Index; 8]> = reached.into_iter().collect();
    if reached.is_empty() {
        return Index(u64::MAX);
    }
    reached.sort_unstable();
    // With n voters, n / 2 + 1 are at or above the element at n - (n / 2 + 1).
    let quorum = if plant::is("two-of-five") { reached.len() / 2 } else { reached.len() / 2 + 1 };
    reached[reached.len() - quorum]
}

/// The highest index that majorities of both halves of a configuration have reached.
pub fn joint_index(incoming: impl IntoIterator<Item = Index>, outgoing: impl IntoIterator<Item = Index>) -> Index {
    if plant::is("joint-by-one-half") {
        return majority_index(incoming);
    }
    majority_index(incoming).min(majority_index(outgoing))
}

/// What the votes of one set of voters come to; `None` for a voter that has not answered.
pub fn majority_vote(votes: impl IntoIterator<Item = Option<bool>>) -> VoteResult {
    let (mut voters, mut yes, mut missing) = (0usize, 0usize, 0usize);
    for vote in votes {
        voters += 1;
        match vote {
            Some(true) => yes += 1,
            Some(false) => {}
            None => missing += 1,
        }
    }
    if voters == 0 {
        return VoteResult::Won;
    }
    let quorum = voters / 2 + 1;
    if yes >= quorum {
        VoteResult::Won
    } else if yes + missing >= quorum {
        VoteResult::Pending
    } else {
        VoteResult::Lost
    }
}

/// What the votes of both halves of a configuration come to: won needs both, losing one is enough to lose.
pub fn joint_vote(
    incoming: impl IntoIterator<Item = Option<bool>>,
    outgoing: impl IntoIterator<Item = Option<bool>>,
) -> VoteResult {
    match (majority_vote(incoming), majority_vote(outgoing)) {
        (result, _) if plant::is("joint-by-one-half") => result,
        (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
        (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
        _ => VoteResult::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The obvious way: try every index that somebody has reached, and count.
    fn naive_index(reached: &[u64]) -> u64 {
        if reached.is_empty() {
            return u64::MAX;
        }
        let agreed = |index: u64| reached.iter().filter(|r| **r >= index).count() * 2 > reached.len();
        reached.iter().copied().filter(|index| agreed(*index)).max().unwrap_or(0)
    }

    /// The obvious way: a vote is open as long as some way to fill in the missing answers wins and another loses.
    fn naive_vote(votes: &[Option<bool>]) -> VoteResult {
        let wins =
            |missing: bool| votes.is_empty() || votes.iter().filter(|v| v.unwrap_or(missing)).count() * 2 > votes.len();
        match (wins(false), wins(true)) {
            (true, _) => VoteResult::Won,
            (false, true) => VoteResult::Pending,
            (false, false) => VoteResult::Lost,
        }
    }

    proptest! {
        #[test]
        fn the_majority_index_is_what_counting_says(reached in prop::collection::vec(0u64..12, 0..9)) {
            let got = majority_index(reached.iter().map(|r| Index(*r)));
            prop_assert_eq!(got, Index(naive_index(&reached)));
        }

        #[test]
        fn a_joint_index_is_reached_by_both_majorities(
            a in prop::collection::vec(0u64..12, 0..8),
            b in prop::collection::vec(0u64..12, 0..8),
        ) {
            let got = joint_index(a.iter().map(|r| Index(*r)), b.iter().map(|r| Index(*r)));
            prop_assert_eq!(got.0, naive_index(&a).min(naive_index(&b)));
        }

        #[test]
        fn a_vote_is_decided_when_no_missing_answer_can_turn_it(
            a in prop::collection::vec(prop::option::of(any::<bool>()), 0..9),
            b in prop::collection::vec(prop::option::of(any::<bool>()), 0..9),
        ) {
            prop_assert_eq!(majority_vote(a.iter().copied()), naive_vote(&a));
            let got = joint_vote(a.iter().copied(), b.iter().copied());
            let want = match (naive_vote(&a), naive_vote(&b)) {
                (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
                (x, y) if x == VoteResult::Lost || y == VoteResult::Lost => VoteResult::Lost,
                _ => VoteResult::Pending,
            };
            prop_assert_eq!(got, want);
        }
    }
}
