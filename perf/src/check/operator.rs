//! Checks of the operator's view: every question of `tidegate show`, as a table and as JSON, and the error when nobody
//! is there to answer; and what `tidegate explain` says before it happens.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tidegate_api::show::FlowRow;

use crate::check::serving::told as outcome_told;
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::process::{self, in_namespace};
use crate::rig::{Rig, way};
use crate::topology::{ECHO_PORT, FAMILIES, Family, VIP_ECHO};

/// Where the gateway's dataplane tells its counters.
const METRICS: &str = "http://127.0.0.1:9470/metrics";
/// How long that may take on a busy machine.
const METRICS_LIMIT: Duration = Duration::from_secs(20);

/// How long objects may take from being in force to being saved, and the machine from the dataplane's beginning.
const SAVED_LIMIT: Duration = Duration::from_secs(30);
/// What is said of answers that go by the machine as the dataplane saw it.
const AS_SEEN: &str = "as the dataplane saw them last";

/// Questions, and whether a gateway that serves the lab must have rows to show.
const QUESTIONS: [(&str, bool); 10] = [
    ("services", true),
    ("backends", true),
    ("flows", false),
    ("tunnels", true),
    ("routes", true),
    ("neighbours", true),
    ("workers", true),
    ("ports", true),
    ("counters", true),
    ("drops", false),
];

/// Asks everything in both forms.
pub(super) fn show(rig: &mut Rig) -> Found {
    let mut told = Vec::new();
    let mut troubles = Vec::new();
    for (question, must_have_rows) in QUESTIONS {
        match ask(rig, question) {
            Ok(rows) if rows == 0 && must_have_rows => troubles.push(format!("{question}: no rows")),
            Ok(rows) => told.push(format!("{question} {rows}")),
            Err(error) => troubles.push(format!("{error:#}")),
        }
    }
    let pass = troubles.is_empty();
    let measured = if pass { told.join(", ") } else { troubles.join("; ") };
    let mut rows = vec![Row::new("all questions", measured, "rows, as text and JSON", pass), nobody_there(rig)?];
    for family in FAMILIES {
        rows.push(flows_of_one(rig, family)?);
    }
    Ok(rows)
}

/// Flows are asked for by everything that a flow has; all that is shown fits, and the one that was begun is among it.
fn flows_of_one(rig: &Rig, family: Family) -> Result<Row> {
    let (vip, source) = (VIP_ECHO.at(family, ECHO_PORT), rig.source(family));
    let outcome: Outcome = rig.client("udp", &way(vip, source, 2000))?;
    let (client, address) = (source.ip().to_string(), vip.ip().to_string());
    let by = ["--client", &client, "--vip", &address, "--protocol", "udp", "--service", "shop/echo"];
    let ask = |arguments: &[&str]| -> Result<Vec<FlowRow>> {
        let arguments: Vec<&str> = ["show", "flows", "--json"].iter().chain(arguments).copied().collect();
        let text = rig.gateway.command(&arguments)?.success("show flows")?;
        // Protocols are named for people and programs alike.
        Ok(serde_json::from_str(&text.replace("\"UDP\"", "17").replace("\"TCP\"", "6"))?)
    };
    let found = ask(&by)?;
    let fit =
        found.iter().all(|row| (row.client.0, row.vip, row.protocol) == (source.ip(), (vip.ip(), vip.port()), 17));
    let is_there = found.iter().any(|row| row.client == (source.ip(), source.port()));
    let other = ask(&[&by[..6], &["--service", "shop/web"]].concat())?;
    let pass = outcome.ok && fit && is_there && other.is_empty();
    let measured = format!("{} flows; of another Service {}", found.len(), other.len());
    Ok(Row::new(format!("{family} flows of one client"), measured, "those alone; none", pass))
}

/// Number of rows of one answer, after both forms have been looked at.
fn ask(rig: &Rig, question: &str) -> Result<usize> {
    rig.gateway.command(&["show", question])?.success(&format!("show {question}"))?;
    let text = rig.gateway.command(&["show", question, "--json"])?.success(&format!("show {question} --json"))?;
    let value: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("show {question} --json"))?;
    // Counters are one object; everything else is a list.
    Ok(value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len))
}

/// What `tidegate explain` says of a datagram before it is sent, against the pod that answers it; then of one that nobody
/// serves, and of the first one's answer on its way back.
pub(super) fn explain(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        let (vip, source) = (VIP_ECHO.at(family, ECHO_PORT), rig.source(family));
        let told = explained(rig, source, vip)?;
        let pod = of_step(&told, "backend", "pod");
        let outcome: Outcome = rig.client("udp", &way(vip, source, 2000))?;
        let pass = outcome.ok && !outcome.pod.is_empty() && pod == outcome.pod;
        let measured = format!("{} by {pod}, then {}", verdict(&told), outcome_told(&outcome));
        rows.push(Row::new(format!("{family} first datagram"), measured, "said beforehand who answers", pass));
        let again = explained(rig, source, vip)?;
        let pass = again["steps"].as_array().is_some_and(|steps| steps.iter().any(|step| step["step"] == "flow"))
            && of_step(&again, "translated", "destination") == of_step(&told, "translated", "destination");
        rows.push(Row::new(format!("{family} second"), verdict(&again), "its flow is known, same pod", pass));
        let nobody = explained(rig, source, VIP_ECHO.at(family, 9))?;
        let pass = nobody["verdict"]["reason"].is_string() || nobody["verdict"]["verdict"] == "answered";
        rows.push(Row::new(format!("{family} port nobody serves"), verdict(&nobody), "dropped or refused", pass));
        rows.push(from_what_is_saved(rig, rig.source(family), vip, family)?);
    }
    rows.push(nothing_saved(rig)?);
    Ok(rows)
}

