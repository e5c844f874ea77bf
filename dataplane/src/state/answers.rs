//! How many answers may still be provoked: in all, and by one source.
//!
//! It owns the shared rate of a worker (S-079) and a part of it for each source, in a table of fixed size. It refuses to
//! know what is asked and what an answer looks like.
//!
//! Without the second limit one client that knocks on a closed port without end uses up the answers of all others. So a
//! source may have one part in [`SOURCE_PART`] of the shared rate; a second's worth of it at once. A source is an IPv4
//! address or the first 64 bits of an IPv6 address, since whoever has one address of a link has all of them.
//!
//! The simple version is a map from source to token bucket. The tricks:
//!
//! - A bucket is one number: the moment at which it will be full again. It may be taken from while that is less than its
//!   depth away, and each token moves it on by the time that the token takes to come back. (The virtual scheduling form
//!   of the generic cell rate algorithm, ITU-T I.371 annex A.)
//! - A bucket that is full says nothing that an absent one does not, so its row is free. Nothing has to be removed, and
//!   within a second a source that was answered and asks no more is forgotten.
//! - Only an answer costs a token. Sources that are refused leave no trace, so a flood of invented ones cannot fill the
//!   table faster than the shared rate answers them.
//!
//! **When the eight rows for a source are all in use** by others, the source is not limited by itself: the shared rate
//! alone decides, and the caller is told, to count it. At the default rate of 1,000 at most 1,000 of the
//! [`SOURCES_MAX`] rows are in use, and few of a thousand sources find none. Which eight are whose is secret.

use super::limit::TokenBucket;
use super::tuple::HashKeys;

/// What one source may have of the shared rate: one part in this many. So it takes eight sources to use all of it.
pub const SOURCE_PART: u32 = 8;
/// Sources that are told apart. A worker that is told to answer 4,000 times a second fills the table with sources that
/// ask once; 16 B each.
pub const SOURCES_MAX: usize = 4096;
/// Rows in which a source may be: two cache lines.
const ROWS_PER_SET: usize = 8;
const SETS: usize = SOURCES_MAX / ROWS_PER_SET;
const _: () = assert!(SETS.is_power_of_two());

const SECOND_NS: u64 = 1_000_000_000;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(u64);

impl Source {
    /// An IPv4 address.
    #[must_use]
    pub const fn v4(address: [u8; 4]) -> Source {
        // Beside the prefixes of IPv6: nothing is sent from ffff::/16, which is multicast.
        Source(0xffff_ffff << 32 | u32::from_be_bytes(address) as u64)
    }

