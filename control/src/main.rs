//! `tidegate-control`: keeps the dataplane equal to what the cluster, or a directory of manifests, says.
#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidegate_control::check::report;
use tidegate_control::config::{KubernetesChoice, NodeFile, SourceChoice};
use tidegate_control::health::Health;
use tidegate_control::lease;
use tidegate_control::metrics::{self, Board};
use tidegate_control::reconcile::{Input, Reconciler};
use tidegate_control::saved::Saved;
use tidegate_control::session::link;
use tidegate_control::source::directory::Directory;
use tidegate_control::source::kubernetes::{Access, Kubernetes, Refresh};
use tidegate_control::source::nevergood::NeverGood;
use tidegate_control::source::scan::Scan;
use tidegate_control::source::{Batch, Source};
use tidegate_control::status::StatusWriter;
use tidegate_control::status::api::ApiWriter;
use tracing_subscriber::EnvFilter;

/// A list of a large cluster is millions of small pieces, made on one thread and let go on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is in progress may take this long to end after a signal.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Portions of a first list that may wait to be taken in.
const PORTIONS_WAITING_MAX: usize = 2;

/// `--check` waits for so long until a cluster has been read.
const CHECKED_WITHIN: Duration = Duration::from_secs(30);

/// What is logged unless the environment says otherwise. The client would log whole answers that it cannot read, and an
/// answer may be a list of a whole cluster; we say what is wrong with them ourselves.
const LOGGED: &str = "info,kube_client=off";

/// Tells tidegate-dataplane what the cluster wants.
#[derive(Parser)]
#[command(version, about)]
struct Flags {
    /// The node file; of several, the first one that is there.
    #[arg(long, value_name = "FILE", required_unless_present = "print_crds")]
    config: Vec<PathBuf>,
    /// Read the node file and all objects of the source once, print what is wrong, and end: 0 when there is no error.
    /// Nothing is changed, neither in the dataplane nor in the cluster.
    #[arg(long)]
    check: bool,
    /// Print the definitions of our own kinds for the API server, and end.
    #[arg(long, exclusive = true)]
    print_crds: bool,
    /// Take objects from the Kubernetes API that this file leads to, whatever source the node file names.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if flags.print_crds {
        return print_crds();
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let filter = if flags.check { EnvFilter::new("off") } else { filter };
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    log.with_target(false).init();
    let result = NodeFile::read(tidegate_api::node_file::first(&flags.config)).map_err(anyhow::Error::from).and_then(
        |mut file| {
            if let Some(kubeconfig) = flags.kubeconfig {
                let named = match file.control.source {
                    SourceChoice::Kubernetes(named) => named,
                    SourceChoice::Directory(_) => KubernetesChoice::default(),
                };
                file.control.source =
                    SourceChoice::Kubernetes(KubernetesChoice { kubeconfig: Some(kubeconfig), ..named });
            }
            if flags.check { check(file) } else { run(file) }
        },
    );
    result.unwrap_or_else(|error| {
        eprintln!("tidegate-control: {error:#}");
        ExitCode::FAILURE
    })
}

