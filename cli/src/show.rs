//! `tidegate show`: one question, one answer, as aligned columns or as JSON.
//!
//! The answer is rendered whole before the first byte is printed: an error never leaves half a table behind.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Serialize;
use tidegate_api::client::Client;
use tidegate_api::show::{ServiceRow, Show, Shown};

use crate::args::{ShowArguments, What};
use crate::trouble;

/// Rows that were asked for.
mod filter;
/// Services and their backends.
mod service;
/// Flows.
mod flow;
/// Where packets go: tunnels, routes, neighbours.
mod route;
/// Who does the work: workers and ports.
mod worker;
/// What was counted: totals, books, drop reasons.
mod counter;
/// The gateways of the set.
mod gateway;
/// Routes to VIPs in the kernel.
mod announcement;
/// Ports of external addresses.
mod egress;
/// Network policies.
mod policy;
/// Who tells the dataplane what to do.
pub mod control;

/// Longest wait for one answer.
const ANSWER_TIMEOUT_S: u64 = 30;

/// Asks at `socket` and returns the text to print, or the rows as JSON.
///
/// # Errors
/// When no answer comes, or one that does not fit the question, or the Service asked for is not there; the text is for
/// the operator.
pub fn run(socket: &Path, arguments: &ShowArguments, as_json: bool) -> anyhow::Result<String> {
    let question = arguments.what.question();
    let asked = name_of_question(&question);
    let explain = |error| anyhow!(trouble::explain(&error, socket));
    let mut client = Client::connect(socket, concat!("tidegate ", env!("CARGO_PKG_VERSION"))).map_err(explain)?;
    client.set_timeout(Some(Duration::from_secs(ANSWER_TIMEOUT_S))).context("setting the time limit")?;
    let answer = client.show(question).map_err(explain)?;
    let answered = name_of_answer(&answer);
    if asked != answered {
        return Err(anyhow!(trouble::mismatch(asked, answered, &client.server)));
    }
    let answer = match (&arguments.what, answer) {
        (What::Services { service: Some(name), .. }, Shown::Services(rows)) => Shown::Services(only(rows, name)?),
        (_, answer) => answer,
    };
    // A Service without backends or flows is told from one that is not there.
    let suspect = match (&arguments.what, &answer) {
        (What::Backends { service, .. }, Shown::Backends(rows)) if rows.is_empty() => service.as_ref(),
        (What::Flows { wanted, .. }, Shown::Flows(rows)) if rows.is_empty() => wanted.service.as_ref(),
        _ => None,
    };
    if let Some(name) = suspect
        && let Shown::Services(services) = client.show(Show::Services).map_err(explain)?
    {
        only(services, name)?;
    }
    let answer = filter::kept(answer, &arguments.what)?;
    if as_json { json(&answer) } else { Ok(text(&answer, &arguments.what)) }
}

/// Asks again and again, and writes each answer, or why there is none, until interrupted. On a terminal each takes the
/// place of the one before; elsewhere a line with the time stands between them, in JSON nothing does.
///
/// # Errors
/// When nothing can be written any more.
pub fn watch(socket: &Path, arguments: &ShowArguments, as_json: bool, out: &mut impl Write) -> io::Result<()> {
    let every = Duration::from_secs(arguments.watch_s.unwrap_or(1));
    let is_terminal = io::stdout().is_terminal();
    loop {
        let text = match run(socket, arguments, as_json) {
            Ok(text) => text,
            Err(error) if as_json => {
                let _ = writeln!(io::stderr(), "tidegate: {error:#}");
                String::new()
            }
            Err(error) => format!("{error:#}\n"),
        };
        if !as_json {
            // Home, and everything from there on gone.
            let before = if is_terminal { "\x1b[H\x1b[2J" } else { "" };
            let now = jiff::Timestamp::now().strftime("%H:%M:%S");
            writeln!(out, "{before}{now} UTC, every {} s", every.as_secs())?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        std::thread::sleep(every);
    }
}

/// The frontends of one Service, which has at least one.
fn only(mut rows: Vec<ServiceRow>, name: &str) -> anyhow::Result<Vec<ServiceRow>> {
    rows.retain(|row| row.service == name);
    match rows.is_empty() {
        true => Err(anyhow!("no Service {name} here; `tidegate show services` lists those there are")),
        false => Ok(rows),
    }
}

/// The rows alone, pretty-printed, one line feed at the end.
fn json(answer: &Shown) -> anyhow::Result<String> {
    fn pretty<R: Serialize>(rows: &R) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(rows).context("writing JSON")? + "\n")
    }
    match answer {
        Shown::Services(rows) => pretty(rows),
        Shown::Backends(rows) => pretty(rows),
        Shown::Flows(rows) => pretty(&flow::with_names(rows)?),
        Shown::Tunnels(rows) => pretty(rows),
        Shown::Routes(rows) => pretty(rows),
        Shown::Neighbours(rows) => pretty(rows),
        Shown::Workers(rows) => pretty(rows),
        Shown::Ports(rows) => pretty(rows),
        Shown::Counters(counters) => pretty(counters),
        Shown::Drops(rows) => pretty(rows),
        Shown::Gateways(gateways) => pretty(gateways),
        Shown::Announcements(announcements) => pretty(announcements),
        Shown::Policies(policies) => pretty(policies),
        Shown::Egress(egress) => pretty(egress),
        Shown::Control(control) => pretty(control),
        Shown::Readiness(readiness) => pretty(readiness),
    }
}

