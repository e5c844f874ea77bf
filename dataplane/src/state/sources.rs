//! What sources have begun under the limits of gateway policies: new connections, and handshakes that are not finished.
//!
//! It owns a bucket for each source under each rule, in a table of fixed size, and which flows that are opening are whose. It
//! refuses to know rules and addresses: whoever asks makes one number of limiter.
//!
//! A bucket is the moment at which it will be full again, as in [`super::answers`]: a full one says nothing that an absent
//! one does not, so its row is free as soon as no handshake is counted for it, and nothing has to be removed.
//!
//! **When the eight rows for a source are all in use** by others, it is not limited, and the caller is told, to count it.
//! Only who is let through takes a row. So a flood of invented addresses, each of which begins one connection, is not what
//! this is for (that is the share of handshakes, [`super::opening`]), and does not lock out anybody else either.
//!
//! A flow that is opening and counted remembers its source's row in a side array by the row of the flow, which is touched by
//! limited flows alone: while there is none, a flow that ends asks one number.

use std::io;

use tidegate_io::mem::{HugePages, Slab};
use zerocopy::FromZeros;

use super::tuple::HashKeys;

/// Sources that are told apart, by rule: 16 B each, touched as they come. A thousand sources a second that wait 16 s for
/// their bucket to be full again fill the table.
pub const SOURCES_MAX: u32 = 16_384;
/// Rows in which a source may be: two cache lines.
const ROWS_PER_SET: u32 = 8;
const SETS: u32 = SOURCES_MAX / ROWS_PER_SET;
const _: () = assert!(SETS.is_power_of_two());

/// A source under a rule: nothing else has its number, but for one in 2^64 pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceKey(u64);

/// What a source may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Nanoseconds until a new connection more; 0: any number.
    pub interval_ns: u64,
    /// New connections at once, at least 1.
    pub burst: u32,
    /// Unfinished handshakes at once; 0: any number.
    pub half_open_max: u16,
}

/// Whether a source may begin another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Standing {
    /// Yes, and this will be its row.
    May(u32),
    /// Yes: there is no row for it.
    Untold,
    /// No.
    Spent,
}

#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
struct Row {
    /// Whose it was last; 0: nobody's.
    source: u64,
    full_ns: u64,
}

/// The sources of one family's flows of one worker. Kind: state.
#[derive(Debug)]
pub struct Sources {
    /// By place: [`ROWS_PER_SET`] of a set side by side.
    rows: Slab<Row>,
    keys: HashKeys,
    /// By the row of a flow that is opening: the place of its source plus one; 0: not counted.
    places: Slab<u32>,
    /// Handshakes by place.
    open: Slab<u16>,
    counted: u32,
}

impl Sources {
    /// Nobody yet, for a table of `flows_max` flows. Memory is touched as it is used. `seed` is random and secret.
    ///
    /// # Errors
    /// What mmap(2) reports.
    pub fn new(flows_max: u32, seed: [u64; 2]) -> io::Result<Sources> {
        Ok(Sources {
            rows: Slab::new(SOURCES_MAX, HugePages::Off)?,
            keys: HashKeys::new(seed),
            places: Slab::new(flows_max, HugePages::Off)?,
            open: Slab::new(SOURCES_MAX, HugePages::Off)?,
            counted: 0,
        })
    }

    /// The number of the source `address` (mapped form, its first bits) under the rule `rule`.
    #[must_use]
    pub fn key(&self, rule: u64, address: &[u8; 16]) -> SourceKey {
        let halves = [0, 8].map(|at| address[at..].first_chunk().map_or(0, |half| u64::from_be_bytes(*half)));
        let mixed = halves.into_iter().fold(rule, |mixed, half| self.keys.scramble(mixed).rotate_left(23) ^ half);
        SourceKey(self.keys.scramble(mixed).max(1))
    }

