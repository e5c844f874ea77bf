//! `tidegate health`: whether the dataplane does its work, as an exit status for probes and scripts.
//!
//! Asks every worker, each of which answers between two turns: an answer proves that it turns, whatever the threads around
//! it do. A socket that can be opened would prove less, and counters that move more than an idle gateway can offer.

use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail};
use tidegate_api::client::Client;
use tidegate_api::resource::Kind;
use tidegate_api::show::{Show, Shown, WorkerRow};

use crate::trouble;

/// What to say of a healthy dataplane. `ready`: it also has to know what it is here for.
///
/// # Errors
/// Why it is not healthy, or not ready, for the operator; after `timeout` at the latest, give or take the five seconds of a
/// greeting.
pub fn run(socket: &Path, ready: bool, timeout: Duration) -> anyhow::Result<String> {
    let explain = |error| anyhow!(trouble::explain(&error, socket));
    let mut client = Client::connect(socket, concat!("tidegate ", env!("CARGO_PKG_VERSION"))).map_err(explain)?;
    client.set_timeout(Some(timeout))?;
    let workers = match client.show(Show::Workers).map_err(explain)? {
        Shown::Workers(rows) => rows,
        _ => bail!(trouble::mismatch("workers", "something else", &client.server)),
    };
    let generation = oldest(&workers)?;
    if ready && !client.holds.keys().any(|key| key.kind == Kind::Gateway) {
        bail!("not ready: the workers turn, but control has not told yet what this gateway is; its log says why");
    }
    let (count, s) = (workers.len(), if workers.len() == 1 { "" } else { "s" });
    Ok(format!("healthy: {count} worker{s} at generation {generation}, {} objects\n", client.holds.len()))
}

/// The generation all of them have reached.
fn oldest(workers: &[WorkerRow]) -> anyhow::Result<u64> {
    let Some(generation) = workers.iter().map(|row| row.generation).min() else {
        bail!("the dataplane has no workers");
    };
    match workers.iter().find(|row| row.ports.is_empty()) {
        Some(idle) => bail!("worker {} serves no port", idle.worker),
        None => Ok(generation),
    }
}
