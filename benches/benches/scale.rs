//! A large cluster: 50,000 Services with ten endpoints each, told, changed, and changed while a worker forwards.
//!
//! Everything is timed here and not by criterion: one pass over half a million endpoints takes a second, and what counts
//! of many small ones is the slowest of a hundred. Each figure is printed with its spread.

#![allow(missing_docs)]

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use crossbeam::channel::bounded;
use tidegate_api::client::Client;
use tidegate_api::listen::Listener;
use tidegate_api::message::{PREPARED_AT_ONCE, Prepare, Request, Response, Update};
use tidegate_api::resource::{Backend, Body, Protocol, Resource, Service, ServicePort};
use tidegate_benches::field::{BACKENDS, Field, Way, on_core};
use tidegate_benches::fleet::{self, ENDPOINTS, SERVICES};
use tidegate_benches::summary;
use tidegate_dataplane::compile::Compiler;
use tidegate_dataplane::compile::thread::CompilerThread;
use tidegate_dataplane::counters::Event;
use tidegate_dataplane::objects::saved::Saver;
use tidegate_dataplane::rig::{self, Net};
use tidegate_dataplane::server::mailboxes::Mailboxes;
use tidegate_dataplane::server::{Announcers, Server};
use tidegate_dataplane::table::Tables;
use tidegate_dataplane::table::publish::Reader;

/// Single changes timed of each sort.
const CHANGES: u32 = 1000;
/// Full syncs timed.
const SYNCS: usize = 3;
/// Updates a second, unrelated to what a worker forwards (design 10).
const UPDATES_PER_S: u32 = 1000;
/// Flows of that worker.
const FLOWS: u32 = 1_000_000;
/// Pairs of passes, one with updates and one without.
const ROUNDS: usize = 12;
/// Time between two looks of a reader at the tables.
const LOOK: Duration = Duration::from_micros(20);
/// How long an answer may take: on a crowded machine everything takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
/// A second by the compiler's clock.
const SECOND_NS: u64 = 1_000_000_000;

fn main() -> anyhow::Result<()> {
    changes()?;
    far_end()?;
    unrelated()
}

/// Prints a figure with its spread and keeps it.
fn tell(name: &str, figure: f64, unit: &str, spread: &str) -> anyhow::Result<()> {
    println!("{name}: {figure:.3} {unit} ({spread})");
    summary::count(&summary::target(), name, figure)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Time that this process has had on cores (proc_pid_stat(5), fields 14 and 15, a hundredth of a second each).
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let fields = after_name.split(' ').skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
}

/// The value that `share` of the sorted `list` do not exceed.
fn quantile(list: &mut [f64], share: f64) -> f64 {
    list.sort_by(f64::total_cmp);
    let at = (list.len() as f64 * share).ceil().max(1.0);
    #[allow(clippy::cast_possible_truncation, reason = "a length times a share")]
    let at = at as usize;
    list.iter().take(at).next_back().copied().unwrap_or(f64::NAN)
}

fn tell_median(name: &str, list: &mut [f64], unit: &str) -> anyhow::Result<()> {
    let spread = format!("median of {}; p5 {:.3}, p99 {:.3}", list.len(), quantile(list, 0.05), quantile(list, 0.99));
    tell(name, quantile(list, 0.5), unit, &spread)
}

/// What one change costs the compiler thread, from the object to the tables a reader has.
fn changes() -> anyhow::Result<()> {
    let (mut compiler, mut reader) = fleet::compiler(Tables::default());
    let everything = fleet::full(SERVICES);
    let (begun, cpu) = (Instant::now(), cpu_ms());
    fleet::turn(&mut compiler, everything, SECOND_NS);
    reader.refresh();
    let (spent, cpu) = (ms(begun.elapsed()), cpu_ms() - cpu);
    println!("compiling {SERVICES} Services of {ENDPOINTS} endpoints: {spent:.0} ms, {cpu:.0} ms of them on a core");
    let mut time = |update: Update| {
        // Nobody is waited for: this thread is the reader too.
        reader.go_offline();
        let begun = Instant::now();
        let turned = fleet::turn(&mut compiler, update, SECOND_NS);
        let generation = reader.refresh().generation;
        let spent = ms(begun.elapsed());
        assert!(turned.published && generation == compiler.generation(), "the change is in force");
        compiler.tick(SECOND_NS);
        spent
    };
    let mut endpoint: Vec<f64> = (0..CHANGES).map(|n| time(fleet::one(n * 37 % SERVICES, 1))).collect();
    tell_median("publish/endpoint_change", &mut endpoint, "ms")?;
    let mut added: Vec<f64> = (0..CHANGES).map(|n| time(fleet::one(SERVICES + n, 0))).collect();
    tell_median("publish/service_added", &mut added, "ms")?;
    let mut removed: Vec<f64> = (0..CHANGES).map(|n| time(fleet::end(SERVICES + n))).collect();
    tell_median("publish/service_removed", &mut removed, "ms")
}

