//! What a process counts, as a page of OpenMetrics text at an address of its own.
//!
//! Owns the form of the page and the answering; what stands on it is collected anew for every request by whoever counts.
//! Nothing is kept between two requests, and nothing is counted for the page's sake. Refuses to know what the numbers mean.
//!
//! The answering is plain sockets with deadlines: the small servers that need no runtime have none, and one reader that never
//! reads then keeps the page from everybody and the process from ending.
//!
//! Names follow Prometheus' conventions: `tidegate_` first, the unit last, `_total` on counters (written by the format).

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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

pub use histogram::{Distribution, Histogram};
pub use process::process;

/// Questions answered at once; those beyond are closed.
const SEATS: usize = 8;
/// Longest life of a connection.
const CONVERSATION_MAX: Duration = Duration::from_secs(5);
/// Longest question in bytes.
const REQUEST_BYTES_MAX: usize = 8192;
/// What is written at once, bytes.
const PART_BYTES: usize = 16_384;
/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// The threads that answer; they end when this is dropped.
pub struct Served {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Served {
    /// Answers `GET /metrics` at `address` with what `collect` says then. Few at once, one answer per connection, and little
    /// patience: whoever does not ask, or does not read, is nobody else's trouble.
    ///
    /// # Errors
    /// When nobody can listen there, or there is no thread.
    pub fn start(address: SocketAddr, collect: Collect) -> io::Result<Served> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let listen = move || listen(&listener, &seen, &collect);
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(listen)?;
        Ok(Served { stop, thread: Some(thread), address })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Accepting has no timeout: one more visitor ends it.
        let woken = TcpStream::connect_timeout(&self.address, CONVERSATION_MAX).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn listen(listener: &TcpListener, stop: &AtomicBool, collect: &Collect) {
    let seats = Arc::new(());
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            std::thread::sleep(ACCEPT_PAUSE); // out of descriptors, most likely
            continue;
        };
        if Arc::strong_count(&seats) > SEATS {
            continue;
        }
        let (seat, collect) = (Arc::clone(&seats), Arc::clone(collect));
        let converse = move || {
            if let Err(error) = converse(stream, &collect) {
                tracing::debug!(%error, "a question for metrics was not answered");
            }
            drop(seat);
        };
        if let Err(error) = std::thread::Builder::new().name("metrics-answer".into()).spawn(converse) {
            tracing::warn!(%error, "no thread for a question for metrics");
        }
    }
}

fn converse(mut stream: TcpStream, collect: &Collect) -> io::Result<()> {
    let until = Instant::now() + CONVERSATION_MAX;
    let left = || until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let mut asked = Vec::new();
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        stream.set_read_timeout(Some(left().ok_or_else(late)?))?;
        let mut some = [0; 1024];
        let count = stream.read(&mut some)?;
        if count == 0 || asked.len() + count > REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        asked.extend_from_slice(some.get(..count).unwrap_or_default());
    }
    let (status, kind, body) = answer(&asked, collect);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    for part in [head.as_bytes(), body.as_bytes()].into_iter().flat_map(|all| all.chunks(PART_BYTES)) {
        let mut part = part;
        while !part.is_empty() {
            stream.set_write_timeout(Some(left().ok_or_else(late)?))?;
            let count = stream.write(part)?;
            part = part.get(count..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Status, content type and body of the answer to a request.
fn answer(asked: &[u8], collect: &Collect) -> (&'static str, &'static str, String) {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let line = String::from_utf8_lossy(asked.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match (method, target.split('?').next().unwrap_or_default()) {
        ("GET", "/metrics") => match collect().and_then(|metrics| text(metrics).map_err(|error| error.to_string())) {
            Ok(page) => ("200 OK", CONTENT_TYPE, page),
            Err(told) => ("503 Service Unavailable", PLAIN, told + "\n"),
        },
        ("GET", _) => ("404 Not Found", PLAIN, "metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", PLAIN, "only GET is answered\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drops(count: u64) -> Vec<Metric> {
        let mut metric = Metric::new(Kind::Counter, "drops", "Packets dropped");
        metric.add([("reason", "NoRoute")], number(count));
        metric.add([("reason", "a \"strange\"\nname")], 1.0);
        vec![metric, Metric::single(Kind::Gauge, "flows", "Live flows", 7.0)]
    }

    fn ask(at: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(at).unwrap();
        write!(stream, "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        told
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

    #[test]
    fn who_asks_and_never_reads_keeps_nobody_waiting() {
        // More than a pair of sockets holds.
        let mut large = Metric::new(Kind::Counter, "large", "Large");
        (0..4000).for_each(|n| large.add([("of", &format!("{n}{}", "x".repeat(4000)))], 1.0));
        let collect: Collect = Arc::new(move || Ok(vec![large.clone()]));
        let served = Served::start("127.0.0.1:0".parse().unwrap(), collect).unwrap();
        let at = served.address;
        let silent = TcpStream::connect(at).unwrap();
        let mut mute = TcpStream::connect(at).unwrap();
        mute.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(ask(at, "GET /metrics")));
        let page = heard.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert!(page.starts_with("HTTP/1.1 200"));
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(served);
            told.send(())
        });
        heard.recv_timeout(std::time::Duration::from_secs(20)).expect("it ends all the same");
        drop((mute, silent));
    }

    #[test]
    fn the_page_is_made_anew_for_every_question_in_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let asked = Arc::new(std::sync::atomic::AtomicU64::new(0));
            let count = Arc::clone(&asked);
            let collect: Collect = Arc::new(move || match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                2 => Err("worker 0 is stuck".into()),
                n => Ok(drops(n)),
            });
            let served = Served::start(address.parse().unwrap(), collect).unwrap();
            let at = served.address;
            let first = ask(at, "GET /metrics");
            assert!(first.starts_with("HTTP/1.1 200") && first.contains(CONTENT_TYPE), "{first}");
            assert!(first.contains("{reason=\"NoRoute\"} 0.0"), "{first}");
            assert!(ask(at, "GET /metrics?x=1").contains("{reason=\"NoRoute\"} 1.0"));
            let refused = ask(at, "GET /metrics");
            assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("worker 0 is stuck"), "{refused}");
            assert!(ask(at, "GET /").starts_with("HTTP/1.1 404"));
            assert!(ask(at, "POST /metrics").starts_with("HTTP/1.1 405"));
            drop(served);
            // Its listener closes a moment after it was told to.
            let closed = (0..500).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                TcpStream::connect(at).is_err()
            });
            assert!(closed, "it goes on listening");
        }
    }
}
