//! How long a change takes from its cause in the cluster to the last worker.
//!
//! Owns the histogram. The cause's time is what the endpoint controller writes into an EndpointSlice; the end is the
//! moment when all workers forward by it. Two machines' clocks are compared, so a figure is as good as their agreement.
//! Refuses to count what a list brings: only a change that was watched is one.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use hashbrown::HashMap;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tidegate_metrics::Distribution;

use crate::model::Name;

/// Upper ends of the buckets, in milliseconds; one more holds what took longer.
const BUCKETS_MS: [u32; 16] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000, 300_000];
/// Causes remembered of a Service whose change is on its way.
const CAUSES_MAX: usize = 64;

/// The histogram, and what is on its way.
#[derive(Debug, Default)]
pub(super) struct Latency {
    /// Slice, as a hash of its name → its last cause: a slice that changes for another reason keeps it.
    known: HashMap<u64, Timestamp>,
    on_the_way: HashMap<Name, Vec<Timestamp>>,
    counts: [u64; BUCKETS_MS.len() + 1],
    sum_ms: f64,
    told: u64,
}

/// The histogram as it is written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// From the change's own time to the last worker, in milliseconds.
    endpoint_change_to_workers_ms: Histogram,
}

#[derive(Debug, Serialize)]
struct Histogram {
    count: u64,
    sum: f64,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Serialize)]
struct Bucket {
    /// Upper end, included; absent: everything longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    le: Option<u32>,
    count: u64,
}

impl Latency {
    /// A slice of `service` says what caused it; `watched` says that this is a change and not a list.
    pub(super) fn caused(&mut self, slice: &Name, service: Option<&Name>, at: Timestamp, watched: bool) {
        let mut hasher = DefaultHasher::new();
        slice.hash(&mut hasher);
        let new = self.known.insert(hasher.finish(), at) != Some(at);
        if let (true, true, Some(service)) = (new, watched, service) {
            let causes = self.on_the_way.entry(service.clone()).or_default();
            if causes.len() < CAUSES_MAX {
                causes.push(at);
            }
        }
    }

    /// Nothing of the Service is on its way to the dataplane, or it is gone.
    pub(super) fn without_effect(&mut self, service: &Name) {
        self.on_the_way.remove(service);
    }

    /// All workers forward by what is known of the Service.
    pub(super) fn reached(&mut self, service: &Name, now: Timestamp) {
        for cause in self.on_the_way.remove(service).into_iter().flatten() {
            // A cause of the future is a clock that is ahead.
            let took_ms = now.duration_since(cause).as_secs_f64().max(0.0) * 1000.0;
            let bucket = BUCKETS_MS.iter().position(|le| took_ms <= f64::from(*le)).unwrap_or(BUCKETS_MS.len());
            self.counts[bucket] += 1;
            self.sum_ms += took_ms;
        }
    }

    /// The histogram in seconds.
    pub(super) fn distribution(&self) -> Distribution {
        let ends = BUCKETS_MS.iter().map(|ms| f64::from(*ms) / 1000.0).chain([f64::MAX]);
        Distribution { sum: self.sum_ms / 1000.0, buckets: ends.zip(self.counts).collect() }
    }

    /// The histogram, if it has changed since it was last asked for.
    pub(super) fn news(&mut self) -> Option<Told> {
        let count: u64 = self.counts.iter().sum();
        if std::mem::replace(&mut self.told, count) == count {
            return None;
        }
        let ends = BUCKETS_MS.iter().copied().map(Some).chain([None]);
        let buckets = ends.zip(self.counts).map(|(le, count)| Bucket { le, count }).collect();
        Some(Told { endpoint_change_to_workers_ms: Histogram { count, sum: self.sum_ms, buckets } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        Name { namespace: "shop".into(), name: name.into() }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + ms).unwrap()
    }

    #[test]
    fn only_new_causes_of_watched_changes_count() {
        let mut latency = Latency::default();
        let (slice, web) = (name("web-1"), name("web"));
        latency.caused(&slice, Some(&web), at(0), false);
        latency.reached(&web, at(4));
        assert!(latency.news().is_none(), "a list is no change");
        latency.caused(&slice, Some(&web), at(0), true);
        latency.reached(&web, at(4));
        assert!(latency.news().is_none(), "the same cause again");
        latency.caused(&slice, Some(&web), at(100), true);
        latency.caused(&name("web-2"), Some(&web), at(90), true);
        latency.reached(&name("api"), at(101));
        latency.reached(&web, at(104));
        latency.reached(&web, at(1104));
        let told = latency.news().unwrap().endpoint_change_to_workers_ms;
        let full: Vec<_> = told.buckets.iter().filter(|bucket| bucket.count > 0).map(|b| (b.le, b.count)).collect();
        assert_eq!((told.count, full), (2, vec![(Some(5), 1), (Some(20), 1)]));
        let told = latency.distribution();
        let full: Vec<_> = told.buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!((told.count(), full), (2, vec![(0.005, 1), (0.02, 1)]));
        assert!((told.sum - 0.018).abs() < 1e-9, "{}", told.sum);
        assert!(latency.news().is_none());
        latency.caused(&slice, Some(&web), at(200), true);
        latency.without_effect(&web);
        latency.reached(&web, at(300));
        assert!(latency.news().is_none());
    }

    #[test]
    fn clocks_that_disagree_and_long_waits_have_a_place() {
        let mut latency = Latency::default();
        latency.caused(&name("s"), Some(&name("web")), at(500), true);
        latency.reached(&name("web"), at(0));
        latency.caused(&name("s"), Some(&name("web")), at(600), true);
        latency.reached(&name("web"), at(4_000_000));
        let told = latency.news().unwrap().endpoint_change_to_workers_ms;
        assert_eq!((told.buckets[0].count, told.buckets.last().map(|bucket| bucket.count)), (1, Some(1)));
    }
}