    /// Whether the source may begin another connection now. Looks at eight rows and changes nothing.
    pub fn standing(&self, key: SourceKey, allowance: &Allowance, now_ns: u64) -> Standing {
        let Some(place) = self.place(key, now_ns) else { return Standing::Untold };
        let row = self.rows.at(place);
        let is_own = row.source == key.0;
        let full_ns = if is_own { row.full_ns.max(now_ns) } else { now_ns };
        let spent_ns = allowance.interval_ns.saturating_mul(u64::from(allowance.burst.saturating_sub(1)));
        let half_open = if is_own { *self.open.at(place) } else { 0 };
        let too_fast = allowance.interval_ns > 0 && full_ns - now_ns > spent_ns;
        let too_many = allowance.half_open_max > 0 && half_open >= allowance.half_open_max;
        if too_fast || too_many { Standing::Spent } else { Standing::May(place) }
    }

    /// The source in `place`, which [`Sources::standing`] has told, begins a connection.
    pub fn take(&mut self, key: SourceKey, place: u32, allowance: &Allowance, now_ns: u64) {
        let row = self.rows.at_mut(place);
        let full_ns = if row.source == key.0 { row.full_ns.max(now_ns) } else { now_ns };
        *row = Row { source: key.0, full_ns: full_ns.saturating_add(allowance.interval_ns) };
    }

    /// Handshakes that are counted, of all sources.
    #[must_use]
    pub fn handshakes(&self) -> u32 {
        self.counted
    }

    /// The flow in `row` is opening for the source in `place`.
    pub(super) fn join(&mut self, row: u32, place: u32) {
        self.leave(row);
        let open = self.open.at_mut(place);
        if let Some(more) = open.checked_add(1) {
            *open = more;
            *self.places.at_mut(row) = place + 1;
            self.counted += 1;
        }
    }

    /// The flow in `row` has opened, or is no more.
    #[inline]
    pub(super) fn leave(&mut self, row: u32) {
        if self.counted > 0 {
            self.part(row);
        }
    }

    #[cold]
    fn part(&mut self, row: u32) {
        let Some(place) = std::mem::take(self.places.at_mut(row)).checked_sub(1) else { return };
        let open = self.open.at_mut(place);
        *open = open.saturating_sub(1);
        self.counted -= 1;
    }

