//! A token bucket that is asked once a batch.
//!
//! Owns how many packets are due. Time is an argument, read by the caller once for a whole batch.

/// Time that a bucket holds tokens for, in nanoseconds: a generator that was not on a core for longer does not make up for
/// it with a burst, and falls behind instead, which shows.
const DEPTH_NS: u64 = 2_000_000;

/// Says how many packets may go.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Packets per second; 0: as many as go.
    rate_per_s: u64,
    last_ns: u64,
    /// What is left of a packet, in packets per second times nanoseconds.
    left: u64,
}

/// A second.
const SECOND_NS: u64 = 1_000_000_000;

impl Pace {
    /// So many packets per second from `now_ns` on; 0: no limit.
    pub fn new(rate_per_s: u64, now_ns: u64) -> Pace {
        Pace { rate_per_s: rate_per_s.min(SECOND_NS), last_ns: now_ns, left: 0 }
    }

    /// Packets that may go now, at most `most`; they count as gone.
    #[inline]
    pub fn due(&mut self, now_ns: u64, most: usize) -> usize {
        if self.rate_per_s == 0 {
            return most;
        }
        let passed_ns = now_ns.saturating_sub(self.last_ns).min(DEPTH_NS.max(2 * SECOND_NS / self.rate_per_s));
        self.last_ns = now_ns.max(self.last_ns);
        self.left += passed_ns * self.rate_per_s;
        let due = (self.left / SECOND_NS).min(most as u64);
        self.left -= due * SECOND_NS;
        // Never more than the depth, so that a slow port does not lead to a burst later.
        self.left = self.left.min(SECOND_NS.max(DEPTH_NS * self.rate_per_s));
        usize::try_from(due).unwrap_or(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_whatever_the_steps() {
        for (rate, step_ns) in [(1_000, 7_777), (1_000_000, 1_000), (333_333, 12_345), (14_880_952, 999)] {
            let mut pace = Pace::new(rate, 0);
            let steps = SECOND_NS / step_ns;
            let sent: usize = (1..=steps).map(|step| pace.due(step * step_ns, 64)).sum();
            let expected = steps * step_ns * rate / SECOND_NS;
            assert!((sent as u64).abs_diff(expected) <= 1, "{sent} of {expected} at {rate}/s");
        }
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let mut pace = Pace::new(1_000_000, 0);
        let burst: usize = (0..100_000).map(|_| pace.due(5 * SECOND_NS, 64)).sum();
        assert_eq!(burst, 2_000);
        // A slow rate still comes to its one packet.
        let mut slow = Pace::new(1, 0);
        assert_eq!((slow.due(SECOND_NS - 1, 64), slow.due(SECOND_NS, 64)), (0, 1));
    }

    #[test]
    fn without_a_rate_everything_goes() {
        assert_eq!(Pace::new(0, 0).due(0, 64), 64);
    }
}
