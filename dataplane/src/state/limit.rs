//! A token bucket.
//!
//! It owns one rate. It refuses to read a clock: time is an argument, and one that goes backwards earns nothing.

/// Units of credit in a token: with time in nanoseconds and rates per second all arithmetic is exact.
const CREDIT_PER_TOKEN: u64 = 1_000_000_000;

/// How much of something may happen: `rate_per_s` in the long run, `burst` at once.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate_per_s: u32,
    burst: u32,
    credit: u64,
    seen_ns: u64,
}

impl TokenBucket {
    /// A full bucket. A rate of zero allows the burst once and nothing after; a burst of zero allows nothing.
    #[must_use]
    pub const fn new(rate_per_s: u32, burst: u32, now_ns: u64) -> TokenBucket {
        TokenBucket { rate_per_s, burst, credit: burst as u64 * CREDIT_PER_TOKEN, seen_ns: now_ns }
    }

    /// Takes one token, if there is one.
    #[inline]
    #[must_use]
    pub fn allow(&mut self, now_ns: u64) -> bool {
        self.take(1, now_ns)
    }

    /// Takes `tokens` at once, or none.
    #[must_use]
    pub fn take(&mut self, tokens: u32, now_ns: u64) -> bool {
        self.earn(now_ns);
        let price = u64::from(tokens) * CREDIT_PER_TOKEN;
        let Some(rest) = self.credit.checked_sub(price) else { return false };
        self.credit = rest;
        true
    }

    /// Changes the limits; what was earned under the old ones stays, up to the new burst.
    pub fn set(&mut self, rate_per_s: u32, burst: u32, now_ns: u64) {
        self.earn(now_ns);
        (self.rate_per_s, self.burst) = (rate_per_s, burst);
        self.credit = self.credit.min(u64::from(burst) * CREDIT_PER_TOKEN);
    }

    fn earn(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.seen_ns);
        self.seen_ns = self.seen_ns.max(now_ns);
        let earned = elapsed_ns.saturating_mul(self.rate_per_s.into());
        self.credit = self.credit.saturating_add(earned).min(u64::from(self.burst) * CREDIT_PER_TOKEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = TokenBucket::new(10, 3, 0);
        assert_eq!((0..5).filter(|_| bucket.allow(0)).count(), 3);
        assert!(!bucket.allow(99_999_999));
        assert!(bucket.allow(100_000_000), "a tenth of a second earns one of ten per second");
        assert!(!bucket.allow(100_000_000));
        assert_eq!((0..9).filter(|_| bucket.allow(u64::MAX)).count(), 3, "never more than the burst");
    }

    #[test]
    fn odd_limits() {
        let mut never = TokenBucket::new(10, 0, 0);
        assert!(!never.allow(u64::MAX));
        let mut once = TokenBucket::new(0, 1, 0);
        assert!(once.allow(5));
        assert!(!once.allow(u64::MAX));
        let mut fast = TokenBucket::new(u32::MAX, u32::MAX, 0);
        assert!(fast.take(u32::MAX, 0));
        assert!(fast.take(u32::MAX, 1_000_000_000));
        assert!(!fast.allow(1_000_000_000));
        let mut changed = TokenBucket::new(1, 100, 0);
        changed.set(1, 2, 0);
        assert_eq!((0..9).filter(|_| changed.allow(0)).count(), 2);
    }

    proptest! {
        /// The limit itself, said naively: between any two moments at most the burst and what the rate earned passes,
        /// and a refusal means that one more would have broken that.
        #[test]
        fn no_more_than_the_limit_and_no_less(
            rate in 1u32..2_000, burst in 1u32..20,
            steps in prop::collection::vec((0u64..40_000_000, prop::bool::weighted(0.1)), 1..200)
        ) {
            let mut bucket = TokenBucket::new(rate, burst, 0);
            let (mut now, mut passed) = (0u64, Vec::<u64>::new());
            for (step, is_late) in steps {
                now += step;
                // A reading from the past is as good as the newest one.
                let asked = if is_late { now.saturating_sub(1_000_000_000) } else { now };
                if !bucket.allow(now) {
                    prop_assert!(!bucket.allow(asked));
                    prop_assert!(is_exceeded(rate, burst, &passed, now));
                } else {
                    prop_assert!(!is_exceeded(rate, burst, &passed, now));
                    passed.push(now);
                }
            }
        }
    }

    /// Whether one more at `now` would be too many for some period that ends now.
    fn is_exceeded(rate: u32, burst: u32, passed: &[u64], now: u64) -> bool {
        (0..passed.len()).any(|first| {
            let count = (passed.len() - first + 1) as u128;
            count * 1_000_000_000
                > u128::from(burst) * 1_000_000_000 + u128::from(now - passed[first]) * u128::from(rate)
        })
    }
}
