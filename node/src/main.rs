//! The agent process: flags, logs, signals.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

use anyhow::Context;
use tidegate_node::agent::{Agent, remove};
use tidegate_node::cluster::{self, Cluster};
use tidegate_node::kernel::Kernel;
use tidegate_node::settings::{Remark, Settings};
use tidegate_node::sole::Sole;
use tidegate_node::source::{File, first};
use tidegate_node::status::status;
use tidegate_node::wanted::Wanted;

/// Names files where no flag does: a probe of Kubernetes cannot put the node's name into a flag.
const CONFIG_VARIABLE: &str = "TIDEGATE_NODE_CONFIG";
/// The file if nothing names one.
const CONFIG_DEFAULT: &str = "/etc/tidegate/node-agent.yaml";

/// Sends selected pods of this worker through gateways, and their answers back, by the kernel's own means.
#[derive(Parser, Debug)]
#[command(name = "tidegate-node", version)]
struct Flags {
    /// What is wanted of this node (YAML or JSON), followed while the agent runs; of several, the first one that is there.
    /// Without it: what TIDEGATE_NODE_CONFIG names, with colons between them, or /etc/tidegate/node-agent.yaml
    #[arg(long, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Read and check the file, then end.
    #[arg(long)]
    check: bool,
    /// When told to end (SIGTERM, SIGINT), take away everything the agent made.
    #[arg(long)]
    remove_on_exit: bool,
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Show what the node does for each pod; ends with 1 when that is not all that is wanted
    Status,
    /// Take away everything the agent made, whether it runs or not (stop it first, or it comes back)
    Remove,
}

fn main() -> ExitCode {
    let mut flags = Flags::parse();
    if flags.config.is_empty() {
        let named = std::env::var_os(CONFIG_VARIABLE).unwrap_or_else(|| CONFIG_DEFAULT.into());
        flags.config = std::env::split_paths(&named).collect();
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let coloured = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(coloured)
        .with_target(false)
        .init();
    let answer = match &flags.command {
        Some(Task::Status) => tell(&flags.config),
        Some(Task::Remove) => leave(&flags.config).map(|()| true),
        None if flags.check => check(&flags.config).map(|()| true),
        None => run(&flags).map(|()| true),
    };
    match answer {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            for line in format!("{error:#}").lines() {
                tracing::error!("{line}");
            }
            ExitCode::from(2)
        }
    }
}

fn read(paths: &[PathBuf]) -> anyhow::Result<Wanted> {
    let path = first(paths)?;
    let text = std::fs::read_to_string(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    Wanted::parse(&text).map_err(|complaints| {
        let named: Vec<String> =
            complaints.iter().map(|complaint| format!("{}: {complaint}", path.display())).collect();
        anyhow::anyhow!(named.join("\n"))
    })
}

fn check(paths: &[PathBuf]) -> anyhow::Result<()> {
    let wanted = read(paths)?;
    let pods: usize = wanted.egress.iter().map(|egress| egress.pods.len()).sum();
    println!(
        "{}: {} gateways, {pods} pods, {} symmetric destinations",
        first(paths)?.display(),
        wanted.gateways.len(),
        wanted.symmetric.len()
    );
    Ok(())
}

fn tell(paths: &[PathBuf]) -> anyhow::Result<bool> {
    let mut wanted = read(paths)?;
    if let Some(kubernetes) = &wanted.kubernetes {
        let path = &kubernetes.state_file;
        let kept = cluster::kept(path);
        wanted = kept.with_context(|| format!("{}: the API has not been heard yet", path.display()))?;
    }
    let found = Kernel::open()?.read(&wanted)?;
    let remarks: Vec<Remark> = Settings::default().remarks(&wanted);
    let status = status(&wanted, &found, remarks);
    print!("{}", status.text);
    Ok(status.good)
}

/// Without a file it goes by the numbers that are the default.
fn leave(paths: &[PathBuf]) -> anyhow::Result<()> {
    let wanted = if first(paths)?.exists() { read(paths)? } else { Wanted::default() };
    let made = remove(&mut Kernel::open()?, &wanted)?;
    println!("{made} things removed; nothing of this agent is left");
    Ok(())
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let base = read(&flags.config)?;
    let _sole = Sole::claim()?;
    let file = File::new(&flags.config);
    match base.kubernetes.clone() {
        Some(settings) => {
            let source = Cluster::start(file, base, settings)?;
            Agent::new(source)?.run(&stop, flags.remove_on_exit)
        }
        None => Agent::new(file)?.run(&stop, flags.remove_on_exit),
    }
}
