//! A timing wheel: the deadlines of awake groups, at most one a group that counts.
//!
//! Deadlines move later far more often than they fire (every heartbeat moves one), so an entry is left where it is and
//! checked against the real deadline when its time comes. Invariant: for every slot that was scheduled for a time,
//! `expire` yields it at that time or earlier. A wheel belongs to one worker outright: no other thread reads or turns it, and
//! what others would have the worker do at once reaches it through a ready flag (`ready.rs`).

use longboat_raft::Time;

/// Nanoseconds of one bucket: far below any timeout, coarse enough that an idle wheel is cheap to turn.
const TICK_NANOS: u64 = 1_000_000;
/// Buckets in the wheel: one lap is 4 s, longer than most deadlines; later ones stay for another lap.
const BUCKETS: usize = 4096;
/// Entries for which an emptied bucket keeps room. With more the wheel of a host whose groups fell silent would stay as large as it
/// was when all of them were awake.
const ROOM_KEPT: usize = 4;
/// Likewise for the list of entries that are looked at in one go.
const DUE_KEPT: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u32,
    at: Time,
}

/// The wheel of one worker.
#[derive(Debug)]
pub struct TimingWheel {
    buckets: Vec<Vec<Entry>>,
    occupied: [u64; BUCKETS / 64],
    /// The tick up to which buckets were emptied.
    tick: u64,
    /// For each slot the time of its earliest entry; `Time(u64::MAX)` when it has none.
    earliest: Vec<Time>,
    due: Vec<Entry>,
}

const NEVER: Time = Time(u64::MAX);

impl TimingWheel {
    /// An empty wheel that starts at `now`.
    pub fn new(now: Time) -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            occupied: [0; BUCKETS / 64],
            tick: now.0 / TICK_NANOS,
            earliest: Vec::new(),
            due: Vec::new(),
        }
    }

    /// Makes sure that `slot` is yielded at `at` or before. Cheap when it already is.
    pub fn schedule(&mut self, slot: u32, at: Time) {
        if at == NEVER {
            return;
        }
        let index = slot as usize;
        if self.earliest.len() <= index {
            self.earliest.resize(index + 1, NEVER);
        }
        if self.earliest[index] <= at {
            return;
        }
        self.earliest[index] = at;
        // A deadline inside the current tick waits for the next one: at most a tick late, never lost.
        let tick = at.0.div_ceil(TICK_NANOS).max(self.tick + 1);
        self.insert(tick, Entry { slot, at });
    }

    fn insert(&mut self, tick: u64, entry: Entry) {
        let bucket = (tick % BUCKETS as u64) as usize;
        self.buckets[bucket].push(entry);
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
    }

    /// Appends to `out` the slots whose time has come by `now`. A slot may be yielded early or more than once.
    pub fn expire(&mut self, now: Time, out: &mut Vec<u32>) {
        let target = now.0 / TICK_NANOS;
        let laps = (target.saturating_sub(self.tick)).min(BUCKETS as u64);
        let first = target - laps + 1;
        if laps == 0 {
            return;
        }
        for tick in first..=target {
            let bucket = (tick % BUCKETS as u64) as usize;
            if self.occupied[bucket / 64] & (1 << (bucket % 64)) == 0 {
                continue;
            }
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
            let emptied = &mut self.buckets[bucket];
            self.due.append(emptied);
            if emptied.capacity() > ROOM_KEPT {
                *emptied = Vec::new();
            }
        }
        self.tick = target;
        let mut due = std::mem::take(&mut self.due);
        for entry in due.drain(..) {
            let tick = entry.at.0.div_ceil(TICK_NANOS);
            if tick > target {
                self.insert(tick, entry);
            } else if self.earliest[entry.slot as usize] == entry.at {
                self.earliest[entry.slot as usize] = NEVER;
                out.push(entry.slot);
            }
        }
        due.shrink_to(DUE_KEPT);
        self.due = due;
    }

    /// A moment at or before the next deadline; `None` when there is none.
    pub fn next(&self) -> Option<Time> {
        let start = (self.tick + 1) % BUCKETS as u64;
        for step in 0..=(BUCKETS / 64) as u64 {
            let word = ((start / 64 + step) % (BUCKETS as u64 / 64)) as usize;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= !0 << (start % 64);
            } else if step == BUCKETS as u64 / 64 {
                bits &= !(!0 << (start % 64));
            }
            if bits != 0 {
                let bucket = word as u64 * 64 + u64::from(bits.trailing_zeros());
                let ahead = (bucket + BUCKETS as u64 - start) % BUCKETS as u64;
                return Some(Time((self.tick + 1 + ahead) * TICK_NANOS));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Time {
        Time(n * TICK_NANOS)
    }

    #[test]
    fn a_slot_is_yielded_when_its_time_has_come_and_not_before() {
        let mut wheel = TimingWheel::new(ms(1000));
        wheel.schedule(3, ms(1010));
        let mut out = Vec::new();
        wheel.expire(ms(1009), &mut out);
        assert!(out.is_empty());
        assert_eq!(wheel.next(), Some(ms(1010)));
        wheel.expire(ms(1010), &mut out);
        assert_eq!(out, [3]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn deadlines_beyond_a_lap_wait_for_their_lap() {
        let mut wheel = TimingWheel::new(ms(0));
        wheel.schedule(1, ms(10_000));
        let mut out = Vec::new();
        for t in 0..10_000 {
            wheel.expire(ms(t), &mut out);
            assert!(out.is_empty(), "yielded at {t}");
        }
        wheel.expire(ms(10_000), &mut out);
        assert_eq!(out, [1]);
    }

    #[test]
    fn a_long_sleep_loses_nothing() {
        let mut wheel = TimingWheel::new(ms(0));
        for slot in 0..100 {
            wheel.schedule(slot, ms(u64::from(slot) * 100 + 1));
        }
        let mut out = Vec::new();
        wheel.expire(ms(60_000), &mut out);
        out.sort_unstable();
        assert_eq!(out, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn an_earlier_deadline_counts() {
        let mut wheel = TimingWheel::new(ms(0));
        wheel.schedule(1, ms(500));
        wheel.schedule(1, ms(20));
        wheel.schedule(1, ms(300));
        let mut out = Vec::new();
        wheel.expire(ms(20), &mut out);
        assert_eq!(out, [1]);
        wheel.schedule(1, ms(400));
        out.clear();
        wheel.expire(ms(450), &mut out);
        assert_eq!(out, [1], "the entries that were overtaken do not count");
    }

    #[test]
    fn next_looks_around_the_whole_wheel() {
        for start in [0u64, 1, 63, 64, 4000, 4095, 5000] {
            for ahead in [1u64, 2, 63, 64, 65, 4000, 4095] {
                let mut wheel = TimingWheel::new(ms(start));
                wheel.schedule(0, ms(start + ahead));
                assert_eq!(wheel.next(), Some(ms(start + ahead)), "start {start}, ahead {ahead}");
            }
        }
    }
}