/// The same question to what the dataplane has saved, where none of its devices and neighbours are: everything is told as it
/// tells it itself, but for what only a worker knows (who owns the packet, which port is free).
fn from_what_is_saved(rig: &Rig, from: SocketAddr, to: SocketAddr, family: Family) -> Result<Row> {
    let live = explained(rig, from, to)?;
    let (from, to) = (from.to_string(), to.to_string());
    let ask = || rig.gateway.explain_saved(None, &["udp", &from, &to, "--json"]);
    let (began, mut finished) = (Instant::now(), ask()?);
    // Objects are saved a moment after they came, the machine after ten seconds.
    while !finished.stderr.contains(AS_SEEN) && began.elapsed() < SAVED_LIMIT {
        std::thread::sleep(Duration::from_millis(300));
        finished = ask()?;
    }
    let as_seen = finished.stderr.contains(AS_SEEN);
    let saved: serde_json::Value = serde_json::from_str(&finished.success("explain --state")?)?;
    let told = |told: &serde_json::Value| -> Vec<serde_json::Value> {
        let steps = told["steps"].as_array().cloned().unwrap_or_default();
        steps.into_iter().filter(|step| step["step"] != "owned" && step["step"] != "translated").collect()
    };
    let same = as_seen && told(&live) == told(&saved) && live["verdict"] == saved["verdict"];
    let pass = same && of_step(&saved, "backend", "pod") == of_step(&live, "backend", "pod") && told(&live).len() > 4;
    let measured = format!("{} by {}", verdict(&saved), of_step(&saved, "backend", "pod"));
    let measured = if pass { measured } else { format!("{saved}; the dataplane: {live}") };
    Ok(Row::new(format!("{family} from what is saved"), measured, "as the dataplane tells it", pass))
}

fn nothing_saved(rig: &Rig) -> Result<Row> {
    let nowhere = Path::new("/run/tidegate-lab/nothing-is-here");
    let finished = rig.gateway.explain_saved(Some(nowhere), &["udp", "192.0.2.10:1", "203.0.113.10:53"])?;
    let names_it = finished.stderr.contains("nothing-is-here") && finished.stderr.contains("objects.json");
    let measured = format!("{}: {}", process::describe(finished.status), finished.stderr.trim());
    Ok(Row::new("nothing saved", measured, "an error that names the file", !finished.status.success() && names_it))
}

/// The page for Prometheus, against what the command says of the same counters.
pub(super) fn metrics(rig: &mut Rig) -> Found {
    let mut curl = in_namespace(rig.gateway.seat.namespace, "curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "10", METRICS]);
    let page = process::run(curl, "", METRICS_LIMIT)?.success(METRICS)?;
    let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    let of = |name: &str| samples.iter().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let text = rig.gateway.command(&["show", "counters", "--json"])?.success("show counters")?;
    let shown: serde_json::Value = serde_json::from_str(&text)?;
    let told = shown["totals"]["flow_installed"].as_f64();
    let pass = told.is_some() && of("tidegate_flow_installed_total ") == told;
    let measured = format!("{:?}, shown {told:?}", of("tidegate_flow_installed_total "));
    let mut rows = vec![Row::new("flows installed", measured, "as `tidegate show counters` says", pass)];
    let whole = page.ends_with("# EOF\n")
        && [
            "tidegate_drops_total{",
            "tidegate_worker_flows{",
            "tidegate_port_received_packets_total{",
            "tidegate_gateway_state{",
        ]
        .iter()
        .all(|name| samples.iter().any(|line| line.starts_with(name)));
    let measured = format!("{} samples", samples.len());
    rows.push(Row::new("the page", measured, "whole: drops, workers, ports, gateways", whole && samples.len() > 100));
    let balance = of("tidegate_books_imbalance_packets ");
    rows.push(Row::new("books", format!("{balance:?}"), "a number", balance.is_some()));
    Ok(rows)
}

fn explained(rig: &Rig, from: SocketAddr, to: SocketAddr) -> Result<serde_json::Value> {
    let (from, to) = (from.to_string(), to.to_string());
    let text = rig.gateway.command(&["explain", "udp", &from, &to, "--json"])?.success("explain")?;
    rig.gateway.command(&["explain", "udp", &from, &to])?.success("explain")?;
    serde_json::from_str(&text).context("explain --json")
}

fn of_step(told: &serde_json::Value, step: &str, field: &str) -> String {
    let steps = told["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = steps.iter().find(|each| each["step"] == step);
    found.and_then(|found| found[field].as_str()).unwrap_or_default().to_owned()
}

fn verdict(told: &serde_json::Value) -> String {
    told["verdict"].to_string()
}

fn nobody_there(rig: &Rig) -> Result<Row> {
    let finished = rig.gateway.command_at("/run/tidegate/nobody.sock", &["show", "services"])?;
    let names_it =
        finished.stderr.contains("/run/tidegate/nobody.sock") && finished.stderr.contains("tidegate-dataplane");
    let measured = format!("{}: {}", crate::process::describe(finished.status), finished.stderr.trim());
    let expected = "an error that names socket and program";
    Ok(Row::new("nobody there", measured, expected, !finished.status.success() && names_it))
}