/// A dataplane without packets: socket, server, compiler thread, saver, and one reader that notes when it has seen what.
struct Dataplane {
    client: Client,
    seen: mpsc::Receiver<(u64, Instant)>,
    stop: Arc<AtomicBool>,
    reading: Option<JoinHandle<()>>,
    _server: Server,
    _compiler: CompilerThread,
}

impl Dataplane {
    fn start(directory: &Path) -> anyhow::Result<Dataplane> {
        let (compiler, reader) = fleet::compiler(Tables::default());
        let saver = Saver::start(directory.to_path_buf(), vec![])?;
        let (_, wants) = bounded(1);
        let (compiler, handle) = CompilerThread::start(compiler, wants, Some(saver), Instant::now())?;
        let path = directory.join("bench.sock");
        let mailboxes = Mailboxes::new(vec![], Arc::new(|_: &str| None));
        let server = Server::start(Listener::bind(&path, 0o600)?, handle, Arc::new(mailboxes), Announcers::default())?;
        let mut client = Client::connect(&path, "bench")?;
        client.set_timeout(Some(PATIENCE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (note, seen) = mpsc::channel();
        let stopped = Arc::clone(&stop);
        let reading = std::thread::spawn(move || look(reader, &note, &stopped));
        Ok(Dataplane { client, seen, stop, reading: Some(reading), _server: server, _compiler: compiler })
    }

    /// Tells everything, as control tells a dataplane that holds nothing; the time from then until the reader had it.
    fn tell(&mut self, mut everything: Update) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut resources = std::mem::take(&mut everything.resources).into_iter().peekable();
        while resources.peek().is_some() {
            let some = resources.by_ref().take(PREPARED_AT_ONCE).collect();
            self.client.send(&Request::Prepare(Prepare { resources: some }))?;
        }
        self.finish(Update { prepared: true, ..everything }, begun)
    }

    /// Sends a change; the time from then until the reader had it.
    fn update(&mut self, update: Update) -> anyhow::Result<Duration> {
        self.finish(update, Instant::now())
    }

    fn finish(&mut self, update: Update, begun: Instant) -> anyhow::Result<Duration> {
        let nonce = update.nonce;
        self.client.send(&Request::Update(update))?;
        let generation = loop {
            match self.client.receive()? {
                Response::Accepted(accepted) if !accepted.rejected.is_empty() => bail!("not taken: {accepted:?}"),
                Response::Accepted(accepted) if accepted.nonce == nonce => break accepted.generation,
                Response::Accepted(_) | Response::Reached { .. } => {}
                other => bail!("not taken: {other:?}"),
            }
        };
        loop {
            let (seen, at) = self.seen.recv_timeout(PATIENCE).context("no reader reached it")?;
            if seen >= generation {
                return Ok(at.duration_since(begun));
            }
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reading) = self.reading.take() {
            let _ = reading.join();
        }
    }
}

fn look(mut reader: Reader, note: &mpsc::Sender<(u64, Instant)>, stop: &AtomicBool) {
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let generation = reader.refresh().generation;
        if generation != last {
            last = generation;
            let _ = note.send((generation, Instant::now()));
        }
        std::thread::sleep(LOOK);
    }
}

