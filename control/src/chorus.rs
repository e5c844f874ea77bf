//! Lines of the log that say the same of many objects.
//!
//! Owns how many of each kind are written, and the count of those that are not: hundreds of Services may lose their endpoints
//! in one moment, and what else happened then is to be found all the same. Nothing is lost by it: everything that is wrong
//! stands in the list of problems and in status.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Lines of one kind that are written within [`WITHIN`].
pub const LINES_MAX: u32 = 10;
/// See [`LINES_MAX`].
pub const WITHIN: Duration = Duration::from_secs(10);

/// Shortest time between two lines of a problem that goes on in other words.
pub const RETOLD_AFTER: Duration = Duration::from_secs(60);

/// What sort of line it is: what it tells of, and its reason.
pub type Sort = (&'static str, &'static str);

/// Kinds of lines that were written lately.
#[derive(Debug, Default)]
pub struct Chorus(BTreeMap<Sort, Lately>);

#[derive(Debug)]
struct Lately {
    begun: Instant,
    written: u32,
    left_out: u64,
}

impl Chorus {
    /// Whether one more line of this sort is to be written at `now`; it counts as written, or as left out.
    pub fn admits(&mut self, sort: Sort, now: Instant) -> bool {
        let lately = self.0.entry(sort).or_insert(Lately { begun: now, written: 0, left_out: 0 });
        let admitted = lately.written < LINES_MAX;
        match admitted {
            true => lately.written += 1,
            false => lately.left_out += 1,
        }
        admitted
    }

    /// Sorts whose time is over at `now`, with how many lines were left out of each; each once, and those of which none was
    /// are not among them.
    pub fn take_left_out(&mut self, now: Instant) -> Vec<(Sort, u64)> {
        let is_over = |lately: &Lately| now.saturating_duration_since(lately.begun) >= WITHIN;
        let over = self.0.iter().filter(|(_, lately)| is_over(lately) && lately.left_out > 0);
        let over = over.map(|(sort, lately)| (*sort, lately.left_out)).collect();
        self.0.retain(|_, lately| !is_over(lately));
        over
    }
}

/// Problems that go on and were told anew, in other words, lately: by reason.
#[derive(Debug, Default)]
pub struct Retold(BTreeMap<&'static str, Instant>);

impl Retold {
    /// Whether one of this reason is written anew at `now`: once within [`RETOLD_AFTER`].
    pub fn admits(&mut self, reason: &'static str, now: Instant) -> bool {
        let is_due = self.0.get(reason).is_none_or(|at| now.saturating_duration_since(*at) >= RETOLD_AFTER);
        if is_due {
            self.0.insert(reason, now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_sort_the_first_lines_are_written_and_the_rest_is_counted() {
        let (slices, pools) = (("condition", "NoSlice"), ("problem", "PoolTooLarge"));
        let begun = Instant::now();
        let mut chorus = Chorus::default();
        let written = (0..300).filter(|_| chorus.admits(slices, begun)).count();
        assert_eq!(written, LINES_MAX as usize);
        assert!(chorus.admits(pools, begun), "another sort has its own count");
        assert_eq!(chorus.take_left_out(begun + WITHIN / 2), []);
        assert!(!chorus.admits(slices, begun + WITHIN / 2));
        assert_eq!(chorus.take_left_out(begun + WITHIN), [(slices, 291)]);
        assert_eq!(chorus.take_left_out(begun + WITHIN), [], "told once");
        assert!(chorus.admits(slices, begun + WITHIN), "and the next ones are written again");
    }

    #[test]
    fn what_goes_on_in_other_words_is_told_once_a_minute() {
        let (begun, mut retold) = (Instant::now(), Retold::default());
        let written = (0..120).filter(|second| retold.admits("LeaseUnavailable", begun + Duration::from_secs(*second)));
        assert_eq!(written.count(), 2);
        assert!(retold.admits("DataplaneAbsent", begun));
    }
}
