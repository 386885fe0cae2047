//! What clients did to one key and saw of it, and whether that is linearizable.
//!
//! A key is a register, and every write writes a value that nobody else writes. For such histories there is a test that takes
//! no search (Gibbons and Korach, "Testing shared memories", 1997): the operations on one value have a *zone*, from the first
//! of their ends to the last of their starts. Where that is a span forwards, the value was held throughout it, so two
//! such spans must not overlap; and a value whose operations could all have happened at one moment, in a span backwards, must
//! not be shut up within the span of another.

use std::collections::BTreeMap;

/// The value of a key that was never written.
pub(crate) const ABSENT: u64 = 0;
/// The end of an operation of which nobody knows whether it ever took place.
pub(crate) const OPEN: u64 = u64::MAX;

/// An operation. Times are nanoseconds since the same moment for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) value: u64,
    pub(crate) write: bool,
}

/// What the operations on one value have in common.
#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    /// When the write started, if there was one.
    written: Option<u64>,
    /// Whether any operation on it is known to have taken place.
    seen: bool,
    first_end: u64,
    last_start: u64,
    first_read_end: u64,
}

impl Zone {
    fn new(value: u64) -> Self {
        Self { value, written: None, seen: false, first_end: OPEN, last_start: 0, first_read_end: OPEN }
    }

    fn add(&mut self, operation: Operation) {
        self.first_end = self.first_end.min(operation.end);
        self.last_start = self.last_start.max(operation.start);
        self.seen |= operation.end != OPEN;
        if operation.write {
            assert!(self.written.is_none(), "{:#x} was written twice: the check needs values of their own", self.value);
            self.written = Some(operation.start);
        } else {
            self.first_read_end = self.first_read_end.min(operation.end);
        }
    }

    fn is_forward(&self) -> bool {
        self.first_end < self.last_start
    }
}

/// Why a history is not linearizable.
///
/// # Errors
/// What was seen that no register can show.
pub(crate) fn check(operations: &[Operation]) -> Result<(), String> {
    let mut zones = BTreeMap::new();
    // What was there before all.
    let absent = Operation { start: 0, end: 0, value: ABSENT, write: true };
    for operation in [absent].iter().chain(operations) {
        zones.entry(operation.value).or_insert_with(|| Zone::new(operation.value)).add(*operation);
    }
    let zones: Vec<Zone> = zones.into_values().filter(|zone| zone.seen).collect();
    for zone in &zones {
        let Some(written) = zone.written else {
            return Err(format!("{:#x} was read and never written, or by a write that was refused", zone.value));
        };
        if zone.first_read_end < written {
            return Err(format!("{:#x} was read at {} and written at {written}", zone.value, zone.first_read_end));
        }
    }
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) = zones.into_iter().partition(Zone::is_forward);
    forward.sort_by_key(|zone| zone.first_end);
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_start {
            return Err(format!("both were there, in turn and back: {:?} and {:?}", pair[0], pair[1]));
        }
    }
    for zone in backward {
        // The last span that begins before this one does. Spans don't overlap, so no earlier one reaches further.
        let before = forward.partition_point(|span| span.first_end < zone.last_start);
        let around = before.checked_sub(1).map(|n| forward[n]);
        if let Some(span) = around.filter(|span| zone.first_end < span.last_start) {
            return Err(format!("{zone:?} was there while {span:?} was"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, start: u64, end: u64) -> Operation {
        Operation { start, end, value, write: true }
    }

    fn read(value: u64, start: u64, end: u64) -> Operation {
        Operation { start, end, value, write: false }
    }

    #[test]
    fn what_a_register_shows_is_taken() {
        let fine: &[&[Operation]] = &[
            &[],
            &[read(ABSENT, 1, 2), write(1, 3, 4), read(1, 5, 6)],
            // One write is under way while both are read, and another is never known to have happened.
            &[write(1, 1, 10), read(ABSENT, 2, 3), read(1, 4, 5), write(2, 6, OPEN), read(1, 11, 12)],
            // An open write takes place long after its caller gave up.
            &[write(1, 1, OPEN), write(2, 2, 3), read(2, 4, 5), read(1, 6, 7)],
            // Two writes at once, in either order.
            &[write(1, 1, 10), write(2, 1, 10), read(2, 11, 12), read(2, 13, 14)],
        ];
        for history in fine {
            assert_eq!(check(history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn what_no_register_shows_is_found() {
        let wrong: &[(&str, &[Operation])] = &[
            ("lost", &[write(1, 1, 2), read(ABSENT, 3, 4)]),
            ("stale", &[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]),
            ("never written", &[read(7, 1, 2)]),
            ("read before it was written", &[read(1, 1, 2), write(1, 3, 4)]),
            ("back again", &[write(1, 1, 20), write(2, 1, 20), read(1, 2, 3), read(2, 4, 5), read(1, 6, 7)]),
            ("an open write that was seen is lost", &[write(1, 1, OPEN), read(1, 2, 3), read(ABSENT, 4, 5)]),
            ("a write between two reads of an older value", &[write(1, 1, 2), read(1, 9, 10), write(2, 4, 5)]),
        ];
        for (what, history) in wrong {
            assert!(check(history).is_err(), "{what}: {history:?}");
        }
    }

    /// The obvious way: some order that respects time in which each read sees the write before it.
    fn check_by_search(operations: &[Operation], done: u32, holds: u64) -> bool {
        let left = |n: &usize| done & (1 << n) == 0;
        let all = 0..operations.len();
        if all.clone().filter(left).all(|n| operations[n].end == OPEN) {
            return true;
        }
        let deadline = all.clone().filter(left).map(|n| operations[n].end).min().expect("some are left");
        all.filter(left).any(|n| {
            let operation = operations[n];
            let may = operation.start <= deadline && (operation.write || operation.value == holds);
            may && check_by_search(operations, done | 1 << n, if operation.write { operation.value } else { holds })
        })
    }

    #[test]
    fn zones_agree_with_a_search_of_all_orders() {
        let mut state = 1_u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let (mut fine, mut wrong) = (0, 0);
        for _ in 0..5_000 {
            // Moments are all different, as a clock's are that is fine enough.
            let mut moments: Vec<u64> = (1..=14).collect();
            for n in (1..moments.len()).rev() {
                moments.swap(n, below(n as u64 + 1) as usize);
            }
            let mut operations: Vec<Operation> = Vec::new();
            for (n, pair) in moments.chunks(2).take(2 + below(5) as usize).enumerate() {
                let (start, end) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
                operations.push(match below(5) {
                    0 | 1 => write(n as u64 + 1, start, end),
                    2 => write(n as u64 + 1, start, OPEN),
                    _ => read(below(4), start, end),
                });
            }
            let searched = check_by_search(&operations, 0, ABSENT);
            assert_eq!(check(&operations).is_ok(), searched, "{operations:?}");
            if searched { fine += 1 } else { wrong += 1 }
        }
        assert!(fine > 300 && wrong > 300, "{fine} fine and {wrong} wrong say little");
    }
}