/// From the client's side of the socket to the tables of a reader: everything at once, and one endpoint.
fn far_end() -> anyhow::Result<()> {
    let mut full = Vec::new();
    let mut changes = Vec::new();
    for round in 0..SYNCS {
        let directory = tempfile::tempdir()?;
        let mut dataplane = Dataplane::start(directory.path())?;
        let (everything, cpu) = (fleet::full(SERVICES), cpu_ms());
        full.push(ms(dataplane.tell(everything)?));
        println!("full sync: {:.0} ms, {:.0} ms of all threads' time on cores", full[round], cpu_ms() - cpu);
        if round == 0 {
            for n in 0..CHANGES {
                changes.push(ms(dataplane.update(fleet::one(n * 37 % SERVICES, 1))?));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    tell_median("publish/model_to_worker", &mut full, "ms")?;
    let spread = format!("p50 {:.3}, p99 of {} changes", quantile(&mut changes, 0.5), changes.len());
    tell("publish/endpoint_to_worker_p99", quantile(&mut changes, 0.99), "ms", &spread)
}

/// The Service that the flows of a field belong to, as an object.
fn of_field(net: Net) -> Resource {
    let backend = |(address, port, weight): (IpAddr, u16, u16)| Backend {
        address,
        port,
        weight,
        local_weight: 0,
        node: String::new(),
        pod: String::new(),
    };
    let backends = Field::pods(net, BACKENDS).into_iter().map(backend).collect();
    let port = ServicePort { protocol: Protocol::Udp, port: 80, backends, ..ServicePort::default() };
    let body = Service { uid: "field".into(), addresses: vec![net.vip(1)], ports: vec![port], ..Service::default() };
    Resource { name: "bench/field".into(), version: "1".into(), body: Body::Service(body) }
}

/// A worker that forwards established flows while Services that are none of theirs change: what that costs it.
fn unrelated() -> anyhow::Result<()> {
    for net in Net::BOTH {
        let family = if net == Net::BOTH[0] { "ipv4" } else { "ipv6" };
        let (mut compiler, reader) = fleet::compiler(rig::tables());
        let mut update = fleet::full(SERVICES);
        update.resources.push(of_field(net));
        fleet::turn(&mut compiler, update, SECOND_NS);
        // Time on a core: what the scheduler gives to others is not what updates cost.
        let mut field = Field::following(reader, net, Way::ToBackend, 2 * FLOWS)?.timed_by(on_core);
        field.install(FLOWS)?;
        field.pass();
        let walks = |field: &Field| {
            [Event::SlowWalk, Event::FlowRevalidated].map(|event| field.worker().counters().events(event))
        };
        let (before, mut compiler) = (walks(&field), Some(compiler));
        let (mut ratios, mut updates) = (Vec::new(), 0);
        for _ in 0..ROUNDS {
            let quiet = field.measure_hits(PASSES);
            let stop = Arc::new(AtomicBool::new(false));
            let (mut changing, stopped) = (compiler.take().context("the compiler is here")?, Arc::clone(&stop));
            let run = move || {
                let made = change(&mut changing, updates, &stopped);
                (changing, made)
            };
            let thread = std::thread::spawn(run);
            let busy = field.measure_hits(PASSES);
            stop.store(true, Ordering::Relaxed);
            let (changed, made) = thread.join().map_err(|_| anyhow::anyhow!("the compiler ended"))?;
            (compiler, updates) = (Some(changed), updates + made);
            ratios.push((busy.as_secs_f64() / quiet.as_secs_f64() - 1.0) * 100.0);
        }
        let [walked, revalidated] = [0, 1].map(|at| walks(&field)[at] - before[at]);
        let lost = field.worker().counters().events(Event::Received) - field.worker().counters().events(Event::Sent);
        println!(
            "unrelated updates, {family}: {updates} made, {walked} slow walks, {revalidated} revalidated, {lost} lost"
        );
        ensure!(updates > 0 && lost == 0, "nothing is lost: {:?}", field.worker().counters().nonzero());
        tell(&format!("unrelated/slow_walks_{family}"), (walked + revalidated) as f64, "walks", "counted")?;
        let spread = format!("p5 {:.1}, p95 {:.1}", quantile(&mut ratios, 0.05), quantile(&mut ratios, 0.95));
        tell(&format!("unrelated/cycles_{family}"), quantile(&mut ratios, 0.5), "percent", &spread)?;
    }
    Ok(())
}

/// Packets of one measurement: a quarter of a second with the making of the frames.
const PASSES: u64 = 32 * 16_384;

/// Changes endpoints and takes Services away and back, at [`UPDATES_PER_S`], until `stop`; how many updates that were.
/// `first` were made before.
fn change(compiler: &mut Compiler, first: u32, stop: &AtomicBool) -> u32 {
    let begun = Instant::now();
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        let n = (first + made) * 37 % (SERVICES - 100);
        // The last hundred Services come and go, the others change an endpoint.
        let passing = SERVICES - 1 - made / 4 % 100;
        let update = match made % 4 {
            0 => fleet::end(passing),
            1 => fleet::one(passing, 0),
            _ => fleet::one(n, 1),
        };
        fleet::turn(compiler, update, SECOND_NS);
        made += 1;
        // Late ones are made up for: the rate is kept however long one takes.
        let due = Duration::from_secs(1) * made / UPDATES_PER_S;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    made
}