/// The answer for people. `what` is the question, for hints on empty and cut answers.
fn text(answer: &Shown, what: &What) -> String {
    match answer {
        Shown::Services(rows) => service::services(rows),
        Shown::Backends(rows) => match what {
            What::Backends { service: Some(name), .. } => service::backends(rows, Some(name)),
            _ => service::backends(rows, None),
        },
        Shown::Flows(rows) => match what {
            What::Flows { limit, .. } => flow::flows(rows, *limit),
            _ => flow::flows(rows, u32::MAX),
        },
        Shown::Tunnels(rows) => route::tunnels(rows),
        Shown::Routes(rows) => route::routes(rows),
        Shown::Neighbours(rows) => route::neighbours(rows),
        Shown::Workers(rows) => worker::workers(rows),
        Shown::Ports(rows) => worker::ports(rows),
        Shown::Counters(counters) => counter::counters(counters),
        Shown::Drops(rows) => counter::drops(rows, is_all(what)),
        Shown::Gateways(shown) => gateway::gateways(shown),
        Shown::Announcements(shown) => announcement::announcements(shown),
        Shown::Policies(shown) => policy::policies(shown, is_all(what)),
        Shown::Egress(shown) => egress::egress(shown),
        Shown::Control(shown) => control::control(shown),
        Shown::Readiness(shown) if shown.is_ready() => format!("ready, at generation {}\n", shown.generation),
        Shown::Readiness(shown) => format!("not ready: {shown}\n"),
    }
}

/// Whether rows of nothing are asked for too.
fn is_all(what: &What) -> bool {
    match what {
        What::Drops { all, reason, .. } => *all || reason.is_some(),
        What::Policies { all, .. } => *all,
        _ => false,
    }
}

fn name_of_question(question: &Show) -> &'static str {
    match question {
        Show::Services => "services",
        Show::Backends { .. } => "backends",
        Show::Flows { .. } => "flows",
        Show::Tunnels => "tunnels",
        Show::Routes => "routes",
        Show::Neighbours => "neighbours",
        Show::Workers => "workers",
        Show::Ports => "ports",
        Show::Counters => "counters",
        Show::Drops => "drops",
        Show::Gateways => "gateways",
        Show::Announcements => "announcements",
        Show::Policies => "policies",
        Show::Egress => "egress",
        Show::Control => "control",
        Show::Readiness => "readiness",
    }
}

fn name_of_answer(answer: &Shown) -> &'static str {
    match answer {
        Shown::Services(_) => "services",
        Shown::Backends(_) => "backends",
        Shown::Flows(_) => "flows",
        Shown::Tunnels(_) => "tunnels",
        Shown::Routes(_) => "routes",
        Shown::Neighbours(_) => "neighbours",
        Shown::Workers(_) => "workers",
        Shown::Ports(_) => "ports",
        Shown::Counters(_) => "counters",
        Shown::Drops(_) => "drops",
        Shown::Gateways(_) => "gateways",
        Shown::Announcements(_) => "announcements",
        Shown::Policies(_) => "policies",
        Shown::Egress(_) => "egress",
        Shown::Control(_) => "control",
        Shown::Readiness(_) => "readiness",
    }
}
