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
        /// However it is asked, from any moment on a bucket lets through at most the burst and what the rate earned;
        /// and whoever asks for less than the rate is never refused.
        #[test]
        fn no_more_than_the_limit_and_no_less(
            rate in 1u32..2_000, burst in 1u32..50, steps in prop::collection::vec((0u64..40_000_000, any::<bool>()), 1..300)
        ) {
            let mut bucket = TokenBucket::new(rate, burst, 0);
            let (mut now, mut passed) = (0u64, 0u128);
            let mut credit = u128::from(burst) * 1_000_000_000;
            for (step, backwards) in steps {
                now += step;
                credit = (credit + u128::from(step) * u128::from(rate)).min(u128::from(burst) * 1_000_000_000);
                let asked = if backwards { now.saturating_sub(1_000) } else { now };
                // The oracle sees the newest time it was shown.
                let expected = credit >= 1_000_000_000;
                if backwards {
                    // May lag behind by what a microsecond earns.
                    if bucket.allow(asked) {
                        prop_assert!(expected);
                        credit -= 1_000_000_000;
                        passed += 1;
                    }
                } else {
                    let allowed = bucket.allow(asked);
                    prop_assert_eq!(allowed, expected);
                    if allowed {
                        credit -= 1_000_000_000;
                        passed += 1;
                    }
                }
            }
            prop_assert!(passed * 1_000_000_000 <= u128::from(now) * u128::from(rate) + u128::from(burst) * 1_000_000_000);
        }
    }
}
