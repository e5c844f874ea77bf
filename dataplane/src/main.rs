//! The dataplane process: reads the node file, opens the devices, starts the threads, and ends them in order.
//!
//! Threads: one per worker (frames and state), the compiler (tables), one that follows the kernel, one that saves, one
//! that listens and one per client. They are started from the inside out (nobody is answered before they can be served)
//! and end the other way round. The pinholes stay on the devices: while nobody is here they drop what is ours, which a
//! kernel without our flows would answer with resets, and the next process takes them over.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use crossbeam::channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use tidegate_api::listen::Listener;
use tidegate_io::afxdp::{self, InterfaceConfig, ModeChoice, OpenConfig, Opened};
use tidegate_io::mem::now_ns;
use tidegate_io::{HugePages, OnDeath, Owned, Pinhole, Port};

use tidegate_dataplane::compile::thread::CompilerThread;
use tidegate_dataplane::compile::{Compiler, Pinholes};
use tidegate_dataplane::config::{self, NodeFile};
use tidegate_dataplane::kernel::monitor::Monitor;
use tidegate_dataplane::kernel::request::Kernel;
use tidegate_dataplane::mailbox::Request;
use tidegate_dataplane::objects::saved::{self, Saver};
use tidegate_dataplane::server::Server;
use tidegate_dataplane::server::mailboxes::{Mailbox, Mailboxes};
use tidegate_dataplane::stage::parse::Ingress;
use tidegate_dataplane::stage::verdict::Exits;
use tidegate_dataplane::state::{Capacity, Entropy, State};
use tidegate_dataplane::table::publish::{Publisher, Reader};
use tidegate_dataplane::table::{DeviceId, Tables};
use tidegate_dataplane::wheel::{self, Idle};
use tidegate_dataplane::worker::{Want, Worker};

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
    /// The node file (YAML).
    #[arg(long, value_name = "FILE", default_value = "/etc/tidegate/node.yaml")]
    config: PathBuf,
    /// Read and check the node file, then end.
    #[arg(long)]
    check: bool,
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
    let file = NodeFile::read(&flags.config)?;
    if flags.check {
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
    let mut opened = afxdp::open(&open_config(&file.dataplane))?;
    tell_ports(&opened);
    let pinholes = SharedPinholes(Arc::new(Mutex::new(std::mem::take(&mut opened.pinholes))));
    let running = start(&file, listener, opened, &pinholes, &stop).inspect_err(|_| pinholes.give_back())?;
    tracing::info!(node = file.node, socket = %file.socket.display(), "tidegate-dataplane ready");

    let failed = watch(&stop, &running.worker, &running.compiler);
    stop.store(true, Ordering::Relaxed);
    tracing::info!("stopping");
    let Running { server, worker, compiler, monitor, forwarder } = running;
    drop(server);
    let worker_panicked = worker.join().is_err();
    drop(compiler);
    drop(monitor);
    let _ = forwarder.join();
    match failed {
        Some(what) => Err(anyhow::anyhow!("{what} ended unexpectedly")),
        None if worker_panicked => Err(anyhow::anyhow!("the worker ended unexpectedly")),
        None => Ok(()),
    }
}

/// The threads, in the order in which they end.
struct Running {
    server: Server,
    worker: JoinHandle<()>,
    compiler: CompilerThread,
    monitor: Monitor,
    forwarder: JoinHandle<()>,
}

/// Starts all threads.
fn start(
    file: &NodeFile,
    listener: Listener,
    opened: Opened,
    pinholes: &SharedPinholes,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Running> {
    let clock = Instant::now();
    let (publisher, readers) = Publisher::new(Tables::default());
    let names = file.dataplane.interfaces.iter().map(|interface| interface.name.as_str());
    let requests = Box::new(Kernel::open().context("opening a netlink socket")?);
    let mut compiler = Compiler::new(names, publisher, Box::new(pinholes.clone()), requests);

    let (wants, wanted) = bounded(WANTS_MAX);
    let (questions, mailbox) = bounded(QUESTIONS_MAX);
    let core = file.dataplane.cores.first().copied();
    let ports = opened.ports.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect();
    let magazines = opened.pools.iter().map(tidegate_io::Pool::magazine).collect();
    let worker = worker(&file.dataplane, ports, magazines, readers(), wants, mailbox)?;

    // News wait in this channel until the compiler's thread runs; the facts they follow are told first.
    let (early, news) = bounded(64);
    let (facts, monitor) = Monitor::start(move |change| early.send(change).is_ok()).context("reading kernel facts")?;
    // It turns before the pinhole hands anything over.
    let worker = start_worker(worker, idle(&file.dataplane), core, Arc::clone(stop))?;
    compiler.restore(facts, saved::load(&file.state_dir), 0);

    let saver = Saver::start(file.state_dir.clone()).context("starting the saver")?;
    let (compiler, handle) =
        CompilerThread::start(compiler, wanted, Some(saver), clock).context("starting the compiler")?;
    let kernel = handle.clone();
    let forward = move || {
        let _ = news.iter().try_for_each(|change| if kernel.kernel(change) { Ok(()) } else { Err(()) });
    };
    let forwarder = std::thread::Builder::new().name("kernel-news".into()).spawn(forward).context("a thread")?;

    let read = pinholes.clone();
    let mailboxes = Mailboxes::new(vec![Mailbox { questions, core }], Arc::new(move |device| read.counters(device)));
    let server = Server::start(listener, handle, Arc::new(mailboxes)).context("starting to answer")?;
    Ok(Running { server, worker, compiler, monitor, forwarder })
}

/// Waits until the process should end; the name of a thread that ended by itself, if that is why.
fn watch(stop: &AtomicBool, worker: &JoinHandle<()>, compiler: &CompilerThread) -> Option<&'static str> {
    loop {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        if worker.is_finished() {
            return Some("the worker");
        }
        if !compiler.is_alive() {
            return Some("the compiler");
        }
        std::thread::sleep(WATCH);
    }
}

