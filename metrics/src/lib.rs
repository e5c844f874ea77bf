//! What a process counts, as a page of OpenMetrics text at an address of its own.
//!
//! Owns the form of the page and the answering; what stands on it is collected anew for every request by whoever counts.
//! Nothing is kept between two requests, and nothing is counted for the page's sake. Refuses to know what the numbers mean.
//!
//! Names follow Prometheus' conventions: `tidegate_` first, the unit last, `_total` on counters (written by the format).

#![forbid(unsafe_code)]

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// A distribution, as it is counted.
mod histogram;
/// What the kernel knows of a process.
mod process;
/// The sockets, and who may sit at them.
mod serve;

pub use histogram::{Distribution, Histogram};
pub use process::process;
pub use serve::Served;

/// What the page is, for whoever fetches it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What sort of numbers a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They only grow, from 0 at the start of the process.
    Counter,
    /// They are how things are now.
    Gauge,
    /// How often something had which size.
    Histogram,
}

impl Kind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// What a metric is, whatever its numbers are now: a line of a process's one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// What sort of numbers it has.
    pub kind: Kind,
    /// Name without `tidegate_` and without `_total`.
    pub name: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, one sentence.
    pub help: &'static str,
}

impl Definition {
    /// The metric without samples yet.
    pub fn metric(&self) -> Metric {
        Metric::new(self.kind, self.name, self.help)
    }

    /// The metric with one sample that has no labels.
    pub fn single(&self, value: f64) -> Metric {
        Metric::single(self.kind, self.name, self.help, value)
    }

    /// Names under which a reader has its samples.
    pub fn series(&self) -> Vec<String> {
        let suffixes: &[&str] = match self.kind {
            Kind::Counter => &["_total"],
            Kind::Gauge => &[""],
            Kind::Histogram => &["_bucket", "_count", "_sum"],
        };
        suffixes.iter().map(|suffix| format!("tidegate_{}{suffix}", self.name)).collect()
    }
}

/// The text of a page that lists all metrics of a process, whose name is `program`.
pub fn document(program: &str, file: &str, definitions: &[Definition]) -> String {
    let mut text = format!(
        "# Metrics of {program}\n\nGenerated from `{file}`; a test compares. How to get them is in [Metrics](metrics.md).\n\n\
         | metric | kind | labels | meaning |\n|---|---|---|---|\n"
    );
    for definition in definitions {
        let name = match definition.kind {
            Kind::Histogram => format!("tidegate_{}", definition.name),
            _ => definition.series().concat(),
        };
        let labels: Vec<String> = definition.labels.iter().map(|label| format!("`{label}`")).collect();
        let (kind, labels) = (definition.kind.name(), labels.join(", "));
        text += &format!("| `{name}` | {kind} | {labels} | {} |\n", definition.help);
    }
    text
}

/// One metric with all its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Name without `tidegate_` and without `_total`.
    pub name: &'static str,
    /// What it means, one sentence.
    pub help: &'static str,
    /// What sort of numbers it has.
    pub kind: Kind,
    /// Labels and number; each set of labels once.
    pub samples: Vec<Sample>,
}

/// Labels and what was counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The number, or the distribution.
    pub value: Value,
}

/// What was counted.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Distribution(Distribution),
}

impl Value {
    fn encode(&self, kind: Kind, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match (self, kind) {
            (Value::Number(value), Kind::Counter) => ConstCounter::new(*value).encode(encoder),
            (Value::Number(value), _) => ConstGauge::new(*value).encode(encoder),
            (Value::Distribution(told), _) => {
                encoder.encode_histogram::<NoLabelSet>(told.sum, told.count(), &told.buckets, None)
            }
        }
    }
}

impl Metric {
    /// A metric without samples yet.
    pub fn new(kind: Kind, name: &'static str, help: &'static str) -> Metric {
        Metric { name, help, kind, samples: Vec::new() }
    }

