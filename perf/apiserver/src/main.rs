//! `tidegate-apiserver`: the stand-in as a program, for the lab and for trying the Kubernetes source without a cluster.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidegate_apiserver::rbac::Rules;
use tidegate_apiserver::{ApiServer, Options};
use tracing_subscriber::EnvFilter;

/// Serves the Kubernetes API from memory.
#[derive(Parser)]
#[command(version, about)]
struct Flags {
    /// Where to listen; port 0 for a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Writes a kubeconfig of a user who may do everything.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Loads the manifests (*.yaml, *.yml, *.json) of a directory, in the order of their names.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// One more user, with the rules of the ClusterRoles and Roles in a file; its kubeconfig is written beside it.
    #[arg(long, value_name = "NAME=ROLE-FILE")]
    user: Vec<String>,
    /// Plain HTTP.
    #[arg(long)]
    plain: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    log.with_target(false).init();
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-apiserver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    // Before the server is there: a signal that comes early is kept.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let options = Options { listen: flags.listen, plain: flags.plain, ..Options::default() };
    let server = ApiServer::start(options).with_context(|| format!("cannot listen at {}", flags.listen))?;
    for user in &flags.user {
        let (name, file) = user.split_once('=').context("--user wants NAME=ROLE-FILE")?;
        let role = std::fs::read_to_string(file).with_context(|| file.to_owned())?;
        server.add_user(name, Rules::from_cluster_role(&role).with_context(|| file.to_owned())?);
        let beside = Path::new(file).with_extension("kubeconfig");
        std::fs::write(&beside, server.kubeconfig(name)).with_context(|| beside.display().to_string())?;
    }
    if let Some(directory) = &flags.manifests {
        let count = load(&server, directory)?;
        tracing::info!(count, directory = %directory.display(), "objects loaded");
    }
    // Last, so that whoever waits for the file finds everything.
    if let Some(file) = &flags.kubeconfig {
        let partial = file.with_extension("partial");
        std::fs::write(&partial, server.kubeconfig("admin")).with_context(|| partial.display().to_string())?;
        std::fs::rename(&partial, file).with_context(|| file.display().to_string())?;
    }
    tracing::info!(url = server.url(), "serving");
    signals.forever().next();
    Ok(())
}

fn load(server: &ApiServer, directory: &Path) -> anyhow::Result<usize> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    let wanted = |file: &PathBuf| {
        matches!(file.extension().and_then(|extension| extension.to_str()), Some("yaml" | "yml" | "json"))
    };
    files.retain(wanted);
    files.sort();
    let mut count = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        count += server.apply(&text).with_context(|| file.display().to_string())?.len();
    }
    Ok(count)
}
