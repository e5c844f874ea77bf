//! The dataplane process: reads the node file, opens the devices, starts the threads, and ends them in order.
//!
//! Threads: one per worker (frames and state), the compiler (tables), one that follows the kernel, one that saves, one
//! that proves the ways to nodes, one that writes who had which port, one that tells of flows, one that speaks with other
//! gateways and one with neighbours on the links, one that listens and one per client. They are started from the inside out (nobody is answered before they can be served)
//! and end the other way round. One process hangs on this one: the keeper of routes to VIPs, the same program by another
//! command, which ends with this one whatever happens to it. The pinholes stay on the devices: while nobody is here they drop what is ours, which a
//! kernel without our flows would answer with resets, and the next process takes them over.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use crossbeam::channel::bounded;
use signal_hook::consts::{SIGINT, SIGTERM};
use tidegate_api::listen::Listener;
use tidegate_api::show::ClientsByRss;
use tidegate_io::afxdp::{self, AfXdpPort, Opened};
use tidegate_io::mem::now_ns;
use tidegate_io::netdev::NetDevice;
use tidegate_io::{Guarded, Owned, OwnedChange, Pinhole, Port};

use tidegate_dataplane::compile::thread::CompilerThread;
use tidegate_dataplane::compile::{Compiler, Pinholes};
use tidegate_dataplane::config::{self, NodeFile};
use tidegate_dataplane::flows::{Notes, Sampler, exporter};
use tidegate_dataplane::gateways;
use tidegate_dataplane::gateways::speaker::Speaker;
use tidegate_dataplane::gateways::thread::{Ends, Heartbeats};
use tidegate_dataplane::handover;
use tidegate_dataplane::health::{Health, Pulse};
use tidegate_dataplane::kernel::monitor::Monitor;
use tidegate_dataplane::kernel::request::Kernel;
use tidegate_dataplane::limits;
use tidegate_dataplane::objects::saved::{self, Saver};
use tidegate_dataplane::probe::Board;
use tidegate_dataplane::probe::thread::Prober;
use tidegate_dataplane::routes::{self, keeper, plan, program, thread::Announcer};
use tidegate_dataplane::server::mailboxes::{Mailbox, Mailboxes};
use tidegate_dataplane::server::{Announcers, Server};
use tidegate_dataplane::stage::parse::Ingress;
use tidegate_dataplane::stage::verdict::Exits;
use tidegate_dataplane::state::connections::Connections;
use tidegate_dataplane::state::{Capacity, Entropy, State};
use tidegate_dataplane::table::owner::{OwnerTable, WorkerId};
use tidegate_dataplane::table::publish::Publisher;
use tidegate_dataplane::table::spread::{Spread, digest};
use tidegate_dataplane::table::{DeviceId, Tables};
use tidegate_dataplane::wheel::{self, Idle};
use tidegate_dataplane::worker::Worker;
use tidegate_dataplane::{auditor, clerk, metrics, port_office};
use tidegate_metrics::Served;

/// Neighbours that may be wanted and not yet looked at by the compiler; more are asked for again by later packets.
const WANTS_MAX: usize = 1024;
/// Questions that may wait in a worker's mailbox.
const QUESTIONS_MAX: usize = 16;
/// Backends whose usage a worker counts: as many ids as the compiler gives out with half a million endpoints in use and
/// a quarter of a million that have left. 64 B each, touched on use.
const BACKENDS_MAX: u32 = 1 << 20;
/// How often the main thread looks whether a thread has ended that should not have.
const WATCH: Duration = Duration::from_millis(100);