    /// Adds a sample.
    pub fn add<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: f64) {
        self.push(labels, Value::Number(value));
    }

    /// Adds a distribution.
    pub fn distribute<const N: usize>(&mut self, labels: [(&'static str, &str); N], distribution: Distribution) {
        self.push(labels, Value::Distribution(distribution));
    }

    fn push<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: Value) {
        let labels = labels.map(|(name, value)| (name, escaped(value))).to_vec();
        self.samples.push(Sample { labels, value });
    }

    /// One with a single sample that has no labels.
    pub fn single(kind: Kind, name: &'static str, help: &'static str, value: f64) -> Metric {
        let mut metric = Metric::new(kind, name, help);
        metric.add([], value);
        metric
    }
}

/// A label's value as the format wants it written; the encoder writes it as it is.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A count as the format has numbers: exact up to 2^53.
#[allow(clippy::cast_precision_loss, reason = "the format's numbers are floating; 2^53 packets take years")]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// Collects what is on the page now.
pub type Collect = Arc<dyn Fn() -> Result<Vec<Metric>, String> + Send + Sync>;

#[derive(Debug)]
struct Page(Vec<Metric>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for metric in &self.0 {
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut samples = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            if let [Sample { labels, value }] = metric.samples.as_slice()
                && labels.is_empty()
            {
                value.encode(metric.kind, samples)?;
                continue;
            }
            for sample in &metric.samples {
                sample.value.encode(metric.kind, samples.encode_family(&sample.labels)?)?;
            }
        }
        Ok(())
    }
}

/// The page as text.
///
/// # Errors
/// When a label cannot be written.
pub fn text(metrics: Vec<Metric>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("tidegate");
    registry.register_collector(Box::new(Page(metrics)));
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry)?;
    Ok(page)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn drops(count: u64) -> Vec<Metric> {
        let mut metric = Metric::new(Kind::Counter, "drops", "Packets dropped");
        metric.add([("reason", "NoRoute")], number(count));
        metric.add([("reason", "a \"strange\"\nname")], 1.0);
        vec![metric, Metric::single(Kind::Gauge, "flows", "Live flows", 7.0)]
    }

    #[test]
    fn a_page_has_help_type_and_samples() {
        let page = text(drops(3)).unwrap();
        assert_eq!(
            page,
            "# HELP tidegate_drops Packets dropped\n\
             # TYPE tidegate_drops counter\n\
             tidegate_drops_total{reason=\"NoRoute\"} 3.0\n\
             tidegate_drops_total{reason=\"a \\\"strange\\\"\\nname\"} 1.0\n\
             # HELP tidegate_flows Live flows\n\
             # TYPE tidegate_flows gauge\n\
             tidegate_flows 7.0\n\
             # EOF\n"
        );
    }

    #[test]
    fn a_histogram_has_buckets_that_add_up() {
        let mut took = Histogram::new(&[0.5, 2.0]);
        [0.25, 0.5, 1.0, 4.0, 4.0].into_iter().for_each(|value| took.observe(value));
        let one =
            Definition { kind: Kind::Histogram, name: "took_seconds", labels: &["verb"], help: "How long it took" };
        let mut metric = one.metric();
        metric.distribute([("verb", "get")], took.told());
        let page = text(vec![metric]).unwrap();
        assert_eq!(
            page,
            "# HELP tidegate_took_seconds How long it took\n\
             # TYPE tidegate_took_seconds histogram\n\
             tidegate_took_seconds_sum{verb=\"get\"} 9.75\n\
             tidegate_took_seconds_count{verb=\"get\"} 5\n\
             tidegate_took_seconds_bucket{le=\"0.5\",verb=\"get\"} 2\n\
             tidegate_took_seconds_bucket{le=\"2.0\",verb=\"get\"} 3\n\
             tidegate_took_seconds_bucket{le=\"+Inf\",verb=\"get\"} 5\n\
             # EOF\n"
        );
        assert_eq!(one.series(), ["_bucket", "_count", "_sum"].map(|end| format!("tidegate_took_seconds{end}")));
        let listed = document("x", "y.rs", &[one]);
        assert!(listed.ends_with("| `tidegate_took_seconds` | histogram | `verb` | How long it took |\n"), "{listed}");
    }
}