fn open_config(section: &config::Dataplane) -> OpenConfig {
    let interfaces = section.interfaces.iter();
    OpenConfig {
        interfaces: interfaces
            .map(|interface| InterfaceConfig { name: interface.name.clone(), queues: interface.queues.clone() })
            .collect(),
        mode: match section.mode {
            config::Mode::Auto => ModeChoice::Auto,
            config::Mode::ZeroCopy => ModeChoice::ZeroCopy,
            config::Mode::Copy => ModeChoice::Copy,
            config::Mode::Skb => ModeChoice::Skb,
        },
        frames: section.frames,
        frame_bytes: section.frame_bytes,
        huge: huge(section),
        on_death: match section.on_death {
            config::OnDeath::Drop => OnDeath::Drop,
            config::OnDeath::Pass => OnDeath::Pass,
        },
        busy_poll: section.idle == config::Idle::Poll,
    }
}

fn huge(section: &config::Dataplane) -> HugePages {
    match section.huge_pages {
        config::HugePages::Auto => HugePages::Auto,
        config::HugePages::On => HugePages::On,
        config::HugePages::Off => HugePages::Off,
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
}

/// The one worker of this version, over all ports.
fn worker(
    section: &config::Dataplane,
    ports: Vec<Box<dyn Port>>,
    magazines: Vec<tidegate_io::Magazine>,
    reader: Reader,
    wants: Sender<Want>,
    mailbox: Receiver<Request>,
) -> anyhow::Result<Worker> {
    let mut ingress = Vec::with_capacity(ports.len());
    let mut exits = Vec::with_capacity(ports.len());
    for port in ports {
        let facts = port.facts();
        let number = section.interfaces.iter().position(|interface| interface.name == facts.device);
        let number = number.with_context(|| format!("{} is not an interface of the node file", facts.device))?;
        let device = DeviceId(u16::try_from(number).context("too many interfaces")?);
        ingress.push(Ingress { device, mac: facts.mac });
        exits.push((port, device));
    }
    let exits = Exits::new(exits, magazines).map_err(anyhow::Error::msg)?;
    let capacity = Capacity {
        flows_v4: section.flows_max.ipv4,
        flows_v6: section.flows_max.ipv6,
        backends: BACKENDS_MAX,
        huge: huge(section),
    };
    let mut state = State::new(capacity, [secret(1), secret(2)], now_ns()).context("memory for flows")?;
    state.set_half_open_percent(section.half_open_percent);
    Ok(Worker::new(0, reader, exits, ingress, state, Entropy::new(secret(3)), wants, mailbox))
}

/// A number nobody outside can know: the standard library keys its hash with randomness of the system.
fn secret(salt: u64) -> u64 {
    RandomState::new().hash_one(salt)
}

/// Turns the worker on a thread of its own until `stop` is set.
fn start_worker(
    mut worker: Worker,
    idle: Idle,
    core: Option<usize>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<()>> {
    let (pinned, answer) = bounded(1);
    let run = move || {
        let result = core.map_or(Ok(()), tidegate_io::pin::pin_to);
        let failed = result.is_err();
        let _ = pinned.send(result);
        if !failed {
            wheel::turn_until(&mut worker, idle, &stop);
        }
    };
    let thread = std::thread::Builder::new().name("worker-0".into()).spawn(run).context("starting the worker")?;
    answer.recv().context("the worker ended at once")?.context("pinning the worker (dataplane.cores)")?;
    Ok(thread)
}

/// The pinholes of all devices: the compiler says what is ours, clients read what they counted.
#[derive(Clone)]
struct SharedPinholes(Arc<Mutex<Vec<Pinhole>>>);

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
}
