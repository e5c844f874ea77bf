//! A histogram of times: log-linear, a fixed size, exact counts.
//!
//! Owns buckets whose width is at most 1/64 of what they count, from a nanosecond to centuries (the idea of HdrHistogram).
//! A quantile is the upper edge of its bucket, so it is never flattering.

use serde::{Deserialize, Serialize};

/// Buckets of each power of two.
const PER_OCTAVE: u64 = 64;
/// log2 of [`PER_OCTAVE`].
const OCTAVE_BITS: u32 = PER_OCTAVE.trailing_zeros();
/// All buckets.
const BUCKETS: usize = (64 - OCTAVE_BITS as usize + 1) << OCTAVE_BITS;

/// Counts of times in nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum_ns: u128,
    max_ns: u64,
}

/// What a histogram tells, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Times counted.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Half are at most this.
    pub p50_us: f64,
    /// 99 of a hundred are at most this.
    pub p99_us: f64,
    /// 999 of a thousand are at most this.
    pub p99_9_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], count: 0, sum_ns: 0, max_ns: 0 }
    }
}

fn bucket(time_ns: u64) -> usize {
    let octave = (64 - time_ns.leading_zeros()).saturating_sub(OCTAVE_BITS + 1);
    let place = u64::from(octave) * PER_OCTAVE + (time_ns >> octave);
    usize::try_from(place).unwrap_or(BUCKETS - 1).min(BUCKETS - 1)
}

/// The largest time that falls into a bucket.
fn upper_edge(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let octave = (bucket / PER_OCTAVE).saturating_sub(1);
    let place = u128::from(bucket - octave * PER_OCTAVE) + 1;
    u64::try_from((place << octave) - 1).unwrap_or(u64::MAX)
}

impl Histogram {
    /// Counts one time.
    #[inline]
    pub fn add(&mut self, time_ns: u64) {
        if let Some(count) = self.counts.get_mut(bucket(time_ns)) {
            *count += 1;
        }
        self.count += 1;
        self.sum_ns += u128::from(time_ns);
        self.max_ns = self.max_ns.max(time_ns);
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
        self.count += other.count;
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// The time that `part` (0 to 1) of all do not exceed, in nanoseconds; 0 without any.
    pub fn quantile_ns(&self, part: f64) -> u64 {
        let wanted = part * self.count as f64;
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if *count > 0 && below as f64 >= wanted {
                return upper_edge(bucket).min(self.max_ns);
            }
        }
        self.max_ns
    }

    /// What is told of it.
    pub fn quantiles(&self) -> Quantiles {
        let us = |ns: u64| ns as f64 / 1e3;
        Quantiles {
            count: self.count,
            mean_us: self.sum_ns as f64 / 1e3 / self.count.max(1) as f64,
            p50_us: us(self.quantile_ns(0.5)),
            p99_us: us(self.quantile_ns(0.99)),
            p99_9_us: us(self.quantile_ns(0.999)),
            max_us: us(self.max_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_join_without_gaps() {
        for bucket_number in 0..BUCKETS - 1 {
            let edge = upper_edge(bucket_number);
            assert_eq!(bucket(edge), bucket_number);
            assert_eq!(bucket(edge + 1), bucket_number + 1, "{edge}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        /// The oracle sorts: a quantile is at least the exact one, and at most a 64th more.
        #[test]
        fn quantiles_are_those_of_a_sorted_list(mut times in prop::collection::vec(0u64..10_000_000_000, 1..400)) {
            let (mut one, mut two) = (Histogram::default(), Histogram::default());
            for (at, time) in times.iter().enumerate() {
                if at % 3 == 0 { one.add(*time) } else { two.add(*time) }
            }
            one.merge(&two);
            times.sort_unstable();
            for hundredths in [1, 50, 99, 100] {
                let exact = times[(hundredths * times.len()).div_ceil(100).max(1) - 1];
                let told = one.quantile_ns(hundredths as f64 / 100.0);
                prop_assert!(told >= exact && told <= exact + exact / 64 + 1, "{hundredths} %: {told} for {exact}");
            }
            prop_assert_eq!(one.quantiles().count, times.len() as u64);
        }
    }
}
