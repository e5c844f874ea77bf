//! `tidegate health`: whether the dataplane does its work, as an exit status for probes and scripts.
//!
//! Asks every worker, each of which answers between two turns: an answer proves that it turns, whatever the threads around
//! it do. A socket that can be opened would prove less, and counters that move more than an idle gateway can offer.
//!
//! How control is stands in a line of its own and decides nothing: what it told last stays in force without it, and a gateway
//! that works must not be taken out of service for it.

use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail};
use tidegate_api::client::{Client, ClientError};
use tidegate_api::resource::Kind;
use tidegate_api::show::{Show, Shown, WorkerRow};

use crate::show::control;
use crate::trouble;

/// How often it is asked whether it is ready, and the time between two answers.
const ATTEMPTS: u32 = 5;
/// See [`ATTEMPTS`].
const PAUSE: Duration = Duration::from_millis(100);

/// What to say of a healthy dataplane. `ready`: it also has to know what it is here for, its
/// workers to be at the newest generation, its links up, and its fill rings not empty.
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
    if ready {
        ready_to_work(&mut client)?;
    }
    let (count, s) = (workers.len(), if workers.len() == 1 { "" } else { "s" });
    let workers = format!("healthy: {count} worker{s} at generation {generation}, {} objects\n", client.holds.len());
    Ok(workers + &of_control(&mut client))
}

/// Asks more than once: tables are published all the time, and a ring may be empty for a moment.
///
/// # Errors
/// What keeps the gateway from its work.
fn ready_to_work(client: &mut Client) -> anyhow::Result<()> {
    for attempt in 1.. {
        match client.show(Show::Readiness) {
            Ok(Shown::Readiness(readiness)) if readiness.is_ready() => break,
            Ok(Shown::Readiness(readiness)) if attempt == ATTEMPTS => bail!("not ready: {readiness}"),
            Ok(Shown::Readiness(_)) => std::thread::sleep(PAUSE),
            // One of an older version cannot tell.
            Ok(_) | Err(ClientError::Refused(_)) => break,
            Err(error) => bail!("not ready: {error}"),
        }
    }
    Ok(())
}

/// How control is; nothing if a dataplane of another version cannot tell.
fn of_control(client: &mut Client) -> String {
    match client.show(Show::Control) {
        Ok(Shown::Control(shown)) => control::control(&shown),
        Ok(_) | Err(ClientError::Refused(_)) => String::new(),
        Err(error) => format!("control: not known, {error}\n"),
    }
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
