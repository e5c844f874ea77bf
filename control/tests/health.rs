//! `healthCheckNodePort` over real sockets: what a load balancer of others is told of this node.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rig::{endpoints, node, node_file, service, slice};
use tidegate_api::frame;
use tidegate_api::message::{Accepted, Request, Response};
use tidegate_api::resource::Versions;
use tidegate_control::health::Health;
use tidegate_control::reconcile::{Input, Reconciler};
use tidegate_control::session::link::News;
use tidegate_control::source::{Batch, manifest};
use tidegate_control::status::StatusWriter;
use tidegate_control::watch::Dialect;

/// Longest wait for something that must happen; never waited for when it does.
const PATIENCE: Duration = Duration::from_secs(20);
const HTTP: &str = "{ name: http, port: 8080 }";
const LOOPBACKS: [&str; 2] = ["127.0.0.1", "::1"];

/// Control with a stand-in for a dataplane that accepts everything, and the ports of load balancers at loopback.
struct Gateway {
    inbox: Sender<Input>,
    thread: Option<JoinHandle<()>>,
    home: tempfile::TempDir,
}

impl Gateway {
    fn start() -> Gateway {
        let home = tempfile::tempdir().unwrap();
        let extra = "  serveHealthCheckNodePorts: true\n  nodePortAddresses: [127.0.0.1, \"::1\"]\n";
        let file = node_file(home.path(), extra);
        let status = StatusWriter::start(&file.state_dir).unwrap();
        let (inbox, taken) = channel();
        let mut reconciler = Reconciler::new(file, Dialect::Files, status).telling(Health::start().unwrap());
        let thread = Some(thread::spawn(move || reconciler.run(&taken, &std::sync::mpsc::channel().1)));
        let gateway = Gateway { inbox, thread, home };
        gateway.apply(&node("gw-1", 9));
        gateway
    }

    fn apply(&self, yaml: &str) {
        let content = manifest::parse("test.yaml", yaml).unwrap();
        let batch = Batch { applied: content.manifests, complete: true, ..Batch::default() };
        self.inbox.send(Input::Source(batch)).unwrap();
    }

