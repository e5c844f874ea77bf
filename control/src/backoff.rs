//! Patience: how long to wait before something that failed is tried again.
//!
//! Owns the doubling and the jitter, so that many who lost the same server do not come back in step.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Waits that double from `min` to `max`.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Backoff { min, max, next: min }
    }

    /// How long to wait now: between three and five quarters of the present step, never more than the longest.
    pub fn wait(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        let dice = RandomState::new().hash_one(0u8) % 512; // a new state is a new random number
        let jittered = step.mul_f64(0.75 + f64::from(u16::try_from(dice).unwrap_or_default()) / 1024.0);
        jittered.min(self.max)
    }

    /// It went well: the next wait is the first again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut backoff = Backoff::new(min, max);
        for step in [1.0, 2.0, 4.0, 8.0, 10.0, 10.0] {
            let wait = backoff.wait().as_secs_f64();
            assert!(wait >= step * 0.75 && wait <= (step * 1.25_f64).min(10.0), "{wait} at {step}");
        }
        backoff.reset();
        assert!(backoff.wait() <= min.mul_f64(1.25));
        let waits: std::collections::BTreeSet<Duration> = (0..8).map(|_| Backoff::new(min, max).wait()).collect();
        assert!(waits.len() > 1, "all alike: {waits:?}");
    }
}