fn print_crds() -> ExitCode {
    match tidegate_control::crd::text() {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tidegate-control: cannot write the definitions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: NodeFile) -> anyhow::Result<ExitCode> {
    // Before anything is written there: it is held until the end.
    let alone = tidegate_control::alone::hold(&file.state_dir)?;
    let mut status = StatusWriter::start(&file.state_dir).context("cannot write status")?;
    let (inbox, taken) = channel();
    stop_on_signals(inbox.clone())?;
    let mut traffic = None;
    let never_good = NeverGood::default();
    let (source, writer): (Box<dyn Source>, _) = match &file.control.source {
        SourceChoice::Directory(directory) => {
            tracing::info!(node = %file.node, directory = %directory.display(), "tidegate-control started");
            (Box::new(Directory::new(directory).guarding(&file.node).letting_go(never_good.clone())), None)
        }
        SourceChoice::Kubernetes(choice) => {
            let access = Access::new(choice.kubeconfig.as_deref()).context("cannot reach the Kubernetes API")?;
            status = status.sparing(); // status of the Services themselves says it
            tracing::info!(node = %file.node, server = %access.server(), "tidegate-control started");
            traffic = Some(access.traffic());
            let source = Kubernetes::new(access.clone(), file.control.exposed());
            let writer = api_writer(&file, choice, &access, source.refresh(), inbox.clone())?;
            (Box::new(source), Some(writer))
        }
    };
    let saved = Saved::open(&file.state_dir, alone.has_predecessor()).context("cannot save policies")?;
    let board = Arc::new(Board::default());
    let mut reconciler = Reconciler::new(file.clone(), source.dialect(), status).remembering(saved);
    reconciler = reconciler.counting(Arc::clone(&board)).naming(never_good);
    let served = match file.control.metrics {
        Some(at) => {
            let served = metrics::start(at, inbox.clone(), Arc::clone(&board), traffic);
            Some(served.with_context(|| format!("control.metrics: listening at {at}"))?)
        }
        None => None,
    };
    if file.control.serve_health_check_node_ports {
        reconciler = reconciler.telling(Health::start().context("cannot serve healthCheckNodePorts")?);
    }
    if let Some(writer) = writer {
        reconciler = reconciler.with_api(writer);
    }
    let batches = inbox.clone();
    // What is listed is read as fast as it is taken in, so that little waits in memory and little is left to be done when the
    // last of it comes. Changes are never held up: those that wait become one.
    let (place, portions) = sync_channel(PORTIONS_WAITING_MAX);
    let deliver = move |batch: Batch| {
        board.came();
        (batch.complete || place.send(()).is_ok()) && batches.send(Input::Source(batch)).is_ok()
    };
    let running = source.start(Box::new(deliver)).context("cannot start the source")?;
    let name = concat!("tidegate-control ", env!("CARGO_PKG_VERSION")).to_string();
    let socket = file.socket.clone();
    thread::Builder::new()
        .name("session".into())
        .spawn(move || link::keep_connected(socket, name, |news| inbox.send(Input::Dataplane(news)).is_ok()))
        .context("cannot start a thread")?;
    reconciler.run(&taken, &portions);
    drop((taken, portions, served, running, reconciler));
    tracing::info!("tidegate-control ends; the dataplane goes on with what it has");
    Ok(ExitCode::SUCCESS)
}

/// What writes to the API while this process holds the Lease.
fn api_writer(
    file: &NodeFile,
    choice: &KubernetesChoice,
    access: &Access,
    refresh: Refresh,
    inbox: Sender<Input>,
) -> anyhow::Result<ApiWriter> {
    let settings = lease::Settings {
        namespace: choice.lease_namespace.clone().unwrap_or_else(|| access.namespace().into()),
        name: file.control.lease_name(),
        // A process that begins anew is another: what it decided before is not known to it any more.
        identity: format!("{}_{:016x}", file.node, RandomState::new().hash_one(std::process::id())),
        timing: choice.lease_seconds.timing().unwrap_or_default(),
    };
    ApiWriter::start(access, settings, refresh, move |word| drop(inbox.send(Input::Lease(word))))
        .context("cannot write to the Kubernetes API")
}

fn stop_on_signals(inbox: Sender<Input>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot catch signals")?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            let _ = inbox.send(Input::Stop);
            thread::sleep(STOP_WITHIN); // a write to a stopped dataplane may be in progress
            std::process::exit(0);
        }
    })?;
    Ok(())
}

fn check(file: NodeFile) -> anyhow::Result<ExitCode> {
    let reconciler = match file.control.source.clone() {
        SourceChoice::Directory(directory) => {
            let dialect = Directory::new(&directory).dialect();
            let mut reconciler = Reconciler::new(file, dialect, StatusWriter::silent());
            Scan::new(&directory).look_first(&mut |batch| {
                reconciler.take(batch);
                true
            });
            reconciler
        }
        SourceChoice::Kubernetes(choice) => check_cluster(file, &choice)?,
    };
    let (report, errors) = report(&reconciler);
    print!("{report}");
    let whole = reconciler.is_complete() || errors > 0;
    if !whole {
        println!(
            "not everything could be read within {} s: the API did not list all objects",
            CHECKED_WITHIN.as_secs()
        );
    }
    Ok(if errors == 0 && whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes the whole cluster in once. Nothing leads, so that nothing is decided and nothing written.
fn check_cluster(file: NodeFile, choice: &KubernetesChoice) -> anyhow::Result<Reconciler> {
    let access = Access::new(choice.kubeconfig.as_deref()).context("cannot reach the Kubernetes API")?;
    let source = Box::new(Kubernetes::new(access, file.control.exposed()));
    eprintln!("reading all objects from the Kubernetes API, for at most {} s", CHECKED_WITHIN.as_secs());
    let mut reconciler = Reconciler::new(file, source.dialect(), StatusWriter::silent());
    let (batches, taken) = channel();
    let running =
        source.start(Box::new(move |batch| batches.send(batch).is_ok())).context("cannot start the source")?;
    let deadline = Instant::now() + CHECKED_WITHIN;
    while !reconciler.is_complete() {
        match taken.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(batch) => reconciler.take(batch),
            Err(_) => break, // what is wrong stands in the report
        }
    }
    drop((taken, running));
    Ok(reconciler)
}