    /// The row of a source, or the one that it gets.
    fn place(&self, key: SourceKey, now_ns: u64) -> Option<u32> {
        let first = ((key.0 >> 32) as u32 % SETS) * ROWS_PER_SET;
        let mut places = first..first + ROWS_PER_SET;
        let is_free = |place: &u32| self.rows.at(*place).full_ns <= now_ns && *self.open.at(*place) == 0;
        let own = places.clone().find(|place| self.rows.at(*place).source == key.0);
        own.or_else(|| places.find(is_free))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::state::limit::TokenBucket;

    const SECOND_NS: u64 = 1_000_000_000;

    fn allowance(rate: u64, burst: u32, half_open_max: u16) -> Allowance {
        Allowance { interval_ns: SECOND_NS.checked_div(rate).unwrap_or(0), burst, half_open_max }
    }

    struct Limiter(Sources);

    impl Limiter {
        fn new() -> Limiter {
            Limiter(Sources::new(4096, [3, 5]).unwrap())
        }

        /// Begins a connection of source `n` if that may be; the place it was counted at.
        fn begin(&mut self, n: u32, allowance: &Allowance, now_ns: u64) -> Standing {
            let key = self.0.key(1, &u128::from(n).to_be_bytes());
            let standing = self.0.standing(key, allowance, now_ns);
            if let Standing::May(place) = standing {
                self.0.take(key, place, allowance, now_ns);
            }
            standing
        }
    }

    #[test]
    fn handshakes_are_counted_until_they_end_and_hold_their_row() {
        let mut limiter = Limiter::new();
        let two = allowance(0, 1, 2);
        let mut rows = 0..;
        let mut open = |limiter: &mut Limiter, n, now_ns| match limiter.begin(n, &two, now_ns) {
            Standing::May(place) => {
                let row = rows.next().unwrap();
                limiter.0.join(row, place);
                Some(row)
            }
            Standing::Untold => panic!("there is room"),
            Standing::Spent => None,
        };
        let [first, second] = [0, 0].map(|now| open(&mut limiter, 7, now));
        assert!(first.is_some() && second.is_some() && open(&mut limiter, 7, 0).is_none());
        assert!(open(&mut limiter, 8, 0).is_some(), "another source has its own");
        assert!(open(&mut limiter, 7, 1 << 60).is_none(), "time ends no handshake");
        limiter.0.leave(first.unwrap());
        limiter.0.leave(first.unwrap());
        assert!(open(&mut limiter, 7, 1 << 60).is_some() && open(&mut limiter, 7, 1 << 60).is_none());
        assert_eq!(limiter.0.handshakes(), 3);
    }

    #[test]
    fn a_full_table_lets_pass_and_says_so() {
        let mut limiter = Limiter::new();
        let slow = allowance(1, 1, 0);
        let standings: Vec<_> = (0..60_000).map(|n| limiter.begin(n, &slow, 0)).collect();
        let told = standings.iter().filter(|standing| matches!(standing, Standing::May(_))).count();
        let untold = standings.iter().filter(|standing| **standing == Standing::Untold).count();
        assert!(told <= SOURCES_MAX as usize && told > SOURCES_MAX as usize * 95 / 100, "{told}");
        assert_eq!(told + untold, 60_000);
        assert_eq!(limiter.begin(0, &slow, 0), Standing::Spent, "who has a row is held to its limit");
        assert!(matches!(limiter.begin(59_999, &slow, SECOND_NS), Standing::May(_)), "buckets that are full make room");
    }

    #[test]
    fn rules_and_families_are_apart() {
        let limiter = Limiter::new();
        let address = |n: u128| n.to_be_bytes();
        let keys = [(1, 5), (2, 5), (1, 6), (1, 5 << 64), (1, 0)].map(|(rule, n)| limiter.0.key(rule, &address(n)));
        for (at, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|other| other == key), Some(at));
        }
    }

    proptest! {
        /// The table is a map from source to token bucket and number of handshakes, as long as it has a row for everybody.
        #[test]
        fn a_map_of_buckets_and_handshakes(
            rate in prop::sample::select(vec![0u64, 1, 2, 5, 8, 20, 125]),
            burst in 1u32..6,
            half_open_max in 0u16..4,
            steps in prop::collection::vec((0u32..6, 0u64..400_000_000, any::<bool>()), 1..200)
        ) {
            let limits = allowance(rate, burst, half_open_max);
            let mut limiter = Limiter::new();
            let mut buckets = HashMap::<u32, TokenBucket>::new();
            let mut open: Vec<(u32, u32)> = Vec::new();
            let (mut now, mut row) = (0, 0);
            for (source, wait, ends) in steps {
                now += wait;
                if ends && !open.is_empty() {
                    let (ended, _) = open.remove(source as usize % open.len());
                    limiter.0.leave(ended);
                    continue;
                }
                let bucket = buckets.entry(source)
                    .or_insert_with(|| TokenBucket::new(u32::try_from(rate).unwrap(), burst, 0));
                let crowded = half_open_max > 0
                    && open.iter().filter(|(_, of)| *of == source).count() >= usize::from(half_open_max);
                let may = !crowded && (rate == 0 || bucket.clone().allow(now));
                let standing = limiter.begin(source, &limits, now);
                prop_assert_eq!(matches!(standing, Standing::May(_)), may, "{:?}", standing);
                if let Standing::May(place) = standing {
                    let _ = bucket.allow(now);
                    limiter.0.join(row, place);
                    open.push((row, source));
                    row += 1;
                }
                prop_assert_eq!(limiter.0.handshakes() as usize, open.len());
            }
        }
    }
}
