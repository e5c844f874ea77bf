//! `tidegate drain` and `tidegate undrain`: give up what is announced here, or take part again.
//!
//! A drain is over when nothing is announced here any more. What still arrives is forwarded until the dataplane ends.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tidegate_api::client::{Client, ClientError};
use tidegate_api::message::{Request, Response};
use tidegate_api::show::{GatewayRow, Show, Shown};

use crate::trouble;

/// How often it is looked how far a drain has come.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks at `socket`; what to print. Without `wait` a drain is taken back.
///
/// # Errors
/// When no answer comes, or after `wait` something is still announced; the text is for the operator.
pub fn run(socket: &Path, wait: Option<Duration>) -> anyhow::Result<String> {
    let explain = |error: ClientError| anyhow!(trouble::explain(&error, socket));
    let mut client = Client::connect(socket, concat!("tidegate ", env!("CARGO_PKG_VERSION"))).map_err(explain)?;
    client.set_timeout(Some(ANSWER_TIMEOUT)).context("setting the time limit")?;
    client.send(&Request::Drain { draining: wait.is_some() }).map_err(explain)?;
    match client.receive().map_err(explain)? {
        Response::Draining { .. } => {}
        Response::Error { message } => return Err(anyhow!("the dataplane says: {message}")),
        other => return Err(anyhow!("unexpected answer: {other:?}")),
    }
    let Some(wait) = wait else { return Ok("takes part in announcing again\n".into()) };
    let began = Instant::now();
    loop {
        let Shown::Gateways(shown) = client.show(Show::Gateways).map_err(explain)? else {
            return Err(anyhow!("unexpected answer to show gateways"));
        };
        let own =
            shown.rows.iter().find(|row| row.is_own).ok_or_else(|| anyhow!("this gateway is not in its own set"))?;
        if own.announced == 0 {
            return Ok(format!("drained after {} ms: others announce\n", began.elapsed().as_millis()));
        }
        if began.elapsed() >= wait {
            return Err(anyhow!(not_taken(own, &shown.rows)));
        }
        std::thread::sleep(LOOK);
    }
}

fn not_taken(own: &GatewayRow, rows: &[GatewayRow]) -> String {
    let others: Vec<String> =
        rows.iter().filter(|row| !row.is_own).map(|row| format!("{} is {}", row.node, row.state)).collect();
    let others = if others.is_empty() { "there is no other gateway".into() } else { others.join(", ") };
    let count = own.announced;
    format!(
        "{count} VIPs are still announced here, since nobody takes them: {others}; `tidegate undrain` takes the wish back"
    )
}
