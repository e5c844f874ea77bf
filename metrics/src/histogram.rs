//! A distribution: how often something had which size.
//!
//! Owns the buckets, which are fixed from the start, and the adding. One observation is a search over a few ends and two
//! additions, so it is for what happens thousands of times a second at most.

/// Counts by size.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper ends of the buckets, included, growing; one more bucket holds what is beyond.
    ends: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

/// A distribution as a page has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Sum of all that was observed.
    pub sum: f64,
    /// Upper end, included, and how much fell in that bucket and in none before; the last end is [`f64::MAX`].
    pub buckets: Vec<(f64, u64)>,
}

impl Distribution {
    /// How much was observed.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

impl Histogram {
    /// An empty one; `ends` grow.
    pub fn new(ends: &'static [f64]) -> Histogram {
        Histogram { ends, counts: vec![0; ends.len() + 1], sum: 0.0 }
    }

    /// Takes in one value.
    pub fn observe(&mut self, value: f64) {
        let bucket = self.ends.iter().position(|end| value <= *end).unwrap_or(self.ends.len());
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += value;
    }

    /// The distribution now.
    pub fn told(&self) -> Distribution {
        let ends = self.ends.iter().copied().chain([f64::MAX]);
        Distribution { sum: self.sum, buckets: ends.zip(self.counts.iter().copied()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_one_bucket() {
        let mut histogram = Histogram::new(&[1.0, 10.0]);
        for value in [0.0, 1.0, 1.5, 10.0, 10.5, f64::MAX / 4.0] {
            histogram.observe(value);
        }
        let told = histogram.told();
        assert_eq!(told.buckets, [(1.0, 2), (10.0, 2), (f64::MAX, 2)]);
        assert_eq!(told.count(), 6);
        assert!(told.sum >= f64::MAX / 4.0);
    }
}
