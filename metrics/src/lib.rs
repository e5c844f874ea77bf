//! What a process counts, as a page of OpenMetrics text at an address of its own.
//!
//! Owns the form of the page and the answering; what stands on it is collected anew for every request by whoever counts.
//! Nothing is kept between two requests, and nothing is counted for the page's sake. Refuses to know what the numbers mean.
//!
//! Names follow Prometheus' conventions: `tidegate_` first, the unit last, `_total` on counters (written by the format).

#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tiny_http::{Header, Method, Request, Response, Server};

/// What the page is, for whoever fetches it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from 0 at the start of the process.
    Counter,
    /// It is how things are now.
    Gauge,
}

impl Kind {
    fn encode(self, value: f64, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Kind::Counter => ConstCounter::new(value).encode(encoder),
            Kind::Gauge => ConstGauge::new(value).encode(encoder),
        }
    }
}

/// One metric with all its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Name without `tidegate_` and without `_total`.
    pub name: &'static str,
    /// What it means, one sentence.
    pub help: &'static str,
    /// What sort of number it is.
    pub kind: Kind,
    /// Labels and number; each set of labels once.
    pub samples: Vec<Sample>,
}

/// Labels and a number.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

impl Metric {
    /// A metric without samples yet.
    pub fn new(kind: Kind, name: &'static str, help: &'static str) -> Metric {
        Metric { name, help, kind, samples: Vec::new() }
    }

    /// Adds a sample.
    pub fn add<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: f64) {
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
            };
            let mut samples = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            if let [Sample { labels, value }] = metric.samples.as_slice()
                && labels.is_empty()
            {
                metric.kind.encode(*value, samples)?;
                continue;
            }
            for sample in &metric.samples {
                metric.kind.encode(sample.value, samples.encode_family(&sample.labels)?)?;
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

/// The thread that answers; it ends when this is dropped.
pub struct Served {
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Served {
    /// Answers `GET /metrics` at `address` with what `collect` says then. One question at a time.
    ///
    /// # Errors
    /// When nobody can listen there, or there is no thread.
    pub fn start(address: SocketAddr, collect: Collect) -> io::Result<Served> {
        let server = Arc::new(Server::http(address).map_err(io::Error::other)?);
        let address = server.server_addr().to_ip().unwrap_or(address);
        let answering = Arc::clone(&server);
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || {
            for request in answering.incoming_requests() {
                let asked = format!("{} {}", request.method(), request.url());
                if let Err(error) = answer(request, &collect) {
                    tracing::debug!(asked, %error, "a question for metrics was not answered");
                }
            }
        })?;
        Ok(Served { server, thread: Some(thread), address })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(request: Request, collect: &Collect) -> io::Result<()> {
    let path = request.url().split('?').next().unwrap_or_default();
    let plain = |status: u16, told: &str| Response::from_string(format!("{told}\n")).with_status_code(status);
    let response = match (request.method(), path) {
        (Method::Get, "/metrics") => match collect()
            .and_then(|metrics| text(metrics).map_err(|error| error.to_string()))
        {
            Ok(page) => {
                let kind = Header::from_bytes("Content-Type", CONTENT_TYPE).map_err(|()| io::ErrorKind::InvalidData)?;
                Response::from_string(page).with_header(kind)
            }
            Err(told) => plain(503, &told),
        },
        (Method::Get, _) => plain(404, "metrics are at /metrics"),
        _ => plain(405, "only GET is answered"),
    };
    request.respond(response)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

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