    /// The link of an IPv6 address: its first 64 bits.
    #[must_use]
    pub const fn v6(address: [u8; 16]) -> Source {
        let [a, b, c, d, e, f, g, h, ..] = address;
        Source(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// The bucket of one source. It is full when `full_ns` is past.
#[derive(Debug, Clone, Copy)]
struct Row {
    source: Source,
    full_ns: u64,
}

const VACANT: Row = Row { source: Source(0), full_ns: 0 };

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Set([Row; ROWS_PER_SET]);

/// Whether an answer may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Permit {
    /// Yes, and the source is the poorer for it.
    Given,
    /// Yes, but there was no row for the source: the shared rate alone decided.
    Untold,
    /// The source has had its part.
    SourceSpent,
    /// All sources together have had theirs.
    Spent,
}

/// The answers of one worker. Kind: state.
#[derive(Debug)]
pub struct Answers {
    shared: TokenBucket,
    /// Nanoseconds until a source gets a token back.
    interval_ns: u64,
    /// Tokens of a source that has been silent.
    depth: u32,
    sets: Box<[Set]>,
    keys: HashKeys,
}

impl Answers {
    /// `rate_per_s` answers in all, as many at once. `seed` is random and secret.
    #[must_use]
    pub fn new(rate_per_s: u32, seed: [u64; 2], now_ns: u64) -> Answers {
        let mut answers = Answers {
            shared: TokenBucket::new(rate_per_s, rate_per_s, now_ns),
            interval_ns: 0,
            depth: 0,
            sets: vec![Set([VACANT; ROWS_PER_SET]); SETS].into_boxed_slice(),
            keys: HashKeys::new(seed),
        };
        answers.set(rate_per_s, now_ns);
        answers
    }

    /// Changes the rate. What sources have had under the old one they have had, for a second at most.
    pub fn set(&mut self, rate_per_s: u32, now_ns: u64) {
        self.shared.set(rate_per_s, rate_per_s, now_ns);
        self.depth = (rate_per_s / SOURCE_PART).max(1);
        self.interval_ns = SECOND_NS.div_ceil(u64::from(self.depth));
    }

    /// Whether `source` may be answered now; if so, that counts as done. Looks at eight rows.
    pub fn allow(&mut self, source: Source, now_ns: u64) -> Permit {
        let set = (self.keys.scramble(source.0) >> 32) as usize % SETS;
        let rows = &mut self.sets[set].0;
        let own = rows.iter().position(|row| row.source == source);
        let Some(at) = own.or_else(|| rows.iter().position(|row| row.full_ns <= now_ns)) else {
            return if self.shared.allow(now_ns) { Permit::Untold } else { Permit::Spent };
        };
        let row = &mut rows[at];
        // A row that is free has a bucket that is full, whoever had it.
        let full_ns = if row.source == source { row.full_ns.max(now_ns) } else { now_ns };
        if full_ns - now_ns > u64::from(self.depth - 1) * self.interval_ns {
            return Permit::SourceSpent;
        }
        if !self.shared.allow(now_ns) {
            return Permit::Spent;
        }
        *row = Row { source, full_ns: full_ns + self.interval_ns };
        Permit::Given
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn answers(rate_per_s: u32) -> Answers {
        Answers::new(rate_per_s, [7, 9], 0)
    }

    #[test]
    fn a_source_has_an_eighth_and_leaves_the_rest_to_others() {
        // S-079
        let mut answers = answers(1000);
        let [greedy, other] = [Source::v4([192, 0, 2, 1]), Source::v6([0x20; 16])];
        let given = (0..5000).filter(|_| answers.allow(greedy, 0) == Permit::Given).count();
        assert_eq!(given, 125);
        assert_eq!(answers.allow(greedy, 0), Permit::SourceSpent);
        assert_eq!(answers.allow(other, 0), Permit::Given, "refusing costs nothing");
        // 125 a second, one at a time.
        assert_eq!(answers.allow(greedy, 7_999_999), Permit::SourceSpent);
        assert_eq!(answers.allow(greedy, 8_000_000), Permit::Given);
        assert_eq!(answers.allow(greedy, 8_000_000), Permit::SourceSpent);
        // And never more than a second's worth at once.
        let given = (0..5000).filter(|_| answers.allow(greedy, 1 << 60) == Permit::Given).count();
        assert_eq!(given, 125);
    }

    #[test]
    fn all_sources_together_have_the_shared_rate() {
        let mut answers = answers(1000);
        let permits: Vec<_> = (0..100_000u32).map(|n| answers.allow(Source::v4(n.to_be_bytes()), 0)).collect();
        let count = |wanted| permits.iter().filter(|permit| **permit == wanted).count();
        assert_eq!(count(Permit::Given) + count(Permit::Untold), 1000);
        assert!(count(Permit::Untold) < 20, "refused sources leave no trace in the table");
        assert_eq!(answers.allow(Source::v4([1; 4]), 0), Permit::Spent);
    }

    #[test]
    fn addresses_of_one_ipv6_link_are_one_source_and_families_are_apart() {
        let mut address = [0x20; 16];
        let first = Source::v6(address);
        address[15] = 1;
        assert_eq!(first, Source::v6(address));
        address[7] = 1;
        assert_ne!(first, Source::v6(address));
        assert_ne!(Source::v4([1, 2, 3, 4]), Source::v4([1, 2, 3, 5]));
        assert_ne!(Source::v4([1, 2, 3, 4]), Source::v6([0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn a_full_table_leaves_it_to_the_shared_rate() {
        let mut answers = answers(1_000_000);
        let permits: Vec<_> = (0..60_000u32).map(|n| answers.allow(Source::v4(n.to_be_bytes()), 0)).collect();
        let count = |wanted| permits.iter().filter(|permit| **permit == wanted).count();
        assert!(count(Permit::Given) <= SOURCES_MAX && count(Permit::Given) > SOURCES_MAX * 95 / 100);
        assert_eq!(count(Permit::Untold), 60_000 - count(Permit::Given));
        // Those who have a row are still held to their part.
        let known = Source::v4(0u32.to_be_bytes());
        assert_eq!((0..200_000).filter(|_| answers.allow(known, 0) == Permit::Given).count(), 125_000 - 1);
        assert_eq!(answers.allow(known, 0), Permit::SourceSpent);
        // A token takes 8 µs to come back: then a row is free.
        assert_eq!(answers.allow(Source::v4([9; 4]), 8_000), Permit::Given);
    }

    #[test]
    fn odd_rates_and_clocks() {
        let mut none = answers(0);
        assert_eq!(none.allow(Source::v4([1; 4]), u64::MAX / 2), Permit::Spent);
        let mut one = answers(1);
        assert_eq!(one.allow(Source::v4([1; 4]), 0), Permit::Given);
        assert_eq!(one.allow(Source::v4([1; 4]), 0), Permit::SourceSpent);
        assert_eq!(one.allow(Source::v4([2; 4]), 0), Permit::Spent);
        one.set(u32::MAX, 0);
        assert_eq!(one.allow(Source::v4([2; 4]), 1_000), Permit::Given);
        // A clock that goes back earns nothing.
        assert_eq!(one.allow(Source::v4([2; 4]), 0), Permit::Given);
        one.set(8, 1_000);
        assert_eq!(one.allow(Source::v4([3; 4]), 2_000_000_000), Permit::Given);
        assert_eq!(one.allow(Source::v4([3; 4]), 0), Permit::SourceSpent);
    }

    proptest! {
        /// The table is a map from source to token bucket, as long as it has a row for everybody.
        #[test]
        fn a_map_of_buckets(
            // Divisors of a second, so that both sides compute exactly.
            part in prop::sample::select(vec![1u32, 2, 5, 8, 20, 125]),
            asks in prop::collection::vec((0u32..12, 0u64..60_000_000), 1..300)
        ) {
            let rate = part * SOURCE_PART;
            let mut answers = answers(rate);
            let mut oracle = HashMap::<u32, TokenBucket>::new();
            let mut shared = TokenBucket::new(rate, rate, 0);
            let mut now = 0;
            for (source, wait) in asks {
                now += wait;
                let bucket = oracle.entry(source).or_insert_with(|| TokenBucket::new(part, part, 0));
                let expected = if !bucket.clone().allow(now) {
                    Permit::SourceSpent
                } else if !shared.allow(now) {
                    Permit::Spent
                } else {
                    prop_assert!(bucket.allow(now));
                    Permit::Given
                };
                prop_assert_eq!(answers.allow(Source::v4(source.to_be_bytes()), now), expected);
            }
        }

        /// A set that is full of others' rows says so, and only then.
        #[test]
        fn untold_means_that_eight_others_are_waited_for(
            asks in prop::collection::vec((0usize..12, 0u64..2_000_000), 1..300)
        ) {
            let rate = 125 * SOURCE_PART;
            let mut answers = answers(rate);
            // Twelve sources of one set.
            let set = |n: &u32| (answers.keys.scramble(Source::v4(n.to_be_bytes()).0) >> 32) as usize % SETS;
            let sources: Vec<u32> = (0..).filter(|n| set(n) == 5).take(12).collect();
            let mut oracle = HashMap::<u32, u64>::new();
            let mut now = 0;
            for (source, wait) in asks {
                now += wait;
                oracle.retain(|_, full_ns| *full_ns > now);
                let source = sources[source];
                let crowded = !oracle.contains_key(&source) && oracle.len() == ROWS_PER_SET;
                let permit = answers.allow(Source::v4(source.to_be_bytes()), now);
                prop_assert_eq!(permit == Permit::Untold, crowded, "{:?}", permit);
                if permit == Permit::Given {
                    *oracle.entry(source).or_insert(now) += 8_000_000;
                }
            }
        }
    }
}
