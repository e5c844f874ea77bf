//! How large batches are: one count per batch, by powers of two.
//!
//! A worker that finds few packets at a time has time to spare; one whose batches are full is late for the next.

use crate::limits::BATCH_PACKETS;

/// Sizes that are told apart: 1, 2, up to 4, up to 8, …
pub const BATCH_SIZES: usize = BATCH_PACKETS.ilog2() as usize + 1;
const _: () = assert!(BATCH_PACKETS.is_power_of_two() && BATCH_SIZES == 7, "the names below");

/// Names of these counts among a worker's counters, smallest first.
pub const BATCH_NAMES: [&str; BATCH_SIZES] =
    ["batches_of_1", "batches_to_2", "batches_to_4", "batches_to_8", "batches_to_16", "batches_to_32", "batches_to_64"];

/// Counts by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batches([u64; BATCH_SIZES]);

impl Batches {
    /// Counts a batch of so many packets.
    #[inline]
    pub fn count(&mut self, packets: usize) {
        let size = usize::BITS - packets.saturating_sub(1).leading_zeros();
        if let Some(count) = self.0.get_mut(size as usize) {
            *count += 1;
        }
    }

    /// The counts with their names.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        BATCH_NAMES.into_iter().zip(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_one_count() {
        let mut batches = Batches::default();
        (1..=BATCH_PACKETS).for_each(|packets| batches.count(packets));
        assert_eq!(batches.0, [1, 1, 2, 4, 8, 16, 32]);
        batches.count(BATCH_PACKETS * 2); // no port gives so many
        assert_eq!(batches.named().map(|(_, count)| count).sum::<u64>(), 64);
    }
}