    /// A dataplane that takes whatever it is sent, until [`Gateway::lose`].
    fn connect(&self, link: u64) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let news = News::Connected {
            link,
            stream: ours,
            holds: Versions::new(),
            reached: 0,
            server: "test".into(),
            prepares: false,
        };
        self.inbox.send(Input::Dataplane(news)).unwrap();
        let (inbox, mut reader) = (self.inbox.clone(), theirs.try_clone().unwrap());
        thread::spawn(move || {
            while let Ok(Request::Update(update)) = frame::read(&mut reader) {
                let accepted = Accepted { nonce: update.nonce, generation: update.nonce, rejected: Vec::new() };
                let news = News::Message { link, response: Response::Accepted(accepted) };
                if inbox.send(Input::Dataplane(news)).is_err() {
                    return;
                }
            }
        });
        theirs
    }

    fn lose(&self, link: u64) {
        self.inbox.send(Input::Dataplane(News::Lost { link, reason: "test".into() })).unwrap();
    }

    fn await_problem(&self, part: &str, there: bool) {
        let path = self.home.path().join("state/status/problems.json");
        eventually(|| {
            let text = std::fs::read_to_string(&path).unwrap();
            (text.contains(part) == there).then_some(()).ok_or(text)
        });
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.inbox.send(Input::Stop).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn eventually<T>(mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(begun.elapsed() < PATIENCE, "it stays {seen}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A port that is free at both loopback addresses.
fn free_port() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if TcpListener::bind(("::1", port)).is_ok() {
            return port;
        }
    }
}

/// A whole answer.
fn ask(address: &str, port: u16, request: &str) -> Result<String, String> {
    let at = SocketAddr::new(address.parse().unwrap(), port);
    let mut stream = TcpStream::connect(at).map_err(|error| error.to_string())?;
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    Ok(answer)
}

fn get(address: &str, port: u16) -> Result<String, String> {
    ask(address, port, "GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")
}

/// Waits for this status with this count and this health, and checks everything else of the answer (S-111).
fn expect(address: &str, port: u16, status: u16, local: usize, healthy: bool) {
    eventually(|| {
        let answer = get(address, port)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(answer.clone())?;
        let body: serde_json::Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
        let expected = serde_json::json!({
            "service": { "namespace": "shop", "name": "web" }, "localEndpoints": local, "serviceProxyHealthy": healthy
        });
        let head = head.to_ascii_lowercase();
        let fields = [
            "content-type: application/json".to_string(),
            "x-content-type-options: nosniff".into(),
            format!("x-load-balancing-endpoint-weight: {local}"),
        ];
        let right = head.starts_with(&format!("http/1.1 {status} "))
            && fields.iter().all(|field| head.lines().any(|line| line == field))
            && body == expected;
        if right { Ok(()) } else { Err(answer) }
    });
}

fn expect_closed(port: u16) {
    for address in LOOPBACKS {
        eventually(|| get(address, port).map_or(Ok(()), Err));
    }
}

fn web(port: u16, policy: &str) -> String {
    let spec = format!(
        "externalTrafficPolicy: {policy}, healthCheckNodePort: {port}, ports: [{{ name: http, port: 80 }}], \
         loadBalancerIP: 203.0.113.10"
    );
    service("web", &spec)
}

/// Slices of both families with one endpoint each, on `node`, with conditions as `rig::endpoints` has them.
fn pods(node: &str, letters: &str) -> String {
    let one = |address: &str| {
        let base = endpoints(&[&format!("{address}={letters}")]);
        format!("{}, nodeName: {node} }}", base.strip_suffix(" }").unwrap())
    };
    slice("s4", "web", "IPv4", HTTP, &one("10.244.9.5")) + &slice("s6", "web", "IPv6", HTTP, &one("fd00:10:244:9::5"))
}

#[test]
fn one_ready_local_endpoint_makes_it_well_and_none_makes_it_ill() {
    // T-019, S-110, S-111, S-112: 0 → 1 → 0.
    let (gateway, port) = (Gateway::start(), free_port());
    let _dataplane = gateway.connect(1);
    gateway.apply(&(web(port, "Local") + &pods("w1", "rs")));
    for address in LOOPBACKS {
        expect(address, port, 503, 0, true);
    }
    gateway.apply(&pods("gw-1", "rs"));
    for address in LOOPBACKS {
        expect(address, port, 200, 1, true);
        // Any path, any method.
        for request in ["POST /x HTTP/1.1\r\nHost: n\r\nContent-Length: 0\r\n\r\n", "DELETE / HTTP/1.0\r\n\r\n"] {
            assert!(ask(address, port, request).unwrap().contains(" 200 OK\r\n"), "{request}");
        }
        let head = ask(address, port, "HEAD / HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
        assert!(head.contains(" 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }
    // Terminating only: it still gets traffic, but not more of it.
    gateway.apply(&pods("gw-1", "st"));
    for address in LOOPBACKS {
        expect(address, port, 503, 0, true);
    }
    // One family alone.
    gateway.apply(&slice("s6", "web", "IPv6", HTTP, "{ addresses: [\"fd00:10:244:9::6\"], nodeName: gw-1 }"));
    expect("::1", port, 200, 1, true);
    expect("127.0.0.1", port, 503, 0, true);
}

#[test]
fn a_dataplane_that_does_not_answer_makes_it_ill() {
    // T-019: unhealthy proxy ⇒ 503.
    let (gateway, port) = (Gateway::start(), free_port());
    gateway.apply(&(web(port, "Local") + &pods("gw-1", "rs")));
    expect("127.0.0.1", port, 503, 1, false);
    let dataplane = gateway.connect(1);
    expect("::1", port, 200, 1, true);
    drop(dataplane);
    gateway.lose(1);
    expect("127.0.0.1", port, 503, 1, false);
    let _again = gateway.connect(2);
    expect("127.0.0.1", port, 200, 1, true);
}

#[test]
fn ports_follow_the_policy_and_the_service() {
    // S-116
    let (gateway, port, other) = (Gateway::start(), free_port(), free_port());
    let _dataplane = gateway.connect(1);
    gateway.apply(&(web(port, "Local") + &pods("gw-1", "rs")));
    expect("127.0.0.1", port, 200, 1, true);
    gateway.apply(&web(port, "Cluster"));
    expect_closed(port);
    gateway.apply(&web(other, "Local"));
    expect("::1", other, 200, 1, true);
    expect_closed(port);
    gateway.apply(&web(port, "Local"));
    expect("::1", port, 200, 1, true);
    expect_closed(other);
}

#[test]
fn a_port_that_is_taken_is_told_and_everything_else_works() {
    // S-113
    let (gateway, port) = (Gateway::start(), free_port());
    let _dataplane = gateway.connect(1);
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    gateway.apply(&(web(port, "Local") + &pods("gw-1", "rs")));
    expect("::1", port, 200, 1, true);
    gateway.apply(&node("w1", 1)); // problems are written when something has happened
    gateway.await_problem("FailedToStartServiceHealthcheck", true);
    gateway.await_problem("shop/web", true);
    drop(taken);
    expect("127.0.0.1", port, 200, 1, true);
    gateway.apply(&node("w2", 2));
    gateway.await_problem("FailedToStartServiceHealthcheck", false);
}

#[test]
fn nothing_is_served_unless_asked_for() {
    let port = free_port();
    let mut quiet = Reconciler::new(node_file(Path::new("/nowhere"), ""), Dialect::Files, StatusWriter::silent());
    let content = manifest::parse("test.yaml", &(node("gw-1", 9) + &web(port, "Local"))).unwrap();
    quiet.take(Batch { applied: content.manifests, complete: true, ..Batch::default() });
    assert!(LOOPBACKS.iter().all(|address| get(address, port).is_err()));
}

#[test]
fn who_says_nothing_or_nonsense_keeps_nobody_from_asking() {
    let (gateway, port) = (Gateway::start(), free_port());
    let _dataplane = gateway.connect(1);
    gateway.apply(&(web(port, "Local") + &pods("gw-1", "rs")));
    expect("127.0.0.1", port, 200, 1, true);
    // More than there are seats, of both families; and then some that send a byte and no more.
    let silent: Vec<TcpStream> =
        (0..150).flat_map(|_| LOOPBACKS.map(|address| TcpStream::connect((address, port)).unwrap())).collect();
    let begun = Instant::now();
    expect("127.0.0.1", port, 200, 1, true);
    let nonsense = ask("127.0.0.1", port, "\u{1}\u{2}nonsense\r\n\r\n").unwrap_or_default();
    assert!(!nonsense.contains("200 OK"), "{nonsense}");
    for mut one in &silent {
        let _gone = one.write_all(b"G");
    }
    for address in LOOPBACKS {
        let told = get(address, port).unwrap();
        assert!(told.starts_with("HTTP/1.1 "), "{told}");
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "nobody waited for their end, which is after 5 s");
    drop(silent);
}
