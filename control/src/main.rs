//! `tidegate-control`: keeps the dataplane equal to what the cluster, or a directory of manifests, says.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidegate_control::check::report;
use tidegate_control::config::NodeFile;
use tidegate_control::health::Health;
use tidegate_control::reconcile::{Input, Reconciler};
use tidegate_control::session::link;
use tidegate_control::source::Source;
use tidegate_control::source::directory::Directory;
use tidegate_control::source::scan::Scan;
use tidegate_control::status::StatusWriter;
use tracing_subscriber::EnvFilter;

/// What is in progress may take this long to end after a signal.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Tells tidegate-dataplane what the cluster wants.
#[derive(Parser)]
#[command(version, about)]
struct Flags {
    /// The node file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Read the node file and all manifests once, print what is wrong, and end: 0 when there is no error.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = if flags.check { EnvFilter::new("off") } else { filter };
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    log.with_target(false).init();
    let result = NodeFile::read(&flags.config)
        .map_err(anyhow::Error::from)
        .and_then(|file| if flags.check { check(file) } else { run(file) });
    result.unwrap_or_else(|error| {
        eprintln!("tidegate-control: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(file: NodeFile) -> anyhow::Result<ExitCode> {
    let status = StatusWriter::start(&file.state_dir).context("cannot write status")?;
    let source = Box::new(Directory::new(&file.control.source.directory).guarding(&file.node));
    let (inbox, taken) = channel();
    stop_on_signals(inbox.clone())?;
    let mut reconciler = Reconciler::new(file.clone(), source.dialect(), status);
    if file.control.serve_health_check_node_ports {
        reconciler = reconciler.telling(Health::start().context("cannot serve healthCheckNodePorts")?);
    }
    let batches = inbox.clone();
    let running = source
        .start(Box::new(move |batch| batches.send(Input::Source(batch)).is_ok()))
        .context("cannot start the source")?;
    let name = concat!("tidegate-control ", env!("CARGO_PKG_VERSION")).to_string();
    let socket = file.socket.clone();
    thread::Builder::new()
        .name("session".into())
        .spawn(move || link::keep_connected(socket, name, |news| inbox.send(Input::Dataplane(news)).is_ok()))
        .context("cannot start a thread")?;
    tracing::info!(node = %file.node, directory = %file.control.source.directory.display(), "tidegate-control started");
    reconciler.run(&taken);
    drop((taken, running, reconciler));
    tracing::info!("tidegate-control ends; the dataplane goes on with what it has");
    Ok(ExitCode::SUCCESS)
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
    let directory = &file.control.source.directory;
    let mut scan = Scan::new(directory);
    let dialect = Directory::new(directory).dialect();
    let mut reconciler = Reconciler::new(file, dialect, StatusWriter::silent());
    scan.look_first(&mut |batch| {
        reconciler.take(batch);
        true
    });
    let (report, errors) = report(&reconciler);
    print!("{report}");
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