/// Userspace gateway dataplane on AF_XDP.
#[derive(Parser, Debug)]
#[command(name = "tidegate-dataplane", version)]
struct Flags {
    /// The node file (YAML); of several, the first one that is there.
    #[arg(long, value_name = "FILE", default_value = "/etc/tidegate/node.yaml")]
    config: Vec<PathBuf>,
    /// Read and check the node file, then end.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program runs as a process of its own.
#[derive(clap::Subcommand, Debug)]
enum Part {
    /// Answers questions about what a dataplane has saved, without devices, until its standard input ends: what
    /// `tidegate explain --state` runs
    Saved {
        /// The directory (`stateDir`) with the saved objects
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Where to answer
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
    /// Holds routes to VIPs for the dataplane that started it, and says so on its standard input
    #[command(hide = true)]
    KeepRoutes {
        #[arg(long)]
        device: String,
        #[arg(long)]
        protocol: u8,
        #[arg(long)]
        table: u32,
        #[arg(long)]
        metric: u32,
        #[arg(long)]
        silence_ms: u16,
    },
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    log();
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, less those that its text has told already.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// Logs go to stderr; `RUST_LOG` chooses, `info` otherwise.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colour = io::IsTerminal::is_terminal(&io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour).init();
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    if let Some(part @ Part::KeepRoutes { .. }) = &flags.part {
        return keep_routes(part);
    }
    let path = tidegate_api::node_file::first(&flags.config);
    let file = NodeFile::read(path)?;
    if let Some(Part::Saved { state, socket }) = &flags.part {
        return answer_from(&file, state, socket);
    }
    if flags.check {
        println!("{}", checked(&file, path));
        return Ok(());
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("handling signals")?;
    }
    // First of all, so that a second dataplane is refused before it has touched a device. Who comes now waits.
    let listener = Listener::bind(&file.socket, file.socket_mode_bits())
        .with_context(|| format!("listening at {}", file.socket.display()))?;
    if let Err(error) = saved::try_out(&file.state_dir) {
        let directory = file.state_dir.display();
        tracing::warn!(%directory, %error, "nothing can be saved here: after a restart there is no service before control has spoken");
    }
    let heartbeats = Ends::open(&file.dataplane.gateways)?;
    let mut opened = afxdp::open(&file.dataplane.open_config())?;
    tell_ports(&opened);
    let pinholes = SharedPinholes(Arc::new(Mutex::new(std::mem::take(&mut opened.pinholes))), Watch::default());
    // Set when the threads are to end: at an orderly end some time after `stop`.
    let end = Arc::new(AtomicBool::new(false));
    let running = start(&file, listener, opened, &pinholes, &end, heartbeats).inspect_err(|_| pinholes.give_back())?;
    tracing::info!(node = file.node, socket = %file.socket.display(), "tidegate-dataplane ready");

    let mut failed = watch(&stop, &running.workers, &running.compiler);
    if failed.is_none() {
        failed = give_up(&file.dataplane, &running);
    }
    end.store(true, Ordering::Relaxed);
    tracing::info!("stopping");
    let Running {
        announcer,
        server,
        prober,
        heartbeats,
        speaker,
        workers,
        compiler,
        monitor,
        forwarder,
        port_office,
        clerk,
        exporter,
        metrics,
        auditor,
        ..
    } = running;
    drop(announcer);
    drop(server);
    drop(metrics);
    drop(prober);
    drop(heartbeats);
    drop(speaker);
    // All are waited for, whatever became of the first.
    let panicked = workers.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
    drop(compiler);
    drop(monitor);
    let _ = forwarder.join();
    let _ = port_office.join();
    let _ = clerk.join();
    let _ = exporter.map(JoinHandle::join);
    let _ = auditor.join();
    match failed {
        Some(what) => Err(anyhow::anyhow!("{what} ended unexpectedly")),
        None if panicked > 0 => Err(anyhow::anyhow!("{panicked} of the workers ended unexpectedly")),
        None => Ok(()),
    }
}

/// What `--check` says of a node file that is good. The machine is not looked at.
fn checked(file: &NodeFile, path: &Path) -> String {
    let section = &file.dataplane;
    let devices: Vec<&str> = section.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    format!(
        "node file ok: {}: node {}, interfaces {}, workers {}, socket {}; whether the machine has them is found at start",
        path.display(),
        file.node,
        devices.join(" and "),
        section.worker_count(),
        file.socket.display()
    )
}

/// The threads, in the order in which they end.
struct Running {
    council: gateways::Handle,
    routes: Option<routes::Handle>,
    announcer: Option<Announcer>,
    server: Server,
    prober: Prober,
    heartbeats: Heartbeats,
    speaker: Speaker,
    workers: Vec<JoinHandle<()>>,
    compiler: CompilerThread,
    monitor: Monitor,
    forwarder: JoinHandle<()>,
    port_office: JoinHandle<()>,
    clerk: JoinHandle<()>,
    exporter: Option<JoinHandle<()>>,
    metrics: Option<Served>,
    auditor: JoinHandle<()>,
}

/// Starts all threads.
fn start(
    file: &NodeFile,
    listener: Listener,
    opened: Opened,
    pinholes: &SharedPinholes,
    stop: &Arc<AtomicBool>,
    ends: Option<Ends>,
) -> anyhow::Result<Running> {
    let clock = Instant::now();
    let section = &file.dataplane;
    let spread = spread_of_clients(section, &opened.ports);
    let clients_of = |worker| {
        let (read, spread) = spread.as_ref()?;
        let (entries, of) = spread.entries_of(WorkerId(worker));
        Some(ClientsByRss { entries, of, places: spread.places_of(WorkerId(worker)), ..read.clone() })
    };
    let clients: Vec<_> = (0..section.worker_count()).map(clients_of).collect();
    let owners = OwnerTable::new(section.worker_count(), [secret(4), secret(5)]);
    let owners = Arc::new(match spread {
        Some((_, spread)) => owners.with_spread(spread),
        None => owners,
    });
    let (publisher, readers) = Publisher::new(Tables { owners, ..Tables::default() });
    let names = file.dataplane.interfaces.iter().map(|interface| interface.name.as_str());
    let requests = Box::new(Kernel::open().context("opening a netlink socket")?);
    let mut compiler = Compiler::new(names, publisher, Box::new(pinholes.clone()), requests);
    let board = Board::default();
    compiler.set_probes(Box::new(board.clone()));
    let epoch = gateways::thread::epoch(&file.state_dir);
    let council = gateways::thread::council(&file.node, &section.gateways, epoch);
    let council = gateways::Handle::new(council).context("a bell for the gateways' thread")?;
    compiler.set_herald(Box::new(council.clone()));
    let routes = section.routes.enabled.then(routes::Handle::default);
    if let Some(routes) = &routes {
        compiler.set_routes(Box::new(routes.clone()), section.routes.withdraw_when_empty);
    }

    let (wants, wanted) = bounded(WANTS_MAX);
    let (port_wants, ports_wanted) = bounded(WANTS_MAX);
    let (outbox, port_events) = bounded(clerk::EVENTS_MAX);
    let records_lost = Arc::new(AtomicU64::new(0));
    let links =
        handover::matrix(section.worker_count(), hand_over_packets(section)).context("bells for the workers")?;
    let mut mailboxes = Vec::new();
    let mut workers = Vec::new();
    let mut notes = Vec::new();
    for ((id, links), ports) in (0u32..).zip(links).zip(dealt(section, opened.ports)?) {
        let magazines = opened.pools.iter().map(tidegate_io::Pool::magazine).collect();
        let (ingress, exits) = ports.into_iter().unzip();
        let exits = Exits::new(exits, magazines).map_err(anyhow::Error::msg)?;
        let mut state = State::new(capacity(section), [secret(1), secret(2)], now_ns()).context("memory for flows")?;
        state.set_half_open_percent(section.half_open_percent);
        state.egress.record_to(outbox.clone());
        // Half a megabyte that nothing touches where nothing is noted.
        let ring = Notes::new();
        if section.flows.connections {
            let connections = Connections::new(&capacity(section), Arc::clone(&ring));
            state.connections = Some(Box::new(connections.context("memory for what connections come to")?));
        }
        let (questions, mailbox) = bounded(QUESTIONS_MAX);
        let entropy = Entropy::new(secret(3));
        let mut worker = Worker::new(id, readers(), exits, ingress, state, entropy, wants.clone(), mailbox);
        if section.flows.sampling > 0 {
            worker.sample(Sampler::new(section.flows.sampling, Arc::clone(&ring), secret(6) ^ u64::from(id)));
        }
        if section.flows.has_notes() {
            notes.push(ring);
        }
        worker.link(links);
        worker.ask_for_ports(port_wants.clone());
        if id == 0 {
            worker.count_records_lost(Arc::clone(&records_lost));
        }
        let core = section.cores.get(workers.len()).copied();
        let clients = clients.get(workers.len()).cloned().flatten();
        mailboxes.push(Mailbox { questions, core, clients });
        workers.push(worker);
    }
    drop((wants, port_wants, outbox));

    // News wait in this channel until the compiler's thread runs; the facts they follow are told first.
    let (early, news) = bounded(64);
    let ours = section.routes.enabled.then_some(section.routes.protocol);
    let (facts, monitor) =
        Monitor::start(ours, move |change| early.send(change).is_ok()).context("reading kernel facts")?;
    let pulse = Pulse::new(workers.iter().map(|worker| worker.counters().shared()));
    // They turn before the pinhole hands anything over. If one cannot, those before it are told to end.
    let started = workers.into_iter().zip(&mailboxes);
    let started = started.map(|(worker, mailbox)| start_worker(worker, idle(section), mailbox.core, Arc::clone(stop)));
    let workers = started.collect::<anyhow::Result<Vec<_>>>().inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
    compiler.restore(facts, saved::load(&file.state_dir), 0);

    let saver = Saver::start(file.state_dir.clone(), compiler.objects().snapshot()).context("starting the saver")?;
    let (compiler, handle) =
        CompilerThread::start(compiler, wanted, Some(saver), clock).context("starting the compiler")?;
    let kernel = handle.clone();
    let forward = move || {
        let _ = news.iter().try_for_each(|change| if kernel.kernel(change) { Ok(()) } else { Err(()) });
    };
    let forwarder = std::thread::Builder::new().name("kernel-news".into()).spawn(forward).context("a thread")?;

    let finder = handle.clone();
    let prober = Prober::start(board, move |found, felt| finder.found(found, felt)).context("starting the prober")?;
    let (speaker, orders) = Speaker::start(council.clone(), handle.clone()).context("starting to announce")?;
    let judge = judge(pulse.clone(), council.clone());
    let announcer = routes.clone().map(|routes| announce(&section.routes, routes, judge)).transpose()?;
    let heartbeats = Heartbeats::start(council.clone(), ends, pulse, orders).context("starting heartbeats")?;
    let read = pinholes.clone();
    let mailboxes = Mailboxes::new(mailboxes, Arc::new(move |device| read.counters(device)));
    let is_over = {
        let stop = Arc::clone(stop);
        move || stop.load(Ordering::Relaxed)
    };
    let auditor = auditor::start(handle.clone(), Arc::new(mailboxes.clone()), is_over.clone())
        .context("starting to look at what is in audit")?;
    let port_office = port_office::start(ports_wanted, mailboxes.clone(), handle.clone(), is_over)
        .context("starting to move ports")?;
    let ledger = (kept_in(file, &section.nat_ledger, "nat"), section.nat_ledger.limits());
    let tally = exporter::Tally::default();
    let (nat_events, nat_told) = exporter::NatEvents::new(&tally);
    let nat_events = section.flows.tells_nat_events().then_some(nat_events);
    let clerk = clerk::start(port_events, handle.clone(), ledger.0, ledger.1, records_lost, nat_events)
        .context("starting the ledger's clerk")?;
    let exporter = section
        .flows
        .is_on()
        .then(|| exporter::start(notes, nat_told, handle.clone(), export_settings(file), tally.clone()))
        .transpose()
        .context("starting the exporter of flows")?;
    let announcers = Announcers { gateways: Some(council.clone()), routes: routes.clone(), ..Announcers::default() };
    let mailboxes = Arc::new(mailboxes);
    let metrics = match section.metrics {
        Some(at) => {
            let served = metrics::start(at, handle.clone(), mailboxes.clone(), announcers.clone(), tally);
            Some(served.with_context(|| format!("dataplane.metrics: listening at {at}"))?)
        }
        None => None,
    };
    let server = Server::start(listener, handle, mailboxes, announcers).context("starting to answer")?;
    Ok(Running {
        council,
        routes,
        announcer,
        server,
        prober,
        heartbeats,
        speaker,
        workers,
        compiler,
        monitor,
        forwarder,
        port_office,
        clerk,
        exporter,
        metrics,
        auditor,
    })
}

/// Where records of a sort are kept, which lie in `stateDir` under that name unless the node file says otherwise.
fn kept_in(file: &NodeFile, files: &config::RecordFiles, name: &str) -> PathBuf {
    files.directory.clone().unwrap_or_else(|| file.state_dir.join(name))
}

/// What is told of flows, and to whom.
fn export_settings(file: &NodeFile) -> exporter::Settings {
    let config::Flows { sampling, files, json, ipfix, connections: _ } = &file.dataplane.flows;
    exporter::Settings {
        sampling: *sampling,
        files: files.as_ref().map(|files| (kept_in(file, files, "flows"), files.limits())),
        json: json.clone(),
        ipfix: ipfix.map(|ipfix| exporter::IpfixTo {
            collector: ipfix.collector,
            domain: ipfix.observation_domain,
            enterprise: ipfix.enterprise_number,
            templates_every: Duration::from_secs(ipfix.template_seconds.into()),
        }),
    }
}

/// This program as one that knows what was saved; it says so by a line, and ends with whoever holds its standard input.
fn answer_from(file: &NodeFile, state: &Path, socket: &Path) -> anyhow::Result<()> {
    tidegate_dataplane::offline::answer(file, state, socket, |note| {
        println!("ready {note}");
        // However it ends, nobody asks any more.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    })
}

/// This program as the keeper of routes.
fn keep_routes(part: &Part) -> anyhow::Result<()> {
    let Part::KeepRoutes { device, protocol, table, metric, silence_ms } = part else { return Ok(()) };
    let stream = io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
    let settings = keeper::Settings {
        device: device.clone(),
        mark: program::Mark { protocol: *protocol, table: *table, metric: *metric },
        patience_ns: u64::from(*silence_ms) * 1_000_000,
    };
    keeper::keep(settings, stream.into()).context("keeping routes")
}

/// Whether this gateway should be used: it has tables, its workers turn, and nobody wants it drained.
fn judge(mut pulse: Pulse, council: gateways::Handle) -> routes::thread::Judge {
    Box::new(move |now| match pulse.feel(now) {
        Health::Stuck { worker } => Some(format!("worker {worker} does not turn")),
        Health::Turning if council.is_draining() => Some("draining".into()),
        Health::Turning if !council.has_tables() => Some("control has not spoken yet".into()),
        Health::Turning => None,
    })
}

/// Starts to announce VIPs by route.
fn announce(
    section: &config::Routes,
    handle: routes::Handle,
    judge: routes::thread::Judge,
) -> anyhow::Result<Announcer> {
    let mark = program::Mark { protocol: section.protocol, table: section.table.number(), metric: section.metric };
    let patience_ns = u64::from(section.silence_ms) * 1_000_000;
    let settings = keeper::Settings { device: section.device.clone(), mark, patience_ns };
    let aggregate = plan::Aggregate { ipv4: section.aggregate.ipv4, ipv6: section.aggregate.ipv6 };
    let arguments = [
        "keep-routes".to_owned(),
        format!("--device={}", section.device),
        format!("--protocol={}", mark.protocol),
        format!("--table={}", mark.table),
        format!("--metric={}", mark.metric),
        format!("--silence-ms={}", section.silence_ms),
    ];
    let command = move || {
        let mut command = Command::new("/proc/self/exe");
        command.args(&arguments);
        command
    };
    Announcer::start(handle, &settings, aggregate, command, judge).context("starting to announce VIPs by route")
}

/// Takes routes to VIPs back before the end, gives what is announced on links to other gateways, if there are any that take
/// it, and goes on serving meanwhile; the name of a thread that ended by itself. Whoever cannot wait signals again.
fn give_up(section: &config::Dataplane, running: &Running) -> Option<&'static str> {
    let again = Arc::new(AtomicBool::new(false));
    let handled = [SIGTERM, SIGINT].map(|signal| signal_hook::flag::register(signal, Arc::clone(&again)));
    let began = Instant::now();
    let has_heirs = running.council.has_heirs();
    let had_routes = running.routes.as_ref().is_some_and(|routes| routes.announced() > 0);
    if handled.iter().any(Result::is_err) || !(has_heirs || had_routes) {
        return None;
    }
    if let Some(routes) = running.routes.as_ref().filter(|_| had_routes) {
        tracing::info!(routes = routes.announced(), "routes to VIPs are taken back");
        routes.end();
    }
    if has_heirs {
        tracing::info!(announced = running.council.announced(), "giving what is announced here to other gateways");
        running.council.drain(true);
    }
    let drain = Duration::from_millis(section.gateways.drain_ms.into());
    let linger = Duration::from_millis(section.routes.linger_ms.into());
    let lingers = || had_routes && began.elapsed() < linger;
    let drains = || has_heirs && running.council.announced() > 0 && began.elapsed() < drain;
    while (lingers() || drains()) && !again.load(Ordering::Relaxed) {
        if running.workers.iter().any(JoinHandle::is_finished) {
            return Some("a worker");
        }
        if !running.compiler.is_alive() {
            return Some("the compiler");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Waits until the process should end; the name of a thread that ended by itself, if that is why.
fn watch(stop: &AtomicBool, workers: &[JoinHandle<()>], compiler: &CompilerThread) -> Option<&'static str> {
    loop {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        if workers.iter().any(JoinHandle::is_finished) {
            return Some("a worker");
        }
        if !compiler.is_alive() {
            return Some("the compiler");
        }
        std::thread::sleep(WATCH);
    }
}

fn idle(section: &config::Dataplane) -> Idle {
    match section.idle {
        config::Idle::Sleep => Idle::Sleep,
        config::Idle::Poll => Idle::Poll,
    }
}

fn tell_ports(opened: &Opened) {
    for port in &opened.ports {
        let facts = port.facts();
        tracing::info!(device = facts.device, queue = facts.queue, mode = %facts.mode, mtu = facts.mtu, "port open");
    }
    for pinhole in opened.pinholes.iter().filter(|pinhole| pinhole.is_adopted()) {
        tracing::info!(device = pinhole.device(), "took over the pinhole of an earlier process");
    }
    // With it this is no loss: the next one can look at every program.
    for (pinhole, reason) in opened.pinholes.iter().filter_map(|pinhole| Some((pinhole, pinhole.not_pinned()?))) {
        tracing::warn!(
            device = pinhole.device(),
            reason,
            "the XDP program could not be pinned (dataplane.bpfDir): the next start needs CAP_SYS_ADMIN to take it over"
        );
    }
}

/// A port, where it is and whose.
type Dealt = (Ingress, (Box<dyn Port>, DeviceId));

/// The ports of each worker: of the queues that are open on a device, worker 0 has the first, worker 1 the second, and so on
/// round and round, so that all devices are dealt alike and every worker can send to each of them.
fn dealt(section: &config::Dataplane, ports: Vec<AfXdpPort>) -> anyhow::Result<Vec<Vec<Dealt>>> {
    let workers = usize::from(section.worker_count());
    let mut dealt: Vec<Vec<Dealt>> = (0..workers).map(|_| Vec::new()).collect();
    let mut seen = vec![0; section.interfaces.len()];
    for port in ports {
        let facts = port.facts();
        let number = section.interfaces.iter().position(|interface| interface.name == facts.device);
        let number = number.with_context(|| format!("{} is not an interface of the node file", facts.device))?;
        let device = DeviceId(u16::try_from(number).context("too many interfaces")?);
        let ingress = Ingress { device, mac: facts.mac };
        dealt[seen[number] % workers].push((ingress, (Box::new(port), device)));
        seen[number] += 1;
    }
    Ok(dealt)
}

/// The device whose RSS decides whose clients are, and how it spreads them over its open queues; says so, or why none does.
/// It is read once: flows live where it said, whatever becomes of the device's settings. What is told of it is the same for
/// all workers, but for their shares.
fn spread_of_clients(section: &config::Dataplane, ports: &[AfXdpPort]) -> Option<(ClientsByRss, Spread)> {
    let device = section.spreads_clients()?.name.clone();
    let queues: Vec<u32> =
        ports.iter().map(AfXdpPort::facts).filter(|facts| facts.device == device).map(|facts| facts.queue).collect();
    let rss = NetDevice::query(&device).and_then(|device| device.rss());
    let spread = rss.map_err(|error| format!("its RSS cannot be read: {error}"));
    let spread = spread.and_then(|rss| {
        let spread = Spread::new(&rss, &queues, section.worker_count()).map_err(|no_spread| no_spread.to_string())?;
        Ok((rss, spread))
    });
    match spread {
        Ok((rss, spread)) => {
            tracing::info!(device, "clients belong to the worker on whose queue the device's RSS lays their packets");
            let fields =
                rss.told().map(|(flows, hashed)| (flows.name().to_owned(), hashed.name().to_owned())).collect();
            Some((ClientsByRss { device, key_digest: digest(&rss.key), fields, ..ClientsByRss::default() }, spread))
        }
        Err(reason) => {
            tracing::info!(device, reason, "clients are spread over workers by a keyed hash, not by the device's RSS");
            None
        }
    }
}

fn capacity(section: &config::Dataplane) -> Capacity {
    Capacity {
        flows_v4: section.flows_max.ipv4,
        flows_v6: section.flows_max.ipv6,
        backends: BACKENDS_MAX,
        huge: section.huge(),
    }
}

/// Room of each ring between two workers: those that lead to one worker hold an eighth of the frames, so that one that is
/// overloaded cannot keep the others from receiving.
fn hand_over_packets(section: &config::Dataplane) -> usize {
    let others = u32::from(section.worker_count().saturating_sub(1)).max(1);
    let share = usize::try_from(section.frames / 8 / others).unwrap_or(usize::MAX);
    // Rings are rounded up to a power of two, so this is rounded down.
    let share = 1 << share.max(1).ilog2();
    share.clamp(limits::BATCH_PACKETS, limits::HAND_OVER_PACKETS)
}

/// A number nobody outside can know: the standard library keys its hash with randomness of the system.
fn secret(salt: u64) -> u64 {
    RandomState::new().hash_one(salt)
}

/// Turns a worker on a thread of its own until `stop` is set.
fn start_worker(
    mut worker: Worker,
    idle: Idle,
    core: Option<usize>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<()>> {
    let name = format!("worker-{}", worker.id);
    let (pinned, answer) = bounded(1);
    let run = move || {
        let result = core.map_or(Ok(()), tidegate_io::pin::pin_to);
        let failed = result.is_err();
        let _ = pinned.send(result);
        if !failed {
            wheel::turn_until(&mut worker, idle, &stop);
        }
    };
    let thread = std::thread::Builder::new().name(name.clone()).spawn(run).context("starting a worker")?;
    answer
        .recv()
        .with_context(|| format!("{name} ended at once"))?
        .with_context(|| format!("pinning {name} (dataplane.cores)"))?;
    Ok(thread)
}

/// How often it is looked whether the pinholes are still on their devices.
const GUARD_EVERY_NS: u64 = 2_000_000_000;

/// The pinholes of all devices: the compiler says what is ours, clients read what they counted.
#[derive(Clone)]
struct SharedPinholes(Arc<Mutex<Vec<Pinhole>>>, Watch);

/// When the pinholes were last looked at, and what was last said of those that are not in place, by device.
#[derive(Clone, Default)]
struct Watch {
    looked_ns: u64,
    said: BTreeMap<String, String>,
}

impl Watch {
    /// Says what is new about a pinhole.
    fn tell(&mut self, device: &str, found: io::Result<Guarded>) {
        let wrong = match found {
            Ok(Guarded::InPlace) => None,
            Ok(Guarded::Reattached) => {
                tracing::error!(
                    device,
                    "somebody took the XDP program off; it is attached again. Meanwhile everything passed to the kernel"
                );
                None
            }
            Ok(Guarded::Replaced(id)) => Some(format!(
                "another XDP program ({id}) is in the place of ours; `ip link set dev {device} xdp off` gives it back"
            )),
            Err(error) => Some(format!("cannot look after the XDP program: {error}")),
        };
        let before = self.said.remove(device);
        match wrong {
            Some(text) => {
                if before.as_ref() != Some(&text) {
                    tracing::error!(device, "{text}");
                }
                self.said.insert(device.to_owned(), text);
            }
            None if before.is_some() => tracing::info!(device, "the XDP program is in its place again"),
            None => {}
        }
    }
}

impl SharedPinholes {
    /// Takes off what this process attached: a start that was refused must not leave traffic to be dropped. A pinhole
    /// that was found stays, since it guards flows that a next process serves.
    fn give_back(&self) {
        let mut pinholes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for pinhole in pinholes.drain(..).filter(|pinhole| !pinhole.is_adopted()) {
            let device = pinhole.device().to_owned();
            if let Err(error) = pinhole.close() {
                tracing::warn!(device, %error, "cannot take the XDP program off; `ip link set dev {device} xdp off` does");
            }
        }
    }

    fn counters(&self, device: &str) -> Option<tidegate_io::PinholeCounters> {
        let pinholes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pinholes.iter().find(|pinhole| pinhole.device() == device)?.counters().ok()
    }
}

impl Pinholes for SharedPinholes {
    fn update(&mut self, owned: &Owned) -> io::Result<()> {
        let mut pinholes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One device that fails must not keep the others from hearing.
        let results: Vec<_> = pinholes.iter_mut().map(|pinhole| pinhole.update(owned)).collect();
        results.into_iter().collect()
    }

    fn change(&mut self, change: &OwnedChange) -> io::Result<()> {
        let mut pinholes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let results: Vec<_> = pinholes.iter_mut().map(|pinhole| pinhole.change(change)).collect();
        results.into_iter().collect()
    }

    fn look_after(&mut self, now: u64) {
        let SharedPinholes(pinholes, watch) = self;
        if now.saturating_sub(watch.looked_ns) < GUARD_EVERY_NS {
            return;
        }
        watch.looked_ns = now;
        for pinhole in pinholes.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let found = pinhole.guard();
            watch.tell(pinhole.device(), found);
        }
    }
}
