//! Slow start: the weight of a new endpoint grows to its full value in steps (L-048).
//!
//! Owns the arithmetic. Weights are small whole numbers, most often 1, so while one of a set grows all of the set are
//! multiplied by the number of steps. Maglev and the schedulers that weigh look at proportions alone: multiplying moves
//! no flow, and neither does going back to plain weights at the end.

use super::Nanos;

/// Steps from the first share to the whole.
pub const STEPS: u16 = 10;

/// How far an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramp {
    /// It has its full weight.
    Full,
    /// It came then.
    Since(Nanos),
}

/// What weights of a set are multiplied by while one of them grows, given the largest.
pub fn scale(most: u16) -> u16 {
    if most <= u16::MAX / STEPS { STEPS } else { 1 }
}

impl Ramp {
    /// Whether the weight is not full yet, when it grows for `duration`.
    pub fn is_growing(self, duration: Nanos, now: Nanos) -> bool {
        self.step(duration, now) < STEPS
    }

    /// The weight at `now` for a full one of `weight`, multiplied by `scale`. One above 0 is never 0: that would drain.
    pub fn weight(self, weight: u16, scale: u16, duration: Nanos, now: Nanos) -> u16 {
        let whole = u64::from(weight) * u64::from(scale);
        let grown = whole * u64::from(self.step(duration, now)) / u64::from(STEPS);
        u16::try_from(grown.max(u64::from(weight > 0))).unwrap_or(u16::MAX)
    }

    /// 1 to [`STEPS`].
    fn step(self, duration: Nanos, now: Nanos) -> u16 {
        let Ramp::Since(since) = self else { return STEPS };
        let elapsed = now.saturating_sub(since);
        if elapsed >= duration {
            return STEPS;
        }
        let done = u128::from(elapsed) * u128::from(STEPS) / u128::from(duration);
        u16::try_from(done).map_or(STEPS, |done| (done + 1).min(STEPS))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_weight_grows_in_steps_to_its_full_value() {
        const SECOND: Nanos = 1_000_000_000;
        let ramp = Ramp::Since(100 * SECOND);
        let at = |second: Nanos| ramp.weight(1, scale(1), 30 * SECOND, (100 + second) * SECOND);
        let seen: Vec<u16> = (0..=30).map(at).collect();
        let mut steps = seen.clone();
        steps.dedup();
        assert_eq!(steps, (1..=10).collect::<Vec<_>>(), "L-048: at least five steps, linear");
        assert_eq!((seen[0], seen[3], seen[26], seen[27], seen[30]), (1, 2, 9, 10, 10));
        assert_eq!(Ramp::Full.weight(3, 1, 30 * SECOND, 0), 3);
        assert!(!ramp.is_growing(0, 0), "no duration, no growth");
    }

    proptest! {
        #[test]
        fn never_more_than_full_and_never_less_than_before(
            weight: u16, most: u16, duration in 0..100_000u64, since in 0..1000u64, now in 0..200_000u64, later in 0..1000u64
        ) {
            let (most, ramp) = (most.max(weight), Ramp::Since(since));
            let scale = scale(most);
            let then = ramp.weight(weight, scale, duration, now);
            let after = ramp.weight(weight, scale, duration, now + later);
            let full = Ramp::Full.weight(weight, scale, duration, now);
            prop_assert!(then <= after && after <= full);
            prop_assert_eq!(then == 0, weight == 0);
            prop_assert!(ramp.is_growing(duration, now) || then == full);
        }
    }
}
